"""What an experiment is made of: a claim, its scales, and for each seed a recipe with arms that say what they are.

A claim's folder has `claim.md` (prediction and falsifier, committed before any run) and `run.py`, which defines
`EXPERIMENT`. It holds no training code: a seed's recipe is plain tables, as a TOML file would have them, and the
package runs it.

Try it alone: `python -c "from zifio.lab.shelf import find_claims; print([c.id for c in find_claims()])"`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

Word = Literal["supported", "narrowed", "refuted", "underpowered"]
Scale = Literal["smoke", "cpu", "gpu"]
Table = dict[str, Any]
"""Plain data, as TOML or JSON holds it."""


@dataclass(frozen=True)
class Arm:
    """One way to treat a base, and what its stage must say of it for the arm to be what it is called."""

    name: str
    stage: str
    """The stage that makes its model."""
    treatment: Mapping[str, Any]
    """Settings of that stage by their dotted path, as `stage.json` must have them: `{"process.form": "min"}`."""


@dataclass(frozen=True)
class Probe:
    """A verifier, and how often it must accept right and wrong replies, before anybody trains on it."""

    task: Table
    accepts_right: float = 1.0
    accepts_wrong: float = 0.0


@dataclass(frozen=True)
class Design:
    """What one seed runs, or the part of it that is about one task."""

    stages: list[Table]
    """In order, as `[[stage]]` tables of a recipe."""
    task: Table
    """The recipe's task: gold."""
    arms: list[Arm]
    probes: list[Probe] = field(default_factory=list)
    files: Mapping[str, Callable[[], list[Table]]] = field(default_factory=dict)
    """What makes the rows of the JSONL files that stages name by `file_in(...)`; asked when the seed runs."""
    name: str = "main"
    """Names the part's folder."""


@dataclass(frozen=True)
class Verdict:
    """What the results say of the claim, and why: by code, from every seed's figures."""

    word: Word
    why: str
    """A sentence with the figures that decided."""
    figures: Table = field(default_factory=dict)
    """Comparisons with their intervals."""


@dataclass(frozen=True)
class Experiment:
    """A claim that can fail."""

    id: str
    title: str
    scales: Mapping[Scale, Table]
    """The settings of each scale; `seeds` is how many."""
    design: Callable[[Table, int], list[Design]]
    """(settings, seed) -> what it runs: a recipe for each task."""
    measure: Callable[[Mapping[str, Any], Table], Table]
    """(a finished seed's parts by their names, settings) -> its figures, as they go to `result.json`."""
    judge: Callable[[list[Table], Table], Verdict]
    """(every seed's figures, settings) -> the verdict."""
    draw: Callable[[Figure, list[Table], Verdict], None]
    """Puts the figure on a canvas."""
    shows: str = ""
    """What the figure shows, in a sentence."""


def file_in(name: str) -> str:
    """Stands in a stage's settings for a file of `Design.files`; the seed's folder takes its place."""
    return f"{{files}}/{name}"


def placed(value: Any, folder: Path) -> Any:
    """The same tables with the paths of files in `folder` put in."""
    if isinstance(value, dict):
        return {key: placed(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [placed(one, folder) for one in value]
    return value.replace("{files}", str(folder)) if isinstance(value, str) else value
