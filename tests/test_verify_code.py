"""data/verify_code.py: right programs pass, and nothing that is not right does, or does harm."""

import os
import subprocess
import time

import pytest
from conftest import needs_sandbox

from data.verify_code import extract_code, run_tests

pytestmark = needs_sandbox
TESTS = ["assert f(1) == 2", "assert all(map(lambda x: f(x) == x + 1, [1, 5]))"]
RIGHT = "def f(x):\n    return x + 1\n"


def test_a_right_program_passes_and_a_wrong_one_does_not():
    assert run_tests(RIGHT, TESTS) == (True, "passed")
    assert run_tests(RIGHT.replace("1", "2"), TESTS) == (False, "wrong:")
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
        "assert many({1: 2}) == (deque([1]), [1], Fraction('1/3'))",
    ]
    assert run_tests(code, checks) == (True, "passed")
    orders = {run_tests(code, "assert order() == 0, str(order())")[1] for _ in range(3)}
    assert len(orders) == 1  # the same order of a set in every run
    huge = run_tests("def f(): return 'x' * 10**7", "f()")
    assert huge == (False, "ValueError: the result cannot be sent: too much data")
    no = run_tests("def f(g): return g(1)", "assert f(lambda x: 2) == 2")  # functions stay here
    assert no == (False, "TypeError: a function cannot be sent to the program")


def test_a_function_called_as_one_of_pythons_own_is_only_that_where_it_is_what_is_tested():
    assert run_tests("def sum(a, b): return a + b", "assert sum(1, 2) == 3")[0]
    cheat = "def f(x): return 0\ndef abs(x): return 0"
    assert not run_tests(cheat, "assert abs(f(1) - 2) < 1")[0]


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
    "threads": "import threading\nthreading.Thread(target=print).start()",
    "a crash": "import ctypes\nctypes.string_at(0)",
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_program_cannot_pass_by(name):
    assert not run_tests(CHEATS[name], TESTS)[0]


@pytest.mark.parametrize("name", HARMS)
def test_a_program_cannot_do_harm_by(name):
    began = time.monotonic()
    assert not run_tests(HARMS[name], TESTS, timeout=2)[0]
    assert time.monotonic() - began < 4
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


def test_the_program_in_an_answer():
    assert extract_code("Try:\n```\nbad\n```\nor\n```python\nx = 1\n```\nDone.") == "x = 1\n"
    assert extract_code("x = 1") == "x = 1"
