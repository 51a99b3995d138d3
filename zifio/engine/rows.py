"""The replies under way: one `Sample` each, and as `Rows` one column for each thing that every step needs of all.

The rows are dense: a row that ends is filled with the last one. So the first `len(rows)` entries of every column are
the batch as it is, and a step makes no per-row lists.

Try it alone: `pytest tests/engine/test_scheduler.py`
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from zifio.config import Sampling
from zifio.engine.guide import Drawing, Guide, PromptScores, Top
from zifio.engine.request import Finish

_BLOCK = 64  # random numbers that a row has in stock, at most


@dataclass(eq=False)
class Sample:
    """One reply in the making: what was asked, what was drawn so far, and where it stands."""

    id: int
    prompt: list[int]
    seed: int
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: Finish | None = None
    reason: str = ""
    row: int = -1
    """Its row while it is decoded."""
    born: int = -1
    """Number of its latest admission; the latest admitted is the first to go when pages run out."""
    table: list[int] = field(default_factory=list)
    """The pages of its tokens, in order."""
    keys: list[bytes] = field(default_factory=list)
    """Keys of its first full pages, as far as they were needed."""
    era: int = -1
    """The pages' era in which all it has in the cache was computed."""
    seen: np.ndarray | None = None
    """With a repetition penalty: which tokens of the vocabulary the prompt and the reply hold."""
    guide: Guide | None = None
    n_top: int = 0
    """How many of the likeliest tokens are told beside each that is drawn."""
    tops: list[list[Top]] = field(default_factory=list)
    prompt_scores: PromptScores | None = None
    """Where the prompt's log-probs go, if they are wanted. Then all of it is computed, whatever is known of it."""
    slot: int = -1
    """Where its state is, in a model that has one."""
    n_cached: int | None = None
    """Tokens of the prompt that needed no computing when it was first admitted."""
    drawing: Drawing | None = None
    """Set where codes are drawn, not text."""
    twin: Sample | None = None
    """Under guidance: the sample of the blank prompt beside that of the prompt, and the other way round. They move
    together or not at all."""
    is_blank: bool = False
    """Whether it is the one of the blank prompt, which takes what the other draws."""
    pictures: tuple[object, ...] = ()
    """What the prompt is about, held so that the model knows it as long as it may be asked."""

    @property
    def both(self) -> list[Sample]:
        """The sample, and its twin behind it where there is one; the one with the prompt first."""
        if self.twin is None:
            return [self]
        return [self.twin, self] if self.is_blank else [self, self.twin]

    @property
    def is_apart(self) -> bool:
        """Whether its twin is not being decoded, so that it has to wait."""
        return self.twin is not None and self.twin.row < 0

    @property
    def all_tokens(self) -> list[int]:
        """The prompt and what was drawn so far."""
        return self.prompt + self.tokens


class Rows:
    """Columns over the running samples, of which the first `len(rows)` entries count."""

    def __init__(self, max_rows: int, page_size: int, vocab_size: int) -> None:
        self.max_rows, self.page_size, self.vocab_size = max_rows, page_size, vocab_size
        self.samples: list[Sample] = []
        self.table = np.zeros((max_rows, 8), np.int64)
        self.capacity = np.zeros(max_rows, np.int64)  # tokens that its pages hold
        self.position = np.zeros(max_rows, np.int64)  # of the token that is computed next
        self.token = np.zeros(max_rows, np.int64)  # which token that is
        self.draft = np.full(max_rows, -1, np.int64)  # a guess at the one after it, or -1
        self.born = np.zeros(max_rows, np.int64)
        self.slot = np.zeros(max_rows, np.int64)  # of its state, in a model that has one
        self.temperature = np.zeros(max_rows, np.float32)
        self.top_p = np.zeros(max_rows, np.float32)
        self.min_p = np.zeros(max_rows, np.float32)
        self.penalty = np.zeros(max_rows, np.float32)
        self.top_k = np.zeros(max_rows, np.int64)
        self.is_special = np.zeros(max_rows, np.bool_)  # draws from other than softmax(logits / temperature)
        self.uniform = np.zeros((max_rows, _BLOCK), np.float64)
        self.cursor = np.zeros(max_rows, np.int64)  # its next number in `uniform`
        self.n_drawings = 0  # rows that draw codes
        self.plan: object = None  # what `draws` has worked out for these very rows
        self._streams: list[np.random.Generator] = []

    def __len__(self) -> int:
        return len(self.samples)

    def add(self, sample: Sample) -> None:
        """Let a sample whose tokens are all computed take the next row; its first token here is still to be drawn."""
        row, sampling, self.plan = len(self.samples), sample.sampling, None
        self.samples.append(sample)
        self.n_drawings += sample.drawing is not None
        sample.row = row
        self._widen(len(sample.table))
        self.table[row, : len(sample.table)] = sample.table
        self.capacity[row] = len(sample.table) * self.page_size
        self.position[row] = len(sample.prompt) + len(sample.tokens) - 1
        self.token[row] = (sample.tokens or sample.prompt)[-1]  # computed once more if the sample has to wait
        self.draft[row], self.born[row], self.slot[row] = -1, sample.born, sample.slot
        self.temperature[row], self.top_p[row], self.top_k[row] = sampling.temperature, sampling.top_p, sampling.top_k
        self.min_p[row], self.penalty[row] = sampling.min_p, sampling.repetition_penalty
        self.is_special[row] = bool(sampling.off_policy().keys() - {"guidance"}) or sample.guide is not None
        if sampling.repetition_penalty != 1 and sample.seen is None:
            sample.seen = np.zeros(self.vocab_size, np.bool_)
            sample.seen[[token for token in sample.all_tokens if token < self.vocab_size]] = True
        stream = np.random.Generator(np.random.Philox(sample.seed))
        stream.random(len(sample.tokens))  # those that it has drawn with before
        self._streams.append(stream)
        self.uniform[row] = stream.random(_BLOCK)
        self.cursor[row] = 0

    def extend(self, row: int, page: int) -> None:
        """Give a row one more page."""
        table = self.samples[row].table
        self._widen(len(table) + 1)
        self.table[row, len(table)] = page
        table.append(page)
        self.capacity[row] += self.page_size

    def remove(self, row: int) -> Sample:
        """Take a sample out of the batch; the last row takes its place."""
        sample, last, self.plan = self.samples[row], len(self.samples) - 1, None
        if row < last:
            for column in (
                self.table, self.capacity, self.position, self.token, self.draft, self.born, self.slot,
                self.temperature, self.top_p, self.min_p, self.penalty, self.top_k, self.is_special, self.uniform,
                self.cursor,
            ):  # fmt: skip
                column[row] = column[last]
            self.samples[row], self._streams[row] = self.samples[last], self._streams[last]
            self.samples[row].row = row
        self.samples.pop()
        self._streams.pop()
        self.n_drawings -= sample.drawing is not None
        sample.row = -1
        return sample

    def uniforms(self, counts: np.ndarray | None = None) -> np.ndarray:
        """The next random number of every row; with `counts`, the next counts[r] (at most 2) of row r, in one vector.

        They are those of `sampler.uniforms`, whatever was asked before.
        """
        n = len(self.samples)
        if counts is None:
            return self.uniforms_of(np.arange(n))
        self._refill(n)
        row = np.repeat(np.arange(n), counts)
        return self.uniform[row, self.cursor[row] + place_in_run(counts)]

    def uniforms_of(self, row_N: np.ndarray) -> np.ndarray:
        """The next random number of each of these rows."""
        self._refill(len(self.samples))
        return self.uniform[row_N, self.cursor[row_N]]

    def _refill(self, n: int) -> None:
        """At least two numbers in stock for every row."""
        is_short = self.cursor[:n] > _BLOCK - 2
        if not is_short.any():
            return
        for row in np.flatnonzero(is_short).tolist():
            used = int(self.cursor[row])
            left = self.uniform[row, used:].copy()
            self.uniform[row, : len(left)] = left
            self.uniform[row, len(left) :] = self._streams[row].random(_BLOCK - len(left))
            self.cursor[row] = 0

    def _widen(self, n_pages: int) -> None:
        """Room for tables of so many pages."""
        if n_pages > self.table.shape[1]:
            more = np.zeros((self.max_rows, max(n_pages, 2 * self.table.shape[1])), np.int64)
            more[:, : self.table.shape[1]] = self.table
            self.table = more


def place_in_run(counts: np.ndarray) -> np.ndarray:
    """0, 1, .. counts[0] - 1, 0, 1, .. counts[1] - 1, ..."""
    end = np.cumsum(counts)
    return np.arange(end[-1] if len(end) else 0) - np.repeat(end - counts, counts)
