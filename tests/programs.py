"""Right programs that use objects, each with tests and a wrong twin."""


def entry(right: str, tests: str, good: str, bad: str) -> tuple[str, str, str]:
    """Return a program, its tests, and the program with `good`, which it has once, made `bad`."""
    assert right.count(good) == 1, good
    right = right.lstrip("\n")
    return right, tests.lstrip("\n"), right.replace(good, bad)


# name -> (right program, tests, wrong program)
PROGRAMS: dict[str, tuple[str, str, str]] = {
    "a method of Solution": entry(
        """
class Solution:
    def longestRun(self, nums):
        best = run = 0
        previous = None
        for number in nums:
            run = run + 1 if number == previous else 1
            previous = number
            best = max(best, run)
        return best
""",
        """
solution = Solution()
assert solution.longestRun([1, 1, 2, 2, 2, 3]) == 3
assert solution.longestRun(nums=[]) == 0
assert Solution().longestRun([5, 1, 5]) == 1
""",
        "else 1",
        "else 0",
    ),
    "attributes read and set": entry(
        """
class Player:
    def __init__(self, name, health=100):
        self.name = name
        self.health = health
        self.items = []

    def hit(self, damage):
        self.health = max(0, self.health - damage)
        if self.health == 0:
            self.items.clear()
""",
        """
player = Player("Ann")
assert player.name == "Ann" and player.health == 100
player.health = 30
player.items.append("key")
player.hit(10)
assert player.health == 20 and player.items == ["key"]
player.hit(50)
assert (player.health, player.items) == (0, [])
""",
        "max(0, self.health - damage)",
        "self.health - damage",
    ),
    "properties with setters": entry(
        """
class Rectangle:
    def __init__(self, width, height):
        self.width = width
        self.height = height

    @property
    def width(self):
        return self._width

    @width.setter
    def width(self, value):
        self._width = max(0, value)

    @property
    def area(self):
        return self._width * self.height
""",
        """
box = Rectangle(3, 4)
assert box.area == 12
box.width = 5
assert box.area == 20
box.width -= 7
assert box.width == 0 and box.area == 0
""",
        "max(0, value)",
        "abs(value)",
    ),
    "static and class methods": entry(
        """
class Duration:
    def __init__(self, seconds):
        self.seconds = seconds

    @classmethod
    def from_text(cls, text):
        seconds = 0
        for part in text.split(":"):
            seconds = seconds * 60 + int(part)
        return cls(seconds)

    @staticmethod
    def is_valid(text):
        parts = text.split(":")
        return all(part.isdigit() and int(part) < 60 for part in parts[1:])
""",
        """
assert Duration.from_text("1:02:03").seconds == 3723
assert Duration.is_valid("90:59") and not Duration.is_valid("1:60")
assert Duration(5).from_text("0:07").seconds == 7
assert isinstance(Duration.from_text("12"), Duration)
""",
        "int(part) < 60",
        "int(part) <= 60",
    ),
    "a dataclass: equality, order, fields, repr": entry(
        """
from dataclasses import dataclass, field


@dataclass(order=True)
class Version:
    major: int
    minor: int = 0
    tags: list = field(default_factory=list, compare=False)

    def bump(self):
        return Version(self.major, self.minor + 1, list(self.tags))
""",
        """
import dataclasses
assert Version(1, 2) == Version(1, 2, ["beta"]) != Version(1, 3)
assert Version(1, 9) < Version(2) and max(Version(3), Version(2, 8)).major == 3
assert repr(Version(3, 1)) == "Version(major=3, minor=1, tags=[])"
assert [f.name for f in dataclasses.fields(Version)] == ["major", "minor", "tags"]
assert dataclasses.asdict(Version(1, 2, ["a"]).bump()) == {"major": 1, "minor": 3, "tags": ["a"]}
""",
        ", compare=False",
        "",
    ),
    "members of Enum and IntEnum": entry(
        """
from enum import Enum, IntEnum


class Suit(Enum):
    CLUBS = "c"
    DIAMONDS = "d"
    HEARTS = "h"
    SPADES = "s"


class Rank(IntEnum):
    TEN = 10
    JACK = 11
    QUEEN = 12


def parse(card):
    return Rank(int(card[:-1])), Suit(card[-1].lower())
""",
        """
assert Suit.HEARTS.name == "HEARTS" and Suit.HEARTS.value == "h"
assert [suit.name for suit in Suit] == ["CLUBS", "DIAMONDS", "HEARTS", "SPADES"]
assert Suit("c") is Suit.CLUBS and Suit["SPADES"] == Suit.SPADES and len(Suit) == 4
assert Rank.QUEEN > Rank.JACK == 11 and sorted(Rank)[0] is Rank.TEN
rank, suit = parse("12H")
assert rank is Rank.QUEEN and suit is Suit.HEARTS and rank + 1 == 13
""",
        "card[-1].lower()",
        "card[-1]",
    ),
    "a namedtuple and a plain tuple": entry(
        """
from collections import namedtuple

Span = namedtuple("Span", "start stop")


def longest_span(text):
    best = Span(0, 0)
    start = 0
    for i in range(1, len(text) + 1):
        if i == len(text) or text[i] != text[start]:
            if i - start > best.stop - best.start:
                best = Span(start, i)
            start = i
    return best
""",
        """
assert longest_span("abbbcc") == (1, 4)
assert longest_span("aabb").stop == 2
start, stop = longest_span("xyzz")
assert (start, stop) == (2, 4) and longest_span("")[1] == 0
assert Span(1, 2)._replace(stop=9) == Span(start=1, stop=9)
assert isinstance(longest_span("q"), tuple) and repr(Span(0, 1)) == "Span(start=0, stop=1)"
""",
        "i - start > best",
        "i - start >= best",
    ),
    "a typing.NamedTuple with a method": entry(
        """
from typing import NamedTuple


class Pixel(NamedTuple):
    x: int
    y: int = 0

    def mirrored(self, width):
        return self._replace(x=width - 1 - self.x)


def mirror(pixels, width):
    return sorted(pixel.mirrored(width) for pixel in pixels)
""",
        """
assert Pixel(2).mirrored(10) == Pixel(7, 0) == (7, 0)
assert Pixel(1, 5).mirrored(4).x == 2
assert mirror([Pixel(0, 1), Pixel(3, 2)], 4) == [(0, 2), (3, 1)]
assert Pixel(3, 4)._asdict() == {"x": 3, "y": 4}
""",
        "width - 1 - self.x",
        "width - self.x",
    ),
    "a Counter and its methods": entry(
        """
from collections import Counter


def letters(text):
    return Counter(c for c in text.lower() if c.isalpha())
""",
        """
from collections import Counter
count = letters("Banana bread")
assert count == {"a": 4, "b": 2, "n": 2, "r": 1, "e": 1, "d": 1}
assert count.most_common(1) == [("a", 4)]
assert count["z"] == 0 and sum(count.values()) == 11
assert letters("AbA") + Counter("b") == Counter(a=2, b=2)
""",
        "text.lower()",
        "text",
    ),
    "an OrderedDict and a defaultdict": entry(
        """
from collections import OrderedDict, defaultdict


def group(words):
    groups = defaultdict(list)
    for word in words:
        groups[len(word)].append(word)
    return groups


def last_seen(words):
    seen = OrderedDict()
    for i, word in enumerate(words):
        seen[word] = i
        seen.move_to_end(word)
    return seen
""",
        """
groups = group(["a", "bb", "c"])
assert groups == {1: ["a", "c"], 2: ["bb"]} and groups[7] == [] and 7 in groups
seen = last_seen(["x", "y", "x"])
assert list(seen.items()) == [("y", 1), ("x", 2)]
seen.move_to_end("y")
assert list(seen) == ["x", "y"] and seen.popitem(last=False) == ("x", 2)
""",
        "        seen.move_to_end(word)\n",
        "",
    ),
    "a list changed in place": entry(
        """
def rotate(items, k):
    if items:
        k %= len(items)
        items[:] = items[-k:] + items[:-k] if k else items
""",
        """
a = [1, 2, 3, 4]
alias = a
assert rotate(a, 1) is None
assert a == [4, 1, 2, 3] and alias is a
rotate(a, 6)
assert alias == [2, 3, 4, 1]
""",
        "items[:] = ",
        "items = ",
    ),
    "an argument left as it was": entry(
        """
def without_duplicates(items):
    result = list(items)
    i = 0
    while i < len(result):
        if result[i] in result[:i]:
            del result[i]
        else:
            i += 1
    return result
""",
        """
a = [3, 1, 3, 2, 1]
b = without_duplicates(a)
assert b == [3, 1, 2]
assert a == [3, 1, 3, 2, 1] and b is not a
c = [1]
assert without_duplicates(c) == c and without_duplicates(c) is not c
""",
        "list(items)",
        "items",
    ),
    "a list in a dict changed in place": entry(
        """
def enrol(courses, name, course):
    students = courses.setdefault(course, [])
    if name not in students:
        students.append(name)
        students.sort()
    return len(students)
""",
        """
courses = {"art": ["Zoe"], "music": ["Ann"]}
art = courses["art"]
assert enrol(courses, "Bob", "art") == 2
assert art == ["Bob", "Zoe"] and courses["art"] is art
assert enrol(courses, "Cy", "law") == 1 and enrol(courses, "Cy", "law") == 1
assert courses == {"art": ["Bob", "Zoe"], "music": ["Ann"], "law": ["Cy"]}
""",
        "courses.setdefault(course, [])",
        "courses[course] = list(courses.get(course, []))",
    ),
    "a set and a dict changed in place": entry(
        """
def drop_short(words, limit):
    for word in list(words):
        if len(word) < limit:
            words.remove(word)


def swap_keys(table, a, b):
    table[a], table[b] = table[b], table[a]
    return table
""",
        """
words = {"a", "bb", "ccc"}
drop_short(words, 2)
assert words == {"bb", "ccc"}
table = {"x": 1, "y": 2}
assert swap_keys(table, "x", "y") is table
assert table == {"x": 2, "y": 1}
""",
        "len(word) < limit",
        "len(word) <= limit",
    ),
    "functions as arguments": entry(
        """
def fold(function, items, start):
    for item in items:
        start = function(start, item)
    return start


def group_by(key, items):
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
""",
        """
import operator
assert fold(operator.add, [1, 2, 3], 10) == 16
assert fold(lambda a, b: a - b, [1, 2], 10) == 7
assert fold(max, [], 4) == 4 and fold(operator.sub, (5,), 1) == -4
assert group_by(len, ["a", "bb", "c"]) == {1: ["a", "c"], 2: ["bb"]}
assert group_by(str.upper, ["a", "A"]) == {"A": ["a", "A"]}
assert group_by(lambda n: n % 2, []) == {}
""",
        "function(start, item)",
        "function(item, start)",
    ),
    "functions as results": entry(
        """
from functools import partial


def counter(start=0):
    def step(by=1):
        nonlocal start
        start += by
        return start

    return step


def compose(*functions):
    def composed(value):
        for function in reversed(functions):
            value = function(value)
        return value

    return composed


to_int = partial(int, base=2)
""",
        """
step, other = counter(5), counter()
assert (step(), step(by=10), other()) == (6, 16, 1)
assert compose(str, abs)(-7) == "7" and compose()(3) == 3
assert compose(lambda n: n + 1, lambda n: n * 2)(5) == 11
assert to_int("101") == 5 and callable(step)
assert compose(hex, to_int)("1111") == "0xf"
""",
        "reversed(functions)",
        "functions",
    ),
    "decorators of the tests' functions": entry(
        """
import functools


def memoize(function):
    cache = {}

    @functools.wraps(function)
    def wrapper(*args):
        if args not in cache:
            cache[args] = function(*args)
        return cache[args]

    return wrapper


def counted(function):
    def wrapper(*args, **kwargs):
        wrapper.calls += 1
        return function(*args, **kwargs)

    wrapper.calls = 0
    return wrapper
""",
        """
@counted
def slow(a, b=0):
    return a * 10 + b

fast = memoize(slow)
assert fast(1, 2) == 12 and fast(1, 2) == 12 and fast(2, 1) == 21
assert slow.calls == 2
assert slow(4, b=5) == 45 and slow.calls == 3
""",
        "if args not in cache:",
        "if args[0] not in cache:",
    ),
    "a linked list": entry(
        """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next


def build(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head


def reverse(head):
    previous = None
    while head:
        head.next, previous, head = previous, head, head.next
    return previous
""",
        """
head = reverse(build([1, 2, 3]))
values, node = [], head
while node is not None:
    values.append(node.val)
    node = node.next
assert values == [3, 2, 1] and reverse(None) is None
single = ListNode(7)
assert reverse(single) is single and single.next is None
""",
        "while head:",
        "while head and head.next:",
    ),
    "a binary tree": entry(
        """
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val = val
        self.left = left
        self.right = right


class Solution:
    def invertTree(self, root):
        if root:
            left, right = self.invertTree(root.left), self.invertTree(root.right)
            root.left, root.right = right, left
        return root

    def maxDepth(self, root):
        if root is None:
            return 0
        return 1 + max(self.maxDepth(root.left), self.maxDepth(root.right))
""",
        """
root = TreeNode(1, TreeNode(2, TreeNode(3)), TreeNode(4))
assert Solution().maxDepth(root) == 3 and Solution().maxDepth(None) == 0
assert Solution().invertTree(root) is root
assert root.left.val == 4 and root.right.val == 2
assert root.right.right.val == 3 and root.right.left is None
""",
        "root.left, root.right = right, left",
        "root.left = right\n            root.right = root.left",
    ),
    "endless generators": entry(
        """
def primes():
    found = []
    candidate = 2
    while True:
        if all(candidate % p for p in found):
            found.append(candidate)
            yield candidate
        candidate += 1


def cycle(items):
    while True:
        for item in items:
            yield item
""",
        """
from itertools import islice
assert next(primes()) == 2
assert list(islice(primes(), 6)) == [2, 3, 5, 7, 11, 13]
colours = cycle("rg")
assert [next(colours) for _ in range(3)] == ["r", "g", "r"]
assert next(colours) == "g"
assert next(p for p in primes() if p > 50) == 53
""",
        "candidate = 2",
        "candidate = 1",
    ),
    "a generator run to its end": entry(
        """
def chunks(items, size):
    start = 0
    while start < len(items):
        yield items[start : start + size]
        start += size
""",
        """
assert list(chunks([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
parts = chunks("abc", 2)
assert next(parts) == "ab" and list(parts) == ["c"]
try:
    next(parts)
    raise AssertionError("no StopIteration")
except StopIteration:
    assert next(parts, "none") == "none" and iter(parts) is parts
""",
        "start < len(items)",
        "start + size <= len(items)",
    ),
    "a generator with send": entry(
        """
def average():
    total = count = 0
    mean = None
    while True:
        number = yield mean
        if number is None:
            total = count = 0
            mean = None
            continue
        total += number
        count += 1
        mean = total / count
""",
        """
running = average()
assert next(running) is None
assert [running.send(n) for n in (10, 20, 30)] == [10, 15, 20]
assert running.send(None) is None
assert running.send(4) == 4.0
running.close()
assert next(running, "closed") == "closed"
""",
        "            total = count = 0\n",
        "            total = 0\n",
    ),
    "an exception with attributes": entry(
        """
class OutOfStock(Exception):
    def __init__(self, item, missing):
        super().__init__(f"{missing} more {item} needed")
        self.item = item
        self.missing = missing


def take(stock, item, count):
    have = stock.get(item, 0)
    if have < count:
        raise OutOfStock(item, count - have)
    stock[item] = have - count
    return stock[item]
""",
        """
stock = {"pen": 3}
assert take(stock, "pen", 1) == 2
try:
    take(stock, "pen", 5)
    raise AssertionError("nothing raised")
except OutOfStock as error:
    assert str(error) == "3 more pen needed" and error.args == ("3 more pen needed",)
    assert (error.item, error.missing) == ("pen", 3) and stock == {"pen": 2}
""",
        "raise OutOfStock(item, count - have)",
        "raise OutOfStock(item, count)",
    ),
    "an exception derived from ValueError": entry(
        """
class BadAge(ValueError):
    pass


def age(text):
    try:
        number = int(text)
    except ValueError:
        raise BadAge(f"not a number: {text}") from None
    if not 0 <= number < 150:
        raise BadAge(f"out of range: {number}")
    return number
""",
        """
assert age(" 42 ") == 42
for text, caught in (("x", ValueError), ("150", BadAge), ("-1", ValueError), ("1.5", BadAge)):
    try:
        assert age(text) == "nothing raised"
    except caught as error:
        assert isinstance(error, BadAge) and type(error).__name__ == "BadAge"
        assert text in str(error) and issubclass(BadAge, ValueError)
""",
        "< 150",
        "<= 150",
    ),
    "JSONDecodeError": entry(
        """
import json


def settings(text):
    values = {}
    for line in text.splitlines():
        if line.strip():
            values.update(json.loads(line))
    return values
""",
        """
import json
assert settings('{"a": 1}\\n\\n{"b": [null, 2.5]}') == {"a": 1, "b": [None, 2.5]}
try:
    settings('{"a": 1}\\n{"a": }')
    raise AssertionError("nothing raised")
except json.JSONDecodeError as error:
    assert (error.pos, error.lineno, error.doc) == (6, 1, '{"a": }')
    assert error.msg == "Expecting value" and isinstance(error, ValueError)
""",
        "            values.update(json.loads(line))\n",
        "            try:\n"
        "                values.update(json.loads(line))\n"
        "            except ValueError:\n"
        "                pass\n",
    ),
    "UnicodeDecodeError": entry(
        """
def decode(data, encodings=("ascii", "utf-8")):
    for encoding in encodings[:-1]:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode(encodings[-1])
""",
        """
assert decode(b"plain") == "plain" and decode("né".encode()) == "né"
try:
    decode(b"ab\\xff")
    raise AssertionError("nothing raised")
except UnicodeDecodeError as error:
    assert (error.encoding, error.start, error.end) == ("utf-8", 2, 3)
    assert error.object == b"ab\\xff" and error.reason == "invalid start byte"
assert decode(b"\\xe9", encodings=["latin-1"]) == "é"
""",
        "return data.decode(encodings[-1])",
        'return data.decode(encodings[-1], "replace")',
    ),
    "SystemExit with a code": entry(
        """
import sys


def main(arguments):
    if not arguments:
        sys.exit("usage: add NUMBER...")
    try:
        total = sum(int(argument) for argument in arguments)
    except ValueError:
        sys.exit(2)
    if total < 0:
        sys.exit()
    return total
""",
        """
codes = []
for arguments in ([], ["x"], ["-1"]):
    try:
        main(arguments)
    except SystemExit as error:
        codes.append(error.code)
assert codes == ["usage: add NUMBER...", 2, None]
assert main(["1", "2"]) == 3
""",
        "sys.exit(2)",
        "sys.exit(1)",
    ),
    "dates and timedeltas": entry(
        """
from datetime import datetime, timedelta


def next_weekday(day):
    day += timedelta(days=1)
    while day.weekday() >= 5:
        day += timedelta(days=1)
    return day


def length(start, end):
    return datetime.fromisoformat(end) - datetime.fromisoformat(start)
""",
        """
from datetime import date, datetime, timedelta
assert next_weekday(date(2024, 3, 8)) == date(2024, 3, 11)
assert next_weekday(date(2024, 2, 28)).isoformat() == "2024-02-29"
assert next_weekday(datetime(2024, 3, 5, 9, 30)) == datetime(2024, 3, 6, 9, 30)
assert length("2024-01-01", "2024-01-02T01:00") == timedelta(days=1, hours=1)
assert length("2024-01-01", "2023-12-31").total_seconds() == -86400
""",
        ">= 5",
        "> 5",
    ),
    "globals read after a call": entry(
        """
calls = 0
history = []
last = None


def record(event):
    global calls, last
    calls += 1
    if event != last:
        history.append(event)
    last = event
""",
        """
assert calls == 0 and last is None
for event in ("on", "on", "off"):
    record(event)
assert calls == 3
assert history == ["on", "off"] and last == "off"
""",
        "global calls, last",
        "global last\n    calls = 0",
    ),
    "printed output": entry(
        """
def report(rows):
    for name, price in rows:
        print(f"{name:<6}|{price:>7.2f}")
    print("-" * 14)
    print("total", sum(price for _, price in rows), sep=": ", end="!\\n")
""",
        """
import contextlib, io
out = io.StringIO()
with contextlib.redirect_stdout(out):
    assert report([("tea", 2.5), ("bread", 11)]) is None
    print("after")
lines = out.getvalue().split("\\n")
assert lines[:2] == ["tea   |   2.50", "bread |  11.00"]
assert lines[2:] == ["--------------", "total: 13.5!", "after", ""]
""",
        ":>7.2f",
        ":>6.2f",
    ),
    "Ellipsis as an argument": entry(
        """
def fill(pattern, values):
    values = iter(values)
    return [next(values) if item is ... else item for item in pattern]


def describe(item=...):
    return "missing" if item is Ellipsis else repr(item)
""",
        """
assert fill([1, ..., 3, ...], "ab") == [1, "a", 3, "b"]
assert describe() == describe(...) == "missing"
assert describe(None) == "None"
assert fill([...], [...]) == [...] and fill([...], [...])[0] is ...
""",
        "item is Ellipsis",
        "item is None",
    ),
    "operators of a vector": entry(
        """
class Vector:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __add__(self, other):
        return Vector(self.x + other.x, self.y + other.y)

    def __mul__(self, factor):
        return Vector(self.x * factor, self.y * factor)

    __rmul__ = __mul__

    def __neg__(self):
        return self * -1

    def __eq__(self, other):
        return (self.x, self.y) == (other.x, other.y)

    def __str__(self):
        return f"<{self.x}, {self.y}>"
""",
        """
v = Vector(1, 2)
assert v + Vector(3, 4) == Vector(4, 6)
assert (v * 3).x == 3 and (2 * v).y == 4
assert str(v * 3) == "<3, 6>" and f"{-v}" == "<-1, -2>"
v += Vector(1, 1)
assert v == Vector(2, 3) and v != Vector(3, 2)
""",
        "self.y * factor)",
        "self.y)",
    ),
    "comparison, sorting and hashing": entry(
        """
from functools import total_ordering


@total_ordering
class Card:
    ORDER = "23456789TJQKA"

    def __init__(self, rank, suit):
        self.rank = rank
        self.suit = suit

    def _key(self):
        return self.ORDER.index(self.rank), self.suit

    def __eq__(self, other):
        return self._key() == other._key()

    def __lt__(self, other):
        return self._key() < other._key()

    def __hash__(self):
        return hash(self._key())
""",
        """
cards = [Card("A", "s"), Card("T", "h"), Card("9", "c")]
assert "".join(card.rank for card in sorted(cards)) == "9TA"
assert max(cards).suit == "s" and min(cards) is cards[2]
assert Card("2", "c") <= Card("2", "d") and Card("K", "h") > Card("Q", "s")
assert len({Card("A", "s"), Card("A", "s"), Card("A", "h")}) == 2
assert {Card("T", "h"): 1}[cards[1]] == 1 and Card("9", "c") in set(cards)
""",
        "self.ORDER.index(self.rank)",
        "self.rank",
    ),
    "the container protocol": entry(
        """
class Row:
    def __init__(self, size):
        self.cells = ["."] * size

    def __len__(self):
        return len(self.cells)

    def __getitem__(self, index):
        return self.cells[index]

    def __setitem__(self, index, value):
        if value not in ".xo":
            raise ValueError(value)
        self.cells[index] = value

    def __delitem__(self, index):
        del self.cells[index]
""",
        """
row = Row(3)
row[1], row[-1] = "x", "o"
assert len(row) == 3 and row[1] == "x" and row[1:] == ["x", "o"]
assert "o" in row and "q" not in row and list(row) == [".", "x", "o"]
del row[0]
assert list(reversed(row)) == ["o", "x"] and bool(row)
try: row[0] = "q"
except ValueError as error: assert str(error) == "q" and row[0] == "x"
""",
        "self.cells[index] = value",
        "self.cells[abs(index)] = value",
    ),
    "iteration over an object": entry(
        """
class Playlist:
    def __init__(self, *songs):
        self.songs = list(songs)

    def __iter__(self):
        return iter(self.songs)

    def __reversed__(self):
        return reversed(self.songs)

    def __contains__(self, title):
        return any(title.lower() == song.lower() for song in self)
""",
        """
songs = Playlist("Blue", "Red", "Gold")
assert [song for song in songs] == ["Blue", "Red", "Gold"] == list(songs)
first, *others = songs
assert first == "Blue" and others == ["Red", "Gold"]
assert list(reversed(songs))[0] == "Gold" and "RED" in songs and "Pink" not in songs
assert dict(enumerate(songs, 1))[3] == "Gold" and max(songs, key=len) == "Blue"
assert list(zip(songs, songs))[1] == ("Red", "Red")
""",
        "title.lower() == song.lower()",
        "title == song",
    ),
    "a context manager": entry(
        """
class Transaction:
    def __init__(self, table):
        self.table = table
        self.error = None

    def __enter__(self):
        self.saved = dict(self.table)
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None:
            self.table.clear()
            self.table.update(self.saved)
            self.error = error
        return kind is KeyError
""",
        """
table = {"a": 1}
with Transaction(table) as good:
    table["b"] = 2
with Transaction(table) as bad:
    table["c"] = 3
    table["missing"]
assert table == {"a": 1, "b": 2} and good.error is None
assert isinstance(bad.error, KeyError) and bad.error.args == ("missing",)
""",
        "            self.table.clear()\n",
        "",
    ),
    "a callable object and counters of the class": entry(
        """
class Scale:
    made = 0
    unit = "cm"

    def __init__(self, factor):
        self.factor = factor
        self.calls = 0
        Scale.made += 1

    def __call__(self, *values):
        self.calls += 1
        return [value * self.factor for value in values]
""",
        """
double, triple = Scale(2), Scale(3)
assert Scale.made == 2 and double.made == 2
assert double(1, 5) == [2, 10] and triple() == [] and double(4) == [8]
assert (double.calls, triple.calls) == (2, 1) and callable(triple)
Scale.unit = "mm"
assert triple.unit == "mm"
double.unit = "km"
assert (Scale.unit, double.unit, triple.unit) == ("mm", "km", "mm")
""",
        "Scale.made += 1",
        "self.made += 1",
    ),
    "an abstract base class, inheritance, type names": entry(
        """
from abc import ABC, abstractmethod


class Animal(ABC):
    def __init__(self, name):
        self.name = name

    @abstractmethod
    def sound(self): ...

    def speak(self):
        return f"{self.name} the {type(self).__name__} says {self.sound()}"


class Dog(Animal):
    def sound(self):
        return "woof"


class Puppy(Dog):
    def sound(self):
        return super().sound().replace("oo", "i") + "!"
""",
        """
assert Dog("Rex").speak() == "Rex the Dog says woof"
pup = Puppy("Bit")
assert pup.speak() == "Bit the Puppy says wif!"
assert isinstance(pup, Dog) and isinstance(pup, Animal) and not isinstance(Dog("a"), Puppy)
assert type(pup).__name__ == "Puppy" and issubclass(Puppy, Animal) and type(pup) is Puppy
try: assert Animal("none") is None, "made an abstract object"
except TypeError as error: assert "Animal" in str(error)
""",
        "type(self).__name__",
        "Dog",
    ),
    "subclasses of list": entry(
        """
class Stack(list):
    def push(self, item):
        self.append(item)
        return self

    def peek(self):
        return self[-1]


class Sorted(list):
    def __init__(self, items=()):
        super().__init__(sorted(items))

    def append(self, item):
        super().append(item)
        self.sort()
""",
        """
stack = Stack().push(1).push(2)
assert stack == [1, 2] and isinstance(stack, list) and stack.pop() == 2
assert stack.peek() == 1 and len(stack) == 1 and stack + [5] == [1, 5]
result = Sorted([3, 1])
result.append(2)
assert result == [1, 2, 3] and isinstance(result, list) and result[::-1] == [3, 2, 1]
assert type(result) is not list and type(stack).__name__ == "Stack" and not Stack()
""",
        "        self.sort()\n",
        "",
    ),
    "str, repr, format and copies of an object": entry(
        """
class Board:
    def __init__(self, title, rows):
        self.title = title
        self.rows = rows

    def __repr__(self):
        return f"Board({self.title!r}, {self.rows!r})"

    def __str__(self):
        return "\\n".join("".join(row) for row in self.rows)

    def __format__(self, spec):
        return format(self.title, spec or ">8")
""",
        """
import copy
board = Board("it's", [["x", "."], [".", "o"]])
shallow, deep = copy.copy(board), copy.deepcopy(board)
board.rows[0][0] = "#"
assert str(board) == str(shallow) == "#.\\n.o" and str(deep) == "x.\\n.o"
assert shallow.rows is board.rows and deep.rows is not board.rows
assert repr(deep) == '''Board("it's", [['x', '.'], ['.', 'o']])'''
assert f"{board:*^8}" == "**it's**" and f"{board}" == "    it's" and f"{board!s:.2}" == "#."
""",
        "{self.title!r}",
        "'{self.title}'",
    ),
    # The same kinds again, in other domains and mixtures.
    "an LRU cache": entry(
        """
from collections import OrderedDict


class LRUCache:
    def __init__(self, capacity):
        self.capacity = capacity
        self.data = OrderedDict()

    def get(self, key):
        if key not in self.data:
            return -1
        self.data.move_to_end(key)
        return self.data[key]

    def put(self, key, value):
        self.data[key] = value
        self.data.move_to_end(key)
        if len(self.data) > self.capacity:
            self.data.popitem(last=False)
""",
        """
cache = LRUCache(2)
cache.put(1, "a"), cache.put(2, "b")
assert cache.get(1) == "a"
cache.put(3, "c")
assert cache.get(2) == -1 and cache.get(1) == "a"
assert list(cache.data) == [3, 1] and cache.data == {1: "a", 3: "c"}
""",
        "            return -1\n        self.data.move_to_end(key)\n",
        "            return -1\n",
    ),
    "a bank account": entry(
        """
class InsufficientFunds(Exception):
    def __init__(self, balance, amount):
        super().__init__(balance, amount)
        self.shortfall = amount - balance


class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self._balance = balance
        self.log = []

    @property
    def balance(self):
        return self._balance

    def withdraw(self, amount):
        if amount > self._balance:
            raise InsufficientFunds(self._balance, amount)
        self._balance -= amount
        self.log.append(-amount)
""",
        """
account = Account("Kim", balance=50)
account.withdraw(20)
try: assert account.withdraw(45) == "not raised"
except InsufficientFunds as error: assert error.shortfall == 15 and error.args == (30, 45)
account.withdraw(30)
assert account.balance == 0 and account.log == [-20, -30]
try: account.balance = 10 ** 6
except AttributeError: assert account.balance == 0 and not hasattr(account, "address")
""",
        "amount > self._balance",
        "amount >= self._balance",
    ),
    "a matrix class": entry(
        """
class Matrix:
    def __init__(self, rows):
        self.rows = [list(row) for row in rows]

    def __getitem__(self, position):
        i, j = position
        return self.rows[i][j]

    def __setitem__(self, position, value):
        i, j = position
        self.rows[i][j] = value

    def __matmul__(self, other):
        columns = list(zip(*other.rows))
        return Matrix([sum(a * b for a, b in zip(row, c)) for c in columns] for row in self.rows)

    def __eq__(self, other):
        return isinstance(other, Matrix) and self.rows == other.rows

    @property
    def T(self):
        return Matrix(zip(*self.rows))
""",
        """
a, b = Matrix([[1, 2], [3, 4]]), Matrix([[0, 1], [1, 0]])
assert a @ b == Matrix([[2, 1], [4, 3]]) != b @ a
assert a[1, 0] == 3 and a.T.rows == [[1, 3], [2, 4]]
a[0, 1] = 9
assert a[0, 1] == 9 and a.T[1, 0] == 9 and a != [[1, 9], [3, 4]]
assert (Matrix([[1, 2, 3]]) @ Matrix([[1], [1], [1]])).rows == [[6]]
""",
        "list(zip(*other.rows))",
        "other.rows",
    ),
    "a priority queue": entry(
        """
import heapq
from dataclasses import dataclass, field
from itertools import count


@dataclass(order=True)
class Job:
    priority: int
    number: int
    name: str = field(compare=False)


class Queue:
    def __init__(self):
        self._heap = []
        self._numbers = count()

    def push(self, name, priority=0):
        heapq.heappush(self._heap, Job(-priority, next(self._numbers), name))

    def pop(self):
        return heapq.heappop(self._heap).name

    def __len__(self):
        return len(self._heap)
""",
        """
queue = Queue()
for name, priority in [("b", 1), ("c", 5), ("a", 1)]:
    queue.push(name, priority)
queue.push("z")
assert len(queue) == 4 and [queue.pop() for _ in range(4)] == ["c", "b", "a", "z"]
assert not queue and Job(1, 2, "x") == Job(1, 2, "y") and Job(1, 2, "x") < Job(1, 3, "a")
try: assert queue.pop() == "not raised"
except IndexError: assert len(queue) == 0
""",
        "Job(-priority, ",
        "Job(priority, ",
    ),
    "an event emitter with callbacks": entry(
        """
class Emitter:
    def __init__(self):
        self.handlers = {}

    def on(self, event, handler=None):
        if handler is None:
            return lambda function: self.on(event, function)
        self.handlers.setdefault(event, []).append(handler)
        return handler

    def off(self, event, handler):
        self.handlers[event].remove(handler)

    def emit(self, event, *args, **kwargs):
        return [handler(*args, **kwargs) for handler in list(self.handlers.get(event, ()))]
""",
        """
emitter, seen = Emitter(), []
emitter.on("save", seen.append)
@emitter.on("save")
def shout(name, mark="!"): return name.upper() + mark
assert emitter.emit("save", "draft") == [None, "DRAFT!"] and seen == ["draft"]
emitter.off("save", seen.append)
assert emitter.emit("save", "x", mark="?") == ["X?"] and seen == ["draft"]
assert emitter.emit("quit") == []
""",
        "handler(*args, **kwargs) for",
        "handler(*args) for",
    ),
    "a trie": entry(
        """
class Trie:
    def __init__(self):
        self.children = {}
        self.end = False

    def insert(self, word):
        node = self
        for letter in word:
            node = node.children.setdefault(letter, Trie())
        node.end = True

    def __contains__(self, word):
        node = self
        for letter in word:
            node = node.children.get(letter)
            if node is None:
                return False
        return node.end

    def words(self, prefix=""):
        if self.end:
            yield prefix
        for letter in sorted(self.children):
            yield from self.children[letter].words(prefix + letter)
""",
        """
trie = Trie()
for word in ["tea", "ten", "to", "i"]:
    trie.insert(word)
assert "ten" in trie and "te" not in trie and "tend" not in trie and "" not in trie
assert list(trie.words()) == ["i", "tea", "ten", "to"]
assert list(trie.children["t"].words("T")) == ["Tea", "Ten", "To"]
assert trie.children["i"].end is True and next(Trie().words(), None) is None
""",
        "return node.end",
        "return True",
    ),
    "a graph class": entry(
        """
from collections import defaultdict, deque


class Graph:
    def __init__(self, edges=()):
        self.neighbours = defaultdict(set)
        for a, b in edges:
            self.add(a, b)

    def add(self, a, b):
        self.neighbours[a].add(b)
        self.neighbours[b].add(a)

    def path(self, start, goal):
        queue, before = deque([start]), {start: None}
        while queue:
            node = queue.popleft()
            if node == goal:
                return self.path_back(before, node)
            for other in sorted(self.neighbours[node] - before.keys()):
                before[other] = node
                queue.append(other)

    def path_back(self, before, node):
        return [] if node is None else self.path_back(before, before[node]) + [node]
""",
        """
graph = Graph([("a", "b"), ("b", "c"), ("a", "d"), ("d", "e"), ("e", "c")])
assert graph.path("a", "c") == ["a", "b", "c"] and graph.path("c", "a")[0] == "c"
assert graph.path("a", "a") == ["a"] and graph.path("a", "z") is None
graph.add("z", "e")
assert graph.path("a", "z") == ["a", "d", "e", "z"]
assert graph.neighbours["e"] == {"c", "d", "z"}
""",
        "queue.popleft()",
        "queue.pop()",
    ),
    "an iterator class": entry(
        """
class Countdown:
    def __init__(self, start):
        self.left = start

    def __iter__(self):
        return self

    def __next__(self):
        if self.left <= 0:
            raise StopIteration
        self.left -= 1
        return self.left + 1
""",
        """
timer = Countdown(3)
assert next(timer) == 3 and timer.left == 2 and iter(timer) is timer
assert list(timer) == [2, 1] and list(timer) == []
try: assert next(timer) == "not raised"
except StopIteration as stop: assert stop.value is None
assert sum(Countdown(4)) == 10 and next(Countdown(0), "gone") == "gone"
""",
        "return self.left + 1",
        "return self.left",
    ),
    "a polynomial class": entry(
        """
class Polynomial:
    def __init__(self, *coefficients):
        self.coefficients = list(coefficients)

    def __call__(self, x):
        value = 0
        for coefficient in reversed(self.coefficients):
            value = value * x + coefficient
        return value

    def __mul__(self, other):
        product = [0] * (len(self.coefficients) + len(other.coefficients) - 1)
        for i, a in enumerate(self.coefficients):
            for j, b in enumerate(other.coefficients):
                product[i + j] += a * b
        return Polynomial(*product)

    def __repr__(self):
        terms = [f"{c}x^{i}" for i, c in enumerate(self.coefficients) if c]
        return " + ".join(terms) or "0"
""",
        """
p = Polynomial(1, 2, 3)
assert p(0) == 1 and p(2) == 17 and Polynomial()(5) == 0
square = Polynomial(1, 1) * Polynomial(1, 1)
assert square.coefficients == [1, 2, 1] and square(0.5) == 2.25
assert repr(Polynomial(0, 4, 0, 5)) == "4x^1 + 5x^3" and str(Polynomial(0)) == "0"
assert list(map(p, range(3))) == [1, 6, 17]
""",
        "+= a * b",
        "= a * b",
    ),
    "a fraction class": entry(
        """
from math import gcd


class Ratio:
    def __init__(self, top, bottom=1):
        if bottom == 0:
            raise ZeroDivisionError(f"{top}/0")
        divisor = gcd(top, bottom) * (1 if bottom > 0 else -1)
        self.top, self.bottom = top // divisor, bottom // divisor

    def __add__(self, other):
        if isinstance(other, int):
            other = Ratio(other)
        return Ratio(self.top * other.bottom + other.top * self.bottom, self.bottom * other.bottom)

    __radd__ = __add__

    def __eq__(self, other):
        return (self.top, self.bottom) == (other.top, other.bottom)

    def __float__(self):
        return self.top / self.bottom

    def __str__(self):
        return f"{self.top}/{self.bottom}"
""",
        """
assert Ratio(2, 4) == Ratio(1, 2) and str(Ratio(3, -6)) == "-1/2"
assert Ratio(1, 3) + Ratio(1, 6) == Ratio(1, 2) and Ratio(1, 2) + 1 == Ratio(3, 2)
assert sum([Ratio(1, 4), Ratio(3, 4)]) == Ratio(1) and float(Ratio(3, 4)) == 0.75
try: assert Ratio(5, 0) == "not raised"
except ArithmeticError as error: assert type(error) is ZeroDivisionError and str(error) == "5/0"
""",
        " * (1 if bottom > 0 else -1)",
        "",
    ),
    "a state machine with Enum": entry(
        """
from enum import Enum, auto


class State(Enum):
    RED = auto()
    GREEN = auto()
    AMBER = auto()

    def next(self):
        members = list(State)
        return members[(members.index(self) + 1) % len(members)]


class Light:
    def __init__(self, state=State.RED):
        self.state = state
        self.seen = {state: 1}

    def step(self, times=1):
        for _ in range(times):
            self.state = self.state.next()
            self.seen[self.state] = self.seen.get(self.state, 0) + 1
        return self.state
""",
        """
light = Light()
assert light.step() is State.GREEN and light.state.name == "GREEN"
assert light.step(2) == State.RED and State.RED.value == 1
assert light.seen == {State.RED: 2, State.GREEN: 1, State.AMBER: 1}
assert repr(Light(State.AMBER).state) == "<State.AMBER: 3>" and str(State.RED) == "State.RED"
assert State.AMBER.next() is State(1) and State.RED != 1 and State.GREEN in set(State)
""",
        "{state: 1}",
        "{}",
    ),
    "tree traversal generators": entry(
        """
class Node:
    def __init__(self, value, *children):
        self.value = value
        self.children = children


def preorder(node):
    yield node.value
    for child in node.children:
        yield from preorder(child)


def postorder(node):
    for child in node.children:
        yield from postorder(child)
    yield node.value


def levels(node):
    level = [node]
    while level:
        yield [n.value for n in level]
        level = [child for n in level for child in n.children]
""",
        """
tree = Node("a", Node("b", Node("d"), Node("e")), Node("c"))
assert "".join(preorder(tree)) == "abdec" and "".join(postorder(tree)) == "debca"
assert list(levels(tree)) == [["a"], ["b", "c"], ["d", "e"]]
walk = preorder(tree.children[0])
assert next(walk) == "b" and [*walk] == ["d", "e"]
assert len(tree.children) == 2 and tree.children[1].children == ()
""",
        "yield from postorder(child)",
        "yield from preorder(child)",
    ),
    "a memo decorator with a limit": entry(
        """
import functools


def memo(limit):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args):
            if args in wrapper.cache:
                wrapper.hits += 1
                return wrapper.cache[args]
            if len(wrapper.cache) >= limit:
                del wrapper.cache[next(iter(wrapper.cache))]
            wrapper.cache[args] = function(*args)
            return wrapper.cache[args]

        wrapper.cache, wrapper.hits = {}, 0
        return wrapper

    return decorate
""",
        """
@memo(2)
def square(n):
    return n * n
assert [square(n) for n in (1, 2, 2, 3, 1)] == [1, 4, 4, 9, 1]
assert square.hits == 1 and square.cache == {(3,): 9, (1,): 1}
assert square.__name__ == "square"
assert memo(limit=1)(lambda *words: "-".join(words))("a", "b") == "a-b"
""",
        ">= limit",
        "> limit",
    ),
    "curry": entry(
        """
def curry(function, count):
    def collect(*args):
        if len(args) >= count:
            return function(*args)
        return lambda *more: collect(*args, *more)

    return collect


def flip(function):
    return lambda a, b: function(b, a)
""",
        """
import operator
add3 = curry(lambda a, b, c: a + b * 10 + c * 100, 3)
assert add3(1)(2)(3) == add3(1, 2)(3) == add3(1)(2, 3) == add3(1, 2, 3) == 321
one = add3(1)
assert one(0, 0) == 1 and one(5)(5) == 551
assert flip(operator.sub)(1, 10) == 9 and curry(flip(pow), 2)(3)(2) == 8
assert curry(print, 0)() is None
""",
        "collect(*args, *more)",
        "collect(*more, *args)",
    ),
    "a pipeline of functions": entry(
        """
class Pipeline:
    def __init__(self, *steps):
        self.steps = steps

    def __or__(self, step):
        return Pipeline(*self.steps, step)

    def __call__(self, items):
        for step in self.steps:
            items = step(items)
        return list(items)


def where(test):
    return lambda items: (item for item in items if test(item))


def select(function):
    return lambda items: map(function, items)
""",
        """
numbers = Pipeline() | where(lambda n: n % 2) | select(str)
assert numbers(range(6)) == ["1", "3", "5"]
longer = numbers | sorted | reversed
assert longer([11, 9, 4]) == ["9", "11"] and numbers([11, 9]) == ["11", "9"]
assert len(longer.steps) == 4 and len(numbers.steps) == 2
assert Pipeline(select(len))(["ab", ""]) == [2, 0] and Pipeline()("hi") == ["h", "i"]
""",
        "return Pipeline(*self.steps, step)",
        "self.steps += (step,)\n        return self",
    ),
    "a hierarchy of exceptions": entry(
        """
import json


class ConfigError(Exception):
    code = 1


class Unreadable(ConfigError):
    code = 2


class Missing(ConfigError, KeyError):
    def __str__(self):
        return f"no setting {self.args[0]}"


def setting(text, name):
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise Unreadable(error.colno) from error
    if name not in table:
        raise Missing(name)
    return table[name]
""",
        """
import json
errors = []
for text in ("{", "{}", '{"size": null}'):
    try: assert setting(text, "size") is None
    except ConfigError as error: errors.append(error)
assert [type(error) for error in errors] == [Unreadable, Missing] and errors[0].args == (2,)
assert [error.code for error in errors] == [2, 1] and str(errors[1]) == "no setting size"
assert isinstance(errors[0].__cause__, json.JSONDecodeError) and isinstance(errors[1], KeyError)
""",
        "if name not in table:",
        "if not table.get(name):",
    ),
    "a moving average class": entry(
        """
from collections import deque


class MovingAverage:
    def __init__(self, size):
        self.window = deque(maxlen=size)
        self.total = 0

    def add(self, value):
        if len(self.window) == self.window.maxlen:
            self.total -= self.window[0]
        self.window.append(value)
        self.total += value
        return self.total / len(self.window)
""",
        """
average = MovingAverage(3)
assert [average.add(n) for n in (1, 10, 4, 4)] == [1.0, 5.5, 5.0, 6.0]
assert average.total == 18 and list(average.window) == [10, 4, 4]
assert average.window.maxlen == 3 and average.window[-1] == 4
assert MovingAverage(size=1).add(-2) == -2
""",
        "            self.total -= self.window[0]\n",
        "            self.total -= self.window[-1]\n",
    ),
    "a text-wrapping printer": entry(
        """
import sys


class Printer:
    def __init__(self, width, bullet=None):
        self.width = width
        self.bullet = bullet
        self.lines = 0

    def show(self, text):
        line = self.bullet or ""
        for word in text.split():
            if line.strip() and len(line) + len(word) > self.width:
                self.write(line)
                line = " " * len(self.bullet or "")
            line += word + " "
        self.write(line)

    def write(self, line):
        self.lines += 1
        sys.stdout.write(line.rstrip() + "\\n")
""",
        """
import contextlib, io
printer, out = Printer(12, bullet="- "), io.StringIO()
with contextlib.redirect_stdout(out):
    printer.show("one two three four")
    Printer(5).show("ab cd ef")
assert out.getvalue() == "- one two\\n  three four\\nab cd\\nef\\n"
assert printer.lines == 2 and printer.bullet.strip() == "-"
""",
        "> self.width",
        ">= self.width",
    ),
    "an inventory of dataclasses": entry(
        """
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Item:
    name: str
    cents: int


@dataclass
class Inventory:
    counts: dict = field(default_factory=dict)

    def add(self, item, count=1):
        self.counts[item] = self.counts.get(item, 0) + count

    @property
    def value(self):
        return sum(item.cents * count for item, count in self.counts.items())

    def cheapest(self):
        return min(self.counts, key=lambda item: item.cents)
""",
        """
nail, saw = Item("nail", 2), Item("saw", 900)
shop = Inventory()
shop.add(saw), shop.add(nail, 100), shop.add(Item("nail", 2), count=50)
assert shop.value == 1200 and shop.counts == {saw: 1, nail: 150}
assert shop.cheapest() == nail and hash(nail) == hash(Item("nail", 2))
assert Inventory() == Inventory({}) != shop and repr(nail) == "Item(name='nail', cents=2)"
try: nail.cents = 3
except AttributeError as error: assert type(error).__name__ == "FrozenInstanceError"
""",
        "self.counts.get(item, 0) + count",
        "count",
    ),
    "observers of a subject": entry(
        """
class Subject:
    def __init__(self):
        self._observers = []
        self._value = 0

    def attach(self, observer):
        if observer not in self._observers:
            self._observers.append(observer)

    @property
    def value(self):
        return self._value

    @value.setter
    def value(self, value):
        old, self._value = self._value, value
        if old != value:
            for observer in self._observers:
                observer.update(old, value)


class Recorder:
    def __init__(self):
        self.changes = []

    def update(self, old, new):
        self.changes.append((old, new))
""",
        """
class Loud:
    def update(self, old, new): heard.append(new - old)
heard, subject, recorder, loud = [], Subject(), Recorder(), Loud()
for observer in (recorder, loud, recorder): subject.attach(observer)
subject.value = 5
subject.value += 0
subject.value = subject.value * 2
assert recorder.changes == [(0, 5), (5, 10)] and heard == [5, 5]
""",
        "if old != value:",
        "if value:",
    ),
    "a singleton": entry(
        """
class Settings:
    _instance = None

    def __new__(cls, **values):
        if cls._instance is None:
            cls._instance = super().__new__(cls)
            cls._instance.values = {}
        return cls._instance

    def __init__(self, **values):
        self.values.update(values)

    def __getattr__(self, name):
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None
""",
        """
a = Settings(theme="dark", size=10)
b = Settings(size=12)
assert a is b and a == b and id(a) == id(b)
assert a.size == 12 and a.theme == "dark" and a.values == {"theme": "dark", "size": 12}
assert getattr(b, "font", "none") == "none" and not hasattr(a, "font")
assert len({a, b, Settings()}) == 1
""",
        "self.values.update(values)",
        "self.values = values",
    ),
    "a builder with chained methods": entry(
        """
class Query:
    def __init__(self, table):
        self.table = table
        self.columns = []
        self.tests = []
        self.count = None

    def select(self, *columns):
        self.columns += columns
        return self

    def where(self, **tests):
        self.tests += [f"{name} = {value!r}" for name, value in tests.items()]
        return self

    def limit(self, count):
        self.count = count
        return self

    def __str__(self):
        text = f"SELECT {', '.join(self.columns) or '*'} FROM {self.table}"
        text += f" WHERE {' AND '.join(self.tests)}" * bool(self.tests)
        return text + (f" LIMIT {self.count}" if self.count is not None else "")
""",
        """
query = Query("pets").select("name").where(kind="cat", age=3).select("age").limit(5)
assert str(query) == "SELECT name, age FROM pets WHERE kind = 'cat' AND age = 3 LIMIT 5"
assert f"{Query('t')}" == "SELECT * FROM t" and str(Query("t").limit(0))[-7:] == "LIMIT 0"
assert query.where() is query and isinstance(query, Query) and query.columns == ["name", "age"]
""",
        "if self.count is not None else",
        "if self.count else",
    ),
    "sorting by a key of the program's": entry(
        """
import re
from functools import cmp_to_key


def natural(text):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\\d+)", text)]


def by_joined(a, b):
    return (a + b < b + a) - (a + b > b + a)


def largest(numbers):
    numbers.sort(key=cmp_to_key(lambda a, b: by_joined(str(a), str(b))))
    return int("".join(map(str, numbers)))
""",
        """
names = ["f10", "f2", "f1b", "f1a3", "f1a12"]
names.sort(key=natural)
assert names == ["f1a3", "f1a12", "f1b", "f2", "f10"]
assert max(["a2", "a10"], key=natural) == "a10"
numbers = [3, 30, 34]
assert largest(numbers) == 34330 and numbers == [34, 3, 30]
from functools import cmp_to_key as to_key
assert sorted(["9", "95", "1"], key=to_key(by_joined)) == ["9", "95", "1"]
""",
        "int(part) if part.isdigit() else part for",
        "part for",
    ),
    "a ring buffer": entry(
        """
class Ring:
    def __init__(self, size):
        self.slots = [None] * size
        self.start = self.used = 0

    def append(self, item):
        self.slots[(self.start + self.used) % len(self.slots)] = item
        if self.used < len(self.slots):
            self.used += 1
        else:
            self.start = (self.start + 1) % len(self.slots)

    def __len__(self):
        return self.used

    def __getitem__(self, index):
        if not -self.used <= index < self.used:
            raise IndexError("ring index out of range")
        return self.slots[(self.start + index % self.used) % len(self.slots)]
""",
        """
ring = Ring(3)
for letter in "abcde":
    ring.append(letter)
assert list(ring) == ["c", "d", "e"] and ring[-1] == "e" and ring[0] == "c"
assert len(ring) == 3 and "d" in ring and "a" not in ring and ring.slots == ["d", "e", "c"]
try: assert ring[3] == "not raised"
except IndexError as error: assert str(error) == "ring index out of range"
assert list(Ring(2)) == [] and not Ring(2)
""",
        "            self.start = (self.start + 1) % len(self.slots)\n",
        "            self.start += 1\n            self.slots[0] = item\n",
    ),
    "a class like set": entry(
        """
from collections.abc import MutableSet


class Folded(MutableSet):
    def __init__(self, words=()):
        self.words = {}
        for word in words:
            self.add(word)

    def add(self, word):
        self.words.setdefault(word.casefold(), word)

    def discard(self, word):
        self.words.pop(word.casefold(), None)

    def __contains__(self, word):
        return word.casefold() in self.words

    def __iter__(self):
        return iter(self.words.values())

    def __len__(self):
        return len(self.words)
""",
        """
a, b = Folded(["Apple", "PEAR", "apple"]), Folded(["pear", "Fig"])
assert len(a) == 2 and "APPLE" in a and sorted(a) == ["Apple", "PEAR"]
assert list(a & b) == ["pear"] and len(a | b) == 3 and list(a - b) == ["Apple"]
a.discard("pEaR"), a.add("Kiwi"), a.discard("none")
assert list(a) == ["Apple", "Kiwi"] and a == {"Kiwi", "Apple"} and a.isdisjoint(b)
assert isinstance(a & b, Folded) and Folded(["x"]) < Folded("xy") and not Folded()
""",
        "self.words.pop(word.casefold(), None)",
        "self.words.pop(word, None)",
    ),
    "temperatures with properties": entry(
        """
class Temperature:
    LOWEST = -273.15

    def __init__(self, celsius=0.0):
        self.celsius = celsius

    @property
    def celsius(self):
        return self._celsius

    @celsius.setter
    def celsius(self, value):
        if value < self.LOWEST:
            raise ValueError(f"{value} is below {self.LOWEST}")
        self._celsius = value

    @property
    def fahrenheit(self):
        return self.celsius * 9 / 5 + 32

    @fahrenheit.setter
    def fahrenheit(self, value):
        self.celsius = (value - 32) * 5 / 9
""",
        """
t = Temperature(100)
assert t.fahrenheit == 212 and Temperature().fahrenheit == 32.0
t.fahrenheit = 14
assert t.celsius == -10 and abs(t.fahrenheit - 14) < 1e-9
try: t.fahrenheit = -500
except ValueError as error: assert "below -273.15" in str(error) and t.celsius == -10
else: raise AssertionError("not raised")
t.celsius += 10; assert t.fahrenheit == 32 and Temperature(t.LOWEST).celsius == -273.15
""",
        "self.celsius = (value - 32) * 5 / 9",
        "self._celsius = (value - 32) * 5 / 9",
    ),
    "a parser returning namedtuples": entry(
        """
import re
from collections import namedtuple

Entry = namedtuple("Entry", ["level", "message", "code"], defaults=[0])
PATTERN = re.compile(r"\\[(?P<level>\\w+)\\]\\s*(?P<message>.*?)(?:\\s*#(?P<code>\\d+))?$")


def parse(line):
    match = PATTERN.match(line)
    if match is None:
        return None
    level, message, code = match.groups()
    return Entry(level.upper(), message, int(code or 0))


def errors(lines):
    return [entry for entry in map(parse, lines) if entry and entry.level == "ERROR"]
""",
        """
assert parse("[warn] disk full #28") == ("WARN", "disk full", 28)
assert parse("[info] ok") == Entry("INFO", "ok") and parse("plain") is None
found = errors(["[error] a b #7", "", "[info] c", "[ERROR]  d"])
assert [entry.code for entry in found] == [7, 0] and found[1].message == "d"
assert found[0]._asdict()["message"] == "a b" and Entry._fields[2] == "code"
assert sorted(found)[0] == min(found) == Entry("ERROR", "a b", 7)
""",
        "level.upper(), message",
        "level, message",
    ),
    "ranges of dates": entry(
        """
from datetime import date, timedelta


class DateRange:
    def __init__(self, first, last):
        self.first, self.last = first, last

    def __iter__(self):
        day = self.first
        while day <= self.last:
            yield day
            day += timedelta(days=1)

    def __len__(self):
        return max(0, (self.last - self.first).days + 1)

    def __contains__(self, day):
        return self.first <= day <= self.last

    def __and__(self, other):
        return DateRange(max(self.first, other.first), min(self.last, other.last))
""",
        """
from datetime import date, timedelta
week = DateRange(date(2024, 2, 26), date(2024, 3, 3))
assert len(week) == 7 and [day.day for day in week] == [26, 27, 28, 29, 1, 2, 3]
assert date(2024, 3, 3) in week and date(2024, 3, 4) not in week
march = week & DateRange(date(2024, 3, 1), date.max)
assert list(march)[0] == date(2024, 3, 1) and march.last - march.first == timedelta(2)
assert not week & DateRange(date(2025, 1, 1), date(2025, 1, 2))
""",
        ".days + 1)",
        ".days)",
    ),
    "an Enum of Roman numerals": entry(
        """
from enum import IntEnum


class Roman(IntEnum):
    I = 1
    V = 5
    X = 10
    L = 50
    C = 100

    @classmethod
    def parse(cls, text):
        digits = [cls[letter] for letter in text]
        pairs = zip(digits, digits[1:] + [0])
        return sum(-a if a < b else a for a, b in pairs)
""",
        """
assert Roman.parse("XCIV") == 94 and Roman.parse("XXIX") == 29 and Roman.parse("") == 0
assert Roman.X > Roman.V and Roman.L == 50 and Roman.X + Roman.I == 11
assert max(Roman) is Roman.C and [r.name for r in Roman if r < 10] == ["I", "V"]
assert Roman(5).name == "V" and list(Roman)[2].value == 10
assert sum(Roman) == 166 and [10, 20, 30][Roman.I] == 20
try: assert Roman.parse("XQ") == "not raised"
except KeyError as error: assert error.args == ("Q",)
""",
        "-a if a < b else a",
        "-a if a <= b else a",
    ),
    "an editor with undo": entry(
        """
class NothingToUndo(IndexError):
    pass


class Editor:
    def __init__(self, text=""):
        self.text = text
        self._done = []
        self._undone = []

    def write(self, more):
        self._done.append(self.text)
        self._undone.clear()
        self.text += more
        return self

    def undo(self):
        if not self._done:
            raise NothingToUndo("empty history")
        self._undone.append(self.text)
        self.text = self._done.pop()

    def redo(self):
        if self._undone:
            self._done.append(self.text)
            self.text = self._undone.pop()
""",
        """
editor = Editor("a").write("b").write("c")
editor.undo(); editor.undo(); editor.redo()
assert editor.text == "ab" and editor.write("d").text == "abd"
editor.redo()
assert editor.text == "abd"
editor.undo(); editor.undo()
try: assert editor.undo() == "not raised"
except IndexError as error: assert type(error) is NothingToUndo and editor.text == "a"
""",
        "        self._undone.clear()\n",
        "",
    ),
    "a decorator that tries again": entry(
        """
import functools


class GaveUp(RuntimeError):
    def __init__(self, errors):
        super().__init__(f"gave up after {len(errors)} tries")
        self.errors = errors


def retry(times, on=Exception):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            errors = []
            while len(errors) < times:
                try:
                    return function(*args, **kwargs)
                except on as error:
                    errors.append(error)
            raise GaveUp(errors) from errors[-1]

        return wrapper

    return decorate
""",
        """
left = [ValueError("one"), KeyError("two"), TypeError("three"), "fine"]
@retry(2, on=(ValueError, LookupError))
def work(*, mark):
    if isinstance(left[0], Exception): raise left.pop(0)
    return left[0] + mark
try: assert work(mark="!") == "not raised"
except GaveUp as e: assert str(e) == "gave up after 2 tries" and e.errors[0].args == ("one",)
assert len(left) == 2 and retry(2, on=TypeError)(work)(mark="?") == "fine?"
""",
        "while len(errors) < times:",
        "while len(errors) <= times:",
    ),
    "context managers made of generators": entry(
        """
from contextlib import contextmanager

depth = 0


@contextmanager
def nested(name, log):
    global depth
    log.append("  " * depth + name)
    depth += 1
    try:
        yield depth
    finally:
        depth -= 1
        log.append("  " * depth + "/" + name)


@contextmanager
def swapped(table, **values):
    saved = dict(table)
    table.update(values)
    yield table
    table.clear()
    table.update(saved)
""",
        """
log, table = [], {"a": 1}
with nested("x", log) as one, nested("y", log) as two:
    assert (one, two, depth) == (1, 2, 2)
try:
    with nested("z", log): raise KeyError("inside")
except KeyError: assert depth == 0
with swapped(table, a=2, b=3) as inner: assert inner is table and table == {"a": 2, "b": 3}
assert table == {"a": 1} and log == ["x", "  y", "  /y", "/x", "z", "/z"]
""",
        "    try:\n        yield depth\n    finally:\n        depth -= 1\n"
        '        log.append("  " * depth + "/" + name)\n',
        '    yield depth\n    depth -= 1\n    log.append("  " * depth + "/" + name)\n',
    ),
    "a grid turned in place": entry(
        """
class Solution:
    def rotate(self, matrix):
        matrix.reverse()
        for i in range(len(matrix)):
            for j in range(i):
                matrix[i][j], matrix[j][i] = matrix[j][i], matrix[i][j]


def flood(grid, i, j, colour):
    old, todo = grid[i][j], [(i, j)]
    while todo:
        i, j = todo.pop()
        if 0 <= i < len(grid) and 0 <= j < len(grid[i]) and grid[i][j] == old != colour:
            grid[i][j] = colour
            todo += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
""",
        """
grid = [[1, 2], [3, 4]]
first = grid[0]
assert Solution().rotate(grid) is None
assert grid == [[3, 1], [4, 2]] and first == [4, 2] and grid[1] is first
picture = [list("aab"), list("bab")]
flood(picture, 0, 0, "z")
assert ["".join(row) for row in picture] == ["zzb", "bzb"] and flood([[0]], 0, 0, 0) is None
""",
        "        matrix.reverse()\n",
        "        matrix = matrix[::-1]\n",
    ),
    "a subclass of dict": entry(
        """
class Sparse(dict):
    def __missing__(self, index):
        return 0

    def __setitem__(self, index, value):
        if value:
            super().__setitem__(index, value)
        else:
            self.pop(index, None)

    def dot(self, other):
        return sum(value * other[index] for index, value in self.items())

    def __neg__(self):
        return type(self)({index: -value for index, value in self.items()})
""",
        """
a, b = Sparse({0: 2, 5: 1}), Sparse()
b[5], b[7], a[3] = 4, 1, 0
assert a == {0: 2, 5: 1} and a[99] == 0 and 99 not in a and a.get(99) is None
assert a.dot(b) == 4 and b.dot(Sparse()) == 0
b[7] = 0
assert list(b) == [5] and len(b) == 1 and isinstance(b, dict)
assert -b == {5: -4} and type(-b).__name__ == "Sparse" and (-b)[1] == 0 and {**a}[5] == 1
""",
        "        else:\n            self.pop(index, None)\n",
        "",
    ),
    "a doubly linked list": entry(
        """
class Link:
    def __init__(self, value, before=None):
        self.value = value
        self.before = before
        self.after = None


class Chain:
    def __init__(self):
        self.head = self.tail = None

    def append(self, value):
        link = Link(value, self.tail)
        if self.tail is None:
            self.head = link
        else:
            self.tail.after = link
        self.tail = link
        return link

    def remove(self, link):
        if link is self.head:
            self.head = link.after
        else:
            link.before.after = link.after
        if link is self.tail:
            self.tail = link.before
        else:
            link.after.before = link.before
""",
        """
chain = Chain()
a, b, c = [chain.append(letter) for letter in "abc"]
assert chain.head is a and a.after.after is chain.tail is c and c.before == b
chain.remove(b)
assert a.after is c and c.before is a and c.before.value == "a"
chain.remove(c)
assert chain.tail is chain.head is a and a.after is None
chain.remove(a); assert (chain.head, chain.tail) == (None, None)
""",
        "link.after.before = link.before",
        "link.after.before = link",
    ),
    "a binary search tree": entry(
        """
class Tree:
    def __init__(self, values=()):
        self.value = self.left = self.right = None
        for value in values:
            self.insert(value)

    def insert(self, value):
        if self.value is None:
            self.value, self.left, self.right = value, Tree(), Tree()
        else:
            (self.left if value < self.value else self.right).insert(value)

    def __iter__(self):
        if self.value is not None:
            yield from self.left
            yield self.value
            yield from self.right

    def __len__(self):
        return sum(1 for _ in self)

    def __contains__(self, value):
        if self.value is None or self.value == value:
            return self.value == value
        return value in (self.left if value < self.value else self.right)
""",
        """
tree = Tree([5, 2, 8, 2])
assert list(tree) == [2, 2, 5, 8] and len(tree) == 4 and not Tree()
tree.insert(6)
assert tree.right.left.value == 6 and tree.left.right.value == 2
assert 6 in tree and 7 not in tree and sum(tree) == 23 and list(zip(tree, "ab"))[1] == (2, "b")
assert list(Tree("hello")) == sorted("hello") and max(Tree("hello")) == "o"
""",
        "            yield from self.left\n            yield self.value\n",
        "            yield self.value\n            yield from self.left\n",
    ),
    "abstract shapes": entry(
        """
from abc import ABC, abstractmethod
from math import pi


class Shape(ABC):
    registry = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Shape.registry[cls.__name__.lower()] = cls

    @property
    @abstractmethod
    def area(self): ...

    def __lt__(self, other):
        return self.area < other.area

    def __format__(self, spec):
        return f"{type(self).__name__.lower()} of {self.area:{spec or '.1f'}}"


class Circle(Shape):
    def __init__(self, radius):
        self.radius = radius

    area = property(lambda self: pi * self.radius**2)
""",
        """
class Square(Shape):
    def __init__(self, side): self.side = side
    area = property(lambda self: self.side ** 2)
shapes = [Square(2), Circle(1), Square(1)]
assert [f"{s:.0f}" for s in sorted(shapes)] == ["square of 1", "circle of 3", "square of 4"]
assert f"{max(shapes)}" == "square of 4.0" and isinstance(shapes[0], Shape)
assert Shape.registry == {"circle": Circle, "square": Square} and type(shapes[1]) is Circle
""",
        "return self.area < other.area",
        "return type(self).__name__ < type(other).__name__",
    ),
    "a generator that catches what is thrown in": entry(
        """
class Reset(Exception):
    def __init__(self, start=0):
        self.start = start


def collect(limit):
    total = 0
    while total < limit:
        try:
            total += yield total
        except Reset as reset:
            total = reset.start
    return f"full at {total}"


def collect_all(limits):
    names = []
    for limit in limits:
        names.append((yield from collect(limit)))
    return names
""",
        """
tally = collect(10)
assert [next(tally), tally.send(4), tally.send(3)] == [0, 4, 7]
assert tally.throw(Reset(1)) == 1 and tally.send(8) == 9
try: assert tally.send(2) == "not raised"
except StopIteration as stop: assert stop.value == "full at 11"
both = collect_all([1, 2]); next(both); assert both.send(1) == 0
try: assert both.send(5) == "not raised"
except StopIteration as stop: assert stop.value == ["full at 1", "full at 5"]
""",
        "total = reset.start",
        "total = 0",
    ),
    "prototypes that are copied": entry(
        """
import copy


class Monster:
    count = 0

    def __init__(self, kind, loot=(), leader=None):
        self.kind = kind
        self.loot = list(loot)
        self.leader = leader

    def __copy__(self):
        Monster.count += 1
        return Monster(self.kind, self.loot, self.leader)

    def spawn(self, **changes):
        twin = copy.copy(self)
        for name, value in changes.items():
            if not hasattr(twin, name):
                raise TypeError(f"no attribute {name}")
            setattr(twin, name, value)
        return twin
""",
        """
import copy
boss = Monster("orc", ["axe"])
boss.leader = boss
small = boss.spawn(kind="goblin"); small.loot.append("bow")
assert (boss.loot, small.loot, small.leader is boss) == (["axe"], ["axe", "bow"], True)
clone = copy.deepcopy(small)
assert clone.leader is not boss and clone.leader is clone.leader.leader and clone.loot == small.loot
assert copy.copy(boss).kind == "orc" and Monster.count == 2 and vars(small)["kind"] == "goblin"
""",
        "self.loot = list(loot)",
        "self.loot = loot",
    ),
}
