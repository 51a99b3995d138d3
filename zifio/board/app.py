"""The board as a page on this machine: what it asks of `board.watch`, and the files of `board/page`.

Everything is read; nothing that a page can ask for changes a run.

Try it alone: `zifio board runs/quickstart`
"""

import contextlib
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query
from starlette.middleware.gzip import GZipMiddleware

from zifio.board.curves import band, plain, standing, thin
from zifio.board.watch import Stage, Watch
from zifio.doctor.signs import DEAD
from zifio.loopback import AsciiJSON, Guard, add_page
from zifio.record.stage import expert_keys, expert_layers

PAGE = Path(__file__).parent / "page"
_POINTS, _FEWEST_POINTS, _ALL_POINTS = 600, 60, 12_000  # of a curve; of all curves of a chart together
_LOAD_STEPS = 60  # columns of the picture of experts' load
_LOOKS = 60  # looks whose replies are sent

Names = Annotated[list[str], Query(max_length=20)]
Runs = Annotated[list[int], Query(max_length=1000)]
Name = Annotated[str, Query(min_length=1, max_length=300)]


def make_app(watch: Watch, alone: bool, price_per_hour: float | None = None) -> FastAPI:
    """The application of a board; `alone`: it can be reached from this machine only."""

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncGenerator[None, None]:
        stop = threading.Event()
        thread = threading.Thread(target=watch.follow, args=(stop,), daemon=True)
        thread.start()
        yield
        stop.set()
        thread.join(5)

    app = FastAPI(title="zifio board", lifespan=running, openapi_url=None)
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=3)
    app.add_middleware(Guard, alone=alone, what="board")
    _routes(app, watch, price_per_hour)
    add_page(app, PAGE)
    return app


def _routes(app: FastAPI, watch: Watch, price_per_hour: float | None) -> None:
    @app.get("/api/runs")
    def runs() -> AsciiJSON:
        with watch.held():
            listed = [
                {
                    "name": name,
                    "reference": run.is_reference,
                    "stages": [stage.summary() for stage in run.stages.values()],
                }
                for name, run in watch.runs.items()
            ]
            return AsciiJSON({"ready": watch.is_ready, "price_per_hour": price_per_hour, "runs": listed})

    @app.get("/api/chart")
    def chart(stage: Name, key: Names, run: Runs) -> AsciiJSON:
        with watch.held():
            return AsciiJSON(_chart(watch, stage, key, run))

    @app.get("/api/stage")
    def one(run: int, stage: Name) -> AsciiJSON:
        found = watch.stage(run, stage)
        if found is None:
            raise HTTPException(404, f"Run {run} has no stage {stage!r}, or it has not begun.")
        with watch.held():
            return AsciiJSON(
                {
                    **found.summary(),
                    "findings": found.findings,
                    "experts": [_load(found, layer) for layer in expert_layers(found.keys)],
                    "rollouts": _rollouts(found),
                    "reward_keys": [key for key in found.keys if key.startswith("rewards/")],
                }
            )


def _chart(watch: Watch, stage: str, keys: list[str], chosen: list[int]) -> dict[str, Any]:
    """The curves of some metrics in some runs, thinned the more, the more there are; behind them the references'."""
    found = {number: watch.stage(number, stage) for number in dict.fromkeys(chosen)}
    shown = {number: one for number, one in found.items() if one is not None}
    points = max(_FEWEST_POINTS, min(_POINTS, _ALL_POINTS // max(1, len(shown) * len(keys))))
    runs = [*watch.runs.values()]
    references = [run.stages[stage] for run in runs if run.is_reference and stage in run.stages]
    curves, bands = [], {}
    standings: dict[int, dict[str, str]] = {}
    for key in keys:
        behind = band([one.series(key) for one in references])
        if behind:
            bands[key] = behind
        for number, one in shown.items():
            steps, values = one.series(key)
            if not len(steps):
                continue
            if behind and not runs[number].is_reference and (text := standing(steps, values, behind)):
                standings.setdefault(number, {})[key] = text
            x, y = thin(steps, values, points)
            curves.append({"run": number, "key": key, "x": x.tolist(), "y": plain(y), "n": len(steps)})
    return {"curves": curves, "bands": bands, "standings": standings}


def _load(stage: Stage, layer: int) -> dict[str, Any]:
    """How busy the experts of a layer were: shares at some steps, the largest violation, those that are idle."""
    keys = expert_keys(stage.keys, layer)
    steps, _ = stage.series(keys[0])
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(_LOAD_STEPS, len(steps))).astype(np.int64))
    share_ES = np.stack([stage.series(key)[1][: len(steps)][chosen] for key in keys])
    _, most = stage.series(f"expert_load/{layer}/max_over_mean")
    late_E = np.stack([stage.series(key)[1][-max(1, len(steps) // 10) :].mean() for key in keys])
    return {
        "layer": layer,
        "steps": steps[chosen].tolist(),
        "shares": [plain(share_S) for share_S in share_ES],
        "largest_violation": float(most[-1] - 1) if len(most) else None,
        "dead": np.flatnonzero(late_E < DEAD / len(keys)).tolist(),
    }


def _rollouts(stage: Stage) -> list[dict[str, Any]]:
    """What was said to the same problems, look by look; of many looks evenly chosen ones, the last among them."""
    rows = stage.rollouts.rows
    steps = sorted({row["step"] for row in rows})
    if len(steps) > _LOOKS:
        places = np.linspace(0, len(steps) - 1, _LOOKS).astype(np.int64)
        steps = [steps[place] for place in places]
    kept = set(steps)
    return [row for row in rows if row["step"] in kept]
