"""A claim card: does model A reach a share of model B, as the paired ratio of their accuracies with its interval?

*Supported* only when the interval's lower end clears the claim, *refuted* only when its upper end stays below, and
otherwise *underpowered*: these problems are too few to tell, and the card says how many would be needed. Both models
must have answered the very same problems, under the same task; the card has the digests.

Run alone: `zifio claim runs/eval/ours-gsm8k runs/eval/theirs-gsm8k --ratio 0.95`
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from zifio.config import ConfigError
from zifio.data.sources import read_jsonl
from zifio.evaluate.card import card_page, card_picture, ends
from zifio.evaluate.examine import prompts_digest
from zifio.evaluate.journal import RECORDS, differences, read_identity
from zifio.evaluate.methods import Row, first_replies, right_shares, spent
from zifio.log import Finished, say
from zifio.record.stage import write_whole
from zifio.stats import mcnemar, paired_difference, paired_ratio, problems_needed, share_interval

_NAMED = 3  # of many problems, this many are named
_SEED = 0  # of the resamples: the same records give the same card


@dataclass(frozen=True)
class Measured:
    """One side of a claim."""

    name: str
    rows: list[Row]
    identity: dict[str, Any] | None
    """What exam.json says; None of records without one."""
    date: str


def claim(a: Path, b: Path, ratio: float = 0.95, out: Path | None = None, as_json: bool = False) -> Any:
    """Write claim.md, claim.json and claim.png; exit code 0 when the claim is supported, else 1.

    Raises ConfigError when the two were not measured on the same problems and task.
    """
    if not 0 < ratio <= 10:
        raise ConfigError(f"--ratio: wanted a number above 0, as 0.95, came {ratio:g}.")
    first, second = read_measured(a), read_measured(b)
    card = build_card(first, second, ratio)
    folder = out or Path("runs/claim") / f"{first.name}-{second.name}"
    write_whole(folder / "claim.png", card_picture(card))
    write_whole(folder / "claim.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "claim.md", card_page(card))
    say(Text(card["statement"], style="bold"))
    say(card["reason"])
    say(f"card: {folder / 'claim.md'}")
    return Finished(0 if card["verdict"] == "supported" else 1, card if as_json else None)


def read_measured(place: Path) -> Measured:
    """The records of an evaluation's folder, or of a file as `runs/RUN/STAGE/records-MODEL.jsonl`.

    Raises ConfigError when there are none, or replies are missing.
    """
    file = place / RECORDS if place.is_dir() else place
    rows = [{"budget": None, **row} for row in read_jsonl(file)]
    rows = [row for row in rows if row["budget"] is None]
    lacking = next(
        (key for row in rows for key in ("problem", "place", "prompt", "gold", "outcome") if key not in row), ""
    )
    if not rows or lacking:
        raise ConfigError(
            f"{file}: wanted the records of an evaluation, came {lacking or 'none'}. Make them with `zifio eval`."
        )
    per_problem: dict[str, int] = {}
    for row in rows:
        per_problem[row["problem"]] = per_problem.get(row["problem"], 0) + 1
    n = max(per_problem.values())
    short = [problem for problem, count in per_problem.items() if count < n]
    if short:
        raise ConfigError(
            f"{file}: wanted {n} replies to every problem, came fewer to {_some(short)}. Finish the evaluation: run "
            "the same command again."
        )
    name = place.name if place.is_dir() else place.stem.removeprefix("records-")
    written = datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat()
    return Measured(name, rows, read_identity(file.parent), written)


def build_card(a: Measured, b: Measured, ratio: float) -> dict[str, Any]:
    """Everything on the card. Raises ConfigError when A and B were not measured alike, or B solves nothing."""
    _check_alike(a, b)
    share_a, share_b = right_shares(a.rows), right_shares(b.rows)
    both = sorted(share_a.keys() & share_b.keys())
    left_out = len(share_a.keys() | share_b.keys() | {row["problem"] for row in a.rows}) - len(both)
    if not both or not any(share_b[problem] for problem in both):
        raise ConfigError(f"{b.name}: wanted at least one right answer, came none. No ratio can be formed.")
    right_a, right_b = [share_a[p] for p in both], [share_b[p] for p in both]
    found = paired_ratio(right_a, right_b, _SEED, "claim")
    gap = paired_difference(right_a, right_b, _SEED, "claim")
    low, high = found.interval
    verdict = "supported" if low > ratio else "refuted" if high < ratio else "underpowered"
    needed = problems_needed(right_a, right_b, ratio) if verdict == "underpowered" else None
    firsts_a, firsts_b = first_replies(a.rows), first_replies(b.rows)
    same = [problem for problem in both if problem in firsts_a and problem in firsts_b]
    card: dict[str, Any] = {
        "statement": f"{a.name} reaches {ratio:g} of {b.name}: {verdict}",
        "verdict": verdict,
        "claim": ratio,
        "ratio": found.value,
        "interval": [low, high if math.isfinite(high) else None],
        "n_problems": len(both),
        "n_left_out": left_out,
        "needed": needed,
        "date": datetime.now(UTC).date().isoformat(),
        "difference": {"mean": gap.mean, "interval": list(gap.interval)},
        "mcnemar": mcnemar([firsts_a[p] for p in same], [firsts_b[p] for p in same])._asdict() if same else None,
        "prompts_digest": prompts_digest(a.rows),
        "task": (a.identity or b.identity or {}).get("task"),
        "a": _side(a, right_a),
        "b": _side(b, right_b),
        "warnings": _warnings(a, b),
    }
    return card | {"reason": _reason(card)}


def _check_alike(a: Measured, b: Measured) -> None:
    """Raise ConfigError unless both answered the same problems under the same task."""
    asked_a, asked_b = ({row["problem"]: (row["prompt"], row["gold"]) for row in side.rows} for side in (a, b))
    for one, other, lacks in ((a, b, asked_b.keys() - asked_a.keys()), (b, a, asked_a.keys() - asked_b.keys())):
        if lacks:
            raise ConfigError(
                f"{one.name}: wanted answers to the same problems as {other.name}, came none to "
                f"{_some(sorted(lacks))}. Measure both with the same task, problems and seed."
            )
    changed = sorted(problem for problem in asked_a if asked_a[problem] != asked_b[problem])
    if changed:
        raise ConfigError(
            f"{a.name} and {b.name}: wanted the same prompts and gold answers, came different ones under the same id: "
            f"{_some(changed)}. Measure both with the same task."
        )
    if a.identity and b.identity and a.identity.get("task") != b.identity.get("task"):
        how = ", ".join(differences({"task": b.identity["task"]}, {"task": a.identity["task"]}))
        raise ConfigError(
            f"{a.name} and {b.name}: wanted the same task, came different ones ({how}). Measure them alike."
        )


def _side(measured: Measured, right_P: list[float]) -> dict[str, Any]:
    rows, identity = measured.rows, measured.identity or {}
    side: dict[str, Any] = {
        "name": measured.name,
        "accuracy": sum(right_P) / len(right_P),
        "interval": list(share_interval(right_P, _SEED, "claim")),
        "n_per_problem": 1 + max(row["place"] for row in rows),
        "n_errors": sum(row["outcome"] == "error" for row in rows),
        "date": measured.date,
        **spent(rows),
    }
    keys = ("subject", "sampling", "system", "instruction", "seed", "task_digest", "verifier_digest")
    return side | {key: identity[key] for key in keys if identity.get(key) not in (None, "")}


def _warnings(a: Measured, b: Measured) -> list[str]:
    """What differs between the two besides the model, and what a reader should know."""
    said = []
    one, other = a.identity or {}, b.identity or {}
    if not (one and other):
        said.append("Of at least one side only records are known, not how they were made.")
    elif one.get("verifier_digest") != other.get("verifier_digest"):
        said.append("The two were judged by different versions of the verifiers. Score one of them anew (--answers).")
    for key in ("sampling", "system", "instruction"):
        recorded = any("answers" in (side.get("subject") or {}) for side in (one, other))
        if one and other and not recorded and one.get(key) != other.get(key):
            said.append(f"They differ in {', '.join(differences({key: other.get(key)}, {key: one.get(key)}))}.")
    for side in (a, b):
        n_errors = sum(row["outcome"] == "error" for row in side.rows)
        if n_errors:
            said.append(f"{n_errors} replies of {side.name} are left out because their check broke.")
    return said


def _reason(card: dict[str, Any]) -> str:
    """The verdict explained in one or two sentences."""
    said = f"On {card['n_problems']} problems the ratio is {card['ratio']:.3f}, 95% interval {ends(card)}"
    x = card["claim"]
    if card["verdict"] == "supported":
        return f"{said}: all of it lies above {x:g}."
    if card["verdict"] == "refuted":
        return f"{said}: all of it lies below {x:g}."
    if card["needed"] is None:
        return (
            f"{said}, on both sides of {x:g}. The ratio measured is the claim's own: no number of problems would tell."
        )
    return (
        f"{said}, on both sides of {x:g}: these problems are too few to tell. If the ratio measured is the true one, "
        f"about {card['needed']:,} problems would tell (four times out of five)."
    )


def _some(problems: list[str]) -> str:
    more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    return ", ".join(problems[:_NAMED]) + more
