"""What every command needs: settings from a dataclass, errors in one line, JSON files."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import dataclasses
import difflib
import hashlib
import inspect
import json
import math
import os
import re
import socket
import sys
import typing
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = typing.TypeVar("S", bound="DataclassInstance")


class InputError(ValueError):
    """Something that the user gave is wrong. A command prints it as one line and exits with 2."""


def mix_seed(*parts: int | str) -> int:
    """A seed of 63 bits for one use of randomness: other parts give an unrelated seed."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def end_quietly(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Ctrl-C before `run_command` has begun: while packages are imported."""
    if not issubclass(kind, KeyboardInterrupt) or hasattr(sys, "ps1"):  # at Python's own prompt
        return sys.__excepthook__(kind, error, trace)
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = end_quietly

# ----------------------------------------------------------------------------------------- settings

LAB_MODEL = "runs/lab/hgpo"  # what the demo leaves; the default of what reads a model


def setting(
    default: Any,
    help: str,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float = math.inf,
) -> Any:
    """A field of a settings dataclass: its default, a line that explains it, what it may be.

    minimum and maximum are the bounds of a number, which must also be finite. Without a minimum,
    a number must not be negative; a whole number must not be 0 either, unless its default is. No
    whole number may be 2^31 or more.
    """
    if minimum is None:
        minimum = 1 if type(default) is int and default > 0 else 0
    if type(default) is int:
        maximum = min(maximum, 2**31 - 1)
    limits = {"minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, **limits})


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors."""

    def error(self, message: str) -> typing.NoReturn:
        hint = ""
        if message.startswith("unrecognized"):
            given = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
            known = [*self._option_string_actions]
            near = [name for g in given for name in difflib.get_close_matches(g, known, 1, 0.7)]
            hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"{message} ({hint}see {self.prog} --help)")


def parse_settings(
    cls: type[S], prog: str, arguments: Sequence[str], lab: dict[str, Any] | None = None
) -> S:
    """Read settings of the class `cls` from the command line: `--name value` for each field.

    lab: the defaults that change when no `--model_name_or_path` is given. Raises InputError for an
    unknown setting, and for a value that it cannot have.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    given = vars(make_parser(cls, prog, lab or {}).parse_args(arguments))
    for f in fields.values():
        value, low, high = given.get(f.name), f.metadata["minimum"], f.metadata["maximum"]
        if isinstance(value, str) and not value:
            raise InputError(f"--{f.name} is empty")
        if isinstance(value, str) and (
            "\0" in value or value != value.encode(errors="ignore").decode()
        ):
            raise InputError(f"--{f.name}: not a text in UTF-8")
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if not (low <= value <= high and math.isfinite(value)):
            upper = f" and at most {high}" if high < math.inf else ""
            raise InputError(f"--{f.name} {value}: must be at least {low}{upper}")
    base = lab if lab and "model_name_or_path" not in given else {}
    for name, f in fields.items():
        if name.endswith("_name_or_path") and (folder := given.get(name, f.default)):
            check_folder(folder)
    return cls(**{**base, **given})


def make_parser(cls: type[S], prog: str, lab: dict[str, Any]) -> OneLineParser:
    """A parser whose help shows the docstring of `cls`, and its settings in groups: by the class
    that they come from, under the first sentence of that one's docstring."""
    parser = OneLineParser(
        prog=prog, usage=f"{prog} [--setting value …]", description=inspect.getdoc(cls),
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    hints = typing.get_type_hints(cls)
    unplaced = {f.name: f for f in dataclasses.fields(cls)}
    for owner in filter(dataclasses.is_dataclass, cls.__mro__):
        title = "settings" if owner is cls else purpose(owner).rstrip(".")
        group = parser.add_argument_group(title)
        own = inspect.get_annotations(owner)
        for f in [unplaced.pop(name) for name in own if name in unplaced]:
            kind = next(t for t in typing.get_args(hints[f.name]) or (hints[f.name],) if t)
            defaults = [] if f.default is None else [f"default: {f.default}"]
            defaults += [f"lab: {lab[f.name]}"] if f.name in lab else []
            shown = f.metadata["help"] + (f" ({'; '.join(defaults)})" if defaults else "")
            options: dict[str, Any] = {"type": kind, "choices": f.metadata["choices"]}
            if options["choices"] is None:
                options["metavar"] = {int: "N", float: "X", bool: "true|false"}.get(kind, "…")
            if kind is bool:
                options |= {"type": parse_bool, "nargs": "?", "const": True}
            group.add_argument(
                f"--{f.name}", help=shown.replace("%", "%%"), default=argparse.SUPPRESS, **options
            )
    return parser


def check_folder(name: str) -> None:
    """Raise InputError if there is no such folder, saying how a model of the hub is fetched."""
    if Path(name).is_dir():
        return
    hint = "" if name != LAB_MODEL else ": `python hgpo.py` makes it"
    if re.fullmatch(r"[\w.-]+/[\w.-]+/?", name) and not Path(name).parent.exists():
        fetch = f"hf download {name} --local-dir {Path(name).name}"
        hint = f"; if it is a model of the Hugging Face Hub: pip install huggingface_hub && {fetch}"
    raise InputError(f"{name}: no such folder{hint}")


def parse_bool(text: str) -> bool:
    """The value of a flag that is given as `--flag true` or `--flag false`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


# ----------------------------------------------------------------------------------------- commands


def run_subcommand(prog: str, commands: dict[str, tuple[Any, ...]]) -> None:
    """Run the command that the first argument names: (settings class, function[, lab defaults])."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        lines = [f"  {name:10}{purpose(cls)}" for name, (cls, *_) in commands.items()]
        return print("\n".join([f"usage: {prog} COMMAND …; {prog} COMMAND --help", "", *lines]))
    if name not in commands:
        raise InputError(f"{name!r} is no command: expected {prog} {' or '.join(commands)}")
    cls, function, *lab = commands[name]
    function(parse_settings(cls, f"{prog} {name}", sys.argv[2:], *lab))


def purpose(cls: type) -> str:
    """The first sentence of a class' docstring."""
    first = (cls.__doc__ or "").partition("\n\n")[0]
    return re.split(r"(?<=[.]) (?=[A-Z])", " ".join(first.split()))[0]


SIGNS = {"█": "#", "░": ".", "–": "-", "…": "...", "·": "*", "≥": ">=", "±": "+-"}
SIGNS |= dict(zip("▁▂▃▄▅▆▇", "_.-=+*%"))


def in_other_signs(error: UnicodeError) -> tuple[str, int]:
    """What a console shows in the place of characters that it does not have: alpha for α, a `?` for
    most."""
    assert isinstance(error, UnicodeEncodeError)
    shown = ""
    for sign in error.object[error.start : error.end]:
        name = unicodedata.name(sign, "")
        greek = name.startswith("GREEK SMALL LETTER")
        shown += SIGNS.get(sign, name.rpartition(" ")[2].lower() if greek else "?")
    return shown, error.end


codecs.register_error("other_signs", in_other_signs)


def in_words(error: Exception) -> str:
    """What an error says; that of a file without its number, and with its name once."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def run_command(main: Callable[[], None]) -> None:
    """Run a command. Bad input becomes one line on standard error and exit code 2, Ctrl-C one line
    and 130."""
    code: int | None = None
    line = ""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="other_signs")  # type: ignore[union-attr]
    try:
        main()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        code, line = 2, f"error: {in_words(error)}"
    except KeyboardInterrupt as stop:
        code, line = getattr(stop, "code", 130), str(stop) or "interrupted"
        line = line if os.environ.get("RANK", "0") == "0" else ""
    if line:  # the exception is gone by now, and with it all progress bars that were open
        print(f"{whoami()}{line}", file=sys.stderr, flush=True)
    if code is not None:
        sys.stdout.flush()
        if among_several():
            os._exit(code)  # without a clean-up that would wait for the other processes
        sys.exit(code)


def environment_number(name: str, default: int) -> int:
    """A number that torchrun sets in the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"{name}={text}: expected a number, as torchrun sets it")
    return int(text)


def among_several() -> bool:
    """Whether torchrun started this process beside others."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def whoami() -> str:
    """What a line of a process among several begins with: rank and host, in a new line, since the
    first process may have a progress bar in this one."""
    if not among_several():
        return ""
    return f"\n[rank {os.environ.get('RANK')} on {socket.gethostname()}] "


def is_main_process() -> bool:
    """True on rank 0, and where there is only one process."""
    return environment_number("RANK", 0) == 0


def dimming() -> tuple[str, str]:
    """What makes the text between the two dim, where standard output is a terminal."""
    return ("\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "")


def progress(items: Any, description: str, **options: Any) -> tqdm:
    """A progress bar, shown by rank 0 only."""
    return tqdm(items, desc=description, disable=not is_main_process(), mininterval=0.5, **options)


# --------------------------------------------------------------------------------------- JSON files


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file that may be hostile. An InputError names the file."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\u" in text:  # an escape may hide half a surrogate pair
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value


@contextlib.contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Name the file in an error of the operating system: that of a write names none."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def write_bytes(path: Path, contents: bytes) -> None:
    """Write a file at once: whoever opens it sees the old contents or the new, never half."""
    partial = path.with_name(f".{path.name}.partial")
    with named(path):
        partial.write_bytes(contents)
        os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file at once."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_row(row: Any, file: IO[str]) -> None:
    """Write one line of JSON."""
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: Iterable[Any], mode: str = "w") -> None:
    """Write each row as a line of JSON; mode "a" appends to the file."""
    with named(path), open(path, mode, encoding="utf-8") as file:
        for row in rows:
            write_row(row, file)
