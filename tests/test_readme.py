"""README.md tells the truth about names."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest
from conftest import ROOT, tiny_model

import hgpo
import lhrm
import sample
from data import classify, experiments, lab
from data.judge import Judged
from data.modes import MODES
from data.prepare import PrepareSettings
from data.report import TOTALS, Record, step_metrics
from data.rows import Query, read_hft_rows, read_queries

README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "data" / "results" / "README.md").read_text(encoding="utf-8")
TESTS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
EQUATION_ROWS = re.findall(r"^\| Eq\. ([\d–, ]+) \|.*\|(.*)\|$", README, re.MULTILINE)


def numbers(text):
    """The equations of a row: «5, 6» or «14–16»."""
    first, *others = map(int, re.findall(r"\d+", text))
    return list(range(first, others[-1] + 1)) if others else [first]


def test_every_numbered_equation_is_in_the_table_once():
    assert [n for text, _ in EQUATION_ROWS for n in numbers(text)] == list(range(1, 24))


def test_every_function_in_the_equation_table_exists():
    (loop,) = re.findall(r"^\| Alg\. 1 \|.*\|(.*)\|$", README, re.MULTILINE)
    for code in (*(code for _, code in EQUATION_ROWS), loop):
        functions = re.findall(r"`([^`]+)`", code)
        assert functions
        for function in functions:
            module, attribute = function.rsplit(".", 1)
            assert callable(getattr(importlib.import_module(module), attribute)), function


@pytest.mark.parametrize("number", range(1, 24))
def test_every_equation_has_a_test_that_its_number_runs(number):
    assert f"-k eq{number}_" in README or number != 9  # the README's own example
    assert re.search(rf"def test_\w*eq{number}_", TESTS)


def test_every_equation_stands_at_its_line():
    sources = [ROOT / name for name in ("sample.py", "lhrm.py", "hgpo.py", "data/judge.py")]
    tags = re.findall(r"# .*?(Eq\. [\d, and]+)", "".join(map(Path.read_text, sources)))
    assert {int(n) for tag in tags for n in re.findall(r"\d+", tag)} == set(range(1, 24))


def test_every_option_in_the_readme_is_a_setting():
    classes = (sample.SampleSettings, lhrm.HFTSettings, lhrm.EvalSettings, PrepareSettings)
    classes += tuple(settings for settings, _ in hgpo.METHODS.values())
    classes += (classify.TrainSettings, classify.EvaluateSettings, classify.PredictSettings)
    classes += (lab.WordSettings, experiments.ExperimentSettings)
    known = {field.name for cls in classes for field in dataclasses.fields(cls)}
    others = {"repo", "nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint", "help", "local"}
    others |= {"reasoning", "index"}  # --reasoning-parser of vLLM, --index-url of pip
    for text in (README, REFERENCE, RESULTS):
        assert set(re.findall(r"--(\w+)", text)) <= known | others


def test_the_example_rows_are_read(tmp_path):
    *hft, query = re.findall(r"^    (\{.*)$", REFERENCE.partition("## Where")[0], re.MULTILINE)
    (tmp_path / "hft.jsonl").write_text("\n".join(hft))
    (tmp_path / "rl.jsonl").write_text(query)
    responses = [text for _, _, text in read_hft_rows(tmp_path / "hft.jsonl")]
    assert responses == ["<think>1+2=3</think>3", "<no_think>3</no_think>"]
    assert read_queries(tmp_path / "rl.jsonl")[0].answers == ["3"]


def test_every_figure_of_an_evaluation_is_explained():
    judged = {mode: [Judged(0, 1.0, 3, True, True, False, "")] for mode in MODES}
    result = lhrm.results([Record(Query([], ["1"], "1", "maths"), judged)], 0.05, None)
    text = REFERENCE[REFERENCE.index("## Figures of an evaluation") :]
    for name in {*result, *result["think"]} - {"domain", "by_level", "by_domain", *judged}:
        assert f"`{name}`" in text, name


def test_the_symbol_tables_figures_are_the_defaults():
    rows = re.findall(r"^\|[^|]*\| `(\w+)`[^|]*\| ([\d.]+) \| ([\d.]*) \|$", README, re.MULTILINE)
    assert len(rows) == 8
    for name, paper, on_lab in rows:
        default = {f.name: f.default for f in dataclasses.fields(hgpo.HGPOSettings)}[name]
        assert float(paper) == default, name
        assert float(on_lab) == hgpo.HGPO_ON_LAB.get(name, default), name


def test_every_logged_name_is_explained():
    groups = [([Judged(0, 1.0, 3, True, True, False, "")] * 2, [-1.0, -1.0])]
    metrics = step_metrics(groups, [1.0] * len(TOTALS), True)
    model, rows = tiny_model(), [([1], [2], [3])]
    for _, sums, _ in (
        lhrm.hft_batch_loss(model, rows, 1),
        hgpo.dpo_batch_loss(model, 0.1, model, rows, 1),
    ):
        metrics |= sums
    text = REFERENCE[REFERENCE.index("## Logs") :]
    for name in re.findall(r"`([\w/]*)\{([\w,]+)\}([\w/]*)`", text):
        text += "".join(f"`{name[0]}{middle}{name[2]}`" for middle in name[1].split(","))
    assert all(f"`{name}`" in text for name in metrics), set(metrics)
