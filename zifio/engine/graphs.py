"""Decoding steps as CUDA graphs: what a GPU does for one token of every row, recorded once and then replayed.

A decoding step is hundreds of small kernels, and Python takes longer to launch them than a GPU to run them. A graph
launches all of them at once. It has fixed shapes and addresses, so a step is padded to the next power of two, in rows
and in pages, and written to where the graph reads; one graph for every pair of sizes, recorded when it first comes up.
The rows that are too many write their keys to a page that nobody owns.

All that a step needs goes over in one piece, and the draw is a part of the graph. Rows that draw from less than the
whole distribution (top-k and the like) are drawn again from its logits.

Without a GPU the padded step is computed as it is, which is how tests see that padding changes nothing.

Try it alone: `pytest tests/engine/test_graphs.py`
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zifio.engine.batch import Batch
from zifio.engine.cache import PagedCache
from zifio.engine.config import EngineConfig
from zifio.engine.layered import is_layered
from zifio.engine.sampler import draw
from zifio.models.config import AnyConfig
from zifio.models.decoder import Decoder
from zifio.models.moe import FEW

_TOKEN, _POSITION, _UNIFORM, _TEMPERATURE, _TABLE = range(5)
"""Columns of what a step is fed; the table takes all from the last one on. Two hold the bits of float64."""


class Decoded(NamedTuple):
    """What a step makes of N rows; good until the next one."""

    hidden_ND: Tensor
    logits_NV: Tensor
    token_N: Tensor
    logp_N: Tensor


class _Recorded(NamedTuple):
    """A graph, where it reads and where it writes."""

    graph: torch.cuda.CUDAGraph
    fed_NC: Tensor
    made: Decoded


def graphs_wanted(device: torch.device, settings: EngineConfig, config: AnyConfig) -> bool:
    """Whether an engine with these settings takes graphs there; not for a model whose layers are of several kinds."""
    plain = not settings.record_routing and not is_layered(config)
    return device.type == "cuda" and settings.cuda_graphs and plain


def bucket(n: int) -> int:
    """The smallest power of two that n does not exceed."""
    return 1 << (n - 1).bit_length()


def padded(batch: Batch, uniform_N: np.ndarray, temperature_N: np.ndarray, padding_page: int) -> np.ndarray:
    """A step as int64 [rows, 4 + pages], both powers of two, its columns as above.

    Rows that are too many are greedy ones at position 0 of the page for padding, which also fills up the tables.
    """
    n, width = batch.table_MP.shape
    fed_NC = np.zeros((bucket(n), _TABLE + bucket(width)), np.int64)
    fed_NC[:n, _TOKEN], fed_NC[:n, _POSITION] = batch.tokens_N, batch.positions_N
    fed_NC[:n, _UNIFORM] = uniform_N.view(np.int64)
    fed_NC[:n, _TEMPERATURE] = temperature_N.astype(np.float64).view(np.int64)
    fed_NC[:, _TABLE:] = padding_page
    fed_NC[:n, _TABLE : _TABLE + width] = batch.table_MP
    return fed_NC


class DecodeGraphs:
    """Steps of one model on one cache, as long as neither the weights nor the pages move in memory."""

    def __init__(self, model: Decoder, cache: PagedCache, padding_page: int) -> None:
        """`padding_page` is a page of the cache that no sequence has."""
        self.model, self.cache, self.padding_page = model, cache, padding_page
        self._recorded: dict[tuple[int, ...], _Recorded] = {}
        self._most = FEW if model.routers() else None  # beyond, experts ask the GPU how many tokens each of them has
        self._on_gpu = cache.device.type == "cuda"
        if self._on_gpu:
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(cache.device)

    def takes(self, n_rows: int) -> bool:
        """Whether a step of so many rows can be recorded."""
        return self._most is None or bucket(n_rows) <= self._most

    def step(self, batch: Batch, uniform_N: np.ndarray, temperature_N: np.ndarray) -> Decoded:
        """Compute one token of every row and draw the next, with a random number and a temperature for each."""
        n, fed_NC = len(batch.tokens_N), torch.from_numpy(padded(batch, uniform_N, temperature_N, self.padding_page))
        if not self._on_gpu:
            return Decoded(*(made[:n] for made in self._decode(fed_NC)))
        recorded = self._recorded.get(fed_NC.shape)
        if recorded is None:
            recorded = self._recorded[fed_NC.shape] = self._record(fed_NC.to(self.cache.device))
        recorded.fed_NC.copy_(fed_NC, non_blocking=True)
        recorded.graph.replay()
        return Decoded(*(made[:n] for made in recorded.made))

    def _decode(self, fed_NC: Tensor) -> Decoded:
        """The step itself. It must not ask the GPU for anything."""
        token_1N, position_1N = fed_NC[None, :, _TOKEN], fed_NC[None, :, _POSITION]
        uniform_N, temperature_N = (fed_NC[:, place].view(torch.float64) for place in (_UNIFORM, _TEMPERATURE))
        self.cache.begin_decode(fed_NC[:, _TABLE:], position_1N[0])
        hidden_ND = self.model(token_1N, position_1N, self.cache).hidden_BTD[0]
        logits_NV = self.model.logits(hidden_ND)
        return Decoded(hidden_ND, logits_NV, *draw(logits_NV, uniform_N, temperature_N.float()))

    def _record(self, fed_NC: Tensor) -> _Recorded:
        """Run the step once, so that libraries load what they need for these shapes, and record it.

        All graphs share their memory: each is done with before the next one runs.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._decode(fed_NC)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on calling CUDA: only what this one does is recorded.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            made = self._decode(fed_NC)
        return _Recorded(graph, fed_NC, made)
