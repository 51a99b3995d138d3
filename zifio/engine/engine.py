"""Continuous batching on the trainer's own model, with exact log-probs.

There are no weights to synchronise: the engine computes with the modules that the trainer trains. Each `step` is one
forward pass over all running replies and a few chunks of prompts; whoever needs a token draws it, whoever is finished
leaves, and whoever waits may come in (`engine/scheduler.py`). Keys and values live in pages (`engine/cache.py`) whose
number is fixed beforehand, so memory never grows under load; what can never fit is refused with the numbers.

Two ways in: `generate` answers a batch of prompts, as a pure function of model and arguments; `submit`, `step` and
`cancel` serve requests that come and go.

Try it: `zifio chat MODEL`, or

    Engine(model, eos_id=2).generate([[1, 3, 5]], seeds=[[0, 1]], sampling=Sampling(max_new_tokens=8))
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zifio.config import ConfigError, Sampling
from zifio.engine.batch import Batch, chunk_batch, join, row_batch
from zifio.engine.bitwise import insist
from zifio.engine.cache import PAGE, PagedCache, bytes_per_page
from zifio.engine.config import EngineConfig
from zifio.engine.draft import guess, read_prompts
from zifio.engine.graphs import DecodeGraphs, graphs_wanted
from zifio.engine.guide import Bias, PromptScores, Top
from zifio.engine.layered import AnyCache, new_cache, slots_of, slots_within
from zifio.engine.memory import misfit, n_pages
from zifio.engine.pages import Pages
from zifio.engine.request import Completion, Event, Finish, Load, Request, Stats
from zifio.engine.routing import RoutingStore
from zifio.engine.rows import Rows, Sample
from zifio.engine.sampler import Settings, choose, draw, likeliest, policy_logp
from zifio.engine.scheduler import Chunk, Scheduler
from zifio.engine.stops import TextOf, find_stop
from zifio.kernels.operators import give_back
from zifio.models.decoder import Decoder
from zifio.models.device import Precision

_SCORED = 128  # tokens of a prompt whose logits exist at once


class Engine:
    """Samples from a decoder."""

    def __init__(
        self,
        model: Decoder,
        eos_id: int | Collection[int],
        max_rows: int | None = None,
        settings: EngineConfig | None = None,
        text_of: TextOf | None = None,
        precision: Precision = "fp32",
    ) -> None:
        """`eos_id` are the tokens that end a reply; `max_rows` goes before the settings'; stop strings want `text_of`.

        With `precision` bf16 matrix products, keys and values are in bfloat16, as they are under autocast in training.

        Raises ConfigError when the settings want the MTP module or experts, and the model has none, or equal bits that
        cannot be had.
        """
        insist(model, settings or EngineConfig(), precision)
        self.model, self.text_of = model, text_of
        self.settings = settings or EngineConfig()
        self.eos_ids = frozenset([eos_id] if isinstance(eos_id, int) else eos_id)
        self.max_rows = max_rows or self.settings.max_rows
        self.stats = Stats()
        self.device = model.device
        self.precision: Precision = precision
        self._dtype = torch.bfloat16 if precision == "bf16" else model.norm.weight.dtype  # of keys and values
        if self.settings.speculate and not len(model.mtp):
            raise ConfigError(
                "speculate: wanted a model with a multi-token prediction module (num_nextn_predict_layers = 1), came "
                "one without. Set speculate = false."
            )
        if self.settings.record_routing and not model.routers():
            raise ConfigError("record_routing: wanted a model with experts, came one without. Set it to false.")
        self._cache: AnyCache | None = None
        self._graphs: DecodeGraphs | None = None
        self._n_pages = self._wanted = 0  # of the cache: what it has, and what was wanted when it was made
        self._n_slots: int | None = None  # of states, in a model that has some
        self._scheduler: Scheduler | None = None
        self._is_queue = False
        self._routing: RoutingStore | None = None
        self._samples: dict[int, Sample] = {}  # that have not ended
        self._events: list[Event] = []  # to be told by the next step
        self._n_requests = 0
        self._tensors = [*model.parameters(), *model.buffers()]
        self._version = self._weights_version()

    # A batch -----------------------------------------------------------------------------------------------

    def generate(self, prompts: list[list[int]], seeds: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        """For every prompt as many completions as it has seeds, in order.

        Knows no prefixes of earlier calls, so that equal calls give equal floats. Raises ConfigError, before anything
        is computed, when a prompt with its reply would not fit the model's context or the memory.
        """
        assert not self.has_work, "generate while requests are under way"
        self._pack(instead=self.settings.one_copy)
        try:
            return self._batch(prompts, seeds, sampling)
        finally:
            if self.settings.one_copy:
                self.release()

    def _batch(self, prompts: list[list[int]], seeds: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        asked = [prompt for prompt, group in zip(prompts, seeds, strict=True) if group]
        if not asked:
            return [[] for _ in prompts]
        longest = max(asked, key=len)
        n_tokens = min(len(longest) + sampling.max_new_tokens, self.model.config.max_position_embeddings)
        per_row = -(-n_tokens // PAGE) + 2  # two to spare, as the scheduler keeps them
        self._open(min(self.max_rows, sum(map(len, seeds))), per_row)
        self._is_queue = False
        for prompt in [longest, *asked]:
            if fault := self._fault(prompt, sampling, "the longest prompt"):
                raise ConfigError(fault)
        done: dict[int, Completion] = {}
        try:
            for prompt, group in zip(prompts, seeds, strict=True):
                self._queue(Request(prompt, sampling, tuple(group)))
            while self.has_work:
                done.update((event.id, event.completion) for event in self.step() if event.completion is not None)
        finally:  # whoever interrupts a batch may ask again
            self._samples.clear()
            self._events.clear()
        replies = iter(done[id] for id in sorted(done))
        return [[next(replies) for _ in group] for group in seeds]

    # A queue -----------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a step would do or tell anything."""
        return bool(self._samples or self._events)

    def reserve(self, n_rows: int, n_tokens: int) -> int:
        """Open the queue anew for so many replies of so many tokens, prompts included; earlier prefixes are forgotten.

        Returns how many tokens one of them may have at most, which is fewer where the memory is short. Without this the
        queue is opened for full contexts.
        """
        assert not self.has_work, "reserve while requests are under way"
        self._pack()
        self._open(max(1, min(self.max_rows, n_rows)), -(-n_tokens // PAGE) + 2)
        self._is_queue = True
        assert self._scheduler is not None
        return min(n_tokens, self._scheduler.pages.n_pages * PAGE)

    def submit(self, request: Request) -> list[int]:
        """Queue a request; returns an id for each of its seeds, under which `step` tells what becomes of it.

        A request that can never be computed ends with finish "refused" in the next step, with the reason.
        """
        if not self._is_queue:
            assert not self.has_work
            self._pack()
            self._open(self.max_rows, -(-self.model.config.max_position_embeddings // PAGE))
            self._is_queue = True
        if fault := self._fault(request.prompt, request.sampling, "the prompt"):
            ids = [self._next_id() for _ in request.seeds]
            self._events += [Event(id, [], [], Completion([], [], "refused", fault)) for id in ids]
            return ids
        return self._queue(request)

    def load(self) -> Load:
        """How busy it is; may be asked from any thread."""
        scheduler = self._scheduler
        if scheduler is None:
            return Load(0, 0, 0.0)
        n_waiting = sum(len(group) for group in list(scheduler.waiting))
        held = scheduler.pages.n_held / scheduler.pages.n_pages
        return Load(max(0, len(self._samples) - n_waiting), n_waiting, held)

    def cancel(self, id: int) -> None:
        """End a reply where it stands and free its pages at once; the next step tells. Too late is no error."""
        if sample := self._samples.get(id):
            self._events.append(self._end(sample, "cancelled", "cancelled by the caller", 0, None))

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute one batch, and tell what came of it for each reply that it moved or ended."""
        events, self._events = self._events, []
        if not self._samples:
            return events
        assert self._scheduler is not None
        self._notice_new_weights()
        chunks = self._scheduler.plan()
        assert chunks or len(self._scheduler.rows), "whoever waits is admitted when nothing runs"
        with self._arithmetic():
            events += self._compute(self._scheduler, chunks)
        self.stats.steps += 1
        return events

    def weights_changed(self) -> None:
        """Forget all prefixes: what is computed from now on has other keys and values.

        In-place changes of parameters are noticed without this; needed when modules or tensors were exchanged.
        """
        self._tensors = [*self.model.parameters(), *self.model.buffers()]
        self._version = self._weights_version()
        self._graphs = None
        self._pack()
        if self._scheduler is not None:
            self._scheduler.pages.forget()

    def release(self) -> None:
        """Give back the memory of the cache and of packed weights until it is needed again: training wants it too."""
        assert not self.has_work, "release while requests are under way"
        self._graphs = self._cache = self._routing = self._scheduler = None
        self._n_pages = self._wanted = 0
        self._n_slots = None
        self._is_queue = False
        self.model.unpack()
        give_back()

    # Inside ------------------------------------------------------------------------------------------------

    def _pack(self, *, instead: bool = False) -> None:
        self.model.pack(torch.bfloat16 if self.precision == "bf16" else torch.float32, instead=instead)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """What a step is computed under. Autocast keeps no copies of weights here: the packed ones are its copies."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def _page_bytes(self) -> int:
        return bytes_per_page(self.model.config, self.settings.latent_cache, self._dtype, self.device)

    def _open(self, n_rows: int, per_row: int) -> None:
        """An empty scheduler with so many pages for each of so many rows, or as many as memory allows; a cache that is
        large enough is kept."""
        config, settings, wanted = self.model.config, self.settings, n_rows * per_row
        insist(self.model, settings, self.precision)  # it may have been moved since
        if wanted > self._wanted or (self._n_slots is not None and n_rows > self._n_slots):
            self._graphs = self._cache = self._routing = None  # before the memory is looked at
            give_back()
            self._wanted = wanted
            where = (settings.memory_gb, str(self.device))
            self._n_slots, taken = slots_within(config, n_rows, self._dtype, self.device, *where)
            self._n_pages = n_pages(wanted, self._page_bytes(), *where, taken)
            n_padding = int(graphs_wanted(self.device, settings, config))  # one page behind the others
            form = (settings.latent_cache, self._dtype, self.device)
            self._cache = new_cache(config, self._n_pages + n_padding, self._n_slots, *form)
            self._routing = RoutingStore(self._n_pages) if settings.record_routing else None
        if self._graphs is None and graphs_wanted(self.device, settings, config):
            assert isinstance(self._cache, PagedCache)
            self._graphs = DecodeGraphs(self.model, self._cache, padding_page=self._n_pages)
        rows = Rows(min(self.max_rows, self._n_slots or self.max_rows), PAGE, config.vocab_size or 0)
        pages = Pages(min(wanted, self._n_pages), PAGE)
        self._scheduler = Scheduler(
            pages, rows, settings.chunk_tokens, settings.prefix_sharing, self._copy_page, self.stats,
            slots_of(self._cache, self._n_slots),
        )  # fmt: skip

    def _copy_page(self, source: int, target: int) -> None:
        assert self._cache is not None
        self._cache.copy_page(source, target)
        if self._routing is not None:
            self._routing.copy_page(source, target)

    def _fault(self, prompt: list[int], sampling: Sampling, what: str) -> str:
        """Why the request can never be answered; empty when it can."""
        config = self.model.config
        assert self._scheduler is not None
        n_vocab, n_pages = config.vocab_size or 0, self._scheduler.pages.n_pages
        if not prompt:
            return "prompt: wanted at least one token, came none. Begin with the tokenizer's first token."
        if min(prompt) < 0 or max(prompt) >= n_vocab:
            wrong = min(prompt) if min(prompt) < 0 else max(prompt)
            return f"prompt: wanted tokens below {n_vocab}, came {wrong}. Use the tokenizer of this model."
        if sampling.stop and self.text_of is None:
            return f"stop={list(sampling.stop)} wants text and this engine has no tokenizer. Give it `text_of`."
        context = config.max_position_embeddings
        return misfit(len(prompt), sampling.max_new_tokens, context, PAGE, self._page_bytes(), n_pages, what)

    def _queue(self, request: Request) -> list[int]:
        prompt, sampling = list(request.prompt), request.sampling
        scores = PromptScores.of(len(prompt)) if request.score_prompt else None
        samples = [Sample(self._next_id(), prompt, seed, sampling, prompt_scores=scores) for seed in request.seeds]
        for place, sample in enumerate(samples):
            sample.n_top, sample.guide = request.n_top, request.guides[place] if request.guides else None
        self._samples.update((sample.id, sample) for sample in samples)
        if samples:
            assert self._scheduler is not None
            self._scheduler.submit(samples)
        return [sample.id for sample in samples]

    def _next_id(self) -> int:
        self._n_requests += 1
        return self._n_requests

    def _compute(self, scheduler: Scheduler, chunks: list[Chunk]) -> list[Event]:
        """Forward, admit finished prompts as rows, draw for all rows, and let those leave that are finished."""
        assert self._cache is not None
        rows, stats = scheduler.rows, self.stats
        batch = row_batch(rows) if len(rows) else None
        n_fed = len(batch.tokens_N) if batch else 0
        counts = batch.count_M if batch else np.zeros(0, np.int64)
        if chunks:
            batch = join(batch, chunk_batch(chunks)) if batch else chunk_batch(chunks)
        assert batch is not None
        only_decodes = n_fed == len(rows) == len(batch.tokens_N)
        if self._graphs is not None and only_decodes and self._graphs.takes(n_fed):
            stats.peak_pages = max(stats.peak_pages, scheduler.pages.n_held)
            return self._decode(self._graphs, rows, batch)
        output = batch.forward(self.model, self._cache)
        hidden_ND = output.hidden_BTD[0]
        if self._routing is not None:
            self._routing.store(batch, output)
        if self.settings.speculate and chunks:
            read_prompts(self.model, self._cache, chunks, hidden_ND[n_fed:])
        self._score_prompts(chunks, hidden_ND[n_fed:])
        stats.prefill_tokens += len(batch.tokens_N) - n_fed
        origin = scheduler.commit(chunks)
        stats.peak_pages = max(stats.peak_pages, scheduler.pages.n_held)
        if not len(rows):
            return []
        logits_NV, place_N = self._logits(hidden_ND, n_fed, chunks, origin)
        counts = np.concatenate([counts, np.ones(len(origin), np.int64)]) if origin else counts
        token_N, logp_N = self._draw(rows, logits_NV, counts)
        return self._finish(rows, token_N, logp_N, counts, place_N, hidden_ND, logits_NV)

    def _decode(self, graphs: DecodeGraphs, rows: Rows, batch: Batch) -> list[Event]:
        """The same where every row has one token to compute and no prompt is read."""
        n = len(rows)
        hidden_ND, logits_NV, token_N, logp_N = graphs.step(batch, rows.uniforms(), rows.temperature[:n])
        if rows.is_special[:n].any():
            token_N, logp_N = self._draw(rows, logits_NV, batch.count_M)
        return self._finish(rows, token_N, logp_N, batch.count_M, np.arange(n), hidden_ND, logits_NV)

    def _finish(
        self,
        rows: Rows,
        token_N: Tensor,
        logp_N: Tensor,
        counts: np.ndarray,
        place_N: np.ndarray,
        hidden_ND: Tensor,
        logits_NV: Tensor,
    ) -> list[Event]:
        """Let rows take what was drawn, with drafts for what comes next, and let those leave that are finished."""
        if token_N.is_cpu:
            tokens, logps = token_N.tolist(), logp_N.tolist()
        else:  # in one piece, and exactly
            both_2N = torch.stack([token_N, logp_N.double().view(torch.int64)]).cpu()
            tokens, logps = both_2N[0].tolist(), both_2N[1].view(torch.float64).tolist()
        new, ended, events = self._accept(rows, tokens, logps, counts, self._tops(rows, logits_NV, counts))
        if self.settings.speculate:
            self._speculate(rows, new, ended, counts, place_N, hidden_ND)
        return events + [self._end(*end) for end in ended]

    def _logits(
        self, hidden_ND: Tensor, n_fed: int, chunks: list[Chunk], origin: list[int]
    ) -> tuple[Tensor, np.ndarray]:
        """Logits of every token that the rows had computed, and of the last one of each prompt that became rows.

        Also their places in `hidden_ND`. Logits that a group shares are computed once.
        """
        if not chunks:
            return self.model.logits(hidden_ND), np.arange(n_fed)
        end_of_chunk = n_fed + np.cumsum([count for _, _, count in chunks]) - 1
        finished = sorted(set(origin))
        once_U = np.concatenate([np.arange(n_fed), end_of_chunk[finished]])
        logits_UV = self.model.logits(hidden_ND[self._moved(once_U)])
        if len(finished) == len(origin):
            return logits_UV, once_U
        index_N = np.concatenate([np.arange(n_fed), n_fed + np.searchsorted(finished, origin)])
        return logits_UV[self._moved(index_N)], once_U[index_N]

    def _draw(self, rows: Rows, logits_NV: Tensor, counts: np.ndarray) -> tuple[Tensor, Tensor]:
        """A token and its log-prob for each of the logits; row r has counts[r] of them."""
        n = len(rows)
        row_N = slice(n) if len(logits_NV) == n else np.repeat(np.arange(n), counts)
        uniform_N = self._moved(rows.uniforms(None if len(logits_NV) == n else counts))
        temperature_N = self._moved(rows.temperature[row_N])
        if not rows.is_special[:n].any():
            return draw(logits_NV, uniform_N, temperature_N)
        columns = (rows.top_k, rows.top_p, rows.min_p, rows.penalty)
        settings = Settings(temperature_N, *(self._moved(column[row_N]) for column in columns))
        return choose(logits_NV, uniform_N, settings, self._seen(rows, counts), _bias(rows, counts))

    def _seen(self, rows: Rows, counts: np.ndarray) -> Tensor | None:
        """Which tokens a penalty concerns, for each of the logits; a draft counts for what comes after it."""
        if all(sample.seen is None for sample in rows.samples):
            return None
        seen_NV = np.zeros((int(counts.sum()), rows.vocab_size), np.bool_)
        for row, end in enumerate(np.cumsum(counts).tolist()):
            seen = rows.samples[row].seen
            if seen is not None:
                seen_NV[end - counts[row] : end] = seen
                if counts[row] == 2:
                    seen_NV[end - 1, rows.draft[row]] = True
        return self._moved(seen_NV)

    def _moved(self, column: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(column)
        return tensor if self.device.type == "cpu" else tensor.to(self.device, non_blocking=True)

    def _tops(self, rows: Rows, logits_NV: Tensor, counts: np.ndarray) -> dict[int, list[Top]]:
        """The likeliest tokens by place in the logits, for rows that want them told."""
        tops: dict[int, list[Top]] = {}
        if not any(sample.n_top for sample in rows.samples):
            return tops
        for row, end in enumerate(np.cumsum(counts).tolist()):
            if n_top := rows.samples[row].n_top:
                first = end - int(counts[row])
                heat_N = torch.full((end - first,), float(rows.temperature[row]), device=logits_NV.device)
                tops.update(enumerate(likeliest(logits_NV[first:end], heat_N, n_top), first))
        return tops

    def _score_prompts(self, chunks: list[Chunk], hidden_ND: Tensor) -> None:
        """Note the log-probs of the chunks' tokens for those who want them; `hidden_ND` are the chunks' states."""
        at = 0
        for job, first, count in chunks:
            scores = job.samples[0].prompt_scores
            last = 0 if scores is None else min(first + count, len(scores.logps) - 1)
            for begin in range(first, last, _SCORED):
                assert scores is not None
                end = min(begin + _SCORED, last)
                logits_NV = self.model.logits(hidden_ND[at + begin - first : at + end - first])
                target_N = torch.tensor(job.tokens[begin + 1 : end + 1], device=logits_NV.device)
                heat_N = torch.ones(end - begin, device=logits_NV.device)
                scores.logps[begin + 1 : end + 1] = policy_logp(logits_NV, target_N, heat_N).tolist()
                if n_top := job.samples[0].n_top:
                    scores.tops[begin + 1 : end + 1] = likeliest(logits_NV, heat_N, n_top)
            at += count

    def _accept(
        self, rows: Rows, tokens: list[int], logps: list[float], counts: np.ndarray, tops: dict[int, list[Top]]
    ) -> tuple[list[list[int]], list[tuple], list[Event]]:
        """Give every row its token, and the next one too where the draft before it came true.

        Returns the new tokens of each row, the arguments of `_end` for rows that end, and events of the others.
        """
        new: list[list[int]] = []
        ended: list[tuple] = []
        events: list[Event] = []
        drafts = rows.draft[: len(rows)].tolist() if self.settings.speculate else None
        at = 0
        for row, (sample, count) in enumerate(zip(rows.samples, counts.tolist(), strict=True)):
            end = self._take(sample, tokens[at], logps[at])
            n = 1
            if count == 2 and end is None and drafts is not None and tokens[at] == drafts[row]:
                end = self._take(sample, tokens[at + 1], logps[at + 1])
                n = 2
            sample.tops += [tops[place] for place in range(at, at + n) if place in tops]
            if count == 2:
                self.stats.drafts_proposed += 1
                self.stats.drafts_accepted += n - 1
            new.append(tokens[at : at + n])
            if end is None:
                told = sample.tops[len(sample.tops) - n :] if sample.n_top else ()
                events.append(Event(sample.id, tokens[at : at + n], logps[at : at + n], None, told))
            else:
                ended.append((sample, *end[:2], n, end[2]))
            at += count
        n_new = np.array([len(drawn) for drawn in new]) if drafts is not None else 1
        n_rows = len(rows)
        rows.token[:n_rows] = [drawn[-1] for drawn in new]
        rows.position[:n_rows] += n_new
        rows.cursor[:n_rows] += n_new
        self.stats.tokens += sum(map(len, new)) if drafts is not None else n_rows
        return new, ended, events

    def _take(self, sample: Sample, token: int, logp: float) -> tuple[Finish, str, str | None] | None:
        """Append a drawn token; says how, why and with what text the reply ends by it, if it does."""
        sample.tokens.append(token)
        sample.logps.append(logp)
        if sample.seen is not None:
            sample.seen[token] = True
        if token in self.eos_ids:
            return "stop", "end token", None
        if sample.guide is not None and (reason := sample.guide.hear(token)):
            return "stop", reason, None
        if sample.sampling.stop and self.text_of is not None:
            found = find_stop(sample.tokens, sample.sampling.stop, self.text_of)
            if found:
                return "stop", f"stop string {found[1]!r}", found[0]
        if len(sample.tokens) >= sample.sampling.max_new_tokens:
            return "length", f"max_new_tokens = {sample.sampling.max_new_tokens}", None
        return None

    def _speculate(
        self,
        rows: Rows,
        new: list[list[int]],
        ended: list[tuple],
        counts: np.ndarray,
        place_N: np.ndarray,
        hidden_ND: Tensor,
    ) -> None:
        """A draft for every row that has at least two tokens to go."""
        assert self._cache is not None
        over = {sample.id for sample, *_ in ended}
        going = [
            drawn if s.id not in over and s.guide is None and s.sampling.max_new_tokens - len(s.tokens) > 1 else []
            for s, drawn in zip(rows.samples, new, strict=True)
        ]
        ends = np.cumsum(counts).tolist()
        computed = [place_N[end - count : end].tolist() for end, count in zip(ends, counts.tolist(), strict=True)]
        guess(self.model, self._cache, rows, going, computed, hidden_ND)

    def _end(self, sample: Sample, finish: Finish, reason: str, n_new: int, text: str | None) -> Event:
        """Take a reply out, give its pages back, and tell of it with the tokens that it drew last."""
        assert self._scheduler is not None
        experts = None
        if self._routing is not None and sample.table:
            experts = self._routing.read(sample.table, len(sample.prompt) + len(sample.tokens) - 1)
        self._scheduler.remove(sample)
        del self._samples[sample.id]
        completion = Completion(sample.tokens, sample.logps, finish, reason, text, experts)
        completion.prompt_scores, completion.n_cached = sample.prompt_scores, sample.n_cached or 0
        completion.tops = sample.tops
        at = len(sample.tokens) - n_new
        told = sample.tops[at:] if sample.n_top else ()
        return Event(sample.id, sample.tokens[at:], sample.logps[at:], completion, told)

    def _weights_version(self) -> int:
        """Grows with every in-place change of a weight."""
        return sum(tensor._version for tensor in self._tensors)

    def _notice_new_weights(self) -> None:
        version = self._weights_version()
        if version != self._version:
            self.weights_changed()


def _bias(rows: Rows, counts: np.ndarray) -> Bias | None:
    """What the guides have to say; their rows have one token each."""
    said = [(row, sample.guide.bias()) for row, sample in enumerate(rows.samples) if sample.guide is not None]
    said = [(row, bias) for row, bias in said if bias is not None]
    if not said:
        return None
    return Bias(np.cumsum(counts)[[row for row, _ in said]] - 1, np.stack([bias for _, bias in said]))
