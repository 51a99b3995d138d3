"""Labels as files that others read: PRM800K's JSON, TRL's three formats, parquet with a card. Streamed, whole or not
at all.

Try it alone: `zifio label desk.db --export prm800k --out labels.jsonl`
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zifio.config import ConfigError
from zifio.data.sources import write_jsonl
from zifio.label.records import Labelled, labels
from zifio.label.store import Store
from zifio.tasks.steps import Solution, first_error, to_prm800k, to_stepwise

Rows = list[dict[str, Any]]
_AT_ONCE = 1000


def export(store: Store, format: str, out: Path, every: bool = False, first: int | None = None) -> dict[str, Any]:
    """Write the labels, or the `first` that were given, to `out`; how many rows were written, and how many labels have
    no place in this format.

    Raises ConfigError for a format that there is not, or fewer than one label.
    """
    if first is not None and first < 1:
        raise ConfigError(f"--first: wanted how many labels, 1 or more, came {first}.")
    if format not in FORMATS:
        raise ConfigError(f"--export: wanted one of {', '.join(FORMATS)}, came {format!r}. Choose one of these.")
    counts: Counter[str] = Counter()
    rows = _rows(labels(store, every, first), _ROWS[format], counts)
    out.parent.mkdir(parents=True, exist_ok=True)
    if format == "parquet":
        _write_parquet(out, rows)
    else:
        write_jsonl(out, rows)
    return {"out": str(out), "format": format, "rows": counts["rows"], "left_out": counts["left_out"]}


def _rows(
    given: Iterator[Labelled], make: Callable[[Labelled], Rows], counts: "Counter[str]"
) -> Iterator[dict[str, Any]]:
    for one in given:
        made = make(one)
        counts["rows"] += len(made)
        counts["left_out"] += not made
        yield from made


def solution(one: Labelled) -> Solution:
    """A labelled item of kind steps as the shape that the rest of zifio knows."""
    item, ratings = one.item, one.said.ratings or (None,) * len(one.item.steps)
    problem, outcome = item.problem or item.id, item.outcome
    return Solution(problem, item.prompt, item.gold, item.steps, tuple(ratings), item.answer, outcome, one.annotator)


def _prm800k(one: Labelled) -> Rows:
    """PRM800K's row, and under a key of its own what that has no place for."""
    item, said = one.item, one.said
    if item.kind != "steps":
        return []
    row = to_prm800k(solution(one))
    steps = row["label"]["steps"]
    for number, texts in enumerate(item.alternatives[: len(steps)]):
        given = said.alternatives[number] if said.alternatives else (None,) * len(texts)
        steps[number]["completions"] += [
            {"text": text, "rating": rating, "flagged": None} for text, rating in zip(texts, given, strict=True)
        ]
    wrong = first_error(said.ratings)
    if wrong is not None and said.correction:
        # The wrong step stays the one that is labelled; who takes the correction for the step would lose the error.
        steps[wrong] |= {"human_completion": {"text": said.correction, "rating": None}, "chosen_completion": 0}
    if said.flagged and steps:
        steps[wrong or 0]["completions"][0]["flagged"] = True
    label = {**row["label"], "total_time": one.ms, "finish_reason": said.finish}
    beside: dict[str, Any] = {"id": item.id, "phase": one.phase, "note": said.note, "flagged": said.flagged}
    if item.alternatives:
        beside["alternatives"] = item.alternatives  # those behind the first error, too
    if item.expected is not None:
        beside["expected"] = item.expected.model_dump(mode="json")
    return [
        {
            **row,
            "timestamp": one.timestamp or _time(one.at),
            "generation": None,
            "is_quality_control_question": item.role == "gold",
            "is_initial_screening_question": item.role == "screening",
            "label": label,
            "zifio": beside,
        }
    ]


def _stepwise(one: Labelled) -> Rows:
    if one.item.kind != "steps" or one.said.finish not in ("solution", "found_error"):
        return []
    return [to_stepwise(solution(one))]


def _preference(one: Labelled) -> Rows:
    item = one.item
    if item.kind != "pair" or one.said.value not in ("a", "b"):
        return []
    chosen, rejected = (item.a, item.b) if one.said.value == "a" else (item.b, item.a)
    return [{"prompt": item.prompt, "chosen": chosen, "rejected": rejected}]


def _unpaired(one: Labelled) -> Rows:
    item, stance = one.item, one.stance or ""
    if item.kind == "answer" and stance in ("right", "wrong"):
        return [{"prompt": item.prompt, "completion": item.response, "label": stance == "right"}]
    if item.kind == "steps" and stance.startswith(("no error", "error")):
        return [{"prompt": item.prompt, "completion": solution(one).text, "label": stance == "no error"}]
    if item.kind == "pair" and stance == "both_bad":
        return [{"prompt": item.prompt, "completion": text, "label": False} for text in (item.a, item.b)]
    return []


_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "kind", "role", "prompt")),
        ("steps", pa.list_(pa.string())),
        ("alternatives", pa.list_(pa.list_(pa.string()))),
        *((name, pa.string()) for name in ("response", "a", "b", "answer", "gold", "problem", "outcome")),
        ("scores", pa.list_(pa.float64())),
        ("source", pa.string()),
        ("finish", pa.string()),
        ("ratings", pa.list_(pa.int8())),
        ("alternative_ratings", pa.list_(pa.list_(pa.int8()))),
        *((name, pa.string()) for name in ("value", "stance", "correction", "note")),
        ("flagged", pa.bool_()),
        *((name, pa.string()) for name in ("annotator", "phase", "timestamp", "queue")),
        ("ms", pa.int64()),
        ("saw_verdict", pa.bool_()),
    ]
)


def _flat(one: Labelled) -> Rows:
    """A label with all that is known about it, in plain columns."""
    item, said = one.item, one.said
    texts = ("id", "kind", "role", "prompt", "response", "a", "b", "answer", "gold", "problem", "outcome", "source")
    row: dict[str, Any] = {name: getattr(item, name) for name in texts}
    row |= {"steps": list(item.steps), "scores": list(item.scores), "ratings": list(said.ratings)}
    row |= {"alternatives": item.alternatives, "alternative_ratings": said.alternatives}
    row |= {name: getattr(said, name) for name in ("finish", "value", "correction", "note", "flagged")}
    row |= {name: getattr(one, name) for name in ("stance", "annotator", "phase", "queue", "ms", "saw_verdict")}
    return [{**row, "timestamp": one.timestamp or _time(one.at)}]


def _write_parquet(out: Path, rows: Iterator[dict[str, Any]]) -> None:
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(beside, _SCHEMA, compression="zstd") as writer:
            waiting: Rows = []
            for row in rows:
                waiting.append(row)
                if len(waiting) == _AT_ONCE:
                    writer.write_table(pa.Table.from_pylist(waiting, _SCHEMA))
                    waiting = []
            writer.write_table(pa.Table.from_pylist(waiting, _SCHEMA))
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


_ROWS: dict[str, Callable[[Labelled], Rows]] = {
    "prm800k": _prm800k,
    "stepwise": _stepwise,
    "preference": _preference,
    "unpaired": _unpaired,
    "parquet": _flat,
}
FORMATS = tuple(_ROWS)
"""What `--export` takes."""
