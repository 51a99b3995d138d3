"""A data set as a hub wants it: a header that its own library reads, columns of one type, counts that add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from huggingface_hub import DatasetCard

from zifio.data.card import card, table_of, write_dataset
from zifio.data.clean import FILTERS, Curated
from zifio.data.sources import read_jsonl


def row(n: int, **more: Any) -> dict[str, Any]:
    """A kept reply."""
    parts = {"accuracy": 1.0} if n % 2 else {}
    return {
        "problem": f"p{n}",
        "response": f"a|b\n{n}",
        "parts": parts,
        "pass_rate": n / 4,
        "sampling": {"stop": []},
    } | more


DROPPED = dict.fromkeys(FILTERS, 0) | {"verdict": 7, "near_duplicate": 2}
ROWS = [row(n) for n in range(5)]


def test_the_hubs_own_library_reads_the_card(tmp_path: Path):
    write_dataset(tmp_path / "traces" / "dataset", Curated(ROWS, DROPPED), {"model": "r1 | x"}, "apache-2.0")
    folder = tmp_path / "traces" / "dataset"
    found = DatasetCard.load(folder / "README.md")
    assert found.data.license == "apache-2.0" and found.data.pretty_name == "traces"
    assert found.data.to_dict()["size_categories"] == ["n<1K"]
    (files,) = found.data.to_dict()["configs"]
    assert (folder / files["data_files"]).is_file()
    assert "5 of 14 replies" in found.text and "| verdict | 7 |" in found.text and "| kept | 5 |" in found.text
    assert "r1 \\| x" in found.text, "a bar in a cell is no new cell"
    assert "| 0.5 to 0.6 | 1 |" in found.text and "| 0.9 to 1.0 | 1 |" in found.text


def test_both_files_hold_the_rows(tmp_path: Path):
    write_dataset(tmp_path / "dataset", Curated(ROWS, DROPPED), {}, None)
    assert read_jsonl(tmp_path / "dataset" / "data.jsonl") == ROWS
    table = pq.read_table(tmp_path / "dataset" / "data.parquet").to_pylist()
    assert [one | {key: json.loads(one[key]) for key in ("parts", "sampling")} for one in table] == ROWS


def test_rows_of_different_kinds_are_one_table():
    """Episodes in turns beside single replies: what a row lacks is null."""
    rows = [row(1), row(2, messages=[{"role": "user", "content": "1+1"}]), row(3, pass_rate=None)]
    table = table_of(rows)
    assert table.column("messages").to_pylist()[0] is None
    assert json.loads(table.column("messages").to_pylist()[1]) == rows[1]["messages"]
    assert "license" not in card("x", Curated(rows, DROPPED), {}, None).split("---")[1]
