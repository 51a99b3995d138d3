"""The rehearsal of a recipe, in a process of its own: a few steps of every kind of work that it will do, timed.

Models have the recipe's shapes and random weights, or are the checkpoints that it starts from. Sequences are the task's
own documents, rewards are made up, so that every part of a step is done. Memory is what this process has held, stage
after stage in the recipe's order, as a run's would.

On one thread seconds are the processor's, so that others at work beside do not count; on more they are the clock's.

It is started by `zifio plan RECIPE.toml`; alone: `python -m zifio.forecast.rehearse REQUEST.json RESULT.json`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from zifio.checkpoint import save_checkpoint
from zifio.config import ConfigError, Sampling, build
from zifio.data import tokenizer as tokenizers
from zifio.data.pack import Sequence as Row
from zifio.data.template import ChatTokenizer
from zifio.engine.policy import LocalPolicy, open_model
from zifio.kernels import operators as kernels
from zifio.log import peak_rss_bytes
from zifio.models.decoder import Decoder
from zifio.models.lora import folded
from zifio.plan.stages import Drawing, Lengths, Training
from zifio.recipe import Recipe, Run, beginning, let_go
from zifio.seed import stream_seed
from zifio.tasks.catalog import make_task
from zifio.tasks.environment import conversation, demonstration, tools_of
from zifio.tasks.episode import Episode, Reply
from zifio.tasks.runtime import judge_all
from zifio.tasks.task import Problem, Task, Verdict
from zifio.train.batch import Batch, make_batches
from zifio.train.config import Conversations, DistillStage, ModelStage, PretrainStage, RlStage, TokenizerStage
from zifio.train.loop import StepData, Trainer
from zifio.train.loss import LossTerms
from zifio.train.pretrain import documents
from zifio.train.rl import Rollouts, loss_terms
from zifio.train.sft import choose
from zifio.train.stage import Context, finish, mean_weighted, messages_sequence, new_model, prepare
from zifio.train.vocabulary import tokenizer as make_tokenizer

_PROBES = 8
"""Steps of a stage, evenly over it, whose tokens are counted."""
_POOL = 512
"""Conversations that stand for a stage's data."""
_DRAWN = 32
"""Problems that are drawn from, at least."""
_PAIRS = 6
"""Most steps of each kind that are timed."""


class Clock:
    """Seconds that are this process's own, as far as that can be told."""

    def __init__(self) -> None:
        self.is_cpu = torch.get_num_threads() == 1
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def now(self) -> float:
        """A moment."""
        return time.process_time() if self.is_cpu else time.perf_counter()

    def busy(self) -> float:
        """Processor seconds per second and thread since the beginning: far below 1 where others had the machine."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return cpu / (wall * torch.get_num_threads())


@dataclass
class Rehearsal:
    """What was measured, by stage."""

    training: dict[str, dict[str, float]] = field(default_factory=dict)
    step_tokens: dict[str, float] = field(default_factory=dict)
    drawing: dict[str, dict[str, float]] = field(default_factory=dict)
    lengths: dict[str, dict[str, float]] = field(default_factory=dict)
    once_s: dict[str, float] = field(default_factory=dict)
    """Loading and saving a model."""
    checkpoint_s: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, float] = field(default_factory=dict)
    shapes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of stages that train: the model's config, its weights that train, and the tokens of its largest pass."""


class Rehearser:
    """Goes through a recipe once, in a folder that is thrown away after."""

    def __init__(self, recipe: Recipe, folder: Path, seconds: float) -> None:
        """`seconds` is about what all of it may take."""
        kernels.native(torch.zeros(1))  # compiles them on a machine that has not
        self.recipe, self.run, self.clock = recipe, Run(recipe, folder), Clock()
        trained = {self._key(stage) for stage in recipe.stage if isinstance(stage, ModelStage)}
        self.each_s = seconds / max(1, 2 * len(trained))
        self.found = Rehearsal()
        self.training: dict[str, tuple[Training, float]] = {}
        self.drawing: dict[str, Drawing] = {}
        self.once: dict[str, tuple[float, float]] = {}
        self.held: set[str] = set()

    def rehearse(self) -> Rehearsal:
        """All stages in order."""
        for stage in self.recipe.stage:
            began = self.clock.now()
            if isinstance(stage, TokenizerStage):
                make_tokenizer(stage, self._context(stage.name))
                self.found.once_s[stage.name] = self.clock.now() - began
            elif isinstance(stage, ModelStage):
                self._train(stage)
            elif stage.kind != "mark" and not getattr(stage, "is_remote", False):
                self._draw_only(stage)
            self.found.peak_bytes[stage.name] = peak_rss_bytes()
            let_go()  # as a run does
        return self.found

    def _context(self, name: str) -> Context:
        folder = self.run.folder / name
        folder.mkdir(parents=True, exist_ok=True)

        def no_look(*_: Any) -> Any:
            return None

        return Context(folder, self.recipe.seed, self.recipe.task, self.run.model_of, self.run.data_of, no_look)

    def _key(self, stage: Any) -> str:
        """Names what a stage's speed depends on; stages of equal keys are rehearsed once."""
        begun = beginning(self.recipe, stage.name)
        shape = begun if isinstance(begun, str) else begun.model_dump_json()
        rows, kind = stage.rows.model_dump_json(), stage.optim.kind
        lora = getattr(stage, "lora", None)
        mtp = isinstance(stage, PretrainStage) and stage.mtp_weight > 0
        return f"{isinstance(stage, RlStage)} {shape} {rows} {kind} {lora} {mtp} {stage.precision} {stage.device}"

    # Training ----------------------------------------------------------------------------------------------

    def _train(self, stage: ModelStage) -> None:
        key, context = self._key(stage), self._context(stage.name)
        task = make_task(getattr(stage, "task", None) or self.recipe.task)
        began = self.clock.now()
        model, tokenizer = self._open(stage, context)
        opened = self.clock.now() - began
        prepare(model, stage, context)
        self.found.shapes[stage.name] = {
            "config": model.config.model_dump(mode="json"),
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        sampling_task = make_task(self.recipe.task) if not isinstance(stage, RlStage) else task
        self._lengths(stage.name, sampling_task, tokenizer, stage.sampling)
        if isinstance(stage, RlStage):
            plain = {"process": None, "reward_model": None, "guard": None, "accuracy_weight": 1.0}
            stage = stage.model_copy(update=plain)  # so that made-up verdicts are a signal
            batches, policy, terms, prepare_s = self._rollouts(stage, task, model, tokenizer, context.folder)
        else:
            batches, prepare_s = self._documents(stage, task, tokenizer)
            policy, terms = None, LossTerms(
                mtp_weight=stage.mtp_weight if isinstance(stage, PretrainStage) else 0.0,
                balance_weight=stage.balance.loss_weight,
            )  # fmt: skip
        longest = max(batch.tokens_BT.numel() for step in batches for batch in step)
        self.found.shapes[stage.name]["pass_tokens"] = longest
        counted = batches[:1] if isinstance(stage, RlStage) else batches
        self.found.step_tokens[stage.name] = sum(batch.n_tokens for step in counted for batch in step) / len(counted)
        if key not in self.training:
            self.training[key] = self._steps(stage, model, terms, context, max(batches, key=len))
        known, checkpoint_s = self.training[key]
        self.found.training[stage.name] = asdict(replace(known, fixed_s=known.fixed_s + prepare_s))
        draws = policy is not None or (isinstance(stage, DistillStage) and stage.draws) or stage.held_out.every
        group, between = getattr(stage, "group", stage.held_out.n), None
        if draws:
            policy = policy or LocalPolicy(model, tokenizer)
            asked = stage.prompts if isinstance(stage, RlStage) else stage.held_out.problems
            problems = self._problems(sampling_task, asked, group, policy)
            self._pace(stage.name, policy, sampling_task, stage.sampling, group, problems)
            most = round(self.found.lengths[stage.name]["worked"])
            between = partial(self._draw_between, policy, sampling_task, problems, group, most)
        if key not in self.held:
            self.held.add(key)
            self._held(stage, model, terms, context, batches, known, between if isinstance(stage, RlStage) else None)
        began = self.clock.now()
        finish(context, model, tokenizer)
        if key not in self.once:
            self.once[key] = (opened + self.clock.now() - began, checkpoint_s)
        self.found.once_s[stage.name], self.found.checkpoint_s[stage.name] = self.once[key]

    def _open(self, stage: Any, context: Context) -> tuple[Decoder, ChatTokenizer]:
        """The model that a stage begins with."""
        if getattr(stage, "from_", None) is not None:
            return open_model(context.model_of(stage.from_))
        tokenizer = tokenizers.load_tokenizer(
            context.model_of(stage.tokenizer if isinstance(stage, PretrainStage) else stage.teacher)
        )
        return new_model(stage.model, tokenizer, stream_seed(context.seed, "rehearsal", stage.name)), tokenizer

    def _documents(self, stage: ModelStage, task: Task, tokenizer: ChatTokenizer) -> tuple[list[list[Batch]], float]:
        """(micro-batches of steps that read documents, a few of them over the stage; seconds to prepare a step)."""
        pool: list[Row] = []
        if not isinstance(stage, PretrainStage):
            source = self.recipe.named(getattr(stage, "data", None) or "")
            drawn_from = getattr(source, "task", None)
            of = task if drawn_from is None else make_task(drawn_from)
            problems = [of.problem("train", index, self.recipe.seed) for index in range(_POOL)]
            pool = sorted((_document(of, one, tokenizer, True) for one in problems), key=lambda row: len(row.tokens))
        every: list[list[Batch]] = []
        began = self.clock.now()
        for place in range(_PROBES):
            step = place * stage.steps // _PROBES
            if isinstance(stage, PretrainStage):
                rows = documents(stage, stage.task or self.recipe.task, tokenizer, self.recipe.seed, step)
            elif isinstance(stage, Conversations):
                rows = choose(pool, stage, self.recipe.seed, step, stage.sequences)
            else:
                n = getattr(stage, "sequences", 0) or 2 * getattr(stage, "pairs", 32)
                rows = [pool[(step * n + index) % _POOL] for index in range(n)]
            layout = stage.rows
            every.append(make_batches(mean_weighted(rows), layout.row_tokens, layout.micro_tokens, tokenizer.pad_id))
        return every, (self.clock.now() - began) / _PROBES

    def _rollouts(
        self, stage: RlStage, task: Task, model: Decoder, tokenizer: ChatTokenizer, folder: Path
    ) -> tuple[list[list[Batch]], LocalPolicy, LossTerms, float]:
        """(micro-batches of a step in which every group has a signal and of some in which fewer have one, the policy
        that would draw them, the loss, seconds to prepare a step)."""
        rollouts = Rollouts(stage, self.recipe.seed, task, model, tokenizer, {}, folder)
        episodes_P_G = []
        for index in range(stage.prompts):
            problem = task.problem("train", index, self.recipe.seed)
            prompt = rollouts.policy.prompt(conversation(problem), rollouts.tools)
            row = _document(task, problem, tokenizer, True)
            tokens, own = row.tokens[len(prompt) :], [weight > 0 for weight in row.weight[len(prompt) :]]
            room = stage.rows.row_tokens - len(prompt)
            reply = Reply(tokens[:room], "", [-1.0] * len(tokens[:room]), sampled=own[:room])
            verdicts = [Verdict("right" if g % 2 else "wrong", float(g % 2), {"format": 1.0}) for g in range(2)]
            episodes_P_G.append([Episode(problem, reply, verdicts[g % 2]) for g in range(stage.group)])
        steps, shares = [], (4, 3, 2, 1)  # quarters of the groups that have a signal
        began = self.clock.now()
        for share in shares:
            updates, _, _ = rollouts.weighed(episodes_P_G[: max(1, share * stage.prompts // 4)])
            steps.append([batch for update in updates for batch in update])
        return steps, rollouts.policy, loss_terms(stage), (self.clock.now() - began) / len(shares)

    def _steps(
        self, stage: ModelStage, model: Decoder, terms: LossTerms, context: Context, step: list[Batch]
    ) -> tuple[Training, float]:
        """(what steps take, seconds of a checkpoint).

        A cold step, then in turns steps of one micro-batch and of several, as often as there is time; medians count.
        Where one takes long there is one more step, of two, for memory is held longest in the second; what a step costs
        besides is then taken for small.
        """
        stamps: list[float] = []
        tokens: list[int] = []
        several, is_slow = 0, False

        def source(number: int) -> StepData:
            nonlocal several, is_slow
            stamps.append(self.clock.now())
            spent = stamps[-1] - stamps[min(1, number)]
            if number == 1:
                is_slow = stamps[1] - stamps[0] > self.each_s / 2
            if number == 2:
                room = (self.each_s - spent) / max(spent, 1e-6)
                several = max(2, min(int(room / 3), len(step)))
            if number >= 2 and (is_slow or (number % 2 == 1 and spent > self.each_s)):
                return StepData([], is_last=True)
            n = (min(2, len(step)) if is_slow else 1) if number % 2 or not number else several
            part = [step[place % len(step)] for place in range(n)]
            tokens.append(sum(batch.n_tokens for batch in part))
            return StepData([part])

        short = stage.model_copy(update={"steps": 2 + 2 * _PAIRS, "checkpoint_every": 10**9})
        trainer = Trainer(model, short, terms, context.folder)
        trainer.run(source)
        stamps.append(self.clock.now())
        save_checkpoint(context.folder / "checkpoints", 1, model, trainer.optimizer.state(), {})
        checkpoint_s = self.clock.now() - stamps[-1]
        lasted = [after - before for before, after in pairwise(stamps)][: len(tokens)]
        one, many = (median(lasted[first::2]) if lasted[first::2] else 0.0 for first in (1, 2))
        if is_slow:
            return Training(0.0, one / tokens[1]), checkpoint_s
        token_s = max(many - one, 0.1 * one) / (tokens[2] - tokens[1])
        return Training(max(one - token_s * tokens[1], 0.0), token_s), checkpoint_s

    def _held(
        self,
        stage: ModelStage,
        model: Decoder,
        terms: LossTerms,
        context: Context,
        steps: list[list[Batch]],
        known: Training,
        draw: Callable[[int], object] | None,
    ) -> None:
        """Steps of all sizes, checkpoints, between them draws where the stage draws, for the memory that such a
        changing load comes to hold; where there is time."""
        began = self.clock.now()
        lasts = known.fixed_s + known.token_s * sum(batch.n_tokens for batch in max(steps, key=len))

        def source(number: int) -> StepData:
            if self.clock.now() - began + lasts > self.each_s:
                return StepData([], is_last=True)
            if draw is not None:
                draw(number)
            return StepData([steps[number % len(steps)]])

        if lasts < self.each_s / 4:
            short = stage.model_copy(update={"steps": 2 * _PROBES, "checkpoint_every": 2})
            Trainer(model, short, terms, context.folder / "held").run(source)

    # Drawing -----------------------------------------------------------------------------------------------

    def _draw_only(self, stage: Any) -> None:
        """A stage that draws with models that are there."""
        task = make_task(stage.task or self.recipe.task)
        for name in stage.models if stage.kind == "eval" else [stage.from_]:
            began = self.clock.now()
            model, tokenizer = open_model(self.run.model_of(name))
            opened = self.clock.now() - began
            self.found.once_s[stage.name] = self.found.once_s.get(stage.name, 0.0) + opened
            self._lengths(stage.name, task, tokenizer, stage.sampling)
            policy = LocalPolicy(model, tokenizer, None, stage.engine)
            problems = self._problems(task, stage.problems, stage.n, policy)
            self._pace(f"{stage.name}/{name}", policy, task, stage.sampling, stage.n, problems)

    def _lengths(self, name: str, task: Task, tokenizer: ChatTokenizer, sampling: Sampling) -> None:
        problems = [task.problem("held-out", index, self.recipe.seed) for index in range(16)]
        means = []
        for worked in (False, True):
            try:
                rows = [_document(task, problem, tokenizer, worked) for problem in problems]
            except (ConfigError, NotImplementedError):
                rows = []
            if not rows:
                means.append(sampling.max_new_tokens / 2)
                continue
            means.append(sum(sum(weight > 0 for weight in row.weight) for row in rows) / len(rows))
        tools = tools_of(task)
        prompts = [tokenizer.encode_chat(conversation(p), generation_prompt=True, tools=tools)[0] for p in problems]
        mean_prompt = sum(map(len, prompts)) / len(prompts)
        self.found.lengths[name] = asdict(Lengths(mean_prompt, means[0], means[1], sampling.max_new_tokens))

    def _problems(self, task: Task, asked: int, group: int, policy: LocalPolicy) -> list[Problem]:
        """As many as stand side by side where so many are asked for, for speed and memory go by the rows."""
        n = max(_DRAWN, min(asked, policy.engine.max_rows // group))
        return [task.problem("held-out", index, self.recipe.seed) for index in range(n)]

    def _pace(
        self, name: str, policy: LocalPolicy, task: Task, sampling: Sampling, group: int, problems: list[Problem]
    ) -> None:
        """Draw with all rows and with an eighth, whatever comes out, so that a step's two costs tell apart."""
        model = policy.model
        lengths = self.found.lengths[name.partition("/")[0]]
        key = f"{model.config.model_dump_json()} {policy.engine.settings} {task.name}"
        policy.engine.eos_ids = frozenset()
        n_new = max(4, min(round(lengths["worked"]), sampling.max_new_tokens))
        with folded(model):
            if key not in self.drawing:
                self.drawing[key] = self._measured(policy, task, problems, group, n_new)
            else:
                rows = len(problems) * group
                if self.drawing[key].seconds(rows, n_new, n_new, rows) < self.each_s / 2:
                    self._draw(policy, task, problems, group, n_new)  # for the memory that it takes
        self.found.drawing[name] = asdict(self.drawing[key])

    def _measured(self, policy: LocalPolicy, task: Task, problems: list[Problem], group: int, n_new: int) -> Drawing:
        longest = max(len(policy.prompt(conversation(problem), tools_of(task))) for problem in problems)
        n_new = max(2, min(n_new, policy.model.config.max_position_embeddings - longest))

        def drawn(n: int, new: int) -> float:
            return self._draw(policy, task, problems[:n], group, new)

        drawn(1, 1)  # packs the weights
        few = max(1, len(problems) // 8)
        first = drawn(few, 2)
        n = int(min(max(2 * few, few * self.each_s / max(first * n_new / 2, 1e-6)), len(problems)))
        n = min(n, max(2 * few, policy.engine.max_rows // group))
        if first * n_new * n / few > 4 * self.each_s:  # slow beyond its share of time: fewer tokens tell too
            n_new = max(4, n_new // 3)
        times = 1 if first * n_new > self.each_s else 3
        begun, begun_few, all_n, all_few = (
            median(drawn(rows, new) for _ in range(times)) for rows, new in ((n, 1), (few, 1), (n, n_new), (few, n_new))
        )
        step, step_few = (all_n - begun) / (n_new - 1), (all_few - begun_few) / (n_new - 1)
        row_s = max(step - step_few, 0.0) / ((n - few) * group)
        replies = [(problem, _said(task, problem)) for problem in problems]
        began = self.clock.now()
        judge_all(task, replies)
        judge = (self.clock.now() - began) / len(replies)
        return Drawing(begun / (n * group), max(step_few - row_s * few * group, 0.0), row_s, judge)

    def _draw_between(
        self, policy: LocalPolicy, task: Task, problems: list[Problem], group: int, most: int, number: int
    ) -> None:
        """Replies that are longer from step to step, as they are while RL learns."""
        with folded(policy.model):
            self._draw(policy, task, problems, group, max(2, most * (1 + number % 4) // 4))

    def _draw(self, policy: LocalPolicy, task: Task, problems: list[Problem], group: int, n_new: int) -> float:
        """Seconds of drawing so many tokens for each of a group's replies to every problem."""
        prompts = [policy.prompt(conversation(problem), tools_of(task)) for problem in problems]
        room = policy.model.config.max_position_embeddings - max(map(len, prompts))
        seeds = [[stream_seed(0, "rehearsal", p, g) for g in range(group)] for p in range(len(prompts))]
        began = self.clock.now()
        policy.engine.generate(prompts, seeds, Sampling(max_new_tokens=max(1, min(n_new, room))))
        policy.engine.release()
        return self.clock.now() - began


def _document(task: Task, problem: Problem, tokenizer: ChatTokenizer, worked: bool) -> Row:
    """A conversation to learn from, or as long as what is said to this problem."""
    return messages_sequence(tokenizer, demonstration(task, problem, worked))


def _said(task: Task, problem: Problem) -> str:
    """Something to judge."""
    try:
        return str(demonstration(task, problem, True)[-1]["content"])
    except (ConfigError, NotImplementedError):
        return problem.gold


def main(words: Sequence[str]) -> None:
    """Read the request, rehearse, write what was measured."""
    request = json.loads(Path(words[0]).read_text())
    start_s = time.process_time()
    recipe = build(Recipe, request["recipe"], "recipe")
    rehearser = Rehearser(recipe, Path(request["folder"]), request["seconds"])
    found = rehearser.rehearse()
    busy, threads = rehearser.clock.busy(), torch.get_num_threads()
    whole = {**asdict(found), "start_s": start_s, "busy": busy, "threads": threads}
    Path(words[1]).write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
