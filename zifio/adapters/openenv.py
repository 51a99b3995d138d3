"""OpenEnv (0.10): any task as a served environment. `openenv_package` writes the folder that `openenv` works on.

    app = app_of("calculator")                       # a FastAPI application: `uvicorn module:app`
    TaskEnvironment("calculator").reset(seed=1)      # or without a server

An action is what the policy says, `text` and `tool_calls`; an observation has `messages` to read and `tools` on offer.
The reward comes with `done`, before that it is 0. A check that breaks raises `Broken`, which a client gets as an error
of the server: many clients read a missing reward as 0.

Try it alone: `pytest -m slow tests/adapters/test_openenv.py`
"""
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any
from uuid import uuid4

from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
from pydantic import Field

from zifio.adapters.played import Broken, Played, Series
from zifio.adapters.translate import turn_of
from zifio.tasks.environment import Message
from zifio.tasks.task import Split, Task

__all__ = ["Broken", "Heard", "Said", "TaskEnvironment", "app_of"]


class Said(Action):
    """What the policy says in one go."""

    text: str = Field(description="The reply; calls may also stand in it as DeepSeek, Qwen or Hermes write them")
    tool_calls: list[dict[str, Any]] = Field(default_factory=list, description="Calls in OpenAI's format")


class Heard(Observation):
    """What is said to the policy."""

    messages: list[dict[str, Any]] = Field(default_factory=list, description="New messages, in OpenAI's format")
    tools: list[dict[str, Any]] = Field(default_factory=list, description="Tools on offer, in OpenAI's format")


class TaskEnvironment(Environment[Said, Heard, State]):
    """Problems of a task, one an episode."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, task: Task | str, split: Split = "train") -> None:
        """`task` is one, or is named as on zifio's command line. Raises ConfigError."""
        super().__init__()
        self.series = Series(task, split)
        self.played: Played | None = None
        self._state = State(episode_id=str(uuid4()))

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Heard:
        """The next problem; `seed` begins a series, `index` is one problem of it."""
        self.played = self.series.reset(seed, kwargs.get("index"))
        self._state = State(episode_id=episode_id or str(uuid4()), step_count=0)
        return self._told(self.played.messages, None)

    def step(self, action: Said, timeout_s: float | None = None, **kwargs: Any) -> Heard:
        """What is answered, and at the end of the episode the reward. Raises Broken."""
        if self.played is None:
            raise RuntimeError("reset before the first step")
        said = {"content": action.text, "tool_calls": action.tool_calls}
        heard = self.played.say(turn_of(said, bool(self.played.tools)))
        self._state.step_count += 1
        return self._told(heard, self.played.reward() if self.played.verdict else 0.0)

    @property
    def state(self) -> State:
        """Which episode it is, and how far."""
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        """What the server tells of itself."""
        name = self.series.task.name
        return EnvironmentMetadata(
            name=name, description=f"zifio's task {name}, problems of its split {self.series.split}"
        )

    def _told(self, messages: list[Message], reward: float | None) -> Heard:
        assert self.played is not None
        done, about = self.played.verdict is not None, self.played.account()
        return Heard(messages=list(messages), tools=self.played.tools, done=done, reward=reward, metadata=about)


def app_of(task: str, split: Split = "train", sessions: int = 64) -> Any:
    """The FastAPI application that serves a task, so many episodes at once."""
    name = Series(task).task.name  # a mistake in it is told now, before anybody connects
    return create_app(lambda: TaskEnvironment(task, split), Said, Heard, env_name=name, max_concurrent_envs=sessions)
