"""The bytes that each token of a vocabulary stands for, whatever kind of tokenizer it is.

Three kinds are known: byte-level BPE, which writes bytes as printable characters; sentencepiece, which writes a space
as "▁" and single bytes as <0xAB>; and plain text. Special tokens stand for their own text.

Try it alone: `pytest tests/data/test_spelling.py`
"""

import json
import re
from functools import cache

from tokenizers import Tokenizer

_BYTE = re.compile("<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """For every id its bytes; empty where the vocabulary has a gap."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    decoder = json.dumps(json.loads(tokenizer.to_str())["decoder"], ensure_ascii=False)
    spelled = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, id in vocab.items():
        if token in added:
            spelled[id] = token.encode()
        elif '"ByteLevel"' in decoder:
            spelled[id] = _from_byte_level(token)
        elif found := _BYTE.fullmatch(token) if '"ByteFallback"' in decoder else None:
            spelled[id] = bytes([int(found[1], 16)])
        else:
            spelled[id] = (token.replace("▁", " ") if "▁" in decoder else token).encode()
    return spelled


def _from_byte_level(token: str) -> bytes:
    table = _byte_of()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()


@cache
def _byte_of() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the others for what follows U+0100."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}
