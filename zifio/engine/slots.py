"""Which sequence has which slot: room for a state of fixed size (engine/layered.py), one for each that is computed.

Try it alone: `pytest tests/engine/test_layered.py`
"""

from __future__ import annotations

from collections.abc import Callable


class Slots:
    """Ownership of `n` slots; what they hold is elsewhere, and copied by `copy`."""

    def __init__(self, n: int, copy: Callable[[int, int], None]) -> None:
        self._copy, self._free = copy, list(range(n))[::-1]

    @property
    def n_free(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    def take(self) -> int:
        """A slot, whose content means nothing."""
        assert self._free, "there are as many as rows"
        return self._free.pop()

    def copied(self, source: int) -> int:
        """A slot with the content of another."""
        target = self.take()
        self._copy(source, target)
        return target

    def give_back(self, slot: int) -> None:
        """Nobody has it any more."""
        assert slot >= 0 and slot not in self._free, f"slot {slot} was given back more often than taken"
        self._free.append(slot)
