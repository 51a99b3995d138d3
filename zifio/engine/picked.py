"""Pages of the layers that an indexer looks through: keys, values and the indexer's keys of every token.

A row that is decoded scores all its keys, which are narrow, and gathers the few that are kept: that is what sparse
attention saves. Chunks of prompts are masked instead, some queries at a time, as their choices differ.

Pages are plain tensors, also where the kernels serve other layers.

Try it alone: `pytest tests/engine/test_layered.py`
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zifio.engine.cache import PAGE, entry_of
from zifio.models.config import AnyConfig
from zifio.models.indexer import Ask, attend_where, best, index_scores, picks

_MOST = 2**24
"""Attention weights that exist at once, about."""


class _Run(NamedTuple):
    """Tokens of one sequence, where its past is, and the position of the first."""

    tokens: slice
    cells_S: Tensor
    first: int


class PickedPages:
    """Memory for `n_pages` pages of so many layers."""

    def __init__(
        self, config: AnyConfig, n_pages: int, layers: int, latent: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        entry, indexer = entry_of(config, latent), config.indexer
        assert indexer is not None
        self._dtype, self._device = dtype, device
        self._keys, self._values, self._index = (
            torch.zeros(layers, n_pages * PAGE, *width, dtype=dtype, device=device)
            for width in ((entry.n_heads, entry.d_key), (entry.n_heads, entry.d_value), (indexer.d_head,))
        )

    def begin(self, table_MP: Tensor, first_M: Tensor, count_M: Tensor) -> None:
        """As `PagedCache.begin`."""
        sequence_N = torch.arange(len(table_MP)).repeat_interleave(count_M)
        start_M = count_M.cumsum(0) - count_M
        position_N = torch.arange(len(sequence_N)) - start_M[sequence_N] + first_M[sequence_N]
        self._cell_N = (table_MP[sequence_N, position_N // PAGE] * PAGE + position_N % PAGE).to(self._device)
        is_row_M = count_M == 1
        self._n_rows = int(is_row_M.long().cumprod(0).sum())  # rows stand before chunks
        end_M = first_M + count_M
        rows = slice(self._n_rows)
        width = -(-int(end_M[rows].max()) // PAGE) if self._n_rows else 0
        cells_MPS = table_MP[rows, :width, None] * PAGE + torch.arange(PAGE)
        self._cells_MS = cells_MPS.flatten(1).to(self._device)
        self._visible_MS = (torch.arange(width * PAGE) < end_M[rows, None]).to(self._device)
        self._runs = []
        for m in range(self._n_rows, len(table_MP)):
            cells = (table_MP[m, : -(-int(end_M[m]) // PAGE), None] * PAGE + torch.arange(PAGE)).flatten()
            start = int(start_M[m])
            tokens = slice(start, start + int(count_M[m]))
            self._runs.append(_Run(tokens, cells[: int(end_M[m])].to(self._device), int(first_M[m])))

    def attend(self, layer: int, q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, scale: float, ask: Ask) -> Tensor:
        """Store what is new; then every query's attention over what the indexer picks of its sequence, [N, H, X]."""
        keys, values, index = self._keys[layer], self._values[layer], self._index[layer]
        for store, new in ((keys, k_NJK), (values, v_NJX), (index, ask.k_NY)):
            store[self._cell_N] = new.to(self._dtype)
        stores, q_NHK = (keys, values, index), q_NHK.to(self._dtype)
        out = [self._rows(stores, q_NHK, scale, ask)] if self._n_rows else []
        out += [self._chunk(stores, run, q_NHK, scale, ask) for run in self._runs]
        return out[0] if len(out) == 1 else torch.cat(out)

    def _rows(self, stores: tuple[Tensor, ...], q_NHK: Tensor, scale: float, ask: Ask) -> Tensor:
        """One token of each row."""
        (keys, values, index), n = stores, self._n_rows
        q_MTHK, q_MTIY, weight_MTI = (x[:n, None] for x in (q_NHK, ask.q_NIY, ask.weight_NI))
        cells_MS, visible_MS = self._cells_MS, self._visible_MS
        if cells_MS.shape[1] > ask.n_kept:
            k_MSY = index.index_select(0, cells_MS.flatten()).view(*cells_MS.shape, -1)
            scores_MS = index_scores(q_MTIY, weight_MTI, k_MSY)[:, 0].masked_fill(~visible_MS, -torch.inf)
            kept_MS = best(scores_MS, ask.n_kept).nonzero()[:, 1].view(n, ask.n_kept)
            cells_MS, visible_MS = cells_MS.gather(1, kept_MS), visible_MS.gather(1, kept_MS)
        k_MSJK, v_MSJX = (store[cells_MS] for store in (keys, values))
        return attend_where(q_MTHK, k_MSJK, v_MSJX, visible_MS[:, None], scale)[0][:, 0]

    def _chunk(self, stores: tuple[Tensor, ...], run: _Run, q_NHK: Tensor, scale: float, ask: Ask) -> Tensor:
        """Consecutive tokens of one sequence."""
        k_1SJK, v_1SJX, k_1SY = (store[run.cells_S][None] for store in stores)
        q_1THK, q_1TIY, weight_1TI = (x[None, run.tokens] for x in (q_NHK, ask.q_NIY, ask.weight_NI))
        n, n_past, out = q_1THK.shape[1], len(run.cells_S), []
        column_S = torch.arange(n_past, device=self._device)
        size = max(1, _MOST // (n_past * max(q_1THK.shape[2], q_1TIY.shape[2])))
        for at in range(0, n, size):
            now = slice(at, min(at + size, n))
            position_T = run.first + torch.arange(now.start, now.stop, device=self._device)
            visible_1TS = (column_S <= position_T[:, None])[None]
            scores_1TS = index_scores(q_1TIY[:, now], weight_1TI[:, now], k_1SY)
            picked_1TS = picks(scores_1TS, visible_1TS, ask.n_kept)
            out.append(attend_where(q_1THK[:, now], k_1SJK, v_1SJX, picked_1TS, scale)[0][0])
        return torch.cat(out)

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page in every layer."""
        for store in (self._keys, self._values, self._index):
            cells = store.unflatten(1, (-1, PAGE))
            cells[:, target] = cells[:, source]
