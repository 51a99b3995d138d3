"""Files of pictures and texts, and rows that are none."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zifio.config import ConfigError
from zifio.data.pairs import read_pairs
from zifio.pictures import read_picture, to_url


def _whole() -> bytes:
    file = io.BytesIO()
    levels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(levels).save(file, format="PNG")
    return file.getvalue()


WHOLE = _whole()


def test_pairs_come_from_lines_and_from_parquet(tmp_path: Path) -> None:
    (tmp_path / "dog.png").write_bytes(WHOLE)
    rows: list[dict[str, Any]] = [
        {"image": "dog.png", "text": "a dog", "kind": "generation"},
        {"image": "dog.png", "text": "two", "question": "How many?", "kind": "understanding"},
        {"image": "dog.png", "text": "noise"},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    assert [pair.kind for pair in pairs] == ["generation", "understanding", "both"]
    assert pairs[1].question == "How many?" and np.array_equal(pairs[2].picture(), read_picture(WHOLE, ""))
    columns = {key: [row.get(key) for row in rows] for key in ("text", "kind", "question")}
    for image in (
        [WHOLE] * 3,
        [{"bytes": WHOLE, "path": "x.png"}, {"bytes": None, "path": "dog.png"}, {"bytes": WHOLE}],
    ):
        pq.write_table(pa.table({"image": image, **columns}), tmp_path / "pairs.parquet")
        again = read_pairs(tmp_path / "pairs.parquet")
        assert [(p.text, p.kind, p.question) for p in again] == [(p.text, p.kind, p.question) for p in pairs]
        assert all(np.array_equal(p.picture(), pairs[0].picture()) for p in again)


def test_a_picture_may_stand_in_the_row_itself(tmp_path: Path) -> None:
    picture = read_picture(WHOLE, "")
    rows = [{"image": to_url(picture), "text": "a"}, {"image": "data:image/png;base64,AA", "text": "b"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole, torn = read_pairs(tmp_path / "pairs.jsonl")
    assert np.array_equal(whole.picture(), picture)
    with pytest.raises(ConfigError, match="row 2"):
        torn.picture()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "a.png"}, "row 2: text: wanted a text, came nothing"),
        ({"text": "a"}, "row 2: image: wanted a path"),
        ({"text": "a", "image": 5}, "row 2: image: .* came 5"),
        ({"text": "a", "image": "a.png", "kind": "seen"}, "row 2: kind: wanted understanding, generation, both"),
        ({"text": "a", "image": "a.png", "question": 3}, "row 2: question: wanted a text"),
    ],
)
def test_rows_that_are_no_pairs_are_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    lines = [{"image": "a.png", "text": "b"}, row]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ConfigError, match=said):
        read_pairs(tmp_path / "pairs.jsonl")


def test_a_picture_that_is_missing_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"image": "gone.png", "text": "b"}')
    (pair,) = read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(ConfigError, match=r"pairs.jsonl: row 1: wanted a picture at .*gone.png, came no file"):
        pair.picture()
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(ConfigError, match="wanted a parquet file"):
        read_pairs(tmp_path / "pairs.parquet")
