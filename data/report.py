"""What is shown and written once responses are judged: tables, bars, intervals, the log of a step,
exports, and the finished part of long work."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from data.cli import (
    InputError,
    is_main_process,
    mix_seed,
    read_json,
    write_bytes,
    write_json,
    write_rows,
)
from data.judge import Judged
from data.modes import MODES, NO_THINK, READERS, THINK
from data.processes import Runtime, peak_memory
from data.rows import Query, read_rows
from data.verify_code import extract_code

EVALPLUS = {"HumanEval": 164, "Mbpp": 378}  # its tasks; it refuses samples that leave some out
EXPORTS = ("alpaca_eval", "evalplus", "arena_hard", "livecodebench")
MAX_TESTS = 10_000  # characters of a query's tests in a record; inputs may have millions
T = TypeVar("T")


@dataclass
class Record:
    """A query and its judged responses, by setup: how the query was answered.

    The setups are "think" and "no_think", the mode being forced; "auto", the model having chosen;
    "router", a classifier of queries having chosen the mode.
    """

    query: Query
    responses: dict[str, list[Judged]]

    @property
    def graded(self) -> bool:
        """Whether there was anything to judge its responses by."""
        return all(j.reward is not None for judged in self.responses.values() for j in judged)

    def row(self) -> dict[str, Any]:
        """The record as it is written."""
        row = asdict(self)
        row["query"]["tests"] = row["query"]["tests"][:MAX_TESTS]
        return row

    @classmethod
    def from_row(cls, query: dict[str, Any], responses: dict[str, list[Any]]) -> Record:
        """Read back what `row` made of a record."""
        judged = {setup: [Judged(**j) for j in row] for setup, row in responses.items()}
        return cls(Query(**query), judged)


# ------------------------------------------------------------------------- what an evaluation shows


def bootstrap(values: Tensor) -> list[float]:
    """95% interval of the mean of (K, S) values, the K queries drawn again and again."""
    means = values.mean(1).numpy()
    drawn = np.random.default_rng(0).integers(len(means), size=(1000, len(means)))
    return np.quantile(means[drawn].mean(1), [0.025, 0.975]).tolist()


def results_table(rows: dict[str, dict[str, Any]]) -> str:
    """A table of figures, one line for each name; README.md explains the columns."""
    columns = {  # title: figure, width
        "pass@1": ("pass@1", 14), "think": ("think_ratio", 8), "tokens": ("mean_tokens", 9),
        "if think": ("think_tokens", 10), "if no_think": ("no_think_tokens", 13),
        "H_acc": ("hybrid_accuracy", 8), "cut": ("clipped_ratio", 7),
        "malformed": ("malformed_ratio", 11),
    }  # fmt: skip

    def shown(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    margin = max(20, *map(len, rows)) + 1
    lines = [" " * margin + "".join(f"{title:>{width}}" for title, (_, width) in columns.items())]
    for name, f in rows.items():
        low, high = f["pass@1_interval"] or (0, 0)
        half = f" ±{(high - low) / 2:.3f}" if f["pass@1_interval"] else ""
        texts = {k: shown(f[k], 1 if k.endswith("tokens") else 3) for k, _ in columns.values()}
        texts["pass@1"] += half
        cells = "".join(f"{texts[key]:>{width}}" for key, width in columns.values())
        lines.append(f"{name:{margin}}{cells}")
    return "\n".join(lines)


def level_bars(name: str, result: dict[str, Any], setup: str = "auto") -> str:
    """Think ratio by level, as bars."""
    lines = [f"think ratio by level, {name}"]
    for level, figures in result["by_level"].items():
        if (ratio := figures[setup]["think_ratio"]) is not None:
            lines.append(f"  level {level} {'█' * round(20 * ratio):░<20} {ratio:.2f}")
    return "\n".join(lines)


def show_evaluation(result: dict[str, Any], setups: Sequence[str]) -> None:
    """Print the table of an evaluation, also by domain, and the bars of the last setup."""
    rows = {setup: result[setup] for setup in setups}
    if len(result["by_domain"]) > 1:
        by_domain = result["by_domain"].items()
        rows |= {f"{s}, {domain}": figures[s] for s in setups for domain, figures in by_domain}
    count, graded = (
        sum(figures[name] for figures in result["by_domain"].values())
        for name in ("queries", "graded")
    )
    graded_only = "" if count == graded else f" ({graded} of them can be judged)"
    one = "" if result["domain"] == "all" else f"; the first lines are of {result['domain']}"
    print(f"\n{count} queries{graded_only}{one}")
    print(results_table(rows))
    if result["by_level"] and result[setups[-1]]["think_ratio"] is not None:
        print(level_bars(setups[-1], result, setups[-1]))


def examples(records: Sequence[Record], domain: str | None) -> list[dict[str, str]]:
    """Three free responses: to the easiest and the hardest query of the headline domain, and to one
    of another domain."""
    head = [r for r in records if domain is None or r.query.domain == domain]
    head.sort(key=lambda record: (len(record.query.level), record.query.level))
    other = [r for r in records if domain is not None and r.query.domain != domain] or head
    return [
        {"prompt": r.query.prompt[-1]["content"], "response": r.responses["auto"][0].text}
        for r in (head[0], head[-1], other[0])
    ]


def write_outcome(outcome: dict[str, Any], folder: Path, lab: Path) -> None:
    """Write results.json in a run's folder; and in the lab's, which has one for all methods."""
    for place in {folder, lab} if outcome else ():
        path = place / "results.json"
        earlier = read_json(path) if place != folder and path.exists() else {}
        write_json(path, {**earlier, **outcome})


def outcome_table(outcome: dict[str, Any], method: str) -> str:
    """The figures of both stages of a run, or of the second alone, as a table."""
    name, final = method.upper(), outcome[method]
    before, first = ("HFT", outcome["hft"]) if "hft" in outcome else (name, final)
    return results_table(
        {
            f"{before} forced think": first["think"],
            f"{before} forced no-think": first["no_think"],
            f"{before} auto": first["auto"],
            f"{name} auto": final["auto"],
        }
    )


def show_outcome(path: Path, method: str) -> None:
    """Print table and bars before and after training, and a few responses, from results.json."""
    outcome, name = read_json(path), method.upper()
    try:
        final = outcome[method]
        lines = [f"\n{final['queries']} held-out queries, domain {final['domain']}"]
        lines += [outcome_table(outcome, method)]
        lines += [level_bars("HFT", outcome["hft"])] if "hft" in outcome else []
        lines += [level_bars(name, final)]
        lines += [f"\nThree responses after {name}, freely sampled:"]
        for example in final["examples"]:
            lines += [f"  {example['prompt']}", f"    {example['response']}"]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"{path}: damaged") from None
    print("\n".join(lines))


# ------------------------------------------------------------------------ what a training step logs

# Sums over the tokens of a step, from which its means are made.
TOTALS = ("loss", "tokens", "entropy", "kl", "sampler_kl", "clipped_low", "clipped_high")


TRACKERS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}
EXAMPLES = 3  # queries whose responses are shown at a time


def load_tracker(name: str) -> Any:
    """The module that shows a log elsewhere, or None. Raises InputError if it is not installed."""
    if name == "none":
        return None
    try:
        return importlib.import_module(TRACKERS[name])
    except ImportError:
        raise InputError(f"--report_to {name}: pip install {name}") from None


class Log:
    """What a run logs, written by rank 0: a JSON object a step in log.jsonl, a few responses in
    completions.jsonl, and the same figures to TensorBoard, Weights & Biases, or Trackio."""

    def __init__(self, folder: Path, start_step: int, report_to: str) -> None:
        self.path, self.completions = folder / "log.jsonl", folder / "completions.jsonl"
        self.collapsed: set[str] = set()  # what was warned of, and is not over
        self.board: Any = None
        self.tracker: Any = None
        if not is_main_process():
            return
        for path in (self.path, self.completions):
            forget_steps_after(start_step, path)
        tracker = load_tracker(report_to)
        if report_to == "tensorboard":
            purge = start_step + 1
            self.board = tracker.SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        elif tracker:
            name = {"name": "-".join(folder.parts[-2:]), "resume": "allow"}
            if report_to == "wandb":
                name["id"] = f"{mix_seed(str(folder.resolve())):016x}"
            self.tracker = tracker
            tracker.init(project="lhrm", **name)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Log the figures of a step. One that is no number becomes null: JSON has no NaN."""
        if not is_main_process():
            return
        known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        write_rows(self.path, [{"step": step, **known}], "a")
        if self.board:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()
        if self.tracker:
            self.tracker.log(figures, step=step)

    def warn_of_collapse(
        self, step: int, metrics: dict[str, float], show: Callable[[str], Any]
    ) -> None:
        """Say when fewer than 2% of free responses begin to open with one of the modes, when 90% of
        all begin to be malformed, and when that is over."""
        cases = [
            (metrics[f"mode/{mode}_ratio"] < 0.02, "under 2%", "2% or more again",
             f"free responses would open with <{mode}>")
            for mode in MODES
        ]  # fmt: skip
        malformed = metrics["mode/malformed_ratio"] >= 0.9
        cases += [(malformed, "90% or more", "under 90% again", "responses are malformed or cut")]
        for begun, now, over, what in cases:
            if begun != (what in self.collapsed) and is_main_process():
                show(f"warning: step {step}: {now if begun else over} of {what}")
        self.collapsed = {what for begun, _, _, what in cases if begun}

    def has_accuracy(self, step: int) -> bool:
        """Whether an evaluation after `step` was logged."""
        if not self.path.exists():
            return False
        rows = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
        return any(row["step"] == step and "hybrid_accuracy" in row for row in rows)

    def close(self) -> None:
        """Let the trackers write what they hold back."""
        if self.board:
            self.board.close()
        if self.tracker:
            self.tracker.finish()

    def write_examples(
        self, step: int, examples: Sequence[dict[str, Any]], show: Callable[[str], Any]
    ) -> None:
        """Log a few queries with a response in each mode, and show them."""
        if not is_main_process():
            return
        write_rows(self.completions, ({"step": step, **row} for row in examples), "a")
        for row in examples:
            show(f"step {step}: {shortened(row['prompt'])}")
            for r in (row[group] for group in row if group != "prompt"):
                figures = [f"{name} {r[name]:.2f}" for name in ("reward", "a_intra", "a_inter")]
                show(f"  {', '.join(figures)}: {shortened(r['response'])}")


def shortened(text: str, length: int = 300) -> str:
    """A text in one line, without its middle where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length // 2]} … {text[-length // 2 :]}"


def forget_steps_after(step: int, path: Path) -> None:
    """Drop what a killed run logged past its checkpoint."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")[:-1]  # the last one may be half
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{path}:{number}: damaged; delete this line") from None
    write_bytes(path, b"".join(kept))


class Stopwatch:
    """Seconds by phase, since it was made. Those of a phase within another count once, for it."""

    def __init__(self, *phases: str) -> None:
        """phases: those that are logged, even where a rank has none of one; the first has begun."""
        self.seconds = dict.fromkeys(phases, 0.0)
        self.current, self.since = phases[0], time.perf_counter()

    def switch(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[self.current] = self.seconds.get(self.current, 0.0) + now - self.since
        self.current, self.since = phase, now

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        outer = self.current
        self.switch(name)
        try:
            yield
        finally:
            self.switch(outer)

    def figures(self, num_tokens: int, maximum: Callable[[float], float]) -> dict[str, float]:
        """The logged times of a step that ends now, each by the slowest rank, and its memory."""
        self.switch(self.current)
        seconds = maximum(sum(self.seconds.values()))
        times = {"step_time": seconds, "tokens_per_second": num_tokens / seconds}
        times |= {"peak_memory": maximum(peak_memory())}
        return times | {f"timing/{name}": maximum(s) for name, s in sorted(self.seconds.items())}


def step_metrics(
    groups: Sequence[tuple[Sequence[Judged], Sequence[float]]],
    totals: Sequence[float],
    with_reference: bool,
    num_groups: int = len(MODES),
) -> dict[str, float]:
    """The logged figures of a step, over all ranks; no accuracies if no query has an answer.

    groups: for each query its N judged responses, think first, and the log-probs of their tags.
    num_groups: into which the N responses fall: the modes, or 1 where the model chose the mode.
    """

    def grid(value: Callable[[Judged], float | None]) -> Tensor:
        values = [[float(value(judged) or 0.0) for judged in group] for group, _ in groups]
        return torch.tensor(values, dtype=torch.float64).view(len(groups), num_groups, -1)

    rewards, lengths = grid(lambda j: j.reward), grid(lambda j: j.length)  # (B, 2, G)
    modes, leaked = grid(lambda j: j.mode), grid(lambda j: j.leaked)
    spread = rewards.std(-1, correction=0)  # (B, 2)
    total = dict(zip(TOTALS, totals))
    tokens = total["tokens"]
    low, high = total["clipped_low"] / tokens, total["clipped_high"] / tokens
    metrics: dict[str, Any] = {
        "loss": total["loss"],
        "reward": rewards.mean(),
        "reward_std": spread.mean(),
        "frac_reward_zero_std": (spread == 0).double().mean(),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": 1 - grid(lambda j: j.finished).mean(),
        "entropy": total["entropy"] / tokens,
        "sampler_kl": total["sampler_kl"] / tokens,
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
        "mode/think_ratio": (modes == THINK).double().mean(),
        "mode/no_think_ratio": (modes == NO_THINK).double().mean(),
        "mode/malformed_ratio": 1 - grid(lambda j: j.well_formed).mean(),
        "no_think/leak_ratio": leaked[modes == NO_THINK].mean(),
    }
    if num_groups == len(MODES):  # both tags were forced: their exact probabilities are known
        tags = torch.tensor([tags for _, tags in groups], dtype=torch.float64).view(rewards.shape)
        tags = tags[:, :, 0]  # (B, 2): log π(<think> | q), log π(<no_think> | q)
        metrics |= {
            "mode/think_ratio": tags[:, THINK].exp().mean(),
            "mode/no_think_ratio": tags[:, NO_THINK].exp().mean(),
            "mode/log_prob_think": tags[:, THINK].mean(),
            "mode/log_prob_no_think": tags[:, NO_THINK].mean(),
            "mode/entropy": torch.special.entr(tags.softmax(1)).sum(1).mean(),
        }
    if with_reference:
        metrics["kl"] = total["kl"] / tokens
    definite = torch.tensor([group[0].definite for group, _ in groups])  # (B,)
    for number, mode in enumerate(MODES):
        metrics[f"{mode}/reward"] = rewards[modes == number].mean()  # NaN where none is in it
        if definite.any():
            metrics[f"{mode}/accuracy"] = rewards[definite][modes[definite] == number].mean()
        metrics[f"{mode}/length"] = lengths[modes == number].mean()
    return {name: float(value) for name, value in metrics.items()}


def evaluation_metrics(result: dict[str, Any]) -> dict[str, float]:
    """What the log keeps of an evaluation: H_acc, and figures of free responses, also by domain."""
    parts = {"eval": result, **{f"eval/{d}": part for d, part in result["by_domain"].items()}}
    metrics = {
        f"{place}/{name}": part["auto"][name]
        for place, part in parts.items()
        for name in ("pass@1", "think_ratio", "mean_tokens")
    }
    metrics["hybrid_accuracy"] = result["auto"]["hybrid_accuracy"]
    return {name: value for name, value in metrics.items() if value is not None}


ON_BAR = {  # what a progress bar shows of a step, by its name in the log
    "loss_per_token": "loss/token", "mean_token_accuracy": "accuracy", "rewards/margins": "margin",
    "rewards/accuracies": "pairs", "reward": "reward", "mode/think_ratio": "think",
    "mode/malformed_ratio": "malformed", "tokens_per_second": "tok/s", "peak_memory": "GiB",
}  # fmt: skip


def show_on_bar(bar: Any, figures: dict[str, float]) -> None:
    """Show some of a step's figures beside its progress bar."""
    known = {name: figures[name] for name in ON_BAR if math.isfinite(figures.get(name, math.nan))}
    shown = {ON_BAR[k]: f"{v:.0f}" if v >= 100 else f"{v:.3g}" for k, v in known.items()}
    bar.set_postfix(shown, refresh=False)  # with the next step


def rollout_examples(
    queries: Sequence[Query], judged: Sequence[Judged], intra: Tensor, inter: Tensor
) -> list[dict[str, Any]]:
    """A few queries with the first response in each mode, its reward, A_intra and A_inter.

    judged: of all responses, as in a rollout. intra, inter: (B, 2, G); (B, 1, N) where the model
    chose the modes.
    """
    _, num_groups, each = intra.shape
    groups = MODES if num_groups == len(MODES) else ("auto",)
    examples: list[dict[str, Any]] = []
    for i, query in enumerate(queries[:EXAMPLES]):
        examples.append({"prompt": query.prompt[-1]["content"]})
        for number, group in enumerate(groups):
            j = judged[(i * num_groups + number) * each]
            advantages = {
                "a_intra": float(intra[i, number, 0]),
                "a_inter": float(inter[i, number, 0]),
            }
            examples[-1][group] = {"response": j.text, "reward": j.reward, **advantages}
    return examples


# ------------------------------------------------------------------------------- what goes to files


def write_evaluation(
    folder: Path, finished: bool, result: dict[str, Any], records: Sequence[Record], kind: str,
    setup: str, model: str, response_format: str,
) -> None:  # fmt: skip
    """Write figures and responses of an evaluation, if it is not `finished`, or its figures are
    others now; and export the responses of `setup` by a `model`."""
    figures = folder / "eval.json"
    if not finished or not figures.exists() or read_json(figures) != result:
        write_json(figures, result)
    if not finished:
        write_rows(folder / "responses.jsonl", map(Record.row, records))
    if kind != "none":
        export(kind, records, setup, model, folder, response_format)


def check_export(kind: str, queries: Sequence[Query]) -> None:
    """Raise InputError, before anything is computed, if an evaluator could not read the export."""
    if kind not in ("none", "alpaca_eval") and not all(query.id for query in queries):
        raise InputError(f"--export {kind}: every row needs an id")
    if kind != "evalplus":
        return
    names = [query.id.partition("/") for query in queries if query.tests]
    if not names:
        raise InputError("--export evalplus: no row has tests")
    for name, slash, number in names:
        if name not in EVALPLUS or not number.isdecimal():
            found = f"{name}{slash}{number}"
            raise InputError(f"--export evalplus: an id is HumanEval/0 or Mbpp/2, not {found}")
    for name in sorted({name for name, _, _ in names}):
        tasks = {int(number) for other, _, number in names if other == name}
        if name == "HumanEval":
            tasks &= {*range(EVALPLUS[name])}
        if len(tasks) < EVALPLUS[name]:
            some = f"{len(tasks)} tasks of {name}, EvalPlus wants all {EVALPLUS[name]}"
            raise InputError(f"--export evalplus: {some}")


def export(
    kind: str, records: Sequence[Record], setup: str, model: str, folder: Path,
    response_format: str = "tags",
) -> None:  # fmt: skip
    """Write the first answer to each query, without its reasoning, for another evaluator; for
    LiveCodeBench, the programs of all."""
    rows: list[dict[str, Any]] = []
    for record in records:
        query = record.query
        if kind in ("evalplus", "livecodebench") and not query.tests:
            continue
        read = READERS[response_format]
        answers = [read(response.text).answer for response in record.responses[setup]]
        answer = answers[0]
        if kind == "alpaca_eval":
            asked = {"instruction": query.prompt[-1]["content"], "output": answer}
            rows.append({**asked, "generator": model, "dataset": query.dataset})
        elif kind == "evalplus":
            rows.append({"task_id": query.id, "solution": extract_code(answer, query.tests)})
        elif kind == "livecodebench":
            programs = [extract_code(each, query.tests) for each in answers]
            rows.append({"question_id": query.id, "code_list": programs})
        else:
            messages = [*query.prompt, {"role": "assistant", "content": {"answer": answer}}]
            ids = {"uid": query.id, "ans_id": f"{mix_seed(0, query.id, answer):016x}"}
            when = {"tstamp": time.time(), "metadata": {}}
            rows.append({**ids, "model": model, "messages": messages, **when})
    if kind in ("alpaca_eval", "livecodebench"):
        write_json(folder / f"{kind}.json", rows)
    else:
        write_rows(folder / f"{kind}.jsonl", rows)


def read_responses(path: Path, queries: Sequence[Query]) -> list[Record]:
    """The records of responses.jsonl, one for each of `queries`."""
    try:
        records = [Record.from_row(**row) for _, row in read_rows(path)]
        if len(records) != len(queries):
            raise ValueError("a row is missing")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: damaged; --overwrite_output_dir starts over") from None
    return [Record(query, record.responses) for query, record in zip(queries, records)]


def kept_records(kept: Unfinished[Record], queries: Sequence[Query]) -> list[Record]:
    """The kept responses to each of `queries`. Of these, not of the kept ones, come the labels: a
    file may have got another name, after which a domain may be called."""
    rows = kept.read()
    return [Record(query, rows[q].responses) for q, query in enumerate(queries)]


class Unfinished(Generic[T]):
    """The finished rows of long work, by number, on the disk as soon as they are there.

    Every process appends to its own file, {name}-{rank}.jsonl, and reads those of all: another
    number of processes may go on. parse: makes the value of a row from its fields.
    """

    def __init__(self, folder: Path, name: str, runtime: Runtime, parse: Callable[..., T]) -> None:
        self.folder, self.name, self.parse = folder, name, parse
        self.path = folder / f"{name}-{runtime.rank}.jsonl"
        self.rows = self.read()
        runtime.wait()
        if self.path.exists():  # the end of a line that was cut short
            with open(self.path, "r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def read(self) -> dict[int, T]:
        """The rows of all processes."""
        rows: dict[int, T] = {}
        for path in sorted(self.folder.glob(f"{self.name}-*.jsonl")):
            lines = path.read_bytes().split(b"\n")[:-1]  # the last is cut short
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    if type(index := row.pop("index")) is not int:
                        raise ValueError("an index is a number")
                    rows[index] = self.parse(**row)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    raise InputError(f"{path}:{number}: damaged; delete this line") from None
        return rows

    def add(self, index: int, row: dict[str, Any]) -> None:
        """Keep a finished row."""
        write_rows(self.path, [{"index": index, **row}], "a")
