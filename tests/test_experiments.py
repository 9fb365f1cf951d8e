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
made = experiments.jobs_of
def tiny(*arguments):
    for job in made(*arguments):
        changes = {"max_steps": 2, "save_steps": 1}
        if job.command[0] == "hgpo.py":
            changes |= {"eval_num_generations": 1, "num_queries": 2, "allow_malformed": True}
            changes |= {"eval_steps": int(job.options["eval_on_start"])}
        yield job._replace(options={**job.options, **changes})
experiments.jobs_of = lambda *arguments: [*tiny(*arguments)]
processes.run_command(experiments.main)
"""


def grid(out):
    command = [sys.executable, "-c", TINY, "--quick", "--only", "plain_grpo,alpha,fig8"]
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
    assert results.curve("large/alpha=3.0", "H_acc") is None  # not evaluated before training
    assert results.curve("large/alpha=3.0", "tags")["steps"] == [1, 2]


def test_a_finished_run_is_used_again_but_not_with_other_settings(tmp_path):
    root = tmp_path / "large-0"
    jobs = {job.name: job for job in experiments.jobs_of(tmp_path, "large", 0, ["delta=0.4"])}
    assert list(jobs) == ["hft", "delta=0.4"]
    job = jobs["delta=0.4"]
    (root / "delta=0.4").mkdir(parents=True)
    for status, delta, finished in [
        ("finished", 0.4, True), ("unfinished", 0.4, False), ("finished", 0.5, False)
    ]:  # fmt: skip
        settings = {**job.options, "delta": delta, "model_name_or_path": "before/it/was/moved"}
        record = {"status": status, "settings": settings}
        (root / "delta=0.4" / "settings.json").write_text(json.dumps(record))
        assert job.finished() == finished


@pytest.mark.parametrize(
    "code, why",
    [
        ("raise SystemExit('no disk')", "no disk"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("print('finished long ago')", "the folder holds another run"),
    ],
)
def test_a_run_that_fails_is_named_with_the_reason(code, why, tmp_path):
    broken = experiments.Job(tmp_path, "broken", ["-c", code], {})
    with pytest.raises(InputError, match=f"broken.log: {why}"):
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


def test_the_responses_that_the_readme_shows_are_those_of_the_demo(results):
    text = PAGES[0].read_text(encoding="utf-8")
    shown = [each for each in results.contents["demo"]["hgpo"]["examples"]
             if f"`{each['prompt']}`" in text]  # fmt: skip
    assert len(shown) == 2
    assert all(f"    {each['response']}\n" in text for each in shown)


def test_the_page_of_results_has_no_other_figures(results):
    text = figures.BLOCK.sub("", PAGES[1].read_text(encoding="utf-8"))
    settings = {
        str(x) for places in (figures.DELTAS, figures.ALPHAS, figures.BETAS) for x in places
    }
    assert set(re.findall(r"\d+\.\d+", text)) <= settings | {"0.9", "0.05", "0.2"}


# --------------------------------------------------------------------- what the page says of them


@pytest.fixture(scope="module")
def mean(results):
    """The mean of a figure; "think_ratio" and the like are of free responses to sums."""
    return lambda run, name: figure(results, run, name)["mean"]


def figure(results, run, name):
    return results.figure(run, name if "/" in name else f"maths/auto/{name}")


def apart(results, run, other, name):
    """Whether the first run's figure is higher by more than either spread."""
    high, low = (figure(results, each, name) for each in (run, other))
    return high["mean"] - low["mean"] > max(high["spread"], low["spread"])


def by_level(results, run, name):
    return [figure(results, run, f"level {k}/{name}")["mean"] for k in range(1, 6)]


@pytest.mark.parametrize("size", figures.SIZES)
def test_table1_the_lhrm_chooses_best_and_is_more_accurate_than_hft_for_fewer_tokens(
    size, results, mean
):
    assert results.contents["seeds"] == [0, 1, 2]
    for other in "hft", "rft", "dpo":
        assert mean(f"{size}/hgpo-125", "hybrid_accuracy") > mean(
            f"{size}/{other}", "hybrid_accuracy"
        )
    hft = f"{size}/hft"
    for lhrm in f"{size}/hgpo", f"{size}/hgpo-125":
        assert apart(results, lhrm, hft, "pass@1")
        assert mean(lhrm, "mean_tokens") < mean(hft, "maths/think/mean_tokens")
        assert mean(lhrm, "code/auto/pass@1") < mean(hft, "code/auto/pass@1")
        assert mean(lhrm, "pass@1") > mean(f"{size}/rft", "pass@1") > mean(hft, "pass@1")


@pytest.mark.parametrize(
    "size, other, beyond",
    [("large", "hft", True), ("small", "hft", True), ("large", "dpo", True),
     ("small", "dpo", False), ("large", "rft", False), ("small", "rft", False)],
)  # fmt: skip
def test_table1_which_leads_are_beyond_the_spreads(size, other, beyond, results):
    assert apart(results, f"{size}/hgpo-125", f"{size}/{other}", "hybrid_accuracy") == beyond


def test_table1_which_direct_answers_get_better_or_worse_with_every_seed(results):
    def seeds(run, domain):
        return figure(results, run, f"{domain}/no_think/pass@1")["seeds"]

    for size in figures.SIZES:
        runs = f"{size}/hft", f"{size}/rft", f"{size}/hgpo-125"
        hft, rft, _ = (seeds(run, "maths") for run in runs)
        assert all(after > before for before, after in zip(hft, rft))
        hft, _, hgpo = (seeds(run, "code") for run in runs)
        assert all(after < before for before, after in zip(hft, hgpo))


@pytest.mark.parametrize("size, beyond", [("large", True), ("small", False)])
def test_table1_the_lhrm_beats_routers_in_h_acc(size, beyond, results, mean):
    lhrm = figure(results, f"{size}/hgpo-125", "hybrid_accuracy")
    router = figure(results, f"{size}/router-classifier", "maths/router/hybrid_accuracy")
    lead = lhrm["mean"] - router["mean"]
    assert lead > 0 and (lead > max(lhrm["spread"], router["spread"])) == beyond
    assert mean(f"{size}/router-rules", "maths/router/hybrid_accuracy") < router["mean"]


def test_table1_rft_imitates_lucky_guesses_and_learns_to_answer(mean):
    for name in "think_ratio", "pass@1", "hybrid_accuracy":
        assert mean("large/rft-N=16", name) < mean("large/rft", name)
    direct = mean("large/hft", "maths/no_think/pass@1")
    assert mean("large/rft", "maths/no_think/pass@1") > direct + 0.05
    assert mean("large/hgpo-125", "maths/no_think/pass@1") == pytest.approx(direct, abs=0.01)


def test_fig3a_reinforce_stays_undecided_and_needs_a_mean_or_more_weight(results, mean):
    runs = figures.ESTIMATORS.values()
    grpo, rloo, reinforce, _ = (results.curve(f"large/{r}", "mode_entropy")["mean"] for r in runs)
    assert min(reinforce) > 0.4 and max(grpo[-1], rloo[-1]) < 0.2
    grpo, rloo, reinforce, weighted = (mean(f"large/{run}", "hybrid_accuracy") for run in runs)
    assert rloo == pytest.approx(grpo, abs=0.05) and reinforce < grpo - 0.05
    assert weighted == pytest.approx(grpo, abs=0.05)
    curve = results.curve("large/reinforce++", "H_acc")
    later = [value for step, value in zip(curve["steps"], curve["mean"]) if step >= 50]
    assert max(later) - min(later) < 0.02


def test_fig3b_a_larger_delta_thinks_less(mean):
    ratios = [mean(f"large/{run}", "think_ratio") for run in figures.DELTAS.values()]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 0.99 and ratios[-1] < 0.05
    assert len({round(ratio, 2) for ratio in ratios}) >= 5


def test_fig4_only_the_lhrm_thinks_the_less_the_easier_the_level(results):
    for size in figures.SIZES:
        hft = by_level(results, f"{size}/hft", "auto/think_ratio")
        assert max(hft) - min(hft) < 0.1
    large = by_level(results, "large/hgpo", "auto/think_ratio")
    small = by_level(results, "small/hgpo", "auto/think_ratio")
    assert large == sorted(large) and large[0] < 0.01 and large[-1] > 0.95
    assert 0 < small[0] < 0.5 and min(small[1:]) > 0.95
    direct = by_level(results, "large/hft", "no_think/pass@1")
    assert direct == sorted(direct, reverse=True) and direct[0] > 0.95 and direct[-1] < 0.1


@pytest.mark.parametrize(
    "run, rises",
    [("large/hgpo", False), ("large/hgpo-sums", False), ("mixed/hgpo", True),
     ("large/plain-grpo", True)],
)  # fmt: skip
def test_fig5_thinking_on_programs_goes_with_hft_rows_and_with_what_rl_made_of_sums(
    run, rises, results
):
    for name in "think_ratio", "pass@1":
        curve = results.curve(run, f"code/{name}")["mean"]
        assert (curve[-1] > curve[0]) == rises


def test_fig6_the_large_model_comes_to_think_less_and_the_small_one_more(results):
    large, small = (
        results.curve(f"{size}/hgpo-125", "maths/think_ratio")["mean"] for size in figures.SIZES
    )
    assert large[-1] < large[0] and small[-1] > small[0]
    assert apart(results, "large/hft", "large/hgpo-125", "think_ratio")
    assert apart(results, "small/hgpo-125", "small/hft", "think_ratio")
    levels = (by_level(results, f"{size}/hgpo-125", "auto/think_ratio") for size in figures.SIZES)
    assert all(small > large and small > 0.9 for large, small in [*zip(*levels)][1:4])


def test_without_a_inter_thinking_stays_as_hft_left_it(mean):
    hft = mean("large/hft", "think_ratio")
    assert mean("large/alpha=0.0", "think_ratio") == pytest.approx(hft, abs=0.05)


@pytest.mark.parametrize("run", ["alpha=3.0", "N=4", "N=16", *[*figures.LOSSES.values()][1:]])
def test_alpha_n_and_the_divisor_make_no_difference_beyond_the_spreads(run, results):
    for name in "hybrid_accuracy", "think_ratio":
        pair = f"large/{run}", "large/hgpo"
        assert not apart(results, *pair, name) and not apart(results, *pair[::-1], name)


def test_only_the_kl_term_keeps_the_probability_of_both_tags_together(results):
    least = {x: min(results.curve(f"large/{r}", "tags")["mean"]) for x, r in figures.BETAS.items()}
    assert least[0.0] < 0.5 and [*least.values()] == sorted(least.values())
    assert least[0.03] > 0.8


def test_plain_grpo_always_thinks_after_20_steps(results):
    curve = results.curve("large/plain-grpo", "maths/think_ratio")
    assert curve["steps"][1] == 20 and min(curve["mean"][1:]) > 0.99


def test_in_words_a_pretrained_model_comes_to_think_the_more_the_harder_the_level(results):
    hft, hgpo = (results.contents["words"][stage] for stage in ("hft", "hgpo"))
    assert hgpo["queries"] == 75
    before, after = (
        [part["auto"]["think_ratio"] for part in stage["by_level"].values()]
        for stage in (hft, hgpo)
    )
    assert after == sorted(after) and after[-1] - after[0] > 0.2
    more = [a - b for a, b in zip(after, before)]
    assert abs(before[-1] - before[0]) < 0.1 and min(more) == more[0] > 0
    assert hgpo["auto"]["pass@1"] > hft["auto"]["pass@1_interval"][1]
    assert hgpo["auto"]["hybrid_accuracy"] > hft["auto"]["hybrid_accuracy"]
    always, freely = hgpo["think"], hgpo["auto"]
    assert always["pass@1"] > freely["pass@1"]
    assert always["hybrid_accuracy"] == pytest.approx(freely["hybrid_accuracy"], abs=0.015)
    assert always["mean_tokens"] - freely["mean_tokens"] == pytest.approx(2, abs=0.2)


def test_every_picture_of_a_page_is_there_and_every_one_there_is_shown():
    shown = set()
    for page in PAGES:
        for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            shown.add((page.parent / name).resolve())
    assert shown == {path.resolve() for path in (ROOT / "data" / "results").glob("*.png")}
    assert all(path.stat().st_size < 60_000 for path in shown)
