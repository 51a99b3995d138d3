"""TRL (1.16): any task in `GRPOTrainer`.

    task = named_task("calculator")
    GRPOTrainer(model, reward_funcs=reward_func(task), train_dataset=Dataset.from_list(rows(task, 1000)),
                environment_factory=environment_factory(task), args=GRPOConfig(max_tool_calling_iterations=3, ...))

Single questions want no factory. Tools become methods of the environment; a game has one, `say`, because in TRL only a
tool answers. The reward is a function and no `get_reward`, which is not told what the model said last. A verdict of
`error` is None: TRL leaves it out of the group's mean and of the gradient. Beside tools TRL reads replies by the chat
template and drops an empty thinking: give `reward_func` the tokenizer where a task wants it.

Try it alone: `python -c "from zifio.adapters.trl import *; print(rows(named_task('calculator'), 1))"`
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import count, repeat
from typing import Any

from zifio.adapters.played import Played, named_task
from zifio.adapters.translate import as_function, text_of, turn_of, with_empty_thinking
from zifio.config import ConfigError
from zifio.seed import stream_seed
from zifio.tasks.environment import Interactive, Turn, conversation
from zifio.tasks.runtime import judge_all
from zifio.tasks.task import Problem, Split, Task, Verdict

__all__ = ["environment_factory", "named_task", "reward_func", "rows"]


def rows(task: Task, n: int, split: Split = "train", seed: int = 0, first: int = 0) -> list[dict[str, Any]]:
    """Rows for `Dataset.from_list`: the prompt, and the problem for environment and reward."""
    problems = [task.problem(split, index, seed) for index in range(first, first + n)]
    return [{"prompt": conversation(problem), "problem": asdict(problem)} for problem in problems]


def reward_func(task: Task, tokenizer: Any = None) -> Callable[..., list[float | None]]:
    """The task's reward of each completion, a function of TRL's; None where the check or the environment broke."""

    def zifio_reward(completions: list[Any], problem: list[dict[str, Any]], **columns: Any) -> list[float | None]:
        last = [said if isinstance(said, str) else said[-1] for said in completions]
        if tokenizer is not None:
            raw = tokenizer.batch_decode(columns["completion_ids"], skip_special_tokens=True)
            last = [*map(with_empty_thinking, last, raw)]
        if environments := columns.get("environments"):
            verdicts = [environment._end(said) for environment, said in zip(environments, last, strict=True)]
        else:
            texts = [turn_of(said, has_tools=False).text for said in last]
            verdicts = judge_all(task, [(Problem(**one), text) for one, text in zip(problem, texts, strict=True)])
        return [None if verdict.outcome == "error" else verdict.reward for verdict in verdicts]

    return zifio_reward


def environment_factory(task: Task, seed: int = 0) -> type:
    """What GRPOTrainer takes, for a task in turns; ConfigError for others. Chance is drawn anew at each reset."""
    if not isinstance(task, Interactive):
        raise ConfigError(f"{task.name}: wanted a task in turns, came one of single questions. Leave the factory out.")
    tools = [as_function(tool, lambda self, call: self._ask(Turn("", (call,)))) for tool in task.tools]
    known = {"_task": task, "_seeds": map(stream_seed, repeat(seed), count())}
    known |= {tool.__name__: tool for tool in tools}
    return type("ZifioEnvironment", (_Environment if tools else _Game,), known)


class _Environment:
    """An episode at a time. To TRL every method is a tool, unless it begins with an underscore or is `reset`."""

    _task: Interactive
    _seeds: Iterator[int]

    def reset(self, problem: dict[str, Any], **row: Any) -> None:
        """A new episode of the row's problem; what there is to say of it stands in the prompt already."""
        limit = sys.maxsize if self._task.tools else None  # calls come one by one: max_tool_calling_iterations
        self._played = Played(self._task, Problem(**problem), next(self._seeds), limit)

    def _ask(self, turn: Turn) -> str:
        """What is answered, a fault of the call itself included: told in zifio's words."""
        heard = [] if self._played.verdict else self._played.say(turn)
        return "The episode is over." if self._played.verdict else text_of(heard)

    def _end(self, said: Mapping[str, Any]) -> Verdict:
        """The verdict, after the turn that the model said last."""
        if self._played.verdict is None:
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
