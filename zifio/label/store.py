"""A desk's store: an append-only log in SQLite or PostgreSQL, and views of it that are written in the same transaction.

What is acknowledged is committed, and to the disk: SQLite runs with a write-ahead log that is synced at every commit.
An event with a key happens once, however often it is sent. Writers take turns, so that the order of the log is the
order of commits.

Try it alone: `pytest tests/label/test_store.py`
"""

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import URL, Connection, Engine, bindparam, create_engine, event, func, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from zifio.config import ConfigError
from zifio.label.schema import EVENTS, FACTS, LEASES, LOG_VERSION, VIEW_VERSION, VIEWS
from zifio.label.settings import Settings
from zifio.label.views import Event, apply, apply_items, read_fact, read_rules, write_fact

_BUSY_MS = 60_000
_LOCK = 0x7A6966696F  # PostgreSQL's advisory lock of our writers
_AT_ONCE = 1000  # events replayed between two reads


_BY_KEY = select(EVENTS).where(EVENTS.c.key == bindparam("key"))
_LAST = select(func.max(EVENTS.c.seq))
_INSERT = insert(EVENTS)


class Appended(NamedTuple):
    """An event's place in the log, and whether it is new (or was sent before)."""

    seq: int
    fresh: bool


class Conflict(ValueError):
    """A key came a second time with something else to say."""


class Store:
    """A desk at a path (SQLite) or a URL (`postgresql://...`). Made when it does not exist, brought forward when
    old."""

    def __init__(self, where: str | Path, clock: Callable[[], float] = time.time) -> None:
        self.where, self.clock = str(where), clock
        self.engine = _engine(self.where)
        try:
            self._bring_forward()
        except ConfigError:
            self.close()
            raise
        except (SQLAlchemyError, sqlite3.Error) as error:
            self.close()
            reason = str(getattr(error, "orig", error)).splitlines()[0]
            raise ConfigError(
                f"{_shown(self.where)}: wanted a desk, or a place to make one, came: {reason}. Give a file "
                "(desk.db), or a URL (postgresql://user:password@host/name) of a database that runs."
            ) from None

    def close(self) -> None:
        """Let go of every connection."""
        self.engine.dispose()

    @contextlib.contextmanager
    def read(self) -> Generator[Connection, None, None]:
        """A transaction that sees one state of the desk and changes nothing."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self) -> Generator[Connection, None, None]:
        """A transaction that is committed when the block ends, or not at all. One at a time, in all processes."""
        with self.engine.connect() as connection:
            connection = connection.execution_options(desk_writes=True)
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
                yield connection

    def append(
        self,
        connection: Connection,
        kind: str,
        actor: str,
        body: dict[str, Any],
        key: str | None = None,
        known_new: bool = False,
    ) -> Appended:
        """Log an event and bring the views up to date.

        With a `key` that is there already nothing happens. Raises Conflict when it said something else then. With
        `known_new` the caller has looked already.
        """
        text = _dump(body)
        if key is not None and not known_new:
            before = connection.execute(_BY_KEY, {"key": key}).first()
            if before is not None:
                if before.body != text:
                    raise Conflict(f"{key}: came again with another content.")
                return Appended(before.seq, False)
        seq = _last(connection) + 1
        row = {"seq": seq, "at": self.clock(), "kind": kind, "actor": actor, "key": key, "body": text}
        connection.execute(_INSERT, row)
        apply(connection, Event(seq, row["at"], kind, actor, json.loads(text)))
        return Appended(seq, True)

    def append_items(self, connection: Connection, actor: str, items: Sequence[dict[str, Any]]) -> int:
        """Log many items at once; how many were new comes back. Raises Conflict for one that is there otherwise."""
        keys = [item_key(body["id"]) for body in items]
        there = connection.execute(select(EVENTS.c.key, EVENTS.c.body).where(EVENTS.c.key.in_(keys)))
        known = {row.key: row.body for row in there}
        rows: list[dict[str, Any]] = []
        seq, at = _last(connection), self.clock()
        for key, body in zip(keys, items, strict=True):
            text = _dump(body)
            if key not in known:
                known[key] = text
                seq += 1
                rows.append({"seq": seq, "at": at, "kind": "item", "actor": actor, "key": key, "body": text})
            elif known[key] != text:
                raise Conflict(f"item {body['id']!r}: is there already, with another content. Give it another id.")
        if rows:
            connection.execute(insert(EVENTS), rows)
            apply_items(connection, [_event(row) for row in rows])
        return len(rows)

    def find(self, connection: Connection, key: str) -> Event | None:
        """The event with this key, where there is one."""
        row = connection.execute(_BY_KEY, {"key": key}).mappings().first()
        return None if row is None else _event(dict(row))

    def settings(self, connection: Connection) -> Settings:
        """The desk's rules as they are now."""
        return read_rules(connection).settings

    def events(self, connection: Connection, after: int = 0) -> Iterator[Event]:
        """The log in order, behind the event `after`, a part at a time."""
        while True:
            query = select(EVENTS).where(EVENTS.c.seq > after).order_by(EVENTS.c.seq).limit(_AT_ONCE)
            rows = connection.execute(query).mappings().all()
            yield from (_event(dict(row)) for row in rows)
            if len(rows) < _AT_ONCE:
                return
            after = rows[-1]["seq"]

    def rebuild(self) -> None:
        """Throw the views away and make them again from the log."""
        with self.write() as connection:
            self._replay(connection)

    def _bring_forward(self) -> None:
        with self.write() as connection:
            EVENTS.create(connection, checkfirst=True)
            FACTS.create(connection, checkfirst=True)
            log = int(read_fact(connection, "log_version") or LOG_VERSION)
            views = int(read_fact(connection, "view_version") or 0)
            if log > LOG_VERSION or views > VIEW_VERSION:
                raise ConfigError(
                    f"{_shown(self.where)}: wanted a desk of version {LOG_VERSION}.{VIEW_VERSION} or older, came "
                    f"{log}.{views}. A newer zifio wrote it: use that one."
                )
            if views < VIEW_VERSION:
                LEASES.drop(connection, checkfirst=True)
                LEASES.create(connection)
                self._replay(connection)
                write_fact(connection, "log_version", str(LOG_VERSION))
                write_fact(connection, "view_version", str(VIEW_VERSION))

    def _replay(self, connection: Connection) -> None:
        for table in VIEWS:
            table.drop(connection, checkfirst=True)
            table.create(connection)
        write_fact(connection, "settings", Settings().model_dump_json())
        waiting: list[Event] = []
        for one in self.events(connection):
            if one.kind == "item":
                waiting.append(one)
            if waiting and (one.kind != "item" or len(waiting) == _AT_ONCE):
                apply_items(connection, waiting)
                waiting = []
            if one.kind != "item":
                apply(connection, one)
        if waiting:
            apply_items(connection, waiting)


def item_key(id: str) -> str:
    """The key under which an item is logged once."""
    return f"item:{id}"


def token_hash(token: str) -> str:
    """What is kept of a token. Tokens are long and random, so nothing is gained by a slower digest."""
    return hashlib.sha256(token.encode()).hexdigest()


def _event(row: dict[str, Any]) -> Event:
    return Event(row["seq"], row["at"], row["kind"], row["actor"], json.loads(row["body"]))


def _dump(body: dict[str, Any]) -> str:
    """JSON in ASCII, so that no text of a model is too strange for a database. Equal content gives equal text."""
    return json.dumps(body, sort_keys=True, allow_nan=False, separators=(",", ":"))


def _last(connection: Connection) -> int:
    return connection.execute(_LAST).scalar() or 0


def _shown(where: str) -> str:
    """Where the desk is, without a password."""
    return make_url(where).render_as_string(hide_password=True) if "://" in where else where


def _engine(where: str) -> Engine:
    if "://" not in where:
        path = Path(where)
        if not path.parent.is_dir():
            raise ConfigError(f"{where}: wanted a folder to keep the desk in, came none. Make {path.parent} first.")
        parsed = URL.create("sqlite", database=str(path))
        return _sqlite(parsed)
    try:
        parsed = make_url(where)
    except ArgumentError:
        raise ConfigError(f"{where}: wanted a URL such as postgresql://user@host/name, came none.") from None
    if parsed.drivername in ("postgres", "postgresql"):
        return create_engine(parsed.set(drivername="postgresql+pg8000"), pool_pre_ping=True)
    if parsed.get_backend_name() == "postgresql":
        return create_engine(parsed, pool_pre_ping=True)
    if parsed.drivername != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise ConfigError(f"{_shown(where)}: wanted a file, or a URL of PostgreSQL, came neither.")
    return _sqlite(parsed)


def _sqlite(parsed: URL) -> Engine:
    engine = create_engine(parsed, connect_args={"check_same_thread": False, "timeout": _BUSY_MS / 1000})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # we begin transactions ourselves, at once for writing
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_BUSY_MS}", "cache_size=-65536"):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("desk_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
