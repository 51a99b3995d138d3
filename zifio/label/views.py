"""What the log means: each event brings the views up to date. Replaying the log gives the same views again.

Everything here is a function of the views and the event alone; the clock, the process and the order of requests have no
part in it.

Try it alone: `pytest tests/label/test_store.py`
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update

from zifio.label.item import Item, Judgement, stance
from zifio.label.queues import Facts, priority
from zifio.label.schema import ANNOTATORS, FACTS, ITEMS, LABELS, LEASES, SHOWN
from zifio.label.settings import Settings
from zifio.tasks.steps import majority

_FACTS = select(FACTS)
_ITEM = select(ITEMS).where(ITEMS.c.id == bindparam("item"))
_SAW = select(SHOWN.c.seq).where(
    SHOWN.c.item == bindparam("item"), SHOWN.c.annotator == bindparam("me"), SHOWN.c.what == "verdict"
)
_FREE = delete(LEASES).where(LEASES.c.item == bindparam("which"), LEASES.c.annotator == bindparam("me"))
_STANCES = (
    select(LABELS.c.item, LABELS.c.annotator, LABELS.c.phase, LABELS.c.stance)
    .where(LABELS.c.current, LABELS.c.stance.is_not(None))
    .order_by(LABELS.c.seq)
)
_STANCES_OF = _STANCES.where(LABELS.c.item == bindparam("item"))
_HAD = select(LABELS.c.seq, LABELS.c.phase).where(
    LABELS.c.item == bindparam("item"), LABELS.c.annotator == bindparam("me"), LABELS.c.current
)
_LABEL = insert(LABELS)
_STATE = (
    update(ITEMS)
    .where(ITEMS.c.id == bindparam("which"))
    .values(n_labels=bindparam("n"), state=bindparam("now"), final=bindparam("outcome_"))
)
_PLACE = update(ITEMS).where(ITEMS.c.id == bindparam("which")).values(priority=bindparam("place"))
_ONE_BY_ONE = ("disagreement", "gain")  # queues in which a label moves its item
_Phases = dict[str, dict[str, str]]


class Event(NamedTuple):
    """One line of the log."""

    seq: int
    at: float
    kind: str
    actor: str
    body: dict[str, Any]


def apply(connection: Connection, event: Event) -> None:
    """Bring the views up to date with one event of another kind than `item`."""
    _APPLY[event.kind](connection, event)


def apply_items(connection: Connection, events: Sequence[Event]) -> None:
    """Bring the views up to date with many events of kind `item`."""
    queue = _settings(connection).queue
    rows = [_item_row(event, queue) for event in events]
    connection.execute(insert(ITEMS), rows)
    for role in {row["role"] for row in rows} - {"work"}:
        write_fact(connection, f"has_{role}", "1")
    write_fact(connection, "queue_since", str(events[-1].seq))


def read_fact(connection: Connection, name: str) -> str | None:
    """A value of the desk's own, None where it is not set."""
    return connection.execute(select(FACTS.c.value).where(FACTS.c.name == name)).scalar()


def write_fact(connection: Connection, name: str, value: str) -> None:
    """Set a value of the desk's own."""
    connection.execute(delete(FACTS).where(FACTS.c.name == name))
    connection.execute(insert(FACTS), {"name": name, "value": value})


class Rules(NamedTuple):
    """What everybody at the desk goes by now."""

    settings: Settings
    queue_since: str
    """Which event last changed the order of the queue."""
    has_gold: bool
    has_screening: bool


def read_rules(connection: Connection) -> Rules:
    """The rules as they are now, in one question."""
    facts = {row.name: row.value for row in connection.execute(_FACTS)}
    settings = _parsed(facts.get("settings", "{}"))
    return Rules(settings, facts.get("queue_since", ""), "has_gold" in facts, "has_screening" in facts)


@lru_cache(maxsize=16)
def _parsed(settings: str) -> Settings:
    return Settings.model_validate_json(settings)


def _settings(connection: Connection) -> Settings:
    return read_rules(connection).settings


def _item_row(event: Event, queue: str) -> dict[str, Any]:
    item = Item.model_validate(event.body, strict=False)
    machine = stance(item.kind, item.prelabel) if item.prelabel else None
    facts = Facts(item.id, event.seq, item.score, item.outcome, machine, ())
    return {
        "id": item.id,
        "seq": event.seq,
        "kind": item.kind,
        "role": item.role,
        "state": "open",
        "priority": priority(queue, facts),
        "n_labels": 0,
        "score": item.score,
        "outcome": item.outcome,
        "machine": machine,
        "expected": stance(item.kind, item.expected) if item.expected else None,
        "final": None,
    }


def _apply_annotator(connection: Connection, event: Event) -> None:
    row = {key: event.body[key] for key in ("id", "name", "adjudicates", "token_hash")}
    connection.execute(insert(ANNOTATORS), {**row, "seq": event.seq})


def _apply_token(connection: Connection, event: Event) -> None:
    chosen = ANNOTATORS.c.id == event.body["id"]
    connection.execute(update(ANNOTATORS).where(chosen).values(token_hash=event.body["token_hash"]))


def _apply_settings(connection: Connection, event: Event) -> None:
    before, now = _settings(connection), Settings.model_validate(event.body)
    write_fact(connection, "settings", now.model_dump_json())
    if now.queue != before.queue:
        _line_up(connection, now)
        write_fact(connection, "queue_since", str(event.seq))
    if (now.wanted, now.adjudicate) != (before.wanted, before.adjudicate):
        labelled = select(ITEMS).where(ITEMS.c.role == "work", ITEMS.c.n_labels > 0)
        for row in connection.execute(labelled).all():
            _restate(connection, row, now)


def _apply_label(connection: Connection, event: Event) -> None:
    body = event.body
    item = connection.execute(_ITEM, {"item": body["item"]}).one()
    said = stance(item.kind, Judgement.model_validate(body["said"], strict=False))
    _retire(connection, body["item"], event.actor, body["phase"])
    row = {
        "seq": event.seq,
        "item": body["item"],
        "annotator": event.actor,
        "phase": body["phase"],
        "stance": said,
        "right": None if item.expected is None else said == item.expected,
        "at": event.at,
        "ms": body.get("ms"),
        "queue": body.get("queue", ""),
        "saw_verdict": _saw(connection, body["item"], event.actor),
        "current": True,
    }
    connection.execute(_LABEL, row)
    connection.execute(_FREE, {"which": body["item"], "me": event.actor})
    _restate(connection, item, _settings(connection))


def _retire(connection: Connection, item: str, annotator: str, phase: str) -> None:
    """Whoever labels an item again takes the label before back; a blind one takes what was said after it along."""
    phases = ("blind", "revised") if phase == "blind" else (phase,)
    had = connection.execute(_HAD, {"item": item, "me": annotator}).all()
    over = [row.seq for row in had if row.phase in phases]
    if over:
        connection.execute(update(LABELS).where(LABELS.c.seq.in_(over)).values(current=False))


def _saw(connection: Connection, item: str, annotator: str) -> bool:
    return connection.execute(_SAW, {"item": item, "me": annotator}).first() is not None


def _apply_undo(connection: Connection, event: Event) -> None:
    label = connection.execute(select(LABELS).where(LABELS.c.seq == event.body["label"])).one()
    _retire(connection, label.item, label.annotator, label.phase)
    item = connection.execute(select(ITEMS).where(ITEMS.c.id == label.item)).one()
    _restate(connection, item, _settings(connection))


def _apply_shown(connection: Connection, event: Event) -> None:
    row = {"item": event.body["item"], "annotator": event.actor, "what": event.body["what"]}
    there = and_(*(SHOWN.c[name] == value for name, value in row.items()))
    if connection.execute(select(SHOWN.c.seq).where(there)).first() is None:
        connection.execute(insert(SHOWN), {**row, "seq": event.seq})


def _apply_scores(connection: Connection, event: Event) -> None:
    """What a machine says now, and the places in the queue that follow from it."""
    settings = _settings(connection)
    said = {one["id"]: one for one in event.body["items"]}
    for row in connection.execute(select(ITEMS).where(ITEMS.c.id.in_(said))).all():
        one = said[row.id]
        values = {"score": min(one["scores"]), "outcome": one["outcome"] or row.outcome}
        facts = _facts(row, ())._replace(**values)
        values["priority"] = priority(settings.queue, facts)
        connection.execute(update(ITEMS).where(ITEMS.c.id == row.id).values(**values))
        if row.n_labels and settings.queue in _ONE_BY_ONE:
            _restate(connection, connection.execute(_ITEM, {"item": row.id}).one(), settings)
    write_fact(connection, "queue_since", str(event.seq))


def _restate(connection: Connection, item: Any, settings: Settings) -> None:
    """Where an item stands after its labels have changed."""
    said = _stances(connection.execute(_STANCES_OF, {"item": item.id})).get(item.id, {})
    opinions = _opinions(said)
    settled = list(said.get("adjudication", {}).values())[-1:]
    final = settled[0] if settled else majority(opinions)
    state = _state(item.role, opinions, bool(settled), settings)
    values = {"which": item.id, "n": len(opinions), "now": state, "outcome_": final if state == "done" else None}
    connection.execute(_STATE, values)
    if settings.queue in _ONE_BY_ONE:
        _write_places(connection, [(priority(settings.queue, _facts(item, opinions)), item.id)])


def _stances(rows: Iterable[Any]) -> dict[str, _Phases]:
    """The stances of each item, by phase and person."""
    said: dict[str, _Phases] = {}
    for row in rows:
        said.setdefault(row.item, {}).setdefault(row.phase, {})[row.annotator] = row.stance
    return said


def _opinions(phases: _Phases) -> list[str]:
    """What people say of one item: each one's blind word, or the one that they revised it to. Whose blind label gave up
    has none, whatever they said once they had seen the machine's."""
    revised = phases.get("revised", {})
    return [revised.get(who, said) for who, said in phases.get("blind", {}).items()]


def _state(role: str, opinions: Sequence[str], settled: bool, settings: Settings) -> str:
    if role != "work":
        return "open"
    if settled:
        return "done"
    if len(opinions) < settings.wanted:
        return "open"
    return "disputed" if settings.adjudicate and len(set(opinions)) > 1 else "done"


def _facts(item: Any, stances: Sequence[str]) -> Facts:
    return Facts(item.id, item.seq, item.score, item.outcome, item.machine, stances)


def _line_up(connection: Connection, settings: Settings) -> None:
    """Give every item its place in the queue."""
    said = _stances(connection.execute(_STANCES)) if settings.queue in _ONE_BY_ONE else {}
    rows = connection.execute(select(ITEMS)).all()
    places = [
        (priority(settings.queue, _facts(row, _opinions(said.get(row.id, {})))), row.id)
        for row in rows
        if row.role == "work"
    ]
    _write_places(connection, places)


def _write_places(connection: Connection, places: Iterable[tuple[float, str]]) -> None:
    rows = [{"place": place, "which": id} for place, id in places]
    if rows:
        connection.execute(_PLACE, rows)


_APPLY = {
    "annotator": _apply_annotator,
    "token": _apply_token,
    "settings": _apply_settings,
    "label": _apply_label,
    "undo": _apply_undo,
    "shown": _apply_shown,
    "scores": _apply_scores,
}
