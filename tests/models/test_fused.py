"""All layers in one call give the bits that the modules give, in every dense family; and know when to stand aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import EVERY_FAMILY, llama, made, tokens_like

from zifio.engine.cache import PagedCache
from zifio.kernels.library import library
from zifio.models.config import AnyConfig, Lora
from zifio.models.decoder import Decoder
from zifio.models.fused import FusedLayers
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


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every step in one call whether it was done."""
    decode, told = FusedLayers.decode, []

    def listening(*given: Any) -> torch.Tensor | None:
        out = decode(*given)
        told.append(out is not None)
        return out

    monkeypatch.setattr(FusedLayers, "decode", listening)
    return told


@pytest.mark.parametrize("name", DENSE)
def test_a_step_of_decoding_has_the_bits_of_a_pass(name: str, told: list[bool]):
    """Nine sequences, some of which share their first page, over the border of a page."""
    config: AnyConfig = DENSE[name]
    model, n = made(config), 9
    tables = torch.tensor([[m if m > 3 else 0, 20 + m] for m in range(n)])
    states = []
    for is_packed in (False, True):
        if is_packed:
            model.pack()
        cache, steps = PagedCache(config, n_pages=30), []
        with torch.no_grad():
            for at in range(36):
                cache.begin(tables, torch.full((n,), at), torch.ones(n, dtype=torch.int64))
                steps.append(model(tokens_like(1, n, seed=at), torch.full((1, n), at), cache).hidden_BTD)
        states.append(torch.stack(steps))
    assert torch.equal(*states) and told == [True] * 36


def test_a_step_takes_the_ordinary_way_where_one_call_will_not_do(told: list[bool]):
    """A position beyond the table of angles, which then grows; two tokens; changed weights; a gradient."""
    model = made(llama(max_position_embeddings=1000))
    model.pack()
    cache, table = PagedCache(model.config, n_pages=10), torch.arange(10)[None]

    def step(position: int, count: int = 1) -> None:
        cache.begin(table, torch.tensor([position]), torch.tensor([count]))
        model(torch.full((1, count), 3), torch.arange(position, position + count)[None], cache)

    with torch.no_grad():
        for position in (0, 1, 290, 291):
            step(position)
        assert told == [False, True, False, True]
        step(292, 2)
        model.layers[0].mlp.up_proj.weight.mul_(1.5)
        step(294)
        assert len(told) == 4
    model.pack()
    step(295)
    assert len(told) == 4
