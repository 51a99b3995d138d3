"""Playing a task: a policy answers problems, the task judges; in RL, in evaluation, against any endpoint.

A task that is played in turns (`environment.Interactive`) answers back; all others are asked once. Judging is
`zifio.tasks.runtime`'s: the one boundary around code that we do not trust to work, the verifier.

Try it alone: `pytest tests/tasks/test_episode.py`
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from zifio.config import ConfigError, Sampling
from zifio.seed import stream_seed
from zifio.tasks.environment import Environment, Interactive, Message, Observation, Transcript, Turn, conversation
from zifio.tasks.runtime import judge, judge_all
from zifio.tasks.task import Problem, Task, Verdict


@dataclass(frozen=True, slots=True)
class Reply:
    """All that came after the prompt. `tokens` and `logps` are index-aligned and include the end token where it was
    sampled."""

    tokens: list[int]
    text: str
    """What is judged: of several turns the last."""
    logps: list[float] = field(default_factory=list)
    """0 for a token that the policy did not sample."""
    finish: Literal["stop", "length"] = "stop"
    """length: cut, by the limit of tokens or of turns."""
    experts_NLA: np.ndarray | None = field(default=None, compare=False, repr=False)
    """Where the sampler recorded it: the experts of every token of prompt and reply but the last, which it never
    computed, in each layer that has experts; int16."""
    sampled: list[bool] = field(default_factory=list)
    """Which tokens the policy sampled; the others are what it was told between its turns. Empty: all of them."""
    messages: list[Message] = field(default_factory=list)
    """Of an episode in turns: what came after the opening."""
    n_turns: int = 1
    n_calls: int = 0
    """Tools called."""
    n_failures: int = 0
    """Those of the calls that failed."""
    fault: str = ""
    """Why the environment could not go on; an episode with a fault counts neither as right nor as wrong."""

    @property
    def own(self) -> list[bool]:
        """Of every token whether the policy sampled it."""
        return self.sampled or [True] * len(self.tokens)

    @property
    def n_sampled(self) -> int:
        """Tokens that the policy sampled: the length of what it said."""
        return sum(self.sampled) if self.sampled else len(self.tokens)


@runtime_checkable
class Policy(Protocol):
    """Whatever completes conversations: our engine, or a remote model."""

    def complete(
        self, conversations: list[list[Message]], n: int, sampling: Sampling, seeds: list[list[int]]
    ) -> list[list[Reply]]:
        """n replies to each conversation; reply j to conversation p draws from `seeds[p][j]` alone."""
        ...


class Start(NamedTuple):
    """An episode in turns that is to be played."""

    messages: list[Message]
    environment: Environment
    seed: int


@runtime_checkable
class Player(Protocol):
    """A policy that can play in turns."""

    def converse(
        self, starts_P_G: list[list[Start]], sampling: Sampling, max_turns: int, tools: list[dict[str, Any]]
    ) -> list[list[Reply]]:
        """A reply for each start, those of a group to the same messages. `sampling.max_new_tokens` bounds what the
        learner says in all of its turns. An environment that raises makes a reply with a fault, and nothing else."""
        ...


@dataclass(frozen=True, slots=True)
class Episode:
    """A problem, what the policy said to it, and what the task said to that."""

    problem: Problem
    reply: Reply
    verdict: Verdict
    steps: list[tuple[int, float]] = field(default_factory=list)
    """Where steps are rewarded by themselves: each one's last token in the reply, and its reward."""


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
    seeds = [[stream_seed(seed, *names, problem.id, j) for j in range(n)] for problem in problems]
    if isinstance(task, Interactive):
        return _play_in_turns(policy, task, problems, seeds, sampling)
    conversations = [conversation(problem) for problem in problems]
    replies_P_G = policy.complete(conversations, n, sampling, seeds)
    _check_shape(replies_P_G, n, problems)
    pairs = [(problem, reply) for problem, replies in zip(problems, replies_P_G, strict=True) for reply in replies]
    verdicts = judge_all(task, [(problem, reply.text) for problem, reply in pairs])
    episodes = [Episode(*pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]
    return [episodes[start : start + n] for start in range(0, len(episodes), n)]


def _play_in_turns(
    policy: Policy, task: Interactive, problems: Sequence[Problem], seeds_P_G: list[list[int]], sampling: Sampling
) -> list[list[Episode]]:
    """`play` for a task that answers back."""
    if not isinstance(policy, Player):
        raise ConfigError(
            f"task {task.name}: wanted a policy that can be spoken to in turns, came {type(policy).__name__}, which "
            "answers once. Choose a task of single questions."
        )
    starts_P_G = [
        [Start(conversation(problem), started(task, problem, seed), seed) for seed in group]
        for problem, group in zip(problems, seeds_P_G, strict=True)
    ]
    replies_P_G = policy.converse(starts_P_G, sampling, task.max_turns, task.tools)
    _check_shape(replies_P_G, len(seeds_P_G[0]) if seeds_P_G else 0, problems)
    return [
        [
            Episode(problem, reply, concluded(task, problem, start.environment, reply.text, reply.fault))
            for start, reply in zip(starts, replies, strict=True)
        ]
        for problem, starts, replies in zip(problems, starts_P_G, replies_P_G, strict=True)
    ]


def started(task: Interactive, problem: Problem, seed: int) -> Environment:
    """A new episode; where none can be had, one that breaks at its first step and says why."""
    try:
        return task.start(problem, stream_seed(seed, "environment"))
    except Exception as error:  # as in `judge`: no worse than a check that breaks
        return _Broken(error)


@dataclass(frozen=True)
class _Broken:
    """An environment that could not be made."""

    error: Exception
    instant: bool = True

    def step(self, turn: Turn) -> Observation:
        """Raises what making it raised."""
        raise self.error

    def verdict(self, text: str) -> Verdict | None:
        """Nothing."""
        return None


def concluded(task: Task, problem: Problem, environment: Environment, text: str, fault: str = "") -> Verdict:
    """What the environment says of an episode whose last turn is `text`, or the task of that text; an error where the
    environment broke, as `fault` says or while it judged."""
    if not fault:
        try:
            verdict = environment.verdict(text)
        except Exception as error:  # as in `judge`
            fault = repr(error)
        else:
            return judge(task, problem, text) if verdict is None else verdict
    return Verdict("error", 0.0, {}, f"{task.name}: the environment of {problem.id} broke: {fault}")


def _check_shape(replies_P_G: list[list[Reply]], n: int, problems: Sequence[Problem]) -> None:
    shape = [len(replies) for replies in replies_P_G]
    assert shape == [n] * len(problems), f"policy: wanted {n} replies to each of {len(problems)} prompts, came {shape}"


def record(episode: Episode, place: int) -> dict[str, Any]:
    """The episode as one JSON object; `place` is its number within the group."""
    problem, reply, verdict = episode.problem, episode.reply, episode.verdict
    return (
        {
            "problem": problem.id,
            "place": place,
            "prompt": problem.prompt,
            "response": reply.text,
            "gold": problem.gold,
            "outcome": verdict.outcome,
            "parts": verdict.parts,
            "reason": verdict.reason,
            "n_tokens": reply.n_sampled,
            "finish": reply.finish,
        }
        | ({"pictures": list(problem.pictures)} if problem.pictures else {})
        | (told(conversation(problem), reply) if reply.messages else {})
    )


def told(opening: list[Message], episode: Reply | Transcript) -> dict[str, Any]:
    """What the record of an episode in turns says more than that of a single reply."""
    counts = {"n_turns": episode.n_turns, "n_calls": episode.n_calls, "n_failures": episode.n_failures}
    return {"messages": [*opening, *episode.messages], **counts}
