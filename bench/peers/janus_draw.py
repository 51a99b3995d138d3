"""Drawings by a Janus, under guidance: zifio's engine or transformers' `generate`, as the job says.

Try it alone: `echo '{"go": 0}' | python bench/peers/janus_draw.py WORK.json`
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from channel import Channel, Done, Job, fastest, rounds, run


def main(job: Job, channel: Channel) -> None:
    """Rounds of as many drawings as the job says."""
    import torch

    torch.set_num_threads(job["threads"])
    {"zifio": ours, "transformers": theirs}[job["system"]](job, channel)


def ours(job: Job, channel: Channel) -> None:
    """The engine; a drawing and its blank twin are two rows of it."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without an installed zifio, too
    import importlib.metadata

    from zifio.config import Sampling
    from zifio.engine.engine import Engine
    from zifio.engine.guide import Drawing
    from zifio.models.janus_config import unconditioned
    from zifio.models.weights import load_janus

    model = load_janus(job["model"])
    n_codes = model.shape.vq_config.n_tokens
    engine = Engine(model, job["eos_id"])
    kept = (job["bos_id"], job["boi_id"])
    drawings = [Drawing(job["scale"], tuple(unconditioned(p, kept, job["pad_id"]))) for p in job["prompts"]]

    def once(number: int) -> Done:
        group = job["group"]
        seeds = [[(number * 1000 + p) * group + i for i in range(group)] for p in range(len(drawings))]
        sampling = Sampling(max_new_tokens=n_codes)
        replies = engine.generate(job["prompts"], seeds, sampling, drawings)
        model.paint(torch_rows([one.tokens for some in replies for one in some]))
        return Done(len(drawings) * group * n_codes)

    channel.ready(importlib.metadata.version("zifio"), "one batch, pages")
    rounds(channel, once)


def torch_rows(tokens: list[list[int]]) -> Any:
    """As a tensor."""
    import torch

    return torch.tensor(tokens)


def theirs(job: Job, channel: Channel) -> None:
    """`generate(generation_mode="image")` with the quicker of its caches."""
    import torch
    import transformers

    model = transformers.JanusForConditionalGeneration.from_pretrained(job["model"]).eval()
    ids = torch.tensor(job["prompts"])
    settings = transformers.GenerationConfig(
        bos_token_id=job["bos_id"], eos_token_id=job["eos_id"], pad_token_id=job["pad_id"], do_sample=True,
        guidance_scale=job["scale"], num_return_sequences=job["group"], max_length=ids.shape[1] + 1,
        generation_kwargs={"boi_token_id": job["boi_id"]},
    )  # fmt: skip
    arguments = {"attention_mask": torch.ones_like(ids), "generation_mode": "image", "generation_config": settings}

    def draw(cache: str) -> Any:
        more = {"cache": transformers.DynamicCache(config=model.config.text_config)} if cache == "dynamic" else {}
        return model.generate(input_ids=ids, **arguments, **more)

    best = fastest({name: (lambda name=name: draw(name)) for name in ("static", "dynamic")})

    def once(number: int) -> Done:
        torch.manual_seed(number)
        with torch.no_grad():
            drawn = draw(best)
            model.decode_image_tokens(drawn)
        return Done(drawn.numel())

    channel.ready(transformers.__version__, f"{best} cache")
    rounds(channel, once)


if __name__ == "__main__":
    run(main)
