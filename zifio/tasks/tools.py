"""Tools that a policy may call: exact arithmetic, Python in a sandbox, search; and the environment that serves them.

A tool that fails (arguments that are no JSON, no such tool, an exception, a limit) answers with an error for the policy
to read, and is counted. Only a tool that is itself broken (no sandbox, no index) breaks the episode, with `ToolBroken`.

Try it alone: `pytest tests/tasks/test_tools.py`
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from zifio.tasks.arithmetic import ArithmeticFault, calculate
from zifio.tasks.environment import LEARNER, Call, Message, Observation, Turn
from zifio.tasks.search import Corpus
from zifio.tasks.task import Verdict

_QUOTED = 40  # characters of a stranger's text that an error repeats
_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict,
}  # fmt: skip


class ToolFault(ValueError):
    """What went wrong with a call, in words for the policy that made it."""


class ToolBroken(RuntimeError):
    """The tool itself cannot work here; no fault of the policy."""


@dataclass(frozen=True)
class Tool:
    """What a policy may call."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of the arguments, an object; checked are its `required`, the names, and the plain types."""
    call: Callable[..., str]
    """From the arguments by name to the text of the result. Raises ToolFault, or ToolBroken."""
    instant: bool = True
    """Whether it answers at once; others are called beside the sampling."""

    @property
    def schema(self) -> dict[str, Any]:
        """As chat templates and endpoints want it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


class Result(NamedTuple):
    """What a call came to."""

    content: str
    failed: bool


def use(tools: Sequence[Tool], call: Call, most_characters: int = 2000) -> Result:
    """The result of a call, or the error that the policy is told. Raises ToolBroken."""
    try:
        tool, arguments = _checked(tools, call)
        content = tool.call(**arguments)
    except ToolBroken:
        raise
    except (ToolFault, ArithmeticFault) as error:
        return Result(_shortened(f"error: {error}", most_characters), True)
    except Exception as error:  # a tool's own failure is the policy's to handle
        return Result(_shortened(f"error: {type(error).__name__}: {error}", most_characters), True)
    return Result(_shortened(content, most_characters), False)


def _checked(tools: Sequence[Tool], call: Call) -> tuple[Tool, dict[str, Any]]:
    """The tool that is meant, and arguments that fit its schema. Raises ToolFault."""
    if call.fault:
        raise ToolFault(call.fault)
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        known = ", ".join(tool.name for tool in tools)
        raise ToolFault(f"no tool {call.name[:_QUOTED]!r}, there is {known}")
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        raise ToolFault("the arguments are not json") from None
    if not isinstance(arguments, dict):
        raise ToolFault("the arguments are not a table")
    properties = tool.parameters.get("properties", {})
    for name in tool.parameters.get("required", []):
        if name not in arguments:
            raise ToolFault(f"no argument {name!r}")
    for name, value in arguments.items():
        if name not in properties:
            raise ToolFault(f"no parameter {name[:_QUOTED]!r}, there is {', '.join(properties)}")
        _check_type(name, value, properties[name].get("type"))
    return tool, arguments


def _check_type(name: str, value: Any, wanted: str | None) -> None:
    kind = _JSON_TYPES.get(wanted or "", object)
    if not isinstance(value, kind) or (isinstance(value, bool) and wanted in ("integer", "number")):
        raise ToolFault(f"{name} is not of the type {wanted}")


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} [{len(text) - most} more characters]"


class Workshop:
    """An environment that offers tools: a turn that calls them gets their results, one that does not is the last."""

    def __init__(self, tools: Sequence[Tool], max_calls: int, most_characters: int = 2000) -> None:
        self.tools, self.max_calls, self.most_characters = tools, max_calls, most_characters
        self.results: list[Result] = []
        """Of all calls so far."""

    @property
    def instant(self) -> bool:
        """Whether every tool is."""
        return all(tool.instant for tool in self.tools)

    def step(self, turn: Turn) -> Observation:
        """The tools' results, in order. Raises ToolBroken."""
        assert turn.voice == LEARNER, "only one speaks here"
        if not turn.calls:
            return Observation(done=True)
        results = [self._use(call) for call in turn.calls]
        messages: tuple[Message, ...] = tuple(
            {"role": "tool", "name": call.name, "content": result.content}
            for call, result in zip(turn.calls, results, strict=True)
        )
        return Observation(messages, n_calls=len(results), n_failures=sum(result.failed for result in results))

    def verdict(self, text: str) -> Verdict | None:
        """None: the task scores what was said last."""
        return None

    def _use(self, call: Call) -> Result:
        if len(self.results) >= self.max_calls:
            result = Result("error: no calls left", True)
        else:
            result = use(self.tools, call, self.most_characters)
        self.results.append(result)
        return result


# The tools -----------------------------------------------------------------------------------------------------


def _object(**properties: str) -> dict[str, Any]:
    """The schema of an object of required texts, each with its description."""
    texts = {name: {"type": "string", "description": about} for name, about in properties.items()}
    return {"type": "object", "properties": texts, "required": list(properties)}


def calculator() -> Tool:
    """Exact arithmetic (`tasks/arithmetic.py`)."""
    return Tool(
        "calculator",
        "Computes an arithmetic expression exactly.",
        _object(expression="numbers with + - * / // % ** and brackets"),
        calculate,
    )


def python(seconds: float = 10.0, unsafe: bool = False) -> Tool:
    """Python in the sandbox, every call in a fresh one."""

    def run(code: str) -> str:
        try:
            sandbox = importlib.import_module("zifio.tasks.sandbox")
        except ImportError as error:
            raise ToolBroken(str(error)) from error
        try:
            ran = sandbox.run(code, limits=sandbox.Limits(seconds=seconds, cpu_s=seconds), unsafe=unsafe)
        except (sandbox.NoSandbox, sandbox.SandboxError, OSError) as error:
            raise ToolBroken(str(error)) from error
        if ran.status != "ok":
            raise ToolFault(f"{ran.status}: {(ran.stdout + ran.stderr)[-1000:]}")
        return ran.stdout

    about = "Runs a Python program without network or files and returns what it prints."
    return Tool("python", about, _object(code="the program"), run, instant=False)


def search(corpus: Corpus | None, count: int = 3) -> Tool:
    """Search over a local corpus, the best passages first; without a corpus it can be described but not called."""

    def run(query: str) -> str:
        if corpus is None:
            raise ToolBroken("no corpus was opened")
        found = corpus.search(query, count)
        return "\n".join(f"[{hit.title}] {hit.snippet}" for hit in found) or "nothing found"

    return Tool("search", "Finds passages in a collection of texts.", _object(query="words to look for"), run)


PLAIN: dict[str, Callable[[], Tool]] = {"calculator": calculator, "python": python}
"""Tools that want nothing, by name."""
