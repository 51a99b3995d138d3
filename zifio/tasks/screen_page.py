"""A screening as a table for the terminal, and as a page that stands alone: what passed, what was found, the evidence.

Try it alone: `zifio screen splits --report page.html`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Group
from rich.table import Table
from rich.text import Text

from zifio.tasks.findings import SEVERITIES, Finding, Row, Screening

_COLOURS = {"high": "bold red", "medium": "yellow", "low": "cyan", None: "green"}


def terminal_table(name: str, screening: Screening) -> Group:
    """A line for every check, and below it what was found."""
    table = Table(title=Text(f"screen of {name}"), title_justify="left")
    for column in ("check", "tried", "rewarded", "mean reward", "errors", "found"):
        table.add_column(column, justify="left" if column in ("check", "found") else "right")
    for row in screening.rows:
        table.add_row(*_cells(row), Text(*_outcome(screening, row)))
    lines = [Text(f"{name}: {_figures(screening)}")]
    for finding in _ordered(screening):
        lines.append(
            Text.assemble((finding.severity, _COLOURS[finding.severity]), f"  {finding.check}: {finding.what}")
        )
        reply, reward = finding.evidence.get("reply"), finding.evidence.get("reward")
        if reply is not None:
            lines.append(
                Text(f"      {reply[:60]!r} earns {reward:.3g} where the answer is {finding.evidence['gold'][:40]!r}")
            )
        lines.append(Text(f"      {finding.cure}"))
    return Group(table, *lines)


def page(name: str, screening: Screening) -> str:
    """The page. What tasks and replies say is escaped; nothing is fetched."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [(row, screening.worst(row.check), _cells(row)) for row in screening.rows]
    words: dict[str, Any] = {
        "name": name,
        "screening": screening,
        "worst": screening.worst(),
        "rows": rows,
        "findings": _ordered(screening),
        "figures": _figures(screening),
        "refused": sorted(screening.measured.get("forms refused", {}).items()),
    }
    return environment.get_template("screen.html.jinja").render(words)


def _cells(row: Row) -> tuple[str, ...]:
    share = "" if row.mean_reward is None else f"{row.mean_reward:.3f}"
    return row.check, f"{row.n}", _count(row.rewarded), share, _count(row.errors)


def _count(n: int | None) -> str:
    return "" if n is None else str(n)


def _outcome(screening: Screening, row: Row) -> tuple[str, str]:
    worst = screening.worst(row.check)
    return (worst or "passed"), _COLOURS[worst]


def _figures(screening: Screening) -> str:
    """What was measured, in a line."""
    told = [f"{screening.n_problems} problems, seed {screening.seed}"]
    if "guessing earns" in screening.measured:
        told.append(f"guessing earns {screening.measured['guessing earns']:.2f}")
    if "seconds a check" in screening.measured:
        told.append(f"a check takes {1e3 * screening.measured['seconds a check']:.2g} ms")
        told.append(f"the slowest {screening.measured['slowest check']:.2g} s")
    refused = screening.measured.get("forms refused", {})
    if refused:
        told.append(f"right answers refused in these forms: {', '.join(sorted(refused))}")
    return "; ".join(told)


def _ordered(screening: Screening) -> list[Finding]:
    return sorted(screening.findings, key=lambda finding: SEVERITIES.index(finding.severity))
