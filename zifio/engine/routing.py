"""Which experts every cached token went to, kept beside its keys and values, for a trainer that wants to send it the
same way (router replay: arXiv:2507.18071, section 5.3; arXiv:2510.11370).

Kept by page and slot, so that shared prefixes have it too.

Try it alone: `pytest tests/engine/test_routing.py`
"""

from __future__ import annotations

import torch
from torch import Tensor

from zifio.engine.batch import Batch
from zifio.engine.cache import PAGE
from zifio.models.decoder import Output


class RoutingStore:
    """Expert ids for `n_pages` pages; L MoE layers (without the MTP module's), A experts per token."""

    def __init__(self, n_pages: int) -> None:
        self._n_pages = n_pages
        self._expert_PSLA: Tensor | None = None  # made when the first pass shows how many layers and experts

    def store(self, batch: Batch, output: Output) -> None:
        """Keep where a pass sent its tokens."""
        expert_NLA = torch.stack([routing.expert_NA for routing in output.routing], dim=1).to(torch.int16)
        page_N, slot_N = (torch.from_numpy(index).to(expert_NLA.device) for index in batch.places())
        if self._expert_PSLA is None:
            self._expert_PSLA = expert_NLA.new_zeros(self._n_pages, PAGE, *expert_NLA.shape[1:])
        self._expert_PSLA[page_N, slot_N] = expert_NLA

    def copy_page(self, source: int, target: int) -> None:
        """As the cache's."""
        assert self._expert_PSLA is not None, "a page is copied after it was computed"
        self._expert_PSLA[target] = self._expert_PSLA[source]

    def read(self, table: list[int], n_tokens: int) -> Tensor:
        """The experts of a sequence's first tokens, [n_tokens, L, A], on the CPU."""
        assert self._expert_PSLA is not None, "a sequence is read after it was computed"
        return self._expert_PSLA[table].flatten(0, 1)[:n_tokens].clone().cpu()
