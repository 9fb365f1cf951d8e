"""Does a program pass its tests? For programs that nobody has read, written by a model that would
rather be right than work.

Two fresh processes, neither of which can do anything but compute: one holds the program, the other
the tests. A test calls the program's functions through a pipe and gets plain data back. So the
program never meets its tests: it cannot read them, patch `assert`, return an object that equals
everything, or report a success; and if it exits, the test that called it fails.

Each process has an empty environment and working directory, limits on time, memory, and open files,
and two locks of the Linux kernel, which cannot be taken off again: seccomp leaves only the system
calls that computing needs, so no new process or thread, no socket, no signal, no change to a file;
Landlock (from Linux 5.13 on) refuses to read anything outside Python's own library.
"""

from __future__ import annotations

import ast
import builtins
import collections
import collections.abc
import contextlib
import ctypes
import decimal
import fractions
import importlib
import itertools
import json
import math
import os
import platform
import re
import struct
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

MEMORY = 2 * 2**30  # bytes of address space of each process
MAX_MESSAGE = 4 * 2**20  # bytes of a call's arguments or result
MAX_DEPTH = 50  # of lists in lists
PASSED = "passed"


# ------------------------------------------------------------------------------------- from outside


def run_tests(code: str, tests: str | Sequence[str], timeout: float = 10.0) -> tuple[bool, str]:
    """Whether `code` passes `tests` (assertions, or other statements) within `timeout` seconds of
    wall time, and "passed" or why not. Raises OSError where the sandbox cannot be set up."""
    source = tests if isinstance(tests, str) else "\n".join(tests)
    questions, answers = os.pipe(), os.pipe()  # (read, write) each
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as cleanup:

        def start(role: str, reads: int, writes: int, stdout: int) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-B", __file__, role, str(reads), str(writes)]
                + [str(math.ceil(timeout))],
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
        assert program.stdin
        with contextlib.suppress(BrokenPipeError), program.stdin as stdin:
            stdin.write(code.encode("utf-8", "replace"))
        try:
            output, _ = tester.communicate(source.encode("utf-8", "replace"), timeout)
        except subprocess.TimeoutExpired:
            return False, f"no result within {timeout:g} s"
    reason = output[:1000].decode("utf-8", "replace").strip() or "the tests ended without a result"
    if reason.startswith("sandbox: "):
        raise OSError(reason)
    return reason == PASSED, reason


def finish(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started (nothing, if the locks hold)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    for stream in (process.stdin, process.stdout):
        if stream:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    process.wait()


def extract_code(text: str) -> str:
    """The program in an answer: its last fenced block, or all of it if there is none."""
    blocks = re.findall(r"```[^\n]*\n(.*?)(?:```|\Z)", text, re.DOTALL)
    return blocks[-1] if blocks else text


# ---------------------------------------------------------------------------------------- the locks

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_…
# Linux's numbers of the only system calls that are left: (x86_64, aarch64), None where it has none.
# None of them makes a process, a thread, a socket, a signal to anyone, or a change to a file.
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "readv": (19, 65), "writev": (20, 66), "access": (21, None), "select": (23, None),
    "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23),
    "nanosleep": (35, 101), "setitimer": (38, 103), "getpid": (39, 172), "exit": (60, 93),
    "uname": (63, 160), "getcwd": (79, 17), "readlink": (89, None), "gettimeofday": (96, 169),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173),
    "sigaltstack": (131, 132), "gettid": (186, 178), "time": (201, None), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "newfstatat": (262, 79), "readlinkat": (267, 78), "faccessat": (269, 48),
    "pselect6": (270, 72), "ppoll": (271, 73), "getrandom": (318, 278), "statx": (332, 291),
    "faccessat2": (439, 439),
}  # fmt: skip
OPEN, OPENAT, FCNTL, IOCTL = (2, None), (257, 56), (72, 25), (16, 29)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
HARMLESS_FCNTL = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
HARMLESS_IOCTL = (0x5401, 0x5450, 0x5451)  # TCGETS, FIONCLEX, FIOCLEX
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x50000 | 1, 0x80000000  # REFUSE: with EPERM


def lock(seconds: int) -> None:
    """Give up, for good, everything but computing. Raises OSError where that is impossible."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES:
        where = f"{sys.platform} {machine}"
        raise OSError(f"programs are only run on Linux, x86_64 or aarch64, not on {where}")
    import resource  # there is none on Windows

    limits = {
        resource.RLIMIT_CPU: seconds + 1, resource.RLIMIT_AS: MEMORY, resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 32, resource.RLIMIT_CORE: 0,
    }  # fmt: skip
    for name, value in limits.items():
        resource.setrlimit(name, (value, value))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "no_new_privs")
    restrict_reading(libc)
    program = seccomp_filter(machine)
    packed = b"".join(struct.pack("=HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(packed)
    place = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    header = ctypes.create_string_buffer(place)
    if libc.prctl(22, 2, ctypes.byref(header), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")


def seccomp_filter(machine: str) -> list[tuple[int, int, int, int]]:
    """The BPF program (code, jump if true, jump if false, k) that decides on a system call."""
    load, equal, bits, answer = 0x20, 0x15, 0x45, 0x06
    column = list(MACHINES).index(machine)
    steps = [(load, 0, 0, 4), (equal, 1, 0, MACHINES[machine]), (answer, 0, 0, KILL)]
    steps += [(load, 0, 0, 0)]
    for number in (numbers[column] for numbers in ALLOWED.values()):
        if number is not None:
            steps += [(equal, 0, 1, number), (answer, 0, 0, ALLOW)]
    # Files may be opened, not for writing: the flags are open's second argument, openat's third.
    for call, place in ((OPEN, 24), (OPENAT, 32)):
        if (number := call[column]) is not None:
            steps += [(equal, 0, 4, number), (load, 0, 0, place), (bits, 0, 1, WRITING)]
            steps += [(answer, 0, 0, REFUSE), (answer, 0, 0, ALLOW)]
    # Of fcntl and ioctl only some commands, their second argument.
    for calls, commands in ((FCNTL, HARMLESS_FCNTL), (IOCTL, HARMLESS_IOCTL)):
        steps += [(equal, 0, 2 * len(commands) + 2, calls[column]), (load, 0, 0, 24)]
        for command in commands:
            steps += [(equal, 0, 1, command), (answer, 0, 0, ALLOW)]
        steps += [(answer, 0, 0, REFUSE)]
    return [*steps, (answer, 0, 0, REFUSE)]


def restrict_reading(libc: ctypes.CDLL) -> None:
    """Landlock: of all files, only Python's library may be read. Does nothing on old kernels."""
    create, add, restrict = 444, 445, 446
    version = libc.syscall(create, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    every_access = (1 << {1: 13, 2: 14}.get(version, 15)) - 1
    rules = ctypes.create_string_buffer(struct.pack("=Q", every_access), 8)
    ruleset = libc.syscall(create, rules, ctypes.c_size_t(8), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock")
    read_files, read_folders = 1 << 2, 1 << 3
    library = os.path.dirname(os.__file__)
    for path in {
        library,
        sys.base_prefix + "/lib",
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/share/zoneinfo",
    }:
        if os.path.isdir(path):
            folder = os.open(path, os.O_PATH)
            rule = ctypes.create_string_buffer(
                struct.pack("=Qi", read_files | read_folders, folder), 12
            )
            if libc.syscall(add, ruleset, 1, rule, 0):
                raise OSError(ctypes.get_errno(), "landlock")
            os.close(folder)
    if libc.syscall(restrict, ruleset, 0):
        raise OSError(ctypes.get_errno(), "landlock")
    os.close(ruleset)


# ------------------------------------------------------------------------ plain data through a pipe


class Handle:
    """Something of the program's that is not plain data: it can only be passed back."""

    def __init__(self, number: int) -> None:
        self.number = number


TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, list, tuple, set, dict)}
VIEWS: tuple[type[Iterable[Any]], ...] = (type({}.keys()), type({}.values()), type({}.items()))


class Codec:
    """Values as JSON. The program keeps what is not plain data, and gives a number for it."""

    def __init__(self, keeps: bool) -> None:
        self.keeps = keeps
        self.kept: list[Any] = []

    def encode(self, value: Any, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("data too deep")
        if value is None or isinstance(value, (bool, str)):
            return value if not isinstance(value, str) else str(value)
        if isinstance(value, int):
            return ["int", hex(value)]
        if isinstance(value, float):
            return ["float", float(value).hex()]
        if isinstance(value, complex):
            return ["complex", value.real.hex(), value.imag.hex()]
        if isinstance(value, (bytes, bytearray)):
            return [type(value).__name__, bytes(value).hex()]
        if isinstance(value, range):
            return ["range", *(hex(n) for n in (value.start, value.stop, value.step))]
        if isinstance(value, Handle):
            return ["kept", value.number]
        for kind in (list, tuple, set, frozenset):
            if isinstance(value, kind):
                return [kind.__name__, [self.encode(item, depth + 1) for item in value]]
        if isinstance(value, dict):
            pairs = [[self.encode(x, depth + 1) for x in pair] for pair in value.items()]
            return ["dict", pairs]
        if isinstance(value, collections.abc.Iterator):
            items = list(itertools.islice(value, 10**6))
            return ["iterator", [self.encode(item, depth + 1) for item in items]]
        if isinstance(value, collections.deque):
            return ["deque", [self.encode(item, depth + 1) for item in value]]
        if isinstance(value, VIEWS):
            return ["list", [self.encode(item, depth + 1) for item in [*value]]]
        if isinstance(value, (fractions.Fraction, decimal.Decimal)):
            return [type(value).__name__, str(value)]
        if isinstance(value, type) and value in TYPES.values():
            return ["type", value.__name__]
        if not self.keeps:
            raise TypeError(f"a {type(value).__name__} cannot be sent to the program")
        self.kept.append(value)
        return ["kept", len(self.kept) - 1]

    def decode(self, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        kind, *rest = value
        if kind == "int":
            return int(rest[0], 16)
        if kind == "float":
            return float.fromhex(rest[0])
        if kind == "complex":
            return complex(float.fromhex(rest[0]), float.fromhex(rest[1]))
        if kind in ("bytes", "bytearray"):
            data = bytes.fromhex(rest[0])
            return data if kind == "bytes" else bytearray(data)
        if kind == "range":
            return range(*(int(n, 16) for n in rest))
        if kind == "kept":
            return self.kept[rest[0]] if self.keeps else Handle(rest[0])
        if kind in ("Fraction", "Decimal"):
            return {"Fraction": fractions.Fraction, "Decimal": decimal.Decimal}[kind](rest[0])
        if kind == "type":
            return TYPES[rest[0]]
        if kind == "dict":
            return {self.decode(k): self.decode(v) for k, v in rest[0]}
        items = [self.decode(item) for item in rest[0]]
        makers: dict[str, Callable[[list[Any]], Any]] = {
            "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter,
            "deque": collections.deque,
        }  # fmt: skip
        return makers[kind](items)


def send(pipe: BinaryIO, message: Any) -> None:
    data = json.dumps(message).encode()
    if len(data) > MAX_MESSAGE:
        raise ValueError("too much data")
    pipe.write(len(data).to_bytes(4, "little") + data)
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """The next message; EOFError if the other side is gone or sends rubbish."""
    size = int.from_bytes(pipe.read(4), "little")
    if not 0 < size <= MAX_MESSAGE:
        raise EOFError
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return json.loads(data)


# ------------------------------------------------------------------------- inside the two processes


def serve_program(code: str, reads: BinaryIO, writes: BinaryIO) -> None:
    """Load the program, say what it defines, then call what the tests ask for."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    codec = Codec(keeps=True)
    try:
        exec(compile(code, "program.py", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        send(writes, {"failed": f"{type(error).__name__}: {error}"[:300]})
        return
    defined = {name: value for name, value in vars(module).items() if not name.startswith("__")}
    modules = {n: v.__name__ for n, v in defined.items() if isinstance(v, types.ModuleType)}
    functions = [n for n, v in defined.items() if callable(v)]
    values = {}
    for name, value in defined.items():
        if name not in modules and name not in functions and not hasattr(value, "__next__"):
            with contextlib.suppress(Exception):  # what cannot be sent, the tests cannot use
                encoded = codec.encode(value)
                if len(json.dumps(encoded)) < 2**16:
                    values[name] = encoded
    send(writes, {"modules": modules, "functions": functions, "values": values})
    while True:
        question = receive(reads)
        try:
            arguments, options = (codec.decode(question[key]) for key in ("arguments", "options"))
            answer = {"value": codec.encode(defined[question["call"]](*arguments, **options))}
        except BaseException as error:
            text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
            answer = {"error": [kind.__name__ for kind in type(error).__mro__], "text": text[:300]}
        try:
            send(writes, answer)
        except (ValueError, TypeError, MemoryError, RecursionError) as error:
            text = f"the result cannot be sent: {error}"
            send(writes, {"error": ["ValueError"], "text": text[:300]})


# What a program may raise in a test. (StopIteration would end the loop that the test is in.)
OTHER_ERRORS = (StopIteration, StopAsyncIteration, UnicodeError)
KINDS = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}
ERRORS = {
    name: kind
    for name, kind in KINDS.items()
    if issubclass(kind, Exception) and not issubclass(kind, OTHER_ERRORS)
}
MODULES = {
    "bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools",
    "heapq", "itertools", "math", "operator", "random", "re", "statistics", "string", "sys",
    "typing",
}  # fmt: skip


def run_tester(source: str, reads: BinaryIO, writes: BinaryIO) -> str:
    """Run the tests against the program at the other end; "passed" or why not."""
    codec = Codec(keeps=False)

    def proxy(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            sent = {"arguments": codec.encode(arguments), "options": codec.encode(options)}
            send(writes, {"call": name, **sent})
            answer = receive(reads)
            if "error" in answer:
                names = [str(name) for name in answer["error"]]
                known = [ERRORS[name] for name in names if name in ERRORS]
                raise (known or [RuntimeError])[0](answer.get("text"))
            return codec.decode(answer["value"])

        return call

    try:
        program = receive(reads)
        if "failed" in program:
            return f"the program failed to load: {program['failed']}"
        names: dict[str, Any] = {}
        for name, module in program["modules"].items():
            if module in MODULES:
                names[name] = importlib.import_module(module)
        names |= {name: codec.decode(value) for name, value in program["values"].items()}
        names |= {name: proxy(name) for name in program["functions"]}
        # The tests mean Python's own functions, whatever the program calls its own, unless that one
        # function is all that they test.
        used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        tested = used & set(program["functions"])
        shadowing = {name for name in names if hasattr(builtins, name)}
        for name in shadowing if tested - shadowing or len(tested) > 1 else shadowing - tested:
            del names[name]
        names = {name: value for name, value in names.items() if not name.startswith("__")}
        names["__name__"] = "tests"
        exec(compile(source, "tests.py", "exec", dont_inherit=True, optimize=0), names)
    except EOFError:
        return "the program ended early"
    except AssertionError as error:
        return f"wrong: {error}"[:300]
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    return PASSED


def main() -> None:
    del sys.path[0]  # this file's folder
    role, reads, writes, seconds = sys.argv[1], *map(int, sys.argv[2:5])
    source = sys.stdin.buffer.read().decode("utf-8", "replace")
    pipes = os.fdopen(reads, "rb"), os.fdopen(writes, "wb")
    verdict = os.dup(1)
    with open(os.devnull, "r+b", buffering=0) as nothing:
        for stream in (0, 1, 2):
            os.dup2(nothing.fileno(), stream)
    for name in MODULES if role == "tests" else ():
        importlib.import_module(name)
    try:
        lock(seconds)
    except OSError as error:
        os.write(verdict, f"sandbox: {error}".encode())
        return
    if role == "program":
        os.close(verdict)
        with contextlib.suppress(EOFError, BrokenPipeError):
            serve_program(source, *pipes)
    else:
        os.write(verdict, run_tester(source, *pipes).encode("utf-8", "replace"))
    os._exit(0)


if __name__ == "__main__":
    main()
