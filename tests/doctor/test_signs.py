"""Signs from given curves: each where it should be, silence where nothing can be told or all is well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zifio.doctor.signs import diagnose
from zifio.record.stage import StageRecord

SETTINGS = {"prompts": 8, "group": 4, "steps": 40, "optim": {"lr": 1e-3}, "sampling": {"max_new_tokens": 64}}


def stage(curves: dict[str, Any], kind: str = "rl", n: int = 40, **more: Any) -> StageRecord:
    """A stage whose metrics go evenly from the first to the last of the given values."""
    at = np.linspace(0, 1, n)
    given = {key: np.interp(at, np.linspace(0, 1, len(values)), values) for key, values in curves.items()}
    rows = [{"step": step + 1, **{key: float(given[key][step]) for key in given}} for step in range(n)]
    return StageRecord("it", kind, metrics=rows, **{"state": "done", "done": True, "settings": SETTINGS, **more})


def causes(record: StageRecord) -> list[str]:
    return [one.cause for one in diagnose(record)]


FINE: dict[str, Any] = {
    "pass_at_1": [0.3, 0.9, 0.98], "frac_reward_zero_std": [0.0, 0.5, 0.9], "entropy": [0.6, 0.05, 0.01],
    "completions/mean_length": [10, 30, 35], "completions/clipped_ratio": [0.1, 0.0],
    "sampling/sampling_logp_difference/mean": [0, 0], "n_verifier_errors": [0, 0], "loss": [-0.6, 0.1],
}  # fmt: skip


LIVELY = {"frac_reward_zero_std": [0.3], "entropy": [0.6, 0.5]}


def test_what_goes_well_is_left_alone():
    """Nearly always right in the end: groups without a signal, little entropy and longer replies are no signs then."""
    assert causes(stage(FINE)) == []


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"pass_at_1": [0, 0.01]}, "too_hard"),
        ({"pass_at_1": [0.97, 0.99], "frac_reward_zero_std": [0.95, 1.0]}, "too_easy"),
        ({"pass_at_1": [0.5, 0.5], "frac_reward_zero_std": [0.85, 0.9], "entropy": [0.6, 0.5]}, "dead_groups"),
        ({"pass_at_1": [0.3, 0.3]}, "entropy_collapse"),
        ({"pass_at_1": [0.3, 0.7, 0.7]}, "entropy_collapse"),
        ({"pass_at_1": [0.3, 0.3], "entropy": [0.6, 0.5], "frac_reward_zero_std": [0.3]}, "length_gaming"),
        ({"pass_at_1": [0.3, 0.5], "completions/clipped_ratio": [0.5, 0.5], **LIVELY}, "cut_off"),
        ({"pass_at_1": [0.3, 0.9, 0.2], "completions/mean_length": [20], **LIVELY}, "fallen"),
        ({"sampling/sampling_logp_difference/mean": [0.001, 0.05]}, "gap_growth"),
        ({"n_verifier_errors": [0, 2]}, "verifier_errors"),
    ],
)
def test_each_sign(changes: dict[str, Any], cause: str):
    assert causes(stage(FINE | changes))[0] == cause
    assert causes(stage(FINE | changes, n=5)) in ([], [cause]), "too short to tell, but of what needs no course"


def test_a_loss_that_rises_again():
    assert causes(stage({"loss": [3.0, 2.0, 1.9]}, "sft")) == []
    assert causes(stage({"loss": [3.0, 1.0, 2.5]}, "sft")) == ["divergence"]


def test_experts():
    even = {f"expert_load/1/{expert}": [0.25, 0.25] for expert in range(4)}
    assert causes(stage(even, "pretrain")) == []
    (found,) = diagnose(stage(even | {"expert_load/1/0": [0.25, 0.73, 0.73], "expert_load/1/1": [0.25, 0.01, 0.01],
                                      "expert_load/1/2": [0.25, 0.01, 0.01]}, "pretrain"))  # fmt: skip
    assert found.cause == "expert_collapse" and "layer 1" in found.evidence[0] and "2 of them dead" in found.evidence[0]


@pytest.mark.parametrize(
    ("kind", "message", "cause"),
    [
        ("TooHard", "it: the gate is shut: pass@1 is 0.001, below 0.02: nearly every group", "too_hard"),
        ("TooEasy", "it: the gate is shut: pass@1 is 0.800, above 0.6: RL from a base", "too_easy"),
        ("VerifierBroke", "it: the verifier of sums broke on 9 of 32 rollouts, more than", "verifier_errors"),
        ("Diverged", "it: the loss is nan at step 3. Checkpoints and", "divergence"),
        ("ConfigError", "it: row_tokens: wanted more", "failed"),
    ],
)
def test_how_it_ended(kind: str, message: str, cause: str):
    """An error that ended a stage has one cause, and its own words are the evidence."""
    ended = {"kind": kind, "message": message}
    (found,) = diagnose(StageRecord("it", "rl", settings=SETTINGS, ended=ended))
    assert found.cause == cause and found.evidence[0].startswith(message[:20])


def test_stopped_and_running():
    record = stage({"loss": [1.0, 1.0]}, n=7, state="stopped", done=False)
    (found,) = diagnose(record)
    assert found.cause == "stopped" and "step 7 of 40" in found.evidence[0]
    assert causes(stage({"loss": [1.0, 1.0]}, n=7, state="running", done=False)) == []
