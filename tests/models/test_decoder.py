"""Blocks that are computed again for the gradient: the same numbers to the bit from less memory."""

from __future__ import annotations

import pytest
import torch
from tiny import deepseek, llama, made, tokens_like
from torch import Tensor

from zifio.engine.cache import PagedCache
from zifio.models.config import DeepseekV3Config, LlamaConfig, Lora
from zifio.models.decoder import Decoder, balance
from zifio.models.lora import apply

SHAPES = {"llama": llama(), "deepseek": deepseek(num_nextn_predict_layers=1), "deep": llama(num_hidden_layers=8)}
TOKENS = tokens_like(2, 40)
POSITIONS = torch.cat([torch.arange(25), torch.arange(15)]).expand(2, -1)


def trained(config: DeepseekV3Config | LlamaConfig, recompute: bool, lora: Lora | None) -> tuple[Decoder, list[Tensor]]:
    """A model with the gradients of hidden states, MTP and balance, and its experts' loads."""
    model = made(config)
    if lora is not None:
        apply(model, lora, seed=1)
    model.recompute = recompute
    output = model(TOKENS, POSITIONS, with_mtp=True)
    loss, loads = model.logits(output.hidden_BTD).log_softmax(-1)[..., 3].sum(), []
    if output.mtp_hidden_BTD is not None:
        loss = loss + model.logits(output.mtp_hidden_BTD).logsumexp(-1).sum()
    if output.routing:
        balance_loss, loads = balance(output, POSITIONS, torch.ones_like(TOKENS, dtype=torch.bool))
        loss = loss + 10 * balance_loss
    loss.backward()
    return model, loads


@pytest.mark.parametrize("lora", [None, Lora(rank=2), Lora(rank=2, use_dora=True)], ids=["whole", "lora", "dora"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_and_loads_are_equal_to_the_bit(shape: str, lora: Lora | None):
    plain, loads = trained(SHAPES[shape], False, lora)
    again, loads_again = trained(SHAPES[shape], True, lora)
    n_gradients = 0
    for (name, one), (_, other) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            assert torch.equal(one.grad, other.grad), name
            n_gradients += 1
    assert n_gradients > 10
    assert all(torch.equal(a, b) for a, b in zip(loads, loads_again, strict=True))
    assert [load.sum().item() for load in loads] == ([3 * 80, 3 * 76] if loads else [])


def kept_bytes(model: Decoder) -> int:
    """What a forward pass leaves in memory for the backward pass, besides the weights."""
    weights = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model(TOKENS, POSITIONS).hidden_BTD
    assert hidden.requires_grad
    return sum(kept.values())


def test_it_keeps_what_enters_a_block_and_no_more():
    """One [B, T, D] a block, which is a fifteenth of what eight blocks keep otherwise."""
    model = made(SHAPES["deep"])
    plain = kept_bytes(model)
    model.recompute = True
    assert kept_bytes(model) < plain / 8


def test_sampling_runs_as_it_did():
    """Without gradients there is nothing to compute again; the cache holds each token once."""
    model = made(SHAPES["deepseek"])
    model.recompute = True
    with torch.no_grad():
        full = model(TOKENS[:, :25], POSITIONS[:, :25]).hidden_BTD
        cache = PagedCache(model.config, 2)
        cache.begin(torch.tensor([[1], [0]]), torch.tensor([0, 0]), torch.tensor([25, 25]))
        flat = [columns[:, :25].reshape(1, -1) for columns in (TOKENS, POSITIONS)]
        cached = model(*flat, cache).hidden_BTD.view(2, 25, -1)
    assert not full.requires_grad
    torch.testing.assert_close(cached[:, 24], full[:, 24], atol=1e-5, rtol=0)
