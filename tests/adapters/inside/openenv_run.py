"""Runs where OpenEnv is installed: one task written as a package, validated, served, and played by OpenEnv's client.

What was found goes to stdout as JSON, for tests/adapters/test_openenv.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openenv import GenericEnvClient
from openenv.validation import Level, run_validation
from openenv.validation.types import ProviderCapability

from zifio.adapters.openenv_package import write


class Served:
    """A package served from its folder by this Python: what OpenEnv's provider for Docker does with an image."""

    name = "this environment"
    capabilities = frozenset({ProviderCapability.IMAGE_BUILD})
    supported_network_modes = frozenset({"public"})

    def build(self, root: Path, execution: Any) -> str:
        """Nothing to build: the packages are here."""
        self.root = root
        return "sha256:" + "0" * 64

    def start(self, spec: Any) -> Served:
        """Serve on a free port, and wait until it is healthy."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "server.app", "--host", "127.0.0.1", "--port", str(port)]
        self.process = subprocess.Popen(command, cwd=self.root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.base_url}/health", timeout=5):
                return self
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read().decode()
            time.sleep(0.2)
        raise TimeoutError("the server did not become healthy")

    def inspect(self) -> dict[str, Any]:
        """Nothing more to tell."""
        return {}

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a running server."""
    provider = Served()
    provider.build(folder, None)
    try:
        yield provider.start(None).base_url
    finally:
        provider.stop()


def validate(*arguments: str) -> dict[str, Any]:
    """What `openenv validate` says."""
    command = [str(Path(sys.executable).with_name("openenv")), "validate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return {"code": done.returncode, "said": done.stdout + done.stderr}


def played(url: str, right: list[dict[str, Any]], wrong: list[dict[str, Any]]) -> dict[str, Any]:
    """Rewards and what was read, of both series of actions."""
    out: dict[str, Any] = {}
    for name, actions in {"right": right, "wrong": wrong}.items():
        with GenericEnvClient(base_url=url).sync() as client:
            steps = [client.reset(seed=0, index=0), *map(client.step, actions)]
            state = client.state()
        told = [{"reward": step.reward, "done": step.done, **step.observation} for step in steps]
        out[name] = {"steps": told, "step_count": state["step_count"]}
    return out


def broken(url: str) -> str:
    """What a client gets where the check breaks."""
    with GenericEnvClient(base_url=url).sync() as client:
        client.reset(index=0)
        try:
            return f"no error but {client.step({'text': '5'})}"
        except RuntimeError as error:
            return str(error)


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """All of it for one task."""
    folder = Path(asked["folder"])
    with contextlib.redirect_stderr(io.StringIO()):
        write(asked["task"], folder)
    if asked["broken"]:
        with serving(folder) as url:
            return {"error": broken(url)}
    plan = json.loads((folder / "validation" / "runtime.json").read_text())
    report = run_validation(folder, max_level=Level.RUNTIME, provider=Served())
    out: dict[str, Any] = {
        "static": validate(str(folder), "--level", "static", "--skip-build"),
        "runtime": {result.check_id: [result.status.value, *result.evidence] for result in report.results},
        "verdict": report.verdict.value,
    }
    with serving(folder) as url:
        out["url"] = validate("--url", url, "--timeout", "60")
        out |= played(url, plan["actions"], asked["wrong"])
    return out


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))))
