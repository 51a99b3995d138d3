"""Pictures in the format of Fashion-MNIST, and files that only look like it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from idx_files import written

from zifio.config import ConfigError
from zifio.data.pairs import read_pairs
from zifio.idx import FASHION, is_idx

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def saved(folder: Path, labels: np.ndarray, packed: bool = True) -> Path:
    """Both files; pictures of 6 x 4 random levels."""
    folder.mkdir(exist_ok=True)
    levels = np.random.default_rng(1).integers(0, 256, (3, 6, 4), dtype=np.uint8)
    for name, array in ((IMAGES, levels), (LABELS, labels)):
        data = written(array)
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    return folder / (IMAGES + ".gz" * packed)


@pytest.mark.parametrize("packed", [True, False])
def test_pictures_and_their_words(packed: bool, tmp_path: Path) -> None:
    labels = np.array([0, 9, 3], np.uint8)
    path = saved(tmp_path / "fashion-mnist", labels, packed)
    pairs = read_pairs(path)
    assert is_idx(path) and [pair.text for pair in pairs] == ["t-shirt", "ankle boot", "dress"] and len(FASHION) == 10
    picture = pairs[1].picture()
    assert picture.shape == (6, 4, 3) and (picture[..., 0] == picture[..., 2]).all() and pairs[1].kind == "both"
    assert not is_idx(path.with_name(LABELS))


def packed(data: bytes) -> bytes:
    """The same bytes whenever: they are in the tests' names, which must be the same in every process."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (IMAGES, packed(b"no idx"), "wanted bytes in 3 dimensions"),
        (IMAGES, b"plain", "torn"),
        (IMAGES, packed(written(np.zeros((3, 6, 4), np.uint8))[:-1]), "wanted bytes in 3"),
        (IMAGES, packed(written(np.zeros((3, 6, 4), np.uint8)))[:-9], "torn"),
        (IMAGES, packed(written(np.zeros((2, 6, 4), np.uint8))), "came 3 for 2"),
        (LABELS, packed(written(np.array([0, 1, 10], np.uint8))), "labels below 10, came 10"),
        (LABELS, None, "wanted a file, came none"),
    ],
)
def test_files_that_are_none_are_named(name: str, data: bytes | None, said: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "here", np.zeros(3, np.uint8))
    other = path.with_name(name + ".gz")
    other.unlink() if data is None else other.write_bytes(data)
    with pytest.raises(ConfigError, match=said):
        read_pairs(path)
