"""Tokens to text as they come: only whole characters leave, and all pieces together are the text of all tokens.

Try it alone: `pytest tests/serve/test_text.py`
"""

from __future__ import annotations

from zifio.engine.stops import TextOf

_BROKEN = "\ufffd"  # what decoders make of bytes that are no character, or not one yet


class TokenText:
    """The text of one reply."""

    def __init__(self, text_of: TextOf) -> None:
        self._text_of = text_of
        self._known: list[int] = []  # tokens before the pending ones, as some decoders look back one piece
        self._pending: list[int] = []

    def feed(self, *tokens: int) -> str:
        """What these tokens make certain."""
        self._pending.extend(tokens)
        text = self._text_of(self._known + self._pending)
        if text.endswith(_BROKEN):
            return ""
        return self._take(text)

    def end(self) -> str:
        """What was held back."""
        return self._take(self._text_of(self._known + self._pending)) if self._pending else ""

    def _take(self, text: str) -> str:
        before = self._text_of(self._known) if self._known else ""
        self._known, self._pending = self._pending, []
        return text[len(before) :]
