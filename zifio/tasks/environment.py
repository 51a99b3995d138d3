"""Worlds that answer: what a task is that is played in turns, be it with tools or as a game.

The policy speaks, the environment answers with messages, until it has had enough. Tools and games are the same thing:
a tool's result and an opponent's move are both messages that the policy did not write. Who plays it (an engine token by
token, an endpoint message by message) is no concern of the environment; the loop for message-by-message is
`converse`, the engine's own keeps every token (`engine/dialogue.py`).

Try it alone: `pytest tests/tasks/test_environment.py`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from zifio.seed import stream_seed
from zifio.tasks.task import Problem, Task, Verdict

Message = dict[str, Any]
"""A role and a content, both text; what an assistant calls stands in `tool_calls`, as in OpenAI's chat format. Beside
them the `pictures` of a user's message, and whether a drawing should answer it (`draws`)."""

THINKING_KEYS = ("reasoning_content", "reasoning")
"""Where an assistant's message has its thinking when it stands apart: DeepSeek's and SGLang's name, and vLLM's."""

LEARNER = 0
"""The voice that is trained and measured. Others are played by the same policy, as when it is its own opponent."""


class Call(NamedTuple):
    """A tool call as the policy wrote it."""

    name: str
    arguments: str
    """JSON, or what was meant to be."""
    fault: str = ""
    """Why it could not even be read as a call; empty when it could."""

    def message(self) -> dict[str, Any]:
        """The call as it stands in an assistant's message."""
        return {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy said in one go: a text, calls, or both."""

    text: str
    calls: tuple[Call, ...] = ()
    voice: int = LEARNER

    def message(self) -> Message:
        """The turn as an assistant's message."""
        calls = {"tool_calls": [call.message() for call in self.calls]} if self.calls else {}
        return {"role": "assistant", "content": self.text, **calls}


@dataclass(frozen=True, slots=True)
class Observation:
    """What the environment answers to a turn, and to whom."""

    messages: tuple[Message, ...] = ()
    """Of the roles "tool" and "user". They open the conversation of a voice that has not spoken yet."""
    done: bool = False
    """Whether the episode is over; then nobody reads the messages."""
    voice: int = LEARNER
    """Whose turn it is now; only this voice reads the messages."""
    n_calls: int = 0
    """Tools called by the turn."""
    n_failures: int = 0
    """Those of the calls that failed: the policy was told so and may go on."""


@runtime_checkable
class Environment(Protocol):
    """One episode of a task that is played in turns; made by `Interactive.start` and used once."""

    @property
    def instant(self) -> bool:
        """Whether `step` answers at once. One that does not is stepped beside the others, and may take its time."""
        ...

    def step(self, turn: Turn) -> Observation:
        """The answer to what was said. Whatever the policy may do wrong is told in the observation; an exception means
        that the environment itself is broken, and the episode with it."""
        ...

    def verdict(self, text: str) -> Verdict | None:
        """What the episode came to, also when it was cut short; None leaves it to the task's score of `text`, which
        is all that the learner said in its last turn."""
        ...


@runtime_checkable
class Interactive(Task, Protocol):
    """A task that is played in turns."""

    @property
    def max_turns(self) -> int:
        """An episode is cut after so many turns of the learner."""
        ...

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools on offer as chat templates and endpoints want them (OpenAI's `tools`); empty for a game."""
        ...

    def start(self, problem: Problem, seed: int) -> Environment:
        """A new episode of the problem. What chance decides in it depends on the seed alone."""
        ...

    def demonstration(self, problem: Problem, shows_working: bool) -> list[Message]:
        """A whole conversation to learn from, as `Task.document` is for one reply."""
        ...


def conversation(problem: Problem) -> list[Message]:
    """The messages that put the problem to a policy."""
    message: Message = {"role": "user", "content": problem.prompt}
    if problem.pictures:
        message["pictures"] = list(problem.pictures)
    return [message | ({"draws": True} if problem.draws else {})]


def tools_of(task: Task) -> list[dict[str, Any]]:
    """The tools that a task offers; none unless it is played in turns."""
    return task.tools if isinstance(task, Interactive) else []


def demonstration(task: Task, problem: Problem, shows_working: bool) -> list[Message]:
    """A conversation to learn from: the task's own, or the problem and the document that answers it."""
    if isinstance(task, Interactive):
        return task.demonstration(problem, shows_working)
    return [*conversation(problem), {"role": "assistant", "content": task.document(problem, shows_working)}]


def transcript(messages: list[Message]) -> str:
    """What was said, called and heard, a line each, for people."""
    lines = []
    for message in messages:
        calls = [call["function"] for call in message.get("tool_calls", [])]
        lines += [f"→ {message['content']}" if message["role"] != "assistant" else message["content"]]
        lines += [f"{call['name']}({call['arguments']})" for call in calls]
    return "\n".join(filter(None, lines))


def turn_seed(seed: int, voice: int, number: int) -> int:
    """The random numbers of a voice's turn, for the sample of this seed. The learner's first are the sample's own, as
    in an episode of one turn."""
    return seed if (voice, number) == (LEARNER, 0) else stream_seed(seed, "turn", voice, number)


@dataclass(frozen=True, slots=True)
class Said:
    """One answer of a policy that is asked message by message."""

    turn: Turn
    n_tokens: int
    is_cut: bool = False
    """Whether it hit the limit of tokens."""


Ask = Callable[[list[Message], int, int], Said]
"""(messages so far, seed, most tokens) -> what the policy says."""


@dataclass(slots=True)
class Transcript:
    """An episode as messages."""

    messages: list[Message] = field(default_factory=list)
    """What came after the opening, as the learner saw it."""
    text: str = ""
    """The learner's last turn."""
    n_turns: int = 0
    n_calls: int = 0
    n_failures: int = 0
    n_tokens: int = 0
    """Those of the learner's turns."""
    is_cut: bool = False
    fault: str = ""
    """Why the environment could not go on."""

    def hear(self, seen: Observation) -> None:
        """Note what the environment answered."""
        self.n_calls += seen.n_calls
        self.n_failures += seen.n_failures
        if seen.voice == LEARNER and not seen.done:
            self.messages += seen.messages

    def speak(self, turn: Turn) -> None:
        """Note a turn of the learner."""
        self.messages.append(turn.message())
        self.n_turns += 1


def converse(
    environment: Environment, messages: list[Message], ask: Ask, max_turns: int, max_tokens: int, seed: int
) -> Transcript:
    """Play one episode with a policy that takes messages; `max_tokens` are those of all turns of a voice together.

    An environment that raises ends the episode with a fault. Raises what `ask` raises.
    """
    out = Transcript()
    histories: dict[int, list[Message]] = {LEARNER: list(messages)}
    left: dict[int, int] = {}
    numbers: dict[int, int] = {}
    voice = LEARNER
    while True:
        number, budget = numbers.get(voice, 0), left.get(voice, max_tokens)
        said = ask(histories[voice], turn_seed(seed, voice, number), budget)
        numbers[voice], left[voice] = number + 1, budget - said.n_tokens
        turn = Turn(said.turn.text, said.turn.calls, voice)
        histories[voice].append(turn.message())
        if voice == LEARNER:
            out.speak(turn)
            out.text, out.n_tokens = turn.text, out.n_tokens + said.n_tokens
        if said.is_cut and voice == LEARNER:
            out.is_cut = True
            return out
        try:
            seen = environment.step(turn)
        except Exception as error:  # the boundary around what may break: no worse than a check that does
            out.fault = repr(error)
            return out
        out.hear(seen)
        if seen.done:
            return out
        voice = seen.voice
        histories.setdefault(voice, []).extend(seen.messages)
        if (voice == LEARNER and out.n_turns >= max_turns) or left.get(voice, max_tokens) <= 0:
            out.is_cut = True
            return out
