"""reasoning-gym's sums: its gold is ours, the check takes nothing but the answer, and problems do not repeat."""

from __future__ import annotations

import pytest

from zifio.config import ConfigError, build
from zifio.tasks.gym import Gym

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


def test_options_in_the_wrong_order_are_refused():
    with pytest.raises(ConfigError, match="min_terms at most max_terms"):
        build(Gym, {"name": "reasoning_gym", "min_terms": 5, "max_terms": 3}, "here")
