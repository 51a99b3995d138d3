"""Talk to a model in the terminal, its thinking shown apart from its answer.

On a terminal it asks until an empty line. With `--prompt`, or lines piped in, the answers go to stdout and the thinking
to stderr, so that `zifio chat MODEL --prompt '(3+7)%10' 2>/dev/null` is the answer alone. Every question is a
conversation of its own: these models learn from single questions. With `--tools calculator` the model may call, and
its calls and their results are shown with its thinking.

Try it alone: `zifio chat runs/quickstart/r1/model --prompt '(3+7+2+9)%10'`
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from zifio.config import ConfigError, Sampling, build
from zifio.gguf import is_gguf
from zifio.log import say
from zifio.models.hub import resolve
from zifio.seed import stream_seed
from zifio.tasks.environment import transcript
from zifio.tasks.episode import Start
from zifio.tasks.form import split_thinking
from zifio.tasks.tools import PLAIN, Workshop

if TYPE_CHECKING:
    from zifio.engine.policy import LocalPolicy
    from zifio.models.device import Device

LONGEST = 1024
"""Tokens of a reply, at most, where the command does not say and the model's context allows."""

MOST_CALLS = 8
"""Of tools for one question, and turns."""


class Turn(NamedTuple):
    """A question with the reply taken apart."""

    question: str
    thinking: str
    answer: str
    tokens: int
    finish: str


def chat(
    model: Path,
    prompt: str | None = None,
    temperature: float = 0.6,
    max_new_tokens: int | None = None,
    as_json: bool = False,
    seed: int = 0,
    device: "Device" = "cpu",
    tools: Sequence[str] = (),
) -> Any:
    """Answer `prompt`, or the lines of stdin, or whoever sits at the terminal; the model may call `tools`.

    What belongs on stdout comes back: the answers as text, or as JSON with thinking, tokens and finish; from a terminal
    nothing. A GPU answers in bf16. Raises ConfigError when there is no model or no such device, or a question does not
    fit.
    """
    model = resolve(model)
    given = {"temperature": temperature, **({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens})}
    sampling = build(Sampling, given, "command line")
    needed = [model] if is_gguf(model) else [model / "config.json", model / "tokenizer.json"]
    if absent := [path for path in needed if not path.is_file()]:  # before torch, which takes seconds to import
        raise ConfigError(
            f"{absent[0]}: wanted a file of a model, came none. Name a model's folder or a GGUF file, or train one: "
            "make quickstart."
        )
    from zifio.engine.policy import load_policy

    asked = _Asked(load_policy(model, device=device, precision="bf16"), sampling, max_new_tokens is None, tools)
    if prompt is None and sys.stdin.isatty():
        return _converse(asked, seed)
    questions = [prompt] if prompt is not None else [line.strip() for line in sys.stdin if line.strip()]
    turns: list[Turn] = []
    for place, question in enumerate(questions):
        turns.append(asked.ask(question, stream_seed(seed, "chat", place)))
        if not as_json:
            _show_thinking(turns[-1])
    if as_json:
        records = [turn._asdict() for turn in turns]
        return records[0] if prompt is not None else records
    return "\n".join(turn.answer for turn in turns)


def split_reply(text: str) -> tuple[str, str]:
    """(thinking, answer) of a reply: what stands in `<think>`, and the rest without its `<answer>` tags.

    A reply cut before `</think>` is all thinking; one without tags is all answer, for models that do not think aloud.
    """
    thinking, answer, _ = split_thinking(text)
    return thinking.strip(), re.sub(r"</?answer>", "", answer).strip()


class _Asked(NamedTuple):
    """Who answers, and how."""

    policy: "LocalPolicy"
    sampling: Sampling
    as_long_as_fits: bool
    tools: Sequence[str]

    def ask(self, question: str, seed: int) -> Turn:
        """One question as one conversation."""
        conversation = [{"role": "user", "content": question}]
        offered = [PLAIN[name]() for name in self.tools]
        schemas, sampling = [tool.schema for tool in offered], self.sampling
        if self.as_long_as_fits:
            left = self.policy.model.config.max_position_embeddings - len(self.policy.prompt(conversation, schemas))
            sampling = sampling.model_copy(update={"max_new_tokens": max(1, min(LONGEST, left))})
        if not offered:
            [[reply]] = self.policy.complete([conversation], 1, sampling, [[seed]])
            return Turn(question, *split_reply(reply.text), len(reply.tokens), reply.finish)
        start = Start(conversation, Workshop(offered, MOST_CALLS), seed)
        [[reply]] = self.policy.converse([[start]], sampling, MOST_CALLS, schemas)
        if reply.fault:
            raise ConfigError(f"tools: wanted {', '.join(self.tools)} to work here, came {reply.fault}.")
        thinking, answer = split_reply(reply.text)
        thinking = "\n".join(filter(None, [transcript(reply.messages[:-1]), thinking]))
        return Turn(question, thinking, answer, reply.n_sampled, reply.finish)


def _converse(asked: _Asked, seed: int) -> None:
    """Ask and answer until an empty line."""
    say(Text("a question a line; an empty line ends", style="dim"))
    for place, question in enumerate(_questions()):
        try:
            turn = asked.ask(question, stream_seed(seed, "chat", place))
        except ConfigError as error:
            say(Text(str(error), style="yellow"))
            continue
        _show_thinking(turn)
        say(Text(turn.answer, style="bold"))


def _questions() -> Iterator[str]:
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            return
        if not question:
            return
        yield question


def _show_thinking(turn: Turn) -> None:
    if turn.thinking:
        say(Text(turn.thinking, style="dim italic"))
    if turn.finish == "length":
        say(Text(f"cut after {turn.tokens} tokens; allow more with --max-new-tokens", style="yellow"))
