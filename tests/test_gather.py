"""Pictures out of packages: what is written, what its texts say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from zifio import cli
from zifio.config import ConfigError
from zifio.data.pairs import read_pairs
from zifio.gather import gather
from zifio.pictures import write_png

PAINTED = {"1f534.png": (221, 46, 68), "1f535.png": (85, 172, 238)}


def package(folder: Path) -> Path:
    """The npm package's shape, with two emoji of one colour each and one that Twemoji lacks."""
    places = folder / "img" / "twitter" / "64"
    places.mkdir(parents=True)
    for name, color in PAINTED.items():
        write_png(np.full((64, 64, 3), color, np.uint8), places / name)
    rows = [
        {"name": "LARGE RED CIRCLE", "short_name": "red_circle", "image": "1f534.png", "has_img_twitter": True},
        {"name": None, "short_name": "large_blue_circle", "image": "1f535.png", "has_img_twitter": True},
        {"name": "KEYCAP", "short_name": "keycap", "image": "none.png", "has_img_twitter": False},
    ]
    (folder / "emoji.json").write_text(json.dumps(rows))
    return folder


def test_digits_are_scikit_learns_with_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "digits.parquet"
    assert cli.main(["gather", "digits", "--out", str(out), "--side", "8"]) == 0
    pairs = read_pairs(out)
    levels_NU, label_N = map(np.asarray, load_digits(return_X_y=True))
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert [pair.text for pair in pairs] == [words[label] for label in label_N]
    for pair, levels_U in list(zip(pairs, levels_NU, strict=True))[:50]:
        dark_YX = (255 - pair.picture()[..., 0].astype(float)) * 16 / 255
        assert np.abs(dark_YX.ravel() - levels_U).max() < 0.05
    assert "1,797 pictures of 8 pixels" in capsys.readouterr().err


def test_emoji_come_with_their_names_and_credit(tmp_path: Path) -> None:
    out = tmp_path / "emoji.parquet"
    gather("emoji", out, package(tmp_path / "package"), side=16)
    pairs = read_pairs(out)
    assert [pair.text for pair in pairs] == ["large red circle", "large_blue_circle"]
    for pair, color in zip(pairs, PAINTED.values(), strict=True):
        assert (pair.picture() == np.array(color, np.uint8)).all() and pair.picture().shape == (16, 16, 3)
    assert b"CC BY 4.0" in pq.read_schema(out).metadata[b"credit"]


def test_what_is_no_package_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "emoji.parquet"
    with pytest.raises(ConfigError, match="--from FOLDER"):
        gather("emoji", out)
    with pytest.raises(ConfigError, match="wanted the npm package's list, came none"):
        gather("emoji", out, tmp_path)
    with pytest.raises(ConfigError, match="wanted a name that ends in"):
        gather("digits", tmp_path / "digits.csv")
    with pytest.raises(ConfigError, match="--side: wanted 1 to"):
        gather("digits", out, side=0)
    torn = package(tmp_path / "torn")
    (torn / "img" / "twitter" / "64" / "1f535.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="1f535"):
        gather("emoji", out, torn)
    (torn / "emoji.json").write_text("[1]")
    with pytest.raises(ConfigError, match="emoji-datasource's list, came another"):
        gather("emoji", out, torn)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["torn"]
