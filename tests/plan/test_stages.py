"""A stage's seconds put together: laws of the sums, whatever was measured."""

from __future__ import annotations

import pytest

from zifio.plan.stages import Drawing, Draws, Lengths, StageWork, Training, forecast_stage

LENGTHS = Lengths(prompt=20.0, bare=10.0, worked=40.0, limit=64)
PACE = Drawing(prompt_s=0.001, step_s=0.01, row_s=0.0001, judge_s=0.002)


def test_drawing_counts_prompts_steps_rows_and_verdicts():
    found = PACE.seconds(100, 30.0, 50.0, 100)
    assert found == pytest.approx(100 * 0.003 + 50 * 0.01 + 100 * 30 * 0.0001)


def test_fewer_side_by_side_take_more_steps():
    wide, narrow = PACE.seconds(100, 30.0, 30.0, 100), PACE.seconds(100, 30.0, 30.0, 10)
    assert narrow - wide == pytest.approx(270 * 0.01)


def test_training_is_steps_times_fixed_and_tokens():
    work = StageWork("base", "pretrain", steps=10, step_tokens=1000.0, once_s=3.0)
    found = forecast_stage(work, Training(0.5, 0.001), None)
    assert found.seconds == pytest.approx(10 * (0.5 + 1.0) + 3.0)
    assert found.low_s == found.seconds == found.high_s, "nothing is unknown"
    assert found.parts == {"training": pytest.approx(15.0), "drawing": 0.0, "rest": 3.0}


def test_what_is_unknown_makes_the_interval():
    draws = (Draws(512, 512, LENGTHS, 10),)
    work = StageWork(
        "rl", "rl", steps=10, step_tokens=20000.0, signal=(0.1, 0.5, 0.9), draws=draws, share_worked=(0.3, 0.9, 1.0)
    )
    found = forecast_stage(work, Training(0.1, 1e-4), PACE)
    assert found.low_s < found.seconds < found.high_s
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    assert found.parts["training"] == pytest.approx(10 * (0.1 + 1.0))


def test_rl_may_find_that_length_pays():
    draws = (Draws(512, 512, LENGTHS, 10),)
    plain, free = (StageWork("rl", "rl", draws=draws, to_limit=free) for free in (False, True))
    one, two = forecast_stage(plain, None, PACE), forecast_stage(free, None, PACE)
    assert two.high_s == pytest.approx(10 * PACE.seconds(512, 64.0, 64.0, 512)) and one.high_s == one.seconds
    assert one.seconds == two.seconds


def test_lengths_lie_between_bare_and_worked_and_below_the_limit():
    assert LENGTHS.mean(0.0) == 10 and LENGTHS.mean(1.0) == 40 and LENGTHS.mean(0.5) == 25
    assert Lengths(20.0, 10.0, 400.0, 64).mean(1.0) == 64
    assert 10 < LENGTHS.mean(None) < 64, "an unknown model"
