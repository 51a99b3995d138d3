"""The labelling desk under load: many annotators at once, and the server killed with -9 while they work.

Every annotator asks for an item, waits a little and labels it, over one connection, until nothing is left. A label
that is not acknowledged is sent again under its key. In the end the log is compared with what was acknowledged:
nothing may be missing, nothing may be there twice.

    python -m bench.desk                                  # 50 annotators, 100,000 items, five kills
    python -m bench.desk --items 2000 --kills 2           # a little
    python -m bench.desk --desk postgresql://user@host/name
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.callers import percentiles
from zifio.label.desk import Desk
from zifio.label.exports import export
from zifio.label.imports import import_file
from zifio.label.schema import ANNOTATORS
from zifio.label.store import Store

PORT = 8029
_RETRY_S = 0.05


@dataclass
class Load:
    """What is asked for, and what came of it."""

    where: str
    pause: float
    port: int
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    """(annotator, item) of every label that the desk has acknowledged."""
    next_s: list[float] = field(default_factory=list)
    label_s: list[float] = field(default_factory=list)
    resent: int = 0


class Connection:
    """HTTP/1.1 over one connection, with as little work of our own as can be: the server shall have the cores."""

    def __init__(self, load: Load, token: str) -> None:
        self.load, self.token = load, token
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer. Raises OSError or IncompleteReadError when the connection breaks."""
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.load.port)
        reader, writer = self.streams
        content = json.dumps(body).encode()
        head = (
            f"POST /api/{path} HTTP/1.1\r\nHost: 127.0.0.1:{self.load.port}\r\nAuthorization: Bearer {self.token}\r\n"
            f"X-Desk: 1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(headers.split("content-length:")[1].split("\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        return int(headers.split(" ", 2)[1]), answer

    def drop(self) -> None:
        """Forget a connection that broke."""
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


async def annotate(load: Load, name: str, token: str, seed: int) -> None:
    """Label until nothing is left."""
    rng, connection, n = random.Random(seed), Connection(load, token), 0
    while True:
        start = time.perf_counter()
        answer, tries = await persistent(connection, "next", {"n": 1})
        if tries == 1:
            load.next_s.append(time.perf_counter() - start)
        if not answer["items"]:
            connection.drop()
            return
        item = answer["items"][0]
        await asyncio.sleep(rng.expovariate(1 / load.pause) if load.pause else 0)
        wrong = rng.randrange(len(item["steps"]) * 2)
        ratings = [1 if step < wrong else -1 if step == wrong else None for step in range(len(item["steps"]))]
        said = {"finish": "found_error" if -1 in ratings else "solution", "ratings": ratings}
        start = time.perf_counter()
        body = {"key": f"{seed:04d}-{n:08d}", "item": item["id"], "said": said, "ms": 1000}
        _, tries = await persistent(connection, "label", body)
        load.acknowledged.append((name, item["id"]))
        load.resent += tries - 1
        if tries == 1:
            load.label_s.append(time.perf_counter() - start)
        n += 1


async def persistent(connection: Connection, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The answer, and how often it was asked for until one came."""
    tries = 0
    while True:
        tries += 1
        try:
            status, answer = await connection.post(path, body)
        except (OSError, asyncio.IncompleteReadError):
            connection.drop()
            await asyncio.sleep(_RETRY_S)
            continue
        if status == 200:
            return answer, tries
        assert status >= 500, (status, answer)
        await asyncio.sleep(_RETRY_S)


def serve(load: Load) -> subprocess.Popen[bytes]:
    """The desk in a process of its own, not yet ready."""
    command = [sys.executable, "-m", "zifio.cli", "label", load.where, "--port", str(load.port)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


async def storm(load: Load, people: dict[str, str], n_items: int, kills: int) -> dict[str, Any]:
    """All at once, and the kills at even distances; the seconds it took, and how long the desk was away at most."""
    server, away = serve(load), []
    await answering(load)
    start = time.monotonic()
    work = [asyncio.create_task(annotate(load, *one, seed)) for seed, one in enumerate(people.items())]
    for kill in range(kills):
        while len(load.acknowledged) < (kill + 1) * n_items / (kills + 1) and not all(task.done() for task in work):
            await asyncio.sleep(0.02)
        server.send_signal(signal.SIGKILL)
        server.wait()
        gone = time.monotonic()
        server = serve(load)
        await answering(load)
        away.append(time.monotonic() - gone)
    await asyncio.gather(*work)
    seconds = time.monotonic() - start
    server.send_signal(signal.SIGINT)
    server.wait(60)
    return {"seconds": seconds, "longest_restart_s": max(away, default=0.0)}


async def answering(load: Load) -> None:
    """Wait until the desk takes connections."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", load.port)
        except OSError:
            await asyncio.sleep(_RETRY_S)
        else:
            writer.close()
            return


def compare(load: Load) -> dict[str, int]:
    """What the log has, against what was acknowledged."""
    store = Store(load.where)
    with store.read() as connection:
        names = {row.id: row.name for row in connection.execute(ANNOTATORS.select())}
        logged = Counter(
            (names[event.actor], event.body["item"]) for event in store.events(connection) if event.kind == "label"
        )
    store.close()
    told = Counter(load.acknowledged)
    return {
        "acknowledged": len(load.acknowledged),
        "lost": sum((told - logged).values()),
        "doubled": sum(n - 1 for n in logged.values()),
        "items_labelled_twice": sum(n - 1 for n in Counter(item for _, item in logged.elements()).values()),
    }


def write_items(path: Path, n_items: int) -> None:
    """Solutions of four steps and some 700 characters."""
    with path.open("w") as file:
        for n in range(n_items):
            steps = [f"In step {step} of {n} we see that {'x + ' * 30}{step} is {n}." for step in range(4)]
            item = {"id": f"item-{n:06d}", "prompt": f"What is {n} + {n}?", "steps": steps, "gold": str(2 * n)}
            file.write(json.dumps({**item, "scores": [0.9, 0.8, 0.7, (n % 97) / 97], "outcome": "wrong"}) + "\n")


def main() -> None:
    """Do all of it and print the figures as JSON; exit code 1 where a label was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.2, help="mean seconds between an item and its label")
    parser.add_argument("--desk", help="a URL of PostgreSQL (default: a file)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        load = Load(given.desk or os.path.join(folder, "desk.db"), given.pause, PORT)
        file = Path(folder) / "items.jsonl"
        write_items(file, given.items)
        desk, start = Desk(Store(load.where)), time.monotonic()
        import_file(desk, file)
        import_s = time.monotonic() - start
        people = {f"annotator-{n}": desk.add_annotator(f"annotator-{n}") for n in range(given.annotators)}
        found = asyncio.run(storm(load, people, given.items, given.kills)) | compare(load)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)  # every server that was started, its start included
        used = usage.ru_utime + usage.ru_stime
        start = time.monotonic()
        export(desk.store, "prm800k", Path(folder) / "out.jsonl")
        found |= {
            "server_cpu_ms_per_label": round(1000 * used / len(load.acknowledged), 2),
            "labels_per_s": round(len(load.acknowledged) / found["seconds"], 1),
            "next_ms": percentiles(load.next_s),
            "label_ms": percentiles(load.label_s),
            "sent_again": load.resent,
            "import_s": round(import_s, 1),
            "export_s": round(time.monotonic() - start, 1),
        }
        desk.store.close()
    sys.stdout.write(json.dumps({**vars(given), **found}, indent=1) + "\n")
    sys.exit(int(bool(found["lost"] or found["doubled"])))


if __name__ == "__main__":
    main()
