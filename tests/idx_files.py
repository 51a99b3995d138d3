"""Made-up pictures in the files of Fashion-MNIST: what is named by the first label is dark, by the last one bright."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def written(array: np.ndarray) -> bytes:
    """An array of bytes as an IDX file."""
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def labelled_files(folder: Path, n: int = 64, n_held_out: int = 32, side: int = 16, name: str = "fashion") -> Path:
    """All four files in a folder whose name says what labels mean; levels are the label's within some noise."""
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    for stem, count in (("train", n), ("t10k", n_held_out)):
        labels = (np.arange(count) % 3).astype(np.uint8)
        levels = labels[:, None, None] * 100 + rng.integers(0, 40, (count, side, side))
        for kind, array in (("images-idx3", levels.astype(np.uint8)), ("labels-idx1", labels)):
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(written(array), 1))
    return folder


LABELS = ["pullover", "t-shirt", "trousers"]
"""What they are called, in order of the alphabet; t-shirts are dark, pullovers bright."""
