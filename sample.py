"""Batched, KV-cached sampling, the mode forced (Eq. 1, 5, 6) or left to the model; a small chat.

    python sample.py --model_name_or_path runs/lab/hgpo --prompt "7+5-3="
    python sample.py --model_name_or_path runs/lab/hgpo --prompt_file questions.txt --mode think
    python sample.py --model_name_or_path runs/lab/hgpo                 # chat
    echo "7+5-3=" | python sample.py --model_name_or_path runs/lab/hgpo

Shapes: R rows = prompts × num_generations, V vocabulary.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from tqdm import tqdm

from model import SAMPLING, InputError, KVCache, Tokenizer, Transformer, is_main_process

MODES = ("think", "no_think")  # ⊢ and ⊬; a mode's number is its place here
MAX_TOKENS = 2**20  # that a response may have, for the sake of memory
Messages = list[dict[str, str]]  # a conversation


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
            tokens = torch.where(forced >= 0, forced, tokens)  # Eq. 5
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
    """Answer one prompt, a file of prompts, or what comes on standard input: a chat if that is a
    terminal, else one prompt."""

    model_name_or_path: str = setting("runs/lab/hgpo", "model folder")
    prompt: str | None = setting(None, "answer this and stop")
    prompt_file: str | None = setting(None, "answer every line of this file; prints JSON lines")
    system: str | None = setting(None, "system message of every conversation")
    mode: str = setting("auto", "auto lets the model choose", ("auto", *MODES))
    num_generations: int = setting(1, "responses per prompt", minimum=1)
    max_completion_length: int = setting(
        1024, "tokens a response may have", minimum=1, maximum=MAX_TOKENS
    )
    temperature: float = setting(SAMPLING["temperature"], "0 is greedy")
    top_k: int = setting(SAMPLING["top_k"], "keep the k likeliest tokens; 0: all")
    top_p: float = setting(
        SAMPLING["top_p"], "keep the likeliest tokens with this probability", None, 1e-6, 1
    )
    batch_size: int = setting(64, "prompts sampled at once", minimum=1)
    seed: int = setting(0, "the same seed gives the same responses")


def main() -> None:
    settings = parse_settings(SampleSettings, "sample.py", sys.argv[1:])
    if settings.prompt is not None and settings.prompt_file is not None:
        raise InputError("give --prompt or --prompt_file, not both")
    folder = Path(settings.model_name_or_path)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder (`python hgpo.py` trains runs/lab/hgpo)")
    prompts = read_prompts(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer.from_pretrained(folder)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = Transformer.from_pretrained(folder, dtype=dtype, device=device)
    model.fit_vocabulary(tokenizer)
    system = [{"role": "system", "content": settings.system}] if settings.system else []

    def answer(
        conversations: Sequence[Messages], seed: int, mode: str, **options: Any
    ) -> list[list[Completion]]:
        return generate(
            model,
            [tokenizer.encode_chat([*system, *messages]) for messages in conversations],
            modes=[None if mode == "auto" else mode] * len(conversations),
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

    if prompts is None:
        return chat(tokenizer, answer, settings.mode, model.config.max_position_embeddings)
    starts = range(0, len(prompts), settings.batch_size)
    alone = settings.prompt_file is None
    bar = tqdm(starts, desc="sampling", unit="batch", disable=True if alone else None)
    for i in bar:
        chunk = prompts[i : i + settings.batch_size]
        conversations = [[{"role": "user", "content": prompt}] for prompt in chunk]
        n = settings.num_generations
        responses = answer(conversations, i, settings.mode, num_generations=n)
        for prompt, completions in zip(chunk, responses):
            texts = [response_text(tokenizer, completion) for completion in completions]
            if not alone:
                print(json.dumps({"prompt": prompt, "responses": texts}, ensure_ascii=False))
                continue
            for completion, text in zip(completions, texts):
                print(text + ("" if completion.finished else " [cut]"))


def read_prompts(settings: SampleSettings) -> list[str] | None:
    """What is to be answered, or None for a chat."""
    if settings.prompt_file is not None:
        try:
            lines = Path(settings.prompt_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{settings.prompt_file}: {error}") from None
        prompts = lines.removesuffix("\n").split("\n")
        if empty := [n for n, prompt in enumerate(prompts, 1) if not prompt.strip()]:
            raise InputError(f"{settings.prompt_file}:{empty[0]}: empty prompt")
        return prompts
    if settings.prompt is not None:
        prompt, source = settings.prompt, "--prompt"
    elif sys.stdin is None:
        raise InputError("no standard input: give --prompt")
    elif sys.stdin.isatty():
        return None
    else:
        try:
            prompt, source = sys.stdin.read().removesuffix("\n"), "standard input"
        except UnicodeDecodeError as error:
            raise InputError(f"standard input: {error}") from None
    if not prompt.strip():
        raise InputError(f"{source} is empty")
    return [prompt]


def response_text(tokenizer: Tokenizer, completion: Completion) -> str:
    """The text of a response, without its stop token."""
    return tokenizer.decode(completion.ids[: -1 if completion.finished else None])


COMMANDS = "/think, /no_think and /auto set the mode, /new starts a new conversation, /exit ends."


def chat(
    tokenizer: Tokenizer,
    answer: Callable[..., list[list[Completion]]],
    mode: str,
    max_tokens: int,
) -> None:
    """A conversation in the terminal, until end of input; streams each answer under its mode.

    Ctrl-C ends an answer, which is then forgotten, and the chat where there is none.
    """
    with contextlib.suppress(ImportError):  # line editing and history, where there is the library
        import readline  # noqa: F401
    print(COMMANDS)
    messages: Messages = []
    for turn in range(sys.maxsize):
        try:
            line = input(f"\n{mode}> ").strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            print(f"[{error}]")
            continue
        if line == "/exit":
            return
        elif line in ("/auto", "/think", "/no_think"):
            mode = line[1:]
        elif line == "/new":
            messages = []
        elif line.startswith("/"):
            print(COMMANDS)
        elif line:
            question = {"role": "user", "content": line}
            began = time.perf_counter()
            try:
                conversation = [*messages, question]
                with interrupted_between_tokens(streamer(tokenizer)) as show:
                    completion = answer([conversation], turn, mode, on_token=show)[0][0]
            except KeyboardInterrupt:
                print(" [stopped: this turn is forgotten]")
                continue
            except InputError as error:
                print(f"[{error}]")
                continue
            text, seconds = response_text(tokenizer, completion), time.perf_counter() - began
            messages = [*conversation, {"role": "assistant", "content": text}]
            cut = "" if completion.finished else "cut, "
            print(f" [{cut}{len(completion.ids)} tokens, {len(completion.ids) / seconds:.0f}/s]")
            if len(tokenizer.encode_chat(messages)) > max_tokens:
                print(f"[longer than the {max_tokens} tokens the model was made for: /new?]")


@contextlib.contextmanager
def interrupted_between_tokens(show: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """`show`, which now also raises KeyboardInterrupt if Ctrl-C was pressed before.

    At any moment it might be raised in a destructor, where Python swallows it. Pressed again, it is
    raised at once.
    """
    pressed = False

    def note(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    def show_or_stop(token: int) -> None:
        if pressed:
            raise KeyboardInterrupt
        show(token)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield show_or_stop
    finally:
        signal.signal(signal.SIGINT, before)


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
