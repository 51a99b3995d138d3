"""The paged cache: what attention keeps of every token, in pages that sequences share and give back.

A page holds PAGE consecutive tokens of one sequence, in every layer. A sequence is a list of pages, its table; equal
prefixes may share pages, so a group's prompt is stored once (PagedAttention, arXiv:2309.06180). Who owns which page is
not decided here but in `engine/pages.py`.

A token costs 2 J K numbers per layer with grouped-query attention. MLA stores either every head's expanded key and
value (`latent=False`: H (K + R + X) numbers, the trainer's own arithmetic) or the latent and the shared rotary key
(`latent=True`: C + R numbers, the paper's saving).

On a CPU in fp32 the pages are the C kernels'. Elsewhere they are plain tensors: those of each sequence are gathered,
then torch's fused attention takes them. A group's query heads stand beside its queries there, so that no key is copied
for them; prompts' chunks are attended to apart from rows, which would be padded to their length.

Try it alone: `pytest tests/engine/test_cache.py`
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zifio.kernels import operators as kernels
from zifio.models.attention import fused_attention
from zifio.models.config import AnyConfig
from zifio.models.families import LatentConfig
from zifio.models.indexer import Ask
from zifio.models.linear_attention import Held

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
    """Layers that keep all keys and values for all queries: of the model's, and the MTP module's behind them."""
    return sum(config.mixer(layer) == "full_attention" for layer in range(config.num_hidden_layers + config.n_mtp))


CPU = torch.device("cpu")


def page_shapes(
    config: AnyConfig, latent: bool, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of one page in one layer: its keys and its values. The kernels' pages are flat and padded to whole panels."""
    entry = entry_of(config, latent)
    plain = (PAGE, entry.n_heads, entry.d_key), (PAGE, entry.n_heads, entry.d_value)
    return (kernels.page_sizes(*entry) if dtype is torch.float32 and device.type == "cpu" else None) or plain


def bytes_per_page(
    config: AnyConfig, latent: bool, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> int:
    """Memory of one page in all layers that have pages."""
    shapes = page_shapes(config, latent, dtype, device)
    return dtype.itemsize * (n_cached_layers(config) * sum(map(math.prod, shapes)) + picked_numbers(config, latent))


def picked_numbers(config: AnyConfig, latent: bool) -> int:
    """Numbers of one page in the layers that an indexer looks through (engine/picked.py)."""
    layers = range(config.num_hidden_layers + config.n_mtp)
    if config.indexer is None:
        return 0
    entry = entry_of(config, latent)
    width = entry.n_heads * (entry.d_key + entry.d_value) + config.indexer.d_head
    return PAGE * width * sum(config.mixer(layer) == "indexed_attention" for layer in layers)


class _Group(NamedTuple):
    """M sequences that the plain form attends to together, with at most T new tokens each."""

    table_MP: Tensor
    visible_MTS: Tensor
    """Whether the T-th new token of a sequence sees what its table holds in slot S."""
    token_MT: Tensor | None
    """Which of the pass's tokens that is; None where T is 1 and they stand in order."""
    places_2N: Tensor
    """Sequence and number in it of every token of the group."""


_ROW = 2  # new tokens of a row that is decoded, at most: its next one and a draft


class PagedCache:
    """Memory for `n_pages` pages; implements `models.attention.Cache`.

    Pages of the C kernels hold keys turned and values padded to whole panels (kernels/attention.c); without kernels
    they are plain [n_pages, PAGE, heads, width].
    """

    has_slots = False
    """Whether a pass must say in which slots of state its sequences are."""

    def __init__(
        self,
        config: AnyConfig,
        n_pages: int,
        latent: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
        *,
        layers: int | None = None,
        window: int = 0,
    ) -> None:
        """`dtype` and `device` are of what is kept; `layers` how many, if not the model's of full attention. With a
        window a query sees its last so many keys."""
        self._window = window
        self.latent, self.dtype, self.device, self._entry = latent, dtype, device, entry_of(config, latent)
        shapes = page_shapes(config, latent, dtype, device)
        layers = n_cached_layers(config) if layers is None else layers
        self._native = len(shapes[0]) == 1
        # The kernels read no slot before it is written; torch multiplies it by a weight of 0.
        self._keys, self._values = (
            kernels.memory(layers * n_pages * math.prod(shape)).view(layers, n_pages, *shape)
            if self._native
            else torch.zeros(layers, n_pages, *shape, dtype=dtype, device=device)
            for shape in shapes
        )

    def begin(self, table_MP: Tensor, first_M: Tensor, count_M: Tensor) -> None:
        """Announce a forward pass over the concatenation of `count_M[m]` tokens of each sequence m.

        All are int64 and on the CPU. Sequence m's new tokens stand at positions first_M[m], first_M[m] + 1, ...; the
        token at position p lives in slot p % PAGE of page table_MP[m, p // PAGE]; what a table holds beyond its
        sequence's end is not looked at. Pages of positions that are written must belong to m alone. The arrays must
        stay as they are during the pass.
        """
        self._alone = (table_MP, first_M) if self._native and (count_M.numpy() == 1).all() else None
        self._places: list[Tensor] = []
        if self._alone is not None:  # then nobody may ever ask for the places
            return
        sequence_N = torch.arange(len(table_MP), device=CPU).repeat_interleave(count_M)
        start_M = count_M.cumsum(0) - count_M
        position_N = torch.arange(len(sequence_N), device=CPU) - start_M[sequence_N] + first_M[sequence_N]
        page_N, slot_N = table_MP[sequence_N, position_N // PAGE], position_N % PAGE
        places = (page_N, slot_N, sequence_N, position_N, table_MP)
        if self._native:
            self._places = [place.int().contiguous() for place in places]
        else:
            self._begin_plain(page_N, slot_N, sequence_N, table_MP, first_M, count_M, start_M)

    def begin_decode(self, table_MP: Tensor, position_M: Tensor) -> None:
        """The same for one new token of each sequence, from tensors on the cache's device, and never waiting for it.

        So it can be captured (engine/graphs.py). For plain pages.
        """
        assert not self._native
        page_M1 = table_MP.gather(1, (position_M // PAGE)[:, None])
        visible_MS = torch.arange(table_MP.shape[1] * PAGE, device=self.device) <= position_M[:, None]
        self._stored_2N = torch.stack([page_M1[:, 0], position_M % PAGE])
        self._groups = [_Group(table_MP.contiguous(), visible_MS[:, None], None, self._stored_2N)]

    def _begin_plain(
        self, page_N: Tensor, slot_N: Tensor, sequence_N: Tensor, table_MP: Tensor, first_M: Tensor, count_M: Tensor,
        start_M: Tensor,
    ) -> None:  # fmt: skip
        """What `_attend_plain` needs, carried to the device in one piece: rows as one group, chunks as another."""
        long = (count_M > _ROW).nonzero()
        n_rows, m = int(long[0]) if len(long) else len(count_M), len(count_M)
        columns = [torch.stack([page_N, slot_N])]
        for a, b in ((0, n_rows), (n_rows, m)):
            if a < b:
                first_m1, end_M = first_M[a:b, None], first_M[a:b] + count_M[a:b]
                column_T = torch.arange(int(count_M[a:b].max()), device=CPU)
                token_MT = (start_M[a:b, None] + column_T).clamp(max=len(page_N) - 1)
                mine_N = sequence_N[(sequence_N >= a) & (sequence_N < b)]
                number_N = torch.arange(len(mine_N), device=CPU) + start_M[a] - start_M[mine_N]
                table = table_MP[a:b, : -(-int(end_M.max()) // PAGE)]
                columns += [table, first_m1 + column_T, token_MT, torch.stack([mine_N - a, number_N])]
        self._stored_2N, *rest = _moved(columns, self.device)
        self._groups = []
        for table, position_MT, token_MT, places_2N in zip(*(rest[i::4] for i in range(4)), strict=True):
            slot_S = torch.arange(table.shape[1] * PAGE, device=self.device)
            visible_MTS = slot_S <= position_MT[..., None]
            if self._window:
                visible_MTS = visible_MTS & (slot_S > position_MT[..., None] - self._window)
            self._groups.append(_Group(table.contiguous(), visible_MTS, token_MT, places_2N))

    def attend(self, layer: int, q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, scale: float) -> Tensor:
        """Store the new keys and values; then every query's attention over its whole sequence so far, [N, H, X]."""
        keys, values = self._keys[layer], self._values[layer]
        if self._native and kernels.native(q_NHK):
            page_N, slot_N, *indices = self._found()
            kernels.store(k_NJK, v_NJX, page_N, slot_N, keys, values)
            return kernels.attend_pages(q_NHK, self._entry, scale, indices, keys, values, self._window)
        assert not self._native, "pages made for the kernels are read by them alone"
        page_N, slot_N = self._stored_2N
        keys[page_N, slot_N] = k_NJK.to(self.dtype)
        values[page_N, slot_N] = v_NJX.to(self.dtype)
        q_NHK = q_NHK.to(self.dtype)
        out = [self._attend_plain(group, q_NHK, keys, values, scale) for group in self._groups]
        return out[0] if len(out) == 1 else torch.cat(out)

    def places(self) -> list[Tensor] | None:
        """Page, slot, sequence and position of every new token, and the tables; None without kernels."""
        return self._found() if self._native else None

    def alone(self) -> Tensor | None:
        """The sequences' tables, int64, where each has one new token and the pages are the kernels'; else None."""
        return None if self._alone is None else self._alone[0]

    def _found(self) -> list[Tensor]:
        """`places`, worked out when they are first wanted."""
        if not self._places and self._alone is not None:
            self._places = _places_of_one(*(column.numpy() for column in self._alone))
        return self._places

    def memory(self, layer: int) -> tuple[Tensor, Tensor]:
        """All pages of a layer: keys and values."""
        return self._keys[layer], self._values[layer]

    def _attend_plain(self, group: _Group, q_NHK: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """The same with torch for the tokens of a group: their sequences' pages, then one masked attention."""
        q_MTHK = q_NHK[:, None] if group.token_MT is None else q_NHK[group.token_MT]
        (m, t, n_heads, _), n_key_heads = q_MTHK.shape, self._entry.n_heads
        q_MTJGK = q_MTHK.unflatten(2, (n_key_heads, -1))
        q_MJFK = q_MTJGK.transpose(1, 2).flatten(2, 3)  # F: a token's queries of one key head, then the next token's
        visible_MFS = group.visible_MTS
        if t > 1:
            visible_MFS = visible_MFS[:, :, None].expand(-1, -1, q_MTJGK.shape[3], -1).flatten(1, 2)
        k_MJSK, v_MJSX = (
            store.index_select(0, group.table_MP.flatten()).view(m, -1, *store.shape[2:]).transpose(1, 2)
            for store in (keys, values)
        )
        out_MJFX = fused_attention(q_MJFK, k_MJSK, v_MJSX, visible_MFS, scale)
        out_MTHX = out_MJFX.unflatten(2, (t, -1)).transpose(1, 2).reshape(m, t, n_heads, -1)
        if group.token_MT is None:
            return out_MTHX[:, 0]
        sequence_N, number_N = group.places_2N
        return out_MTHX[sequence_N, number_N]

    def held(self, layer: int) -> Held:
        """Nothing: see engine/layered.py."""
        raise AssertionError("pages hold no memories")

    def attend_picked(self, layer: int, q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, scale: float, ask: Ask) -> Tensor:
        """Nothing: see engine/layered.py."""
        raise AssertionError("these pages have no indexer")

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page in every layer, so that a sequence may write on after a prefix that it shared."""
        for store in (self._keys, self._values):
            store[:, target] = store[:, source]


def _places_of_one(table_MP: np.ndarray, position_M: np.ndarray) -> list[Tensor]:
    """`PagedCache.places` where every sequence has one new token. So few numbers are numpy's: it has done before torch
    has begun."""
    sequence_M = np.arange(len(position_M))
    page_M, slot_M = table_MP[sequence_M, position_M // PAGE], position_M % PAGE
    places = (page_M, slot_M, sequence_M, position_M, table_MP)
    return [torch.from_numpy(np.ascontiguousarray(place, np.int32)) for place in places]


def _moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """The same on the device, which gets them in one copy."""
    if device.type == "cpu":
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors]).to(device, non_blocking=True)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
