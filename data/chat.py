"""How sample.py talks: the chat in a terminal, and its answers to given prompts without one."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers.decoders import DecodeStream
from tqdm import tqdm

from data import lab
from data.cli import InputError, dimming, named
from data.modes import parse_response
from data.rows import OF_ROWS, as_messages, prompt_of, read_rows, row_prompt
from data.tokenizer import Messages, Tokenizer

if TYPE_CHECKING:
    from sample import Completion, SampleSettings

# A function that answers conversations, each in a place of its own, in a mode. It returns the mode
# of each, and place and answers of one after the other.
Answers = Callable[..., Any]


def read_prompts(prompt: str | None, prompt_file: str | None) -> list[str | Messages] | None:
    """What is to be answered, or None for a chat. A file has a prompt on each line that is not
    blank, or, if it is one of rows by its name, rows with prompts."""
    if prompt_file is not None and OF_ROWS.search(prompt_file):
        return [prompt_of(row) for where, row in read_rows(prompt_file) if row_prompt(row, where)]
    if prompt_file is not None:
        try:
            with named(prompt_file):
                lines = Path(prompt_file).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{prompt_file}: {error}") from None
        if not (prompts := [line for line in lines.split("\n") if line.strip()]):
            raise InputError(f"{prompt_file}: no prompts")
        return [*prompts]
    source = "--prompt"
    if prompt is None and sys.stdin is None:
        raise InputError("no standard input: give --prompt")
    if prompt is None and sys.stdin.isatty():
        return None
    if prompt is None:
        try:
            prompt, source = sys.stdin.read().removesuffix("\n"), "standard input"
            prompt.encode()  # undecodable bytes may have become halves of surrogate pairs
        except UnicodeError as error:
            raise InputError(f"standard input is not UTF-8: {error}") from None
    if not prompt.strip():
        raise InputError(f"{source} is empty")
    return [prompt]


def answer_all(
    tokenizer: Tokenizer,
    answers: Answers,
    prompts: Sequence[str | Messages],
    settings: SampleSettings,
) -> None:
    """Print the answers to all prompts, in their order, as soon as they are there: those of a file
    as JSON lines, others as they are."""
    file, size = settings.prompt_file, 4 * settings.batch_size  # so many are encoded at a time
    routed, any_sign = settings.mode == "router", (sys.stdout.encoding or "").lower() == "utf-8"
    if lab.is_its_own(tokenizer.backend):
        lab.check_words(as_messages(prompt, "")[-1]["content"] for prompt in prompts)

    def said(prompt: str | Messages, mode: str, completions: list[Completion]) -> str:
        texts, cut = zip(*((c.text(tokenizer), not c.finished) for c in completions))
        if file:
            router = {"router": mode} if routed else {}
            row = {"prompt": prompt, **router, "responses": texts, "cut": cut}
            return json.dumps(row, ensure_ascii=not any_sign)
        chosen = f"[router: {mode}] " if routed else ""
        return "\n".join(chosen + t + (" [cut]" if c else "") for t, c in zip(texts, cut))

    with tqdm(None, "sampling", len(prompts), unit="prompt", disable=None if file else True) as bar:
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            modes, found = answers(
                [as_messages(prompt, "") for prompt in part],
                range(start, start + len(part)), settings.mode,
                num_generations=settings.num_generations, batch_size=settings.batch_size,
            )  # fmt: skip
            early: dict[int, list[Completion]] = {}  # answered before one that comes first
            shown = 0
            for place, completions in found:
                early[place] = completions
                bar.update()
                while shown in early:
                    bar.write(said(part[shown], modes[shown], early.pop(shown)))
                    sys.stdout.flush()
                    shown += 1


COMMANDS = (
    "/think, /no_think, /auto and /router set the mode, /hide and /show the reasoning, "
    "/new starts a new conversation, /help shows these, /exit ends."
)


def chat(tokenizer: Tokenizer, answers: Answers, mode: str, max_tokens: int) -> None:
    """A conversation in the terminal, until the input ends; each answer is shown as it comes, after
    its mode. Ctrl-C stops an answer, which is then forgotten; where none runs, it ends the chat if
    it comes twice."""
    with contextlib.suppress(ImportError):  # line editing and history, where there is the library
        importlib.import_module("readline")
    print(COMMANDS)
    of_the_lab = lab.is_its_own(tokenizer.backend)
    if of_the_lab:
        print(lab.KNOWN, "It answers the first question of a conversation best: /new.")
    messages: Messages = []
    hidden = asked_to_end = False
    for turn in range(sys.maxsize):
        try:
            line = input(f"\n{mode}> ").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if asked_to_end:
                return print()
            asked_to_end = True
            print("\n[Ctrl-C again ends the chat]")
            continue
        except UnicodeDecodeError as error:
            print(f"[{error}]")
            continue
        asked_to_end = False
        if line == "/exit":
            return
        elif line in ("/auto", "/think", "/no_think", "/router"):
            mode = line[1:]
        elif line in ("/hide", "/show"):
            hidden = line == "/hide"
            print("[reasoning is hidden]" if hidden else "[reasoning is shown]")
        elif line == "/new":
            messages = []
            print("[a new conversation]")
        elif line.startswith("/"):
            print(COMMANDS if line == "/help" else f"There is no {line}: {COMMANDS}")
        elif line:
            conversation = [*messages, {"role": "user", "content": line}]
            began = time.perf_counter()
            try:
                if of_the_lab:
                    lab.check_words([line])
                show = streamer(tokenizer, hidden)
                modes, found = answers([conversation], [turn], mode, on_token=show)
                if mode == "router":
                    print(f"[router: {modes[0]}] ", end="", flush=True)
                [(_, [completion])] = found
                text, seconds = completion.text(tokenizer), time.perf_counter() - began
                conversation = [*conversation, {"role": "assistant", "content": text}]
                cut = "" if completion.finished else "cut, "
                known = tokenizer.new_tags or parse_response(text).well_formed
                malformed, count = "" if known else "malformed, ", len(completion.ids)
                said = f"{cut}{malformed}{count} tokens, {count / seconds:.0f}/s"
                print(f"{dimming()[1]} [{said}]")
                if len(tokenizer.encode_chat(conversation)) > max_tokens:
                    print(f"[longer than the {max_tokens} tokens the model was made for: /new?]")
                messages = conversation
            except KeyboardInterrupt:
                print(f"{dimming()[1]} [stopped: this turn is forgotten]")
            except InputError as error:
                print(f"{dimming()[1]}[{error}]")


def streamer(tokenizer: Tokenizer, hidden: bool) -> Callable[[int], None]:
    """A function that prints a response token by token: the mode first, in place of its tags; then
    the reasoning, dimmed in a terminal, or left out if it shall be `hidden`; then the answer."""
    decoder = DecodeStream(skip_special_tokens=False)
    modes = {
        tokenizer.think_id: ("[thinking] ", "</think>"),
        tokenizer.no_think_id: ("[not thinking] ", "</no_think>"),
    }
    dim, not_dim = dimming()
    first: int | None = None  # token of the response
    end: int | None = None  # the tag that is to come

    def seen(token: int) -> str:
        nonlocal first, end
        before = ""
        if first is None:
            first = token
            if token in modes:
                name, tag = modes[token]
                end = tokenizer.backend.token_to_id(tag)
                return name + (dim if token == tokenizer.think_id else "")
            before = "" if tokenizer.new_tags else "[opened with neither tag] "
        thinks = first == tokenizer.think_id
        if token == end:
            end = None
            return (not_dim if hidden else f"{not_dim}\n") if thinks else ""
        if token in tokenizer.eos_ids:
            return before
        text = decoder.step(tokenizer.backend, token) or ""
        return before + ("" if hidden and thinks and end is not None else text)

    return lambda token: print(seen(token), end="", flush=True)
