"""What a plan is about: presets, checkpoints, configs, names at the hub; and the command as a script calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tiny import deepseek, save_base

from zifio import cli
from zifio.config import ConfigError
from zifio.forecast.subject import shape_of
from zifio.models.config import write_config
from zifio.models.presets import preset


def test_a_folder_its_config_and_a_preset_are_one_thing(tmp_path: Path):
    write_config(preset("qwen3-30b-a3b"), tmp_path)
    assert shape_of(str(tmp_path)) == shape_of(str(tmp_path / "config.json"))
    assert shape_of(str(tmp_path)).num_hidden_layers == shape_of("Qwen3-30B-A3B").num_hidden_layers == 48


def test_what_is_here_wins_over_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    save_base(tmp_path / "deepseek-v3", deepseek())
    assert shape_of("deepseek-v3").num_hidden_layers == 2


def test_of_the_hub_only_the_config_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def hub(name: str, **options: Any) -> str:
        asked.update(name=name, **options)
        write_config(preset("qwen2.5-32b"), tmp_path)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert shape_of("Qwen/Qwen2.5-32B").hidden_size == 5120
    assert asked["name"] == "Qwen/Qwen2.5-32B" and asked["allow_patterns"] == ["config.json"]


def test_neither_says_what_there_is():
    with pytest.raises(ConfigError, match=r"Did you mean 'llama-3\.1-405b'"):
        shape_of("llama-3.1-405")


def test_a_script_reads_one_object(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["plan", "qwen2.5-72b", "hardware=h200", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total_params"] == 72_706_203_648 and found["hardware"] == "h200" and found["gpu_hours"] > 0
    assert cli.main(["plan", "qwen2.5-72b"]) == 0
    assert capsys.readouterr().out == "", "tables are for people"
    assert cli.main(["plan", "qwen2.5-72b", "hardware=h999"]) == 2
