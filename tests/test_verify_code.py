"""data/verify_code.py: right programs pass, and nothing that is not right does, or does harm."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cheats import cheats
from conftest import needs_sandbox
from problems import PROBLEMS, Problem
from programs import PROGRAMS

from data.code_rows import read_tests
from data.tester import Handle, names_used
from data.verify_code import extract_code, run_tests

pytestmark = needs_sandbox
TESTS = ["assert f(1) == 2", "assert all(map(lambda x: f(x) == x + 1, [1, 5]))"]
RIGHT = "def f(x):\n    return x + 1\n"


def test_a_right_program_passes_and_a_wrong_one_does_not():
    assert run_tests(RIGHT, TESTS) == (True, "passed")
    assert run_tests(RIGHT.replace("1", "2"), TESTS) == (False, "wrong: assert f(1) == 2")
    passed, reason = run_tests("def f(x:", TESTS)
    assert not passed and "SyntaxError" in reason
    assert "NameError" in run_tests("", TESTS)[1]


def test_data_of_every_plain_kind_comes_through():
    values = [
        None, True, -(2**200), 1.5, float("inf"), 2j, "é\n", b"\x00", [1, (2, {3})], {"a": [{}]},
        frozenset({1}), range(1, 9, 2),
    ]  # fmt: skip
    checks = [f"assert f({value!r}) == {value!r}" for value in values if value != float("inf")]
    checks += ["assert f(float('inf')) == float('inf')", "assert type(f((1,))) is tuple"]
    assert run_tests("def f(x): return x", checks) == (True, "passed")


def test_tests_may_use_what_else_the_program_defines():
    code = (
        "import math\nfrom collections import Counter\nLIMIT = 3\n"
        "class Pair:\n    def __init__(self, a): self.a = a\n"
        "def total(pairs): return sum(p.a for p in pairs)\n"
        "def squares(n):\n    for i in range(n): yield i * i\n"
        "def fail(): raise ValueError('no')\n"
    )
    checks = [
        "assert total([Pair(1), Pair(2)]) == LIMIT",
        "assert list(squares(3)) == [0, 1, 4] and math.floor(1.5) == 1",
        "try:\n    fail()\n    assert 0\nexcept ValueError as e:\n    assert str(e) == 'no'",
    ]
    assert run_tests(code, checks) == (True, "passed")


def test_odd_but_right_programs_pass():
    code = (
        "from __future__ import annotations\nimport collections, itertools, fractions\n"
        "BIG = [True] * 10**6\nLOOP = {}\nLOOP['s'] = LOOP\nids = itertools.count()\n"
        "class E(ValueError): pass\n"
        "def f(x): return next(ids)\n"
        "def g(): raise E('no')\n"
        "def kind(x, t): return isinstance(x, t)\n"
        "def many(d): return collections.deque(d), d.keys(), fractions.Fraction(1, 3)\n"
        "def order(): return list({'a', 'b', 'c', 'd', 'e'})\n"
    )
    checks = [
        "assert f(1) == 0 and f(1) == 1 and kind(1, int) and not kind(1, str)",
        "try:\n    g()\n    assert 0\nexcept ValueError as e:\n    assert str(e) == 'no'",
        "from collections import deque\nfrom fractions import Fraction",
        "assert many({1: 2}) == (deque([1]), {1}, Fraction('1/3'))",
    ]
    assert run_tests(code, checks) == (True, "passed")
    orders = {run_tests(code, "assert order() == 0, str(order())")[1] for _ in range(3)}
    assert len(orders) == 1  # the same order of a set in every run
    huge = run_tests("def f(): return 'x' * 10**8", "f()")
    assert huge == (False, "the result cannot be sent: too much data")


@pytest.mark.parametrize("name", PROGRAMS)
def test_tests_use_a_programs_objects_as_in_one_process(name):
    right, tests, wrong = PROGRAMS[name]
    assert not run_tests(wrong, tests)[0]
    passed, reason = run_tests(right, tests)
    assert passed or name in REFUSED, reason
    assert not reason.startswith("wrong")


REFUSED = {  # with a reason: what two processes cannot tell, or must not
    "a class like set": "equals a set by its own word alone",
    "a dataclass: equality, order, fields, repr": "dataclasses.fields of an object",
    "a trie": "has a word by its own word alone, and insert, a method of lists",
    "a matrix class": "is compared with a list by its own __eq__",
    "abstract shapes": "a class of the tests derives from one of the program's",
    "iteration over an object": "finds what it does not have",
    "operators of a vector": "the text of what an operator made of a vector and a number",
    "prototypes that are copied": "a class attribute called count",
    "observers of a subject": "an object of the tests' own class is given to the program",
}


def test_arguments_are_afterwards_as_the_call_left_them():
    code = (
        "def turn(a): a.append(a.pop(0))\n"
        "def turned(a): return a[1:] + a[:1]\n"
        "def same(a): return a\n"
        "def deep(d): d['a'][0].add(3); d['b'] = d['a']\n"
        "class Bag:\n    def __init__(self, items): self.items = items\n"
        "    def grow(self): self.items.append(0)\n"
    )
    checks = [
        "a = [1, 2, 3]\nassert turn(a) is None and a == [2, 3, 1]",
        "b = turned(a)\nassert a == [2, 3, 1] and b == [3, 1, 2] and b is not a and same(a) is a",
        "d = {'a': [{1}]}\ndeep(d)\nassert d == {'a': [{1, 3}], 'b': [{1, 3}]}",
        "assert d['a'] is d['b']",
        "bag = Bag(a)\nbag.grow()\nassert a == [2, 3, 1, 0] and bag.items is a",
        "a.clear()\nassert bag.items == []",
    ]
    assert run_tests(code, checks) == (True, "passed")
    quiet = code.replace("a.append(a.pop(0))", "return None")
    assert "wrong: assert turn(a)" in run_tests(quiet, checks[:1])[1]
    loud = code.replace("return a[1:] + a[:1]", "a.append(a.pop(0)); return a")
    assert run_tests(loud, ["a = [1, 2]", "turned(a)", "assert a == [1, 2]"])[1].startswith("wrong")
    assert run_tests(loud, ["a = [1, 2]", "assert turned(a) is not a"])[1].startswith("wrong")


def test_what_the_tests_see_is_decided_by_the_tests_alone():
    assert names_used("assert f(1) == abs(x)") == {"f", "x"}
    assert names_used("import math\ndef g(f): return f(math.pi)\nassert g(len) == h") == {"h"}
    assert names_used("assert math.isclose(f(1), 2) and Counter(f('a')) == {}") == {"f"}
    assert names_used("from solution import f as g, sum\nassert g(1) == sum(2)") == {"f", "sum"}
    assert names_used("assert sum(10, 15) == 6") == {"sum"}
    assert names_used("assert sum([1, 2]) == len([3])") == set()


def test_a_builtins_name_is_the_programs_only_where_nothing_else_can_be_tested():
    assert run_tests("def sum(a, b): return a + b", "assert sum(1, 2) == 3")[0]
    assert run_tests(
        "def sum(a, b): return a + b", "from solution import sum\nassert sum(1, 2) == 3"
    )[0]
    cheat = "def f(x): return 0\ndef abs(x): return 0"
    assert not run_tests(cheat, "assert abs(f(1) - 2) < 1")[0]
    assert not run_tests("", "assert sorted([2, 1]) == [1, 2]")[0]
    two = "def sum(x): return 0\ndef list(x): return x"
    nothing = (False, "the tests use nothing of the program's")
    assert run_tests(two, "assert sum([1, 2]) == 3; assert sum(list((1, 2))) == 3") == nothing
    assert run_tests(RIGHT, "def test_f(): assert f(1) == 3") == nothing


HONEST = {  # the forms of tests that benchmarks have; f adds one, and g to each of a list
    "square": "assert (f(1) - 2) ** 2 < 1e-9 and -(f(1) - 2) < 1e-6\nassert 5.9 < f(5) < 6.1",
    "operators": "assert set(g([1])) ^ {2} == set() and g([1]) + [5] == [2, 5] and 2 - f(1) < 1",
    "methods": "assert str(f(1)).find('2') >= 0 and '2' in h(1) and h(1).startswith('2')\n"
    "assert h(5).index('6') == 0 and not k([1]).symmetric_difference({2})\nassert {2} <= k([1])",
    "equality": "assert f(1) == 2\nassert f(5) == 6",
    "tolerance": "assert abs(f(1) - 2) < 1e-6\nassert abs(f(5) - 6) < 1e-6",
    "rounding": "assert round(f(1), 2) == 2.0\nassert round(f(5), 2) == 6.0",
    "isclose": "import math\nassert math.isclose(f(1), 2)\nassert math.isclose(f(5), 6)",
    "set": "assert set(g([1, 2])) == {2, 3}\nassert set(g([3])) == {4}",
    "sorted": "assert sorted(g([2, 1])) == [2, 3]\nassert sorted(g([3])) == [4]",
    "tuple": "assert tuple(g([2, 1])) == (3, 2)",
    "all": "assert all(f(x) == x + 1 for x in [1, 5])\nassert sum(map(f, [1, 2])) == 5",
    "instance": "assert isinstance(f(1), int) and f(1) > 1\nassert f(1) < 3",
    "one of several": "assert f(1) in (2, 2.5)\nassert f(5) in [6]",
    "inside": "assert 3 in g([2, 1]) and 1 not in g([2, 1])\nassert g([2])[0] == 3",
    "length": "assert len(g([2, 1])) == 2 == g([1])[0]",
    "check": "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(5) == 6\n"
    "check(f)",
}


ADDS = (
    "def f(x): return x + 1\ndef g(a): return [f(x) for x in a]\n"
    "def h(x): return str(f(x))\ndef k(a): return set(g(a))\n"
)


@pytest.mark.parametrize("name", HONEST)
def test_no_cheat_passes_honest_tests(name):
    tests = HONEST[name]
    assert run_tests(ADDS, tests)[0]
    number = list(HONEST).index(name)
    made = dict(list(cheats(tests)) if number < 5 else list(cheats(tests))[number % 4 :: 4])
    with ThreadPoolExecutor(2) as pool:
        outcomes = pool.map(lambda program: run_tests(program, tests)[0], made.values())
    assert [what for what, passed in zip(made, outcomes) if passed] == []


CHEATS = {
    "exits": "import sys\nsys.exit(0)",
    "exits when it is called": "import os\ndef f(x): os._exit(0)",
    "raises SystemExit when it is called": "def f(x): raise SystemExit(0)",
    "swallows exceptions": "import sys\nsys.excepthook = print\ndef f(x): raise AssertionError",
    "patches assert": "import builtins\nbuiltins.AssertionError = Warning\ndef f(x): return 0",
    "patches exit": "import sys, os\nsys.exit = os._exit = lambda *a: None\ndef f(x): return 0",
    "prints passed": "import os\nprint('passed')\nos.write(1, b'passed')\ndef f(x): return 0",
    "writes passed to whatever is open": "import os\nfor n in range(3, 30):\n    try:\n"
    "        os.write(n, b'passed')\n    except OSError: pass\ndef f(x): return 0",
    "prints passed at exit": "import atexit\natexit.register(print, 'passed')\ndef f(x): return 0",
    "returns what equals everything": "class A(int):\n    def __eq__(self, other): return True\n"
    "    __hash__ = int.__hash__\ndef f(x): return A(0)",
    "looks for the expected value in its callers": "import sys\ndef f(x):\n"
    "    frame = sys._getframe()\n    while frame := frame.f_back:\n"
    "        for value in [*frame.f_code.co_consts, *frame.f_locals.values()]:\n"
    "            if value in (2, 6): return value\n",
    "ends the loop that it is called in": "def f(x): raise StopIteration",
    "reads a file": "def f(x): return open('/etc/hostname').read()",
}
HARMS = {
    "a fork bomb": "import os\nwhile True: os.fork()",
    "an endless loop": "while True: pass",
    "an endless loop in a call": "def f(x):\n    while True: pass",
    "100 GB of memory": "a = bytearray(100 * 2**30)\ndef f(x): return x + 1",
    "memory bit by bit": "a = []\nwhile True: a.append('x' * 10**7)",
    "1 GB of output": "for i in range(1000): print('x' * 10**6)\ndef f(x): return x",
    "a huge result": "def f(x): return 'x' * 10**9",
    "a deep result": "def f(x):\n    for i in range(10**5): x = [x]\n    return x",
    "a socket": "import socket\nsocket.socket()\ndef f(x): return x + 1",
    "a background process": "import subprocess\nsubprocess.Popen(['sleep', '9'])",
    "a signal to its parent": "import os\nos.kill(os.getppid(), 9)\ndef f(x): return x + 1",
    "a file": "open('made', 'w').write('x')\ndef f(x): return x + 1",
    "higher limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "a signal through a pipe's owner": "import os, fcntl\nr, w = os.pipe()\n"
    "fcntl.fcntl(r, 8, os.getppid())\ndef f(x): return x + 1",
    "the priority of its parent": "import os\nos.sched_setaffinity(os.getppid(), {0})",
    "a process that only the kernel calls a thread": "import ctypes\n"
    "if ctypes.CDLL(None).syscall(56, 0x3D0F00 - 0x10000 | 17, 0, 0, 0, 0) < 0: 1 / 0\n"
    "def f(x): return x + 1",
    "a process by a newer call": "import ctypes, struct\n"
    "how = struct.pack('=11Q', 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)\n"
    "if ctypes.CDLL(None).syscall(435, how, 88) < 0: 1 / 0\ndef f(x): return x + 1",
    "a thread for each number": "import threading, time\n"
    "while 1: threading.Thread(target=time.sleep, args=(99,)).start()",
    "a crash": "import ctypes\nctypes.string_at(0)",
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_program_cannot_pass_by(name):
    assert not run_tests(CHEATS[name], TESTS)[0]


@pytest.mark.parametrize("name", HARMS)
def test_a_program_cannot_do_harm_by(name):
    began = time.monotonic()
    assert not run_tests(HARMS[name], TESTS, timeout=1)[0]
    assert time.monotonic() - began < 20  # 1 s of CPU time, on a busy machine
    mine = ["ps", "--ppid", str(os.getpid()), "-o", "args="]
    assert b"verify_code" not in subprocess.run(mine, capture_output=True).stdout


def test_a_program_cannot_delete_or_change_a_file(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("here")
    before = victim.stat()
    acts = [
        "os.remove(v)", "os.rename(v, v + 'x')", "os.chmod(v, 0)", "open(v, 'a').write('x')",
        "os.truncate(v, 0)", "os.utime(v, (0, 0))", "shutil.rmtree(os.path.dirname(v))",
        "ctypes.CDLL(None).unlink(v.encode())",
    ]  # fmt: skip
    for act in acts:
        run_tests(f"import os, shutil, ctypes\nv = {str(victim)!r}\n{act}\n" + RIGHT, TESTS)
        after = victim.stat()
        assert victim.read_text() == "here", act
        assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns), act


FORGERIES = {  # messages that would have the tests' process run what it must not
    "a function for the class of an exception": """
said = ["tuple", [["bytes", b"+passed".hex()]]]
answer(["exception", ["held", 9, "", False, True, None], 5, said, None, None, ["tuple", []]])
while True:
    what = ask()["arguments"][-1]
    if what == "__bases__": answer(["tuple", [["builtin", "Exception"]]])
    elif what == "__new__": answer(["error", 1, "os", "write", []])
    else: answer(3); os._exit(0)
""",
    "a function for a class of exceptions": """
answer(["held", 0, "", False, True, None])
while True: ask(); answer(["error", 1, "os", "_exit", []])
""",
    "an object that equals everything": """
import unittest.mock
answer(["held", 0, "", False, True, None])
while True: ask(); answer(["error", 1, "unittest.mock", "ANY", []])
""",
    "data that changes": """
answer(["held", 0, "", False, True, None])
values = [1e300, -1e300] * 9
while True:
    answer(values.pop() if ask()["operation"] == "data" else ["held", 7, "list", True, True, None])
""",
    "an output that is no text": """
answer(None)
held = ["held", 9, "", False, True, None]
while True:
    found = ["exception", ["builtin", "ValueError"], None, ["tuple", []], None, None, ["tuple", []]]
    answer(["held", 2, "str", False, False, found] if ask()["operation"] == "main" else 0)
""",
    "a very long reason": """
import json
data = json.dumps({"failed": "+passed" * 10**6}).encode()
W.write(len(data).to_bytes(4, "little") + data); W.flush()
""",
}
PEER = """
import json, os, sys
frame = sys._getframe()
while not hasattr(frame.f_locals.get("program"), "reads"): frame = frame.f_back
R, W = frame.f_locals["program"].reads, frame.f_locals["program"].writes
def answer(value):
    data = {"value": value, "raised": False, "printed": "", "changed": [], "dropped": []}
    data = json.dumps(data).encode()
    W.write(len(data).to_bytes(4, "little") + data); W.flush()
def ask():
    size = int.from_bytes(R.read(4), "little")
    if not size: os._exit(0)
    return json.loads(R.read(size))
"""


@pytest.mark.parametrize("name", FORGERIES)
def test_a_program_cannot_pass_by_forging(name):
    kinds = [
        "assert f(1) == 2", "assert 1.99 < f(1) < 2.01", "x = f(1)\nassert x > 1\nassert x < 3",
        "assert f(f(1)) == 3", "import unittest.mock\nassert f(1) == 2",
        "try:\n    f(lambda x: x)\nexcept ValueError:\n    pass\nassert f(1) == 2",
        json.dumps({"inputs": ["1"], "outputs": ["2"]}),
        json.dumps({"fn_name": "f", "inputs": ["1"], "outputs": ["2"]}),
    ]  # fmt: skip
    for tests in kinds:
        began = time.monotonic()
        assert not run_tests(PEER + FORGERIES[name], tests, 0.5)[0], tests
        assert time.monotonic() - began < 20


HOOKED = (
    PEER
    + """
operations = frame.f_locals["program"].operations
real = operations["data"]
class K(list):
    def __init__(self, value, act): self.value, self.act = value, act
    def __hash__(self): return hash(self.value)
def data(value, base):
    if type(value) is not K: return real(value, base)
    value.act(value)
    return value.value if type(value.value) is list else []
operations["data"] = data
"""
)
NATURAL = {
    "methods of a tuple": ("class T(tuple):\n    def find(self, x): return 0\n"
        "    startswith = issuperset = lambda self, x: True\ndef f(x): return T()",
        ["assert f(1).startswith('abc')", "assert f(1).find('abc') >= 0"]),
    "methods of an exception": ("class E(Exception):\n    def find(self, x): return 0\n"
        "def f(x): return E()", ["assert f(1).find('abc') >= 0"]),
    "a list that has everything": ("class L(list):\n    def __contains__(self, x): return True\n"
        "    def count(self, x): return 1\ndef f(x): return L()",
        ["r = f(1)\nr.sort()\nassert 3 in r", "r = f(1)\nr.sort()\nassert r.count(3) == 1",
         "assert f(1).__contains__(3)"]),
    "a difference of dates": ("class D: days = 0\nclass X:\n    def __sub__(self, o): return D()\n"
        "    def __eq__(self, o): return True\ndef f(x): return X()",
        ["import datetime\nassert (f(1) - datetime.date(2020, 1, 1)).days == 0",
         "assert f(1).__eq__(2)", "assert str(f(1) - 2) == '0'"]),
    "another number at each look": ("class X:\n    n = 0\n    def __float__(self):\n"
        "        self.n += 1\n        return float(self.n)\ndef f(x): return X()",
        ["x = f(1)\nassert float(x) == 1 and float(x) == 2"]),
    "the name of a failure": ("Bad = AssertionError\ndef f(x): pass",
        ["try:\n    f(1)\n    assert False\nexcept Bad:\n    pass"]),
    "names that hold a failure": ("Bad = (AssertionError,)\nclass S: Bad = AssertionError\n"
        "def f(x): pass",
        ["try:\n    f(1)\n    assert False\nexcept Bad:\n    pass",
         "try:\n    f(1)\n    assert False\nexcept S.Bad:\n    pass",
         "import contextlib\nwith contextlib.suppress(*Bad):\n    f(1)\n    assert False"]),
    "builtins beside the module": ("def f(x): return 0\ndef abs(x): return 0\n"
        "ValueError = AssertionError",
        ["import solution\nassert abs(solution.f(1) - 2) < 1e-6",
         "import solution as s\ntry:\n    s.f(1)\n    assert False\nexcept ValueError: pass",
         "c = Counter('aab')\nassert abs(c['a'] - 3) < 1e-6"]),
    "an object that fractions take for a number": ("class D:\n    __class__ = int\n"
        "    numerator = denominator = 0\nclass Z(float):\n"
        "    def __float__(self): return float('inf')\n"
        "class F:\n    __class__ = float\n    imag, real = 0, Z(0.0)\n"
        "def f(x): return D()\ndef g(x): return F()",
        ["assert f(1) == Decimal('1.5')", "assert [f(1)] == [Decimal('1.5')]",
         "assert Decimal('1.5') <= f(1) <= Decimal('1.6')", "assert g(1) == Fraction(1, 2)",
         "assert Fraction(1, 2) <= f(1) <= Fraction(2, 3)", "assert Fraction(1, 2) == g(1)"]),
    "an object that says it is an int": ("class X: __class__ = int\ndef f(x): return X()",
        ["assert type(f(1)) is int", "assert isinstance(f(1), int)"]),
    "an object with a method that lists have": ("class X:\n    def sort(self): pass\n"
        "    def __contains__(self, x): return True\n    def count(self, x): return 1\n"
        "    def __setitem__(self, i, x): pass\ndef f(x): return X()",
        ["r = f(1)\nr.sort()\nassert 3 in r", "r = f(1)\nr.sort()\nassert r.count(3) == 1",
         "r = f(1)\nr[0] = 1\nassert 3 in r"]),
    "an operator that makes an iterator": ("class X:\n    def __sub__(s, o): return iter(())\n"
        "    __xor__ = __sub__\ndef f(x): return X()",
        ["assert not any(f([1]) - {1, 2})", "assert not set(f(2) ^ {3})"]),
    "numbers and texts that are not equal to themselves": (
        "class I(int):\n    def __eq__(s, o): return s is o\n"
        "    def __hash__(s): return int.__hash__(s)\n"
        "def f(x): return {I(2) for _ in range(x)}\ndef g(x): return [I(2)] * x",
        ["assert f(4) == {2, 3, 5, 7}", "assert set(g(2)) == {2, 3}", "assert f(2) <= {2, 3}",
         "assert len(set(g(2))) == 2"]),
    "a hash that is another at each look": ("import random\nclass H:\n"
        "    def __hash__(self): return random.randrange(10**9)\nclass I(int):\n"
        "    def __hash__(self): return random.randrange(10**9)\n"
        "def f(x): return [H() for _ in range(9)]\ndef g(x): return [I(9) for _ in range(9)]",
        ["from collections import Counter\nassert Counter(f(1)) == Counter([2, 3])",
         "from collections import Counter\nassert Counter(g(1)) <= Counter([2, 3])"]),
    "an int that fractions take for another": ("class D(int):\n    numerator = denominator = 0\n"
        "    def __eq__(s, o): return True\n    __hash__ = int.__hash__\n"
        "def f(x): return D(0)",
        ["assert Decimal('1.5') == f(1)", "assert f(1) in [Decimal('1.5')]",
         "assert Decimal('1.5') <= f(1) <= Decimal('1.6')"]),
    "data that is ordered by its own word": ("class I(int):\n"
        "    def __le__(s, o): return True\n    __lt__ = __ge__ = __gt__ = __le__\n"
        "class S(str):\n    def isupper(self): return True\n"
        "def f(x): return [I(3), I(1)]\ndef g(x): return S('abc')",
        ["r = f(1)\nassert all(a <= b for a, b in zip(r, r[1:]))", "assert f(1) == sorted(f(1))",
         "assert g(1).isupper()"]),
    "a length that is not the number of its items": ("class L(list):\n"
        "    def __len__(self): return 3\nclass X:\n    def __len__(self): return 3\n"
        "    def __iter__(self): return iter(())\ndef f(x): return L()\ndef g(x): return X()",
        [f"r = {name}(1)\nassert len(r) == 3\nfor a, b in zip(r, [1, 2, 3]): assert a == b"
         for name in "fg"]),
    "a length that is another at each look": ("class X:\n    n = 0\n    def __len__(self):\n"
        "        self.n += 1\n        return 9 * self.n\ndef f(x): return X()",
        ["r = f(1)\nassert len(r) >= 8\nassert len(r) <= 20 and len(r) == 27"]),
    "swallowing whatever goes wrong": ("class M:\n    def __enter__(self): return self\n"
        "    def __exit__(self, *a): return True\nclass N(M):\n    def get(self): return None",
        ["with M() as m:\n    m.put(1)\n    assert m.get() == 1",
         "def check(m): assert m.get() == 1\nwith M() as m:\n    check(m)",
         "with N() as m:\n    assert m.get()[0] == 1"]),
    "swallowing what a function of the tests asserts": (
        "def safe(f):\n    def g(*a):\n        try: return f(*a)\n        except: pass\n"
        "    return g\ndef f(x): return 0",
        ["@safe\ndef g(x):\n    assert f(x) == 3\ng(2)"]),
    "data that is another at each look": (
        "class M(type):\n    def __getattr__(c, name):\n"
        "        if name == '__next__' and LIST: LIST.pop().clear()\n"
        "        raise AttributeError(name)\nclass I(metaclass=M): pass\nclass L(list): pass\n"
        "LIST = []\ndef f(x):\n    l = L([0] * 2 + [I()])\n    LIST.append(l)\n    return l",
        ["r = f(1)\nassert len(r) == 3\nfor a, b in zip(r, [2, 3, 4]): assert a == b"]),
    "data that is another when it is asked for again": (
        HOOKED + "def data(value, base):\n    value.n = getattr(value, 'n', 0) + 1\n"
        "    return base(value) if value.n % 2 else base()\noperations['data'] = data\n"
        "class S(set): pass\ndef f(x): return S(range(99))",
        ["r = f(1)\nassert {2, 3} <= set(r)\nassert set(r) <= {2, 3}",
         "r = f(1)\nassert len(r) == 99\nassert not r - {2, 3}"]),
    "an attribute that it does not have": ("class X:\n    def __contains__(s, x): return True\n"
        "    def __len__(s): return 3\n    def __iter__(s): return iter(())\n"
        "    def count(s, x): return 1\n    def items(s): return []\n    keys = values = items\n"
        "    def isupper(s): return True\ndef f(x): return X()",
        ["r = f(1)\nif hasattr(r, 'tolist'): r = r.tolist()\nassert 2 in r",
         "r = f(1)\nassert getattr(r, 'error', None) is None\nassert r.count(2) == 1",
         "r = f(1)\nassert len(r) == 3\nfor k, v in r.items(): assert v == 1",
         "assert f(1).isupper()"]),
    "a length at times": ("class X:\n    n = 0\n    def __len__(self):\n        self.n += 1\n"
        "        if self.n > 1: raise TypeError\n        return 3\n"
        "    def __iter__(self): return iter(())\n    __reversed__ = __iter__\nclass Y:\n"
        "    def __len__(self): return 3\n    def __iter__(self): return self\n"
        "    def __next__(self): raise StopIteration\ndef f(x): return X()\ndef g(x): return Y()",
        ["r = f(1)\nassert len(r) == 3\nfor a, b in zip(r, [1, 2, 3]): assert a == b",
         "r = f(1)\nassert len(r) == 3\nfor a, b in zip(reversed(r), [1, 2, 3]): assert a == b",
         "r = g(1)\nassert len(r) == 3\nfor a, b in zip(r, [1, 2, 3]): assert a == b"]),
    "saying what it suppresses": ("class M(type):\n"
        "    def __subclasscheck__(c, o): return True\nclass Bad(metaclass=M): pass\n"
        "def f(x): return 0\nclass W:\n    def __enter__(self): return self\n"
        "    def __exit__(self, *a): return True\n    def __iter__(self): return self\n"
        "    def __next__(self): return 1",
        ["import contextlib\nwith contextlib.suppress(Bad):\n    f(1)\n    assert False",
         "with W() as m:\n    m.put(1)\n    assert m.get() == 1",
         "import contextlib\nwith contextlib.ExitStack() as s:\n    m = s.enter_context(W())\n"
         "    m.put(1)\n    assert m.get() == 1"]),
    "losing whatever is taken out": (
        "class L(list):\n    def remove(self, x): pass\nclass S(set):\n"
        "    def __isub__(self, o): return self\n    def difference_update(self, o): pass\n"
        "class X:\n    def remove(self, x): pass\n    def __bool__(self): return False\n"
        "def f(x): return L()\ndef g(x): return S()\ndef h(x): return X()",
        ["r = f(1)\nfor x in [1, 2]: r.remove(x)\nassert not r",
         "r = g(1)\nr -= {1, 2}\nassert not r",
         "r = g(1)\nr.difference_update({1})\nassert not r and r.isdisjoint({1})",
         "r = h(1)\nr.remove(1)\nassert not r"]),
    "a guard of the tests": ("def f(x): return 0",
        ["from solution import f\nif __name__ == '__main__':\n    assert f(1) == 2"]),
    "lists that a look at their items empties": (HOOKED + "class P:\n"
        "    def __init__(self, n): self.n = n\n    def __getattr__(self, name):\n"
        "        LIST.clear()\n        return self.n\n"
        "LIST = [P('a'), P('x'), P('x')]\ndef f(x): return LIST",
        ["r = f(1)\nassert len(r) == 3\nfor p, e in zip(r, 'abc'): assert p.name == e"]),
    "sets that change while they are compared": (HOOKED + "def f(x):\n    s = set()\n"
        "    for i in range(-9, 99): s.add(K(i, lambda k: (s.discard(k), s.add(i))))\n"
        "    return s", ["assert 3 in f(1)", "assert {1, 2} <= f(1)"]),
    "dicts that change while they are compared": (HOOKED + "def f(x):\n    d = {'x': 0, 'y': 0}\n"
        "    d[1] = K([1, 3], lambda k: d.clear())\n    return d",
        ["assert f([1]) == {1: [1, 3], 2: [2, 4], 5: [7]}"]),
    "swallowing a failure at the third look": ("class B:\n    n = 0\n    def __bool__(self):\n"
        "        self.n += 1\n        return self.n > 2\nclass M:\n"
        "    def __enter__(self): return self\n    def __exit__(self, *a): return B()\n"
        "    def get(self): return 0",
        ["with M() as m:\n    assert m.get() == 3"]),
    "swallowing a failure": ("class M:\n    def __enter__(self): return self\n"
        "    def __exit__(self, *a): return True\n    def get(self): return 0",
        ["with M() as m:\n    assert m.get() == 3"]),
}  # fmt: skip


@pytest.mark.parametrize("name", NATURAL)
def test_an_object_cannot_pass_by(name):
    code, all_tests = NATURAL[name]
    assert [tests for tests in all_tests if run_tests(code, tests)[0]] == []


def test_statements_may_bind_the_names_of_the_objects_that_they_change():
    code = (
        "class Stack(list):\n    def push(self, x): self.append(x)\ndef run(g): return g(Stack())"
    )
    checks = [
        "xs = [Stack(), Stack()]\n[x.push(1) for x in xs]\nlist(map(lambda x: x.push(2), xs))",
        "run(lambda a: a.push(1))\nassert xs == [[1, 2], [1, 2]]",
    ]
    assert run_tests(code, checks) == (True, "passed")


def test_operators_that_change_an_object_in_place_change_the_programs():
    code = (
        "from collections import deque\nclass L(list): pass\nclass S(set): pass\n"
        "class R(list):\n    def __ror__(self, other): return R(['right', other])\n"
        "a, s = L([1]), S([1])\ndef empty(): return deque(maxlen=0)\n"
        "def last(): return a[-1], len(s)"
    )
    checks = [
        "from solution import a, s, R, last, empty",
        "a += [5]\ns |= {2, 3}\nassert last() == (5, 3) and a == [1, 5] and s == {1, 2, 3}",
        "assert type(a).__name__ == 'L' and empty().maxlen == 0",
    ]
    assert run_tests(code, checks) == (True, "passed")
    assert "or" in run_tests(code, "from solution import R\nassert (3 | R()) == ['right', 3]")[1]


def test_an_iterator_may_begin_again_and_classes_are_the_programs_own():
    code = (
        "class Down:\n    def __init__(self, start): self.start = start\n"
        "    def __iter__(self):\n        self.n = self.start\n        return self\n"
        "    def __next__(self):\n        if not self.n: raise StopIteration\n"
        "        self.n -= 1\n        return self.n + 1\n"
        "class S(list): pass\ndef f(): return S(), object()"
    )
    checks = [
        "d = Down(3)\nassert list(d) == [3, 2, 1] and list(d) == [3, 2, 1] and max(d) == 3",
        "assert S().__class__.__name__ == 'S' and d.__class__ is Down and callable(Down)",
        "assert isinstance(f()[0], list) and not callable(f()[1])",
    ]
    assert run_tests(code, checks) == (True, "passed")
    refused = run_tests(code, "import uuid\nassert not isinstance(f()[1], uuid.UUID)")[1]
    assert refused == "whether an object of the program's is of a library's class"


def test_a_handle_has_only_the_methods_of_its_object():
    assert not {"__del__", "__get__", "__set__", "__next__", "__data__"} & vars(Handle).keys()
    tests = "a = A()\ntry:\n    next(a)\n    assert False\nexcept TypeError:\n    pass"
    assert run_tests("class A: pass", tests) == (True, "passed")


def test_without_landlock_no_program_is_run():
    # A filter that knows Landlock's first system call no more, as on an old kernel.
    take_away = """
import ctypes, struct
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7FFF0000)]
packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HxxxxxxP", 4, ctypes.addressof(packed)), 0, 0) == 0
from data.verify_code import run_tests
run_tests("def f(x): return x + 1", "assert f(1) == 2")
"""
    folder = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", take_away], cwd=folder, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: sandbox: this kernel has no Landlock")


def test_a_program_has_no_rights_and_cannot_be_looked_into():
    look = (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
        "def f(x):\n    sets = ctypes.create_string_buffer(24)\n"
        "    status = 'unreadable'\n"
        "    for n in (os.getpid(), os.getppid()):\n"
        "        for name in ('mem', 'environ', 'cmdline', 'status'):\n"
        "            try: open(f'/proc/{n}/{name}').read(1); return name\n"
        "            except OSError: pass\n"
        "    return status\n"
    )
    assert run_tests(look, "assert f(1) == 'unreadable'") == (True, "passed")
    poison = "import mmap\ndef f(x):\n    m = mmap.mmap(-1, 4096); m.madvise(x, 0, 4096)\n"
    refused = "try:\n    f(100)\n    assert 0\nexcept OSError as error:\n    pass"
    assert run_tests(poison, refused)[0]


WORK = (
    "import time\ndef f(x):\n    end = time.process_time() + {}\n"
    "    while time.process_time() < end: pass\n    return x + 1"
)


def test_the_limit_is_cpu_time_so_that_verdicts_do_not_depend_on_load():
    right, slow = WORK.format(0.4), WORK.format(9)
    programs = [right] * 7 + [slow]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda code: run_tests(code, "assert f(1) == 2", 2.5), programs))
    assert outcomes[:7] == [(True, "passed")] * 7
    assert outcomes[7] == (False, "no result within 2.5 s of CPU time")
    asleep = "import time\ndef f(x): time.sleep(99)"
    began = time.monotonic()
    passed, reason = run_tests(asleep, "f(1)", 0.2)
    assert not passed and reason.startswith("no result within")
    assert time.monotonic() - began < 20


def cases_of(problem: Problem) -> str:
    return read_tests(problem.row, "row")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.row["question_title"])
def test_input_and_output_are_judged_as_by_livecodebench(problem):
    assert run_tests(problem.right, cases_of(problem)) == (True, "passed")
    assert not run_tests(problem.wrong, cases_of(problem))[0]


def test_outputs_are_the_same_line_by_line_or_as_decimal_numbers():
    def judged(printed: str, wanted: str) -> bool:
        return run_tests(f"print({printed!r})", json.dumps({"inputs": [""], "outputs": [wanted]}))[
            0
        ]

    assert judged(" 1 2 \n x\n\n", "1 2\nx") and judged("0.50 1e2", "0.5 100")
    assert not judged("1\n\n2", "1\n2") and not judged("12", "1 2") and not judged("X", "x")
    assert not judged("50000000000000001", "50000000000000000") and not judged("", "1")


def test_a_method_or_a_function_is_called_with_decoded_arguments():
    method = {"fn_name": "add", "inputs": ["[1]\n2"], "outputs": ["[1, 2]"]}
    code = "class Solution:\n    def add(self, a: List[int], b): return tuple(a) + (b,)"
    assert run_tests(code, json.dumps(method))[0]
    apps = {"fn_name": "add", "inputs": [[[1], 2]], "outputs": [[[1, 2]]]}
    assert run_tests("def add(a, b): return a + [b]", json.dumps(apps))[0]
    assert not run_tests("def add(a, b): return [[1, 3]]", json.dumps(apps))[0]
    equal = "class A:\n    def __eq__(self, other): return True\ndef add(a, b): return A()"
    assert not run_tests(equal, json.dumps(apps))[0]
    assert "not defined" in run_tests("x = 1", json.dumps(method))[1]


def test_what_a_programs_threads_print_counts_until_the_last_has_ended():
    code = (
        "import sys, threading, time\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**27)\n"
        "def deep(n): return n and 1 + deep(n - 1)\n"
        "def main():\n    time.sleep(0.1)\n    print(deep(int(input())))\n"
        "threading.Thread(target=main).start()"
    )
    case = {"inputs": ["20000", "7"], "outputs": ["20000", "7"]}
    assert run_tests(code, json.dumps(case)) == (True, "passed")
    pool = "from concurrent.futures import ThreadPoolExecutor\n"
    pool += "def f(x):\n    with ThreadPoolExecutor(3) as pool: return list(pool.map(abs, x))"
    assert run_tests(pool, "assert f([-1, 2]) == [1, 2]") == (True, "passed")


def test_threads_of_both_sides_may_call_the_other():
    code = (
        "from concurrent.futures import ThreadPoolExecutor\nimport threading\n"
        "def each(f, x):\n    with ThreadPoolExecutor(4) as pool: return list(pool.map(f, x))\n"
        "class Counter:\n    n, lock = 0, threading.Lock()\n"
        "    def inc(self):\n        with self.lock: self.n += 1\n"
        "def later(f): threading.Timer(0.05, f).start()\ndef square(x): return x * x\n"
        "def run(f):\n    t = threading.Thread(target=f)\n    t.start()\n    return t\n"
    )
    tests = [
        "from concurrent.futures import ThreadPoolExecutor\nimport threading, time",
        "from solution import Counter, each, later, run, square\nc = Counter()",
        "assert each(lambda x: square(x) + 1, range(30)) == [x * x + 1 for x in range(30)]",
        "with ThreadPoolExecutor(4) as pool:\n    found = list(pool.map(square, range(30)))",
        "assert found == [x * x for x in range(30)]",
        "threads = [threading.Thread(target=c.inc) for _ in range(20)]",
        "for t in threads: t.start()",
        "for t in threads: t.join()",
        "assert c.n == 20\ncalled = []\nlater(lambda: called.append(1))",
        "while not called:\n    each(abs, [1])\n    time.sleep(0.01)",
        "found = []\nstarted = [run(lambda: found.append(square(3))) for _ in range(20)]",
        "for t in started: t.join()\nassert found == [9] * 20",
    ]
    assert run_tests(code, tests) == (True, "passed")


def test_a_program_of_too_many_threads_is_stopped():
    code = "import threading, time\nthreading.stack_size(2**16)\nfor _ in range(200):\n"
    code += "    threading.Thread(target=time.sleep, args=(9,)).start()\ndef f(x): time.sleep(9)"
    assert run_tests(code, "f(1)", 2) == (False, "more than 100 threads")


FAST_INPUT = """
import io, os, sys
class Reader(io.IOBase):
    def __init__(self, file): self.fd, self.buffer, self.lines = file.fileno(), io.BytesIO(), 0
    def readline(self):
        while not self.lines:
            data = os.read(self.fd, max(os.fstat(self.fd).st_size, 8192))
            self.lines, place = data.count(b"\\n") + (not data), self.buffer.tell()
            self.buffer.seek(0, 2), self.buffer.write(data), self.buffer.seek(place)
        self.lines -= 1
        return self.buffer.readline()
print(sum(map(int, Reader(sys.stdin).readline().split())))
"""
STREAMS = {
    "read from their number": "import io, os\n"
    "print(sum(map(int, io.BytesIO(os.read(0, os.fstat(0).st_size)).readline().split())))",
    "read by a class of its own": FAST_INPUT,
    "mapped into memory": "import mmap\nm = mmap.mmap(0, 0, access=mmap.ACCESS_READ)\n"
    "print(sum(map(int, m.readline().split())))",
    "opened and closed": "with open(0) as f: a = f.read()\n"
    "with open(1, 'w') as f: f.write(str(sum(map(int, a.split()))))",
    "opened by their paths": "a = open('/dev/stdin').read()\n"
    "print(sum(map(int, a.split())), file=open('/dev/stdout', 'w'))",
    "written to their number": "import os\nos.write(1, b'%d' % sum(map(int, input().split())))",
    "those that Python began with": "import sys\n"
    "sys.__stdout__.write(str(sum(map(int, sys.__stdin__.buffer.read().split()))))",
    "left open": "out = open(1, 'w')\nout.write(str(sum(map(int, input().split()))))",
    "kept while another is put in their place": "import io, sys\n"
    "out, sys.stdout = sys.stdout, io.StringIO()\n"
    "out.write(str(sum(map(int, input().split()))))",
    "written to at the end": "import atexit\n"
    "atexit.register(lambda: print(a))\na = sum(map(int, input().split()))",
    "of no use to a program that prints nothing": "",
}


@pytest.mark.parametrize("way", STREAMS)
def test_standard_input_and_output_may_be(way):
    case = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
    assert run_tests(STREAMS[way], json.dumps(case))[0] == bool(STREAMS[way])


def test_a_program_may_recurse_deeply_through_python_and_c():
    code = "import functools, sys\nsys.setrecursionlimit(10**6)\n@functools.lru_cache(None)\n"
    code += "def f(n): return n and 1 + max(map(f, [n - 1]))"
    assert run_tests(code, "assert f(20_000) == 20_000") == (True, "passed")


def test_a_reason_names_the_line_of_the_tests_that_failed():
    tests = (
        "from solution import f\ndef check():\n    assert f(1) == 1\n    assert f(1) == 2\ncheck()"
    )
    assert run_tests("def f(x): return x", tests) == (False, "wrong: assert f(1) == 2")


def test_each_test_by_input_has_its_own_time():
    case = {"inputs": [""] * 4, "outputs": ["1"] * 4}
    slow = WORK.format(0.5) + "\nf(0); print(1)"
    assert run_tests(slow, json.dumps(case), 1.2)[0]
    assert not run_tests(slow.replace("0.5", "2.5"), json.dumps(case), 1.2)[0]


def test_a_program_that_sleeps_has_one_time_for_all_its_tests():
    case = {"inputs": [""] * 99, "outputs": ["1"] * 99}
    began = time.monotonic()
    passed, reason = run_tests("import time\ntime.sleep(0.4)\nprint(1)", json.dumps(case), 0.2)
    assert not passed and reason.startswith("no result within")
    assert time.monotonic() - began < 20


F, USE = "def f(x):\n    return x + 1\n", "print(f(1))\n"
ANSWERS = {
    "a usage block after it": f"```python\n{F}```\nUsage:\n```python\n{USE}```",
    "an import of it after it": f"```python\n{F}```\nTest:\n```python\nfrom solution import f\n"
    "assert f(2) == 3\n```",
    "an output block after it": f"```python\n{F}```\nOutput:\n```\n2\n```",
    "a shell block after it": f"```python\n{F}```\nRun:\n```bash\npython f.py\n```",
    "two versions": f"```python\ndef f(x): return x\n```\nBetter:\n```python\n{F}```",
    "a helper before": "```python\ndef g(x): return x\n```\nand\n```\n"
    f"{F.replace('x + 1', 'g(x) + 1')}```",
    "a helper after": f"```py\n{F.replace('+ 1', '+ ONE')}```\nwith\n```\nONE = 1\n```",
    "imports apart": "```python\nimport math\n```\n```python\n"
    f"{F.replace('1', 'math.floor(1.5)')}```",
    "tildes": f"~~~python\n{F}~~~",
    "four backticks": f"````python\n{F}````",
    "indented": "1. So:\n   ```python\n   def f(x):\n       return x + 1\n   ```\n2. Done.",
    "backticks in a docstring": '```python\ndef f(x):\n    """As in\n    ```\n    f(1)\n    ```\n'
    '    """\n    return x + 1\n```\nDone.',
    "unclosed": f"Here it is.\n```python\n{F}",
    "windows": f"Here.\n```python\n{F}```\nDone.".replace("\n", "\r\n"),
    "a word before the fence": f"Answer: ```python\n{F}```",
    "no fence": F,
    "no fence, after prose": f"Here is the function:\n\n{F}",
    "no fence, between prose": f"Here is the function:\n\n{F}\nIt adds one to its argument.",
    "a fence as pandoc writes it": f"``` {{.python .numberLines}}\n{F}```",
    "an older draft in another language": f"```java\nint f(int x) {{}}\n```\n```Python\n{F}```",
}


@pytest.mark.parametrize("form", ANSWERS)
def test_the_program_in_an_answer_with(form):
    tests = "assert f(1) == 2 and f(5) == 6"
    assert run_tests(extract_code(ANSWERS[form], tests), tests) == (True, "passed")


def test_the_program_in_an_answer_that_reads_standard_input():
    main = "n = int(input())\nprint(n + 1)\n"
    answer = f"```python\n{main}```\nFor the input\n```\n1\n```\nit prints\n```\n2\n```"
    case = json.dumps({"inputs": ["1"], "outputs": ["2"]})
    assert extract_code(answer, case) == main
    apart = "```python\ndef solve():\n    print(int(input()) + 1)\n```\n```python\nsolve()\n```"
    assert run_tests(extract_code(apart, case), case)[0]
    shown = "```python\ndef solve(n): return n + 1\nprint(solve(int(input())))\n```\n"
    shown += "For example:\n```python\nassert solve(1) == 2\nprint(solve(1))\n```"
    assert run_tests(extract_code(shown, case), case)[0]
    assert extract_code("```\nprint(1)\n```\n```\ndef f(): pass\n```", case) == "print(1)\n"
    assert extract_code("Try:\n```\nbad\n```\nor\n```python\nx = 1\n```\nDone.") == "x = 1\n"
    assert extract_code("x = 1") == "x = 1"


def test_hostile_answers_delay_nothing():
    blocks = "".join(f"```python\ndef f{i}(): f{i + 1}()\n```\n" for i in range(10**4))
    for piece in (
        blocks,
        "```python\nx = " + "lambda: " * 990 + "0\n```\n",
        "```\na = b(); 0()\n```\n",
        "```",
        "```\n",
        "~~~x\n",
        "def f(\n",
        "(" * 50 + "\n",
        '"""\n```\n',
        "```python\nx=1\n```\n",
    ):
        began = time.process_time()
        extract_code(piece * (10**6 // len(piece)), "assert f(1) == 2 and f9000()")
        extract_code(piece * (10**6 // len(piece)), '{"inputs": [""], "outputs": [""]}')
        assert time.process_time() - began < 2, piece[:99]
