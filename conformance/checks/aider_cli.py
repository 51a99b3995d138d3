"""aider: a coding assistant's long prompt, its stream, its count of tokens. A small model edits nothing well."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from checking import KEY, TEXT, URL, check, run

HERE = Path(tempfile.mkdtemp())
"""Outside of any repository: aider would work in that."""


def aider(*words: str, key: str = KEY) -> str:
    """What aider writes."""
    (HERE / "a.py").write_text("def add(a, b):\n    return a - b\n")
    command = [str(Path(sys.executable).parent / "aider"), "--model", f"openai/{TEXT}", "--yes-always"]
    command += ["--no-check-update", "--no-show-model-warnings", "--no-analytics", "--no-git", "--map-tokens", "0"]
    command += ["--no-show-release-notes", "--no-pretty", "--timeout", "300", *words, "a.py"]
    at = {
        "OPENAI_API_BASE": f"{URL}/v1",
        "OPENAI_API_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HOME": str(HERE),
    }
    done = subprocess.run(
        command, cwd=HERE, env=os.environ | at, capture_output=True, text=True, timeout=500, stdin=subprocess.DEVNULL
    )
    sys.stdout.write(done.stdout + done.stderr)
    assert not done.returncode, (done.stdout + done.stderr)[-300:]
    return done.stdout


def asked(*words: str) -> None:
    """An answer that is counted."""
    text = aider("--chat-mode", "ask", "--message", "What does add return?", *words)
    assert re.search(r"Tokens: [\d.k]+ sent, [1-9][\d.k]* received", text), text[-300:]


@check("whole")
def whole() -> None:
    """One answer."""
    asked("--no-stream")


@check("stream")
def stream() -> None:
    """The same in a stream."""
    asked("--stream")


@check("errors")
def errors() -> None:
    """A wrong key is told in words."""
    assert "AuthenticationError" in aider("--message", "hi", key="wrong")


if __name__ == "__main__":
    try:
        run()
    finally:
        shutil.rmtree(HERE)
