"""The shape of a classifier of pictures: small convolutions, half the side after each, one hidden layer.

A `classifier` stage trains one (`train/classifier.py`), and a task of drawings is judged by it (`tasks/classifier.py`).
This module never imports torch.

Try it alone: `pytest tests/models/test_classifier.py`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from zifio.config import Config, build
from zifio.models.config import read_json_of


class ClassifierShape(Config):
    """What a recipe says of it."""

    image_size: PositiveInt = 28
    """Side of a picture, in pixels."""
    channels: Annotated[list[PositiveInt], Field(min_length=1)] = [16, 32]
    """Channels of each convolution of 3 by 3, behind which the larger of two stays each way."""
    hidden_size: PositiveInt = 128
    """Width of the layer before the labels: what drawings are compared by."""

    @property
    def grid(self) -> int:
        """Side of what the last convolution hands on."""
        return self.image_size >> len(self.channels)

    @model_validator(mode="after")
    def _some_left(self) -> ClassifierShape:
        if not self.grid:
            raise ValueError(f"channels: {len(self.channels)} halvings leave nothing of {self.image_size} pixels")
        return self


class ClassifierConfig(ClassifierShape):
    """The same with the labels that it tells apart."""

    model_type: Literal["zifio_classifier"] = "zifio_classifier"
    """Names the family."""
    labels: Annotated[list[str], Field(min_length=2)]
    """What each class is called."""


def read_classifier_config(folder: str | Path) -> ClassifierConfig:
    """The shape in `folder/config.json`. Raises ConfigError when there is none, or it is of something else."""
    raw, path = read_json_of("zifio_classifier", folder, "a classifier of pictures", "classifier")
    known = {key: value for key, value in raw.items() if key in ClassifierConfig.model_fields}
    return build(ClassifierConfig, known, str(path))


def write_classifier_config(config: ClassifierConfig, folder: str | Path) -> None:
    """Write `folder/config.json`."""
    Path(folder, "config.json").write_text(json.dumps(config.model_dump(), indent=2) + "\n")
