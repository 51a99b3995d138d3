"""Screen every family of reasoning-gym and write `gym_families.json`: which are fit for use, and why others are not.

    python -m zifio.tasks.sweep             the families that the file does not have yet
    python -m zifio.tasks.sweep --fresh     all of them, about half an hour on two cores
    python -m zifio.tasks.sweep sudoku ab   these

A family is tried with our exact checks; one whose problems have several right answers, with reasoning-gym's scorer at
its full mark. It is allowed when nothing high is found. What was found besides stands with it.

Try it alone: `python -m zifio.tasks.sweep --out try.json sudoku coin_flip`
"""

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zifio.config import ConfigError
from zifio.log import say
from zifio.tasks.exact import CHECKS, read_number
from zifio.tasks.families import FILE, MANY, Check, Family, library
from zifio.tasks.findings import Finding, Screening
from zifio.tasks.gym import Candidate, Gym
from zifio.tasks.probes import SLOW_DRAW_S, Elsewhere, pace
from zifio.tasks.runtime import Pool
from zifio.tasks.screen import READER, screen_task

_TRIES: dict[str, tuple[Check, ...]] = {
    "countdown": ("expression",),
    "puzzle24": ("expression",),
    "n_queens": ("listed",),
    "knights_knaves": ("full", "exact"),
}
_UNFIT = {
    "advanced_geometry": "its angles have two decimals where it asks for three, so a right reply would be called wrong",
    "complex_arithmetic": "it asks for no form, and has more than one, so a right reply would be called wrong",
    "number_format": "its answer has digits that the candidates do not show, so a right reply would be called wrong",
    "codeio": "drawing a problem runs code that writes files where we stand, and some differ between processes",
    "composite": "it is made of other families",
    "power_function": "its answer has all digits where it asks for three, so a right reply would be called wrong",
}
_MOST_DRAW_S = 0.25
_LOOKS = 24  # golds that show what kind of answer a family wants


def main(argv: Sequence[str] | None = None) -> None:
    """Screen families, and write the file after each."""
    parser = argparse.ArgumentParser(
        prog="python -m zifio.tasks.sweep", description="Screen the families of reasoning-gym."
    )
    parser.add_argument("families", metavar="FAMILY", nargs="*", help="(default: all that the file has not)")
    parser.add_argument("--problems", type=int, default=12, help="attack so many of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--out", type=Path, default=FILE, help="the file (default: the one in use)")
    parser.add_argument("--fresh", action="store_true", help="all families, also those that the file has")
    arguments = parser.parse_args(argv)
    library()
    from reasoning_gym.factory import DATASETS

    out: Path = arguments.out
    made = {"reasoning_gym": version("reasoning-gym"), "problems": arguments.problems, "seed": arguments.seed}
    known = {} if arguments.fresh or not out.exists() else json.loads(out.read_text())
    allowed, excluded = known.get("allowed", {}), known.get("excluded", {})
    waiting = arguments.families or [name for name in sorted(DATASETS) if name not in {**allowed, **excluded}]
    with Pool(reader=READER) as pool, Elsewhere() as elsewhere:
        for name in waiting:
            allowed.pop(name, None)
            excluded.pop(name, None)
            found = judge_family(name, arguments.problems, arguments.seed, pool, elsewhere)
            (excluded if isinstance(found, str) else allowed)[name] = found
            say(f"{name}: {found}")
            table = {"made": made, "allowed": _sorted(allowed), "excluded": _sorted(excluded)}
            out.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")


def judge_family(name: str, n_problems: int, seed: int, pool: Pool, elsewhere: Elsewhere) -> dict[str, Any] | str:
    """What stands in the file for a family that is allowed, or the reason why it is not."""
    if name in _UNFIT:
        return _UNFIT[name]
    reasons = []
    try:
        seconds = pace(_candidate(name, "exact"), seed)
        if seconds > _MOST_DRAW_S:
            return f"a problem takes {seconds:.2g} s to draw, and a held-out one sixteen times as long"
        n = n_problems if seconds <= SLOW_DRAW_S else max(4, n_problems // 3)
        for check in ("number",) if name == "chain_sum" else _tries(name):
            screening = screen_task(_candidate(name, check), n, seed, pool, elsewhere)
            high = [
                finding for finding in screening.findings if finding.severity == "high" or finding.check == "splits"
            ]
            if not high:
                return {"check": check, **_notes(screening)}
            reasons.append(f"checked by {_WORDS[check]}: {'; '.join(_brief(finding) for finding in high[:2])}")
    except ConfigError:
        return "it has too few different problems to hold some out"
    return "; ".join(reasons)


def _candidate(name: str, check: Check) -> Gym | Candidate:
    return Gym() if name == "chain_sum" else Candidate(family=name, scorer=check)


_WORDS: dict[Check, str] = {
    **{"exact": "its text", "number": "its number", "json": "its JSON value", "expression": "an exact evaluation"},
    **{"listed": "its list of right answers", "full": "reasoning-gym's scorer", "theirs": "reasoning-gym's part marks"},
}


def _tries(name: str) -> tuple[Check, ...]:
    """The checks to try: the strictest that fits what the golds look like."""
    if name in _TRIES or name in MANY:
        return _TRIES.get(name, ("full",))
    family = Family(name, "{}", "exact", "", "tags")
    golds = [family.problem("train", index, 0).gold for index in range(_LOOKS)]
    if all(read_number(gold) is not None and _as_written(gold) for gold in golds):
        return ("number",)
    return ("json",) if all(_is_json(gold) for gold in golds) else ("exact",)


def _as_written(gold: str) -> bool:
    """A number and not a row of digits or a fraction that wants its lowest terms."""
    return (
        "/" not in gold
        and not gold.lstrip("-").startswith("00")
        and (gold == "0" or not gold.startswith("0") or "." in gold)
    )


def _is_json(gold: str) -> bool:
    try:
        return gold[:1] in ("[", "{") and not CHECKS["json"](gold, gold)
    except ValueError:
        return False


def _notes(screening: Screening) -> dict[str, Any]:
    """What is worth knowing of an allowed family."""
    found: dict[str, Any] = {}
    if screening.measured.get("guessing earns"):
        found["guessing earns"] = round(screening.measured["guessing earns"], 2)
    told = [_brief(finding) for finding in screening.findings if finding.severity == "medium"]
    return {**found, "found": told} if told else found


def _brief(finding: Finding) -> str:
    return f"{finding.check}: {finding.what}"


def _sorted(table: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(table.items()))


if __name__ == "__main__":
    main()
