"""The plain layers: a linear map, RMSNorm (arXiv:1910.07467) and the SwiGLU feed-forward block (arXiv:2002.05202)."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

import torch
from torch import Tensor, nn

from zifio.kernels import operators as kernels

_VERSION = attrgetter("_version")


def version_of(weights: Iterable[Tensor]) -> int:
    """Grows with every in-place change of one of them. Asked at every step, so no generator."""
    return sum(map(_VERSION, weights))


class Linear(nn.Linear):
    """x W^T, with a bias only where asked for.

    A weight may be packed for sampling (`pack`). The packed copy counts only as long as the weight has not changed.
    """

    packed: Tensor | None = None
    _packed_version = -1

    def __init__(self, d_in: int, d_out: int, bias: bool = False) -> None:
        super().__init__(d_in, d_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_out] of [..., d_in]."""
        return kernels.linear(x, self.weight, self.bias, self.current)

    @property
    def current(self) -> Tensor | None:
        """What is packed, if the weight has not changed since."""
        if self.packed is None:  # asked first: weights that were made in inference mode have no version
            return None
        return self.packed if self._packed_version == self.weight._version else None

    def weights(self) -> tuple[Tensor, ...]:
        """What is packed."""
        return (self.weight,)

    def pack(self, room: Tensor) -> None:
        """Pack the weight into `room` unless that is done and the weight has not changed since."""
        if self.packed is None or self._packed_version != self.weight._version:
            self.packed, self._packed_version = kernels.pack(self.weight, room), self.weight._version

    def unpack(self) -> None:
        """Write the weight anew, as it was packed."""
        assert self.packed is not None
        kernels.unpack(self.packed, self.weight)

    def pack_as(self, dtype: torch.dtype) -> None:
        """Keep a copy of the weight in the type that autocast is going to want."""
        if self.packed is None or self._packed_version != self.weight._version:
            self.packed = kernels.copied(self.weight, dtype, self.packed)
            self._packed_version = self.weight._version


@torch.no_grad()
def initialise(model: nn.Module, deviation: float, generator: torch.Generator) -> None:
    """Every matrix from a normal, in order of name; biases zero, all else as it was made."""
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim > 1:
            parameter.normal_(0.0, deviation, generator=generator)
        elif name.endswith(".bias"):
            parameter.zero_()


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis; a centred one multiplies by 1 + weight."""

    def __init__(self, width: int, eps: float = 1e-6, centred: bool = False) -> None:
        super().__init__(width, eps=eps)
        self.centred = centred
        if centred:
            nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input, in the weight's precision also where matrix products are in bfloat16."""
        weight = 1 + self.weight if self.centred else self.weight
        return kernels.rms_norm(x.to(self.weight.dtype), weight, self.eps or 0.0)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_proj = Linear(d_model, d_hidden)
        self.up_proj = Linear(d_model, d_hidden)
        self.down_proj = Linear(d_hidden, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Same shape as the input."""
        return self.down_proj(kernels.swiglu(self.gate_proj(x_BTD), self.up_proj(x_BTD)))
