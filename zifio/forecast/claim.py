"""The forecast of a seed of one of the laboratory's experiments, and of all its seeds: what a lab run costs.

A seed is a recipe for each of the experiment's tasks, run one after the other in one process of one thread; so each is
rehearsed as a recipe is, on one thread.

Try it: `zifio plan C6`
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from zifio.config import Config
from zifio.evaluate.wording import bytes_text, seconds_text
from zifio.forecast.recipe import REHEARSAL_S, forecast_of
from zifio.lab.design import Scale
from zifio.lab.running import seeds_of
from zifio.lab.shelf import Claim
from zifio.lab.trial import Trial


class LabPlan(Config):
    """What a forecast of a claim may be told."""

    scale: Scale = "cpu"
    """Of the experiment."""
    seeds: PositiveInt | None = None
    """So many in place of the scale's own."""
    jobs: PositiveInt = 1
    """Seeds side by side, each on a core of its own."""


def forecast_claim(claim: Claim, settings: LabPlan, seconds: float = REHEARSAL_S) -> dict[str, Any]:
    """Rehearse the first seed and say what one takes, as `forecast_recipe` does, and what all take.

    A stage is called by its part and its name, as its folder is in the seed's: `main/base`. A base that is shared
    counts in full, as it does where no other claim has made it. Raises ConfigError.
    """
    n = len(seeds_of(claim, settings.scale, settings.seeds))
    with tempfile.TemporaryDirectory(prefix="zifio-lab-") as folder:
        parts = Trial(claim, settings.scale, 0, Path(folder)).parts
        each = {
            name: forecast_of(part.recipe, f"{claim.id}, {name}", seconds / len(parts), threads=1)
            for name, part in parts.items()
        }
    found: dict[str, Any] = {
        "recipe": f"{claim.id}, a seed",
        "claim": claim.id,
        "scale": settings.scale,
        "threads": 1,
        "busy": min(one["busy"] for one in each.values()),
        "seconds": sum(one["seconds"] for one in each.values()),
        "interval_s": [sum(one["interval_s"][end] for one in each.values()) for end in (0, 1)],
        "peak_bytes": max(one["peak_bytes"] for one in each.values()),
        "stages": [
            {**stage, "name": f"{name}/{stage['name']}"} for name, one in each.items() for stage in one["stages"]
        ],
        "left_out": [f"{name}/{stage}" for name, one in each.items() for stage in one["left_out"]],
        "measured": {name: one["measured"] for name, one in each.items()},
        "seeds": n,
        "jobs": settings.jobs,
    }
    rounds, side_by_side = -(-n // settings.jobs), min(n, settings.jobs)
    return found | {"whole_s": rounds * found["seconds"], "whole_bytes": side_by_side * found["peak_bytes"]}


def claim_text(found: dict[str, Any]) -> str:
    """What all seeds take, for people."""
    return (
        f"{found['seeds']} seeds, {found['jobs']} side by side: {seconds_text(found['whole_s'])}, "
        f"{bytes_text(found['whole_bytes'])}; what is shared and made already counts in full"
    )
