"""The paged cache: what attention keeps of every token, in pages that sequences share and give back.

A page holds PAGE consecutive tokens of one sequence, in every layer. A sequence is a list of pages, its table; equal
prefixes may share pages, so a group's prompt is stored once (PagedAttention, arXiv:2309.06180). Who owns which page is
not decided here but in `engine/pages.py`.

A token costs 2 J K numbers per layer with grouped-query attention. MLA stores either every head's expanded key and
value (`latent=False`: H (K + R + X) numbers, the trainer's own arithmetic) or the latent and the shared rotary key
(`latent=True`: C + R numbers, the paper's saving).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zifio.kernels import operators as kernels
from zifio.models.attention import fused_attention
from zifio.models.config import AnyConfig
from zifio.models.families import LatentConfig

PAGE = 32
"""Tokens of one page."""


class Entry(NamedTuple):
    """What one token leaves in one layer: `n_heads` keys of width `d_key` and values of width `d_value`."""

    n_heads: int
    d_key: int
    d_value: int


def entry_of(config: AnyConfig, latent: bool) -> Entry:
    """The entry of a model's attention layers."""
    if not isinstance(config, LatentConfig):
        return Entry(config.n_kv_heads, config.d_head, config.d_head)
    if latent:
        return Entry(1, config.kv_lora_rank + config.qk_rope_head_dim, config.kv_lora_rank)
    return Entry(config.num_attention_heads, config.qk_head_dim, config.v_head_dim)


def n_cached_layers(config: AnyConfig) -> int:
    """Layers that keep something: those of the model, and the MTP module's behind them."""
    return config.num_hidden_layers + config.n_mtp


def page_shapes(config: AnyConfig, latent: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of one page in one layer: its keys and its values. The kernels' pages are flat and padded to whole panels."""
    entry = entry_of(config, latent)
    plain = (PAGE, entry.n_heads, entry.d_key), (PAGE, entry.n_heads, entry.d_value)
    return kernels.page_sizes(*entry) or plain


def bytes_per_page(config: AnyConfig, latent: bool) -> int:
    """Memory of one page in all layers, fp32."""
    return 4 * n_cached_layers(config) * sum(map(math.prod, page_shapes(config, latent)))


class PagedCache:
    """Memory for `n_pages` pages; implements `models.attention.Cache`.

    Pages of the C kernels hold keys turned and values padded to whole panels (kernels/attention.c); without kernels
    they are plain [n_pages, PAGE, heads, width].
    """

    def __init__(self, config: AnyConfig, n_pages: int, latent: bool = False) -> None:
        self.latent, self._entry = latent, entry_of(config, latent)
        self._native, layers = kernels.page_sizes(*self._entry) is not None, n_cached_layers(config)
        self._keys, self._values = (
            kernels.memory(layers * n_pages * math.prod(shape)).view(layers, n_pages, *shape)
            for shape in page_shapes(config, latent)
        )
        if not self._native:  # the kernels read no slot before it is written; torch multiplies it by a weight of 0
            self._keys.zero_()
            self._values.zero_()

    def begin(self, table_MP: Tensor, first_M: Tensor, count_M: Tensor) -> None:
        """Announce a forward pass over the concatenation of `count_M[m]` tokens of each sequence m; all int64.

        Sequence m's new tokens stand at positions first_M[m], first_M[m] + 1, ...; the token at position p lives in
        slot p % PAGE of page table_MP[m, p // PAGE]; what a table holds beyond its sequence's end is not looked at.
        Pages of positions that are written must belong to m alone. The arrays must stay as they are during the pass.
        """
        self._table_MP, self._first_M, self._count_M = table_MP, first_M, count_M
        sequence_N = torch.arange(len(table_MP)).repeat_interleave(self._count_M)
        self._start_M = self._count_M.cumsum(0) - self._count_M
        position_N = torch.arange(len(sequence_N)) - self._start_M[sequence_N] + self._first_M[sequence_N]
        self._page_N, self._slot_N = self._table_MP[sequence_N, position_N // PAGE], position_N % PAGE
        places = (self._page_N, self._slot_N, sequence_N, position_N, table_MP)
        self._places = [place.int().contiguous() for place in places] if self._native else []

    def attend(self, layer: int, q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, scale: float) -> Tensor:
        """Store the new keys and values; then every query's attention over its whole sequence so far, [N, H, X]."""
        keys, values = self._keys[layer], self._values[layer]
        if self._native and kernels.native(q_NHK):
            page_N, slot_N, *indices = self._places
            kernels.store(k_NJK, v_NJX, page_N, slot_N, keys, values)
            return kernels.attend_pages(q_NHK, self._entry, scale, indices, keys, values)
        assert not self._native, "pages made for the kernels are read by them alone"
        return self._attend_plain(q_NHK, k_NJK, v_NJX, keys, values, scale)

    def places(self) -> list[Tensor] | None:
        """Page, slot, sequence and position of every new token, and the tables; None without kernels."""
        return self._places if self._native else None

    def memory(self, layer: int) -> tuple[Tensor, Tensor]:
        """All pages of a layer: keys and values."""
        return self._keys[layer], self._values[layer]

    def _attend_plain(
        self, q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, keys: Tensor, values: Tensor, scale: float
    ) -> Tensor:
        """The same with torch: the pages of every sequence gathered, then one masked attention."""
        keys[self._page_N, self._slot_N] = k_NJK
        values[self._page_N, self._slot_N] = v_NJX
        n_slots = int((self._first_M + self._count_M).max())
        used_MP = self._table_MP[:, : -(-n_slots // PAGE)]
        group = q_NHK.shape[1] // k_NJK.shape[1]
        k_MHSK, v_MHSX = (
            store[used_MP].flatten(1, 2).repeat_interleave(group, dim=2).transpose(1, 2) for store in (keys, values)
        )
        column_T = torch.arange(int(self._count_M.max()))
        index_MT = (self._start_M[:, None] + column_T).clamp(max=len(q_NHK) - 1)
        position_MT = self._first_M[:, None] + column_T
        visible_MTS = torch.arange(k_MHSK.shape[2]) <= position_MT[..., None]
        out = fused_attention(q_NHK[index_MT].transpose(1, 2), k_MHSK, v_MHSX, visible_MTS, scale)
        return out.transpose(1, 2)[column_T < self._count_M[:, None]]

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page in every layer, so that a sequence may write on after a prefix that it shared."""
        for store in (*self._keys, *self._values):
            store[target] = store[source]
