"""Conversations with pictures as a Janus reads them, and what it draws as pictures.

A message's text has a mark for each of its `pictures` (`zifio.pictures.PICTURE`); in tokens the mark becomes
begin_of_image, the picture's patches, end_of_image. A drawing is asked for by begin_of_image behind the prompt, and
guidance sets it against the same prompt in which all else is padding (as in Janus' own code).

Try it alone: `pytest tests/engine/test_picture_prompts.py`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from zifio.config import ConfigError
from zifio.data.template import ChatTokenizer
from zifio.engine.guide import Drawing
from zifio.engine.marks import Marks, with_patches
from zifio.models.decoder import Decoder
from zifio.models.janus import Janus, Picture
from zifio.pictures import PICTURE, from_url, padded, picture_of, pixels_of, to_url


class Prompt(NamedTuple):
    """A prompt, whose tokens number its pictures from 0."""

    tokens: list[int]
    pixels: list[np.ndarray]
    """Of each picture, as the model's eye wants it: float32 [3, Y, X]."""


def asks_for_drawing(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether a drawing should answer them."""
    return bool(messages and messages[-1].get("draws"))


def picture_prompt(
    model: Decoder, tokenizer: ChatTokenizer, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()
) -> Prompt:
    """What stands before the reply to these messages.

    Raises ConfigError for pictures without their marks, or the other way round, that are no pictures, and for a model
    that neither reads nor draws.
    """
    tokens = tokenizer.encode_chat(messages, generation_prompt=True, tools=tools)[0]
    urls = [url for message in messages for url in message.get("pictures", ())]
    if not urls and not asks_for_drawing(messages):
        return Prompt(tokens, [])
    if not isinstance(model, Janus):
        raise ConfigError("pictures: wanted a model that reads and draws (Janus), came one of text. Name another.")
    marks, shape = Marks.of(tokenizer), model.shape.vision_config
    if (n_marks := tokens.count(marks.picture)) != len(urls):
        raise ConfigError(f"pictures: wanted one for each of {n_marks} {PICTURE} in the text, came {len(urls)}.")
    tokens = with_patches(tokens, marks, model.first_patch, shape.num_image_tokens)
    pixels = [pixels_of(padded(from_url(url), shape.image_size)) for url in urls]
    return Prompt(tokens + [marks.begin] * asks_for_drawing(messages), pixels)


def looked_at(model: Decoder, prompt: Prompt) -> tuple[list[int], list[Picture]]:
    """The prompt's tokens as the engine wants them, and its pictures, to be held until the replies are there."""
    if not prompt.pixels:
        return prompt.tokens, []
    assert isinstance(model, Janus), "`picture_prompt` has refused others"
    pictures = model.look(torch.from_numpy(np.stack(prompt.pixels)))
    patches = [token for picture in pictures for token in picture.tokens]
    first = model.first_patch
    return [token if token < first else patches[token - first] for token in prompt.tokens], pictures


def drawing(tokens: Sequence[int], tokenizer: ChatTokenizer, scale: float) -> Drawing:
    """How a drawing to this prompt is made, under guidance of this scale."""
    return Drawing(scale, () if scale == 1 else tuple(Marks.of(tokenizer).blank(tokens)))


def painted(model: Janus, drawings: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The pictures, uint8, of drawings as they stand on the axis of tokens."""
    if not drawings:
        return []
    pixels = model.paint(torch.tensor(drawings, device=model.device)).float().cpu().numpy()
    return [picture_of(one) for one in pixels]


def painted_urls(model: Decoder, drawings: Sequence[Sequence[int]], at_once: int = 64) -> list[str]:
    """The same as data URLs, painted so many at once."""
    assert isinstance(model, Janus), "others draw nothing"
    parts = [drawings[start : start + at_once] for start in range(0, len(drawings), at_once)]
    return [to_url(picture) for part in parts for picture in painted(model, part)]
