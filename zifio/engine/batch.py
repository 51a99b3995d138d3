"""One step's batch as arrays: the tokens of all running rows, then those of the prompts' chunks.

Try it alone: `pytest tests/engine/test_engine.py`
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zifio.engine.cache import PAGE
from zifio.engine.layered import AnyCache
from zifio.engine.rows import Rows, place_in_run
from zifio.engine.scheduler import Chunk
from zifio.models.decoder import Decoder, Output


@dataclass(frozen=True)
class Batch:
    """N tokens of M sequences, one sequence behind the other, as `PagedCache.begin` wants them; int64."""

    tokens_N: np.ndarray
    positions_N: np.ndarray
    table_MP: np.ndarray
    first_M: np.ndarray
    count_M: np.ndarray
    slot_M: np.ndarray | None = None
    """Where their states are, in a model that has some."""

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokens and positions as one row, [1, N]."""
        if device.type != "cpu":
            both_2N = torch.from_numpy(np.stack([self.tokens_N, self.positions_N])).to(device, non_blocking=True)
            return both_2N[:1], both_2N[1:]
        return torch.from_numpy(self.tokens_N)[None], torch.from_numpy(self.positions_N)[None]

    def announce(self, cache: AnyCache) -> None:
        """Tell the cache."""
        columns = [self.table_MP, self.first_M, self.count_M]
        if cache.has_slots:
            assert self.slot_M is not None, "only rows and jobs have states"
            columns.append(self.slot_M)
        cache.begin(*(torch.from_numpy(column) for column in columns))

    def forward(self, model: Decoder, cache: AnyCache) -> Output:
        """What the model makes of it, its keys and values left in the cache."""
        self.announce(cache)
        return model(*self.tensors(cache.device), cache)

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Page and slot of every token."""
        sequence_N = np.repeat(np.arange(len(self.count_M)), self.count_M)
        return self.table_MP[sequence_N, self.positions_N // PAGE], self.positions_N % PAGE


def row_batch(rows: Rows) -> Batch:
    """Each row's next token, and its draft behind it where there is one."""
    n = len(rows)
    position_B, draft_B = rows.position[:n], rows.draft[:n]
    if not (draft_B >= 0).any():
        width = int(position_B.max(initial=0)) // PAGE + 1
        table = np.ascontiguousarray(rows.table[:n, :width])
        return Batch(rows.token[:n], position_B, table, position_B, np.ones(n, np.int64), rows.slot[:n].copy())
    count_B = 1 + (draft_B >= 0)
    start_B = np.cumsum(count_B) - count_B
    tokens_N = np.repeat(rows.token[:n], count_B)
    tokens_N[start_B[draft_B >= 0] + 1] = draft_B[draft_B >= 0]
    positions_N = np.repeat(position_B, count_B) + place_in_run(count_B)
    table = np.ascontiguousarray(rows.table[:n, : int(positions_N.max()) // PAGE + 1])
    return Batch(tokens_N, positions_N, table, position_B, count_B, rows.slot[:n].copy())


def chunk_batch(chunks: list[Chunk]) -> Batch:
    """The chunks' tokens."""
    tables = [job.table[: -(-(first + count) // PAGE)] for job, first, count in chunks]
    return Batch(
        np.array([token for job, first, count in chunks for token in job.tokens[first : first + count]], np.int64),
        np.concatenate([np.arange(first, first + count) for _, first, count in chunks]),
        _padded(tables, max(map(len, tables))),
        np.array([first for _, first, _ in chunks], np.int64),
        np.array([count for _, _, count in chunks], np.int64),
        np.array([job.slot for job, _, _ in chunks], np.int64),
    )


def join(one: Batch, two: Batch) -> Batch:
    """Both, the sequences of `one` first."""
    width = max(one.table_MP.shape[1], two.table_MP.shape[1])
    tables = [np.pad(b.table_MP, ((0, 0), (0, width - b.table_MP.shape[1]))) for b in (one, two)]
    return Batch(
        np.concatenate([one.tokens_N, two.tokens_N]),
        np.concatenate([one.positions_N, two.positions_N]),
        np.concatenate(tables),
        np.concatenate([one.first_M, two.first_M]),
        np.concatenate([one.count_M, two.count_M]),
        None if one.slot_M is None or two.slot_M is None else np.concatenate([one.slot_M, two.slot_M]),
    )


def places_of(n_fed: int, chunks: list[Chunk], which: list[int]) -> np.ndarray:
    """Places in a pass of the rows' tokens, and behind them of the last ones of `which` chunks."""
    if not which:
        return np.arange(n_fed)
    end_of_chunk = n_fed + np.cumsum([count for _, _, count in chunks], dtype=np.int64) - 1
    return np.concatenate([np.arange(n_fed), end_of_chunk[which]])


def _padded(tables: list[list[int]], width: int) -> np.ndarray:
    """Tables as one array, zeros behind the shorter ones."""
    out = np.zeros((len(tables), width), np.int64)
    for row, table in enumerate(tables):
        out[row, : len(table)] = table
    return out
