"""Hybrid Accuracy (Eq. 2, 3, 13), Hybrid Fine-Tuning (Eq. 4), evaluation, and what all training
loops share.

    python lhrm.py hft  --model_name_or_path DIR --dataset_name hft.jsonl
    python lhrm.py eval --model_name_or_path DIR --dataset_name test.jsonl

Shapes: K queries, 2 modes (0 think, 1 no_think), G responses a mode, S free responses, R responses,
T response tokens, L tokens of prompt and response, n response tokens of all rows, V vocabulary.
"""

from __future__ import annotations

from data import cli  # first: Ctrl-C during the slow imports ends in one line, too

# isort: split
import contextlib
import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.utils.rnn import pad_sequence

from data import classify, judge, processes, report
from data.cli import InputError, mix_seed, progress, setting
from data.judge import Judged, RewardModel, check_verifiers, judge_all, load_reward_model
from data.modes import MODES, NO_THINK, READERS, THINK, UNSAID, leaks
from data.optimizer import OptimizerOptions, make_optimizer, optimizer_step, scheduled_rate
from data.processes import PATIENCE, Runtime, start, stop
from data.report import Log, Record, Stopwatch, Unfinished
from data.rows import (
    Query,
    Row,
    Rows,
    batch_indices,
    check_contexts,
    check_domain,
    read_queries,
    row_length,
    tokenized_rows,
    warn_of_positions,
)
from data.runs import EVALUATION, EXPORTED, Run, RunOptions, announce, write_lab
from data.tokenizer import SAMPLING, Tokenizer
from model import Block, Transformer
from sample import MAX_TOKENS, Completion, generate_as_completed

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # dcp, in one process
MAX_LOGITS = {"cpu": 2**24, "cuda": 2**27}  # that exist at once: 64 and 512 MiB in fp32
MAX_UNSHARDED = 2**31  # parameters whose gradient a rank may hold whole: 8 GiB in fp32

# ------------------------------------------------------------------- Hybrid Accuracy, §2.1 and §2.4


def best_modes(rewards: Tensor, lengths: Tensor, margin: float) -> Tensor:
    """The better mode of each query, THINK or NO_THINK: m_gt of §2.4, the m* of Eq. 2 by samples.

    rewards, lengths: (K, 2, G), of the forced responses -> (K,) int. The better mode has the higher
    mean reward; where the means are equal or closer than `margin`, the shorter mean response; where
    these are equal too, it is no_think.
    """
    means, mean_lengths = rewards.double().mean(-1), lengths.double().mean(-1)  # (K, 2)  Eq. 2, E
    gap = (means[:, THINK] - means[:, NO_THINK]).abs()
    tie = (gap < 1e-6) | (gap < margin - 1e-6)  # 1e-6: a mean of floats is not exact
    utility = torch.where(tie[:, None], -mean_lengths, means)  # (K, 2); ties: §2.4
    return torch.where(utility[:, THINK] > utility[:, NO_THINK], THINK, NO_THINK)  # Eq. 2, argmax


def hybrid_accuracy(rewards: Tensor, lengths: Tensor, chosen: Tensor, margin: float) -> float:
    """H_acc (Eq. 13): how often the mode that the model chose is the better one.

    rewards, lengths: (K, 2, G), of the forced responses. chosen: (K, S), the mode of each free
    response: THINK, NO_THINK, or NEITHER, which is always wrong.
    """
    best = best_modes(rewards, lengths, margin)
    return (chosen == best[:, None]).double().mean().item()  # Eq. 13


def summarize(records: Sequence[Record], margin: float) -> dict[str, Any]:
    """The number of records, and the figures of each setup.

    Figures that rest on rewards (pass@1, H_acc) are over the graded records, and None if there are
    none. H_acc is None if a mode was not forced, or if a response need not show its mode; the think
    ratio leaves such responses out.
    """
    setups = list(records[0].responses)
    graded = [record for record in records if record.graded]

    def grid(rows: Sequence[Record], setup: str, name: str) -> Tensor:  # (K, G)
        values = [[float(getattr(j, name)) for j in record.responses[setup]] for record in rows]
        return torch.tensor(values, dtype=torch.float64)

    def mean(values: Tensor) -> float | None:
        return values.mean().item() if values.numel() else None

    def both_modes(name: str) -> Tensor:  # (K, 2, G)
        return torch.stack([grid(graded, mode, name) for mode in MODES], dim=1)

    forced = None
    if graded and all(mode in setups for mode in MODES):
        forced = both_modes("reward"), both_modes("length")

    def figures(setup: str) -> dict[str, Any]:
        modes, lengths = grid(records, setup, "mode"), grid(records, setup, "length")
        said = modes[modes != UNSAID]
        rewards, chosen = grid(graded, setup, "reward"), grid(graded, setup, "mode")
        values = {
            "pass@1": mean(rewards),
            "pass@1_interval": report.bootstrap(rewards) if graded else None,
            "think_ratio": mean((said == THINK).double()),
            "mean_tokens": mean(lengths),
            **{f"{name}_tokens": mean(lengths[modes == mode]) for mode, name in enumerate(MODES)},
            "hybrid_accuracy": None,
            "hybrid_accuracy_interval": None,
            "clipped_ratio": mean(1 - grid(records, setup, "finished")),
            "malformed_ratio": mean(1 - grid(records, setup, "well_formed")),
        }
        if forced and not (chosen == UNSAID).any():
            right = (chosen == best_modes(*forced, margin)[:, None]).double()  # as in Eq. 13
            values["hybrid_accuracy"] = hybrid_accuracy(*forced, chosen, margin)
            values["hybrid_accuracy_interval"] = report.bootstrap(right)
        return values

    counts = {"queries": len(records), "graded": len(graded)}
    return counts | {setup: figures(setup) for setup in setups}


def results(records: Sequence[Record], margin: float, domain: str | None) -> dict[str, Any]:
    """Figures of `domain` (None: of all), the same by level, those of every domain, and Eq. 3."""
    head = [r for r in records if domain is None or r.query.domain == domain]

    def split(records: Sequence[Record], key: Callable[[Query], str]) -> dict[str, Any]:
        parts: dict[str, list[Record]] = {}
        for record in records:
            parts.setdefault(key(record.query), []).append(record)
        names = sorted(filter(None, parts), key=lambda name: (len(name), name))  # 2 before 10
        return {name: summarize(parts[name], margin) for name in names}

    by_domain = split(records, lambda q: q.domain)
    graded = [figures for figures in by_domain.values() if figures["graded"]]
    setups = records[0].responses if graded else ()
    utilities = {setup: [figures[setup]["pass@1"] for figures in graded] for setup in setups}
    return {
        "domain": domain or "all",
        "hacc_margin": margin,
        **summarize(head, margin),
        # The inner expectation, the mean utility in a domain, is pass@1: U is the reward.
        "mean_utility": {setup: sum(u) / len(u) for setup, u in utilities.items()},  # Eq. 3
        "by_level": split(head, lambda q: q.level),
        "by_domain": by_domain,
    }


# ------------------------------------------------------------------ Hybrid Fine-Tuning, §2.2, Eq. 4


def hft_loss(log_probs: Tensor, mask: Tensor, num_examples: int) -> Tensor:
    """L_HFT: −Σ_t log π(y_t | x, y_{<t}), averaged over `num_examples`. (R, T), (R, T) -> scalar.

    num_examples: those of the whole step, not only of this micro-batch.
    """
    return -torch.where(mask, log_probs, 0.0).sum() / num_examples  # Eq. 4


# Of a micro-batch: its loss, a sum for each logged figure, and the number that divides these sums.
BatchLoss = tuple[Tensor, dict[str, Tensor], Tensor]


def hft_batch_loss(policy: Transformer, rows: Sequence[Row], num_examples: int) -> BatchLoss:
    """Eq. 4 of a micro-batch of (prompt, response), for a step of `num_examples` rows."""
    prompts, responses = [row[0] for row in rows], [row[1] for row in rows]
    now = score_responses(policy, prompts, responses, figures=("correct", "entropy"))
    loss = hft_loss(now.log_probs, now.mask, num_examples)
    sums = {
        "loss_per_token": loss.detach() * num_examples,
        "mean_token_accuracy": now.correct.sum(),
        "entropy": now.entropy.sum(),
    }
    return loss, sums, now.mask.sum()


@dataclass
class TrainOptions(RunOptions, OptimizerOptions):
    """The settings of every training loop."""

    max_steps: int = setting(0, "stop after so many steps; 0: after num_train_epochs")
    max_tokens_per_device: int = setting(16384, "tokens and padding in a forward pass, at most")
    gradient_checkpointing: bool = setting(True, "compute activations twice, to save memory")
    hsdp: bool = setting(False, "split parameters within a node only, with a copy in each")
    bf16: bool | None = setting(None, "compute in bf16; unset: on a GPU only")
    report_to: str = setting("none", "second place for the log", ("none", *report.TRACKERS))


@dataclass
class SupervisedOptions(TrainOptions):
    """The settings of training on rows: HFT, RFT and DPO."""

    num_train_epochs: int = setting(3, "passes over the rows")
    batch_size: int = setting(128, "rows a step, over all processes")
    logging_steps: int = setting(10, "steps between two lines of the log")


@dataclass
class HFTSettings(SupervisedOptions):
    """Hybrid Fine-Tuning (Eq. 4). Without --model_name_or_path it trains the lab's tiny model, in
    the folder hft of --output_dir.

    python lhrm.py hft --model_name_or_path Qwen2.5-0.5B --dataset_name hft.jsonl
    """

    model_name_or_path: str | None = setting(None, "folder of the base model; unset: the lab")
    dataset_name: str | None = setting(None, "HFT rows, a .jsonl(.gz) file or a tokenized folder")
    max_length: int = setting(32768, "most tokens of a row; longer ones are left out, and counted")
    max_position_embeddings: int = setting(0, "longest context of the new model; 0: the base's")
    rope_theta: float = setting(0.0, "base of the rotary embedding; 0: the base model's")


HFT_ON_LAB: dict[str, Any] = {  # the defaults that are others on the lab
    "output_dir": "runs/lab", "num_train_epochs": 1, "batch_size": 32, "learning_rate": 2.5e-3,
    "weight_decay": 0.1, "max_tokens_per_device": 768, "gradient_checkpointing": False,
}  # fmt: skip


def hft(settings: HFTSettings) -> None:
    """Fine-tune on both formats; leaves a model folder in `output_dir`."""
    runtime = start(settings.bf16, settings.hsdp)
    source = settings.model_name_or_path
    if source is None:
        files = write_lab(Path(settings.output_dir), settings.seed, runtime)
        source = str(files["base"])
        settings = dataclasses.replace(
            settings,
            model_name_or_path=source,
            dataset_name=settings.dataset_name or str(files["hft"]),
            output_dir=f"{settings.output_dir}/hft",
        )
    if settings.dataset_name is None:
        raise InputError("give --dataset_name, a file of HFT rows")
    report.load_tracker(settings.report_to)  # an error comes before the long work
    contents = {"model_name_or_path": source, "dataset_name": settings.dataset_name}
    with Run(settings, runtime, contents) as run:
        if run.finished:
            return run.tell_that_it_is_finished()
        names = ("max_position_embeddings", "rope_theta")
        changes = {name: getattr(settings, name) for name in names if getattr(settings, name)}
        policy, tokenizer = load_policy(source, runtime, settings.gradient_checkpointing, **changes)
        rows = tokenized_rows(
            settings.dataset_name, run.contents["dataset_name"], tokenizer, settings.max_length,
            run.folder / ".hft_tokens", functools.partial(runtime.on_first, timeout=PATIENCE),
        )  # fmt: skip
        derived = {
            "processes": runtime.world_size,
            "device": runtime.device.type,
            "rows": len(rows),
            "rows_too_long": rows.too_long,
        }
        run.begin("Hybrid Fine-Tuning", derived)
        positions, longest = policy.config.max_position_embeddings, rows.lengths.sum(1).max()
        warn_of_positions(longest, positions, settings.dataset_name)
        fine_tune(policy, rows, hft_batch_loss, settings, runtime, run, "HFT")
        save_policy(policy, tokenizer, settings, run.folder, runtime)
        run.finish()


def fine_tune(
    policy: Transformer,
    rows: Rows,
    batch_loss: Callable[[Transformer, Sequence[Row], int], BatchLoss],
    settings: SupervisedOptions,
    runtime: Runtime,
    run: Run,
    description: str,
) -> None:
    """The loop of HFT, RFT and DPO, which differ in their rows and in `batch_loss`.

    It changes `policy`, and goes on from the newest checkpoint of `run`, if there is one.
    """
    epochs = settings.num_train_epochs
    steps = settings.max_steps or math.ceil(len(rows) * epochs / settings.batch_size)
    optimizer = make_optimizer(policy, settings.weight_decay)
    first = run.resume({"policy": policy}, optimizer, steps)
    log = Log(run.folder, first, settings.report_to)
    bar = progress(range(first, steps), description, initial=first, total=steps, unit="step")
    with contextlib.closing(log), run.stoppable():
        for step in bar:
            watch = Stopwatch("update")
            places = batch_indices(len(rows), settings.batch_size, step, settings.seed)
            batch = sorted((rows[i] for i in places), key=row_length)
            num_tokens = sum(map(row_length, batch))
            batch = runtime.share(batch)
            totals = []
            # Padded tokens of a row: its response, or two with DPO, each with the prompt.
            sizes = [len(row[1:]) * (len(row[0]) + max(map(len, row[1:]))) for row in batch]
            parts = micro_batches(sizes, settings.max_tokens_per_device, runtime)
            for part in sum_gradients_last(policy, parts):
                runtime.check_signals()
                rows_here = [batch[i] for i in part]
                loss, sums, size = batch_loss(policy, rows_here, settings.batch_size)
                loss.backward()
                totals.append(torch.stack([loss.detach(), size, *sums.values()]).double())
            rate = scheduled_rate(step, steps, settings)
            total = runtime.sum(torch.stack(totals).sum(0))
            grad_norm, updated = optimizer_step(
                policy, optimizer, rate, settings.max_grad_norm, total[0]
            )
            run.count_update(updated, step + 1, batch)
            total_loss, total_size, *others = total.tolist()
            figures = {
                "loss": total_loss,
                **{name: value / total_size for name, value in zip(sums, others)},
                "grad_norm": grad_norm,
                "learning_rate": rate,
                "skipped_updates": run.skipped_updates,
                "epoch": (step + 1) * settings.batch_size / len(rows),
                "num_tokens": run.tokens_seen + num_tokens,
                **watch.figures(num_tokens, runtime.max),
            }
            report.show_on_bar(bar, figures)
            last = step + 1 == steps
            if (step + 1) % settings.logging_steps == 0 or last:
                log.write(step + 1, figures)
            run.completed(step + 1, num_tokens, last)


# --------------------------------------------------------------------------------------- evaluation


@dataclass
class EvalOptions(judge.JudgeOptions):
    """How to evaluate a model."""

    eval_domain: str | None = setting(None, "domain of the main figures; unset: all rows")
    eval_num_generations: int = setting(4, "responses to a query in each mode and freely")
    eval_temperature: float = setting(SAMPLING["temperature"], "temperature of evaluations")
    eval_top_p: float = setting(SAMPLING["top_p"], "top-p of evaluations", None, 1e-6, 1)
    eval_batch_size: int = setting(128, "responses that a process samples at once to evaluate")
    eval_max_completion_length: int = setting(
        4096, "most tokens of a response in evaluations", maximum=MAX_TOKENS
    )
    hacc_margin: float = setting(0.05, "mean rewards closer than this are equal in Eq. 13")


EVAL_ON_LAB = {
    "eval_domain": "maths", "eval_num_generations": 8, "eval_max_completion_length": 64,
}  # fmt: skip


@dataclass
class EvalSettings(EvalOptions, classify.RouterOptions):
    """pass@1, think ratio, tokens and Hybrid Accuracy (Eq. 13) of a model on some queries.

    python lhrm.py eval --model_name_or_path runs/hgpo --dataset_name math500.jsonl,mbpp.jsonl
    """

    model_name_or_path: str = setting(cli.LAB_MODEL, "model folder")
    dataset_name: str = setting("runs/lab/data/test.jsonl", "files of queries, with commas between")
    since: str | None = setting(None, "first contest_date of LiveCodeBench's, such as 2024-08-01")
    until: str | None = setting(None, "last contest_date, included")
    limit: int | None = setting(None, "only the first LIMIT rows of each file", None, 1, 2**31 - 1)
    modes: str = setting(
        "think,no_think,auto", "setups, with commas between: the mode is forced (think, no_think), "
        "the model chooses (auto), a classifier does (router). H_acc needs both forced modes",
    )  # fmt: skip
    response_format: str | None = setting(
        None, "tags: a mode is forced by its tag, and the grammar counts; free: it is asked for in "
        "words, and the answer looked for in what follows the thought; unset: free if tags are new",
        tuple(READERS),
    )  # fmt: skip
    output_dir: str | None = setting(None, "folder for figures and responses; unset: not written")
    export: str = setting("none", "format for another evaluator", ("none", *report.EXPORTS))
    resume_from_checkpoint: bool = setting(False, "go on with an unfinished evaluation")
    overwrite_output_dir: bool = setting(False, "start over: delete what one left in the folder")
    bf16: bool | None = setting(None, "compute in bf16; unset: on a GPU only")
    seed: int = setting(0, "seed of the sampling")


class Asked(NamedTuple):
    """A query as it is put to a model, in a mode; with the `setup` "auto" the model chooses."""

    query: Query
    prompt: list[int]
    setup: str
    seed: int


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    asked: Sequence[Asked],
    settings: EvalOptions,
    reward_model: RewardModel | None,
    watch: Stopwatch,
    num_generations: int,
    max_new_tokens: int,
    batch_size: int,
    temperature: float,
    top_p: float = 1.0,
    response_format: str = "tags",
) -> Iterator[tuple[int, list[tuple[Completion, Judged]]]]:
    """Sample `num_generations` responses to each of `asked`, a query in a mode, and judge them
    (Eq. 5 to 7). Yields the place of one of `asked` and its responses, as these are done."""
    groups = generate_as_completed(
        model, tokenizer, [a.prompt for a in asked],
        modes=[a.setup if a.setup in MODES and response_format == "tags" else None for a in asked],
        num_generations=num_generations, max_new_tokens=max_new_tokens,
        temperature=temperature, top_p=top_p, seed=[a.seed for a in asked], batch_size=batch_size,
    )  # fmt: skip
    at_once = max(1, batch_size // num_generations)
    while part := list(itertools.islice(groups, at_once)):
        cases = [(asked[place].query, completion) for place, group in part for completion in group]
        with watch.phase("reward"):
            judged = iter(
                judge_all(cases, tokenizer, reward_model, settings.verifier, response_format)
            )
        yield from ((place, list(zip(group, judged))) for place, group in part)


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    queries: Sequence[Query],
    settings: EvalOptions,
    runtime: Runtime,
    description: str,
    seed: int = 0,
    reward_model: RewardModel | None = None,
    setups: Sequence[Sequence[str]] | None = None,
    unfinished: Unfinished[Record] | None = None,
    response_format: str = "tags",
) -> list[Record]:
    """Answer every query in both modes, forced or asked for in words, and freely; returns all
    ranks' records, in order, but without the texts, which nothing is computed from.

    setups: others than these three, for each query. unfinished: where records are kept with their
    texts; those that are there already are not made again. response_format: "free" asks for a mode
    by the instructions of `settings`, which then are RouterOptions, too.
    """
    free = response_format == "free"
    done = unfinished.rows if unfinished else {}
    mine = runtime.share([q for q in range(len(queries)) if q not in done])
    setups = setups or [(*MODES, "auto")] * len(queries)
    asked = []
    for q in mine:
        for setup in setups[q]:
            messages = queries[q].prompt
            if free:
                assert isinstance(settings, classify.RouterOptions)
                messages = classify.ask_for(setup, messages, settings)
            prompt = tokenizer.encode_chat(messages)
            asked.append(Asked(queries[q], prompt, setup, mix_seed(seed, "eval", q, setup)))
    places = [q for q in mine for _ in setups[q]]  # of each of `asked`
    answers = answer(
        model, tokenizer, asked, settings, reward_model, Stopwatch("rest"),
        settings.eval_num_generations, settings.eval_max_completion_length,
        settings.eval_batch_size, settings.eval_temperature, settings.eval_top_p, response_format,
    )  # fmt: skip
    judged: dict[int, dict[str, list[Judged]]] = {q: {} for q in mine}
    model.eval()
    bar = progress(None, description, total=len(mine), unit="query")
    with gathered(model), runtime.apart(), bar:
        for place, found in answers:
            q = places[place]
            setup = asked[place].setup
            judged[q][setup] = [in_setup(j, setup) if free else j for _, j in found]
            if len(judged[q]) == len(setups[q]):
                judged[q] = {setup: judged[q][setup] for setup in setups[q]}
                if unfinished:
                    unfinished.add(q, Record(queries[q], judged[q]).row())
                judged[q] = without_texts(judged[q])
                bar.update()
    model.train()
    everything = {q: without_texts(record.responses) for q, record in done.items()}
    everything |= dict(runtime.gather(list(judged.items())))
    return [Record(query, everything[q]) for q, query in enumerate(queries)]


def in_setup(judged: Judged, setup: str) -> Judged:
    """A response in free format, with the mode that it was asked for, if it was asked for one."""
    mode = MODES.index(setup) if setup in MODES else UNSAID
    return dataclasses.replace(judged, mode=mode, leaked=leaks(mode, judged.text))


def without_texts(responses: dict[str, list[Judged]]) -> dict[str, list[Judged]]:
    """What a record's figures are computed from."""
    return {s: [dataclasses.replace(j, text="") for j in js] for s, js in responses.items()}


def run_eval(settings: EvalSettings) -> None:
    """The `eval` command."""
    runtime = start(settings.bf16)
    queries = read_queries(settings.dataset_name, settings.since, settings.until, settings.limit)
    check_domain(queries, settings.eval_domain)
    check_verifiers(settings.verifier, queries)
    asked = settings.modes.split(",")
    if unknown := set(asked) - {*MODES, "auto", "router"}:
        raise InputError(f"--modes {min(unknown)}: expected {', '.join(MODES)}, auto or router")
    if settings.export != "none" and not settings.output_dir:
        raise InputError("--export needs --output_dir, where to write")
    report.check_export(settings.export, queries)
    names = ("model", "reward_model", "classifier")
    contents = {name: getattr(settings, name) for name in (f"{n}_name_or_path" for n in names)}
    contents["dataset_name"] = settings.dataset_name
    with contextlib.ExitStack() as stack:
        run = None
        if settings.output_dir:
            run = stack.enter_context(Run(settings, runtime, contents, EVALUATION))
        if run and run.finished:  # its figures may be asked for by another margin or domain
            run.tell_that_it_is_finished()
            records = report.read_responses(run.folder / "responses.jsonl", queries)
            response_format = run.derived.get("response_format", "tags")
        else:
            records, response_format = evaluate_setups(settings, queries, asked, runtime, run)
        result = results(records, settings.hacc_margin, settings.eval_domain)
        if runtime.rank == 0:
            report.show_evaluation(result, asked)
            if not run:
                print("nothing of this is kept: --output_dir keeps figures and responses")
        if run:
            model = Path(settings.model_name_or_path).resolve().name
            export = settings.export, asked[-1], model, response_format
            runtime.on_first(
                lambda: report.write_evaluation(run.folder, run.finished, result, records, *export)
            )
            run.finish()


def evaluate_setups(
    settings: EvalSettings,
    queries: Sequence[Query],
    asked: Sequence[str],
    runtime: Runtime,
    run: Run | None,
) -> tuple[list[Record], str]:
    """Records with the setups that are `asked` for, on rank 0 of a run with their texts; and the
    response format."""
    routed = [""] * len(queries)
    if "router" in asked:
        prompts = [query.prompt for query in queries]
        routed = classify.route(prompts, settings.classifier_name_or_path)
    # The router's answers are those of the forced mode that it picks.
    setups = [sorted({m if setup == "router" else setup for setup in asked}) for m in routed]
    reward_model = None  # queries without a definite answer need not be judged here
    if settings.reward_model_name_or_path:
        reward_model = load_reward_model(settings, queries, runtime.device, run)
    model, tokenizer = load_policy(settings.model_name_or_path, runtime, False)
    limit, positions = settings.eval_max_completion_length, model.config.max_position_embeddings
    check_contexts(queries, tokenizer, limit, positions, settings.dataset_name)
    response_format = settings.response_format or ("free" if tokenizer.new_tags else "tags")
    derived: dict[str, Any] = {"queries": len(queries), "response_format": response_format}
    if response_format == "tags":
        tokenizer.warn_of_new_tags(itertools.chain(*setups))
    kept = None
    if reward_model:
        with gathered(model):
            derived["reward_shift"] = reward_model.find_shift(
                model, tokenizer, [queries], runtime, settings.seed, limit,
                settings.eval_batch_size, settings.eval_temperature, settings.eval_top_p,
                response_format,
            )  # fmt: skip
    if run:
        run.begin("Evaluation", derived)
        kept = Unfinished(run.folder, "unfinished", runtime, Record.from_row)
    else:
        announce("Evaluation", settings, derived)
    records = evaluate(
        model, tokenizer, queries, settings, runtime, "evaluation", settings.seed, reward_model,
        setups, kept, response_format,
    )  # fmt: skip
    if kept and runtime.rank == 0:
        records = report.kept_records(kept, queries)
    for record, mode in zip(records, routed):
        responses = {**record.responses, "router": record.responses.get(mode, [])}
        record.responses = {setup: responses[setup] for setup in asked}
    return records, response_format


# -------------------------------------------------------------------------------------------- FSDP


def shard(
    model: Transformer, runtime: Runtime, gradient_checkpointing: bool = False, frozen: bool = False
) -> Transformer:
    """Split parameters, gradients and optimizer state over the ranks, block by block (FSDP2).

    Gradients are summed, not averaged, since the losses divide by global counts themselves. A
    frozen model has no backward pass, after which the rest of its parameters would be split again:
    it does that after every forward pass. One process in fp32 keeps the plain module.
    """
    model.requires_grad_(not frozen)
    for block in model.modules():
        if isinstance(block, Block):
            block.gradient_checkpointing = gradient_checkpointing
    if runtime.world_size == 1 and not runtime.bf16:
        return model
    dtypes = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if runtime.bf16 else {}
    policy = MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False)  # rotary angles stay fp32
    for module in (*model.model.layers, model):
        sharded = fully_shard(
            module, mesh=runtime.mesh, mp_policy=policy, reshard_after_forward=frozen or None
        )
        sharded.set_gradient_divide_factor(1.0)
        if runtime.device.type == "cpu":
            sharded.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
    return model


@contextlib.contextmanager
def gathered(model: Transformer) -> Iterator[None]:
    """Keep all parameters of a sharded model whole, so that `generate` communicates nothing.

    Ranks finish their responses at different times: with a collective inside the decoding loop, the
    slower ones would wait for ever.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()


# ------------------------------------------------------------------- log-probs of given responses


class Scores(NamedTuple):
    """Figures of each token of some responses, (R, T); zero past the end of a response.

    The mask is made from lengths, not from a pad id, so that the stop token is trained as well.
    """

    log_probs: Tensor  # fp32, differentiable
    entropy: Tensor  # fp32, in nats
    correct: Tensor  # 1 where the token is the likeliest one
    mask: Tensor  # True on the response's own tokens


def score_responses(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float = 1.0,
    figures: Sequence[str] = (),
) -> Scores:
    """log π(o_t | q, o_{<t}) of given responses, at the sampler's temperature.

    figures: which of "entropy" and "correct" to compute; the others are zero. Without responses the
    model runs on a single token, so that a rank that has none takes part in FSDP's communication.
    """
    device = next(model.parameters()).device
    starts = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    lengths = torch.tensor([len(response) for response in responses], dtype=torch.long)[:, None]
    rows = [torch.tensor([*prompt, *response]) for prompt, response in zip(prompts, responses)]
    ids = pad_sequence(rows or [torch.tensor([0])], batch_first=True)  # (R, L), right-padded
    t = torch.arange(ids.shape[1])
    before = (t >= starts - 1) & (t < starts - 1 + lengths)  # a target comes next
    where = before.flatten().nonzero().squeeze(1).to(device)  # (n,)
    targets = torch.tensor(list(itertools.chain(*responses)), dtype=torch.long, device=device)
    mask = (torch.arange(max(map(len, responses), default=0)) < lengths).to(device)  # (R, T)

    def head(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, used = model.lm_head.weight, model.num_tokens
        return TokenLogProbs.apply(
            hidden.flatten(0, 1)[where], weight, used, targets, temperature, figures
        )

    columns = model(ids.to(device), head=head)  # three of (n,)
    zeros = torch.zeros(mask.shape, device=device)
    log_probs, entropy, correct = (zeros.masked_scatter(mask, column) for column in columns)
    return Scores(log_probs, entropy, correct, mask)


class TokenLogProbs(torch.autograd.Function):
    """Log-probs of targets, and figures of their distributions, without the (n, V) logits.

    hidden (n, C), weight (V, C) of the head, whose first `used` rows are tokens, targets (n,) ->
    log-probs, entropy, and whether the target is the likeliest token: (n,) each, fp32. At most
    MAX_LOGITS logits exist at a time; the backward pass makes them once more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        used: int,
        targets: Tensor,
        temperature: float,
        figures: Sequence[str],
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.size = max(1, MAX_LOGITS[hidden.device.type] // len(weight))
        zeros = torch.zeros(len(targets), device=hidden.device)
        log_probs, entropy, correct, norms = (zeros.clone() for _ in range(4))
        for i in range(0, len(targets), ctx.size):
            part = slice(i, i + ctx.size)
            logits = (hidden[part] @ weight[:used].T).float().div_(temperature)
            norms[part] = logits.logsumexp(-1)
            log_probs[part] = logits.gather(1, targets[part, None]).squeeze(1) - norms[part]
            if "correct" in figures:
                correct[part] = (logits.argmax(-1) == targets[part]).float()
            if "entropy" in figures:
                choices = logits.sub_(norms[part, None])  # log-probs of all tokens
                entropy[part] = -torch.linalg.vecdot(choices.exp(), choices)
        ctx.save_for_backward(hidden, weight, targets, norms)
        ctx.used, ctx.temperature = used, temperature
        ctx.mark_non_differentiable(entropy, correct)
        return log_probs, entropy, correct

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, norms = ctx.saved_tensors
        head, grad = weight[: ctx.used], grad[:, None] / ctx.temperature
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)  # a long sum: fp32
        for i in range(0, len(targets), ctx.size):
            part = slice(i, i + ctx.size)
            logits = (hidden[part] @ head.T).float().div_(ctx.temperature)
            probs = logits.sub_(norms[part, None]).exp_()
            slope = probs.mul_(-grad[part])  # of a log-prob by the logits: 1 at its own, − probs
            slope = slope.scatter_add_(1, targets[part, None], grad[part]).to(head.dtype)
            grad_hidden[part] = slope @ head
            grad_weight[: ctx.used] += slope.T @ hidden[part]
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None


def micro_batches(lengths: Sequence[int], max_tokens: int, runtime: Runtime) -> list[list[int]]:
    """Row numbers in groups of at most `max_tokens` tokens, padding included, for as many forward
    and backward passes. Rows of like length are together; a longer row is alone.

    Every rank gets the same number of groups, as FSDP's communication needs: the last may be empty.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not groups or (len(groups[-1]) + 1) * lengths[i] > max_tokens:
            groups.append([])
        groups[-1].append(i)
    return groups + [[]] * (int(runtime.max(len(groups))) - len(groups))


def sum_gradients_last(policy: Transformer, groups: Sequence[list[int]]) -> Iterator[list[int]]:
    """Each of `groups`, for a forward and backward pass of FSDP: the ranks add up their gradients
    in the last one alone, unless a whole gradient is too large to hold."""
    few = sum(parameter.numel() for parameter in policy.parameters()) <= MAX_UNSHARDED
    for n, group in enumerate(groups, 1):
        if isinstance(policy, FSDPModule):
            policy.set_requires_gradient_sync(n == len(groups) or not few)
        yield group


# -------------------------------------------------------------------------------- models in and out


def load_policy(
    folder: str | Path, runtime: Runtime, gradient_checkpointing: bool, **changes: Any
) -> tuple[Transformer, Tokenizer]:
    """Load model and tokenizer, fit them to each other, and shard the model over the ranks.

    changes: fields of the model's configuration that shall be others.
    """
    tokenizer = Tokenizer.from_pretrained(folder)
    model = Transformer.from_pretrained(folder, device=runtime.device, **changes)
    model.fit_vocabulary(tokenizer)
    return shard(model, runtime, gradient_checkpointing), tokenizer


def load_reference(folder: str | Path, tokenizer: Tokenizer, runtime: Runtime) -> Transformer:
    """Load a model that is never trained, sharded, and in bf16 if we compute in bf16."""
    dtype = torch.bfloat16 if runtime.bf16 else torch.float32
    model = Transformer.from_pretrained(folder, dtype, runtime.device)
    model.fit_vocabulary(tokenizer)
    return shard(model, runtime, frozen=True)


def save_policy(
    model: Transformer, tokenizer: Tokenizer, settings: TrainOptions, folder: Path, runtime: Runtime
) -> None:
    """Write a folder that `transformers`, vLLM and our own commands load."""
    if runtime.rank == 0:
        tokenizer.save_pretrained(folder)
    known = model.config.extra
    name = settings.export_dtype or known.get("dtype") or known.get("torch_dtype")
    model.save_pretrained(folder, dtype=getattr(torch, name if name in EXPORTED else "float32"))
    runtime.wait()


# ------------------------------------------------------------------------------------- command line


def main() -> None:
    evaluation = (EvalSettings, run_eval, EVAL_ON_LAB)
    commands = {"hft": (HFTSettings, hft, HFT_ON_LAB), "eval": evaluation}
    cli.run_subcommand("python lhrm.py", commands)
    stop()


if __name__ == "__main__":
    processes.run_command(main)
