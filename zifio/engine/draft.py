"""Speculative decoding with the multi-token prediction module (DeepSeek-V3, section 2.2; arXiv:2211.17192).

After a step that ends in token p + 1, the module guesses token p + 2 from the main model's state at p and the
embedding of token p + 1. The next step computes both tokens p + 1 and p + 2. The row draws token p + 2 from the true
distribution with its own random number as ever; when that is the guess, the state behind it is already there and the
row draws once more. So the replies are those without speculation, token for token; only the number of steps shrinks.

The module has a layer of the cache to itself, behind the model's: its entry at p is made of state p and token p + 1.
In a prefix page that sequences share, the last entry is about the successor that its first owner had. A guess may be
worse for that, a reply never.

Try it alone: `pytest tests/engine/test_draft.py`
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zifio.engine.batch import Batch
from zifio.engine.cache import PAGE
from zifio.engine.layered import AnyCache
from zifio.engine.rows import Rows
from zifio.engine.scheduler import Chunk
from zifio.models.decoder import Decoder


def read_prompts(model: Decoder, cache: AnyCache, chunks: list[Chunk], hidden_ND: Tensor) -> None:
    """Let the module see the chunks, whose main states are `hidden_ND`, as far as the next tokens are known."""
    tables, first, count, kept, tokens = [], [], [], [], []
    at = 0
    for job, begin, n in chunks:
        n_known = min(begin + n, len(job.tokens) - 1) - begin
        if n_known:
            tables.append(job.table)
            first.append(begin)
            count.append(n_known)
            kept += range(at, at + n_known)
            tokens += job.tokens[begin + 1 : begin + 1 + n_known]
        at += n
    if tokens:
        _states(model, cache, tables, first, count, tokens, hidden_ND[torch.tensor(kept, device=cache.device)])


def guess(
    model: Decoder, cache: AnyCache, rows: Rows, new: list[list[int]], computed: list[list[int]], hidden_ND: Tensor
) -> None:
    """Set `rows.draft` for the rows that go on.

    `new[r]` are the tokens that row r has just drawn, empty where it ends; `computed[r]` are the places in `hidden_ND`
    of the states that they were drawn from.
    """
    going = [row for row, tokens in enumerate(new) if tokens]
    rows.draft[: len(rows)] = -1
    if not going:
        return
    count = [len(new[row]) for row in going]
    first = [int(rows.position[row]) - len(new[row]) for row in going]
    kept = [place for row in going for place in computed[row][: len(new[row])]]
    tokens = [token for row in going for token in new[row]]
    tables = [rows.samples[row].table for row in going]
    kept_N = torch.tensor(kept, device=cache.device)
    states_ND = _states(model, cache, tables, first, count, tokens, hidden_ND[kept_N])
    last_B = torch.tensor(np.cumsum(count) - 1, device=cache.device)
    rows.draft[going] = model.logits(states_ND[last_B]).argmax(dim=-1).cpu().numpy()


def _states(
    model: Decoder,
    cache: AnyCache,
    tables: list[list[int]],
    first: list[int],
    count: list[int],
    tokens: list[int],
    hidden_ND: Tensor,
) -> Tensor:
    """The module's states [N, D] at positions first[m] ... of each sequence m, given the tokens behind them."""
    width = max((f + n - 1) // PAGE + 1 for f, n in zip(first, count, strict=True))
    table_MP = np.zeros((len(tables), width), np.int64)
    for row, table in enumerate(tables):
        table_MP[row, : min(len(table), width)] = table[:width]
    positions = [f + i for f, n in zip(first, count, strict=True) for i in range(n)]
    batch = Batch(np.array(tokens), np.array(positions), table_MP, np.array(first), np.array(count))
    batch.announce(cache)
    next_1N, positions_1N = batch.tensors(cache.device)
    return model.draft(next_1N, hidden_ND[None], positions_1N, cache)[0]
