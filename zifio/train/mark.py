"""Marks for the steps of solutions: by completions from each step, by a judge, by the task itself, by people.

Completions (Math-Shepherd, arXiv:2312.08935) need no labelling at all and are worse than a judge or people; what both
agree on is better than either (arXiv:2501.07301), so solutions whose first error is placed differently are dropped.
Behind the first error nothing is labelled. The last step of a whole reply, its answer, is as good as the verdict.

Parts of some hundred solutions are written whole, so that a killed run goes on behind the last part.

Run alone: `zifio mark recipes/prm-rerank.toml --stage rollouts most=64 --out runs/try`
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from zifio.config import ConfigError, EndpointSettings
from zifio.data.sources import check_texts, read_jsonl, write_jsonl
from zifio.engine.policy import LocalPolicy, load_policy
from zifio.log import Progress
from zifio.models.count import forward_flops
from zifio.seed import stream, stream_seed
from zifio.tasks.catalog import make_task
from zifio.tasks.episode import Policy, conversation
from zifio.tasks.form import boxes, split_thinking
from zifio.tasks.runtime import judge_all
from zifio.tasks.steps import (
    Label,
    Solution,
    Stepwise,
    consensus,
    first_error,
    from_row,
    localisation,
    majority,
    split_steps,
    true_labels,
    until_first_error,
)
from zifio.tasks.task import Problem, Task, parse_response
from zifio.train.feedback import Judge, MarkStage, MonteCarlo
from zifio.train.stage import Context, Parts

_PART = 128  # solutions
_SEEDS = 2**31  # of a judge's reply: what servers take

_ASK = (
    "Here is a problem, and a solution to it in numbered steps. Find the first step that is wrong. Answer with its "
    "number alone inside \\boxed{}, or with \\boxed{0} if every step is right."
)


def mark(stage: MarkStage, context: Context) -> dict[str, float]:
    """Write `data.jsonl` with the labelled solutions; returns the stage's totals.

    Raises ConfigError when the data cannot be read, or no solution gets labels.
    """
    with ExitStack() as stack:
        return _mark(stage, context, _Labellers(stage, context, make_task(stage.task or context.task), stack))


def _mark(stage: MarkStage, context: Context, labellers: _Labellers) -> dict[str, float]:
    path = context.data_of(stage.data)
    solutions = _choose(read_solutions(path), stage, context.seed)
    parts, starts = Parts(context.folder), range(0, len(solutions), _PART)
    rows: list[dict[str, Any]] = []
    with Progress(stage.name, len(starts), done=parts.n_done) as progress:
        for number, start in enumerate(starts):
            rows += parts.rows(number, partial(labellers.rows, solutions[start : start + _PART]))
            progress.update(number + 1, {"kept": len(rows)})
    if not rows:
        raise ConfigError(
            f"{stage.name}: none of {len(solutions)} solutions of {path} got labels: no labeller could say anything, "
            "or they never placed the first error alike. Use one labeller alone, or a better one."
        )
    write_jsonl(context.folder / "data.jsonl", rows)
    return {**parts.totals(), "drawn": len(solutions), "kept": len(rows), **labellers.quality(rows)}


def read_solutions(path: Path) -> list[Solution]:
    """The solutions of a file: of a `sample` stage, cut into steps here and without labels; or in any of three forms.

    Raises ConfigError naming the row that cannot be read.
    """
    rows = read_jsonl(path)
    if not rows:
        raise ConfigError(f"{path}: wanted solutions in steps, came an empty file. Sample more, or keep more.")
    return [_solution(row, f"{path}: row {number}") for number, row in enumerate(rows, 1)]


def _solution(row: dict[str, Any], where: str) -> Solution:
    if "response" not in row:
        return from_row(row, where)
    wanted = ("problem", "prompt", "gold", "response", "outcome")
    check_texts(row, wanted, where, "Give a `sample` stage's data.")
    problem, prompt, gold, response, outcome = (row[key] for key in wanted)
    steps = tuple(split_steps(response))
    parsed = parse_response(response)
    answer = parsed[1] if parsed else ""
    return Solution(problem, prompt, gold, steps, (None,) * len(steps), answer, outcome, row.get("model", ""))


def _choose(solutions: list[Solution], stage: MarkStage, seed: int) -> list[Solution]:
    """Different solutions with steps; where only some are wanted, drawn at random, half of them wrong."""
    different = list(
        {(one.prompt, one.text): one for one in solutions if one.steps and one.outcome != "error"}.values()
    )
    if stage.most is None or len(different) <= stage.most:
        return different
    stream(seed, "mark/order", stage.name).shuffle(different)
    if stage.balance:
        wrong = [one for one in different if one.outcome == "wrong"]
        others = [one for one in different if one.outcome != "wrong"]
        half = stage.most // 2
        n_wrong = min(len(wrong), max(half, stage.most - len(others)))
        different = wrong[:n_wrong] + others
    return different[: stage.most]


class _Labellers:
    """Everyone who labels, and what they agree on."""

    def __init__(self, stage: MarkStage, context: Context, task: Task, stack: ExitStack) -> None:
        """An endpoint is closed with `stack`. Raises ConfigError when the task cannot check steps and is to."""
        self.task, self.seed = task, stream_seed(context.seed, "mark", stage.name)
        if stage.checker and not isinstance(task, Stepwise):
            raise ConfigError(
                f"{stage.name}.checker: wanted a task that checks steps, as chain_sum and chain_mod do, came "
                f"{task.name}. Use rollouts or a judge."
            )
        self.stage = stage
        people = read_solutions(context.data_of(stage.people)) if stage.people else []
        self.people = {(one.prompt, one.text): one for one in people}
        self.completer = load_policy(context.model_of(stage.rollouts.from_)) if stage.rollouts else None
        self.judge: Policy | None = None
        if stage.judge is not None:
            local, url = stage.judge.from_, stage.judge.url
            if local:
                self.judge = load_policy(context.model_of(local))
            else:
                self.judge = stack.enter_context(
                    context.endpoint(url or "", stage.judge.model, EndpointSettings(), False)
                )

    def rows(self, solutions: list[Solution]) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """(the labelled ones as lines of JSONL, figures)."""
        solutions = _judged(self.task, solutions)
        labelings: dict[str, Sequence[Sequence[Label] | None]] = {}
        spent: dict[str, float] = {"flops": 0.0, "tokens": 0.0}
        shares: Sequence[list[float] | None] = [None] * len(solutions)
        if self.completer is not None and self.stage.rollouts is not None:
            shares, spent = complete(
                self.completer, self.task, solutions, self.stage.rollouts, self.stage.sampling, self.seed
            )
            least = self.stage.rollouts.share
            labelings["rollouts"] = [[1 if share > least else -1 for share in one] for one in shares]
        if self.judge is not None and self.stage.judge is not None:
            labelings["judge"] = judge_steps(self.judge, solutions, self.stage.judge, self.seed)
        if self.stage.checker and isinstance(self.task, Stepwise):
            labelings["checker"] = [_checked(self.task, one) for one in solutions]
        rows = []
        for place, solution in enumerate(solutions):
            said = {name: labels[place] for name, labels in labelings.items()}
            labels, source = self._agreed(solution, said)
            if labels is None:
                continue
            row = replace(solution, labels=until_first_error(labels), source=source).row()
            told = {name: list(one) for name, one in said.items() if one is not None}
            rows.append(row | {"labellers": told} | ({"shares": shares[place]} if shares[place] is not None else {}))
        figures = {"part_flops": spent["flops"], "n_tokens": spent["tokens"]}
        return rows, {**figures, "drawn": len(solutions), "kept": len(rows)}

    def _agreed(
        self, solution: Solution, said: dict[str, Sequence[Label] | None]
    ) -> tuple[Sequence[Label] | None, str]:
        """(labels, whose): those of people, or what all others agree on; None where one of these could say nothing."""
        if found := self.people.get((solution.prompt, solution.text)):
            return found.labels, found.source
        known = [labels for labels in said.values() if labels is not None]
        if not known or len(known) < len(said):
            return None, ""
        return consensus([until_first_error(labels) for labels in known]), "+".join(said)

    def quality(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """How well the labels place the first error, where the task itself knows it."""
        if not isinstance(self.task, Stepwise):
            return {}
        solutions = [from_row(row, "data.jsonl") for row in rows]
        true = [first_error(_checked(self.task, one)) for one in solutions]
        found = localisation([first_error(one.labels) for one in solutions], true)
        return found.figures("labels_") if found else {}


def _judged(task: Task, solutions: list[Solution]) -> list[Solution]:
    """The solutions with a verdict on each, without those whose check breaks."""
    unknown = [one for one in solutions if not one.outcome]
    verdicts = judge_all(task, [(_problem(one), one.text) for one in unknown])
    known = {id(one): verdict.outcome for one, verdict in zip(unknown, verdicts, strict=True)}
    whole = [replace(one, outcome=known.get(id(one), one.outcome)) for one in solutions]
    return [one for one in whole if one.outcome != "error"]


def _problem(solution: Solution) -> Problem:
    return Problem(solution.problem_id, solution.prompt, solution.gold)


def _checked(task: Stepwise, solution: Solution) -> list[Label]:
    return true_labels(task, _problem(solution), solution.steps, solution.outcome == "right")


def complete(
    policy: LocalPolicy, task: Task, solutions: Sequence[Solution], settings: MonteCarlo, sampling: Any, seed: int
) -> tuple[list[list[float]], dict[str, float]]:
    """(for each step of each solution the share of completions from it that are right, what that took).

    A beginning that several solutions share is completed once. Completions whose check breaks do not count; where all
    break, the share is 0.
    """
    encode, n = policy.tokenizer.encode, settings.n
    beginnings = [[(one.prompt, text) for text in accumulate(one.steps[:-1])] for one in solutions]
    begun = dict.fromkeys(chain.from_iterable(beginnings))
    problems = {one.prompt: _problem(one) for one in solutions}
    prompts = [policy.prompt(conversation(problems[prompt])) + encode(text) for prompt, text in begun]
    seeds = [[stream_seed(seed, prompt, text, j) for j in range(n)] for prompt, text in begun]
    completions = policy.engine.generate(prompts, seeds, sampling)
    policy.engine.release()
    said = [
        (problems[prompt], text + policy.tokenizer.decode(one.tokens))
        for (prompt, text), group in zip(begun, completions, strict=True)
        for one in group
    ]
    outcomes = [verdict.outcome for verdict in judge_all(task, said)]
    share: dict[tuple[str, str], float] = {}
    for place, key in enumerate(begun):
        group = [outcome for outcome in outcomes[place * n : place * n + n] if outcome != "error"]
        share[key] = group.count("right") / len(group) if group else 0.0
    shares = [
        [*(share[key] for key in keys), float(one.outcome == "right")]
        for one, keys in zip(solutions, beginnings, strict=True)
    ]
    lengths = [len(p) + len(c.tokens) for p, group in zip(prompts, completions, strict=True) for c in group]
    tokens = sum(len(c.tokens) for group in completions for c in group)
    return shares, {"flops": forward_flops(policy.model.config, lengths), "tokens": tokens}


def judge_steps(
    policy: Policy, solutions: Sequence[Solution], settings: Judge, seed: int
) -> list[Sequence[Label] | None]:
    """A judge's labels: +1 before the first step that it calls wrong, -1 there, None behind.

    None for a solution on which it says nothing that can be read, or whose votes are tied.
    """
    asked = [[{"role": "user", "content": _question(one)}] for one in solutions]
    seeds = [
        [stream_seed(seed, "judge", one.prompt, one.text, j) % _SEEDS for j in range(settings.votes)]
        for one in solutions
    ]
    replies = policy.complete(asked, settings.votes, settings.sampling, seeds)
    out: list[Sequence[Label] | None] = []
    for solution, group in zip(solutions, replies, strict=True):
        n = len(solution.steps)
        places = [place for reply in group if (place := _named(reply.text, n)) is not None]
        said = majority(places)
        if said is None:
            out.append(None)
            continue
        wrong = said - 1
        out.append([1] * n if wrong < 0 else [1] * wrong + [-1] + [None] * (n - wrong - 1))
    return out


def _question(solution: Solution) -> str:
    steps = "\n".join(f"Step {number}: {step.strip()}" for number, step in enumerate(solution.steps, 1))
    return f"{_ASK}\n\nProblem: {solution.prompt}\n\n{steps}"


def _named(text: str, n_steps: int) -> int | None:
    """The number of the step that a judge's reply names, 0 for none of them; None where it names no such number."""
    found = boxes(split_thinking(text).rest)
    number = re.fullmatch(r"\s*(-?1|\d{1,6})\s*", found[-1]) if found else None
    if number is None:
        return None
    place = max(0, int(number[1]))
    return place if place <= n_steps else None
