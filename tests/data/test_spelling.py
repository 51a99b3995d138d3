"""The bytes of tokens add up to the bytes of the text."""

from tiny import characters
from tokenizers import Tokenizer, decoders, models

from zifio.data.spelling import token_bytes
from zifio.data.tokenizer import TokenizerConfig, train_tokenizer

TEXT = "Naïve 🐋 whale, 12+3=15\n\t<think>ok</think>"


def test_byte_level():
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=400), ["the whale dives, naïve as ever"])
    spelled = token_bytes(tokenizer)
    assert b"".join(spelled[id] for id in tokenizer.encode(TEXT).ids) == TEXT.encode()
    assert {bytes([byte]) for byte in range(256)} <= set(spelled)


def test_characters():
    tokenizer = characters()
    assert b"".join(token_bytes(tokenizer.tokenizer)[id] for id in tokenizer.encode("<think>1+2")) == b"<think>1+2"


def test_sentencepiece():
    vocab = {"▁a": 0, "b": 1, "<0xF0>": 2, "▁": 3}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert token_bytes(tokenizer) == [b" a", b"b", b"\xf0", b" "]
