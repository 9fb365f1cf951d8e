"""Real benchmark files: run where LHRM_ASSETS names a folder that has them in `data`."""

import itertools
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from cheats import cheats
from conftest import asset

import lhrm
from data.prepare import PrepareSettings, prepare
from data.rows import read_hft_rows, read_queries
from data.verify_code import run_tests
from data.verify_math import is_correct

CODE = ["humaneval", "mbpp", "mbpp_sanitized"]
MATHS = ["math500", "amc23", "aime24", "olympiadbench_oe_maths_en", "gsm8k_test"]


def golds(name: str) -> list[str]:
    return [gold for query in read_queries(asset(f"data/{name}.jsonl")) for gold in query.answers]


@pytest.mark.parametrize("name", MATHS)
def test_every_right_answer_is_right_in_other_dress(name):
    for gold in golds(name):
        dresses = [gold, rf"\boxed{{{gold}}}", f"${gold}$", f" {gold} ."]
        dresses += [gold.replace(r"\frac", r"\dfrac"), gold.replace("+", " + ")]
        if not re.search(r"\\(left|[({])|\d,\d\d\d", gold):
            dresses += [gold.replace("(", r"\left(").replace(")", r"\right)")]
            dresses += [gold.replace(",", ", ")]
        for dressed in dresses:
            assert is_correct(dressed, gold), (dressed, gold)


def test_no_two_of_math500s_answers_are_the_same_but_those_that_are():
    different = sorted(set(golds("math500")))
    found = {frozenset(pair) for pair in itertools.permutations(different, 2) if is_correct(*pair)}
    assert found == {
        frozenset(pair)
        for pair in [
            ("-2,1", "1,-2"),
            (r"10,\!080", "10080"),
            ("120", r"120^\circ"),
            ("15", r"15\mbox{ cm}^2"),
            (r"2 \sqrt{5}", r"2\sqrt{5}"),
            ("30", r"30^\circ"),
            ("36", r"36^\circ"),
            ("36", r"\$36"),
            ("5", "x=5"),
            ("90", r"90^\circ"),
            (r"\frac14", r"\frac{1}{4}"),
        ]
    }


def test_what_humanevals_prompts_define_is_not_the_programs_to_say():
    queries = read_queries(asset("data/humaneval.jsonl"))
    zero = "def poly(xs, x): return 0.0\ndef find_zero(xs): return 0"
    same = "def encode_cyclic(s): return s\ndef decode_cyclic(s): return s"
    shift = "def encode_shift(s): return s\ndef decode_shift(s): return s"
    for number, cheat in ((32, zero), (38, same), (50, shift)):
        assert not run_tests(cheat, queries[number].tests)[0], number


@pytest.mark.parametrize(
    "name, count", [("humaneval", 164), ("mbpp", 974), ("mbpp_sanitized", 427)]
)
def test_every_reference_program_passes_its_tests(name, count):
    path = asset(f"data/{name}.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    begun = name == "humaneval"  # its prompt is the beginning of the program
    codes = [(row["prompt"] if begun else "") + row["answer"] for row in rows]
    tests = [query.tests for query in read_queries(path)]
    assert len(codes) == len(tests) == count
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(run_tests, codes, tests))
    assert [(row["id"], out) for row, out in zip(rows, outcomes) if not out[0]] == []


# These items ask for the characters of a text, the keys of a dict, and a copy; and all tests of the
# last expect True.
RIGHT = {("mbpp/565", "list"), ("mbpp/833", "list"), ("mbpp/847", "list")}
RIGHT |= {("mbpp/899", "always 1"), ("mbpp/899", "always True")}


def test_no_cheat_passes_an_items_tests():
    queries = [q for name in CODE for q in read_queries(asset(f"data/{name}.jsonl"))]
    jobs = []
    for number, query in enumerate(queries):  # all items, all cheats by turns
        made = list(cheats(query.tests))
        jobs += [(query, *made[(number + k) % len(made)]) for k in (0, len(made) // 2)]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda job: run_tests(job[2], job[0].tests)[0], jobs))
    passed = {
        (query.id, what.split(",")[0]) for (query, what, _), out in zip(jobs, outcomes) if out
    }
    assert len(jobs) > 3000 and passed <= RIGHT


def reworded(text: str, number: int) -> str:
    """The same question in other spacing, case and punctuation."""
    spaced = re.sub(r"([=+^{}$,.?-])", r" \1  ", text)
    return [spaced, spaced.upper(), re.sub(r"[.,?$]", "", text), "\t" + text.lower() + " !!"][
        number % 4
    ]


def test_no_benchmark_question_gets_into_a_training_set(tmp_path):
    benchmarks = [asset(f"data/{name}.jsonl") for name in ("math500", "aime24", "amc23")]
    questions = [q.prompt[0]["content"] for q in read_queries(benchmarks[0])]
    planted = [reworded(question, i) for i, question in enumerate(questions[::50])]
    rows = [{"prompt": question, "response": "planted here"} for question in planted]
    (tmp_path / "planted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [tmp_path / "planted.jsonl", asset("data/gsm8k_train.jsonl")]
    settings = PrepareSettings(
        sources=",".join(
            f"generic/maths:{file}" for file in [*files, asset("data/math_train.jsonl")]
        ),
        evaluation=",".join(map(str, benchmarks)),
        output_dir=str(tmp_path),
        complexity=2,
    )
    report = prepare("hft", settings)
    assert report.totals("parse")["kept"] > 14900
    kept = {prompt[0]["content"]: text for _, prompt, text in read_hft_rows(tmp_path / "hft.jsonl")}
    assert len(kept) > 13900 and not kept.keys() & {*questions, *planted}
    assert not any("planted here" in text for text in kept.values())


def test_one_run_evaluates_every_benchmark(lab_folder, tmp_path):
    sizes = {"math500": 500, "aime24": 30, "amc23": 40, "olympiadbench_oe_maths_en": 675}
    sizes |= {"gsm8k_test": 1319, "humaneval": 164, "mbpp_sanitized": 427}
    sizes |= {"mbppplus_v0.1.0": 399, "alpaca_eval": 805, "arena_hard_v2.0": 750}
    model = tmp_path / "model"
    shutil.copytree(lab_folder / "base", model)
    config = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 32_768}
    (model / "config.json").write_text(json.dumps(config))
    settings = lhrm.EvalSettings(
        model_name_or_path=str(model),
        dataset_name=",".join(str(asset(f"data/{file}.jsonl")) for file in sizes),
        output_dir=str(tmp_path),
        modes="auto,router",
        eval_num_generations=1,
        eval_max_completion_length=2,
        bf16=False,
    )
    lhrm.run_eval(settings)
    result = json.loads((tmp_path / "eval.json").read_text())
    assert {name: its["queries"] for name, its in result["by_domain"].items()} == sizes
    assert result["queries"] - result["graded"] == 805 + 750
    assert set(result["by_level"]) >= {"1", "2", "3", "4", "5"}
    assert result["auto"]["pass@1"] == 0 and result["auto"]["malformed_ratio"] == 1
    files = [name for name in settings.dataset_name.split(",") if "sanitized" not in name]
    settings.dataset_name, settings.output_dir = ",".join(files), str(tmp_path / "programs")
    settings.export = "evalplus"
    lhrm.run_eval(settings)
    lines = (tmp_path / "programs" / "evalplus.jsonl").read_text().splitlines()
    assert len(lines) == 164 + 399
    assert {"HumanEval/0", "Mbpp/2"} <= {json.loads(line)["task_id"] for line in lines}
