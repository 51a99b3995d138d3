"""What may steer a reply while it is drawn, and what is told beside it: the borders between the engine and a server.

Try it alone: `pytest tests/engine/test_guide.py`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

Top = tuple[int, float]
"""A token and its log-prob."""


@runtime_checkable
class Guide(Protocol):
    """Stands beside one reply: before each draw it says what may be drawn, and then it hears what was.

    The log-probs of drawn tokens stay those of the policy alone. Replies with a guide are drawn without drafts.
    """

    def bias(self) -> np.ndarray | None:
        """What is added to the next token's logits, float32 [V], -inf for what must not come; None: nothing."""
        ...

    def hear(self, token: int) -> str:
        """A token was drawn (the end token is not told). Why the reply ends with it, or nothing."""
        ...


class Drawing(NamedTuple):
    """That a reply is a drawing: codes come, as many as a drawing has, instead of text."""

    scale: float = 1.0
    """Of classifier-free guidance (arXiv:2207.12598): logits are u + scale (c - u), with u those of `blank`."""
    blank: tuple[int, ...] = ()
    """The prompt that asks for nothing, as long as the prompt (`models.janus_config.unconditioned`); at scale 1 none.

    It is computed beside the prompt, in a row of its own that takes the same tokens."""

    @property
    def is_guided(self) -> bool:
        """Whether the blank prompt counts."""
        return self.scale != 1


class Bias(NamedTuple):
    """Biases of some rows of a batch of logits."""

    row_R: np.ndarray
    bias_RV: np.ndarray


@dataclass
class PromptScores:
    """Log-probs of a prompt's own tokens at temperature 1, as they come: of the first nothing can be said."""

    logps: list[float | None]
    tops: list[list[Top]]
    """The likeliest tokens in place of each."""

    @classmethod
    def of(cls, n_tokens: int) -> PromptScores:
        """For a prompt of so many tokens, nothing known yet."""
        return cls([None] * n_tokens, [[] for _ in range(n_tokens)])
