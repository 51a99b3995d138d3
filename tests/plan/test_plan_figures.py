"""What is published of models, to the unit; and what transformers counts of the same configs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tiny import EVERY_FAMILY, deepseek, llama

from zifio.forecast.verb import plan
from zifio.models.config import AnyConfig, write_config
from zifio.models.presets import PRESETS, preset
from zifio.plan.figures import figures

# Total, active in all, active without the input embedding, bytes of cache a token in bf16.
PUBLISHED = {
    "deepseek-v2-lite": (15_706_484_224, 2_661_150_208, 2_451_435_008, 31_104),
    "deepseek-v2": (235_741_434_880, 21_375_800_320, 20_851_512_320, 69_120),
    "deepseek-v3": (671_026_419_200, 37_552_297_472, 36_625_618_432, 70_272),
    "moonlight-16b-a3b": (15_960_110_208, 2_914_776_192, 2_579_231_872, 31_104),
    "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704, 3_041_867_776, 98_304),
    "llama-3.1-405b": (405_853_388_800, 405_853_388_800, 403_752_042_496, 516_096),
    "qwen2.5-72b": (72_706_203_648, 72_706_203_648, 71_460_495_360, 327_680),
}
NON_EMBEDDING = {  # in billions, total and active
    "deepseek-v2-lite": (15.287, 2.242), "deepseek-v2": (234.69, 20.33), "deepseek-v3": (669.17, 35.70),
    "moonlight-16b-a3b": (15.289, 2.244), "qwen3-30b-a3b": (29.910, 2.731), "llama-3.1-405b": (401.65, 401.65),
    "qwen2.5-72b": (70.21, 70.21),
}  # fmt: skip
# GFLOP per training token at 4,096 tokens, and how near.
FLOPS = {"deepseek-v2": (155, 5e-3), "deepseek-v3": (250, 5e-3), "llama-3.1-405b": (2448, 2e-2)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str):
    found = figures(preset(name))
    counts = (found.total_params, found.active_params, found.active_params_no_input_embedding)
    assert (*counts, found.kv_bytes_per_token) == PUBLISHED[name]
    total, active = NON_EMBEDDING[name]
    assert found.non_embedding_params / 1e9 == pytest.approx(total, rel=2e-4)
    assert found.active_non_embedding_params / 1e9 == pytest.approx(active, rel=5e-4)


@pytest.mark.parametrize("name", FLOPS)
def test_published_flops(name: str):
    """ISCA's table 2 (arXiv:2505.09343)."""
    gigaflops, tolerance = FLOPS[name]
    found = figures(preset(name))
    assert found.train_flops_per_token / 1e9 == pytest.approx(gigaflops, rel=tolerance)
    assert found.train_flops_per_token == 3 * found.forward_flops_per_token


def test_json_has_what_scripts_read(capfd):
    found = plan("deepseek-v3", as_json=True)
    assert json.loads(json.dumps(found)) == found
    wanted = (
        "total_params", "active_params", "active_params_no_input_embedding", "non_embedding_params",
        "forward_flops_per_token", "train_flops_per_token", "kv_bytes_per_token", "gpu_hours", "usd",
    )  # fmt: skip
    assert all(isinstance(found[key], int | float) for key in wanted)
    said = capfd.readouterr().err
    assert "671,026,419,200" in said and "70,272 bytes" in said


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_counts_the_same(name: str, tmp_path: Any):
    """An independent builder of the same config, on the meta device; its buffers hold the routers' biases."""
    transformers = pytest.importorskip("transformers")
    config = preset(name)
    if config.moe is not None:  # two layers of each kind tell as much as all, and are built in seconds
        config = config.model_copy(update={"num_hidden_layers": 5})
    assert _counted_by(transformers, config, tmp_path) == figures(config).total_params


@pytest.mark.parametrize("config", [deepseek(), llama(tie_word_embeddings=True), *EVERY_FAMILY.values()])
def test_transformers_counts_small_ones_the_same(config: AnyConfig, tmp_path: Any):
    transformers = pytest.importorskip("transformers")
    assert _counted_by(transformers, config, tmp_path) == figures(config).total_params


def _counted_by(transformers: Any, config: AnyConfig, folder: Any) -> int:
    write_config(config, folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    biases = sum(b.numel() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
    return sum(p.numel() for p in model.parameters()) + biases
