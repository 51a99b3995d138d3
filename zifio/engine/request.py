"""What is asked of an engine and what it tells, as data that needs no torch and travels between processes.

Try it alone: `pytest tests/engine/test_queue.py`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from zifio.config import Sampling
from zifio.engine.guide import Drawing, Guide, PromptScores, Top

if TYPE_CHECKING:
    from torch import Tensor

Finish = Literal["stop", "length", "cancelled", "refused"]


@dataclass
class Completion:
    """What the model said: tokens (with the end token where it was drawn) and the log-prob of each."""

    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: Finish = "length"
    reason: str = field(default="", compare=False)
    """Why it ended, in words."""
    text: str | None = None
    """Where a stop string ended it: the text before that string. The tokens go on to the one that completed it.
    Of a drawing that a server tells of: the picture as a data URL."""
    experts_NLA: Tensor | None = field(default=None, compare=False)
    """With `record_routing`: the experts of each MoE layer for every token of prompt and reply but the last, which was
    never computed; int16."""
    prompt_scores: PromptScores | None = field(default=None, compare=False)
    n_cached: int = field(default=0, compare=False)
    """Tokens of the prompt that needed no computing."""
    tops: list[list[Top]] = field(default_factory=list, compare=False)
    """Beside each token the likeliest ones, where they are wanted."""

    def end(self) -> Completion:
        """How it ended, without the tokens: those were told as they came."""
        scores, n_cached = self.prompt_scores, self.n_cached
        return Completion([], [], self.finish, self.reason, prompt_scores=scores, n_cached=n_cached)


@dataclass(frozen=True)
class Request:
    """A prompt and how to answer it, once for each seed."""

    prompt: list[int]
    sampling: Sampling
    seeds: tuple[int, ...] = (0,)
    guides: tuple[Guide, ...] = ()
    """One for each seed, or none."""
    n_top: int = 0
    """How many of the likeliest tokens to tell beside each that is drawn."""
    score_prompt: bool = False
    """Whether to tell the log-probs of the prompt's tokens too."""
    drawing: Drawing | None = None
    """Draw codes instead of text."""
    pictures: tuple[np.ndarray, ...] = field(default=(), compare=False)
    """What the prompt's patches, numbered from 0, are of: uint8 [Y, X, 3] as the model's eye wants them. Whoever hands
    the request to an engine looks at them first."""

    @property
    def is_paired(self) -> bool:
        """Whether every reply takes two rows: guidance reads the blank prompt too."""
        return self.drawing is not None and self.drawing.is_guided


class Event(NamedTuple):
    """What a step did for one reply: the tokens that it drew, and the whole reply if it has ended."""

    id: int
    tokens: list[int]
    logps: list[float]
    completion: Completion | None
    tops: Sequence[list[Top]] = ()
    """Beside each token the likeliest ones, where they are wanted."""


class Load(NamedTuple):
    """How busy an engine is."""

    n_running: int
    n_waiting: int
    cache_used: float
    """Share of the pages that are held."""


@dataclass
class Stats:
    """What an engine has done."""

    steps: int = 0
    tokens: int = 0
    """Tokens drawn."""
    prefill_tokens: int = 0
    """Tokens of prompts computed, those of replies that were sent back among them."""
    shared_tokens: int = 0
    """Tokens of prompts that needed no computing, because a sample of the group or an earlier request had them."""
    preemptions: int = 0
    """Samples sent back to the queue."""
    drafts_proposed: int = 0
    drafts_accepted: int = 0
    peak_pages: int = 0
    """Most pages held at once."""
