"""Which experts every cached token went to, kept beside its keys and values, for a trainer that wants to send it the
same way (router replay: arXiv:2507.18071, section 5.3; arXiv:2510.11370).

Kept by page and slot, so that shared prefixes have it too.

Try it alone: `pytest tests/engine/test_routing.py`
"""

from __future__ import annotations

import torch
from torch import Tensor

from zifio.config import ConfigError
from zifio.engine.batch import Batch
from zifio.engine.cache import PAGE
from zifio.models.config import DeepseekV3Config
from zifio.models.decoder import Decoder, Output


class RoutingStore:
    """Expert ids for `n_pages` pages; L MoE layers (without the MTP module's), A experts per token."""

    def __init__(self, model: Decoder, n_pages: int) -> None:
        config = model.config
        if not isinstance(config, DeepseekV3Config):
            raise ConfigError("record_routing: wanted a model with experts, came one without. Set it to false.")
        n_layers = config.num_hidden_layers - config.first_k_dense_replace
        self._expert_PSLA = torch.zeros(n_pages, PAGE, n_layers, config.num_experts_per_tok, dtype=torch.int16)

    def store(self, batch: Batch, output: Output) -> None:
        """Keep where a pass sent its tokens."""
        page_N, slot_N = (torch.from_numpy(index) for index in batch.places())
        expert_NLA = torch.stack([routing.expert_NA for routing in output.routing], dim=1)
        self._expert_PSLA[page_N, slot_N] = expert_NLA.to(torch.int16)

    def copy_page(self, source: int, target: int) -> None:
        """As the cache's."""
        self._expert_PSLA[target] = self._expert_PSLA[source]

    def read(self, table: list[int], n_tokens: int) -> Tensor:
        """The experts of a sequence's first tokens, [n_tokens, L, A]."""
        return self._expert_PSLA[table].flatten(0, 1)[:n_tokens].clone()
