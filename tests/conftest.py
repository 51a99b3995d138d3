"""What every test needs: one thread per process, no network, no display, set before torch is imported; and a browser
for those of pages."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest
from browser import launched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

os.environ["OMP_NUM_THREADS"] = "1"  # more threads only wait for each other on matrices this small
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def browser() -> Generator[Browser, None, None]:
    with launched() as one:
        yield one


@pytest.fixture
def context(browser: Browser) -> Generator[BrowserContext, None, None]:
    """A visitor with nothing stored, who waits as long as a busy machine needs."""
    one = browser.new_context()
    one.set_default_timeout(60_000)
    yield one
    one.close()
