"""Model families as data: one typed config per family, in the field names of Hugging Face's `config.json`.

Six families share one decoder; those whose layers mix tokens in several ways are in `models/hybrids.py`. Two kinds of
attention carry them:

    GroupedConfig   llama, qwen2, qwen3, qwen3_moe       grouped-query attention (arXiv:2305.13245)
    LatentConfig    deepseek_v2 (arXiv:2405.04434), deepseek_v3 (arXiv:2412.19437), which is R1 too: MLA, DeepSeekMoE

What blocks need to know stands in small properties (`d_key`, `has_qk_norm`, `is_sparse`, `moe`), so that no layer asks
for a family by name. Names of axes: `zifio/models/config.py`. This module never imports torch.

Try it: `python -c "from zifio.models.families import LlamaConfig; print(LlamaConfig(hidden_size=64))"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from zifio.config import Config
from zifio.models.mixers import IndexerShape, LinearShape, Mixer

# Rotary positions ------------------------------------------------------------------------------------------


class Yarn(Config):
    """YaRN's stretching of RoPE (arXiv:2309.00071) with DeepSeek's attention temperature."""

    type: Literal["yarn"] = "yarn"
    """Names the kind of stretching; `null` instead of a table means plain RoPE."""
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


class Llama3Rope(Config):
    """Llama 3.1's stretching (arXiv:2407.21783 gives the aim, the released code the rule): slow pairs are slowed."""

    type: Literal["llama3"] = "llama3"
    """Names the kind of stretching."""
    factor: Annotated[float, Field(ge=1)] = 8.0
    """How many times slower the slow pairs turn."""
    low_freq_factor: PositiveFloat = 1.0
    """Rotations over the old context below which a frequency is slowed by the whole factor."""
    high_freq_factor: PositiveFloat = 4.0
    """Rotations over the old context above which a frequency is left alone."""
    original_max_position_embeddings: PositiveInt = 8192
    """Context length before stretching."""

    @model_validator(mode="after")
    def _ordered(self) -> Llama3Rope:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor} is not above low_freq_factor={self.low_freq_factor}"
            )
        return self


class LinearRope(Config):
    """Position interpolation (arXiv:2306.15595): every frequency divided by `factor`."""

    type: Literal["linear"] = "linear"
    """Names the kind of stretching."""
    factor: Annotated[float, Field(ge=1)] = 4.0
    """How many times longer the context becomes."""


RopeScaling = Annotated[Yarn | Llama3Rope | LinearRope, Field(discriminator="type")]
"""How RoPE is stretched, told apart by `type`."""


# What all families share -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class MoeShape:
    """What a layer with experts reads of its family."""

    n_experts: int
    """Routed experts E."""
    n_active: int
    """Routed experts A that see one token."""
    d_expert: int
    """Width F of one expert."""
    n_shared: int
    """Experts that see every token, as one block of n_shared times the width; 0 for none."""
    score: Literal["sigmoid", "softmax"]
    """What turns a router's logits into affinities."""
    has_bias: bool
    """Whether a bias takes part in the choice (loss-free balance, arXiv:2408.15664)."""
    renormalise: bool
    """Whether the chosen affinities are divided by their sum."""
    scale: float = 1.0
    """Multiplies the gate values at last."""
    n_groups: int = 1
    """Groups of experts (nodes, in the paper)."""
    n_kept_groups: int = 1
    """Groups that a token may reach."""
    group_score: Literal["best", "best-two"] = "best-two"
    """A group's rank: its best affinity (V2) or the sum of its best two (V3)."""
    d_shared: int | None = None
    """Width of what sees every token, where it is not n_shared times an expert's."""
    has_shared_gate: bool = False
    """Whether what sees every token is multiplied by a sigmoid gate of its own (Qwen3-Next)."""

    @property
    def shared_width(self) -> int:
        """Width of what sees every token."""
        return self.n_shared * self.d_expert if self.d_shared is None else self.d_shared


class DecoderConfig(Config):
    """What all families share."""

    architecture: ClassVar[str]
    """What `architectures` of config.json says."""
    fixed: ClassVar[dict[str, Any]] = {}
    """Keys of config.json that have one value in this family: written so, and refused by name when they differ."""
    absent: ClassVar[dict[str, Any]] = {}
    """What transformers takes for a key that a file leaves out, where no tensor's shape would reveal a mistake."""
    aliases: ClassVar[dict[str, str]] = {}
    """Other names under which files have a field."""
    mixers: ClassVar[tuple[Mixer, ...]] = ("full_attention",)
    """What `layer_types` of config.json may say in this family."""
    renamed: ClassVar[dict[str, str]] = {}
    """Parts of our weights' names that are others on disk."""
    left_out: ClassVar[tuple[str, ...]] = ()
    """Beginnings of names on disk that are not read."""
    has_centred_norms: ClassVar[bool] = False
    """Whether RMSNorm multiplies by 1 + weight."""

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
    rope_scaling: RopeScaling | None = None
    """How RoPE is stretched, or nothing."""
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
    num_labels: PositiveInt | None = Field(None, exclude=True)
    """Instead of the output head one that scores every token: 2 classes for a process reward model, 1 number for a
    reward model; stages of these kinds set it."""

    @property
    def head(self) -> str:
        """What stands behind the last layer, by the end of the architecture's name at Hugging Face."""
        return {None: "ForCausalLM", 1: "ForSequenceClassification"}.get(self.num_labels, "ForTokenClassification")

    @property
    def moe(self) -> MoeShape | None:
        """Shape of the layers with experts; nothing in a dense family."""
        return None

    @property
    def n_mtp(self) -> int:
        """Multi-token prediction modules behind the main model."""
        return 0

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer has experts instead of a dense feed-forward block."""
        return False

    def mixer(self, layer: int) -> Mixer:
        """How this layer mixes tokens; the MTP module's is the one behind the last."""
        return "full_attention"

    @property
    def window(self) -> int:
        """Tokens that a layer of sliding attention sees, itself among them."""
        return 0

    @property
    def linear(self) -> LinearShape | None:
        """Shape of the layers of linear attention, where there are some."""
        return None

    @property
    def indexer(self) -> IndexerShape | None:
        """Shape of the indexers of sparse attention, where there are some."""
        return None


# Latent attention: DeepSeek --------------------------------------------------------------------------------


class LatentConfig(DecoderConfig):
    """What the DeepSeek families share: multi-head latent attention and fine-grained experts."""

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
    routed_scaling_factor: float = 1.0
    """Multiplies the routed output after renormalisation."""
    first_k_dense_replace: NonNegativeInt = 1
    """Leading layers with a dense feed-forward block instead of experts."""

    @property
    def qk_head_dim(self) -> int:
        """Whole query and key width per head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def d_rotary(self) -> int:
        """Rotary width R per head."""
        return self.qk_rope_head_dim

    @property
    def d_key(self) -> int:
        """Width of a query and a key per head, as attention multiplies them."""
        return self.qk_head_dim

    @property
    def d_value(self) -> int:
        """Width of a value per head."""
        return self.v_head_dim

    @property
    def resolved(self) -> dict[str, int]:
        """What other programs want to read in config.json besides our fields."""
        return {"num_key_value_heads": self.num_attention_heads}

    def is_sparse(self, layer: int) -> bool:
        """All but the leading dense layers; the MTP module's layer is the one behind the last."""
        return layer >= self.first_k_dense_replace

    @model_validator(mode="after")
    def _possible(self) -> LatentConfig:
        require_even("qk_rope_head_dim", self.qk_rope_head_dim)
        assert self.moe is not None
        experts, groups, kept = self.n_routed_experts, self.moe.n_groups, self.moe.n_kept_groups
        if experts % groups:
            fits = [g for g in range(1, experts + 1) if experts % g == 0]
            raise ValueError(f"n_routed_experts={experts} is not divisible by n_group={groups}; n_group may be {fits}")
        if groups > 1 and experts // groups < 2 and self.moe.group_score == "best-two":
            raise ValueError(f"n_group={groups} leaves {experts // groups} expert per group; routing needs at least 2")
        if kept > groups:
            raise ValueError(f"topk_group={kept} exceeds n_group={groups}; set it to at most {groups}")
        reachable = kept * experts // groups
        if self.num_experts_per_tok > reachable:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds the {reachable} experts that a token can "
                f"reach (topk_group={kept} of {groups} groups); lower it or raise topk_group"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace={self.first_k_dense_replace} exceeds num_hidden_layers="
                f"{self.num_hidden_layers}; set it to at most {self.num_hidden_layers}"
            )
        return self


class SigmoidGatedConfig(LatentConfig):
    """What DeepSeek's families have since V3: experts behind a sigmoid gate whose selection bias balances them, and
    multi-token prediction."""

    fixed = {
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "rope_interleave": True,
        "attention_bias": False,
    }
    absent = {
        "max_position_embeddings": 4096,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "num_experts_per_tok": 8,
    }

    aliases = {"num_mtp_layers": "num_nextn_predict_layers", "num_local_experts": "n_routed_experts"}

    norm_topk_prob: bool = True
    """Whether the chosen gate values are renormalised to sum to one."""
    num_nextn_predict_layers: int = Field(0, ge=0, le=1)
    """MTP modules behind the main model (DeepSeek-V3 has one)."""

    @property
    def n_mtp(self) -> int:
        """Multi-token prediction modules behind the main model."""
        return self.num_nextn_predict_layers

    @property
    def moe(self) -> MoeShape:
        """Equations 12-16 of DeepSeek-V3."""
        return MoeShape(
            n_experts=self.n_routed_experts,
            n_active=self.num_experts_per_tok,
            d_expert=self.moe_intermediate_size,
            n_shared=self.n_shared_experts,
            score="sigmoid",
            has_bias=True,
            renormalise=self.norm_topk_prob,
            scale=self.routed_scaling_factor,
            n_groups=self.n_group,
            n_kept_groups=self.topk_group,
        )


class DeepseekV3Config(SigmoidGatedConfig):
    """DeepSeek-V3 and R1."""

    architecture = "DeepseekV3ForCausalLM"

    model_type: Literal["deepseek_v3"] = "deepseek_v3"
    """Names the family."""


class DeepseekV2Config(LatentConfig):
    """DeepSeek-V2 and V2-Lite: experts behind a softmax gate without selection bias."""

    architecture = "DeepseekV2ForCausalLM"
    fixed = {"scoring_func": "softmax", "moe_layer_freq": 1, "attention_bias": False, "mlp_bias": False}
    absent = {"max_position_embeddings": 2048}
    aliases = {"num_experts": "n_routed_experts"}

    model_type: Literal["deepseek_v2"] = "deepseek_v2"
    """Names the family."""
    topk_method: Literal["greedy", "group_limited_greedy"] = "greedy"
    """`group_limited_greedy` keeps the `topk_group` groups with the best experts; `greedy` ignores groups (V2-Lite)."""
    norm_topk_prob: bool = False
    """Read and written, and without effect, as in transformers: V2's gate values are never renormalised."""

    @property
    def moe(self) -> MoeShape:
        """Section 2.2 of DeepSeek-V2; a group ranks by its best expert, where V3 adds the best two."""
        grouped = self.topk_method == "group_limited_greedy"
        return MoeShape(
            n_experts=self.n_routed_experts,
            n_active=self.num_experts_per_tok,
            d_expert=self.moe_intermediate_size,
            n_shared=self.n_shared_experts,
            score="softmax",
            has_bias=False,
            renormalise=False,
            scale=self.routed_scaling_factor,
            n_groups=self.n_group if grouped else 1,
            n_kept_groups=self.topk_group if grouped else 1,
            group_score="best",
        )


# Grouped-query attention: Llama and Qwen -------------------------------------------------------------------


class GroupedConfig(DecoderConfig):
    """What the families with grouped-query attention share."""

    has_qk_norm: ClassVar[bool] = False
    """Whether queries and keys pass an RMSNorm per head before they are rotated."""

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

    @property
    def d_rotary(self) -> int:
        """Rotary width R per head: all of it."""
        return self.d_head

    @property
    def has_output_gate(self) -> bool:
        """Whether attention's output is multiplied by a sigmoid gate, which the query's projection makes."""
        return False

    @property
    def d_key(self) -> int:
        """Width of a query and a key per head, as attention multiplies them."""
        return self.d_head

    @property
    def d_value(self) -> int:
        """Width of a value per head."""
        return self.d_head

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the projections to queries, keys and values add a bias."""
        return False

    @property
    def has_o_bias(self) -> bool:
        """Whether the projection of attention's output adds a bias."""
        return False

    @property
    def resolved(self) -> dict[str, int]:
        """What other programs want to read in config.json besides our fields."""
        return {"num_key_value_heads": self.n_kv_heads, "head_dim": self.d_head}

    @model_validator(mode="after")
    def _possible(self) -> GroupedConfig:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads="
                f"{self.num_attention_heads}; change one or set head_dim"
            )
        require_even("head_dim", self.d_head)
        if self.num_attention_heads % self.n_kv_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not divisible by num_key_value_heads="
                f"{self.n_kv_heads}; query heads share key/value heads in equal groups"
            )
        return self


class MaybeBiasedConfig(GroupedConfig):
    """Grouped-query attention whose four projections all have a bias, or none has."""

    attention_bias: bool = False
    """Biases on the projections to queries, keys, values and output."""

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the projections to queries, keys and values add a bias."""
        return self.attention_bias

    @property
    def has_o_bias(self) -> bool:
        """Whether the projection of attention's output adds a bias."""
        return self.attention_bias


class LlamaConfig(MaybeBiasedConfig):
    """Llama (arXiv:2407.21783), and SmolLM2: grouped-query attention and SwiGLU, dense."""

    architecture = "LlamaForCausalLM"
    fixed = {"mlp_bias": False}
    absent = {"max_position_embeddings": 2048}

    model_type: Literal["llama"] = "llama"
    """Names the family."""


class Qwen2Config(GroupedConfig):
    """Qwen2 and Qwen2.5 (arXiv:2412.15115), dense; queries, keys and values have biases, the output has none."""

    architecture = "Qwen2ForCausalLM"
    fixed = {"use_sliding_window": False}
    absent = {"max_position_embeddings": 32768}

    model_type: Literal["qwen2"] = "qwen2"
    """Names the family."""

    @property
    def has_qkv_bias(self) -> bool:
        """Always."""
        return True


class Qwen3Config(MaybeBiasedConfig):
    """Qwen3 (arXiv:2505.09388), dense; queries and keys are normed per head."""

    architecture = "Qwen3ForCausalLM"
    fixed = {"use_sliding_window": False}
    absent = {"max_position_embeddings": 32768, "head_dim": 128}
    has_qk_norm = True

    model_type: Literal["qwen3"] = "qwen3"
    """Names the family."""


class SoftmaxGatedConfig(MaybeBiasedConfig):
    """What Qwen's families with experts share: Qwen3's attention, experts behind a softmax gate, none shared."""

    aliases = {"num_local_experts": "num_experts"}
    has_qk_norm = True

    num_experts: PositiveInt = 8
    """Routed experts E per layer."""
    num_experts_per_tok: PositiveInt = 2
    """Routed experts A that see one token."""
    moe_intermediate_size: PositiveInt = 64
    """Width F of one expert."""
    norm_topk_prob: bool = True
    """Whether the chosen gate values are renormalised to sum to one."""
    decoder_sparse_step: PositiveInt = 1
    """Every so many layers has experts: those whose number, counted from 1, it divides."""
    mlp_only_layers: list[NonNegativeInt] = []
    """Layers, counted from 0, that are dense whatever the step says."""

    @property
    def moe(self) -> MoeShape:
        """Qwen3's technical report, section 2: no shared experts, no groups."""
        return MoeShape(
            n_experts=self.num_experts,
            n_active=self.num_experts_per_tok,
            d_expert=self.moe_intermediate_size,
            n_shared=0,
            score="softmax",
            has_bias=False,
            renormalise=self.norm_topk_prob,
        )

    def is_sparse(self, layer: int) -> bool:
        """By step, but for the layers that are named dense."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    @model_validator(mode="after")
    def _enough_experts(self) -> SoftmaxGatedConfig:
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds num_experts={self.num_experts}; lower it"
            )
        return self


class Qwen3MoeConfig(SoftmaxGatedConfig):
    """Qwen3-MoE (arXiv:2505.09388)."""

    architecture = "Qwen3MoeForCausalLM"
    fixed = {"use_sliding_window": False}
    absent = {"max_position_embeddings": 32768, "num_experts_per_tok": 8, "norm_topk_prob": False}

    model_type: Literal["qwen3_moe"] = "qwen3_moe"
    """Names the family."""


def require_even(key: str, width: int) -> None:
    """Raise ValueError for a width that cannot be rotated."""
    if width % 2:
        raise ValueError(f"{key}={width} is odd; RoPE rotates pairs, so set it to {width - 1} or {width + 1}")
