"""The chat page with a model that reads and draws, in a real Chromium."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from browser import violations
from playwright.sync_api import Browser, BrowserContext
from served import Here, serving
from test_chat_page import Talker
from tiny import picture_characters, scene_janus

from zifio.engine.policy import LocalPolicy
from zifio.pictures import from_url, read_picture, to_url, write_png

RED = np.full((20, 40, 3), (200, 20, 20), np.uint8)
HELD = """() => { const ask = fetch; window.fetch = async (...asked) => {
  if (String(asked[0]).includes("images")) await new Promise((go) => { window.goesOn = go; });
  return ask(...asked);
} }"""
"""Makes requests for drawings wait until `goesOn` is called."""
IS_AT_END = "() => innerHeight + scrollY >= document.documentElement.scrollHeight - 2"
DROPS = """([name, type]) => {
  const given = new DataTransfer();
  given.items.add(new File(["none"], name, { type }));
  const event = new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true });
  document.querySelector("#log").dispatchEvent(event);
  return event.defaultPrevented;
}"""


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


def test_drawings_are_told_of_shown_large_saved_and_asked_about(here: Here, context: BrowserContext):
    """While they are made there are places for them and a clock; a pixel becomes a square of whole pixels; by keys."""
    who = Talker(context, here.url, max_tokens="6", temperature="0", seed="1", guidance="2.5")
    page = who.page
    page.evaluate(HELD)
    page.locator("#draw").press("Space")
    assert who.button("Draw").is_visible() and page.locator("#text").get_attribute("placeholder") == "What to draw"
    who.say("red + circle")
    page.wait_for_function("() => /Drawing, [0-9.]*[1-9]/.test(document.querySelector('.facts')?.textContent)")
    assert page.locator(".empty").count() == 4 and page.locator("#say").inner_text() == "The model is drawing."
    assert violations(page) == []
    page.evaluate("() => window.goesOn()")
    who.settle()
    page.wait_for_selector(".reply img.small")
    assert page.locator(".empty").count() == 0 and page.locator("#say").inner_text() == "tiny has drawn 4 pictures."
    assert who.asked[-1]["guidance"] == 2.5
    shown = page.locator(".reply img").nth(1)
    assert shown.evaluate("one => [one.clientWidth, one.clientHeight, getComputedStyle(one).imageRendering]") == [
        160, 160, "pixelated",
    ]  # fmt: skip
    url = shown.get_attribute("src") or ""
    assert shown.get_attribute("alt") == "Drawing 2 of red + circle"
    with page.expect_download() as found:
        page.get_by_role("link", name="Save drawing 2").press("Enter")
    assert found.value.suggested_filename == "red-circle-2.png"
    assert np.array_equal(read_picture(found.value.path()), from_url(url))
    who.button("Ask about drawing 2").press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "text" and not page.is_checked("#draw")
    who.ask("what?")
    messages = who.asked[-1]["messages"]  # what was asked to be drawn was no message
    assert [part.get("image_url", {}).get("url") for part in messages[0]["content"]] == [url, None]
    assert len(messages) == 1 and who.replies()[-1]
    assert f"![Drawing 2]({url})" in who.export("#export-markdown")


def test_what_is_no_picture_or_too_large(here: Here, context: BrowserContext, tmp_path: Path):
    """Whatever is dropped leaves the page as it is and is told of; a picture of many pixels is made smaller."""
    who = Talker(context, here.url, max_tokens="4")
    for name, kind in (("notes.txt", "text/plain"), ("torn.png", "image/png")):
        assert who.page.evaluate(DROPS, [name, kind])
        who.page.wait_for_function(f"() => document.querySelector('#say').textContent.startsWith('{name} is no')")
    write_png(np.full((4000, 4500, 3), 255, np.uint8), tmp_path / "huge.png")  # few bytes, many pixels
    who.page.set_input_files("#picture", tmp_path / "huge.png")
    who.page.wait_for_selector("#waiting img")
    who.ask("what?")
    url = who.asked[-1]["messages"][0]["content"][0]["image_url"]["url"]
    assert from_url(url).shape == (910, 1024, 3) and not who.page.locator(".error:visible").count()
    assert who.page.locator(".mine img").evaluate("one => [one.clientWidth, one.clientHeight]") == [288, 256]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_stays_at_its_end_and_in_its_width(width: int, here: Here, browser: Browser, tmp_path: Path):
    """Pictures have a size after the page has; settings give back the place that they were opened at."""
    context = browser.new_context(viewport={"width": width, "height": 700})
    who = Talker(context, here.url, max_tokens="4", temperature="0")
    page = who.page
    write_png(RED, tmp_path / f"{'long-' * 20}.png")
    for draws in (True, False, True):
        page.locator("#draw").set_checked(draws)
        if not draws:
            page.set_input_files("#picture", tmp_path / f"{'long-' * 20}.png")
            page.wait_for_selector("#waiting img")
        who.ask("red circle")
        page.wait_for_function(IS_AT_END)
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    for at in (None, 60):
        if at is not None:
            page.evaluate("at => scrollTo(0, at)", at)
            page.wait_for_timeout(100)
        before = page.evaluate("() => scrollY")
        page.evaluate("() => document.querySelector('#open-settings').click()")
        page.wait_for_timeout(100)
        page.evaluate("() => document.querySelector('#close-settings').click()")
        page.wait_for_timeout(100)
        assert page.evaluate("() => scrollY") == before
    seen = {"type": "image_url", "image_url": {"url": to_url(np.full((500, 500, 3), 90, np.uint8))}}
    said = [{"role": "user", "content": [seen]}, {"role": "assistant", "content": "grey"}]
    who.take(tmp_path / "said.json", said * 4)  # their sizes are known to nobody yet
    page.wait_for_function("() => [...document.querySelectorAll('.mine img')].filter((one) => one.height).length === 4")
    page.wait_for_function(IS_AT_END)
    assert not who.errors
    context.close()
