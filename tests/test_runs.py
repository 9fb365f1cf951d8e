"""A run survives: its folder, what may change when it goes on, updates that went wrong, signals,
crashes, full disks. The tests marked `long` do the same at every place."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import (
    ROOT,
    assert_same_end,
    few_rows,
    hft_settings,
    hgpo_settings,
    log_of,
    run,
    stopped_after,
    weights,
)
from torch.distributed.checkpoint.filesystem import FileSystem

import hgpo
import lhrm
import model as model_file
from data import cli, processes, runs
from data.cli import InputError
from data.processes import Stopped
from data.rows import tokenize_rows


@pytest.fixture
def tiny(lab_folder, tmp_path):
    """Arguments of hgpo.py for five steps of two queries."""
    rows = few_rows(lab_folder, tmp_path, "rl")
    values = {
        "model_name_or_path": lab_folder / "base", "dataset_name": rows, "num_queries": 2,
        "max_completion_length": 8, "learning_rate": 1e-3, "max_steps": 5, "save_steps": 2,
        "allow_malformed": True,
    }  # fmt: skip
    return [str(word) for name, value in values.items() for word in (f"--{name}", value)]


def snapshot(folder):
    """Every file below a folder: its contents and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


# -------------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_that_is_started_again_says_so_and_touches_nothing(
    resume, lab_folder, tmp_path, capsys
):
    rows = str(few_rows(lab_folder, tmp_path, "test"))
    settings = hgpo_settings(lab_folder, tmp_path / "run", max_steps=1, eval_dataset_name=rows)
    hgpo.run(settings)
    before, shown = snapshot(tmp_path / "run"), capsys.readouterr().out
    assert f"run: finished; python sample.py --model_name_or_path {tmp_path / 'run'} talks" in shown
    again = dataclasses.replace(settings, resume_from_checkpoint=resume, save_steps=7)
    hgpo.run(again)
    assert snapshot(tmp_path / "run") == before
    out = capsys.readouterr().out
    assert "run holds this run, finished; its own command starts over" in out
    table = shown[shown.index("held-out queries") :]
    assert out.endswith(table)  # its results are shown again
    further = "made with alpha = 1.0, not 0.5; give what it was .*"
    further += f"--model_name_or_path {tmp_path / 'run'} its model is trained further"
    with pytest.raises(InputError, match=further):
        hgpo.run(dataclasses.replace(again, alpha=0.5))
    assert snapshot(tmp_path / "run") == before


def test_where_a_run_starts_over_its_old_model_is_gone_before_anything_else_happens(
    lab_folder, tmp_path, monkeypatch
):
    settings = hft_settings(lab_folder, tmp_path, max_steps=2)
    lhrm.hft(settings)
    (tmp_path / "notes.txt").write_text("mine")
    over = dataclasses.replace(settings, overwrite_output_dir=True, learning_rate=1e-2)
    broken = dataclasses.replace(over, model_name_or_path="/none")
    with pytest.raises(InputError, match="/none"):
        lhrm.hft(broken)
    assert (tmp_path / "model.safetensors").exists()  # a typing error costs nothing
    stopped_after(1, monkeypatch, lhrm.hft, over)
    assert not (tmp_path / "model.safetensors").exists() and len(log_of(tmp_path)) == 1
    assert json.loads((tmp_path / "settings.json").read_text())["status"] == "unfinished"
    lhrm.hft(over)
    assert json.loads((tmp_path / "settings.json").read_text())["status"] == "finished"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_with_a_model_of_another_origin_is_not_written_to(lab_folder, tmp_path):
    other = shutil.copytree(lab_folder / "base", tmp_path / "other")
    before = snapshot(other)
    with pytest.raises(InputError, match="holds a model that was not trained in it"):
        lhrm.hft(hft_settings(lab_folder, other))
    settings = hft_settings(lab_folder, other, model_name_or_path=str(other))
    with pytest.raises(InputError, match="--output_dir and --model_name_or_path are the same"):
        lhrm.hft(dataclasses.replace(settings, overwrite_output_dir=True))
    assert snapshot(other) == before


def test_a_second_run_in_a_folder_is_refused_while_the_first_is_at_work(lab_folder, tmp_path):
    settings = hft_settings(lab_folder, tmp_path, max_steps=1)
    lock = runs.Lock(tmp_path / ".settings.json.lock")
    with pytest.raises(InputError, match=f"another run is at work here: process {os.getpid()} on"):
        lhrm.hft(settings)
    lock.release()
    lhrm.hft(settings)
    assert not list(tmp_path.glob(".*"))


def test_the_lab_is_not_made_in_the_folder_of_another_run(lab_folder, tmp_path):
    lhrm.hft(hft_settings(lab_folder, tmp_path, max_steps=1))
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="holds another run: give --model_name_or_path"):
        hgpo.run(hgpo.HGPOSettings(**{**hgpo.HGPO_ON_LAB, "output_dir": str(tmp_path)}))
    assert snapshot(tmp_path) == before


def test_to_start_over_and_to_go_on_are_not_asked_for_together(lab_folder, tmp_path):
    settings = hft_settings(lab_folder, tmp_path, max_steps=1, overwrite_output_dir=True)
    with pytest.raises(InputError, match="give one of them"):
        lhrm.hft(dataclasses.replace(settings, resume_from_checkpoint=True))


def test_no_file_is_deleted_that_is_not_a_runs_own(lab_folder, tokenizer, tmp_path):
    rows = few_rows(lab_folder, tmp_path, "hft")
    out = tmp_path / "out"
    out.mkdir()
    tokenize_rows(str(rows), "", tokenizer, out / "hft_tokens")  # as data/prepare.py leaves it
    names = [
        "samples-math.jsonl",
        "model-backup.safetensors",
        "tensorboard/notes",
        "evaluated-x.jsonl",
    ]
    for name in names:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    mine = snapshot(out)
    settings = hft_settings(lab_folder, out, dataset_name=str(out / "hft_tokens"), max_steps=1)
    lhrm.hft(settings)
    lhrm.hft(dataclasses.replace(settings, overwrite_output_dir=True, dataset_name=str(rows)))
    kept = snapshot(out)
    assert {name: kept[name] for name in mine} == mine


def test_a_run_goes_on_when_whoever_read_its_output_has_ended(tiny, tmp_path):
    command = [sys.executable, ROOT / "hgpo.py", *tiny, "--output_dir", tmp_path / "run"]
    command += ["--log_completions", "1"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0 and len(log_of(tmp_path / "run")) == 5


def test_results_that_were_damaged_are_named(lab_folder, tmp_path):
    rows = str(few_rows(lab_folder, tmp_path, "test"))
    settings = hgpo_settings(lab_folder, tmp_path / "run", max_steps=1, eval_dataset_name=rows)
    hgpo.run(settings)
    for damaged in ('{"hgpo": {}}', "{}", '{"hft": [], "hgpo": 1}'):
        (tmp_path / "run" / "results.json").write_text(damaged)
        with pytest.raises(InputError, match="results.json: damaged"):
            hgpo.run(settings)


def test_kept_evaluations_have_the_domain_of_the_file_that_is_read_now(
    lab_folder, tmp_path, monkeypatch
):
    lines = [json.dumps({"prompt": f"{n}+1=", "answer": str(n + 1)}) for n in range(4)]
    for name in ("aime", "renamed"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    settings = hgpo_settings(
        lab_folder, tmp_path / "run", eval_dataset_name=str(tmp_path / "aime.jsonl"), max_steps=2,
        save_steps=1, num_iterations=1, eval_domain="aime",
    )  # fmt: skip
    stopped_after(1, monkeypatch, hgpo.run, settings)
    renamed = {"eval_dataset_name": str(tmp_path / "renamed.jsonl"), "eval_domain": "renamed"}
    hgpo.run(dataclasses.replace(settings, resume_from_checkpoint=True, **renamed))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for stage in ("hft", "hgpo"):
        assert results[stage]["queries"] == 4 and len(results[stage]["examples"]) == 3


def test_a_run_that_lost_its_log_goes_on(lab_folder, tmp_path, monkeypatch):
    rows = str(few_rows(lab_folder, tmp_path, "test"))
    settings = hgpo_settings(
        lab_folder, tmp_path / "run", max_steps=4, eval_dataset_name=rows, eval_steps=2,
        save_steps=2, num_iterations=1, eval_num_generations=1,
    )  # fmt: skip
    stopped_after(3, monkeypatch, hgpo.run, settings)
    assert [row["step"] for row in log_of(tmp_path / "run")] == [1, 2, 2, 3]
    (tmp_path / "run" / "log.jsonl").unlink()
    hgpo.run(dataclasses.replace(settings, resume_from_checkpoint=True))
    rows = log_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [2, 3, 4, 4]
    evaluations = [row for row in rows if "hybrid_accuracy" in row]
    assert [row["step"] for row in evaluations] == [2, 4]
    results = json.loads((tmp_path / "run" / "results.json").read_text())["hgpo"]
    assert evaluations[-1]["eval/pass@1"] == results["auto"]["pass@1"]
    for domain, figures in results["by_domain"].items():
        assert evaluations[-1][f"eval/{domain}/think_ratio"] == figures["auto"]["think_ratio"]


# ------------------------------------------------------------------ what may change, and what not


def test_rows_and_models_are_told_apart_by_their_contents_not_by_their_paths(
    lab_folder, tmp_path, monkeypatch
):
    rows = few_rows(lab_folder, tmp_path, "rl")
    base = shutil.copytree(lab_folder / "base", tmp_path / "base")
    common = {"dataset_name": str(rows), "save_steps": 2, "num_iterations": 1}
    hgpo.run(hgpo_settings(lab_folder, tmp_path / "whole", **common))
    settings = hgpo_settings(lab_folder, tmp_path / "run", **common, model_name_or_path=str(base))
    stopped_after(3, monkeypatch, hgpo.run, settings)
    resumed = dataclasses.replace(settings, resume_from_checkpoint=True)

    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(reversed(lines)))
    with pytest.raises(InputError, match="made with another dataset_name: the contents of"):
        hgpo.run(resumed)
    moved = tmp_path / "moved.jsonl"
    moved.write_text("".join(lines))
    (base / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="made with another model_name_or_path"):
        hgpo.run(dataclasses.replace(resumed, dataset_name=str(moved)))
    again = f"{tmp_path}/./whole/../{lab_folder.name}"
    os.symlink(lab_folder, tmp_path / lab_folder.name)
    paths = {"dataset_name": str(moved), "model_name_or_path": f"{again}/base"}
    hgpo.run(dataclasses.replace(resumed, output_dir=f"{tmp_path}/./run/", **paths))
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_what_changes_nothing_but_rounding_is_free_when_a_run_goes_on(
    lab_folder, tmp_path, monkeypatch
):
    common = {"save_steps": 2, "num_iterations": 1, "max_steps": 4}
    hgpo.run(hgpo_settings(lab_folder, tmp_path / "whole", **common))
    settings = hgpo_settings(lab_folder, tmp_path / "run", **common)
    stopped_after(3, monkeypatch, hgpo.run, settings)
    free = {
        "max_tokens_per_device": 40, "rollout_batch_size": 3, "gradient_checkpointing": True,
        "reward_batch_size": 2, "save_steps": 1, "save_total_limit": 1, "hacc_margin": 0.2,
        "eval_temperature": 0.1, "eval_steps": 3, "log_completions": 1, "hsdp": True,
    }  # fmt: skip
    hgpo.run(dataclasses.replace(settings, resume_from_checkpoint=True, **free))
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    assert len((tmp_path / "run" / "completions.jsonl").read_text().splitlines()) == 2 * 3


def test_rate_clip_and_length_may_be_changed_and_that_is_recorded(
    lab_folder, tmp_path, monkeypatch, capsys
):
    settings = hft_settings(lab_folder, tmp_path, save_steps=2)
    stopped_after(3, monkeypatch, lhrm.hft, settings)
    changes = {"learning_rate": 5e-4, "max_grad_norm": 0.5, "max_steps": 7}
    lhrm.hft(dataclasses.replace(settings, resume_from_checkpoint=True, **changes))
    out = capsys.readouterr().out
    assert "goes on after step 2\n  after step 2: " in out
    assert "after step 2: learning_rate=0.0005, before 0.001" in out
    (recorded,) = json.loads((tmp_path / "settings.json").read_text())["changes"]
    expected = {"learning_rate": [1e-3, 5e-4], "max_grad_norm": [1.0, 0.5], "max_steps": [6, 7]}
    assert recorded == {"after_step": 2, **expected}
    assert [row["step"] for row in log_of(tmp_path)] == list(range(1, 8))


def test_a_change_counts_from_the_checkpoint_that_the_run_went_on_from(
    lab_folder, tmp_path, monkeypatch
):
    settings = hft_settings(lab_folder, tmp_path, save_steps=2)
    stopped_after(5, monkeypatch, lhrm.hft, settings)
    (tmp_path / "checkpoint-000004" / ".metadata").write_bytes(b"")
    slower = dataclasses.replace(settings, resume_from_checkpoint=True, learning_rate=5e-4)
    with pytest.raises(InputError, match="checkpoint-000004 cannot be read"):
        lhrm.hft(slower)
    shutil.rmtree(tmp_path / "checkpoint-000004")
    with pytest.raises(InputError, match="checkpoint-000002 lies beyond the last step, 1"):
        lhrm.hft(dataclasses.replace(slower, max_steps=1))
    lhrm.hft(slower)
    recorded = json.loads((tmp_path / "settings.json").read_text())["changes"]
    assert recorded == [{"after_step": 2, "learning_rate": [1e-3, 5e-4]}]


def test_the_last_checkpoints_are_kept_and_a_ruined_one_is_not_the_only_one(
    lab_folder, tmp_path, monkeypatch
):
    common = {"save_steps": 1, "save_total_limit": 2}
    lhrm.hft(hft_settings(lab_folder, tmp_path / "whole", **common))
    settings = hft_settings(lab_folder, tmp_path / "run", **common)
    stopped_after(4, monkeypatch, lhrm.hft, settings)
    older, newest = sorted((tmp_path / "run").glob("checkpoint-*"))
    assert (older.name, newest.name) == ("checkpoint-000003", "checkpoint-000004")
    shutil.rmtree(newest)
    lhrm.hft(dataclasses.replace(settings, resume_from_checkpoint=True))
    assert_same_end(tmp_path / "run", tmp_path / "whole")


DAMAGE = {
    ".metadata": [None, b"", b"?", b"\x80\x04N."],
    "__0_0.distcp": [None, b"", b"?" * 100],
    "progress.json": [
        None, b"", b"{", b"[]", b"{}", b'{"step": "2", "tokens_seen": 1, "skipped_updates": 0}',
        b'{"step": 2, "tokens_seen": -1, "skipped_updates": 0}',
    ],
}  # fmt: skip


def test_a_checkpoint_that_cannot_be_read_is_one_line_that_names_it_and_its_cause(
    lab_folder, tmp_path, monkeypatch, capsys
):
    settings = hft_settings(lab_folder, tmp_path / "run", save_steps=2, max_steps=3)
    stopped_after(2, monkeypatch, lhrm.hft, settings)
    settings.resume_from_checkpoint = True
    for name, variants in DAMAGE.items():
        for number, contents in enumerate(variants):
            folder = shutil.copytree(tmp_path / "run", tmp_path / f"{name}{number}")
            path = folder / "checkpoint-000002" / name
            path.unlink() if contents is None else path.write_bytes(contents)
            capsys.readouterr()
            with pytest.raises(InputError, match="checkpoint-000002") as error:
                lhrm.hft(dataclasses.replace(settings, output_dir=str(folder)))
            assert "Traceback" not in capsys.readouterr().err
            assert "\n" not in str(error.value) and "CheckpointException" not in str(error.value)
    lhrm.hft(settings)


# --------------------------------------------------------------------------- a step that went wrong


def test_an_update_that_is_not_finite_is_left_out_on_all_ranks(tiny, tmp_path):
    for folder, fault in (("good", "none"), ("bad", "infinite_loss")):
        common = [ROOT / "tests" / "faulty.py", fault, 1, 3, *tiny, "--max_steps", 6]
        run(*common, "--output_dir", tmp_path / folder, processes=2)
    good, bad = log_of(tmp_path / "good"), log_of(tmp_path / "bad")
    assert [row["skipped_updates"] for row in bad] == [0, 0, 1, 1, 1, 1]
    assert [row["skipped_updates"] for row in good] == [0] * 6
    assert bad[2]["grad_norm"] is None and bad[2]["reward"] == good[2]["reward"]
    assert all(row["grad_norm"] > 0 for row in bad[3:])
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "bad").values())


def infinite_from_the_third_on(monkeypatch):
    """Make the loss infinite from the third update on; returns a list that grows with each."""
    loss, losses = hgpo.policy_loss, []

    def faulty(**tensors):
        losses.append(1)
        return loss(**tensors) * (float("inf") if len(losses) > 2 else 1.0)

    monkeypatch.setattr(hgpo, "policy_loss", faulty)
    return losses


def test_five_updates_in_a_row_that_are_not_finite_end_the_run_and_leave_their_rows(
    lab_folder, tmp_path, monkeypatch
):
    losses = infinite_from_the_third_on(monkeypatch)
    settings = hgpo_settings(
        lab_folder, tmp_path, max_steps=20, num_iterations=1, max_tokens_per_device=10**6
    )
    with pytest.raises(InputError, match="not finite 5 times in a row; the last rows are in"):
        hgpo.run(settings)
    assert len(losses) == 7
    rows = [
        json.loads(x) for x in (tmp_path / "not-finite-000007-0.jsonl").read_text().split("\n")[:-1]
    ]
    assert len(rows) == 16 and set(rows[0]) == {"prompt", "response", "reward", "advantages"}


def test_a_model_that_was_ruined_is_neither_saved_nor_called_finished(lab_folder, tmp_path):
    settings = hft_settings(lab_folder, tmp_path, learning_rate=3e38, max_steps=3, warmup_ratio=0)
    with pytest.raises(InputError, match="weights are not finite after step 3: go on from"):
        lhrm.hft(settings)
    assert not list(tmp_path.glob("checkpoint-0*")) + list(tmp_path.glob("model*"))


def test_no_checkpoint_is_saved_while_updates_are_left_out(lab_folder, tmp_path, monkeypatch):
    infinite_from_the_third_on(monkeypatch)
    settings = hgpo_settings(
        lab_folder, tmp_path, max_steps=20, num_iterations=1, save_steps=1,
        max_tokens_per_device=10**6,
    )  # fmt: skip
    with pytest.raises(InputError, match="5 times in a row"):
        hgpo.run(settings)
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-000001", "checkpoint-000002"]


def test_weights_that_are_not_finite_are_named_when_they_are_loaded(lab_folder, tmp_path):
    folder = shutil.copytree(lab_folder / "base", tmp_path / "base")
    damaged = model_file.Transformer.from_pretrained(folder)
    for value in (float("nan"), float("inf"), -float("inf")):
        with torch.no_grad():
            damaged.model.norm.weight[3] = value
        damaged.save_pretrained(folder)
        with pytest.raises(InputError, match="model.norm.weight has numbers that are not finite"):
            lhrm.hft(hft_settings(lab_folder, tmp_path / "run", model_name_or_path=str(folder)))


def test_a_reward_that_is_not_finite_ends_the_run(lab_folder, tmp_path, monkeypatch):
    judge_all = lhrm.judge_all

    def ruined(*args):
        return [dataclasses.replace(j, reward=float("nan")) for j in judge_all(*args)]

    monkeypatch.setattr(lhrm, "judge_all", ruined)
    with pytest.raises(InputError, match="a reward is not finite"):
        hgpo.run(hgpo_settings(lab_folder, tmp_path))


# -------------------------------------------------------------------------------------- many ranks


def workers(count, command, folder, **environment):
    """The processes that torchrun would start, without it, each with arguments of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command(rank))], cwd=folder, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**os.environ, **common, "RANK": str(rank)},
        )
        for rank in range(count)
    ]  # fmt: skip


def errors_of(text):
    """What a process says, without its progress bars and what gloo logs."""
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    return [
        x
        for x in lines
        if x and "%|" not in x and "00:00" not in x and not x.startswith("[rank0]:[E")
    ]


@pytest.mark.parametrize("fault", ["bad_row", "file", "folder"])
def test_an_error_on_one_rank_ends_all_each_with_its_own_line(fault, tiny, tmp_path):
    def command(rank):
        name = "bad_row" if fault == "bad_row" else "none"
        words = [ROOT / "tests" / "faulty.py", name, 1, 2, *tiny]
        if fault == "file" and rank == 1:
            words += ["--dataset_name", "/none.jsonl"]
        return [*words, "--output_dir", tmp_path / (f"out{rank}" if fault == "folder" else "out")]

    began = time.monotonic()
    processes = workers(2, command, tmp_path)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert time.monotonic() - began < 40 and "Traceback" not in "".join(errors)
    host = socket.gethostname()
    expected = {
        "bad_row": "row 7 is bad",
        "file": "/none.jsonl: No such file",
        "folder": "is not the folder that rank 0 sees",
    }
    (first,), (second,) = map(errors_of, errors)
    assert first.startswith(f"[rank 0 on {host}] error: ")
    assert second.startswith(f"[rank 1 on {host}] error: ") and expected[fault] in second
    if fault == "bad_row":
        assert "rank 1 has ended, or does not answer" in first


# ------------------------------------------------------------------------------------------ signals


def start(folder, tiny, fault, count, step=3, leave_codes=True):
    """hgpo.py with a pause in a step, by torchrun if there are several processes; each of these
    leaves its exit code in a file, if this is wanted."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "paused").unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "tests" / "faulty.py"), fault, "0", str(step), *tiny]
    command += ["--output_dir", str(folder / "run"), "--resume_from_checkpoint"]
    script = 'trap : TERM INT; "$@"; echo $? > code-${RANK:-0}'
    if count > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}"]
        shell = ["bash", "-c", script, "bash"] if leave_codes else []
        command = [*launcher, "--standalone", "--no-python", *shell, *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (folder / "paused").exists() and fault != "none":
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def alive(folder):
    """The processes that work in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder / "run") in (path / "cmdline").read_text().split("\0"):
                found.append(int(path.name))
        except OSError:
            continue
    return found


linux = pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are found in /proc")
SIGNALLED = [
    (1, "rollout", "SIGTERM"), (1, "update", "SIGINT"), (1, "save", "SIGINT"),
    (1, "evaluation", "SIGTERM"), (2, "rollout", "SIGTERM"), (2, "update", "SIGTERM"),
    pytest.param(1, "update", "SIGTERM", marks=pytest.mark.long),
    pytest.param(2, "evaluation", "SIGINT", marks=pytest.mark.long),
    pytest.param(4, "rollout", "SIGTERM", marks=pytest.mark.long),
    pytest.param(4, "update", "SIGINT", marks=pytest.mark.long),
]  # fmt: skip


@linux
@pytest.mark.parametrize("count, place, name", SIGNALLED)
def test_a_signal_gives_up_the_step_at_work_and_keeps_all_before_it(
    count, place, name, tiny, tmp_path
):
    tiny += ["--max_tokens_per_device", "16"]  # a micro-batch for each of the eight responses
    done = 2
    if place == "evaluation":
        tiny += ["--eval_dataset_name", tiny[tiny.index("--dataset_name") + 1], "--eval_steps", "3"]
        tiny += ["--eval_num_generations", "1", "--eval_max_completion_length", "8"]
        done = 3
    whole = tmp_path / "whole"
    run(ROOT / "hgpo.py", *tiny, "--output_dir", whole, processes=count)
    # The third step's rollout or first micro-batch; the first save, after the second step; the
    # third step's evaluation, after one of π_HFT and three rollouts.
    microbatch = 2 * (8 // min(count, 2)) + 1
    step = {"rollout": 3, "update": microbatch, "save": 1, "evaluation": 5}[place]
    process = start(tmp_path, tiny, f"pause_in_{place}", count, step)
    began = time.monotonic()
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - began < 15 and not alive(tmp_path)
    code = 0 if name == "SIGTERM" else 130
    if count == 1:
        assert process.returncode == code
    else:  # torchrun's own code is its own
        codes = [(tmp_path / f"code-{rank}").read_text() for rank in range(count)]
        assert codes == [f"{code}\n"] * count
    said = [line for line in errors_of(error) if "stopped after" in line]
    assert len(said) == 1 and said[0].endswith("--resume_from_checkpoint goes on from there")
    waits = ["stopping: what is done is saved first; a second signal ends it at once"]
    waits = waits if place in ("update", "save") else []  # the others end at once
    assert count > 1 or errors_of(error) == waits + said
    kept = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert kept[-1] == f"checkpoint-00000{done}" and len(log_of(tmp_path / "run")) == done
    arguments = [*tiny, "--output_dir", tmp_path / "run", "--resume_from_checkpoint"]
    run(ROOT / "hgpo.py", *arguments, processes=count)
    assert_same_end(tmp_path / "run", whole)


@linux
def test_a_second_signal_ends_a_process_at_once(tiny, tmp_path):
    process = start(tmp_path, tiny, "pause_in_update", 1)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # torchrun's, of a scheduler's that has signalled both
    process.communicate(timeout=60)
    assert process.returncode == 0

    received, sent = socket.socketpair()
    script = "import socket, sys; from data import processes; processes.SAME_SIGNAL = 0.2; "
    script += "print('ready', flush=True); "
    script += "processes.watch(socket.socket(fileno=int(sys.argv[1])))"
    watched = subprocess.Popen(
        [sys.executable, "-c", script, str(received.fileno())], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, pass_fds=[received.fileno()],
    )  # fmt: skip
    assert watched.stdout.readline() == b"ready\n"
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGTERM):  # the first is none of ours
        assert watched.poll() is None
        sent.send(bytes([number]))
        time.sleep(1)
    assert watched.wait(10) == 128 + signal.SIGTERM
    assert watched.stderr.read() == b"\nended at once, without saving\n"


@linux
def test_ranks_whose_torchrun_was_killed_end_themselves(tiny, tmp_path):
    process = start(tmp_path, [*tiny, "--max_steps", "100000"], "pause_in_update", 2, 3, False)
    assert len(alive(tmp_path)) > 2
    process.kill()
    deadline = time.monotonic() + 60
    while alive(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_ctrl_c_while_packages_are_imported_is_one_line(tmp_path):
    script = "import sys; from data import cli; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    for name in ("hgpo.py", "lhrm.py", "sample.py"):  # before torch is imported
        source = (ROOT / name).read_text()
        assert source.index("\nfrom data") < source.index("\nimport torch")


def test_a_signal_outside_of_training_says_how_to_go_on_too(lab_folder, tmp_path, monkeypatch):
    def signalled(*args):
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(lhrm, "tokenized_rows", signalled)
    with pytest.raises(Stopped, match="run: stopped: --resume_from_checkpoint goes on"):
        lhrm.hft(hft_settings(lab_folder, tmp_path / "run"))


def test_a_signal_that_is_held_is_not_forgotten():
    signals = processes.Signals()
    with signals.hold():
        signals.receive(signal.SIGTERM)
        with pytest.raises(Stopped), signals.hold(False):
            raise AssertionError
    with pytest.raises(Stopped) as stop:
        signals.receive(signal.SIGINT)  # the first one counts
    assert (stop.value.code, Stopped(signal.SIGINT).code) == (0, 130)


# ---------------------------------------------------------------------- crashes and full disks


def forked(main, before=lambda: None):
    """The exit code of `main`, run by a copy of this process."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            before()
            main()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


WRITING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}


def die_at(number, folder):
    """End this process before the event `number` that changes a file in `folder`."""
    events = []

    def watch(event, args):
        if event == "open" and isinstance(args[2], int):
            changes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            changes = event in WRITING
        if changes and str(args[0]).startswith(str(folder)):
            events.append(event)
            if len(events) == number:
                os._exit(9)

    sys.addaudithook(watch)


JOBS = {"hft": (lhrm.hft, hft_settings, "hft"), "hgpo": (hgpo.run, hgpo_settings, "rl")}


def tiny_job(name, lab_folder, tmp_path):
    """A function that runs a job in a folder, and the folder of one that was not disturbed."""
    train, make, kind = JOBS[name]
    changes = {"dataset_name": str(few_rows(lab_folder, tmp_path, kind)), "save_steps": 2}
    changes |= {"max_steps": 3}
    if name == "hgpo":
        changes |= {"eval_dataset_name": changes["dataset_name"], "eval_num_generations": 1}
        changes |= {"num_queries": 2, "num_iterations": 1}

    def job(folder, **more):
        train(make(lab_folder, folder, **changes, **more))

    job(tmp_path / "whole")
    return job, tmp_path / "whole"


def assert_equal_folders(folder, whole):
    assert_same_end(folder, whole)
    files = [sorted(str(p.relative_to(f)) for p in f.rglob("*")) for f in (folder, whole)]
    assert files[0] == files[1]
    for name in ("results.json", "tokenizer.json", "config.json"):
        if (whole / name).exists():
            assert (folder / name).read_bytes() == (whole / name).read_bytes()


def crash_everywhere(name, stride, lab_folder, tmp_path):
    job, whole = tiny_job(name, lab_folder, tmp_path)
    number = 1
    while True:
        folder = tmp_path / f"crash{number}"
        code = forked(lambda: job(folder), lambda: die_at(number, folder))  # noqa: B023
        if code == 0:
            return number
        assert code == 9
        assert forked(lambda: job(folder, resume_from_checkpoint=True)) == 0, number  # noqa: B023
        assert_equal_folders(folder, whole)
        shutil.rmtree(folder)
        number += stride


@linux
@pytest.mark.parametrize("name", JOBS)
def test_a_run_that_crashed_at_a_file_event_goes_on_to_the_same_end(name, lab_folder, tmp_path):
    assert crash_everywhere(name, 13, lab_folder, tmp_path) > 40


@linux
@pytest.mark.long
@pytest.mark.parametrize("name", JOBS)
def test_a_run_that_crashed_at_any_file_event_goes_on_to_the_same_end(name, lab_folder, tmp_path):
    assert crash_everywhere(name, 1, lab_folder, tmp_path) > 40


@linux
@pytest.mark.long
@pytest.mark.parametrize("name", JOBS)
def test_a_run_that_was_killed_twice_at_random_goes_on_to_the_same_end(name, lab_folder, tmp_path):
    job, whole = tiny_job(name, lab_folder, tmp_path)
    began = time.monotonic()
    assert forked(lambda: job(tmp_path / "timed")) == 0
    length, rng, killed = time.monotonic() - began, random.Random(0), 0

    def die_soon():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0, length))

    for number in range(25):
        folder = tmp_path / f"kill{number}"
        for _ in range(2):
            rng.random()
            code = forked(lambda: job(folder, resume_from_checkpoint=True), die_soon)  # noqa: B023
            killed += code == -signal.SIGALRM
        assert forked(lambda: job(folder, resume_from_checkpoint=True)) == 0  # noqa: B023
        assert_equal_folders(folder, whole)
        shutil.rmtree(folder)
    assert killed > 25


class FullDisk:
    """Every write of a run, one of which finds no space left."""

    def __init__(self, number):
        self.number, self.writes = number, 0

    def write(self):
        self.writes += 1
        if self.writes == self.number:
            raise OSError(errno.ENOSPC, "No space left on device")

    def install(self, monkeypatch):
        disk = self

        def counted(function, error=None):
            def write(*args, **options):
                try:
                    disk.write()
                except OSError:
                    if error:
                        raise error("I/O error: No space left on device (os error 28)") from None
                    raise
                return function(*args, **options)

            return write

        class Stream:
            """A file of a checkpoint, of whose many writes the first and every 200th count."""

            def __init__(self, stream):
                self.stream, self.writes = stream, 0

            def __getattr__(self, name):
                return getattr(self.stream, name)

            def write(self, data):
                if self.writes % 200 == 0:
                    disk.write()
                self.writes += 1
                return self.stream.write(data)

        create = FileSystem.create_stream

        @contextlib.contextmanager
        def create_stream(self, path, mode):
            with create(self, path, mode) as stream:
                yield Stream(stream) if "w" in mode else stream

        monkeypatch.setattr(FileSystem, "create_stream", create_stream)
        monkeypatch.setattr(cli, "write_row", counted(cli.write_row))
        monkeypatch.setattr(Path, "write_bytes", counted(Path.write_bytes))
        error = model_file.SafetensorError
        monkeypatch.setattr(model_file, "save_file", counted(model_file.save_file, error))


def fill_disk(name, stride, lab_folder, tmp_path, monkeypatch, capsys):
    job, whole = tiny_job(name, lab_folder, tmp_path)
    number = 1
    while True:
        folder = tmp_path / f"full{number}"
        disk = FullDisk(number)
        with monkeypatch.context() as patch:
            disk.install(patch)
            capsys.readouterr()
            try:
                cli.run_command(lambda: job(folder))  # noqa: B023
            except SystemExit as exit:
                assert exit.code == 2
            else:
                assert disk.writes < number
                return number
        (line,) = errors_of(capsys.readouterr().err)
        assert line.startswith("error: ") and "No space left on device" in line
        job(folder, resume_from_checkpoint=True)
        assert_equal_folders(folder, whole)
        number += stride


@pytest.mark.parametrize("name", JOBS)
def test_a_disk_that_is_full_at_a_write_is_one_line_and_nothing_is_lost(
    name, lab_folder, tmp_path, monkeypatch, capsys
):
    assert fill_disk(name, 19, lab_folder, tmp_path, monkeypatch, capsys) > 50


@pytest.mark.long
@pytest.mark.parametrize("name", JOBS)
def test_a_disk_that_is_full_at_any_write_is_one_line_and_nothing_is_lost(
    name, lab_folder, tmp_path, monkeypatch, capsys
):
    assert fill_disk(name, 1, lab_folder, tmp_path, monkeypatch, capsys) > 50
