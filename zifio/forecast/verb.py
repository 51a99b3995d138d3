"""`zifio plan`: what a model or a recipe costs before it runs, whether it can learn, and how right that was after.

    zifio plan deepseek-v3                                     # parameters, FLOPs, memory, hours, price
    zifio plan qwen3-30b-a3b hardware=h200 layout.data=8 layout.expert=8 rl.reply_tokens=8192
    zifio plan recipes/quickstart.toml                         # seconds and memory of every stage on this machine
    zifio plan recipes/quickstart.toml --against runs/quickstart
    zifio plan C6 scale=cpu jobs=2                             # likewise of a claim of the laboratory, a seed and all
    zifio plan runs/quickstart/base/model --task chain_mod     # will RL on this task learn?
    zifio plan recipes/quickstart.toml --stage r1-zero         # likewise, as this stage would begin
    zifio plan --roads                                         # efficiency against brute force
    zifio plan --probe                                         # measure this machine, in at most a minute

`key=value` sets any key of `plan.settings.PlanConfig`; of a recipe, any of its keys, as in `zifio run`; beside a task,
any key of how replies are drawn (temperature=1.0 max_new_tokens=512).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zifio.config import ConfigError, Sampling, build, override
from zifio.forecast.against import score, score_table
from zifio.forecast.subject import shape_of
from zifio.forecast.tables import (
    memory_table,
    model_table,
    ratios_text,
    roads_table,
    serving_text,
    usd_text,
    work_table,
)
from zifio.log import say
from zifio.plan.hardware import probe_file, write_probe
from zifio.plan.plan import plan_model
from zifio.plan.roads import compare, pairs
from zifio.plan.settings import PlanConfig

SAMPLES, GROUP, PROMPTS, TARGET = 300, 16, 32, 0.9
"""Replies that are drawn, and RL's groups and problems a step (DeepSeek-R1), where no stage says otherwise."""
_CLAIM = re.compile(r"[cC]\d+")
_QUIET = 0.8
"""Below this share of the processors others were at work."""


def plan(
    subject: str | None = None,
    overrides: Sequence[str] = (),
    task: str | None = None,
    stage: str | None = None,
    samples: int | None = None,
    target: float = TARGET,
    against: Path | None = None,
    forecast: Path | None = None,
    price_per_hour: float | None = None,
    figure: Path | None = None,
    roads: bool = False,
    probe: bool = False,
    as_json: bool = False,
) -> Any:
    """The plan of what the command line names, shown as tables; what `--json` writes comes back. Raises ConfigError."""
    if roads:
        found = _roads()
    elif probe:
        found = _probe()
    elif subject is None:
        raise ConfigError("zifio plan: wanted a model or a recipe, came nothing. For example: zifio plan deepseek-v3")
    elif task is not None:
        found = _ask(subject, task, overrides, samples or SAMPLES, target)
    elif stage is not None or samples is not None:
        found = _ask_stage(_recipe_path(subject), stage, overrides, samples or SAMPLES, target)
    elif subject.endswith(".toml") or _CLAIM.fullmatch(subject):
        found = _plan_recipe(subject, overrides, against, forecast, price_per_hour, figure)
    else:
        found = _plan_model(subject, overrides, figure)
    return found if as_json else None


def _plan_model(subject: str, overrides: Sequence[str], figure: Path | None) -> dict[str, Any]:
    settings = build(PlanConfig, override({}, overrides), "command line")
    found = plan_model(shape_of(subject), settings, subject.lower())
    for table in (model_table(found), work_table(found), memory_table(found)):
        say(table)
    say(serving_text(found))
    for line in found["assumptions"]:
        say(f"- {line}")
    if figure is not None:
        from zifio.forecast.figure import draw_plan

        draw_plan(found, figure)
        say(f"figure: {figure}")
    return found


def _plan_recipe(
    subject: str,
    overrides: Sequence[str],
    against: Path | None,
    forecast: Path | None,
    price: float | None,
    figure: Path | None,
) -> dict[str, Any]:
    """The forecast of a recipe or of a claim's seed, rehearsed now or read, and beside it a run."""
    from zifio.forecast.claim import claim_text
    from zifio.forecast.recipe import forecast_recipe, models_table, recipe_table

    if forecast is not None:
        found = _read(forecast)
    elif subject.endswith(".toml"):
        found = forecast_recipe(Path(subject), overrides)
    else:
        found = _of_claim(subject, overrides)
    say(recipe_table(found))
    say(models_table(found))
    if "claim" in found:
        say(claim_text(found))
    if price is not None:
        found |= {"usd_per_hour": price, "usd": price * found["seconds"] / 3600}
        say(f"price: {usd_text(found['usd'])} at {usd_text(price)} an hour")
    if found["busy"] < _QUIET:
        say(
            f"others were at work: the rehearsal had {found['busy']:.0%} of its processors. On more than "
            "one thread its seconds are too long by that; ask again on a quiet machine."
        )
    if found["left_out"]:
        say(f"not forecast: {', '.join(found['left_out'])}")
    if against is not None:
        found["against"] = score(found, against)
        say(score_table(found["against"]))
        if "warning" in found["against"]:
            say(found["against"]["warning"])
    if figure is not None:
        from zifio.forecast.figure import draw_recipe

        draw_recipe(found, figure)
        say(f"figure: {figure}")
    return found


def _of_claim(subject: str, overrides: Sequence[str]) -> dict[str, Any]:
    from zifio.forecast.claim import LabPlan, forecast_claim
    from zifio.lab.shelf import find_claim

    return forecast_claim(find_claim(subject), build(LabPlan, override({}, overrides), "command line"))


def _read(path: Path) -> dict[str, Any]:
    """A forecast that `--json` wrote before. Raises ConfigError for anything else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: wanted a forecast as zifio plan RECIPE.toml --json writes it, came: {error}. Make it anew."
        ) from None
    if not isinstance(found, dict) or not {"stages", "threads", "recipe", "busy", "left_out"} <= set(found):
        raise ConfigError(f"{path}: wanted a forecast of a recipe, came another JSON file. Make it anew.")
    return found


def _recipe_path(subject: str) -> Path:
    if not subject.endswith(".toml"):
        raise ConfigError(f"{subject}: wanted a recipe for --stage, or --task beside a model, came neither.")
    return Path(subject)


def _ask(subject: str, task: str, overrides: Sequence[str], samples: int, target: float) -> dict[str, Any]:
    """Will RL from this model learn this task?"""
    from zifio.forecast.ask import outlook_text, will_it_learn
    from zifio.tasks.catalog import named_task

    sampling = build(Sampling, override({}, overrides), "command line")
    found = will_it_learn(subject, named_task(task), samples, GROUP, PROMPTS, sampling, target)
    say(outlook_text(found))
    return found


def _ask_stage(path: Path, name: str | None, overrides: Sequence[str], samples: int, target: float) -> dict[str, Any]:
    """Will this stage of a recipe learn, from the model that it starts from?"""
    from zifio.forecast.ask import outlook_text, will_it_learn
    from zifio.recipe import Run, choose_stage, load_recipe
    from zifio.tasks.catalog import make_task
    from zifio.train.config import RlStage

    recipe = load_recipe(path, overrides)
    stage = recipe.named(choose_stage("rl", path, name))
    assert isinstance(stage, RlStage)
    model = Run(recipe, Path("runs") / recipe.name).model_of(stage.from_)
    task = make_task(stage.task or recipe.task)
    found = will_it_learn(model, task, samples, stage.group, stage.prompts, stage.sampling, target)
    say(outlook_text(found))
    return found


def _roads() -> dict[str, Any]:
    compared = [compare(pair) for pair in pairs()]
    for one in compared:
        say(roads_table(one))
        say(ratios_text(one))
        say(f"sources: {one.leader.source}; {one.follower.source}\n")
    return {"pairs": [asdict(one) for one in compared]}


def _probe() -> dict[str, Any]:
    from zifio.forecast.probe import probe

    device = probe()
    write_probe(device)
    peaks = ", ".join(f"{peak:.3g} TFLOPS in {name}" for name, peak in device.peak.items())
    say(f"{device.name}: {peaks}, {device.bandwidth_gb_s:.3g} GB/s, {device.memory_gb:.3g} GB")
    say(f"kept in {probe_file()}: hardware=this takes it, usd_per_hour=... and mfu=... are yours to give")
    return device.model_dump(mode="json")
