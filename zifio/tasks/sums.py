"""Sums that a person reads: `6+1-1+9`, and their sister that asks for the last digit only, `(3+7+2)%10`.

ChainSum is the chain_sum family of reasoning-gym (same distribution, the bare expression as the prompt).
ChainMod is the additive cousin of parity, known to reward long answers (Tsilivis et al., arXiv 2510.11495). A
working shows the running totals in one of four styles; its check accepts no step that is false, skipped or
out of order.

Try it alone:

    python -c "from zifio.tasks.sums import ChainSum; print(ChainSum().problem('train', 0, seed=1))"
"""

import random
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from zifio.config import Config
from zifio.tasks.form import THINK, THOUGHT
from zifio.tasks.steps import Label
from zifio.tasks.task import Problem, Split, Verdict, address, draw, grade, render_response

Style = Literal["chained", "aligned", "steps", "totals"]

_EXPRESSION = re.compile(r"[0-9]+(?:[+-][0-9]+)+", re.ASCII)
_TERM = re.compile(r"[+-]?[0-9]+", re.ASCII)
_INTEGER = re.compile(r"-?[1-9][0-9]{0,31}|0", re.ASCII)  # bounded, and never handed to int()
_EQUATION = re.compile(
    r",?(?P<start>-?[0-9]{1,12})?(?P<term>[+-][0-9]{1,12})= ?(?P<result>-?[0-9]{1,12})", re.ASCII
)  # bounded, so that a long one is false and int() stays quick
_QUOTED = 24  # characters of a stranger's text that a reason repeats


class _Chain(Config):
    """What both kinds of chain share: a config that is also the task."""

    name: str
    min_terms: int = Field(default=6, ge=2, le=1000)
    """Fewest terms of a sum; every length up to max_terms is equally likely."""
    max_terms: int = Field(default=12, ge=2, le=1000)
    """Most terms of a sum."""
    working: Style = "chained"
    """How 6+1-1+9 is worked. chained: 6+1=7-1=6+9=15; aligned: the same with totals at least two wide,
    6+1= 7-1= 6+9=15, so that every step takes as many characters; steps: 6+1=7,7-1=6,6+9=15; totals: 7,6,15."""

    @model_validator(mode="after")
    def _lengths_in_order(self) -> "_Chain":
        if self.min_terms > self.max_terms:
            raise ValueError(
                f"wanted min_terms at most max_terms, came {self.min_terms} and {self.max_terms}. "
                f"Set max_terms to {self.min_terms} or more."
            )
        return self

    @abstractmethod
    def _prompt(self, rng: random.Random) -> str:
        """A random prompt."""

    @abstractmethod
    def _steps(self, prompt: str) -> list[str]:
        """The pieces of the true working of `prompt`, in order; ValueError when it is no prompt of this
        task."""

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The problem at this address: a pure function; train and held-out share no prompt."""
        prompt = draw(self.name, split, index, seed, self._prompt)
        working = "".join(self._steps(prompt))
        return Problem(address(self.name, split, index, seed), prompt, _final(working), working)

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The assistant's text: the true answer, after its working or straight away."""
        return render_response(problem.working if shows_working else "", problem.gold)

    def score(self, problem: Problem, response: str) -> Verdict:
        """The verdict on a response. Raises ValueError when the problem itself is broken."""
        steps = self._steps(problem.prompt)
        if problem.gold != _final(steps[-1]):
            raise ValueError(f"gold of {problem.prompt} is given as {problem.gold}, but it is {_final(steps[-1])}")
        return grade(
            response,
            lambda answer: _answer_fault(answer, problem.gold),
            lambda working, _: _working_fault(working, steps),
        )

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the problem's own answer and working; anything but right is a bug of the task."""
        return self.score(problem, self.document(problem, shows_working=True))

    def check_steps(self, problem: Problem, steps: Sequence[str]) -> list[Label]:
        """Implements `tasks.steps.Stepwise`: a step is true where it computes right from the total before it, and good
        where it is also the next of the true working. What stands behind the thinking has None."""
        true = self._steps(problem.prompt)
        labels: list[Label] = []
        total: int | None = None
        is_on_course = is_thinking = True
        for place, step in enumerate(steps):
            bare = step.removeprefix(THINK) if place == 0 else step
            is_thinking = is_thinking and not bare.startswith(THOUGHT)
            if not is_thinking:
                labels.append(None)
                continue
            is_on_course = is_on_course and place < len(true) and bare == true[place]
            holds, total = _computed(bare, total, getattr(self, "modulus", None))
            labels.append(1 if is_on_course else 0 if holds else -1)
        return labels


class ChainSum(_Chain):
    """Sums and differences, from left to right: `6+1-1+9` is 15."""

    name: Literal["chain_sum"] = "chain_sum"
    """Which task this is."""
    digits: int = Field(default=1, ge=1, le=9)
    """Digits of every term. As in reasoning-gym, a single digit may be 0 and a longer term never begins with
    it."""

    def _prompt(self, rng: random.Random) -> str:
        n_terms = rng.randint(self.min_terms, self.max_terms)
        if self.digits == 1:
            terms = rng.choices("0123456789", k=n_terms)
        else:
            terms = [str(rng.randrange(10 ** (self.digits - 1), 10**self.digits)) for _ in range(n_terms)]
        signs = rng.choices("+-", k=n_terms - 1)
        return terms[0] + "".join(map(str.__add__, signs, terms[1:]))

    def _steps(self, prompt: str) -> list[str]:
        return true_steps(prompt, self.working)


class ChainMod(_Chain):
    """The last digit of a sum: `(3+7+2)%10` is 2. Running totals are reduced too, so they never grow."""

    name: Literal["chain_mod"] = "chain_mod"
    """Which task this is."""
    modulus: int = Field(default=10, ge=2, le=100)
    """The answer is the remainder by this; 10 gives the last digit."""

    def _prompt(self, rng: random.Random) -> str:
        terms = rng.choices("0123456789", k=rng.randint(self.min_terms, self.max_terms))
        return f"({'+'.join(terms)})%{self.modulus}"

    def _steps(self, prompt: str) -> list[str]:
        tail = f")%{self.modulus}"
        if not (prompt.startswith("(") and prompt.endswith(tail)):
            raise ValueError(f"no sum in brackets with {tail[1:]} behind it: {prompt[:_QUOTED]!r}")
        return true_steps(prompt[1 : -len(tail)], self.working, self.modulus)


def true_steps(expression: str, style: Style, modulus: int | None = None) -> list[str]:
    """The working of a bare expression in one piece per step; joined they are the working, the last ends in
    the total.

    Totals are reduced by `modulus` where one is given. A negative total is written as it is: `2-5=-3+5=2`.
    Raises ValueError for what is no chain of at least two terms.
    """
    if not _EXPRESSION.fullmatch(expression):
        raise ValueError(f"no chain of sums: {expression[:_QUOTED]!r}")
    first, *terms = _TERM.findall(expression)
    total = int(first)
    steps = []
    for term in terms:
        before, total = total, total + int(term)
        if modulus is not None:
            total %= modulus
        comma = "," if steps else ""
        if style in ("chained", "aligned"):
            steps.append(f"{'' if steps else first}{term}={total:{2 if style == 'aligned' else 0}d}")
        elif style == "steps":
            steps.append(f"{comma}{before}{term}={total}")
        else:
            steps.append(f"{comma}{total}")
    return steps


def _computed(step: str, total: int | None, modulus: int | None) -> tuple[bool, int | None]:
    """(whether a step is a true equation that goes on from `total`, the total that it claims)."""
    found = _EQUATION.fullmatch(step)
    if found is None:
        return False, None
    start = int(found["start"]) if found["start"] else total
    result = int(found["result"])
    if start is None:
        return False, result
    value = start + int(found["term"])
    return (value if modulus is None else value % modulus) == result, result


def _final(working: str) -> str:
    """The total that a true working ends in."""
    return re.split("[=,]", working)[-1].strip()


def _answer_fault(answer: str, gold: str) -> str:
    """What is wrong with an answer, or "". It must be the very text of the integer: no +5, 05, -0 or
    spaces."""
    if answer == gold:
        return ""
    if _INTEGER.fullmatch(answer):
        return f"the answer is {gold}, not {answer}"
    return f"the answer is not one plain integer: {answer[:_QUOTED]!r}"


def _working_fault(working: str, steps: list[str]) -> str:
    """The first place where a working leaves the true one, or "": steps, operands, order and end are all
    fixed."""
    at = 0
    for number, step in enumerate(steps, 1):
        if not working.startswith(step, at):
            came = working[at : at + max(len(step), _QUOTED)]
            return f"step {number} of the working should read {step!r}, came {came!r}"
        at += len(step)
    return f"the working goes on after its last step: {working[at : at + _QUOTED]!r}" if at < len(working) else ""
