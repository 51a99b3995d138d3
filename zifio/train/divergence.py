"""How far a student's next-token distribution q is from its teacher's p, in chunks that never hold all logits.

    beta = 0    KL(p || q)     forward: the student covers all that the teacher does
    beta = 1    KL(q || p)     reverse: the student does nothing that the teacher does not
    between     beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q       (GKD, arXiv:2306.13649, eq. 1)

**Top-k.** A teacher may tell only its k likeliest tokens and the mass of all others. The student's probabilities of
those others are summed as well, and the divergence is one between distributions over k + 1 outcomes. Merging outcomes
raises no divergence (data processing inequality), so D_k <= D_(k+1) <= D, with equality where nothing is left out.
With P and Q the two masses left out and M = beta P + (1 - beta) Q, what is missing is

    beta = 0    P KL(p among the others || q among the others)         beta = 1: the same with p and q exchanged
    between     at most M h(beta P / M) < 0.7 M, whatever the others look like; h is the binary entropy in nats

The gradient moves the student's mass of the others to the teacher's and says nothing of how it is shared among them.

Try it alone: `pytest tests/train/test_divergence.py`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zifio.models.decoder import Decoder
from zifio.train.batch import Batch
from zifio.train.logp import CHUNK_TOKENS, chunk_logp, parts, predictors

_LEAST = -1e4
"""Stands for the log of 0, so that 0 log 0 is 0 and not NaN."""


@dataclass(frozen=True)
class Whole:
    """A teacher's distributions over its whole vocabulary, as what its head makes them from."""

    hidden_ND: Float[Tensor, "N D"]
    head_VD: Float[Tensor, "V D"]


@dataclass(frozen=True)
class Top:
    """A teacher's likeliest tokens with their log-probs, and the log of the mass of all others."""

    ids_NK: Int[Tensor, "N K"]
    logp_NK: Float[Tensor, "N K"]
    rest_N: Float[Tensor, " N"]


Targets = Whole | Top


@runtime_checkable
class Teacher(Protocol):
    """Whoever says how likely every next token is."""

    def targets(self, batch: Batch, counted_BT: Tensor) -> Targets:
        """For every counted token, in the order of `logp.predictors`, the distribution of what could stand there."""
        ...


def divergence(
    model: Decoder,
    hidden_BTD: Float[Tensor, "B T D"],
    targets: Targets,
    counted_BT: Bool[Tensor, "B T"],
    before_N: Int[Tensor, " N"],
    beta: float,
    temperature: float = 1.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Float[Tensor, "B T"]:
    """The divergence at every counted token, 0 elsewhere; nats, of softmax(logits / temperature) without a further
    factor.

    Where student and teacher have different numbers of rows behind the tokenizer's last token, only rows that both have
    take part. Memory grows as that of `logp.token_logp_entropy`.
    """
    head = model.lm_head
    assert isinstance(head, nn.Linear) and head.bias is None, "chunks multiply by the head's matrix and by nothing else"
    at_N, from_N = predictors(counted_BT, before_N)
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, from_N)
    value_N = _Chunks.apply(hidden_ND, head.weight, targets, beta, temperature, chunk_tokens)
    return value_N.new_zeros(counted_BT.numel()).index_copy(0, at_N, value_N).view_as(counted_BT)


def compare(
    logp_NJ: Float[Tensor, "N J"], logq_NJ: Float[Tensor, "N J"], beta: float
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N J"]]:
    """The divergence of two distributions, and q times its derivative by q."""
    logp_NJ, logq_NJ = logp_NJ.clamp(min=_LEAST), logq_NJ.clamp(min=_LEAST)
    p_NJ, q_NJ = logp_NJ.exp(), logq_NJ.exp()
    if beta == 0:
        return (p_NJ * (logp_NJ - logq_NJ)).sum(dim=1), -p_NJ
    if beta == 1:
        slope_NJ = q_NJ * (logq_NJ - logp_NJ)
        return slope_NJ.sum(dim=1), slope_NJ
    logm_NJ = (beta * p_NJ + (1 - beta) * q_NJ).log().clamp(min=_LEAST)
    slope_NJ = (1 - beta) * q_NJ * (logq_NJ - logm_NJ)
    return (beta * p_NJ * (logp_NJ - logm_NJ) + slope_NJ).sum(dim=1), slope_NJ


def merge(logp_NV: Float[Tensor, "N V"], ids_NK: Int[Tensor, "N K"]) -> Float[Tensor, "N J"]:
    """Log-probs of these tokens, and behind them that of all others together."""
    rest_N = logp_NV.scatter(1, ids_NK, -torch.inf).logsumexp(dim=1)
    return torch.cat([logp_NV.gather(1, ids_NK), rest_N[:, None]], dim=1)


def likeliest(whole: Whole, k: int, temperature: float = 1.0, chunk_tokens: int = CHUNK_TOKENS) -> Top:
    """The k likeliest tokens of every distribution, a chunk of tokens at a time."""
    k, pieces = min(k, len(whole.head_VD)), []
    for part in parts(len(whole.hidden_ND), chunk_tokens):
        logp_nV = chunk_logp(whole.hidden_ND[part], whole.head_VD, temperature)
        ids_nK = logp_nV.topk(k, dim=1).indices
        pieces.append((ids_nK, merge(logp_nV, ids_nK)))
    if not pieces:
        empty = whole.hidden_ND.new_zeros(0, k, dtype=torch.float32)
        return Top(empty.long(), empty, empty[:, 0])
    ids_NK, merged_NJ = (torch.cat(column) for column in zip(*pieces, strict=True))
    return Top(ids_NK, merged_NJ[:, :-1], merged_NJ[:, -1])


class _Chunks(torch.autograd.Function):
    """The divergence [N] of softmax(hidden @ head.T / temperature) from the targets, a chunk of tokens at a time.

    Backwards, with s = q dD/dq of `compare` and g the gradient of a token's D:
    d logits = g (s - q sum(s)) / temperature. The s of tokens that were merged is shared among them as q is.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets: Targets, beta: float, temperature: float, chunk: int
    ) -> Tensor:
        device = head_VD.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head_VD.dtype
        ctx.settings = targets, beta, temperature, chunk
        ctx.save_for_backward(hidden_ND, head_VD)
        head_VD, rows = _shared(head_VD.to(ctx.dtype), targets)
        value_N = hidden_ND.new_zeros(len(hidden_ND), dtype=torch.float32)
        for part in parts(len(hidden_ND), chunk):
            logq_nV = chunk_logp(hidden_ND[part].to(ctx.dtype), head_VD, temperature)
            logp_nJ, logq_nJ = _outcomes(targets, part, rows, logq_nV, temperature, ctx.dtype)
            value_N[part] = compare(logp_nJ, logq_nJ, beta)[0]
        return value_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor | None, ...]:
        (hidden_ND, whole_head_VD), (targets, beta, temperature, chunk) = ctx.saved_tensors, ctx.settings
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        hidden_gradient = torch.zeros_like(hidden_ND) if wants_hidden else None
        head_gradient = torch.zeros_like(whole_head_VD) if wants_head else None
        head_VD, rows = _shared(whole_head_VD.to(ctx.dtype), targets)
        for part in parts(len(hidden_ND), chunk):
            hidden_nD = hidden_ND[part].to(ctx.dtype)
            logq_nV = chunk_logp(hidden_nD, head_VD, temperature)
            logp_nJ, logq_nJ = _outcomes(targets, part, rows, logq_nV, temperature, ctx.dtype)
            slope_nJ = compare(logp_nJ, logq_nJ, beta)[1]
            slope_nV = _spread(targets, part, slope_nJ, logq_nJ, logq_nV)
            logits_gradient = slope_nV - logq_nV.exp_().mul_(slope_nJ.sum(dim=1, keepdim=True))
            logits_gradient = logits_gradient.mul_(gradient_N[part, None] / temperature).to(ctx.dtype)
            if hidden_gradient is not None:
                hidden_gradient[part] = (logits_gradient @ head_VD).to(hidden_gradient.dtype)
            if head_gradient is not None:
                head_gradient[: len(head_VD)] += logits_gradient.T @ hidden_nD
        return hidden_gradient, head_gradient, None, None, None, None


def _shared(head_VD: Tensor, targets: Targets) -> tuple[Tensor, int]:
    """The head's rows that the teacher has too, and how many these are."""
    rows = min(len(head_VD), len(targets.head_VD)) if isinstance(targets, Whole) else len(head_VD)
    return head_VD[:rows], rows


def _outcomes(
    targets: Targets, part: slice, rows: int, logq_nV: Tensor, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Log-probs of the outcomes that are compared, under the teacher and under the student."""
    if isinstance(targets, Whole):
        logp_nV = chunk_logp(targets.hidden_ND[part].to(dtype), targets.head_VD[:rows].to(dtype), temperature)
        return logp_nV, logq_nV
    logp_nJ = torch.cat([targets.logp_NK[part], targets.rest_N[part, None]], dim=1)
    return logp_nJ, merge(logq_nV, targets.ids_NK[part])


def _spread(targets: Targets, part: slice, slope_nJ: Tensor, logq_nJ: Tensor, logq_nV: Tensor) -> Tensor:
    """The slope of every token from that of the outcomes: of a token among the others, its share of theirs."""
    if isinstance(targets, Whole):
        return slope_nJ
    shares_nV = (logq_nV - logq_nJ[:, -1:].clamp(min=_LEAST)).clamp_(max=0).exp_()
    return shares_nV.mul_(slope_nJ[:, -1:]).scatter_(1, targets.ids_NK[part], slope_nJ[:, :-1])
