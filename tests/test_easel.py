"""`zifio draw` and `zifio see`: what they write and say, equal seeds, and errors for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import llama, picture_characters, save_with_pictures, scene_janus

from zifio import cli
from zifio.models.decoder import Decoder
from zifio.pictures import from_url, grid, read_picture, write_png

SCENE = "red circle left of blue square"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all."""
    return save_with_pictures(tmp_path_factory.mktemp("model"), scene_janus())


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Any:
    """What a command writes with --json."""
    assert cli.main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_drawings_become_one_picture(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid.png"
    found = told(capsys, "draw", model, SCENE, "-n", "3", "--cfg", "2", "--out", out, "--columns", "3")
    pictures = [from_url(url) for url in found["pictures"]]
    assert found["right"] == 0 and found["n"] == 3 and len({picture.tobytes() for picture in pictures}) == 3
    assert np.array_equal(read_picture(out), grid(pictures, 3))
    again = told(capsys, "draw", model, SCENE, "-n", "3", "--cfg", "2", "--out", out)
    assert again["pictures"] == found["pictures"] and read_picture(out).shape == (66, 66, 3)
    other = told(capsys, "draw", model, "a dog", "-n", "1", "--cfg", "1", "--seed", "1", "--out", out)
    assert other["pictures"] != found["pictures"][:1] and "right" not in other
    assert cli.main(["draw", str(model), SCENE, "-n", "1", "--out", str(out)]) == 0
    written = capsys.readouterr()
    assert written.out.strip() == str(out) and "0 of 1 show exactly" in written.err


def test_a_picture_is_asked_about(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.png"
    write_png(np.random.default_rng(1).integers(0, 256, (50, 20, 3), dtype=np.uint8), picture)
    found = told(capsys, "see", model, picture, "--max-new-tokens", "5")
    assert found["tokens"] == 5 and found["question"] == "What is this?" and found["finish"] == "length"
    assert cli.main(["see", str(model), str(picture), "What is this?", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == found["answer"].rstrip("\n")
    assert told(capsys, "see", model, picture, "what?")["tokens"] <= 256 - 64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-n", "0"], "-n: wanted a number from 1 to 1024, came 0"),
        (["-n", "5000"], "came 5000"),
        (["--columns", "0"], "came 0"),
        (["--cfg", "-1"], "guidance"),
        (["--out", "drawing.jpg"], "wanted a .png file"),
        (["--out", "nowhere/drawing.png"], "wanted a .png file in a folder that exists"),
    ],
)
def test_what_cannot_be_drawn_is_named(
    words: list[str], said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["draw", str(model), SCENE, *words]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_models_and_files_that_are_none_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = save_with_pictures(tmp_path / "text", Decoder(llama(vocab_size=picture_characters().vocab_size), seed=1))
    note = tmp_path / "note.txt"
    note.write_text("no picture")
    for words, said in (
        (["draw", text, SCENE], "wanted a model that reads pictures and draws"),
        (["see", text, note], "came other bytes"),
        (["see", model, note], "came other bytes"),
        (["see", model, tmp_path / "none.png"], "came no file"),
        (["draw", tmp_path / "none", SCENE], "came neither: no such folder"),
        (["draw", model, " "], "wanted words to draw"),
    ):
        assert cli.main([*map(str, words)]) == 2
        assert said in capsys.readouterr().err.replace("\n", " ")
