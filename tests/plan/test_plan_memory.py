"""Memory by formula: parts add up over devices, and activations are what torch really keeps."""

from __future__ import annotations

import pytest
import torch
from tiny import deepseek, llama

from zifio.kernels import operators as kernels
from zifio.models.config import AnyConfig
from zifio.models.count import parameters
from zifio.models.decoder import Decoder
from zifio.models.presets import preset
from zifio.plan.memory import (
    cache_bytes,
    kept_numbers,
    serving_weights,
    shares,
    training_memory,
    weights_read,
)
from zifio.plan.settings import Layout, PlanConfig
from zifio.plan.work import memory, settle

WIDE = {"hidden_size": 64, "intermediate_size": 160, "max_position_embeddings": 256, "vocab_size": 40}


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-30b-a3b", "llama-3.1-405b"])
@pytest.mark.parametrize("pipeline", [1, 3, 16])
def test_places_of_a_pipeline_hold_all_weights_once(name: str, pipeline: int):
    config = preset(name)
    places = shares(config, Layout(pipeline=pipeline))
    assert sum(plain + experts for plain, experts, _ in places) == parameters(config).total
    assert sum(layers for *_, layers in places) == config.num_hidden_layers


def test_one_device_holds_sixteen_bytes_a_parameter():
    """2 working, 4 gradient, 4 master, 4 + 4 moments (ZeRO, arXiv:1910.02054, section 3.1, with fp32 gradients: 18);
    DeepSeek-V3's moments in bf16 spare 4."""
    config = preset("deepseek-v2-lite")
    n = parameters(config).total
    found = training_memory(config, PlanConfig())
    assert found.weights + found.gradients + found.optimizer == 18 * n
    theirs = training_memory(config, PlanConfig(moment_bytes=2))
    assert theirs.weights + theirs.gradients + theirs.optimizer == 14 * n


@pytest.mark.parametrize("zero, held", [(0, 18), (1, 2 + 4 + 12 / 8), (2, 2 + 16 / 8), (3, 18 / 8)])
def test_zero_shares_out_one_part_after_the_other(zero: int, held: float):
    config = preset("qwen2.5-72b")
    found = training_memory(config, PlanConfig(layout=Layout(data=8, zero=zero)))
    assert (found.weights + found.gradients + found.optimizer) / parameters(config).total == pytest.approx(held)


def test_experts_are_shared_out_and_the_rest_is_not():
    config = preset("deepseek-v3")
    one, spread = (training_memory(config, PlanConfig(layout=Layout(data=64, expert=e, zero=0))) for e in (1, 64))
    experts = 58 * 256 * 3 * 7168 * 2048
    assert one.weights - spread.weights == pytest.approx(2 * experts * 63 / 64)


def test_v3_fits_its_makers_devices():
    """16 places, 64 ranks of experts, 128 copies: on 80 GB."""
    found = memory(settle(preset("deepseek-v3"), PlanConfig(), "deepseek-v3"))["training"]
    assert 40e9 < found.total < 80e9


def kept_bytes(config: AnyConfig, recompute: bool = False) -> float:
    """What torch keeps for the backward pass of 128 tokens, weights and inputs aside, each storage once."""
    model = Decoder(config, seed=0)
    model.recompute = recompute
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage  # kept alive, so that no address comes twice
        return tensor

    tokens, positions = torch.zeros(1, 128, dtype=torch.long), torch.arange(128)[None]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(tokens, positions)
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize(
    "config",
    [
        llama(**WIDE, num_hidden_layers=6),
        deepseek(**WIDE, num_hidden_layers=6, first_k_dense_replace=6, kv_lora_rank=24, v_head_dim=16),
    ],
    ids=["llama", "mla"],
)
def test_activations_are_what_torch_keeps(config: AnyConfig):
    """Within a third: torch keeps a few numbers more (rotations, norms' scales), and shares some of ours."""
    expected = 4 * 128 * kept_numbers(config, config.num_hidden_layers)
    if kernels.native(torch.zeros(1)):
        assert kept_bytes(config) == pytest.approx(expected, rel=0.34)


def test_recomputing_keeps_a_block_and_the_inputs_of_all():
    config = preset("llama-3.1-405b")
    whole, again, cheap = (kept_numbers(config, 126, how) for how in ("none", "block", "cheap"))
    assert again == 126 * 16384 + whole / 126
    assert again < cheap < whole


def test_serving_weights_and_cache():
    config = preset("deepseek-v3")
    assert serving_weights(config, Layout(), "fp8") == parameters(config).total
    assert cache_bytes(config, Layout(), 1000) == 70_272_000
    assert cache_bytes(config, Layout(tensor=8), 1000) == 70_272_000, "one latent for all heads"
    dense = preset("qwen2.5-72b")
    assert cache_bytes(dense, Layout(tensor=8), 1000) == 327_680_000 / 8
    assert cache_bytes(dense, Layout(tensor=64), 1000) == 327_680_000 / 8, "only 8 heads to share out"
    few, many = (weights_read(config, Layout(), "fp8", rows) for rows in (1, 4096))
    assert few == pytest.approx(parameters(config).active, rel=0.01)
    assert many == pytest.approx(parameters(config).total, rel=1e-6)


def test_rl_leaves_the_cache_what_training_does_not_hold():
    setting = settle(preset("qwen2.5-32b"), PlanConfig(hardware="h200", layout=Layout(data=16)), "mine")
    found = memory(setting)
    assert found["rl"].total == pytest.approx(max(0.9 * 141e9, found["rl"].total), rel=1e-6)
    assert found["rl"].kv <= found["serving"].kv
