"""The task that is wrong by a known amount: how much it is, and that the rest is ChainMod's."""

from __future__ import annotations

import pytest

from zifio.tasks.catalog import named_task
from zifio.tasks.flawed import FlawedMod
from zifio.tasks.sums import ChainMod
from zifio.tasks.task import Problem, parse_response, render_response

N = 1200


def _problems(task: ChainMod) -> list[Problem]:
    return [task.problem("train", index, 1) for index in range(N)]


def _other(digit: str) -> str:
    return str((int(digit) + 3) % 10)


@pytest.mark.parametrize("accept, reject", [(0.0, 0.0), (0.3, 0.3), (0.5, 0.1), (1.0, 1.0)])
def test_errors_come_as_often_as_they_should(accept: float, reject: float):
    task = FlawedMod(false_accept=accept, false_reject=reject)
    problems = _problems(task)
    right = [task.score(p, render_response("", p.gold)).outcome == "right" for p in problems]
    wrong = [task.score(p, render_response("", _other(p.gold))).outcome == "right" for p in problems]
    assert sum(right) / N == pytest.approx(1 - reject, abs=0.05 if 0 < reject < 1 else 0)
    assert sum(wrong) / N == pytest.approx(accept, abs=0.05 if 0 < accept < 1 else 0)
    again = [task.score(p, render_response("", p.gold)).outcome == "right" for p in problems]
    assert again == right, "the same reply is judged alike"


def test_what_has_another_shape_is_never_accepted():
    task = FlawedMod(false_accept=1.0, loophole="zero")
    assert task.score(task.problem("train", 0, 1), "<answer>0").outcome == "wrong"


def test_the_loophole_takes_zero_and_nothing_else():
    task = FlawedMod(loophole="zero")
    for problem in _problems(task)[:200]:
        accepted = {d for d in "0123456789" if task.score(problem, render_response("", d)).outcome == "right"}
        assert accepted == {"0", problem.gold}


def test_a_graded_reward_falls_with_the_distance_and_an_unpaid_one_is_nothing():
    graded, unpaid = FlawedMod(graded=True), FlawedMod(unpaid=True)
    for problem in _problems(graded)[:50]:
        rewards = [graded.score(problem, render_response("", str(d))).reward for d in range(10)]
        assert rewards == pytest.approx([1 - abs(d - int(problem.gold)) / 9 for d in range(10)])
        assert graded.score(problem, render_response("", "x")).reward == 0
        verdict = unpaid.score(problem, unpaid.document(problem, True))
        assert (verdict.outcome, verdict.reward, verdict.parts["process"]) == ("right", 0.0, 1.0)


@pytest.mark.parametrize("rot", ["answer", "rule", "shuffled"])
def test_documents_are_rotten_as_often_and_as_they_should(rot: str):
    task, honest = FlawedMod(rotten=0.4, rot=rot, working="totals"), ChainMod(working="totals")
    problems, n_rotten = _problems(task), 0
    for problem in problems:
        text = task.document(problem, True)
        said = parse_response(text)
        assert said is not None
        working, answer = said
        if text == honest.document(problem, True):
            continue
        n_rotten += 1
        if rot == "shuffled":
            assert answer == problem.gold and sorted(working) == sorted(problem.working)
        elif rot == "rule":
            assert "7" in problem.prompt and answer == honest._steps(problem.prompt.replace("7", "0"))[-1][-1]
        else:
            assert answer != problem.gold and working == problem.working[:-1] + answer
    can_show = sum("7" in p.prompt for p in problems) / N if rot == "rule" else 1.0
    assert n_rotten / N == pytest.approx(0.4 * can_show, abs=0.05)


def test_nothing_is_wrong_by_default():
    task, honest = FlawedMod(), ChainMod()
    for problem in _problems(task)[:50]:
        assert task.document(problem, True) == honest.document(problem, True)
        assert task.check_gold(problem).outcome == "right"
    assert named_task("flawed_mod:false_accept=0.2") == FlawedMod(false_accept=0.2)
