"""Tokenizers out of GGUF files: equal to a slow, plain reading of their definition, and to transformers."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from gguf_files import CHATML, NASTY, SPECIAL, smollm2, tokenizer_fields, write_gguf
from tiny import llama, made
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from zifio.config import ConfigError
from zifio.data.gguf import _CASED, read_gguf_tokenizer
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import load_tokenizer, save_tokenizer
from zifio.gguf import read_gguf_header
from zifio.models.weights import to_disk_names

_SYMBOLS = bytes_to_unicode()
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # noqa: E501
_LETTERS = regex.sub(r"\\x\{(\w+)\}", lambda match: chr(int(match[1], 16)), _CASED)
WRITTEN = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "qwen2": [_CL100K.replace("DIGITS", "")],
    "deepseek-r1-qwen": [_CL100K.replace("DIGITS", "")],
    "llama-bpe": [_CL100K.replace("DIGITS", "{1,3}")],
    "deepseek-llm": [
        "[\r\n]", rf"\s?[{_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}",
    ],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",  # noqa: E501
    ],
}  # fmt: skip
"""The patterns as the format's own tokenizer has them, for Python's regex."""


class Plain:
    """Byte-level BPE by definition: cut, then join the pair that was learned first, until none is left."""

    def __init__(self, path: Path) -> None:
        fields = read_gguf_header(path).fields
        self.pre = fields["tokenizer.ggml.pre"]
        self.ids = {token: id for id, token in enumerate(fields["tokenizer.ggml.tokens"])}
        self.rank = {tuple(merge.split(" ")): rank for rank, merge in enumerate(fields["tokenizer.ggml.merges"])}
        kinds = fields["tokenizer.ggml.token_type"]
        special = [token for token, id in self.ids.items() if kinds[id] in (3, 4)]
        self.special = regex.compile("(" + "|".join(map(regex.escape, sorted(special, key=len, reverse=True))) + ")")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(self.special.split(text)):
            if place % 2:
                ids.append(self.ids[part])
                continue
            pieces = [unicodedata.normalize("NFC", part) if "qwen" in self.pre else part]
            for pattern in WRITTEN[self.pre]:
                pieces = [piece for whole in pieces for piece in cut(pattern, whole)]
            ids += [id for piece in pieces for id in self.merge(piece)]
        return ids

    def merge(self, piece: str) -> list[int]:
        parts = [_SYMBOLS[byte] for byte in piece.encode()]
        if self.pre == "llama-bpe" and "".join(parts) in self.ids:
            return [self.ids["".join(parts)]]
        while pairs := [(self.rank[p], at) for at, p in enumerate(pairwise(parts)) if p in self.rank]:
            _, at = min(pairs)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self.ids[part] for part in parts]


def cut(pattern: str, text: str) -> list[str]:
    """What matches, and what lies between."""
    pieces, at = [], 0
    for match in regex.finditer(pattern, text):
        pieces += [text[at : match.start()], match[0]]
        at = match.end()
    return [piece for piece in [*pieces, text[at:]] if piece]


def written(path: Path, pre: str = "smollm", **options) -> Path:
    config = llama(vocab_size=640)
    return write_gguf(path, config, to_disk_names(config, made(config).state_dict()), pre=pre, **options)


@pytest.mark.parametrize("pre", WRITTEN)
def test_ids_equal_those_of_the_definition_and_text_comes_back(pre: str, tmp_path: Path):
    path = written(tmp_path / "model.gguf", pre)
    ours, plain = load_tokenizer(path), Plain(path)
    for text in [*NASTY, "".join(NASTY), " ".join(NASTY), "\n".join(NASTY)]:
        ids = ours.encode(text)
        assert ids == plain.encode(text), text
        composed = unicodedata.normalize("NFC", text) if "qwen" in pre else text
        assert ours.tokenizer.decode(ids, skip_special_tokens=False) == composed


def test_every_cut_differs_from_the_others_somewhere(tmp_path: Path):
    """Else the test above could not tell them apart; R1's Qwen cuts as Qwen does."""
    seen = set()
    for pre in WRITTEN:
        tokenizer = load_tokenizer(written(tmp_path / f"{pre}.gguf", pre))
        seen.add(str([tokenizer.encode(text) for text in NASTY]))
    assert len(seen) == len(WRITTEN) - 1


def test_cased_letters_are_cased_letters():
    """A slip in the long list of ranges would bring in something else, or lose most of a script."""
    listed = {chr(code) for code in range(0x20000) if regex.match(f"[{_LETTERS}]", chr(code))}
    cased = {chr(code) for code in range(0x20000) if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt")}
    assert listed <= cased | {"\u2c7b"} | {c for c in listed if unicodedata.category(c) == "Cn"}
    early = {c for c in cased if ord(c) < 0x1D400} - listed
    assert len(early) < 400, sorted(map(hex, map(ord, early)))


@pytest.mark.parametrize(("pre", "arch"), [("gpt-2", "llama"), ("qwen2", "qwen2")])
def test_ids_equal_those_of_transformers_for_the_same_file(pre: str, arch: str, tmp_path: Path):
    path = written(tmp_path / "model.gguf", pre, arch=arch)
    ours, theirs = load_tokenizer(path), AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in NASTY:
        if text == unicodedata.normalize("NFC", text):  # they drop the NFC of Qwen's own tokenizer.json
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


def test_special_tokens_and_ids(tmp_path: Path):
    fields = tokenizer_fields("smollm")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    padded = {"tokenizer.ggml.tokens": [*tokens, "[PAD560]"], "tokenizer.ggml.token_type": [*types, 5]}
    ours = load_tokenizer(written(tmp_path / "model.gguf", changes=padded))
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.template) == (1, 2, 0, CHATML)
    assert ours.encode("".join(SPECIAL)) == list(range(4))
    added = ours.tokenizer.get_added_tokens_decoder()
    assert [added[id].special for id in range(4)] == [True, True, True, False]
    assert ours.vocab_size == len(tokens), "a token that only pads the embedding is none"
    assert ours.tokenizer.decode([1, 3, 2], skip_special_tokens=True) == "<think>"
    bare = written(tmp_path / "bare.gguf", without=["tokenizer.ggml.bos_token_id", "tokenizer.ggml.padding_token_id"])
    assert (load_tokenizer(bare).bos_id, load_tokenizer(bare).pad_id) == (2, 2)


@pytest.mark.parametrize(
    ("changes", "without", "wanted"),
    [
        ({"tokenizer.ggml.pre": "tekken"}, (), "gpt-2, smollm, .*tekken"),
        ({"tokenizer.ggml.model": "llama"}, (), "gpt2; came 'llama'"),
        ({}, ["tokenizer.chat_template"], "trained to chat"),
        ({}, ["tokenizer.ggml.eos_token_id"], "eos_token_id"),
        ({}, ["tokenizer.ggml.merges"], "merges"),
        ({"tokenizer.ggml.merges": ["qqq zzz"]}, (), "merges.*qqq"),
        ({"tokenizer.ggml.token_type": [1, 1]}, (), "token_type: wanted 560, came 2"),
        ({"tokenizer.ggml.eos_token_id": 70000}, (), "eos_token: wanted an id below"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(changes, without, wanted: str, tmp_path: Path):
    path = written(tmp_path / "model.gguf", changes=changes, without=without)
    with pytest.raises(ConfigError, match=wanted):
        load_tokenizer(path)


def turns(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation: user and assistant by turns."""
    roles = ["user", "assistant"] * len(texts)
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


CHATS = [
    turns("Hi"), turns("Hi", "Hello!"), turns("1+1", "2", "2+2"), turns("1+1", "2", "2+2", "4 "), turns("a", ""),
    turns("Hi", "Hello!", system="Be brief."), turns("", system=""), turns(" x\n", "\n\ny<think>z</think>", " "),
    turns("say <|im_end|>", "no <|im_end|> end"), [{"role": "system", "content": "alone"}],
    *(turns(text, text[::-1], text, system=text) for text in NASTY if "<|" not in text),
]  # fmt: skip


def check_chats(ours: ChatTokenizer, folder: Path) -> None:
    """The laws of a chat template whose end token is followed by a newline, against transformers on `folder`."""
    theirs = AutoTokenizer.from_pretrained(folder)
    for chat in CHATS:
        for prompt in (False, True):
            text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
            assert ours.render(chat, generation_prompt=prompt) == text
            assert "".join(piece for piece, _ in ours.segments(chat, generation_prompt=prompt)) == text
            tokens, mask = ours.encode_chat(chat, generation_prompt=prompt)
            replies = [message["content"] + ours.eos_token for message in chat if message["role"] == "assistant"]
            if not any(reply[:1].isspace() for reply in replies):  # else the cut before the reply parts what would join
                assert tokens == theirs.encode(text, add_special_tokens=False)
            counted = [token for token, counts in zip(tokens, mask, strict=True) if counts]
            assert counted == [token for reply in replies for token in ours.encode(reply)]
        for place, message in enumerate(chat):
            if message["role"] == "assistant":
                sampled_after, _ = ours.encode_chat(chat[:place], generation_prompt=True)
                assert tokens[: len(sampled_after)] == sampled_after
                reply = ours.encode(message["content"] + ours.eos_token)
                assert tokens[len(sampled_after) :][: len(reply)] == reply
                assert mask[len(sampled_after) :][: len(reply)] == [True] * len(reply)


def test_chats_equal_those_of_transformers_and_count_up_to_the_end_token(tmp_path: Path):
    ours = load_tokenizer(written(tmp_path / "model.gguf"))
    save_tokenizer(ours, tmp_path / "folder")
    check_chats(ours, tmp_path / "folder")


def test_smollm2(tmp_path: Path):
    path = smollm2()
    ours, plain = read_gguf_tokenizer(path), Plain(path)
    assert (ours.vocab_size, ours.bos_token, ours.eos_token, ours.pad_token) == (
        49152, "<|im_start|>", "<|im_end|>", "<|im_end|>",
    )  # fmt: skip
    for text in [*NASTY, "".join(NASTY)]:
        assert ours.encode(text) == plain.encode(text), text
        assert ours.tokenizer.decode(ours.encode(text), skip_special_tokens=False) == text
    assert ours.render(turns("Hi")).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    save_tokenizer(ours, tmp_path)
    check_chats(ours, tmp_path)


@pytest.mark.slow
def test_smollm2_chats_equal_those_of_transformers_for_the_same_file():
    path = smollm2()
    ours, theirs = read_gguf_tokenizer(path), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id
    assert ids == (ours.bos_id, ours.eos_id, ours.pad_id)
    for chat in CHATS:
        text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert ours.render(chat, generation_prompt=True) == text
