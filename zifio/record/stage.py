"""What a run has left in its folder, read back: totals, curves, results, what it warned of, and how it ended.

Try it alone:

    from zifio.record.stage import read_run, stages_of
    read_run(Path("runs/quickstart"), stages_of(Path("runs/quickstart")))[0].series("loss")
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zifio.config import ConfigError
from zifio.data.sources import read_jsonl
from zifio.log import RunFolder

State = Literal["done", "running", "stopped"]
_TOTALS = ("seconds", "flops", "look_flops", "tokens", "peak_rss_bytes", "wall_s", "cpu_s", "cores", "solutions")


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run, as far as it came. What a stage has not measured is absent or None."""

    name: str
    kind: str
    from_: str | None = None
    """The stages or paths that it started from, in words."""
    done: bool = False
    seconds: float | int | None = None
    flops: float | int | None = None
    """Work of the stage itself."""
    look_flops: float | int | None = None
    """Work of the looks at held-out problems along the way."""
    tokens: float | int | None = None
    peak_rss_bytes: float | int | None = None
    """The most memory that the process had held when the stage ended, earlier stages included."""
    wall_s: float | None = None
    """Seconds of its last stretch, from the clock; all of it where it was never resumed."""
    cpu_s: float | None = None
    """Processor seconds of that stretch, over all threads."""
    cores: int | None = None
    """Processors that it could use."""
    solutions: int | None = None
    """Of a `prm` stage: how many labelled solutions it learned from."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of an `eval` stage: each model's figures."""
    replies: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Of an `eval` stage: each model's first reply to every problem."""
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    """What was said to a few held-out problems, look by look."""
    settings: dict[str, Any] = field(default_factory=dict)
    """All of the stage's settings, as it was run."""
    state: State = "stopped"
    """stopped: begun, not done, and no process works on it."""
    ended: dict[str, Any] = field(default_factory=dict)
    """Of a stage that ended with an error: its `kind` and `message`."""
    alarms: list[dict[str, Any]] = field(default_factory=list)
    """The guard's, in order."""

    def series(self, key: str) -> tuple[list[float | int], list[float | int]]:
        """Steps and values of a metric, where it was logged."""
        rows = [row for row in self.metrics if key in row]
        return [row["step"] for row in rows], [row[key] for row in rows]

    @property
    def keys(self) -> list[str]:
        """What was logged, at any step."""
        return list(dict.fromkeys(key for row in self.metrics for key in row if key != "step"))


def expert_layers(keys: Iterable[str]) -> list[int]:
    """The layers whose experts' load was logged, in order."""
    return sorted({int(key.split("/")[1]) for key in keys if key.startswith("expert_load/")})


def expert_keys(keys: Iterable[str], layer: int) -> list[str]:
    """The metrics with the load of each expert of a layer, in order."""
    prefix = f"expert_load/{layer}/"
    names = {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
    return [prefix + name for name in sorted(filter(str.isdecimal, names), key=int)]


def stages_of(folder: Path) -> list[tuple[str, str]]:
    """(name, kind) of the stages that a run folder has begun, in the recipe's order where it tells one.

    Raises ConfigError when it is no run folder.
    """
    marks = [*folder.glob("*/stage.json")]
    kinds = {path.parent.name: _kind(path) for path in marks}
    if not kinds:
        hint = f" It is a stage's own folder: give {folder.parent}." if (folder / "stage.json").exists() else ""
        raise ConfigError(f"{folder}: wanted a run folder, came one without any stage.{hint}")
    order = [stage["name"] for stage in read_json(folder / "recipe.json").get("stage", [])]
    begun = {path.parent.name: path.stat().st_mtime_ns for path in marks}
    first = {name: place for place, name in enumerate(order)}
    names = sorted(kinds, key=lambda name: (first.get(name, len(order)), begun[name], name))
    return [(name, kinds[name]) for name in names]


def _kind(mark: Path) -> str:
    return str(read_json(mark).get("settings", {}).get("kind", ""))


def read_run(run_folder: Path, stage_order: Sequence[tuple[str, str]]) -> list[StageRecord]:
    """The stages that have begun, in order."""
    records = [read_stage(run_folder / name, name, kind) for name, kind in stage_order]
    return [record for record in records if record.done or record.metrics or record.results or record.ended]


def read_stage(folder: Path, name: str, kind: str) -> StageRecord:
    """One stage, whole."""
    results = read_json(folder / "results.json")
    log = RunFolder(folder)
    replies = {key: _first_replies(folder / f"records-{key}.jsonl") for key in results}
    return StageRecord(
        name, kind, **about(folder), metrics=log.read_metrics(), timing=log.read_timing(), results=results,
        replies=replies, rollouts=log.read_rollouts(),
    )  # fmt: skip


def about(folder: Path) -> dict[str, Any]:
    """Of a stage all but its curves and results: small files, by the names of `StageRecord`."""
    done = read_json(folder / "done.json")
    settings = read_json(folder / "stage.json").get("settings", {})
    totals = {key: done.get(key) for key in _TOTALS}
    return {
        **totals,
        "from_": _started_from(settings),
        "done": bool(done),
        "settings": settings,
        "state": "done" if done else "running" if _is_held(folder) else "stopped",
        "ended": read_json(folder / "ended.json"),
        "alarms": [read_json(path) for path in sorted(folder.glob("alarm-*.json"))],
    }


def _is_held(folder: Path) -> bool:
    """Whether a process works on this stage: it holds the run, and no stage was begun after this one."""
    if RunFolder(folder.parent).holder() is None:
        return False
    begun = [path for path in folder.parent.glob("*/stage.json") if not (path.parent / "done.json").exists()]
    newest = max(begun, key=lambda path: path.stat().st_mtime_ns, default=None)
    return newest is not None and newest.parent == folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none or it is just being written."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _started_from(settings: dict[str, Any]) -> str | None:
    """What a stage's settings name as its beginnings, each once."""
    keys = ("from", "teacher", "data") if settings.get("kind") != "pretrain" else ("tokenizer",)
    names = [settings[key] for key in keys if isinstance(settings.get(key), str)]
    names += settings.get("models", [])
    return ", ".join(dict.fromkeys(names)) or None


def _first_replies(path: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(path) if row["place"] == 0] if path.exists() else []


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content if isinstance(content, bytes) else content.encode())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
