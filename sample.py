"""Batched, KV-cached sampling, the mode forced (Eq. 1, 5, 6) or left to the model; a small chat.

    python sample.py --model_name_or_path runs/lab/hgpo --prompt "7+5-3="
    python sample.py --model_name_or_path runs/lab/hgpo --prompt_file questions.txt --mode think
    python sample.py --model_name_or_path runs/lab/hgpo

Shapes: R rows = prompts × num_generations, V vocabulary.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from tqdm import tqdm

from model import InputError, KVCache, Tokenizer, Transformer, is_main_process

MODES = ("think", "no_think")  # ⊢ and ⊬; a mode's number is its place here


@dataclass
class Completion:
    """One sampled response."""

    ids: list[int]  # the mode tag first, the stop token last if there is one
    log_probs: list[float]  # of each id at the sampling temperature, before top-k and top-p
    finished: bool  # ended in a stop token; otherwise it was cut at max_new_tokens


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    num_generations: int = 1,
    modes: Sequence[str | None] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_ids: Sequence[int],
    think_id: int,
    no_think_id: int,
    seed: int | Sequence[int] = 0,
    on_token: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """Sample `num_generations` responses to each of `prompts`.

    modes: per prompt the mode whose tag opens its responses (Eq. 5), or None to let the model
    choose (Eq. 1). A forced tag is token 1 of the response, and its log-prob is the model's own.
    temperature 0 is greedy (log-probs are then those at temperature 1); top_k 0 and top_p 1 are
    off. seed: one for the call, or one per prompt; a prompt's responses depend on its seed (and
    its place, if there is only one), not on the other prompts. on_token is called with each id
    as it is drawn, for a single response. Raises InputError for settings that make no sense.
    """
    modes = [None] * len(prompts) if modes is None else modes
    seeds = [mix_seed(seed, i) for i in range(len(prompts))] if isinstance(seed, int) else seed
    check_sampling(max_new_tokens, num_generations, temperature, top_k, top_p)
    if not prompts:
        return []
    if not len(prompts) == len(modes) == len(seeds):
        raise InputError("prompts, modes and seeds must be equally many")
    if any(len(prompt) == 0 for prompt in prompts):
        raise InputError("a prompt needs at least one token")
    if unknown := set(modes) - {*MODES, None}:
        raise InputError(f"unknown mode {unknown.pop()!r}: think, no_think or None")

    device = next(model.parameters()).device
    stop = torch.tensor(list(eos_ids), device=device)
    forced_id = {"think": think_id, "no_think": no_think_id, None: -1}
    forced = torch.tensor([forced_id[mode] for mode in modes], device=device)
    forced = forced.repeat_interleave(num_generations)  # (R,)
    # All the randomness there will be: one uniform number per response and token.
    uniform = torch.stack([uniform_numbers(s, num_generations, max_new_tokens) for s in seeds])
    uniform = uniform.flatten(0, 1).to(device)  # (R, max_new_tokens)

    # Prefill each distinct prompt once, then fan its cache out to all of its responses.
    distinct = {tuple(prompt): None for prompt in prompts}
    place = {prompt: i for i, prompt in enumerate(distinct)}
    logits, cache = prefill(model, list(distinct), device)
    rows = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)
    rows = rows.repeat_interleave(num_generations)  # (R,)
    cache.select(rows)
    logits = logits[rows]  # (R, V): every response draws its own first token

    total = len(rows)
    ids = torch.zeros(total, max_new_tokens, dtype=torch.long, device=device)
    log_probs = torch.zeros(total, max_new_tokens, device=device)
    lengths = torch.zeros(total, dtype=torch.long, device=device)
    finished = torch.zeros(total, dtype=torch.bool, device=device)
    live = torch.arange(total, device=device)  # the responses that the cache's rows belong to
    for t in range(max_new_tokens):
        scores = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)  # Eq. 1
        if t == 0 and scores.isnan().any():
            raise InputError("the model's logits are not numbers: its weights are damaged")
        tokens = draw(scores, uniform[live, t], temperature, top_k, top_p)
        if t == 0:
            tokens = torch.where(forced >= 0, forced, tokens)
        if on_token is not None:
            on_token(int(tokens[0]))
        ids[live, t] = tokens
        log_probs[live, t] = scores.gather(1, tokens[:, None]).squeeze(1)
        lengths[live] += ~finished[live]
        finished[live] |= torch.isin(tokens, stop)
        unfinished = (~finished[live]).nonzero().squeeze(1)
        if len(unfinished) == 0 or t + 1 == max_new_tokens:
            break
        if len(unfinished) <= 0.75 * len(live):  # a smaller batch is worth copying the cache for
            cache.select(unfinished)
            live, tokens = live[unfinished], tokens[unfinished]
        logits = model(tokens[:, None], cache=cache)[:, 0]  # (live, V)

    columns = zip(ids.tolist(), log_probs.tolist(), lengths.tolist(), finished.tolist())
    flat = [Completion(i[:n], p[:n], done) for i, p, n, done in columns]
    return [flat[i : i + num_generations] for i in range(0, total, num_generations)]


def check_sampling(
    max_new_tokens: int, num_generations: int, temperature: float, top_k: int, top_p: float
) -> None:
    """Raise InputError if a sampling setting is out of range."""
    if max_new_tokens < 1 or num_generations < 1:
        raise InputError("max_new_tokens and num_generations must be at least 1")
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise InputError("need temperature >= 0, top_k >= 0 and 0 < top_p <= 1")


def mix_seed(*parts: int | str) -> int:
    """A seed for one use of randomness, unrelated to the seeds of all others: 63 bits."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform_numbers(seed: int, rows: int, columns: int) -> Tensor:
    """(rows, columns) numbers in [0, 1) from `seed` alone, on the CPU, the same on any device."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


def prefill(
    model: Transformer, prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, KVCache]:
    """Run ragged prompts through the model: logits after each one's last token, (B, V); cache."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in zip(ids, prompts):
        row[: len(prompt)] = torch.tensor(prompt)
    cache = KVCache(len(prompts), device)
    rows = torch.arange(len(prompts), device=device)
    logits = model(
        ids.to(device),
        cache=cache,
        head=lambda hidden, logits: logits(hidden[rows, lengths - 1]),
    )
    cache.lengths = lengths  # not the padded length: the next token overwrites the padding
    return logits, cache


def draw(scores: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """One token per row by inverting the cumulative distribution: (R, V), (R,) -> (R,).

    scores: log-probabilities. In fp64, where a cumulative sum is exact enough that a token of
    probability 0 is never drawn.
    """
    if temperature == 0:
        return scores.argmax(-1)
    probs = scores.double().exp()
    if top_k or top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        if top_k:
            ordered[:, top_k:] = 0
            ordered /= ordered.sum(-1, keepdim=True)
        # Keep the fewest tokens that reach top_p together: those with less than that before them.
        ordered *= ordered.cumsum(-1) - ordered < top_p
        probs = torch.zeros_like(probs).scatter(1, order, ordered)
    cumulative = probs.cumsum(-1)  # (R, V)
    target = uniform.double() * cumulative[:, -1]
    return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)


# ------------------------------------------------------------------------------------- command line


def setting(
    default: Any,
    help: str,
    choices: Sequence[str] | None = None,
    minimum: float = 0,
    maximum: float = math.inf,
) -> Any:
    """A field of a settings dataclass: its default, a line that explains it, what it may be.

    minimum and maximum bound numbers, which must be finite.
    """
    limits = {"minimum": minimum, "maximum": maximum}
    return field(default=default, metadata={"help": help, "choices": choices, **limits})


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


S = typing.TypeVar("S")


def parse_settings(
    cls: type[S], prog: str, arguments: Sequence[str], lab: dict[str, Any] | None = None
) -> S:
    """Settings `cls` from the command line, one `--name value` per field of the dataclass.

    lab: the defaults that change when no `--model_name_or_path` is given. Raises InputError for an
    unknown setting or a value of the wrong kind.
    """
    parser = OneLineParser(prog=prog, description=cls.__doc__, allow_abbrev=False)
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        kind = next(t for t in typing.get_args(hints[f.name]) or (hints[f.name],) if t)
        shown = f"{f.metadata['help']} (default: {f.default}"
        shown += f"; lab: {lab[f.name]})" if lab and f.name in lab else ")"
        options: dict[str, Any] = {"type": kind, "choices": f.metadata["choices"]}
        if kind is bool:
            options |= {"type": parse_bool, "nargs": "?", "const": True}
        parser.add_argument(
            f"--{f.name}", help=shown.replace("%", "%%"), default=argparse.SUPPRESS, **options
        )
    given = vars(parser.parse_args(arguments))
    for f in dataclasses.fields(cls):
        value, low, high = given.get(f.name), f.metadata["minimum"], f.metadata["maximum"]
        if type(value) in (int, float) and not (low <= value <= high and math.isfinite(value)):
            upper = f" and at most {high}" if high < math.inf else ""
            raise InputError(f"--{f.name} {value}: must be at least {low}{upper}")
    base = lab if lab and "model_name_or_path" not in given else {}
    return cls(**{**base, **given})


def parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def run_command(main: Callable[[], None]) -> None:
    """Run a command; bad input becomes one line on standard error and exit code 2."""
    try:
        main()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        if is_main_process():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@dataclass
class SampleSettings:
    """Answer one prompt, a file of prompts, or whatever is typed into an interactive chat."""

    model_name_or_path: str = setting("runs/lab/hgpo", "model folder")
    prompt: str | None = setting(None, "answer this and stop")
    prompt_file: str | None = setting(None, "answer every line of this file; prints JSON lines")
    mode: str = setting("auto", "auto lets the model choose", ("auto", *MODES))
    num_generations: int = setting(1, "responses per prompt", minimum=1)
    max_completion_length: int = setting(1024, "tokens a response may have", minimum=1)
    temperature: float = setting(0.6, "0 is greedy")
    top_k: int = setting(0, "keep the k likeliest tokens; 0: all")
    top_p: float = setting(0.95, "keep the likeliest tokens with this probability", None, 1e-6, 1)
    batch_size: int = setting(64, "prompts sampled at once", minimum=1)
    seed: int = setting(0, "the same seed gives the same responses")


def main() -> None:
    settings = parse_settings(SampleSettings, "sample.py", sys.argv[1:])
    if settings.prompt is not None and settings.prompt_file is not None:
        raise InputError("give --prompt or --prompt_file, not both")
    if settings.prompt is not None and not settings.prompt.strip():
        raise InputError("--prompt is empty")
    folder = Path(settings.model_name_or_path)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder (`python hgpo.py` trains runs/lab/hgpo)")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer.from_pretrained(folder)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = Transformer.from_pretrained(folder, dtype=dtype, device=device)
    model.fit_vocabulary(tokenizer)

    def answer(prompts: list[str], seed: int, **options: Any) -> list[list[Completion]]:
        return generate(
            model,
            [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in prompts],
            modes=[None if settings.mode == "auto" else settings.mode] * len(prompts),
            max_new_tokens=settings.max_completion_length,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            eos_ids=tokenizer.eos_ids,
            think_id=tokenizer.think_id,
            no_think_id=tokenizer.no_think_id,
            seed=mix_seed(settings.seed, seed),
            **options,
        )

    def text_of(completion: Completion) -> str:
        return tokenizer.decode(completion.ids[: -1 if completion.finished else None])

    if settings.prompt_file is not None:
        try:
            prompts = Path(settings.prompt_file).read_text(encoding="utf-8")
            prompts = prompts.removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{settings.prompt_file}: {error}") from None
        if empty := [n for n, prompt in enumerate(prompts, 1) if not prompt.strip()]:
            raise InputError(f"{settings.prompt_file}:{empty[0]}: empty prompt")
        starts = range(0, len(prompts), settings.batch_size)
        for i in tqdm(starts, desc="sampling", unit="batch", disable=None):
            chunk = prompts[i : i + settings.batch_size]
            responses = answer(chunk, i, num_generations=settings.num_generations)
            for prompt, completions in zip(chunk, responses):
                row = {"prompt": prompt, "responses": [text_of(c) for c in completions]}
                print(json.dumps(row, ensure_ascii=False))
    elif settings.prompt is not None:
        responses = answer([settings.prompt], 0, num_generations=settings.num_generations)
        for completion in responses[0]:
            print(text_of(completion) + ("" if completion.finished else " [cut]"))
    else:
        chat(tokenizer, answer)


def chat(tokenizer: Tokenizer, answer: Callable[..., list[list[Completion]]]) -> None:
    """Read questions until end of input; stream each answer under the mode that was chosen."""
    print("Each question stands alone. /exit or Ctrl-D ends.")
    for turn in range(sys.maxsize):
        try:
            question = input("\n> ").strip()
        except EOFError:
            return
        if question == "/exit":
            return
        if question:
            completion = answer([question], turn, on_token=streamer(tokenizer))[0][0]
            print("" if completion.finished else " [cut]")


def streamer(tokenizer: Tokenizer) -> Callable[[int], None]:
    """A function that prints a response token by token, the mode first."""
    decoder = DecodeStream(skip_special_tokens=False)
    opened = False

    def show(token: int) -> None:
        nonlocal opened
        if not opened:
            names = {tokenizer.think_id: "thinking", tokenizer.no_think_id: "not thinking"}
            print(f"[{names.get(token, 'opened with neither tag')}] ", end="", flush=True)
            opened = True
        if token not in tokenizer.eos_ids:
            print(decoder.step(tokenizer.backend, token) or "", end="", flush=True)

    return show


if __name__ == "__main__":
    run_command(main)
