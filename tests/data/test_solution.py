"""Solutions in tokens: every step ends with a token of its own, and nothing else changes."""

from __future__ import annotations

from tiny import characters

from zifio.data.solution import encode_steps
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import TokenizerConfig, train_tokenizer

MESSAGES = [{"role": "user", "content": "1+2"}]


def test_every_step_ends_with_a_token():
    tokenizer, steps = characters(), ["<think>1+2=3", "-1=2", "</think><answer>2</answer>"]
    tokens, n_prompt, ends = encode_steps(tokenizer, MESSAGES, steps)
    assert tokens[:n_prompt] == tokenizer.encode_chat(MESSAGES, generation_prompt=True)[0]
    starts = [n_prompt, *(end + 1 for end in ends[:-1])]
    assert [tokenizer.decode(tokens[a : b + 1]) for a, b in zip(starts, ends, strict=True)] == steps
    assert ends[-1] == len(tokens) - 1


def test_no_merge_crosses_the_end_of_a_step():
    text = ["the cat. the cat.\n"] * 50
    tokenizer = ChatTokenizer(train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), text))
    together = tokenizer.encode("the cat. the")
    tokens, n_prompt, ends = encode_steps(tokenizer, MESSAGES, ["the c", "at. the"])
    assert len(tokens) - n_prompt > len(together), "the tokenizer would have merged across"
    assert tokenizer.decode(tokens[n_prompt : ends[0] + 1]) == "the c"
    assert tokenizer.decode(tokens[ends[0] + 1 : ends[1] + 1]) == "at. the"
