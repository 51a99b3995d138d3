"""What the doctor looks at, and how it says what it found.

Try it alone: `pytest tests/doctor/test_signs.py`
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

FEWEST = 6  # steps from which a course can be told
_PART, _LEAST = 5, 3  # a fifth of the steps, three at least, are the first of them, or the latest


@runtime_checkable
class Reading(Protocol):
    """A stage as the doctor reads it: `record.stage.StageRecord`, or what the board has read so far."""

    @property
    def name(self) -> str:
        """The stage."""
        ...

    @property
    def kind(self) -> str:
        """pretrain, rl, ..."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """As it was run."""
        ...

    @property
    def state(self) -> str:
        """done, running or stopped."""
        ...

    @property
    def ended(self) -> dict[str, Any]:
        """The error that ended it."""
        ...

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """The guard's."""
        ...

    @property
    def keys(self) -> list[str]:
        """What was logged."""
        ...

    def series(self, key: str) -> tuple[Any, Any]:
        """Steps and values of a metric, lists or arrays."""
        ...


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a stage."""

    cause: str
    """Its name, for scripts."""
    stage: str
    says: str
    """What is wrong, in words."""
    evidence: list[str]
    """The figures that show it, with their steps."""
    tries: list[str]
    """What to try: the key to set, and to what."""

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


@dataclass(frozen=True)
class Course:
    """A metric from its first steps to the latest."""

    key: str
    steps: np.ndarray
    values: np.ndarray
    size: int = field(init=False)
    """How many of them are called the first, or the latest."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", max(_LEAST, len(self.values) // _PART))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def first(self) -> float:
        """Mean of the first steps."""
        return float(self.values[: self.size].mean())

    @property
    def latest(self) -> float:
        """Mean of the latest."""
        return float(self.values[-self.size :].mean())

    def means(self, size: int = 0) -> np.ndarray:
        """The mean of every stretch of so many steps, by default `size` of them; the i-th ends at step i + size - 1."""
        size = size or self.size
        return np.convolve(self.values, np.ones(size) / size, mode="valid")

    def tell(self, form: str = ".3g") -> str:
        """`entropy: 0.62 at steps 1 to 4, 0.01 at steps 17 to 20`."""
        if len(self) < 2 * self.size:
            return f"{self.key}: {self.latest:{form}} at {self._span(self.steps[-self.size :])}"
        early, late = self._span(self.steps[: self.size]), self._span(self.steps[-self.size :])
        return f"{self.key}: {self.first:{form}} at {early}, {self.latest:{form}} at {late}"

    @staticmethod
    def _span(steps: np.ndarray) -> str:
        return f"step {steps[0]}" if steps[0] == steps[-1] else f"steps {steps[0]} to {steps[-1]}"


def course(reading: Reading, key: str, fewest: int = FEWEST) -> Course | None:
    """That metric, or None where it was logged too few times to tell."""
    steps, values = reading.series(key)
    if len(values) < fewest:
        return None
    return Course(key, np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64))
