"""What a token costs behind a long past, by how layers mix tokens: time to decode it, and memory held for it.

Six models of one width and depth, differing in their mixers alone: full attention with grouped queries, MLA with its
latents, a sliding window, gated DeltaNet, three of that to one of full attention, and sparse attention with an indexer
(over MLA). Each reads a prompt of random tokens through the engine and then decodes, alone, in a process of its own.
Told are the time of a token (and the processor's, which other work on the machine disturbs less), the bytes of pages
and of state that are held, and by how much the process grew.

    python -m bench.linear                                        # 1k to 32k tokens; linear.json, figures/linear.png
    python -m bench.linear --lengths 256,512 --tokens 8 --out DIR # a little
    python -m bench.linear --one softmax 4096                     # one measurement, as JSON
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
from pathlib import Path
from typing import Any

from bench.run import HERE, machine
from zifio.log import say
from zifio.models.config import AnyConfig, DeepseekV3Config
from zifio.models.hybrids import DeepseekV32Config, HybridConfig
from zifio.models.mixers import Mixer, repeated

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
LAYERS, WINDOW, KEPT, WARM = 8, 512, 512, 8

_SHAPE: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 512, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
    "intermediate_size": 1408,
}  # fmt: skip
_GROUPED: dict[str, Any] = _SHAPE | {
    "num_key_value_heads": 2, "head_dim": 64, "sliding_window": WINDOW, "linear_num_key_heads": 4,
    "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
}  # fmt: skip
_LATENT: dict[str, Any] = _SHAPE | {
    "q_lora_rank": 256, "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    "first_k_dense_replace": LAYERS,
}  # fmt: skip
_INDEXER = {"index_n_heads": 8, "index_head_dim": 32, "index_topk": KEPT}


def _layers(kinds: list[Mixer], context: int) -> AnyConfig:
    return HybridConfig(**_GROUPED, layer_types=kinds, max_position_embeddings=context)


def models(context: int) -> dict[str, AnyConfig]:
    """The shapes by the names of their mixers."""
    return {
        "softmax (GQA)": _layers(["full_attention"] * LAYERS, context),
        "MLA": DeepseekV3Config(**_LATENT, max_position_embeddings=context),
        "sliding": _layers(["sliding_attention"] * LAYERS, context),
        "gated delta": _layers(["linear_attention"] * LAYERS, context),
        "hybrid 3:1": _layers(repeated(LAYERS), context),
        "sparse": DeepseekV32Config(**_LATENT, **_INDEXER, max_position_embeddings=context),
    }


def resident() -> int:
    """Bytes that this process holds, as Linux counts them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, length: int, tokens: int, threads: int) -> dict[str, Any]:
    """One model behind a prompt of so many tokens."""
    import torch

    from zifio.config import Sampling
    from zifio.engine.cache import PAGE, bytes_per_page
    from zifio.engine.config import EngineConfig
    from zifio.engine.engine import Engine, Request
    from zifio.engine.layered import bytes_per_slot, has_state
    from zifio.kernels.operators import give_back
    from zifio.models.count import parameters
    from zifio.models.decoder import Decoder

    torch.set_num_threads(threads)
    config, n_new = models(length + tokens + WARM + 1)[name], tokens + WARM
    engine = Engine(Decoder(config, seed=0), -1, settings=EngineConfig(latent_cache=True, chunk_tokens=512))
    engine.reserve(1, 1)  # packs the weights
    before = resident()
    engine.reserve(1, length + n_new + 1)
    prompt = torch.randint(config.vocab_size or 0, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    engine.submit(Request(prompt, Sampling(max_new_tokens=n_new)))
    began = time.perf_counter()
    while not engine.stats.tokens:
        engine.step()
    prefill_s = time.perf_counter() - began
    give_back()
    times, work = [], []
    while engine.has_work:
        began, begun = time.perf_counter(), time.process_time()
        engine.step()
        times.append(1000 * (time.perf_counter() - began))
        work.append(1000 * (time.process_time() - begun))
    times, work = times[WARM - 1 :], work[WARM - 1 :]
    give_back()  # what is free in the heap
    return {
        "mixer": name, "tokens": length, "ms_per_token": round(statistics.median(times), 4),
        "ms_p10": round(sorted(times)[len(times) // 10], 4), "ms_p90": round(sorted(times)[-1 - len(times) // 10], 4),
        "cpu_ms_per_token": round(statistics.median(work), 4),
        "page_bytes": -(-(length + n_new) // PAGE) * bytes_per_page(config, True),
        "state_bytes": bytes_per_slot(config) if has_state(config) else 0, "grown_bytes": resident() - before,
        "prefill_s": round(prefill_s, 3), "parameters": parameters(config).total,
    }  # fmt: skip


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Time of a token and bytes held, over the tokens before it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name in dict.fromkeys(row["mixer"] for row in rows):
        mine = [row for row in rows if row["mixer"] == name]
        past = [row["tokens"] for row in mine]
        (line,) = left.plot(past, [row["ms_per_token"] for row in mine], marker="o", label=name)
        left.fill_between(
            past, [row["ms_p10"] for row in mine], [row["ms_p90"] for row in mine], color=line.get_color(), alpha=0.15
        )
        right.plot(past, [(row["page_bytes"] + row["state_bytes"]) / 1e6 for row in mine], marker="o", label=name)
    for axis, what in ((left, "ms to decode a token (median, 10 to 90 %)"), (right, "MB of keys, values and state")):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("tokens before it")
        axis.set_title(what, fontsize=9)
    left.legend(fontsize=8)
    drawing.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
    pyplot.close(drawing)


def one_in_its_own(name: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """The best of `--rounds` processes, by its median: what a machine does when nothing else runs on it."""
    command = [sys.executable, "-m", "bench.linear", "--one", name, str(length)]
    command += ["--tokens", str(options.tokens), "--threads", str(options.threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    found = []
    for _ in range(options.rounds):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent)
        if done.returncode:
            sys.exit(f"{name} behind {length} tokens failed:\n{done.stderr[-2000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return min(found, key=lambda row: row["ms_per_token"])


def main() -> None:
    """Measure all that is asked for, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths", default=",".join(map(str, LENGTHS)), help="tokens of prompts (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=64, help="tokens that are timed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each, of which the best (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of torch and the kernels (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE, help="where linear.json and figures/ go")
    parser.add_argument("--one", nargs=2, metavar=("MIXER", "TOKENS"), help="one measurement in this process")
    options = parser.parse_args()
    if options.one:
        name = next((name for name in models(1) if name.startswith(options.one[0])), None)
        if name is None:
            sys.exit(f"--one {options.one[0]}: wanted one of {', '.join(models(1))}.")
        sys.stdout.write(json.dumps(measure(name, int(options.one[1]), options.tokens, options.threads)) + "\n")
        return
    rows = []
    for name in models(1):
        for length in map(int, options.lengths.split(",")):
            rows.append(one_in_its_own(name, length, options))
            held = (rows[-1]["page_bytes"] + rows[-1]["state_bytes"]) / 1e6
            say(f"{name:14} {length:6} tokens: {rows[-1]['ms_per_token']:8.3f} ms a token, {held:8.2f} MB held")
    about = {
        "date": time.strftime("%Y-%m-%d"), "machine": machine(options.threads, []), "python": platform.python_version(),
        "versions": {"torch": importlib.metadata.version("torch"), "zifio": importlib.metadata.version("zifio")},
        "settings": {"tokens": options.tokens, "rounds": options.rounds, "window": WINDOW, "kept": KEPT},
        "model": _SHAPE,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "linear.json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    figure(rows, options.out / "figures" / "linear.png")


if __name__ == "__main__":
    main()
