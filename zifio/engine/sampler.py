"""Drawing the next token, each request from its own random numbers and with its own settings.

Drawing is by inverse cumulative distribution: one uniform number per token, so that what a request draws does not
depend on which requests stand beside it in the batch.

The log-probability that comes with a token is the policy's own, that of softmax(logits / temperature): before
top-k, top-p and min-p take anything away, and without repetition penalty or bias. Greedy drawing (temperature 0)
reports it at temperature 1.

Try it alone: `pytest tests/engine/test_sampler.py`
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zifio.config import Sampling
from zifio.engine.guide import Bias, Top
from zifio.kernels import operators as kernels

_BLOCK = 128  # tokens whose probabilities are added up first
_CANDIDATES = 256  # tokens to begin with where a draw is among the likeliest


class Settings(NamedTuple):
    """How every row of a batch draws; the fields of `zifio.config.Sampling` as columns."""

    temperature_B: Float[Tensor, " B"]
    top_k_B: Int[Tensor, " B"]
    top_p_B: Float[Tensor, " B"]
    min_p_B: Float[Tensor, " B"]
    penalty_B: Float[Tensor, " B"]


def settings_of(samplings: list[Sampling]) -> Settings:
    """One row for each."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return Settings(*(torch.tensor([getattr(sampling, name) for sampling in samplings]) for name in names))


def uniforms(seeds: list[int], n_tokens: int) -> Float[Tensor, "B n"]:
    """Numbers in [0, 1) for every token that each request may draw, from the request's seed alone."""
    rows = [np.random.Generator(np.random.Philox(seed)).random(n_tokens) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def draw(
    logits_BV: Float[Tensor, "B V"], uniform_B: Float[Tensor, " B"], temperature_B: Float[Tensor, " B"]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Tokens from softmax(logits / temperature), or the likeliest where the temperature is 0; and their log-probs.

    Probabilities are added up in blocks, then the drawn block alone token by token: over a large vocabulary that is
    three passes in fp32 instead of a cumulative sum in fp64.
    """
    if kernels.native(logits_BV):
        return kernels.draw(logits_BV.contiguous(), kernels.scale_of(temperature_B), uniform_B)
    x_BV = _scaled(logits_BV, temperature_B)
    top_B1 = x_BV.amax(dim=-1, keepdim=True)
    weight_BV = (x_BV - top_B1).exp_()
    n_blocks = -(-weight_BV.shape[1] // _BLOCK)
    if n_blocks * _BLOCK != weight_BV.shape[1]:
        weight_BV = F.pad(weight_BV, (0, n_blocks * _BLOCK - weight_BV.shape[1]))
    weight_BNW = weight_BV.view(len(weight_BV), n_blocks, _BLOCK)
    sum_BN = weight_BNW.sum(dim=-1).double()
    target_B = uniform_B * sum_BN.sum(dim=-1)
    block_B, within_B = _first_above(sum_BN, target_B)
    row = torch.arange(len(weight_BNW), device=weight_BNW.device)
    one_BW = weight_BNW[row, block_B].double()
    place_B, _ = _first_above(one_BW, within_B / sum_BN[row, block_B] * one_BW.sum(dim=-1))
    token_B = block_B * _BLOCK + place_B
    if not temperature_B.is_cpu or (temperature_B == 0).any():
        token_B = torch.where(temperature_B == 0, x_BV.argmax(dim=-1), token_B)
    return token_B, _logp(x_BV, token_B, top_B1[:, 0] + sum_BN.sum(dim=-1).log().float())


def choose(
    logits_BV: Float[Tensor, "B V"],
    uniform_B: Float[Tensor, " B"],
    settings: Settings,
    seen_BV: Bool[Tensor, "B V"] | None = None,
    bias: Bias | None = None,
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The same under all settings; `seen_BV` says which tokens a penalty concerns, and is needed where one is set.

    In transformers' order: repetition penalty, bias, temperature, top-k, top-p, min-p; each as defined there, applied
    to what the one before has left. Greedy rows know the first two only.
    """
    penalty_B1, temperature_B = settings.penalty_B[:, None], settings.temperature_B
    weighed_BV = logits_BV.float()
    if seen_BV is not None:
        penalised_BV = torch.where(weighed_BV < 0, weighed_BV * penalty_B1, weighed_BV / penalty_B1)
        weighed_BV = penalised_BV.where(seen_BV, weighed_BV)
    is_off_B = settings.penalty_B != 1
    if bias is not None:
        row_R = torch.from_numpy(bias.row_R).to(weighed_BV.device)
        weighed_BV = weighed_BV.index_add(0, row_R, torch.from_numpy(bias.bias_RV).to(weighed_BV.device))
        is_off_B = is_off_B.index_fill(0, row_R, True)
    is_cut_B = (settings.top_k_B > 0) | (settings.top_p_B < 1) | (settings.min_p_B > 0)
    is_cut_B &= temperature_B > 0
    token_B, logp_B = draw(weighed_BV, uniform_B, temperature_B)
    if is_cut_B.any():
        few = Settings(*(column_B[is_cut_B] for column_B in settings))
        x_BV = _scaled(weighed_BV[is_cut_B], few.temperature_B)
        token_B[is_cut_B] = _draw_among_likeliest(x_BV, uniform_B[is_cut_B], few)
    is_off_B |= is_cut_B
    if is_off_B.any():
        logp_B[is_off_B] = policy_logp(logits_BV[is_off_B], token_B[is_off_B], temperature_B[is_off_B])
    return token_B, logp_B


def policy_logp(
    logits_BV: Float[Tensor, "B V"], token_B: Int[Tensor, " B"], temperature_B: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Log-probs of tokens under softmax(logits / temperature), however they were chosen."""
    if kernels.native(logits_BV):
        return kernels.logp(logits_BV, kernels.scale_of(temperature_B), token_B)
    x_BV = _scaled(logits_BV, temperature_B)
    return _logp(x_BV, token_B, x_BV.logsumexp(dim=-1))


def likeliest(logits_BV: Float[Tensor, "B V"], temperature_B: Float[Tensor, " B"], n: int) -> list[list[Top]]:
    """For every row its n likeliest tokens with the log-probs that they would have as drawn ones, the first first."""
    n = min(n, logits_BV.shape[1])
    token_BK = logits_BV.topk(n, dim=-1).indices
    same_MV, same_M = logits_BV.repeat_interleave(n, dim=0), temperature_B.repeat_interleave(n)
    logp_BK = policy_logp(same_MV, token_BK.flatten(), same_M).view(-1, n)
    return [list(zip(*row, strict=True)) for row in zip(token_BK.tolist(), logp_BK.tolist(), strict=True)]


def _draw_among_likeliest(x_BV: Tensor, uniform_B: Tensor, settings: Settings) -> Tensor:
    """Tokens from the softmax over what `kept` leaves, gone through by number, as the whole vocabulary would be."""
    kept_BK, token_BK = kept(x_BV, settings)
    weight_BK = (kept_BK - kept_BK[:, :1]).exp().double()
    token_BK, order_BK = token_BK.sort(dim=-1)
    place_B, _ = _first_above(weight_BK.gather(1, order_BK), uniform_B * weight_BK.sum(dim=-1))
    return token_BK.gather(1, place_B[:, None])[:, 0]


def kept(x_BV: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """What top-k, top-p and min-p leave of scaled logits: the likeliest tokens' values, -inf where dropped, and ids.

    As many candidates are looked at as it takes until the last of every row is dropped.
    """
    n_vocab = x_BV.shape[1]
    has_top_k_B1 = (settings.top_k_B > 0)[:, None]
    top_k_B1 = settings.top_k_B.clamp(min=1, max=n_vocab)[:, None]
    width = min(max(_CANDIDATES, int(settings.top_k_B.max()) + 1), n_vocab)
    total_B1 = x_BV.logsumexp(dim=-1, keepdim=True)
    while True:
        value_BK, token_BK = x_BV.topk(width, dim=-1)
        keep_BK = ~has_top_k_B1 | (value_BK >= value_BK.gather(1, top_k_B1 - 1))
        left_B1 = value_BK.masked_fill(~keep_BK, -torch.inf).logsumexp(dim=-1, keepdim=True)
        p_BK = (value_BK - torch.where(has_top_k_B1, left_B1, total_B1)).exp().double()
        before_BK = p_BK.cumsum(dim=-1) - p_BK
        keep_BK &= (before_BK < settings.top_p_B[:, None]) | (settings.top_p_B[:, None] >= 1)
        keep_BK &= p_BK >= settings.min_p_B[:, None] * p_BK[:, :1]
        keep_BK[:, 0] = True
        if width == n_vocab or not keep_BK[:, -1].any():
            return value_BK.masked_fill(~keep_BK, -torch.inf), token_BK
        width = min(8 * width, n_vocab)


def _scaled(logits_BV: Tensor, temperature_B: Tensor) -> Tensor:
    """logits / temperature in fp32; greedy rows as they are. A GPU is not asked whether it might be spared that."""
    x_BV = logits_BV.float()
    if temperature_B.is_cpu and (temperature_B == 1).all():
        return x_BV
    return x_BV / temperature_B.masked_fill(temperature_B == 0, 1.0)[:, None]


def _first_above(weight_BN: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first place of each row where the running sum exceeds the target, and what of the target is left there.

    That place has weight: a target that rounding has brought to the whole sum is lowered by a hair.
    """
    sum_BN = weight_BN.cumsum(dim=-1)
    target_B1 = torch.minimum(target_B[:, None], sum_BN[:, -1:] * (1 - 2**-53))
    place_B1 = (sum_BN <= target_B1).sum(dim=-1, keepdim=True)
    left_B = target_B - (sum_BN.gather(1, place_B1) - weight_BN.gather(1, place_B1))[:, 0]
    return place_B1[:, 0], left_B.clamp(min=0)


def _logp(x_BV: Tensor, token_B: Tensor, total_B: Tensor) -> Tensor:
    """Log-probs of tokens, given scaled logits and the logarithm of their exponentials' sum."""
    return x_BV.gather(1, token_B[:, None])[:, 0] - total_B
