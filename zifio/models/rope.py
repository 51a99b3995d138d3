"""Rotary positions (RoPE, arXiv:2104.09864), plain or stretched to longer contexts: YaRN, Llama 3's rule, linear.

Two layouts of the pairs that are rotated: DeepSeek's weights interleave them, (x0, x1), (x2, x3), ...;
Llama's put the halves side by side, (x0, xR/2), (x1, xR/2+1), ... Scores are what matters, so both rotations
return the halves layout.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from zifio.kernels import operators as kernels
from zifio.models.families import LinearRope, Llama3Rope, RopeScaling, Yarn


def inverse_frequencies(width: int, theta: float, scaling: RopeScaling | None) -> Float[Tensor, " half"]:
    """Radians per position of each rotated pair, from fast to slow; on the CPU, also where the default is elsewhere."""
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)
    if isinstance(scaling, Yarn):
        return _yarn(frequencies, theta, scaling)
    if isinstance(scaling, Llama3Rope):
        return _llama3(frequencies, scaling)
    return frequencies / scaling.factor if isinstance(scaling, LinearRope) else frequencies


def _yarn(frequencies: Tensor, theta: float, yarn: Yarn) -> Tensor:
    """arXiv:2309.00071, section 3.2.

    A pair that turns more than `beta_fast` times over the old context keeps its frequency, one that turns less than
    `beta_slow` times is slowed by `factor`, and those between are blended linearly by number.
    """
    width = 2 * len(frequencies)

    def pair_with(rotations: float) -> float:
        turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return width * math.log(turns) / (2 * math.log(theta))

    low = max(math.floor(pair_with(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_with(yarn.beta_slow)), width - 1)
    ramp = (torch.arange(width // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)
    slowed = ramp.clamp(0, 1)
    return frequencies / yarn.factor * slowed + frequencies * (1 - slowed)


def _llama3(frequencies: Tensor, rule: Llama3Rope) -> Tensor:
    """Llama 3.1: pairs with many turns over the old context keep their frequency, those with few are slowed.

    From `high_freq_factor` turns down to `low_freq_factor` the two are blended linearly by turns.
    """
    turns = rule.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (turns - rule.low_freq_factor) / (rule.high_freq_factor - rule.low_freq_factor)
    kept = kept.clamp(0, 1)
    return frequencies / rule.factor * (1 - kept) + frequencies * kept


def temperature(scaling: RopeScaling | None) -> float:
    """Factor on MLA's softmax scale: (0.1 mscale_all_dim ln factor + 1)^2, or 1 without YaRN."""
    return _mscale(scaling.factor, scaling.mscale_all_dim) ** 2 if isinstance(scaling, Yarn) else 1.0


def amplitude(scaling: RopeScaling | None) -> float:
    """Factor on cosine and sine: 1 without YaRN, and when mscale equals mscale_all_dim, as in DeepSeek-V3."""
    if not isinstance(scaling, Yarn):
        return 1.0
    if scaling.mscale and scaling.mscale_all_dim:
        return _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
    return _mscale(scaling.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def turns(n_positions: int, frequencies_r: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every pair's angle at positions 0 ... n_positions - 1, times `scale`: [S, R/2] each.

    Angles are fp32, as in transformers; their cosine is rounded from float64, so that no entry depends on where it
    stands in the table.
    """
    positions_S = torch.arange(n_positions, device=frequencies_r.device, dtype=torch.float32)
    angles_Sr = (positions_S[:, None] * frequencies_r).double()
    return angles_Sr.cos().float() * scale, angles_Sr.sin().float() * scale


def rotate(x_BTHR: Tensor, cos_BTr: Tensor, sin_BTr: Tensor, *, interleaved: bool) -> Tensor:
    """Each pair of the last axis turned by its angle; pairs come back in the halves layout.

    `x_BTHR` is [B, T, heads, R]; `cos_BTr` and `sin_BTr` are [B, T, R/2].
    """
    if kernels.native(x_BTHR):
        return kernels.rotate(x_BTHR, cos_BTr, sin_BTr, interleaved=interleaved)
    cos, sin = cos_BTr[:, :, None], sin_BTr[:, :, None]
    if interleaved:
        first, second = x_BTHR[..., 0::2], x_BTHR[..., 1::2]
    else:
        first, second = x_BTHR.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BTHR.dtype)
