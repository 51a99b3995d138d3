"""What the stages accept that learn from pictures.

Read by `recipe.py` from TOML and never importing torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from zifio.models.janus_config import VqConfig
from zifio.train.config import ModelStage


class VqStage(ModelStage):
    """A tokenizer of pictures from random weights: squared error of pixels, codebook and commitment losses."""

    kind: Literal["vq"]
    """Names the kind."""
    model: VqConfig
    """Shape of the tokenizer."""
    data: str | None = None
    """A .jsonl or .parquet file of pictures (`image`, `text`); nothing means glyph scenes, of 32 pixels a side."""
    held_out_data: str | None = None
    """Where the pictures of a look come from; by default every sixteenth of `data`, which then is not learnt from."""
    pictures: PositiveInt = 64
    """Pictures per step; those of `data` are walked through in a new order every epoch."""
    l1_weight: NonNegativeFloat = 0.0
    """Weight of the absolute error of pixels, beside the squared one."""
    restart_after: PositiveInt = 50
    """A code that no picture became for so many steps starts anew as the latent of one."""
