"""A whole recipe of labelled pictures, tiny: who judges is a stage, in looks, in evaluation and as the reward of RL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from idx_files import labelled_files

from zifio.config import ConfigError
from zifio.recipe import Run, recipe_of, references

VQ = {
    "embed_dim": 4, "num_embeddings": 24, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1],
    "num_res_blocks": 1, "num_patches": 2,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 4, "patch_size": 2,
    "num_image_tokens": 4,
}  # fmt: skip


def tables(files: Path) -> dict[str, Any]:
    """The recipe as plain tables, of pictures of 4 pixels and drawings of four codes."""
    data, held_out = (str(files / f"{stem}-images-idx3-ubyte.gz") for stem in ("train", "t10k"))
    drawings = {"name": "label_drawings", "judge": "judge", "path": str(files)}
    rows = {"row_tokens": 64, "micro_tokens": 512}
    stages: list[dict[str, Any]] = [
        {"kind": "tokenizer", "name": "tokenizer", "tokenizer": {"kind": "bpe", "vocab_size": 300, "pictures": True}},
        {"kind": "classifier", "name": "judge", "data": data, "steps": 60, "pictures": 16, "optim": {"lr": 1e-2},
         "model": {"image_size": 4, "channels": [4], "hidden_size": 4}},
        {"kind": "vq", "name": "codes", "data": data, "steps": 2, "pictures": 8, "model": VQ},
        {"kind": "janus", "name": "janus", "tokenizer": "tokenizer", "codes": "codes", "judge": "judge", "model": LLAMA,
         "vision": VISION, "data": data, "held_out_data": held_out, "steps": 2, "rows": rows, "trains": "all",
         "examples": {"understanding": 4, "drawing": 4}, "held_out": {"every": 2, "problems": 6, "n": 1},
         "scales": [1.0, 2.0], "sampling": {"max_new_tokens": 4}},
        {"kind": "rl", "name": "drawn", "from": "janus", "task": drawings, "steps": 1, "prompts": 2, "group": 3,
         "gate": False, "rows": {"row_tokens": 128}, "sampling": {"max_new_tokens": 4}, "optim": {"lr": 1e-4},
         "held_out": {"problems": 4}},
        {"kind": "eval", "name": "drawings", "models": ["janus", "drawn"], "task": drawings, "problems": 6, "n": 2,
         "ks": [1], "sampling": {"max_new_tokens": 4, "guidance": 2.0}},
    ]  # fmt: skip
    return {"name": "tiny", "task": {"name": "picture_labels", "path": str(files)}, "stage": stages}


def test_a_stage_judges_drawings_wherever_they_are_drawn(tmp_path: Path) -> None:
    recipe = recipe_of(tables(labelled_files(tmp_path, side=4)), "tiny")
    run = Run(recipe, tmp_path / "run")
    for stage in recipe.stage:
        run.stage(stage)
    found = json.loads((run.folder / "drawings" / "results.json").read_text())
    for model in ("janus", "drawn"):
        one = found[model]
        assert one["n_errors"] == 0 and one["format_rate"] == 1 and one["spread"] >= 0
        assert one["real_pass_at_1"] > 0.8, "the judge tells levels apart"
    line = next(json.loads(row) for row in (run.folder / "drawn" / "metrics.jsonl").read_text().splitlines())
    assert "reward" in line and all(run.is_done(stage) for stage in recipe.stage)
    drawn = recipe.named("drawn")
    assert drawn is not None and references(drawn) == ["judge", "janus"]


def test_a_judge_must_be_a_classifier(tmp_path: Path) -> None:
    given = tables(labelled_files(tmp_path, side=4))
    for place, key in ((3, "judge"), (5, "task")):
        wrong = json.loads(json.dumps(given))
        if key == "task":
            wrong["stage"][place]["task"]["judge"] = "codes"
        else:
            wrong["stage"][place]["judge"] = "codes"
        with pytest.raises(ConfigError, match="judge: wanted a stage that makes labels of pictures, came 'codes'"):
            recipe_of(wrong, "tiny")
    given["stage"][5]["task"]["judge"] = "jugde"
    with pytest.raises(ConfigError, match="came 'jugde'"):
        recipe_of(given, "tiny")
