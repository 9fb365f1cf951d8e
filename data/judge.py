"""r(o) of Eq. 7: what a sampled response is worth, by rule or by a reward model."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.cli import InputError, environment_number, mix_seed, progress, setting
from data.modes import MODES, READERS, leaks, parse_response
from data.processes import Runtime
from data.rows import Query
from data.runs import Run
from data.tokenizer import Messages, Tokenizer
from data.verify_code import extract_code, run_tests
from data.verify_math import is_correct, likely_answer
from model import Config, Transformer
from sample import Completion, generate_as_completed

T = TypeVar("T")
R = TypeVar("R")
FIRST_BATCH = 64  # responses in each mode, which show a reward model's usual logit
FIRST_ROLLOUT = 16  # responses in each mode that are looked at before a training
MALFORMED = 0.9  # share of a mode's that is malformed or cut, from which on it is refused


def is_correct_by_math_verify(prediction: str, gold: str) -> bool:
    """`is_correct` by the package math-verify, as in the paper's evaluation: looser than ours.

    It limits its time by a signal, so that it can be called in the main thread only.
    """
    try:
        from math_verify import parse, verify
    except ImportError:
        raise InputError("--verifier math_verify needs it: pip install math-verify") from None
    return verify(parse(f"${gold}$"), parse(prediction))


def check_verifiers(name: str, queries: Sequence[Query]) -> None:
    """Raise InputError or OSError, before anything is computed, if the verifier `name` is not
    installed, or if the tests of `queries` cannot be run here."""
    if name == "math_verify":
        is_correct_by_math_verify("1", "1")
    if any(query.tests for query in queries):
        run_tests("", "pass")


def programs_at_once() -> int:
    """How many programs this process may judge at a time: its node's ranks share the cores that
    they may use. Of a program's two processes one waits for the other."""
    affinity = getattr(os, "sched_getaffinity", None)  # there is none on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 2
    return max(1, cores // environment_number("LOCAL_WORLD_SIZE", 1))


def side_by_side(work: Callable[[T], R], items: Sequence[T], runs: Callable[[T], bool]) -> list[R]:
    """What `work` makes of each item, in order: several of those that run a program at a time, the
    others here in the main thread, as some verifiers need it."""
    pool = ThreadPoolExecutor(programs_at_once())
    try:
        programs = [pool.submit(work, item) if runs(item) else None for item in items]
        return [
            program.result() if program else work(item) for program, item in zip(programs, items)
        ]
    finally:
        pool.shutdown(cancel_futures=True)  # at a signal, wait for no more than those at work


VERIFIERS = {"rule": is_correct, "math_verify": is_correct_by_math_verify}


@dataclass
class JudgeOptions:
    """How to judge responses."""

    reward_model_name_or_path: str | None = setting(None, "judge of queries without an answer")
    reward_batch_size: int = setting(16, "answers that the reward model judges at once")
    offload_reward_model: bool = setting(False, "keep it on the CPU while it does not judge")
    reward_shift: float | None = setting(
        None, "the reward model's logit that becomes a reward of 0.5; unset: the mean over a first "
        "batch of the starting model's answers", minimum=-math.inf,
    )  # fmt: skip
    reward_scale: float = setting(
        1.0,
        "the reward model's rewards are sigmoid((logit - reward_shift) / reward_scale)",
        minimum=1e-6,
    )
    verifier: str = setting("rule", "rule: data/verify_math.py; or a package", tuple(VERIFIERS))


@dataclass
class Judged:
    """A sampled response with its reward."""

    mode: int  # THINK, NO_THINK or NEITHER, by the tag that opens it; in free format, as asked for
    reward: float | None  # Eq. 7: 0 unless well formed; by rule, 1 if right; None: not judged
    length: int  # number of generated tokens
    finished: bool  # ended with a stop token
    well_formed: bool  # finished, and in the grammar; in free format: finished, with an answer
    leaked: bool  # a no_think response with a think tag inside
    text: str
    definite: bool = True  # judged by rule; otherwise by the reward model


def judge(
    query: Query,
    completion: Completion,
    tokenizer: Tokenizer,
    verifier: str = "rule",
    response_format: str = "tags",
) -> Judged:
    """Judge a response by rule (Eq. 7). The reward is None where there is no definite answer.

    A response that was cut at the length limit has no end, and is malformed. response_format: of
    READERS; "free" looks for a final answer in whatever the response says.
    """
    text = completion.text(tokenizer)
    response = READERS[response_format](text)
    well_formed = response.well_formed and completion.finished
    if query.tests and well_formed:
        right, _ = run_tests(extract_code(response.answer, query.tests), query.tests)
    else:
        same = VERIFIERS[verifier]
        cases = [(response.answer, gold) for gold in query.answers]
        if response_format == "free":
            cases += [(likely_answer(answer, gold), gold) for answer, gold in cases]
        right = well_formed and any(same(answer, gold) for answer, gold in cases)
    return Judged(
        mode=response.mode_number,
        reward=float(right) if query.definite else None,  # Eq. 7
        length=len(completion.ids),
        finished=completion.finished,
        well_formed=well_formed,
        leaked=leaks(response.mode_number, text),
        text=text,
        definite=query.definite,
    )


def judge_all(
    cases: Sequence[tuple[Query, Completion]],
    tokenizer: Tokenizer,
    reward_model: RewardModel | None = None,
    verifier: str = "rule",
    response_format: str = "tags",
) -> list[Judged]:
    """Judge responses, in order (Eq. 7): by rule where the query has a definite answer, several
    programs at a time; else by the reward model, or not at all if there is none.

    The reward model sees prompt and answer, as `response_format` reads it: never reasoning or tags,
    so that it judges both modes alike. A malformed or unfinished response gets 0 unseen.
    """
    judged = side_by_side(
        lambda case: judge(*case, tokenizer, verifier, response_format),
        cases,
        lambda case: bool(case[0].tests),
    )
    if reward_model is None:
        return judged
    open_ended = [i for i, j in enumerate(judged) if not j.definite]
    for i in open_ended:
        judged[i].reward = 0.0
    places = [i for i in open_ended if judged[i].well_formed]
    if places:
        answers = [READERS[response_format](judged[i].text).answer for i in places]
        rewards = reward_model.rewards([cases[i][0].prompt for i in places], answers)  # Eq. 7
        for i, reward in zip(places, rewards.tolist()):
            judged[i].reward = reward
    return judged


def sample_evenly(
    policy: Transformer,
    tokenizer: Tokenizer,
    queries: Sequence[Query],
    count: int,
    runtime: Runtime,
    seed: int,
    name: str,
    response_format: str = "tags",
    **options: Any,
) -> Iterator[tuple[Query, str, Completion]]:
    """Sample `count` responses in each mode to evenly spaced queries, or in free format as many in
    no mode; yields this rank's share. The policy's parameters are gathered.

    name: what the bar and the seeds are called. options: of `generate_as_completed`.
    """
    asked = [
        (queries[i * len(queries) // count], mode, mix_seed(seed, name, i, mode))
        for mode in MODES
        for i in range(count)
    ]
    mine = runtime.share(asked)  # on some ranks none
    groups = generate_as_completed(
        policy, tokenizer, [tokenizer.encode_chat(query.prompt) for query, _, _ in mine],
        modes=[mode if response_format == "tags" else None for _, mode, _ in mine],
        seed=[own_seed for _, _, own_seed in mine], **options,
    )  # fmt: skip
    for place, [completion] in progress(groups, name, total=len(mine), unit="response"):
        yield *mine[place][:2], completion


def check_formats(
    policy: Transformer,
    tokenizer: Tokenizer,
    queries: Sequence[Query],
    runtime: Runtime,
    seed: int,
    max_new_tokens: int,
    batch_size: int,
    temperature: float,
) -> None:
    """Raise InputError if, in a first small rollout, nearly all responses of a mode are malformed
    or cut: with rewards of 0 there is nothing to learn."""
    counts = Counter[tuple[str, str]]()
    with runtime.apart():
        for _, mode, completion in sample_evenly(
            policy, tokenizer, queries, FIRST_ROLLOUT, runtime, seed, "first look",
            max_new_tokens=max_new_tokens, batch_size=batch_size, temperature=temperature,
        ):  # fmt: skip
            form = parse_response(completion.text(tokenizer))
            counts[mode, "cut"] += not completion.finished
            counts[mode, "malformed"] += completion.finished and not form.well_formed
    counts = sum(runtime.gather([counts]), Counter[tuple[str, str]]())  # of all ranks
    for mode in MODES:
        malformed, cut = counts[mode, "malformed"], counts[mode, "cut"]
        if malformed + cut >= MALFORMED * FIRST_ROLLOUT:
            raise InputError(
                f"of {FIRST_ROLLOUT} first {mode} responses, {cut} are cut at "
                f"--max_completion_length {max_new_tokens} and {malformed} others malformed: their "
                "rewards are 0. Teach both forms first (lhrm.py hft; if that was done, more steps "
                "of it from this model, or a higher learning rate), or allow longer responses; "
                "--allow_malformed goes on"
            )


class RewardModel:
    """The judge of answers to queries without a definite one (Eq. 7): a sequence classifier.

    It gives an answer a logit, without bounds. The reward, the sigmoid of (logit − shift) / scale,
    lies in (0, 1) like the rewards by rule: δ (Eq. 9) and the margin of H_acc are made for that
    range. The logits of many such models are all far from 0, where sigmoids are about equal, and
    these margins would decide everything: hence the shift, a usual logit.

    Every process holds it whole, since each has answers of its own to judge: in a sharded model, a
    process with fewer batches would leave the others waiting. bf16 on a GPU, else fp32.
    """

    def __init__(
        self, folder: str | Path, batch_size: int, device: torch.device, offload: bool = False,
        shift: float | None = 0.0, scale: float = 1.0,
    ) -> None:  # fmt: skip
        """Load a model folder. batch_size: how many conversations are judged at once. offload: keep
        the model in the CPU's memory while it does not judge. shift: None if it is to be found."""
        config = Config.from_pretrained(folder)
        self.batch_size, self.device, self.offload = batch_size, device, offload
        self.shift, self.scale = shift, scale
        self.tokenizer = Tokenizer.from_pretrained(folder, mode_tags=False)
        unfit = {
            "it has no score head": not config.score_head,
            "it has no chat template": self.tokenizer.chat_template is None,
            "it has more tokens than embeddings": len(self.tokenizer) > config.vocab_size,
        }
        if reasons := [reason for reason, found in unfit.items() if found]:
            raise InputError(f"{folder} cannot be the reward model: {reasons[0]}")
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        where = "cpu" if offload else device
        self.model = Transformer.from_pretrained(folder, dtype, where).eval()

    def rewards(self, prompts: Sequence[Messages], answers: Sequence[str]) -> Tensor:
        """r(o) of Eq. 7 for each answer to its prompt: (R,) fp64 in (0, 1), on the CPU."""
        assert self.shift is not None, "find_shift comes first"
        return ((self.logits(prompts, answers) - self.shift) / self.scale).sigmoid()  # Eq. 7

    @torch.no_grad()
    def logits(self, prompts: Sequence[Messages], answers: Sequence[str]) -> Tensor:
        """The logit of each answer to its prompt: (R,) fp64, on the CPU.

        It is read at the last token that the chat template writes, where such models are trained to
        give it. Equal conversations are judged once, so that equal answers get equal rewards
        (Eq. 9). One that is longer than the model's positions gets −∞, with a warning.
        """
        rows = []
        for prompt, answer in zip(prompts, answers):
            messages = [*prompt, {"role": "assistant", "content": answer}]
            rows.append(tuple(self.tokenizer.encode_chat(messages, add_generation_prompt=False)))
        logits = dict.fromkeys(rows, -math.inf)
        limit = self.model.config.max_position_embeddings
        fitting = [row for row in logits if len(row) <= limit]
        if left_out := len(logits) - len(fitting):
            warnings.warn(f"{left_out} answers are too long for the reward model", stacklevel=2)
        fitting.sort(key=len)
        self.model.to(self.device)
        for start in range(0, len(fitting), self.batch_size):
            batch = fitting[start : start + self.batch_size]
            ids = pad_sequence([torch.tensor(row) for row in batch], batch_first=True)  # (B, T)
            values = self.model(ids.to(self.device))[..., 0].tolist()
            logits |= {row: value[len(row) - 1] for row, value in zip(batch, values)}
        if self.offload:
            self.model.to("cpu")
        found = torch.tensor([logits[row] for row in rows], dtype=torch.float64)
        if found.isnan().any():
            raise InputError("the reward model's logits are not numbers: its weights are damaged")
        return found

    def find_shift(
        self,
        policy: Transformer,
        tokenizer: Tokenizer,
        sets: Sequence[Sequence[Query]],
        runtime: Runtime,
        seed: int,
        max_new_tokens: int,
        batch_size: int,
        temperature: float,
        top_p: float = 1.0,
        response_format: str = "tags",
    ) -> float:
        """The shift. Unless it is known, it becomes the mean logit of a first batch of answers.

        These are `policy`'s, its parameters being gathered, to queries without a definite answer,
        evenly spaced in the first of `sets` that has any. They are sampled for that alone: all
        ranks take part at the same point, before anything else is judged, and neither their number
        nor a batch size changes the shift beyond rounding. If no answer can be judged, it is 0,
        with a warning.
        """
        if self.shift is not None:
            return self.shift
        [queries, *_] = filter(None, ([q for q in s if not q.definite] for s in sets))
        responses = sample_evenly(
            policy, tokenizer, queries, FIRST_BATCH, runtime, seed, "reward shift", response_format,
            max_new_tokens=max_new_tokens, batch_size=batch_size, temperature=temperature,
            top_p=top_p,
        )  # fmt: skip
        prompts, answers = [], []
        with runtime.apart():
            for query, _, completion in responses:
                judged = judge(query, completion, tokenizer, response_format=response_format)
                if judged.well_formed:
                    prompts.append(query.prompt)
                    answers.append(READERS[response_format](judged.text).answer)
            logits = self.logits(prompts, answers).tolist()
        found = list(filter(math.isfinite, itertools.chain(*runtime.gather([logits]))))
        if not found and runtime.rank == 0:
            warnings.warn(
                "none of the first responses can be judged: rewards are not shifted "
                "unless by --reward_shift",
                stacklevel=2,
            )
        self.shift = math.fsum(found) / len(found) if found else 0.0
        return self.shift


def load_reward_model(
    settings: JudgeOptions, queries: Sequence[Query], device: torch.device, run: Run | None
) -> RewardModel | None:
    """The reward model, or None if all `queries` have a definite answer. Its shift is the one that
    is given, else the one that `run` had before it was stopped, else still to be found.

    Raises InputError if a reward model is needed and none is given.
    """
    indefinite = [query for query in queries if not query.definite]
    if not indefinite:
        return None
    if settings.reward_model_name_or_path is None:
        raise InputError(
            f"{len(indefinite)} of {len(queries)} queries have neither an answer nor tests, first "
            f"{indefinite[0].prompt[-1]['content'][:60]!r}: give --reward_model_name_or_path (or "
            "are these rows for HFT? those for RL are another file)"
        )
    shift = settings.reward_shift
    if shift is None and run:
        shift = run.derived.get("reward_shift")
    return RewardModel(
        settings.reward_model_name_or_path, settings.reward_batch_size, device,
        settings.offload_reward_model, shift, settings.reward_scale,
    )  # fmt: skip
