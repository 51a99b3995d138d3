"""Advantages of a group of rollouts of one prompt (GRPO, DeepSeekMath section 4.1.2)."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor


def group_advantage(
    reward_PG: Float[Tensor, "P G"],
    counted_PG: Bool[Tensor, "P G"],
    scale: Literal["group", "none"] = "group",
) -> Float[Tensor, "P G"]:
    """Reward minus the mean of its group; with scale "group" also over the group's sample deviation + 1e-4.

    Rollouts whose check broke (`counted_PG` False) take no part and get 0. A group whose rewards are all equal gets
    exactly 0, so it gives no gradient. Dividing by the deviation favours prompts that are nearly solved or nearly
    hopeless (Dr. GRPO, arXiv:2503.20783); "none" leaves it out.
    """
    n_P1 = counted_PG.sum(dim=1, keepdim=True).clamp(min=1)
    mean_P1 = (reward_PG * counted_PG).sum(dim=1, keepdim=True) / n_P1
    centred_PG = (reward_PG - mean_P1) * counted_PG
    lowest = reward_PG.masked_fill(~counted_PG, float("inf")).amin(dim=1, keepdim=True)
    highest = reward_PG.masked_fill(~counted_PG, float("-inf")).amax(dim=1, keepdim=True)
    centred_PG = centred_PG.where(highest > lowest, 0.0)
    if scale == "none":
        return centred_PG
    variance_P1 = centred_PG.square().sum(dim=1, keepdim=True) / (n_P1 - 1).clamp(min=1)
    return centred_PG / (variance_P1.sqrt() + 1e-4)
