"""A solution in tokens, and where each of its steps ends.

Every step is encoded by itself, so that it ends with a token, whatever the tokenizer would merge across its end; TRL's
process reward models were trained so too.

Try it alone: `pytest tests/data/test_solution.py`
"""

from collections.abc import Sequence
from typing import NamedTuple

from zifio.data.template import ChatTokenizer, Message


class StepTokens(NamedTuple):
    """A conversation up to the end of a solution's last step."""

    tokens: list[int]
    n_prompt: int
    """Tokens before the solution."""
    ends: list[int]
    """Place of each step's last token."""


def encode_steps(tokenizer: ChatTokenizer, messages: Sequence[Message], steps: Sequence[str]) -> StepTokens:
    """The messages, and the steps as the reply to them. Raises ConfigError for what the tokenizer cannot spell."""
    tokens = tokenizer.encode_chat(messages, generation_prompt=True)[0]
    n_prompt, ends = len(tokens), []
    for step in steps:
        tokens += tokenizer.encode(step)
        ends.append(len(tokens) - 1)
    return StepTokens(tokens, n_prompt, ends)
