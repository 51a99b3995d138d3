"""A preallocated cache: slot s of a row holds what attention keeps of the token at position s.

MLA keeps one vector of C + R numbers per token and layer, GQA a key and a value per key/value head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zifio.models.config import AnyConfig
from zifio.models.families import LatentConfig


class SlotCache:
    """Fixed memory for `n_rows` sequences of up to `n_slots` tokens; implements `models.attention.Cache`."""

    def __init__(self, config: AnyConfig, n_rows: int, n_slots: int) -> None:
        if isinstance(config, LatentConfig):
            shapes: list[tuple[int, ...]] = [(config.kv_lora_rank + config.qk_rope_head_dim,)]
        else:
            shapes = [(config.n_kv_heads, config.d_head)] * 2
        self._entries = [
            tuple(torch.zeros(n_rows, n_slots, *shape) for shape in shapes) for _ in range(config.num_hidden_layers)
        ]
        self._n_slots = n_slots
        self._used = 0

    def n_slots(self) -> int:
        """Slots that `append` returns: those up to the furthest position announced by `reserve`."""
        return self._used or self._n_slots

    def reserve(self, used: int) -> None:
        """Limit attention to the first `used` slots, because no row reaches further yet."""
        self._used = used

    def append(self, layer: int, positions_BT: Tensor, entries: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Store [B, T, ...] entries at their positions; return the first `n_slots()` slots of every row."""
        row = torch.arange(len(positions_BT))[:, None]
        for store, entry in zip(self._entries[layer], entries, strict=True):
            store[row, positions_BT] = entry
        return tuple(store[:, : self.n_slots()] for store in self._entries[layer])

    def take(self, rows: Tensor) -> None:
        """Keep the given rows, in the given order; a row may be repeated (a prompt shared by its group)."""
        self._entries = [tuple(store[rows] for store in layer) for layer in self._entries]
