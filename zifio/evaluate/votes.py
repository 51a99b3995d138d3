"""Choosing one of several replies: by vote (majority@k, self-consistency, arXiv:2203.11171), by a scorer (best-of-k),
or by a vote in which replies weigh as much as their scores (arXiv:2206.02336).

Both are exact expectations over all ways to take k of the n replies that there are, as pass@k is, so no draw is left
to chance; ties are broken by lot, so each tied answer or reply counts its share.

Try it alone:

    python -c "from zifio.evaluate.votes import *; print(majority_at_k(['7', '7', '3', None], [1, 1, 0, 0], 3))"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import groupby
from math import comb


def majority_at_k(answers: Sequence[str | None], right: Sequence[float | int], k: int) -> float:
    """The chance that the commonest answer of k replies is right.

    Replies without an answer (None) do not vote; where nobody votes the result is wrong. Among tied answers the lot
    decides. Replies with one answer that were judged differently lend it the share of right ones.
    """
    n = len(answers)
    assert len(right) == n and 1 <= k <= n, f"n={n}, k={k}"
    votes = Counter(answer for answer in answers if answer is not None)
    wins = Fraction(0)
    for answer, count in votes.items():
        verdicts = [Fraction(r) for given, r in zip(answers, right, strict=True) if given == answer]
        if worth := sum(verdicts, Fraction(0)) / count:
            others = [other for name, other in votes.items() if name != answer]
            wins += worth * _wins(count, others, n - sum(votes.values()), k)
    return float(wins / comb(n, k))


def _wins(count: int, others: Sequence[int], abstain: int, k: int) -> Fraction:
    """In how many of the draws of k an answer given `count` times wins, a draw with s others tied counting 1/(1+s).

    For each number j of its votes: answers given fewer than j times can neither win nor tie, so they and the abstainers
    are one pool; the others are gone through one by one, with at most j votes each.
    """
    total = Fraction(0)
    for j in range(1, min(count, k) + 1):
        pool = abstain + sum(other for other in others if other < j)
        ways: Counter[tuple[int, int]] = Counter({(j, 0): comb(count, j)})  # (replies taken, answers tied) -> draws
        for other in (other for other in others if other >= j):
            longer: Counter[tuple[int, int]] = Counter()
            for (taken, tied), number in ways.items():
                for i in range(min(j, k - taken) + 1):
                    longer[taken + i, tied + (i == j)] += number * comb(other, i)
            ways = longer
        total += sum(
            (Fraction(number * comb(pool, k - taken), 1 + tied) for (taken, tied), number in ways.items()), Fraction(0)
        )
    return total


def weighted_at_k(
    answers: Sequence[str | None], weights: Sequence[float], right: Sequence[float | int], k: int, most: int = 4096
) -> float:
    """The chance that the answer with the greatest total weight among k replies is right; ties and replies without an
    answer are treated as by `majority_at_k`, which this is when all weights are equal.

    Over all draws of k where there are at most `most`, else over so many, evenly spread among them in lexical order.
    """
    n = len(answers)
    assert len(weights) == len(right) == n and 1 <= k <= n, f"n={n}, k={k}"
    worth = {
        answer: Fraction(sum(Fraction(r) for a, r in zip(answers, right, strict=True) if a == answer), count)
        for answer, count in Counter(answers).items()
        if answer is not None
    }
    draws, total = _draws(n, k, most), Fraction(0)
    for draw in draws:
        totals: dict[str, float] = {}
        for place in draw:
            if (answer := answers[place]) is not None:
                totals[answer] = totals.get(answer, 0.0) + weights[place]
        best = max(totals.values(), default=0.0)
        first = [worth[answer] for answer, weight in totals.items() if weight == best]
        total += sum(first, Fraction(0)) / max(len(first), 1)
    return float(total / len(draws))


@lru_cache(maxsize=8)
def _draws(n: int, k: int, most: int) -> list[list[int]]:
    """The draws of k out of n, or `most` of them; the same for every problem and every score, so made once."""
    n_draws = min(comb(n, k), most)
    return [_draw(n, k, number * comb(n, k) // n_draws) for number in range(n_draws)]


def _draw(n: int, k: int, number: int) -> list[int]:
    """The `number`th of the draws of k out of n, in lexical order."""
    draw: list[int] = []
    for place in range(n):
        with_it = comb(n - place - 1, k - len(draw) - 1) if len(draw) < k else 0
        if number < with_it:
            draw.append(place)
        else:
            number -= with_it
    return draw


def best_of_k(scores: Sequence[float], right: Sequence[float | int], k: int) -> float:
    """The chance that the reply with the highest score of k is right; among equal scores the lot decides."""
    n = len(scores)
    assert len(right) == n and 1 <= k <= n, f"n={n}, k={k}"
    ranked = sorted(zip(scores, right, strict=True), key=lambda pair: pair[0])
    total, below = Fraction(0), 0
    for _, group in groupby(ranked, key=lambda pair: pair[0]):
        rights = [Fraction(r) for _, r in group]
        wins = comb(below + len(rights), k) - comb(below, k)  # draws whose best is in this group
        total += wins * sum(rights, Fraction(0)) / len(rights)
        below += len(rights)
    return float(total / comb(n, k))
