"""Scores of solutions by a reward model: how likely each step is good, or how good a whole reply is.

A process reward model (two labels) gives the probability of the second class at the last token of each step, a reward
model (one label) its score at the end of the reply. Both are Hugging Face folders, read by transformers as
...ForTokenClassification and ...ForSequenceClassification.

Try it alone: `pytest tests/engine/test_scorer.py`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from zifio.config import ConfigError
from zifio.data.pack import pack
from zifio.data.solution import encode_steps
from zifio.data.template import ChatTokenizer, Message
from zifio.engine.policy import open_decoder
from zifio.models.count import forward_flops
from zifio.models.decoder import Decoder
from zifio.models.device import Device, find_device

Solved = tuple[list[Message], Sequence[str]]
"""The messages that put a problem, and the steps of a solution to it."""

MICRO_TOKENS = 8192
"""Tokens of one forward pass."""


class Scores(NamedTuple):
    """What a reward model says of solutions."""

    values: list[list[float]]
    """Of each solution, of each step."""
    flops: float


class Scorer:
    """A reward model and what it says of solutions."""

    def __init__(self, model: Decoder, tokenizer: ChatTokenizer) -> None:
        """Raises ConfigError when the model has no scores."""
        if model.config.num_labels not in (1, 2):
            raise ConfigError(
                "wanted a reward model (1 label) or a process reward model (2 labels), came a model with "
                f"{model.config.num_labels or 'no'} labels. Train one with a `prm` or `reward` stage."
            )
        self.model, self.tokenizer = model, tokenizer

    @property
    def by_step(self) -> bool:
        """Whether every step has a score, or only the whole."""
        return self.model.config.num_labels == 2

    def scores(self, solved: Sequence[Solved]) -> Scores:
        """For each solution a score in [0, 1] of every step; of a reward model one number, of the whole.

        Each solution's scores are the same whatever is scored beside it, on a CPU in fp32 to the last bit. Raises
        ConfigError when one is longer than the model's context.
        """
        encoded = [encode_steps(self.tokenizer, messages, steps) for messages, steps in solved]
        if not self.by_step:
            encoded = [one._replace(tokens=[*one.tokens, self.tokenizer.eos_id]) for one in encoded]
            encoded = [one._replace(ends=[len(one.tokens) - 1]) for one in encoded]
        lengths = [len(one.tokens) for one in encoded]
        context = self.model.config.max_position_embeddings
        if lengths and max(lengths) > context:
            raise ConfigError(
                f"reward model: wanted solutions within its context of {context} tokens, came one of {max(lengths)}. "
                "Raise max_position_embeddings of the model that it is made from."
            )
        out: list[list[float]] = [[] for _ in encoded]
        rows = pack(lengths, max(lengths, default=1))
        per_pass = max(1, MICRO_TOKENS // max(lengths, default=1))
        for start in range(0, len(rows), per_pass):
            part = rows[start : start + per_pass]
            good_BT = self._forward([[encoded[i].tokens for i in row] for row in part])
            for row, good_T in zip(part, good_BT.tolist(), strict=True):
                at = 0
                for i in row:
                    out[i] = [good_T[at + end] for end in encoded[i].ends]
                    at += lengths[i]
        return Scores(out, forward_flops(self.model.config, lengths))

    @torch.no_grad()
    def _forward(self, rows: list[list[list[int]]]) -> Tensor:
        """[rows, T] the score at every token of sequences that stand one behind the other."""
        width = max(sum(map(len, row)) for row in rows)
        flat = [[token for one in row for token in one] for row in rows]
        places = [[place for one in row for place in range(len(one))] for row in rows]
        tokens = [row + [self.tokenizer.pad_id] * (width - len(row)) for row in flat]
        positions = [row + list(range(width - len(row))) for row in places]
        device = self.model.device
        hidden_BTD = self.model(torch.tensor(tokens, device=device), torch.tensor(positions, device=device)).hidden_BTD
        scores_BTY = self.model.score(hidden_BTD).float()
        return (scores_BTY.softmax(dim=-1)[..., 1] if self.by_step else scores_BTY[..., 0]).cpu()


def load_scorer(folder: str | Path, device: Device = "cpu") -> Scorer:
    """The reward model of a folder. Raises ConfigError when there is none, or it has no scores."""
    model, tokenizer = open_decoder(folder)
    return Scorer(model.to(find_device(device, str(folder))), tokenizer)
