"""Problems of reasoning-gym, put in its own words, with the answer wanted inside tags: for models that speak English.

reasoning-gym draws the problem (pip install reasoning-gym); the check is ours, because its own gives part marks when
the right answer merely occurs somewhere. Families that passed the screen are offered (`zifio.tasks.families`): the sums
and differences of `chain_sum`, with options and a working of our own, and others with reasoning-gym's own `options`.

Try it alone:

    python -c "from zifio.tasks.gym import Gym; print(Gym().problem('train', 0, seed=1))"
"""

import json
import random
import re
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from zifio.config import Config, suggestion
from zifio.tasks.families import ISOLATED, Check, Family, allowed, excluded, library, option_fault
from zifio.tasks.form import ASK, CLOSE, OPEN, between_tags
from zifio.tasks.task import Problem, Split, Verdict, address, draw

_ASK = "Work it out step by step, then give the number alone between <answer> and </answer>."
_EXPRESSION = re.compile(r"-?[0-9]+(?: [+-] [0-9]+)+", re.ASCII)
_INTEGER = re.compile(r"-?[1-9][0-9]{0,31}|0", re.ASCII)  # bounded, and never handed to int()
_QUOTED = 40  # characters of a stranger's text that a reason repeats


class Gym(Config):
    """A config that is also the task."""

    name: Literal["reasoning_gym"] = "reasoning_gym"
    """Which task this is."""
    family: str = "chain_sum"
    """The family of reasoning-gym; `gym_families.json` lists those that passed the screen."""
    options: dict[str, Any] = {}
    """Options that reasoning-gym knows for this family; those of chain_sum follow."""
    min_terms: int = Field(default=2, ge=2, le=100)
    """Fewest terms of a sum."""
    max_terms: int = Field(default=4, ge=2, le=100)
    """Most terms of a sum."""
    min_digits: int = Field(default=1, ge=1, le=12)
    """Fewest digits of a term."""
    max_digits: int = Field(default=1, ge=1, le=12)
    """Most digits of a term."""
    needs: ClassVar[tuple[str, ...]] = ("reasoning_gym",)

    @model_validator(mode="after")
    def _fit_for_use(self) -> "Gym":
        if self.family not in allowed():
            why = excluded().get(self.family)
            known = suggestion(self.family, allowed()) or f"{len(allowed())} passed, from {min(allowed())} on."
            raise ValueError(
                f"wanted a family that passed the screen, came {self.family!r}"
                f"{f', which did not: {why}' if why else ''}. {known if not why else 'Choose another.'}"
            )
        sizes = {"min_terms", "max_terms", "min_digits", "max_digits"} & self.model_fields_set
        if self.family != "chain_sum" and sizes:
            raise ValueError(f"{min(sizes)} is an option of chain_sum, not of {self.family}. Put its own in `options`.")
        if self.family == "chain_sum" and self.options:
            raise ValueError(f"options: chain_sum has its own here: min_terms and so on, not {sorted(self.options)}.")
        fault = option_fault(self.family, self.options)
        if fault:
            raise ValueError(f"options: wanted what reasoning-gym takes for {self.family}, came: {fault}. Mend it.")
        return self

    @model_validator(mode="after")
    def _in_order(self) -> "Gym":
        for key in ("terms", "digits"):
            least, most = getattr(self, f"min_{key}"), getattr(self, f"max_{key}")
            if least > most:
                raise ValueError(f"wanted min_{key} at most max_{key}, came {least} and {most}. Raise max_{key}.")
        return self

    @property
    def isolated(self) -> bool:
        """Whether reasoning-gym's own scorer decides."""
        return self.family != "chain_sum" and self._family().check in ISOLATED

    @property
    def many(self) -> bool:
        """Whether a problem has several right answers."""
        return self.family != "chain_sum" and self._family().has_many()

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The problem at this address: a pure function; train and held-out share no prompt.

        Raises ConfigError when reasoning-gym is not installed.
        """
        if self.family != "chain_sum":
            return self._family().problem(split, index, seed)
        prompt = draw(self.name, split, index, seed, self._prompt)
        steps = _steps(prompt)
        working = ", ".join(f"{before} {sign} {term} = {total}" for before, sign, term, total in steps)
        return Problem(address(self.name, split, index, seed), prompt, str(steps[-1][-1]), working)

    def document(self, problem: Problem, shows_working: bool) -> str:
        """A right reply: the running totals, if wanted, and the answer between its tags."""
        if self.family != "chain_sum":
            return self._family().document(problem)
        working = f"{problem.working}. " if shows_working else ""
        return f"{working}{OPEN}{problem.gold}{CLOSE}"

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right when the response ends with the answer between the one pair of tags, an integer as one writes it.

        Raises ValueError when the problem is broken.
        """
        if self.family != "chain_sum":
            return self._family().score(problem, response)
        gold = str(_steps(problem.prompt)[-1][-1])
        answer, fault = between_tags(response)
        if fault:
            return Verdict("wrong", 0.0, {"accuracy": 0.0, "format": 0.0}, fault)
        if not _INTEGER.fullmatch(answer):
            return Verdict("wrong", 0.0, {"accuracy": 0.0, "format": 1.0}, f"no integer: {answer[:_QUOTED]!r}")
        right = answer == gold
        reason = "" if right else f"the answer is {gold}, not {answer}"
        return Verdict("right" if right else "wrong", float(right), {"accuracy": float(right), "format": 1.0}, reason)

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the problem's own answer; anything but right is a bug of the task."""
        return self.score(problem, self.document(problem, shows_working=True))

    def _prompt(self, rng: random.Random) -> str:
        """A problem in reasoning-gym's words, and how to answer. Each has a seed of its own: neighbouring seeds of
        reasoning-gym repeat one another's problems."""
        sizes = {key: getattr(self, key) for key in ("min_terms", "max_terms", "min_digits", "max_digits")}
        drawn = library().create_dataset(self.family, seed=rng.getrandbits(48), size=1, **sizes)[0]
        return f"{drawn['question']}\n{_ASK}"

    def _family(self) -> Family:
        check: Check = allowed()[self.family]["check"]
        return Family(self.family, json.dumps(self.options, sort_keys=True), check, ASK["tags"], "tags")


class Candidate(Config):
    """Any family with any check, for the screen: no recipe can name it."""

    name: Literal["reasoning_gym"] = "reasoning_gym"
    """Which task this is."""
    family: str
    """The family of reasoning-gym."""
    scorer: Check
    """How an answer is checked; theirs: what training on reasoning-gym's own scorer would reward."""
    options: dict[str, Any] = {}
    """Options that reasoning-gym knows for this family."""
    needs: ClassVar[tuple[str, ...]] = ("reasoning_gym",)

    @property
    def isolated(self) -> bool:
        """Whether reasoning-gym's own scorer decides."""
        return self.scorer in ISOLATED

    @property
    def many(self) -> bool:
        """Whether a problem has several right answers."""
        return self._family().has_many()

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The problem at this address."""
        return self._family().problem(split, index, seed)

    def document(self, problem: Problem, shows_working: bool) -> str:
        """A right reply."""
        return self._family().document(problem)

    def score(self, problem: Problem, response: str) -> Verdict:
        """The verdict on a response."""
        return self._family().score(problem, response)

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the problem's own answer."""
        return self.score(problem, self.document(problem, shows_working=True))

    def _family(self) -> Family:
        ask = "" if self.scorer == "theirs" else ASK["tags"]
        return Family(self.family, json.dumps(self.options, sort_keys=True), self.scorer, ask, "tags")


def _steps(prompt: str) -> list[tuple[int, str, int, int]]:
    """(total before, sign, term, total after) of the sum in the prompt. Raises ValueError when there is none."""
    found = _EXPRESSION.search(prompt)
    if found is None:
        raise ValueError(f"no sum in {prompt[:_QUOTED]!r}")
    first, *rest = found[0].split(" ")
    total, steps = int(first), []
    for sign, term in zip(rest[::2], map(int, rest[1::2]), strict=True):
        after = total + term if sign == "+" else total - term
        steps.append((total, sign, term, after))
        total = after
    return steps
