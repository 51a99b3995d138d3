"""A made-up run folder in the shape that a recipe leaves, for the tests of the report (and for looking at it)."""

import json
import math
from pathlib import Path

from zifio.seed import stream
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import render_response

TASK = ChainSum(min_terms=6, max_terms=8)
STAGES = [
    ("tokenizer", "tokenizer"),
    ("base", "pretrain"),
    ("r1-zero", "rl"),
    ("cold-traces", "sample"),
    ("cold-start", "sft"),
    ("r1-first", "rl"),
    ("traces", "sample"),
    ("r1-sft", "sft"),
    ("r1", "rl"),
    ("r1-traces", "sample"),
    ("student", "distill"),
    ("final", "eval"),
]
FROM = {
    "base": {"tokenizer": "tokenizer"},
    "r1-zero": {"from": "base"},
    "cold-traces": {"from": "r1-zero"},
    "cold-start": {"from": "base", "data": "cold-traces"},
    "r1-first": {"from": "cold-start"},
    "traces": {"from": "r1-first"},
    "r1-sft": {"from": "base", "data": "traces"},
    "r1": {"from": "r1-sft"},
    "r1-traces": {"from": "r1"},
    "student": {"teacher": "r1", "data": "r1-traces"},
    "final": {"models": ["base", "r1-zero", "r1", "student"]},
}
SKILL = {"base": 0.16, "r1-zero": 0.94, "r1": 0.985, "student": 0.93}
STEPS = {"pretrain": 400, "rl": 90, "sft": 60, "distill": 200}


def make_run(folder: Path, response: str | None = None) -> Path:
    """Write the run; `response`, where given, replaces the first reply of every model."""
    for name, kind in STAGES:
        stage = folder / name
        stage.mkdir(parents=True)
        rng = stream(1, name)
        settings = {"kind": kind, "name": name, **FROM.get(name, {})}
        _write(stage / "stage.json", {"digest": "0" * 12, "settings": settings})
        rows = [_row(kind, name, step, STEPS[kind], rng) for step in range(STEPS[kind])] if kind in STEPS else []
        rows += [_look(step, STEPS[kind], *_range(kind, name)) for step in range(0, STEPS.get(kind, -1), 15)]
        _lines(stage / "metrics.jsonl", rows)
        _lines(stage / "timing.jsonl", [{"step": row["step"], "step_s": 0.4} for row in rows])
        seconds = {"pretrain": 161.0, "rl": 71.5, "sft": 12.4, "distill": 33.0, "eval": 18.0, "sample": 6.1}
        done = {"kind": kind, "digest": "0" * 12, "seconds": seconds.get(kind, 0.3), "peak_rss_bytes": 910_000_000}
        if kind != "tokenizer":
            done |= {"flops": seconds[kind] * 3.1e9, "tokens": int(seconds[kind] * 21_000), "look_flops": 2e9}
        _write(stage / "done.json", done)
    _evaluation(folder / "final", response)
    return folder


def _range(kind: str, name: str) -> tuple[float, float]:
    if kind == "rl":
        return (0.16, 0.94) if name == "r1-zero" else (0.8, 0.98)
    return {"pretrain": (0.0, 0.16), "sft": (0.3, 0.8), "distill": (0.0, 0.93)}[kind]


def _curve(step: int, steps: int, low: float, high: float) -> float:
    return low + (high - low) / (1 + math.exp(-10 * (step / steps - 0.4)))


def _row(kind: str, name: str, step: int, steps: int, rng) -> dict:
    row = {"step": step + 1, "loss": 1.0, "grad_norm": 0.5, "n_tokens": 9000, "learning_rate": 1e-3, "flops": 1e9}
    if name != "student":
        for layer in (1, 2, 3):
            skew = [
                math.exp((2.2 * math.exp(-6 * step / steps) + 0.15) * math.sin(5 * layer + 3 * e)) for e in range(8)
            ]
            load = [part * rng.uniform(0.9, 1.1) for part in skew]
            row |= {f"expert_load/{layer}/{e}": part / sum(load) for e, part in enumerate(load)}
            row[f"expert_load/{layer}/max_over_mean"] = max(load) / sum(load) * 8
    if kind != "rl":
        row["cross_entropy"] = 0.8 + 2.4 * math.exp(-8 * step / steps) + rng.gauss(0, 0.03)
        if kind == "pretrain":
            row["mtp_cross_entropy"] = row["cross_entropy"] + 0.25
        return row
    right = _curve(step, steps, *_range(kind, name)) + rng.gauss(0, 0.02)
    return row | {
        "reward": right + 0.97,
        "pass_at_1": right,
        "entropy": 0.55 * math.exp(-2 * step / steps) + rng.gauss(0, 0.01) + 0.05,
        "completions/mean_length_right": 12 + 28 * right + rng.gauss(0, 1),
        "completions/mean_length_wrong": 15 + 30 * right + rng.gauss(0, 2),
        "sampling/sampling_logp_difference/max": 1e-6 * rng.uniform(0.8, 3) if step else 0.0,
    }


def _look(step: int, steps: int, low: float, high: float) -> dict:
    one = _curve(step, steps, low, high)
    many = 1 - (1 - one) ** 3
    found = {"step": step, "held_out/mean_response_tokens": 30.0}
    for k, share in ((1, one), (4, many)):
        half = 1.96 * math.sqrt(share * (1 - share) / 100)
        found |= {f"held_out/pass_at_{k}": share}
        found |= {f"held_out/pass_at_{k}_low": max(0, share - half), f"held_out/pass_at_{k}_high": min(1, share + half)}
    return found


def _evaluation(folder: Path, response: str | None) -> None:
    results = {}
    for place, (model, skill) in enumerate(SKILL.items()):
        rows = []
        for index in range(256):
            problem = TASK.problem("held-out", index, seed=1)
            rng = stream(1, "reply", model, index)
            right = rng.random() < skill
            working = problem.working if model != "base" or rng.random() < 0.3 else ""
            text = render_response(working, problem.gold if right else str(int(problem.gold) + 1))
            text = text if response is None else response
            rows.append(
                {"problem": problem.id, "place": 0, "prompt": problem.prompt, "response": text, "gold": problem.gold}
                | {
                    "outcome": "right" if right else "wrong",
                    "parts": {},
                    "n_tokens": 40,
                    "finish": "stop",
                    "logp": -1.0,
                }
                | {"reason": "" if right else f"the answer is {problem.gold}, not {int(problem.gold) + 1}"}
            )
        _lines(folder / f"records-{model}.jsonl", rows)
        half = 0.5 * math.sqrt(skill * (1 - skill) / 256) * 1.96
        shares = {str(k): 1 - (1 - skill) ** (1 + 0.35 * (k - 1)) for k in (1, 4, 16)}
        results[model] = {
            "n_problems": 256,
            "n_samples": 4096,
            "n_errors": 0,
            "pass_at_1": skill,
            "pass_at_1_interval": [skill - half, min(1.0, skill + half)],
            "pass_at_k": shares,
            "pass_at_k_interval": {k: [share * 0.98, min(1.0, share * 1.02)] for k, share in shares.items()},
            "process_pass_at_1": skill * 0.95 if place else 0.05,
            "format_rate": 0.97,
            "share_shows_working": 0.99 if place else 0.3,
            "share_cut_off": 0.0,
            "mean_response_tokens": 44.0 if place else 17.5,
            "mean_response_tokens_right": 43.0 if place else 21.0,
            "mean_response_tokens_wrong": 45.0 if place else 17.0,
            "path": f"runs/quickstart/{model}/model",
            "parameters": {
                "total": 321_056 if model != "student" else 84_000,
                "active": 173_600 if model != "student" else 84_000,
            },
            "model_digest": f"{place:012x}",
            "exam_digest": "0" * 12,
            "flops": 3e10,
            "n_tokens": 170_000,
        }
        if place:
            gain = skill - SKILL["base"]
            results[model]["gain"] = {"over": "base", "mean": gain, "interval": [gain - 0.03, gain + 0.03]}
    _write(folder / "results.json", results)


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content))


def _lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
