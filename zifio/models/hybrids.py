"""Families whose layers mix tokens in other ways than by full attention, as data; see `models/mixers.py`.

    qwen3_next      gated DeltaNet, and every fourth layer gated attention; experts (transformers' Qwen3-Next)
    deepseek_v32    DeepSeek-V3 whose attention reads what an indexer picks (arXiv:2512.02556)
    zifio_hybrid    our own: Qwen3's dense block with any of the four mixers, layer by layer

The first two open in transformers; the third has no counterpart, for claims about mixers at equal size. This module
never imports torch.

Try it: `python -c "from zifio.models.hybrids import HybridConfig; print(HybridConfig(num_hidden_layers=8).layers)"`
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from zifio.models.families import (
    DecoderConfig,
    MaybeBiasedConfig,
    MoeShape,
    SigmoidGatedConfig,
    SoftmaxGatedConfig,
    require_even,
)
from zifio.models.mixers import IndexerShape, LinearShape, Mixer, repeated

WIDEST_CONVOLUTION = 16
"""Tokens that a short convolution may see."""


class LayeredConfig(DecoderConfig):
    """What families share whose layers are of several kinds, among them linear attention."""

    mixers = ("full_attention", "linear_attention")

    layer_types: list[Mixer] | None = None
    """How each layer mixes tokens; nothing means three of linear attention for one of full attention."""
    linear_num_key_heads: PositiveInt = 2
    """Heads J of queries and keys in linear attention."""
    linear_num_value_heads: PositiveInt = 4
    """Heads H of values, each with a memory of K times X numbers; they share queries and keys in equal groups."""
    linear_key_head_dim: PositiveInt = 16
    """Width K of a query and a key."""
    linear_value_head_dim: PositiveInt = 16
    """Width X of a value."""
    linear_conv_kernel_dim: NonNegativeInt = Field(4, le=WIDEST_CONVOLUTION)
    """Tokens that the short convolution before the memory sees; 0 leaves it out."""

    @property
    def layers(self) -> list[Mixer]:
        """How each layer mixes tokens, resolved."""
        return repeated(self.num_hidden_layers) if self.layer_types is None else self.layer_types

    def mixer(self, layer: int) -> Mixer:
        """By layer."""
        return self.layers[layer]

    @property
    def linear(self) -> LinearShape:
        """Shape of the layers of linear attention."""
        return LinearShape(
            n_key_heads=self.linear_num_key_heads,
            n_heads=self.linear_num_value_heads,
            d_key=self.linear_key_head_dim,
            d_value=self.linear_value_head_dim,
            d_conv=self.linear_conv_kernel_dim,
        )

    @model_validator(mode="after")
    def _layered(self) -> LayeredConfig:
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types)} layers, num_hidden_layers={self.num_hidden_layers}; "
                "name each layer once, or leave layer_types out"
            )
        if others := [kind for kind in self.layers if kind not in self.mixers]:
            raise ValueError(f"layer_types has {others[0]!r}; in this family a layer is one of {list(self.mixers)}")
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise ValueError(
                f"linear_num_value_heads={self.linear_num_value_heads} is not divisible by linear_num_key_heads="
                f"{self.linear_num_key_heads}; heads of values share queries and keys in equal groups"
            )
        return self


class Qwen3NextConfig(LayeredConfig, SoftmaxGatedConfig):
    """Qwen3-Next: three layers of gated DeltaNet for one of gated attention, a shared expert behind a gate."""

    architecture = "Qwen3NextForCausalLM"
    absent = {
        "max_position_embeddings": 32768, "num_experts_per_tok": 10, "head_dim": 256, "linear_conv_kernel_dim": 4,
    }  # fmt: skip
    renamed = {".mlp.shared_experts.": ".mlp.shared_expert."}
    left_out = ("mtp.",)
    has_centred_norms = True

    model_type: Literal["qwen3_next"] = "qwen3_next"
    """Names the family."""
    partial_rotary_factor: float = Field(0.25, gt=0, le=1)
    """Share of a head's width that is rotated."""
    shared_expert_intermediate_size: PositiveInt = 64
    """Width of the expert that sees every token."""

    @property
    def d_rotary(self) -> int:
        """Rotary width R per head."""
        return int(self.d_head * self.partial_rotary_factor)

    @property
    def has_output_gate(self) -> bool:
        """Always."""
        return True

    @property
    def moe(self) -> MoeShape:
        """One shared expert behind a gate beside Qwen3's."""
        d_shared = self.shared_expert_intermediate_size
        return replace(super().moe, n_shared=1, d_shared=d_shared, has_shared_gate=True)

    @property
    def resolved(self) -> dict[str, Any]:
        """What other programs want to read in config.json besides our fields."""
        return super().resolved | {"layer_types": self.layers}

    @model_validator(mode="after")
    def _rotates_pairs(self) -> Qwen3NextConfig:
        require_even("head_dim * partial_rotary_factor", self.d_rotary)
        return self


class HybridConfig(LayeredConfig, MaybeBiasedConfig):
    """Our own: Qwen3's dense block in which every layer may mix tokens in its own way."""

    architecture = "ZifioHybridForCausalLM"
    mixers = ("full_attention", "linear_attention", "sliding_attention", "indexed_attention")
    has_qk_norm = True

    model_type: Literal["zifio_hybrid"] = "zifio_hybrid"
    """Names the family."""
    linear_allow_neg_eigval: bool = False
    """Corrections of a strength up to 2 instead of 1, so that a memory can change sign, as parity needs."""
    sliding_window: PositiveInt = 128
    """Tokens that a layer of sliding attention sees, itself among them."""
    index_n_heads: PositiveInt = 4
    """Heads of the indexer of sparse attention."""
    index_head_dim: PositiveInt = 16
    """Width of the indexer's queries and keys; the width of attention's heads at least, which is rotated."""
    index_topk: PositiveInt = 64
    """Tokens that sparse attention keeps, at most."""

    @property
    def window(self) -> int:
        """Tokens that a layer of sliding attention sees."""
        return self.sliding_window

    @property
    def linear(self) -> LinearShape:
        """Shape of the layers of linear attention."""
        return replace(super().linear, strongest=2.0 if self.linear_allow_neg_eigval else 1.0)

    @property
    def indexer(self) -> IndexerShape:
        """Shape of the indexers, whose queries are made from the layer's input."""
        return IndexerShape(self.index_n_heads, self.index_head_dim, self.d_head, self.hidden_size, self.index_topk)

    @property
    def resolved(self) -> dict[str, Any]:
        """What is written in config.json besides our fields."""
        return super().resolved | {"layer_types": self.layers}

    @model_validator(mode="after")
    def _rotates(self) -> HybridConfig:
        if "indexed_attention" in self.layers and self.index_head_dim < self.d_head:
            raise ValueError(
                f"index_head_dim={self.index_head_dim} is less than the {self.d_head} of attention's heads, which are "
                f"rotated; raise it to {self.d_head} at least"
            )
        return self


class DeepseekV32Config(SigmoidGatedConfig):
    """DeepSeek-V3.2: V3 with sparse attention in every layer, the MTP module's too."""

    architecture = "DeepseekV32ForCausalLM"
    mixers = ("indexed_attention",)

    model_type: Literal["deepseek_v32"] = "deepseek_v32"
    """Names the family."""
    index_n_heads: PositiveInt = 4
    """Heads of the indexer."""
    index_head_dim: PositiveInt = 32
    """Width of the indexer's queries and keys, of which qk_rope_head_dim are rotated."""
    index_topk: PositiveInt = 64
    """Tokens that a query attends to, at most."""

    def mixer(self, layer: int) -> Mixer:
        """The same in every layer."""
        return "indexed_attention"

    @property
    def indexer(self) -> IndexerShape:
        """Shape of the indexers, whose queries are made from the query latent."""
        rank = self.q_lora_rank or self.hidden_size
        return IndexerShape(self.index_n_heads, self.index_head_dim, self.qk_rope_head_dim, rank, self.index_topk)

    @model_validator(mode="after")
    def _indexes(self) -> DeepseekV32Config:
        if self.q_lora_rank is None:
            raise ValueError("q_lora_rank is missing; the indexer's queries are made from the query latent")
        if self.index_head_dim < self.qk_rope_head_dim:
            raise ValueError(
                f"index_head_dim={self.index_head_dim} is less than qk_rope_head_dim={self.qk_rope_head_dim}, which is "
                "rotated; raise it"
            )
        return self
