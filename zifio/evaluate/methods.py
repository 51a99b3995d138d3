"""The figures of an evaluation, from its records: pass@k, majority@k and best-of-k, per thinking budget, with cost.

Every figure is a mean over problems with a 95% interval from resampling problems. A check that broke leaves every
denominator; a figure that cannot be computed (pass@k of fewer than k checked replies) is absent.

Try it alone: `pytest tests/evaluate/test_methods.py`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zifio.evaluate.config import Scorer
from zifio.evaluate.votes import best_of_k, majority_at_k
from zifio.stats import pass_at_k, share_interval, wilson_interval

Row = dict[str, Any]
Score = Callable[[Row], float | None]
"""How good a reply looks; None where that cannot be said of it."""

SCORERS: dict[Scorer, Score] = {
    "logp": lambda row: row["logp"] / row["n_tokens"] if "logp" in row and row.get("n_tokens") else None,
    "short": lambda row: -row["n_tokens"] if "n_tokens" in row else None,
    "long": lambda row: row.get("n_tokens"),
    "oracle": lambda row: row["reward"],
}


def summarise(
    rows: Sequence[Row], ks: Sequence[int], scorers: dict[str, Score], seed: int, n_wanted: int | None = None
) -> dict[str, Any]:
    """All figures: of replies without a budget at the top, and one table per budget under `arms`.

    `n_wanted` is how many replies there should be; what is missing is counted. A scorer may be any function
    of a record.
    """
    budgets = sorted({row["budget"] for row in rows if row["budget"] is not None})
    arms = [_arm(rows, budget, ks, scorers, seed) for budget in [*budgets, None]]
    missing = {} if n_wanted is None else {"n_missing": n_wanted - len(rows)}
    return {**arms[-1], **missing, "arms": arms} if budgets else {**arms[-1], **missing}


def right_shares(rows: Sequence[Row], budget: int | None = None) -> dict[str, float]:
    """Share of right ones among the checked replies to each problem."""
    return {problem: sum(map(_right, group)) / len(group) for problem, group in _checked(rows, budget).items()}


def first_replies(rows: Sequence[Row], budget: int | None = None) -> dict[str, bool]:
    """Whether the first reply to each problem is right, where its check did not break."""
    first = (row for row in rows if row["place"] == 0 and row["budget"] == budget and row["outcome"] != "error")
    return {row["problem"]: _right(row) for row in first}


def spent(rows: Sequence[Row]) -> dict[str, float]:
    """Tokens, seconds and cost of all these replies, and of each for every right one among them."""
    found: dict[str, float] = {}
    solved = sum(map(_right, rows))
    for name, key in (("tokens", "n_tokens"), ("seconds", "seconds"), ("cost", "cost")):
        if rows and all(key in row for row in rows):
            found[name] = sum(row[key] for row in rows)
            if solved:
                found[f"{name}_per_solved"] = found[name] / solved
    return found


def use_of_tools(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of the records of episodes in turns among these: how many turns, how many of them call tools and how often, and
    which calls fail."""
    rows = [row for row in rows if "n_turns" in row]
    if not rows:
        return {}
    n_calls = sum(row["n_calls"] for row in rows)
    failed = {"share_calls_failed": sum(row["n_failures"] for row in rows) / n_calls} if n_calls else {}
    return {
        "mean_turns": sum(row["n_turns"] for row in rows) / len(rows),
        "share_calls_tools": sum(row["n_calls"] > 0 for row in rows) / len(rows),
        "mean_calls": n_calls / len(rows),
        **failed,
    }


def _arm(
    rows: Sequence[Row], budget: int | None, ks: Sequence[int], scorers: dict[str, Score], seed: int
) -> dict[str, Any]:
    mine = [row for row in rows if row["budget"] == budget]
    groups = list(_checked(rows, budget).values())
    checked = [row for group in groups for row in group]
    out: dict[str, Any] = {
        "budget": budget,
        "n_problems": len({row["problem"] for row in mine}),
        "n_replies": len(mine),
        "n_errors": len(mine) - len(checked),
    }
    if not checked:
        return out | spent(mine)
    tables: dict[str, Callable[[list[Row], int], float | None]] = {"pass_at_k": _passes, "majority_at_k": _majority}
    tables |= {f"best_of_k_{name}": _best(score) for name, score in scorers.items()}
    for name, figure in tables.items():
        found = {str(k): share for k in ks if (share := _mean(groups, k, figure, seed, name))}
        if found:
            out[name] = found
    if "1" not in out["pass_at_k"]:
        out["pass_at_k"] = {"1": _mean(groups, 1, _passes, seed, "pass_at_k"), **out["pass_at_k"]}
    if all(len(group) == 1 for group in groups):
        out["wilson"] = list(wilson_interval(sum(map(_right, checked)), len(checked)))
    for name, key in (("tokens", "n_tokens"), ("thinking_tokens", "n_thinking_tokens")):
        known = [row[key] for row in checked if key in row]
        if known:
            out[f"mean_{name}"] = sum(known) / len(known)
    out["share_cut_off"] = sum(row.get("finish") == "length" for row in checked) / len(checked)
    out["share_without_answer"] = sum(row["answer"] is None for row in checked) / len(checked)
    return out | use_of_tools(checked) | spent(mine)


def _mean(
    groups: list[list[Row]], k: int, figure: Callable[[list[Row], int], float | None], seed: int, name: str
) -> dict[str, Any] | None:
    """The mean over problems that have k checked replies, and how many these are."""
    shares = [figure(group, k) for group in groups if len(group) >= k]
    known = [share for share in shares if share is not None]
    if not known or len(known) < len(shares):
        return None
    interval = share_interval(known, seed, name, k)
    return {"mean": sum(known) / len(known), "interval": list(interval), "n_problems": len(known)}


def _passes(group: list[Row], k: int) -> float:
    return pass_at_k(len(group), sum(map(_right, group)), k)


def _majority(group: list[Row], k: int) -> float:
    return majority_at_k([row["answer"] for row in group], [_right(row) for row in group], k)


def _best(score: Score) -> Callable[[list[Row], int], float | None]:
    def figure(group: list[Row], k: int) -> float | None:
        scores = [score(row) for row in group]
        known = [value for value in scores if value is not None]
        return best_of_k(known, [_right(row) for row in group], k) if len(known) == len(group) else None

    return figure


def _checked(rows: Sequence[Row], budget: int | None) -> dict[str, list[Row]]:
    """The replies under this budget whose check did not break, by problem."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["budget"] == budget and row["outcome"] != "error":
            groups.setdefault(row["problem"], []).append(row)
    return groups


def _right(row: Row) -> bool:
    return row["outcome"] == "right"
