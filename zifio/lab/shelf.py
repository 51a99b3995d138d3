"""Where the claims are: the `lab/` folder of a checkout, one folder per claim.

Try it alone: `zifio lab list`
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from zifio.config import ConfigError, suggestion
from zifio.lab.design import Experiment, Scale
from zifio.record.stage import read_json

_FOLDER = re.compile(r"c(\d+)_[a-z_]+")
_SECTIONS = ("## Prediction", "## Falsifier")


@dataclass(frozen=True)
class Claim:
    """A claim's folder."""

    id: str
    folder: Path

    @property
    def text(self) -> str:
        """All of claim.md."""
        return (self.folder / "claim.md").read_text()

    @property
    def title(self) -> str:
        """Its first line, without the mark."""
        return self.text.splitlines()[0].removeprefix(f"# {self.id}.").strip()

    @property
    def prediction(self) -> str:
        """Twelve hex digits that name prediction and falsifier, word for word."""
        parts = self.text.split("\n## ")
        said = [part for part in parts if f"## {part}".startswith(_SECTIONS)]
        return hashlib.sha256("".join(said).encode()).hexdigest()[:12]

    @cached_property
    def experiment(self) -> Experiment | None:
        """What `run.py` defines; None where there is none yet. Raises ConfigError for one that defines nothing."""
        path = self.folder / "run.py"
        if not path.exists():
            return None
        spec = importlib.util.spec_from_file_location(f"lab_{self.folder.name}", path)
        assert spec is not None and spec.loader is not None, "a path that exists"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = getattr(module, "EXPERIMENT", None)
        if not isinstance(found, Experiment) or found.id != self.id:
            raise ConfigError(f"{path}: wanted EXPERIMENT, an Experiment with the id {self.id}, came {found!r:.60}.")
        return found

    def result_path(self, scale: Scale) -> Path:
        """Where a result stands that is kept; that of `smoke` is none."""
        return self.folder / ("result.json" if scale == "cpu" else f"result-{scale}.json")

    def result(self, scale: Scale = "cpu") -> dict[str, Any]:
        """The kept result, empty where there is none."""
        return read_json(self.result_path(scale))

    def committed(self, name: str = "claim.md") -> tuple[str, str]:
        """(hash, date) of the commit that last changed a file of the claim, ("", "") where git tells none."""
        return _git_date(self.folder / name)

    def is_changed(self) -> bool:
        """Whether claim.md differs from what is committed, or is in no commit; False without git."""
        done = _git(self.folder, "status", "--porcelain", "--", "claim.md")
        return done is not None and bool(done.strip())


def find_lab() -> Path:
    """The `lab/` folder: of the current folder, or of the checkout that this package stands in. Raises ConfigError."""
    places = [Path("lab"), Path(__file__).resolve().parents[2] / "lab"]
    for place in places:
        if place.is_dir() and any(_FOLDER.fullmatch(path.name) for path in place.iterdir()):
            return place.resolve()
    raise ConfigError(
        f"lab: wanted a folder with claims, came none at {' or '.join(map(str, places))}. The laboratory runs from a "
        "checkout of the repository: clone it and run the command there."
    )


def find_claims(lab: Path | None = None) -> list[Claim]:
    """All claims, in order. Raises ConfigError outside a checkout."""
    folder = lab or find_lab()
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    return [Claim(f"C{number}", path) for number, path in sorted(found) if (path / "claim.md").exists()]


def find_claim(word: str, lab: Path | None = None) -> Claim:
    """The claim of that name. Raises ConfigError."""
    claims = {claim.id: claim for claim in find_claims(lab)}
    if word.upper() not in claims:
        raise ConfigError(
            f"lab: wanted a claim, one of {', '.join(claims)}, or all; came {word!r}. "
            f"{suggestion(word.upper(), claims) or 'See zifio lab list.'}"
        )
    return claims[word.upper()]


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _git_date(path: Path) -> tuple[str, str]:
    said = (_git(path.parent, "log", "-1", "--format=%h %cs", "--", path.name) or "").split()
    return (said[0], said[1]) if len(said) == 2 else ("", "")
