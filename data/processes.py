"""The processes that train or evaluate together: their ranks, how they agree, and how they end."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from data import cli
from data.cli import InputError, environment_number

T = TypeVar("T")
TIMEOUT = datetime.timedelta(minutes=30)  # for a rank that others wait for
PATIENCE = datetime.timedelta(hours=6)  # the same where ranks may need very different times
# Seconds in which two signals count as one: a scheduler signals torchrun and its processes, and
# torchrun signals these again.
SAME_SIGNAL = 2.0
STUCK = 20.0  # seconds after which a process whose main thread a signal does not reach is ended

# ------------------------------------------------------------------------------------------ signals


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGINT (Ctrl-C) has asked this run to end. `code`: what the command exits with."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or "stopped")
        self.number, self.message = number, message
        self.code = 0 if number == signal.SIGTERM else 130


def tell(what: str) -> None:
    """Write a line of its own to standard error, from any thread or signal handler."""
    os.write(2, f"{cli.whoami() or chr(10)}{what}\n".encode())


class Signals:
    """SIGTERM and SIGINT raise Stopped at once; while they are held, they are only kept in mind."""

    def __init__(self) -> None:
        self.received = 0
        self.held = False

    def receive(self, number: int, _: Any = None) -> None:
        first, self.received = not self.received, self.received or number
        if not self.held:
            raise Stopped(self.received)
        if first and cli.is_main_process():
            tell("stopping: what is done is saved first; a second signal ends it at once")

    @contextlib.contextmanager
    def hold(self, held: bool = True) -> Iterator[None]:
        before, self.held = self.held, held
        try:
            if self.received:
                self.receive(self.received)
            yield
        finally:
            self.held = before


SIGNALS = Signals()


def watch(received: socket.socket) -> None:
    """End this process at a second signal, when the torchrun that started it has died, or when its
    main thread waits in C++ for another rank and cannot see a signal. In a thread of its own."""
    parent, under_torchrun = os.getppid(), "TORCHELASTIC_RUN_ID" in os.environ
    first, code = math.inf, 0
    while True:
        if select.select([received], [], [], 1.0)[0]:
            numbers = received.recv(16)
            if not numbers:
                return  # the other end is closed: the command has ended
            if asked := [n for n in numbers if n in (signal.SIGTERM, signal.SIGINT)]:
                if time.monotonic() - first > SAME_SIGNAL:
                    if cli.is_main_process():
                        tell("ended at once, without saving")
                    os._exit(128 + asked[-1])
                first, code = min(first, time.monotonic()), Stopped(asked[0]).code
        if cli.among_several() and time.monotonic() - first > STUCK and not SIGNALS.received:
            tell("stopped while it waited for another process")
            os._exit(code)
        if under_torchrun and os.getppid() != parent:
            tell("error: torchrun has ended")
            os._exit(2)


class Output:
    """A stream that says nothing more when its reader has ended, so that a run goes on without."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self.without_reader():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self.without_reader():
            self.stream.flush()

    @contextlib.contextmanager
    def without_reader(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def run_command(main: Callable[[], None]) -> None:
    """`cli.run_command` for what may run for days, in several processes."""

    def explained() -> None:
        try:
            main()
        except torch.OutOfMemoryError:
            sizes = "--max_tokens_per_device, --rollout_batch_size or --eval_batch_size"
            raise InputError(f"out of memory on the GPU: choose a smaller {sizes}") from None
        except RuntimeError as error:  # gloo's errors have no class of their own
            what = str(error).strip().partition("\n")[0]
            missing = re.search(r"Ranks? ([\d, ]+) failed to pass monitoredBarrier", what)
            if missing:
                raise InputError(f"rank {missing[1]} has ended, or does not answer") from None
            if not isinstance(error, dist.DistError) and not re.search("gloo|Barrier", what):
                raise
            raise InputError(f"another process has ended, or does not answer: {what}") from None
        finally:
            SIGNALS.held = True  # it is ending already

    nothing = open(os.devnull, "w")  # noqa: SIM115  in place of a stream that is closed
    sys.stdout, sys.stderr = (Output(stream or nothing) for stream in (sys.stdout, sys.stderr))
    received, sent = socket.socketpair()
    sent.setblocking(False)
    signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, args=(received,), daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, SIGNALS.receive)
    cli.run_command(explained)


# -------------------------------------------------------------------------------------------- ranks


@dataclass
class Runtime:
    """Rank and device of this process, and the number of all processes."""

    rank: int
    world_size: int
    device: torch.device
    bf16: bool  # compute in bf16; parameters and optimizer state stay in fp32
    mesh: DeviceMesh | None = None  # None: shard over all ranks
    host: Any = None  # the process group for what lies on the CPU; None: the default one

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This rank's items of a global list, which `gather` puts back in order."""
        return list(items[self.rank :: self.world_size])

    def gather(self, mine: list[Any]) -> list[Any]:
        """The global list, on every rank, from each rank's `share` of it."""
        if self.world_size == 1:
            return mine
        parts: list[list[Any]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(parts, mine, self.host)
        n = self.world_size
        return [parts[i % n][i // n] for i in range(sum(map(len, parts)))]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max(self, value: float) -> float:
        """The maximum over all ranks, found on the CPU: no GPU is waited for."""
        values = torch.tensor(value, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, self.host)
        return values.item()

    def wait(self, timeout: datetime.timedelta = TIMEOUT) -> None:
        """Wait until every rank is here. The error names those that do not come in time."""
        if self.world_size > 1:
            dist.monitored_barrier(self.host, timeout, wait_all_ranks=True)

    def on_first(self, work: Callable[[], T], timeout: datetime.timedelta = TIMEOUT) -> T:
        """What `work` returns on rank 0, on every rank. InputError and OSError reach all ranks."""
        found: list[Any] = [None, None]
        if self.rank == 0:
            try:
                found[0] = work()
            except (InputError, OSError) as error:
                found[1] = cli.in_words(error)
        self.wait(timeout)
        if self.world_size > 1:
            dist.broadcast_object_list(found, 0, self.host)
        if found[1] is not None:
            raise InputError(found[1])
        return found[0]

    def check_signals(self) -> None:
        """Raise Stopped on all ranks if one of them has had a signal."""
        if number := int(self.max(SIGNALS.received)):
            raise Stopped(number)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """A part of the work in which ranks do not communicate, and need very different times.

        A signal ends it at once, on its own rank: nothing may communicate inside. Where signals are
        held, all ranks then leave it together, with Stopped; elsewhere the rank leaves alone.
        """
        before = SIGNALS.held
        try:
            with SIGNALS.hold(False):
                yield
        except Stopped:
            if not before:
                raise
        self.wait(PATIENCE)
        self.check_signals()


def peak_memory() -> float:
    """The most memory that this process has held, in GiB: on its GPU, else on the CPU; NaN where
    the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def start(bf16: bool | None, hsdp: bool = False) -> Runtime:
    """Join the processes that torchrun started, or be the only one. bf16 None: yes on a GPU.

    hsdp: split parameters over the ranks of a node only; each node has a whole copy.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", environment_number("LOCAL_RANK", 0))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    bf16 = cuda if bf16 is None else bf16
    world_size = environment_number("WORLD_SIZE", 1)
    rank = environment_number("RANK", 0) if world_size > 1 else 0
    backend = "nccl" if cuda else "gloo"
    if not dist.is_initialized() and world_size > 1:
        try:
            dist.init_process_group(backend, timeout=TIMEOUT)
        except ValueError as error:  # a variable that torchrun sets is missing
            raise InputError(f"the processes cannot meet: {error}") from None
    elif not dist.is_initialized() and bf16:  # fully_shard wants a group, even of one
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    mesh, host = None, None
    if world_size > 1 and cuda:
        host = dist.new_group(backend="gloo", timeout=TIMEOUT)
    if hsdp and world_size > 1:
        local = environment_number("LOCAL_WORLD_SIZE", world_size)
        sizes, names = (world_size // local, local), ("replicate", "shard")
        mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
    return Runtime(rank, world_size, device, bf16, mesh, host)


def stop() -> None:
    """Leave the process group. A process that torchrun started ends here; all files are written.

    It leaves without Python's usual clean-up: a thread of gloo may still be releasing tensors of
    the last collective, and with PyTorch 2.15 that aborts an interpreter that is shutting down.
    """
    if not dist.is_initialized():
        return
    several = dist.get_world_size() > 1
    dist.destroy_process_group()
    if several:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
