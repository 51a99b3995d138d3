"""Pictures from files that nobody vouches for, laid out as Janus wants them, and pairs of pictures and texts.

A picture is uint8 [Y, X, 3], in RGB. Reading takes PNG, JPEG, GIF, WebP and BMP, and of an animation the first frame.
The size is looked at before anything is unpacked, so that a small file cannot ask for much memory. Where a picture is
transparent, white shines through.

Janus sees a picture whole: its longer side becomes the model's, the rest is grey (`padded`). It learns to draw from the
middle of one: its shorter side becomes the model's (`cropped`; Janus-Pro, section 4.1 of arXiv:2501.17811).

Try it alone: `pytest tests/data/test_pictures.py`
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from zifio.config import ConfigError
from zifio.data.sources import check_texts, read_jsonl

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
MOST_BYTES = 50_000_000
"""Of a file."""
MOST_PIXELS = 50_000_000
"""Of a picture: 150 MB unpacked."""
GREY = 127
"""What is beside a picture that is not square: 255 times Janus' mean of 0.5, cut."""
_LEAST_SIDE = 14
"""Pixels that the shorter side keeps, as in Janus' processor."""

Kind = Literal["understanding", "generation", "both"]

# What Pillow raises on bytes that lie, by its own tests and fuzzers; nothing else is ours to catch.
_TORN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError,
    AttributeError, OverflowError, ZeroDivisionError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A picture and what is said of it."""

    image: Path | bytes
    text: str
    kind: Kind = "both"
    """Which way it is learnt: from the picture to the text, from the text to the picture, or both."""
    question: str = ""
    """What the text answers; empty where it describes the picture."""
    where: str = ""
    """File and row, for messages."""

    def picture(self) -> np.ndarray:
        """The picture. Raises ConfigError as `read_picture` does."""
        return read_picture(self.image, self.where)


def read_picture(source: Path | bytes, where: str = "") -> np.ndarray:
    """The picture in a file, or in its bytes. Raises ConfigError for whatever is none; `where` opens its message."""
    where = where if isinstance(source, bytes) or where else str(source)
    data = source if isinstance(source, bytes) else _bytes_of(source, where)
    if len(data) > MOST_BYTES:
        raise ConfigError(
            f"{where}: wanted a picture of at most {MOST_BYTES:,} bytes, came {len(data):,}. Make it smaller."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its size is checked here, and what its metadata lack is nothing to us
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        came = f"other bytes, which begin with {data[:12]!r}" if data else "an empty file"
        raise ConfigError(f"{where}: wanted a picture ({', '.join(FORMATS)}), came {came}. Convert it.") from None
    except Image.DecompressionBombError:
        raise ConfigError(f"{where}: {_too_large('more than three times as many')}") from None
    except _TORN as error:
        raise ConfigError(_torn(where, error)) from None
    with image:
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise ConfigError(f"{where}: {_too_large(f'{width:,} x {height:,}')}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _rgb(image)
        except _TORN as error:
            raise ConfigError(_torn(where, error)) from None


def _bytes_of(path: Path, where: str) -> bytes:
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            return b"\0" * (MOST_BYTES + 1)  # refused by its length, unread
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{where}: wanted a picture at {path}, came no file. Check the path.") from None
    except OSError as error:
        raise ConfigError(f"{where}: wanted a picture at {path}, came an error: {error}. Check the path.") from None


def _too_large(came: str) -> str:
    return f"wanted a picture of at most {MOST_PIXELS:,} pixels, came {came}. Make it smaller."


def _torn(where: str, error: Exception) -> str:
    return f"{where}: wanted a whole picture, came a torn one ({error}). Save or download it again."


def _rgb(image: Image.Image) -> np.ndarray:
    """Unpacked, upright, in RGB on white."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits of grey, which Pillow would cut, not scale
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return np.array(image.convert("RGB"))


# Janus' layout ---------------------------------------------------------------------------------------------


def padded(picture: np.ndarray, side: int) -> np.ndarray:
    """The whole picture in a square of `side` pixels, grey beside it, uint8 [side, side, 3].

    As transformers' JanusImageProcessor, but for sides below 14 pixels, which there are made larger.
    """
    height, width = picture.shape[:2]
    scale, least = side / max(height, width), min(_LEAST_SIDE, side)
    new_height, new_width = max(round(height * scale), least), max(round(width * scale), least)
    square = np.full((side, side, 3), GREY, np.uint8)
    top, left = (side - new_height) // 2, (side - new_width) // 2
    square[top : top + new_height, left : left + new_width] = resized(picture, new_height, new_width)
    return square


def cropped(picture: np.ndarray, side: int) -> np.ndarray:
    """The middle of the picture as a square of `side` pixels, uint8 [side, side, 3]."""
    height, width = picture.shape[:2]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    return resized(picture[top : top + least, left : left + least], side, side)


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture in another size, by bicubic interpolation."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def pixels_of(picture: np.ndarray) -> np.ndarray:
    """A picture as models take it: float32 [3, Y, X], from -1 to 1 (mean and deviation 0.5)."""
    return (picture.transpose(2, 0, 1).astype(np.float32) / 255 - 0.5) / 0.5


def picture_of(pixels: np.ndarray) -> np.ndarray:
    """The inverse, of whatever a model paints; numbers between two levels become the lower one, as in Janus."""
    levels = np.clip((pixels.astype(np.float32) * 0.5 + 0.5) * 255, 0, 255)
    return levels.transpose(1, 2, 0).astype(np.uint8)


def write_png(picture: np.ndarray, path: Path) -> None:
    """Write a picture as a PNG file."""
    Image.fromarray(picture).save(path, format="PNG")


def grid(pictures: list[np.ndarray], n_columns: int, gap: int = 2) -> np.ndarray:
    """Pictures of one size side by side on white, row by row."""
    height, width = pictures[0].shape[:2]
    n_rows = -(-len(pictures) // n_columns)
    shape = (n_rows * (height + gap) - gap, n_columns * (width + gap) - gap, 3)
    out = np.full(shape, 255, np.uint8)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, n_columns)
        top, left = row * (height + gap), column * (width + gap)
        out[top : top + height, left : left + width] = picture
    return out


# Pairs -----------------------------------------------------------------------------------------------------


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a .jsonl or .parquet file, none of whose pictures is opened yet.

    Every row has `text` and `image`: a path, from the file's folder, or in parquet the file's bytes or the hub's own
    {bytes, path}. `kind` and `question` may be left out. Raises ConfigError, naming the row.
    """
    path = Path(path)
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


def _image(value: Any, folder: Path, where: str) -> Path | bytes:
    if isinstance(value, dict):  # as the hub's data sets have it
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value and "\0" not in value:
        return folder / value
    came = "nothing" if value is None else repr(value)[:60]
    raise ConfigError(f"{where}: image: wanted a path, or bytes in parquet, came {came}. Mend the row.")
