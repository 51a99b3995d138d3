"""Who owns which page of the cache: references, shared prefixes, and what is forgotten first.

A page is free, held by one or more sequences, or idle: nobody holds it, but it still has the keys and values of a
known prefix, and it is reused for them until its memory is wanted, the longest idle first (PagedAttention,
arXiv:2309.06180; prefix caching as in SGLang's RadixAttention, arXiv:2312.07104, with hashes instead of a tree).

The key of a full page is a hash of its tokens and of the key before it, so that equal keys mean equal prefixes.

Try it alone: `pytest tests/engine/test_pages.py`
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence


class Pages:
    """Ownership of `n_pages` pages of `size` tokens each; the pages themselves are elsewhere."""

    def __init__(self, n_pages: int, size: int) -> None:
        self.n_pages, self.size = n_pages, size
        self._holders = [0] * n_pages
        self._free = list(range(n_pages))[::-1]
        self._idle: OrderedDict[int, None] = OrderedDict()  # in the order in which they became idle
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self.era = 0
        """Counts `forget`: what was computed in an earlier era must not be published."""

    @property
    def n_available(self) -> int:
        """Pages that `take` can still give."""
        return len(self._free) + len(self._idle)

    @property
    def n_held(self) -> int:
        """Pages that somebody holds."""
        return self.n_pages - self.n_available

    def take(self) -> int:
        """A page for one new holder; an idle page is forgotten for it when none is free."""
        assert self.n_available, "the scheduler asks for pages only where there are some"
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
        self._holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more holder of a page that is held or idle."""
        if self._holders[page] == 0:
            del self._idle[page]
        self._holders[page] += 1

    def release(self, table: Sequence[int]) -> None:
        """One holder less for each page of a sequence; the last pages become idle, and are forgotten, first."""
        for page in reversed(table):
            assert self._holders[page] > 0, f"page {page} was given back more often than taken"
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def is_shared(self, page: int) -> bool:
        """Whether more than one sequence holds it, so that none may write to it."""
        return self._holders[page] > 1

    def keys(self, tokens: Sequence[int], known: Sequence[bytes] = ()) -> list[bytes]:
        """The key of every full page of `tokens`; `known` are the first of them, where they are known already."""
        keys = list(known)
        for page in range(len(keys), len(tokens) // self.size):
            own = array("q", tokens[page * self.size : (page + 1) * self.size]).tobytes()
            keys.append(hashlib.blake2b((keys[-1] if keys else b"") + own, digest_size=16).digest())
        return keys

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The pages of the longest known prefix; `share` them to hold them."""
        found: list[int] = []
        for key in keys:
            if key not in self._page_of:
                break
            found.append(self._page_of[key])
        return found

    def publish(self, page: int, key: bytes) -> None:
        """Let later sequences find a page that is computed in full; the first page with a key keeps it."""
        assert self._holders[page] > 0, "only a holder knows what a page contains"
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def forget(self) -> None:
        """No prefix is known any more: the weights changed. Pages stay with their holders."""
        self._free += self._idle
        self._idle.clear()
        self._page_of.clear()
        self._key_of.clear()
        self.era += 1
