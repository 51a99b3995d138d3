"""Stop strings: a reply ends where its text first holds one of them, wherever the tokens' borders lie.

Try it alone: `pytest tests/engine/test_stops.py`
"""

from __future__ import annotations

from collections.abc import Callable

TextOf = Callable[[list[int]], str]
"""Tokens to text, as a tokenizer decodes them."""

_MARGIN = 4  # tokens looked at beyond what a stop string can span, as the first ones may begin within a character


def find_stop(tokens: list[int], stop: tuple[str, ...], text_of: TextOf) -> tuple[str, str] | None:
    """The text before the first stop string and that string, when the newest token has completed one.

    Only the end of the reply is decoded for the search: every token is at least one byte of text.
    """
    span = max(len(word.encode()) for word in stop) + _MARGIN
    tail = text_of(tokens[-span:])
    if not any(word in tail for word in stop):
        return None
    text = text_of(tokens)
    found = [(text.find(word), -len(word), word) for word in stop if word in text]
    if not found:
        return None
    at, _, word = min(found)
    return text[:at], word
