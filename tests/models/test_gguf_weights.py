"""Weights out of GGUF files: tensor for tensor those that were written, and logits equal to transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from gguf_files import smollm2, tiny_gguf, write_gguf
from tiny import llama, logits_of, made, tokens_like

from zifio.config import ConfigError, Sampling
from zifio.engine.policy import LocalPolicy, load_policy
from zifio.models.config import FAMILIES
from zifio.models.decoder import Decoder
from zifio.models.gguf import read_gguf
from zifio.models.weights import load_model, to_disk_names

transformers = pytest.importorskip("transformers")

KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
SHAPE: dict[str, Any] = {
    "vocab_size": 560, "hidden_size": 64, "intermediate_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 25000.0,
}  # fmt: skip


def theirs_of(path: Path) -> Any:
    """The model of a file as transformers reads it."""
    pytest.importorskip("accelerate")
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@torch.no_grad()
def check_logits(ours: Decoder, theirs: Any, tolerance: float) -> None:
    """Equal logits at every position."""
    tokens_BT = tokens_like(2, 24, vocab=ours.config.vocab_size or 0)
    torch.testing.assert_close(logits_of(ours, tokens_BT), theirs(tokens_BT).logits, atol=tolerance, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_what_was_written(kind: str, tied: bool, tmp_path: Path):
    config = llama(**SHAPE, tie_word_embeddings=tied)
    model = made(config)
    path = tiny_gguf(tmp_path / "model.gguf", config, model, kind=kind)
    read, state = read_gguf(path)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    default = {"initializer_range": 0.02}  # a file does not say it
    assert read == config.model_copy(update=ids | default)
    disk = to_disk_names(config, model.state_dict())
    assert state.keys() == disk.keys()
    how = gguf.GGMLQuantizationType[kind]
    for name, tensor in disk.items():
        values = tensor.numpy()
        wanted = dequantize(quantize(values, how), how) if values.ndim > 1 else values
        assert state[name].dtype == torch.float32 and np.array_equal(state[name].numpy(), wanted), name
    if kind == "F32":
        assert torch.equal(logits_of(load_model(path), tokens_like(2, 9)), logits_of(model, tokens_like(2, 9)))


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q8_0"])
def test_logits_equal_those_of_transformers_for_the_same_file(kind: str, tmp_path: Path):
    config = llama(**SHAPE, tie_word_embeddings=kind == "Q8_0")
    path = tiny_gguf(tmp_path / "model.gguf", config, made(config), kind=kind)
    check_logits(load_model(path), theirs_of(path), 2e-5)


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_other_architectures(arch: str, tmp_path: Path):
    if arch not in FAMILIES:
        pytest.skip(f"no {arch} among the families")
    shape = SHAPE | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    rope = {"rope_type": "default", "rope_theta": shape.pop("rope_theta")}
    config = transformers.AutoConfig.for_model(arch, **shape, max_position_embeddings=96, rope_parameters=rope)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    path = write_gguf(tmp_path / "model.gguf", config, theirs.state_dict(), arch=arch)
    check_logits(load_model(path), theirs, 2e-5)


def test_a_head_wider_than_its_share(tmp_path: Path):
    config = llama(**SHAPE, head_dim=32)
    model = made(config)
    path = tiny_gguf(tmp_path / "model.gguf", config, model)
    assert torch.equal(logits_of(load_model(path), tokens_like(2, 9)), logits_of(model, tokens_like(2, 9)))


@pytest.mark.parametrize(
    ("changes", "without", "wanted"),
    [
        ({"general.architecture": "mamba"}, (), r"general\.architecture: wanted llama.*mamba"),
        *(({}, [f"llama.{key}"], key) for key in ("block_count", "context_length", "attention.head_count")),
        ({}, ["llama.attention.layer_norm_rms_epsilon"], "layer_norm_rms_epsilon"),
        ({}, ["token_embd.weight"], "token_embd"),
        ({}, ["blk.1.ffn_up.weight"], r"layers\.1\.mlp\.up_proj\.weight is missing"),
        ({"llama.expert_count": 8}, (), "expert_count = 8"),
        ({"llama.rope.scaling.type": "linear"}, (), "scaling.type = 'linear'"),
        ({"llama.rope.dimension_count": 8}, (), "dimension_count = 8.*16"),
        ({"llama.attention.value_length": 8}, (), "value_length = 8.*16"),
        ({"llama.attention.head_count": 3}, (), "num_attention_heads"),
        ({"llama.feed_forward_length": 100}, (), r"shape \[96, 64\]"),
        ({"llama.block_count": 1}, (), r"tensor blk\.1\..*1 layers"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(changes, without, wanted: str, tmp_path: Path):
    config = llama(**SHAPE)
    path = tiny_gguf(tmp_path / "model.gguf", config, made(config), changes=changes, without=without)
    with pytest.raises(ConfigError, match=wanted):
        load_model(path)


@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "blk.0.ffn_gate_inp.weight", "output_norm", "blk.0.attn_q.scale"]
)
def test_a_tensor_of_other_mathematics_is_named(name: str, tmp_path: Path):
    config = llama(**SHAPE)
    extra = {name: np.ones(8, np.float32)}
    path = tiny_gguf(tmp_path / "model.gguf", config, made(config), extra=extra)
    with pytest.raises(ConfigError, match=f"{name}.*mathematics"):
        read_gguf(path)


def test_quantizations_that_nobody_undoes_are_named(tmp_path: Path):
    config, name = llama(**SHAPE), "blk.0.attn_q.weight"
    integers = {name: np.ones((64, 64), np.int8)}
    path = tiny_gguf(tmp_path / "model.gguf", config, made(config), extra=integers, without=[name])
    with pytest.raises(ConfigError, match=r"wanted a tensor in one of F32, F16, Q4_0, .*Q6_K.*BF16.*; came I8"):
        dict(read_gguf(path)[1])
    content = path.read_bytes()
    at = content.index(name.encode()) + len(name) + 4 + 2 * 8  # behind the number of axes and their lengths
    path.write_bytes(content[:at] + (4).to_bytes(4, "little") + content[at + 4 :])  # a number that ggml gave up
    with pytest.raises(ConfigError, match="came type 4"):
        dict(read_gguf(path)[1])


QUESTIONS = [
    "What is the capital of France?", "Write a haiku about rain.", "What is 7+5?", "Name three colours.",
    "Who wrote Hamlet?", "def fib(n):", "Translate 'good morning' to Spanish.", "Why is the sky blue?",
    "List the primes below 20.", "What is 12*12?", "Say hello.", "Give me a recipe for pancakes.",
    "What is a neural network?", "Is 91 prime?", "Name a whale.", "What year did the Second World War end?",
    "Sort 3, 1, 2.", "Write a SQL query that counts rows.", "Tell me a joke.", "什么是人工智能？",
]  # fmt: skip


def test_smollm2_is_itself():
    """Whole, and with its rows in the right order: permuted wrongly it babbles."""
    path = smollm2()
    policy = load_policy(path)
    state = to_disk_names(policy.model.config, policy.model.state_dict())
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (272, 134_515_008)
    sampling = Sampling(temperature=0, max_new_tokens=12)
    [[reply]] = policy.complete([[{"role": "user", "content": QUESTIONS[0]}]], 1, sampling, [[0]])
    assert reply.text == "The capital of France is Paris." and reply.finish == "stop"


@torch.no_grad()
def check_chats(policy: LocalPolicy, theirs: Any) -> None:
    """Equal logits at every position of real prompts. (Of random tokens both are as far from float64 as 2e-4.)"""
    for question in QUESTIONS:
        tokens_BT = torch.tensor([policy.prompt([{"role": "user", "content": question}])])
        torch.testing.assert_close(logits_of(policy.model, tokens_BT), theirs(tokens_BT).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_smollm2_logits_equal_those_of_transformers_for_the_same_file():
    path = smollm2()
    check_chats(load_policy(path), theirs_of(path))


@pytest.mark.slow
def test_smollm2_says_what_it_says_in_transformers(tmp_path: Path):
    """Through `zifio convert`: the same weights and tokenizer in both; equal logits and 64 equal greedy tokens."""
    from zifio import cli

    path, folder = smollm2(), tmp_path / "folder"
    assert cli.main(["convert", str(path), str(folder)]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    policy = load_policy(path)
    check_chats(policy, theirs)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    ours = policy.complete(chats, 1, Sampling(temperature=0, max_new_tokens=64), [[0]] * len(chats))
    for chat, [reply] in zip(chats, ours, strict=True):
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert prompt == policy.prompt(chat)
        with torch.no_grad():
            out = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=64)
        assert reply.tokens == out[0, len(prompt) :].tolist()
