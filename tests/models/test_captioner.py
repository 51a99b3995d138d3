"""An encoder of pictures with probes that name words: the formula, its FLOPs, and the way to disk and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import pixels_like, shaken
from torch.utils.flop_counter import FlopCounterMode

from zifio.config import ConfigError
from zifio.kernels import operators as kernels
from zifio.models.captioner import Captioner
from zifio.models.count import captioner_flops
from zifio.models.janus_config import CaptionerConfig, VisionConfig
from zifio.models.weights import load_captioner, load_vq, save_model

VISION = VisionConfig(
    hidden_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4, num_image_tokens=16
)
CONFIG = CaptionerConfig(vision_config=VISION, vocab_size=30, num_words=5)


def lively() -> Captioner:
    """One whose biases and norms are not as they begin."""
    model = Captioner(CONFIG, seed=3)
    shaken(model, 4)
    return model


def test_a_probe_names_its_word_from_all_patches() -> None:
    model, pixels = lively(), pixels_like(3)
    with torch.no_grad():
        seen = model.vision_model(pixels)
        weight, bias = model.attention.in_proj_weight.chunk(3), model.attention.in_proj_bias.chunk(3)
        q = model.probe_embedding @ weight[0].T + bias[0]
        k, v = seen @ weight[1].T + bias[1], seen @ weight[2].T + bias[2]
        parts = []
        for head in range(2):
            of = slice(10 * head, 10 * (head + 1))
            scores = torch.einsum("td,mpd->mtp", q[:, of], k[..., of]) / 10**0.5
            parts.append(scores.softmax(dim=-1) @ v[..., of])
        expected = model.lm_head(model.attention.out_proj(torch.cat(parts, dim=-1)))
        torch.testing.assert_close(model(pixels), expected, atol=1e-5, rtol=1e-5)
    assert expected.shape == (3, 5, 30)


def test_flops_are_counted_as_torch_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own counter, which sees the products by weights; attention by hand."""
    model = lively()
    monkeypatch.setattr(kernels, "native", lambda x: False)  # torch counts its own products only
    with FlopCounterMode(display=False) as counter:
        model(pixels_like(2))
    counted = {str(kind): flops for kind, flops in counter.get_flop_counts()["Global"].items()}
    products = sum(flops for kind, flops in counted.items() if "attention" not in kind and "bmm" not in kind)
    between = 2 * 4 * 16 * 16 * 20 + 4 * 5 * 16 * 20  # patches among each other in two layers, probes with patches
    assert captioner_flops(CONFIG) * 2 == pytest.approx(products + 2 * between, rel=1e-6), counted


def test_to_disk_and_back(tmp_path: Path) -> None:
    model, pixels = lively(), pixels_like(2)
    save_model(model, tmp_path)
    again = load_captioner(tmp_path)
    with torch.no_grad():
        assert again.config == CONFIG and torch.equal(again(pixels), model(pixels))
    with pytest.raises(ConfigError, match="wanted 'janus_vqgan'"):
        load_vq(tmp_path)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="a `vision` stage wrote"):
        load_captioner(tmp_path)
