"""Pictures from files and texts that nobody vouches for, laid out as Janus wants them.

A picture is uint8 [Y, X, 3], in RGB. Reading takes PNG, JPEG, GIF, WebP and BMP, and of an animation the first frame.
The size is looked at before anything is unpacked, so that a small file cannot ask for much memory. Where a picture is
transparent, white shines through.

Janus sees a picture whole: its longer side becomes the model's, the rest is grey (`padded`). It learns to draw from the
middle of one: its shorter side becomes the model's (`cropped`; Janus-Pro, section 4.1 of arXiv:2501.17811).

Try it alone: `pytest tests/test_pictures.py`
"""

from __future__ import annotations

import base64
import binascii
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from zifio.config import ConfigError

PICTURE = "<image_placeholder>"
"""Stands in a text where a picture belongs, as in Janus' processor."""
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
MOST_BYTES = 50_000_000
"""Of a file."""
MOST_PIXELS = 50_000_000
"""Of a picture: 150 MB unpacked."""
GREY = 127
"""What is beside a picture that is not square: 255 times Janus' mean of 0.5, cut."""
_URL = "data:image/png;base64,"
_LEAST_SIDE = 14
"""Pixels that the shorter side keeps, as in Janus' processor."""

# What Pillow raises on bytes that lie, by its own tests and fuzzers; nothing else is ours to catch.
_TORN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError,
    AttributeError, OverflowError, ZeroDivisionError, RuntimeError,
)  # fmt: skip


def read_picture(source: Path | bytes, where: str = "", most_pixels: int = MOST_PIXELS) -> np.ndarray:
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
        raise ConfigError(f"{where}: {_too_large('far more', most_pixels)}") from None
    except _TORN as error:
        raise ConfigError(_torn(where, error)) from None
    with image:
        width, height = image.size
        if width * height > most_pixels:
            raise ConfigError(f"{where}: {_too_large(f'{width:,} x {height:,}', most_pixels)}")
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


def _too_large(came: str, most_pixels: int) -> str:
    return f"wanted a picture of at most {most_pixels:,} pixels, came {came}. Make it smaller."


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


# In text ---------------------------------------------------------------------------------------------------


def png_bytes(picture: np.ndarray) -> bytes:
    """The picture as a PNG file's bytes."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()


def to_url(picture: np.ndarray) -> str:
    """The picture as a PNG in a data URL (RFC 2397), the way that chats carry pictures."""
    return _URL + base64.b64encode(png_bytes(picture)).decode()


def from_url(url: str, where: str = "picture", most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """The picture of a data URL. Raises ConfigError as `read_picture` does, and for whatever is no such URL."""
    head, _, body = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64")):
        raise ConfigError(f"{where}: wanted a picture as data:image/png;base64,..., came {url[:40]!r}. Encode it so.")
    try:
        return read_picture(base64.b64decode(body, validate=True), where, most_pixels)
    except binascii.Error as error:
        raise ConfigError(f"{where}: wanted base64 behind the comma, came other text ({error}). Encode it.") from None
