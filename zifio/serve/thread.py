"""One engine in a thread of its own. Requests and cancellations reach it through a queue; what its steps did is told.

The thread does nothing but step. Tokens of a stream that follow each other quickly are told together, a whole answer
when it is whole: a nano model draws faster than anybody reads. When a step fails, everybody under way is told so, and
the next request gets a new engine.

Try it alone: `pytest tests/serve/test_worker.py`
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from zifio.config import ConfigError
from zifio.engine.engine import Engine
from zifio.engine.guide import Top
from zifio.engine.marks import Marks
from zifio.engine.pictures import Prompt, drawing, looked_at, painted_urls
from zifio.engine.policy import LocalPolicy
from zifio.engine.request import Completion, Event, Load, Request, Stats
from zifio.log import say
from zifio.models.janus import Janus, Picture
from zifio.pictures import pixels_of
from zifio.serve.news import About, Fault, Note, Sight, State, Tell
from zifio.serve.steer import Steering

if TYPE_CHECKING:
    from zifio.serve.grammar import Grammars

NOTES_PER_S = 1500
"""How often all streams together are told of new tokens: a single one at each token, 64 of them every 43 ms."""
_STATES_PER_S = 20
"""How often the server is told how its engine is, while that computes."""


@dataclass
class _Part:
    """What is to be told of a reply."""

    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    tops: list[list[Top]] = field(default_factory=list)
    done: Completion | None = None
    fault: Fault | None = None


@dataclass
class _Asked:
    """A request in the engine."""

    key: int
    request: Request
    is_stream: bool
    ids: list[int] = field(default_factory=list)
    left: int = 0
    told_s: float = -1.0
    parts: dict[int, _Part] = field(default_factory=dict)
    is_due: bool = False


class EngineThread:
    """An engine and its thread; `tell` is called in it."""

    def __init__(self, policy: LocalPolicy, name: str, tell: Tell) -> None:
        self.policy, self._tell = policy, tell
        self._context = self._longest = policy.model.config.max_position_embeddings
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._asked: dict[int, _Asked] = {}
        self._where: dict[int, tuple[_Asked, int]] = {}
        self._untold: dict[int, _Asked] = {}
        self._stats = Stats()
        self._state_s = -1.0  # when the server was last told how the engine is
        self.engine: Engine | None = self._make()
        """None behind a failure, until somebody asks."""
        self._thread = threading.Thread(target=self._run, name=f"engine of {name}", daemon=True)
        self._thread.start()

    @property
    def about(self) -> About:
        """What must be known to ask."""
        n_vocab = self.policy.model.config.vocab_size or 0
        return About(self._context, n_vocab, self._longest, sight_of(self.policy))

    def ask(self, key: int, request: Request, is_stream: bool) -> None:
        """Queue a request under a number."""
        for guide in request.guides:
            if isinstance(guide, Steering):
                guide.equip(lambda grammar: self._grammars.matcher(grammar), self.policy.tokenizer.decode)
        self._jobs.put(lambda: self._take(_Asked(key, request, is_stream)))

    def cancel(self, key: int) -> None:
        """Take a request out of the engine."""
        self._jobs.put(lambda: self._drop(key))

    def stop(self) -> None:
        """End the thread; what is under way stays unanswered."""
        self._jobs.put(None)
        self._thread.join(timeout=30)

    @cached_property
    def _grammars(self) -> Grammars:
        from zifio.serve.grammar import Grammars

        return Grammars(self.policy.tokenizer)

    def _make(self) -> Engine:
        old = self.policy.engine
        decode = self.policy.tokenizer.decode
        engine = Engine(old.model, old.eos_ids, old.max_rows, old.settings, decode, old.precision)
        self._longest = engine.reserve(engine.max_rows, self._context)
        return engine

    # In the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                if not self._heed():
                    return
                if self.engine is not None:
                    self._hear(self.engine.step())
            except BaseException as error:  # the boundary: a guide or the memory failed; the server goes on
                self._fail(f"the engine failed: {type(error).__name__}")

    def _heed(self) -> bool:
        """Do what has been asked for, and wait for something when there is nothing to compute. Whether to go on."""
        while True:
            try:
                job = self._jobs.get(block=self.engine is None or not self.engine.has_work)
            except queue.Empty:
                return True
            if job is None:
                return False
            job()

    def _take(self, asked: _Asked) -> None:
        self._asked[asked.key] = asked
        if self.engine is None:
            self.engine = self._make()
        request, held = self._seen(asked.request)
        asked.ids = self.engine.submit(request)
        del held  # the engine has them, until the replies have ended
        asked.left = len(asked.ids)
        self._where.update((id, (asked, place)) for place, id in enumerate(asked.ids))

    def _seen(self, request: Request) -> tuple[Request, list[Picture]]:
        """The request as the engine wants it, and its pictures, to be held until the engine has it."""
        held: list[Picture] = []
        if request.pictures:
            prompt = Prompt(request.prompt, [pixels_of(picture) for picture in request.pictures])
            tokens, held = looked_at(self.policy.model, prompt)
            request = replace(request, prompt=tokens, pictures=())
        if request.drawing is not None:
            scale = request.drawing.scale
            request = replace(request, drawing=drawing(request.prompt, self.policy.tokenizer, scale))
        return request, held

    def _drop(self, key: int) -> None:
        asked = self._asked.pop(key, None)
        self._untold.pop(key, None)
        for id in asked.ids if asked is not None else ():
            if self._where.pop(id, None) is not None and self.engine is not None:
                self.engine.cancel(id)

    def _hear(self, events: list[Event]) -> None:
        """Note what a step did, and tell what is due."""
        for event in events:
            if (known := self._where.get(event.id)) is not None:
                self._note(*known, event)
        engine, now, news = self.engine, time.monotonic(), []
        if engine is None:
            return
        pace_s = min(len(self._where), engine.max_rows) / NOTES_PER_S
        for asked in list(self._untold.values()):
            if asked.is_due or now - asked.told_s >= pace_s:
                for place, part in asked.parts.items():
                    event = Event(asked.ids[place], part.tokens, part.logps, part.done, part.tops)
                    news.append((asked.key, Note(place, event, part.fault)))
                asked.parts, asked.told_s, asked.is_due = {}, now, False
                del self._untold[asked.key]
        is_time = now - self._state_s >= 1 / _STATES_PER_S or not engine.has_work
        if news or is_time:
            self._tell(news, self._state(engine, now) if is_time else None)

    def _note(self, asked: _Asked, place: int, event: Event) -> None:
        if event.completion is not None:
            self._note_end(asked, place, event, event.completion)
        elif asked.is_stream:
            part = asked.parts.get(place)
            if part is None:
                part = asked.parts[place] = _Part()
                self._untold[asked.key] = asked
            part.tokens += event.tokens
            part.logps += event.logps
            part.tops += event.tops

    def _note_end(self, asked: _Asked, place: int, event: Event, done: Completion) -> None:
        """A reply has ended: what is still to be told of it, of a whole answer all that there is."""
        part = asked.parts.setdefault(place, _Part())
        new = event if asked.is_stream else done
        part.tokens += new.tokens
        part.logps += new.logps
        part.tops += new.tops
        text = None
        if asked.request.drawing is not None and len(done.tokens) == asked.request.sampling.max_new_tokens:
            (text,) = painted_urls(self.policy.model, [done.tokens])
        part.done = Completion([], [], done.finish, done.reason, text, None, done.prompt_scores, done.n_cached)
        guides = asked.request.guides
        if guides and isinstance(guide := guides[place], Steering):
            part.fault = guide.refusal
        del self._where[event.id]
        asked.left -= 1
        asked.is_due = asked.is_stream or not asked.left
        if asked.is_due:
            self._untold[asked.key] = asked
        if not asked.left:
            del self._asked[asked.key]

    def _state(self, engine: Engine, now: float) -> State:
        self._state_s = now
        return State(engine.load(), _sum(self._stats, engine.stats))

    def _fail(self, message: str) -> None:
        say(f"{self._thread.name}: {message}; the next request gets a new one")
        fault = Fault(500, "engine_failed", message)
        news = [(key, Note(0, None, fault)) for key in self._asked]
        if self.engine is not None:
            self._stats = _sum(self._stats, self.engine.stats)
        self.engine = None  # before there is another: its memory is wanted
        for known in (self._asked, self._where, self._untold):
            known.clear()
        self._tell(news, State(Load(0, 0, 0.0), replace(self._stats)))


def sight_of(policy: LocalPolicy) -> Sight | None:
    """What a model that reads and draws is like; None where it does not, or its tokenizer has no marks for it."""
    try:
        Marks.of(policy.tokenizer)
    except ConfigError:
        return None
    if not isinstance(model := policy.model, Janus):
        return None
    vision, vq = model.shape.vision_config, model.shape.vq_config
    return Sight(vision.image_size, vision.num_image_tokens, model.first_patch, vq.image_size, vq.n_tokens)


def _sum(one: Stats, two: Stats) -> Stats:
    """What two engines have done."""
    return Stats(*(a + b for a, b in zip(vars(one).values(), vars(two).values(), strict=True)))
