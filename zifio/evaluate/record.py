"""What a run has left in its folder, read back for the report: totals, curves, results, and what the models said.

Try it alone:

    from zifio.evaluate.record import read_run
    read_run(Path("runs/quickstart"), [("base", "pretrain")])[0].series("loss")
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zifio.data.sources import read_jsonl
from zifio.log import RunFolder
from zifio.tasks.environment import transcript
from zifio.tasks.task import parse_response

_GAINED, _STUMBLED = 5, 2  # of the examples shown: learned since the first model; still wrong for some


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
    solutions: int | None = None
    """Of a `prm` stage: how many labelled solutions it learned from."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of an `eval` stage: each model's figures."""
    replies: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Of an `eval` stage: each model's first reply to every problem."""

    def series(self, key: str) -> tuple[list[float | int], list[float | int]]:
        """Steps and values of a metric, where it was logged."""
        rows = [row for row in self.metrics if key in row]
        return [row["step"] for row in rows], [row[key] for row in rows]


@dataclass(frozen=True)
class Answer:
    """What one model said to a problem, thinking apart."""

    model: str
    outcome: str
    thinking: str
    answer: str
    """What stands in the answer tags; of a reply without the agreed shape, the whole reply."""
    has_shape: bool
    reason: str


@dataclass(frozen=True)
class Example:
    """A held-out problem and what every model said to it."""

    prompt: str
    gold: str
    answers: list[Answer]


def read_run(run_folder: Path, stage_order: Sequence[tuple[str, str]]) -> list[StageRecord]:
    """The stages that have begun, in order."""
    records = [_read_stage(run_folder / name, name, kind) for name, kind in stage_order]
    return [record for record in records if record.done or record.metrics or record.results]


def _read_stage(folder: Path, name: str, kind: str) -> StageRecord:
    done, results = _read_json(folder / "done.json"), _read_json(folder / "results.json")
    settings = _read_json(folder / "stage.json").get("settings", {})
    log = RunFolder(folder)
    replies = {key: _first_replies(folder / f"records-{key}.jsonl") for key in results}
    totals = {key: done.get(key) for key in ("seconds", "flops", "look_flops", "tokens", "peak_rss_bytes", "solutions")}
    return StageRecord(
        name,
        kind,
        _started_from(settings),
        bool(done),
        **totals,
        metrics=log.read_metrics(),
        timing=log.read_timing(),
        results=results,
        replies=replies,
    )


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _started_from(settings: dict[str, Any]) -> str | None:
    """What a stage's settings name as its beginnings, each once."""
    keys = ("from", "teacher", "data") if settings.get("kind") != "pretrain" else ("tokenizer",)
    names = [settings[key] for key in keys if isinstance(settings.get(key), str)]
    names += settings.get("models", [])
    return ", ".join(dict.fromkeys(names)) or None


def _first_replies(path: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(path) if row["place"] == 0] if path.exists() else []


def examples(stage: StageRecord, count: int = 8) -> list[Example]:
    """Problems of an `eval` stage that teach something, chosen by a fixed rule from each model's first reply.

    Most are ones that the first model gets wrong and others right, a few ones that some model still gets wrong, one
    that all get right. They come in the order of the evaluation.
    """
    rows_of = {
        model: {row["problem"]: row for row in stage.replies[model]} for model in stage.results if stage.replies[model]
    }
    if not rows_of:
        return []
    first = next(iter(rows_of.values()))
    problems = [problem for problem in first if all(problem in rows for rows in rows_of.values())]
    right = {problem: [rows[problem]["outcome"] == "right" for rows in rows_of.values()] for problem in problems}
    instructive = sorted(problems, key=lambda problem: -sum(right[problem][1:]))
    gained = [p for p in instructive if not right[p][0] and any(right[p])]
    stumbled = [p for p in instructive if any(right[p]) and not all(right[p][1:])]
    easy = [p for p in problems if all(right[p])]
    chosen = dict.fromkeys([*gained[:_GAINED], *stumbled[:_STUMBLED], *easy[:1]])
    shown = set([*chosen, *(p for p in [*gained, *problems] if p not in chosen)][:count])
    return [_example(problem, rows_of) for problem in problems if problem in shown]


def _example(problem: str, rows_of: dict[str, dict[str, dict[str, Any]]]) -> Example:
    rows = {model: rows[problem] for model, rows in rows_of.items()}
    any_row = next(iter(rows.values()))
    answers = [_answer(model, row) for model, row in rows.items()]
    return Example(any_row["prompt"], any_row["gold"], answers)


def _answer(model: str, row: dict[str, Any]) -> Answer:
    parsed = parse_response(row["response"])
    thinking, answer = parsed or ("", row["response"])
    earlier = transcript(row.get("messages", [])[1:-1])  # of an episode in turns
    thinking = "\n".join(filter(None, [earlier, thinking]))
    return Answer(model, row["outcome"], thinking, answer, parsed is not None, row["reason"])


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content if isinstance(content, bytes) else content.encode())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
