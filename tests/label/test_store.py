"""The store: what is acknowledged is there, once, in order, in either database; views are what the log says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from items import person, put, ratings, say, steps_item, take
from sqlalchemy import select

from zifio.config import ConfigError
from zifio.label.desk import Desk
from zifio.label.schema import EVENTS, FACTS, ITEMS, VIEWS
from zifio.label.store import Conflict, Store


def views(desk: Desk) -> dict[str, list[Any]]:
    """All rows of all views."""
    with desk.store.read() as connection:
        tables = [*VIEWS, FACTS]
        return {table.name: sorted(map(tuple, connection.execute(select(table)).all()), key=repr) for table in tables}


def busy(desk: Desk) -> None:
    """A day at the desk: everything that can happen happens."""
    ann, ben, eve = (person(desk, name, adjudicates=name == "eve") for name in ("ann", "ben", "eve"))
    machine = ratings(1, -1, None)
    put(desk, *(steps_item(n, prelabel=machine, scores=[0.9, 0.2, 0.5], outcome="wrong") for n in range(6)), wanted=2)
    put(desk, steps_item(90, role="gold", expected=ratings(1, 1, 1)), queue="gain", gold_every=2)
    for who, marks in ((ann, (1, 1, 1)), (ben, (1, -1, None))):
        for item in ("item-0", "item-1", "item-90"):
            say(desk, who, item, ratings(*marks))
    say(desk, ann, "item-2", {"finish": "give_up"})
    say(desk, ann, "item-0", ratings(1, -1, None), phase="revised")
    say(desk, eve, "item-1", ratings(1, 0, -1), phase="adjudication")
    with desk.store.write() as connection:
        desk.note_shown(connection, ben, "item-3", "verdict")
        desk.undo(connection, ben, "u1", "ben/item-90/blind")
    say(desk, ben, "item-3", ratings(0, 0, 0))
    desk.new_token("ann")
    desk.remove_annotator("ben")
    scores = [{"id": f"item-{n}", "scores": [0.9, 0.1 * n], "outcome": "right" if n else None} for n in range(3)]
    with desk.store.write() as connection:
        desk.store.append(connection, "scores", "test", {"items": scores})
    put(desk, queue="disagreement", wanted=1)


def test_the_views_are_what_the_log_says(desk: Desk):
    busy(desk)
    before = views(desk)
    assert all(before[table.name] for table in VIEWS)
    desk.store.rebuild()
    assert views(desk) == before


def test_an_older_desk_is_brought_forward(desk: Desk, place: str, opened: Callable[[str], Desk]):
    busy(desk)
    before = views(desk)
    with desk.store.write() as connection:
        ITEMS.drop(connection)  # as if an older version had kept something else there
        connection.exec_driver_sql("CREATE TABLE desk_items (id TEXT PRIMARY KEY, old INTEGER)")
        connection.execute(FACTS.update().where(FACTS.c.name == "view_version").values(value="0"))
    assert views(opened(place)) == before


def test_a_newer_desk_is_left_alone(desk: Desk, place: str):
    with desk.store.write() as connection:
        connection.execute(FACTS.update().where(FACTS.c.name == "log_version").values(value="99"))
    with pytest.raises(ConfigError, match="newer zifio"):
        Store(place)


def test_an_event_with_a_key_happens_once(desk: Desk):
    ann = person(desk, "ann")
    put(desk, steps_item(1))
    first = say(desk, ann, "item-1", ratings(1, 1, 1), key="k")
    again = say(desk, ann, "item-1", ratings(1, 1, 1), key="k")
    assert (first["fresh"], again["fresh"]) == (True, False) and first["seq"] == again["seq"]
    put(desk, steps_item(1))  # the same item again is no new one
    with desk.store.read() as connection:
        kinds = [event.kind for event in desk.store.events(connection)]
    assert kinds == ["annotator", "item", "label"]
    with pytest.raises(Conflict, match="item-1"):
        put(desk, steps_item(1, n_steps=4))


def test_a_failed_block_leaves_nothing(desk: Desk):
    before = views(desk)
    with pytest.raises(ZeroDivisionError), desk.store.write() as connection:
        desk.store.append_items(connection, "test", [steps_item(1)])
        1 / 0  # noqa: B018
    assert views(desk) == before


def test_strange_text_comes_back_as_it_was(desk: Desk):
    strange = "\x00 \\u0000 ' \" \U0001f40b </script> \u2028 é"
    put(desk, steps_item(1, prompt=strange))
    with desk.store.read() as connection:
        assert desk.item(connection, "item-1").prompt == strange


def test_the_log_is_read_in_parts_and_in_order(desk: Desk):
    put(desk, *(steps_item(n) for n in range(2500)))
    with desk.store.read() as connection:
        assert [event.seq for event in desk.store.events(connection)] == list(range(1, 2501))
        assert [event.seq for event in desk.store.events(connection, after=2400)] == list(range(2401, 2501))


WRITER = """
import sys
from zifio.label.store import Store
store, name = Store(sys.argv[1]), sys.argv[2]
for n in range(10_000):
    with store.write() as connection:
        store.append(connection, "shown", name, {"item": f"{name}-{n}", "what": "verdict"}, key=f"{name}-{n}")
    print(n, flush=True)
"""


def test_killed_writers_lose_nothing_they_acknowledged(desk: Desk, place: str):
    """Two processes write to one desk and are killed with -9: what they said was written is there, without gaps."""
    command = [sys.executable, "-c", WRITER, place]
    writers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")]
    said = []
    for writer in writers:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(20)]
        os.kill(writer.pid, signal.SIGKILL)
        said.append([*lines, *writer.stdout.readlines()])
        writer.stdout.close()
        writer.wait()
    with desk.store.read() as connection:
        rows = connection.execute(select(EVENTS.c.seq, EVENTS.c.key).order_by(EVENTS.c.seq)).all()
    keys = {row.key for row in rows}
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    for name, lines in zip("ab", said, strict=True):
        acknowledged = [int(line) for line in lines if line.endswith("\n")]
        assert acknowledged and {f"{name}-{n}" for n in acknowledged} <= keys
        assert sum(key.startswith(name) for key in keys) <= len(acknowledged) + 1


@pytest.mark.parametrize(
    ("where", "wanted"),
    [("nowhere/at/all/desk.db", "Make nowhere/at/all"), ("mysql://x/y", "PostgreSQL"), ("sqlite://", "wanted a file")],
)
def test_a_wrong_place_is_told(where: str, wanted: str):
    with pytest.raises(ConfigError, match=wanted):
        Store(where)


def test_a_file_that_is_no_desk_is_told_and_kept(tmp_path: Path):
    file = tmp_path / "notes.txt"
    file.write_text("these are my notes, and no database at all " * 50)
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="wanted a desk"):
        Store(file)
    assert file.read_bytes() == before


def test_a_file_may_be_called_anything(tmp_path: Path):
    path = tmp_path / "what? 100% #1.db"
    Store(path).close()
    assert path.exists()


def test_two_at_once_take_different_items(desk: Desk):
    ann, ben = person(desk, "ann"), person(desk, "ben")
    put(desk, *(steps_item(n) for n in range(4)))
    assert not set(take(desk, ann, 2)) & set(take(desk, ben, 2))
