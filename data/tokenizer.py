"""A checkpoint's tokenizer, with the mode tags as single tokens, and its chat format.

A conversation becomes text by a Jinja template, here as in `transformers` and vLLM. The template of
a model that we train is made from the checkpoint's own, and goes out with the trained model.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import tokenizers
from jinja2 import nodes  # PyTorch requires Jinja, so it is always there
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.cli import InputError, is_main_process, read_json, write_bytes, write_json
from data.modes import MODES, TAG, TAGS

Messages = list[dict[str, str]]  # a conversation: the role and the content of each message
ROLES = ("system", "user", "assistant")
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 0}  # how the paper samples its models

# ---------------------------------------------------------------------------------- the chat format


def raise_exception(message: str) -> NoReturn:
    """What templates call to refuse a conversation."""
    raise ValueError(message)


class Generation(Extension):
    """{% generation %} … {% endgeneration %}, by which `transformers` finds the tokens that a model
    is trained on; here it is what is inside."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


# The options of `transformers`, less strftime_now: with it some templates would write today's date,
# and a prompt must not change from day to day. Downloaded templates are hostile: hence the sandbox.
JINJA = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
)
JINJA.globals["raise_exception"] = raise_exception

TEMPLATE = """\
{%- if tools %}{{- raise_exception('this model has no tools') }}{%- endif %}
{{- start }}
{%- if messages[0].role != 'system' %}{{- default_system }}{%- endif %}
{%- set stop = after.assistant.rstrip() %}
{%- set last = namespace(question=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set last.question = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role not in before %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
    {%- set text = message.content | trim if trims else message.content %}
    {%- if message.role == 'assistant' and loop.index0 < last.question %}
        {%- set text = '' if text.startswith('<think>') and '</think>' not in text else text %}
        {%- set text = text.split('</think>')[-1] %}
        {%- set text = text.replace('<no_think>', '').replace('</no_think>', '').strip() %}
    {%- endif %}
    {{- before[message.role] }}
    {%- if message.role == 'assistant' and loop.index0 > last.question %}
        {%- generation %}{{- text + stop }}{%- endgeneration %}
        {{- after.assistant[stop | length:] }}
    {%- else %}
        {{- text + after[message.role] }}
    {%- endif %}
    {%- if message.role == 'assistant' and not loop.last %}{{- between }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- before.assistant }}
    {%- if enable_thinking is defined and enable_thinking is true %}
        {{- '<think>' }}
    {%- elif enable_thinking is defined and enable_thinking is false %}
        {{- '<no_think>' }}
    {%- endif %}
{%- endif %}"""


@dataclass(frozen=True)
class ChatFormat:
    """What a chat template writes around the messages of a conversation."""

    before: dict[str, str]  # by role: the text before a message
    after: dict[str, str]  # by role: the text after a message
    start: str = ""  # the text before everything
    default_system: str = ""  # the text in the place of a system message that is not there
    between: str = ""  # the text after an answer that other messages follow
    trims: bool = False  # whether messages lose the white space around them

    def template(self) -> str:
        """The format as a Jinja template, which also knows the modes and drops earlier reasoning.

        `enable_thinking` true opens the answer with <think>, false with <no_think>; where it is not
        given, the model chooses. Answers before the last question lose their reasoning and tags;
        those after it, with the token that ends them, are marked as what a model is trained on.
        """
        pieces = dataclasses.asdict(self).items()
        literals = ((name, json.dumps(piece, ensure_ascii=False)) for name, piece in pieces)
        return "".join(f"{{%- set {n} = {literal} %}}\n" for n, literal in literals) + TEMPLATE


CHATML = ChatFormat(
    before={role: f"<|im_start|>{role}\n" for role in ROLES},
    after=dict.fromkeys(ROLES, "<|im_end|>\n"),
)


def learn_format(render: Callable[[Messages, bool], str], bos_token: str) -> ChatFormat:
    """The format of a checkpoint whose own template is `render`(messages, add_generation_prompt).

    Conversations whose messages are easily found again are rendered, and the text is split at the
    messages. Other conversations then show whether the pieces say all. If not, raises ValueError.
    """
    said = [{"role": r, "content": f"{r}-{i}"} for i, r in enumerate([*ROLES, *ROLES[1:]])]

    def split(messages: Messages) -> list[str]:
        """The text before each message, and after the last."""
        pieces, rest = [], render(messages, False)
        for message in messages:
            piece, found, rest = rest.partition(message["content"])
            if not found:
                raise ValueError(f"it does not write the {message['role']}'s message in its place")
            pieces.append(piece)
        return [*pieces, rest]

    # Of system, question, answer, question, answer. The last answer may have an empty thought.
    first, to_question, to_answer, to_next_question, _, after_answer = split(said)
    after_question, first_question = split(said[:2])[-1], split(said[1:])[0]
    if not (to_answer.startswith(after_question) and to_next_question.startswith(after_answer)):
        raise ValueError("it writes something else after the last message than after others")
    before_next = to_next_question.removeprefix(after_answer)
    ends = [text[::-1] for text in (first_question, to_question, before_next)]
    before_question = os.path.commonprefix(ends)[::-1]
    default_system = first_question.removesuffix(before_question)
    both = first.startswith(bos_token) and default_system.startswith(bos_token)
    start = bos_token if both else ""
    before = {"system": first.removeprefix(start), "user": before_question}
    after = {"system": to_question.removesuffix(before_question), "user": after_question}
    pieces = ChatFormat(
        before={**before, "assistant": to_answer.removeprefix(after_question)},
        after={**after, "assistant": after_answer},
        start=start,
        default_system=default_system.removeprefix(start),
        between=before_next.removesuffix(before_question),
    )
    contents = ["  Be brief.\n", "\n2 + 2 = ?\t ", *["4\n\n(four)", "Is it?"] * 4]
    asked = [{**m, "content": text} for m, text in zip([*said, *said[1:], said[1]], contents)]
    for candidate in (pieces, dataclasses.replace(pieces, trims=True)):
        ours = JINJA.from_string(candidate.template())
        for messages in (asked, asked[1:]):
            wanted, made = render(messages, True), ours.render(messages=messages)
            # Some open no answer, as Llama 2's; DeepSeek-R1's thought gives way to the mode tag.
            opening = TAG.sub("", wanted.removeprefix(made)).strip()
            if opening not in ("", pieces.before["assistant"].strip()):
                break
        else:
            return candidate
    raise ValueError("it does more than write texts around the messages")


def read_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template of a checkpoint, if it has one; of several, the one named "default"."""
    if (path := folder / "chat_template.jinja").exists():
        return path.read_text(encoding="utf-8", errors="replace")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        if "default" not in named:
            raise InputError(f"{folder}: none of its chat templates is named default")
        template = named["default"]
    return str(template) if template else None


# ------------------------------------------------------------------------------------ the tokenizer


class Tokenizer:
    """A checkpoint's tokenizer and chat template, with the four mode tags as single tokens.

    eos_ids: the tokens that end a response, of which the first is the one that we train.
    texts: what the chat template may name besides the messages, such as bos_token.
    """

    think_id: int
    no_think_id: int

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_ids: list[int],
        chat_template: str | None,
        texts: dict[str, str] | None = None,
    ) -> None:
        self.backend, self.eos_ids, self.chat_template = backend, eos_ids, chat_template
        self.texts = texts or {}
        self.compiled = None if chat_template is None else JINJA.from_string(chat_template)
        self.settings: dict[str, Any] = {}  # tokenizer_config.json
        self.generation: dict[str, Any] = {}  # generation_config.json
        self.added_ids: list[int] = []
        self.warned: set[str] = set()  # modes whose new tags were warned of
        self.new_tags: list[str] = []  # that the checkpoint lacks, so never was trained on

    def add_mode_tags(self) -> None:
        """Give every tag that the vocabulary lacks the next free id. A tag is never split."""
        missing = [tag for tag in TAGS if self.backend.token_to_id(tag) is None]
        if missing and len(self) != self.backend.get_vocab_size(with_added_tokens=True):
            raise InputError("tokenizer.json leaves out ids, so that no tag can be added")
        self.backend.add_tokens([tokenizers.AddedToken(tag, normalized=False) for tag in missing])
        ids = self.backend.get_vocab(with_added_tokens=True)
        self.added_ids, self.new_tags = [ids[tag] for tag in missing], missing
        self.think_id, self.no_think_id = ids["<think>"], ids["<no_think>"]

    @classmethod
    def from_pretrained(cls, folder: str | Path, mode_tags: bool = True) -> Tokenizer:
        """Read tokenizer.json, and from the files beside it the chat template and the stop tokens.

        With `mode_tags` the checkpoint becomes one of ours: it has the tags; an answer ends with
        the token that ends a turn, which the configuration of a base model does not name; and the
        chat template is made from the checkpoint's own, or is ChatML where there is none. Without,
        everything is as the checkpoint has it. Raises InputError, with the folder's name.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{path}: {error}") from None
        backend.no_padding()
        backend.no_truncation()
        beside = {
            name: read_json(folder / f"{name}.json") if (folder / f"{name}.json").exists() else {}
            for name in ("config", "generation_config", "tokenizer_config")
        }
        settings = beside["tokenizer_config"]
        named = {name: value for name, value in settings.items() if name.endswith("_token")}
        contents = {n: v.get("content") if isinstance(v, dict) else v for n, v in named.items()}
        texts = {name: text for name, text in contents.items() if isinstance(text, str)}
        eos = beside["generation_config"].get("eos_token_id", beside["config"].get("eos_token_id"))
        eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
        template, chat = read_template(folder, settings), CHATML
        try:
            tokenizer = cls(backend, eos_ids, template, texts)
            if mode_tags and template is not None:
                chat = learn_format(tokenizer.render_chat, texts.get("bos_token", ""))
        except Exception as error:  # a template may raise anything
            raise InputError(f"{folder}: cannot use its chat template: {error}") from None
        if mode_tags:
            end = backend.token_to_id(chat.after["assistant"].strip())
            eos_ids = ([] if end is None else [end]) + [i for i in eos_ids if i != end]
            tokenizer = cls(backend, eos_ids, chat.template())
            tokenizer.add_mode_tags()
        valid = all(type(i) is int and 0 <= i < len(tokenizer) for i in eos_ids)
        if not valid or (mode_tags and not eos_ids):
            raise InputError(f"{folder}: eos_token_id is {eos!r}, expected ids of its tokens")
        tokenizer.settings, tokenizer.generation = settings, beside["generation_config"]
        return tokenizer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer with the tags, its chat template, and how the paper samples, for
        `transformers` and vLLM."""
        folder = Path(folder)
        added = {  # once a folder lists any here, transformers 5 knows of no others
            str(number): {
                name: getattr(token, name)
                for name in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
            }
            for number, token in self.backend.get_added_tokens_decoder().items()
        }
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.settings}
        settings["added_tokens_decoder"] = added
        settings["eos_token"] = self.backend.id_to_token(self.eos_ids[0])
        settings["chat_template"] = self.chat_template
        carried = {
            k: v for k, v in self.generation.items() if k in ("bos_token_id", "pad_token_id")
        }
        generation = {**carried, "eos_token_id": self.eos_ids, "do_sample": True, **SAMPLING}
        write_bytes(folder / "tokenizer.json", self.backend.to_str(pretty=True).encode())
        write_json(folder / "tokenizer_config.json", settings)
        write_json(folder / "generation_config.json", generation)
        (folder / "chat_template.jinja").unlink(missing_ok=True)  # it would take precedence

    def warn_of_new_tags(self, modes: Iterable[str]) -> None:
        """Say, once, that one of `modes` is to be forced by a tag that the checkpoint lacked."""
        modes = set(modes)
        new = [f"<{m}>" for m in MODES if m in modes - self.warned and f"<{m}>" in self.new_tags]
        self.warned.update(modes)
        if new and is_main_process():
            untrained = "this checkpoint was never trained on it: expect malformed responses"
            print(f"warning: {' and '.join(new)}: {untrained}", file=sys.stderr)

    def __len__(self) -> int:
        """One more than the highest id of any token."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, to which nothing is added."""
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except Exception as error:  # half a surrogate pair, or a word without a token
            raise InputError(f"cannot encode {text[:40]!r}: {error}") from None

    def decode(self, ids: list[int]) -> str:
        """The exact text of `ids`, tags and other special tokens included."""
        return self.backend.decode(ids, skip_special_tokens=False)

    def render_chat(
        self, messages: Messages, add_generation_prompt: bool = True, **options: bool
    ) -> str:
        """The text of a conversation, by default up to where the assistant's next answer begins;
        `options` are other variables of the template, such as enable_thinking."""
        if self.compiled is None:
            raise InputError("the checkpoint has no chat template")
        variables = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self.compiled.render({**self.texts, **variables, **options})
        except Exception as error:  # a template may raise anything
            raise InputError(f"the chat template refuses the conversation: {error}") from None

    def encode_chat(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """The token ids of `render_chat`."""
        return self.encode(self.render_chat(messages, add_generation_prompt))
