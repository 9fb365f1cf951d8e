"""Does a program pass its tests? Nobody has read these programs, and the model that wrote them is
rewarded if they pass; so they may cheat.

Two fresh processes, neither of which can do anything but compute (`sandbox.py`): one holds the
program, the other the tests. A test calls the program's functions through a pipe and gets back
plain data, or a handle of anything else (`tester.py`). So the program never meets its tests: it
cannot read them, patch `assert`, return an object that equals everything, or report a success; and
if it exits, the test that called it fails.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from data.tester import bound_and_free, modules_imported, names_used, parsed

SANDBOX = Path(__file__).with_name("sandbox.py")
POLL = 0.2  # seconds between two looks at the clock
MAX_THREADS = 100
MAX_LOAD = 8.0  # a higher one counts as this: programs may raise it themselves
MAX_VERDICT = 4096  # bytes

# ------------------------------------------------------------------------------------ running tests


def run_tests(code: str, tests: str | Sequence[str], timeout: float = 10.0) -> tuple[bool, str]:
    """Whether `code` passes `tests`, and "passed" or why not.

    tests: Python (assertions, or other statements), in one text or several; or a JSON object of
    APPS' form. `code_rows.read_tests` makes both of a row, with the calls of its test functions.
    timeout: seconds of CPU time for all of them; in APPS' form for each of them. Raises OSError
    where the sandbox cannot be set up.
    """
    source = tests if isinstance(tests, str) else "\n".join(tests)
    if sys.platform != "linux":
        raise OSError(f"sandbox: programs are only run on Linux, not on {sys.platform}")
    questions, answers = os.pipe(), os.pipe()  # (read, write) each
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as cleanup:

        def start(role: str, reads: int, writes: int, stdout: int) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-B", SANDBOX, role, str(reads), str(writes)],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"PYTHONHASHSEED": "0"},
                pass_fds=(reads, writes),
                start_new_session=True,
            )
            cleanup.callback(finish, process)
            return process

        try:
            program = start("program", questions[0], answers[1], subprocess.DEVNULL)
            tester = start("tests", answers[0], questions[1], subprocess.PIPE)
        finally:
            for end in (*questions, *answers):
                os.close(end)
        for process, text in ((program, code), (tester, source)):
            assert process.stdin
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(text.encode("utf-8", "replace"))
        sign, reason = verdict(program, tester, timeout)
    if sign == "!":
        raise OSError(f"sandbox: {reason}")
    return sign == "+", reason


def verdict(
    program: subprocess.Popen[bytes], tester: subprocess.Popen[bytes], timeout: float
) -> tuple[str, str]:
    """(+, - or !, why): what the tester says in the end, or that the time is over.

    The limit is CPU time, of both processes: with other programs beside it, a program takes as much
    of it as alone. The limit of wall time, for one that sleeps, grows with the machine's load and
    with the CPU time that was used in all.
    """
    assert tester.stdout
    output = b""
    ready = select.poll()
    ready.register(tester.stdout, select.POLLIN)

    def used() -> float:
        return sum(map(cpu_seconds, (program, tester)))

    began, before = time.monotonic(), 0.0
    while True:
        if ready.poll(POLL * 1000):
            data = os.read(tester.stdout.fileno(), 4096)
            if not data:
                said = output.decode("utf-8", "replace") or "-the tests ended without a result"
                return said[0], said[1:].strip()
            if 0 in data:  # a test begins that has a limit of its own
                before = used()
            output = (output + data.replace(b"\0", b""))[:MAX_VERDICT]
        if max(map(count_threads, (program, tester))) > MAX_THREADS:
            return "-", f"more than {MAX_THREADS} threads"
        if used() - before > timeout:
            return "-", f"no result within {timeout:g} s of CPU time"
        if time.monotonic() - began > (timeout + used()) * (3 + 2 * load()):
            return "-", f"no result within {time.monotonic() - began:.0f} s"


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """CPU time that a process has used, by Linux's clock for it."""
    with contextlib.suppress(OSError):
        return time.clock_gettime((~process.pid << 3) | 2)
    return 0.0


def count_threads(process: subprocess.Popen[bytes]) -> int:
    """The number of threads that a process has now."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{process.pid}/task"))
    return 0


def load() -> float:
    """Processes that run or wait to run, per core."""
    return min(os.getloadavg()[0] / (os.cpu_count() or 1), MAX_LOAD)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started (nothing, if the locks hold)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    for stream in (process.stdin, process.stdout):
        if stream:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    process.wait()


# ---------------------------------------------------------------------- the program in an answer

PYTHON = re.compile(r"\{?\.?py|$", re.IGNORECASE)  # how what follows an opening fence begins
READS_INPUT = re.compile(r"\binput\(|\bstdin\b|\bopen\(0\b")
MAX_ANSWER = 100_000  # characters at the end of an answer in which a program is looked for
MAX_BLOCKS = 100  # the last ones of an answer
MAX_TRIES = 8  # ends of a block, or of a program in prose, that are tried


def extract_code(text: str, tests: str = "") -> str:
    """The program in an answer to a question with these tests.

    Of its fenced blocks in Python, this is the last that defines what the tests use, and the last
    that defines what that one uses, and so on, in their order. Where no block defines what they
    use, it begins with the last that reads standard input; else with the last that does anything.
    """
    text = text[-MAX_ANSWER:].replace("\r\n", "\n")
    blocks = fenced_blocks(text)[-MAX_BLOCKS:]
    if not blocks:
        return unfenced(text)
    programs = [(code, tree) for code in blocks if is_program(tree := parsed(code))]
    if not programs:
        return blocks[-1]
    names = [bound_and_free(code) for code, _ in programs]
    defining = {name: i for i, (bound, _) in enumerate(names) for name in bound}  # the last block

    def with_needed(places: set[int]) -> set[int]:
        """These blocks and those that define what they use."""
        todo = list(places)
        while todo:
            _, free = names[todo.pop()]
            needed = {defining[name] for name in free & defining.keys()} - places
            todo += needed
            places |= needed
        return places

    def rank(place: int) -> int:
        """How much a block looks like the main program, that reads standard input as it runs."""
        if not runs(programs[place][1]):
            return 0
        reads = {i for i in with_needed({place}) if READS_INPUT.search(programs[i][0])}
        return 3 if place in reads else 2 if reads else 1

    chosen = {defining[name] for name in tested_names(tests) & defining.keys()}
    if not chosen:
        chosen = {max(range(len(programs)), key=lambda place: (rank(place), place))}
    return "\n".join(programs[i][0] for i in sorted(with_needed(chosen)))


def tested_names(tests: str) -> set[str]:
    """The names that tests use and mean the program's."""
    if not tests.startswith("{"):
        return names_used(tests)
    function = json.loads(tests).get("fn_name")
    return {"Solution", function} if function else set()


def fenced_blocks(text: str) -> list[str]:
    """What stands between fences of three backticks or tildes and may be Python, without the
    fences' indentation. The last block may be open."""
    lines = text.split("\n")
    blocks, at = [], 0
    while at < len(lines):
        line = lines[at]
        at += 1
        starts = [place for mark in ("```", "~~~") if (place := line.find(mark)) >= 0]
        if not starts:
            continue
        mark = line[min(starts)]
        rest = line[min(starts) :].lstrip(mark)
        fence = mark * (len(line) - min(starts) - len(rest))
        if mark in rest:  # not a fence, but code within a line
            continue
        indent = len(line) - len(line.lstrip())
        found = (end for end in range(at, len(lines)) if fence in lines[end])
        ends = list(itertools.islice(found, MAX_TRIES)) or [len(lines)]
        end = ends[0]
        if PYTHON.match(rest.strip()):
            # A fence may stand inside a docstring: the block ends where it is Python, if anywhere.
            bodies = ((end, within(lines[at : end + 1], fence, indent)) for end in ends)
            python = next(((end, body) for end, body in bodies if parsed(body)), None)
            end, body = python or (end, within(lines[at : end + 1], fence, indent))
            blocks.append(body)
        at = end + 1
    return blocks


def within(lines: list[str], fence: str, indent: int) -> str:
    """Lines without their indentation, the last up to its fence."""
    *body, last = [line[min(indent, len(line) - len(line.lstrip())) :] for line in lines] or [""]
    return "\n".join([*body, last.partition(fence)[0]])


def unfenced(text: str) -> str:
    """The program in a text without fences: all of it, or what begins like one in its prose."""
    begins = re.search(r"^(?:async def |def |class |import |from |@)", text, re.MULTILINE)
    if parsed(text) or not begins:
        return text
    lines = text[begins.start() :].split("\n")
    for _ in range(MAX_TRIES):
        try:
            ast.parse("\n".join(lines))
            return "\n".join(lines)
        except SyntaxError as error:  # here the prose goes on
            lines = lines[: max(0, (error.lineno or 1) - 1)]
        except (ValueError, RecursionError, MemoryError):
            break
    return text


def is_program(tree: ast.Module | None) -> bool:
    """Whether this is a program, and no output such as `42` or `YES`, and no use of one."""
    calls = (ast.Call, ast.Await, ast.Yield, ast.NamedExpr)
    if tree is None or "solution" in modules_imported(tree):
        return False
    return any(
        not isinstance(node, ast.Expr) or any(isinstance(part, calls) for part in ast.walk(node))
        for node in tree.body
    )


def runs(tree: ast.Module | None) -> bool:
    """Whether a program does something beside defining names."""
    defines = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    return tree is not None and any(not isinstance(n, (*defines, ast.Assign)) for n in tree.body)
