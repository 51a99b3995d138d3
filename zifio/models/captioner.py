"""What an encoder of pictures learns to read with: all words of a caption at once, from the picture alone.

Probes, one for each place of a caption, attend to the patches that the encoder hands on (SigLIP's pooling head,
arXiv:2303.15343, with as many probes as words), and a linear layer names each one's word. That is the parallel half of
CapPa (arXiv:2306.07915, section 3): as no word stands before another, all must be seen. Afterwards the encoder is kept
and the rest is thrown away.

Try it alone: `pytest tests/models/test_captioner.py`
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zifio.models.janus_config import CaptionerConfig
from zifio.models.layers import initialise
from zifio.models.vision import Vision
from zifio.seed import stream_seed


class Captioner(nn.Module):
    """An encoder of pictures, and probes that read what it makes of one."""

    def __init__(self, config: CaptionerConfig, seed: int | None = None) -> None:
        """Initialise from the named stream of `seed`, or leave the weights to be loaded when it is None."""
        super().__init__()
        vision = config.vision_config
        self.config, d = config, vision.hidden_size
        self.vision_model = Vision(vision)
        self.probe_embedding = nn.Parameter(torch.empty(config.num_words, d))
        self.attention = nn.MultiheadAttention(d, vision.num_attention_heads, batch_first=True)
        self.lm_head = nn.Linear(d, config.vocab_size)
        if seed is not None:
            initialise(self, config.initializer_range, torch.Generator().manual_seed(stream_seed(seed, "models/init")))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.probe_embedding.device

    def forward(self, pixels_MUYX: Float[Tensor, "M U Y X"]) -> Float[Tensor, "M T V"]:
        """Unnormalised log-probabilities of the word at each place; pixels go from -1 to 1."""
        seen_MPD = self.vision_model(pixels_MUYX)
        probes_MTD = self.probe_embedding.expand(len(seen_MPD), -1, -1)
        return self.lm_head(self.attention(probes_MTD, seen_MPD, seen_MPD, need_weights=False)[0])
