"""The commands of docs/label.md work as written, in their order."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from items import ratings
from serving import ROOT, Caller, serving
from tiny import deepseek, save_base

from zifio import cli
from zifio.label.settings import Settings

TEXT = (ROOT / "docs" / "label.md").read_text()
ALL = [line.split("#")[0].strip() for line in TEXT.splitlines() if line.startswith(".venv/bin/zifio ")]
SUMS = [command for command in ALL if "sums.db" in command or "runs/" in command]
COMMANDS = [command for command in ALL if command not in SUMS]
SERVES = {".venv/bin/zifio label desk.db", ".venv/bin/zifio label desk.db --host 0.0.0.0"}
"""These open the page until they are stopped: tests/label/test_app.py."""


def test_every_command_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "label-items.jsonl", tmp_path / "docs")
    here = [command for command in COMMANDS if command not in SERVES and "postgresql:" not in command]
    assert len(here) >= 6 and set(COMMANDS) > SERVES
    for command in here:
        assert cli.main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert "20 new items" in capsys.readouterr().out


@pytest.mark.slow
def test_the_way_from_labels_to_better_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As written, but that the base is untrained, and that the page's requests come without a page."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    save_base(
        tmp_path / "runs" / "quickstart" / "base" / "model",
        deepseek(max_position_embeddings=160),
        alphabet="0123456789+-=()%",
    )
    assert len(SUMS) == 6
    for command in SUMS:
        if command != ".venv/bin/zifio label sums.db":
            assert cli.main(shlex.split(command)[1:]) == 0, command
            continue
        with serving(str(tmp_path / "sums.db")) as server, Caller(server.url) as me:
            for place, item in enumerate(me("next", n=20)[1]["items"]):
                marks = [1] * (len(item["steps"]) - place % 2) + [-1] * (place % 2)
                assert me("label", key=f"{place:032}", item=item["id"], said=ratings(*marks), ms=900)[0] == 200
    assert len((tmp_path / "runs/labels/labels.jsonl").read_text().splitlines()) > 10
    page = (tmp_path / "runs/labels/eval/results.md").read_text()
    assert "## Choosing by the steps' scores" in page and "| 8 |" in page


def test_the_items_shown_are_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (shown,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    file = tmp_path / "items.jsonl"
    file.write_text(shown)
    assert cli.main(["label", str(tmp_path / "desk.db"), "--import", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == len(shown.splitlines()) == 3


def test_every_rule_is_told_with_what_it_is_at_first():
    rules = dict(re.findall(r"^\| `(\w+)` \|.*\| `?([\w.]+)`? \|$", TEXT, re.MULTILINE))
    defaults = {name: str(value).lower() for name, value in Settings().model_dump().items()}
    assert {name: value.removesuffix(".0") for name, value in defaults.items()} == {
        name: value.removesuffix(".0") for name, value in rules.items() if name in defaults
    }
