"""Pretraining: next-token prediction with MTP and expert balance, on documents of the task (DeepSeek-V3, section 4).

A document is a conversation of the task: a question and a reply, which shows the working in a share `p_cot` of them.
Step s takes documents s*n to s*n + n - 1 of an endless list, so position is state.

Run alone: `zifio pretrain recipes/quickstart.toml --stage base steps=50 --out runs/try`
"""

from __future__ import annotations

from zifio.data.pack import Sequence
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import load_tokenizer
from zifio.seed import stream_seed
from zifio.tasks.catalog import TaskConfig, make_task
from zifio.tasks.environment import demonstration
from zifio.tasks.task import Task, shows_working
from zifio.train.batch import make_batches
from zifio.train.config import PretrainStage
from zifio.train.curriculum import full_value, task_with
from zifio.train.loop import StepData, Trainer, check_context
from zifio.train.loss import LossTerms
from zifio.train.stage import Context, finish, mean_weighted, messages_sequence, new_model, prepare


def pretrain(stage: PretrainStage, context: Context) -> dict[str, float]:
    """Train a new model and write it to `model/`; returns the stage's totals."""
    tokenizer = load_tokenizer(context.model_of(stage.tokenizer))
    model = new_model(stage.model, tokenizer, stream_seed(context.seed, "pretrain", stage.name))
    prepare(model, stage, context)
    task = stage.task or context.task
    text_seed = stream_seed(context.seed, "pretrain/text", stage.name)

    def batches(step: int) -> StepData:
        sequences = documents(stage, task, tokenizer, text_seed, step)
        check_context(model, max(len(s.tokens) for s in sequences), f"a document of {task.name}")
        rows = stage.rows
        return StepData([make_batches(mean_weighted(sequences), rows.row_tokens, rows.micro_tokens, tokenizer.pad_id)])

    terms = LossTerms(mtp_weight=stage.mtp_weight, balance_weight=stage.balance.loss_weight)
    look = context.look(stage, tokenizer, make_task(context.task))
    trainer = Trainer(model, stage, terms, context.folder, look)
    totals = trainer.run(batches)
    finish(context, model, tokenizer)
    return totals


def documents(stage: PretrainStage, task: TaskConfig, tokenizer: ChatTokenizer, seed: int, step: int) -> list[Sequence]:
    """The conversations that a step reads. Raises ConfigError as `task_at` does."""
    now, out = task_at(stage, task, step), []
    for index in range(step * stage.documents, (step + 1) * stage.documents):
        messages = demonstration(now, now.problem("train", index, seed), shows_working(index, seed, stage.p_cot))
        out.append(messages_sequence(tokenizer, messages))
        if stage.loss_on == "all":
            out[-1].weight[1:] = [1.0] * (len(out[-1].tokens) - 1)  # nothing stands before the first
    return out


def task_at(stage: PretrainStage, task: TaskConfig, step: int) -> Task:
    """The task that documents of this step come from: easier ones first where there is a curriculum.

    Raises ConfigError when the task has no such whole-number option, or starts above its full value.
    """
    if stage.curriculum is None:
        return make_task(task)
    option, start = stage.curriculum.option, stage.curriculum.start
    full = full_value(task, option, start, stage.name)
    share = min(1.0, step / (stage.curriculum.until * stage.steps))
    return task_with(task, option, start + round(share * (full - start)), stage.name)
