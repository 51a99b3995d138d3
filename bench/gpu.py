"""Rollouts, GRPO steps and pretraining on one GPU in bf16, against what is installed in this Python.

The same works and workers as bench/run.py; no environments are made, and who is not installed is reported as absent.
Writes results-gpu.json, RESULTS-GPU.md and figures beside this file.

Run: python -m bench.gpu [--only a] [--random] [--smoke] [--device cpu]
"""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

from bench.material import CACHE
from bench.report import Results
from bench.run import HERE, Bench, arguments, machine, measure
from bench.work import WORKS, Work
from bench.worker import Failed

MODULES = {"vllm": "vllm", "trl": "trl", "zifio": "zifio"}
"""What a system imports, by how its name begins; else transformers."""
LEFT_OUT = ("llama.cpp F32", "llama.cpp F16")
WANTED = ("a1", "a2", "c1", "c2", "c3", "d1", "d2")
LARGER = {"micro_rows": 32, "micro_tokens": 16384}
"""Micro-batches that fit a GPU, where a work has one size."""


class OnePython(Bench):
    """All systems in this Python."""

    def python(self, system: str) -> Path:
        """This interpreter. Raises Failed where the system is not installed."""
        module = MODULES.get(system.split()[0], "transformers")
        if importlib.util.find_spec(module) is None:
            raise Failed(f"{module} is not installed here")
        return Path(sys.executable)


def on_gpu(work: Work, random: bool) -> Work:
    """The work without llama.cpp, in micro-batches for a GPU, with random weights of SmolLM2's shape if so wished."""
    larger = {key: value for key, value in LARGER.items() if isinstance(work.settings.get(key), int)}
    systems = tuple(system for system in work.systems if system not in LEFT_OUT)
    model = "smollm2-random" if random and work.model == "smollm2" else work.model
    title = work.title + (" (random weights)" if model != work.model else "")
    return dataclasses.replace(work, systems=systems, settings=work.settings | larger, model=model, title=title)


def gpu_name() -> str:
    """What the driver calls the GPU, with its memory and the driver's version."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    """Measure what `--only` asks for of a, c and d."""
    parser = arguments()
    parser.add_argument("--random", action="store_true", help="random weights of SmolLM2's shape: nothing to download")
    parser.add_argument("--device", default="cuda", help="cpu tries the machinery (default: %(default)s)")
    parser.set_defaults(dtype=None)
    options = parser.parse_args()
    options.dtype = "float32" if options.device == "cpu" else "bfloat16"
    natural = ("a2", "c2") if options.random else ()  # random weights never end a reply
    names = [name for name in WANTED if name.startswith(options.only) and name not in natural]
    if not names:
        sys.exit(f"--only {options.only}: no such work here. Wanted one of {', '.join(WANTED)} or its letter.")
    out = options.out or (CACHE / "smoke" if options.smoke else HERE)
    out.mkdir(parents=True, exist_ok=True)
    bench, results = OnePython(options), Results(out, "results-gpu")
    results.details["machine"] |= machine(options.threads, []) | {"GPU": gpu_name(), "type": options.dtype}
    measure(bench, [on_gpu(WORKS[name], options.random) for name in names], results)


if __name__ == "__main__":
    main()
