"""Pictures with texts from packages that carry them, as a parquet file for `data` of any stage: `zifio gather`.

    digits    scikit-learn's 1,797 handwritten digits of 8 pixels; the text is a word, "seven"
    emoji     Twemoji from the npm package emoji-datasource-twitter: 1,900 of 64 pixels with their names in Unicode

Both are CC BY 4.0: whoever hands them on names where they are from, which the file's metadata carry as `credit`.

Try it alone: `zifio gather digits --out digits.parquet`
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zifio.config import ConfigError
from zifio.log import say
from zifio.pictures import padded, png_bytes, read_picture, resized

Source = Literal["digits", "emoji"]
Described = tuple[np.ndarray, str]
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CREDIT = {
    "digits": "scikit-learn's digits (UCI Optical Recognition of Handwritten Digits, CC BY 4.0)",
    "emoji": "Twemoji, Twitter, Inc. and other contributors (CC BY 4.0); names of emoji-datasource-twitter (MIT)",
}
_MOST_SIDE = 1024
_PACKAGE = "npm install emoji-datasource-twitter@16.0.0"


def gather(source: Source, out: Path, folder: Path | None = None, side: int = 32) -> None:
    """Write the pictures of a source, `side` pixels a side, with their texts to the parquet file `out`.

    The file is there whole or not at all. Raises ConfigError where the source is absent or torn.
    """
    if out.suffix != ".parquet":
        raise ConfigError(f"--out: wanted a name that ends in .parquet, came {out}.")
    if not 1 <= side <= _MOST_SIDE:
        raise ConfigError(f"--side: wanted 1 to {_MOST_SIDE}, came {side}.")
    described = _digits(side) if source == "digits" else _emoji(folder, side)
    rows = [{"image": png_bytes(picture), "text": text} for picture, text in described]
    schema = pa.schema([("image", pa.binary()), ("text", pa.string())], metadata={"credit": _CREDIT[source]})
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as beside:
        whole = Path(beside) / out.name
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), whole)
        whole.replace(out)
    say(f"{out}: {len(rows):,} pictures of {side} pixels. {_CREDIT[source]}")


def _digits(side: int) -> Iterator[Described]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ConfigError("digits: wanted scikit-learn, came none. pip install scikit-learn") from None
    levels_NU, label_N = map(np.asarray, load_digits(return_X_y=True))
    for levels_U, label in zip(levels_NU, label_N.tolist(), strict=True):  # levels from 0 to 16
        grey_YX = (255 - levels_U.reshape(8, 8) * 255 / 16).round().astype(np.uint8)
        yield resized(np.repeat(grey_YX[..., None], 3, axis=2), side, side), _DIGITS[label]


def _emoji(folder: Path | None, side: int) -> Iterator[Described]:
    if folder is None:
        raise ConfigError(f"emoji: wanted --from FOLDER, the npm package, came none. {_PACKAGE}")
    listed = folder / "emoji.json"
    try:
        rows = json.loads(listed.read_text())
        named = [(row["image"], row["name"] or row["short_name"]) for row in rows if row["has_img_twitter"]]
    except FileNotFoundError:
        raise ConfigError(f"{listed}: wanted the npm package's list, came none. {_PACKAGE}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{listed}: wanted emoji-datasource's list, came another ({error!r}). {_PACKAGE}") from None
    for image, name in named:
        path = folder / "img" / "twitter" / "64" / image
        yield padded(read_picture(path), side), name.lower()
