"""Which items are before a person now: those they hold, then screening, gold and the queue's.

An item that was shown is leased: it goes to nobody else for a while. How far somebody has come down the queue is
remembered in this process, so that what they labelled is not passed over again each time; it is a shortcut, not a
fact, and may be lost.

The statements are made once, with their values left open: making them takes longer than the database takes to answer.

Try it alone: `pytest tests/label/test_desk.py`
"""

from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Double,
    Integer,
    Text,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)

from zifio.label.schema import ITEMS, LABELS, LEASES
from zifio.label.views import Rules
from zifio.seed import stream


class Before(NamedTuple):
    """What is before a person."""

    items: list[str]
    n_screening: int
    """Screening items that they still have to label before any work."""
    screened_out: bool


class _Place(NamedTuple):
    """How far down the queue somebody has come, and since when the queue is in this order."""

    since: str
    priority: float
    seq: int


_ME, _NOW = bindparam("me", type_=Text), bindparam("now", type_=Double)
_MINE = and_(LABELS.c.annotator == _ME, LABELS.c.phase == "blind", LABELS.c.current)
_SAID = select(LABELS.c.seq).where(LABELS.c.item == ITEMS.c.id, _MINE).exists()
_HELD = (
    select(LEASES.c.item).where(LEASES.c.item == ITEMS.c.id, LEASES.c.annotator == _ME, LEASES.c.until > _NOW).exists()
)
_ELSEWHERE = (
    select(func.count())
    .select_from(LEASES)
    .where(LEASES.c.item == ITEMS.c.id, LEASES.c.annotator != _ME, LEASES.c.until > _NOW)
    .scalar_subquery()
)
_LEASES = (
    select(LEASES.c.item, LEASES.c.until)
    .join(ITEMS, ITEMS.c.id == LEASES.c.item)
    .where(LEASES.c.annotator == _ME)
    .order_by(ITEMS.c.priority.desc(), ITEMS.c.seq.desc())
)
_SCREENING = (
    select(ITEMS.c.id, LABELS.c.seq, LABELS.c.right)
    .join(LABELS, and_(LABELS.c.item == ITEMS.c.id, _MINE), isouter=True)
    .where(ITEMS.c.role == "screening")
    .order_by(ITEMS.c.seq)
)
_GOLD = select(ITEMS.c.id).where(ITEMS.c.role == "gold", ~_SAID, ~_HELD).order_by(ITEMS.c.seq)
_N_SAID = select(func.count()).select_from(LABELS).where(LABELS.c.annotator == _ME)
_OPEN = (
    select(ITEMS.c.id, ITEMS.c.priority, ITEMS.c.seq)
    .where(ITEMS.c.role == "work", ITEMS.c.state == "open", ~_SAID, ~_HELD)
    .where(ITEMS.c.n_labels + _ELSEWHERE < bindparam("wanted", type_=Integer))
    .order_by(ITEMS.c.priority.desc(), ITEMS.c.seq.desc())
    .limit(bindparam("n", type_=Integer))
)
_BEHIND = _OPEN.where(
    tuple_(ITEMS.c.priority, ITEMS.c.seq) < tuple_(bindparam("priority", type_=Double), bindparam("seq", type_=Integer))
)
_EXTEND = update(LEASES).where(LEASES.c.annotator == _ME, LEASES.c.until > _NOW).values(until=bindparam("then"))
_EXPIRE = delete(LEASES).where(LEASES.c.annotator == _ME, LEASES.c.until <= _NOW)
_LEASE = insert(LEASES)


class Draw:
    """Gives out the items of one desk."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}

    def before(self, connection: Connection, me: str, rules: Rules, now: float, n: int) -> Before:
        """Up to `n` items for this person, leased to them."""
        leases = connection.execute(_LEASES, {"me": me}).all()
        held = [row.item for row in leases if row.until > now]
        left, failed = screening(connection, me, rules)
        if failed:
            return Before([], 0, True)
        if left:
            held = [id for id in held if id in left]
            fresh = [id for id in left if id not in held][: max(0, n - len(held))]
        else:
            fresh = self._fresh(connection, me, rules, now, n - len(held), len(held)) if len(held) < n else []
        values = {"me": me, "now": now, "then": now + 60 * rules.settings.lease_minutes}
        if held:
            connection.execute(_EXTEND, values)
        if len(leases) > len(held) and any(row.until <= now for row in leases):
            connection.execute(_EXPIRE, values)
        lease(connection, me, fresh, values["then"], rules.settings.queue)
        return Before([*held, *fresh][:n], len(left), False)

    def _fresh(self, connection: Connection, me: str, rules: Rules, now: float, n: int, n_held: int) -> list[str]:
        """Items that this person does not have before them yet: the queue's, now and then a gold one."""
        gold = self._gold(connection, me, rules, now, n, n_held)
        work = self._from_queue(connection, me, rules, now, n - len(gold)) if len(gold) < n else []
        for place in sorted(gold):
            work.insert(place, gold[place])
        return work

    def _gold(self, connection: Connection, me: str, rules: Rules, now: float, n: int, n_held: int) -> dict[int, str]:
        """Which of the next n places get a gold item, and which: a coin for each place, fixed by person and number."""
        if not rules.has_gold or not rules.settings.gold_every:
            return {}
        left = list(connection.execute(_GOLD.limit(n), {"me": me, "now": now}).scalars())
        said = connection.execute(_N_SAID, {"me": me}).scalar_one()
        coins = [stream(0, "label/gold", me, said + n_held + place).random() for place in range(n)]
        places = [place for place, coin in enumerate(coins) if coin < 1 / rules.settings.gold_every]
        return dict(zip(places, left, strict=False))

    def _from_queue(self, connection: Connection, me: str, rules: Rules, now: float, n: int) -> list[str]:
        """From where this person had come; from the queue's head when it is new, or too little is left behind."""
        values: dict[str, Any] = {"me": me, "now": now, "wanted": rules.settings.wanted, "n": n}
        place, rows = self._places.get(me), []
        if place is not None and place.since == rules.queue_since:
            rows = connection.execute(_BEHIND, {**values, "priority": place.priority, "seq": place.seq}).all()
        if len(rows) < n:
            rows = connection.execute(_OPEN, values).all()
        if rows:
            self._places[me] = _Place(rules.queue_since, rows[-1].priority, rows[-1].seq)
        return [row.id for row in rows]


def screening(connection: Connection, me: str, rules: Rules) -> tuple[list[str], bool]:
    """The screening items this person still has before them, and whether they failed."""
    if not rules.has_screening:
        return [], False
    rows = connection.execute(_SCREENING, {"me": me}).all()
    left = [row.id for row in rows if row.seq is None]
    n_right = sum(bool(row.right) for row in rows)
    return left, not left and n_right < rules.settings.screening_pass * len(rows)


def lease(connection: Connection, me: str, items: list[str], until: float, queue: str) -> None:
    """These items are this person's for now; they hold none of them yet."""
    if items:
        connection.execute(_LEASE, [{"item": id, "annotator": me, "until": until, "queue": queue} for id in items])
