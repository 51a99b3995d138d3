"""A claim of two arms that train for a step or two, made in a folder of its own; for tests."""

from __future__ import annotations

import shutil
from pathlib import Path

from zifio.lab.shelf import Claim, find_claim

CLAIM = """# C1. Longer is better

**The claim, as we read it.** Two steps are better than one.

## Prediction

Yes.

## Falsifier, and how the verdict is computed

No.
"""

RUN = '''"""A claim for tests."""

from zifio.lab import substrate as s
from zifio.lab.design import Arm, Design, Experiment, Probe, Verdict
from zifio.lab.effects import paired
from zifio.lab.picture import bars

TASK = {"name": "chain_mod", "min_terms": 2, "max_terms": 2, "working": "totals"}
SETTINGS = {"seeds": 2, "documents": 8}


def design(settings, seed):
    base = s.pretrain("base", TASK, s.llama("XXS"), 2, settings["documents"], 0.5)
    looks = {"held_out": s.look(1, 4)}
    stages = [s.tokenizer(), base, s.rl("one", "base", 1, 2, **looks), s.rl("two", "base", 2, 2, **looks)]
    arms = [Arm("one", "one", {"steps": 1}), Arm("two", "two", {"steps": 2})]
    return [Design(stages, TASK, arms, [Probe(TASK)])]


def measure(parts, settings):
    return {name: parts["main"].done(name)["flops"] for name in ("one", "two")}


def judge(rows, settings):
    more = paired([row["two"] for row in rows], [row["one"] for row in rows], "more")
    word = "supported" if more.mean > 0 else "refuted"
    return Verdict(word, f"{more.mean:.4g} FLOPs more.", {"more": more.mean})


def draw(canvas, rows, verdict):
    bars(canvas.subplots(), {name: [row[name] for row in rows] for name in ("one", "two")}, "FLOPs", None)


EXPERIMENT = Experiment("C1", "Longer is better", {"smoke": SETTINGS, "cpu": SETTINGS}, design, measure, judge, draw)
'''


def tiny_claim(folder: Path) -> Claim:
    """The claim, in `folder/lab`."""
    place = folder / "lab" / "c1_longer"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "claim.md").write_text(CLAIM)
    (place / "run.py").write_text(RUN)
    return find_claim("C1", folder / "lab")
