"""Choosing among a model's replies by a process reward model, beside the majority's vote on the same draws.

The scores of a reply's steps become one by the least of them, their mean, the last, or their product. Best-of-n alone
hides a bad reward model (arXiv:2501.07301), so how well it finds the first error of a reply is told too, where the task
knows it (ProcessBench, arXiv:2412.06559).

Try it alone: `pytest tests/evaluate/test_rerank.py`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

from zifio.engine.scorer import Scorer, load_scorer
from zifio.evaluate.config import report_key
from zifio.evaluate.replies import answer_of
from zifio.evaluate.votes import best_of_k, majority_at_k, weighted_at_k
from zifio.stats import mean, paired_difference, share_interval
from zifio.tasks.environment import conversation
from zifio.tasks.form import THINK, THOUGHT, split_thinking
from zifio.tasks.steps import Stepwise, called_wrong, first_error, localisation, split_steps, true_labels
from zifio.tasks.task import Problem, Task

Row = dict[str, Any]

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "mean": lambda scores: sum(scores) / len(scores),
    "last": lambda scores: scores[-1],
    "product": prod,
}
"""How the scores of steps become that of a reply."""


def rerank_by_each(
    scorers: Mapping[str, Scorer], task: Task, rows: Sequence[Row], ks: Sequence[int], seed: int
) -> tuple[dict[str, dict[str, Any]], float]:
    """(what choosing by each of several comes to, by its name; FLOPs). In a row `step_scores` has each one's."""
    found, total = {}, 0.0
    scores: dict[str, list[Any]] = {}
    for name, scorer in scorers.items():
        found[name], flops = rerank(scorer, task, rows, ks, seed)
        scores[name] = [row.pop("step_scores") for row in rows]
        total += flops
    for place, row in enumerate(rows):
        row["step_scores"] = {name: mine[place] for name, mine in scores.items()}
    return found, total


def rerank(
    scorer: Scorer, task: Task, rows: Sequence[Row], ks: Sequence[int], seed: int
) -> tuple[dict[str, Any], float]:
    """(what choosing by the scores comes to, FLOPs); the rows, records of replies, get theirs as `step_scores`.

    `table` has a line for each k and way to aggregate: shares of right choices, and their differences to the majority's
    vote on the same problems with 95% intervals. A reply whose check broke takes no part, nor does a problem with fewer
    than k others.
    """
    flops = score_rows(scorer, rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["outcome"] != "error":
            groups.setdefault(row["problem"], []).append(row)
    names = AGGREGATES if scorer.by_step else {"last": AGGREGATES["last"]}
    table = []
    for k in ks:
        large = [group for group in groups.values() if len(group) >= k]
        if k > 1 and large:
            table += _lines(large, k, names, seed)
    found = _located(task, rows) if scorer.by_step else None
    return {"table": table} | ({"localisation": found} if found else {}), flops


def reranked(prm: str, task: Task, rows: Sequence[Row], ks: Sequence[int], seed: int) -> dict[str, Any]:
    """As `rerank_by_each`, of records that keep thinking and answer apart (`examine`), by a folder's reward model."""
    whole = [
        {**row, "response": f"{THINK}{row['thinking']}{THOUGHT}{row['response']}"}
        for row in rows
        if row["budget"] is None
    ]
    return rerank_by_each({report_key(prm): load_scorer(prm)}, task, whole, ks, seed)[0]


def score_rows(scorer: Scorer, rows: Sequence[Row]) -> float:
    """Write the scores of each reply's steps, or its only one, into its record; the FLOPs come back.

    What scores whole replies reads them in one piece, as it was trained.
    """
    texts = [row["response"] for row in rows]
    pieces = [split_steps(text) or [""] for text in texts] if scorer.by_step else [[text] for text in texts]
    asked = [(conversation(_problem(row)), steps) for row, steps in zip(rows, pieces, strict=True)]
    scores, flops = scorer.scores(asked)
    for row, mine in zip(rows, scores, strict=True):
        row["step_scores"] = mine
    return flops


def _lines(groups: list[list[Row]], k: int, names: Iterable[str], seed: int) -> list[dict[str, Any]]:
    """Lines of the table: k replies, scores aggregated in each way, beside the one majority."""
    right_PG = [[row["outcome"] == "right" for row in group] for group in groups]
    answers_PG = [[answer_of(split_thinking(row["response"]).rest) for row in group] for group in groups]
    majority_P = [majority_at_k(answers, right, k) for answers, right in zip(answers_PG, right_PG, strict=True)]
    same = {"n_problems": len(groups), "majority": mean(majority_P)}
    same["majority_interval"] = list(share_interval(majority_P, seed, "majority", k))
    lines = []
    for name in names:
        line: dict[str, Any] = {"k": k, "by": name, **same}
        best_P, weighted_P = [], []
        for group, answers, right in zip(groups, answers_PG, right_PG, strict=True):
            scores = [AGGREGATES[name](row["step_scores"]) for row in group]
            best_P.append(best_of_k(scores, right, k))
            lowest = min(0.0, *scores)  # those of a reward model may be negative, and weights may not
            weighted_P.append(weighted_at_k(answers, [score - lowest for score in scores], right, k))
        for way, share_P in (("best", best_P), ("weighted", weighted_P)):
            gain = paired_difference(share_P, majority_P, seed, "rerank", way, name, k)
            line |= {way: mean(share_P), f"{way}_interval": list(share_interval(share_P, seed, way, name, k))}
            line[f"{way}_gain"] = {"mean": gain.mean, "interval": list(gain.interval)}
        lines.append(line)
    return lines


def _located(task: Task, rows: Sequence[Row]) -> dict[str, Any] | None:
    """How well the scores find first errors, where the task knows them."""
    if not isinstance(task, Stepwise):
        return None
    checked = [row for row in rows if row["outcome"] != "error"]
    called = [called_wrong(row["step_scores"]) for row in checked]
    true = [
        first_error(true_labels(task, _problem(row), split_steps(row["response"]), row["outcome"] == "right"))
        for row in checked
    ]
    found = localisation(called, true)
    return {**found.figures(), "n_error": found.n_error, "n_correct": found.n_correct} if found else None


def _problem(row: Row) -> Problem:
    return Problem(row["problem"], row["prompt"], row["gold"])
