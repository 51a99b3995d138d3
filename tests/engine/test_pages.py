"""Ownership of pages under random work: none lost, none given twice, shared prefixes found while they are true."""

from __future__ import annotations

import random

import pytest

from zifio.engine.pages import Pages

SIZE = 4


@pytest.mark.parametrize("seed", range(20))
def test_random_work_neither_loses_nor_doubles_a_page(seed: int):
    """Sequences over few different tokens come, share, publish and go; a model of the truth is kept beside it."""
    draw = random.Random(seed)
    pages = Pages(24, SIZE)
    held: list[tuple[list[int], list[int]]] = []  # tokens and table of every sequence
    content: dict[int, tuple[int, ...]] = {}  # whole prefix that a page was last filled for
    n_found = 0
    for _ in range(400):
        action = draw.random()
        if action < 0.5:
            tokens = [draw.randrange(2) for _ in range(draw.randrange(1, 20))]
            keys = pages.keys(tokens)
            found = pages.find(keys)
            for number, page in enumerate(found):
                assert content[page] == tuple(tokens[: (number + 1) * SIZE]), "a found page holds that very prefix"
                pages.share(page)
            n_fresh = -(-len(tokens) // SIZE) - len(found)
            if n_fresh > pages.n_available:
                pages.release(found)
                continue
            table = found + [pages.take() for _ in range(n_fresh)]
            for number in range(len(found), len(table)):
                content[table[number]] = tuple(tokens[: (number + 1) * SIZE])
                if number < len(keys):
                    pages.publish(table[number], keys[number])
            held.append((tokens, table))
            n_found += len(found)
        elif action < 0.97 and held:
            pages.release(held.pop(draw.randrange(len(held)))[1])
        elif action >= 0.97:
            pages.forget()
            content = dict.fromkeys(content, ("stale",)) | {  # what is held stays, but nobody may find it
                page: ("stale",) for _, table in held for page in table
            }
        users = [sum(page in table for _, table in held) for page in range(24)]
        assert pages._holders == users
        assert pages.n_held == sum(n > 0 for n in users)
        assert sorted([*pages._free, *pages._idle, *(page for page, n in enumerate(users) if n)]) == list(range(24))
        assert {pages._page_of[key] for key in pages._key_of.values()} == set(pages._key_of)
    for _, table in held:
        pages.release(table)
    assert pages.n_available == 24
    assert n_found > 20, "the test wants shared prefixes"


def test_giving_back_too_often_is_noticed():
    pages = Pages(2, SIZE)
    page = pages.take()
    pages.release([page])
    with pytest.raises(AssertionError, match="more often than taken"):
        pages.release([page])


def test_prefixes_outlive_their_holders_until_memory_is_wanted_the_oldest_first():
    pages = Pages(4, SIZE)
    tokens = [[1] * 8, [2] * 8]
    for prompt in tokens:
        table = [pages.take(), pages.take()]
        for page, key in zip(table, pages.keys(prompt), strict=True):
            pages.publish(page, key)
        pages.release(table)
    assert pages.n_available == 4
    assert [len(pages.find(pages.keys(prompt))) for prompt in tokens] == [2, 2]
    pages.take()
    assert [len(pages.find(pages.keys(prompt))) for prompt in tokens] == [1, 2], (
        "the end of the older prefix goes first"
    )
    pages.take()
    assert [len(pages.find(pages.keys(prompt))) for prompt in tokens] == [0, 2]


def test_equal_pages_behind_unequal_prefixes_have_unequal_keys():
    pages = Pages(1, SIZE)
    one, two = pages.keys([1] * 4 + [3] * 4), pages.keys([2] * 4 + [3] * 4)
    assert one[0] != two[0] and one[1] != two[1]
    assert pages.keys([1] * 4 + [3] * 4 + [5] * 5, one[:1]) == [*one, pages.keys([1] * 4 + [3] * 4 + [5] * 4)[2]]
    assert pages.keys([1, 2, 3]) == []


def test_the_first_page_with_a_key_keeps_it():
    pages = Pages(2, SIZE)
    key = pages.keys([1] * 4)[0]
    first, second = pages.take(), pages.take()
    pages.publish(first, key)
    pages.publish(second, key)
    assert pages.find([key]) == [first]
    pages.release([second])
    assert pages.find([key]) == [first] and pages.n_available == 1
