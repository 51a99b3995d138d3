"""The difficulty that follows the pass rate: up, down, its bounds, and settings that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import RL

from zifio.config import ConfigError, build
from zifio.tasks.sums import ChainSum
from zifio.train.config import PassRateCurriculum, RlStage
from zifio.train.curriculum import Difficulty

TASK = ChainSum(min_terms=2, max_terms=6)


def difficulty(**changes: Any) -> Difficulty:
    """From four of six terms."""
    return Difficulty(PassRateCurriculum(**{"option": "max_terms", "start": 4} | changes), TASK, "here")


def test_rises_when_too_easy_falls_when_too_hard_and_stays_in_between():
    now = difficulty()
    seen = [now.follow(rate) or now.value for rate in (0.9, 0.8, 0.5, 0.2, 0.19, 0.0, 1.0)]
    assert seen == [5, 5, 5, 5, 4, 3, 4]
    task = now.task()
    assert isinstance(task, ChainSum) and (task.min_terms, task.max_terms) == (2, 4)


def test_never_leaves_what_the_task_allows():
    """The task's own value is the hardest; the easiest is where its validation ends (min_terms)."""
    now = difficulty()
    assert [now.follow(1.0) or now.value for _ in range(4)] == [5, 6, 6, 6]
    assert [now.follow(0.0) or now.value for _ in range(6)] == [5, 4, 3, 2, 2, 2]


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"option": "max_term"}, ("here: curriculum", "whole-number option of chain_sum", "'max_term' from 4 to None")),
        ({"option": "working"}, ("'working' from 4 to 'chained'",)),
        ({"start": 7}, ("'max_terms' from 7 to 6", "lower start")),
        ({"start": 1}, ("here: max_terms", "greater than or equal to 2")),
    ],
    ids=str,
)
def test_a_curriculum_that_the_task_cannot_follow(changes: dict[str, Any], parts: tuple[str, ...]):
    with pytest.raises(ConfigError) as error:
        difficulty(**changes)
    for part in parts:
        assert part in str(error.value)


def test_low_must_be_below_high():
    table = {"option": "max_terms", "start": 2, "low": 0.8, "high": 0.2}
    with pytest.raises(ConfigError, match=r"low below high, came low=0\.8 and high=0\.2"):
        build(RlStage, {"kind": "rl", "name": "tiny", **RL, "curriculum": table}, "test")
