"""A classifier of pictures as a judge: what a drawing shows, and what it is compared with others by; without torch.

It reads the folder that a `classifier` stage wrote: `config.json` (image_size, labels) and `model.safetensors`
(`models/classifier.py` has the same arithmetic in torch; a test holds both equal).

Try it alone: `pytest tests/tasks/test_labelled.py`
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from zifio.config import ConfigError
from zifio.pictures import cropped, pixels_of

_AT_ONCE = 256  # pictures


class PictureClassifier:
    """Weights in numpy, and what the classes are called."""

    def __init__(self, weights: dict[str, np.ndarray], image_size: int, labels: list[str]) -> None:
        self.weights, self.image_size, self.labels = weights, image_size, labels

    def features(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """The hidden layer of each picture (uint8 [Y, X, 3], of any size), [M, hidden]."""
        parts = [pictures[start : start + _AT_ONCE] for start in range(0, len(pictures), _AT_ONCE)]
        return np.concatenate([self._features(np.stack([self._pixels(one) for one in part])) for part in parts])

    def told(self, pictures: Sequence[np.ndarray]) -> list[str]:
        """The likeliest label of each picture."""
        logits = self.features(pictures) @ self.weights["head.weight"].T + self.weights["head.bias"]
        return [self.labels[place] for place in logits.argmax(axis=1)]

    def _pixels(self, picture: np.ndarray) -> np.ndarray:
        return pixels_of(cropped(picture, self.image_size))

    def _features(self, pixels_MUYX: np.ndarray) -> np.ndarray:
        x_MUYX, n = pixels_MUYX, 0
        while f"convolutions.{n}.weight" in self.weights:
            x_MUYX = _halved(
                _convolved(x_MUYX, *(self.weights[f"convolutions.{n}.{key}"] for key in ("weight", "bias")))
            )
            n += 1
        return np.maximum(
            x_MUYX.reshape(len(x_MUYX), -1) @ self.weights["hidden.weight"].T + self.weights["hidden.bias"], 0
        )


def _convolved(x_MUYX: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3 with a border of zeros, then ReLU."""
    padded = np.pad(x_MUYX, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    out = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3))) + bias
    return np.maximum(out, 0).transpose(0, 3, 1, 2)


def _halved(x_MUYX: np.ndarray) -> np.ndarray:
    """The largest of each 2x2; an odd last row or column falls away."""
    height, width = (side - side % 2 for side in x_MUYX.shape[2:])
    whole = x_MUYX[:, :, :height, :width]
    return whole.reshape(*whole.shape[:2], height // 2, 2, width // 2, 2).max(axis=(3, 5))


def read_classifier(folder: str | Path) -> PictureClassifier:
    """The classifier in a folder, read once in a process. Raises ConfigError when there is none."""
    return _read(Path(folder).expanduser().absolute())


@lru_cache(maxsize=4)
def _read(folder: Path) -> PictureClassifier:
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        if config["model_type"] != "zifio_classifier":
            raise KeyError("model_type")
        return PictureClassifier(weights, config["image_size"], config["labels"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(
            f"{folder}: wanted the classifier that a `classifier` stage wrote (config.json, model.safetensors), came "
            f"{error!r}. Train one: zifio classifier recipes/janus-fashion.toml."
        ) from None
