"""Search over local texts: SQLite's own full-text index (FTS5), ranked by bm25, with snippets.

Text and Markdown files are cut into paragraphs, of JSONL each row is a document (`text`, and `title` where there is
one). The index is in memory and made once for equal files.

Try it alone: `python -c "from zifio.tasks.search import Corpus; print(Corpus(['README.md']).search('bit for bit'))"`
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from zifio.config import ConfigError

_SNIPPET_TOKENS = 40
_MOST_WORDS = 32
_MOST_STEPS = 20_000_000  # of SQLite's machine for one query, about a second
_WORD = re.compile(r"\w+")


class Hit(NamedTuple):
    """A passage that was found."""

    title: str
    snippet: str
    score: float
    """bm25, larger is better."""


class Corpus:
    """Documents that can be searched, from several threads too."""

    def __init__(self, files: Sequence[str | Path]) -> None:
        """Read and index the files. Raises ConfigError for one that is missing or not what it seems."""
        self._lock = threading.Lock()
        self._index = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            self._index.execute("CREATE VIRTUAL TABLE passages USING fts5(title, text, tokenize='porter unicode61')")
        except sqlite3.OperationalError as error:
            raise ConfigError(
                f"search: wanted SQLite with FTS5, came one without ({error}). Use a Python whose sqlite3 has it."
            ) from None
        rows = [row for file in files for row in _documents(Path(file))]
        if not rows:
            raise ConfigError(f"search: wanted texts to search, came none in {[str(f) for f in files]}. Name some.")
        self._index.executemany("INSERT INTO passages VALUES (?, ?)", rows)
        self.n_passages = len(rows)

    def search(self, query: str, count: int = 3) -> list[Hit]:
        """The best passages that hold any of the query's words, each with a snippet; equal ones in the files' order.

        The query is words and nothing else: FTS5's own syntax in it has no meaning. A query that takes too long finds
        nothing more.
        """
        words = list(dict.fromkeys(_WORD.findall(query)))[:_MOST_WORDS]
        if not words:
            return []
        match = " OR ".join(f'"{word}"' for word in words)
        with self._lock:
            self._index.set_progress_handler(lambda: 1, _MOST_STEPS)
            try:
                found = self._index.execute(
                    f"SELECT title, snippet(passages, 1, '', '', '…', {_SNIPPET_TOKENS}), bm25(passages) "
                    "FROM passages WHERE passages MATCH ? ORDER BY bm25(passages), rowid LIMIT ?",
                    (match, count),
                ).fetchall()
            except sqlite3.OperationalError:  # interrupted
                return []
        return [Hit(title, " ".join(snippet.split()), -score) for title, snippet, score in found]


@lru_cache(maxsize=8)
def open_corpus(files: tuple[str, ...]) -> Corpus:
    """The corpus of these files, made once."""
    return Corpus(files)


def _documents(path: Path) -> Iterator[tuple[str, str]]:
    """(title, text) of every passage of a file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: wanted a text or JSONL file to search, came: {error}. Check the path.") from None
    if path.suffix != ".jsonl":
        pieces = (piece.strip() for piece in re.split(r"\n\s*\n", text))
        yield from ((path.name, piece) for piece in pieces if piece)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}: line {number}: wanted JSON, came: {error}. Mend the line.") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ConfigError(f'{path}: line {number}: wanted {{"text": ...}}, came {line[:80]}. Give it a text.')
        yield str(row.get("title", f"{path.name}:{number}")), row["text"]
