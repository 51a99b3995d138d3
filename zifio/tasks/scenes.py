"""Glyph scenes as tasks: to describe one that is shown, to draw one that is described, to tell one the other way.

    glyph_captions   a picture, "What is this?"               red circle left of blue square
    glyph_drawings   red circle left of blue square           a picture, as a data URL
    glyph_words      turned: red circle left of blue square   blue square right of red circle

All are judged exactly (`glyphs.py`). With `unseen` the held-out problems are scenes with a colour and a shape that
training never names together. Replies are bare: there is no working, so the agreed shape is a caption, or a picture of
some scene.

Try it alone:

    python -c "from zifio.tasks.scenes import GlyphWords; print(GlyphWords().problem('train', 0, seed=1))"
"""

from typing import Literal

from zifio.config import Config, ConfigError
from zifio.pictures import PICTURE, from_url, to_url
from zifio.seed import stream
from zifio.tasks import glyphs
from zifio.tasks.glyphs import Scene, paint, read_caption, score_caption, score_drawing
from zifio.tasks.task import Problem, Split, Verdict, address

QUESTION = f"{PICTURE}What is this?"
TURNED = "turned: "


class _Scenes(Config):
    """What the three share."""

    unseen: bool = False
    """Whether held-out problems are scenes with glyphs that training never names; else other scenes of known ones."""

    def scene(self, split: Split, index: int, seed: int) -> Scene:
        """The scene of a problem."""
        where: glyphs.Split = "train" if split == "train" else "unseen" if self.unseen else "held-out"
        return glyphs.scene(where, index, seed)

    def picture(self, split: Split, index: int, seed: int) -> str:
        """A picture of it, as a data URL."""
        rng = stream(seed, "task/scenes/paint", int(self.unseen), split, index)
        return to_url(paint(self.scene(split, index, seed), rng))

    def id(self, name: str, split: Split, index: int, seed: int) -> str:
        """Where the problem is."""
        return address(f"{name}-unseen" if self.unseen else name, split, index, seed)


def _truth(problem: Problem) -> Scene:
    scene = read_caption(problem.gold)
    if scene is None:
        raise ValueError(f"no caption of a scene: {problem.gold[:40]!r}")
    return scene


class GlyphCaptions(_Scenes):
    """A config that is also the task."""

    name: Literal["glyph_captions"] = "glyph_captions"
    """Which task this is."""

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """A picture, and its caption from the left or the upper glyph."""
        gold = self.scene(split, index, seed).told_once().caption()
        id = self.id(self.name, split, index, seed)
        return Problem(id, QUESTION, gold, pictures=(self.picture(split, index, seed),))

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The caption."""
        return problem.gold

    def score(self, problem: Problem, response: str) -> Verdict:
        """Whether the response describes the picture, from either glyph. ValueError when the problem is broken."""
        return score_caption(_truth(problem), response)

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the problem's own caption."""
        return self.score(problem, problem.gold)


class GlyphDrawings(_Scenes):
    """A config that is also the task."""

    name: Literal["glyph_drawings"] = "glyph_drawings"
    """Which task this is."""

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """A caption, which is also the gold: many drawings are right."""
        caption = self.scene(split, index, seed).caption()
        return Problem(self.id(self.name, split, index, seed), caption, caption, draws=True)

    def document(self, problem: Problem, shows_working: bool) -> str:
        """A picture of the scene."""
        return to_url(paint(_truth(problem), stream(0, "task/scenes/document", problem.id)))

    def score(self, problem: Problem, response: str) -> Verdict:
        """Whether the picture in the response shows the scene; what is no picture is wrong. ValueError when the problem
        is broken."""
        wanted = _truth(problem)
        try:
            picture = from_url(response)
        except ConfigError as fault:
            return Verdict("wrong", 0.0, {"accuracy": 0.0, "format": 0.0}, str(fault))
        return score_drawing(wanted, picture)

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on a picture of the scene."""
        return self.score(problem, self.document(problem, shows_working=False))


class GlyphWords(_Scenes):
    """A config that is also the task."""

    name: Literal["glyph_words"] = "glyph_words"
    """Which task this is."""

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """A scene, to be told from its other glyph."""
        scene = self.scene(split, index, seed)
        prompt, id = f"{TURNED}{scene.caption()}", self.id(self.name, split, index, seed)
        return Problem(id, prompt, scene.turned().caption())

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The scene told so."""
        return problem.gold

    def score(self, problem: Problem, response: str) -> Verdict:
        """Whether the response is that very caption. ValueError when the problem is broken."""
        wanted, told = _truth(problem), read_caption(response)
        right = told == wanted
        parts = {"accuracy": float(right), "format": float(told is not None)}
        return Verdict("right" if right else "wrong", float(right), parts, "" if right else f"wanted {problem.gold}")

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the problem's own answer."""
        return self.score(problem, problem.gold)
