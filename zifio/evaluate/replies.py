"""What a model said: its thinking apart from its answer, what of it is scored, and the answer that votes.

A task that wants `<think>WORKING</think><answer>ANSWER</answer>`, as this house's own sums do, scores the whole reply.
Every other task scores what stands behind the thinking, so that nothing in it can pass for the answer.

Try it alone:

    python -c "from zifio.evaluate.replies import *; print(answer_of('It is \\\\boxed{7}.'))"
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from zifio.tasks.environment import Call, Environment, Message, conversation
from zifio.tasks.form import THINK, THOUGHT, split_thinking
from zifio.tasks.maths.grammar import parse
from zifio.tasks.maths.numeric import exact
from zifio.tasks.task import Problem, Task, parse_response

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|(?<!\d)\.\d+)(?:/\d+)?", re.ASCII)
_SAID = re.compile(r".*\banswer\b[\s:*]*(?:is\b)?[\s:*]*(\S.*)", re.IGNORECASE)
_LONGEST_LINE = 4096  # characters of a last line that are looked at
_BOX = "\\boxed{"
_RATIONAL = re.compile(
    r"[-+]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:/\d{1,30})?|-?\\[dt]?frac\{-?\d{1,30}\}\{\d{1,30}\}"
)


class Ask(NamedTuple):
    """A reply that is wanted: to which problem, which of its n, with which thinking budget, from which seed."""

    problem: Problem
    place: int
    budget: int | None
    seed: int


@dataclass(frozen=True)
class Said:
    """A reply, whoever gave it. What is not known is None."""

    text: str
    """As it came; from an endpoint that keeps thinking apart the content alone."""
    thinking: str | None = None
    """Where it came apart."""
    n_tokens: int | None = None
    """Tokens drawn, thinking included."""
    n_prompt_tokens: int | None = None
    n_thinking_tokens: int | None = None
    finish: str = "stop"
    """stop, length, or what else the endpoint calls it."""
    seconds: float | None = None
    cost: float | None = None
    logp: float | None = None
    """The sum over its tokens."""
    seed: int | None = None
    """That it was drawn from."""
    extra: dict[str, Any] | None = None
    """More for the record."""
    calls: tuple[Call, ...] = ()
    """Of a turn: the tools that it calls."""
    environment: Environment | None = None
    """Of an episode in turns: where it was played. It is asked for the verdict before the task is."""
    fault: str = ""
    """Why the environment could not go on."""


class Failed(NamedTuple):
    """A reply that did not come, and why."""

    ask: Ask
    reason: str


@dataclass(frozen=True)
class Frame:
    """What stands around every problem."""

    system: str = ""
    instruction: str = ""

    def messages(self, problem: Problem) -> list[Message]:
        """The conversation that puts the problem."""
        messages = conversation(problem)
        if self.instruction:
            last = messages[-1]
            messages = [*messages[:-1], {**last, "content": f"{last['content']}\n{self.instruction}"}]
        return [{"role": "system", "content": self.system}, *messages] if self.system else messages


@runtime_checkable
class Subject(Protocol):
    """Who is examined."""

    budget_by: str
    """How it keeps a thinking budget, in words."""

    @property
    def has_policy_logps(self) -> bool:
        """Whether the log-probs that it tells are of the policy that it draws from."""
        ...

    def identity(self) -> dict[str, Any]:
        """What names it, for the folder: replies of another one must not be mixed in."""
        ...

    def answer(self, asks: list[Ask]) -> Iterator[list[tuple[Ask, Said] | Failed]]:
        """Replies as they come, in any order, each once."""
        ...

    def close(self) -> None:
        """Let go of what is under way."""
        ...


def wants_shape(task: Task, problem: Problem) -> bool:
    """Whether the task's own replies have the shape `<think>WORKING</think><answer>ANSWER</answer>`."""
    return parse_response(task.document(problem, shows_working=False)) is not None


def scored_text(said: Said, shaped: bool) -> str:
    """What of a reply goes to the task: all of it for a task with that shape, else what stands behind the thinking."""
    if not shaped:
        return split_thinking(said.text).rest
    return f"{THINK}{said.thinking}{THOUGHT}{said.text}" if said.thinking else said.text


def answer_of(content: str) -> str | None:
    """The answer that a reply's vote is for, in one spelling; None where it gives none.

    What stands between answer tags, else in the last box, else behind "the answer is" on the last line, else the last
    number, else the last line. No verifier is asked: numbers apart, two spellings of one answer are two answers to the
    vote.
    """
    content = content.replace("−", "-").strip()
    last_line = content.rpartition("\n")[2][-_LONGEST_LINE:]
    if tagged := _TAGGED.findall(content):
        found = tagged[-1]
    elif (boxed := _last_box(content)) is not None:
        found = boxed
    elif said := _SAID.fullmatch(last_line):
        found = said[1]
    elif numbers := _NUMBER.findall(content):
        found = numbers[-1]
    else:
        found = last_line
    return _spelled(found) or None


def _last_box(text: str) -> str | None:
    """What stands in the last \\boxed{} whose braces close."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth = 1
    for place in range(start + len(_BOX), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len(_BOX) : place]
    return None


def _spelled(answer: str) -> str:
    """One spelling: no space, no dollar signs, no commas between digits, no case, no full stop behind it; and a number
    as the reduced fraction that it is, however it is written."""
    plain = unicodedata.normalize("NFKC", answer).casefold().replace("\u2044", "/")
    plain = re.sub(r"[\s$*]|\\[,;! ]", "", plain)
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain).rstrip(".")
    if not _RATIONAL.fullmatch(plain):
        return plain
    try:
        return str(exact(parse(plain)))
    except ValueError:  # a division by zero, or too large
        return plain
