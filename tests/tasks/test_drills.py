"""Drills: right by another way of reckoning, at any length, and nothing else is right."""

from string import ascii_letters

import pytest

from zifio.config import ConfigError
from zifio.tasks.catalog import named_task, read_task
from zifio.tasks.drills import KINDS, Drills, Kind
from zifio.tasks.task import Problem, render_response


def problems(kind: Kind, length: int, n: int = 50) -> list[Problem]:
    task = Drills(kinds=[kind], min_length=length, max_length=length)
    return [task.problem("held-out", index, 3) for index in range(n)]


@pytest.mark.parametrize("length", [10, 40])
def test_answers_are_right_by_another_way(length: int):
    assert all(problem.prompt == "=" + problem.gold for problem in problems("copying", length))
    totalled: list[tuple[Kind, Kind, int]] = [("sums", "sums-worked", 10), ("parity", "parity-worked", 2)]
    for kind, worked, modulus in totalled:
        for problem in problems(kind, length):
            assert int(problem.gold) == sum(int(digit) for digit in problem.prompt[1:]) % modulus
            assert len(problem.prompt) == 1 + length and not problem.working
        for problem in problems(worked, length):
            body, labels = problem.prompt[2::2], problem.prompt[1::2]
            assert problem.working[::2] == labels and labels in (ascii_letters[:40] * 2) and len(body) == length
            totals = [sum(int(digit) for digit in body[: end + 1]) % modulus for end in range(length)]
            assert problem.working[1::2] == "".join(map(str, totals)) and problem.gold == str(totals[-1])
    for problem in problems("pairs", length):
        pairs, asked = problem.prompt[1:].split("?")
        assert len(pairs) == 2 * length and problem.gold[::2] == asked and len(asked) == 4
        for place in range(0, len(problem.gold), 2):
            assert pairs[pairs.index(asked[place // 2]) + 1] == problem.gold[place + 1]


def test_kinds_take_turns_and_every_gold_is_right():
    task = Drills()
    drawn = [task.problem("train", index, 1) for index in range(600)]
    assert [problem.prompt[0] for problem in drawn[:6]] == [*"=?+*!#"]
    assert {len(problem.prompt) for problem in drawn[::6]} == {*range(3, 10)}
    for problem in drawn:
        verdict = task.check_gold(problem)
        assert verdict.outcome == "right" and verdict.parts["process"] == float(problem.prompt[0] in "*#")
        assert task.score(problem, task.document(problem, shows_working=False)).outcome == "right"
    assert named_task("drills:max_length=8") == task


def test_sums_in_another_base():
    task = Drills(kinds=["sums-worked"], base=5, min_length=12, max_length=12)
    for problem in (task.problem("train", index, 2) for index in range(50)):
        assert max(problem.prompt[2::2]) <= "4" and int(problem.gold) == sum(map(int, problem.prompt[2::2])) % 5
    with pytest.raises(ValueError, match="base 5"):
        task.score(Problem("id", "*a1b5", "1"), render_response("", "1"))


def test_train_and_held_out_share_no_prompt():
    task = Drills(min_length=10, max_length=10)
    splits = [{task.problem(split, index, 1).prompt for index in range(300)} for split in ("train", "held-out")]
    assert not splits[0] & splits[1] and all(splits)


@pytest.mark.parametrize("kind", KINDS)
def test_other_answers_are_wrong(kind: Kind):
    task = Drills()
    for problem in problems(kind, 8, 5):
        for answer in ("", problem.gold[:-1], problem.gold + "0", problem.gold[::-1] + "x", f" {problem.gold}"):
            assert task.score(problem, render_response(problem.working, answer)).outcome == "wrong"
        assert task.score(problem, problem.gold).outcome == "wrong", "not the agreed shape"
        false = task.score(problem, render_response(problem.working + "1", problem.gold))
        assert false.outcome == "right" and false.parts["process"] == 0.0


@pytest.mark.parametrize(
    "prompt",
    ["", "=", "=aB", "372", "+37a", "!102", "?a3k7", "?a3a7?a", "?a3k7?b", "?a3k?a", "?a3k7?", "+\u0663", "*37", "#a"],
)
def test_a_broken_prompt_is_no_wrong_answer(prompt: str):
    with pytest.raises(ValueError, match=r"no drill|two values"):
        Drills().score(Problem("id", prompt, "1"), render_response("", "1"))


def test_a_broken_gold_is_no_wrong_answer():
    with pytest.raises(ValueError, match="given as '3'"):
        Drills().score(Problem("id", "+11", "3"), render_response("", "3"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_length": 9, "max_length": 5}, "Set max_length to 9"),
        ({"max_length": 41}, "40"),
        ({"kinds": []}, "kinds"),
        ({"kinds": ["parities"]}, "parity"),
    ],
)
def test_impossible_options_are_explained(options: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        read_task({"name": "drills"} | options, "here")
