"""HFT and HGPO as whole runs: they learn the right thing, they resume, ranks change nothing."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    TIMINGS,
    assert_same_end,
    baseline_settings,
    few_rows,
    hft_settings,
    hgpo_settings,
    log_of,
    run,
    stopped_after,
    weights,
)  # fmt: skip

import hgpo
import lhrm
from data import report, runs
from data.cli import InputError, mix_seed
from data.judge import judge
from data.modes import MODES
from data.rows import batch_indices, read_hft_rows, read_queries
from sample import generate

RUNS = {
    "hft": (lhrm.hft, hft_settings),
    "hgpo": (hgpo.run, hgpo_settings),
    "dpo": (hgpo.run, partial(baseline_settings, "dpo")),
    "rft": (hgpo.run, partial(baseline_settings, "rft")),
}


# ----------------------------------------------------------------------------------- what is learnt


def test_hgpo_moves_the_think_ratio_up_where_thinking_helps_and_down_where_it_does_not(
    lab_folder, tokenizer, tmp_path
):
    """HFT teaches both formats. On sums only thinking finds the answer; on greetings both do."""
    easy = [(f"hello {name}", "hello") for name in ("ada", "alan", "grace", "john")]
    hard = [(f"{i}+{j}=", str(i + j)) for i, j in ((7, 5), (8, 4), (9, 6), (3, 8))]
    rows = []
    for _ in range(40):
        rows += [{"prompt": q, "thinking": a, "answer": a} for q, a in easy + hard]
        rows += [{"prompt": q, "answer": a} for q, a in easy]
        rows += [{"prompt": q, "answer": "0"} for q, _ in hard]  # answered at once: always wrong
    data, queries = tmp_path / "hft.jsonl", tmp_path / "rl.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [
        {"prompt": q, "answer": a, "domain": d} for d, p in (("easy", easy), ("hard", hard))
        for q, a in p
    ]  # fmt: skip
    queries.write_text("".join(json.dumps(row) + "\n" for row in questions))
    lhrm.hft(
        hft_settings(
            lab_folder, tmp_path / "hft", dataset_name=str(data), batch_size=32, max_steps=150,
            max_tokens_per_device=512, learning_rate=1e-2,
        )
    )  # fmt: skip
    hgpo.run(
        hgpo_settings(
            lab_folder, tmp_path / "hgpo", model_name_or_path=str(tmp_path / "hft"), num_queries=8,
            dataset_name=str(queries), eval_dataset_name=str(queries), num_generations=8,
            max_steps=80, max_tokens_per_device=1024, num_iterations=1, beta=0.03,
        )
    )  # fmt: skip
    results = json.loads((tmp_path / "hgpo" / "results.json").read_text())
    ratio = {
        (stage, domain): results[stage]["by_domain"][domain]["auto"]["think_ratio"]
        for stage in results
        for domain in ("easy", "hard")
    }
    assert abs(ratio["hft", "easy"] - ratio["hft", "hard"]) < 0.4
    assert ratio["hgpo", "hard"] > 0.8 > 0.2 > ratio["hgpo", "easy"]
    for figure in ("pass@1", "hybrid_accuracy"):
        assert results["hgpo"]["auto"][figure] > results["hft"]["auto"][figure]


def test_hft_lowers_the_loss_and_logs_what_it_claims(lab_folder, tmp_path):
    settings = hft_settings(lab_folder, tmp_path, max_steps=60, batch_size=16, learning_rate=5e-3)
    lhrm.hft(settings)
    log = log_of(tmp_path)
    assert [entry["step"] for entry in log] == list(range(1, 61))
    losses = [entry["loss"] for entry in log]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])  # a single batch may hold longer rows
    assert log[-1]["epoch"] == pytest.approx(60 * 16 / 2000)
    assert 0 <= log[0]["mean_token_accuracy"] < log[-1]["mean_token_accuracy"] <= 1
    # The first logged loss is Eq. 4 on the first batch, worked out row by row.
    runtime = lhrm.start(False)
    policy, tokenizer = lhrm.load_policy(lab_folder / "base", runtime, False)
    rows = list(read_hft_rows(settings.dataset_name))
    total, tokens = 0.0, 0
    for i in batch_indices(len(rows), 16, 0, seed=0):
        _, messages, text = rows[i]
        response = tokenizer.encode(text) + tokenizer.eos_ids[:1]
        scores = lhrm.score_responses(policy, [tokenizer.encode_chat(messages)], [response])
        total -= scores.log_probs.sum().item() / 16
        tokens += len(response)
    assert log[0]["loss"] == pytest.approx(total, rel=1e-4)
    assert log[0]["loss_per_token"] == pytest.approx(total * 16 / tokens, rel=1e-4)


def test_hft_logs_every_few_steps_and_the_last_one_and_its_bar_moves_at_each(
    lab_folder, tmp_path, monkeypatch, capsys
):
    shown = []
    monkeypatch.setattr(report, "show_on_bar", lambda bar, figures: shown.append(figures["loss"]))
    lhrm.hft(hft_settings(lab_folder, tmp_path, max_steps=5, logging_steps=2))
    assert [entry["step"] for entry in log_of(tmp_path)] == [2, 4, 5] and len(shown) == 5
    printed = capsys.readouterr().out
    first, defaults = printed[printed.index("Hybrid Fine-Tuning") :].split("by default: ")
    assert (
        "  max_steps                    5\n" in first and "  rows                         " in first
    )
    assert "warmup_ratio=0.1, " in defaults and "max_steps" not in defaults


@pytest.mark.parametrize("method", ["hgpo", "dpo", "rft"])
def test_a_model_that_knows_neither_form_is_not_trained_on_its_responses(
    method, lab_folder, tmp_path
):
    train, make = RUNS[method]
    settings = make(lab_folder, tmp_path, allow_malformed=False)
    with pytest.raises(
        InputError, match="of 16 first think responses, .* --allow_malformed goes on"
    ):
        train(settings)
    assert not (tmp_path / "log.jsonl").exists()
    settings.allow_malformed, settings.max_steps = True, 1
    if method == "hgpo":
        train(settings)  # in the same folder
        assert len(log_of(tmp_path)) == 1


@pytest.mark.parametrize(
    ("estimator", "worst", "gamma"), [("grpo", -1, 1.0), ("reinforce++", 0, 0.99)]
)
def test_eq11_the_first_logged_loss_of_hgpo_worked_out_from_its_rollout(
    polite, lab_folder, tmp_path, estimator, worst, gamma
):
    """Alg. 1 l. 5 to l. 10 once more: query by query, response by response, with one forward pass
    each. The first update is on-policy: every ratio is 1, and the KL term 0."""
    rows = tmp_path / "rows.jsonl"  # every even number is right: rewards differ
    accepted = {"answer": [str(n) for n in range(0, 100, 2)]}
    questions = [{"prompt": f"{n}+{n + 1}=", **accepted} for n in range(10)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in questions))
    settings = hgpo_settings(
        lab_folder, tmp_path / "run", model_name_or_path=str(polite), dataset_name=str(rows),
        num_iterations=1, max_steps=1, temperature=0.8, alpha=0.6, delta=0.1, beta=0.5,
        max_completion_length=24, seed=6, estimator=estimator,
    )  # fmt: skip
    hgpo.run(settings)
    (logged,) = log_of(tmp_path / "run")

    policy, tokenizer = lhrm.load_policy(polite, lhrm.start(False), False)
    queries = read_queries(rows)
    order = np.random.default_rng(mix_seed(6, "order", 0)).permutation(len(queries))[:4]
    objective, swapped, tags, num_tokens, num_responses = 0.0, 0.0, [], 0, 4 * 4
    for place, query in enumerate(queries[i] for i in order):
        prompt = tokenizer.encode_chat(query.prompt)
        group = []  # (mode, completion, reward), think first
        for mode in MODES:
            seed = mix_seed(mix_seed(6, "rollout", 0, place), mode)
            options = {"num_generations": 2, "max_new_tokens": 24, "temperature": 0.8}
            [drawn] = generate(policy, tokenizer, [prompt], modes=[mode], seed=[seed], **options)
            group += [(mode, c, judge(query, c, tokenizer).reward) for c in drawn]
        means = {mode: sum(r for m, _, r in group if m == mode) / 2 for mode in MODES}
        better = "think" if means["think"] > means["no_think"] + 0.1 else "no_think"
        # Eq. 9 and 10: two of four win; of a pair that differs, one. Eq. 22 takes no mean off.
        inter = [1 if better == m else worst for m, _, _ in group]
        intra = []
        for mode, _, reward in group:
            others = {r for m, _, r in group if m == mode}
            intra.append(0 if len(others) == 1 else 1 if reward == max(others) else worst)
        for i, (_, completion, _) in enumerate(group):
            ids = torch.tensor([[*prompt, *completion.ids]])
            num_tokens += ids.numel()
            scores = (policy(ids)[0, len(prompt) - 1 : -1] / 0.8).log_softmax(-1)
            log_probs = scores.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
            ratios = (log_probs - log_probs.detach()).exp()
            advantages = intra[i] * gamma ** torch.arange(len(ratios)).flip(0)  # Eq. 22
            advantages[0] += 0.6 * inter[i]
            objective = objective + (ratios * advantages).sum() / num_responses  # Eq. 11
            other = [0, 2, 1, 3][i]  # as if modes and responses had changed places
            swapped += (intra[other] * len(ratios) + 0.6 * inter[other]) / num_responses
            tags.append(log_probs[0].item())
    assert logged["loss"] == pytest.approx(-objective.item(), abs=1e-5)
    assert logged["num_tokens"] == num_tokens
    assert abs(objective.item() - swapped) > 0.05  # another order of (B, 2, G) would be seen
    (-objective).backward()
    norm = torch.stack([p.grad.norm() for p in policy.parameters()]).norm().item()
    assert logged["grad_norm"] == pytest.approx(norm, rel=1e-3)

    pairs = torch.tensor(tags).view(4, 2, 2)[:, :, 0]  # of each query's two tags
    assert logged["mode/think_ratio"] == pytest.approx(pairs[:, 0].exp().mean().item(), rel=1e-4)
    assert logged["mode/log_prob_no_think"] == pytest.approx(pairs[:, 1].mean().item(), rel=1e-4)
    choice = pairs.softmax(-1)
    entropy = -(choice * choice.log()).sum(-1).mean().item()
    assert logged["mode/entropy"] == pytest.approx(entropy, rel=1e-4)


def test_the_first_hgpo_update_is_on_policy_and_the_sampler_agrees_with_the_trainer(
    lab_folder, tmp_path
):
    hgpo.run(hgpo_settings(lab_folder, tmp_path, num_iterations=1, max_steps=2, temperature=0.8))
    for entry in log_of(tmp_path):
        assert entry["sampler_kl"] == pytest.approx(0, abs=1e-6)
        assert entry["clip_ratio/region_mean"] == 0
    assert log_of(tmp_path)[0]["kl"] == pytest.approx(0, abs=1e-6)  # π_ref is still π_θ


def test_eq11_the_second_update_is_measured_against_pi_old(lab_folder, tmp_path):
    hgpo.run(hgpo_settings(lab_folder, tmp_path, num_iterations=2, max_steps=1, epsilon=1e-4))
    assert log_of(tmp_path)[0]["clip_ratio/region_mean"] > 0


def test_alg1_every_query_of_every_step_has_a_seed_of_its_own():
    settings = hgpo.HGPOSettings(num_queries=4, num_generations=4)
    steps = [hgpo.draw_queries("abcd", step, settings, lhrm.start(False)) for step in range(3)]
    assert all(sorted(batch) == list("abcd") for batch, _ in steps)
    assert len({seed for _, seeds in steps for seed in seeds}) == 12


def test_plain_grpo_samples_freely_and_logs_what_the_model_chose(lab_folder, tmp_path):
    settings = hgpo_settings(
        lab_folder, tmp_path, max_steps=2, forced_modes=False, log_completions=1
    )  # fmt: skip
    hgpo.run(settings)
    log = log_of(tmp_path)
    assert len(log) == 2 and all("mode/entropy" not in row for row in log)
    assert all(0 <= row["mode/think_ratio"] + row["mode/no_think_ratio"] < 1 for row in log)
    lines = (tmp_path / "completions.jsonl").read_text().splitlines()
    assert all(set(json.loads(line)) == {"step", "prompt", "auto"} for line in lines)


def test_the_evaluation_before_training_can_be_left_out(lab_folder, tmp_path, capsys):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"prompt": "1+2=", "answer": "3", "domain": "maths"}\n')
    for name, first in ("with", True), ("without", False):
        settings = hgpo_settings(
            lab_folder, tmp_path / name, max_steps=1, eval_on_start=first,
            eval_dataset_name=str(held_out),
        )  # fmt: skip
        hgpo.run(settings)
        shown = capsys.readouterr().out
        assert ("HFT forced think" in shown, "HGPO forced think" in shown) == (first, not first)
    one, two = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("with", "without")
    )
    assert {*one} == {"hft", "hgpo"} and two == {"hgpo": one["hgpo"]}


def test_without_beta_no_reference_model_is_loaded(lab_folder, tmp_path, monkeypatch):
    loaded = []
    load = lhrm.load_reference
    monkeypatch.setattr(lhrm, "load_reference", lambda *a: loaded.append(a) or load(*a))
    hgpo.run(hgpo_settings(lab_folder, tmp_path / "a", max_steps=1, beta=0.0))
    assert len(loaded) == 0
    hgpo.run(hgpo_settings(lab_folder, tmp_path / "b", max_steps=1))
    assert len(loaded) == 1


def test_alg1_the_reference_follows_the_policy_every_m_steps(lab_folder, tmp_path):
    kls = {}
    for every in (0, 2):
        folder = tmp_path / str(every)
        settings = hgpo_settings(lab_folder, folder, num_iterations=1, ref_model_sync_steps=every)
        hgpo.run(settings)
        kls[every] = [entry["kl"] for entry in log_of(folder)]
    assert all(kl > 1e-7 for kl in kls[0][1:])
    assert [kl < 1e-7 for kl in kls[2]] == [True, False] * 3


@pytest.mark.parametrize("every", [0, 2])
def test_a_reference_is_in_a_checkpoint_only_if_it_moves(every, lab_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(lhrm, "save_policy", lambda *_: sys.exit(9))
    changes = {"max_steps": 1, "ref_model_sync_steps": every}
    with pytest.raises(SystemExit):
        hgpo.run(hgpo_settings(lab_folder, tmp_path, **changes))
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    saved = runs.dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    assert {name.partition(".")[0] for name in saved} == {"policy", "optimizer"} | (
        {"reference"} if every else set()
    )


def test_in_bf16_the_master_weights_stay_fp32_and_small_updates_do_not_vanish(lab_folder, tmp_path):
    runtime = lhrm.start(bf16=True)
    policy, tokenizer = lhrm.load_policy(lab_folder / "base", runtime, gradient_checkpointing=True)
    before = {name: p.full_tensor().clone() for name, p in policy.named_parameters()}
    optimizer = lhrm.make_optimizer(policy, weight_decay=0.0)
    scores = lhrm.score_responses(policy, [[1, 2]], [[3, 4, 5]])
    assert scores.log_probs.dtype == torch.float32
    (-scores.log_probs.sum()).backward()
    lhrm.optimizer_step(policy, optimizer, 1e-6, 1.0, scores.log_probs.sum().detach())
    moved = 0
    for name, parameter in policy.named_parameters():
        assert parameter.dtype == torch.float32
        assert all(t.dtype == torch.float32 for t in optimizer.state[parameter].values())
        moved += int((parameter.full_tensor() != before[name]).sum())
    assert moved > 1000
    seen = []
    policy.model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    policy(torch.tensor([[1, 2]]))
    (x, (cos, _), *_) = seen[0]
    assert (x.dtype, cos.dtype) == (torch.bfloat16, torch.float32)
    reference = lhrm.load_reference(lab_folder / "base", tokenizer, runtime)
    assert {p.dtype for p in reference.parameters()} == {torch.bfloat16}
    once = {"max_steps": 1, "num_iterations": 1, "export_dtype": "bfloat16"}
    hgpo.run(hgpo_settings(lab_folder, tmp_path, bf16=True, **once))
    assert log_of(tmp_path)[0]["sampler_kl"] < 1e-3
    assert log_of(tmp_path)[0]["kl"] == 0  # the reference has the policy's weights, in bf16
    assert weights(tmp_path)["model.norm.weight"].dtype == torch.bfloat16


# ------------------------------------------------------------------------- determinism and resuming


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(
    name, polite, lab_folder, tmp_path, monkeypatch
):
    train, make_settings = RUNS[name]
    rows = few_rows(lab_folder, tmp_path, "hft" if name == "hft" else "rl")
    common = {"dataset_name": str(rows), "save_steps": 3, "model_name_or_path": str(polite)}
    if name == "hgpo":
        common["ref_model_sync_steps"] = 2  # after step 3 the reference is no longer the start
    train(make_settings(lab_folder, tmp_path / "whole", **common))
    train(make_settings(lab_folder, tmp_path / "again", **common))

    killed = make_settings(lab_folder, tmp_path / "killed", **common)
    stopped_after(8 if name == "hgpo" else 4, monkeypatch, train, killed)  # HGPO: two a step
    own_copy = tmp_path / "killed" / "checkpoint-000003-copy"
    shutil.copytree(tmp_path / "killed" / "checkpoint-000003", own_copy)
    assert len(log_of(tmp_path / "killed")) == 4
    with pytest.raises(InputError, match="holds an unfinished run"):
        train(killed)
    train(dataclasses.replace(killed, resume_from_checkpoint=True))
    assert list((tmp_path / "killed").glob("checkpoint-*")) == [own_copy]  # the user's, not ours

    whole = weights(tmp_path / "whole")
    for other in ("again", "killed"):
        assert_same_end(tmp_path / other, tmp_path / "whole")
    tokens = [entry["num_tokens"] for entry in log_of(tmp_path / "whole")]
    assert tokens[0] > 0 and all(a < b for a, b in zip(tokens, tokens[1:]))
    assert not torch.equal(whole["model.norm.weight"], weights(polite)["model.norm.weight"])


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_is_saved_every_save_steps_and_at_the_end(
    name, polite, lab_folder, tmp_path, monkeypatch
):
    saved = []
    monkeypatch.setattr(runs.Run, "save", lambda run: saved.append(run.step))
    train, make_settings = RUNS[name]
    changes = {"save_steps": 2, "max_steps": 5, "model_name_or_path": str(polite)}
    if name != "hft":
        changes["dataset_name"] = str(few_rows(lab_folder, tmp_path, "rl"))
    train(make_settings(lab_folder, tmp_path / "run", **changes))
    assert saved == [2, 4, 5]


@pytest.mark.parametrize("method", ["dpo", "rft"])
def test_responses_are_sampled_once_and_only_what_is_missing_after_a_kill(
    method, polite, lab_folder, tmp_path, monkeypatch
):
    rows = few_rows(lab_folder, tmp_path, "rl")
    changes = {"model_name_or_path": str(polite), "dataset_name": str(rows), "max_steps": 2}
    changes |= {"rollout_batch_size": 1}  # saved every 16 responses, which is four queries
    settings = baseline_settings(method, lab_folder, tmp_path / "run", **changes)
    sample, asked, path = hgpo.sample_responses, [], None

    def count(policy, tokenizer, queries, *rest):
        asked.extend(queries)
        if len(asked) == 8 and path is None:
            raise KeyboardInterrupt
        return sample(policy, tokenizer, queries, *rest)

    monkeypatch.setattr(hgpo, "sample_responses", count)
    with pytest.raises(KeyboardInterrupt):
        hgpo.run(settings)
    (path,) = (tmp_path / "run").glob("samples-*.jsonl")
    assert len(path.read_text().splitlines()) == 4
    with path.open("a") as file:
        file.write('{"index": 4, "pro')  # as a kill in the middle of a line leaves it
    hgpo.run(settings)
    assert len(asked) == 8 + 6  # four queries of the eight are asked again

    def asked_anew(**changes):
        """As if the run had been killed once more, after its sampling."""
        for name in ("settings.json", "model.safetensors"):
            (tmp_path / "run" / name).unlink()
        asked.clear()
        hgpo.run(dataclasses.replace(settings, **changes))
        return len(asked)

    assert asked_anew(learning_rate=2e-3) == 0
    assert asked_anew(temperature=0.5) == 10  # samples at another temperature are others
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    assert asked_anew() == 9  # and so are those of other queries


def test_a_baseline_without_any_row_to_learn_from_says_so(lab_folder, tmp_path):
    rows = few_rows(lab_folder, tmp_path, "rl")  # all answers of the untrained model are malformed
    settings = baseline_settings("rft", lab_folder, tmp_path / "run", dataset_name=str(rows))
    with pytest.raises(InputError, match="rl.jsonl: none of 10 queries gives a row"):
        hgpo.run(settings)


def test_a_run_killed_in_its_last_evaluation_trains_no_step_again(
    lab_folder, tmp_path, monkeypatch
):
    rows = str(few_rows(lab_folder, tmp_path, "test"))
    settings = hgpo_settings(lab_folder, tmp_path / "run", max_steps=2, eval_dataset_name=rows)
    evaluate = lhrm.evaluate

    def die_after_training(*args, **options):
        if (tmp_path / "run" / "model.safetensors").exists():
            raise KeyboardInterrupt
        return evaluate(*args, **options)

    monkeypatch.setattr(lhrm, "evaluate", die_after_training)
    with pytest.raises(KeyboardInterrupt):
        hgpo.run(settings)
    monkeypatch.setattr(lhrm, "evaluate", evaluate)
    trained = weights(tmp_path / "run")
    monkeypatch.setattr(lhrm, "optimizer_step", None)
    settings.eval_temperature = 0.3  # what concerns evaluations alone may change
    hgpo.run(dataclasses.replace(settings, resume_from_checkpoint=True))
    assert all(torch.equal(trained[k], v) for k, v in weights(tmp_path / "run").items())
    assert (tmp_path / "run" / "results.json").exists()
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_run_goes_on_only_with_the_settings_it_was_made_with(lab_folder, tmp_path, monkeypatch):
    settings = hft_settings(lab_folder, tmp_path, save_steps=2)
    monkeypatch.setattr(lhrm, "save_policy", lambda *_: sys.exit(9))
    with pytest.raises(SystemExit):
        lhrm.hft(settings)
    changed = dataclasses.replace(settings, weight_decay=0.5, resume_from_checkpoint=True)
    recorded = (tmp_path / "settings.json").read_text()
    with pytest.raises(InputError, match="was made with weight_decay = 0.0, not 0.5"):
        lhrm.hft(changed)
    assert (tmp_path / "settings.json").read_text() == recorded


def test_a_stop_token_inside_a_response_is_refused(lab_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "7+5=", "answer": "1<|im_end|>2"}) + "\n")
    with pytest.raises(InputError, match=":1: a stop token inside"):
        lhrm.hft(hft_settings(lab_folder, tmp_path / "run", dataset_name=str(rows)))


def test_the_lab_refuses_a_pi_hft_made_with_other_settings(lab_folder, tmp_path):
    shutil.copytree(lab_folder, tmp_path / "lab")
    settings = lhrm.HFTSettings(
        **{**lhrm.HFT_ON_LAB, "output_dir": str(tmp_path / "lab"), "max_steps": 1}
    )
    lhrm.hft(settings)
    with pytest.raises(InputError, match="hft was made with max_steps = 1, not 0"):
        hgpo.run(hgpo.HGPOSettings(**{**hgpo.HGPO_ON_LAB, "output_dir": str(tmp_path / "lab")}))


def test_eq19_dpo_starts_at_log_2_and_learns_the_pairs(polite, lab_folder, tmp_path):
    """π_θ is π_HFT at first, so that every margin is 0."""
    changes = {"model_name_or_path": str(polite), "max_steps": 20, "batch_size": 8}
    rows = few_rows(lab_folder, tmp_path, "rl")
    hgpo.run(
        baseline_settings("dpo", lab_folder, tmp_path / "run", dataset_name=str(rows), **changes)
    )
    log = log_of(tmp_path / "run")
    assert log[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert log[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert log[-1]["loss"] < 0.5 and log[-1]["rewards/accuracies"] == 1
    assert log[-1]["rewards/chosen"] > log[-1]["rewards/rejected"]


def test_eq21_the_first_logged_loss_of_rft_is_eq4_on_the_best_responses(
    polite, lab_folder, tmp_path
):
    rows = few_rows(lab_folder, tmp_path, "rl")
    changes = {"model_name_or_path": str(polite), "dataset_name": str(rows), "max_steps": 1}
    hgpo.run(baseline_settings("rft", lab_folder, tmp_path / "run", **changes))
    (path,) = (tmp_path / "run").glob("samples-*.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["index"] for row in samples] == list(range(10))
    best = []  # (prompt, response): of the highest reward, the shorter, the first
    for row in samples:
        if (highest := max(row["rewards"])) > 0:
            right = [r for r, x in zip(row["responses"], row["rewards"]) if x == highest]
            best.append((row["prompt"], min(right, key=len)))
    policy, _ = lhrm.load_policy(polite, lhrm.start(False), False)
    total = 0.0
    for i in batch_indices(len(best), 4, 0, seed=0):
        scores = lhrm.score_responses(policy, [best[i][0]], [best[i][1]])
        total -= scores.log_probs.sum().item() / 4
    assert log_of(tmp_path / "run")[0]["loss"] == pytest.approx(total, rel=1e-4)


def test_on_the_lab_each_method_starts_from_the_same_pi_hft_and_adds_its_results(
    lab_folder, tmp_path, monkeypatch, capsys
):
    root = tmp_path / "lab"
    shutil.copytree(lab_folder, root)
    quick = {"max_steps": 60, "batch_size": 32, "learning_rate": 1e-2}
    monkeypatch.setattr(lhrm, "HFT_ON_LAB", lhrm.HFT_ON_LAB | quick)
    rows = {name: str(few_rows(lab_folder, tmp_path, name)) for name in ("rl", "test")}
    changes = {"output_dir": str(root), "max_steps": 2, "bf16": False, "eval_num_generations": 2}
    changes |= {"dataset_name": rows["rl"], "eval_dataset_name": rows["test"]}
    for method, (settings, on_lab) in hgpo.METHODS.items():
        sizes = {"num_queries": 4} if method == "hgpo" else {}
        hgpo.run(settings(**{**on_lab, **changes, **sizes}))
        assert f"{method.upper()} auto" in capsys.readouterr().out
        recorded = json.loads((root / method / "settings.json").read_text())["settings"]
        assert recorded["model_name_or_path"] == str(root / "hft")
    results = json.loads((root / "results.json").read_text())
    assert list(results) == ["hft", "hgpo", "dpo", "rft"]
    for method in hgpo.METHODS:  # each with the figures of HFT that it was compared with
        assert list(json.loads((root / method / "results.json").read_text())) == ["hft", method]
    files = {"model_name_or_path": str(root / "rft"), "dataset_name": rows["test"]}
    changes = {**files, "eval_num_generations": 2, "bf16": False, "output_dir": str(tmp_path / "e")}
    lhrm.run_eval(lhrm.EvalSettings(**{**lhrm.EVAL_ON_LAB, **changes}))
    assert json.loads((tmp_path / "e" / "eval.json").read_text())["auto"] == results["rft"]["auto"]


def test_a_run_killed_outright_under_torchrun_resumes_too(lab_folder, tmp_path):
    rows = few_rows(lab_folder, tmp_path, "rl")
    settings = ["--model_name_or_path", lab_folder / "base", "--dataset_name", rows]
    settings += ["--num_queries", 4, "--max_steps", 20, "--save_steps", 4, "--learning_rate", 1e-3]
    settings += ["--max_completion_length", 8, "--allow_malformed"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("hgpo.py", *settings, "--output_dir", whole, processes=2)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--standalone", "hgpo.py", *map(str, settings), "--output_dir", str(killed)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not any(killed.glob("checkpoint-0*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    while True:  # until torchrun's processes have seen that it is gone, too
        assert time.monotonic() < deadline
        try:
            runs.Lock(killed / ".settings.json.lock").release()
            break
        except InputError:
            time.sleep(0.2)
    assert not (killed / "model.safetensors").exists()
    run("hgpo.py", *settings, "--output_dir", killed, "--resume_from_checkpoint", processes=2)
    expected = weights(whole)
    assert all(torch.equal(expected[k], v) for k, v in weights(killed).items())


# ------------------------------------------------------------------------------------ several ranks


@pytest.mark.parametrize("processes, mesh", [(2, ""), (3, ""), (4, "hsdp")])
def test_ranks_compute_the_gradients_of_one_whatever_the_micro_batches(processes, mesh, lab_folder):
    """With a copy of the parameters on each of two nodes (hsdp), too."""
    done = run("tests/ranks.py", lab_folder / "base", mesh, processes=processes)
    assert done.stdout.count("equal") == 3


def run_in_two_ranks_and_in_this_process(
    script: str, command: list[str], settings: list[object], folder: Path, monkeypatch
) -> tuple[Path, Path]:
    """The output folders of one process, this one, and of two processes."""
    one, two = folder / "one", folder / "two"
    arguments = [*command, *map(str, settings), "--output_dir"]
    monkeypatch.setattr(sys, "argv", [script, *arguments, str(one)])
    {"hgpo.py": hgpo, "lhrm.py": lhrm}[script].main()
    run(script, *arguments, two, processes=2)
    return one, two


@pytest.mark.parametrize(
    "command, batch", [("hft", 7), ("hgpo", 3), ("hgpo", 1), ("dpo", 5), ("rft", 5)]
)
def test_two_ranks_end_where_one_does(command, batch, polite, lab_folder, tmp_path, monkeypatch):
    """Batches do not divide by two; of a single query, the second rank gets none."""
    settings = ["--model_name_or_path", polite, "--max_steps", 3]
    settings += ["--max_tokens_per_device", 64, "--learning_rate", 1e-3]
    data = few_rows(lab_folder, tmp_path, "rl")
    script, words = "hgpo.py", ["--method", command]
    if command == "hft":
        script, words = "lhrm.py", ["hft"]
        settings += ["--batch_size", batch, "--logging_steps", 1]
        data = lab_folder / "data" / "hft_2000.jsonl"
    elif command == "hgpo":
        settings += ["--num_queries", batch, "--max_completion_length", 12, "--num_iterations", 2]
        data = lab_folder / "data" / "rl.jsonl"
    else:
        settings += ["--batch_size", batch, "--logging_steps", 1, "--max_completion_length", 24]
    settings += ["--dataset_name", data]
    folders = run_in_two_ranks_and_in_this_process(script, words, settings, tmp_path, monkeypatch)
    one, two = map(weights, folders)
    assert all(torch.allclose(one[k], two[k], rtol=1e-3, atol=1e-4) for k in one)
    logs = list(map(log_of, folders))
    assert len(logs[0]) == len(logs[1]) == 3
    for a, b in zip(*logs):
        for name in a.keys() - {*TIMINGS}:
            assert a[name] == pytest.approx(b[name], rel=1e-2, abs=1e-4), name


def test_two_ranks_evaluate_as_one_does(lab_folder, tmp_path, monkeypatch):
    rows = few_rows(lab_folder, tmp_path, "test")
    settings = ["--model_name_or_path", lab_folder / "base", "--dataset_name", rows]
    settings += ["--eval_max_completion_length", 12]
    folders = run_in_two_ranks_and_in_this_process(
        "lhrm.py", ["eval"], settings, tmp_path, monkeypatch
    )
    one, two = ((folder / "responses.jsonl").read_text() for folder in folders)
    assert one == two and len(one.splitlines()) == 10
