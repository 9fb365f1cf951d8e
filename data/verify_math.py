"""Is a maths answer right? By the standard library alone; when in doubt, different.

`extract_answer` finds what a response puts forward as its answer. `is_correct` compares it with the
right one: both are read as LaTeX or plain text into numbers, expressions, equations, tuples,
intervals, sets, matrices or words. Rational numbers are compared exactly, other numbers in floating
point, and expressions with variables by their values at a few points. A wrong "same" teaches a
model to cheat; a wrong "different" only slows it. So what hedges is no answer, what can be read in
two ways is not read, and what is not read is compared as text.

Nothing is ever evaluated but by the code below, and its work is bounded: MAX_LENGTH characters,
MAX_DEPTH levels, MAX_BITS bits in a number. Longer texts are only searched, in linear time.
"""

from __future__ import annotations

import cmath
import math
import operator
import random
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

MAX_LENGTH = 500  # of an answer that is read; longer ones are compared as text
MAX_BOX = 10_000  # characters in a box
MAX_BOXES = 10  # the last ones of a response that are looked at
NEAR = 500  # characters before or after an answer that may take it back
MAX_DEPTH = 30
MAX_BITS = 10_000  # of a numerator or denominator
SIMPLE = 10**6  # a decimal of more digits than this is an approximation, not a number like √2·√2
NUM_PROBES = 8
TOLERANCE = 1e-12  # relative, between numbers that are not rational
MAX_FLOAT = 1e8  # of a number that is not rational

Number = Fraction | complex


class Unreadable(ValueError):
    """Not something that we can read, or too much of it."""


# ------------------------------------------------------------------------- what a response answers

BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
MARK = re.compile(  # what announces an answer
    r"(?:####|\b(?:ans(?:wers?)?|(?:correct|right) (?:option|choice))"
    r"(?: (?:to|for|of) th(?:e|is|at)(?: \w{1,20}\b){1,2})?\*{0,3}"
    r"(?:\s{0,4}[:=]|\s{1,4}(?:is|are)\b|\W{0,4}\n))"
    r"(?!\W{0,9}(?:correct|right|wrong|incorrect|not)\b)",
    re.IGNORECASE,
)
MAYBE = (
    r"\b(?:either(?! case| way)|maybe|perhaps|possibly|probably|alternatively|otherwise|else"
    r"|unless|except|vs|(?:could|might|may)(?: also| well)? be)\b"
)
NOT = (
    r"(?:\b(?:not|no|nor|none|neither|never|cannot|if|wrong|false|incorrect|invalid|fails?|excluded"
    r"|eliminated|rejected|impossible|unlikely)|n['’]t)\b"
)
HEDGE = re.compile(f"{MAYBE}|{NOT}", re.IGNORECASE)  # anywhere in an answer
BEFORE = re.compile(  # right before an answer: a hedge, or the formula that a box is a part of
    rf"(?:{MAYBE}|\b(?:or|not|never|cannot|neither|nor|if|suppose|assume|whether)\b|n['’]t\b)[,:]?"
    r"[\s$*(\\]*(?:(?:be|equal|to|the|an?|it|is|that|this|think|right|correct|final|answer|value)\b"
    r"[\s$*(\\]*|[a-z]\s*=[\s$*(\\]*){0,6}\Z"
    r"|(?:\d|(?:[\^/+]|\\cdot|\\times|[\d=(,$}][ \t]*-)[ \t]*|-)\Z"
    r"|\\(?:[dt]?frac|sqrt)(?:\{[^{}]*\})?\{\Z",
    re.IGNORECASE,
)
AFTER = re.compile(  # right after a box: more of the formula, another answer, a question, a hedge
    r"[ \t]*(?:[\d^/+?]|-\s*\d|\\(?:sqrt|frac|cdot|times|pi)\b)"
    r"|[\s$)*\\]*(?:[,;&/]|\band\b)[\s$(*\\]*(?!i\.e)(?:-?\d|[b-zA-Z]\b|sqrt|frac)"
    r"|[ \t$)*]*\(?[A-J]\)?[ \t$.]*(?:\n|$)"
    r"|[\s$)]*(?:\\text\s*\{\s*)?(?:hundred|thousand|[mb]illion|dozen|times|plus|minus)\b"
    r"|[ \t$*)(\]\\,;:–—-]*(?:(?:is|was|are|seems|looks|can?|does|do)(?: \w+)? ?)?"
    rf"(?i:{MAYBE}|{NOT})"
)
TAKEN_BACK = re.compile(  # in what follows an answer
    rf"(?:^|[.!?\n])[\s$*)(\]\\,;–—-]*(?:{MAYBE}|no[,.:!]|(?:or|wait|hmm|actually|sorry)\b(?!\n\n))"
    r"|\b(?:this|that|which|it|answer)(?: (?:is|was|be|can|may|could|looks|seems|probably)){0,3} ?"
    r"(?:(?:not|n['’]t) (?:right|correct|true|valid|the)|wrong|incorrect|false|invalid)\b"
    rf"|\bor {MAYBE}",
    re.IGNORECASE,
)
BOTH = re.compile(  # between two boxes in a sentence: not only the second is meant
    rf"{MAYBE}|\b(?:or|and|if|though|although|while|whereas|too|also)\b|[=&]", re.IGNORECASE
)
DATE = re.compile(r"(?:\d{4}([-/])\d\d?\1|\d\d?([-/])\d\d?\2\d\d)\d\d?")
SENTENCE_END = re.compile(r"[.!?][$*)\"'’\]]*(?=\s|$)|\n\s*\n")
ANSWER_END = re.compile(
    r"[.!?][$*)\"'’\]]*\s+(?=[\"'($*\\]*[A-Z])"
    r"|[\s,;(–—]+(?:which|because|since|as|so|thus|hence)\b"
)


def extract_answer(text: str) -> str | None:
    r"""What a response gives as its answer: its last \boxed{…}; else what follows the last `####`
    or "answer is"; else all of it if it is one line or one formula; else None. Boxes with nothing
    but "and" or "or" between them are a list; an answer that is hedged or taken back is none."""
    if BOX.search(text):
        return boxed_answer(text)
    if MARK.search(text):
        return announced_answer(text)
    text = text.strip()
    formula = text.startswith((r"\[", "$$", r"\begin")) and text.endswith((r"\]", "$$", "}"))
    return text if text and (formula or "\n" not in text) else None


def boxed_answer(text: str) -> str | None:
    """The content of the last box, or of several if nothing but "and" or "or" is between them."""
    gaps: list[str] = []  # the text before each box
    boxes: list[str | None] = []  # None: never closed
    end = 0
    for found in last_matches(BOX, text, MAX_BOXES):
        if found.start() >= end:  # not in another one
            gaps.append(text[end : found.start()])
            rest = text[found.end() : found.end() + MAX_BOX]
            box = enclosed(rest) if rest.startswith("{") else rest[:1] or None
            end = found.end() + len(box or "") + (2 if box is not None and rest[0] == "{" else 0)
            boxes.append(box and announced_answer(box))
    last = boxes[-1]
    tail = text[end : end + NEAR]
    if last and re.fullmatch(r"(?:\\text\w*\{)?\(?[A-J]\)?\}?", last):
        tail = re.sub(r"^\s+\d+", "", tail)  # a choice, and what it says
    if not last or AFTER.match(tail) or TAKEN_BACK.search(tail):
        return None
    if len(boxes) > 1 and all(box and same_answer(box, last) for box in boxes):
        return last
    first = len(boxes) - 1
    while first and connects(gaps[first]):
        first -= 1
    before = gaps[first][-NEAR:]
    in_sentence = first and not SENTENCE_END.search(before)  # with the box before it
    if BEFORE.search(before) or (in_sentence and BOTH.search(before)):
        return None
    parts = [box for box in boxes[first:] if box]
    return "; ".join(parts) if len(parts) == len(boxes) - first else None


def last_matches(pattern: re.Pattern[str], text: str, count: int) -> deque[re.Match[str]]:
    """At most `count`, in their order."""
    for place in (max(0, len(text) - MAX_BOX), 0):  # near the end there are enough, mostly
        found = deque(pattern.finditer(text, place), maxlen=count)
        if len(found) == count:
            break
    return found


def enclosed(text: str, opening: str = "{", closing: str = "}") -> str | None:
    """What stands in the bracket that opens `text`, or None if it is never closed."""
    depth = 0
    for found in re.finditer(r"\\.|[()\[\]{}]", text, re.DOTALL):
        depth += (found[0] in opening) - (found[0] in closing)
        if depth == 0:
            return text[1 : found.start()]
    return None


def connects(gap: str) -> bool:
    """Whether what stands between two boxes only joins them; an empty line parts them."""
    gap, items = re.subn(r"\n\s*(?:\d{1,2}[.)]|[-*•])\s", " ", gap[:NEAR])  # of an enumeration
    words = re.sub(r"\\(?:[()\[\],;:! ]|q?quad|text)|[{}$*~]", " ", gap)
    parts = not items and words.isspace() and words.count("\n") > 1
    return len(gap) < NEAR and not parts and not re.sub(r"\b(?:or|and)\b|[\s,;/&]", "", words)


def announced_answer(text: str) -> str | None:
    """What the last "answer is" or `####` of a text announces; without one, the text."""
    if not (marks := last_matches(MARK, text, 1)):
        return text
    start, end = marks[0].span()
    if BEFORE.search(text[max(0, start - NEAR) : start].rpartition("\n")[2]):
        return None
    filler = r"(?:(?:simply|just|therefore|thus|then|equal to|given by)\s+)*"
    tail = text[end:]
    text = re.sub(r"^[\s:=]*(?:\*+(?=\s))?[\s:=]*" + filler, "", tail)
    if text.startswith("- ") and "\n" in tail[: len(tail) - len(text)]:  # the first of several
        return None
    display = re.match(r"(?:\\\[|\$\$)(.*?)(?:\\\]|\$\$)", text, re.DOTALL)
    if display:
        text = " ".join(display[1].split()) + text[display.end() :]
    answer, _, tail = text.partition("\n")
    if found := ANSWER_END.search(answer, 0, MAX_LENGTH):
        answer, tail = answer[: found.start()], answer[found.start() :] + "\n" + tail
    if len(answer) < MAX_LENGTH:
        inside = enclosed("{" + answer)  # \text{The answer is } 42
        answer = answer if inside is None else inside + answer[len(inside) + 1 :]
    return None if TAKEN_BACK.search(tail[:NEAR]) else answer.strip() or None


def is_correct(prediction: str, gold: str) -> bool:
    """Whether a response, or an answer taken from one, gives the right answer."""
    given, wanted = extract_answer(prediction), extract_answer(gold)
    return given is not None and wanted is not None and same_answer(given, wanted)


NUMBER = r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?"
LAST_NUMBER = re.compile(rf"(?<![\w.])(?<![A-Za-z]\^){NUMBER}(?![\d.]*[kKM]\b)")
OTHER_NUMBER = re.compile(r"(?:[\d)] ?,? ?|(?i:minus |- ))\Z")  # before one: it is not alone


def likely_answer(text: str, gold: str) -> str:
    """What a text in no particular form seems to answer, where `gold` is a number: the last number
    that it says, after "answer is" if it says that; or "" where this is a part of something else,
    or hedged. For another `gold`, or where the text has a box, all of it."""
    wanted = clean(extract_answer(gold) or gold).strip("$\\()+ ")
    if BOX.search(text) or not re.fullmatch(NUMBER, wanted.replace("\\", "")):
        return text
    marks = last_matches(MARK, text, 1)
    said = clean(text[marks[-1].end() :] if marks else text)
    numbers = last_matches(LAST_NUMBER, said, 1)
    if not numbers:
        return ""
    before, after = said[: numbers[0].start()][-NEAR:], said[numbers[0].end() :][:NEAR]
    alone = not (BEFORE.search(before) or OTHER_NUMBER.search(before) or AFTER.match(after))
    return numbers[0][0] if alone else ""


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are the same: as text, or else as what they mean."""
    if max(len(one), len(other)) > MAX_LENGTH:
        return squeeze(one) == squeeze(other) != ""
    one, other = clean(one), clean(other)
    plain, wanted = (squeeze(unwrap(text)).rstrip(".") for text in (one, other))
    if plain == wanted:
        return plain != ""
    value, right = read_answer(one), read_answer(other)
    return value is not None and right is not None and same(value, right)


@lru_cache(maxsize=4096)
def read_answer(text: str) -> Value | None:
    """What a cleaned answer is, or None if it cannot be read."""
    plain = unwrap(text)
    if HEDGE.search(plain) and re.search(r"[^A-Za-z\s]", plain):
        return None  # "not x=5" is more than words, but not an answer
    if DATE.fullmatch(plain):
        return None  # 2023-01-01 is not 2021
    try:
        return read(text, 0)
    except (Unreadable, ArithmeticError, ValueError, RecursionError):
        return None


# ----------------------------------------------------------------------------------------- cleaning

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "theta": "θ", "mu": "μ",
    "lambda": "λ", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "psi": "ψ", "omega": "ω",
    "infty": "∞", "varphi": "ϕ", "ell": "ℓ",
}  # fmt: skip
SIGNS = str.maketrans({
    **{sign: rf"\{name} " for name, sign in GREEK.items()},
    "−": "-", "–": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
    "÷": r"\div ", "⁄": "/", "∕": "/", "π": r"\pi ", "∪": r"\cup ", "∈": r"\in ", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "∛": r"\sqrt[3]",
    "∅": r"\emptyset ", "ℝ": r"\mathbb R", "ℤ": r"\mathbb Z", "ℚ": r"\mathbb Q", "ℕ": r"\mathbb N",
    "ℂ": r"\mathbb C", "`": "",
    **{sign: r"\frac{" + unicodedata.normalize("NFKC", sign).replace("⁄", "}{") + "}"
       for sign in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"},
})  # fmt: skip
FUNCTION_NAMES = "arcsin|arccos|arctan|sinh|cosh|tanh|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp"
REPLACED: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [  # in this order
    (r"(?:√|(?<![\\a-zA-Z])sqrt)\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}"),
    ("√", r"\\sqrt "),
    (r"\.{3,}|\\[cl]?dots(?![a-zA-Z])", r"\\dots "),
    (r"(?<![\w)}\].*])\*\*([^*\s](?:[^*]*[^*\s])?)\*\*(?![\w(\\{*])", r"\1"),  # bold
    (r"\\\$", r"\\dollar "),
    (r"\$|(?<!\\)\\[()\[\]]", ""),  # what opens and closes mathematics
    (r"\\(?:left|right)(?![a-zA-Z])\s*\.?", ""),
    (r"\\(?:middle|[bB]igg?[lrm]?|limits|displaystyle|textstyle)(?![a-zA-Z])", ""),
    (r"\\(?:boxed|fbox)\s*(?=\{)", ""),
    (r"\\(?:[lr]?vert|mid)(?![a-zA-Z])", "|"),
    (r"(?<!\d)\.(?=\d)", "0."),
    (r"(?<=\d)(?:,\s*\\!|\{,\})\s*(?=\d{3}(?!\d))", ""),  # between thousands
    (r"(?<=\d)\\,(?=\d{3}(?!\d))", ""),
    (r"(?<!\\)\\!", ""),
    (r"(?<=[^\\]\{)\d{1,3}(?:,\d{3})+(?=\})", lambda number: number[0].replace(",", "")),
    (r"\\[dtc](frac|binom)(?![a-zA-Z])", r"\\\1"),
    (r"(?<![\^_\w.])(\d+) (\d+)/(\d+)(?![\d/])", r"\1\\frac{\2}{\3}"),  # 3 1/2
    (r"\\frac\s*(\d)", r"\\frac{\1}"),
    (r"(\\frac\{[^{}]*\})\s*(\d)(?!\d)", r"\1{\2}"),
    (r"\\(?:leq|leqslant)(?![a-zA-Z])|<=", r"\\le "),
    (r"\\(?:geq|geqslant)(?![a-zA-Z])|>=", r"\\ge "),
    (r"\\neq(?![a-zA-Z])", r"\\ne "),
    (r"\\[lg]t(?![a-zA-Z])", lambda found: "<" if found[0] == r"\lt" else ">"),
    (r"\\(?:emptyset|varnothing)(?![a-zA-Z])", r"\\{\\}"),
    (r"\\mathbb\s*\{?\s*([A-Z])\s*\}?", r"\\mathbb\1 "),
    (r"\\operatorname\*?\s*\{\s*([a-z]+)\s*\}", r"\\\1 "),
    (r"\\(?:mbox|text(?:bf|it|rm|normal|sf|tt)|math(?:rm|bf|it|sf)|bm|boldsymbol)(?=\s*\{)",
     r"\\text"),
    (r"(\\text\s*\{[^{}]*)\}\s*/\s*\\text\s*\{", r"\1/"),
    (r"(\\text\s*\{[^{}]*\})\s*\\q?quad(?![a-zA-Z])", r"\1 "),
    (r"(?<=[\w}])\s*\\q?quad\s*(?=[\w({+-]|\\(?!text))", r" \\quads "),  # between two answers
    (r"(?<!\\)\\[,;: ]|(?<=\S)~|\\q?quad(?![a-zA-Z])", " "),
    (rf"(?<![\\a-zA-Z])({FUNCTION_NAMES}|pi)(?=[xyz]?(?![a-zA-Z]))", r"\\\1 "),
    (r"(?<![\\a-zA-Z])infinity(?![a-zA-Z])", r"\\infty "),
    (r"\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?", r"\\overline{\1\2\3}"),  # digits that repeat
    (r"\\(?:dot|bar|overline)\s*(?:\{(\d+)\}|(\d)(?!\d))", r"\\overline{\1\2}"),
    (r"(\d\.)\((\d+)\)", r"\1\\overline{\2}"),
    (r"(\.\d{0,20}?)((\d)\3\3+|(\d{2,12})\4+)\s*\\dots", r"\1\2\\overline{\3\4}"),
    (r"(?<![\d,])(\d*)\.(\d*)\\overline\{(\d+)\}(?!\d)", lambda found: repeating(*found.groups())),
    (r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)", r"\\degree "),
    (r"^\s*(?:[Oo]ption|[Cc]hoice)\s+(?=\(?[A-Z]\b)|^\s*[=:]+(?!\s*[A-Za-z]{2})", ""),
]  # fmt: skip


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """The same answer without what only concerns how it is printed."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱˣ]+", lambda power: f"^{{{power[0]}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉ₙ]+", lambda index: f"_{{{index[0]}}}", text).translate(SIGNS)
    text = unicodedata.normalize("NFKC", text).replace("−", "-")  # full width, powers, no-break
    for pattern, replacement in REPLACED:
        text = re.sub(pattern, replacement, text)
    return " ".join(text.split()).rstrip(".,;:* ")


def repeating(whole: str, digits: str, period: str) -> str:
    """A decimal whose last digits repeat for ever, as a fraction."""
    nines = (10 ** len(period) - 1) * 10 ** len(digits)
    value = Fraction(int("0" + whole + digits), 10 ** len(digits)) + Fraction(int(period), nines)
    return f"({value})"


def unwrap(text: str) -> str:
    r"""Without \text{…} around the words."""
    return re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)


def squeeze(text: str) -> str:
    """Without the spaces that mean nothing: all but those between digits."""
    return re.sub(r"(?<!\d) | (?!\d)", "", " ".join(text.split()))


UNITS = {  # each spelling of a unit, in the singular: the first one
    spelling: spellings.split()[0]
    for spellings in (
        "degree deg", "percent", "dollar usd", "cent", "euro", "unit", "point", "inch inche in",
        "ft foot feet", "yd yard", "mi mile", "m meter metre", "cm centimeter centimetre",
        "mm millimeter millimetre", "km kilometer kilometre", "g gram", "kg kilogram", "lb pound",
        "oz ounce", "l L liter litre", "ml milliliter millilitre", "gal gallon", "s sec second",
        "min minute", "h hr hour", "day", "week", "month", "yr year", "acre", "person people",
        "child children", "man men", "woman women", "square sq", "cubic cu", "per /",
    )
    for spelling in spellings.split()
} | {"mph": "mi per h", "kmh": "km per h", "kph": "km per h"}  # fmt: skip
UNIT = re.compile(  # in \text{…}; after a space; right after a number, where 2in may be a product
    r"(?:\s*\\text\s*\{\s*([A-Za-z][A-Za-z./\s]*)\}|(?:(?<=[\d)}])|(?<=\\pi))"
    r"(?:\s+([A-Za-z]{2}[A-Za-z./ ]*)|((?:[A-Za-z]{4,}|[cmk]m|kg|ft|hr)[A-Za-z./ ]*)))"
    r"\s*(?:\^\s*\{?\s*(\d)\s*\}?)?$"
)
NOT_COUNTED = re.compile(  # a number of these is another number, or none
    r".*(?:teen|ty|tie|illion|th|fold)s?|(?:zero|one|two|three|four|five|six|sixe|seven|eight|nine"
    r"|ten|eleven|twelve|hundred|thousand|lakh|crore|grand|dozen|score|pair|couple|half|halve|third"
    r"|quarter|time|double|triple|factorial|base|mod|equal|exceed|fail|lose|lack|misse|differ"
    r"|inverse|reciprocal)s?|halves|gross|twice|thrice|plus|minus|over|divided|multiplied|squared"
    r"|cubed|doubled|tripled|modulo|modulus|less|fewer|more|greater|least|most|than|above|below"
    r"|under|between|within|up|down|off|short|ago|early|late|each|every|per|the|and|nor|for|from"
    r"|are|was|has|does|this|its|his|yes|thus|always|sometimes|whereas|across|besides|binary|octal"
    r"|decimal"
)


def split_unit(text: str) -> tuple[str, str]:
    r"""(quantity, unit): what a number is a number of, bare or in \text{…}."""
    if text.startswith(r"\dollar"):
        return text.removeprefix(r"\dollar").strip(), "dollar"
    if text.endswith("%"):
        return text.rstrip("\\% "), "percent"
    if text.endswith(r"\degree") and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        return text.removesuffix(r"\degree").strip(), "degree"
    found = UNIT.search(text)
    quantity = text[: found.start()].strip() if found else ""
    if not found or not quantity:
        return text, ""
    in_text, spaced, glued, power = found.groups("")
    phrase = in_text + spaced + glued
    words = [word if len(word) == 1 else word.lower() for word in re.findall("[A-Za-z]+|/", phrase)]
    words = [word[:-1] if word[-1] == "s" and len(word) > 2 else word for word in words]
    known = all(word in UNITS for word in words)
    if not known and (glued or power or not counts(quantity, phrase.split(), not in_text)):
        return text, ""
    words = [UNITS.get(word, word) for word in words]
    if power:
        words.insert(-1, {"2": "square", "3": "cubic"}.get(power, power))
    unit = " ".join(words)
    half = re.search(r"^per\b|\bper per\b|\b(?:per|square|cubic)$", unit)
    return (text, "") if half else (quantity, unit)


def counts(quantity: str, words: Sequence[str], bare: bool) -> bool:
    """Whether a number and one or two plain words say how many there are of a thing."""
    number = re.sub(r"\\[a-zA-Z]+", "", quantity.rpartition("=")[2]).strip()
    words = [word.strip(".") for word in words]
    return (
        bool(re.search(r"\d", number) and not re.search("[A-Za-z]", number))
        and len(words) <= 2
        and all(re.fullmatch("[A-Za-z][a-z]{2,}", word) for word in words)
        and not any(NOT_COUNTED.fullmatch(word.lower()) for word in words)
        and (number == "1" or any(word.endswith("s") for word in words))
        and not (bare and any(len(word) < 4 and not is_word(word) for word in words))
    )


# ---------------------------------------------------------------------------------- reading a value


@dataclass
class Value:
    """What an answer is. Kind and mark must be equal; `items` are compared in order or as a bag."""

    kind: str  # see read_bare
    mark: str = ""  # brackets of a tuple, letters of a word, what an equation gives a value to
    items: Sequence[Value] = ()
    formula: Expression | None = None  # of an equation or inequality: right minus left side
    unit: str = ""
    english: bool = False  # of letters: a word, not a product of variables


OPENING, CLOSING = ("(", "[", "{", r"\{", r"\begin"), (")", "]", "}", r"\}", r"\end")
AND = r"[,;]?\s*(?:\\text\s*\{[\s,]*(?:and|or)[\s,]*\}|\b(?:and|or)\b)|[,&]"  # between items
CHOICE = re.compile(r"\s*(?:\(([A-J])\)[.:]?\s+|([A-J])(?:[.:]\s+|\)\s*))")
NAME = re.compile(  # what an equation can give a value to; not xy, which may be a product
    rf"(?!(?:e|i|[a-z]{{2,3}})$|\\(?:pi|{FUNCTION_NAMES}))\\?[a-zA-Z]+(?:_\w|_\{{\\?\w+\}})?"
    r"|\\text\{[A-Za-z]+\}|[a-zA-Z]\((?:\w+|\\text\{\w+\})\)|\\angle[A-Z]{1,3}"
    r"|\([a-z](?:,(?:[a-z]|\\[a-z]+))+\)"
)
ORDERS = ("xyz", "abcdefgh")  # of coordinates
RELATION = r"(<|>|\\(?:le|ge|ne)(?![a-zA-Z]))"
NO_BACKSLASH = rf"(?<![\\a-zA-Z])(?:{FUNCTION_NAMES}|max|min|lcm|gcd|det|lim)"


def read(text: str, depth: int) -> Value:
    """A value from a cleaned text."""
    if depth > MAX_DEPTH:
        raise Unreadable("too deep")
    text, unit = split_unit(text.strip())
    value = read_bare(text, depth)
    value.unit = unit or value.unit
    return value


def read_bare(text: str, depth: int) -> Value:
    """A value without its unit. The order matters: x=1, y=2 is a list before it is an equation."""
    if not text:
        raise Unreadable("empty")
    if choice := read_choice(text):
        return choice
    if found := re.fullmatch(r"\\text\s*\{([^{}]*)\}", text):
        return read_text(found[1].strip(), depth)
    if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        return Value("expression", formula=Expression(text.replace(",", "")))
    for separator in (";", AND):
        if len(parts := split(text, separator)) > 1:
            items = read_items(parts, depth)
            names = {item.mark for item in items if item.kind == "equation"}
            either = re.search(r"\bor\b", text)
            if either and all(same(item, items[0]) for item in items):  # 1/2 or 0.5
                return items[0]
            return Value("list", "or" if either and len(names) > 1 else "", items)  # x=1 or y=2
    if re.fullmatch(r"[A-Za-z]+(?: [A-Za-z]+)*", text) and len(text) > 1:
        return read_words(text, in_text=False)
    if found := re.match(r"[a-zA-Z]\s*\\in(?![a-zA-Z])\s*", text):
        rest = text[found.end() :]
        value = read(rest, depth + 1)
        if value.kind in ("tuple", "union") or rest.startswith((r"\{", r"\mathbb")):
            return value
        raise Unreadable("in what is no set")
    if len(parts := split(text, r"\\cup(?![a-zA-Z])")) > 1:
        return Value("union", items=[read(part, depth + 1) for part in parts])
    if found := re.fullmatch(r"\\begin\{([pbvB]?matrix)\}(.*)\\end\{\1\}", text):
        rows = [row.split("&") for row in found[2].split(r"\\") if row.strip()]
        cells = [Value("row", items=[read(cell, depth + 1) for cell in row]) for row in rows]
        return Value("matrix", found[1].replace("bm", "pm"), cells)
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inside = text[2:-2].strip()
        return Value("list", items=read_items(split(inside, ",") if inside else [], depth))
    if re.search(RELATION, text):
        return read_relation(text)
    if len(parts := split(text, "=")) > 1:
        return read_equation(parts, depth)
    if text[0] == "{" and enclosed(text) == text[1:-1]:
        return read(text[1:-1], depth + 1)
    if text[0] in "([" and text[-1] in ")]" and enclosed(text, "([{", ")]}") == text[1:-1]:
        if len(parts := split(text[1:-1], ",")) > 1:
            return Value("tuple", text[0] + text[-1], read_items(parts, depth))
        if text[0] + text[-1] != "()":
            raise Unreadable("one number in an interval's brackets")
        return read(text[1:-1], depth + 1)
    if r"\pm" in text or r"\mp" in text:
        both = (text.replace(r"\pm", a).replace(r"\mp", b) for a, b in ("+-", "-+"))
        return Value("list", items=[read(one, depth + 1) for one in both])
    return Value("expression", formula=Expression(text))


def read_choice(text: str) -> Value | None:
    """One of several, with what it says: (B) 12. Not (B) and (C), and not the sum (B) + 12."""
    found = CHOICE.match(plain := unwrap(text))
    rest = plain[found.end() :] if found else ""
    more = r"(?<![A-Za-z\\])[A-Z](?![A-Za-z])|\b(?:and|or|is|are|was|were)\b|[;&]"
    if not found or not re.match(r"-?[\w\\(\[{.|]", rest) or re.search(more, rest):
        return None
    return Value("expression", formula=Expression(found[1] or found[2]))


def read_text(text: str, depth: int) -> Value:
    r"""What stands in \text{…}: words, several of them, or mathematics."""
    if len(parts := split(text, AND)) > 1:
        parts = [rf"\text{{{part}}}" for part in parts if part.strip()]
        return Value("list", items=read_items(parts, depth))
    if re.fullmatch(r"[\sA-Za-z'’.-]*[A-Za-z]{2}[\sA-Za-z'’.-]*", text):
        return read_words(text, in_text=True)
    return read(text, depth + 1)


def read_words(text: str, in_text: bool) -> Value:
    """Letters and spaces: words, or else a product of variables."""
    words = re.findall("[A-Za-z]+", text)
    in_text = in_text or any(map(is_word, words))
    english = all(is_word(word, in_text) for word in words)
    product = None if in_text or text.isupper() else Expression(text)  # BADC may be an order
    return Value("word", re.sub(r"[\s.]", "", text), formula=product, english=english)


WORDS = {"yes", "no", "on", "up", "all", "was", "saw"}  # which otherwise might be variables


def is_word(letters: str, in_text: bool = False) -> bool:
    """Whether letters in a row are a word, not variables: "east" and "Sunday", not "xy" or "PQ"."""
    if letters.lower() in WORDS:
        return True
    if letters.isupper():  # EAST, but not the polygon ABCDE
        if len(letters) < 4 or [*letters] == sorted(letters):
            return False
    elif in_text or not letters[1:].islower():
        return letters[1:].islower()
    vowels = "[eio]" if len(letters) < 5 else "[aeiou]"  # abc and uvw are variables
    return len(letters) > 2 and bool(re.search(vowels, letters.lower()))


def read_items(parts: Sequence[str], depth: int) -> list[Value]:
    if any(re.match(r"\s*0\d", part) for part in parts):
        raise Unreadable("1,000 is a number, or two")
    items = [read(part, depth + 1) for part in parts]
    if any(item.kind in ("relation", "chain") for item in items):
        raise Unreadable("do both hold, or one of them?")
    return items


def read_relation(text: str) -> Value:
    """An inequality, by what is positive in it; or several in a row, 1 < x < 3."""
    sides = re.split(RELATION, text)
    relations = []
    for left, sign, right in zip(sides[::2], sides[1::2], sides[2::2]):
        if sign in (">", r"\ge"):
            left, sign, right = right, {">": "<", r"\ge": r"\le"}[sign], left
        relations.append(Value("relation", sign, formula=difference(left, right)))
    return relations[0] if len(relations) == 1 else Value("chain", items=relations)


def read_equation(sides: list[str], depth: int) -> Value:
    r"""An equation. One that gives a name to a value, such as x=5, is also that value; one between
    numbers, such as 2+3=5, is the last of them if it is true."""
    names = [squeeze(side) for side in sides]
    if len(sides) == 2 and NAME.fullmatch(names[1]) and not NAME.fullmatch(names[0]):  # 5=x
        names, sides = names[::-1], sides[::-1]
    named = NAME.fullmatch(names[0]) and not re.fullmatch("[A-J]", names[-1])  # not choice A=B
    if not named and len(sides) == 2 and (formula := difference(*sides)).names:
        return Value("equation", formula=formula)
    values = [read(side, depth + 1) for side in (sides[1:] if named else sides)]
    if not all(same(value, values[-1]) for value in values[:-1]):
        raise Unreadable("not equal")
    name, value = names[0], values[-1]
    if not named:
        if any(not one.formula or one.formula.names for one in values):
            raise Unreadable("several equations")
        return value
    letters = name.strip("()").split(",")
    if value.kind == "tuple" and len(letters) == len(value.items) and are_coordinates(letters):
        pairs = zip(letters, value.items)
        return Value("list", items=[Value("equation", letter, [item]) for letter, item in pairs])
    try:
        return Value("equation", name, [value], difference(sides[0], sides[-1]))
    except Unreadable:
        return Value("equation", name, [value])


def are_coordinates(names: Sequence[str]) -> bool:
    return len(names) > 1 and any("".join(sorted(names)) == order[: len(names)] for order in ORDERS)


def difference(left: str, right: str) -> Expression:
    return Expression(f"({right})-({left})")


def split(text: str, separator: str) -> list[str]:
    """Parts of `text` between separators, a pattern, that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(rf"({separator})|\\[a-zA-Z]+|\\.|[()\[\]{{}}]", text):
        if found[1] is None:
            depth += (found[0] in OPENING) - (found[0] in CLOSING)
        elif depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
    return [*parts, text[start:]]


# ---------------------------------------------------------------------------- reading an expression

CONSTANTS = {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}
FUNCTIONS = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "ln": cmath.log, "exp": cmath.exp,
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan, "sinh": cmath.sinh,
    "cosh": cmath.cosh, "tanh": cmath.tanh,
    "cot": lambda z: 1 / cmath.tan(z), "sec": lambda z: 1 / cmath.cos(z),
    "csc": lambda z: 1 / cmath.sin(z),
}  # fmt: skip
TIMES, OVER = (r"\cdot", r"\times", "*"), ("/", r"\div")
INDEX = r"_(?:\d+|[a-zA-Z]|\{[\w,\s]+\})"  # of a name; of a number, its base
TOKEN = re.compile(
    rf"\s*([a-zA-Z]{INDEX}|\d+{INDEX}|\d+\.?\d*(?:[eE][-+]?\d{{1,3}}(?!\d))?|\\[a-zA-Z]+"
    r"|\*\*|!!?|\S)"
)


class Parser:
    """The value of a formula by recursive descent: sum → product → power → atom. Its names have
    the values of one probe; None is no value, such as 1/0, or none that we can hold."""

    def __init__(self, text: str, probe: int) -> None:
        self.probe = probe
        self.tokens = [*TOKEN.findall(text.strip()), *[""] * 8]
        self.at = 0
        self.depth = 0
        self.names: set[str] = set()
        self.value = self.sum("")

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

    def sum(self, closed_by: str) -> Number | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        value = self.product()
        while sign := self.take("+", "-"):
            value = combine(add if sign == "+" else subtract, value, self.product())
        self.depth -= 1
        if self.token != closed_by:
            raise Unreadable(f"expected {closed_by}")
        self.take()
        return value

    def product(self) -> Number | None:
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign == "-"
        value = self.power()
        while True:
            if sign := self.take(*TIMES, *OVER):
                right = combine(operator.neg, self.power()) if self.take("-") else self.power()
                value = combine(multiply if sign in TIMES else divide, value, right)
                if sign in OVER and self.starts_factor():
                    raise Unreadable("1/2x is a half of x, or one over 2x")
            elif self.starts_factor():
                value = combine(multiply, value, self.power())
            else:
                break
        return combine(operator.neg, value) if negative else value

    def starts_factor(self) -> bool:
        """Whether what comes next is multiplied without a sign."""
        token, before = self.token, self.tokens[self.at - 1]
        if token[:1].isdigit():  # after a bracket; x2 may mean anything
            return before in (")", "}", "]", "!")
        ends = (r"\rfloor", r"\rceil", *TIMES, *OVER, "")
        return token not in ends and (token[0].isalpha() or token[0] in "({\\")

    def power(self) -> Number | None:
        value = self.atom()
        while True:
            if sign := self.take("!", "!!"):
                value = combine(COUNTING[sign], value)
                if self.token[:1] == "!":
                    raise Unreadable("more than two !")
            elif self.take("^", "**"):
                return combine(raise_to, value, self.argument(whole_number=True))
            else:
                return value

    def argument(self, whole_number: bool = False) -> Number | None:
        r"""What a command or ^ applies to: {…}, or one digit or letter (a whole number after ^)."""
        if self.take("{"):
            return self.sum("}")
        if whole_number and self.take("-"):
            return combine(operator.neg, self.atom())
        if not whole_number and self.token[:1].isdigit() and len(self.token) > 1:
            if not self.token.isdigit():
                raise Unreadable(self.token)
            digit, self.tokens[self.at] = self.token[0], self.token[1:]
            return Fraction(digit)
        return self.atom()

    def atom(self) -> Number | None:
        token = self.take()
        if "_" in token[1:]:
            return self.name(re.sub(r"[{}\s]", "", token))
        if token[:1].isdigit():
            return self.number(token)
        if token in ("(", "{"):  # [ may mean a whole part
            return self.sum(")" if token == "(" else "}")
        if token == "|":
            return combine(abs, self.sum("|"))
        if token.isascii() and token.isalpha():
            if token in "fghFGHPQ" and self.token in ("(", "^"):
                raise Unreadable("a function's value")
            return CONSTANTS.get(token) or self.name(token)
        if token.startswith("\\"):
            return self.command(token[1:])
        raise Unreadable(token)

    def number(self, token: str) -> Number | None:
        r"""A number; with a proper fraction after it, a mixed one: 3\frac{1}{2}."""
        value = Fraction(token)
        before = self.tokens[self.at - 2] if self.at > 1 else ""
        if token.isdigit() and before in ("", "(", "{", "+", "-", "|", *TIMES):
            part = self.tokens[self.at : self.at + 7]
            fraction = "".join(part[i] for i in (0, 1, 3, 4, 6)) == r"\frac{}{}"
            if fraction and part[2].isdigit() and part[5].isdigit():
                if int(part[2]) >= int(part[5]):
                    raise Unreadable("a mixed number, or a product?")
                self.at += 7
                value += Fraction(int(part[2]), int(part[5]))
        return value

    def name(self, name: str) -> Number | None:
        self.names.add(name)
        return value_of(name, self.probe)

    def command(self, name: str) -> Number | None:
        if name == "frac":
            return combine(divide, self.argument(), self.argument())
        if name == "binom":
            return combine(COUNTING[name], self.argument(), self.argument())
        if name == "sqrt":
            index = self.sum("]") if self.take("[") else Fraction(2)
            if self.token[:1].isdigit() and len(self.token) > 1:
                raise Unreadable("√ of how many digits?")
            return combine(root, self.argument(), index)
        if name in ("lfloor", "lceil"):
            rounded = {"lfloor": math.floor, "lceil": math.ceil}[name]
            return combine(partial(round_by, rounded), self.sum(name.replace("l", r"\r", 1)))
        if name == "log":
            base = self.argument(True) if self.take("_") else Fraction(10)
            logarithm = partial(combine, lambda z: cmath.log(to_complex(z)))
            return combine(divide, logarithm(self.function_argument()), logarithm(base))
        if name in FUNCTIONS:
            start = self.at
            power = self.argument(True) if self.take("^") else Fraction(1)
            if "-" in self.tokens[start : self.at]:
                raise Unreadable("an inverse function, or 1 over it?")
            value = combine(lambda z: FUNCTIONS[name](to_complex(z)), self.function_argument())
            return combine(raise_to, value, power)
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in GREEK or name.startswith("mathbb"):
            if self.token == "(":
                raise Unreadable("a function's value, or a product?")
            return self.name("\\" + name)
        raise Unreadable(name)

    def function_argument(self) -> Number | None:
        """(…), {…}, or the product of numbers and names that follows."""
        if self.token in ("(", "{"):
            return self.atom()
        value = self.power()
        while self.starts_factor() and self.token[1:] not in (*FUNCTIONS, "log"):
            name = self.token[1:] if self.token[0] == "\\" else ""
            if self.token in ("(", "{") or (name and name not in CONSTANTS and name not in GREEK):
                raise Unreadable("where does the argument end?")
            value = combine(multiply, value, self.power())
        return value


# ------------------------------------------------------------------------------- bounded arithmetic


def combine(operation: Callable[..., Number], *values: Number | None) -> Number | None:
    """The result; None if there is none, or one too large to be exact."""
    try:
        result = None if None in values else operation(*values)
    except (ArithmeticError, ValueError):
        return None
    if isinstance(result, Fraction):
        bits = max(result.numerator.bit_length(), result.denominator.bit_length())
        return result if bits <= MAX_BITS else None
    return result if result is not None and abs(result) < MAX_FLOAT else None


def to_complex(value: Number) -> complex:
    """A number in floating point; small enough that 1 more or less is seen."""
    if isinstance(value, Fraction) and abs(value) > MAX_FLOAT:
        raise Unreadable("too large to be exact in floating point")
    return complex(value)


def exactly(operation: Callable[[Any, Any], Any]) -> Callable[[Number, Number], Number]:
    """The operation on rational numbers as they are, on others in floating point."""

    def apply(a: Number, b: Number) -> Number:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return operation(a, b)
        x, y = to_complex(a), to_complex(b)
        lost = 0 < min(abs(x), abs(y)) * SIMPLE < max(abs(x), abs(y))
        if lost and operation in (operator.add, operator.sub):
            raise Unreadable("a small part that is lost beside a large one")
        return operation(x, y)

    return apply


add, subtract, multiply, divide = map(
    exactly, (operator.add, operator.sub, operator.mul, operator.truediv)
)


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


def exact_root(value: Fraction, index: int) -> Fraction | None:
    """The real root of a rational number that is a perfect power, else None."""
    if value < 0 or not 2 <= index <= 64:
        return None
    parts = [value.numerator, value.denominator]
    if index == 2:
        roots = [math.isqrt(part) for part in parts]
    else:
        roots = [round(part ** (1 / index)) if part < 2**900 else 0 for part in parts]
    return Fraction(*roots) if [root**index for root in roots] == parts else None


def root(value: Number, index: Number) -> Number:
    if not isinstance(index, Fraction) or index.denominator != 1 or index < 2:
        raise Unreadable("a root of that kind")
    if isinstance(value, Fraction) and value < 0 and index % 2:  # the real one
        return -raise_to(-value, 1 / index)
    return raise_to(value, 1 / index)


def round_by(rounded: Callable[[Any], int], value: Number) -> Number:
    if isinstance(value, Fraction):
        return Fraction(rounded(value))
    if abs(value.imag) > TOLERANCE or abs(value.real - round(value.real)) < 1e-6:
        raise Unreadable("too close to a whole number to round")
    return Fraction(rounded(value.real))


def whole(value: Number) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 500:
        raise Unreadable("expected a small whole number")
    return int(value)


COUNTING: dict[str, Callable[..., Number]] = {
    "!": lambda n: Fraction(math.factorial(whole(n))),
    "!!": lambda n: Fraction(math.prod(range(whole(n), 0, -2))),
    "binom": lambda n, k: Fraction(math.comb(whole(n), whole(k))),
}


# ---------------------------------------------------------------------------------------- comparing


class Expression:
    """A formula by its values: exact where it is rational, and at a few points if it has names."""

    def __init__(self, text: str) -> None:
        letters = re.findall(r"(?<![\\a-zA-Z])[A-Za-z]{3,}(?![\^a-zA-Z])", text)
        if any(map(is_word, letters)) or re.search(NO_BACKSLASH, text):
            raise Unreadable("a word among letters")
        if re.search(r"\.\d+\(\d+\)", text):
            raise Unreadable("0.1(6): a product, or digits that repeat?")
        first = Parser(text, 0)
        self.names = first.names
        others = range(1, NUM_PROBES if self.names else 1)
        self.values = [first.value, *(Parser(text, probe).value for probe in others)]

    def equals(self, other: Expression) -> bool:
        if self.names != other.names:
            return False
        pairs = list(zip(self.values, other.values))
        defined = [(a, b) for a, b in pairs if a is not None and b is not None]
        if any((a is None) != (b is None) for a, b in pairs) or len(defined) < len(pairs) / 2:
            return False
        return all(close(a, b, bool(self.names)) for a, b in defined)

    def ratio(self, other: Expression) -> Number | None:
        """The number c, if there is one but 0, by which this is c times the other everywhere."""
        if self.names != other.names or not self.names:
            return None
        pairs = [(a, b) for a, b in zip(self.values, other.values) if a != b or a]
        try:
            ratios = [divide(a, b) for a, b in pairs if a and b]
        except Unreadable:
            return None
        enough = len(ratios) == len(pairs) >= NUM_PROBES / 2
        return ratios[0] if enough and all(close(r, ratios[0], True) for r in ratios) else None


def value_of(name: str, probe: int) -> Fraction:
    """Where to look at an expression in `name`: of both signs, and the same in every run."""
    signs = random.Random(name).randint(1, 2**NUM_PROBES - 2)  # a bit for each: √(x²) is not x
    rng = random.Random(f"{name}/{probe}")
    sign = 1 if signs >> probe & 1 else -1
    return Fraction(sign * rng.randint(2, 97), rng.randint(2, 13))


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
    if a.kind != b.kind:
        return same_in_other_kind(a, b) or same_in_other_kind(b, a)
    if a.kind == "word":
        case_blind = a.english and b.english and a.mark.lower() == b.mark.lower()
        return case_blind or a.mark == b.mark or have_same_values(a, b)
    if a.kind == "equation":
        named = a.mark == b.mark != ""
        return (named and same(a.items[0], b.items[0])) or have_ratio(a, b)
    if a.mark != b.mark or len(a.items) != len(b.items):
        return False
    if a.kind == "expression":
        return have_same_values(a, b)
    if a.kind == "relation":
        return have_ratio(a, b, positive=a.mark != r"\ne")
    items = (*a.items, *b.items)
    names = {item.mark for item in items if item.kind == "equation"}
    equations = [[item.kind == "equation" for item in value.items] for value in (a, b)]
    if equations[0] != equations[1] and (len(names) > 1 or a.kind == "tuple"):
        return False  # only where there is but one name may it be left out
    words = any(item.kind == "word" and not item.formula for item in items)  # perhaps in order
    if a.kind in ("list", "union", "chain") and not words:
        left = list(b.items)
        for item in a.items:
            match = next((i for i, other in enumerate(left) if same(item, other)), None)
            if match is None:
                return False
            del left[match]
        return True
    return all(same(x, y) for x, y in zip(a.items, b.items))


def same_in_other_kind(a: Value, b: Value) -> bool:
    """Whether x=5 (a) is 5 (b); x=3, y=4 is (3,4); the letters yx, which might be a word, x·y."""
    if a.kind == "equation":
        return a.mark != "" and same(a.items[0], b)
    if a.kind == "list" and b.kind == "tuple" and a.mark == "":
        named = sorted((one for one in a.items if one.kind == "equation"), key=lambda x: x.mark)
        if len(named) == len(a.items) and are_coordinates([one.mark for one in named]):
            return same(Value("tuple", "()", [one.items[0] for one in named]), b)
    return a.kind == "word" and b.kind == "expression" and have_same_values(a, b)


def have_same_values(a: Value, b: Value) -> bool:
    return a.formula is not None and b.formula is not None and a.formula.equals(b.formula)


def have_ratio(a: Value, b: Value, positive: bool = False) -> bool:
    ratio = a.formula.ratio(b.formula) if a.formula and b.formula else None
    return ratio is not None and (not positive or ratio.real > 0)
