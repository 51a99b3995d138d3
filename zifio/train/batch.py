"""The one Batch: packed rows of tokens with a weight per token for each term of the loss.

Entry t of every column is about token t. A row holds whole sequences one behind the other; positions restart at 0
with each. Replies to one prompt stand behind a single copy of it, each with positions that go on from its end, so the
prompt is computed once (`models.attention.branches_of`). Weights already carry every normalisation, so that the loss
of a step is the plain sum over all its micro-batches, however they are cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from zifio.data.pack import Sequence, pack

COLUMNS = (
    "cross_entropy_weight", "policy_weight", "advantage", "old_logp", "sampler_logp", "kl_weight", "reference_logp",
    "teacher_weight",
    "step_weight", "step_label", "pair", "pair_weight",
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
    """Tokens of each sequence, in the order in which they stand, less a prefix that stands before another."""
    firsts: tuple[int, ...] = ()
    """Position of each one's first token; with `lengths`, for the FLOP ledger."""
    order: tuple[int, ...] = ()
    """Place of each sequence in the list that the batches were made from."""
    experts_BTLA: Tensor | None = None
    """Experts that tokens are to go to (`Decoder.forward`), -1 where the router chooses; a shared prefix goes where the
    first of those behind it sends it. None when no sequence brought any."""

    pixels_MUYX: Tensor | None = None
    """Pictures, from -1 to 1; where a tokenizer of pictures learns, a row stands for the codes of each."""

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
            experts_BTLA=None if self.experts_BTLA is None else self.experts_BTLA.to(device),
            pixels_MUYX=None if self.pixels_MUYX is None else self.pixels_MUYX.to(device),
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
    bundles = _bundles(sequences, row_tokens)
    rows = pack([_length([sequences[i] for i in bundle]) for bundle in bundles], row_tokens)
    per_batch = max(1, micro_tokens // max(row_tokens, 1))
    placed = [[bundles[i] for i in row] for row in rows]
    return [_batch(sequences, placed[start : start + per_batch], pad_id) for start in range(0, len(placed), per_batch)]


def _length(bundle: list[Sequence]) -> int:
    """Tokens of sequences that stand behind one copy of their prefix."""
    return bundle[0].n_prefix + sum(len(sequence.tokens) - sequence.n_prefix for sequence in bundle)


def _bundles(sequences: list[Sequence], row_tokens: int) -> list[list[int]]:
    """Places of sequences with equal prefixes, as many together as fit a row; those without a prefix alone."""
    bundles: list[list[int]] = []
    open_by_prefix: dict[tuple[int, ...], list[int]] = {}
    for place, sequence in enumerate(sequences):
        prefix = tuple(sequence.tokens[: sequence.n_prefix])
        bundle = open_by_prefix.get(prefix) if prefix else None
        if bundle is None or _length([*(sequences[i] for i in bundle), sequence]) > row_tokens:
            bundle = open_by_prefix[prefix] = []
            bundles.append(bundle)
        bundle.append(place)
    return bundles


def _batch(all_sequences: list[Sequence], places: list[list[list[int]]], pad_id: int) -> Batch:
    """Rows of bundles of sequences as tensors; from the second of a bundle on, a sequence comes without its prefix."""
    rows = [
        [(all_sequences[i], all_sequences[i].n_prefix if nth else 0) for bundle in row for nth, i in enumerate(bundle)]
        for row in places
    ]
    width = max(sum(len(sequence.tokens) - cut for sequence, cut in row) for row in rows)
    rows, pixels_MUYX = _numbered(rows)
    names = {name for row in rows for sequence, _ in row for name in sequence.columns}
    assert names <= set(COLUMNS), f"unknown columns {sorted(names - set(COLUMNS))}"
    has_weight = any(any(sequence.weight) for row in rows for sequence, _ in row)
    names |= {"cross_entropy_weight"} if has_weight else set()
    tokens, positions, real = [], [], []
    columns: dict[str, list[list[float]]] = {name: [] for name in names}
    for row in rows:
        gap = width - sum(len(sequence.tokens) - cut for sequence, cut in row)
        tokens.append([t for sequence, cut in row for t in sequence.tokens[cut:]] + [pad_id] * gap)
        positions.append([t for sequence, cut in row for t in range(cut, len(sequence.tokens))] + list(range(gap)))
        real.append([True] * (width - gap) + [False] * gap)
        for name in names:
            values = [_values(sequence, name)[cut:] for sequence, cut in row]
            columns[name].append([v for one in values for v in one] + [0.0] * gap)
    flat = [pair for row in rows for pair in row]
    return Batch(
        torch.tensor(tokens),
        torch.tensor(positions),
        torch.tensor(real),
        {name: torch.tensor(values) for name, values in columns.items()},
        len(flat),
        tuple(len(sequence.tokens) - cut for sequence, cut in flat),
        tuple(cut for _, cut in flat),
        tuple(i for row in places for bundle in row for i in bundle),
        _experts(rows, width),
        pixels_MUYX,
    )


_Rows = list[list[tuple[Sequence, int]]]
"""Rows of sequences, each less its first so many tokens."""


def _numbered(rows: _Rows) -> tuple[_Rows, Tensor | None]:
    """The same sequences, whose tokens number the pictures of all of them, and those pictures."""
    pictures: list[np.ndarray] = []

    def number(sequence: Sequence) -> Sequence:
        if sequence.pixels_MUYX is None:
            return sequence
        (first, n_patches), before = sequence.patches, len(pictures)
        pictures.extend(sequence.pixels_MUYX)
        tokens = [token + before * n_patches if token >= first else token for token in sequence.tokens]
        return replace(sequence, tokens=tokens)

    rows = [[(number(sequence), cut) for sequence, cut in row] for row in rows]
    return rows, torch.from_numpy(np.stack(pictures)) if pictures else None


def _experts(rows: list[list[tuple[Sequence, int]]], width: int) -> Tensor | None:
    """`Batch.experts_BTLA` of rows of sequences, each less its first so many tokens."""
    shapes = {s.experts_TLA.shape[1:] for row in rows for s, _ in row if s.experts_TLA is not None}
    if not shapes:
        return None
    (shape,) = shapes
    experts_BTLA = np.full((len(rows), width, *shape), -1, np.int16)
    for experts_TLA, row in zip(experts_BTLA, rows, strict=True):
        stop = 0
        for sequence, cut in row:
            start, stop = stop, stop + len(sequence.tokens) - cut
            if sequence.experts_TLA is not None:
                experts_TLA[start:stop] = sequence.experts_TLA[cut:]
    return torch.from_numpy(experts_BTLA)


def _values(sequence: Sequence, name: str) -> list[float]:
    if name == "cross_entropy_weight":
        return sequence.weight
    return sequence.columns.get(name, [0.0] * len(sequence.tokens))
