"""Grammars that a reply must follow, by llguidance: JSON, a JSON schema, or calls of the offered tools.

Special tokens never stand inside of a grammar's text: a string that a schema allows cannot hold the end of a call.

Try it alone: `pytest tests/serve/test_grammar.py`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from zifio.config import ConfigError
from zifio.data.calls import CALL_BEGIN, CALL_END, CALL_SEP, CALLS_BEGIN, CALLS_END
from zifio.data.spelling import token_bytes
from zifio.data.template import ChatTokenizer

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is spaced. Free spacing lets a small model write blanks for ever."""
_TEXT = r"TEXT: /(.|\n)*/"
_MOST_CALLS = 8
"""Of one reply. A small model that must call, and may call again, does so until it is cut off."""


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, None
        self.tokens = token_bytes(tokenizer.tokenizer)
        self.special_token_ids = sorted(tokenizer.tokenizer.get_added_tokens_decoder())
        self._encode = tokenizer.tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text, add_special_tokens=False).ids


class Grammars:
    """Makes matchers for one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self._known = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)))

    def json(self, schema: dict[str, Any]) -> str:
        """The grammar of JSON values that a schema allows. Raises ConfigError where it cannot be kept to."""
        written = _dumped(schema)
        return self._checked(
            lambda: LLMatcher.grammar_from_json_schema(written, overrides=dict(_COMPACT))  # type: ignore
        )

    def calls(self, tools: Sequence[dict[str, Any]], *, is_forced: bool, parallel: bool) -> str:
        """The grammar of replies whose calls fit the tools; `is_forced`: of nothing but calls."""
        opener, closer = self._wrapping()
        each = " | ".join(f"call_{place}" for place in range(len(tools)))
        more = f"({self._between()} ({each})){{0,{_MOST_CALLS - 1}}}"
        rules = [f"calls: {opener} ({each}) {more if parallel else ''} {closer}"]
        for place, tool in enumerate(tools):
            schema = {**(tool.get("parameters") or {"type": "object"}), "x-guidance": _COMPACT}
            before, after = self._around(tool["name"])
            rules.append(f"call_{place}: {before} arguments_{place} {after}")
            rules.append(f"arguments_{place}: %json {_dumped(schema)}")
        start = "start: calls" if is_forced else "start: TEXT (calls)?"
        text = [] if is_forced else [_TEXT]
        return self._checked(lambda: LLMatcher.grammar_from_lark("\n".join(["%llguidance {}", start, *text, *rules])))

    def matcher(self, grammar: str) -> Matcher:
        """What follows a reply through a grammar."""
        return Matcher(LLMatcher(self._known, grammar, log_level=0), self._known.vocab_size)

    def _checked(self, make: Callable[[], str]) -> str:
        try:
            grammar = make()
            is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._known)
            if not is_wrong:  # some break down only when they are asked
                first = self.matcher(grammar)
                first.allowed()
                is_wrong, messages = bool(first.fault), [first.fault]
        except BaseException as error:
            is_wrong, messages, grammar = True, [_broken(error)], ""
        if is_wrong:
            told = messages[0].splitlines()[0][:300]
            raise ConfigError(f"schema: wanted one that can be kept to, came: {told}. Mend it.")
        return grammar

    def _mark(self, token: str) -> str:
        """A mark of calls, as a token where it is one."""
        id = self.tokenizer.tokenizer.token_to_id(token)
        return json.dumps(token) if id is None else f"<[{id}]>"

    @property
    def _is_deepseek(self) -> bool:
        return self.tokenizer.tokenizer.token_to_id(CALL_BEGIN) is not None

    def _wrapping(self) -> tuple[str, str]:
        return (self._mark(CALLS_BEGIN), self._mark(CALLS_END)) if self._is_deepseek else ("", "")

    def _between(self) -> str:
        return "" if self._is_deepseek else '"\\n"'

    def _around(self, name: str) -> tuple[str, str]:
        """What stands before and behind the arguments of a call."""
        if not self._is_deepseek:
            begin, end = self._mark("<tool_call>"), self._mark("</tool_call>")
            said = json.dumps(f'\n{{"name": {json.dumps(name)}, "arguments": ')
            return f"{begin} {said}", f"{json.dumps(chr(125) + chr(10))} {end}"
        begin, sep, end = (self._mark(mark) for mark in (CALL_BEGIN, CALL_SEP, CALL_END))
        if "```json" in self.tokenizer.template:
            said = json.dumps(f"{name}\n```json\n")
            return f'{begin} "function" {sep} {said}', f"{json.dumps(chr(10) + '```')} {end}"
        return f"{begin} {json.dumps(name)} {sep}", end


class Matcher:
    """One reply's way through a grammar."""

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        self._matcher, self._n_vocab, self._panic = matcher, n_vocab, ""
        self._bits = np.zeros((n_vocab + 31) // 32, np.uint32)

    @property
    def fault(self) -> str:
        """Why it cannot go on, if it cannot."""
        return self._panic or (self._matcher.get_error().splitlines()[0] if self._matcher.is_error() else "")

    def allowed(self) -> np.ndarray:
        """Which tokens may come now, bool [V]."""
        try:
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        except BaseException as error:
            self._panic = _broken(error)
        return np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._n_vocab].astype(np.bool_)

    def take(self, token: int) -> bool:
        """A token came. Whether the grammar allows it."""
        try:
            return self._matcher.consume_token(token)
        except BaseException as error:
            self._panic = _broken(error)
            return False


def _broken(error: BaseException) -> str:
    """What llguidance tripped over; of its panics Python makes what is no `Exception`."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return str(error) or "it is too deep"


def _dumped(schema: dict[str, Any]) -> str:
    try:
        return json.dumps(schema)
    except RecursionError:
        raise ConfigError("schema: wanted one that ends, came one that is too deep. Mend it.") from None
