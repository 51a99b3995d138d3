"""Teachers whose distributions a student learns from: a local model; what they must share with the student.

A teacher is asked about the student's own token ids, so both must mean the same tokens by them. Where they do not,
text is all that can pass between them (`method = "traces"`).

Try it alone: `pytest tests/train/test_distill.py`
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zifio.config import ConfigError
from zifio.data.template import ChatTokenizer
from zifio.models.attention import predecessors
from zifio.models.count import forward_flops
from zifio.models.decoder import Decoder
from zifio.train.batch import Batch
from zifio.train.divergence import Targets, Whole, likeliest
from zifio.train.logp import predictors


@dataclass(frozen=True)
class LocalTeacher:
    """A model of ours; implements `divergence.Teacher`."""

    model: Decoder
    top_k: int = 0
    """Tell so many of the likeliest tokens and the mass of the rest; 0: the whole distribution."""
    temperature: float = 1.0

    @torch.no_grad()
    def targets(self, batch: Batch, counted_BT: Tensor) -> Targets:
        """The distribution behind every counted token; its logits are made a chunk at a time by who compares them."""
        hidden_BTD = self.model(batch.tokens_BT, batch.positions_BT).hidden_BTD
        _, from_N = predictors(counted_BT, predecessors(batch.positions_BT))
        whole = Whole(hidden_BTD.flatten(0, 1)[from_N], self.model.lm_head.weight.detach())
        return likeliest(whole, self.top_k, self.temperature) if self.top_k else whole

    def flops(self, batch: Batch) -> float:
        """Of one forward pass over a batch."""
        return forward_flops(self.model.config, batch.lengths, firsts=batch.firsts)


def check_tokenizers(where: str, teacher: ChatTokenizer, student: ChatTokenizer) -> None:
    """Raise ConfigError unless both mean the same token by every id."""
    theirs, ours = (one.tokenizer.get_vocab(with_added_tokens=True) for one in (teacher, student))
    if theirs == ours:
        return
    differing = sorted(theirs.items() ^ ours.items(), key=lambda pair: (pair[1], pair[0]))
    token, id = differing[0]
    whose = "the teacher" if theirs.get(token) == id else "the student"
    raise ConfigError(
        f"{where}: teacher: wanted the student's own tokenizer, for logits are compared token by token; came another "
        f"({len(differing)} entries differ: id {id} is {token!r} to {whose} alone). Between different tokenizers only "
        'text can pass: sample from the teacher and set method = "traces".'
    )
