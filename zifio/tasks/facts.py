"""A table of random facts to be known by heart: `0417` has the value 83, and nothing but having read it tells so.

Made for the laboratory, to measure memory apart from reasoning. Unlike every other task's, its held-out problems are
those of the text: what is asked is what was read. There is no working.

Try it alone: `python -c "from zifio.tasks.facts import Facts; print(Facts().problem('train', 0, seed=1))"`
"""

import re
from typing import Literal

from pydantic import Field

from zifio.config import Config
from zifio.seed import stream
from zifio.tasks.task import Problem, Split, Verdict, address, grade, render_response

_KEY = re.compile(r"[0-9]{4}", re.ASCII)


class Facts(Config):
    """A config that is also the task."""

    name: Literal["facts"] = "facts"
    """Which task this is."""
    keys: int = Field(default=500, ge=2, le=10_000)
    """How many facts there are."""

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The problem at this address: a pure function; held-out ones walk through the table, train ones are drawn."""
        key = index % self.keys if split == "held-out" else self._drawn(index, seed)
        prompt = f"{key:04d}"
        return Problem(address(self.name, split, index, seed), prompt, self._value(prompt))

    def _drawn(self, index: int, seed: int) -> int:
        return stream(seed, "task/facts", "train", index).randrange(self.keys)

    def _value(self, prompt: str) -> str:
        """Two digits that depend on the key alone."""
        return f"{stream(0, 'task/facts/value', prompt).randrange(100):02d}"

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The assistant's text."""
        return render_response("", problem.gold)

    def score(self, problem: Problem, response: str) -> Verdict:
        """The verdict on a response. ValueError when the problem is broken."""
        if not _KEY.fullmatch(problem.prompt) or problem.gold != self._value(problem.prompt):
            raise ValueError(f"no fact of this table: {problem.prompt[:24]!r} is {problem.gold[:24]!r}")
        return grade(
            response,
            lambda answer: "" if answer == problem.gold else f"it is {problem.gold}, not {answer[:24]!r}",
            lambda *_: "this task has no working",
        )

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the problem's own answer; anything but right is a bug of the task."""
        return self.score(problem, render_response("", problem.gold))
