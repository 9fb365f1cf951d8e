"""data/sources.py: one row of each public set, as it is published, and rows that cannot be used."""

import contextlib
import time

import pytest

from data.cli import InputError
from data.rows import read_rows
from data.sources import OASST, RECIPES, Skip, split_trace

R1 = "<think>\n6 times 7\n</think>\n\nIt is \\boxed{42}."
READ = ("6 times 7", "It is \\boxed{42}.")


def chat(question, answer, role="role", content="content", names=("user", "assistant")):
    return [{role: names[0], content: question}, {role: names[1], content: answer}]


SHAREGPT = {"role": "from", "content": "value", "names": ("human", "gpt")}
OPENR1 = {
    "problem": "6·7?",
    "answer": "42",
    "generations": ["<think>a</think>41", "cut", R1],
    "correctness_math_verify": [False, True, True],
    "correctness_llama": None,
    "is_reasoning_complete": [True, False, True],
}
SKY = (
    "<|begin_of_thought|>\n6 times 7\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\nIt is \\boxed{42}.\n<|end_of_solution|>"
)
OPENTHOUGHTS = {
    "system": "Think.",
    "conversations": chat(
        "Return your final response within \\boxed{}. 6·7?", SKY, "from", "value"
    ),
}
METADATA = {
    "problem": "6·7?",
    "deepseek_reasoning": "6 times 7",
    "deepseek_solution": READ[1],
    "domain": "math",
}
WILDCHAT = {
    "conversation": [*chat("6·7?", "42"), *chat("Sure?", "Yes")],
    "language": "English",
    "toxic": False,
    "redacted": False,
}
THOUGHT = {  # recipe, row: domain, final answers, verdict
    "synthetic_1": (
        {"messages": chat("6·7?", R1), "score": 1.0, "task_type": "verifiable_math"},
        ("maths", [], True),
    ),
    "openr1_math": (OPENR1, ("maths", ["42"], True)),
    "openthoughts": (OPENTHOUGHTS, ("maths", [], True)),
    "aops": ({"problem": "6·7?", "answer": "42", "generation": R1}, ("maths", ["42"], None)),
    "aime": ({"Question": "6·7?", "Answer": 42, "response": R1}, ("maths", ["42"], None)),
    "codeforces": ({"messages": chat("6·7?", R1)}, ("code", [], None)),
    "kodcode": (
        {"conversations": chat("6·7?", R1, **SHAREGPT), "r1_correctness": "True"},
        ("code", [], True),
    ),
    "generic": ({"question": "6·7?", "output": R1, "answer": "42"}, ("general", ["42"], None)),
}
GSM8K = {
    "question": "6·7·100?",
    "answer": "First 6·7 = <<6*7=42>>42.\nThat makes $<<42*100=4200>>4,200 in all.\n#### 4200",
}


@pytest.mark.parametrize("name", THOUGHT)
def test_a_thinking_row_of_each_set_is_read(name):
    row, (domain, gold, verdict) = THOUGHT[name]
    example = RECIPES[name](row)
    assert example.prompt == [{"role": "user", "content": "6·7?"}]
    assert (example.thinking, example.answer) == READ
    assert (example.domain, example.gold, example.verified) == (domain, gold, verdict)


def test_gsm8ks_worked_solution_is_the_trace_and_ends_in_the_answer():
    example = RECIPES["gsm8k"](GSM8K)
    assert example.thinking == "First 6·7 = 42.\nThat makes $4,200 in all."
    assert (example.answer, example.gold) == ("The answer is 4200.", ["4200"])
    assert (example.prompt[0]["content"], example.domain) == ("6·7·100?", "maths")
    for answer in ("42", "It is 42.\n####", "It is 42.\nNo: 43.\n#### 42"):
        with pytest.raises(Skip):
            RECIPES["gsm8k"]({**GSM8K, "answer": answer})


def test_a_quarter_of_gsm8k_hybrid_is_answered_at_once_the_rest_as_in_gsm8k():
    rows = [{**GSM8K, "question": f"{n}·7·100?"} for n in range(400)]
    examples = [RECIPES["gsm8k_hybrid"](row) for row in rows]
    at_once = [example for example in examples if not example.thinking]
    assert 70 < len(at_once) < 130
    assert {example.thinking for example in examples} == {"", RECIPES["gsm8k"](GSM8K).thinking}
    assert {example.answer for example in examples} == {"The answer is 4200."}


def test_a_later_generation_is_taken_where_the_first_is_empty_or_wrong():
    texts = ["<think>a</think>", "<think>a</think>41", R1]
    row = {**OPENR1, "generations": texts, "is_reasoning_complete": [True] * 3}
    for name in ("correctness_math_verify", "correctness_llama"):
        row |= {"correctness_math_verify": None, "correctness_llama": None, name: [True] * 3}
        assert RECIPES["openr1_math"](row).answer == READ[1]


def test_our_own_hft_rows_are_read_back():
    example = RECIPES["generic"]({"prompt": "q", "completion": "<no_think>a</no_think>"})
    assert (example.thinking, example.answer) == ("", "a")


def test_an_answer_alone_cannot_vouch_for_itself():
    example = RECIPES["generic"]({"prompt": "q", "thinking": "t", "answer": "a"})
    assert (example.answer, example.gold, example.stated) == ("a", ["a"], True)


def test_an_unknown_domain_is_other():
    assert RECIPES["generic"]({"prompt": "q", "answer": "a", "domain": "law"}).domain == "other"


def test_openthoughts_metadata_names_the_domain():
    example = RECIPES["openthoughts"](METADATA)
    assert (example.thinking, example.answer, example.domain) == (*READ, "maths")
    assert RECIPES["openthoughts"]({**METADATA, "domain": "biology"}).domain == "other"


ANSWERED = {
    "wildchat": (WILDCHAT, "42"),
    "generic": ({"instruction": "6·7?", "input": "", "output": "42"}, "42"),
    "alpaca": ({"instruction": "6·7?", "input": "", "output": "42", "text": "all"}, "42"),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_a_row_that_was_answered_at_once_is_read(name):
    row, answer = ANSWERED[name]
    example = RECIPES[name](row)
    assert example.prompt == [{"role": "user", "content": "6·7?"}]
    assert (example.thinking, example.answer, example.domain) == ("", answer, "general")


def test_oasst_gives_a_first_question_its_best_answer_in_english():
    def message(name, parent, text, **changes):
        row = {"message_id": name, "parent_id": parent, "text": text, "message_tree_id": "t"}
        return row | {"lang": "en", "deleted": False, "rank": None} | changes

    recipe, read, reasons = OASST(), [], []
    for row in (
        message("t", None, "6·7?"),
        message("a", "t", "42", rank=0),
        message("b", "t", "41", rank=1),
        message("c", "a", "Sure?"),
        message("u", None, "¿6·7?", lang="es", message_tree_id="u"),
        message("d", "t", "of a tree that is over", rank=0, message_tree_id="u"),
    ):
        try:
            read.append(recipe(row))
        except Skip as skip:
            reasons.append(str(skip)[:10])
    assert [(e.prompt[0]["content"], e.answer) for e in read] == [("6·7?", "42")]
    assert reasons == ["a question", "not the be", "a later tu", "not in Eng", "a later tu"]


def test_rl_sets_are_questions_with_or_without_a_final_answer():
    example = RECIPES["deepscaler"]({"problem": "6·7?", "answer": "42", "difficulty": 5.0})
    assert (example.gold, example.answer, example.level) == (["42"], "", "5.0")
    for row in ({"messages": chat("Hello?", "Hi")}, {"prompt": "Hello?"}):
        example = RECIPES["tulu_3"](row)
        assert (example.prompt[-1]["content"], example.gold, example.answer) == ("Hello?", [], "")


UNUSABLE = [
    (
        "openr1_math",
        {**OPENR1, "correctness_math_verify": [False] * 3},
        "whole and right",
    ),
    ("openr1_math", {**OPENR1, "problem": " "}, "no prompt"),
    ("synthetic_1", {"messages": chat("6·7?", "42")}, "no thinking trace"),
    ("synthetic_1", {"messages": chat("6·7?", "<think> </think>42")}, "empty"),
    ("synthetic_1", {"messages": [{"role": "user", "content": "6·7?"}]}, "no answer"),
    ("synthetic_1", {"messages": [7]}, "not a conversation"),
    ("synthetic_1", {}, "no answer"),
    ("wildchat", {**WILDCHAT, "language": "French"}, "not in English"),
    ("wildchat", {**WILDCHAT, "toxic": True}, "toxic"),
    ("deepscaler", {"problem": "6·7?", "answer": ""}, "no answer"),
    ("tulu_3", {"prompt": [{"role": "system", "content": "Be kind."}]}, "no prompt"),
    ("generic", {"prompt": "6·7?", "tests": [7]}, "tests are texts"),
    ("generic", {"prompt": {"a": 1}}, "no prompt"),
    ("generic", {"prompt": "6·7?", "response": "42", "mode": "think"}, "it has no thinking"),
]


@pytest.mark.parametrize("name, row, reason", UNUSABLE)
def test_a_row_that_cannot_be_used_is_skipped_with_the_reason(name, row, reason):
    with pytest.raises(Skip, match=reason):
        RECIPES[name](row)


def test_r1s_opening_tag_may_have_been_part_of_the_prompt():
    assert split_trace("6 times 7\n</think>\nIt is \\boxed{42}.") == READ


def test_a_tag_that_is_only_mentioned_is_no_trace():
    example = RECIPES["generic"]({"prompt": "q", "response": "Use `</think>` to close it."})
    assert (example.thinking, example.answer) == ("", "Use `</think>` to close it.")


def test_a_response_with_headings_stays_whole():
    text = "Intro.\n\n#### Dough\nMix.\n#### Bake"
    assert RECIPES["generic"]({"prompt": "q", "answer": text}).answer == text


@pytest.mark.parametrize("text", [" " * 10**6, "\n" * 10**6, SKY + " " * 10**6 + "z"])
def test_a_long_blank_is_read_in_no_time(text):
    began = time.perf_counter()
    with contextlib.suppress(Skip):
        split_trace(text)
    assert time.perf_counter() - began < 1


def test_a_row_keeps_everything_but_line_ends_of_other_systems():
    example = RECIPES["generic"]({"prompt": " a\r\n  b\t", "response": "c"})
    assert example.prompt[0]["content"] == "a\n  b"


def test_parquet_is_read_where_pyarrow_is_installed(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    rows = [{"prompt": "6·7?", "scores": [1, 2]}, {"prompt": "Hello?", "scores": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert [row for _, row in read_rows(tmp_path / "rows.parquet")] == rows
    late = pyarrow.table({"prompt": ["?"], "day": pyarrow.array([3 * 10**6], pyarrow.date32())})
    parquet.write_table(late, tmp_path / "late.parquet")
    with pytest.raises(InputError, match="late.parquet:1: "):  # Python knows no such day
        list(read_rows(tmp_path / "late.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="bad.parquet"):
        list(read_rows(tmp_path / "bad.parquet"))


def test_our_own_hft_rows_are_read_also_where_the_completion_is_a_list_of_one_message():
    said = [{"role": "assistant", "content": "<no_think>4</no_think>"}]
    example = RECIPES["generic"]({"prompt": "2+2?", "completion": said})
    assert (example.thinking, example.answer) == ("", "4")


@pytest.mark.parametrize("field", ["messages", "completion"])
def test_the_thinking_that_stands_beside_the_content_of_the_last_message_is_its_trace(field):
    said = [
        {"role": "assistant", "content": "4", "reasoning_content": "2+2 is 4.", "thinking": None}
    ]
    asked = [{"role": "user", "content": "2+2?"}] if field == "messages" else []
    example = RECIPES["generic"]({"prompt": "2+2?", "thinking": None, field: asked + said})
    assert (example.thinking, example.answer) == ("2+2 is 4.", "4")


def test_alpacas_words_for_no_input_and_no_output_are_none():
    row = {"instruction": "Say hi.", "input": "<noinput>", "output": "Hi."}
    assert RECIPES["alpaca"](row).prompt[0]["content"] == "Say hi."
    with pytest.raises(Skip):
        RECIPES["alpaca"]({**row, "output": "No output."})
