"""verifiers: its own validation passes, and rollouts against a served model earn what zifio says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from foreign import broken_task, python_with, run_inside

from zifio.tasks.catalog import named_task

pytestmark = pytest.mark.slow


def run(task: str, folder: Path, broken: bool = False) -> dict[str, Any]:
    asked = {"task": task, "folder": str(folder), "broken": broken, "count": 2}
    return json.loads(run_inside(python_with("verifiers"), "verifiers_run.py", asked))


def rewards(found: dict[str, Any]) -> list[float | None]:
    traces = [trace for episode in found["episodes"] for trace in episode.get("traces", [episode])]
    return [trace["rewards"]["zifio"] and trace["rewards"]["zifio"]["score"] for trace in traces]


@pytest.mark.parametrize("task", ["chain_sum", "calculator", "tic_tac_toe:goal=draw"])
def test_verifiers_validates_and_rolls_out(task: str, tmp_path: Path):
    found = run(task, tmp_path)
    assert found["validated"]["outcomes"]["valid"] == found["validated"]["total"] == 2
    assert rewards(found["right"]) == [1.0, 1.0]
    assert rewards(found["wrong"]) == [0.0, 0.0]
    of = named_task(task)
    prompts = {of.problem("train", index, 0).prompt for index in range(2)}
    assert {request["messages"][0]["content"] for request in found["right"]["requests"]} == prompts
    if task == "calculator":
        offered = found["right"]["requests"][0]["tools"][0]["function"]
        assert (offered["name"], offered["description"]) == ("calculator", "Computes an arithmetic expression exactly.")
        heard = [message for request in found["right"]["requests"] for message in request["messages"]]
        told = {message["content"] for message in heard if message["role"] == "tool"}
        assert told == {of.problem("train", index, 0).gold for index in range(2)}


def test_a_broken_check_is_an_error_of_the_trace(tmp_path: Path):
    found = run(broken_task(tmp_path), tmp_path, broken=True)["broken"]
    assert rewards(found) == [None, None]
    assert "the check is broken" in json.dumps(found["episodes"])
