"""One model or endpoint on one task: ask what is still to be asked, judge, write each reply down, and sum up.

    runs/eval/NAME-TASK/
    ├── exam.json       what is measured: the model, the task, how replies are drawn, digests
    ├── records.jsonl   a line a reply, as they come
    ├── results.json    the figures        ├── results.md   the same for people        └── curve.png

Run alone: `zifio eval MODEL --task chain_sum --n 4`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zifio.config import ConfigError
from zifio.evaluate.config import ExamConfig
from zifio.evaluate.curve import draw_curve
from zifio.evaluate.diversity import diversity_of_records
from zifio.evaluate.journal import Journal, Key
from zifio.evaluate.methods import SCORERS, Row, summarise
from zifio.evaluate.pages import exam_page
from zifio.evaluate.replies import Ask, Failed, Said, Subject, answer_of, scored_text, wants_shape
from zifio.log import Progress
from zifio.record.stage import write_whole
from zifio.seed import stream_seed
from zifio.tasks.catalog import code_digest, make_task
from zifio.tasks.environment import Interactive
from zifio.tasks.episode import concluded
from zifio.tasks.form import split_thinking
from zifio.tasks.runtime import judge_all
from zifio.tasks.task import Problem, Task, Verdict

_DRAWN = 256  # problems of a task that draws them, where nobody says how many
_SEEDS = 2**31  # of a reply: what servers take
_HOPELESS_START = 5  # failures before any reply that end a run


@dataclass(frozen=True)
class Exam:
    """What is asked, and the settings."""

    config: ExamConfig
    task: Task
    problems: list[Problem]
    shaped: bool
    """Whether the task scores the whole reply, its thinking included."""

    @classmethod
    def of(cls, config: ExamConfig) -> Exam:
        """The exam of these settings. Raises ConfigError when the task has no such problems."""
        task = make_task(config.task)
        if isinstance(task, Interactive) and config.budgets:
            raise ConfigError(
                f"budgets: wanted none for {task.name}, which is played in turns, came {config.budgets}. Leave them "
                "out; sampling.max_new_tokens bounds what is said in all turns together."
            )
        size = getattr(task, "size", None)  # of tasks over a finite set
        n_problems = config.problems or (size("held-out") if size else 0) or _DRAWN
        problems = [task.problem("held-out", index, config.seed) for index in range(n_problems)]
        return cls(config, task, problems, wants_shape(task, problems[0]))

    @property
    def force(self) -> str:
        """What stands behind a thinking that was cut."""
        if self.config.force is not None:
            return self.config.force
        return "</think><answer>" if self.shaped else "\n</think>\n\n"

    def asks(self) -> list[Ask]:
        """Every reply that is wanted, problem by problem; a seed depends on problem and place alone."""
        budgets = [None, *self.config.budgets]
        return [
            Ask(problem, place, budget, stream_seed(self.config.seed, "exam", problem.id, place) % _SEEDS)
            for problem in self.problems
            for place in range(self.config.n)
            for budget in budgets
        ]

    def identity(self, subject: dict[str, Any]) -> dict[str, Any]:
        """What replies in one folder must have in common."""
        return {
            "subject": subject,
            "task": self.config.task.model_dump(mode="json"),
            "task_digest": self.config.task.digest(),
            "verifier_digest": code_digest(),
            "seed": self.config.seed,
            "sampling": self.config.sampling.model_dump(mode="json"),
            "system": self.config.system,
            "instruction": self.config.instruction,
        }


def examine(exam: Exam, subject: Subject, name: str, folder: Path, fresh: bool = False) -> dict[str, Any]:
    """Ask, judge, write down and sum up; returns what results.json holds.

    Raises ConfigError when the folder belongs to something else, when the verifier or the endpoint fails on too many
    replies (with examples); what has been written stays, and the same command goes on.
    """
    journal, config = Journal(folder), exam.config
    asks = exam.asks()
    with journal.open(exam.identity(subject.identity()), fresh) as kept:
        rows = {key: kept[key] for key in map(_key, asks) if key in kept}
        watch = _Watch(len(asks), config.most_errors, exam.task.name, [*rows.values()])
        todo = [ask for ask in asks if _key(ask) not in rows]
        with Progress(name, len(asks), done=len(rows)) as progress:
            for batch in subject.answer(todo):
                written = records([item for item in batch if not isinstance(item, Failed)], exam)
                journal.append(written)
                watch.see(written, [item.reason for item in batch if isinstance(item, Failed)])
                rows |= {Key(row["problem"], row["place"], row["budget"]): row for row in written}
                progress.update(len(rows), watch.numbers())
                watch.stop_if_hopeless()
        journal.flush_to_disk()
        return conclude(exam, name, [*rows.values()], folder, subject, watch.failures)


def conclude(
    exam: Exam, name: str, rows: list[Row], folder: Path, subject: Subject, failures: Sequence[str]
) -> dict[str, Any]:
    """Write results.json, results.md and curve.png of these records; returns what results.json holds."""
    config = exam.config
    scorers = {name: SCORERS[name] for name in config.scorers}
    found = summarise(rows, config.counts, scorers, config.seed, len(exam.asks()))
    results: dict[str, Any] = {
        "name": name,
        "task": exam.task.name,
        "n": config.n,
        "ks": config.counts,
        "prompts_digest": prompts_digest(rows),
        "date": datetime.now(UTC).date().isoformat(),
        **found,
    }
    sampling = config.sampling if subject.has_policy_logps else None
    results["diversity"] = diversity_of_records(rows, exam.task, sampling, config.counts, config.seed)
    if config.prm is not None:
        from zifio.evaluate.rerank import reranked  # needs torch, as nothing else here

        results["rerank"] = reranked(config.prm, exam.task, rows, config.counts, config.seed)
    if config.budgets:
        results["budget_by"] = subject.budget_by
    if failures:
        results["failures"] = list(dict.fromkeys(failures))[:5]
    png = draw_curve(results)
    if png is not None:
        write_whole(folder / "curve.png", png)
    write_whole(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "results.md", exam_page(results, has_curve=png is not None))
    return results


class _Watch:
    """Counts what comes and what breaks, and says when to stop."""

    def __init__(self, n_wanted: int, most_errors: float, task: str, rows: list[Row]) -> None:
        self.allowed, self.task = most_errors * n_wanted, task
        self.broken: list[str] = []
        self.failures: list[str] = []
        self.n_right = self.n_checked = self.n_new = 0
        self.see(rows, [])
        self.n_new = 0

    def see(self, rows: list[Row], failures: list[str]) -> None:
        """Count what came, and what did not."""
        self.failures += failures
        self.n_new += len(rows)
        self.broken += [row["reason"] for row in rows if row["outcome"] == "error"]
        checked = [row for row in rows if row["outcome"] != "error" and row["budget"] is None]
        self.n_checked += len(checked)
        self.n_right += sum(row["outcome"] == "right" for row in checked)

    def numbers(self) -> dict[str, float]:
        """What stands beside the progress."""
        found = {"pass@1": self.n_right / self.n_checked} if self.n_checked else {}
        counts = {"errors": len(self.broken), "failed": len(self.failures)}
        return found | {key: count for key, count in counts.items() if count}

    def stop_if_hopeless(self) -> None:
        """Raise ConfigError when more broke than is allowed, or nothing works."""
        if len(self.broken) > self.allowed:
            raise ConfigError(
                f"task {self.task}: wanted verdicts, came {len(self.broken)} checks that broke, more than most_errors "
                f"allows; for example: {'; '.join(dict.fromkeys(self.broken[:3]))}. Mend the task and start over with "
                "--fresh, or raise most_errors."
            )
        nothing_works = not self.n_new and len(self.failures) >= _HOPELESS_START
        if nothing_works or len(self.failures) > max(self.allowed, _HOPELESS_START):
            raise ConfigError(
                f"endpoint: wanted replies, came {len(self.failures)} failures; for example: "
                f"{'; '.join(dict.fromkeys(self.failures[:3]))}. Mend that and run the same command again: it asks for "
                "what is missing."
            )


def records(replies: Sequence[tuple[Ask, Said]], exam: Exam) -> list[Row]:
    """The records of these replies, judged. What is not known is absent."""
    texts = [scored_text(said, exam.shaped) for _, said in replies]
    alone = [i for i, (_, said) in enumerate(replies) if said.environment is None]
    verdicts = dict(zip(alone, judge_all(exam.task, [(replies[i][0].problem, texts[i]) for i in alone]), strict=True))
    for i, (ask, said) in enumerate(replies):
        if said.environment is not None:
            verdicts[i] = concluded(exam.task, ask.problem, said.environment, texts[i], said.fault)
    return [_record(ask, said, verdicts[i]) for i, (ask, said) in enumerate(replies)]


def _record(ask: Ask, said: Said, verdict: Verdict) -> Row:
    inside, content, _ = split_thinking(said.text)
    row: Row = {
        "problem": ask.problem.id,
        "place": ask.place,
        "budget": ask.budget,
        "prompt": ask.problem.prompt,
        "gold": ask.problem.gold,
        "thinking": said.thinking if said.thinking is not None else inside,
        "response": content,
        "answer": answer_of(content),
        "outcome": verdict.outcome,
        "reward": verdict.reward,
        "parts": verdict.parts,
        "reason": verdict.reason,
    }
    known = ("n_tokens", "n_prompt_tokens", "n_thinking_tokens", "finish", "seconds", "cost", "logp", "seed")
    row |= {key: value for key in known if (value := getattr(said, key)) is not None}
    return row | (said.extra or {})


def prompts_digest(rows: Sequence[Row]) -> str:
    """Names the problems of these records: ids, prompts and gold answers."""
    asked = sorted({(row["problem"], row["prompt"], row["gold"]) for row in rows})
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


def _key(ask: Ask) -> Key:
    return Key(ask.problem.id, ask.place, ask.budget)
