"""Pictures through the server: what it answers about them is the policy's own answer, and bad ones are named."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import Here, serving
from tiny import picture_characters, scene_janus

from zifio.config import Sampling
from zifio.engine.policy import LocalPolicy
from zifio.pictures import PICTURE, to_url

RED = to_url(np.full((20, 40, 3), (200, 20, 20), np.uint8))
BLUE = to_url(np.full((40, 20, 3), (20, 20, 200), np.uint8))


@pytest.fixture(scope="module")
def here() -> Generator[Here, None, None]:
    """A model that reads and draws."""
    made = LocalPolicy(scene_janus(max_position_embeddings=512), picture_characters())
    with serving({"max_pictures": 2, "max_pixels": 10_000}, made=made) as server:
        yield server


def seen(*urls: str, text: str = "what?") -> list[Any]:
    """A message with pictures, in a chat's words."""
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


def policys(here: Here, *urls: str, text: str = "what?") -> str:
    """What the policy says itself, in 6 tokens."""
    message = {"role": "user", "content": PICTURE * len(urls) + text, "pictures": list(urls)}
    ((reply,),) = here.policy.complete([[message]], 1, Sampling(temperature=0, max_new_tokens=6), [[1]])
    return reply.text


def test_answers_about_pictures_are_the_policys(here: Here):
    said = []
    for urls in ((RED,), (BLUE,), (RED, BLUE)):
        asked: dict[str, Any] = {"model": "tiny", "messages": seen(*urls), "max_tokens": 6, "temperature": 0}
        asked["logprobs"] = True
        reply = here.openai.chat.completions.create(**asked)
        assert reply.choices[0].message.content == policys(here, *urls)
        assert reply.usage and reply.usage.prompt_tokens == 66 * len(urls) + 8
        streamed = here.openai.chat.completions.create(**asked, stream=True)
        assert "".join(one.choices[0].delta.content or "" for one in streamed) == reply.choices[0].message.content
        told = reply.choices[0].logprobs
        assert told and told.content
        said.append(told.content[0].logprob)
    assert len(set(said)) == 3
    assert here.is_idle(2.0)


def test_responses_and_messages_take_pictures_too(here: Here):
    parts = [{"type": "input_image", "image_url": RED}, {"type": "input_text", "text": "what?"}]
    answer = here.post("/v1/responses", input=[{"role": "user", "content": parts}], max_output_tokens=6, temperature=0)
    assert answer.json()["output"][0]["content"][0]["text"] == policys(here, RED)
    source = {"type": "base64", "media_type": "image/png", "data": RED.partition(",")[2]}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": "what?"}]
    messages = [{"role": "user", "content": blocks}]
    answer = here.post("/v1/messages", messages=messages, max_tokens=6, temperature=0)
    assert answer.json()["content"][0]["text"] == policys(here, RED)
    counted = here.post("/v1/messages/count_tokens", messages=messages).json()
    assert counted["input_tokens"] == answer.json()["usage"]["input_tokens"] == 74


def bomb() -> str:
    """A small file that says it is 50,000 pixels a side."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, format="PNG")
    head = b"IHDR" + struct.pack(">II", 50_000, 50_000) + file.getvalue()[24:29]
    data = file.getvalue()[:12] + head + struct.pack(">I", zlib.crc32(head)) + file.getvalue()[33:]
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (seen("https://example.org/a.png"), ["messages.0.content.0", "example.org", "fetches nothing"]),
        (seen("file:///etc/passwd"), ["fetches nothing"]),
        (seen("data:text/plain;base64,eA=="), ["data:image/png"]),
        (seen("data:image/png;base64,%%%"), ["base64"]),
        (seen("data:image/png;base64,eHh4"), ["wanted a picture", "Convert it"]),
        (seen(RED[:90]), ["messages.0.content.0"]),
        (seen(bomb()), ["10,000 pixels"]),
        (seen(to_url(np.zeros((101, 100, 3), np.uint8))), ["10,000 pixels", "100 x 101"]),
        (seen(RED, RED, RED), ["at most 2 pictures"]),
        (seen(RED, text=f"what{PICTURE}?"), ["Leave the mark"]),
        (seen(RED, text="a" * 500), ["context length is 512", "Shorten"]),
        ([{"role": "user", "content": [{"type": "image_url"}]}], ["came none"]),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 3}}]}], ["came none"]),
        ([{**seen(RED)[0], "role": "system"}], ["messages of the user"]),
        ([{"role": "user", "content": [*seen(RED)[0]["content"], {"type": "audio"}]}], ["text or a picture"]),
    ],
)
def test_what_is_no_picture_is_refused(here: Here, messages: list[Any], words: list[str]):
    answer = here.post("/v1/chat/completions", messages=messages, max_tokens=4)
    assert answer.status_code == 400, answer.text
    assert all(word in answer.json()["error"]["message"] for word in words), answer.text


def test_models_of_text_refuse_pictures_and_drawings():
    with serving() as text:
        answer = text.post("/v1/chat/completions", messages=seen(RED))
        assert answer.status_code == 400 and "reads text only" in answer.json()["error"]["message"]
        assert text.http.get("/v1/models").json()["data"][0]["output_modalities"] == ["text"]


def test_who_hangs_up_about_a_picture_frees_it(here: Here):
    never = {str(here.policy.tokenizer.eos_id): -100}
    body = {"model": "tiny", "messages": seen(RED), "max_tokens": 400, "logit_bias": never, "stream": True}
    with here.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
    assert here.is_idle(2.0)
    model: Any = here.policy.model
    assert not len(model._pictures)
