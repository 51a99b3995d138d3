"""The page: who passes what, in tables, with the words of whatever is red.

Try it alone: `pytest tests/test_conformance.py`
"""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from conformance.clients import CLIENTS, COLUMNS, Client

SIGNS = {"pass": "pass", "red": "**red**", "none": "-"}


class Cell(TypedDict):
    """One check of one client."""

    check: str
    status: str
    detail: str
    seconds: float


class Result(TypedDict):
    """What became of a client."""

    date: str
    machine: str
    version: str
    seconds: float
    absent: str
    """Why it was not tried, if it was not."""
    cells: list[Cell]


def n_passed(result: Result) -> int:
    """Checks that pass."""
    return sum(cell["status"] == "pass" for cell in result["cells"])


def is_good(client: Client, result: Result) -> bool:
    """Whether as much of a client passes as must."""
    cells, passed = result["cells"], n_passed(result)
    if result["absent"] or not passed or any(cell["check"] == "to the end" for cell in cells):
        return False
    return passed >= client.at_least if client.at_least else not any(cell["status"] == "red" for cell in cells)


@functools.cache
def machine() -> str:
    """Where this was made."""
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{system}, torch {version('torch')}, zifio {version('zifio')} ({revision or 'no revision'})"


def page(results: Mapping[str, Result]) -> str:
    """The whole page."""
    plain = [client for client in CLIENTS if client.at_least is None]
    suites = [client for client in CLIENTS if client.at_least is not None]
    parts = [_HEAD, _table(plain, results), _SUITES, *[_suite(client, results) for client in suites]]
    figures = _lines(results, "pass")
    parts += [_FIGURES + figures if figures else "", "## What is red\n\n" + (_lines(results, "red") or "Nothing.\n")]
    made = sorted({f"{result['date']}: {result['machine']}" for result in results.values()})
    parts.append("## When and where\n\n" + "".join(f"- {line}\n" for line in made))
    return "\n".join(part for part in parts if part)


_HEAD = """# Conformance

`make conformance` writes this page: it starts `zifio serve` with the quickstart's R1 and with SmolLM2-135M-Instruct,
and runs real clients against it, each in an environment of its own with fixed versions. Each client's checks are one
short script in `conformance/checks`. The cells are what came of the last run, red ones included; `-`: the client has no
such thing, or it is not tried. A client marked * need not pass.
"""
_SUITES = """## The published interfaces

llm-comply sends what the descriptions of three interfaces allow, and holds the answers to their schemas.
"""
_FIGURES = """## What passed with a word

"""


def _table(clients: list[Client], results: Mapping[str, Result]) -> str:
    lines = [f"| client | version | {' | '.join(COLUMNS)} | beside these |"]
    lines.append(f"|---|---|{'---|' * len(COLUMNS)}---|")
    for client in clients:
        name = client.name + ("" if client.is_required else " *")
        result = results.get(client.name)
        if result is None or result["absent"]:
            why = "not run" if result is None else f"**red**: {result['absent']}"
            lines.append(f"| {name} | | {' | '.join(' ' for _ in COLUMNS)} | {_inline(why)} |")
            continue
        signs = {cell["check"]: SIGNS[cell["status"]] for cell in result["cells"]}
        known = " | ".join(signs.get(column, "-") for column in COLUMNS)
        other = ", ".join(f"{check}: {sign}" for check, sign in signs.items() if check not in COLUMNS)
        lines.append(f"| {name} | {result['version']} | {known} | {other} |")
    return "\n".join(lines) + "\n"


def _suite(client: Client, results: Mapping[str, Result]) -> str:
    result = results.get(client.name)
    if result is None or result["absent"]:
        return f"**{client.name}**: {'not run' if result is None else _inline(result['absent'])}\n"
    signs = [f"{cell['check']} {SIGNS[cell['status']]}" for cell in result["cells"]]
    head = f"**{client.name}** ({client.package} {result['version']}): {n_passed(result)} of {len(signs)} pass"
    return f"{head}, {client.at_least} wanted. {client.why_not}\n\n{' · '.join(signs)}\n"


def _lines(results: Mapping[str, Result], status: str) -> str:
    """What cells of this status have to say."""
    every: list[tuple[str, Any]] = [(name, cell) for name, result in results.items() for cell in result["cells"]]
    chosen = [(name, cell) for name, cell in every if cell["status"] == status and cell["detail"]]
    return "".join(f"- {name}, {cell['check']}: {_inline(cell['detail'])}\n" for name, cell in chosen)


def _inline(text: str) -> str:
    """Words of others, harmless in a line or a cell of Markdown."""
    return " ".join(text.replace("|", "/").replace("`", "'").replace("<", "‹").replace(">", "›").split())[:300]
