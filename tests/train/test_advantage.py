"""Group advantages equal GRPO's formula; equal rewards and broken checks give exactly nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zifio.train.advantage import group_advantage


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


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 1e-8, 7.3e5])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_equal_rewards_give_exactly_zero(scale: str, value: float, size: int):
    """Also where the mean of equal numbers is not exactly that number."""
    reward_PG = torch.full((2, size), value)
    assert (group_advantage(reward_PG, all_counted(reward_PG), scale) == 0).all()


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 7.3e5])
def test_equal_rewards_beside_a_broken_check_give_exactly_zero(scale: str, value: float):
    reward_PG = torch.tensor([[value] * 7 + [0.0]])
    assert (group_advantage(reward_PG, torch.arange(8)[None] < 7, scale) == 0).all()


@pytest.mark.parametrize("scale", ["group", "none"])
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
    for scale in ("group", "none"):
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
