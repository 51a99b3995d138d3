"""Linear attention by the gated delta rule: Gated DeltaNet (arXiv:2412.06464) as Qwen3-Next has it.

A head remembers a matrix S [K, X] instead of keys and values. It fades, and is corrected where the new key points:

    S_t = a_t S_{t-1} + k_t d_t^T       d_t = b_t (v_t - a_t S_{t-1}^T k_t)       o_t = S_t^T q_t

with a_t in (0, 1) the decay and b_t in (0, 1) the strength of the correction. A strength of up to 2 lets the
transition a_t (I - b_t k_t k_t^T) have a negative eigenvalue, which parity and other state tracking need
(arXiv:2411.12537). Queries and keys have length 1, queries times K^-0.5; before that, queries, keys and values pass a
short causal convolution, which may be left out.

Three forms with one result. `recurrent` is the rule, a token at a time: the reference, and what decoding does.
`chunked` cuts sequences into pieces of some tokens whose corrections d solve a triangular system (the WY
representation, arXiv:2406.06484), so that training is matrix products; only from piece to piece does it go in order.
On a CPU the kernels (kernels/delta.c) go token by token, forwards and backwards, as a memory stays in the processor's
cache.

Sequences that stand side by side, and samples behind one copy of their prompt, are pieces with different parents.

Try it alone: `pytest tests/models/test_linear_attention.py`
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zifio.kernels import delta
from zifio.kernels import operators as kernels
from zifio.models.config import AnyConfig
from zifio.models.layers import Linear, RMSNorm

if TYPE_CHECKING:
    from zifio.models.attention import Cache, Geometry

CHUNK = 64
"""Tokens of a piece, at most."""

Mix = Callable[[tuple[Tensor, ...]], Tensor]
"""All between a layer's projections, of what `GatedDeltaNet._inputs` gives."""


class Rule(NamedTuple):
    """What the rule is applied to, for N tokens and H heads."""

    q_NHK: Tensor
    k_NHK: Tensor
    v_NHX: Tensor
    log_decay_NH: Tensor
    """Logarithm of a_t, at most 0."""
    beta_NH: Tensor
    """b_t."""


class Pieces(NamedTuple):
    """Sequences cut into Z pieces of at most U tokens, in levels: each goes on where one of the level before ended."""

    token_ZU: Tensor
    """Which token stands where in a piece; N, one behind the last, where none does."""
    place_N: Tensor
    """Where each token stands, on the flattened axis Z*U."""
    parent_Z: Tensor
    """Place of a piece's parent in its level; of pieces without one, the memory that they begin with, -1 for none."""
    sizes: tuple[int, ...]
    """Pieces of each level; they stand in this order."""
    ends_M: Tensor
    """The last piece of each sequence."""


def cut(spans: np.ndarray, given: np.ndarray | None = None, chunk: int = CHUNK) -> Pieces:
    """Pieces of sequences (start, count, start of the prefix, its length) as `attention.spans_of` has them, [M, 4].

    A sequence that continues a prefix begins with what its root remembers there, so the root is cut there too. `given`
    says with which of the memories at hand a sequence without prefix begins, [M], -1 for none.
    """
    starts, counts, parents, depths, ends = [], [], [], [], []
    borders = _borders(spans)
    ended: dict[tuple[int, int], int] = {}  # the piece that ends a root's first n tokens
    for place, (start, count, prefix, n_prefix) in enumerate(spans.tolist()):
        parent = ended[prefix, n_prefix] if n_prefix else -1
        depth = depths[parent] + 1 if n_prefix else 0
        inner = borders.get(start, set()) if not n_prefix else set()
        at = sorted({*range(0, count, chunk), *inner, count})
        for first, last in pairwise(at):
            is_root = depth == 0
            parents.append((-1 if given is None else int(given[place])) if is_root else parent)
            starts.append(start + first)
            counts.append(last - first)
            depths.append(depth)
            parent, depth = len(starts) - 1, depth + 1
            if not n_prefix:
                ended[start, last] = parent
        ends.append(parent)
    return _levelled(np.array(starts), np.array(counts), np.array(parents), np.array(depths), np.array(ends))


def _borders(spans: np.ndarray) -> dict[int, set[int]]:
    """After how many of its tokens each root is continued by others."""
    borders: dict[int, set[int]] = {}
    for _, _, prefix, n_prefix in spans[spans[:, 3] > 0].tolist():
        borders.setdefault(prefix, set()).add(n_prefix)
    return borders


def _levelled(
    starts: np.ndarray, counts: np.ndarray, parents: np.ndarray, depths: np.ndarray, ends: np.ndarray
) -> Pieces:
    """The pieces in order of depth."""
    order = np.argsort(depths, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    sizes = np.bincount(depths)
    first_of_level = np.cumsum(sizes) - sizes
    parent_Z, depth_Z = parents[order], depths[order]
    inner = depth_Z > 0
    parent_Z[inner] = rank[parent_Z[inner]] - first_of_level[depth_Z[inner] - 1]
    n, column_U = int(counts.sum()), np.arange(counts.max())
    held_ZU = column_U < counts[order, None]
    token_ZU = np.where(held_ZU, starts[order, None] + column_U, n)
    place_N = np.empty(n, np.int64)
    place_N[token_ZU[held_ZU]] = np.flatnonzero(held_ZU)
    token, place, parent, end = (torch.from_numpy(column) for column in (token_ZU, place_N, parent_Z, rank[ends]))
    return Pieces(token, place, parent, tuple(sizes.tolist()), end)


def unit(x: Tensor) -> Tensor:
    """x divided by its length over the last axis, with Qwen3-Next's 1e-6 under the root."""
    return x * (x.square().sum(dim=-1, keepdim=True) + 1e-6).rsqrt()


def recurrent(rule: Rule, memory_HKX: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rule, token by token, for one sequence: outputs [N, H, X], and what it remembers in the end."""
    (n_heads, d_key), d_value = rule.k_NHK.shape[1:], rule.v_NHX.shape[2]
    memory = rule.v_NHX.new_zeros(n_heads, d_key, d_value) if memory_HKX is None else memory_HKX
    out = []
    for q_HK, k_HK, v_HX, log_decay_H, beta_H in zip(*rule, strict=True):
        memory = memory * log_decay_H.exp()[:, None, None]
        delta_HX = beta_H[:, None] * (v_HX - torch.einsum("hkx,hk->hx", memory, k_HK))
        memory = memory + torch.einsum("hk,hx->hkx", k_HK, delta_HX)
        out.append(torch.einsum("hkx,hk->hx", memory, q_HK))
    return torch.stack(out), memory


def step(rule: Rule, memory_MHKX: Tensor) -> tuple[Tensor, Tensor]:
    """One token of each of M sequences: outputs [M, H, X], and what they remember then."""
    memory = memory_MHKX * rule.log_decay_NH.exp()[..., None, None]
    k_MH1K = rule.k_NHK[..., None, :]
    delta_MH1X = rule.beta_NH[..., None, None] * (rule.v_NHX[..., None, :] - k_MH1K @ memory)
    memory = memory + k_MH1K.transpose(-1, -2) * delta_MH1X
    return (rule.q_NHK[..., None, :] @ memory)[..., 0, :], memory


def chunked(rule: Rule, pieces: Pieces, memory_SHKX: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same for all sequences at once: outputs [N, H, X], and the memory behind each piece, [Z, H, K, X].

    Within a piece that begins with S, G_t the product of the decays up to t, and A strictly lower triangular:

        A_ts = b_t (k_t k_s^T) G_t / G_s        (I + A) [U, W] = [b V, b G K]        D = U - W S
        O = G Q S + (Q K^T G_t / G_s, s <= t) D                S' = G_end S + (G_end / G K)^T D

    Logarithms are summed in fp64, since decays can be strong; and no gradient goes through G_t / G_t = 1, which is
    larger than all others together then.
    """
    q, k, v, log_decay, beta = (_laid(x, pieces) for x in rule)
    gone_ZHU = log_decay.double().cumsum(dim=-1)
    before_UU = torch.ones(gone_ZHU.shape[-1], gone_ZHU.shape[-1], dtype=torch.bool, device=q.device).tril(-1)
    fade_ZHUU = (gone_ZHU[..., :, None] - gone_ZHU[..., None, :]).masked_fill(~before_UU, -torch.inf).exp().to(q.dtype)
    faded_ZHU1, kept_ZHU1 = (x.exp().to(q.dtype)[..., None] for x in (gone_ZHU, gone_ZHU[..., -1:] - gone_ZHU))
    strong_ZHUK, products_ZHUU = k * beta[..., None], q @ k.transpose(-1, -2)
    system_ZHUU = (strong_ZHUK @ k.transpose(-1, -2)) * fade_ZHUU
    known = torch.cat([v * beta[..., None], strong_ZHUK * faded_ZHU1], dim=-1)
    solved = torch.linalg.solve_triangular(system_ZHUU, known, upper=False, unitriangular=True)
    inside_ZHUU = products_ZHUU * fade_ZHUU + products_ZHUU.diagonal(dim1=-2, dim2=-1).diag_embed()
    parts = (
        *solved.split([v.shape[-1], k.shape[-1]], dim=-1), inside_ZHUU, q * faded_ZHU1,
        (k * kept_ZHU1).transpose(-1, -2), faded_ZHU1[..., -1:, :], pieces.parent_Z,
    )  # fmt: skip
    memory, out, ends = memory_SHKX, [], []
    for level, part in enumerate(zip(*(part.split(pieces.sizes) for part in parts), strict=True)):
        u, w, inside, q_faded, k_kept, end, parent = part
        begin = None if memory is None else memory.index_select(0, parent.clamp(min=0))
        if level == 0 and begin is not None:
            begin = torch.where((parent < 0)[:, None, None, None], 0.0, begin)
        delta = u if begin is None else u - w @ begin
        out.append(inside @ delta if begin is None else q_faded @ begin + inside @ delta)
        memory = k_kept @ delta if begin is None else begin * end + k_kept @ delta
        ends.append(memory)
    out_ZUHX = torch.cat(out).transpose(1, 2)
    return out_ZUHX.flatten(0, 1).index_select(0, pieces.place_N), torch.cat(ends)


def _laid(x_N: Tensor, pieces: Pieces) -> Tensor:
    """[N, H, ...] as [Z, H, U, ...], zeros where a piece has no token: they change no memory."""
    padded = torch.cat([x_N, x_N.new_zeros(1, *x_N.shape[1:])])
    return padded.index_select(0, pieces.token_ZU.flatten()).unflatten(0, pieces.token_ZU.shape).transpose(1, 2)


class Held(NamedTuple):
    """What a cache holds for a layer of linear attention, and which of it the tokens of a pass go on with."""

    runs_M4: Tensor
    """Of each sequence its first token here, its tokens, its slot, and the position of the first; int64, on the CPU."""
    memory: Tensor
    """Of all slots [S, H, K, X]; for the kernels' sake rows may be longer than X."""
    tail: Tensor
    """The last tokens that the convolution saw, [S, d_conv - 1, channels]."""
    order: Order | None
    """For the form in torch."""


class Order(NamedTuple):
    """What the form in torch needs to know of a pass, the same for all layers."""

    pieces: Pieces | None
    """None where every sequence has one token."""
    taps_WN: Tensor
    """The token that stands w tokens before each one, w from 0: index into tokens, kept tails and, last, zeros."""


def order_of(spans_M4: Tensor, d_conv: int) -> Order:
    """Of sequences that begin with nothing, or continue a prefix that stands here (`attention.spans_of`)."""
    spans = spans_M4.cpu().numpy()
    n = int(spans[:, 1].sum())
    before_N, position_N = np.arange(n) - 1, np.empty(n, np.int64)
    for start, count, prefix, n_prefix in spans.tolist():
        before_N[start] = prefix + n_prefix - 1
        position_N[start : start + count] = np.arange(n_prefix, n_prefix + count)
    taps = [np.arange(n)]
    for w in range(1, max(d_conv, 1)):
        reached = position_N >= w
        taps.append(np.where(reached, before_N[np.where(reached, taps[-1], 0)], n))
    return _on(spans_M4.device, cut(spans), np.stack(taps))


def held_order(runs: np.ndarray, d_conv: int, device: torch.device) -> Order:
    """Of sequences that a cache goes on with (`Held.runs_M4`); tails stand behind the tokens, oldest first."""
    kept, n = max(d_conv - 1, 0), int(runs[:, 1].sum())
    start_M, count_M, _, first_M = runs.T
    sequence_N = np.repeat(np.arange(len(runs)), count_M)
    number_N = np.arange(n) - start_M[sequence_N]
    taps = []
    for w in range(kept + 1):
        in_tail = n + sequence_N * kept + kept + number_N - w
        nothing = n + len(runs) * kept
        taps.append(np.where(number_N >= w, np.arange(n) - w, in_tail))
        taps[-1][number_N + first_M[sequence_N] < w] = nothing
    pieces = None
    if (count_M > 1).any():
        spans = np.stack([start_M, count_M, np.zeros_like(start_M), np.zeros_like(start_M)], axis=1)
        pieces = cut(spans, np.where(first_M > 0, np.arange(len(runs)), -1))
    return _on(device, pieces, np.stack(taps))


def _on(device: torch.device, pieces: Pieces | None, taps: np.ndarray) -> Order:
    if pieces is not None and device.type != "cpu":
        token, place, parent, sizes, end = pieces
        pieces = Pieces(token.to(device), place.to(device), parent.to(device), sizes, end.to(device))
    return Order(pieces, torch.from_numpy(taps).to(device))


class ShortConvolution(nn.Module):
    """The weights of a causal convolution of every channel by itself, as transformers names and shapes them."""

    def __init__(self, n_channels: int, d_conv: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_channels, 1, d_conv))


class GatedDeltaNet(nn.Module):
    """A layer of linear attention; names and layout of weights are those of transformers' Qwen3NextGatedDeltaNet."""

    def __init__(self, config: AnyConfig, layer: int) -> None:
        super().__init__()
        assert config.linear is not None, "the config has no shape of linear attention"
        self.layer, self.shape, self.eps = layer, config.linear, config.rms_norm_eps
        shape, d, values = config.linear, config.hidden_size, config.linear.n_heads * config.linear.d_value
        self.in_proj_qkvz = Linear(d, shape.d_mixed + values)
        self.in_proj_ba = Linear(d, 2 * shape.n_heads)
        self.conv1d = ShortConvolution(shape.d_mixed, shape.d_conv) if shape.d_conv else None
        self.dt_bias = nn.Parameter(torch.ones(shape.n_heads))
        self.A_log = nn.Parameter(torch.zeros(shape.n_heads))
        self.norm = RMSNorm(shape.d_value, config.rms_norm_eps)
        self.out_proj = Linear(values, d)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Rates of decay uniform in 0.01 .. 16 and steps log-uniform in 0.001 .. 0.1, as in Mamba 2 (arXiv:2405.21060),
        so that memories last: with steps of 1 they are gone at the next token. The convolution as torch's own."""
        self.A_log.uniform_(0.01, 16.0, generator=generator).log_()
        self.dt_bias.uniform_(math.log(1e-3), math.log(0.1), generator=generator).exp_().expm1_().log_()
        if self.conv1d is not None:
            bound = self.shape.d_conv**-0.5
            self.conv1d.weight.uniform_(-bound, bound, generator=generator)

    def forward(self, x_BTD: Tensor, geometry: Geometry, cache: Cache | None) -> Tensor:
        """Output [B, T, D]; what the sequences remember goes to the cache when there is one."""
        inputs = self._inputs(x_BTD)
        held = None if cache is None else cache.held(self.layer)
        if kernels.native(x_BTD):
            out_NHX = self._native(inputs, geometry, held)
        elif held is not None:
            out_NHX = self._go_on(inputs, held)
        else:
            assert geometry.order is not None, "it is there whenever no cache is"
            out_NHX = self.mix(inputs, geometry.order)[0]
        return self.out_proj(out_NHX.flatten(1).unflatten(0, x_BTD.shape[:2]))

    def _inputs(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        """What `mix` takes: projections, convolution [d_conv, channels], rates and shifts of decays, the norm."""
        qkvz_NY, ba_NY = (project(x_BTD).flatten(0, 1) for project in (self.in_proj_qkvz, self.in_proj_ba))
        shape, conv_WC = self.shape, x_BTD.new_zeros(0)
        if self.conv1d is not None:  # channels in the order of the projection: by key head
            parts = self.conv1d.weight[:, 0].split(
                [shape.n_key_heads * shape.d_key, shape.n_key_heads * shape.d_key, shape.n_heads * shape.d_value]
            )
            conv_WC = torch.cat([part.unflatten(0, (shape.n_key_heads, -1)) for part in parts], dim=1).flatten(0, 1).T
        return qkvz_NY, ba_NY, conv_WC, self.A_log.exp(), self.dt_bias, self.norm.weight

    def _native(self, inputs: tuple[Tensor, ...], geometry: Geometry, held: Held | None) -> Tensor:
        shape = self.shape
        sizes = delta.Sizes(
            shape.n_key_heads, shape.n_heads // shape.n_key_heads, shape.d_key, shape.d_value, shape.d_conv,
            shape.strongest, self.eps,
        )  # fmt: skip
        if held is not None:
            return delta.slots(sizes, inputs, held.runs_M4, held.memory, held.tail)
        spans_M4, order = geometry.spans_M4, geometry.order
        assert spans_M4 is not None and order is not None, "they are there whenever no cache is"
        return _Exact.apply(
            lambda given: delta.spans(sizes, given, spans_M4),
            lambda given: self.mix(given, order, spans_M4=spans_M4)[0],
            *inputs,
        )

    def _go_on(self, inputs: tuple[Tensor, ...], held: Held) -> Tensor:
        """The form in torch for sequences whose memories and last tokens are kept."""
        order, (start_M, count_M, slot_M, first_M) = held.order, held.runs_M4.to(held.memory.device).T
        assert order is not None, "only the kernels do without"
        memory = held.memory[slot_M]
        if order.pieces is None:
            memory = torch.where((first_M > 0)[:, None, None, None], memory, 0.0)
        out_NHX, ends, rows_RC = self.mix(inputs, order, held.tail[slot_M].flatten(0, 1), memory)
        held.memory[slot_M] = ends if order.pieces is None else ends[order.pieces.ends_M]
        if self.shape.d_conv > 1:
            last_WM = order.taps_WN[:-1, start_M + count_M - 1]
            held.tail[slot_M] = rows_RC[last_WM.flip(0).T].to(held.tail.dtype)
        return out_NHX

    def mix(
        self,
        inputs: tuple[Tensor, ...],
        order: Order,
        tail_RC: Tensor | None = None,
        memory_SHKX: Tensor | None = None,
        spans_M4: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All between the projections, in torch and in fp32 at least: outputs [N, H, X]; memories at the ends of
        pieces, or of sequences that have one token; and what the convolution sees, as `Order.taps_WN` counts it.

        With `spans_M4` the rule is the kernels', and no memories are told."""
        shape, n_key_heads = self.shape, self.shape.n_key_heads
        with torch.autocast(inputs[0].device.type, enabled=False):
            wide = torch.promote_types(inputs[0].dtype, torch.float32)
            qkvz_NY, ba_NY, conv_WC, rate_H, shift_H, norm_X = (x.to(wide) for x in inputs)
            d_mixed = shape.d_mixed // n_key_heads
            mixed_NJY, gate_NJY = qkvz_NY.unflatten(-1, (n_key_heads, -1)).tensor_split([d_mixed], dim=-1)
            rows_RC = _rows(mixed_NJY.flatten(1), tail_RC)
            seen_NC = rows_RC[: len(qkvz_NY)]
            if shape.d_conv:
                now_C, *before = conv_WC.flip(0)
                seen_NC = seen_NC * now_C
                for tap_N, weight_C in zip(order.taps_WN[1:], before, strict=True):
                    seen_NC = seen_NC + rows_RC.index_select(0, tap_N) * weight_C
            q_NJK, k_NJK, v_NJY = (
                F.silu(seen_NC)
                .unflatten(-1, (n_key_heads, -1))
                .split([shape.d_key, shape.d_key, d_mixed - 2 * shape.d_key], dim=-1)
            )
            group = shape.n_heads // n_key_heads
            q_NHK, k_NHK = (unit(x).repeat_interleave(group, dim=1) for x in (q_NJK, k_NJK))
            strength_NH, fading_NH = (x.flatten(1) for x in ba_NY.unflatten(-1, (n_key_heads, 2, group)).unbind(2))
            rule = Rule(
                q_NHK * shape.d_key**-0.5, k_NHK, v_NJY.reshape(-1, shape.n_heads, shape.d_value),
                -rate_H * F.softplus(fading_NH + shift_H), shape.strongest * strength_NH.sigmoid(),
            )  # fmt: skip
            if spans_M4 is not None:
                out_NHX, ends = delta.rule(*rule, spans_M4), rate_H.new_zeros(0)
            elif order.pieces is None:
                assert memory_SHKX is not None, "one token alone goes on with something"
                out_NHX, ends = step(rule, memory_SHKX)
            else:
                out_NHX, ends = chunked(rule, order.pieces, memory_SHKX)
            out_NHX = F.rms_norm(out_NHX, norm_X.shape, norm_X, self.eps)
            return (out_NHX * F.silu(gate_NJY.reshape(out_NHX.shape))).to(inputs[0].dtype), ends, rows_RC


def _rows(mixed_NC: Tensor, tail_RC: Tensor | None) -> Tensor:
    """What taps count: tokens, kept tails, zeros."""
    tail = () if tail_RC is None else (tail_RC.to(mixed_NC.dtype),)
    return torch.cat([mixed_NC, *tail, mixed_NC.new_zeros(1, mixed_NC.shape[1])])


class _Exact(torch.autograd.Function):
    """The kernels' values, which are the sampler's to the bit, with the gradients of `mix`."""

    @staticmethod
    def forward(ctx: Any, run: Mix, mix: Mix, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.mix = mix
        return run(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_(want) for x, want in zip(ctx.saved_tensors, wanted, strict=True)]
            out = ctx.mix(tuple(inputs))
            found = iter(torch.autograd.grad(out, [x for x in inputs if x.requires_grad], d_out))
        return None, None, *(next(found) if x.requires_grad else None for x in inputs)
