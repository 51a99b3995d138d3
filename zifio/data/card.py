"""A data set as the Hugging Face hub wants it: JSON lines, parquet and a card that says where every row comes from.

Try it alone: `pytest tests/data/test_card.py`
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zifio.data.clean import FILTERS, Curated, Row, grade
from zifio.data.sources import write_jsonl

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_GRADES = 10
_COLUMNS = {
    "problem": "address of the problem: task, split, seed and index",
    "place": "number of the reply among those drawn to its problem",
    "prompt": "the question",
    "response": "the reply, word for word",
    "messages": "of an episode in turns: the whole conversation",
    "gold": "the right answer, or one of them",
    "outcome": "the verdict: right, wrong, or error where the check broke",
    "parts": "parts of the verdict",
    "reason": "why it is not right",
    "n_tokens": "tokens that the model drew",
    "finish": "stop, or length where it was cut",
    "pass_rate": "share of right replies among the checked ones to this problem",
    "seed": "of the random numbers, with problem and place",
    "model": "digest of the weights that wrote it",
    "digest": "of its weights; empty where a server wrote the reply, and `model` is what that calls them",
    "verifier": "digest of the code and the settings that judged it",
    "sampling": "how it was drawn",
}


def write_dataset(folder: Path, curated: Curated, about: Mapping[str, Any], license: str | None) -> None:
    """Write `data.jsonl`, `data.parquet` and `README.md` into a folder.

    `about` says how the rows were made, word by word; the card repeats it.
    """
    write_jsonl(folder / "data.jsonl", curated.rows)
    pq.write_table(table_of(curated.rows), folder / "data.parquet")
    (folder / "README.md").write_text(card(folder.parent.name, curated, about, license), encoding="utf-8")


def table_of(rows: Sequence[Row]) -> pa.Table:
    """The rows as columns. A table or list within a row is JSON text, so that every file has the same types."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: [_flat(row.get(name)) for row in rows] for name in names})


def _flat(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | tuple) else value


def card(name: str, curated: Curated, about: Mapping[str, Any], license: str | None) -> str:
    """The README.md: the hub's header in YAML, how the rows were made, what was dropped, how hard they are."""
    rows = curated.rows
    size = next((label for below, label in _SIZES if len(rows) < below), "n>1M")
    header = [f"pretty_name: {json.dumps(name)}", *([f"license: {license}"] if license else [])]
    header += ["task_categories:", "- text-generation", "tags:", "- reasoning", "- synthetic", "- rejection-sampling"]
    header += ["size_categories:", f"- {size}", "configs:", "- config_name: default", "  data_files: data.parquet"]
    drawn = len(rows) + sum(curated.dropped.values())
    lines = ["---", *header, "---", "", f"# {name}", ""]
    lines += [f"{len(rows):,} of {drawn:,} replies that a model drew and a verifier judged. Made with zifio.", ""]
    lines += ["## How it was made", "", *_table(("what", "value"), about.items()), ""]
    behind = "the weights, the verifier and the random numbers behind it, so it can be drawn again."
    if any("digest" in row for row in rows):
        behind = "the server's model, whose weights nobody here knows, the verifier, and the seed that was sent."
    lines += [f"Every row names {behind}"]
    steps = [(name.replace("_", " "), f"{curated.dropped[name]:,}") for name in FILTERS]
    lines += ["", "## What was dropped", "", *_table(("filter, in this order", "rows"), [*steps, ("kept", len(rows))])]
    lines += ["", "## How hard it is", "", *_table(("pass rate of the problem", "rows"), _difficulty(rows))]
    columns = [(f"`{name}`", _COLUMNS.get(name, "")) for name in dict.fromkeys(name for row in rows for name in row)]
    lines += ["", "## Columns", "", *_table(("column", "meaning"), columns), ""]
    lines += ["In parquet, tables within a row are JSON text. A reply is right by its verifier, which proves nothing."]
    return "\n".join(lines) + "\n"


def _difficulty(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """How many rows belong to problems of each tenth of pass rate."""
    known = Counter(grade(row["pass_rate"], _GRADES) for row in rows if row.get("pass_rate") is not None)
    return [(f"{tenth / _GRADES:.1f} to {(tenth + 1) / _GRADES:.1f}", known[tenth]) for tenth in sorted(known)]


def _table(heads: tuple[str, str], rows: Any) -> list[str]:
    """A Markdown table of two columns."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {heads[0]} | {heads[1]} |", "|---|---|", *(f"| {one} | {other} |" for one, other in cells)]
