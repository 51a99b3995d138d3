"""The page of what clients pass: nothing red is hidden, nothing untried looks tried, and what must pass decides."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conformance.clients import CLIENTS, COLUMNS, Client
from conformance.environments import NODE, PYTHON
from conformance.page import Cell, Result, is_good, page

CHECKS = Path(__file__).resolve().parent.parent / "conformance" / "checks"


def result(*cells: tuple[str, str, str], absent: str = "") -> Result:
    """What became of a client."""
    told = [Cell(check=check, status=status, detail=detail, seconds=1.0) for check, status, detail in cells]
    return Result(date="2026-01-01", machine="a machine", version="1.2", seconds=3.0, absent=absent, cells=told)


def test_every_client_has_its_script_and_its_environment():
    for client in CLIENTS:
        assert (CHECKS / client.script).is_file() and client.environment in {**PYTHON, **NODE}, client.name
    assert len({client.name for client in CLIENTS}) == len(CLIENTS)
    every = [need for needs in (*(one.needs for one in PYTHON.values()), *NODE.values()) for need in needs]
    assert all(re.search(r".(==|@)\d", need) for need in every), "a version that is not fixed"


def test_the_page_tells_all_there_is():
    """Red cells with their words, clients that cannot be installed, clients that were not tried."""
    plain = [client for client in CLIENTS if client.at_least is None]
    suite = next(client for client in CLIENTS if client.at_least)
    text = page(
        {
            plain[0].name: result(("whole", "pass", ""), ("tools", "red", "a | b `c` <d>"), ("extra", "pass", "1e-5")),
            plain[1].name: result(absent="no such package"),
            suite.name: result(("basic", "pass", ""), ("image", "red", "HTTP 400"), ("reasoning", "none", "")),
        }
    )
    rows = {line.split(" | ")[0].strip("| *"): line for line in text.splitlines() if line.startswith("| ")}
    cells = [cell.strip() for cell in rows[plain[0].name].strip("|").split("|")]
    assert cells[:2] == [plain[0].name, "1.2"] and cells[-1] == "extra: pass"
    assert [cells[2 + COLUMNS.index(check)] for check in ("whole", "tools", "errors")] == ["pass", "**red**", "-"]
    assert "no such package" in rows[plain[1].name] and "not run" in rows[plain[2].name]
    assert "1 of 3 pass" in text and f"- {suite.name}, image: HTTP 400" in text and "extra: 1e-5" in text
    assert f"- {plain[0].name}, tools: a / b 'c' ‹d›" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


PASS, RED, NONE = ("a", "pass", ""), ("b", "red", "x"), ("c", "none", "")


@pytest.mark.parametrize(
    "at_least, told, is_right",
    [
        (None, result(PASS, NONE), True), (None, result(PASS, RED), False), (None, result(NONE), False),
        (None, result(), False), (2, result(PASS, PASS, RED), True), (2, result(PASS, RED, NONE), False),
        (1, result(PASS, ("to the end", "red", "killed")), False), (None, result(absent="no"), False),
    ],
)  # fmt: skip
def test_what_must_pass_decides(at_least: int | None, told: Result, is_right: bool):
    client = Client("one", "openai", "openai_python.py", "openai", 1, at_least=at_least)
    assert is_good(client, told) == is_right
