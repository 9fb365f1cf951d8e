"""data/experiments.py and data/figures.py: the grid goes on, and the pages say what it found."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import hgpo
from data import experiments, figures
from data.cli import InputError

PAGES = [ROOT / "README.md", ROOT / "data" / "results" / "README.md"]

# The grid with trainings of two steps, on the first rows of every set.
TINY = """
import sys
from data import experiments, lab, processes
lab.NUM_HFT, lab.NUM_RL, lab.TEST_PER_LEVEL, lab.TEST_GENERAL = 64, 16, {"maths": 2, "code": 1}, 1
made = experiments.jobs_for
def tiny(*arguments):
    for job in made(*arguments):
        changes = {"max_steps": 2, "save_steps": 1}
        if job.command[0] == "hgpo.py":
            changes |= {"eval_num_generations": 1, "num_queries": 2, "allow_malformed": True}
            changes |= {"eval_steps": 1}
        yield job._replace(options={**job.options, **changes})
experiments.jobs_for = lambda *arguments: [*tiny(*arguments)]
processes.run_command(experiments.main)
"""


def grid(out):
    command = [sys.executable, "-c", TINY, "--quick", "--only", "plain_grpo,fig8"]
    return subprocess.Popen(
        [*command, "--output_dir", str(out)], cwd=ROOT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_grid_that_is_killed_goes_on_and_ends_with_the_same_results(number, tmp_path):
    whole = grid(tmp_path / "whole")
    assert whole.wait() == 0, whole.stdout.read()
    killed = grid(tmp_path / "killed")
    while not (tmp_path / "killed" / "large-0" / "hft.log").exists():
        time.sleep(0.05)
    time.sleep(6)  # in the middle of a run
    killed.send_signal(number)
    killed.wait()
    assert not (tmp_path / "killed" / "results.json").exists()
    again = grid(tmp_path / "killed")
    assert again.wait() == 0, again.stdout.read()
    for name in ("results.json", "README.md"):
        one, two = ((tmp_path / out / name).read_bytes() for out in ("whole", "killed"))
        assert one == two
    results = figures.load(tmp_path / "whole")
    assert results.curve("large/hgpo", "H_acc")["steps"] == [0, 1, 2]
    assert results.figure("large/hgpo", "maths/auto/pass@1")["seeds"] == [0.0]


def test_a_finished_run_is_used_again_but_not_with_other_settings(tmp_path):
    root = tmp_path / "large-0"
    jobs = {job.name: job for job in experiments.jobs_of(tmp_path, "large", 0, ["delta=0.4"])}
    assert list(jobs) == ["hft", "delta=0.4"]
    job = jobs["delta=0.4"]
    (root / "delta=0.4").mkdir(parents=True)
    for status, delta, finished in [
        ("finished", 0.4, True), ("unfinished", 0.4, False), ("finished", 0.5, False)
    ]:  # fmt: skip
        record = {"status": status, "settings": {**job.options, "delta": delta}}
        (root / "delta=0.4" / "settings.json").write_text(json.dumps(record))
        assert job.finished() == finished


def test_a_run_that_fails_is_named_with_its_last_words(tmp_path):
    broken = experiments.Job(tmp_path, "broken", ["-c", "raise SystemExit('no disk')"], {})
    with pytest.raises(InputError, match="broken.log: no disk"):
        experiments.Runner().run([broken])


def test_every_training_has_settings_that_exist_and_differ_from_the_defaults():
    for name, (method, changes) in experiments.TRAININGS.items():
        cls, on_lab = hgpo.METHODS[method]
        defaults = {f.name: f.default for f in dataclasses.fields(cls)} | on_lab
        for setting, value in changes.items():
            assert defaults[setting] != value, name


def test_every_figure_has_its_runs_in_the_grid():
    known = {*experiments.TRAININGS, *experiments.ROUTERS}
    for figure in figures.FIGURES.values():
        for runs in figure.runs.values():
            assert known >= set(runs)
    needed = {run for f in figures.FIGURES.values() for runs in f.runs.values() for run in runs}
    assert needed == known


def test_the_spread_is_the_sample_standard_deviation():
    assert experiments.summary([1.0, 2.0, 4.5]) == {
        "mean": 2.5, "spread": round(3.25**0.5, 4), "seeds": [1.0, 2.0, 4.5]
    }  # fmt: skip
    assert experiments.summary([0.25])["spread"] == 0


# ------------------------------------------------------------------------------ the pages


@pytest.fixture(scope="module")
def results():
    return figures.load(ROOT / "data" / "results")


@pytest.mark.parametrize("page", PAGES, ids=["README", "results"])
def test_every_table_of_the_pages_is_that_of_results_json(page, results):
    text = page.read_text(encoding="utf-8")
    assert figures.BLOCK.search(text)
    assert figures.fill(text, results) == text


def test_the_page_of_results_has_no_other_figures(results):
    text = figures.BLOCK.sub("", PAGES[1].read_text(encoding="utf-8"))
    settings = {
        str(x) for places in (figures.DELTAS, figures.ALPHAS, figures.BETAS) for x in places
    }
    assert set(re.findall(r"\d+\.\d+", text)) <= settings | {"0.9", "0.05", "0.2"}


def test_every_picture_of_a_page_is_there_and_every_one_there_is_shown():
    shown = set()
    for page in PAGES:
        for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            shown.add((page.parent / name).resolve())
    assert shown == {path.resolve() for path in (ROOT / "data" / "results").glob("*.png")}
    assert all(path.stat().st_size < 60_000 for path in shown)
