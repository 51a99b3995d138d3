"""Weights to and from the Hugging Face on-disk layout, both ways, strict.

On disk every expert has its own three matrices and an MTP module stands as one more layer behind the last
(`model.layers.L.{enorm,hnorm,eh_proj,shared_head.norm}` plus an ordinary layer). In memory experts are stacked and
the MTP module is `mtp.0`. Nothing is transposed. Published checkpoints repeat the embedding and the head in the MTP
layer; those copies are skipped.

DeepSeek publishes V3 and R1 in FP8 (DeepSeek-V3, section 3.3): X.weight in e4m3 and X.weight_scale_inv, one fp32 number
for each block of 128 by 128; the weight is their product. It is multiplied out while loading.

Loading fills a model that has memory and no values yet, one tensor at a time, so it needs the model's memory and that
of the largest tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zifio.config import ConfigError
from zifio.gguf import is_gguf
from zifio.log import say
from zifio.models.captioner import Captioner
from zifio.models.classifier import Classifier
from zifio.models.classifier_config import read_classifier_config, write_classifier_config
from zifio.models.config import AnyConfig, read_config, read_fp8_block, write_config
from zifio.models.decoder import Decoder
from zifio.models.janus import Janus
from zifio.models.janus_config import (
    ARCHITECTURE,
    is_janus,
    read_captioner_config,
    read_janus_config,
    read_vq_config,
    write_captioner_config,
    write_janus_config,
    write_vq_config,
)
from zifio.models.vq import Vq

OfPictures = Vq | Classifier | Captioner
"""Models of pictures alone: a tokenizer, a classifier, an encoder."""
AnyModel = Decoder | OfPictures
"""What a folder may hold: a decoder, Janus among them, or a model of pictures alone."""

SHARD_BYTES = 5_000_000_000
"""A model with more bytes than this is written in several files, as transformers does."""

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_JANUS = ("vision_model.", "aligner.", "vqmodel.", "generation_")
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


# Names -----------------------------------------------------------------------------------------------------


def to_disk_names(config: AnyConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's state under Hugging Face's names, experts unstacked; the tensors share its memory."""
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


def from_disk_names(config: AnyConfig, disk: dict[str, Tensor]) -> dict[str, Tensor]:
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


def disk_state(model: AnyModel) -> dict[str, Tensor]:
    """A model's state under Hugging Face's names; the tensors share its memory.

    What is of pictures alone has the same names here and there. Janus has the decoder's below `model.language_model`
    and its own parts beside it.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if isinstance(model, OfPictures):
        return state
    if not isinstance(model, Janus):
        return to_disk_names(model.config, state)
    own = {f"model.{name}": tensor for name, tensor in state.items() if name.startswith(_JANUS)}
    text = to_disk_names(model.config, {name: t for name, t in state.items() if not name.startswith(_JANUS)})
    return {re.sub(r"^model\.", "model.language_model.", name): tensor for name, tensor in text.items()} | own


def _is_known(model: AnyModel, name: str) -> bool:
    """Whether a tensor on disk that we do not expect may be passed over."""
    if isinstance(model, OfPictures):
        return False
    if isinstance(model, Janus):
        if name.endswith("embeddings.position_ids"):
            return True
        name = name.replace("model.language_model.", "model.", 1)
    return _inward(model.config, name) is None


def _outward(config: AnyConfig, name: str) -> str:
    for ours, theirs in config.renamed.items():
        name = name.replace(ours, theirs)
    if name.startswith(("lm_head.", "score.")):
        return name
    if name.startswith("mtp."):
        _, index, rest = name.split(".", 2)
        layer = f"model.layers.{config.num_hidden_layers + int(index)}"
        if rest.startswith("norm."):
            return f"{layer}.shared_head.{rest}"
        return f"{layer}.{rest.removeprefix('block.')}"
    return f"model.{name}"


def _inward(config: AnyConfig, name: str) -> str | None:
    if name.startswith(config.left_out):
        return None
    name = name.removeprefix("model.")
    for ours, theirs in config.renamed.items():
        name = name.replace(theirs, ours)
    match = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
    if match is None or int(match[1]) < config.num_hidden_layers:
        return None if name.endswith("rotary_emb.inv_freq") else name
    index, rest = int(match[1]) - config.num_hidden_layers, match[2]
    if index >= config.n_mtp or rest in ("embed_tokens.weight", "shared_head.head.weight"):
        return None
    if rest.startswith("shared_head.norm."):
        return f"mtp.{index}.{rest.removeprefix('shared_head.')}"
    own = ("enorm.", "hnorm.", "eh_proj.")
    return f"mtp.{index}.{rest}" if rest.startswith(own) else f"mtp.{index}.block.{rest}"


# Writing ---------------------------------------------------------------------------------------------------


def save_model(model: AnyModel, folder: str | Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `config.json` and the weights into `folder`, which must exist; weights that lie there are replaced.

    Up to `shard_bytes` they are one file, `model.safetensors`; beyond, shards of at most that size (or of one tensor
    that is larger) and `model.safetensors.index.json`.
    """
    folder = Path(folder)
    disk, dtype = disk_state(model), str(next(model.parameters()).dtype).removeprefix("torch.")
    if isinstance(model, Vq):
        write_vq_config(model.config, folder, dtype)
    elif isinstance(model, Captioner):
        write_captioner_config(model.config, folder)
    elif isinstance(model, Classifier):
        write_classifier_config(model.config, folder)
    elif isinstance(model, Janus):
        write_janus_config(model.shape, folder, dtype)
    else:
        write_config(model.config, folder, dtype)
    for old in (_WHOLE, _INDEX, "model-?????-of-?????.safetensors"):
        for path in folder.glob(old):
            path.unlink()
    shards = _split(disk, shard_bytes)
    files = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [_WHOLE]
    for file, names in zip(files, shards, strict=True):
        save_file({n: disk[n].cpu().contiguous() for n in names}, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in disk.values())
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _split(disk: Mapping[str, Tensor], shard_bytes: int) -> list[list[str]]:
    """Names in order, cut into runs of at most `shard_bytes`."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in disk.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


# Reading ---------------------------------------------------------------------------------------------------


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """The decoder of a Hugging Face folder or a GGUF file on the CPU, its parameters in `dtype` whatever is stored.

    The router's selection bias stays in fp32. An MTP module that config.json announces and the files lack altogether
    (transformers drops it when it saves) is left out. Raises ConfigError when a file is missing or torn, a key is
    missing or unknown, or a shape does not fit.
    """
    if not is_gguf(folder) and is_janus(folder):
        return load_janus(folder, dtype)
    if is_gguf(folder):
        from zifio.models.gguf import read_gguf  # its library is of use for nothing else

        (config, disk), fp8_block = read_gguf(folder), None
    else:
        config, disk, fp8_block = read_config(folder), read_tensors(folder), read_fp8_block(folder)
    if config.vocab_size is None:
        raise ConfigError(f"{folder}/config.json: vocab_size is missing; wanted the number of embedding rows.")
    mtp = f"model.layers.{config.num_hidden_layers}."
    if config.n_mtp and not any(name.startswith(mtp) for name in disk):
        say(f"{folder}: config.json announces a multi-token prediction module, the files hold none; going on without")
        config = config.model_copy(update={"num_nextn_predict_layers": 0})
    model = _allocate(partial(Decoder, config), dtype)
    load_state(model, disk, str(folder), fp8_block)
    return model


def load_janus(folder: str | Path, dtype: torch.dtype = torch.float32) -> Janus:
    """A model that reads and draws, of a Hugging Face folder; raises what `load_model` raises.

    A head that differs from the embedding is its own, also where config.json lets transformers tie them: it does where
    nothing is said, and DeepSeek's are apart.
    """
    shape, disk = read_janus_config(folder), read_tensors(folder)
    head, embedding = "lm_head.weight", "model.language_model.embed_tokens.weight"
    ties = shape.text_config.tie_word_embeddings and head in disk and embedding in disk
    if ties and not torch.equal(disk[head], disk[embedding]):
        text = shape.text_config.model_copy(update={"tie_word_embeddings": False})
        shape = shape.model_copy(update={"text_config": text})
    if shape.text_config.vocab_size is None:
        raise ConfigError(
            f"{folder}/config.json: text_config.vocab_size is missing; wanted the number of embedding rows."
        )
    model = _allocate(partial(Janus, shape), dtype)
    load_state(model, disk, str(folder))
    return model


def load_vq(folder: str | Path, dtype: torch.dtype = torch.float32) -> Vq:
    """A tokenizer of pictures that stands by itself; raises what `load_model` raises."""
    return _whole(partial(Vq, read_vq_config(folder)), folder, dtype)


def load_classifier(folder: str | Path) -> Classifier:
    """A classifier of pictures; raises what `load_model` raises."""
    return _whole(partial(Classifier, read_classifier_config(folder)), folder)


def load_captioner(folder: str | Path) -> Captioner:
    """An encoder of pictures that stands by itself; raises what `load_model` raises."""
    return _whole(partial(Captioner, read_captioner_config(folder)), folder)


_Model = TypeVar("_Model", Decoder, Janus, Vq, Classifier, Captioner)


def _whole(make: Callable[[], _Model], folder: str | Path, dtype: torch.dtype = torch.float32) -> _Model:
    """What a folder holds under the names that it has here."""
    model = _allocate(make, dtype)
    load_state(model, read_tensors(folder), str(folder))
    return model


def _allocate(make: Callable[[], _Model], dtype: torch.dtype) -> _Model:
    """A model with memory for its weights and no values in them: initialising would take longer than loading."""
    with torch.device("meta"):
        model = make()
    stored = model.state_dict().keys()
    made: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay tied
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter not in made:
                made[parameter] = nn.Parameter(torch.empty_like(parameter, device="cpu", dtype=dtype))
            setattr(module, key, made[parameter])
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                assert f"{name}.{key}" in stored, f"{name}.{key} is computed, not loaded: compute it on the CPU"
                setattr(module, key, torch.empty_like(buffer, device="cpu"))
    return model


def weight_files(folder: str | Path) -> list[Path]:
    """`model.safetensors`, or else the shards that `model.safetensors.index.json` lists, in order of name.

    Raises ConfigError when neither is there, or the index cannot be read or names a file that is missing.
    """
    folder = Path(folder)
    index = folder / _INDEX
    if (folder / _WHOLE).exists() or not index.exists():
        names = [_WHOLE]
    else:
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{index}: torn, or no index of shards. Write or download it again.") from None
    for name in names:
        if not (folder / name).exists():
            raise ConfigError(f"{folder / name}: no such file. A checkpoint needs its weights beside config.json.")
    return [folder / name for name in names]


class _Shards(Mapping[str, Tensor]):
    """Tensors of several files by name, file by file; each is read when it is asked for, and not kept.

    Only the file of the last tensor stays open, since the pages of an open one that were read count as our memory.
    """

    def __init__(self, files: list[Path]) -> None:
        self._file_of: dict[str, Path] = {}
        for path in files:
            self._open(path)
            self._file_of |= dict.fromkeys(self._tensors.keys(), path)

    def _open(self, path: Path) -> None:
        try:
            self._path, self._tensors = path, safe_open(path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise ConfigError(f"{path}: torn or not safetensors ({error}). Write or download it again.") from None

    def __getitem__(self, name: str) -> Tensor:
        if self._path != self._file_of[name]:
            self._open(self._file_of[name])
        return self._tensors.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def read_tensors(folder: str | Path) -> Mapping[str, Tensor]:
    """All tensors of a folder's `weight_files` by their names on disk, read one at a time as they are asked for.

    Raises ConfigError when a file is missing or torn.
    """
    return _Shards(weight_files(folder))


@torch.no_grad()
def load_state(
    model: AnyModel, disk: Mapping[str, Tensor], where: str, fp8_block: tuple[int, int] | None = None
) -> None:
    """Copy tensors under Hugging Face's names into the model, in its precision; every key must fit exactly.

    With `fp8_block` (rows, columns) the weights that have a `_scale_inv` are dequantised. `where` opens every message.
    Raises ConfigError for a key that is missing or unknown (before anything is copied), or for a shape or type that
    does not fit (some tensors are copied by then).
    """
    expected = disk_state(model)
    is_tied = not isinstance(model, OfPictures) and model.config.tie_word_embeddings
    if missing := [name for name in expected if name not in disk]:
        raise ConfigError(f"{where}: {missing[0]} is missing ({len(missing)} tensors in all).")
    also = {"lm_head.weight"} if is_tied else set()
    if fp8_block:
        also |= {f"{name}_scale_inv" for name in expected if name.endswith(".weight")}
    others = sorted(disk.keys() - expected.keys() - also)
    if unknown := [name for name in others if not _is_known(model, name)]:
        raise ConfigError(
            f"{where}: {unknown[0]} is not part of this architecture, {_architecture(model)} "
            f"({len(unknown)} tensors in all)."
        )
    for name in (name for name in disk if name in expected):  # in the order of the files
        tensor, target = disk[name], expected[name]
        if tensor.shape != target.shape:
            raise ConfigError(
                f"{where}: {name} has shape {list(tensor.shape)}, config.json asks for {list(target.shape)}."
            )
        scale = disk.get(f"{name}_scale_inv") if fp8_block else None
        if tensor.dtype not in _PLAIN and not (tensor.dtype == torch.float8_e4m3fn and scale is not None):
            raise ConfigError(
                f"{where}: {name} is stored as {str(tensor.dtype).removeprefix('torch.')}, which is not supported; "
                "supported: fp32, bf16, fp16, fp64, and float8_e4m3fn with its _scale_inv and a quantization_config."
            )
        if scale is not None and fp8_block is not None:
            tensor = dequantise(tensor, scale, fp8_block, f"{where}: {name}")
        target.copy_(tensor)


def _architecture(model: AnyModel) -> str:
    if isinstance(model, Vq):
        return "JanusVQVAE"
    if isinstance(model, Classifier | Captioner):
        return model.config.model_type
    return ARCHITECTURE if isinstance(model, Janus) else model.config.architecture


_PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def dequantise(weight: Tensor, scale_inv: Tensor, block: tuple[int, int], where: str) -> Tensor:
    """`weight` [X, Y] in FP8 times the number of its block, in fp32; blocks at the right and lower edge may be cut.

    `scale_inv` is [ceil(X / block[0]), ceil(Y / block[1])] (DeepSeek-V3, section 3.3.2). Raises ConfigError when it
    is not.
    """
    rows, columns = weight.shape
    wanted = [-(-rows // block[0]), -(-columns // block[1])]
    if list(scale_inv.shape) != wanted:
        raise ConfigError(f"{where}_scale_inv has shape {list(scale_inv.shape)}, blocks of {block} ask for {wanted}.")
    whole = scale_inv.float().repeat_interleave(block[0], dim=0).repeat_interleave(block[1], dim=1)
    return weight.float() * whole[:rows, :columns]
