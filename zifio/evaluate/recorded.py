"""Replies that somebody else recorded, from a closed model for instance, as the subject of an evaluation.

A JSON object a line: `response` (or `answer`), and either `problem` (the id; `id` is taken too) or `prompt`, word for
word. `place` numbers several replies to one problem, from 0. `thinking`, `n_tokens`, `n_prompt_tokens`, `finish`,
`seconds` and `cost` are kept where they are given. The records of `zifio eval` are such a file, so a changed verifier
can score them anew.

Try it: `zifio eval --answers ANSWERS.jsonl --task chain_sum --problems 100`
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from zifio.config import ConfigError
from zifio.data.sources import read_jsonl
from zifio.evaluate.replies import Ask, Failed, Said
from zifio.tasks.task import Problem

_NAMED = 3  # of many mistakes of one kind, this many are named
_KEPT = ("thinking", "n_tokens", "n_prompt_tokens", "n_thinking_tokens", "finish", "seconds", "cost", "logp", "seed")


class Recorded:
    """Implements `evaluate.replies.Subject` with the replies of a file."""

    budget_by = "not at all"
    has_policy_logps = False

    def __init__(self, file: Path, problems: Sequence[Problem], model: str | None = None) -> None:
        """Reads and matches the file.

        Raises ConfigError for a line that cannot be read, for replies to unknown problems, for two to the same place,
        and for problems without as many replies as the others.
        """
        self.file, self.model = file, model
        self._said: dict[tuple[str, int], Said] = {}
        by_id = {problem.id: problem.id for problem in problems}
        by_prompt = _unique_prompts(problems)
        unknown, twice = [], []
        for number, row in enumerate(read_jsonl(file), 1):
            if row.get("budget") is not None:
                continue  # of our own records: a reply whose thinking was cut
            where = f"{file}: object {number}"
            id = _problem_of(row, by_id, by_prompt)
            key = (id or "", _place(row, where))
            if id is None:
                unknown.append(f"object {number} ({_named(row)})")
            elif key in self._said:
                twice.append(f"{id} in object {number}")
            else:
                self._said[key] = _said(row, where)
        self._complain("replies to problems of this task", "to unknown ones", unknown)
        self._complain("one reply to each problem and place", "more than one", twice)
        if not self._said:
            raise ConfigError(f"{file}: wanted replies, came none. Give a JSON object a line.")
        self.n = 1 + max(place for _, place in self._said)
        wanted = [(problem.id, place) for problem in problems for place in range(self.n)]
        missing = [f"{id} (place {place})" for id, place in wanted if (id, place) not in self._said]
        self._complain(f"{self.n} replies to each of {len(problems)} problems", "none", missing)

    def identity(self) -> dict[str, Any]:
        """The file's content, and the model that is said to have answered."""
        with self.file.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
        return {"answers": digest, "model": self.model}

    def answer(self, asks: list[Ask]) -> Iterator[list[tuple[Ask, Said] | Failed]]:
        """The reply to each, one by one."""
        for ask in asks:
            yield [(ask, self._said[ask.problem.id, ask.place])]

    def close(self) -> None:
        """Nothing is under way."""

    def _complain(self, wanted: str, came: str, mistakes: list[str]) -> None:
        if mistakes:
            more = f" and {len(mistakes) - _NAMED} more" if len(mistakes) > _NAMED else ""
            raise ConfigError(
                f"{self.file}: wanted {wanted}, came {came}: {', '.join(mistakes[:_NAMED])}{more}. The questions, with "
                "their ids: zifio eval --task NAME --questions FILE.jsonl (with the same problems and seed)."
            )


def _unique_prompts(problems: Sequence[Problem]) -> dict[str, str | None]:
    """The id of each prompt; None where several problems share it."""
    found: dict[str, str | None] = {}
    for problem in problems:
        found[problem.prompt] = None if problem.prompt in found else problem.id
    return found


def _problem_of(row: dict[str, Any], by_id: dict[str, str], by_prompt: dict[str, str | None]) -> str | None:
    """The problem that a line answers: by its id, else by its prompt where only one problem has it."""
    for key in ("problem", "id"):
        if key in row:
            return by_id.get(row[key]) if isinstance(row[key], str) else None
    prompt = row.get("prompt")
    return by_prompt.get(prompt) if isinstance(prompt, str) else None


def _named(row: dict[str, Any]) -> str:
    found = next((row[key] for key in ("problem", "id", "prompt") if key in row), "without problem, id or prompt")
    return repr(found)[:60]


def _place(row: dict[str, Any], where: str) -> int:
    place = row.get("place", 0)
    if type(place) is not int or place < 0:
        raise ConfigError(f"{where}: place: wanted a number from 0, came {place!r}. Number the replies to one problem.")
    return place


def _said(row: dict[str, Any], where: str) -> Said:
    """The reply of a line. Raises ConfigError when it is none, or what it says besides is of the wrong type."""
    text = row.get("response", row.get("answer"))
    if not isinstance(text, str):
        raise ConfigError(
            f"{where}: response: wanted the text of a reply, came {text!r}. A model that said nothing said ''."
        )
    hints = get_type_hints(Said)
    given = {key: row[key] for key in _KEPT if row.get(key) is not None}
    for key, value in given.items():
        kinds = tuple(kind for kind in (get_args(hints[key]) or (hints[key],)) if kind is not type(None))
        kinds += (int,) if float in kinds else ()
        if type(value) not in kinds:
            raise ConfigError(f"{where}: {key}: wanted {kinds[0].__name__}, came {value!r}. Mend it or leave it out.")
    return Said(text=text, **given)
