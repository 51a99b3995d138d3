"""Advantages of a group of rollouts of one prompt: GRPO (DeepSeekMath, sections 4.1.2 and 4.1.3) and its kin.

Try it alone: `pytest tests/train/test_advantage.py`
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def group_advantage(
    reward_PG: Float[Tensor, "P G"],
    counted_PG: Bool[Tensor, "P G"],
    scale: Literal["group", "none", "leave_one_out"] = "group",
) -> Float[Tensor, "P G"]:
    """Reward minus the mean of its group; with scale "group" also over the group's sample deviation + 1e-4.

    Rollouts whose check broke (`counted_PG` False) take no part and get 0. A group whose rewards are all equal gets
    exactly 0, so it gives no gradient. Dividing by the deviation favours prompts that are nearly solved or nearly
    hopeless (Dr. GRPO, arXiv:2503.20783); "none" leaves it out. "leave_one_out" subtracts the mean of the *other*
    rollouts (RLOO, arXiv:2402.14740), which is the same as n / (n - 1) times "none".
    """
    n_P1 = counted_PG.sum(dim=1, keepdim=True).clamp(min=1)
    mean_P1 = (reward_PG * counted_PG).sum(dim=1, keepdim=True) / n_P1
    centred_PG = (reward_PG - mean_P1) * counted_PG
    centred_PG = centred_PG.where(is_informative(reward_PG, counted_PG)[:, None], 0.0)
    if scale == "none":
        return centred_PG
    if scale == "leave_one_out":
        return centred_PG * n_P1 / (n_P1 - 1).clamp(min=1)
    variance_P1 = centred_PG.square().sum(dim=1, keepdim=True) / (n_P1 - 1).clamp(min=1)
    return centred_PG / (variance_P1.sqrt() + 1e-4)


def is_informative(reward_PG: Float[Tensor, "P G"], counted_PG: Bool[Tensor, "P G"]) -> Bool[Tensor, " P"]:
    """Whether the counted rewards of a group are not all equal, so that it teaches anything."""
    lowest_P = reward_PG.masked_fill(~counted_PG, float("inf")).amin(dim=1)
    highest_P = reward_PG.masked_fill(~counted_PG, float("-inf")).amax(dim=1)
    return highest_P > lowest_P


def process_advantage(
    rewards_G_K: list[list[float]],
    ends_G_K: list[list[int]],
    lengths_G: list[int],
    scale: Literal["group", "none"] = "group",
) -> list[list[float]]:
    """Advantage of every token of a group's replies from the rewards of their steps (DeepSeekMath, section 4.1.3).

    `ends_G_K` names each step's last token, rising within a reply. All step rewards of the group share one mean (and,
    with scale "group", one sample deviation + 1e-4); a token's advantage is the sum over the steps that end at it or
    behind it, so tokens behind the last step get 0. One step per reply, ending at its last token, is
    `group_advantage`. More steps mean larger sums: padding a reply with steps pays as long as they are better than the
    mean.
    """
    pooled = torch.tensor([[reward for rewards in rewards_G_K for reward in rewards]])
    if not pooled.numel():
        return [[0.0] * length for length in lengths_G]
    normalised = iter(group_advantage(pooled, torch.ones_like(pooled, dtype=torch.bool), scale)[0].tolist())
    out = []
    for rewards, ends, length in zip(rewards_G_K, ends_G_K, lengths_G, strict=True):
        at_end = [0.0] * length
        for _, end in zip(rewards, ends, strict=True):
            at_end[end] += next(normalised)
        total, tokens = 0.0, []
        for value in reversed(at_end):
            total += value
            tokens.append(total)
        out.append(tokens[::-1])
    return out


def overlong_punishment(length: int, longest: int, cache: int) -> float:
    """What length costs, in [-1, 0]: nothing up to longest - cache, then linearly to -1 (DAPO, eq. 13)."""
    if cache == 0:
        return 0.0
    return max(-1.0, min(0.0, (longest - cache - length) / cache))
