"""A cache for models whose layers keep different things of a sequence (`models/mixers.py`).

    full_attention      pages, as everywhere (engine/cache.py)
    indexed_attention   pages, with the indexer's keys beside (engine/picked.py)
    sliding_attention   a ring of a few pages in the sequence's slot: what a window may still see
    linear_attention    memories and the last tokens of the convolution, in its slot

Pages grow with a sequence, slots do not. A slot is known to one sequence alone; the samples of a prompt get copies of
the one in which it was computed. A state cannot be cut back to a prefix, so an earlier request's are of no use again.

On a CPU in fp32 memories are laid out for the kernels. States of linear attention are in fp32 everywhere.

Try it alone: `pytest tests/engine/test_layered.py`
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from zifio.engine.cache import CPU, PAGE, PagedCache, n_cached_layers, page_shapes
from zifio.engine.memory import n_slots
from zifio.engine.picked import PickedPages
from zifio.engine.rows import place_in_run
from zifio.engine.slots import Slots
from zifio.kernels import delta
from zifio.kernels.library import library
from zifio.models.config import AnyConfig
from zifio.models.indexer import Ask
from zifio.models.linear_attention import Held, Order, held_order
from zifio.models.mixers import Mixer

_BLOCK = 64
"""New tokens of a sequence that a window takes at once, at least."""


def is_layered(config: AnyConfig) -> bool:
    """Whether some layer keeps anything else than all keys and values."""
    return any(kind != "full_attention" for kind in _kinds(config))


def has_state(config: AnyConfig) -> bool:
    """Whether some layer keeps something of fixed size."""
    return any(kind in ("sliding_attention", "linear_attention") for kind in _kinds(config))


def _kinds(config: AnyConfig) -> list[Mixer]:
    """Of the model's layers, and of the MTP module's behind them."""
    return [config.mixer(layer) for layer in range(config.num_hidden_layers + config.n_mtp)]


def bytes_per_slot(config: AnyConfig, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> int:
    """Memory of one slot in all layers."""
    kinds, total = _kinds(config), 0
    if kinds.count("sliding_attention"):
        page = dtype.itemsize * sum(map(math.prod, page_shapes(config, False, dtype, device)))
        total += kinds.count("sliding_attention") * ring_pages(config.window) * page
    if config.linear is not None:
        memory, tail = _memory_shapes(config, dtype, device)
        total += kinds.count("linear_attention") * 4 * (math.prod(memory) + math.prod(tail))
    return total


def ring_pages(window: int) -> int:
    """Pages of a ring: for what a block's first token sees, and the block itself."""
    return -(-(window - 1 + max(window, _BLOCK)) // PAGE) + 1


def _memory_shapes(
    config: AnyConfig, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of one slot in one layer of linear attention: memories, and what the convolution saw last."""
    shape = config.linear
    assert shape is not None
    width = shape.d_value
    if dtype is torch.float32 and device.type == "cpu" and library() is not None:
        width = delta.memory_width(width)
    return (shape.n_heads, shape.d_key, width), (max(shape.d_conv - 1, 0), shape.d_mixed)


class Windows:
    """Rings of pages for the layers of sliding attention: position p of a sequence is in page p // PAGE % n of its n.

    Passes are told positions from a page on that the window has just reached, so that tables are short however long the
    sequences. Long chunks go block by block, so that no token is overwritten before the last query has seen it.
    """

    def __init__(self, config: AnyConfig, slots: int, layers: int, dtype: torch.dtype, device: torch.device) -> None:
        self._window, self._n = config.window, ring_pages(config.window)
        self._block = max(config.window, _BLOCK)
        self._pages = PagedCache(config, slots * self._n, False, dtype, device, layers=layers, window=config.window)
        self._blocks: list[tuple[Tensor | None, tuple[Tensor, Tensor, Tensor]]] = []

    def begin(self, first_M: np.ndarray, count_M: np.ndarray, slot_M: np.ndarray) -> None:
        """As `PagedCache.begin`, for sequences in these slots."""
        self._blocks = []
        start_M = np.cumsum(count_M) - count_M
        for at in range(0, int(count_M.max()), self._block):
            now = np.flatnonzero(count_M > at)
            first, count = first_M[now] + at, np.minimum(count_M[now] - at, self._block)
            base = np.maximum(first - self._window + 1, 0) // PAGE
            table = slot_M[now, None] * self._n + (base[:, None] + np.arange(self._n)) % self._n
            tokens = None
            if int(count_M.max()) > self._block:
                tokens = np.repeat(start_M[now] + at, count) + place_in_run(count)
            one, two, three = (torch.from_numpy(column) for column in (table, first - base * PAGE, count))
            self._blocks.append((None if tokens is None else torch.from_numpy(tokens), (one, two, three)))
        if len(self._blocks) == 1:
            self._pages.begin(*self._blocks[0][1])

    def attend(self, layer: int, q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, scale: float) -> Tensor:
        """As `PagedCache.attend`."""
        if len(self._blocks) == 1:
            return self._pages.attend(layer, q_NHK, k_NJK, v_NJX, scale)
        out_NHX = v_NJX.new_empty(*q_NHK.shape[:2], v_NJX.shape[2])
        for tokens, columns in self._blocks:
            assert tokens is not None
            tokens = tokens.to(q_NHK.device)
            self._pages.begin(*columns)
            q, k, v = (x.index_select(0, tokens) for x in (q_NHK, k_NJK, v_NJX))
            out_NHX[tokens] = self._pages.attend(layer, q, k, v, scale).to(out_NHX.dtype)
        return out_NHX

    def copy(self, source: int, target: int) -> None:
        """All of a slot."""
        for page in range(self._n):
            self._pages.copy_page(source * self._n + page, target * self._n + page)


class Memories:
    """What the layers of linear attention keep in slots."""

    def __init__(self, config: AnyConfig, slots: int, layers: int, dtype: torch.dtype, device: torch.device) -> None:
        assert config.linear is not None
        memory, tail = _memory_shapes(config, dtype, device)
        self._d_conv, self._device = config.linear.d_conv, device
        self._by_kernels = dtype is torch.float32 and device.type == "cpu" and library() is not None
        self._memory = torch.zeros(layers, slots, *memory, device=device)
        self._tail = torch.zeros(layers, slots, *tail, device=device)
        self._runs_M4, self._order = torch.zeros(0, 4, dtype=torch.long), None

    def begin(self, first_M: np.ndarray, count_M: np.ndarray, slot_M: np.ndarray) -> None:
        """As `PagedCache.begin`, for sequences in these slots."""
        runs = np.stack([np.cumsum(count_M) - count_M, count_M, slot_M, first_M], axis=1)
        self._runs_M4 = torch.from_numpy(runs)
        self._order: Order | None = None
        if not self._by_kernels:
            self._order = held_order(runs, self._d_conv, self._device)

    def held(self, layer: int) -> Held:
        """For a layer of the model."""
        return Held(self._runs_M4, self._memory[layer], self._tail[layer], self._order)

    def copy(self, source: int, target: int) -> None:
        """All of a slot."""
        for store in (self._memory, self._tail):
            store[:, target] = store[:, source]


class LayeredCache:
    """Implements `models.attention.Cache`; a layer is asked by its place among those of its kind."""

    def __init__(
        self,
        config: AnyConfig,
        n_pages: int,
        slots: int = 0,
        latent: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        """`dtype` and `device` are of what is kept."""
        self.latent, self.dtype, self.device = latent, dtype, device
        kinds = _kinds(config)
        self._place = [kinds[:layer].count(kind) for layer, kind in enumerate(kinds)]
        self.has_slots = has_state(config)
        self._pages = self._picked = self._windows = self._memories = None
        if n_cached_layers(config):
            self._pages = PagedCache(config, n_pages, latent, dtype, device)
        if n := kinds.count("indexed_attention"):
            self._picked = PickedPages(config, n_pages, n, latent, dtype, device)
        if n := kinds.count("sliding_attention"):
            self._windows = Windows(config, slots, n, dtype, device)
        if n := kinds.count("linear_attention"):
            self._memories = Memories(config, slots, n, dtype, device)
        self._of_layer = [self._windows if kind == "sliding_attention" else self._pages for kind in kinds]

    def begin(self, table_MP: Tensor, first_M: Tensor, count_M: Tensor, slot_M: Tensor | None = None) -> None:
        """As `PagedCache.begin`; `slot_M` are the sequences' slots, where the model has states."""
        for pages in (self._pages, self._picked):
            if pages is not None:
                pages.begin(table_MP, first_M, count_M)
        for states in (self._windows, self._memories):
            if states is not None:
                assert slot_M is not None, "a model with states wants to know its sequences' slots"
                states.begin(first_M.numpy(), count_M.numpy(), slot_M.numpy())

    def attend(self, layer: int, q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, scale: float) -> Tensor:
        """Store the new keys and values; then every query's attention over what its layer lets it see, [N, H, X]."""
        where = self._of_layer[layer]
        assert where is not None
        return where.attend(self._place[layer], q_NHK, k_NJK, v_NJX, scale)

    def attend_picked(self, layer: int, q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, scale: float, ask: Ask) -> Tensor:
        """The same over the tokens that the indexer picks."""
        assert self._picked is not None
        return self._picked.attend(self._place[layer], q_NHK, k_NJK, v_NJX, scale, ask)

    def held(self, layer: int) -> Held:
        """What is kept for a layer of linear attention."""
        assert self._memories is not None
        return self._memories.held(self._place[layer])

    def places(self) -> list[Tensor] | None:
        """None: layers are computed one by one."""
        return None

    def alone(self) -> Tensor | None:
        """None, too."""
        return None

    def memory(self, layer: int) -> tuple[Tensor, Tensor]:
        """Pages of a layer of full attention."""
        assert self._pages is not None
        return self._pages.memory(self._place[layer])

    def begin_decode(self, table_MP: Tensor, position_M: Tensor) -> None:
        """Nothing: steps of such models are not captured."""
        raise AssertionError("no graphs for a model of several mixers")

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page in every layer that has pages."""
        for pages in (self._pages, self._picked):
            if pages is not None:
                pages.copy_page(source, target)

    def copy_slot(self, source: int, target: int) -> None:
        """Copy a slot in every layer that has states."""
        for states in (self._windows, self._memories):
            if states is not None:
                states.copy(source, target)


AnyCache = PagedCache | LayeredCache


def new_cache(
    config: AnyConfig, n_pages: int, slots: int | None, latent: bool, dtype: torch.dtype, device: torch.device
) -> AnyCache:
    """The cache that a model wants."""
    if is_layered(config):
        return LayeredCache(config, n_pages, slots or 0, latent, dtype, device)
    return PagedCache(config, n_pages, latent, dtype, device)


def slots_within(
    config: AnyConfig, n_rows: int, dtype: torch.dtype, device: torch.device, memory_gb: float | None, where: str
) -> tuple[int | None, int]:
    """Slots for so many rows, or what half of the memory holds, and their bytes; None for a model without states."""
    if not has_state(config):
        return None, 0
    each = bytes_per_slot(config, dtype, device)
    n = n_slots(n_rows, each, memory_gb, where)
    return n, n * each


def slots_of(cache: AnyCache | None, n: int | None) -> Slots | None:
    """The owners' book of a cache's slots, all of them free."""
    return Slots(n, cache.copy_slot) if isinstance(cache, LayeredCache) and n is not None else None
