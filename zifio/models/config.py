"""Model shapes: which families there are, and their `config.json` both ways. The families: `models/families.py`.

This module never imports torch.

The alphabet of shapes, valid in the whole repository (a tensor's suffix spells its axes):

    B sequences or rows     T positions computed now   S positions attended to   N tokens, flattened
    V vocabulary            L layers                   D model width             F feed-forward width
    H query heads           J key/value heads          K width per head          R rotary width per head
    C latent rank of MLA    Q latent rank of queries   E routed experts          A experts active per token
    P prompts (RL)          G rollouts per prompt      M sequences in a packed batch
    Z pieces of sequences      U tokens of a piece     (linear attention)
    Z codes of a codebook      U channels, Y rows and X columns of a picture

Try it: `python -c "from zifio.models.config import read_config; print(read_config('MODEL'))"`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, PositiveFloat, PositiveInt

from zifio.config import Config, ConfigError, build
from zifio.models.families import (
    DeepseekV2Config,
    DeepseekV3Config,
    LinearRope,
    Llama3Rope,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Yarn,
)
from zifio.models.hybrids import DeepseekV32Config, HybridConfig, Qwen3NextConfig


class Lora(Config):
    """Adapters on frozen weights: LoRA (arXiv:2106.09685) and its kin; `models/lora.py` has the formulas."""

    rank: PositiveInt = 16
    """Rank of the change that every adapted weight can undergo."""
    alpha: PositiveFloat = 32.0
    """The change is multiplied by alpha / rank."""
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    """Ends of names of layers, such as q_proj; nothing means all, or beside routed experts those of the attention."""
    use_dora: bool = False
    """Learn the lengths of the weight's rows apart from their directions (DoRA, arXiv:2402.09353)."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, which suits high ranks (rsLoRA, arXiv:2312.03732)."""


AnyConfig = (
    DeepseekV3Config | LlamaConfig | Qwen2Config | Qwen3Config | Qwen3MoeConfig | DeepseekV2Config | Qwen3NextConfig
    | DeepseekV32Config | HybridConfig
)  # fmt: skip

ModelConfig = Annotated[AnyConfig, Field(discriminator="model_type")]
"""Any family, told apart by `model_type`."""

FAMILIES: dict[str, type[AnyConfig]] = {
    family.model_fields["model_type"].default: family for family in get_args(AnyConfig)
}
"""The families by their `model_type`."""

ROPES: dict[str, type[Config]] = {"yarn": Yarn, "llama3": Llama3Rope, "linear": LinearRope}

# Values that other programs write and that change nothing here when they are as listed; anything else in them would
# change the mathematics, so it is refused by name. A family's own such keys are its `fixed`.
_NEUTRAL: dict[str, Any] = {"mlp_bias": False, "attention_dropout": 0.0, "partial_rotary_factor": 1.0}
_ELSEWHERE = {
    "janus": " This one also reads pictures and draws: `models.janus_config` reads it.",
    "multi_modality": " Of DeepSeek's Janus, take the copy for transformers: deepseek-community/Janus-Pro-1B or -7B.",
}
_NEUTRAL_ROPE: dict[str, Any] = {"attention_factor": None, "truncate": True, "partial_rotary_factor": 1.0}


def read_config(folder: str | Path) -> AnyConfig:
    """The model shape in `folder/config.json`, whoever wrote it.

    Raises ConfigError when the file is absent or unreadable, names a family we do not have, or asks for
    mathematics we do not implement.
    """
    raw, path = read_json(folder)
    read_fp8_block(folder)
    return parsed(raw, path)


def read_json_of(model_type: str, folder: str | Path, what: str, kind: str) -> tuple[dict[str, Any], Path]:
    """`read_json` of the folder that a stage of this kind wrote. Raises ConfigError for that of something else."""
    raw, path = read_json(folder)
    if raw.get("model_type") != model_type:
        raise ConfigError(
            f"{path}: model_type: wanted {model_type!r}, {what}, came {raw.get('model_type')!r}. Name the folder "
            f"that a `{kind}` stage wrote."
        )
    return raw, path


def parsed(raw: dict[str, Any], path: Path) -> AnyConfig:
    """The same of what stands in a file; its quantization is not looked at."""
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        raise ConfigError(
            f"{path}: model_type = {raw.get('model_type')!r} is not supported; supported: {', '.join(FAMILIES)}."
            f"{_ELSEWHERE.get(str(raw.get('model_type')), '')}"
        )
    raw["num_labels"] = _n_labels(raw, family, path)
    for key, neutral in (_NEUTRAL | family.fixed).items():
        if key not in family.model_fields and raw.get(key) not in (neutral, None):
            raise ConfigError(f"{path}: {key} = {raw[key]!r} is not supported; wanted {neutral!r}.")
    if others := sorted(set(raw.get("layer_types") or ()) - {*family.mixers}):
        wanted = " or ".join(map(repr, family.mixers))
        raise ConfigError(f"{path}: layer_types has {others[0]!r}, which is not supported; wanted {wanted}.")
    raw = _flat_rope(raw, path, family)
    for alias, name in family.aliases.items():
        if alias in raw:
            raw.setdefault(name, raw[alias])
    nullable = {name for name, field in family.model_fields.items() if field.default is None}
    fields = family.model_fields.keys()
    given = {key: value for key, value in raw.items() if key in fields and (key in nullable or value is not None)}
    known = family.absent | given
    if isinstance(known.get("eos_token_id"), list):
        known["eos_token_id"] = known["eos_token_id"][0]
    return build(family, known, str(path))


def _n_labels(raw: dict[str, Any], family: type[AnyConfig], path: Path) -> int | None:
    """How many scores a token gets where the architecture has a head for that. Raises ConfigError for other heads."""
    named = raw.get("architectures") or [family.architecture]
    stem = family.architecture.removesuffix("ForCausalLM")
    if family.architecture in named:
        return None
    if not {f"{stem}ForTokenClassification", f"{stem}ForSequenceClassification"} & {*named}:
        raise ConfigError(
            f"{path}: architectures = {raw['architectures']!r} is not supported; of this family {family.architecture} "
            f"is: a causal language model; or {stem}ForTokenClassification or {stem}ForSequenceClassification: a "
            "reward model."
        )
    return raw.get("num_labels") or len(raw.get("id2label") or "ab")  # transformers writes the names, if not two


def read_fp8_block(folder: str | Path) -> tuple[int, int] | None:
    """Rows and columns that share one scale where the weights are stored in FP8 (DeepSeek-V3, section 3.3); else None.

    Raises ConfigError for any other quantization.
    """
    raw, path = read_json(folder)
    given = raw.get("quantization_config")
    if given is None:
        return None
    supported = "supported: none, and DeepSeek's fp8 (quant_method fp8, fmt e4m3, a weight_block_size)"
    if not isinstance(given, dict) or given.get("quant_method") != "fp8" or given.get("fmt", "e4m3") != "e4m3":
        method = given.get("quant_method") if isinstance(given, dict) else given
        raise ConfigError(
            f"{path}: quantization_config: quant_method = {method!r} is not supported; {supported}. "
            "Load the checkpoint that it was made from."
        )
    block = given.get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
        raise ConfigError(
            f"{path}: quantization_config: fp8 with weight_block_size = {block!r} is not supported; {supported}."
        )
    return block[0], block[1]


def write_config(config: AnyConfig, folder: str | Path, dtype: str = "float32") -> None:
    """Write `folder/config.json` so that transformers, vLLM and we open the folder; `dtype` is the weights'."""
    Path(folder, "config.json").write_text(json.dumps(written(config, dtype), indent=2) + "\n")


def written(config: AnyConfig, dtype: str) -> dict[str, Any]:
    """What `write_config` writes."""
    raw = config.model_dump(mode="json")
    architecture = config.architecture.removesuffix("ForCausalLM") + config.head
    raw |= {"architectures": [architecture], **config.fixed, **config.resolved, "torch_dtype": dtype}
    if config.num_labels is not None:
        raw["id2label"] = {str(label): f"LABEL_{label}" for label in range(config.num_labels)}
        raw["label2id"] = {name: int(label) for label, name in raw["id2label"].items()}
    if config.rope_scaling is not None:
        raw["rope_scaling"]["rope_type"] = config.rope_scaling.type  # newer readers want this name
    return raw


def read_json(folder: str | Path) -> tuple[dict[str, Any], Path]:
    """The object in `folder/config.json` and the file's path. Raises ConfigError when there is none."""
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file. A model is a folder with config.json and model.safetensors; "
            "train one (make quickstart) or give the folder of a Hugging Face checkpoint."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}). Download or write the checkpoint again.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: wanted a JSON object, came {raw!r}. Download or write the checkpoint again.")
    return raw, path


def _flat_rope(raw: dict[str, Any], path: Path, family: type[AnyConfig]) -> dict[str, Any]:
    """`rope_parameters` of newer files, and `rope_scaling` with either spelling of its type, as our two fields; and the
    share of a head that is rotated, where the family has that."""
    rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    raw = {**raw, "rope_theta": rope.pop("rope_theta", raw.get("rope_theta")), "rope_scaling": None}
    if nested := [key for key, value in rope.items() if isinstance(value, dict)]:
        raise ConfigError(f"{path}: rope of its own for {nested[0]!r} layers is not supported; wanted one for all.")
    if "partial_rotary_factor" in family.model_fields and "partial_rotary_factor" in rope:
        raw["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    for key, neutral in _NEUTRAL_ROPE.items():
        if rope.get(key) not in (None, neutral):
            raise ConfigError(f"{path}: rope {key} = {rope[key]!r} is not supported; leave it out.")
    if kind == "default":
        return raw
    if kind not in ROPES:
        raise ConfigError(f"{path}: rope type {kind!r} is not supported; supported: default, {', '.join(ROPES)}.")
    # What a file leaves out is not our default, but what transformers takes then, if anything.
    longest = raw.get("max_position_embeddings") or 4096
    original = raw.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or longest
    absent = {"factor": longest / original, "mscale": 0.0, "mscale_all_dim": 0.0} if kind == "yarn" else {}
    rope |= {"type": kind, "original_max_position_embeddings": original}
    known = ROPES[kind].model_fields
    given = absent | {key: value for key, value in rope.items() if key in known and value is not None}
    if missing := [key for key in known if key not in given and not key.startswith("beta_")]:
        raise ConfigError(f"{path}: rope {missing[0]} is missing; rope type {kind!r} needs it.")
    raw["rope_scaling"] = given
    return raw
