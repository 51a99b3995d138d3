"""Every claim can be supported, narrowed, refuted and left open: made-up seeds for each word of each experiment."""

from __future__ import annotations

from typing import Any

import pytest

from zifio.lab.shelf import find_claim

JITTER = (0.0, 0.004, -0.003, 0.002, -0.002)


def words(claim: str, rows: list[dict[str, Any]], **settings: Any) -> str:
    experiment = find_claim(claim).experiment
    assert experiment is not None
    return experiment.judge(rows, {**experiment.scales["cpu"], **settings}).word


def c1(none: float, most: float, cold: float, spread: float = 1.0) -> list[dict[str, Any]]:
    def dose(zero: float, other: float, jitter: float) -> dict[str, Any]:
        arms = {"zero": zero + spread * jitter, "cold": other, "sft": 0.5}
        return {"at_budget": arms, "end": arms}

    return [{"000": dose(none, 0.1, j), "100": dose(0.1, 0.1, j), "300": dose(most, cold, j)} for j in JITTER]


@pytest.mark.parametrize(
    "rows, word",
    [
        (c1(0.1, 0.95, 0.95), "narrowed"),
        (c1(0.95, 0.95, 0.95), "supported"),
        (c1(0.1, 0.85, 0.95), "refuted"),
        (c1(0.1, 0.4, 0.4), "refuted"),
        (c1(0.1, 0.9, 0.9, spread=20), "underpowered"),
    ],
)
def test_c1(rows: list[dict[str, Any]], word: str):
    assert words("C1", rows) == word


def c6(noisy: float, hole: float, graded: float, spread: float = 1.0) -> list[dict[str, Any]]:
    arms = {"base-300": 0.3, "j10": 0.95, "j06": 0.94, "j04": noisy, "j02": 0.7, "j00": 0.3, "jm02": 0.1}
    arms |= {"j02-long": 0.9, "zero-ok": hole, "graded": graded, "learned": 0.6}
    moving = ("j04", "zero-ok", "graded")
    return [{"end": {name: v + (spread * j if name in moving else 0) for name, v in arms.items()}} for j in JITTER]


@pytest.mark.parametrize(
    "rows, word",
    [
        (c6(0.9, 0.1, 0.94), "narrowed"),
        (c6(0.9, 0.94, 0.5), "supported"),
        (c6(0.4, 0.94, 0.94), "refuted"),
        (c6(0.7, 0.6, 0.6, spread=60), "underpowered"),
    ],
)
def test_c6(rows: list[dict[str, Any]], word: str):
    assert words("C6", rows) == word


def c5(hacked: set[str], low: float, ends: dict[str, float]) -> list[dict[str, Any]]:
    arms = ("strict", "lax", "lax-min", "lax-mean", "lax-sum", "lax-short", "strict-mean", "process-only")
    fall, rise = [0.4, 0.8, 0.1, 0.1], [0.4, 0.8, 0.9, 0.95]
    plain = {arm: low if arm in hacked else 0.95 for arm in arms} | ends
    return [
        {
            "steps": [1, 5, 9, 13],
            "gold": {arm: fall if arm in hacked else rise for arm in arms},
            "end": {arm: value + j for arm, value in plain.items()},
        }
        for j in JITTER
    ]


@pytest.mark.parametrize(
    "rows, word",
    [
        (c5({"lax"}, 0.1, {"process-only": 0.6}), "supported"),
        (c5({"lax", "lax-mean", "lax-sum"}, 0.1, {"process-only": 0.6}), "narrowed"),
        (c5({"lax", "lax-min"}, 0.1, {}), "refuted"),
        (c5(set(), 0.1, {}), "underpowered"),
    ],
)
def test_c5(rows: list[dict[str, Any]], word: str):
    assert words("C5", rows) == word


def c2(alone: float, spread: float = 1.0) -> list[dict[str, Any]]:
    """Followers that cost the explorer's 100 over `alone`, and a fifth more with the text."""
    rows = []
    for jitter in JITTER:
        cost = {"a": 100 / (alone * (1 + spread * jitter)), "b": 120 / (alone * (1 + spread * jitter)), "steps": 3}
        part = {"costs": {"0.8": {"explorer": 100.0, "traces": cost, "forward": None, "reverse": cost}}, "total": 200.0}
        rows.append({"sums": part, "splits": part})
    return rows


@pytest.mark.parametrize(
    "rows, word",
    [(c2(12), "supported"), (c2(3.4), "refuted"), (c2(5), "narrowed"), (c2(4, spread=100), "narrowed")],
)
def test_c2(rows: list[dict[str, Any]], word: str):
    assert words("C2", rows) == word


def test_c2_says_nothing_of_levels_that_nobody_reached():
    rows = c2(5)
    rows[0]["sums"]["costs"]["0.8"]["explorer"] = None
    assert words("C2", rows) == "underpowered"


def c3(
    few: float, clean: float, answer: float, rule: float, shuffled: float, spread: float = 1.0
) -> list[dict[str, Any]]:
    right = {"clean-few": few, "clean": clean, "answer": answer, "rule": rule, "shuffled": shuffled}
    return [
        {
            key: {name: value + spread * j * (name in ("answer", "rule", "shuffled")) for name, value in right.items()}
            for key in ("right", "sevens", "others")
        }
        for j in JITTER
    ]


@pytest.mark.parametrize(
    "rows, word",
    [
        (c3(0.5, 0.95, 0.9, 0.4, 0.2), "narrowed"),
        (c3(0.9, 0.95, 0.6, 0.4, 0.2), "supported"),
        (c3(0.5, 0.95, 0.95, 0.95, 0.95), "refuted"),
        (c3(0.5, 0.95, 0.5, 0.5, 0.5, spread=60), "underpowered"),
    ],
)
def test_c3(rows: list[dict[str, Any]], word: str):
    assert words("C3", rows) == word


def c4(kl: float, clean: float, debt: float, spread: float = 1.0) -> list[dict[str, Any]]:
    """A collapsed teacher at .3 whose students of logits are at `kl`, a control at `clean`, and a debt."""
    models = ("wide", "collapsed", "traces", "forward", "reverse", "wide-traces", "clean")
    distinct = {"base": 1.0, "wide": 0.6, "collapsed": 0.3, "traces": kl, "forward": kl, "reverse": kl}
    distinct |= {"wide-traces": 0.7, "clean": clean}
    return [
        {
            "distinct": {n: v + spread * j * (n in ("traces", "forward", "reverse")) for n, v in distinct.items()},
            "accuracy": dict.fromkeys(models, 0.8),
            "rule_after": {n: 0.6 + (0 if n == "clean" else debt + spread * j) for n in models},
        }
        for j in JITTER
    ]


@pytest.mark.parametrize(
    "rows, word",
    [
        (c4(0.3, 0.95, -0.2), "narrowed"),
        (c4(0.1, 0.95, -0.2), "supported"),
        (c4(0.95, 0.9, 0.0), "refuted"),
        (c4(0.3, 0.95, 0.0, spread=60), "underpowered"),
    ],
)
def test_c4(rows: list[dict[str, Any]], word: str):
    assert words("C4", rows) == word


def c7(recall: float, sums: float, spread: float = 1.0) -> list[dict[str, Any]]:
    """Arms that are half right at 100 FLOPs over their leverage."""
    rows = []
    for jitter in JITTER:
        row: dict[str, Any] = {}
        for name, leverage in (("recall", recall), ("sums", sums)):
            arms = dict.fromkeys(("dense", "wide", "moe-aux", "gqa", "moe-mtp"), 1.0) | {"moe": leverage}
            row[name] = {
                arm: [[0.0, 0.0], [200 / (value * (1 + spread * jitter * (arm == "moe"))), 1.0]]
                for arm, value in arms.items()
            }
            row[name] |= {"cpu_s": dict.fromkeys(arms, 1.0), "violation": dict.fromkeys(("moe", "moe-aux"), 0.5)}
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    "rows, word",
    [(c7(2, 2), "supported"), (c7(2, 1), "narrowed"), (c7(1, 1), "refuted"), (c7(1.2, 1.2, spread=60), "underpowered")],
)
def test_c7(rows: list[dict[str, Any]], word: str):
    assert words("C7", rows) == word


def c8(near: int, gap: float, spread: float = 1.0) -> list[dict[str, Any]]:
    """The hybrid as good as a softmax of its state on so many drills, and behind by a gap on the others."""
    from zifio.tasks.drills import KINDS

    arms = ("softmax", "softmax-small", "window", "delta", "delta-neg", "hybrid", "sparse")
    return [
        {
            "right": {
                kind: {arm: [0.8 - (gap - spread * j) * (arm == "hybrid" and place >= near), 0.7] for arm in arms}
                for place, kind in enumerate(KINDS)
            }
        }
        for j in JITTER
    ]


@pytest.mark.parametrize(
    "rows, word",
    [
        (c8(5, 0.3), "supported"),
        (c8(4, 0.3), "narrowed"),
        (c8(3, 0.3), "refuted"),
        (c8(3, 0.0, spread=60), "underpowered"),
    ],
)
def test_c8(rows: list[dict[str, Any]], word: str):
    assert words("C8", rows) == word


def c9(understanding: float, drawing: float, spread: float = 1.0) -> list[dict[str, Any]]:
    def right(jitter: float) -> dict[str, Any]:
        noise, plain = spread * jitter, {"understanding": 0.5, "drawing": 0.5}
        arms = {f"{task}-{amount}{end}": plain for task in plain for amount in ("few", "many") for end in ("", "-long")}
        arms |= dict.fromkeys(("scarce-understanding-shuffled-drawing", "scarce-drawing-shuffled-understanding"), plain)
        arms |= {f"both-rich-shuffled-{task}": plain for task in plain} | {"both-rich": plain}
        arms["scarce-understanding"] = plain | {"understanding": 0.5 + understanding + noise}
        return arms | {"scarce-drawing": plain | {"drawing": 0.5 + drawing - noise}}

    return [{"right": right(j)} for j in JITTER]


@pytest.mark.parametrize(
    "rows, word",
    [
        (c9(0.08, 0.08), "supported"),
        (c9(0.08, -0.05), "narrowed"),
        (c9(0.01, 0.0), "refuted"),
        (c9(0.04, 0.04, spread=20), "underpowered"),
    ],
)
def test_c9(rows: list[dict[str, Any]], word: str):
    assert words("C9", rows) == word


def test_c9_shuffles_texts_and_nothing_else():
    """Pictures and texts are the same, only seldom side by side as they belong; the other task's are untouched."""
    from collections import Counter
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("c9", find_claim("C9").folder / "run.py")
    assert spec is not None and spec.loader is not None
    run = module_from_spec(spec)
    spec.loader.exec_module(run)
    true, mixed = (run.mixture({"understanding": 96, "drawing": 480}, name, 3) for name in (None, "drawing"))
    assert true[:96] == mixed[:96] and [row["kind"] for row in true] == [row["kind"] for row in mixed]
    assert [row["image"] for row in true] == [row["image"] for row in mixed]
    assert Counter(row["text"] for row in true) == Counter(row["text"] for row in mixed)
    assert sum(one["text"] == other["text"] for one, other in zip(true[96:], mixed[96:], strict=True)) < 40
    assert len({row["text"] for row in true}) == len(run.CAPTIONS) == 48
    assert len({row["image"] for row in true}) > 400, "sizes and places differ"


def c10(opened: float, n: int, others: int) -> list[dict[str, Any]]:
    scores = [0.8 + 0.01 * (place % 3) for place in range(n)]
    pair = {
        "released": "2026-01", "benchmarks": [f"b{place}" for place in range(n)], "closed": scores,
        "open": [opened * one for one in scores], "floor": [0.0] * n, "lag_months": [1.0] * n, "private": 0,
        "others_measured": others,
    }  # fmt: skip
    return [{"ours / theirs": pair}]


@pytest.mark.parametrize(
    "rows, word",
    [
        (c10(0.97, 10, 10), "supported"),
        (c10(0.97, 10, 0), "narrowed"),
        (c10(0.9, 10, 10), "refuted"),
        (c10(0.97, 7, 7), "underpowered"),
    ],
)
def test_c10(rows: list[dict[str, Any]], word: str):
    assert words("C10", rows) == word


def test_c10_cites_every_number():
    from csv import DictReader

    folder = find_claim("C10").folder
    rows = list(DictReader((folder / "scores.csv").read_text().splitlines()))
    dated = {row["model"]: row["released"] for row in DictReader((folder / "releases.csv").read_text().splitlines())}
    assert len({(row["model"], row["benchmark"], row["source"]) for row in rows}) == len(rows) > 100
    for row in rows:
        assert row["source"].startswith("https://") and len(row["read"]) == len("2026-11-28")
        assert 0 <= float(row["floor"]) < 100 and 0 < float(row["score"]) <= 100
        assert dated[row["model"]] == row["released"]
