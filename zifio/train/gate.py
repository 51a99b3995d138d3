"""Is there anything for RL to learn from? A look at the starting model before the first step.

What is read off its replies, and why it may not do, stands in `plan/learn.py`, which `zifio plan MODEL --task` asks
too. The headroom is counted over replies whose whole working is true.
"""

from __future__ import annotations

import json
from pathlib import Path

from zifio.config import ConfigError
from zifio.log import say
from zifio.plan.learn import GATE_PROBLEMS, GATE_SAMPLES, HIGHEST_BASE, Judged, fault_of_start, see
from zifio.seed import stream_seed
from zifio.tasks.episode import Episode, Policy, play
from zifio.tasks.task import Task
from zifio.train.config import RlStage
from zifio.train.draw import VerifierBroke


class TooHard(ConfigError):
    """The gate is shut: there is too little to amplify."""


class TooEasy(ConfigError):
    """The gate is shut: there is too little to gain."""


def check_gate(stage: RlStage, policy: Policy, task: Task, seed: int, folder: Path) -> None:
    """Sample the starting model and write `gate.json`.

    Raises TooHard or TooEasy with the reason when RL cannot work, and VerifierBroke.
    """
    seed = stream_seed(seed, "gate", stage.name)
    problems = [task.problem("train", index, seed) for index in range(GATE_PROBLEMS)]
    episodes_P_G = play(policy, task, problems, GATE_SAMPLES, stage.sampling, seed, "gate")
    seen = see([[judged(episode) for episode in group] for group in episodes_P_G], GATE_SAMPLES)
    if seen.broken > stage.most_errors * seen.replies or seen.broken == seen.replies:
        raise VerifierBroke(
            f"{stage.name}: the verifier of {task.name} broke on {seen.broken} of {seen.replies} replies at "
            f"the gate; for example: {seen.fault}. Mend the verifier."
        )
    found = {
        "pass_at_1": seen.pass_at_1,
        "process_pass_at_1": seen.worked_at_1,
        f"process_pass_at_{GATE_SAMPLES}": seen.worked_at_k,
        "headroom": seen.headroom,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gate.json").write_text(json.dumps(found, indent=1) + "\n")
    if fault := fault_of_start(seen, HIGHEST_BASE):
        kind = TooEasy if fault.is_too_easy else TooHard
        raise kind(
            f"{stage.name}: the gate is shut: {fault} Set gate = false to try all the same. Figures: {folder}/gate.json"
        )
    say(
        f"{stage.name}: gate open: pass@1 {seen.pass_at_1:.2f}; worked out in full {seen.worked_at_1:.2f} of the time, "
        f"at least once in {GATE_SAMPLES} tries on {seen.worked_at_k:.0%} of the problems"
    )


def judged(episode: Episode) -> Judged:
    """An episode as `plan/learn.py` reads it."""
    verdict = episode.verdict
    worked = 0.0 if verdict.outcome == "error" else verdict.parts.get("process", verdict.reward)
    formed = bool(verdict.parts.get("format", 1.0))
    return Judged(verdict.outcome, worked, episode.reply.finish == "length", formed, verdict.reason)
