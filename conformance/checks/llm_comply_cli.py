"""llm-comply: the published descriptions of chat completions, Responses and Messages, test by test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from checking import KEY, SEES, TEXT, URL, tell

STATUS = {"passed": "pass", "failed": "red", "skipped": "none"}
MESSAGES = ["--auth-header", "x-api-key", "--no-bearer", "-H", "anthropic-version:2023-06-01"]


def main() -> None:
    """Every test of the format; what wants a picture read is asked of the model that reads pictures."""
    results = [one if "image" not in one["id"] else tested(SEES, one["id"])[0] for one in tested(TEXT)]
    for result in results:
        detail = "; ".join([*result.get("errors", []), *result.get("warnings", [])])
        name = result["id"].removeprefix("chat-").removeprefix("anth-")
        tell(name, STATUS[result["status"]], detail, result["duration_ms"] / 1000)


def tested(model: str, only: str = "") -> list[dict[str, Any]]:
    """What became of one test, or of all."""
    form = os.environ["CONFORMANCE_FORMAT"]
    words = [str(Path(sys.executable).parent / "llm-comply"), "--format", form, "-u", f"{URL}/v1", "-k", KEY]
    words += ["-m", model, "--json", "--timeout", "300", *(MESSAGES if form == "anthropic" else [])]
    words += ["--filter", only] if only else []
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    sys.stdout.write(done.stdout)
    return json.loads(done.stdout)["results"]


if __name__ == "__main__":
    main()
