"""The folder of a run: whose it is, what it holds, how far it is, and how it goes on.

settings.json (of an evaluation, eval_settings.json) says what the folder holds. Its `status` is
"unfinished" from the beginning, and "finished" when all else has been written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import socket
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from data import cli, lab
from data.cli import InputError, setting
from data.processes import SIGNALS, Runtime, Stopped
from model import WEIGHTS, Config, Transformer

CHECKPOINT = "checkpoint-" + "[0-9]" * 6  # and no other name: it may be the user's own copy
HASH = "[0-9a-f]" * 16
MAX_STEPS = 10**6 - 1
MAX_SKIPPED = 5  # updates in a row that are left out before a run gives up
MAY_CHANGE = ("learning_rate", "max_grad_norm", "max_steps")  # when resuming; it is recorded
EXPORTED = ("float32", "bfloat16", "float16")  # of weights that are written


@dataclass
class RunOptions:
    """The settings of a run's folder."""

    output_dir: str = setting("runs/hft", "folder for the model, the log and the checkpoints")
    save_steps: int = setting(500, "steps between two checkpoints")
    save_total_limit: int = setting(2, "checkpoints that are kept")
    export_dtype: str | None = setting(None, "of the new model; unset: the base model's", EXPORTED)
    resume_from_checkpoint: bool = setting(False, "go on where a killed run left off")
    overwrite_output_dir: bool = setting(False, "start over: delete what the folder's run left")
    seed: int = setting(0, "seed of the data order, of all sampling, and of the lab")


class Kind(NamedTuple):
    """What training and evaluations leave in a folder."""

    file: str  # that says what the folder holds
    progress: str  # that an unfinished run goes on from
    temporary: tuple[str, ...]  # what is deleted at the end, with `progress`
    lasting: tuple[str, ...]  # what --overwrite_output_dir deletes, with all the above
    free: tuple[str, ...]  # settings that may change when it goes on: they change no weights


TRAINING = Kind(
    "settings.json", CHECKPOINT,
    ("checkpoint-partial", f"evaluated-{HASH}-*.jsonl", ".hft_tokens", ".deleted-*"),
    (*WEIGHTS, "model.safetensors.index.json", "config.json", "tokenizer.json",
     "tokenizer_config.json", "generation_config.json", "log.jsonl", "completions.jsonl",
     "results.json",
     f"samples-{HASH}-*.jsonl", "not-finite-[0-9]*.jsonl", "tensorboard/events.out.tfevents.*"),
    ("output_dir", "resume_from_checkpoint", "overwrite_output_dir", "report_to", "hacc_margin",
     "log_completions", "logging_steps", "save_steps", "save_total_limit",
     "eval_dataset_name", "eval_on_start", "eval_steps", "eval_domain", "eval_num_generations",
     "eval_temperature", "eval_top_p", "eval_batch_size", "eval_max_completion_length",
     "allow_malformed",
     # From here on: equal but for rounding. They are the remedy where memory was short.
     "max_tokens_per_device", "rollout_batch_size", "reward_batch_size", "gradient_checkpointing",
     "offload_reward_model", "hsdp"),
)  # fmt: skip
EVALUATION = Kind(
    "eval_settings.json", "unfinished-*.jsonl", (".deleted-*",),
    ("eval.json", "responses.jsonl", "alpaca_eval.json", "evalplus.jsonl", "arena_hard.jsonl",
     "livecodebench.json"),
    ("output_dir", "resume_from_checkpoint", "overwrite_output_dir", "export", "hacc_margin",
     "eval_domain", "eval_batch_size", "reward_batch_size", "offload_reward_model"),
)  # fmt: skip
# Files that decide what a model, a classifier or tokenized rows are, beside *.safetensors.
IDENTITY = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.json", "chat_template.jinja", "classifier.json", "tokens.json", "tokens.bin",
    "lengths.bin",
)  # fmt: skip


# ----------------------------------------------------------------------------- files and folders


def digest(given: str | Path) -> str:
    """A hash of the contents of a file, of several with commas between, or of what matters in a
    folder."""
    total = hashlib.sha256()
    for path in [Path(given)] if Path(given).exists() else map(Path, str(given).split(",")):
        files = [path]
        if path.is_dir():
            files = [p for p in path.iterdir() if p.suffix == ".safetensors" or p.name in IDENTITY]
        for file in sorted(files):
            total.update(f"{file.name if path.is_dir() else ''}\0".encode())
            with open(file, "rb") as opened:
                while part := opened.read(2**20):
                    total.update(part)
    return total.hexdigest()


def delete(path: Path) -> None:
    """Delete a file or a folder. It gets another name first, so that what a kill leaves of it is
    not taken for the whole."""
    if not path.is_dir():
        return path.unlink(missing_ok=True)
    gone = path
    if not path.name.startswith(".deleted-"):
        gone = path.with_name(f".deleted-{path.name}-{secrets.token_hex(4)}")
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def announce(title: str, settings: Any, derived: dict[str, Any]) -> dict[str, Any]:
    """Print and return a run's settings, what follows from them, and versions. Settings that have
    their defaults come last, dimmed in a terminal."""
    names = ("torch", "tokenizers", "safetensors", "numpy")
    shown = {"settings": dataclasses.asdict(settings), "derived": derived}
    shown |= {"versions": {name: version(name) for name in names}}
    if cli.is_main_process():
        defaults = {f.name: f.default for f in dataclasses.fields(settings)}
        chosen = {k: v for k, v in shown["settings"].items() if v != defaults[k]}
        print(f"\n{title}")
        for name, value in (chosen | derived).items():
            print(f"  {name:28} {value}")
        others = [f"{k}={v}" for k, v in shown["settings"].items() if k not in chosen]
        others += [f"{name} {number}" for name, number in shown["versions"].items()]
        lines = textwrap.wrap("by default: " + ", ".join(others), 98, break_on_hyphens=False)
        print(textwrap.indent("\n".join(lines), "  ").join(cli.dimming()))
    return shown


AT_WORK = "another run is at work here"


class Lock:
    """A file that one process at a time can hold. The system takes it from a process that ends."""

    def __init__(self, path: Path) -> None:
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        self.path, self.token = path, f"{holder}, {secrets.token_hex(8)}"
        try:
            import fcntl
        except ImportError:  # on Windows two runs in a folder are not told apart
            self.file = open(path, "w", encoding="utf-8")  # noqa: SIM115
        else:
            while True:
                self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115
                try:
                    fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.path.samestat(os.fstat(self.file.fileno()), path.stat()):
                        break
                except BlockingIOError:
                    self.file.close()
                    other = path.read_text(encoding="utf-8").partition(",")[0]
                    raise InputError(f"{path.parent}: {AT_WORK}: {other}") from None
                except FileNotFoundError:  # its last holder has just released it
                    self.file.close()
                except OSError:  # a file system without locks
                    break
        self.file.truncate(0)
        self.file.write(self.token)
        self.file.flush()

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.file.close()


# ---------------------------------------------------------------------------------------- a run


class Run:
    """A run in its folder, which no other run may use until `close`.

    made_from: paths of rows and models, by the names of their settings. When a run goes on, these
    are compared by content, and the other settings by value.
    Raises InputError, on all ranks, where the folder holds something else, where another run is at
    work in it, and where a rank sees another folder than rank 0.
    """

    def __init__(
        self,
        settings: Any,
        runtime: Runtime,
        made_from: Mapping[str, str | None],
        kind: Kind = TRAINING,
    ) -> None:
        self.settings, self.runtime, self.kind = settings, runtime, kind
        self.folder = Path(settings.output_dir)
        self.record: dict[str, Any] = {"status": "unfinished"}
        self.lock: Lock | None = None
        self.step = self.saved_step = self.tokens_seen = 0
        self.skipped_updates = self.skipped_in_a_row = 0
        try:
            paths = {name: path for name, path in made_from.items() if path}
            found = runtime.on_first(lambda: self.claim(paths))
            self.finished, self.contents, self.changes, self.derived, self.newest, token = found
            problems = runtime.gather([self.what_is_missing_here(token)])
            if any(problems):
                raise InputError(next(filter(None, problems)))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, _: object, error: object, __: object) -> None:
        self.close()
        if isinstance(error, Stopped) and not error.message:
            goes_on = "--resume_from_checkpoint goes on"
            raise Stopped(error.number, f"{self.folder}: stopped: {goes_on}") from None

    def close(self) -> None:
        """Let others use the folder."""
        if self.lock:
            self.lock.release()
        self.lock = None

    def claim(self, paths: dict[str, str]) -> tuple[Any, ...]:
        """Take the folder, on rank 0. Returns whether it holds this run, finished; a hash for each
        of `paths`; changes of settings so far; what followed from the settings when it began, if it
        has begun; the newest checkpoint, if any; the lock's token."""
        settings, folder, kind = self.settings, self.folder, self.kind
        if settings.overwrite_output_dir and settings.resume_from_checkpoint:
            both = "--overwrite_output_dir starts over, --resume_from_checkpoint goes on"
            raise InputError(f"{both}: give one of them")
        for name, path in paths.items():
            if kind is TRAINING and Path(path).resolve() == folder.resolve():
                raise InputError(f"--output_dir and --{name} are the same folder, {folder}")
        hashes = {name: digest(path) for name, path in paths.items()}
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = Lock(folder / f".{kind.file}.lock")
        nothing: tuple[Any, ...] = (False, hashes, [], {}, None, self.lock.token)
        if settings.overwrite_output_dir:
            return nothing
        advice = "--overwrite_output_dir starts over"
        said = folder / kind.file
        record = cli.read_json(said) if said.exists() else {}
        finished = record.get("status") == "finished"
        progress = None if finished else max(folder.glob(kind.progress), default=None)
        if progress and not settings.resume_from_checkpoint:
            goes_on = "--resume_from_checkpoint goes on with it"
            raise InputError(f"{folder} holds an unfinished run: {goes_on}, {advice}")
        if finished or progress:
            keep = "give what it was made with, or another --output_dir"
            if finished and kind is TRAINING:
                keep += f" (with --model_name_or_path {folder} its model is trained further)"
            changes = self.compare(record, hashes, progress, f"{keep}; {advice}")
            if finished:
                self.delete(kind.progress, *kind.temporary)  # in case a kill left some of it
            return finished, hashes, changes, record["derived"], progress, self.lock.token
        if kind is TRAINING and not record and any(any(folder.glob(name)) for name in WEIGHTS):
            raise InputError(f"{folder} holds a model that was not trained in it: {advice}")
        with contextlib.suppress(InputError):  # it is this run, stopped before a checkpoint
            self.compare(record, hashes, None, advice)
            return False, hashes, [], record["derived"], None, self.lock.token
        return nothing

    def compare(
        self, record: dict[str, Any], hashes: dict[str, str], progress: Path | None, advice: str
    ) -> list[dict[str, Any]]:
        """All changes of settings since the run of `record` began. Raises InputError unless this
        run has the same results but for these."""
        path = self.folder / self.kind.file
        old, made_from = record.get("settings"), record.get("contents")
        changes, derived = record.get("changes"), record.get("derived")
        if not (
            isinstance(old, dict) and isinstance(made_from, dict) and isinstance(changes, list)
            and isinstance(derived, dict)
            and isinstance(derived.get("reward_shift", 0.0), (int, float))
        ):  # fmt: skip
            raise InputError(f"{path}: it does not say what the folder holds; {advice}")
        changed = {}
        defaults = {f.name: f.default for f in dataclasses.fields(self.settings)}
        for name, value in dataclasses.asdict(self.settings).items():
            evaluates = self.kind is TRAINING and name.startswith(("eval_", "hacc_"))
            if name in self.kind.free and (progress or not evaluates or name == "eval_batch_size"):
                continue
            was = old.get(name, defaults[name])  # an older version may not have had the setting
            if name in hashes or name in made_from:
                if made_from.get(name) != hashes.get(name):
                    differ = f"the contents of {value} are not those of {was}"
                    raise InputError(
                        f"{self.folder} was made with another {name}: {differ}; {advice}"
                    )
            elif was != value:
                if name not in MAY_CHANGE or not progress:
                    made = f"{self.folder} was made with {name} = {was}, not {value}"
                    raise InputError(f"{made}; {advice}")
                changed[name] = [was, value]
        if changed and progress:
            changes = [*changes, {"after_step": int(progress.name[-6:]), **changed}]
        return changes

    def what_is_missing_here(self, token: str) -> str | None:
        """Why this rank cannot work in the folder that rank 0 works in."""
        path = self.folder / f".{self.kind.file}.lock"
        for _ in range(5):
            with contextlib.suppress(OSError):
                seen = self.newest is None or self.newest.exists()
                if seen and path.read_text(encoding="utf-8") == token:
                    return None
            time.sleep(1)  # a network's file system may show a new file a little later
        return f"{self.folder} is not the folder that rank 0 sees: it must be on a shared disk"

    # ------------------------------------------------------------------------ beginning and end

    def begin(self, title: str, derived: dict[str, Any]) -> None:
        """Print settings, what follows from them, and versions; keep them in the folder, which from
        now on holds this run. Of a run that goes on they are kept once its checkpoint is loaded."""
        shown = announce(title, self.settings, derived)
        self.record |= {**shown, "contents": self.contents, "changes": self.changes}

        def write() -> None:
            self.delete(".deleted-*")
            if self.settings.overwrite_output_dir:  # the first to go says what the rest is
                kind = self.kind
                self.delete(kind.file, kind.progress, *kind.temporary, *kind.lasting)
            if not self.newest:
                self.write_record()

        self.runtime.on_first(write)

    def write_record(self) -> None:
        """Say what the folder holds."""
        cli.write_json(self.folder / self.kind.file, self.record)

    def delete(self, *patterns: str) -> None:
        for path in (path for pattern in patterns for path in self.folder.glob(pattern)):
            delete(path)

    def tell_that_it_is_finished(self) -> None:
        """Say why nothing is done."""
        if cli.is_main_process():
            over = "its own command starts over with --overwrite_output_dir"
            print(f"{self.folder} holds this run, finished; {over}")

    def finish(self) -> None:
        """Say that the folder is whole, and delete what was needed only until then."""
        if self.finished:
            return

        def write() -> None:
            self.record["status"] = "finished"
            self.write_record()
            self.delete(self.kind.progress, *self.kind.temporary)

        self.runtime.on_first(write)
        if cli.is_main_process():
            talk = f"; python sample.py --model_name_or_path {self.folder} talks to its model"
            print(f"{self.folder}: finished{talk if self.kind is TRAINING else ''}")

    # ------------------------------------------------------------------------------ checkpoints

    def resume(
        self, models: dict[str, nn.Module], optimizer: torch.optim.Optimizer, steps: int
    ) -> int:
        """Load the newest checkpoint into `models` ("policy" and others) and `optimizer`, if there
        is one. Returns the number of steps, of all `steps`, that were made before it."""
        self.models, self.optimizer = models, optimizer
        if steps > MAX_STEPS:
            raise InputError(f"{steps} steps: no more than {MAX_STEPS} are possible")
        if self.newest is None:
            return 0
        if int(self.newest.name[-6:]) > steps:
            raise InputError(f"{self.newest} lies beyond the last step, {steps}")
        state = self.state()
        with checkpoint_errors(self.newest, "read", "delete it to go on from the one before"):
            done = cli.read_json(self.newest / "progress.json")
            counts: list[Any] = [done.get(n) for n in ("step", "tokens_seen", "skipped_updates")]
            if not all(type(count) is int and count >= 0 for count in counts):
                raise InputError("progress.json is damaged")
            self.step, self.tokens_seen, self.skipped_updates = counts
            self.saved_step = self.step
            dcp.FileSystemReader(self.newest).read_metadata()  # dcp.load would log a traceback
            dcp.load(state, checkpoint_id=self.newest, no_dist=self.runtime.world_size == 1)
        set_state_dict(
            models["policy"], optimizer, model_state_dict=state["policy"],
            optim_state_dict=state["optimizer"],
        )  # fmt: skip
        self.runtime.on_first(self.write_record)
        if cli.is_main_process():
            print(f"  goes on after step {self.step}")
            for change in self.changes:
                for name in change.keys() - {"after_step"}:
                    old, new = change[name]
                    print(f"  after step {change['after_step']}: {name}={new}, before {old}")
        return self.step

    def state(self) -> dict[str, Any]:
        """The tensors of a checkpoint."""
        unused = not self.optimizer.state  # get_state_dict then makes it up, and counts a step
        policy, optimizer = get_state_dict(self.models["policy"], self.optimizer)
        for moments in self.optimizer.state.values() if unused else ():
            moments["step"].zero_()
        others = {name: m.state_dict() for name, m in self.models.items() if name != "policy"}
        return {"policy": policy, "optimizer": optimizer, **others}

    def completed(self, step: int, num_tokens: int, last: bool) -> None:
        """Count a step, and save it if it is time."""
        self.step = step
        self.tokens_seen += num_tokens
        # The update before one that was left out may have ruined the weights: then the checkpoints
        # from before it are kept.
        due = step % self.settings.save_steps == 0 and not self.skipped_in_a_row
        if last or due:
            self.save()

    def check_weights(self) -> None:
        """Raise InputError, on all ranks, if the policy's weights are not finite."""
        parameters = (p.detach() for p in self.models["policy"].parameters())
        shards = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
        finite = [torch.stack(s.aminmax()).isfinite().all() for s in shards if s.numel()]
        if self.runtime.max(float(not all(finite))):
            raise InputError(
                f"the weights are not finite after step {self.step}: go on from a checkpoint "
                "before it with a lower --learning_rate"
            )

    def save(self) -> None:
        """Save all that is needed to go on after this step; keep the last `save_total_limit`
        checkpoints. There is no random state: every random number is computed from the seed, the
        step and its place."""
        self.check_weights()
        partial = self.folder / "checkpoint-partial"
        self.runtime.on_first(lambda: delete(partial))
        with checkpoint_errors(partial, "written", "the checkpoints before it are whole"):
            dcp.save(self.state(), checkpoint_id=partial, no_dist=self.runtime.world_size == 1)

        def publish() -> None:
            done = {"step": self.step, "tokens_seen": self.tokens_seen}
            done |= {"skipped_updates": self.skipped_updates}
            cli.write_json(partial / "progress.json", done)
            partial.rename(self.folder / f"checkpoint-{self.step:06d}")
            for path in sorted(self.folder.glob(CHECKPOINT))[: -self.settings.save_total_limit]:
                delete(path)

        self.runtime.wait()
        self.runtime.on_first(publish)
        self.saved_step = self.step

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Steps of training. A signal ends them where it is looked for: before the first update of
        a step, and after a step. So the model is what the last completed step left; it is saved."""
        with SIGNALS.hold():
            try:
                yield
                self.runtime.check_signals()
            except Stopped as stop:
                if self.step > self.saved_step and not self.skipped_in_a_row:
                    self.save()
                goes_on = "--resume_from_checkpoint goes on from there"
                message = f"{self.folder}: stopped after step {self.saved_step}: {goes_on}"
                raise Stopped(stop.number, message) from None

    def count_update(self, updated: bool, step: int, rows: Sequence[Any]) -> None:
        """Count an update that was left out because its loss or gradient was not finite. Raises
        InputError after MAX_SKIPPED in a row, and keeps this rank's rows of that step."""
        self.skipped_in_a_row = 0 if updated else self.skipped_in_a_row + 1
        self.skipped_updates += not updated
        if self.skipped_in_a_row == MAX_SKIPPED:
            path = self.folder / f"not-finite-{step:06d}-{self.runtime.rank}.jsonl"
            cli.write_rows(path, rows)
            self.runtime.wait()
            raise InputError(
                f"loss or gradient was not finite {MAX_SKIPPED} times in a row; the last rows are "
                f"in {path}. Go on from a checkpoint with a lower --learning_rate"
            )


@contextlib.contextmanager
def checkpoint_errors(path: Path, what: str, advice: str) -> Iterator[None]:
    """Turn an error of torch.distributed.checkpoint, which may be a BaseException, into one line
    that names its cause."""
    try:
        yield
    except (Exception, CheckpointException) as error:
        cause: BaseException = error
        if isinstance(error, CheckpointException):
            cause = next(iter(error.failures.values()))[0]
        while cause.__context__ and not isinstance(cause, OSError):
            cause = cause.__context__
        first_line = f"{cause}".partition("\n")[0] or type(cause).__name__
        raise InputError(f"{path} cannot be {what}: {first_line}; {advice}") from None


# --------------------------------------------------------------------------------- the lab's folder


def make_lab(folder: Path, seed: int, **changes: Any) -> None:
    """Write the lab of data/lab.py to a folder, once: its rows, and `base`, an untrained model.
    changes: what `lab.write` shall do otherwise."""
    base = folder / "base"
    if not (base / "model.safetensors").exists():
        lab.write(base, folder / "data", seed, **changes)
        config = Config.from_pretrained(base)
        Transformer(config).initialize(seed).save_pretrained(base)


def write_lab(folder: Path, seed: int, runtime: Runtime) -> dict[str, Path]:
    """Make the lab in a folder, on rank 0. Returns the paths of its model and its sets."""
    base, data = folder / "base", folder / "data"

    def write() -> int:
        if (folder / "settings.json").exists():
            raise InputError(
                f"{folder} holds another run: give --model_name_or_path to go on with it"
            )
        make_lab(folder, seed)
        return json.loads((data / "seed.json").read_text(encoding="utf-8"))

    made_with = runtime.on_first(write)
    if made_with != seed:
        raise InputError(f"{folder} holds the lab of seed {made_with}, not of {seed}")
    return {"base": base, **{name: data / f"{name}.jsonl" for name in ("hft", "rl", "test")}}
