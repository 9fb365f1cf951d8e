"""data/lab.py: the generated world is right, disjoint, and the same for the same seed."""

import json
import re
from collections import Counter

import pytest

from data import lab
from data.modes import parse_response
from data.rows import read_hft_rows, read_queries


def rows(folder, name):
    """The rows of a set, with every question of a conversation as a row of its own."""
    found = []
    for line in (folder / "data" / f"{name}.jsonl").open():
        row = json.loads(line)
        if isinstance(row["prompt"], list):
            *earlier, last = row["prompt"]
            for question, answer in zip(earlier[::2], earlier[1::2]):
                assert (question["role"], answer["role"]) == ("user", "assistant")
                found.append({"prompt": question["content"], "answer": answer["content"]})
            row["prompt"] = last["content"]
        found.append(row)
    return found


def test_the_same_seed_gives_the_same_bytes(lab_folder, tmp_path):
    for seed in (0, 1):
        lab.write(tmp_path / str(seed) / "base", tmp_path / str(seed) / "data", seed)
    for name in ("hft", "rl", "test"):
        bytes_ = [(f / "data" / f"{name}.jsonl").read_bytes() for f in
                  (lab_folder, tmp_path / "0", tmp_path / "1")]  # fmt: skip
        assert bytes_[0] == bytes_[1] != bytes_[2]


def test_no_test_question_is_ever_trained_on(lab_folder):
    test = {row["prompt"] for row in rows(lab_folder, "test")}
    assert len(test) == len(rows(lab_folder, "test"))
    for name in ("hft", "rl"):
        assert not test & {row["prompt"] for row in rows(lab_folder, name)}


def value_of(row):
    """The answer, found by other means than the generator's."""
    if row["prompt"].endswith("="):
        start, *steps = re.findall(r"[+-]?\d+", row["prompt"])
    else:
        start, *steps = re.findall(r"[+-]?=?\d+", row["prompt"])
    numbers = [int(text.replace("=", "")) for text in (start, *steps)]
    partial = [sum(numbers[: i + 1]) for i in range(len(numbers))]
    return partial, list(map(abs, numbers[1:]))


@pytest.mark.parametrize("name", ["hft", "rl", "test"])
def test_every_sum_is_right_has_its_levels_operands_and_stays_within_its_bounds(name, lab_folder):
    for row in rows(lab_folder, name):
        if row.get("domain") == "general":
            assert "level" not in row
        if not re.search(r"\d", row["prompt"]):
            continue
        partial, operands = value_of(row)
        assert row["answer"] == str(partial[-1])
        if "level" in row:  # an earlier question of a conversation has none
            count, least, most = lab.LEVELS[int(row["level"])]
            assert len(operands) == count and least <= max(operands) <= most
        assert min(partial) >= 0 and max(partial) <= 20
        if "thinking" in row:
            results = [int(step.split("=")[1]) for step in row["thinking"].split(";")]
            assert results == partial[1:]


def test_hft_modes_depend_on_the_domain_and_not_on_the_level(lab_folder):
    total, think = Counter(), Counter()
    for row in (row for row in rows(lab_folder, "hft") if "mode" in row):
        for key in (row["domain"], (row["domain"], row.get("level"))):
            total[key] += 1
            think[key] += row["mode"] == "think"
    share = {key: think[key] / total[key] for key in total}
    assert share["maths"] > 0.5 > share["general"] and share["code"] < 0.5
    for domain in ("maths", "code"):
        shares = [share[domain, str(level)] for level in lab.LEVELS]
        assert max(shares) - min(shares) < 0.1


@pytest.mark.parametrize("name", ["hft", "rl"])
def test_a_tenth_of_the_questions_come_after_others(name, lab_folder):
    lines = (lab_folder / "data" / f"{name}.jsonl").open()
    prompts = [json.loads(line)["prompt"] for line in lines]
    lengths = Counter(len(p) for p in prompts if isinstance(p, list))
    assert set(lengths) == {3, 5, 7}
    assert sum(lengths.values()) / len(prompts) == pytest.approx(0.1, abs=0.01)


def test_rl_never_sees_code(lab_folder):
    asked = rows(lab_folder, "rl")
    assert {row["domain"] for row in asked if "domain" in row} == {"maths", "general"}
    assert not any(row["prompt"].startswith("x=") for row in asked)
    assert {row["domain"] for row in rows(lab_folder, "test")} == {"maths", "general", "code"}


def test_every_row_is_one_that_our_readers_accept_and_our_tokenizer_returns(lab_folder, tokenizer):
    assert len(read_queries(lab_folder / "data" / "rl.jsonl")) == lab.NUM_RL
    for _, messages, text in list(read_hft_rows(lab_folder / "data" / "hft.jsonl"))[:3000]:
        ids = tokenizer.encode_chat(messages) + tokenizer.encode(text)
        assert tokenizer.backend.token_to_id("<|unknown|>") not in ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert parse_response(text).well_formed


def test_the_questions_in_words_are_the_same_questions(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["data.lab", "--output_dir", str(tmp_path), "--seed", "3"])
    lab.main()
    for name, made in lab.rows(3).items():
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        for line, row in zip(lines, made, strict=True):
            worded = json.loads(line)
            assert worded["answer"] == row["answer"]
    assert lab.in_words("17+5-3=") == "What is 17 plus 5 minus 3?"
    assert lab.in_words("17+5=22;22-3=19") == "17 plus 5 is 22. 22 minus 3 is 19."
    assert lab.in_words("x=7;x+=5;print(x)") == "What does this program print?\nx=7\nx+=5\nprint(x)"
    assert lab.in_words("capital of france") == "capital of france"
    talk = [{"role": "user", "content": "1+2="}, {"role": "assistant", "content": "3"}]
    said = lab.row_in_words({"prompt": [*talk, {"role": "user", "content": "hello ada"}]})["prompt"]
    assert [m["content"] for m in said] == ["What is 1 plus 2?", "3", "hello ada"]
