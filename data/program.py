"""The process of the program: it does what the tests ask for, through the pipe."""

from __future__ import annotations

import atexit
import builtins
import collections
import contextlib
import copy
import importlib
import itertools
import math
import operator
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from data.pipe import HELD, Peer, Refused


def as_data(value: Any, base: type) -> Any:
    """What an object that derives from plain data is as such, whatever its class has redefined."""
    exact: dict[Any, Callable[[Any], Any]] = {
        int: int.__int__, float: float.__float__, str: str.__str__, dict: dict.items,
    }  # fmt: skip
    return base((exact.get(base) or vars(base)["__iter__"])(value))


def take(iterator: Iterator[Any], count: int) -> tuple[list[Any], BaseException | None]:
    """(at most `count` next items, the exception that came instead of one more or None)."""
    items: list[Any] = []
    try:
        for _ in range(count):
            items.append(next(iterator))
    except Exception as error:
        return items, error
    return items, None


OPERATORS = [
    "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and_",
    "or_", "xor",
]  # fmt: skip
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]
NUMBERS: dict[str, Callable[..., Any]] = {  # what makes a number, or a truth, of an object
    "abs": abs, "bool": bool, "int": int, "float": float, "complex": complex, "round": round,
    "index": operator.index, "trunc": math.trunc, "floor": math.floor, "ceil": math.ceil,
}  # fmt: skip
METHODS: dict[str, Callable[..., Any]] = {  # what else an object does by a method __…__
    "neg": operator.neg, "pos": operator.pos, "invert": operator.invert, "len": len, "str": str,
    "repr": repr, "hash": hash, "format": format, "iter": iter, "reversed": reversed,
    "getitem": operator.getitem, "setitem": operator.setitem, "delitem": operator.delitem,
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": lambda manager, kind, error, _: type(manager).__exit__(manager, kind, error, None),
    "instancecheck": lambda kind, value: isinstance(value, kind),
    "subclasscheck": lambda kind, other: issubclass(other, kind),
}  # fmt: skip
OTHERS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *arguments, **options: function(*arguments, **options),
    "get": getattr, "set": setattr, "del": delattr, "next": take, "data": as_data,
    "copy": copy.copy, "deepcopy": copy.deepcopy,
    "send": lambda generator, value: generator.send(value),
    "throw": lambda generator, *error: generator.throw(*error),
}  # fmt: skip
UNCHANGING: tuple[type, ...] = (int, float, str, bytes, tuple, frozenset)
BASES = (*UNCHANGING, list, dict, set, bytearray, collections.deque)
# Methods that take something out of data, and all that change it. The others, and the special ones
# of SPECIAL, only look at it.
REMOVING = {
    "remove", "discard", "pop", "popitem", "popleft", "clear", "difference_update",
    "intersection_update", "symmetric_difference_update",
}  # fmt: skip
CHANGING = REMOVING | {
    "append", "appendleft", "extend", "extendleft", "insert", "sort", "reverse", "rotate", "add",
    "update", "setdefault",
}  # fmt: skip
SPECIAL = {f"__{name.strip('_')}__" for name in (*OPERATORS, *COMPARISONS, *NUMBERS, "len", "iter")}
SPECIAL |= {"__getitem__", "__contains__", "__hash__", "__reversed__"}
SPECIAL |= {f"__{how}{name.strip('_')}__" for how in ("r", "i") for name in OPERATORS}
# What LiveCodeBench's harness imports before the program: all names of these, then they themselves.
HARNESS = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing",
)  # fmt: skip


class Callback:
    """A function of the tests that the program may call, or an iterator of theirs."""

    def __init__(self, peer: Peer, held: int, name: str) -> None:
        self._peer_, self._held_, self.__name__ = peer, held, name

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._peer_.ask("call", self, *arguments, **options)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        items, error = self._peer_.ask("next", self, 1)
        if error is not None:
            raise error
        return items[0]

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return self if owner is None else types.MethodType(self, owner)


HELD.add(Callback)


class Program(Peer):
    """The program's end."""

    first_number = 1

    def __init__(self, code: str, reads: BinaryIO, writes: BinaryIO) -> None:
        super().__init__(reads, writes)
        self.code = code
        self.module: types.ModuleType | None = None
        self.callbacks: dict[int, Callback] = {}
        self.given: dict[str, Any] = {}  # names that the program need not import
        self.input, self.output = os.dup(0), os.dup(1)  # files in memory
        self.redirect("")
        self.operations = {**NUMBERS, **METHODS, **OTHERS}
        self.operations |= {"name": self.name, "main": self.main, "harness": self.harness}

    def perform(self, operation: str, /, *arguments: Any, **options: Any) -> Any:
        function = self.operations.get(operation) or getattr(operator, operation)
        return function(*arguments, **options)

    def redirect(self, text: str) -> None:
        """Give the program this standard input, and an empty standard output."""
        for file, stream in ((self.input, 0), (self.output, 1)):
            os.dup2(file, stream)  # it may have closed its own
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
        os.pwrite(self.input, text.encode("utf-8", "replace"), 0)
        how: dict[str, Any] = {"encoding": "utf-8", "errors": "replace", "closefd": False}
        sys.stdin, sys.stdout = os.fdopen(0, "r", **how), os.fdopen(1, "w", **how)
        vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout)

    def printed(self) -> str:
        for name in ("stdout", "__stdout__"):
            with contextlib.suppress(Exception):
                vars(sys)[name].flush()
        if not (size := os.fstat(self.output).st_size):
            return ""
        data = os.pread(self.output, size, 0)
        os.ftruncate(self.output, 0)
        os.lseek(self.output, 0, os.SEEK_SET)
        return data.decode("utf-8", "replace")

    def compiled(self) -> types.CodeType:
        return compile(self.code, "program.py", "exec", dont_inherit=True)

    def name(self, name: str) -> Any:
        """What the program calls `name` now."""
        if self.module is None:
            self.module = sys.modules["program"] = types.ModuleType("program")
            vars(self.module).update(self.given)
            try:
                exec(self.compiled(), vars(self.module))
            except BaseException as error:
                text = f"the program failed to load: {type(error).__name__}: {error}"
                raise Refused(text) from None
        names = vars(self.module)
        if name not in names or (name in self.given and names[name] is self.given[name]):
            raise NameError(f"name {name!r} is not defined")  # by the program itself
        return names[name]

    def harness(self) -> None:
        """Prepare for tests by input and output, as LiveCodeBench does."""
        sys.setrecursionlimit(50_000)
        opens = builtins.open

        def open_stream(file: Any, *arguments: Any, **options: Any) -> Any:
            stream = {"/dev/stdin": 0, "/dev/stdout": 1}.get(file, file)
            return opens(stream, *arguments, **options)

        builtins.open = open_stream
        for module in map(importlib.import_module, HARNESS):
            public = getattr(module, "__all__", [n for n in vars(module) if n[0] != "_"])
            self.given |= {name: getattr(module, name) for name in public}
        self.given |= {name: importlib.import_module(name) for name in HARNESS}

    def main(self, text: str) -> str:
        """What the program prints when it is run with this standard input."""
        self.redirect(text)
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        vars(module).update(self.given, stdin=sys.stdin, stdout=sys.stdout)
        with contextlib.suppress(SystemExit):
            exec(self.compiled(), vars(module))
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
        vars(module).clear()  # which closes files that it left open
        return self.printed()

    def encode_other(self, value: Any) -> Any:
        kind, number = type(value), self.keep(value)
        if hasattr(kind, "__next__") and hasattr(kind, "__iter__"):
            return ["iterator", number, kind is types.GeneratorType]
        fixed = isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType))
        base = next((base for base in BASES if issubclass(kind, base)), None)
        if base is None:
            return ["held", number, "", kind.__eq__ is not object.__eq__, fixed, None]
        names = SPECIAL | {name for name in dir(base) if name[0] != "_"} - CHANGING
        between = itertools.takewhile(lambda part: part is not base, kind.__mro__)
        redefines = any(names & vars(part).keys() for part in between)
        data = self.encode(as_data(value, base)) if base in UNCHANGING else None
        if base in UNCHANGING and not redefines:
            return ["dressed", number, base.__name__, data]
        return ["held", number, base.__name__, redefines, fixed, data]

    def decode_other(self, kind: str, rest: list[Any]) -> Any:
        number, name = rest  # kind is "callback"
        return self.callbacks.setdefault(number, Callback(self, number, name))


def serve_program(code: str, reads: BinaryIO, writes: BinaryIO) -> None:
    """Do with the program what the tests ask for, until they end."""
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # as outside, where site makes them
    sys.argv = ["program.py"]
    program = Program(code, reads, writes)
    with contextlib.suppress(Refused), program.turn:  # until the other end is gone
        while True:
            program.serve(program.receive())
