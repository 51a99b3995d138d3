"""Drawings through the server: they are the policy's own, and what cannot be drawn is named."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Generator
from typing import Any

import httpx2
import numpy as np
import pytest
from served import Here, serving
from tiny import picture_characters, scene_janus

from zifio.config import Sampling
from zifio.engine.policy import LocalPolicy
from zifio.pictures import PICTURE, from_url, read_picture
from zifio.seed import stream_seed


def janus() -> LocalPolicy:
    """A model that reads and draws."""
    return LocalPolicy(scene_janus(), picture_characters())


@pytest.fixture(scope="module")
def here() -> Generator[Here, None, None]:
    """It is served."""
    with serving({"max_n": 4}, made=janus()) as server:
        yield server


def policys(here: Here, scale: float, seed: int) -> np.ndarray:
    """What the policy draws itself."""
    message = {"role": "user", "content": "red circle", "draws": True}
    seeds = [[stream_seed(seed, "choice", 0)]]
    ((reply,),) = here.policy.complete([[message]], 1, Sampling(guidance=scale), seeds)
    return from_url(reply.text)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_drawings_are_the_policys(here: Here, scale: float):
    drawn = []
    for seed in (1, 2):
        more = {"seed": seed, "guidance": scale}
        answer = here.openai.images.generate(model="tiny", prompt="red circle", extra_body=more)
        assert answer.data and answer.data[0].b64_json
        drawn.append(read_picture(b64decode(answer.data[0].b64_json)))
        assert drawn[-1].shape == (32, 32, 3) and np.array_equal(drawn[-1], policys(here, scale, seed))
        assert answer.usage and answer.usage.output_tokens == 64 and answer.usage.total_tokens == 64 + 14
    assert not np.array_equal(*drawn)


def test_several_come_as_urls(here: Here):
    asked: dict[str, Any] = {"prompt": "red circle", "response_format": "url", "seed": 3, "size": "32x32"}
    one = here.post("/v1/images/generations", **asked).json()
    three = here.post("/v1/images/generations", **asked, n=3).json()
    urls = [part["url"] for part in three["data"]]
    assert len(set(urls)) == 3 and three["usage"]["output_tokens"] == 192
    assert np.abs(from_url(urls[0]).astype(int) - from_url(one["data"][0]["url"])).max() <= 1
    assert here.http.get("/v1/models").json()["data"][0]["output_modalities"] == ["text", "image"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": ""}, ["prompt"]),
        ({"prompt": PICTURE}, ["without the mark"]),
        ({"prompt": "a" * 200}, ["context length is 256", "a drawing 64"]),
        ({"size": "1024x1024"}, ["wanted 32x32", "1024x1024"]),
        ({"n": 5}, ["at most 4"]),
        ({"guidance": -1}, ["guidance"]),
        ({"response_format": "gif"}, ["response_format"]),
        ({"stream": True}, ["stream"]),
    ],
)
def test_what_cannot_be_drawn_is_refused(here: Here, body: dict[str, Any], words: list[str]):
    answer = here.post("/v1/images/generations", **{"prompt": "red circle", **body})
    assert answer.status_code == 400, answer.text
    assert all(word in answer.json()["error"]["message"] for word in words), answer.text


def test_half_a_character_is_refused(here: Here):
    kind = {"content-type": "application/json"}
    answer = here.http.post("/v1/images/generations", headers=kind, content=b'{"model": "tiny", "prompt": "\\ud800"}')
    assert answer.status_code == 400 and "prompt: " in answer.text


def test_models_of_text_draw_nothing():
    with serving() as text:
        answer = text.post("/v1/images/generations", prompt="red circle")
        assert answer.status_code == 400 and "one that draws" in answer.json()["error"]["message"]


def test_who_hangs_up_leaves_no_drawing_behind():
    with serving({"engine": {"max_rows": 2}}, made=janus()) as here:
        before = here.engine.stats.tokens
        with pytest.raises(httpx2.TimeoutException):
            body = {"model": "tiny", "prompt": "red circle", "n": 32}
            here.http.post("/v1/images/generations", json=body, timeout=0.1)
        assert here.is_idle(2.0) and here.engine.stats.tokens - before < 32 * 64


def test_keys_are_asked_for():
    with serving(keys={"secret": "me"}, made=janus()) as here:
        assert here.post("/v1/images/generations", prompt="red circle").status_code == 401
