"""Labels in and out: what leaves the desk and comes back is the same; others' files are read as they are; large ones stream."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Clock
from items import person, put, ratings, row_of, say, steps_item

from zifio.config import ConfigError
from zifio.label.card import write_card
from zifio.label.desk import Desk
from zifio.label.exports import export
from zifio.label.imports import import_file
from zifio.label.item import Item
from zifio.label.report import report
from zifio.label.schema import ITEMS

PAIR = {"kind": "pair", "prompt": "?", "a": "long", "b": "short"}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines(path: Path, *several: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in several))
    return path


def worked(desk: Desk) -> None:
    """A desk with labels of every kind: agreed, disputed and settled, given up, with alternatives and corrections."""
    ann, ben, eve = person(desk, "ann"), person(desk, "ben"), person(desk, "eve", adjudicates=True)
    other = steps_item(4, alternatives=[[], ["another way"], []], gold="5", answer="6")
    simple = [Item(id=f"a{n}", kind="answer", prompt="?", response=f"r{n}").model_dump(mode="json") for n in range(2)]
    pairs = [Item.model_validate({**PAIR, "id": f"p{n}"}).model_dump(mode="json") for n in range(3)]
    golden = steps_item(9, role="gold", expected=ratings(1, 1, 1))
    put(desk, *(steps_item(n) for n in range(4)), other, *simple, *pairs, golden, wanted=2)
    wrong = ratings(1, -1, None, correction="the right way", note="a slip", flagged=True)
    for who in (ann, ben):
        say(desk, who, "item-0", ratings(1, 1, 0))
        say(desk, who, "item-1", wrong if who is ann else ratings(1, 1, 1))
        say(desk, who, "item-2", {"finish": "bad_problem"})
        say(desk, who, "item-4", {**wrong, "alternatives": [[], [1], []]})
        say(desk, who, "item-9", ratings(1, 1, 1))
        say(desk, who, "a0", {"value": "right"})
        say(desk, who, "a1", {"value": "wrong"})
        with desk.store.read() as connection:
            from zifio.label.desk import turned

            for id, value in (("p0", "a"), ("p1", "both_bad"), ("p2", "tie")):
                item = desk.item(connection, id)
                from zifio.label.item import Judgement

                shown = turned(Judgement(value=value), item, who).value
                said = {"value": shown}
                connection.commit() if False else None
                _later.append((who, id, said))
    for who, id, said in _later:
        say(desk, who, id, said)
    _later.clear()
    say(desk, ann, "item-3", {"finish": "give_up"})
    say(desk, eve, "item-1", wrong, phase="adjudication")


_later: list[Any] = []
