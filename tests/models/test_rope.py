"""Rotary positions: frequencies and temperature are those of transformers; scores depend on distances only."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny import deepseek, llama, logits_of, made, tokens_like

from zifio.config import ConfigError
from zifio.models.families import LinearRope, Llama3Rope, Yarn
from zifio.models.rope import amplitude, cos_sin, inverse_frequencies, rotate, temperature
from zifio.models.weights import load_model, save_model

transformers = pytest.importorskip("transformers")

YARNS = {
    "released": Yarn(),
    "v2-lite": Yarn(mscale=0.707, mscale_all_dim=0.707),
    "other-betas": Yarn(factor=4, original_max_position_embeddings=1024, beta_fast=16, beta_slow=2),
    "short": Yarn(factor=8, original_max_position_embeddings=64),
    "no-stretch": Yarn(factor=1),
    "uneven-mscale": Yarn(factor=10, mscale=1.0, mscale_all_dim=0.5),
    "no-mscale": Yarn(factor=10, mscale=0.0, mscale_all_dim=0.0),
}


def their_config(yarn: Yarn | None, width: int = 64, theta: float = 10000.0) -> object:
    """transformers' config with this rope."""
    return transformers.DeepseekV3Config(
        hidden_size=64, num_attention_heads=2, num_hidden_layers=1, qk_rope_head_dim=width, qk_nope_head_dim=16,
        rope_theta=theta, rope_scaling=yarn.model_dump() if yarn else None, max_position_embeddings=163840,
    )  # fmt: skip


@pytest.mark.parametrize("width, theta", [(64, 10000.0), (8, 10000.0), (32, 500000.0)])
@pytest.mark.parametrize("name", YARNS)
def test_yarn_frequencies_and_amplitude_equal_transformers(name: str, width: int, theta: float):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    yarn = YARNS[name]
    theirs, factor = ROPE_INIT_FUNCTIONS["yarn"](their_config(yarn, width, theta), device="cpu")
    torch.testing.assert_close(inverse_frequencies(width, theta, yarn), theirs, atol=0, rtol=2e-6)
    assert amplitude(yarn) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("name", YARNS)
def test_yarn_temperature_equals_transformers_attention_scale(name: str):
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    config = their_config(YARNS[name])
    scale = DeepseekV3Attention(config, layer_idx=0).scaling
    assert 80**-0.5 * temperature(YARNS[name]) == pytest.approx(scale, rel=1e-12)


PLAIN = {
    "llama-3.1": Llama3Rope(factor=8, original_max_position_embeddings=8192),
    "llama-3.2": Llama3Rope(factor=32, original_max_position_embeddings=8192),
    "llama3-short": Llama3Rope(factor=4, low_freq_factor=2, high_freq_factor=3, original_max_position_embeddings=64),
    "linear": LinearRope(factor=4),
}


@pytest.mark.parametrize("width, theta", [(64, 500000.0), (128, 500000.0), (8, 10000.0)])
@pytest.mark.parametrize("name", PLAIN)
def test_other_frequencies_equal_transformers(name: str, width: int, theta: float):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = PLAIN[name]
    config = transformers.LlamaConfig(
        hidden_size=2 * width, num_attention_heads=2, max_position_embeddings=131072,
        rope_parameters=scaling.model_dump() | {"rope_type": scaling.type, "rope_theta": theta},
    )  # fmt: skip
    theirs, factor = ROPE_INIT_FUNCTIONS[scaling.type](config, device="cpu")
    ours = inverse_frequencies(width, theta, scaling)
    torch.testing.assert_close(ours, theirs, atol=0, rtol=2e-6)
    assert (ours != inverse_frequencies(width, theta, None)).any()
    assert amplitude(scaling) == factor == temperature(scaling) == 1.0


def test_frequencies_are_computed_also_where_tensors_have_no_values():
    with torch.device("meta"):
        for scaling in (None, *YARNS.values(), *PLAIN.values()):
            assert inverse_frequencies(8, 10000.0, scaling).device.type == "cpu"


def test_yarn_by_hand():
    """DeepSeek-V3: m = 0.1 ln 40 + 1 = 1.3689; the fastest pairs are left alone, the slowest are 40 times slower."""
    assert temperature(Yarn()) == pytest.approx(1.3688879**2, rel=1e-6)
    plain, stretched = inverse_frequencies(64, 10000.0, None), inverse_frequencies(64, 10000.0, Yarn())
    assert plain[0] == 1.0 and plain[-1].item() == pytest.approx(10000 ** (-62 / 64), rel=1e-6)
    low = math.floor(64 * math.log(4096 / (32 * 2 * math.pi)) / (2 * math.log(10000)))
    high = math.ceil(64 * math.log(4096 / (2 * math.pi)) / (2 * math.log(10000)))
    assert torch.equal(stretched[: low + 1], plain[: low + 1])
    torch.testing.assert_close(stretched[high:], plain[high:] / 40)
    assert temperature(None) == amplitude(None) == 1.0


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotation_equals_complex_multiplication(interleaved: bool):
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 0, 1, 2, 50]])
    frequencies = inverse_frequencies(8, 10000.0, None)
    ours = rotate(x, *cos_sin(positions, frequencies, 1.0), interleaved=interleaved)
    real, imaginary = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :4], x[..., 4:])
    turned = (
        torch.complex(real, imaginary)
        * torch.exp(1j * (positions[..., None].double() * frequencies.double()))[:, :, None]
    )
    torch.testing.assert_close(ours, torch.cat([turned.real, turned.imag], dim=-1), atol=1e-5, rtol=0)


def test_scores_depend_on_the_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(2)).unbind()
    frequencies = inverse_frequencies(16, 10000.0, None)

    def score(at: int, other: int) -> float:
        turned = [
            rotate(x, *cos_sin(torch.tensor([[position]]), frequencies, 1.0), interleaved=True)
            for x, position in ((q, at), (k, other))
        ]
        return (turned[0] * turned[1]).sum().item()

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-2


@pytest.mark.parametrize("yarn", [None, *YARNS.values()], ids=["plain", *YARNS])
@pytest.mark.parametrize("family", ["deepseek", "llama"])
def test_whole_models_equal_transformers_with_every_rope(family: str, yarn: Yarn | None, tmp_path):
    """Both ways: what we write they read alike, and what they write we read alike."""
    make = {"deepseek": deepseek, "llama": llama}[family]
    model = made(make(rope_scaling=yarn, max_position_embeddings=128, rope_theta=5000.0))
    save_model(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "theirs").mkdir()
    theirs.save_pretrained(tmp_path / "theirs")
    tokens = tokens_like(2, 60)
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(logits_of(model, tokens), expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(logits_of(load_model(tmp_path / "theirs"), tokens), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "scaling", [{"factor": 8.0}, {"factor": 8.0, "mscale_all_dim": 0.7}, {"factor": 8.0, "beta_fast": None}]
)
@pytest.mark.parametrize("family", ["deepseek", "llama"])
def test_files_that_leave_yarn_fields_out_mean_here_what_they_mean_in_transformers(family: str, scaling, tmp_path):
    """An absent mscale is not DeepSeek-V3's 1.0, an absent old context is not 4096."""
    make = {"deepseek": deepseek, "llama": llama}[family]
    save_model(made(make(max_position_embeddings=64)), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"rope_scaling": {"rope_type": "yarn", **scaling}}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = tokens_like(2, 60)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(load_model(tmp_path), tokens), theirs(tokens).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "field, value", [("attention_factor", 1.3), ("truncate", False), ("partial_rotary_factor", 0.5)]
)
def test_yarn_that_we_do_not_compute_is_refused_by_name(field: str, value: float, tmp_path):
    save_model(made(llama()), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(raw | {"rope_scaling": {"type": "yarn", "factor": 8, field: value}})
    )
    with pytest.raises(ConfigError, match=rf"config\.json: rope {field} = {value}"):
        load_model(tmp_path)
