"""Glyph scenes: two coloured shapes and how they stand to each other, as a caption and as a picture of 32 pixels.

    red circle left of blue square

What a caption says can be checked in a drawing exactly (`tasks/glyph_parser.py`), so drawing is a task with a
verifiable reward, and so is describing. Some pairs of colour and shape training never names (`UNSEEN`), which tells
whether a model puts together what it has learnt apart.

Three splits share no scene: "train"; "held-out", other scenes of glyphs that training names; "unseen", scenes with at
least one glyph that it never names. Two captions may describe one scene (a left of b, b right of a); both fall in one
split.

Try it alone: `python -c "from zifio.tasks.glyphs import *; print(scene('unseen', 0, 0).caption())"`
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from zifio.seed import stream
from zifio.tasks.task import Verdict, is_held_out

SIDE = 32
"""Of a picture, in pixels."""
Shape = Literal["square", "circle", "triangle", "cross"]
Relation = Literal["left of", "right of", "above", "below"]
Split = Literal["train", "held-out", "unseen"]
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40), "green": (30, 160, 60), "blue": (40, 70, 215), "yellow": (245, 200, 30),
    "purple": (150, 50, 170), "black": (20, 20, 20),
}  # fmt: skip
UNSEEN = frozenset({("red", "cross"), ("green", "circle"), ("blue", "triangle"), ("yellow", "square")})
"""Colour and shape that training never names together, though it may show them without words; each comes with
others."""
_OPPOSITE: dict[Relation, Relation] = {
    "left of": "right of", "right of": "left of", "above": "below", "below": "above",
}  # fmt: skip
_SIZES = (10, 13)
_LEAST_GAP = 3
_SWAY = 3
_MOST_DRAWS = 4096


@dataclass(frozen=True, order=True)
class Glyph:
    """A coloured shape."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Two glyphs, and how the first stands to the second."""

    first: Glyph
    relation: Relation
    second: Glyph

    def caption(self) -> str:
        """In words."""
        return f"{self.first} {self.relation} {self.second}"

    def turned(self) -> Scene:
        """The same scene told from the other glyph."""
        return Scene(self.second, _OPPOSITE[self.relation], self.first)

    def told_once(self) -> Scene:
        """The one of the two ways to tell it that says left of or above."""
        return self if self.relation in ("left of", "above") else self.turned()

    @property
    def split(self) -> Split:
        """Where it belongs, whatever seed drew it and whichever way it is told."""
        if {(glyph.color, glyph.shape) for glyph in (self.first, self.second)} & UNSEEN:
            return "unseen"
        return "held-out" if is_held_out(f"glyphs/{self.told_once().caption()}") else "train"


def read_caption(text: str) -> Scene | None:
    """The scene that a caption describes, or None where it is none."""
    words = text.split()
    for relation in get_args(Relation):
        named = relation.split()
        middle = words[2 : 2 + len(named)]
        if middle == named and len(words) == 4 + len(named):
            glyphs = [Glyph(*words[:2]), Glyph(*words[-2:])]
            if all(glyph.color in COLORS and glyph.shape in get_args(Shape) for glyph in glyphs):
                return Scene(glyphs[0], relation, glyphs[1])
    return None


def scene(split: Split, index: int, seed: int) -> Scene:
    """The scene of this address: a pure function of its arguments. Its glyphs are never equal."""
    rng = stream(seed, "task/glyphs", split, index)
    for _ in range(_MOST_DRAWS):
        first, second = (Glyph(rng.choice(list(COLORS)), rng.choice(get_args(Shape))) for _ in range(2))
        drawn = Scene(first, rng.choice(get_args(Relation)), second)
        if first != second and drawn.split == split:
            return drawn
    raise AssertionError(f"every split has scenes, {split} among them")


def paint(scene: Scene, rng: random.Random) -> np.ndarray:
    """A picture of the scene, uint8 [32, 32, 3]; sizes and places are drawn, what the caption says is kept."""
    told = scene.told_once()
    sizes = [rng.randint(*_SIZES) for _ in range(2)]
    spare = SIDE - sum(sizes) - _LEAST_GAP
    before, gap = sorted(rng.randint(0, spare) for _ in range(2))
    along = [before, gap + sizes[0] + _LEAST_GAP]
    middle = rng.randint(SIDE // 2 - 4, SIDE // 2 + 4)
    across = [middle - sizes[0] // 2, middle + rng.randint(-_SWAY, _SWAY) - sizes[1] // 2]
    picture = np.full((SIDE, SIDE, 3), 255, np.uint8)
    for glyph, size, main, other in zip((told.first, told.second), sizes, along, across, strict=True):
        other = min(max(other, 0), SIDE - size)
        left, top = (main, other) if told.relation == "left of" else (other, main)
        picture[top : top + size, left : left + size][_mask(glyph.shape, size)] = COLORS[glyph.color]
    return picture


def _mask(shape: str, size: int) -> np.ndarray:
    """Which pixels of a square the shape covers: those whose middles it does."""
    x = (np.arange(size) + 0.5) / size - 0.5
    v, u = x[:, None], x[None, :]
    arm = 4 - size % 2 if size < 13 else 5  # pixels, as even as the size, near a third of it
    masks = {
        "square": np.ones((size, size), bool),
        "circle": u * u + v * v <= 0.25,
        "triangle": abs(u) <= (v + 0.5) / 2 + 0.5 / size,
        "cross": (abs(u) < arm / size / 2) | (abs(v) < arm / size / 2),
    }
    return masks[shape]


def score_caption(truth: Scene, text: str) -> Verdict:
    """Whether a text describes the scene, told from either glyph."""
    told = read_caption(text)
    if told is None:
        return _wrong("no caption of a scene", well_formed=False)
    if told.told_once() != truth.told_once():
        return _wrong(f"wanted {truth.caption()}, came {told.caption()}")
    return Verdict("right", 1.0, {"accuracy": 1.0, "format": 1.0})


def score_drawing(wanted: Scene, picture: np.ndarray) -> Verdict:
    """Whether a drawing shows the scene; its parts say how much of it, for a look at what goes wrong.

    The format is that a drawing shows some scene at all. An `error` is a picture of another size than ours.
    """
    from zifio.tasks.glyph_parser import parse  # which knows the scenes' words from here

    if picture.shape != (SIDE, SIDE, 3) or picture.dtype != np.uint8:
        came = f"{picture.dtype} {list(picture.shape)}"
        return Verdict("error", 0.0, {}, f"wanted uint8 [{SIDE}, {SIDE}, 3], came {came}")
    shown, reason = parse(picture)
    if shown is None:
        return _wrong(reason, well_formed=False)
    if shown.told_once() != wanted.told_once():
        return _wrong(f"wanted {wanted.caption()}, came {shown.caption()}")
    return Verdict("right", 1.0, {"accuracy": 1.0, "format": 1.0})


def _wrong(reason: str, well_formed: bool = True) -> Verdict:
    return Verdict("wrong", 0.0, {"accuracy": 0.0, "format": float(well_formed)}, reason)
