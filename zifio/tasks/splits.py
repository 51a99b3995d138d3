"""Three digits, each to be split into two with that sum (mod 10): a prompt has exactly 1000 right answers.

`1,4,7` is answered by `013143`, since 0+1=1, 3+1=4 and 4+3=7. Because the right answers can be counted, the
diversity of a model is exact. Made for tests and the laboratory. There is no working. `junk` sets how good a
base becomes: that share of its demonstrations is random.

Try it alone:

    python -c "from zifio.tasks.splits import Splits; print(Splits().problem('train', 0, seed=1))"
"""

import random
import re
from typing import ClassVar, Literal

from pydantic import Field

from zifio.config import Config
from zifio.seed import stream
from zifio.tasks.task import Problem, Split, Verdict, address, draw, grade, render_response

_PROMPT = re.compile(r"[0-9],[0-9],[0-9]", re.ASCII)
_SIX_DIGITS = re.compile(r"[0-9]{6}", re.ASCII)
_QUOTED = 24


class Splits(Config):
    """A config that is also the task."""

    name: Literal["splits"] = "splits"
    """Which task this is."""
    junk: float = Field(default=0.0, ge=0, le=1)
    """Share of documents whose six digits are random."""
    odd_first: bool = False
    """A further rule: the first digit of every pair is odd."""
    many: ClassVar[bool] = True  # a problem has several right answers

    @property
    def n_right(self) -> int:
        """Exactly so many right answers has every problem."""
        return 5**3 if self.odd_first else 10**3

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The problem at this address: a pure function; train and held-out share no prompt."""
        prompt = draw(self.name, split, index, seed, _prompt)
        id = address(self.name, split, index, seed)
        firsts = stream(seed, f"task/{self.name}/gold", split, index).choices(self._firsts, k=3)
        gold = "".join(f"{d}{(int(total) - d) % 10}" for d, total in zip(firsts, prompt.split(","), strict=True))
        return Problem(id, prompt, gold)

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The assistant's text: a right answer, or for the share `junk` of problems six random digits."""
        rng = stream(0, f"task/{self.name}/junk", problem.id)
        if rng.random() < self.junk:
            return render_response("", "".join(rng.choices("0123456789", k=6)))
        return render_response("", problem.gold)

    def score(self, problem: Problem, response: str) -> Verdict:
        """The verdict on a response: any of the right answers is right. ValueError when the problem is
        broken."""
        if not _PROMPT.fullmatch(problem.prompt):
            raise ValueError(f"no three digits: {problem.prompt[:_QUOTED]!r}")
        return grade(
            response,
            lambda answer: _answer_fault(answer, problem.prompt, self._firsts),
            lambda *_: "this task has no working",
        )

    @property
    def _firsts(self) -> range:
        """What may stand first in a pair."""
        return range(1, 10, 2) if self.odd_first else range(10)

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the problem's own answer; anything but right is a bug of the task."""
        return self.score(problem, render_response("", problem.gold))


def _prompt(rng: random.Random) -> str:
    return ",".join(rng.choices("0123456789", k=3))


def _answer_fault(answer: str, prompt: str, firsts: range) -> str:
    """What is wrong with an answer, or ""."""
    if not _SIX_DIGITS.fullmatch(answer):
        return f"the answer is not six digits: {answer[:_QUOTED]!r}"
    digits = [int(d) for d in answer]
    for place, total in enumerate(prompt.split(",")):
        first, second = digits[2 * place : 2 * place + 2]
        if (first + second) % 10 != int(total):
            return f"{first}+{second} does not end in {total}"
        if first not in firsts:
            return f"{first} may not stand first in {first}+{second}"
    return ""
