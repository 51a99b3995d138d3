"""Weights to and from the Hugging Face on-disk layout, both ways, strict.

On disk every expert has its own three matrices and an MTP module stands as one more layer behind the last
(`model.layers.L.{enorm,hnorm,eh_proj,shared_head.norm}` plus an ordinary layer). In memory experts are stacked and
the MTP module is `mtp.0`. Nothing is transposed. Published checkpoints repeat the embedding and the head in the MTP
layer; those copies are skipped.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zifio.config import ConfigError
from zifio.gguf import is_gguf
from zifio.models.config import DeepseekV3Config, LlamaConfig, read_config, write_config
from zifio.models.decoder import Decoder

_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def to_disk_names(config: DeepseekV3Config | LlamaConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's state under Hugging Face's names, experts unstacked; the tensors share memory where they can."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = _outward(config, name)
        if name.endswith(".experts.gate_up_proj"):
            stem = name.removesuffix(".gate_up_proj")
            for expert, gate_up in enumerate(tensor):
                gate, up = gate_up.chunk(2, dim=0)
                out[f"{stem}.{expert}.gate_proj.weight"] = gate
                out[f"{stem}.{expert}.up_proj.weight"] = up
        elif name.endswith(".experts.down_proj"):
            stem = name.removesuffix(".down_proj")
            out |= {f"{stem}.{expert}.down_proj.weight": down for expert, down in enumerate(tensor)}
        else:
            out[name] = tensor
    if config.tie_word_embeddings:
        out.pop("lm_head.weight", None)
    return out


def from_disk_names(config: DeepseekV3Config | LlamaConfig, disk: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_disk_names`, for a table in which every expert is whole."""
    out: dict[str, Tensor] = {}
    experts: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in disk.items():
        match = _EXPERT.fullmatch(name)
        if match:
            experts.setdefault(match[1], {})[int(match[2]), match[3]] = tensor
        else:
            out[name] = tensor
    for stem, parts in experts.items():
        n = 1 + max(expert for expert, _ in parts)
        gate_up = [torch.cat([parts[e, "gate"], parts[e, "up"]]) for e in range(n)]
        out[f"{stem}.gate_up_proj"] = torch.stack(gate_up)
        out[f"{stem}.down_proj"] = torch.stack([parts[e, "down"] for e in range(n)])
    if config.tie_word_embeddings and "model.embed_tokens.weight" in out:
        out["lm_head.weight"] = out["model.embed_tokens.weight"]
    return {ours: tensor for name, tensor in out.items() if (ours := _inward(config, name)) is not None}


def _outward(config: DeepseekV3Config | LlamaConfig, name: str) -> str:
    if name.startswith("lm_head."):
        return name
    if name.startswith("mtp."):
        _, index, rest = name.split(".", 2)
        layer = f"model.layers.{config.num_hidden_layers + int(index)}"
        if rest.startswith("norm."):
            return f"{layer}.shared_head.{rest}"
        return f"{layer}.{rest.removeprefix('block.')}"
    return f"model.{name}"


def _inward(config: DeepseekV3Config | LlamaConfig, name: str) -> str | None:
    name = name.removeprefix("model.")
    match = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
    if match is None or int(match[1]) < config.num_hidden_layers:
        return None if name.endswith("rotary_emb.inv_freq") else name
    index, rest = int(match[1]) - config.num_hidden_layers, match[2]
    n_mtp = config.num_nextn_predict_layers if isinstance(config, DeepseekV3Config) else 0
    if index >= n_mtp or rest in ("embed_tokens.weight", "shared_head.head.weight"):
        return None
    if rest.startswith("shared_head.norm."):
        return f"mtp.{index}.{rest.removeprefix('shared_head.')}"
    own = ("enorm.", "hnorm.", "eh_proj.")
    return f"mtp.{index}.{rest}" if rest.startswith(own) else f"mtp.{index}.block.{rest}"


def save_model(model: Decoder, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, which must exist."""
    write_config(model.config, folder)
    disk = to_disk_names(model.config, model.state_dict())
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in disk.items()}
    save_file(contiguous, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: str | Path) -> Decoder:
    """The decoder of a Hugging Face folder or a GGUF file, in fp32 on the CPU.

    Raises ConfigError when a file is missing or torn, a key is missing or unknown, or a shape does not fit.
    """
    if is_gguf(folder):
        from zifio.models.gguf import read_gguf  # its library is of use for nothing else

        config, tensors = read_gguf(folder)
    else:
        config, tensors = read_config(folder), read_tensors(folder)
    if config.vocab_size is None:
        raise ConfigError(f"{folder}/config.json: vocab_size is missing; wanted the number of embedding rows.")
    model = Decoder(config)
    load_state(model, dict(tensors), str(folder))
    return model


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists."""
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{index}: torn, or no index of shards. Write or download it again.") from None
    else:
        shards = ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        path = folder / shard
        if not path.exists():
            raise ConfigError(f"{path}: no such file. A checkpoint needs its weights beside config.json.")
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise ConfigError(f"{path}: torn or not safetensors ({error}). Write or download it again.") from None
    return tensors


def load_state(model: Decoder, disk: dict[str, Tensor], where: str) -> None:
    """Copy tensors under Hugging Face's names into the model; every key must fit exactly."""
    config, own = model.config, model.state_dict()
    expected = to_disk_names(config, own)
    if missing := [name for name in expected if name not in disk]:
        raise ConfigError(f"{where}: {missing[0]} is missing ({len(missing)} tensors in all).")
    also = {"lm_head.weight"} if config.tie_word_embeddings else set()
    others = sorted(disk.keys() - expected.keys() - also)
    if unknown := [name for name in others if _inward(config, name) is not None]:
        raise ConfigError(f"{where}: {unknown[0]} is not part of this architecture ({len(unknown)} tensors in all).")
    for name, tensor in expected.items():
        if disk[name].shape != tensor.shape:
            raise ConfigError(
                f"{where}: {name} has shape {list(disk[name].shape)}, config.json asks for {list(tensor.shape)}."
            )
    state = from_disk_names(config, {name: disk[name] for name in expected})
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
