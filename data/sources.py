"""Recipes: from the rows of each public set that the paper trains on (Tables 2 and 3) to examples.

A recipe takes one row of the set as it is published and returns an `Example`, or raises `Skip` with
the reason why the row cannot be used. data/README.md says where each set is to be had.
"""

import contextlib
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from data.cli import InputError
from data.code_rows import read_tests
from data.modes import parse_response
from data.rows import as_messages, final_answer, prompt_of
from data.verify_math import is_correct

DOMAINS = ("general", "maths", "code", "other")


@dataclass
class Example:
    """One question with what its set says about it."""

    prompt: list[dict[str, str]]  # messages
    domain: str  # of DOMAINS
    answer: str = ""  # the response that is shown; "" if the set has none
    thinking: str = ""  # the trace before it; "" if there is none
    gold: list[str] = field(default_factory=list)  # accepted final answers
    stated: bool = False  # `answer` is one of these itself, so that they cannot vouch for it
    tests: str = ""  # that a program must pass
    verified: bool | None = None  # the publisher's verdict on the answer; None: not judged
    level: str = ""
    source: str = ""


class Skip(Exception):
    """This row is left out; the text is the reason, as the report counts it."""


Recipe = Callable[[dict[str, Any]], Example]


def as_text(value: Any) -> str:
    """A text or a number without the space around it; anything else is ""."""
    usable = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return str(value).strip() if usable else ""


def first(row: dict[str, Any], *names: str) -> str:
    """The first of these fields that is not blank, or ""."""
    return next(filter(None, (as_text(row.get(name)) for name in names)), "")


SKY = [f"<|{edge}_of_{part}|>" for part in ("thought", "solution") for edge in ("begin", "end")]


def split_trace(text: str) -> tuple[str, str]:
    """(thinking, answer) of a response in DeepSeek-R1's format, with or without the first tag, or
    in OpenThoughts'."""
    text = text.strip()
    if text.startswith(SKY[0]):
        thinking, _, answer = text.removeprefix(SKY[0]).partition(SKY[1])
        answer = answer.strip().removeprefix(SKY[2]).removesuffix(SKY[3])
    elif "</think>" in text:
        thinking, _, answer = text.removeprefix("<think>").partition("</think>")
    else:
        raise Skip("no thinking trace")
    if not thinking.strip() or not answer.strip():
        raise Skip("thinking or answer is empty")
    return thinking.strip(), answer.strip()


def question(given: Any) -> list[dict[str, str]]:
    """Messages of a prompt; its text keeps everything but line ends of other systems."""
    try:
        messages = as_messages(given, "")
    except InputError:
        raise Skip("no prompt") from None
    if all(message["role"] != "user" for message in messages):
        raise Skip("no prompt")
    texts = (message["content"].replace("\r\n", "\n").strip() for message in messages)
    return [{"role": m["role"], "content": text} for m, text in zip(messages, texts)]


def turns(given: Any) -> tuple[list[dict[str, str]], str]:
    """(messages up to the last answer, that answer) of a conversation, in any of its spellings."""
    messages = []
    for turn in given if isinstance(given, list) else []:
        if not isinstance(turn, dict):
            raise Skip("not a conversation")
        content = turn.get("content", turn.get("value"))
        if not isinstance(content, str):
            raise Skip("not a conversation")
        messages.append({"role": speaker(turn), "content": content})
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise Skip("no answer")
    return question(messages[:-1]), messages[-1]["content"].strip()


# ------------------------------------------------------- thinking: maths, code and science, Table 2


def traced(row: dict[str, Any], domain: str) -> Example:
    """A question with its final answer and somebody's trace (AoPS, AIME 1983–2024)."""
    prompt = question(first(row, "problem", "Question", "question", "prompt"))
    thinking, answer = split_trace(first(row, "generation", "response", "completion", "output"))
    return Example(prompt, domain, answer, thinking, [first(row, "answer", "Answer")])


def synthetic_1(row: dict[str, Any]) -> Example:
    """PrimeIntellect/SYNTHETIC-1-SFT-Data: its own verifiers' score stands for the final answer."""
    prompt, text = turns(row.get("messages"))
    thinking, answer = split_trace(text)
    task = first(row, "task_type").lower()
    domain = "maths" if "math" in task else "code" if re.search("code|swe", task) else "other"
    score = row.get("score")
    verified = score >= 1 if isinstance(score, (int, float)) else None
    return Example(prompt, domain, answer, thinking, verified=verified)


def openr1_math(row: dict[str, Any]) -> Example:
    """open-r1/OpenR1-Math-220k: the first whole generation that its judges and ours accept."""
    prompt, gold = question(first(row, "problem")), first(row, "answer")
    names = ("generations", "is_reasoning_complete")
    generations, complete = (row.get(name) or [] for name in names)
    for verdict in ("correctness_math_verify", "correctness_llama"):
        for text, whole, accepted in zip(generations, complete, row.get(verdict) or []):
            if whole is True and accepted is True:
                with contextlib.suppress(Skip):
                    thinking, answer = split_trace(text)
                    if not gold or is_correct(answer, gold):
                        golds = [gold] if gold else []
                        return Example(prompt, "maths", answer, thinking, golds, verified=True)
    raise Skip("no generation that is whole and right")


def openthoughts(row: dict[str, Any]) -> Example:
    """open-thoughts/OpenThoughts-114k: its default part, or `metadata`, which names the domain. Its
    publishers kept only what they could verify."""
    if "deepseek_reasoning" in row:
        prompt = question(first(row, "problem"))
        thinking, answer = first(row, "deepseek_reasoning"), first(row, "deepseek_solution")
    else:
        prompt, text = turns(row.get("conversations"))
        thinking, answer = split_trace(text)
        opening = "Return your final response within \\boxed{}. "
        prompt[-1]["content"] = prompt[-1]["content"].removeprefix(opening)
    domains = {"math": "maths", "code": "code"}
    domain = domains.get(first(row, "domain"), "other")
    if "domain" not in row and "\\boxed" in answer:
        domain = "maths"
    return Example(prompt, domain, answer, thinking, verified=True)


def codeforces(row: dict[str, Any]) -> Example:
    """open-r1/codeforces-cots: nobody judged its programs, which read standard input."""
    if row.get("messages"):
        prompt, text = turns(row["messages"])
    else:
        prompt, text = question(first(row, "prompt", "description")), first(row, "generation")
    thinking, answer = split_trace(text)
    return Example(prompt, "code", answer, thinking)


def kodcode(row: dict[str, Any]) -> Example:
    """KodCode/KodCode-V1-SFT-R1: R1's programs, with the outcome of their unit tests."""
    prompt, text = turns(row.get("conversations"))
    thinking, answer = split_trace(text)
    right = str(row.get("r1_correctness")) == "True"
    return Example(prompt, "code", answer, thinking, verified=right)


CALCULATION = re.compile(r"<<[^<>]*>>")  # as in 48/2 = <<48/2=24>>24
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def gsm8k(row: dict[str, Any]) -> Example:
    """openai/gsm8k: the worked solution is the trace; it has to end in the final answer."""
    solution, mark, gold = first(row, "answer").rpartition("####")
    thinking, gold = CALCULATION.sub("", solution).strip(), gold.strip()
    if not mark or not gold:
        raise Skip("no answer after ####")
    ends = NUMBER.findall(thinking.rpartition("\n")[2].replace(",", ""))
    if not any(is_correct(number, gold.lstrip("-")) for number in ends):
        raise Skip("the solution does not end in the answer")
    prompt = question(first(row, "question"))
    return Example(prompt, "maths", f"The answer is {gold}.", thinking, [gold])


def gsm8k_hybrid(row: dict[str, Any]) -> Example:
    """The same, but every fourth question, by a hash, is answered at once: where the mode follows
    from the kind of a question, a model does not learn to answer it in the other."""
    example = gsm8k(row)
    if zlib.crc32(example.prompt[-1]["content"].encode()) % 4 == 0:
        example.thinking = ""
    return example


# ---------------------------------------------------------------------- not thinking: conversations


def alpaca(row: dict[str, Any]) -> Example:
    """tatsu-lab/alpaca: an instruction, maybe with an input, and its output."""
    answer = first(row, "output")
    if not answer or answer.lower().strip("<>.") in ("nooutput", "no output"):
        raise Skip("no answer")
    if first(row, "input").lower().strip("<>.") in ("noinput", "no input"):
        row = {**row, "input": ""}
    return Example(question(prompt_of(row)), "general", answer)


def wildchat(row: dict[str, Any]) -> Example:
    """allenai/WildChat-1M: the first exchange of a conversation in English that nobody flagged."""
    conversation = row.get("conversation")
    if row.get("language") != "English":
        raise Skip("not in English")
    if row.get("toxic") or row.get("redacted"):
        raise Skip("toxic or redacted")
    prompt, answer = turns(conversation[:2] if isinstance(conversation, list) else None)
    return Example(prompt, "general", answer)


class OASST:
    """OpenAssistant/oasst1 and oasst2, one message a row: first questions with their best answers.
    Only one tree's messages are kept in memory, since they come one after the other."""

    def __init__(self) -> None:
        self.tree, self.questions = "", dict[str, str]()

    def __call__(self, row: dict[str, Any]) -> Example:
        text, name = first(row, "text"), first(row, "message_id")
        if first(row, "message_tree_id") != self.tree:
            self.tree, self.questions = first(row, "message_tree_id"), {}
        if row.get("lang") != "en" or row.get("deleted"):
            raise Skip("not in English, or deleted")
        if row.get("parent_id") is None:
            self.questions[name] = text
            raise Skip("a question (its answer is another row)")
        if row.get("parent_id") not in self.questions:
            raise Skip("a later turn")
        if row.get("rank") != 0:
            raise Skip("not the best answer")
        return Example(question(self.questions[row["parent_id"]]), "general", text)


# -------------------------------------------------------------------------------------- RL, Table 3


def deepscaler(row: dict[str, Any]) -> Example:
    """agentica-org/DeepScaleR-Preview-Dataset: maths questions with their final answers."""
    gold = first(row, "answer")
    if not gold:
        raise Skip("no answer")
    prompt = question(first(row, "problem", "prompt"))
    return Example(prompt, "maths", gold=[gold], level=first(row, "difficulty"))


def tulu_3(row: dict[str, Any]) -> Example:
    """allenai/tulu-3-*: the questions of conversations; a reward model judges what is answered."""
    conversation = row.get("messages")
    prompt = turns(conversation)[0] if conversation else question(row.get("prompt"))
    return Example(prompt, "general")


# ------------------------------------------------------------------------------------------ generic


def generic(row: dict[str, Any]) -> Example:
    """Rows of the user's own, by the names that their fields usually have, and our HFT rows.

    With a response (or completion, output, generation, solution; or a conversation's last turn),
    `answer` is the final answer that it is checked against. Alone, `answer` (or `solution`) is both
    the response and the final answer, and cannot vouch for itself. `answer` may be a list.
    """
    truth = row.get("reward_model")
    truth = truth.get("ground_truth") if isinstance(truth, dict) else None
    given = next((one for one in (row.get("answer"), truth) if one not in (None, "", [])), None)
    golds = list(filter(None, map(as_text, given if isinstance(given, list) else [given])))
    turns_of = row.get("messages") or row.get("conversations")
    if isinstance(turns_of, list) and speaker(turns_of[-1]) == "assistant":
        last = turns_of[-1]
        prompt, response = turns(turns_of)
    else:
        last = {}
        prompt = question(prompt_of(row))
        response = first(row, "response", "completion", "output", "generation")
        said = row.get("completion")  # as in our HFT rows, it may be a list of one message
        if isinstance(said, list) and said and speaker(said[-1]) == "assistant":
            last = said[-1]
            response = first(last, "content")
        response = response or (first(row, "solution") if golds else "")
    golds = golds or list(filter(None, [first(row, "solution")]))
    names = ("thinking", "reasoning", "reasoning_content")
    thinking = first(last, *names) or first(row, *names)
    if (wrapped := parse_response(response)).well_formed:
        thinking, response = wrapped.thinking, wrapped.answer
    elif response.startswith(("<think>", SKY[0])):
        thinking, response = split_trace(response)
    if response and row.get("mode") == "think" and not thinking:
        raise Skip("its mode is think, but it has no thinking")
    try:
        tests = read_tests(row, "row")
    except InputError as error:
        raise Skip(str(error)) from None
    if row.get("answer") is not None and not golds and not response and not tests:
        raise Skip("no answer")
    domain = first(row, "domain") or ("code" if tests else "general")
    domain = {"math": "maths"}.get(domain, domain)
    return Example(
        prompt,
        domain if domain in DOMAINS else "other",
        answer=response or next(iter(golds), ""),
        thinking=thinking,
        gold=[] if tests else [final_answer(one) for one in golds],
        stated=not response,
        tests=tests,
        level=first(row, "level", "difficulty"),
    )


def speaker(turn: Any) -> str:
    """The role of one turn of a conversation, in any of its spellings."""
    role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else ""
    return {"human": "user", "gpt": "assistant"}.get(str(role), str(role))


RECIPES: dict[str, Recipe] = {
    "synthetic_1": synthetic_1, "openr1_math": openr1_math, "openthoughts": openthoughts,
    "aops": partial(traced, domain="maths"), "aime": partial(traced, domain="maths"),
    "codeforces": codeforces, "kodcode": kodcode, "gsm8k": gsm8k,
    "gsm8k_hybrid": gsm8k_hybrid, "wildchat": wildchat,
    "oasst": OASST(), "alpaca": alpaca,
    "deepscaler": deepscaler, "tulu_3": tulu_3, "generic": generic,
}  # fmt: skip
