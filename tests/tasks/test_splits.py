"""Splits: exactly a thousand right answers to every prompt, and junk in the share that was asked for."""

import itertools

import pytest

from zifio.tasks.splits import Splits
from zifio.tasks.task import Problem, render_response


@pytest.mark.parametrize("prompt", ["1,4,7", "0,0,0", "9,9,9"])
def test_every_prompt_has_exactly_a_thousand_right_answers(prompt):
    task = Splits()
    problem = Problem("id", prompt, "")
    per_place = []
    for place in range(3):
        fixed = ["00" if i == place else f"0{total}" for i, total in enumerate(prompt.split(","))]
        right = 0
        for a, b in itertools.product("0123456789", repeat=2):
            answer = "".join((*fixed[:place], a + b, *fixed[place + 1 :]))
            right += task.score(problem, render_response("", answer)).outcome == "right"
        per_place.append(right)
    assert per_place == [10, 10, 10]


def test_gold_answers_are_diverse():
    golds = {Splits().problem("train", index, seed=1).gold for index in range(500)}
    assert len(golds) > 490


@pytest.mark.parametrize("answer", ["", "01344", "0134430", "01344x", "013 443", "０13443", "0+1,1+3,4+3"])
def test_other_texts_are_wrong(answer):
    verdict = Splits().score(Problem("id", "1,4,7", "013143"), render_response("", answer))
    assert verdict.outcome == "wrong" and verdict.reason


def test_a_prompt_of_another_task_raises():
    with pytest.raises(ValueError, match="three digits"):
        Splits().score(Problem("id", "1+4", "5"), render_response("", "5"))


@pytest.mark.parametrize(("junk", "low", "high"), [(0.0, 1.0, 1.0), (0.7, 0.24, 0.36), (1.0, 0.0, 0.02)])
def test_junk_sets_the_share_of_right_documents(junk, low, high):
    task = Splits(junk=junk)
    problems = [task.problem("train", index, seed=1) for index in range(1000)]
    documents = [task.document(problem, shows_working=False) for problem in problems]
    right = [task.score(p, d).reward for p, d in zip(problems, documents, strict=True)]
    assert low <= sum(right) / len(right) <= high
    assert documents == [task.document(problem, shows_working=True) for problem in problems]
    assert all(task.check_gold(problem).outcome == "right" for problem in problems)


def test_the_further_rule_leaves_an_eighth_of_the_answers():
    task = Splits(odd_first=True)
    problem = Problem("id", "1,4,7", "")
    pairs = [f"{a}{(t - a) % 10}" for t in (1, 4, 7) for a in range(10)]
    answers = ["".join(three) for three in itertools.product(pairs[:10], pairs[10:20], pairs[20:])]
    assert sum(task.score(problem, render_response("", a)).outcome == "right" for a in answers) == 125 == task.n_right
    problems = [task.problem("train", index, seed=1) for index in range(200)]
    assert all(task.check_gold(one).outcome == "right" for one in problems)
