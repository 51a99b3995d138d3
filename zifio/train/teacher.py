"""Teachers whose distributions a student learns from: a local model, or a server that tells log-probs of prompts.

A teacher is asked about the student's own token ids, so both must mean the same tokens by them: of a local one the
vocabularies are compared, of a server every token that it names. Where they differ, text is all that can pass between
the two (`method = "traces"`).

Try it alone: `pytest tests/train/test_distill.py`
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zifio.config import ConfigError, EndpointSettings
from zifio.data.template import ChatTokenizer
from zifio.models.attention import predecessors
from zifio.models.count import forward_flops
from zifio.models.decoder import Decoder
from zifio.train.batch import Batch
from zifio.train.divergence import Targets, Top, Whole, likeliest
from zifio.train.logp import predictors
from zifio.wire import Wire

_LEAST_REST = 1e-9
"""The mass of the tokens that a server did not name is at least this, whatever rounding says."""
_TEXT_ALONE = (
    'Between different tokenizers only text can pass: sample from the teacher and set method = "traces", or use an '
    "`sft` stage."
)


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

    def close(self) -> None:
        """Nothing is open."""

    def flops(self, batch: Batch) -> float:
        """Of one forward pass over a batch."""
        return forward_flops(self.model.config, batch.lengths, firsts=batch.firsts)


class RemoteTeacher:
    """A server that tells the log-probs of a prompt's tokens, as vLLM does at /v1/completions; implements
    `divergence.Teacher`.

    Each sequence goes as token ids and comes back with the k likeliest tokens in the place of each. A resumed run asks
    again, and goes on exactly as far as the server answers exactly.
    """

    def __init__(self, url: str, model: str, top_k: int, tokenizer: ChatTokenizer, settings: EndpointSettings) -> None:
        """Raises ConfigError for what is no address."""
        self.model, self.top_k, self.tokenizer, self.settings = model, top_k, tokenizer, settings
        self.wire = Wire(url, settings, "/completions", "completion with prompt_logprobs")

    def close(self) -> None:
        """End all requests that are under way."""
        self.wire.close()

    def flops(self, batch: Batch) -> float:
        """Nobody tells; the ledger knows that it does not know."""
        return 0.0

    def targets(self, batch: Batch, counted_BT: Tensor) -> Targets:
        """The server's likeliest tokens behind every counted token.

        Raises ConfigError when it does not answer, or means other tokens by these ids.
        """
        assert not any(batch.firsts), "whole sequences, each with its own prompt"
        starts_BT = (batch.positions_BT == 0) & batch.real_BT
        rows, columns = (place.tolist() for place in starts_BT.nonzero(as_tuple=True))
        placed = zip(rows, columns, batch.lengths, strict=True)
        spans = [(row, slice(column, column + length)) for row, column, length in placed]
        texts = [batch.tokens_BT[span].tolist() for span in spans]
        found: dict[int, list[Any]] = {}
        jobs = [
            partial(self.wire.ask, self._body(text), partial(self._read, len(text)), place)
            for place, text in enumerate(texts)
        ]
        for place, answer in self.wire.run(jobs):
            if isinstance(answer, str):
                raise ConfigError(
                    f"{self.wire.url}: wanted the log-probs of {self.top_k} tokens in every place of a prompt "
                    f"(prompt_logprobs, as vLLM has it), came a failure: {answer}. The last checkpoint is kept; run "
                    "the same command again."
                )
            found[place] = answer
        device = counted_BT.device
        ids_BTK = torch.zeros(*counted_BT.shape, self.top_k, dtype=torch.long)
        logp_BTK = torch.zeros(*counted_BT.shape, self.top_k)
        for place, span in enumerate(spans):
            ids, logps = zip(*found[place], strict=True)
            ids_BTK[span], logp_BTK[span] = torch.tensor(ids), torch.tensor(logps)
        at_N, _ = predictors(counted_BT, predecessors(batch.positions_BT))
        ids_NK, logp_NK = ids_BTK.flatten(0, 1).to(device)[at_N], logp_BTK.flatten(0, 1).to(device)[at_N]
        rest_N = (1 - logp_NK.exp().sum(dim=1)).clamp(min=_LEAST_REST).log()
        return Top(ids_NK, logp_NK, rest_N)

    def _body(self, tokens: list[int]) -> bytes:
        wanted = {"prompt": tokens, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": self.top_k}
        return json.dumps({"model": self.model, **wanted, **self.settings.extra}).encode()

    def _read(self, n: int, found: Any, seconds: float, number: int) -> list[tuple[list[int], list[float]]]:
        """(ids, log-probs) of the likeliest tokens in every place of n; of the first, which never counts, nothing."""
        table = found["choices"][0]["prompt_logprobs"]
        if len(table) != n:
            raise ValueError(f"{len(table)} places of {n}")
        return [([0] * self.top_k, [0.0] * self.top_k), *map(self._place, table[1:])]

    def _place(self, entries: dict[str, dict[str, Any]]) -> tuple[list[int], list[float]]:
        ranked = sorted(entries.items(), key=lambda item: (-float(item[1]["logprob"]), int(item[0])))[: self.top_k]
        ids, logps = [int(id) for id, _ in ranked], [float(entry["logprob"]) for _, entry in ranked]
        if len(ids) < self.top_k or not all(map(math.isfinite, logps)):
            raise ValueError(f"{len(ids)} of {self.top_k} log-probs, or one that is not finite")
        for id, (_, entry) in zip(ids, ranked, strict=True):
            self._check(id, entry.get("decoded_token"))
        return ids, logps

    def _check(self, id: int, theirs: str | None) -> None:
        """Raise ConfigError where the server means another token; half a character says nothing."""
        ours = self.tokenizer.tokenizer.decode([id], skip_special_tokens=False)
        is_other = theirs is not None and theirs != ours and "\ufffd" not in theirs + ours
        if is_other or id >= self.tokenizer.vocab_size:
            raise ConfigError(
                f"{self.wire.url}: teacher: wanted the student's own tokenizer, for logits are compared token by "
                f"token; came another: id {id} is {theirs!r} to the teacher and {ours!r} to the student. {_TEXT_ALONE}"
            )


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
        f"({len(differing)} entries differ: id {id} is {token!r} to {whose} alone). {_TEXT_ALONE}"
    )
