"""Padded decoding steps: their sizes, their rows for nobody, and that padding changes neither results nor pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import deepseek, hybrid, lively, llama, made, tokens_like

import zifio.engine.engine as engine_module
from zifio.config import Sampling
from zifio.engine.batch import Batch
from zifio.engine.cache import PAGE, PagedCache
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.engine.graphs import DecodeGraphs, bucket, graphs_wanted, padded
from zifio.kernels import operators as kernels
from zifio.models.config import AnyConfig

EOS = 2
CASES: dict[str, AnyConfig] = {
    "llama": llama(max_position_embeddings=150),
    "deepseek": deepseek(num_nextn_predict_layers=1, max_position_embeddings=150),
}
PROMPTS = [tokens_like(n, seed=n).tolist() for n in (1, 40, 4)]
SEEDS = [[10 * p + g for g in range(3)] for p in range(3)]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernels: what a GPU takes."""
    monkeypatch.setattr(kernels, "library", lambda: None)


@pytest.mark.parametrize("n, size", [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (300, 512), (512, 512)])
def test_buckets(n: int, size: int):
    assert bucket(n) == size


def test_graphs_are_for_gpus():
    cuda = torch.device("cuda")
    assert graphs_wanted(cuda, EngineConfig(), llama())
    assert not graphs_wanted(torch.device("cpu"), EngineConfig(), llama())
    assert not graphs_wanted(cuda, EngineConfig(cuda_graphs=False), llama())
    assert not graphs_wanted(cuda, EngineConfig(record_routing=True), llama())
    assert not graphs_wanted(cuda, EngineConfig(), hybrid())


def test_experts_bound_the_rows():
    caches = {name: PagedCache(config, 2) for name, config in CASES.items()}
    takes = {name: DecodeGraphs(made(config), caches[name], 1).takes for name, config in CASES.items()}
    assert takes["deepseek"](512) and not takes["deepseek"](513) and takes["llama"](513)


def a_step(n: int) -> tuple[Batch, np.ndarray, np.ndarray]:
    """n rows at positions on both sides of a page's border, in tables of three pages."""
    position = np.array([PAGE * 2 + 1, 0, PAGE - 1, PAGE, 40])[:n]
    table = np.arange(15).reshape(5, 3)[:n]
    batch = Batch(np.array([4, 9, 1, 30, 2])[:n], position, table, position, np.ones(n, np.int64))
    temperature = np.array([1.0, 0.0, 0.7, 1.3, 1.0], np.float32)[:n]
    return batch, np.linspace(0.05, 0.95, n), temperature


def test_what_a_step_is_fed():
    batch, uniform, temperature = a_step(5)
    fed = padded(batch, uniform, temperature, padding_page=15)
    assert fed.shape == (8, 4 + 4)
    assert (fed[:5, 0] == batch.tokens_N).all() and (fed[:5, 1] == batch.positions_N).all()
    assert (fed[:5, 2].copy().view(np.float64) == uniform).all()
    assert (fed[:5, 3].copy().view(np.float64) == temperature).all()
    assert (fed[:5, 4:7] == batch.table_MP).all() and (fed[:, 7] == 15).all()
    assert (fed[5:, :4] == 0).all() and (fed[5:, 4:] == 15).all()


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("n", [1, 3, 4, 5])
@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_a_padded_step_equals_the_step_and_leaves_all_other_pages_alone(name: str, n: int, latent: bool):
    model, (batch, uniform, temperature) = made(CASES[name]), a_step(n)
    caches = [PagedCache(model.config, 16, latent) for _ in range(2)]
    generator = torch.Generator().manual_seed(2)
    for one, other in zip(*((cache._keys, cache._values) for cache in caches), strict=True):
        other.copy_(one.normal_(generator=generator))
    before = [store.clone() for store in (caches[0]._keys, caches[0]._values)]
    found = DecodeGraphs(model, caches[0], padding_page=15).step(batch, uniform, temperature)
    hidden_ND = batch.forward(model, caches[1]).hidden_BTD[0]
    torch.testing.assert_close(found.hidden_ND, hidden_ND, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logits_NV, model.logits(hidden_ND), atol=1e-5, rtol=0)
    assert len(found.token_N) == len(found.logp_N) == n
    page, slot = batch.places()
    stores = [(cache._keys, cache._values) for cache in caches]
    for store, same, was in zip(*stores, before, strict=True):
        torch.testing.assert_close(store[:, :15], same[:, :15], atol=1e-5, rtol=0)
        n_layers = model.config.num_hidden_layers
        assert (store[:n_layers, page, slot] != was[:n_layers, page, slot]).all()
        store[:, page, slot] = was[:, page, slot]
        assert torch.equal(store[:, :15], was[:, :15]), "only the rows' own slots were written"


@pytest.mark.parametrize("settings", [{}, {"latent_cache": True}, {"speculate": True}, {"max_rows": 3}], ids=str)
@pytest.mark.parametrize("special", [{}, {"temperature": 0}, {"top_k": 5, "repetition_penalty": 1.2}], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_replies_are_the_same(name: str, special: dict[str, Any], settings: dict[str, Any], monkeypatch):
    """Of a whole engine, with ends early and late."""
    if name == "llama" and "speculate" in settings:
        pytest.skip("no module to draft with")
    model = lively(CASES[name], EOS, push=0.0)
    sampling = Sampling(max_new_tokens=40, **special)
    expected = Engine(model, EOS).generate(PROMPTS, SEEDS, sampling)
    sizes: list[int] = []
    step = DecodeGraphs.step
    monkeypatch.setattr(engine_module, "graphs_wanted", lambda *_: True)
    monkeypatch.setattr(DecodeGraphs, "step", lambda self, batch, *rest: (sizes.append(1), step(self, batch, *rest))[1])
    engine = Engine(model, EOS, settings=EngineConfig(**settings))
    found = engine.generate(PROMPTS, SEEDS, sampling)
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one.tokens, one.finish) == (other.tokens, other.finish)
            torch.testing.assert_close(torch.tensor(one.logps), torch.tensor(other.logps), atol=1e-5, rtol=0)
    assert len(sizes) > (0 if settings.get("speculate") else 20)
    assert engine._graphs is not None and engine._graphs.padding_page == engine._n_pages
    engine.release()
    assert engine._graphs is None
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    again = engine.generate(PROMPTS, SEEDS, sampling)
    fresh = Engine(model, EOS, settings=EngineConfig(**settings)).generate(PROMPTS, SEEDS, sampling)
    assert [[c.tokens for c in group] for group in again] == [[c.tokens for c in group] for group in fresh]
