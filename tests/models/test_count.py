"""Parameters and FLOPs by formula: equal to what models really hold, and to the published totals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import EVERY_FAMILY, deepseek, llama
from torch.utils.flop_counter import FlopCounterMode

from zifio.kernels import operators as kernels
from zifio.models.config import AnyConfig, DeepseekV3Config
from zifio.models.count import forward_flops, parameters
from zifio.models.decoder import Decoder
from zifio.models.presets import preset

V3, V2, V2_LITE = preset("deepseek-v3"), preset("deepseek-v2"), preset("deepseek-v2-lite")
MOONLIGHT, LLAMA_405B = preset("moonlight-16b-a3b"), preset("llama-3.1-405b")
QWEN_72B, QWEN_30B = preset("qwen2.5-72b"), preset("qwen3-30b-a3b")

# Total, active in all, active without the input embedding, and the entries of the routers' biases among each of them:
# the published counts hold them, ours are of parameters.
PUBLISHED = {
    "V2-Lite": (V2_LITE, 15_706_484_224, 2_661_150_208, 2_451_435_008, 0),
    "V2": (V2, 235_741_434_880, 21_375_800_320, 20_851_512_320, 0),
    "V3": (V3, 671_026_419_200, 37_552_297_472, 36_625_618_432, 58 * 256),
    "Moonlight": (MOONLIGHT, 15_960_110_208, 2_914_776_192, 2_579_231_872, 26 * 64),
    "Llama-405B": (LLAMA_405B, 405_853_388_800, 405_853_388_800, 403_752_042_496, 0),
    "Qwen2.5-72B": (QWEN_72B, 72_706_203_648, 72_706_203_648, 71_460_495_360, 0),
    "Qwen3-30B-A3B": (QWEN_30B, 30_532_122_624, 3_353_032_704, 3_041_867_776, 0),
}

SHAPES = {
    "deepseek": deepseek(),
    "low-rank-query": deepseek(q_lora_rank=10, n_shared_experts=2),
    "all-dense": deepseek(first_k_dense_replace=2),
    "all-experts": deepseek(first_k_dense_replace=0, num_hidden_layers=3),
    "tied": deepseek(tie_word_embeddings=True),
    "llama": llama(),
    "llama-wide-heads": llama(head_dim=10, num_key_value_heads=1, num_hidden_layers=3),
    "llama-tied": llama(tie_word_embeddings=True),
}
SHAPES: dict[str, AnyConfig] = SHAPES | EVERY_FAMILY


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str):
    config, total, active, multiplied, bias = PUBLISHED[name]
    count = parameters(config)
    assert (count.total, count.active, count.multiplied) == (total - bias, active - bias, multiplied - bias)
    assert count.embedding == config.vocab_size * config.hidden_size
    with torch.device("meta"):
        held = sum(p.numel() for n, p in Decoder(config).named_parameters() if not n.startswith("mtp."))
    assert held == count.total


def test_the_mtp_module_of_v3():
    """11.507 billion in its layer, 11.61 with its projection (README_WEIGHTS prints 11.5)."""
    extra = parameters(V3, with_mtp=True).total - parameters(V3).total
    assert extra / 1e9 == pytest.approx(11.61, abs=0.005)
    assert (extra - 2 * 7168**2 - 3 * 7168) / 1e9 == pytest.approx(11.507, abs=0.0005)


@pytest.mark.parametrize("with_mtp", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_formula_equals_the_model(name: str, with_mtp: bool):
    config = SHAPES[name]
    if isinstance(config, DeepseekV3Config):
        config = config.model_copy(update={"num_nextn_predict_layers": int(with_mtp)})
    with torch.device("meta"):
        model = Decoder(config)
    count = parameters(config, with_mtp)
    assert count.total == sum(p.numel() for p in model.parameters())
    idle = 0
    if config.moe is not None:
        share = 1 - config.moe.n_active / config.moe.n_experts
        idle = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n) * share
    assert count.active == count.total - idle
    used = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n or config.tie_word_embeddings)
    assert count.multiplied == used - idle


@pytest.mark.parametrize(
    "config, gigaflops, tolerance",
    [
        (V3, 250.5, 5e-3),
        (V2, 155.3, 5e-3),
        (LLAMA_405B, 2473.2, 2e-2),
        (QWEN_72B, 444.9, 5e-3),
        (QWEN_30B, 23.1, 5e-3),
        (V2_LITE, 16.4, 5e-3),
        (MOONLIGHT, 17.2, 5e-3),
    ],
)
def test_published_training_flops_per_token(config: Any, gigaflops: float, tolerance: float):
    """At 4096 tokens, causal, without MTP; "Insights into DeepSeek-V3" (ISCA, table 2) prints 250 and 155."""
    per_token = 3 * forward_flops(config, [4096]) / 4096 / 1e9
    assert per_token == pytest.approx(gigaflops, rel=tolerance)


def test_flops_of_sequences_add_up_and_grow_faster_than_length():
    config = deepseek()
    assert forward_flops(config, [5, 9]) == forward_flops(config, [5]) + forward_flops(config, [9])
    assert forward_flops(config, [20]) > 2 * forward_flops(config, [10])
    assert forward_flops(config, []) == 0


FULL = [name for name in EVERY_FAMILY if not EVERY_FAMILY[name].linear and not EVERY_FAMILY[name].indexer]


@pytest.mark.parametrize("shape", ["deepseek", "low-rank-query", "mtp", "llama-wide-heads", *FULL])
def test_flops_equal_what_torch_counts(shape: str, monkeypatch: pytest.MonkeyPatch):
    """Torch's own counter on the real forward pass, which sees the matrix products; attention and norms by hand.

    Every expert is active, because the small model's dense form computes them all.
    """
    config = deepseek(num_nextn_predict_layers=1) if shape == "mtp" else SHAPES[shape]
    n_blocks, width = config.num_hidden_layers + (shape == "mtp"), 2 * (getattr(config, "head_dim", None) or 6)
    if config.moe is not None:
        config = config.model_copy(update={"num_experts_per_tok": config.moe.n_experts})
    if config.model_type.startswith("deepseek"):
        width = 6 + 4 + 8
    model = Decoder(config, seed=0)
    monkeypatch.setattr(kernels, "native", lambda x: False)  # torch counts its own products only
    tokens, positions = torch.zeros(1, 32, dtype=torch.long), torch.arange(32)[None]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = model(tokens, positions, with_mtp=shape == "mtp")
        model.logits(output.hidden_BTD)
        if output.mtp_hidden_BTD is not None:
            model.logits(model.mtp[0].norm(torch.zeros(1, 32, 24)))
    products = counter.get_flop_counts()["Global"]
    assert {str(kind) for kind in products} <= {"aten.mm", "aten.addmm"}
    used = [p for n, p in model.named_parameters() if shape == "mtp" or not n.startswith("mtp.")]
    n_norm = sum(p.numel() for p in used if p.ndim == 1)
    attention = n_blocks * config.num_attention_heads * 2 * width * (32 * 33 / 2)
    expected = sum(products.values()) + attention + 2 * n_norm * 32
    missed = 0
    if shape == "mtp":  # our module's block runs on 31 positions; the ledger counts 32
        block = sum(p.numel() for n, p in model.named_parameters() if n.startswith("mtp") and p.ndim > 1)
        missed = 2 * block
    assert forward_flops(config, [32], with_mtp=shape == "mtp") == expected + missed
