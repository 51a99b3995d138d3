"""Curating sampled replies: what is kept of them, in which order the filters go, and how many each one dropped.

    verdict          wrong, broken or cut replies, as `keep` says
    duplicate        the same text to the same prompt
    length           too short or too long
    script           letters of another writing system than wanted (R1-Zero mixed languages; R1, section 2.3.2)
    near_duplicate   nearly the text of one that was kept: Jaccard similarity of their n-grams; candidates come from
                     MinHash (Broder 1997) and locality-sensitive hashing (rensa), and each is compared exactly, so that
                     nothing is dropped for a hash's sake
    per_problem      more replies to a problem than `most_per_problem`
    balance          what makes one grade of difficulty more than its share; difficulty is the problem's pass rate
    most             more than `most` in all

Every filter keeps the earlier of two rows, so the result is a function of the rows and the settings.

Try it alone: `pytest tests/data/test_clean.py`
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]  # compiled, without stubs

from zifio.config import Config

Row = dict[str, Any]
Keep = Literal["right", "process", "all"]

FILTERS = ("verdict", "duplicate", "length", "script", "near_duplicate", "per_problem", "balance", "most")
"""In the order in which they go."""

_PERMUTATIONS = 128


class NearDuplicates(Config):
    """Which replies are too much alike."""

    similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Drop a reply whose n-grams are this similar (Jaccard) to those of one that was kept. Of pairs so similar and more
    MinHash finds nearly all: at 0.8 more than 99 in 100."""
    within: Literal["problem", "all"] = "problem"
    """Compare with replies to the same problem, or with all. Answers to drilled problems are all alike: there, leave it
    at problem."""
    characters: PositiveInt = 5
    """Length of an n-gram, in characters of the text in lower case with runs of spaces as one."""


class Balance(Config):
    """No grade of difficulty more than its share."""

    grades: int = Field(default=4, ge=2)
    """Pass rates from 0 to 1 are cut into so many grades of equal width."""
    most_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """No grade makes more than this share of what is kept (or than an even share of the grades there are). Of a grade
    with too many go first the later replies to a problem."""


class Curation(Config):
    """What else is asked of a kept reply."""

    min_tokens: NonNegativeInt = 0
    """Drop replies of fewer tokens."""
    max_tokens: PositiveInt | None = None
    """Drop replies of more tokens."""
    script: str | None = None
    """Writing system that replies are to keep to, by the first word of Unicode's names of its letters, as latin,
    cyrillic or cjk; prompt: that of most letters in the question. Nothing: any."""
    most_foreign: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of a reply's letters that may be of other scripts (symbols of mathematics often are Greek)."""
    near_duplicates: NearDuplicates | None = None
    """Drop replies that are nearly alike; nothing: only equal ones."""
    balance: Balance | None = None
    """Even out difficulty; nothing: take it as it comes."""

    @model_validator(mode="after")
    def _possible(self) -> Curation:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(
                f"max_tokens={self.max_tokens} is below min_tokens={self.min_tokens}; nothing would be kept"
            )
        if self.script is not None and self.script not in ("prompt", *_scripts()):
            raise ValueError(
                f"script: wanted prompt or the first word of a letter's Unicode name, came {self.script!r}. "
                "For example latin, cyrillic, greek, arabic, hebrew, devanagari, cjk, hiragana, hangul."
            )
        return self


@dataclass(frozen=True)
class Curated:
    """What is kept, in order, and how many rows each filter dropped."""

    rows: list[Row]
    dropped: dict[str, int]


def curate(rows: Sequence[Row], keep: Keep, per_problem: int, most: int | None, curation: Curation) -> Curated:
    """The rows that pass all filters, each with its problem's `pass_rate` over the checked rows there are."""
    rates = pass_rates(rows)
    left = [row | {"pass_rate": rates.get(row["problem"])} for row in rows]
    dropped = {}
    steps: dict[str, Callable[[list[Row]], list[Row]]] = {
        "verdict": lambda some: [row for row in some if _is_good(row, keep)],
        "duplicate": _different,
        "length": lambda some: [row for row in some if _fits(row, curation)],
        "script": lambda some: [row for row in some if _keeps_to_script(row, curation)],
        "near_duplicate": lambda some: _unlike(some, curation.near_duplicates),
        "per_problem": lambda some: _first_of_each(some, per_problem),
        "balance": lambda some: _balanced(some, curation.balance),
        "most": lambda some: some[:most],
    }
    assert tuple(steps) == FILTERS
    for name, step in steps.items():
        before, left = len(left), step(left)
        dropped[name] = before - len(left)
    return Curated(left, dropped)


def pass_rates(rows: Sequence[Row]) -> dict[str, float]:
    """Share of right ones among the checked replies to each problem that has any."""
    checked: dict[str, list[bool]] = {}
    for row in rows:
        if row["outcome"] != "error":
            checked.setdefault(row["problem"], []).append(row["outcome"] == "right")
    return {problem: sum(rights) / len(rights) for problem, rights in checked.items()}


def grade(pass_rate: float, n: int) -> int:
    """Which of n grades of equal width a pass rate is in; 1 is in the last."""
    return min(int(pass_rate * n), n - 1)


def said(row: Row) -> str:
    """All that was said in a row: the reply, or of an episode in turns what came after the opening."""
    if "messages" not in row:
        return row["response"]
    return "\n".join(message["content"] for message in row["messages"][1:] if message["role"] == "assistant")


def _is_good(row: Row, keep: Keep) -> bool:
    if keep == "all":
        return True
    good = row["outcome"] == "right" and row["finish"] == "stop"
    return good and (keep == "right" or row["parts"].get("process") == 1.0)


def _different(rows: list[Row]) -> list[Row]:
    """Each (prompt, reply) once."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for row in rows:
        key = (row["prompt"], json.dumps(row["messages"]) if "messages" in row else row["response"])
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return kept


def _fits(row: Row, curation: Curation) -> bool:
    if not curation.min_tokens and curation.max_tokens is None:
        return True
    return curation.min_tokens <= row["n_tokens"] <= (curation.max_tokens or row["n_tokens"])


def _keeps_to_script(row: Row, curation: Curation) -> bool:
    if curation.script is None:
        return True
    wanted = curation.script if curation.script != "prompt" else script_of(row["prompt"])
    found = scripts(said(row))
    total = found.total()
    return wanted is None or total == 0 or (total - found[wanted]) / total <= curation.most_foreign


def scripts(text: str) -> Counter[str]:
    """How many letters of each writing system a text has."""
    return Counter(name for letter in text if (name := _script(letter)))


def script_of(text: str) -> str | None:
    """The writing system of most letters; None of a text without any."""
    found = scripts(text).most_common(1)
    return found[0][0] if found else None


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    """The first word of a letter's Unicode name; empty for what is no letter."""
    return unicodedata.name(letter, "").partition(" ")[0].lower() if letter.isalpha() else ""


@lru_cache(maxsize=1)
def _scripts() -> frozenset[str]:
    """All writing systems of the basic plane."""
    return frozenset(filter(None, map(_script, map(chr, range(0x10000)))))


def _unlike(rows: list[Row], near: NearDuplicates | None) -> list[Row]:
    """Rows that are not nearly alike, the first of those that are."""
    if near is None:
        return rows
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row["problem"] if near.within == "problem" else "", []).append(place)
    kept = {place for places in groups.values() for place in _unlike_of(rows, places, near)}
    return [row for place, row in enumerate(rows) if place in kept]


def _unlike_of(rows: list[Row], places: list[int], near: NearDuplicates) -> list[int]:
    """The places of one group that stay."""
    found = RMinHashLSH(threshold=near.similarity, num_perm=_PERMUTATIONS, num_bands=_bands(near.similarity))
    kept: dict[int, set[str]] = {}
    for place in places:
        grams = _grams(said(rows[place]), near.characters)
        sketch = RMinHash(num_perm=_PERMUTATIONS, seed=0)
        sketch.update(sorted(grams))
        if all(_jaccard(grams, kept[other]) < near.similarity for other in found.query(sketch) if other in kept):
            kept[place] = grams
            found.insert(place, sketch)
    return list(kept)


def _bands(similarity: float) -> int:
    """So many bands that a pair just so similar is found at least 99 times in 100; more bands only find more."""
    for rows in (64, 32, 16, 8, 4, 2):
        bands = _PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** bands >= 0.99:
            return bands
    return _PERMUTATIONS


def _grams(text: str, n: int) -> set[str]:
    text = " ".join(text.casefold().split())
    return {text[start : start + n] for start in range(max(1, len(text) - n + 1))}


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def _first_of_each(rows: list[Row], most: int) -> list[Row]:
    """At most so many rows of each problem, the first ones."""
    return [row for row, nth in zip(rows, _nth_of_problem(rows), strict=True) if nth < most]


def _nth_of_problem(rows: list[Row]) -> list[int]:
    """How many rows of the same problem come before each."""
    seen: Counter[str] = Counter()
    out = []
    for row in rows:
        out.append(seen[row["problem"]])
        seen[row["problem"]] += 1
    return out


def _balanced(rows: list[Row], balance: Balance | None) -> list[Row]:
    """Rows of which no grade makes too large a share; those without a pass rate (nothing checked) are no grade's."""
    if balance is None:
        return rows
    grades: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        if row["pass_rate"] is not None:
            grades.setdefault(grade(row["pass_rate"], balance.grades), []).append(place)
    largest = _largest([len(places) for places in grades.values()], balance.most_share)
    nth = _nth_of_problem(rows)
    gone = {p for places in grades.values() for p in sorted(places, key=lambda place: (nth[place], place))[largest:]}
    return [row for place, row in enumerate(rows) if place not in gone]


def _largest(sizes: list[int], share: float) -> int:
    """The most rows that a grade may keep, so that none makes more than `share` of all, as far as that is possible."""
    share = max(share, 1 / len(sizes)) if sizes else 1.0
    for most in range(max(sizes, default=0), 0, -1):
        if most <= share * sum(min(size, most) for size in sizes) + 1e-9:
            return most
    return 0
