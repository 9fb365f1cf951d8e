"""A program and its tests in two processes: what crosses the pipe between them.

Plain data is copied; a list, dict or set that both ends can still reach is kept equal on both, as
if it were one. Whatever else one end has stays with it, under a number, and the other end's handle
of it passes calls on.

A question is {operation, arguments, options, changed, dropped}; an answer {value, raised, printed,
changed, dropped}, or {failed}, with the reason. A value is itself (None, a truth, a number, a text)
or a list of its kind and what that kind needs.
"""

from __future__ import annotations

import builtins
import collections
import contextlib
import datetime
import decimal
import fractions
import itertools
import json
import operator
import sys
import threading
import types
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, BinaryIO

MAX_MESSAGE = 64 * 2**20  # bytes of a call's arguments or result
MAX_DEPTH = 50  # of lists in lists


class Refused(BaseException):
    """Two processes cannot do what the tests ask for, or must not. It is a BaseException: no
    `except Exception` of the tests hides it."""


# ------------------------------------------------------------------------------------ plain data

PLAIN = (type(None), bool, int, float, str)
FILLED: dict[str, type] = {
    kind.__name__: kind
    for kind in (list, dict, set, bytearray, collections.deque, collections.Counter,
                 collections.OrderedDict, collections.defaultdict)
}  # fmt: skip
FROM_TEXT: dict[type, tuple[Callable[[Any], str], Callable[[str], Any]]] = {  # to text, and back
    int: (hex, lambda text: int(text, 16)),
    bytes: (bytes.hex, bytes.fromhex),
    complex: (str, complex),
    fractions.Fraction: (str, fractions.Fraction),
    decimal.Decimal: (str, decimal.Decimal),
    datetime.date: (datetime.date.isoformat, datetime.date.fromisoformat),
    datetime.datetime: (datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    datetime.time: (datetime.time.isoformat, datetime.time.fromisoformat),
    datetime.timedelta: (
        lambda value: str(value // datetime.timedelta(microseconds=1)),
        lambda text: datetime.timedelta(microseconds=int(text)),
    ),
    type(...): (str, lambda text: Ellipsis),
}
TEXT_TYPES = {kind.__name__: kind for kind in FROM_TEXT}
VIEWS: dict[type, str] = {
    type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items",
}  # fmt: skip
BUILTINS = {id(value): name for name, value in vars(builtins).items() if name[0] != "_"}


def contents(value: Any) -> list[Any]:
    """All that such a container holds: of a dict, keys and values by turns."""
    return list(itertools.chain(*value.items()) if isinstance(value, dict) else value)


def fill(value: Any, items: list[Any]) -> None:
    """Make `items` the contents of a container."""
    if isinstance(value, dict):
        value.clear()
        for key, item in zip(items[::2], items[1::2]):
            value[key] = item
    elif isinstance(value, (list, bytearray)):
        value[:] = items
    else:
        value.clear()
        (value.update if isinstance(value, set) else value.extend)(items)


HELD: set[type] = set()  # the types of the handles of what is the other end's


class ErrorType(type):
    """The type of the classes of exceptions that are the other end's. It makes their instances."""

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return cls._peer_.ask("call", cls, *arguments, **options)  # type: ignore[attr-defined]

    def __getattr__(cls, name: str) -> Any:
        if name[0] == "_":
            raise AttributeError(name)
        return cls._attribute_(name)


def error_type(value: Any) -> type[BaseException]:
    """`value`, which has to be a class of exceptions. A handle may say that it is one, so its own
    type is what counts."""
    if type(value) not in (type, ErrorType) or not issubclass(value, BaseException):
        raise TypeError("no exception")
    return value


def number_of(value: Any) -> int | None:
    """The number under which the other end keeps `value`; None if it is not the other end's."""
    if type(value) is ErrorType:
        return vars(value)["_class_held_"]
    if type(type(value)) is ErrorType or type(value) in HELD:
        return object.__getattribute__(value, "_held_")
    return None


class Peer:
    """One end of the pipe. It asks the other, and meanwhile does what the other asks of it."""

    error_methods: dict[str, Any] = {}  # of exceptions that are the other end's
    first_number = 0  # the containers that this end shares are 0, 2, 4, …; the other end's 1, 3, …
    names_functions = False  # builtin functions are sent by name; otherwise they are kept here

    def __init__(self, reads: BinaryIO, writes: BinaryIO) -> None:
        self.reads, self.writes = reads, writes
        self.kept: list[Any] = []  # what the other end holds handles of
        self.numbers: dict[Any, int] = {}  # place in `kept`, by id; of bound methods by themselves
        self.errors: dict[int, type] = {}  # the other end's classes of exceptions
        self.shared: dict[int, tuple[Any, list[Any] | None]] = {}  # container, contents as sent
        self.places: dict[int, int] = {}  # id of a shared container → its number
        self.next_number = self.first_number
        # One thread at a time talks to the other end. While it serves a question, other threads may
        # ask questions of their own; it answers only after these are answered.
        self.turn = threading.Condition()
        self.waiting = 0  # number of questions that have no answer yet

    def keep(self, value: Any) -> int:
        """The number by which the other end may refer to `value` from now on."""
        bound = isinstance(value, (types.MethodType, types.BuiltinMethodType))
        key = value if bound else id(value)
        if key not in self.numbers:
            self.numbers[key] = len(self.kept)
            self.kept.append(value)
        return self.numbers[key]

    # A container is sent whole once, and gets a number that both ends use. Every later message has
    # the new contents of those that changed. When one end has no other reference to it, both forget
    # it.

    def share(self, container: Any, number: int) -> None:
        self.places[id(container)] = number
        self.shared[number] = container, contents(container)

    def receive_into(self, container: Any, number: int, items: list[Any]) -> None:
        """Fill a shared container. Meanwhile its contents count as unknown (None), so that it is
        not sent half filled: keys that are handles ask the other end for their hashes."""
        self.places[id(container)] = number
        self.shared[number] = container, None
        fill(container, self.decode_all(items))
        self.share(container, number)

    def changes(self) -> list[Any]:
        """[number, contents] of every shared container that has changed since it was last sent."""
        found = []
        for number, (container, before) in list(self.shared.items()):
            now = contents(container)
            if before is None or (len(now) == len(before) and all(map(operator.is_, now, before))):
                continue
            self.shared[number] = container, now
            found.append([number, self.encode_all(now)])
        return found

    def apply(self, changes: list[Any]) -> None:
        for number, items in changes:
            self.receive_into(self.shared[number][0], number, items)

    def drop(self, numbers: list[int]) -> None:
        for number in numbers:
            del self.places[id(self.shared.pop(number)[0])]

    def unreachable(self) -> list[int]:
        """Drop the shared containers to which nothing here refers now. Returns their numbers."""
        dropped: list[int] = []
        probe: dict[int, tuple[Any, None]] = {0: ([], None)}
        alone = sys.getrefcount(probe[0][0])  # of a container that only such a table refers to
        while found := [n for n in self.shared if sys.getrefcount(self.shared[n][0]) <= alone]:
            self.drop(found)
            dropped += found
        return dropped

    def encode(self, value: Any, depth: int = 0) -> Any:
        """A value as JSON."""
        if depth > MAX_DEPTH:
            raise ValueError("data too deep")
        kind = type(value)
        if kind in PLAIN and (kind is not int or value.bit_length() < 64):
            return value
        inside = partial(self.encode_all, depth=depth + 1)
        name = kind.__name__
        if kind is types.TracebackType:  # it stays here
            return None
        if id(value) in self.places:
            return ["same", self.places[id(value)]]
        if kind in FROM_TEXT:
            return [name, FROM_TEXT[kind][0](value)]
        if kind in FILLED.values():
            number, self.next_number = self.next_number, self.next_number + 2
            self.share(value, number)
            how = "maxlen" if kind is collections.deque else "default_factory"
            made_with = getattr(value, how, None)
            return [name, number, self.encode(made_with), inside(contents(value))]
        if kind in (tuple, frozenset):
            return [name, inside(value)]
        if kind in (range, slice):
            return [name, inside([value.start, value.stop, value.step])]
        if kind in VIEWS:
            return [VIEWS[kind], inside(value)]
        if id(value) in BUILTINS and (isinstance(value, type) or self.names_functions):
            return ["builtin", BUILTINS[id(value)]]
        if (theirs := number_of(value)) is not None:
            return ["yours", theirs]
        if isinstance(value, BaseException):
            own = None if id(kind) in BUILTINS else self.keep(value)
            fields = {} if kind.__module__ == "program" else vars(value)
            parts = [[*value.args], value.__cause__, value.__context__, [*fields.items()]]
            return ["exception", self.encode(kind), own, *map(self.encode, parts)]
        if kind is type and issubclass(value, BaseException):
            bases = [self.encode(base) for base in value.__bases__]
            return ["error", self.keep(value), value.__module__, value.__name__, bases]
        return self.encode_other(value)

    def encode_all(self, items: Iterable[Any], depth: int = 0) -> list[Any]:
        """The values of a list."""
        items = list(items)
        kinds = set(map(type, items))
        small = kinds == {int} and max(map(int.bit_length, items)) < 64
        if small or (len(kinds) == 1 and kinds <= {str, float, bool}):
            return items
        return [self.encode(item, depth) for item in items]

    def encode_other(self, value: Any) -> Any:
        """What is neither plain data nor an exception: something that is kept here."""
        raise NotImplementedError

    def decode(self, value: Any) -> Any:
        """The value that the other end has encoded."""
        if type(value) in PLAIN:
            return value
        kind, *rest = value
        if kind == "same":
            return self.shared[rest[0]][0]
        if kind in TEXT_TYPES:
            return FROM_TEXT[TEXT_TYPES[kind]][1](rest[0])
        if kind in FILLED:
            number, made_with, items = rest
            container: Any = FILLED[kind]()
            if kind == "deque":
                container = collections.deque(maxlen=made_with)
            if kind == "defaultdict":
                container.default_factory = self.decode(made_with)
            self.receive_into(container, number, items)
            return container
        if kind in ("tuple", "frozenset"):
            return (tuple if kind == "tuple" else frozenset)(self.decode_all(rest[0]))
        if kind in ("range", "slice"):
            return (range if kind == "range" else slice)(*self.decode_all(rest[0]))
        if kind in ("keys", "values", "items"):
            items = self.decode_all(rest[0])
            pairs = {"keys": zip(items, items), "values": enumerate(items), "items": items}[kind]
            return getattr(dict(pairs), kind)()
        if kind == "yours":
            return self.kept[rest[0]]
        if kind in ("builtin", "error"):
            return self.checked(self.decode_class(value))
        if kind == "exception":
            error_class, number = error_type(self.decode_class(rest[0])), rest[1]
            arguments, cause, context, fields = map(self.decode, rest[2:])
            if number is None:
                error = error_class(*arguments)
            else:
                error = error_class.__new__(error_class, *arguments)
                vars(error)["_held_"], error.args = number, tuple(arguments)
            error.__cause__, error.__context__ = cause, context
            vars(error).update(fields)
            return error
        return self.decode_other(kind, rest)

    def decode_class(self, value: Any) -> Any:
        """A builtin, or a class of exceptions."""
        kind, *rest = value
        if kind == "builtin":
            return self.builtin(rest[0])
        if kind != "error":
            return self.decode(value)
        number, module, name, bases = rest
        if module.partition(".")[0] in sys.stdlib_module_names and module in sys.modules:
            return error_type(vars(sys.modules[module]).get(name))
        if number not in self.errors:
            names = {"_peer_": self, "_class_held_": number, **self.error_methods}
            parents = [error_type(self.decode_class(base)) for base in bases]
            self.errors[number] = error_type(ErrorType(name, tuple(parents), names))
        return self.errors[number]

    def checked(self, value: Any) -> Any:
        """A builtin or a class of exceptions, if this end may get it."""
        return value

    def decode_all(self, items: list[Any]) -> list[Any]:
        """The values of a list."""
        if list in set(map(type, items)):
            return [self.decode(item) for item in items]
        return items

    def builtin(self, name: str) -> Any:
        """The builtin of that name, if the other end may choose it."""
        return vars(builtins)[name]

    def decode_other(self, kind: str, rest: list[Any]) -> Any:
        """What is neither plain data nor an exception: something that is kept at the other end."""
        raise NotImplementedError

    # ------------------------------------------------------------------------ asking, answering

    def ask(self, operation: str, /, *arguments: Any, **options: Any) -> Any:
        """What the other end makes of these, or the exception that it raises."""
        with self.turn:
            self.waiting += 1
            try:
                return self.ask_alone(operation, *arguments, **options)
            finally:
                self.waiting -= 1
                self.turn.notify_all()

    def ask_alone(self, operation: str, /, *arguments: Any, **options: Any) -> Any:
        """The same, in its turn."""
        try:
            message: dict[str, Any] = {"operation": operation, "changed": self.changes()}
            message["arguments"] = self.encode_all(arguments)
            message["options"] = {name: self.encode(value) for name, value in options.items()}
            self.send(message)
        except (TypeError, ValueError, RecursionError, MemoryError) as error:
            raise Refused(f"an argument cannot be sent: {error}") from None
        while "operation" in (answer := self.receive()):
            self.serve(answer)
        if "failed" in answer:
            raise Refused(answer["failed"])
        try:
            sys.stdout.write(answer["printed"])
            self.apply(answer["changed"])
            value = self.decode(answer["value"])
            self.drop(answer["dropped"])
        except Exception as error:
            raise Refused(f"rubbish instead of data: {error!r}"[:300]) from None
        if answer["raised"]:
            raise value
        return value

    def serve(self, message: Any) -> None:
        """Do what a message asks for, and answer it."""
        try:
            self.apply(message["changed"])
            arguments = self.decode_all(message["arguments"])
            options = {name: self.decode(value) for name, value in message["options"].items()}
            self.drop(message["dropped"])
            waiting = self.waiting
            self.turn.release()
            try:
                value, raised = self.perform(message["operation"], *arguments, **options), False
            except BaseException as error:
                value, raised = error.with_traceback(None), True
            finally:
                self.turn.acquire()
                self.turn.wait_for(lambda: self.waiting == waiting)
            if raised and isinstance(value, Refused):
                self.send({"failed": str(value)[:300]})
                raise value
            del arguments, options
            answer = {"raised": raised, "printed": self.printed(), "changed": self.changes()}
            answer["value"] = self.encode(value)
            del value
            self.send(answer)
        except Exception as error:
            self.send({"failed": f"the result cannot be sent: {error}"[:300]})

    def perform(self, operation: str, /, *arguments: Any, **options: Any) -> Any:
        """Do what the other end asks for."""
        raise NotImplementedError

    def printed(self) -> str:
        """What was printed since this was last asked."""
        return ""

    def send(self, message: dict[str, Any]) -> None:
        message["dropped"] = self.unreachable()
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE:
            raise ValueError("too much data")
        try:
            self.writes.write(len(data).to_bytes(4, "little") + data)
            self.writes.flush()
        except BrokenPipeError:
            raise Refused("the program ended early") from None

    def receive(self) -> Any:
        """The next message."""
        size = int.from_bytes(self.reads.read(4), "little")
        if 0 < size <= MAX_MESSAGE and len(data := self.reads.read(size)) == size:
            with contextlib.suppress(ValueError, RecursionError):
                if isinstance(message := json.loads(data), dict):
                    return message
        raise Refused("the program ended early")
