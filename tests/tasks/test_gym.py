"""reasoning-gym's sums: its gold is ours, the check takes nothing but the answer, and problems do not repeat."""

from __future__ import annotations

from typing import get_args

import pytest

from zifio.config import ConfigError, build
from zifio.tasks.families import Check, allowed, excluded
from zifio.tasks.gym import Gym
from zifio.tasks.runtime import judge_all
from zifio.tasks.task import Problem

reasoning_gym = pytest.importorskip("reasoning_gym")
TASK = Gym()


def test_gold_is_what_reasoning_gym_says_and_what_python_computes():
    from zifio.tasks.gym import _steps

    for seed in range(200):
        drawn = reasoning_gym.create_dataset("chain_sum", seed=seed, size=1, min_digits=1, max_digits=3)[0]
        total = _steps(drawn["question"])[-1][-1]
        assert str(total) == drawn["answer"] and total == eval(drawn["metadata"]["expression"])


def test_problems_are_pure_differ_and_share_nothing_between_splits():
    train = [TASK.problem("train", i, 3) for i in range(150)]
    assert train == [TASK.problem("train", i, 3) for i in range(150)]
    assert len({problem.prompt for problem in train}) > 120
    assert not {p.prompt for p in train} & {TASK.problem("held-out", i, 3).prompt for i in range(40)}
    for problem in train:
        assert TASK.check_gold(problem).outcome == "right"
        assert TASK.score(problem, TASK.document(problem, shows_working=False)).outcome == "right"


GOLD = TASK.problem("train", 1, 3).gold


@pytest.mark.parametrize(
    ("response", "outcome", "form"),
    [
        ("<answer>{gold}</answer>", "right", 1.0),
        ("so it is\n<answer> {gold} </answer>\n", "right", 1.0),
        ("{gold}", "wrong", 0.0),
        ("<answer>{gold}", "wrong", 0.0),
        ("</answer>{gold}<answer>", "wrong", 0.0),
        ("<answer>{gold}</answer> or so", "wrong", 0.0),
        ("<answer>{gold}</answer><answer>{gold}</answer>", "wrong", 0.0),
        ("<answer>+{gold}</answer>", "wrong", 1.0),
        ("<answer>0{gold}</answer>", "wrong", 1.0),
        ("<answer>{gold}.0</answer>", "wrong", 1.0),
        ("<answer>1 2 3 {gold}</answer>", "wrong", 1.0),
        ("<answer></answer>", "wrong", 1.0),
        ("", "wrong", 0.0),
    ],
)
def test_verdicts(response: str, outcome: str, form: float):
    problem = TASK.problem("train", 1, 3)
    verdict = TASK.score(problem, response.replace("{gold}", problem.gold))
    assert (verdict.outcome, verdict.parts["format"]) == (outcome, form)


def test_each_problem_of_a_family_is_pure_and_its_gold_is_right():
    for family in ("spell_backward", "gsm_symbolic", "jugs"):
        task = Gym(family=family)
        train = [task.problem("train", index, 3) for index in range(20)]
        assert train == [Gym(family=family).problem("train", index, 3) for index in range(20)]
        assert len({problem.prompt for problem in train}) > 10
        assert not {p.prompt for p in train} & {task.problem("held-out", index, 3).prompt for index in range(4)}
        answered = [(problem, task.document(problem, shows_working=True)) for problem in train]
        assert {verdict.outcome for verdict in judge_all(task, answered)} == {"right"}
        wrong = [(problem, task.document(problem, True).replace(problem.gold, "banana")) for problem in train]
        assert {verdict.outcome for verdict in judge_all(task, wrong)} == {"wrong"}


def test_their_scorer_runs_elsewhere_and_only_its_full_mark_is_right():
    task = Gym(family="jugs")
    assert task.isolated and task.many and not Gym(family="ab").isolated and not TASK.isolated
    problem = task.problem("train", 0, 1)
    stranger = Problem("reasoning_gym/jugs/train/1/0", "another prompt", problem.gold)
    replies = [(problem, "<answer>[]</answer>"), (stranger, task.document(stranger, True)), (problem, "x")]
    verdicts = judge_all(task, replies)
    assert [verdict.outcome for verdict in verdicts] == ["wrong", "error", "wrong"]
    assert "of 1" in verdicts[0].reason and "another problem" in verdicts[1].reason


def test_countdown_is_checked_by_arithmetic():
    task = Gym(family="countdown")
    problem = task.problem("train", 0, 1)
    assert task.check_gold(problem).outcome == "right"
    assert task.score(problem, f"<answer>{problem.gold} + 0</answer>").outcome == "wrong"


def test_a_family_has_its_own_options():
    easy = Gym(family="spell_backward", options={"min_word_len": 3, "max_word_len": 3})
    assert all(len(easy.problem("train", index, 1).gold) == 3 for index in range(10))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"family": "boxnet"}, "did not: .*Choose another"),
        ({"family": "countdowns"}, "Did you mean 'countdown'"),
        ({"family": "ab", "min_terms": 3}, "option of chain_sum"),
        ({"options": {"size": 3}}, "chain_sum has its own"),
        ({"family": "spell_backward", "options": {"word": 3}}, "wanted what reasoning-gym takes"),
        ({"family": "spell_backward", "options": {"min_word_len": -1}}, "wanted what reasoning-gym takes"),
    ],
    ids=str,
)
def test_what_a_family_does_not_take_is_refused(data, words):
    with pytest.raises(ConfigError, match=words):
        build(Gym, data, "here")


def test_the_list_of_families_is_whole():
    from reasoning_gym.factory import DATASETS

    assert not set(allowed()) & set(excluded())
    assert set(allowed()) | set(excluded()) == set(DATASETS)
    assert all(entry["check"] in get_args(Check) and entry["check"] != "theirs" for entry in allowed().values())
    assert all(reason.strip() for reason in excluded().values())


def test_options_in_the_wrong_order_are_refused():
    with pytest.raises(ConfigError, match="min_terms at most max_terms"):
        build(Gym, {"name": "reasoning_gym", "min_terms": 5, "max_terms": 3}, "here")
