"""Products of two numbers that nobody multiplies in one glance, with a calculator to call: `347*582` is 201954.

The documents answer straight away, or show how the calculator is called. Whoever can only guess is right almost never,
whoever calls is right almost always. A verdict's part "process" says that the right answer came from the tool. Sums may
stand beside the products, and `bare` products without a call, so that a base can know how to call and not do it.

Try it alone:

    python -c "from zifio.tasks.calculator import Calculator; print(Calculator().problem('train', 0, seed=1))"
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator

from zifio.config import Config
from zifio.seed import stream
from zifio.tasks.environment import Call, Message, Turn, conversation
from zifio.tasks.task import Problem, Split, Verdict, address, draw, grade, render_response
from zifio.tasks.tools import Workshop, calculator

_PROMPT = re.compile(r"([1-9][0-9]{0,8})([-+*])([1-9][0-9]{0,8})", re.ASCII)
_QUOTED = 24  # characters of a stranger's text that a reason repeats


class Calculator(Config):
    """A config that is also the task."""

    name: Literal["calculator"] = "calculator"
    """Which task this is."""
    min_digits: int = Field(default=3, ge=1, le=9)
    """Fewest digits of a factor; every length up to max_digits is equally likely."""
    max_digits: int = Field(default=3, ge=1, le=9)
    """Most digits of a factor."""
    operations: tuple[Literal["*", "+", "-"], ...] = Field(default=("*",), min_length=1)
    """What is asked, each equally often."""
    sum_digits: int = Field(default=6, ge=1, le=9)
    """Most digits of a term of a sum or difference; the fewest are min_digits."""
    bare: float = Field(default=0.0, ge=0, le=1)
    """Share of products whose documents answer straight away even when a call is to be shown."""
    max_turns: int = Field(default=4, ge=1, le=64)
    """An episode is cut after so many turns."""
    max_calls: int = Field(default=3, ge=0, le=64)
    """Calls that the calculator answers; further ones get an error."""

    @model_validator(mode="after")
    def _lengths_in_order(self) -> Calculator:
        if self.min_digits > self.max_digits:
            raise ValueError(
                f"wanted min_digits at most max_digits, came {self.min_digits} and {self.max_digits}. "
                f"Set max_digits to {self.min_digits} or more."
            )
        if self.min_digits > self.sum_digits:
            raise ValueError(f"wanted sum_digits of {self.min_digits} or more, came {self.sum_digits}. Raise it.")
        return self

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The calculator."""
        return [calculator().schema]

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The problem at this address: a pure function; train and held-out share no prompt."""
        prompt = draw(self.name, split, index, seed, self._prompt)
        return Problem(address(self.name, split, index, seed), prompt, _result(prompt))

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The assistant's last text: the true answer. Its working would be a call, see `demonstration`."""
        return render_response("", problem.gold)

    def demonstration(self, problem: Problem, shows_working: bool) -> list[Message]:
        """The conversation: with working the calculator is asked, without it the answer comes straight away."""
        answer = Turn(self.document(problem, shows_working)).message()
        is_bare = "*" in problem.prompt and stream(0, f"task/{self.name}/bare", problem.id).random() < self.bare
        if is_bare or not shows_working:
            return [*conversation(problem), answer]
        arguments = json.dumps({"expression": problem.prompt}, separators=(",", ":"))
        turn = Turn("", (Call("calculator", arguments),))
        heard = Workshop([calculator()], 1).step(turn).messages
        return [*conversation(problem), turn.message(), *heard, answer]

    def start(self, problem: Problem, seed: int) -> _Desk:
        """A desk with a calculator on it."""
        return _Desk(self, problem)

    def score(self, problem: Problem, response: str) -> Verdict:
        """The verdict on an answer. Raises ValueError when the problem is broken."""
        if problem.gold != _result(problem.prompt):
            raise ValueError(f"gold of {problem.prompt} is given as {problem.gold[:_QUOTED]}")
        return grade(response, lambda answer: _answer_fault(answer, problem.gold), lambda *_: "a working is a call")

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the problem's own answer; anything but right is a bug of the task."""
        return self.score(problem, self.document(problem, shows_working=True))

    def _prompt(self, rng: random.Random) -> str:
        operation = rng.choice(self.operations) if len(self.operations) > 1 else next(iter(self.operations))
        most = self.max_digits if operation == "*" else self.sum_digits
        numbers = []
        for _ in range(2):
            n_digits = rng.randint(self.min_digits, most)
            numbers.append(rng.randrange(10 ** (n_digits - 1), 10**n_digits))
        return f"{numbers[0]}{operation}{numbers[1]}"


class _Desk(Workshop):
    """The calculator, and whether the right answer came from it."""

    def __init__(self, task: Calculator, problem: Problem) -> None:
        super().__init__([calculator()], task.max_calls)
        self.task, self.problem = task, problem

    def verdict(self, text: str) -> Verdict:
        """The task's, with the part "process" for a right answer that the calculator gave."""
        verdict = self.task.score(self.problem, text)
        asked = any(result.content == self.problem.gold and not result.failed for result in self.results)
        if verdict.outcome != "right" or not asked:
            return verdict
        return replace(verdict, parts={**verdict.parts, "process": 1.0}, reason="")


def _result(prompt: str) -> str:
    """The right answer. Raises ValueError for what is no prompt of this task."""
    found = _PROMPT.fullmatch(prompt)
    if found is None:
        raise ValueError(f"no product, sum or difference: {prompt[:_QUOTED]!r}")
    left, right = int(found[1]), int(found[3])
    return str({"*": left * right, "+": left + right, "-": left - right}[found[2]])


def _answer_fault(answer: str, gold: str) -> str:
    return "" if answer == gold else f"the answer is {gold}, not {answer[:_QUOTED]!r}"
