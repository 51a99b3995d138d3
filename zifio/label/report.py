"""What a desk's labels are worth: agreement with intervals, each labeller's care, speed and drift, and an estimate.

Agreement is of blind labels alone, given before anybody saw the machine's; who asked for the verifier's verdict first
is counted apart. A figure that cannot be computed is absent.

Try it alone: `zifio label desk.db --report`
"""

import json
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from sqlalchemy import Connection, and_, func, select

from zifio.label.agree import Agreement, Floats, agreement, dawid_skene, fleiss_of, krippendorff_alpha, pairwise_kappa
from zifio.label.estimate import powered_mean
from zifio.label.schema import ANNOTATORS, EVENTS, ITEMS, LABELS
from zifio.label.store import Store
from zifio.seed import stream_seed

_FEWEST = 10  # items of a half, or shared by two, below which a figure says nothing
_MANY = 2000  # items from which on fewer resamples do
_SOUND = {"no error", "right"}


class Report(dict[str, Any]):
    """The figures of a desk, and how a person reads them."""

    def __str__(self) -> str:
        items = self["items"]
        lines = [f"{items['work']} items: {items['done']} done, {items['disputed']} disputed, {items['open']} open"]
        lines += [f"agreement on {kind}: {_told(one)}" for kind, found in self["agreement"].items() for one in found]
        lines += [_person(one) for one in self["annotators"]]
        if "estimate" in self:
            found = self["estimate"]
            low, high = (f"{100 * end:.1f}" for end in found["interval"])
            lines.append(
                f"without an error: {100 * found['mean']:.1f} % of all items ({low} to {high}), from "
                f"{found['n_human']} human labels and the verifier's on {found['n_machine']}; the verifier alone says "
                f"{100 * found['machine']:.1f} %"
            )
        return "\n".join(lines)


def report(store: Store) -> Report:
    """All figures of a desk."""
    with store.read() as connection:
        rows = _labels(connection)
        names = {row.id: row.name for row in connection.execute(select(ANNOTATORS.c.id, ANNOTATORS.c.name))}
        found = Report(items=_counts(connection), agreement={}, annotators=_people(rows, names))
        for kind in dict.fromkeys(row.kind for row in rows):
            of_kind = [row for row in rows if row.kind == kind and row.role == "work" and row.stance is not None]
            figures = _agreement(of_kind, names)
            if kind == "steps":
                figures += _step_agreement(connection)
            if figures:
                found["agreement"][kind] = figures
        estimate = _estimate(connection, rows)
    if estimate:
        found["estimate"] = estimate
    return found


def _labels(connection: Connection) -> list[Any]:
    """Every blind label that holds, with what is known about its item, in the order they were given."""
    columns = (ITEMS.c.kind, ITEMS.c.role, ITEMS.c.final, ITEMS.c.n_labels, ITEMS.c.outcome)
    query = select(LABELS, *columns).join(ITEMS, ITEMS.c.id == LABELS.c.item)
    query = query.where(LABELS.c.current, LABELS.c.phase == "blind").order_by(LABELS.c.seq)
    return list(connection.execute(query).all())


def _counts(connection: Connection) -> dict[str, int]:
    rows = connection.execute(
        select(ITEMS.c.role, ITEMS.c.state, func.count()).group_by(ITEMS.c.role, ITEMS.c.state)
    ).all()
    counts = {"work": 0, "gold": 0, "screening": 0, "open": 0, "disputed": 0, "done": 0}
    for role, state, n in rows:
        counts[role] += n
        if role == "work":
            counts[state] += n
    return counts


def _agreement(rows: Sequence[Any], names: dict[str, str]) -> list[dict[str, Any]]:
    """Alpha, Fleiss' kappa where all items have equally many labels, and Cohen's of every two who share enough."""
    values, people, _ = _matrix([(row.annotator, row.item, row.stance) for row in rows])
    if len(people) < 2:
        return []
    about = "first error" if rows[0].kind == "steps" else "label"
    found = [
        _figure(f"{about}, Krippendorff's alpha", values, krippendorff_alpha),
        _figure(f"{about}, Fleiss' kappa", values, fleiss_of),
    ]
    for one, other in combinations(range(len(people)), 2):
        both = values[[one, other]]
        if (~np.isnan(both).any(axis=0)).sum() >= _FEWEST:
            who = f"{names[people[one]]}, {names[people[other]]}"
            found.append(_figure(f"{about}, Cohen's kappa of {who}", both, pairwise_kappa))
    return [one for one in found if one]


def _step_agreement(connection: Connection) -> list[dict[str, Any]]:
    """Alpha of the ratings of steps, which have an order: -1, 0, +1."""
    query = select(LABELS.c.annotator, LABELS.c.item, EVENTS.c.body).join(EVENTS, EVENTS.c.seq == LABELS.c.seq)
    query = query.join(ITEMS, ITEMS.c.id == LABELS.c.item).where(ITEMS.c.kind == "steps", ITEMS.c.role == "work")
    query = query.where(LABELS.c.current, LABELS.c.phase == "blind", ITEMS.c.n_labels >= 2)
    said: list[tuple[str, tuple[str, int], float]] = []
    for row in connection.execute(query.order_by(LABELS.c.seq)):
        ratings = json.loads(row.body)["said"]["ratings"]
        said += [(row.annotator, (row.item, step), rating) for step, rating in enumerate(ratings) if rating is not None]
    values, people, columns = _matrix(said)
    if len(people) < 2:
        return []
    items = {item: number for number, item in enumerate(dict.fromkeys(item for item, _ in columns))}

    def ordinal(of: Floats) -> float:
        return krippendorff_alpha(of, "ordinal")

    owners = [items[item] for item, _ in columns]
    return [
        one for one in [_figure("ratings of steps, Krippendorff's alpha (ordinal)", values, ordinal, owners)] if one
    ]


def _matrix(said: Sequence[tuple[str, Any, Any]]) -> tuple[Floats, list[str], list[Any]]:
    """Annotators in rows, items in columns, nan for none; numbers as they are, words by their place in sorted order."""
    people = sorted({who for who, _, _ in said})
    columns = list(dict.fromkeys(what for _, what, _ in said))
    words = {word: number for number, word in enumerate(sorted({one for _, _, one in said if isinstance(one, str)}))}
    row_of = {who: number for number, who in enumerate(people)}
    column_of = {what: number for number, what in enumerate(columns)}
    values = np.full((len(people), len(columns)), np.nan)
    for who, what, one in said:
        values[row_of[who], column_of[what]] = words[one] if isinstance(one, str) else one
    return values, people, columns


def _figure(
    name: str, values: Floats, coefficient: Callable[[Floats], float], owners: Sequence[int] | None = None
) -> dict[str, Any] | None:
    resamples = 1000 if values.shape[1] <= _MANY else 200
    found: Agreement = agreement(values, coefficient, resamples=resamples, item_of_I=owners)
    if math.isnan(found.value):
        return None
    figure = {"name": name, "value": found.value, "n_items": found.n_items, "n_labels": found.n_labels}
    return figure if math.isnan(found.interval[0]) else {**figure, "interval": list(found.interval)}


def _people(rows: Sequence[Any], names: dict[str, str]) -> list[dict[str, Any]]:
    """Each labeller: how many labels, how fast, how good on gold items, how often with the final word; and then the
    change from the first half of their labels to the second."""
    skill = _skill(rows)
    found = []
    for who in sorted({row.annotator for row in rows}, key=lambda one: str(names.get(one, one))):
        mine = [row for row in rows if row.annotator == who]
        one: dict[str, Any] = {"name": names.get(who, who), "labels": len(mine)}
        one["gave_up"] = sum(row.stance is None for row in mine)
        one["after_verdict"] = sum(bool(row.saw_verdict) for row in mine)
        seconds = [row.ms / 1000 for row in mine if row.ms]
        if seconds:
            one["median_s"] = float(np.median(seconds))
        if len(seconds) >= 2 * _FEWEST:
            half = len(seconds) // 2
            one["median_s_halves"] = [float(np.median(seconds[:half])), float(np.median(seconds[half:]))]
        gold = [bool(row.right) for row in mine if row.right is not None]
        if gold:
            one["gold"] = {"n": len(gold), "right": sum(gold)}
        one |= _drift(mine)
        if who in skill:
            one["dawid_skene"] = skill[who]
        found.append(one)
    return found


def _drift(mine: Sequence[Any]) -> dict[str, Any]:
    """The share of labels that are right (gold), or are what was decided in the end where others had a say; and how
    much the second half differs from the first, with its interval."""
    judged = [row for row in mine if row.right is not None or (row.final is not None and row.n_labels > 1)]
    well = np.array(
        [bool(row.right) if row.right is not None else row.stance == row.final for row in judged], dtype=float
    )
    if not len(well):
        return {}
    found: dict[str, Any] = {"with_final": float(well.mean()), "n_with_final": len(well)}
    half = len(well) // 2
    if half >= _FEWEST:
        first, second = well[:half], well[half:]
        rng = np.random.default_rng(stream_seed(0, "label/drift"))
        drawn = rng.choice(second, (1000, len(second))).mean(axis=1) - rng.choice(first, (1000, half)).mean(axis=1)
        interval = [float(end) for end in np.quantile(drawn, [0.025, 0.975])]
        drifts = not interval[0] <= 0 <= interval[1]
        found["drift"] = {"change": float(second.mean() - first.mean()), "interval": interval, "drifts": drifts}
    return found


def _skill(rows: Sequence[Any]) -> dict[str, float]:
    """How often each labeller says the true class, by Dawid and Skene, where three or more label the same items."""
    said = [(row.annotator, row.item, row.stance) for row in rows if row.role == "work" and row.stance is not None]
    values, people, _ = _matrix(said)
    values = values[:, (~np.isnan(values)).sum(axis=0) >= 2] if len(people) else values
    if len(people) < 3 or values.shape[1] < _FEWEST:
        return {}
    labels = np.nan_to_num(values, nan=-1).astype(np.int64)
    found = dawid_skene(labels, int(labels.max()) + 1)
    return {who: float((np.diag(found.confusion_AKK[n]) * found.prevalence_K).sum()) for n, who in enumerate(people)}


def _estimate(connection: Connection, rows: Sequence[Any]) -> dict[str, Any] | None:
    """The share of items without an error among all, from a random sample labelled by people and the verifier's word
    on all.

    None where the labelled items are no random sample, or the verifier's word is missing on some.
    """
    work = and_(ITEMS.c.role == "work", ITEMS.c.kind != "pair")
    items = connection.execute(select(ITEMS.c.id, ITEMS.c.outcome, ITEMS.c.final, ITEMS.c.state).where(work)).all()
    queues = {row.item: row.queue for row in rows}
    labelled = [row for row in items if row.final is not None and row.final != "bad problem"]
    if len(labelled) < _FEWEST or any(queues.get(row.id) != "random" for row in labelled):
        return None
    if any(row.outcome not in ("right", "wrong") for row in items):
        return None
    there = {row.id for row in labelled}
    rest = [float(row.outcome == "right") for row in items if row.id not in there]
    human = [float(row.final in _SOUND) for row in labelled]
    found = powered_mean(human, [float(row.outcome == "right") for row in labelled], rest)
    machine = float(np.mean([row.outcome == "right" for row in items]))
    return {
        "mean": found.mean,
        "interval": list(found.interval),
        "weight": found.weight,
        "n_human": len(human),
        "n_machine": len(items),
        "human": float(np.mean(human)),
        "machine": machine,
    }


def _told(one: dict[str, Any]) -> str:
    interval = " ({:.2f} to {:.2f})".format(*one["interval"]) if "interval" in one else ""
    return f"{one['name']} {one['value']:.2f}{interval}, {one['n_items']} items, {one['n_labels']} labels"


def _person(one: dict[str, Any]) -> str:
    parts = [f"{one['labels']} labels"]
    if "median_s" in one:
        parts.append(f"median {one['median_s']:.0f} s")
    if "gold" in one:
        parts.append(f"gold {one['gold']['right']} of {one['gold']['n']}")
    if "with_final" in one:
        parts.append(f"{100 * one['with_final']:.0f} % as decided")
    if one.get("drift", {}).get("drifts"):
        parts.append(f"drifts by {100 * one['drift']['change']:+.0f} points")
    if one["after_verdict"]:
        parts.append(f"{one['after_verdict']} after the verdict")
    return f"{one['name']}: {', '.join(parts)}"
