"""Drawings in the form of OpenAI's pictures. They come whole, as PNG.

Try it alone: `pytest tests/serve/test_images_api.py`
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import Field

from zifio.config import Sampling
from zifio.data.template import PICTURE_BEGIN
from zifio.engine import guide
from zifio.engine.request import Request
from zifio.loopback import to_json
from zifio.pictures import PICTURE
from zifio.serve.answer import BLANK, events
from zifio.serve.asked import Asked, n_replies, sampling_of, seeds
from zifio.serve.model import Served
from zifio.serve.prompt import is_sound
from zifio.serve.refused import Refused
from zifio.serve.request import Body
from zifio.serve.settings import ServeConfig, Thinks
from zifio.serve.worker import Ticket

GUIDANCE = 5.0
"""Janus' own scale."""


class ImageRequest(Body):
    """POST /v1/images/generations"""

    prompt: Annotated[str, Field(min_length=1)]
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png"] | None = None
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None


def ask_image(served: Served, body: ImageRequest, config: ServeConfig, _: Thinks) -> list[Asked]:
    """A request for drawings. Raises Refused or ConfigError."""
    sight = served.sight
    if sight is None:
        raise Refused(400, "model: wanted one that draws (Janus), came one of text. Name another.", "model")
    side = f"{sight.drawn_side}x{sight.drawn_side}"
    if body.size not in (None, "auto", side):
        raise Refused(400, f"size: wanted {side}, which this model draws, came {body.size[:20]!r}.", "size")
    if body.stream:
        raise Refused(400, "stream: drawings come whole. Leave it out.", "stream")
    if PICTURE in body.prompt or not is_sound(body.prompt):
        raise Refused(400, f"prompt: wanted words in sound Unicode, without the mark {PICTURE}.", "prompt")
    asks = [{"role": "user", "content": body.prompt}]
    text = served.tokenizer.render(asks, generation_prompt=True)
    tokens = served.tokenizer.encode(text + PICTURE_BEGIN)
    if len(tokens) + sight.n_codes > served.longest:
        most = f"this model's maximum context length is {served.longest} tokens"
        parts = f"this prompt has {len(tokens)} and a drawing {sight.n_codes}"
        raise Refused(400, f"{most.capitalize()}, {parts}. Shorten it.", "prompt", "context_length_exceeded")
    scale = GUIDANCE if body.guidance is None else body.guidance
    n = n_replies(body, config)
    how: Sampling = sampling_of(body, sight.n_codes).model_copy(update={"repetition_penalty": 1.0})
    return [Asked(Request(tokens, how, seeds(body, n), drawing=guide.Drawing(scale)), [])]


class ImageAnswer:
    """One request for drawings on its way out."""

    def __init__(
        self, served: Served, body: ImageRequest, asked: list[Asked], tickets: list[Ticket], config: ServeConfig
    ) -> None:
        self.served, self.body, self.config = served, body, config
        (self.asked,), (self.ticket,) = asked, tickets

    async def whole(self) -> AsyncGenerator[bytes, None]:
        """One body."""
        urls: dict[int, str] = {}
        n_drawn = 0
        async with aclosing(events(self.ticket, self.config)) as news:
            async for item in news:
                if item is None:
                    yield BLANK
                    continue
                place, event = item
                n_drawn += len(event.tokens)
                if event.completion is not None and event.completion.text is not None:
                    urls[place] = event.completion.text
        side, n_prompt = self.served.sight.drawn_side if self.served.sight else 0, self.asked.n_prompt
        usage: dict[str, Any] = {"input_tokens": n_prompt, "output_tokens": n_drawn}
        usage |= {"total_tokens": n_prompt + n_drawn}
        usage["input_tokens_details"] = {"text_tokens": n_prompt, "image_tokens": 0}
        data = [self._one(urls[place]) for place in sorted(urls)]
        told = {"created": int(time.time()), "data": data, "output_format": "png", "size": f"{side}x{side}"}
        yield to_json({**told, "model": self.body.model, "usage": usage})

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Drawings come whole: `ask_image` has refused this."""
        async with aclosing(self.whole()) as lines:
            async for line in lines:
                yield line

    def failed(self, refused: Refused) -> bytes:
        """The error."""
        return to_json(refused.body())

    def _one(self, url: str) -> dict[str, str]:
        return {"url": url} if self.body.response_format == "url" else {"b64_json": url.partition(",")[2]}
