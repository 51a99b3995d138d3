"""DeepSeekMoE with loss-free balance (DeepSeek-V3, section 2.1.2, equations 12-20; arXiv:2408.15664).

Each token goes through the shared experts and through A routed experts chosen by a sigmoid gate. Balance comes from
a bias that takes part in the choice only: after every optimizer step it moves by a fixed amount towards the experts
that had too little to do. A weak sequence-wise loss guards single sequences.

Traps: the bias is a buffer in fp32, never seen by the optimizer; gate values come from the scores *without* it;
groups that are not kept are masked with -inf (masking with 0 is wrong when scores plus bias are negative).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zifio.models.config import DeepseekV3Config
from zifio.models.layers import FeedForward


class Routing(NamedTuple):
    """Where tokens went: affinities before the bias, the chosen experts and their gate values."""

    scores_NE: Tensor
    expert_NA: Tensor
    gate_NA: Tensor

    def gate_matrix(self) -> Tensor:
        """Gate values as a matrix [N, E], zero where a token does not go."""
        return torch.zeros_like(self.scores_NE).scatter(1, self.expert_NA, self.gate_NA)


class Router(nn.Module):
    """Sigmoid gate with group-limited top-k; always computed in fp32."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias: Tensor
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))

    def forward(self, x_ND: Tensor) -> Routing:
        """Choose by score plus bias, weigh by score (equations 13-16)."""
        config = self.config
        with torch.autocast(x_ND.device.type, enabled=False):
            scores_NE = F.linear(x_ND.float(), self.weight.float()).sigmoid()
        choice_NE = scores_NE.detach() + self.e_score_correction_bias
        if config.n_group > 1:
            choice_NE = self._keep_best_groups(choice_NE)
        expert_NA = choice_NE.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices
        gate_NA = scores_NE.gather(1, expert_NA)
        if config.norm_topk_prob:
            gate_NA = gate_NA / (gate_NA.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(scores_NE, expert_NA, gate_NA * config.routed_scaling_factor)

    def _keep_best_groups(self, choice_NE: Tensor) -> Tensor:
        """-inf outside the `topk_group` groups whose two best experts sum highest (node-limited routing)."""
        config = self.config
        choice_NXE = choice_NE.unflatten(1, (config.n_group, -1))
        best_NX = choice_NXE.topk(2, dim=-1).values.sum(dim=-1)
        kept = best_NX.topk(config.topk_group, dim=-1, sorted=False).indices
        dropped_NX = torch.ones_like(best_NX, dtype=torch.bool).scatter(1, kept, False)
        return choice_NXE.masked_fill(dropped_NX[..., None], float("-inf")).flatten(1)


class Experts(nn.Module):
    """All routed experts of a layer as two stacked weights; two forms with the same result.

    `dense` sends every token through every expert and lets the gate matrix cancel the rest: E/A times the
    arithmetic, but three matrix products in all, which wins for a handful of tokens.
    `grouped` sorts the tokens by expert and sends each through its own only: the arithmetic of A experts.
    `auto` is dense up to DENSE_UP_TO tokens.
    """

    DENSE_UP_TO = 64

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        n, d, f = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * f, d))
        self.down_proj = nn.Parameter(torch.empty(n, d, f))
        self.form: Literal["auto", "dense", "grouped"] = "auto"

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Gate-weighted sum of the chosen experts' outputs, [N, D]."""
        is_dense = self.form == "dense" or (self.form == "auto" and len(x_ND) <= self.DENSE_UP_TO)
        return self._dense(x_ND, routing) if is_dense else self._grouped(x_ND, routing)

    def _dense(self, x_ND: Tensor, routing: Routing) -> Tensor:
        n_experts, two_f, d = self.gate_up_proj.shape
        hidden_NEF = F.linear(x_ND, self.gate_up_proj.view(-1, d)).view(-1, n_experts, two_f)
        gate_NEF, up_NEF = hidden_NEF.chunk(2, dim=-1)
        weighted_NEF = F.silu(gate_NEF) * up_NEF * routing.gate_matrix()[..., None].to(x_ND.dtype)
        return F.linear(weighted_NEF.flatten(1), self.down_proj.permute(1, 0, 2).reshape(d, -1))

    def _grouped(self, x_ND: Tensor, routing: Routing) -> Tensor:
        flat_expert = routing.expert_NA.flatten()
        order = flat_expert.argsort(stable=True)
        token = order // routing.expert_NA.shape[1]
        sizes = flat_expert.bincount(minlength=len(self.gate_up_proj)).tolist()
        parts = []
        for expert, mine in enumerate(x_ND[token].split(sizes)):
            gate, up = F.linear(mine, self.gate_up_proj[expert]).chunk(2, dim=-1)
            parts.append(F.linear(F.silu(gate) * up, self.down_proj[expert]))
        out = torch.cat(parts) * routing.gate_NA.flatten()[order, None].to(x_ND.dtype)
        return torch.zeros_like(x_ND).index_add(0, token, out)


class MoE(nn.Module):
    """Shared experts plus gated routed experts (equation 12)."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = FeedForward(config.hidden_size, config.n_shared_experts * config.moe_intermediate_size)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        """Output [B, T, D] and where the B*T tokens went."""
        x_ND = x_BTD.flatten(0, 1)
        routing = self.gate(x_ND)
        return self.experts(x_ND, routing).view_as(x_BTD) + self.shared_experts(x_BTD), routing


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
