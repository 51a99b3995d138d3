"""Shapes of published models by name, so that they can be counted without their files.

A preset holds what decides shape, cost and context, as the model's own `config.json` has it; weights and tokenizers
come from the checkpoint. This module never imports torch.

Try it: `python -c "from zifio.models.presets import preset; print(preset('deepseek-v3'))"`
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from zifio.config import ConfigError, suggestion
from zifio.models.config import FAMILIES, AnyConfig

_MLA: dict[str, Any] = {
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "rope_theta": 10000.0,
}  # fmt: skip
_SMALL: dict[str, Any] = _MLA | {
    "hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16, "first_k_dense_replace": 1,
    "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
}  # fmt: skip
_V3: dict[str, Any] = _MLA | {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61,
    "num_attention_heads": 128, "intermediate_size": 18432, "q_lora_rank": 1536, "first_k_dense_replace": 3,
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
    "max_position_embeddings": 163840,
}  # fmt: skip
_QWEN: dict[str, Any] = {"model_type": "qwen2", "rope_theta": 1000000.0, "max_position_embeddings": 32768}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    # arXiv:2405.04434, section 3.1 and appendix B
    "deepseek-v2-lite": _SMALL | {
        "model_type": "deepseek_v2", "vocab_size": 102400, "intermediate_size": 10944,
        "max_position_embeddings": 163840,
    },
    "deepseek-v2": _MLA | {
        "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 5120, "num_hidden_layers": 60,
        "num_attention_heads": 128, "intermediate_size": 12288, "q_lora_rank": 1536, "first_k_dense_replace": 1,
        "moe_intermediate_size": 1536, "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6,
        "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0,
        "max_position_embeddings": 163840,
    },
    "deepseek-v3": _V3,  # arXiv:2412.19437, section 4.2
    "deepseek-r1": _V3,  # arXiv:2501.12948: other weights
    "moonlight-16b-a3b": _SMALL | {  # arXiv:2502.16982, section 3
        "model_type": "deepseek_v3", "vocab_size": 163840, "intermediate_size": 11264, "routed_scaling_factor": 2.446,
        "max_position_embeddings": 8192,
    },
    "qwen3-30b-a3b": {  # arXiv:2505.09388, table 2
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "rope_theta": 1000000.0,
        "max_position_embeddings": 40960,
    },
    "llama-3.1-405b": {  # arXiv:2407.21783, table 3
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 16384, "num_hidden_layers": 126,
        "num_attention_heads": 128, "num_key_value_heads": 8, "intermediate_size": 53248, "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
    },
    # arXiv:2412.15115, section 2
    "qwen2.5-32b": _QWEN | {
        "vocab_size": 152064, "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40,
        "num_key_value_heads": 8, "intermediate_size": 27648,
    },
    "qwen2.5-72b": _QWEN | {
        "vocab_size": 152064, "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "intermediate_size": 29568,
    },
})  # fmt: skip
"""The fields of each model's config, by the name under which it was published, in small letters."""


def preset(name: str) -> AnyConfig:
    """The shape of a published model. Raises ConfigError when there is none of that name."""
    found = PRESETS.get(name.lower())
    if found is None:
        hint = suggestion(name, PRESETS) or "Or give a model's folder, its config.json or its name at the hub."
        raise ConfigError(f"{name}: wanted a preset ({', '.join(PRESETS)}), came another name. {hint}")
    family = FAMILIES[found["model_type"]]
    return family(**found)
