"""DeepSeek sparse attention (arXiv:2512.02556, section 2.1): a small indexer picks what a query attends to.

    I_ts = sum_j w_tj ReLU(q_tj k_s)        kept: the tokens s <= t with the largest I_ts, at most n_kept

with few narrow heads that share one key, so that scoring all keys is cheap beside attending to them. The choice has no
gradient. The indexer learns by itself, from the attention over what it picked: its softmax over I is pulled towards
attention's weights, summed over heads and normed, by their KL divergence. Its inputs are detached, and the gradient is
added as the backward pass comes by, so that no loss elsewhere knows of it; it is the mean over the tokens of a pass.

Traps: the indexer's rotation has the halves layout, also where attention's is interleaved; its key passes a LayerNorm
with a bias. DeepSeek's Hadamard rotation of queries and keys changes no product and is left out, as in transformers.

Try it alone: `pytest tests/models/test_sparse.py`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from zifio.models.layers import Linear
from zifio.models.mixers import IndexerShape
from zifio.models.rope import rotate

if TYPE_CHECKING:
    from zifio.models.attention import Laid


class Ask(NamedTuple):
    """What an indexer makes of N tokens, I heads of width Y."""

    q_NIY: Tensor
    weight_NI: Tensor
    """How much each head counts, scaled."""
    k_NY: Tensor
    n_kept: int


class Indexer(nn.Module):
    """Projections of the lightning indexer; names are the checkpoints'."""

    def __init__(self, shape: IndexerShape, d_model: int) -> None:
        super().__init__()
        self.shape = shape
        self.wq_b = Linear(shape.d_query, shape.n_heads * shape.d_head)
        self.wk = Linear(d_model, shape.d_head)
        self.k_norm = nn.LayerNorm(shape.d_head, eps=1e-6)
        self.weights_proj = Linear(d_model, shape.n_heads)

    def forward(self, x_BTD: Tensor, query_BTQ: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Ask:
        """From the layer's input and what its queries are made of, both detached."""
        shape, x_BTD = self.shape, x_BTD.detach()
        q_BTIY = self.wq_b(query_BTQ.detach()).unflatten(-1, (shape.n_heads, -1))
        k_BT1Y = self.k_norm(self.wk(x_BTD).to(self.k_norm.weight.dtype))[:, :, None]
        q_BTIY, k_BT1Y = (
            torch.cat([rotate(turned, cos_BTr, sin_BTr, interleaved=False), rest], dim=-1)
            for turned, rest in (x.tensor_split([shape.d_rotary], dim=-1) for x in (q_BTIY, k_BT1Y))
        )
        weight_BTI = self.weights_proj(x_BTD).float() * (shape.n_heads * shape.d_head) ** -0.5
        return Ask(q_BTIY.flatten(0, 1), weight_BTI.flatten(0, 1), k_BT1Y[:, :, 0].flatten(0, 1), shape.n_kept)


def index_scores(q_MTIY: Tensor, weight_MTI: Tensor, k_MSY: Tensor) -> Tensor:
    """I_ts, [M, T, S] in fp32."""
    products_MTIS = torch.matmul(q_MTIY.float(), k_MSY.float().transpose(1, 2)[:, None])
    return torch.matmul(weight_MTI[:, :, None], products_MTIS.relu_())[:, :, 0]


def picks(scores_MTS: Tensor, visible_MTS: Tensor, n_kept: int) -> Tensor:
    """Whether a query attends to a key: the visible ones that score highest, as [M, T, S]."""
    if scores_MTS.shape[-1] <= n_kept:
        return visible_MTS
    return best(scores_MTS.detach().masked_fill(~visible_MTS, -torch.inf), n_kept) & visible_MTS


def best(scores_MTS: Tensor, n_kept: int) -> Tensor:
    """Where the `n_kept` highest scores of each row are, of equal ones the first: ReLU makes many equal to 0, and
    which of them count must not depend on what else is computed."""
    lowest = scores_MTS.topk(n_kept, dim=-1).values[..., -1:]
    above, level = scores_MTS > lowest, scores_MTS == lowest
    return above | (level & (level.cumsum(dim=-1) <= n_kept - above.sum(dim=-1, keepdim=True)))


def attend_picked(q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, laid: Laid, scale: float, ask: Ask) -> Tensor:
    """Attention of every query over the tokens that the indexer picks of those before it, [N, H, X].

    With gradients the weights of all heads exist at once, since the indexer learns from them.
    """
    scores_MTS = index_scores(ask.q_NIY[laid.index_MT], ask.weight_NI[laid.index_MT], ask.k_NY[laid.index_MS])
    picked_MTS = picks(scores_MTS, laid.visible_MTS, ask.n_kept)
    out_MTHX, wanted_MTS = attend_where(
        q_NHK[laid.index_MT], k_NJK[laid.index_MS], v_NJX[laid.index_MS], picked_MTS, scale
    )
    if scores_MTS.requires_grad:
        out_MTHX = _Taught.apply(out_MTHX, scores_MTS, _gradient(scores_MTS, picked_MTS, wanted_MTS, laid.real_MT))
    return out_MTHX[laid.real_MT]


def attend_where(
    q_MTHK: Tensor, k_MSJK: Tensor, v_MSJX: Tensor, picked_MTS: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention over what was picked, [M, T, H, X], and its weights' mean over heads, without gradient, [M, T, S]."""
    q_MTJGK = q_MTHK.unflatten(2, (k_MSJK.shape[2], -1))
    logits_MJGTS = torch.einsum("mtjgk,msjk->mjgts", q_MTJGK * scale, k_MSJK).float()
    weights_MJGTS = logits_MJGTS.masked_fill(~picked_MTS[:, None, None], -torch.inf).softmax(dim=-1)
    out_MTJGX = torch.einsum("mjgts,msjx->mtjgx", weights_MJGTS.to(v_MSJX.dtype), v_MSJX)
    return out_MTJGX.flatten(2, 3), weights_MJGTS.detach().mean(dim=(1, 2))


def _gradient(scores_MTS: Tensor, picked_MTS: Tensor, wanted_MTS: Tensor, real_MT: Tensor) -> Tensor:
    """Of the mean over tokens of KL(wanted | softmax of the scores over what was picked)."""
    guess_MTS = scores_MTS.detach().masked_fill(~picked_MTS, -torch.inf).softmax(dim=-1)
    return (guess_MTS - wanted_MTS) * (real_MT / real_MT.sum())[..., None]


class _Taught(torch.autograd.Function):
    """The first argument as it is; on the way back the second one gets the third as its gradient."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, scores: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return d_out, gradient, None
