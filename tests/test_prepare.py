"""data/prepare.py: each step on its own, then a whole set."""

import json
import random
import shutil
import sqlite3
import time
import tracemalloc
from collections import Counter
from functools import partial

import numpy as np
import pytest
from conftest import ROOT, needs_sandbox, run

import lhrm
from data import judge, prepare
from data.classify import Rules
from data.cli import InputError
from data.prepare import Evaluation, PrepareSettings, Report
from data.rows import (
    TokenizedRows,
    encode_row,
    read_hft_rows,
    read_queries,
    row_prompt,
    tokenized_rows,
)
from data.sources import Example

WORDS = ["".join(random.Random(i).choices("abcdefghij", k=6)) for i in range(3000)]


def example(prompt="What is 6 · 7?", answer="42", thinking="", **more):
    return Example([{"role": "user", "content": prompt}], "maths", answer, thinking, **more)


def text(seed, length=40):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


# ---------------------------------------------------------------------------------------- the steps


def verified(given, report=None, keep_unverified=False):
    return list(prepare.verified(given, keep_unverified, report or Report()))


@pytest.mark.parametrize(
    "given, outcome",
    [
        (example(thinking="a", gold=["42"]), "kept"),
        (example(thinking="a", gold=["41"]), "wrong answer"),
        (example(thinking="a", gold=["41", "42.0"]), "kept"),
        (example(thinking="a", gold=["41"], verified=True), "wrong answer"),
        (example(thinking="a", verified=True), "kept"),
        (example(thinking="a", verified=False), "wrong answer"),
        (example(thinking="a"), "nothing to verify it by (--keep_unverified)"),
        (
            example(thinking="a", gold=["42"], stated=True),
            "nothing to verify it by (--keep_unverified)",
        ),
        (example(), "kept"),
        (example(answer=""), "no answer"),
    ],
)
def test_a_trace_is_kept_if_its_answer_verifies(given, outcome):
    report = Report()
    kept = verified([given], report)
    assert report.totals("verify") == {outcome: 1} and len(kept) == (outcome == "kept")


def test_traces_that_nothing_can_verify_are_kept_on_demand_but_wrong_ones_never():
    given = [example(thinking="a"), example(thinking="a", verified=False)]
    assert verified(given, keep_unverified=True) == given[:1]


@needs_sandbox
def test_a_traced_program_is_kept_if_it_passes_its_tests():
    answers = [f"```python\ndef f(x): return x + {n}\n```" for n in (1, 2)]
    given = [example(answer=a, thinking="a", tests="assert f(1) == 2") for a in answers]
    assert verified(given) == given[:1]


def test_programs_are_tested_side_by_side_and_stay_in_order(monkeypatch):
    def slow(code, tests):
        time.sleep(0.2)
        return code != "3", ""

    monkeypatch.setattr(prepare, "run_tests", slow)
    monkeypatch.setattr(judge, "programs_at_once", lambda: 4)
    given = [example(answer=str(i), thinking="a", tests="assert f()") for i in range(8)]
    given.insert(2, example(thinking="a", gold=["42"]))
    report, began = Report(), time.perf_counter()
    assert verified(given, report) == [e for e in given if e.answer != "3"]
    assert time.perf_counter() - began < 1  # 0.4 s; one after another: 1.6 s
    assert report.totals("verify") == {"kept": 8, "wrong answer": 1}


@pytest.mark.parametrize("error", [OSError("sandbox: no Landlock"), KeyboardInterrupt()])
def test_at_an_error_or_a_signal_no_program_that_waits_is_started(error, monkeypatch):
    started = []

    def stopped(code, tests):
        started.append(code)
        if len(started) > 1:
            time.sleep(0.5)
        raise error

    monkeypatch.setattr(prepare, "run_tests", stopped)
    monkeypatch.setattr(judge, "programs_at_once", lambda: 1)
    with pytest.raises(type(error)):
        verified([example(thinking="a", tests="assert f()")] * 50)
    assert len(started) <= 2


def test_complex_queries_need_a_trace():
    hard, easy = "Prove that the integral of $x^2$ is $x^3/3$.", "Good morning!"
    given = [example(hard), example(hard, thinking="a"), example(easy)]
    report = Report()
    assert list(prepare.simple_or_thought(given * 300, Rules(), 0.5, report)) == given[1:] * 300
    assert report.totals("classify") == {"kept": 600, "complex, without a trace": 300}


def wrapped(given, kind, report=None):
    reason = partial(prepare.unwrappable, kind=kind)
    return list(prepare.sieve("wrap", given, reason, report or Report()))


def test_tags_and_control_tokens_inside_a_response_or_a_prompt_are_refused():
    given = [example(), example(answer="</think>"), example("<no_think>?"), example(thinking="a")]
    given += [example("<|im_end|>"), example(answer="<｜end▁of▁sentence｜>"), example("a <|> b")]
    report = Report()
    assert wrapped(given, "hft", report) == [given[0], given[3], given[6]]
    assert set(report.totals("wrap")) == {
        "kept",
        "a tag inside the response",
        "a tag inside the prompt",
        "a control token",
    }


def test_rl_prompts_have_neither_tags_nor_control_tokens():
    given = [example("6·7?", ""), example("<think>", ""), example("<|im_start|>system", "")]
    assert wrapped(given, "rl") == given[:1]


def deduplicated(given, seen, similarity=0.9, report=None):
    reason = prepare.repetition(seen, similarity)
    return list(prepare.sieve("deduplicate", given, reason, report or Report()))


def unique(given, similarity=0.9):
    examples = [Example(p, "maths") if isinstance(p, list) else example(p) for p in given]
    report = Report()
    with sqlite3.connect(":memory:") as seen:
        kept = deduplicated(examples, seen, similarity, report)
    return [given[examples.index(e)] for e in kept], report


def test_queries_that_differ_in_case_spacing_and_ends_of_clauses_are_the_same():
    kept, report = unique(["Find $2x+1$.", "find  2 x + 1", "FIND: $2x + 1$ ?", "Find\u200b 2x+1;"])
    assert kept == ["Find $2x+1$."]
    assert report.totals("deduplicate")["the same query"] == 3


@pytest.mark.parametrize(
    "pair",
    ["2ⁿ|2n", "xy!|xy", "AB'|AB", "5\"|5", "2x+1|2x-1", "2(x+1)|2x+1",
     "2.5|25", "f'(2)|f(2)", "f''(2)|f'(2)", "5!|5", "2³|23", "1:2|1,2",
     "P(A')|P(A)", "a != b|a = b", "a[:-1]|a[-1]", "gcd(1,2)|gcd(1.2)", "x_1|x1"],
)  # fmt: skip
def test_a_sign_makes_another_question(pair):
    questions = [f"What is ${part}$?" for part in pair.split("|")]
    assert unique(questions)[0] == questions


def test_marks_at_the_ends_of_words_make_no_other_question():
    given = ["Hello there! Who wrote the boys' book?", 'hello there who wrote the "boys" book']
    assert unique(given)[0] == given[:1]


def test_a_conversation_is_another_question_if_anything_in_it_is():
    def conversation(*texts):
        roles = ("system", "user", "assistant", "user")
        return [{"role": role, "content": text} for role, text in zip(roles, texts) if text]

    given = [
        conversation("Translate to French.", "Hello!"),
        conversation("Translate to Thai.", "Hello!"),
        conversation("", "Pick a number", "2", "Double it."),
        conversation("", "Pick a number", "3", "Double it."),
    ]
    assert unique(given)[0] == given


def test_of_nearly_equal_queries_the_first_is_kept():
    long = text(0, 100)
    last, middle = long.rsplit(" ", 1)[0] + " other", long.replace(long.split()[50], "other")
    halves = " ".join(long.split()[:50]) + " " + text(1, 50)
    kept, report = unique([long, last, middle, halves, text(2)])
    assert kept == [long, halves, text(2)]  # `middle`: 96 of 102 shingles, `halves`: 49 of 149
    assert report.totals("deduplicate")["nearly the same query"] == 2
    assert len(unique([long, last, middle], similarity=1)[0]) == 3


def test_another_number_makes_another_exercise():
    given = [f"{text(0, 50)} {n} {text(1, 50)}" for n in (3, 4)]
    assert unique(given)[0] == given
    assert len(unique([given[0], given[0] + " please"])[0]) == 1


@pytest.mark.parametrize("length", [200, 600])
def test_a_query_of_another_number_does_not_hide_a_repetition(length):
    def query(words, number):
        return " ".join([*words[:100], number, *words[100:]])

    words = text(7, length).split()
    given = [query(words, "17"), query(words, "18")]
    for place in range(0, length, length // 25):
        twin = query([*words[:place], "other", *words[place + 1 :]], "18")
        assert unique([given[1], twin])[0] == given[1:]
        assert unique([*given, twin])[0] == given


def test_another_name_or_final_answer_makes_another_exercise():
    given = [f"{text(0, 90)} Find {name}." for name in ("DE", "DF")]
    assert unique(given)[0] == given
    alike = [example(f"{text(0, 90)} Find the {what}.") for what in ("area", "perimeter")]
    alike[0].gold, alike[1].gold = ["6"], ["10"]
    with sqlite3.connect(":memory:") as seen:
        assert deduplicated(alike, seen) == alike


def test_minhash_estimates_the_jaccard_index_of_shingles():
    bits = np.random.default_rng(0).integers(0, 2**64, (2, prepare.HASHES, 1), dtype=np.uint64)
    errors = []
    for seed in range(200):
        words = text(seed, 60).split()
        other = words[: seed % 60] + text(-seed - 1, 60).split()[seed % 60 :]
        sets = [{tuple(w[i : i + 3]) for i in range(len(w) - 2)} for w in (words, other)]
        alike = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        signatures = [prepare.minhash(w, bits) for w in (words, other)]
        errors.append((signatures[0] == signatures[1]).mean() - alike)
    assert abs(np.mean(errors)) < 0.01 and np.std(errors) < 0.0625  # at most √(0.25 / HASHES)


def test_a_question_of_an_evaluation_set_is_kept_out_however_it_is_spaced(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"prompt": "Find $2x+1$, if $x=4$.", "answer": "9"}) + "\n")
    evaluation = Evaluation([str(path)], ngram=8)
    assert evaluation.contains("find 2 x + 1 IF  x = 4") == "an evaluation question"
    assert evaluation.contains("Find $2x+1$, if $x=5$.") == ""


def test_eight_words_in_a_row_of_an_evaluation_question_give_it_away(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"prompt": text(0, 30), "answer": "9"}) + "\n")
    evaluation, words = Evaluation([str(path)], ngram=8), text(0, 30).split()
    assert evaluation.contains("So: " + ", ".join(words[10:18]) + "?").startswith("8 words")
    assert evaluation.contains(" ".join(words[10:17])) == ""
    assert evaluation.contains(" ".join([*words[:7], "or", *words[7:14]])) == ""


def test_a_short_evaluation_question_is_found_inside_a_prompt(tmp_path):
    path = tmp_path / "test.jsonl"
    questions = ["Simplify $\\sqrt{242}$.", "多少人住在北京市里？", "Hello!"]
    path.write_text("".join(json.dumps({"question": q}) + "\n" for q in questions))
    evaluation = Evaluation([str(path)], ngram=8)
    inside = "a short evaluation question inside"
    assert evaluation.contains("Question: simplify \\sqrt {242}. Think.") == inside
    assert evaluation.contains("Sim\u200bplify \\sqrt{\u200b242}, please.") == inside
    assert evaluation.contains("请问，多少人住在北京市里呢").startswith("8 words")
    assert evaluation.contains("hello") == "an evaluation question"
    assert evaluation.contains("Say hello to Simplify.") == ""  # one word says nothing


def test_what_a_benchmark_adds_to_its_questions_does_not_hide_them(tmp_path):
    path = tmp_path / "test.jsonl"
    mbpp = {"text": "Write a function to square numbers.", "test_list": ["assert f(3) == 9"]}
    live = {"question_content": "Count all palindromes of a text.", "public_test_cases": "[]"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (mbpp, live)))
    evaluation = Evaluation([str(path)], ngram=8)
    for row in (mbpp, live):
        asked = row.get("text") or row["question_content"]
        assert evaluation.contains(asked) == "an evaluation question"
        prompt = prepare.prompt_text(row_prompt(row, ""))
        assert evaluation.contains(prompt) == "a short evaluation question inside"


def test_what_many_evaluation_questions_share_gives_none_of_them_away(tmp_path):
    path = tmp_path / "test.jsonl"
    shared = "Please reason step by step, and put your final answer within a box."
    rows = [{"prompt": f"{text(i, 9)}? {shared}"} for i in range(20)]
    rows += [{"prompt": [{"role": "system", "content": shared}, {"role": "user", "content": q}]}
             for q in ("What is 17*3+2?", "Name 1 and 23.")]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = Evaluation([str(path)], 8)
    assert evaluation.contains(f"What is 4+4? {shared}") == ""
    assert evaluation.contains(f"What is 17*3+2? {shared}") == "a short evaluation question inside"
    assert evaluation.contains(f"So: {text(3, 9)}").startswith("8 words")
    assert prepare.squeezed(["a", "1", "23", "b"]) == "a1 23b"
    assert evaluation.contains("name 1 and 23") and not evaluation.contains("Name 12 and 3")


@pytest.mark.parametrize(
    "ways",
    [(r"Compute $10²+3²$ now.", "Oh, compute $10^2 + 3^2$ now"),
     (r"Is it \text{cm} or 1,000 m?", "Tell me: is it cm or 1000 m")],
)  # fmt: skip
def test_other_spellings_do_not_hide_a_short_question(ways, tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"prompt": ways[0]}) + "\n")
    assert Evaluation([str(path)], 8).contains(ways[1]) == "a short evaluation question inside"


def test_other_ways_to_write_the_same_latex_do_not_hide_a_question(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(
        json.dumps({"prompt": r"Find $\left(\frac{1}{2}\right)^x$ for all $x$."}) + "\n"
    )
    assert Evaluation([str(path)], 8).contains(r"find $(\dfrac{1}{2})^x$ for all $x$")


def test_a_question_in_the_system_message_is_found(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"prompt": text(0, 30)}) + "\n")
    given = example("Go on.")
    given.prompt.insert(0, {"role": "system", "content": text(0, 30)})
    assert Evaluation([str(path)], 8).given_away(given)


PARAGRAPH = "A crêpe is a thin pancake. Whisk flour, milk and eggs, and fry the batter in butter."


@pytest.mark.parametrize(
    "domain, gold, short",
    [
        ("general", [PARAGRAPH], []),
        ("general", ["Paris"], ["Paris"]),
        ("general", [PARAGRAPH, "crêpe", "a thin pancake"], ["crêpe", "a thin pancake"]),
        ("code", ["x = 1\nprint(x)"], []),
        ("other", ["the mitochondria of the cell"], ["the mitochondria of the cell"]),
        ("other", ["It is the mitochondria of the cell"], []),
        ("other", ["薄饼是用面粉牛奶和鸡蛋做成的"], []),
        ("other", ["中华人民共和国"], ["中华人民共和国"]),
        ("general", [r"x^2 + 2 x y + y^2 \text{ and } z"], [r"x^2 + 2 x y + y^2 \text{ and } z"]),
        ("maths", [PARAGRAPH], [PARAGRAPH]),
        ("general", [], []),
    ],
)
def test_outside_maths_an_answer_that_is_prose_is_for_the_reward_model(domain, gold, short):
    report = Report()
    given = Example([{"role": "user", "content": "?"}], domain, gold=gold, source="generic")
    (kept,) = prepare.judgeable([given], report)
    assert kept.gold == short
    why = "the answer is prose" if gold else "no answer"
    outcome = "kept" if short else f"kept for the reward model: {why}"
    assert report.totals("judge") == {outcome: 1}
    assert report.text().splitlines()[1].split()[:3] == ["judge", "1", "0"]


def rows_file(tmp_path, count=300):
    path = tmp_path / "rows.jsonl"
    kinds = [("maths", "think"), ("maths", "no_think"), ("general", "no_think")]
    rows = [
        {"prompt": str(i), "domain": kinds[i % 3][0], "mode": kinds[i % 3][1], "source": "s"}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_mix_takes_exactly_as_many_rows_as_it_says_of_the_first_group_that_fits(tmp_path):
    sizes = prepare.parse_mix("maths/think=20,maths=30,no_think=1000", "hft")
    rows = list(prepare.mixed(rows_file(tmp_path), sizes, 0, Report()))
    counts = Counter((row["domain"], row["mode"]) for row in rows)
    assert counts == {
        ("maths", "think"): 20,
        ("maths", "no_think"): 30,
        ("general", "no_think"): 100,
    }
    assert len(list(prepare.mixed(rows_file(tmp_path), {}, 0, Report()))) == 300


def test_the_mix_takes_every_row_equally_often(tmp_path):
    taken = Counter()
    for seed in range(200):
        rows = prepare.mixed(rows_file(tmp_path, 30), {"maths/think": 3}, seed, Report())
        taken.update(row["prompt"] for row in rows if row["mode"] == "think")
    assert taken.total() == 600 and len(taken) == 10
    assert max(abs(count - 60) for count in taken.values()) < 4 * np.sqrt(200 * 0.3 * 0.7)


# --------------------------------------------------------------------------------------- whole sets


def write_source(path, count=40):
    """Rows of the lab's words, of which a few fail at each step."""
    rows = []
    for i in range(count):
        a, b = divmod(i, 10)
        question = f"{a + 10}+{b}="
        rows.append({"prompt": question, "response": str(a + b + 10), "answer": str(a + b + 10)})
        if i % 2:
            rows[-1]["thinking"] = f"{question}{a + b + 10}"
    rows[1]["answer"] = "0"
    rows += [{"prompt": "9+9=", "response": "18</think>"}, rows[2], {"prompt": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture
def prepared(tmp_path, lab_folder):
    write_source(tmp_path / "source.jsonl")
    (tmp_path / "test.jsonl").write_text('{"prompt": "10 + 5 =", "answer": "15"}\n')
    settings = PrepareSettings(
        sources=f"generic/maths:{tmp_path}/sou*.jsonl",
        evaluation=f"{tmp_path}/test.jsonl",
        output_dir=str(tmp_path / "out"),
        complexity=2,
        mix="maths/no_think=15",
        tokenizer_name_or_path=str(lab_folder / "base"),
    )
    return settings, prepare.prepare("hft", settings), tmp_path / "out"


def test_every_step_counts_what_it_keeps_and_why_it_drops_the_rest(prepared):
    _, report, folder = prepared
    assert {step: report.totals(step) for step in report.steps} == {
        "parse": {"kept": 42, "no prompt": 1},
        "verify": {"kept": 41, "wrong answer": 1},
        "classify": {"kept": 41},
        "wrap": {"kept": 40, "a tag inside the response": 1},
        "deduplicate": {"kept": 39, "the same query": 1},
        "decontaminate": {"kept": 38, "an evaluation question": 1},
        "mix": {"kept": 33, "more than wanted": 5},
        "tokenize": {"kept": 33},
    }
    assert report.rows == {"maths/no_think": 15, "maths/think": 18}
    assert json.loads((folder / "hft_report.json").read_text()) == json.loads(
        json.dumps(vars(report))
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "hft.jsonl",
        "hft_report.json",
        "hft_tokens",
    ]


def test_the_histogram_counts_tokens_of_each_mode(prepared, tokenizer):
    _, report, folder = prepared
    lengths = {"think": [], "no_think": []}
    for where, prompt, response in read_hft_rows(folder / "hft.jsonl"):
        mode = "think" if response.startswith("<think>") else "no_think"
        lengths[mode].append(sum(map(len, encode_row(tokenizer, prompt, response, where))))
    for mode, values in lengths.items():
        assert report.tokens[mode] == sum(values)
        edges = [*prepare.EDGES, np.inf]
        assert list(report.lengths[mode].values()) == np.histogram(values, edges)[0].tolist()


def test_the_rows_are_what_hft_reads_and_the_tokens_are_theirs(prepared, tokenizer):
    _, _, folder = prepared
    rows = TokenizedRows(folder / "hft_tokens", tokenizer, max_length=100)
    expected = [
        encode_row(tokenizer, prompt, response, where)
        for where, prompt, response in read_hft_rows(folder / "hft.jsonl")
    ]
    assert [rows[i] for i in range(len(rows))] == expected
    longest = max(sum(map(len, row)) for row in expected)
    fewer = TokenizedRows(folder / "hft_tokens", tokenizer, longest - 1)
    assert [fewer[i] for i in range(len(fewer))] == [
        row for row in expected if sum(map(len, row)) < longest
    ]
    assert fewer.too_long == len(rows) - len(fewer) > 0


@pytest.mark.parametrize("name", ["hft.jsonl", "hft_tokens"])
def test_where_no_row_fits_the_error_names_what_the_user_named(name, prepared, tokenizer, tmp_path):
    _, _, folder = prepared
    with pytest.raises(InputError, match=f"{name}: every row is longer than max_length"):
        cache = tmp_path / "cache"
        tokenized_rows(str(folder / name), "", tokenizer, 2, cache, lambda work: work())


def test_hft_on_tokenized_rows_is_hft_on_the_rows(prepared, lab_folder, tmp_path):
    _, _, folder = prepared
    weights = []
    for name in ("hft.jsonl", "hft_tokens"):
        settings = lhrm.HFTSettings(
            model_name_or_path=str(lab_folder / "base"), dataset_name=str(folder / name),
            output_dir=str(tmp_path / name), max_steps=2, batch_size=8, bf16=False,
        )  # fmt: skip
        lhrm.hft(settings)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_tokens_of_another_tokenizer_and_damaged_ones_are_refused(prepared, tokenizer, lab_folder):
    _, _, folder = prepared
    tokens = folder / "hft_tokens"
    other = type(tokenizer).from_pretrained(lab_folder / "base")
    other.backend.add_tokens(["more"])
    with pytest.raises(InputError, match="another tokenizer"):
        TokenizedRows(tokens, other, 100)
    for name, content in {"lengths.bin": b"12345678", "tokens.bin": b"1234"}.items():
        copy = shutil.copytree(tokens, folder / name)
        (copy / name).write_bytes(content)
        with pytest.raises(InputError, match="do not fit"):
            TokenizedRows(copy, tokenizer, 100)
    (copy / "tokens.bin").unlink()
    with pytest.raises(InputError, match="No such file"):
        TokenizedRows(copy, tokenizer, 100)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_seed_gives_the_same_bytes(prepared):
    settings, _, folder = prepared
    before = contents(folder)
    prepare.prepare("hft", settings)  # over what is there
    assert contents(folder) == before and len(before) == 5
    settings.seed = 1
    prepare.prepare("hft", settings)
    assert contents(folder) != before


def test_a_killed_runs_remains_are_removed_and_what_is_in_the_way_is_left_alone(prepared):
    settings, _, folder = prepared
    before = contents(folder)
    (folder / ".unfinished-x").mkdir()
    (folder / ".unfinished-x" / "clean").write_text("half")
    prepare.prepare("hft", settings)
    assert contents(folder) == before
    (folder / "hft.jsonl").unlink()
    (folder / "hft.jsonl").mkdir()
    with pytest.raises(InputError, match="hft.jsonl is in the way"):
        prepare.prepare("hft", settings)
    assert (folder / "hft.jsonl").is_dir()


def test_rows_of_an_unexpected_shape_are_counted(tmp_path):
    rows = [{"problem": "q", "generations": given} for given in (True, [None], {"a": 1}, [["a"]])]
    flags = {"correctness_math_verify": [True], "is_reasoning_complete": [True]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**r, **flags}) + "\n" for r in rows))
    report = Report()
    sources = [("openr1_math", "", tmp_path / "rows.jsonl")]
    assert list(prepare.parse(sources, report)) == []
    assert report.totals("parse").total() == 4


def test_a_very_long_query_needs_little_memory():
    bits = np.random.default_rng(0).integers(0, 2**64, (2, prepare.HASHES, 1), dtype=np.uint64)
    words = [str(i) for i in range(100_000)]
    few = [prepare.minhash(words[i : i + 3], bits) for i in range(50)]
    assert (prepare.minhash(words[:52], bits) == np.min(few, axis=0)).all()
    tracemalloc.start()
    prepare.minhash(words, bits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # two arrays of (64, 100000) of 8 bytes would be 100 MB


def test_an_rl_set_keeps_questions_with_what_they_are_judged_by(tmp_path):
    rows = [
        {"prompt": "What is 6 · 7?", "answer": "42", "level": 1},
        {"prompt": "Add one.", "tests": ["assert f(1) == 2"], "answer": "def f", "level": 2},
        {"prompt": "Tell me a story."},
        {"prompt": "How many sides has a square?", "answer": ["4", "four"]},
        {"prompt": "What is 3+4?", "reward_model": {"ground_truth": "7"}},
        {"prompt": "What is 30+4?", "answer": "Adding, we get <<30+4=34>>34.\n#### 34"},
        {"prompt": "Tell me a joke.", "response": "Why did the cat …"},
        {"messages": [{"role": r, "content": r} for r in ("user", "assistant")]},
        {"prompt": "1+1?", "answer": None, "reward_model": {"ground_truth": "2"}},
        {"prompt": "2+1?", "answer": "", "reward_model": {"ground_truth": "3"}},
        {"problem": "3+1?", "solution": "4"},
        {"prompt": "4+1?", "answer": ""},
        {"conversations": [{"from": "human", "value": "And you?"}]},
        {"prompt": "And they?", "conversations": [{"from": "human", "value": "And they?"}]},
        {"instruction": "What is a crêpe?", "input": "", "answer": PARAGRAPH},
        {"prompt": "Add two.", "tests": ["assert f(1) == 3"], "answer": PARAGRAPH},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = PrepareSettings(
        sources=f"generic:{tmp_path}/rows.jsonl", output_dir=str(tmp_path / "out")
    )
    prepare.prepare("rl", settings)
    queries = read_queries(tmp_path / "out" / "rl.jsonl")
    assert [(q.answers, q.tests, q.level) for q in queries] == [
        (["42"], "", "1"),
        ([], "assert f(1) == 2", "2"),
        ([], "", ""),
        (["4", "four"], "", ""),
        (["7"], "", ""),
        (["34"], "", ""),
        ([], "", ""),
        ([], "", ""),
        (["2"], "", ""),
        (["3"], "", ""),
        (["4"], "", ""),
        ([], "", ""),  # the row with an empty answer, and one without a prompt, are counted
        ([], "", ""),
        ([], "assert f(1) == 3", ""),
    ]
    report = json.loads((tmp_path / "out" / "rl_report.json").read_text())
    judged = {"the answer is prose": 1, "no answer": 4}
    judged = {f"kept for the reward model: {why}": count for why, count in judged.items()}
    assert report["steps"]["judge"] == {"generic": {"kept": 9, **judged}}


def test_the_worked_example_of_the_readme_is_true(tmp_path):
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    example = readme[readme.index("## A worked example") :]
    lines = [line[4:] for line in example.splitlines() if line.startswith("    ")]
    rows = [line for line in lines if line.startswith("{")]
    (tmp_path / "source.jsonl").write_text("\n".join(rows[:8]))
    (tmp_path / "test.jsonl").write_text(rows[8])
    settings = PrepareSettings(
        sources=f"generic/maths:{tmp_path}/source.jsonl",
        evaluation=f"{tmp_path}/test.jsonl",
        output_dir=str(tmp_path),
    )
    shown = prepare.prepare("hft", settings).text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("step "))
    assert [line.rstrip() for line in shown] == lines[start : start + len(shown)]
    assert (tmp_path / "hft.jsonl").read_text().splitlines() == rows[9:]


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "CHUNK", 32)
    peaks = []
    for count in (200, 200, 1600):
        with open(tmp_path / "rows.jsonl", "w") as file:
            for i in range(count):
                file.write(json.dumps({"prompt": text(i), "response": text(-i - 1, 400)}) + "\n")
        settings = PrepareSettings(
            sources=f"generic:{tmp_path}/rows.jsonl", complexity=2, output_dir=str(tmp_path)
        )
        tracemalloc.start()
        assert prepare.prepare("hft", settings).totals("mix")["kept"] == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]  # the rows are eight times as many, 5 MB


# ---------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "is no command"),
        (["hft"], "give --sources"),
        (["hft", "--sources", "wiki:a.jsonl"], "expected recipe:file"),
        (["hft", "--sources", "generic/law:a.jsonl"], "expected recipe:file"),
        (["hft", "--sources", "generic:/none.jsonl"], "no such file"),
        (["rl", "--sources", "generic:ROWS", "--mix", "maths=some"], "--mix maths=some: expected"),
        (["rl", "--sources", "generic:ROWS", "--mix", "law=1"], "--mix law=1: expected"),
        (["rl", "--sources", "generic:ROWS", "--mix", "think=1"], "--mix think=1: expected"),
        (["hft", "--sources", "generic:ROWS", "--mix", "think/maths=1"], "expected a number for"),
        (["rl", "--sources", "generic:ROWS", "--mix", "maths=1,maths=2"], "--mix maths=2"),
        (["rl", "--sources", "generic:ROWS", "--mix", "maths=²"], "--mix maths=²"),
        (["rl", "--sources", "generic:ROWS", "--mix", "general=0"], "no row is left"),
        (["rl", "--sources", "generic:ROWS", "--evaluation", "/none"], "/none"),
        (["rl", "--sources", "generic:BAD"], "bad.jsonl:1: not JSON"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_left(
    arguments, message, tmp_path, monkeypatch, capsys
):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q"}\n')
    (tmp_path / "bad.jsonl").write_text("{\n")
    places = {"ROWS": f"{tmp_path}/rows.jsonl", "BAD": f"{tmp_path}/bad.jsonl"}
    for name, place in places.items():
        arguments = [a.replace(name, place) for a in arguments]
    out = tmp_path / "out"
    monkeypatch.setattr(
        "sys.argv", ["prepare", *arguments, *["--output_dir", str(out)][: 9 * bool(arguments)]]
    )
    with pytest.raises(SystemExit) as stop:
        prepare.run_command(prepare.main)
    errors = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and message in "\n".join(errors)
    assert not out.exists() or not list(out.iterdir())


def test_the_command_prints_the_report(tmp_path):
    write_source(tmp_path / "source.jsonl")
    command = ["-m", "data.prepare", "rl", "--sources", f"generic/maths:{tmp_path}/source.jsonl"]
    shown = run(*command, "--output_dir", tmp_path / "out").stdout
    assert "deduplicate" in shown and "rows a second" in shown and "no --evaluation" in shown
