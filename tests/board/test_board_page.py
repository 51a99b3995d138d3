"""The board in a real Chromium: a run that grows, runs beside one another, rollouts, keys; everybody can read it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from browser import violations
from playwright.sync_api import Browser, BrowserContext, Page
from written import begin, go_on, whole

ROOT = Path(__file__).resolve().parents[2]
WAIT_MS = 60_000


@contextlib.contextmanager
def serving(*words: str) -> Generator[str, None, None]:
    """The address of a board in a process of its own, as `zifio board` opens it."""
    command = [sys.executable, "-m", "zifio.cli", "board", *words, "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"http://[^/\s]+", line)
    try:
        assert found, line + process.stderr.read()
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        process.stderr.close()


class Reader:
    """Somebody before the page."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        context.set_default_timeout(WAIT_MS)
        self.page: Page = context.new_page()
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda one: None if one.url.startswith(url) else self.outside.append(one.url))
        self.page.goto(url)
        self.page.wait_for_selector("body[data-drawn]")

    def chart(self, title: str) -> Any:
        """The figure with this title."""
        return self.page.locator("figure", has=self.page.locator("h3", has_text=title)).first

    def wait_for(self, selector: str) -> None:
        """Until it is there."""
        self.page.wait_for_selector(selector)


def test_a_run_that_grows(browser: Browser, tmp_path: Path):
    """Curves, the list and the rollouts follow a run that is being written; what a model wrote stays text."""
    stage = begin(tmp_path / "now")
    go_on(stage, 0, 10)
    with serving(str(tmp_path / "now"), "--price-per-hour", "36") as url, browser.new_context() as context:
        who = Reader(context, url)
        who.wait_for("#list :text('10 of 40')")
        caption = who.chart("Held-out problems").locator("figcaption")
        before = caption.text_content()
        go_on(stage, 11, 20)
        who.wait_for("#list :text('20 of 40')")
        who.page.wait_for_function("(old) => document.querySelector('figcaption').textContent !== old", arg=before)
        assert "cost 0.10" in (who.page.locator("#list").text_content() or "")
        assert "stopped or killed" in (who.page.locator("#findings").text_content() or "")
        who.wait_for("#pair article:nth-of-type(2) :text('at 20')")
        pair = who.page.locator("#pair").text_content() or ""
        assert "reply 0 at 0 <img" in pair and "accuracy 1" in pair and "wrong" in pair
        who.page.locator("#problem").select_option(index=2)
        who.page.locator("#before").select_option("10")
        assert "reply 2 at 10" in (who.page.locator("#pair").text_content() or "")
        assert who.page.evaluate("window.hacked") is None and not who.errors and not who.outside


def test_runs_beside_one_another_and_the_band_behind(browser: Browser, tmp_path: Path):
    """Two runs over three references: one inside their band, one that learns nothing below it; keys move the cursor."""
    references = [str(whole(tmp_path / f"ref{n}", tilt)) for n, tilt in enumerate((-0.1, 0.0, 0.1))]
    good, poor = str(whole(tmp_path / "good", 0.02)), str(whole(tmp_path / "poor", -0.9))
    with serving(good, poor, "--reference", *references) as url, browser.new_context() as context:
        who = Reader(context, url)
        who.wait_for("#bands:has-text('held_out/pass_at_1: inside the band of 3 reference runs')")
        chart = who.chart("Reward in training")
        assert chart.locator("path.curve[data-key=reward]").count() == 2 and chart.locator("path.band").count() == 2
        who.page.locator("#focus-1").press("Enter")
        who.wait_for("#bands:has-text('held_out/pass_at_1: below the band of 3 reference runs at step 40')")
        picture = chart.locator("svg")
        picture.focus()
        picture.press("Home")
        assert (chart.locator("figcaption").text_content() or "").startswith("Step 1: poor reward")
        picture.press("ArrowRight")
        assert (chart.locator("figcaption").text_content() or "").startswith("Step 2: poor reward")
        who.page.locator("#show-0").press("Space")
        who.page.wait_for_function("() => document.querySelectorAll('path.curve[data-key=reward]').length === 1")
        assert not who.errors


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 360)])
def test_everybody_can_read_it(browser: Browser, tmp_path: Path, scheme: Any, width: int):
    """Nothing that axe-core calls serious, light or dark, wide or on a phone; nothing is cut off."""
    runs = [str(whole(tmp_path / "one")), str(begin(tmp_path / "two").parent)]
    with (
        serving(*runs, "--reference", str(whole(tmp_path / "three", 0.1))) as url,
        browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}) as context,
    ):
        who = Reader(context, url)
        who.wait_for("#pair article")
        assert violations(who.page) == []
        assert who.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        who.page.locator("#focus-1").press("Enter")
        who.wait_for("#findings:has-text('stopped or killed')")
        assert violations(who.page) == [] and not who.errors


def test_a_hundred_runs(browser: Browser, tmp_path: Path):
    """All are drawn, the list finds one, and the page answers while they are."""
    runs = [str(whole(tmp_path / f"run{n:03}", (n % 7) / 10)) for n in range(100)]
    with serving(*runs) as url, browser.new_context() as context:
        who = Reader(context, url)
        who.page.wait_for_function("() => document.querySelectorAll('path.curve[data-key=reward]').length === 100")
        who.page.locator("#find").fill("run042")
        assert who.page.locator("#list tr").count() == 1
        who.page.locator("#none").press("Enter")
        who.page.wait_for_function("() => document.querySelectorAll('path.curve[data-key=reward]').length === 1")
        assert not who.errors
