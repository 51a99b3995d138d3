"""Hints-then-RL: GRPO on the teacher's problems, with the beginning of its trace given, less and less of it.

A base that is never right gives RL nothing to amplify. From nine tenths of the way it is right now and then, and each
step it has to come a little further by itself, until nothing is given (reverse curriculum: R3, arXiv:2402.05808). What
is given counts as part of the reply for the verifier and has no weight in the loss: the student learns from what it
sampled. Hints pass as text, so the teacher may have any tokenizer.

Run alone: `zifio distill recipes/distill-splits.toml --stage by-hints steps=10 --out runs/try`
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from zifio.config import ConfigError
from zifio.data.template import ChatTokenizer
from zifio.models.decoder import Decoder
from zifio.tasks.catalog import make_task
from zifio.tasks.environment import Interactive, Message
from zifio.tasks.task import Problem
from zifio.train.config import DistillStage
from zifio.train.loop import StepData, Trainer, check_context
from zifio.train.rl import Rollouts, loss_terms
from zifio.train.stage import Context, conversation_sequence, finish, prepare


def hints_then_rl(
    model: Decoder, tokenizer: ChatTokenizer, rows: list[dict[str, Any]], stage: DistillStage, context: Context
) -> dict[str, float]:
    """Train the student on the problems of the teacher's traces; returns the stage's totals.

    Raises ConfigError for traces in turns or without the right answer, and when the verifier breaks too often.
    """
    task = make_task(stage.task or context.task)
    if isinstance(task, Interactive):
        raise ConfigError(
            f'{stage.name}: method="hints": wanted a task of single questions, came {task.name}, which is played in '
            'turns. Use method = "traces".'
        )
    prepare(model, stage, context)
    hints = Hints(stage, tokenizer)
    problems = [hints.learn(number, row) for number, row in enumerate(rows, 1)]
    check_context(model, hints.longest + 1, "a prompt with its hint")
    inner = stage.as_rl()
    rollouts = Rollouts(inner, context.seed, task, model, tokenizer, given=list(dict.fromkeys(problems)))
    rollouts.policy.opening = hints.opening

    def step(number: int) -> StepData:
        hints.share = hint_share(stage, number)
        data = rollouts.step(number)
        data.metrics["hints/share"] = hints.share
        return data

    shown = ("hints/share", "reward", "rewards/accuracy/mean", "completions/mean_length")
    look = context.look(stage, tokenizer, make_task(context.task))
    trainer = Trainer(model, inner, loss_terms(inner), context.folder, look, shown, rollouts)
    totals = trainer.run(step)
    finish(context, model, tokenizer)
    return totals


def hint_share(stage: DistillStage, step: int) -> float:
    """Share of the trace that is given at a step."""
    return stage.hints.start * max(0.0, 1 - step / (stage.hints.until * stage.steps))


@dataclass
class Hints:
    """What stands at the beginning of each reply, from the teacher's trace of that problem."""

    stage: DistillStage
    tokenizer: ChatTokenizer
    share: float = 0.0
    longest: int = 0
    """Tokens of the longest prompt with its whole trace."""
    traces: dict[str, list[int]] = field(default_factory=dict)
    """By prompt: the tokens of the first trace of it, without its last."""

    def learn(self, number: int, row: dict[str, Any]) -> Problem:
        """The problem of a row, whose trace is kept. Raises ConfigError when the row lacks what it takes."""
        for key in ("problem", "prompt", "response", "gold"):
            if not isinstance(row.get(key), str):
                raise ConfigError(
                    f"{self.stage.name}: data: row {number}: {key}: wanted text, as a `sample` stage of single "
                    f"questions writes it, came {row.get(key)!r}. Sample the traces anew."
                )
        sequence = conversation_sequence(self.tokenizer, row["prompt"], row["response"])
        trace = [token for token, weight in zip(sequence.tokens, sequence.weight, strict=True) if weight]
        self.traces.setdefault(row["prompt"], trace[:-1])
        self.longest = max(self.longest, len(sequence.tokens))
        return Problem(row["problem"], row["prompt"], row["gold"])

    def opening(self, conversation: list[Message]) -> list[int]:
        """The share of the trace that a reply to this conversation begins with; never the whole trace."""
        trace = self.traces[conversation[-1]["content"]]
        return trace[: math.floor(self.share * len(trace))]
