"""Group advantages equal GRPO's formula; equal rewards and broken checks give exactly nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zifio.train.advantage import group_advantage, is_informative, overlong_punishment, process_advantage

SCALES = ["group", "none", "leave_one_out"]


def all_counted(reward_PG: torch.Tensor) -> torch.Tensor:
    """Every check worked."""
    return torch.ones_like(reward_PG, dtype=torch.bool)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_equals_the_formula_with_sample_deviation(scale: str):
    """(R - mean) / (std + 1e-4) with n - 1 under the root, as in TRL."""
    reward = np.random.default_rng(0).integers(0, 5, (7, 6)) / 2.0
    expected = reward - reward.mean(axis=1, keepdims=True)
    if scale == "group":
        expected = expected / (reward.std(axis=1, ddof=1, keepdims=True) + 1e-4)
    reward_PG = torch.tensor(reward, dtype=torch.float32)
    np.testing.assert_allclose(group_advantage(reward_PG, all_counted(reward_PG), scale), expected, atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 1e-8, 7.3e5])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_equal_rewards_give_exactly_zero(scale: str, value: float, size: int):
    """Also where the mean of equal numbers is not exactly that number."""
    reward_PG = torch.full((2, size), value)
    assert (group_advantage(reward_PG, all_counted(reward_PG), scale) == 0).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("value", [0.1, 1 / 3, 7.3e5])
def test_equal_rewards_beside_a_broken_check_give_exactly_zero(scale: str, value: float):
    reward_PG = torch.tensor([[value] * 7 + [0.0]])
    assert (group_advantage(reward_PG, torch.arange(8)[None] < 7, scale) == 0).all()


@pytest.mark.parametrize("scale", SCALES)
def test_broken_checks_take_no_part(scale: str):
    """As if the rollout had never been drawn, whatever reward it was given."""
    reward_PG = torch.tensor([[1.0, 0.0, 99.0, 1.0, -7.0], [5.0, 1.0, 1.0, 1.0, 2.0]])
    counted_PG = torch.tensor([[True, True, False, True, False], [False, True, True, True, False]])
    out = group_advantage(reward_PG, counted_PG, scale)
    left = torch.tensor([[1.0, 0.0, 1.0]])
    torch.testing.assert_close(out[0, [0, 1, 3]], group_advantage(left, all_counted(left), scale)[0])
    assert (out[0, [2, 4]] == 0).all()
    assert (out[1] == 0).all(), "the counted rewards of the second group are equal"


@pytest.mark.parametrize("n_counted", [0, 1])
def test_fewer_than_two_counted_rollouts_give_zero(n_counted: int):
    reward_PG = torch.tensor([[1.0, 0.0, 2.0]])
    counted_PG = torch.arange(3)[None] < n_counted
    for scale in SCALES:
        out = group_advantage(reward_PG, counted_PG, scale)
        assert (out == 0).all() and torch.isfinite(out).all()


def test_groups_do_not_see_each_other():
    reward_PG = torch.rand(4, 5, generator=torch.Generator().manual_seed(1))
    whole = group_advantage(reward_PG, all_counted(reward_PG))
    for row in range(4):
        torch.testing.assert_close(
            group_advantage(reward_PG[row : row + 1], all_counted(reward_PG[:1])), whole[row, None]
        )
    torch.testing.assert_close(whole.sum(dim=1), torch.zeros(4), atol=1e-5, rtol=0)


def test_leave_one_out_subtracts_the_mean_of_the_others():
    reward = np.random.default_rng(0).normal(0, 1, (5, 4))
    counted = np.array([[True] * 4] * 4 + [[True, False, True, True]])
    found = group_advantage(torch.tensor(reward, dtype=torch.float32), torch.tensor(counted), "leave_one_out")
    for p, g in np.ndindex(5, 4):
        others = [reward[p, j] for j in range(4) if j != g and counted[p, j]]
        expected = reward[p, g] - np.mean(others) if counted[p, g] else 0.0
        assert found[p, g].item() == pytest.approx(expected, abs=1e-5)


def test_a_group_is_informative_when_counted_rewards_differ():
    reward_PG = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.3, 0.3, 0.3]])
    counted_PG = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
    assert is_informative(reward_PG, counted_PG).tolist() == [True, False, False]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_process_supervision_with_one_step_is_outcome_supervision(scale: str):
    """Ready-made check: one step per reply, ending at its last token."""
    rewards, lengths = [1.0, 0.0, 0.0, 0.5], [3, 1, 5, 2]
    found = process_advantage([[r] for r in rewards], [[n - 1] for n in lengths], lengths, scale)
    reward_PG = torch.tensor([rewards])
    outcome = group_advantage(reward_PG, all_counted(reward_PG), scale)[0].tolist()
    assert found == [[a] * n for a, n in zip(outcome, lengths, strict=True)]


def test_process_supervision_sums_the_steps_still_to_end():
    """DeepSeekMath, section 4.1.3: one mean and deviation over all steps of the group, then sums from behind."""
    rewards = [[1.0, 0.0, 1.0], [0.0], [1.0, 1.0]]
    ends, lengths = [[1, 3, 4], [2], [0, 3]], [6, 3, 4]
    pool = np.concatenate([np.array(r) for r in rewards])
    good, bad = ((r - pool.mean()) / (pool.std(ddof=1) + 1e-4) for r in (1.0, 0.0))
    expected = [
        [2 * good + bad, 2 * good + bad, good + bad, good + bad, good, 0.0],
        [bad] * 3,
        [2 * good, good, good, good],
    ]
    for found, wanted in zip(process_advantage(rewards, ends, lengths), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)


def test_process_supervision_without_any_difference_or_any_step_gives_nothing():
    assert process_advantage([[0.1, 0.1], [0.1]], [[0, 1], [1]], [2, 2]) == [[0.0, 0.0], [0.0, 0.0]]
    assert process_advantage([[], []], [[], []], [2, 1]) == [[0.0, 0.0], [0.0]]


@pytest.mark.parametrize(
    "length, cost", [(1, 0.0), (6, 0.0), (7, -0.25), (8, -0.5), (9, -0.75), (10, -1.0), (11, -1.0)]
)
def test_overlong_punishment_in_its_three_pieces(length: int, cost: float):
    """Nothing up to 10 - 4, then a line down to -1 at 10, and no further."""
    assert overlong_punishment(length, longest=10, cache=4) == cost
    assert overlong_punishment(length, longest=10, cache=0) == 0.0
