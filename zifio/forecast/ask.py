"""Will it learn? A few hundred replies of a model, judged, and what the verifier does with what it must know.

Try it: `zifio plan runs/quickstart/base/model --task chain_mod --samples 300`
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from zifio.config import ConfigError, Sampling
from zifio.engine.policy import load_policy
from zifio.evaluate.wording import percent
from zifio.plan.learn import Health, outlook, see
from zifio.seed import stream_seed
from zifio.tasks.environment import Interactive, demonstration
from zifio.tasks.episode import Episode, Policy, play
from zifio.tasks.runtime import judge_all
from zifio.tasks.task import Problem, Task
from zifio.train.gate import judged

_HEALTH = 32
"""Golden replies that the verifier is shown."""


def will_it_learn(
    model: str | Path,
    task: Task,
    samples: int,
    group: int,
    prompts: int,
    sampling: Sampling,
    target: float,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures and outlook of RL from this model on this task, from about so many replies, in groups as RL draws them.

    Raises ConfigError when the model cannot be read or there are too few samples for two groups.
    """
    if samples < 2 * group:
        raise ConfigError(f"--samples: wanted at least two groups of {group} replies, came {samples}. Raise it.")
    policy = load_policy(model)
    problems = [task.problem("train", index, stream_seed(seed, "will-it-learn")) for index in range(samples // group)]
    return ask(policy, task, problems, group, prompts, sampling, target, seed)


def ask(
    policy: Policy,
    task: Task,
    problems: list[Problem],
    group: int,
    prompts: int,
    sampling: Sampling,
    target: float,
    seed: int = 0,
) -> dict[str, Any]:
    """`will_it_learn` of a policy on these problems."""
    episodes_P_G = play(policy, task, problems, group, sampling, seed, "will-it-learn")
    found = see([[judged(one) for one in episodes] for episodes in episodes_P_G], group, chance(task, episodes_P_G))
    health = check_health(task, problems)
    what = outlook(found, health, prompts, target)
    return {**asdict(found), "headroom": found.headroom, "verifier": asdict(health), "outlook": asdict(what)}


def chance(task: Task, episodes_P_G: list[list[Episode]]) -> float | None:
    """Share of the replies that are right for the problem behind the one that was asked; None for tasks in turns."""
    if isinstance(task, Interactive) or len(episodes_P_G) < 2:
        return None
    moved = [*episodes_P_G[1:], episodes_P_G[0]]
    pairs = [
        (other[0].problem, episode.reply.text)
        for group, other in zip(episodes_P_G, moved, strict=True)
        for episode in group
    ]
    verdicts = [verdict for verdict in judge_all(task, pairs) if verdict.outcome != "error"]
    return sum(verdict.outcome == "right" for verdict in verdicts) / len(verdicts) if verdicts else None


def check_health(task: Task, problems: list[Problem]) -> Health:
    """Golden replies, to their own problem and to another: the verifier must tell them apart."""
    if isinstance(task, Interactive):
        verdicts = [task.check_gold(problem) for problem in problems[:_HEALTH]]
        return Health(sum(verdict.outcome == "right" for verdict in verdicts), len(verdicts), 0, 0)
    golden = problems[:_HEALTH]
    own = [task.check_gold(problem) for problem in golden]
    texts = [str(demonstration(task, problem, True)[-1]["content"]) for problem in golden]
    pairs = [
        (golden[place - 1], text)
        for place, text in enumerate(texts)
        if golden[place - 1].gold != golden[place].gold  # an answer that is right for both says nothing
    ]
    foreign = judge_all(task, pairs)
    rights = (sum(verdict.outcome == "right" for verdict in verdicts) for verdicts in (own, foreign))
    return Health(next(rights), len(own), next(rights), len(foreign))


def outlook_text(found: dict[str, Any]) -> str:
    """The answer for people."""
    what = found["outlook"]
    low, high = found["pass_at_1_interval"]
    lines = [
        f"will it learn? {what['answer']}: {what['reason']}",
        f"  pass@1 {percent(found['pass_at_1'])} ({percent(low)} to {percent(high)}), pass@{found['k']} "
        f"{percent(found['pass_at_k'])}; groups with a signal {percent(found['signal'])}",
        f"  of {found['replies']} replies to {found['problems']} problems {percent(found['formed'])} have the agreed "
        f"shape, {percent(found['cut'])} are cut off, {found['broken']} could not be checked",
    ]
    verifier = found["verifier"]
    lines.append(
        f"  verifier: {verifier['gold_right']} of {verifier['gold_tries']} golden replies right, "
        f"{verifier['foreign_right']} of {verifier['foreign_tries']} golden replies to other problems"
    )
    if found["chance"] is not None:
        lines.append(f"  by chance: {percent(found['chance'])} of the replies are right for another problem")
    if what["steps"] is not None:
        fast, slow = what["steps_interval"]
        lines.append(f"  to {what['target']:.0%}: about {what['steps']} steps ({fast} to {slow})")
    if what["fix"]:
        lines.append(f"  cheapest fix: {what['fix']}")
    return "\n".join(lines)
