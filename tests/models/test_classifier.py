"""A classifier of pictures: torch and numpy say the same, its folder, its cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import LABELS
from tiny import pixels_like, shaken
from torch.utils.flop_counter import FlopCounterMode

from zifio.config import ConfigError, build
from zifio.models.classifier import Classifier
from zifio.models.classifier_config import ClassifierConfig, ClassifierShape
from zifio.models.count import classifier_flops
from zifio.models.weights import load_classifier, save_model
from zifio.pictures import picture_of, pixels_of
from zifio.tasks.classifier import read_classifier


def made(side: int = 13, channels: tuple[int, ...] = (4, 6)) -> Classifier:
    """An untrained one with random biases."""
    shape = ClassifierShape(image_size=side, channels=list(channels), hidden_size=10)
    model = Classifier(ClassifierConfig(**shape.model_dump(), labels=LABELS), seed=3)
    shaken(model, 3)
    return model


@pytest.mark.parametrize(("side", "channels"), [(13, (4, 6)), (16, (5,)), (8, (4, 4, 4))])
def test_numpy_says_what_torch_says(side: int, channels: tuple[int, ...], tmp_path: Path) -> None:
    """Odd sides too, whose last row falls away."""
    model = made(side, channels)
    save_model(model, tmp_path)
    pictures = [picture_of(one.numpy()) for one in pixels_like(7, side=side)]
    pixels_MUYX = torch.from_numpy(np.stack([pixels_of(one) for one in pictures]))
    judge = read_classifier(tmp_path)
    with torch.no_grad():
        logits_ML = model(pixels_MUYX)
        np.testing.assert_allclose(judge.features(pictures), model.features(pixels_MUYX).numpy(), atol=1e-5)
    assert judge.told(pictures) == [LABELS[place] for place in logits_ML.argmax(dim=1)]
    larger = [np.kron(one, np.ones((2, 2, 1), np.uint8)) for one in pictures]
    assert judge.features(larger).shape == (7, 10), "another size is resized"
    again = load_classifier(tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_its_flops_are_what_torch_counts() -> None:
    model = made()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels_like(2, side=13))
    assert counter.get_total_flops() == 2 * classifier_flops(model.config)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    for content in (None, "no json", json.dumps({"model_type": "llama"})):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=r"classifier` stage|no such file|not valid JSON"):
            load_classifier(tmp_path)
        with pytest.raises(ConfigError, match="wanted the classifier"):
            read_classifier(tmp_path)
    with pytest.raises(ConfigError, match="halvings leave nothing"):
        build(ClassifierShape, {"image_size": 3, "channels": [4, 4]}, "test")
