"""Rewards for the steps of a reply beside its outcome: in min form, gated, as a mean or as a sum.

A sum pays for every step, so a policy pads its replies with true and needless ones; the least of them pays for none
(PURE, arXiv:2504.15275), and lets no reward through for an answer whose working is wrong. Steps are rewarded by the
task's own check or by a process reward model, answers by the task alone.

Try it alone: `pytest tests/train/test_process.py`
"""

from __future__ import annotations

from dataclasses import replace

from zifio.config import ConfigError
from zifio.data.template import ChatTokenizer
from zifio.engine.scorer import Scorer
from zifio.tasks.environment import Interactive
from zifio.tasks.episode import Episode, conversation
from zifio.tasks.steps import Stepwise, split_steps
from zifio.tasks.task import Task
from zifio.train.config import Process


class StepRewards:
    """Puts the rewards of steps into episodes."""

    def __init__(
        self, process: Process, task: Task, tokenizer: ChatTokenizer, scorer: Scorer | None, where: str
    ) -> None:
        """`tokenizer` is the policy's. Raises ConfigError when nobody can reward the steps of this task."""
        if isinstance(task, Interactive):
            raise ConfigError(
                f"{where}.process: wanted a task of single questions, came {task.name}, which is played in turns. "
                "Leave process out."
            )
        if scorer is None and not isinstance(task, Stepwise):
            raise ConfigError(
                f"{where}.process.by: wanted a task that checks steps, as chain_sum and chain_mod do, came "
                f"{task.name}. Name a process reward model."
            )
        if scorer is not None and not scorer.by_step:
            raise ConfigError(
                f"{where}.process.by: wanted a process reward model (2 labels), came one that scores whole replies. "
                "Name a `prm` stage."
            )
        self.process, self.tokenizer, self.scorer = process, tokenizer, scorer

    def rewarded(self, task: Task, episodes_P_G: list[list[Episode]]) -> tuple[list[list[Episode]], float]:
        """(the episodes, FLOPs), with one reward made of outcome and steps in every verdict that is no error, what it
        is made of among its parts, and with credit by step where and how much of it is earned."""
        flat = [episode for group in episodes_P_G for episode in group]
        pieces = [split_steps(episode.reply.text) for episode in flat]
        by_step, flops = self._by_step(task, flat, pieces)
        done = iter([self._with(*one) for one in zip(flat, pieces, by_step, strict=True)])
        return [[next(done) for _ in group] for group in episodes_P_G], flops

    def _by_step(
        self, task: Task, episodes: list[Episode], pieces: list[list[str]]
    ) -> tuple[list[list[float | None]], float]:
        """(the reward of every step, None for what is no step of a working; FLOPs)."""
        if self.scorer is not None:
            asked = [(conversation(e.problem), steps) for e, steps in zip(episodes, pieces, strict=True)]
            scores = self.scorer.scores(asked)
            return [[*one] for one in scores.values], scores.flops
        assert isinstance(task, Stepwise)
        worth: dict[int | None, float | None] = {1: 1.0, 0: self.process.neutral, -1: 0.0, None: None}
        return [
            [worth[label] for label in task.check_steps(e.problem, steps)]
            for e, steps in zip(episodes, pieces, strict=True)
        ], 0.0

    def _with(self, episode: Episode, pieces: list[str], by_step: list[float | None]) -> Episode:
        verdict = episode.verdict
        if verdict.outcome == "error":
            return episode
        known = [reward for reward in by_step if reward is not None]
        total = combined(self.process, verdict.reward, known)
        parts = {**verdict.parts, "outcome": verdict.reward, "steps": float(len(known))}
        if known:
            parts |= {"step_min": min(known), "step_mean": sum(known) / len(known)}
        steps: list[tuple[int, float]] = []
        if self.process.credit == "step":
            each = self.process.weight / (len(known) if self.process.form == "mean" and known else 1)
            ends = step_ends(self.tokenizer, episode.reply.tokens, pieces)
            steps = [(end, each * p) for end, p in zip(ends, by_step, strict=True) if p is not None]
        return replace(episode, verdict=replace(verdict, reward=total, parts=parts), steps=steps)


def combined(process: Process, outcome: float, steps: list[float]) -> float:
    """One reward of an outcome's and its steps'; `Process` has the formulas."""
    if process.form == "min":
        return min(outcome, *steps) if steps else 0.0
    if process.form == "gated":
        return outcome if steps and min(steps) >= process.least else 0.0
    total = sum(steps)
    return outcome + process.weight * (total / len(steps) if steps and process.form == "mean" else total)


def step_ends(tokenizer: ChatTokenizer, tokens: list[int], pieces: list[str]) -> list[int]:
    """The place of the token that ends each piece of the tokens' text; one that two pieces share ends both.

    Looked for by halving: the text of a beginning of the tokens never shrinks as it grows.
    """
    ends, length, low = [], 0, 0
    for piece in pieces:
        length += len(piece)
        high = len(tokens) - 1
        while low < high:
            middle = (low + high) // 2
            if len(tokenizer.tokenizer.decode(tokens[: middle + 1], skip_special_tokens=False)) >= length:
                high = middle
            else:
                low = middle + 1
        ends.append(low)
    return ends
