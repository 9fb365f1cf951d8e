"""The lab: a generated world in which a model learns, in minutes on a laptop, when to think.

Three domains. `maths`: chains such as `17+5-3=` in five levels: one operation; two with operands up
to 1, up to 3, up to 9; four. They start at 0 to 19, and no running value is below 0 or above 20.
Spelling out the steps makes every level easy. Answered at once, a level is the harder the more
chains it has, from nearly always right at level 1 to a guess at level 5. `code`: the same chains as
straight-line programs, such as `x=7;x+=5;print(x)`; RL never sees it. `general`: greetings and
one-word facts, which need no thought.

In the HFT rows the mode depends on the domain (mostly think in maths, mostly no_think elsewhere, as
in the paper's data) but never on the level: what to think about is for RL to find out. A tenth of
the questions to train on come in the course of a conversation, so that the model can hold one. Test
questions appear in neither of the other sets. Everything follows from the seed.

For a pretrained model, the same questions in words, such as `What is 17 plus 5 minus 3?`:

    python -m data.lab --output_dir words
"""

from __future__ import annotations

import itertools
import random
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from data.cli import InputError, parse_settings, run_command, setting, write_json, write_rows
from data.modes import TAGS
from data.tokenizer import Messages

# Operations of a level, and the bounds of the largest operand among them.
LEVELS = {1: (1, 0, 9), 2: (2, 0, 1), 3: (2, 2, 3), 4: (2, 4, 9), 5: (4, 0, 9)}
TEST_PER_LEVEL = {"maths": 60, "code": 20}
TEST_GENERAL = 40
TEST_SHARE = 5  # of a level with few questions, one in so many is kept for the test
NUM_HFT, NUM_RL = 28800, 8000
LARGEST = 20  # running value: the sums of larger ones would be too rare to be learned
DOMAIN_SHARES = {"maths": 0.7, "general": 0.15, "code": 0.15}  # of HFT rows
THINK_SHARES = {"maths": 0.62, "general": 0.3, "code": 0.3}  # of a domain's HFT rows
CONVERSATION_SHARE = 0.1  # of HFT and RL rows, with one to three questions before theirs
RL_SHARES = {"maths": 0.75, "general": 0.25}
LEVEL_WEIGHTS = [2, 1, 1, 1, 1]  # in RL about as many queries that need no thought as that do

MODEL = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 128,
    "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "initializer_range": 0.08,  # about 1/√hidden_size: a narrow model learns slowly from 0.02
}  # fmt: skip
SMALL_MODEL = {  # about an eighth of the parameters
    **MODEL, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.125,
}  # fmt: skip

GREETINGS = ["hello", "hi", "hey", "good morning", "good evening", "good night", "welcome", "bye"]
NAMES = ["ada", "alan", "grace", "edsger", "barbara", "donald", "john", "emmy", "kurt", "alonzo"]
FACTS = {
    "capital": {"france": "paris", "italy": "rome", "spain": "madrid", "japan": "tokyo"},
    "colour": {"grass": "green", "snow": "white", "coal": "black", "blood": "red"},
    "opposite": {"hot": "cold", "big": "small", "up": "down", "old": "new"},
    "sound": {"dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack"},
}
PHRASES = ["{} of {}", "the {} of {}", "what is the {} of {}", "tell me the {} of {}"]
PHRASES += ["{} of {} now"]

Problem = tuple[str, str, str]  # question, thinking, answer


def chain(level: int, rng: random.Random) -> tuple[int, list[tuple[str, int]], list[int]]:
    """A start, the operations of a level on it, and the value after each: for maths and code."""
    count, least, most = LEVELS[level]
    while True:
        start = value = rng.randint(0, 19)
        operations, values = [], []
        for _ in range(count):
            operand = rng.randint(0, most)
            sign = rng.choice([s for s in "+-" if 0 <= value + int(f"{s}{operand}") <= LARGEST])
            value += operand if sign == "+" else -operand
            operations.append((sign, operand))
            values.append(value)
        if max(operand for _, operand in operations) >= least:
            return start, operations, values


def maths(level: int, rng: random.Random) -> Problem:
    start, operations, values = chain(level, rng)
    question = str(start) + "".join(f"{sign}{operand}" for sign, operand in operations) + "="
    return question, spelled_out(start, operations, values), str(values[-1])


def code(level: int, rng: random.Random) -> Problem:
    start, operations, values = chain(level, rng)
    lines = [f"x={start}"] + [f"x{sign}={operand}" for sign, operand in operations] + ["print(x)"]
    return ";".join(lines), spelled_out(start, operations, values), str(values[-1])


def spelled_out(start: int, operations: list[tuple[str, int]], values: list[int]) -> str:
    """The steps of a chain: `7+5=12;12-3=9`."""
    befores = [start, *values]
    return ";".join(
        f"{before}{sign}{operand}={after}"
        for before, (sign, operand), after in zip(befores, operations, values)
    )


def general(rng: random.Random) -> Problem:
    if rng.random() < 0.5:
        greeting = f"{rng.choice(GREETINGS)} {rng.choice(NAMES)}"
        return greeting, "a greeting", greeting
    kind = rng.choice(sorted(FACTS))
    thing = rng.choice(sorted(FACTS[kind]))
    answer = FACTS[kind][thing]
    return rng.choice(PHRASES).format(kind, thing), f"{kind} {thing} {answer}", answer


def draw(domain: str, level: int | None, rng: random.Random) -> Problem:
    """A problem of a domain; general ones have no level."""
    if level is None:
        return general(rng)
    return {"maths": maths, "code": code}[domain](level, rng)


def test_rows(rng: random.Random) -> list[dict[str, Any]]:
    """The test set, without repetitions."""
    wanted = [(d, level, n) for d, n in TEST_PER_LEVEL.items() for level in LEVELS]
    rows = []
    for domain, level, count in [*wanted, ("general", None, TEST_GENERAL)]:
        known = {draw(domain, level, rng)[0] for _ in range(10000)}  # all of them, where few
        chosen: dict[str, str] = {}
        while len(chosen) < min(count, len(known) // TEST_SHARE):
            question, _, answer = draw(domain, level, rng)
            chosen[question] = answer
        for question, answer in chosen.items():
            rows.append(query(domain, level, question, answer))
    return rows


def query(domain: str, level: int | None, prompt: str | Messages, answer: str) -> dict[str, Any]:
    row = {"prompt": prompt, "answer": answer, "domain": domain}
    return row if level is None else {**row, "level": str(level)}


def fresh(
    shares: dict[str, float], test: set[str], rng: random.Random
) -> Iterator[tuple[str, int | None, Problem]]:
    """(domain, level, problem) without end, and without the `test` questions; domains come by
    `shares`, levels by LEVEL_WEIGHTS."""
    while True:
        domain = rng.choices(list(shares), list(shares.values()))[0]
        level = None if domain == "general" else rng.choices(list(LEVELS), LEVEL_WEIGHTS)[0]
        problem = draw(domain, level, rng)
        if problem[0] not in test:
            yield domain, level, problem


def build_tokenizer() -> tokenizers.Tokenizer:
    """One token for each number, word and sign; the text comes back exactly."""
    words = {w for g in (*GREETINGS, *NAMES, *PHRASES) for w in g.replace("{}", "").split()}
    words |= {w for kind, facts in FACTS.items() for pair in facts.items() for w in (kind, *pair)}
    words |= {"a", "greeting", "user", "assistant", "system", "x", "print"}
    symbols = ["\n", " ", *"+-=;()?"]
    vocabulary = ["<|unknown|>", *symbols, *map(str, range(100)), *sorted(words)]
    model = models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<|unknown|>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d+|[a-z]+|\s|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return tokenizer


KNOWN = (
    "The lab's model knows sums such as 7+5-3=, programs such as x=7;x+=5;print(x), greetings such "
    "as hello ada, and questions such as what is the capital of france."
)


def is_its_own(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether this is the tokenizer of a model of the lab."""
    return tokenizer.get_vocab() == build_tokenizer().get_vocab()


def check_words(texts: Iterable[str]) -> None:
    """Raise InputError if one of `texts` has a word that the lab's tokenizer does not have."""
    tokenizer = build_tokenizer()
    for text in texts:
        encoding = tokenizer.encode(text)
        for token, (start, end) in zip(encoding.tokens, encoding.offsets):
            if token == "<|unknown|>":
                word = text[start:end]
                raise InputError(f"{word!r} in {text[:60]!r} is no word of the lab. {KNOWN}")


def in_conversations(
    problems: Iterable[tuple[str, int | None, Problem]], rng: random.Random
) -> Iterator[tuple[str, int | None, Problem, str | Messages]]:
    """Each problem with its prompt: its question, or a conversation of earlier ones before it."""
    exchanges: list[Messages] = []
    for domain, level, problem in problems:
        question, _, answer = problem
        exchange = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        prompt: str | Messages = question
        if exchanges and rng.random() < CONVERSATION_SHARE:
            earlier = rng.choices(exchanges, k=rng.randint(1, 3))
            prompt = [*itertools.chain(*earlier), exchange[0]]
        exchanges.append(exchange)
        yield domain, level, problem, prompt


def rows(
    seed: int, think_shares: dict[str, float] = THINK_SHARES
) -> dict[str, list[dict[str, Any]]]:
    """The three sets: "hft", "rl" and "test"."""
    test = test_rows(random.Random(f"{seed}/test"))
    asked = {row["prompt"] for row in test}
    rng, history_rng = random.Random(f"{seed}/hft"), random.Random(f"{seed}/history")
    hft = []
    problems = itertools.islice(fresh(DOMAIN_SHARES, asked, rng), NUM_HFT)
    for domain, level, (_, thinking, answer), prompt in in_conversations(problems, history_rng):
        thinks = rng.random() < think_shares[domain]
        mode = {"mode": "think", "thinking": thinking} if thinks else {"mode": "no_think"}
        hft.append({**query(domain, level, prompt, answer), **mode})
    problems = itertools.islice(fresh(RL_SHARES, asked, random.Random(f"{seed}/rl")), NUM_RL)
    talks = in_conversations(problems, random.Random(f"{seed}/rl history"))
    rl = [query(domain, level, prompt, answer) for domain, level, (_, _, answer), prompt in talks]
    return {"hft": hft, "rl": rl, "test": test}


def write(
    base: Path,
    data: Path,
    seed: int,
    model: dict[str, Any] = MODEL,
    think_shares: dict[str, float] = THINK_SHARES,
) -> None:
    """Write the model folder `base`, all but its weights, and the three sets in `data`."""
    for folder in (base, data):
        folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(base / "tokenizer.json"))
    stop = tokenizer.token_to_id("<|im_end|>")
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    write_json(base / "config.json", {**model, "vocab_size": size, "eos_token_id": stop})
    write_json(base / "generation_config.json", {"eos_token_id": [stop]})
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    write_json(base / "tokenizer_config.json", settings)
    for name, made in rows(seed, think_shares).items():
        write_rows(data / f"{name}.jsonl", made)
    write_json(data / "seed.json", seed)


# ----------------------------------------------------------------------- for a pretrained model


SIGNS = {"+": " plus ", "-": " minus ", "=": " is ", ";": ". "}


def in_words(text: str) -> str:
    """A question or a thought of the lab, as one would write it."""
    if text.startswith("x="):
        return "What does this program print?\n" + text.replace(";", "\n")
    if not text[:1].isdecimal():
        return text
    words = re.sub(r"[+\-=;]", lambda sign: SIGNS[sign[0]], text.removesuffix("="))
    return f"What is {words}?" if text.endswith("=") else f"{words}."


def row_in_words(row: dict[str, Any]) -> dict[str, Any]:
    """A row of any set; in a conversation the answers stay as they are."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        prompt = in_words(prompt)
    else:
        prompt = [{**m, "content": in_words(m["content"])} if m["role"] == "user" else m
                  for m in prompt]  # fmt: skip
    thought = {"thinking": in_words(row["thinking"])} if "thinking" in row else {}
    return {**row, "prompt": prompt, **thought}


@dataclass
class WordSettings:
    """Write the lab's three sets in words, for a pretrained model.

    python -m data.lab --output_dir words
    """

    output_dir: str = setting("words", "folder for hft.jsonl, rl.jsonl and test.jsonl")
    seed: int = setting(0, "seed of the questions")


def main() -> None:
    settings = parse_settings(WordSettings, "python -m data.lab", sys.argv[1:])
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in rows(settings.seed).items():
        write_rows(folder / f"{name}.jsonl", map(row_in_words, made))
        print(f"{folder}/{name}.jsonl: {len(made)} rows")


if __name__ == "__main__":
    run_command(main)
