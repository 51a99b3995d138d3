"""Run folders as training writes them, with curves that are given: by the very classes that write real ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from zifio.log import RunFolder

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
SETTINGS: dict[str, Any] = {
    "kind": "rl", "name": "rl", "from": "base", "steps": 40, "prompts": 8, "group": 4, "format_weight": 1.0,
    "optim": {"lr": 1e-3}, "sampling": {"max_new_tokens": 64, "temperature": 1.0}, "balance": {"bias_speed": 0.0},
}  # fmt: skip


def line(step: int, tilt: float) -> dict[str, float]:
    """A step of a policy that learns, the sooner the greater the tilt."""
    right = 0.95 - 0.7 * math.exp(-step * (1 + tilt) / 12)
    loads = {f"expert_load/1/{expert}": 0.25 for expert in range(4)}
    return {
        "n_verifier_errors": 0, "reward": 1 + right, "pass_at_1": right, "frac_reward_zero_std": 0.6 * right,
        "entropy": 1.5 - right, "clip_ratio": 0.01, "loss": -0.1, "grad_norm": 0.3, "completions/mean_length": 20.0,
        "completions/mean_length_right": 21.0, "completions/mean_length_wrong": 18.5, "completions/clipped_ratio": 0.0,
        "sampling/sampling_logp_difference/mean": 0.0, "sampling/sampling_logp_difference/max": 0.0,
        "expert_load/1/max_over_mean": 1.0, **loads, "flops": 1e9 * step,
    }  # fmt: skip


def begin(folder: Path, **changes: Any) -> Path:
    """The folder of a stage that has not made a step."""
    stage = folder / "rl"
    stage.mkdir(parents=True)
    (stage / "stage.json").write_text(json.dumps({"digest": "0", "settings": SETTINGS | changes}))
    return stage


def look(stage: Path, step: int, tilt: float) -> None:
    """What a look at held-out problems leaves."""
    right = line(step, tilt)["pass_at_1"]
    shares = {
        "pass_at_1": right,
        "pass_at_1_low": right - 0.1,
        "pass_at_1_high": min(1.0, right + 0.1),
        "pass_at_4": 1.0,
    }
    RunFolder(stage).metrics(step, {f"held_out/{key}": value for key, value in shares.items()})
    said = {"place": 0, "gold": "9", "parts": {"accuracy": 1.0}, "reason": "", "n_tokens": 3, "finish": "stop"}
    rows = [
        {**said, "problem": f"p{n}", "prompt": f"{n}+4 {HOSTILE}", "outcome": "right" if step else "wrong",
         "response": f"reply {n} at {step} {HOSTILE}"}
        for n in range(3)
    ]  # fmt: skip
    RunFolder(stage).rollouts(step, rows)


def go_on(stage: Path, first: int, last: int, tilt: float = 0.0) -> None:
    """More steps, a look at every tenth."""
    log = RunFolder(stage)
    for step in range(first, last + 1):
        if step:
            log.metrics(step, line(step, tilt))
            log.timing(step, {"step_s": 0.5, "tokens_per_s": 1000.0 + step})
        if step % 10 == 0:
            look(stage, step, tilt)


def whole(folder: Path, tilt: float = 0.0, **changes: Any) -> Path:
    """A run that is done."""
    stage = begin(folder, **changes)
    go_on(stage, 0, 40, tilt)
    (stage / "done.json").write_text(json.dumps({"seconds": 20.0, "flops": 4e10, "tokens": 40000}))
    return folder
