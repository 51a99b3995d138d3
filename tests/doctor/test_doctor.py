"""The doctor over runs that were really trained: thirteen that are broken on purpose, five that go well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from broken import BROKEN, GOOD, Maker, found_in

from zifio import cli


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    torch.set_num_threads(1)
    return Maker(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", BROKEN)
def test_it_names_what_is_wrong(name: str, maker: Maker):
    """The cause comes first, with figures and with what to try."""
    cause, make = BROKEN[name]
    found = found_in(make(maker))
    assert found and found[0].cause == cause
    assert all(one.says and one.evidence and one.tries for one in found)
    assert any(character.isdigit() for character in found[0].evidence[0])


@pytest.mark.parametrize("name", GOOD)
def test_it_is_silent_when_all_is_well(name: str, maker: Maker):
    assert [one.says for one in found_in(GOOD[name](maker))] == []


def test_the_verb(maker: Maker, capsys: pytest.CaptureFixture[str]):
    """Exit code 1 and the words where something is wrong, as JSON too; a mistake is told."""
    runs = maker.folder
    assert cli.main(["doctor", str(runs / "trivial"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [one["cause"] for one in told["findings"]] == ["too_easy"] and told["stages"] == {"stage": "done"}
    assert cli.main(["doctor", str(runs / "tuned")]) == 0
    assert "nothing wrong is seen" in capsys.readouterr().out
    assert cli.main(["doctor", str(runs / "models")]) == 2
    assert cli.main(["doctor", str(runs / "tuned" / "stage")]) == 2
    assert f"give {runs / 'tuned'}" in capsys.readouterr().err


def test_what_was_said_is_kept(maker: Maker):
    """Each look leaves the first reply to the same three problems, with its reward parts."""
    lines = (Path(maker.folder) / "sevens" / "stage" / "rollouts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [step for step in (0, 8, 16, 24) for _ in range(3)]
    assert len({row["problem"] for row in rows}) == 3 and {"accuracy", "format"} <= set(rows[0]["parts"])
