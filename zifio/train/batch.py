"""The one Batch: packed rows of tokens with a weight per token for each term of the loss.

Entry t of every column is about token t. A row holds whole sequences one behind the other; positions restart at 0
with each. Weights already carry every normalisation, so that the loss of a step is the plain sum over all its
micro-batches, however they are cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zifio.data.pack import Sequence, pack

COLUMNS = (
    "cross_entropy_weight", "policy_weight", "advantage", "old_logp", "sampler_logp", "kl_weight", "reference_logp",
)  # fmt: skip
"""Per-token values that a sequence may bring; an absent one is 0 everywhere."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of packed rows."""

    tokens_BT: Tensor
    positions_BT: Tensor
    real_BT: Tensor
    """False on padding."""
    columns: dict[str, Tensor]
    """[B, T] each, by the names in `COLUMNS`; only those that some sequence brought."""
    n_sequences: int
    lengths: tuple[int, ...]
    """Tokens of each sequence, in the order in which they stand; for the FLOP ledger."""
    order: tuple[int, ...] = ()
    """Place of each sequence in the list that the batches were made from."""

    def column(self, name: str) -> Tensor | None:
        """A column, or None when no sequence brought it, so that its term need not be computed."""
        return self.columns.get(name)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return replace(
            self,
            tokens_BT=self.tokens_BT.to(device),
            positions_BT=self.positions_BT.to(device),
            real_BT=self.real_BT.to(device),
            columns={name: column.to(device) for name, column in self.columns.items()},
        )

    @property
    def n_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(self.lengths)


def make_batches(sequences: list[Sequence], row_tokens: int, micro_tokens: int, pad_id: int) -> list[Batch]:
    """The sequences packed into rows and the rows into micro-batches of about `micro_tokens` tokens.

    A sequence's `weight` is the weight of its cross-entropy. Rows are only as long as the longest one needs.
    Raises ConfigError when a sequence is longer than `row_tokens`.
    """
    lengths = [len(sequence.tokens) for sequence in sequences]
    rows = pack(lengths, row_tokens)
    per_batch = max(1, micro_tokens // max(row_tokens, 1))
    return [_batch(sequences, rows[start : start + per_batch], pad_id) for start in range(0, len(rows), per_batch)]


def _batch(all_sequences: list[Sequence], places: list[list[int]], pad_id: int) -> Batch:
    rows = [[all_sequences[i] for i in row] for row in places]
    width = max(sum(len(sequence.tokens) for sequence in row) for row in rows)
    names = {name for row in rows for sequence in row for name in sequence.columns}
    assert names <= set(COLUMNS), f"unknown columns {sorted(names - set(COLUMNS))}"
    has_weight = any(any(sequence.weight) for row in rows for sequence in row)
    names |= {"cross_entropy_weight"} if has_weight else set()
    tokens, positions, real = [], [], []
    columns: dict[str, list[list[float]]] = {name: [] for name in names}
    for row in rows:
        gap = width - sum(len(sequence.tokens) for sequence in row)
        tokens.append([t for sequence in row for t in sequence.tokens] + [pad_id] * gap)
        positions.append([t for sequence in row for t in range(len(sequence.tokens))] + list(range(gap)))
        real.append([True] * (width - gap) + [False] * gap)
        for name in names:
            values = [_values(sequence, name) for sequence in row]
            columns[name].append([v for one in values for v in one] + [0.0] * gap)
    sequences = [sequence for row in rows for sequence in row]
    return Batch(
        torch.tensor(tokens),
        torch.tensor(positions),
        torch.tensor(real),
        {name: torch.tensor(values) for name, values in columns.items()},
        len(sequences),
        tuple(len(sequence.tokens) for sequence in sequences),
        tuple(i for row in places for i in row),
    )


def _values(sequence: Sequence, name: str) -> list[float]:
    if name == "cross_entropy_weight":
        return sequence.weight
    return sequence.columns.get(name, [0.0] * len(sequence.tokens))
