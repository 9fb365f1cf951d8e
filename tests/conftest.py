"""A tiny random model, the lab's tokenizer, and the lab's files: what every test stands on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

import hgpo
import lhrm
from data import lab
from data.modes import MODES, TAGS
from data.tokenizer import Tokenizer
from data.verify_code import run_tests
from model import Config, Transformer
from sample import generate


def sandbox_is_missing() -> str:
    """Why no program can be run here, or ""."""
    try:
        run_tests("", "pass")
    except (OSError, ImportError) as error:
        return str(error)
    return ""


reason = sandbox_is_missing()
needs_sandbox = pytest.mark.skipif(bool(reason), reason=reason)
torch.set_num_threads(1)  # tiny models: threads would only get in each other's way
tqdm.monitor_interval = 0  # no thread of its own: some tests fork
ROOT = Path(__file__).parent.parent
TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tiny_model(seed: int = 0, spread: float = 8.0, **changes: object) -> Transformer:
    """Random weights, spread out so that the distributions are far from uniform; random biases."""
    model = Transformer(Config(**{**TINY, **changes})).initialize(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(spread)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.fixture
def model() -> Transformer:
    return tiny_model()


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab of seed 0: `base` with tiny random weights, `data` with its three files."""
    folder = tmp_path_factory.mktemp("lab")
    lab.write(folder / "base", folder / "data", seed=0)
    path = folder / "base" / "config.json"
    values = json.loads(path.read_text())
    values |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    path.write_text(json.dumps(values))
    Transformer(Config.from_pretrained(folder / "base")).initialize(0).save_pretrained(
        folder / "base"
    )
    lines = (folder / "data" / "hft.jsonl").read_text().splitlines(keepends=True)
    (folder / "data" / "hft_2000.jsonl").write_text("".join(lines[:2000]))
    return folder


@pytest.fixture(scope="session")
def polite(lab_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that knows the grammar, but does not do many sums."""
    folder = tmp_path_factory.mktemp("polite")
    settings = hft_settings(
        lab_folder, folder, max_steps=200, batch_size=32, learning_rate=1e-2,
        max_tokens_per_device=512,
    )  # fmt: skip
    lhrm.hft(settings)
    return folder


@pytest.fixture(scope="session")
def tokenizer(lab_folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(lab_folder / "base")


@pytest.fixture
def untagged(lab_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with a vocabulary that has no tags: it was never trained on any."""
    folder = tmp_path / "untagged"
    shutil.copytree(lab_folder / "base", folder)
    backend = json.loads((folder / "tokenizer.json").read_text())
    backend["added_tokens"] = [t for t in backend["added_tokens"] if t["content"] not in TAGS]
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    return folder


TINY_RUN = {"bf16": False, "gradient_checkpointing": False, "max_tokens_per_device": 128}


def hft_settings(lab_folder, output, **changes):
    values = {
        "model_name_or_path": str(lab_folder / "base"),
        "dataset_name": str(lab_folder / "data" / "hft_2000.jsonl"),
        "output_dir": str(output),
        "batch_size": 8,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        **TINY_RUN,
        **changes,
    }
    return lhrm.HFTSettings(**values)


def hgpo_settings(lab_folder, output, **changes):
    values = {
        "model_name_or_path": str(lab_folder / "base"),
        "dataset_name": str(lab_folder / "data" / "rl.jsonl"),
        "output_dir": str(output),
        "num_queries": 4,
        "num_generations": 4,
        "num_iterations": 2,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "max_completion_length": 12,
        "eval_max_completion_length": 12,
        "allow_malformed": True,
        **TINY_RUN,
        **changes,
    }
    return hgpo.HGPOSettings(**values)


def baseline_settings(method, lab_folder, output, **changes):
    values = {
        "model_name_or_path": str(lab_folder / "base"),
        "dataset_name": str(lab_folder / "data" / "rl.jsonl"),
        "output_dir": str(output),
        "max_steps": 6,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "max_completion_length": 24,
        "eval_max_completion_length": 24,
        "allow_malformed": True,
        "logging_steps": 1,
        **TINY_RUN,
        "max_tokens_per_device": 64,
        **changes,
    }
    return hgpo.METHODS[method][0](**values)


def few_rows(lab_folder, tmp_path, name):
    """Ten rows of a lab file: six steps pass several epoch boundaries."""
    path = tmp_path / f"{name}.jsonl"
    lines = (lab_folder / "data" / f"{name}.jsonl").read_text().splitlines()[:10]
    path.write_text("\n".join(lines) + "\n")
    return path


def weights(folder):
    return load_file(folder / "model.safetensors")


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


TIMINGS = ["step_time", "tokens_per_second", "peak_memory"]
TIMINGS += [f"timing/{phase}" for phase in ("rollout", "reward", "wait", "update")]


def without_times(folder):
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in log_of(folder)]


def assert_same_end(folder, whole):
    """Both runs left the same weights, bit for bit, and the same log."""
    mine, theirs = weights(folder), weights(whole)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in mine.items())
    assert without_times(folder) == without_times(whole)


def stopped_after(updates, monkeypatch, train, settings):
    """A run that ends without a word after so many updates."""
    update, made = lhrm.optimizer_step, []

    def die(*args):
        made.append(1)
        if len(made) > updates:
            raise KeyboardInterrupt
        return update(*args)

    monkeypatch.setattr(lhrm, "optimizer_step", die)
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    monkeypatch.setattr(lhrm, "optimizer_step", update)


def configure(**values):
    """Damage to a model folder that changes its configuration."""

    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def rewrite(change):
    """Damage to a model folder that changes the tensors of its weights file."""

    def damage(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def bare_tokenizer(folder, size=40):
    """A checkpoint without mode tags: `size` tokens, of which the last is the end of sequence."""
    vocabulary = {chr(ord("0") + i): i for i in range(size - 1)} | {"<eos>": size - 1}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [size - 1, 3]}))
    return folder


def run(
    *command: object, processes: int = 1, check: bool = True, text: str = "", timeout: int = 150
) -> subprocess.CompletedProcess:
    """A command of the project in a process of its own, or under torchrun, given `text` to read."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        launcher += ["--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        input=text,
        timeout=timeout,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def assert_transformers_generates_the_same(folder: Path, question: str) -> None:
    """Prompts and greedy tokens of a saved model, in both modes and freely, are `transformers`'."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, tokenizer = Transformer.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    model.fit_vocabulary(tokenizer)
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.encode_chat(messages)
    for mode, option in ((None, {}), *((m, {"enable_thinking": m == "think"}) for m in MODES)):
        inputs = their_tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt", **option
        )
        given = inputs["input_ids"][0].tolist()
        expected = theirs.generate(**inputs, max_new_tokens=20, do_sample=False)[0].tolist()
        [[completion]] = generate(
            model,
            tokenizer,
            [prompt],
            modes=[mode],
            max_new_tokens=20 + len(option),  # a forced tag is part of the response
            temperature=0,
        )
        assert given == prompt + completion.ids[: len(option)]
        assert prompt + completion.ids == expected
        assert their_tokenizer.decode(completion.ids) == tokenizer.decode(completion.ids)


def asset(name: str) -> Path:
    """A file or folder in one of those that LHRM_ASSETS names; the test is skipped without it."""
    for folder in filter(None, os.environ.get("LHRM_ASSETS", "").split(os.pathsep)):
        if (path := Path(folder) / name).exists():
            return path
    pytest.skip(f"LHRM_ASSETS has no {name}")
