"""A classifier of pictures, that judges what a model draws: right for what it was asked for, or not.

It learns from pairs of a picture and a label, in the one loop; step s takes the next pictures of a walk through them. A
row of its batch stands for a picture, whose only token is the number of its label.

Run alone: `zifio classifier recipes/janus-fashion.toml steps=20 --out runs/try`
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zifio.checkpoint import with_manifest
from zifio.config import ConfigError
from zifio.data.pairs import Pair, learnt_and_kept
from zifio.models.classifier import Classifier
from zifio.models.classifier_config import ClassifierConfig
from zifio.models.count import classifier_flops
from zifio.models.device import find_device
from zifio.models.weights import save_model
from zifio.pictures import cropped, pixels_of
from zifio.seed import nth, stream_seed
from zifio.stats import wilson_interval
from zifio.train.batch import Batch
from zifio.train.loop import Look, StepData, Trainer
from zifio.train.loss import LossTerms
from zifio.train.picture_config import ClassifierStage
from zifio.train.stage import Context

_MOST_LABELS = 1000
_LOOKED_AT = 256  # pictures at once


def classifier(stage: ClassifierStage, context: Context) -> dict[str, float]:
    """Train a classifier and write it to `model/`; returns the stage's totals."""
    learnt, kept = _pairs(stage, context)
    labels = sorted({pair.text for pair in learnt})
    if not 2 <= len(labels) <= _MOST_LABELS:
        raise ConfigError(
            f"{stage.data}: text: wanted 2 to {_MOST_LABELS} different labels, came {len(labels)}. Name other pairs."
        )
    if strange := sorted({pair.text for pair in kept} - set(labels)):
        raise ConfigError(f"{stage.held_out_data or stage.data}: {strange[0]!r} is no label of what is learnt from.")
    config = ClassifierConfig(**stage.model.model_dump(), labels=labels)
    model = Classifier(config, stream_seed(context.seed, "classifier", stage.name))
    model.to(find_device(stage.device, stage.name))
    seed = stream_seed(context.seed, "classifier/pictures", stage.name)

    def batches(step: int) -> StepData:
        first = step * stage.pictures
        chosen = [nth(learnt, index, seed, "order") for index in range(first, first + stage.pictures)]
        return StepData([labelled_batches(*_laid_out(chosen, config), stage.rows.micro_tokens)])

    look = looking_at(*_laid_out(kept[: stage.held_out.problems], config))
    totals = Trainer(model, stage, LossTerms(), context.folder, look, ("loss", "accuracy")).run(batches)
    with_manifest(context.folder / "model", lambda beside: save_model(model, beside))
    return totals


def _pairs(stage: ClassifierStage, context: Context) -> tuple[list[Pair], list[Pair]]:
    """(what is learnt from, what is looked at). Raises ConfigError where there is too little."""
    other = None if stage.held_out_data is None else context.data_of(stage.held_out_data)
    learnt, kept = learnt_and_kept(context.data_of(stage.data), other)
    if not learnt or not kept:
        raise ConfigError(
            f"{stage.data}: wanted pairs to learn from and others to look at, came {len(learnt)} and {len(kept)}. Add "
            "some."
        )
    return learnt, kept


def _laid_out(pairs: Sequence[Pair], config: ClassifierConfig) -> tuple[Tensor, Tensor]:
    """(pixels, numbers of the labels) of pairs."""
    pixels = np.stack([pixels_of(cropped(pair.picture(), config.image_size)) for pair in pairs])
    return torch.from_numpy(pixels), torch.tensor([config.labels.index(pair.text) for pair in pairs])


def labelled_batches(pixels_MUYX: Tensor, label_M: Tensor, micro_tokens: int) -> list[Batch]:
    """Micro-batches of at most so many pictures."""
    batches = []
    for part_MUYX, part_M in zip(pixels_MUYX.split(micro_tokens), label_M.split(micro_tokens), strict=True):
        m, tokens_BT = len(part_M), part_M[:, None]
        real_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
        zeros_BT = torch.zeros_like(tokens_BT)
        batches.append(Batch(tokens_BT, zeros_BT, real_BT, {}, m, (1,) * m, (0,) * m, pixels_MUYX=part_MUYX))
    return batches


def looking_at(pixels_MUYX: Tensor, label_M: Tensor) -> Look:
    """The share of held-out pictures whose label it tells, with a 95% interval."""

    @torch.no_grad()
    def look(model: Classifier, step: int) -> tuple[dict[str, float], float]:
        told = [model(part.to(model.device)).argmax(dim=-1).cpu() for part in pixels_MUYX.split(_LOOKED_AT)]
        n, n_right = len(label_M), int((torch.cat(told) == label_M).sum())
        low, high = wilson_interval(n_right, n)
        figures = {"accuracy": n_right / n, "accuracy_low": low, "accuracy_high": high}
        return figures, classifier_flops(model.config) * n

    return look
