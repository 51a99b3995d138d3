"""A stage's seconds and memory, put together from what a rehearsal measured on this machine.

    training    steps x (fixed + tokens x share that learns x seconds per token)
    drawing     prompts x rows + steps of the longest reply x overhead + tokens x seconds per token
    the rest    loading, saving, checkpoints, judging

How long replies will be and how many groups will carry a signal is not known before a run; both are stated guesses, and
the interval is what their ends would take.

Try it: `pytest tests/plan/test_stages.py`
"""

from __future__ import annotations

from dataclasses import dataclass, field

SIGNAL = (0.1, 0.5, 0.9)
"""Share of an RL stage's groups whose rewards differ and are trained on: least, guess, most. It begins high and falls
as problems are mastered; half is the middle of what it can be, not a fit to any run."""
EARLY = 0.15
"""Share of an RL stage after which its replies are guessed to have found the form that pays."""


@dataclass(frozen=True)
class Drawing:
    """Seconds of drawing with one model on this machine."""

    prompt_s: float
    """To read one prompt and draw the first token of its reply."""
    step_s: float
    """Of a step, whatever the number of rows."""
    row_s: float
    """More for each row of a step."""
    judge_s: float = 0.0
    """To judge one reply."""

    def seconds(self, replies: int, mean: float, longest: float, side_by_side: int) -> float:
        """Of so many replies with this mean and greatest length, so many of them at once."""
        steps = max(replies / max(1, min(side_by_side, replies)) * mean, mean) + max(longest - mean, 0.0)
        return replies * (self.prompt_s + self.judge_s) + steps * self.step_s + replies * mean * self.row_s


@dataclass(frozen=True)
class Training:
    """Seconds of training with one model and layout on this machine."""

    fixed_s: float
    """Of a step, whatever its tokens: the optimizer, clipping, logging."""
    token_s: float
    """More for each token of a step."""


@dataclass(frozen=True)
class Lengths:
    """How long replies are, in tokens: the task's own documents, bare and worked, and the most that may be drawn."""

    prompt: float
    bare: float
    worked: float
    limit: int

    def mean(self, share_worked: float | None) -> float:
        """Of a model that shows its working so often; of an unknown one the middle of what can be."""
        if share_worked is None:
            return (min(self.bare, self.limit) + self.limit) / 2
        return min(share_worked * self.worked + (1 - share_worked) * self.bare, float(self.limit))


@dataclass(frozen=True)
class Draws:
    """What a stage draws at one time."""

    replies: int
    side_by_side: int
    lengths: Lengths
    times: float = 1.0
    """How often."""
    spread: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Times that, for the least seconds, the guess, the most: rounds of dynamic sampling."""


@dataclass(frozen=True)
class StageWork:
    """A stage as a forecast sees it."""

    name: str
    kind: str
    steps: int = 0
    step_tokens: float = 0.0
    """Tokens of a step, if all of them learn."""
    signal: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Share of them that learn: least, guess, most."""
    more_per_token: float = 1.0
    """Times the seconds per token: a teacher or a reference that reads the same text."""
    draws: tuple[Draws, ...] = ()
    share_worked: tuple[float | None, float | None, float | None] = (1.0, 1.0, 1.0)
    """How often replies show their working: for the least seconds, the guess, the most."""
    to_limit: bool = False
    """Whether replies may grow to the limit of tokens, in the end that takes most: RL finds what pays."""
    once_s: float = 0.0
    """Loading, saving, checkpoints."""
    peak_bytes: float = 0.0
    """The most that the process has held when the stage ends."""


@dataclass(frozen=True)
class StageForecast:
    """A stage's forecast."""

    name: str
    kind: str
    seconds: float
    low_s: float
    high_s: float
    peak_bytes: float
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of training, of drawing, and of the rest."""


def forecast_stage(work: StageWork, training: Training | None, drawing: Drawing | None) -> StageForecast:
    """Seconds of a stage with their interval."""
    ends = [_parts(work, training, drawing, place) for place in range(3)]
    low, guess, high = (sum(parts.values()) for parts in ends)
    return StageForecast(work.name, work.kind, guess, min(low, guess), max(high, guess), work.peak_bytes, ends[1])


def _parts(work: StageWork, training: Training | None, drawing: Drawing | None, place: int) -> dict[str, float]:
    out = {"training": 0.0, "drawing": 0.0, "rest": work.once_s}
    if training is not None and work.steps:
        learning = work.step_tokens * work.signal[place] * work.more_per_token
        out["training"] = work.steps * (training.fixed_s + learning * training.token_s)
    if drawing is not None:
        for draws in work.draws:
            mean = draws.lengths.mean(work.share_worked[place])
            if work.to_limit and place == 2:
                mean = float(draws.lengths.limit)
            longest = min(4 * mean, draws.lengths.limit)
            times = draws.times * draws.spread[place]
            out["drawing"] += times * drawing.seconds(draws.replies, mean, longest, draws.side_by_side)
    return out
