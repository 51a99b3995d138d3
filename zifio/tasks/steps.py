"""Solutions cut into steps, and what someone says of each step: +1 good, 0 neither, -1 wrong, None unsaid.

A step keeps the characters that part it from the next one, so the steps of a solution joined are its text. Rows go both
ways in the two forms that others read: PRM800K's JSONL (arXiv:2305.20050) and TRL's `stepwise_supervision`. What these
have no key for stands beside it under a key of its own, which other readers pass over.

Try it alone:

    python -c "from zifio.tasks.steps import *; print(split_steps('<think>6+0=6+3=9</think><answer>9</answer>'))"
"""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, TypeVar, runtime_checkable

from zifio.config import ConfigError
from zifio.tasks.form import THINK, THOUGHT
from zifio.tasks.task import Problem

Label = int | None
"""+1, 0, -1 as PRM800K rates steps, or None."""
Word = TypeVar("Word", bound=Hashable)
"""What one of several says, as a label or a stance."""

_RESULT = re.compile(r"=[ \t]*-?[0-9][0-9.]*")
_SENTENCE = re.compile(r"(?<=[.!?])[ \t]+(?=\S)")
_SEPARATORS = ("\n\n", "\n", " ")
_QUOTED = 80
_HALF = 0.5


@dataclass(frozen=True)
class Solution:
    """A solution to a problem in steps, with what its labels say of each of them."""

    problem_id: str
    prompt: str
    gold: str
    """The right answer; empty where nobody knows it."""
    steps: tuple[str, ...]
    labels: tuple[Label, ...]
    answer: str
    """The one that the solution gives."""
    outcome: str
    """What a verifier said of it: right, wrong or error; empty where none was asked."""
    source: str
    """Who labelled it."""

    def __post_init__(self) -> None:
        assert len(self.labels) == len(self.steps), f"{len(self.labels)} labels for {len(self.steps)} steps"

    @property
    def text(self) -> str:
        """The whole solution."""
        return "".join(self.steps)

    def row(self) -> dict[str, Any]:
        """Every field, as a line of JSONL holds it; `from_row` takes it back."""
        return asdict(self) | {"steps": list(self.steps), "labels": list(self.labels)}


@runtime_checkable
class Stepwise(Protocol):
    """A task that can check the working of a solution step by step, all by itself."""

    def check_steps(self, problem: Problem, steps: Sequence[str]) -> list[Label]:
        """+1 for the next step of a true working, 0 for one that is true and is not that, -1 for a false one; None for
        what is no step of the working, as the answer behind it."""
        ...


# Cutting ---------------------------------------------------------------------------------------------------


def split_steps(text: str) -> list[str]:
    """The steps of a solution; joined they are the text.

    Each line is a step; a single line has one for each result of a chain of sums (`6+1=7` `-1=6`), or failing that for
    each sentence. What stands behind a thinking begins a step of its own and is cut at its line ends only.
    """
    cut = text.find(THOUGHT)
    if cut < 0 or not text[:cut].removeprefix(THINK).strip():
        return _lines(text) if cut >= 0 else _cut(text)
    return [*_cut(text[:cut]), *_lines(text[cut:])]


def _cut(text: str) -> list[str]:
    """A text cut by its lines, results or sentences."""
    if "\n" in text.strip():
        return _lines(text)
    ends = [found.end() for found in _RESULT.finditer(text)]
    if not ends and not re.search(r"[A-Za-z]", text.removeprefix(THINK)):
        ends = [found.start() for found in re.finditer(",", text)]
    if not ends:
        ends = [found.end() for found in _SENTENCE.finditer(text)]
    places = sorted({0, *ends, len(text)})
    return _whole([text[start:end] for start, end in pairwise(places)])


def _lines(text: str) -> list[str]:
    return _whole(text.splitlines(keepends=True))


def _whole(pieces: Sequence[str]) -> list[str]:
    """The pieces, empty ones put to the piece before them, and at the start to the one behind."""
    steps: list[str] = []
    for piece in pieces:
        if steps and not (piece.strip() and steps[-1].strip()):
            steps[-1] += piece
        else:
            steps.append(piece)
    return steps


def true_labels(task: Stepwise, problem: Problem, steps: Sequence[str], is_right: bool) -> list[Label]:
    """The task's own labels for all steps of a solution. A last step that is no working, the answer, is as good as the
    outcome; in a solution that is not right a true step that leads elsewhere is its error."""
    labels = task.check_steps(problem, steps)
    if labels and labels[-1] is None:
        labels[-1] = 1 if is_right else -1
    return [-1 if label == 0 and not is_right else label for label in labels]


# Labels ----------------------------------------------------------------------------------------------------


def first_error(labels: Sequence[Label]) -> int | None:
    """The place of the first step that is labelled wrong, if any is."""
    return next((place for place, label in enumerate(labels) if label == -1), None)


def called_wrong(scores: Sequence[float]) -> int | None:
    """The place of the first step that its score calls wrong: how likely it is good, below one half."""
    return next((place for place, score in enumerate(scores) if score < _HALF), None)


def until_first_error(labels: Sequence[Label]) -> tuple[Label, ...]:
    """The labels with None behind the first wrong step: what follows from an error is neither good nor bad."""
    wrong = first_error(labels)
    return tuple(label if wrong is None or place <= wrong else None for place, label in enumerate(labels))


def majority(said: Sequence[Word]) -> Word | None:
    """What is said more often than anything else; None for a draw or no word."""
    ranked = Counter(said).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def consensus(labelings: Sequence[Sequence[Label]]) -> tuple[Label, ...] | None:
    """The labels on which several labellers of one solution agree; None where they place the first error differently.

    Agreement on the first error filters Monte-Carlo labels by a judge (arXiv:2501.07301). A step that they label
    differently all the same (+1 and 0) has no label; one that only some of them label has theirs.
    """
    assert labelings and len({len(labels) for labels in labelings}) == 1, "labels of one solution"
    if len({first_error(labels) for labels in labelings}) > 1:
        return None
    said = [{label for label in at_step if label is not None} for at_step in zip(*labelings, strict=True)]
    return tuple(labels.pop() if len(labels) == 1 else None for labels in said)


@dataclass(frozen=True)
class Localisation:
    """How well first errors are found, as ProcessBench counts it (arXiv:2412.06559)."""

    error_accuracy: float
    """Of solutions with an error: the share whose first one is found at its very step."""
    correct_accuracy: float
    """Of solutions without one: the share in which none is found."""
    n_error: int
    n_correct: int

    @property
    def f1(self) -> float:
        """The harmonic mean of the two accuracies."""
        total = self.error_accuracy + self.correct_accuracy
        return 2 * self.error_accuracy * self.correct_accuracy / total if total else 0.0

    def figures(self, name: str = "") -> dict[str, float]:
        """The three figures; `name` stands before theirs."""
        return {
            f"{name}f1": self.f1,
            f"{name}error_accuracy": self.error_accuracy,
            f"{name}correct_accuracy": self.correct_accuracy,
        }


def localisation(found: Sequence[int | None], true: Sequence[int | None]) -> Localisation | None:
    """How well `found` places of first errors meet the `true` ones; None means no error. None comes back where all
    solutions are of one kind, of which the other accuracy cannot be told."""
    pairs = list(zip(found, true, strict=True))
    errors = [one == two for one, two in pairs if two is not None]
    correct = [one is None for one, two in pairs if two is None]
    if not errors or not correct:
        return None
    return Localisation(sum(errors) / len(errors), sum(correct) / len(correct), len(errors), len(correct))


# Rows ------------------------------------------------------------------------------------------------------


def from_row(row: dict[str, Any], where: str) -> Solution:
    """The solution of a row in any of the three forms: ours, PRM800K's, TRL's. Raises ConfigError; `where` opens its
    message."""
    if isinstance(row.get("label"), dict):
        return from_prm800k(row, where)
    if "completions" in row:
        return from_stepwise(row, where)
    steps, labels = _texts(row, "steps", where), row.get("labels")
    if not isinstance(labels, list) or len(labels) != len(steps) or any(label not in _RATINGS for label in labels):
        raise ConfigError(
            f"{where}: labels: wanted 1, 0, -1 or null for each of {len(steps)} steps, came {_quoted(labels)}. "
            "Mend the row."
        )
    names = ("problem_id", "prompt", "gold", "answer", "outcome", "source")
    return Solution(**{name: _text(row, name, where) for name in names}, steps=steps, labels=tuple(labels))


def to_prm800k(solution: Solution) -> dict[str, Any]:
    """A row of PRM800K's second phase: labelled steps up to the first error or the end, all steps beside them."""
    separator, texts = _parted(solution.steps)
    n_labelled = next((i for i, label in enumerate(solution.labels) if label is None), len(texts))
    steps = [
        {
            "completions": [{"text": text, "rating": label, "flagged": None}],
            "human_completion": None,
            "chosen_completion": 0 if label != -1 else None,
        }
        for text, label in zip(texts[:n_labelled], solution.labels, strict=False)
    ]
    finish = "found_error" if -1 in solution.labels[:n_labelled] else "solution"
    question = {
        "problem": solution.prompt,
        "ground_truth_answer": solution.gold,
        "pre_generated_steps": texts,
        "pre_generated_answer": solution.answer,
    }
    label = {"steps": steps, "total_time": None, "finish_reason": finish if n_labelled else None}
    return {"labeler": solution.source, "question": question, "label": label} | _beside(solution, separator)


def from_prm800k(row: dict[str, Any], where: str = "PRM800K") -> Solution:
    """The solution that a row of PRM800K labels: of each step the completion that was chosen, or the first.

    Steps that nobody labelled, behind the first error, have None; the answer's own verdict is only known where it is
    the very text of the right one. Raises ConfigError.
    """
    question, label = row.get("question"), row.get("label")
    if not isinstance(question, dict) or not isinstance(label, dict) or not isinstance(label.get("steps"), list):
        raise ConfigError(f"{where}: wanted `question` and `label.steps` as in PRM800K, came {_quoted(row)}.")
    said = [_chosen(step, f"{where}: step {number}") for number, step in enumerate(label["steps"], 1)]
    given = [text for text in question.get("pre_generated_steps") or () if isinstance(text, str)]
    agree = [text for text, _ in said] == given[: len(said)]
    texts = [text for text, _ in said] + (given[len(said) :] if agree else [])
    labels = (*(rating for _, rating in said), *(None for _ in texts[len(said) :]))
    gold, answer = (question.get(key) or "" for key in ("ground_truth_answer", "pre_generated_answer"))
    outcome = row.get("outcome", "right" if answer and answer == gold else "")
    steps = _joined(texts, row.get("separator", "\n"))
    prompt = _text(question, "problem", where)
    return Solution(
        row.get("problem_id", ""), prompt, str(gold), steps, labels, str(answer), outcome, row.get("labeler") or ""
    )


def alternatives_prm800k(row: dict[str, Any], where: str = "PRM800K") -> list[Solution]:
    """The rated completions of such a row that were not chosen, each the last step of a solution of its own: the chosen
    steps before it, then it. It has no answer and no outcome. Raises ConfigError."""
    whole = from_prm800k(row, where)
    found = []
    for place, step in enumerate(row["label"]["steps"]):
        at = f"{where}: step {place + 1}"
        behind = whole.steps[place].removeprefix(_chosen(step, at)[0])  # what parts the step from the next one
        for text, rating in other_completions(step, at):
            if rating is not None:
                steps, labels = (*whole.steps[:place], text + behind), (*whole.labels[:place], rating)
                found.append(replace(whole, steps=steps, labels=labels, answer="", outcome=""))
    return found


def other_completions(step: dict[str, Any], where: str) -> list[tuple[str, Label]]:
    """(text, rating) of the completions of a step of PRM800K beside the one that `from_prm800k` takes. Raises
    ConfigError."""
    place = _chosen_place(step)
    completions = step["completions"] if isinstance(step.get("completions"), list) else []
    return [_rated(one, where, step) for n, one in enumerate(completions) if n != place]


def to_stepwise(solution: Solution) -> dict[str, Any]:
    """A row of TRL's `stepwise_supervision`: the steps up to the first without a label, and whether each is no error.

    As in PRM800K's own training, a 0 counts as good.
    """
    separator, texts = _parted(solution.steps)
    n_labelled = next((i for i, label in enumerate(solution.labels) if label is None), len(texts))
    labels = [label != -1 for label in solution.labels[:n_labelled]]
    row = {"prompt": solution.prompt, "completions": texts[:n_labelled], "labels": labels}
    return (
        row
        | {"gold": solution.gold, "answer": solution.answer, "source": solution.source}
        | _beside(solution, separator)
    )


def from_stepwise(row: dict[str, Any], where: str = "stepwise_supervision") -> Solution:
    """The solution of such a row; a true label is +1, a false one -1. Raises ConfigError."""
    texts, labels = _texts(row, "completions", where), row.get("labels")
    if not isinstance(labels, list) or len(labels) != len(texts) or any(label not in (0, 1) for label in labels):
        raise ConfigError(
            f"{where}: labels: wanted true or false for each of {len(texts)} completions, came {_quoted(labels)}."
        )
    known = {key: str(row.get(key) or "") for key in ("problem_id", "gold", "answer", "outcome", "source")}
    steps = _joined(texts, row.get("separator", "\n"))
    return Solution(
        prompt=_text(row, "prompt", where), steps=steps, labels=tuple(1 if good else -1 for good in labels), **known
    )


_RATINGS = (1, 0, -1, None)


def _beside(solution: Solution, separator: str) -> dict[str, str]:
    """What neither form has a key for."""
    return {"problem_id": solution.problem_id, "outcome": solution.outcome, "separator": separator}


def _parted(steps: Sequence[str]) -> tuple[str, list[str]]:
    """(what stands behind every step but the last, the steps without it)."""
    common = next((s for s in _SEPARATORS if len(steps) > 1 and all(one.endswith(s) for one in steps[:-1])), "")
    return common, [*(step.removesuffix(common) for step in steps[:-1]), *steps[-1:]]


def _joined(texts: Sequence[str], separator: str) -> tuple[str, ...]:
    return (*(text + separator for text in texts[:-1]), *texts[-1:])


def _chosen(step: Any, where: str) -> tuple[str, Label]:
    """(text, rating) of a step of PRM800K: the chosen completion, the labeller's own, or the first."""
    place = _chosen_place(step) if isinstance(step, dict) else 0
    if place is None:
        return _rated({"rating": 1, **step["human_completion"]}, where, step)  # people do not rate what they write
    completions = step.get("completions") if isinstance(step, dict) else None
    found = None
    if isinstance(completions, list) and type(place) is int and 0 <= place < len(completions):
        found = completions[place]
    return _rated(found, where, step)


def _chosen_place(step: dict[str, Any]) -> Any:
    """Which completion a step of PRM800K is, as it says; None where a person wrote it."""
    human, place = step.get("human_completion"), step.get("chosen_completion")
    written = isinstance(human, dict) and isinstance(human.get("text"), str)
    return None if place is None and written else place or 0


def _rated(completion: Any, where: str, step: Any) -> tuple[str, Label]:
    """(text, rating) of a completion of a step."""
    text, rating = (completion.get(key) for key in ("text", "rating")) if isinstance(completion, dict) else (None, None)
    if not isinstance(text, str) or rating not in _RATINGS:
        raise ConfigError(
            f"{where}: wanted a completion with `text` and a `rating` of 1, 0 or -1, came {_quoted(step)}."
        )
    return text, rating


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row.get(key), str):
        raise ConfigError(f"{where}: {key}: wanted a text, came {_quoted(row.get(key))}. Mend the row.")
    return row[key]


def _texts(row: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    texts = row.get(key)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{where}: {key}: wanted a list of texts, came {_quoted(texts)}. Mend the row.")
    return tuple(texts)


def _quoted(value: Any) -> str:
    return repr(value)[:_QUOTED]
