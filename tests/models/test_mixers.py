"""What configs say of mixers: counts, files, and mistakes; and that a hybrid learns, packed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ADAM, deepseek_v32, hybrid, logits_of, made, qwen3_next, tokens_like

from zifio.config import ConfigError
from zifio.engine.cache import bytes_per_page
from zifio.engine.layered import bytes_per_slot
from zifio.models.config import AnyConfig, read_config
from zifio.models.count import cached_numbers, forward_flops, parameters, state_numbers
from zifio.models.decoder import Decoder
from zifio.models.hybrids import HybridConfig
from zifio.models.mixers import repeated
from zifio.models.weights import load_model, load_state, save_model, to_disk_names
from zifio.plan.figures import figures
from zifio.train.config import Optim
from zifio.train.logp import token_logp_entropy
from zifio.train.optim import Optimizer

KINDS = ("full_attention", "linear_attention", "sliding_attention", "indexed_attention")


def only(kind: str, n: int = 1, **changes: Any) -> HybridConfig:
    """Layers of one kind."""
    return hybrid(num_hidden_layers=n, layer_types=[kind] * n, **changes)


def mixing(config: AnyConfig, length: int, first: int = 0) -> float:
    """FLOPs beside those of weights."""
    return forward_flops(config, [length], firsts=[first]) - 2 * parameters(config).multiplied * length


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_those_of_the_model(kind: str):
    for changes in ({}, {"attention_bias": True}, {"linear_conv_kernel_dim": 0}, {"linear_num_key_heads": 4}):
        config = only(kind, 2, **changes)
        assert parameters(config).total == sum(p.numel() for p in Decoder(config).parameters())


def test_flops_of_a_memory_are_the_same_for_every_token():
    """Read where the key points, written there, read where the query points: 3 products of K by X per head."""
    config = only("linear_attention")
    assert mixing(config, 1) == 3 * 2 * 4 * 6 * 5
    assert mixing(config, 100) == 100 * mixing(config, 1) == mixing(config, 100, first=10_000)


def test_flops_of_a_window_and_of_an_indexer_count_pairs():
    """Against a sum over queries."""
    per_pair = 2 * 4 * (10 + 10)
    for first in (0, 3, 20):
        sees = [min(position + 1, 7) for position in range(first, first + 25)]
        assert mixing(only("sliding_attention"), 25, first) == per_pair * sum(sees)
        reads = [min(position + 1, 9) for position in range(first, first + 25)]
        scores = [position + 1 for position in range(first, first + 25)]
        assert mixing(only("indexed_attention"), 25, first) == per_pair * sum(reads) + 2 * 4 * (16 + 1) * sum(scores)


def test_numbers_that_grow_and_numbers_that_do_not():
    """What the formulas say is what the engine keeps, where pages and rings are whole."""
    config = hybrid(num_hidden_layers=8, layer_types=repeated(8))
    assert cached_numbers(config) == 2 * 2 * (10 + 10)
    assert state_numbers(config) == 6 * (4 * 6 * 5 + 3 * (2 * 2 * 6 + 4 * 5))
    gpu = torch.device("cuda")
    assert bytes_per_page(config, False, torch.float32, gpu) == 32 * 4 * cached_numbers(config)
    assert bytes_per_slot(config, torch.float32, gpu) == 4 * state_numbers(config)
    window = only("sliding_attention", 3)
    assert (cached_numbers(window), state_numbers(window)) == (0, 3 * 7 * 2 * (10 + 10))
    sparse = deepseek_v32()
    assert (cached_numbers(sparse), state_numbers(sparse)) == (2 * (12 + 4 + 6), 0)
    assert bytes_per_page(sparse, True, torch.float32, gpu) == 32 * 4 * (
        cached_numbers(sparse) + 2 * 12
    )  # values apart
    told = figures(config, 64, "fp32")
    assert (told.kv_bytes_per_token, told.state_bytes) == (4 * cached_numbers(config), 4 * state_numbers(config))


def test_qwen3_next_80b():
    """The published shape: 80 billion parameters, of which a token meets 3."""
    config = read_config_of(
        model_type="qwen3_next", architectures=["Qwen3NextForCausalLM"], vocab_size=151936, hidden_size=2048,
        num_hidden_layers=48, num_attention_heads=16, num_key_value_heads=2, head_dim=256, intermediate_size=5120,
        linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128, linear_value_head_dim=128,
        num_experts=512, num_experts_per_tok=10, moe_intermediate_size=512, shared_expert_intermediate_size=512,
    )  # fmt: skip
    count = parameters(config)
    assert count.total / 1e9 == pytest.approx(80, abs=0.5) and count.active / 1e9 == pytest.approx(3.9, abs=0.1)
    with torch.device("meta"):
        assert sum(p.numel() for p in Decoder(config).parameters()) == count.total
    assert cached_numbers(config) == 12 * 2 * 2 * 256


def read_config_of(**raw: Any) -> AnyConfig:
    """A config as if it stood in a file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(raw))
        return read_config(folder)


@pytest.mark.parametrize(
    "config", [hybrid(), hybrid(tie_word_embeddings=True), deepseek_v32(num_nextn_predict_layers=1)]
)
def test_folders_go_round(config: AnyConfig, tmp_path: Path):
    model = made(config)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert torch.equal(logits_of(model, tokens_like(2, 30)), logits_of(again, tokens_like(2, 30)))
    assert [again.config.mixer(layer) for layer in range(2)] == [config.mixer(layer) for layer in range(2)]


def test_the_mtp_module_of_published_files_is_left_out():
    model = made(qwen3_next())
    disk = to_disk_names(model.config, model.state_dict())
    assert any(name.endswith(".mlp.shared_expert.gate_proj.weight") for name in disk)
    disk["mtp.fc.weight"] = torch.zeros(2, 2)
    load_state(Decoder(model.config, 3), disk, "test")
    with pytest.raises(ConfigError, match="mtpx is not part"):
        load_state(Decoder(model.config, 3), disk | {"mtpx": torch.zeros(1)}, "test")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer_types": ["full_attention"]}, r"layer_types names 1 layers, num_hidden_layers=4"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ({"linear_num_value_heads": 3}, r"linear_num_value_heads=3 is not divisible by linear_num_key_heads=2"),
        ({"index_head_dim": 8}, r"index_head_dim=8 is less than the 10 of attention's heads"),
        ({"linear_conv_kernel_dim": 17}, "linear_conv_kernel_dim"),
    ],
)
def test_shapes_that_cannot_be(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        hybrid(**changes)


def test_a_family_has_its_own_mixers(tmp_path: Path):
    with pytest.raises(ValueError, match=r"in this family a layer is one of \['full_attention', 'linear_attention'\]"):
        qwen3_next(layer_types=["sliding_attention"] * 4)
    save_model(made(qwen3_next()), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"layer_types": ["chunked_attention"] * 4}))
    with pytest.raises(
        ConfigError, match="'chunked_attention', which is not supported; wanted 'full_attention' or 'linear"
    ):
        read_config(tmp_path)
    with pytest.raises(ValueError, match="q_lora_rank is missing"):
        deepseek_v32(q_lora_rank=None)


@pytest.mark.parametrize("kind", ["muon", pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_hybrid_learns_to_recall(kind: str):
    """Which of two values stood behind a key, with three layers to one and two sequences to a row: better than to
    guess among the two, which comes to ln 2."""
    model, rng = (
        Decoder(hybrid(layer_types=None, vocab_size=8, initializer_range=0.1, head_dim=12), 1),
        random.Random(1),
    )
    optimizer = Optimizer(model, Optim.model_validate(ADAM | {"kind": kind, "lr": 1e-2, "warmup_steps": 5}))
    losses = []
    for step in range(60):
        rows = []
        for _ in range(64):
            pairs = [(key, rng.randrange(4, 8)) for key in rng.sample(range(4), 2)]
            rows.append([token for pair in [*pairs, rng.choice(pairs)] for token in pair])
        tokens, positions = torch.tensor(rows).view(32, 12), torch.arange(6).repeat(2).expand(32, -1)
        logp, _ = token_logp_entropy(model, model(tokens, positions).hidden_BTD, tokens)
        loss = -logp[:, [5, 11]].mean()
        loss.backward()
        optimizer.clip()
        optimizer.step(step, 60)
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.7 * math.log(2) < losses[0], losses
