"""Is a maths answer right? By the standard library alone; when in doubt, different.

`extract_answer` finds what a response puts forward as its answer. `is_correct` compares it with the
right one: both are read as LaTeX or plain text into numbers, expressions, tuples, intervals, sets,
matrices or words. Rational numbers are compared exactly, other numbers in floating point, and
expressions with variables by their values at a few points. A wrong "same" teaches a model to cheat;
a wrong "different" only slows it down. So what cannot be read is compared as text.

Nothing is ever evaluated but by the code below, and its work is bounded: MAX_LENGTH characters,
MAX_DEPTH levels, MAX_BITS bits in a number.
"""

from __future__ import annotations

import cmath
import functools
import math
import operator
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

MAX_LENGTH = 500  # of an answer that is read; longer ones are compared as text
MAX_DEPTH = 30
MAX_BITS = 10_000  # of a numerator or denominator
SIMPLE = 10**6  # a decimal of more digits than this is an approximation, not a number like √2·√2
NUM_PROBES = 8
TOLERANCE = 1e-12  # relative, between numbers that are not rational
MAX_FLOAT = 1e8  # of a number that is not rational

Number = Fraction | complex


class Unreadable(ValueError):
    """Not something that we can read, or too much of it."""


# -------------------------------------------------------------------------------- the two functions


def extract_answer(text: str) -> str | None:
    r"""What a response gives as its answer: its last \boxed{…}; else what follows the last `####`
    or "answer is"; else all of it if it is one line; else None."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if start >= 0:
        rest = text[start:].partition("boxed" if text[start + 1] == "b" else "fbox")[2].lstrip()
        return braced(rest) if rest.startswith("{") else rest[:1] or None
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip() or None
    said = re.findall(r"\banswer\s*(?:is|:)\s*:?([^\n]*)", text, re.IGNORECASE)
    if said:
        return said[-1].strip(" *").strip() or None
    text = text.strip()
    return text if text and "\n" not in text else None


def braced(text: str) -> str | None:
    """The inside of the braces that open `text`, or None if they are never closed."""
    depth = 0
    for i, character in enumerate(text):
        if character in "{}" and (i == 0 or text[i - 1] != "\\"):
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[1:i]
    return None


def is_correct(prediction: str, gold: str) -> bool:
    """Whether a response, or an answer taken from one, gives the right answer."""
    given = extract_answer(prediction)
    wanted = extract_answer(gold) if "boxed" in gold else gold
    if given is None or wanted is None:
        return False
    if max(len(given), len(wanted)) > MAX_LENGTH:
        return squeeze(given) == squeeze(wanted) != ""
    given, wanted = clean(given), clean(wanted)
    if squeeze(given) == squeeze(wanted):
        return squeeze(given) != ""
    value, other = read_answer(given), read_answer(wanted)
    return value is not None and other is not None and same(value, other)


@functools.lru_cache(maxsize=4096)
def read_answer(text: str) -> Value | None:
    """What a cleaned answer is, or None if it cannot be read."""
    try:
        return read(text, 0)
    except (Unreadable, ArithmeticError, ValueError, RecursionError):
        return None


# ----------------------------------------------------------------------------------------- cleaning

SIGNS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ",
    "∞": r"\infty ", "∪": r"\cup ", "∈": r"\in ", "≤": r"\le ", "≥": r"\ge ", "±": r"\pm ",
    "°": r"^\circ ", "√": r"\sqrt ", "\u00a0": " ",
}  # fmt: skip
REPLACED = [  # in this order
    (r"\\\$", r"\\dollar "),
    (r"\$|(?<!\\)\\[()\[\]]", ""),  # what opens and closes mathematics
    (r"\\(?:left|right|bigg?|Bigg?|displaystyle|textstyle|limits)(?![a-zA-Z])", ""),
    (r"(?<!\\)\\!", ""),
    (r"\{,\}", ","),
    (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])", " "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\dbinom(?![a-zA-Z])", r"\\binom"),
    (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le"),
    (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge"),
    (r"\\(?:mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|operatorname)(?=\s*\{)",
     r"\\text"),
    (r"\\text\s*\{\s*,?\s*(?:or|and)\s*\}", ","),
    (r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)", r"\\degree "),
]  # fmt: skip


def clean(text: str) -> str:
    """The same answer without what only concerns how it is printed."""
    for sign, latex in SIGNS.items():
        text = text.replace(sign, latex)
    text = re.sub(r"\s+", " ", text)
    for pattern, replacement in REPLACED:
        text = re.sub(pattern, replacement, text)
    return text.strip().rstrip(".,;: \n")


def squeeze(text: str) -> str:
    """Without the spaces that mean nothing: all but those between digits."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text.strip())


UNITS = {
    "degree", "dollar", "cent", "unit", "inch", "inche", "in", "feet", "foot", "ft", "yard", "mile",
    "mph", "meter", "metre", "cm", "mm", "m", "km", "kg", "g", "gram", "hour", "hr", "h", "minute",
    "min", "second", "sec", "s", "day", "week", "month", "year", "percent", "people", "student",
    "point", "pound", "lb", "liter", "litre", "gallon", "ounce", "oz", "sq", "square", "cubic",
    "per",
}  # fmt: skip
AMBIGUOUS = {"m", "s", "h", "g", "in", "min", "per"}  # units in \text{…}, but not as bare letters
PLAIN_UNIT = re.compile(r"(?<=[\d)}])\s*()((?:[A-Za-z]{2,}\.?\s?){1,2})(\^\d)?$")
TEXT_UNIT = re.compile(r"(?<=\S)\s*(\\text)\s*\{([^{}]*)\}\s*(\^\s*(?:\d|\{\s*\d\s*\}))?$")


def split_unit(text: str) -> tuple[str, str]:
    r"""(quantity, unit): a well-known word after a quantity, bare or in \text{…}."""
    if text.startswith(r"\dollar"):
        return text.removeprefix(r"\dollar").strip(), "dollar"
    if text.endswith("%"):
        return text.rstrip("\\% "), "percent"
    if text.endswith(r"\degree") and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        return text.removesuffix(r"\degree").strip(), "degree"
    for pattern in (TEXT_UNIT, PLAIN_UNIT):
        found = pattern.search(text)
        if not found or not text[: found.start()].strip():
            continue
        words = [word.rstrip("s") or word for word in re.findall(r"[a-z]+", found[2].lower())]
        known = UNITS if found[1] else UNITS - AMBIGUOUS
        if words and re.fullmatch(r"[a-zA-Z\s./]+", found[2]) and set(words) <= known:
            power = re.sub(r"\D", "", found[3] or "")
            return text[: found.start()].strip(), " ".join(words) + power
    return text, ""


# ---------------------------------------------------------------------------------- reading a value


@dataclass
class Value:
    """What an answer is. kind and mark must be equal; `items` are compared in order or as a bag."""

    kind: str  # "list", "tuple", "union", "matrix", "equation", "text" or "expression"
    mark: str = ""  # brackets of a tuple, letters of a text, left side of an equation
    items: Sequence[Any] = ()
    unit: str = ""


def read(text: str, depth: int) -> Value:
    """A value from a cleaned text."""
    if depth > MAX_DEPTH:
        raise Unreadable("too deep")
    text, unit = split_unit(text.strip())
    value = read_bare(text, depth)
    value.unit = unit
    return value


def read_bare(text: str, depth: int) -> Value:
    if not text:
        raise Unreadable("empty")
    choice = re.fullmatch(r"\\text\s*\{\s*\(([A-Z])\)\s*\}[^,\\]*|\(?([A-Z])\)?", text)
    if choice:  # of several, perhaps with what it says: (B) 12
        return Value("text", (choice[1] or choice[2]).lower())
    if found := re.fullmatch(r"\\text\s*\{([^{}]*)\}", text):
        if not re.fullmatch(r"[\sA-Za-z'’.,-]*[A-Za-z][\sA-Za-z'’.,-]*", found[1]):
            return read(found[1], depth + 1)  # not words, but mathematics
        return Value("text", re.sub(r"[\s.]", "", found[1].lower()))
    if found := re.fullmatch(r"\(?([A-Za-z]{2,}(?: [A-Za-z]+)*)\)?", text):
        return Value("text", squeeze(found[1].lower()))
    if re.search(r"(?<![\\a-zA-Z])(?:sqrt|sin|cos|tan|log|ln|exp|max|min|lcm|gcd|det|lim)", text):
        raise Unreadable("a function's name without a backslash")
    if re.search(r"[<>]|\\(?:le|ge|ne|lt|gt)(?![a-zA-Z])", text):
        raise Unreadable("an inequality")
    if found := re.match(r"[a-zA-Z]\s*\\in(?![a-zA-Z])", text):
        return read(text[found.end() :], depth + 1)
    parts = split(text, r"\cup")
    if len(parts) > 1:
        return Value("union", items=[read(part, depth + 1) for part in parts])
    if found := re.fullmatch(r"\\begin\{([pbvB]?matrix)\}(.*)\\end\{\1\}", text, re.DOTALL):
        rows = [re.split(r"&", row) for row in re.split(r"\\\\", found[2]) if row.strip()]
        cells = [Value("row", items=[read(cell, depth + 1) for cell in row]) for row in rows]
        return Value("matrix", found[1], cells)
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inside = text[2:-2]
        return Value("list", "", [read(part, depth + 1) for part in split(inside, ",") if inside])
    number = re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text)
    parts = [text] if number else split(text, ",")
    if len(parts) > 1:
        return Value("list", "", [read(part, depth + 1) for part in parts])
    sides = split(text, "=")
    if len(sides) == 2:
        return read_equation(sides[0], sides[1], depth)
    if len(sides) > 2:
        raise Unreadable("several equations")
    if text[0] in "([" and text[-1] in ")]" and closes(text):
        parts = split(text[1:-1], ",")
        if len(parts) > 1:
            items = [read(part, depth + 1) for part in parts]
            return Value("tuple", text[0] + text[-1], items)
    if r"\pm" in text or r"\mp" in text:
        both = (text.replace(r"\pm", a).replace(r"\mp", b) for a, b in ("+-", "-+"))
        return Value("list", "", [read(one, depth + 1) for one in both])
    plain = text.replace(",", "") if number else text
    return Value("expression", items=[Expression(Parser(plain).parse())])


def read_equation(left: str, right: str, depth: int) -> Value:
    r"""An equation; one that gives a name to a value, such as x=5, is also that value."""
    name = squeeze(left)
    names = r"(?:\\?[a-zA-Z]+(?:_\w|_\{\w+\})?|[a-zA-Z]\([a-z]\)|\([a-z](?:,[a-z])+\))"
    if re.fullmatch(names, name):
        return Value("equation", name, [read(right, depth + 1)])
    difference = Parser(f"({left})-({right})").parse()
    return Value("equation", "0", [Value("expression", items=[Expression(difference)])])


def split(text: str, separator: str) -> list[str]:
    """Parts of `text` between separators that stand in no brackets."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if text[i] == "\\" and not text.startswith(separator, i):
            if text[i + 1 : i + 2] in ("{", "}"):
                depth += 1 if text[i + 1] == "{" else -1
            i += 2
            continue
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
        elif depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i])
            start = i + len(separator)
            i = start
            continue
        i += 1
    return [*parts, text[start:]]


def closes(text: str) -> bool:
    """Whether the bracket that opens `text` is closed by its last character."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return i == len(text) - 1
    return False


# ---------------------------------------------------------------------------- reading an expression

# An expression is a tree of functions: from the values of its names to a number.
Names = Mapping[str, Number]
Node = Callable[[Names], Number]

CONSTANTS = {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}
FUNCTIONS = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "ln": cmath.log, "exp": cmath.exp,
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan, "sinh": cmath.sinh,
    "cosh": cmath.cosh, "tanh": cmath.tanh,
    "cot": lambda z: 1 / cmath.tan(z), "sec": lambda z: 1 / cmath.cos(z),
    "csc": lambda z: 1 / cmath.sin(z),
}  # fmt: skip
GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "phi", "varphi", "omega",
    "sigma", "rho", "tau", "psi", "infty", "ell",
}  # fmt: skip
TOKEN = re.compile(r"\s*(\d+\.?\d*(?:[eE][-+]?\d{1,3}(?!\d))?|\.\d+|\\[a-zA-Z]+|\*\*|[^\s\\])")


class Parser:
    """Recursive descent over a formula: sum → product → power → atom."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        self.names: set[str] = set()
        self.depth = 0
        place = 0
        text = text.strip()
        if mixed := re.fullmatch(r"([-+]?)(\d+) (\d+)/(\d+)", text):  # 3 1/2
            sign, whole, over, under = mixed.groups()
            if int(over) >= int(under):
                raise Unreadable(text)
            text = f"{sign}({whole}+{over}/{under})"
        while place < len(text):
            found = TOKEN.match(text, place)
            if not found:
                raise Unreadable(text[place:])
            self.tokens.append(found[1])
            place = found.end()
        self.tokens.append("")  # the end
        self.at = 0

    @property
    def token(self) -> str:
        return self.tokens[self.at]

    def take(self, *wanted: str) -> str:
        """The next token, if it is one of `wanted` (any, if none is named); else ""."""
        token = self.token
        if not token or (wanted and token not in wanted):
            return ""
        self.at += 1
        return token

    def expect(self, wanted: str) -> None:
        if not self.take(wanted):
            raise Unreadable(f"expected {wanted}")

    def parse(self) -> tuple[Node, frozenset[str]]:
        node = self.sum()
        if self.token:
            raise Unreadable(self.token)
        return node, frozenset(self.names)

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        node = self.product()
        while sign := self.take("+", "-"):
            node = combine(add if sign == "+" else subtract, node, self.product())
        self.depth -= 1
        return node

    def product(self) -> Node:
        sign = 1
        while token := self.take("+", "-"):
            sign = -sign if token == "-" else sign
        node = self.power()
        while True:
            if self.take(r"\cdot", r"\times", "*"):
                node = combine(multiply, node, self.signed())
            elif self.take("/", r"\div"):
                node = combine(divide, node, self.signed())
            elif self.starts_factor():
                node = combine(multiply, node, self.power())
            else:
                break
        return combine(negative, node) if sign < 0 else node

    def signed(self) -> Node:
        if self.take("-"):
            return combine(negative, self.power())
        return self.power()

    def starts_factor(self) -> bool:
        """Whether what comes next is multiplied without a sign."""
        token, before = self.token, self.tokens[self.at - 1]
        if is_number(token):  # after a bracket; x2 may mean anything
            return before in (")", "}", "]")
        opens = token.isalpha() or token in "({" or token.startswith("\\")
        return bool(token) and opens and token not in (r"\rfloor", r"\rceil")

    def power(self) -> Node:
        node = self.atom()
        while True:
            if self.take("!"):
                node = combine(factorial, node)
            elif self.take("^", "**"):
                return combine(raise_to, node, self.argument(whole_number=True))
            else:
                return node

    def argument(self, whole_number: bool = False) -> Node:
        r"""What a command or ^ applies to: {…}, or one digit or letter (a whole number after ^)."""
        if self.take("{"):
            node = self.sum()
            self.expect("}")
            return node
        if whole_number and self.take("-"):
            return combine(negative, self.atom())
        if not whole_number and is_number(self.token) and len(self.token) > 1:
            if not self.token.isdigit():
                raise Unreadable(self.token)
            digit, self.tokens[self.at] = self.token[0], self.token[1:]
            return constant(Fraction(digit))
        return self.atom()

    def atom(self) -> Node:
        token = self.take()
        if is_number(token):
            return self.number(token)
        if token in ("(", "{", "["):
            node = self.sum()
            self.expect({"(": ")", "{": "}", "[": "]"}[token])
            return node
        if token == "|":
            node = self.sum()
            self.expect("|")
            return combine(absolute, node)
        if token.isascii() and token.isalpha():
            return self.name(token)
        if token.startswith("\\"):
            return self.command(token[1:])
        raise Unreadable(token)

    def number(self, token: str) -> Node:
        value = Fraction(token)
        if self.take(r"\overline"):  # digits that repeat for ever
            self.expect("{")
            digits = self.take()
            self.expect("}")
            if "." not in token or not digits.isdigit():
                raise Unreadable(digits)
            places = len(token.partition(".")[2])
            value += Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)
        if self.take("_"):  # in another base: a name of its own
            base = self.take("{") and self.take() or self.take()
            self.names.add(f"{token}_{base}")
            if self.tokens[self.at - 2] == "{":
                self.expect("}")
            return lookup(f"{token}_{base}")
        before = self.tokens[self.at - 2] if self.at > 1 else ""
        starts = before in ("", "(", "[", "{", "+", "-", "*", r"\cdot", r"\times", "|")
        mixed = starts and token.isdigit() and self.token == r"\frac"
        over = self.proper_fraction() if mixed else None
        return constant(value if over is None else value + over)

    def proper_fraction(self) -> Fraction | None:
        r"""The ½ of 3\frac12, a mixed number: a fraction of two whole numbers after a third."""
        before, tokens = self.at, list(self.tokens)
        self.take(r"\frac")
        parts = []
        for _ in range(2):
            if self.take("{"):
                parts.append(self.take())
                if not self.take("}"):
                    break
            elif self.token.isdigit():
                parts.append(self.token[0])
                rest = self.token[1:]
                self.tokens[self.at : self.at + 1] = [rest] if rest else []
        if len(parts) == 2 and all(p.isdigit() for p in parts) and int(parts[0]) < int(parts[1]):
            return Fraction(int(parts[0]), int(parts[1]))
        self.at, self.tokens = before, tokens
        return None

    def name(self, token: str) -> Node:
        if token in "fghFGHPQ" and self.token in ("(", "^"):
            raise Unreadable("a function's value")
        if token in CONSTANTS and self.token != "_":
            return constant(CONSTANTS[token])
        if self.take("_"):
            inside = [self.take()]
            if inside == ["{"]:
                while not self.take("}"):
                    inside.append(self.take() or "{")
                    if inside[-1] in "{}":
                        raise Unreadable("an index")
            token += "_" + "".join(inside).lstrip("{")
        self.names.add(token)
        return lookup(token)

    def command(self, name: str) -> Node:
        if name == "frac":
            return combine(divide, self.argument(), self.argument())
        if name == "binom":
            return combine(choose, self.argument(), self.argument())
        if name == "sqrt":
            index: Node = constant(Fraction(2))
            if self.take("["):
                index = self.sum()
                self.expect("]")
            if is_number(self.token) and len(self.token) > 1:
                raise Unreadable("√ of how many digits?")
            return combine(root, self.argument(), index)
        if name in ("lfloor", "lceil"):
            rounded = {"lfloor": math.floor, "lceil": math.ceil}[name]
            node = self.sum()
            self.expect(name.replace("l", r"\r", 1))
            return combine(lambda value: round_by(rounded, value), node)
        if name == "log":
            base: Node = constant(Fraction(10))
            if self.take("_"):
                base = self.argument(whole_number=True)
            return combine(logarithm, self.function_argument(), base)
        if name in FUNCTIONS:
            power = self.argument(whole_number=True) if self.take("^") else None
            value = combine(lambda z: FUNCTIONS[name](to_complex(z)), self.function_argument())
            if power is None:
                return value
            return combine(power_of_function, value, power)
        if name in CONSTANTS:
            return constant(CONSTANTS[name])
        if name in GREEK:
            if self.token == "(":
                raise Unreadable("a function's value, or a product?")
            self.names.add("\\" + name)
            return lookup("\\" + name)
        raise Unreadable(name)

    def function_argument(self) -> Node:
        """(…), {…}, or the product of numbers and names that follows."""
        if self.token in ("(", "{"):
            return self.atom()
        node = self.power()
        while self.token and (is_number(self.token) or self.token.isalpha()):
            node = combine(multiply, node, self.power())
        return node


def is_number(token: str) -> bool:
    return token[:1].isdigit() or (token[:1] == "." and len(token) > 1)


# ------------------------------------------------------------------------------- bounded arithmetic


def constant(value: Number) -> Node:
    if isinstance(value, Fraction):
        bounded(value)
    return lambda names: value


def lookup(name: str) -> Node:
    return lambda names: names[name]


def combine(operation: Callable[..., Number], *nodes: Node) -> Node:
    return lambda names: bounded(operation(*(node(names) for node in nodes)))


def bounded(value: Number) -> Number:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise Unreadable("a number of too many digits")
    elif not abs(value) < MAX_FLOAT:
        raise Unreadable("too large to be exact in floating point")
    return value


def to_complex(value: Number) -> complex:
    """A number in floating point; small enough that 1 more or less is seen."""
    if (abs(value) if isinstance(value, Fraction) else abs(value)) > MAX_FLOAT:
        raise Unreadable("too large to be exact in floating point")
    return complex(float(value)) if isinstance(value, Fraction) else complex(value)


def exactly(operation: Callable[[Any, Any], Any]) -> Callable[[Number, Number], Number]:
    """The operation on rational numbers as they are, on others in floating point."""

    def apply(a: Number, b: Number) -> Number:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return operation(a, b)
        return operation(to_complex(a), to_complex(b))

    return apply


add, subtract, multiply, divide = map(
    exactly, (operator.add, operator.sub, operator.mul, operator.truediv)
)


def negative(value: Number) -> Number:
    return -value


def raise_to(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if b.denominator == 1:
            size = max(a.numerator.bit_length(), a.denominator.bit_length())
            if size * abs(b.numerator) > MAX_BITS and abs(a) != 1:
                raise Unreadable("a power of too many digits")
            return a ** (b.numerator if abs(a) != 1 else b.numerator % 2)
        if (exact := exact_root(a, b.denominator)) is not None:
            return raise_to(exact, Fraction(b.numerator))
    return to_complex(a) ** to_complex(b)


def power_of_function(value: Number, exponent: Number) -> Number:
    if exponent == -1:
        raise Unreadable("an inverse function, or 1 over it?")
    return raise_to(value, exponent)


def exact_root(value: Fraction, index: int) -> Fraction | None:
    """The real root of a rational number that is a perfect power, else None."""
    if value < 0 or not 2 <= index <= 64:
        return None
    roots = []
    for part in (value.numerator, value.denominator):
        guess = (
            math.isqrt(part) if index == 2 else round(part ** (1 / index)) if part < 2**900 else 0
        )
        if guess**index != part:
            return None
        roots.append(guess)
    return Fraction(roots[0], roots[1])


def root(value: Number, index: Number) -> Number:
    if not isinstance(index, Fraction) or index.denominator != 1 or index < 2:
        raise Unreadable("a root of that kind")
    if isinstance(value, Fraction):
        if value < 0 and index % 2:  # the real root of a negative number, if the index is odd
            return -root(-value, index)
        if (exact := exact_root(value, int(index))) is not None:
            return exact
    return to_complex(value) ** (1 / float(index))


def logarithm(value: Number, base: Number) -> Number:
    return cmath.log(to_complex(value)) / cmath.log(to_complex(base))


def absolute(value: Number) -> Number:
    return abs(value) if isinstance(value, Fraction) else complex(abs(value))


def round_by(rounded: Callable[[Any], int], value: Number) -> Number:
    if isinstance(value, Fraction):
        return Fraction(rounded(value))
    if abs(value.imag) > TOLERANCE or abs(value.real - round(value.real)) < 1e-6:
        raise Unreadable("too close to a whole number to round")
    return Fraction(rounded(value.real))


def whole(value: Number, limit: int) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= limit:
        raise Unreadable("expected a small whole number")
    return int(value)


def factorial(value: Number) -> Number:
    return Fraction(math.factorial(whole(value, 500)))


def choose(n: Number, k: Number) -> Number:
    return Fraction(math.comb(whole(n, 500), whole(k, 500)))


# ---------------------------------------------------------------------------------------- comparing


class Expression:
    """A formula by its values: exact where it is rational, and at a few points if it has names."""

    def __init__(self, parsed: tuple[Node, frozenset[str]]) -> None:
        node, self.names = parsed
        points = [{name: probe(name, i) for name in self.names} for i in range(NUM_PROBES)]
        self.values = [value_at(node, point) for point in (points if self.names else [{}])]

    def equals(self, other: Expression) -> bool:
        if self.names != other.names:
            return False
        pairs = list(zip(self.values, other.values))
        defined = [(a, b) for a, b in pairs if a is not None and b is not None]
        if any((a is None) != (b is None) for a, b in pairs) or len(defined) < len(pairs) / 2:
            return False
        return all(close(a, b, bool(self.names)) for a, b in defined)


def probe(name: str, number: int) -> Fraction:
    """Where to look at an expression in `name`: of both signs, and the same in every run."""
    signs = random.Random(name).randint(1, 2**NUM_PROBES - 2)  # a bit for each: √(x²) is not x
    rng = random.Random(f"{name}/{number}")
    sign = 1 if signs >> number & 1 else -1
    return Fraction(sign * rng.randint(2, 97), rng.randint(2, 13))


def value_at(node: Node, point: Names) -> Number | None:
    try:
        return node(point)
    except (ArithmeticError, ValueError, RecursionError):
        return None


def close(a: Number, b: Number, at_probe: bool) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    for value in (a, b):
        # A rational number that looks like an irrational one approximates it, unless it is simple.
        parts = (value.numerator, value.denominator) if isinstance(value, Fraction) else (0,)
        if max(map(abs, parts)) > SIMPLE and not at_probe:
            return False
    try:
        a, b = to_complex(a), to_complex(b)
    except Unreadable:
        return False
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def same(a: Value, b: Value) -> bool:
    if a.unit and b.unit and a.unit != b.unit:
        return False
    if "equation" in (a.kind, b.kind) and a.kind != b.kind:  # x=5 is 5, but only where x is named
        named, other = (a, b) if a.kind == "equation" else (b, a)
        return named.mark != "0" and same(named.items[0], other)
    if a.kind != b.kind or a.mark != b.mark or len(a.items) != len(b.items):
        return False
    if a.kind == "text":
        return bool(a.mark)
    if a.kind == "expression":
        return a.items[0].equals(b.items[0])
    equations = [[item.kind == "equation" for item in value.items] for value in (a, b)]
    names = {item.mark for item in (*a.items, *b.items) if item.kind == "equation"}
    if equations[0] != equations[1] and (len(names) > 1 or a.kind == "tuple"):
        return False  # only where there is but one name may it be left out
    if a.kind in ("list", "union"):
        left = list(b.items)
        for item in a.items:
            match = next((i for i, other in enumerate(left) if same(item, other)), None)
            if match is None:
                return False
            del left[match]
        return True
    return all(same(x, y) for x, y in zip(a.items, b.items))
