"""What the board answers: to this machine alone, with headers that keep foreign code out, without changing a run."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from written import begin, go_on, whole

from zifio import cli
from zifio.board.app import make_app
from zifio.board.watch import Watch
from zifio.config import ConfigError


@pytest.fixture
def client(tmp_path: Path) -> Generator[TestClient, None, None]:
    """A board of two runs, one of which has no folder yet, and two references."""
    runs = [whole(tmp_path / "one"), tmp_path / "later"]
    references = [whole(tmp_path / f"ref{n}", n / 10) for n in range(2)]
    watch = Watch(runs, references)
    with TestClient(make_app(watch, True, 2.5), base_url="http://127.0.0.1:8018") as one:
        while not one.get("/api/runs").json()["ready"]:
            time.sleep(0.02)
        yield one


def test_runs(client: TestClient, tmp_path: Path):
    found = client.get("/api/runs").json()
    assert found["price_per_hour"] == 2.5
    assert [(run["name"], run["reference"]) for run in found["runs"]] == [
        ("one", False), ("later", False), ("ref0", True), ("ref1", True)
    ]  # fmt: skip
    (stage,) = found["runs"][0]["stages"]
    assert (stage["state"], stage["step"], stage["steps"], stage["findings"]) == ("done", 40, 40, 0)
    assert stage["k"] == 4 and stage["layers"] == [1] and stage["totals"]["flops"] == 4e10
    assert found["runs"][1]["stages"] == []
    go_on(begin(tmp_path / "later"), 0, 3)
    end = time.monotonic() + 60
    while not (stages := client.get("/api/runs").json()["runs"][1]["stages"]) or stages[0]["step"] < 3:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_charts(client: TestClient):
    asked = {"stage": "rl", "key": ["reward", "tokens_per_s", "nothing"], "run": [0, 1, 77]}
    found = client.get("/api/chart", params=asked).json()
    assert {(one["run"], one["key"]) for one in found["curves"]} == {(0, "reward"), (0, "tokens_per_s")}
    assert found["bands"]["reward"]["n"] == 2 and "reference runs" in found["standings"]["0"]["reward"]
    assert len(found["curves"][0]["x"]) == 40


def test_one_stage(client: TestClient):
    found = client.get("/api/stage", params={"run": 0, "stage": "rl"}).json()
    (load,) = found["experts"]
    assert load["dead"] == [] and len(load["shares"]) == 4 and load["largest_violation"] == 0.0
    assert [row["step"] for row in found["rollouts"]] == [step for step in (0, 10, 20, 30, 40) for _ in range(3)]
    assert client.get("/api/stage", params={"run": 1, "stage": "rl"}).status_code == 404
    assert client.get("/api/stage", params={"run": "x", "stage": "rl"}).status_code == 422


def test_only_this_machine_and_only_our_own_scripts(client: TestClient):
    page = client.get("/")
    assert page.status_code == 200 and "unsafe" not in page.headers["content-security-policy"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert client.get("/api/runs", headers={"host": "evil.example"}).status_code == 403
    assert client.post("/api/runs").status_code == 405
    assert client.get("/page/../app.py").status_code == 404


def test_folders_that_cannot_be(tmp_path: Path, capsys: Any):
    with pytest.raises(ConfigError, match="came one twice"):
        Watch([tmp_path], [tmp_path])
    (tmp_path / "file").write_text("")
    assert cli.main(["board", str(tmp_path / "file")]) == 2
    assert "wanted a run folder, came a file" in capsys.readouterr().err
