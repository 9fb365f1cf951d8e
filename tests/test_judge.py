"""data/judge.py: rewards (Eq. 7) by rule, and by a reward model with what it is shown."""

import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import pytest
import tokenizers
import torch
from conftest import (
    assert_same_end,
    baseline_settings,
    few_rows,
    hgpo_settings,
    log_of,
    needs_sandbox,
    run,
    stopped_after,
    tiny_model,
)  # fmt: skip
from test_tokenizer import LLAMA3, TULU

import hgpo
import lhrm
from data import judge as judges
from data.cli import InputError, mix_seed, parse_settings
from data.judge import (
    Judged,
    JudgeOptions,
    RewardModel,
    check_formats,
    judge,
    judge_all,
    load_reward_model,
)
from data.modes import MODES, NO_THINK, parse_response
from data.report import TOTALS, step_metrics
from data.rows import Query, read_queries
from data.tokenizer import CHATML, Tokenizer
from model import Transformer
from sample import Completion, generate

QUESTION = {"role": "user", "content": "2+2?\n"}
ANSWER = {"role": "assistant", "content": "4, of course."}
SYSTEM = {"role": "system", "content": "Be brief."}


def reward_folder(folder, model_type="llama", template=TULU, spread=8.0, **changes):
    """A tiny reward model with a byte-level tokenizer, whose chat template is `template`."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "<s>", "</s>"])
    size = backend.get_vocab_size()
    model = tiny_model(
        model_type=model_type, **{"score_head": True, "vocab_size": size, **changes}, spread=spread
    )
    model.config.extra["pad_token_id"] = backend.token_to_id("<pad>")
    model.save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    settings |= {
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def reward_model(folder, batch_size=4, **changes):
    return RewardModel(reward_folder(folder, **changes), batch_size, torch.device("cpu"))


# ------------------------------------------------------------------------------------------ by rule


def sampled(tokenizer, text, finished=True):
    ids = tokenizer.encode(text) + tokenizer.eos_ids[:1] * finished
    return Completion(ids, [0.0] * len(ids), finished)


@needs_sandbox
def test_eq7_a_program_is_right_if_it_passes_its_tests(tmp_path):
    row = {"prompt": "Add one.", "tests": ["assert f(1) == LAST", "assert f(5) == 6"]}
    humaneval = {"prompt": "Add one.", "tests": "def check(f):\n    assert f(1) == 2"}
    rows = [row | {"test_setup_code": "LAST = 2", "answer": "def f"}, humaneval]
    rows[1]["entry_point"] = "f"
    path = tmp_path / "code.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = read_queries(path)
    assert [query.answers for query in queries] == [[], []]
    plain = SimpleNamespace(decode=lambda text: text)
    texts = [f"<no_think>```python\ndef f(x): return x + {n}\n```</no_think>" for n in (1, 2)]
    for query in queries:
        cases = [(query, Completion(text + "$", [], True)) for text in texts]
        assert [judged.reward for judged in judge_all(cases, plain)] == [1.0, 0.0]


def test_eq7_reward_is_for_a_right_answer_in_a_whole_response(tokenizer):
    query = Query([{"role": "user", "content": "7+5="}], ["12", "twelve"], "1", "maths")

    def reward(text, finished=True):
        return judge(query, sampled(tokenizer, text, finished), tokenizer).reward

    assert reward("<think>7+5=12</think>12") == reward("<no_think>12</no_think>") == 1
    assert reward("<no_think>13</no_think>") == 0
    assert reward("<no_think>1 2</no_think>") == 0
    assert reward("12") == 0


def test_a_response_cut_at_the_limit_is_malformed_and_earns_nothing(tokenizer):
    query = Query([], ["12"], "1", "maths")
    cut = judge(query, sampled(tokenizer, "<think>7+5=12</think>12", False), tokenizer)
    assert (cut.reward, cut.well_formed, cut.finished, cut.length) == (0, False, False, 8)


def test_thinking_inside_no_think_earns_nothing_and_is_counted_as_a_leak(tokenizer):
    query = Query([], ["12"], "1", "maths")
    text = "<no_think><think>7+5=12</think>12</no_think>"
    leak = judge(query, sampled(tokenizer, text), tokenizer)
    assert (leak.mode, leak.reward, leak.leaked) == (NO_THINK, 0, True)
    assert not judge(query, sampled(tokenizer, "<no_think>12</no_think>"), tokenizer).leaked


# -------------------------------------------------------------------------------------- chat format


@pytest.mark.parametrize("template", [TULU, LLAMA3.replace("strftime_now is defined", "false")])
def test_the_reward_model_sees_what_its_own_template_renders(template, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = reward_folder(tmp_path, template=template)
    ours = Tokenizer.from_pretrained(folder, mode_tags=False)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    thought = {**ANSWER, "content": "<think>x</think>4"}
    for messages in ([QUESTION, ANSWER], [QUESTION, thought, QUESTION, ANSWER]):
        ids = theirs.apply_chat_template(messages)["input_ids"]
        assert ours.encode_chat(messages, add_generation_prompt=False) == ids


def test_a_template_that_cannot_be_rendered_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: cannot use its chat template"):
        reward_model(tmp_path, template="{% if %}")
    judge = reward_model(tmp_path, template="{{ raise_exception('no system message') }}")
    with pytest.raises(InputError, match="refuses the conversation: no system message"):
        judge.rewards([[QUESTION]], ["4"])


# ------------------------------------------------------------------------------------ reward model

PROMPTS = [[QUESTION], [SYSTEM, QUESTION], [QUESTION, ANSWER, QUESTION], [QUESTION], [QUESTION]]
ANSWERS = ["4", "Four, as you may well have known before you asked.", "5", "4.", "ß"]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_rewards_of_a_batch_are_those_of_each_alone(batch_size, tmp_path):
    model = reward_model(tmp_path, batch_size)
    rewards = model.rewards(PROMPTS, ANSWERS)
    alone = [model.rewards([p], [a]) for p, a in zip(PROMPTS, ANSWERS)]
    torch.testing.assert_close(rewards, torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert rewards.std() > 0.01 and rewards.dtype == torch.float64
    messages = [QUESTION, {**ANSWER, "content": "4"}]
    ids = model.tokenizer.encode_chat(messages, add_generation_prompt=False)
    assert model.tokenizer.decode(ids).endswith("4</s>")  # the last token is the one that is read
    last = model.model(torch.tensor([ids]))[0, -1, 0].double()
    assert rewards[0].item() == pytest.approx(last.sigmoid().item(), rel=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_rewards_are_the_sigmoid_of_transformers_logits(model_type, tmp_path):
    transformers = pytest.importorskip("transformers")
    rewards = reward_model(tmp_path, 2, model_type=model_type).rewards(PROMPTS, ANSWERS)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(theirs).__name__.endswith("ForSequenceClassification")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.padding_side = "right"
    messages = [[*p, {"role": "assistant", "content": a}] for p, a in zip(PROMPTS, ANSWERS)]
    inputs = tokenizer.apply_chat_template(
        messages, padding=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = theirs(**inputs).logits[:, 0].double()
    torch.testing.assert_close(rewards, expected.sigmoid(), rtol=1e-5, atol=1e-5)


def test_equal_answers_get_exactly_equal_rewards_whatever_they_are_batched_with(tmp_path):
    rewards = reward_model(tmp_path, 2).rewards([[QUESTION]] * 5, ["4", "four", "4", "4!", "4"])
    assert rewards[0] == rewards[2] == rewards[4] and len(set(rewards.tolist())) == 3


def test_an_answer_too_long_for_the_reward_model_is_worth_nothing_and_warned_of(tmp_path):
    model = reward_model(tmp_path, max_position_embeddings=60)
    with pytest.warns(UserWarning, match="1 answers are too long for the reward model"):
        rewards = model.rewards([[QUESTION]] * 2, ["4" * 40, "4"])
    assert rewards[0] == 0 < rewards[1]


def test_logits_that_are_not_numbers_are_refused(tmp_path):
    model = reward_model(tmp_path)
    torch.nn.init.constant_(model.model.score.weight, torch.nan)
    with pytest.raises(InputError, match="not numbers"):
        model.rewards([[QUESTION]], ["4"])


def test_a_reward_model_can_wait_on_the_cpu_between_its_turns(tmp_path, monkeypatch):
    folder, moves, given = reward_folder(tmp_path), [], []
    models = [RewardModel(folder, 4, torch.device("cpu"), offload) for offload in (False, True)]
    monkeypatch.setattr(Transformer, "to", lambda self, where: moves.append(str(where)))
    for offload, model in enumerate(models):
        moves.clear()
        model.device = torch.device("cpu:0")  # as if it were a GPU
        given.append(model.rewards([[QUESTION]] * 2, ["4", "5"]).tolist())
        assert moves == ["cpu:0"] + ["cpu"] * offload
    assert given[0] == given[1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"score_head": False}, "no score head"),
        ({"vocab_size": 200}, "more tokens"),
        ({"template": ""}, "no chat template"),
    ],
)
def test_a_folder_that_holds_no_reward_model_is_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=f"cannot be the reward model: it has {message}"):
        reward_model(tmp_path, **changes)


# ------------------------------------------------------------------------------------------ rewards

OPEN = Query([QUESTION], [], "", "general")
MATHS = Query([QUESTION], ["4"], "", "maths")
PLAIN = SimpleNamespace(decode=lambda text: text)  # ids of a completion being its text


def completion(text, finished=True):
    return Completion(text + "$" * finished, [], finished)


def fake_judge(rewards):
    """A reward model that gives `rewards` in turn, and what it was shown."""
    shown, left = [], list(rewards)

    def give(prompts, answers):
        shown.extend(zip(prompts, answers))
        return torch.tensor([left.pop(0) for _ in answers], dtype=torch.float64)

    return SimpleNamespace(rewards=give), shown


def test_eq7_the_reward_model_sees_the_answer_without_reasoning_and_without_tags(tmp_path):
    texts = ["<think>2+2=4</think>\n\n4\n", "<think>hm</think>4", "<no_think>4</no_think>"]
    model, shown = fake_judge([0.1, 0.2, 0.3])
    judge_all([(OPEN, completion(text)) for text in texts], PLAIN, model)
    assert shown == [([QUESTION], "4")] * 3
    texts.append("<no_think>5</no_think>")
    judged = judge_all([(OPEN, completion(t)) for t in texts], PLAIN, reward_model(tmp_path))
    rewards = [j.reward for j in judged]
    assert rewards[0] == rewards[1] == rewards[2] != rewards[3]  # in both modes alike


def test_eq7_a_malformed_or_unfinished_response_gets_0_without_being_scored():
    cases = [("4", True), ("<think></think>4", True), ("<no_think>4</no_think>", False)]
    model, shown = fake_judge([])
    judged = judge_all([(OPEN, completion(*case)) for case in cases], PLAIN, model)
    assert [j.reward for j in judged] == [0, 0, 0] and not shown


def test_eq7_rewards_of_the_reward_model_lie_between_0_and_1_and_rise_with_its_logit(tmp_path):
    model, rewards = reward_model(tmp_path), []
    for factor in (-3.0, -0.1, 0.0, 0.1, 3.0):  # of the head, and so of the logit
        with torch.no_grad():
            head = model.model.score.weight.clone()
            model.model.score.weight.mul_(factor)
            rewards.append(model.rewards([[QUESTION]], ["4"]).item())
            model.model.score.weight.copy_(head)
    assert all(0 < reward < 1 for reward in rewards) and rewards[2] == 0.5
    assert rewards in (sorted(set(rewards)), sorted(set(rewards), reverse=True))
    assert rewards[1] + rewards[3] == pytest.approx(1)


def test_eq7_each_query_is_judged_in_its_own_way_and_in_its_own_place():
    model, shown = fake_judge([0.5, 0.9])
    answers = [(MATHS, "4"), (OPEN, "a"), (MATHS, "5"), (OPEN, ""), (OPEN, "b"), (MATHS, "4")]
    cases = [(query, completion(f"<no_think>{answer}</no_think>")) for query, answer in answers]
    judged = judge_all(cases, PLAIN, model)
    expected = [1, 0.5, 0, 0, 0.9, 1]
    assert [j.reward for j in judged] == pytest.approx(expected)
    assert [j.definite for j in judged] == [query is MATHS for query, _ in answers]
    assert [answer for _, answer in shown] == ["a", "b"]


# --------------------------------------------------------------------- shift and scale of a logit


def test_eq7_a_reward_is_the_sigmoid_of_the_logit_less_the_shift_over_the_scale(tmp_path):
    folder, cpu = reward_folder(tmp_path), torch.device("cpu")
    plain = RewardModel(folder, 4, cpu)
    logits = plain.logits(PROMPTS, ANSWERS).tolist()
    assert len(set(logits)) == 5
    for shift, scale in ((0.0, 1.0), (3.0, 1.0), (0.0, 2.0), (-10.0, 5.0)):
        model = RewardModel(folder, 4, cpu, False, shift, scale)
        expected = [1 / (1 + math.exp(-(logit - shift) / scale)) for logit in logits]
        assert model.rewards(PROMPTS, ANSWERS).tolist() == pytest.approx(expected, rel=1e-9)
    middle = RewardModel(folder, 4, cpu, False, plain.logits(PROMPTS[:1], ANSWERS[:1]).item())
    assert middle.rewards(PROMPTS[:1], ANSWERS[:1]).item() == 0.5


def shift_of(texts, values, sets, monkeypatch, others=()):
    """The shift that is found where the responses to the queries are `texts` in turn, and the
    logits of their answers `values` in turn; the queries that were asked; the judged answers.

    others: logits that other ranks have found.
    """
    asked, judged = [], []

    def drawn(policy, tokenizer, prompts, *, modes, seed, **sampling):
        assert sampling == {"max_new_tokens": 9, "batch_size": 8, "temperature": 0.7, "top_p": 1.0}
        assert len(set(seed)) == len(prompts)
        asked.extend(zip(prompts, modes))
        yield from ((i, [completion(texts[i % len(texts)])]) for i in range(len(prompts)))

    def logits(prompts, answers):
        judged.extend(answers)
        return torch.tensor([values[i % len(values)] for i in range(len(answers))])

    monkeypatch.setattr(judges, "generate_as_completed", drawn)
    tokenizer = SimpleNamespace(encode_chat=lambda p: p[0]["content"], decode=PLAIN.decode)
    model, runtime = SimpleNamespace(shift=None, logits=logits), lhrm.start(False)
    monkeypatch.setattr(runtime, "gather", lambda mine: [*mine, *others])
    if others:  # this rank has nothing to ask
        monkeypatch.setattr(runtime, "share", lambda items: [])
    shift = RewardModel.find_shift(model, None, tokenizer, sets, runtime, 0, 9, 8, 0.7)
    assert model.shift == shift == RewardModel.find_shift(model, *[None] * 7, 0.7)
    return shift, asked, judged


def asking(*names, answers=()):
    return [Query([{"role": "user", "content": name}], [*answers], "", "") for name in names]


def test_the_shift_is_the_mean_logit_of_answers_in_both_modes_to_queries_without_one(monkeypatch):
    monkeypatch.setattr(judges, "FIRST_BATCH", 2)
    maths, open_ended, held_out = asking("1+1=", answers=["2"]), asking("a", "b"), asking("c")
    texts = ["<think>hm</think>4", "<think></think>6", "<no_think>5</no_think>"]
    texts.append("<no_think>7</no_think>")
    values = [10.0, 12.5, -math.inf]  # the last: of an answer that is too long
    found = shift_of(texts, values, [maths + open_ended, held_out], monkeypatch)
    asked = [("a", "think"), ("b", "think"), ("a", "no_think"), ("b", "no_think")]
    assert found == (11.25, asked, ["4", "5", "7"])  # "6" is malformed
    _, asked, _ = shift_of(texts, values, [maths, held_out], monkeypatch)
    assert asked == [("c", "think")] * 2 + [("c", "no_think")] * 2  # none to train on is open


def test_the_shift_is_of_all_ranks_also_on_one_that_has_no_answer(monkeypatch):
    others = [[10.0, 11.0], [], [15.0]]
    assert shift_of([], [], [asking("a")], monkeypatch, others) == (12.0, [], [])


def test_the_first_batch_is_of_64_responses_in_each_mode_to_queries_evenly_spaced(monkeypatch):
    for count, some in ((1, [0, 0]), (3, [0, 0]), (64, [0, 1]), (128, [0, 2]), (1000, [0, 15])):
        queries = asking(*map(str, range(count)))
        _, asked, _ = shift_of(["<no_think>1</no_think>"], [1.0], [queries], monkeypatch)
        assert [mode for _, mode in asked] == ["think"] * 64 + ["no_think"] * 64
        places = [int(name) for name, _ in asked]
        assert places[:64] == places[64:] == sorted(places[:64])
        assert places[:2] == some and len(set(places)) == min(count, 64)


def test_where_no_first_answer_can_be_judged_the_shift_is_0_and_that_is_said(monkeypatch):
    with pytest.warns(UserWarning, match="none of the first responses can be judged"):
        assert shift_of(["<think>"], [], [asking("a")], monkeypatch)[0] == 0


@pytest.mark.parametrize("command", ["hgpo", "dpo", "rft", "eval"])
def test_shift_and_scale_are_settings_of_trainings_and_of_evaluations(command, capsys, tmp_path):
    cls = lhrm.EvalSettings if command == "eval" else hgpo.METHODS[command][0]
    assert (cls().reward_shift, cls().reward_scale) == (None, 1.0)
    folder = ["--model_name_or_path", str(tmp_path)]
    given = parse_settings(cls, "", [*folder, "--reward_shift", "-9.5", "--reward_scale", "0.5"])
    assert (given.reward_shift, given.reward_scale) == (-9.5, 0.5)
    for refused in (["--reward_scale", "0"], ["--reward_scale", "-1"], ["--reward_shift", "nan"]):
        with pytest.raises(InputError, match=f"{refused[0]} .* must be at least"):
            parse_settings(cls, "", refused)
    with pytest.raises(SystemExit):
        parse_settings(cls, "", ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "becomes a reward of 0.5; unset: the mean over a first batch" in shown
    assert "rewards are sigmoid((logit - reward_shift) / reward_scale) (default: 1.0)" in shown


def test_accuracy_is_over_the_queries_with_a_definite_answer_and_absent_without_any():
    def group(definite, rewards):
        modes = [0, 0, 1, 1]
        judged = [
            Judged(mode, reward, 3, True, True, False, "", definite)
            for mode, reward in zip(modes, rewards)
        ]
        return judged, [-1.0] * 4

    maths, chat = group(True, [1, 0, 1, 1]), group(False, [0.25, 0.25, 0.5, 0.5])
    totals = [1.0] * len(TOTALS)
    metrics = step_metrics([chat, maths], totals, False)
    names = [f"{mode}/{name}" for name in ("accuracy", "reward") for mode in ("think", "no_think")]
    assert [metrics[name] for name in names] == [0.5, 1, 0.375, 0.75]
    assert not {"think/accuracy", "no_think/accuracy"} & set(step_metrics([chat], totals, False))


# --------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def judged_world(polite, lab_folder, tmp_path_factory):
    """A policy that knows the grammar, rows of which half have no answer, and a reward model."""
    folder = tmp_path_factory.mktemp("judged")
    rows = few_rows(lab_folder, folder, "rl")
    names = ("ada", "alan", "grace", "edsger", "barbara", "donald", "john", "emmy", "kurt")
    with open(rows, "a") as file:
        file.writelines(json.dumps({"prompt": f"hello {name}"}) + "\n" for name in names)
    judge = folder / "judge"
    shutil.copytree(lab_folder / "base", judge)
    size = len(Tokenizer.from_pretrained(judge))
    tiny_model(score_head=True, vocab_size=size, spread=2.0).save_pretrained(judge)
    settings = {"chat_template": CHATML.template()}
    (judge / "tokenizer_config.json").write_text(json.dumps(settings))
    return SimpleNamespace(policy=polite, rows=rows, judge=judge)


def judged_settings(judged_world, lab_folder, output, **changes):
    values = {
        "model_name_or_path": str(judged_world.policy),
        "dataset_name": str(judged_world.rows),
        "reward_model_name_or_path": str(judged_world.judge),
        "max_completion_length": 24,
        "max_steps": 4,
        "save_steps": 2,
        "num_iterations": 1,
        **changes,
    }
    return hgpo_settings(lab_folder, output, **values)


def test_hgpo_takes_rewards_by_rule_and_by_the_reward_model_and_resumes_bit_for_bit(
    judged_world, lab_folder, tmp_path, monkeypatch
):
    given = []
    give = RewardModel.rewards

    def count(self, prompts, answers):
        rewards = give(self, prompts, answers)
        given.extend(rewards.tolist())
        return rewards

    monkeypatch.setattr(RewardModel, "rewards", count)
    hgpo.run(judged_settings(judged_world, lab_folder, tmp_path / "whole"))
    log = log_of(tmp_path / "whole")
    assert len(given) > 8 and len(set(given)) > 4
    assert any(entry["reward"] for entry in log)
    assert any("think/accuracy" in entry for entry in log)

    killed = judged_settings(judged_world, lab_folder, tmp_path / "killed")
    stopped_after(3, monkeypatch, hgpo.run, killed)
    hgpo.run(dataclasses.replace(killed, resume_from_checkpoint=True))
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


def test_an_evaluation_judges_each_query_in_its_own_way(judged_world, tmp_path):
    settings = lhrm.EvalSettings(
        model_name_or_path=str(judged_world.policy), dataset_name=str(judged_world.rows),
        reward_model_name_or_path=str(judged_world.judge), eval_max_completion_length=24,
        output_dir=str(tmp_path), bf16=False,
    )  # fmt: skip
    lhrm.run_eval(settings)
    lines = (tmp_path / "responses.jsonl").read_text().splitlines()
    rewards = {True: set(), False: set()}
    for record in map(json.loads, lines):
        for judged in record["responses"]["auto"]:
            assert judged["definite"] == bool(record["query"]["answers"])
            rewards[judged["definite"]].add(judged["reward"])
    assert rewards[True] <= {0, 1}
    assert any(0 < reward < 1 for reward in rewards[False])


def shift_kept_in(folder, change=0.0, name="settings.json"):
    """The shift that a run keeps; `change` is added to it there."""
    record = json.loads((folder / name).read_text())
    record["derived"]["reward_shift"] += change
    (folder / name).write_text(json.dumps(record))
    return record["derived"]["reward_shift"]


def first_logits(judged_world):
    """The logits of a run's first batch, worked out answer by answer."""
    policy, tokenizer = lhrm.load_policy(judged_world.policy, lhrm.start(False), False)
    model, logits = RewardModel(judged_world.judge, 1, torch.device("cpu")), []
    queries = [query for query in read_queries(judged_world.rows) if not query.definite]
    for i in range(64):
        query = queries[i * len(queries) // 64]
        for mode in MODES:
            [[drawn]] = generate(
                policy, tokenizer, [tokenizer.encode_chat(query.prompt)], modes=[mode],
                seed=[mix_seed(0, "reward shift", i, mode)], max_new_tokens=24,
            )  # fmt: skip
            judged = judge(query, drawn, tokenizer)
            if judged.well_formed:
                answer = parse_response(judged.text).answer
                logits.append(model.logits([query.prompt], [answer]).item())
    assert len(logits) > 4
    return logits


def test_logits_far_from_0_give_rewards_that_differ_only_once_they_are_shifted(
    judged_world, monkeypatch
):
    logits = RewardModel.logits
    monkeypatch.setattr(RewardModel, "logits", lambda *given: 100 * logits(*given) + 80)
    queries, runtime = read_queries(judged_world.rows), lhrm.start(False)
    policy, tokenizer = lhrm.load_policy(judged_world.policy, runtime, False)
    rewards = []
    for shift in (0.0, None):
        model = RewardModel(judged_world.judge, 4, torch.device("cpu"), False, shift)
        found = model.find_shift(policy, tokenizer, [queries], runtime, 0, 24, 8, 1.0)
        assert found == (shift if shift is not None else pytest.approx(56, abs=4))
        prompts = [query.prompt for query in queries if not query.definite]
        rewards.append(model.rewards(prompts, [p[-1]["content"] for p in prompts]))
    saturated, shifted = rewards
    assert set(saturated.tolist()) == {1.0}
    assert len(set(shifted.tolist())) == len(shifted) and shifted.max() - shifted.min() > 0.5
    # Eq. 9 between the best answer, by thinking, and the worst, without:
    pair = [int(shifted.argmax()), int(shifted.argmin())]
    for values, better in ((saturated, [0, 1]), (shifted, [1, 0])):
        choice = hgpo.inter_rewards(values[pair].view(1, 2, 1), delta=0.2)
        assert choice.flatten().tolist() == better


def test_the_shift_that_a_run_finds_is_shown_and_kept(judged_world, lab_folder, tmp_path, capsys):
    hgpo.run(judged_settings(judged_world, lab_folder, tmp_path, max_steps=1))
    shift = shift_kept_in(tmp_path)
    logits = first_logits(judged_world)
    assert shift == pytest.approx(sum(logits) / len(logits), rel=1e-4)
    assert capsys.readouterr().out.count(f"reward_shift                 {shift}") == 1
    again = {"overwrite_output_dir": True, "reward_shift": 5.0}
    hgpo.run(judged_settings(judged_world, lab_folder, tmp_path, max_steps=1, **again))
    assert shift_kept_in(tmp_path) == 5


def test_a_run_goes_on_with_its_shift_and_keeps_no_rewards_of_another(
    judged_world, lab_folder, tmp_path, monkeypatch
):
    rows = str(judged_world.rows)
    settings = judged_settings(judged_world, lab_folder, tmp_path, eval_dataset_name=rows)
    settings.resume_from_checkpoint = True

    def kept_evaluations(**changes):
        stopped_after(0, monkeypatch, hgpo.run, dataclasses.replace(settings, **changes))
        return len({path.name[:26] for path in tmp_path.glob("evaluated-*")})

    assert kept_evaluations() == kept_evaluations() == 1
    found = shift_kept_in(tmp_path)
    changed = shift_kept_in(tmp_path, 0.125)
    assert kept_evaluations() == 2 and shift_kept_in(tmp_path) == changed
    assert kept_evaluations(reward_scale=2.0) == 3  # another run: there is no checkpoint yet
    assert shift_kept_in(tmp_path) == found
    stopped_after(3, monkeypatch, hgpo.run, settings)
    changed = shift_kept_in(tmp_path, 0.125)
    with pytest.raises(InputError, match="was made with reward_scale = 1.0, not 2.0"):
        hgpo.run(dataclasses.replace(settings, reward_scale=2.0))
    hgpo.run(settings)
    assert shift_kept_in(tmp_path) == changed


@pytest.mark.parametrize("damage", [{"reward_shift": "1"}, []])
def test_a_damaged_shift_is_refused(damage, judged_world, lab_folder, tmp_path, monkeypatch):
    settings = judged_settings(judged_world, lab_folder, tmp_path, resume_from_checkpoint=True)
    stopped_after(2, monkeypatch, hgpo.run, settings)
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "derived": damage}))
    with pytest.raises(InputError, match="does not say what the folder holds"):
        hgpo.run(settings)


@pytest.mark.parametrize("method", ["dpo", "rft"])
def test_the_baselines_go_on_with_their_shift_bit_for_bit(
    method, judged_world, lab_folder, tmp_path, monkeypatch
):
    values = vars(judged_settings(judged_world, lab_folder, ""))
    names = ("model_name_or_path", "dataset_name", "reward_model_name_or_path", "save_steps")
    values = {name: values[name] for name in names} | {"max_steps": 4}
    whole, killed = (
        baseline_settings(method, lab_folder, tmp_path / name, **values)
        for name in ("whole", "killed")
    )
    hgpo.run(whole)
    killed.resume_from_checkpoint = True
    for updates in (0, 3):  # without a checkpoint, and with one
        stopped_after(updates, monkeypatch, hgpo.run, killed)
    hgpo.run(killed)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    shifts = {shift_kept_in(tmp_path / name) for name in ("whole", "killed")}
    names = {path.name for path in tmp_path.glob("*/samples-*")}
    assert len(shifts) == len(names) == 1


def test_three_processes_find_the_shift_of_one_and_go_on_with_it(
    judged_world, lab_folder, tmp_path, monkeypatch
):
    """With a first batch of one query, the third process has no answer to judge."""
    monkeypatch.setattr(judges, "FIRST_BATCH", 1)
    one = judged_settings(judged_world, lab_folder, tmp_path / "one", temperature=0.1)
    stopped_after(3, monkeypatch, hgpo.run, one)
    script = tmp_path / "script.py"
    lines = ["import hgpo", "from data import judge, processes", "judge.FIRST_BATCH = 1"]
    script.write_text("\n".join([*lines, "processes.run_command(hgpo.main)"]))

    def run_in_three(settings):
        given = {name: value for name, value in vars(settings).items() if value is not None}
        run(script, *(p for n, v in given.items() for p in (f"--{n}", v)), processes=3)

    run_in_three(dataclasses.replace(one, output_dir=str(tmp_path / "three")))
    found = shift_kept_in(tmp_path / "three")
    assert found == pytest.approx(shift_kept_in(tmp_path / "one"), rel=1e-4) and found != 0
    changed = shift_kept_in(tmp_path / "one", 0.125)
    run_in_three(dataclasses.replace(one, resume_from_checkpoint=True))
    assert shift_kept_in(tmp_path / "one") == changed


def test_an_evaluation_goes_on_with_its_shift(judged_world, tmp_path, capsys):
    settings = lhrm.EvalSettings(
        model_name_or_path=str(judged_world.policy), dataset_name=str(judged_world.rows),
        reward_model_name_or_path=str(judged_world.judge), eval_max_completion_length=24,
        output_dir=str(tmp_path), bf16=False, reward_scale=0.1, modes="think",
    )  # fmt: skip
    model = RewardModel(judged_world.judge, 4, torch.device("cpu"), False, None, 0.1)

    def check(records):
        checked = 0
        for record in records:
            for j in record["responses"]["think"]:
                if j["well_formed"] and not j["definite"]:
                    prompt, answer = record["query"]["prompt"], parse_response(j["text"]).answer
                    [expected] = model.rewards([prompt], [answer]).tolist()
                    assert j["reward"] == pytest.approx(expected, abs=1e-4)
                    checked += 1
        assert checked > 4

    lhrm.run_eval(settings)
    model.shift = shift_kept_in(tmp_path, name="eval_settings.json")
    assert f"reward_shift                 {model.shift}" in capsys.readouterr().out
    responses = tmp_path / "responses.jsonl"
    records = [json.loads(line) for line in responses.read_text().splitlines()]
    check(records)
    path = tmp_path / "eval_settings.json"  # as a stop leaves it, with a shift that was never found
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "unfinished"}))
    kept = tmp_path / "unfinished-0.jsonl"
    kept.write_text(json.dumps({"index": 0, **records[0]}) + "\n")
    model.shift = shift_kept_in(tmp_path, 0.125, path.name)
    settings.resume_from_checkpoint = True
    lhrm.run_eval(settings)
    assert shift_kept_in(tmp_path, name=path.name) == model.shift
    check([json.loads(line) for line in responses.read_text().splitlines()][1:])
    settings.output_dir, settings.reward_shift = None, 5.0
    lhrm.run_eval(settings)
    assert "reward_shift                 5.0" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["hgpo", "hgpo, held out"])
def test_queries_with_nothing_to_judge_them_by_are_refused_before_any_model_is_loaded(
    command, judged_world, lab_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(Transformer, "from_pretrained", None)
    asked = {"reward_model_name_or_path": None}
    if command == "hgpo, held out":
        rl = lab_folder / "data" / "rl.jsonl"
        asked |= {"dataset_name": str(rl), "eval_dataset_name": str(judged_world.rows)}
    with pytest.raises(InputError, match=r"9 of \d+ queries .*first 'hello ada': give --reward_mo"):
        hgpo.run(judged_settings(judged_world, lab_folder, tmp_path, **asked))


def test_no_reward_model_is_loaded_that_no_query_needs(lab_folder):
    queries = read_queries(lab_folder / "data" / "rl.jsonl")
    settings = JudgeOptions(reward_model_name_or_path="/none")
    assert load_reward_model(settings, queries, torch.device("cpu"), None) is None


def test_the_ranks_of_a_node_share_the_cores_that_they_may_use(monkeypatch):
    monkeypatch.setattr(judges.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for ranks, programs in (("1", 64), ("8", 8), ("48", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert judges.programs_at_once() == programs


def test_the_sandbox_is_tried_before_anything_long(lab_folder, tmp_path, monkeypatch):
    def missing(code, tests):
        raise OSError("sandbox: no Landlock")

    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Write f.", "tests": "assert f(1) == 2"}) + "\n")
    monkeypatch.setattr(judges, "run_tests", missing)
    monkeypatch.setattr(lhrm, "load_policy", None)
    with pytest.raises(OSError, match="sandbox: no Landlock"):
        hgpo.run(hgpo_settings(lab_folder, tmp_path / "run", dataset_name=str(rows)))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------ without the grammar


@pytest.mark.parametrize(
    "text, gold, right",
    [
        ("She sells 9 for 2 dollars each.\nSo she makes $18 a day.", "18", True),
        ("9 * 2 = 18. That is the answer.\nShe has 7 left.", "18", False),  # the last number
        ("It is \\boxed{18}, of 20.", "18", True),
        ("The answer is 18. There were 20.", "18", True),
        ("She makes 1,800.50 dollars.", "1800.5", True),
        ("From 20 to -2.", "-2", True),
        ("A range of 20-2", "2", False),
        ("It falls to \u22125 degrees", "5", False),
        ("It falls to \u22125 degrees", "-5", True),
        ("It costs .5", "5", False),
        ("Then it is 10^5", "5", False),
        (r"So, $\sqrt{2}$", "2", False),
        ("9*2=**18**.", "18", True),
        ("Answer: Let us see.\n9*2=18.\nShe makes \\$18 every day.", "18", True),
        (r"So it is \(18\).", r"\boxed{18}", True),
        ("The area is 42 m^2, or 42 cm2", "42", False),
        ("The area is 42 m^2", "42", True),
        ("Answer: it is not 5", "5", False),
        ("2 1/2", "1/2", False),
        ("5 million", "5", False),
        ("70k", "70", False),
        ("y = 2x + 3", "3", False),
        ("x = 2 or x = 3", "3", False),
        ("<think>it is 18", "18", False),
        ("<think>9 times 2: 17?</think>18", "18", True),
        ("<think>it is 18</think>perhaps 17", "18", False),  # what comes after the reasoning
        ("<no_think>18</no_think>", "18", True),
        ("Paris", "paris", True),
        ("I think that it is Paris", "paris", False),  # of words, all that is said counts
        ("none", "18", False),
        ("", "18", False),
    ],
)
def test_in_free_format_the_answer_is_looked_for_in_all_that_is_said(text, gold, right):
    query = Query([QUESTION], [gold], "", "maths")
    judged = judge(query, completion(text), PLAIN, response_format="free")
    assert judged.reward == right and judged.well_formed == (text not in ("", "<think>it is 18"))
    assert judge(query, completion(text, False), PLAIN, response_format="free").reward == 0


def test_in_free_format_the_reward_model_sees_what_follows_the_reasoning():
    model, shown = fake_judge([0.7, 0.3])
    cases = [(OPEN, completion("Hello.")), (OPEN, completion("<think>Hm.</think></think>Hi."))]
    judged = judge_all(cases, PLAIN, model, response_format="free")
    assert [j.reward for j in judged] == [0.7, 0.3]
    assert [answer for _, answer in shown] == ["Hello.", "Hi."]


# ----------------------------------------------------------------------------- the first small look


@pytest.mark.parametrize(
    "mode, malformed, cut, stops",
    [(0, 7, 7, False), (0, 8, 7, True), (1, 15, 0, True), (1, 0, 15, True), (0, 14, 0, False)],
)
def test_nothing_is_learnt_from_where_nearly_all_of_a_mode_is_malformed_or_cut(
    mode, malformed, cut, stops, monkeypatch
):
    whole = completion("<no_think>4</no_think>")
    texts = [completion("<think>4</think>")] * malformed + [completion("<think>2", False)] * cut
    texts += [whole] * (16 - malformed - cut)
    texts = [*texts, *[whole] * 16] if mode == 0 else [*[whole] * 16, *texts]
    asked = []

    def drawn(policy, tokenizer, prompts, *, modes, **sampling):
        asked.extend(zip(prompts, modes))
        yield from ((i, [text]) for i, text in enumerate(texts))

    monkeypatch.setattr(judges, "generate_as_completed", drawn)
    tokenizer = SimpleNamespace(encode_chat=lambda p: p[0]["content"], decode=PLAIN.decode)
    given = (None, tokenizer, asking(*"abcdefgh"), lhrm.start(False), 0, 9, 8, 1.0)
    if stops:
        counts = f"{cut} are cut at --max_completion_length 9 and {malformed} others malformed"
        with pytest.raises(InputError, match=f"of 16 first {MODES[mode]} responses, {counts}"):
            check_formats(*given)
    else:
        check_formats(*given)
    assert asked == [(c, m) for m in MODES for c in "aabbccddeeffgghh"]
