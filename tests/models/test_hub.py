"""Names of models: a folder wins, only safe files are asked for, and every failure is explained."""

from __future__ import annotations

import fnmatch
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from tiny import llama, save_base

from zifio.config import ConfigError
from zifio.engine.policy import open_model
from zifio.models.hub import is_hub_id, resolve


class Hub:
    """Stands for the hub: gives a folder, or fails; remembers what it was asked."""

    def __init__(self, result: Path | Exception) -> None:
        self.result, self.asked = result, []

    def __call__(self, name: str, **settings: Any) -> str:
        self.asked.append((name, settings))
        if isinstance(self.result, Exception):
            raise self.result
        return str(self.result)


def put(monkeypatch: pytest.MonkeyPatch, result: Path | Exception) -> Hub:
    """A hub in place of the real one."""
    hub = Hub(result)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    return hub


def error(kind: type[Exception]) -> Exception:
    """An error of the hub's library, made without the answer of a server."""
    made = kind.__new__(kind)
    made.args = ("from the test",)
    return made


def test_a_folder_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub = put(monkeypatch, AssertionError("not to be asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve("owner/name") == Path("owner/name") and not is_hub_id("owner/name")
    assert resolve(tmp_path) == tmp_path and not hub.asked


def test_only_configs_tokenizers_templates_and_safetensors_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub = put(monkeypatch, tmp_path)
    assert is_hub_id("Qwen/Qwen2.5-0.5B_x")
    assert resolve("Qwen/Qwen2.5-0.5B_x") == tmp_path
    ((name, settings),) = hub.asked
    assert name == "Qwen/Qwen2.5-0.5B_x"
    listed = [
        "config.json", "generation_config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
        "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "vocab.json",
        "pytorch_model.bin", "model.pth", "training_args.bin", "modeling_x.py", "consolidated.00.pth", "model.gguf",
        "original/consolidated.safetensors", "onnx/config.json", "tf_model.h5", "optimizer.pt", "weights.pkl",
    ]  # fmt: skip
    taken = [f for f in listed if any(fnmatch.fnmatch(f, wanted) for wanted in settings["allow_patterns"])]
    taken = [f for f in taken if not any(fnmatch.fnmatch(f, not_wanted) for not_wanted in settings["ignore_patterns"])]
    assert taken == listed[:9]


@pytest.mark.parametrize("reference", ["runs/try/base", "nothing", "./owner/name", "owner/", "/a/b", "a b/c", ""])
def test_what_is_neither_folder_nor_name_is_refused_without_asking(reference: str, monkeypatch: pytest.MonkeyPatch):
    hub = put(monkeypatch, AssertionError("not to be asked"))
    if reference:
        with pytest.raises(ConfigError, match="wanted the folder of a model or the name") as refusal:
            resolve(reference)
        assert str(refusal.value).startswith(reference)
    assert not is_hub_id(reference) and not hub.asked


@pytest.mark.parametrize(
    "kind, parts",
    [
        (errors.GatedRepoError, ("licence", "https://huggingface.co/owner/name", "hf auth login")),
        (errors.RepositoryNotFoundError, ("neither", "spelling")),
        (errors.HFValidationError, ("neither", "spelling")),
        (errors.LocalEntryNotFoundError, ("cannot be reached", "network")),
        (errors.OfflineModeIsEnabled, ("from the test", "Try again")),
        (errors.HfHubHTTPError, ("from the test", "Try again")),
        (OSError, ("from the test", "Try again")),
    ],
)
def test_failures_are_explained(kind: type[Exception], parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    put(monkeypatch, error(kind))
    with pytest.raises(ConfigError) as refusal:
        resolve("owner/name")
    for part in ("owner/name: wanted a folder here or a model", *parts):
        assert part in str(refusal.value)


def test_no_network_is_explained(tmp_path: Path):
    """The library itself, offline and with an empty cache, in a process of its own."""
    program = "from zifio.models.hub import resolve; resolve('owner/name')"
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.returncode and "ConfigError: owner/name: wanted a folder here or a model" in done.stderr
    assert "the hub cannot be reached" in done.stderr


def test_a_name_opens_as_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(monkeypatch, save_base(tmp_path, llama()))
    model, tokenizer = open_model("owner/name")
    assert model.config.vocab_size == tokenizer.vocab_size
