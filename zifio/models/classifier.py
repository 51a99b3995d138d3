"""A classifier of pictures, in torch, to be trained; `tasks/classifier.py` reads the same folder without torch.

    3x3 convolution, ReLU, the larger of 2x2, for each of `channels`; a hidden layer, ReLU; logits of the labels

Try it alone: `pytest tests/models/test_classifier.py`
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zifio.models.classifier_config import ClassifierConfig
from zifio.seed import stream_seed


class Classifier(nn.Module):
    """Pixels from -1 to 1 to logits of the labels."""

    def __init__(self, config: ClassifierConfig, seed: int | None = None) -> None:
        """Initialise from the named stream of `seed`, or leave the weights to be loaded when it is None."""
        super().__init__()
        self.config = config
        widths = [3, *config.channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, width, 3, padding=1) for before, width in zip(widths, config.channels, strict=False)
        )
        self.hidden = nn.Linear(config.channels[-1] * config.grid**2, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, len(config.labels))
        if seed is not None:
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Weights evenly with variance 2 / inputs, for ReLU (He et al., arXiv:1502.01852); biases are 0."""
        generator = torch.Generator().manual_seed(stream_seed(seed, "models/classifier"))
        for name, parameter in sorted(self.named_parameters()):
            if name.endswith(".bias"):
                parameter.zero_()
            else:
                bound = (6 / parameter[0].numel()) ** 0.5
                parameter.uniform_(-bound, bound, generator=generator)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def features(self, pixels_MUYX: Tensor) -> Tensor:
        """The hidden layer, [M, hidden_size]."""
        for convolution in self.convolutions:
            pixels_MUYX = F.max_pool2d(F.relu(convolution(pixels_MUYX)), 2)
        return F.relu(self.hidden(pixels_MUYX.flatten(1)))

    def forward(self, pixels_MUYX: Tensor) -> Tensor:
        """Logits, [M, labels]."""
        return self.head(self.features(pixels_MUYX))
