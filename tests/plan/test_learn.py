"""Will it learn? The figures are exact, and each reason for a no is found where it is the reason."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest

from zifio.plan.learn import HIGHEST_BASE, Health, Judged, fault_of_start, outlook, see

SOUND = Health(32, 32, 0, 32)


def replies(right: int, n: int = 16, worked: int | None = None, **more: object) -> list[Judged]:
    """So many right ones of n, of which so many are worked out; all of them unless it is said."""
    worked = right if worked is None else worked
    outcomes = ["right"] * right + ["wrong"] * (n - right)
    return [Judged(o, float(i < worked), **more) for i, o in enumerate(outcomes)]  # type: ignore[arg-type]


def test_figures_are_means_over_all_choices_of_a_group():
    seen = see([replies(2, 6), replies(0, 6), replies(6, 6)], 3)
    every = [*combinations([1, 1, 0, 0, 0, 0], 3)]
    mixed = sum(0 < sum(group) < 3 for group in every) / len(every)
    assert seen.signal == pytest.approx((mixed + 0 + 0) / 3)
    assert seen.pass_at_k == pytest.approx((1 - comb(4, 3) / comb(6, 3) + 0 + 1) / 3)
    assert seen.pass_at_1 == pytest.approx((2 / 6 + 0 + 1) / 3)
    assert seen.problems == 3 and seen.replies == 18 and seen.k == 3


def test_a_broken_check_is_no_wrong_reply():
    seen = see([[*replies(2, 4), Judged("error", 0.0, reason="no disk")], replies(2, 4)], 4)
    assert seen.pass_at_1 == 0.5 and seen.broken == 1 and seen.fault == "no disk"


def test_yes_and_how_long():
    seen = see([replies(r) for r in (2, 5, 8, 11, 4, 6)], 16, chance=0.05)
    found = outlook(seen, SOUND, 32)
    assert found.answer == "yes" and not found.fix
    assert found.steps is not None and found.steps_interval is not None
    fast, slow = found.steps_interval
    assert fast < found.steps < slow
    higher = outlook(seen, SOUND, 32, target=0.99)
    assert (higher.steps or 0) > found.steps, "further to go"


@pytest.mark.parametrize(
    "groups, words, fix",
    [
        ([replies(0)] * 19, "not one of 304 replies is right", "easier mix"),
        ([replies(0)] * 3, "not one of 48", "more samples"),
        ([replies(0, cut=True)] * 19, "100% are cut off", "max_new_tokens"),
        ([replies(0, formed=False)] * 19, "agreed shape", "cold start"),
        ([replies(16)] * 18 + [replies(15)], "already", "harder"),
        ([replies(2, worked=0)] * 19, "guesses", "cold start"),
        ([replies(0)] * 16 + [replies(16)] * 3, "right or wrong together", "temperature"),
    ],
    ids=["never", "too-few", "cut", "shapeless", "mastered", "luck", "all-alike"],
)
def test_every_no_has_its_reason_and_its_fix(groups: list[list[Judged]], words: str, fix: str):
    found = outlook(see(groups, 16, chance=0.13), SOUND, 32)
    assert found.answer in ("no", "unlikely") and found.steps is None
    assert words in found.reason and fix in found.fix


@pytest.mark.parametrize(
    "health, words",
    [
        (Health(3, 32, 0, 32), "29 of 32 golden replies wrong"),
        (Health(32, 32, 32, 32), "32 of 32 golden replies right for another"),
    ],
)
def test_a_sick_verifier_is_the_first_reason(health: Health, words: str):
    found = outlook(see([replies(5)] * 19, 16), health, 32)
    assert found.answer == "no" and words in found.reason and "verifier" in found.fix


def test_a_verifier_that_breaks():
    groups = [[Judged("error", 0.0, reason="no disk")] * 16] * 19
    found = outlook(see(groups, 16), SOUND, 32)
    assert found.answer == "no" and "304 of 304" in found.reason and "no disk" in found.reason


def test_the_gate_and_the_plan_differ_in_what_is_too_good_alone():
    good = see([replies(r) for r in (10, 12, 14, 8, 13, 13)], 16, chance=0.05)
    assert "above 0.6" in str(fault_of_start(good, HIGHEST_BASE))
    assert outlook(good, SOUND, 32).answer in ("yes", "unlikely")
    assert fault_of_start(see([replies(5)] * 9, 16), HIGHEST_BASE) is None
