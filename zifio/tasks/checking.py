"""A check and what comes of it: a config, limits, a verdict made sure to be one, and words for what went wrong.

Try it alone: `pytest tests/tasks/test_runtime.py`
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, get_args, runtime_checkable

from zifio.config import Config, ConfigError
from zifio.tasks.task import Outcome, Problem, Verdict

_LONGEST_REASON = 2000
_QUOTED = 300


@runtime_checkable
class Checker(Protocol):
    """Whatever checks answers: a task, or a verifier by itself."""

    @property
    def name(self) -> str: ...

    def score(self, problem: Problem, response: str) -> Verdict: ...


def config_of(checker: Checker) -> dict[str, Any]:
    """What another process makes an equal one of. Only what was set: some refuse options that are not theirs, even at
    their defaults. Raises ConfigError for one without a config."""
    if not isinstance(checker, Config):
        raise ConfigError(
            f"task {checker.name}: wanted a task with a config, to check it in a process of its own, came a "
            f"{type(checker).__name__}. Make it a zifio.config.Config, or set isolated to False."
        )
    return {"name": checker.name, **checker.model_dump(mode="json", exclude_unset=True)}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one check may use."""

    seconds: float = 10.0
    memory_mb: int = 1024
    """Beyond what the interpreter itself uses."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A verdict and how long it took."""

    verdict: Verdict
    seconds: float


def verdict_of(task: Checker, problem: Problem, response: str) -> Verdict:
    """What the task says, made sure to be a verdict: what is none becomes an error. Raises what the check raises."""
    verdict = task.score(problem, response)
    fault = verdict_fault(verdict)
    if fault:
        return error_verdict(f"{named(task, problem)} gave {fault}")
    parts = {name: float(value) for name, value in verdict.parts.items()}
    return Verdict(verdict.outcome, float(verdict.reward), parts, verdict.reason[:_LONGEST_REASON])


def verdict_fault(verdict: object) -> str:
    """What keeps this from being a verdict, or ""."""
    if not isinstance(verdict, Verdict):
        return f"{described(verdict)}, not a verdict"
    if verdict.outcome not in get_args(Outcome):
        return f"the outcome {described(verdict.outcome)}, which is none of {', '.join(get_args(Outcome))}"
    if not _is_share(verdict.reward):
        return f"the reward {described(verdict.reward)}, which is no number in [0, 1]"
    if not isinstance(verdict.reason, str):
        return f"the reason {described(verdict.reason)}, which is no text"
    if not isinstance(verdict.parts, dict):
        return f"the parts {described(verdict.parts)}, which are no table"
    for name, value in verdict.parts.items():
        if not isinstance(name, str) or not _is_finite(value):
            return f"the part {described(name)} = {described(value)}, which is no finite number"
    return ""


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _is_share(value: Any) -> bool:
    return _is_finite(value) and 0 <= value <= 1


def named(task: Checker, problem: Problem) -> str:
    """How a reason begins that tells of a check gone wrong."""
    return f"{task.name}: the check of {problem.id}"


def described(thing: object) -> str:
    """Its repr, cut; its type where even that fails."""
    try:
        text = repr(thing)
    except Exception:
        text = f"a {type(thing).__name__} without a repr"
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}... ({len(text)} characters)"


def error_verdict(reason: str) -> Verdict:
    """The verdict on a check that broke."""
    return Verdict("error", 0.0, {}, reason[:_LONGEST_REASON])
