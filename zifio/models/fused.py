"""The layers of a dense decoder in one call of C, for sampling; see kernels/blocks.c.

Only where every layer is plain: grouped-query attention, a dense feed-forward block, packed weights, no adapters.
`Decoder.forward` takes this way by itself; the result has the bits of the ordinary one.

Try it alone: `pytest tests/models/test_fused.py`
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from zifio.kernels import operators as kernels
from zifio.kernels.library import library
from zifio.models.attention import Cache, Geometry, GroupedQueryAttention
from zifio.models.layers import FeedForward, Linear, RMSNorm

_I, _P, _F = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, _I) for name in ("d", "n_heads", "n_key_heads", "d_head", "d_hidden")),
        *((name, _F) for name in ("eps", "scale")),
        *((name, _P) for name in ("input_norm", "q", "k", "v", "q_bias", "k_bias", "v_bias", "q_norm", "k_norm")),
        *((name, _P) for name in ("o", "o_bias", "post_norm", "gate", "up", "down", "keys", "values")),
    ]


class _Pass(ctypes.Structure):
    _fields_ = [
        ("n", _I),
        *((name, _P) for name in ("cosine", "sine", "page", "slot", "sequence", "position", "table")),
        ("table_width", _I),
        ("work", _P),
    ]


class _Whole(ctypes.Structure):
    _fields_ = [
        ("n_blocks", _I),
        ("blocks", _P),
        *((name, _I) for name in ("d", "half", "n_text", "n_codes", "n_positions")),
        ("eps", _F),
        *((name, _P) for name in ("text", "codes", "cosine", "sine", "norm")),
    ]


def is_plain(layer: nn.Module) -> bool:
    """Whether the C code knows all that this decoder block does."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if type(attention) is not GroupedQueryAttention or not attention.is_plain or type(mlp) is not FeedForward:
        return False
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return all(type(one) is Linear for one in linears) and mlp.gate_proj.bias is None


class FusedLayers:
    """A decoder's layers by address. Good as long as the packed weights are; `Decoder.pack` makes it anew."""

    def __init__(self, layers: list[Any]) -> None:
        self._blocks = (_Block * len(layers))(*(_block(layer) for layer in layers))
        first = self._blocks[0]
        shape = (first.d, first.n_heads, first.n_key_heads, first.d_head, first.d_hidden)
        self._work_per_token = kernels.blocks_work(*shape)
        self._d = first.d
        self._cache: Cache | None = None
        self._work = torch.empty(0)

    def run(self, x_BTD: Tensor, geometry: Geometry, cache: Cache) -> Tensor:
        """The residual stream behind the last layer; the cache has taken the new keys and values."""
        places = cache.places()
        assert places is not None, "asked before"
        self._point_at(cache)
        n, x = x_BTD.shape[0] * x_BTD.shape[1], x_BTD.clone()
        self._make_room(n * self._work_per_token)
        angles = (geometry.cos_BTr.data_ptr(), geometry.sin_BTr.data_ptr())
        addresses = (place.data_ptr() for place in places)
        one = _Pass(n, *angles, *addresses, places[-1].shape[1], self._work.data_ptr())
        loaded = library()
        assert loaded is not None
        loaded.blocks(len(self._blocks), ctypes.addressof(self._blocks), ctypes.addressof(one), x.data_ptr())
        return x

    def decode(
        self,
        columns: tuple[Tensor, Tensor, Tensor],
        tables: tuple[Tensor, Tensor | None],
        turns: tuple[Tensor, Tensor],
        norm: RMSNorm,
        cache: Cache,
    ) -> Tensor | None:
        """Normed hidden states [N, D] of one new token of each of N sequences; the cache has taken its key and value.

        `columns` are its number, its position and its sequence's table of pages [N, P], int64; `tables` what tokens are
        read as, those of text and behind them those of codes; `turns` cosines and sines by position. None, and nothing
        done, where a token or a position lies beyond the tables.
        """
        self._point_at(cache)
        token_N, position_N, table_NP = (column.contiguous() for column in columns)
        (text, codes), (cosine, sine) = tables, turns
        (n, width), half = table_NP.shape, cosine.shape[-1]
        self._make_room(n * (self._work_per_token + kernels.decode_work(half) + width))
        whole = _Whole(
            len(self._blocks), ctypes.addressof(self._blocks), self._d, half, len(text),
            0 if codes is None else len(codes), len(cosine), norm.eps or 0.0, text.data_ptr(), _address(codes),
            cosine.data_ptr(), sine.data_ptr(), norm.weight.data_ptr(),
        )  # fmt: skip
        loaded, hidden_ND = library(), torch.empty(n, self._d)
        assert loaded is not None
        where = (token_N.data_ptr(), position_N.data_ptr(), table_NP.data_ptr(), width)
        beyond = loaded.decode(ctypes.addressof(whole), n, *where, self._work.data_ptr(), hidden_ND.data_ptr())
        return None if beyond else hidden_ND

    def _point_at(self, cache: Cache) -> None:
        """Let the layers know where their keys and values are."""
        if cache is not self._cache:
            self._cache = cache
            for layer, block in enumerate(self._blocks):
                keys, values = cache.memory(layer)
                block.keys, block.values = keys.data_ptr(), values.data_ptr()

    def _make_room(self, n_floats: int) -> None:
        if self._work.numel() < n_floats:
            self._work = torch.empty(n_floats)


def _block(layer: Any) -> _Block:
    attention, mlp = layer.self_attn, layer.mlp
    config = attention.config
    norms = [_weight(norm) for norm in (attention.q_norm, attention.k_norm)]
    packed = {name: getattr(attention, f"{name}_proj").packed.data_ptr() for name in "qkvo"}
    bias = {name: _address(getattr(attention, f"{name}_proj").bias) for name in "qkvo"}
    return _Block(
        config.hidden_size, config.num_attention_heads, config.n_kv_heads, config.d_head, config.intermediate_size,
        config.rms_norm_eps, attention.scale, _weight(layer.input_layernorm), packed["q"], packed["k"], packed["v"],
        bias["q"], bias["k"], bias["v"], *norms, packed["o"], bias["o"], _weight(layer.post_attention_layernorm),
        mlp.gate_proj.packed.data_ptr(), mlp.up_proj.packed.data_ptr(), mlp.down_proj.packed.data_ptr(), None, None,
    )  # fmt: skip


def _weight(norm: nn.Module) -> int | None:
    return _address(norm.weight) if isinstance(norm, RMSNorm) else None


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
