"""model.py: the decoder against a slow reference, its cache, its files, its tokenizer."""

import json
import math
import shutil
import sys

import pytest
import tokenizers
import torch
from conftest import TINY, assert_transformers_generates_the_same, run, tiny_model
from safetensors.torch import load_file, save_file

import model as model_module
from model import (
    CHATML,
    DEEPSEEK,
    ChatFormat,
    Config,
    InputError,
    KVCache,
    Tokenizer,
    Transformer,
)

SEVEN = {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SHAPES = {  # num_key_value_heads is 2 of 4 unless it says otherwise
    "qwen2": {},
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen2 one kv head": {"num_key_value_heads": 1},
    "qwen2 seven queries a kv head": SEVEN,
    "qwen2 yarn": {"rope_scaling": YARN, "head_dim": 16},
    "qwen3": {"model_type": "qwen3", "head_dim": 24},
    "qwen3 tied, no grouping": {
        "model_type": "qwen3",
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "qwen3 seven queries a kv head": {"model_type": "qwen3", "attention_bias": True, **SEVEN},
    "qwen3 yarn": {"model_type": "qwen3", "head_dim": 24, "rope_scaling": {**YARN, "beta_fast": 8}},
    "llama": {"model_type": "llama"},
    "llama tied, no grouping": {
        "model_type": "llama",
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "llama with biases": {"model_type": "llama", "attention_bias": True, "head_dim": 16},
    "llama seven queries a kv head": {"model_type": "llama", **SEVEN},
    "llama llama3": {"model_type": "llama", "head_dim": 16, "rope_scaling": LLAMA3},
    "llama yarn": {
        "model_type": "llama",
        "rope_scaling": {**YARN, "truncate": False, "attention_factor": 1.5},
    },
}


def slow_frequencies(config: Config) -> tuple[list[float], float]:
    """The published rules for longer contexts, case by case, in terms of wavelengths."""
    size, rope = config.head_dim, config.rope_scaling
    plain = [1 / config.rope_theta ** (2 * i / size) for i in range(size // 2)]
    if not rope:
        return plain, 1.0
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    made = []
    if rope["rope_type"] == "llama3":
        for frequency in plain:
            wavelength = 2 * math.pi / frequency
            if wavelength < context / rope["high_freq_factor"]:
                made.append(frequency)
            elif wavelength > context / rope["low_freq_factor"]:
                made.append(frequency / factor)
            else:
                smooth = (context / wavelength - rope["low_freq_factor"]) / (
                    rope["high_freq_factor"] - rope["low_freq_factor"]
                )
                made.append((1 - smooth) * frequency / factor + smooth * frequency)
        return made, 1.0
    bounds = []
    for turns, rounded in ((rope.get("beta_fast", 32), math.floor), (1, math.ceil)):
        pair = size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))
        bounds.append(rounded(pair) if rope.get("truncate", True) else pair)
    low, high = max(bounds[0], 0), min(bounds[1], size - 1)
    for i, frequency in enumerate(plain):
        ramp = 0.0 if i <= low else 1.0 if i >= high else (i - low) / (high - low)
        made.append(frequency / factor * ramp + frequency * (1 - ramp))
    return made, rope.get("attention_factor", 0.1 * math.log(factor) + 1)


def slow_logits(model: Transformer, ids: list[int]) -> torch.Tensor:
    """The same network written a second time, token by token and head by head, in fp64."""
    config = model.config
    frequencies, scale = slow_frequencies(config)
    weight = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean() + config.rms_norm_eps).sqrt() * weight[name]

    def turn(x: torch.Tensor, position: int) -> torch.Tensor:
        half, out = len(x) // 2, torch.empty_like(x)
        for i in range(half):
            angle = position * frequencies[i]
            cos, sin = scale * math.cos(angle), scale * math.sin(angle)
            out[i] = x[i] * cos - x[i + half] * sin
            out[i + half] = x[i] * sin + x[i + half] * cos
        return out

    stream = [weight["model.embed_tokens.weight"][i] for i in ids]
    size, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        seen: list[dict[str, torch.Tensor]] = []
        for position, x in enumerate(stream):
            normed = norm(x, at + "input_layernorm.weight")
            made = {}
            for part in "qkv":
                name = f"{at}self_attn.{part}_proj."
                made[part] = weight[name + "weight"] @ normed + weight.get(name + "bias", 0)
            seen.append(made)
            heads = []
            for head in range(config.num_attention_heads):
                mine = slice(head * size, (head + 1) * size)
                shared = slice(head // group * size, (head // group + 1) * size)

                def ready(part: str, where: slice, at_position: int) -> torch.Tensor:
                    vector = seen[at_position][part][where]  # noqa: B023
                    if config.qk_norm:
                        vector = norm(vector, f"{at}self_attn.{part}_norm.weight")  # noqa: B023
                    return turn(vector, at_position)

                query = ready("q", mine, position)
                scores = torch.stack(
                    [query @ ready("k", shared, j) / math.sqrt(size) for j in range(position + 1)]
                )
                values = torch.stack([seen[j]["v"][shared] for j in range(position + 1)])
                heads.append(scores.softmax(0) @ values)
            x = x + weight[at + "self_attn.o_proj.weight"] @ torch.cat(heads)
            x = x + weight.get(at + "self_attn.o_proj.bias", 0)
            normed = norm(x, at + "post_attention_layernorm.weight")
            gate = weight[at + "mlp.gate_proj.weight"] @ normed
            up = weight[at + "mlp.up_proj.weight"] @ normed
            down = weight[at + "mlp.down_proj.weight"] @ (gate * gate.sigmoid() * up)
            stream[position] = x + down
    return torch.stack([weight["lm_head.weight"] @ norm(x, "model.norm.weight") for x in stream])


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_a_slow_reference(name):
    model = tiny_model(**SHAPES[name])
    ids = [5, 17, 3, 3, 60, 0, 9, *range(12)]
    torch.testing.assert_close(
        model(torch.tensor([ids]))[0].double(), slow_logits(model, ids), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = tiny_model(**SHAPES[name])
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(61, (2, 70), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    assert theirs.config.architectures == [type(theirs).__name__]


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_scores_of_a_reward_model_equal_transformers(model_type, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = tiny_model(model_type=model_type, score_head=True)
    model.config.extra["pad_token_id"] = 0
    model.save_pretrained(tmp_path)
    again = Transformer.from_pretrained(tmp_path)
    assert "score.weight" in again.tensor_names() and "lm_head.weight" not in again.tensor_names()
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])  # 0 is padding
    last = torch.tensor([4, 2])
    ours = again(ids, head=lambda hidden, score: score(hidden[torch.arange(2), last]))
    assert ours.shape == (2, 1)
    torch.testing.assert_close(ours, theirs(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama llama3", "qwen2 yarn"])
def test_ragged_cached_decoding_equals_an_uncached_forward(name):
    model = tiny_model(**SHAPES[name])
    rows = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11], [12]]
    more = torch.randint(61, (3, 40), generator=torch.Generator().manual_seed(1))
    ids = torch.zeros(3, 8, dtype=torch.long)
    for row, known in zip(ids, rows):
        row[: len(known)] = torch.tensor(known)
    cache = KVCache(3)
    model(ids, cache=cache)
    cache.lengths = torch.tensor([len(row) for row in rows])
    chunks = [more[:, :1], more[:, 1:4]] + [more[:, t : t + 1] for t in range(4, 40)]
    cached = torch.cat([model(chunk, cache=cache) for chunk in chunks], dim=1)
    for row, known in enumerate(rows):
        whole = model(torch.tensor([[*known, *more[row].tolist()]]))[0, len(known) :]
        torch.testing.assert_close(cached[row], whole, rtol=1e-4, atol=1e-4)


def test_a_caches_rows_can_be_dropped_reordered_and_copied(model):
    ids = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    cache = KVCache(3)
    model(ids, cache=cache)
    cache.select(torch.tensor([2, 0, 2]))
    step = model(torch.tensor([[10], [11], [12]]), cache=cache)[:, 0]
    for row, known in enumerate(([7, 8, 9, 10], [1, 2, 3, 11], [7, 8, 9, 12])):
        whole = model(torch.tensor([known]))[0, -1]
        torch.testing.assert_close(step[row], whole, rtol=1e-4, atol=1e-4)


def test_positions_can_be_given(model):
    """Only differences of positions count, as a rotary embedding promises."""
    ids = torch.tensor([[1, 2, 3]])
    moved = model(ids, positions=torch.tensor([[40, 41, 42]]))
    torch.testing.assert_close(moved, model(ids), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(ids, positions=torch.tensor([[0, 9, 30]])), moved, atol=0.01)


def test_padding_on_the_right_changes_nothing(model):
    short, long = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 3, 0, 0, 0]])
    torch.testing.assert_close(model(long)[:, :3], model(short), rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient():
    ids, grads = torch.tensor([[1, 2, 3, 4]]), []
    for on in (False, True):
        model = tiny_model()
        for block in model.model["layers"]:
            block.gradient_checkpointing = on
        model(ids).logsumexp(-1).sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


# ------------------------------------------------------------------------------------- weight files


@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 6000])
def test_save_load_save_is_byte_identical(shard_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "MAX_SHARD_BYTES", shard_bytes)
    first, second = tmp_path / "first", tmp_path / "second"
    tiny_model(tie_word_embeddings=True).save_pretrained(first)
    Transformer.from_pretrained(first).save_pretrained(second)
    files = sorted(path.name for path in first.iterdir())
    assert files == sorted(path.name for path in second.iterdir())
    assert len(files) > 3 if shard_bytes == 6000 else len(files) == 2
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)


def test_a_loaded_model_computes_the_same_and_keeps_its_head_tied(tmp_path):
    model = tiny_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    loaded = Transformer.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model["embed_tokens"].weight
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids), model(ids))
    assert Transformer.from_pretrained(tmp_path, dtype=torch.bfloat16)(ids).dtype == torch.bfloat16


def test_whoever_may_read_the_configuration_may_read_the_weights(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_what_transformers_5_nests_wins(tmp_path):
    nested = {"rope_type": "default", "rope_theta": 5000.0}
    tiny_model().save_pretrained(tmp_path)
    configure(rope_theta=77.0, rope_parameters=nested)(tmp_path)
    assert Config.from_pretrained(tmp_path).rope_theta == 5000.0


def test_a_model_saved_over_a_sharded_one_is_the_one_that_is_loaded(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(model_module, "MAX_SHARD_BYTES", 6000)
        tiny_model(seed=0).save_pretrained(tmp_path)
    tiny_model(seed=1).save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = Transformer.from_pretrained(tmp_path).state_dict()
    assert torch.equal(loaded["lm_head.weight"], tiny_model(seed=1).lm_head.weight)


def rewrite(change):
    """Damage that changes the tensors of the weights file."""

    def damage(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def append(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"more")


def configure(**values):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


NORM = "model.norm.weight"
BAD_FOLDERS = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "weights cut off": (cut, f"truncated: {NORM}"),
    "bytes left over": (append, "model.safetensors: "),
    "whole numbers": (rewrite(lambda t: t.update({NORM: t[NORM].int()})), f"{NORM} is I32"),
    "weights a folder": (lambda f: replace_by_folder(f / "model.safetensors"), "no model.safe"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "truncated"),
    "a pickle": (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x05" * 99), "truncated"),
    "missing tensor": (rewrite(lambda t: t.pop(NORM)), f"missing tensor {NORM}"),
    "odd tensor": (rewrite(lambda t: t.update(odd=torch.ones(1))), "unexpected tensor odd"),
    "wrong shape": (rewrite(lambda t: t.update({NORM: torch.ones(3)})), f"{NORM} has shape (3,)"),
    "no config": (lambda f: (f / "config.json").unlink(), "no such file"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "mixture of experts": (configure(model_type="qwen3_moe"), "'qwen3_moe' is not supported"),
    "another family": (configure(model_type="mamba"), "'mamba' is not supported"),
    "sliding window": (configure(use_sliding_window=True, max_window_layers=1), "sliding-window"),
    "quantized": (configure(quantization_config={"bits": 4}), "quantized"),
    "size no number": (configure(hidden_size="big"), "hidden_size is 'big'"),
    "no size": (configure(hidden_size=None), "hidden_size"),
    "no heads": (configure(num_attention_heads=0), "must not be 0"),
    "odd flag": (configure(tie_word_embeddings="yes"), "tie_word_embeddings is 'yes'"),
    "odd rope": (configure(rope_scaling=["yarn"]), "expected an object"),
    "negative size": (configure(num_hidden_layers=-1), "num_hidden_layers is -1"),
    "rope without factor": (configure(rope_scaling={"rope_type": "yarn"}), "makes no sense"),
    "rope of another kind": (configure(rope_scaling={"type": "longrope"}), "'longrope'"),
    "rope of no number": (configure(rope_scaling={**YARN, "factor": float("nan")}), "positive"),
    "rope upside down": (
        configure(rope_scaling={**LLAMA3, "low_freq_factor": 9}),
        "low_freq_factor is not below",
    ),
    "huge size": (configure(hidden_size=10**30), "hidden_size is 1000"),
    "too much memory": (configure(vocab_size=10**8), "config.json asks for (100000000, 32)"),
    "infinite number": (configure(rms_norm_eps=float("inf")), "rms_norm_eps is inf"),
    "too many layers": (configure(num_hidden_layers=10**6), "num_hidden_layers at most"),
    "odd head": (configure(head_dim=7), "head_dim must be even"),
    "rope with odd key": (configure(rope_scaling={**YARN, "mscale": 1.0}), "['mscale']"),
    "part of a head": (configure(partial_rotary_factor=0.5), "part of a head"),
    "a window by layer": (configure(layer_types=["sliding_attention"] * 2), "sliding-window"),
    "odd architecture": (configure(architectures=7), "config.json"),
    "no architecture": (configure(architectures=[None]), "architecture None"),
    "odd window": (configure(use_sliding_window=True, max_window_layers="x"), "config.json"),
    "biased MLP": (configure(mlp_bias=True), "MLP with biases"),
    "another head": (configure(architectures=["Qwen2ForTokenClassification"]), "Qwen2ForToken"),
    "no reward head": (
        configure(architectures=["Qwen2ForSequenceClassification"]),
        "missing tensor score.weight",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_model_folder_is_refused_by_name(case, tmp_path):
    damage, message = BAD_FOLDERS[case]
    tiny_model().save_pretrained(tmp_path)
    # The tensor that lies last in the file is the one that a cut loses.
    tensors = load_file(tmp_path / "model.safetensors")
    ordered = {n: t for n, t in tensors.items() if n != NORM} | {NORM: tensors[NORM]}
    save_file(ordered, tmp_path / "model.safetensors")
    damage(tmp_path)
    with pytest.raises(InputError) as error:
        Transformer.from_pretrained(tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_shard_is_named_with_its_first_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "MAX_SHARD_BYTES", 6000)
    tiny_model().save_pretrained(tmp_path)
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(InputError, match=f"{gone.name}: missing file, wanted for tensor model."):
        Transformer.from_pretrained(tmp_path)


def test_an_index_cannot_lead_out_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "MAX_SHARD_BYTES", 6000)
    folder = tmp_path / "inside"
    tiny_model().save_pretrained(folder)
    shard = sorted(folder.glob("*.safetensors"))[0]
    shutil.move(shard, tmp_path / shard.name)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shard.name, f"../{shard.name}"))
    with pytest.raises(InputError, match="missing file"):
        Transformer.from_pretrained(folder)


def test_a_window_that_no_layer_uses_is_no_obstacle(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    for window, first_layer in ((16, 2), (None, 0)):
        values = {"sliding_window": window, "max_window_layers": first_layer}
        configure(use_sliding_window=True, **values)(tmp_path)
        Transformer.from_pretrained(tmp_path)


MEASURE = """
import re, sys, torch
from model import Transformer
def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
Transformer.from_pretrained(sys.argv[1])  # whatever is needed once
before = memory("VmRSS")
model = Transformer.from_pretrained(sys.argv[2], dtype=getattr(torch, sys.argv[3]))
size = sum(p.numel() * p.element_size() for p in model.parameters())
print((memory("VmHWM") - before) / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_never_holds_the_model_twice(dtype, tmp_path):
    tiny_model().save_pretrained(tmp_path / "tiny")
    with torch.device("meta"):
        big = Transformer(Config(**{**TINY, "vocab_size": 60000, "hidden_size": 1024}))
    big.to_empty(device="cpu").save_pretrained(tmp_path / "big", dtype=torch.bfloat16)
    ratio = run("-c", MEASURE, tmp_path / "tiny", tmp_path / "big", dtype).stdout
    assert 1.0 <= float(ratio) <= 1.15


def test_config_keys_that_we_do_not_know_survive(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    configure(bos_token_id=7, rope_parameters={"rope_type": "default", "rope_theta": 5e5})(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "rope_theta"})
    )
    config = Config.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    assert config.rope_theta == 5e5
    assert json.loads(path.read_text())["bos_token_id"] == 7


# -------------------------------------------------------------------------------------- chat format

QUESTION = {"role": "user", "content": "2+2?"}
SYSTEM = {"role": "system", "content": "Be brief."}
THOUGHT = {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4"}
AT_ONCE = {"role": "assistant", "content": "<no_think>4</no_think>"}
ASKED = "<|im_start|>user\n2+2?<|im_end|>\n"
NEXT = "<|im_start|>assistant\n"


EVERY_TURN = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
)


def template_of(default: str, quote: str = "'", newline: str = "\\n") -> str:
    """A ChatML template that brings a system message, in the shape in which checkpoints have it."""
    literal = f"{quote}<|im_start|>system{newline}{default}<|im_end|>{newline}{quote}"
    return "{% if messages[0].role != 'system' %}{{ " + literal + " }}{% endif %}" + EVERY_TURN


@pytest.mark.parametrize(
    "template, default",
    [
        (template_of("You help."), "You help."),
        (template_of("You help.", newline="\n"), "You help."),
        (template_of("It's \\\\boxed{}.", quote='"'), "It's \\boxed{}."),
        (template_of("Caf\\u00e9\\tßx\\'"), "Café\tßx'"),
        ("{# '<|im_start|>system\\nOld<|im_end|>' #}" + EVERY_TURN, ""),
        ("{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}" + EVERY_TURN, ""),
    ],
)
def test_chatml_brings_the_checkpoints_own_system_message(template, default):
    chat = ChatFormat.from_template(template)
    brought = f"<|im_start|>system\n{default}<|im_end|>\n" if default else ""
    assert chat.render([QUESTION]) == brought + ASKED + NEXT
    own = chat.render([SYSTEM, QUESTION], add_generation_prompt=False)
    assert own == f"<|im_start|>system\nBe brief.<|im_end|>\n{ASKED}"
    chat = ChatFormat(CHATML, default_system=default)
    assert ChatFormat.from_template(chat.template()) == chat


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages }}[INST]",
        "{{ bos_token }}" + EVERY_TURN,
        "{{ '<|im_start|>system\\n' + system_message + '<|im_end|>\\n' }}" + EVERY_TURN,
        EVERY_TURN.replace("m.content", "m.content | trim"),
        EVERY_TURN.replace("'\\n' + m.content", "'<|im_sep|>' + m.content"),
        template_of("\\x"),
    ],
)
def test_a_template_that_we_would_render_otherwise_is_refused(template, tmp_path):
    folder = bare_tokenizer(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(InputError, match="neither Qwen's ChatML nor DeepSeek's"):
        Tokenizer.from_pretrained(folder)
    with pytest.raises(InputError, match="neither ChatML"):  # though it encodes plain text
        Tokenizer.from_pretrained(folder, mode_tags=False).encode_chat([QUESTION])


def test_of_several_templates_the_default_counts(tmp_path):
    folder = bare_tokenizer(tmp_path)
    named = [{"name": "tools", "template": ""}, {"name": [], "template": 1}]
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": named}))
    with pytest.raises(InputError, match="neither"):
        Tokenizer.from_pretrained(folder)
    named.append({"name": "default", "template": template_of("Yes.")})
    path.write_text(json.dumps({"chat_template": named}))
    assert Tokenizer.from_pretrained(folder).chat.default_system == "Yes."


def test_earlier_answers_are_shown_without_their_reasoning():
    chat = ChatFormat(CHATML)
    for answer in (THOUGHT, AT_ONCE):
        earlier = chat.render([QUESTION, answer, QUESTION])
        assert earlier == f"{ASKED}{NEXT}4<|im_end|>\n{ASKED}{NEXT}"
        last = chat.render([QUESTION, answer], add_generation_prompt=False)
        assert last == f"{ASKED}{NEXT}{answer['content']}<|im_end|>\n"
    raw = ChatFormat.from_template(template_of("x"))  # a checkpoint that knows no reasoning
    assert THOUGHT["content"] in raw.render([QUESTION, THOUGHT, QUESTION])


def test_the_mode_can_be_asked_for_in_the_prompt():
    chat = ChatFormat(CHATML)
    openings = {None: "", True: "<think>", False: "<no_think>"}
    for asked, opening in openings.items():
        assert chat.render([QUESTION], enable_thinking=asked) == ASKED + NEXT + opening
    empty_thought = EVERY_TURN + "{{- '<think>\\n\\n</think>\\n\\n' }}"
    raw = ChatFormat.from_template(empty_thought)  # as Qwen3 has it
    assert raw.render([QUESTION], enable_thinking=False).endswith("<think>\n\n</think>\n\n")
    assert raw.render([QUESTION], enable_thinking=True) == ASKED + NEXT


def test_deepseeks_format():
    chat = ChatFormat.from_template("{{bos_token}}{{'<｜User｜>' + m.content}} </think>")
    text = chat.render([SYSTEM, QUESTION, THOUGHT, QUESTION])
    start = "<｜begin▁of▁sentence｜>Be brief.<｜User｜>2+2?<｜Assistant｜>4<｜end▁of▁sentence｜>"
    assert text == start + "<｜User｜>2+2?<｜Assistant｜>"


def test_a_role_that_we_do_not_know_is_refused():
    with pytest.raises(InputError, match="unknown role 'tool'"):
        ChatFormat(CHATML).render([QUESTION, {"role": "tool", "content": "4"}])


def bpe_folder(folder, model_type):
    """A base model with a byte-level BPE tokenizer, which ends texts with <|endoftext|>."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    backend.train_from_iterator([ASKED, NEXT, "the system is a user of the assistant"], trainer)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    end = backend.token_to_id("<|endoftext|>")
    generation = {"eos_token_id": end, "repetition_penalty": 1.5, "max_new_tokens": 3}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    settings["added_tokens_decoder"] = {str(end): {"content": "<|endoftext|>", "special": True}}
    (folder / "chat_template.jinja").write_text(template_of("It's \\\\boxed{}.", quote='"'))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = tiny_model(model_type=model_type, vocab_size=backend.get_vocab_size())
    model.config.extra["torch_dtype"] = "bfloat16"  # as the checkpoint was, before it was trained
    model.save_pretrained(folder)
    return folder


def export(source, folder):
    tokenizer, model = Tokenizer.from_pretrained(source), Transformer.from_pretrained(source)
    model.fit_vocabulary(tokenizer)
    folder.mkdir()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def test_a_base_models_answers_end_with_the_token_that_ends_a_turn(tmp_path):
    source = bpe_folder(tmp_path / "base", "qwen2")
    tokenizer = Tokenizer.from_pretrained(source)
    ends = [tokenizer.backend.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert tokenizer.eos_ids == ends
    assert Tokenizer.from_pretrained(source, mode_tags=False).eos_ids == ends[1:]
    folder = export(source, tmp_path / "ours")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == ends
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    assert Tokenizer.from_pretrained(folder).eos_ids == ends


def test_an_exported_folder_keeps_its_chat_format(tmp_path):
    source = bpe_folder(tmp_path / "base", "qwen2")
    folder = export(source, tmp_path / "ours")
    assert Tokenizer.from_pretrained(folder).chat == Tokenizer.from_pretrained(source).chat
    assert Tokenizer.from_pretrained(folder).chat.default_system == "It's \\boxed{}."
    raw = Tokenizer.from_pretrained(folder, mode_tags=False).chat
    assert raw.drops_reasoning and raw.openings[False] == "<no_think>"


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_transformers_generates_the_same_from_an_exported_folder(model_type, tmp_path):
    folder = export(bpe_folder(tmp_path / "base", model_type), tmp_path / "ours")
    assert_transformers_generates_the_same(folder, "what is it?\n")


def test_the_exported_template_renders_what_we_render(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = export(bpe_folder(tmp_path / "base", "llama"), tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_pretrained(folder)
    chats = [ours.chat, ChatFormat(CHATML), ChatFormat(DEEPSEEK, start="<｜begin▁of▁sentence｜>")]
    for chat in chats:
        for messages in (
            [QUESTION],
            [SYSTEM, QUESTION, THOUGHT],
            [QUESTION, THOUGHT, QUESTION, AT_ONCE, {"role": "user", "content": "a\n\n"}],
        ):
            for prompt in (True, False):
                for option in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
                    rendered = theirs.apply_chat_template(
                        messages,
                        chat_template=chat.template(),
                        add_generation_prompt=prompt,
                        tokenize=False,
                        **option,
                    )
                    assert rendered == chat.render(messages, prompt, **option)


# ---------------------------------------------------------------------------------------- tokenizer


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


def test_missing_tags_become_single_tokens_and_stay_so(tmp_path):
    tokenizer = Tokenizer.from_pretrained(bare_tokenizer(tmp_path))
    assert len(tokenizer) == 44 and tokenizer.added_ids == [40, 41, 42, 43]
    ids = tokenizer.encode("<no_think>12</no_think>")
    assert ids == [tokenizer.no_think_id, 1, 2, tokenizer.end_no_think_id]
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


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(tmp_path):
    tokenizer = Tokenizer.from_pretrained(bare_tokenizer(tmp_path))
    with pytest.raises(InputError, match="40 tokens, the embedding only 39 rows"):
        tiny_model(vocab_size=39).fit_vocabulary(tokenizer)


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


def test_a_reward_model_generates_nothing(tmp_path):
    with pytest.raises(InputError, match="reward model"):
        tiny_model(score_head=True).fit_vocabulary(
            Tokenizer.from_pretrained(bare_tokenizer(tmp_path))
        )


def test_text_that_is_no_unicode_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot encode"):
        Tokenizer.from_pretrained(bare_tokenizer(tmp_path)).encode("\ud800")


@pytest.mark.parametrize("tied", [True, False])
def test_new_tags_take_spare_rows_as_the_mean_embedding(tied, tmp_path):
    tokenizer = Tokenizer.from_pretrained(bare_tokenizer(tmp_path))
    model = tiny_model(tie_word_embeddings=tied)
    mean = model.model["embed_tokens"].weight[:40].mean(0)
    model.fit_vocabulary(tokenizer)
    assert model.config.vocab_size == 61  # room enough: nothing grows
    torch.testing.assert_close(model.model["embed_tokens"].weight[43], mean)
    logits = model(torch.tensor([[1, 2]]))
    assert (logits[..., 44:] == -torch.inf).all() and logits[..., :44].isfinite().all()


@pytest.mark.parametrize("tied", [True, False])
def test_the_embedding_grows_only_where_no_row_is_spare(tied, tmp_path):
    tokenizer = Tokenizer.from_pretrained(bare_tokenizer(tmp_path))
    model = tiny_model(tie_word_embeddings=tied, vocab_size=42)
    before = model(torch.tensor([[1, 2]]))[..., :40]
    model.fit_vocabulary(tokenizer)
    after = model(torch.tensor([[1, 2]]))
    assert model.config.vocab_size == after.shape[-1] == 44
    torch.testing.assert_close(after[..., :40], before)
    model.save_pretrained(tmp_path)
    assert torch.equal(Transformer.from_pretrained(tmp_path)(torch.tensor([[1, 2]])), after)
