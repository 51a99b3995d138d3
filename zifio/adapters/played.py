"""One episode of any task, driven from outside: turns go in, messages come out, a verdict ends it.

zifio's own loops ask a policy; elsewhere the policy's side has the loop. Adapters are thin shells around `Played`, so
prompts, answers, verdicts and chance are those of `tasks.episode.play`. Single questions are episodes of one turn.

Try it alone: `python -c "from zifio.adapters.played import Series; print(Series('calculator').reset().messages)"`
"""

from __future__ import annotations

from typing import Any

from zifio.config import ConfigError
from zifio.seed import stream_seed
from zifio.tasks.catalog import named_task
from zifio.tasks.environment import LEARNER, Interactive, Message, Observation, Turn, conversation, tools_of
from zifio.tasks.episode import concluded, started
from zifio.tasks.runtime import judge
from zifio.tasks.task import Problem, Split, Task, Verdict

__all__ = ["Broken", "Played", "Series", "named_task"]


class Broken(RuntimeError):
    """The check or the environment broke, so there is no reward: neither right nor wrong, and no zero."""


class Played:
    """An episode. `verdict` is None until it is over."""

    def __init__(self, task: Task, problem: Problem, seed: int, max_turns: int | None = None) -> None:
        """`seed` is the sample's, as in `play`; `max_turns` overrides the task's own limit."""
        self.task, self.problem = task, problem
        self.tools = tools_of(task)
        self.messages: list[Message] = conversation(problem)
        self.environment = started(task, problem, seed) if isinstance(task, Interactive) else None
        self.max_turns = max_turns or (task.max_turns if isinstance(task, Interactive) else 1)
        self.n_turns, self.is_cut = 0, False  # is_cut: the limit of turns ended it
        self.verdict: Verdict | None = None
        self._text = self._fault = ""

    def say(self, turn: Turn) -> list[Message]:
        """What is answered; nothing when the episode is over by it. Raises ConfigError for self-play."""
        if self.verdict is not None:
            raise RuntimeError(f"the episode of {self.problem.id} is over: reset before the next turn")
        self.messages.append(turn.message())
        self.n_turns += 1
        self._text = turn.text
        try:
            seen = self.environment.step(turn) if self.environment else Observation(done=True)
        except Exception as error:  # the boundary around code that is not trusted, as in `play`
            self._fault, seen = repr(error), Observation(done=True)
        if seen.voice != LEARNER and not seen.done:
            raise ConfigError(
                f"{self.task.name}: wanted one voice, came self-play, as zifio alone runs it. Set opponent."
            )
        self.is_cut = not seen.done and self.n_turns >= self.max_turns
        self.messages += () if seen.done else seen.messages
        if seen.done or self.is_cut:
            self.end()
        return [] if self.verdict else list(seen.messages)

    def end(self) -> Verdict:
        """The verdict; an episode that is not over is cut here."""
        if self.verdict is None and isinstance(self.task, Interactive) and self.environment:
            self.verdict = concluded(self.task, self.problem, self.environment, self._text, self._fault)
        elif self.verdict is None:
            self.verdict = judge(self.task, self.problem, self._text)
        return self.verdict

    def reward(self) -> float:
        """In [0, 1], of an episode that is over. Raises Broken."""
        verdict = self.end()
        if verdict.outcome == "error":
            raise Broken(verdict.reason)
        return verdict.reward

    def account(self) -> dict[str, Any]:
        """What there is to tell beside the messages, for logs; never the right answer before the end."""
        verdict = self.verdict
        end = verdict and {"outcome": verdict.outcome, "parts": {**verdict.parts}, "reason": verdict.reason}
        return {"problem": self.problem.id, "n_turns": self.n_turns, **(end or {})}


class Series:
    """Problems one after another, as one reset after another wants them."""

    def __init__(self, task: Task | str, split: Split = "train", seed: int = 0) -> None:
        self.task = named_task(task) if isinstance(task, str) else task
        self.split: Split = split
        self.seed, self.index = seed, -1

    def reset(self, seed: int | None = None, index: int | None = None) -> Played:
        """The next problem, the one at `index`, or the first of another seed. Raises ConfigError beyond the last."""
        if seed is not None:
            self.seed, self.index = seed, -1
        self.index = self.index + 1 if index is None else index
        problem = self.task.problem(self.split, self.index, self.seed)
        return Played(self.task, problem, stream_seed(self.seed, problem.id, 0))
