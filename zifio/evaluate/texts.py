"""The texts of training files as a stream: JSONL, plain text and parquet, compressed or not, of any size.

Try it alone:

    python -c "from zifio.evaluate.texts import *; print(next(read_located('README.md')).where)"
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from zifio.config import ConfigError

BREAK = "\0"
"""Between the values of one record: no run of words goes across."""

_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_BLOCK = 1 << 20  # characters of plain text at once
_OVERLAP = 4096  # of them again at the head of the next block, so that nothing is lost at the seam
_LONGEST_LINE = 1 << 26  # bytes of one JSONL record
_ROWS = 256  # of parquet at once


class Located(NamedTuple):
    """A text and where it stands in its file."""

    where: str
    text: str
    n_seen: int = 0
    """Characters at its head that the text before it had at its end."""


def read_located(path: str | Path) -> Iterator[Located]:
    """Every text of a file: a JSON object or a parquet row with BREAK between its values, or plain text in blocks.

    Raises ConfigError for a file that cannot be read, naming the line.
    """
    path = Path(path)
    kind = _kind(path)
    with _readable(path):
        if kind == ".parquet":
            for number, row in enumerate(_parquet_rows(path), 1):
                yield from _blocks(f"row {number}", [_joined(row)])
        elif kind in (".jsonl", ".ndjson"):
            for number, row in _json_rows(path):
                yield from _blocks(f"line {number}", [_joined(row)])
        else:
            with _open(path) as file:
                decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
                yield from _blocks("", map(decode, iter(lambda: file.read(_BLOCK), b"")))


def rows_of(path: Path) -> Iterator[Any]:
    """The rows of a benchmark file: JSON values, parquet rows as dicts, or the lines of a text that are not blank."""
    kind = _kind(path)
    with _readable(path):
        if kind == ".parquet":
            yield from _parquet_rows(path)
        elif kind in (".jsonl", ".ndjson"):
            yield from (row for _, row in _json_rows(path))
        else:
            with _open(path) as file:
                yield from (text for line in file if (text := line.decode(errors="replace").strip()))


@contextmanager
def _readable(path: Path) -> Generator[None, None, None]:
    """Raise ConfigError for a file that cannot be read to its end."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ConfigError(f"{path}: wanted a file that can be read, came: {error}. Fetch it again.") from None


def _kind(path: Path) -> str:
    """The suffix that says what is in the file, without the compression's."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in _OPENERS]
    return suffixes[-1] if suffixes else ""


def _open(path: Path) -> io.BufferedIOBase:
    """The file's bytes, decompressed. Raises ConfigError."""
    if not path.is_file():
        came = "a folder" if path.is_dir() else "none"
        raise ConfigError(f"{path}: wanted a file, came {came}. Check the path.")
    return _OPENERS.get(path.suffix, open)(path, "rb")  # type: ignore[operator]  # each opens bytes


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, what it says) of every line that is not blank."""
    with _open(path) as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE:
                raise ConfigError(
                    f"{path}: line {number}: wanted a record a line, came one of more than {_LONGEST_LINE >> 20} MiB. "
                    "If it is plain text, name it .txt."
                )
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                raise ConfigError(
                    f"{path}: line {number}: wanted a JSON value, came {line[:60]!r}. Mend or remove the line."
                ) from None


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, batch by batch."""
    from pyarrow import parquet

    with _open(path) as raw, parquet.ParquetFile(raw) as file:
        for batch in file.iter_batches(batch_size=_ROWS):
            yield from batch.to_pylist()


def _blocks(where: str, texts: Iterable[str]) -> Iterator[Located]:
    """Texts that follow one another in blocks of bounded size; each begins with the end of the one before it."""
    line, kept = 1, ""
    for text in texts:
        for start in range(0, len(text), _BLOCK):
            whole = kept + text[start : start + _BLOCK]
            yield Located(where or f"from line {line}", whole, len(kept))
            seam = max(0, len(whole) - _OVERLAP)
            seam = next((i for i in range(seam, len(whole)) if whole[i].isspace()), seam)  # not within a word
            line += whole.count("\n", 0, seam)
            kept = whole[seam:]


def _joined(value: Any) -> str:
    """All texts and numbers in a JSON value, in order."""
    return f"\n{BREAK}\n".join(_leaves(value))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
