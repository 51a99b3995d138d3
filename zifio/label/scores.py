"""A process reward model's scores of items that are at the desk, and the verifier's outcome: the queues follow them.

A line is `{"id": "q1", "scores": [0.9, 0.2]}`, with `"outcome": "wrong"` where it is known. After each round of
training the new model's scores take the place of the old one's, so that what convinces it wrongly comes next.

Try it alone: `zifio label desk.db --scores scores.jsonl`
"""

from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field
from sqlalchemy import select

from zifio.config import Config, ConfigError, build
from zifio.data.sources import read_object
from zifio.label.desk import Desk
from zifio.label.item import Score
from zifio.label.schema import ITEMS
from zifio.tasks.task import Outcome

_AT_ONCE = 500


class Scored(Config):
    """What a machine says of one item now."""

    id: str
    """The item's."""
    scores: tuple[Score, ...] = Field(min_length=1)
    """How likely each step is right; one number for anything else than steps."""
    outcome: Outcome | None = None
    """The verifier's verdict; left out, the one before stays."""


def import_scores(desk: Desk, path: Path) -> dict[str, Any]:
    """Give every item of the file its scores; how many it were. Raises ConfigError with the line that is wrong."""
    n = 0
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: wanted a file with a JSON object a line, came: {error.strerror}.") from None
    with file:
        numbered = enumerate(file, 1)
        while part := list(islice(numbered, _AT_ONCE)):
            scored = {number: _read(path, number, line) for number, line in part if line.strip()}
            with desk.store.write() as connection:
                ids = [one.id for one in scored.values()]
                known = set(connection.execute(select(ITEMS.c.id).where(ITEMS.c.id.in_(ids))).scalars())
                for number, one in scored.items():
                    if one.id not in known:
                        raise ConfigError(f"{path}: line {number}: id: wanted an item of this desk, came {one.id!r}.")
                if scored:
                    body = {"items": [one.model_dump(mode="json") for one in scored.values()]}
                    desk.store.append(connection, "scores", str(path), body)
            n += len(scored)
    return {"path": str(path), "items": n}


def _read(path: Path, number: int, line: bytes) -> Scored:
    where = f"{path}: line {number}"
    return build(Scored, read_object(line, where), where)
