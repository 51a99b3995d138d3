"""What a screening finds: a row for every check, and a finding, with evidence, for every one that failed.

Try it alone: `zifio screen splits --json`
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from zifio.tasks.attacks import Severity
from zifio.tasks.task import Problem

SEVERITIES: tuple[Severity, ...] = ("high", "medium", "low")
_QUOTED = 400


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a task. `high`: do not train on it. `medium`: know it. `low`: for whoever is curious."""

    severity: Severity
    check: str
    what: str
    cure: str
    evidence: dict[str, Any] = field(default_factory=dict)
    """The problem, the reply and its reward, or whatever else shows it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One check and how it went."""

    check: str
    about: str
    n: int
    """How many replies, problems or comparisons it took."""
    rewarded: int | None = None
    """Of attacks: the replies that earned something."""
    mean_reward: float | None = None
    errors: int | None = None


@dataclass(slots=True)
class Screening:
    """All about one task."""

    task: dict[str, Any]
    n_problems: int
    seed: int
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    """Figures worth knowing: what guessing earns, the forms that are refused, checks a second."""

    def worst(self, check: str | None = None) -> Severity | None:
        """The worst severity found, of one check or of all; None when nothing was."""
        found = {finding.severity for finding in self.findings if check in (None, finding.check)}
        return next((severity for severity in SEVERITIES if severity in found), None)

    def as_table(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {"passed": self.worst() != "high", **dataclasses.asdict(self)}


def shown(problem: Problem, response: str | None = None) -> dict[str, Any]:
    """A problem, and a reply to it, as evidence."""
    found = {"problem": problem.id, "prompt": cut(problem.prompt), "gold": cut(problem.gold)}
    return found if response is None else {**found, "reply": cut(response)}


def cut(text: str) -> str:
    """A text of bearable length, without what no file can hold."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}... ({len(text)} characters)"
