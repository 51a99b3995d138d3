"""How fast drawings are made: zifio's engine against transformers' Janus `generate`, on one random tiny Janus, CPU.

Both open the same folder and draw as many pictures under the same guidance, painted at the end; each works in a process
of its own that stays alive between its rounds, in turns, after one round that does not count.

Try it alone: `python -m bench.draw --smoke`; a line of draw.json, by its size: `python -m bench.draw`
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.run import HERE, circumstances
from bench.worker import Failed, Worker
from zifio.log import say

SYSTEMS = ("zifio", "transformers")
BOS, EOS, PAD, BOI = 1, 2, 0, 3


def make_model(folder: Path, width: int, layers: int) -> None:
    """A random Janus that draws 64 codes of 256, with a decoder of so many layers of that width, a multiple of 24."""
    from zifio.models.janus import Janus
    from zifio.models.janus_config import JanusConfig
    from zifio.models.weights import save_model

    text = {
        "model_type": "llama", "vocab_size": 256, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": width // 24, "intermediate_size": 3 * width, "max_position_embeddings": 256,
    }  # fmt: skip
    vision = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 4,
        "num_image_tokens": 64, "projection_dim": width,
    }  # fmt: skip
    vq = {
        "num_embeddings": 256, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1, 1, 2],
        "num_res_blocks": 1, "num_patches": 8, "projection_dim": width, "image_token_embed_dim": width,
    }  # fmt: skip
    shape = JanusConfig.model_validate(
        {"text_config": text, "vision_config": vision, "vq_config": vq, "image_token_id": 255}
    )
    save_model(Janus(shape, seed=0), folder)


def job(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What both are asked for."""
    n, length = (2, 8) if options.smoke else (options.prompts, 16)
    prompts = [[BOS, *((7 * p + 3 * t) % 240 + 4 for t in range(length - 2)), BOI] for p in range(n)]
    return {
        "model": str(folder), "prompts": prompts, "group": 2 if options.smoke else options.group,
        "scale": options.scale, "threads": options.threads, "bos_id": BOS, "eos_id": EOS, "pad_id": PAD, "boi_id": BOI,
    }  # fmt: skip


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Codes a second of each system, round by round; of one that fails, the reason is said and nothing is kept."""
    make_model(folder, *((48, 2) if options.smoke else (options.width, options.layers)))
    workers: dict[str, Worker] = {}
    rates: dict[str, list[float]] = {}
    try:
        for system in SYSTEMS:
            work = folder / f"{system}.json"
            work.write_text(json.dumps(job(folder, options) | {"system": system}))
            try:
                workers[system] = Worker(Path(sys.executable), "janus_draw.py", work, folder / f"{system}.log", {})
                say(f"{system} {workers[system].version}, {workers[system].note}")
            except Failed as reason:
                say(f"{system}: absent, {reason}")
        for round_ in range(options.runs + 1):
            for system, worker in workers.items():
                answer = worker.go(round_)
                if round_:
                    rates.setdefault(system, []).append(answer["tokens"] / answer["seconds"])
    finally:
        for worker in workers.values():
            worker.end()
    return rates


def ratio(rates: dict[str, list[float]]) -> float:
    """Of the medians, ours to theirs."""
    ours, theirs = (statistics.median(rates[system]) for system in SYSTEMS)
    return ours / theirs


def keep(out: Path, options: argparse.Namespace, rates: dict[str, list[float]]) -> None:
    """Write the rates into the file, in place of an earlier measurement of this size."""
    size = {"layers": options.layers, "width": options.width, "drawings": options.prompts * options.group}
    about = circumstances(options.threads, "torch", "transformers", "zifio") | {"scale": options.scale}
    codes = {f"{system}_codes_per_s": [round(rate, 1) for rate in rates[system]] for system in SYSTEMS}
    kept = json.loads(out.read_text())["rows"] if out.exists() else []
    others = [row for row in kept if any(row[key] != value for key, value in size.items())]
    rows = [*others, {**size, **about, **codes, "ratio": round(ratio(rates), 2)}]
    rows.sort(key=lambda row: (row["width"], row["drawings"]))
    out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    """Measure and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="one small round, to try the machinery")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=4, help="drawings of each prompt")
    parser.add_argument("--scale", type=float, default=5.0, help="of guidance")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "draw.json", help="the file that takes what was measured")
    options = parser.parse_args(arguments)
    options.runs = 1 if options.smoke else options.runs
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(options, Path(folder))
    for system, found in rates.items():
        middle = statistics.median(found)
        say(f"{system}: {middle:,.0f} codes/s ({min(found):,.0f} to {max(found):,.0f}), {middle / 64:.2f} drawings/s")
    if len(rates) == len(SYSTEMS):
        say(f"zifio draws {ratio(rates):.1f} times as fast")
        if not options.smoke:
            keep(options.out, options, rates)
    return rates


if __name__ == "__main__":
    main()
