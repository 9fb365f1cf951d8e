"""Batched, KV-cached sampling, the mode forced (Eq. 1, 5) or chosen by the model; a chat.

    python sample.py --model_name_or_path runs/lab/hgpo --prompt "7+5-3="
    python sample.py --model_name_or_path runs/lab/hgpo --prompt_file questions.txt --mode think
    python sample.py --model_name_or_path runs/lab/hgpo                 # chat
    echo "7+5-3=" | python sample.py --model_name_or_path runs/lab/hgpo

Shapes: R responses whose next tokens are drawn together, V vocabulary.
"""

from __future__ import annotations

# First: Ctrl-C during the slow imports ends in one line, too.
from data.cli import LAB_MODEL, InputError, mix_seed, parse_settings, run_command, setting

# isort: split
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data import classify
from data.chat import answer_all, chat, read_prompts
from data.modes import MODES
from data.rows import check_prompt
from data.tokenizer import SAMPLING, Messages, Tokenizer
from model import KVCache, Transformer

MAX_TOKENS = 2**20  # largest max_new_tokens: a random number for each is drawn beforehand
SMALLER_BATCH = 0.75  # share of busy slots at which a smaller batch is worth copying the cache
CANDIDATES = 1024  # the likeliest tokens, among which top-p looks first
NO_TOKEN = -1  # in the place of a tag, where none is forced


@dataclass
class Completion:
    """One sampled response."""

    ids: list[int]  # usually the mode tag first; the stop token last if there is one
    log_probs: list[float]  # of each id at the sampling temperature, before top-k and top-p
    finished: bool = False  # ended in a stop token; otherwise it was cut at max_new_tokens

    def text(self, tokenizer: Tokenizer) -> str:
        """Without the stop token."""
        return tokenizer.decode(self.ids[: -1 if self.finished else None])


def generate(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], **options: Any
) -> list[list[Completion]]:
    """The responses to each of `prompts`, all at the end: see `generate_as_completed`."""
    groups = dict(generate_as_completed(model, tokenizer, prompts, **options))
    return [groups[place] for place in range(len(prompts))]


@torch.no_grad()
def generate_as_completed(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    num_generations: int = 1,
    modes: Sequence[str | None] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, list[Completion]]]:
    """Sample `num_generations` responses to each of `prompts`: a ~ P(a | q, m) of Eq. 1. Yields the
    place of a prompt and its responses as soon as all of them have ended.

    modes: for each prompt the mode whose tag opens its responses (Eq. 1, 5), or None: the model
    chooses (the π(q) of Eq. 3, the m_p of Eq. 13). The tag is token t = 1 of a response (index 0),
    and its log-prob is the model's own even where it is forced. temperature 0 is greedy (log-probs
    are then those at temperature 1); top_k 0 and top_p 1 are off. seed: one for the call, or one
    for each prompt. A prompt's responses depend on its own seed (or on the call's, and its place),
    not on the others. batch_size: the most responses in work at a time; None: all. on_token is
    called with each id as it is drawn, for a single response.
    Raises InputError for settings that make no sense.
    """
    modes = [None] * len(prompts) if modes is None else modes
    seeds = [mix_seed(seed, i) for i in range(len(prompts))] if isinstance(seed, int) else seed
    batch_size = len(prompts) * num_generations if batch_size is None else batch_size
    if max_new_tokens < 1 or num_generations < 1:
        raise InputError("max_new_tokens and num_generations must be at least 1")
    if not (temperature == 0 or 1e-3 <= temperature < math.inf) or top_k < 0 or not 0 < top_p <= 1:
        raise InputError("need temperature 0 or >= 0.001, top_k >= 0 and 0 < top_p <= 1")
    if not prompts:
        return
    if batch_size < 1:
        raise InputError("batch_size must be at least 1")
    if not len(prompts) == len(modes) == len(seeds):
        raise InputError("prompts, modes and seeds must be equally many")
    if any(len(prompt) == 0 for prompt in prompts):
        raise InputError("a prompt needs at least one token")
    if unknown := set(modes) - {*MODES, None}:
        raise InputError(f"unknown mode {unknown.pop()!r}: think, no_think or None")
    tags = {"think": tokenizer.think_id, "no_think": tokenizer.no_think_id, None: NO_TOKEN}
    requests = [
        Request(
            place, tuple(prompt), tags[mode], own_seed,
            [Completion([], []) for _ in range(num_generations)], num_generations,
        )
        for place, (prompt, mode, own_seed) in enumerate(zip(prompts, modes, seeds))
    ]  # fmt: skip
    completed: list[Request] = []

    def extend(responses: Sequence[Response | None], logits: Tensor) -> list[Response | None]:
        """Draw the next token of each response; returns those that go on, and None for others."""
        going_on: list[Response | None] = list(responses)
        drawn = draw_tokens(logits, responses, temperature, top_k, top_p)
        for place, (response, token, log_prob) in enumerate(zip(responses, *drawn)):
            if response is None:
                continue
            if math.isnan(log_prob):
                damaged = "its weights are damaged, or too high a learning rate has ruined them"
                raise InputError(f"the model's logits are not numbers: {damaged}")
            if on_token is not None:
                on_token(token)
            completion = response.completion
            completion.ids.append(token)
            completion.log_probs.append(log_prob)
            completion.finished = token in tokenizer.eos_ids
            if completion.finished or len(completion.ids) == max_new_tokens:
                going_on[place] = None
                response.request.running -= 1
                if response.request.running == 0:
                    completed.append(response.request)
        return going_on

    scheduler = Scheduler(model, requests, max_new_tokens, batch_size, extend)
    running = True
    while running:
        running = scheduler.step()
        yield from ((request.place, request.completions) for request in completed)
        completed.clear()


# ----------------------------------------------------------------------------- continuous batching


@dataclass
class Request:
    """A prompt and the responses to it that are wanted."""

    place: int  # among the prompts of the call
    prompt: tuple[int, ...]
    tag: int  # that opens each response, or NO_TOKEN
    seed: int
    completions: list[Completion]
    running: int  # of these, how many have not ended

    def responses(self, max_new_tokens: int) -> list[Response]:
        """With uniform numbers from the request's own seed, one for each token, so that a response
        does not depend on what else is in the batch; from the CPU, the same for any device."""
        generator = torch.Generator().manual_seed(self.seed)
        numbers = torch.rand(len(self.completions), max_new_tokens, generator=generator)
        return [Response(self, c, row.numpy().data) for c, row in zip(self.completions, numbers)]


class Response(NamedTuple):
    """A response in work."""

    request: Request
    completion: Completion
    uniform: memoryview  # a number in [0, 1) for each token


class Scheduler:
    """Continuous batching: a response that ends leaves its slot to the next one.

    Prompts are prefilled once for all of their responses, in groups of like length, the longest
    first. `extend` draws the next tokens of responses by their logits, and returns the responses
    with None in the places of those that end.
    """

    def __init__(
        self, model: Transformer, requests: Sequence[Request], max_new_tokens: int, batch_size: int,
        extend: Callable[[Sequence[Response | None], Tensor], list[Response | None]],
    ) -> None:  # fmt: skip
        self.model, self.max_new_tokens, self.extend = model, max_new_tokens, extend
        self.device = next(model.parameters()).device
        prompts: dict[tuple[int, ...], list[Request]] = {}
        for request in requests:
            prompts.setdefault(request.prompt, []).append(request)
        self.prompts = sorted(prompts.items(), key=lambda item: len(item[0]))  # those to prefill
        limit = len(self.prompts[-1][0]) + max_new_tokens
        wanted = sum(request.running for request in requests)
        self.slots: list[Response | None] = [None] * min(batch_size, wanted)
        self.cache = KVCache(len(self.slots), limit, self.device)
        # Responses with a first token, but no slot; each with its row in the last group's cache.
        self.waiting: deque[tuple[Response, int]] = deque()

    def step(self) -> bool:
        """One token more for every response that has a slot. False if there is none."""
        self.fill()
        busy = [slot for slot, response in enumerate(self.slots) if response is not None]
        if not busy:
            return False
        if len(busy) <= SMALLER_BATCH * len(self.slots):
            self.shrink(len(busy))
        last = [r.completion.ids[-1] if r else 0 for r in self.slots]
        before = [len(r.request.prompt) + len(r.completion.ids) - 1 if r else 0 for r in self.slots]
        self.cache.set_lengths(before)
        ids = torch.tensor(last, device=self.device)[:, None]
        self.slots = self.extend(self.slots, self.model(ids, cache=self.cache)[:, 0])
        return True

    def shrink(self, size: int) -> None:
        """Move responses from behind to free slots among the first `size`; drop the others."""
        free = [slot for slot in range(size) if self.slots[slot] is None]
        last = [slot for slot in range(size, len(self.slots)) if self.slots[slot] is not None]
        for slot, other in zip(free, last):
            self.slots[slot] = self.slots[other]
        self.cache.insert(free, self.cache, last)
        self.cache.keep(size)
        self.slots = self.slots[:size]

    def fill(self) -> None:
        """Give free slots to the responses that wait, as long as there are any."""
        free = [slot for slot, response in enumerate(self.slots) if response is None]
        while free and (self.waiting or self.prompts):
            if not self.waiting:
                self.prefill(len(self.slots))
            taken = [self.waiting.popleft() for _ in range(min(len(free), len(self.waiting)))]
            slots, free = free[: len(taken)], free[len(taken) :]
            self.cache.insert(slots, self.group_cache, [row for _, row in taken])
            for slot, (response, _) in zip(slots, taken):
                self.slots[slot] = response

    def prefill(self, wanted: int) -> None:
        """Prefill the next prompts, of about the same length, for about `wanted` responses, and
        draw the first token of each response."""
        group: list[tuple[int, ...]] = []
        responses: list[Response] = []
        rows: list[int] = []  # of each response its prompt's place in the group
        while self.prompts and len(responses) < wanted:
            if group and len(self.prompts[-1][0]) < len(group[0]) / 2:
                break
            prompt, requests = self.prompts.pop()
            for request in requests:
                responses += request.responses(self.max_new_tokens)
            rows += [len(group)] * (len(responses) - len(rows))
            group.append(prompt)
        ids = pad_sequence([torch.tensor(prompt) for prompt in group], batch_first=True)  # (B, T)
        last = torch.tensor([len(prompt) - 1 for prompt in group], device=self.device)
        places = torch.arange(len(group), device=self.device)
        self.group_cache = KVCache(len(group), ids.shape[1], self.device)
        logits = self.model(
            ids.to(self.device),
            cache=self.group_cache,
            head=lambda hidden: self.model.logits(hidden[places, last]),
        )
        for i in range(0, len(rows), len(self.slots)):  # no more logits at a time than in a step
            part = rows[i : i + len(self.slots)]
            going_on = self.extend(responses[i : i + len(part)], logits[part])
            self.waiting.extend((r, row) for r, row in zip(going_on, part) if r is not None)


def draw_tokens(
    logits: Tensor, responses: Sequence[Response | None], temperature: float, top_k: int,
    top_p: float,
) -> tuple[list[int], list[float]]:  # fmt: skip
    """Draw the next token of each response by its logits, (R, V) (Eq. 1): ids and log-probs.

    The host waits for the device once, and once more in the rare case that CANDIDATES are too few.
    """
    numbers = [r.uniform[len(r.completion.ids)] if r else 0.0 for r in responses]
    tags = [r.request.tag if r and not r.completion.ids else NO_TOKEN for r in responses]
    uniform, forced = (torch.tensor(values, device=logits.device) for values in (numbers, tags))
    choices = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)  # (R, V)

    def to_host(tokens: Tensor) -> list[list[float]]:
        tokens = torch.where(forced == NO_TOKEN, tokens, forced)  # Eq. 5
        log_probs = choices.gather(1, tokens[:, None]).squeeze(1)  # log π(o_t)
        return torch.stack((tokens.double(), log_probs.double(), enough.double())).tolist()

    tokens, enough = draw(choices, uniform, temperature, top_k, top_p, CANDIDATES)  # Eq. 1
    ids, log_probs, all_enough = to_host(tokens)
    if not all(all_enough):
        others, _ = draw(choices, uniform, temperature, top_k, top_p, choices.shape[1])
        ids, log_probs, _ = to_host(torch.where(enough, tokens, others))
    return [int(token) for token in ids], log_probs


def draw(
    log_probs: Tensor,
    uniform: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    candidates: int,
) -> tuple[Tensor, Tensor]:
    """Draw a token for each row: (R, V), (R,) -> (R,) int, (R,) bool.

    For top-p alone, only the `candidates` likeliest tokens are sorted. The second tensor is False
    where these hold less than top_p: the draw then needs more of them.
    """
    enough = torch.ones_like(uniform, dtype=torch.bool)
    if temperature == 0:
        return log_probs.argmax(-1), enough
    probs = log_probs.exp()
    if top_k == 0 and top_p == 1:
        return invert(probs, uniform), enough
    likeliest, ids = probs.topk(min(top_k or candidates, probs.shape[1]))  # (R, k), falling
    cumulative = likeliest.cumsum(-1, dtype=torch.float64)
    if top_k:
        cumulative = cumulative / cumulative[:, -1:]
    elif candidates < probs.shape[1]:
        enough = cumulative[:, -1] >= top_p
    # Keep the fewest tokens that reach top_p together: those with less than that before them.
    before = F.pad(cumulative, (1, -1))
    kept = torch.where(before < top_p, likeliest, 0)
    ids, order = ids.sort(-1)  # draw in the order of the vocabulary, as without top-p
    place = invert(kept.gather(1, order), uniform)
    return ids.gather(1, place[:, None]).squeeze(1), enough


def invert(probs: Tensor, uniform: Tensor) -> Tensor:
    """Where a row's cumulative sum passes that share of its total: (R, n), (R,) -> (R,) int.

    Cumulative sums are in fp64. In a large vocabulary a block of about √n numbers is found first,
    then the place within it, so that these sums are short. A 0 is never drawn.
    """

    def passed(sums: Tensor, target: Tensor) -> Tensor:
        below = (sums <= target[:, None]).sum(-1)
        return torch.minimum(below, (sums < sums[:, -1:]).sum(-1))

    if probs.shape[1] <= CANDIDATES:
        sums = probs.cumsum(-1, dtype=torch.float64)
        return passed(sums, uniform * sums[:, -1])
    size, rows = math.isqrt(probs.shape[1]), torch.arange(len(probs), device=probs.device)
    blocks = F.pad(probs, (0, -probs.shape[1] % size)).unflatten(1, (-1, size))  # (R, n/size, size)
    sums = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    target = uniform * sums[:, -1]
    block = passed(sums, target)
    target = target - F.pad(sums, (1, 0))[rows, block]
    return block * size + passed(blocks[rows, block].cumsum(-1, dtype=torch.float64), target)


# ------------------------------------------------------------------------------------- command line


@dataclass
class SampleSettings(classify.RouterOptions):
    """Answer a prompt, a file of prompts, or standard input as one prompt; in a terminal, a chat.

    python sample.py --model_name_or_path runs/hgpo --prompt "What is 12 · 34?" --mode think
    """

    model_name_or_path: str = setting(LAB_MODEL, "model folder")
    prompt: str | None = setting(None, "answer this and stop")
    prompt_file: str | None = setting(None, "answer every line or row of it; prints JSON lines")
    system: str | None = setting(None, "system message of every conversation")
    mode: str = setting(
        "auto", "of every answer; auto: the model chooses, router: a classifier does, and asks for "
        "it in words where the tags are new to the model", ("auto", *MODES, "router"),
    )  # fmt: skip
    num_generations: int = setting(1, "responses to each prompt")
    max_completion_length: int = setting(1024, "most tokens of a response", maximum=MAX_TOKENS)
    temperature: float = setting(SAMPLING["temperature"], "sampling temperature; 0 is greedy")
    top_k: int = setting(SAMPLING["top_k"], "sample from the k likeliest tokens; 0: from all")
    top_p: float = setting(SAMPLING["top_p"], "top-p: probability to sample from", None, 1e-6, 1)
    batch_size: int = setting(64, "responses that are sampled at once")
    seed: int = setting(0, "seed of the sampling: the same one gives the same responses")


def main() -> None:
    settings = parse_settings(SampleSettings, "sample.py", sys.argv[1:])
    if settings.prompt is not None and settings.prompt_file is not None:
        raise InputError("give --prompt or --prompt_file, not both")
    folder = settings.model_name_or_path
    prompts = read_prompts(settings.prompt, settings.prompt_file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer.from_pretrained(folder)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = Transformer.from_pretrained(folder, dtype=dtype, device=device)
    model.fit_vocabulary(tokenizer)
    system = [{"role": "system", "content": settings.system}] if settings.system else []

    def answers(
        conversations: Sequence[Messages], places: Sequence[int], mode: str, **options: Any
    ) -> tuple[list[str], Iterator[tuple[int, list[Completion]]]]:
        """The mode that each conversation is answered in, and the answers, as they come."""
        modes, in_words = [mode] * len(conversations), mode == "router" and bool(tokenizer.new_tags)
        if mode == "router":
            modes = classify.route(conversations, settings.classifier_name_or_path)
        if in_words:
            asked = zip(modes, conversations)
            conversations = [classify.ask_for(mode, messages, settings) for mode, messages in asked]
        else:
            tokenizer.warn_of_new_tags(modes)
        encoded = [tokenizer.encode_chat([*system, *messages]) for messages in conversations]
        check_prompt(max(map(len, encoded)), model.config.max_position_embeddings)
        return modes, generate_as_completed(
            model,
            tokenizer,
            encoded,
            modes=[mode if mode in MODES and not in_words else None for mode in modes],
            max_new_tokens=settings.max_completion_length,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=[mix_seed(settings.seed, place) for place in places],
            **options,
        )

    if prompts is None:
        return chat(tokenizer, answers, settings.mode, model.config.max_position_embeddings)
    answer_all(tokenizer, answers, prompts, settings)


if __name__ == "__main__":
    run_command(main)
