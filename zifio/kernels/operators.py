"""The kernels as torch operators with gradients. Each has a form in torch, for a GPU, other types or no compiler.

On a CPU in fp32 the C form is taken (`native`). What it promises: a token's result has the same bits whatever else is
computed beside it, however the batch is cut, with or without a cache. So the log-probabilities of the sampler are those
of the trainer, to the last bit.

Shapes: N tokens, K and X widths; see `models/config.py` for the alphabet. Tensors are fp32 unless said.

Try it alone: `pytest tests/kernels`
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zifio.kernels.library import library

Packed = tuple[Tensor, Tensor]
"""`pack` of an expert layer's two stacked weights."""


def native(x: Tensor) -> bool:
    """Whether the C form serves this tensor."""
    return _is_fp32_on_cpu(x) and not torch.is_autocast_enabled("cpu")


def _is_fp32_on_cpu(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.is_cpu and library() is not None


def _lib() -> Any:
    return library()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, packed: Tensor | None = None) -> Tensor:
    """x weight^T + bias; `packed` is `pack(weight)`, for few rows and no gradient, or a copy of it in another type."""
    if not native(x) or not x.numel():  # the kernels divide rows among threads
        return F.linear(x, lowered(weight, packed), bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        out = _Linear.apply(x, weight)
    else:
        out = _linear(x, weight, packed)
    return out if bias is None else out + bias


def _linear(x: Tensor, weight: Tensor, packed: Tensor | None = None) -> Tensor:
    (n, k), x = weight.shape, x.contiguous()
    out = x.new_empty(*x.shape[:-1], n)
    m = x.numel() // k
    if packed is not None:
        _lib().matmul_packed(m, n, k, x.data_ptr(), k, packed.data_ptr(), out.data_ptr())
    else:
        _lib().matmul(m, n, k, x.data_ptr(), k, 1, weight.data_ptr(), 1, weight.stride(0), out.data_ptr(), n, 0)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        return _linear(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dy, (n, k) = dy.contiguous(), weight.shape
        m = x.numel() // k
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            weight_at = (weight.data_ptr(), weight.stride(0), 1)
            _lib().matmul(m, k, n, dy.data_ptr(), n, 1, *weight_at, dx.data_ptr(), k, 0)
        if ctx.needs_input_grad[1]:
            dw = torch.empty(n, k)
            _lib().matmul_transposed(m, n, k, dy.data_ptr(), n, x.data_ptr(), k, dw.data_ptr(), k, 0)
        return dx, dw


def lowered(weight: Tensor, packed: Tensor | None) -> Tensor:
    """`packed` where it is what autocast would make of the weight here, which saves making it; else `weight`."""
    if packed is None or packed.dtype is weight.dtype or torch.is_grad_enabled():
        return weight
    device = weight.device.type
    wanted = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is packed.dtype
    return packed if wanted else weight


def copied(weight: Tensor, dtype: torch.dtype, before: Tensor | None) -> Tensor:
    """The weight in another type, for `lowered`; written over `before`, an older copy, so that its address stays."""
    with torch.inference_mode(False), torch.no_grad():  # what was made in inference mode could not be written over
        return weight.detach().to(dtype) if before is None else before.copy_(weight.detach())


def packed_size(weight: Tensor) -> int:
    """Floats that `pack` needs for a weight [n, k] or a stack of them [e, n, k]."""
    n, k = weight.shape[-2:]
    return weight.numel() // (n * k) * _lib().packed_size(n, k)


def pack(weight: Tensor, room: Tensor | None = None) -> Tensor:
    """A weight [n, k], or a stack of them [e, n, k], repacked for `linear` and `experts`, in `room` if given."""
    n, k = weight.shape[-2:]
    stack = weight.detach().reshape(-1, n, k)
    size = _lib().packed_size(n, k)
    out = memory(len(stack) * size) if room is None else room
    for place, one in enumerate(stack):
        _lib().pack(n, k, one.data_ptr(), k, out.data_ptr() + 4 * size * place)
    return out


def unpack(packed: Tensor, weight: Tensor) -> None:
    """Write the weight [n, k], or the stack of them [e, n, k], that `packed` was made of."""
    n, k = weight.shape[-2:]
    size = _lib().packed_size(n, k)
    for place, one in enumerate(weight.detach().view(-1, n, k)):
        _lib().unpack(n, k, packed.data_ptr() + 4 * size * place, one.data_ptr(), k)


def give_back() -> None:
    """Return the memory of freed tensors to the system where the C library would keep it (glibc), so that of two phases
    which both need much, the second does not come on top of the first."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


_HUGE_PAGE = 2**21  # bytes
_MADV_HUGEPAGE = 14


def memory(n_floats: int) -> Tensor:
    """Uninitialised memory that is read in long streams: on huge pages where the system has them (Linux), which are
    read up to 1.4 times as fast."""
    room = torch.empty(n_floats + _HUGE_PAGE // 4, device="cpu")
    skip = -room.data_ptr() % _HUGE_PAGE // 4
    out = room[skip : skip + n_floats]
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is not None and platform.system() == "Linux":
        advise(ctypes.c_void_p(out.data_ptr()), ctypes.c_size_t(4 * n_floats), _MADV_HUGEPAGE)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    if not _is_fp32_on_cpu(x):  # also under autocast, which leaves norms in fp32
        return F.rms_norm(x, weight.shape, weight, eps)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RmsNorm.apply(x, weight, eps)
    return _rms_norm(x, weight, eps)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    d, x = weight.numel(), x.contiguous()
    out = torch.empty_like(x)
    _lib().rms_norm(x.numel() // d, d, x.data_ptr(), d, weight.data_ptr(), eps, out.data_ptr())
    return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _rms_norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dy, d = dy.contiguous(), weight.numel()
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dw = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        where = (dy.data_ptr(), _address(dx), _address(dw))
        _lib().rms_norm_backward(x.numel() // d, d, x.data_ptr(), d, weight.data_ptr(), ctx.eps, *where)
        return dx, dw, None


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    if not native(gate):
        return F.silu(gate) * up
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        return _Swiglu.apply(gate, up)
    return _swiglu(gate.contiguous(), up.contiguous())


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    d, out = gate.shape[-1], torch.empty_like(gate)
    _lib().swiglu(gate.numel() // d, d, gate.data_ptr(), up.data_ptr(), d, out.data_ptr())
    return out


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d, dy = gate.shape[-1], dy.contiguous()
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        where = (dy.data_ptr(), d_gate.data_ptr(), d_up.data_ptr())
        _lib().swiglu_backward(gate.numel() // d, d, gate.data_ptr(), up.data_ptr(), d, *where)
        return d_gate, d_up


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return _elementwise(x, "sigmoid") if native(x) else x.sigmoid()


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis."""
    return _elementwise(x, "softmax") if native(x) else x.softmax(dim=-1)


def _elementwise(x: Tensor, name: str) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        return _Elementwise.apply(x, name)
    x = x.contiguous()
    y, d = torch.empty_like(x), x.shape[-1]
    getattr(_lib(), name)(x.numel() // d, d, x.data_ptr(), y.data_ptr())
    return y


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        with torch.no_grad():
            y = _elementwise(x, name)
        ctx.save_for_backward(y)
        ctx.name = name
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        if ctx.name == "sigmoid":
            return dy * y * (1 - y), None
        return y * (dy - (dy * y).sum(dim=-1, keepdim=True)), None


def rotate(x_BTHR: Tensor, cos_BTr: Tensor, sin_BTr: Tensor, *, interleaved: bool) -> Tensor:
    """RoPE, see `models.rope.rotate`; only for `native` tensors."""
    if torch.is_grad_enabled() and x_BTHR.requires_grad:
        return _Rotate.apply(x_BTHR, cos_BTr, sin_BTr, interleaved)
    return _rotate(x_BTHR, cos_BTr, sin_BTr, interleaved, back=False)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotate(x, cos, sin, interleaved, back=False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(dy, cos, sin, ctx.interleaved, back=True), None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, *, back: bool) -> Tensor:
    n_rows, n_now, heads, width = x.shape
    if x.stride(3) != 1 or (n_rows > 1 and x.stride(0) != n_now * x.stride(1)):
        x = x.contiguous()
    y = x.new_empty(x.shape)
    angles = (cos.data_ptr(), sin.data_ptr(), interleaved, back)
    where = (x.data_ptr(), x.stride(1), x.stride(2), *angles, y.data_ptr(), heads * width, width)
    _lib().rotate(n_rows * n_now, heads, width // 2, *where)
    return y


def attention(q_NHK: Tensor, k_NJK: Tensor, v_NJX: Tensor, spans_M4: Tensor, scale: float, window: int = 0) -> Tensor:
    """Causal attention within spans and their prefixes, see `models.attention.attend`; only for `native` tensors."""
    return _Attention.apply(q_NHK, k_NJK, v_NJX, spans_M4, scale, window)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Tensor, scale: float, window: int) -> Tensor:
        q, k, v, spans = q.contiguous(), k.contiguous(), v.contiguous(), spans.contiguous()
        out, lse = q.new_empty(*q.shape[:2], v.shape[-1]), q.new_empty(q.shape[:2])
        ctx.save_for_backward(q, k, v, spans, out, lse)
        ctx.scale, ctx.window = scale, window
        where = (q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), lse.data_ptr())
        _lib().attend_spans(*_sizes(q, k, v, spans), window, scale, *where)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, spans, out, lse = ctx.saved_tensors
        d_out = d_out.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        tensors = (q, k, v, out, lse, d_out, dq, dk, dv)
        sizes = (*_sizes(q, k, v, spans), ctx.window)
        _lib().attend_spans_backward(*sizes, ctx.scale, *(x.data_ptr() for x in tensors))
        return dq, dk, dv, None, None, None


def _sizes(q: Tensor, k: Tensor, v: Tensor, spans: Tensor) -> tuple[int, ...]:
    return len(spans), spans.data_ptr(), q.shape[1], k.shape[1], q.shape[2], v.shape[2]


def page_sizes(n_key_heads: int, d_key: int, d_value: int) -> tuple[tuple[int], tuple[int]] | None:
    """Shapes of a page of keys and of one of values, in floats; None without kernels."""
    if library() is None:
        return None
    return (_lib().key_page_size(n_key_heads, d_key),), (_lib().value_page_size(n_key_heads, d_value),)


def store(k_NJK: Tensor, v_NJX: Tensor, page_N: Tensor, slot_N: Tensor, keys: Tensor, values: Tensor) -> None:
    """Write new keys and values into their pages and slots (int32)."""
    k, v, (n, heads, d_key) = k_NJK.contiguous(), v_NJX.contiguous(), k_NJK.shape
    where = (page_N.data_ptr(), slot_N.data_ptr(), keys.data_ptr(), values.data_ptr())
    _lib().store(n, heads, d_key, v.shape[2], k.data_ptr(), v.data_ptr(), *where)


def attend_pages(
    q_NHK: Tensor, entry: tuple[int, int, int], scale: float, indices: list[Tensor], keys: Tensor, values: Tensor,
    window: int = 0,
) -> Tensor:  # fmt: skip
    """Attention of every query over its sequence's pages up to its own position, or its last `window`, [N, H, X].

    `entry` is (key heads, width of a key, of a value); `indices` are, in int32, each token's sequence and position,
    and the sequences' tables of pages [M, P].
    """
    q, (n, heads, _) = q_NHK.contiguous(), q_NHK.shape
    out = q.new_empty(n, heads, entry[2])
    sequence_N, position_N, table_MP = indices
    places = (sequence_N.data_ptr(), position_N.data_ptr(), table_MP.data_ptr(), table_MP.shape[1])
    memory = (keys.data_ptr(), values.data_ptr(), out.data_ptr())
    _lib().attend_pages(n, heads, *entry, window, scale, q.data_ptr(), *places, *memory)
    return out


def pick(q_MIY: Tensor, weight_MI: Tensor, pages: Tensor, table_MP: Tensor, n_M: Tensor, n_kept: int) -> Tensor:
    """The cells that an indexer picks for a query of each of M sequences, int64 [M, n_kept], in order; of a sequence
    that has fewer keys all, and zeros behind them.

    Its keys are turned in their pages [n_pages, Y, PAGE]; tables and numbers of keys are int32.
    """
    q, weight, (m, n_heads, d) = q_MIY.contiguous(), weight_MI.contiguous(), q_MIY.shape
    out = torch.zeros(m, n_kept, dtype=torch.long)
    where = (table_MP.data_ptr(), table_MP.shape[1], n_M.data_ptr(), pages.data_ptr(), out.data_ptr())
    _lib().pick(m, n_heads, d, n_kept, q.data_ptr(), weight.data_ptr(), *where)
    return out


def blocks_work(d: int, n_heads: int, n_key_heads: int, d_head: int, d_hidden: int) -> int:
    """Floats of working memory that one token takes in `models.fused`."""
    return _lib().blocks_work(d, n_heads, n_key_heads, d_head, d_hidden)


def decode_work(half: int) -> int:
    """Floats that one token takes beside those and its table in `FusedLayers.decode`."""
    return _lib().decode_work(half)


def experts(
    x_ND: Tensor,
    expert_NA: Tensor,
    gate_NA: Tensor,
    gate_up: Tensor,
    down: Tensor,
    packed: Packed | None,
) -> Tensor:
    """Gate-weighted sum of each token's experts, see `models.moe.Experts`; only for `native` tensors."""
    return _Experts.apply(x_ND, expert_NA, gate_NA, gate_up, down, packed)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        expert: Tensor,
        gate: Tensor,
        gate_up: Tensor,
        down: Tensor,
        packed: Packed | None,
    ) -> Tensor:
        x, expert, gate = x.contiguous(), expert.contiguous(), gate.contiguous()
        (n, d), (n_experts, two_f, _), n_active = x.shape, gate_up.shape, expert.shape[1]
        pairs = n * n_active
        order, place = expert.new_empty(pairs), expert.new_empty(pairs)
        first, hidden, y, out = (
            expert.new_empty(n_experts + 1),
            x.new_empty(pairs, two_f),
            x.new_empty(pairs, d),
            x.new_empty(n, d),
        )
        panels = (0, 0, 0, 0)
        if packed is not None:
            sizes = (one.numel() // n_experts for one in packed)
            panels = tuple(v for one, size in zip(packed, sizes, strict=True) for v in (one.data_ptr(), size))
        ctx.sizes = (n, d, two_f // 2, n_experts, n_active)
        inputs = (t.data_ptr() for t in (x, expert, gate, gate_up, down))
        kept = (t.data_ptr() for t in (order, place, first, hidden, y, out))
        _lib().experts(*ctx.sizes, *inputs, *panels, *kept)
        ctx.save_for_backward(x, gate, gate_up, down, order, place, first, hidden, y)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        x, gate, gate_up, down = saved[:4]
        d_out = d_out.contiguous()
        wanted = ctx.needs_input_grad[3:5]
        weights = [torch.zeros_like(w) if want else None for w, want in zip((gate_up, down), wanted, strict=True)]
        dx, d_gate = torch.empty_like(x), torch.empty_like(gate)
        addresses = [t.data_ptr() for t in (*saved, d_out, dx, d_gate)]
        _lib().experts_backward(*ctx.sizes, *addresses, *map(_address, weights))
        return dx, None, d_gate, *weights, None


def scale_of(temperature: Tensor) -> Tensor:
    """1 / temperature, 0 where that is 0 (greedy); divided in fp32, since float64 would round to another neighbour.

    The sampler's and the trainer's: their log-probs are equal only where this factor is.
    """
    given = temperature.float().numpy()  # a few numbers at every step: numpy has done before torch has begun
    scale = np.zeros_like(given)
    np.divide(np.float32(1), given, out=scale, where=given != 0)
    return torch.from_numpy(scale)


def logp(logits_BV: Tensor, scale_B: Tensor, token_B: Tensor) -> Tensor:
    """log softmax(logits * scale)[token] of every row, at scale 1 where it is 0; only for `native` tensors."""
    logits, token = logits_BV.contiguous(), token_B.contiguous()
    out = logits.new_empty(len(logits))
    where = (scale_B.data_ptr(), token.data_ptr(), out.data_ptr())
    _lib().logp(*logits.shape, logits.data_ptr(), logits.shape[1], *where)
    return out


def draw(logits_BV: Tensor, scale_B: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """A token of each row and its log-probability under softmax(logits * scale); only for `native` tensors.

    The first token at which the running sum of probabilities passes `uniform_B` (float64, in [0, 1)). A scale of 0
    takes the likeliest token and reports its log-probability at scale 1.
    """
    n, d = logits_BV.shape
    token_B, logp_B = torch.empty(n, dtype=torch.long), logits_BV.new_empty(n)
    inputs = (scale_B.data_ptr(), uniform_B.data_ptr(), token_B.data_ptr(), logp_B.data_ptr())
    _lib().draw(n, d, logits_BV.data_ptr(), logits_BV.stride(0), *inputs)
    return token_B, logp_B


def draw_codes(
    hidden_MF: Tensor, packed: Tensor, bias_Z: Tensor, pairs: tuple[Tensor, Tensor], guidance_n: Tensor,
    scale_n: Tensor, uniform_n: Tensor, first_code: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A code's token and its log-prob for every row of the image head's hidden layer that draws; zeros for others.

    `pairs` are, int64, the rows that draw and for each the row of the blank prompt that guides it and takes the same
    token: -1 for nobody, and its guidance means nothing. `packed` is `pack` of the head's last weight [Z, F]. The bits
    are those of `models.janus.guided`, `draw` and `logp`. Only for `native` tensors.
    """
    hidden, (m, k), d = hidden_MF.contiguous(), hidden_MF.shape, len(bias_Z)
    own_n, blank_n = pairs
    token_M, logp_M, logits = torch.zeros(m, dtype=torch.long), hidden.new_zeros(m), hidden.new_empty(m, d)
    weights = (hidden.data_ptr(), packed.data_ptr(), bias_Z.data_ptr())
    each = (x.data_ptr() for x in (own_n, blank_n, guidance_n, scale_n, uniform_n))
    out = (logits.data_ptr(), token_M.data_ptr(), logp_M.data_ptr())
    _lib().draw_codes(m, d, k, *weights, len(own_n), *each, first_code, *out)
    return token_M, logp_M


_KEPT_BYTES = 256 * 2**20  # of logits that are kept for the gradient; beyond, they are computed again


def token_logp(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    scale: float,
    chunk_tokens: int,
    *,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """log softmax(hidden weight^T * scale)[target], and the entropy of every row (no gradient; zeros if not wanted).

    The logits exist a chunk of rows at a time, so memory does not grow with rows times vocabulary. Only for `native`
    tensors.
    """
    return _TokenLogp.apply(hidden_ND, weight_VD, target_N, scale, chunk_tokens, with_entropy)


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, scale: float, chunk: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        hidden, target, (vocab, _) = hidden.contiguous(), target.contiguous(), weight.shape
        n = len(hidden)
        logp, lse, entropy = hidden.new_empty(n), hidden.new_empty(n), hidden.new_zeros(n)
        ctx.scale, ctx.chunk = scale, chunk
        kept = []
        for at in range(0, n, ctx.chunk):
            logits = _linear(hidden[at : at + ctx.chunk], weight)
            where = [x[at:].data_ptr() for x in (target, logp, lse, entropy)]
            where = where if with_entropy else [*where[:3], 0]
            _lib().token_logp(len(logits), vocab, logits.data_ptr(), vocab, scale, *where)
            kept += [logits] if any(ctx.needs_input_grad) and 4 * n * vocab <= _KEPT_BYTES else []
        ctx.save_for_backward(hidden, weight, target, lse)
        ctx.logits = kept
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, d_logp: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, target, lse = ctx.saved_tensors
        (n, d), vocab, d_logp = hidden.shape, len(weight), d_logp.contiguous()
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for place, at in enumerate(range(0, n, ctx.chunk)):
            rows = hidden[at : at + ctx.chunk]
            logits = ctx.logits[place] if ctx.logits else _linear(rows, weight)  # turned into its gradient in place
            where = (target[at:].data_ptr(), lse[at:].data_ptr(), d_logp[at:].data_ptr())
            _lib().token_logp_backward(len(rows), vocab, logits.data_ptr(), vocab, ctx.scale, *where)
            at_rows = (logits.data_ptr(), vocab)
            if d_hidden is not None:
                out = d_hidden[at:].data_ptr()
                _lib().matmul(len(rows), d, vocab, *at_rows, 1, weight.data_ptr(), d, 1, out, d, 0)
            if d_weight is not None:
                _lib().matmul_transposed(len(rows), vocab, d, *at_rows, rows.data_ptr(), d, d_weight.data_ptr(), d, 1)
        ctx.logits = []
        return d_hidden, d_weight, None, None, None, None
