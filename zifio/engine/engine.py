"""Batched sampling: each prompt computed once per group, finished sequences leave the batch, exact log-probs.

The engine runs the trainer's own model, so there are no weights to synchronise. Per wave of prompts: one prefill over
the prompts, whose full pages all samples of a group share, then one token per step for all unfinished rows.

Try it: `zifio chat MODEL`, or

    Engine(model, eos_id=2).generate([[1, 3, 5]], seeds=[[0, 1]], sampling=Sampling(max_new_tokens=8))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from zifio.config import ConfigError, Sampling
from zifio.engine.cache import PAGE, PagedCache
from zifio.engine.sampler import choose, uniforms
from zifio.models.decoder import Decoder


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
        tables_P, tables, n_pages = self._pages(prompts, [len(seeds) for seeds in seeds_P_G], sampling.max_new_tokens)
        cache = PagedCache(self.model.config, n_pages)
        length_P = [len(prompt) for prompt in prompts]
        cache.begin(tables_P, [0] * len(prompts), length_P)
        tokens_1N = torch.tensor([[token for prompt in prompts for token in prompt]])
        positions_1N = torch.cat([torch.arange(length) for length in length_P])[None]
        hidden_ND = self.model(tokens_1N, positions_1N, cache).hidden_BTD[0]
        logits_PV = self.model.logits(hidden_ND[torch.tensor(length_P).cumsum(0) - 1])
        prompt_of_row = [p for p, seeds in enumerate(seeds_P_G) for _ in seeds]
        for row, p in enumerate(prompt_of_row):
            if length_P[p] % PAGE:
                cache.copy_page(tables_P[p][-1], tables[row][length_P[p] // PAGE])
        uniform_Bn = uniforms([seed for seeds in seeds_P_G for seed in seeds], sampling.max_new_tokens)
        first_B = torch.tensor([length_P[p] for p in prompt_of_row])
        rows = self._decode(cache, tables, logits_PV[torch.tensor(prompt_of_row)], first_B, uniform_Bn, sampling)
        grouped, at = [], 0
        for seeds in seeds_P_G:
            grouped.append(rows[at : at + len(seeds)])
            at += len(seeds)
        return grouped

    def _pages(
        self, prompts: list[list[int]], n_rows_P: list[int], n_new: int
    ) -> tuple[list[list[int]], list[list[int]], int]:
        """The table of every prompt, of every row (it shares its prompt's full pages), and the pages in all."""
        tables_P, tables, n_pages = [], [], 0
        for prompt, n_rows in zip(prompts, n_rows_P, strict=True):
            n_own = -(-len(prompt) // PAGE)
            tables_P.append(list(range(n_pages, n_pages + n_own)))
            n_pages += n_own
            n_full = len(prompt) // PAGE
            n_more = -(-(len(prompt) + n_new) // PAGE) - n_full
            for _ in range(n_rows):
                tables.append(tables_P[-1][:n_full] + list(range(n_pages, n_pages + n_more)))
                n_pages += n_more
        return tables_P, tables, n_pages

    def _decode(
        self,
        cache: PagedCache,
        tables: list[list[int]],
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
        for step in range(n_steps):
            token, logp = choose(logits_BV, uniform_Bn[alive, step], sampling)
            tokens_Bn[alive, step], logps_Bn[alive, step] = token, logp
            going = token != self.eos_id
            length_B[alive[~going]] = step + 1
            alive, token, next_position_B = alive[going], token[going], next_position_B[going]
            if step + 1 == n_steps or not len(alive):
                break
            cache.begin([tables[row] for row in alive.tolist()], next_position_B.tolist(), [1] * len(alive))
            hidden = self.model(token[None], next_position_B[None], cache).hidden_BTD[0]
            logits_BV = self.model.logits(hidden)
            next_position_B = next_position_B + 1
        return [self._completion(tokens_Bn[row], logps_Bn[row], int(length_B[row])) for row in range(n_rows)]

    def _completion(self, tokens_n: Tensor, logps_n: Tensor, length: int) -> Completion:
        tokens = tokens_n[:length].tolist()
        finish: Literal["stop", "length"] = "stop" if tokens and tokens[-1] == self.eos_id else "length"
        return Completion(tokens, logps_n[:length].tolist(), finish)
