"""A reward model's score as a reward of RL, for what no verifier can check (R1, section 2.3.4).

A score learnt from comparisons has no zero and no unit of its own (Bradley and Terry), so it counts in standard
deviations from the mean of what the starting model's replies get (Ziegler et al., arXiv:1909.08593, section 2.1): a
weight of 1 then means as much for every reward model. TRL adds scores as they are; a weight of w here is a weight of
w / deviation there, and what is subtracted drops out of every group's advantage.

Try it alone: `pytest tests/train/test_reward_model.py`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import NamedTuple

from zifio.config import ConfigError
from zifio.engine.scorer import Scorer
from zifio.tasks.environment import Interactive
from zifio.tasks.episode import Episode, conversation
from zifio.tasks.form import split_thinking
from zifio.tasks.task import Task
from zifio.train.config import RlStage


class Scale(NamedTuple):
    """Of the scores of the starting model's replies."""

    mean: float
    deviation: float


class ModelReward:
    """Puts a reward model's scores into episodes: as they are in the part `score`, on our scale in `model`."""

    def __init__(self, stage: RlStage, task: Task, scorer: Scorer) -> None:
        """Raises ConfigError when the model scores something else than whole replies, or there are none."""
        if isinstance(task, Interactive):
            raise ConfigError(
                f"{stage.name}.reward_model: wanted a task of single questions, came {task.name}, which is played in "
                "turns. Leave reward_model out."
            )
        if scorer.by_step:
            raise ConfigError(
                f"{stage.name}.reward_model: wanted a model that scores whole replies (1 label), came a process reward "
                'model. Name a `reward` stage, or set process = { form = "min", by = "NAME" }.'
            )
        self.stage, self.scorer = stage, scorer
        self.scale: Scale | None = None
        """Found before the first step, and in every checkpoint."""

    def rewarded(self, task: Task, episodes_P_G: list[list[Episode]]) -> tuple[list[list[Episode]], float]:
        """(the episodes with the two parts in every verdict that is no error, FLOPs)."""
        assert self.scale is not None, "found before the first step"
        values, flops = self._scores([episode for group in episodes_P_G for episode in group])
        scored = iter(values)
        return [[self._with(episode, next(scored)) for episode in group] for group in episodes_P_G], flops

    def settle(self, episodes_P_G: list[list[Episode]]) -> float:
        """Take the scale from these replies of the starting model; the FLOPs come back."""
        counted = [e for group in episodes_P_G for e in group if e.verdict.outcome != "error"]
        values, flops = self._scores(counted)
        self.scale = Scale(fmean(values), pstdev(values) or 1.0) if values else Scale(0.0, 1.0)
        return flops

    def _scores(self, episodes: Sequence[Episode]) -> tuple[list[float], float]:
        """(the score of every reply, FLOPs); a whole reply is encoded at once, as the `reward` stage does."""
        found = self.scorer.scores([(conversation(e.problem), [self._seen(e.reply.text)]) for e in episodes])
        return [value for (value,) in found.values], found.flops

    def _seen(self, text: str) -> str:
        return split_thinking(text).rest if self.stage.reward_on == "answer" else text

    def _with(self, episode: Episode, score: float) -> Episode:
        verdict = episode.verdict
        if verdict.outcome == "error" or self.scale is None:
            return episode
        parts = {**verdict.parts, "score": score, "model": (score - self.scale.mean) / self.scale.deviation}
        return replace(episode, verdict=replace(verdict, parts=parts))

    def summary(self) -> dict[str, float]:
        """What the stage's totals say of it."""
        if self.scale is None:
            return {}
        return {"reward_model_mean": self.scale.mean, "reward_model_deviation": self.scale.deviation}
