"""Drawing a step's rollouts: which problems, how hard, how many rounds, and what the replies are worth.

Dynamic sampling is DAPO's (arXiv:2503.14476, section 3.2), overlong shaping its section 3.4.

Try it alone: `pytest tests/train/test_draw.py`
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from zifio.config import ConfigError
from zifio.engine.policy import LocalPolicy, sampling_flops
from zifio.models.lora import folded
from zifio.seed import nth, stream_seed
from zifio.tasks.episode import Episode, Reply, play
from zifio.tasks.task import Problem, Task, Verdict
from zifio.train.advantage import is_informative, overlong_punishment
from zifio.train.config import RlStage
from zifio.train.curriculum import Difficulty


class VerifierBroke(ConfigError):
    """Too many checks broke for a step to be worth anything; the message has an example."""


@dataclass(frozen=True)
class Drawn:
    """The rollouts that one step trains on, and what drawing them was like."""

    episodes_P_G: list[list[Episode]]
    metrics: dict[str, float]
    flops: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON holds it without loss."""
        return asdict(self)

    @staticmethod
    def from_json(plain: dict[str, Any]) -> Drawn:
        """What `to_json` gave."""
        groups = [
            [
                Episode(_problem(e["problem"]), Reply(**e["reply"]), Verdict(**e["verdict"]), [*map(tuple, e["steps"])])
                for e in group
            ]
            for group in plain["episodes_P_G"]
        ]
        return Drawn(groups, plain["metrics"], plain["flops"], plain["seconds"])


@runtime_checkable
class Rewarder(Protocol):
    """Whoever rewards replies beside the task."""

    def rewarded(self, task: Task, episodes_P_G: list[list[Episode]]) -> tuple[list[list[Episode]], float]:
        """(the episodes with what they are worth in their verdicts, FLOPs)."""
        ...


def rewarded(
    rewarders: Sequence[Rewarder], task: Task, episodes_P_G: list[list[Episode]]
) -> tuple[list[list[Episode]], float]:
    """(what all of them, one after the other, make of the episodes, FLOPs)."""
    total = 0.0
    for one in rewarders:
        episodes_P_G, flops = one.rewarded(task, episodes_P_G)
        total += flops
    return episodes_P_G, total


class Drawing:
    """Draws the rollouts of a step: a pure function of the policy, the step and the difficulty so far."""

    def __init__(
        self, stage: RlStage, seed: int, task: Task, given: Sequence[Problem] = (), rewarders: Sequence[Rewarder] = ()
    ) -> None:
        """Draws the task's own problems, or walks through the `given` ones.

        Raises ConfigError when the task cannot follow the stage's curriculum.
        """
        self.stage, self.full_task, self.given, self.rewarders = stage, task, given, rewarders
        self.seed = stream_seed(seed, "rl", stage.name)
        self.difficulty = Difficulty(stage.curriculum, task, stage.name) if stage.curriculum else None

    def task(self) -> Task:
        """The task as hard as it is now."""
        return self.difficulty.task() if self.difficulty else self.full_task

    def draw(self, step: int, policy: LocalPolicy) -> Drawn:
        """Sample and judge, in as many rounds as the stage wants, and let the difficulty follow.

        Raises ConfigError when the verifier breaks too often.
        """
        stage, task, began = self.stage, self.task(), time.perf_counter()
        n_rounds = stage.max_rounds or 1
        kept: list[list[Episode]] = []
        drawn: list[list[Episode]] = []
        scoring = 0.0
        for number in range(step * n_rounds, (step + 1) * n_rounds):
            groups, spent = rewarded(self.rewarders, task, self._played(policy, number, step))
            scoring += spent
            drawn += groups
            if stage.max_rounds is not None:
                informative = is_informative(*rewards(stage, groups)).tolist()
                groups = [group for group, keep in zip(groups, informative, strict=True) if keep]
            kept = (kept + groups)[: stage.prompts]
            if len(kept) == stage.prompts:
                break
        policy.engine.release()
        check_verifier(stage, task, drawn)
        metrics = rollout_metrics(stage, drawn, *rewards(stage, drawn))
        if stage.max_rounds is not None:
            metrics["rollouts/rounds"] = len(drawn) // stage.prompts
            metrics["rollouts/dropped_groups"] = len(drawn) - len(kept)
        if self.difficulty is not None:
            metrics[f"curriculum/{self.difficulty.curriculum.option}"] = self.difficulty.value
            if "pass_at_1" in metrics:
                self.difficulty.follow(metrics["pass_at_1"])
        flops = sampling_flops(policy, task, drawn) + scoring
        return Drawn(kept, metrics, flops, time.perf_counter() - began)

    def first_round(self, policy: LocalPolicy) -> list[list[Episode]]:
        """Replies to the first step's problems, as the first step draws them, with the task's verdicts alone."""
        groups = self._played(policy, 0, 0)
        policy.engine.release()
        return groups

    def _played(self, policy: LocalPolicy, number: int, step: int) -> list[list[Episode]]:
        """One round of groups, the `number`th, which belongs to this step."""
        stage, task = self.stage, self.task()
        indices = range(number * stage.prompts, (number + 1) * stage.prompts)
        problems = [self._problem(task, index) for index in indices]
        with folded(policy.model):
            return play(policy, task, problems, stage.group, stage.sampling, self.seed, "step", step)

    def _problem(self, task: Task, index: int) -> Problem:
        """The index-th problem; those that are given come in a new order every epoch."""
        if not self.given:
            return task.problem("train", index, self.seed)
        return nth(self.given, index, self.seed, "given")


def _problem(plain: dict[str, Any]) -> Problem:
    return Problem(**{**plain, "pictures": tuple(plain.get("pictures", ()))})  # JSON has no tuples


def rewards(stage: RlStage, episodes_P_G: list[list[Episode]]) -> tuple[Tensor, Tensor]:
    """(reward, counted), [P, G] each: what every rollout is worth, 0 and False where its check broke."""
    n_each = len(episodes_P_G[0]) if episodes_P_G else stage.group
    reward_PG = torch.zeros(len(episodes_P_G), n_each)
    counted_PG = torch.ones(len(episodes_P_G), n_each, dtype=torch.bool)
    for p, group in enumerate(episodes_P_G):
        for g, episode in enumerate(group):
            verdict = episode.verdict
            if verdict.outcome == "error":
                counted_PG[p, g] = False
                continue
            worth = stage.accuracy_weight * verdict.reward
            worth += stage.reward_weight * verdict.parts["model"] if stage.reward_model else 0.0
            reward_PG[p, g] = worth + stage.format_weight * verdict.parts.get("format", 0.0) + _length(stage, episode)
    return reward_PG, counted_PG


def _length(stage: RlStage, episode: Episode) -> float:
    return overlong_punishment(episode.reply.n_sampled, stage.sampling.max_new_tokens, stage.overlong_cache)


def check_verifier(stage: RlStage, task: Task, episodes_P_G: list[list[Episode]]) -> None:
    """Raise VerifierBroke when it broke on more rollouts than `most_errors` allows."""
    broken = [e.verdict.reason for group in episodes_P_G for e in group if e.verdict.outcome == "error"]
    n_rollouts = sum(map(len, episodes_P_G))
    if len(broken) > stage.most_errors * n_rollouts:
        raise VerifierBroke(
            f"{stage.name}: the verifier of {task.name} broke on {len(broken)} of {n_rollouts} "
            f"rollouts, more than most_errors = {stage.most_errors:g} allows; for example: {broken[0]}. "
            "Mend the verifier; the last checkpoint is kept."
        )


def rollout_metrics(
    stage: RlStage, episodes_P_G: list[list[Episode]], reward_PG: Tensor, counted_PG: Tensor
) -> dict[str, float]:
    """What to report of a step's rollouts, under TRL's names where it has them; means over checks that worked."""
    episodes = [e for group in episodes_P_G for e in group if e.verdict.outcome != "error"]
    out: dict[str, float] = {"n_verifier_errors": int((~counted_PG).sum())}
    if not episodes:
        return out
    n = len(episodes)
    lengths = {"right": [], "wrong": []}
    for episode in episodes:
        lengths[episode.verdict.outcome].append(episode.reply.n_sampled)
    for outcome, values in lengths.items():
        if values:
            out[f"completions/mean_length_{outcome}"] = sum(values) / len(values)
    for part in sorted({name for e in episodes for name in e.verdict.parts}):
        out[f"rewards/{part}/mean"] = sum(e.verdict.parts.get(part, 0.0) for e in episodes) / n
    if stage.overlong_cache:
        out["rewards/overlong/mean"] = sum(_length(stage, e) for e in episodes) / n
    out |= _turn_metrics(episodes)
    counted = reward_PG[counted_PG]
    right_PG = torch.tensor([[e.verdict.outcome == "right" for e in group] for group in episodes_P_G])
    if n > 1:
        out["reward_std"] = counted.std().item()
    return out | {
        "reward": counted.mean().item(),
        "frac_reward_zero_std": (~is_informative(reward_PG, counted_PG)).float().mean().item(),
        "pass_at_1": right_PG[counted_PG].float().mean().item(),
        "pass_at_group": right_PG.any(dim=1).float().mean().item(),
        "completions/mean_length": sum(map(sum, lengths.values())) / n,
        "completions/clipped_ratio": sum(e.reply.finish == "length" for e in episodes) / n,
    }


def _turn_metrics(episodes: list[Episode]) -> dict[str, float]:
    """What episodes in turns add: turns, calls per episode, and the share of calls that failed."""
    replies = [episode.reply for episode in episodes if episode.reply.messages]
    if not replies:
        return {}
    n_calls = sum(reply.n_calls for reply in replies)
    out = {
        "turns/mean": sum(reply.n_turns for reply in replies) / len(replies),
        "tools/call_frequency": n_calls / len(replies),
        "tools/share_of_episodes": sum(reply.n_calls > 0 for reply in replies) / len(replies),
    }
    return out | ({"tools/failure_frequency": sum(reply.n_failures for reply in replies) / n_calls} if n_calls else {})
