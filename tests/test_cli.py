"""The command line: instant help without torch, errors with a way out, exit codes."""

import importlib.metadata
import importlib.util
import inspect
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zifio import cli
from zifio.config import ConfigError
from zifio.log import Finished

ROOT = Path(__file__).resolve().parent.parent


def called(monkeypatch: pytest.MonkeyPatch, answer: object = None) -> list[dict[str, Any]]:
    """Verbs do nothing but record their arguments, and give or raise `answer`."""
    calls: list[dict[str, Any]] = []

    def fake(**arguments: Any) -> object:
        calls.append(arguments)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(cli, "_function", lambda target: fake)
    return calls


@pytest.mark.parametrize("words", [[], ["--help"], ["nonsense"], *([verb, "--help"] for verb in cli.VERBS)])
def test_help_imports_nothing_heavy(words: list[str]):
    program = (
        "import sys\n"
        "from zifio.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'matplotlib', 'transformers'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in cli.VERBS)


def test_version(capsys: pytest.CaptureFixture[str]):
    if not list(importlib.metadata.Distribution.discover(name="zifio")):
        pytest.skip("zifio is not installed here")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("zifio 0.")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_verb_help_shows_its_example(verb: str, capsys: pytest.CaptureFixture[str]):
    for words in ([verb, "--help"], ["help", verb]):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert cli.VERBS[verb].example in text
        assert cli.VERBS[verb].example.startswith(f"zifio {verb} ")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_examples_fit_their_function(verb: str, monkeypatch: pytest.MonkeyPatch):
    """An example parses, and the verb's function has a parameter for each argument and no other that is required."""
    target = cli.VERBS[verb].target
    if importlib.util.find_spec(target.partition(":")[0]) is None:
        pytest.skip(f"{target} is not written yet")
    function = cli._function(target)
    calls = called(monkeypatch)
    assert cli.main(shlex.split(cli.VERBS[verb].example)[1:]) == 0
    inspect.signature(function).bind(**calls[0])


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if "recipes/" in cli.VERBS[verb].example])
def test_examples_are_right(verb: str, monkeypatch: pytest.MonkeyPatch):
    """Every example names a recipe, a stage and keys that exist."""
    monkeypatch.chdir(ROOT)
    assert cli.main([*shlex.split(cli.VERBS[verb].example)[1:], "--dry-run"]) == 0


def test_arguments_in_any_order(monkeypatch: pytest.MonkeyPatch):
    calls = called(monkeypatch)
    words = ["rl", "--stage", "r1-zero", "a.toml", "steps=20", "--out", "runs/try", "lr=-1", "--dry-run"]
    assert cli.main(words) == 0
    assert cli.main(["rl", "a.toml", "steps=20", "lr=-1", *words[1:3], *words[5:7], "--dry-run"]) == 0
    assert calls[0] == calls[1]
    assert calls[0] == {
        "kind": "rl",
        "path": Path("a.toml"),
        "stage": "r1-zero",
        "overrides": ["steps=20", "lr=-1"],
        "out": Path("runs/try"),
        "dry_run": True,
        "fresh": False,
        "as_json": False,
    }


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["rnu"], "Did you mean 'run'?"),
        (["recipes/quickstart.toml"], "zifio run recipes/quickstart.toml"),
        (["xyz"], "one of run, pretrain"),
        (["run"], "are required: RECIPE.toml. For example: zifio run"),
        (["run", "a.toml", "--dry_run"], "Did you mean '--dry-run'?"),
        (["run", "a.toml", "--stage", "x"], "unrecognized arguments: --stage"),
        (["rl", "a.toml", "--out"], "argument --out: expected one argument. For example: zifio rl"),
        (["chat", "m", "--temperature", "hot"], "invalid float value: 'hot'. For example: zifio chat"),
    ],
)
def test_wrong_commands(words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]):
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert wanted in captured.err
    assert captured.out == ""


def test_a_mistake_in_the_recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    called(monkeypatch, ConfigError("a.toml: seed: wanted an integer, came true. Give an integer."))
    assert cli.main(["run", "a.toml"]) == 2
    assert capsys.readouterr().err == "a.toml: seed: wanted an integer, came true. Give an integer.\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), KeyError("a bug")])
def test_a_bug_is_not_dressed_up(error: Exception, monkeypatch: pytest.MonkeyPatch):
    called(monkeypatch, error)
    with pytest.raises(type(error), match="a bug"):
        cli.main(["run", "a.toml"])


def test_divergence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    loop = pytest.importorskip("zifio.train.loop")
    called(monkeypatch, loop.Diverged("step 7: the loss is nan. Lower lr."))
    assert cli.main(["run", "a.toml"]) == 1
    assert capsys.readouterr().err == "step 7: the loss is nan. Lower lr.\n"


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    called(monkeypatch, KeyboardInterrupt())
    assert cli.main(["run", "my recipe.toml", "--fresh", "name=x y"]) == 130
    assert capsys.readouterr().err.strip() == "stopped; resume with: zifio run 'my recipe.toml' 'name=x y'"


def test_a_verb_may_bring_its_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    called(monkeypatch, Finished(1, {"hits": 2}))
    assert cli.main(["contamination", "a.jsonl", "--against", "chain_sum", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"hits": 2}


@pytest.mark.parametrize(
    ("words", "path", "overrides"),
    [
        (["eval", "--task", "chain_sum", "model", "--n", "4", "seed=1"], "model", ["seed=1"]),
        (["eval", "http://host/v1", "seed=1", "--model", "m", "n=2"], "http://host/v1", ["seed=1", "n=2"]),
        (["eval", "recipe.toml", "--out", "x", "n=2"], "recipe.toml", ["n=2"]),
        (["eval", "--answers", "a.jsonl", "--task", "chain_sum"], None, []),
    ],
)
def test_the_forms_of_eval(words: list[str], path: str | None, overrides: list[str], monkeypatch: pytest.MonkeyPatch):
    calls = called(monkeypatch)
    assert cli.main(words) == 0
    assert (calls[0]["path"], calls[0]["overrides"], calls[0]["kind"]) == (path, overrides, "eval")


def test_stdout_holds_the_result_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    called(monkeypatch, {"models": {"r1": {"path": Path("runs/x"), "pass_at_1": 0.1 + 0.2}}})
    assert cli.main(["eval", "a.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"models": {"r1": {"path": "runs/x", "pass_at_1": 0.1 + 0.2}}}


@pytest.mark.parametrize("close", ["stdout", "stderr"])
def test_a_reader_who_left(close: str):
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, close: write}
    words = ["--help"] if close == "stdout" else ["nonsense"]
    run = subprocess.run([sys.executable, "-m", "zifio.cli", *words], cwd=ROOT, text=True, **streams)  # type: ignore[call-overload]
    os.close(write)
    assert run.returncode == (0 if close == "stdout" else 2)
    assert not run.stderr
