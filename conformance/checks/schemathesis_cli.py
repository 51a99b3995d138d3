"""schemathesis: requests made up from the server's own OpenAPI page, right and wrong; none may break the server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

from checking import FOLDER, KEY, URL, check, run

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
N = 40


def generated(checks: str, phases: str, n: int) -> str:
    """The cases that were tried. Raises AssertionError with what was found."""
    words = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{URL}/openapi.json", "--no-color"]
    words += ["-H", f"Authorization: Bearer {KEY}", "--checks", checks, "--phases", phases, "--seed", "0"]
    words += ["--max-examples", str(n), "--request-timeout", "300", "--workers", "2"]
    done = subprocess.run(
        words, env=os.environ | {"SCHEMATHESIS_HOOKS": str(HOOKS)}, capture_output=True, text=True, cwd=FOLDER
    )
    sys.stdout.write(done.stdout + done.stderr)
    found = re.search(r"(\d+) generated", done.stdout)
    failures = re.findall(r"^- (.+)$", done.stdout, re.M)
    assert not done.returncode, "; ".join(failures)[:380] or done.stdout[-380:] + done.stderr[-200:]
    assert found and int(found.group(1)) >= n, done.stdout[-400:]
    return f"{found.group(1)} requests"


@check("no 5xx")
def no_server_error() -> str:
    """Whatever comes, no answer is a server's error."""
    return generated("not_a_server_error", "examples,coverage,fuzzing", N)


@check("as described")
def as_described() -> str:
    """Statuses, types and bodies are those of the page."""
    return generated("status_code_conformance,content_type_conformance,response_schema_conformance", "fuzzing", N // 2)


def is_let_in() -> None:
    """Made-up requests prove nothing where none is let in. Raises what urllib raises."""
    request = urllib.request.Request(f"{URL}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


if __name__ == "__main__":
    is_let_in()
    run()
