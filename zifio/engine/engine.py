"""Batched sampling: each prompt computed once per group, finished sequences leave the batch, exact log-probs.

The engine runs the trainer's own model, so there are no weights to synchronise. Per wave of prompts: one prefill over
the prompts, the cache rows repeated for every group, then one token per step for all unfinished rows.

Try it: `zifio chat MODEL`, or

    Engine(model, eos_id=2).generate([[1, 3, 5]], seeds=[[0, 1]], sampling=Sampling(max_new_tokens=8))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from zifio.config import ConfigError, Sampling
from zifio.engine.cache import PagedCache as SlotCache
from zifio.engine.sampler import choose, uniforms
from zifio.models.decoder import Decoder

# When fewer than this share of the rows is unfinished, the others leave the batch; moving the cache costs a copy.
_LEAVE_BELOW = 0.75


@dataclass
class Completion:
    """What the model said: tokens (with the end token where it was drawn) and the log-prob of each."""

    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] = "length"


class Engine:
    """Samples from a decoder; `max_rows` bounds how many sequences are decoded side by side."""

    def __init__(self, model: Decoder, eos_id: int, max_rows: int = 512) -> None:
        self.model, self.eos_id, self.max_rows = model, eos_id, max_rows

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], seeds: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        """For every prompt as many completions as it has seeds, in order.

        Raises ConfigError when a prompt with its reply would not fit the model's context.
        """
        longest = max((len(prompt) for prompt in prompts), default=0)
        context = self.model.config.max_position_embeddings
        if prompts and longest + sampling.max_new_tokens > context:
            raise ConfigError(
                f"max_new_tokens={sampling.max_new_tokens} does not fit: the longest prompt has {longest} tokens and "
                f"the model's context is {context}. Lower max_new_tokens to {max(context - longest, 0)} or shorten it."
            )
        done: list[list[Completion]] = [[] for _ in prompts]
        most = self.max_rows
        pieces = [(p, group[at : at + most]) for p, group in enumerate(seeds) for at in range(0, len(group), most)]
        while pieces:
            stop = 1
            while stop < len(pieces) and sum(len(piece) for _, piece in pieces[: stop + 1]) <= most:
                stop += 1
            wave, pieces = pieces[:stop], pieces[stop:]
            replies = self._wave([prompts[p] for p, _ in wave], [piece for _, piece in wave], sampling)
            for (p, _), completions in zip(wave, replies, strict=True):
                done[p] += completions
        return done

    def _wave(self, prompts: list[list[int]], seeds_P_G: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        """Prefill the prompts, then decode all their rows together."""
        length_P = torch.tensor([len(prompt) for prompt in prompts])
        width = int(length_P.max())
        tokens_PT = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens_PT[row, : len(prompt)] = torch.tensor(prompt)
        cache = SlotCache(self.model.config, len(prompts), width + sampling.max_new_tokens)
        cache.reserve(width)
        positions_PT = torch.arange(width).expand(len(prompts), -1)
        hidden_PTD = self.model(tokens_PT, positions_PT, cache).hidden_BTD
        logits_PV = self.model.logits(hidden_PTD[torch.arange(len(prompts)), length_P - 1])

        group = torch.tensor([len(seeds) for seeds in seeds_P_G])
        prompt_of_row = torch.arange(len(prompts)).repeat_interleave(group)
        cache.take(prompt_of_row)
        uniform_Bn = uniforms([seed for seeds in seeds_P_G for seed in seeds], sampling.max_new_tokens)
        rows = self._decode(cache, logits_PV[prompt_of_row], length_P[prompt_of_row], uniform_Bn, sampling)
        grouped, at = [], 0
        for seeds in seeds_P_G:
            grouped.append(rows[at : at + len(seeds)])
            at += len(seeds)
        return grouped

    def _decode(
        self,
        cache: SlotCache,
        logits_BV: Tensor,
        next_position_B: Tensor,
        uniform_Bn: Tensor,
        sampling: Sampling,
    ) -> list[Completion]:
        """Draw a token for every row until all have ended or reached `max_new_tokens`."""
        n_rows, n_steps = uniform_Bn.shape
        tokens_Bn = torch.zeros(n_rows, n_steps, dtype=torch.long)
        logps_Bn = torch.zeros(n_rows, n_steps)
        length_B = torch.full((n_rows,), n_steps)
        alive = torch.arange(n_rows)  # which completion each row of the batch belongs to
        going = torch.ones(n_rows, dtype=torch.bool)  # False: ended, but still in the batch
        for step in range(n_steps):
            token, logp = choose(logits_BV, uniform_Bn[alive, step], sampling)
            tokens_Bn[alive[going], step] = token[going]
            logps_Bn[alive[going], step] = logp[going]
            ended = going & (token == self.eos_id)
            length_B[alive[ended]] = step + 1
            going = going & ~ended
            if step + 1 == n_steps or not going.any():
                break
            if going.float().mean() < _LEAVE_BELOW:
                keep = going.nonzero()[:, 0]
                cache.take(keep)
                alive, token, next_position_B, going = (
                    alive[keep],
                    token[keep],
                    next_position_B[keep],
                    going[keep],
                )
            cache.reserve(int(next_position_B.max()) + 1)
            hidden = self.model(token[:, None], next_position_B[:, None], cache).hidden_BTD[:, 0]
            logits_BV = self.model.logits(hidden)
            next_position_B = next_position_B + 1
        return [self._completion(tokens_Bn[row], logps_Bn[row], int(length_B[row])) for row in range(n_rows)]

    def _completion(self, tokens_n: Tensor, logps_n: Tensor, length: int) -> Completion:
        tokens = tokens_n[:length].tolist()
        finish: Literal["stop", "length"] = "stop" if tokens and tokens[-1] == self.eos_id else "length"
        return Completion(tokens, logps_n[:length].tolist(), finish)
