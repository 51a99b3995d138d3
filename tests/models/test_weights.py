"""Weights on disk: exact both ways, and every fault named with its file or key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import deepseek, llama, logits_of, made, tokens_like
from torch import Tensor

from zifio.config import ConfigError
from zifio.models.weights import load_model, save_model, to_disk_names

EXPERT = "model.layers.1.mlp.experts.7"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny DeepSeek with an MTP module."""
    save_model(made(deepseek(num_nextn_predict_layers=1, q_lora_rank=10)), tmp_path)
    return tmp_path


def change(folder: Path, **changes: Tensor | None) -> None:
    """Rewrite the weights with tensors replaced, added, or (None) taken out; `__` stands for a dot."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    save_file(tensors, folder / "model.safetensors")


def refusal(folder: Path) -> str:
    """What loading says."""
    with pytest.raises(ConfigError) as error:
        load_model(folder)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_names_on_disk_are_those_of_the_published_checkpoints(folder: Path):
    names = set(load_file(folder / "model.safetensors"))
    layer = "model.layers.1"
    attention = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
    expected = {f"{layer}.self_attn.{part}.weight" for part in attention}
    expected |= {f"{layer}.mlp.experts.{e}.{p}_proj.weight" for e in range(8) for p in ("gate", "up", "down")}
    expected |= {f"{layer}.mlp.shared_experts.{p}_proj.weight" for p in ("gate", "up", "down")}
    expected |= {f"{layer}.mlp.gate.weight", f"{layer}.mlp.gate.e_score_correction_bias"}
    expected |= {f"{layer}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")}
    assert {name for name in names if name.startswith(layer)} == expected
    mtp = {name for name in names if name.startswith("model.layers.2.")}
    own = {f"model.layers.2.{p}.weight" for p in ("enorm", "hnorm", "eh_proj", "shared_head.norm")}
    assert mtp == own | {name.replace("layers.1", "layers.2") for name in expected}
    rest = {f"model.layers.0.mlp.{p}_proj.weight" for p in ("gate", "up", "down")}
    rest |= {name.replace("layers.1", "layers.0") for name in expected if "norm" in name or "self_attn" in name}
    assert names - mtp - expected == rest | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "lm_head.weight", f"{EXPERT}.up_proj.weight", "model.layers.2.eh_proj.weight",
     "model.layers.1.mlp.gate.e_score_correction_bias", "model.layers.2.shared_head.norm.weight"],
)  # fmt: skip
def test_a_missing_key_is_named(folder: Path, name: str):
    change(folder, **{name: None})
    message = refusal(folder)
    assert name in message and "missing" in message


def test_a_missing_last_expert_is_named(folder: Path):
    change(folder, **{f"{EXPERT}.{part}_proj.weight": None for part in ("gate", "up", "down")})
    message = refusal(folder)
    assert "model.layers.1.mlp.experts" in message and "7" in message


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate.weight", "visual.patch.weight"]
)
def test_an_unknown_key_is_named(folder: Path, name: str):
    change(folder, **{name: torch.zeros(3, 3)})
    message = refusal(folder)
    assert name.removeprefix("model.") in message and "not part of this architecture" in message


@pytest.mark.parametrize(
    "name, shape",
    [("model.norm.weight", (25,)), ("lm_head.weight", (39, 24)), ("model.layers.1.mlp.gate.weight", (24, 8))],
)
def test_a_wrong_shape_is_named_with_both_shapes(folder: Path, name: str, shape: tuple[int, ...]):
    right = list(load_file(folder / "model.safetensors")[name].shape)
    change(folder, **{name: torch.zeros(shape)})
    message = refusal(folder)
    assert name in message and str(list(shape)) in message and str(right) in message


def test_an_expert_of_another_shape_is_named(folder: Path):
    change(folder, **{f"{EXPERT}.down_proj.weight": torch.zeros(24, 15)})
    assert "model.layers.1.mlp.experts" in refusal(folder)


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_torn_file_is_named(folder: Path, left: int):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    message = refusal(folder)
    assert str(path) in message and "torn" in message


def test_missing_files_are_named(folder: Path):
    (folder / "model.safetensors").unlink()
    assert f"{folder}/model.safetensors: no such file" in refusal(folder)
    (folder / "config.json").unlink()
    assert f"{folder}/config.json: no such file" in refusal(folder)


def test_a_shape_without_vocabulary_is_named(folder: Path):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"vocab_size": None}))
    assert "vocab_size" in refusal(folder)


@pytest.mark.parametrize("family", ["deepseek", "llama"])
def test_tied_embeddings_are_stored_once_and_stay_tied(family: str, tmp_path: Path):
    make = {"deepseek": deepseek, "llama": llama}[family]
    model = made(make(tie_word_embeddings=True))
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors and "model.embed_tokens.weight" in tensors
    again = load_model(tmp_path)
    assert again.lm_head.weight is again.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, model.embed_tokens.weight)
    change(tmp_path, **{"lm_head.weight": torch.zeros(40, 24)})  # published tied models repeat it now and then
    assert torch.equal(load_model(tmp_path).lm_head.weight, model.embed_tokens.weight)


def shard(folder: Path) -> Path:
    """Split the folder's weights over two files with an index; the index comes back."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    half = len(names) // 2
    parts = {"model-1.safetensors": names[:half], "model-2.safetensors": names[half:]}
    for file, mine in parts.items():
        save_file({name: tensors[name] for name in mine}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, mine in parts.items() for name in mine}}))
    return index


def test_shards_are_joined(folder: Path):
    whole = load_model(folder).state_dict()
    shard(folder)
    sharded = load_model(folder).state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_shards_that_transformers_wrote_open_here(folder: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    save_model(made(deepseek()), folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    out = tmp_path / "theirs"
    theirs.save_pretrained(out, max_shard_size="20KB")
    assert len(list(out.glob("*.safetensors"))) > 1
    whole, sharded = load_model(folder).state_dict(), load_model(out).state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


@pytest.mark.parametrize("shard_bytes", [1, 3000, 20_000])
def test_shards_that_we_write_open_here_and_in_transformers(shard_bytes: int, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    model = made(deepseek(tie_word_embeddings=True))
    save_model(model, tmp_path, shard_bytes)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 1 and files == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    parts = {file: load_file(tmp_path / file) for file in files}
    for tensors in parts.values():
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= shard_bytes
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file for file, tensors in parts.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(t.nbytes for tensors in parts.values() for t in tensors.values())
    again = load_model(tmp_path)
    assert again.lm_head.weight is again.embed_tokens.weight
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    tokens = tokens_like(2, 20)
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits
        torch.testing.assert_close(logits_of(again, tokens), theirs, atol=1e-5, rtol=0)


def test_saving_replaces_what_lies_there(tmp_path: Path):
    first, second = made(llama(), seed=1), made(llama(), seed=2)
    for shard_bytes in (10**9, 5000, 9000, 10**9):
        save_model(first, tmp_path, shard_bytes)
        save_model(second, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
        assert torch.equal(load_model(tmp_path).lm_head.weight, second.lm_head.weight)
        save_model(first, tmp_path, shard_bytes)
        assert torch.equal(load_model(tmp_path).lm_head.weight, first.lm_head.weight)


def test_weights_that_are_no_numbers_of_ours_are_refused(folder: Path):
    change(folder, model__norm__weight=torch.ones(24, dtype=torch.int8))
    message = refusal(folder)
    assert "model.norm.weight is stored as int8" in message and "bf16" in message


def test_a_missing_or_torn_shard_or_index_is_named(folder: Path):
    index = shard(folder)
    second = folder / "model-2.safetensors"
    content = second.read_bytes()
    second.write_bytes(content[:-7])
    assert str(second) in refusal(folder)
    second.unlink()
    assert f"{second}: no such file" in refusal(folder)
    second.write_bytes(content)
    for torn in ("", '{"weight_map": {"a"', "{}", "[]"):
        index.write_text(torn)
        assert str(index) in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_read_into_fp32(folder: Path, dtype: torch.dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    model = load_model(folder)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.lm_head.weight.data, tensors["lm_head.weight"].float())


def test_saving_leaves_the_model_alone_and_is_deterministic(folder: Path, tmp_path: Path):
    model = load_model(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (tmp_path / "again").mkdir()
    save_model(model, tmp_path / "again")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    disk = to_disk_names(model.config, model.state_dict())
    assert sum(t.numel() for t in disk.values()) == sum(t.numel() for t in model.state_dict().values())
