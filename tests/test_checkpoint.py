"""Checkpoints: whole or not there, damage noticed and named, the one before used; killed at any moment."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import deepseek, made
from torch import Tensor

from zifio import checkpoint
from zifio.checkpoint import damage, load_checkpoint, model_digest, save_checkpoint, with_manifest
from zifio.config import ConfigError
from zifio.models.decoder import Decoder
from zifio.models.weights import load_model, save_model

FILES = ("config.json", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")
STATE: dict[str, Any] = {"totals": {"flops": 1.5e12, "tokens": 7, "seconds": 0.1 + 0.2}}


@pytest.fixture(scope="module")
def model() -> Decoder:
    """The model that all of these save; its first weight says at which step."""
    return made(deepseek(num_nextn_predict_layers=1))


def optimizer(step: int) -> dict[str, Tensor]:
    """Some optimizer state, with a scalar and a strided view in it."""
    wide = torch.arange(12.0).view(3, 4) + step
    return {"step.a": torch.tensor(float(step)), "exp_avg.a": wide.t(), "momentum.b": wide[:, 1]}


def save(folder: Path, step: int, model: Decoder) -> None:
    """The checkpoint of this step."""
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float(step)
    save_checkpoint(folder, step, model, optimizer(step), STATE)


def loaded_step(folder: Path) -> int | None:
    """The step that is gone on from, after checking that everything is as it was saved."""
    model = made(deepseek(num_nextn_predict_layers=1), seed=9)
    resume = load_checkpoint(folder, model)
    if resume is None:
        return None
    assert model.lm_head.weight[0, 0].item() == resume.step
    assert resume.state == STATE
    expected = optimizer(resume.step)
    assert resume.optimizer.keys() == expected.keys()
    assert all(torch.equal(resume.optimizer[name], expected[name]) for name in expected)
    return resume.step


def test_round_trip_is_exact(model: Decoder, tmp_path: Path):
    save(tmp_path, 3, model)
    other = made(deepseek(num_nextn_predict_layers=1), seed=9)
    resume = load_checkpoint(tmp_path, other)
    assert resume is not None and resume.step == 3 and resume.state == STATE
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert tuple(sorted(p.name for p in (tmp_path / "step-000003").iterdir())) == FILES
    assert load_model(tmp_path / "step-000003").config == model.config, "it is a Hugging Face folder"


def test_no_checkpoint_no_resume(model: Decoder, tmp_path: Path):
    assert load_checkpoint(tmp_path / "nowhere", model) is None
    (tmp_path / "step-x").mkdir()
    (tmp_path / ".step-000007.new").mkdir()
    assert load_checkpoint(tmp_path, model) is None


def test_the_two_newest_are_kept(model: Decoder, tmp_path: Path):
    for step in (2, 4, 6, 8):
        save(tmp_path, step, model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000006", "step-000008"]
    assert loaded_step(tmp_path) == 8


def test_newest_is_by_number_not_by_spelling(model: Decoder, tmp_path: Path):
    save(tmp_path, 999_999, model)
    save(tmp_path, 1_000_000, model)
    save(tmp_path, 1_000_001, model)
    assert loaded_step(tmp_path) == 1_000_001
    assert not (tmp_path / "step-999999").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize("harm", [cut, empty, flip, edit, Path.unlink], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("file", FILES)
def test_harm_is_named_and_the_one_before_is_used(
    model: Decoder, file: str, harm: Callable[[Path], Any], tmp_path, capfd
):
    for step in (1, 2):
        save(tmp_path, step, model)
    harm(tmp_path / "step-000002" / file)
    if file == "manifest.json" and harm is edit:  # blank space behind it changes nothing that it says
        assert loaded_step(tmp_path) == 2
        return
    assert damage(tmp_path / "step-000002")
    assert loaded_step(tmp_path) == 1
    told = " ".join(capfd.readouterr().err.split())
    named = file in told or (file == "manifest.json" and harm is flip)
    assert "step-000002" in told and named and "trying the checkpoint before it" in told


@pytest.mark.parametrize("manifest", ["{}", "[]", "null", '"x"', '{"state.json": 3}', '{"../../x": "0"}'])
def test_a_manifest_that_does_not_cover_the_files_is_damage(model: Decoder, manifest: str, tmp_path: Path):
    for step in (1, 2):
        save(tmp_path, step, model)
    (tmp_path / "step-000002" / "manifest.json").write_text(manifest)
    assert loaded_step(tmp_path) == 1


def test_all_damaged_is_an_error_with_the_way_out(model: Decoder, tmp_path: Path):
    for step in (1, 2):
        save(tmp_path, step, model)
        flip(tmp_path / f"step-00000{step}" / "model.safetensors")
    with pytest.raises(ConfigError, match=r"all 2 checkpoints are damaged.*model\.safetensors.*--fresh"):
        load_checkpoint(tmp_path, model)


def test_a_checkpoint_of_another_shape_is_refused(model: Decoder, tmp_path: Path):
    save(tmp_path, 1, model)
    with pytest.raises(ConfigError, match=r"step-000001: .*shape"):
        load_checkpoint(tmp_path, made(deepseek(num_nextn_predict_layers=1, vocab_size=41)))


class Killed(BaseException):
    """As if the process had died here."""


def kill_at(monkeypatch: pytest.MonkeyPatch, nth: int) -> list[str]:
    """Die at the nth call that touches the disk's names or flushes to it; the calls so far come back."""
    calls: list[str] = []

    def dying(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == nth:
                if name == "rmtree" and Path(args[0]).is_dir():
                    (Path(args[0]) / "manifest.json").unlink(missing_ok=True)  # it got this far
                raise Killed(name)
            return function(*args, **options)

        return call

    monkeypatch.setattr(os, "fsync", dying("fsync", os.fsync))
    monkeypatch.setattr(Path, "rename", dying("rename", Path.rename))
    monkeypatch.setattr(Path, "write_text", dying("write_text", Path.write_text))
    monkeypatch.setattr(shutil, "rmtree", dying("rmtree", shutil.rmtree))
    monkeypatch.setattr(checkpoint, "save_file", dying("save_file", checkpoint.save_file))
    return calls


def test_killed_at_any_moment_of_saving(model: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Old or new, never less; and saving again goes well. With an older one pruned, and with a damaged one replaced."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # what it takes is not asked here
    seen = set()
    for replacing in (False, True):
        before = tmp_path / f"before-{replacing}"
        for step in (1, 2, 3) if replacing else (1, 2):
            save(before, step, model)
        if replacing:
            flip(before / "step-000003" / "model.safetensors")
        for nth in range(1, 100):
            folder = tmp_path / "now"
            shutil.copytree(before, folder)
            with pytest.MonkeyPatch.context() as patch:
                calls = kill_at(patch, nth)
                try:
                    save(folder, 3, model)
                    finished = True
                except Killed:
                    finished = False
            assert loaded_step(folder) in ((3,) if finished else (2, 3)), calls
            save(folder, 3, model)
            assert loaded_step(folder) == 3
            assert sorted(p.name for p in folder.iterdir()) == ["step-000002", "step-000003"]
            shutil.rmtree(folder)
            if finished:
                break
            seen.add(calls[-1])
        assert nth > 10
    assert seen == {"fsync", "rename", "write_text", "rmtree", "save_file"}


def test_everything_is_flushed_before_the_rename(model: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    flush, rename = checkpoint._flush, Path.rename
    monkeypatch.setattr(checkpoint, "_flush", lambda path: (order.append(path.name), flush(path))[1])
    monkeypatch.setattr(Path, "rename", lambda self, to: (order.append("rename"), rename(self, to))[1])
    save(tmp_path / "checkpoints", 1, model)
    at = order.index("rename")
    assert set(order[:at]) == {*FILES, ".step-000001.new"}, "files and their folder"
    assert order[at + 1 :] == ["checkpoints"], "then the folder that holds the name"


def test_manifest_holds_every_file(tmp_path: Path):
    def write(beside: Path) -> None:
        (beside / "a.txt").write_text("a")
        (beside / "b.txt").write_text("b")

    with_manifest(tmp_path / "place", write)
    sums = json.loads((tmp_path / "place" / "manifest.json").read_text())
    assert sums.keys() == {"a.txt", "b.txt"}
    assert sums["a.txt"] == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert damage(tmp_path / "place") == ""


def test_a_failed_write_leaves_the_old_result(tmp_path: Path):
    with_manifest(tmp_path / "place", lambda beside: (beside / "a").write_text("old"))

    def write(beside: Path) -> None:
        (beside / "a").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        with_manifest(tmp_path / "place", write)
    assert (tmp_path / "place" / "a").read_text() == "old" and damage(tmp_path / "place") == ""


def test_the_models_digest_names_its_weights(model: Decoder, tmp_path: Path):
    save(tmp_path, 1, model)
    save(tmp_path, 2, model)
    one, two = (model_digest(tmp_path / f"step-00000{step}") for step in (1, 2))
    assert one != two and len(one) == 12
    save(tmp_path, 1, model)
    assert model_digest(tmp_path / "step-000001") == one


def test_the_digest_of_shards_names_every_byte_of_them(tmp_path: Path):
    model = made(deepseek())
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    for folder, size in ((whole, 10**9), (shards, 20_000)):
        folder.mkdir()
        save_model(model, folder, size)
    files = sorted(shards.glob("*.safetensors"))
    assert len(files) > 2
    first = model_digest(shards)
    assert len(first) == len(model_digest(whole)) == 12 and first == model_digest(shards)
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert model_digest(shards) != first
        path.write_bytes(content)
    assert model_digest(shards) == first
    files[1].unlink()
    with pytest.raises(ConfigError, match="no such file"):
        model_digest(shards)


def test_a_sharded_checkpoint_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "save_model", lambda model, folder: save_model(model, folder, 20_000))
    model, other = made(deepseek(), seed=1), made(deepseek(), seed=2)
    save_checkpoint(tmp_path, 7, model, {"m": torch.ones(2)}, {})
    assert len(list((tmp_path / "step-000007").glob("model-*.safetensors"))) > 1
    resume = load_checkpoint(tmp_path, other)
    assert resume is not None and resume.step == 7
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
