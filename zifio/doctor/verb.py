"""`zifio doctor RUN`: what is wrong with a run, in words, with the figures that show it and what to try.

zifio doctor runs/quickstart
zifio doctor runs/quickstart --json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zifio.doctor.reading import Finding
from zifio.doctor.signs import diagnose
from zifio.log import Finished
from zifio.record.stage import StageRecord, read_run, stages_of


class Diagnosis(dict[str, Any]):
    """What was found, and how a person reads it."""

    def __init__(self, run: Path, stages: list[StageRecord], findings: list[Finding]) -> None:
        super().__init__(
            run=str(run),
            stages={stage.name: stage.state for stage in stages},
            findings=[finding.to_json() for finding in findings],
        )
        self._findings = findings

    def __str__(self) -> str:
        names = ", ".join(f"{name} ({state})" for name, state in self["stages"].items()) or "none has begun"
        lines = [f"{self['run']}: stages {names}"]
        for one in self._findings:
            lines += ["", f"{one.stage}: {one.says}"]
            lines += [f"  seen  {text}" for text in one.evidence]
            lines += [f"  try   {text}" for text in one.tries]
        return "\n".join(lines if self._findings else [*lines, "nothing wrong is seen"])


def doctor(run: Path, as_json: bool = False) -> Finished:
    """The diagnosis of a run folder; exit code 1 where something is wrong. Raises ConfigError when it is none."""
    stages = read_run(run, stages_of(run))
    findings = [finding for stage in stages for finding in diagnose(stage)]
    return Finished(int(bool(findings)), Diagnosis(run, stages, findings))
