"""What the board knows of its runs, kept up to date while they are written.

Each stage's curves are read once and from then on only where they grow; who asks gets thinned curves.

Try it alone: `pytest tests/board/test_board_app.py`
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zifio.config import ConfigError
from zifio.doctor.signs import diagnose
from zifio.record.stage import about, expert_layers, stages_of
from zifio.record.tail import Columns, Rows

_LOOKED_S = 1.0  # between two rounds over all runs
_BETWEEN_S = 0.002  # between two runs, so that whoever asks waits for one of them and not for all
_MOST_ROLLOUTS = 600
_PASS = "held_out/pass_at_"


@dataclass
class Stage:
    """One stage of a run; a `doctor.reading.Reading`."""

    folder: Path
    name: str
    kind: str
    metrics: Columns = field(init=False)
    timing: Columns = field(init=False)
    rollouts: Rows = field(init=False)
    facts: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    """Goes up whenever anything of it has changed."""
    findings: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.metrics, self.timing = Columns(self.folder / "metrics.jsonl"), Columns(self.folder / "timing.jsonl")
        self.rollouts = Rows(self.folder / "rollouts.jsonl")

    @property
    def settings(self) -> dict[str, Any]:
        """As it was run."""
        return self.facts["settings"]

    @property
    def state(self) -> str:
        """done, running or stopped."""
        return self.facts["state"]

    @property
    def ended(self) -> dict[str, Any]:
        """The error that ended it."""
        return self.facts["ended"]

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """The guard's."""
        return self.facts["alarms"]

    @property
    def keys(self) -> list[str]:
        """What was logged."""
        return self.metrics.keys

    @property
    def step(self) -> int:
        """The last that was logged."""
        lasts = [self.metrics.series(key)[0][-1] for key in self.keys[:1] + self.keys[-1:]]
        return int(max(lasts, default=0))

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, of timing too."""
        return self.metrics.series(key) if key in self.metrics.keys else self.timing.series(key)

    def update(self) -> bool:
        """Read what is new; whether there was anything."""
        changed = [one.update() for one in (self.metrics, self.timing, self.rollouts)]
        facts = about(self.folder)
        if not any(changed) and facts == self.facts:
            return False
        self.facts = facts
        del self.rollouts.rows[:-_MOST_ROLLOUTS]
        self.findings = [finding.to_json() for finding in diagnose(self)]
        self.version += 1
        return True

    def summary(self) -> dict[str, Any]:
        """What the list of runs says of it."""
        totals = {key: self.facts[key] for key in ("flops", "tokens", "seconds") if self.facts[key] is not None}
        if "flops" not in totals and len(flops := self.metrics.series("flops")[1]):
            totals["flops"] = float(flops[-1])
        if "seconds" not in totals and len(seconds := self.timing.series("step_s")[1]):
            totals["seconds"] = float(seconds.sum())
        if len(speed := self.timing.series("tokens_per_s")[1]):
            totals["tokens_per_s"] = float(np.median(speed[-20:]))
        return {
            "name": self.name,
            "kind": self.kind,
            "state": self.state,
            "step": self.step,
            "steps": self.settings.get("steps"),
            "version": self.version,
            "k": max((int(key.removeprefix(_PASS)) for key in self.keys if _is_pass(key)), default=None),
            "layers": expert_layers(self.keys),
            "findings": len(self.findings),
            "totals": totals,
        }


class Run:
    """A run folder."""

    def __init__(self, folder: Path, is_reference: bool = False) -> None:
        self.folder, self.is_reference = folder, is_reference
        self.stages: dict[str, Stage] = {}

    def update(self) -> bool:
        """Read what is new; whether there was anything."""
        try:
            begun = stages_of(self.folder)
        except ConfigError:
            begun = []  # it has not begun, or was thrown away to begin afresh
        changed = [*self.stages] != [name for name, _ in begun]
        self.stages = {name: self.stages.get(name) or Stage(self.folder / name, name, kind) for name, kind in begun}
        for stage in self.stages.values():
            changed = stage.update() or changed
        return changed


class Watch:
    """All runs of a board."""

    def __init__(self, runs: Sequence[Path], references: Sequence[Path] = ()) -> None:
        names = _names([*runs, *references])
        both = [*((path, False) for path in runs), *((path, True) for path in references)]
        self.runs = {name: Run(path, is_reference) for name, (path, is_reference) in zip(names, both, strict=True)}
        self.is_ready = False
        """Whether every run has been read once."""
        self._lock = threading.Lock()

    def update(self) -> None:
        """Look at all runs once."""
        for run in self.runs.values():
            with self._lock:
                run.update()
            time.sleep(_BETWEEN_S)
        self.is_ready = True

    def follow(self, stop: threading.Event) -> None:
        """Look again and again, until told to stop."""
        while not stop.is_set():
            self.update()
            stop.wait(_LOOKED_S)

    def stage(self, run: int, stage: str) -> Stage | None:
        """A stage that has begun, of the run with this number."""
        runs = [*self.runs.values()]
        return runs[run].stages.get(stage) if 0 <= run < len(runs) else None

    def held(self) -> threading.Lock:
        """To be held while a stage is read."""
        return self._lock


def _is_pass(key: str) -> bool:
    return key.startswith(_PASS) and key.removeprefix(_PASS).isdecimal()


def _names(folders: Sequence[Path]) -> list[str]:
    """A short name for each folder, all different: its own, with as many of those above as it takes."""
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) != len(whole):
        twice = next(one for one in whole if whole.count(one) > 1)
        raise ConfigError(f"{twice}: wanted each run once, came one twice. Name it once, as a run or as a reference.")
    for depth in range(1, 20):
        names = ["/".join(one.parts[-depth:]) for one in whole]
        if len(set(names)) == len(names):
            return names
    return [str(one) for one in whole]
