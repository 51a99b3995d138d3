"""Is there anything for RL to learn from? A look at the starting model before the first step.

RL amplifies what a base already does now and then. If it is never right there is no reward; if it is nearly always
right there is nothing to gain; and if it is right by guessing only, there is no way of working to amplify, which is
why the headroom is counted over replies whose whole working is true.
"""

from __future__ import annotations

import json
from pathlib import Path

from zifio.config import ConfigError
from zifio.log import say
from zifio.seed import stream_seed
from zifio.tasks.episode import Policy, play
from zifio.tasks.task import Task
from zifio.train.config import RlStage
from zifio.train.draw import VerifierBroke

_PROBLEMS, _SAMPLES = 32, 32
_LOWEST, _HIGHEST, _HEADROOM = 0.02, 0.6, 0.2


class TooHard(ConfigError):
    """The gate is shut: there is too little to amplify."""


class TooEasy(ConfigError):
    """The gate is shut: there is too little to gain."""


def check_gate(stage: RlStage, policy: Policy, task: Task, seed: int, folder: Path) -> None:
    """Sample the starting model and write `gate.json`.

    Raises TooHard or TooEasy with the reason when RL cannot work, and VerifierBroke.
    """
    seed = stream_seed(seed, "gate", stage.name)
    problems = [task.problem("train", index, seed) for index in range(_PROBLEMS)]
    episodes_P_G = play(policy, task, problems, _SAMPLES, stage.sampling, seed, "gate")
    broken = [e.verdict.reason for group in episodes_P_G for e in group if e.verdict.outcome == "error"]
    n = _PROBLEMS * _SAMPLES - len(broken)
    if len(broken) > stage.most_errors * _PROBLEMS * _SAMPLES or not n:
        raise VerifierBroke(
            f"{stage.name}: the verifier of {task.name} broke on {len(broken)} of {_PROBLEMS * _SAMPLES} replies at "
            f"the gate; for example: {broken[0]}. Mend the verifier."
        )
    right = sum(e.verdict.outcome == "right" for group in episodes_P_G for e in group) / n
    worked_P_G = [[e.verdict.parts.get("process", e.verdict.reward) for e in group] for group in episodes_P_G]
    worked = sum(map(sum, worked_P_G)) / n
    worked_once = sum(any(group) for group in worked_P_G) / _PROBLEMS
    found = {
        "pass_at_1": right,
        "process_pass_at_1": worked,
        f"process_pass_at_{_SAMPLES}": worked_once,
        "headroom": worked_once - worked,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gate.json").write_text(json.dumps(found, indent=1) + "\n")
    if fault := _fault(right, worked, worked_once):
        kind, why = fault
        raise kind(
            f"{stage.name}: the gate is shut: {why} Set gate = false to try all the same. Figures: {folder}/gate.json"
        )
    say(
        f"{stage.name}: gate open: pass@1 {right:.2f}; worked out in full {worked:.2f} of the time, at least once in "
        f"{_SAMPLES} tries on {worked_once:.0%} of the problems"
    )


def _fault(right: float, worked: float, worked_once: float) -> tuple[type[ConfigError], str] | None:
    """Why RL would not work, and what to change; None when it should."""
    if right < _LOWEST:
        return TooHard, (
            f"pass@1 is {right:.3f}, below {_LOWEST}: nearly every group is all wrong and gives no "
            "signal. Pretrain longer, raise p_cot, or use easier problems."
        )
    if right > _HIGHEST:
        return TooEasy, (
            f"pass@1 is {right:.3f}, above {_HIGHEST}: RL from a base would show little. Use harder "
            "problems or a lower p_cot."
        )
    if worked_once - worked < _HEADROOM:
        return TooHard, (
            f"replies with a true working come {worked:.3f} of the time and at least once in "
            f"{_SAMPLES} tries on {worked_once:.3f} of the problems: the headroom is below {_HEADROOM}, so right "
            "answers are mostly guesses. Raise p_cot or pretrain until workings are right more often."
        )
    return None
