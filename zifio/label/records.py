"""Labels as they leave the desk: each with its item and what it says, in the order of the items, a part at a time.

Try it alone: `pytest tests/label/test_formats.py`
"""

import json
from collections.abc import Iterator
from heapq import nsmallest
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from zifio.label.item import Item, Judgement
from zifio.label.schema import EVENTS, ITEMS, LABELS
from zifio.label.store import Store

_AT_ONCE = 500


class Labelled(NamedTuple):
    """One label, and what it is about."""

    item: Item
    said: Judgement
    annotator: str
    """The account's id, not the person's name."""
    phase: str
    stance: str | None
    at: float
    timestamp: str
    """When it was given, where it came from elsewhere; "" for one given here."""
    ms: int
    queue: str
    saw_verdict: bool


def labels(store: Store, every: bool = False, first: int | None = None) -> Iterator[Labelled]:
    """The final label of each item that is done; or, with `every`, each label that still holds. Of these the `first`
    that were given, in the order of the log.

    Final is the adjudicator's, else the first that says what most say. Items on which nobody decides have none.
    """
    chosen = _chosen(store, every)
    if first is not None:
        among = set(nsmallest(first, (label.seq for _, label in _chosen(store, every))))
        chosen = (one for one in chosen if one[1].seq in among)
    for item, label in chosen:
        yield _labelled(item, label)


def _chosen(store: Store, every: bool) -> Iterator[tuple[Any, Any]]:
    """(item, label) as rows, in the order of the items."""
    after = 0
    while True:
        with store.read() as connection:
            found = _some_items(connection, after)
            if not found:
                return
            given = _labels_of(connection, [row.id for row in found])
        for row in found:
            after = row.seq
            mine = given.get(row.id, [])
            yield from ((row, label) for label in (mine if every else _final(row, mine)))


def _some_items(connection: Connection, after: int) -> list[Any]:
    query = select(ITEMS.c.id, ITEMS.c.seq, ITEMS.c.outcome, ITEMS.c.role, ITEMS.c.state, ITEMS.c.final, EVENTS.c.body)
    query = query.join(EVENTS, EVENTS.c.seq == ITEMS.c.seq).where(ITEMS.c.seq > after)
    return list(connection.execute(query.order_by(ITEMS.c.seq).limit(_AT_ONCE)).all())


def _labels_of(connection: Connection, items: list[str]) -> dict[str, list[Any]]:
    query = select(LABELS, EVENTS.c.body).join(EVENTS, EVENTS.c.seq == LABELS.c.seq)
    query = query.where(LABELS.c.item.in_(items), LABELS.c.current).order_by(LABELS.c.seq)
    found: dict[str, list[Any]] = {}
    for row in connection.execute(query):
        found.setdefault(row.item, []).append(row)
    return found


def _final(item: Any, labels: list[Any]) -> list[Any]:
    """The one label that stands for a finished item, in a list; none where there is none."""
    if item.role != "work" or item.state != "done" or item.final is None:
        return []
    settled = [label for label in labels if label.phase == "adjudication"]
    if settled:
        return settled[-1:]
    last = {label.annotator: label for label in labels}  # a revised label comes behind the blind one
    return [label for label in last.values() if label.stance == item.final][:1]


def _labelled(item: Any, row: Any) -> Labelled:
    body = json.loads(row.body)
    return Labelled(
        Item.model_validate_json(item.body).model_copy(update={"outcome": item.outcome}),
        Judgement.model_validate(body["said"], strict=False),
        row.annotator,
        row.phase,
        row.stance,
        row.at,
        body.get("timestamp", ""),
        row.ms or 0,
        row.queue,
        bool(row.saw_verdict),
    )
