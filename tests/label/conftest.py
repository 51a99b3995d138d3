"""Desks for tests: one in SQLite and one in a real PostgreSQL, the same tests on both."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from postgres import running
from sqlalchemy import create_engine, text

from zifio.label.desk import Desk
from zifio.label.store import Store


@pytest.fixture(scope="session")
def postgres() -> Generator[str, None, None]:
    """The URL of a PostgreSQL that runs as long as the tests."""
    with running() as url:
        yield url


_made = iter(range(1_000_000))


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a desk may be made: a path, then a URL."""
    if request.param == "sqlite":
        return str(tmp_path / "desk.db")
    server, name = request.getfixturevalue("postgres"), f"desk{next(_made)}"
    engine = create_engine(
        f"{server}/postgres".replace("postgresql:", "postgresql+pg8000:"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server}/{name}"


class Clock:
    """Time that goes on when told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(clock: Clock) -> Generator[Callable[[str], Desk], None, None]:
    """Opens desks, and closes them after the test."""
    stores: list[Store] = []

    def open_desk(where: str) -> Desk:
        stores.append(Store(where, clock))
        return Desk(stores[-1])

    yield open_desk
    for store in stores:
        store.close()


@pytest.fixture
def desk(place: str, opened: Callable[[str], Desk]) -> Desk:
    """A new desk, in SQLite and in PostgreSQL."""
    return opened(place)
