"""Batched, KV-cached sampling, the mode forced (Eq. 1, 5) or chosen by the model; a chat.

    python sample.py --model_name_or_path runs/lab/hgpo --prompt "7+5-3="
    python sample.py --model_name_or_path runs/lab/hgpo --prompt_file questions.txt --mode think
    python sample.py --model_name_or_path runs/lab/hgpo                 # chat
    echo "7+5-3=" | python sample.py --model_name_or_path runs/lab/hgpo

Shapes: R rows = prompts × num_generations, V vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from data.cli import InputError, parse_settings, run_command, setting
from data.modes import MODES
from data.tokenizer import SAMPLING, Messages, Tokenizer
from model import KVCache, Transformer

MAX_TOKENS = 2**20  # largest max_new_tokens: memory for all the tokens is allocated beforehand
SMALLER_BATCH = 0.75  # share of unfinished rows at which a smaller batch is worth copying the cache
NO_TOKEN = -1  # in the place of a tag, where none is forced


@dataclass
class Completion:
    """One sampled response."""

    ids: list[int]  # the mode tag first, the stop token last if there is one
    log_probs: list[float]  # of each id at the sampling temperature, before top-k and top-p
    finished: bool  # ended in a stop token; otherwise it was cut at max_new_tokens


@torch.no_grad()
def generate(
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
    on_token: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """Sample `num_generations` responses to each of `prompts`: a ~ P(a | q, m) of Eq. 1.

    modes: for each prompt the mode whose tag opens its responses (Eq. 1, 5), or None: the model
    chooses (the π(q) of Eq. 3, the m_p of Eq. 13). The tag is token t = 1 of a response (index 0),
    and its log-prob is the model's own even where it is forced. temperature 0 is greedy (log-probs
    are then those at temperature 1); top_k 0 and top_p 1 are off. seed: one for the call, or one
    for each prompt. A prompt's responses depend on its own seed (or on the call's, and its place),
    not on the others. on_token is called with each id as it is drawn, for a single response.
    Raises InputError for settings that make no sense.
    """
    modes = [None] * len(prompts) if modes is None else modes
    seeds = [mix_seed(seed, i) for i in range(len(prompts))] if isinstance(seed, int) else seed
    if max_new_tokens < 1 or num_generations < 1:
        raise InputError("max_new_tokens and num_generations must be at least 1")
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise InputError("need temperature >= 0, top_k >= 0 and 0 < top_p <= 1")
    if not prompts:
        return []
    if not len(prompts) == len(modes) == len(seeds):
        raise InputError("prompts, modes and seeds must be equally many")
    if any(len(prompt) == 0 for prompt in prompts):
        raise InputError("a prompt needs at least one token")
    if unknown := set(modes) - {*MODES, None}:
        raise InputError(f"unknown mode {unknown.pop()!r}: think, no_think or None")

    # 1. One uniform number for each response and token, drawn beforehand from the prompt's own
    #    seed: so a response does not depend on what else is in the batch.
    device = next(model.parameters()).device
    uniform = torch.stack([uniform_numbers(s, num_generations, max_new_tokens) for s in seeds])
    uniform = uniform.flatten(0, 1).to(device)  # (R, max_new_tokens)
    stop = torch.tensor(tokenizer.eos_ids, device=device)
    tags = {"think": tokenizer.think_id, "no_think": tokenizer.no_think_id, None: NO_TOKEN}
    forced = torch.tensor([tags[mode] for mode in modes], device=device)
    forced = forced.repeat_interleave(num_generations)  # (R,)

    # 2. Prefill each distinct prompt once, then fan its cache out to all of its responses.
    distinct = {tuple(prompt): None for prompt in prompts}
    place = {prompt: i for i, prompt in enumerate(distinct)}
    logits, cache = prefill(model, list(distinct), max_new_tokens, device)
    rows = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)
    rows = rows.repeat_interleave(num_generations)  # (R,)
    cache.select(rows)
    logits = logits[rows]  # (R, V): every response draws its own first token

    # 3. Draw a token for every unfinished response and feed it back, until all have finished.
    total = len(rows)
    ids = torch.zeros(total, max_new_tokens, dtype=torch.long, device=device)
    log_probs = torch.zeros(total, max_new_tokens, device=device)
    lengths = torch.zeros(total, dtype=torch.long, device=device)
    finished = torch.zeros(total, dtype=torch.bool, device=device)
    live = torch.arange(total, device=device)  # the responses that the cache's rows belong to
    for t in range(max_new_tokens):
        choices = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)  # (live, V)
        tokens = draw(choices, uniform[live, t], temperature, top_k, top_p)  # Eq. 1
        if t == 0:  # the mode tag
            tokens = torch.where(forced == NO_TOKEN, tokens, forced)  # Eq. 5
        if on_token is not None:
            on_token(int(tokens[0]))
        ids[live, t] = tokens
        log_probs[live, t] = choices.gather(1, tokens[:, None]).squeeze(1)  # log π(o_t)
        lengths[live] += ~finished[live]
        finished[live] |= torch.isin(tokens, stop)
        unfinished = (~finished[live]).nonzero().squeeze(1)
        if len(unfinished) == 0 or t + 1 == max_new_tokens:
            break
        if len(unfinished) <= SMALLER_BATCH * len(live):
            cache.select(unfinished)
            live, tokens = live[unfinished], tokens[unfinished]
        logits = model(tokens[:, None], cache=cache)[:, 0]  # (live, V)
    if log_probs.isnan().any():
        raise InputError("the model's logits are not numbers: its weights are damaged")

    columns = zip(ids.tolist(), log_probs.tolist(), lengths.tolist(), finished.tolist())
    flat = [Completion(i[:n], p[:n], done) for i, p, n, done in columns]
    return [flat[i : i + num_generations] for i in range(0, total, num_generations)]


def mix_seed(*parts: int | str) -> int:
    """A seed of 63 bits for one use of randomness: other parts give an unrelated seed."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform_numbers(seed: int, rows: int, columns: int) -> Tensor:
    """(rows, columns) numbers in [0, 1) from `seed` alone, on the CPU, the same on any device."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


def prefill(
    model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int, device: torch.device
) -> tuple[Tensor, KVCache]:
    """Run ragged prompts through the model: logits after each one's last token, (B, V); cache."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)  # (B, T)
    cache = KVCache(len(prompts), ids.shape[1] + max_new_tokens, device)
    rows = torch.arange(len(prompts), device=device)
    logits = model(
        ids.to(device),
        cache=cache,
        head=lambda hidden: model.logits(hidden[rows, lengths - 1]),
    )
    cache.lengths = lengths  # not the padded length: the next token overwrites the padding
    return logits, cache


def draw(
    log_probs: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float
) -> Tensor:
    """Draw a token for each row by inverting the cumulative distribution: (R, V), (R,) -> (R,).

    In fp64, where a cumulative sum is exact enough that a token of probability 0 is never drawn.
    """
    if temperature == 0:
        return log_probs.argmax(-1)
    probs = log_probs.double().exp()
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
    tokens = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)
    return tokens.clamp_max(probs.shape[-1] - 1)  # where NaN stands, there is no such place


# ------------------------------------------------------------------------------------- command line


@dataclass
class SampleSettings:
    """Answer a prompt, a file of prompts, or standard input: in a terminal, a chat."""

    model_name_or_path: str = setting("runs/lab/hgpo", "model folder")
    prompt: str | None = setting(None, "answer this and stop")
    prompt_file: str | None = setting(None, "answer every line of this file; prints JSON lines")
    system: str | None = setting(None, "system message of every conversation")
    mode: str = setting("auto", "mode of every answer; auto: the model chooses", ("auto", *MODES))
    num_generations: int = setting(1, "responses to each prompt")
    max_completion_length: int = setting(1024, "most tokens of a response", maximum=MAX_TOKENS)
    temperature: float = setting(SAMPLING["temperature"], "sampling temperature; 0 is greedy")
    top_k: int = setting(SAMPLING["top_k"], "sample from the k likeliest tokens; 0: from all")
    top_p: float = setting(SAMPLING["top_p"], "top-p: probability to sample from", None, 1e-6, 1)
    batch_size: int = setting(64, "prompts that are answered at once")
    seed: int = setting(0, "seed of the sampling: the same one gives the same responses")


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
        conversations: Sequence[Messages],
        seed: int,
        mode: str,
        num_generations: int = 1,
        on_token: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        return generate(
            model,
            tokenizer,
            [tokenizer.encode_chat([*system, *messages]) for messages in conversations],
            modes=[None if mode == "auto" else mode] * len(conversations),
            num_generations=num_generations,
            max_new_tokens=settings.max_completion_length,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=mix_seed(settings.seed, seed),
            on_token=on_token,
        )

    if prompts is None:
        return chat(tokenizer, answer, settings.mode, model.config.max_position_embeddings)
    starts = range(0, len(prompts), settings.batch_size)
    alone = settings.prompt_file is None
    bar = tqdm(starts, desc="sampling", unit="batch", disable=True if alone else None)
    for i in bar:
        chunk = prompts[i : i + settings.batch_size]
        conversations = [[{"role": "user", "content": prompt}] for prompt in chunk]
        responses = answer(conversations, i, settings.mode, settings.num_generations)
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
    """A conversation in the terminal, until the input ends; each answer is shown as it comes, under
    its mode. Ctrl-C stops an answer, which is then forgotten; where none runs, it ends the chat."""
    with contextlib.suppress(ImportError):  # line editing and history, where there is the library
        importlib.import_module("readline")
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
            conversation = [*messages, {"role": "user", "content": line}]
            began = time.perf_counter()
            try:
                [[completion]] = answer([conversation], turn, mode, on_token=streamer(tokenizer))
            except KeyboardInterrupt:
                print(" [stopped: this turn is forgotten]")
                continue
            except InputError as error:
                print(f"[{error}]")
                continue
            text, seconds = response_text(tokenizer, completion), time.perf_counter() - began
            messages = [*conversation, {"role": "assistant", "content": text}]
            cut, count = "" if completion.finished else "cut, ", len(completion.ids)
            print(f" [{cut}{count} tokens, {count / seconds:.0f}/s]")
            if len(tokenizer.encode_chat(messages)) > max_tokens:
                print(f"[longer than the {max_tokens} tokens the model was made for: /new?]")


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
