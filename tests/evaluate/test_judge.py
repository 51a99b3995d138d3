"""A judge of steps behind an endpoint, through a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from server import completion, serving

from zifio import cli
from zifio.data.sources import read_jsonl, write_jsonl

RECIPE = """
name = "judged"
task = {{ name = "chain_mod", min_terms = 2, max_terms = 4 }}
[[stage]]
kind = "mark"
name = "marks"
data = "{data}"
judge = {{ url = "{url}", model = "wise" }}
"""


def wise(request: dict[str, Any], _: int) -> dict[str, Any]:
    """Reads the steps and names the first that does not compute; of one solution it can tell nothing."""
    text = request["messages"][-1]["content"]
    assert request["model"] == "wise" and request["temperature"] == 0
    if "8+8" in text:
        return completion("Hard to say.")
    return completion("It is \\boxed{2}." if "+3=7" in text else "\\boxed{0}", thinking="\\boxed{1}")


def sampled(response: str, outcome: str) -> dict[str, Any]:
    """A line of a `sample` stage's data."""
    prompt = "(8+8)%10" if "8+8" in response else "(1+2+3)%10"
    return {"problem": "p", "prompt": prompt, "gold": "6", "response": response, "outcome": outcome}


def test_a_judge_behind_an_endpoint_labels_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    rows = [
        sampled("<think>1+2=3+3=6</think><answer>6</answer>", "right"),
        sampled("<think>1+2=3+3=7</think><answer>7</answer>", "wrong"),
        sampled("<think>8+8=6</think><answer>6</answer>", "right"),
    ]
    write_jsonl(tmp_path / "data.jsonl", rows)
    with serving(wise) as server:
        (tmp_path / "recipe.toml").write_text(RECIPE.format(data=tmp_path / "data.jsonl", url=server.url))
        assert cli.main(["mark", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]) == 0
        assert len(server.requests) == 3 and all(0 <= request["seed"] < 2**31 for request in server.requests)
    found = read_jsonl(tmp_path / "run" / "marks" / "data.jsonl")
    assert [row["labels"] for row in found] == [[1, 1, 1], [1, -1, None]], "what cannot be told is left out"
    done = json.loads((tmp_path / "run" / "marks" / "done.json").read_text())
    assert done["labels_f1"] == 1.0 and (done["drawn"], done["kept"]) == (3, 2)
