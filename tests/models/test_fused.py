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


@pytest.mark.parametrize("name", DENSE)
def test_a_step_of_decoding_has_the_bits_of_a_pass(name: str):
    """Nine sequences, some of which share their first page, over the border of a page."""
    config: AnyConfig = DENSE[name]
    model, n = made(config), 9
    model.pack()
    tables = torch.tensor([[m if m > 3 else 0, 20 + m] for m in range(n)])
    states = []
    for in_one_call in (False, True):
        cache, steps = PagedCache(config, n_pages=30), []
        with torch.no_grad():
            for at in range(36):
                columns = tokens_like(n, seed=at), torch.full((n,), at)
                if in_one_call:
                    assert model.decodes
                    out = model.decode(*columns, tables, cache)
                    assert out is not None
                    steps.append(out)
                else:
                    cache.begin(tables, columns[1], torch.ones(n, dtype=torch.int64))
                    steps.append(model(columns[0][None], columns[1][None], cache).hidden_BTD[0])
        states.append(torch.stack(steps))
    assert torch.equal(*states)


def test_a_step_is_refused_where_a_token_or_a_position_is_in_no_table():
    model = made(llama())
    assert not model.decodes
    model.pack()
    cache, table = PagedCache(model.config, n_pages=3), torch.tensor([[0, 1, 2]])
    with torch.no_grad():
        cache.begin(table, torch.tensor([0]), torch.tensor([1]))
        model(torch.tensor([[3]]), torch.tensor([[0]]), cache)
        assert model.decodes
        for token, position, is_known in ((3, 1, True), (10_000, 1, False), (3, 10_000, False)):
            out = model.decode(torch.tensor([token]), torch.tensor([position]), table, cache)
            assert (out is not None) is is_known
        model.layers[0].mlp.up_proj.weight.mul_(1.5)
        assert not model.decodes
    model.pack()
    assert not model.decodes, "a gradient is wanted"
