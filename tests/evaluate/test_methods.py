"""Figures from records, by hand."""

import pytest

from zifio.evaluate.methods import SCORERS, first_replies, right_shares, spent, summarise
from zifio.stats import pass_at_k, share_interval, wilson_interval


def rows(groups: list[str], budget: int | None = None) -> list[dict]:
    """A problem for each word: + right, - wrong, a and b the same wrong answers, ! broken; a later reply is longer."""
    made = []
    for number, word in enumerate(groups):
        for place, letter in enumerate(word):
            outcome = {"+": "right", "!": "error"}.get(letter, "wrong")
            answer = {"+": "7", "-": f"w{place}"}.get(letter, letter)
            made.append(
                {
                    "problem": f"p/{number}", "place": place, "budget": budget, "outcome": outcome, "answer": answer,
                    "reward": float(outcome == "right"), "n_tokens": 10 + place, "seconds": 0.5, "cost": 0.25,
                    "logp": -1.0 * (10 + place) if letter == "+" else -2.0 * (10 + place), "finish": "stop",
                }
            )  # fmt: skip
    return made


def test_figures_by_hand():
    found = summarise(rows(["++--", "aab+", "----"]), [1, 2, 4], SCORERS, seed=3)
    shares = [[pass_at_k(4, right, k) for right in (2, 1, 0)] for k in (1, 2, 4)]
    for k, share_P in zip((1, 2, 4), shares, strict=True):
        cell = found["pass_at_k"][str(k)]
        assert cell["mean"] == pytest.approx(sum(share_P) / 3)
        assert cell["interval"] == list(share_interval(share_P, 3, "pass_at_k", k))
    assert found["majority_at_k"]["4"]["mean"] == pytest.approx((1 + 0 + 0) / 3)
    assert found["best_of_k_oracle"]["2"]["mean"] == found["pass_at_k"]["2"]["mean"]
    assert found["best_of_k_logp"]["4"]["mean"] == pytest.approx(2 / 3), "right ones are likelier here"
    assert found["best_of_k_short"]["4"]["mean"] == pytest.approx(1 / 3)
    assert found["best_of_k_long"]["4"]["mean"] == pytest.approx(1 / 3)
    assert (found["n_problems"], found["n_replies"], found["n_errors"]) == (3, 12, 0)
    assert found["mean_tokens"] == 11.5 and found["tokens"] == 138
    assert found["cost_per_solved"] == pytest.approx(12 * 0.25 / 3)
    assert found["seconds_per_solved"] == pytest.approx(2.0)


def test_broken_checks_leave_every_denominator():
    found, clean = (summarise(rows(g), [1, 2], SCORERS, 1) for g in (["+-!", "!!!", "-+!"], ["+-", "-+"]))
    for name in ("pass_at_k", "majority_at_k", "best_of_k_logp"):
        assert found[name]["2"]["mean"] == clean[name]["2"]["mean"]
    assert (found["n_errors"], found["n_problems"]) == (5, 3)
    assert "pass_at_k" not in summarise(rows(["!!"]), [1], SCORERS, 1)


def test_what_cannot_be_computed_is_absent():
    without = [{k: v for k, v in row.items() if k not in ("logp", "cost")} for row in rows(["+-", "--"])]
    found = summarise(without, [1, 2, 4], SCORERS, 1, n_wanted=10)
    assert "best_of_k_logp" not in found and "best_of_k_short" in found
    assert "cost" not in found and "4" not in found["pass_at_k"]
    assert found["n_missing"] == 6
    assert "cost_per_solved" not in spent(rows(["--"]))


def test_one_reply_a_problem_has_a_wilson_interval():
    found = summarise(rows(["+", "+", "-"]), [1], {}, 1)
    assert found["wilson"] == list(wilson_interval(2, 3))
    assert "wilson" not in summarise(rows(["++"]), [1], {}, 1)


def test_budgets_are_apart():
    made = rows(["--", "+-"], 16) + rows(["+-", "++"], 64) + rows(["++", "++"])
    found = summarise(made, [1, 2], {}, 1)
    assert [arm["budget"] for arm in found["arms"]] == [16, 64, None]
    assert [arm["pass_at_k"]["1"]["mean"] for arm in found["arms"]] == [0.25, 0.75, 1.0]
    assert found["pass_at_k"] == found["arms"][-1]["pass_at_k"]
    assert right_shares(made, 16) == {"p/0": 0.0, "p/1": 0.5}
    assert first_replies(made, 64) == {"p/0": True, "p/1": True}


def test_a_scorer_of_ones_own():
    found = summarise(rows(["-+", "+-"]), [1, 2], {"later": lambda row: row["place"]}, 1)
    assert found["best_of_k_later"]["2"]["mean"] == 0.5
