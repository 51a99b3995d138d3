"""Weights out of GGUF files, dequantized to fp32 and under Hugging Face's names.

llama.cpp turns one number per weight into blocks of 32 or more small integers with a common scale (the `gguf` package
undoes that), names tensors its own way, and for the Llama architecture stores the rows of the query and key
projections with the two halves of a rotary pair side by side: row (h, half, i) of Hugging Face is row (h, i, half)
there.

Try it alone: `python -m zifio.cli chat MODEL.gguf --prompt "What is the capital of France?"`
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from zifio.config import ConfigError, build
from zifio.gguf import GgufHeader, read_gguf_header
from zifio.models.config import FAMILIES, AnyConfig

# Architectures, by the name that they have in GGUF and in config.json alike, and whether q and k are permuted.
_ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False}

_SHAPE = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_SHAPE_IF_SAID = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
# Anything else in these fields would change the mathematics, so it is refused by name.
_NEUTRAL = {"expert_count": 0, "rope.scaling.type": "none"}

_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read_gguf(path: str | Path) -> tuple[AnyConfig, Mapping[str, Tensor]]:
    """The shape of a GGUF file's model, and its weights in fp32 under the names of a Hugging Face checkpoint.

    A weight is dequantized when it is asked for. Raises ConfigError for an architecture, a tensor or a quantization
    that is not supported, and for a file that is torn or lacks a field; what the model lacks of tensors,
    `models.weights.load_state` says.
    """
    header = read_gguf_header(path)
    return _config(header), _Weights(header)


class _Weights(Mapping[str, Tensor]):
    """The tensors of a file by Hugging Face's names, each made anew when it is asked for."""

    def __init__(self, header: GgufHeader) -> None:
        self.header, self.heads = header, _permuted_heads(header)
        data = np.memmap(header.path, np.uint8, mode="r")
        self.theirs = {_hugging_face_name(header, name): name for name in header.tensors}
        self.packed = {name: _packed(header, theirs, data) for name, theirs in self.theirs.items()}

    def __getitem__(self, name: str) -> Tensor:
        packed, kind = self.packed[name]
        n_heads = self.heads.get(name.split(".")[-2], 0)
        if n_heads and len(packed) % (2 * n_heads) == 0:  # a wrong shape is for `load_state` to name
            packed = _unpermuted(packed, n_heads)
        try:
            values = dequantize(packed, kind)
        except NotImplementedError:
            raise _unsupported(self.header, self.theirs[name], kind.name) from None
        return torch.from_numpy(np.require(values, np.float32, ["C", "W"]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.theirs)

    def __len__(self) -> int:
        return len(self.theirs)


def _config(header: GgufHeader) -> AnyConfig:
    """The model's shape as the fields of its family's config.json."""
    family = header.need("general.architecture")
    known = [name for name in _ARCHITECTURES if name in FAMILIES]
    if family not in known:
        raise ConfigError(
            f"{header.path}: general.architecture: wanted {' or '.join(known)}, came {family!r}. Take another model."
        )
    for key, neutral in _NEUTRAL.items():
        if (value := header.fields.get(f"{family}.{key}", neutral)) != neutral:
            raise ConfigError(
                f"{header.path}: {family}.{key} = {value!r} is not supported; wanted {neutral!r}. Take another model."
            )
    raw: dict[str, Any] = {ours: header.need(f"{family}.{key}") for key, ours in _SHAPE.items()}
    raw |= {o: header.fields[f"{family}.{k}"] for k, o in _SHAPE_IF_SAID.items() if f"{family}.{k}" in header.fields}
    raw |= {f"{t}_token_id": header.fields.get(f"tokenizer.ggml.{t}_token_id") for t in ("bos", "eos")}
    raw["pad_token_id"] = header.fields.get("tokenizer.ggml.padding_token_id")
    raw = {key: float(str(np.float32(value))) if isinstance(value, float) else value for key, value in raw.items()}
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or not embedding.shape:
        raise ConfigError(f"{header.path}: token_embd.weight: wanted this tensor, came none. Download the file again.")
    raw["vocab_size"] = embedding.shape[0]
    raw["tie_word_embeddings"] = "output.weight" not in header.tensors
    config = build(FAMILIES[family], raw, str(header.path))
    width = raw.get("head_dim", config.hidden_size // config.num_attention_heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if (value := header.fields.get(f"{family}.{key}", width)) != width:
            raise ConfigError(
                f"{header.path}: {family}.{key} = {value!r} is not supported; wanted the width of a head, {width}."
            )
    return config


def _permuted_heads(header: GgufHeader) -> dict[str, int]:
    """The projections whose rows llama.cpp has permuted, and how many heads each has."""
    family = header.fields["general.architecture"]
    n_heads = header.fields[f"{family}.attention.head_count"]
    n_kv_heads = header.fields.get(f"{family}.attention.head_count_kv", n_heads)
    return {"q_proj": n_heads, "k_proj": n_kv_heads} if _ARCHITECTURES[family] else {}


def _hugging_face_name(header: GgufHeader, name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    layer, stem, end = match.groups() if match else (None, "", "")
    ours = (_TENSORS if layer is None else _BLOCK_TENSORS).get(stem)
    family = header.fields["general.architecture"]
    n_layers = header.fields[f"{family}.block_count"]
    if ours is None or int(layer or 0) >= n_layers:
        raise ConfigError(
            f"{header.path}: tensor {name}: wanted those of a plain {family} model of {n_layers} layers, "
            "came one that stands for mathematics not implemented here. Take another model."
        )
    return f"{ours}.{end}" if layer is None else f"model.layers.{layer}.{ours}.{end}"


def _packed(header: GgufHeader, name: str, data: np.ndarray) -> tuple[np.ndarray, GGMLQuantizationType]:
    """The bytes of a tensor, its rows' in the last axis, and how they are quantized."""
    tensor = header.tensors[name]
    try:
        kind = GGMLQuantizationType(tensor.kind)
    except ValueError:
        raise _unsupported(header, name, f"type {tensor.kind}") from None
    block, size = GGML_QUANT_SIZES[kind]
    n_bytes = math.prod(tensor.shape) // block * size
    packed = data[tensor.offset : tensor.offset + n_bytes]
    if not tensor.shape or tensor.shape[-1] % block or len(packed) < n_bytes:
        raise ConfigError(
            f"{header.path}: {name}: wanted {n_bytes} bytes for {list(tensor.shape)} in {kind.name}, "
            f"came {len(packed)}. The file is torn: download it again."
        )
    return packed.reshape(*tensor.shape[:-1], tensor.shape[-1] // block * size), kind


def _unpermuted(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows in the order (head, half, i) from (head, i, half)."""
    pairs = rows.reshape(n_heads, len(rows) // n_heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _unsupported(header: GgufHeader, name: str, kind: str) -> ConfigError:
    supported = []
    for other, (_, size) in GGML_QUANT_SIZES.items():
        try:
            with np.errstate(all="ignore"):
                dequantize(np.zeros((1, size), np.uint8), other)
            supported.append(other.name)
        except NotImplementedError:
            pass
    return ConfigError(
        f"{header.path}: {name}: wanted a tensor in one of {', '.join(supported)}; came {kind}. "
        "Take another file of the model."
    )
