"""DeepSeekMoE with loss-free balance (DeepSeek-V3, section 2.1.2, equations 12-20; arXiv:2408.15664), and its kin.

Each token goes through the shared experts, if any, and through A routed experts chosen by a gate: sigmoid in V3,
softmax in V2 and Qwen3. V3's balance comes from a bias that takes part in the choice only: after every optimizer step
it moves by a fixed amount towards the experts that had too little to do. A weak sequence-wise loss guards single
sequences.

Traps: the bias is a buffer in fp32, never seen by the optimizer; gate values come from the scores *without* it;
groups that are not kept are masked with -inf (masking with 0 is wrong when scores plus bias are negative).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zifio.kernels import operators as kernels
from zifio.models.config import AnyConfig
from zifio.models.families import MoeShape
from zifio.models.layers import FeedForward, Linear


class Routing(NamedTuple):
    """Where tokens went: affinities before the bias, the chosen experts and their gate values."""

    scores_NE: Tensor
    expert_NA: Tensor
    gate_NA: Tensor

    def gate_matrix(self) -> Tensor:
        """Gate values as a matrix [N, E], zero where a token does not go."""
        return torch.zeros_like(self.scores_NE).scatter(1, self.expert_NA, self.gate_NA)


class Router(nn.Module):
    """Sigmoid or softmax gate with group-limited top-k; always computed in fp32."""

    def __init__(self, config: AnyConfig) -> None:
        super().__init__()
        self.shape = shape = _shape(config)
        self.weight = nn.Parameter(torch.empty(shape.n_experts, config.hidden_size))
        self.e_score_correction_bias: Tensor | None
        self.register_buffer("e_score_correction_bias", torch.zeros(shape.n_experts) if shape.has_bias else None)

    def forward(self, x_ND: Tensor, chosen_NA: Tensor | None = None) -> Routing:
        """Choose by score plus bias, weigh by score (equations 13-16).

        `chosen_NA` repeats an earlier choice, -1 in the rows where none is known. Only the choice is another's: gate
        values, and with them the gradient, come from the scores of today (arXiv:2510.11370).
        """
        shape = self.shape
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = kernels.linear(x_ND.float(), self.weight.float())
            scores_NE = kernels.sigmoid(logits_NE) if shape.score == "sigmoid" else kernels.softmax(logits_NE)
        choice_NE = scores_NE.detach()
        if self.e_score_correction_bias is not None:
            choice_NE = choice_NE + self.e_score_correction_bias
        if shape.n_groups > 1:
            choice_NE = self._keep_best_groups(choice_NE)
        expert_NA = choice_NE.topk(shape.n_active, dim=-1, sorted=False).indices
        if chosen_NA is not None:
            expert_NA = torch.where((chosen_NA >= 0).all(dim=-1, keepdim=True), chosen_NA.to(expert_NA), expert_NA)
        gate_NA = scores_NE.gather(1, expert_NA)
        if shape.renormalise:
            gate_NA = gate_NA / (gate_NA.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(scores_NE, expert_NA, gate_NA * shape.scale)

    def _keep_best_groups(self, choice_NE: Tensor) -> Tensor:
        """-inf outside the `n_kept_groups` groups whose best (two) experts sum highest (node-limited routing)."""
        shape = self.shape
        choice_NXE = choice_NE.unflatten(1, (shape.n_groups, -1))
        best_NX = choice_NXE.topk(2 if shape.group_score == "best-two" else 1, dim=-1).values.sum(dim=-1)
        kept = best_NX.topk(shape.n_kept_groups, dim=-1, sorted=False).indices
        dropped_NX = torch.ones_like(best_NX, dtype=torch.bool).scatter(1, kept, False)
        return choice_NXE.masked_fill(dropped_NX[..., None], float("-inf")).flatten(1)


FEW = 512
"""Tokens that a GPU sends through every expert when it samples: as many as an engine decodes by default."""


class Experts(nn.Module):
    """All routed experts of a layer as two stacked weights; three forms with the same result.

    `grouped` sorts the tokens by expert and sends each through its own only; `native` does the same in C and adds a
    token's outputs in the order of its choices, whoever else is in the batch. `every` sends all tokens through all
    experts: work in vain, but nothing that waits for a GPU, and few tokens cost no more than reading the weights.
    `auto` is native where it can be, and `every` when a GPU samples.
    """

    packed: kernels.Packed | None = None
    _packed_version = (-1, -1)

    def __init__(self, config: AnyConfig) -> None:
        super().__init__()
        n, d, f = _shape(config).n_experts, config.hidden_size, _shape(config).d_expert
        self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * f, d))
        self.down_proj = nn.Parameter(torch.empty(n, d, f))
        self.form: Literal["auto", "grouped", "native", "every"] = "auto"

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Gate-weighted sum of the chosen experts' outputs, [N, D]."""
        if self.form == "grouped" or (self.form == "auto" and not kernels.native(x_ND)):
            few = self.form == "auto" and x_ND.is_cuda and len(x_ND) <= FEW and not torch.is_grad_enabled()
            return self._every(x_ND, routing) if few else self._grouped(x_ND, routing)
        if self.form == "every":
            return self._every(x_ND, routing)
        packed = self.packed if self._packed_version == self._version() and not torch.is_grad_enabled() else None
        weights = (self.gate_up_proj, self.down_proj)
        return kernels.experts(x_ND, routing.expert_NA, routing.gate_NA, *weights, packed)

    def weights(self) -> tuple[Tensor, ...]:
        """What is packed."""
        return self.gate_up_proj, self.down_proj

    def pack(self, room: Tensor) -> None:
        """Pack the weights into `room` unless that is done and they have not changed since."""
        if self.packed is None or self._packed_version != self._version():
            one, two = room.split([kernels.packed_size(weight) for weight in self.weights()])
            self.packed = kernels.pack(self.gate_up_proj, one), kernels.pack(self.down_proj, two)
            self._packed_version = self._version()

    def unpack(self) -> None:
        """Write the weights anew, as they were packed."""
        assert self.packed is not None
        for packed, weight in zip(self.packed, self.weights(), strict=True):
            kernels.unpack(packed, weight)

    def pack_as(self, dtype: torch.dtype) -> None:
        """Keep copies of the weights in the type that autocast is going to want."""
        if self.packed is None or self._packed_version != self._version():
            one, two = self.packed or (None, None)
            self.packed = (
                kernels.copied(self.gate_up_proj, dtype, one), kernels.copied(self.down_proj, dtype, two),
            )  # fmt: skip
            self._packed_version = self._version()

    def _version(self) -> tuple[int, int]:
        return self.gate_up_proj._version, self.down_proj._version

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """Both weights, as autocast wants them where copies are kept."""
        if self.packed is None or self._packed_version != self._version():
            return self.gate_up_proj, self.down_proj
        one, two = self.packed
        return kernels.lowered(self.gate_up_proj, one), kernels.lowered(self.down_proj, two)

    def _grouped(self, x_ND: Tensor, routing: Routing) -> Tensor:
        flat_expert = routing.expert_NA.flatten()
        order = flat_expert.argsort(stable=True)
        token = order // routing.expert_NA.shape[1]
        gate_up_proj, down_proj = self._matrices()
        sizes = flat_expert.bincount(minlength=len(gate_up_proj)).tolist()
        parts = []
        for expert, mine in enumerate(x_ND[token].split(sizes)):
            gate, up = F.linear(mine, gate_up_proj[expert]).chunk(2, dim=-1)
            parts.append(F.linear(F.silu(gate) * up, down_proj[expert]))
        out = torch.cat(parts) * routing.gate_NA.flatten()[order, None].to(x_ND.dtype)
        return torch.zeros_like(x_ND).index_add(0, token, out)

    def _every(self, x_ND: Tensor, routing: Routing) -> Tensor:
        gate_up_proj, down_proj = self._matrices()
        gate_ENF, up_ENF = torch.matmul(x_ND, gate_up_proj.transpose(1, 2)).chunk(2, dim=-1)
        out_END = torch.matmul(F.silu(gate_ENF) * up_ENF, down_proj.transpose(1, 2))
        return (out_END * routing.gate_matrix().T[..., None].to(x_ND.dtype)).sum(dim=0)


class MoE(nn.Module):
    """Shared experts, where the family has them, plus gated routed experts (equation 12)."""

    def __init__(self, config: AnyConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        shape = _shape(config)
        self.shared_experts = FeedForward(config.hidden_size, shape.shared_width) if shape.shared_width else None
        self.shared_expert_gate = Linear(config.hidden_size, 1) if shape.has_shared_gate else None

    def forward(self, x_BTD: Tensor, chosen_NA: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Output [B, T, D] and where the B*T tokens went; `chosen_NA` as the router takes it."""
        x_ND = x_BTD.flatten(0, 1)
        routing = self.gate(x_ND, chosen_NA)
        out_BTD = self.experts(x_ND, routing).view_as(x_BTD)
        if self.shared_experts is None:
            return out_BTD, routing
        shared_BTD = self.shared_experts(x_BTD)
        if self.shared_expert_gate is not None:
            shared_BTD = shared_BTD * kernels.sigmoid(self.shared_expert_gate(x_BTD))
        return out_BTD + shared_BTD, routing


def _shape(config: AnyConfig) -> MoeShape:
    assert config.moe is not None, "a dense family has no layers with experts"
    return config.moe


def expert_load(routing: Routing, counted_N: Tensor | None = None) -> Tensor:
    """Tokens sent to each expert, [E] in fp32; tokens where `counted_N` is False (padding) do not count."""
    n_experts = routing.scores_NE.shape[1]
    experts = routing.expert_NA if counted_N is None else routing.expert_NA[counted_N]
    return experts.flatten().bincount(minlength=n_experts).float()


def sequence_balance_loss(routing: Routing, sequence_N: Tensor, n_sequences: int) -> Tensor:
    """Mean over sequences of sum_i f_i P_i (equations 17-20, before the factor alpha); 1 when routing is uniform.

    f_i is expert i's share of a sequence's choices times E, by score without bias and without gradient; P_i is the
    mean normalised score. `sequence_N` numbers each token's sequence, -1 for padding.
    """
    scores_NE, n_active = routing.scores_NE, routing.expert_NA.shape[1]
    n_experts = scores_NE.shape[1]
    row_N = torch.where(sequence_N < 0, n_sequences, sequence_N)
    chosen_NE = torch.zeros_like(scores_NE).scatter(1, scores_NE.detach().topk(n_active, dim=-1).indices, 1.0)
    share_NE = scores_NE / scores_NE.sum(dim=-1, keepdim=True)
    both = torch.cat([chosen_NE, share_NE, torch.ones_like(scores_NE[:, :1])], dim=-1)
    total = both.new_zeros(n_sequences + 1, both.shape[1]).index_add(0, row_N, both)[:n_sequences]
    length_M1 = total[:, -1:].clamp(min=1)
    f_ME = total[:, :n_experts] * n_experts / (n_active * length_M1)
    p_ME = total[:, n_experts : 2 * n_experts] / length_M1
    n_present = (total[:, -1] > 0).sum().clamp(min=1)  # padding takes numbers too, and leaves them empty
    return (f_ME.detach() * p_ME).sum() / n_present


@torch.no_grad()
def update_bias(bias_E: Tensor, load_E: Tensor, speed: float) -> None:
    """Move the selection bias by `speed` towards the experts with less than the mean load, in place.

    `load_E` must already be summed over all micro-batches and ranks of the optimizer step: the sign of a sum is not
    the sum of signs.
    """
    bias_E += speed * (load_E.mean() - load_E).sign()
