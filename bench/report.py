"""Results to files: results.json (the rows), results-details.json (what surrounds them), RESULTS.md and figures.

A row is {work, system, version, median, min, max, unit, runs}. The details hold, by work, its title, the limit that
the machine allows, the day, each system's note, and who was absent and why; and the machine. Running one work again
replaces that work's rows and details and leaves the rest.

Try it alone: `python -m bench.report` (writes RESULTS.md and the figures anew from the two JSON files)
"""

from __future__ import annotations

import json
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS = "zifio"
Row = dict[str, Any]
Details = dict[str, Any]


def row(work: str, system: str, version: str, values: list[float], unit: str) -> Row:
    """One line of results.json."""
    middle = statistics.median(values)
    return {
        "work": work, "system": system, "version": version, "median": middle, "min": min(values), "max": max(values),
        "unit": unit, "runs": len(values),
    }  # fmt: skip


def ratio(ours: Row, theirs: Row) -> float:
    """How many times as good we are: more is better of rates, less of seconds and memory."""
    assert ours["unit"] == theirs["unit"], "one work has one unit"
    if ours["unit"].endswith("/s"):
        return ours["median"] / theirs["median"]
    return theirs["median"] / ours["median"]


def merge(old: list[Row], new: list[Row], done: set[str]) -> list[Row]:
    """The old rows less those of the works in `done`, and the new ones; in the order of the works' names."""
    kept = [one for one in old if one["work"] not in done]
    return sorted([*kept, *new], key=lambda one: one["work"])  # stable: systems keep their order


class Results:
    """The two JSON files of a folder, and what is written from them."""

    def __init__(self, folder: Path, name: str = "results") -> None:
        self.folder, self.name = folder, name
        self.details: Details = _read(folder / f"{name}-details.json", {"machine": {}, "works": {}})
        rows: list[Row] = _read(folder / f"{name}.json", [])
        self.rows = [one for one in rows if one["work"] in self.details["works"]]

    def take(self, done: set[str], rows: list[Row], works: Details, machine: Details) -> None:
        """Replace what is known about the works in `done`, and write everything."""
        day = f"{datetime.now(UTC):%Y-%m-%d}"
        self.rows = merge(self.rows, rows, done)
        self.details["machine"] |= machine
        for work, detail in works.items():
            self.details["works"][work] = {**detail, "day": day}
        self.write()

    def write(self) -> None:
        """All files."""
        (self.folder / f"{self.name}.json").write_text(json.dumps(self.rows, indent=1) + "\n")
        (self.folder / f"{self.name}-details.json").write_text(json.dumps(self.details, indent=1) + "\n")
        pictures = figures(self.rows, self.details, self.folder / "figures", self.name)
        page = markdown(self.rows, self.details, [str(p.relative_to(self.folder)) for p in pictures])
        notes = self.folder / "notes.md"
        page += "\n" + notes.read_text() if notes.exists() else ""
        (self.folder / f"{self.name.upper()}.md").write_text(page)


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else otherwise


def markdown(rows: list[Row], details: Details, pictures: list[str]) -> str:
    """The page: the machine, a table for each work, the figures."""
    machine = details["machine"]
    lines = ["# Side by side", "", "Written by `make bench`; `bench/work.py` says what each work is.", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    lines += [
        "",
        "Systems take turns, round by round, each in its own process, after one round that does not count. `ratio`: "
        f"how many times as good {OURS} is. `of the limit`: share of what the measured peaks of this machine allow "
        "(`bench/roofline.py`).",
    ]
    for work, detail in sorted(details["works"].items()):
        mine = [one for one in rows if one["work"] == work]
        lines += ["", f"## {work}. {detail['title']}", ""]
        if mine:
            lines += [*_table(mine, detail), ""]
        lines += [f"- absent: {system}: {why}" for system, why in detail.get("absent", {}).items()]
        lines += [f"- {system}: {note}" for system, note in detail.get("notes", {}).items() if note]
        if "limit" in detail:
            allowed = f"{_number(detail['limit'])} {mine[0]['unit'] if mine else ''}"
            lines.append(f"- the machine allows {allowed} ({detail['peaks']}, medians of the same rounds)")
        lines.append(f"- {detail['day']}")
    if pictures:
        lines += ["", "## Figures", "", *(f"![{Path(name).stem}]({name})" for name in pictures)]
    return "\n".join(lines) + "\n"


def _table(rows: list[Row], detail: Details) -> list[str]:
    unit = rows[0]["unit"]
    ours = next((one for one in rows if one["system"] == OURS), None)
    head = ["system", "version", f"median {unit}", "min", "max", "runs", "ratio"]
    head += ["of the limit"] if "limit" in detail else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for one in rows:
        cells = [one["system"], one["version"], *(_number(one[key]) for key in ("median", "min", "max"))]
        cells += [str(one["runs"]), f"{ratio(ours, one):.2f}x" if ours else ""]
        cells += [f"{one['median'] / detail['limit']:.0%}"] if "limit" in detail else []
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def figures(rows: list[Row], details: Details, folder: Path, name: str) -> list[Path]:
    """Bars for the works of rates, and a curve for each kind of growth; written as png."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    growth: dict[str, list[Row]] = {}
    for one in rows:
        if one["work"].startswith("h-"):
            growth.setdefault(one["work"].rpartition("-")[0], []).append(one)
    made = [_curve(kind, mine, folder / f"{name}-{kind}.png") for kind, mine in growth.items()]
    bars = [one for one in rows if one["unit"].endswith("/s") and one["work"][0] in "abcd"]
    return ([_bars(bars, details, folder / f"{name}-rates.png")] if bars else []) + made


def _bars(rows: list[Row], details: Details, path: Path) -> Path:
    """One small diagram a work, with the machine's limit as a line."""
    from matplotlib import pyplot

    works = sorted({one["work"] for one in rows})
    figure, axes = pyplot.subplots(len(works), 1, figsize=(8, 1.7 * len(works)), squeeze=False)
    for axis, work in zip(axes[:, 0], works, strict=True):
        mine = [one for one in rows if one["work"] == work][::-1]
        spread = [[one["median"] - one["min"] for one in mine], [one["max"] - one["median"] for one in mine]]
        colours = ["tab:blue" if one["system"] == OURS else "tab:gray" for one in mine]
        axis.barh([one["system"] for one in mine], [one["median"] for one in mine], xerr=spread, color=colours)
        detail = details["works"].get(work, {})
        if "limit" in detail:
            axis.axvline(detail["limit"], color="black", linestyle=":")
        axis.set_title(f"{work}. {detail.get('title', '')}", fontsize=8, loc="left")
        axis.tick_params(labelsize=7)
    axes[-1, 0].set_xlabel("tokens/s (dotted: what the machine allows)", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _curve(kind: str, rows: list[Row], path: Path) -> Path:
    """Tokens per second over the size that grows, a line for each system."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.5))
    for system in dict.fromkeys(one["system"] for one in rows):
        points = [(int(one["work"].rpartition("-")[2]), one) for one in rows if one["system"] == system]
        middle = [one["median"] for _, one in points]
        spread = [[one["median"] - one["min"] for _, one in points], [one["max"] - one["median"] for _, one in points]]
        axis.errorbar([x for x, _ in points], middle, yerr=spread, marker="o", label=system)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(kind.removeprefix("h-"))
    axis.set_ylabel("tokens/s")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


if __name__ == "__main__":
    Results(HERE).write()
