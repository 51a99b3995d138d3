"""The tokenizer stage: train a tokenizer on the task's own text, or on a file, and write it as a folder."""

from __future__ import annotations

import string
from pathlib import Path

from zifio.checkpoint import with_manifest
from zifio.data.sources import read_texts
from zifio.data.tokenizer import save_tokenizer, train_tokenizer
from zifio.seed import stream_seed
from zifio.tasks.catalog import make_task
from zifio.tasks.environment import Interactive, Message, tools_of
from zifio.tasks.task import Task
from zifio.train.config import TokenizerStage
from zifio.train.stage import Context

_DOCUMENTS = 2048
_ERRORS = string.ascii_lowercase + " :,.'+-*/%()"


def tokenizer(stage: TokenizerStage, context: Context) -> dict[str, float]:
    """Train the tokenizer and write it to `model/`; it costs no FLOPs worth counting."""
    config = stage.tokenizer
    task = make_task(context.task)
    texts = read_texts(config.text) if config.text else _task_texts(task, context.seed)
    trained = train_tokenizer(config, texts, with_tools=bool(tools_of(task)))

    def write(beside: Path) -> None:
        save_tokenizer(trained, beside)

    with_manifest(context.folder / "model", write)
    return {"flops": 0.0, "tokens": 0, "seconds": 0.0, "vocab_size": trained.get_vocab_size()}


def _task_texts(task: Task, seed: int) -> list[str]:
    """Questions and worked replies of the task, which hold every character that it uses.

    Of a task in turns all that is said, and where tools answer, characters enough for their errors and for sums.
    """
    seed = stream_seed(seed, "tokenizer")
    problems = [task.problem("train", index, seed) for index in range(_DOCUMENTS)]
    if not isinstance(task, Interactive):
        return [problem.prompt + task.document(problem, shows_working=True) for problem in problems]
    said = ["".join(map(_said, task.demonstration(problem, shows_working=True))) for problem in problems]
    return [*said, *([_ERRORS] if tools_of(task) else [])]


def _said(message: Message) -> str:
    """A message's text and calls."""
    calls = [call["function"] for call in message.get("tool_calls", [])]
    return message["content"] + "".join(call["name"] + call["arguments"] for call in calls)
