"""The replies of an evaluation, one JSON object a line, written as they come: a killed run loses none that is written
and asks none twice.

A reply is named by its problem, its place among the n of that problem, and its thinking budget (None: without one).
What a kill left after the last newline is cut off when the folder is next opened, and that reply is asked for again.

Try it alone: `pytest tests/evaluate/test_journal.py`
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from zifio.config import ConfigError
from zifio.log import RunFolder, drop_torn_end
from zifio.record.stage import write_whole

RECORDS, IDENTITY = "records.jsonl", "exam.json"


class Key(NamedTuple):
    """Names a reply."""

    problem: str
    place: int
    budget: int | None


class Journal:
    """The folder of one evaluation: exam.json says what is measured, records.jsonl holds the replies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = folder / RECORDS

    @contextmanager
    def open(self, identity: dict[str, Any], fresh: bool = False) -> Generator[dict[Key, dict[str, Any]], None, None]:
        """Hold the folder for this process; gives the replies that are there.

        Raises ConfigError when another process holds it, or when it holds replies to another exam. With `fresh` these
        are thrown away first.
        """
        with RunFolder(self.folder).lock():
            if fresh:
                for name in (RECORDS, IDENTITY, "results.json"):
                    (self.folder / name).unlink(missing_ok=True)
            self._check(identity)
            if self.records.exists():
                with self.records.open("r+b") as file:
                    drop_torn_end(file.fileno())
            write_whole(self.folder / IDENTITY, json.dumps(identity, indent=1, ensure_ascii=False) + "\n")
            yield self.read()

    def read(self) -> dict[Key, dict[str, Any]]:
        """The replies that are there, by name. Raises ConfigError for a broken or a doubled one."""
        found: dict[Key, dict[str, Any]] = {}
        for number, line in enumerate(_whole_lines(self.records), 1):
            try:
                row = json.loads(line)
                key = Key(row["problem"], row["place"], row.get("budget"))
            except (ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"{self.records}: line {number}: wanted the record of a reply, came {line[:60]!r}. Remove that "
                    "line and run the same command again."
                ) from None
            if key in found:
                raise ConfigError(
                    f"{self.records}: line {number}: wanted each reply once, came {key.problem} ({key.place}) again. "
                    "Remove one of the two lines."
                )
            found[key] = row
        return found

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write these records. They are with the operating system when this returns, so that a kill spares them.

        Raises ValueError for what JSON cannot hold, before anything is written.
        """
        lines = b"".join(_line(row) for row in rows)
        with self.records.open("ab") as file:
            file.write(lines)

    def flush_to_disk(self) -> None:
        """Spare what is written a power cut, too."""
        if self.records.exists():
            with self.records.open("rb") as file:
                os.fsync(file.fileno())

    def _check(self, identity: dict[str, Any]) -> None:
        """Raise ConfigError when the replies that are there belong to another exam."""
        before = read_identity(self.folder) if self.records.exists() else None
        if before is None or before == identity:
            return
        changed = ", ".join(differences(before, identity))
        raise ConfigError(
            f"{self.folder}: wanted replies to this very exam, came replies to another ({changed}). Start over with "
            "--fresh, choose another folder with --out, or put the settings back."
        )


def read_identity(folder: Path) -> dict[str, Any] | None:
    """What exam.json says; None where there is none. Raises ConfigError when it is broken."""
    file = folder / IDENTITY
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: wanted a JSON object, came something else. Start over with --fresh.")
    return found


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """`task.max_terms: 4 -> 8` for every key that differs."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}: {_shown(old)} -> {_shown(new)}"


def _line(row: dict[str, Any]) -> bytes:
    """The row as a line of UTF-8; half a surrogate pair, which a server may send, stays escaped."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row, allow_nan=False).encode() + b"\n"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The lines that have their newline."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
