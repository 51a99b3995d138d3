"""`zifio plan`: what a model or a recipe costs before it runs, whether it can learn, and how right that was after.

    zifio plan deepseek-v3                                     # parameters, FLOPs, memory, hours, price
    zifio plan qwen3-30b-a3b hardware=h200 layout.data=8 layout.expert=8 rl.reply_tokens=8192
    zifio plan recipes/quickstart.toml                         # seconds and memory of every stage on this machine
    zifio plan recipes/quickstart.toml --against runs/quickstart
    zifio plan runs/quickstart/base/model --task chain_mod     # will RL on this task learn?
    zifio plan --roads                                         # efficiency against brute force
    zifio plan --probe                                         # measure this machine, in at most a minute

`key=value` sets any key of `plan.settings.PlanConfig`; of a recipe, any of its keys, as in `zifio run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zifio.config import ConfigError, build, override
from zifio.forecast.subject import shape_of
from zifio.forecast.tables import memory_table, model_table, ratios_text, roads_table, serving_text, work_table
from zifio.log import say
from zifio.plan.plan import plan_model
from zifio.plan.roads import compare, pairs
from zifio.plan.settings import PlanConfig


def plan(
    subject: str | None = None,
    overrides: Sequence[str] = (),
    figure: Path | None = None,
    roads: bool = False,
    as_json: bool = False,
) -> Any:
    """The plan of what the command line names, shown as tables; what `--json` writes comes back.

    Raises ConfigError.
    """
    if roads:
        compared = [compare(pair) for pair in pairs()]
        for one in compared:
            say(roads_table(one))
            say(ratios_text(one))
            say(f"sources: {one.leader.source}; {one.follower.source}\n")
        return {"pairs": [asdict(one) for one in compared]} if as_json else None
    if subject is None:
        raise ConfigError("zifio plan: wanted a model or a recipe, came nothing. For example: zifio plan deepseek-v3")
    return _plan_model(subject, overrides, figure, as_json)


def _plan_model(subject: str, overrides: Sequence[str], figure: Path | None, as_json: bool) -> Any:
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
    return found if as_json else None
