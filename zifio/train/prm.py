"""A process reward model: a decoder with two classes for every token, which say at the end of a step if it is good.

The loss is the mean cross-entropy over labelled steps, at each one's last token ("Let's verify step by step",
arXiv:2305.20050, and what TRL's PRM trainer did); a 0 counts as good, None not at all. The result is a folder that
transformers opens as ...ForTokenClassification, class 1 being good.

Run alone: `zifio prm recipes/prm-rerank.toml --stage prm steps=20 --out runs/try`
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any, NamedTuple

from zifio.config import ConfigError
from zifio.data.pack import Sequence
from zifio.data.solution import encode_steps
from zifio.data.sources import read_jsonl
from zifio.data.template import ChatTokenizer
from zifio.engine.policy import open_model
from zifio.engine.scorer import Scorer
from zifio.models.decoder import with_scores
from zifio.seed import nth, stream, stream_seed
from zifio.tasks.steps import Solution, alternatives_prm800k, called_wrong, first_error, from_row, localisation
from zifio.train.batch import make_batches
from zifio.train.feedback import PrmStage
from zifio.train.loop import StepData, Trainer, check_context
from zifio.train.loss import LossTerms
from zifio.train.sft import WALK
from zifio.train.stage import Context, finish, mean_weighted, prepare


class Labelled(NamedTuple):
    """A solution, and for its steps how good they are in [0, 1], None where nobody said."""

    solution: Solution
    targets: list[float | None]


def prm(stage: PrmStage, context: Context) -> dict[str, float]:
    """Train the model of `from` to score steps and write it to `model/`; returns the stage's totals and how well it
    finds first errors on problems that were held back."""
    model, tokenizer = open_model(context.model_of(stage.from_))
    model = with_scores(model, 2, stream_seed(context.seed, "prm", stage.name))
    prepare(model, stage, context)
    path = context.data_of(stage.data)
    labelled = read_labelled(path, stage.soft)
    held, used = _held_back(labelled, stage, context.seed)
    used = used[: stage.most]
    if stage.alternatives:
        learned = {one.solution.prompt for one in used}
        used += [one for one in read_alternatives(path) if one.solution.prompt in learned]
    if not used:
        raise ConfigError(f"{path}: wanted labels to learn from, came {len(labelled)} solutions and none for training.")
    sequences = [step_sequence(tokenizer, one) for one in used]
    check_context(model, max(len(one.tokens) for one in sequences), "a solution of the data")

    def batches(step: int) -> StepData:
        first = step * stage.sequences
        chosen = [nth(sequences, i, context.seed, WALK, stage.name) for i in range(first, first + stage.sequences)]
        rows = stage.rows
        packed = make_batches(
            mean_weighted(chosen, "step_weight"), rows.row_tokens, rows.micro_tokens, tokenizer.pad_id
        )
        return StepData([packed], {"epoch": (first + stage.sequences) / len(sequences)})

    terms = LossTerms(balance_weight=stage.balance.loss_weight)
    totals = Trainer(model, stage, terms, context.folder, shown=("loss", "step_accuracy")).run(batches)
    finish(context, model, tokenizer)
    return totals | {"solutions": len(used), "held_back": len(held)} | found_errors(Scorer(model, tokenizer), held)


def read_labelled(path: Path, soft: bool = False) -> list[Labelled]:
    """The labelled solutions of a file in any of the three forms, those without a label left out.

    `soft`: a step's target is its share of right completions where the row has `shares`. Raises ConfigError.
    """
    rows = read_jsonl(path)
    found = [_labelled(row, f"{path}: row {number}", soft) for number, row in enumerate(rows, 1)]
    labelled = [one for one in found if any(target is not None for target in one.targets)]
    if not labelled:
        raise ConfigError(f"{path}: wanted solutions with labelled steps, came {len(rows)} rows and no label.")
    return labelled


def read_alternatives(path: Path) -> list[Labelled]:
    """What the rows of PRM800K's form in a file say of completions that were not chosen. The steps before one have no
    target there: the chosen solution has theirs. Raises ConfigError."""
    rows = [(f"{path}: row {number}", row) for number, row in enumerate(read_jsonl(path), 1)]
    others = [
        one for where, row in rows if isinstance(row.get("label"), dict) for one in alternatives_prm800k(row, where)
    ]
    return [Labelled(one, [None] * (len(one.steps) - 1) + [float(one.labels[-1] != -1)]) for one in others]


def _labelled(row: dict[str, Any], where: str, soft: bool) -> Labelled:
    solution = from_row(row, where)
    targets: list[float | None] = [None if label is None else float(label != -1) for label in solution.labels]
    shares = row.get("shares") if soft else None
    if shares is not None:
        if not isinstance(shares, list) or len(shares) != len(targets):
            raise ConfigError(
                f"{where}: shares: wanted a number for each of {len(targets)} steps, came {shares!r:.80}."
            )
        targets = [None if t is None else float(share) for t, share in zip(targets, shares, strict=True)]
    return Labelled(solution, targets)


def _held_back(labelled: list[Labelled], stage: PrmStage, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """(kept for figures, used): whole problems, so that none is in both."""
    prompts = list(dict.fromkeys(one.solution.prompt for one in labelled))
    stream(seed, "prm/held-back", stage.name).shuffle(prompts)
    held = {*prompts[: round(stage.held_back * len(prompts))]}
    return [one for one in labelled if one.solution.prompt in held], [
        one for one in labelled if one.solution.prompt not in held
    ]


def step_sequence(tokenizer: ChatTokenizer, labelled: Labelled) -> Sequence:
    """The solution's tokens with a label, and weight 1, at the last token of every labelled step."""
    messages = [{"role": "user", "content": labelled.solution.prompt}]
    tokens, n_prompt, ends = encode_steps(tokenizer, messages, labelled.solution.steps)
    weight, label = [0.0] * len(tokens), [0.0] * len(tokens)
    for end, target in zip(ends, labelled.targets, strict=True):
        if target is not None:
            weight[end], label[end] = 1.0, target
    return Sequence(tokens, [0.0] * len(tokens), {"step_weight": weight, "step_label": label}, n_prompt)


def found_errors(scorer: Scorer, labelled: Items[Labelled]) -> dict[str, float]:
    """Of held-back solutions: the share of steps called right, and localisation of the first errors as in ProcessBench
    (a step is called wrong below one half)."""
    scores, _ = scorer.scores(
        [([{"role": "user", "content": one.solution.prompt}], one.solution.steps) for one in labelled]
    )
    agree = [
        (score > 0.5) == (target > 0.5)
        for one, mine in zip(labelled, scores, strict=True)
        for score, target in zip(mine, one.targets, strict=True)
        if target is not None
    ]
    out = {"held_back_accuracy": sum(agree) / len(agree)} if agree else {}
    found = localisation([*map(called_wrong, scores)], [first_error(one.solution.labels) for one in labelled])
    return out | (found.figures("localisation_") if found else {})
