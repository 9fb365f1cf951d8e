"""The conversation of sample.py in a terminal, and the prompts that it is given without one."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

from data.cli import InputError
from data.rows import JSON_LINES, prompt_of, read_rows, row_prompt
from data.tokenizer import Messages, Tokenizer

if TYPE_CHECKING:
    from sample import Completion


def read_prompts(prompt: str | None, prompt_file: str | None) -> list[str | Messages] | None:
    """What is to be answered, or None for a chat. A file has a prompt on each line, or, if its name
    ends in .jsonl or .jsonl.gz, rows with prompts."""
    if prompt_file is not None and JSON_LINES.search(prompt_file):
        return [prompt_of(row) for where, row in read_rows(prompt_file) if row_prompt(row, where)]
    if prompt_file is not None:
        try:
            lines = Path(prompt_file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{prompt_file}: {error}") from None
        if not lines.strip():
            raise InputError(f"{prompt_file}: no prompts")
        prompts = lines.removesuffix("\n").split("\n")
        if empty := [n for n, prompt in enumerate(prompts, 1) if not prompt.strip()]:
            raise InputError(f"{prompt_file}:{empty[0]}: empty prompt")
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


COMMANDS = "/think, /no_think and /auto set the mode, /new starts a new conversation, /exit ends."


def chat(
    tokenizer: Tokenizer,
    answer: Callable[..., Completion],
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
                completion = answer(conversation, turn, mode, streamer(tokenizer))
            except KeyboardInterrupt:
                print(" [stopped: this turn is forgotten]")
                continue
            except InputError as error:
                print(f"[{error}]")
                continue
            text, seconds = completion.text(tokenizer), time.perf_counter() - began
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
