"""data/vllm_parser.py, against vLLM's interface: its two classes and what its server does."""

import importlib.util
import random
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

PIECES = [
    "<think>",
    "</think>",
    "<no_think>",
    "</no_think>",
    "\n",
    "12",
    " · ",
    "<",
    "/",
    "think>",
    "a",
]


@dataclass
class DeltaMessage:
    reasoning: str | None = None
    content: str | None = None


class ReasoningParser:
    def __init__(self, tokenizer, *args, **kwargs):
        self.model_tokenizer = tokenizer

    @property
    def vocab(self):
        return self.model_tokenizer.get_vocab()

    def is_reasoning_end_streaming(self, input_ids, delta_ids):
        return self.is_reasoning_end(input_ids)


class Manager:
    parsers: dict = {}

    @classmethod
    def register_module(cls, name):
        return lambda parser: cls.parsers.setdefault(name, parser)


class Tokenizer:
    def get_vocab(self):
        return {piece: number for number, piece in enumerate(PIECES)}


@pytest.fixture
def load(monkeypatch):
    """The parser as vLLM loads it, by its path, with the class of a delta in a place of vLLM's."""

    def load(place="generate.base"):
        names = ["vllm", "vllm.reasoning", "vllm.entrypoints"]
        for name in [*names, f"vllm.entrypoints.{place}.protocol"]:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["vllm.reasoning"].ReasoningParser = ReasoningParser
        sys.modules["vllm.reasoning"].ReasoningParserManager = Manager
        sys.modules[f"vllm.entrypoints.{place}.protocol"].DeltaMessage = DeltaMessage
        path = Path(__file__).parent.parent / "data" / "vllm_parser.py"
        spec = importlib.util.spec_from_file_location("vllm_parser", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    Manager.parsers.clear()
    return load


def served(parser, prompt_ids, deltas):
    """(reasoning, content) as the server streams them: once reasoning has ended, all is content."""
    reasoning, content, ids, text = "", "", [], ""
    ended = parser.is_reasoning_end(prompt_ids)
    for delta_ids in deltas:
        delta = "".join(PIECES[token] for token in delta_ids)
        before, before_ids = text, ids
        text, ids = text + delta, [*ids, *delta_ids]
        if ended:
            content += delta
            continue
        message = parser.extract_reasoning_streaming(
            before, text, delta, before_ids, ids, delta_ids
        )
        if message is not None:
            assert message.reasoning or message.content
            reasoning += message.reasoning or ""
            content += message.content or ""
        ended = parser.is_reasoning_end_streaming(ids, delta_ids)
    return reasoning, content


T, E, N, M = range(4)
RESPONSES = {  # tokens: reasoning, content
    "thought": ([T, 5, 6, 5, E, 5], ("12 · 12", "12")),
    "at once": ([N, 5, 6, 5, M], ("", "12 · 12")),
    "with lines": ([T, 4, 5, 4, E, 4, 5], ("\n12\n", "\n12")),
    "cut while it thinks": ([T, 5, 6], ("12 · ", "")),
    "cut while it answers": ([N, 5, 6], ("", "12 · ")),
    "cut after its thoughts": ([T, 5, E], ("12", "")),
    "in neither form": ([5, 6, 5], ("", "12 · 12")),
    "nearly a tag": ([7, 8, 10], ("", "</a")),
    "nearly a closing tag": ([T, 7, 8, 10, E, 5], ("</a", "12")),
    "a tag too many": ([T, 5, E, 5, M], ("12", "12</no_think>")),
    "empty": ([], ("", "")),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_reasoning_and_content_are_as_the_grammar_says_streamed_or_not(name, load):
    tokens, expected = RESPONSES[name]
    load()
    chance = random.Random(0)
    for _ in range(20):
        parser = Manager.parsers["lhrm"](Tokenizer())
        text = "".join(PIECES[token] for token in tokens)
        whole = parser.extract_reasoning(text, None)
        assert whole == tuple(part or None for part in expected)
        deltas, left = [], tokens
        while left:
            size = chance.randint(1, len(left))
            deltas, left = [*deltas, left[:size]], left[size:]
        assert served(parser, [5], deltas) == expected


@pytest.mark.parametrize("enabled, opened", [(True, "<think>"), (False, "<no_think>")])
def test_a_response_that_the_prompt_has_opened_begins_after_its_tag(enabled, opened, load):
    load()
    options = {"enable_thinking": enabled}
    tokens, expected = RESPONSES["thought" if enabled else "at once"]
    parser = Manager.parsers["lhrm"](Tokenizer(), chat_template_kwargs=options)
    deltas = [[token] for token in tokens[1:]]
    assert served(parser, [5, PIECES.index(opened)], deltas) == expected
    request = types.SimpleNamespace(chat_template_kwargs=options)
    text = "".join(PIECES[token] for token in tokens[1:])
    plain = Manager.parsers["lhrm"](Tokenizer())
    assert plain.extract_reasoning(text, request) == tuple(part or None for part in expected)
    assert parser.count_reasoning_tokens(tokens[1:]) == (3 if enabled else 0)


def test_tokens_of_reasoning_are_counted_and_those_of_content_are_what_follows(load):
    load()
    parser = Manager.parsers["lhrm"](Tokenizer())
    counts = [parser.count_reasoning_tokens(tokens) for tokens, _ in RESPONSES.values()]
    assert counts == [3, 0, 3, 2, 0, 1, 0, 0, 3, 1, 0]
    assert parser.extract_content_ids([T, 5, E, 5, 6]) == [5, 6]
    assert parser.extract_content_ids([N, 5]) == []


def test_a_spelled_out_tag_is_a_tag_in_pieces_of_any_size(load):
    split = load().split
    for text in ("<think>a</think>b", "<no_think>a</no_think>", "<thinking>", "<think>a</thin"):
        for start in range(len(text) + 1):
            whole = split(text)
            held = split(text[:start], more=True)
            assert all(full.startswith(part) for full, part in zip(whole, held)), (text, start)
    assert split("<think>a</think>b") == ("a", "b") and split("<think>a</thin") == ("a</thin", "")


@pytest.mark.parametrize("place", ["generate.base", "openai.engine", "openai"])
def test_the_class_of_a_delta_is_found_where_a_version_has_it(place, load):
    assert load(place).DeltaMessage is DeltaMessage
