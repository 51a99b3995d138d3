"""The server under load, its batch throughput beside the bare engine's, and other servers beside it.

a  many streams at once for minutes, a tenth of them dropped by the client: errors, what is left, memory, times
b  a batch of requests, whole and streamed, beside the same batch in the bare engine, in turns
c  the same batch through the servers of transformers and vLLM, each in an environment of its own, in turns

python -m bench.serve                                        # all of it, some 15 minutes; writes bench/serve.json
python -m bench.serve --only ab --seconds 20 --requests 200  # a little
python -m bench.serve --model runs/mine/r1/model
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.environments import CannotMake, Torch, make, own_torch
from bench.material import material
from bench.run import circumstances, version_of
from zifio.log import say

HERE = Path(__file__).resolve().parent
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class System:
    """A server: its environment (None: our own), its command behind Python's folder, and what it calls the model."""

    environment: str | None
    command: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()


SYSTEMS = {
    "zifio": System(
        None, ("-m", "zifio.cli", "serve", "{model}", "--port", "{port}", "key_requests=100000", "waiting=100000",
        "engine.max_rows={rows}"),
    ),
    "transformers": System(
        "transformers-serve", ("transformers", "serve", "{model}", "--port", "{port}", "--device", "cpu"),
    ),
    "transformers continuous": System(
        "transformers-serve", ("transformers", "serve", "{model}", "--port", "{port}", "--device", "cpu",
        "--continuous-batching"),
    ),
    "vllm": System(
        "vllm", ("-m", "vllm.entrypoints.openai.api_server", "--model", "{model}", "--port", "{port}", "--dtype",
        "float32", "--max-num-seqs", "{rows}", "--kv-cache-memory-bytes", "1000000000"),
        (("VLLM_CPU_OMP_THREADS_BIND", "nobind"), ("VLLM_NO_USAGE_STATS", "1")),
    ),
}  # fmt: skip
"""As in the peers' worker: vLLM's own choice of cores leaves half of two idle."""
_PATIENCE_S = 300.0  # until a server answers
_REFUSALS_S = 60.0  # until one that answers with errors is given up
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


class Absent(Exception):
    """A server that cannot be measured, and why."""


@dataclass
class Running:
    """A server that answers."""

    process: subprocess.Popen[bytes]
    version: str
    name: str
    port: int

    def call(self, job: dict[str, Any]) -> dict[str, Any]:
        """Have a process of clients call it."""
        bodies = [json.dumps({**body, "model": self.name}) for body in job["bodies"]]
        asked = json.dumps({**job, "port": self.port, "bodies": bodies})
        done = subprocess.run(
            [sys.executable, "-m", "bench.callers"], input=asked, capture_output=True, text=True, cwd=HERE.parent
        )
        if done.returncode:
            raise Absent(done.stderr[-500:])
        return json.loads(done.stdout)

    def resident(self) -> float:
        """MB of it and its children."""
        total = 0
        for pid in [self.process.pid, *_children(self.process.pid)]:
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        return total / 1e6


def _children(pid: int) -> list[int]:
    listed: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            listed += map(int, (thread / "children").read_text().split())
    return listed


@contextlib.contextmanager
def running(system: str, options: argparse.Namespace, model: str = "") -> Generator[Running, None, None]:
    """The server until the block ends, of the options' model or another one. Raises Absent."""
    model = model or options.model
    wanted = SYSTEMS[system]
    try:
        python = Path(sys.executable) if wanted.environment is None else make(wanted.environment, options.torch)
        version = version_of(system.partition(" ")[0], python)
    except (CannotMake, OSError, subprocess.SubprocessError) as error:
        raise Absent(f"could not be installed: {error}") from None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [word.format(model=model, port=port, rows=options.rows) for word in wanted.command]
    command = [str(python), *words] if words[0] == "-m" else [str(python.parent / words[0]), *words[1:]]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | dict(wanted.variables), start_new_session=True,
            cwd=HERE.parent,
        )  # fmt: skip
        try:
            name = _answering(process, log, port, model if wanted.environment else None)
            yield Running(process, version, name, port)
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answering(process: subprocess.Popen[bytes], log: Any, port: int, name: str | None) -> str:
    """Wait until it answers a chat; returns what it calls the model."""
    end = time.monotonic() + _PATIENCE_S
    told = ""
    while time.monotonic() < end and process.poll() is None:
        try:
            if name is None:
                name = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models"))["data"][0]["id"]
            body = {"model": name, "messages": [{"role": "user", "content": "1+1"}], "max_tokens": 2}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
                {"content-type": "application/json"},
            )  # fmt: skip
            urllib.request.urlopen(request, timeout=_PATIENCE_S).read()
            return name
        except urllib.error.HTTPError as error:
            end = end if told else min(end, time.monotonic() + _REFUSALS_S)
            told = f"{error.code}: {error.read()[:300]!r}"
            time.sleep(1)
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    raise Absent(f"did not answer; {told or (lines[-1][:300] if lines else 'it said nothing')}")


def questions(n: int, options: argparse.Namespace, **more: Any) -> list[dict[str, Any]]:
    """Requests with the quickstart's questions, short and mixed."""
    chance = random.Random(0)
    sums = ["+".join(str(chance.randrange(10)) for _ in range(chance.randrange(2, 11))) for _ in range(n)]
    return [
        {"messages": [{"role": "user", "content": f"({asked})%10"}], "temperature": 1, "seed": place}
        | {"max_tokens": options.tokens, **more}
        for place, asked in enumerate(sums)
    ]


def streams(options: argparse.Namespace) -> dict[str, Any]:
    """a: the load, and what it leaves behind."""
    chance = random.Random(1)
    bodies = [{**body, "max_tokens": chance.randrange(8, 90)} for body in questions(2000, options, **STREAMED)]
    job = {"bodies": bodies, "at_once": options.streams, "seconds": options.seconds, "dropped": 0.1}
    with running("zifio", options) as server:
        server.call({**job, "seconds": 0, "bodies": bodies[:400]})  # what is loaded at first use
        memory: list[float] = []
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(1.0):
                memory.append(round(server.resident(), 1))

        watching = threading.Thread(target=watch)
        watching.start()
        found = server.call(job)
        stop.set()
        watching.join()
        time.sleep(1.0)
        text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics").read().decode()
    left = {
        name: float(re.findall(rf"^zifio:{name}{{.*}} (\S+)", text, re.MULTILINE)[0])
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    }
    tenth = max(1, len(memory) // 10)
    grown = {"begin": statistics.median(memory[:tenth]), "end": statistics.median(memory[-tenth:]), "most": max(memory)}
    code = server.process.returncode
    return {"streams": options.streams, **found, "left": left, "memory_mb": grown, "exit_code": code}


def batch(options: argparse.Namespace) -> dict[str, Any]:
    """b: requests of a batch through the server, and the bare engine on the same, in turns.

    The clients keep the engine's queue full; each connection asks again when it is answered, as clients of a batch do.
    """
    at_once = min(4 * options.rows, options.requests)
    job = {"at_once": at_once, "bodies": questions(options.requests, options)}
    streamed = {**job, "bodies": questions(options.requests, options, **STREAMED)}
    rates: dict[str, list[float]] = {"bare": [], "whole": [], "streamed": []}
    with running("zifio", options) as server, bare_engine(options) as engine:
        for round_ in range(1 + options.rounds):
            found = {"bare": _ask(engine), "whole": server.call(job), "streamed": server.call(streamed)}
            assert not found["whole"]["errors"] and not found["streamed"]["errors"], found
            assert found["bare"]["tokens"] == found["whole"]["tokens"] == found["streamed"]["tokens"], found
            for how, one in found.items():
                rate = one["tokens"] / one["seconds"]
                say(f"b round {round_} {how}: {rate:,.0f} tokens/s")
                rates[how] += [rate] if round_ else []
    ratios = {
        how: [round(mine / own, 3) for mine, own in zip(rates[how], rates["bare"], strict=True)]
        for how in ("whole", "streamed")
    }
    return {
        "requests": options.requests,
        "at_once": at_once,
        "tokens_per_s": {how: [round(rate) for rate in mine] for how, mine in rates.items()},
        "ratios": ratios,
        "ratio": {how: round(statistics.median(mine), 3) for how, mine in ratios.items()},
    }


@contextlib.contextmanager
def bare_engine(options: argparse.Namespace) -> Generator[subprocess.Popen[str], None, None]:
    """A process with the bare engine, that computes the batch for each line it gets."""
    words = ["--model", options.model, "--requests", str(options.requests), "--rows", str(options.rows)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.serve", "--bare", *words, "--tokens", str(options.tokens)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.communicate(timeout=60)


def _ask(engine: subprocess.Popen[str]) -> dict[str, Any]:
    assert engine.stdin is not None and engine.stdout is not None
    engine.stdin.write("\n")
    engine.stdin.flush()
    return json.loads(engine.stdout.readline())


def bare(options: argparse.Namespace) -> None:
    """The bare engine's end: the same prompts, seeds, lengths and settings as the server's."""
    from zifio.config import Sampling
    from zifio.engine.config import EngineConfig
    from zifio.engine.policy import load_policy
    from zifio.seed import stream_seed

    policy = load_policy(options.model, settings=EngineConfig(max_rows=options.rows))
    asked = questions(options.requests, options)
    prompts = [policy.prompt(one["messages"]) for one in asked]
    seeds = [[stream_seed(one["seed"], "choice", 0)] for one in asked]
    for _ in sys.stdin:
        start = time.perf_counter()
        done = policy.engine.generate(prompts, seeds, Sampling(max_new_tokens=options.tokens))
        seconds, tokens = time.perf_counter() - start, sum(len(group[0].tokens) for group in done)
        sys.stdout.write(json.dumps({"seconds": seconds, "tokens": tokens}) + "\n")
        sys.stdout.flush()


def peers(options: argparse.Namespace) -> dict[str, Any]:
    """c: requests a second of each server, in turns: on the model, and on SmolLM2, whose attention all of them have."""
    smollm2 = material("smollm2")["model"]
    n, most = options.peer_requests, options.tokens
    return {
        "nano": _side_by_side(options, options.model, {"requests": n, "most_tokens": most}),
        "SmolLM2-135M": _side_by_side(options, smollm2, {"requests": max(1, n // 3), "most_tokens": most // 2}),
    }


def _side_by_side(options: argparse.Namespace, model: str, work: dict[str, int]) -> dict[str, Any]:
    """The same requests through every server, in turns; of one that cannot, why."""
    bodies = questions(work["requests"], options, max_tokens=work["most_tokens"])
    job = {"at_once": min(options.rows, work["requests"]), "bodies": bodies}
    found: dict[str, Any] = {}
    for round_ in range(options.rounds):
        for system in SYSTEMS:
            if isinstance(found.get(system), str):
                continue
            try:
                with running(system, options, model) as server:
                    server.call({**job, "bodies": bodies[:20]})
                    one = server.call(job)
            except Absent as reason:
                found[system] = str(reason)
                say(f"c {system} is left out: {reason}")
                continue
            if one["errors"]:
                found[system] = f"{one['errors']} of {len(bodies)} failed: {one['told'][0][:200]}"
                continue
            say(f"c round {round_} {system}: {one['requests_per_s']} requests/s, {one['tokens_per_s']} tokens/s")
            mine = found.setdefault(system, {"version": server.version, "requests_per_s": [], "tokens_per_s": []})
            for key in ("requests_per_s", "tokens_per_s"):
                mine[key].append(one[key])
    return {"at_once": job["at_once"], **work, "systems": found}


def main() -> None:
    """Do what is wanted, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/quickstart/r1/model")
    parser.add_argument("--only", default="abc")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--requests", type=int, default=2048, help="of the batch in b")
    parser.add_argument("--peer-requests", type=int, default=100, help="of each round in c")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of a reply")
    parser.add_argument("--rows", type=int, default=64, help="of the engine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch", type=Torch, default=Torch(own_torch()))
    parser.add_argument("--out", type=Path, default=HERE / "serve.json")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server stays behind
    here = circumstances(os.cpu_count() or 1, "uvicorn", "fastapi") | {"model": options.model}
    told = json.loads(options.out.read_text()) if options.out.exists() else {}
    for letter, measure in (("a", streams), ("b", batch), ("c", peers)):
        if letter in options.only:
            told[letter] = here | measure(options)
            options.out.write_text(json.dumps(told, indent=1) + "\n")
    sys.stdout.write(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
