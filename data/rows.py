"""The rows of fine-tuning, RL and evaluation sets: JSON lines, read, checked and tokenized.

A bad row is refused with its file and line.
"""

import contextlib
import functools
import gzip
import hashlib
import itertools
import json
import re
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from data.cli import (
    InputError,
    is_main_process,
    mix_seed,
    named,
    progress,
    read_json,
    write_json,
)
from data.code_rows import code_prompt, read_tests
from data.modes import MODES, format_response, parse_response
from data.tokenizer import ROLES, Messages, Tokenizer

# --------------------------------------------------------------------------------- queries and rows


@dataclass
class Query:
    """A question to answer, for RL and evaluation."""

    prompt: Messages
    answers: list[str]  # any of them is right
    level: str
    domain: str
    tests: str = ""  # what a program must pass, if the answer is one
    id: str = ""  # the name that the row gives it
    dataset: str = ""  # the part of its set that the row names

    @property
    def definite(self) -> bool:
        """Whether it has a definite answer, to be judged by rule (Eq. 7)."""
        return bool(self.answers or self.tests)


def read_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(«file:line», object) for each line of a .jsonl or .jsonl.gz file, or for each row of a
    .parquet file, where pyarrow is installed; no line is passed over."""
    path = Path(path)
    number = 0
    if path.suffix == ".parquet":
        yield from read_parquet(path)
        return
    try:
        with named(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    if b"\\u" in line:  # an escape may hide half a surrogate pair
                        json.dumps(row, ensure_ascii=False).encode("utf-8")
                except (ValueError, RecursionError) as error:
                    why = str(error)
                    if isinstance(error, json.JSONDecodeError):  # whose line is always the first
                        why = f"{error.msg} at character {error.pos + 1}"
                    what = f"not JSON: {why}" if line.strip() else "empty row"
                    raise InputError(f"{path}:{number}: {what}") from None
                if not isinstance(row, dict):
                    raise InputError(f"{path}:{number}: expected a JSON object")
                yield f"{path}:{number}", row
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}:{number + 1}: cannot be read: {error}") from None
    if number == 0:
        raise InputError(f"{path}: no rows")


def read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(«file:row», object) for each row, one after the other."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: to read Parquet, pip install pyarrow") from None
    number = 0
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=256)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows, 1):
            yield f"{path}:{number}", row
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}:{number + 1}: {error}") from None
    if number == 0:
        raise InputError(f"{path}: no rows")


def as_messages(given: Any, where: str, role: str = "user") -> Messages:
    """Messages, given as such or as the text of a single one of `role`."""
    messages = [{"role": role, "content": given}] if isinstance(given, str) else given
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: expected a prompt: text, or a list of messages")
    for message in messages:
        parts = [message.get(k) for k in ("role", "content")] if isinstance(message, dict) else [0]
        if not all(isinstance(part, str) and part.strip() for part in parts):
            raise InputError(f"{where}: a message needs a role and a content that are not empty")
        if message["role"] not in ROLES:
            raise InputError(f"{where}: unknown role {message['role']!r}: {', '.join(ROLES)}")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def read_hft_rows(path: str | Path) -> Iterator[tuple[str, Messages, str]]:
    """(«file:line», prompt, response) of each row, whose response the grammar has accepted.

    A row has `messages`; or `prompt` and `completion`; or `prompt`, `answer` and maybe `thinking`.
    """
    for where, row in read_rows(path):
        if "messages" in row:
            messages = as_messages(row["messages"], where)
            prompt, response = messages[:-1], messages[-1:]
        elif "completion" in row:
            prompt = as_messages(row.get("prompt"), where)
            response = as_messages(row["completion"], where, "assistant")
        else:
            prompt = as_messages(row.get("prompt"), where)
            thinking, answer = row.get("thinking") or "", row.get("answer")
            mode = row.get("mode", "think" if thinking else "no_think")
            if mode not in MODES or not isinstance(answer, str) or not isinstance(thinking, str):
                forms = "a completion, messages, or an answer (text), with thinking in mode think"
                raise InputError(f"{where}: expected {forms}; this row has {', '.join(row)}")
            if mode == "no_think" and thinking:
                raise InputError(f"{where}: a no_think row has thinking")
            response = as_messages(format_response(mode, thinking, answer), where, "assistant")
        if not prompt or len(response) != 1 or response[0]["role"] != "assistant":
            raise InputError(f"{where}: expected a prompt and one response of the assistant")
        text = response[0]["content"]
        if not parse_response(text).well_formed:
            raise InputError(
                f"{where}: the response is neither <think>…</think>answer "
                "nor <no_think>answer</no_think>"
            )
        yield where, prompt, text


def split_paths(paths: str | Path) -> list[str]:
    """The names of files that are given with commas between."""
    names = str(paths).split(",")
    if not all(names):
        raise InputError(f"{paths}: a file's name is empty")
    return names


OF_ROWS = re.compile(r"\.(jsonl(\.gz)?|parquet)$")  # how the name of a file of rows ends
IDS = ("id", "task_id", "question_id", "problem_id", "uid")
PROMPTS = ("prompt", "problem", "question", "instruction", "text", "question_content")


def prompt_of(row: dict[str, Any]) -> Any:
    """The prompt of a row, as its set has it."""
    return code_prompt(row) or question_of(row)


def question_of(row: dict[str, Any]) -> Any:
    """What a row asks, whatever its set calls it; Alpaca's `input` belongs to it."""
    name = next((name for name in PROMPTS if row.get(name) and str(row[name]).strip()), "prompt")
    prompt, extra = row.get(name), row.get("input")
    if name == "instruction" and isinstance(extra, str) and extra.strip():
        return f"{prompt}\n{extra}"
    return prompt


def row_prompt(row: dict[str, Any], where: str) -> Messages:
    """The prompt of a row, as messages."""
    messages = as_messages(prompt_of(row), where)
    if messages[-1]["role"] == "assistant":
        raise InputError(f"{where}: the prompt ends with an answer of the assistant")
    return messages


def final_answer(text: str) -> str:
    """The 42 of a GSM8K answer, whose last line is `#### 42`; any other answer as it is."""
    last = text.rpartition("\n#### ")[2]
    return text if "\n" in last else last


def read_queries(
    path: str | Path,
    since: str | None = None,
    until: str | None = None,
    limit: int | None = None,
) -> list[Query]:
    """Read queries for RL or evaluation from a file, or from several with commas between.

    since, until: the first and the last `contest_date`, such as 2024-08-01, of those to read.
    limit: how many of these are read from each file, the first ones; None: all.

    A row has `prompt` and `answer`, a text or a list; or `prompt` and `tests`, Python code or a
    list of its parts; or only `prompt`, for a reward model to judge. Published sets' own names are
    read as well: PROMPTS for `prompt`; `solution` or `reward_model.ground_truth` for `answer`, and
    GSM8K's, which follows ####; the tests of HumanEval, MBPP, LiveCodeBench and APPS; `task_id`,
    `question_id`, `problem_id` and `uid` for `id`; `difficulty` for `level`. The domain is the
    row's, or its source's, or its file's.
    """
    first = day_of(since or "0001-01-01", "--since")
    last = day_of(until or "9999-12-31", "--until")

    def asked_for(found: tuple[str, dict[str, Any]]) -> bool:
        where, row = found
        if not since and not until:
            return True
        return first <= day_of(row.get("contest_date"), f"{where}: contest_date") <= last

    queries = []
    files = (itertools.islice(filter(asked_for, read_rows(f)), limit) for f in split_paths(path))
    for where, row in itertools.chain.from_iterable(files):
        prompt = row_prompt(row, where)
        reward_model = row.get("reward_model")
        truth = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
        candidates = [row.get("answer"), row.get("solution"), truth]
        answer = next((given for given in candidates if given is not None), None)
        answers: list[Any] = answer if isinstance(answer, list) else [answer]
        tests = read_tests(row, where)
        if tests or answer is None:
            answers = []  # beside tests, what is called so is a program that passes
        elif not answers or not all(isinstance(a, str) and a.strip() for a in answers):
            raise InputError(f"{where}: expected an answer: text, or a list of accepted texts")
        answers = [final_answer(a) for a in answers]
        level = row.get("level") if row.get("level") is not None else row.get("difficulty")
        labels = [level, row.get("domain"), row.get("source")]
        if any(isinstance(label, (list, dict)) for label in labels):
            raise InputError(f"{where}: level, domain and source are texts or numbers")
        level, domain, source = ("" if label is None else str(label) for label in labels)
        file = Path(where.rpartition(":")[0]).name
        domain = domain or source or OF_ROWS.sub("", file)
        ids = [str(row[k]) for k in IDS if row.get(k) is not None]
        part = str(row.get("dataset") or "")
        queries.append(Query(prompt, answers, level, domain, tests, "".join(ids[:1]), part))
    if not queries:
        raise InputError(f"{path}: no row has a contest_date from {first} to {last}")
    return queries


def day_of(given: Any, where: str) -> date:
    """The day of a time such as 2024-08-03T00:00:00."""
    with contextlib.suppress(ValueError):
        if isinstance(given, str):
            return date.fromisoformat(given[:10])
    raise InputError(f"{where}: expected a date such as 2024-08-03, not {given!r}")


def check_domain(queries: Sequence[Query], domain: str | None) -> None:
    """Raise InputError, before anything is computed, if no query has the headline domain."""
    domains = {query.domain: None for query in queries}
    if domain is not None and domain not in domains:
        raise InputError(f"--eval_domain {domain}: the queries have {', '.join(domains)}")


def check_contexts(
    queries: Sequence[Query], tokenizer: Tokenizer, response: int, positions: int, source: Any
) -> None:
    """Warn where a query with a response of so many tokens may be longer than the `positions` that
    a model was made for. Raises InputError where not even a prompt fits."""
    longest = sorted(queries, key=lambda q: sum(len(m["content"]) for m in q.prompt))[-8:]
    prompt = max((len(tokenizer.encode_chat(query.prompt)) for query in longest), default=0)
    check_prompt(prompt, positions, f"{source}: ")
    warn_of_positions(prompt + response if queries else 0, positions, source)


def check_prompt(tokens: int, positions: int, where: str = "") -> None:
    """Raise InputError where a prompt has more tokens than a model has positions."""
    if tokens > positions:
        raise InputError(f"{where}a prompt of {tokens} tokens; the model has {positions} positions")


def warn_of_positions(tokens: int, positions: int, source: Any) -> None:
    """Warn of contexts that are longer than any that a model was made for."""
    if tokens > positions and is_main_process():
        what = f"up to {tokens} tokens in a context, but the model has {positions} positions"
        print(f"warning: {source}: {what}", file=sys.stderr)


# ----------------------------------------------------------------------------------- tokenized rows


def encode_row(
    tokenizer: Tokenizer, prompt: Messages, response: str, where: str
) -> tuple[list[int], list[int]]:
    """(prompt ids, response ids) of an HFT row, the stop token at the end of the response."""
    ids = tokenizer.encode(response)
    if set(ids) & set(tokenizer.eos_ids):
        raise InputError(f"{where}: a stop token inside the response")
    return tokenizer.encode_chat(prompt), [*ids, tokenizer.eos_ids[0]]


def fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of all that decides a row's ids: vocabulary, chat template and stop token."""
    parts = [tokenizer.backend.to_str(), str(tokenizer.chat_template), str(tokenizer.eos_ids[0])]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@contextlib.contextmanager
def token_writer(
    folder: Path, tokenizer: Tokenizer, source: str = ""
) -> Iterator[Callable[[list[int], list[int]], None]]:
    """A function that writes a row's prompt and response ids into a new folder.

    tokens.bin has the ids of one row after the other, lengths.bin the lengths of prompt and
    response, all uint32, little-endian. tokens.json says how many, whose ids they are, and what
    they are made from: `source`, a hash of a file.
    """
    folder.mkdir()
    count = Counter(rows=0, tokens=0)
    with open(folder / "tokens.bin", "wb") as tokens, open(folder / "lengths.bin", "wb") as lengths:

        def write(prompt: list[int], response: list[int]) -> None:
            tokens.write(np.array([*prompt, *response], "<u4").tobytes())
            lengths.write(np.array([len(prompt), len(response)], "<u4").tobytes())
            count.update(rows=1, tokens=len(prompt) + len(response))

        yield write
    made = {"tokenizer": fingerprint(tokenizer), "source": source}
    write_json(folder / "tokens.json", {**count, **made})


class TokenizedRows:
    """The rows of such a folder, (prompt ids, response ids), of at most `max_length` tokens.

    They stay on the disk. Raises InputError if they were made for another tokenizer.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, max_length: int) -> None:
        if not (folder / "tokens.json").exists():
            raise InputError(f"{folder}: expected hft.jsonl or the like, or a folder hft_tokens")
        summary = read_json(folder / "tokens.json")
        if summary.get("tokenizer") != fingerprint(tokenizer):
            raise InputError(f"{folder}: tokenized for another tokenizer or chat format")
        if summary.get("rows") == 0:
            raise InputError(f"{folder}: no rows")
        self.folder, self.vocab_size = folder, len(tokenizer)
        try:
            self.tokens = np.memmap(folder / "tokens.bin", "<u4", "r")
            lengths = np.fromfile(folder / "lengths.bin", "<u4").reshape(-1, 2).astype(np.int64)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: {error}") from None
        ends = lengths.sum(1).cumsum()
        found = {"rows": len(lengths), "tokens": len(self.tokens)}
        whole = all(summary.get(name) == count for name, count in found.items())
        if not whole or lengths.min() < 1 or ends[-1] != len(self.tokens):
            raise InputError(f"{folder}: its files do not fit each other")
        fits = lengths.sum(1) <= max_length
        self.starts, self.lengths = (ends - lengths.sum(1))[fits], lengths[fits]
        self.too_long = len(lengths) - len(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> tuple[list[int], list[int]]:
        start, (prompt, response) = self.starts[number], self.lengths[number]
        ids = self.tokens[start : start + prompt + response].tolist()
        if max(ids) >= self.vocab_size:
            raise InputError(f"{self.folder}: a token that the tokenizer does not have: {max(ids)}")
        return ids[:prompt], ids[prompt:]


Row = Sequence[list[int]]  # the token ids of a prompt, then of a response, or of two (DPO)
Rows = Sequence[Row] | TokenizedRows


def tokenize_rows(path: str, source: str, tokenizer: Tokenizer, cache: Path) -> None:
    """Tokenize the HFT rows of a file into the folder `cache`, unless they are there already.

    source: a hash of the file, by which to know that.
    """
    if (cache / "tokens.json").exists():
        made = read_json(cache / "tokens.json")
        if made.get("source") == source and made.get("tokenizer") == fingerprint(tokenizer):
            return
    shutil.rmtree(cache, ignore_errors=True)
    with token_writer(cache, tokenizer, source) as write:
        for where, messages, text in progress(read_hft_rows(path), "reading", unit=" rows"):
            write(*encode_row(tokenizer, messages, text, where))


def tokenized_rows(
    path: str, source: str, tokenizer: Tokenizer, max_length: int, cache: Path, first: Callable
) -> TokenizedRows:
    """The HFT rows of a file, or of a folder of rows that data/prepare.py has tokenized.

    source: a hash of these. `first` runs a function on the first process, which tokenizes a file
    for all into the folder `cache`.
    """
    folder = Path(path)
    if not folder.is_dir():
        folder = cache
        first(lambda: tokenize_rows(path, source, tokenizer, cache))
    rows = TokenizedRows(folder, tokenizer, max_length)
    if not len(rows):
        raise InputError(f"{path}: every row is longer than max_length")
    return rows


def row_length(row: Row) -> int:
    """The number of tokens of a row."""
    return sum(map(len, row))


def batch_indices(num_rows: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The row numbers of a step. Each epoch has its own order, which follows from the arguments
    alone, so that resuming needs no state."""
    places = range(step * batch_size, (step + 1) * batch_size)
    return [int(epoch_order(num_rows, i // num_rows, seed)[i % num_rows]) for i in places]


@functools.lru_cache(maxsize=4)
def epoch_order(num_rows: int, epoch: int, seed: int) -> np.ndarray:
    """A permutation of the rows."""
    return np.random.default_rng(mix_seed(seed, "order", epoch)).permutation(num_rows)
