"""What is logged while a model is trained, and where else it is shown."""

import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import few_rows, hft_settings, hgpo_settings, log_of

import hgpo
import lhrm
from data import report
from data.cli import InputError
from data.report import Log, Stopwatch


def test_a_phase_within_another_counts_for_itself_alone(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(report.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(report, "peak_memory", lambda: 1.5)
    watch = Stopwatch("update", "rollout", "reward", "wait")
    with watch.phase("rollout"), watch.phase("reward"):
        pass
    figures = watch.figures(30, lambda seconds: seconds)
    assert figures == {
        "step_time": 15.0, "tokens_per_second": 2.0, "peak_memory": 1.5, "timing/reward": 3.0,
        "timing/rollout": 6.0, "timing/update": 6.0, "timing/wait": 0.0,
    }  # fmt: skip
    slowest = watch.figures
    monkeypatch.setattr(report.time, "perf_counter", lambda: 15.0)
    assert slowest(30, lambda seconds: 2 * seconds)["tokens_per_second"] == 1.0


def test_judging_is_timed_apart_from_sampling(lab_folder, tmp_path, monkeypatch):
    judge_all = lhrm.judge_all
    monkeypatch.setattr(lhrm, "judge_all", lambda *args: (time.sleep(0.3), judge_all(*args))[1])
    hgpo.run(hgpo_settings(lab_folder, tmp_path, max_steps=1, num_iterations=1))
    (row,) = log_of(tmp_path)
    phases = {name: row[f"timing/{name}"] for name in ("rollout", "reward", "wait", "update")}
    assert phases["reward"] > 0.3 > phases["rollout"]
    assert row["step_time"] == pytest.approx(sum(phases.values()), rel=1e-6)


class Board:
    """Stands for TensorBoard, wandb or trackio, and takes down what it is told."""

    def __init__(self, *given, **options):
        self.told = [("made", given, options)]

    def __getattr__(self, name):
        return lambda *given, **options: self.told.append((name, given, options))


def test_tensorboard_is_flushed_at_each_line_and_closed(tmp_path, monkeypatch):
    boards = []
    module = SimpleNamespace(
        SummaryWriter=lambda *a, **k: boards.append(Board(*a, **k)) or boards[-1]
    )
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    log = Log(tmp_path, 4, "tensorboard")
    log.write(5, {"loss": 2.0})
    log.close()
    names = [name for name, _, _ in boards[0].told]
    assert names == ["made", "add_scalar", "flush", "close"]
    assert boards[0].told[0][2] == {"purge_step": 5}
    assert boards[0].told[1][1] == ("loss", 2.0, 5)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_every_figure_of_every_step(name, lab_folder, tmp_path, monkeypatch):
    board = Board()
    monkeypatch.setitem(sys.modules, name, board)
    lhrm.hft(hft_settings(lab_folder, tmp_path / "run", max_steps=2, report_to=name))
    (_, made, *logged, finished) = board.told
    assert made[2]["project"] == "lhrm" and made[2]["resume"] == "allow"
    assert ("id" in made[2]) == (name == "wandb")
    for row, (call, (figures,), options) in zip(log_of(tmp_path / "run"), logged):
        assert (call, {"step": options["step"], **figures}) == ("log", row)
    assert len(logged) == 2 and finished[0] == "finish"


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_computed(
    lab_folder, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(lhrm, "load_policy", None)
    with pytest.raises(InputError, match="--report_to wandb: pip install wandb"):
        hgpo.run(hgpo_settings(lab_folder, tmp_path, report_to="wandb"))


def test_a_figure_that_is_no_number_is_null_in_the_log(tmp_path):
    log = Log(tmp_path, 0, "none")
    log.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "entropy": 1.0})
    assert log_of(tmp_path) == [{"step": 1, "loss": None, "grad_norm": None, "entropy": 1.0}]


def test_what_was_logged_past_a_checkpoint_is_forgotten(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    Log(tmp_path, 2, "none")
    assert [row["step"] for row in log_of(tmp_path)] == [1, 2]
    for line in (b"[1]", b"{}", b'{"step": "2"}', b"?"):
        path.write_bytes(b'{"step": 1}\n' + line + b"\n")
        with pytest.raises(InputError, match="log.jsonl:2: damaged; delete this line"):
            Log(tmp_path, 2, "none")


def test_every_few_steps_a_few_responses_are_kept_and_shown(polite, lab_folder, tmp_path, capsys):
    settings = hgpo_settings(
        lab_folder, tmp_path, model_name_or_path=str(polite), log_completions=2, max_steps=5,
        num_iterations=1, max_completion_length=24,
    )  # fmt: skip
    hgpo.run(settings)
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 2, 2, 4, 4, 4]
    out = capsys.readouterr().out
    for row in rows:
        assert f"step {row['step']}: {row['prompt']}" in out
        for mode in ("think", "no_think"):
            assert row[mode]["response"].startswith(f"<{mode}>")
            assert row[mode]["reward"] in (0.0, 1.0)
        assert row["think"]["a_inter"] == -row["no_think"]["a_inter"]  # of two modes one is better
    assert f"a_inter {rows[0]['think']['a_inter']:.2f}: <think>" in out


def test_no_texts_are_sent_between_ranks(lab_folder, tmp_path, monkeypatch):
    """Neither by a step's log nor by an evaluation, which has them on the disk."""
    sent, gather = [], lhrm.Runtime.gather
    monkeypatch.setattr(
        lhrm.Runtime, "gather", lambda self, mine: sent.append(mine) or gather(self, mine)
    )
    rows = str(few_rows(lab_folder, tmp_path, "test"))
    hgpo.run(hgpo_settings(lab_folder, tmp_path / "run", max_steps=1, eval_dataset_name=rows))
    judged = [j for part in sent for j in found(part)]
    assert len(judged) == 4 * 4 + 2 * 10 * 3 * 4 and not any(j.text for j in judged)
    examples = json.loads((tmp_path / "run" / "results.json").read_text())["hgpo"]["examples"]
    assert all(example["response"] for example in examples) and len(examples) == 3


def found(value):
    """Every judged response in nested lists, tuples and dictionaries."""
    if isinstance(value, report.Judged):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [j for part in value for j in found(part)] if isinstance(value, (list, tuple)) else []


def test_contexts_beyond_the_models_positions_are_warned_of(lab_folder, tmp_path, capsys):
    hgpo.run(hgpo_settings(lab_folder, tmp_path / "a", max_steps=1, max_completion_length=600))
    warned = "rl.jsonl: up to 6"
    error = capsys.readouterr().err
    assert warned in error and "tokens in a context, but the model has 512 positions" in error
    hgpo.run(hgpo_settings(lab_folder, tmp_path / "b", max_steps=1))
    assert "positions" not in capsys.readouterr().err
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1+" * 300 + "1=", "answer": "301"}) + "\n")
    with pytest.raises(
        InputError, match=r"rows.jsonl: a prompt of 6\d\d tokens; the model has 512"
    ):
        hgpo.run(hgpo_settings(lab_folder, tmp_path / "c", dataset_name=str(rows)))


def test_hft_can_give_the_new_model_longer_contexts(lab_folder, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1+2=", "answer": "3 " * 300}) + "\n")
    longer = {"max_position_embeddings": 1024, "rope_theta": 5e5}
    for name, changes in (("plain", {}), ("longer", longer)):
        folder = tmp_path / name
        lhrm.hft(hft_settings(lab_folder, folder, dataset_name=str(rows), max_steps=1, **changes))
        assert ("but the model has 512 positions" in capsys.readouterr().err) == (not changes)
        config = json.loads((folder / "config.json").read_text())
        assert {key: config[key] for key in changes} == changes
    policy, _ = lhrm.load_policy(tmp_path / "longer", lhrm.start(False), False)
    assert policy.frequencies[1] == pytest.approx(5e5 ** (-2 / policy.config.head_dim))
    assert torch.isfinite(policy(torch.tensor([[1, 2]]))).all()
