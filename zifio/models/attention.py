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

from zifio.models.families import GroupedConfig, LatentConfig
from zifio.models.layers import RMSNorm
from zifio.models.rope import rotate, temperature


@runtime_checkable
class Cache(Protocol):
    """What a decoder needs of a cache; slot s of a row holds the token at position s."""

    def append(self, layer: int, positions_BT: Tensor, entries: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Store [B, T, ...] entries at their positions; return everything so far as [B, S, ...]."""
        ...

    def n_slots(self) -> int:
        """S: how many slots `append` returns."""
        ...


class Geometry(NamedTuple):
    """What all layers share in one forward pass."""

    positions_BT: Tensor
    cos_BTr: Tensor
    sin_BTr: Tensor
    visible_BTS: Tensor | None
    """True where a query may see a key; nothing means plain causal over T."""
    absorb: bool


def attend(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSX: Tensor, visible_BTS: Tensor | None, scale: float) -> Tensor:
    """softmax(q k^T scale) v as [B, H, T, X], through torch's fused attention.

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
            self.q_proj = nn.Linear(d, heads * config.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(d, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(d, config.kv_lora_rank + config.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank)
        self.kv_b_proj = nn.Linear(
            config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(heads * config.v_head_dim, d, bias=False)

    def forward(self, x_BTD: Tensor, geometry: Geometry, cache: Cache | None) -> Tensor:
        """Attention output [B, T, D]; new latents are appended to the cache when there is one."""
        q_BTHK, q_BTHR = self._queries(x_BTD, geometry)
        latent_BSX = self._latents(x_BTD, geometry)
        if cache is not None:
            (latent_BSX,) = cache.append(self.layer, geometry.positions_BT, (latent_BSX,))
        form = self._absorbed if geometry.absorb else self._expanded
        out_BTHX = form(q_BTHK, q_BTHR, latent_BSX, geometry.visible_BTS)
        return self.o_proj(out_BTHX.flatten(2))

    def _queries(self, x_BTD: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Queries without position [B, T, H, K] and rotated [B, T, H, R]."""
        config = self.config
        if config.q_lora_rank is None:
            q = self.q_proj(x_BTD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        q = q.unflatten(-1, (config.num_attention_heads, config.qk_head_dim))
        q_BTHK, q_BTHR = q.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        return q_BTHK, rotate(q_BTHR, geometry.cos_BTr, geometry.sin_BTr, interleaved=True)

    def _latents(self, x_BTD: Tensor, geometry: Geometry) -> Tensor:
        """What is cached per token: normed latent and rotated shared key, [B, T, C + R]."""
        config = self.config
        latent_BTC, k_BTR = self.kv_a_proj_with_mqa(x_BTD).split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        k_BTR = rotate(k_BTR[:, :, None], geometry.cos_BTr, geometry.sin_BTr, interleaved=True)[:, :, 0]
        return torch.cat([self.kv_a_layernorm(latent_BTC), k_BTR], dim=-1)

    def _expanded(self, q_BTHK: Tensor, q_BTHR: Tensor, latent_BSX: Tensor, visible_BTS: Tensor | None) -> Tensor:
        """Per-head keys and values from the latents, then ordinary attention; [B, T, H, v_head_dim]."""
        config = self.config
        latent_BSC, k_BSR = latent_BSX.split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        kv = self.kv_b_proj(latent_BSC).unflatten(-1, (config.num_attention_heads, -1))
        k_BSHK, v_BSHX = kv.split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)
        k_BSHR = k_BSR[:, :, None].expand(-1, -1, config.num_attention_heads, -1)
        q = torch.cat([q_BTHK, q_BTHR], dim=-1).transpose(1, 2)
        k = torch.cat([k_BSHK, k_BSHR], dim=-1).transpose(1, 2)
        return attend(q, k, v_BSHX.transpose(1, 2), visible_BTS, self.scale).transpose(1, 2)

    def _absorbed(self, q_BTHK: Tensor, q_BTHR: Tensor, latent_BSX: Tensor, visible_BTS: Tensor | None) -> Tensor:
        """The same with W_UK folded into the query and W_UV into the output; keys are the latents themselves."""
        config = self.config
        n_rows, n_now, heads = q_BTHK.shape[:3]
        up_HXC = self.kv_b_proj.weight.view(heads, -1, config.kv_lora_rank)
        up_key_HKC, up_value_HXC = up_HXC.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        q_BTHC = torch.einsum("bthk,hkc->bthc", q_BTHK, up_key_HKC)
        q_B_TH_X = torch.cat([q_BTHC, q_BTHR], dim=-1).flatten(1, 2)
        scores = torch.baddbmm(  # beta=0: the first argument is only a shape
            q_B_TH_X.new_empty(1, 1, 1), q_B_TH_X, latent_BSX.transpose(1, 2), beta=0, alpha=self.scale
        )
        scores_BTHS = scores.unflatten(1, (n_now, heads))
        if visible_BTS is None:
            visible_BTS = torch.ones(n_now, n_now, dtype=torch.bool, device=scores.device).tril()[None]
        scores_BTHS = scores_BTHS.masked_fill(~visible_BTS[:, :, None], float("-inf"))
        weights_B_TH_S = scores_BTHS.softmax(dim=-1).flatten(1, 2)
        out_B_TH_C = weights_B_TH_S @ latent_BSX[..., : config.kv_lora_rank]
        out_BTHC = out_B_TH_C.view(n_rows, n_now, heads, -1)
        return torch.einsum("bthc,hxc->bthx", out_BTHC, up_value_HXC)


class GroupedQueryAttention(nn.Module):
    """GQA: query heads share key/value heads in equal groups; the cache holds keys and values.

    Qwen2 adds biases to queries, keys and values; Qwen3 norms queries and keys per head, before they are rotated.
    """

    def __init__(self, config: GroupedConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        d, width = config.hidden_size, config.d_head
        self.scale = width**-0.5  # YaRN's temperature is DeepSeek's; here only its amplitude counts
        self.q_proj = nn.Linear(d, config.num_attention_heads * width, bias=config.has_qkv_bias)
        self.k_proj = nn.Linear(d, config.n_kv_heads * width, bias=config.has_qkv_bias)
        self.v_proj = nn.Linear(d, config.n_kv_heads * width, bias=config.has_qkv_bias)
        self.o_proj = nn.Linear(config.num_attention_heads * width, d, bias=config.has_o_bias)
        self.q_norm = RMSNorm(width, config.rms_norm_eps) if config.has_qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width, config.rms_norm_eps) if config.has_qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, geometry: Geometry, cache: Cache | None) -> Tensor:
        """Attention output [B, T, D]; new keys and values are appended to the cache when there is one."""
        config, cos_sin = self.config, (geometry.cos_BTr, geometry.sin_BTr)
        q_BTHK = rotate(self.q_norm(self.q_proj(x_BTD).unflatten(-1, (-1, config.d_head))), *cos_sin, interleaved=False)
        k_BSJK = rotate(self.k_norm(self.k_proj(x_BTD).unflatten(-1, (-1, config.d_head))), *cos_sin, interleaved=False)
        v_BSJK = self.v_proj(x_BTD).unflatten(-1, (-1, config.d_head))
        if cache is not None:
            k_BSJK, v_BSJK = cache.append(self.layer, geometry.positions_BT, (k_BSJK, v_BSJK))
        group = config.num_attention_heads // config.n_kv_heads
        if group > 1:
            k_BSJK, v_BSJK = (x.repeat_interleave(group, dim=2) for x in (k_BSJK, v_BSJK))
        q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSJK, v_BSJK))
        out_BHTK = attend(q, k, v, geometry.visible_BTS, self.scale)
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))
