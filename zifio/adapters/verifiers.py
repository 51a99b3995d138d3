"""verifiers (0.4, its v1 API): any task as a taskset. verifiers wants a module of one's own that exports it:

    # zifio_tasks.py
    from zifio.adapters.verifiers import ZifioEnv, ZifioTaskset

    __all__ = ["ZifioEnv", "ZifioTaskset"]

then `vf-eval zifio-tasks --env.taskset.task.of calculator --env.agent.harness.id null ...`. Tools are an MCP toolset; in
a game the environment speaks as the user. The reward plays the trace again through the task, so saved traces can be
scored anew and no state leaves a tool's process; programs (`python`) run twice. A check that breaks raises `Broken`,
an error of the trace.

Try it alone: `pytest -m slow tests/adapters/test_verifiers.py`
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf

from zifio.adapters.functions import as_function
from zifio.adapters.played import Broken, Played, named_task, turn_of
from zifio.seed import stream_seed
from zifio.tasks.environment import Call, Interactive, Turn, tools_of
from zifio.tasks.task import Problem, Split

__all__ = ["Broken", "ZifioEnv", "ZifioTaskset"]


class ZifioToolsConfig(vf.ToolsetConfig):
    of: str = ""
    """The task, named as on zifio's command line."""


class ZifioTools(vf.Toolset[ZifioToolsConfig, vf.State]):
    TOOL_PREFIX = None  # the task's own names

    async def setup_task(self, task: ZifioData) -> None:
        self.played = Played(named_task(self.config.of), task.problem, 0)

    def register(self, mcp: Any) -> None:
        for tool in tools_of(named_task(self.config.of)):
            method = as_function(tool, ZifioTools.answer).__get__(self)
            mcp.add_tool(self._with_state(method), description=tool["function"]["description"], structured_output=False)

    def answer(self, call: Call) -> str:
        return "\n".join(message["content"] for message in self.played.say(Turn("", (call,))))


class ZifioData(vf.TaskData):
    gold: str
    working: str

    @property
    def problem(self) -> Problem:
        return Problem(self.id or "", self.prompt_text, self.gold, self.working)


class ZifioTaskConfig(vf.TaskConfig):
    of: str = "chain_sum"
    """The task, named as on zifio's command line."""


class ZifioTask(vf.Task[ZifioData, vf.State, ZifioTaskConfig]):
    @classmethod
    def toolsets(cls, config: ZifioTaskConfig) -> list[vf.Toolset]:
        return [ZifioTools(ZifioToolsConfig(of=config.of))] if tools_of(named_task(config.of)) else []

    def start(self, trace: vf.Trace) -> Played:
        problem = self.data.problem
        return Played(named_task(self.config.of), problem, stream_seed(0, problem.id, trace.id))

    def replay(self, trace: vf.Trace) -> Played:
        played = self.start(trace)
        for message in trace.assistant_messages:
            if played.verdict is None:
                played.say(turn_of(message.model_dump(), has_tools=False))
        return played

    @vf.reward
    async def zifio(self, trace: vf.Trace) -> float:
        played = await asyncio.to_thread(self.replay, trace)
        trace.info["zifio"] = {"outcome": played.end().outcome, **played.account()}
        return played.reward()

    async def validate(self, runtime: vf.Runtime) -> bool:
        verdict = named_task(self.config.of).check_gold(self.data.problem)
        return verdict.outcome == "right"


class ZifioConfig(vf.TasksetConfig):
    task: ZifioTaskConfig = ZifioTaskConfig()
    split: Split = "train"
    seed: int = 0
    num_tasks: int = 100


class ZifioTaskset(vf.Taskset[ZifioTask, ZifioConfig]):
    def load(self) -> Iterator[ZifioTask]:
        task = named_task(self.config.task.of)
        for index in range(self.config.num_tasks):
            problem = task.problem(self.config.split, index, self.config.seed)
            data = ZifioData(id=problem.id, prompt=problem.prompt, gold=problem.gold, working=problem.working)
            yield ZifioTask(data, self.config.task)


class ZifioEnvConfig(vf.EnvConfig):
    agent: vf.AgentConfig = vf.AgentConfig()


class ZifioEnv(vf.Env[ZifioEnvConfig]):
    async def run(self, task: ZifioTask, agents: vf.Agents) -> None:
        played = task.start
        if tools_of(named_task(task.config.of)) or not isinstance(named_task(task.config.of), Interactive):
            await agents.agent.run(task)
            return
        async with agents.agent.interaction(task) as interaction:
            played, segment = task.start(interaction.trace), await interaction.turn()
            while not segment.terminated and (heard := played.say(turn_of(segment.messages[-1].model_dump(), False))):
                segment = await interaction.turn("\n".join(message["content"] for message in heard))


if __name__ == "__main__":
    ZifioTools.run()
