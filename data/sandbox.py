"""What `verify_code.run_tests` starts twice: a process that can do nothing but compute.

Two locks of the Linux kernel, which cannot be taken off again, see to it. Seccomp leaves only the
system calls that computing needs, so no new process, no socket, no signal, no change to a file;
Landlock (Linux 5.13 or newer) refuses to read anything but Python's and the system's libraries, and
with that the other process's memory. Where the kernel has not both, no program is run.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable
from functools import partial

MEMORY = 2 * 2**30  # bytes of address space
STACK = 100 * 2**20  # bytes; the kernel keeps 128 MiB of addresses free for it
FILE = 64 * 2**20  # bytes of standard input, and of what a program prints

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_…
# Linux's numbers of the only system calls that are left: (x86_64, aarch64), None where it has none.
# None of them makes a process, a socket, a signal to anyone, or a change to a file.
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "access": (21, None),
    "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "ftruncate": (77, 46),
    "nanosleep": (35, 101), "setitimer": (38, 103), "getpid": (39, 172), "exit": (60, 93),
    "uname": (63, 160), "getcwd": (79, 17), "readlink": (89, None), "gettimeofday": (96, 169),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173),
    "sigaltstack": (131, 132), "gettid": (186, 178), "time": (201, None), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "newfstatat": (262, 79), "readlinkat": (267, 78), "faccessat": (269, 48),
    "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99),
    "getrandom": (318, 278), "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
}  # fmt: skip
OPEN, OPENAT, FCNTL, IOCTL = (2, None), (257, 56), (72, 25), (16, 29)
CLONE, CLONE3 = (56, 220), (435, 435)
THREAD = 0x3D0F00  # the flags by which the C library makes a thread of this process with clone
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
HARMLESS_FCNTL = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
HARMLESS_IOCTL = (0x5401, 0x5450, 0x5451)  # TCGETS, FIONCLEX, FIOCLEX
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x50000 | 1, 0x80000000  # REFUSE: with EPERM
UNKNOWN = 0x50000 | 38  # refuse with ENOSYS


def lock() -> None:
    """Give up, for good, everything but computing. Raises OSError where that is impossible."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise OSError(f"programs are only run on x86_64 and aarch64, not on {machine}")
    limits = {
        resource.RLIMIT_AS: MEMORY, resource.RLIMIT_STACK: STACK, resource.RLIMIT_FSIZE: FILE,
        resource.RLIMIT_NOFILE: 32, resource.RLIMIT_CORE: 0,
    }  # fmt: skip
    for name, value in limits.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))
    libc = ctypes.CDLL(None, use_errno=True)

    def call(what: str, result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), what)
        return result

    call("end with the parent", libc.prctl(1, 9, 0, 0, 0))  # PR_SET_PDEATHSIG, SIGKILL
    call("no_new_privs", libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    call("not dumpable", libc.prctl(4, 0, 0, 0, 0))  # PR_SET_DUMPABLE
    restrict_reading(libc, call)
    # No capability, also for root: in the header version 3 and this process, then three empty sets.
    call("capset", libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)))
    program = seccomp_filter(machine)
    packed = b"".join(struct.pack("=HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(packed)
    place = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    call("seccomp", libc.prctl(22, 2, place, 0, 0))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


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
    # Threads may be made, no processes. What clone3 makes cannot be seen from here; where there is
    # none, the C library takes clone.
    steps += [(equal, 0, 1, CLONE3[column]), (answer, 0, 0, UNKNOWN)]
    steps += [(equal, 0, 3, CLONE[column]), (load, 0, 0, 16)]
    steps += [(equal, 0, 1, THREAD), (answer, 0, 0, ALLOW)]
    return [*steps, (answer, 0, 0, REFUSE)]


def restrict_reading(libc: ctypes.CDLL, call: Callable[[str, int], int]) -> None:
    """Landlock: of all files, only Python's library may be read."""
    create, add, restrict = 444, 445, 446
    version = libc.syscall(create, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise OSError("this kernel has no Landlock (Linux 5.13 on, if it is not switched off)")
    every_access = (1 << {1: 13, 2: 14}.get(version, 15)) - 1
    rules = struct.pack("=Q", every_access)
    ruleset = call("landlock", libc.syscall(create, rules, ctypes.c_size_t(8), 0))
    read_files, read_folders = 1 << 2, 1 << 3
    paths = {os.path.dirname(os.__file__), sys.base_prefix + "/lib", "/lib", "/lib64", "/usr/lib"}
    for path in filter(os.path.isdir, [*paths, "/usr/share/zoneinfo"]):
        folder = os.open(path, os.O_PATH)
        rule = struct.pack("=Qi", read_files | read_folders, folder)
        call("landlock", libc.syscall(add, ruleset, 1, rule, 0))
        os.close(folder)
    call("landlock", libc.syscall(restrict, ruleset, 0))
    os.close(ruleset)


def main() -> None:
    """sandbox.py program|tests READ WRITE, with the source on standard input. READ and WRITE are
    pipes to the other process. The tests' process writes its verdict to standard output: a zero
    byte before each test with a time limit of its own; in the end "+passed", or "-" and why not, or
    "!" and why the locks cannot be set."""
    role, reads, writes = sys.argv[1], *map(int, sys.argv[2:4])
    source = sys.stdin.buffer.read().decode("utf-8", "replace")
    pipes = os.fdopen(reads, "rb"), os.fdopen(writes, "wb")
    verdict = os.dup(1)
    with open(os.devnull, "r+b", buffering=0) as nothing:
        for stream in (0, 1, 2):
            os.dup2(nothing.fileno(), stream)
    sys.path[0] = os.path.dirname(sys.path[0])  # not data/ itself: its files have common names
    if role == "program":
        for stream in (0, 1):
            os.dup2(os.memfd_create("stream"), stream)
        from data.program import serve_program
    else:
        from data.tester import run_tester
    del sys.path[0]
    try:
        lock()
    except OSError as error:
        os.write(verdict, f"!{error}".encode())
        os._exit(0)
    if role == "program":
        os.close(verdict)
        serve_program(source, *pipes)
    else:
        passed, reason = run_tester(source, *pipes, begin=partial(os.write, verdict, b"\0"))
        os.write(verdict, f"{'+' if passed else '-'}{reason}".encode("utf-8", "replace"))
    os._exit(0)


if __name__ == "__main__":
    main()
