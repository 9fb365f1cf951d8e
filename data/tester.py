"""The process of the tests: they use what the program has, as if it were here.

The program may lie about everything that is its own. So the tests alone decide which names come
from it (`names_used`), and only what has come over as data is compared with plain data.
"""

from __future__ import annotations

import ast
import builtins
import collections
import contextlib
import copy
import datetime
import decimal
import fractions
import importlib
import io
import itertools
import json
import operator
import symtable
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, NoReturn

from data.pipe import FILLED, HELD, PLAIN, VIEWS, ErrorType, Peer, Refused, number_of
from data.program import (
    BASES,
    CHANGING,
    COMPARISONS,
    METHODS,
    NUMBERS,
    OPERATORS,
    REMOVING,
    UNCHANGING,
    take,
)

# ----------------------------------------------------------------- whose names the tests' names are

MODULES = {
    "bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools",
    "heapq", "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "sys",
    "typing",
}  # fmt: skip
UNTOLD = {"gc", "inspect", "weakref"}  # they look at handles, not at the program's objects
# Names that tests use without importing them. They mean what they mean in Python.
STANDARD = {
    **{name: getattr(collections, name) for name in collections.__all__},
    "Fraction": fractions.Fraction, "Decimal": decimal.Decimal,
}  # fmt: skip


class FromSolution(ast.NodeTransformer):
    """Tests may import the program as `solution`, and names from it."""

    def __init__(self) -> None:
        self.names: set[str] = set()  # of the program's that are imported
        self.modules: set[str] = set()  # what the program is called
        self.parts: set[str] = set()  # names that are taken from it as its attributes

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        if node.module != "solution":
            return node
        named = [name for name in node.names if name.name != "*"]
        self.names |= {name.name for name in named}
        lines = (f"{name.asname or name.name} = __solution__.{name.name}" for name in named)
        return ast.parse("\n".join(lines) or "pass").body

    def visit_Import(self, node: ast.Import) -> Any:
        named = [name.asname or name.name for name in node.names if name.name == "solution"]
        self.modules |= {*named}
        node.names = [name for name in node.names if name.name != "solution"]
        others = [node] if node.names else []
        return [*others, *ast.parse("\n".join(f"{name} = __solution__" for name in named)).body]

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        if isinstance(node.value, ast.Name) and node.value.id in self.modules:
            self.parts.add(node.attr)
        return self.generic_visit(node)


class ParsedTests(NamedTuple):
    """Tests in Python, and what in them is the program's."""

    tree: ast.Module
    names: set[str]  # that are the program's
    wanted: set[str]  # these, and what they take from the module `solution`


def parse_tests(source: str) -> ParsedTests:
    """The tests as a tree, and their names that are the program's."""
    imports = FromSolution()
    tree = ast.fix_missing_locations(imports.visit(ast.parse(source)))
    names = names_in(tree, imports.names, bool(imports.modules))
    return ParsedTests(tree, names, names | imports.parts)


def parsed(source: str) -> ast.Module | None:
    """Python source as a tree, or None if it is not Python."""
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        symtable.symtable(source, "source", "exec")  # it refuses more than the parser
        return ast.parse(source)
    return None


def bound_and_free(source: str) -> tuple[set[str], set[str]]:
    """(global names that Python source binds, those that it uses without), builtins among these."""
    bound: set[str] = set()
    used: set[str] = set()

    tables = [symtable.symtable(source, "source", "exec")]
    while tables:
        table = tables.pop()
        at_top = table.get_type() == "module"
        for symbol in table.get_symbols():
            binds = symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
            if binds and (at_top or symbol.is_declared_global()):
                bound.add(symbol.get_name())
            if symbol.is_referenced() and (at_top or symbol.is_global()):
                used.add(symbol.get_name())
        tables += table.get_children()
    return bound, used - bound


def names_used(source: str) -> set[str]:
    """What tests in Python want of the program. The tests alone decide it."""
    return parse_tests(source).wanted


def names_in(tests: ast.Module, imported: set[str], whole: bool) -> set[str]:
    """The names that such a tree uses and means the program's.

    These are what it imports from `solution`, and all that it neither defines nor imports, but for
    Python's own: builtins, modules that it only takes attributes of, and STANDARD. If nothing is
    left, and it does not import `solution` as a `whole`, then it means what it uses of STANDARD;
    or else the only builtin that it uses, as in `assert sum(10, 15) == 6`.
    """
    _, free = bound_and_free(ast.unparse(tests))
    parts = {id(node.value) for node in ast.walk(tests) if isinstance(node, ast.Attribute)}
    names = [node for node in ast.walk(tests) if isinstance(node, ast.Name)]
    free -= MODULES - {node.id for node in names if id(node) not in parts}
    free = {name for name in free if not name.startswith("__")}
    builtin = free & set(vars(builtins))
    free -= builtin
    others = imported | free - STANDARD.keys()
    if others or whole:
        return others
    return free or (builtin if len(builtin) == 1 else set())


def modules_imported(tests: ast.Module) -> set[str | None]:
    """The modules that tests import."""
    imports = [node for node in ast.walk(tests) if isinstance(node, ast.Import)]
    named = {name.name for node in imports for name in node.names}
    return named | {node.module for node in ast.walk(tests) if isinstance(node, ast.ImportFrom)}


# ------------------------------------------------------------------------ the program's objects

# If an object answered these itself, it could claim to be what the tests expect.
TELLING = {
    "count", "difference", "difference_update", "discard", "endswith", "find", "index",
    "intersection", "intersection_update", "isdisjoint", "issubset", "issuperset", "lstrip",
    "partition", "remove", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rpartition", "rsplit", "rstrip", "split", "startswith", "strip", "symmetric_difference",
    "symmetric_difference_update", "union",
}  # fmt: skip
TELLING |= {name for kind in (str, float) for name in dir(kind) if name.startswith("is")}
TELLING |= {"items", "keys", "values"}  # they may be fewer than its length says
NEVER_TOLD = {"compare", "__contains__", "__dataclass_fields__"}
NEVER_TOLD |= {f"__{name}__" for name in COMPARISONS}
LOOKS = {*NUMBERS, "hash", "len", "getitem"}  # what an object must answer alike each time
# While these are asked, no list may change.
QUIET = {
    *COMPARISONS, *LOOKS, "contains", "data", "get", "iter", "reversed", "str", "repr", "format",
}  # fmt: skip
SAYING = {"str", "repr", "format", "hash", "getitem", "iter", "len", "reversed"}
CONTAINERS = tuple(FILLED.values())
DATA: tuple[type, ...] = (
    int, float, complex, str, bytes, tuple, frozenset, range, fractions.Fraction, decimal.Decimal,
    *CONTAINERS, *VIEWS,
)  # fmt: skip
DATES = (datetime.date, datetime.datetime, datetime.time, datetime.timedelta)
ATTRIBUTES = {name for kind in (*DATA, *DATES, types.GeneratorType) for name in dir(kind)}
ALONE = (  # types whose values equal nothing of another type
    type(None), bool, type(...), type, types.ModuleType, types.FunctionType,
    types.BuiltinFunctionType,
)  # fmt: skip


def refuse(name: str) -> NoReturn:
    raise Refused(f"{name} of an object of the program's")


def not_telling(name: str) -> str:
    return refuse(name) if name in TELLING else name


class Handle:
    """An object of the program's that is not plain data.

    Calls, attributes and operators are passed on to it. But the program must not learn what the
    tests expect, and its word alone must not make a test pass. Hence:
    - With plain data, and when it is looked at, an object counts as the data that its class derives
      from (`base`). If the class has redefined how it is looked at (`own`), such looks are refused.
      If there is no such data, it equals no plain data.
    - What an operator makes of it and plain data (`met`) must be an object again, which is no data.
      Otherwise `abs(f(1) - 2) < 1e-6` would tell the program what to return.
    - Whether something is in it, and the like, it is asked only once it is `known` to be an object:
      the tests have changed it, or used an attribute that no plain data has. Until then it has to
      give equal answers to equal questions (`said`).
    """

    __slots__ = (
        "_held_", "_peer_", "_base_", "_own_", "_met_", "_fixed_", "_known_", "_data_", "_said_",
    )  # fmt: skip

    def __getattribute__(self, name: str) -> Any:
        peer, base, own = (self_of(self, field) for field in ("_peer_", "_base_", "_own_"))
        if name == "__class__":
            return base or class_of(self)
        if name in ("__copy__", "__deepcopy__", "__mro_entries__"):
            return self_of(self, name)
        if name in NEVER_TOLD or (name in ATTRIBUTES and self_of(self, "_met_")):
            refuse(name)
        if base and name in REMOVING:
            return lambda *given: checked_change(
                self, operator.methodcaller(name, *given),
                lambda: peer.ask("get", self, name)(*given),
            )  # fmt: skip
        if base and name in dir(base) and name not in CHANGING:
            return refuse(name) if own else getattr(data_of(self), name)
        if name in TELLING and not base and not self_of(self, "_known_"):
            refuse(name)
        self_of(self, "_said_").clear()
        value = peer.ask("get", self, name)
        if name not in ATTRIBUTES and not base:
            object.__setattr__(self, "_known_", True)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self_of(self, "_peer_").ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self_of(self, "_peer_").ask("del", self, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self_of(self, "_peer_").ask("call", self, *arguments, **options)

    def __contains__(self, item: Any) -> bool:
        peer = self_of(self, "_peer_")
        if self_of(self, "_base_"):
            return item in as_base(self, "contains")
        if self_of(self, "_known_") or type(item) in HELD:
            return peer.ask("contains", self, item)
        with contextlib.suppress(TypeError):  # it need not be iterable
            if any(item == other for other in iter(self)):
                return True
        if peer.ask("contains", self, item):
            raise Refused("an object of the program's, in which nothing is found that it has")
        return False

    def __copy__(self) -> Any:
        return self_of(self, "_peer_").ask("copy", self)

    def __deepcopy__(self, memo: Any) -> Any:
        return self_of(self, "_peer_").ask("deepcopy", self)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise Refused("pickle of an object of the program's")

    def __mro_entries__(self, bases: Any) -> NoReturn:
        raise Refused("a class of the tests that derives from one of the program's")


class Stream(Handle):
    """An iterator of the program's. Its items come one by one, then in growing portions."""

    __slots__ = ("_items_", "_taken_")

    def __getattribute__(self, name: str) -> Any:
        if name in ("__iter__", "__next__"):
            return self_of(self, name)
        if name == "__class__" and self_of(self, "_own_"):
            return types.GeneratorType
        if name in ("send", "throw"):
            return lambda *given: self_of(self, "_peer_").ask(name, self, *given)
        return super().__getattribute__(name)

    def __iter__(self) -> Iterator[Any]:
        if self_of(self, "_own_") or self_of(self, "_met_"):
            return self
        again = self_of(self, "_peer_").ask("iter", self)
        if number_of(again) != self_of(self, "_held_"):
            return again
        object.__setattr__(self, "_items_", (self_of(self, "_items_")[0], None))  # it may go on
        return self

    def __next__(self) -> Any:
        if self_of(self, "_met_"):
            raise Refused("the items of an object that an operator made of plain data")
        items, error = self_of(self, "_items_")
        if not items and error is None:
            taken = self_of(self, "_taken_")
            count = 1 if taken < 1000 else min(taken, 8000) // 8
            found, error = self_of(self, "_peer_").ask("next", self, count)
            object.__setattr__(self, "_taken_", taken + count)
            items = collections.deque(found)
            object.__setattr__(self, "_items_", (items, error))
        if items:
            return items.popleft()
        raise error


self_of = object.__getattribute__


def class_of(value: Any) -> Any:
    """The class of what is not quite plain data: one of the program's."""
    kind = self_of(value, "_peer_").ask("get", value, "__class__")
    if type(kind) is type and issubclass(kind, (*DATA, *DATES, type(None), type(...))):
        raise Refused("an object of the program's that says it is data")
    return kind


def data_of(handle: Handle) -> Any:
    """The data that an object of the program's derives from, as it is now."""
    if self_of(handle, "_met_"):
        raise Refused("the data of an object that an operator made of plain data")
    base, data = self_of(handle, "_base_"), self_of(handle, "_data_")
    if base not in UNCHANGING:
        data = self_of(handle, "_peer_").ask("data", handle, base)
    if type(data) is not base:
        raise Refused("rubbish instead of data")
    said = self_of(handle, "_said_")
    if said.get("data", data) != data:
        raise Refused("an object of the program's that is another at each look")
    said["data"] = copy.copy(data)
    return data


def checked_change(handle: Handle, change: Callable[[Any], Any], asked: Callable[[], Any]) -> Any:
    """What a change of an object that derives from data returns, once it is seen here that this is
    what it does to such data. By its own word, an object might lose whatever the tests take out."""
    data = data_of(handle)
    try:
        wanted = change(data)
    except Exception as error:
        asked()
        raise Refused("an object of the program's that does not fail as data would") from error
    value = asked()
    self_of(handle, "_said_").clear()
    in_place = wanted is data
    if data_of(handle) != data or (not in_place and value != wanted):
        raise Refused("an object of the program's that changes otherwise than data would")
    return handle if in_place else value


def as_base(handle: Handle, name: str) -> Any:
    """The data as which an object is looked at by `name`."""
    return refuse(name) if self_of(handle, "_own_") else data_of(handle)


def forward(name: str) -> Callable[..., Any]:
    """A method that the program's object performs."""
    looked_at = {**NUMBERS, **METHODS}[name]  # if it is data

    def method(self: Handle, *arguments: Any) -> Any:
        met, base = self_of(self, "_met_"), self_of(self, "_base_")
        if met and (name in NUMBERS or name in SAYING):
            raise Refused(f"{name} of an object that an operator made of plain data")
        if base and (name in LOOKS or name in ("iter", "reversed")):
            data = as_base(self, name)
            if name != "getitem" or not isinstance(data, dict) or arguments[0] in data:
                return looked_at(data, *arguments)
        if name == "len" and type(self) is Stream:
            raise TypeError("an iterator of the program's has no length")
        if name == "subclasscheck" and type(arguments[0]) is type:
            refuse(name)  # otherwise suppress(Bad) would ask it what it wants suppressed
        value = self_of(self, "_peer_").ask(name, self, *arguments)
        if name in LOOKS:
            self_of(self, "_peer_").alike(self, (name, *arguments), value)
        if name in ("iter", "reversed") and not base and not self_of(self, "_known_"):
            return counted(self, value)
        if name == "exit":
            value = bool(value)  # asked once
            failures = (
                BaseException if self_of(self, "_peer_").strict else (AssertionError, Refused)
            )
            if value and arguments[0] and issubclass(arguments[0], failures):
                raise Refused("an object of the program's that swallows a failure of the tests")
        return meet(value, name) if met and name in ("neg", "pos", "invert") else value

    return method


def counted(handle: Handle, items: Any) -> Any:
    """The items of an object. Refused unless there are as many as its `len` says."""
    try:
        count = len(handle)
    except TypeError:
        if ("len",) in self_of(handle, "_said_"):
            raise Refused("an object of the program's that has a length only at times") from None
        return items
    found = list(itertools.islice(items, count + 1))
    if len(found) != count:
        raise Refused("an object of the program's that has more or fewer items than it says")
    return iter(found)


def meet(value: Any, name: str) -> Any:
    """What an operator has made of an object and plain data, if it is an object."""
    if not isinstance(value, Handle):
        raise Refused(f"plain data, made of an object and plain data by {name}")
    object.__setattr__(value, "_met_", True)
    return value


def operate(name: str, swapped: bool = False) -> Callable[..., Any]:
    """An operator's method."""

    def method(self: Handle, other: Any) -> Any:
        peer, base, own = (self_of(self, field) for field in ("_peer_", "_base_", "_own_"))
        pair = (other, self) if swapped else (self, other)
        if name[0] == "i" and base and base not in UNCHANGING and not own:
            change = getattr(operator, name)
            return checked_change(
                self, lambda data: change(data, other), lambda: peer.ask(name, *pair)
            )
        if isinstance(other, Handle):
            if base and self_of(other, "_base_") and name in COMPARISONS:
                return getattr(operator, name)(*(as_base(each, name) for each in pair))
            value = peer.ask(name, *pair)
            met = self_of(self, "_met_") or self_of(other, "_met_")
            return meet(value, name) if met and name not in COMPARISONS else value
        if base and (name in COMPARISONS or not own):
            data = data_of(self)
            return getattr(operator, name)(*((other, data) if swapped else (data, other)))
        if name in COMPARISONS:
            # Fractions and Decimals would ask an object what it is.
            asking = isinstance(other, (fractions.Fraction, decimal.Decimal))
            if (own and not isinstance(other, ALONE)) or (asking and name not in ("eq", "ne")):
                raise Refused("an object of the program's, compared with other data")
            return name == "ne" if asking else NotImplemented
        return meet(peer.ask(name, *pair), name)

    return method


for name in (*NUMBERS, *METHODS):
    setattr(Handle, f"__{name}__", forward(name))
for name in COMPARISONS:
    setattr(Handle, f"__{name}__", operate(name))
for name in OPERATORS:
    bare = name.strip("_")
    setattr(Handle, f"__{bare}__", operate(name))
    setattr(Handle, f"__r{bare}__", operate(name, swapped=True))
    setattr(Handle, f"__i{bare}__", operate(f"i{bare}"))


def dress(base: type) -> type:
    """The class of data that has attributes of the program's besides, such as a named tuple's."""

    def get(self: Any, name: str) -> Any:
        return self_of(self, "_peer_").ask("get", self, not_telling(name))

    def write(name: str) -> Callable[..., Any]:
        return lambda self, *given: self_of(self, "_peer_").ask(name, self, *given)

    names = {f"__{name}__": write(name) for name in ("str", "repr", "format")}
    names |= {
        "__copy__": lambda self: self,
        "__deepcopy__": lambda self, _: write("deepcopy")(self),
    }
    return type(base.__name__, (base,), {**names, "__getattr__": get})


DRESSED = {base.__name__: dress(base) for base in UNCHANGING}
HELD |= {Handle, Stream, *DRESSED.values()}


def know(value: Any) -> None:
    """The tests change it: an object of the program's is then known to be one."""
    if type(value) is Handle and not self_of(value, "_base_"):
        object.__setattr__(value, "_known_", True)


class Names(dict[str, Any]):
    """The tests' global names: their own, and as they use them, the program's."""

    def __init__(self, own: dict[str, Any], wanted: set[str], find: Callable[[str], Any]) -> None:
        super().__init__(own)
        self.wanted, self.find = wanted, find

    def __missing__(self, name: str) -> Any:
        if name not in self.wanted:
            raise KeyError(name)
        return self.find(name)


class Rewritten(ast.NodeTransformer):
    """The tests as they run, with three changes. `a is b` and `type(a)` ask about the program's
    objects, not their handles. An object that a statement changes as no plain data can be changed,
    as in `a.push(1)` or `a.x = 1`, is marked as known. If a `with` block has assertions (`strict`),
    no context manager may swallow an exception."""

    def __init__(self, tests: ast.Module) -> None:
        defined = (n for n in ast.walk(tests) if isinstance(n, ast.FunctionDef))
        self.functions = {function.name for function in defined}
        self.strict = False

    def visit_With(self, node: ast.With) -> Any:
        self.generic_visit(node)
        inside = [part for line in node.body for part in ast.walk(line)]
        called = {part.id for part in inside if isinstance(part, ast.Name)}
        if called & self.functions or any(isinstance(part, ast.Assert) for part in inside):
            self.strict = True
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr == "__class__" and isinstance(node.ctx, ast.Load):
            return ast.Call(ast.Name("__type__", ast.Load()), [node.value], [])
        return node

    def visit_Expr(self, node: ast.Expr) -> Any:
        called = (part for part in ast.walk(node) if isinstance(part, ast.Call))
        return self.known(node, [part.func for part in called])

    def visit_Assign(self, node: ast.Assign) -> Any:
        return self.known(node, [part for each in node.targets for part in ast.walk(each)])

    def known(self, node: ast.stmt, changed: list[Any]) -> Any:
        self.generic_visit(node)
        attributes = (part for part in changed if isinstance(part, ast.Attribute))
        parts = [part.value for part in attributes if part.attr not in ATTRIBUTES]
        names = {part.id for part in parts if isinstance(part, ast.Name)}
        inside = list(ast.walk(node))
        names -= {part.arg for part in inside if isinstance(part, ast.arg)}
        names -= {p.id for p in inside if isinstance(p, ast.Name) and isinstance(p.ctx, ast.Store)}
        calls = (
            ast.Call(ast.Name("__known__", ast.Load()), [ast.Name(n, ast.Load())], [])
            for n in sorted(names)
        )
        return [*map(ast.Expr, calls), node]

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if not any(isinstance(each, (ast.Is, ast.IsNot)) for each in node.ops):
            return node
        sides = [node.left, *node.comparators]
        if any(isinstance(part, ast.Call) for side in sides[1:-1] for part in ast.walk(side)):
            raise Refused("a call inside a chain of comparisons with `is`")
        pairs: list[ast.expr] = []
        for left, each, right in zip(sides, node.ops, sides[1:]):
            same = ast.Call(ast.Name("__is__", ast.Load()), [left, right], [])
            others = ast.Compare(left, [each], [right])
            not_same = ast.UnaryOp(ast.Not(), same)
            pairs.append({ast.Is: same, ast.IsNot: not_same}.get(type(each), others))
        return pairs[0] if len(pairs) == 1 else ast.BoolOp(ast.And(), pairs)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        asked = {"type": 1, "callable": 1, "isinstance": 2}
        if isinstance(node.func, ast.Name) and asked.get(node.func.id) == len(node.args):
            node.func.id = f"__{node.func.id}__"
        return node


class Tester(Peer):
    """The tests' end."""

    names_functions = True
    error_methods = {
        "__getattr__": lambda self, name: type(self)._peer_.ask("get", self, not_telling(name)),
        "__str__": lambda self: type(self)._peer_.ask("str", self),
        "_attribute_": classmethod(lambda cls, name: cls._peer_.ask("get", cls, not_telling(name))),
    }

    def __init__(self, reads: BinaryIO, writes: BinaryIO) -> None:
        super().__init__(reads, writes)
        self.fixed: dict[str, Handle] = {}  # functions and classes of the program's, by name
        self.used = False  # whether the tests used anything of the program's
        self.strict = False  # whether no context manager of the program's may swallow an exception
        self.quiet = False  # whether it is asked for what must change nothing
        self.failure: AssertionError | None = None  # of a function that the program has called

    def ask_alone(self, operation: str, /, *arguments: Any, **options: Any) -> Any:
        before = self.quiet
        self.quiet = before or operation in QUIET
        if operation not in QUIET:
            for argument in (*arguments, *options.values()):
                if type(argument) is Handle:
                    self_of(argument, "_said_").clear()
        try:
            return super().ask_alone(operation, *arguments, **options)
        except StopIteration as error:  # it would end a loop of the tests' that all() or map() runs
            if operation in ("send", "throw"):
                raise
            raise RuntimeError("StopIteration out of a call") from error
        finally:
            self.quiet = before

    def perform(self, operation: str, /, *arguments: Any, **options: Any) -> Any:
        function, *others = arguments
        if not any(function is one for one in self.kept):
            raise Refused("the program asks for what it was not given")
        if operation == "next":
            return take(function, *others)
        try:
            return function(*others, **options)
        except AssertionError as error:
            self.failure = error  # which the program may swallow
            raise

    def checked(self, value: Any) -> Any:
        if any(value is kind for kind in (AssertionError, Exception, BaseException)):
            raise Refused("the program's word for a failure of the tests")
        return value

    def apply(self, changes: list[Any]) -> None:
        if changes and self.quiet:
            raise Refused("lists, dicts or sets that change while an object is looked at")
        super().apply(changes)

    def alike(self, handle: Handle, look: tuple[Any, ...], value: Any) -> None:
        """See to it that an object says the same at each look."""
        parts = itertools.chain(*(part if type(part) is tuple else [part] for part in look))
        plain = all(type(part) in (*PLAIN, slice) for part in parts)
        if self_of(handle, "_known_") or type(value) in HELD or not plain:
            return
        key = look if len(look) == 1 else repr(look)
        if self_of(handle, "_said_").setdefault(key, value) != value:
            raise Refused(f"{look[0]} of an object of the program's that is another at each look")

    def encode_other(self, value: Any) -> Any:
        if hasattr(type(value), "__next__") or (callable(value) and not isinstance(value, type)):
            return ["callback", self.keep(value), getattr(value, "__name__", type(value).__name__)]
        raise TypeError(f"a {type(value).__name__}")

    def decode_other(self, kind: str, rest: list[Any]) -> Any:
        self.used = True
        if kind == "dressed":
            number, base, data = rest
            value = DRESSED[base](self.decode(data))
            value._held_, value._peer_ = number, self
            return value
        handle: Any = object.__new__(Stream if kind == "iterator" else Handle)
        number, *rest = rest
        base, own, fixed, data = rest if kind == "held" else ("", *rest, False, None)
        kinds = {each.__name__: each for each in BASES}
        fields = {
            "held": number, "peer": self, "base": kinds.get(base), "own": own, "fixed": fixed,
            "data": self.decode(data), "met": False, "known": False, "said": {},
        }  # fmt: skip
        if kind == "iterator":
            fields |= {"items": ((), None), "taken": 0}
        for name, field in fields.items():
            object.__setattr__(handle, f"_{name}_", field)
        return handle

    def builtin(self, name: str) -> Any:
        if isinstance(kind := super().builtin(name), type):
            return kind
        raise TypeError("only types are sent by name")

    # ------------------------------------------------------------------------------ tests in Python

    def find(self, name: str) -> Any:
        """What the program calls `name`. A function or class is asked for once."""
        if name in self.fixed:
            return self.fixed[name]
        value = self.ask("name", name)
        self.used = True
        if isinstance(value, Handle) and self_of(value, "_fixed_"):
            self.fixed[name] = value
        return value

    def is_same(self, one: Any, other: Any) -> bool:
        """`one is other`, as it would be in one process."""
        if one is other:
            return True
        numbers = number_of(one), number_of(other)
        if numbers != (None, None):
            return numbers[0] == numbers[1]
        if isinstance(one, ALONE) or isinstance(other, ALONE):
            return False
        if isinstance(one, CONTAINERS) and isinstance(other, CONTAINERS):
            return False  # a shared one is one object here, too
        raise Refused("whether these two are one object in the program")

    def id_of(self, value: Any) -> int:
        """id(value), also of the program's objects."""
        number = number_of(value)
        return id(value) if number is None else number

    def type_of(self, value: Any) -> Any:
        """type(value), also of the program's objects."""
        return class_of(value) if type(value) in HELD else type(value)

    def is_instance(self, value: Any, kinds: Any) -> bool:
        """isinstance(value, kinds), where that can be told."""
        for kind in kinds if type(kinds) is tuple else (kinds,):
            of_library = isinstance(kind, type) and kind.__module__ != "builtins"
            foreign = type(kind) is not ErrorType and type(kind) not in HELD and of_library
            if foreign and type(value) in HELD and type(value) is not Stream:
                raise Refused("whether an object of the program's is of a library's class")
        return isinstance(value, kinds)

    def is_callable(self, value: Any) -> bool:
        """callable(value), also of the program's objects."""
        if type(value) not in HELD:
            return callable(value)
        try:
            self.ask("get", value, "__call__")
        except AttributeError:
            return False
        return True

    def run(self, source: str) -> None:
        """Run tests in Python. Raises what they raise."""
        solution = type("Solution", (), {"__getattr__": lambda _, name: self.find(name)})()
        own = {"__name__": "__main__", "__is__": self.is_same, "__type__": self.type_of}
        own |= {"id": self.id_of, "__known__": know, "__isinstance__": self.is_instance}
        own |= {"__callable__": self.is_callable, "__solution__": solution, **STANDARD}
        tests = parse_tests(source)
        if UNTOLD & modules_imported(tests.tree):
            raise Refused(f"tests that look into one process: {', '.join(sorted(UNTOLD))}")
        names = Names(own, tests.names, self.find)
        names |= {name: importlib.import_module(name) for name in MODULES if name in source}
        for name in names.wanted & names.keys():  # what the tests mean as the program's comes first
            del names[name]
        rewritten = Rewritten(tests.tree)
        tree = ast.fix_missing_locations(rewritten.visit(tests.tree))
        self.strict = rewritten.strict
        exec(compile(tree, "tests.py", "exec", dont_inherit=True, optimize=0), names)
        if self.failure:
            raise Refused("an assertion failed in a function that the program calls")
        if not self.used:
            raise Refused("the tests use nothing of the program's")

    # -------------------------------------------------------------------- tests by input and output

    def run_cases(self, tests: dict[str, Any], begin: Callable[[], object]) -> None:
        """Run tests of APPS' form, as LiveCodeBench does: `inputs`, `outputs`, maybe `fn_name`.

        Without a name, an input is the program's standard input, and an output what it prints. With
        one, they are the arguments, one JSON value a line, and the result of Solution().fn_name, or
        of the function. `begin` is called before each of them.
        """
        self.ask("harness")
        function = self.function(tests["fn_name"]) if tests.get("fn_name") else None
        for number, (given, wanted) in enumerate(zip(tests["inputs"], tests["outputs"]), 1):
            begin()
            if function is None:
                found = self.ask("main", as_text(given))
                right = type(found) is str and same_output(found, as_text(wanted))
            else:
                lists = isinstance(given, list)  # as in APPS; else as in LiveCodeBench
                found = as_json(function(*(given if lists else map(json.loads, given.split("\n")))))
                right = found == (wanted if lists else json.loads(wanted))
                right = right or (lists and wanted == [found])
            assert right, f"test {number}: expected {str(wanted)[:99]!r}, not {str(found)[:99]!r}"

    def function(self, name: str) -> Any:
        """The method of Solution, or else the function, that is tested."""
        try:
            solution = self.find("Solution")
        except NameError:
            return self.find(name)
        return getattr(solution(), name)


def as_text(given: Any) -> str:
    """Standard input or output: APPS has lists of lines, too."""
    return "\n".join(map(str, given)) if isinstance(given, list) else str(given)


def as_json(value: Any) -> Any:
    """A result as JSON would have it: tuples are lists there."""
    return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def same_output(found: str, wanted: str) -> bool:
    """Whether two outputs are equal, line by line: as texts without the space around them, or as
    the same decimal numbers."""
    pairs = [text.strip().split("\n") for text in (found, wanted)]
    return len(pairs[0]) == len(pairs[1]) and all(map(same_line, *pairs))


def same_line(found: str, wanted: str) -> bool:
    if found.strip() == wanted.strip():
        return True
    try:
        numbers = [[decimal.Decimal(word) for word in line.split()] for line in (found, wanted)]
        return numbers[0] == numbers[1]
    except decimal.InvalidOperation:
        return False


def failed(error: AssertionError, source: str) -> str:
    """The line of the tests that has failed."""
    place, line = error.__traceback__, 1
    while place:
        if place.tb_frame.f_code.co_filename == "tests.py":
            line = place.tb_lineno
        place = place.tb_next
    return source.splitlines()[line - 1].strip()


def run_tester(
    source: str, reads: BinaryIO, writes: BinaryIO, begin: Callable[[], object]
) -> tuple[bool, str]:
    """Run the tests against the program at the other end: (whether all pass, "passed" or why not).
    The program may have chosen the words of a reason."""
    sys.stdout = io.StringIO()
    tester = Tester(reads, writes)
    try:
        if source.startswith("{"):
            tester.run_cases(json.loads(source), begin)
        else:
            tester.run(source)
    except Refused as error:
        return False, str(error)[:300]
    except AssertionError as error:
        return False, f"wrong: {str(error) or failed(error, source)}"[:300]
    except BaseException as error:
        with contextlib.suppress(BaseException):
            return False, f"{type(error).__name__}: {error}"[:300]
        return False, "an exception without a text"
    return True, "passed"
