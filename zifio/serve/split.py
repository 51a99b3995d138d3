"""A reply's text as it streams, split into thinking, content and tool calls, wherever the chunks' borders lie.

    <think>…</think> answer <tool_call>{"name": "f", "arguments": {}}</tool_call>

What may be the beginning of a mark is held back until it is known. Fed whole or character by character, a text gives
the same thinking, content and calls. Nothing is lost: a call that cannot be read stays in the content as written.

Try it alone: `pytest tests/serve/test_split.py`
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from zifio.data.calls import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, WrittenCall, read_calls
from zifio.tasks.form import THINK, THOUGHT

Kind = Literal["reasoning", "content"]
Phase = Literal["start", "thinking", "content"]
"""Where a text stands; at the start it is not known yet whether there is thinking."""

_HERMES_BEGIN, _HERMES_END = "<tool_call>", "</tool_call>"
_END_OF = {CALL_BEGIN: CALL_END, _HERMES_BEGIN: _HERMES_END}
_MARKS = (CALLS_BEGIN, CALLS_END, *_END_OF)


class Piece(NamedTuple):
    """Some text."""

    kind: Kind
    text: str


class CallPiece(NamedTuple):
    """A whole tool call."""

    name: str
    arguments: str


class Splitter:
    """All stages in a row: thinking off, cut at a stop string, calls taken out of the content."""

    def __init__(self, *, phase: Phase = "start", stops: Iterable[str] = (), has_tools: bool = False) -> None:
        """`phase`: what the prompt has begun already. Stop strings hold for what comes behind the thinking."""
        self._thinking = Thinking(phase)
        self._stops = Stops(stops)
        self._calls = Calls() if has_tools else None

    @property
    def phase(self) -> Phase:
        """Where the text stands now."""
        return self._thinking.phase

    @property
    def stop(self) -> str | None:
        """The stop string that has come; no text follows it."""
        return self._stops.found

    def feed(self, text: str) -> list[Piece | CallPiece]:
        """What is certain with this text."""
        return self._shaped(self._thinking.feed(text), is_end=False)

    def end(self) -> list[Piece | CallPiece]:
        """What was held back, now that nothing follows."""
        return self._shaped(self._thinking.end(), is_end=True)

    def _shaped(self, pieces: list[Piece], is_end: bool) -> list[Piece | CallPiece]:
        out: list[Piece | CallPiece] = [piece for piece in pieces if piece.kind == "reasoning"]
        text = self._stops.feed("".join(piece.text for piece in pieces if piece.kind == "content"))
        if is_end:
            text += self._stops.end()
        if self._calls is None:
            return [*out, *([Piece("content", text)] if text else [])]
        return [*out, *self._calls.feed(text), *(self._calls.end() if is_end else [])]


class Thinking:
    """Tells thinking from content. Newlines around the thinking belong to the marks."""

    def __init__(self, phase: Phase = "start") -> None:
        self.phase: Phase = phase
        self._held = ""
        self._is_first = True  # of its phase, so that newlines before it are dropped

    def feed(self, text: str) -> list[Piece]:
        """Pieces whose kind is certain."""
        self._held += text
        pieces: list[Piece] = []
        if self.phase == "start":
            head = self._held.lstrip()
            if head.startswith(THINK):
                self.phase, self._held = "thinking", head.removeprefix(THINK)
            elif not THINK.startswith(head):
                self.phase, self._is_first = "content", False
        if self.phase == "thinking":
            thought, found, rest = self._held.partition(THOUGHT)
            if self._is_first:
                thought = thought.lstrip("\n")
            keep = 0 if found else _n_open(thought, (THOUGHT,))
            certain = (thought if found else thought[: len(thought) - keep]).rstrip("\n")
            if certain:
                pieces.append(Piece("reasoning", certain))
                self._is_first = False
            self._held = thought[len(certain) :]
            if found:
                self.phase, self._held, self._is_first = "content", rest, True
        if self.phase == "content":
            text = self._held.lstrip("\n") if self._is_first else self._held
            self._held = ""
            if text:
                pieces.append(Piece("content", text))
                self._is_first = False
        return pieces

    def end(self) -> list[Piece]:
        """What was held back: of a thinking that was cut the beginning of a mark, of nothing but blanks the blanks."""
        text, self._held = self._held, ""
        if self.phase == "thinking":
            text = text.lstrip("\n") if self._is_first else text
            return [Piece("reasoning", text)] if text.strip("\n") else []
        return [Piece("content", text)] if text else []


class Stops:
    """Lets a text through up to the first stop string."""

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text."""

    def feed(self, text: str) -> str:
        """As much as no stop string can begin in any more."""
        if self.found is not None:
            return ""
        text = self._held + text
        hits = [(text.find(word), -len(word), word) for word in self._stops if word in text]
        if hits:
            at, _, self.found = min(hits)
            self._held = ""
            return text[:at]
        keep = _n_open(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back."""
        text, self._held = self._held, ""
        return text


class Calls:
    """Takes tool calls out of a text, in the forms that `data.calls` reads. Blanks around a call belong to it."""

    def __init__(self) -> None:
        self._held = ""
        self._begin = ""  # the mark of the call that is being written
        self._after_call = False

    def feed(self, text: str) -> list[Piece | CallPiece]:
        """Content and calls that are complete."""
        self._held += text
        out: list[Piece | CallPiece] = []
        while True:
            if self._begin:
                inside, found, rest = self._held.partition(_END_OF[self._begin])
                if not found:
                    return out
                out += self._read(self._begin + inside + found)
                self._begin, self._held, self._after_call = "", rest, True
                continue
            if self._after_call:
                self._held = self._held.lstrip()
            at, mark = min(((self._held.find(m), m) for m in _MARKS if m in self._held), default=(-1, ""))
            if mark:
                out += self._content(self._held[:at].rstrip())
                self._held, self._after_call = self._held[at + len(mark) :], True
                self._begin = mark if mark in _END_OF else ""
                continue
            certain = self._held[: len(self._held) - _n_open(self._held, _MARKS)].rstrip()
            self._held = self._held[len(certain) :]
            return out + self._content(certain)

    def end(self) -> list[Piece | CallPiece]:
        """What was held back; a call without an end as it was written."""
        text, self._held, self._begin = self._begin + self._held, "", ""
        return self._content(text)

    def _content(self, text: str) -> list[Piece | CallPiece]:
        if not text:
            return []
        self._after_call = False
        return [Piece("content", text)]

    def _read(self, written: str) -> list[Piece | CallPiece]:
        calls: list[WrittenCall] = read_calls(written)[1]
        if not calls or any(call.fault for call in calls):
            return self._content(written)
        return [CallPiece(call.name, call.arguments) for call in calls]


def _n_open(text: str, marks: Iterable[str]) -> int:
    """Characters at the end of a text that may be the beginning of one of the marks."""
    longest = 0
    for mark in marks:
        for n in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:n]):
                longest = n
                break
    return longest
