"""Published problems as tasks: GSM8K, MATH-500, word problems (MAWPS, SVAMP), multiple choice (ARC, MMLU).

The held-out split is the set's test file in its own order, and its size is the end; the train split is its train file,
shuffled anew in each epoch. A single file is split by a hash of the question, one in sixteen held out. The data come
from `path`, a file or a folder, or from the Hugging Face hub.

Try it alone:

    python -c "from zifio.tasks.sets import Gsm8k; print(Gsm8k(path='data/gsm8k').problem('held-out', 0, seed=1))"
"""

import re
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

from zifio.config import Config, ConfigError
from zifio.seed import stream
from zifio.tasks.exact import choice_fault, number_fault, read_number
from zifio.tasks.form import ASK, Form, boxes, final_answer, judged, unboxed, wrap
from zifio.tasks.rows import Hub, find, read_rows, text, value
from zifio.tasks.task import Problem, Split, Verdict, address, folded, is_held_out

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CALCULATION = re.compile(r"<<[^<>]*>>")


class Row(NamedTuple):
    """One problem of a set."""

    question: str
    gold: str
    working: str = ""
    verifier: str = ""


class Rows(Config):
    """What every task over a finite set shares: a config that is also the task."""

    name: str
    path: str = ""
    """A data file (also `hub:OWNER/NAME/FILE`), or a folder with a train and a test file. Empty: the set's own files
    at the Hugging Face hub, kept in its cache."""
    held_out: str = ""
    """A file of held-out problems, where `path` is one to train on."""
    evaluation: bool = False
    """A single file is a benchmark: all of it is held out, none is for training."""
    response: Form = "tags"
    """How a reply gives its answer: tags (<answer>15</answer> at its end), boxed (\\boxed{15}), or free (the last
    line)."""
    instruction: str | None = None
    """How to answer, put behind every question; by default what `response` asks for, "" for nothing."""
    hub: ClassVar[Hub | None] = None
    forms: ClassVar[tuple[str, ...]] = ()  # surface forms of a gold that are promised to be right

    @abstractmethod
    def row(self, raw: dict[str, Any], where: str) -> Row:
        """The problem of one row of a file. Raises ConfigError; `where` opens its message."""

    def size(self, split: Split) -> int:
        """How many different problems a split has. Raises ConfigError when the data cannot be had."""
        return len(self.splits()[split])

    def left_out(self) -> int:
        """Train rows that are not used, because the held-out split has the same question."""
        return self.splits()["left out"]

    def splits(self) -> dict[str, Any]:
        """The rows of "train" and of "held-out", and how many were "left out". Read once in a process."""
        return _splits(self)  # pyright: ignore[reportArgumentType]  # a frozen model can be hashed

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The problem at this address: the held-out file's own order, or for train a new shuffle in each epoch.

        Raises ConfigError beyond the end of the held-out split, or when the data cannot be had.
        """
        row = self.row_at(split, index, seed)
        id = f"{self.name}/{split}/{index}" if split == "held-out" else address(self.name, split, index, seed)
        return Problem(id, self.prompt_of(row), row.gold, row.working)

    def prompt_of(self, row: Row) -> str:
        """The user's message: the question, and how to answer."""
        ask = ASK[self.response] if self.instruction is None else self.instruction
        return f"{row.question}\n{ask}" if ask else row.question

    def row_at(self, split: Split, index: int, seed: int) -> Row:
        """The row at this address."""
        rows: Sequence[Row] = self.splits()[split]
        if not rows:
            raise ConfigError(
                f"task {self.name}: wanted a {split} problem, came none: {self.path or 'the set'} has no {split} part. "
                "Give a folder with a train and a test file."
            )
        if split == "held-out":
            if index >= len(rows):
                raise ConfigError(too_few(self.name, index + 1, len(rows)))
            return rows[index]
        epoch, place = divmod(index, len(rows))
        return rows[_order(self.name, len(rows), epoch, seed)[place]]

    def document(self, problem: Problem, shows_working: bool) -> str:
        """A right reply: the worked solution, if wanted and known, and the answer in the form asked for."""
        return wrap(problem.working if shows_working else "", problem.gold, self.response)

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the problem's own answer; anything but right is a bug of the task."""
        return self.score(problem, self.document(problem, shows_working=True))

    @abstractmethod
    def score(self, problem: Problem, response: str) -> Verdict:
        """The verdict on a response. Raises ValueError when the problem is broken."""


class Gsm8k(Rows):
    """Grade-school word problems with worked solutions (Cobbe et al., arXiv:2110.14168)."""

    name: Literal["gsm8k"] = "gsm8k"
    """Which task this is."""
    hub: ClassVar[Hub] = Hub("openai/gsm8k", "main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet")
    forms: ClassVar[tuple[str, ...]] = ("thousands", "decimal zeros", "currency", "spaces")

    def row(self, raw: dict[str, Any], where: str) -> Row:
        """`question` and `answer`, whose last line is `#### GOLD`."""
        working, mark, gold = text(raw, ["answer"], where).rpartition("####")
        gold = gold.strip().replace(",", "")
        if not mark or read_number(gold) is None:
            raise ConfigError(f"{where}: answer: wanted a last line `#### NUMBER`, came {gold[:60]!r}. Mend the row.")
        return Row(text(raw, ["question"], where), gold, _CALCULATION.sub("", working).strip())

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right when the answer is the gold's number, however it is written."""
        return judged(response, self.response, lambda answer: number_fault(answer, problem.gold))


class WordProblems(Rows):
    """Short word problems with a number for an answer, in the shapes of MAWPS, SVAMP and their kin."""

    name: Literal["word_problems"] = "word_problems"
    """Which task this is."""
    hub: ClassVar[Hub] = Hub("ChilleD/SVAMP", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet")
    forms: ClassVar[tuple[str, ...]] = ("thousands", "decimal zeros", "currency", "spaces")

    def row(self, raw: dict[str, Any], where: str) -> Row:
        """`input`, `target`; `Body`, `Question`, `Answer`; `sQuestion`, `lSolutions`; or `question`, `answer`."""
        answer = value(raw, ["target", "Answer", "lSolutions", "answer", "result"], where)
        if isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        gold = text({"answer": answer}, ["answer"], where).replace(",", "")
        if read_number(gold) is None:
            raise ConfigError(f"{where}: the answer: wanted a number, came {gold[:60]!r}. Mend the row.")
        question = text(raw, ["input", "Question", "sQuestion", "question"], where)
        body = str(raw.get("Body") or "").strip()
        return Row(f"{body} {question}" if body else question, gold)

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right when the answer is the gold's number, however it is written."""
        return judged(response, self.response, lambda answer: number_fault(answer, problem.gold))


class Math500(Rows):
    """Contest problems (Hendrycks et al., arXiv:2103.03874), the 500 of Lightman et al. (arXiv:2305.20050), or any
    file of that shape: `problem`, `answer`, and `solution` where there is one."""

    name: Literal["math500"] = "math500"
    """Which task this is."""
    response: Form = "boxed"
    """How a reply gives its answer: tags, boxed or free."""
    evaluation: bool = True
    """A single file is a benchmark: all of it is held out, none is for training."""
    hub: ClassVar[Hub] = Hub("HuggingFaceH4/MATH-500", None, "test.jsonl")
    isolated: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("zifio.tasks.maths.verify", "mpmath", "sympy")

    def row(self, raw: dict[str, Any], where: str) -> Row:
        """`problem`, `answer` (else the last box of the solution), `solution`."""
        solution = str(raw.get("solution") or "").strip()
        boxed = boxes(solution)
        gold = text(raw if raw.get("answer") or not boxed else {"answer": boxed[-1]}, ["answer"], where)
        return Row(text(raw, ["problem", "question"], where), gold, unboxed(solution))

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right when the answer is the gold's value (`zifio.tasks.maths`)."""
        return maths_verdict(problem.gold, response, self.response)


class MultipleChoice(Rows):
    """Questions with lettered choices, in the shapes of ARC and MMLU."""

    name: Literal["multiple_choice"] = "multiple_choice"
    """Which task this is."""
    hub: ClassVar[Hub] = Hub(
        "allenai/ai2_arc", "ARC-Challenge/train-00000-of-00001.parquet", "ARC-Challenge/test-00000-of-00001.parquet"
    )
    forms: ClassVar[tuple[str, ...]] = ("spaces", "brackets", "lower case")

    def row(self, raw: dict[str, Any], where: str) -> Row:
        """`question`; `choices`, a list or {"text", "label"}; `answer` or `answerKey`: a letter, a label, a number
        counted from 0, or the text of a choice."""
        choices = value(raw, ["choices", "options"], where)
        labels = [str(label) for label in choices.get("label", [])] if isinstance(choices, dict) else []
        texts = [str(choice).strip() for choice in (choices.get("text", []) if isinstance(choices, dict) else choices)]
        key = value(raw, ["answerKey", "answer", "label"], where)
        place = _chosen(key, labels, texts)
        if place is None or not 2 <= len(texts) <= len(_LETTERS):
            raise ConfigError(
                f"{where}: the answer: wanted one of {len(texts)} choices, came {key!r}"[:300] + ". Mend the row."
            )
        lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, texts, strict=False)]
        return Row("\n".join([text(raw, ["question"], where), *lines]), _LETTERS[place])

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right when the answer is the letter of the right choice and nothing else."""
        return judged(response, self.response, lambda answer: choice_fault(answer, problem.gold))


def maths_verdict(gold: str, response: str, form: Form) -> Verdict:
    """The verdict of `zifio.tasks.maths` on the answer that a response gives. May be slow: for isolated tasks."""
    from zifio.tasks.maths.verify import verify

    answer, unread = final_answer(response, form)
    if unread:
        return Verdict("wrong", 0.0, {"accuracy": 0.0, "format": 0.0}, unread)
    verdict = verify(wrap("", answer, "boxed"), gold)
    parts = {"accuracy": verdict.reward, "format": 1.0} if verdict.outcome != "error" else {}
    return Verdict(verdict.outcome, verdict.reward, parts, verdict.reason)


def too_few(name: str, wanted: int, size: int) -> str:
    """What to tell whoever asks for more held-out problems than there are."""
    return (
        f"task {name}: wanted {wanted} held-out problems, came a set with {size}. Ask for at most {size}; they do not "
        "repeat, because a problem measured twice is measured once."
    )


def _chosen(key: Any, labels: list[str], texts: list[str]) -> int | None:
    """The place of the right choice, or None."""
    if isinstance(key, int) and not isinstance(key, bool):
        return key if 0 <= key < len(texts) else None
    for names in (labels or list(_LETTERS[: len(texts)]), texts):
        if names.count(str(key).strip()) == 1 and names.index(str(key).strip()) < len(texts):
            return names.index(str(key).strip())
    return None


@lru_cache(maxsize=8)
def _splits(task: Rows) -> dict[str, Any]:
    """The rows of each split, and how many train rows were left out."""
    files = find(task.name, task.path, task.hub)
    if task.held_out:
        files = {"train": files["held-out"], "held-out": find(task.name, task.held_out, None)["held-out"]}
    rows = {
        split: [
            task.row(raw, f"task {task.name}: {path}: row {number}")
            for path in paths
            for number, raw in enumerate(read_rows(path, task.name), start=1)
        ]
        for split, paths in files.items()
    }
    held_out, train = rows["held-out"], rows.get("train", [])
    if "train" not in rows and not task.evaluation:
        train = [row for row in held_out if not is_held_out(folded(row.question))]
        held_out = [row for row in held_out if is_held_out(folded(row.question))]
    asked = {folded(row.question) for row in held_out}
    kept = [row for row in train if folded(row.question) not in asked]
    return {"train": kept, "held-out": held_out, "left out": len(train) - len(kept)}


@lru_cache(maxsize=4)
def _order(name: str, size: int, epoch: int, seed: int) -> list[int]:
    """The order of one epoch."""
    order = list(range(size))
    stream(seed, f"task/{name}/order", epoch).shuffle(order)
    return order
