"""Are a benchmark's problems in the training data? Looked for before training: afterwards no detector can be relied on.

A problem of at least 13 words is found by any 13 words in a row that the training data share with its prompt, its
solution or its answer (as for GPT-3, arXiv:2005.14165, appendix C), upper and lower case, punctuation and white space
aside; what many problems share, such as how to answer, does not count. A shorter one is found whole, sign by sign,
standing by itself: `6+1-1+9` is not in `6+1-1+9+3`. Where the gold answer follows it, that is said.

Training files are read as a stream; memory holds the benchmark and one record (JSONL), one batch of rows (parquet) or
one block (text).

Run alone: `zifio contamination train.jsonl --against chain_sum`
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from zifio.config import ConfigError, build
from zifio.evaluate.config import ExamConfig
from zifio.evaluate.examine import Exam
from zifio.evaluate.texts import BREAK, Located, read_located, rows_of
from zifio.log import Finished, say
from zifio.tasks.catalog import named_table

WORDS = 13
"""Words in a row that two texts share by more than chance."""
_SHORTEST = 5  # signs of a short problem: fewer are in any text
_COMMON = 10  # words in a row that more problems share than this are no sign of any of them
_WORD = re.compile(rf"\w+|{BREAK}")
_SIGN = re.compile(r"\w+|[^\w\s]")
_JOINING = frozenset("+-*/%^·×÷")  # a sign beside a short problem that makes it part of a longer one
_EXCERPT = 160  # characters
_ANSWER_WITHIN = 40  # signs behind a short problem in which its answer may follow
_PROMPT_KEYS = ("prompt", "question", "problem", "input", "Question", "Problem", "text")
_GOLD_KEYS = ("gold", "answer", "target", "Answer", "solution", "final_answer", "canonical_solution", "code")


@dataclass(frozen=True)
class Item:
    """A problem of the benchmark."""

    id: str
    prompt: str
    gold: str = ""
    solution: str = ""


@dataclass
class Hit:
    """A problem that is in a training file: how often, and the first place."""

    item: str
    file: str
    kind: str
    """13-gram, or whole (a short prompt)."""
    part: str
    """Of the problem: prompt, answer or solution."""
    where: str
    excerpt: str
    """The training text around the place."""
    benchmark: str
    """The problem's own words."""
    count: int = 0
    with_answer: int = 0
    """Of short problems: how often the gold answer follows."""


def contamination(
    training: Sequence[Path], against: str, problems: int | None = None, seed: int = 0, as_json: bool = False
) -> Any:
    """Look for a task's held-out problems, or a file's, in training files; exit code 1 when any is there.

    Raises ConfigError for a file that cannot be read, or a benchmark without anything to look for.
    """
    items = read_benchmark(against, problems, seed)
    index = Index(items)
    hits: list[Hit] = []
    for path in training:
        hits += index.search(str(path), read_located(path))
        say(f"{path}: {index.n_words:,} words read so far, {len(hits)} hits")
    found = {hit.item for hit in hits}
    report = {
        "against": against,
        "n_problems": len(items),
        "n_searched": index.n_searched,
        "n_found": len(found),
        "share_found": len(found) / len(items),
        "n_words": index.n_words,
        "hits": [vars(hit) for hit in hits],
    }
    say(_table(report, hits))
    return Finished(1 if hits else 0, report if as_json else None)


def read_benchmark(against: str, problems: int | None, seed: int) -> list[Item]:
    """The problems of a file (JSONL, text with one a line, parquet), or the held-out ones of a task.

    Raises ConfigError.
    """
    path = Path(against)
    if path.is_file():
        items = [_item(place, row) for place, row in enumerate(rows_of(path))]
        items = [item for item in items if item.prompt]
        if not items:
            raise ConfigError(
                f"{path}: wanted problems under one of the keys {', '.join(_PROMPT_KEYS)}, came none. Rename the key."
            )
        return items
    if path.suffix or "/" in against.partition(":")[0]:
        raise ConfigError(f"{path}: wanted a benchmark file or a task's name, came no file. Check the path.")
    table: dict[str, Any] = {"task": named_table(against), "seed": seed}
    table |= {} if problems is None else {"problems": problems}
    exam = Exam.of(build(ExamConfig, table, "command line"))
    return [Item(p.id, p.prompt, p.gold, p.working) for p in exam.problems]


def _item(place: int, row: Any) -> Item:
    """A row of a benchmark file: a text is a prompt."""
    if isinstance(row, str):
        return Item(f"line {place + 1}", row)
    prompt = next((row[key] for key in _PROMPT_KEYS if isinstance(row.get(key), str)), "")
    answers = [str(row[key]) for key in _GOLD_KEYS if isinstance(row.get(key), str | int | float)]
    id = next((str(row[key]) for key in ("id", "task_id", "unique_id") if key in row), f"row {place + 1}")
    gold, solution = (answers[0], max(answers, key=len)) if answers else ("", "")
    return Item(id, prompt, gold.rpartition("####")[2].strip(), solution)


@dataclass
class Index:
    """What to look for, in a form that a stream of words can be held against."""

    items: Sequence[Item]
    n_words: int = 0
    n_searched: int = 0
    """Problems that are long enough to be looked for."""
    _number: dict[str, int] = field(default_factory=dict)  # of words that the benchmark has; others end a run
    _grams: dict[tuple[int, ...], list[tuple[int, str]]] = field(default_factory=dict)
    _short: dict[int, dict[tuple[str, ...], list[int]]] = field(default_factory=dict)  # by length in signs
    _answers: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, item in enumerate(self.items):
            parts = {"prompt": item.prompt, "solution": item.solution, "answer": item.gold}
            words = {part: _WORD.findall(plain(text)) for part, text in parts.items()}
            signs = tuple(_SIGN.findall(plain(item.prompt)))
            is_short = len(words["prompt"]) < WORDS
            if is_short and len(signs) >= _SHORTEST:
                self._short.setdefault(len(signs), {}).setdefault(signs, []).append(place)
                self._answers[place] = tuple(_SIGN.findall(plain(item.gold)))
            long = {part: row for part, row in words.items() if len(row) >= WORDS}
            for part, row in long.items():
                numbers = [self._number.setdefault(word, len(self._number)) for word in row]
                for start in range(len(numbers) - WORDS + 1):
                    owners = self._grams.setdefault(tuple(numbers[start : start + WORDS]), [])
                    if (place, part) not in owners:
                        owners.append((place, part))
            self.n_searched += bool(long) or (is_short and len(signs) >= _SHORTEST)
        self._drop_common()
        if not self.n_searched:
            raise ConfigError(
                f"benchmark: wanted problems of at least {_SHORTEST} signs, came shorter ones, which are in any text. "
                "Check by hand."
            )

    def _drop_common(self) -> None:
        """Forget runs of words that many different problems share: how to answer, how a question begins."""
        most = max(1, min(_COMMON, len(self.items) // 20))
        for gram, owners in list(self._grams.items()):
            if len({self.items[place].prompt for place, _ in owners}) > most:
                del self._grams[gram]

    def search(self, file: str, texts: Iterable[Located]) -> list[Hit]:
        """The benchmark's problems that are in these texts, each once with a count."""
        hits: dict[tuple[str, str, str], Hit] = {}
        for located in texts:
            text, n_seen = plain(located.text), len(plain(located.text[: located.n_seen]))
            for kind, place, part, start, end, follows in [*self._long_ones(text), *self._short_ones(text)]:
                if end <= n_seen:
                    continue
                item = self.items[place]
                key = (item.id, kind, part)
                if key not in hits:
                    excerpt = _around(text, start, end)
                    hits[key] = Hit(item.id, file, kind, part, located.where, excerpt, _cut(item.prompt))
                hits[key].count += 1
                hits[key].with_answer += follows
        return list(hits.values())

    def _long_ones(self, text: str) -> Iterator[tuple[str, int, str, int, int, bool]]:
        """(kind, item, part, start, end, answer follows) of shared runs of words; a run is told once per item."""
        number, grams = self._number, self._grams
        run: list[int] = []
        spans: list[tuple[int, int]] = []
        open_until: dict[tuple[int, str], int] = {}  # of a passage that is told already: the word where it ends
        for count, match in enumerate(_WORD.finditer(text)):
            self.n_words += 1
            if (this := number.get(match.group())) is None:
                if run:
                    run, spans = [], []
                continue
            run.append(this)
            spans.append(match.span())
            if len(run) < WORDS:
                continue
            for owner in grams.get(tuple(run[-WORDS:]), ()):
                if open_until.get(owner, -1) < count - 1:
                    yield ("13-gram", *owner, spans[-WORDS][0], spans[-1][1], False)
                open_until[owner] = count
            if len(run) > 4096:
                run, spans = run[-WORDS:], spans[-WORDS:]

    def _short_ones(self, text: str) -> Iterator[tuple[str, int, str, int, int, bool]]:
        """As `_long_ones`, of short problems that stand by themselves."""
        if not self._short:
            return
        matches = list(_SIGN.finditer(text))
        signs = [match.group() for match in matches]
        for length, wanted in self._short.items():
            firsts = {row[0] for row in wanted}
            for start in range(len(signs) - length + 1):
                if signs[start] not in firsts:
                    continue
                end = start + length
                owners = wanted.get(tuple(signs[start:end]))
                if owners is None or not _stands_alone(signs, start, end):
                    continue
                for place in owners:
                    behind = signs[end : end + _ANSWER_WITHIN]
                    follows = _contains(behind, self._answers[place])
                    yield "whole", place, "prompt", matches[start].start(), matches[end - 1].end(), follows


def plain(text: str) -> str:
    """Without differences of case and of Unicode's forms."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def _stands_alone(signs: list[str], start: int, end: int) -> bool:
    """Whether no operator beside it makes a short problem part of a longer one."""
    before, behind = (signs[start - 1] if start else ""), (signs[end] if end < len(signs) else "")
    return before not in _JOINING and behind not in _JOINING


def _contains(signs: list[str], wanted: tuple[str, ...]) -> bool:
    n = len(wanted)
    return bool(n) and any(tuple(signs[i : i + n]) == wanted for i in range(len(signs) - n + 1))


def _around(text: str, start: int, end: int) -> str:
    """The passage with what stands beside it, on one line."""
    spare = max(0, _EXCERPT - (end - start)) // 2
    return _cut(text[max(0, start - spare) : end + spare].replace(BREAK, "|"), 2 * _EXCERPT)


def _cut(text: str, length: int = _EXCERPT) -> str:
    plain_text = " ".join(text.split())
    return plain_text if len(plain_text) <= length else plain_text[: length - 3] + "..."


def _table(report: dict[str, Any], hits: list[Hit]) -> Table:
    """The first hits for the terminal."""
    if not hits:
        title = f"none of {report['n_searched']} problems of {report['against']} is in {report['n_words']:,} words"
    else:
        title = (
            f"{report['n_found']} of {report['n_problems']} problems of {report['against']} are in the training data"
        )
    table = Table(title=Text(title), title_justify="left", show_lines=True)
    for column in ("problem", "found by", "times", "where", "training text"):
        table.add_column(column)
    for hit in hits[:20]:
        found_by = f"{hit.kind}, {hit.part}" + (f", answer follows {hit.with_answer}x" if hit.with_answer else "")
        table.add_row(*map(Text, (hit.item, found_by, str(hit.count), f"{hit.file} {hit.where}", hit.excerpt)))
    if len(hits) > 20:
        table.caption = f"and {len(hits) - 20} more; --json has all"
    return table
