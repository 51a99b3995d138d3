"""Recorded experts are those that the trainer's forward pass chooses for the same tokens."""

from __future__ import annotations

import pytest
import torch
from tiny import deepseek, llama, made, tokens_like

from zifio.config import ConfigError, Sampling
from zifio.engine.cache import bytes_per_page
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine

CONFIG = deepseek(num_hidden_layers=3, num_nextn_predict_layers=1)


@pytest.mark.parametrize(
    "way", [{}, {"chunk_tokens": 7}, {"speculate": True}, {"prefix_sharing": False}, {"max_rows": 2}, {"tight": True}]
)
def test_experts_are_the_trainers(way: dict):
    """Also of prompts that a group shares, that an earlier request computed, and that were computed again."""
    way = dict(way)
    if way.pop("tight", False):
        way["memory_gb"] = 4 * bytes_per_page(CONFIG, False) / 1e9
    model = made(CONFIG)
    engine = Engine(model, -1, settings=EngineConfig(record_routing=True, **way))
    prompts = [tokens_like(40, seed=1).tolist()] * 2 + [tokens_like(5, seed=2).tolist()]
    done = engine.generate(prompts, [[1, 2], [3], [4, 5]], Sampling(max_new_tokens=40))
    for prompt, group in zip(prompts, done, strict=True):
        for completion in group:
            tokens = torch.tensor([prompt + completion.tokens[:-1]])
            with torch.no_grad():
                routing = model(tokens, torch.arange(tokens.shape[1])[None]).routing
            wanted = torch.stack([layer.expert_NA for layer in routing], dim=1)
            assert completion.experts_NLA is not None and completion.experts_NLA.dtype == torch.int16
            assert completion.experts_NLA.shape == (tokens.shape[1], 2, 3)
            assert torch.equal(completion.experts_NLA.sort(-1).values, wanted.to(torch.int16).sort(-1).values)


def test_off_by_default_and_refused_without_experts():
    assert Engine(made(CONFIG), -1).generate([[1]], [[1]], Sampling(max_new_tokens=2))[0][0].experts_NLA is None
    with pytest.raises(ConfigError, match="record_routing"):
        Engine(made(llama()), -1, settings=EngineConfig(record_routing=True))
