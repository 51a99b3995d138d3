"""This machine, measured and then planned with."""

from __future__ import annotations

from pathlib import Path

import pytest

from zifio.forecast import probe as probing
from zifio.forecast.verb import plan


def test_this_machine_is_measured_and_then_planned_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probing, "_SECONDS", 0.05)
    found = plan(probe=True, as_json=True)
    assert 1e-3 < found["peak"]["fp32"] < 1e4 and found["bandwidth_gb_s"] > 0.1 and found["memory_gb"] > 0.5
    mine = plan("deepseek-v2-lite", ["hardware=this", "precision=fp32", "mfu=0.5", "tokens=1e9"], as_json=True)
    hours = 1e9 * mine["train_flops_per_token"] / (found["peak"]["fp32"] * 1e12 * 0.5 * 3600)
    assert mine["gpu_hours"] == pytest.approx(hours) and mine["usd"] is None
    assert "hardware=this" in capfd.readouterr().err
