"""A worked solution cut into steps, each of which may have a label: what people mark, models learn and files hold.

Labels are those of PRM800K (arXiv:2305.20050): +1 right and useful, 0 neither, -1 wrong, None not judged. Rows go to
and from PRM800K's JSON and TRL's `stepwise_supervision`.

Try it alone:

    python -c "from zifio.tasks.steps import split_steps; print(split_steps('2+3=5\\n5*4=20'))"
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zifio.config import ConfigError

_RATINGS = (1, 0, -1, None)


@dataclass(frozen=True, slots=True)
class Solution:
    """One solution to one problem, step by step."""

    problem_id: str
    prompt: str
    gold: str
    """The right answer; empty where nobody knows it."""
    steps: tuple[str, ...]
    labels: tuple[int | None, ...]
    """+1, 0, -1 or None (not judged) for each step."""
    answer: str
    """What the solution comes to."""
    outcome: str
    """right, wrong or error: the verifier's verdict on the answer; empty where nobody asked."""
    source: str
    """Who labelled: a person, or the method."""

    def __post_init__(self) -> None:
        assert len(self.steps) == len(self.labels), f"{len(self.steps)} steps, {len(self.labels)} labels"


def split_steps(text: str) -> list[str]:
    """The steps of a working: its paragraphs, or its lines where it has but one paragraph. None is empty."""
    paragraphs = [part.strip() for part in text.replace("\r\n", "\n").split("\n\n")]
    paragraphs = [part for part in paragraphs if part]
    if len(paragraphs) > 1:
        return paragraphs
    return [line.strip() for line in text.splitlines() if line.strip()]


def to_prm800k(solution: Solution) -> dict[str, Any]:
    """A row as in PRM800K; steps beyond the last judged one have no rating."""
    judged = [rating for rating in solution.labels if rating is not None]
    steps = [
        {
            "completions": [{"text": text, "rating": rating, "flagged": False}],
            "human_completion": None,
            "chosen_completion": 0,
        }
        for text, rating in zip(solution.steps, solution.labels, strict=True)
    ]
    return {
        "labeler": solution.source,
        "question": {
            "problem": solution.prompt,
            "ground_truth_answer": solution.gold,
            "pre_generated_steps": list(solution.steps),
            "pre_generated_answer": solution.answer,
        },
        "label": {"steps": steps, "finish_reason": "found_error" if -1 in judged else "solution"},
    }


def from_prm800k(row: Mapping[str, Any]) -> Solution:
    """The solution of a row of PRM800K, its first completion of every step. Raises ConfigError."""
    try:
        question, label = row["question"], row["label"]
        chosen = [step["completions"][step.get("chosen_completion") or 0] for step in label["steps"]]
        judged = [(str(one["text"]), one["rating"]) for one in chosen]
        rest = [(str(text), None) for text in (question.get("pre_generated_steps") or ())[len(judged) :]]
        steps, labels = zip(*(judged + rest), strict=True)
        prompt = str(question["problem"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"wanted a row of PRM800K, came one without {error}. Give question and label.") from None
    _check(labels)
    gold, answer = question.get("ground_truth_answer"), question.get("pre_generated_answer")
    return Solution(_named(prompt), prompt, gold or "", steps, labels, answer or "", "", str(row.get("labeler") or ""))


def to_stepwise(solution: Solution) -> dict[str, Any]:
    """A row of TRL's `stepwise_supervision`: the judged steps up to the first wrong one; neutral counts as right."""
    labels = list(solution.labels)
    end = labels.index(-1) + 1 if -1 in labels else len(labels)
    kept = [
        (text, rating != -1) for text, rating in zip(solution.steps[:end], labels, strict=False) if rating is not None
    ]
    return {
        "prompt": solution.prompt,
        "completions": [text for text, _ in kept],
        "labels": [right for _, right in kept],
    }


def from_stepwise(row: Mapping[str, Any]) -> Solution:
    """The solution of a row of TRL's `stepwise_supervision`. Raises ConfigError."""
    prompt, steps, labels = row.get("prompt"), row.get("completions"), row.get("labels")
    if not (isinstance(prompt, str) and isinstance(steps, list) and isinstance(labels, list)):
        raise ConfigError("wanted prompt (a text), completions and labels (lists), came others.")
    fits = len(steps) == len(labels) and all(isinstance(one, str) for one in steps)
    if not fits or not all(isinstance(one, bool) for one in labels):
        raise ConfigError("wanted completions (texts) and as many labels (true, false), came others.")
    return Solution(_named(prompt), prompt, "", tuple(steps), tuple(1 if one else -1 for one in labels), "", "", "")


def _named(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def _check(labels: tuple[Any, ...]) -> None:
    if any(rating not in _RATINGS or isinstance(rating, bool) for rating in labels):
        raise ConfigError(f"wanted ratings +1, 0, -1 or null, came {list(labels)}.")
