"""The verifier's word on an item: exact where there is a right answer, in words where there is none or the check
breaks."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from zifio.label.item import Item
from zifio.label.referee import Referee


@pytest.fixture(scope="module")
def referee() -> Generator[Referee, None, None]:
    with Referee() as one:
        yield one


def item(**given: Any) -> Item:
    return Item.model_validate({"id": "i", "prompt": "p", "steps": ["so it is 4"], **given})


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        ({"gold": "\\frac12", "answer": "0.5"}, "right"),
        ({"gold": "4", "answer": "5"}, "wrong"),
        ({"answer": "5"}, "unknown"),
        ({"answer": "5", "outcome": "wrong"}, "wrong"),
        ({"gold": "\\oint", "answer": "5"}, "error"),
        ({"gold": "15", "answer": "15", "prompt": "6+1-1+9", "task": {"name": "chain_sum"}}, "right"),
        ({"gold": "4", "answer": "4", "task": {"name": "no such task"}}, "error"),
        ({"kind": "answer", "response": "So \\boxed{4}.", "gold": "4"}, "right"),
        ({"kind": "pair", "a": "4", "b": "5", "gold": "4"}, "unknown"),
    ],
)
def test_verdicts(referee: Referee, given: dict[str, Any], outcome: str):
    found = referee.verdict(item(**given))
    assert found["outcome"] == outcome, found
    assert found["reason"] or outcome != "error"
