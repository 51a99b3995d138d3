"""What a token costs behind a long past, by how layers mix tokens: time to decode it, and memory held for it.

Six models of one width and depth, differing in their mixers alone: full attention with grouped queries, MLA with its
latents, a sliding window, gated DeltaNet, three of that to one of full attention, and sparse attention with an indexer
(over MLA). Each decodes through the engine, alone, in a process of its own. Told are the time of a token (and the
processor's, which other work on the machine disturbs less), the bytes of pages and of state that are held, and by how
much the process grew.

The prompt is not read: the engine goes through it as ever, only the model's part of it is left out, and what it would
have left in the cache are random numbers. What a token costs does not depend on which keys, values and states those
before it have left; `check` holds both ways beside one another, at a length where reading is quick.

An indexer scores every token before, so sparse attention grows too: it reads narrow keys where full attention reads
whole ones, and attends to a fixed number of them.

    python -m bench.linear                                        # 1k to 32k tokens; linear.json, figures/linear.png
    python -m bench.linear --lengths 256,512 --tokens 8 --out DIR # a little
    python -m bench.linear --one softmax --lengths 4096           # one model's measurements, as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from bench.run import HERE, circumstances
from zifio.config import Sampling
from zifio.engine.cache import PAGE, PagedCache, bytes_per_page
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine, Request
from zifio.engine.layered import Memories, Windows, bytes_per_slot, has_state
from zifio.engine.picked import PickedPages
from zifio.kernels.operators import give_back
from zifio.log import say
from zifio.models.config import AnyConfig, DeepseekV3Config
from zifio.models.count import parameters
from zifio.models.decoder import Decoder, Output
from zifio.models.hybrids import DeepseekV32Config, HybridConfig
from zifio.models.mixers import Mixer, repeated

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
LAYERS, WINDOW, KEPT, WARM = 8, 512, 512, 8
CHECK = 2048
"""Tokens of the prompt that is both read and not."""

LEGEND = {"sparse": "sparse: attends to 512, its indexer scores every token"}
"""What the figure says of a mixer beyond its name."""

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


CACHES = (PagedCache, PickedPages, Windows, Memories)


def fill(cache: Any) -> None:
    """Random numbers wherever a cache holds numbers: pages, windows, memories."""
    for part in vars(cache).values():
        if isinstance(part, torch.Tensor) and part.is_floating_point():
            part.normal_()
        elif isinstance(part, CACHES):
            fill(part)


@contextmanager
def unread(model: Decoder) -> Iterator[None]:
    """Within it the model computes nothing: zeros come out, and the cache stays as it is."""

    def forward(tokens_BT: torch.Tensor, *_: Any) -> Output:
        return Output(torch.zeros(*tokens_BT.shape, model.config.hidden_size), None, ())

    model.forward = forward
    try:
        yield
    finally:
        del model.forward


def measure(name: str, lengths: list[int], tokens: int, reads: bool = False) -> list[dict[str, Any]]:
    """One model behind prompts of so many tokens, which it reads or not."""
    config = models(max(lengths) + tokens + WARM + 1)[name]
    model = Decoder(config, seed=0)
    engine = Engine(model, -1, settings=EngineConfig(latent_cache=True, chunk_tokens=512))
    rows = []
    for length in lengths:
        n_new = tokens + WARM
        engine.reserve(1, 1)  # packs the weights
        before = resident()
        engine.reserve(1, length + n_new + 1)
        prompt = torch.randint(config.vocab_size or 0, (length,), generator=torch.Generator().manual_seed(1)).tolist()
        engine.submit(Request(prompt, Sampling(max_new_tokens=n_new)))
        drawn = engine.stats.tokens
        with nullcontext() if reads else unread(model):
            while engine.stats.tokens == drawn:
                engine.step()
        if not reads:
            fill(engine._cache)
        times, work = [], []
        while engine.has_work:
            began, begun = time.perf_counter(), time.process_time()
            engine.step()
            times.append(1000 * (time.perf_counter() - began))
            work.append(1000 * (time.process_time() - begun))
        times, work = times[WARM - 1 :], work[WARM - 1 :]
        give_back()  # what is free in the heap
        rows.append({
            "mixer": name, "tokens": length, "ms_per_token": round(statistics.median(times), 4),
            "ms_p10": round(sorted(times)[len(times) // 10], 4),
            "ms_p90": round(sorted(times)[-1 - len(times) // 10], 4),
            "cpu_ms_per_token": round(statistics.median(work), 4),
            "page_bytes": -(-(length + n_new) // PAGE) * bytes_per_page(config, True),
            "state_bytes": bytes_per_slot(config) if has_state(config) else 0, "grown_bytes": resident() - before,
            "parameters": parameters(config).total,
        })  # fmt: skip
        engine.release()
    return rows


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Time of a token and bytes held, over the tokens before it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.6))
    for name in dict.fromkeys(row["mixer"] for row in rows):
        mine = [row for row in rows if row["mixer"] == name]
        before = [row["tokens"] for row in mine]
        (line,) = left.plot(before, [row["ms_per_token"] for row in mine], marker="o", label=LEGEND.get(name, name))
        left.fill_between(
            before, [row["ms_p10"] for row in mine], [row["ms_p90"] for row in mine], color=line.get_color(), alpha=0.15
        )
        right.plot(before, [(row["page_bytes"] + row["state_bytes"]) / 1e6 for row in mine], marker="o")
    past = sorted({row["tokens"] for row in rows})
    for axis, what in ((left, "ms to decode a token (median, 10 to 90 %)"), (right, "MB of keys, values and state")):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}" if axis is left else "")
        axis.set_xlabel("tokens before it")
        axis.set_xticks(past, [f"{n / 1024:g}k" for n in past])
        axis.set_title(what, fontsize=9)
    drawing.legend(loc="outside lower center", ncols=3, fontsize=8)
    drawing.set_layout_engine("constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
    pyplot.close(drawing)


def one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model in this process: its rows, and the time of a token behind a prompt that was read and not."""
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"rows": measure(name, [*map(int, options.lengths.split(","))], options.tokens)}
    if options.check:
        read, unread_ = (measure(name, [options.check], options.tokens, reads)[0] for reads in (True, False))
        found["check"] = {key: row["ms_per_token"] for key, row in (("read_ms", read), ("unread_ms", unread_))}
    return found


def in_its_own(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """At each length the best of `--rounds` processes, by its median: what a machine does when nothing else runs."""
    command = [sys.executable, "-m", "bench.linear", "--one", name, "--lengths", options.lengths]
    command += ["--tokens", str(options.tokens), "--threads", str(options.threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    found = []
    for place in range(options.rounds):
        words = [*command, "--check", str(0 if place else options.check)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=HERE.parent)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    every = zip(*(one["rows"] for one in found), strict=True)
    return {**found[0], "rows": [min(rows, key=lambda row: row["ms_per_token"]) for rows in every]}


def main() -> None:
    """Measure all that is asked for, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths", default=",".join(map(str, LENGTHS)), help="tokens of prompts (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=64, help="tokens that are timed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each, of which the best (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of torch and the kernels (default: %(default)s)")
    parser.add_argument(
        "--check",
        type=int,
        default=CHECK,
        help="of a prompt that is read too, 0 for none (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=HERE, help="where linear.json and figures/ go")
    parser.add_argument("--one", metavar="MIXER", help="one model in this process")
    options = parser.parse_args()
    if options.one:
        name = next((name for name in models(1) if name.startswith(options.one)), None)
        if name is None:
            sys.exit(f"--one {options.one}: wanted one of {', '.join(models(1))}.")
        sys.stdout.write(json.dumps(one(name, options)) + "\n")
        return
    rows, checks = [], {}
    for name in models(1):
        found = in_its_own(name, options)
        rows += found["rows"]
        for row in found["rows"]:
            held = (row["page_bytes"] + row["state_bytes"]) / 1e6
            say(f"{name:14} {row['tokens']:6} tokens: {row['ms_per_token']:8.3f} ms a token, {held:8.2f} MB held")
        if options.check:
            checks[name] = {"tokens": options.check, **found["check"]}
            say(f"{name:14} {options.check:6} tokens: {found['check']} by whether the prompt was read")
    about = circumstances(options.threads, "torch", "zifio") | {
        "python": platform.python_version(),
        "settings": {"tokens": options.tokens, "rounds": options.rounds, "window": WINDOW, "kept": KEPT},
        "model": _SHAPE, "check": checks,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "linear.json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    figure(rows, options.out / "figures" / "linear.png")


if __name__ == "__main__":
    main()
