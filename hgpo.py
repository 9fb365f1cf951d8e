"""Hybrid Group Policy Optimization (Alg. 1): learn when to think.

    python hgpo.py                                     # the lab: HFT, evaluation, HGPO, evaluation
    torchrun --nproc_per_node=8 hgpo.py --model_name_or_path DIR --dataset_name rl.jsonl

Shapes: B queries, M = 2 modes (0 think, 1 no_think), G = N/2 responses a mode, R = B·M·G responses,
T response tokens, the mode tag first.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import lhrm
from data.judge import (
    NO_THINK,
    THINK,
    Judged,
    RewardModel,
    check_verifier,
    judge_all,
    load_reward_model,
)
from data.rows import Query, read_queries
from lhrm import Runtime
from model import InputError, Tokenizer, Transformer, read_json, write_json
from sample import MODES, generate, mix_seed, parse_settings, run_command, setting

# -------------------------------------------------------------- rewards and advantages, Eq. 8 to 10


def mean_rewards(rewards: Tensor) -> Tensor:
    """R̄^m, the mean reward of each mode (Eq. 8): (B, M, G) -> (B, M)."""
    return rewards.mean(-1)  # Eq. 8


def inter_rewards(rewards: Tensor, delta: float) -> Tensor:
    """r_inter: 1 for every response of the better mode, ⊬ being given δ (Eq. 9). (B, M, G) -> same.

    Where the two sides are equal to 1e-6, both modes get 1.
    """
    means = mean_rewards(rewards)  # (B, M)
    gap = means[:, THINK] - (means[:, NO_THINK] + delta)  # (B,)
    better = torch.stack([gap >= -1e-6, gap <= 1e-6], dim=1)  # (B, M)  Eq. 9, argmax
    return better[:, :, None].expand(rewards.shape).to(rewards.dtype)


def intra_rewards(rewards: Tensor) -> Tensor:
    """r_intra: 1 for every response at the maximum of its mode (Eq. 9). (B, M, G) -> same."""
    return (rewards == rewards.amax(-1, keepdim=True)).to(rewards.dtype)  # Eq. 9


def baseline(values: Tensor, estimator: str) -> Tensor:
    """Advantages of binary rewards within each group, the last dimension: (…, n) -> same.

    grpo: (r − mean) / std, population std (Eq. 10). rloo: r − mean of the others (Eq. 23).
    reinforce++: r itself (Eq. 22). A group of equal rewards, one of a single response among them,
    has no preference to teach: exactly 0.
    """
    if estimator == "grpo":
        advantages = (values - values.mean(-1, keepdim=True)) / values.std(
            -1, correction=0, keepdim=True
        )  # Eq. 10
    elif estimator == "rloo":
        others = (values.sum(-1, keepdim=True) - values) / (values.shape[-1] - 1 or 1)
        advantages = values - others  # Eq. 23
    elif estimator == "reinforce++":
        advantages = values  # Eq. 22
    else:
        raise InputError(f"unknown estimator {estimator!r}: {', '.join(ESTIMATORS)}")
    equal = values.amax(-1, keepdim=True) == values.amin(-1, keepdim=True)
    return torch.where(equal, 0.0, advantages)


ESTIMATORS = ("grpo", "rloo", "reinforce++")


def intra_advantages(rewards: Tensor, estimator: str = "grpo") -> Tensor:
    """A_intra of every response among the G of its own mode (Eq. 10, 22, 23). (B, M, G) -> same."""
    return baseline(intra_rewards(rewards), estimator)


def inter_advantages(rewards: Tensor, delta: float, estimator: str = "grpo") -> Tensor:
    """A_inter of every response among all N of its query (Eq. 10, 22, 23). (B, M, G) -> same."""
    values = inter_rewards(rewards, delta).flatten(1)  # (B, N)
    return baseline(values, estimator).view(rewards.shape)


def token_advantages(
    intra: Tensor, inter: Tensor, lengths: Tensor, alpha: float, gamma: float = 1.0
) -> Tensor:
    """A_i^t of every token: A_intra everywhere, plus α·A_inter on the mode tag (Eq. 10).

    intra, inter: (B, M, G). lengths: (R,) int, in tokens. Returns (R, T), T the greatest length;
    zero past each response's end. gamma < 1 discounts from the last token: γ^(|o|−t) (Eq. 22).
    """
    t = torch.arange(int(lengths.max()), device=lengths.device)  # (T,)
    inside = t < lengths[:, None]  # (R, T)
    to_come = (lengths[:, None] - 1 - t).clamp_min(0)  # |o| − t, with t counted from 1 there
    advantages = intra.flatten()[:, None] * gamma**to_come  # Eq. 22; gamma = 1: Eq. 10
    is_tag = t == 0  # the token in Φ
    advantages = advantages + is_tag * alpha * inter.flatten()[:, None]  # Eq. 10
    return torch.where(inside, advantages, 0.0)


# ------------------------------------------------------------------------- objective, Eq. 11 and 12


def kl_divergence(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """π_ref/π_θ − log(π_ref/π_θ) − 1 of each token, never negative (Eq. 12). Any shape -> same."""
    log_ratio = ref_log_probs - log_probs
    return log_ratio.exp() - log_ratio - 1  # Eq. 12


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    epsilon: float,
    beta: float,
    num_responses: int,
) -> Tensor:
    """−J(θ) of Eq. 11, to minimise. All (R, T) -> scalar.

    mask: 1 inside the response and 0 outside, or the weights of `loss_weights`. num_responses: all
    responses of the step, on every rank and in every micro-batch, so that the parts add up to the
    whole. ref_log_probs may be None where beta is 0.
    """
    ratio = (log_probs - old_log_probs).exp()  # ρ_t
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    objective = torch.minimum(ratio * advantages, clipped * advantages)  # Eq. 11
    if beta:
        objective = objective - beta * kl_divergence(log_probs, ref_log_probs)
    return -torch.where(mask != 0, objective * mask, 0.0).sum() / num_responses


LOSS_TYPES = ("hgpo", "grpo", "dapo", "dr_grpo")


def loss_weights(
    lengths: Tensor, loss_type: str, num_responses: int, num_tokens: int, max_tokens: int
) -> Tensor:
    """Weight of each token in Eq. 11's sum: (R,) -> (R, T).

    hgpo: 1, the sum as the paper writes it. grpo: 1/|o|, a mean over each response. dapo: a mean
    over all `num_tokens` tokens of the step. dr_grpo: a constant, 1/`max_tokens`.
    """
    inside = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    scale = {
        "hgpo": torch.ones(()),
        "grpo": 1 / lengths[:, None],
        "dapo": torch.tensor(num_responses / num_tokens),
        "dr_grpo": torch.tensor(1 / max_tokens),
    }[loss_type]
    return inside * scale


# ----------------------------------------------------------------------------------------- settings


@dataclass
class HGPOSettings(lhrm.EvalOptions):
    """Hybrid Group Policy Optimization. Without --model_name_or_path it runs the lab, HFT first."""

    model_name_or_path: str | None = setting(None, "π_HFT, a model folder; none: the lab")
    dataset_name: str | None = setting(None, "queries to train on, .jsonl or .jsonl.gz")
    eval_dataset_name: str | None = setting(None, "queries to evaluate on before and after")
    output_dir: str = setting(
        "runs/hgpo", "where model, log and checkpoints go; on the lab, into its folder hgpo"
    )
    max_steps: int = setting(300, "M·I steps of Alg. 1", minimum=1)
    num_queries: int = setting(256, "B, queries a step, over all processes", minimum=1)
    num_generations: int = setting(
        4, "N, responses per query, half of them in each mode", minimum=1
    )
    num_iterations: int = setting(1, "μ, updates per step", minimum=1)
    ref_model_sync_steps: int = setting(0, "M, steps until π_ref becomes π_θ; 0: never")
    alpha: float = setting(1.0, "α, weight of A_inter on the mode tag (Eq. 10)")
    delta: float = setting(
        0.2, "δ, head start of no_think (Eq. 9); larger: less thinking", minimum=-math.inf
    )
    epsilon: float = setting(0.5, "ε, clip range of the ratio (Eq. 11)")
    beta: float = setting(0.001, "β, weight of the KL term (Eq. 11); 0: no reference model")
    estimator: str = setting("grpo", "of advantages: Eq. 10, 23 or 22", ESTIMATORS)
    gamma: float | None = setting(None, "γ of Eq. 22; none: 0.99 for reinforce++, else 1")
    loss_type: str = setting("hgpo", "normaliser of Eq. 11's sum over tokens", LOSS_TYPES)
    temperature: float = setting(
        1.0, "of rollouts, and of every log-prob in the loss", minimum=1e-3
    )
    rollout_batch_size: int = setting(128, "responses sampled at once by each process", minimum=1)
    per_device_train_batch_size: int = setting(8, "responses in a micro-batch", minimum=1)
    learning_rate: float = setting(1e-6, "peak learning rate")
    lr_scheduler_type: str = setting("constant", "after warm-up", ("constant", "cosine"))
    warmup_ratio: float = setting(0.0, "share of steps in which the rate rises", maximum=1)
    weight_decay: float = setting(0.0, "AdamW's, on matrices")
    max_grad_norm: float = setting(1.0, "clip the global gradient norm; 0: never")
    gradient_checkpointing: bool = setting(True, "recompute activations in the backward pass")
    bf16: bool | None = setting(None, "compute in bf16; none: on a GPU only")
    save_steps: int = setting(20, "steps between checkpoints", minimum=1)
    eval_steps: int = setting(0, "steps between evaluations; 0: before and after only")
    report_to: str = setting("none", "a second place for the log", ("none", "tensorboard"))
    resume_from_checkpoint: bool = setting(False, "go on where a killed run left off")
    seed: int = setting(0, "of data order and sampling (and of the lab)")


LAB = {  # defaults of the lab, where they differ
    "output_dir": "runs/lab",
    "eval_domain": "maths",
    "eval_num_generations": 16,
    "eval_batch_size": 1536,
    "rollout_batch_size": 384,
    "max_steps": 120,
    "num_queries": 48,
    "num_generations": 8,
    "beta": 0.03,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "cosine",
    "per_device_train_batch_size": 96,
    "max_completion_length": 64,
    "gradient_checkpointing": False,
}


# -------------------------------------------------------------------------------------- algorithm 1


class Rollout(NamedTuple):
    """What this rank sampled in a step, flattened from (B, M, G) to R."""

    prompts: list[list[int]]
    responses: list[list[int]]  # the sampled ids, mode tag first; never decoded and encoded again
    log_probs: list[list[float]]  # as the sampler saw them
    judged: list[Judged]

    def micro_batches(self, size: int) -> list[list[int]]:
        """The responses in groups of `size`, like lengths together."""
        lengths = [len(p) + len(r) for p, r in zip(self.prompts, self.responses)]
        return lhrm.micro_batches(lengths, size)

    def score(self, model: Transformer, part: Sequence[int], temperature: float) -> lhrm.Scores:
        """`model`'s log-probs of the responses `part`, at the temperature they were drawn with."""
        prompts, responses = ([rows[i] for i in part] for rows in (self.prompts, self.responses))
        return lhrm.score_responses(model, prompts, responses, temperature)


def sample_responses(
    policy: Transformer,
    tokenizer: Tokenizer,
    queries: Sequence[Query],
    seeds: Sequence[int],
    settings: HGPOSettings,
    reward_model: RewardModel | None = None,
) -> Rollout:
    """N responses to each query, half of them forced into each mode (Eq. 5, 6), judged (Eq. 7)."""
    prompts = [tokenizer.encode_chat(query.prompt) for query in queries]
    n = settings.num_generations
    completions = []
    with lhrm.gathered(policy):
        size = max(1, settings.rollout_batch_size // n)  # queries
        for part in (slice(i, i + size) for i in range(0, len(prompts), size)):
            sampled = generate(
                policy,
                [prompt for prompt in prompts[part] for _ in MODES],
                modes=list(MODES) * len(prompts[part]),  # Eq. 5
                num_generations=n // 2,
                max_new_tokens=settings.max_completion_length,
                temperature=settings.temperature,
                eos_ids=tokenizer.eos_ids,
                think_id=tokenizer.think_id,
                no_think_id=tokenizer.no_think_id,
                seed=[mix_seed(seed, mode) for seed in seeds[part] for mode in MODES],
            )
            completions += [completion for group in sampled for completion in group]  # Eq. 6
    cases = [(queries[i // n], completion) for i, completion in enumerate(completions)]
    return Rollout(
        [prompt for prompt in prompts for _ in range(n)],
        [completion.ids for completion in completions],
        [completion.log_probs for completion in completions],
        judge_all(cases, tokenizer, reward_model, settings.verifier),  # Eq. 7
    )


def train(
    policy: Transformer,
    reference: Transformer | None,
    tokenizer: Tokenizer,
    queries: Sequence[Query],
    settings: HGPOSettings,
    runtime: Runtime,
    micro_batch: int,
    reward_model: RewardModel | None = None,
    evaluation: Callable[[str], dict[str, Any]] | None = None,
) -> None:
    """Alg. 1. Changes `policy`; goes on from the newest checkpoint if the settings say so."""
    folder = Path(settings.output_dir)
    optimizer = lhrm.make_optimizer(policy, settings.weight_decay)
    models = {"policy": policy} | ({"reference": reference} if reference else {})
    first = tokens_seen = 0
    if newest := lhrm.find_checkpoint(folder, settings.resume_from_checkpoint):
        first, tokens_seen = lhrm.load_checkpoint(newest, settings, models, optimizer, runtime)
    log = lhrm.Log(folder, first, settings.report_to)
    steps, sync_steps = settings.max_steps, settings.ref_model_sync_steps
    num_queries, n = settings.num_queries, settings.num_generations
    default_gamma = 0.99 if settings.estimator == "reinforce++" else 1.0
    gamma = default_gamma if settings.gamma is None else settings.gamma
    device = runtime.device

    bar = lhrm.progress(range(first, steps), "HGPO", initial=first, total=steps, unit="step")
    for step in bar:
        times = [time.perf_counter()]
        if reference and sync_steps and step % sync_steps == 0:
            reference.load_state_dict(policy.state_dict())  # Alg. 1 l. 3: π_ref ← π_θ
        rows = lhrm.batch_indices(len(queries), num_queries, step, settings.seed)  # l. 5
        places = runtime.share(range(num_queries))  # this rank's part of the batch
        seeds = [mix_seed(settings.seed, "rollout", step, place) for place in places]
        batch = [queries[rows[place]] for place in places]
        rollout = sample_responses(  # l. 6, 7: Eq. 5-7
            policy, tokenizer, batch, seeds, settings, reward_model
        )
        times.append(time.perf_counter())

        rewards = torch.tensor([judged.reward for judged in rollout.judged])
        rewards = rewards.view(len(batch), 2, n // 2)  # (B, M, G)
        lengths = torch.tensor([len(response) for response in rollout.responses])  # (R,)
        intra = intra_advantages(rewards, settings.estimator)  # l. 8, 9: Eq. 8-10
        inter = inter_advantages(rewards, settings.delta, settings.estimator)
        advantages = token_advantages(intra, inter, lengths, settings.alpha, gamma).to(device)
        num_tokens = int(runtime.sum(lengths.sum().to(device)))
        weights = loss_weights(
            lengths, settings.loss_type, num_queries * n, num_tokens, settings.max_completion_length
        ).to(device)  # (R, T)
        sampled = pad_sequence([torch.tensor(row) for row in rollout.log_probs], batch_first=True)
        times.append(time.perf_counter())

        old, ref = torch.zeros_like(advantages), torch.zeros_like(advantages)  # (R, T)
        totals = torch.zeros(len(TOTALS), dtype=torch.float64, device=device)
        rate = lhrm.scheduled_rate(step, steps, settings)
        parts = rollout.micro_batches(micro_batch)
        for update in range(settings.num_iterations):  # l. 10: μ updates
            for part in parts:
                now = rollout.score(policy, part, settings.temperature)
                width = now.mask.shape[1]  # tokens in the longest response of this micro-batch
                if update == 0:  # no update yet, so π_θ is still π_old
                    old[part, :width] = now.log_probs.detach()
                    if reference:
                        with torch.no_grad():
                            frozen = rollout.score(reference, part, settings.temperature)
                        ref[part, :width] = frozen.log_probs
                inputs = [x[part, :width] for x in (old, ref, advantages, weights)]
                loss = policy_loss(  # Eq. 11, 12
                    now.log_probs, *inputs, settings.epsilon, settings.beta, num_queries * n
                )
                loss.backward()
                drawn = sampled[part, :width].to(device)
                totals += update_totals(loss, now, *inputs[:3], drawn, settings.epsilon)
            grad_norm = lhrm.optimizer_step(policy, optimizer, rate, settings.max_grad_norm)
        times.append(time.perf_counter())

        prompt_tokens = torch.tensor(sum(map(len, rollout.prompts)), device=device)
        tokens_seen += num_tokens + int(runtime.sum(prompt_tokens))
        tags = old[:, 0].tolist()  # log π_old of each mode tag
        groups = [(rollout.judged[i : i + n], tags[i : i + n]) for i in range(0, len(tags), n)]
        metrics = step_metrics(
            runtime.gather(groups), runtime.sum(totals).tolist(), bool(reference)
        )
        metrics |= {"grad_norm": grad_norm, "learning_rate": rate, "num_tokens": tokens_seen}
        metrics |= {"epoch": (step + 1) * num_queries / len(queries)}
        metrics |= step_times(times, num_tokens)
        if evaluation and settings.eval_steps and (step + 1) % settings.eval_steps == 0:
            metrics["hybrid_accuracy"] = evaluation(f"step {step + 1}")["auto"]["hybrid_accuracy"]
        log.write(step + 1, metrics)
        bar.set_postfix(
            reward=f"{metrics['reward']:.2f}", think_ratio=f"{metrics['mode/think_ratio']:.2f}"
        )
        if runtime.rank == 0:
            warn_of_collapse(step + 1, metrics, bar.write)
        if (step + 1) % settings.save_steps == 0 or step + 1 == steps:
            lhrm.save_checkpoint(settings, step + 1, tokens_seen, models, optimizer, runtime)


# ------------------------------------------------------------------------------------------ metrics

# Sums over the tokens of a micro-batch, from which a step's means are made.
TOTALS = ("loss", "tokens", "entropy", "kl", "sampler_kl", "clipped_low", "clipped_high")


@torch.no_grad()
def update_totals(
    loss: Tensor,
    now: lhrm.Scores,
    old: Tensor,
    ref: Tensor,
    advantages: Tensor,
    sampled: Tensor,
    epsilon: float,
) -> Tensor:
    """The TOTALS of a micro-batch: all (R, T) but the scalar `loss` -> (7,) in fp64."""
    ratio = (now.log_probs - old).exp()
    grids = [
        torch.ones_like(ratio),
        now.entropy,
        kl_divergence(now.log_probs, ref),
        kl_divergence(old, sampled),  # sampler against trainer: 0 but for rounding
        (ratio < 1 - epsilon) & (advantages < 0),
        (ratio > 1 + epsilon) & (advantages > 0),
    ]
    sums = [torch.where(now.mask, grid, 0).sum().double() for grid in grids]
    return torch.stack([loss.detach().double(), *sums])


def step_times(times: Sequence[float], num_tokens: int) -> dict[str, float]:
    """Seconds of a step's parts, from the moments at which they began and ended."""
    seconds = [end - start for start, end in zip(times, times[1:])]
    parts = {f"timing/{k}": v for k, v in zip(("rollout", "reward", "update"), seconds)}
    total = sum(seconds)
    return {"step_time": total, "tokens_per_second": num_tokens / total, **parts}


def step_metrics(
    groups: Sequence[tuple[Sequence[Judged], Sequence[float]]],
    totals: Sequence[float],
    with_reference: bool,
) -> dict[str, float]:
    """The logged figures of a step, over all ranks; no accuracies if no query has an answer.

    groups: per query its N judged responses, think first, and the log-probs of their mode tags.
    """

    def grid(value: Callable[[Judged], float]) -> Tensor:  # (B, M, G)
        values = [[float(value(judged)) for judged in group] for group, _ in groups]
        return torch.tensor(values, dtype=torch.float64).view(len(groups), 2, -1)

    rewards, lengths = grid(lambda j: j.reward), grid(lambda j: j.length)
    spread = rewards.std(-1, correction=0)  # (B, M)
    tags = torch.tensor([tags for _, tags in groups], dtype=torch.float64).view(rewards.shape)
    tags = tags[:, :, 0]  # (B, M): log π(<think> | q), log π(<no_think> | q)
    total = dict(zip(TOTALS, totals))
    tokens = total["tokens"]
    low, high = total["clipped_low"] / tokens, total["clipped_high"] / tokens
    metrics = {
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
        "mode/think_ratio": tags[:, THINK].exp().mean(),
        "mode/no_think_ratio": tags[:, NO_THINK].exp().mean(),
        "mode/log_prob_think": tags[:, THINK].mean(),
        "mode/log_prob_no_think": tags[:, NO_THINK].mean(),
        "mode/entropy": torch.special.entr(tags.softmax(1)).sum(1).mean(),
        "mode/malformed_ratio": 1 - grid(lambda j: j.well_formed).mean(),
        "no_think/leak_ratio": grid(lambda j: j.leaked)[:, NO_THINK].mean(),
    }
    if with_reference:
        metrics["kl"] = total["kl"] / tokens
    definite = torch.tensor([group[0].definite for group, _ in groups])  # (B,)
    for number, mode in enumerate(MODES):
        metrics[f"{mode}/reward"] = rewards[:, number].mean()
        if definite.any():
            metrics[f"{mode}/accuracy"] = rewards[definite, number].mean()
        metrics[f"{mode}/length"] = lengths[:, number].mean()
    return {name: float(value) for name, value in metrics.items()}


def warn_of_collapse(step: int, metrics: dict[str, float], write: Callable[[str], Any]) -> None:
    """Say so if a free response would open with one of the modes in fewer than 2% of cases."""
    for mode in MODES:
        if metrics[f"mode/{mode}_ratio"] < 0.02:
            write(f"warning: step {step}: under 2% of free responses would open with <{mode}>")


# ------------------------------------------------------------------------------------ the whole job


def run(settings: HGPOSettings) -> None:
    """Evaluate π_HFT, train it by Alg. 1, evaluate the result; on the lab, make π_HFT first."""
    runtime = lhrm.start(settings.bf16)
    on_lab = settings.model_name_or_path is None
    root = Path(settings.output_dir)
    folder = root / "hgpo" if on_lab else root
    if settings.num_generations < 2 or settings.num_generations % 2:
        raise InputError(f"num_generations = {settings.num_generations} must be even: half a mode")
    micro_batch = lhrm.micro_batch_size(
        "num_queries", settings.num_queries, settings.num_generations, settings, runtime
    )
    lhrm.find_checkpoint(folder, settings.resume_from_checkpoint)  # refuse before the long work
    if on_lab:
        settings = prepare_lab(settings, root, runtime)
        settings = dataclasses.replace(settings, output_dir=str(folder))
    if settings.dataset_name is None:
        raise InputError("give --dataset_name, a file of queries")
    queries = read_queries(settings.dataset_name)
    held_out = read_queries(settings.eval_dataset_name) if settings.eval_dataset_name else []
    check_verifier(settings.verifier)
    if held_out:
        lhrm.check_domain(held_out, settings.eval_domain)
    reward_model = load_reward_model(
        settings.reward_model_name_or_path,
        settings.reward_batch_size,
        queries + held_out,
        runtime.device,
    )
    source, checkpointing = settings.model_name_or_path, settings.gradient_checkpointing
    policy, tokenizer = lhrm.load_policy(source, runtime, checkpointing)
    reference = None
    if settings.beta:  # π_ref is a frozen copy of π_HFT
        reference, _ = lhrm.load_policy(source, runtime, False)
        reference.requires_grad_(False)
    derived = {
        "processes": runtime.world_size,
        "device": runtime.device.type,
        "responses_per_step": settings.num_queries * settings.num_generations,
        "micro_batch": micro_batch,
        "queries": len(queries),
        "queries_for_reward_model": sum(not query.definite for query in queries),
    }
    lhrm.announce("Hybrid Group Policy Optimization", settings, derived, folder)

    kept: dict[str, list[lhrm.Record]] = {}

    def evaluation(name: str) -> dict[str, Any]:
        how = (settings, runtime, f"evaluate {name}", settings.seed, reward_model)
        kept[name] = lhrm.evaluate(policy, tokenizer, held_out, *how)
        return lhrm.results(kept[name], settings.hacc_margin, settings.eval_domain)

    outcome = {"hft": evaluation("hft")} if held_out else {}
    train(
        policy,
        reference,
        tokenizer,
        queries,
        settings,
        runtime,
        micro_batch,
        reward_model,
        evaluation if held_out else None,
    )
    lhrm.save_policy(policy, tokenizer, folder, runtime)
    if held_out:
        outcome["hgpo"] = evaluation("hgpo")
        if runtime.rank == 0:
            write_json(root / "results.json", outcome)
            report(outcome, kept["hgpo"])
    lhrm.drop_checkpoints(folder, runtime)
    lhrm.stop()


def prepare_lab(settings: HGPOSettings, root: Path, runtime: Runtime) -> HGPOSettings:
    """Settings that name the lab's data and its π_HFT, fine-tuned now if it is not there."""
    _, files = lhrm.prepare_lab(root, settings.seed, runtime)
    hft = lhrm.HFTSettings(
        **{**lhrm.LAB, "output_dir": str(root)},
        seed=settings.seed,
        bf16=settings.bf16,
        resume_from_checkpoint=settings.resume_from_checkpoint,
    )
    if (root / "hft" / "model.safetensors").exists():
        paths = {"model_name_or_path": None, "dataset_name": None}  # of this lab, wherever it was
        made_with = read_json(root / "hft" / "settings.json").get("settings", {})
        lhrm.check_same(root / "hft", {**made_with, **paths}, lhrm.decisive(hft))
    else:
        lhrm.hft(hft)
    return dataclasses.replace(
        settings,
        model_name_or_path=str(root / "hft"),
        dataset_name=settings.dataset_name or str(files["rl"]),
        eval_dataset_name=settings.eval_dataset_name or str(files["test"]),
    )


def report(outcome: dict[str, Any], records: Sequence[lhrm.Record]) -> None:
    """The table, the bars, and responses from both ends of the levels and from off the domain."""
    hft, final = outcome["hft"], outcome["hgpo"]
    rows = {
        "HFT forced think": hft["think"],
        "HFT forced no-think": hft["no_think"],
        "HFT auto": hft["auto"],
        "HGPO auto": final["auto"],
    }
    print(f"\n{final['queries']} held-out queries, domain {final['domain']}")
    print(lhrm.results_table(rows))
    print(lhrm.level_bars("HFT", hft))
    print(lhrm.level_bars("HGPO", final))
    head = [r for r in records if r.query.domain == final["domain"]] or list(records)
    head.sort(key=lambda record: (len(record.query.level), record.query.level))
    other = [r for r in records if r.query.domain != final["domain"]] or head
    print("\nThree responses after HGPO, freely sampled:")
    for record in (head[0], head[-1], other[0]):
        print(f"  {record.query.prompt[-1]['content']}")
        print(f"    {record.responses['auto'][0].text}")


def main() -> None:
    run(parse_settings(HGPOSettings, "hgpo.py", sys.argv[1:], lab=LAB))


if __name__ == "__main__":
    run_command(main)
