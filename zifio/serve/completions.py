"""Text completions: prompts as text or as tokens, echoed and scored where wanted.

Try it alone: `pytest tests/serve/test_completions_api.py`
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from zifio.engine.guide import Top
from zifio.engine.request import Completion, Event, Request
from zifio.loopback import to_json
from zifio.serve.answer import BLANK, KEEP_ALIVE, events, sent
from zifio.serve.asked import Asked, logit_bias, n_replies, room, sampling_of, seeds
from zifio.serve.chat import DONE, usage
from zifio.serve.model import Served
from zifio.serve.prompt import is_sound
from zifio.serve.refused import Refused
from zifio.serve.request import CompletionRequest
from zifio.serve.settings import ServeConfig, Thinks
from zifio.serve.split import Stops
from zifio.serve.steer import Steering
from zifio.serve.text import TokenText
from zifio.serve.worker import Ticket

_HOLES = (
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
)
"""How models that fill in are asked: before the prefix, before the suffix, before what is wanted."""


def prompts(served: Served, body: CompletionRequest) -> list[list[int]]:
    """The tokens of each prompt. Raises Refused or ConfigError."""
    given = body.prompt
    if isinstance(given, str):
        given = [given]
    if given and isinstance(given[0], int):
        given = [given]  # type: ignore[list-item]
    if not given:
        raise Refused(400, "prompt: wanted at least one, came none.", "prompt")
    out = []
    for prompt in given:
        if isinstance(prompt, str):
            text = _around_hole(served, prompt, body.suffix) if body.suffix else prompt
            if not is_sound(text):
                raise Refused(400, "prompt: wanted sound Unicode, came half of a surrogate pair.", "prompt")
            out.append(served.tokenizer.encode(text) or [served.tokenizer.bos_id])
        else:
            tokens: list[int] = prompt  # type: ignore[assignment]
            if tokens and max(tokens) >= served.n_vocab:
                raise Refused(400, f"prompt: wanted tokens below {served.n_vocab}, came {max(tokens)}.", "prompt")
            out.append(list(tokens))
    return out


def _around_hole(served: Served, prompt: str, suffix: str) -> str:
    for begin, hole, end in _HOLES:
        if all(served.tokenizer.tokenizer.token_to_id(mark) is not None for mark in (begin, hole, end)):
            return f"{begin}{prompt}{hole}{suffix}{end}"
    raise Refused(400, "suffix: wanted a model with tokens for filling in, came one without.", "suffix")


def ask_completion(served: Served, body: CompletionRequest, config: ServeConfig, _: Thinks) -> list[Asked]:
    """A request for each prompt."""
    n = n_replies(body, config)
    if body.best_of is not None and body.best_of != n:
        raise Refused(400, "best_of: wanted the same as n. Rank the replies yourself, by logprobs.", "best_of")
    each = prompts(served, body)
    if len(each) * n > config.max_n * 32:
        raise Refused(400, f"prompt: wanted at most {config.max_n * 32 // n} of them, came {len(each)}.", "prompt")
    static, penalties = logit_bias(served, body), (body.presence_penalty or 0.0, body.frequency_penalty or 0.0)
    asked = []
    for tokens in each:
        n_new = room(served, len(tokens), 16 if body.max_tokens is None else max(body.max_tokens, 1), config)
        steering = [
            Steering(
                served.n_vocab, served.tokenizer.eos_id, "content", static=static, presence=penalties[0],
                frequency=penalties[1],
            )
            for _ in range(n if static or any(penalties) else 0)
        ]  # fmt: skip
        scores = bool(body.echo) and body.logprobs is not None
        request = Request(
            tokens, sampling_of(body, n_new, body.stops()), seeds(body, n), tuple(steering), body.logprobs or 0, scores
        )
        asked.append(Asked(request, []))
    return asked


class Plain:
    """One reply of a completion."""

    def __init__(self, served: Served, body: CompletionRequest, asked: Asked) -> None:
        self._served, self._body, self._asked = served, body, asked
        self._text = TokenText(served.tokenizer.decode)
        self._stops = Stops(body.stops())
        self._offset = 0
        self._is_begun = False
        self._held: list[Event] = []
        self.is_dry = body.max_tokens == 0
        self.n_tokens = self.n_cached = 0
        self.finish: str | None = None

    def feed(self, event: Event) -> tuple[str, dict[str, Any] | None]:
        """The text and the log-probs that an event adds."""
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        done = event.completion
        self._held.append(event)
        if self._asked.request.score_prompt and done is None:
            return "", None  # the prompt's log-probs come with the end
        text, end = "", self._served.tokenizer.eos_id
        if not self._is_begun and self._body.echo:
            text += self._echo(done, told)
        self._is_begun = True
        for one in self._held if not self.is_dry else ():
            self.n_tokens += len(one.tokens)
            tops = one.tops or [[] for _ in one.tokens]
            drawn = [new for new in zip(one.tokens, one.logps, tops, strict=True) if new[0] != end]
            if self._body.logprobs is not None:
                for new in drawn:
                    self._tell(told, *new)
            text += self._stops.feed(self._text.feed(*(token for token, _, _ in drawn))) if drawn else ""
        self._held.clear()
        if done is not None:
            if not self.is_dry:
                text += self._stops.feed(self._text.end()) + self._stops.end()
            self.n_cached, self.finish = done.n_cached, "length" if self.is_dry else done.finish
        return text, told if self._body.logprobs is not None else None

    def _echo(self, done: Completion | None, told: dict[str, list[Any]]) -> str:
        prompt = self._asked.request.prompt
        scores = None if done is None else done.prompt_scores
        if scores is not None:
            for token, logp, tops in zip(prompt, scores.logps, scores.tops, strict=True):
                self._tell(told, token, logp, tops)
        return self._served.tokenizer.tokenizer.decode(prompt, skip_special_tokens=False)

    def _tell(self, told: dict[str, list[Any]], token: int, logp: float | None, tops: list[Top]) -> None:
        spelled = self._spelled(token)
        told["tokens"].append(spelled)
        told["token_logprobs"].append(logp)
        told["top_logprobs"].append({self._spelled(other): value for other, value in reversed(tops)} or None)
        told["text_offset"].append(self._offset)
        self._offset += len(spelled)

    def _spelled(self, token: int) -> str:
        spelled = self._served.spelled
        return spelled[token].decode(errors="replace") if token < len(spelled) else ""


class CompletionAnswer:
    """One completion request on its way out."""

    def __init__(
        self, served: Served, body: CompletionRequest, asked: list[Asked], tickets: list[Ticket], config: ServeConfig
    ) -> None:
        self.body, self.asked, self.tickets, self.config = body, asked, tickets, config
        self.plains = [[Plain(served, body, one) for _ in one.request.seeds] for one in asked]
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        self._head |= {"object": "text_completion", "system_fingerprint": "zifio"}

    async def whole(self) -> AsyncGenerator[bytes, None]:
        """One body."""
        choices: dict[int, dict[str, Any]] = {}
        async for item in self._news():
            if item is None:
                yield BLANK
                continue
            index, text, told, finish = item
            one = choices.setdefault(index, _choice(index, "", None, None))
            one["text"] += text
            one["finish_reason"] = finish
            if told is not None:
                one["logprobs"] = told if one["logprobs"] is None else _joined(one["logprobs"], told)
        yield to_json({**self._head, "choices": [choices[index] for index in sorted(choices)], "usage": self.usage()})

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Chunks as server-sent events; of several prompts one after the other."""
        async for item in self._news():
            if item is None:
                yield KEEP_ALIVE
            elif item[1] or item[3] or (item[2] and item[2]["tokens"]):
                yield sent({**self._head, "choices": [_choice(*item)]})
        if self.body.wants_usage():
            yield sent({**self._head, "choices": [], "usage": self.usage()})
        yield DONE

    def failed(self, refused: Refused) -> bytes:
        """An error instead of a chunk."""
        return sent(refused.body())

    def usage(self) -> dict[str, Any]:
        """What it took."""
        n_cached = sum(min(plain.n_cached for plain in group) for group in self.plains)
        n_prompt = sum(one.n_prompt for one in self.asked)
        return usage(n_prompt, [plain.n_tokens for group in self.plains for plain in group], n_cached)

    async def _news(self) -> AsyncGenerator[tuple[int, str, dict[str, Any] | None, str | None] | None, None]:
        for number, ticket in enumerate(self.tickets):
            async with aclosing(events(ticket, self.config)) as news:
                async for item in news:
                    if item is None:
                        yield None
                        continue
                    place, event = item
                    plain = self.plains[number][place]
                    text, told = plain.feed(event)
                    yield number * len(self.plains[number]) + place, text, told, plain.finish


def _choice(index: int, text: str, told: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": told, "finish_reason": finish}


def _joined(one: dict[str, list[Any]], two: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: one[name] + two[name] for name in one}
