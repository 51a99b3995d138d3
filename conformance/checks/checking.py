"""What every check script shares: where the server is, and how the outcome of each check is told.

A check is a function that asserts; what it returns, if anything, is a figure for the page. Only the standard library
is used, because each script runs in the environment of its client.

Try it alone: `python -m conformance.run --only "openai (Python)"`
"""

from __future__ import annotations

import json
import os
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path

URL = os.environ["CONFORMANCE_URL"]
"""The server's address, without /v1."""
KEY = os.environ["CONFORMANCE_KEY"]
TEXT = os.environ["CONFORMANCE_TEXT"]
"""The name of a model that reads English."""
SEES = os.environ["CONFORMANCE_SEES"]
"""The name of a model that reads pictures."""
THINKS = os.environ["CONFORMANCE_THINKS"]
"""The name of a model that thinks; it reads sums."""
FOLDER = Path(os.environ["CONFORMANCE_FOLDER"])
"""A folder for what the client leaves behind, empty at the beginning."""

SUM = "(6+0+3+6+3+0+8)%10"
CAPITAL = "What is the capital of France?"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
"""Arguments that a model which follows no schema would not find by chance."""

Check = Callable[[], str | None]
_checks: list[tuple[str, Check]] = []


def check(name: str) -> Callable[[Check], Check]:
    """Makes a function a check of this script, under the name of a column of the page."""

    def added(function: Check) -> Check:
        _checks.append((name, function))
        return function

    return added


def tell(name: str, status: str, detail: str = "", seconds: float = 0.0) -> None:
    """Write the outcome of one check: `pass`, `red`, or `none` where the client has no such thing."""
    line = {"check": name, "status": status, "detail": " ".join(detail.split())[:400], "seconds": round(seconds, 2)}
    with open(os.environ["CONFORMANCE_OUT"], "a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def run() -> None:
    """Run all checks of this script, each to its end, whatever the others did."""
    for name, function in _checks:
        begin = time.monotonic()
        try:
            status, detail = "pass", function() or ""
        except Exception as error:
            traceback.print_exc()
            status, detail = "red", f"{type(error).__name__}: {error}"
        tell(name, status, detail, time.monotonic() - begin)


def is_weather(arguments: object) -> bool:
    """Whether arguments are what WEATHER allows."""
    return (
        isinstance(arguments, dict)
        and set(arguments) == {"city", "days"}
        and arguments["city"] in ("Paris", "Rome")
        and isinstance(arguments["days"], int)
        and arguments["days"] <= 9
    )


def sums(n: int) -> list[tuple[str, str]]:
    """Sums of the kind that the quickstart's models learn, with their answers; always the same."""
    drawn = random.Random(0)
    terms = [[drawn.randrange(10) for _ in range(6 + place % 5)] for place in range(n)]
    return [(f"({'+'.join(map(str, each))})%10", str(sum(each) % 10)) for each in terms]
