"""Reading what grows: nothing twice, nothing torn, anew where a file was written anew; quickly and slowly the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from zifio.log import RunFolder
from zifio.record.tail import Columns, Rows


def test_it_reads_what_is_new_and_only_whole_lines(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    columns = Columns(file)
    assert not columns.update(), "it is not there yet"
    log = RunFolder(tmp_path)
    log.metrics(1, {"loss": 2.0})
    log.metrics(2, {"loss": 1.5, "entropy": 1})
    assert columns.update() and not columns.update()
    with file.open("a") as stream:
        stream.write('{"step": 3, "loss": 1.')
    assert not columns.update()
    with file.open("a") as stream:
        stream.write('25}\nbroken\n{"step": 4, "loss": 1.0}\n')
    assert columns.update()
    steps, values = columns.series("loss")
    assert steps.tolist() == [1, 2, 3, 4] and values.tolist() == [2.0, 1.5, 1.25, 1.0]
    assert columns.series("entropy")[0].tolist() == [2] and columns.series("other")[0].tolist() == []


def test_a_resumed_run_is_read_anew(tmp_path: Path):
    log, columns = RunFolder(tmp_path), Columns(tmp_path / "metrics.jsonl")
    for step in range(1, 11):
        log.metrics(step, {"loss": float(step)})
    columns.update()
    log.truncate(6)
    for step in range(7, 13):
        log.metrics(step, {"loss": -float(step)})
    columns.update()
    assert columns.series("loss")[1].tolist() == [1, 2, 3, 4, 5, 6, -7, -8, -9, -10, -11, -12]


def test_large_files_give_the_same_as_small_ones(tmp_path: Path):
    """Arrow's reading of a whole file and ours line by line: whole numbers that become broken ones, gaps, text."""
    rng = np.random.default_rng(0)
    lines = []
    for step in range(1, 40_001):
        row = {"step": step, "loss": float(rng.normal()), "count": step // 2 if step < 35_000 else step / 4}
        row |= {"seldom": step * 0.5} if step % 1000 == 0 else {}
        lines.append(json.dumps(row | {"word": "x"}))
    whole, pieces = tmp_path / "whole.jsonl", tmp_path / "pieces.jsonl"
    whole.write_text("\n".join(lines) + "\n")
    one, other = Columns(whole), Columns(pieces)
    one.update()
    for start in range(0, len(lines), 400):
        with pieces.open("a") as stream:
            stream.write("\n".join(lines[start : start + 400]) + "\n")
        other.update()
    assert one.keys == other.keys == ["loss", "count", "seldom"]
    for key in one.keys:
        assert all((a == b).all() for a, b in zip(one.series(key), other.series(key), strict=True))
    assert len(one.series("seldom")[0]) == 40


def test_rows_of_what_was_said(tmp_path: Path):
    log, rows = RunFolder(tmp_path), Rows(tmp_path / "rollouts.jsonl")
    log.rollouts(0, [{"response": "a"}, {"response": "ü\u2028"}])
    assert rows.update()
    log.rollouts(5, [{"response": "c"}])
    assert rows.update() and [row["response"] for row in rows.rows] == ["a", "ü\u2028", "c"]
    log.truncate(0)
    assert rows.update() and [row["response"] for row in rows.rows] == ["a", "ü\u2028"]
