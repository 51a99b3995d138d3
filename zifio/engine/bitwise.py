"""Whether the sampler's log-probs can be the trainer's to the last bit, and what is in the way when they cannot.

They are where both compute with the C kernels, whose results do not depend on what else is in the batch
(`kernels.operators`), and do the same arithmetic.

Try it alone: `pytest tests/engine/test_bitwise.py`
"""

from __future__ import annotations

import torch

from zifio.config import ConfigError
from zifio.engine.config import EngineConfig
from zifio.kernels.library import library
from zifio.models.decoder import Decoder
from zifio.models.device import Precision
from zifio.models.families import LatentConfig


def insist(model: Decoder, settings: EngineConfig, precision: Precision) -> None:
    """Raise ConfigError, with the way out, when `settings.bitwise` is set and cannot be kept."""
    if settings.bitwise and (fault := obstacle(model, settings, precision)):
        raise ConfigError(f"bitwise: wanted {fault}, or set bitwise = false for agreement to rounding.")


def obstacle(model: Decoder, settings: EngineConfig, precision: Precision) -> str:
    """What keeps sampler and trainer from equal bits, as what is wanted instead; empty when nothing does."""
    if model.device.type != "cpu":
        return f"a model on the CPU, came one on {model.device}. Move it there"
    if other := {str(one.dtype) for one in model.parameters() if one.dtype is not torch.float32}:
        return f"weights in torch.float32, came {', '.join(sorted(other))}. Load them as fp32"
    if precision != "fp32":
        return f"fp32 arithmetic, came precision {precision}. Sample in fp32"
    if torch.is_autocast_enabled("cpu"):
        return "fp32 arithmetic, came autocast. Sample outside of it"
    if settings.latent_cache and isinstance(model.config, LatentConfig):
        return "the trainer's own arithmetic, came latent_cache = true, which absorbs it. Set latent_cache = false"
    if model.config.indexer is not None and "indexed_attention" in map(model.config.mixer, range(len(model.layers))):
        return (
            "attention that reads all keys or the last, came an indexer, whose scores torch computes. Train without it"
        )
    if library() is None:
        return "the compiled kernels, which are off or could not be built. Install a C compiler, unset ZIFIO_KERNELS"
    return ""
