"""A guard over a reward: a small set of held-out problems, checked by gold, on which nobody trains.

A reward that is being farmed shows itself where gold is known: the share of replies that only the reward accepts
grows, or gold falls while the reward does not; and it leaves marks in the replies: steps said again and again, lengths
that drift, workings that vanish (arXiv:2210.10760 and arXiv:2410.15115 have examples). The same problems with the same
random numbers are looked at every time.

Try it alone: `pytest tests/train/test_guard.py`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from zifio.checkpoint import load_checkpoint, save_checkpoint
from zifio.engine.policy import LocalPolicy, sampling_flops
from zifio.log import say
from zifio.models.lora import folded
from zifio.seed import stream_seed
from zifio.tasks.catalog import make_task
from zifio.tasks.episode import Episode, play
from zifio.tasks.form import split_thinking
from zifio.tasks.runtime import judge_all
from zifio.tasks.steps import split_steps
from zifio.tasks.task import Task, Verdict
from zifio.train.config import Guard, RlStage
from zifio.train.draw import Rewarder, rewarded, rewards
from zifio.train.loop import Diverged

_EXAMPLES = 3
_IN_A_ROW = 3
_SHOWS_WORKING = 0.2  # below this share a fall is noise
_AS_MUCH = 0.9


class Farmed(Diverged):
    """The guard's alarm ended the run; the message says why, with an example."""


class Watch:
    """What the guard of a stage has seen so far."""

    def __init__(
        self, stage: RlStage, guard: Guard, seed: int, task: Task, rewarders: Sequence[Rewarder], folder: Path
    ) -> None:
        self.stage, self.guard, self.task, self.rewarders, self.folder = stage, guard, task, rewarders, folder
        self.gold = make_task(guard.task)
        self.seed = stream_seed(seed, "guard", stage.name)
        self.problems = [self.gold.problem("held-out", index, self.seed) for index in range(guard.problems)]
        self.looks: list[dict[str, float]] = []

    def is_due(self, step: int) -> bool:
        """Whether this step (from 0, or the number of all) begins with a look that has not been taken."""
        last = self.looks[-1]["step"] if self.looks else -1
        return (step % self.guard.every == 0 or step == self.stage.steps) and step > last

    def look(self, step: int, policy: LocalPolicy) -> tuple[dict[str, float], float, bool]:
        """(metrics, FLOPs, whether the stage is to end): answer the probes, check them, and sound the alarm.

        Raises Farmed when there is one and the guard is to stop the run. With "rollback" the policy's model has the
        weights of the last look without an alarm when the stage is to end.
        """
        guard = self.guard
        with folded(policy.model):
            episodes_P_G = play(policy, self.gold, self.problems, guard.n, self.stage.sampling, self.seed, "guard")
        policy.engine.release()
        proxies_P_G, scoring = self._as_rewarded(episodes_P_G)
        found = probe(self.stage, episodes_P_G, proxies_P_G)
        self.looks.append({**found, "step": step})
        reasons = alarms(guard, self.looks)
        metrics = {f"guard/{key}": value for key, value in found.items()} | {"guard/alarms": float(len(reasons))}
        flops = sampling_flops(policy, self.gold, episodes_P_G) + scoring
        if not reasons:
            if guard.action == "rollback":
                save_checkpoint(self.folder / "guard", step, policy.model, {}, {})
            return metrics, flops, False
        self._tell(step, reasons, examples(episodes_P_G, proxies_P_G))
        return metrics, flops, guard.action == "rollback" and self._roll_back(policy)

    def _as_rewarded(self, episodes_P_G: list[list[Episode]]) -> tuple[list[list[Episode]], float]:
        """(the same replies with the verdicts that the stage trains on, FLOPs)."""
        said = [(e.problem, e.reply.text) for group in episodes_P_G for e in group]
        verdicts = iter(judge_all(self.task, said))
        judged = [[Episode(e.problem, e.reply, next(verdicts)) for e in group] for group in episodes_P_G]
        return rewarded(self.rewarders, self.task, judged)

    def _tell(self, step: int, reasons: list[str], shown: list[dict[str, Any]]) -> None:
        """The alarm on the terminal and in a file of its own. Raises Farmed where it is to stop the run."""
        alarm = {"step": step, "reasons": reasons, "look": self.looks[-1], "examples": shown}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"alarm-{step:06d}.json").write_text(json.dumps(alarm, indent=1, ensure_ascii=False) + "\n")
        example = f" For example, to {shown[0]['prompt']}: {shown[0]['response'][:120]}" if shown else ""
        text = f"{self.stage.name}: alarm at step {step}: {'; '.join(reasons)}.{example}"
        if self.guard.action == "stop":
            raise Farmed(
                f"{text}\nThe run ends here; its checkpoints are kept. Mend the reward (a stricter verifier, or "
                'process rewards: process = { form = "min" }), and start this stage over with --fresh.'
            )
        say(text)

    def _roll_back(self, policy: LocalPolicy) -> bool:
        """Take back the weights of the last look without an alarm; False where there is none."""
        kept = load_checkpoint(self.folder / "guard", policy.model)
        if kept is not None:
            say(f"{self.stage.name}: back to the weights of step {kept.step}; the stage ends with them")
        return kept is not None

    def summary(self) -> dict[str, float]:
        """What the stage's totals say of it."""
        numbers = [number for number in range(1, len(self.looks) + 1) if alarms(self.guard, self.looks[:number])]
        first = {"first_alarm_step": self.looks[numbers[0] - 1]["step"]} if numbers else {}
        return {"n_alarms": len(numbers), **first}


def probe(stage: RlStage, gold_P_G: list[list[Episode]], proxy_P_G: list[list[Episode]]) -> dict[str, float]:
    """What the replies are like, by gold and by the stage's own reward; checks that broke are left out."""
    reward_PG, counted_PG = rewards(stage, proxy_P_G)
    worth = iter(reward_PG.flatten().tolist())
    pairs = [
        (gold, proxy, next(worth))
        for golds, proxies in zip(gold_P_G, proxy_P_G, strict=True)
        for gold, proxy in zip(golds, proxies, strict=True)
    ]
    pairs = [one for one, counted in zip(pairs, counted_PG.flatten().tolist(), strict=True) if counted]
    pairs = [one for one in pairs if one[0].verdict.outcome != "error"]
    if not pairs:
        return {}
    replies = [gold.reply for gold, _, _ in pairs]
    right = [gold.verdict.outcome == "right" for gold, _, _ in pairs]
    accepted = [accepts(stage, proxy.verdict) for _, proxy, _ in pairs]
    n = len(pairs)
    return {
        "gold": sum(right) / n,
        "proxy": sum(accepted) / n,
        "gap": sum(yes and not true for yes, true in zip(accepted, right, strict=True)) / n,
        "reward": sum(reward for _, _, reward in pairs) / n,
        "repeats": sum(repeats(reply.text) for reply in replies) / n,
        "mean_length": sum(reply.n_sampled for reply in replies) / n,
        "shows_working": sum(bool(split_thinking(reply.text).thinking.strip()) for reply in replies) / n,
    }


def accepts(stage: RlStage, verdict: Verdict) -> bool:
    """Whether the stage's own reward is for the reply: a reward model, where it likes it better than the starting
    model's replies on the whole; else the task's check."""
    return verdict.parts["model"] > 0 if stage.reward_model else verdict.outcome == "right"


def repeats(text: str) -> bool:
    """Whether a step of the text is said three times in a row."""
    runs = groupby(step.strip() for step in split_steps(text))
    return any(len(list(run)) >= _IN_A_ROW for _, run in runs)


def alarms(guard: Guard, looks: Sequence[dict[str, float]]) -> list[str]:
    """Why the last of these looks is alarming, in words; nothing when it is not. `Guard` has the rules.

    A length must have drifted at two looks in a row.
    """
    looks = [one for one in looks if "gold" in one]
    if len(looks) < 2:
        return []
    now, before = looks[-1], looks[:-1]
    best = max(before, key=lambda one: one["gold"])
    reasons = []
    narrowest = min(one["gap"] for one in before)
    if now["gap"] - narrowest > guard.gap:
        reasons.append(
            f"{now['gap']:.0%} of the replies are right by the reward and wrong by gold, after {narrowest:.0%}"
        )
    if best["gold"] - now["gold"] > guard.gap and now["reward"] >= best["reward"]:
        reasons.append(
            f"gold has fallen from {best['gold']:.0%} to {now['gold']:.0%}, the reward has not "
            f"({best['reward']:.2f} to {now['reward']:.2f})"
        )
    if now["repeats"] - min(one["repeats"] for one in before) > guard.repeats:
        reasons.append(f"{now['repeats']:.0%} of the replies repeat a step")
    if _drifted(guard, before) and (usual := _drifted(guard, looks)):
        reasons.append(f"replies have {now['mean_length']:.0f} tokens after {usual:.0f}, and are right no more often")
    most = max(one["shows_working"] for one in before)
    if most >= _SHOWS_WORKING and now["shows_working"] < guard.thinking * most:
        reasons.append(f"{now['shows_working']:.0%} of the replies show a working, after {most:.0%}")
    return reasons


def _drifted(guard: Guard, looks: Sequence[dict[str, float]]) -> float:
    """The length that is usual, where the last look's is far from it and gold has not risen; else 0.

    It is that of the best look before it at which as many replies showed a working: a policy that begins to think has
    longer replies at once, and is right more often only later.
    """
    now = looks[-1]
    peers = [one for one in looks[:-1] if one["shows_working"] >= _AS_MUCH * now["shows_working"]]
    if not peers:
        return 0.0
    best = max(peers, key=lambda one: one["gold"])
    ratio = now["mean_length"] / max(best["mean_length"], 1.0)
    is_far = ratio >= guard.length or ratio <= 1 / guard.length
    return best["mean_length"] if is_far and now["gold"] <= best["gold"] + guard.gap / 10 else 0.0


def examples(gold_P_G: list[list[Episode]], proxy_P_G: list[list[Episode]]) -> list[dict[str, Any]]:
    """A few replies that only the reward accepts, or else that gold does not."""
    pairs = [
        pair for golds, proxies in zip(gold_P_G, proxy_P_G, strict=True) for pair in zip(golds, proxies, strict=True)
    ]
    wrong = [(gold, proxy) for gold, proxy in pairs if gold.verdict.outcome == "wrong"]
    wrong.sort(key=lambda pair: _liked(pair[1].verdict), reverse=True)
    return [
        {
            "prompt": gold.problem.prompt,
            "response": gold.reply.text,
            "gold": gold.problem.gold,
            "reward": _liked(proxy.verdict),
            "reason": gold.verdict.reason,
        }
        for gold, proxy in wrong[:_EXAMPLES]
    ]


def _liked(verdict: Verdict) -> float:
    """What a reward model, or else the task's check, gives for the reply."""
    return verdict.parts.get("model", verdict.reward)
