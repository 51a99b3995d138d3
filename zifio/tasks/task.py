"""What a task is: problems, the exact shape of a response, and a verdict that is right, wrong or error.

A task owns its data and its score; the same object serves pretraining text, RL, evaluation and labelling.
The response shape `<think>WORKING</think><answer>ANSWER</answer>` is the template of DeepSeek-R1 (section
2.2.3, table 1), its two rewards (accuracy, format) are those of section 2.2.2.

Try it alone:

    python -c "from zifio.tasks.task import *; print(parse_response('<think></think><answer>15</answer>'))"
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from zifio.config import ConfigError
from zifio.seed import stream

Split = Literal["train", "held-out"]
Outcome = Literal["right", "wrong", "error"]

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FOREIGN_TOKEN = "<｜"  # how every other special token of the chat template begins: none belongs in a response
_HELD_OUT_OF = 16
_MOST_DRAWS = 4096


@dataclass(frozen=True, slots=True)
class Problem:
    """One question. The id is its address (task, split, seed, index), so it can be drawn again."""

    id: str
    prompt: str
    """The user's message."""
    gold: str
    """The right answer, or one of them where the task accepts many."""
    working: str = ""
    """A true working that leads to `gold`; empty where the task has none."""
    pictures: tuple[str, ...] = ()
    """What the prompt is about, as data URLs, one for each mark of a picture in it."""
    draws: bool = False
    """Whether the response is a picture, as a data URL."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a task says about one response. `error` means that the check broke, not that the answer is
    wrong."""

    outcome: Outcome
    reward: float
    """Accuracy alone, in [0, 1]. The stage that asks decides what format is worth."""
    parts: dict[str, float] = field(default_factory=dict)
    """"accuracy", "format" and "process", each 0 or 1. Empty when the outcome is `error`: unknown is not
    zero."""
    reason: str = ""


@runtime_checkable
class Task(Protocol):
    """A source of checkable problems. `problem` is a pure function and its splits share no prompt."""

    @property
    def name(self) -> str: ...

    def problem(self, split: Split, index: int, seed: int) -> Problem: ...

    def document(self, problem: Problem, shows_working: bool) -> str: ...

    def score(self, problem: Problem, response: str) -> Verdict: ...

    def check_gold(self, problem: Problem) -> Verdict: ...


def render_response(working: str, answer: str) -> str:
    """The assistant's text for this working ("" for a direct answer) and answer."""
    return f"<think>{working}</think><answer>{answer}</answer>"


def parse_response(response: str) -> tuple[str, str] | None:
    """(working, answer) of a response of exactly the agreed shape, else None. Linear in the length."""
    if any(response.count(tag) != 1 for tag in _TAGS) or _FOREIGN_TOKEN in response:
        return None
    middle = response.find("</think><answer>")
    if not (response.startswith("<think>") and response.endswith("</answer>") and middle >= 0):
        return None
    return response[len("<think>") : middle], response[middle + len("</think><answer>") : -len("</answer>")]


def grade(response: str, answer_fault: Callable[[str], str], working_fault: Callable[[str, str], str]) -> Verdict:
    """The verdict on `response`.

    `answer_fault(answer)` and `working_fault(working, answer)` say in words what is wrong, "" when nothing
    is. Only a response of the exact shape can be right. The process part is 1 only for a right answer with a
    non-empty and faultless working.
    """
    parsed = parse_response(response)
    if parsed is None:
        return Verdict("wrong", 0.0, {"accuracy": 0.0, "format": 0.0, "process": 0.0}, "not the agreed shape")
    working, answer = parsed
    wrong = answer_fault(answer)
    false_step = "no working" if not working else working_fault(working, answer)
    accuracy = 0.0 if wrong else 1.0
    process = 0.0 if wrong or false_step else 1.0
    parts = {"accuracy": accuracy, "format": 1.0, "process": process}
    return Verdict("wrong" if wrong else "right", accuracy, parts, "; ".join(filter(None, (wrong, false_step))))


def is_held_out(prompt: str) -> bool:
    """Whether this prompt belongs to the held-out split: a fixed fact about its text, whatever seed drew
    it."""
    return hashlib.sha256(prompt.encode()).digest()[0] % _HELD_OUT_OF == 0


def folded(prompt: str) -> str:
    """The prompt without what makes no other problem: case, and runs of spaces."""
    return " ".join(prompt.casefold().split())


def draw(name: str, split: Split, index: int, seed: int, once: Callable[[random.Random], str]) -> str:
    """The first prompt out of `once` that falls in `split`, from the stream of this address.

    Raises ConfigError where the task has too few problems for both splits to exist.
    """
    wanted = {"train": False, "held-out": True}[split]
    rng = stream(seed, f"task/{name}", split, index)
    for _ in range(_MOST_DRAWS):
        prompt = once(rng)
        if is_held_out(prompt) == wanted:
            return prompt
    raise ConfigError(
        f"task {name}: wanted a {split} problem, came none in {_MOST_DRAWS} draws: its options leave too few "
        "different problems. Allow longer or more varied ones (for sums: a larger max_terms)."
    )


def address(name: str, split: Split, index: int, seed: int) -> str:
    """The id of a problem."""
    return f"{name}/{split}/{seed}/{index}"


def shows_working(index: int, seed: int, p_cot: float) -> bool:
    """Whether pretraining document `index` shows its working: a coin of probability `p_cot`, pure in its
    arguments."""
    return stream(seed, "task/shows_working", index).random() < p_cot
