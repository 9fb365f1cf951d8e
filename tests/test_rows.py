"""data/rows.py: the response grammar, and the rows of every file."""

import gzip
import json

import pytest

from data.cli import InputError
from data.modes import format_response, parse_response
from data.rows import as_messages, final_answer, read_hft_rows, read_queries

# -------------------------------------------------------------------------------------- the grammar


@pytest.mark.parametrize("mode, thinking", [("think", "7+5=12;\n12-3=9"), ("no_think", "")])
def test_what_is_formatted_is_parsed_back(mode, thinking):
    response = parse_response(format_response(mode, thinking, "9"))
    assert response == (mode, thinking, "9", True)


def test_white_space_around_the_parts_does_not_count():
    assert parse_response("<think>\n a \n</think>\n\n 9 \n") == ("think", "a", "9", True)
    assert parse_response("<no_think> 9 </no_think>\n") == ("no_think", "", "9", True)


MALFORMED = {
    "": None,
    "9": None,
    " <think>a</think>9": None,
    "</think>9": None,
    "<think>a": "think",
    "<think>a</think>": "think",
    "<think>a</think>  ": "think",
    "<think> </think>9": "think",
    "<think>a</think>9</think>": "think",
    "<think>a<think>b</think>9": "think",
    "<think>a</think>9<no_think>9</no_think>": "think",
    "<think>a</no_think>9": "think",
    "<no_think>9": "no_think",
    "<no_think></no_think>": "no_think",
    "<no_think>9</no_think>9": "no_think",
    "<no_think>9</think>": "no_think",
    "<no_think><think>a</think>9</no_think>": "no_think",
    "<no_think>a</think>9</no_think>": "no_think",
    "<no_think>9</no_think><no_think>9</no_think>": "no_think",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_anything_else_is_malformed(text):
    assert parse_response(text) == (MALFORMED[text], "", "", False)


# ---------------------------------------------------------------------------------------- data rows


def write_lines(path, *lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_every_form_of_hft_row_is_read(tmp_path):
    text = "<think>a</think>b"
    user, assistant = {"role": "user", "content": "q"}, {"role": "assistant", "content": text}
    path = write_lines(
        tmp_path / "rows.jsonl.gz",
        {"messages": [user, assistant]},
        {"prompt": "q", "completion": text},
        {"prompt": [user], "completion": [assistant]},
        {"prompt": "q", "thinking": "a", "answer": "b", "mode": "think"},
        {"prompt": "q", "thinking": "a", "answer": "b"},
        {"prompt": "q", "answer": "b"},
    )
    rows = [(messages, response) for _, messages, response in read_hft_rows(path)]
    assert rows == [([user], text)] * 5 + [([user], "<no_think>b</no_think>")]


def test_every_form_of_query_is_read(tmp_path):
    path = write_lines(
        tmp_path / "rows.jsonl",
        {"prompt": "q", "answer": "a", "level": 3, "domain": "maths"},
        {"prompt": [{"role": "user", "content": "q"}], "answer": ["a"], "source": "s"},
        {"problem": "q", "answer": "a", "difficulty": 1},
        {"prompt": "q", "solution": "a"},
        {"prompt": "q", "reward_model": {"ground_truth": "a"}, "data_source": "x"},
    )
    queries = read_queries(path)
    assert all(q.prompt == [{"role": "user", "content": "q"}] for q in queries)
    assert all(q.answers == ["a"] for q in queries)
    assert [(q.level, q.domain) for q in queries[:3]] == [
        ("3", "maths"),
        ("", "s"),
        ("1", path.stem),
    ]


def test_a_query_without_an_answer_is_read_as_one_that_has_no_definite_one(tmp_path):
    path = write_lines(
        tmp_path / "rows.jsonl",
        {"prompt": "q"},
        {"prompt": "q", "answer": None},
        {"prompt": "q", "answer": None, "solution": "a"},
        {"prompt": "q", "tests": "assert f()"},
    )
    queries = read_queries(path)
    assert [(q.answers, q.definite) for q in queries] == [
        ([], False),
        ([], False),
        (["a"], True),
        ([], True),
    ]
    for answer in ("", [], [None]):
        with pytest.raises(InputError, match=":1: expected an answer"):
            read_queries(write_lines(tmp_path / "rows.jsonl", {"prompt": "q", "answer": answer}))


def test_several_files_are_one_set_of_queries_each_a_domain(tmp_path):
    for name in ("amc23", "aime24"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n')
    queries = read_queries(f"{tmp_path}/amc23.jsonl,{tmp_path}/aime24.jsonl")
    assert [query.domain for query in queries] == ["amc23", "aime24"]


def test_a_limit_is_of_the_rows_of_each_file(tmp_path):
    for name in "ab":
        rows = [{"prompt": f"{name}{i}", "answer": "2"} for i in range(3)]
        write_lines(tmp_path / f"{name}.jsonl", *rows)
    paths = f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"
    asked = [query.prompt[0]["content"] for query in read_queries(paths, limit=2)]
    assert asked == ["a0", "a1", "b0", "b1"] and len(read_queries(paths, limit=9)) == 6


def test_published_rows_of_benchmarks_are_read_as_they_are(tmp_path):
    check = "def check(candidate):\n    assert candidate(1) == 2"
    path = write_lines(
        tmp_path / "rows.jsonl",
        {"task_id": "HumanEval/0", "prompt": "def f(x):\n", "test": check, "entry_point": "f"},
        {"task_id": 2, "text": "Add one.", "code": "def f", "test_list": ["assert f(1) == 2"]},
        {"question": "3+4?", "answer": "We add <<3+4=7>>7.\n#### 7"},
        {"instruction": "Sing.", "dataset": "vicuna", "output": "La"},
        {"uid": "x", "prompt": "Sing."},
    )
    queries = read_queries(path)
    assert [q.id for q in queries] == ["HumanEval/0", "2", "", "", "x"]
    assert [bool(q.tests) for q in queries] == [True, True, False, False, False]
    assert queries[0].tests.endswith("check(f)") and queries[1].tests == "assert f(1) == 2"
    assert [q.answers for q in queries] == [[], [], ["7"], [], []]
    human, mbpp, gsm8k = (q.prompt[0]["content"] for q in queries[:3])
    assert human.startswith("Please provide a self") and human.endswith("\n```\ndef f(x):\n```\n")
    # The first of MBPP's tests names the function.
    assert mbpp.endswith('block:\n```\n"""\nAdd one.\nassert f(1) == 2\n"""\n```\n')
    assert gsm8k == "3+4?"
    assert queries[3].dataset == "vicuna"


def test_only_gsm8ks_answers_come_after_a_mark():
    assert final_answer("We add.\n#### 1,000") == "1,000"
    for text in ("42", "#### 42", "One\n#### Two\nthree", ""):
        assert final_answer(text) == text


def test_functions_as_pytest_calls_them_are_called(tmp_path):
    tests = "from solution import add\n\ndef test_add():\n    assert add(1, 2) == 3\n"
    (query,) = read_queries(write_lines(tmp_path / "rows.jsonl", {"prompt": "q", "test": tests}))
    assert query.tests.endswith("\ntest_add()")
    parts = "def check(x): return x\ndef test_b(): assert check(f(1))\ndef test_a(): assert f(2)\n"
    row = {"prompt": "q", "test": parts, "entry_point": "f"}
    (query,) = read_queries(write_lines(tmp_path / "rows.jsonl", row))
    assert query.tests == f"{parts}\ntest_b()\ntest_a()"  # in their order; check is a helper's name


@pytest.mark.parametrize(
    "row, message",
    [
        ({"tests": '{"inputs": ["1"]}'}, "no 'outputs'"),
        ({"tests": '{"inputs": ["1", '}, "by input and output"),
        ({"tests": {"fn_name": "f", "inputs": [1], "outputs": [2]}}, "arguments are no list"),
        ({"tests": {"fn_name": "f", "inputs": ["'a'"], "outputs": ["2"]}}, "by input and output"),
        ({"tests": {"fn_name": "f", "inputs": ["1"], "outputs": ["True"]}}, "by input and output"),
        ({"tests": "assert True"}, "nothing of the program's"),
        ({"test": "no", "answer": "2"}, "test nothing"),
        ({"tests": "import unittest\nif __name__ == '__main__':\n    main()"}, "test nothing"),
        ({"tests": "assert ("}, "not Python"),
        ({"tests": "(" * 10_000}, "not Python"),
        ({"tests": "def g(a, a): pass\nassert f(1)"}, "not Python"),
        ({"tests": f"assert f(1) == {'+'.join('1' * 2000)}"}, "nested too deeply|not Python"),
        ({"tests": "import numpy as np\nassert np.allclose(f(1), 2)"}, "the tests import numpy"),
        ({"tests": "def test_f(tmp_path):\n    assert f(1)\nassert f(2)"}, "test_f can only"),
        ({"tests": "async def test_f():\n    assert f(1)\nassert f(2)"}, "test_f can only"),
        ({"tests": "class TestF:\n    def test_f(self): pass\nassert f(2)"}, "TestF can only"),
        ({"tests": "def check(f):\n    assert f(1)"}, "entry_point"),
        ({"tests": "def check(f):\n    assert f(1)", "entry_point": "class"}, "entry_point"),
        ({"tests": "def check(f):\n    assert f(1)", "entry_point": "S().add"}, "entry_point"),
    ],
)
def test_tests_that_every_program_or_none_would_pass_are_refused(row, message, tmp_path):
    with pytest.raises(InputError, match=f":1: .*{message}"):
        read_queries(write_lines(tmp_path / "rows.jsonl", {"prompt": "q", **row}))


def test_tests_under_a_guard_are_tests(tmp_path):
    tests = "from solution import f\ndef run():\n    assert f(1)\nif __name__ == '__main__': run()"
    (query,) = read_queries(write_lines(tmp_path / "rows.jsonl", {"prompt": "q", "test": tests}))
    assert query.tests == tests


def test_alpacas_text_is_not_its_prompt_but_its_input_belongs_to_it(tmp_path):
    row = {"instruction": "Translate.", "input": "Bonjour", "output": "Hi", "text": "all of it"}
    rows = [row, {"prompt": " ", "question": "Why?", "id": None, "task_id": "x"}]
    queries = read_queries(write_lines(tmp_path / "rows.jsonl", *rows))
    assert [q.prompt[0]["content"] for q in queries] == ["Translate.\nBonjour", "Why?"]
    assert queries[1].id == "x"


@pytest.mark.parametrize(
    "prompt", ["-" * 100_000 + "1", "a" + ".b" * 50_000, [{"role": "user", "content": "f?"}], "Add"]
)
def test_tests_of_a_prompt_that_is_no_program_stand_alone(prompt, tmp_path):
    tests = "def check(f):\n    assert f(1) == 2\ncheck(f)"
    row = {"prompt": prompt, "tests": tests, "entry_point": "f"}
    assert read_queries(write_lines(tmp_path / "rows.jsonl", row))[0].tests == tests


def test_a_file_always_has_a_name_as_a_domain_and_must_have_one_to_be_read(tmp_path):
    path = write_lines(tmp_path / ".hidden.jsonl", {"prompt": "q", "answer": "a"})
    assert read_queries(path)[0].domain == ".hidden"
    with pytest.raises(InputError, match="name is empty"):
        read_queries(f"{path},")


def test_a_level_is_a_text_or_a_number(tmp_path):
    with pytest.raises(InputError, match=":1: level"):
        read_queries(write_lines(tmp_path / "rows.jsonl", {**GOOD, "level": [1]}))


GOOD = {"prompt": "q", "answer": "a"}
BAD_ROWS = {
    "empty": ("", "empty row"),
    "not JSON": ("{", "not JSON"),
    "no object": ("[1]", "expected a JSON object"),
    "no prompt": ({"answer": "a"}, "expected a prompt"),
    "blank prompt": ({"prompt": "  ", "answer": "a"}, "not empty"),
    "no messages": ({"prompt": [], "answer": "a"}, "expected a prompt"),
    "odd message": ({"prompt": [7], "answer": "a"}, "a message needs"),
    "blank answer": ({"prompt": "q", "answer": ""}, "answer"),
    "answer no text": ({"prompt": "q", "answer": 5}, "expected a"),
    "half a character": ('{"prompt": "\\ud800", "answer": "a"}', "not JSON"),
    "too deep": ("[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
@pytest.mark.parametrize("read", [read_hft_rows, read_queries])
def test_a_bad_row_is_refused_with_its_file_and_line(case, read, tmp_path):
    row, message = BAD_ROWS[case]
    path = write_lines(tmp_path / "rows.jsonl", GOOD, row, GOOD)
    with pytest.raises(InputError) as error:
        list(read(path))
    assert f"{path}:2: " in str(error.value) and message in str(error.value)


def test_a_row_that_is_none_for_hft_is_told_which_fields_one_has(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "q", "response": "a"})
    with pytest.raises(InputError, match="expected a completion, .* this row has prompt, response"):
        list(read_hft_rows(path))


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", GOOD, GOOD)
    path.write_bytes(path.read_bytes() + b'{"prompt": "\xff", "answer": "a"}\n')
    with pytest.raises(InputError, match=":3: not JSON: 'utf-8'"):
        list(read_queries(path))


@pytest.mark.parametrize(
    "row",
    [{}, {"completion": "b"}, {"completion": "<think>b"}, {"thinking": "<think>", "answer": "b"},
     {"mode": "think", "answer": "b"}, {"mode": "maybe", "answer": "b"},
     {"mode": "think", "thinking": None, "answer": "b"}, {"thinking": ["a"], "answer": "b"},
     {"mode": "no_think", "thinking": "a", "answer": "b"},
     {"completion": [{"role": "user", "content": "<no_think>b</no_think>"}]},
     {"completion": [{"role": "assistant", "content": "<no_think>b</no_think>"}] * 2}],
)  # fmt: skip
def test_an_hft_response_outside_the_grammar_is_refused(row, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "q", **row})
    with pytest.raises(InputError, match=":1: "):
        list(read_hft_rows(path))


@pytest.mark.parametrize("content", [None, b"", b"\xff\n"])
def test_a_file_that_cannot_be_read_is_refused(content, tmp_path):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="rows.jsonl"):
        read_queries(path)


def test_of_a_message_only_role_and_content_are_kept():
    given = [{"role": "user", "content": "?", "timestamp": object(), "name": "ada"}]
    assert as_messages(given, "") == [{"role": "user", "content": "?"}]
