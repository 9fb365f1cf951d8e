"""A Qwen2 / Qwen2.5 / Qwen3 / Llama decoder: layers, KV cache, configuration, weights in and out.

Parameter names are Hugging Face's, so a checkpoint is its state dict and nothing is translated.

Shapes: B rows, T new tokens, S cached tokens, C hidden size, H query heads, K key/value heads,
D head size, V vocabulary.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from data.cli import InputError, is_main_process, read_json, write_json
from data.tokenizer import Tokenizer

MAX_SHARD_BYTES = 5 * 10**9
WEIGHTS = ("model.safetensors", "model-[0-9]*-of-[0-9]*.safetensors")  # names of weight files
# cuDNN plans attention anew for every shape and keeps the plans: in decoding, one for each token.
torch.backends.cuda.enable_cudnn_sdp(False)

# --------------------------------------------------------------------------------------- the layers


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension; the root mean square in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (..., size) -> same
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotary_angles(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """For `rotate`, cos and ∓sin of each angle: (B, T), (D/2,) -> two of (B, T, 1, D), fp32."""
    angles = positions[:, :, None, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: turn the pair (x_i, x_{i+D/2}) by its angle. x: (B, T, heads, D)."""
    x32 = x.float()
    return (x32 * cos + x32.roll(x.shape[-1] // 2, dims=-1) * sin).to(x.dtype)


class KVCache:
    """Keys and values of the tokens seen so far, passed to `Transformer.forward` as an argument.

    Row b holds `lengths[b]` tokens in slots 0 … lengths[b]−1, and token p of a row lies in slot p,
    whatever the other rows hold. Slots past a row's length may hold the padding of a ragged batch:
    no query ever sees a slot past its own position, and the row's next token overwrites it.
    """

    def __init__(self, batch_size: int, limit: int, device: torch.device | str = "cpu") -> None:
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)  # (B,)
        self.size = 0  # slots in use in the fullest row: known to Python, so no device sync
        self.limit = limit  # the most tokens that a row will ever hold
        self.layers: dict[int, list[Tensor]] = {}  # layer -> [keys, values], each (B, K, slots, D)

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Say how many tokens each row holds: what lies past them is forgotten."""
        self.lengths = torch.tensor(lengths, device=self.lengths.device)
        self.size = max(lengths)

    def reserve(self, layer: int, used: int, like: Tensor) -> list[Tensor]:
        """Keys and values of a layer, with room for `used` tokens in every row."""
        if layer not in self.layers:
            self.layers[layer] = [
                like.new_zeros(len(self.lengths), like.shape[1], 0, like.shape[3])
            ] * 2
        stores = self.layers[layer]
        for i, store in enumerate(stores):
            if used > store.shape[2]:  # grow by a half: appending stays linear in time
                slots = min(used * 3 // 2 + 16, self.limit) - store.shape[2]
                stores[i] = F.pad(store, (0, 0, 0, slots))
        return stores

    def append(
        self, layer: int, keys: Tensor, values: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) at `positions` (B, T); returns all keys and values: (B, K, S, D)."""
        used = self.size + keys.shape[2]
        rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
        stores = self.reserve(layer, used, keys)
        for store, new in zip(stores, (keys, values)):
            store[rows, :, positions] = new.transpose(1, 2)
        keys, values = stores
        return keys[:, :, :used], values[:, :, :used]

    def insert(self, rows: Sequence[int], other: KVCache, others: Sequence[int]) -> None:
        """Copy the rows `others` of a cache over `rows` of this one, but for their lengths."""
        to, source = (
            torch.tensor(places, dtype=torch.long, device=self.lengths.device)
            for places in (rows, others)
        )
        for layer, theirs in other.layers.items():
            for store, new in zip(self.reserve(layer, other.size, theirs[0]), theirs):
                store[to, :, : other.size] = new[source, :, : other.size]

    def keep(self, rows: int) -> None:
        """Forget all rows but the first ones."""
        self.lengths = self.lengths[:rows]
        for stores in self.layers.values():
            stores[:] = [store[:rows] for store in stores]


class Attention(nn.Module):
    """Causal attention in which groups of H/K query heads share a key/value head."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        inner, shared = (
            n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads)
        )
        qwen2 = config.model_type == "qwen2"  # always has biases, but none on the output
        bias = config.attention_bias or qwen2
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=bias and not qwen2)
        qk_norm = config.model_type == "qwen3"  # normalises every query and key head
        norm = RMSNorm if qk_norm else nn.Identity
        self.q_norm = norm(config.head_dim, config.rms_norm_eps)
        self.k_norm = norm(config.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        positions: Tensor,
        cache: KVCache | None,
        mask: Tensor | None,
    ) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).view(heads)), *rope)  # (B, T, H, D)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)), *rope)  # (B, T, K, D)
        v = self.v_proj(x).view(heads)  # (B, T, K, D)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D), (B, K, T, D) twice
        if cache is not None:
            k, v = cache.append(self.layer, k, v, positions)  # (B, K, S, D) twice
        if mask is None:
            gqa = q.shape[1] != k.shape[1]
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        else:  # No fast kernel takes a mask and groups of heads: lay a group's heads along time.
            folded = q.reshape(len(q), k.shape[1], -1, self.head_dim)  # (B, K, H/K·T, D)
            y = F.scaled_dot_product_attention(folded, k, v, attn_mask=mask).reshape(q.shape)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and MLP, each normalised before and added to the stream after."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, *context: Any) -> Tensor:  # (B, T, C) -> same
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.block, x, *context, use_reentrant=False)
        return self.block(x, *context)

    def block(self, x: Tensor, *context: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *context)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, blocks and last norm, under the names that they have in checkpoints."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, n) for n in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


# ---------------------------------------------------------------------------------------- the model


class Transformer(nn.Module):
    """A decoder-only language model of the Qwen and Llama families. A reward model has `score`, one
    number for each token, where others have `lm_head`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        # Rows of the embedding from here on name no token (Qwen pads its vocabulary): logits −inf.
        self.num_tokens = config.vocab_size
        self.model = Decoder(config)
        if config.score_head:
            self.score = nn.Linear(config.hidden_size, 1, bias=False)
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # A plain attribute: neither a checkpoint nor a change of dtype may touch it.
        self.frequencies = torch.tensor(config.rotary_frequencies(), device="cpu")  # (D/2,)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make head and embedding one matrix, if the configuration says so."""
        if self.config.tie_word_embeddings and not self.config.score_head:
            self.lm_head.weight = self.model.embed_tokens.weight

    def initialize(self, seed: int) -> Transformer:
        """Fresh weights from `seed`: matrices N(0, initializer_range²), norms 1, biases 0."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            with torch.no_grad():
                if parameter.dim() == 2:
                    parameter.normal_(0.0, self.config.initializer_range, generator=generator)
                else:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        return self

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        head: Callable[[Tensor], Any] | None = None,
    ) -> Any:
        """Logits of the token that follows each of `ids`.

        ids: (B, T) int64, rows right-padded where they are ragged. With `cache`, they follow what
        it holds: their keys and values are appended to it, and every row's length grows by T; after
        a ragged prefill call `cache.set_lengths`.
        Returns (B, T, V), or (B, T, 1) of a reward model. With `head`, returns what `head(hidden)`
        makes of the final hidden states, (B, T, C). So a caller can avoid (B, T, V) and yet use the
        weights inside the forward pass, where FSDP has them whole.
        """
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)  # (B, T)
        if cache is not None:
            positions = positions + cache.lengths[:, None]
        mask = None  # plain causal, unless some queries start after position 0
        if cache is not None and cache.size > 0:
            slots = torch.arange(cache.size + ids.shape[1], device=ids.device)
            group = self.config.num_attention_heads // self.config.num_key_value_heads
            mask = (slots <= positions.repeat(1, group)[:, :, None])[:, None]  # (B, 1, H/K·T, S)
        if self.frequencies.device != ids.device:
            self.frequencies = self.frequencies.to(ids.device)
        rope = rotary_angles(positions, self.frequencies)
        x = self.model.embed_tokens(ids)  # (B, T, C)
        for block in self.model.layers:
            x = block(x, rope, positions, cache, mask)
        x = self.model.norm(x)
        if cache is not None:
            cache.lengths = cache.lengths + ids.shape[1]
            cache.size += ids.shape[1]
        return (head or self.logits)(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V), or (..., 1) of a reward model."""
        if self.config.score_head:
            return self.score(hidden)
        logits = self.lm_head(hidden)
        if self.num_tokens < logits.shape[-1]:
            unused = torch.arange(logits.shape[-1], device=logits.device) >= self.num_tokens
            logits = logits.masked_fill(unused, -torch.inf)
        return logits

    @torch.no_grad()
    def fit_vocabulary(self, tokenizer: Tokenizer) -> None:
        """Give every token of `tokenizer` a row, and sample no row that is not a token.

        Tags that `tokenizer` had to add start as the mean embedding. They take spare rows where
        the checkpoint has some; the embedding grows only where it has none.
        """
        if self.config.score_head:
            raise InputError("this is a reward model, which generates nothing")
        self.num_tokens = len(tokenizer)
        first_added = min(tokenizer.added_ids, default=self.num_tokens)
        if first_added > self.config.vocab_size:
            raise InputError(
                f"the tokenizer has {first_added} tokens, the embedding only "
                f"{self.config.vocab_size} rows"
            )
        tied = self.config.tie_word_embeddings
        for table in (
            (self.model.embed_tokens,) if tied else (self.model.embed_tokens, self.lm_head)
        ):
            mean = table.weight[:first_added].float().mean(0)
            missing = self.num_tokens - table.weight.shape[0]
            if missing > 0:
                rows = mean.to(table.weight.dtype).expand(missing, -1)
                table.weight = nn.Parameter(torch.cat([table.weight, rows]))
            for row in tokenizer.added_ids:
                table.weight[row] = mean
        self.config.vocab_size = self.model.embed_tokens.weight.shape[0]
        self.tie_weights()

    def tensor_names(self) -> list[str]:
        """What a checkpoint holds: the state dict, less the head that is tied to the embedding."""
        tied = {"lm_head.weight"} if self.config.tie_word_embeddings else set()
        return [name for name in self.state_dict() if name not in tied]

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **changes: Any,
    ) -> Transformer:
        """Load a Hugging Face model folder: one safetensors file, or shards with an index.

        changes: fields of its configuration that shall be others.
        Raises InputError, with the names of file and tensor, for a tensor that is missing, unknown,
        of another shape or not finite, and for a damaged file. Beside the model, no more than its
        largest tensor is held in memory.
        """
        folder = Path(folder)
        config = replace(Config.from_pretrained(folder), **changes)
        with torch.device("meta"):
            model = cls(config).to(dtype)
        state = model.state_dict()
        files = find_tensors(folder, {n: tuple(state[n].shape) for n in model.tensor_names()})
        model.to_empty(device=device)  # memory is taken only for what the files hold
        model.tie_weights()  # to_empty gave the shared matrix two storages
        state = model.state_dict()
        for name, path in files.items():
            with safe_open(path, framework="pt") as file:  # closing it lets go of what was read
                state[name].copy_(file.get_tensor(name))
            if not torch.stack(state[name].aminmax()).isfinite().all():
                raise InputError(f"{path}: {name} has numbers that are not finite")
        return model

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and the weights, in `dtype` if given, in shards of at most 5 GB.

        Under FSDP every rank must call this, since each tensor is gathered in turn; rank 0 writes.
        Every file appears whole or not at all.
        """
        save_model(self, Path(folder), dtype)


# ------------------------------------------------------------------------------------ configuration

ARCHITECTURES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}  # by model_type
LLAMA3_ROPE = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
MAX_NUMBER, MAX_LAYERS = 10**8, 10**4  # in config.json; more would be an absurd allocation


@dataclass
class Config:
    """The fields of a Hugging Face `config.json` that decide what is computed; `extra` carries the
    others, which `save_pretrained` writes back."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    model_type: str = "qwen2"
    num_key_value_heads: int = 0  # 0: as many as query heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] = field(default_factory=dict)  # Llama 3's, or {} for none
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    score_head: bool = False  # a reward model: one number in place of the vocabulary's logits
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {"int": (int,), "float": (int, float), "bool": (bool,)}
        for f in fields(self):
            value, kind = getattr(self, f.name), kinds.get(str(f.type))
            if kind and not (type(value) in kind and 0 <= value <= MAX_NUMBER):
                raise InputError(f"{f.name} is {value!r}, expected a positive {f.type}")
        if self.model_type not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise InputError(f"model_type {self.model_type!r} is not supported (we do: {known})")
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // max(1, self.num_attention_heads)
        wrong = {
            "no number of sizes or heads may be 0": not min(
                self.vocab_size, self.hidden_size, self.intermediate_size, self.num_hidden_layers,
                self.num_attention_heads, self.head_dim, self.rope_theta,
            ),
            "head_dim must be even": self.head_dim % 2,
            f"num_hidden_layers must be at most {MAX_LAYERS}": self.num_hidden_layers > MAX_LAYERS,
            "num_attention_heads must be a multiple of num_key_value_heads":
                self.num_attention_heads % (self.num_key_value_heads or 1),
        }  # fmt: skip
        if present := [what for what, found in wrong.items() if found]:
            raise InputError(present[0])
        self.rotary_frequencies()  # refuses a scaling that makes no sense

    def rotary_frequencies(self) -> list[float]:
        """The angle by which each pair of a head's dimensions turns per position: θ^(−2i/D).

        Llama 3's scaling makes the context longer: pairs that turn slowly turn slower by `factor`;
        pairs that turn fast, and so tell neighbours apart, stay as they are; others are between.
        """
        plain = [self.rope_theta ** (-2 * i / self.head_dim) for i in range(self.head_dim // 2)]
        if not self.rope_scaling:
            return plain
        try:
            factor, low, high, context = (
                float(self.rope_scaling[name])
                for name in ("factor", "low_freq_factor", "high_freq_factor",
                             "original_max_position_embeddings")
            )  # fmt: skip
            if not (0 < factor < math.inf and 0 < low < high and 0 < context < math.inf):
                raise ValueError("expected positive numbers, and low_freq_factor the lower")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"rope scaling {self.rope_scaling} makes no sense: {error!r}"
            ) from None
        turns = [context * f / (2 * math.pi) for f in plain]  # within the first context
        unscaled = [min(max((n - low) / (high - low), 0.0), 1.0) for n in turns]  # share
        return [f * share + f / factor * (1 - share) for f, share in zip(plain, unscaled)]

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Config:
        """Read `folder/config.json`; refuse by name what this decoder would compute wrongly."""
        path = Path(folder) / "config.json"
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except (InputError, TypeError) as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Interpret the contents of a config.json, of transformers 4 or 5."""
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise InputError(f"rope scaling is {rope!r}, expected an object")
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        scaling = {k: v for k, v in rope.items() if k in LLAMA3_ROPE and v is not None}
        if context := values.get("original_max_position_embeddings"):
            scaling["original_max_position_embeddings"] = context
        odd = sorted(set(rope) - LLAMA3_ROPE - {"rope_type", "type", "rope_theta"})
        if window := values.get("use_sliding_window") and values.get("sliding_window", 1):
            # The layers from max_window_layers on have it.
            window = values.get("max_window_layers", 28) < values.get("num_hidden_layers", 0)
        if not isinstance(values.get("model_type"), str):
            raise InputError("no model_type")
        architecture = str([*(values.get("architectures") or []), "ForCausalLM"][0])
        kinds = ("ForCausalLM", "ForSequenceClassification")
        refused = {
            f"rope scaling {rope_type!r}": rope_type not in ("default", "llama3"),
            f"rope scaling with {odd}": rope_type == "llama3" and odd,
            "a rotary embedding of part of a head": values.get("partial_rotary_factor", 1) != 1,
            "sliding-window attention": window or "sliding" in str(values.get("layer_types")),
            "a quantized checkpoint": values.get("quantization_config") is not None,
            f"hidden_act {values.get('hidden_act')!r}": values.get("hidden_act", "silu") != "silu",
            "an MLP with biases": values.get("mlp_bias", False),
            f"architecture {architecture}": not architecture.endswith(kinds),
        }
        if present := [what for what, found in refused.items() if found]:
            raise InputError(f"{present[0]} is not supported")
        names = {f.name for f in fields(cls)} - {"extra", "score_head", "rope_scaling"}
        known = {k: v for k, v in values.items() if k in names and v is not None}
        if rope.get("rope_theta") is not None:  # transformers 5 has it here
            known["rope_theta"] = rope["rope_theta"]
        others = names | {"rope_parameters", "rope_scaling"}
        return cls(
            **known,
            rope_scaling={} if rope_type == "default" else {**scaling, "rope_type": rope_type},
            score_head=architecture.endswith("ForSequenceClassification"),
            extra={k: v for k, v in values.items() if k not in others},
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder/config.json` so that `transformers` builds the same model."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        extra, score_head = dict(values.pop("extra")), values.pop("score_head")
        if self.model_type == "qwen2":
            del values["attention_bias"]  # not Qwen2Config's to choose
        kind = "ForSequenceClassification" if score_head else "ForCausalLM"
        extra |= {"architectures": [ARCHITECTURES[self.model_type] + kind]}
        if score_head:
            extra |= {"num_labels": 1}
        values["rope_scaling"] = self.rope_scaling or None
        write_json(Path(folder) / "config.json", {"hidden_act": "silu", **extra, **values})


# ------------------------------------------------------------------------------- weights in and out


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of every tensor of a safetensors file, all of whose bytes are there."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            return {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated or no safetensors file: {error}") from None


def find_tensors(folder: Path, wanted: dict[str, tuple[int, ...]]) -> dict[str, Path]:
    """The file of every tensor of a model folder, which must have exactly the `wanted` shapes."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    first = next(iter(wanted))
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{index}: no weight_map")
        files = {name: folder / Path(str(file)).name for name, file in weight_map.items()}
    elif single.is_file():
        files = dict.fromkeys(read_header(single), single)
    else:
        raise InputError(f"{folder}: no model.safetensors and no index (wanted: {first}, …)")
    if missing := [name for name in wanted if name not in files]:
        raise InputError(f"{folder}: missing tensor {missing[0]} ({len(missing)} missing in all)")
    # A checkpoint may carry a copy of a tied head, and old ones the rotary frequencies. Anything
    # else that we do not know is an error.
    derived = ("lm_head.weight", "rotary_emb.inv_freq")
    if odd := [name for name in files if name not in wanted and not name.endswith(derived)]:
        raise InputError(f"{folder}: unexpected tensor {odd[0]} ({len(odd)} unexpected in all)")
    files = {name: files[name] for name in wanted}
    for path in dict.fromkeys(files.values()):
        names = [name for name in wanted if files[name] == path]
        if not path.is_file():
            raise InputError(f"{path}: missing file, wanted for tensor {names[0]}")
        header = read_header(path)
        for name in names:
            if name not in header:
                raise InputError(f"{path}: missing tensor {name}, which the index puts here")
            dtype, shape = header[name]
            if dtype not in ("F64", "F32", "F16", "BF16"):
                raise InputError(f"{path}: {name} is {dtype}, expected floating point")
            if shape != wanted[name]:
                asked = wanted[name]
                raise InputError(f"{path}: {name} has shape {shape}, config.json asks for {asked}")
    return files


def save_model(model: Transformer, folder: Path, dtype: torch.dtype | None) -> None:
    """Write what `Transformer.from_pretrained` and `transformers` read."""
    whole = model.state_dict()
    state = {name: whole[name] for name in model.tensor_names()}
    dtype = dtype or next(iter(state.values())).dtype
    writes = is_main_process() or not any(isinstance(t, DTensor) for t in state.values())
    shards: list[list[str]] = [[]]
    sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in state.items()}
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > MAX_SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    files = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        index.unlink(missing_ok=True)  # before any shard that it names is replaced
        model.config.extra.pop("dtype", None)  # transformers computes in the dtype it finds here
        model.config.extra["torch_dtype"] = str(dtype).removeprefix("torch.")
        model.config.save_pretrained(folder)
    for file, names in zip(files, shards):
        tensors = {}
        for name in names:
            full = state[name]
            full = full.full_tensor() if isinstance(full, DTensor) else full
            if writes:
                tensors[name] = full.detach().to("cpu", dtype).contiguous()
        if writes:
            save_tensors(tensors, folder / file)
    if writes:  # what an earlier model left in the folder must not be taken for this one's
        if len(shards) > 1:
            weight_map = {name: file for file, names in zip(files, shards) for name in names}
            total = {"total_size": sum(sizes.values())}
            write_json(index, {"metadata": total, "weight_map": weight_map})
        for pattern in WEIGHTS:
            for path in set(folder.glob(pattern)) - {folder / file for file in files}:
                path.unlink()


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, which appears whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.touch()  # with the rights of any new file: safetensors would make it private
    mode = partial.stat().st_mode
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(f"{path} cannot be written: {error}") from None
    partial.chmod(mode)
    os.replace(partial, path)
