"""Pages of the layers that an indexer looks through: keys, values and the indexer's keys of every token.

A row that is decoded scores all its keys, which are narrow, and gathers the few that are kept: that is what sparse
attention saves. Chunks of prompts are masked instead, some queries at a time, as their choices differ.

Pages are plain tensors; the indexer's keys are turned in theirs, so that a kernel scores them where they lie.

Try it alone: `pytest tests/engine/test_layered.py`
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zifio.engine.cache import PAGE, entry_of
from zifio.kernels import operators as kernels
from zifio.models.config import AnyConfig
from zifio.models.indexer import Ask, attend_where, best, index_scores, picks

_MOST = 2**24
"""Attention weights that exist at once, about."""


class _Run(NamedTuple):
    """Tokens of one sequence, the pages of its past, and the position of the first."""

    tokens: slice
    pages: Tensor
    n_past: int
    """Tokens with those of this pass."""
    first: int


class PickedPages:
    """Memory for `n_pages` pages of so many layers."""

    def __init__(
        self, config: AnyConfig, n_pages: int, layers: int, latent: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        entry, indexer = entry_of(config, latent), config.indexer
        assert indexer is not None
        self._dtype, self._device, n_cells = dtype, device, n_pages * PAGE
        self._keys, self._values = (
            torch.zeros(layers, n_cells, entry.n_heads, width, dtype=dtype, device=device)
            for width in (entry.d_key, entry.d_value)
        )
        self._index = torch.zeros(layers, n_pages, indexer.d_head, PAGE, dtype=dtype, device=device)
        self._by_kernel = kernels.native(self._index)

    def begin(self, table_MP: Tensor, first_M: Tensor, count_M: Tensor) -> None:
        """As `PagedCache.begin`."""
        sequence_N = torch.arange(len(table_MP)).repeat_interleave(count_M)
        start_M = count_M.cumsum(0) - count_M
        position_N = torch.arange(len(sequence_N)) - start_M[sequence_N] + first_M[sequence_N]
        page_N, slot_N = table_MP[sequence_N, position_N // PAGE], position_N % PAGE
        self._page_N, self._slot_N = page_N.to(self._device), slot_N.to(self._device)
        self._cell_N = self._page_N * PAGE + self._slot_N
        is_row_M = count_M == 1
        self._n_rows = int(is_row_M.long().cumprod(0).sum())  # rows stand before chunks
        end_M = first_M + count_M
        rows = slice(self._n_rows)
        width = -(-int(end_M[rows].max()) // PAGE) if self._n_rows else 0
        table_RP, self._end_R = table_MP[rows, :width], end_M[rows].to(self._device)
        if self._by_kernel:
            self._table_RP, self._n_R = table_RP.int().contiguous(), self._end_R.int()
        else:
            self._table_RP = table_RP.to(self._device)
            self._visible_RS = torch.arange(width * PAGE, device=self._device) < self._end_R[:, None]
        self._runs = []
        for m in range(self._n_rows, len(table_MP)):
            pages = table_MP[m, : -(-int(end_M[m]) // PAGE)].to(self._device)
            start = int(start_M[m])
            tokens = slice(start, start + int(count_M[m]))
            self._runs.append(_Run(tokens, pages, int(end_M[m]), int(first_M[m])))

    def attend(self, layer: int, q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, scale: float, ask: Ask) -> Tensor:
        """Store what is new; then every query's attention over what the indexer picks of its sequence, [N, H, X]."""
        keys, values, index = self._keys[layer], self._values[layer], self._index[layer]
        keys[self._cell_N], values[self._cell_N] = k_NJK.to(self._dtype), v_NJX.to(self._dtype)
        index[self._page_N, :, self._slot_N] = ask.k_NY.to(self._dtype)
        stores, q_NHK = (keys, values, index), q_NHK.to(self._dtype)
        out = [self._rows(stores, q_NHK, scale, ask)] if self._n_rows else []
        out += [self._chunk(stores, run, q_NHK, scale, ask) for run in self._runs]
        return out[0] if len(out) == 1 else torch.cat(out)

    def _rows(self, stores: tuple[Tensor, ...], q_NHK: Tensor, scale: float, ask: Ask) -> Tensor:
        """One token of each row."""
        (keys, values, index), rows = stores, slice(self._n_rows)
        q_RIY, weight_RI = ask.q_NIY[rows], ask.weight_NI[rows]
        if self._by_kernel:
            cells_RS = kernels.pick(q_RIY, weight_RI, index, self._table_RP, self._n_R, ask.n_kept)
        else:
            cells_RS = self._picked(index, q_RIY, weight_RI, ask.n_kept)
        seen_RS = torch.arange(cells_RS.shape[1], device=self._device) < self._end_R[:, None]
        k_RJSK, v_RJSX = (
            store.index_select(0, cells_RS.flatten()).unflatten(0, cells_RS.shape).transpose(1, 2)
            for store in (keys, values)
        )
        q_RJGK = q_NHK[rows].unflatten(1, (k_RJSK.shape[1], -1))
        logits_RJGS = torch.matmul(q_RJGK * scale, k_RJSK.transpose(2, 3)).float()
        weights_RJGS = logits_RJGS.masked_fill_(~seen_RS[:, None, None], -torch.inf).softmax(dim=-1)
        return torch.matmul(weights_RJGS.to(v_RJSX.dtype), v_RJSX).flatten(1, 2)

    def _picked(self, index: Tensor, q_RIY: Tensor, weight_RI: Tensor, n_kept: int) -> Tensor:
        """As `kernels.pick`; no wider than the longest sequence."""
        table_RP, visible_RS = self._table_RP, self._visible_RS
        cells_RPS = table_RP[..., None] * PAGE + torch.arange(PAGE, device=self._device)
        cells_RS = cells_RPS.flatten(1)
        if cells_RS.shape[1] <= n_kept:
            return cells_RS
        k_RPYS = index.index_select(0, table_RP.flatten()).unflatten(0, table_RP.shape)
        k_RSY = k_RPYS.transpose(2, 3).flatten(1, 2)
        scores_RS = index_scores(q_RIY[:, None], weight_RI[:, None], k_RSY)[:, 0].masked_fill(~visible_RS, -torch.inf)
        kept_RS = best(scores_RS, n_kept).nonzero()[:, 1].view(len(scores_RS), n_kept)
        return cells_RS.gather(1, kept_RS)

    def _chunk(self, stores: tuple[Tensor, ...], run: _Run, q_NHK: Tensor, scale: float, ask: Ask) -> Tensor:
        """Consecutive tokens of one sequence."""
        (keys, values, index), n_past = stores, run.n_past
        k_1SJK, v_1SJX = (
            store.unflatten(0, (-1, PAGE))[run.pages].flatten(0, 1)[None, :n_past] for store in (keys, values)
        )
        k_1SY = index[run.pages].transpose(1, 2).flatten(0, 1)[None, :n_past]
        q_1THK, q_1TIY, weight_1TI = (x[None, run.tokens] for x in (q_NHK, ask.q_NIY, ask.weight_NI))
        n, out = q_1THK.shape[1], []
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
        for store in (self._keys, self._values):
            cells = store.unflatten(1, (-1, PAGE))
            cells[:, target] = cells[:, source]
        self._index[:, target] = self._index[:, source]
