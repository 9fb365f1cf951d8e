"""Build the HFT and the RL set from public sources, as the paper does (§2.2, App. C).

    python -m data.prepare hft --sources openr1_math:openr1/*.parquet,wildchat:wildchat/*.parquet \
        --evaluation math500.jsonl,aime24.jsonl --output_dir prepared \
        --tokenizer_name_or_path Qwen2.5-Math-1.5B
    python -m data.prepare rl --sources deepscaler:deepscaler.jsonl,tulu_3:tulu/*.parquet \
        --evaluation math500.jsonl,aime24.jsonl --output_dir prepared

Examples pass through the steps below one by one, in a stream, and every step counts what it keeps
and why it drops the rest. What has to be remembered (which queries were seen) is on disk, so that
1.7 million examples need no more memory than ten thousand.
"""

import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import sqlite3
import sys
import tempfile
import time
import unicodedata
import zlib
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data import classify
from data.rows import (
    as_messages,
    encode_row,
    format_response,
    parse_response,
    read_rows,
    token_writer,
)
from data.sources import DOMAINS, RECIPES, Example, Skip, read_source
from data.verify_code import extract_code, run_tests
from data.verify_math import is_correct
from model import InputError, Tokenizer, write_json
from sample import MODES, parse_settings, run_command, setting

CHUNK = 512  # examples that the classifier sees at once
HASHES = 64  # of a MinHash signature: its estimate of a similarity of 0.9 is good to 0.04
BANDS = 16  # of 4 hashes each; 0.9 alike share one with a probability of 1 - 5e-8
SHINGLE = 3  # words
EDGES = [0, *(2**n for n in range(6, 16))]  # of the histogram, in tokens
NO_IDS = itertools.repeat(None)


@dataclass
class PrepareSettings:
    """Build a set for Hybrid Fine-Tuning or for RL from public sources."""

    sources: str | None = setting(
        None, "recipe:file, with commas between them; * in a file's name stands for anything; "
        "recipe/domain:file says the domain. Recipes: " + ", ".join(RECIPES),
    )  # fmt: skip
    evaluation: str | None = setting(None, "sets whose questions are kept out, with commas")
    output_dir: str = setting("prepared", "where the rows and the report go")
    classifier_name_or_path: str | None = setting(None, "of queries; none: a few rules")
    complexity: float = setting(
        classify.THRESHOLD, "a query that is complex with this probability needs a trace; 2: none"
    )
    keep_unverified: bool = setting(False, "keep traces that nothing can verify")
    near_duplicate: float = setting(
        0.9, "similar queries (Jaccard's index); 1: equal ones", None, 0.5, 1
    )
    contamination_ngram: int = setting(
        8, "shared words in a row that give a question away", minimum=1
    )
    mix: str | None = setting(
        None, "at most so many rows of a domain, a mode or both, chosen at random; the first that "
        "fits a row counts: general=674908,maths/think=631325,no_think=50000",
    )  # fmt: skip
    tokenizer_name_or_path: str | None = setting(None, "checkpoint to tokenize for (hft)")
    seed: int = setting(0, "of the choice of rows")


# --------------------------------------------------------------------------------------- the report


class Report:
    """What every step kept and dropped, by source, and what the set is made of in the end."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, Counter[str]]] = {}
        self.rows: Counter[str] = Counter()  # by domain/mode
        self.lengths: dict[str, Counter[int]] = {}  # by mode: rows from so many tokens on (Fig. 8)
        self.tokens: Counter[str] = Counter()  # by mode

    def add(self, step: str, source: str, outcome: str) -> None:
        self.steps.setdefault(step, defaultdict(Counter))[source][outcome] += 1

    def keep(self, step: str, example: Example) -> Example:
        self.add(step, example.source, "kept")
        return example

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

    def values(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "rows": self.rows,
            "tokens": self.tokens,
            "lengths": self.lengths,
        }

    def text(self) -> str:
        lines = [f"{'step':14}{'kept':>9}{'dropped':>9}  why"]
        for step in self.steps:
            outcomes = self.totals(step)
            kept = outcomes.pop("kept", 0)
            why = ", ".join(f"{n} {reason}" for reason, n in outcomes.most_common())
            lines.append(f"{step:14}{kept:9}{outcomes.total():9}  {why}")
        lines += [f"{name:14}{count:9}" for name, count in sorted(self.rows.items())]
        for mode, lengths in self.lengths.items():
            total = lengths.total()
            lines.append(f"{mode}: {total} rows, {self.tokens[mode] / total:.0f} tokens on average")
            for low, high in zip(EDGES, [*EDGES[1:], None]):
                bar = "█" * round(40 * lengths[low] / total)
                lines.append(f"  {low:>6} to {high or 'more':<6} {lengths[low]:8} {bar}")
        return "\n".join(lines)


# ------------------------------------------------------------------------ the steps, in their order


def parse(sources: list[tuple[str, str, Path]], report: Report) -> Iterator[Example]:
    """Every row of every source as its recipe reads it."""
    for name, domain, path in sources:
        recipe = RECIPES[name]() if isinstance(RECIPES[name], type) else RECIPES[name]
        rows = read_source(path)
        for row in tqdm(rows, path.name, unit=" rows", disable=None, mininterval=1):
            try:
                example = recipe(row)
            except Skip as skip:
                report.add("parse", name, str(skip))
                continue
            example.source, example.domain = name, domain or example.domain
            yield report.keep("parse", example)


def verified(stream: Iterable[Example], keep_unverified: bool, report: Report) -> Iterator[Example]:
    """Examples without a trace, and those whose answer is right: by tests, by the final answer, or
    by the publisher's verdict where the row has neither."""
    for example in stream:
        verdict = example.verified
        if not example.answer:
            reason = "no answer"
        elif not example.thinking:
            reason = ""
        else:
            if example.tests:
                verdict, _ = run_tests(extract_code(example.answer), example.tests)
            elif example.gold:
                verdict = any(is_correct(example.answer, gold) for gold in example.gold)
            unknown = "" if keep_unverified else "nothing to verify it by"
            reason = unknown if verdict is None else "" if verdict else "wrong answer"
        if reason:
            report.add("verify", example.source, reason)
        else:
            yield report.keep("verify", example)


def simple_or_thought(
    stream: Iterable[Example], classifier: Any, threshold: float, report: Report
) -> Iterator[Example]:
    """Examples with a trace, and those without whose query is simple."""
    stream = iter(stream)
    while chunk := list(itertools.islice(stream, CHUNK)):
        untraced = [example for example in chunk if not example.thinking]
        complexity = iter(classifier.predict([query_text(example) for example in untraced]))
        for example in chunk:
            if not example.thinking and next(complexity) >= threshold:
                report.add("classify", example.source, "complex, without a trace")
            else:
                yield report.keep("classify", example)


def wrapped(stream: Iterable[Example], report: Report) -> Iterator[Example]:
    """Examples whose response is well formed once it has its tags."""
    for example in stream:
        text = "".join(message["content"] for message in example.prompt)
        if not parse_response(completion(example)).well_formed:
            report.add("wrap", example.source, "a tag inside the response")
        elif any(tag in text for tag in Tokenizer.TAGS):
            report.add("wrap", example.source, "a tag inside the prompt")
        else:
            yield report.keep("wrap", example)


def unique(
    stream: Iterable[Example], seen: sqlite3.Connection, similarity: float, report: Report
) -> Iterator[Example]:
    """The first of equal queries, and of queries that are nearly the same (MinHash).

    Two queries are compared if they agree in one of 16 bands of their signatures, with the first
    query that had this band.
    """
    seen.execute("CREATE TABLE exact (key INTEGER PRIMARY KEY)")
    seen.execute("CREATE TABLE signatures (id INTEGER PRIMARY KEY, signature BLOB)")
    seen.execute("CREATE TABLE bands (key INTEGER PRIMARY KEY, id INTEGER)")
    random_bits = np.random.default_rng(0).integers(0, 2**64, (2, HASHES, 1), dtype=np.uint64)
    for number, example in enumerate(stream):
        words = words_of(query_text(example), signs=True)
        key = hash_of(" ".join(words).encode())
        if not seen.execute("INSERT OR IGNORE INTO exact VALUES (?)", (key,)).rowcount:
            report.add("deduplicate", example.source, "the same query")
            continue
        if similarity < 1:
            signature = minhash(words, random_bits)
            bands = [
                hash_of(bytes([i]) + band.tobytes())
                for i, band in enumerate(np.split(signature, BANDS))
            ]
            found = seen.execute(
                "SELECT DISTINCT signature FROM bands JOIN signatures USING (id) "
                f"WHERE key IN ({','.join('?' * BANDS)})", bands,
            )  # fmt: skip
            others = [np.frombuffer(other, np.uint32) for (other,) in found]
            if any((signature == other).mean() >= similarity for other in others):
                report.add("deduplicate", example.source, "nearly the same query")
                continue
            seen.execute("INSERT INTO signatures VALUES (?, ?)", (number, signature.tobytes()))
            seen.executemany(
                "INSERT OR IGNORE INTO bands VALUES (?, ?)", [(b, number) for b in bands]
            )
        yield report.keep("deduplicate", example)


def minhash(words: list[str], random_bits: np.ndarray) -> np.ndarray:
    """(HASHES,) uint32: the least of each hash function over the query's shingles. The share of
    equal entries of two signatures estimates the Jaccard index of their sets of shingles."""
    count = max(1, len(words) - SHINGLE + 1)
    shingles = {" ".join(words[i : i + SHINGLE]) for i in range(count)}
    hashes = np.array([zlib.crc32(shingle.encode()) for shingle in shingles], dtype=np.uint64)
    multiplier, offset = random_bits
    return (
        ((hashes * (multiplier | np.uint64(1)) + offset) >> np.uint64(32)).min(1).astype(np.uint32)
    )


class Evaluation:
    """The questions of the evaluation sets, as whole texts and as n-grams of words."""

    def __init__(self, paths: list[str], ngram: int) -> None:
        self.ngram = ngram
        self.texts, self.ngrams = set[str](), set[str]()
        for path in paths:
            for where, row in read_rows(path):
                words = words_of(prompt_text(row.get("prompt", row.get("problem")), where))
                self.texts.add("".join(words))
                self.ngrams.update(self.split(words))

    def split(self, words: list[str]) -> Iterator[str]:
        n = self.ngram
        return (" ".join(words[i : i + n]) for i in range(len(words) - n + 1))

    def contains(self, text: str) -> str:
        """Why this text gives one of the questions away, or ""."""
        words = words_of(text)
        if "".join(words) in self.texts:
            return "an evaluation question"
        if not self.ngrams.isdisjoint(self.split(words)):
            return f"{self.ngram} words in a row of an evaluation question"
        return ""


def decontaminated(
    stream: Iterable[Example], evaluation: Evaluation, report: Report
) -> Iterator[Example]:
    """Examples that share no question with the evaluation sets."""
    for example in stream:
        reason = evaluation.contains(query_text(example))
        if reason:
            report.add("decontaminate", example.source, reason)
        else:
            yield report.keep("decontaminate", example)


# -------------------------------------------------------------------------------------------- texts


def prompt_text(prompt: Any, where: str) -> str:
    """What the user says in a prompt: a text, or messages."""
    if isinstance(prompt, list):
        prompt = "\n".join(
            str(m.get("content")) for m in prompt if isinstance(m, dict) and m.get("role") == "user"
        )
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where}: expected a prompt")
    return prompt


def query_text(example: Example) -> str:
    return prompt_text(example.prompt, "prompt")


def words_of(text: str, signs: bool = False) -> list[str]:
    """Words and numbers without case and spacing: `2x` is `2 x`. With `signs` also those that may
    change what is asked, as in 2+3 and 2·3; never $, quotation marks and the ends of clauses."""
    pattern = r"[^\W\d_]+|\d+" + (r"|[^\w\s$.,;:!?'\"]|_" if signs else "")
    return re.findall(pattern, unicodedata.normalize("NFKC", text).casefold())


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
    elif example.gold or example.answer:
        row["answer"] = example.gold or [example.answer]
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
            raise InputError(
                f"--sources {part}: expected recipe:file or recipe/domain:file, with a recipe of "
                f"{', '.join(RECIPES)} and a domain of {', '.join(DOMAINS)}"
            )
        found = sorted(glob(pattern))
        if not found:
            raise InputError(f"--sources {part}: no such file")
        files += [(recipe, domain, Path(path)) for path in found]
    if not files:
        raise InputError("give --sources, as in --sources generic/maths:questions.jsonl")
    return files


def parse_mix(mix: str | None) -> dict[str, int]:
    """The largest number of rows of each group."""
    sizes = {}
    for part in mix.split(",") if mix else []:
        name, _, number = part.partition("=")
        known = all(p in (*DOMAINS, *MODES) for p in name.split("/"))
        if not known or not number.isdigit():
            raise InputError(
                f"--mix {part}: expected a domain ({', '.join(DOMAINS)}), a mode, or domain/mode, "
                "and a number, as in maths/think=1000"
            )
        sizes[name] = int(number)
    return sizes


def prepare(kind: str, settings: PrepareSettings) -> Report:
    """Write {kind}.jsonl, {kind}_report.json and, with a tokenizer, the folder {kind}_tokens.

    kind: "hft" or "rl". Nothing appears in `output_dir` before everything is done.
    """
    sources, sizes = parse_sources(settings.sources), parse_mix(settings.mix)
    paths = settings.evaluation.split(",") if settings.evaluation else []
    evaluation = Evaluation(paths, settings.contamination_ngram)
    classifier = classify.load(settings.classifier_name_or_path)
    tokenizer = None
    if kind == "hft" and settings.tokenizer_name_or_path:
        tokenizer = Tokenizer.from_pretrained(settings.tokenizer_name_or_path)
    folder, report = Path(settings.output_dir), Report()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        place = Path(temporary)
        with contextlib.closing(sqlite3.connect(place / "seen", isolation_level=None)) as seen:
            for statement in ("PRAGMA synchronous = OFF", "PRAGMA journal_mode = OFF", "BEGIN"):
                seen.execute(statement)  # it need not outlive a crash
            stream = parse(sources, report)
            if kind == "hft":
                stream = verified(stream, settings.keep_unverified, report)
                stream = simple_or_thought(stream, classifier, settings.complexity, report)
                stream = wrapped(stream, report)
            stream = unique(stream, seen, settings.near_duplicate, report)
            stream = decontaminated(stream, evaluation, report)
            with open(place / "clean.jsonl", "w", encoding="utf-8") as file:
                for example in stream:
                    file.write(json.dumps(row_of(example, kind), ensure_ascii=False) + "\n")
        rows = mixed(place / "clean.jsonl", sizes, settings.seed, report)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(place / f"{kind}.jsonl", "w", encoding="utf-8"))
            write_tokens, rows_with_ids = None, zip(rows, NO_IDS)
            if tokenizer is not None:
                writer = token_writer(place / f"{kind}_tokens", tokenizer)
                write_tokens = stack.enter_context(writer)
                rows_with_ids = tokenized(rows, tokenizer, report)
            for row, ids in rows_with_ids:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                report.describe(row, ids)
                if write_tokens and ids:
                    write_tokens(*ids)
        write_json(place / f"{kind}_report.json", report.values())
        for name in (f"{kind}.jsonl", f"{kind}_tokens", f"{kind}_report.json"):
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            if (place / name).exists():
                os.replace(place / name, folder / name)
    return report


def main() -> None:
    kind, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if kind not in ("hft", "rl"):
        raise InputError(f"unknown command {kind!r}: python -m data.prepare hft or rl")
    settings = parse_settings(PrepareSettings, f"python -m data.prepare {kind}", arguments)
    began = time.perf_counter()
    report = prepare(kind, settings)
    seconds = time.perf_counter() - began
    print(report.text())
    read = sum(report.totals("parse").values())
    print(f"{read} rows read in {seconds:.1f} s: {read / seconds:.0f} rows a second")
    if not settings.evaluation:
        print("no --evaluation: no evaluation question was kept out")


if __name__ == "__main__":
    run_command(main)
