"""The one loss: three terms under per-token weights, plus what keeps the model healthy (MTP, expert balance).

    sum_t  w_policy  * -min(r A, clip(r, 1-low, 1+high) A)      r = exp(logp - old_logp)      (GRPO, DeepSeekMath eq. 3)
         + w_ce      * -logp                                                                  (pretraining, SFT)
         + w_kl      * (exp(ref - logp) - (ref - logp) - 1)                                   (k3, DeepSeekMath eq. 4)
         + mtp       * sum_t w_ce(t) * -logp_mtp(t)                                           (DeepSeek-V3 eq. 24, 25)
         + balance   * sequence-wise balance loss                                             (DeepSeek-V3 eq. 17)

Weights carry the normalisation (one over the tokens of the whole step, say), so micro-batches simply add up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zifio.models.decoder import Decoder, Output, balance
from zifio.train.batch import Batch


@dataclass(frozen=True)
class LossTerms:
    """What a stage chooses of the loss, apart from the per-token weights."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    temperature: float = 1.0
    """Log-probs are those of logits / temperature: the policy that was sampled from."""
    mtp_weight: float = 0.0
    balance_weight: float = 0.0


@dataclass
class LossResult:
    """The loss of one micro-batch and what to report of it: sums over tokens, to be divided by `n_tokens`."""

    loss: Tensor
    sums: dict[str, float] = field(default_factory=dict)
    load_LE: list[Tensor] = field(default_factory=list)
    """Tokens per expert and MoE layer, for the loss-free balance."""


def token_logp(logits_BTV: Float[Tensor, "B T V"], tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Log-probability of each token given those before it; column 0 has nothing before it and is 0.

    The one place where prediction and target are shifted against each other. In a packed row the first token of
    each later sequence gets a meaningless value, which no weight may count.
    """
    logp_BTV = logits_BTV[:, :-1].float().log_softmax(dim=-1)
    shifted = logp_BTV.gather(2, tokens_BT[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(shifted, (1, 0))


def batch_loss(model: Decoder, batch: Batch, terms: LossTerms, share_of_step: float) -> LossResult:
    """The loss of a micro-batch that holds `share_of_step` of the step's sequences."""
    with_mtp = terms.mtp_weight > 0
    output = model(batch.tokens_BT, batch.positions_BT, with_mtp=with_mtp)
    logits_BTV = model.logits(output.hidden_BTD)
    if terms.temperature != 1:
        logits_BTV = logits_BTV / terms.temperature
    logp_BT = token_logp(logits_BTV, batch.tokens_BT)
    result = LossResult(logp_BT.new_zeros(()))
    _cross_entropy(result, logp_BT, batch)
    _policy_gradient(result, logp_BT, logits_BTV, batch, terms)
    _reference_kl(result, logp_BT, batch)
    if with_mtp:
        _multi_token(result, model, output, batch, terms.mtp_weight)
    if output.routing:
        balance_loss, result.load_LE = balance(output, batch.positions_BT, batch.real_BT)
        result.loss = result.loss + terms.balance_weight * share_of_step * balance_loss
        result.sums["balance_loss"] = share_of_step * balance_loss.item()
    return result


def _cross_entropy(result: LossResult, logp_BT: Tensor, batch: Batch) -> None:
    weight_BT = batch.column("cross_entropy_weight")
    if weight_BT is None:
        return
    term = -(weight_BT * logp_BT).sum()
    result.loss = result.loss + term
    result.sums["cross_entropy"] = term.item()


def _policy_gradient(result: LossResult, logp_BT: Tensor, logits_BTV: Tensor, batch: Batch, terms: LossTerms) -> None:
    weight_BT, advantage_BT, old_BT = (batch.column(c) for c in ("policy_weight", "advantage", "old_logp"))
    if weight_BT is None or advantage_BT is None or old_BT is None:
        return
    counted_BT = weight_BT != 0
    gap_BT = (logp_BT - old_BT).where(counted_BT, 0.0)
    ratio_BT = gap_BT.exp()
    clipped_BT = ratio_BT.clamp(1 - terms.clip_low, 1 + terms.clip_high)
    surrogate_BT = torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    term = -(weight_BT * surrogate_BT).sum()
    result.loss = result.loss + term
    with torch.no_grad():
        below = (ratio_BT < 1 - terms.clip_low) & (advantage_BT < 0)
        above = (ratio_BT > 1 + terms.clip_high) & (advantage_BT > 0)
        logp_all = logits_BTV[:, :-1].log_softmax(dim=-1)
        entropy_BT = -(logp_all.exp() * logp_all).sum(dim=-1)
        result.sums |= {
            "policy": term.item(),
            "n_policy_tokens": counted_BT.sum().item(),
            "clipped": ((below | above) & counted_BT).sum().item(),
            "entropy": entropy_BT[counted_BT[:, 1:]].sum().item(),
            "logp_gap": gap_BT.abs().sum().item(),
            "logp_gap_max": gap_BT.abs().max().item(),
        }


def _reference_kl(result: LossResult, logp_BT: Tensor, batch: Batch) -> None:
    weight_BT, reference_BT = batch.column("kl_weight"), batch.column("reference_logp")
    if weight_BT is None or reference_BT is None:
        return
    log_ratio_BT = (reference_BT - logp_BT).where(weight_BT != 0, 0.0)
    k3_BT = log_ratio_BT.exp() - log_ratio_BT - 1
    result.loss = result.loss + (weight_BT * k3_BT).sum()
    result.sums["kl"] = k3_BT.detach().sum().item()


def _multi_token(result: LossResult, model: Decoder, output: Output, batch: Batch, mtp_weight: float) -> None:
    """Cross-entropy of token t+2 from position t, weighted like the token; only within one sequence."""
    weight_BT = batch.column("cross_entropy_weight")
    if weight_BT is None or output.mtp_hidden_BTD is None:
        return
    # Entry t of the MTP output has seen token t+1, so shifted by one it predicts the next token like the main model.
    logits_BTV = model.logits(output.mtp_hidden_BTD)
    logp_BT = token_logp(logits_BTV, batch.tokens_BT[:, 1:])
    has_two_before = batch.positions_BT[:, 1:] >= 2
    term = -(weight_BT[:, 1:] * logp_BT).where(has_two_before, 0.0).sum()
    result.loss = result.loss + mtp_weight * term
    result.sums["mtp_cross_entropy"] = term.item()
