"""Supervised fine-tuning: cross-entropy on the replies of given conversations (R1, sections 2.3.1 and 2.3.3).

Step s takes the next `sequences` of the data, walked through in a new order every epoch; the order is a function of
the epoch's number, so position is state. With `short_first` the walk begins after a time with the shorter ones.

Run alone: `zifio sft recipes/quickstart.toml --stage cold-start steps=20 --out runs/try`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zifio.config import ConfigError
from zifio.data.pack import Sequence
from zifio.data.sources import read_jsonl
from zifio.data.template import ChatTokenizer
from zifio.engine.policy import open_model
from zifio.models.decoder import Decoder
from zifio.seed import nth, stream, stream_seed
from zifio.tasks.catalog import make_task
from zifio.tasks.environment import Interactive
from zifio.train.batch import make_batches
from zifio.train.config import Conversations, DistillStage, SftStage
from zifio.train.loop import StepData, Trainer, check_context
from zifio.train.loss import LossTerms
from zifio.train.stage import Context, conversation_sequence, finish, mean_weighted, messages_sequence, prepare

WALK = "sft/order"
"""The random stream of the order in which given data are walked through."""


def sft(stage: SftStage, context: Context) -> dict[str, float]:
    """Fine-tune the model of `from` on `data` and write it to `model/`; returns the stage's totals."""
    model, tokenizer = open_model(context.model_of(stage.from_))
    return fine_tune(model, tokenizer, conversations(stage, context), stage, context)


def fine_tune(
    model: Decoder,
    tokenizer: ChatTokenizer,
    rows: list[dict[str, Any]],
    stage: SftStage | DistillStage,
    context: Context,
) -> dict[str, float]:
    """The training that `sft` and `distill` share."""
    prepare(model, stage, context)
    sequences = by_length(tokenizer, rows)
    check_context(model, len(sequences[-1].tokens), "a conversation of the data")

    def batches(step: int) -> StepData:
        chosen = choose(sequences, stage, context.seed, step, stage.sequences)
        layout = stage.rows
        metrics = {"epoch": (step + 1) * stage.sequences / len(sequences)}
        packed = make_batches(mean_weighted(chosen), layout.row_tokens, layout.micro_tokens, tokenizer.pad_id)
        return StepData([packed], metrics)

    terms = LossTerms(balance_weight=stage.balance.loss_weight)
    look = context.look(stage, tokenizer, make_task(context.task))
    trainer = Trainer(model, stage, terms, context.folder, look)
    totals = trainer.run(batches)
    finish(context, model, tokenizer)
    return totals


def conversations(stage: Conversations, context: Context) -> list[dict[str, Any]]:
    """What the stage learns from: its data, or documents of the recipe's task with their working."""
    if stage.data is not None:
        return read_conversations(context.data_of(stage.data))
    task = make_task(context.task)
    seed = stream_seed(context.seed, "sft", stage.name)
    problems = [task.problem("train", i, seed) for i in range(stage.documents or 0)]
    if isinstance(task, Interactive):
        return [{"messages": task.demonstration(problem, shows_working=True)} for problem in problems]
    return [{"prompt": one.prompt, "response": task.document(one, shows_working=True)} for one in problems]


def _sequence(tokenizer: ChatTokenizer, row: dict[str, Any]) -> Sequence:
    """A row's conversation: its messages where it has them, as episodes in turns do, or the prompt and the response."""
    if "messages" in row:
        return messages_sequence(tokenizer, row["messages"])
    return conversation_sequence(tokenizer, row["prompt"], row["response"])


def by_length(tokenizer: ChatTokenizer, rows: list[dict[str, Any]]) -> list[Sequence]:
    """The rows' conversations, shortest first."""
    return sorted((_sequence(tokenizer, row) for row in rows), key=lambda sequence: len(sequence.tokens))


def choose(by_length: list[Sequence], stage: Conversations, seed: int, step: int, n: int) -> list[Sequence]:
    """The n that a step learns from: at first draws from the shortest conversations, then a walk through all of them.

    `by_length` is sorted, shortest first. A nano model learns which operand comes next on short sums, or never.
    """
    n_early = round(stage.short_first * stage.steps)
    if step >= n_early:
        first = (step - n_early) * n
        return [nth(by_length, index, seed, WALK, stage.name) for index in range(first, first + n)]
    share = 0.1 + 0.9 * step / n_early
    n_open = max(1, round(share * len(by_length)))
    return stream(seed, "sft/short-first", stage.name, step).choices(by_length[:n_open], k=n)


def read_conversations(path: Path) -> list[dict[str, Any]]:
    """Rows with a `prompt` and a `response`, both strings, or with `messages`.

    Raises ConfigError naming the line that has neither.
    """
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if isinstance(row.get("messages"), list):
            continue
        for key in ("prompt", "response"):
            if not isinstance(row.get(key), str):
                raise ConfigError(f"{path}: row {number}: {key}: wanted a string, came {row.get(key)!r}.")
    if not rows:
        raise ConfigError(f"{path}: wanted conversations to learn from, came an empty file. Sample more, or keep more.")
    return rows
