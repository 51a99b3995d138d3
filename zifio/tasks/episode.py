"""Playing a task: a policy answers problems, the task judges; in RL, in evaluation, against any endpoint.

Judging is `zifio.tasks.runtime`'s: the one boundary around code that we do not trust to work, the verifier.

Try it alone: `pytest tests/tasks/test_episode.py`
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from zifio.config import Sampling
from zifio.seed import stream_seed
from zifio.tasks.runtime import judge_all
from zifio.tasks.task import Problem, Task, Verdict

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """One completion. `tokens` and `logps` are index-aligned and include the end token where it was
    sampled."""

    tokens: list[int]
    text: str
    logps: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] = "stop"
    experts_NLA: np.ndarray | None = field(default=None, compare=False, repr=False)
    """Where the sampler recorded it: the experts of every token of prompt and reply but the last, which it never
    computed, in each layer that has experts; int16."""


@runtime_checkable
class Policy(Protocol):
    """Whatever completes conversations: our engine, or a remote model."""

    def complete(
        self, conversations: list[list[Message]], n: int, sampling: Sampling, seeds: list[list[int]]
    ) -> list[list[Reply]]:
        """n replies to each conversation; reply j to conversation p draws from `seeds[p][j]` alone."""
        ...


@dataclass(frozen=True, slots=True)
class Episode:
    """A problem, what the policy said to it, and what the task said to that."""

    problem: Problem
    reply: Reply
    verdict: Verdict


def play(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    n: int,
    sampling: Sampling,
    seed: int,
    *names: int | str,
) -> list[list[Episode]]:
    """n episodes for each problem, in order. Every sample has its own seed, named by problem and place in the
    group, so that it does not depend on what else is played beside it."""
    conversations = [conversation(problem) for problem in problems]
    seeds = [[stream_seed(seed, *names, problem.id, j) for j in range(n)] for problem in problems]
    replies_P_G = policy.complete(conversations, n, sampling, seeds)
    shape = [len(replies) for replies in replies_P_G]
    assert shape == [n] * len(problems), f"policy: wanted {n} replies to each of {len(problems)} prompts, came {shape}"
    pairs = [(problem, reply) for problem, replies in zip(problems, replies_P_G, strict=True) for reply in replies]
    verdicts = judge_all(task, [(problem, reply.text) for problem, reply in pairs])
    episodes = [Episode(*pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]
    return [episodes[start : start + n] for start in range(0, len(episodes), n)]


def record(episode: Episode, place: int) -> dict[str, Any]:
    """The episode as one JSON object; `place` is its number within the group."""
    problem, reply, verdict = episode.problem, episode.reply, episode.verdict
    return {
        "problem": problem.id,
        "place": place,
        "prompt": problem.prompt,
        "response": reply.text,
        "gold": problem.gold,
        "outcome": verdict.outcome,
        "parts": verdict.parts,
        "reason": verdict.reason,
        "n_tokens": len(reply.tokens),
        "finish": reply.finish,
    }


def conversation(problem: Problem) -> list[Message]:
    """The messages that put the problem to a policy."""
    return [{"role": "user", "content": problem.prompt}]
