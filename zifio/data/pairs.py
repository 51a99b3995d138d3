"""Pairs of pictures and texts, from JSON lines, parquet, or the IDX files of Fashion-MNIST.

Try it alone: `pytest tests/data/test_pairs.py`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zifio.config import ConfigError
from zifio.data.sources import check_texts, read_jsonl
from zifio.idx import is_idx, read_idx
from zifio.pictures import from_url, read_picture

Kind = Literal["understanding", "generation", "both"]


HELD_OUT_OF = 16
"""One pair of so many is kept for looks where no others are named."""


@dataclass(frozen=True)
class Pair:
    """A picture and what is said of it."""

    image: Path | bytes | np.ndarray | str
    """Where it is, its file's bytes, grey levels, or a data URL."""
    text: str
    kind: Kind = "both"
    """Which way it is learnt: from the picture to the text, from the text to the picture, or both."""
    question: str = ""
    """What the text answers; empty where it describes the picture."""
    where: str = ""
    """File and row, for messages."""

    def picture(self) -> np.ndarray:
        """The picture. Raises ConfigError as `read_picture` does."""
        if isinstance(self.image, np.ndarray):
            return np.repeat(self.image[..., None], 3, axis=2)
        if isinstance(self.image, str):
            return from_url(self.image, self.where)
        return read_picture(self.image, self.where)


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a .jsonl or .parquet file, none of whose pictures is opened yet, or of IDX files (`idx.py`).

    Every row has `text` and `image`: a path, from the file's folder, a data URL, or in parquet the file's bytes or the
    hub's own {bytes, path}. `kind` and `question` may be left out. Raises ConfigError, naming the row.
    """
    path = Path(path)
    if is_idx(path):
        levels_NYX, words = read_idx(path)
        rows = zip(levels_NYX, words, strict=True)
        return [Pair(levels, word, where=f"{path}: row {row}") for row, (levels, word) in enumerate(rows, 1)]
    pairs = []
    for number, row in enumerate(_rows(path), 1):
        where = f"{path}: row {number}"
        check_texts(row, ("text", *(["question"] if row.get("question") is not None else [])), where, "Mend the row.")
        kind = row.get("kind") or "both"
        if kind not in get_args(Kind):
            raise ConfigError(f"{where}: kind: wanted {', '.join(get_args(Kind))}, came {kind!r}. Mend the row.")
        image = _image(row.get("image"), path.parent, where)
        pairs.append(Pair(image, row["text"], kind, row.get("question") or "", where))
    return pairs


def learnt_and_kept(path: Path, held_out: Path | None) -> tuple[list[Pair], list[Pair]]:
    """Pairs of a file to learn from, and those to look at: another file's, or every sixteenth."""
    every = read_pairs(path)
    if held_out is not None:
        return every, read_pairs(held_out)
    return [pair for i, pair in enumerate(every) if i % HELD_OUT_OF], every[::HELD_OUT_OF]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix != ".parquet":
        yield from read_jsonl(path)
        return
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: wanted a file, came none. Check the path.") from None
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: wanted a parquet file, came another or a torn one ({error}).") from None
    with file:
        wanted = [name for name in ("image", "text", "kind", "question") if name in file.schema_arrow.names]
        for batch in file.iter_batches(256, columns=wanted):
            yield from batch.to_pylist()


def _image(value: Any, folder: Path, where: str) -> Path | bytes | str:
    if isinstance(value, dict):  # as the hub's data sets have it
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value.startswith("data:"):
        return value
    if isinstance(value, str) and value and "\0" not in value:
        return folder / value
    came = "nothing" if value is None else repr(value)[:60]
    raise ConfigError(f"{where}: image: wanted a path, or bytes in parquet, came {came}. Mend the row.")
