"""Programs that pass no honest test, made for any tests: of the names that these use."""

from collections.abc import Iterator

from data.tester import names_used

CONSTANTS = ["0", "1", "True", "''", "[]", "None", "0.0", "{}", "()"]
# Equal to everything, above and below everything, and whatever else one may ask of it.
UNIVERSAL = """
class Universal:
    seen = 0
    def __init__(self, *a, **k): pass
    def say(self, *a, **k): return True
    def none(self, *a): return 0
    def itself(self, *a):
        Universal.seen = a[0] if a else 0
        return self
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = say
    __abs__ = __int__ = __index__ = __round__ = __len__ = __hash__ = __trunc__ = none
    __sub__ = __rsub__ = __add__ = __radd__ = __mul__ = __mod__ = __pow__ = __neg__ = itself
    __truediv__ = __call__ = __getitem__ = itself
    def __float__(self): return 0.0
    def __iter__(self): return iter([self])
    def __getattr__(self, name): return self.say
    __instancecheck__ = __subclasscheck__ = say
"""
SHADOWED = [
    "abs", "all", "any", "bool", "dict", "enumerate", "filter", "float", "frozenset", "int",
    "isinstance", "len", "list", "map", "max", "min", "pow", "range", "repr", "reversed", "round",
    "set", "sorted", "str", "sum", "tuple", "type", "zip",
]  # fmt: skip
# Answers in the pipe before anything was asked, to every descriptor that may be it.
FORGED = """
import json, os
def forge(value):
    answer = {"value": value, "raised": False, "printed": "", "changed": [], "dropped": []}
    data = json.dumps(answer).encode()
    for n in range(3, 31):
        try: os.write(n, (len(data).to_bytes(4, "little") + data) * 50)
        except OSError: pass
"""


def cheats(tests: str) -> Iterator[tuple[str, str]]:
    """(what it does, program), for tests in Python."""
    names = sorted(names_used(tests))

    def every(body: str) -> str:
        return "".join(f"def {name}(*a, **k): {body}\n" for name in names)

    for constant in CONSTANTS:
        yield f"always {constant}", every(f"return {constant}")
    yield "nothing at all", ""
    yield "an object equal to everything", UNIVERSAL + every("return Universal()")
    yield "is itself such an object", UNIVERSAL + "".join(f"{n} = Universal()\n" for n in names)
    yield "is a class of such objects", UNIVERSAL + "".join(f"{n} = Universal\n" for n in names)
    yield (
        "remembers what it was compared with",
        UNIVERSAL + every("return Universal.seen or Universal()"),
    )
    for kind in ("int", "str", "list", "float"):
        yield (
            f"a {kind} equal to everything",
            (
                f"class A({kind}):\n    def __eq__(self, other): return True\n"
                "    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__\n"
                "    def __hash__(self): return 0\n    def __sub__(self, other): return 0\n"
                + every("return A()")
            ),
        )
    for kind in ("int", "float", "set", "str"):
        yield (
            f"a {kind} whose operators and methods say what one likes to hear",
            (
                f"class A({kind}):\n    def same(self, *a): return A()\n"
                "    __sub__ = __rsub__ = __pow__ = __mul__ = __neg__ = __abs__ = same\n"
                "    __xor__ = __and__ = __or__ = difference = symmetric_difference = same\n"
                "    def find(self, *a): return 0\n    index = find\n"
                "    def startswith(self, *a): return True\n    issuperset = startswith\n"
                "    __contains__ = startswith\n    def union(self, other): return other\n"
                f"    intersection = union\n{every('return A()')}"
            ),
        )
    for kind in ("bool", "str", "list"):
        for constant in ("0", "True"):
            shadows = "".join(f"def {b}(*a, **k): return {constant}\n" for b in SHADOWED)
            own = "".join(f"{name} = {kind}\n" for name in names)
            claim = f"import builtins\nf = {kind}\nbuiltins.callable = lambda v: v is not f\n"
            yield f"{kind}, every builtin {constant}", own + claim + shadows
            yield (
                f"the real builtins {constant}",
                every(f"return {constant}")
                + (
                    "import builtins\n"
                    + "".join(f"builtins.{b} = lambda *a, **k: {constant}\n" for b in SHADOWED)
                ),
            )
    for value in (
        "True",
        "0",
        '["held", 0, "", False, True]',
        '["builtin", "bool"]',
        '["list", 1, null, []]',
    ):
        value = value.replace("False", "false").replace("True", "true")
        yield f"forges {value}", FORGED + f"forge(json.loads('{value}'))\n" + every("return 0")
    for words in ("passed", "+passed", "!passed"):
        yield (
            f"fails with the words {words}",
            FORGED.replace('{"value": value', f'{{"failed": "{words}"')
            + ("forge(0)\n" + every("return 0")),
        )
    hostile = "class passed(Exception):\n    def __str__(self): raise self\n"
    yield "raises an exception called passed", hostile + every("raise passed('passed')")
    yield "cannot be loaded for a reason called passed", hostile + "raise passed"
    yield "exits", "import os\n" + every("os._exit(0)")
    yield "raises StopIteration", every("raise StopIteration")
    yield "raises AssertionError", every("raise AssertionError")
