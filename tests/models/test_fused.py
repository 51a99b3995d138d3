"""All layers in one call give the bits that the modules give, in every dense family; and know when to stand aside."""

from __future__ import annotations

import pytest
import torch
from tiny import EVERY_FAMILY, llama, made, tokens_like

from zifio.engine.cache import PagedCache
from zifio.kernels.library import library
from zifio.models.config import AnyConfig, Lora
from zifio.models.decoder import Decoder
from zifio.models.lora import apply

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler, or ZIFIO_KERNELS=off")
DENSE = {name: config for name, config in EVERY_FAMILY.items() if config.moe is None}


def hidden(model: Decoder, n_tokens: int = 41) -> torch.Tensor:
    """Two sequences in chunks of different sizes."""
    cache, tokens = PagedCache(model.config, n_pages=6), tokens_like(2, n_tokens)
    tables, parts, at = torch.tensor([[3, 1], [0, 5]]), [], 0
    with torch.no_grad():
        for n in (30, 1, 7, 3):
            cache.begin(tables, torch.tensor([at, at]), torch.tensor([n, n]))
            positions = torch.arange(at, at + n).repeat(2)[None]
            parts.append(model(tokens[:, at : at + n].reshape(1, -1), positions, cache).hidden_BTD.view(2, n, -1))
            at += n
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("name", DENSE)
def test_bits_are_those_of_the_modules(name: str):
    config: AnyConfig = DENSE[name]
    model = made(config)
    plain = hidden(model)
    model.pack()
    assert model._fused is not None
    assert torch.equal(hidden(model), plain)


def test_changed_weights_and_adapters_take_the_ordinary_way():
    model = made(llama())
    model.pack()
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight.mul_(1.5)
    changed = hidden(model)
    model.unpack()
    assert torch.equal(hidden(model), changed)
    model.pack()
    apply(model, Lora(rank=2), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    adapted = hidden(model)
    model.pack()
    assert model._fused is None
    assert torch.equal(hidden(model), adapted) and not torch.equal(adapted, changed)
