"""AdamW and Muon, the schedule of the learning rate, and clipping.

Muon (arXiv:2502.16982, "Moonlight") moves a hidden matrix along the orthogonalised momentum of its gradient; its
update is scaled to the size that AdamW's would have, so that one learning rate serves both. Embeddings, the head,
routers and norms stay with AdamW, as in DeepSeek-V4; so do short convolutions, whose weights are no matrices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from zifio.train.config import Optim

_UPDATE_RMS = 0.2  # of AdamW's typical update (Moonlight, equation 4)


class Optimizer:
    """Both optimizers behind one step, with a state that is a flat table of named tensors."""

    def __init__(self, model: nn.Module, config: Optim) -> None:
        self.config = config
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.muon = {name: p for name, p in self.named.items() if config.kind == "muon" and _is_hidden_matrix(name, p)}
        rest = {name: p for name, p in self.named.items() if name not in self.muon}
        decayed = [p for p in rest.values() if p.ndim > 1]
        plain = [p for p in rest.values() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        self.momentum = {name: torch.zeros_like(p) for name, p in self.muon.items()}

    def clip(self) -> float:
        """Scale all gradients so that their joint norm is at most `config.clip`; returns the norm before."""
        return float(nn.utils.clip_grad_norm_(self.named.values(), self.config.clip))

    @torch.no_grad()
    def step(self, step: int, n_steps: int) -> float:
        """One update with the learning rate of `step` (from 0) of `n_steps`; clears gradients; returns the rate."""
        lr = learning_rate(self.config, step, n_steps)
        for group in self.adamw.param_groups:
            group["lr"] = lr * self.config.adamw_lr_scale
        self.adamw.step()
        self._muon_step(lr)
        increment_version(list(self.named.values()))  # fused AdamW does not, and packed copies go by it
        self.adamw.zero_grad(set_to_none=True)
        for parameter in self.muon.values():
            parameter.grad = None
        return lr

    def _muon_step(self, lr: float) -> None:
        """Momentum, then all matrices of one shape orthogonalised together, then decay and move."""
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for name, parameter in self.muon.items():
            if parameter.grad is None:
                continue  # not trained now, like the MTP module after pretraining
            momentum = self.momentum[name]
            momentum.mul_(self.config.momentum).add_(parameter.grad)
            direction = parameter.grad + self.config.momentum * momentum  # Nesterov
            matrices = parameter[None] if parameter.ndim == 2 else parameter
            by_shape.setdefault(matrices.shape[1:], []).append((matrices, direction.view_as(matrices)))
        for (rows, columns), pairs in by_shape.items():
            update = orthogonalise(torch.cat([direction for _, direction in pairs]))
            update *= _UPDATE_RMS * math.sqrt(max(rows, columns))
            sizes = [len(matrices) for matrices, _ in pairs]
            for (matrices, _), mine in zip(pairs, update.split(sizes), strict=True):
                matrices.mul_(1 - lr * self.config.weight_decay).sub_(mine, alpha=lr)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name; the inverse of `load_state`."""
        out = {f"momentum.{name}": tensor for name, tensor in self.momentum.items()}
        for name, parameter in self.named.items():
            for key, value in self.adamw.state.get(parameter, {}).items():
                out[f"{key}.{name}"] = value
        return out

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over a saved state, bit for bit."""
        for key, value in tensors.items():
            kind, name = key.split(".", 1)
            if kind == "momentum":
                self.momentum[name].copy_(value)
            else:
                parameter = self.named[name]
                self.adamw.state[parameter][kind] = value.to(parameter.device, copy=True)


def _is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim in (2, 3) and not any(
        part in name
        for part in ("embed_tokens", "embedding", "lm_head", "vision_head", "score.", ".gate.weight", ".conv1d.")
    )


def orthogonalise(matrices: Tensor, n_iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix of each of [n, rows, columns], roughly: singular values near 1.

    Newton-Schulz iteration with the quintic of Keller Jordan's Muon, tuned to reach about 1 fast, not exactly.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(n_iterations):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


def learning_rate(config: Optim, step: int, n_steps: int) -> float:
    """Linear warm-up, then the peak for `hold`, then down to `final_lr` times the peak by a line or a half cosine."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(n_steps - config.warmup_steps, 1)
    fallen = max(done - config.hold, 0.0) / max(1 - config.hold, 1e-9)
    left = 1 - fallen if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * fallen))
    return config.lr * (config.final_lr + (1 - config.final_lr) * left)
