"""Shapes: impossible ones are refused with the way out; files of other programs are read or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import deepseek, llama

from zifio.config import Config, ConfigError, build
from zifio.models.config import DeepseekV3Config, LlamaConfig, ModelConfig, Yarn, read_config, write_config


class Holder(Config):
    """A recipe's stage with a shape in it."""

    model: ModelConfig


def refusal(family: str, **fields: Any) -> str:
    """What building this shape from a recipe says."""
    with pytest.raises(ConfigError) as error:
        build(Holder, {"model": {"model_type": family, **fields}}, "my.toml")
    return str(error.value)


@pytest.mark.parametrize(
    "fields, parts",
    [
        ({"qk_rope_head_dim": 15}, ("qk_rope_head_dim=15 is odd", "14 or 16")),
        ({"n_routed_experts": 10, "n_group": 4}, ("n_routed_experts=10", "n_group=4", "[1, 2, 5, 10]")),
        ({"n_routed_experts": 8, "n_group": 8, "topk_group": 8}, ("n_group=8", "1 expert per group", "at least 2")),
        ({"topk_group": 2}, ("topk_group=2 exceeds n_group=1", "at most 1")),
        ({"num_experts_per_tok": 9}, ("num_experts_per_tok=9", "8 experts")),
        ({"n_group": 4, "num_experts_per_tok": 3}, ("num_experts_per_tok=3", "the 2 experts", "topk_group=1 of 4")),
        ({"first_k_dense_replace": 5}, ("first_k_dense_replace=5", "num_hidden_layers=4", "at most 4")),
        ({"num_nextn_predict_layers": 2}, ("num_nextn_predict_layers", "less than or equal to 1", "came 2")),
        ({"hidden_size": 0}, ("hidden_size", "greater than 0", "came 0")),
        ({"kv_lora_rank": -3}, ("kv_lora_rank", "greater than 0", "came -3")),
        ({"hidden_size": 32.5}, ("hidden_size", "an integer", "32.5")),
        ({"d_model": 32}, ("d_model", "known key")),
        ({"hiden_size": 32}, ("hiden_size", "Did you mean 'hidden_size'?")),
        ({"hidden_act": "gelu"}, ("hidden_act", "'silu'", "gelu")),
        (
            {"rope_scaling": {"type": "yarn", "factor": 0.5}},
            ("rope_scaling.factor", "greater than or equal to 1", "0.5"),
        ),
        ({"rope_scaling": {"type": "ntk"}}, ("rope_scaling.type", "'yarn'", "'llama3'", "'linear'", "ntk")),
        ({"rope_scaling": {"factor": 4}}, ("rope_scaling", "'type'")),
        ({"rope_theta": 0.0}, ("rope_theta", "greater than", "came 0")),
        ({"rms_norm_eps": -1.0}, ("rms_norm_eps", "greater than", "came -1")),
        ({"initializer_range": -0.1}, ("initializer_range", "greater than", "came -0.1")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_deepseek_shapes(fields: dict[str, Any], parts: tuple[str, ...]):
    message = refusal("deepseek_v3", **fields)
    assert message.startswith("my.toml: model") and "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "fields, parts",
    [
        ({"hidden_size": 30}, ("hidden_size=30", "num_attention_heads=4", "head_dim")),
        ({"hidden_size": 36}, ("head_dim=9 is odd", "8 or 10")),
        ({"head_dim": 7}, ("head_dim=7 is odd", "6 or 8")),
        ({"num_key_value_heads": 3}, ("num_attention_heads=4", "num_key_value_heads=3")),
        ({"num_key_value_heads": 8}, ("num_attention_heads=4", "num_key_value_heads=8")),
        ({"n_routed_experts": 8}, ("n_routed_experts", "known key")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_llama_shapes(fields: dict[str, Any], parts: tuple[str, ...]):
    message = refusal("llama", **fields)
    assert message.startswith("my.toml: model")
    for part in parts:
        assert part in message


def test_a_family_that_we_do_not_have():
    assert "'deepseek_v3', 'llama'" in refusal("mamba")


def test_possible_shapes_at_the_limits():
    deepseek(n_group=4, topk_group=4, num_experts_per_tok=8)
    deepseek(first_k_dense_replace=2)
    llama(hidden_size=30, head_dim=6, num_attention_heads=5, num_key_value_heads=1)
    assert llama(num_key_value_heads=None).n_kv_heads == 4
    assert llama().d_head == 6 and llama(head_dim=10).d_head == 10


@pytest.mark.parametrize(
    "config",
    [
        deepseek(q_lora_rank=8, rope_scaling=Yarn(factor=4), num_nextn_predict_layers=1, eos_token_id=2),
        deepseek(rope_theta=500.0),
        llama(rope_scaling=Yarn(mscale=0.0, mscale_all_dim=0.0)),
    ],
    ids=["deepseek-yarn-mtp", "deepseek-plain", "llama-yarn"],
)
def test_a_written_shape_is_read_back_and_transformers_reads_it_alike(config: DeepseekV3Config | LlamaConfig, tmp_path):
    write_config(config, tmp_path)
    again = read_config(tmp_path)
    resolved = {} if isinstance(config, DeepseekV3Config) else {"num_key_value_heads": 2, "head_dim": 6}
    assert again == config.model_copy(update=resolved)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    for field in config.model_dump():
        if field not in ("rope_scaling", "rope_theta", "head_dim", "num_key_value_heads", "num_nextn_predict_layers"):
            assert getattr(theirs, field) == getattr(config, field), field
    theirs.save_pretrained(tmp_path)
    assert read_config(tmp_path) == again


def read_raw(folder: Path, **changes: Any) -> DeepseekV3Config | LlamaConfig:
    """The shape in a published-style file with these changes."""
    raw = {
        "model_type": "deepseek_v3", "hidden_size": 64, "num_hidden_layers": 2, "n_routed_experts": 8, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 2,
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "ep_size": 1, "use_cache": True,
        "attention_bias": False, "num_key_value_heads": 4, "aux_loss_alpha": 0.001, "seq_aux": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw | changes))
    return read_config(folder)


@pytest.mark.parametrize(
    "change, parts",
    [
        (
            {"model_type": "mamba"},
            ("'mamba' is not supported", "deepseek_v3, llama, qwen2, qwen3"),
        ),
        ({"model_type": None}, ("None is not supported",)),
        ({"scoring_func": "softmax"}, ("scoring_func = 'softmax'", "'sigmoid'")),
        ({"topk_method": "greedy"}, ("topk_method = 'greedy'", "'noaux_tc'")),
        ({"attention_bias": True}, ("attention_bias = True", "False")),
        ({"moe_layer_freq": 2}, ("moe_layer_freq = 2", "1")),
        ({"rope_interleave": False}, ("rope_interleave = False",)),
        ({"quantization_config": {"quant_method": "fp8"}}, ("quantization_config", "fp8")),
        (
            {"rope_scaling": {"type": "longrope", "factor": 8}},
            ("rope type 'longrope'", "yarn, llama3, linear"),
        ),
        ({"qk_rope_head_dim": 15}, ("qk_rope_head_dim=15 is odd",)),
        ({"hidden_size": "64"}, ("hidden_size", "an integer", '"64"')),
        ({"num_nextn_predict_layers": 3}, ("num_nextn_predict_layers", "came 3")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_files_that_ask_for_other_mathematics_are_refused_by_name(change: dict[str, Any], parts, tmp_path):
    with pytest.raises(ConfigError) as error:
        read_raw(tmp_path, **change)
    for part in (str(tmp_path / "config.json"), *parts):
        assert part in str(error.value)


def test_published_spellings_are_understood(tmp_path: Path):
    assert read_raw(tmp_path).num_hidden_layers == 2
    assert read_raw(tmp_path, num_mtp_layers=1).num_nextn_predict_layers == 1
    assert read_raw(tmp_path, eos_token_id=[7, 8]).eos_token_id == 7
    old = read_raw(tmp_path, rope_theta=500.0, rope_scaling={"type": "yarn", "factor": 4, "mscale": 1.0})
    new = read_raw(tmp_path, rope_parameters={"rope_type": "yarn", "rope_theta": 500.0, "factor": 4, "mscale": 1.0})
    assert old == new and old.rope_theta == 500.0 and old.rope_scaling is not None and old.rope_scaling.factor == 4


@pytest.mark.parametrize("content", [None, "", "{", "[]", "3", b"\xff\xfe"], ids=repr)
def test_a_file_that_is_no_config_is_named(content: str | bytes | None, tmp_path: Path):
    if isinstance(content, bytes):
        (tmp_path / "config.json").write_bytes(content)
    elif content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json: "):
        read_config(tmp_path)
