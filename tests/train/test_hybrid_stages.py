"""Models of several mixers through the stages: packed pretraining, recomputed blocks, RL without a gap."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import PRETRAIN, RL, Sevens, context, hybrid, metrics, qwen3_next, run, save_base

from zifio.kernels.library import library
from zifio.models.config import AnyConfig

FAMILIES: dict[str, AnyConfig] = {"qwen3-next": qwen3_next(), "hybrid": hybrid(layer_types=None)}


@pytest.mark.parametrize("name", FAMILIES)
def test_pretraining_with_recomputed_blocks_is_the_same(name: str, tmp_path: Path):
    base = save_base(tmp_path / "base", FAMILIES[name])
    model = FAMILIES[name].model_copy(update={"vocab_size": None}).model_dump(exclude_none=True)
    for recompute in (False, True):
        rows = {"row_tokens": 48, "micro_tokens": 96, "recompute": recompute}
        settings = PRETRAIN | {"model": model, "steps": 4, "rows": rows}
        run("pretrain", settings, context(tmp_path / str(recompute), tokenizer=base))
    one, other = ((tmp_path / str(way) / "model/model.safetensors").read_bytes() for way in (False, True))
    assert one == other


@pytest.mark.skipif(library() is None, reason="no C compiler, or ZIFIO_KERNELS=off")
@pytest.mark.parametrize("name", FAMILIES)
def test_rl_has_no_gap(name: str, tmp_path: Path):
    """Replies behind one copy of their prompt in training, from copies of its state in sampling."""
    base = save_base(tmp_path / "base", FAMILIES[name])
    settings = RL | {"steps": 3, "updates": 1, "engine": {"bitwise": True}}
    run("rl", settings, context(tmp_path / "rl", task=Sevens(), base=base))
    gaps = [line["sampling/sampling_logp_difference/max"] for line in metrics(tmp_path / "rl") if "loss" in line]
    assert gaps == [0, 0, 0]
