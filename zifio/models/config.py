"""Model shapes: the two families the decoder can be, in the field names of Hugging Face's `config.json`.

`DeepseekV3Config` is the architecture of DeepSeek-V3 (arXiv:2412.19437, section 2): MLA, DeepSeekMoE, MTP.
`LlamaConfig` is the dense shape of our students: GQA, SwiGLU, RMSNorm. This module never imports torch.

The alphabet of shapes, valid in the whole repository (a tensor's suffix spells its axes):

    B sequences or rows     T positions computed now   S positions attended to   N tokens, flattened
    V vocabulary            L layers                   D model width             F feed-forward width
    H query heads           J key/value heads          K width per head          R rotary width per head
    C latent rank of MLA    Q latent rank of queries   E routed experts          A experts active per token
    P prompts (RL)          G rollouts per prompt      M sequences in a packed batch

Try it: `python -c "from zifio.models.config import LlamaConfig; print(LlamaConfig(hidden_size=64))"`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from zifio.config import Config, ConfigError, build


class Yarn(Config):
    """YaRN's stretching of RoPE (arXiv:2309.00071) with DeepSeek's attention temperature."""

    type: Literal["yarn"] = "yarn"
    """Only YaRN is implemented; `null` instead of a table means plain RoPE."""
    factor: Annotated[float, Field(ge=1)] = 40.0
    """How many times longer the context becomes."""
    original_max_position_embeddings: PositiveInt = 4096
    """Context length before stretching."""
    beta_fast: PositiveFloat = 32.0
    """Rotations over the old context above which a frequency is left alone."""
    beta_slow: PositiveFloat = 1.0
    """Rotations over the old context below which a frequency is fully interpolated."""
    mscale: NonNegativeFloat = 1.0
    """Numerator of the factor on cosine and sine; 0 stands for its absence, then the factor is 0.1 ln factor + 1."""
    mscale_all_dim: NonNegativeFloat = 1.0
    """Scales DeepSeek's temperature: its softmax scale is multiplied by (0.1 mscale_all_dim ln factor + 1)^2."""


class Lora(Config):
    """Adapters on frozen weights: LoRA (arXiv:2106.09685) and its kin; `models/lora.py` has the formulas."""

    rank: PositiveInt = 16
    """Rank of the change that every adapted weight can undergo."""
    alpha: PositiveFloat = 32.0
    """The change is multiplied by alpha / rank."""
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    """Ends of names of layers, such as q_proj; nothing means all, or beside routed experts those of the attention."""
    use_dora: bool = False
    """Learn the lengths of the weight's rows apart from their directions (DoRA, arXiv:2402.09353)."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, which suits high ranks (rsLoRA, arXiv:2312.03732)."""


class DecoderConfig(Config):
    """What both families share."""

    vocab_size: PositiveInt | None = None
    """Size of the vocabulary; left out in a recipe, it is the tokenizer's."""
    hidden_size: PositiveInt = 64
    """Width D of the residual stream."""
    num_hidden_layers: PositiveInt = 4
    """Number of decoder blocks L."""
    num_attention_heads: PositiveInt = 4
    """Query heads H."""
    intermediate_size: PositiveInt = 192
    """Width F of a dense feed-forward block."""
    max_position_embeddings: PositiveInt = 256
    """Longest sequence, in tokens."""
    rms_norm_eps: NonNegativeFloat = 1e-6
    """Added to the mean square inside RMSNorm."""
    rope_theta: float = Field(10000.0, gt=1)
    """Base of the rotary frequencies."""
    rope_scaling: Yarn | None = None
    """YaRN, or nothing."""
    initializer_range: NonNegativeFloat = 0.02
    """Standard deviation of the initial weights (DeepSeek-V3 uses 0.006 at width 7168)."""
    tie_word_embeddings: bool = False
    """Whether the output head is the input embedding."""
    hidden_act: Literal["silu"] = "silu"
    """Gate of SwiGLU."""
    bos_token_id: int | None = None
    """Written for other programs; the tokenizer decides."""
    eos_token_id: int | None = None
    """Written for other programs; the tokenizer decides."""
    pad_token_id: int | None = None
    """Written for other programs; the tokenizer decides."""


class DeepseekV3Config(DecoderConfig):
    """DeepSeek-V3: multi-head latent attention, fine-grained experts with a sigmoid gate, multi-token prediction."""

    model_type: Literal["deepseek_v3"] = "deepseek_v3"
    """Names the family."""
    q_lora_rank: PositiveInt | None = None
    """Rank Q of the compressed query; nothing means a full query projection (as in V2-Lite)."""
    kv_lora_rank: PositiveInt = 32
    """Rank C of the compressed keys and values: what the cache holds, with the rotary key."""
    qk_nope_head_dim: PositiveInt = 16
    """Query and key width per head without position."""
    qk_rope_head_dim: PositiveInt = 16
    """Rotary width R per head; the rotary key is shared by all heads."""
    v_head_dim: PositiveInt = 16
    """Value width per head."""
    moe_intermediate_size: PositiveInt = 64
    """Width F of one expert."""
    n_routed_experts: PositiveInt = 8
    """Routed experts E per layer."""
    n_shared_experts: PositiveInt = 1
    """Experts that see every token (one block of n_shared times the expert width)."""
    num_experts_per_tok: PositiveInt = 2
    """Routed experts A that see one token."""
    n_group: PositiveInt = 1
    """Groups of experts (nodes, in the paper)."""
    topk_group: PositiveInt = 1
    """Groups a token may reach."""
    norm_topk_prob: bool = True
    """Whether the chosen gate values are renormalised to sum to one."""
    routed_scaling_factor: float = 1.0
    """Multiplies the routed output after renormalisation."""
    first_k_dense_replace: int = Field(1, ge=0)
    """Leading layers with a dense feed-forward block instead of experts."""
    num_nextn_predict_layers: int = Field(0, ge=0, le=1)
    """MTP modules behind the main model (DeepSeek-V3 has one)."""

    @property
    def qk_head_dim(self) -> int:
        """Whole query and key width per head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @model_validator(mode="after")
    def _possible(self) -> DeepseekV3Config:
        _require_even("qk_rope_head_dim", self.qk_rope_head_dim)
        experts, groups = self.n_routed_experts, self.n_group
        if experts % groups:
            fits = [g for g in range(1, experts + 1) if experts % g == 0]
            raise ValueError(f"n_routed_experts={experts} is not divisible by n_group={groups}; n_group may be {fits}")
        if groups > 1 and experts // groups < 2:
            raise ValueError(f"n_group={groups} leaves {experts // groups} expert per group; routing needs at least 2")
        if self.topk_group > groups:
            raise ValueError(f"topk_group={self.topk_group} exceeds n_group={groups}; set it to at most {groups}")
        reachable = self.topk_group * experts // groups
        if self.num_experts_per_tok > reachable:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds the {reachable} experts that a token can "
                f"reach (topk_group={self.topk_group} of {groups} groups); lower it or raise topk_group"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace={self.first_k_dense_replace} exceeds num_hidden_layers="
                f"{self.num_hidden_layers}; set it to at most {self.num_hidden_layers}"
            )
        return self


class LlamaConfig(DecoderConfig):
    """Llama: grouped-query attention and SwiGLU, dense."""

    model_type: Literal["llama"] = "llama"
    """Names the family."""
    num_key_value_heads: PositiveInt | None = None
    """Key/value heads J; nothing means as many as query heads."""
    head_dim: PositiveInt | None = None
    """Width K per head; nothing means hidden_size / num_attention_heads."""

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads J, resolved."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def d_head(self) -> int:
        """Width K per head, resolved."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _possible(self) -> LlamaConfig:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads="
                f"{self.num_attention_heads}; change one or set head_dim"
            )
        _require_even("head_dim", self.d_head)
        if self.num_attention_heads % self.n_kv_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not divisible by num_key_value_heads="
                f"{self.n_kv_heads}; query heads share key/value heads in equal groups"
            )
        return self


ModelConfig = Annotated[DeepseekV3Config | LlamaConfig, Field(discriminator="model_type")]
"""Either family, told apart by `model_type`."""

FAMILIES: dict[str, type[DeepseekV3Config] | type[LlamaConfig]] = {
    "deepseek_v3": DeepseekV3Config,
    "llama": LlamaConfig,
}

# Values that other programs write and that change nothing here when they are as listed; anything else in them would
# change the mathematics, so it is refused by name.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, 0.0, None),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "moe_layer_freq": (1,),
    "rope_interleave": (True,),
    "quantization_config": (None,),
}
_NEUTRAL_YARN = {"attention_factor": None, "truncate": True, "partial_rotary_factor": 1.0}


def _require_even(key: str, width: int) -> None:
    if width % 2:
        raise ValueError(f"{key}={width} is odd; RoPE rotates pairs, so set it to {width - 1} or {width + 1}")


def read_config(folder: str | Path) -> DeepseekV3Config | LlamaConfig:
    """The model shape in `folder/config.json`, whoever wrote it.

    Raises ConfigError when the file is absent or unreadable, names a family we do not have, or asks for
    mathematics we do not implement.
    """
    path = Path(folder) / "config.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file. A model is a folder with config.json and model.safetensors; "
            "train one (make quickstart) or give the folder of a Hugging Face checkpoint."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}). Download or write the checkpoint again.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: wanted a JSON object, came {raw!r}. Download or write the checkpoint again.")
    family = FAMILIES.get(raw.get("model_type", ""))
    if family is None:
        raise ConfigError(
            f"{path}: model_type = {raw.get('model_type')!r} is not supported; supported: {', '.join(FAMILIES)}."
        )
    for key, neutral in _NEUTRAL.items():
        if key in raw and raw[key] not in neutral:
            raise ConfigError(f"{path}: {key} = {raw[key]!r} is not supported; wanted {neutral[0]!r}.")
    raw = _flat_rope(raw, path)
    if "num_mtp_layers" in raw:  # the newer name of the same field
        raw.setdefault("num_nextn_predict_layers", raw["num_mtp_layers"])
    known = {key: value for key, value in raw.items() if key in family.model_fields}
    if known.get("eos_token_id").__class__ is list:
        known["eos_token_id"] = known["eos_token_id"][0]
    return build(family, known, str(path))


def _flat_rope(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """`rope_parameters` of newer files, and `rope_scaling` with either spelling of its type, as our two fields."""
    rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    raw = {**raw, "rope_theta": rope.pop("rope_theta", raw.get("rope_theta", 10000.0)), "rope_scaling": None}
    if kind == "yarn":
        for key, neutral in _NEUTRAL_YARN.items():
            if rope.get(key) not in (None, neutral):
                raise ConfigError(f"{path}: rope {key} = {rope[key]!r} is not supported; leave it out.")
        absent = {"type": "yarn", "mscale": 0.0, "mscale_all_dim": 0.0}  # what a file leaves out is not our default
        absent |= {"original_max_position_embeddings": raw.get("max_position_embeddings", 4096)}
        given = {key: value for key, value in rope.items() if key in Yarn.model_fields and value is not None}
        raw["rope_scaling"] = absent | given
    elif kind != "default":
        raise ConfigError(f"{path}: rope type {kind!r} is not supported; supported: default, yarn.")
    return raw


def write_config(config: DeepseekV3Config | LlamaConfig, folder: str | Path) -> None:
    """Write `folder/config.json` so that transformers, vLLM and this package open the folder."""
    raw = config.model_dump(mode="json")
    if isinstance(config, DeepseekV3Config):
        raw |= {
            "architectures": ["DeepseekV3ForCausalLM"],
            "num_key_value_heads": config.num_attention_heads,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "moe_layer_freq": 1,
            "rope_interleave": True,
        }
    else:
        raw |= {"architectures": ["LlamaForCausalLM"], "mlp_bias": False}
        raw |= {"num_key_value_heads": config.n_kv_heads, "head_dim": config.d_head}
    raw |= {"attention_bias": False, "torch_dtype": "float32"}
    Path(folder, "config.json").write_text(json.dumps(raw, indent=2) + "\n")
