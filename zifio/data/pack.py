"""Sequences laid into rows of fixed size, so that no compute is spent on padding.

First-fit decreasing (Johnson, 1973): the longest first, each into the first row with room; never worse than
11/9 of the fewest rows possible, plus one. No sequence is cut.

Try it alone: `python -c "from zifio.data.pack import pack; print(pack([5, 3, 4, 2, 2], 8))"`
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np

from zifio.config import ConfigError


@dataclass(frozen=True, slots=True)
class Sequence:
    """What one conversation brings to a batch: entry t of every list is about token t."""

    tokens: list[int]
    weight: list[float]
    """How much each token counts in the loss; 0 for what is given."""
    columns: dict[str, list[float]] = field(default_factory=dict)
    """Further values per token (advantage, old log-prob ...), by name."""
    n_prefix: int = 0
    """Leading tokens that may be shared with sequences that begin with the same: a prompt, which has no weight."""
    experts_TLA: np.ndarray | None = field(default=None, compare=False)
    """Experts that each token is to go to, layer by layer, -1 where the router is to choose; int16."""

    pixels_MUYX: np.ndarray | None = field(default=None, compare=False)
    """Pictures that the tokens are about, which number them from 0; float32, from -1 to 1."""
    patches: tuple[int, int] = (0, 0)
    """With pictures: the token of the first patch of the first one, and how many patches each has."""

    def __post_init__(self) -> None:
        assert self.pixels_MUYX is None or not self.n_prefix, "prefixes are compared by their tokens, not by pictures"
        experts = {} if self.experts_TLA is None else {"experts_TLA": self.experts_TLA}
        for name, values in {"weight": self.weight, **self.columns, **experts}.items():
            assert len(values) == len(self.tokens), f"{name}: {len(values)} values for {len(self.tokens)} tokens"


def pack(lengths: Items[int], row_tokens: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each row at most `row_tokens` long in all. The same input gives the
    same rows.

    Raises ConfigError for a sequence that fits no row.
    """
    for index, length in enumerate(lengths):
        assert length > 0, f"sequence {index} is empty"
        if length > row_tokens:
            raise ConfigError(
                f"row_tokens={row_tokens} is less than the {length} tokens of sequence {index}, "
                f"and none is cut. Set row_tokens to {length} or more, or leave long sequences out."
            )
    rows: list[list[int]] = []
    room = _Room(len(lengths), row_tokens)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = room.take(lengths[index])
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
    return rows


class _Room:
    """How much each row still takes, in a tree of maxima, so that the first row with room is found in log
    time."""

    def __init__(self, n_rows: int, row_tokens: int) -> None:
        self.n_leaves = 1 << max(0, n_rows - 1).bit_length()
        self.most = [row_tokens] * (2 * self.n_leaves)  # node i has children 2i and 2i+1; leaves are the rows

    def take(self, length: int) -> int:
        """The first row with room for `length`, which is taken from it."""
        most, node = self.most, 1
        while node < self.n_leaves:
            node *= 2
            if most[node] < length:
                node += 1
        row = node - self.n_leaves
        most[node] -= length
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
        return row
