"""A tiny random model, the lab's tokenizer, and the lab's files: what every test stands on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data import lab
from model import Config, Tokenizer, Transformer

torch.set_num_threads(1)  # tiny models: threads would only get in each other's way
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
    return folder


@pytest.fixture(scope="session")
def tokenizer(lab_folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(lab_folder / "base")


def run(*command: object, processes: int = 1, check: bool = True) -> subprocess.CompletedProcess:
    """A command of the project in a process of its own, or under torchrun."""
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
        stdin=subprocess.DEVNULL,
        timeout=150,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
