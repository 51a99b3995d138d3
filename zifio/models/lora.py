"""LoRA (arXiv:2106.09685) and DoRA (arXiv:2402.09353): train a low-rank change of frozen weights, in PEFT's format.

    LoRA    W' = W + s B A                        A [rank, in], B [out, rank], s = alpha / rank
    rsLoRA  the same with s = alpha / sqrt(rank)  (arXiv:2312.03732)
    DoRA    W' = m (W + s B A) / |W + s B A|      one length m per row of the weight

B starts at zero and m at the lengths of W, so an adapted model begins as its base. Three ways to look at one model:
as it trains (the base frozen, adapters beside it), `folded` (a plain decoder that samples and saves at full speed) and
`bare` (the base alone, the reference of a KL penalty). The last two give everything back bit for bit.

Traps: PEFT's rows are the weight's first axis, and its norm takes no part in the gradient (DoRA, section 4.3). Stacked
experts are no linear layers and take no adapter; routers, norms, embeddings and the head stay as they are. In a model
with routed experts PEFT takes gate_proj, up_proj and down_proj for the experts', wherever they stand, and has no name
for the shared experts'. So by default such a model is adapted in its attention only, and PEFT opens what we write.

Try it: `zifio sft recipes/quickstart.toml --stage cold-start steps=20 lora.rank=4 --out runs/try`
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zifio.config import ConfigError, suggestion
from zifio.kernels import operators as kernels
from zifio.models.config import Lora
from zifio.models.decoder import Decoder
from zifio.models.weights import from_disk_names, to_disk_names
from zifio.seed import stream_seed

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "lora_magnitude_vector": "lora_magnitude_vector"}
"""Our parameters' names and PEFT's."""


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter; `weight` is the matrix that both amount to."""

    def __init__(self, base: nn.Linear, config: Lora, generator: torch.Generator | None = None) -> None:
        """A uniform within 1 / sqrt(in) (PEFT's Kaiming), B zero, m the lengths of the base's rows."""
        super().__init__()
        self.base, self.config = base, config
        self.scale = config.alpha / (math.sqrt(config.rank) if config.use_rslora else config.rank)
        bound, weight = 1 / math.sqrt(base.in_features), base.weight.detach()
        first = torch.empty(config.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(first.to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, device=weight.device))
        self.lora_magnitude_vector: nn.Parameter | None
        length = nn.Parameter(weight.norm(dim=1)) if config.use_dora else None
        self.register_parameter("lora_magnitude_vector", length)

    def forward(self, x: Tensor) -> Tensor:
        """The adapted product, [..., out]; the large matrix is never formed for it (DoRA needs its lengths, though)."""
        out = self.base(x)
        low = kernels.linear(kernels.linear(x, self.lora_A), self.lora_B) * self.scale
        if self.lora_magnitude_vector is None:
            return out + low
        factor = self._factor(self._sum())
        if self.base.bias is None:
            return (out + low) * factor
        return (out - self.base.bias + low) * factor + self.base.bias

    @property
    def weight(self) -> Tensor:
        """W' [out, in], with gradients to the adapter; for code that wants the matrix itself, as absorbed MLA does."""
        total = self._sum()
        return total if self.lora_magnitude_vector is None else self._factor(total)[:, None] * total

    def _sum(self) -> Tensor:
        return self.base.weight + self.scale * (self.lora_B @ self.lora_A)

    def _factor(self, total: Tensor) -> Tensor:
        """m / |W + s B A| per row, the lengths taken as constants."""
        assert self.lora_magnitude_vector is not None
        return self.lora_magnitude_vector / total.detach().norm(dim=1)


def apply(model: Decoder, config: Lora, seed: int) -> None:
    """Freeze the model and put adapters round the layers that `config.targets` names, drawn from `seed`.

    Raises ConfigError when a target matches no layer.
    """
    _wrap(model, config, _chosen(model, config), seed)


def adapters(model: Decoder) -> dict[str, LoraLinear]:
    """The adapted layers by name; empty for a plain decoder."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


@contextmanager
def bare(model: Decoder) -> Iterator[Decoder]:
    """The model without its adapters, for as long as the context lasts: the plain decoder that training began with."""
    wrapped = adapters(model)
    for name, adapter in wrapped.items():
        model.set_submodule(name, adapter.base)
    try:
        yield model
    finally:
        for name, adapter in wrapped.items():
            model.set_submodule(name, adapter)
        if wrapped:
            model.unpack()  # what was packed without adapters must not be taken with them


@contextmanager
def folded(model: Decoder) -> Iterator[Decoder]:
    """The model with its adapters in its weights, for as long as the context lasts: a plain decoder at full speed.

    The adapted weights are kept beside and put back bit for bit. A plain decoder comes as it is.
    """
    wrapped = adapters(model)
    kept = {name: adapter.base.weight.detach().clone() for name, adapter in wrapped.items()}
    try:
        _fold(wrapped)
        with bare(model):
            yield model
    finally:
        with torch.no_grad():
            for name, adapter in wrapped.items():
                adapter.base.weight.copy_(kept[name])


def merge(model: Decoder) -> None:
    """Fold the adapters into the weights for good; what is left is a plain decoder whose weights all train."""
    wrapped = adapters(model)
    _fold(wrapped)
    for name, adapter in wrapped.items():
        model.set_submodule(name, adapter.base)
    model.requires_grad_(True)


def base_digest(model: Decoder) -> str:
    """Twelve hex digits naming the weights and buffers under the adapters."""
    digest = hashlib.sha256()
    with bare(model):
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def save_adapter(model: Decoder, folder: str | Path) -> None:
    """Write the adapters into `folder`, which must exist, as PEFT writes them."""
    wrapped = adapters(model)
    config = next(iter(wrapped.values())).config
    state = {f"{name}.{_PARTS[key]}": p for name, one in wrapped.items() for key, p in _own(one).items()}
    disk = to_disk_names(model.config, state)
    tensors = {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in disk.items()}
    save_file(tensors, Path(folder) / TENSORS, metadata={"format": "pt"})
    raw = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": None,
        "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "target_modules": config.targets or sorted({".".join(name.split(".")[-2:]) for name in wrapped}),
        "use_dora": config.use_dora, "use_rslora": config.use_rslora, "init_lora_weights": True,
    }  # fmt: skip
    (Path(folder) / CONFIG).write_text(json.dumps(raw, indent=2) + "\n")


def load_adapter(model: Decoder, folder: str | Path) -> None:
    """Put the adapters of a folder, ours or PEFT's, round the layers of a plain decoder.

    Which layers they are, the tensors themselves say. Raises ConfigError when a file is missing or torn, when it asks
    for mathematics that we do not have, or when a tensor does not fit the model.
    """
    raw = _read_config(Path(folder) / CONFIG)
    state = _read_state(model, folder)
    names = sorted({name.removesuffix(f".{part}") for name in state for part in _PARTS.values() if name.endswith(part)})
    layers = _layers(model)
    if not names:
        raise ConfigError(f"{Path(folder) / TENSORS}: wanted LoRA tensors, came none. Write or download it again.")
    if unknown := [name for name in names if name not in layers]:
        raise ConfigError(
            f"{folder}: {unknown[0]} is no layer of this model that an adapter fits ({len(unknown)} in all). "
            "Give the model that the adapter was made for."
        )
    config = Lora(
        rank=raw["r"], alpha=raw["lora_alpha"], targets=names, use_dora=raw.get("use_dora") or False,
        use_rslora=raw.get("use_rslora") or False,
    )  # fmt: skip
    _wrap(model, config, names, 0)
    _fill(model, state, str(folder))


def restore_adapter(model: Decoder, folder: str | Path) -> None:
    """Copy the tensors of a folder into the adapters that the model has. Raises ConfigError where they do not fit."""
    _fill(model, _read_state(model, folder), str(folder))


def _layers(model: Decoder) -> dict[str, nn.Linear]:
    """The layers that can be adapted: linear ones inside the main model's blocks."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith("layers.") and isinstance(module, nn.Linear)
    }


def _chosen(model: Decoder, config: Lora) -> list[str]:
    """Names of the layers that some target names, by itself or by its end after a dot, as PEFT matches."""
    layers = _layers(model)
    if config.targets is None:
        mixers = (".self_attn.", ".linear_attn.")
        return [name for name in layers if any(part in name for part in mixers) or not model.routers()]
    for target in config.targets:
        if not any(_matches(name, target) for name in layers):
            known = sorted({name.rpartition(".")[2] for name in layers})
            hint = suggestion(target, known)
            raise ConfigError(
                f"lora.targets: wanted ends of names of linear layers, came {target!r}, which matches none. "
                f"{hint + ' ' if hint else ''}Available: {', '.join(known)}; routed experts are stacked and take none."
            )
    return [name for name in layers if any(_matches(name, target) for target in config.targets)]


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _wrap(model: Decoder, config: Lora, names: list[str], seed: int) -> None:
    assert not adapters(model), "one adapter at a time"
    generator = torch.Generator().manual_seed(stream_seed(seed, "models/lora"))
    model.requires_grad_(False)
    model.unpack()
    layers = _layers(model)
    for name in names:
        model.set_submodule(name, LoraLinear(layers[name], config, generator))


def _own(adapter: LoraLinear) -> dict[str, Tensor]:
    """The adapter's parameters without the base's."""
    return dict(adapter.named_parameters(recurse=False))


@torch.no_grad()
def _fold(wrapped: dict[str, LoraLinear]) -> None:
    for adapter in wrapped.values():
        adapter.base.weight.copy_(adapter.weight)


# What an adapter's file may say of how it was made, without a change in what it computes. Everything else that we do
# not read must be off.
_HISTORY = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size",
    "revision", "target_modules", "task_type", "r", "lora_alpha", "use_dora", "use_rslora",
}  # fmt: skip
_SAME_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin an adapter that leave the base's weights alone."""


def _read_config(path: Path) -> dict[str, Any]:
    """PEFT's table. Raises ConfigError when it is missing, torn, or asks for more than LoRA, rsLoRA and DoRA."""
    try:
        raw = json.loads(path.read_text())
        rank, alpha = raw["r"], raw["lora_alpha"]
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Wanted a folder with {CONFIG} and {TENSORS}.") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: torn, or no LoRA adapter. Write or download it again.") from None
    wrong = {key: value for key, value in raw.items() if key not in _HISTORY and value not in (None, False, {}, [])}
    if wrong.get("bias") == "none":
        del wrong["bias"]
    if raw.get("init_lora_weights", True) in _SAME_BASE:
        wrong.pop("init_lora_weights", None)
    if raw.get("peft_type", "LORA") != "LORA":
        wrong["peft_type"] = raw["peft_type"]
    if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float) and alpha > 0):
        wrong |= {"r": rank, "lora_alpha": alpha}
    for key, value in wrong.items():
        raise ConfigError(
            f"{path}: {key} = {value!r} is not supported; wanted plain LoRA, rsLoRA or DoRA. Merge it in PEFT first."
        )
    return raw


def _read_state(model: Decoder, folder: str | Path) -> dict[str, Tensor]:
    """The file's tensors under our layers' names with PEFT's ends."""
    path = Path(folder) / TENSORS
    try:
        disk = load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Wanted the adapter's weights beside {CONFIG}.") from None
    except SafetensorError as error:
        raise ConfigError(f"{path}: torn or not safetensors ({error}). Write or download it again.") from None
    state = from_disk_names(model.config, {name.removeprefix(_PREFIX): tensor for name, tensor in disk.items()})
    if len(state) < len(disk):  # names beyond the last layer mean nothing to a model without them
        raise ConfigError(
            f"{path}: {len(disk) - len(state)} of its tensors are for layers that this model does not have. "
            "Give the model that the adapter was made for."
        )
    return state


@torch.no_grad()
def _fill(model: Decoder, state: dict[str, Tensor], where: str) -> None:
    """Copy tensors into the adapters; every one must fit exactly."""
    own = {f"{name}.{_PARTS[key]}": p for name, one in adapters(model).items() for key, p in _own(one).items()}
    if missing := [name for name in own if name not in state]:
        raise ConfigError(f"{where}: {missing[0]} is missing ({len(missing)} tensors in all).")
    if unknown := sorted(state.keys() - own.keys()):
        raise ConfigError(f"{where}: {unknown[0]} is no part of this adapter ({len(unknown)} tensors in all).")
    for name, parameter in own.items():
        if state[name].shape != parameter.shape:
            raise ConfigError(f"{where}: {name}: wanted shape {list(parameter.shape)}, came {list(state[name].shape)}.")
        parameter.copy_(state[name])
