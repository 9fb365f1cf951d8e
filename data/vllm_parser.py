"""A reasoning parser for vLLM that knows both forms of this project's responses:

    vllm serve runs/hgpo --reasoning-parser lhrm --reasoning-parser-plugin data/vllm_parser.py

vLLM's own parsers take <no_think>answer</no_think> for reasoning that never ends, so that the
answer is lost. This file needs nothing of the project. Its interface is that of vLLM 0.33.
"""

import contextlib
import importlib
from collections.abc import Sequence
from typing import Any

from vllm.reasoning import ReasoningParser, ReasoningParserManager

TAGS = {"<think>": "</think>", "<no_think>": "</no_think>"}  # what opens a response, what ends it


def delta_message() -> Any:
    """vLLM's class of a piece of an answer, wherever this version has it."""
    for place in ("generate.base", "openai.engine", "openai"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(f"vllm.entrypoints.{place}.protocol").DeltaMessage
    raise ImportError("this version of vLLM has no DeltaMessage where it is looked for")


DeltaMessage = delta_message()


def split(text: str, more: bool = False) -> tuple[str, str]:
    """(reasoning, content) of a response. A response in neither form is content as it is.

    more: more of it may come. Then its end is left out while it may be the beginning of a tag.
    """
    if more and any(tag.startswith(text) for tag in TAGS):
        return "", ""
    opening = next((tag for tag in TAGS if text.startswith(tag)), None)
    if opening is None:
        return "", text
    inside, closing, after = text[len(opening) :].partition(TAGS[opening])
    if more and not closing:
        ends = (size for size in range(len(TAGS[opening])) if text.endswith(TAGS[opening][:size]))
        inside = inside[: len(inside) - max(ends)]
    return (inside, after) if opening == "<think>" else ("", inside + after)


def opened_by(chat_template_kwargs: dict[str, Any] | None) -> str:
    """The tag by which the prompt has opened the response already, or ""."""
    enabled = (chat_template_kwargs or {}).get("enable_thinking")
    return "" if enabled is None else "<think>" if enabled else "<no_think>"


@ReasoningParserManager.register_module("lhrm")
class HybridReasoningParser(ReasoningParser):
    """A beginning in <think>…</think> is reasoning; all else is content, without its tags."""

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self.opened = opened_by(kwargs.get("chat_template_kwargs"))
        self.closing = {self.vocab[tag] for tag in TAGS.values()}

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """(reasoning, content) of a whole response; None where there is none."""
        opened = opened_by(getattr(request, "chat_template_kwargs", None)) or self.opened
        reasoning, content = split(opened + model_output)
        return reasoning or None, content or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> Any:
        """The reasoning and the content that are new since `previous_text`, or None."""
        texts = (self.opened + previous_text, self.opened + current_text)
        before, now = (split(text, more=True) for text in texts)
        reasoning, content = (new[len(old) :] or None for old, new in zip(before, now))
        if reasoning is None and content is None:
            return None
        return DeltaMessage(reasoning=reasoning, content=content)

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether a closing tag has come, after which vLLM takes all for content. In a response
        that does not think this is the end of the answer, so that its tags are taken out here."""
        return any(token in self.closing for token in input_ids)

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """The tokens after the first closing tag."""
        places = [place for place, token in enumerate(input_ids) if token in self.closing]
        return input_ids[places[0] + 1 :] if places else []

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """The number of tokens inside <think>…</think>."""
        ids = list(token_ids)
        if not self.opened and ids[:1] == [self.vocab["<think>"]]:
            ids = ids[1:]
        elif self.opened != "<think>":
            return 0
        closing = self.vocab["</think>"]
        return ids.index(closing) if closing in ids else len(ids)
