"""What state a run's stages are in, and their order."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from zifio.config import ConfigError
from zifio.log import RunFolder
from zifio.record.stage import read_run, stages_of


def begun(run: Path, *names: str) -> None:
    for name in names:
        (run / name).mkdir(parents=True)
        (run / name / "stage.json").write_text(json.dumps({"digest": "0", "settings": {"kind": "rl", "name": name}}))
        RunFolder(run / name).metrics(1, {"loss": 1.0})


def states(run: Path) -> dict[str, str]:
    return {stage.name: stage.state for stage in read_run(run, stages_of(run))}


def test_done_running_stopped(tmp_path: Path):
    """A stage runs when a living process holds the run; what a killed one left behind is no sign of life."""
    begun(tmp_path, "b", "a")
    (tmp_path / "recipe.json").write_text(json.dumps({"stage": [{"name": "b"}, {"name": "a"}]}))
    (tmp_path / "b" / "done.json").write_text('{"seconds": 1.0}')
    assert list(states(tmp_path)) == ["b", "a"], "the recipe's order"
    with RunFolder(tmp_path).lock():
        assert states(tmp_path) == {"b": "done", "a": "running"}
    assert states(tmp_path) == {"b": "done", "a": "stopped"}
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    (tmp_path / "lock").write_text(f"{child}\n")
    assert states(tmp_path)["a"] == "stopped"


def test_no_run_folder(tmp_path: Path):
    with pytest.raises(ConfigError, match="wanted a run folder"):
        stages_of(tmp_path)
