"""Files of records and texts: JSON lines in and out, plain text in. Errors name the file and the line.

Try it alone: `pytest tests/data/test_sources.py`
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zifio.config import ConfigError

_QUOTED = 60  # characters of a line that an error repeats


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; blank lines are passed over. Raises ConfigError."""
    rows = []
    for number, line in enumerate(_lines(Path(path)), 1):
        if not line.strip():
            continue
        rows.append(read_object(line, f"{path}: line {number}"))
    return rows


def read_object(line: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object of one line. Raises ConfigError; `where` opens its message."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        shown = line[:_QUOTED] if isinstance(line, str) else line[:_QUOTED].decode(errors="replace")
        raise ConfigError(
            f"{where}: wanted a JSON object, came {shown!r} ({error}). Mend or remove the line."
        ) from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: wanted a JSON object, came a {type(row).__name__}. Mend or remove the line.")
    return row


def check_texts(row: dict[str, Any], keys: Iterable[str], where: str, way_out: str) -> None:
    """Raise ConfigError unless the row has a text under each of these keys; `where` opens its message."""
    for key in keys:
        if not isinstance(row.get(key), str):
            came = repr(row.get(key))[:_QUOTED] if key in row else "nothing"
            raise ConfigError(f"{where}: {key}: wanted a text, came {came}. {way_out}")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one object a line, keys in their order. The file is there whole or not at all.

    Raises ValueError for what JSON cannot hold, NaN and infinity among it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_texts(path: str | Path, key: str = "text") -> list[str]:
    """The texts of a file: the value under `key` of each object in a .jsonl file, else each line that is not
    blank.

    Raises ConfigError."""
    path = Path(path)
    if path.suffix != ".jsonl":
        return [line for line in _lines(path) if line.strip()]
    texts = []
    for number, row in enumerate(read_jsonl(path), 1):
        if not isinstance(row.get(key), str):
            raise ConfigError(
                f"{path}: object {number}: {key}: wanted a string, came {row.get(key)!r}. Its keys: {', '.join(row)}."
            )
        texts.append(row[key])
    return texts


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends; only a newline ends one, not the other breaks of
    Unicode."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: wanted a file, came none. Check the path.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: wanted a file, came a folder. Name a file in it.") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line}: wanted UTF-8 text, came other bytes. Save it as UTF-8.") from None
    yield from (line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))
