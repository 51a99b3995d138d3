"""A tokenizer of pictures: VQ-VAE (arXiv:1711.00937) in LlamaGen's shape (arXiv:2406.06525), as Janus draws with.

Step s takes the next pictures of a walk through the data, or of an endless list of glyph scenes, so position is state.
Codes are kept alive: whichever no picture became for `restart_after` steps becomes the latent of a picture of this step
(random restarts, as in Jukebox, arXiv:2005.00341, section 3.1), a latent the sooner the farther it is from its code (as
k-means++ seeds). Where any may be chosen, most are of plain background, whose many codes no decoder can foretell. How
long each has been idle is the stage's memory.

An encoder that sees a whole picture writes into the codes of its background what belongs elsewhere, which pays here and
costs the decoder that is to draw. So of a share of the pictures (`spliced`) a rectangle of codes is exchanged for
another's before they are painted: what a code says of far-off places is worth nothing there.

LlamaGen adds a perceptual and an adversarial loss; here pixels and codes alone count, which keeps small pictures exact.

Run alone: `zifio vq recipes/janus-nano.toml steps=20 --out runs/try`
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zifio.checkpoint import with_manifest
from zifio.config import ConfigError
from zifio.data.pairs import HELD_OUT_OF, read_pairs
from zifio.models.count import vq_flops
from zifio.models.device import find_device
from zifio.models.vq import Vq
from zifio.models.weights import save_model
from zifio.pictures import cropped, pixels_of
from zifio.seed import nth, stream, stream_seed
from zifio.tasks.glyphs import SIDE, Split, paint, scene
from zifio.train.batch import Batch
from zifio.train.loop import Look, StepData, Trainer
from zifio.train.loss import LossTerms
from zifio.train.picture_config import VqStage
from zifio.train.stage import Context

_LEAST_OFF = 1e-12  # so that some latent may be chosen where all have their very code


class CodeUse:
    """How long each code has been idle, and what became of the dead; the stage's memory."""

    def __init__(self, n_codes: int, restart_after: int) -> None:
        self.restart_after = restart_after
        self.idle_Z = np.zeros(n_codes, np.int64)
        self.n_restarted = 0

    def hear(self, ids_BT: Tensor) -> None:
        """A micro-batch of pictures became these codes."""
        self.idle_Z[ids_BT.unique().cpu().numpy()] = 0

    @torch.no_grad()
    def next_step(self, vq: Vq, pixels_MUYX: Tensor, seed: int, step: int) -> dict[str, float]:
        """Restart the dead with latents of these pictures; how much of the codebook is in use, and how many restarted.

        Which latents is a function of seed and step alone.
        """
        self.idle_Z += 1
        dead = np.flatnonzero(self.idle_Z > self.restart_after)
        if len(dead):
            rng = stream(seed, "vq/restart", step)
            coded = vq.code(pixels_MUYX)
            latent_NU = coded.latent_BTU.flatten(0, 1)
            off_N = (latent_NU - coded.code_BTU.flatten(0, 1)).square().sum(dim=-1).double()
            places = rng.choices(range(len(latent_NU)), off_N.clamp_min(_LEAST_OFF).tolist(), k=len(dead))
            vq.quantize.embedding.weight[torch.from_numpy(dead).to(vq.device)] = latent_NU[places].float()
            self.idle_Z[dead] = 0
            self.n_restarted += len(dead)
        return {"codes/restarted": float(len(dead)), "codes/restarted_in_all": float(self.n_restarted)}

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"idle": self.idle_Z.tolist(), "n_restarted": self.n_restarted}

    def load_state(self, state: dict[str, Any]) -> None:
        """From it."""
        self.idle_Z, self.n_restarted = np.array(state["idle"], np.int64), state["n_restarted"]


class Pictures:
    """Pictures of one side, by their place in an endless walk."""

    def __init__(self, data: Path | None, side: int, who: str, splits: Sequence[Split] = ("train",)) -> None:
        """All of a file, cropped to squares; without one glyph scenes, of these splits in turns.

        Raises ConfigError where they do not fit.
        """
        if data is None and side != SIDE:
            raise ConfigError(
                f"{who}: model: glyph scenes have {SIDE} pixels a side, came num_patches and channel_multiplier for "
                f"{side}. Change them, or name `data`."
            )
        self.side, self.splits = side, splits
        self.kept = None if data is None else [cropped(pair.picture(), side) for pair in read_pairs(data)]
        if self.kept is not None and len(self.kept) < HELD_OUT_OF:
            raise ConfigError(f"{data}: wanted at least {HELD_OUT_OF} pictures, came {len(self.kept)}. Add some.")

    def scenes(self, splits: Sequence[Split], first: int, n: int, seed: int) -> np.ndarray:
        """Pictures `first` to `first` + n - 1 of the glyph scenes, float32 [n, 3, side, side]."""
        every: list[tuple[Split, int]] = [(splits[i % len(splits)], i) for i in range(first, first + n)]
        drawn = [paint(scene(split, i, seed), stream(seed, "vq/paint", split, i)) for split, i in every]
        return np.stack([pixels_of(picture) for picture in drawn])

    def train(self, first: int, n: int, seed: int, holds_out: bool) -> np.ndarray:
        """The same of what is learnt from: but for every sixteenth where some are held out."""
        if self.kept is None:
            return self.scenes(self.splits, first, n, seed)
        chosen = [p for i, p in enumerate(self.kept) if not holds_out or i % HELD_OUT_OF]
        return np.stack([pixels_of(nth(chosen, i, seed, "vq/order")) for i in range(first, first + n)])

    def held_out(self, n: int, seed: int, all_of_them: bool) -> np.ndarray:
        """At most n that are held out, always the same: of the scenes every second one has a glyph of `UNSEEN`."""
        if self.kept is None:
            return self.scenes(("held-out", "unseen"), 0, n, stream_seed(seed, "vq/held-out"))
        return np.stack([pixels_of(picture) for picture in self.kept[:: 1 if all_of_them else HELD_OUT_OF][:n]])


def vq(stage: VqStage, context: Context) -> dict[str, float]:
    """Train a tokenizer of pictures and write it to `model/`; returns the stage's totals."""
    model = Vq(stage.model, stream_seed(context.seed, "vq", stage.name)).to(find_device(stage.device, stage.name))
    seed = stream_seed(context.seed, "vq/pictures", stage.name)
    side, who = stage.model.image_size, stage.name
    pictures = Pictures(None if stage.data is None else context.data_of(stage.data), side, who, stage.scenes)
    apart = stage.held_out_data is not None
    others = Pictures(context.data_of(stage.held_out_data), side, who) if stage.held_out_data else pictures
    use = CodeUse(stage.model.num_embeddings, stage.restart_after)

    def batches(step: int) -> StepData:
        pixels = pictures.train(step * stage.pictures, stage.pictures, seed, not apart)
        pixels_MUYX = torch.from_numpy(pixels)
        metrics = use.next_step(model, pixels_MUYX.to(model.device), seed, step)
        source_BT = sources(stage.pictures, stage.model.num_patches, stage.spliced, stream(seed, "vq/splice", step))
        return StepData([picture_batches(pixels_MUYX, source_BT, stage.rows.micro_tokens)], metrics)

    held_out = torch.from_numpy(others.held_out(stage.held_out.problems, seed, apart))
    terms = LossTerms(l1_weight=stage.l1_weight, hears_codes=use.hear)
    look = looking_at(held_out, stage.rows.micro_tokens // stage.model.n_tokens or 1)
    trainer = Trainer(model, stage, terms, context.folder, look, ("loss", "squared_error"), use)
    totals = trainer.run(batches)
    with_manifest(context.folder / "model", lambda beside: save_model(model, beside))
    return totals


def sources(n: int, side: int, share: float, rng: random.Random) -> Tensor:
    """Of which picture each code that is painted is, [n, side * side]: a share of the pairs (0 with 1, 2 with 3, ...)
    has exchanged a rectangle of the grid, drawn evenly (CutMix, arXiv:1905.04899, on codes)."""
    source_MYX = torch.arange(n)[:, None, None].repeat(1, side, side)
    for first in range(0, n - 1, 2):
        if rng.random() < share:
            rows, columns = (slice(*sorted(rng.sample(range(side + 1), 2))) for _ in range(2))
            source_MYX[first, rows, columns], source_MYX[first + 1, rows, columns] = first + 1, first
    return source_MYX.flatten(1)


def picture_batches(pixels_MUYX: Tensor, source_MT: Tensor, micro_tokens: int) -> list[Batch]:
    """Micro-batches of an even number of pictures, in each of which a row stands for a picture's codes, and a token
    for the picture in the batch that a code is taken from."""
    n_codes = source_MT.shape[1]
    at_once = max(2, micro_tokens // n_codes // 2 * 2)
    batches = []
    for first in range(0, len(pixels_MUYX), at_once):
        part_MUYX, source_BT = pixels_MUYX[first : first + at_once], source_MT[first : first + at_once] - first
        m = len(part_MUYX)
        positions_BT, real_BT = torch.arange(n_codes).expand(m, -1), torch.ones(m, n_codes, dtype=torch.bool)
        shape = {}, m, (n_codes,) * m, (0,) * m
        batches.append(Batch(source_BT, positions_BT, real_BT, *shape, pixels_MUYX=part_MUYX))
    return batches


def looking_at(pixels_MUYX: Tensor, n_at_once: int) -> Look:
    """What a tokenizer makes of held-out pictures: their PSNR, and how much of the codebook they use."""

    @torch.no_grad()
    def look(model: Vq, step: int) -> tuple[dict[str, float], float]:
        squared, used = 0.0, torch.zeros(model.config.num_embeddings)
        for part_MUYX in pixels_MUYX.split(n_at_once):
            ids_BT = model.encode(part_MUYX.to(model.device))
            off = model.decode(ids_BT).clamp(-1, 1).cpu() - part_MUYX
            squared += float(off.square().sum())
            used += torch.bincount(ids_BT.flatten().cpu(), minlength=len(used))
        share = used / used.sum()
        entropy = float(-(share * share.clamp_min(1e-12).log()).sum())
        error = squared / pixels_MUYX.numel()
        figures = {"psnr": psnr(error), "codes_used": float((used > 0).float().mean()), "perplexity": math.exp(entropy)}
        return figures, vq_flops(model.config) * len(pixels_MUYX)

    return look


def psnr(squared_error: float) -> float:
    """Peak signal to noise in dB of pixels from -1 to 1, whose range is 2."""
    return 10 * math.log10(4 / max(squared_error, 1e-12))
