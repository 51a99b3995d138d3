"""Optimizers: AdamW is torch's, Muon's updates are nearly orthogonal, states return bit for bit, schedules fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import deepseek, llama, logits_of, made, tokens_like

from zifio.models.decoder import Decoder
from zifio.train.config import Optim
from zifio.train.optim import Optimizer, learning_rate, orthogonalise


def backward(model: Decoder, seed: int) -> None:
    """Some gradient."""
    tokens = tokens_like(2, 9, seed=seed)
    logits_of(model, tokens).log_softmax(dim=-1).gather(2, tokens[..., None]).mean().neg().backward()


def weights(model: Decoder) -> dict[str, torch.Tensor]:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", ["deepseek", "llama"])
def test_adamw_equals_the_formula(family: str):
    """Loshchilov and Hutter, algorithm 2, in numpy and double precision; no decay on norms."""
    model = made(deepseek() if family == "deepseek" else llama())
    config = Optim(lr=0.01, betas=(0.8, 0.9), weight_decay=0.3, eps=1e-6)
    optimizer = Optimizer(model, config)
    value = {n: p.astype(np.float64) for n, p in ((n, p.numpy()) for n, p in weights(model).items())}
    first, second = ({n: np.zeros_like(p) for n, p in value.items()} for _ in range(2))
    for step in range(1, 4):
        backward(model, step)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            grad = parameter.grad.double().numpy()
            first[name] = 0.8 * first[name] + 0.2 * grad
            second[name] = 0.9 * second[name] + 0.1 * grad**2
            decay = 0.3 if parameter.ndim > 1 else 0.0
            root = np.sqrt(second[name] / (1 - 0.9**step)) + 1e-6
            value[name] = value[name] * (1 - 0.01 * decay) - 0.01 * first[name] / (1 - 0.8**step) / root
        assert optimizer.step(step - 1, 10) == 0.01
        assert all(p.grad is None for p in model.parameters()), "gradients do not pile up"
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), value[name], atol=1e-5, err_msg=name)


def test_adamw_equals_torchs():
    model, other = made(llama()), made(llama())
    ours = Optimizer(model, Optim(lr=0.01, weight_decay=0.3))
    groups = [
        {"params": [p for p in other.parameters() if p.ndim > 1], "weight_decay": 0.3},
        {"params": [p for p in other.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(3):
        backward(model, step)
        backward(other, step)
        ours.step(step, 3)
        theirs.step()
        theirs.zero_grad()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 16, 40), (3, 40, 16), (2, 64, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]):
    """Whatever they were before, over three orders of magnitude; and the singular vectors stay."""
    generator = torch.Generator().manual_seed(1)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    small = u.shape[-1]
    scale = torch.logspace(0, -1.5, small) * 37.0
    out = orthogonalise((u * scale) @ v)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.6 and values.max() < 1.3
    inner = u.transpose(1, 2) @ out @ v.transpose(1, 2)
    off = inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 1e-4, "a function of the singular values alone"


def test_orthogonalising_nothing_gives_nothing():
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def test_muon_moves_hidden_matrices_by_the_size_of_an_adamw_update():
    """Update RMS about 0.2 lr (Moonlight, equation 4), whatever the gradient's size; the rest by AdamW."""
    model = made(deepseek(num_nextn_predict_layers=1))
    optimizer = Optimizer(model, Optim(kind="muon", lr=0.01, weight_decay=0.0))
    adam = set(dict(model.named_parameters())) - set(optimizer.muon)
    wanted = {name for name, p in model.named_parameters() if p.ndim == 1}
    wanted |= {"embed_tokens.weight", "lm_head.weight", "layers.1.mlp.gate.weight", "mtp.0.block.mlp.gate.weight"}
    assert adam == wanted
    assert {"layers.1.mlp.experts.gate_up_proj", "layers.0.mlp.gate_proj.weight"} <= set(optimizer.muon)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = 1e-5 * torch.randn(parameter.shape, generator=generator)
    before = weights(model)
    optimizer.step(0, 1)
    for name in optimizer.muon:
        moved = (dict(model.named_parameters())[name] - before[name]).detach()
        rows, columns = moved.shape[-2:]
        rms = moved.square().mean().sqrt().item()
        # singular values of 1 give an RMS of 0.2 sqrt(max) sqrt(min / (rows columns)) = 0.2
        assert rms == pytest.approx(0.2 * 0.01, rel=0.25), (name, rows, columns)


def test_muon_follows_its_formula():
    """Nesterov momentum, every expert its own matrix, decoupled decay."""
    model = made(deepseek())
    config = Optim(kind="muon", lr=0.02, weight_decay=0.25, momentum=0.9)
    optimizer = Optimizer(model, config)
    names = ("layers.1.mlp.experts.gate_up_proj", "layers.0.self_attn.o_proj.weight")
    value = {name: weights(model)[name] for name in names}
    momentum = {name: torch.zeros_like(v) for name, v in value.items()}
    for step in range(3):
        backward(model, step)
        for name in names:
            grad = dict(model.named_parameters())[name].grad
            assert grad is not None
            momentum[name] = 0.9 * momentum[name] + grad
            direction = grad + 0.9 * momentum[name]
            matrices = direction if direction.ndim == 3 else direction[None]
            update = torch.stack([orthogonalise(one[None])[0] for one in matrices]).view_as(direction)
            size = 0.2 * math.sqrt(max(direction.shape[-2:]))
            value[name] = value[name] * (1 - 0.02 * 0.25) - 0.02 * size * update
        optimizer.step(step, 3)
    for name in names:
        torch.testing.assert_close(dict(model.named_parameters())[name].data, value[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_what_got_no_gradient_stays(kind: str):
    """The MTP module while only the main model is trained, as in SFT and RL."""
    model = made(deepseek(num_nextn_predict_layers=1))
    optimizer = Optimizer(model, Optim(kind=kind, lr=0.1, weight_decay=0.5))
    before = weights(model)
    for step in range(2):
        backward(model, step)
        optimizer.step(step, 2)
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]) == name.startswith("mtp."), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_state_returns_bit_for_bit_through_a_file(kind: str, tmp_path: Path):
    config = Optim(kind=kind, lr=0.01, warmup_steps=3, schedule="cosine")
    model = made(deepseek())
    optimizer = Optimizer(model, config)
    for step in range(3):
        backward(model, step)
        optimizer.step(step, 6)
    save_file({k: v.contiguous() for k, v in optimizer.state().items()}, tmp_path / "state.safetensors")
    other = made(deepseek())
    other.load_state_dict(model.state_dict())
    again = Optimizer(other, config)
    again.load_state(load_file(tmp_path / "state.safetensors"))
    assert again.state().keys() == optimizer.state().keys()
    for step in range(3, 6):
        for one, two in ((model, optimizer), (other, again)):
            backward(one, step)
            two.step(step, 6)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for name, tensor in optimizer.state().items():
        assert torch.equal(tensor, again.state()[name]), name


def test_a_loaded_state_is_a_copy():
    model = made(llama())
    optimizer = Optimizer(model, Optim())
    backward(model, 1)
    optimizer.step(0, 2)
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    kept = {name: tensor.clone() for name, tensor in state.items()}
    again = Optimizer(model, Optim())
    again.load_state(state)
    backward(model, 2)
    again.step(1, 2)
    assert all(torch.equal(state[name], kept[name]) for name in state)


def test_clipping_scales_the_joint_norm():
    model = made(llama())
    backward(model, 1)
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters() if p.grad is not None))
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert Optimizer(model, Optim(clip=norm / 4)).clip() == pytest.approx(norm, rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name] / 4, rtol=1e-4, atol=1e-9)
    assert Optimizer(model, Optim(clip=norm)).clip() == pytest.approx(norm / 4, rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name] / 4, rtol=1e-4, atol=1e-9, msg="within the limit")


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, {0: 1.0, 50: 1.0, 99: 1.0}),
        ({"warmup_steps": 10}, {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 99: 1.0}),
        ({"schedule": "linear"}, {0: 1.0, 25: 0.75, 50: 0.5, 99: 0.01, 100: 0.0}),
        ({"schedule": "linear", "final_lr": 0.2}, {0: 1.0, 50: 0.6, 100: 0.2}),
        ({"schedule": "cosine", "final_lr": 0.1}, {0: 1.0, 50: 0.55, 100: 0.1}),
        ({"schedule": "linear", "hold": 0.5, "warmup_steps": 20}, {20: 1.0, 60: 1.0, 70: 0.75, 80: 0.5, 100: 0.0}),
        ({"schedule": "cosine", "hold": 0.2, "final_lr": 0.1}, {0: 1.0, 20: 1.0, 60: 0.55, 100: 0.1}),
        ({"schedule": "cosine", "hold": 1.0}, {0: 1.0, 99: 1.0}),
        ({"schedule": "constant", "hold": 0.2}, {99: 1.0}),
        ({"schedule": "cosine", "warmup_steps": 20}, {19: 1.0, 20: 1.0, 40: (1 + math.cos(math.pi / 4)) / 2, 60: 0.5}),
    ],
    ids=str,
)
def test_schedules(fields: dict[str, Any], expected: dict[int, float]):
    config = Optim(lr=0.5, **fields)
    for step, share in expected.items():
        assert learning_rate(config, step, 100) == pytest.approx(0.5 * share, abs=1e-12), step


def test_the_step_uses_the_schedule_and_adamws_own_scale():
    model = made(llama())
    optimizer = Optimizer(model, Optim(kind="muon", lr=0.5, warmup_steps=4, adamw_lr_scale=0.1))
    backward(model, 1)
    assert optimizer.step(0, 8) == 0.125
    assert {group["lr"] for group in optimizer.adamw.param_groups} == {0.0125}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_is_noticed_by_whoever_keeps_a_copy_of_the_weights(kind: str):
    """Packed weights are told from stale ones by the version counter, which fused AdamW alone would leave as it is."""
    model = made(llama())
    optimizer = Optimizer(model, Optim(kind=kind))
    model.pack()
    tokens = tokens_like(1, 9)
    logits_of(model, tokens).sum().backward()
    optimizer.step(0, 1)
    with torch.no_grad():
        stale = logits_of(model, tokens)
        model.unpack()
        torch.testing.assert_close(stale, logits_of(model, tokens))
