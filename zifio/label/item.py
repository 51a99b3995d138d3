"""What people label, and what they say: an item (steps, an answer, or a pair) and a judgement of it.

A step's rating is PRM800K's (arXiv:2305.20050): +1 right and useful, 0 neither, -1 wrong. `stance` reduces a judgement
to the one thing that labellers are compared by: where the first error is, whether an answer is right, which of two is
better.

Try it alone:

    python -c "from zifio.label.item import *; print(Item(id='a', prompt='2+3', steps=('2+3=5',)))"
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from zifio.config import Config
from zifio.tasks.steps import first_error
from zifio.tasks.task import Outcome

Kind = Literal["steps", "answer", "pair"]
Role = Literal["work", "gold", "screening"]
Rating = Literal[-1, 0, 1] | None
Value = Literal["right", "wrong", "unsure", "a", "b", "tie", "both_bad"]
Finish = Literal["found_error", "solution", "bad_problem", "give_up"]
Score = Annotated[float, Field(ge=0, le=1)]
ANSWERS: tuple[Value, ...] = ("right", "wrong", "unsure")
PREFERENCES: tuple[Value, ...] = ("a", "b", "tie", "both_bad")


class Judgement(Config):
    """What one person (or a machine, as a pre-label) says about one item."""

    finish: Finish = "solution"
    """found_error: a step is wrong. solution: none is. bad_problem: the question makes no sense. give_up: somebody
    else shall say."""
    ratings: tuple[Rating, ...] = ()
    """One for each step; null where it was not judged."""
    alternatives: tuple[tuple[Rating, ...], ...] = ()
    """Ratings of the alternatives to each step, where the item has some."""
    value: Value | None = None
    """Of an answer: right, wrong, unsure. Of a pair: a, b, tie, both_bad."""
    correction: str = Field(default="", max_length=20_000)
    """What should stand in place of the first wrong step, or of the answer."""
    flagged: bool = False
    """Something is odd here: somebody should look."""
    note: str = Field(default="", max_length=20_000)
    """Anything else, in words."""


class Item(Config):
    """One thing to label. Only prompt, texts and the right answer's place are shown; the rest stays hidden."""

    id: str = Field(min_length=1, max_length=200)
    """Names it. The same id with the same content is the same item."""
    kind: Kind = "steps"
    """steps: mark each step. answer: right or wrong. pair: which is better."""
    role: Role = "work"
    """gold: its label is known, it checks the labeller. screening: shown to everybody before any work."""
    prompt: str
    """The question."""
    steps: tuple[str, ...] = ()
    """The working, step by step (kind steps); joined, they are its text."""
    alternatives: tuple[tuple[str, ...], ...] = ()
    """Other texts for each step, to be rated too."""
    response: str = ""
    """The reply (kind answer)."""
    a: str = ""
    """One reply (kind pair)."""
    b: str = ""
    """The other reply (kind pair)."""
    answer: str = ""
    """What the working comes to."""
    gold: str = ""
    """The right answer, which the verifier compares with; empty where nobody knows it."""
    task: dict[str, Any] = {"name": "maths"}
    """Whose verifier gives the verdict: the maths verifier, or a task with its options."""
    problem: str = ""
    """The problem's id, where it has one."""
    outcome: Outcome | Literal[""] = ""
    """The verifier's verdict, where somebody asked."""
    scores: tuple[Score, ...] = ()
    """How likely a process reward model holds each step to be right; one number for anything else than steps."""
    prelabel: Judgement | None = None
    """What a machine says. Nobody sees it before they have said what they think."""
    expected: Judgement | None = None
    """The known label (roles gold and screening)."""
    source: str = ""
    """Where the text comes from: a model's digest, a file."""

    @model_validator(mode="after")
    def _fits(self) -> "Item":
        texts = {"steps": bool(self.steps), "answer": bool(self.response), "pair": bool(self.a and self.b)}
        if not texts[self.kind]:
            wanted = {"steps": "steps", "answer": "response", "pair": "a and b"}[self.kind]
            raise ValueError(f"wanted {wanted} for kind {self.kind!r}, came none. Give them, or another kind.")
        if self.alternatives and len(self.alternatives) != len(self.steps):
            raise ValueError(
                f"wanted alternatives for each of {len(self.steps)} steps, came {len(self.alternatives)}. Give an "
                "empty list where there are none."
            )
        if (self.role == "work") != (self.expected is None):
            raise ValueError("wanted `expected` with the roles gold and screening, and with these alone.")
        for name in ("prelabel", "expected"):
            said = getattr(self, name)
            if said is not None and (wrong := fault(self, said)):
                raise ValueError(f"{name}: {wrong}")
        if self.expected is not None and stance(self.kind, self.expected) is None:
            raise ValueError("expected: wanted a label that says something, came one that gives up.")
        return self

    @property
    def score(self) -> float | None:
        """The process score of the whole: its weakest step's. None where no model gave scores."""
        return min(self.scores) if self.scores else None


def fault(item: Item, said: Judgement) -> str:
    """What keeps a judgement from being one of this item, in words; "" when it is one."""
    if said.finish in ("bad_problem", "give_up"):
        return ""
    if item.kind == "steps":
        return _steps_fault(item, said)
    values = ANSWERS if item.kind == "answer" else PREFERENCES
    if said.ratings or said.alternatives:
        return f"wanted a value, one of {', '.join(values)}, came ratings of steps."
    if said.value not in values:
        return f"wanted a value, one of {', '.join(values)}, came {said.value!r}."
    return ""


def _steps_fault(item: Item, said: Judgement) -> str:
    """Every step up to the first wrong one has a rating; behind it, any or none."""
    if said.value is not None:
        return f"wanted ratings of steps, came the value {said.value!r}."
    if len(said.ratings) != len(item.steps):
        return f"wanted {len(item.steps)} ratings, one for each step, came {len(said.ratings)}."
    wrong = first_error(said.ratings)
    judged = said.ratings if wrong is None else said.ratings[:wrong]
    if None in judged:
        return (
            f"wanted a rating for step {judged.index(None) + 1}, came none. Rate every step up to the first wrong one."
        )
    if (wrong is None) != (said.finish == "solution"):
        return f"wanted finish {'solution' if wrong is None else 'found_error'} with these ratings, came {said.finish}."
    shape = [len(one) for one in item.alternatives]
    if said.alternatives and [len(one) for one in said.alternatives] != shape:
        return "wanted as many ratings of alternatives as the item has alternatives, came others."
    return ""


def stance(kind: str, said: Judgement) -> str | None:
    """The one thing that labellers are compared by; None for one that gave up.

    Steps: `error 3` (the first wrong step, from 1) or `no error`. Else the value. Or `bad problem`.
    """
    if said.finish == "give_up":
        return None
    if said.finish == "bad_problem":
        return "bad problem"
    if kind != "steps":
        return said.value
    wrong = first_error(said.ratings)
    return "no error" if wrong is None else f"error {wrong + 1}"


def content_id(*parts: Any) -> str:
    """A name made of the content, for what comes without one."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
