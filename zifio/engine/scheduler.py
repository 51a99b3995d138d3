"""Who is computed next: waiting samples, prompts in chunks, and rows that are decoded (Orca, OSDI 2022; Sarathi,
arXiv:2308.16369).

Every step is one batch: all running rows, and beside them chunks of prompts up to a budget. Samples wait in order of
arrival. Those with equal tokens wait as one group, whose tokens are computed once, as one `Job`; then each takes a row,
sharing the full pages and copying the last one, to which it will write. When pages run out, the latest admitted goes
back to the queue and is computed again later; its random numbers are named by its seed, so it says the same.

A guided drawing has two samples, of its prompt and of the blank one. They are admitted together and sent back together;
until both are decoded, neither moves (`Sample.is_apart`).

Nobody waits for ever: a sample that could not run alone is refused beforehand (`engine.refusal`), the oldest one is
never sent back, and the head of the queue is admitted at the latest when nothing else runs.

Try it alone: `pytest tests/engine/test_scheduler.py`
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
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


class _Side(NamedTuple):
    """A group's prompt, and its pages that are known."""

    samples: Sequence[Sample]
    tokens: list[int]
    keys: list[bytes]
    found: list[int]
    n_fresh: int
    """Pages that it takes beside those."""
    is_coming: bool
    """Whether a job is computing the next one."""


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
        self._homeless: list[list[Sample]] = []  # whose prompts are computed, and who found no page

    @property
    def has_work(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.rows.samples or self.jobs or self.waiting or self._homeless)

    def submit(self, samples: list[Sample]) -> None:
        """Queue samples of one prompt."""
        self.waiting.extend([samples] if self.sharing else [[sample] for sample in samples])

    def plan(self) -> list[Chunk]:
        """See to it that every row has room for its next token, and choose the chunks to compute beside the rows."""
        self._house()
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
        """Take a sample out of wherever it is, its twin too, and give back their pages."""
        found = [self._withdraw(one) for one in sample.both]
        if not any(found):
            group = next(group for group in self.waiting if sample in group)
            group.remove(sample)
            if not group:
                self.waiting.remove(group)

    def _withdraw(self, sample: Sample) -> bool:
        """Take one out of the rows, its job or those without a place; False where it is in none of them."""
        if sample.row >= 0:
            self.rows.remove(sample.row)
            self._give_back(sample)
            return True
        for job in self.jobs:
            if sample in job.samples:
                job.samples.remove(sample)
                if not job.samples:
                    self._close(job)
                    self._free(job)
                    self.pages.release(job.table)
                return True
        for group in self._homeless:
            if sample in group:
                group.remove(sample)
                return True
        return False

    def _house(self) -> None:
        """Send back whoever found no page when the last batch was done."""
        homeless, self._homeless = self._homeless, []
        sent = set[Sample]()
        for group in homeless:
            first = [sample for sample in group if sample.both[0] not in sent]
            if first:
                self._send_back(first)
                sent.update(sample.both[0] for sample in first)

    def _send_back(self, group: list[Sample]) -> None:
        """To the head of the queue, each with its twin, which waits there in its name."""
        for sample in group:
            for one in sample.both:
                self._withdraw(one)
        self.waiting.appendleft([sample.both[0] for sample in group])

    # Rows --------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """A page for every row that has filled its last one, the oldest first; drafts get one if there is one."""
        rows = self.rows
        n = len(rows)
        lacks_room = rows.position[:n] >= rows.capacity[:n]
        if lacks_room.any():
            lacking = np.flatnonzero(lacks_room)
            by_age = lacking[np.argsort(rows.born[lacking])].tolist()
            for sample in [rows.samples[row] for row in by_age]:
                while sample.row >= 0 and not self.pages.n_available:
                    self._preempt()
                if sample.row >= 0:
                    rows.extend(sample.row, self.pages.take())
        n = len(rows)
        if not (rows.draft[:n] >= 0).any():
            return
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
        in_job = self.jobs and (row < 0 or self.jobs[-1].born > rows.born[row])
        group = list(self.jobs[-1].samples) if in_job else [rows.samples[row]]
        self._send_back(group)
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
            sides = [self._side(samples) for samples in zip(*(sample.both for sample in group), strict=True)]
            if any(side.is_coming for side in sides):
                place += 1
                continue
            for side in sides:
                for page in side.found:
                    self.pages.share(page)
            n_samples = self._how_many(len(group), sum(side.n_fresh for side in sides), len(sides))
            if not n_samples:
                for side in sides:
                    self.pages.release(side.found)
                return
            del self.waiting[place]
            if rest := group[n_samples:]:
                self.waiting.insert(place, rest)
            for side in sides:
                budget = self._chunk(self._start(side, n_samples), budget, chunks)

    def _side(self, samples: Sequence[Sample]) -> _Side:
        """What is known of a group's prompt; a guided group has two sides."""
        tokens = samples[0].all_tokens
        shares = self._finds and samples[0].prompt_scores is None
        keys = samples[0].keys = self.pages.keys(tokens[:-1], samples[0].keys) if shares else []
        found = self.pages.find(keys)
        is_coming = len(found) < len(keys) and keys[len(found)] in self._coming
        return _Side(samples, tokens, keys, found, -(-len(tokens) // self.pages.size) - len(found), is_coming)

    def _start(self, side: _Side, n_samples: int) -> Job:
        """A job for the first samples of a side whose known pages are held."""
        table = side.found + [self.pages.take() for _ in range(side.n_fresh)]
        samples, n_done = list(side.samples[:n_samples]), len(side.found) * self.pages.size
        job = Job(samples, side.tokens, table, side.keys, n_done, self._births, self.pages.era)
        if self.slots is not None:
            job.slot = self.slots.take()
        for sample in samples:
            sample.born, sample.keys, sample.era = self._births, side.keys, job.era
            sample.n_cached = job.done if sample.n_cached is None else sample.n_cached
            self._births += 1
        self.stats.shared_tokens += job.done + (n_samples - 1) * len(side.tokens)
        self._coming.update(side.keys[len(side.found) :])
        self.jobs.append(job)
        return job

    def _how_many(self, n_samples: int, n_fresh: int, n_sides: int) -> int:
        """How many of a group may start, when the prompt takes `n_fresh` pages, on all sides together.

        Half of the rows, and everybody who begins, shall find one more page; a sample beside the first needs a copy of
        the last page too. More in reserve would idle where replies end early, less would send back too many.
        """
        n_free, n_rows = self._n_free_rows(), len(self.rows)
        n_in_jobs = self.rows.max_rows - n_rows - n_free
        spare = self.pages.n_available - n_fresh - n_rows // 2 - 2 * n_in_jobs
        if not self.rows.samples and not self.jobs:
            spare = max(spare, n_sides)
            assert self.pages.n_available >= n_fresh, "what cannot run alone is refused beforehand"
        return max(0, min(n_samples, n_free // n_sides, (spare // n_sides + 1) // 2))

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
            else:  # the batch is under way, so nobody else's row may move now
                self._homeless.append(job.samples[place:])
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
