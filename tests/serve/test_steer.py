"""A thinking budget holds for models whose marks of thinking are tokens, and for those that write them in letters."""

from __future__ import annotations

import numpy as np
import pytest

from zifio.serve.steer import Steering
from zifio.tasks.form import THINK, THOUGHT

N_VOCAB, OPEN, CLOSE = 130, 128, 129
LETTERS = tuple(map(ord, THOUGHT))


def text_of(tokens: list[int]) -> str:
    return "".join({OPEN: THINK, CLOSE: THOUGHT}.get(token) or chr(token) for token in tokens)


def steering(is_token: bool, budget: int | None = 4, **more: object) -> Steering:
    marks = (OPEN, (CLOSE,)) if is_token else (None, LETTERS)
    return Steering(N_VOCAB, 0, "start", *marks, budget, text_of=text_of, **more)  # type: ignore[arg-type]


def drawn(one: Steering, wanted: list[int]) -> tuple[list[int], str]:
    """What comes of a model that wants these tokens, and why it ends."""
    out: list[int] = []
    wanted = list(wanted)
    while wanted:
        bias = one.bias()
        forced = None if bias is None else [int(token) for token in np.flatnonzero(np.isfinite(bias))]
        token = forced[0] if forced is not None and len(forced) == 1 else wanted.pop(0)
        out.append(token)
        if reason := one.hear(token):
            return out, reason
    return out, ""


@pytest.mark.parametrize("is_token", [True, False])
def test_thinking_is_closed_when_the_budget_is_spent(is_token: bool):
    opening = [OPEN] if is_token else [*map(ord, f"\n{THINK}")]
    one = steering(is_token)
    out, _ = drawn(one, [*opening, *map(ord, "abcdefg")])
    assert text_of(out).lstrip() == f"{THINK}abcd{THOUGHT}efg" and one.phase == "content"
    early = steering(is_token)
    closing = [CLOSE] if is_token else LETTERS
    out, _ = drawn(early, [*opening, ord("a"), *closing[: 1 if is_token else 3], *map(ord, "bcdef")])
    assert text_of(out).count(THOUGHT) == 1 and early.phase == "content"


def test_what_only_begins_like_a_mark_is_content():
    one = steering(False, stops=("ta",))
    out, reason = drawn(one, [*map(ord, f"<task {THINK}abcdefgh")])
    assert (text_of(out), reason) == ("<ta", "stop string 'ta'")
    free = steering(False, budget=2)
    assert text_of(drawn(free, [*map(ord, f"so {THINK}abcdefgh")])[0]) == f"so {THINK}abcdefgh"


def test_a_mark_that_the_budget_cuts_is_written_anew():
    out, _ = drawn(steering(False), [*map(ord, f"{THINK}ab</tx")])
    assert text_of(out) == f"{THINK}ab</{THOUGHT}tx"
