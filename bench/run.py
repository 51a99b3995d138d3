"""zifio and its peers side by side: the same work, in turns, on this machine.

Every system works in a process of its own that stays alive between its rounds (A B A B ...), after one round that does
not count. Writes results.json, RESULTS.md and figures beside this file. A peer that cannot be installed or fails is
reported as absent, with the reason.

    make bench                     everything (hours)
    make bench ONLY=c              one letter or one id of bench/work.py; e is the peak memory of the others
    make bench-smoke               one small round of each kind, written to bench/.cache/smoke

Run: python -m bench.run [--only c] [--smoke] [--systems zifio,trl] [--runs 3]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.environments import CannotMake, Torch, make, own_torch
from bench.material import CACHE, job
from bench.report import Results, Row, row
from bench.roofline import Peaks, limit
from bench.work import MEMORY, PACKAGES, SYSTEMS, Work, chosen
from bench.worker import Failed, Worker
from zifio.log import say
from zifio.models.config import read_config

HERE = Path(__file__).resolve().parent
HELP = {"zifio": ["-m", "zifio.cli"], "vllm": ["vllm"], "trl": ["trl"], "transformers": ["transformers"]}
"""How each system's help is asked for: arguments of its Python, or a command of its environment."""


Answer = dict[str, Any]
"""What a worker says after a round."""


class Bench:
    """One run of the harness: where Python is for each peer, what has been measured, what was absent."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.torch = Torch(options.torch or own_torch(), options.torch_index)
        self.pythons: dict[str, Path | CannotMake] = {}
        self.logs = CACHE / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.peaks: list[Peaks] = []  # of each round of the present work

    def python(self, system: str) -> Path:
        """The interpreter for a system, its environment made at need. Raises Failed."""
        name = SYSTEMS[system].environment
        if name is None:
            return Path(sys.executable)
        if name not in self.pythons:
            try:
                self.pythons[name] = make(name, self.torch)
            except (CannotMake, OSError, subprocess.SubprocessError) as error:
                self.pythons[name] = CannotMake(str(error))
        found = self.pythons[name]
        if isinstance(found, CannotMake):
            raise Failed(f"could not be installed: {found}")
        return found

    def work(self, work: Work) -> tuple[list[Row], dict[str, Any]]:
        """Rows of one work, its memory among them under e-ID, and its details by id."""
        systems = [s for s in work.systems if not self.options.systems or s in self.options.systems]
        detail: dict[str, Any] = {"title": work.title, "absent": {}, "notes": {}}
        runs = 1 if self.options.smoke else self.options.runs or work.runs
        if work.kind == "help":
            return self._help(work, systems, runs, detail), {work.id: detail}
        try:
            settings = job(work.model, work.resolved(self.options.smoke), self.options.model)
        except (CannotMake, subprocess.CalledProcessError) as error:
            detail["absent"] = dict.fromkeys(systems, f"{work.model} could not be made: {error}")
            say(f"{work.id} is left out: {error}")
            return [], {work.id: detail}
        settings |= {"threads": self.options.threads, "device": self.options.device, "dtype": self.options.dtype}
        if work.kind == "startup":
            return self._startup(work, settings, systems, runs, detail), {work.id: detail}
        self.peaks = []
        answers = self._rounds(work, settings, systems, runs, detail)
        versions = detail.pop("versions")
        rates = {s: [a["tokens"] / a["seconds"] for a in mine] for s, mine in answers.items()}
        rows = [row(work.id, s, versions[s], rates[s], work.unit) for s in answers]
        self._limit(detail, settings, answers)
        details = {work.id: detail}
        if work.id in MEMORY:
            peaks = {s: max(a["peak_rss"] for a in mine) / 1e6 for s, mine in answers.items()}
            memory = [row(f"e-{work.id}", s, versions[s], [peaks[s]], "MB") for s in peaks]
            details[f"e-{work.id}"] = {"title": f"peak memory: {work.title}"}
            rows = memory if self.options.only == "e" else rows + memory
            if self.options.only == "e":
                del details[work.id]
        return rows, details

    def _limit(self, detail: dict[str, Any], settings: dict[str, Any], answers: dict[str, list[Answer]]) -> None:
        """What the machine allows for this work, with the lengths of our own replies where they vary.

        Of shared machines the peaks change with the hour, memory's twofold, so those of the same rounds count.
        """
        if "zifio" not in answers or (settings["kind"] == "grpo" and not settings["fixed"]):
            return
        peaks = middle(self.peaks)
        found = limit(settings, read_config(settings["model"]), peaks, answers["zifio"][-1]["lengths"])
        if found:
            detail["limit"] = found
            detail["peaks"] = f"{peaks.flops / 1e9:.0f} GFLOP/s of products, {peaks.bandwidth / 1e9:.1f} GB/s of memory"

    def _rounds(
        self, work: Work, settings: dict[str, Any], systems: list[str], runs: int, detail: dict[str, Any]
    ) -> dict[str, list[Answer]]:
        """Every system's answers, in turns; who fails is noted and left out."""
        workers: dict[str, Worker] = {}
        answers: dict[str, list[Answer]] = {}
        detail["versions"] = {}
        try:
            for system in systems:
                if worker := self._start(work, settings, system, detail):
                    workers[system] = worker
            for round_ in range(1 + runs):
                if round_ and "zifio" in workers:
                    self.peaks.append(measured_peaks(self.options.threads, self.options.device))
                for system, worker in list(workers.items()):
                    try:
                        answer = worker.go(round_)
                    except Failed as reason:
                        self._absent(work, system, str(reason), detail)
                        del workers[system]
                        answers.pop(system, None)
                        continue
                    say(f"{work.id} round {round_} {system}: {answer['tokens'] / answer['seconds']:,.1f} tokens/s")
                    if round_:
                        answers.setdefault(system, []).append(answer)
        finally:
            for worker in workers.values():
                worker.end()
        return answers

    def _start(self, work: Work, settings: dict[str, Any], system: str, detail: dict[str, Any]) -> Worker | None:
        """The system's worker, ready for its first round, or None and the reason in the details."""
        stem = self.logs / f"{work.id}-{system.replace(' ', '-')}"
        stem.with_suffix(".json").write_text(json.dumps(settings | SYSTEMS[system].settings))
        threads = str(self.options.threads)
        variables = {"OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": "5000", "TOKENIZERS_PARALLELISM": "false"}
        variables |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        try:
            python = self.python(system)
            variables |= preloads(system, python)
            worker = Worker(
                python, SYSTEMS[system].worker, stem.with_suffix(".json"), stem.with_suffix(".log"), variables
            )
        except Failed as reason:
            self._absent(work, system, str(reason), detail)
            return None
        say(f"{work.id} {system} {worker.version} is ready after {worker.ready_s:.1f} s: {worker.note or 'as it is'}")
        detail["notes"][system] = worker.note
        detail.setdefault("versions", {})[system] = worker.version
        return worker

    def _absent(self, work: Work, system: str, reason: str, detail: dict[str, Any]) -> None:
        say(f"{work.id} {system} is absent: {reason}")
        detail["absent"][system] = reason
        detail["notes"].pop(system, None)

    def _startup(
        self, work: Work, settings: dict[str, Any], systems: list[str], runs: int, detail: dict[str, Any]
    ) -> list[Row]:
        """Seconds from the start of a process to its first token, in turns, each time in a new process."""
        seconds: dict[str, list[float]] = {}
        for round_ in range(1 + runs):
            for system in [s for s in systems if s not in detail["absent"]]:
                if worker := self._start(work, settings, system, detail):
                    if round_:
                        seconds.setdefault(system, []).append(worker.ready_s)
                    worker.end()
        versions = detail.pop("versions", {})
        return [row(work.id, s, versions[s], values, work.unit) for s, values in seconds.items()]

    def _help(self, work: Work, systems: list[str], runs: int, detail: dict[str, Any]) -> list[Row]:
        """Seconds of each command line's help, in turns."""
        seconds: dict[str, list[float]] = {}
        for round_ in range(1 + runs):
            for system in [s for s in systems if s not in detail["absent"]]:
                try:
                    took = help_seconds(system, self.python(system))
                except (Failed, OSError, subprocess.SubprocessError) as reason:
                    self._absent(work, system, str(reason), detail)
                    continue
                if round_:
                    seconds.setdefault(system, []).append(took)
        versions = {s: version_of(s, self.python(s)) for s in seconds}
        return [row(work.id, s, versions[s], values, work.unit) for s, values in seconds.items()]


def preloads(system: str, python: Path) -> dict[str, str]:
    """Libraries that a system wants loaded first on the CPU: vLLM its own OpenMP, which comes with it."""
    if system != "vllm":
        return {}
    openmp = sorted((python.parent.parent / "lib").glob("libiomp5.so"))
    return {"LD_PRELOAD": str(openmp[0])} if openmp else {}


def help_seconds(system: str, python: Path) -> float:
    """How long the help takes. Raises what subprocess raises."""
    command = HELP[system]
    started = [str(python), *command] if command[0] == "-m" else [str(python.parent / command[0])]
    began = time.perf_counter()
    subprocess.run([*started, "--help"], check=True, capture_output=True, timeout=300, cwd=HERE.parent)
    return time.perf_counter() - began


def version_of(system: str, python: Path) -> str:
    """The version of a system in its environment."""
    program = "import importlib.metadata, sys; sys.stdout.write(importlib.metadata.version(sys.argv[1]))"
    return subprocess.run([python, "-c", program, PACKAGES[system]], capture_output=True, text=True).stdout


def measured_peaks(threads: int, device: str) -> Peaks:
    """The peaks of this machine, measured in a process of its own so that this one need not load torch."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.roofline", str(threads), device], check=True, capture_output=True, text=True,
        cwd=HERE.parent, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    return Peaks(**json.loads(done.stdout))


def middle(peaks: list[Peaks]) -> Peaks:
    """The medians."""
    flops, bandwidth = (statistics.median(getattr(one, key) for one in peaks) for key in ("flops", "bandwidth"))
    return replace(peaks[0], flops=flops, bandwidth=bandwidth)


def circumstances(threads: int, *packages: str) -> dict[str, Any]:
    """When and where something was measured, and with which versions of these packages."""
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"date": time.strftime("%Y-%m-%d"), "machine": machine(threads, []), "versions": versions}


def machine(threads: int, peaks: list[Peaks]) -> dict[str, str]:
    """What the report says about this machine."""
    names = (line for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    said = next(names, platform.machine()).rpartition(":")[2].strip()
    memory = next((line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "")
    found = {
        "processor": f"{said}, {threads} threads",
        "memory": f"{int(memory.split()[1]) / 2**20:.0f} GiB" if memory else "unknown",
        "software": f"{platform.system()}, Python {platform.python_version()}, "
        f"torch {importlib.metadata.version('torch')}, fp32 unless said",
    }
    if peaks:
        found["matrix products"] = f"{middle(peaks).flops / 1e9:.0f} GFLOP/s ({peaks[0].by})"
        found["memory reading"] = f"{middle(peaks).bandwidth / 1e9:.1f} GB/s"
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a letter or an id of bench/work.py")
    parser.add_argument("--smoke", action="store_true", help="one small round of each kind, to try the machinery")
    parser.add_argument("--systems", type=lambda text: text.split(","), help="only these, by comma")
    parser.add_argument("--runs", type=int, help="rounds that count (default: as bench/work.py says)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every system (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="SmolLM2 as a Hugging Face folder, instead of its package")
    parser.add_argument("--torch", default="", help="the torch of the peers (default: the one that zifio runs with)")
    parser.add_argument("--torch-index", default="", help="where pip takes it from")
    parser.add_argument("--out", type=Path, help="folder of the results (default: beside this file)")
    parser.set_defaults(device="cpu", dtype="float32")
    return parser


def main() -> None:
    """Measure, writing the files after each work, so that a run that is stopped keeps what it has."""
    options = arguments().parse_args()
    try:
        works = chosen(options.only, options.smoke)
    except ValueError as error:
        sys.exit(str(error))
    if options.only == "e":
        options.runs = options.runs or 1
    out = options.out or (CACHE / "smoke" if options.smoke else HERE)
    out.mkdir(parents=True, exist_ok=True)
    measure(Bench(options), works, Results(out))


def measure(bench: Bench, works: list[Work], results: Results) -> None:
    """All works, one after the other."""
    if bench.options.smoke:
        results.details["machine"]["smoke"] = "works shrunk to almost nothing: no number here means anything"
    for work in works:
        rows, details = bench.work(work)
        results.take(set(details), rows, details, machine(bench.options.threads, bench.peaks))
    say(f"written: {results.folder / results.name.upper()}.md")


if __name__ == "__main__":
    main()
