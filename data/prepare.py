"""Build the HFT and the RL set from public sources, as the paper does (§2.2, App. C).

Examples pass through the steps below one by one, in a stream, and every step counts what it keeps
and why it drops the rest. What has to be remembered (which queries were seen) is on disk, so that
1.7 million examples need no more memory than ten thousand. data/README.md shows the commands.
"""

import contextlib
import copy
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import sqlite3
import tempfile
import time
import unicodedata
import zlib
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data import classify
from data.cli import InputError, run_command, run_subcommand, setting, write_json, write_row
from data.judge import side_by_side
from data.modes import MODES, TAGS, format_response, parse_response
from data.rows import (
    as_messages,
    encode_row,
    question_of,
    read_rows,
    split_paths,
    token_writer,
)
from data.sources import DOMAINS, RECIPES, Example, Skip
from data.tokenizer import Messages, Tokenizer
from data.verify_code import extract_code, run_tests
from data.verify_math import is_correct

CJK = "぀-ヿ㐀-鿿"
MIN_RUN = 3  # an evaluation question of fewer words is looked for as a whole prompt only
CHUNK = 512  # number of examples that are verified, classified or tokenized at once
FEW_WORDS = 5  # an answer of more is prose, which no rule can compare
HASHES = 64  # in a MinHash signature: a similarity of 0.9 is estimated to within 0.04
BANDS = 16  # of 4 hashes each: queries that are 0.9 alike share one, but for a chance of 5e-8
SHINGLE = 3  # words in a shingle
EDGES = [0, *(2**n for n in range(6, 16))]  # of the histogram of lengths, in tokens
CONTROL = re.compile(r"<[|｜][\w▁]{1,40}[|｜]>")  # a control token, such as <|im_end|>


@dataclass
class PrepareSettings:
    """Build a set from public sources."""

    sources: str | None = setting(
        None, "recipe:file, with commas between them; * in a file's name stands for anything; "
        "recipe/domain:file says the domain. Recipes: " + ", ".join(RECIPES),
    )  # fmt: skip
    evaluation: str | None = setting(None, "files of the questions to keep out, with commas")
    output_dir: str = setting("prepared", "folder for the rows and the report")
    classifier_name_or_path: str | None = setting(None, "classifier of queries; unset: a few rules")
    complexity: float = setting(classify.THRESHOLD, "queries this complex need a trace; 2: none do")
    keep_unverified: bool = setting(False, "keep traces that nothing can verify")
    near_duplicate: float = setting(0.9, "similarity of repeats; 1: equal ones only", None, 0.7, 1)
    contamination_ngram: int = setting(8, "words in a row that a kept-out question shares")
    mix: str | None = setting(
        None, "at most so many rows of a domain, a mode or both, chosen at random; the first that "
        "fits a row counts: general=674908,maths/think=631325,no_think=50000",
    )  # fmt: skip
    tokenizer_name_or_path: str | None = setting(None, "checkpoint to tokenize HFT rows for")
    seed: int = setting(0, "seed of the choice of rows")


@dataclass
class HFTSetSettings(PrepareSettings):
    """Build a set for Hybrid Fine-Tuning from public sources: verified traces, simple answers.

    python -m data.prepare hft --sources 'gsm8k:gsm8k/*.parquet,alpaca:alpaca/*.parquet'
    """


@dataclass
class RLSetSettings(PrepareSettings):
    """Build a set of queries for RL from public sources.

    python -m data.prepare rl --sources 'deepscaler:deepscaler.jsonl' --evaluation math500.jsonl
    """


# --------------------------------------------------------------------------------------- the report


class Report:
    """What every step kept and dropped, by source, and what the set is made of in the end.

    An outcome of a step is a reason to drop an example, unless it begins with "kept".
    """

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, Counter[str]]] = {}
        self.rows: Counter[str] = Counter()  # by domain/mode
        self.lengths: dict[str, Counter[int]] = {}  # by mode: rows from so many tokens on (Fig. 8)
        self.tokens: Counter[str] = Counter()  # by mode

    def add(self, step: str, source: str, outcome: str) -> None:
        self.steps.setdefault(step, defaultdict(Counter))[source][outcome] += 1

    def describe(self, row: dict[str, Any], ids: tuple[list[int], list[int]] | None) -> None:
        """Count a row of the finished set."""
        mode = row.get("mode", "query")
        self.rows[f"{row['domain']}/{mode}"] += 1
        if ids:
            length = sum(map(len, ids))
            lengths = self.lengths.setdefault(mode, Counter(dict.fromkeys(EDGES, 0)))
            lengths[EDGES[bisect(EDGES, length) - 1]] += 1
            self.tokens[mode] += length

    def totals(self, step: str) -> Counter[str]:
        return sum(self.steps.get(step, {}).values(), Counter())

    def text(self) -> str:
        lines = [f"{'step':14}{'kept':>9}{'dropped':>9}  why"]
        for step in self.steps:
            outcomes = self.totals(step)
            kept = sum(n for outcome, n in outcomes.items() if outcome.startswith("kept"))
            dropped = outcomes.total() - kept
            del outcomes["kept"]
            why = ", ".join(f"{n} {reason}" for reason, n in outcomes.most_common())
            lines.append(f"{step:14}{kept:9}{dropped:9}  {why}")
        lines += [f"{name:14}{count:9}" for name, count in sorted(self.rows.items())]
        for mode, lengths in self.lengths.items():
            total = lengths.total()
            lines.append(f"{mode}: {total} rows, {self.tokens[mode] / total:.0f} tokens on average")
            filled = [i for i, low in enumerate(EDGES) if lengths[low]]
            bins = list(zip(EDGES, [*EDGES[1:], None]))[filled[0] : filled[-1] + 1]
            for low, high in bins:
                bar = "█" * round(40 * lengths[low] / total)
                lines.append(f"  {low:>6} to {high or 'more':<6} {lengths[low]:8} {bar}")
        return "\n".join(lines)


# ------------------------------------------------------------------------ the steps, in their order


def parse(sources: list[tuple[str, str, Path]], report: Report) -> Iterator[Example]:
    """Every row of every source as its recipe reads it."""
    for name, domain, path in sources:
        recipe = copy.deepcopy(RECIPES[name])  # it may remember rows, but of this file only
        for _, row in tqdm(read_rows(path), path.name, unit=" rows", disable=None, mininterval=1):
            try:
                example = recipe(row)
            except Skip as skip:
                report.add("parse", name, str(skip))
                continue
            except (TypeError, ValueError, KeyError, AttributeError, RecursionError, MemoryError):
                report.add("parse", name, "not of the shape that its recipe knows")
                continue
            example.source, example.domain = name, domain or example.domain
            report.add("parse", name, "kept")
            yield example


def sieve(
    step: str, stream: Iterable[Example], reason: Callable[[Example], str], report: Report
) -> Iterator[Example]:
    """The examples that there is no `reason` to drop; all are counted."""
    for example in stream:
        why = reason(example)
        report.add(step, example.source, why or "kept")
        if not why:
            yield example


def unverified(example: Example, keep_unverified: bool) -> str:
    """Why a trace is not known to be right, or "". Its answer is checked by tests, by the final
    answer, or, if there is neither, by the publisher's verdict."""
    if not example.answer:
        return "no answer"
    if not example.thinking:
        return ""
    verdict = example.verified
    if example.tests:
        verdict, _ = run_tests(extract_code(example.answer, example.tests), example.tests)
    elif example.gold and not example.stated:
        verdict = any(is_correct(example.answer, gold) for gold in example.gold)
    if verdict is None:
        return "" if keep_unverified else "nothing to verify it by (--keep_unverified)"
    return "" if verdict else "wrong answer"


def verified(stream: Iterable[Example], keep_unverified: bool, report: Report) -> Iterator[Example]:
    """The examples that are not `unverified`; programs are tested side by side."""
    stream = iter(stream)
    while chunk := list(itertools.islice(stream, CHUNK)):
        reasons = side_by_side(
            lambda example: unverified(example, keep_unverified),
            chunk,
            lambda example: bool(example.tests),
        )
        for example, why in zip(chunk, reasons):
            report.add("verify", example.source, why or "kept")
            if not why:
                yield example


def simple_or_thought(
    stream: Iterable[Example], classifier: Any, threshold: float, report: Report
) -> Iterator[Example]:
    """Examples with a trace, and those without whose query is simple."""
    stream = iter(stream)
    while chunk := list(itertools.islice(stream, CHUNK)):
        untraced = [question_text(example.prompt) for example in chunk if not example.thinking]
        complexity = iter(classifier.predict(untraced))
        for example in chunk:
            if not example.thinking and next(complexity) >= threshold:
                report.add("classify", example.source, "complex, without a trace")
            else:
                report.add("classify", example.source, "kept")
                yield example


def judgeable(stream: Iterable[Example], report: Report) -> Iterator[Example]:
    """All examples, outside maths without the final answers that are prose. If no other is left,
    the reward model judges what is answered."""
    for example in stream:
        golds = example.gold
        if example.domain != "maths":
            example.gold = [gold for gold in golds if not is_prose(gold)]
        why = "the answer is prose" if golds else "no answer"
        definite = example.gold or example.tests
        outcome = "kept" if definite else f"kept for the reward model: {why}"
        report.add("judge", example.source, outcome)
        yield example


def is_prose(answer: str) -> bool:
    """Whether an answer has more than a few words, or several lines. Names of LaTeX and single
    letters are no words; in Chinese and Japanese, two characters count as one."""
    words = re.findall(rf"[{CJK}]{{2}}|(?<![\\\w])[^\W\d_{CJK}]{{2,}}", answer)
    return len(words) > FEW_WORDS or "\n" in answer


def unwrappable(example: Example, kind: str) -> str:
    """Why an example cannot be wrapped in its tags, or "": it has some already, or control tokens,
    or, for HFT, its response would be malformed."""
    text = "".join(message["content"] for message in example.prompt)
    response = completion(example) if kind == "hft" else ""
    if kind == "hft" and not parse_response(response).well_formed:
        return "a tag inside the response"
    if any(tag in text for tag in TAGS):
        return "a tag inside the prompt"
    return "a control token" if CONTROL.search(text + response) else ""


def repetition(seen: sqlite3.Connection, similarity: float) -> Callable[[Example], str]:
    """A function that says how a query repeats an earlier one, or "" (by MinHash).

    A query is compared with the first that has one of the 16 bands of its signature, too, and equal
    numbers, signs, names of one or two letters and final answers: Find x and Find y are not alike.
    """
    seen.execute("CREATE TABLE exact (key INTEGER PRIMARY KEY)")
    seen.execute("CREATE TABLE signatures (id INTEGER PRIMARY KEY, signature BLOB)")
    seen.execute("CREATE TABLE bands (key INTEGER PRIMARY KEY, id INTEGER)")
    random_bits = np.random.default_rng(0).integers(0, 2**64, (2, HASHES, 1), dtype=np.uint64)

    def reason(example: Example) -> str:
        # All of a conversation: the same last question may ask for something else.
        said = [(message["role"], message["content"]) for message in example.prompt]
        words = [word for role, text in said for word in (role, *words_and_signs(text))]
        key = hash_of(" ".join(words).encode())
        if not seen.execute("INSERT OR IGNORE INTO exact VALUES (?)", (key,)).rowcount:
            return "the same query"
        if similarity == 1:
            return ""
        signature = minhash(words, random_bits)
        telling = [w for w in words if not w.isalpha() or len(w) < 3] + example.gold
        equal = hash_of(" ".join(telling).encode())
        parts = [band.tobytes() for band in np.split(signature, BANDS)]
        # The first query with a key keeps it, so only queries that may be alike have one in common.
        bands = [hash_of(f"{i} {equal} ".encode() + part) for i, part in enumerate(parts)]
        found = seen.execute(
            "SELECT DISTINCT signature FROM bands JOIN signatures USING (id) "
            f"WHERE key IN ({','.join('?' * BANDS)})", bands,
        )  # fmt: skip
        others = [np.frombuffer(other, np.uint32) for (other,) in found]
        if any((signature == other).mean() >= similarity for other in others):
            return "nearly the same query"
        row = (None, signature.tobytes())
        number = seen.execute("INSERT INTO signatures VALUES (?, ?)", row).lastrowid
        seen.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(b, number) for b in bands])
        return ""

    return reason


def minhash(words: list[str], random_bits: np.ndarray) -> np.ndarray:
    """(HASHES,) uint32: each hash function's least value over the query's shingles. The share of
    equal entries of two signatures estimates the Jaccard index of their sets of shingles."""
    count = max(1, len(words) - SHINGLE + 1)
    shingles = {" ".join(words[i : i + SHINGLE]) for i in range(count)}
    hashes = np.array([zlib.crc32(shingle.encode()) for shingle in shingles], dtype=np.uint64)
    multiplier, offset = random_bits[0] | np.uint64(1), random_bits[1]
    least = [
        ((part * multiplier + offset) >> np.uint64(32)).min(1)
        for part in np.array_split(hashes, len(hashes) // 4096 + 1)  # a query may be a book
    ]
    return np.min(least, axis=0).astype(np.uint32)


class Evaluation:
    """The questions of the evaluation sets: as whole texts, as n-grams of words, and, if they are
    shorter, as all of their words in a row.

    What a tenth of a file's questions (and more than five) share gives none of them away.
    """

    def __init__(self, paths: list[str], ngram: int) -> None:
        self.ngram = ngram
        self.texts: set[str] = set()
        self.runs: dict[int, set[str]] = {ngram: set()}  # by their number of words
        for path in paths:
            found: Counter[tuple[int, str]] = Counter()
            questions = 0
            for where, row in read_rows(path):
                questions += 1
                prompt = as_messages(question_of(row), where)
                asked = [m["content"] for m in prompt if m["role"] == "user"]
                mine = set[tuple[int, str]]()
                for words in filter(None, map(words_of, asked)):
                    self.texts.add(squeezed(words))
                    length = min(ngram, len(words))
                    if length >= MIN_RUN:
                        mine |= {(length, run) for run in runs(words, length)}
                found.update(mine)
            for (length, run), count in found.items():
                if count <= max(5, questions / 10):
                    self.runs.setdefault(length, set()).add(run)

    def contains(self, text: str) -> str:
        """Why this text gives one of the questions away, or ""."""
        words = words_of(text)
        if squeezed(words) in self.texts:
            return "an evaluation question"
        for length, known in self.runs.items():
            if not known.isdisjoint(runs(words, length)):
                if length < self.ngram:
                    return "a short evaluation question inside"
                return f"{length} words in a row of an evaluation question"
        return ""

    def given_away(self, example: Example) -> str:
        """Why this example gives one of the questions away, or ""."""
        return self.contains(prompt_text(example.prompt))


def squeezed(words: list[str]) -> str:
    """All words without spaces, but between numbers."""
    return re.sub(r" (?!(?<=\d )\d)", "", " ".join(words))


def runs(words: list[str], length: int) -> Iterator[str]:
    """Every `length` words in a row."""
    return (" ".join(words[i : i + length]) for i in range(len(words) - length + 1))


# -------------------------------------------------------------------------------------------- texts


def prompt_text(prompt: Messages) -> str:
    """What a prompt says but for earlier answers."""
    return "\n".join(m["content"] for m in prompt if m["role"] != "assistant")


def question_text(prompt: Messages) -> str:
    """What the user asks."""
    return "\n".join(m["content"] for m in prompt if m["role"] == "user")


LATEX = re.compile(r"\\(?:left|right|text|mathrm|mbox|displaystyle)(?![A-Za-z])")


def plain(text: str) -> str:
    """A text without case and invisible characters, and with one way to write what Unicode and
    LaTeX write in several: 10² becomes 10^2."""
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", LATEX.sub(" ", text))
    if not text.isascii():
        raised = (f"^{c}" if unicodedata.decomposition(c)[:7] == "<super>" else c for c in text)
        text = "".join(c for c in "".join(raised) if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", text).casefold()


def words_of(text: str) -> list[str]:
    """The words, numbers, and Chinese or Japanese characters of a text, `2x` being `2 x`. Signs are
    left out: they are easily changed, and must not hide an evaluation question."""
    text = re.sub(r"(?<=\d),(?=\d\d\d)", "", plain(text))
    return re.findall(rf"[{CJK}]|[^\W\d_{CJK}]+|\d+", text)


ENDS = re.compile(
    r"""\$|(?<!\d)"|[.,;:?](?!\S)  # money and formulas, quotations, ends of clauses
    |(?<!\S)'|(?<=s)'(?!\S)       # single quotations, the authors' names
    |(?<=[^\W\d_]{3})!+(?=\s*$|\s+[A-Z])""",
    re.VERBOSE,
)


def words_and_signs(text: str) -> list[str]:
    """The words of a text with the signs that may change what is asked, as in 2+3 and 2·3, f'(2)
    and f(2), 5! and 5; but without ENDS."""
    return re.findall(rf"[{CJK}]|[^\W\d_{CJK}]+|\d+|[^\w\s]|_", plain(ENDS.sub(" ", text)))


def hash_of(data: bytes) -> int:
    """64 bits, signed as SQLite has them. With 1.7 million texts two collide once in 10 million."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def mode_of(example: Example) -> str:
    return "think" if example.thinking else "no_think"


def completion(example: Example) -> str:
    return format_response(mode_of(example), example.thinking, example.answer)


# ---------------------------------------------------------------------------------- mix and writing


def row_of(example: Example, kind: str) -> dict[str, Any]:
    """The row as it is written: what `lhrm.py hft` or `hgpo.py` reads."""
    prompt = example.prompt
    alone = len(prompt) == 1 and prompt[0]["role"] == "user"
    row: dict[str, Any] = {"prompt": prompt[0]["content"] if alone else prompt}
    if kind == "hft":
        row |= {"completion": completion(example), "mode": mode_of(example)}
    elif example.tests:
        row["tests"] = example.tests
    elif example.gold:
        row["answer"] = example.gold
    row |= {"domain": example.domain, "source": example.source}
    return row | ({"level": example.level} if example.level else {})


def group_of(row: dict[str, Any], sizes: dict[str, int]) -> str | None:
    """The first group of the mix that a row belongs to."""
    domain, mode = row["domain"], row.get("mode", "")
    return next((group for group in sizes if group in (domain, mode, f"{domain}/{mode}")), None)


def mixed(path: Path, sizes: dict[str, int], seed: int, report: Report) -> Iterator[dict[str, Any]]:
    """The rows of a file, of each group at most as many as `sizes` has, all equally likely."""
    chance = random.Random(seed)
    wanted = dict(sizes)
    with open(path, encoding="utf-8") as file:
        left = Counter(group_of(json.loads(line), sizes) for line in file)  # rows to come
        file.seek(0)
        for row in map(json.loads, file):
            group = group_of(row, sizes)
            if group is not None:
                taken = chance.random() * left[group] < wanted[group]  # selection sampling
                left[group] -= 1
                wanted[group] -= taken
            if group is None or taken:
                report.add("mix", row["source"], "kept")
                yield row
            else:
                report.add("mix", row["source"], "more than wanted")


def tokenized(
    rows: Iterable[dict[str, Any]], tokenizer: Tokenizer, report: Report
) -> Iterator[tuple[dict[str, Any], tuple[list[int], list[int]]]]:
    """Rows with their prompt and response ids, encoded side by side."""

    def encode(row: dict[str, Any]) -> tuple[list[int], list[int]] | None:
        with contextlib.suppress(InputError):
            return encode_row(tokenizer, as_messages(row["prompt"], ""), row["completion"], "")
        return None

    rows = iter(rows)
    with ThreadPoolExecutor() as pool:
        while chunk := list(itertools.islice(rows, CHUNK)):
            for row, ids in zip(chunk, pool.map(encode, chunk)):
                report.add("tokenize", row["source"], "kept" if ids else "a stop token inside")
                if ids:
                    yield row, ids


# ----------------------------------------------------------------------------------------- commands


def parse_sources(sources: str | None) -> list[tuple[str, str, Path]]:
    """(recipe, domain or "", file) of each file."""
    files = []
    for part in sources.split(",") if sources else []:
        recipe, _, pattern = part.partition(":")
        recipe, _, domain = recipe.partition("/")
        if recipe not in RECIPES or (domain and domain not in DOMAINS):
            forms, recipes = "expected recipe:file or recipe/domain:file", ", ".join(RECIPES)
            known = f"with a recipe of {recipes} and a domain of {', '.join(DOMAINS)}"
            raise InputError(f"--sources {part}: {forms}, {known}")
        found = [pattern] if Path(pattern).is_file() else sorted(glob(pattern))
        if not found:
            raise InputError(f"--sources {part}: no such file")
        files += [(recipe, domain, Path(path)) for path in found]
    if not files:
        raise InputError("give --sources, as in --sources generic/maths:questions.jsonl")
    return files


def parse_mix(mix: str | None, kind: str) -> dict[str, int]:
    """The largest number of rows of each group."""
    modes = MODES if kind == "hft" else ()
    groups = [*DOMAINS, *modes, *(f"{domain}/{mode}" for domain in DOMAINS for mode in modes)]
    sizes: dict[str, int] = {}
    for part in mix.split(",") if mix else []:
        name, _, number = part.partition("=")
        if name not in groups or name in sizes or not number.isdecimal():
            known = ", ".join(groups)
            raise InputError(f"--mix {part}: expected a number for one of {known}, each only once")
        sizes[name] = int(number)
    return sizes


def write_set(
    rows: Iterable[dict[str, Any]], place: Path, kind: str, tokenizer: Tokenizer | None,
    report: Report,
) -> None:  # fmt: skip
    """{kind}.jsonl and, with a tokenizer, {kind}_tokens in `place`."""
    with open(place / f"{kind}.jsonl", "w", encoding="utf-8") as file:
        if tokenizer is None:
            for row in rows:
                write_row(row, file)
                report.describe(row, None)
            return
        with token_writer(place / f"{kind}_tokens", tokenizer) as write_tokens:
            for row, ids in tokenized(rows, tokenizer, report):
                write_row(row, file)
                write_tokens(*ids)
                report.describe(row, ids)


def prepare(kind: str, settings: PrepareSettings) -> Report:
    """Write {kind}.jsonl, {kind}_report.json and, with a tokenizer, the folder {kind}_tokens.

    kind: "hft" or "rl". What is there from an earlier run is replaced when everything is done.
    """
    sources, sizes = parse_sources(settings.sources), parse_mix(settings.mix, kind)
    paths = split_paths(settings.evaluation) if settings.evaluation else []
    evaluation = Evaluation(paths, settings.contamination_ngram)
    classifier = classify.load(settings.classifier_name_or_path)
    tokenizer = None
    if kind == "hft" and settings.tokenizer_name_or_path:
        tokenizer = Tokenizer.from_pretrained(settings.tokenizer_name_or_path)
    folder, report = Path(settings.output_dir), Report()
    folder.mkdir(parents=True, exist_ok=True)
    results = {name: folder / f"{kind}{name}" for name in (".jsonl", "_report.json", "_tokens")}
    for name, path in results.items():
        if path.is_symlink() or (path.exists() and path.is_dir() != (name == "_tokens")):
            raise InputError(f"{path} is in the way")
    for old in folder.glob(".unfinished-*"):  # of runs that were killed
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as temporary:
        place = Path(temporary)
        with contextlib.closing(sqlite3.connect(place / "seen", isolation_level=None)) as seen:
            for statement in ("PRAGMA synchronous = OFF", "PRAGMA journal_mode = OFF", "BEGIN"):
                seen.execute(statement)  # it need not outlive a crash
            stream = parse(sources, report)
            if kind == "hft":
                stream = verified(stream, settings.keep_unverified, report)
                stream = simple_or_thought(stream, classifier, settings.complexity, report)
            else:
                stream = judgeable(stream, report)
            stream = sieve("wrap", stream, partial(unwrappable, kind=kind), report)
            repeats = repetition(seen, settings.near_duplicate)
            stream = sieve("deduplicate", stream, repeats, report)
            stream = sieve("decontaminate", stream, evaluation.given_away, report)
            with open(place / "clean", "w", encoding="utf-8") as file:
                for example in stream:
                    write_row(row_of(example, kind), file)
        rows = mixed(place / "clean", sizes, settings.seed, report)
        write_set(rows, place, kind, tokenizer, report)
        if not report.rows:
            raise InputError(f"no row is left:\n{report.text()}")
        write_json(place / f"{kind}_report.json", vars(report))
        for path in results.values():
            if path.is_dir():
                shutil.rmtree(path)
            if (place / path.name).exists():
                os.replace(place / path.name, path)
    return report


def run(kind: str, settings: PrepareSettings) -> None:
    """The commands `hft` and `rl`."""
    began = time.perf_counter()
    report = prepare(kind, settings)
    seconds = time.perf_counter() - began
    print(report.text())
    read = sum(report.totals("parse").values())
    print(f"{read} rows read in {seconds:.1f} s: {read / seconds:.0f} rows a second")
    print(f"{Path(settings.output_dir) / kind}.jsonl: finished")
    if not settings.evaluation:
        print("no --evaluation: no evaluation question was kept out")


def main() -> None:
    classes = {"hft": HFTSetSettings, "rl": RLSetSettings}
    commands = {kind: (cls, partial(run, kind)) for kind, cls in classes.items()}
    run_subcommand("python -m data.prepare", commands)


if __name__ == "__main__":
    run_command(main)
