"""Pictures out of messages: the text with a mark for each, and the pictures as the model's eye wants them.

Try it alone: `pytest tests/serve/test_pictures_api.py`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zifio.engine.marks import Marks, with_patches
from zifio.pictures import PICTURE, from_url, padded
from zifio.serve.model import Served
from zifio.serve.refused import Refused
from zifio.serve.request import has_picture, is_picture
from zifio.serve.settings import ServeConfig


def without_pictures(
    served: Served, messages: Sequence[dict[str, Any]], config: ServeConfig
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The messages with marks in place of their pictures, and the pictures. Raises Refused or ConfigError."""
    out: list[dict[str, Any]] = []
    pictures: list[np.ndarray] = []
    for place, message in enumerate(messages):
        if not has_picture(message):
            out.append(message)
            continue
        text = ""
        for number, part in enumerate(message["content"]):
            where = f"messages.{place}.content.{number}"
            if is_picture(part):
                where = str(part.get("where") or where)
                if len(pictures) == config.max_pictures:
                    most = f"wanted at most {config.max_pictures} pictures, came more. Leave some out."
                    raise Refused(400, f"{where}: {most}", where)
                pictures.append(_picture(served, message, part, where, config))
                text += PICTURE
            elif isinstance(part, dict) and isinstance(part.get("text"), str):
                # The question stands right behind the picture, as in training.
                text += ("\n" if text and not text.endswith(PICTURE) else "") + part["text"]
            else:
                raise Refused(400, f"{where}: wanted text or a picture. Send either.", where)
        out.append({**message, "content": text})
    return out, pictures


def _picture(
    served: Served, message: Mapping[str, Any], part: Mapping[str, Any], where: str, config: ServeConfig
) -> np.ndarray:
    """One picture. Raises Refused or ConfigError."""
    if served.sight is None:
        kind = str(part.get("kind") or part["type"])[:40]
        raise Refused(400, f"{where}: wanted text, came {kind}. This model reads text only.", where)
    if message.get("role") != "user":
        raise Refused(400, f"{where}: pictures are read in messages of the user. Put it into one of those.", where)
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str):
        raise Refused(400, f"{where}: wanted a picture as data:image/png;base64,..., came none. Encode it so.", where)
    if not url.startswith("data:"):
        came = f"wanted a picture as data:image/png;base64,..., came {url[:60]!r}"
        raise Refused(400, f"{where}: {came}. This server fetches nothing: send the picture itself.", where)
    return padded(from_url(url, where, config.max_pixels), served.sight.side)


def numbered(served: Served, tokens: list[int], n_pictures: int) -> list[int]:
    """The tokens of a prompt with patches in place of its marks, numbered from 0. Raises Refused."""
    if not n_pictures or served.sight is None:
        return tokens
    marks = Marks.of(served.tokenizer)
    if (n_marks := tokens.count(marks.picture)) != n_pictures:
        came = f"wanted {n_pictures} places for as many pictures, came {n_marks}"
        raise Refused(400, f"messages: {came}. Leave the mark {PICTURE} out of the text.", "messages")
    return with_patches(tokens, marks, served.sight.first_patch, served.sight.n_patches)
