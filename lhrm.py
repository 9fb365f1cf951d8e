"""Hybrid Fine-Tuning (Eq. 4), Hybrid Accuracy and evaluation (Eq. 2, 3, 13), and what both training
loops share.

    python lhrm.py hft  --model_name_or_path DIR --dataset_name hft.jsonl
    python lhrm.py eval --model_name_or_path DIR --dataset_name test.jsonl
    python lhrm.py memory --model_name_or_path DIR --num_processes 8

Shapes: K queries, G forced responses a mode, S free responses, R responses, T response tokens,
L tokens of prompt and response together, V vocabulary, n tokens of several responses in a row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import tokenizers
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from data import classify, lab
from data.judge import (
    NO_THINK,
    THINK,
    VERIFIERS,
    Judged,
    RewardModel,
    check_verifier,
    judge_all,
    load_reward_model,
)
from data.rows import (
    Query,
    TokenizedRows,
    encode_row,
    parse_response,
    read_hft_rows,
    read_queries,
    write_row,
)
from data.verify_code import extract_code
from model import (
    SAMPLING,
    Config,
    InputError,
    Tokenizer,
    Transformer,
    is_main_process,
    read_json,
    write_json,
)
from sample import (
    MAX_TOKENS,
    MODES,
    generate,
    mix_seed,
    parse_settings,
    run_command,
    setting,
)

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # by dcp, if alone
EXPORTS = ("alpaca_eval", "evalplus", "arena_hard")
MAX_LOGITS = 2**25  # logits held at once when scoring: 128 MiB in fp32


# ----------------------------------------------------------------------- hybrid accuracy, §2.1, 2.4


def best_modes(
    think_rewards: Tensor,
    no_think_rewards: Tensor,
    think_lengths: Tensor,
    no_think_lengths: Tensor,
    margin: float,
) -> Tensor:
    """m_gt of §2.4, the sampled m* of Eq. 2: (K, G) each -> (K,) of 0 (think) or 1 (no_think).

    The mode with the higher mean reward; where the means are equal or closer than `margin`, the
    mode with the shorter mean response; where these are equal too, no_think.
    """
    gap = think_rewards.double().mean(1) - no_think_rewards.double().mean(1)  # (K,)
    think_shorter = think_lengths.double().mean(1) < no_think_lengths.double().mean(1)
    tie = (gap.abs() < 1e-6) | (gap.abs() < margin - 1e-6)  # 1e-6: a mean of floats is not exact
    return torch.where(tie, ~think_shorter, gap < 0).long()  # Eq. 2


def hybrid_accuracy(
    think_rewards: Tensor,
    no_think_rewards: Tensor,
    think_lengths: Tensor,
    no_think_lengths: Tensor,
    chosen: Tensor,
    margin: float,
) -> float:
    """H_acc (Eq. 13): how often the mode that the model chose is the better one.

    The first four: (K, G), of the two forced modes. chosen: (K, S), the mode of each free response:
    0 (think), 1 (no_think), or −1 (opened with neither tag, always wrong).
    """
    best = best_modes(think_rewards, no_think_rewards, think_lengths, no_think_lengths, margin)
    return (chosen == best[:, None]).double().mean().item()  # Eq. 13


# --------------------------------------------------------------------------- processes and sharding


@dataclass
class Runtime:
    """This process among all of them."""

    rank: int
    world_size: int
    device: torch.device
    bf16: bool  # compute in bf16; parameters and optimizer state stay in fp32

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This rank's items of a global list, which `gather` puts back in order."""
        return list(items[self.rank :: self.world_size])

    def gather(self, mine: list[Any]) -> list[Any]:
        """The global list, on every rank, from each rank's `share` of it."""
        if self.world_size == 1:
            return mine
        parts: list[list[Any]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(parts, mine)
        return [
            parts[i % self.world_size][i // self.world_size] for i in range(sum(map(len, parts)))
        ]

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world_size > 1:
            dist.barrier()


def start(bf16: bool | None) -> Runtime:
    """Join the processes that torchrun started, or be the only one. bf16 None: yes on a GPU."""
    cuda = torch.cuda.is_available()
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    bf16 = cuda if bf16 is None else bf16
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if not dist.is_initialized() and (world_size > 1 or bf16):
        alone = {} if world_size > 1 else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        # One rank's rollout may take much longer than another's.
        patience = datetime.timedelta(hours=6)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=patience, **alone)
    return Runtime(int(os.environ.get("RANK", "0")), world_size, device, bf16)


def stop() -> None:
    """Leave the other processes; a process that torchrun started ends here, all being written.

    It must not end the usual way: a thread of gloo may still be giving back the tensors of the
    last collective, and with PyTorch 2.15 that aborts a Python interpreter that is shutting down.
    """
    if not dist.is_initialized():
        return
    several = dist.get_world_size() > 1
    dist.destroy_process_group()
    if several:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def shard(model: Transformer, runtime: Runtime, gradient_checkpointing: bool) -> Transformer:
    """Split parameters, gradients and optimizer state over the ranks, block by block (FSDP2).

    Gradients are summed, not averaged: the losses divide by global counts themselves. One process
    in fp32 needs none of this and keeps the plain module.
    """
    blocks = model.model["layers"]
    for block in blocks:
        block.gradient_checkpointing = gradient_checkpointing
    if runtime.world_size == 1 and not runtime.bf16:
        return model
    dtypes = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if runtime.bf16 else {}
    policy = MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False)  # rotary angles stay fp32
    for module in (*blocks, model):
        fully_shard(module, mp_policy=policy)
    for module in (*blocks, model):
        module.set_gradient_divide_factor(1.0)
        if runtime.device.type == "cpu":
            module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
    return model


@contextlib.contextmanager
def gathered(model: Transformer) -> Iterator[None]:
    """Keep all parameters of a sharded model whole, so that `generate` communicates nothing.

    Ranks finish their responses at different times; a collective inside the decoding loop would
    leave the slower ones waiting for ever.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.set_reshard_after_forward(False)
    with torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device))
    try:
        yield
    finally:
        for block in model.model["layers"]:
            block.set_reshard_after_forward(True)
            block.reshard()
        model.reshard()


# ----------------------------------------------------------------------------- scoring of responses


class Scores(NamedTuple):
    """Per token of each response, (R, T), zero past its end."""

    log_probs: Tensor  # fp32, differentiable
    entropy: Tensor  # fp32, nats
    correct: Tensor  # 1 where the token is the likeliest one
    mask: Tensor  # bool: inside the response; from lengths, so a stop token is as good as any


def score_responses(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float = 1.0,
) -> Scores:
    """log π(o_t | q, o_{<t}) of given responses, as the sampler would have drawn them."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(r) for r in responses])
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # (R, L), right-padded
    scored = torch.zeros(len(prompts), longest, dtype=torch.bool)  # where a next token is scored
    for row, where, prompt, response in zip(ids, scored, prompts, responses):
        end = len(prompt) + len(response)
        row[:end] = torch.tensor([*prompt, *response])
        where[len(prompt) - 1 : end - 1] = True
    targets = torch.tensor([token for response in responses for token in response])  # (n,)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(device)  # (R, T)
    scored, targets = scored.to(device), targets.to(device)

    def head(hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
        return score_tokens(hidden[scored], logits, targets, temperature, model.config.vocab_size)

    columns = model(ids.to(device), head=head)  # (n, 3)
    grids = [torch.zeros(mask.shape, device=device) for _ in range(3)]
    return Scores(*(g.masked_scatter(mask, c) for g, c in zip(grids, columns.unbind(1))), mask)


def score_tokens(
    hidden: Tensor,
    logits: Callable[[Tensor], Tensor],
    targets: Tensor,
    temperature: float,
    vocab_size: int,
) -> Tensor:
    """(n, C), (n,) -> (n, 3): log-prob of each target, entropy, whether the target is the argmax.

    Of the (n, V) logits at most MAX_LOGITS exist at a time: they are made chunk by chunk, and made
    again in the backward pass.
    """

    def chunk(hidden: Tensor, targets: Tensor) -> Tensor:
        scores = torch.log_softmax(logits(hidden).float() / temperature, dim=-1)  # fp32
        with torch.no_grad():
            entropy = torch.special.entr(scores.exp()).sum(-1)
            correct = (scores.argmax(-1) == targets).float()
        log_probs = scores.gather(1, targets[:, None]).squeeze(1)
        return torch.stack([log_probs, entropy, correct], dim=1)

    rows = max(1, MAX_LOGITS // vocab_size)
    if len(targets) <= rows:
        return chunk(hidden, targets)
    pieces = zip(hidden.split(rows), targets.split(rows))
    return torch.cat([checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces])


def micro_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in groups of `size`, like lengths together, so that little is padding."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[i : i + size] for i in range(0, len(order), size)]


def micro_batch_size(name: str, batch: int, rows_each: int, settings: Any, runtime: Runtime) -> int:
    """Rows in a micro-batch: per_device_train_batch_size, or a rank's whole share if that is less.

    `batch` items of `rows_each` rows make a step; `name` is the setting that says so. Nothing is
    rounded: raises InputError where a division leaves a remainder.
    """
    world, wanted = runtime.world_size, settings.per_device_train_batch_size
    if batch < 1 or wanted < 1:
        raise InputError(f"{name} and per_device_train_batch_size must be at least 1")
    if batch % world:
        raise InputError(f"{name} = {batch} does not divide by {world} processes")
    share = batch // world * rows_each
    if share % min(wanted, share):
        raise InputError(
            f"{name} = {batch} gives each process {share} rows a step, which do not divide into "
            f"micro-batches of per_device_train_batch_size = {wanted}"
        )
    return min(wanted, share)


def batch_indices(num_rows: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The rows of a step: epoch after epoch, each in an order of its own. A function of its
    arguments alone, so that resuming needs no state."""
    places = range(step * batch_size, (step + 1) * batch_size)
    return [int(epoch_order(num_rows, i // num_rows, seed)[i % num_rows]) for i in places]


@functools.lru_cache(maxsize=4)
def epoch_order(num_rows: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng(mix_seed(seed, "order", epoch)).permutation(num_rows)


# ----------------------------------------------------------------------- optimizer, log, checkpoint


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; norms and biases are not decayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True)


def optimizer_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, learning_rate: float, max_grad_norm: float
) -> float:
    """Clip by the global gradient norm, which is returned, and update. max_grad_norm 0: no clip."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if not norm.isfinite():
        raise InputError(f"the gradient norm is {norm.item()}: try a lower learning rate")
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
    return norm.item()


def scheduled_rate(step: int, steps: int, settings: Any) -> float:
    """Learning rate of a step (from 0): linear warm-up, then constant or a cosine towards 0."""
    warmup = math.ceil(steps * settings.warmup_ratio)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.lr_scheduler_type == "constant":
        return settings.learning_rate
    done = (step - warmup) / (steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Log:
    """One JSON object a step in `log.jsonl`, the same numbers on TensorBoard; rank 0 only."""

    def __init__(self, folder: Path, start_step: int, report_to: str) -> None:
        self.path = folder / "log.jsonl"
        self.board = None
        if not is_main_process():
            return
        kept = []
        if start_step and self.path.exists():  # drop what a killed run logged past its checkpoint
            lines = self.path.read_text(encoding="utf-8").splitlines()
            whole = [line for line in lines if line.endswith("}")]  # the last one may be half
            kept = [line for line in whole if json.loads(line)["step"] <= start_step]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        if report_to == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError(
                    "--report_to tensorboard needs `pip install tensorboard`"
                ) from None
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not is_main_process():
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items() if self.board else ():
            self.board.add_scalar(name, value, step)


def save_checkpoint(
    settings: Any,
    step: int,
    tokens_seen: int,
    models: dict[str, Transformer],
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
) -> None:
    """Everything needed to go on after `step` steps; the previous checkpoint is then deleted.

    There is no random state to save: every random number is a function of the seed, the step and
    the row it is for.
    """
    folder = Path(settings.output_dir)
    final, partial = folder / f"checkpoint-{step:06d}", folder / "checkpoint-partial"
    if runtime.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
    runtime.wait()
    dcp.save(
        training_state(models, optimizer), checkpoint_id=partial, no_dist=runtime.world_size == 1
    )
    runtime.wait()
    if runtime.rank == 0:
        done = {"step": step, "tokens_seen": tokens_seen, "settings": decisive(settings)}
        write_json(partial / "progress.json", done)
        old = list(folder.glob("checkpoint-[0-9]*"))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for path in old:
            if path != final:
                shutil.rmtree(path)


def training_state(models: dict[str, Transformer], optimizer: torch.optim.Optimizer) -> dict:
    policy, state = get_state_dict(models["policy"], optimizer)
    others = {name: model.state_dict() for name, model in models.items() if name != "policy"}
    return {"policy": policy, "optimizer": state, **others}


def find_checkpoint(folder: Path, resume: bool) -> Path | None:
    """The newest checkpoint, if we are to resume. A finished run leaves none."""
    found = sorted(folder.glob("checkpoint-[0-9]*"))
    if found and not resume:
        raise InputError(
            f"{folder} holds an unfinished run: go on with --resume_from_checkpoint, "
            f"or delete {found[-1]}"
        )
    return found[-1] if found else None


def decisive(settings: Any) -> dict[str, Any]:
    """The settings on which the weights depend, so that a run must go on with the same ones."""
    others = ("output_dir", "resume_from_checkpoint", "report_to", "save_steps", "logging_steps")
    values = dataclasses.asdict(settings)
    return {k: v for k, v in values.items() if k not in others and not k.startswith("eval_")}


def check_same(path: Path, recorded: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise InputError if what is at `path` was made with other settings than are wanted."""
    for name, value in wanted.items():
        if recorded.get(name) != value:
            raise InputError(f"{path} was made with {name} = {recorded.get(name)}, not {value}")


def load_checkpoint(
    path: Path,
    settings: Any,
    models: dict[str, Transformer],
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
) -> tuple[int, int]:
    """Take up a checkpoint; returns its step and the tokens seen until then."""
    done = read_json(path / "progress.json")
    check_same(path, done.get("settings", {}), decisive(settings))
    state = training_state(models, optimizer)
    try:
        dcp.load(state, checkpoint_id=path, no_dist=runtime.world_size == 1)
    except (CheckpointException, Exception) as error:
        raise InputError(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from None
    set_state_dict(
        models["policy"],
        optimizer,
        model_state_dict=state["policy"],
        optim_state_dict=state["optimizer"],
    )
    return done["step"], done["tokens_seen"]


def load_policy(
    folder: str | Path, runtime: Runtime, gradient_checkpointing: bool
) -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer of a folder, fp32, vocabulary fitted, sharded over the ranks."""
    tokenizer = Tokenizer.from_pretrained(folder)
    model = Transformer.from_pretrained(folder, device=runtime.device)
    model.fit_vocabulary(tokenizer)
    return shard(model, runtime, gradient_checkpointing), tokenizer


def save_policy(model: Transformer, tokenizer: Tokenizer, folder: Path, runtime: Runtime) -> None:
    """Leave a folder that `transformers`, vLLM and our own commands load.

    The weights come last: where they are, the folder is whole. In bf16 if we computed in bf16.
    """
    if runtime.rank == 0:
        tokenizer.save_pretrained(folder)
    model.save_pretrained(folder, dtype=torch.bfloat16 if runtime.bf16 else None)
    runtime.wait()


def drop_checkpoints(folder: Path, runtime: Runtime) -> None:
    """A finished run needs none."""
    if runtime.rank == 0:
        for path in folder.glob("checkpoint-[0-9]*"):
            shutil.rmtree(path)


def announce(
    name: str,
    settings: Any,
    derived: dict[str, Any],
    folder: Path | None,
    file: str = "settings.json",
) -> None:
    """Print the resolved settings of a run and the versions; keep them in the folder's `file`."""
    if not is_main_process():
        return
    versions = {m.__name__: m.__version__ for m in (torch, tokenizers, safetensors, np)}
    values = {"settings": dataclasses.asdict(settings), "derived": derived, "versions": versions}
    print(f"\n{name}")
    for group, entries in values.items():
        print(f"  {group}: " + ", ".join(f"{k}={v}" for k, v in entries.items()))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / file, values)


def progress(items: Any, description: str, **options: Any) -> tqdm:
    """A progress bar, shown by rank 0 only."""
    return tqdm(items, desc=description, disable=not is_main_process(), mininterval=0.5, **options)


# ------------------------------------------------------------------ Hybrid Fine-Tuning, §2.2, Eq. 4


@dataclass
class HFTSettings:
    """Hybrid Fine-Tuning (Eq. 4). Without --model_name_or_path it trains the lab's tiny model."""

    model_name_or_path: str | None = setting(None, "folder of the base model; none: the lab")
    dataset_name: str | None = setting(
        None, "HFT rows, .jsonl or .jsonl.gz, or a folder of tokenized ones"
    )
    output_dir: str = setting(
        "runs/hft", "where model, log and checkpoints go; on the lab, into its folder hft"
    )
    num_train_epochs: int = setting(3, "passes over the rows", minimum=1)
    max_steps: int = setting(0, "stop after so many steps; 0: after num_train_epochs")
    batch_size: int = setting(128, "rows a step, over all processes", minimum=1)
    per_device_train_batch_size: int = setting(1, "rows in a micro-batch", minimum=1)
    learning_rate: float = setting(1e-4, "peak learning rate")
    lr_scheduler_type: str = setting("cosine", "after warm-up", ("cosine", "constant"))
    warmup_ratio: float = setting(0.1, "share of steps in which the rate rises", maximum=1)
    weight_decay: float = setting(0.0, "AdamW's, on matrices")
    max_grad_norm: float = setting(1.0, "clip the global gradient norm; 0: never")
    max_length: int = setting(32768, "rows of more tokens are left out, and counted")
    gradient_checkpointing: bool = setting(True, "recompute activations in the backward pass")
    bf16: bool | None = setting(None, "compute in bf16; none: on a GPU only")
    save_steps: int = setting(500, "steps between checkpoints", minimum=1)
    logging_steps: int = setting(10, "steps between log lines", minimum=1)
    report_to: str = setting("none", "a second place for the log", ("none", "tensorboard"))
    resume_from_checkpoint: bool = setting(False, "go on from the newest checkpoint")
    seed: int = setting(0, "of the data order (and of the lab)")


LAB = {  # defaults of the lab, where they differ
    "output_dir": "runs/lab",
    "batch_size": 64,
    "per_device_train_batch_size": 16,  # few rows are long, and pad the others
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "gradient_checkpointing": False,
}


def hft_loss(log_probs: Tensor, mask: Tensor, num_examples: int) -> Tensor:
    """L_HFT: −Σ_t log π(y_t | x, y_{<t}), averaged over `num_examples`. (R, T), (R, T) -> scalar.

    num_examples: those of the whole step, whatever part of them is in this micro-batch.
    """
    return -torch.where(mask, log_probs, 0.0).sum() / num_examples  # Eq. 4


def hft(settings: HFTSettings) -> None:
    """Fine-tune on both formats; leaves a model folder in `output_dir`."""
    runtime = start(settings.bf16)
    if settings.model_name_or_path is None:
        base, files = prepare_lab(Path(settings.output_dir), settings.seed, runtime)
        settings = dataclasses.replace(
            settings,
            model_name_or_path=str(base),
            dataset_name=settings.dataset_name or str(files["hft"]),
            output_dir=f"{settings.output_dir}/hft",
        )
    folder = Path(settings.output_dir)
    if settings.dataset_name is None:
        raise InputError("give --dataset_name, a file of HFT rows")
    micro_batch = micro_batch_size("batch_size", settings.batch_size, 1, settings, runtime)
    newest = find_checkpoint(folder, settings.resume_from_checkpoint)
    policy, tokenizer = load_policy(
        settings.model_name_or_path, runtime, settings.gradient_checkpointing
    )
    rows, too_long = tokenize_rows(settings.dataset_name, tokenizer, settings.max_length)
    steps = settings.max_steps or math.ceil(
        len(rows) * settings.num_train_epochs / settings.batch_size
    )
    optimizer = make_optimizer(policy, settings.weight_decay)
    first = tokens_seen = 0
    if newest:
        first, tokens_seen = load_checkpoint(
            newest, settings, {"policy": policy}, optimizer, runtime
        )
    derived = {
        "processes": runtime.world_size,
        "device": runtime.device.type,
        "micro_batch": micro_batch,
        "gradient_accumulation_steps": settings.batch_size // runtime.world_size // micro_batch,
        "rows": len(rows),
        "rows_too_long": too_long,
        "steps": steps,
        "first_step": first,
    }
    announce("Hybrid Fine-Tuning", settings, derived, folder)
    log = Log(folder, first, settings.report_to)
    bar = progress(range(first, steps), "HFT", initial=first, total=steps, unit="step")
    for step in bar:
        began = time.perf_counter()
        batch = [
            rows[i] for i in batch_indices(len(rows), settings.batch_size, step, settings.seed)
        ]
        batch = runtime.share(sorted(batch, key=lambda row: len(row[0]) + len(row[1])))
        totals = torch.zeros(5, dtype=torch.float64, device=runtime.device)
        for part in micro_batches([len(p) + len(r) for p, r in batch], micro_batch):
            prompts, responses = zip(*(batch[i] for i in part))
            scores = score_responses(policy, prompts, responses)
            loss = hft_loss(scores.log_probs, scores.mask, settings.batch_size)
            loss.backward()
            sums = [loss.detach(), scores.correct.sum(), scores.entropy.sum(), scores.mask.sum()]
            totals += torch.stack([*sums, totals.new_tensor(sum(map(len, prompts)))])
        rate = scheduled_rate(step, steps, settings)
        grad_norm = optimizer_step(policy, optimizer, rate, settings.max_grad_norm)
        loss_sum, correct, entropy, tokens, prompt_tokens = runtime.sum(totals).tolist()
        tokens_seen += int(tokens + prompt_tokens)
        if (step + 1) % settings.logging_steps == 0 or step + 1 == steps:
            seconds = time.perf_counter() - began
            values = {
                "loss": loss_sum,
                "mean_token_accuracy": correct / tokens,
                "entropy": entropy / tokens,
                "grad_norm": grad_norm,
                "learning_rate": rate,
                "epoch": (step + 1) * settings.batch_size / len(rows),
                "num_tokens": tokens_seen,
                "step_time": seconds,
                "tokens_per_second": (tokens + prompt_tokens) / seconds,
            }
            log.write(step + 1, values)
            bar.set_postfix(loss=f"{loss_sum:.3f}", accuracy=f"{correct / tokens:.3f}")
        if (step + 1) % settings.save_steps == 0 and step + 1 < steps:
            save_checkpoint(settings, step + 1, tokens_seen, {"policy": policy}, optimizer, runtime)
    save_policy(policy, tokenizer, folder, runtime)
    drop_checkpoints(folder, runtime)


def tokenize_rows(
    path: str, tokenizer: Tokenizer, max_length: int
) -> tuple[Sequence[tuple[list[int], list[int]]], int]:
    """(prompt ids, response ids) of every HFT row that fits, and the number that do not.

    path: a file of rows, or a folder of rows that data/prepare.py has tokenized, which stays on
    the disk.
    """
    if Path(path).is_dir():
        rows: Any = TokenizedRows(Path(path), tokenizer, max_length)
        too_long = rows.too_long
    else:
        encoded = [
            encode_row(tokenizer, messages, text, where)
            for where, messages, text in progress(read_hft_rows(path), "reading", unit=" rows")
        ]
        rows = [row for row in encoded if sum(map(len, row)) <= max_length]
        too_long = len(encoded) - len(rows)
    if not len(rows):
        raise InputError(f"{path}: every row is longer than max_length")
    return rows, too_long


def prepare_lab(folder: Path, seed: int, runtime: Runtime) -> tuple[Path, dict[str, Path]]:
    """Make the lab of `data/lab.py` under `folder`, once: an untrained model and its data files."""
    base, data = folder / "base", folder / "data"
    if runtime.rank == 0 and not (base / "model.safetensors").exists():
        lab.write(base, data, seed)
        config = Config.from_pretrained(base)
        Transformer(config).initialize(seed).save_pretrained(base)
    runtime.wait()
    made_with = json.loads((data / "seed.json").read_text(encoding="utf-8"))
    if made_with != seed:
        raise InputError(f"{folder} holds the lab of seed {made_with}, not of {seed}")
    return base, {name: data / f"{name}.jsonl" for name in ("hft", "rl", "test")}


# --------------------------------------------------------------------------------------- evaluation


@dataclass
class EvalOptions:
    """How to judge responses, and how to evaluate."""

    reward_model_name_or_path: str | None = setting(
        None, "folder of the model that judges queries without a definite answer (Eq. 7)"
    )
    reward_batch_size: int = setting(16, "answers that it scores at a time", minimum=1)
    verifier: str = setting(
        "rule", "of maths answers: our rules, or the package math-verify", tuple(VERIFIERS)
    )
    eval_domain: str | None = setting(None, "domain of the headline figures; none: all rows")
    eval_num_generations: int = setting(
        4, "responses per query and mode, and as many free ones", minimum=1
    )
    eval_temperature: float = setting(
        SAMPLING["temperature"], "sampling temperature of evaluations"
    )
    eval_top_p: float = setting(SAMPLING["top_p"], "nucleus of evaluations", None, 1e-6, 1)
    eval_batch_size: int = setting(128, "responses sampled at once by each process", minimum=1)
    max_completion_length: int = setting(
        4096, "tokens a response may have", minimum=1, maximum=MAX_TOKENS
    )
    hacc_margin: float = setting(0.05, "mean rewards closer than this count as equal (Eq. 13)")


@dataclass
class EvalSettings(EvalOptions):
    """pass@1, think ratio, tokens and Hybrid Accuracy (Eq. 13) of a model on some queries."""

    model_name_or_path: str = setting("runs/lab/hgpo", "model folder")
    dataset_name: str = setting(
        "runs/lab/data/test.jsonl", "files of queries, .jsonl or .jsonl.gz, commas between them"
    )
    modes: str = setting(
        "think,no_think,auto", "how to answer, commas between: forced into a mode, as the model "
        "chooses (auto), or in the mode that a classifier picks (router). H_acc needs both modes",
    )  # fmt: skip
    classifier_name_or_path: str | None = setting(None, "the router's; none: a few rules")
    output_dir: str | None = setting(None, "where eval.json and responses.jsonl go; none: nowhere")
    export: str = setting(
        "none", "the last mode's answers for another evaluator as well", ("none", *EXPORTS)
    )
    resume_from_checkpoint: bool = setting(False, "go on where output_dir was left")
    bf16: bool | None = setting(None, "compute in bf16; none: on a GPU only")
    seed: int = setting(0, "of the sampling")


@dataclass
class Record:
    """A query and, for each way in which it was answered, its judged responses."""

    query: Query
    responses: dict[str, list[Judged]]  # by "think", "no_think" (forced), "auto", "router"

    @property
    def graded(self) -> bool:
        """Whether there was anything to judge its responses by."""
        return all(j.reward is not None for judged in self.responses.values() for j in judged)


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    queries: Sequence[Query],
    settings: EvalOptions,
    runtime: Runtime,
    description: str,
    seed: int = 0,
    reward_model: RewardModel | None = None,
    ways: Sequence[Sequence[str]] | None = None,
    kept: Kept | None = None,
) -> list[Record]:
    """Answer every query in both forced modes and freely; the records of all ranks, in order.

    ways: per query, other ways to answer it than these three. kept: where finished records are, and
    where they go.
    """
    done = kept.records if kept else {}
    mine = runtime.share([q for q in range(len(queries)) if q not in done])
    prompts = {q: tokenizer.encode_chat(queries[q].prompt) for q in mine}
    mine.sort(key=lambda q: -len(prompts[q]))  # like lengths together pad little; the worst first
    ways = ways or [(*MODES, "auto")] * len(queries)
    k = settings.eval_num_generations
    records: list[tuple[int, Record]] = []
    model.eval()
    with gathered(model), progress(None, description, total=len(mine), unit="query") as bar:
        size = max(1, settings.eval_batch_size // (k * max(map(len, ways))))  # queries
        for part in (mine[i : i + size] for i in range(0, len(mine), size)):
            asked = [(q, way) for q in part for way in ways[q]]
            sampled = generate(
                model,
                [prompts[q] for q, _ in asked],
                modes=[way if way in MODES else None for _, way in asked],
                num_generations=k,
                max_new_tokens=settings.max_completion_length,
                temperature=settings.eval_temperature,
                top_p=settings.eval_top_p,
                eos_ids=tokenizer.eos_ids,
                think_id=tokenizer.think_id,
                no_think_id=tokenizer.no_think_id,
                seed=[mix_seed(seed, "eval", q, way) for q, way in asked],
            )
            cases = [(queries[q], c) for (q, _), drawn in zip(asked, sampled) for c in drawn]
            judged = iter(judge_all(cases, tokenizer, reward_model, settings.verifier))
            for q in part:
                responses = {way: list(itertools.islice(judged, k)) for way in ways[q]}
                records.append((q, Record(queries[q], responses)))
                if kept:
                    kept.add(*records[-1])
            bar.update(len(part))
    model.train()
    return [record for _, record in sorted([*done.items(), *runtime.gather(records)])]


class Kept:
    """The finished records of an evaluation, on the disk as soon as they are there.

    Every process appends to a file of its own and reads those of all, so that an evaluation may go
    on with another number of processes.
    """

    def __init__(self, settings: EvalSettings, queries: Sequence[Query], runtime: Runtime) -> None:
        self.folder = Path(settings.output_dir)
        files = sorted(self.folder.glob("unfinished-*.jsonl"))
        if files and not settings.resume_from_checkpoint:
            raise InputError(
                f"{self.folder} holds an unfinished evaluation: go on with "
                "--resume_from_checkpoint, or delete its unfinished-*.jsonl"
            )
        if files:
            harmless = ("output_dir", "resume_from_checkpoint", "eval_batch_size", "export")
            harmless += ("reward_batch_size", "hacc_margin", "eval_domain")
            same = {k: v for k, v in dataclasses.asdict(settings).items() if k not in harmless}
            recorded = read_json(self.folder / "eval_settings.json")
            recorded = {**recorded.get("settings", {}), **recorded.get("derived", {})}
            check_same(self.folder, recorded, {**same, "model_files": model_files(settings)})
        self.records: dict[int, Record] = {}
        for path in files:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last is cut short
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    ways = row["responses"].items()
                    responses = {way: [Judged(**j) for j in judged] for way, judged in ways}
                    self.records[row["index"]] = Record(Query(**row["query"]), responses)
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise InputError(f"{path}:{number}: damaged; delete this line") from None
        if any(i >= len(queries) or r.query != queries[i] for i, r in self.records.items()):
            raise InputError(f"{self.folder} holds an unfinished evaluation of other queries")
        runtime.wait()  # nobody writes before everybody has read
        self.path = self.folder / f"unfinished-{runtime.rank}.jsonl"
        if self.path in files:
            with open(self.path, "r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def add(self, index: int, record: Record) -> None:
        write_lines(self.path, [{"index": index, **dataclasses.asdict(record)}], "a")

    def remove(self) -> None:
        for path in self.folder.glob("unfinished-*.jsonl"):
            path.unlink()


def model_files(settings: EvalSettings) -> list[list[Any]]:
    """Name, size and time of the weights that decide an evaluation."""
    folders = (
        settings.model_name_or_path,
        settings.reward_model_name_or_path,
        settings.classifier_name_or_path,
    )
    paths = [path for folder in folders if folder for path in Path(folder).glob("*.safetensors")]
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(paths)]


def summarize(records: Sequence[Record], margin: float) -> dict[str, Any]:
    """The number of records and, for each way of answering, its figures.

    What rests on rewards (pass@1, H_acc) is over the graded records, and None without any; H_acc
    is None unless both modes were forced.
    """
    ways = list(records[0].responses)
    graded = [record for record in records if record.graded]

    def grid(rows: Sequence[Record], way: str, name: str) -> Tensor:  # (K, G)
        values = [[float(getattr(j, name)) for j in record.responses[way]] for record in rows]
        return torch.tensor(values, dtype=torch.float64)

    forced = best = None
    if graded and all(mode in ways for mode in MODES):
        forced = [grid(graded, mode, name) for name in ("reward", "length") for mode in MODES]
        best = best_modes(*forced, margin)  # (K,)

    def figures(way: str) -> dict[str, Any]:
        modes, lengths = grid(records, way, "mode"), grid(records, way, "length")
        values: dict[str, Any] = {
            "pass@1": None,
            "pass@1_interval": None,
            "think_ratio": (modes == THINK).double().mean().item(),
            "mean_tokens": lengths.mean().item(),
            "hybrid_accuracy": None,
            "hybrid_accuracy_interval": None,
            "clipped_ratio": 1 - grid(records, way, "finished").mean().item(),
            "malformed_ratio": 1 - grid(records, way, "well_formed").mean().item(),
        }
        for mode, name in enumerate(MODES):
            its = lengths[modes == mode]
            values[f"{name}_tokens"] = its.mean().item() if len(its) else None
        if graded:
            rewards = grid(graded, way, "reward")
            values |= {"pass@1": rewards.mean().item(), "pass@1_interval": bootstrap(rewards)}
        if forced:
            chosen = grid(graded, way, "mode")
            values["hybrid_accuracy"] = hybrid_accuracy(*forced, chosen, margin)
            values["hybrid_accuracy_interval"] = bootstrap((chosen == best[:, None]).double())
        return values

    return {"queries": len(records), "graded": len(graded), **{way: figures(way) for way in ways}}


def bootstrap(values: Tensor) -> list[float]:
    """95% interval of the mean of (K, S) values, the K queries drawn again and again."""
    means = values.mean(1).numpy()
    drawn = np.random.default_rng(0).integers(len(means), size=(1000, len(means)))
    return np.quantile(means[drawn].mean(1), [0.025, 0.975]).tolist()


def check_domain(queries: Sequence[Query], domain: str | None) -> None:
    """Raise InputError, before anything is computed, if no query has the headline domain."""
    domains = {query.domain: None for query in queries}
    if domain is not None and domain not in domains:
        raise InputError(f"--eval_domain {domain}: the queries have {', '.join(domains)}")


def results(records: Sequence[Record], margin: float, domain: str | None) -> dict[str, Any]:
    """Headline figures of `domain` (None: of all), the same by level, and those of every domain."""
    head = [r for r in records if domain is None or r.query.domain == domain]

    def split(records: Sequence[Record], key: Callable[[Query], str]) -> dict[str, Any]:
        parts: dict[str, list[Record]] = {}
        for record in records:
            parts.setdefault(key(record.query), []).append(record)
        names = sorted(filter(None, parts), key=lambda name: (len(name), name))  # 2 before 10
        return {name: summarize(parts[name], margin) for name in names}

    by_domain = split(records, lambda q: q.domain)
    graded = [figures for figures in by_domain.values() if figures["graded"]]
    return {
        "domain": domain or "all",
        **summarize(head, margin),
        "mean_utility": {  # Eq. 3, U being the reward
            way: sum(figures[way]["pass@1"] for figures in graded) / len(graded)
            for way in (records[0].responses if graded else ())
        },
        "by_level": split(head, lambda q: q.level),
        "by_domain": by_domain,
    }


def results_table(rows: dict[str, dict[str, Any]]) -> str:
    """One line of figures per name: pass@1 with half of its 95% interval, think ratio, mean tokens
    of all responses and of those in each mode, H_acc, and the shares that reached the length limit
    and that were malformed."""
    columns = {
        "pass@1": 14, "think": 8, "tokens": 9, "if think": 10, "if no_think": 13, "H_acc": 8,
        "cut": 7, "malformed": 11,
    }  # fmt: skip
    margin = max(20, *map(len, rows)) + 1
    lines = [" " * margin + "".join(f"{name:>{width}}" for name, width in columns.items())]
    for name, f in rows.items():
        accuracy = shown(f["pass@1"], 3)
        if f["pass@1_interval"]:
            low, high = f["pass@1_interval"]
            accuracy += f" ±{(high - low) / 2:.3f}"
        cells = [
            accuracy,
            shown(f["think_ratio"], 3),
            *(shown(f[key], 1) for key in ("mean_tokens", "think_tokens", "no_think_tokens")),
            *(shown(f[key], 3) for key in ("hybrid_accuracy", "clipped_ratio", "malformed_ratio")),
        ]
        widths = columns.values()
        lines.append(f"{name:{margin}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths)))
    return "\n".join(lines)


def shown(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def level_bars(name: str, result: dict[str, Any], way: str = "auto") -> str:
    """Think ratio by level, as bars."""
    lines = [f"think ratio by level, {name}"]
    for level, figures in result["by_level"].items():
        ratio = figures[way]["think_ratio"]
        lines.append(f"  level {level} {'█' * round(20 * ratio):░<20} {ratio:.2f}")
    return "\n".join(lines)


def export(kind: str, records: Sequence[Record], way: str, model: str, folder: Path) -> None:
    """Write the first answer to each query, without its reasoning, for another evaluator."""
    rows: list[dict[str, Any]] = []
    for record in records:
        query, answer = record.query, parse_response(record.responses[way][0].text).answer
        if kind == "alpaca_eval":
            row = {"instruction": query.prompt[-1]["content"], "output": answer}
            rows.append({**row, "generator": model, "dataset": query.dataset})
        elif kind == "evalplus":
            rows.append({"task_id": query.id, "solution": extract_code(answer)})
        else:
            messages = [*query.prompt, {"role": "assistant", "content": {"answer": answer}}]
            row = {"uid": query.id, "ans_id": f"{mix_seed(0, query.id, answer):016x}"}
            row |= {"model": model, "messages": messages, "tstamp": time.time(), "metadata": {}}
            rows.append(row)
    if kind == "alpaca_eval":
        write_json(folder / "alpaca_eval.json", rows)
    else:
        write_lines(folder / f"{kind}.jsonl", rows)


def write_lines(path: Path, rows: Iterable[Any], mode: str = "w") -> None:
    """Each row as a line of JSON."""
    with open(path, mode, encoding="utf-8") as file:
        for row in rows:
            write_row(row, file)


def route(queries: Sequence[Query], classifier: str | None) -> list[str]:
    """The mode of each query by a classifier (none: rules): the training-free baseline."""
    texts = [query.prompt[-1]["content"] for query in queries]
    scores = classify.load(classifier).predict(texts)
    return [MODES[THINK if score >= classify.THRESHOLD else NO_THINK] for score in scores]


def run_eval(settings: EvalSettings) -> None:
    """The `eval` command."""
    runtime = start(settings.bf16)
    queries = read_queries(settings.dataset_name)
    check_domain(queries, settings.eval_domain)
    check_verifier(settings.verifier)
    asked = settings.modes.split(",")
    if unknown := set(asked) - {*MODES, "auto", "router"}:
        raise InputError(f"--modes {min(unknown)}: expected {', '.join(MODES)}, auto or router")
    if settings.export != "none" and not settings.output_dir:
        raise InputError("--export needs --output_dir, where to write")
    if settings.export in ("evalplus", "arena_hard") and not all(q.id for q in queries):
        raise InputError(f"--export {settings.export}: every row needs an id")
    routed = [""] * len(queries)
    if "router" in asked:
        routed = route(queries, settings.classifier_name_or_path)
    # The router's answers are those of the forced mode that it picks.
    ways = [sorted({mode if way == "router" else way for way in asked}) for mode in routed]
    reward_model = None  # queries without a definite answer need not be judged here
    if folder := settings.reward_model_name_or_path:
        batch_size = settings.reward_batch_size
        reward_model = load_reward_model(folder, batch_size, queries, runtime.device)
    model, tokenizer = load_policy(settings.model_name_or_path, runtime, False)
    kept = Kept(settings, queries, runtime) if settings.output_dir else None
    derived = {"queries": len(queries), "model_files": model_files(settings)}
    announce("Evaluation", settings, derived, kept and kept.folder, "eval_settings.json")
    records = evaluate(
        model, tokenizer, queries, settings, runtime, "evaluation", settings.seed, reward_model,
        ways, kept,
    )  # fmt: skip
    for record, mode in zip(records, routed):
        responses = {**record.responses, "router": record.responses.get(mode, [])}
        record.responses = {way: responses[way] for way in asked}
    result = results(records, settings.hacc_margin, settings.eval_domain)
    if runtime.rank > 0:
        return
    rows = {way: result[way] for way in asked}
    if len(result["by_domain"]) > 1:
        by_domain = result["by_domain"].items()
        rows |= {f"{way}, {name}": its[way] for way in asked for name, its in by_domain}
    print(f"\n{len(records)} queries, headline domain: {result['domain']}")
    print(results_table(rows))
    if result["by_level"]:
        print(level_bars(asked[-1], result, asked[-1]))
    if kept:
        write_json(kept.folder / "eval.json", result)
        write_lines(kept.folder / "responses.jsonl", map(dataclasses.asdict, records))
        if settings.export != "none":
            name = Path(settings.model_name_or_path).resolve().name
            export(settings.export, records, asked[-1], name, kept.folder)
        kept.remove()


# ---------------------------------------------------------------------------------- memory on a GPU


@dataclass
class MemorySettings:
    """Memory that chat, HFT and HGPO need on each GPU, in bf16, estimated from config.json."""

    model_name_or_path: str = setting("runs/lab/hgpo", "model folder; the weights are not read")
    reward_model_name_or_path: str | None = setting(None, "folder of HGPO's reward model, if any")
    num_processes: int = setting(1, "GPUs", minimum=1)
    max_length: int = setting(4096, "tokens of prompt and response together", minimum=1)
    per_device_train_batch_size: int = setting(8, "rows in a micro-batch", minimum=1)
    rollout_batch_size: int = setting(128, "responses sampled at once by each process", minimum=1)


def memory_needed(config: Config, settings: MemorySettings) -> dict[str, float]:
    """Bytes on each GPU for «chat», «hft» and «hgpo», with gradient checkpointing.

    Weights, optimizer state, caches and saved activations are counted; what the kernels and the
    allocator take on top (some GiB) is not.
    """
    layers, share = config.num_hidden_layers, 1 / settings.num_processes
    count, block = count_parameters(config)
    outside = count - layers * block  # the embedding and the head
    cached = layers * 4 * config.num_key_value_heads * config.head_dim  # a token's keys and values
    drawn = 22 * config.vocab_size  # a row of logits in bf16, as log-probs in fp32, summed in fp64

    chat = 2 * count + cached * settings.max_length + drawn
    # Parameters, gradients and AdamW's two moments in fp32, split over the GPUs.
    state = 16 * count * share
    # In a backward pass: the embedding and two blocks gathered in bf16, with gradients in bf16 and,
    # to be summed, in fp32; every block's input; one block's activations and their gradients.
    tokens = settings.per_device_train_batch_size * settings.max_length
    gathered = 8 * (outside + 2 * block)
    activations = tokens * (2 * config.hidden_size * layers + 2 * block_activations(config))
    update = state + gathered + activations + 24 * MAX_LOGITS
    # In a rollout: the whole model in bf16, and caches, which grow by half at a time.
    rows = settings.rollout_batch_size
    rollout = state + 2 * count + rows * (1.5 * cached * settings.max_length + drawn)
    reference = 4 * count * share
    loading = 4 * count + reference  # each model is loaded whole, in fp32, and then split
    return {
        "chat": chat,
        "hft": max(4 * count, update),
        "hgpo": max(loading, reference + update, reference + rollout),
    }


def count_parameters(config: Config) -> tuple[int, int]:
    """Parameters of the whole model, and of one of its blocks."""
    with torch.device("meta"):
        model = Transformer(config)
    whole, block = (
        sum(parameter.numel() for parameter in module.parameters())
        for module in (model, model.model["layers"][0])
    )
    return whole, block


def block_activations(config: Config) -> int:
    """Bytes per token that a block in bf16 keeps for its backward pass (attention's scores are
    not kept)."""
    inner, shared = (
        n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads)
    )
    norms = 16 * config.hidden_size  # two: input in fp32, normalised, output
    attention = 4 * inner + 4 * shared + (6 * (inner + shared) if config.qk_norm else 0)
    return norms + attention + 8 * config.intermediate_size


def print_memory(settings: MemorySettings) -> None:
    """The `memory` command."""
    needed = memory_needed(Config.from_pretrained(settings.model_name_or_path), settings)
    if folder := settings.reward_model_name_or_path:
        needed["hgpo"] += 2 * count_parameters(Config.from_pretrained(folder))[0]  # whole, in bf16
    for name, size in needed.items():
        print(f"{name:5}{size / 2**30:8.1f} GiB" + ("" if name == "chat" else " on each GPU"))


# ------------------------------------------------------------------------------------- command line


def main() -> None:
    command, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if command == "hft":
        hft(parse_settings(HFTSettings, "lhrm.py hft", arguments, lab=LAB))
    elif command == "eval":
        run_eval(parse_settings(EvalSettings, "lhrm.py eval", arguments))
    elif command == "memory":
        print_memory(parse_settings(MemorySettings, "lhrm.py memory", arguments))
    elif command in ("-h", "--help"):
        print("\n".join(f"python lhrm.py {name} --help" for name in ("hft", "eval", "memory")))
    else:
        raise InputError(f"unknown command {command!r}: python lhrm.py hft, eval or memory")
    stop()


if __name__ == "__main__":
    run_command(main)
