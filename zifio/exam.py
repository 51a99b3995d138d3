"""`zifio eval`: measure a model, an endpoint or recorded replies on a task; or the `eval` stage of a recipe.

    zifio eval runs/quickstart/r1/model --task chain_mod:max_terms=10 --n 8 'budgets=[8, 16, 32]'
    zifio eval http://127.0.0.1:8000/v1 --model NAME --task chain_mod --problems 100 endpoint.concurrency=16
    zifio eval --task chain_mod --problems 100 --questions questions.jsonl    # to be answered elsewhere
    zifio eval --answers answers.jsonl --task chain_mod --problems 100
    zifio eval recipes/quickstart.toml problems=64

`key=value` sets any key of `evaluate.config.ExamConfig`, as in a recipe. What has been answered stays in the folder,
and the same command goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zifio.config import ConfigError, build, is_url, override
from zifio.evaluate.config import ExamConfig, report_key
from zifio.log import Finished, say
from zifio.tasks.catalog import named_table
from zifio.tasks.environment import Interactive

if TYPE_CHECKING:
    from zifio.evaluate.examine import Exam
    from zifio.evaluate.replies import Subject


def run_eval(
    kind: str,
    path: str | None,
    overrides: Sequence[str] = (),
    stage: str | None = None,
    task: str | None = None,
    problems: int | None = None,
    n: int | None = None,
    model: str | None = None,
    answers: Path | None = None,
    questions: Path | None = None,
    out: Path | None = None,
    dry_run: bool = False,
    fresh: bool = False,
    as_json: bool = False,
) -> Any:
    """A recipe's stage when `path` ends in .toml, else an exam of a model (a folder, a name, a GGUF file) or a URL.

    What belongs on stdout comes back. Exit code 1 (in `Finished`) when replies are missing. Raises ConfigError.
    """
    words = list(overrides)
    if path is not None and "=" in path and not Path(path).exists():
        path, words = None, [path, *words]
    if path is not None and path.endswith(".toml"):
        from zifio.recipe import run_stage

        given = {"--task": task, "--problems": problems, "--n": n, "--model": model, "--answers": answers}
        _refuse(f"{path}: a recipe", {**given, "--questions": questions}, "Write task.name=..., n=..., problems=...")
        return run_stage(kind, Path(path), stage, words, out, dry_run, fresh, as_json)
    _refuse("an exam without a recipe", {"--stage": stage}, "Name a recipe")
    config = read_exam(task, words, {"problems": problems, "n": n})
    if questions is not None:
        return _write_questions(config, questions)
    if (path is None) == (answers is None):
        raise ConfigError(
            "zifio eval: wanted one of a model, a URL or --answers FILE.jsonl, came "
            f"{'none of them' if path is None else 'both'}. For example: zifio eval runs/quickstart/r1/model --task "
            "chain_mod"
        )
    return _examined(config, path, model, answers, out, dry_run, fresh, as_json)


def read_exam(task: str | None, words: Sequence[str], given: dict[str, Any]) -> ExamConfig:
    """The settings of a command line. Raises ConfigError."""
    table: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if task is not None:
        table["task"] = named_table(task)
    table = override(table, words)
    if "task" not in table:
        raise ConfigError("zifio eval: wanted a task, came none. Name one: --task chain_sum")
    return build(ExamConfig, table, "command line")


def _examined(
    config: ExamConfig,
    path: str | None,
    model: str | None,
    answers: Path | None,
    out: Path | None,
    dry_run: bool,
    fresh: bool,
    as_json: bool,
) -> Any:
    from zifio.evaluate.examine import Exam, examine
    from zifio.evaluate.pages import exam_table

    exam = Exam.of(config)
    name = _name(path, model, answers)
    folder = out or Path("runs/eval") / f"{name}-{config.task.name}"
    exam, subject = _subject(exam, path, model, answers)
    with closing(subject):
        if dry_run:
            return _plan(exam, subject, name, folder, fresh, as_json)
        found = examine(exam, subject, name, folder, fresh)
    say(exam_table(found))
    say(f"results: {folder / 'results.md'}")
    if found["n_missing"]:
        say(
            f"{found['n_missing']} replies are missing; for example: {'; '.join(found.get('failures', []))}. Run the "
            "same command again to ask for them."
        )
    result = {"folder": str(folder), **found} if as_json else None
    return Finished(1, result) if found["n_missing"] else result


def _subject(exam: Exam, path: str | None, model: str | None, answers: Path | None) -> tuple[Exam, Subject]:
    """Who is examined, and the exam with as many replies as recorded ones have."""
    from dataclasses import replace

    config = exam.config
    if answers is not None:
        from zifio.evaluate.recorded import Recorded

        recorded = Recorded(answers, exam.problems, model)
        settled = config.model_copy(update={"n": recorded.n, "budgets": []})
        return replace(exam, config=settled), recorded
    assert path is not None
    if is_url(path):
        from zifio.evaluate.endpoint import Endpoint
        from zifio.evaluate.replies import Frame
        from zifio.evaluate.turns import EndpointInTurns

        if model is None:
            raise ConfigError(f"{path}: wanted the name of a model at this endpoint, came none. Add --model NAME.")
        frame = Frame(config.system, config.instruction)
        endpoint = Endpoint(path, model, config.endpoint, config.sampling, config.prices, frame)
        return exam, EndpointInTurns(endpoint, exam.task) if isinstance(exam.task, Interactive) else endpoint
    from zifio.evaluate.local import LocalInTurns, LocalSubject

    if isinstance(exam.task, Interactive):
        local = LocalInTurns(path, config, exam.problems, exam.task)
    else:
        local = LocalSubject(path, config, exam.problems, exam.force)
    return replace(exam, config=config.model_copy(update={"sampling": local.sampling})), local


def _plan(exam: Exam, subject: Subject, name: str, folder: Path, fresh: bool, as_json: bool) -> Any:
    """What would be asked, for `--dry-run`."""
    from zifio.evaluate.journal import Journal

    asks = exam.asks()
    kept = {} if fresh else Journal(folder).read()
    n_done = sum((ask.problem.id, ask.place, ask.budget) in kept for ask in asks)
    plan = {
        "name": name,
        "folder": str(folder),
        "problems": len(exam.problems),
        "replies": len(asks),
        "done": n_done,
        **exam.identity(subject.identity()),
    }
    say(f"{name} on {exam.task.name}: {len(exam.problems)} problems, {len(asks) - n_done} of {len(asks)} replies to do")
    say(f"folder: {folder}")
    return plan if as_json else None


def _write_questions(config: ExamConfig, file: Path) -> None:
    """The exam's questions, a JSON object a line, to be answered elsewhere; the gold answers stay out."""
    from zifio.data.sources import write_jsonl
    from zifio.evaluate.examine import Exam
    from zifio.evaluate.replies import Frame

    exam, frame = Exam.of(config), Frame(config.system, config.instruction)
    rows = [{"problem": p.id, "prompt": p.prompt, "messages": frame.messages(p)} for p in exam.problems]
    write_jsonl(file, rows)
    say(f"{file}: {len(rows)} questions. Put each reply under `response` and score them with --answers.")


def _name(path: str | None, model: str | None, answers: Path | None) -> str:
    """What folder and reports call it."""
    word = model or (answers.stem if answers else report_key(path or ""))
    return re.sub(r"[^\w.-]+", "-", word).strip("-.") or "model"


def _refuse(what: str, given: dict[str, Any], hint: str) -> None:
    """Raise ConfigError for an option that does not belong to this form."""
    wrong = [option for option, value in given.items() if value is not None]
    if wrong:
        raise ConfigError(f"{what} takes no {wrong[0]}. {hint}.")
