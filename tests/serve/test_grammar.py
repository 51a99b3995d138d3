"""Grammars let through what fits the tools or the schema, spelled as the tokenizer spells it, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from served import DIVE, tokenizer

from zifio.config import ConfigError
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import TokenizerConfig, chat_tokenizer, train_tokenizer
from zifio.serve.grammar import Grammars


def fits(words: ChatTokenizer, grammars: Grammars, grammar: str, text: str) -> bool:
    """Whether a text passes, and may end there."""
    matcher = grammars.matcher(grammar)
    for token in words.encode(text):
        if not matcher.allowed()[token] or not matcher.take(token):
            return False
    return bool(matcher.allowed()[words.eos_id])


@pytest.mark.parametrize("value, is_right", [({"fast": True}, True), ({"fast": 1}, False), ({}, False)])
def test_json_is_held_to_its_schema(value: dict[str, Any], is_right: bool):
    words = tokenizer()
    grammars = Grammars(words)
    assert fits(words, grammars, grammars.json(DIVE["parameters"]), json.dumps(value)) == is_right


@pytest.mark.parametrize("arguments, is_right", [('{"fast": true}', True), ('{"fast": 1}', False), ("{}", False)])
def test_hermes_calls_are_held_to_the_tool(arguments: str, is_right: bool):
    words = chat_tokenizer(train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), ["the whale"]))
    grammars = Grammars(words)
    call = f'<tool_call>\n{{"name": "dive", "arguments": {arguments}}}\n</tool_call>'
    forced = grammars.calls([DIVE], is_forced=True, parallel=True)
    assert fits(words, grammars, forced, call) == is_right
    assert fits(words, grammars, forced, f"{call}\n{call}") == is_right
    assert not fits(words, grammars, grammars.calls([DIVE], is_forced=True, parallel=False), f"{call}\n{call}")
    assert not fits(words, grammars, forced, "\n".join([call] * 9))
    assert not fits(words, grammars, forced, f"So: {call}") and not fits(words, grammars, forced, "So.")


def test_a_schema_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="schema"):
        Grammars(tokenizer()).json({"type": "whale"})
