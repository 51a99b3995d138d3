"""A user's own files: every verifier, per task and per row, and a Python file that may do anything but harm the run."""

import json

import pytest

from zifio.config import ConfigError, build
from zifio.tasks.catalog import named_task
from zifio.tasks.custom import Custom
from zifio.tasks.runtime import judge_all


def data(tmp_path, rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def outcomes(task, *answers, index=0):
    problem = task.problem("held-out", index, 1)
    replies = [task.document(problem, False).replace(problem.gold, answer) for answer in answers]
    return [verdict.outcome for verdict in judge_all(task, [(problem, reply) for reply in replies])]


@pytest.mark.parametrize(
    ("verifier", "gold", "right", "wrong"),
    [
        ("exact", "two words", "two  words", "two Words"),
        ("integer", 1200, "1,200", "1200.0"),
        ("number", 2.5, "5/2", "2.4"),
        ("choice", "B", "(b)", "C"),
        ("json", "[1, 2]", "[1,2]", "[2,1]"),
        ("maths", "\\frac{1}{2}", "\\frac{1}{2}", "\\frac{1}{3}"),
        ("regex:[0-9]{2}", "12", "99", "123"),
    ],
)
def test_each_verifier_by_name(tmp_path, verifier, gold, right, wrong):
    rows = [{"prompt": "What?", "answer": gold}]
    task = build(Custom, {"path": data(tmp_path, rows), "verifier": verifier, "evaluation": True}, "here")
    assert outcomes(task, str(gold), right, wrong, "") == ["right", "right", "wrong", "wrong"]


def test_a_row_may_have_its_own(tmp_path):
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "10", "verifier": "regex:1(0|1)"}]
    task = Custom(path=data(tmp_path, rows), verifier="integer", evaluation=True)
    assert task.isolated
    assert outcomes(task, "1", "11", index=0) == ["right", "wrong"]
    assert outcomes(task, "10", "11", "12", index=1) == ["right", "right", "wrong"]
    assert not Custom(path=data(tmp_path / "..", rows[:1]), evaluation=True).isolated


FILE = """
import time

def score(prompt, answer, response):
    if response == "loop":
        while True:
            pass
    if response == "raise":
        return 1 / 0
    if response == "exit":
        raise SystemExit
    if response == "odd":
        return "yes"
    if response == "much":
        return 2.0
    if response == "half":
        return {"reward": 0.5, "style": 1, "reason": "so so"}
    return answer in response
"""


def test_a_python_file_decides_and_cannot_end_the_run(tmp_path):
    (tmp_path / "check.py").write_text(FILE)
    path = data(tmp_path, [{"prompt": "a", "answer": "7"}])
    task = Custom(path=path, verifier="check.py", evaluation=True)
    assert task.isolated
    problem = task.problem("held-out", 0, 1)
    replies = ["it is 7", "it is 8", "half", "raise", "exit", "odd", "much"]
    verdicts = judge_all(task, [(problem, reply) for reply in replies])
    assert [verdict.outcome for verdict in verdicts] == ["right", "wrong", "wrong", "error", "error", "error", "error"]
    assert verdicts[2].reward == 0.5 and verdicts[2].parts["style"] == 1 and verdicts[2].reason == "so so"
    assert "ZeroDivisionError" in verdicts[3].reason and "'yes'" in verdicts[5].reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def other(a): pass", "a function `score"),
        ("def score(a): pass", "a function `score"),
        ("def score(", "a mistake"),
        (None, "No such file"),
    ],
)
def test_a_file_without_the_function_is_refused_before_it_is_run(tmp_path, text, words):
    if text is not None:
        (tmp_path / "check.py").write_text(text)
    with pytest.raises(ConfigError, match=words):
        build(Custom, {"path": str(tmp_path / "x.jsonl"), "verifier": str(tmp_path / "check.py")}, "here")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a"}, "answer"),
        ({"prompt": "a", "answer": {"b": 1}}, "wanted text"),
        ({"prompt": "a", "answer": "x"}, "no integer"),
        ({"prompt": "a", "answer": "1", "verifier": "exat"}, "Did you mean 'exact'"),
        ({"prompt": "a", "answer": "1", "verifier": "check.py"}, "in the task, FILE.py"),
        ({"prompt": "a", "answer": "1", "verifier": "regex:("}, "regular expression"),
        ({"question": "a", "answer": "1"}, "'prompt'"),
    ],
)
def test_a_bad_row_is_told_by_its_number(tmp_path, row, words):
    task = Custom(path=data(tmp_path, [{"prompt": "good", "answer": "1"}, row]), verifier="integer", evaluation=True)
    with pytest.raises(ConfigError, match=f"row 2.*{words}"):
        task.problem("held-out", 0, 1)


def test_columns_have_the_names_that_one_gives_them(tmp_path):
    path = data(tmp_path, [{"q": "a", "a": 3}])
    task = named_task(f"{path}:verifier=integer,prompt_column=q,answer_column=a,evaluation=true")
    assert task.problem("held-out", 0, 1).gold == "3"


def test_train_and_held_out_may_be_two_files(tmp_path):
    train, test = tmp_path / "t.jsonl", tmp_path / "h.jsonl"
    train.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": "2"}\n')
    test.write_text('{"prompt": "c", "answer": "3"}\n')
    task = Custom(path=str(train), held_out=str(test))
    assert (task.size("train"), task.size("held-out")) == (2, 1)
    assert task.problem("held-out", 0, 1).gold == "3"
