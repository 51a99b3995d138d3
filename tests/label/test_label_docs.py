"""The commands of docs/label.md work as written, in their order."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from serving import ROOT

from zifio import cli
from zifio.label.settings import Settings

TEXT = (ROOT / "docs" / "label.md").read_text()
COMMANDS = [line.split("#")[0].strip() for line in TEXT.splitlines() if line.startswith(".venv/bin/zifio label")]
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
