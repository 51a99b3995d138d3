"""Who is computed next: waiting samples, prompts in chunks, and rows that are decoded (Orca, OSDI 2022; Sarathi,
arXiv:2308.16369).

Every step is one batch: all running rows, and beside them chunks of prompts up to a budget. Samples wait in order of
arrival. Those with equal tokens wait as one group, whose tokens are computed once, as one `Job`; then each takes a row,
sharing the full pages and copying the last one, to which it will write. When pages run out, the latest admitted goes
back to the queue and is computed again later; its random numbers are named by its seed, so it says the same.

Nobody waits for ever: a sample that could not run alone is refused beforehand (`engine.refusal`), the oldest one is
never sent back, and the head of the queue is admitted at the latest when nothing else runs.

Try it alone: `pytest tests/engine/test_scheduler.py`
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zifio.engine.pages import Pages
from zifio.engine.request import Stats
from zifio.engine.rows import Rows, Sample
from zifio.engine.slots import Slots


@dataclass(eq=False)
class Job:
    """A prompt on its way into the cache, for all samples that begin with it."""

    samples: list[Sample]
    tokens: list[int]
    table: list[int]
    keys: list[bytes]
    """Of the full pages before the last token, which is computed always: its logits are wanted."""
    done: int
    """Tokens that are in the cache."""
    born: int
    era: int
    slot: int = -1
    """Where its state is, in a model that has one."""


class Chunk(NamedTuple):
    """`count` tokens of a job from position `first`, to be computed in this step."""

    job: Job
    first: int
    count: int


class Scheduler:
    """Decides; `rows` and `jobs` are what runs, and all pages are taken and given back here."""

    def __init__(
        self,
        pages: Pages,
        rows: Rows,
        chunk_tokens: int,
        sharing: bool,
        copy_page: Callable[[int, int], None],
        stats: Stats,
        slots: Slots | None = None,
    ) -> None:
        """With `slots` sequences have a state beside their pages (engine/slots.py): the prompt that a group shares is
        computed once still, but no prefix is found again later, since its state is gone."""
        self.pages, self.rows, self.chunk_tokens, self.sharing = pages, rows, chunk_tokens, sharing
        self.copy_page, self.stats, self.slots = copy_page, stats, slots
        self._finds = sharing and slots is None
        self.jobs: list[Job] = []
        self.waiting: deque[list[Sample]] = deque()
        self._coming: set[bytes] = set()  # keys of pages that a job is computing
        self._births = 0

    @property
    def has_work(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.rows.samples or self.jobs or self.waiting)

    def submit(self, samples: list[Sample]) -> None:
        """Queue samples of one prompt."""
        self.waiting.extend([samples] if self.sharing else [[sample] for sample in samples])

    def plan(self) -> list[Chunk]:
        """See to it that every row has room for its next token, and choose the chunks to compute beside the rows."""
        self._make_room()
        chunks, budget = [], self.chunk_tokens
        for job in self.jobs:
            budget = self._chunk(job, budget, chunks)
        if budget and self.waiting:
            self._admit(budget, chunks)
        return chunks

    def commit(self, chunks: list[Chunk]) -> list[int]:
        """Note that the chunks are computed; jobs that are complete become rows, behind those there are.

        Returns for each of these new rows the place in `chunks` of the chunk that completed it.
        """
        origin: list[int] = []
        for place, (job, _, count) in enumerate(chunks):
            n_full = job.done // self.pages.size
            job.done += count
            if job.era == self.pages.era:
                for page, key in list(zip(job.table, job.keys, strict=False))[n_full : job.done // self.pages.size]:
                    self.pages.publish(page, key)
            if job.done == len(job.tokens):
                self._close(job)
                origin += [place] * self._fork(job)
        return origin

    def remove(self, sample: Sample) -> None:
        """Take a sample out of wherever it is, and give back its pages."""
        if sample.row >= 0:
            self.rows.remove(sample.row)
            self._give_back(sample)
            return
        for job in self.jobs:
            if sample in job.samples:
                job.samples.remove(sample)
                if not job.samples:
                    self._close(job)
                    self._free(job)
                    self.pages.release(job.table)
                return
        group = next(group for group in self.waiting if sample in group)
        group.remove(sample)
        if not group:
            self.waiting.remove(group)

    # Rows --------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """A page for every row that has filled its last one, the oldest first; drafts get one if there is one."""
        rows = self.rows
        n = len(rows)
        lacking = np.flatnonzero(rows.position[:n] >= rows.capacity[:n])
        if len(lacking):
            by_age = lacking[np.argsort(rows.born[lacking])].tolist()
            for sample in [rows.samples[row] for row in by_age]:
                while sample.row >= 0 and not self.pages.n_available:
                    self._preempt()
                if sample.row >= 0:
                    rows.extend(sample.row, self.pages.take())
        n = len(rows)
        for row in np.flatnonzero((rows.draft[:n] >= 0) & (rows.position[:n] + 1 >= rows.capacity[:n])).tolist():
            if self.pages.n_available:
                rows.extend(row, self.pages.take())
            else:
                rows.draft[row] = -1

    def _preempt(self) -> None:
        """Send the latest admitted back to the head of the queue."""
        rows = self.rows
        n = len(rows)
        row = int(rows.born[:n].argmax()) if n else -1
        if self.jobs and (row < 0 or self.jobs[-1].born > rows.born[row]):
            job = self.jobs[-1]
            self._close(job)
            self._free(job)
            self.pages.release(job.table)
            group = job.samples
        else:
            group = [rows.remove(row)]
            self._give_back(group[0])
        self.waiting.appendleft(group)
        self.stats.preemptions += len(group)

    def _give_back(self, sample: Sample) -> None:
        """Release a former row's pages; the full ones stay known, as the prefix of what may come."""
        self._free(sample)
        if self._finds and sample.era == self.pages.era:
            n_computed = len(sample.prompt) + len(sample.tokens) - 1
            sample.keys = self.pages.keys(sample.all_tokens[:n_computed], sample.keys)
            for page, key in zip(sample.table, sample.keys, strict=False):
                self.pages.publish(page, key)
        self.pages.release(sample.table)
        sample.table = []

    # Prompts -----------------------------------------------------------------------------------------------

    def _admit(self, budget: int, chunks: list[Chunk]) -> None:
        """Make jobs of waiting groups in order, while there are rows, pages and budget.

        A group whose next page is being computed by a job waits for it and is passed over.
        """
        place = 0
        while budget and place < len(self.waiting) and self._n_free_rows():
            group = self.waiting[place]
            tokens = group[0].all_tokens
            shares = self._finds and group[0].prompt_scores is None
            keys = group[0].keys = self.pages.keys(tokens[:-1], group[0].keys) if shares else []
            found = self.pages.find(keys)
            if len(found) < len(keys) and keys[len(found)] in self._coming:
                place += 1
                continue
            for page in found:
                self.pages.share(page)
            n_fresh = -(-len(tokens) // self.pages.size) - len(found)
            n_samples = self._how_many(len(group), n_fresh)
            if not n_samples:
                self.pages.release(found)
                return
            table = found + [self.pages.take() for _ in range(n_fresh)]
            samples, rest = group[:n_samples], group[n_samples:]
            del self.waiting[place]
            if rest:
                self.waiting.insert(place, rest)
            job = Job(samples, tokens, table, keys, len(found) * self.pages.size, self._births, self.pages.era)
            if self.slots is not None:
                job.slot = self.slots.take()
            for sample in samples:
                sample.born, sample.keys, sample.era = self._births, keys, job.era
                sample.n_cached = job.done if sample.n_cached is None else sample.n_cached
                self._births += 1
            self.stats.shared_tokens += job.done + (n_samples - 1) * len(tokens)
            self._coming.update(keys[len(found) :])
            self.jobs.append(job)
            budget = self._chunk(job, budget, chunks)

    def _how_many(self, n_samples: int, n_fresh: int) -> int:
        """How many of a group may start, when the prompt takes `n_fresh` pages.

        Half of the rows, and everybody who begins, shall find one more page; a sample beside the first needs a copy of
        the last page too. More in reserve would idle where replies end early, less would send back too many.
        """
        n_free, n_rows = self._n_free_rows(), len(self.rows)
        n_in_jobs = self.rows.max_rows - n_rows - n_free
        spare = self.pages.n_available - n_fresh - n_rows // 2 - 2 * n_in_jobs
        if not self.rows.samples and not self.jobs:
            spare = max(spare, 1)
            assert self.pages.n_available >= n_fresh, "what cannot run alone is refused beforehand"
        return max(0, min(n_samples, n_free, (spare + 1) // 2))

    def _n_free_rows(self) -> int:
        """Rows that no sample has, nor will have when its prompt is computed."""
        return self.rows.max_rows - len(self.rows) - sum(len(job.samples) for job in self.jobs)

    def _chunk(self, job: Job, budget: int, chunks: list[Chunk]) -> int:
        """Append the job's next chunk, as long as the budget allows; returns what is left of it."""
        count = min(len(job.tokens) - job.done, budget)
        if count:
            chunks.append(Chunk(job, job.done, count))
        return budget - count

    def _fork(self, job: Job) -> int:
        """Rows for a job's samples; those for whose copies no page is left wait again. Returns how many rows."""
        n_own = (len(job.tokens) - 1) // self.pages.size  # where the page begins that every sample writes to
        for place, sample in enumerate(job.samples):
            if place == 0:
                sample.table, sample.slot = job.table, job.slot
            elif self.pages.n_available:
                for page in job.table[:n_own]:
                    self.pages.share(page)
                sample.table = [*job.table[:n_own], self.pages.take()]
                self.copy_page(job.table[n_own], sample.table[-1])
                if self.slots is not None:
                    sample.slot = self.slots.copied(job.slot)
            else:
                self.waiting.appendleft(job.samples[place:])
                return place
            self.rows.add(sample)
        return len(job.samples)

    def _free(self, owner: Job | Sample) -> None:
        """Give back the slot of a state, where there is one."""
        if self.slots is not None:
            self.slots.give_back(owner.slot)
            owner.slot = -1

    def _close(self, job: Job) -> None:
        """The job is over, one way or the other."""
        self.jobs.remove(job)
        self._coming.difference_update(job.keys)
