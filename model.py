"""A Qwen2 / Qwen2.5 / Qwen3 / Llama decoder, its safetensors, KV cache, tokenizer and chat format.

Parameter names are Hugging Face's, so a checkpoint is its state dict and nothing is translated.

Shapes: B rows, T new tokens, S cached tokens, C hidden size, H query heads, K key/value heads,
D head size, V vocabulary.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

ARCHITECTURES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}
ROPE_SCALING = {  # by rope_type, the keys that we interpret
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "truncate",
    },
}
MAX_SHARD_BYTES = 5 * 10**9
MAX_HEADER_BYTES = 100 * 10**6  # the safetensors format's own limit
MAX_SETTING, MAX_LAYERS = 10**8, 10**4  # of a number in config.json
COPY_BYTES = 16 * 2**20  # of a tensor, mapped and copied at a time
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 0}  # how the paper samples its models


class InputError(ValueError):
    """Something the user gave us is wrong. Commands print it as one line and exit with code 2."""


# ------------------------------------------------------------------------------------ configuration


@dataclass
class Config:
    """The fields of a Hugging Face `config.json` that decide what is computed.

    Keys that we do not interpret are carried in `extra` and written back by `save_pretrained`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    model_type: str = "qwen2"
    num_key_value_heads: int = 0  # 0: as many as query heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] = field(default_factory=dict)  # one of ROPE_SCALING; {}: none
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    attention_bias: bool | None = None  # q, k and v have a bias; None: the model type decides
    score_head: bool = False  # a reward model: one number in place of the vocabulary's logits
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {"int": (int,), "float": (int, float)}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type in kinds and not (type(value) in kinds[f.type] and 0 <= value <= MAX_SETTING):
                raise InputError(f"{f.name} is {value!r}, expected a positive {f.type}")
            if f.type == "bool" and type(value) is not bool:
                raise InputError(f"{f.name} is {value!r}, expected true or false")
        if self.model_type not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise InputError(f"model_type {self.model_type!r} is not supported (we do: {known})")
        if not self.num_attention_heads or not self.rope_theta:
            raise InputError("num_attention_heads and rope_theta must not be 0")
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if self.attention_bias is None:
            self.attention_bias = self.model_type == "qwen2"
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
        if empty := [name for name in sizes if not getattr(self, name)]:
            raise InputError(f"{empty[0]} must not be 0")
        if self.head_dim % 2 or self.head_dim > MAX_LAYERS or self.num_hidden_layers > MAX_LAYERS:
            raise InputError(
                f"head_dim must be even, it and num_hidden_layers at most {MAX_LAYERS}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        self.rotary_frequencies()  # refuses what makes no sense

    @property
    def qk_norm(self) -> bool:
        """Qwen3 normalises every query and key head before the rotary embedding."""
        return self.model_type == "qwen3"

    def rotary_frequencies(self) -> tuple[list[float], float]:
        """Radians that each pair of a head's dimensions turns by per position, (D/2,); and the
        factor on cos and sin.

        θ^(−2i/D), or, where `rope_scaling` makes a context longer than the model was trained on,
        slower by `factor` in the pairs that turn slowly. Those that turn fast tell neighbours apart
        and stay as they are, those between are mixed: by Llama 3's rule, or by YaRN's
        (arXiv 2309.00071), which also sharpens the attention.
        """
        size, rope = self.head_dim, self.rope_scaling
        plain = [self.rope_theta ** (-2 * i / size) for i in range(size // 2)]
        if not rope:
            return plain, 1.0
        numbers = {k: v for k, v in rope.items() if k not in ("rope_type", "truncate")}
        if not all(type(v) in (int, float) and 0 < v < math.inf for v in numbers.values()):
            raise InputError(f"rope scaling {rope}: expected positive numbers")
        context = rope.get("original_max_position_embeddings", self.max_position_embeddings)
        scale = 1.0
        try:
            factor = rope["factor"]
            if rope["rope_type"] == "llama3":
                low, high = rope["low_freq_factor"], rope["high_freq_factor"]
                if not low < high:
                    raise ValueError("low_freq_factor is not below high_freq_factor")
                turns = [context * f / (2 * math.pi) for f in plain]  # within the first context
                kept = [(n - low) / (high - low) for n in turns]
            else:

                def pair_that_turns(n: float) -> float:  # n times within the first context
                    return size / 2 * math.log(context / (n * 2 * math.pi), self.rope_theta)

                first = pair_that_turns(rope.get("beta_fast", 32))
                last = pair_that_turns(rope.get("beta_slow", 1))
                if rope.get("truncate", True):
                    first, last = math.floor(first), math.ceil(last)
                first, last = max(first, 0), min(last, size - 1)
                kept = [1 - (i - first) / (last - first or 1e-3) for i in range(size // 2)]
                scale = rope.get("attention_factor", 0.1 * math.log(max(factor, 1)) + 1)
            kept = [min(max(k, 0.0), 1.0) for k in kept]
            return [f * k + f / factor * (1 - k) for f, k in zip(plain, kept)], float(scale)
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"rope scaling {rope} makes no sense: {error!r}") from None

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
        rope = {k: v for k, v in rope.items() if v is not None} | {"rope_type": rope_type}
        theta = rope.pop("rope_theta", None)  # transformers 5 has it here
        rope.pop("type", None)
        if context := values.get("original_max_position_embeddings"):
            rope["original_max_position_embeddings"] = context
        odd_keys = sorted(set(rope) - {"rope_type"} - ROPE_SCALING.get(str(rope_type), set()))
        if window := values.get("use_sliding_window") and values.get("sliding_window", 1):
            # The layers from max_window_layers on have it.
            window = values.get("max_window_layers", 28) < values.get("num_hidden_layers", 0)
        architecture = str([*(values.get("architectures") or []), "ForCausalLM"][0])
        kinds = ("ForCausalLM", "ForSequenceClassification")
        refused = {
            f"rope scaling {rope_type!r}": rope_type not in ("default", *ROPE_SCALING),
            f"rope scaling with {odd_keys}": rope_type != "default" and odd_keys,
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
        if theta is not None:
            known["rope_theta"] = theta
        if known.get("model_type") == "qwen2":
            known["attention_bias"] = True  # Qwen2 always has it; its config does not say so
        others = names | {"rope_parameters", "rope_scaling"}
        return cls(
            **known,
            rope_scaling={} if rope_type == "default" else rope,
            score_head=architecture.endswith("ForSequenceClassification"),
            extra={k: v for k, v in values.items() if k not in others},
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder/config.json` so that `transformers` builds the same model."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        extra, score_head = values.pop("extra"), values.pop("score_head")
        if self.model_type == "qwen2":
            del values["attention_bias"]  # not Qwen2Config's to choose
        kind = "ForSequenceClassification" if score_head else "ForCausalLM"
        architecture = {"architectures": [ARCHITECTURES[self.model_type] + kind]}
        if score_head:
            architecture |= {"num_labels": 1}
        values["rope_scaling"] = self.rope_scaling or None
        write_json(
            Path(folder) / "config.json",
            {"hidden_act": "silu", **extra, **architecture, **values},
        )


# ---------------------------------------------------------------------------------------- the model


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension; the root mean square in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (..., size) -> same
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return x32.to(x.dtype) * self.weight


def rotary_angles(positions: Tensor, frequencies: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """cos and sin of each angle, times `scale`: (B, T), (D/2,) -> two of (B, T, 1, D/2), fp32."""
    angles = positions[:, :, None, None].float() * frequencies
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: turn the pair (x_i, x_{i+D/2}) by its angle. x: (B, T, heads, D)."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class KVCache:
    """Keys and values of the tokens seen so far, passed to `Transformer.forward` as an argument.

    Row b holds `lengths[b]` tokens in slots 0 … lengths[b]−1, and token p of a row lies in slot p,
    whatever the other rows hold. Slots past a row's length may hold the padding of a ragged batch:
    no query ever sees a slot past its own position, and the row's next token overwrites it.
    """

    def __init__(self, batch_size: int, device: torch.device | str = "cpu") -> None:
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)  # (B,)
        self.size = 0  # slots in use in the fullest row: known to Python, so no device sync
        self.layers: dict[int, list[Tensor]] = {}  # layer -> [keys, values], each (B, slots, K, D)

    def append(
        self, layer: int, keys: Tensor, values: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store (B, T, K, D) at `positions` (B, T); returns all keys and values: (B, S, K, D)."""
        used = self.size + keys.shape[1]
        if layer not in self.layers:
            self.layers[layer] = [keys.new_zeros(keys.shape[0], 0, *keys.shape[2:])] * 2
        rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
        for i, new in enumerate((keys, values)):
            store = self.layers[layer][i]
            if used > store.shape[1]:  # grow by a half at least: appending stays linear in time
                slots = max(used, store.shape[1] * 3 // 2, 32) - store.shape[1]
                store = F.pad(store, (0, 0, 0, 0, 0, slots))
                self.layers[layer][i] = store
            store[rows, positions] = new
        keys, values = self.layers[layer]
        return keys[:, :used], values[:, :used]

    def select(self, rows: Tensor) -> None:
        """Keep `rows` in that order; one named several times is copied (prefill once, fan out)."""
        self.lengths = self.lengths[rows]
        self.layers = {n: [x[rows, : self.size] for x in kv] for n, kv in self.layers.items()}


class Attention(nn.Module):
    """Causal attention in which groups of H/K query heads share a key/value head."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        inner, shared = (
            n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads)
        )
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=bias)
        out_bias = bias and config.model_type != "qwen2"  # Llama and Qwen3: on all four or on none
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=out_bias)
        norm = RMSNorm if config.qk_norm else lambda *_: nn.Identity()
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
        if cache is not None:
            k, v = cache.append(self.layer, k, v, positions)  # (B, S, K, D)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=q.shape[2] != k.shape[2],
        )  # (B, H, T, D)
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


class Transformer(nn.Module):
    """A decoder-only language model of the Qwen and Llama families.

    A reward model has `score`, one number for each token, where others have `lm_head`.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        # Rows of the embedding from here on name no token (Qwen pads its vocabulary): logits −inf.
        self.num_tokens = config.vocab_size
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList(
                    Block(config, layer) for layer in range(config.num_hidden_layers)
                ),
                "norm": RMSNorm(config.hidden_size, config.rms_norm_eps),
            }
        )
        if config.score_head:
            self.score = nn.Linear(config.hidden_size, 1, bias=False)
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # Plain attributes: neither a checkpoint nor a change of dtype may touch them.
        frequencies, self.rope_scale = config.rotary_frequencies()
        self.frequencies = torch.tensor(frequencies, device="cpu")  # (D/2,)
        self.tie_weights()

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings and not self.config.score_head:
            self.lm_head.weight = self.model["embed_tokens"].weight

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
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        head: Callable[[Tensor, Callable[[Tensor], Tensor]], Any] | None = None,
    ) -> Any:
        """Logits of the token that follows each of `ids`.

        ids: (B, T) int64, rows right-padded where they are ragged. positions: (B, T), by default
        0 … T−1 after what the cache holds. With `cache`, keys and values are appended to it and
        every row's length grows by T; after a ragged prefill set `cache.lengths` yourself.
        Returns (B, T, V), or (B, T, 1) of a reward model; or, with `head`, whatever
        `head(hidden, logits)` returns for the final hidden states (B, T, C) and the function that
        turns some of them into logits: that is how a caller avoids (B, T, V) yet stays inside one
        forward pass, as FSDP needs.
        """
        past = None if cache is None else cache.lengths
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
            if past is not None:
                positions = positions + past[:, None]
        mask = None  # plain causal, unless some queries start after position 0
        if cache is not None and cache.size > 0:
            slots = torch.arange(cache.size + ids.shape[1], device=ids.device)
            mask = (slots <= positions[:, :, None])[:, None]  # (B, 1, T, S)
        if self.frequencies.device != ids.device:
            self.frequencies = self.frequencies.to(ids.device)
        rope = rotary_angles(positions, self.frequencies, self.rope_scale)
        x = self.model["embed_tokens"](ids)  # (B, T, C)
        for layer in self.model["layers"]:
            x = layer(x, rope, positions, cache, mask)
        x = self.model["norm"](x)
        if cache is not None:
            cache.lengths = past + ids.shape[1]
            cache.size += ids.shape[1]
        return self.logits(x) if head is None else head(x, self.logits)

    def logits(self, hidden: Tensor) -> Tensor:  # (..., C) -> (..., V), or (..., 1) of a score
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
        for table in [self.model["embed_tokens"]] + [self.lm_head] * (not tied):
            mean = table.weight[:first_added].mean(0)
            spare = self.num_tokens - table.weight.shape[0]
            if spare > 0:
                grown = torch.cat([table.weight, mean.expand(spare, -1)])
                table.weight = nn.Parameter(grown)
            for row in tokenizer.added_ids:
                table.weight[row] = mean
        self.config.vocab_size = self.model["embed_tokens"].weight.shape[0]
        self.tie_weights()

    # ------------------------------------------------------------------------------ in and out

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Transformer:
        """Load a Hugging Face model folder: one safetensors file, or shards with an index.

        Strict: a missing, unexpected, misshapen or cut-off tensor raises InputError with its name.
        Tensors are mapped and copied COPY_BYTES at a time, so the model is never held twice.
        """
        folder = Path(folder)
        with torch.device("meta"):
            model = cls(Config.from_pretrained(folder)).to(dtype)
        shapes = {name: tuple(model.state_dict()[name].shape) for name in model.tensor_names()}
        files = find_tensors(folder, shapes)
        model.to_empty(device=device)  # memory is taken only for what the files hold
        model.tie_weights()  # to_empty gave the shared matrix two storages
        state = model.state_dict()
        for name, path in files.items():
            copy_tensor(path, name, state[name])
        return model

    def tensor_names(self) -> list[str]:
        """What a checkpoint holds: the state dict, less the head that is tied to the embedding."""
        tied = {"lm_head.weight"} if self.config.tie_word_embeddings else set()
        return [name for name in self.state_dict() if name not in tied]

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and the weights, in `dtype` if given, in shards of at most 5 GB.

        Under FSDP every rank must call this, since each tensor is gathered in turn; rank 0 writes.
        Every file appears whole or not at all.
        """
        folder = Path(folder)
        state = self.state_dict()
        stored = dtype or next(iter(state.values())).dtype
        self.config.extra.pop("dtype", None)
        # transformers computes in the dtype that config.json names.
        self.config.extra["torch_dtype"] = str(stored).removeprefix("torch.")
        writes = not any(isinstance(t, DTensor) for t in state.values()) or is_main_process()
        shards: list[list[str]] = [[]]
        size = total = 0
        for name in self.tensor_names():
            bytes_ = state[name].numel() * (dtype or state[name].dtype).itemsize
            if shards[-1] and size + bytes_ > MAX_SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size, total = size + bytes_, total + bytes_
        weight_map = {}
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            self.config.save_pretrained(folder)
        for number, names in enumerate(shards, 1):
            file = "model.safetensors"
            if len(shards) > 1:
                file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = {}
            for name in names:
                full = state[name]
                full = full.full_tensor() if isinstance(full, DTensor) else full
                if writes:
                    tensors[name] = full.detach().to("cpu", dtype).contiguous()
                weight_map[name] = file
            if writes:
                partial = folder / f".{file}.partial"
                save_file(tensors, partial, metadata={"format": "pt"})
                shutil.copymode(folder / "config.json", partial)  # safetensors makes it private
                os.replace(partial, folder / file)
        if writes:  # what an earlier model left in the folder must not be taken for this one's
            index = folder / "model.safetensors.index.json"
            if len(shards) > 1:
                write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
            else:
                index.unlink(missing_ok=True)
            for path in folder.glob("model*.safetensors"):
                if path.name not in weight_map.values():
                    path.unlink()


def find_tensors(folder: Path, wanted: dict[str, tuple[int, ...]]) -> dict[str, Path]:
    """The file of every tensor of a model folder, after checking that they have the `wanted` names
    and shapes, and that there is no other."""
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


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every tensor of a safetensors file, all of whose bytes are there."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise InputError(f"{path}: truncated or no safetensors file: no whole header")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in header.items()}
            tensors = {name: (e["dtype"], tuple(e["shape"])) for name, e in header.items()}
            last = max(ends, key=lambda name: ends[name], default=None)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise InputError(f"{path}: the safetensors header is malformed") from None
    if last and ends[last] > size:
        first = min((n for n in ends if ends[n] > size), key=lambda name: ends[name])
        raise InputError(
            f"{path}: truncated: {first} ends at byte {ends[first]}, the file at {size}"
        )
    return tensors


def copy_tensor(path: Path, name: str, target: Tensor) -> None:
    """Copy a tensor of a safetensors file into `target`, converting its dtype.

    The file is opened anew for every COPY_BYTES: closing it lets go of the pages that were read.
    """
    step = max(1, COPY_BYTES // (target[0].numel() * target.element_size()))
    for start in range(0, len(target), step):
        try:
            with safe_open(path, framework="pt") as file:
                rows = slice(start, start + step)
                target[rows].copy_(file.get_slice(name)[rows])
        except SafetensorError as error:
            raise InputError(f"{path}: {error}") from None


# ---------------------------------------------------------------------------------- the chat format


@dataclass(frozen=True)
class ChatFormat:
    """How a conversation is written: what a checkpoint's chat template says, without its engine."""

    turns: dict[str, tuple[str, str]]  # role -> what stands before and after its message
    start: str = ""  # before everything
    default_system: str = ""  # system message of a conversation that brings none
    drops_reasoning: bool = True  # from answers before the last question
    openings: dict[bool, str] = field(  # of the next answer, by `enable_thinking`
        default_factory=lambda: {True: "<think>", False: "<no_think>"}
    )
    between: str = ""  # after an answer that other messages follow

    @property
    def end_of_turn(self) -> str:
        return self.turns["assistant"][1].strip()

    def render(
        self,
        messages: list[dict[str, str]],
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
    ) -> str:
        """The text of a conversation, by default up to where the assistant's next answer begins."""
        if self.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
        text = self.start
        for i, message in enumerate(messages):
            role, content = message["role"], message["content"]
            if role not in self.turns:
                raise InputError(f"unknown role {role!r}: expected {', '.join(self.turns)}")
            if self.drops_reasoning and role == "assistant" and i < max(questions, default=0):
                content = without_reasoning(content)
            text += self.turns[role][0] + content + self.turns[role][1]
            if role == "assistant" and i + 1 < len(messages):
                text += self.between
        if add_generation_prompt:
            text += self.turns["assistant"][0] + self.openings.get(enable_thinking, "")
        return text

    def template(self) -> str:
        """`render` as a Jinja template, which `transformers` and vLLM take from a model folder."""
        default = self.default_system and self.default_system.join(self.turns["system"])
        names = {
            "start": self.start,
            "default_system": default,
            "before": {role: before for role, (before, _) in self.turns.items()},
            "after": {role: after for role, (_, after) in self.turns.items()},
        }
        literals = {name: json.dumps(value, ensure_ascii=False) for name, value in names.items()}
        lines = [f"{{%- set {name} = {literal} %}}\n" for name, literal in literals.items()]
        return "".join(lines) + TEMPLATE

    @classmethod
    def from_template(
        cls, template: str, bos_token: str = "", eos_token: str = ""
    ) -> ChatFormat | None:
        """The format that a checkpoint's own template writes, or None if we do not know it.

        bos_token, eos_token: the texts that the tokenizer puts where the template names them.
        """
        ours = template.endswith(TEMPLATE)
        template = re.sub(r"{#.*?#}", "", template, flags=re.DOTALL)
        own: dict[str, Any] = {"drops_reasoning": "</think>" in template, "openings": {}}
        if r"<think>\n\n</think>\n\n" in template:  # Qwen3: an empty thought is no thought
            own["openings"] = {False: "<think>\n\n</think>\n\n"}
        if ours:
            own = {}
        if "<｜User｜>" in template:
            return cls(DEEPSEEK, start="<｜begin▁of▁sentence｜>", **own)
        # Quotes, spaces and ways of naming a field differ from checkpoint to checkpoint.
        compact = re.sub(r"\s", "", template.replace("\n", r"\n").replace('"', "'"))
        compact = re.sub(r"\['(\w+)'\]", r".\1", compact)
        written = re.findall(r"{{-?(.*?)-?}}", compact)
        literal_text = re.sub(r"{[{%].*?[%}]}", "", compact)
        if eos_token and not literal_text and set(written) - {"bos_token"} == TULU_EXPRESSIONS:
            turns = {**TULU, "assistant": (TULU["assistant"][0], eos_token)}
            start = bos_token if "bos_token" in written else ""
            return cls(turns, start, between="\n", **own)
        turn = r"'<\|im_start\|>'\+(\w+)\.role\+'\\n'\+\1\.content\+'<\|im_end\|>('\+')?\\n'"
        system = r"<\|im_start\|>system\\n'(?!-?}}|\+messages\[0\]\.content)"
        strange = re.search(rf"{system}|bos_token|\|trim", compact)
        if not ours and (strange or not re.search(turn, compact)):
            return None
        # The default system message stands in one string literal with the marks around it.
        literal = r"""(['"])<\|im_start\|>system(?:\\n|\n)((?:\\.|(?!\1)[^\\])+?)<\|im_end\|>"""
        found = re.search(literal, template)
        try:  # escapes as Jinja reads them
            default = found[2].encode("ascii", "backslashreplace") if found else b""
            return cls(CHATML, default_system=default.decode("unicode-escape"), **own)
        except UnicodeDecodeError:
            return None


CHATML = {
    role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")
}
DEEPSEEK = {  # DeepSeek-R1-Distill
    "system": ("", ""),
    "user": ("<｜User｜>", ""),
    "assistant": ("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
}
# Tülu 3 (arXiv 2411.15124). An answer ends with the eos_token, which differs among its checkpoints.
TULU = {role: (f"<|{role}|>\n", "\n") for role in ("system", "user", "assistant")}
TULU_EXPRESSIONS = {  # all that its template writes, in compact form
    *(rf"'<|{role}|>\n'+message.content+'\n'" for role in ("system", "user")),
    *(rf"'<|assistant|>\n'+message.content+eos_token{end}" for end in ("", r"+'\n'")),
    r"'<|assistant|>\n'",
}
TEMPLATE = """\
{%- if tools %}{{- raise_exception('this model has no tools') }}{%- endif %}
{{- start }}
{%- if messages[0].role != 'system' %}{{- default_system }}{%- endif %}
{%- set last = namespace(question=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set last.question = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role not in before %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
    {%- set text = message.content %}
    {%- if message.role == 'assistant' and loop.index0 < last.question %}
        {%- set text = text.split('</think>')[-1] %}
        {%- set text = text.replace('<no_think>', '').replace('</no_think>', '').strip() %}
    {%- endif %}
    {{- before[message.role] + text + after[message.role] }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- before.assistant }}
    {%- if enable_thinking is defined and enable_thinking is true %}
        {{- '<think>' }}
    {%- elif enable_thinking is defined and enable_thinking is false %}
        {{- '<no_think>' }}
    {%- endif %}
{%- endif %}"""


def without_reasoning(text: str) -> str:
    """The answer of a response, without its thinking and without tags."""
    text = text.split("</think>")[-1]
    return text.replace("<no_think>", "").replace("</no_think>", "").strip()


# ------------------------------------------------------------------------------------ the tokenizer


class Tokenizer:
    """A checkpoint's tokenizer and chat format, with the four mode tags as single tokens."""

    TAGS = ("<think>", "</think>", "<no_think>", "</no_think>")

    def __init__(
        self, backend: tokenizers.Tokenizer, eos_ids: list[int], chat: ChatFormat | None
    ) -> None:
        self.backend, self.eos_ids, self.chat = backend, eos_ids, chat
        self.settings: dict[str, Any] = {}  # tokenizer_config.json
        self.generation: dict[str, Any] = {}  # generation_config.json
        self.added_ids: list[int] = []

    def add_mode_tags(self) -> None:
        """Make every tag that the vocabulary lacks the next free id, whole wherever it appears."""
        missing = [tag for tag in self.TAGS if self.backend.token_to_id(tag) is None]
        if missing and len(self) != self.backend.get_vocab_size(with_added_tokens=True):
            raise InputError("tokenizer.json leaves out ids, so that no tag can be added")
        self.backend.add_tokens([tokenizers.AddedToken(tag, normalized=False) for tag in missing])
        self.added_ids = [self.backend.token_to_id(tag) for tag in missing]
        self.think_id, self.end_think_id, self.no_think_id, self.end_no_think_id = (
            self.backend.token_to_id(tag) for tag in self.TAGS
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, mode_tags: bool = True) -> Tokenizer:
        """Read tokenizer.json, and from the files beside it the chat format and the stop tokens.

        With `mode_tags` the checkpoint becomes one of ours: it has the tags, an answer ends with
        the token that ends a turn (which a base model's configuration does not name), and earlier
        answers are shown without their reasoning. Without, all this is as the checkpoint has it.
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
        chat = read_chat_format(folder, beside["tokenizer_config"])
        eos = beside["generation_config"].get("eos_token_id", beside["config"].get("eos_token_id"))
        eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
        if mode_tags:
            if chat is None or chat.between:  # which TEMPLATE could not write
                raise InputError(
                    f"{folder}: a chat template that is neither Qwen's ChatML nor DeepSeek's "
                    "(a folder without one gets ChatML)"
                )
            chat = ChatFormat(chat.turns, chat.start, chat.default_system)
            end = backend.token_to_id(chat.end_of_turn)
            eos_ids = ([] if end is None else [end]) + [i for i in eos_ids if i != end]
        tokenizer = cls(backend, eos_ids, chat)
        if mode_tags:
            tokenizer.add_mode_tags()
        valid = all(type(i) is int and 0 <= i < len(tokenizer) for i in eos_ids)
        if not valid or (mode_tags and not eos_ids):
            raise InputError(f"{folder}: eos_token_id is {eos!r}, expected ids of its tokens")
        tokenizer.settings = beside["tokenizer_config"]
        tokenizer.generation = beside["generation_config"]
        return tokenizer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer.json with the tags, and what `transformers` and vLLM need to use them:
        tokenizer_config.json with a chat template that knows `enable_thinking` (true opens
        <think>, false <no_think>; unset, the model chooses), and generation_config.json.
        """
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
        settings["chat_template"] = self.chat.template()
        carried = {
            k: v for k, v in self.generation.items() if k in ("bos_token_id", "pad_token_id")
        }
        generation = {**carried, "eos_token_id": self.eos_ids, "do_sample": True, **SAMPLING}
        self.backend.save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", settings)
        write_json(folder / "generation_config.json", generation)
        (folder / "chat_template.jinja").unlink(missing_ok=True)  # it would take precedence

    def __len__(self) -> int:
        """One more than the highest id of any token."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; nothing is added to it."""
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except Exception as error:  # half a surrogate pair, or a word without a token
            raise InputError(f"cannot encode {text[:40]!r}: {error}") from None

    def decode(self, ids: list[int]) -> str:
        """Exact text of `ids`, tags and other special tokens included."""
        return self.backend.decode(ids, skip_special_tokens=False)

    def encode_chat(self, messages: list[dict[str, str]], **options: bool | None) -> list[int]:
        """Token ids of `ChatFormat.render`."""
        if self.chat is None:
            raise InputError(
                "the checkpoint's chat template is neither ChatML nor DeepSeek's nor Tülu 3's"
            )
        return self.encode(self.chat.render(messages, **options))


def has_chat_template(folder: Path) -> bool:
    """Whether a checkpoint says how its prompts are written."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    return bool(settings.get("chat_template")) or (folder / "chat_template.jinja").exists()


def read_chat_format(folder: Path, settings: dict[str, Any]) -> ChatFormat | None:
    """The format of chat_template.jinja or of tokenizer_config.json; without either, ChatML."""
    template = settings.get("chat_template")
    if (path := folder / "chat_template.jinja").exists():
        template = path.read_text(encoding="utf-8", errors="replace")
    if isinstance(template, list):  # several by name
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        if not named:
            return None
        template = named[0].get("template")
    if not template:
        return ChatFormat(CHATML)
    tokens = (settings.get(name) or "" for name in ("bos_token", "eos_token"))
    texts = (token.get("content") if isinstance(token, dict) else token for token in tokens)
    return ChatFormat.from_template(str(template), *map(str, texts))


# -------------------------------------------------------------------------------------- small tools


def read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\u" in text:  # an escape may hide half a surrogate pair
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value


def write_json(path: Path, value: Any) -> None:
    """Atomically: whoever opens `path` sees the old file or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def is_main_process() -> bool:
    """True on rank 0 and where there is only one process."""
    return int(os.environ.get("RANK", "0")) == 0
