"""Drawing the next token, each request from its own random numbers.

Drawing is by inverse cumulative distribution: one uniform number per token, so that what a request draws does not
depend on which requests stand beside it in the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zifio.config import Sampling
from zifio.kernels import operators as kernels


def uniforms(seeds: list[int], n_tokens: int) -> Float[Tensor, "B n"]:
    """Numbers in [0, 1) for every token that each request may draw, from the request's seed alone."""
    rows = [np.random.Generator(np.random.Philox(seed)).random(n_tokens) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def choose(
    logits_BV: Float[Tensor, "B V"], uniform_B: Float[Tensor, " B"], sampling: Sampling
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The drawn tokens and their log-probabilities.

    The log-probability is that of softmax(logits / temperature), before top-p removes anything: the policy's own.
    Greedy drawing (temperature 0) reports it at temperature 1.
    """
    if kernels.native(logits_BV) and sampling.top_p == 1:
        scale = 1 / sampling.temperature if sampling.temperature else 0.0
        return kernels.draw(logits_BV, torch.full((len(logits_BV),), scale), uniform_B)
    if sampling.temperature == 0:
        logp_BV = logits_BV.float().log_softmax(dim=-1)
        token_B = logp_BV.argmax(dim=-1)
    else:
        logp_BV = (logits_BV.float() / sampling.temperature).log_softmax(dim=-1)
        token_B = _draw(logp_BV.double().exp(), uniform_B, sampling.top_p)
    return token_B, logp_BV.gather(1, token_B[:, None])[:, 0]


def _draw(probability_BV: Tensor, uniform_B: Tensor, top_p: float) -> Tensor:
    """First token whose cumulative probability exceeds the request's number, scaled to what is kept."""
    if top_p < 1:
        ordered, index = probability_BV.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        kept = torch.zeros_like(probability_BV).scatter(1, index, ordered.where(before < top_p, 0.0))
        probability_BV = kept
    cumulative_BV = probability_BV.cumsum(dim=-1)
    target_B1 = (uniform_B.to(cumulative_BV) * cumulative_BV[:, -1])[:, None]
    return (cumulative_BV <= target_B1).sum(dim=-1).clamp(max=probability_BV.shape[1] - 1)
