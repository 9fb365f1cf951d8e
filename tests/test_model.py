"""model.py: the decoder against a slow reference, its cache, its configuration, its files."""

import json
import math
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, bare_tokenizer, configure, rewrite, run, tiny_model
from safetensors.torch import load_file, save_file

import model as model_module
from data.cli import InputError
from data.tokenizer import Tokenizer
from model import Config, KVCache, Transformer

SEVEN = {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPES = {  # num_key_value_heads is 2 of 4 unless it says otherwise
    "qwen2": {},
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen2 one kv head": {"num_key_value_heads": 1},
    "qwen2 seven queries a kv head": SEVEN,
    "qwen3": {"model_type": "qwen3", "head_dim": 24},
    "qwen3 tied, no grouping": {
        "model_type": "qwen3",
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "qwen3 seven queries a kv head": {"model_type": "qwen3", "attention_bias": True, **SEVEN},
    "llama": {"model_type": "llama"},
    "llama tied, no grouping": {
        "model_type": "llama",
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "llama with biases": {"model_type": "llama", "attention_bias": True, "head_dim": 16},
    "llama seven queries a kv head": {"model_type": "llama", **SEVEN},
    "llama llama3": {"model_type": "llama", "head_dim": 16, "rope_scaling": LLAMA3},
}


def slow_frequencies(config: Config) -> list[float]:
    """Llama 3's published rule for longer contexts, case by case, in terms of wavelengths."""
    size, rope = config.head_dim, config.rope_scaling
    plain = [1 / config.rope_theta ** (2 * i / size) for i in range(size // 2)]
    if not rope:
        return plain
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    made = []
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
    return made


def slow_logits(model: Transformer, ids: list[int]) -> torch.Tensor:
    """The same network written a second time, token by token and head by head, in fp64."""
    config = model.config
    frequencies = slow_frequencies(config)
    weight = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean() + config.rms_norm_eps).sqrt() * weight[name]

    def turn(x: torch.Tensor, position: int) -> torch.Tensor:
        half, out = len(x) // 2, torch.empty_like(x)
        for i in range(half):
            angle = position * frequencies[i]
            cos, sin = math.cos(angle), math.sin(angle)
            out[i] = x[i] * cos - x[i + half] * sin
            out[i + half] = x[i] * sin + x[i + half] * cos
        return out

    def ready(at: str, part: str, vector: torch.Tensor, position: int) -> torch.Tensor:
        if config.model_type == "qwen3":
            vector = norm(vector, f"{at}self_attn.{part}_norm.weight")
        return turn(vector, position)

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

                query = ready(at, "q", seen[position]["q"][mine], position)
                keys = [ready(at, "k", seen[j]["k"][shared], j) for j in range(position + 1)]
                scores = torch.stack([query @ key / math.sqrt(size) for key in keys])
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
    ours = again(ids, head=lambda hidden: again.score(hidden[torch.arange(2), last]))
    assert ours.shape == (2, 1)
    torch.testing.assert_close(ours, theirs(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama llama3"])
def test_ragged_cached_decoding_equals_an_uncached_forward(name):
    model = tiny_model(**SHAPES[name])
    rows = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11], [12]]
    more = torch.randint(61, (3, 40), generator=torch.Generator().manual_seed(1))
    ids = torch.zeros(3, 8, dtype=torch.long)
    for row, known in zip(ids, rows):
        row[: len(known)] = torch.tensor(known)
    cache = KVCache(3, 48)
    model(ids, cache=cache)
    cache.set_lengths([len(row) for row in rows])
    chunks = [more[:, :1], more[:, 1:4]] + [more[:, t : t + 1] for t in range(4, 40)]
    cached = torch.cat([model(chunk, cache=cache) for chunk in chunks], dim=1)
    for row, known in enumerate(rows):
        whole = model(torch.tensor([[*known, *more[row].tolist()]]))[0, len(known) :]
        torch.testing.assert_close(cached[row], whole, rtol=1e-4, atol=1e-4)


def test_no_attention_call_has_both_a_mask_and_groups_of_heads(monkeypatch):
    """Flash attention takes no mask, and the others that are fast take no groups."""
    calls, attention = [], F.scaled_dot_product_attention

    def record(q, k, v, **options):
        calls.append((options.get("attn_mask") is not None, q.shape[1] != k.shape[1]))
        return attention(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    model, cache = tiny_model(), KVCache(2, 8)
    model(torch.tensor([[1, 2], [3, 4]]), cache=cache)
    model(torch.tensor([[5], [6]]), cache=cache)
    model(torch.tensor([[5, 7], [6, 8]]), cache=cache)
    assert set(calls) == {(False, True), (True, False)}


def test_cudnns_attention_is_off():
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_cache_never_holds_more_slots_than_its_limit(model):
    cache = KVCache(1, 41)
    model(torch.tensor([[1, 2, 3]]), cache=cache)
    slots = []
    for _ in range(38):
        model(torch.tensor([[4]]), cache=cache)
        slots.append(cache.layers[0][0].shape[2])
    assert slots[-1] == 41 and len(set(slots)) < 5


def test_a_caches_rows_can_be_copied_and_dropped(model):
    cache, other = KVCache(2, 9), KVCache(3, 4)
    model(torch.tensor([[1, 2, 3, 4], [4, 5, 6, 7]]), cache=cache)
    model(torch.tensor([[7, 8, 9], [10, 11, 12], [13, 14, 15]]), cache=other)
    cache.insert([1], other, [2])
    cache.set_lengths([4, 3])
    step = model(torch.tensor([[20], [21]]), cache=cache)[:, 0]
    for row, known in enumerate(([1, 2, 3, 4, 20], [13, 14, 15, 21])):
        whole = model(torch.tensor([known]))[0, -1]
        torch.testing.assert_close(step[row], whole, rtol=1e-4, atol=1e-4)
    cache.insert([0], cache, [1])
    cache.keep(1)
    cache.set_lengths([4])
    whole = model(torch.tensor([[13, 14, 15, 21, 22]]))[0, -1]
    step = model(torch.tensor([[22]]), cache=cache)[0, 0]
    torch.testing.assert_close(step, whole, rtol=1e-4, atol=1e-4)


def test_padding_on_the_right_changes_nothing(model):
    short, long = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 3, 0, 0, 0]])
    torch.testing.assert_close(model(long)[:, :3], model(short), rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient():
    ids, grads = torch.tensor([[1, 2, 3, 4]]), []
    for on in (False, True):
        model = tiny_model()
        for block in model.model.layers:
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
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
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


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def append(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"more")


NORM = "model.norm.weight"
BAD_FOLDERS = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "weights cut off": (cut, "model.safetensors: truncated"),
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
    "no heads": (configure(num_attention_heads=0), "may be 0"),
    "odd flag": (configure(tie_word_embeddings="yes"), "tie_word_embeddings is 'yes'"),
    "odd rope": (configure(rope_scaling=["llama3"]), "expected an object"),
    "negative size": (configure(num_hidden_layers=-1), "num_hidden_layers is -1"),
    "rope without factor": (configure(rope_scaling={"rope_type": "llama3"}), "makes no sense"),
    "rope of another kind": (configure(rope_scaling={"type": "yarn"}), "rope scaling 'yarn'"),
    "rope of no number": (configure(rope_scaling={**LLAMA3, "factor": float("nan")}), "positive"),
    "rope upside down": (
        configure(rope_scaling={**LLAMA3, "low_freq_factor": 9}),
        "low_freq_factor the lower",
    ),
    "huge size": (configure(hidden_size=10**30), "hidden_size is 1000"),
    "too much memory": (configure(vocab_size=10**8), "config.json asks for (100000000, 32)"),
    "infinite number": (configure(rms_norm_eps=float("inf")), "rms_norm_eps is inf"),
    "too many layers": (configure(num_hidden_layers=10**6), "num_hidden_layers must be at most"),
    "odd head": (configure(head_dim=7), "head_dim must be even"),
    "rope with odd key": (configure(rope_scaling={**LLAMA3, "mscale": 1.0}), "['mscale']"),
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


def test_a_window_that_no_layer_uses_changes_nothing(tmp_path):
    model, ids = tiny_model(), torch.tensor([[1, 2, 3]])
    model.save_pretrained(tmp_path)
    for window, first_layer in ((16, 2), (None, 0)):
        values = {"sliding_window": window, "max_window_layers": first_layer}
        configure(use_sliding_window=True, **values)(tmp_path)
        assert torch.equal(Transformer.from_pretrained(tmp_path)(ids), model(ids))


MEASURE = """
import re, sys, torch
from model import Transformer
def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
Transformer.from_pretrained(sys.argv[1])  # whatever is needed once
before = memory("VmRSS")
model = Transformer.from_pretrained(sys.argv[2], dtype=getattr(torch, sys.argv[3]))
sizes = [p.numel() for p in model.parameters()]
whole = sum(sizes) * next(model.parameters()).element_size()
largest = max(sizes) * 2  # in the file, in bf16
print((memory("VmHWM") - before) / (whole + largest))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_holds_no_more_than_the_model_and_its_largest_tensor(dtype, tmp_path):
    tiny_model().save_pretrained(tmp_path / "tiny")
    sizes = {"vocab_size": 20000, "hidden_size": 1024, "intermediate_size": 4096}
    with torch.device("meta"):
        big = Transformer(Config(**{**TINY, **sizes, "num_hidden_layers": 6}))
    big = big.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in big.parameters():
            parameter.zero_()
    big.save_pretrained(tmp_path / "big", dtype=torch.bfloat16)
    ratio = run("-c", MEASURE, tmp_path / "tiny", tmp_path / "big", dtype).stdout
    assert 0.8 <= float(ratio) <= 1.05


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


# --------------------------------------------------------------------- a row for every token


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(tmp_path):
    tokenizer = Tokenizer.from_pretrained(bare_tokenizer(tmp_path))
    with pytest.raises(InputError, match="40 tokens, the embedding only 39 rows"):
        tiny_model(vocab_size=39).fit_vocabulary(tokenizer)


def test_a_reward_model_generates_nothing(tmp_path):
    with pytest.raises(InputError, match="reward model"):
        tiny_model(score_head=True).fit_vocabulary(
            Tokenizer.from_pretrained(bare_tokenizer(tmp_path))
        )


@pytest.mark.parametrize("tied", [True, False])
def test_new_tags_take_spare_rows_as_the_mean_embedding(tied, tmp_path):
    tokenizer = Tokenizer.from_pretrained(bare_tokenizer(tmp_path))
    model = tiny_model(tie_word_embeddings=tied)
    mean = model.model.embed_tokens.weight[:40].mean(0)
    model.fit_vocabulary(tokenizer)
    assert model.config.vocab_size == 61  # room enough: nothing grows
    torch.testing.assert_close(model.model.embed_tokens.weight[43], mean)
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
