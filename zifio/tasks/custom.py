"""A user's own problems: JSONL or parquet with `prompt` and `answer`, and a verifier by name or a Python file.

    {"prompt": "How much is 2 + 2?", "answer": "4"}
    {"prompt": "A year with a leap day?", "answer": "2024", "verifier": "regex:(2020|2024|2028)"}

`verifier` of a row wins over the task's. A Python file has one function, `score(prompt, answer, response)`, that gives
true or false, a number in [0, 1], or a table with "reward" and whatever else is worth recording. It sees the whole
response and runs in a process of its own, that is ended when it hangs.

Try it alone:

    zifio screen mine.jsonl:verifier=integer
"""

import ast
import importlib.util
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from zifio.config import ConfigError, suggestion
from zifio.tasks.exact import CHECKS
from zifio.tasks.form import judged
from zifio.tasks.rows import text
from zifio.tasks.sets import Row, Rows, maths_verdict
from zifio.tasks.task import Problem, Verdict

_REGEX = "regex:"
_NAMES = (*CHECKS, "maths")
_QUOTED = 40


class Custom(Rows):
    """A config that is also the task."""

    name: Literal["custom"] = "custom"
    """Which task this is."""
    path: str = Field(min_length=1)
    """A data file (also `hub:OWNER/NAME/FILE`), or a folder with a train and a test file."""
    verifier: str = "exact"
    """exact (the text), integer, number, choice (a letter), json, maths, regex:PATTERN (the whole answer matches; the
    row's `answer` is one that does), or FILE.py."""
    many: bool = False
    """Several answers to a problem may be right; `zifio screen` then does not call another accepted one a defect."""
    prompt_column: str = "prompt"
    """The column of the question."""
    answer_column: str = "answer"
    """The column of the right answer."""
    needs: ClassVar[tuple[str, ...]] = ("zifio.tasks.maths.verify", "mpmath", "sympy")

    @model_validator(mode="after")
    def _verifier_exists(self) -> "Custom":
        if self.verifier.endswith(".py"):
            _check_file(self._file())
        else:
            fault = _verifier_fault(self.verifier)
            if fault:
                raise ValueError(fault)
        return self

    @property
    def isolated(self) -> bool:
        """Whether answers are checked in processes that can be ended: where a check may hang."""
        return any(not _is_quick(verifier) for verifier in (self.verifier, *self._own_verifiers().values()))

    @property
    def sources(self) -> list[Path]:
        """The files whose code judges."""
        return [self._file()] if self.verifier.endswith(".py") else []

    def row(self, raw: dict[str, Any], where: str) -> Row:
        """`prompt`, `answer`, and `verifier` where the row has its own."""
        own = raw.get("verifier") or ""
        fault = "wanted a text" if not isinstance(own, str) else own and _verifier_fault(own)
        if fault:
            raise ConfigError(f"{where}: verifier: {fault}")
        answer = raw.get(self.answer_column)
        answer = str(answer) if isinstance(answer, bool) else answer
        gold = text({self.answer_column: answer}, [self.answer_column], where)
        row = Row(text(raw, [self.prompt_column], where), gold, str(raw.get("working") or ""), own)
        check = CHECKS.get(own or self.verifier)
        try:
            fault = check(gold, gold) if check else ""
        except ValueError as error:
            fault = str(error)
        if fault:
            raise ConfigError(f"{where}: {self.answer_column}: {fault}. Mend the row, or name another verifier.")
        return row

    def score(self, problem: Problem, response: str) -> Verdict:
        """What the problem's verifier says. Raises whatever a user's function raises."""
        verifier = self._own_verifiers().get(problem.prompt, self.verifier)
        if verifier.endswith(".py"):
            return _verdict(_function(self._file())(problem.prompt, problem.gold, response))
        if verifier == "maths":
            return maths_verdict(problem.gold, response, self.response)
        if verifier.startswith(_REGEX):
            pattern = re.compile(verifier.removeprefix(_REGEX))
            return judged(response, self.response, lambda answer: _mismatch(pattern, answer))
        return judged(response, self.response, lambda answer: CHECKS[verifier](answer, problem.gold))

    def _own_verifiers(self) -> dict[str, str]:
        return _own(self)  # pyright: ignore[reportArgumentType]  # a frozen model can be hashed

    def _file(self) -> Path:
        """The verifier's file: as it is named, or beside the data."""
        here = Path(self.verifier).expanduser()
        beside = Path(self.path).expanduser().parent / self.verifier
        return beside if not here.exists() and beside.exists() else here


@lru_cache(maxsize=8)
def _own(task: Custom) -> dict[str, str]:
    """The verifier of each prompt whose row has one of its own."""
    found = {}
    for split in ("train", "held-out"):
        for row in task.splits()[split]:
            if row.verifier:
                found[task.prompt_of(row)] = row.verifier
    return found


def _is_quick(verifier: str) -> bool:
    return verifier in CHECKS


def _verifier_fault(verifier: str) -> str:
    """What is wrong with a verifier's name, or ""."""
    if verifier in _NAMES:
        return ""
    if verifier.startswith(_REGEX):
        try:
            re.compile(verifier.removeprefix(_REGEX))
        except re.error as error:
            return f"wanted a regular expression behind {_REGEX}, came one with a mistake: {error}. Mend it."
        return ""
    wanted = f"{', '.join(_NAMES)}, regex:PATTERN or, in the task, FILE.py"
    return f"wanted one of {wanted}; came {verifier!r}. {suggestion(verifier, _NAMES) or 'Give one of these.'}"


def _check_file(path: Path) -> None:
    """Raise ValueError unless the file has a function `score` of three arguments. The file is read, not run."""
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise ValueError(f"wanted a Python file, came {str(path)!r}: {error.strerror}. Check the path.") from None
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"wanted a Python file, came a mistake in {path}: {error}. Mend it.") from None
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "score"]
    if not found or not (found[-1].args.vararg or len(found[-1].args.posonlyargs + found[-1].args.args) >= 3):
        raise ValueError(f"wanted a function `score(prompt, answer, response)` in {path}, came none. Add it.")


@lru_cache(maxsize=8)
def _function(path: Path) -> Callable[[str, str, str], Any]:
    """The file's `score`. Runs the file, so this is for a worker process only."""
    spec = importlib.util.spec_from_file_location(f"verifier_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.score


def _verdict(told: Any) -> Verdict:
    """A function's result as a verdict. Raises ValueError for what is none: an error, not a wrong answer."""
    parts: dict[str, float] = {}
    reason, reward = "", told
    if isinstance(told, dict):
        reason, reward = str(told.get("reason", "")), told.get("reward")
        parts = {str(key): float(part) for key, part in told.items() if isinstance(part, int | float)}
        parts.pop("reward", None)
    if not isinstance(reward, int | float) or not 0 <= reward <= 1:
        raise ValueError(f"wanted true, false, a number in [0, 1] or a table with such a 'reward', came {told!r}"[:300])
    reward = float(reward)
    parts = {"accuracy": reward, "format": 1.0, **parts}
    return Verdict("right" if reward == 1 else "wrong", reward, parts, reason)


def _mismatch(pattern: re.Pattern[str], answer: str) -> str:
    return "" if pattern.fullmatch(answer) else f"no match: {answer[:_QUOTED]!r}"
