"""Gymnasium (1.4): any task as an environment of texts.

    env = gymnasium.make("zifio.adapters.gym:zifio/Task-v0", task="calculator")
    prompt, info = env.reset(seed=1)
    text, reward, terminated, truncated, info = env.step("<think></think><answer>15</answer>")

An observation is what is said to the policy, as text; `info` has it as messages, with the tools on offer and at the end
the verdict's parts. An action is a text, with its tool calls as DeepSeek, Qwen or Hermes write them, or an assistant's
message. `truncated` is the limit of turns. A check that breaks raises `Broken`: a reward it has none.

Try it alone: `python -c "from zifio.adapters.gym import *; print(TaskEnv('calculator').reset(seed=1))"`
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import copy
import string
from collections.abc import Mapping
from typing import Any

import gymnasium

from zifio.adapters.played import Broken, Played, Series
from zifio.adapters.translate import text_of, turn_of
from zifio.tasks.environment import Message
from zifio.tasks.task import Split, Task

__all__ = ["Broken", "TaskEnv"]


class Words(gymnasium.spaces.Text):
    """Any text, and where `messages` an assistant's message too; samples are short and printable."""

    def __init__(self, messages: bool) -> None:
        super().__init__(64, min_length=0, charset=string.printable)
        self.messages = messages

    def contains(self, x: Any) -> bool:
        """Whether it is one."""
        return isinstance(x, str) or (self.messages and isinstance(x, Mapping))


class TaskEnv(gymnasium.Env):
    """Problems of a task, one an episode; `reset(seed=...)` begins a series, and each further reset goes on in it."""

    metadata = {"render_modes": []}

    def __init__(self, task: Task | str, split: Split = "train") -> None:
        """`task` is one, or is named as on zifio's command line. Raises ConfigError."""
        self.series = Series(task, split)
        self.observation_space, self.action_space = Words(messages=False), Words(messages=True)
        self.played: Played | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The next problem's prompt; `options={"index": 7}` is that problem of the series."""
        super().reset(seed=seed)
        if seed is None and self.played is None:  # the seed that gymnasium made up
            seed = int(self.np_random.integers(2**31))
        self.played = self.series.reset(seed, (options or {}).get("index"))
        return self._told(self.played.messages)

    def step(self, action: str | Mapping[str, Any]) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """What is answered, and at the end of the episode the reward, which is 0 before. Raises Broken."""
        if self.played is None:
            raise RuntimeError("reset before the first step")
        heard = self.played.say(turn_of(action, bool(self.played.tools)))
        over, cut = self.played.verdict is not None, self.played.is_cut
        text, info = self._told(heard)
        return text, self.played.reward() if over else 0.0, over and not cut, cut, info

    def _told(self, messages: list[Message]) -> tuple[str, dict[str, Any]]:
        assert self.played is not None
        told = {"messages": copy.deepcopy(messages), "tools": copy.deepcopy(self.played.tools), **self.played.account()}
        return text_of(messages), told


gymnasium.register("zifio/Task-v0", entry_point="zifio.adapters.gym:TaskEnv")
