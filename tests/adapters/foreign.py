"""Scripts that run where a foreign package is installed, each in an environment of its own (bench/environments.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.environments import CannotMake, Torch, make

ROOT = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).resolve().parent / "inside"

BROKEN = """
def score(prompt, answer, response):
    raise OSError("the check is broken")
"""


def python_with(name: str) -> str:
    """The interpreter of an environment without torch, which is made when it does not stand (minutes, by pip)."""
    try:
        return str(make(name, Torch("")))
    except CannotMake as error:
        pytest.skip(f"no environment with {name}: {error}. `python -m bench.environments {name}` makes it.")


def run_inside(python: str, script: str, asked: dict[str, Any]) -> str:
    """What a script of `inside/` writes to stdout."""
    known = os.environ | {"PYTHONPATH": str(ROOT), "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [python, str(INSIDE / script), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env=known, cwd=asked["folder"], timeout=3000)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def broken_task(folder: Path) -> str:
    """The name of a task whose check breaks."""
    (folder / "rows.jsonl").write_text("".join(f'{{"prompt": "{n}+1", "answer": "{n + 1}"}}\n' for n in range(64)))
    (folder / "check.py").write_text(BROKEN)
    return f"{folder / 'rows.jsonl'}:verifier={folder / 'check.py'}"


def own_python() -> str:
    """This interpreter, whose environment has TRL among its tools for development."""
    return sys.executable
