"""Running an experiment: one process for each seed, several side by side, resumed where they stopped, then the verdict.

Nano models train best on one thread, so seeds fill the cores. What is finished stays finished: a seed's stages in its
folder, its figures when it is through.

Try it alone: `zifio lab run C1 --scale smoke`
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zifio.config import ConfigError
from zifio.lab.design import Scale, Verdict
from zifio.lab.picture import draw
from zifio.lab.shelf import Claim
from zifio.lab.trial import Trial, command
from zifio.log import Progress, cores, say
from zifio.record.stage import write_whole

_POLL = 0.2
_LAST_LINES = 8


def seeds_of(claim: Claim, scale: Scale, n: int | None) -> list[int]:
    """The seeds of a scale, or the first n of them. Raises ConfigError for none."""
    assert claim.experiment is not None, "asked before"
    wanted = claim.experiment.scales[scale]["seeds"] if n is None else n
    if wanted < 1:
        raise ConfigError(f"--seeds: wanted at least 1, came {wanted}.")
    return list(range(wanted))


def run_claim(
    claim: Claim, scale: Scale, out: Path, n_seeds: int | None, jobs: int, fresh: bool, words: str
) -> dict[str, Any]:
    """All seeds of a claim, and its result with the verdict; kept in the claim's folder unless the scale is smoke.

    Raises ConfigError where the prediction is not committed, or a seed failed, with the end of its log.
    """
    if scale != "smoke" and claim.is_changed():
        raise ConfigError(
            f"{claim.folder / 'claim.md'}: wanted a prediction that is committed before the run, came one that is not. "
            "Commit it first."
        )
    trials = [Trial(claim, scale, seed, out) for seed in seeds_of(claim, scale, n_seeds)]
    if fresh:
        for trial in trials:
            shutil.rmtree(trial.folder, ignore_errors=True)
    todo = [trial for trial in trials if trial.finished() is None]
    _run_side_by_side(claim, scale, out, trials, todo, jobs)
    rows = [row for trial in trials if (row := trial.finished()) is not None]
    if len(rows) < len(trials):
        raise ConfigError(
            f"{claim.id}: wanted {len(trials)} seeds of one design, came {len(rows)}: run.py changed meanwhile. Run "
            "the same command again: what is done stays."
        )
    result = result_of(claim, scale, rows, words)
    folder = claim.folder if scale != "smoke" else trials[0].folder.parent
    path = claim.result_path(scale) if scale != "smoke" else folder / "result.json"
    write_whole(path, json.dumps(result, indent=1) + "\n")
    draw(
        claim,
        rows,
        Verdict(**result["verdict"]),
        path.with_name(path.name.replace("result", "figure")).with_suffix(".png"),
    )
    say(f"{claim.id} {result['verdict']['word']}: {result['verdict']['why']}")
    return result


def _run_side_by_side(
    claim: Claim, scale: Scale, out: Path, trials: Sequence[Trial], todo: list[Trial], jobs: int
) -> None:
    """Run the seeds that are left, `jobs` at a time. Raises ConfigError when one fails; the others are stopped."""
    total = sum(trial.n_stages for trial in trials)
    running: dict[int, tuple[Trial, subprocess.Popen[bytes]]] = {}
    waiting = [*todo]

    def n_done() -> int:
        return sum(trial.n_done if trial in todo else trial.n_stages for trial in trials)

    with Progress(f"{claim.id} {scale}", total, done=n_done()) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    trial = waiting.pop(0)
                    running[trial.seed] = (trial, _start(claim, scale, trial, out))
                time.sleep(_POLL)
                for seed, (trial, process) in [*running.items()]:
                    if process.poll() is not None:
                        del running[seed]
                        _check_end(trial, process.returncode)
                if (done := n_done()) > progress.step:
                    progress.update(done, {"seeds": len(trials) - len(waiting) - len(running)})
        finally:
            for _, process in running.values():
                process.terminate()
                process.wait()


def _start(claim: Claim, scale: Scale, trial: Trial, out: Path) -> subprocess.Popen[bytes]:
    trial.folder.mkdir(parents=True, exist_ok=True)
    log = (trial.folder / "log.txt").open("ab")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log:
        return subprocess.Popen(command(claim, scale, trial.seed, out), stdout=log, stderr=log, env=environment)


def _check_end(trial: Trial, code: int) -> None:
    if code == 0 and trial.finished() is not None:
        return
    lines = (trial.folder / "log.txt").read_text(errors="replace").splitlines()[-_LAST_LINES:]
    said = "\n".join(lines)
    raise ConfigError(
        f"{trial.claim.id}, seed {trial.seed}: wanted a finished seed, came exit code {code}; the end of "
        f"{trial.folder / 'log.txt'}:\n{said}\nMend that and run the same command again: what is done stays."
    )


def result_of(claim: Claim, scale: Scale, rows: list[dict[str, Any]], words: str) -> dict[str, Any]:
    """Everything that `result.json` says."""
    experiment = claim.experiment
    assert experiment is not None, "it has just run"
    settings = {**experiment.scales[scale]}
    commit, date = claim.committed()
    verdict = experiment.judge([row["figures"] for row in rows], settings)
    return {
        "claim": claim.id,
        "title": claim.title,
        "scale": scale,
        "command": words,
        "date": datetime.now(UTC).date().isoformat(),
        "prediction": {"digest": claim.prediction, "commit": commit, "date": date},
        "machine": machine(),
        "versions": {name: version(name) for name in ("zifio", "torch", "numpy")}
        | {"python": platform.python_version()},
        "settings": settings,
        "verdict": asdict(verdict),
        "flops": sum(row["flops"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
        "cpu_s": sum(row["cpu_s"] for row in rows),
        "seeds": [{**row, "work": _without_folders(row["work"])} for row in rows],
    }


def _without_folders(work: Any) -> Any:
    """The ledger's entries with files that no stage made by their names: a result names no folder of a machine."""
    if isinstance(work, dict):
        return {key: _without_folders(value) for key, value in work.items()}
    if isinstance(work, list):
        return [Path(value).name if isinstance(value, str) else value for value in work]
    return work


def machine() -> dict[str, Any]:
    """What ran it."""
    return {"system": platform.system(), "processor": _processor(), "cores": cores()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        if (info.exists())
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
