"""OpenEnv: the package is what OpenEnv validates, statically, served, and by the address; episodes are zifio's."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from foreign import ROOT, broken_task, python_with, run_inside

from zifio.adapters.openenv_package import name_of, write
from zifio.adapters.played import Series
from zifio.adapters.translate import turn_of
from zifio.config import ConfigError
from zifio.tasks.catalog import named_task

NEEDS = ROOT / "zifio" / "adapters" / "openenv_files" / "server" / "requirements.txt"
PASSES = [
    "static.manifest",
    "runtime.startup",
    "runtime.reward_well_formed",
    "runtime.observation_schema",
    "runtime.state_contract",
]


def test_names():
    assert name_of("reasoning_gym:family=x,options.a=1") == "reasoning_gym_family_x_options_a_1"


@pytest.mark.parametrize("task", ["chain_sum", "calculator", "tic_tac_toe"])
def test_the_plan_of_a_package_is_a_whole_episode(task: str, tmp_path: Path):
    write(task, tmp_path / "package")
    plan = json.loads((tmp_path / "package" / "validation" / "runtime.json").read_text())
    played = Series(task).reset(plan["reset"]["seed"])
    for action in plan["actions"]:
        assert played.verdict is None
        played.say(turn_of({"content": action["text"], "tool_calls": action["tool_calls"]}, bool(played.tools)))
        if task == "tic_tac_toe":
            return  # the opponent of the demonstration is another
    assert played.verdict is not None and played.reward() == 1.0


def test_a_package_is_complete_and_well_formed(tmp_path: Path):
    with pytest.raises(ConfigError):
        write("chain_some", tmp_path / "none")
    assert not (tmp_path / "none").exists(), "a mistake leaves no half package"
    write("calculator", tmp_path, "zifio @ https://example.org/zifio.tar.gz")
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found >= {"openenv.yaml", "pyproject.toml", "README.md", "server/app.py", "server/Dockerfile"}
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert project["dependencies"][-1] == "zifio @ https://example.org/zifio.tar.gz"
    assert "app = app_of(" in (tmp_path / "server" / "app.py").read_text()
    compile((tmp_path / "server" / "app.py").read_text(), "app.py", "exec")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "{{" in path.read_text()]


def test_the_needs_of_an_image_are_those_that_zifio_declares():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needs = NEEDS.read_text().split()
    assert set(needs) <= set(declared) and not any("torch" in need for need in needs)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["calculator", "chain_sum", "tic_tac_toe"])
def test_openenv_validates_and_plays(task: str, tmp_path: Path):
    wrong = {"text": "<think></think><answer>no</answer>"}
    asked = {"task": task, "folder": str(tmp_path), "broken": False, "wrong": [wrong]}
    found: dict[str, Any] = json.loads(run_inside(python_with("openenv"), "openenv_run.py", asked))
    assert found["static"]["code"] == 0 and "Verdict: PASS" in found["static"]["said"], found["static"]
    assert found["url"]["code"] == 0 and "Verdict: PASS" in found["url"]["said"], found["url"]
    assert {check: found["runtime"][check][0] for check in PASSES} == dict.fromkeys(PASSES, "pass")
    assert {outcome for outcome, *_ in found["runtime"].values()} == {"pass", "skip"}, "skipped: not in this build"
    problem = named_task(task).problem("train", 0, 0)
    right, wrong = found["right"]["steps"], found["wrong"]["steps"]
    for steps in (right, wrong):
        assert steps[0]["messages"] == [{"role": "user", "content": problem.prompt}]
        assert steps[0]["reward"] is None and not steps[0]["done"]
    assert (wrong[-1]["reward"], wrong[-1]["done"]) == (0.0, True)
    assert found["right"]["step_count"] == len(right) - 1
    if task != "tic_tac_toe":  # whose opponent is by chance
        assert (right[-1]["reward"], right[-1]["done"]) == (1.0, True)
        assert right[-1]["metadata"]["parts"]["process"] == 1.0


@pytest.mark.slow
def test_a_broken_check_is_an_error_for_the_client(tmp_path: Path):
    asked = {"task": broken_task(tmp_path), "folder": str(tmp_path), "broken": True, "wrong": []}
    found = json.loads(run_inside(python_with("openenv"), "openenv_run.py", asked))
    assert "the check is broken" in found["error"]
