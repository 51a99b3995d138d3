"""One seed of an experiment: its recipe run stage by stage in a folder of its own, checked, and measured.

Bases are shared: a stage that starts from nothing but a tokenizer is kept by its digest, which names everything that it
depends on, so other arms and other claims with the same seed take it from there.

Run alone: `python -m zifio.lab.trial C1 --scale smoke --seed 0 --out runs/lab`
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from zifio.config import ConfigError
from zifio.data.sources import read_jsonl
from zifio.lab.controls import check_arms, check_ledger, check_verifier
from zifio.lab.design import Design, Scale, Table, placed
from zifio.lab.shelf import Claim, find_claim
from zifio.log import RunFolder, say
from zifio.recipe import AnyStage, Recipe, Run, recipe_of
from zifio.record.stage import StageRecord, read_json, read_stage, write_whole

_SHARED = ("tokenizer", "pretrain")


class _Watched:
    """Whoever started this process, if anybody is to be watched."""

    parent: int | None = None


_watched = _Watched()


def is_orphan() -> bool:
    """Whether the process that started this one, and said so, is gone: it was killed and cannot tell."""
    return _watched.parent is not None and os.getppid() != _watched.parent


class Part:
    """A recipe of a seed in its folder, and what `measure` reads of it."""

    def __init__(self, design: Design, claim: Claim, seed: int, folder: Path) -> None:
        self.design, self.claim, self.seed, self.folder = design, claim, seed, folder

    @cached_property
    def recipe(self) -> Recipe:
        """The design as a recipe; files that it names exist, still empty. Raises ConfigError."""
        for name in self.design.files:
            path = self.folder / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        table = {
            "name": self.claim.folder.name.replace("_", "-"),
            "seed": self.seed,
            "task": self.design.task,
            "stage": placed(self.design.stages, (self.folder / "files").resolve()),
        }
        return recipe_of(table, f"{self.claim.id}, seed {self.seed}, {self.design.name}")

    @property
    def n_done(self) -> int:
        """Stages that are finished."""
        return sum((self.folder / stage["name"] / "done.json").exists() for stage in self.design.stages)

    def run(self, shared: Path) -> dict[str, dict[str, Any]]:
        """Run what is not done, and check it; the ledger's entries by arm. Raises ConfigError, and Unsound."""
        run = Run(self.recipe, self.folder)
        for name, rows in self.design.files.items():
            text = "".join(json.dumps(row) + "\n" for row in rows())
            path = self.folder / "files" / name
            if path.read_text() != text:
                write_whole(path, text)
        with RunFolder(self.folder).lock():
            for stage in self.recipe.stage:
                if is_orphan():
                    raise KeyboardInterrupt
                self._stage(run, stage, shared)
        check_arms(self.design.arms, self.folder)
        books = check_ledger(self.recipe, self.folder, [arm.stage for arm in self.design.arms])
        return {arm.name: books[arm.stage] for arm in self.design.arms}

    def _stage(self, run: Run, stage: AnyStage, shared: Path) -> None:
        """Run a stage, or take it from what is shared."""
        kept, own = shared / run.digest(stage), self.folder / stage.name
        is_shared = stage.kind in _SHARED
        if is_shared and (kept / "done.json").exists() and not own.exists():
            shutil.copytree(kept, own)
        run.stage(stage)
        if is_shared and not kept.exists():
            beside = kept.with_name(f".{kept.name}.{os.getpid()}")
            shutil.copytree(own, beside)
            try:
                beside.rename(kept)
            except OSError:  # another seed's process was first
                shutil.rmtree(beside)

    def done(self, stage: str) -> Table:
        """A stage's totals."""
        return read_json(self.folder / stage / "done.json")

    def results(self, stage: str) -> dict[str, Table]:
        """What an `eval` stage found, by model."""
        return read_json(self.folder / stage / "results.json")

    def record(self, stage: str) -> StageRecord:
        """A stage with its curves."""
        return read_stage(self.folder / stage, stage, "")

    def curve(self, stage: str, key: str = "pass_at_1", spent: float = 0.0) -> list[tuple[float, float]]:
        """(FLOPs, value) at each look of a stage; `spent` is what came before it."""
        rows = self.record(stage).metrics
        work = {row["step"]: row["flops"] for row in rows if "flops" in row}
        looks = [(row["step"], row[f"held_out/{key}"]) for row in rows if f"held_out/{key}" in row]
        return [(spent + work.get(step, 0.0), value) for step, value in looks]

    def replies(self, stage: str, model: str) -> list[Table]:
        """Every reply of a model to an `eval` stage's problems."""
        return read_jsonl(self.folder / stage / f"records-{model}.jsonl")


class Trial:
    """A seed of a claim's experiment in its folder `OUT/SCALE/CLAIM/seed-N`."""

    def __init__(self, claim: Claim, scale: Scale, seed: int, out: Path) -> None:
        """Raises ConfigError for a claim without an experiment."""
        self.claim, self.scale, self.seed = claim, scale, seed
        self.shared, self.folder = out / scale / "shared", out / scale / claim.folder.name / f"seed-{seed}"
        if claim.experiment is None:
            raise ConfigError(f"{claim.id}: wanted an experiment, came a prediction alone: it has no run.py yet.")
        self.experiment = claim.experiment
        self.settings: Table = {**self.experiment.scales[scale]}
        designs = self.experiment.design(self.settings, seed)
        self.parts = {one.name: Part(one, claim, seed, self.folder / one.name) for one in designs}

    @property
    def digest(self) -> str:
        """Names the design, and the code that measures it. Raises ConfigError for a design that is no recipe."""
        code = (self.claim.folder / "run.py").read_bytes()
        whole = json.dumps([[part.recipe.model_dump(mode="json") for part in self.parts.values()], self.seed])
        return hashlib.sha256(whole.encode() + code).hexdigest()[:12]

    @property
    def n_stages(self) -> int:
        """Of all parts."""
        return sum(len(part.design.stages) for part in self.parts.values())

    @property
    def n_done(self) -> int:
        """Stages that are finished."""
        return sum(part.n_done for part in self.parts.values())

    def finished(self) -> Table | None:
        """The figures, if this very design has been measured."""
        found = read_json(self.folder / "figures.json")
        return found if found.get("digest") == self.digest else None

    def run(self) -> Table:
        """Run what is not done, check, measure, and write `figures.json`. Raises ConfigError, and Unsound."""
        probes = [one for part in self.parts.values() for one in part.design.probes]
        checked = [{"task": probe.task, **check_verifier(probe, self.seed)} for probe in probes]
        work = {name: part.run(self.shared) for name, part in self.parts.items()}
        totals = [part.done(stage.name) for part in self.parts.values() for stage in part.recipe.stage]
        figures = {
            "seed": self.seed,
            "digest": self.digest,
            "figures": self.experiment.measure(self.parts, self.settings),
            "work": work,
            "probes": checked,
            "seconds": sum(one.get("seconds", 0.0) for one in totals),
            "cpu_s": sum(one.get("cpu_s", 0.0) for one in totals),
            "flops": sum(one.get("flops", 0.0) for one in totals),
        }
        write_whole(self.folder / "figures.json", json.dumps(figures, indent=1) + "\n")
        return figures


def at_budget(curve: list[tuple[float, float]], budget: float) -> float:
    """The value at the last look that costs no more than the budget."""
    within = [value for work, value in curve if work <= budget * (1 + 1e-9)]
    assert within, "the first look costs nothing beyond what came before"
    return within[-1]


def main(argv: list[str] | None = None) -> int:
    """One seed, in a process of its own; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m zifio.lab.trial")
    parser.add_argument("claim")
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lab", type=Path)
    parser.add_argument("--parent", type=int, help="stop between two stages when this process is gone")
    words = parser.parse_args(argv)
    _watched.parent = words.parent
    try:
        Trial(find_claim(words.claim, words.lab), words.scale, words.seed, words.out).run()
    except ConfigError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("stopped; what is done stays")
        return 130
    return 0


def command(claim: Claim, scale: Scale, seed: int, out: Path) -> list[str]:
    """The words that start `main`."""
    words: list[Any] = [sys.executable, "-m", "zifio.lab.trial", claim.id, "--scale", scale, "--seed", seed]
    return [str(word) for word in [*words, "--out", out, "--lab", claim.folder.parent, "--parent", os.getpid()]]


if __name__ == "__main__":
    sys.exit(main())
