"""Every family against a checkpoint that transformers made: logits, greedy continuation, files both ways, FP8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import EVERY_FAMILY, deepseek, logits_of, made, tokens_like
from torch import Tensor

from zifio.config import ConfigError, Sampling
from zifio.engine.engine import Engine
from zifio.models.config import read_config
from zifio.models.weights import dequantise, load_model, save_model

transformers = pytest.importorskip("transformers")

BASE: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 128, "initializer_range": 0.15, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip
GQA = {"num_key_value_heads": 2}
MLA = {
    "q_lora_rank": None, "kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 10,
    "n_routed_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 12, "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}  # fmt: skip
GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "head_dim": 10}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500000.0,
}  # fmt: skip
WHOLE_YARN = YARN | {"mscale": 0.707, "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1}

THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-gqa": ("llama", {**GQA, "tie_word_embeddings": True, "head_dim": 10}),
    "llama-biased": ("llama", {**GQA, "attention_bias": True}),
    "llama-3.1": ("llama", {**GQA, "rope_parameters": LLAMA3}),
    "llama-linear": ("llama", {**GQA, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}}),
    "qwen2": ("qwen2", {**GQA}),
    "qwen2-tied-yarn": ("qwen2", {**GQA, "tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3": ("qwen3", {**GQA, "head_dim": 12}),
    "qwen3-tied": ("qwen3", {**GQA, "head_dim": 12, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen3-biased": ("qwen3", {**GQA, "head_dim": 12, "attention_bias": True}),
    "qwen3-moe": ("qwen3_moe", {**GQA, **EXPERTS, "norm_topk_prob": True}),
    "qwen3-moe-plain": ("qwen3_moe", {**GQA, **EXPERTS, "norm_topk_prob": False}),
    "qwen3-moe-mixed": ("qwen3_moe", {**GQA, **EXPERTS, "decoder_sparse_step": 2, "num_hidden_layers": 4}),
    "qwen3-moe-dense-first": ("qwen3_moe", {**GQA, **EXPERTS, "mlp_only_layers": [0, 2]}),
    "v2-lite": ("deepseek_v2", {**MLA, "rope_parameters": WHOLE_YARN}),
    "v2-lite-norm-topk": ("deepseek_v2", {**MLA, "norm_topk_prob": True}),
    "v2": ("deepseek_v2", {**MLA, **GROUPS, "q_lora_rank": 14}),
    "v2-one-a-group": ("deepseek_v2", {**MLA, **GROUPS, "n_group": 16, "topk_group": 5}),
    "v3": ("deepseek_v3", {**MLA, "q_lora_rank": 14, "n_group": 4, "topk_group": 2, "rope_parameters": WHOLE_YARN}),
    "v3-full-query": ("deepseek_v3", {**MLA, "n_group": 1, "topk_group": 1, "norm_topk_prob": False}),
}


@torch.no_grad()
def their_model(name: str) -> Any:
    """A model of transformers' with random weights, norms, biases and selection biases."""
    kind, changes = THEIRS[name]
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **BASE | changes))
    generator = torch.Generator().manual_seed(1)
    for key, tensor in sorted(model.state_dict().items()):
        if "norm" in key:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif "bias" in key:
            tensor.normal_(0.0, 0.5, generator=generator)
        else:
            tensor.normal_(0.0, 0.15, generator=generator)
    return model.eval()


@pytest.fixture(params=THEIRS)
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    """A model of transformers' and the folder that it was saved to."""
    model = their_model(request.param)
    model.save_pretrained(tmp_path / "theirs")
    return model, tmp_path / "theirs"


def test_their_checkpoint_opens_here_and_goes_back(theirs: tuple[Any, Path], tmp_path: Path):
    model, folder = theirs
    tokens = tokens_like(2, 60)
    with torch.no_grad():
        expected = model(tokens).logits
        ours = load_model(folder)
        torch.testing.assert_close(logits_of(ours, tokens), expected, atol=1e-5, rtol=0)
        (tmp_path / "ours").mkdir()
        save_model(ours, tmp_path / "ours")
        back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
        assert torch.equal(back(tokens).logits, expected)
        again = load_model(tmp_path / "ours")
    assert again.config == read_config(tmp_path / "ours")
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    on_disk = [load_file(place / "model.safetensors") for place in (folder, tmp_path / "ours")]
    assert on_disk[0].keys() == on_disk[1].keys()
    assert all(torch.equal(tensor, on_disk[1][name]) for name, tensor in on_disk[0].items())


def test_greedy_continuation_equals_theirs(theirs: tuple[Any, Path]):
    model, folder = theirs
    prompts = [[3, 17, 5, 21, 30], [9, 1]]
    completions = Engine(load_model(folder), eos_id=-1).generate(
        prompts, [[0], [0]], Sampling(temperature=0.0, max_new_tokens=16)
    )
    for prompt, (completion,) in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
        assert completion.tokens == out[0, len(prompt) :].tolist()


def test_v2_ignores_norm_topk_prob_as_transformers_does():
    """The oracle's models differ in nothing else, so this is what the two `v2-lite` cases above rely on."""
    plain, normed = their_model("v2-lite-norm-topk"), their_model("v2-lite-norm-topk")
    plain.config.norm_topk_prob = False
    tokens = tokens_like(1, 20)
    with torch.no_grad():
        assert torch.equal(plain(tokens).logits, normed(tokens).logits)


def test_an_announced_mtp_module_that_is_not_there_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """transformers writes num_nextn_predict_layers = 1 by default and no such module."""
    their_model("v3").save_pretrained(tmp_path)
    assert read_config(tmp_path).n_mtp == 1
    model = load_model(tmp_path)
    assert model.config.n_mtp == 0 and len(model.mtp) == 0
    assert "multi-token prediction" in "".join(capsys.readouterr())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_is_loaded_and_saved_in_the_precision_that_is_asked_for(dtype: torch.dtype, tmp_path: Path):
    ours = made(deepseek())
    save_model(ours, tmp_path)
    half = load_model(tmp_path, dtype)
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, ours.get_parameter(name).to(dtype)), name
    for router, whole in zip(half.routers(), ours.routers(), strict=True):
        assert torch.equal(router.e_score_correction_bias, whole.e_score_correction_bias)
    assert torch.equal(half.frequencies_r, ours.frequencies_r) and half.frequencies_r.dtype == torch.float32
    (tmp_path / "half").mkdir()
    save_model(half, tmp_path / "half")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "half").dtype == dtype
    again = load_model(tmp_path / "half", dtype).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in half.state_dict().items())


def test_loading_leaves_torch_as_it_was_and_initialises_nothing(tmp_path: Path):
    save_model(made(deepseek(num_nextn_predict_layers=1)), tmp_path)
    before = torch.get_rng_state()
    model = load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.zeros(1).device.type == "cpu"
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


# FP8 -------------------------------------------------------------------------------------------------------

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}


def quantise(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """(FP8 weight, scale_inv per block, what they stand for) by loops, as plainly as can be."""
    rows, columns = weight.shape
    scale = torch.zeros(-(-rows // block[0]), -(-columns // block[1]))
    stored, meant = torch.zeros_like(weight, dtype=torch.float8_e4m3fn), torch.zeros_like(weight)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scale[i, j] = weight[at].abs().max() / 448
            stored[at] = (weight[at] / scale[i, j]).to(torch.float8_e4m3fn)
            meant[at] = stored[at].float() * scale[i, j]
    return stored, scale, meant


def fp8_folder(folder: Path, block: tuple[int, int], q_lora_rank: int = 10) -> Path:
    """DeepSeek-V3 with MTP as published: projections in FP8; `meant/` beside it holds what they stand for in fp32."""
    save_model(made(deepseek(num_nextn_predict_layers=1, q_lora_rank=q_lora_rank)), folder)
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for name, weight in list(tensors.items()):
        if name.endswith("proj.weight") or name.endswith("kv_a_proj_with_mqa.weight"):
            tensors[name], tensors[f"{name}_scale_inv"], meant[name] = quantise(weight, block)
        else:
            meant[name] = weight
    (folder / "meant").mkdir()
    save_file(meant, folder / "meant" / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "meant" / "config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / "model.safetensors")
    raw["quantization_config"] = FP8 | {"weight_block_size": list(block)}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize("block", [(128, 128), (8, 8), (7, 5)], ids=str)
def test_fp8_weights_are_dequantised(block: tuple[int, int], tmp_path: Path):
    folder = fp8_folder(tmp_path, block)
    ours, meant = load_model(folder).state_dict(), load_model(folder / "meant").state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in meant.items())


def test_fp8_opens_as_in_transformers(tmp_path: Path):
    """In blocks of 4 by 4, which leave none cut: transformers 5.23 takes cut blocks for smaller whole ones."""
    folder = fp8_folder(tmp_path, (4, 4), q_lora_rank=12)
    settings = transformers.FineGrainedFP8Config(weight_block_size=(4, 4), dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.float32
    )
    tokens = tokens_like(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(load_model(folder), tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


def test_fp8_of_another_magnitude_in_every_block():
    """Ragged at both edges: 128-blocks over [300, 130]."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(300, 130, generator=generator) * torch.logspace(-6, 3, 300)[:, None]
    stored, scale, meant = quantise(weight, (128, 128))
    assert scale.shape == (3, 2) and scale.max() > 100 * scale.min()
    assert torch.equal(dequantise(stored, scale, (128, 128), "test"), meant)
    assert torch.equal(dequantise(stored, scale.double(), (128, 128), "test"), meant)


@pytest.mark.parametrize(
    "change, parts",
    [
        ({"quantization_config": None}, ("_scale_inv", "not part of this architecture")),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ("quant_method = 'gptq'", "fp8")),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, ("'bitsandbytes'", "fp8")),
        ({"quantization_config": FP8}, ("weight_block_size = None", "fp8")),
        ({"quantization_config": FP8 | {"weight_block_size": [8, 8], "fmt": "e5m2"}}, ("quantization_config",)),
        ({"quantization_config": FP8 | {"weight_block_size": [64, 8]}}, ("_scale_inv has shape", "(64, 8)")),
    ],
    ids=["none", "gptq", "bitsandbytes", "no-block", "e5m2", "other-block"],
)
def test_other_quantizations_are_refused_by_name(change: dict[str, Any], parts: tuple[str, ...], tmp_path: Path):
    folder = fp8_folder(tmp_path, (8, 8))
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(ConfigError) as error:
        load_model(folder)
    for part in (str(folder), *parts):
        assert part in str(error.value)


def test_fp8_without_its_scale_is_refused(tmp_path: Path):
    folder = fp8_folder(tmp_path, (8, 8))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.self_attn.o_proj.weight_scale_inv"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"layers\.0\.self_attn\.o_proj\.weight is stored as float8_e4m3fn"):
        load_model(folder)


# What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, change, parts",
    [
        ("qwen2", {"use_sliding_window": True}, ("use_sliding_window = True", "False")),
        ("qwen3-moe", {"use_sliding_window": True}, ("use_sliding_window = True",)),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, ("layer_types", "'sliding_attention'")),
        ("llama", {"mlp_bias": True}, ("mlp_bias = True",)),
        ("llama", {"partial_rotary_factor": 0.5}, ("partial_rotary_factor = 0.5",)),
        ("llama", {"architectures": ["LlamaForQuestionAnswering"]}, ("Question", "LlamaForCausalLM")),
        ("v2-grouped", {"topk_method": "noaux_tc"}, ("topk_method", "'greedy'", "group_limited_greedy", "noaux_tc")),
        ("v2-greedy", {"scoring_func": "sigmoid"}, ("scoring_func = 'sigmoid'", "'softmax'")),
        ("v2-greedy", {"attention_bias": True}, ("attention_bias = True",)),
        ("v2-grouped", {"topk_group": 5}, ("topk_group=5 exceeds n_group=4",)),
        ("qwen3-moe", {"num_experts_per_tok": 9}, ("num_experts_per_tok=9 exceeds num_experts=8",)),
        ("llama", {"model_type": "mistral"}, ("'mistral' is not supported", "deepseek_v3, llama, qwen2, qwen3")),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ("'full_attention' layers",)),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, ("rope type 'dynamic'", "llama3")),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, ("rope low_freq_factor is missing",)),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, ("rope factor is missing",)),
    ],
)  # fmt: skip
def test_other_mathematics_is_refused_by_name(
    name: str, change: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
):
    save_model(made(EVERY_FAMILY[name]), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(ConfigError) as error:
        load_model(tmp_path)
    for part in (str(tmp_path / "config.json"), *parts):
        assert part in str(error.value)


def test_switched_off_sliding_windows_are_accepted(tmp_path: Path):
    save_model(made(EVERY_FAMILY["qwen2"]), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw |= {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28}
    (tmp_path / "config.json").write_text(json.dumps(raw | {"layer_types": ["full_attention"] * 2}))
    assert load_model(tmp_path).config == read_config(tmp_path)


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_missing_and_foreign_keys_are_named_in_every_family(name: str, tmp_path: Path):
    save_model(made(EVERY_FAMILY[name]), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for key in tensors:
        if ".0." not in key or "experts.0." in key:
            continue
        save_file({k: t for k, t in tensors.items() if k != key}, tmp_path / "model.safetensors")
        with pytest.raises(ConfigError, match="is missing") as error:
            load_model(tmp_path)
        assert key in str(error.value)
    foreign = "model.layers.0.self_attn.sinks"
    save_file(tensors | {foreign: torch.zeros(4)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="not part of this architecture, ") as error:
        load_model(tmp_path)
    assert foreign in str(error.value) and EVERY_FAMILY[name].architecture in str(error.value)


@pytest.mark.parametrize(
    "name, key, taken",
    [("v3", "n_group", 8), ("v3", "routed_scaling_factor", 2.5), ("qwen3-moe", "norm_topk_prob", False),
     ("qwen3", "head_dim", 128), ("v2-greedy", "topk_method", "greedy"), ("llama", "max_position_embeddings", 2048)],
)  # fmt: skip
def test_a_key_left_out_means_what_transformers_takes(name: str, key: str, taken: Any, tmp_path: Path):
    config = EVERY_FAMILY[name].model_copy(update={"n_group": 8, "n_routed_experts": 16} if name == "v3" else {})
    save_model(made(config), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw[key]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert getattr(read_config(tmp_path), key) == taken
    assert getattr(transformers.AutoConfig.from_pretrained(tmp_path), key) == taken
