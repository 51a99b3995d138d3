"""Sinks: a stage's metrics arrive, once, also when it is stopped and goes on; one that breaks ends nothing."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from zifio.config import ConfigError
from zifio.log import RunFolder
from zifio.sink import send
from zifio.sink.send import Sender, check_sinks, sending


def steps(folder: Path, first: int, last: int) -> None:
    log = RunFolder(folder)
    for step in range(first, last + 1):
        log.metrics(step, {"loss": 1 / step})
        log.timing(step, {"step_s": 0.25})


def sent(names: list[str], folder: Path) -> None:
    """As a stage that is over at once."""
    stop = threading.Event()
    stop.set()
    Sender(names, "run", "stage", folder).follow(stop)


def test_tensorboard_reads_it_back(tmp_path: Path):
    """By TensorBoard's own reader: every step of both parts of a run, none twice."""
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with sending(["tensorboard"], "run", "stage", tmp_path):
        steps(tmp_path, 1, 5)
        RunFolder(tmp_path).metrics(5, {"held_out/pass_at_1": 0.5})
    RunFolder(tmp_path).truncate(3)
    with sending(["tensorboard"], "run", "stage", tmp_path):
        steps(tmp_path, 4, 8)
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    found = reader.Scalars("loss")
    assert [one.step for one in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [one.value for one in found] == pytest.approx([1 / step for step in range(1, 9)])
    assert [one.step for one in reader.Scalars("held_out/pass_at_1")] == [5]
    assert len(reader.Scalars("step_s")) == 8


def test_trackio_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="pip install trackio")
    from trackio.sqlite_storage import SQLiteStorage

    steps(tmp_path, 1, 4)
    sent(["trackio"], tmp_path)
    rows = SQLiteStorage.get_logs("run", "stage")
    assert [(row["step"], row["loss"]) for row in rows] == [(step, 1 / step) for step in range(1, 5)]


class _Breaks:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.seen.append(step)
        if step == 2:
            raise OSError("no route")

    def close(self) -> None:
        raise AssertionError("it is out already")


def test_a_sink_that_breaks_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    broken = _Breaks()
    monkeypatch.setattr(send, "open_sink", lambda *args: broken)
    steps(tmp_path, 1, 4)
    sent(["wandb"], tmp_path)
    assert broken.seen == [1, 2]
    assert "the sink wandb broke (OSError('no route'))" in capsys.readouterr().err


def test_a_missing_package_is_told_before_anything_runs():
    with pytest.raises(ConfigError, match=r"sinks: wanted the package zifio_nowhere, came none. Install it"):
        check_sinks(["zifio_nowhere"], "recipe.toml")
