"""Unit tests of what layers can do, all in one task: copy, recall pairs, add up, tell parity, with or without workings.

Made for the laboratory, after MAD and MQAR (arXiv:2403.17844, arXiv:2312.04927). A mark says what is wanted:

    copying        =kqzk         kqzk
    pairs          ?a3k7c1?kc    k7c1      some of the keys again, with their values
    sums           +372          2         the last digit of the sum, in any base
    sums-worked    *d3e7f2       2         with the last digits of the totals so far before it, d3e0f2
    parity         !1011         1         whether the ones are odd in number
    parity-worked  #x1y0z1A1     1         with the parities so far before it, x1y1z0A1

Labels in order, from any one on, let a working find its place at any length (index hints, arXiv:2310.16028).

Try it alone: `python -c "from zifio.tasks.drills import Drills; print(Drills().problem('held-out', 0, seed=1))"`
"""

import random
import re
from itertools import accumulate, cycle, islice
from string import ascii_letters, ascii_lowercase, digits
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from zifio.config import Config
from zifio.tasks.task import Problem, Split, Verdict, address, draw, grade, render_response

Kind = Literal["copying", "pairs", "sums", "sums-worked", "parity", "parity-worked"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_MARKS: dict[Kind, str] = dict(zip(KINDS, "=?+*!#", strict=True))
_KINDS: dict[str, Kind] = {mark: kind for kind, mark in _MARKS.items()}
_LABELLED = "(?:[a-zA-N][0-9])+"
_BODIES: dict[Kind, str] = {
    "copying": "[a-z]+",
    "pairs": rf"{_LABELLED}\?[a-zA-N]+",
    "sums": "[0-9]+",
    "sums-worked": _LABELLED,
    "parity": "[0-9]+",
    "parity-worked": _LABELLED,
}
_KEYS = ascii_letters[:40]  # few, that each is seen often
_MOST_ASKED = 4
_QUOTED = 24  # characters of a stranger's text that a reason repeats


class Drills(Config):
    """A config that is also the task."""

    name: Literal["drills"] = "drills"
    """Which task this is."""
    kinds: Annotated[list[Kind], Field(min_length=1)] = [*KINDS]
    """What is drilled; problems take turns."""
    base: int = Field(default=10, ge=2, le=10)
    """Of the digits of sums."""
    min_length: int = Field(default=2, ge=1, le=len(_KEYS))
    """Fewest letters, pairs, digits or bits; every number up to max_length is equally likely."""
    max_length: int = Field(default=8, ge=1, le=len(_KEYS))
    """Most of them; no key has two values, so there are no more pairs than keys."""

    @model_validator(mode="after")
    def _lengths_in_order(self) -> "Drills":
        if self.min_length > self.max_length:
            raise ValueError(
                f"wanted min_length at most max_length, came {self.min_length} and {self.max_length}. "
                f"Set max_length to {self.min_length} or more."
            )
        return self

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The problem at this address: a pure function; train and held-out share no prompt."""
        kind = self.kinds[index % len(self.kinds)]

        def once(rng: random.Random) -> str:
            return _MARKS[kind] + self._body(kind, rng.randint(self.min_length, self.max_length), rng)

        prompt = draw(self.name, split, index, seed, once)
        working, gold = self._solved(prompt)
        return Problem(address(self.name, split, index, seed), prompt, gold, working)

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The assistant's text: the answer, after its working where the kind has one."""
        return render_response(problem.working if shows_working else "", problem.gold)

    def score(self, problem: Problem, response: str) -> Verdict:
        """The verdict on a response: the very text of the answer is right. ValueError when the problem is broken."""
        true_working, gold = self._solved(problem.prompt)
        if problem.gold != gold:
            raise ValueError(f"gold of {problem.prompt[:_QUOTED]!r} is given as {problem.gold!r}, but it is {gold!r}")

        def answer_fault(answer: str) -> str:
            return "" if answer == gold else f"the answer is {gold[:_QUOTED]!r}, not {answer[:_QUOTED]!r}"

        def working_fault(working: str, _: str) -> str:
            if not true_working:
                return "this kind has no working"
            return "" if working == true_working else f"the working is {true_working[:_QUOTED]!r}"

        return grade(response, answer_fault, working_fault)

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the problem's own answer and working; anything but right is a bug of the task."""
        return self.score(problem, self.document(problem, shows_working=True))

    def _body(self, kind: Kind, length: int, rng: random.Random) -> str:
        """A prompt behind its mark."""
        if kind == "pairs":
            keys = rng.sample(_KEYS, length)
            asked = rng.sample(keys, min(length, _MOST_ASKED))
            return "".join(key + rng.choice(digits) for key in keys) + "?" + "".join(asked)
        if kind == "copying":
            return "".join(rng.choices(ascii_lowercase, k=length))
        terms = rng.choices(digits[: self._modulus(kind)], k=length)
        if kind.endswith("-worked"):
            return "".join(map(str.__add__, islice(cycle(_KEYS), rng.randrange(len(_KEYS)), None), terms))
        return "".join(terms)

    def _modulus(self, kind: Kind) -> int:
        return 2 if kind.startswith("parity") else self.base

    def _solved(self, prompt: str) -> tuple[str, str]:
        """(working, answer) of a prompt. ValueError when it is no prompt of this task."""
        kind, body = _KINDS.get(prompt[:1]), prompt[1:]
        if kind is None or not re.fullmatch(_BODIES[kind], body, re.ASCII):
            raise ValueError(f"no drill: {prompt[:_QUOTED]!r}")
        if kind == "copying":
            return "", body
        if kind == "pairs":
            return "", _looked_up(body)
        labels, modulus = body[::2] if kind.endswith("-worked") else "", self._modulus(kind)
        terms = [int(term) for term in (body[1::2] if labels else body)]
        if max(terms) >= modulus:
            raise ValueError(f"no drill in base {modulus}: {prompt[:_QUOTED]!r}")
        so_far = [str(total) for total in accumulate(terms, lambda total, term: (total + term) % modulus)]
        return "".join(map(str.__add__, labels, so_far)), so_far[-1]


def _looked_up(body: str) -> str:
    """The keys that are asked for, each with its value."""
    pairs, asked = body.split("?")
    table = dict(zip(pairs[::2], pairs[1::2], strict=True))
    if 2 * len(table) < len(pairs) or not table.keys() >= set(asked):
        raise ValueError(f"a key with two values, or one that is asked for and has none: {body[:_QUOTED]!r}")
    return "".join(key + table[key] for key in asked)
