"""Attention: multi-head latent attention (DeepSeek-V2, section 2.1; V3, equations 1-11) and grouped-query attention.

MLA compresses keys and values into one latent of rank C per token, plus one rotary key shared by all heads; the
cache holds only those C + R numbers. Two forms give the same result:

    expanded   latents are turned into per-head keys and values; cheapest per query when there are many (training)
    absorbed   the up-projections move to the query and the output, so attention runs on the latents themselves;
               cheapest when few queries meet a long cache (decoding)

Traps, from the released checkpoints: both latents pass an RMSNorm whose eps is 1e-6 whatever the model's is; the
norm covers the latent, not the rotary key; `kv_b_proj` interleaves [key, value] per head.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zifio.kernels import operators as kernels
from zifio.models.families import GroupedConfig, LatentConfig
from zifio.models.indexer import Ask, Indexer, attend_picked
from zifio.models.layers import Linear, RMSNorm
from zifio.models.linear_attention import Held, Order
from zifio.models.rope import rotate, temperature


@runtime_checkable
class Cache(Protocol):
    """What a decoder needs of a cache, which knows for itself which sequence each of the N new tokens continues."""

    latent: bool
    """Whether MLA stores latents (absorbed form) instead of every head's keys and values (expanded form)."""

    def attend(self, layer: int, q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, scale: float) -> Tensor:
        """Store the new keys and values; then every query's attention over its whole sequence so far, [N, H, X]."""
        ...

    def places(self) -> list[Tensor] | None:
        """Where the new tokens go, for kernels that compute whole layers: page, slot, sequence and position of each,
        and the sequences' tables of pages, all int32; None where the pages are not the kernels'."""
        ...

    def alone(self) -> Tensor | None:
        """The sequences' tables of pages, int64, where the pages are the kernels' and each sequence has one new token,
        in order; else None."""
        ...

    def memory(self, layer: int) -> tuple[Tensor, Tensor]:
        """All pages of a layer: keys and values."""
        ...

    def held(self, layer: int) -> Held:
        """What is kept for a layer of linear attention."""
        ...

    def attend_picked(self, layer: int, q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, scale: float, ask: Ask) -> Tensor:
        """As `attend`, for every query over the tokens alone that the indexer picks."""
        ...


class Geometry(NamedTuple):
    """What all layers share in one forward pass."""

    positions_BT: Tensor
    cos_BTr: Tensor
    sin_BTr: Tensor
    spans_M4: Tensor | None
    """Without a cache: what `spans_of` says."""
    absorb: bool
    """Whether MLA attends in its absorbed form."""
    order: Order | None = None
    """Without a cache, where there is linear attention: what `order_of` says."""


def branches_of(positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Where sequences begin, and where each token's last position 0 is: [B, T] booleans, [N] flat indices.

    A sequence begins wherever the position is not the one before plus one. If it begins at a position p > 0, it
    continues the first p tokens of the last one that began at 0: the samples of one prompt, which stands there once.
    """
    begins_BT = F.pad(positions_BT[:, 1:] != positions_BT[:, :-1] + 1, (1, 0), value=True)
    index_N = torch.arange(positions_BT.numel(), device=positions_BT.device)
    return begins_BT, torch.where(positions_BT.flatten() == 0, index_N, 0).cummax(0).values


def predecessors(positions_BT: Tensor) -> Tensor:
    """Flat index of the token before each token in its own sequence, [N]; meaningless at position 0."""
    begins_BT, root_N = branches_of(positions_BT)
    index_N = torch.arange(positions_BT.numel(), device=positions_BT.device)
    return torch.where(begins_BT.flatten(), root_N + positions_BT.flatten(), index_N) - 1


def spans_of(positions_BT: Tensor) -> Tensor:
    """(start, count, start of the prefix, its length) of every sequence, on the flattened axis N = B*T; [M, 4].

    The tokens of a prefix belong to another span, see `branches_of`.
    """
    begins_BT, root_N = branches_of(positions_BT)
    start_M = begins_BT.flatten().nonzero()[:, 0]
    count_M = torch.diff(start_M, append=start_M.new_tensor([positions_BT.numel()]))
    return torch.stack([start_M, count_M, root_N[start_M], positions_BT.flatten()[start_M]], dim=1)


class Laid(NamedTuple):
    """Spans side by side: T tokens of each, and the S that they may see, prefixes first."""

    index_MT: Tensor
    index_MS: Tensor
    visible_MTS: Tensor
    real_MT: Tensor
    """Whether there is a token."""


def laid(spans_M4: Tensor, window: int = 0) -> Laid:
    """Where each span's tokens stand, and which see which; some stand for none."""
    start_M1, count_M1, prefix_M1, n_prefix_M1 = spans_M4.split(1, dim=1)
    n = int(count_M1.sum())
    column_T = torch.arange(int(count_M1.max()), device=spans_M4.device)
    column_S = torch.arange(int((count_M1 + n_prefix_M1).max()), device=spans_M4.device)
    index_MT = (start_M1 + column_T).clamp(max=n - 1)
    index_MS = torch.where(column_S < n_prefix_M1, prefix_M1 + column_S, start_M1 + column_S - n_prefix_M1)
    position_MT1 = (n_prefix_M1 + column_T)[..., None]
    visible_MTS = column_S <= position_MT1
    if window:
        visible_MTS = visible_MTS & (column_S > position_MT1 - window)
    return Laid(index_MT, index_MS.clamp(max=n - 1), visible_MTS, column_T < count_M1)


def attend(q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, spans_M4: Tensor, scale: float, window: int = 0) -> Tensor:
    """Causal softmax(q k^T scale) v within each span and its prefix, as [N, H, X]; query heads share key/value heads
    in groups. With a window, over a query's last so many keys."""
    if kernels.native(q_NHK):
        return kernels.attention(q_NHK, k_NJK, v_NJX, spans_M4, scale, window)
    index_MT, index_MS, visible_MTS, real_MT = laid(spans_M4, window)
    is_plain = not window and not bool(spans_M4[:, 3].any())
    group = q_NHK.shape[1] // k_NJK.shape[1]
    q_MHTK = q_NHK[index_MT].transpose(1, 2)
    k_MHSK, v_MHSX = (x[index_MS].repeat_interleave(group, dim=2).transpose(1, 2) for x in (k_NJK, v_NJX))
    visible = None if is_plain else visible_MTS
    out_MTHX = fused_attention(q_MHTK, k_MHSK, v_MHSX, visible, scale).transpose(1, 2)
    return out_MTHX[real_MT]


def fused_attention(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSX: Tensor, visible_BTS: Tensor | None, scale: float) -> Tensor:
    """softmax(q k^T scale) v as [B, H, T, X] through torch's fused attention; no mask means plain causal.

    The fused CPU kernel wants equal key and value widths, so a narrower side is padded with zeros, which changes
    neither scores nor outputs.
    """
    d_key, d_value = q_BHTK.shape[-1], v_BHSX.shape[-1]
    if d_value < d_key:
        v_BHSX = F.pad(v_BHSX, (0, d_key - d_value))
    elif d_key < d_value:
        q_BHTK, k_BHSK = (F.pad(x, (0, d_value - d_key)) for x in (q_BHTK, k_BHSK))
    mask = None if visible_BTS is None else visible_BTS[:, None]
    out = F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSX, attn_mask=mask, is_causal=mask is None, scale=scale)
    return out[..., :d_value]


class LatentAttention(nn.Module):
    """MLA. Cache entries per token: the normed latent [C] and the rotated shared key [R], as one vector [C + R]."""

    def __init__(self, config: LatentConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        d, heads = config.hidden_size, config.num_attention_heads
        self.scale = config.qk_head_dim**-0.5 * temperature(config.rope_scaling)
        if config.q_lora_rank is None:
            self.q_proj = Linear(d, heads * config.qk_head_dim)
        else:
            self.q_a_proj = Linear(d, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank)
            self.q_b_proj = Linear(config.q_lora_rank, heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(d, config.kv_lora_rank + config.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank)
        self.kv_b_proj = Linear(config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim))
        self.o_proj = Linear(heads * config.v_head_dim, d)
        self.indexer = _indexer(config, layer)

    def forward(self, x_BTD: Tensor, geometry: Geometry, cache: Cache | None) -> Tensor:
        """Attention output [B, T, D]; what the new tokens leave for later ones goes to the cache when there is one."""
        q_BTHK, q_BTHR, query_BTQ = self._queries(x_BTD, geometry)
        latent_BTX = self._latents(x_BTD, geometry)
        ask = None if self.indexer is None else self.indexer(x_BTD, query_BTQ, geometry.cos_BTr, geometry.sin_BTr)
        seen = Seen(geometry, cache, 0, ask)
        form = self._absorbed if geometry.absorb else self._expanded
        out_NHX = form(q_BTHK.flatten(0, 1), q_BTHR.flatten(0, 1), latent_BTX.flatten(0, 1), seen)
        return self.o_proj(out_NHX.flatten(1).unflatten(0, x_BTD.shape[:2]))

    def _queries(self, x_BTD: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
        """Queries without position [B, T, H, K] and rotated [B, T, H, R], and what they are made from."""
        config, query_BTQ = self.config, x_BTD
        if config.q_lora_rank is None:
            q = self.q_proj(x_BTD)
        else:
            query_BTQ = self.q_a_layernorm(self.q_a_proj(x_BTD))
            q = self.q_b_proj(query_BTQ)
        q = q.unflatten(-1, (config.num_attention_heads, config.qk_head_dim))
        q_BTHK, q_BTHR = q.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        return q_BTHK, rotate(q_BTHR, geometry.cos_BTr, geometry.sin_BTr, interleaved=True), query_BTQ

    def _latents(self, x_BTD: Tensor, geometry: Geometry) -> Tensor:
        """What is cached per token: normed latent and rotated shared key, [B, T, C + R]."""
        config = self.config
        latent_BTC, k_BTR = self.kv_a_proj_with_mqa(x_BTD).split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        k_BTR = rotate(k_BTR[:, :, None], geometry.cos_BTr, geometry.sin_BTr, interleaved=True)[:, :, 0]
        return torch.cat([self.kv_a_layernorm(latent_BTC), k_BTR], dim=-1)

    def _expanded(self, q_NHK: Tensor, q_NHR: Tensor, latent_NX: Tensor, seen: Seen) -> Tensor:
        """Per-head keys and values from the latents, then ordinary attention; [N, H, v_head_dim]."""
        config = self.config
        latent_NC, k_NR = latent_NX.split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        kv = self.kv_b_proj(latent_NC).unflatten(-1, (config.num_attention_heads, -1))
        k_NHK, v_NHX = kv.split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)
        k_NHR = k_NR[:, None].expand(-1, config.num_attention_heads, -1)
        q, k = torch.cat([q_NHK, q_NHR], dim=-1), torch.cat([k_NHK, k_NHR], dim=-1)
        return _attend(self.layer, q, k, v_NHX, self.scale, seen)

    def _absorbed(self, q_NHK: Tensor, q_NHR: Tensor, latent_NX: Tensor, seen: Seen) -> Tensor:
        """The same with W_UK folded into the query and W_UV into the output: one key head, the latents themselves."""
        config = self.config
        up_HXC = self.kv_b_proj.weight.view(config.num_attention_heads, -1, config.kv_lora_rank)
        up_key_HKC, up_value_HXC = up_HXC.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        q_NHX = torch.cat([torch.einsum("nhk,hkc->nhc", q_NHK, up_key_HKC), q_NHR], dim=-1)
        latent_N1X = latent_NX[:, None]
        out_NHC = _attend(self.layer, q_NHX, latent_N1X, latent_N1X[..., : config.kv_lora_rank], self.scale, seen)
        return torch.einsum("nhc,hxc->nhx", out_NHC, up_value_HXC)


class GroupedQueryAttention(nn.Module):
    """GQA: query heads share key/value heads in equal groups; the cache holds keys and values.

    Qwen2 adds biases to queries, keys and values; Qwen3 norms queries and keys per head, before they are rotated.
    Qwen3-Next rotates a part of each head, and multiplies the output by a gate that the query's projection makes.
    """

    def __init__(self, config: GroupedConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        d, width = config.hidden_size, config.d_head
        self.scale = width**-0.5  # YaRN's temperature is DeepSeek's; here only its amplitude counts
        n_query = config.num_attention_heads * width * (2 if config.has_output_gate else 1)
        self.q_proj = Linear(d, n_query, bias=config.has_qkv_bias)
        self.k_proj = Linear(d, config.n_kv_heads * width, bias=config.has_qkv_bias)
        self.v_proj = Linear(d, config.n_kv_heads * width, bias=config.has_qkv_bias)
        self.o_proj = Linear(config.num_attention_heads * width, d, bias=config.has_o_bias)
        centred, has_norm = config.has_centred_norms, config.has_qk_norm
        self.q_norm = RMSNorm(width, config.rms_norm_eps, centred) if has_norm else nn.Identity()
        self.k_norm = RMSNorm(width, config.rms_norm_eps, centred) if has_norm else nn.Identity()
        self.window = config.window if config.mixer(layer) == "sliding_attention" else 0
        self.indexer = _indexer(config, layer)

    @property
    def is_plain(self) -> bool:
        """Whether it is Llama's or Qwen3's: no window, no indexer, no gate, whole heads rotated."""
        config = self.config
        is_whole = config.d_rotary == config.d_head and not config.has_centred_norms
        return not self.window and self.indexer is None and not config.has_output_gate and is_whole

    def forward(self, x_BTD: Tensor, geometry: Geometry, cache: Cache | None) -> Tensor:
        """Attention output [B, T, D]; new keys and values go to the cache when there is one."""
        config, gate_BTHK = self.config, None
        q_BTHK = self.q_proj(x_BTD).unflatten(-1, (config.num_attention_heads, -1))
        if config.has_output_gate:
            q_BTHK, gate_BTHK = q_BTHK.chunk(2, dim=-1)
        q_BTHK = _rotate_part(self.q_norm(q_BTHK), geometry, config.d_rotary)
        k_BTJK = _rotate_part(
            self.k_norm(self.k_proj(x_BTD).unflatten(-1, (-1, config.d_head))), geometry, config.d_rotary
        )
        v_BTJK = self.v_proj(x_BTD).unflatten(-1, (-1, config.d_head))
        ask = None if self.indexer is None else self.indexer(x_BTD, x_BTD, geometry.cos_BTr, geometry.sin_BTr)
        q_NHK, k_NJK, v_NJK = (x.flatten(0, 1) for x in (q_BTHK, k_BTJK, v_BTJK))
        out_NHK = _attend(self.layer, q_NHK, k_NJK, v_NJK, self.scale, Seen(geometry, cache, self.window, ask))
        if gate_BTHK is not None:
            out_NHK = out_NHK * kernels.sigmoid(gate_BTHK.flatten(0, 1))
        return self.o_proj(out_NHK.flatten(1).unflatten(0, x_BTD.shape[:2]))


def _rotate_part(x_BTHK: Tensor, geometry: Geometry, d_rotary: int) -> Tensor:
    """The leading part of every head rotated."""
    if x_BTHK.shape[-1] == d_rotary:
        return rotate(x_BTHK, geometry.cos_BTr, geometry.sin_BTr, interleaved=False)
    turned, rest = x_BTHK.tensor_split([d_rotary], dim=-1)
    return torch.cat([rotate(turned, geometry.cos_BTr, geometry.sin_BTr, interleaved=False), rest], dim=-1)


def _indexer(config: LatentConfig | GroupedConfig, layer: int) -> Indexer | None:
    if config.mixer(layer) != "indexed_attention":
        return None
    assert config.indexer is not None, "the config has no shape of indexers"
    return Indexer(config.indexer, config.hidden_size)


class Seen(NamedTuple):
    """What decides which keys a query sees, and where they are."""

    geometry: Geometry
    cache: Cache | None
    window: int
    ask: Ask | None


def _attend(layer: int, q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, scale: float, seen: Seen) -> Tensor:
    if seen.cache is not None and seen.ask is not None:
        return seen.cache.attend_picked(layer, q_NHK, k_NJK, v_NJX, scale, seen.ask)
    if seen.cache is not None:  # which knows of windows
        return seen.cache.attend(layer, q_NHK, k_NJK, v_NJX, scale)
    spans_M4 = seen.geometry.spans_M4
    assert spans_M4 is not None, "spans are there whenever no cache is"
    if seen.ask is not None:
        return attend_picked(q_NHK, k_NJK, v_NJX, laid(spans_M4), scale, seen.ask)
    return attend(q_NHK, k_NJK, v_NJX, spans_M4, scale, seen.window)
