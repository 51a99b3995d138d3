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

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zifio.config import ConfigError, Sampling
from zifio.engine.batch import Batch, chunk_batch, join, places_of, row_batch
from zifio.engine.bitwise import insist
from zifio.engine.cache import PAGE, PagedCache, bytes_per_page
from zifio.engine.config import EngineConfig
from zifio.engine.draft import guess, read_prompts
from zifio.engine.draws import Tops, draw_mixed, draw_text, moved, score_prompts, tops
from zifio.engine.graphs import DecodeGraphs, graphs_wanted
from zifio.engine.guide import Drawing, PromptScores, Top
from zifio.engine.layered import AnyCache, new_cache, slots_of, slots_within
from zifio.engine.memory import misfit, n_pages
from zifio.engine.pages import Pages
from zifio.engine.request import Completion, Event, Finish, Load, Request, Stats
from zifio.engine.routing import RoutingStore
from zifio.engine.rows import Rows, Sample
from zifio.engine.scheduler import Chunk, Scheduler
from zifio.engine.stops import TextOf, find_stop
from zifio.kernels.operators import give_back
from zifio.models.decoder import Decoder
from zifio.models.device import Precision
from zifio.models.janus import Janus
from zifio.models.layers import version_of


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

    def generate(
        self,
        prompts: list[list[int]],
        seeds: list[list[int]],
        sampling: Sampling,
        drawings: Sequence[Drawing] | None = None,
    ) -> list[list[Completion]]:
        """For every prompt as many completions as it has seeds, in order; with `drawings`, one each, codes come.

        Knows no prefixes of earlier calls, so that equal calls give equal floats. Raises ConfigError, before anything
        is computed, when a prompt with its reply would not fit the model's context or the memory.
        """
        assert not self.has_work, "generate while requests are under way"
        self._pack(instead=self.settings.one_copy)
        each = zip(prompts, seeds, drawings or [None] * len(prompts), strict=True)
        requests = [Request(prompt, sampling, tuple(group), drawing=drawing) for prompt, group, drawing in each]
        try:
            return self._batch(requests)
        finally:
            if self.settings.one_copy:
                self.release()

    def _batch(self, requests: list[Request]) -> list[list[Completion]]:
        asked = [request for request in requests if request.seeds]
        if not asked:
            return [[] for _ in requests]
        longest = max(asked, key=lambda request: len(request.prompt))
        n_new = max(request.sampling.max_new_tokens for request in asked)
        n_tokens = min(len(longest.prompt) + n_new, self.model.config.max_position_embeddings)
        per_row = -(-n_tokens // PAGE) + 2  # two to spare, as the scheduler keeps them
        n_rows = sum(len(request.seeds) * (1 + request.is_paired) for request in asked)
        self._open(min(self.max_rows, n_rows), per_row)
        self._is_queue = False
        for request in [longest, *asked]:
            if fault := self._fault(request, "the longest prompt"):
                raise ConfigError(fault)
        done: dict[int, Completion] = {}
        try:
            for request in requests:
                self._queue(request)
            self._notice_new_weights()
            while self.has_work:
                done.update((event.id, event.completion) for event in self.step() if event.completion is not None)
        finally:  # whoever interrupts a batch may ask again
            self._samples.clear()
            self._events.clear()
        replies = iter(done[id] for id in sorted(done))
        return [[next(replies) for _ in request.seeds] for request in requests]

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
        if fault := self._fault(request, "the prompt"):
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
        if self._is_queue:  # a batch has looked before its first step
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
        assert self._cache is not None
        rows = Rows(min(self.max_rows, self._n_slots or self.max_rows), PAGE, config.vocab_size or 0)
        pages = Pages(min(wanted, self._n_pages), PAGE)
        self._scheduler = Scheduler(
            pages, rows, settings.chunk_tokens, settings.prefix_sharing, _copier(self._cache, self._routing),
            self.stats, slots_of(self._cache, self._n_slots),
        )  # fmt: skip

    def _fault(self, request: Request, what: str) -> str:
        """Why the request can never be answered; empty when it can."""
        config, prompt, sampling = self.model.config, request.prompt, request.sampling
        assert self._scheduler is not None
        n_vocab, n_pages = self.model.n_tokens, self._scheduler.pages.n_pages
        if not prompt:
            return "prompt: wanted at least one token, came none. Begin with the tokenizer's first token."
        every = prompt if request.drawing is None else [*prompt, *request.drawing.blank]
        if min(every) < 0 or max(every) >= n_vocab:
            wrong = min(every) if min(every) < 0 else max(every)
            return f"prompt: wanted tokens below {n_vocab}, came {wrong}. Use the tokenizer of this model."
        if sampling.stop and self.text_of is None:
            return f"stop={list(sampling.stop)} wants text and this engine has no tokenizer. Give it `text_of`."
        if fault := _drawing_fault(self.model, request):
            return fault
        if self.model.pictures_of(prompt) is None:
            return "prompt: wanted pictures that are held, came one that was let go. Look at it again."
        if request.score_prompt and max(prompt) >= (config.vocab_size or 0):
            return "score_prompt: wanted a prompt of text alone, came one with a picture. Leave either out."
        if request.is_paired:
            n_pages //= 2
            if self.max_rows < 2:
                return "drawing: guidance wants two rows, and max_rows is 1. Raise it, or set scale to 1."
        context = config.max_position_embeddings
        return misfit(len(prompt), sampling.max_new_tokens, context, PAGE, self._page_bytes(), n_pages, what)

    def _queue(self, request: Request) -> list[int]:
        prompt, sampling = list(request.prompt), request.sampling
        scores = PromptScores.of(len(prompt)) if request.score_prompt else None
        samples = [Sample(self._next_id(), prompt, seed, sampling, prompt_scores=scores) for seed in request.seeds]
        pictures = self.model.pictures_of(prompt) or ()
        for place, sample in enumerate(samples):
            sample.n_top, sample.guide = request.n_top, request.guides[place] if request.guides else None
            sample.drawing, sample.pictures = request.drawing, pictures
            if request.is_paired:
                assert request.drawing is not None
                blank = Sample(0, list(request.drawing.blank), sample.seed, sampling, is_blank=True)
                blank.drawing, sample.twin, blank.twin = request.drawing, blank, sample
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
        if self._graphs is not None and only_decodes and not rows.n_drawings and self._graphs.takes(n_fed):
            stats.peak_pages = max(stats.peak_pages, scheduler.pages.n_held)
            return self._decode(self._graphs, rows, batch)
        output = batch.forward(self.model, self._cache)
        hidden_ND = output.hidden_BTD[0]
        if self._routing is not None:
            self._routing.store(batch, output)
        if self.settings.speculate and chunks:
            read_prompts(self.model, self._cache, chunks, hidden_ND[n_fed:])
        score_prompts(self.model, chunks, hidden_ND[n_fed:])
        stats.prefill_tokens += len(batch.tokens_N) - n_fed
        origin = scheduler.commit(chunks)
        stats.peak_pages = max(stats.peak_pages, scheduler.pages.n_held)
        if not len(rows):
            return []
        counts = np.concatenate([counts, np.ones(len(origin), np.int64)]) if origin else counts
        if rows.n_drawings:  # then nothing is drafted: a row has one token
            place_N = places_of(n_fed, chunks, origin)
            drawn = draw_mixed(self.model, rows, hidden_ND[moved(place_N, self.device)] if chunks else hidden_ND)
        else:
            logits_NV, place_N = self._logits(hidden_ND, n_fed, chunks, origin)
            drawn = *draw_text(rows, logits_NV, counts), tops(rows, logits_NV, counts)
        return self._finish(rows, *drawn, counts, place_N, hidden_ND)

    def _decode(self, graphs: DecodeGraphs, rows: Rows, batch: Batch) -> list[Event]:
        """The same where every row has one token to compute and no prompt is read."""
        n = len(rows)
        hidden_ND, logits_NV, token_N, logp_N = graphs.step(batch, rows.uniforms(), rows.temperature[:n])
        if rows.is_special[:n].any():
            token_N, logp_N = draw_text(rows, logits_NV, batch.count_M)
        likely = tops(rows, logits_NV, batch.count_M)
        return self._finish(rows, token_N, logp_N, likely, batch.count_M, np.arange(n), hidden_ND)

    def _finish(
        self,
        rows: Rows,
        token_N: Tensor,
        logp_N: Tensor,
        likely: Tops,
        counts: np.ndarray,
        place_N: np.ndarray,
        hidden_ND: Tensor,
    ) -> list[Event]:
        """Let rows take what was drawn, with drafts for what comes next, and let those leave that are finished."""
        if token_N.is_cpu:
            tokens, logps = token_N.tolist(), logp_N.tolist()
        else:  # in one piece, and exactly
            both_2N = torch.stack([token_N, logp_N.double().view(torch.int64)]).cpu()
            tokens, logps = both_2N[0].tolist(), both_2N[1].view(torch.float64).tolist()
        new, ended, events = self._accept(rows, tokens, logps, counts, likely)
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
        finished = sorted(set(origin))
        once_U = places_of(n_fed, chunks, finished)
        logits_UV = self.model.logits(hidden_ND[moved(once_U, self.device)])
        if len(finished) == len(origin):
            return logits_UV, once_U
        index_N = np.concatenate([np.arange(n_fed), n_fed + np.searchsorted(finished, origin)])
        return logits_UV[moved(index_N, self.device)], once_U[index_N]

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
        at = n_twice = 0
        for row, (sample, count) in enumerate(zip(rows.samples, counts.tolist(), strict=True)):
            if sample.twin is not None and (sample.is_blank or sample.is_apart):  # the other one tells
                drawn = [] if sample.is_apart else [tokens[at]]
                new.append(drawn)
                sample.tokens += drawn
                n_twice += len(drawn)
                at += count
                continue
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
        n_rows, is_even = len(rows), drafts is None and not rows.n_drawings
        n_new = 1 if is_even else np.array([len(drawn) for drawn in new])
        rows.token[:n_rows] = [drawn[-1] if drawn else rows.token[row] for row, drawn in enumerate(new)]
        rows.position[:n_rows] += n_new
        rows.cursor[:n_rows] += n_new
        self.stats.tokens += (n_rows if is_even else sum(map(len, new))) - n_twice
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
        return version_of(self._tensors)

    def _notice_new_weights(self) -> None:
        version = self._weights_version()
        if version != self._version:
            self.weights_changed()


def _drawing_fault(model: Decoder, request: Request) -> str:
    """Why a drawing can never be made as it is asked for; empty when it can."""
    drawing, sampling = request.drawing, request.sampling
    if drawing is None:
        return ""
    if not isinstance(model, Janus):
        return "drawing: wanted a model that draws, came one that only writes. Load a Janus."
    n_codes = model.shape.vq_config.n_tokens
    if sampling.max_new_tokens != n_codes:
        return f"max_new_tokens: wanted {n_codes}, the codes of a drawing, came {sampling.max_new_tokens}. Set it so."
    if drawing.is_guided and len(drawing.blank) != len(request.prompt):
        return (
            f"drawing: wanted a blank prompt of the prompt's {len(request.prompt)} tokens, came one of "
            f"{len(drawing.blank)}. Make it with `unconditioned`, or set scale to 1."
        )
    if sampling.repetition_penalty != 1 or sampling.stop or request.guides or request.n_top or request.score_prompt:
        return "drawing: stop strings, penalties, guides and likeliest tokens are of text. Leave them out."
    return ""


def _copier(cache: AnyCache, routing: RoutingStore | None) -> Callable[[int, int], None]:
    """Copies a page. It knows no engine: a scheduler that led back to its engine would keep a cache that nobody uses
    any more until Python looks for cycles, and the next one would come on top of it."""

    def copy(source: int, target: int) -> None:
        cache.copy_page(source, target)
        if routing is not None:
            routing.copy_page(source, target)

    return copy
