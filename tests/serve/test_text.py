"""Tokens become text as they come: never half a character, and nothing is lost."""

from __future__ import annotations

import random

import pytest
from served import tokenizer

from zifio.serve.text import TokenText

ALPHABET = "the whale dives é ß 鲸 🐋 👩‍🚀 \u0301 \n <think> </think>"


@pytest.mark.parametrize("is_random", [False, True], ids=["text", "any tokens"])
def test_pieces_are_whole_characters_and_add_up(is_random: bool):
    words, chance = tokenizer(), random.Random(1)
    for length in range(60):
        text = "".join(chance.choices(ALPHABET, k=length % 30))
        tokens = chance.choices(range(words.vocab_size), k=length % 30) if is_random else words.encode(text)
        stream = TokenText(words.decode)
        pieces = [stream.feed(token) for token in tokens]
        assert "".join(pieces) + stream.end() == words.decode(tokens), tokens
        assert is_random or not any("\ufffd" in piece for piece in pieces)
