"""An encoder of pictures that learns from captions, all of whose words are named at once (`models/captioner.py`).

Step s takes the next pictures of a walk through pairs, or of an endless list of glyph scenes, so position is state.
A picture that is to be described is described one way: a scene from its left or its upper glyph.

Run alone: `zifio vision recipes/janus-nano.toml steps=20 --out runs/try`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from zifio.checkpoint import with_manifest
from zifio.config import ConfigError, build
from zifio.data.pairs import Pair, learnt_and_kept
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import load_tokenizer
from zifio.log import RunFolder
from zifio.models.captioner import Captioner
from zifio.models.count import captioner_flops
from zifio.models.device import find_device
from zifio.models.janus_config import CaptionerConfig
from zifio.models.weights import save_model
from zifio.pictures import PICTURE, padded, pixels_of, resized, to_url
from zifio.seed import nth, stream, stream_seed
from zifio.stats import wilson_interval
from zifio.tasks.episode import Episode, Reply, record
from zifio.tasks.glyphs import SIDE, Split, paint, scene
from zifio.tasks.task import Problem, Verdict
from zifio.train.batch import Batch
from zifio.train.loop import Look, StepData, Trainer
from zifio.train.loss import LossTerms
from zifio.train.picture_config import VisionStage
from zifio.train.stage import Context

_KEPT = 3  # of the pictures of a look: the first, the first that are named right, the first that are not
_SHOWN_SIDE = 96  # pixels; a reader needs no more


class Described(NamedTuple):
    """A picture and what is said of it."""

    picture: np.ndarray
    text: str


def scene_described(split: Split, index: int, seed: int) -> Described:
    """The index-th scene and its caption from the left or the upper glyph, which the picture shows to be the first."""
    shown = scene(split, index, seed)
    return Described(paint(shown, stream(seed, "paint", index)), shown.told_once().caption())


class Walk:
    """Pictures with captions, by their place in an endless walk."""

    def __init__(self, stage: VisionStage, context: Context, tokenizer: ChatTokenizer) -> None:
        """Raises ConfigError where there are none, or pictures do not fit the encoder."""
        self.stage, self.tokenizer, self.side = stage, tokenizer, stage.model.image_size
        self.seed = stream_seed(context.seed, "vision/data", stage.name)
        self.learnt: list[Pair] | None = None
        self.kept: list[Pair] = []
        if stage.data is not None:
            other = None if stage.held_out_data is None else context.data_of(stage.held_out_data)
            both = learnt_and_kept(context.data_of(stage.data), other)
            self.learnt, self.kept = ([p for p in part if p.kind != "generation" and not p.question] for part in both)
            if not self.learnt or not self.kept:
                raise ConfigError(
                    f"{stage.name}: data: wanted captions (pairs for understanding without a question), and others to "
                    f"look at, came {len(self.learnt)} and {len(self.kept)}. Add some."
                )
        elif self.side != SIDE:
            raise ConfigError(
                f"{stage.name}: model.image_size: glyph scenes have {SIDE} pixels a side, came {self.side}. Change it, "
                "or name `data`."
            )

    def train(self, index: int) -> Described:
        """What is learnt from at this place."""
        if self.learnt is None:
            return scene_described("train", index, self.seed)
        pair = nth(self.learnt, index, self.seed, "vision/order")
        return Described(pair.picture(), pair.text)

    def held_out(self, index: int) -> Described:
        """What is looked at; of pairs there are only so many."""
        if self.learnt is None:
            return scene_described("held-out", index, stream_seed(self.seed, "held-out"))
        return Described(self.kept[index].picture(), self.kept[index].text)

    def batches(self, examples: list[Described]) -> list[Batch]:
        """Micro-batches of at most `rows.micro_tokens` patches, or of one picture."""
        at_once = max(1, self.stage.rows.micro_tokens // self.stage.model.num_image_tokens)
        return [self.batch(examples[i : i + at_once]) for i in range(0, len(examples), at_once)]

    def batch(self, examples: list[Described]) -> Batch:
        """A picture and a row of its caption's tokens each. Raises ConfigError for a caption that is too long."""
        words = self.stage.words
        tokens_BT = torch.full((len(examples), words), self.tokenizer.pad_id)
        real_BT = torch.zeros(len(examples), words, dtype=torch.bool)
        for row, example in enumerate(examples):
            ids = [*self.tokenizer.encode(example.text), self.tokenizer.eos_id]
            if len(ids) > words:
                raise ConfigError(
                    f"{self.stage.name}: words: wanted at least {len(ids)} for {example.text[:60]!r}, came {words}. "
                    "Raise it."
                )
            tokens_BT[row, : len(ids)], real_BT[row, : len(ids)] = torch.tensor(ids), True
        pixels = np.stack([pixels_of(padded(example.picture, self.side)) for example in examples])
        lengths = tuple(real_BT.sum(dim=1).tolist())
        return Batch(
            tokens_BT, torch.arange(words).expand(len(examples), -1), real_BT, {}, len(examples), lengths,
            (0,) * len(examples), pixels_MUYX=torch.from_numpy(pixels),
        )  # fmt: skip


def vision(stage: VisionStage, context: Context) -> dict[str, float]:
    """Train an encoder of pictures and write it to `model/`; returns the stage's totals."""
    tokenizer = load_tokenizer(context.model_of(stage.tokenizer))
    given = {"vision_config": stage.model.model_dump(), "vocab_size": tokenizer.vocab_size, "num_words": stage.words}
    model = Captioner(build(CaptionerConfig, given, stage.name), stream_seed(context.seed, "vision", stage.name))
    model.to(find_device(stage.device, stage.name))
    walk = Walk(stage, context, tokenizer)

    def batches(step: int) -> StepData:
        examples = [walk.train(step * stage.pictures + i) for i in range(stage.pictures)]
        return StepData([walk.batches(examples)])

    n = stage.held_out.problems if walk.learnt is None else min(stage.held_out.problems, len(walk.kept))
    look = looking_at(walk, [walk.held_out(i) for i in range(n)], RunFolder(context.folder))
    totals = Trainer(model, stage, LossTerms(), context.folder, look).run(batches)
    with_manifest(context.folder / "model", lambda beside: save_model(model, beside))
    return totals


def looking_at(walk: Walk, examples: Sequence[Described], log: RunFolder) -> Look:
    """How many words, and how many whole captions, are named right of held-out pictures, the captions with a 95%
    interval. What was named in a few of them goes to `log`, so that a reader sees it change."""
    batches = walk.batches([*examples])

    @torch.no_grad()
    def look(model: Captioner, step: int) -> tuple[dict[str, float], float]:
        words, n_words = 0, sum(sum(batch.lengths) for batch in batches)
        named: list[list[int]] = []
        wholes: list[bool] = []
        for batch in batches:
            assert batch.pixels_MUYX is not None, "every one has a picture"
            named_BT = model(batch.pixels_MUYX.to(model.device)).argmax(dim=-1).cpu()
            right_BT = (named_BT == batch.tokens_BT) | ~batch.real_BT
            words += int((right_BT & batch.real_BT).sum())
            named += named_BT.tolist()
            wholes += right_BT.all(dim=1).tolist()
        log.rollouts(step, _told(walk, examples, named, wholes))
        n, n_right = len(wholes), sum(wholes)
        low, high = wilson_interval(n_right, n)
        figures = {"words_right": words / n_words, "captions_right": n_right / n}
        figures |= {"captions_right_low": low, "captions_right_high": high}
        return figures, captioner_flops(model.config) * n

    return look


def _told(
    walk: Walk, examples: Sequence[Described], named: Sequence[list[int]], wholes: Sequence[bool]
) -> list[dict[str, Any]]:
    """What was named in the first pictures, in the first that are right and in the first that are wrong, as replies."""
    of = {right: [i for i, whole in enumerate(wholes) if whole == right][:_KEPT] for right in (True, False)}
    rows = []
    for i in sorted({*range(min(_KEPT, len(examples))), *of[True], *of[False]}):
        ids, end = named[i], walk.tokenizer.eos_id
        ids = ids[: ids.index(end)] if end in ids else ids
        seen, side = padded(examples[i].picture, walk.side), min(walk.side, _SHOWN_SIDE)
        pictures = (to_url(resized(seen, side, side)),)
        problem = Problem(f"{walk.stage.name}/held-out/{i}", PICTURE, examples[i].text, pictures=pictures)
        verdict = Verdict("right" if wholes[i] else "wrong", float(wholes[i]))
        rows.append(record(Episode(problem, Reply(ids, walk.tokenizer.decode(ids)), verdict), 0))
    return rows
