"""Items, judgements and people for tests of the desk."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from zifio.label.desk import Annotator, Desk
from zifio.label.item import Item
from zifio.label.schema import ANNOTATORS


def steps_item(n: int, n_steps: int = 3, **more: Any) -> dict[str, Any]:
    """Item number n, of kind steps, as it is logged."""
    given = {"id": f"item-{n}", "prompt": f"What is {n}+1?", "steps": [f"step {one} of {n}" for one in range(n_steps)]}
    return Item.model_validate({**given, **more}).model_dump(mode="json")


def ratings(*marks: int | None, **more: Any) -> dict[str, Any]:
    """A judgement of steps."""
    return {"finish": "found_error" if -1 in marks else "solution", "ratings": list(marks), **more}


def person(desk: Desk, name: str, adjudicates: bool = False) -> Annotator:
    """Somebody new at the desk."""
    desk.add_annotator(name, adjudicates)
    with desk.store.read() as connection:
        row = connection.execute(select(ANNOTATORS).where(ANNOTATORS.c.name == name)).one()
    return Annotator(row.id, row.name, row.adjudicates)


def put(desk: Desk, *items: dict[str, Any], **settings: Any) -> None:
    """Import items and set the desk's rules."""
    with desk.store.write() as connection:
        if settings:
            now = desk.store.settings(connection).model_copy(update=settings)
            desk.store.append(connection, "settings", "test", now.model_dump(mode="json"))
        if items:
            desk.store.append_items(connection, "test", items)


def take(desk: Desk, who: Annotator, n: int = 1) -> list[str]:
    """The ids of what is before this person next."""
    with desk.store.write() as connection:
        return [one["id"] for one in desk.next_items(connection, who, n)["items"]]


def say(
    desk: Desk, who: Annotator, item: str, said: dict[str, Any], key: str = "", phase: Any = "blind"
) -> dict[str, Any]:
    """Label an item."""
    with desk.store.write() as connection:
        return desk.label(connection, who, key or f"{who.name}/{item}/{phase}", item, said, 1000, phase)


def row_of(desk: Desk, table: Any, **where: Any) -> Any:
    """The one row of a table with these values."""
    with desk.store.read() as connection:
        return connection.execute(select(table).where(*(table.c[key] == value for key, value in where.items()))).one()
