"""RL on drawings and on what is said about pictures: the ordinary stage, whose sampler and trainer agree on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import context, in_one_and_in_two, metrics, run, save_with_pictures, scene_janus

from zifio.config import ConfigError
from zifio.models.weights import load_janus
from zifio.pictures import from_url
from zifio.tasks.scenes import GlyphCaptions, GlyphDrawings
from zifio.tasks.task import Problem, Verdict

SETTINGS: dict[str, Any] = {
    "from": "base", "gate": False, "steps": 4, "prompts": 2, "group": 6, "checkpoint_every": 2, "format_weight": 0.0,
    "optim": {"lr": 3e-3, "weight_decay": 0.0}, "rows": {"row_tokens": 500, "micro_tokens": 1000},
}  # fmt: skip


class Dark(GlyphDrawings):
    """Any drawing is right by how dark it is."""

    def score(self, problem: Problem, response: str) -> Verdict:
        """Darkness as the reward."""
        dark = 1 - float(np.mean(from_url(response))) / 255
        return Verdict("right" if dark > 0.6 else "wrong", dark, {"accuracy": dark})


class Vowels(GlyphCaptions):
    """A caption is worth its share of vowels."""

    def score(self, problem: Problem, response: str) -> Verdict:
        """That share."""
        share = sum(letter in "aeiou" for letter in response) / max(1, len(response))
        return Verdict("right" if share > 0.5 else "wrong", share, {"accuracy": share})


@pytest.mark.parametrize(("task", "more"), [(Dark(), {}), (Vowels(), {"steps": 8, "sampling": {"max_new_tokens": 12}})])
def test_a_run_is_exact_and_its_log_probs_agree(task: Any, more: dict[str, Any], tmp_path: Path) -> None:
    base = save_with_pictures(tmp_path / "base", scene_janus())
    in_one_and_in_two("rl", SETTINGS | more, tmp_path, 2, task, base=base)
    lines = [line for line in metrics(tmp_path / "whole") if "reward" in line]
    if isinstance(task, Vowels):  # what an untrained tokenizer paints is grey whatever the codes
        assert lines[-1]["reward"] > lines[0]["reward"] + 0.01
    assert max(line["sampling/sampling_logp_difference/max"] for line in lines) < 1e-4
    before, after = load_janus(base), load_janus(tmp_path / "whole" / "model")
    for name, weight in before.vqmodel.named_parameters():
        assert torch.equal(weight, after.vqmodel.get_parameter(name)), "codes mean what they meant"
    assert not torch.equal(before.layers[0].mlp.up_proj.weight, after.layers[0].mlp.up_proj.weight)


def test_guidance_is_another_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.guidance=3 samples another policy"):
        run("rl", SETTINGS | {"sampling": {"guidance": 3.0}}, context(tmp_path, Dark(), base=tmp_path))
