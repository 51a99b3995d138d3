"""Replies that somebody else recorded: matched by id or prompt, and every mismatch named."""

import json
from pathlib import Path

import pytest

from zifio.config import ConfigError
from zifio.evaluate.recorded import Recorded
from zifio.evaluate.replies import Ask
from zifio.tasks.task import Problem

PROBLEMS = [Problem("t/0", "1+1", "2"), Problem("t/1", "2+2", "4"), Problem("t/2", "1+1", "2")]


def recorded(folder: Path, *lines: dict, model: str | None = None) -> Recorded:
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Recorded(file, PROBLEMS, model)


def test_matched_by_id_or_by_prompt_with_what_is_known(tmp_path):
    found = recorded(
        tmp_path,
        {"problem": "t/2", "response": "<answer>2</answer>", "thinking": "hm", "n_tokens": 9, "cost": 1},
        {"id": "t/0", "answer": "two"},
        {"prompt": "2+2", "response": "", "finish": "length", "seconds": 1.5},
        model="closed",
    )
    assert found.n == 1
    said = {ask.problem.id: said for [(ask, said)] in found.answer([Ask(p, 0, None, 1) for p in PROBLEMS])}  # type: ignore[misc]
    assert [said[f"t/{i}"].text for i in range(3)] == ["two", "", "<answer>2</answer>"]
    assert (said["t/2"].thinking, said["t/2"].n_tokens, said["t/2"].cost) == ("hm", 9, 1)
    assert (said["t/1"].finish, said["t/1"].seconds) == ("length", 1.5)
    assert found.identity()["model"] == "closed"


def whole(*skip: tuple[str, int], n: int = 2) -> list[dict]:
    return [{"problem": p.id, "place": j, "response": "2"} for p in PROBLEMS for j in range(n) if (p.id, j) not in skip]


def test_several_replies_to_a_problem(tmp_path):
    assert recorded(tmp_path, *whole(n=3)).n == 3


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (whole(("t/1", 1)), r"wanted 2 replies to each of 3 problems, came none: t/1 \(place 1\)"),
        ([*whole(), {"problem": "t/9", "response": "2"}], r"unknown ones: object 7 \('t/9'\)"),
        ([*whole(), {"prompt": "1+1", "response": "2"}], r"unknown ones: object 7 \('1\+1'\)"),  # two problems have it
        ([*whole(), {"response": "2"}], "without problem, id or prompt"),
        ([*whole(), {"problem": "t/0", "response": "2"}], "more than one: t/0 in object 7"),
        ([{"problem": "t/0", "response": None}], "object 1: response: wanted the text of a reply, came None"),
        ([{"problem": "t/0", "response": "2", "place": -1}], "place: wanted a number from 0, came -1"),
        ([{"problem": "t/0", "response": "2", "n_tokens": "9"}], "n_tokens: wanted int, came '9'"),
        ([{"problem": "t/0", "response": "2", "cost": True}], "cost: wanted float, came True"),
        ([], "wanted replies, came none"),
    ],
)
def test_mismatches_are_named(tmp_path, lines, message):
    with pytest.raises(ConfigError, match=message):
        recorded(tmp_path, *lines)
