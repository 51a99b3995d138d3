"""Named random streams: every draw belongs to a stream named by what it is for, never to `seed + i`.

Position is state: the stream of ("task", "train", 7) is the same whether or not streams 0 to 6 were drawn
from, so resuming needs no saved generator. Python's own string hash is salted per process and never used.

Try it alone:

    python -c "from zifio.seed import stream; print(stream(1, 'task', 'train', 7).random())"
"""

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

Item = TypeVar("Item")


def stream(seed: int, *names: int | str) -> random.Random:
    """A fresh generator that depends on `seed` and `names` only."""
    return random.Random(_digest(seed, names))


def stream_seed(seed: int, *names: int | str) -> int:
    """A number in [0, 2**63) that depends on `seed` and `names` only, for torch.Generator().manual_seed."""
    return int.from_bytes(_digest(seed, names)[:8], "big") >> 1


def nth(items: Sequence[Item], index: int, seed: int, *names: int | str) -> Item:
    """The index-th item of an endless walk that visits all in a new order every epoch."""
    epoch, place = divmod(index, len(items))
    return items[_order(len(items), seed, *names, epoch)[place]]


@lru_cache(maxsize=2)  # one epoch of a walk at a time is in use
def _order(n: int, seed: int, *names: int | str) -> list[int]:
    return stream(seed, *names).sample(range(n), n)


def _digest(seed: int, names: tuple[int | str, ...]) -> bytes:
    """sha256 of the words. Plain int and str only: another type's repr may change under our feet."""
    words = (seed, *names)
    assert all(type(word) in (int, str) for word in words), f"a stream is named by int and str only, not {words!r}"
    return hashlib.sha256(repr(words).encode()).digest()
