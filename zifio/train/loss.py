"""The one loss: four terms under per-token weights, plus what keeps the model healthy (MTP, expert balance).

    sum_t  w_policy  * c * -min(r A, clip(r, 1-low, 1+high) A)                               (GRPO, DeepSeekMath eq. 3)
      or   w_policy  * c * -sg(min(r, cap)) A logp                                           (CISPO, arXiv:2506.13585)
         + w_ce      * -logp                                                                 (pretraining, SFT)
         + w_kl      * k                                                                     (penalty for leaving ref)
         + w_teacher * D(teacher, pi)                                                        (`divergence.py`)
         + w_step    * -(y log p + (1 - y) log (1 - p))                                      (process reward model)
         + w_pair    * -log sigmoid(margin)                                                  (Bradley-Terry, DPO)
         + mtp       * sum_t w_ce(t) * -logp_mtp(t)                                          (DeepSeek-V3 eq. 24, 25)
         + balance   * sequence-wise balance loss                                            (DeepSeek-V3 eq. 17)

The ratio r = exp(logp - old) is a token's, or its sequence's: exp of the mean over its counted tokens (GSPO,
arXiv:2507.18071) or of their sum (RLOO, arXiv:2402.14740). c corrects for the sampler and has no gradient. Weights
carry the normalisation (one over the tokens of the whole step, say), so micro-batches simply add up.

With d = logp - ref the estimators are k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1 (DeepSeekMath eq. 4) and
k3_corrected = r k3 (DeepSeek-V3.2, arXiv:2512.02556). On the policy's own tokens k1, k3 and k3_corrected have the
value KL(pi || ref); as losses k2 and k3_corrected have its gradient, k3 has that of KL(ref || pi), and k1 has none in
expectation, since E[grad logp] = 0: it belongs into the reward.

A tokenizer of pictures learns from pixels alone (VQ-VAE, arXiv:1711.00937, eq. 3), latents z and codes e of length 1:
|x - x'|^2 + l1 |x - x'| + |sg(z) - e|^2 + beta |z - sg(e)|^2, each a mean.

A classifier of pictures learns the cross-entropy of their labels, an encoder of them that of all words of captions.

The last two terms are of stages of their own. p is the probability of the second class at the last token of a step, y
its label or a share. A pair's margin is what the chosen text has more than the rejected one: of a reward model's score
(Bradley and Terry, 1952), or of beta * sum(logp - ref) (DPO, arXiv:2305.18290).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from zifio.models.attention import predecessors
from zifio.models.captioner import Captioner
from zifio.models.classifier import Classifier
from zifio.models.decoder import Decoder, Output, balance, sequence_ids
from zifio.models.vq import Vq, joined_pixels
from zifio.models.weights import AnyModel
from zifio.train.batch import Batch
from zifio.train.config import Correction
from zifio.train.divergence import Teacher, Top, divergence
from zifio.train.logp import predictors, token_logp_entropy


@dataclass(frozen=True)
class LossTerms:
    """What a stage chooses of the loss, apart from the per-token weights; `train.config.RlStage` explains each."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    temperature: float = 1.0
    """Log-probs are those of logits / temperature: the policy that was sampled from."""
    mtp_weight: float = 0.0
    balance_weight: float = 0.0
    ratio: Literal["token", "sequence", "product"] = "token"
    cap: float | None = None
    kl: Literal["k1", "k2", "k3", "k3_corrected"] = "k3"
    correction: Correction | None = None
    off_policy_delta: float | None = None
    teacher: Teacher | None = None
    """Whom the tokens with a teacher weight are to follow; it is asked for one micro-batch at a time."""
    beta: float = 0.0
    """Which divergence from the teacher: 0 forward KL, 1 reverse KL, between them GKD's."""
    dpo_beta: float = 0.1
    """Of DPO."""
    l1_weight: float = 0.0
    """Of the absolute error of pixels, beside the squared one."""
    hears_codes: Callable[[Tensor], None] | None = None
    """Is told which codes a micro-batch of pictures became."""


@dataclass
class LossResult:
    """The loss of one micro-batch and what to report of it: sums over tokens, to be divided by `n_tokens`."""

    loss: Tensor
    sums: dict[str, float] = field(default_factory=dict)
    load_LE: list[Tensor] = field(default_factory=list)
    """Tokens per expert and MoE layer, for the loss-free balance."""


def batch_loss(model: AnyModel, batch: Batch, terms: LossTerms, share_of_step: float) -> LossResult:
    """The loss of a micro-batch that holds `share_of_step` of the step's sequences."""
    if isinstance(model, Vq):
        return picture_loss(model, batch, terms, share_of_step)
    if isinstance(model, Classifier):
        return label_loss(model, batch, share_of_step)
    if isinstance(model, Captioner):
        return caption_loss(model, batch, share_of_step)
    with_mtp = terms.mtp_weight > 0
    output = _forward(model, batch, with_mtp)
    if model.config.num_labels is None:
        result = _of_tokens(model, output, batch, terms)
    else:
        result = score_loss(model.score(output.hidden_BTD), batch)
    if with_mtp:
        _multi_token(result, model, output, batch, terms.mtp_weight)
    if output.routing:
        balance_loss, result.load_LE = balance(output, batch.positions_BT, batch.real_BT)
        result.loss = result.loss + terms.balance_weight * share_of_step * balance_loss
        result.sums["balance_loss"] = share_of_step * balance_loss.item()
    return result


def _forward(model: Decoder, batch: Batch, with_mtp: bool = False) -> Output:
    """The model's pass over a micro-batch, with its pictures where it has some."""
    pictures = {} if batch.pixels_MUYX is None else {"pixels_MUYX": batch.pixels_MUYX}
    experts_BTLA = batch.experts_BTLA
    return model(batch.tokens_BT, batch.positions_BT, with_mtp=with_mtp, experts_BTLA=experts_BTLA, **pictures)


def caption_loss(model: Captioner, batch: Batch, share_of_step: float) -> LossResult:
    """Cross-entropy of every word of captions from their pictures alone; each picture counts alike."""
    assert batch.pixels_MUYX is not None, "an encoder of pictures learns from pictures"
    logits_MTV = model(batch.pixels_MUYX).float()
    loss_MT = F.cross_entropy(logits_MTV.transpose(1, 2), batch.tokens_BT, reduction="none") * batch.real_BT
    loss = share_of_step * (loss_MT.sum(dim=1) / batch.real_BT.sum(dim=1)).mean()
    return LossResult(loss, {"cross_entropy": loss.item()})


def picture_loss(model: Vq, batch: Batch, terms: LossTerms, share_of_step: float) -> LossResult:
    """How far a tokenizer's pictures are from those it was shown, and its latents from its codes."""
    assert batch.pixels_MUYX is not None, "a tokenizer of pictures learns from pictures"
    painted_MUYX, coded = model(batch.pixels_MUYX, batch.tokens_BT)
    off_MUYX = painted_MUYX.float() - joined_pixels(batch.pixels_MUYX, batch.tokens_BT)
    codebook = (coded.code_BTU - coded.latent_BTU.detach()).square().sum(dim=-1).mean()
    commitment = (coded.latent_BTU - coded.code_BTU.detach()).square().sum(dim=-1).mean()
    squared = off_MUYX.square().mean()
    loss = squared + terms.l1_weight * off_MUYX.abs().mean() + codebook + model.config.beta * commitment
    if terms.hears_codes is not None:
        terms.hears_codes(coded.ids_BT)
    sums = {"squared_error": squared, "commitment": commitment}
    return LossResult(share_of_step * loss, {name: share_of_step * value.item() for name, value in sums.items()})


def label_loss(model: Classifier, batch: Batch, share_of_step: float) -> LossResult:
    """Cross-entropy of pictures' labels, which stand where tokens do, one a row."""
    assert batch.pixels_MUYX is not None, "a classifier learns from pictures"
    logits_ML, label_M = model(batch.pixels_MUYX).float(), batch.tokens_BT[:, 0]
    right = (logits_ML.argmax(dim=-1) == label_M).float().mean().item()
    return LossResult(share_of_step * F.cross_entropy(logits_ML, label_M), {"accuracy": share_of_step * right})


def _of_tokens(model: Decoder, output: Output, batch: Batch, terms: LossTerms) -> LossResult:
    """`token_loss` of the log-probs of all tokens that count in some term."""
    counted_BT = torch.zeros_like(batch.real_BT)
    for name in ("cross_entropy_weight", "policy_weight", "kl_weight", "pair"):
        weight_BT = batch.column(name)
        counted_BT = counted_BT if weight_BT is None else counted_BT | (weight_BT != 0)
    with_entropy = batch.column("policy_weight") is not None
    logp_BT, entropy_BT = token_logp_entropy(
        model,
        output.hidden_BTD,
        batch.tokens_BT,
        terms.temperature,
        counted_BT,
        predecessors(batch.positions_BT),
        with_entropy,
    )
    result = token_loss(logp_BT, entropy_BT, batch, terms)
    _divergence(result, model, output, batch, terms)
    return result


@torch.no_grad()
def policy_logp(model: Decoder, batch: Batch, temperature: float) -> Float[Tensor, "B T"]:
    """Log-probs under `model` of the tokens that have a policy weight or are of a pair, 0 elsewhere; no gradient."""
    weight_BT = batch.columns["pair" if "pair" in batch.columns else "policy_weight"]
    hidden_BTD = _forward(model, batch).hidden_BTD
    before_N = predecessors(batch.positions_BT)
    return token_logp_entropy(model, hidden_BTD, batch.tokens_BT, temperature, weight_BT != 0, before_N)[0]


def token_loss(
    logp_BT: Float[Tensor, "B T"], entropy_BT: Float[Tensor, "B T"] | None, batch: Batch, terms: LossTerms
) -> LossResult:
    """The three terms that follow from the tokens' own log-probs; the module's docstring has the formulas."""
    result = LossResult(logp_BT.new_zeros(()))
    _cross_entropy(result, logp_BT, batch)
    _policy_gradient(result, logp_BT, entropy_BT, batch, terms)
    _reference_kl(result, logp_BT, batch, terms)
    if batch.column("pair") is not None:
        _pairs(result, terms.dpo_beta * (logp_BT - batch.columns["reference_logp"]), batch)
    return result


def score_loss(scores_BTY: Float[Tensor, "B T Y"], batch: Batch) -> LossResult:
    """The terms that follow from the scores of tokens, Y of each: of steps where there are two, of pairs where one."""
    scores_BTY = scores_BTY.float()
    result = LossResult(scores_BTY.new_zeros(()))
    if batch.column("step_weight") is not None:
        _steps(result, scores_BTY, batch)
    if batch.column("pair") is not None:
        _pairs(result, scores_BTY[..., 0], batch)
    return result


def _steps(result: LossResult, scores_BTY: Tensor, batch: Batch) -> None:
    """Cross-entropy between the label at the last token of each step and the softmax over two classes."""
    weight_BT, label_BT = batch.columns["step_weight"], batch.columns["step_label"]
    logp_BTY = scores_BTY.log_softmax(dim=-1)
    term = -(weight_BT * (label_BT * logp_BTY[..., 1] + (1 - label_BT) * logp_BTY[..., 0])).sum()
    result.loss = result.loss + term
    agrees_BT = (logp_BTY[..., 1] > logp_BTY[..., 0]) == (label_BT > 0.5)
    result.sums |= {"step_cross_entropy": term.item(), "step_accuracy": (weight_BT * agrees_BT).sum().item()}


def _pairs(result: LossResult, value_BT: Tensor, batch: Batch) -> None:
    """-log sigmoid of the margin of each pair, whose tokens stand in this batch; `pair` is its number from 1 on, with
    a minus at the rejected text."""
    pair_BT, weight_BT = batch.columns["pair"], batch.columns["pair_weight"]
    number_N = pair_BT.abs().long().flatten()
    n_pairs = int(number_N.max()) + 1
    gap_N = (pair_BT.sign() * value_BT).where(pair_BT != 0, 0.0).flatten()
    margin_K = gap_N.new_zeros(n_pairs).index_add(0, number_N, gap_N)
    weight_K = gap_N.new_zeros(n_pairs).scatter(0, number_N, weight_BT.flatten())  # equal at all tokens of a pair
    weight_K[0] = 0.0
    term = -(weight_K * F.logsigmoid(margin_K)).sum()
    result.loss = result.loss + term
    result.sums |= {
        "pair_loss": term.item(),
        "rewards/accuracies": (weight_K * (margin_K > 0)).sum().item(),
        "rewards/margins": (weight_K * margin_K.detach()).sum().item(),
    }


def _cross_entropy(result: LossResult, logp_BT: Tensor, batch: Batch) -> None:
    weight_BT = batch.column("cross_entropy_weight")
    if weight_BT is None:
        return
    term = -(weight_BT * logp_BT).sum()
    result.loss = result.loss + term
    result.sums["cross_entropy"] = term.item()


def _policy_gradient(
    result: LossResult, logp_BT: Tensor, entropy_BT: Tensor | None, batch: Batch, terms: LossTerms
) -> None:
    weight_BT, advantage_BT = batch.column("policy_weight"), batch.column("advantage")
    if weight_BT is None or advantage_BT is None:
        return
    counted_BT = weight_BT != 0
    ratio_BT = _ratio(logp_BT, batch, terms, counted_BT)
    if terms.cap is None:
        clipped_BT = ratio_BT.clamp(1 - terms.clip_low, 1 + terms.clip_high)
        surrogate_BT = torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
        is_clipped_BT = ((ratio_BT < 1 - terms.clip_low) & (advantage_BT < 0)) | (
            (ratio_BT > 1 + terms.clip_high) & (advantage_BT > 0)
        )
    else:
        surrogate_BT = ratio_BT.detach().clamp(max=terms.cap) * advantage_BT * logp_BT
        is_clipped_BT = (ratio_BT > terms.cap) & (advantage_BT > 0)
    surrogate_BT = surrogate_BT * _sampler_weight(result, logp_BT.detach(), batch, terms, counted_BT)
    term = -(weight_BT * surrogate_BT).sum()
    result.loss = result.loss + term
    result.sums |= {
        "policy": term.item(),
        "n_policy_tokens": counted_BT.sum().item(),
        "clipped": (is_clipped_BT & counted_BT).sum().item(),
    }
    if entropy_BT is not None:
        result.sums["entropy"] = entropy_BT[counted_BT].sum().item()


def _ratio(logp_BT: Tensor, batch: Batch, terms: LossTerms, counted_BT: Tensor) -> Tensor:
    """pi / pi_old at the level that the terms name, 1 where nothing counts; without old log-probs they are today's."""
    old_BT = batch.column("old_logp")
    gap_BT = (logp_BT - (logp_BT.detach() if old_BT is None else old_BT)).where(counted_BT, 0.0)
    if terms.ratio == "token":
        return gap_BT.exp()
    total_BT = sequence_sum(gap_BT, batch.positions_BT)
    if terms.ratio == "product":
        return total_BT.exp()
    return (total_BT / sequence_sum(counted_BT.to(gap_BT), batch.positions_BT).clamp(min=1)).exp()


def _sampler_weight(
    result: LossResult, logp_BT: Tensor, batch: Batch, terms: LossTerms, counted_BT: Tensor
) -> Tensor | float:
    """Weight of each token for how far the sampler was from the trainer; reports the distance."""
    old_BT, sampler_BT = batch.column("old_logp"), batch.column("sampler_logp")
    if sampler_BT is None:  # then old log-probs are the sampler's
        trainer_BT, sampler_BT = logp_BT, (logp_BT if old_BT is None else old_BT)
    else:
        trainer_BT = logp_BT if old_BT is None else old_BT
    gap_BT = (trainer_BT - sampler_BT).where(counted_BT, 0.0)
    result.sums |= {"logp_gap": gap_BT.abs().sum().item(), "logp_gap_max": gap_BT.abs().max().item()}
    weight: Tensor | float = 1.0
    if terms.correction is not None:
        weight = correction_weight(gap_BT, batch.positions_BT, terms.correction)
        result.sums["correction"] = weight[counted_BT].sum().item()
    if terms.off_policy_delta is not None:
        drift_BT = sequence_sum((sampler_BT - logp_BT).where(counted_BT, 0.0), batch.positions_BT)
        drift_BT = drift_BT / sequence_sum(counted_BT.to(drift_BT), batch.positions_BT).clamp(min=1)
        advantage_BT = batch.columns["advantage"]
        left_out_BT = (advantage_BT < 0) & (drift_BT > terms.off_policy_delta)
        weight = weight * (~left_out_BT).to(logp_BT)
        result.sums["off_policy"] = (left_out_BT & counted_BT).sum().item()
    return weight


def correction_weight(
    gap_BT: Float[Tensor, "B T"], positions_BT: Int[Tensor, "B T"], correction: Correction
) -> Float[Tensor, "B T"]:
    """pi_trainer / pi_sampler, truncated to [low, high] or masked outside it; `gap_BT` is the log of a token's.

    `gap_BT` must be 0 on tokens that do not count.
    """
    ratio_BT = (sequence_sum(gap_BT, positions_BT) if correction.level == "sequence" else gap_BT).exp()
    if correction.mode == "truncate":
        return ratio_BT.clamp(correction.low, correction.high)
    return ratio_BT.where((ratio_BT >= correction.low) & (ratio_BT <= correction.high), 0.0)


def sequence_sum(values_BT: Float[Tensor, "B T"], positions_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """At every token the sum over its whole sequence; a sequence begins wherever the position is 0."""
    ids_BT = sequence_ids(positions_BT)
    totals = values_BT.new_zeros(len(ids_BT), int(ids_BT.max()) + 1).scatter_add(1, ids_BT, values_BT)
    return totals.gather(1, ids_BT)


def _reference_kl(result: LossResult, logp_BT: Tensor, batch: Batch, terms: LossTerms) -> None:
    weight_BT, reference_BT = batch.column("kl_weight"), batch.column("reference_logp")
    if weight_BT is None or reference_BT is None:
        return
    counted_BT = weight_BT != 0
    gap_BT = (logp_BT - reference_BT).where(counted_BT, 0.0)
    if terms.kl == "k1":
        estimate_BT = gap_BT
    elif terms.kl == "k2":
        estimate_BT = gap_BT.square() / 2
    else:
        estimate_BT = (-gap_BT).exp() + gap_BT - 1
        if terms.kl == "k3_corrected":
            estimate_BT = estimate_BT * _ratio(logp_BT, batch, terms, counted_BT)
    result.loss = result.loss + (weight_BT * estimate_BT).sum()
    result.sums["kl"] = estimate_BT.detach()[counted_BT].sum().item()


def _divergence(result: LossResult, model: Decoder, output: Output, batch: Batch, terms: LossTerms) -> None:
    """The divergence from the teacher; of one that tells its likeliest tokens only, also the mass that it left out."""
    weight_BT = batch.column("teacher_weight")
    if weight_BT is None or terms.teacher is None:
        return
    counted_BT = weight_BT != 0
    targets = terms.teacher.targets(batch, counted_BT)
    before_N = predecessors(batch.positions_BT)
    value_BT = divergence(model, output.hidden_BTD, targets, counted_BT, before_N, terms.beta, terms.temperature)
    term = (weight_BT * value_BT).sum()
    result.loss = result.loss + term
    result.sums["divergence"] = term.item()
    if isinstance(targets, Top):
        weight_N = weight_BT.flatten()[predictors(counted_BT, before_N)[0]]
        result.sums["teacher_rest"] = (weight_N * targets.rest_N.exp()).sum().item()


def _multi_token(result: LossResult, model: Decoder, output: Output, batch: Batch, mtp_weight: float) -> None:
    """Cross-entropy of token t+2 from position t, weighted like the token; only within one sequence."""
    weight_BT = batch.column("cross_entropy_weight")
    if weight_BT is None or output.mtp_hidden_BTD is None:
        return
    # Entry t of the MTP output has seen token t+1, so shifted by one it predicts the next token like the main model.
    counted_BT = (weight_BT[:, 1:] != 0) & (batch.positions_BT[:, 1:] >= 2)
    logp_BT, _ = token_logp_entropy(model, output.mtp_hidden_BTD, batch.tokens_BT[:, 1:], counted_BT=counted_BT)
    term = -(weight_BT[:, 1:] * logp_BT).sum()
    result.loss = result.loss + mtp_weight * term
    result.sums["mtp_cross_entropy"] = term.item()
