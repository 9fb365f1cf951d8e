"""data/tokenizer.py: chat formats learnt from templates and exported; tags as single tokens."""

import json

import pytest
import tokenizers
import torch
from conftest import assert_transformers_generates_the_same, bare_tokenizer, tiny_model

import lhrm
from data.cli import InputError
from data.modes import MODES
from data.tokenizer import CHATML, ChatFormat, Tokenizer, learn_format
from model import Transformer, read_header

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4, of course."}
THOUGHT = {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4"}
AT_ONCE = {"role": "assistant", "content": "<no_think>4</no_think>"}

# --------------------------------------------------------------------- families of chat templates

CHATML_TURN = "'<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>\\n'"
CHATML_NEXT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
EVERY_TURN = f"{{% for message in messages %}}{{{{ {CHATML_TURN} }}}}{{% endfor %}}"
# As Qwen2.5 has it: a system message of its own.
QWEN25 = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\\nYou\\'re \"Caf\\u00e9\".<|im_end|>\\n' }}{% endif %}"
) + EVERY_TURN + CHATML_NEXT  # fmt: skip
# As Qwen3 has it: the answer to the last question opens with a thought, if an empty one.
QWEN3 = (
    "{% set last = namespace(question=-1) %}{% for message in messages %}"
    "{% if message.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% set answer = message.content.split('</think>')[-1].lstrip('\\n') %}"
    "{{ '<|im_start|>assistant\\n' }}{% if loop.index0 > last.question %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ answer + '<|im_end|>\\n' }}"
    "{% else %}{{ " + CHATML_TURN + " }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
# As DeepSeek-R1 has it: no marks around the system message; the next answer opens with a thought.
DEEPSEEK = (
    "{% set found = namespace(system='') %}{% for message in messages %}"
    "{% if message.role == 'system' %}{% set found.system = message.content %}{% endif %}"
    "{% endfor %}{{ bos_token + found.system }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '<｜User｜>' + message.content }}"
    "{% elif message.role == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
# As Llama 3.1 has it: messages are trimmed, and the system's turn is there in any case.
LLAMA3 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' }}"
    "{{ strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' }}"
    "{{ '\\n\\n' + system + '<|eot_id|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}"
    "{{ message.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
# As Tülu 3 has it: an answer ends with the end of the sequence, and a line where others follow.
TULU = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token + ('' if loop.last else '\\n') }}"
    "{% else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)
# As Llama 2 has it: the system message is inside the first question.
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set first = '<<SYS>>\\n' + messages[0].content + "
    "'\\n<</SYS>>\\n\\n' + messages[1].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set first = messages[0].content %}{% endif %}"
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (first if loop.first else message.content) + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TRIM_SYSTEM = "(message.content | trim if message.role == 'system' else message.content)"
ONLY_WITHOUT_SYSTEM = "{{ 'Hm. ' if messages[0].role == 'user' and messages[2:] else '' }}"
# Template, beginning and end of a text, and the token that ends an answer.
FAMILIES = {
    "chatml": (QWEN25, "", "<|endoftext|>", "<|im_end|>"),
    "qwen3": (QWEN3, "", "<|im_end|>", "<|im_end|>"),
    "deepseek": (
        DEEPSEEK,
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
    ),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "tulu": (TULU, "", "<|end_of_text|>", "<|end_of_text|>"),
}
MARKS = "<|im_start|> <|im_end|> <|endoftext|> <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> "
MARKS += "<｜User｜> <｜Assistant｜> <|begin_of_text|> <|end_of_text|> <|eot_id|> "
MARKS += "<|start_header_id|> <|end_header_id|>"
PROMPTS = [  # conversations that end with a question
    [QUESTION],
    [SYSTEM, QUESTION],
    [QUESTION, ANSWER, {"role": "user", "content": "Why?\n\nAnd how?"}],
    [SYSTEM, QUESTION, {"role": "assistant", "content": "4\n\n(four)"}, QUESTION, ANSWER, QUESTION],
]


def checkpoint(folder, family="chatml", model_type="llama"):
    """A base model of a family, with a byte-level BPE tokenizer; its texts end with eos_token."""
    template, bos, eos, _ = FAMILIES[family]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    backend.train_from_iterator(["the system is a user of the assistant"] * 3, trainer)
    backend.add_special_tokens(MARKS.split())
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    end = backend.token_to_id(eos)
    generation = {"eos_token_id": end, "repetition_penalty": 1.5, "max_new_tokens": 3}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
    settings["added_tokens_decoder"] = {str(end): {"content": eos, "special": True}}
    if bos:
        settings["bos_token"] = {"__type": "AddedToken", "content": bos}
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = tiny_model(model_type=model_type, vocab_size=backend.get_vocab_size())
    model.config.extra["torch_dtype"] = "bfloat16"  # as the checkpoint was, before it was trained
    model.save_pretrained(folder)
    return folder


def export(source, folder, **changes):
    """What Hybrid Fine-Tuning leaves of a checkpoint."""
    rows = source / "rows.jsonl"
    rows.write_text('{"prompt": "2+2?", "answer": "4"}\n')
    settings = lhrm.HFTSettings(
        model_name_or_path=str(source), dataset_name=str(rows), output_dir=str(folder),
        max_steps=1, batch_size=1, bf16=False, **changes,
    )  # fmt: skip
    lhrm.hft(settings)
    return folder


def write_template(folder, template, **texts):
    """A tokenizer folder with a chat template of its own."""
    bare_tokenizer(folder)
    settings = {"chat_template": template, **texts}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_what_the_checkpoints_own_template_renders(family, tmp_path):
    source = checkpoint(tmp_path / "base", family)
    ours, own = Tokenizer.from_pretrained(source), Tokenizer.from_pretrained(source, False)
    opening = "<think>\n" if family == "deepseek" else ""  # gives way to the mode tag
    for prompt in PROMPTS:
        assert ours.render_chat(prompt) + opening == own.render_chat(prompt)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_folder_renders_the_same_prompts_and_generates_the_same_in_transformers(
    family, tmp_path
):
    transformers = pytest.importorskip("transformers")
    source = checkpoint(tmp_path / "base", family)
    ours, folder = Tokenizer.from_pretrained(source), export(source, tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    openings = [None, *(mode == "think" for mode in MODES)]
    thoughts = [[QUESTION, THOUGHT, QUESTION], [QUESTION, AT_ONCE, QUESTION]]
    for messages in (*PROMPTS, *thoughts, [SYSTEM, QUESTION, THOUGHT]):
        for prompt in (True, False):
            for thinking in openings:
                option = {} if thinking is None else {"enable_thinking": thinking}
                text = theirs.apply_chat_template(
                    messages, add_generation_prompt=prompt, tokenize=False, **option
                )
                assert ours.render_chat(messages, prompt, **option) == text
                ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, **option)
                assert ours.encode(text) == ids["input_ids"]
    assert_transformers_generates_the_same(folder, "what is it?\n")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_folder_is_learnt_as_what_it_was(family, tmp_path):
    source = checkpoint(tmp_path / "base", family)
    folder = export(source, tmp_path / "ours")
    before, after = Tokenizer.from_pretrained(source), Tokenizer.from_pretrained(folder)
    assert after.chat_template == before.chat_template
    assert after.eos_ids == before.eos_ids
    assert after.backend.id_to_token(after.eos_ids[0]) == FAMILIES[family][3]


def test_the_pieces_of_a_template_are_found():
    def pieces(template, bos="", **texts):
        own = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), [], template, texts)
        return learn_format(own.render_chat, bos)

    chatml = pieces(EVERY_TURN + CHATML_NEXT)
    assert chatml == CHATML
    blocks = "{% for m in messages %}\n<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    blocks += "{% endfor %}\n  {% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
    assert pieces(blocks) == CHATML  # lines and indents of blocks alone are not written
    qwen = pieces(QWEN25)
    assert qwen.default_system == '<|im_start|>system\nYou\'re "Café".<|im_end|>\n'
    assert (qwen.before, qwen.after) == (CHATML.before, CHATML.after)
    tulu = pieces(TULU, eos_token="</s>")
    assert (tulu.after["assistant"], tulu.between, tulu.trims) == ("</s>", "\n", False)
    llama = pieces(LLAMA3, "<s>", bos_token="<s>")
    assert (llama.start, llama.after["user"], llama.trims) == ("<s>", "<|eot_id|>", True)
    llama2 = pieces(LLAMA2, "<s>", bos_token="<s>", eos_token="</s>")
    assert llama2.default_system + llama2.before["user"] == "[INST] "
    assert llama2.after["assistant"] + llama2.between == " </s><s>[INST] "


@pytest.mark.parametrize(
    "template, reason",
    [
        ("{{ messages }}[INST]", "it writes something else"),
        ("{{ messages[0].content }}", "does not write the user's message"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "in its place"),
        (EVERY_TURN.replace("message.content", "message.content | upper"), "in its place"),
        (EVERY_TURN.replace("message.content", "message.content | indent") + CHATML_NEXT, "more"),
        (EVERY_TURN + CHATML_NEXT + "{{ messages | length }}", "it writes something else"),
        (EVERY_TURN + CHATML_NEXT + "Be brief.", "it writes something else"),
        (EVERY_TURN.replace("message.content", TRIM_SYSTEM) + CHATML_NEXT, "more than"),
        (EVERY_TURN + ONLY_WITHOUT_SYSTEM + CHATML_NEXT, "more than"),
        (EVERY_TURN.replace("in messages", "in messages[-5:]") + CHATML_NEXT, "more than"),
        (
            "{{ raise_exception('too long') if messages[6:] }}" + EVERY_TURN + CHATML_NEXT,
            "too long",
        ),
        (EVERY_TURN + CHATML_NEXT.replace("assistant\\n", "assistant\\nSure, "), "more than"),
        ("{{ raise_exception('no chat') }}", "no chat"),
        ("{% for m in messages %}{{ m", "unexpected"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ today() }}", "undefined"),
    ],
)
def test_a_template_that_we_could_not_write_is_refused_by_name(template, reason, tmp_path):
    folder = write_template(tmp_path, template)
    with pytest.raises(
        InputError, match=f"(?s){tmp_path}: cannot use its chat template:.*{reason}"
    ):
        Tokenizer.from_pretrained(folder)


def test_a_folder_without_a_template_gets_chatml(tmp_path):
    folder = bare_tokenizer(tmp_path)
    assert Tokenizer.from_pretrained(folder).chat_template == CHATML.template()
    with pytest.raises(InputError, match="no chat template"):
        Tokenizer.from_pretrained(folder, mode_tags=False).render_chat([QUESTION])


def test_of_several_templates_the_default_counts(tmp_path):
    named = [{"name": "tools", "template": ""}, {"name": [], "template": 1}]
    with pytest.raises(InputError, match="none of its chat templates is named default"):
        Tokenizer.from_pretrained(write_template(tmp_path, named))
    named.append({"name": "default", "template": QWEN25})
    folder = write_template(tmp_path, named)
    assert "Café" in Tokenizer.from_pretrained(folder).render_chat([QUESTION])


def chatml(*messages, **options):
    """What a checkpoint in ChatML makes of a conversation."""
    own = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), [], CHATML.template())
    return own.render_chat(list(messages), **options)


ASKED, NEXT = "<|im_start|>user\n2+2?<|im_end|>\n", "<|im_start|>assistant\n"


def test_earlier_answers_are_shown_without_their_reasoning():
    for answer in (THOUGHT, AT_ONCE):
        earlier = chatml(QUESTION, answer, QUESTION)
        assert earlier == f"{ASKED}{NEXT}4<|im_end|>\n{ASKED}{NEXT}"
        last = chatml(QUESTION, answer, add_generation_prompt=False)
        assert last == f"{ASKED}{NEXT}{answer['content']}<|im_end|>\n"


def test_the_mode_can_be_asked_for_in_the_prompt():
    assert chatml(QUESTION) == ASKED + NEXT
    for asked, opening in {True: "<think>", False: "<no_think>"}.items():
        assert chatml(QUESTION, enable_thinking=asked) == ASKED + NEXT + opening


def test_a_role_that_we_do_not_know_is_refused():
    with pytest.raises(InputError, match="unknown role tool"):
        chatml(QUESTION, {"role": "tool", "content": "4"})


def test_text_in_a_format_is_written_as_it_is():
    """Quotes, backslashes and braces pass through the template unharmed."""
    odd = "\\boxed{{ '\"' }} {% é \n\t"
    format_ = ChatFormat({**CHATML.before, "user": odd}, CHATML.after, default_system=odd)
    own = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), [], format_.template())
    assert own.render_chat([QUESTION]) == f"{odd}{odd}2+2?<|im_end|>\n{NEXT}"


def test_a_base_models_answers_end_with_the_token_that_ends_a_turn(tmp_path):
    source = checkpoint(tmp_path / "base")
    tokenizer = Tokenizer.from_pretrained(source)
    ends = [tokenizer.backend.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert tokenizer.eos_ids == ends
    assert Tokenizer.from_pretrained(source, mode_tags=False).eos_ids == ends[1:]
    folder = export(source, tmp_path / "ours")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == ends
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_transformers_generates_the_same_from_an_exported_folder(model_type, tmp_path):
    folder = export(checkpoint(tmp_path / "base", "qwen3", model_type), tmp_path / "ours")
    assert_transformers_generates_the_same(folder, "what is it?\n")


# ---------------------------------------------------------------------------------------- tokenizer


def test_missing_tags_become_single_tokens_and_stay_so(tmp_path):
    tokenizer = Tokenizer.from_pretrained(bare_tokenizer(tmp_path))
    assert len(tokenizer) == 44 and tokenizer.added_ids == [40, 41, 42, 43]
    ids = tokenizer.encode("<no_think>12</no_think>")
    assert ids == [tokenizer.no_think_id, 1, 2, 43]
    assert tokenizer.decode(ids) == "<no_think>12</no_think>"
    tokenizer.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.added_ids == [] and again.encode("<think>") == tokenizer.encode("<think>")


def test_every_end_of_sequence_id_is_read(tmp_path):
    assert Tokenizer.from_pretrained(bare_tokenizer(tmp_path)).eos_ids == [39, 3]


@pytest.mark.parametrize("eos", [[], ["a"], -1, 99, 1.5, True, None])
def test_end_of_sequence_ids_that_are_no_tokens_are_refused(eos, tmp_path):
    (bare_tokenizer(tmp_path) / "generation_config.json").write_text(
        json.dumps({"eos_token_id": eos})
    )
    with pytest.raises(InputError, match="eos_token_id"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_vocabulary_with_holes_gets_no_tags(tmp_path):
    folder = bare_tokenizer(tmp_path)
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"]["far"] = 60
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="leaves out ids"):
        Tokenizer.from_pretrained(folder)


def test_half_a_surrogate_pair_in_a_file_is_refused_when_it_is_read(tmp_path):
    (bare_tokenizer(tmp_path) / "tokenizer_config.json").write_text('{"pad_token": "\\ud800"}')
    with pytest.raises(InputError, match="tokenizer_config.json"):
        Tokenizer.from_pretrained(tmp_path)


def test_text_that_is_no_unicode_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot encode"):
        Tokenizer.from_pretrained(bare_tokenizer(tmp_path)).encode("\ud800")


def test_the_template_marks_what_is_trained_on_for_the_trainers_that_ask(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = export(checkpoint(tmp_path / "base"), tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [QUESTION, AT_ONCE, QUESTION, THOUGHT]
    made = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, m in zip(made["input_ids"], made["assistant_masks"]) if m]
    ours = Tokenizer.from_pretrained(folder)
    # The answer and the token that ends it: no earlier answer, whose tags are gone, and no newline.
    assert marked == [*ours.encode(THOUGHT["content"]), ours.eos_ids[0]]
    assert made["input_ids"] == ours.encode_chat(messages, add_generation_prompt=False)


def test_a_tag_that_is_new_to_a_checkpoint_is_warned_of_once(tmp_path, capsys):
    tokenizer = Tokenizer.from_pretrained(checkpoint(tmp_path / "base"))
    tokenizer.warn_of_new_tags(["auto", "router"])
    assert capsys.readouterr().err == ""
    for _ in range(2):
        tokenizer.warn_of_new_tags(["think", "auto"])
    said = "warning: <think>: this checkpoint was never trained on it: expect malformed responses\n"
    assert capsys.readouterr().err == said
    trained = Tokenizer.from_pretrained(export(tmp_path / "base", tmp_path / "ours"))
    trained.warn_of_new_tags(MODES)
    assert trained.new_tags == [] and "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("asked, saved", [(None, "BF16"), ("float32", "F32"), ("float16", "F16")])
def test_a_model_is_exported_in_the_dtype_of_its_base_or_as_asked(asked, saved, tmp_path):
    base = checkpoint(tmp_path / "base")
    Transformer.from_pretrained(base).save_pretrained(base, torch.bfloat16)
    folder = export(base, tmp_path / "ours", export_dtype=asked)
    assert {dtype for dtype, _ in read_header(folder / "model.safetensors").values()} == {saved}
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] in (asked, "bfloat16")


def test_a_thought_that_was_cut_is_not_in_the_prompts_that_follow(tmp_path):
    tokenizer = Tokenizer.from_pretrained(checkpoint(tmp_path / "base"))
    cut = {"role": "assistant", "content": "<think>two and tw"}
    text = tokenizer.render_chat([QUESTION, cut, QUESTION])
    assert "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user" in text and "two" not in text
