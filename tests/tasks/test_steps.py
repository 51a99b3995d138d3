"""Steps and their labels: cut where a reader would cut, and the same after a round trip through either format."""

from __future__ import annotations

import pytest

from zifio.config import ConfigError
from zifio.tasks.steps import Solution, from_prm800k, from_stepwise, split_steps, to_prm800k, to_stepwise


def solution(*labels: int | None) -> Solution:
    steps = tuple(f"step {n}" for n in range(len(labels)))
    return Solution("p", "What?", "4", steps, labels, "5", "", "ann")


def test_steps_are_paragraphs_or_else_lines():
    assert split_steps("a\nb\n\nc\r\n\r\n\n d ") == ["a\nb", "c", "d"]
    assert split_steps(" a\n b\n") == ["a", "b"] and split_steps(" \n\n ") == []


@pytest.mark.parametrize("labels", [(1, 0, 1), (1, -1, None), (None, None)])
def test_prm800k_comes_back(labels: tuple[int | None, ...]):
    there = from_prm800k(to_prm800k(solution(*labels)))
    assert (there.prompt, there.gold, there.steps, there.labels) == ("What?", "4", solution(*labels).steps, labels)
    assert (there.answer, there.source) == ("5", "ann")


def test_stepwise_ends_at_the_first_wrong_step():
    row = to_stepwise(solution(1, 0, -1, None))
    assert row["labels"] == [True, True, False] and from_stepwise(row).labels == (1, 1, -1)
    for broken in ({}, {"prompt": "p", "completions": ["a"], "labels": []}, {**row, "labels": [1, 1, 1]}):
        with pytest.raises(ConfigError):
            from_stepwise(broken)
    with pytest.raises(ConfigError):
        from_prm800k({"question": {}, "label": {}})
