"""Facts: one value a key, the same in text and test, and no way to guess it."""

import pytest

from zifio.tasks.catalog import named_task
from zifio.tasks.facts import Facts
from zifio.tasks.task import Problem, render_response


def test_what_is_asked_is_what_was_read():
    task = Facts(keys=50)
    read = {p.prompt: p.gold for p in (task.problem("train", index, 3) for index in range(2000))}
    asked = [task.problem("held-out", index, 9) for index in range(50)]
    assert len(read) == 50 and {p.prompt: p.gold for p in asked} == read
    assert all(task.check_gold(problem).outcome == "right" for problem in asked)
    assert named_task("facts:keys=50") == task


def test_values_are_spread_and_other_answers_are_wrong():
    task = Facts()
    problems = [task.problem("held-out", index, 0) for index in range(500)]
    assert len({p.gold for p in problems}) > 90
    for answer in ("", "7", "007", "xx", f"{(int(problems[0].gold) + 1) % 100:02d}"):
        assert task.score(problems[0], render_response("", answer)).outcome == "wrong"
    with pytest.raises(ValueError, match="no fact"):
        task.score(Problem("id", "12", "34"), render_response("", "34"))
