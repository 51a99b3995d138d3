"""The scheduler without a model: order, budgets, preemption, and that everybody gets done."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from zifio.config import Sampling
from zifio.engine.pages import Pages
from zifio.engine.request import Stats
from zifio.engine.rows import Rows, Sample
from zifio.engine.sampler import uniforms
from zifio.engine.scheduler import Scheduler

SIZE = 4


class World:
    """A scheduler whose model says tokens that follow from the sequence, and which checks what a cache would hold."""

    def __init__(self, n_pages: int, max_rows: int, chunk_tokens: int, sharing: bool = True) -> None:
        self.cells: dict[tuple[int, int], tuple[int, ...]] = {}  # (page, slot): the sequence up to that token
        self.scheduler = Scheduler(
            Pages(n_pages, SIZE), Rows(max_rows, SIZE, 100), chunk_tokens, sharing, self.copy_page, Stats()
        )
        self.done: list[Sample] = []
        self.n_computed = self.n_steps = 0
        self.most_rows = self.most_tokens = 0

    def copy_page(self, source: int, target: int) -> None:
        for slot in range(SIZE):
            self.cells[target, slot] = self.cells.get((source, slot), ())

    def compute(self, tokens: list[int], position: int, table: list[int]) -> None:
        """Write a token's cell, after checking that all before it are there and true."""
        for before in range(position):
            assert self.cells[table[before // SIZE], before % SIZE] == tuple(tokens[: before + 1])
        page = table[position // SIZE]
        assert not self.scheduler.pages.is_shared(page), "what is written to belongs to one alone"
        self.cells[page, position % SIZE] = tuple(tokens[: position + 1])
        self.n_computed += 1

    def step(self) -> None:
        """One batch."""
        scheduler, rows = self.scheduler, self.scheduler.rows
        chunks = scheduler.plan()
        assert chunks or len(rows), "whoever waits is admitted when nothing runs"
        assert len(rows) + sum(len(job.samples) for job in scheduler.jobs) <= rows.max_rows
        assert sum(chunk.count for chunk in chunks) <= scheduler.chunk_tokens
        for row, sample in enumerate(rows.samples):
            assert sample.row == row and rows.table[row, : len(sample.table)].tolist() == sample.table
            self.compute(sample.all_tokens, int(rows.position[row]), sample.table)
        for job, first, count in chunks:
            for position in range(first, first + count):
                self.compute(job.tokens, position, job.table)
        scheduler.commit(chunks)
        n = len(rows)
        for sample in list(rows.samples):
            sample.tokens.append(sum(sample.all_tokens) * 7 % 100 + sample.seed % 2)
            rows.token[sample.row] = sample.tokens[-1]
        rows.position[:n] += 1
        rows.cursor[:n] += 1
        for sample in list(rows.samples):
            if len(sample.tokens) == sample.sampling.max_new_tokens:
                scheduler.remove(sample)
                self.done.append(sample)
        self.n_steps += 1
        self.most_rows = max(self.most_rows, n)


def group(ids: range, prompt: list[int], n_new: int) -> list[Sample]:
    """Samples of one prompt."""
    return [Sample(id, prompt, id, Sampling(max_new_tokens=n_new)) for id in ids]


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_random_work_ends_and_leaves_nothing_behind(seed: int, sharing: bool):
    """Groups of all sizes, cancelled now and then, on few pages: every cell is right when it is read."""
    draw = random.Random(seed)
    world = World(n_pages=12, max_rows=5, chunk_tokens=draw.choice([1, 3, 50]), sharing=sharing)
    live: list[Sample] = []
    n_asked = 0
    stem = [5] * 9
    while n_asked < 60 or world.scheduler.has_work:
        if n_asked < 60 and draw.random() < 0.3:
            prompt = stem[: draw.randrange(10)] + [draw.randrange(3) for _ in range(draw.randrange(1, 12))]
            n = draw.randrange(1, 8)
            samples = group(range(n_asked, n_asked + n), prompt, draw.randrange(1, 20))
            n_asked += n
            live += samples
            world.scheduler.submit(list(samples))
        if live and draw.random() < 0.05:
            sample = live[draw.randrange(len(live))]
            if sample not in world.done:
                world.scheduler.remove(sample)
                world.done.append(sample)
                live.remove(sample)
        if world.scheduler.has_work:
            world.step()
        assert world.n_steps < 5000, "it must end"
    assert len(world.done) == n_asked
    assert world.scheduler.pages.n_held == 0
    assert not world.scheduler._coming
    if not sharing:
        assert world.scheduler.pages.n_available == len(world.scheduler.pages._free)


def test_preemption_happens_and_changes_nothing_that_is_said():
    said = []
    for n_pages in (100, 7):
        world = World(n_pages, max_rows=4, chunk_tokens=50)
        for number in range(4):
            world.scheduler.submit(group(range(number, number + 1), [number] * 6, 18))
        while world.scheduler.has_work:
            world.step()
        said.append({sample.id: sample.tokens for sample in world.done})
        assert (world.scheduler.stats.preemptions > 0) == (n_pages == 7)
    assert said[0] == said[1]


def test_first_come_first_served():
    world = World(n_pages=100, max_rows=2, chunk_tokens=50)
    for number in range(7):
        world.scheduler.submit(group(range(number, number + 1), [number], 5))
    while world.scheduler.has_work:
        world.step()
    assert [sample.id for sample in world.done] == list(range(7))


def test_the_latest_admitted_goes_back_first_and_to_the_head_of_the_queue():
    world = World(n_pages=6, max_rows=3, chunk_tokens=50)
    for number in range(3):
        world.scheduler.submit(group(range(number, number + 1), [number] * 4, 17))
    while world.scheduler.has_work:
        world.step()
    assert world.scheduler.stats.preemptions and [sample.id for sample in world.done] == [0, 1, 2]


def test_prompts_come_in_chunks_of_the_budget():
    world = World(n_pages=100, max_rows=4, chunk_tokens=10)
    world.scheduler.submit(group(range(1), list(range(25)), 3))
    world.scheduler.submit(group(range(1, 2), list(range(50, 58)), 3))
    sizes = []
    for _ in range(3):
        chunks = world.scheduler.plan()
        sizes.append([chunk.count for chunk in chunks])
        world.scheduler.commit(chunks)
    assert sizes == [[10], [10], [5, 5]]


def test_a_group_is_computed_once_and_a_prefix_too():
    world = World(n_pages=100, max_rows=50, chunk_tokens=100)
    stem = list(range(8))  # two full pages
    world.scheduler.submit(group(range(5), [*stem, 50, 51], 2))
    world.scheduler.submit(group(range(5, 10), [*stem, 60], 2))
    world.step()
    assert world.n_computed == 10, "the second group waits for the first one's pages"
    world.step()
    assert world.n_computed == 10 + 5 + 1 and len(world.scheduler.rows) == 5
    while world.scheduler.has_work:
        world.step()
    world.scheduler.submit(group(range(10, 11), [*stem, 70], 1))
    before = world.n_computed
    world.step()
    assert world.n_computed == before + 1, "and is known after all have ended"


def test_changed_weights_are_not_published():
    """Pages of the time before are neither found nor made findable by those who still hold them."""
    world = World(n_pages=100, max_rows=50, chunk_tokens=4)
    stem = list(range(20))
    world.scheduler.submit(group(range(1), stem, 5))
    world.step()
    world.scheduler.pages.forget()
    while world.scheduler.has_work:
        world.step()
    assert not world.scheduler.pages._page_of


def test_rows_draw_the_numbers_of_their_seeds_whatever_becomes_of_them():
    """Across refills, two at a time, moved to other rows, and begun again."""
    rows = Rows(4, SIZE, 10)
    wanted = {seed: uniforms([seed], 400)[0].numpy() for seed in (3, 4, 5)}
    samples = [Sample(seed, [1], seed, Sampling(max_new_tokens=400)) for seed in wanted]
    draw = random.Random(1)
    for sample in samples:
        sample.table = [0]
        rows.add(sample)

    def check(n_steps: int) -> None:
        for _ in range(n_steps):
            counts = np.array([draw.choice([1, 2]) for _ in rows.samples])
            numbers: list[Any] = np.split(rows.uniforms(counts), np.cumsum(counts)[:-1])
            single = rows.uniforms()
            for row, sample in enumerate(rows.samples):
                at = len(sample.tokens)
                assert numbers[row].tolist() == wanted[sample.seed][at : at + counts[row]].tolist()
                assert single[row] == wanted[sample.seed][at]
                sample.tokens += [0] * int(counts[row])
                rows.cursor[row] += counts[row]

    check(80)
    gone = rows.remove(0)
    check(20)
    rows.add(gone)
    check(60)
