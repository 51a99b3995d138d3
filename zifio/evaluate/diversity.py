"""How much a model can still say: what distillation and RL may cost beside what they gain.

    distinct right   different right replies over right replies, of n drawn to a problem: 1 when none comes twice
    entropy          nats of a whole reply and of a token: the mean of -log p over replies drawn from p
    coverage         share of the right answers there are that n replies find; of a task with one, problems ever solved

    spread           how different drawings for one prompt are, in the hidden layer of the classifier that judges them

The first depends on n and on how many replies are right, for more of them meet more often. So it is also given for k
right replies drawn from those there are, which is exact (rarefaction, Hurlbert 1971) and compares models that are not
equally good. A task says in `n_right` how many right answers each problem has (`splits`: 1000).

Of drawings that a classifier judges also what it makes of real pictures for the same prompts: the mark to compare with.

Try it alone: `pytest tests/evaluate/test_diversity.py`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb
from typing import Any, Protocol, runtime_checkable

from zifio.config import Sampling
from zifio.stats import mean, share_interval
from zifio.tasks.episode import Episode, Reply
from zifio.tasks.form import THINK, THOUGHT
from zifio.tasks.task import Problem, Task, Verdict, parse_response


def diversity(
    episodes_P_G: Sequence[Sequence[Episode]], task: Task, sampling: Sampling, ks: Sequence[int], seed: int = 0
) -> dict[str, Any]:
    """The figures of one model, means over problems; those that cannot be computed are absent.

    Entropy is that of the policy that was sampled from, so there is none of greedy replies, nor of filtered ones.
    """
    checked_P = [[e for e in group if e.verdict.outcome != "error"] for group in episodes_P_G]
    right_P = [[e.reply.text for e in group if e.verdict.outcome == "right"] for group in checked_P]
    out: dict[str, Any] = {}
    ratios = [len(set(right)) / len(right) for right in right_P if right]
    if ratios:
        out["distinct_right"] = mean(ratios)
        out["distinct_right_interval"] = list(share_interval(ratios, seed, "distinct"))
    at_k = {str(k): [distinct_of(Counter(r), k) / k for r in right_P if len(r) >= k] for k in ks if k > 1}
    if any(at_k.values()):
        out["distinct_right_at_k"] = {k: mean(shares) for k, shares in at_k.items() if shares}
        out["distinct_right_at_k_problems"] = {k: len(shares) for k, shares in at_k.items() if shares}
    n_right: int = getattr(task, "n_right", 1)
    answers = [{_answer(text) for text in right} for right, group in zip(right_P, checked_P, strict=True) if group]
    if answers:  # the one right answer may be spelled in several ways
        found = [min(len(different), n_right) / n_right for different in answers]
        out |= {"coverage": mean(found), "coverage_interval": list(share_interval(found, seed, "coverage"))}
        out["coverage_possible"] = min(1.0, max(map(len, checked_P)) / n_right)
    return out | _entropy([e for group in episodes_P_G for e in group], sampling) | of_drawings(episodes_P_G, task)


@runtime_checkable
class Judged(Protocol):
    """A task of drawings whose judge can tell how different they are."""

    def spread(self, drawn: Sequence[tuple[str, str]]) -> float | None:
        """Of (prompt, picture as a data URL)."""
        ...


def of_drawings(episodes_P_G: Sequence[Sequence[Episode]], task: Task) -> dict[str, Any]:
    """`spread` of the drawings; of the problems' own pictures `real_spread`, and `real_pass_at_1`, how many are right.

    Nothing of other tasks."""
    if not isinstance(task, Judged):
        return {}
    drawn = [(e.problem.prompt, e.reply.text) for group in episodes_P_G for e in group if e.verdict.parts.get("format")]
    problems = [group[0].problem for group in episodes_P_G if group]
    real = [(problem.prompt, task.document(problem, shows_working=False)) for problem in problems]
    verdicts = [task.score(problem, url) for problem, (_, url) in zip(problems, real, strict=True)]
    found = {"spread": task.spread(drawn), "real_spread": task.spread(real)}
    found["real_pass_at_1"] = mean([float(verdict.outcome == "right") for verdict in verdicts]) if verdicts else None
    return {key: value for key, value in found.items() if value is not None}


def diversity_of_records(
    rows: Sequence[dict[str, Any]], task: Task, sampling: Sampling | None, ks: Sequence[int], seed: int = 0
) -> dict[str, Any]:
    """As `diversity`, of the records of an exam (`examine`): of its replies without a thinking budget.

    `sampling` is None where the log-probs may be of another policy than the one that was sampled from. Those of a
    server's reply that shows a thinking may cover the answer alone, so they tell nothing.
    """
    groups: dict[str, list[Episode]] = {}
    for row in rows:
        if row["budget"] is None:
            groups.setdefault(row["problem"], []).append(_episode(row, sampling is not None))
    in_order = [groups[problem] for problem in sorted(groups)]  # not as they came: resampling goes by place
    return diversity(in_order, task, sampling or Sampling(), ks, seed)


def _episode(row: dict[str, Any], with_logps: bool) -> Episode:
    """The episode that a record tells of, as far as it is counted here; its log-probs are one sum."""
    is_partial = "served" in row and row["thinking"]
    logps = [row["logp"]] if with_logps and "logp" in row and not is_partial else []
    text = f"{THINK}{row['thinking']}{THOUGHT}{row['response']}"
    reply = Reply([], text, logps, sampled=[True] * row.get("n_tokens", 0))
    return Episode(Problem(row["problem"], row["prompt"], row["gold"]), reply, Verdict(row["outcome"], row["reward"]))


def distinct_of(counts: Counter[str], k: int) -> float:
    """How many kinds k draws without replacement show on average: the sum over kinds of 1 - C(n - c, k) / C(n, k)."""
    n = counts.total()
    assert 1 <= k <= n, f"k={k} of {n}"
    return sum(1 - comb(n - count, k) / comb(n, k) for count in counts.values())


def _entropy(episodes: Sequence[Episode], sampling: Sampling) -> dict[str, float]:
    """Of replies whose log-probs are known."""
    known = [episode.reply for episode in episodes if episode.reply.logps and episode.reply.n_sampled]
    if not known or sampling.temperature == 0 or sampling.off_policy():
        return {}
    surprise = [-sum(reply.logps) for reply in known]
    return {
        "reply_entropy": mean(surprise),
        "token_entropy": sum(surprise) / sum(reply.n_sampled for reply in known),
    }


def _answer(text: str) -> str:
    """What stands in the answer tags, or the whole reply."""
    parsed = parse_response(text)
    return parsed[1] if parsed else text
