"""zifio's worker: rollouts, a GRPO step, pretraining, start-up. Runs in the environment of `make setup`.

`make_engine` and `generate` are all that knows how the engine is called.

Try it alone: `echo '{"go": 0}' | python bench/peers/ours.py WORK.json`
"""

from __future__ import annotations

import os
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

from channel import Absent, Channel, Done, Job, fastest, rounds, run


def main(job: Job, channel: Channel) -> None:
    """Do the job by its kind."""
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as the command line does
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without an installed zifio, too
    import torch

    torch.set_num_threads(job["threads"])
    {"rollouts": rollouts, "startup": startup, "grpo": grpo, "pretrain": pretrain}[job["kind"]](job, channel)


def version() -> str:
    """zifio's."""
    import importlib.metadata

    try:
        return importlib.metadata.version("zifio")
    except importlib.metadata.PackageNotFoundError:
        return "checkout"


def open_model(job: Job) -> tuple[Any, Any]:
    """Model and tokenizer of the job's folder, on its device; weights are fp32, products in what `precision` says."""
    from zifio.engine.policy import open_model
    from zifio.models.device import find_device

    where = find_device(job["device"], "bench")
    model, tokenizer = open_model(job["model"])
    return model.to(where), tokenizer


def precision(job: Job) -> Any:
    """What the recipe calls the job's type."""
    return "bf16" if job["dtype"] == "bfloat16" else "fp32"


def make_engine(job: Job, model: Any, tokenizer: Any) -> Any:
    """An engine for the job. Raises Absent when the engine has no such option as the job sets."""
    from zifio.engine.config import EngineConfig
    from zifio.engine.engine import Engine

    options = job.get("options", {})
    if unknown := sorted(options.keys() - EngineConfig.model_fields.keys()):
        raise Absent(f"the engine has no option {', '.join(unknown)}")
    never = -1  # an end token that is never drawn
    eos_id = never if job["fixed"] else tokenizer.eos_id
    max_rows = len(job["prompts"]) * job["group"]
    return Engine(model, eos_id, max_rows=max_rows, settings=EngineConfig(**options), precision=precision(job))


def generate(engine: Any, job: Job, round_: int, n_new: int) -> list[int]:
    """The length of every reply to the job's prompts, `group` to each."""
    from zifio.config import Sampling

    group = job["group"]
    seeds = [[(round_ * len(job["prompts"]) + p) * group + g for g in range(group)] for p in range(len(job["prompts"]))]
    sampling = Sampling(temperature=job["temperature"], max_new_tokens=n_new)
    return [len(c.tokens) for replies in engine.generate(job["prompts"], seeds, sampling) for c in replies]


def rollouts(job: Job, channel: Channel) -> None:
    """Replies to prompts; log-probs are made along the way, as RL needs them."""
    engine = make_engine(job, *open_model(job))

    def once(round_: int) -> Done:
        lengths = generate(engine, job, round_, job["max_new_tokens"])
        return Done(sum(lengths), lengths)

    channel.ready(version())
    rounds(channel, once)


def startup(job: Job, channel: Channel) -> None:
    """Load and make one token; the parent holds the watch."""
    generate(make_engine(job, *open_model(job)), job, 0, 1)
    channel.ready(version())
    channel.wait()


def grpo(job: Job, channel: Channel) -> None:
    """Steps of the `rl` stage, exactly as `zifio rl` takes them: the look between two steps is where rounds begin."""
    from zifio.config import build
    from zifio.log import RunFolder
    from zifio.tasks.task import Problem, Verdict
    from zifio.train.config import RlStage
    from zifio.train.rl import rl
    from zifio.train.stage import Context

    class Coin:
        """The job's questions; a reply is right by a coin that its text decides, so that every step learns."""

        name = "coin"

        def problem(self, split: str, index: int, seed: int) -> Problem:
            return Problem(f"coin/{index}", job["questions"][index % len(job["questions"])], "")

        def score(self, problem: Problem, response: str) -> Verdict:
            right = zlib.crc32(response.encode()) % 2 == 0
            return Verdict("right" if right else "wrong", float(right), {"format": 0.0})

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = RunFolder(folder)
        n_rollouts = len(job["questions"]) * job["group"]

        def look(model: Any, step: int) -> tuple[dict[str, float], float]:
            if step == 0:
                channel.ready(version(), f"micro-batches of {job['micro_tokens']} tokens")
            else:
                mean = [line for line in log.read_metrics() if "completions/mean_length" in line][-1]
                channel.done(Done(round(mean["completions/mean_length"] * n_rollouts)))
            channel.wait()
            return {}, 0.0

        stage = build(RlStage, grpo_stage(job), "bench")
        model_folder = without_end(job["model"], folder) if job["fixed"] else job["model"]
        rl(stage, Context(folder, 0, Coin(), lambda _: Path(model_folder), lambda _: folder, lambda *_: look))


def grpo_stage(job: Job) -> dict[str, Any]:
    """The settings of the stage: GRPO on policy, token mean over the batch, no KL, as the TRL worker's."""
    adam = {"lr": 1e-6, "betas": [0.9, 0.999], "weight_decay": 0.0, "clip": 1.0}
    return {
        "device": job["device"], "precision": precision(job),
        "kind": "rl", "name": "bench", "from": "base", "steps": 1_000_000, "checkpoint_every": 1_000_000,
        "prompts": len(job["questions"]), "group": job["group"], "updates": 1, "gate": False, "most_errors": 0.0,
        "aggregate": "token", "advantage": "group", "clip_low": 0.2, "clip_high": 0.2, "kl_weight": 0.0,
        "optim": {"kind": "adamw", **adam}, "held_out": {"every": 1}, "format_weight": 0.0,
        "rows": {"row_tokens": job["row_tokens"], "micro_tokens": job["micro_tokens"]},
        "sampling": {"temperature": 1.0, "max_new_tokens": job["max_new_tokens"]}, "engine": {"one_copy": True},
    }  # fmt: skip


def without_end(model: str, beside: Path) -> Path:
    """A folder with the same model whose end token is one that it does not say, so that replies run to their limit."""
    import json

    folder = beside / "without-end"
    folder.mkdir()
    for file in Path(model).iterdir():
        if file.name != "tokenizer_config.json":
            (folder / file.name).symlink_to(file.resolve())
    settings = json.loads(Path(model, "tokenizer_config.json").read_text())
    settings["eos_token"] = unsaid_token(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def unsaid_token(model: str) -> str:
    """An added token that is no end: the last special one of the tokenizer."""
    import json

    added = json.loads(Path(model, "tokenizer.json").read_text())["added_tokens"]
    return [token["content"] for token in added if token["special"]][-1]


def pretrain(job: Job, channel: Channel) -> None:
    """Optimizer steps on given sequences: packed rows, forward, backward, clip, AdamW."""
    import torch

    from zifio.data.pack import Sequence
    from zifio.train.batch import make_batches
    from zifio.train.config import Optim
    from zifio.train.loss import LossTerms, batch_loss
    from zifio.train.optim import Optimizer
    from zifio.train.stage import mean_weighted

    model, tokenizer = open_model(job)
    sequences = mean_weighted([Sequence(one["tokens"], one["weight"]) for one in job["sequences"]])
    optimizer = Optimizer(model, Optim(lr=1e-5, weight_decay=0.1, clip=1.0))
    layouts = {
        f"micro-batches of {n} tokens": make_batches(sequences, job["row_tokens"], n, tokenizer.pad_id)
        for n in job["micro_tokens"]
    }

    def learn(layout: str) -> None:
        for batch in layouts[layout]:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=precision(job) == "bf16"):
                result = batch_loss(model, batch.to(model.device), LossTerms(), 1.0)
            result.loss.backward()
        optimizer.clip()
        optimizer.step(0, 1)
        if model.device.type == "cuda":
            torch.cuda.synchronize()  # the watch stops when it is done, not when it is begun

    best = fastest({name: lambda name=name: learn(name) for name in layouts})

    def once(round_: int) -> Done:
        learn(best)
        return Done(sum(len(sequence.tokens) for sequence in sequences))

    channel.ready(version(), best)
    rounds(channel, once)


if __name__ == "__main__":
    run(main)
