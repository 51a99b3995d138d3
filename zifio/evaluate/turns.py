"""An endpoint on a task that is played in turns, with tools or as a game.

It plays message by message (`tasks.environment.converse`), several episodes at once. A local model plays token
by token (`evaluate.local.LocalInTurns`).

Try it: `zifio eval http://127.0.0.1:8000/v1 --model NAME --task tic_tac_toe --problems 8`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from zifio.data.calls import read_calls
from zifio.evaluate.endpoint import Endpoint
from zifio.evaluate.replies import Ask, Failed, Said, scored_text, wants_shape
from zifio.tasks import environment
from zifio.tasks.environment import Call, Environment, Interactive, Message, Transcript, Turn, converse
from zifio.tasks.episode import started, told
from zifio.tasks.form import split_thinking


def wired(messages: Sequence[Message]) -> list[Message]:
    """Messages as servers want them: calls and their results tied by ids, and no thinking of earlier turns, which
    DeepSeek's and other models are not to be shown again."""
    out: list[Message] = []
    waiting: list[str] = []
    n_calls = 0
    for message in messages:
        if message["role"] == "assistant":
            message = {**message, "content": split_thinking(message["content"]).rest}
            calls = message.get("tool_calls", [])
            waiting = [f"call_{n_calls + place}" for place in range(len(calls))]
            n_calls += len(calls)
            if calls:
                message["tool_calls"] = [{"id": id, **call} for id, call in zip(waiting, calls, strict=True)]
        elif message["role"] == "tool":
            message = {**message, "tool_call_id": waiting.pop(0)}
        out.append(message)
    return out


class _NoReply(Exception):
    """The endpoint did not answer one of the turns."""


@dataclass
class _Episode:
    """One episode with an endpoint: asks it turn by turn and adds up what that took."""

    endpoint: Endpoint
    task: Interactive
    shaped: bool
    replies: list[Said] = field(default_factory=list)

    def speak(self, messages: list[Message], seed: int, most: int) -> environment.Said:
        """One turn. Raises _NoReply; ConfigError when the server refuses us altogether."""
        sampling = self.endpoint.sampling.model_copy(update={"max_new_tokens": most})
        said = self.endpoint.ask(wired(messages), sampling, seed, self.task.tools)
        if isinstance(said, str):
            raise _NoReply(said)
        self.replies.append(said)
        text, written = (said.text, []) if said.calls else read_calls(said.text)  # a server may leave them in the text
        turn = Turn(scored_text(replace(said, text=text), self.shaped), said.calls or tuple(Call(*c) for c in written))
        return environment.Said(turn, said.n_tokens or 0, said.finish == "length")

    def whole(self, seed: int, opening: list[Message], seen: Transcript, where: Environment) -> Said:
        """The episode as one reply; tokens, seconds and cost are those of all its requests."""
        last = replace(self.replies[-1], text=seen.text, thinking=None) if self.replies else Said("")
        sums = {
            name: self._sum(name) for name in ("n_tokens", "n_prompt_tokens", "n_thinking_tokens", "seconds", "cost")
        }
        return replace(
            last,
            **sums,
            logp=None,
            seed=None if last.seed is None else seed,
            finish="length" if seen.is_cut else "stop",
            calls=(),
            environment=where,
            fault=seen.fault,
            extra={**(last.extra or {}), **told(opening, seen)},
        )

    def _sum(self, name: str) -> Any:
        values = [getattr(said, name) for said in self.replies]
        return None if None in values else sum(values)


class EndpointInTurns:
    """Implements `evaluate.replies.Subject`: an endpoint on a task that answers back.

    A limit of tokens is that of all turns of an episode, as far as the endpoint says how many it drew.
    """

    budget_by = ""
    has_policy_logps = False

    def __init__(self, endpoint: Endpoint, task: Interactive) -> None:
        self.endpoint, self.task = endpoint, task

    def identity(self) -> dict[str, Any]:
        """The endpoint's."""
        return self.endpoint.identity()

    def close(self) -> None:
        """End all requests that are under way."""
        self.endpoint.close()

    def answer(self, asks: list[Ask]) -> Iterator[list[tuple[Ask, Said] | Failed]]:
        """Episodes as they end. Raises ConfigError when the server refuses us altogether."""
        jobs = [partial(self._episode, ask) for ask in asks]
        return self.endpoint.answered(asks, jobs)

    def _episode(self, ask: Ask) -> Said | str:
        """The whole episode, or why there is none."""
        opening = self.endpoint.frame.messages(ask.problem)
        where = started(self.task, ask.problem, ask.seed)
        episode = _Episode(self.endpoint, self.task, wants_shape(self.task, ask.problem))
        most = self.endpoint.sampling.max_new_tokens
        try:
            seen = converse(where, opening, episode.speak, self.task.max_turns, most, ask.seed)
        except _NoReply as error:
            return str(error)
        return episode.whole(ask.seed, opening, seen, where)
