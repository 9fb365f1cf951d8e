"""Is a query simple, to be answered at once, or complex, so that thinking pays?

The paper removes the complex queries of WildChat with FastText. `Classifier` is fastText's model of
a text (Joulin et al., "Bag of Tricks for Efficient Text Classification", 2016): the mean of the
embeddings of its words and word n-grams, a linear layer, the logistic loss. Words are hashed like
the n-grams, so that there is no dictionary to build or to store. `Rules` needs no training. Either
can also route queries, without the hybrid training: complex ones think.

Both see the kind of a text, not how hard it is: an easy sum looks complex to them, a hard riddle in
everyday words simple, and a kind of text that was not trained on may look like anything.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from data.chat import read_prompts
from data.cli import (
    InputError,
    mix_seed,
    read_json,
    run_command,
    run_subcommand,
    setting,
    write_json,
)
from data.modes import MODES, NO_THINK, THINK
from data.rows import as_messages, read_rows, row_prompt, split_paths
from data.tokenizer import Messages
from model import read_header, save_tensors

THRESHOLD = 0.5  # a query of this complexity or more counts as complex
MAX_CHARACTERS = 2000  # no more of a query is read: its kind is clear by then
LIMITS = {"num_buckets": 2**24, "dim": 2**10, "ngrams": 5}  # largest sizes of a classifier
MAX_PARAMETERS = 2**28  # largest number of them in a classifier: 1 GiB in fp32
PREDICT_BATCH = 512  # queries classified at once
TRAIN_BATCH = 16  # queries whose gradients are summed; fastText's steps take one each
# A number, a character of Chinese or Japanese (which leave no spaces between words), a word, a sign
WORD = re.compile(
    r"\d+(?:[.,]\d+)*|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]|_"
)


def words(text: str) -> list[str]:
    """The words and signs of a text, without case, up to MAX_CHARACTERS; a number is `<num>`."""
    found = WORD.findall(text[:MAX_CHARACTERS].casefold())
    return ["<num>" if word[0].isdecimal() else word for word in found]


# --------------------------------------------------------------------------------- the classifiers


class Classifier(nn.Module):
    """fastText's model with one logit: that the query is complex.

    num_buckets: number of embeddings, which n-grams of the same bucket share; dim: their size;
    ngrams: words in the longest n-gram. Raises InputError for sizes beyond LIMITS.
    """

    def __init__(self, num_buckets: int = 2**18, dim: int = 16, ngrams: int = 2) -> None:
        super().__init__()
        self.sizes = {"num_buckets": num_buckets, "dim": dim, "ngrams": ngrams}
        for name, size in self.sizes.items():
            if type(size) is not int or not 1 <= size <= LIMITS[name]:
                raise InputError(f"{name} is {size!r}, expected a number from 1 to {LIMITS[name]}")
        if num_buckets * dim > MAX_PARAMETERS:
            raise InputError(f"num_buckets × dim must be at most {MAX_PARAMETERS}")
        self.embedding = nn.EmbeddingBag(num_buckets, dim, mode="mean", sparse=True)
        self.linear = nn.Linear(dim, 1)

    def ngram_ids(self, text: str) -> list[int]:
        """The buckets of a text's n-grams, by CRC-32: the same in every process and machine."""
        tokens = [word.encode("utf-8", "surrogatepass") for word in words(text)]
        hashes = [zlib.crc32(token) for token in tokens]
        ids = hashes
        for n in range(1, self.sizes["ngrams"]):  # make each n-gram longer by the word after it
            hashes = [zlib.crc32(b" " + token, h) for h, token in zip(hashes, tokens[n:])]
            ids = ids + hashes
        return [h % self.sizes["num_buckets"] for h in ids]

    def forward(self, bags: Sequence[Sequence[int]]) -> Tensor:
        """Logits that queries are complex, fp32 (B,), from the n-gram ids of each of B queries."""
        ids = torch.tensor(list(itertools.chain.from_iterable(bags)), dtype=torch.long)
        offsets = list(itertools.accumulate(map(len, bags[:-1]), initial=0))
        return self.linear(self.embedding(ids, torch.tensor(offsets))).squeeze(-1)

    @torch.no_grad()
    def predict(self, texts: Sequence[str]) -> list[float]:
        """The probability that each query is complex, the classes being equally frequent."""
        complexities: list[float] = []
        for start in range(0, len(texts), PREDICT_BATCH):
            bags = [self.ngram_ids(text) for text in texts[start : start + PREDICT_BATCH]]
            complexities += self(bags).sigmoid().tolist()
        return complexities

    def save_pretrained(self, folder: str | Path) -> None:
        """Write classifier.json, the sizes, and classifier.safetensors, each whole or not."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "classifier.json", self.sizes)
        save_tensors(self.state_dict(), folder / "classifier.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Classifier:
        """Read what `save_pretrained` wrote. Raises InputError, with the file's name, for sizes
        beyond LIMITS, and for tensors that are not exactly what the sizes ask for, in fp32."""
        path, weights = Path(folder) / "classifier.json", Path(folder) / "classifier.safetensors"
        sizes = read_json(path)
        if sizes.keys() != LIMITS.keys():
            raise InputError(f"{path}: expected {', '.join(LIMITS)} and nothing else")
        try:
            with torch.device("meta"):  # no memory before the file is known to fill it
                classifier = cls(**sizes)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if not weights.is_file():
            raise InputError(f"{weights}: no such file")
        wanted = {name: ("F32", tuple(t.shape)) for name, t in classifier.state_dict().items()}
        found = read_header(weights)
        for name in sorted(wanted.keys() | found.keys()):
            if found.get(name) != wanted.get(name):
                is_, asked = found.get(name, "missing"), wanted.get(name, "none")
                raise InputError(f"{weights}: tensor {name} is {is_}, {path.name} asks for {asked}")
        tensors = load_file(weights)
        if odd := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise InputError(f"{weights}: tensor {odd[0]} has values that are not finite")
        classifier.load_state_dict(tensors, assign=True)
        return classifier


class Rules:
    """What a reader in a hurry goes by. English words; signs of code and maths in any language."""

    RULES = (  # weight, sign (of code, of maths, words of both, …), how often it must be found
        (0.5, r"```|\bdef \w+\(|#include|;\s*\n|\bSELECT\b.+\bFROM\b", 1),
        (0.5, r"\\[A-Za-z]{3}|\$(?!\s)[^$\n]+(?<!\s)\$(?!\d)|\w\^[\w{(-]|\w *= *[\w(-]", 1),
        (0.5, r"(?i)\b(?:prove|proof|derive|theorem|equation|integral|probability|calculate|compute"
         r"|solve|how many|how much|step by step|implement|debug|algorithm|function|python)\b", 1),
        (0.3, r"\d+(?:[.,]\d+)*", 3),  # numbers
        (0.3, r"[?？]", 3),
        (0.3, r"\S+", 150),  # words
    )  # fmt: skip

    def predict(self, texts: Sequence[str]) -> list[float]:
        """The sum of the weights of the rules that apply to each query, up to 1.0. It is no
        probability. Of a query, MAX_CHARACTERS are read."""
        rules = [(weight, re.compile(sign), least) for weight, sign, least in self.RULES]
        read = (text[:MAX_CHARACTERS] for text in texts)
        return [min(1.0, sum(w for w, s, n in rules if len(s.findall(t)) >= n)) for t in read]


def load(folder: str | None) -> Classifier | Rules:
    """The classifier in `folder`, or the rules if there is none. Raises InputError."""
    return Rules() if folder is None else Classifier.from_pretrained(folder)


@dataclass
class RouterOptions:
    """How a router chooses modes, and how a mode is asked for in words."""

    classifier_name_or_path: str | None = setting(None, "router's classifier; unset: a few rules")
    think_instruction: str = setting("Think step by step.", "added to a query that shall think")
    no_think_instruction: str = setting("Answer directly and concisely.", "to one that shall not")


def route(conversations: Sequence[Messages], folder: str | None) -> list[str]:
    """The mode of each conversation by a classifier of its last message, or by the rules: the
    training-free baseline."""
    complexities = load(folder).predict([messages[-1]["content"] for messages in conversations])
    return [mode_for(complexity) for complexity in complexities]


def ask_for(mode: str, messages: Messages, options: RouterOptions) -> Messages:
    """A conversation whose last message also asks for `mode`, if it is one: a model that does not
    know the tags is told in words."""
    if mode not in MODES:
        return messages
    instruction = options.think_instruction if mode == "think" else options.no_think_instruction
    *before, last = messages
    return [*before, {**last, "content": f"{last['content']}\n\n{instruction}"}]


def mode_for(complexity: float) -> str:
    """The mode that the router chooses for a query of this complexity."""
    return MODES[THINK if complexity >= THRESHOLD else NO_THINK]


# ------------------------------------------------------------------------------------ the commands


@dataclass
class Classes:
    """Files of queries of which the class is known."""

    simple: str | None = setting(None, "files of simple queries, with commas between")
    complex: str | None = setting(None, "files of complex queries, with commas between")


@dataclass
class EvaluateSettings(Classes):
    """Measure a classifier, or the rules, on files of simple and of complex queries.

    python -m data.classify evaluate --simple chat.jsonl --complex maths.jsonl,code.jsonl
    """

    model_name_or_path: str | None = setting(None, "folder of the classifier; unset: the rules")


@dataclass
class TrainSettings(Classes):
    """Train a classifier on files of simple and of complex queries.

    python -m data.classify train --simple chat.jsonl --complex maths.jsonl --output_dir classifier
    """

    output_dir: str | None = setting(None, "folder for the classifier")
    num_train_epochs: int = setting(5, "passes over the larger class")
    learning_rate: float = setting(0.5, "learning rate of the first step; it falls to 0")
    num_buckets: int = setting(2**18, "embeddings, shared by n-grams of the same hash")
    dim: int = setting(16, "size of an embedding")
    ngrams: int = setting(2, "words in the longest n-gram")
    seed: int = setting(0, "seed of weights, order and split", maximum=2**63 - 1)
    validation_ratio: float = setting(0.1, "share of queries not trained on", maximum=0.9)


def read_classes(settings: Classes) -> list[list[str]]:
    """The simple and the complex queries of the files: the last message of each row's prompt."""
    classes: list[list[str]] = []
    for name in ("simple", "complex"):
        if not (files := getattr(settings, name)):
            raise InputError(f"give rows of {name} queries: --{name}")
        rows = itertools.chain.from_iterable(map(read_rows, split_paths(files)))
        prompts = (row_prompt(row, where) for where, row in rows)
        classes.append([messages[-1]["content"] for messages in prompts])
    return classes


def split(texts: Sequence[str], settings: TrainSettings) -> tuple[list[str], list[str]]:
    """Queries to train on and to validate on, by a hash of their words: copies stay together."""
    parts: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        place = mix_seed(settings.seed, *words(text)) / 2**63
        parts[place < settings.validation_ratio].append(text)
    return parts


def train(simple: Sequence[str], complex_: Sequence[str], settings: TrainSettings) -> Classifier:
    """Train as fastText does: SGD at a rate that falls linearly to 0.

    Classes are balanced: an epoch has every query of the larger one once, and as many of the
    smaller one, repeated. Raises InputError if a class is empty.
    """
    if not simple or not complex_:
        raise InputError(f"no {'complex' if simple else 'simple'} queries to train on")
    classifier = Classifier(settings.num_buckets, settings.dim, settings.ngrams)
    generator = torch.Generator().manual_seed(settings.seed)
    bound = 1 / settings.dim
    nn.init.uniform_(classifier.embedding.weight, -bound, bound, generator)
    for parameter in classifier.linear.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=settings.learning_rate)
    size = max(len(simple), len(complex_))
    epoch = math.ceil(2 * size / TRAIN_BATCH)  # steps
    total = settings.num_train_epochs * epoch
    for step in tqdm(range(total), desc="training", unit="step", mininterval=0.5):
        if step % epoch == 0:
            drawn: list[tuple[str, float]] = []
            for label, texts in enumerate((simple, complex_)):
                order = torch.randperm(len(texts), generator=generator).tolist()
                drawn += [(texts[order[i % len(order)]], float(label)) for i in range(size)]
            batches = torch.randperm(2 * size, generator=generator).split(TRAIN_BATCH)
        texts, labels = zip(*(drawn[i] for i in batches[step % epoch].tolist()))
        logits = classifier([classifier.ngram_ids(text) for text in texts])
        loss = F.binary_cross_entropy_with_logits(logits, torch.tensor(labels), reduction="sum")
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - step / total)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier


def report(name: str, classifier: Classifier | Rules, classes: Sequence[Sequence[str]]) -> str:
    """One line: accuracy, and precision, recall and F1 of the complex class."""
    false, true = (sum(p >= THRESHOLD for p in classifier.predict(texts)) for texts in classes)
    simple, complex_ = map(len, classes)
    figures = {
        "accuracy": (true + simple - false, simple + complex_),
        "precision": (true, true + false),
        "recall": (true, complex_),
        "F1": (2 * true, true + false + complex_),
    }
    shown = (f"{k} {part / of:.3f}" if of else f"{k} -" for k, (part, of) in figures.items())
    return f"{name}: {simple} simple, {complex_} complex: {', '.join(shown)}"


@dataclass
class PredictSettings:
    """Say how complex each query looks, and which mode the router would choose for it.

    python -m data.classify predict --prompt 'What is 12 · 34?'
    """

    model_name_or_path: str | None = setting(None, "folder of the classifier; unset: the rules")
    prompt: str | None = setting(None, "a query; unset: standard input")
    prompt_file: str | None = setting(None, "a file with a query on every line, or of rows")


def run_predict(settings: PredictSettings) -> None:
    """The `predict` command."""
    prompts = read_prompts(settings.prompt, settings.prompt_file)
    if prompts is None:
        raise InputError("give a query: --prompt or --prompt_file")
    texts = [as_messages(prompt, "")[-1]["content"] for prompt in prompts]
    print("complexity, the router's mode, query:", file=sys.stderr)
    for text, complexity in zip(texts, load(settings.model_name_or_path).predict(texts)):
        print(f"{complexity:.3f}  {mode_for(complexity):8}  {' '.join(text.split())[:80]}")


def run_train(settings: TrainSettings) -> None:
    """The `train` command."""
    if not settings.output_dir:
        raise InputError("give a folder for the classifier: --output_dir")
    parts = [split(texts, settings) for texts in read_classes(settings)]
    classifier = train(parts[0][0], parts[1][0], settings)
    classifier.save_pretrained(settings.output_dir)
    print(report("validation", classifier, [held_out for _, held_out in parts]))


def run_evaluate(settings: EvaluateSettings) -> None:
    """The `evaluate` command."""
    folder = settings.model_name_or_path
    print(report(folder or "rules", load(folder), read_classes(settings)))


def main() -> None:
    commands: dict[str, Any] = {
        "train": (TrainSettings, run_train), "evaluate": (EvaluateSettings, run_evaluate),
        "predict": (PredictSettings, run_predict),
    }  # fmt: skip
    run_subcommand("python -m data.classify", commands)


if __name__ == "__main__":
    run_command(main)
