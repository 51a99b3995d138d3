"""A forecast scored: which seconds count, what is left out, and when it is near."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zifio.config import ConfigError
from zifio.forecast.against import score, score_table
from zifio.forecast.verb import plan


def forecast(threads: int = 1, **seconds: float) -> dict[str, Any]:
    """Of stages that hold 1 GB."""
    stages = [
        {"name": name, "kind": "sft", "seconds": s, "low_s": s / 2, "high_s": 2 * s, "peak_bytes": 1e9, "parts": {}}
        for name, s in seconds.items()
    ]
    return {"recipe": "made", "threads": threads, "busy": 1.0, "left_out": [], "stages": stages}


def finished(run: Path, name: str, **done: float) -> None:
    """A stage that took so much."""
    (run / name).mkdir(parents=True)
    (run / name / "stage.json").write_text(json.dumps({"settings": {"kind": "sft"}}))
    (run / name / "done.json").write_text(json.dumps(done))


def test_one_processor_is_scored_by_its_own_seconds(tmp_path: Path):
    finished(tmp_path, "a", seconds=300.0, wall_s=300.0, cpu_s=100.0, cores=1, peak_rss_bytes=1.1e9)
    found = score(forecast(a=110.0), tmp_path)
    assert found["stages"][0]["measured_by"] == "processor" and found["stages"][0]["wall_s"] == 300.0
    assert found["seconds_error"] == pytest.approx(0.1) and found["seconds_are_near"]
    assert found["memory_error"] == pytest.approx(1 / 1.1 - 1) and found["memory_is_near"]


def test_more_processors_are_scored_by_the_clock(tmp_path: Path):
    finished(tmp_path, "a", seconds=300.0, wall_s=300.0, cpu_s=500.0, cores=2, peak_rss_bytes=2e9)
    found = score(forecast(threads=2, a=200.0), tmp_path)
    assert found["stages"][0]["measured_by"] == "clock"
    assert found["seconds_error"] == pytest.approx(-1 / 3) and not found["seconds_are_near"]
    assert not found["memory_is_near"] and "warning" not in found


def test_runs_that_told_less_are_scored_by_the_clock(tmp_path: Path):
    finished(tmp_path, "a", seconds=50.0)
    found = score(forecast(a=50.0), tmp_path)
    assert found["seconds_error"] == 0 and "memory_error" not in found
    assert "time +0%" in str(score_table(found).title)


def test_other_processors_are_no_fair_comparison(tmp_path: Path):
    finished(tmp_path, "a", seconds=50.0, wall_s=50.0, cpu_s=90.0, cores=2)
    assert "no fair comparison" in score(forecast(threads=1, a=50.0), tmp_path)["warning"]


def test_totals_are_of_stages_in_both(tmp_path: Path):
    finished(tmp_path, "a", seconds=10.0)
    finished(tmp_path, "b", seconds=30.0)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "stage.json").write_text(json.dumps({"settings": {"kind": "sft"}}))
    found = score(forecast(a=20.0, begun=1000.0), tmp_path)
    assert [row["name"] for row in found["stages"]] == ["a"] and found["seconds_error"] == 1.0
    assert found["interval_s"] == [10.0, 40.0]


def test_mistakes_say_the_way_out(tmp_path: Path):
    finished(tmp_path, "else", seconds=1.0)
    with pytest.raises(ConfigError, match="finished stages of made"):
        score(forecast(a=1.0), tmp_path)
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(ConfigError, match="another JSON file"):
        plan("small.toml", forecast=tmp_path / "wrong.json")
    with pytest.raises(ConfigError, match="wanted a forecast as zifio plan"):
        plan("small.toml", forecast=tmp_path / "absent.json")


def test_claims_are_told_from_models_and_say_what_may_be_set():
    with pytest.raises(ConfigError, match="wanted a claim, one of C1"):
        plan("C99")
    with pytest.raises(ConfigError, match="scales"):
        plan("c1", ["scales=smoke"])
