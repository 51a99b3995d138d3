"""Distillation, in five ways: by a teacher's text, by its logits, or by RL that its text helps.

    traces       cross-entropy on the teacher's replies (R1, section 2.4); the two may differ in everything but the text
    forward_kl   KL(teacher || student) of every next token, on given text
    reverse_kl   KL(student || teacher), on replies that the student has just drawn
    gkd          a generalised Jensen-Shannon divergence, on a mixture of both (Agarwal et al., arXiv:2306.13649)
    hints        hints-then-RL (`hints.py`)

A step of the middle three is one forward pass of the teacher over the step's text; its distributions live for one
micro-batch. Replies that the student draws are text like any other: no gradient goes through the drawing, none of them
needs a verdict. The ledger counts the teacher's pass apart (`teacher_flops`) and within the stage's own work.

Run alone: `zifio distill recipes/quickstart.toml --stage student steps=50 --out runs/try`
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from zifio.checkpoint import model_digest
from zifio.config import ConfigError, is_url
from zifio.data.pack import Sequence
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import load_tokenizer
from zifio.engine.policy import LocalPolicy, open_model, sampling_flops
from zifio.models.decoder import Decoder
from zifio.models.device import find_device, sampling_precision
from zifio.models.lora import folded
from zifio.seed import stream_seed
from zifio.tasks.catalog import make_task
from zifio.tasks.environment import tools_of
from zifio.tasks.episode import Episode, conversation, play
from zifio.tasks.task import Task
from zifio.train.batch import make_batches
from zifio.train.config import METHODS, DistillStage
from zifio.train.hints import hints_then_rl
from zifio.train.loop import StepData, Trainer, check_context
from zifio.train.loss import LossTerms
from zifio.train.sft import by_length, choose, fine_tune, read_conversations
from zifio.train.stage import Context, finish, mean_weighted, new_model, prepare
from zifio.train.teacher import LocalTeacher, RemoteTeacher, check_tokenizers


def distill(stage: DistillStage, context: Context) -> dict[str, float]:
    """Train the student in the way that `method` says and write it to `model/`; returns the stage's totals.

    Raises ConfigError when the data are not the teacher's, or when logits are to be compared between different
    tokenizers.
    """
    teacher = None if is_url(stage.teacher) else context.model_of(stage.teacher)
    rows = [] if stage.data is None else read_conversations(context.data_of(stage.data))
    if stage.method not in METHODS:
        assert stage.data is not None and teacher is not None, "the config's validator wants traces"
        _check_provenance(rows, teacher, context.data_of(stage.data))
    model, tokenizer = _student(stage, context, teacher)
    if stage.method == "traces":
        return fine_tune(model, tokenizer, rows, stage, context)
    if stage.method == "hints":
        return hints_then_rl(model, tokenizer, rows, stage, context)
    with closing(_open_teacher(stage, teacher, tokenizer)) as open_teacher:
        return _match(model, tokenizer, open_teacher, rows, stage, context)


def _student(stage: DistillStage, context: Context, teacher: Path | None) -> tuple[Decoder, ChatTokenizer]:
    """The base, or a new model that has the teacher's tokenizer."""
    if stage.from_ is not None:
        return open_model(context.model_of(stage.from_))
    assert stage.model is not None and teacher is not None, "the config's validator wants one of the two"
    tokenizer = load_tokenizer(teacher)
    return new_model(stage.model, tokenizer, stream_seed(context.seed, "distill", stage.name)), tokenizer


def _check_provenance(rows: list[dict[str, Any]], teacher: Path, path: Path) -> None:
    """Every row says which weights wrote it; they must be the teacher's, or the result would be misattributed."""
    wanted = model_digest(teacher)
    for number, row in enumerate(rows, 1):
        if row.get("model") != wanted:
            raise ConfigError(
                f"{path}: row {number}: model: wanted traces of the teacher {teacher} (weights {wanted}), came "
                f"{row.get('model')!r}. Sample from this teacher, or use an `sft` stage for data of other origin."
            )


def _open_teacher(stage: DistillStage, folder: Path | None, tokenizer: ChatTokenizer) -> LocalTeacher | RemoteTeacher:
    if folder is None:
        return RemoteTeacher(stage.teacher, stage.teacher_model, stage.top_k, tokenizer, stage.endpoint)
    model, theirs = open_model(folder)
    check_tokenizers(stage.name, theirs, tokenizer)
    model.requires_grad_(False).to(find_device(stage.device, stage.name))
    return LocalTeacher(model, stage.top_k, stage.temperature)


def _match(
    model: Decoder,
    tokenizer: ChatTokenizer,
    teacher: LocalTeacher | RemoteTeacher,
    rows: list[dict[str, Any]],
    stage: DistillStage,
    context: Context,
) -> dict[str, float]:
    """The training that the methods on logits share."""
    prepare(model, stage, context)
    source = Mixture(stage, context, model, tokenizer, teacher, rows)
    terms = LossTerms(
        temperature=stage.temperature, balance_weight=stage.balance.loss_weight, teacher=teacher, beta=stage.beta
    )
    look = context.look(stage, tokenizer, make_task(context.task))
    trainer = Trainer(model, stage, terms, context.folder, look, ("divergence", "pass_at_1"))
    totals = trainer.run(source.step)
    finish(context, model, tokenizer)
    return totals


class Mixture:
    """Where a step's text comes from: given conversations, the student's own replies, or some of each.

    Agarwal et al. toss a coin for every batch; here every step has its exact share of both, which has the same mean and
    less noise.
    """

    def __init__(
        self,
        stage: DistillStage,
        context: Context,
        model: Decoder,
        tokenizer: ChatTokenizer,
        teacher: LocalTeacher | RemoteTeacher,
        rows: list[dict[str, Any]],
    ) -> None:
        """Raises ConfigError when a given conversation is longer than the student's context."""
        self.stage, self.tokenizer, self.teacher = stage, tokenizer, teacher
        self.seed = context.seed
        self.given = by_length(tokenizer, rows)
        check_context(model, len(self.given[-1].tokens) if self.given else 0, "a conversation of the data")
        self.task: Task = make_task(stage.task or context.task)
        self.tools = tools_of(self.task)
        self.n_own = round(stage.student_share * stage.sequences)
        self.policy = LocalPolicy(model, tokenizer, precision=sampling_precision(stage.precision, model.device))
        self.policy.longest = stage.rows.row_tokens

    def step(self, step: int) -> StepData:
        """A pure function of the model and the step. Raises ConfigError for text longer than the teacher's context."""
        stage, began = self.stage, time.perf_counter()
        n_given, metrics, flops = stage.sequences - self.n_own, {}, 0.0
        chosen = choose(self.given, stage, self.seed, step, n_given) if n_given else []
        if n_given:
            metrics["epoch"] = (step + 1) * n_given / len(self.given)
        if self.n_own:
            episodes = self._draw(step)
            chosen = chosen + [self._sequence(episode) for episode in episodes]
            flops += sampling_flops(self.policy, self.task, [[episode] for episode in episodes])
            metrics |= _replies(episodes)
        seconds = time.perf_counter() - began
        if isinstance(self.teacher, LocalTeacher):
            longest = max(len(sequence.tokens) for sequence in chosen)
            check_context(self.teacher.model, longest, "a conversation that the teacher is to read")
        layout = stage.rows
        batches = make_batches(_followed(chosen), layout.row_tokens, layout.micro_tokens, self.tokenizer.pad_id)
        of_teacher = sum(map(self.teacher.flops, batches))
        return StepData([batches], metrics, {"sample_s": seconds}, flops + of_teacher, of_teacher)

    def _draw(self, step: int) -> list[Episode]:
        """The student's replies of a step, one to each problem. One of no tokens at all has nothing to learn from."""
        seed = stream_seed(self.seed, "distill/problems", self.stage.name)
        indices = range(step * self.n_own, (step + 1) * self.n_own)
        problems = [self.task.problem("train", index, seed) for index in indices]
        with folded(self.policy.model):
            groups = play(self.policy, self.task, problems, 1, self.stage.sampling, seed, "step", step)
        self.policy.engine.release()
        return [episode for group in groups for episode in group if episode.reply.n_sampled]

    def _sequence(self, episode: Episode) -> Sequence:
        """An episode with weight 1 on every token that the student said."""
        prompt, reply = self.policy.prompt(conversation(episode.problem), self.tools), episode.reply
        return Sequence(prompt + reply.tokens, [0.0] * len(prompt) + [float(own) for own in reply.own])


def _followed(sequences: list[Sequence]) -> list[Sequence]:
    """The same with their weights on the divergence instead of the cross-entropy, as a mean over all tokens."""
    moved = [replace(s, weight=[0.0] * len(s.tokens), columns={"teacher_weight": s.weight}) for s in sequences]
    return mean_weighted(moved, "teacher_weight")


def _replies(episodes: list[Episode]) -> dict[str, float]:
    """What to report of the student's replies; they are judged for the record only."""
    checked = [episode for episode in episodes if episode.verdict.outcome != "error"]
    out: dict[str, float] = {"n_verifier_errors": len(episodes) - len(checked)}
    if checked:
        out["pass_at_1"] = sum(e.verdict.outcome == "right" for e in checked) / len(checked)
    if episodes:
        out["completions/mean_length"] = sum(e.reply.n_sampled for e in episodes) / len(episodes)
        out["completions/clipped_ratio"] = sum(e.reply.finish == "length" for e in episodes) / len(episodes)
    return out
