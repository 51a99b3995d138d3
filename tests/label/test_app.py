"""The desk over HTTP: who is let in, what is acknowledged, what a kill leaves; and the command line around it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest
from items import put, ratings, steps_item
from serving import Caller, serving, told
from sqlalchemy import func, select

from zifio import cli
from zifio.config import ConfigError
from zifio.label.desk import Desk
from zifio.label.schema import EVENTS
from zifio.label.store import Store
from zifio.label.verb import serve
from zifio.label.writer import Writer
from zifio.loopback import is_loopback

RIGHT = ratings(1, 1, 1)


@pytest.fixture
def filled(tmp_path: Path) -> str:
    """A desk in a file, with a few items."""
    path = str(tmp_path / "desk.db")
    store = Store(path)
    hostile = "<img src=x onerror=alert(1)> $x^2$ \U0001f40b"
    items = [steps_item(n, prompt=hostile, gold="5", answer="5") for n in range(12)]
    put(Desk(store), *items)
    store.close()
    return path


def key(n: int) -> str:
    return f"key-{n:08d}"


def test_one_person_labels_here_and_nobody_else_gets_in(filled: str):
    with serving(filled) as server, Caller(server.url) as me:
        assert me("me")[1]["name"] == "me"
        status, found = me("next", n=2)
        assert status == 200 and len(found["items"]) == 2 and found["items"][0]["prompt"].startswith("<img")
        item = found["items"][0]["id"]
        for fresh in (True, False):
            status, answer = me("label", key=key(1), item=item, said=RIGHT, ms=900)
            assert (status, answer["fresh"]) == (200, fresh)
        assert me("me")[1]["n_done"] == 1
        assert me("undo", key=key(2), label=key(1))[0] == 200 and me("me")[1]["n_done"] == 0
        assert me("verdict", item=item)[1] == {"outcome": "right", "reason": "", "gold": "5"}
        for path, body, status in (
            ("label", {"key": key(3), "item": item, "said": ratings(1)}, 422),
            ("label", {"key": "short", "item": item, "said": RIGHT}, 422),
            ("label", {"key": key(4), "item": "nothing", "said": RIGHT}, 404),
            ("label", {"key": key(4), "item": item, "said": RIGHT, "phase": "revised"}, 409),
            ("undo", {"key": key(5), "label": key(99)}, 404),
            ("next", {"n": 0}, 422),
        ):
            assert me(path, **body)[0] == status, (path, body)
        page = me.client.get("/")
        assert "script-src 'self'" in page.headers["content-security-policy"] and "unsafe" not in str(page.headers)
        long = me.client.post("/api/label", content=b"x" * (1 << 21), headers={"content-type": "application/json"})
        assert long.status_code == 413
    for more in ({"Host": "evil.example"}, {"X-Forwarded-For": "1.2.3.4"}):
        with serving(filled) as server, Caller(server.url, **more) as stranger:
            assert stranger("me")[0] in (401, 403)
            foreign = httpx2.post(f"{server.url}/api/next", json={"n": 1})  # as another site's page can send it
            assert foreign.status_code == 403


def test_with_accounts_everybody_needs_a_token(filled: str, capsys: pytest.CaptureFixture[str]):
    token = told(capsys, filled, "--add-annotator", "ann")["token"]
    with serving(filled) as server:
        for given, status in (("", 401), ("wrong", 401), (token, 200)):
            with Caller(server.url, given) as caller:
                assert caller("next", n=1)[0] == status
        told(capsys, filled, "--remove-annotator", "ann")  # while the desk is open
        with Caller(server.url, token) as caller:
            assert caller("next", n=1)[0] == 401


def test_beyond_this_machine_the_desk_does_not_open_without_accounts(filled: str):
    store = Store(filled)
    with pytest.raises(ConfigError, match="--add-annotator"):
        serve(Desk(store), "0.0.0.0", 0)
    store.close()
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("::") and not is_loopback("desk.example")


def test_a_killed_desk_has_what_it_acknowledged(filled: str):
    """Labels are sent while the server is killed with -9, again and again with the same keys until they are
    acknowledged: each is there once."""
    acknowledged: list[str] = []
    port = 0
    for turn in range(2):
        with serving(filled, port) as server, Caller(server.url) as me:
            port = server.port
            for n in range(4 * turn, 4 * turn + 4):
                item = me("next", n=1)[1]["items"][0]["id"]
                if n % 4 == 3:
                    threading.Timer(0.0, server.kill).start()
                try:
                    assert me("label", key=key(n), item=item, said=RIGHT)[0] == 200
                    acknowledged.append(item)
                except httpx2.TransportError:
                    with serving(filled, 0) as other, Caller(other.url) as again:
                        assert again("label", key=key(n), item=item, said=RIGHT)[0] == 200
                        acknowledged.append(item)
    assert len(acknowledged) == len(set(acknowledged)) == 8
    store = Store(filled)
    with store.read() as connection:
        logged = [event.body["item"] for event in store.events(connection) if event.kind == "label"]
    store.close()
    assert sorted(logged) == sorted(acknowledged)


def test_what_is_written_together_fails_alone(desk: Desk):
    """Many at once share commits; one that fails takes no other along, and leaves nothing."""
    put(desk, *(steps_item(n) for n in range(20)))

    def job(n: int) -> Any:
        def work(connection: Any) -> int:
            desk.store.append(connection, "shown", "x", {"item": f"item-{n}", "what": "verdict"}, key=f"shown-{n}")
            if n % 5 == 0:
                raise ValueError(f"job {n}")
            return n

        return work

    with Writer(desk.store) as writer:
        futures = [writer.submit(job(n)) for n in range(20)]
        failed = {n for n, future in enumerate(futures) if future.exception() is not None}
    assert failed == {0, 5, 10, 15}
    assert [future.result() for n, future in enumerate(futures) if n % 5] == [n for n in range(20) if n % 5]
    with desk.store.read() as connection:
        there = select(func.count()).select_from(EVENTS).where(EVENTS.c.kind == "shown")
        assert connection.execute(there).scalar() == 16


def test_who_does_not_wait_any_more_stops_nobody(desk: Desk):
    """Requests that were given up before their turn are not done, and the others are; what need not last is told
    first."""
    held, order = threading.Event(), []

    def first(connection: Any) -> str:
        held.wait()
        return "done"

    with Writer(desk.store) as writer:
        waits = writer.submit(first)
        gone, asks, last = (writer.submit(lambda c, n=n: n, lasting=n != "asks") for n in ("gone", "asks", "last"))
        for future, name in ((waits, "waits"), (asks, "asks"), (last, "last")):
            future.add_done_callback(lambda _, name=name: order.append(name))
        assert gone.cancel()
        held.set()
        assert (waits.result(), asks.result(), last.result()) == ("done", "asks", "last")
    assert order.index("asks") < order.index("last") and gone.cancelled()


def test_when_the_database_fails_nobody_is_told_it_is_written(desk: Desk):
    with Writer(desk.store) as writer:
        broken = writer.submit(lambda connection: connection.connection.dbapi_connection.close())
        assert broken.exception() is not None
        assert writer.submit(lambda connection: desk.store.settings(connection).wanted).result() == 1


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, items = str(tmp_path / "desk.db"), tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps(steps_item(n)) + "\n" for n in range(3)))
    assert cli.main(["label", path, "--report"]) == 2 and "--import" in capsys.readouterr().err
    found = told(capsys, path, "--import", str(items))
    assert (found["items"], found["labels"]) == (3, 0)
    assert told(capsys, path, "--import", str(items))["items"] == 0
    assert told(capsys, path, "wanted=2", "queue=gain")["wanted"] == 2
    assert cli.main(["label", path, "wanted=none"]) == 2 and "an integer" in capsys.readouterr().err
    assert cli.main(["label", path, "wanted=2", "--report"]) == 2 and "one thing" in capsys.readouterr().err
    assert cli.main(["label", path, "--export", "prm800k"]) == 2 and "--out" in capsys.readouterr().err
    assert cli.main(["label", path, "--export", "csv", "--out", "x"]) == 2 and "prm800k" in capsys.readouterr().err
    assert told(capsys, path, "--report")["items"] == {
        "work": 3, "gold": 0, "screening": 0, "open": 3, "disputed": 0, "done": 0,
    }  # fmt: skip
    assert told(capsys, path, "--rebuild") == {"rebuilt": True}
    items.write_text('{"id": "x", "prompt": "p"}\n')
    assert cli.main(["label", path, "--import", str(items)]) == 2
    assert "line 1" in capsys.readouterr().err
