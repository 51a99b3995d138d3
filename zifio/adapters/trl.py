"""TRL (1.16): any task in `GRPOTrainer`.

    task = named_task("calculator")
    GRPOTrainer(model, reward_funcs=reward_func(task), train_dataset=Dataset.from_list(rows(task, 1000)),
                environment_factory=environment_factory(task), args=GRPOConfig(max_tool_calling_iterations=3, ...))

A task of single questions wants no factory. Tools become methods of the environment; a game has one, `say`, because
TRL lets nobody but a tool answer. The reward is a function and no `get_reward`, which is not told what the model said
last. A verdict of `error` is None, which TRL leaves out of the group's mean and of the gradient.

Try it alone: `python -c "from zifio.adapters.trl import *; print(rows(named_task('calculator'), 1))"`
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from zifio.adapters.functions import as_function
from zifio.adapters.played import Played, named_task, turn_of
from zifio.config import ConfigError
from zifio.seed import stream_seed
from zifio.tasks.environment import Interactive, Turn, conversation
from zifio.tasks.runtime import judge_all
from zifio.tasks.task import Problem, Split, Task, Verdict

__all__ = ["environment_factory", "named_task", "reward_func", "rows"]

_OVER = "The episode is over."


def rows(task: Task, n: int, split: Split = "train", seed: int = 0, first: int = 0) -> list[dict[str, Any]]:
    """Rows for `Dataset.from_list`: the prompt, and the problem for environment and reward."""
    problems = [task.problem(split, index, seed) for index in range(first, first + n)]
    return [{"prompt": conversation(problem), "problem": asdict(problem)} for problem in problems]


def reward_func(task: Task) -> Callable[..., list[float | None]]:
    """The task's reward of each completion, a function of TRL's; None where the check or the environment broke."""

    def zifio_reward(completions: list[Any], problem: list[dict[str, str]], **columns: Any) -> list[float | None]:
        last = [said if isinstance(said, str) else said[-1] for said in completions]
        if (environments := columns.get("environments")) is not None:
            verdicts = [environment._end(said) for environment, said in zip(environments, last, strict=True)]
        else:
            problems = [Problem(**one) for one in problem]
            texts = [turn_of(said, has_tools=False).text for said in last]
            verdicts = judge_all(task, list(zip(problems, texts, strict=True)))
        return [None if verdict.outcome == "error" else verdict.reward for verdict in verdicts]

    return zifio_reward


def environment_factory(task: Task, seed: int = 0) -> type[_Environment]:
    """What `GRPOTrainer(environment_factory=...)` takes, for a task in turns: an episode at a time, whose tools are
    methods. Chance is drawn anew at each reset, by the resets' order. Raises ConfigError for single questions."""
    if not isinstance(task, Interactive):
        raise ConfigError(f"{task.name}: wanted a task in turns, came one of single questions. Leave the factory out.")
    methods = {tool["function"]["name"]: as_function(tool, lambda self, call: self._ask(Turn("", (call,))))
               for tool in task.tools}  # fmt: skip
    settings = {"_task": task, "_seed": seed, "_resets": itertools.count()}
    return type("ZifioEnvironment", (_Environment if methods else _Game,), {**settings, **methods})


class _Environment:
    """An episode at a time. To TRL every method is a tool, unless it begins with an underscore or is `reset`."""

    _task: ClassVar[Interactive]
    _seed: ClassVar[int]
    _resets: ClassVar[Iterator[int]]

    def reset(self, problem: dict[str, str], **row: Any) -> None:
        """A new episode of the row's problem; what there is to say of it stands in the prompt already."""
        drawn = stream_seed(self._seed, problem["id"], next(self._resets))
        # where there are tools TRL counts the turns (max_tool_calling_iterations): it hands on calls one by one
        self._played = Played(self._task, Problem(**problem), drawn, sys.maxsize if self._task.tools else None)

    def _ask(self, turn: Turn) -> str:
        """What is answered, a fault of the call itself included: told in zifio's words."""
        heard = self._played.say(turn) if self._played.verdict is None else []
        return "\n".join(message["content"] for message in heard) or (_OVER if self._played.verdict else "")

    def _end(self, said: Mapping[str, Any]) -> Verdict:
        """The verdict. What the model said last is its last turn, unless that were calls that nobody answered."""
        if self._played.verdict is None and said["role"] == "assistant" and not said.get("tool_calls"):
            self._played.say(turn_of(said, has_tools=False))
        return self._played.end()


class _Game(_Environment):
    """A game has no tools of its own."""

    def say(self, text: str) -> str:
        """Says something to the game, such as a move, and returns what it answers.

        Args:
            text: what to say, just as without a tool
        """
        return self._ask(Turn(text))
