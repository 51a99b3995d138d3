"""Atomic, checksummed checkpoints: a Hugging Face folder plus what training needs to go on exactly.

    checkpoints/step-000100/  config.json  model.safetensors  optimizer.safetensors  state.json  manifest.json

A checkpoint is written beside its place, flushed to disk and renamed, so that it is there whole or not at all; the
manifest holds every file's sha256, so that one that was torn or edited is noticed. The two newest are kept: when the
newest is damaged the one before is used, and the damage is named. Of a model with adapters only these are kept, with a
digest of the weights under them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from zifio.config import ConfigError
from zifio.gguf import is_gguf
from zifio.log import say
from zifio.models.decoder import Decoder
from zifio.models.lora import adapters, base_digest, restore_adapter, save_adapter
from zifio.models.weights import AnyModel, load_state, read_tensors, save_model, weight_files

_KEPT = 2


@dataclass(frozen=True)
class Resume:
    """Where to go on from."""

    step: int
    """Steps already done."""
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, model: AnyModel, optimizer: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Write `folder/step-NNNNNN` and remove all but the newest two."""
    with_manifest(folder / f"step-{step:06d}", lambda beside: _write(beside, step, model, optimizer, state))
    for old in _steps(folder)[:-_KEPT]:
        shutil.rmtree(old)


def _write(beside: Path, step: int, model: AnyModel, optimizer: dict[str, Tensor], state: dict[str, Any]) -> None:
    if isinstance(model, Decoder) and adapters(model):
        save_adapter(model, beside)
        state = {**state, "base": base_digest(model)}
    else:
        save_model(model, beside)
    save_file({name: tensor.contiguous() for name, tensor in optimizer.items()}, beside / "optimizer.safetensors")
    (beside / "state.json").write_text(json.dumps({**state, "step": step}, indent=1))


def load_checkpoint(folder: Path, model: AnyModel) -> Resume | None:
    """Load the newest whole checkpoint into `model`; None when there is none.

    A damaged one is named on the terminal and the one before is tried. Raises ConfigError when all are damaged, or when
    its adapters belong to other weights.
    """
    found = _steps(folder)
    for path in reversed(found):
        if fault := damage(path):
            say(f"{path}: {fault}; trying the checkpoint before it")
            continue
        state = json.loads((path / "state.json").read_text())
        _load_weights(path, model, state.pop("base", None))
        return Resume(state.pop("step"), load_file(path / "optimizer.safetensors"), state)
    if found:
        raise ConfigError(
            f"{folder}: all {len(found)} checkpoints are damaged, the last one: {damage(found[-1])}. "
            "Start this stage over with --fresh."
        )
    return None


def _load_weights(path: Path, model: AnyModel, base: str | None) -> None:
    """The checkpoint's weights into the model: all of them, or the adapters on the base of this digest."""
    if not isinstance(model, Decoder) or not adapters(model):
        load_state(model, read_tensors(path), str(path))
        return
    if base != (own := base_digest(model)):
        raise ConfigError(
            f"{path}: wanted adapters of the weights {own}, came adapters of {base}. The model that this stage starts "
            "from has changed: start it over with --fresh."
        )
    restore_adapter(model, path)


def with_manifest(place: Path, write: Any) -> None:
    """Let `write(beside)` fill a folder, add a manifest of checksums, flush it all to disk and rename it to `place`."""
    beside = place.with_name(f".{place.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    write(beside)
    sums = {path.name: _sha256(path) for path in sorted(beside.iterdir())}
    (beside / "manifest.json").write_text(json.dumps(sums, indent=1))
    for path in [*beside.iterdir(), beside]:
        _flush(path)
    if place.exists():
        shutil.rmtree(place)
    beside.rename(place)
    _flush(place.parent)


def damage(folder: Path) -> str:
    """What is wrong with a folder that `with_manifest` wrote, in words; empty when nothing is."""
    manifest = folder / "manifest.json"
    try:
        sums: dict[str, str] = json.loads(manifest.read_text())
    except FileNotFoundError:
        return "manifest.json is missing"
    except (ValueError, OSError):
        return "manifest.json is torn"
    if not isinstance(sums, dict) or not sums:
        return "manifest.json names no files"
    for name, expected in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != expected:
            return f"{name} is torn or was edited (its checksum differs from the manifest's)"
    return ""


def model_digest(model: Path) -> str:
    """Twelve hex digits naming a model's weights, for provenance: of its one file (GGUF too), or of all shards.

    Raises ConfigError when the weights are not all there.
    """
    files = [model] if is_gguf(model) else weight_files(model)
    if len(files) == 1:
        return file_digest(files[0])
    return hashlib.sha256("".join(f"{path.name} {_sha256(path)}\n" for path in files).encode()).hexdigest()[:12]


def file_digest(path: Path) -> str:
    """Twelve hex digits naming a file's content."""
    return _sha256(path)[:12]


def _steps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if re.fullmatch(r"step-\d{6,}", path.name))
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
