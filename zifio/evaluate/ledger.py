"""What a model cost, in FLOPs, counted in four ways: a follower is cheap as long as its teacher is free.

    student         the stages from the base to the model itself, less what a teacher computed in them
    with_sampling   and a teacher's passes over text, and the data that these stages were given, drawn from a model
    with_teacher    and all else that this took: the training of whoever drew, taught and rewarded
    base            what the student began with, which none of the others counts

A stage counts whole for each model that used it, as if the others were not there; looks at held-out problems count
nowhere. What no run folder tells (a model or a file from elsewhere, a stage that has not ended) is unknown, and so is
every sum that it belongs to.

Try it alone:

    from zifio.evaluate.ledger import ledger
    ledger({"student": Path("runs/quickstart/student")})
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zifio.config import is_url

_STARTS = ("from", "data", "teacher", "reward_model")
_NO_MODEL = ("tokenizer", "sample", "eval")


@dataclass(frozen=True)
class _Work:
    """A stage that was done, in this run or another."""

    folder: Path
    kind: str
    method: str
    flops: float
    of_teacher: float
    starts: dict[str, str]
    """What it started from, as its settings name it."""


@dataclass
class _Sum:
    """Some stages and what is not known of them."""

    works: dict[Path, _Work] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)

    @property
    def flops(self) -> float:
        return sum(work.flops for work in self.works.values())


def ledger(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """For every model, by the folder of the stage that made it: how (`method`), the sums of the module's docstring as
    far as they are known, and under `unknown` what they could not count. A model that no stage made is left out."""
    works = {model: _read(folder) for model, folder in folders.items()}
    return {model: _entry(work) for model, work in works.items() if work is not None and work.kind not in _NO_MODEL}


def _entry(model: _Work) -> dict[str, Any]:
    chain, base = _chain(model)
    whole, given = _all_behind(chain), [work.starts["data"] for work in chain if "data" in work.starts]
    drawn = [_find(work, "data") for work in chain if "data" in work.starts]
    student = sum(work.flops - work.of_teacher for work in chain)
    out: dict[str, Any] = {"method": model.method, "student": student}
    servers = [work.starts.get("teacher", "") for work in chain] + [
        work.starts.get("from", "") for work in drawn if work
    ]
    if all(drawn) and not any(map(is_url, servers)):
        fresh = {work.folder: work for work in drawn if work is not None and work.folder not in base.works}
        taught = sum(work.of_teacher for work in chain)
        out["with_sampling"] = student + taught + sum(work.flops for work in fresh.values())
        if whole.unknown <= base.unknown:
            out["with_teacher"] = whole.flops - base.flops
    if not base.unknown:
        out["base"] = base.flops
    unknown = whole.unknown | {name for name, work in zip(given, drawn, strict=True) if work is None}
    return out | ({"unknown": sorted(unknown)} if unknown else {})


def _chain(model: _Work) -> tuple[list[_Work], _Sum]:
    """The stages that the model went through since its base, the last one first, and all that made the base."""
    chain = [model]
    while "from" in chain[-1].starts:
        before = _find(chain[-1], "from")
        if before is None:
            return chain, _Sum(unknown={chain[-1].starts["from"]})
        if "from" not in before.starts:
            return chain, _all_behind([before])
        chain.append(before)
    return chain, _Sum()


def _all_behind(works: Sequence[_Work]) -> _Sum:
    """These stages and all that they started from, each once."""
    total, todo = _Sum(), list(works)
    while todo:
        work = todo.pop()
        if work.folder in total.works:
            continue
        total.works[work.folder] = work
        for key, name in work.starts.items():
            before = _find(work, key)
            if before is None:
                total.unknown.add(name)
            else:
                todo.append(before)
    return total


def _find(work: _Work, key: str) -> _Work | None:
    """The stage that another started from: a neighbour in its run, or the one whose result a path names."""
    name = work.starts[key]
    return _read(work.folder.parent / name) or _read(Path(name).parent)


def _read(folder: Path) -> _Work | None:
    """A finished stage; None where there is none."""
    mark, done = folder / "stage.json", folder / "done.json"
    if not (mark.is_file() and done.is_file()):
        return None
    settings, totals = json.loads(mark.read_text())["settings"], json.loads(done.read_text())
    starts = {key: settings[key] for key in _STARTS if isinstance(settings.get(key), str)}
    process = settings.get("process") or {}
    if isinstance(process, dict) and process.get("by", "task") != "task":
        starts["process.by"] = process["by"]
    kind = settings["kind"]
    return _Work(
        folder.resolve(),
        kind,
        settings.get("method") or kind,
        totals.get("flops", 0.0),
        totals.get("teacher_flops", 0.0),
        starts,
    )
