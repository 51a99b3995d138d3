"""Glyph scenes as tasks: their splits, what is right, and what is none."""

from __future__ import annotations

import numpy as np
import pytest

from zifio.pictures import PICTURE, from_url, to_url
from zifio.tasks.catalog import named_task
from zifio.tasks.environment import conversation
from zifio.tasks.glyphs import UNSEEN, read_caption
from zifio.tasks.runtime import judge

NAMES = ("glyph_captions", "glyph_drawings", "glyph_words")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unseen", [False, True])
def test_problems_are_of_their_split_and_their_gold_is_right(name: str, unseen: bool) -> None:
    task = named_task(f"{name}:unseen={str(unseen).lower()}")
    for split in ("train", "held-out"):
        for index in range(8):
            problem = task.problem(split, index, 3)
            assert problem == task.problem(split, index, 3) and task.check_gold(problem).outcome == "right"
            scene = read_caption(problem.gold)
            assert scene is not None and scene.split == ("train" if split == "train" else "unseen" if unseen else split)
            has_unseen = bool({(g.color, g.shape) for g in (scene.first, scene.second)} & UNSEEN)
            assert has_unseen == (unseen and split == "held-out")
    assert problem.id != named_task(name).problem("held-out", 7, 3).id or not unseen


def test_messages_carry_what_is_shown_and_asked() -> None:
    shown = named_task("glyph_captions").problem("train", 0, 1)
    (message,) = conversation(shown)
    assert message["content"].startswith(PICTURE) and from_url(message["pictures"][0]).shape == (32, 32, 3)
    (message,) = conversation(named_task("glyph_drawings").problem("train", 0, 1))
    assert message["draws"] and "pictures" not in message and PICTURE not in message["content"]
    (message,) = conversation(named_task("glyph_words").problem("train", 0, 1))
    assert set(message) == {"role", "content"}


def test_wrong_replies_are_wrong_and_broken_problems_errors() -> None:
    captions, drawings, words = map(named_task, NAMES)
    other = drawings.document(drawings.problem("train", 1, 1), False)
    for task, replies in (
        (captions, ("", "a dog", captions.problem("train", 1, 1).gold)),
        (drawings, ("", "red circle left of blue square", "data:image/png;base64,AA", other)),
        (words, ("", words.problem("train", 1, 1).gold)),
    ):
        problem = task.problem("train", 0, 1)
        assert {judge(task, problem, reply).outcome for reply in replies} == {"wrong"}
    problem = words.problem("train", 0, 1)
    turned = read_caption(problem.gold)
    assert turned is not None and judge(words, problem, turned.turned().caption()).outcome == "wrong"
    small = to_url(np.zeros((8, 8, 3), np.uint8))
    assert judge(drawings, drawings.problem("train", 0, 1), small).outcome == "error"
