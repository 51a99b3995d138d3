"""Votes and best-of-k against enumeration of every draw, ties and abstentions among them."""

import random
from collections import Counter
from itertools import combinations
from time import perf_counter

import pytest

from zifio.evaluate.votes import best_of_k, majority_at_k
from zifio.stats import pass_at_k


def voted(answers: list[str | None], right: list[int], draw: tuple[int, ...]) -> float:
    """What one draw is worth, by the definition."""
    votes = Counter(answers[i] for i in draw if answers[i] is not None)
    if not votes:
        return 0.0
    tied = [answer for answer, count in votes.items() if count == max(votes.values())]
    worth = {a: [r for given, r in zip(answers, right, strict=True) if given == a] for a in tied}
    return sum(sum(rights) / len(rights) for rights in worth.values()) / len(tied)


@pytest.mark.parametrize("seed", range(12))
def test_majority_is_the_mean_over_all_draws(seed):
    rng = random.Random(seed)
    n = rng.randint(1, 9)
    answers = [rng.choice(["7", "3", "5", "9", None]) for _ in range(n)]
    right = [int(a == "7" or (a == "3" and rng.random() < 0.5)) for a in answers]  # one answer judged both ways
    for k in range(1, n + 1):
        draws = [voted(answers, right, draw) for draw in combinations(range(n), k)]
        assert majority_at_k(answers, right, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_best_of_k_is_the_mean_over_all_draws(seed):
    rng = random.Random(seed)
    n = rng.randint(1, 8)
    scores, right = [rng.choice([0.1, 0.2, 0.5, 0.9]) for _ in range(n)], [rng.randint(0, 1) for _ in range(n)]
    for k in range(1, n + 1):
        values = []
        for draw in combinations(range(n), k):
            best = [i for i in draw if scores[i] == max(scores[j] for j in draw)]
            values.append(sum(right[i] for i in best) / len(best))
        assert best_of_k(scores, right, k) == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_an_oracle_makes_best_of_k_pass_at_k():
    right = [1, 0, 0, 1, 0, 0, 0]
    for k in range(1, 8):
        assert best_of_k(right, right, k) == pytest.approx(pass_at_k(7, 2, k))


def test_a_vote_of_one_is_pass_at_1_and_two_votes_are_no_better():
    answers, right = ["7", "7", "3", "1"], [1, 1, 0, 0]
    assert majority_at_k(answers, right, 1) == majority_at_k(answers, right, 2) == 0.5
    assert majority_at_k(answers, right, 4) == 1.0
    assert majority_at_k(["7", None], [1, 0], 1) == 0.5, "no answer is no vote, and wrong"
    assert majority_at_k([None, None], [0, 0], 2) == 0.0
    assert majority_at_k(["7", "3"], [1, 0], 2) == 0.5, "a tie is broken by lot"


def test_many_replies_are_counted_at_once():
    rng = random.Random(1)
    answers: list[str | None] = [str(min(rng.randrange(60), rng.randrange(60))) for _ in range(128)]
    began = perf_counter()
    values = [majority_at_k(answers, [a == "3" for a in answers], k) for k in (1, 2, 4, 8, 16, 32, 64, 128)]
    assert perf_counter() - began < 5
    assert values[-1] in (0.0, 0.5, 1.0) and values[0] == pytest.approx(answers.count("3") / 128)
