"""What happens at the desk: who may label, what they get next, what becomes of what they say.

Everything works inside a transaction of `label.store`; a refusal says why and changes nothing. Nobody is ever given
what another said, what a machine said or what is expected before their own label is in the log.

Try it alone: `pytest tests/label/test_desk.py`
"""

import json
import secrets
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, and_, bindparam, delete, func, or_, select

from zifio.config import ConfigError, build
from zifio.label.draw import Draw, lease, screening
from zifio.label.item import Item, Judgement, content_id, fault
from zifio.label.schema import ANNOTATORS, EVENTS, ITEMS, LABELS, LEASES
from zifio.label.settings import Settings
from zifio.label.store import Store, token_hash
from zifio.label.views import Rules, read_rules
from zifio.seed import stream

Phase = Literal["blind", "revised", "adjudication"]
LONE = "me"
MOST_AT_ONCE = 20
LONGEST_MS = 86_400_000
"""The most time that a label says it took: a day."""


class Refused(ValueError):
    """The desk does not do that; `status` is HTTP's."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Annotator(NamedTuple):
    """Somebody who labels."""

    id: str
    name: str
    adjudicates: bool


_WHO = select(ANNOTATORS).where(ANNOTATORS.c.token_hash == bindparam("hash"))
_ITEMS = (
    select(ITEMS.c.id, EVENTS.c.body)
    .join(EVENTS, EVENTS.c.seq == ITEMS.c.seq)
    .where(ITEMS.c.id.in_(bindparam("ids", expanding=True)))
)
_QUEUE = select(LEASES.c.queue).where(LEASES.c.item == bindparam("item"), LEASES.c.annotator == bindparam("me"))


class Desk:
    """One desk: its store, and who gives out its items."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._draw = Draw()

    # Accounts -------------------------------------------------------------------------------------------------

    def add_annotator(self, name: str, adjudicates: bool = False) -> str:
        """A new account; its token comes back, which is kept nowhere else. Raises ConfigError for a name in use."""
        name = name.strip()
        if not name or len(name) > 100 or not name.isprintable():
            raise ConfigError(f"annotator: wanted a name of at most 100 printable characters, came {name[:120]!r}.")
        token = secrets.token_urlsafe(24)
        with self.store.write() as connection:
            if connection.execute(select(ANNOTATORS.c.id).where(ANNOTATORS.c.name == name)).first():
                raise ConfigError(
                    f"annotator {name!r}: wanted a new name, came one in use. Choose another, or give them a new token "
                    f"with --new-token {name!r}."
                )
            self._log_annotator(connection, name, adjudicates, token)
        return token

    def new_token(self, name: str) -> str:
        """Another token for an account; the one before no longer works. Raises ConfigError when there is no such
        name."""
        token = secrets.token_urlsafe(24)
        self._change_token(name, token)
        return token

    def remove_annotator(self, name: str) -> None:
        """Their token no longer works; their labels stay. Raises ConfigError when there is no such name."""
        self._change_token(name, None)

    def _change_token(self, name: str, token: str | None) -> None:
        with self.store.write() as connection:
            row = connection.execute(select(ANNOTATORS.c.id).where(ANNOTATORS.c.name == name)).first()
            if row is None:
                names = connection.execute(select(ANNOTATORS.c.name).order_by(ANNOTATORS.c.name)).scalars().all()
                raise ConfigError(
                    f"annotator {name!r}: wanted one of {', '.join(names) or 'nobody yet'}, came none of them. Add "
                    "them with --add-annotator."
                )
            self.store.append(
                connection, "token", "desk", {"id": row.id, "token_hash": token_hash(token) if token else None}
            )

    def _log_annotator(
        self, connection: Connection, name: str, adjudicates: bool, token: str | None, id: str = ""
    ) -> Annotator:
        id = id or content_id("annotator", name)
        body = {"id": id, "name": name, "adjudicates": adjudicates, "token_hash": token_hash(token) if token else None}
        self.store.append(connection, "annotator", "desk", body, key=f"annotator:{id}")
        return Annotator(id, name, adjudicates)

    def annotator_named(self, connection: Connection, name: str, adjudicates: bool = False) -> Annotator:
        """The account of this name or id, made without a token where there is none: whose labels come from a file."""
        named = or_(ANNOTATORS.c.name == name, ANNOTATORS.c.id == name)
        row = connection.execute(select(ANNOTATORS).where(named)).first()
        if row is not None:
            return Annotator(row.id, row.name, row.adjudicates)
        return self._log_annotator(connection, name, adjudicates, None, id=name)

    def has_accounts(self, connection: Connection) -> bool:
        """Whether anybody has a token: then everybody needs one."""
        return (
            connection.execute(select(ANNOTATORS.c.id).where(ANNOTATORS.c.token_hash.is_not(None))).first() is not None
        )

    def has_items(self, connection: Connection) -> bool:
        """Whether there is anything to label."""
        return connection.execute(select(ITEMS.c.id).limit(1)).first() is not None

    def who(self, connection: Connection, token: str, alone: bool) -> Annotator:
        """Whose token this is. Without accounts, and `alone` on this machine, it is the one person at it."""
        if token:
            row = connection.execute(_WHO, {"hash": token_hash(token)}).first()
            if row is not None:
                return Annotator(row.id, row.name, row.adjudicates)
        elif alone and not self.has_accounts(connection):
            return self.annotator_named(connection, LONE, adjudicates=True)
        raise Refused(401, "Wanted a token of this desk. Open the link you were given.")

    # Work -----------------------------------------------------------------------------------------------------

    def next_items(self, connection: Connection, me: Annotator, n: int) -> dict[str, Any]:
        """Up to `n` items that are before this person now, the ones they hold already first, and where they stand."""
        n, now = max(1, min(n, MOST_AT_ONCE)), self.store.clock()
        rules = read_rules(connection)
        before = self._draw.before(connection, me.id, rules, now, n)
        items = self.items(connection, before.items)
        return {
            "items": [shown(item, me, rules.settings) for item in items],
            "screened_out": before.screened_out,
            "screening": before.n_screening,
        }

    def items(self, connection: Connection, ids: list[str]) -> list[Item]:
        """The items of these names that are here, in this order."""
        found = {row.id: Item.model_validate_json(row.body) for row in connection.execute(_ITEMS, {"ids": ids})}
        return [found[id] for id in ids if id in found]

    def item(self, connection: Connection, id: str) -> Item:
        """The item of this name. Raises Refused when there is none."""
        found = self.items(connection, [id])
        if not found:
            raise Refused(404, f"No item {id[:100]!r} here.")
        return found[0]

    # Labels ---------------------------------------------------------------------------------------------------

    def label(
        self,
        connection: Connection,
        me: Annotator,
        key: str,
        item: str,
        said: dict[str, Any],
        ms: int,
        phase: Phase = "blind",
    ) -> dict[str, Any]:
        """Log what this person says about an item. Sent again under the same key it is the same label.

        What comes back acknowledges it, with the machine's pre-label where that may be seen now. Raises Refused.
        """
        whole = self.item(connection, item)
        sent = content_id(item, said, ms, phase)
        name = _label_key(me, key)
        before = self.store.find(connection, name)
        if before is not None:
            if before.body["sent"] != sent:
                raise Refused(409, "This key was used for another label.")
            return {"seq": before.seq, "fresh": False, **self._revealed(connection, me, whole, phase)}
        judgement = self._judgement(whole, me, said)
        rules = read_rules(connection)
        self._allow(connection, me, whole, phase, rules)
        queue = connection.execute(_QUEUE, {"item": item, "me": me.id}).scalar()
        body = {
            "item": item,
            "phase": phase,
            "said": judgement.model_dump(mode="json"),
            "ms": ms,
            "queue": queue or rules.settings.queue,
            "sent": sent,
        }
        seq = self.store.append(connection, "label", me.id, body, key=name, known_new=True).seq
        return {"seq": seq, "fresh": True, **self._revealed(connection, me, whole, phase)}

    def _judgement(self, item: Item, me: Annotator, said: dict[str, Any]) -> Judgement:
        try:
            judgement = build(Judgement, said, "label")
        except ValueError as error:
            raise Refused(422, str(error)) from None
        wrong = fault(item, judgement)
        if wrong:
            raise Refused(422, f"label: {wrong}")
        return turned(judgement, item, me)

    def _allow(self, connection: Connection, me: Annotator, item: Item, phase: Phase, rules: Rules) -> None:
        """Raises Refused when it is not for this person to say this now."""
        if phase == "adjudication":
            if not me.adjudicates:
                raise Refused(403, "Only an adjudicator settles what others disagree on.")
            state = connection.execute(select(ITEMS.c.state).where(ITEMS.c.id == item.id)).scalar_one()
            if state == "open":
                raise Refused(409, "Nobody disagrees on this item yet.")
        elif phase == "blind":
            if item.role == "work" and screening(connection, me.id, rules)[1]:
                raise Refused(403, "The first items did not go well enough to go on.")
        elif phase == "revised":
            if item.prelabel is None or not rules.settings.reveal:
                raise Refused(409, "There is nothing here to revise a label after.")
            if not self._labelled(connection, me, item.id):
                raise Refused(409, "Say first what you think without the machine's label.")

    def _labelled(self, connection: Connection, me: Annotator, item: str) -> bool:
        return connection.execute(select(LABELS.c.seq).where(LABELS.c.item == item, _current(me))).first() is not None

    def _revealed(self, connection: Connection, me: Annotator, item: Item, phase: Phase) -> dict[str, Any]:
        """The machine's pre-label, once the blind label is in."""
        if phase != "blind" or item.prelabel is None or not self.store.settings(connection).reveal:
            return {"prelabel": None}
        self.note_shown(connection, me, item.id, "prelabel")
        return {"prelabel": turned(item.prelabel, item, me).model_dump(mode="json")}

    def undo(self, connection: Connection, me: Annotator, key: str, label: str) -> dict[str, Any]:
        """Take back the label that was sent under the key `label`; its item is before this person again.

        Raises Refused when there is no such label of theirs.
        """
        said = self.store.find(connection, _label_key(me, label))
        if said is None:
            raise Refused(404, "There is no such label to take back.")
        item = self.item(connection, said.body["item"])
        done = self.store.append(
            connection, "undo", me.id, {"label": said.seq}, key=f"undo:{me.id}:{content_id(key, label)}"
        )
        if said.body["phase"] == "blind":
            held = and_(LEASES.c.item == item.id, LEASES.c.annotator == me.id)
            connection.execute(delete(LEASES).where(held))
            until = self.store.clock() + 60 * self.store.settings(connection).lease_minutes
            lease(connection, me.id, [item.id], until, said.body["queue"])
        return {"seq": done.seq, "fresh": done.fresh}

    # What may be asked for ------------------------------------------------------------------------------------

    def may_see_verdict(self, connection: Connection, me: Annotator, item: str) -> Item:
        """The item, when this person may ask for the verifier's verdict on it. Raises Refused otherwise."""
        whole = self.item(connection, item)
        when = self.store.settings(connection).verdict
        if when == "never":
            raise Refused(403, "This desk shows no verdicts.")
        if when == "after" and not self._labelled(connection, me, item):
            raise Refused(403, "This desk shows the verdict after your label.")
        return whole

    def note_shown(self, connection: Connection, me: Annotator, item: str, what: str) -> None:
        """Log that this person has seen the verdict, or the pre-label, of this item."""
        key = f"shown:{me.id}:{what}:{content_id(item)}"
        self.store.append(connection, "shown", me.id, {"item": item, "what": what}, key=key)

    def disputed(self, connection: Connection, me: Annotator, n: int = 1) -> dict[str, Any]:
        """Items on which labellers differ, with what each said, unnamed; first those this person did not label.

        Raises Refused for who is no adjudicator.
        """
        if not me.adjudicates:
            raise Refused(403, "Only an adjudicator sees what others said.")
        settings = self.store.settings(connection)
        mine = select(LABELS.c.seq).where(LABELS.c.item == ITEMS.c.id, _current(me))
        open_ = select(ITEMS.c.id).where(ITEMS.c.role == "work", ITEMS.c.state == "disputed")
        query = open_.order_by(mine.exists(), ITEMS.c.priority.desc(), ITEMS.c.seq.desc())
        ids = list(connection.execute(query.limit(max(1, min(n, MOST_AT_ONCE)))).scalars())
        items = []
        for item in self.items(connection, ids):
            opinions = [turned(said, item, me).model_dump(mode="json") for said in self._opinions(connection, item.id)]
            items.append({**shown(item, me, settings), "reveals": False, "opinions": opinions})
        return {"items": items}

    def _opinions(self, connection: Connection, item: str) -> list[Judgement]:
        """What people say about an item, each one's last word, in the order of their first."""
        theirs = and_(LABELS.c.item == item, LABELS.c.current, LABELS.c.phase != "adjudication")
        query = select(LABELS.c.annotator, EVENTS.c.body).join(EVENTS, EVENTS.c.seq == LABELS.c.seq).where(theirs)
        last: dict[str, Judgement] = {}
        for row in connection.execute(query.where(LABELS.c.stance.is_not(None)).order_by(LABELS.c.seq)):
            last[row.annotator] = _said(row.body)
        return list(last.values())

    def progress(self, connection: Connection, me: Annotator) -> dict[str, Any]:
        """How many items there are, are done and are disputed, and how many labels are this person's."""
        work = select(ITEMS.c.state, func.count()).where(ITEMS.c.role == "work").group_by(ITEMS.c.state)
        states = {row[0]: row[1] for row in connection.execute(work)}
        mine = select(func.count()).select_from(LABELS).where(_current(me))
        return {
            "n_items": sum(states.values()),
            "n_done": states.get("done", 0),
            "n_disputed": states.get("disputed", 0),
            "n_mine": connection.execute(mine).scalar_one(),
        }


def shown(item: Item, me: Annotator, settings: Settings) -> dict[str, Any]:
    """What a person sees of an item before they label it: never a label, a score, a verdict or the right answer."""
    texts: dict[str, Any] = {"id": item.id, "kind": item.kind, "prompt": item.prompt, "stop": settings.stop}
    texts |= {"reveals": settings.reveal and item.prelabel is not None, "asks": settings.verdict}
    if item.kind == "steps":
        return {**texts, "steps": item.steps, "alternatives": item.alternatives, "answer": item.answer}
    if item.kind == "answer":
        return {**texts, "response": item.response}
    first, second = (item.b, item.a) if swaps(item, me) else (item.a, item.b)
    return {**texts, "a": first, "b": second}


def swaps(item: Item, me: Annotator) -> bool:
    """Whether this person sees a pair the other way round: a coin, so that no place is favoured."""
    return item.kind == "pair" and stream(0, "label/pair", item.id, me.id).random() < 0.5


def turned(said: Judgement, item: Item, me: Annotator) -> Judgement:
    """A judgement of a pair between how this person sees it and how it is kept; its own inverse."""
    if said.value not in ("a", "b") or not swaps(item, me):
        return said
    return said.model_copy(update={"value": "b" if said.value == "a" else "a"})


def _said(body: str) -> Judgement:
    return Judgement.model_validate(json.loads(body)["said"], strict=False)


def _label_key(me: Annotator, key: str) -> str:
    return f"label:{me.id}:{content_id(key)}"


def _current(me: Annotator) -> Any:
    """A blind label of this person's that still holds."""
    return and_(LABELS.c.annotator == me.id, LABELS.c.phase == "blind", LABELS.c.current)
