"""Labels in and out: what leaves the desk and comes back is the same, others' files are read as they are."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from items import person, put, ratings, row_of, say, steps_item, take
from serving import told

from zifio import cli
from zifio.config import ConfigError
from zifio.label.card import write_card
from zifio.label.desk import Annotator, Desk, turned
from zifio.label.exports import export
from zifio.label.imports import import_file
from zifio.label.item import Item, Judgement
from zifio.label.report import report
from zifio.label.schema import ITEMS
from zifio.label.scores import import_scores
from zifio.tasks.steps import Solution, alternatives_prm800k

WRONG = ratings(1, -1, None, correction="the right way", note="a slip", flagged=True)
PAIRS = [Item(id=f"p{n}", kind="pair", prompt="?", a="long", b="short") for n in range(3)]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines(path: Path, *several: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in several))
    return path


def prefer(desk: Desk, who: Annotator, item: Item, value: Any) -> None:
    """Say which of a pair is better, as this person sees it."""
    say(desk, who, item.id, {"value": turned(Judgement(value=value), item, who).value})


def worked(desk: Desk) -> None:
    """Labels of every kind: agreed, disputed and settled, given up, with alternatives and corrections."""
    ann, ben, eve = person(desk, "ann"), person(desk, "ben"), person(desk, "eve", adjudicates=True)
    other = steps_item(4, alternatives=[[], ["another way"], []], gold="5", answer="6")
    answers = [Item(id=f"a{n}", kind="answer", prompt="?", response=f"r{n}").model_dump(mode="json") for n in range(2)]
    golden = steps_item(9, role="gold", expected=ratings(1, 1, 1))
    pairs = [item.model_dump(mode="json") for item in PAIRS]
    put(desk, *(steps_item(n) for n in range(4)), other, *answers, *pairs, golden, wanted=2)
    for who in (ann, ben):
        say(desk, who, "item-0", ratings(1, 1, 0))
        say(desk, who, "item-1", WRONG if who is ann else ratings(1, 1, 1))
        say(desk, who, "item-2", {"finish": "bad_problem"})
        say(desk, who, "item-4", {**WRONG, "alternatives": [[], [1], []]})
        say(desk, who, "item-9", ratings(1, 1, 1))
        say(desk, who, "a0", {"value": "right"})
        say(desk, who, "a1", {"value": "wrong"})
        for item, value in zip(PAIRS, ("a", "both_bad", "tie"), strict=True):
            prefer(desk, who, item, value)
    say(desk, ann, "item-3", {"finish": "give_up"})
    say(desk, eve, "item-1", WRONG, phase="adjudication")


@pytest.mark.parametrize("every", [False, True])
def test_prm800k_comes_back_as_it_went(desk: Desk, opened: Callable[[str], Desk], tmp_path: Path, every: bool):
    worked(desk)
    out, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    done = export(desk.store, "prm800k", out, every)
    found = rows(out)
    assert done["rows"] == len(found) == (12 if every else 4)
    other = opened(str(tmp_path / "other.db"))
    put(other, wanted=2)
    told = import_file(other, out)
    assert told["items"] == len({row["zifio"]["id"] for row in found})
    assert told["labels"] == len(found) and told["unclear"] == 0
    assert import_file(other, out)["labels"] == 0
    export(other.store, "prm800k", again, every=True)
    assert sorted(map(json.dumps, rows(again))) == sorted(map(json.dumps, found))


def test_a_row_of_prm800k_is_as_the_others_are(desk: Desk, tmp_path: Path):
    worked(desk)
    out = tmp_path / "out.jsonl"
    export(desk.store, "prm800k", out, every=True)
    found = {(row["zifio"]["id"], row["zifio"]["phase"]): row for row in rows(out)}
    row = found["item-4", "blind"]
    published = {"labeler", "timestamp", "generation", "is_quality_control_question", "is_initial_screening_question"}
    assert published | {"question", "label", "zifio", "problem_id", "outcome", "separator"} == set(row)
    assert row["question"]["problem"] == "What is 4+1?" and row["question"]["ground_truth_answer"] == "5"
    step = row["label"]["steps"][1]
    assert [(one["text"], one["rating"]) for one in step["completions"]] == [("step 1 of 4", -1), ("another way", 1)]
    assert step["human_completion"]["text"] == "the right way" and step["completions"][0]["flagged"]
    assert (row["label"]["finish_reason"], row["label"]["total_time"]) == ("found_error", 1000)
    assert found["item-9", "blind"]["is_quality_control_question"] is True
    assert found["item-2", "blind"]["label"]["finish_reason"] == "bad_problem"
    assert "ann" not in {row["labeler"] for row in found.values()}


PUBLISHED = {
    "labeler": "340d89bc-f5b7-45e9-b272-909ba68ee363",
    "timestamp": "2023-01-22T04:34:27.052924",
    "generation": 9,
    "is_quality_control_question": False,
    "is_initial_screening_question": False,
    "question": {
        "problem": "What is 2+2?",
        "ground_truth_answer": "4",
        "pre_generated_steps": ["First.", "Second."],
        "pre_generated_answer": "5",
        "pre_generated_verifier_score": 0.7,
    },
    "label": {
        "steps": [
            {
                "completions": [{"text": "First.", "rating": 1, "flagged": None}],
                "human_completion": None,
                "chosen_completion": 0,
            },
            {
                "completions": [{"text": "Second.", "rating": -1, "flagged": False}],
                "human_completion": None,
                "chosen_completion": None,
            },
        ],
        "total_time": 278270,
        "finish_reason": "found_error",
    },
}
"""A row in the published form, its words changed."""


def test_published_rows_are_read(desk: Desk, tmp_path: Path):
    unrated = json.loads(json.dumps(PUBLISHED))
    unrated["question"]["problem"], unrated["label"]["steps"][0]["completions"][0]["rating"] = "And 3+3?", None
    told = import_file(desk, lines(tmp_path / "rows.jsonl", PUBLISHED, unrated))
    assert (told["items"], told["labels"], told["unclear"]) == (2, 1, 1)
    with desk.store.read() as connection:
        (label,) = [event for event in desk.store.events(connection) if event.kind == "label"]
    assert label.actor == PUBLISHED["labeler"] and label.body["said"]["ratings"] == [1, -1]
    assert row_of(desk, ITEMS, state="done").final == "error 2"


def test_a_reply_without_a_word_is_counted_and_left_out(desk: Desk, tmp_path: Path):
    file = tmp_path / "replies.jsonl"
    row = {"problem": "p", "prompt": "1+2", "gold": "3", "outcome": "wrong"}
    rows = [row | {"place": place, "response": text} for place, text in enumerate(("", "1+2=4", " "))]
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    told = import_file(desk, file)
    assert (told["lines"], told["items"], told["silent"]) == (3, 1, 2)


def with_others(labeler: str, mark: int, *others: tuple[str, int]) -> dict[str, Any]:
    """The published row as another labeller has it: a mark for the second step, and alternatives to it."""
    row = json.loads(json.dumps(PUBLISHED))
    row["labeler"], step = labeler, row["label"]["steps"][1]
    step["completions"][0]["rating"], step["chosen_completion"] = mark, None if mark < 0 else 0
    step["completions"] += [{"text": text, "rating": rating, "flagged": False} for text, rating in others]
    row["label"]["finish_reason"] = "found_error" if mark < 0 else "solution"
    return row


def test_alternatives_of_others_come_and_go(desk: Desk, tmp_path: Path):
    """Three label one solution, each with alternatives of their own: it is one item, and no rating is lost."""
    ann, ben, eve = (
        with_others("ann", -1, ("Next.", 1), ("No.", -1)),
        with_others("ben", 1),
        with_others("eve", -1, ("Then.", 0)),
    )
    file = lines(tmp_path / "rows.jsonl", ann, ben, eve)
    put(desk, wanted=3)
    told = import_file(desk, file)
    assert (told["lines"], told["items"], told["labels"], told["unclear"]) == (3, 2, 4, 0)
    assert {name: import_file(desk, file)[name] for name in ("items", "labels")} == {"items": 0, "labels": 0}
    assert (row_of(desk, ITEMS, n_labels=3).state, row_of(desk, ITEMS, n_labels=1).final) == ("disputed", None)
    export(desk.store, "prm800k", tmp_path / "out.jsonl", every=True)
    found = [[[(one["text"], one["rating"]) for one in step["completions"]] for step in row["label"]["steps"]]
             for row in rows(tmp_path / "out.jsonl")]  # fmt: skip
    first = [("First.", 1)]
    assert found == [
        [first, [("Second.", -1), ("Next.", 1), ("No.", -1)]],
        [first, [("Second.", 1), ("Next.", None), ("No.", None)]],
        [first, [("Second.", -1), ("Next.", None), ("No.", None)]],
        [first, [("Then.", 0)]],
    ]
    solutions = [one for row in (ann, ben, eve) for one in alternatives_prm800k(row)]
    assert [(one.text, one.labels) for one in solutions] == [
        ("First.\nNext.", (1, 1)),
        ("First.\nNo.", (1, -1)),
        ("First.\nThen.", (1, 0)),
    ]


def test_a_gold_item_keeps_its_label_whoever_fails_it(desk: Desk, opened: Callable[[str], Desk], tmp_path: Path):
    ann = person(desk, "ann")
    put(desk, steps_item(1, role="gold", expected=ratings(1, 1, 1)))
    say(desk, ann, "item-1", WRONG)
    export(desk.store, "prm800k", tmp_path / "out.jsonl", every=True)
    other = opened(str(tmp_path / "other.db"))
    import_file(other, tmp_path / "out.jsonl")
    assert row_of(other, ITEMS, id="item-1").expected == "no error"
    others = [{**with_others(name, mark), "is_quality_control_question": True} for name, mark in (("a", -1), ("b", 1))]
    assert import_file(other, lines(tmp_path / "rows.jsonl", *others))["labels"] == 2


def test_trls_formats_go_out_and_come_in(desk: Desk, opened: Callable[[str], Desk], tmp_path: Path):
    worked(desk)
    found = {}
    for name in ("stepwise", "preference", "unpaired"):
        export(desk.store, name, tmp_path / f"{name}.jsonl")
        found[name] = rows(tmp_path / f"{name}.jsonl")
    texts = [f"step {n} of 0" for n in range(3)]
    first = {"prompt": "What is 0+1?", "completions": texts, "labels": [True, True, True]}
    assert first.items() <= found["stepwise"][0].items()
    assert found["stepwise"][1]["labels"] == [True, False] and len(found["stepwise"]) == 3
    assert found["preference"] == [{"prompt": "?", "chosen": "long", "rejected": "short"}]
    labels = [(row["completion"], row["label"]) for row in found["unpaired"]]
    assert labels[-4:] == [("r0", True), ("r1", False), ("long", False), ("short", False)] and len(labels) == 7
    for name in found:
        other = opened(str(tmp_path / f"{name}.db"))
        assert import_file(other, tmp_path / f"{name}.jsonl")["labels"] == len(found[name])
        export(other.store, name, tmp_path / "again.jsonl")
        assert rows(tmp_path / "again.jsonl") == found[name]


def test_the_first_labels_are_those_that_were_given_first(desk: Desk, tmp_path: Path):
    """Whatever the order of the items; taken back and said again a label is a later one. A longer part holds every
    shorter one."""
    ann, ben = person(desk, "ann"), person(desk, "ben")
    put(desk, *(steps_item(n) for n in range(1200)), steps_item(5000, role="gold", expected=ratings(1, 1, 1)), wanted=1)
    given = [700, 3, 1100, 4]
    say(desk, ann, "item-5000", ratings(1, 1, 1))
    for n in given:
        say(desk, ann, f"item-{n}", ratings(1, 1, 1))
    say(desk, ann, "item-3", WRONG, key="again")
    say(desk, ben, "item-3", WRONG)
    out = tmp_path / "out.jsonl"

    def names(first: int | None, every: bool = False) -> list[str]:
        export(desk.store, "prm800k", out, every, first)
        return [row["zifio"]["id"] for row in rows(out)]

    assert [sorted(names(n)) for n in (1, 2, 3)] == [
        sorted(f"item-{one}" for one in some) for some in ([700], [700, 1100], [700, 1100, 4])
    ]
    assert names(4) == names(9) == names(None) == ["item-3", "item-4", "item-700", "item-1100"]
    assert names(1, every=True) == ["item-5000"] and len(names(6, every=True)) == 6
    with pytest.raises(ConfigError, match="--first"):
        export(desk.store, "prm800k", out, first=0)


def test_parquet_holds_everything_and_its_card_says_what(desk: Desk, tmp_path: Path):
    worked(desk)
    out = tmp_path / "labels.parquet"
    done = export(desk.store, "parquet", out, every=True)
    table = pq.read_table(out).to_pylist()
    assert len(table) == done["rows"] == 22 and {row["phase"] for row in table} == {"blind", "adjudication"}
    first = next(row for row in table if row["id"] == "item-1" and row["phase"] == "blind")
    assert first["ratings"] == [1, -1, None] and first["correction"] == "the right way" and first["stance"] == "error 2"
    other = next(row for row in table if row["id"] == "item-4")
    assert other["alternatives"] == [[], ["another way"], []] and other["alternative_ratings"] == [[], [1], []]
    assert first["queue"] == "random" and first["ms"] == 1000 and first["saw_verdict"] is False
    card = write_card(desk, out, done["rows"]).read_text()
    assert "data_files: labels.parquet" in card and "Krippendorff" in card and "`wanted = 2`" in card
    assert not any(name in card for name in ("ann, ben", "ann: ", "ben: "))


def test_another_readme_is_kept(tmp_path: Path, opened: Callable[[str], Desk], capsys: pytest.CaptureFixture[str]):
    path, card = str(tmp_path / "desk.db"), tmp_path / "README.md"
    put(opened(path), steps_item(1))
    for out in ("one.parquet", "two.parquet"):  # another's words, then the card of another file
        before = card.read_text() if card.exists() else "# My thesis\n"
        card.write_text(before)
        assert cli.main(["label", path, "--export", "parquet", "--out", str(tmp_path / out)]) == 2
        assert "README.md" in capsys.readouterr().err
        assert card.read_text() == before and not (tmp_path / out).exists()
        card.unlink()
        for _ in range(2):  # its own card is written again
            done = told(capsys, path, "--export", "parquet", "--out", str(tmp_path / "one.parquet"))
            assert done["card"] == str(card)


def test_replies_of_an_evaluation_become_items(desk: Desk, tmp_path: Path):
    shaped = {"problem": "p/1", "place": 0, "budget": None, "prompt": "2+3*2", "gold": "8", "outcome": "right"}
    whole = {**shaped, "response": "<think>3*2=6\n6+2=8</think><answer>8</answer>"}
    apart = {
        **shaped,
        "place": 1,
        "thinking": "3*2=5\n\n5+2=7",
        "response": "It is 7.",
        "answer": "7",
        "outcome": "wrong",
    }
    import_file(desk, lines(tmp_path / "records.jsonl", whole, apart))
    with desk.store.read() as connection:
        one, two = desk.item(connection, "p/1/0"), desk.item(connection, "p/1/1")
    assert one.steps == ("<think>3*2=6\n", "6+2=8", "</think><answer>8</answer>")
    assert "".join(one.steps) == whole["response"]
    assert (one.answer, one.gold, one.outcome) == ("8", "8", "right")
    assert (
        "3*2=5" in two.steps[0] and two.steps[-1].endswith("It is 7.") and (two.answer, two.outcome) == ("7", "wrong")
    )


def test_a_text_in_steps_leaves_as_it_came(desk: Desk, tmp_path: Path):
    ann = person(desk, "ann")
    chain, several = "<think>6+1=7-1=6</think><answer>6</answer>", "<think>So.\n\nThen: 6\n</think>\n<answer>6</answer>"
    replies = [
        {"problem": f"p/{n}", "prompt": "6+1-1", "gold": "6", "outcome": "right", "response": text}
        for n, text in enumerate((chain, several))
    ]
    own = {"id": "own", "prompt": "2+3*4", "steps": ["3*4=12", "2+12=14\n\n", "14"]}
    import_file(desk, lines(tmp_path / "rows.jsonl", *replies, own, PUBLISHED))
    for name in ("p/0", "p/1", "own"):
        with desk.store.read() as connection:
            n_steps = len(desk.item(connection, name).steps)
        say(desk, ann, name, ratings(*[1] * n_steps))
    export(desk.store, "unpaired", tmp_path / "out.jsonl")
    texts = [row["completion"] for row in rows(tmp_path / "out.jsonl")]
    assert texts == [chain, several, "3*4=12\n2+12=14\n\n14", "First.\nSecond."]


def test_scores_may_come_later_and_again(desk: Desk, tmp_path: Path):
    ann = person(desk, "ann")
    put(desk, *(steps_item(n, outcome="wrong") for n in range(3)), queue="convincing")
    file = tmp_path / "scores.jsonl"
    for first, last in ((1, 2), (2, 0)):
        scores = [{"id": f"item-{n}", "scores": [0.9, 0.9 if n == first else 0.5 - n / 10]} for n in range(3)]
        scores[last]["outcome"], scores[first]["outcome"] = "right", "wrong"
        assert import_scores(desk, lines(file, *scores))["items"] == 3
        assert take(desk, ann, 1) == [f"item-{first}"]
        say(desk, ann, f"item-{first}", ratings(1, 1, 1))
    assert row_of(desk, ITEMS, id="item-0").outcome == "right"
    with pytest.raises(ConfigError, match="line 1"):
        import_scores(desk, lines(file, {"id": "nobody", "scores": [0.5]}))
    with pytest.raises(ConfigError, match="line 2"):
        import_scores(desk, lines(file, {"id": "item-0", "scores": [0.5]}, {"id": "item-0", "scores": [1.5]}))


def test_a_machines_labels_are_hidden_and_are_nobodys(desk: Desk, tmp_path: Path):
    machine = Solution("p", "What?", "4", ("a\n", "b"), (1, 1), "4", "right", "monte carlo")
    told = import_file(desk, lines(tmp_path / "rows.jsonl", PUBLISHED, machine.row()), prelabels=True)
    assert (told["items"], told["labels"]) == (2, 0)
    for machine_says, outcome in (("error 2", ""), ("no error", "right")):
        row = row_of(desk, ITEMS, machine=machine_says)
        assert (row.state, row.n_labels, row.outcome) == ("open", 0, outcome)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "JSON object"),
        ("[1]", "came a list"),
        ('{"id": "x", "prompt": "p"}', "wanted steps"),
        ('{"id": "x", "prompt": "p", "stepz": ["a"]}', "Did you mean 'steps'"),
        ('{"id": "x", "prompt": 3, "steps": ["a"]}', "string"),
        ('{"id": "a\\nb", "prompt": "p", "steps": ["a"]}', "printable"),
        ('{"question": {}, "label": {}}', "PRM800K"),
        (
            '{"question": {"problem": "p"}, "label": {"steps": [{"completions": [{"text": "a", "rating": 5}]}]}}',
            "`rating`",
        ),
        ('{"prompt": "p", "completions": ["a"], "labels": ["x"]}', "true or false"),
        ('{"prompt": "p", "completion": "a", "label": "yes"}', "true or false"),
        ("[" * 100_000, "JSON object"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, opened: Callable[[str], Desk], line: str, why: str):
    desk = opened(str(tmp_path / "desk.db"))
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps(steps_item(1)) + "\n\n" + line + "\n")
    with pytest.raises(ConfigError, match="line 3") as caught:
        import_file(desk, file)
    assert why in str(caught.value)


def test_what_cannot_be_unicode_is_told_or_kept_but_never_lost(tmp_path: Path, opened: Callable[[str], Desk]):
    desk = opened(str(tmp_path / "desk.db"))
    file = tmp_path / "items.jsonl"
    file.write_text('{"id": "x", "prompt": "half \\ud83d of a whale", "steps": ["a \\u0000 b"]}\n')
    import_file(desk, file)
    with desk.store.read() as connection:
        item = desk.item(connection, "x")
    assert item.prompt == "half \ufffd of a whale" and item.steps == ("a \x00 b",)


def test_another_item_under_the_same_name_is_told(tmp_path: Path, opened: Callable[[str], Desk]):
    desk = opened(str(tmp_path / "desk.db"))
    import_file(desk, lines(tmp_path / "one.jsonl", steps_item(1)))
    with pytest.raises(ConfigError, match="item-1"):
        import_file(desk, lines(tmp_path / "two.jsonl", steps_item(1, n_steps=5)))
    with pytest.raises(ConfigError, match="item-2"):
        import_file(desk, lines(tmp_path / "three.jsonl", steps_item(2), steps_item(2, n_steps=5)))


@pytest.mark.slow
def test_fifty_thousand_items_stream(desk: Desk, tmp_path: Path):
    """In and out again with less memory than the file has bytes, on SQLite and on PostgreSQL."""
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    with file.open("w") as stream:
        for n in range(50_000):
            row = json.loads(json.dumps(PUBLISHED))
            row["question"]["problem"] = f"What is {n}+2? " + "x" * 3000
            stream.write(json.dumps(row) + "\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = import_file(desk, file)
    assert (told["items"], told["labels"]) == (50_000, 50_000)
    assert export(desk.store, "prm800k", out)["rows"] == 50_000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < file.stat().st_size


def test_the_report_of_a_day(desk: Desk):
    worked(desk)
    found = report(desk.store)
    assert found["items"] == {"work": 10, "gold": 1, "screening": 0, "open": 1, "disputed": 0, "done": 9}
    people = {one["name"]: one for one in found["annotators"]}
    assert set(people) == {"ann", "ben"} and people["ann"]["gave_up"] == 1
    assert people["ann"]["gold"] == {"n": 1, "right": 1} and people["ben"]["with_final"] == pytest.approx(9 / 10)
    names = [one["name"] for one in found["agreement"]["steps"]]
    assert any("alpha" in name for name in names) and any("ratings of steps" in name for name in names)
    assert all(-1 <= one["value"] <= 1 for several in found["agreement"].values() for one in several)
    assert "ann: " in str(found)


def test_the_estimate_is_of_all_items_and_only_from_a_random_sample(desk: Desk):
    ann = person(desk, "ann")
    items = [steps_item(n, outcome="right" if n % 3 else "wrong") for n in range(90)]
    put(desk, *items)
    for n in range(30):
        say(desk, ann, f"item-{n}", ratings(1, 1, 1) if n % 3 else ratings(1, -1, None))
    found = report(desk.store)["estimate"]
    assert (found["n_human"], found["n_machine"]) == (30, 90) and found["mean"] == pytest.approx(2 / 3, abs=0.01)
    assert found["interval"][0] < 2 / 3 < found["interval"][1]
    put(desk, queue="convincing")
    say(desk, ann, "item-30", ratings(1, 1, 1))
    assert "estimate" not in report(desk.store)


def test_who_drifts_is_told(desk: Desk):
    ann, ben = person(desk, "ann"), person(desk, "ben")
    put(desk, *(steps_item(n, role="gold", expected=ratings(1, 1, 1)) for n in range(60)))
    for n in range(60):
        say(desk, ann, f"item-{n}", ratings(1, 1, 1) if n < 30 or n % 2 else ratings(-1, None, None))
        say(desk, ben, f"item-{n}", ratings(1, 1, 1) if n % 4 else ratings(-1, None, None))
    people = {one["name"]: one for one in report(desk.store)["annotators"]}
    assert people["ann"]["drift"]["drifts"] and people["ann"]["drift"]["change"] == pytest.approx(-0.5)
    assert not people["ben"]["drift"]["drifts"] and people["ben"]["gold"]["right"] == 45
