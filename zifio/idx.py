"""Pictures in the IDX format of MNIST and Fashion-MNIST (arXiv:1708.07747): a file of grey pictures and one of labels.

    train-images-idx3-ubyte.gz    four bytes that say "bytes in three dimensions", three sizes, the levels
    train-labels-idx1-ubyte.gz    beside it: one label for each

Sizes are compared with what is there before anything is unpacked whole.

Try it alone: `pytest tests/test_idx.py`
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from zifio.config import ConfigError

FASHION = (
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
"""What Fashion-MNIST's labels mean."""
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_MOST = 500_000_000  # bytes of a file, unpacked


def is_idx(path: Path) -> bool:
    """Whether a file's name is that of pictures in this format."""
    return path.name.removesuffix(".gz").endswith(_IMAGES)


def read_idx(path: Path) -> tuple[np.ndarray, list[str]]:
    """(pictures [n, Y, X] of grey levels, a word for each): Fashion-MNIST's words where a folder is called so, else the
    digit. Raises ConfigError where either file is absent, torn, or no such file, or they do not belong together."""
    levels_NYX = _array(path, 3)
    labels_N = _array(path.with_name(path.name.replace(_IMAGES, _LABELS)), 1)
    if len(levels_NYX) != len(labels_N):
        raise ConfigError(
            f"{path}: wanted as many labels as pictures, came {len(labels_N)} for {len(levels_NYX)}. Take both files "
            "from one place."
        )
    words = FASHION if any("fashion" in part.lower() for part in path.absolute().parts) else tuple("0123456789")
    if len(labels_N) and int(labels_N.max()) >= len(words):
        raise ConfigError(f"{path}: wanted labels below {len(words)}, came {labels_N.max()}. Take other files.")
    return levels_NYX, [words[label] for label in labels_N.tolist()]


def _array(path: Path, n_dimensions: int) -> np.ndarray:
    """The bytes of a file in their shape."""
    head = 4 * (1 + n_dimensions)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(_MOST + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: wanted a file, came none. Check the path.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: wanted a whole file, came a torn one ({error}). Fetch it again.") from None
    sizes = np.frombuffer(data[4:head], ">u4").tolist() if len(data) >= head else []
    if data[:4] != bytes((0, 0, 8, n_dimensions)) or len(data) - head != math.prod(sizes) or len(data) > _MOST:
        raise ConfigError(
            f"{path}: wanted bytes in {n_dimensions} dimensions (IDX), came {len(data):,} bytes that begin with "
            f"{data[:4]!r}. Fetch the file again."
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(sizes)
