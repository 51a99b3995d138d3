"""Episodes in turns, token by token: what a policy sampled is kept as the tokens it sampled, for ever.

A turn ends with the end token. The environment's answer is encoded by itself (`ChatTokenizer.encode_between`) and put
behind it, and the whole is the prompt of the next turn; no turn is decoded and encoded again, so the trainer sees the
sampler's own history. All episodes share the engine's queue: one that waits for a slow tool holds up nobody, and the
pages of its past stay known as a prefix while they are not needed otherwise.

What a turn draws depends on its seed alone (`environment.turn_seed`), not on what is played beside it.

Try it alone: `pytest tests/engine/test_dialogue.py`
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from zifio.config import ConfigError, Sampling
from zifio.data.calls import read_calls
from zifio.data.template import ChatTokenizer
from zifio.engine.engine import Engine
from zifio.engine.request import Completion, Request
from zifio.tasks.environment import LEARNER, Call, Observation, Turn, turn_seed
from zifio.tasks.episode import Reply, Start

Who = TypeVar("Who", bound=Hashable)

WORKERS = 8
"""Slow environments that are stepped at once."""
PATIENCE_S = 120.0
"""A step that takes longer counts as broken; tools have stricter limits of their own."""


@dataclass(eq=False)
class _Voice:
    """The history of one who speaks: its prompt and all that came after it."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    experts: list[np.ndarray] = field(default_factory=list)
    n_turns: int = 0
    left: int = 0
    """Tokens that it may still sample."""

    def say(self, completion: Completion) -> None:
        """Append what was sampled, with the experts of all tokens that were computed for the first time."""
        self.tokens += completion.tokens
        self.sampled += [True] * len(completion.tokens)
        self.logps += completion.logps
        self.left -= len(completion.tokens)
        self.n_turns += 1
        if completion.experts_NLA is not None:
            known = sum(map(len, self.experts))
            self.experts.append(completion.experts_NLA.numpy()[known:])

    def hear(self, tokens: list[int]) -> None:
        """Append what others said."""
        self.tokens += tokens
        self.sampled += [False] * len(tokens)
        self.logps += [0.0] * len(tokens)


@dataclass(eq=False)
class _Talk:
    """An episode under way."""

    start: Start
    voices: dict[int, _Voice]
    speaking: int = LEARNER
    text: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    n_calls: int = 0
    n_failures: int = 0
    finish: Literal["stop", "length"] | None = None
    fault: str = ""

    def reply(self) -> Reply:
        """The episode as the learner lived it."""
        voice = self.voices[LEARNER]
        n = len(voice.tokens) - (voice.sampled[::-1].index(True) if any(voice.sampled) else 0)
        return Reply(
            voice.tokens[:n],
            self.text,
            voice.logps[:n],
            self.finish or "length",
            np.concatenate(voice.experts) if voice.experts else None,
            voice.sampled[:n],
            self.messages,
            voice.n_turns,
            self.n_calls,
            self.n_failures,
            self.fault,
        )


class Dialogue:
    """Plays many episodes at once on one engine."""

    def __init__(
        self, engine: Engine, tokenizer: ChatTokenizer, sampling: Sampling, max_turns: int, longest: int
    ) -> None:
        """`longest` bounds the tokens of a whole episode, prompt and answers of the environment included."""
        self.engine, self.tokenizer, self.sampling = engine, tokenizer, sampling
        self.max_turns, self.longest = max_turns, longest
        self.errands: Errands[_Talk] = Errands()
        self._speaking: dict[int, _Talk] = {}  # by the id of the engine's reply

    def play(self, starts_P_G: list[list[Start]], prompts: list[list[int]]) -> list[list[Reply]]:
        """A reply for every start; `prompts` are the groups' tokens before the first turn.

        Raises ConfigError when a prompt leaves no room for a reply.
        """
        talks_P_G = [
            [_Talk(start, {LEARNER: self._voice(prompt)}) for start in group]
            for group, prompt in zip(starts_P_G, prompts, strict=True)
        ]
        self.longest = self.engine.reserve(sum(map(len, starts_P_G)), self.longest)
        longest_prompt = max((len(p) for p, group in zip(prompts, starts_P_G, strict=True) if group), default=0)
        if longest_prompt >= self.longest:
            raise ConfigError(
                f"the longest prompt has {longest_prompt} tokens, and an episode may have {self.longest}. Shorten it, "
                "or raise max_position_embeddings (in RL also rows.row_tokens) or the engine's memory_gb."
            )
        for group in talks_P_G:
            if group:
                self._speak(group)
        try:
            while self._speaking or self.errands.pending:
                for talk, outcome in self.errands.finished(wait=not self._speaking):
                    self._heed(talk, outcome)
                for event in self.engine.step():
                    if event.completion is not None:
                        self._spoken(self._speaking.pop(event.id), event.completion)
        finally:  # whoever interrupts may play again
            for id in self._speaking:
                self.engine.cancel(id)
            self.engine.step()
        return [[talk.reply() for talk in group] for group in talks_P_G]

    def _voice(self, prompt: list[int]) -> _Voice:
        return _Voice(prompt, left=self.sampling.max_new_tokens)

    def _speak(self, talks: list[_Talk]) -> None:
        """Queue the next turn of episodes that have the same history so far."""
        voices = [talk.voices[talk.speaking] for talk in talks]
        history = voices[0].prompt + voices[0].tokens
        room = min(voices[0].left, self.longest - len(history))
        sampling = self.sampling.model_copy(update={"max_new_tokens": room})
        seeds = [turn_seed(t.start.seed, t.speaking, v.n_turns) for t, v in zip(talks, voices, strict=True)]
        ids = self.engine.submit(Request(history, sampling, tuple(seeds)))
        self._speaking.update(zip(ids, talks, strict=True))

    def _spoken(self, talk: _Talk, completion: Completion) -> None:
        """Take a turn that has ended to the environment."""
        if completion.finish == "refused":
            raise ConfigError(completion.reason)
        voice = talk.voices[talk.speaking]
        voice.say(completion)
        text = completion.text
        if text is None:
            has_end = bool(completion.tokens) and completion.tokens[-1] in self.engine.eos_ids
            text = self.tokenizer.decode(completion.tokens[:-1] if has_end else completion.tokens)
        said, calls = read_calls(text)
        turn = Turn(said, tuple(Call(*call) for call in calls), talk.speaking)
        if talk.speaking == LEARNER:
            talk.text = text
            talk.messages.append(turn.message())
            if completion.finish == "length":
                talk.finish = "length"
                return
        if talk.start.environment.instant:
            self._heed(talk, outcome_of(lambda: talk.start.environment.step(turn)))
        else:
            self.errands.send(talk, lambda: talk.start.environment.step(turn))

    def _heed(self, talk: _Talk, outcome: Observation | Exception) -> None:
        """Go on as the environment says; an environment that broke ends its episode and no other."""
        if isinstance(outcome, Exception):
            talk.fault = repr(outcome)
            return
        talk.n_calls += outcome.n_calls
        talk.n_failures += outcome.n_failures
        if outcome.done:
            talk.finish = "stop"
            return
        talk.speaking = outcome.voice
        messages = list(outcome.messages)
        if talk.speaking == LEARNER:
            talk.messages += messages
            if talk.voices[LEARNER].n_turns >= self.max_turns:
                talk.finish = "length"
                return
        voice = talk.voices.get(talk.speaking)
        if voice is None:
            tokens = self.tokenizer.encode_chat(messages, generation_prompt=True)[0]
            voice = talk.voices[talk.speaking] = self._voice(tokens)
        else:
            voice.hear(self._between(voice, messages))
        if min(voice.left, self.longest - len(voice.prompt) - len(voice.tokens)) < 1:
            talk.finish = "length"
            return
        self._speak([talk])

    def _between(self, voice: _Voice, messages: list[dict[str, Any]]) -> list[int]:
        """What stands between two turns; with the end token, where a stop string ended the turn before."""
        is_ended = voice.tokens[-1] in self.engine.eos_ids
        return ([] if is_ended else [self.tokenizer.eos_id]) + self.tokenizer.encode_between(messages)


class Errands(Generic[Who]):
    """Steps of slow environments, each in a thread of its own, a few at a time; one that hangs is left behind."""

    def __init__(self, workers: int = WORKERS, patience_s: float = PATIENCE_S) -> None:
        self.workers, self.patience_s = workers, patience_s
        self._waiting: deque[tuple[Who, Callable[[], Observation]]] = deque()
        self._out: dict[Who, float] = {}
        self._back: queue.SimpleQueue[tuple[Who, Observation | Exception]] = queue.SimpleQueue()

    @property
    def pending(self) -> bool:
        """Whether anything is still to come back."""
        return bool(self._out or self._waiting)

    def send(self, talk: Who, errand: Callable[[], Observation]) -> None:
        """Do it as soon as a worker is free."""
        self._waiting.append((talk, errand))
        self._dispatch()

    def finished(self, wait: bool) -> list[tuple[Who, Observation | Exception]]:
        """What has come back; with `wait`, at least one if anything is out. Who is overdue comes back broken."""
        back: list[tuple[Who, Observation | Exception]] = []
        while self._out and not (back and self._back.empty()):
            left = min(self._out.values()) - time.monotonic()
            try:
                talk, outcome = self._back.get(timeout=max(0.0, left) if wait and not back else 0.0)
            except queue.Empty:
                break
            if self._out.pop(talk, None) is not None:  # else it was given up
                back.append((talk, outcome))
        for talk in [talk for talk, deadline in self._out.items() if deadline <= time.monotonic()]:
            del self._out[talk]
            back.append((talk, TimeoutError(f"no answer within {self.patience_s:g} s")))
        self._dispatch()
        return back

    def _dispatch(self) -> None:
        while self._waiting and len(self._out) < self.workers:
            talk, errand = self._waiting.popleft()
            self._out[talk] = time.monotonic() + self.patience_s
            threading.Thread(target=self._run, args=(talk, errand), daemon=True).start()

    def _run(self, talk: Who, errand: Callable[[], Observation]) -> None:
        self._back.put((talk, outcome_of(errand)))


def outcome_of(step: Callable[[], Observation]) -> Observation | Exception:
    """What a step gave or raised."""
    try:
        seen = step()
    except Exception as error:  # the boundary: a broken environment ends its own episode only
        return error
    return seen if isinstance(seen, Observation) else TypeError(f"wanted an observation, came {seen!r}")
