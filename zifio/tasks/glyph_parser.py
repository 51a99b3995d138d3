"""What a drawing of 32 pixels shows: an exact reading of glyph scenes, or the reason why it shows none.

It knows nothing of how scenes are painted, only what the words mean. A drawing is white but for spots; a scene has two
spots, each of one colour, in the outline of a shape, one clearly beside or above the other. Every step either is sure
or refuses: what looks half like a circle is none.

    spots    connected pixels that are far from white; small ones are dust, which must be little
    colour   the line from white to it on which the spot's pixels lie, mixed with white at the edge, and on no other
    outline  how much of that colour covers each pixel, against the shapes as geometry has them, at every
             size and place nearby and as sharp or blurred as a decoder may paint: overlap over union
    relation the middles lie apart along one axis, and hardly along the other

Tests state what it bears (blur and noise together) and what it refuses.

Try it alone: `pytest tests/tasks/test_glyphs.py`
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from zifio.tasks.glyphs import COLORS, Glyph, Relation, Scene

_WHITE = 255.0
_FAR = 75.0  # from white, of a pixel that belongs to a spot
_DUST, _MOST_DUST = 14, 30  # pixels of a spot that is none, and of all of them
_SIDES = range(8, 16)  # of a shape, in pixels
_BLURS = (0.0, 0.6, 0.9, 1.2)  # deviations, in pixels
_ARMS = (0.25, 0.33, 0.41)  # of a cross: their width as a share of its own
_NEAR_COLOR, _COLOR_MARGIN = 50.0, 20.0  # levels beside the line, of three pixels in four
_PALE, _DARK = 0.7, 1.3  # cover of the spot's tenth pixel from the top
_LEAST_OVERLAP, _OVERLAP_MARGIN = 0.8, 0.04
_REACH = 2  # pixels that a shape may lie off the spot's middle
_EDGE = 2  # pixels around a spot that may be partly covered
_MARGIN = 3  # around a shape, for its blur
_APART, _SLANT = 10.0, 0.5
_FINE = 6  # points a pixel, in each direction


def parse(picture: np.ndarray) -> tuple[Scene | None, str]:
    """The scene that a picture (uint8 [Y, X, 3]) shows, told as left of or above; or None and the reason."""
    levels = picture.astype(np.float64)
    spots, fault = _spots(levels)
    if fault:
        return None, fault
    read = [_glyph(levels, spot) for spot in spots]
    for glyph, _, fault in read:
        if glyph is None:
            return None, fault
    (one, (y1, x1), _), (two, (y2, x2), _) = read
    assert one is not None and two is not None
    across, down = x2 - x1, y2 - y1
    if max(abs(across), abs(down)) < _APART or min(abs(across), abs(down)) > _SLANT * max(abs(across), abs(down)):
        return None, "neither beside nor above each other"
    is_beside = abs(across) > abs(down)
    relation: Relation = "left of" if is_beside else "above"
    is_in_order = (across if is_beside else down) > 0
    return (Scene(one, relation, two) if is_in_order else Scene(two, relation, one)), ""


def _spots(levels: np.ndarray) -> tuple[list[np.ndarray], str]:
    """The pixels of the two spots, as [n, 2] rows and columns; or why there are not two."""
    far = np.sqrt(((_WHITE - levels) ** 2).sum(axis=2)) > _FAR
    todo = {(int(y), int(x)) for y, x in np.argwhere(far)}
    spots, dust = [], 0
    while todo:
        spot = [todo.pop()]
        for y, x in spot:  # grows as it is walked through
            for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if place in todo:
                    todo.remove(place)
                    spot.append(place)
        if len(spot) > _DUST:
            spots.append(np.array(spot))
        else:
            dust += len(spot)
    if len(spots) != 2:
        return [], f"{len(spots)} spots, not two"
    if dust > _MOST_DUST:
        return [], f"{dust} pixels of dust"
    return spots, ""


def _glyph(levels: np.ndarray, spot: np.ndarray) -> tuple[Glyph | None, tuple[float, float], str]:
    """What a spot is, and its middle (row, column); or None and why."""
    middle = tuple((spot.min(axis=0) + spot.max(axis=0) + 1) / 2)
    sides = spot.max(axis=0) - spot.min(axis=0) + 1
    if not _SIDES[0] <= sides.max() <= _SIDES[-1] + 3 or abs(int(sides[0] - sides[1])) > 3:
        return None, middle, f"a spot of {sides[1]} x {sides[0]} pixels"
    color, fault = _color(levels, spot)
    if fault:
        return None, middle, fault
    shape, fault = _shape(_cover(levels, spot, color), middle, int(sides.max()))
    return (Glyph(color, shape) if not fault else None), middle, fault


def _color(levels: np.ndarray, spot: np.ndarray) -> tuple[str, str]:
    """The colour's name; or why it has none."""
    inside = levels[spot[:, 0], spot[:, 1]] - _WHITE
    off, cover = {}, {}
    for name, color in COLORS.items():
        towards = np.array(color) - _WHITE
        share = inside @ towards / (towards @ towards)
        off[name] = float(np.quantile(np.linalg.norm(inside - share[:, None] * towards, axis=1), 0.75))
        cover[name] = float(np.quantile(share, 0.9))
    best, second = sorted(off, key=lambda name: off[name])[:2]
    if off[best] > _NEAR_COLOR or off[second] - off[best] < _COLOR_MARGIN:
        return "", f"a colour between {best} and {second}"
    if not _PALE < cover[best] < _DARK:
        return "", f"{best} by {cover[best]:.2f}"
    return best, ""


def _cover(levels: np.ndarray, spot: np.ndarray, color: str) -> np.ndarray:
    """How much of the colour covers each pixel, from 0 (white) to 1; 0 beyond the spot and its edge."""
    towards = np.array(COLORS[color]) - _WHITE
    cover = np.clip(((levels - _WHITE) @ towards) / (towards @ towards), 0, 1)
    near = np.zeros(cover.shape, bool)
    for down in range(-_EDGE, _EDGE + 1):
        for across in range(-_EDGE, _EDGE + 1):
            rows = (spot[:, 0] + down).clip(0, cover.shape[0] - 1)
            near[rows, (spot[:, 1] + across).clip(0, cover.shape[1] - 1)] = True
    return cover * near


def _shape(cover: np.ndarray, middle: tuple[float, ...], side: int) -> tuple[str, str]:
    """The shape whose outline the cover has; or why it has none."""
    best: dict[str, float] = {}
    for size in range(max(side - 3, _SIDES[0]), min(side + 1, _SIDES[-1]) + 1):
        names, outlines = _outlines(size)
        width = outlines.shape[1]
        top, left = (round(float(one) - width / 2) for one in middle)
        around = np.pad(cover, width)
        for down in range(-_REACH, _REACH + 1):
            for across in range(-_REACH, _REACH + 1):
                y, x = top + down + width, left + across + width
                seen = around[y : y + width, x : x + width]
                missed = cover.sum() - seen.sum()
                overlap = np.minimum(outlines, seen).sum(axis=(1, 2))
                union = np.maximum(outlines, seen).sum(axis=(1, 2)) + missed
                for name, ratio in zip(names, overlap / union, strict=True):
                    best[name] = max(best.get(name, 0.0), float(ratio))
    if not best:
        return "", f"a spot of {side} pixels"
    first, second = sorted(best, key=lambda name: -best[name])[:2]
    if best[first] < _LEAST_OVERLAP:
        return "", f"no shape: like a {first} by {best[first]:.2f}"
    if best[first] - best[second] < _OVERLAP_MARGIN:
        return "", f"between a {first} and a {second}"
    return first, ""


@lru_cache(maxsize=len(_SIDES))
def _outlines(size: int) -> tuple[list[str], np.ndarray]:
    """The shapes at a size, sharp and blurred, with a margin: names, and shares of pixels covered, [n, Y, X]."""
    n_points = (size + 2 * _MARGIN) * _FINE
    x = ((np.arange(n_points) + 0.5) / _FINE - _MARGIN) / size * 2 - 1  # from -1 to 1 within the shape
    v, u = x[:, None], x[None, :]
    square = np.maximum(abs(u), abs(v)) <= 1
    shapes = [("square", square), ("circle", u * u + v * v <= 1), ("triangle", (2 * abs(u) <= 1 + v) & (v <= 1))]
    shapes += [("cross", square & (np.minimum(abs(u), abs(v)) <= arm)) for arm in _ARMS]
    names, out = [], []
    for name, inside in shapes:
        share = inside.reshape(n_points // _FINE, _FINE, n_points // _FINE, _FINE).mean(axis=(1, 3))
        for blur in _BLURS:
            names.append(name)
            out.append(blurred(share, blur))
    return names, np.stack(out)


def blurred(share: np.ndarray, deviation: float) -> np.ndarray:
    """The same [Y, X] under a Gaussian blur of so many pixels; what is beyond the edge is as the edge."""
    if deviation == 0:
        return share
    reach = int(np.ceil(3 * deviation))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(share, reach, mode="edge")
    rows = np.stack([np.convolve(line, kernel, "valid") for line in padded])
    return np.stack([np.convolve(line, kernel, "valid") for line in rows.T]).T
