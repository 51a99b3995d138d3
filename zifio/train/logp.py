"""Log-probabilities of tokens in two forms: over given logits, and in chunks that never hold them all.

Logits of a whole batch take B x T x V numbers, more than everything else together once the vocabulary is large. Only
one log-prob per token is wanted, so the second form computes the logits of some tokens, keeps what it needs, forgets
them, and computes them once more on the way back (as cut cross-entropy does, arXiv:2411.09009).

Codes of drawings are tokens behind the vocabulary (`models/janus.py`), with a head of their own.

Try it alone: `pytest tests/train/test_logp.py`
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from zifio.kernels import operators as kernels
from zifio.models.decoder import Decoder
from zifio.models.janus import Janus

CHUNK_TOKENS = 512
"""Tokens whose logits exist at once."""


def token_logp(logits_BTV: Float[Tensor, "B T V"], tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Log-probability of each token given those before it; column 0 has nothing before it and is 0.

    The readable form of `token_logp_entropy`. In a packed row the first token of each later sequence gets a
    meaningless value, which no weight may count.
    """
    logp_BTV = logits_BTV[:, :-1].float().log_softmax(dim=-1)
    shifted = logp_BTV.gather(2, tokens_BT[:, 1:, None])[..., 0]
    return F.pad(shifted, (1, 0))


def token_logp_entropy(
    model: Decoder,
    hidden_BTD: Float[Tensor, "B T D"],
    tokens_BT: Int[Tensor, "B T"],
    temperature: float = 1.0,
    counted_BT: Bool[Tensor, "B T"] | None = None,
    before_N: Int[Tensor, " N"] | None = None,
    with_entropy: bool = False,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
    """Log-probability of each counted token given those before it, and the entropy (nats) of what it was drawn from.

    Of the policy softmax(logits / temperature). Zero where a token is not counted and in column 0; all others count
    when `counted_BT` is None. `before_N` is each token's predecessor, flattened (`models.attention.predecessors`); by
    default the token to its left. The entropy carries no gradient. Beside one chunk of logits, memory grows with the
    tokens only, forwards and backwards.
    """
    B, T = tokens_BT.shape
    counted_BT = torch.ones_like(tokens_BT, dtype=torch.bool) if counted_BT is None else counted_BT
    before_N = torch.arange(B * T, device=tokens_BT.device) - 1 if before_N is None else before_N
    at_N, from_N = predictors(counted_BT, before_N)
    before_ND = hidden_BTD.flatten(0, 1).index_select(0, from_N)
    target_N = tokens_BT.flatten()[at_N]
    is_code_N = target_N >= model.first_code if isinstance(model, Janus) else None
    if is_code_N is None or not bool(is_code_N.any()):
        logp_N, entropy_N = _text_logp(model, before_ND, target_N, temperature, with_entropy, chunk_tokens)
    else:
        assert isinstance(model, Janus)
        text_N, code_N = (~is_code_N).nonzero()[:, 0], is_code_N.nonzero()[:, 0]
        text = _text_logp(model, before_ND[text_N], target_N[text_N], temperature, with_entropy, chunk_tokens)
        drawn_N = target_N[code_N] - model.first_code
        codes = _code_logp(model, before_ND[code_N], drawn_N, temperature, with_entropy, chunk_tokens)
        logp_N, entropy_N = (
            one.new_zeros(len(target_N)).index_copy(0, text_N, one).index_copy(0, code_N, other)
            for one, other in zip(text, codes, strict=True)
        )
    logp_BT = logp_N.new_zeros(B * T).index_copy(0, at_N, logp_N).view(B, T)
    return logp_BT, logp_N.new_zeros(B * T).index_copy(0, at_N, entropy_N).view(B, T) if with_entropy else None


def _text_logp(
    model: Decoder, before_ND: Tensor, target_N: Tensor, temperature: float, with_entropy: bool, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Log-probs of tokens of text and entropies, in chunks."""
    head = model.lm_head
    assert isinstance(head, nn.Linear) and head.bias is None, "chunks multiply by the head's matrix and by nothing else"
    if kernels.native(before_ND):
        scale = kernels.scale_of(torch.tensor(temperature, device="cpu")).item()
        return kernels.token_logp(before_ND, head.weight, target_N, scale, chunk_tokens, with_entropy=with_entropy)
    return _Chunks.apply(before_ND, head.weight, target_N, temperature, with_entropy, chunk_tokens)


def _code_logp(
    model: Janus, before_ND: Tensor, code_N: Tensor, temperature: float, with_entropy: bool, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """The same of codes of drawings; a chunk's logits are computed once more on the way back."""

    def chunk(hidden_nD: Tensor, code_n: Tensor) -> tuple[Tensor, Tensor]:
        logp_nZ = (model.code_logits(hidden_nD).float() / temperature).log_softmax(dim=-1)
        kept_nZ = logp_nZ.detach()
        entropy_n = -(kept_nZ.exp() * kept_nZ).sum(dim=-1) if with_entropy else torch.zeros_like(kept_nZ[:, 0])
        return logp_nZ.gather(1, code_n[:, None])[:, 0], entropy_n

    found = [
        checkpoint(chunk, before_ND[part], code_N[part], use_reentrant=False, preserve_rng_state=False)
        for part in parts(len(code_N), chunk_tokens)
    ]
    return torch.cat([logp_n for logp_n, _ in found]), torch.cat([entropy_n for _, entropy_n in found])


def predictors(
    counted_BT: Bool[Tensor, "B T"], before_N: Int[Tensor, " N"]
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Where the counted tokens are on the flattened axis, and where the hidden states that predict them are.

    Column 0 is never counted. The one place where prediction and target are shifted against each other.
    """
    at_N = F.pad(counted_BT[:, 1:], (1, 0)).flatten().nonzero()[:, 0]
    return at_N, before_N[at_N]


class _Chunks(torch.autograd.Function):
    """(log-prob [N], entropy [N]) of targets under softmax(hidden @ head.T / temperature), a chunk of tokens at a time.

    Backwards, with g the gradient of a token's log-prob and p its softmax: d logits = g (onehot - p) / temperature.
    Products are taken in autocast's type where it is on (also backwards, which runs outside of it), the rest in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        target_N: Tensor,
        temperature: float,
        with_entropy: bool,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        device = head_VD.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head_VD.dtype
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.save_for_backward(hidden_ND, head_VD, target_N)
        logp_N = hidden_ND.new_zeros(len(hidden_ND), dtype=torch.float32)
        entropy_N = torch.zeros_like(logp_N)
        head_VD = head_VD.to(ctx.dtype)
        for part in parts(len(hidden_ND), chunk_tokens):
            logp_nV = chunk_logp(hidden_ND[part].to(ctx.dtype), head_VD, temperature)
            logp_N[part] = logp_nV.gather(1, target_N[part, None])[:, 0]
            if with_entropy:
                entropy_N[part] = -logp_nV.exp().mul_(logp_nV).sum(dim=1)
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_N: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        hidden_ND, head_VD, target_N = ctx.saved_tensors
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        hidden_gradient = torch.zeros_like(hidden_ND) if wants_hidden else None
        head_gradient = torch.zeros_like(head_VD) if wants_head else None
        head_VD = head_VD.to(ctx.dtype)
        for part in parts(len(hidden_ND), ctx.chunk_tokens):
            hidden_nD, weight_n1 = hidden_ND[part].to(ctx.dtype), gradient_N[part, None] / ctx.temperature
            logits_gradient = chunk_logp(hidden_nD, head_VD, ctx.temperature).exp_().mul_(-weight_n1)
            logits_gradient = logits_gradient.scatter_add_(1, target_N[part, None], weight_n1).to(ctx.dtype)
            if hidden_gradient is not None:
                hidden_gradient[part] = (logits_gradient @ head_VD).to(hidden_gradient.dtype)
            if head_gradient is not None and head_gradient.dtype == ctx.dtype:
                head_gradient.addmm_(logits_gradient.T, hidden_nD)
            elif head_gradient is not None:
                head_gradient += logits_gradient.T @ hidden_nD
        return hidden_gradient, head_gradient, None, None, None, None


def chunk_logp(hidden_nD: Tensor, head_VD: Tensor, temperature: float) -> Tensor:
    """log softmax(hidden @ head.T / temperature) of a few tokens, in fp32 whatever the product's type."""
    logits_nV = F.linear(hidden_nD, head_VD).float()
    return (logits_nV if temperature == 1 else logits_nV.div_(temperature)).log_softmax(dim=-1)


def parts(n: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover n things."""
    return [slice(start, start + size) for start in range(0, n, size)]
