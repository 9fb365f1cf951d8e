"""The two modes of the paper, ⊢ and ⊬, and how a response shows which one it is in.

Everything that knows of modes takes them from here: data, sampling, rewards and evaluation.
"""

import re
from typing import NamedTuple

MODES = ("think", "no_think")  # ⊢ and ⊬. Where a mode is a number, it is its place in this tuple.
THINK, NO_THINK = range(len(MODES))
NEITHER = -1  # the "mode" of a response that opens with neither tag
UNSAID = -2  # and of one that need not show a mode: none was asked for, in free format
TAGS = ("<think>", "</think>", "<no_think>", "</no_think>")

TAG = re.compile("|".join(map(re.escape, TAGS)))
GRAMMAR = {
    "think": re.compile(r"<think>(?P<thinking>.*)</think>(?P<answer>.*)", re.DOTALL),
    "no_think": re.compile(r"<no_think>(?P<thinking>)(?P<answer>.*)</no_think>\s*", re.DOTALL),
}


class Response(NamedTuple):
    """The parts of a response; thinking and answer are empty unless it is well formed."""

    mode: str | None  # by the tag that opens the text: "think", "no_think", or None
    thinking: str
    answer: str
    well_formed: bool

    @property
    def mode_number(self) -> int:
        """THINK, NO_THINK or NEITHER."""
        return NEITHER if self.mode is None else MODES.index(self.mode)


def parse_response(text: str) -> Response:
    """Read a response, given without its stop token, by the one grammar of this project:

        <think>reasoning</think>answer        <no_think>answer</no_think>

    Reasoning and answer must not be blank, and no other tag may occur. Anything else is malformed.
    """
    mode = next((mode for mode in MODES if text.startswith(f"<{mode}>")), None)
    match = GRAMMAR[mode].fullmatch(text) if mode else None
    if match is None or len(TAG.findall(text)) != 2:
        return Response(mode, "", "", False)
    thinking, answer = match["thinking"].strip(), match["answer"].strip()
    if not answer or (mode == "think" and not thinking):
        return Response(mode, "", "", False)
    return Response(mode, thinking, answer, True)


def read_freely(text: str) -> Response:
    """Read a response of a model that may not know the grammar. The answer is the text after the
    last </think>, or all of the text if there is no thought; tags are removed."""
    response = parse_response(text)
    if response.well_formed or (text.startswith("<think>") and "</think>" not in text):
        return response
    answer = TAG.sub("", text.rpartition("</think>")[2]).strip()
    return Response(response.mode, "", answer, bool(answer))


def leaks(mode: int, text: str) -> bool:
    """Whether a response is a no_think one with a think tag inside."""
    return mode == NO_THINK and ("<think>" in text or "</think>" in text)


READERS = {"tags": parse_response, "free": read_freely}  # by --response_format


def format_response(mode: str, thinking: str, answer: str) -> str:
    """Write the text of a response, which `parse_response` reads back."""
    if mode == "think":
        return f"<think>{thinking}</think>{answer}"
    return f"<no_think>{answer}</no_think>"
