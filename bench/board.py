"""How quick the board is with many long runs: the first reading, a chart's answer, the page in a Chromium, live.

    python -m bench.board --runs 100 --steps 10000

The runs are written by this program (about 1.3 kB a step) and removed again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

LAYERS, EXPERTS = 2, 8
SETTINGS = {"kind": "rl", "name": "rl", "from": "base", "prompts": 32, "group": 16, "optim": {"lr": 1e-4}}


def row(step: int, rng: np.random.Generator) -> dict[str, Any]:
    """A step as RL logs it."""
    noise = rng.normal(0, 0.02, 8).tolist()
    right = 0.9 - 0.5 * float(np.exp(-step / 2000)) + noise[0]
    out = {
        "step": step, "n_verifier_errors": 0, "completions/mean_length_right": 30 + noise[1], "reward": 1 + right,
        "completions/mean_length_wrong": 20 + noise[2], "rewards/accuracy/mean": right, "rewards/format/mean": 1.0,
        "reward_std": 0.49 + noise[3], "frac_reward_zero_std": abs(noise[4]) * 10, "pass_at_1": right,
        "pass_at_group": 1.0, "completions/mean_length": 25 + noise[1], "completions/clipped_ratio": 0.0,
        "n_tokens": 11776, "loss": -0.67 + noise[5], "clip_ratio": 0.0, "entropy": 0.1 + abs(noise[6]),
        "sampling/sampling_logp_difference/mean": 0.0, "sampling/sampling_logp_difference/max": 0.0,
        "grad_norm": 0.32 + noise[7], "learning_rate": 1e-4, "flops": 3.4e10 * step,
    }  # fmt: skip
    for layer in range(LAYERS):
        loads = rng.dirichlet(np.ones(EXPERTS) * 30)
        out |= {f"expert_load/{layer}/{expert}": float(load) for expert, load in enumerate(loads)}
        out[f"expert_load/{layer}/max_over_mean"] = float(loads.max() * EXPERTS)
    return out


def write(folder: Path, n_runs: int, n_steps: int) -> list[Path]:
    """The runs' metrics files."""
    files = []
    for number in range(n_runs):
        stage = folder / f"run{number:03d}" / "rl"
        stage.mkdir(parents=True)
        (stage / "stage.json").write_text(json.dumps({"digest": "0", "settings": {**SETTINGS, "steps": n_steps}}))
        rng = np.random.default_rng(number)
        with (stage / "metrics.jsonl").open("w") as file:
            for step in range(1, n_steps + 1):
                file.write(json.dumps(row(step, rng)) + "\n")
                if step % 100 == 0:
                    file.write(json.dumps({"step": step, "held_out/pass_at_1": 0.5 + step / n_steps / 3}) + "\n")
        files.append(stage / "metrics.jsonl")
    return files


def in_browser(url: str, files: Sequence[Path], n_steps: int) -> dict[str, Any]:
    """Seconds until all is drawn; then, while every run grows by a line a second, the longest pause of the page."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import browser as chromium

    if chromium.chromium() is None:
        return {}
    with chromium.launched() as one:
        page = one.new_page()
        began = time.perf_counter()
        page.goto(url)
        page.wait_for_selector("body[data-drawn]", timeout=300_000)
        out: dict[str, Any] = {"until_drawn_s": time.perf_counter() - began}
        page.evaluate(
            "() => { window.pauses = []; new PerformanceObserver((list) => list.getEntries().forEach((one) => "
            "window.pauses.push(one.duration))).observe({ entryTypes: ['longtask'] }); }"
        )
        rng, drawn = np.random.default_rng(0), page.evaluate("() => Number(document.body.dataset.drawn)")
        for second in range(20):
            for file in files:
                with file.open("a") as stream:
                    stream.write(json.dumps(row(n_steps + second + 1, rng)) + "\n")
            page.wait_for_timeout(1000)
        pauses = page.evaluate("() => window.pauses")
        out["redraws_in_20_s"] = page.evaluate("() => Number(document.body.dataset.drawn)") - drawn
        out["longest_pause_ms"], out["median_pause_ms"] = max(pauses, default=0), float(np.median(pauses or [0]))
    return out


def measure(folder: Path, n_runs: int, n_steps: int) -> dict[str, Any]:
    """All figures."""
    files = write(folder, n_runs, n_steps)
    out: dict[str, Any] = {"runs": n_runs, "steps": n_steps, "bytes": sum(file.stat().st_size for file in files)}
    words = [str(file.parent.parent) for file in files]
    command = [sys.executable, "-m", "zifio.cli", "board", *words, "--port", "0"]
    board = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert board.stderr is not None
    try:
        found = re.search(r"http://[^/\s]+", board.stderr.readline())
        assert found, "the board did not start"
        began, slowest = time.perf_counter(), 0.0
        with httpx2.Client(base_url=found[0], timeout=120) as client:
            while True:
                asked = time.perf_counter()
                is_ready = client.get("/api/runs").json()["ready"]
                slowest = max(slowest, time.perf_counter() - asked)
                if is_ready:
                    break
                time.sleep(0.2)
            out |= {"first_reading_s": time.perf_counter() - began, "slowest_answer_meanwhile_s": slowest}
            for shown in (1, n_runs):
                params = {"stage": "rl", "key": ["reward", "frac_reward_zero_std"], "run": [*range(shown)]}
                times = []
                for _ in range(5):
                    asked = time.perf_counter()
                    answer = client.get("/api/chart", params=params)
                    times.append(time.perf_counter() - asked)
                out[f"chart_of_{shown}_ms"] = 1000 * float(np.median(times))
                out[f"chart_of_{shown}_kb"] = len(answer.content) / 1000
        out |= in_browser(found[0], files, n_steps)
        status = Path(f"/proc/{board.pid}/status")
        if status.exists():
            peak = re.search(r"VmHWM:\s+(\d+)", status.read_text())
            out["peak_mb"] = int(peak[1]) / 1024 if peak else None
    finally:
        board.send_signal(signal.SIGINT)
        board.wait(60)
    return out


def main() -> None:
    """Measure and write the figures to stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10_000)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="zifio-board-"))
    try:
        found = measure(folder, arguments.runs, arguments.steps)
    finally:
        shutil.rmtree(folder)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
