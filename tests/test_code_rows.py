"""data/code_rows.py: rows of programming benchmarks as they are published."""

import base64
import json
import os
import pickle
import zlib

import pytest
from conftest import needs_sandbox
from problems import FUNCTIONAL, PROBLEMS, STDIN, compressed

import lhrm
from data.cli import InputError
from data.code_rows import read_tests, unpacked
from data.judge import judge
from data.prepare import PrepareSettings, prepare
from data.rows import read_queries
from data.tokenizer import Tokenizer
from data.verify_code import run_tests
from sample import Completion

CASES = [{"input": "1", "output": "2", "testtype": "stdin"}]


@pytest.fixture
def live(tmp_path):
    """A file of LiveCodeBench's rows."""
    path = tmp_path / "livecodebench.jsonl"
    path.write_text("".join(json.dumps(problem.row) + "\n" for problem in PROBLEMS))
    return path


def test_livecodebenchs_rows_are_read_as_published(live):
    queries = read_queries(live)
    assert [q.id for q in queries] == [p.row["question_id"] for p in PROBLEMS]
    assert [q.level for q in queries] == [p.row["difficulty"] for p in PROBLEMS]
    assert {q.domain for q in queries} == {"livecodebench"}
    for query, problem in zip(queries, PROBLEMS):
        tests = json.loads(query.tests)
        assert tests["inputs"][0] == json.loads(problem.row["public_test_cases"])[0]["input"]
        assert len(tests["inputs"]) == len(tests["outputs"]) >= 4
        assert bool(tests["fn_name"]) == bool(problem.row["starter_code"])
        assert query.definite


def test_livecodebenchs_prompts_are_as_its_harness_writes_them(live):
    queries = dict(zip((p.row["question_id"] for p in PROBLEMS), read_queries(live)))
    row = STDIN[0].row
    system, user = queries[row["question_id"]].prompt
    assert system["role"] == "system" and system["content"].startswith("You are an expert Python")
    assert user["content"] == (
        f"### Question:\n{row['question_content']}\n\n### Format: Read the inputs from stdin solve "
        "the problem and write the answer to stdout (do not directly test on the sample inputs). "
        "Enclose your code within delimiters as follows. Ensure that when the python program runs, "
        "it reads the inputs, runs the algorithm and writes output to STDOUT.\n```python\n"
        "# YOUR CODE HERE\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    )
    row = FUNCTIONAL[0].row
    user = queries[row["question_id"]].prompt[1]["content"]
    assert "### Format: You will use the following starter code to write the solution" in user
    assert f"delimiters.\n```python\n{row['starter_code']}\n```\n\n### Answer: (use" in user


def test_a_range_of_dates_includes_its_ends(live):
    dates = sorted(p.row["contest_date"][:10] for p in PROBLEMS)
    first, last = dates[5], dates[20]
    wanted = [p.row["question_id"] for p in PROBLEMS if first <= p.row["contest_date"][:10] <= last]
    assert [q.id for q in read_queries(live, first, last)] == wanted
    assert len(read_queries(live, since=dates[-1])) == dates.count(dates[-1])
    assert len(read_queries(live, since=dates[-1], limit=1)) == 1  # of these, not of all rows
    assert len(read_queries(live, until=dates[0])) == dates.count(dates[0])
    with pytest.raises(InputError, match="no row has a contest_date from 2031-01-01 to 9999-12-31"):
        read_queries(live, since="2031-01-01")


def test_a_row_without_a_date_is_refused_where_dates_are_asked_for(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "1+1", "answer": "2"}) + "\n")
    with pytest.raises(InputError, match="rows.jsonl:1: contest_date: expected a date such as"):
        read_queries(path, since="2024-01-01")
    for day in ("soon", "2024-13-45"):
        with pytest.raises(InputError, match=f"--since: expected a date such as .* not '{day}'"):
            read_queries(path, since=day)


def test_compressed_tests_are_read_in_every_protocol_of_pickle():
    assert unpacked(json.dumps(CASES)) == unpacked(compressed(CASES)) == CASES
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        text = json.dumps(CASES) + " " * 70_000  # long texts have opcodes of their own
        packed = base64.b64encode(zlib.compress(pickle.dumps(text, protocol)))
        assert unpacked(packed.decode()) == CASES, protocol


class Harm:
    def __reduce__(self):
        return os.mkdir, ("made",)


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    "given",
    [
        packed(pickle.dumps(Harm())), packed(pickle.dumps(["x", Harm()])), packed(b"\x80\x04X"),
        packed(pickle.dumps(5)), packed(pickle.dumps("{")), packed(b""), "?", "AAAA",
        base64.b64encode(zlib.compress(b"no pickle")[:-3]).decode(), "[1]", "{}", "[",
        json.dumps([{"input": 1, "output": "2", "testtype": "stdin"}]),
        json.dumps([{"input": "1", "output": "2", "testtype": "functional"}]),
        json.dumps([{"input": "1"}]),
    ],
)  # fmt: skip
def test_damaged_or_hostile_tests_are_refused_and_never_run(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="row: tests by input and output: "):
        read_tests({"public_test_cases": "[]", "private_test_cases": given}, "row")
    assert not list(tmp_path.iterdir())


def test_apps_rows_are_read_as_published(tmp_path):
    path = tmp_path / "apps.jsonl"
    rows = [
        {"problem_id": 7, "question": "Add one.", "solutions": "[]", "difficulty": "interview",
         "input_output": json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]}), "starter_code": ""},
        {"problem_id": 8, "question": "Add.", "difficulty": "introductory",
         "input_output": {"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]},
         "starter_code": "def add(a, b):\n\t"},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stdin, called = read_queries(path)
    assert (
        stdin.prompt[0]["content"] == "\nQUESTION:\nAdd one.\nUse Standard Input format\nANSWER:\n"
    )
    assert stdin.id == "7" and stdin.level == "interview"
    assert json.loads(called.tests) == rows[1]["input_output"]
    for bad in ({}, {"inputs": [], "outputs": []}, {"inputs": [1], "outputs": []}, {"inputs": 1}):
        with pytest.raises(InputError, match="row: tests by input and output"):
            read_tests({"input_output": json.dumps(bad)}, "row")


@needs_sandbox
@needs_sandbox
def test_every_published_row_goes_through_prepare_and_is_judged_as_before(live, tmp_path):
    stub = "from typing import List\ndef two(): return 2\ndef add(x: List[int]) -> int:\n    ..."
    check = "def check(candidate):\n    assert candidate([1, two()]) == 3"
    human = {"prompt": stub, "entry_point": "add", "test": check}
    mbpp = {"text": "Add numbers.", "test_list": ["assert add([1, 2]) == 3"]}
    apps = {"question": "Add.", "input_output": {"inputs": ["1 2\n"], "outputs": ["3\n"]}}
    add, main = "def add(x): return {}(x)", "print({}(map(int, input().split())))"
    programs = [(add.format("sum"), add.format("max"))] * 2
    programs += [(main.format("sum"), main.format("max"))]
    programs += [(problem.right, problem.wrong) for problem in PROBLEMS]
    published = tmp_path / "published.jsonl"
    lines = "".join(json.dumps(row) + "\n" for row in (human, mbpp, apps))
    published.write_text(lines + live.read_text())
    settings = PrepareSettings(
        sources=f"generic:{published}", output_dir=str(tmp_path / "out"), near_duplicate=1
    )
    prepare("rl", settings)
    before, after = read_queries(published), read_queries(tmp_path / "out" / "rl.jsonl")
    assert [q.tests for q in after] == [q.tests for q in before]
    assert [q.prompt[-1]["content"] for q in after] == [
        q.prompt[-1]["content"].strip() for q in before
    ]
    assert {q.domain for q in after} == {"code"}
    for query, (right, wrong) in list(zip(after, programs, strict=True))[:6]:
        assert run_tests(right, query.tests)[0] and not run_tests(wrong, query.tests)[0]


def test_an_answer_to_such_a_row_is_judged_by_its_program(live, lab_folder):
    tokenizer = Tokenizer.from_pretrained(lab_folder / "base")
    by_id = {query.id: query for query in read_queries(live)}
    for problem in (STDIN[0], FUNCTIONAL[0]):
        for code, reward in ((problem.right, 1.0), (problem.wrong, 0.0)):
            text = f"<no_think>```python\n{code}\n```</no_think>"

            said = Completion(tokenizer.encode("a"), [0.0], finished=True)
            said.text = lambda tokenizer, text=text: text
            assert judge(by_id[problem.row["question_id"]], said, tokenizer).reward == reward


@needs_sandbox
def test_an_evaluation_of_livecodebench_by_date_and_its_export(live, lab_folder, tmp_path):
    settings = lhrm.EvalSettings(
        model_name_or_path=str(lab_folder / "base"), dataset_name=str(live),
        output_dir=str(tmp_path / "eval"), modes="auto", eval_num_generations=2, bf16=False,
        eval_max_completion_length=2, export="livecodebench", since="2024-06-01",
    )  # fmt: skip
    lhrm.run_eval(settings)
    wanted = [q.id for q in read_queries(live, since="2024-06-01")]
    assert 0 < len(wanted) < len(PROBLEMS)
    exported = json.loads((tmp_path / "eval" / "livecodebench.json").read_text())
    assert [row["question_id"] for row in exported] == wanted
    assert all(len(row["code_list"]) == 2 for row in exported)
    result = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert result["queries"] == result["graded"] == len(wanted)
    assert result["auto"]["pass@1"] == 0
    lines = (tmp_path / "eval" / "responses.jsonl").read_text().splitlines()
    assert max(len(json.loads(line)["query"]["tests"]) for line in lines) <= 10_000
    (tmp_path / "eval" / "livecodebench.json").unlink()
    lhrm.run_eval(settings)  # finished: its export is made anew
    assert json.loads((tmp_path / "eval" / "livecodebench.json").read_text()) == exported
