"""Reading a run folder that is still being written: only what is new, and as columns.

A file that has become another (a resumed run takes back what its checkpoint did not hold) is read again from its
beginning.

Try it alone: `pytest tests/record/test_tail.py`
"""

from __future__ import annotations

import io
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow

_CHUNK = 8 << 20
_FEW = 1 << 16  # bytes; below, starting Arrow costs more than it saves


class Tail:
    """A file of lines that grows, read from where the last reading ended."""

    def __init__(self, path: Path) -> None:
        self.path, self._offset, self._file = path, 0, 0
        self._seen = b""
        """The last bytes that were read: what a file that was written anew has not there."""

    def read(self) -> Iterator[tuple[bool, bytes]]:
        """(whether it begins anew, whole lines) for what was written since the last call, a few MB at a time."""
        try:
            stream = self.path.open("rb")
        except OSError:
            return
        with stream:
            begins_anew = self._is_another(stream)
            if begins_anew:
                self._offset = 0
            stream.seek(self._offset)
            while chunk := stream.read(_CHUNK):
                end = chunk.rfind(b"\n") + 1
                if not end:
                    break  # the line is not yet whole
                self._offset += end
                self._seen = chunk[max(0, end - 64) : end]
                yield begins_anew, chunk[:end]
                begins_anew = False
                stream.seek(self._offset)

    def _is_another(self, stream: io.BufferedReader) -> bool:
        status = os.fstat(stream.fileno())
        stream.seek(max(0, self._offset - len(self._seen)))
        is_same = status.st_ino == self._file and stream.read(len(self._seen)) == self._seen
        self._file = status.st_ino
        return not is_same


class Columns:
    """The numbers of a JSON-lines file with a `step` in every line: for each key its steps and values."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._steps: dict[str, array[int]] = {}
        self._values: dict[str, array[float]] = {}
        self.version = 0
        """Goes up with every change."""

    def update(self) -> bool:
        """Read what is new; whether there was anything."""
        before = self.version
        for begins_anew, lines in self._tail.read():
            self.version += 1
            if begins_anew:
                self._steps.clear()
                self._values.clear()
            self._add(lines)
        return self.version != before

    @property
    def keys(self) -> list[str]:
        """Every key, in the order in which they came."""
        return list(self._steps)

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a key, empty where it was never logged."""
        if key not in self._steps:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        steps, values = self._steps[key], self._values[key]
        return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)

    def _add(self, lines: bytes) -> None:
        if len(lines) >= _FEW:
            try:
                return self._add_table(arrow.read_json(io.BytesIO(lines)))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                pass  # a broken line, or one of a strange form: pick out the others
        for row in _rows(lines):
            for key, value in row.items():
                if key != "step" and isinstance(value, int | float):
                    self._extend(key, [row["step"]], [value])

    def _add_table(self, table: pa.Table) -> None:
        step = table.column("step").to_numpy()
        for key in table.column_names:
            column = table.column(key)
            if key == "step" or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
                continue
            there = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else slice(None)
            values = column.drop_null().to_numpy()
            self._extend(key, step[there].astype(np.int64), values.astype(np.float64))

    def _extend(self, key: str, steps: Any, values: Any) -> None:
        if key not in self._steps:
            self._steps[key], self._values[key] = array("q"), array("d")
        if isinstance(steps, list):
            self._steps[key].extend(steps)
            self._values[key].extend(values)
        else:
            self._steps[key].frombytes(steps.tobytes())
            self._values[key].frombytes(values.tobytes())


def _rows(lines: bytes) -> Iterator[dict[str, Any]]:
    """The lines that are objects with a whole step."""
    for line in lines.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row


class Rows:
    """The objects of a JSON-lines file that grows, each with a `step`."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self.rows: list[dict[str, Any]] = []

    def update(self) -> bool:
        """Read what is new; whether there was anything."""
        changed = False
        for begins_anew, lines in self._tail.read():
            self.rows = [*([] if begins_anew else self.rows), *_rows(lines)]
            changed = True
        return changed
