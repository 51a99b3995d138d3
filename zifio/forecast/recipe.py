"""A recipe's forecast: seconds and memory of every stage on this machine, before it runs.

A rehearsal of at most a minute (`rehearse.py`, in a process of its own) measures the work; `plan/stages.py` puts it
together with the numbers in the recipe.

Try it: `zifio plan recipes/smoke.toml`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from zifio.config import ConfigError, build
from zifio.engine.config import EngineConfig
from zifio.evaluate.config import CHUNK, EvalStage
from zifio.evaluate.wording import bytes_text, count_text, flops_text, seconds_text
from zifio.models.config import FAMILIES
from zifio.plan.figures import figures
from zifio.plan.learn import GATE_PROBLEMS, GATE_SAMPLES
from zifio.plan.memory import plain_memory
from zifio.plan.stages import (
    EARLY,
    SIGNAL,
    Drawing,
    Draws,
    Lengths,
    StageForecast,
    StageWork,
    Training,
    forecast_stage,
)
from zifio.recipe import AnyStage, Recipe, load_recipe
from zifio.train.config import DistillStage, ModelStage, PretrainStage, RlStage
from zifio.train.feedback import PART_REPLIES, SampleStage
from zifio.train.picture_config import JanusStage, OfPictures

MAX_ROWS = EngineConfig().max_rows
REHEARSAL_S = 50.0
"""About what a rehearsal may take."""
_TEACHER = 1 / 3  # a forward pass beside a forward and a backward one


def forecast_recipe(path: Path, overrides: Sequence[str], seconds: float = REHEARSAL_S) -> dict[str, Any]:
    """Rehearse a recipe and say what it will take. Raises ConfigError where either fails."""
    return forecast_of(load_recipe(path, overrides), str(path), seconds)


def forecast_of(recipe: Recipe, where: str, seconds: float = REHEARSAL_S, threads: int | None = None) -> dict[str, Any]:
    """The same of a recipe that was read, or never stood in a file; by default on all threads that torch takes."""
    if of_pictures := [stage.name for stage in recipe.stage if isinstance(stage, OfPictures | JanusStage)]:
        raise ConfigError(
            f"{where}: stage {of_pictures[0]}: wanted stages of text, came one that learns from pictures, of which "
            "nothing is forecast. Run it, or plan a recipe of text."
        )
    measured = rehearse(recipe, seconds, threads)
    stages = [forecast for stage in recipe.stage if (forecast := compose(recipe, stage, measured)) is not None]
    stages[:1] = [_started(one, measured["start_s"]) for one in stages[:1]]
    left_out = [stage.name for stage in recipe.stage if stage.name not in {one.name for one in stages}]
    return {
        "recipe": recipe.name,
        "threads": measured["threads"],
        "busy": measured["busy"],
        "seconds": sum(one.seconds for one in stages),
        "interval_s": [sum(getattr(one, end) for one in stages) for end in ("low_s", "high_s")],
        "peak_bytes": max(one.peak_bytes for one in stages),
        "stages": [asdict(one) | what_it_is(recipe, one.name, measured) for one in stages],
        "left_out": left_out,
        "measured": measured,
    }


def _started(first: StageForecast, seconds: float) -> StageForecast:
    """The first stage with the time that it takes to load torch and the rest of us."""
    parts = {**first.parts, "rest": first.parts["rest"] + seconds}
    later = {key: getattr(first, key) + seconds for key in ("seconds", "low_s", "high_s")}
    return replace(first, parts=parts, **later)


def rehearse(recipe: Recipe, seconds: float, threads: int | None = None) -> dict[str, Any]:
    """What `rehearse.py` measures, in a process of its own. Raises ConfigError with its last words where it fails."""
    with tempfile.TemporaryDirectory(prefix="zifio-rehearsal-") as folder:
        request, result = Path(folder, "request.json"), Path(folder, "result.json")
        plain = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
        request.write_text(json.dumps({"recipe": plain, "folder": str(Path(folder, "run")), "seconds": seconds}))
        environment = {**os.environ} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        words = [sys.executable, "-m", "zifio.forecast.rehearse", str(request), str(result)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no word"]
            raise ConfigError(
                f"{recipe.name}: wanted a rehearsal, came: {last[0]} (exit code {done.returncode}). Check the recipe "
                "with zifio run --dry-run."
            )
        return json.loads(result.read_text())


def compose(recipe: Recipe, stage: AnyStage, measured: dict[str, Any]) -> StageForecast | None:
    """The forecast of one stage; None where nothing was rehearsed for it."""
    name = stage.name
    if name not in measured["once_s"] and name not in measured["drawing"]:
        return None
    common = {"name": name, "kind": stage.kind, "peak_bytes": measured["peak_bytes"].get(name, 0.0)}
    once = measured["once_s"].get(name, 0.0)
    if isinstance(stage, EvalStage):
        return _of_models(recipe, stage, measured, common, once)
    training = Training(**measured["training"][name]) if name in measured["training"] else None
    drawing = Drawing(**measured["drawing"][name]) if name in measured["drawing"] else None
    if isinstance(stage, SampleStage):
        drawing = Drawing(**measured["drawing"][f"{name}/{stage.from_}"])
    lengths = Lengths(**measured["lengths"][name]) if name in measured["lengths"] else None
    if isinstance(stage, ModelStage):
        once += (stage.steps - 1) // stage.checkpoint_every * measured["checkpoint_s"].get(name, 0.0)
    draws = _draws(recipe, stage, lengths) if lengths is not None else ()
    start = shows(recipe, getattr(stage, "from_", None))
    worked: tuple[float | None, float | None, float | None] = (start, start, start)
    if isinstance(stage, RlStage):
        guess = None if start is None else EARLY * start + (1 - EARLY)
        worked = (start, guess, 1.0 if start is not None else None)
    elif isinstance(stage, ModelStage):
        known = shows(recipe, name)
        worked = (known, known, known)
    work = StageWork(
        **common,
        steps=getattr(stage, "steps", 0),
        step_tokens=measured["step_tokens"].get(name, 0.0),
        signal=_signal(stage),
        more_per_token=_readers(stage),
        draws=draws,
        share_worked=worked,
        to_limit=isinstance(stage, RlStage),
        once_s=once,
    )
    return forecast_stage(work, training, drawing)


def shows(recipe: Recipe, name: str | None) -> float | None:
    """How often the model of a stage is guessed to show its working; None for one that nobody knows."""
    stage = recipe.named(name) if name is not None else None
    if stage is None:
        return None
    return stage.p_cot if isinstance(stage, PretrainStage) else 1.0


def _signal(stage: AnyStage) -> tuple[float, float, float]:
    if isinstance(stage, RlStage) and stage.max_rounds is None and not (stage.kl_weight and stage.kl_in == "loss"):
        return SIGNAL
    return (1.0, 1.0, 1.0)


def _readers(stage: AnyStage) -> float:
    """Times the work per token: a reference, a teacher or a reward model reads it too."""
    readers = isinstance(stage, RlStage) and (
        bool(stage.kl_weight) + (stage.updates > 1 and stage.old_logps != "sampler") + (stage.reward_model is not None)
    )
    readers += isinstance(stage, DistillStage) and stage.method in ("forward_kl", "reverse_kl", "gkd")
    readers += stage.kind == "dpo"
    return 1 + _TEACHER * readers


def _draws(recipe: Recipe, stage: AnyStage, lengths: Lengths) -> tuple[Draws, ...]:
    """What a stage draws, and how often."""
    out: list[Draws] = []
    if isinstance(stage, RlStage):
        rows = stage.prompts * stage.group
        side = stage.engine.max_rows if "max_rows" in stage.engine.model_fields_set else rows
        most = float(stage.max_rounds or 1)  # a round more than on average, half of the time
        rounds = (1.0, min(1 / SIGNAL[1] + 0.5, most), most)
        out.append(Draws(rows, side, lengths, stage.steps, rounds))
        if stage.gate and stage.accuracy_weight:
            out.append(Draws(GATE_PROBLEMS * GATE_SAMPLES, side, lengths))
        if stage.guard is not None:
            n = stage.guard.problems * stage.guard.n
            out.append(Draws(n, side, lengths, 1 + stage.steps // stage.guard.every))
    if isinstance(stage, DistillStage) and stage.draws:
        share = 1.0 if stage.method == "hints" else stage.student_share
        out.append(Draws(round(share * stage.sequences), MAX_ROWS, lengths, stage.steps))
    if isinstance(stage, SampleStage):
        total = stage.problems * stage.n
        part = min(PART_REPLIES, total)
        out.append(Draws(part, stage.engine.max_rows, lengths, total / part))
    if isinstance(stage, ModelStage) and stage.held_out.every:
        held = stage.held_out
        looks = 1 + -(-stage.steps // held.every)
        out.append(Draws(held.problems * held.n, MAX_ROWS, lengths, looks))
    return tuple(out)


def _of_models(
    recipe: Recipe, stage: EvalStage, measured: dict[str, Any], common: dict[str, Any], once: float
) -> StageForecast:
    """An `eval` stage: every model draws with its own speed and its own length of replies."""
    lengths = Lengths(**measured["lengths"][stage.name])
    parts: list[StageForecast] = []
    for model in stage.models:
        problems = min(CHUNK, stage.problems)
        draws = Draws(problems * stage.n, stage.engine.max_rows, lengths, stage.problems / problems)
        worked = shows(recipe, model)
        work = StageWork(**common, draws=(draws,), share_worked=(0.0 if worked is None else worked, worked, 1.0))
        parts.append(forecast_stage(work, None, Drawing(**measured["drawing"][f"{stage.name}/{model}"])))
    seconds, low, high = (once + sum(getattr(part, key) for part in parts) for key in ("seconds", "low_s", "high_s"))
    return StageForecast(
        stage.name, stage.kind, seconds, low, high, common["peak_bytes"],
        {"training": 0.0, "drawing": seconds - once, "rest": once},
    )  # fmt: skip


def what_it_is(recipe: Recipe, name: str, measured: dict[str, Any]) -> dict[str, Any]:
    """Of a stage that trains: its model's figures, its FLOPs of training, and memory by part, by formula (the measured
    peak holds Python and the libraries too)."""
    shape, stage = measured["shapes"].get(name), recipe.named(name)
    if shape is None or not isinstance(stage, ModelStage):
        return {}
    config = build(FAMILIES[shape["config"]["model_type"]], shape["config"], name)
    lengths, tokens = measured["lengths"][name], measured["step_tokens"][name]
    whole = max(1, round(lengths["prompt"] + min(lengths["worked"], lengths["limit"])))
    learning = tokens * _signal(stage)[1] * _readers(stage) * stage.steps
    drawn = max((draws.replies for draws in _draws(recipe, stage, Lengths(**lengths))), default=0)
    parts = plain_memory(
        config, shape["trained"], shape["pass_tokens"], 2 if stage.optim.kind == "adamw" else 1, drawn * whole,
        "block" if stage.rows.recompute else "none",
    )  # fmt: skip
    model = figures(config, whole, "fp32")
    return {
        "model": asdict(model),
        "training_flops": model.train_flops_per_token * learning,
        "memory_by_part": asdict(parts),
    }


def short(name: str) -> str:
    """A stage's name without that of a claim's only part."""
    return name.removeprefix("main/")


def recipe_table(found: dict[str, Any]) -> Table:
    """The forecast for people."""
    low, high = (seconds_text(end) for end in found["interval_s"])
    title = (
        f"{found['recipe']} on {found['threads']} threads of this machine: {seconds_text(found['seconds'])} ({low} to "
        f"{high}), {bytes_text(found['peak_bytes'])}"
    )
    table = Table("stage", "kind", title=title, title_justify="left")
    for column in ("time", "from", "to", "training", "drawing", "rest", "memory so far"):
        table.add_column(column, justify="right")
    for stage in found["stages"]:
        times = (stage["seconds"], stage["low_s"], stage["high_s"], *stage["parts"].values())
        table.add_row(short(stage["name"]), stage["kind"], *map(seconds_text, times), bytes_text(stage["peak_bytes"]))
    return table


def models_table(found: dict[str, Any]) -> Table:
    """What the stages that train hold, by formula."""
    groups = (("weights", "gradients", "optimizer"), ("activations",), ("kv", "rollouts"))
    table = Table("by formula", title="models and memory by part", title_justify="left")
    for column in ("parameters", "active", "training", *(", ".join(group) for group in groups)):
        table.add_column(column, justify="right")
    for stage in found["stages"]:
        if "model" not in stage:
            continue
        model, memory = stage["model"], stage["memory_by_part"]
        table.add_row(
            short(stage["name"]), count_text(model["total_params"]), count_text(model["active_params"]),
            flops_text(stage["training_flops"]),
            *(" + ".join(bytes_text(memory[part]) for part in group if memory[part]) for group in groups),
        )  # fmt: skip
    return table
