"""A task's data, and its tools as verifiers wants them: an MCP server, started by verifiers for each rollout as
`python -m zifio.adapters.verifiers_tools`.

Try it alone: `pytest -m slow tests/adapters/test_verifiers.py`
"""
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import verifiers.v1 as vf

from zifio.adapters.played import Played, named_task
from zifio.adapters.translate import as_function, text_of
from zifio.tasks.environment import Call, Turn, tools_of
from zifio.tasks.task import Problem


class ZifioData(vf.TaskData):
    """A problem, whose id and prompt are verifiers' own fields."""

    gold: str
    working: str

    @property
    def problem(self) -> Problem:
        """As zifio has it."""
        return Problem(self.id or "", self.prompt_text, self.gold, self.working)


class ZifioTaskConfig(vf.TaskConfig):
    """Which task."""

    of: str = "chain_sum"
    """Named as on zifio's command line."""


class ZifioToolsConfig(vf.ToolsetConfig):
    """What the server is told."""

    of: str = ""
    """As in the task's."""


class ZifioTools(vf.Toolset[ZifioToolsConfig, vf.State]):
    """The tools of one episode, under the task's own names."""

    TOOL_PREFIX = None

    async def setup_task(self, task: ZifioData) -> None:
        """Lay them out."""
        self.played = Played(named_task(self.config.of), task.problem, seed=0)

    def register(self, mcp: Any) -> None:
        """Offer them."""
        for tool in tools_of(named_task(self.config.of)):
            method = as_function(tool, lambda self, call: self.answer(call)).__get__(self)
            mcp.add_tool(self._with_state(method), description=tool["function"]["description"], structured_output=False)

    def answer(self, call: Call) -> str:
        """The result of a call, or what is wrong with it. Raises Broken."""
        if self.played.verdict is None and (heard := self.played.say(Turn("", (call,)))):
            return text_of(heard)
        self.played.reward()  # raises where a tool is broken, so that MCP marks the result as an error
        return "The episode is over."


if __name__ == "__main__":
    ZifioTools.run()
