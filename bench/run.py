"""Side by side with transformers on the quickstart's own model: rollouts and pretraining, same work, same process.

Both systems run the same weights (ours opens in transformers), in turns, so that a noisy machine is noisy for both.
Writes RESULTS.md and results.json beside this file.

Run: make bench, or .venv/bin/python bench/run.py [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as the command line does

import torch
import transformers

from zifio.config import Sampling, build
from zifio.data.pack import Sequence
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import TokenizerConfig, train_tokenizer
from zifio.engine.engine import Engine
from zifio.log import say
from zifio.models.config import DeepseekV3Config
from zifio.models.decoder import Decoder
from zifio.models.weights import save_model
from zifio.recipe import Recipe
from zifio.tasks.catalog import make_task
from zifio.tasks.task import Task, shows_working
from zifio.train.batch import make_batches
from zifio.train.loss import LossTerms, batch_loss
from zifio.train.stage import conversation_sequence, mean_weighted, new_model

HERE = Path(__file__).parent
N_PROMPTS, N_GROUP, N_NEW, N_DOCUMENTS = 32, 16, 40, 128

Timed = Callable[[], int]
"""One run of the work; returns the tokens that it processed."""


def quickstart() -> tuple[Task, DeepseekV3Config, Decoder, ChatTokenizer]:
    """Task, shape, model from random weights and tokenizer of recipes/quickstart.toml."""
    raw = tomllib.loads((HERE.parent / "recipes/quickstart.toml").read_text())
    recipe = build(Recipe, raw, "recipes/quickstart.toml")
    base = recipe.named("base")
    task = make_task(recipe.task)
    texts = [task.problem("train", i, 0).prompt + task.document(task.problem("train", i, 0), True) for i in range(256)]
    tokenizer = ChatTokenizer(train_tokenizer(TokenizerConfig(), texts))
    model = new_model(base.model.model_copy(update={"num_nextn_predict_layers": 0}), tokenizer, seed=0)
    return task, model.config, model, tokenizer


def rollouts(task: Task, model: Decoder, theirs: Any, tokenizer: ChatTokenizer) -> dict[str, Timed]:
    """32 prompts x 16 samples of exactly 40 tokens at temperature 1, log-probs included on our side."""
    prompts = [
        tokenizer.encode_chat(
            [{"role": "user", "content": task.problem("train", i, 0).prompt}], generation_prompt=True
        )[0]
        for i in range(N_PROMPTS)
    ]
    never = -1  # no end token, so that both sides do the same work
    engine = Engine(model, never, max_rows=N_PROMPTS * N_GROUP)
    width = max(map(len, prompts))
    left = torch.tensor([[tokenizer.pad_id] * (width - len(p)) + p for p in prompts for _ in range(N_GROUP)])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts for _ in range(N_GROUP)])

    def ours() -> int:
        seeds = [[p * N_GROUP + g for g in range(N_GROUP)] for p in range(N_PROMPTS)]
        found = engine.generate(prompts, seeds, Sampling(max_new_tokens=N_NEW))
        return sum(len(c.tokens) for group in found for c in group)

    @torch.inference_mode()
    def peer() -> int:
        out = theirs.generate(
            left, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, min_new_tokens=N_NEW,
            max_new_tokens=N_NEW, pad_token_id=tokenizer.pad_id, eos_token_id=None, use_cache=True,
        )  # fmt: skip
        return int(out[:, width:].numel())

    return {"zifio": ours, "transformers": peer}


def pretraining(task: Task, model: Decoder, theirs: Any, tokenizer: ChatTokenizer) -> dict[str, Timed]:
    """Forward and backward on 128 documents (no MTP, no optimizer): packed rows against padded rows."""
    sequences: list[Sequence] = []
    for i in range(N_DOCUMENTS):
        problem = task.problem("train", i, 1)
        sequences.append(
            conversation_sequence(tokenizer, problem.prompt, task.document(problem, shows_working(i, 1, 0.25)))
        )
    batches = make_batches(mean_weighted(sequences), 100, 8192, tokenizer.pad_id)
    n_tokens = sum(batch.n_tokens for batch in batches)
    width = max(len(s.tokens) for s in sequences)
    padded = torch.tensor([s.tokens + [tokenizer.pad_id] * (width - len(s.tokens)) for s in sequences])
    mask = torch.tensor([[1] * len(s.tokens) + [0] * (width - len(s.tokens)) for s in sequences])
    labels = torch.tensor(
        [
            [t if w else -100 for t, w in zip(s.tokens, s.weight, strict=True)] + [-100] * (width - len(s.tokens))
            for s in sequences
        ]
    )

    def ours() -> int:
        for batch in batches:
            batch_loss(model, batch, LossTerms(), 1.0).loss.backward()
        model.zero_grad(set_to_none=True)
        return n_tokens

    def peer() -> int:
        theirs(padded, attention_mask=mask, labels=labels).loss.backward()
        theirs.zero_grad(set_to_none=True)
        return n_tokens

    return {"zifio": ours, "transformers": peer}


def measure(work: str, systems: dict[str, Timed], runs: int) -> list[dict[str, Any]]:
    """Tokens per second of every system, in turns, after one unmeasured run each."""
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for name, once in systems.items():
        once()
        say(f"{work}: {name} warm")
    for _ in range(runs):
        for name, once in systems.items():
            began = time.perf_counter()
            n_tokens = once()
            rates[name].append(n_tokens / (time.perf_counter() - began))
    from importlib.metadata import version

    return [
        {
            "work": work,
            "system": name,
            "version": version(name),
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "unit": "tokens/s",
            "runs": runs,
        }
        for name, values in rates.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Results as a page of markdown with the ratio of medians."""
    lines = [
        "# Side by side",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, fp32. Written by `make bench`.",
        "",
        "| work | system | version | median tokens/s | min | max | runs | against transformers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        peer = next(r for r in rows if r["work"] == row["work"] and r["system"] == "transformers")
        lines.append(
            f"| {row['work']} | {row['system']} | {row['version']} | {row['median']:,.0f} | {row['min']:,.0f} "
            f"| {row['max']:,.0f} | {row['runs']} | {row['median'] / peer['median']:.2f}x |"
        )
    return "\n".join(lines) + "\n"


def _processor() -> str:
    """The processor's name where Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each system (default: 5)")
    runs = parser.parse_args().runs
    task, _, model, tokenizer = quickstart()
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = measure("rollouts, 32 x 16 x 40 tokens", rollouts(task, model, theirs, tokenizer), runs)
    rows += measure("forward and backward, 128 documents", pretraining(task, model, theirs, tokenizer), runs)
    (HERE / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    (HERE / "RESULTS.md").write_text(table(rows))
    say(table(rows))


if __name__ == "__main__":
    main()
