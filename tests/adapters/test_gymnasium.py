"""Gymnasium: its own checker passes on every kind of task, and episodes are zifio's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from foreign import broken_task, python_with, run_inside

from zifio.tasks.catalog import named_task

TASKS = ["chain_sum", "reasoning_gym", "calculator", "tic_tac_toe", "agent:of.name=chain_mod"]


@pytest.mark.slow
def test_gymnasium_checks_and_plays(tmp_path: Path):
    asked = {
        "folder": str(tmp_path),
        "tasks": TASKS,
        "shown": ["chain_sum", "calculator"],
        "broken": broken_task(tmp_path),
    }
    found = json.loads(run_inside(python_with("gymnasium"), "gymnasium_run.py", asked))
    assert found["checked"] == TASKS and not found["torch"]
    assert len(found["several"]) == 2
    for name, kinds in found["shown"].items():
        task = named_task(name)
        problem = task.problem("train", 0, 3)
        for first, *others in kinds.values():
            assert (first["text"], first["problem"]) == (problem.prompt, problem.id)
            assert [step["reward"] for step in others] == [*[0.0] * (len(others) - 1), 1.0]
            assert others[-1]["ends"] == [True, False]
            assert others[-1]["parts"] == {"accuracy": 1.0, "format": 1.0, "process": 1.0}
    called = found["shown"]["calculator"]["texts"]
    assert called[1]["text"] == named_task("calculator").problem("train", 0, 3).gold
    assert found["cut"] == [False, True]
    assert "the check is broken" in found["broken"], "an error is no reward"
