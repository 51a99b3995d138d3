"""What happens at the desk: blind, once each, gold and screening, undo, disputes; nothing is shown before its time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Clock
from items import person, put, ratings, row_of, say, steps_item, take

from zifio.config import ConfigError
from zifio.label.desk import Annotator, Desk, Refused
from zifio.label.item import Item, Judgement, fault, stance
from zifio.label.queues import Facts, belief, expected_gain, priority
from zifio.label.schema import ITEMS, LABELS
from zifio.label.settings import Settings

RIGHT, WRONG = ratings(1, 1, 1), ratings(1, -1, None)


def state(desk: Desk, item: str) -> tuple[str, str | None, int]:
    row = row_of(desk, ITEMS, id=item)
    return row.state, row.final, row.n_labels


def refused(desk: Desk, status: int, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Refused) as caught:
        say(desk, *args, **kwargs)
    assert caught.value.status == status
    return str(caught.value)


def test_a_token_is_shown_once_and_not_kept(desk: Desk):
    token = desk.add_annotator("ann")
    with desk.store.write() as connection:
        assert desk.who(connection, token, alone=False).name == "ann"
        log = [json.dumps(event.body) for event in desk.store.events(connection)]
        with pytest.raises(Refused):
            desk.who(connection, token + "x", alone=True)
        with pytest.raises(Refused):
            desk.who(connection, "", alone=True)  # with accounts nobody is let in without a token
    assert len(token) >= 32 and not any(token in line for line in log)
    other = desk.new_token("ann")
    with desk.store.write() as connection:
        assert desk.who(connection, other, alone=False).name == "ann"
        with pytest.raises(Refused):
            desk.who(connection, token, alone=False)
    desk.remove_annotator("ann")
    with desk.store.write() as connection, pytest.raises(Refused):
        desk.who(connection, other, alone=False)


def test_names_are_told_apart(desk: Desk):
    desk.add_annotator("ann")
    with pytest.raises(ConfigError, match="in use"):
        desk.add_annotator(" ann ")
    with pytest.raises(ConfigError, match="one of ann"):
        desk.new_token("anne")
    with pytest.raises(ConfigError, match="printable"):
        desk.add_annotator("a\nb")


def test_alone_on_a_machine_no_account_is_needed(desk: Desk):
    with desk.store.write() as connection:
        me = desk.who(connection, "", alone=True)
        assert me.adjudicates and desk.who(connection, "", alone=True) == me
        with pytest.raises(Refused):
            desk.who(connection, "", alone=False)


def test_nothing_is_shown_before_its_time(desk: Desk):
    """Whatever of an item is not for its labeller's eyes is a text that no answer of the desk holds."""
    ann, ben = person(desk, "ann"), person(desk, "ben")
    secret = {"answer": "17", "gold": "SECRET", "problem": "SECRET", "source": "SECRET", "task": {"name": "SECRET"}}
    secret |= {"outcome": "wrong", "scores": [0.123, 0.123, 0.123], "prelabel": {**WRONG, "note": "SECRET"}}
    put(desk, steps_item(1, **secret), steps_item(2, role="gold", expected={**RIGHT, "note": "SECRET"}), gold_every=1)
    put(desk, wanted=2)
    say(desk, ben, "item-1", {**WRONG, "note": "SECRET", "correction": "SECRET"})
    with desk.store.write() as connection:
        got = json.dumps(desk.next_items(connection, ann, 5)) + json.dumps(desk.progress(connection, ann))
        assert "item-1" in got and "item-2" in got and "gold" not in got
        assert not any(word in got for word in ("SECRET", "0.123", "ratings", "wrong", "ben"))
        with pytest.raises(Refused):
            desk.disputed(connection, ann)
    told = say(desk, ann, "item-1", RIGHT)
    assert told["prelabel"]["note"] == "SECRET" and told["prelabel"]["ratings"] == [1, -1, None]


def test_each_item_goes_to_as_many_as_wanted_and_to_nobody_twice(desk: Desk):
    people = [person(desk, name) for name in ("ann", "ben", "eve")]
    put(desk, *(steps_item(n) for n in range(12)), wanted=2)
    given: dict[str, list[str]] = {}
    for _ in range(20):
        for who in people:
            for item in take(desk, who):
                say(desk, who, item, RIGHT)
                given.setdefault(item, []).append(who.name)
    assert len(given) == 12
    assert all(len(names) == len(set(names)) == 2 for names in given.values())
    assert all(state(desk, item) == ("done", "no error", 2) for item in given)


def test_what_somebody_holds_is_theirs_until_its_time_is_over(desk: Desk, clock: Clock):
    ann, ben = person(desk, "ann"), person(desk, "ben")
    put(desk, steps_item(1))
    assert take(desk, ann) == take(desk, ann) == ["item-1"] and take(desk, ben) == []
    clock.now += 31 * 60
    assert take(desk, ben) == ["item-1"] and take(desk, ann) == []
    assert say(desk, ann, "item-1", RIGHT)["fresh"]  # late, and kept all the same: it was work


def test_who_gives_up_makes_room_for_another(desk: Desk):
    ann, ben = person(desk, "ann"), person(desk, "ben")
    put(desk, steps_item(1))
    take(desk, ann)
    say(desk, ann, "item-1", {"finish": "give_up"})
    assert take(desk, ann) == [] and take(desk, ben) == ["item-1"]
    assert state(desk, "item-1") == ("open", None, 0)


def test_undo_puts_the_item_back(desk: Desk):
    ann, ben = person(desk, "ann"), person(desk, "ben")
    put(desk, steps_item(1), steps_item(2))
    first = take(desk, ann)[0]
    say(desk, ann, first, RIGHT, key="k")
    for _ in range(2):  # the second is the same undo sent again
        with desk.store.write() as connection:
            desk.undo(connection, ann, "u", "k")
        assert state(desk, first) == ("open", None, 0) and take(desk, ann) == [first]
    say(desk, ann, first, WRONG, key="k2")
    assert state(desk, first) == ("done", "error 2", 1)
    with desk.store.write() as connection, pytest.raises(Refused):
        desk.undo(connection, ben, "u", "k2")  # another's


def test_a_second_label_takes_the_place_of_the_first(desk: Desk):
    ann = person(desk, "ann")
    put(desk, steps_item(1))
    say(desk, ann, "item-1", RIGHT, key="one")
    say(desk, ann, "item-1", WRONG, key="two")
    assert state(desk, "item-1") == ("done", "error 2", 1)
    with desk.store.read() as connection:
        assert [row.current for row in connection.execute(LABELS.select().order_by(LABELS.c.seq))] == [False, True]


def test_a_key_means_one_label(desk: Desk):
    ann, ben = person(desk, "ann"), person(desk, "ben")
    put(desk, steps_item(1), steps_item(2), wanted=2)
    say(desk, ann, "item-1", RIGHT, key="k")
    refused(desk, 409, ann, "item-1", WRONG, key="k")
    assert say(desk, ben, "item-1", RIGHT, key="k")["fresh"]  # keys are each person's own
    assert state(desk, "item-1")[0] == "done"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (ratings(1, 1), "3 ratings"),
        (ratings(1, None, 1), "step 2"),
        ({"finish": "solution", "ratings": [1, -1, None]}, "found_error"),
        ({"finish": "solution", "ratings": [1, 1, 2]}, "ratings"),
        ({"value": "right"}, "value"),
        ({**RIGHT, "value": "right"}, "value"),
        ({**RIGHT, "rating": 1}, "rating"),
    ],
)
def test_a_label_that_says_nothing_sensible_is_refused(desk: Desk, said: dict[str, Any], why: str):
    ann = person(desk, "ann")
    put(desk, steps_item(1))
    assert why in refused(desk, 422, ann, "item-1", said)
    assert state(desk, "item-1") == ("open", None, 0)


def test_disputes_go_to_an_adjudicator(desk: Desk):
    ann, ben, eve = person(desk, "ann"), person(desk, "ben"), person(desk, "eve", adjudicates=True)
    put(desk, steps_item(1), steps_item(2), wanted=2)
    for who, said in ((ann, RIGHT), (ben, WRONG)):
        say(desk, who, "item-1", said)
        say(desk, who, "item-2", RIGHT)
    assert state(desk, "item-1") == ("disputed", None, 2) and state(desk, "item-2")[0] == "done"
    refused(desk, 403, ann, "item-1", RIGHT, phase="adjudication")
    with desk.store.write() as connection:
        found = desk.disputed(connection, eve, 5)["items"]
    assert [item["id"] for item in found] == ["item-1"]
    assert [said["ratings"] for said in found[0]["opinions"]] == [[1, 1, 1], [1, -1, None]]
    assert "ann" not in json.dumps(found)
    say(desk, eve, "item-1", ratings(1, 0, -1), phase="adjudication")
    assert state(desk, "item-1") == ("done", "error 3", 2)
    with desk.store.write() as connection:
        desk.undo(connection, eve, "u", "eve/item-1/adjudication")
    assert state(desk, "item-1") == ("disputed", None, 2)
    put(desk, steps_item(3))
    refused(desk, 409, eve, "item-3", RIGHT, phase="adjudication")


def test_rules_that_change_hold_for_what_was_said_before(desk: Desk):
    ann, ben = person(desk, "ann"), person(desk, "ben")
    put(desk, steps_item(1), wanted=3)
    say(desk, ann, "item-1", RIGHT)
    say(desk, ben, "item-1", WRONG)
    assert state(desk, "item-1")[0] == "open"
    put(desk, wanted=2)
    assert state(desk, "item-1")[0] == "disputed"
    put(desk, adjudicate=False)
    assert state(desk, "item-1") == ("done", None, 2)  # a draw: nobody says what it is


def test_screening_comes_first_and_bars_who_fails(desk: Desk):
    good, bad = person(desk, "good"), person(desk, "bad")
    screens = [steps_item(n, role="screening", expected=WRONG) for n in range(3)]
    put(desk, *screens, *(steps_item(n) for n in range(10, 15)))
    for _ in range(3):
        for who, said in ((good, WRONG), (bad, RIGHT)):
            (item,) = take(desk, who)
            assert item in {"item-0", "item-1", "item-2"}
            say(desk, who, item, said)
    assert take(desk, good, 2) and not take(desk, bad)
    with desk.store.write() as connection:
        assert desk.next_items(connection, bad, 1)["screened_out"]
    refused(desk, 403, bad, "item-10", RIGHT)
    assert row_of(desk, LABELS, annotator=good.id, item="item-0").right is True


def test_gold_items_come_now_and_then_and_count_for_no_item(desk: Desk):
    ann = person(desk, "ann")
    golden = [steps_item(n, role="gold", expected=RIGHT) for n in range(100, 120)]
    put(desk, *golden, *(steps_item(n) for n in range(60)), gold_every=4)
    seen = []
    while got := take(desk, ann, 3):
        say(desk, ann, got[0], RIGHT)
        seen.append(got[0])
    work = [item for item in seen if int(item[5:]) < 100]
    assert sorted(work) == sorted(f"item-{n}" for n in range(60)) and len(set(seen)) == len(seen)
    early = sum(int(item[5:]) >= 100 for item in seen[:48])
    assert 4 <= early <= 22  # about one in four


def test_revising_after_the_machines_word_keeps_the_blind_label(desk: Desk):
    ann = person(desk, "ann")
    put(desk, steps_item(1, prelabel=WRONG), steps_item(2))
    refused(desk, 409, ann, "item-1", RIGHT, phase="revised")
    say(desk, ann, "item-1", RIGHT)
    say(desk, ann, "item-1", WRONG, phase="revised")
    assert state(desk, "item-1") == ("done", "error 2", 1)
    assert row_of(desk, LABELS, phase="blind").stance == "no error"
    say(desk, ann, "item-2", RIGHT)
    refused(desk, 409, ann, "item-2", RIGHT, phase="revised")


def test_who_gave_up_blind_has_no_say_afterwards(desk: Desk):
    """Neither in what becomes of the item, nor in its place in a queue, whenever that queue was chosen."""
    ann, ben = person(desk, "ann"), person(desk, "ben")
    put(desk, *(steps_item(n, prelabel=WRONG) for n in range(2)), queue="disagreement", wanted=2)
    say(desk, ann, "item-0", {"finish": "give_up"})
    say(desk, ann, "item-0", RIGHT, phase="revised")
    say(desk, ben, "item-0", WRONG)
    say(desk, ann, "item-1", RIGHT)
    say(desk, ann, "item-1", WRONG, phase="revised")
    assert state(desk, "item-0") == state(desk, "item-1") == ("open", None, 1)
    places = [row_of(desk, ITEMS, id=id).priority for id in ("item-0", "item-1")]
    assert max(places) < 1e-3  # all who have a say agree with the machine
    put(desk, queue="order")
    put(desk, queue="disagreement")
    assert [row_of(desk, ITEMS, id=id).priority for id in ("item-0", "item-1")] == places


def test_asking_for_the_verdict_is_noted_beside_the_label(desk: Desk):
    ann = person(desk, "ann")
    put(desk, steps_item(1), steps_item(2))
    with desk.store.write() as connection:
        desk.may_see_verdict(connection, ann, "item-1")
        desk.note_shown(connection, ann, "item-1", "verdict")
    say(desk, ann, "item-1", RIGHT)
    say(desk, ann, "item-2", RIGHT)
    assert row_of(desk, LABELS, item="item-1").saw_verdict and not row_of(desk, LABELS, item="item-2").saw_verdict
    put(desk, steps_item(3), verdict="after")
    with desk.store.write() as connection:
        desk.may_see_verdict(connection, ann, "item-1")
        with pytest.raises(Refused):
            desk.may_see_verdict(connection, ann, "item-3")


def test_pairs_are_shown_either_way_round_and_kept_one_way(desk: Desk):
    ann = person(desk, "ann")
    pairs = [Item(id=f"p{n}", kind="pair", prompt="?", a="A", b="B").model_dump(mode="json") for n in range(20)]
    put(desk, *pairs)
    orders = set()
    for _ in range(20):
        with desk.store.write() as connection:
            (item,) = desk.next_items(connection, ann, 1)["items"]
        orders.add(item["a"])
        say(desk, ann, item["id"], {"value": "a" if item["a"] == "A" else "b"})
    assert orders == {"A", "B"}
    assert all(state(desk, f"p{n}")[1] == "a" for n in range(20))


def test_new_items_that_matter_more_come_before_what_is_left(desk: Desk, opened: Callable[[str], Desk]):
    ann = person(desk, "ann")
    put(desk, *(steps_item(n, outcome="wrong", scores=[0.1] * 3) for n in range(5)), queue="convincing", wanted=2)
    say(desk, ann, take(desk, ann)[0], RIGHT)
    put(desk, steps_item(50, outcome="wrong", scores=[0.99] * 3))
    assert take(desk, ann) == ["item-50"]


def facts(score: float | None, outcome: str = "", machine: str | None = None, stances: tuple[str, ...] = ()) -> Facts:
    return Facts("x", 1, score, outcome, machine, stances)


def test_queues_put_first_what_they_say():
    def ordered(queue: str, *several: Facts) -> bool:
        places = [priority(queue, one) for one in several]
        return places == sorted(places, reverse=True)

    assert ordered(
        "convincing", facts(0.9, "wrong"), facts(0.3, "wrong"), facts(0.9), facts(0.3, "right"), facts(0.9, "right")
    )
    assert ordered("disagreement", facts(0.9, "wrong"), facts(0.4, "right"), facts(0.9, "right"))
    split, agreed = ("right", "wrong"), ("right", "right")
    assert ordered(
        "disagreement",
        facts(None, stances=split),
        facts(None, "", "right", (*agreed, "wrong")),
        facts(None, stances=agreed),
    )
    assert ordered("gain", facts(0.5), facts(0.8), facts(0.95), facts(0.95, "", "no error"))
    assert expected_gain(facts(0.5)) == pytest.approx(1 - 0.6098403047)  # 1 - h(0.85): all of a channel's capacity
    assert belief(facts(None, stances=("a",))) == pytest.approx(0.85)
    random = [priority("random", Facts(str(n), n, None, "", None, ())) for n in range(1000)]
    assert len(set(random)) == 1000 and 0.45 < sum(random) / 1000 < 0.55


def test_what_an_item_must_have():
    for broken in (
        {"kind": "steps"},
        {"kind": "answer"},
        {"kind": "pair", "a": "x"},
        {"steps": ["x"], "alternatives": [[], []]},
        {"steps": ["x"], "role": "gold"},
        {"steps": ["x"], "expected": {"ratings": [1]}},
        {"steps": ["x"], "prelabel": {"ratings": [1, 1]}},
        {"steps": ["x"], "role": "gold", "expected": {"finish": "give_up"}},
        {"steps": ["x"], "scores": [1.5]},
    ):
        with pytest.raises(ValueError):
            Item.model_validate({"id": "i", "prompt": "p", **broken})


def test_stances():
    item = Item(id="i", prompt="p", steps=("a", "b"), alternatives=((), ("c",)))
    assert stance("steps", Judgement(finish="found_error", ratings=(1, -1))) == "error 2"
    assert stance("steps", Judgement(ratings=(0, 1))) == "no error"
    assert stance("pair", Judgement(value="both_bad")) == "both_bad"
    assert stance("answer", Judgement(finish="bad_problem")) == "bad problem"
    assert stance("answer", Judgement(finish="give_up")) is None
    assert not fault(item, Judgement(finish="found_error", ratings=(1, -1), alternatives=((), (1,))))
    assert "alternatives" in fault(item, Judgement(finish="found_error", ratings=(1, -1), alternatives=((), (1, 1))))


def test_settings_and_people_are_plain(desk: Desk):
    with desk.store.read() as connection:
        assert desk.store.settings(connection) == Settings()
        assert desk.has_accounts(connection) is False
    assert isinstance(person(desk, "ann"), Annotator)
