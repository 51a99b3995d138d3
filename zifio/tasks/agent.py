"""Any task of single questions, with tools to call before answering: calculator, Python, search.

In a recipe: `task = { name = "agent", of = { name = "reasoning_gym" }, use = ["calculator"] }`. The tools are offered
to the model as its own chat template does it, and the last turn is scored as the task scores an answer.

Try it alone:

    python -c "from zifio.tasks.agent import *; print(Agent(of={'name': 'chain_sum'}, use=('calculator',)).tools)"
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from zifio.config import Config
from zifio.tasks.environment import Interactive, Message, Turn, conversation
from zifio.tasks.search import open_corpus
from zifio.tasks.task import Problem, Split, Task, Verdict
from zifio.tasks.tools import Tool, Workshop, calculator, python, search

ToolName = Literal["calculator", "python", "search"]


class Agent(Config):
    """A config that is also the task."""

    name: Literal["agent"] = "agent"
    """Which task this is."""
    of: dict[str, Any]
    """The task whose problems are posed and whose score counts: a table with its name and options."""
    use: tuple[ToolName, ...] = Field(default=("calculator",), min_length=1)
    """The tools on offer."""
    corpus: tuple[str, ...] = ()
    """For search: text, Markdown or JSONL files."""
    python_seconds: PositiveFloat = 10.0
    """Longest run of a Python program."""
    unsafe: bool = False
    """Run Python without a sandbox where there is none."""
    max_turns: int = Field(default=8, ge=1, le=64)
    """An episode is cut after so many turns."""
    max_calls: int = Field(default=8, ge=0, le=256)
    """Calls that are answered; further ones get an error."""

    @model_validator(mode="after")
    def _possible(self) -> Agent:
        if isinstance(self.inner, Interactive):
            raise ValueError(f"of: wanted a task of single questions, came {self.inner.name}, which is played in turns")
        if ("search" in self.use) != bool(self.corpus):
            raise ValueError("search wants a corpus, and a corpus search: give both or neither")
        return self

    @cached_property
    def inner(self) -> Task:
        """The task of single questions."""
        from zifio.tasks.catalog import read_task  # the catalog holds this class

        return read_task(self.of, "of")

    @property
    def isolated(self) -> bool:
        """Whether the check belongs in a worker that may be killed: the inner task knows."""
        return getattr(self.inner, "isolated", False)

    @property
    def sources(self) -> list[Path]:
        """The files of a user's own whose code judges."""
        return getattr(self.inner, "sources", [])

    @property
    def tools(self) -> list[dict[str, Any]]:
        """What is on offer; making these opens no corpus."""
        return [tool.schema for tool in self._tools(described_only=True)]

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The inner task's problem."""
        return self.inner.problem(split, index, seed)

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The inner task's document."""
        return self.inner.document(problem, shows_working)

    def demonstration(self, problem: Problem, shows_working: bool) -> list[Message]:
        """The problem and the inner task's document: nobody knows what a tool would have been asked."""
        return [*conversation(problem), Turn(self.document(problem, shows_working)).message()]

    def start(self, problem: Problem, seed: int) -> Workshop:
        """The tools, laid out. Raises ConfigError when the corpus cannot be read."""
        return Workshop(self._tools(), self.max_calls)

    def score(self, problem: Problem, response: str) -> Verdict:
        """The inner task's verdict."""
        return self.inner.score(problem, response)

    def check_gold(self, problem: Problem) -> Verdict:
        """The inner task's."""
        return self.inner.check_gold(problem)

    def _tools(self, described_only: bool = False) -> list[Tool]:
        make: dict[str, Callable[[], Tool]] = {
            "calculator": calculator,
            "python": lambda: python(self.python_seconds, self.unsafe),
            "search": lambda: search(None if described_only else open_corpus(self.corpus)),
        }
        return [make[name]() for name in self.use]
