"""Filters: each does what it says, in order, and every row is kept or counted once."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from zifio.config import ConfigError, build
from zifio.data.clean import FILTERS, Curated, Curation, curate, pass_rates, script_of, scripts


def row(problem: str, response: str, outcome: str = "right", n_tokens: int = 10, **more: Any) -> dict[str, Any]:
    """A drawn reply."""
    whole = {"prompt": f"{problem}?", "response": response, "outcome": outcome, "parts": {}, "finish": "stop"}
    return {"problem": problem, **whole, "n_tokens": n_tokens, **more}


def curated(rows: list[dict[str, Any]], per_problem: int = 1000, most: int | None = None, **settings: Any) -> Curated:
    """What is kept with these settings, with the books balanced."""
    found = curate(rows, "right", per_problem, most, build(Curation, settings, "test"))
    assert tuple(found.dropped) == FILTERS and min(found.dropped.values()) >= 0
    assert len(found.rows) + sum(found.dropped.values()) == len(rows)
    return found


def texts(found: Curated) -> list[str]:
    return [one["response"] for one in found.rows]


def test_length():
    rows = [row("a", str(n), n_tokens=n) for n in (3, 5, 9, 12)]
    found = curated(rows, min_tokens=5, max_tokens=9)
    assert texts(found) == ["5", "9"] and found.dropped["length"] == 2


def test_scripts_of_letters():
    """By the first word of Unicode's names; digits, signs and spaces are of none."""
    assert scripts("Aé 12+3=5 ж 中文 π ひ한") == Counter(latin=2, cjk=2, cyrillic=1, greek=1, hiragana=1, hangul=1)
    assert script_of("1+2=3") is None and script_of("Сколько будет 2+2? sum") == "cyrillic"


def test_language_mixing():
    """More letters of other scripts than allowed; a reply without letters mixes nothing."""
    rows = [
        row("a", "the angle π is small and the sum is right"),
        row("a", "the sum 总和 is 数 right"),
        row("a", "1+2=3"),
        row("b", "всё верно", prompt="Сколько?"),
        row("b", "all is right", prompt="Сколько?"),
    ]
    assert texts(curated(rows, script="latin")) == [rows[0]["response"], "1+2=3", "all is right"]
    assert texts(curated(rows, script="prompt", most_foreign=0.0)) == ["1+2=3", "всё верно"]
    with pytest.raises(ConfigError, match=r"script: wanted prompt or the first word.*latyn"):
        curated(rows, script="latyn")


def variants(seed: int, n_words: int = 120, changes: int = 1) -> list[str]:
    """A text and one that differs in some words."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(n_words)]
    other = list(words)
    for place in rng.sample(range(n_words), changes):
        other[place] = "zzz"
    return [" ".join(words), " ".join(other)]


def similarity(one: str, other: str, n: int) -> float:
    """Jaccard of character n-grams, straight from the definition."""
    a, b = ({text[i : i + n] for i in range(len(text) - n + 1)} for text in (one, other))
    return len(a & b) / len(a | b)


def test_near_duplicates_within_a_problem_or_anywhere():
    one, other = variants(1)
    assert similarity(one, other, 5) > 0.9
    rows = [row("a", one), row("a", other), row("b", other), row("b", one.upper() + " ")]
    found = curated(rows, near_duplicates={})
    assert [r["problem"] + str(texts(found).index(r["response"])) for r in found.rows] == ["a0", "b1"]
    assert found.dropped["near_duplicate"] == 2
    assert texts(curated(rows, near_duplicates={"within": "all"})) == [one]
    assert len(curated(rows, near_duplicates={"similarity": 1.0}).rows) == 4


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.9])
def test_no_pair_so_similar_is_left_and_nothing_else_is_dropped(wanted: float):
    """Against all pairs compared: what MinHash misses is at most one in a hundred, what it drops had a cause."""
    rows, pairs = [], 0
    for seed in range(120):
        one, other = variants(seed, changes=1 + seed % 40)
        rows += [row("a", one), row("a", other)]
        pairs += similarity(one, other, 5) >= wanted
    found = curated(rows, near_duplicates={"similarity": wanted})
    kept = set(texts(found))
    dropped = [(a["response"], b["response"]) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    wrong = [pair for pair in dropped if pair[1] not in kept and similarity(*pair, 5) < wanted]
    assert not wrong and all(one in kept for one, _ in dropped)
    assert 0.98 * pairs <= found.dropped["near_duplicate"] <= pairs and pairs > 5


def test_difficulty_is_the_pass_rate_over_all_that_was_checked():
    rows = [row("a", "1"), row("a", "2", "wrong"), row("a", "3", "error"), row("b", "4"), row("c", "5", "error")]
    assert pass_rates(rows) == {"a": 0.5, "b": 1.0}
    assert [one["pass_rate"] for one in curated(rows).rows] == [0.5, 1.0]


def drawn(n_right_of_8: dict[str, int]) -> list[dict[str, Any]]:
    """Eight replies to each problem, so many of them right."""
    return [
        row(problem, f"{problem}{i}", "right" if i < right else "wrong")
        for problem, right in n_right_of_8.items()
        for i in range(8)
    ]


def test_balance_takes_the_later_replies_of_a_grade_with_too_many():
    """Ten easy problems with 80 right replies beside two hard ones with 4: easy ones keep one reply each before two."""
    rows = drawn({f"easy{i}": 8 for i in range(10)} | {"hard0": 2, "hard1": 2})
    found = curated(rows, balance={"most_share": 0.75})
    per = Counter(one["problem"][:4] for one in found.rows)
    assert per["hard"] == 4 and per["easy"] == 12 and found.dropped["balance"] == 68
    each = Counter(one["problem"] for one in found.rows if one["problem"].startswith("easy"))
    assert sorted(each.values()) == [1] * 8 + [2] * 2 and len(each) == 10


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 1.0])
def test_no_grade_makes_more_than_its_share_and_no_more_goes_than_must(share: float):
    rows = drawn({f"p{i}": i % 8 + 1 for i in range(40)})
    grades = Counter(min(int(one["pass_rate"] * 4), 3) for one in curated(rows, balance={"most_share": share}).rows)
    total, allowed = sum(grades.values()), max(share, 1 / 4)
    assert max(grades.values()) <= allowed * total + 1e-9
    every = Counter(min(int(one["pass_rate"] * 4), 3) for one in curated(rows).rows)
    capped = max(grades.values())
    if share < 1 and capped < max(every.values()):
        more = {grade: min(n, capped + 1) for grade, n in every.items()}
        assert max(more.values()) > allowed * sum(more.values()), "one more would have been too many"


def test_filters_go_in_order_and_the_earlier_row_wins():
    """A long reply does not use up its problem's quota; what is dropped first is not counted again."""
    rows = [row("a", "long", n_tokens=99), row("a", "x"), row("a", "x"), row("a", "y"), row("a", "z", "wrong")]
    found = curated(rows, per_problem=1, max_tokens=50)
    assert texts(found) == ["x"]
    assert {name: n for name, n in found.dropped.items() if n} == {
        "verdict": 1, "duplicate": 1, "length": 1, "per_problem": 1,
    }  # fmt: skip


def test_curating_twice_changes_nothing():
    rows = drawn({f"p{i}": i % 8 + 1 for i in range(20)}) + [row("q", text) for text in variants(3)]
    settings: dict[str, Any] = {"near_duplicates": {}, "max_tokens": 50, "script": "latin"}
    once = curated(rows, per_problem=3, **settings)
    assert texts(curated(once.rows, per_problem=3, **settings)) == texts(once)
    assert [one["problem"] for one in once.rows] == sorted(
        (one["problem"] for one in once.rows), key=lambda p: [r["problem"] for r in rows].index(p)
    )


def test_settings_that_keep_nothing_are_refused():
    with pytest.raises(ConfigError, match="max_tokens=3 is below min_tokens=5"):
        build(Curation, {"min_tokens": 5, "max_tokens": 3}, "test")
