"""Runs where gymnasium is installed: its own check of every kind of task, and an episode of each by `gymnasium.make`.

What was found goes to stdout as JSON, for tests/adapters/test_gymnasium.py.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import gymnasium
from gymnasium.utils.env_checker import check_env

from zifio.adapters.gym import Broken, TaskEnv
from zifio.tasks.catalog import named_task
from zifio.tasks.environment import demonstration

ID = "zifio.adapters.gym:zifio/Task-v0"


def shown(name: str) -> dict[str, Any]:
    """The task's own demonstration played as actions, messages first and then, on the same problem, as texts."""
    task = named_task(name)
    turns = [one for one in demonstration(task, task.problem("train", 0, 3), True) if one["role"] == "assistant"]
    env = gymnasium.make(ID, task=name)
    out: dict[str, Any] = {}
    for kind in ("messages", "texts"):
        prompt, info = env.reset(seed=3)
        steps = [{"text": prompt, "problem": info["problem"], "tools": info["tools"]}]
        for turn in turns:
            text, reward, terminated, truncated, info = env.step(turn if kind == "messages" else written(turn))
            steps.append({"text": text, "reward": reward, "ends": [terminated, truncated], **info})
            if terminated or truncated:
                break
        out[kind] = steps
    return out


def written(turn: dict[str, Any]) -> str:
    """The turn as a Qwen or Hermes would write it."""
    calls = [call["function"] for call in turn.get("tool_calls", [])]
    texts = [f'<tool_call>{{"name": "{call["name"]}", "arguments": {call["arguments"]}}}</tool_call>' for call in calls]
    return turn["content"] + "".join(texts)


def broken(name: str) -> str:
    """What a check that breaks does to a step."""
    env = TaskEnv(name)
    env.reset(seed=0)
    try:
        return f"no error but {env.step('5')}"
    except Broken as error:
        return str(error)


def cut(name: str) -> list[bool]:
    """How an episode ends that only ever calls."""
    env = TaskEnv(name)
    env.reset(seed=0)
    while True:
        *_, terminated, truncated, _ = env.step('<tool_call>{"name": "calculator", "arguments": {}}</tool_call>')
        if terminated or truncated:
            return [terminated, truncated]


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """All of it; warnings of gymnasium's are errors."""
    warnings.simplefilter("error")
    for name in asked["tasks"]:
        check_env(gymnasium.make(ID, task=name).unwrapped)
    several = gymnasium.make_vec(ID, num_envs=2, vectorization_mode="sync", task=asked["tasks"][0])
    prompts, _ = several.reset(seed=1)
    return {
        "checked": asked["tasks"],
        "several": list(prompts),
        "shown": {name: shown(name) for name in asked["shown"]},
        "broken": broken(asked["broken"]),
        "cut": cut("calculator"),
        "torch": "torch" in sys.modules,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))))
