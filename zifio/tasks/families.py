"""The families of reasoning-gym: which of them are fit for use, how each is checked, and the checks.

`gym_families.json` is what the screen made of them (`python -m zifio.tasks.sweep` makes it anew): the check of each
allowed family, and why the others are left out. An answer is compared with the gold exactly; only where a problem has
many right answers does reasoning-gym's own scorer decide, and then nothing below its full mark is right. It never runs
in this process.

Try it alone:

    python -c "from zifio.tasks.families import *; print(len(allowed()), excluded()['boxnet'])"
"""

import contextlib
import io
import json
import math
import random
import re
import warnings
from collections.abc import Generator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zifio.config import ConfigError
from zifio.tasks.exact import CHECKS, expression_fault, longest_form
from zifio.tasks.form import Form, judged, wrap
from zifio.tasks.task import Problem, Split, Verdict, address, draw

Check = Literal["exact", "number", "json", "expression", "listed", "full", "theirs"]
"""How an answer is checked: the text, the number or the JSON value of the gold; an expression of the given numbers; one
of the answers that the problem lists; full: the full mark of reasoning-gym's scorer; theirs: all its part marks, for
the whole reply, which is for the screen alone."""

FILE = Path(__file__).with_name("gym_families.json")
ISOLATED: tuple[Check, ...] = ("full", "theirs")
MANY = (
    *("boxnet", "countdown", "cryptarithm", "graph_color", "group_anagrams", "intermediate_integration", "jugs"),
    *("kakurasu", "knight_swap", "knights_knaves", "n_queens", "palindrome_generation", "palindrome_partitioning"),
    *("propositional_logic", "puzzle24", "quantum_lock", "rubiks_cube", "rush_hour", "shortest_path"),
    *("simple_integration", "sokoban", "tower_of_hanoi", "word_ladder"),
)
"""Families whose problems have several right answers, or one with several spellings that only their scorer reads."""
_GOLDS = ("possible_answer", "example_answer", "example_correct_answer")  # where some families keep their only one
_ID = re.compile(r"reasoning_gym/[^/]+/(train|held-out)/([0-9]+)/([0-9]+)")


class Family(NamedTuple):
    """One family with its options, as JSON, and its check: what a problem is drawn from and judged by."""

    family: str
    options: str
    check: Check
    ask: str
    response: Form

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The problem at this address: a pure function; train and held-out share no prompt. Raises ConfigError."""
        entry = _entry(self.family, self.options, split, index, seed)
        id = address(f"reasoning_gym/{self.family}", split, index, seed)
        return Problem(id, self._prompt(entry), _gold(entry))

    def score(self, problem: Problem, response: str) -> Verdict:
        """The verdict on a response. Raises ValueError when the problem is broken, and what a scorer raises."""
        if self.check in CHECKS:
            return judged(response, self.response, lambda answer: CHECKS[self.check](answer, problem.gold))
        entry = self._again(problem)
        if self.check == "theirs":
            return _raw(_scorer(self.family, self.options).score_answer(response, entry))
        return judged(response, self.response, lambda answer: self._fault(answer, entry))

    def document(self, problem: Problem) -> str:
        """A right reply."""
        return problem.gold if self.check == "theirs" else wrap("", problem.gold, self.response)

    def has_many(self) -> bool:
        """Whether a problem has several right answers."""
        return self.check in ("expression", "listed", "full") or self.family in MANY

    def _fault(self, answer: str, entry: dict[str, Any]) -> str:
        """What is wrong with an answer to a problem with many right ones, or ""."""
        metadata = entry["metadata"]
        if len(answer) > longest_form(_gold(entry)):
            return f"an answer of {len(answer)} characters"
        if self.check == "expression":
            return expression_fault(answer, metadata["numbers"], metadata.get("target", 24))
        if self.check == "listed":
            listed = metadata["valid_answers"]
            return "" if any(not CHECKS["exact"](answer, one) for one in listed) else "none of the right answers"
        mark = _scorer(self.family, self.options).score_answer(answer, entry)
        return "" if _number(mark) == 1.0 else f"reasoning-gym gives it {_number(mark):.3g} of 1"

    def _again(self, problem: Problem) -> dict[str, Any]:
        """The entry that the problem was made of, drawn again. Raises ValueError when it is another one."""
        found = _ID.fullmatch(problem.id)
        if found is None:
            raise ValueError(f"no address of a problem: {problem.id[:80]!r}")
        split: Split = "train" if found[1] == "train" else "held-out"
        entry = _entry(self.family, self.options, split, int(found[3]), int(found[2]))
        if self._prompt(entry) != problem.prompt:
            raise ValueError(f"{problem.id} is another problem when it is drawn again")
        return entry

    def _prompt(self, entry: dict[str, Any]) -> str:
        return f"{str(entry['question']).strip()}\n{self.ask}" if self.ask else str(entry["question"]).strip()


@lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """What `gym_families.json` holds."""
    return json.loads(FILE.read_text())


def allowed() -> dict[str, dict[str, Any]]:
    """The families fit for use, each with its "check" and what the screen found of note."""
    return table()["allowed"]


def excluded() -> dict[str, str]:
    """The families that are not, each with the reason."""
    return table()["excluded"]


def library() -> Any:
    """The module reasoning_gym. Raises ConfigError where it is not installed."""
    try:
        with _quiet():
            import reasoning_gym
    except ImportError:
        raise ConfigError(
            "task reasoning_gym: wanted the library of that name, came none. pip install reasoning-gym"
        ) from None
    return reasoning_gym


def option_fault(family: str, options: dict[str, Any]) -> str:
    """What is wrong with the options of a family, or "". Loads reasoning-gym, if there are any."""
    if not options:
        return ""
    try:
        _scorer(family, json.dumps(options, sort_keys=True))
    except (AssertionError, TypeError, ValueError) as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


@lru_cache(maxsize=32)
def _scorer(family: str, options: str) -> Any:
    """The family's data set. What it prints is not for us; its seed does not matter, because indexes are drawn."""
    return _data(family, options, seed=0)


def _data(family: str, options: str, seed: int) -> Any:
    with _quiet():
        return library().create_dataset(family, seed=seed, size=1, **json.loads(options))


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep to itself what the library prints, and the files that it forgets to close."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@lru_cache(maxsize=4096)
def _entry(family: str, options: str, split: Split, index: int, seed: int) -> dict[str, Any]:
    """The entry at this address."""
    drawn: list[dict[str, Any]] = []

    def once(rng: random.Random) -> str:
        place = rng.getrandbits(31)
        try:
            with _quiet():
                drawn.append(_scorer(family, options)[place])
        except IndexError:  # this one has its problems in a list: the first of a list of its own
            drawn.append(_data(family, options, seed=place)[0])
        return str(drawn[-1]["question"])

    draw(f"reasoning_gym/{family}", split, index, seed, once)
    return drawn[-1]


def _gold(entry: dict[str, Any]) -> str:
    """The right answer that the entry names; "" where it names none."""
    found = entry["answer"]
    for key in _GOLDS:
        found = entry["metadata"].get(key) if found is None else found
    if found is None:
        return ""
    return (found if isinstance(found, str) else json.dumps(found)).strip()


def _number(mark: Any) -> float:
    mark = float(mark)
    if not math.isfinite(mark):
        raise ValueError(f"the scorer gave {mark}")
    return mark


def _raw(mark: Any) -> Verdict:
    """A scorer's mark as it is: what training on it would reward."""
    reward = _number(mark)
    return Verdict("right" if reward >= 1 else "wrong", reward, {"accuracy": reward}, "")
