"""`zifio lab`: claims as experiments that can fail.

zifio lab list                            # the claims, their verdicts, when they were predicted and run
zifio lab run C1 --scale smoke            # minutes, learns nothing, all controls
zifio lab run C1 C6 --scale cpu --jobs 2  # what the committed results were made with; goes on where it stopped
zifio lab run all --scale gpu --dry-run   # what would run
zifio lab report                          # lab/README.md
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as Grid

from zifio.config import ConfigError, suggestion
from zifio.lab.design import Scale
from zifio.lab.report import table_rows, write_report
from zifio.lab.running import run_claim, seeds_of
from zifio.lab.shelf import Claim, find_claim, find_claims, find_lab
from zifio.lab.trial import Trial
from zifio.log import cores, say

_ACTIONS = ("list", "run", "report")
OUT = Path("runs/lab")


def lab(
    action: str,
    claims: Sequence[str] = (),
    scale: Scale = "cpu",
    seeds: int | None = None,
    jobs: int | None = None,
    out: Path = OUT,
    dry_run: bool = False,
    fresh: bool = False,
    as_json: bool = False,
) -> dict[str, Any] | None:
    """List, run or report the claims; what was found, for `--json`. Raises ConfigError."""
    if action not in _ACTIONS:
        raise ConfigError(
            f"lab: wanted one of {', '.join(_ACTIONS)}, came {action!r}. "
            f"{suggestion(action, _ACTIONS) or 'See zifio lab --help.'}"
        )
    if action == "list":
        return _list(as_json)
    if action == "report":
        path = write_report(find_claims(), find_lab())
        say(f"report: {path}")
        return {"path": str(path), "claims": table_rows(find_claims())} if as_json else None
    chosen = _chosen(claims)
    if dry_run:
        plans = [_plan(claim, scale, seeds, out) for claim in chosen]
        return {"scale": scale, "claims": plans} if as_json else None
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs: wanted at least 1, came {jobs}.")
    results = [
        run_claim(claim, scale, out, seeds, jobs or cores(), fresh, _words(claim, scale, seeds)) for claim in chosen
    ]
    return {"scale": scale, "claims": results} if as_json else None


def _chosen(words: Sequence[str]) -> list[Claim]:
    """The claims that are meant; all means those with an experiment."""
    if not words:
        raise ConfigError("lab run: wanted a claim, as C1, or all; came nothing. See zifio lab list.")
    if [*words] == ["all"]:
        return [claim for claim in find_claims() if claim.experiment is not None]
    chosen = [find_claim(word) for word in words]
    for claim in chosen:
        if claim.experiment is None:
            raise ConfigError(f"{claim.id}: wanted an experiment, came a prediction alone: it has no run.py yet.")
    return chosen


def _words(claim: Claim, scale: Scale, seeds: int | None) -> str:
    """The command that makes this result again."""
    words = ["zifio", "lab", "run", claim.id, "--scale", scale]
    return shlex.join(words + ([] if seeds is None else ["--seeds", str(seeds)]))


def _list(as_json: bool) -> dict[str, Any] | None:
    rows = table_rows(find_claims())
    grid = Grid(title="claims", title_justify="left")
    keys = ("claim", "title", "verdict", "seeds", "predicted", "run")
    for key in keys:
        grid.add_column(key)
    for row in rows:
        grid.add_row(*(row[key] for key in keys))
    say(grid)
    return {"claims": rows} if as_json else None


def _plan(claim: Claim, scale: Scale, n_seeds: int | None, out: Path) -> dict[str, Any]:
    """What would run: every seed's recipe is built and checked."""
    seeds = seeds_of(claim, scale, n_seeds)
    trials = [Trial(claim, scale, seed, out) for seed in seeds]
    stages = [_stages(trial) for trial in trials]
    assert all(one == stages[0] for one in stages), "seeds differ in nothing but the seed"
    n_done = sum(trial.n_done for trial in trials)
    arms = [arm.name for part in trials[0].parts.values() for arm in part.design.arms]
    say(
        f"{claim.id} {scale}: {len(seeds)} seeds of {len(stages[0])} stages, {n_done} done; "
        f"arms {', '.join(arms) or 'none'}"
    )
    settings = trials[0].settings
    return {
        "claim": claim.id,
        "seeds": seeds,
        "stages": stages[0],
        "arms": arms,
        "n_done": n_done,
        "settings": settings,
    }


def _stages(trial: Trial) -> list[str]:
    """Every part's recipe, built and checked. Raises ConfigError."""
    return [f"{name}/{stage.name}" for name, part in trial.parts.items() for stage in part.recipe.stage]
