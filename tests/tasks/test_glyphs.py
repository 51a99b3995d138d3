"""Glyph scenes: captions and pictures say the same; the parser inverts the painter, bears blur, refuses near misses."""

from __future__ import annotations

import random
from itertools import combinations, permutations, product
from typing import get_args

import numpy as np
import pytest

from zifio.tasks.glyph_parser import blurred, parse
from zifio.tasks.glyphs import (
    COLORS,
    SIDE,
    UNSEEN,
    Glyph,
    Relation,
    Scene,
    Shape,
    paint,
    read_caption,
    scene,
    score_caption,
    score_drawing,
)

GLYPHS = [Glyph(color, shape) for color, shape in product(COLORS, get_args(Shape))]
RELATIONS: tuple[Relation, ...] = get_args(Relation)
SCENES = [Scene(a, r, b) for a, b in permutations(GLYPHS, 2) for r in RELATIONS]


def spoiled(picture: np.ndarray, blur: float, noise: float, seed: int = 0) -> np.ndarray:
    """Under a Gaussian blur of so many pixels, and Gaussian noise of so many levels."""
    soft = np.stack([blurred(picture[..., i].astype(float), blur) for i in range(3)], axis=-1)
    return (soft + np.random.default_rng(seed).normal(0, noise, soft.shape)).clip(0, 255).astype(np.uint8)


def disc(picture: np.ndarray, y: float, x: float, radius: float, color: str) -> None:
    """Paint a circle."""
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    picture[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = COLORS[color]


def test_captions_are_read_as_they_are_written() -> None:
    assert len(SCENES) == 24 * 23 * 4
    for one in SCENES:
        assert read_caption(one.caption()) == one
        assert one.turned().turned() == one and one.turned().told_once() == one.told_once()
        assert one.turned().split == one.split
    for text in (
        "", "red circle", "red circle left blue square", "red circle left of blue", "circle red above blue square",
        "red circle above of blue square", "red circle left of blue square today", "pink circle above blue square",
    ):  # fmt: skip
        assert read_caption(text) is None


def test_splits_share_no_scene_and_unseen_glyphs_come_nowhere_else() -> None:
    drawn = {split: {scene(split, i, 7).told_once() for i in range(150)} for split in ("train", "held-out", "unseen")}
    for one, two in combinations(drawn.values(), 2):
        assert not one & two
    shown = {(g.color, g.shape) for split in ("train", "held-out") for s in drawn[split] for g in (s.first, s.second)}
    assert not shown & UNSEEN and len(shown) == 20
    assert {color for color, _ in shown} == set(COLORS) and {shape for _, shape in shown} == set(get_args(Shape))
    assert scene("train", 5, 7) == scene("train", 5, 7) != scene("train", 6, 7)
    sizes = {split: sum(s.split == split for s in SCENES) for split in drawn}
    assert sizes["unseen"] > 500 and sizes["held-out"] > 50 and sizes["train"] > 1000


def check(scenes: list[Scene], blur: float, noise: float) -> None:
    """Every scene is read from its picture."""
    for nth, one in enumerate(scenes):
        shown, reason = parse(spoiled(paint(one, random.Random(nth)), blur, noise, nth))
        assert shown == one.told_once(), f"{one.caption()}: {reason or shown}"


def test_scenes_are_read_from_their_pictures() -> None:
    """Every second pair once, the relations in turn; the slow test has all of them in all relations."""
    check([Scene(a, RELATIONS[i % 4], b) for i, (a, b) in enumerate(combinations(GLYPHS, 2))][::2], 0, 0)


@pytest.mark.parametrize(("blur", "noise"), [(1.0, 0), (0.8, 5), (0, 8)])
def test_blur_and_noise_to_this_level_change_nothing(blur: float, noise: float) -> None:
    check(SCENES[::67], blur, noise)


@pytest.mark.slow
@pytest.mark.parametrize(("blur", "noise"), [(0, 0), (1.0, 0), (0.8, 5)])
def test_all_scenes_are_read(blur: float, noise: float) -> None:
    check(SCENES, blur, noise)


def test_beyond_that_level_a_drawing_is_refused_rather_than_read_wrong() -> None:
    for nth, one in enumerate(SCENES[::61]):
        shown, reason = parse(spoiled(paint(one, random.Random(nth)), 1.3, 25, nth))
        assert shown == one.told_once() or (shown is None and reason)


def near_misses() -> dict[str, np.ndarray]:
    """Pictures that show nearly a scene, by what is wrong with them."""
    good = paint(Scene(Glyph("red", "square"), "left of", Glyph("blue", "circle")), random.Random(1))
    assert parse(good)[0] is not None
    white = np.full_like(good, 255)
    out = {"nothing": white, "black": np.zeros_like(good)}
    out["noise"] = np.random.default_rng(0).integers(0, 256, good.shape, dtype=np.uint8)
    one, three, touching, slanted, tiny, large = (white.copy() for _ in range(6))
    disc(one, 16, 16, 6, "red")
    for y, x in ((7, 7), (7, 24), (24, 15)):
        disc(three, y, x, 5.5, "red")
    disc(touching, 16, 10, 6, "red")
    disc(touching, 16, 21, 6, "blue")
    disc(slanted, 8, 8, 6, "red")
    disc(slanted, 23, 23, 6, "blue")
    disc(tiny, 16, 7, 3, "red")
    disc(tiny, 16, 24, 6, "blue")
    disc(large, 16, 10, 9.5, "red")
    disc(large, 16, 26, 5, "blue")
    out |= {"one": one, "three": three, "touching": touching, "slanted": slanted, "tiny": tiny, "large": large}
    red = (good == COLORS["red"]).all(axis=2)
    top, left = np.argwhere(red).min(axis=0)
    bottom, right = np.argwhere(red).max(axis=0) + 1
    for name, color in (
        ("between-colours", (182, 45, 105)),
        ("pale", (240, 170, 170)),
        ("no-colour-of-ours", (0, 220, 220)),
    ):
        out[name] = good.copy()
        out[name][red] = color
    out["two-coloured"] = good.copy()
    out["two-coloured"][top:bottom, (left + right) // 2 : right] = COLORS["green"]
    rows, columns = np.mgrid[:SIDE, :SIDE]
    out["hollow"] = good.copy()
    out["hollow"][top + 3 : bottom - 3, left + 3 : right - 3] = 255
    out["half-a-square"] = good.copy()
    out["half-a-square"][red & (rows - top + columns - left < (bottom - top) * 0.8)] = 255
    octagon = white.copy()  # as much a square as a circle
    edge = np.minimum(np.arange(10), np.arange(10)[::-1])
    octagon[9:19, 2:12][edge[:, None] + edge >= 2] = COLORS["red"]
    disc(octagon, 14, 24, 6, "blue")
    out["octagon"] = octagon
    out["upside-down"] = paint(Scene(Glyph("red", "triangle"), "left of", Glyph("blue", "circle")), random.Random(1))[
        ::-1
    ]
    out["dusty"] = good.copy()
    out["dusty"][::6, ::3][(out["dusty"][::6, ::3] == 255).all(axis=2)] = (20, 20, 20)
    return out


@pytest.mark.parametrize("name", near_misses())
def test_near_misses_are_refused(name: str) -> None:
    shown, reason = parse(near_misses()[name])
    assert shown is None and reason, f"{name} was read as {shown}"


def test_verdicts_on_drawings_and_captions() -> None:
    wanted = Scene(Glyph("red", "square"), "above", Glyph("blue", "circle"))
    picture = paint(wanted, random.Random(4))
    assert score_drawing(wanted, picture).outcome == score_drawing(wanted.turned(), picture).outcome == "right"
    other = score_drawing(Scene(wanted.second, "above", wanted.first), picture)
    assert (
        other.outcome == "wrong" and other.parts["format"] == 1 and "came red square above blue circle" in other.reason
    )
    none = score_drawing(wanted, np.full((SIDE, SIDE, 3), 255, np.uint8))
    assert none.outcome == "wrong" and none.parts["format"] == 0 and none.reward == 0
    assert score_drawing(wanted, picture[:16]).outcome == "error"
    assert score_drawing(wanted, picture.astype(np.float32)).outcome == "error"
    assert (
        score_caption(wanted, wanted.caption()).reward == score_caption(wanted, wanted.turned().caption()).reward == 1
    )
    assert score_caption(wanted, "red square below blue circle").parts == {"accuracy": 0, "format": 1}
    assert score_caption(wanted, "a red square").parts["format"] == 0


def test_pictures_of_one_scene_differ() -> None:
    one = SCENES[100]
    assert len({paint(one, random.Random(i)).tobytes() for i in range(20)}) > 15
    assert np.array_equal(paint(one, random.Random(3)), paint(one.turned(), random.Random(3)))
