"""Gated DeltaNet's part between its projections in C (delta.c), for sampler and trainer with equal bits, without
gradients; and the rule alone with them.

Only for `operators.native` tensors. The form in torch: `models/linear_attention.py`.

Try it alone: `pytest tests/models/test_linear_attention.py`
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zifio.kernels.library import library

_I, _P, _F = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _I) for name in ("n_key_heads", "group", "d_key", "d_value", "d_conv")),
        *((name, _F) for name in ("strongest", "eps")),
        *((name, _P) for name in ("x", "ba", "conv", "rate", "shift", "norm", "out")),
    ]


class Sizes(NamedTuple):
    """Of a layer: J key heads, value heads of each, widths K and X, of the convolution (0 for none), the strongest
    correction, and what the norm adds to the mean square."""

    n_key_heads: int
    group: int
    d_key: int
    d_value: int
    d_conv: int
    strongest: float
    eps: float


MOST_TAPS = 16
"""Widest convolution that delta.c computes."""


def memory_width(d_value: int) -> int:
    """Floats that a row of a kept memory takes: whole vectors."""
    return _lib().delta_width(d_value)


def spans(sizes: Sizes, tensors: tuple[Tensor, ...], spans_M4: Tensor) -> Tensor:
    """Outputs [N, H, X] of sequences that begin with nothing, or continue another (`attention.spans_of`).

    `tensors` are the projections [N, J (2 K + 2 group X)] and [N, 2 H], the convolution [d_conv, J, 2 K + group X],
    exp(A_log) and dt_bias [H], and the norm's weight [X].
    """
    layer, out, kept = _layer(sizes, tensors)
    runs = spans_M4.contiguous()
    _lib().delta_spans(ctypes.addressof(layer), len(runs), runs.data_ptr())
    del kept
    return out


def slots(sizes: Sizes, tensors: tuple[Tensor, ...], runs_M4: Tensor, memories: Tensor, tails: Tensor) -> Tensor:
    """The same for sequences whose memories are kept; `runs_M4` are (first token here, tokens, slot, position)."""
    layer, out, kept = _layer(sizes, tensors)
    _lib().delta_slots(ctypes.addressof(layer), len(runs_M4), runs_M4.data_ptr(), memories.data_ptr(), tails.data_ptr())
    del kept
    return out


def _layer(sizes: Sizes, tensors: tuple[Tensor, ...]) -> tuple[_Layer, Tensor, list[Tensor]]:
    """What C reads, where it writes, and what must live until it is done."""
    kept = [tensor.contiguous() for tensor in tensors]
    out = torch.empty(kept[0].shape[0], sizes.n_key_heads * sizes.group, sizes.d_value)
    return _Layer(*sizes, *(tensor.data_ptr() for tensor in kept), out.data_ptr()), out, kept


class _Rule(ctypes.Structure):
    _fields_ = [
        *((name, _I) for name in ("n_heads", "d_key", "d_value")),
        *((name, _P) for name in ("q", "k", "v", "decay", "beta", "d_out")),
        *((name, _P) for name in ("out", "dq", "dk", "dv", "d_log_decay", "d_beta")),
    ]


def rule(
    q_NHK: Tensor, k_NHK: Tensor, v_NHX: Tensor, log_decay_NH: Tensor, beta_NH: Tensor, spans_M4: Tensor
) -> Tensor:
    """Outputs [N, H, X] of the gated delta rule alone, with gradients, for sequences as in `spans`."""
    return _RuleOfSpans.apply(q_NHK, k_NHK, v_NHX, log_decay_NH, beta_NH, spans_M4)


class _RuleOfSpans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, spans: Tensor) -> Tensor:
        inputs = [x.contiguous() for x in (q, k, v, log_decay.exp(), beta)]
        spans, out = spans.contiguous(), torch.empty_like(inputs[2])
        given = _Rule(*q.shape[1:], v.shape[2], *(x.data_ptr() for x in inputs), None, out.data_ptr())
        _lib().rule_spans(ctypes.addressof(given), len(spans), spans.data_ptr())
        ctx.save_for_backward(*inputs, spans)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, spans = ctx.saved_tensors
        d_out, found = d_out.contiguous(), [torch.empty_like(x) for x in inputs]
        sizes = (*inputs[0].shape[1:], inputs[2].shape[2])
        given = _Rule(*sizes, *(x.data_ptr() for x in (*inputs, d_out)), None, *(x.data_ptr() for x in found))
        _lib().rule_spans_backward(ctypes.addressof(given), len(spans), spans.data_ptr())
        return *found, None


def _lib() -> Any:
    return library()
