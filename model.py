"""A Qwen2 / Qwen2.5 / Qwen3 decoder, its safetensors, its KV cache and its tokenizer, by hand.

Parameter names are Hugging Face's, so a checkpoint is its state dict and nothing is translated.

Shapes: B rows, T new tokens, S cached tokens, C hidden size, H query heads, K key/value heads,
D head size, V vocabulary.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
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

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
MAX_SHARD_BYTES = 5 * 10**9
MAX_HEADER_BYTES = 100 * 10**6  # the safetensors format's own limit


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
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    attention_bias: bool | None = None  # q, k and v have a bias; None: the model type decides
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {"int": (int,), "float": (int, float)}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type in kinds and not (type(value) in kinds[f.type] and value >= 0):
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
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )

    @property
    def qk_norm(self) -> bool:
        """Qwen3 normalises every query and key head before the rotary embedding."""
        return self.model_type == "qwen3"

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Config:
        """Read `folder/config.json`; refuse by name what this decoder would compute wrongly."""
        path = Path(folder) / "config.json"
        values = read_json(path)
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise InputError(f"{path}: rope scaling is {rope!r}, expected an object")
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        refused = {
            f"rope scaling {rope_type!r}": rope_type != "default",
            "sliding-window attention": values.get("use_sliding_window", False),
            "a quantized checkpoint": values.get("quantization_config") is not None,
            f"hidden_act {values.get('hidden_act')!r}": values.get("hidden_act", "silu") != "silu",
        }
        for what, present in refused.items():
            if present:
                raise InputError(f"{path}: {what} is not supported")
        if "rope_theta" in rope:  # transformers 5 moved it here
            values.setdefault("rope_theta", rope["rope_theta"])
        names = {f.name for f in fields(cls)} - {"extra"}
        known = {k: v for k, v in values.items() if k in names and v is not None}
        if known.get("model_type") == "qwen2":
            known["attention_bias"] = True  # Qwen2 always has it; its config does not say so
        try:
            return cls(**known, extra={k: v for k, v in values.items() if k not in names})
        except (InputError, TypeError) as error:
            raise InputError(f"{path}: {error}") from None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder/config.json` so that `transformers` builds the same model."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        if self.model_type == "qwen2":
            del values["attention_bias"], values["head_dim"]  # not Qwen2Config's to choose
        defaults = {"architectures": [ARCHITECTURES[self.model_type]], "hidden_act": "silu"}
        write_json(Path(folder) / "config.json", {**defaults, **self.extra, **values})


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


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position · theta^(−2i/D), in fp32: (B, T) -> two of (B, T, 1, D/2)."""
    i = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, :, None, None].float() * theta ** (-i / head_dim)
    return angles.cos(), angles.sin()


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
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)
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
    """A decoder-only language model of the Qwen family."""

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
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
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
        Returns (B, T, V), or, with `head`, whatever `head(hidden, logits)` returns for the final
        hidden states (B, T, C) and the function that turns some of them into logits: that is how
        a caller avoids (B, T, V) yet stays inside one forward pass, as FSDP needs.
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
        rope = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        x = self.model["embed_tokens"](ids)  # (B, T, C)
        for layer in self.model["layers"]:
            x = layer(x, rope, positions, cache, mask)
        x = self.model["norm"](x)
        if cache is not None:
            cache.lengths = past + ids.shape[1]
            cache.size += ids.shape[1]
        return self.logits(x) if head is None else head(x, self.logits)

    def logits(self, hidden: Tensor) -> Tensor:  # (..., C) -> (..., V)
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
        Tensors are mapped and copied one at a time, so the model is never held twice.
        """
        folder = Path(folder)
        with torch.device("meta"):
            model = cls(Config.from_pretrained(folder)).to(dtype)
        model.to_empty(device=device)
        model.tie_weights()  # to_empty gave the shared matrix two storages
        wanted = model.state_dict()
        for name, path, tensor in read_tensors(folder, model.tensor_names()):
            if not tensor.is_floating_point():
                raise InputError(f"{path}: {name} is {tensor.dtype}, expected floating point")
            if tensor.shape != wanted[name].shape:
                have, want = tuple(tensor.shape), tuple(wanted[name].shape)
                raise InputError(f"{path}: {name} has shape {have}, config.json asks for {want}")
            wanted[name].copy_(tensor)
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


def read_tensors(folder: Path, wanted: list[str]) -> Iterator[tuple[str, Path, Tensor]]:
    """Yield (name, file, tensor) for every wanted tensor of a model folder, none left over."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{index}: no weight_map")
        files = {name: folder / Path(str(file)).name for name, file in weight_map.items()}
    elif single.is_file():
        files = dict.fromkeys(safetensors_names(single), single)
    else:
        raise InputError(f"{folder}: no model.safetensors and no index (wanted: {wanted[0]}, …)")
    if missing := [name for name in wanted if name not in files]:
        raise InputError(f"{folder}: missing tensor {missing[0]} ({len(missing)} missing in all)")
    # A checkpoint may carry a copy of a tied head. Anything else that we do not know is an error.
    if odd := [name for name in files if name not in wanted and name != "lm_head.weight"]:
        raise InputError(f"{folder}: unexpected tensor {odd[0]} ({len(odd)} unexpected in all)")
    for path in dict.fromkeys(files[name] for name in wanted):
        names = [name for name in wanted if files[name] == path]
        if not path.is_file():
            raise InputError(f"{path}: missing file, wanted for tensor {names[0]}")
        present = safetensors_names(path)
        if missing := [name for name in names if name not in present]:
            raise InputError(f"{path}: missing tensor {missing[0]}, which the index puts here")
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise InputError(f"{path}: {error}") from None
        with file:
            for name in names:
                yield name, path, file.get_tensor(name)


def safetensors_names(path: Path) -> list[str]:
    """The tensors of a safetensors file, after checking that the file holds all of their bytes."""
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
            sorted(ends.values())
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise InputError(f"{path}: the safetensors header is malformed") from None
    for name, end in sorted(ends.items(), key=lambda item: item[1]):
        if end > size:
            raise InputError(f"{path}: truncated: {name} ends at byte {end}, the file at {size}")
    return list(ends)


# ------------------------------------------------------------------------------------ the tokenizer


class Tokenizer:
    """A `tokenizer.json` with the four mode tags as single tokens, and the chat format."""

    TAGS = ("<think>", "</think>", "<no_think>", "</no_think>")

    def __init__(self, backend: tokenizers.Tokenizer, eos_ids: list[int]) -> None:
        self.backend, self.eos_ids = backend, eos_ids
        self.files: list[Path] = []  # files beside tokenizer.json that describe it
        # Where the checkpoint lacks a tag, it becomes the next free id, whole wherever it appears.
        missing = [tag for tag in self.TAGS if backend.token_to_id(tag) is None]
        backend.add_tokens([tokenizers.AddedToken(tag, normalized=False) for tag in missing])
        self.added_ids = [backend.token_to_id(tag) for tag in missing]
        self.think_id, self.end_think_id, self.no_think_id, self.end_no_think_id = (
            backend.token_to_id(tag) for tag in self.TAGS
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json, and the end-of-sequence ids of generation_config or config.json."""
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
        eos = None
        for name in ("generation_config.json", "config.json"):
            if eos is None and (folder / name).exists():
                eos = read_json(folder / name).get("eos_token_id")
        if eos is None:
            raise InputError(f"{folder}: no eos_token_id in generation_config.json or config.json")
        eos_ids = eos if isinstance(eos, list) else [eos]
        tokenizer = cls(backend, eos_ids)
        if not eos_ids or not all(type(i) is int and 0 <= i < len(tokenizer) for i in eos_ids):
            raise InputError(f"{folder}: eos_token_id is {eos!r}, expected ids of its tokens")
        names = ("tokenizer_config.json", "generation_config.json", "chat_template.jinja")
        tokenizer.files = [folder / name for name in names if (folder / name).exists()]
        return tokenizer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer.json with the tags in it, and copy the files that came beside it."""
        folder = Path(folder)
        self.backend.save(str(folder / "tokenizer.json"))
        for path in self.files:
            if path.parent.resolve() != folder.resolve():
                shutil.copyfile(path, folder / path.name)

    def __len__(self) -> int:
        """One more than the highest id of any token."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; nothing is added to it."""
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except Exception as error:  # half a surrogate pair, or a word without a token
            raise InputError(f"cannot encode {text[:40]!r}: {error}") from None

    def decode(self, ids: list[int]) -> str:
        """Exact text of `ids`, tags and other special tokens included."""
        return self.backend.decode(ids, skip_special_tokens=False)

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a ChatML conversation, up to where the assistant's next answer begins."""
        turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
        return self.encode("".join(turns) + "<|im_start|>assistant\n")


# -------------------------------------------------------------------------------------- small tools


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
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
