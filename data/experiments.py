"""Every experiment of the paper, in miniature, on the lab.

    python -m data.experiments                   # all, with three seeds
    python -m data.experiments --quick           # all, with one
    python -m data.experiments --only fig3b      # the runs of one figure

It writes results.json, pictures, and a page with both to --output_dir; data/figures.py says what
each figure shows. All runs of a lab and a seed start from the same π_HFT. A finished run is
kept and used by every figure that needs it, and an interrupted one goes on. Each has one core, so
that the number of cores changes no figure, and as many run at a time as PyTorch finds cores.
"""

from __future__ import annotations

import concurrent.futures
import json
import math
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

import hgpo
from data import cli, figures, lab, processes
from data.cli import InputError, read_json, setting, write_bytes, write_rows
from data.modes import MODES
from data.processes import Stopped
from data.rows import read_hft_rows, read_rows
from data.runs import AT_WORK, Lock, make_lab
from data.tokenizer import Tokenizer

SEEDS = 3
LABS: dict[str, dict[str, Any]] = {  # and what is other than in the lab of `make demo`
    "large": {},
    "mixed": {"think_shares": {**lab.THINK_SHARES, "code": lab.THINK_SHARES["maths"]}},
    "small": {"model": lab.SMALL_MODEL},  # short runs come last: no core then waits for long
}
PAGE = Path(__file__).parent / "results" / "README.md"
NUM_CLASSIFIED = 4000  # rows that the router's classifier is trained on
OVER_STEPS = {"eval_steps": 20}
LONGER = {"max_steps": figures.STEPS, "eval_steps": 25}
MOST_POINTS = 60  # of a curve
KEPT = ("mean_tokens", "hybrid_accuracy", "malformed_ratio")  # figures, not by level
ROUTERS = ("router-rules", "router-classifier")

# Every training after HFT: its method, and what is other than the lab's defaults.
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "hgpo": ("hgpo", OVER_STEPS),
    "rft": ("rft", {}),
    figures.LUCKY: ("rft", {"num_generations": 16}),
    "dpo": ("dpo", {}),
    figures.SUMS: ("hgpo", {"dataset_name": "sums.jsonl", **OVER_STEPS}),
    figures.LONG: ("hgpo", LONGER),
    "rloo": ("hgpo", {"estimator": "rloo", **LONGER}),
    "reinforce++": ("hgpo", {"estimator": "reinforce++", **LONGER}),
    figures.WEIGHTED: ("hgpo", {"estimator": "reinforce++", "alpha": 2.0, **LONGER}),
    "plain-grpo": ("hgpo", {"forced_modes": False, **OVER_STEPS}),
    **{run: ("hgpo", {"delta": x}) for x, run in figures.DELTAS.items() if run != "hgpo"},
    **{run: ("hgpo", {"alpha": x}) for x, run in figures.ALPHAS.items() if run != "hgpo"},
    **{run: ("hgpo", {"beta": x}) for x, run in figures.BETAS.items() if run != "hgpo"},
    **{
        run: ("hgpo", {"num_generations": n, "num_queries": 256 // n})
        for n, run in figures.GROUPS.items()
        if run != "hgpo"
    },
    **{run: ("hgpo", {"loss_type": x}) for x, run in figures.LOSSES.items() if run != "hgpo"},
}


@dataclass
class ExperimentSettings:
    """Run the paper's experiments on the lab, and show what they say.

    python -m data.experiments --quick
    """

    output_dir: str = setting("runs/experiments", "folder for runs, results.json and pictures")
    quick: bool = setting(False, f"one seed in place of {SEEDS}")
    only: str | None = setting(
        None, f"figures, with commas between: {', '.join(figures.FIGURES)}; unset: all but demo"
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- the runs


class Job(NamedTuple):
    """A command that leaves the folder `name` in `root`, the folder of a lab and a seed."""

    root: Path
    name: str
    command: list[str]
    options: dict[str, Any]
    after: tuple[str, ...] = ()  # names of the jobs in `root` that make what it reads
    alone: bool = False  # with all cores, before all others

    def finished(self) -> bool:
        """Whether the folder holds this very job, finished. The folder may have been moved."""
        folder = self.root / self.name
        if self.name == "classifier":
            return (folder / "classifier.safetensors").exists()
        record = folder / ("eval_settings.json" if "eval" in self.command else "settings.json")
        if not record.exists():
            return False
        contents = read_json(record)
        made_with = contents.get("settings", {})
        asked = {
            k: v for k, v in self.options.items() if not k.endswith(("_dir", "_path", "_name"))
        }
        same = all(made_with.get(k, v) == v for k, v in asked.items())
        return contents.get("status") == "finished" and same


def lab_root(out: Path, name: str, seed: int) -> Path:
    """The folder of one of LABS and a seed: the rows, π_HFT, and all that starts from it."""
    return out / f"{name}-{seed}"


def jobs_of(out: Path, lab_name: str, seed: int, runs: Iterable[str]) -> list[Job]:
    """The jobs of a lab and a seed: HFT, and what the runs need."""
    root = lab_root(out, lab_name, seed)
    jobs = [Job(root, "hft", ["lhrm.py", "hft"], {"output_dir": str(root), "seed": seed})]
    model = {"model_name_or_path": f"{root}/hft", "seed": seed}
    for run in runs:
        places = {**model, "output_dir": f"{root}/{run}"}
        if run in TRAININGS:
            method, changes = TRAININGS[run]
            options = {**hgpo.METHODS[method][1], **changes, **places}
            options["eval_on_start"] = "eval_steps" in changes  # its curves begin with π_HFT
            options["dataset_name"] = f"{root}/data/{changes.get('dataset_name', 'rl.jsonl')}"
            options["eval_dataset_name"] = f"{root}/data/test.jsonl"
            jobs.append(Job(root, run, ["hgpo.py", "--method", method], options, ("hft",)))
            continue
        after: tuple[str, ...] = ("hft",)
        options = {n: v for n, v in hgpo.ON_LAB.items() if n.startswith("eval_")} | places
        options |= {"dataset_name": f"{root}/data/test.jsonl", "modes": "think,no_think,router"}
        if run == "router-classifier":
            files = {kind: f"{root}/data/{kind}.jsonl" for kind in ("simple", "complex")}
            train = {**files, "output_dir": f"{root}/classifier", "seed": seed}
            jobs.append(Job(root, "classifier", ["-m", "data.classify", "train"], train))
            options["classifier_name_or_path"] = f"{root}/classifier"
            after = ("hft", "classifier")
        jobs.append(Job(root, run, ["lhrm.py", "eval"], options, after))
    return jobs


def write_subsets(root: Path) -> None:
    """Write the RL rows that are sums, and the two classes of the router's classifier: greetings
    and facts are simple, sums and programs complex."""
    queries = (row for _, row in read_rows(root / "data" / "rl.jsonl"))
    write_rows(root / "data" / "sums.jsonl", (q for q in queries if q["domain"] == "maths"))
    classes: dict[str, list[dict[str, Any]]] = {"simple": [], "complex": []}
    for _, row in read_rows(root / "data" / "hft.jsonl"):
        kind = "simple" if row["domain"] == "general" else "complex"
        if len(classes[kind]) < NUM_CLASSIFIED // 2:
            classes[kind].append({"prompt": row["prompt"]})
    for kind, rows in classes.items():
        write_rows(root / "data" / f"{kind}.jsonl", rows)


class Runner:
    """Runs jobs in processes of their own, several at a time."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}  # at work now, by folder
        self.stopping = threading.Event()

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs that are not finished. Raises InputError for the first that fails."""
        ready: dict[tuple[Path, str], concurrent.futures.Future[None]] = {}
        total, jobs = len(jobs), [job for job in jobs if not job.finished()]
        done_before = total - len(jobs)
        bar = cli.progress(None, "runs", total=total, initial=done_before, unit="run", smoothing=0)
        with concurrent.futures.ThreadPoolExecutor(torch.get_num_threads()) as pool, bar:

            def work(job: Job) -> None:
                for before in ((job.root, name) for name in job.after):
                    if before in ready:
                        ready[before].result()
                self.run_one(job)

            try:
                for alone in (True, False):
                    these = [job for job in jobs if job.alone == alone]
                    for job in these:  # one by one: a job looks for those that it comes after
                        ready[job.root, job.name] = pool.submit(work, job)
                    waiting = {ready[job.root, job.name] for job in these}
                    while waiting:
                        done, waiting = concurrent.futures.wait(waiting, 1, FIRST_COMPLETED)
                        for future in done:
                            future.result()
                        bar.set_postfix_str(", ".join(sorted(self.processes)), refresh=False)
                        bar.update(len(done))
                        bar.refresh()
            except BaseException:
                self.stopping.set()
                for future in ready.values():
                    future.cancel()
                for process in [*self.processes.values()]:
                    process.terminate()  # a run then saves what it has done
                raise

    def run_one(self, job: Job) -> None:
        """Run a job. What it prints goes to a file beside its folder."""
        said = [f"--{name}={str(v).lower() if isinstance(v, bool) else v}"
                for name, v in job.options.items() if v is not None]  # fmt: skip
        goes_on = [] if job.name == "classifier" else ["--resume_from_checkpoint"]
        one_core = {} if job.alone else {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        path = job.root / f"{job.name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        while not self.stopping.is_set() and not job.finished():
            with open(path, "ab") as log:
                before = log.tell()
                process = subprocess.Popen(
                    [sys.executable, *job.command, *said, *goes_on], stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, env={**os.environ, **one_core},
                )  # fmt: skip
                self.processes[f"{job.root.name}/{job.name}"] = process
                if self.stopping.is_set():
                    process.terminate()
                code = process.wait()
                del self.processes[f"{job.root.name}/{job.name}"]
            lines = re.split("[\r\n]+", path.read_bytes()[before:].decode(errors="replace"))
            if self.stopping.is_set() or job.finished():
                return
            if not any(AT_WORK in line for line in lines):
                why = ["no output", *filter(None, lines)][-1]
                if code <= 0:
                    why = f"killed by signal {-code}" if code else "the folder holds another run"
                raise InputError(f"{path}: {why}")
            time.sleep(1)  # of experiments that were killed, a run is still at work


# -------------------------------------------------------------------------------------- the results


def flat(result: dict[str, Any]) -> dict[str, float]:
    """The figures of an evaluation that results.json keeps, such as "maths/auto/pass@1"."""
    places = {**result["by_domain"], **{f"level {k}": v for k, v in result["by_level"].items()}}
    found = {}
    for place, part in places.items():
        for setup in (*MODES, "auto", "router"):
            kept = ["pass@1"] if place.startswith("level") else ["pass@1", *KEPT]
            kept += ["think_ratio"] if setup not in MODES else []
            for name in kept if setup in part else ():
                found[f"{place}/{setup}/{name}"] = part[setup][name]
    return {name: value for name, value in found.items() if value is not None}


def curves_of(job: Job, outcome: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Figures over the steps of an HGPO run; evaluations, if they begin with π_HFT."""
    curves: dict[str, dict[int, float]] = {}
    start = {}
    if job.options["eval_on_start"]:
        before = outcome["hft"]
        start["H_acc"] = before["auto"]["hybrid_accuracy"]
        for domain, name in (("maths", "think_ratio"), ("code", "think_ratio"), ("code", "pass@1")):
            start[f"{domain}/{name}"] = before["by_domain"][domain]["auto"][name]
    for _, row in read_rows(job.root / job.name / "log.jsonl"):
        values = {name: row.get(f"eval/{name}") for name in start}
        if start:
            values["H_acc"] = row.get("hybrid_accuracy")
        if "mode/entropy" in row:  # both modes were forced: the tags' probabilities are known
            values["mode_entropy"] = row["mode/entropy"]
            values["tags"] = row["mode/think_ratio"] + row["mode/no_think_ratio"]
        for name, value in values.items():
            if value is not None:
                first = {0: start[name]} if name in start else {}
                curves.setdefault(name, first)[row["step"]] = value
    return curves


def spread(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def summary(values: Sequence[float]) -> dict[str, Any]:
    """A figure of every seed, as results.json has it."""
    rounded = [round(value, 4) for value in values]
    return {"mean": round(statistics.fmean(values), 4), "spread": round(spread(values), 4),
            "seeds": rounded}  # fmt: skip


def collect(out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """The contents of results.json, from all runs that are finished for every seed."""
    contents: dict[str, Any] = {"seeds": [*seeds], "runs": {}, "curves": {}}
    for lab_name in LABS:
        known = [jobs_of(out, lab_name, seed, [*TRAININGS, *ROUTERS]) for seed in seeds]
        for jobs in zip(*known):  # a job, with each seed
            run = jobs[0].name
            if run == "classifier" or not all(job.finished() for job in jobs):
                continue
            folders = [job.root / ("hgpo" if run == "hft" else run) for job in jobs]
            name = "eval.json" if run in ROUTERS else "results.json"
            if not all((folder / name).exists() for folder in folders):
                continue  # of HFT: that of HGPO has what HFT reached
            outcomes = [read_json(folder / name) for folder in folders]
            method = TRAININGS[run][0] if run in TRAININGS else run
            found = [flat(each if run in ROUTERS else each[method]) for each in outcomes]
            names = [name for name in found[0] if all(name in each for each in found)]
            contents["runs"][f"{lab_name}/{run}"] = {
                name: summary([each[name] for each in found]) for name in names
            }
            if method == "hgpo":
                curves = [curves_of(*pair) for pair in zip(jobs, outcomes)]
                contents["curves"][f"{lab_name}/{run}"] = {
                    name: means_over_steps([each[name] for each in curves]) for name in curves[0]
                }
    root = lab_root(out, "large", seeds[0])
    if (root / "base" / "model.safetensors").exists():
        contents["lengths"] = lengths_of_rows(root)
    for name in ("demo", "words"):
        if (path := out / name / "results.json").exists():
            contents[name] = of_sums(read_json(path))
    return contents


def means_over_steps(curves: Sequence[dict[int, float]]) -> dict[str, list[Any]]:
    """A curve of every seed, as results.json has it; of many steps, the means of a few."""
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    width = math.ceil(len(steps) / MOST_POINTS)
    groups = [steps[i : i + width] for i in range(0, len(steps), width)]
    columns = [[statistics.fmean(c[step] for step in group) for c in curves] for group in groups]
    means = [round(statistics.fmean(column), 4) for column in columns]
    spreads = [round(spread(column), 4) for column in columns]
    return {"steps": [group[-1] for group in groups], "mean": means, "spread": spreads}


def lengths_of_rows(root: Path) -> dict[str, Any]:
    """How many HFT rows of a mode have a length in tokens, and mean lengths by domain."""
    tokenizer = Tokenizer.from_pretrained(root / "base")
    domains = [row["domain"] for _, row in read_rows(root / "data" / "hft.jsonl")]
    rows: dict[str, Counter[int]] = {mode: Counter() for mode in MODES}
    found: dict[str, dict[str, list[int]]] = {mode: {} for mode in MODES}
    for domain, (_, _, text) in zip(domains, read_hft_rows(root / "data" / "hft.jsonl")):
        mode = next(mode for mode in MODES if text.startswith(f"<{mode}>"))
        length = len(tokenizer.encode(text)) + 1  # with the stop token
        rows[mode][length] += 1
        found[mode].setdefault(domain, []).append(length)
    means = {
        mode: {d: round(statistics.fmean(each), 4) for d, each in sorted(by_domain.items())}
        for mode, by_domain in found.items()
    }
    return {"rows": {m: dict(sorted(c.items())) for m, c in rows.items()}, "means": means}


def of_sums(outcome: dict[str, Any]) -> dict[str, Any]:
    """What an outcome says of the held-out sums, with a few responses."""
    left_out = ("by_domain", "mean_utility")
    return {stage: {k: v for k, v in result.items() if k not in left_out}
            for stage, result in outcome.items()}  # fmt: skip


def in_lines(value: Any, depth: int = 3) -> str:
    """JSON with a line for each figure of a run, so that results.json can be read and compared."""
    if depth == 0 or not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    rows = (
        f"{json.dumps(k, ensure_ascii=False)}: {in_lines(v, depth - 1)}" for k, v in value.items()
    )
    return "{\n" + ",\n".join(rows) + "\n}"


# ------------------------------------------------------------------------------------- the command


def jobs_for(out: Path, names: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """All that the figures `names` need, in an order in which nothing waits for what comes later.
    Writes the labs."""
    order = [*TRAININGS, *ROUTERS]
    jobs = []
    if "demo" in names:
        jobs.append(Job(out, "demo/hgpo", ["hgpo.py"], {"output_dir": f"{out}/demo"}, alone=True))
    for seed in seeds:
        for name in LABS:
            runs = {run for figure in names for run in figures.FIGURES[figure].runs.get(name, ())}
            root = lab_root(out, name, seed)
            lengths = "fig8" in names and (name, seed) == ("large", seeds[0])
            if runs or lengths:
                make_lab(root, seed, **LABS[name])
            if runs & {"router-classifier", figures.SUMS}:
                write_subsets(root)
            if runs:
                jobs += jobs_of(out, name, seed, sorted(runs, key=order.index))
    return sorted(jobs, key=lambda job: job.name != "hft")  # the others wait for it


def run(settings: ExperimentSettings) -> None:
    """Run what is not finished, and write results, pictures and the page."""
    names = [name for name in figures.FIGURES if name != "demo"]
    if settings.only:
        names = [name.strip() for name in settings.only.split(",")]
    if unknown := [name for name in names if name not in figures.FIGURES]:
        raise InputError(f"--only {unknown[0]}: expected {', '.join(figures.FIGURES)}")
    out, seeds = Path(settings.output_dir), range(1 if settings.quick else SEEDS)
    out.mkdir(parents=True, exist_ok=True)
    lock = Lock(out / ".experiments.lock")
    try:
        Runner().run(jobs_for(out, names, seeds))
    except Stopped as stop:
        message = f"{out}: stopped; the same command goes on from there"
        raise Stopped(stop.number, message) from None
    finally:
        lock.release()
    write_bytes(out / "results.json", (in_lines(collect(out, seeds)) + "\n").encode())
    results = figures.load(out)
    page = figures.fill(PAGE.read_text(encoding="utf-8"), results)
    write_bytes(out / "README.md", page.encode())
    drawn = figures.draw(results, names, out)
    print(f"{out}: results.json, README.md (a page of all tables)" + ", pictures" * drawn)
    if not drawn:
        print("pip install matplotlib, and the same command draws the pictures")


def main() -> None:
    run(cli.parse_settings(ExperimentSettings, "python -m data.experiments", sys.argv[1:]))


if __name__ == "__main__":
    processes.run_command(main)
