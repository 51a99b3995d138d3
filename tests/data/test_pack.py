"""Packing: nothing lost, nothing split, no row too long, little waste, the same rows every time."""

import math
import random

import pytest

from zifio.config import ConfigError
from zifio.data.pack import Sequence, pack


def first_fit_decreasing(lengths: list[int], row_tokens: int) -> list[list[int]]:
    """The readable form: look through the rows from the first."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row in rows:
            if sum(lengths[i] for i in row) + lengths[index] <= row_tokens:
                row.append(index)
                break
        else:
            rows.append([index])
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_readable_form(seed):
    rng = random.Random(seed)
    row_tokens = rng.choice([1, 7, 64, 100])
    lengths = [rng.randint(1, row_tokens) for _ in range(rng.choice([0, 1, 2, 3, 50, 200]))]
    assert pack(lengths, row_tokens) == first_fit_decreasing(lengths, row_tokens)


def test_thousands_are_packed_whole_and_tight():
    rng = random.Random(1)
    lengths = [rng.randint(20, 90) for _ in range(5000)]
    rows = pack(lengths, 512)
    assert sorted(index for row in rows for index in row) == list(range(5000))
    assert all(0 < sum(lengths[index] for index in row) <= 512 for row in rows)
    assert len(rows) <= math.ceil(sum(lengths) / 512) * 1.01 + 1
    assert rows == pack(tuple(lengths), 512)


def test_a_sequence_as_long_as_a_row_has_it_alone():
    assert pack([4, 8, 4], 8) == [[1], [0, 2]]
    assert pack([], 8) == []


def test_a_sequence_longer_than_a_row_is_an_error():
    with pytest.raises(ConfigError, match=r"row_tokens=8.*9 tokens of sequence 1"):
        pack([3, 9], 8)


def test_an_empty_sequence_is_a_bug():
    with pytest.raises(AssertionError, match="sequence 1"):
        pack([3, 0], 8)


def test_every_column_is_as_long_as_the_tokens():
    Sequence([1, 2], [0.0, 1.0], {"advantage": [0.5, 0.5]})
    with pytest.raises(AssertionError, match="weight"):
        Sequence([1, 2], [0.0])
    with pytest.raises(AssertionError, match="advantage"):
        Sequence([1, 2], [0.0, 1.0], {"advantage": [0.5]})
