"""`Steering` as a logits processor of vLLM's; it works in vLLM's own process, beside the model.

Try it alone: `pytest tests/serve/test_vllm.py`
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor  # type: ignore

from zifio.data.tokenizer import load_tokenizer
from zifio.serve.grammar import Grammars
from zifio.serve.steer import Steering
from zifio.serve.vllm_engine import STEERING


class Steered(AdapterLogitsProcessor):
    """Adds to the logits of a request what its steering says."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._tokenizer = load_tokenizer(vllm_config.model_config.model)
        self._grammars = Grammars(self._tokenizer)

    def is_argmax_invariant(self) -> bool:
        """Whether greedy replies are the same without it."""
        return False

    def new_req_logits_processor(self, params: Any) -> Callable[[list[int], Tensor], Tensor] | None:
        """What steers a request, if anything does."""
        packed = (params.extra_args or {}).get(STEERING)
        if packed is None:
            return None
        steering: Steering = pickle.loads(packed)  # our own, from the other end of the engine
        steering.equip(self._grammars.matcher, self._tokenizer.decode)
        n_heard = 0

        def steer(drawn: list[int], logits_V: Tensor) -> Tensor:
            nonlocal n_heard
            for token in drawn[n_heard:]:
                steering.hear(token)
            n_heard = len(drawn)
            bias = steering.bias()
            return logits_V if bias is None else logits_V + torch.from_numpy(bias).to(logits_V.device)

        return steer
