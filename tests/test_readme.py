"""README.md tells the truth about names."""

import dataclasses
import importlib
import re

from conftest import ROOT

import hgpo
import lhrm
import sample
from data import classify
from data.judge import Judged
from data.prepare import PrepareSettings
from data.report import TOTALS, Record, step_metrics
from data.rows import Query

README = (ROOT / "README.md").read_text(encoding="utf-8")
TESTS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
EQUATION_ROWS = re.findall(r"^\| (Eq\. \d+(?:–\d+)?|Alg\. 1) \|(.*)$", README, re.MULTILINE)


def test_every_numbered_equation_is_in_the_table_once():
    numbers = []
    for name, _ in EQUATION_ROWS:
        if name != "Alg. 1":
            first, last = re.fullmatch(r"Eq\. (\d+)(?:–(\d+))?", name).groups()
            numbers += range(int(first), int(last or first) + 1)
    assert numbers == list(range(1, 24))


def test_every_function_and_test_in_the_equation_table_exists():
    for name, row in EQUATION_ROWS:
        _, code, tests = (cell.strip() for cell in row.rstrip("| ").split("|"))
        if code == "not here yet":
            assert name in ("Eq. 17–19", "Eq. 20–21") and tests == "–"
            continue
        for function in re.findall(r"`([^`]+)`", code):
            module, attribute = function.rsplit(".", 1)
            assert callable(getattr(importlib.import_module(module), attribute)), function
        named = re.findall(r"`([^`]+)`", tests)
        assert named and all(f"def {test}(" in TESTS for test in named), named


def test_every_equation_test_names_its_equation():
    for name, row in EQUATION_ROWS:
        number = re.match(r"Eq\. (\d+)$", name)
        if number and number[1] != "1":
            assert f"test_eq{number[1]}_" in row


def test_every_option_in_the_readme_is_a_setting():
    classes = (sample.SampleSettings, lhrm.HFTSettings, lhrm.EvalSettings, hgpo.HGPOSettings)
    classes += (PrepareSettings,)
    classes += (classify.TrainSettings, classify.EvaluateSettings)
    known = {field.name for cls in classes for field in dataclasses.fields(cls)}
    others = {"nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint", "help", "local"}
    for text in (README, (ROOT / "data" / "README.md").read_text(encoding="utf-8")):
        assert set(re.findall(r"--(\w+)", text)) <= known | others


def test_every_figure_of_an_evaluation_is_explained():
    judged = {way: [Judged(0, 1.0, 3, True, True, False, "")] for way in ("think", "no_think")}
    result = lhrm.results([Record(Query([], ["1"], "1", "maths"), judged)], 0.05, None)
    text = README[README.index("## Evaluation") : README.index("## Checkpoints")]
    for name in {*result, *result["think"]} - {"domain", "by_level", "by_domain", *judged}:
        assert f"`{name}`" in text, name


def test_the_symbol_tables_figures_are_the_defaults():
    rows = re.findall(r"^\|[^|]*\| `(\w+)`[^|]*\| ([\d.]+) \| ([\d.]*) \|$", README, re.MULTILINE)
    assert len(rows) == 7
    for name, paper, on_lab in rows:
        default = {f.name: f.default for f in dataclasses.fields(hgpo.HGPOSettings)}[name]
        assert float(paper) == default, name
        assert float(on_lab) == hgpo.HGPO_ON_LAB.get(name, default), name


def test_every_logged_name_is_explained():
    groups = [([Judged(0, 1.0, 3, True, True, False, "")] * 2, [-1.0, -1.0])]
    metrics = step_metrics(groups, [1.0] * len(TOTALS), True)
    text = README[README.index("## Reading the logs") :]
    for name in re.findall(r"`([\w/]*)\{([\w,]+)\}([\w/]*)`", text):
        text += "".join(f"`{name[0]}{middle}{name[2]}`" for middle in name[1].split(","))
    assert all(f"`{name}`" in text for name in metrics), set(metrics)
