"""`make bench`: speed and memory, beside transformers and TRL where they are installed.

    make demo && make bench                    # the lab's model; LHRM_ASSETS adds SmolLM2-135M
    python tests/bench.py sampler --rounds 5   # a part: machine, sampler, hft, hgpo or memory

The sides run in turns in one process. The table has medians; a ratio above 1: ours is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import logging
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import torch  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402

import hgpo  # noqa: E402
import lhrm  # noqa: E402
from data.modes import MODES  # noqa: E402
from data.rows import Query, read_queries, row_length, tokenized_rows  # noqa: E402
from data.runs import Run  # noqa: E402
from data.tokenizer import Tokenizer  # noqa: E402
from model import Config, Transformer  # noqa: E402
from sample import generate  # noqa: E402

try:
    import transformers
except ImportError:
    transformers = None
try:
    import trl
except ImportError:
    trl = None

LAB = ROOT / "runs" / "lab"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
SIZES = {  # hidden size, intermediate size, layers, query heads, key/value heads, vocabulary
    "small": (576, 1536, 4, 9, 3, 49152),  # SmolLM2-135M with 4 of its 30 layers
    "0.5B": (896, 4864, 24, 14, 2, 151936),  # Qwen2.5's
    "1.5B": (1536, 8960, 28, 12, 2, 151936),
    "7B": (3584, 18944, 28, 28, 4, 152064),
}
RUNTIME = lhrm.Runtime(0, 1, DEVICE, False)


def random_config(size: str) -> Config:
    hidden, intermediate, layers, heads, shared, vocabulary = SIZES[size]
    return Config(
        vocabulary, hidden, intermediate, layers, heads,
        num_key_value_heads=shared, tie_word_embeddings=True,
    )  # fmt: skip


def random_model(folder: Path, size: str) -> Path:
    """A model folder of a size, with random weights and the lab's tokenizer."""
    Transformer(random_config(size)).initialize(0).save_pretrained(folder, DTYPE)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((LAB / "base" / name).read_bytes())
    return folder


# ------------------------------------------------------------------------------------------ timing


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes; work that measures itself returns its seconds."""
    began = time.perf_counter()
    own = work()
    if isinstance(own, float):
        return own
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turns(rounds: int, sides: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median seconds of each side, run in turns after one run that does not count."""
    for work in sides.values():
        work()
    gc.collect()
    gc.freeze()  # or Python would search all objects of all these libraries again and again
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


def row(what: str, unit: str, values: dict[str, float], note: str = "") -> None:
    """A line of the table: our figure, then each other side's with its ratio to ours."""
    ours, *others = values.items()
    cells = [f"{ours[1]:.3g} {unit}"]
    cells += [f"{name} {value:.3g}, ratio {value / ours[1]:.2f}" for name, value in others]
    print(f"| {what} | " + " · ".join(cells) + f" | {note} |", flush=True)


# ----------------------------------------------------------------------------------------- machine


def processor() -> str:
    """The name of the GPU, or of the CPU."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine(rounds: int) -> dict[str, float]:
    """What this machine can do at most: bytes copied and products of numbers, a second."""
    a = torch.randn(2048, 2048, device=DEVICE, dtype=DTYPE)
    big = torch.zeros(2**28, device=DEVICE, dtype=torch.uint8)
    copied = torch.empty_like(big)
    times = in_turns(
        max(3, rounds), {"matmul": lambda: torch.mm(a, a), "copy": lambda: copied.copy_(big)}
    )
    return {"flops": 2 * 2048**3 / times["matmul"], "bytes": 2 * 2**28 / times["copy"]}


# ----------------------------------------------------------------------------------------- sampler


@dataclass
class Workload:
    prompts: list[list[int]]
    modes: list[str]
    num_generations: int
    max_new_tokens: int
    batch_size: int
    stops: bool = True  # otherwise all responses are equally long


class Sides:
    """A model folder in this project and in transformers, which samples the same workloads."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_pretrained(folder)
        self.model = Transformer.from_pretrained(folder, DTYPE, DEVICE).eval()
        self.bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self.ids = SimpleNamespace(
            **{n: getattr(self.tokenizer, n) for n in ("think_id", "no_think_id")}
        )
        self.fed = self.tokens = 0
        forward = self.model.forward

        def counting(ids: torch.Tensor, **options: Any) -> Any:
            self.fed += len(ids) * (ids.shape[1] == 1)
            return forward(ids, **options)

        self.model.forward = counting
        if max(self.ids.think_id, self.ids.no_think_id) >= self.model.config.vocab_size:
            self.model.fit_vocabulary(self.tokenizer)
        if transformers:
            self.theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE)
            self.theirs.resize_token_embeddings(self.model.config.vocab_size)
            self.theirs.to(DEVICE).eval()

    def lhrm(self, work: Workload) -> None:
        self.ids.eos_ids = self.tokenizer.eos_ids if work.stops else []
        self.fed = 0
        groups = generate(
            self.model, self.ids, work.prompts, modes=work.modes, batch_size=work.batch_size,
            num_generations=work.num_generations, max_new_tokens=work.max_new_tokens,
        )  # fmt: skip
        lengths = [len(completion.ids) for group in groups for completion in group]
        self.tokens, self.decoded = sum(lengths), sum(lengths) - len(lengths)  # without the first

    def opened(self, work: Workload) -> list[list[int]]:
        tags = {"think": self.ids.think_id, "no_think": self.ids.no_think_id}
        return [[*prompt, tags[mode]] for prompt, mode in zip(work.prompts, work.modes)]

    def options(self, work: Workload) -> dict[str, Any]:
        eos = list(self.tokenizer.eos_ids) if work.stops else None
        self.theirs.generation_config.eos_token_id = eos
        return {
            "max_new_tokens": work.max_new_tokens - 1, "do_sample": True, "temperature": 1.0,
            "top_k": 0, "top_p": 1.0, "eos_token_id": eos, "pad_token_id": 0,
        }  # fmt: skip

    def generate(self, work: Workload) -> None:
        """In batches, each of which runs until its last response ends."""
        opened, size = self.opened(work), max(1, work.batch_size // work.num_generations)
        for i in range(0, len(opened), size):
            part = opened[i : i + size]
            longest = max(map(len, part))
            ids = torch.tensor([[0] * (longest - len(p)) + p for p in part], device=DEVICE)
            self.theirs.generate(
                ids, attention_mask=(ids > 0).long(), num_return_sequences=work.num_generations,
                **self.options(work),
            )  # fmt: skip

    def generate_batch(self, work: Workload) -> None:
        """Continuous batching."""
        config = transformers.GenerationConfig(**self.options(work))
        inputs = [p for p in self.opened(work) for _ in range(work.num_generations)]
        self.theirs.generate_batch(inputs, config, progress_bar=False, warmup=False)


def workloads(name: str, tokenizer: Tokenizer) -> dict[str, Workload]:
    queries = read_queries(str(LAB / "data" / "rl.jsonl"))
    if name == "lab":
        prompts = [tokenizer.encode_chat(q.prompt) for q in queries]
        twice = [p for p in prompts for _ in MODES]
        return {
            "rollout of the lab: 48 queries, 4 responses in each mode": Workload(
                twice[:96], list(MODES) * 48, 4, 64, 384
            ),
            "heavy tail: 1,536 responses, half in each mode, 64 slots": Workload(
                twice[:384], list(MODES) * 192, 4, 64, 64
            ),
            "equal lengths: 64 responses of 64 tokens": Workload(
                prompts[:64], ["think"] * 64, 1, 64, 64, stops=False
            ),
            "one stream of 128 tokens": Workload(prompts[:1], ["think"], 1, 128, 1, stops=False),
        }
    rng = random.Random(0)
    prompts = [[rng.randrange(5, 150) for _ in range(rng.randint(20, 40))] for _ in range(16)]
    return {
        "equal lengths: 16 responses of 32 tokens": Workload(
            prompts, ["think"] * 16, 1, 32, 16, stops=False
        ),
        "one stream of 32 tokens": Workload(prompts[:1], ["think"], 1, 32, 1, stops=False),
    }


def sampler(models: dict[str, Path], rounds: int, limits: dict[str, float]) -> None:
    for name, folder in models.items():
        sides = Sides(folder)
        for what, work in workloads(name, sides.tokenizer).items():
            ways: dict[str, Callable[[Workload], None]] = {"lhrm": sides.lhrm}
            if transformers:
                ways["generate"] = sides.generate
                if "heavy" in what:
                    ways["generate_batch"] = sides.generate_batch
            sides_of = {way: functools.partial(run, work) for way, run in ways.items()}
            times = in_turns(rounds, sides_of)
            note = f"{sides.tokens / times['lhrm']:.0f} tokens/s"
            if "heavy" in what:
                note += f", slots busy {sides.decoded / sides.fed:.0%}"
            if "one stream" in what:
                share = sides.bytes * sides.tokens / times["lhrm"] / limits["bytes"]
                note += f", weights read at {share:.0%} of a copy's speed"
            row(f"{name}: {what}", "s", times, note)


# ----------------------------------------------------------------------------------------- training


def hft(name: str, folder: Path, rounds: int, limits: dict[str, float]) -> None:
    """A step of Eq. 4, forward, backward and update, on the same rows."""
    tokenizer = Tokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as cache:
        path, tokens = str(LAB / "data" / "hft.jsonl"), Path(cache) / "tokens"
        rows = tokenized_rows(path, "", tokenizer, 512, tokens, RUNTIME.on_first)
        size, steps = (64, 10) if name == "lab" else (16, 1)
        batches = [[rows[i * size + j] for j in range(size)] for i in range(steps)]
    max_tokens = lhrm.HFT_ON_LAB["max_tokens_per_device"] if name == "lab" else 16384
    model = Transformer.from_pretrained(folder, device=DEVICE)
    model.fit_vocabulary(tokenizer)
    optimizer = lhrm.make_optimizer(model, 0.1)

    def ours() -> None:
        for batch in batches:
            lengths = list(map(row_length, batch))
            for part in lhrm.micro_batches(lengths, max_tokens, RUNTIME):
                loss, *_ = lhrm.hft_batch_loss(model, [batch[i] for i in part], size)
                loss.backward()
            lhrm.optimizer_step(model, optimizer, 1e-4, 1.0, loss.detach())

    work = {"lhrm": ours}
    if transformers:
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        peer.resize_token_embeddings(model.config.vocab_size)
        peer.to(DEVICE).train()
        adamw = lhrm.make_optimizer(peer, 0.1)

        def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
            columns = [torch.tensor(row) for row in rows]
            return pad_sequence(columns, batch_first=True, padding_value=value).to(DEVICE)

        def theirs() -> None:
            for batch in batches:
                ids = [[*prompt, *response] for prompt, response in batch]
                labels = [[-100] * len(prompt) + [*response] for prompt, response in batch]
                mask = pad([[1] * len(row) for row in ids], 0)
                out = peer(input_ids=pad(ids, 0), attention_mask=mask, labels=pad(labels, -100))
                out.loss.backward()
                lhrm.optimizer_step(peer, adamw, 1e-4, 1.0, out.loss.detach())

        work["transformers"] = theirs
    times = {side: total / steps for side, total in in_turns(rounds, work).items()}
    tokens = sum(row_length(row) for batch in batches for row in batch) / steps
    blocks = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    share = 6 * blocks * tokens / times["lhrm"] / limits["flops"]
    note = f"{tokens / times['lhrm']:.0f} tokens/s; the blocks' products alone, at the machine's "
    row(f"{name}: HFT step of {size} rows", "s", times, note + f"limit, take {share:.0%}")


@contextlib.contextmanager
def phases() -> Iterator[dict[str, float]]:
    """Seconds spent in each phase of an HGPO step."""
    spent = dict.fromkeys(("rollout", "reward", "waiting", "scoring", "optimizer"), 0.0)

    def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                spent[phase] += time.perf_counter() - began

        return wrapped

    places = [
        (hgpo, "sample_responses", "rollout"), (lhrm, "judge_all", "reward"),
        (lhrm.Runtime, "sum", "waiting"), (hgpo, "accumulate_gradients", "scoring"),
        (lhrm, "optimizer_step", "optimizer"),
    ]  # fmt: skip
    before = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, phase), function in zip(places, before):
        setattr(owner, name, timed(phase, function))
    yield spent
    for (owner, name, _), function in zip(places, before):
        setattr(owner, name, function)
    spent["rollout"] -= spent["reward"]


class HGPOStep:
    """16 queries, 8 responses of 32 tokens to each, the KL term, one update."""

    def __init__(self, folder: Path) -> None:
        self.queries = [
            Query([{"role": "user", "content": q.prompt[-1]["content"]}], ["1"], "1", "maths")
            for q in read_queries(str(LAB / "data" / "rl.jsonl"))[:64]
        ]
        self.tokenizer = Tokenizer.from_pretrained(folder)
        self.tokenizer.eos_ids = []  # all responses are equally long
        self.policy, self.reference = (
            Transformer.from_pretrained(folder, device=DEVICE) for _ in range(2)
        )

    def run(self) -> float:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            settings = hgpo.HGPOSettings(
                output_dir=folder, max_steps=1, num_queries=16, num_generations=8,
                max_completion_length=32, gradient_checkpointing=False, seed=random.randrange(99),
            )  # fmt: skip
            with Run(settings, RUNTIME, {}) as one:
                one.save = lambda: None
                hgpo.train(
                    self.policy, self.reference, self.tokenizer, self.queries, settings, RUNTIME,
                    one,
                )  # fmt: skip
            return json.loads((Path(folder) / "log.jsonl").read_text())["step_time"]


class TRLStep:
    """The same by TRL's GRPOTrainer."""

    def __init__(self, folder: Path, queries: Sequence[Query]) -> None:
        import datasets

        class Clock(transformers.TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.began = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                self.seconds = time.perf_counter() - self.began

        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.generation_config.eos_token_id = None
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>",
            pad_token="<|endoftext|>", padding_side="left",
        )  # fmt: skip
        self.clock, self.folder = Clock(), tempfile.TemporaryDirectory()
        options = trl.GRPOConfig(
            output_dir=self.folder.name, per_device_train_batch_size=128, num_generations=8,
            max_completion_length=32, max_steps=1, save_strategy="no", report_to=[], bf16=False,
            beta=0.001, learning_rate=1e-6, logging_steps=1, gradient_checkpointing=False,
            use_cpu=DEVICE.type == "cpu", disable_tqdm=True,
            generation_kwargs={"eos_token_id": None},
        )  # fmt: skip
        rows = datasets.Dataset.from_list([{"prompt": q.prompt[-1]["content"]} for q in queries])
        self.trainer = trl.GRPOTrainer(
            model, reward_funcs=lambda completions, **_: [float(len(c) % 3) for c in completions],
            args=options, train_dataset=rows, processing_class=tokenizer, callbacks=[self.clock],
        )  # fmt: skip

    def run(self) -> float:
        with contextlib.redirect_stdout(None):
            self.trainer.train()
        return self.clock.seconds


def hgpo_step(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = random_model(Path(folder), "small")
        ours = HGPOStep(path)
        work: dict[str, Callable[[], float]] = {"lhrm": ours.run}
        if trl:
            work["TRL"] = TRLStep(path, ours.queries).run
        times = in_turns(rounds, work)
        with phases() as spent:
            ours.run()
        note = ", ".join(f"{phase} {value:.2g}" for phase, value in spent.items())
        row("4 layers, 49,152 tokens: HGPO step, 16 × 8 responses of 32 tokens", "s", times, note)


# ------------------------------------------------------------------------------------------ memory


def peak(part: str) -> None:
    """Print how much more memory a part takes than its model: run in a process of its own."""
    lines = []
    if part == "scoring":
        hidden, _, _, _, _, vocabulary = SIZES["0.5B"]
        weight = torch.nn.Parameter(torch.randn(vocabulary, hidden) * 0.02)
        weight.grad = torch.zeros_like(weight)
        rows = torch.randn(8192, hidden, requires_grad=True)
        targets = torch.randint(vocabulary, (8192,))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        lines = lhrm.TokenLogProbs.apply(rows, weight, vocabulary, targets, 1.0, ("entropy",))
        lines[0].sum().backward()
    else:
        with tempfile.TemporaryDirectory() as folder:
            step = HGPOStep(random_model(Path(folder), "small"))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            step.run()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)


def memory() -> None:
    parts = {
        "scoring": "scoring 8,192 tokens of 151,936 entries, above weights and their gradient",
        "hgpo": "4 layers, 49,152 tokens: HGPO step, above two models' weights",
    }
    for part, what in parts.items():
        done = subprocess.run(
            [sys.executable, __file__, "--peak", part], capture_output=True, text=True, check=True
        )
        row(f"peak memory of {what}", "GiB", {"lhrm": float(done.stdout.split()[-1])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("machine", "sampler", "hft", "hgpo", "memory")
    parser.add_argument("parts", nargs="*", help=f"{', '.join(parts)}; none: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.peak:
        return peak(options.peak)
    if not (LAB / "hft" / "model.safetensors").exists():
        sys.exit(f"{LAB} has no model: run `make demo` first")
    chosen = options.parts or parts
    print(f"{processor()}, {torch.get_num_threads()} threads, ", end="")
    print(
        f"{DEVICE}, torch {torch.__version__}\n\n| what | lhrm, then others | more |\n|---|---|---|"
    )
    limits = machine(options.rounds)
    print(f"| machine: largest product, largest copy | {limits['flops'] / 1e9:.0f} GFLOP/s, "
          f"{limits['bytes'] / 1e9:.1f} GB/s | |", flush=True)  # fmt: skip
    models = {"lab": LAB / "hft"}
    for folder in filter(None, os.environ.get("LHRM_ASSETS", "").split(os.pathsep)):
        models |= {path.name: path for path in Path(folder).glob("smollm2-llama")}
    with tempfile.TemporaryDirectory() as folder:
        if DEVICE.type == "cuda":
            for size in list(SIZES)[1:]:
                models[size] = random_model(Path(folder) / size, size)
        if "sampler" in chosen:
            sampler(models, options.rounds, limits)
        for name, path in models.items() if "hft" in chosen else ():
            hft(name, path, options.rounds, limits)
    if "hgpo" in chosen:
        hgpo_step(options.rounds)
    if "memory" in chosen:
        memory()


if __name__ == "__main__":
    main()
