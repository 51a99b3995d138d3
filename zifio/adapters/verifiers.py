"""verifiers (0.4, its v1 API): any task as a taskset, exported by a module of your own, say zifio_tasks.py:

    from zifio.adapters.verifiers import ZifioEnv, ZifioTaskset
    __all__ = ["ZifioEnv", "ZifioTaskset"]

Then `vf-eval zifio-tasks --env.taskset.task.of calculator --env.agent.harness.id null ...`. Tools are an MCP toolset;
in a game the environment speaks as the user. The reward plays the trace through the task again (programs run twice),
as state does not leave a tool's process. A check that breaks raises `Broken`, an error of the trace.

Try it alone: `pytest -m slow tests/adapters/test_verifiers.py`
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import verifiers.v1 as vf

from zifio.adapters.played import Broken, Played, named_task
from zifio.adapters.translate import text_of, turn_of
from zifio.adapters.verifiers_tools import ZifioData, ZifioTaskConfig, ZifioTools, ZifioToolsConfig
from zifio.seed import stream_seed
from zifio.tasks.environment import Interactive, tools_of
from zifio.tasks.task import Split

__all__ = ["Broken", "ZifioEnv", "ZifioTaskset"]


class ZifioTask(vf.Task[ZifioData, vf.State, ZifioTaskConfig]):
    """A problem with its reward, in [0, 1]."""

    @classmethod
    def toolsets(cls, config: ZifioTaskConfig) -> list[vf.Toolset]:
        return [ZifioTools(ZifioToolsConfig(of=config.of))] if tools_of(named_task(config.of)) else []

    def start(self, trace: vf.Trace) -> Played:
        """The episode of a trace at its beginning; chance in it depends on the trace's id."""
        return Played(named_task(self.config.of), self.data.problem, stream_seed(0, "trace", trace.id))

    def replay(self, trace: vf.Trace) -> Played:
        """The episode of a trace at its end."""
        played = self.start(trace)
        for message in trace.assistant_messages:
            if played.verdict is None:
                played.say(turn_of(message.model_dump(), has_tools=False))
        return played

    @vf.reward
    async def zifio(self, trace: vf.Trace) -> float:
        """The task's own. Raises Broken."""
        played = await asyncio.to_thread(self.replay, trace)
        trace.info["zifio"] = {"outcome": played.end().outcome, **played.account()}
        return played.reward()

    async def validate(self, runtime: vf.Runtime) -> bool:
        return named_task(self.config.of).check_gold(self.data.problem).outcome == "right"


class ZifioConfig(vf.TasksetConfig):
    """Which problems of it."""

    task: ZifioTaskConfig = ZifioTaskConfig()
    split: Split = "train"
    seed: int = 0
    num_tasks: int = 100


class ZifioTaskset(vf.Taskset[ZifioTask, ZifioConfig]):
    """The first problems of a task."""

    def load(self) -> Iterator[ZifioTask]:
        """One after another. Raises ConfigError beyond the last."""
        task = named_task(self.config.task.of)
        for index in range(self.config.num_tasks):
            problem = task.problem(self.config.split, index, self.config.seed)
            data = ZifioData(id=problem.id, prompt=problem.prompt, gold=problem.gold, working=problem.working)
            yield ZifioTask(data, self.config.task)


class ZifioEnvConfig(vf.EnvConfig):
    """Who plays."""

    agent: vf.AgentConfig = vf.AgentConfig()


class ZifioEnv(vf.Env[ZifioEnvConfig]):
    """One agent; in a game the environment answers it as its user."""

    async def run(self, task: ZifioTask, agents: vf.Agents) -> None:
        """One episode."""
        of = named_task(task.config.of)
        if not isinstance(of, Interactive) or of.tools:
            await agents.agent.run(task)
            return
        async with agents.agent.interaction(task) as interaction:
            played, segment = task.start(interaction.trace), await interaction.turn()
            while not segment.terminated and (heard := played.say(turn_of(segment.messages[-1].model_dump(), False))):
                segment = await interaction.turn(text_of(heard))
