"""The shape of Janus (arXiv:2410.13848, arXiv:2501.17811): a language model that reads pictures and draws them.

    text_config    the decoder, of any family of `models/families.py`
    vision_config  what it sees pictures with: a vision transformer as SigLIP's (arXiv:2303.15343)
    vq_config      what it draws with: LlamaGen's tokenizer of pictures (arXiv:2406.06525)

Names and defaults of `config.json` are those of transformers' `JanusForConditionalGeneration`. This module never
imports torch.

Try it: `python -c "from zifio.models.janus_config import JANUS_PRO; print(JANUS_PRO['1B'])"`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from zifio.config import Config, ConfigError, build
from zifio.models.config import ModelConfig, parsed, read_json, read_json_of, written
from zifio.models.families import LlamaConfig

ARCHITECTURE = "JanusForConditionalGeneration"


class VisionConfig(Config):
    """A vision transformer over patches, all of which are handed on, and the adaptor behind it."""

    fixed: ClassVar[dict[str, Any]] = {
        "num_channels": 3, "hidden_act": "gelu", "attention_bias": True, "use_qk_norm": False,
        "attention_dropout": 0.0, "hidden_dropout_rate": 0.0, "projection_dropout": 0.0,
    }  # fmt: skip

    model_type: Literal["janus_vision_model"] = "janus_vision_model"
    """Names the part."""
    hidden_size: PositiveInt = 1024
    """Width of the encoder."""
    num_hidden_layers: PositiveInt = 24
    """Its layers."""
    num_attention_heads: PositiveInt = 16
    """Its heads."""
    mlp_ratio: PositiveFloat = 4.0
    """Width of its feed-forward blocks as a multiple of hidden_size."""
    image_size: PositiveInt = 384
    """Side of a picture, in pixels."""
    patch_size: PositiveInt = 16
    """Side of a patch, in pixels."""
    num_image_tokens: PositiveInt = 576
    """Patches of a picture, and codes of a drawing: as many tokens either takes."""
    projection_dim: PositiveInt = 2048
    """Width of the adaptor's output: the decoder's."""
    depth: PositiveInt = 2
    """Linear layers of the adaptor, with GELU between them."""
    layer_norm_eps: NonNegativeFloat = 1e-6
    """Added to the variance inside LayerNorm."""
    initializer_range: NonNegativeFloat = 0.02
    """Written for other programs."""

    @model_validator(mode="after")
    def _possible(self) -> VisionConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}"
            )
        if (self.image_size // self.patch_size) ** 2 != self.num_image_tokens:
            raise ValueError(
                f"num_image_tokens={self.num_image_tokens} is not the number of patches of {self.patch_size} pixels in "
                f"a picture of {self.image_size}: {(self.image_size // self.patch_size) ** 2}"
            )
        return self


class CaptionerConfig(Config):
    """An encoder of pictures together with what it learns to read with (`models/captioner.py`)."""

    model_type: Literal["parallel_captioner"] = "parallel_captioner"
    """Names the model."""
    vision_config: VisionConfig
    """The encoder."""
    vocab_size: PositiveInt
    """Tokens that a word may be."""
    num_words: PositiveInt
    """Places of the longest caption, its end among them."""
    initializer_range: NonNegativeFloat = 0.05
    """Deviation of the random weights."""


class VqConfig(Config):
    """The tokenizer of pictures, and the adaptor and the head that the decoder draws with."""

    fixed: ClassVar[dict[str, Any]] = {
        "in_channels": 3, "out_channels": 3, "double_latent": False, "dropout": 0.0, "hidden_act": "gelu",
    }  # fmt: skip

    model_type: Literal["janus_vqgan"] = "janus_vqgan"
    """Names the part."""
    embed_dim: PositiveInt = 8
    """Width of a code."""
    num_embeddings: PositiveInt = 16384
    """Codes Z of the codebook."""
    latent_channels: PositiveInt = 256
    """Channels between the encoder and the codebook."""
    base_channels: PositiveInt = 128
    """Channels at full resolution; a multiple of 32, since they are normed in 32 groups."""
    channel_multiplier: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 1, 2, 2, 4]
    """Channels of each resolution as a multiple of base_channels; each has half the side of the one before."""
    num_res_blocks: PositiveInt = 2
    """Residual blocks of each resolution."""
    num_patches: PositiveInt = 24
    """Side of the grid of codes."""
    beta: NonNegativeFloat = 0.25
    """Weight of the commitment loss (VQ-VAE, arXiv:1711.00937)."""
    projection_dim: PositiveInt = 2048
    """Width of the adaptor's output, the decoder's, and of the head's hidden layer."""
    num_hidden_layers: PositiveInt = 2
    """Linear layers of the adaptor, with GELU between them."""
    image_token_embed_dim: PositiveInt = 2048
    """Width of the head's input: the decoder's."""
    initializer_range: NonNegativeFloat = 0.02
    """Written for other programs."""

    @property
    def image_size(self) -> int:
        """Side of a drawing, in pixels."""
        return self.num_patches * 2 ** (len(self.channel_multiplier) - 1)

    @property
    def n_tokens(self) -> int:
        """Codes of a drawing."""
        return self.num_patches**2

    @model_validator(mode="after")
    def _possible(self) -> VqConfig:
        if self.base_channels % 32:
            raise ValueError(f"base_channels={self.base_channels} is not a multiple of 32, the groups of its norms")
        return self


class JanusConfig(Config):
    """All three."""

    model_type: Literal["janus"] = "janus"
    """Names the family."""
    text_config: ModelConfig
    """The decoder."""
    vision_config: VisionConfig
    """What pictures are seen with."""
    vq_config: VqConfig
    """What drawings are made of."""
    image_token_id: NonNegativeInt = 100581
    """The token that stands for each patch of a picture in text."""

    @model_validator(mode="after")
    def _fits(self) -> JanusConfig:
        width, vision, vq = self.text_config.hidden_size, self.vision_config, self.vq_config
        widths = {
            "vision_config.projection_dim": vision.projection_dim,
            "vq_config.projection_dim": vq.projection_dim,
            "vq_config.image_token_embed_dim": vq.image_token_embed_dim,
        }
        for key, value in widths.items():
            if value != width:
                raise ValueError(f"{key}={value} is not text_config.hidden_size={width}; set it to that")
        if vq.n_tokens != vision.num_image_tokens:
            raise ValueError(
                f"vq_config.num_patches={vq.num_patches} makes {vq.n_tokens} codes of a drawing, and "
                f"vision_config.num_image_tokens is {vision.num_image_tokens}; they must be equal"
            )
        if self.text_config.n_mtp:
            raise ValueError("text_config: wanted no multi-token prediction module, came one; set it to 0")
        return self


def _pro(width: int, layers: int, heads: int, d_hidden: int) -> JanusConfig:
    """Janus-Pro (arXiv:2501.17811, table 1; DeepSeek-LLM's decoder, whose head is its own)."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"intermediate_size": d_hidden, "vocab_size": 102400, "max_position_embeddings": 16384}
    text = build(LlamaConfig, sizes, "Janus-Pro")
    vq = VqConfig(projection_dim=width, image_token_embed_dim=width)
    return JanusConfig(text_config=text, vision_config=VisionConfig(projection_dim=width), vq_config=vq)


JANUS_PRO: dict[str, JanusConfig] = {"1B": _pro(2048, 24, 16, 5632), "7B": _pro(4096, 30, 32, 11008)}
"""The published shapes by their size."""


def is_janus(folder: str | Path) -> bool:
    """Whether the model in this folder reads and draws. Raises ConfigError when there is none."""
    return read_json(folder)[0].get("model_type") == "janus"


def read_janus_config(folder: str | Path) -> JanusConfig:
    """The shape in `folder/config.json`. Raises ConfigError as `models.config.read_config` does."""
    raw, path = read_json(folder)
    if raw.get("model_type") != "janus":
        raise ConfigError(f"{path}: model_type: wanted 'janus', came {raw.get('model_type')!r}. Name another folder.")
    # Where a file does not say, transformers ties.
    text = {**(raw.get("text_config") or {}), "tie_word_embeddings": raw.get("tie_word_embeddings", True)}
    text.setdefault("model_type", "llama")
    text["architectures"] = None
    vision = _part(VisionConfig, raw, path)
    grid = vision.image_size // vision.patch_size  # a file's own number is ignored there, as in transformers
    vq = _part(VqConfig, {**raw, "vq_config": {**(raw.get("vq_config") or {}), "num_patches": grid}}, path)
    given = {"text_config": parsed(text, path).model_dump(), "vision_config": vision.model_dump()}
    given |= {"vq_config": vq.model_dump()}
    given |= {key: raw[key] for key in ("image_token_id",) if raw.get(key) is not None}
    return build(JanusConfig, given, str(path))


def _part(kind: type[VisionConfig] | type[VqConfig], raw: dict[str, Any], path: Path) -> Any:
    """One part of a file; keys that we do not know are other programs' own."""
    name = "vision_config" if kind is VisionConfig else "vq_config"
    part = raw.get(name) or {}
    for key, wanted in kind.fixed.items():
        if part.get(key, wanted) != wanted:
            raise ConfigError(f"{path}: {name}.{key} = {part[key]!r} is not supported; wanted {wanted!r}.")
    known = {key: value for key, value in part.items() if key in kind.model_fields and value is not None}
    for key in ("image_size", "patch_size"):
        if isinstance(known.get(key), list) and len(set(known[key])) == 1:  # [384, 384]
            known[key] = known[key][0]
    return build(kind, known, f"{path}: {name}")


def read_vq_config(folder: str | Path) -> VqConfig:
    """The shape of a tokenizer of pictures that stands by itself. Raises ConfigError where there is none."""
    raw, path = read_json_of("janus_vqgan", folder, "a tokenizer of pictures", "vq")
    return _part(VqConfig, {"vq_config": raw}, path)


def write_vq_config(config: VqConfig, folder: str | Path, dtype: str = "float32") -> None:
    """Write `folder/config.json` of a tokenizer of pictures by itself, as transformers' JanusVQVAE has it."""
    raw = {"architectures": ["JanusVQVAE"], **config.model_dump(), **VqConfig.fixed, "torch_dtype": dtype}
    Path(folder, "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def read_captioner_config(folder: str | Path) -> CaptionerConfig:
    """The shape of what a `vision` stage wrote. Raises ConfigError where there is none."""
    raw, path = read_json_of("parallel_captioner", folder, "an encoder that has learnt to read pictures", "vision")
    return build(CaptionerConfig, raw, str(path))


def write_captioner_config(config: CaptionerConfig, folder: str | Path) -> None:
    """Write `folder/config.json`."""
    Path(folder, "config.json").write_text(json.dumps(config.model_dump(), indent=2) + "\n")


def write_janus_config(shape: JanusConfig, folder: str | Path, dtype: str = "float32") -> None:
    """Write `folder/config.json` so that transformers and we open the folder; `dtype` is the weights'."""
    raw = {
        "architectures": [ARCHITECTURE],
        "model_type": shape.model_type,
        "image_token_id": shape.image_token_id,
        "tie_word_embeddings": shape.text_config.tie_word_embeddings,
        "text_config": written(shape.text_config, dtype),
        "vision_config": {**shape.vision_config.model_dump(), **VisionConfig.fixed},
        "vq_config": {**shape.vq_config.model_dump(), **VqConfig.fixed},
        "torch_dtype": dtype,
    }
    Path(folder, "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def unconditioned(prompt: list[int], kept: Collection[int], pad_id: int) -> list[int]:
    """A prompt that asks for nothing: all tokens but those that open a sequence or a picture become padding."""
    return [token if token in kept else pad_id for token in prompt]
