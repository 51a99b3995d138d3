"""What the models of an `eval` stage said, for the report: problems that teach something, every model's reply to each.

Try it alone: `pytest tests/evaluate/test_report.py`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zifio.record.stage import StageRecord
from zifio.tasks.environment import transcript
from zifio.tasks.task import parse_response

_GAINED, _STUMBLED = 5, 2  # of the examples shown: learned since the first model; still wrong for some


@dataclass(frozen=True)
class Answer:
    """What one model said to a problem, thinking apart."""

    model: str
    outcome: str
    thinking: str
    answer: str
    """What stands in the answer tags; of a reply without the agreed shape, the whole reply."""
    has_shape: bool
    reason: str


@dataclass(frozen=True)
class Example:
    """A held-out problem and what every model said to it."""

    prompt: str
    gold: str
    answers: list[Answer]
    pictures: list[str]
    """What the prompt is about, as data URLs."""


def examples(stage: StageRecord, count: int = 8) -> list[Example]:
    """Problems of an `eval` stage that teach something, chosen by a fixed rule from each model's first reply.

    Most are ones that the first model gets wrong and others right, a few ones that some model still gets wrong, one
    that all get right. They come in the order of the evaluation.
    """
    rows_of = {
        model: {row["problem"]: row for row in stage.replies[model]} for model in stage.results if stage.replies[model]
    }
    if not rows_of:
        return []
    first = next(iter(rows_of.values()))
    problems = [problem for problem in first if all(problem in rows for rows in rows_of.values())]
    right = {problem: [rows[problem]["outcome"] == "right" for rows in rows_of.values()] for problem in problems}
    instructive = sorted(problems, key=lambda problem: -sum(right[problem][1:]))
    gained = [p for p in instructive if not right[p][0] and any(right[p])]
    stumbled = [p for p in instructive if any(right[p]) and not all(right[p][1:])]
    easy = [p for p in problems if all(right[p])]
    chosen = dict.fromkeys([*gained[:_GAINED], *stumbled[:_STUMBLED], *easy[:1]])
    shown = set([*chosen, *(p for p in [*gained, *problems] if p not in chosen)][:count])
    return [_example(problem, rows_of) for problem in problems if problem in shown]


def _example(problem: str, rows_of: dict[str, dict[str, dict[str, Any]]]) -> Example:
    rows = {model: rows[problem] for model, rows in rows_of.items()}
    any_row = next(iter(rows.values()))
    answers = [_answer(model, row) for model, row in rows.items()]
    return Example(any_row["prompt"], any_row["gold"], answers, any_row.get("pictures", []))


def _answer(model: str, row: dict[str, Any]) -> Answer:
    parsed = parse_response(row["response"])
    thinking, answer = parsed or ("", row["response"])
    earlier = transcript(row.get("messages", [])[1:-1])  # of an episode in turns
    thinking = "\n".join(filter(None, [earlier, thinking]))
    return Answer(model, row["outcome"], thinking, answer, parsed is not None, row["reason"])
