"""Hybrid Group Policy Optimization (HGPO, Alg. 1) and the baselines of App. A, DPO and RFT.

    python hgpo.py                                     # the lab: HFT, evaluation, HGPO, evaluation
    python hgpo.py --method dpo                        # the same with DPO, or rft
    torchrun --nproc_per_node=8 hgpo.py --model_name_or_path DIR --dataset_name rl.jsonl

Shapes: B queries, 2 modes (0 think, 1 no_think), G = N/2 responses a mode, R = B·2·G responses,
T response tokens. The mode tag is token t = 1 in the paper and in comments, index 0 in code.
"""

from __future__ import annotations

from data import cli  # first: Ctrl-C during the slow imports ends in one line, too

# isort: split
import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import lhrm
from data import lab, processes, report
from data.cli import InputError, mix_seed, progress, setting
from data.judge import Judged, RewardModel, check_formats, check_verifiers, load_reward_model
from data.modes import MODES, NO_THINK
from data.processes import Runtime
from data.report import TOTALS, Stopwatch
from data.rows import Query, Row, batch_indices, check_contexts, check_domain, read_queries
from data.runs import Run, digest
from data.tokenizer import Tokenizer
from model import Transformer
from sample import MAX_TOKENS

# ------------------------------------------------------ rewards and advantages, Eq. 8 to 10, 22, 23

ESTIMATORS = {"grpo": 1.0, "rloo": 1.0, "reinforce++": 0.99}  # with γ of Eq. 22; 1: none


def mean_rewards(rewards: Tensor) -> Tensor:
    """R̄^m, the mean reward of each mode: (B, 2, G) -> (B, 2)."""
    return rewards.mean(-1)  # Eq. 8, 16


def inter_rewards(rewards: Tensor, delta: float) -> Tensor:
    """r_inter: 1 for each response of the mode with the higher mean reward, after adding δ to
    no_think's. Where the two sides are equal within 1e-6, both modes get 1. (B, 2, G) -> same."""
    contest = mean_rewards(rewards)  # (B, 2)
    contest[:, NO_THINK:] += delta  # Eq. 9: R̄^⊢ against R̄^⊬ + δ; of one group: nothing
    better = contest >= contest.amax(-1, keepdim=True) - 1e-6  # Eq. 9, argmax
    return better[:, :, None].expand(rewards.shape).to(rewards.dtype)


def intra_rewards(rewards: Tensor) -> Tensor:
    """r_intra: 1 for each response with the highest reward of its mode. (B, 2, G) -> same."""
    return (rewards == rewards.amax(-1, keepdim=True)).to(rewards.dtype)  # Eq. 9, argmax


def group_advantages(rewards: Tensor, estimator: str) -> Tensor:
    """Advantages of 0/1 rewards within each group, the last dimension: (…, n) -> same.

    grpo: (r − mean) / std with the population std (Eq. 10). rloo: r − mean of the others (Eq. 23).
    reinforce++: r itself (Eq. 22). A group of equal rewards, or of a single response, teaches
    nothing: its advantages are exactly 0, whatever the estimator.
    """
    if estimator == "grpo":
        mean = rewards.mean(-1, keepdim=True)
        std = rewards.std(-1, correction=0, keepdim=True)
        advantages = (rewards - mean) / std  # Eq. 10
    elif estimator == "rloo":
        others = rewards.shape[-1] - 1 or 1
        mean_of_others = (rewards.sum(-1, keepdim=True) - rewards) / others
        advantages = rewards - mean_of_others  # Eq. 23
    elif estimator == "reinforce++":
        advantages = rewards  # Eq. 22, but for groups of equal rewards, below
    else:
        raise InputError(f"unknown estimator {estimator!r}: {', '.join(ESTIMATORS)}")
    equal = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    return torch.where(equal, 0.0, advantages)


def intra_advantages(rewards: Tensor, estimator: str = "grpo") -> Tensor:
    """A_intra, of each response among the G of its mode. (B, 2, G) -> same."""
    return group_advantages(intra_rewards(rewards), estimator)  # Eq. 10, 23: over a mode


def inter_advantages(rewards: Tensor, delta: float, estimator: str = "grpo") -> Tensor:
    """A_inter, of each response among all N of its query. (B, 2, G) -> same."""
    values = inter_rewards(rewards, delta).flatten(1)  # (B, N)
    return group_advantages(values, estimator).view(rewards.shape)  # Eq. 10, 23: over all N


def token_indices(lengths: Tensor) -> Tensor:
    """0 … T−1, T the greatest length, or 0 on a rank without queries: (R,) int -> (T,)."""
    return torch.arange(max(lengths.tolist(), default=0), device=lengths.device)


def token_advantages(
    intra: Tensor, inter: Tensor, lengths: Tensor, alpha: float, gamma: float = 1.0
) -> Tensor:
    """A_i^t of every token: A_intra everywhere, plus α·A_inter on the mode tag (Eq. 10).

    intra, inter: (B, 2, G). lengths: (R,) int, in tokens. Returns (R, T), T the greatest length;
    zero past each response's end. gamma < 1 discounts from the last token: γ^(|o|−t) (Eq. 22).
    """
    t = token_indices(lengths)  # (T,)
    inside = t < lengths[:, None]  # (R, T)
    remaining = (lengths[:, None] - 1 - t).clamp_min(0)  # |o_i| − t; the paper's t starts at 1
    advantages = intra.flatten()[:, None] * gamma**remaining  # Eq. 22; with γ = 1: Eq. 10, 23
    is_tag = t == 0  # o_i^t ∈ Φ
    advantages = advantages + is_tag * alpha * inter.flatten()[:, None]  # Eq. 10, 22, 23
    return torch.where(inside, advantages, 0.0)


# ------------------------------------------------------------------------- objective, Eq. 11 and 12

LOSS_TYPES = ("hgpo", "grpo", "dapo", "dr_grpo")


def kl_divergence(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """D_KL of each token, π_ref/π_θ − log(π_ref/π_θ) − 1, never negative. Any shape -> same."""
    log_ratio = ref_log_probs - log_probs
    return log_ratio.exp() - log_ratio - 1  # Eq. 12


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    epsilon: float,
    beta: float,
) -> Tensor:
    """−J(θ) of Eq. 11, to minimise. Tensors (R, T), of a micro-batch -> scalar.

    weights: of each token, by `loss_weights`, 0 past a response's end. They are already divided by
    the counts of the whole step, so that the losses of micro-batches and ranks add up to its loss.
    ref_log_probs: None where beta is 0.
    """
    ratio = (log_probs - old_log_probs).exp()  # Eq. 11, ρ_t
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    objective = torch.minimum(ratio * advantages, clipped * advantages)  # Eq. 11, min
    if ref_log_probs is not None:
        objective = objective - beta * kl_divergence(log_probs, ref_log_probs)  # Eq. 11, KL
    inside = weights != 0  # what lies past a response's end may be inf, and 0 · inf is NaN
    return -torch.where(inside, objective * weights, 0.0).sum()  # Eq. 11, sums


def loss_weights(
    lengths: Tensor, loss_type: str, num_responses: int, num_tokens: int, max_tokens: int
) -> Tensor:
    """Weight of each token in Eq. 11's sum over responses and tokens: (R,) int -> (R, T).

    With n = `num_responses`, all B·N of the step, on all ranks: hgpo: 1/n, the paper's sum over
    tokens. grpo: 1/(n·|o_i|), a mean over each response. dapo: 1/`num_tokens`, a mean over all
    tokens of the step. dr_grpo: 1/(n·max_tokens), a constant.
    """
    inside = token_indices(lengths) < lengths[:, None]
    divisors = {
        "hgpo": torch.tensor(num_responses),
        "grpo": num_responses * lengths[:, None],
        "dapo": torch.tensor(num_tokens),
        "dr_grpo": torch.tensor(num_responses * max_tokens),
    }
    return inside / divisors[loss_type]  # Eq. 11, what divides the sums


# ----------------------------------------------------------- the baselines of App. A, Eq. 16 to 20


NO_RESPONSE = -1  # in the place of a response, where a query gives none


def best_place(rewards: Tensor, lengths: Tensor) -> Tensor:
    """The place of the highest reward. Ties go to the shorter response, then to the first.
    (B, n) each -> (B,) int."""
    highest = rewards == rewards.amax(-1, keepdim=True)
    # Eq. 18, 20: argmax; called with negated rewards, Eq. 18's argmin
    return torch.where(highest, lengths.double(), math.inf).argmin(-1)


def dpo_pairs(rewards: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The preferred and the dispreferred response of each query, o_w and o_l (Eq. 17, 18).

    rewards, lengths: (B, 2, G) -> two tensors (B,), int: places among the 2G responses of a query,
    NO_RESPONSE where the mean rewards of the modes are equal within 1e-6.
    """
    means = mean_rewards(rewards)  # (B, 2)  Eq. 16
    better, worse = means.argmax(-1), means.argmin(-1)  # Eq. 17, m_w and m_l
    rows, size = torch.arange(len(rewards)), rewards.shape[-1]
    winners = better * size + best_place(rewards[rows, better], lengths[rows, better])  # Eq. 18
    losers = worse * size + best_place(-rewards[rows, worse], lengths[rows, worse])  # Eq. 18
    tie = means.amax(-1) - means.amin(-1) < 1e-6
    return torch.where(tie, NO_RESPONSE, winners), torch.where(tie, NO_RESPONSE, losers)


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """The negative of Eq. 19's mean, to minimise. Log-probs of whole responses, (K,) -> scalar.

    chosen, rejected: log π_θ(o_w | x) and log π_θ(o_l | x); ref_chosen, ref_rejected: by π_HFT.
    """
    margins = beta * (chosen - ref_chosen) - beta * (rejected - ref_rejected)  # Eq. 19
    return -torch.nn.functional.logsigmoid(margins).mean()  # Eq. 19


def rft_choices(rewards: Tensor, lengths: Tensor) -> Tensor:
    """The best response of each query (Eq. 20): (B, 2, G) each -> (B,) int, places among the 2G.

    NO_RESPONSE where the best reward is 0: there is nothing to learn from.
    """
    best = best_place(rewards.flatten(1), lengths.flatten(1))  # Eq. 20
    return torch.where(rewards.flatten(1).amax(-1) > 0, best, NO_RESPONSE)


# ----------------------------------------------------------------------------------------- settings

MAX_COUNT = 2**16  # of queries a step, responses to a query, updates a step
METHOD = ("Alg. 1 or a baseline of App. A; each has settings of its own", ("hgpo", "dpo", "rft"))


@dataclass
class PolicyOptions(lhrm.EvalOptions, lhrm.TrainOptions):
    """The settings of HGPO, DPO and RFT alike."""

    method: str = setting("hgpo", *METHOD)
    model_name_or_path: str | None = setting(None, "π_HFT, a model folder; unset: the lab")
    dataset_name: str | None = setting(None, "queries to train on, .jsonl or .jsonl.gz")
    eval_dataset_name: str | None = setting(None, "queries to evaluate on before and after")
    eval_on_start: bool = setting(True, "evaluate before training, too")
    num_generations: int = setting(
        4, "N, responses to a query, half of them in each mode", maximum=MAX_COUNT
    )
    temperature: float = setting(1.0, "temperature of sampling in training", minimum=1e-3)
    max_completion_length: int = setting(
        4096, "most tokens of a response in training", maximum=MAX_TOKENS
    )
    rollout_batch_size: int = setting(128, "responses that a process samples at once in training")
    allow_malformed: bool = setting(False, "train even if nearly all first responses are malformed")
    save_steps: int = setting(20, "steps between two checkpoints")


@dataclass
class HGPOSettings(PolicyOptions):
    """Hybrid Group Policy Optimization (Alg. 1). Without --model_name_or_path it runs the lab, HFT
    first. See --method dpo --help and --method rft --help for the baselines.

    python hgpo.py --model_name_or_path runs/hft --dataset_name rl.jsonl
    """

    output_dir: str = setting("runs/hgpo", "folder for the model, the log and the checkpoints")
    max_steps: int = setting(300, "steps of training, M·I of Alg. 1")
    num_queries: int = setting(256, "B, queries a step, over all processes", maximum=MAX_COUNT)
    num_iterations: int = setting(1, "μ, updates a step", maximum=MAX_COUNT)
    ref_model_sync_steps: int = setting(0, "M, steps until π_ref becomes π_θ; 0: never")
    alpha: float = setting(1.0, "α, weight of A_inter on the mode tag (Eq. 10)")
    delta: float = setting(0.2, "δ of Eq. 9; a larger one: less thinking", minimum=-math.inf)
    epsilon: float = setting(0.5, "ε, clip range of the ratio (Eq. 11)")
    forced_modes: bool = setting(
        True, "half of the responses in each mode (Eq. 5); false: all as the model chooses, N in a "
        "group, without A_inter: plain GRPO",
    )  # fmt: skip
    beta: float = setting(0.001, "β, weight of the KL term (Eq. 11); 0: no reference model")
    estimator: str = setting("grpo", "advantages by Eq. 10, 23, 22", tuple(ESTIMATORS))
    gamma: float | None = setting(
        None, "γ of Eq. 22; unset: 0.99 for reinforce++, else 1", maximum=1
    )
    loss_type: str = setting("hgpo", "what divides Eq. 11's sum over tokens", LOSS_TYPES)
    learning_rate: float = setting(1e-6, "peak learning rate")
    lr_scheduler_type: str = setting("constant", "what follows the warm-up", ("constant", "cosine"))
    warmup_ratio: float = setting(0.0, "share of steps in which the rate rises", maximum=1)
    eval_steps: int = setting(0, "steps between evaluations; 0: before and after only")
    log_completions: int = setting(0, "steps between two looks at a few responses; 0: none")


@dataclass
class RFTSettings(PolicyOptions, lhrm.SupervisedOptions):
    """The RFT baseline (App. A): sample once, then fine-tune on the best response to each query.

    python hgpo.py --method rft --model_name_or_path runs/hft --dataset_name rl.jsonl
    """

    method: str = setting("rft", *METHOD)
    output_dir: str = setting("runs/rft", "folder for the model, the log and the checkpoints")
    learning_rate: float = setting(1e-5, "peak learning rate")


@dataclass
class DPOSettings(PolicyOptions, lhrm.SupervisedOptions):
    """The DPO baseline (App. A): sample once, then prefer the best response of a query's better
    mode to the worst of its other mode.

    python hgpo.py --method dpo --model_name_or_path runs/hft --dataset_name rl.jsonl
    """

    method: str = setting("dpo", *METHOD)
    output_dir: str = setting("runs/dpo", "folder for the model, the log and the checkpoints")
    num_train_epochs: int = setting(1, "passes over the pairs")
    learning_rate: float = setting(1e-6, "peak learning rate")
    beta: float = setting(0.1, "β of Eq. 19; a larger one: closer to π_HFT", minimum=1e-6)


ON_LAB = {  # the defaults that are others on the lab, for all three methods
    **lhrm.EVAL_ON_LAB, "output_dir": "runs/lab", "eval_batch_size": 1536,
    "max_completion_length": 64, "rollout_batch_size": 256, "gradient_checkpointing": False,
}  # fmt: skip
HGPO_ON_LAB = {
    **ON_LAB, "max_steps": 60, "num_queries": 32, "num_generations": 8, "beta": 0.03,
    "learning_rate": 5e-4, "lr_scheduler_type": "cosine", "max_tokens_per_device": 4096,
}  # fmt: skip
BASELINE_ON_LAB = {**ON_LAB, "batch_size": 48, "max_tokens_per_device": 2048}
METHODS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "hgpo": (HGPOSettings, HGPO_ON_LAB),
    "dpo": (DPOSettings, BASELINE_ON_LAB | {"learning_rate": 3e-5}),
    "rft": (RFTSettings, BASELINE_ON_LAB | {"learning_rate": 3e-4}),
}


# --------------------------------------------------------------------------- rollouts, Eq. 5 to 7


class Rollout(NamedTuple):
    """The responses to this rank's B queries, R = B·2·G: query by query, thinking ones first."""

    prompts: list[list[int]]
    responses: list[list[int]]  # the sampled ids, mode tag first: never encoded from text again
    judged: list[Judged]
    rewards: Tensor  # (B, 2, G)
    lengths: Tensor  # (R,)
    sampler_log_probs: Tensor  # (R, T), by π_old while it sampled
    old_log_probs: Tensor  # (R, T), by π_old; zero until the first update
    ref_log_probs: Tensor  # (R, T), by π_ref; zero until the first update

    def scores(
        self,
        model: Transformer,
        part: Sequence[int],
        temperature: float,
        figures: Sequence[str] = (),
    ) -> lhrm.Scores:
        """`model`'s log-probs of the responses `part`, at the temperature they were drawn with."""
        prompts, responses = ([rows[i] for i in part] for rows in (self.prompts, self.responses))
        return lhrm.score_responses(model, prompts, responses, temperature, figures)

    def rows(self, advantages: Tensor) -> list[dict[str, Any]]:
        """All that an update was made from, response by response; to be looked at."""
        columns = zip(self.prompts, self.responses, self.judged, advantages.tolist())
        return [
            {"prompt": p, "response": r, "reward": j.reward, "advantages": a[: len(r)]}
            for p, r, j, a in columns
        ]

    def count_tokens(self, runtime: Runtime) -> list[int]:
        """Tokens of all responses and of all prompts, over all ranks."""
        prompt_tokens = self.lengths.new_tensor(sum(map(len, self.prompts)))
        return runtime.sum(torch.stack([self.lengths.sum(), prompt_tokens])).tolist()


def sample_responses(
    policy: Transformer,
    tokenizer: Tokenizer,
    queries: Sequence[Query],
    seeds: Sequence[int],
    settings: PolicyOptions,
    reward_model: RewardModel | None,
    watch: Stopwatch,
    modes: Sequence[str] = MODES,
) -> Rollout:
    """N responses to each query, half of them forced into each mode (Eq. 5, 6), judged (Eq. 7).
    modes: "auto" alone for plain GRPO, whose rewards are (B, 1, N)."""
    n = settings.num_generations
    prompts = [tokenizer.encode_chat(query.prompt) for query in queries]
    asked = [
        lhrm.Asked(query, prompt, mode, mix_seed(seed, mode))  # Eq. 5: in each mode …
        for query, prompt, seed in zip(queries, prompts, seeds)
        for mode in modes
    ]
    each = n // len(modes)  # Eq. 5: … N/2 responses
    groups = dict(
        lhrm.answer(
            policy, tokenizer, asked, settings, reward_model, watch, each,
            settings.max_completion_length, settings.rollout_batch_size, settings.temperature,
        )
    )  # fmt: skip
    answers = [a for place in range(len(asked)) for a in groups[place]]  # Eq. 6: O(q), one by one
    device = next(policy.parameters()).device
    rows = [torch.tensor(completion.log_probs) for completion, _ in answers]
    # With one empty row more, because this rank may have no queries.
    log_probs = pad_sequence([*rows, torch.zeros(0)], batch_first=True)[:-1].to(device)  # (R, T)
    rewards = torch.tensor([judged.reward for _, judged in answers])  # Eq. 7
    if not rewards.isfinite().all():
        raise InputError("a reward is not finite")
    return Rollout(
        prompts=[prompt for prompt in prompts for _ in range(n)],
        responses=[completion.ids for completion, _ in answers],
        judged=[judged for _, judged in answers],
        rewards=rewards.view(len(queries), len(modes), each).to(device),
        lengths=torch.tensor([len(row) for row in rows], dtype=torch.long, device=device),
        sampler_log_probs=log_probs,
        old_log_probs=torch.zeros_like(log_probs),
        ref_log_probs=torch.zeros_like(log_probs),
    )


# -------------------------------------------------------------------------------------- algorithm 1


def train(
    policy: Transformer,
    reference: Transformer | None,
    tokenizer: Tokenizer,
    queries: Sequence[Query],
    settings: HGPOSettings,
    runtime: Runtime,
    run: Run,
    reward_model: RewardModel | None = None,
    evaluation: Callable[[str], dict[str, Any]] | None = None,
) -> None:
    """Alg. 1. It changes `policy`, which is π_HFT at first (l. 1), and goes on from the newest
    checkpoint of `run`, if there is one. reference: π_ref, or None if β is 0."""
    optimizer = lhrm.make_optimizer(policy, settings.weight_decay)
    steps, sync_steps = settings.max_steps, settings.ref_model_sync_steps
    also_saved = {"reference": reference} if reference and sync_steps else {}
    first = run.resume({"policy": policy, **also_saved}, optimizer, steps)
    log = report.Log(run.folder, first, settings.report_to)
    num_responses = settings.num_queries * settings.num_generations
    gamma = ESTIMATORS[settings.estimator] if settings.gamma is None else settings.gamma
    modes = MODES if settings.forced_modes else ("auto",)

    def evaluate_if_due(step: int) -> None:
        if evaluation and settings.eval_steps and step and step % settings.eval_steps == 0:
            log.write(step, report.evaluation_metrics(evaluation(f"step {step}")))

    bar = progress(range(first, steps), "HGPO", initial=first, total=steps, unit="step")
    with contextlib.closing(log), run.stoppable():
        if not runtime.on_first(lambda: log.has_accuracy(first)):
            evaluate_if_due(first)  # the run was stopped in it
        for step in bar:  # l. 2 and 4 in one loop: I iterations of M steps
            watch = Stopwatch("update", "rollout", "reward", "wait")
            if reference and sync_steps and step % sync_steps == 0:
                reference.load_state_dict(policy.state_dict())  # l. 3: π_ref ← π_θ
            batch, seeds = draw_queries(queries, step, settings, runtime)  # l. 5
            with (
                lhrm.gathered(policy),
                watch.phase("wait"),  # after the rollout, for slower ranks
                runtime.apart(),
                watch.phase("rollout"),
            ):
                rollout = sample_responses(  # l. 6: π_old, still π_θ, samples; l. 7: rewards
                    policy, tokenizer, batch, seeds, settings, reward_model, watch, modes
                )
            # l. 8: Eq. 9; l. 9: Eq. 10, of each response, and then of each token
            intra = intra_advantages(rollout.rewards, settings.estimator)
            inter = inter_advantages(rollout.rewards, settings.delta, settings.estimator)
            advantages = token_advantages(intra, inter, rollout.lengths, settings.alpha, gamma)
            num_tokens, num_prompt_tokens = rollout.count_tokens(runtime)
            weights = loss_weights(
                rollout.lengths, settings.loss_type, num_responses, num_tokens,
                settings.max_completion_length,
            )  # fmt: skip
            rate = lhrm.scheduled_rate(step, steps, settings)
            totals = torch.zeros(len(TOTALS), dtype=torch.float64, device=runtime.device)
            for update in range(settings.num_iterations):  # l. 10: μ updates by Eq. 11, 12
                sums = accumulate_gradients(
                    policy, reference, rollout, advantages, weights, settings, runtime, update == 0
                )
                totals += sums
                grad_norm, updated = lhrm.optimizer_step(
                    policy, optimizer, rate, settings.max_grad_norm, runtime.sum(sums[:1].clone())
                )
                run.count_update(updated, step + 1, [] if updated else rollout.rows(advantages))
            num_seen = num_prompt_tokens + num_tokens
            figures = {
                "grad_norm": grad_norm,
                "learning_rate": rate,
                "skipped_updates": run.skipped_updates,
                "num_tokens": run.tokens_seen + num_seen,
                "epoch": (step + 1) * settings.num_queries / len(queries),
                **watch.figures(num_tokens, runtime.max),
            }
            record_step(step + 1, rollout, totals, bool(reference), figures, log, bar, runtime)
            if settings.log_completions and (step + 1) % settings.log_completions == 0:
                examples = report.rollout_examples(batch, rollout.judged, intra, inter)
                log.write_examples(step + 1, examples, bar.write)
            run.completed(step + 1, num_seen, last=step + 1 == steps)
            evaluate_if_due(step + 1)


def draw_queries(
    queries: Sequence[Query], step: int, settings: HGPOSettings, runtime: Runtime
) -> tuple[list[Query], list[int]]:
    """This rank's part of the B queries of a step, and a seed for the responses to each."""
    rows = batch_indices(len(queries), settings.num_queries, step, settings.seed)
    places = runtime.share(range(settings.num_queries))
    seeds = [mix_seed(settings.seed, "rollout", step, place) for place in places]
    return [queries[rows[place]] for place in places], seeds


def accumulate_gradients(
    policy: Transformer,
    reference: Transformer | None,
    rollout: Rollout,
    advantages: Tensor,
    weights: Tensor,
    settings: HGPOSettings,
    runtime: Runtime,
    first_update: bool,
) -> Tensor:
    """Add the gradient of −J(θ) over this rank's responses (Eq. 11, 12); returns their TOTALS.

    advantages, weights: (R, T). In the first update π_θ still is π_old: its log-probs are kept in
    the rollout, and those of π_ref.
    """
    totals = torch.zeros(len(TOTALS), dtype=torch.float64, device=runtime.device)
    lengths = [len(p) + len(r) for p, r in zip(rollout.prompts, rollout.responses)]
    parts = lhrm.micro_batches(lengths, settings.max_tokens_per_device, runtime)
    for part in lhrm.sum_gradients_last(policy, parts):
        if first_update:  # after it π_θ has changed: a signal then waits for the step's end
            runtime.check_signals()
        now = rollout.scores(policy, part, settings.temperature, ["entropy"])
        where = (part, slice(now.mask.shape[1]))  # up to the end of the longest of these responses
        if first_update:
            rollout.old_log_probs[where] = now.log_probs.detach()  # l. 6: π_old ← π_θ
            if reference:
                with torch.no_grad():
                    frozen = rollout.scores(reference, part, settings.temperature)
                rollout.ref_log_probs[where] = frozen.log_probs
        loss = policy_loss(
            log_probs=now.log_probs,
            old_log_probs=rollout.old_log_probs[where],
            ref_log_probs=rollout.ref_log_probs[where] if reference else None,
            advantages=advantages[where],
            weights=weights[where],
            epsilon=settings.epsilon,
            beta=settings.beta,
        )
        loss.backward()
        totals += update_totals(loss, now, rollout, where, advantages[where], settings.epsilon)
    return totals


# ------------------------------------------------------------------------------- the log of a step


@torch.no_grad()
def update_totals(
    loss: Tensor,
    now: lhrm.Scores,
    rollout: Rollout,
    where: tuple[list[int], slice],
    advantages: Tensor,
    epsilon: float,
) -> Tensor:
    """The TOTALS of the micro-batch at `where` in the rollout: (7,) in fp64."""
    old = rollout.old_log_probs[where]
    ratio = (now.log_probs - old).exp()
    grids = [
        torch.ones_like(ratio),
        now.entropy,
        kl_divergence(now.log_probs, rollout.ref_log_probs[where]),
        kl_divergence(rollout.sampler_log_probs[where], old),  # 0 but for rounding
        (ratio < 1 - epsilon) & (advantages < 0),
        (ratio > 1 + epsilon) & (advantages > 0),
    ]
    sums = [torch.where(now.mask, grid, 0).sum().double() for grid in grids]
    return torch.stack([loss.detach().double(), *sums])


def record_step(
    step: int,
    rollout: Rollout,
    totals: Tensor,
    with_reference: bool,
    figures: dict[str, float],
    log: report.Log,
    bar: Any,
    runtime: Runtime,
) -> None:
    """Log a step, show it on the progress bar, and warn when a mode is hardly chosen any more.

    totals: this rank's TOTALS. figures: those that do not follow from TOTALS and rollout.
    """
    _, num_groups, each = rollout.rewards.shape
    n = num_groups * each
    tags = rollout.old_log_probs[:, :1].flatten().tolist()  # log π_old of each mode tag
    judged = [dataclasses.replace(j, text="") for j in rollout.judged]
    groups = [(judged[i : i + n], tags[i : i + n]) for i in range(0, len(tags), n)]
    groups = runtime.gather(groups)
    sums = runtime.sum(totals).tolist()
    metrics = report.step_metrics(groups, sums, with_reference, num_groups) | figures
    log.write(step, metrics)
    report.show_on_bar(bar, metrics)
    log.warn_of_collapse(step, metrics, bar.write)


# ---------------------------------------------------------- training by DPO and RFT, Eq. 14, 15, 21


class Sampled(NamedTuple):
    """The N responses to a query, think first, and their rewards."""

    prompt: list[int]
    responses: list[list[int]]
    rewards: list[float]


def sample_once(
    policy: Transformer,
    tokenizer: Tokenizer,
    queries: Sequence[Query],
    settings: PolicyOptions,
    runtime: Runtime,
    run: Run,
    reward_model: RewardModel | None,
) -> list[Sampled]:
    """Every query's responses by π_HFT and their rewards (Eq. 14, 15), on every rank.

    They are kept in samples-*.jsonl in `output_dir`, where a resumed run reads them. A hash of all
    that they depend on is part of the names, so that a run never reads the samples of another.
    """
    n = settings.num_generations
    named = ("num_generations", "temperature", "max_completion_length", "verifier", "bf16", "seed")
    contents = {k: v for k, v in run.contents.items() if not k.startswith("eval_")}
    contents["rewards"] = reward_model and [reward_model.shift, reward_model.scale]
    made_with = mix_seed(repr([contents, [getattr(settings, name) for name in named]]))
    done = report.Unfinished(run.folder, f"samples-{made_with:016x}", runtime, Sampled)
    mine = runtime.share([q for q in range(len(queries)) if q not in done.rows])
    size = max(1, 16 * settings.rollout_batch_size // n)  # queries between two savings
    bar = progress(None, "sampling", total=len(mine), unit="query")
    with lhrm.gathered(policy), runtime.apart(), bar:
        for part in (mine[i : i + size] for i in range(0, len(mine), size)):
            batch = [queries[q] for q in part]
            seeds = [mix_seed(settings.seed, "sample", q) for q in part]
            rollout = sample_responses(  # Eq. 14, 15: O(q) of each, and its rewards
                policy, tokenizer, batch, seeds, settings, reward_model, Stopwatch("rest")
            )
            for i, q in zip(range(0, len(part) * n, n), part):
                rewards = rollout.rewards.flatten()[i : i + n].tolist()
                sampled = Sampled(rollout.prompts[i], rollout.responses[i : i + n], rewards)
                done.add(q, sampled._asdict())
            bar.update(len(part))
    rows = done.read()
    return [rows[q] for q in range(len(queries))]


def training_rows(samples: Sequence[Sampled], method: str) -> list[Row]:
    """The rows of D_RFT (Eq. 20), (prompt, response), or of D_DPO (Eq. 17, 18), (prompt, preferred,
    dispreferred); some queries give none."""
    size = (len(samples), len(MODES), -1)
    rewards = torch.tensor([s.rewards for s in samples]).view(size)  # (B, 2, G)
    lengths = torch.tensor([[len(r) for r in s.responses] for s in samples]).view(size)
    if method == "rft":
        choices = rft_choices(rewards, lengths).tolist()
        return [(s.prompt, s.responses[c]) for s, c in zip(samples, choices) if c != NO_RESPONSE]
    winners, losers = (places.tolist() for places in dpo_pairs(rewards, lengths))
    return [
        (s.prompt, s.responses[winner], s.responses[loser])
        for s, winner, loser in zip(samples, winners, losers)
        if winner != NO_RESPONSE
    ]


def dpo_batch_loss(
    reference: Transformer,
    beta: float,
    policy: Transformer,
    rows: Sequence[Row],
    num_rows: int,
) -> lhrm.BatchLoss:
    """Eq. 19 of a micro-batch of (prompt, preferred, dispreferred), and TRL's figures to log."""

    def log_probs(model: Transformer) -> tuple[Tensor, ...]:
        """Log-probs of whole responses: the preferred ones, and the others."""
        responses = [row[1] for row in rows] + [row[2] for row in rows]
        prompts = [row[0] for row in rows] * 2
        log_probs = lhrm.score_responses(model, prompts, responses).log_probs
        return log_probs.sum(-1).view(2, len(rows)).unbind()

    chosen, rejected = log_probs(policy)
    with torch.no_grad():
        ref_chosen, ref_rejected = log_probs(reference)
    loss = chosen.sum()  # of no rows: 0, where a mean would be NaN
    if rows:
        loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta) * len(rows) / num_rows
    with torch.no_grad():
        gain_w, gain_l = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
        sums = {
            "rewards/accuracies": (gain_w > gain_l).sum(),
            "rewards/chosen": gain_w.sum(),
            "rewards/rejected": gain_l.sum(),
            "rewards/margins": (gain_w - gain_l).sum(),
            "logps/chosen": chosen.sum(),
            "logps/rejected": rejected.sum(),
        }
    return loss, sums, chosen.new_tensor(len(rows))


def train_baseline(
    policy: Transformer,
    reference: Transformer | None,
    tokenizer: Tokenizer,
    queries: Sequence[Query],
    settings: DPOSettings | RFTSettings,
    runtime: Runtime,
    run: Run,
    reward_model: RewardModel | None,
) -> None:
    """DPO and RFT (App. A): sample with π_HFT, choose, and fine-tune. Changes `policy`."""
    samples = sample_once(policy, tokenizer, queries, settings, runtime, run, reward_model)
    rows = training_rows(samples, settings.method)
    if not rows:
        raise InputError(f"{settings.dataset_name}: none of {len(samples)} queries gives a row")
    if cli.is_main_process():
        print(f"{len(rows)} of {len(samples)} queries give a row")
    batch_loss = lhrm.hft_batch_loss  # Eq. 21, which is Eq. 4 on D_RFT
    if isinstance(settings, DPOSettings):
        assert reference is not None
        batch_loss = functools.partial(dpo_batch_loss, reference, settings.beta)
    lhrm.fine_tune(policy, rows, batch_loss, settings, runtime, run, settings.method.upper())


# ------------------------------------------------------------------------------------ the whole job


def run(settings: HGPOSettings | DPOSettings | RFTSettings) -> None:
    """Evaluate π_HFT, train it, evaluate the result; on the lab, make π_HFT first."""
    runtime = lhrm.start(settings.bf16, settings.hsdp)
    on_lab = settings.model_name_or_path is None
    root = Path(settings.output_dir)
    if settings.num_generations % len(MODES) or settings.num_generations == 0:
        raise InputError(
            f"num_generations = {settings.num_generations} must be even: a half in each mode"
        )
    report.load_tracker(settings.report_to)  # all errors come before the long work
    if on_lab:
        settings = lab_with_pi_hft(settings, root / settings.method, runtime)
    if settings.model_name_or_path is None or settings.dataset_name is None:
        raise InputError("give --dataset_name, a file of queries")
    queries = read_queries(settings.dataset_name)
    held_out = read_queries(settings.eval_dataset_name) if settings.eval_dataset_name else []
    check_verifiers(settings.verifier, queries + held_out)
    if held_out:
        check_domain(held_out, settings.eval_domain)
    names = ("model_name_or_path", "reward_model_name_or_path", "dataset_name", "eval_dataset_name")
    with Run(settings, runtime, {name: getattr(settings, name) for name in names}) as folder:
        if folder.finished:
            folder.tell_that_it_is_finished()
        else:
            outcome = train_and_evaluate(settings, queries, held_out, runtime, folder)
            runtime.on_first(lambda: report.write_outcome(outcome, folder.folder, root))
            folder.finish()
        if (path := folder.folder / "results.json").exists() and cli.is_main_process():
            report.show_outcome(path, settings.method)
    lhrm.stop()


def train_and_evaluate(
    settings: HGPOSettings | DPOSettings | RFTSettings,
    queries: Sequence[Query],
    held_out: Sequence[Query],
    runtime: Runtime,
    run: Run,
) -> dict[str, Any]:
    """The trained model, in the folder of `run`. Returns the figures of π_HFT, under "hft", and its
    own, under the method's name; none without held-out queries."""
    reward_model = load_reward_model(settings, [*queries, *held_out], runtime.device, run)
    source = str(settings.model_name_or_path)
    policy, tokenizer = lhrm.load_policy(source, runtime, settings.gradient_checkpointing)  # l. 1
    reference = None
    if not isinstance(settings, RFTSettings) and settings.beta:
        reference = lhrm.load_reference(source, tokenizer, runtime)  # l. 3: π_ref, π_HFT at first
    derived = {
        "processes": runtime.world_size,
        "device": runtime.device.type,
        "queries": len(queries),
        "queries_for_reward_model": sum(not query.definite for query in queries),
    }
    for name, asked, limit in (
        (settings.dataset_name, queries, settings.max_completion_length),
        (settings.eval_dataset_name, held_out, settings.eval_max_completion_length),
    ):
        check_contexts(asked, tokenizer, limit, policy.config.max_position_embeddings, name)
    sampling = (
        settings.seed, settings.max_completion_length, settings.rollout_batch_size,
        settings.temperature,
    )  # fmt: skip
    tokenizer.warn_of_new_tags(MODES)
    with lhrm.gathered(policy):
        if not (settings.allow_malformed or run.newest):
            check_formats(policy, tokenizer, queries, runtime, *sampling)
        if reward_model:
            derived["reward_shift"] = reward_model.find_shift(
                policy, tokenizer, [queries, held_out], runtime, *sampling
            )
    run.begin(settings.method.upper(), derived)

    def evaluation(stage: str, kept: report.Unfinished[Any] | None = None) -> dict[str, Any]:
        records = lhrm.evaluate(
            policy, tokenizer, held_out, settings, runtime, f"evaluate {stage}", settings.seed,
            reward_model, unfinished=kept,
        )  # fmt: skip
        return lhrm.results(records, settings.hacc_margin, settings.eval_domain)

    def kept_evaluation(stage: str, weights: str) -> dict[str, Any]:
        """An evaluation whose records are kept until the run is finished, with a few responses.
        weights: a hash of them, so that a resumed run finds the records of the same model."""
        free = ("eval_batch_size", "eval_steps", "eval_on_start", "eval_domain",
                "eval_dataset_name")  # fmt: skip
        asked = {k: v for k, v in vars(settings).items() if k.startswith("eval_") and k not in free}
        asked |= {k: v for k, v in run.contents.items() if k.startswith(("eval_", "reward_"))}
        asked["rewards"] = reward_model and [reward_model.shift, reward_model.scale]
        made_with = mix_seed(repr([weights, asked, settings.seed, settings.verifier]))
        kept = report.Unfinished(
            run.folder, f"evaluated-{made_with:016x}", runtime, report.Record.from_row
        )
        figures = evaluation(stage, kept)

        def few() -> list[dict[str, str]]:
            return report.examples(report.kept_records(kept, held_out), settings.eval_domain)

        return {**figures, "examples": runtime.on_first(few)}

    outcome = {}
    if held_out and settings.eval_on_start:
        outcome["hft"] = kept_evaluation("hft", run.contents["model_name_or_path"])
    if isinstance(settings, HGPOSettings):
        train(
            policy, reference, tokenizer, queries, settings, runtime, run, reward_model,
            evaluation if held_out else None,
        )  # fmt: skip
    else:
        train_baseline(policy, reference, tokenizer, queries, settings, runtime, run, reward_model)
    lhrm.save_policy(policy, tokenizer, settings, run.folder, runtime)
    if held_out:
        trained = runtime.on_first(lambda: digest(run.folder))
        outcome[settings.method] = kept_evaluation(settings.method, trained)
    return outcome


def lab_with_pi_hft(settings: Any, folder: Path, runtime: Runtime) -> Any:
    """Settings with the paths of the lab's data and of its π_HFT; runs HFT first if needed."""
    root = Path(settings.output_dir)
    for path in filter(None, (settings.dataset_name, settings.eval_dataset_name)):
        try:
            lab.check_words(query.prompt[-1]["content"] for query in read_queries(path))
        except InputError as error:
            raise InputError(f"{path}: {error} For another: --model_name_or_path") from None
    files = lhrm.write_lab(root, settings.seed, runtime)
    hft = lhrm.HFTSettings(
        **{**lhrm.HFT_ON_LAB, "output_dir": str(root)},
        seed=settings.seed,
        bf16=settings.bf16,
        resume_from_checkpoint=True,
    )
    try:
        lhrm.hft(hft)
    except InputError as error:
        raise InputError(f"{error} (with `python lhrm.py hft --output_dir {root}`)") from None
    return dataclasses.replace(
        settings,
        output_dir=str(folder),
        model_name_or_path=str(root / "hft"),
        dataset_name=settings.dataset_name or str(files["rl"]),
        eval_dataset_name=settings.eval_dataset_name or str(files["test"]),
    )


def main() -> None:
    parser = cli.OneLineParser(prog="hgpo.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--method", choices=METHODS, default="hgpo")
    settings, on_lab = METHODS[parser.parse_known_args()[0].method]
    run(cli.parse_settings(settings, "hgpo.py", sys.argv[1:], lab=on_lab))


if __name__ == "__main__":
    processes.run_command(main)
