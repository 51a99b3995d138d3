"""The chat page with a model that reads and draws, in a real Chromium."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from browser import violations
from playwright.sync_api import BrowserContext
from served import Here, serving
from test_chat_page import Talker
from tiny import picture_characters, scene_janus

from zifio.engine.policy import LocalPolicy
from zifio.pictures import to_url, write_png

RED = np.full((20, 40, 3), (200, 20, 20), np.uint8)


@pytest.fixture(scope="module")
def here() -> Generator[Here, None, None]:
    """A model that reads and draws."""
    with serving(made=LocalPolicy(scene_janus(max_position_embeddings=512), picture_characters())) as server:
        yield server


def test_pictures_go_in_and_drawings_come_out(here: Here, context: BrowserContext, tmp_path: Path):
    who = Talker(context, here.url, max_tokens="6", temperature="0", seed="1")
    write_png(RED, tmp_path / "red.png")
    (tmp_path / "torn.png").write_bytes(b"none")
    who.page.set_input_files("#picture", tmp_path / "torn.png")
    who.page.wait_for_function("() => document.querySelector('#say').textContent.includes('no picture')")
    who.page.set_input_files("#picture", [tmp_path / "red.png", tmp_path / "red.png"])
    who.page.wait_for_function("() => document.querySelectorAll('#waiting img').length === 2")
    who.button("Remove red.png").press("Enter")
    assert violations(who.page) == []
    who.ask("what?")
    content = who.asked[-1]["messages"][0]["content"]
    assert content == [{"type": "image_url", "image_url": {"url": to_url(RED)}}, {"type": "text", "text": "what?"}]
    assert who.replies()[0] and not who.page.locator(".error:visible").count()
    assert who.page.locator(".mine img").get_attribute("alt") == "red.png"
    who.page.locator("#draw").press("Space")
    who.ask("red circle")
    drawn = who.page.locator(".reply .pictures img")
    assert drawn.count() == 4 and drawn.first.evaluate("one => one.naturalWidth") == 32
    asked = here.post("/v1/images/generations", prompt="red circle", n=4, seed=1, temperature=0, response_format="url")
    assert drawn.first.get_attribute("src") == asked.json()["data"][0]["url"]
    assert violations(who.page) == []
    who.page.reload()
    who.page.wait_for_selector(".reply .pictures img")
    assert who.page.locator(".mine img").count() == 1 and not who.errors
    assert all(url.startswith("data:") for url in who.outside)
