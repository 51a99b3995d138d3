"""vLLM in our engine's place: the same requests, the same news, the same surface above.

It runs in the Python that has vLLM, which may be another one than the server's; nothing here needs our models or
kernels. What steers a reply (thinking budget, grammar, biases, penalties) is the very `Steering` that our engine has,
as a logits processor of vLLM's; a second one here hears what was drawn and says where a reply ends.

What differs from our engine: greedy replies may depend on what is computed beside them, and log-probs are those at
temperature 1.

Try it alone: `pytest tests/serve/test_vllm.py`
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import cached_property
from typing import Any

from zifio.config import ConfigError
from zifio.data.tokenizer import load_tokenizer
from zifio.engine.guide import PromptScores, Top
from zifio.engine.request import Completion, Event, Finish, Load, Request, Stats
from zifio.engine.stops import find_stop
from zifio.log import say
from zifio.serve.grammar import Grammars
from zifio.serve.news import About, Fault, Note, State, Tell
from zifio.serve.process import EnginePlan
from zifio.serve.steer import Steering

_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its own choice leaves a core out, which of two is half
}
_CPU_GB = 2.0  # for keys and values where nothing is said; vLLM would take nearly all that the machine has
STEERING = "zifio_steering"
"""Where a request of vLLM's carries its steering."""
_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length"}


class VllmEngine:
    """Implements `serve.worker.Far`. Raises ConfigError where vLLM is not there or does not take the model."""

    def __init__(self, plan: EnginePlan, tell: Tell) -> None:
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._tell, self._name = tell, plan.name
        self._tokenizer = load_tokenizer(plan.folder)
        self._state = State(Load(0, 0, 0.0), Stats())
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=f"vLLM of {plan.name}", daemon=True).start()
        self._llm: Any = asyncio.run_coroutine_threadsafe(self._open(plan), self._loop).result()

    async def _open(self, plan: EnginePlan) -> Any:
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore
            from vllm.v1.engine.async_llm import AsyncLLM  # type: ignore

            from zifio.serve.vllm_steering import Steered
        except ImportError as error:
            raise ConfigError(
                f"--engine vllm: wanted vLLM in {plan.python or sys.executable}, came: {error}. Install "
                "it there, or name the Python that has it: vllm.python=/path/to/python"
            ) from None
        memory_gb = plan.settings.memory_gb or (_CPU_GB if plan.device == "cpu" else None)
        given: dict[str, Any] = {
            "model": plan.folder, "skip_tokenizer_init": True, "max_num_seqs": plan.settings.max_rows,
            "enable_prefix_caching": plan.settings.prefix_sharing, "logits_processors": [Steered],
            "async_scheduling": False,  # what steers a token must know the one before
            **({"dtype": "float32"} if plan.device == "cpu" else {}),
            **({"kv_cache_memory_bytes": int(memory_gb * 1e9)} if memory_gb else {}), **plan.vllm.options,
        }  # fmt: skip
        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**given), stat_loggers=[self._counter()])
        except Exception as error:  # the boundary: another project's many ways to say no
            raise ConfigError(f"{plan.folder}: vLLM does not take it: {_first_line(error)}") from None

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._tokenizer)

    def _counter(self) -> Any:
        """What vLLM tells its numbers to."""
        from vllm.v1.metrics.loggers import StatLoggerBase  # type: ignore

        engine = self

        class Counter(StatLoggerBase):
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

            def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
                engine._count(scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None: ...

        return Counter

    def _count(self, scheduler: Any, iteration: Any) -> None:
        load, stats = self._state
        if scheduler is not None:
            load = Load(scheduler.num_running_reqs, scheduler.num_waiting_reqs, scheduler.kv_cache_usage)
            stats = replace(stats, steps=stats.steps + 1)
        if iteration is not None:
            read = iteration.prompt_token_stats
            stats = replace(
                stats,
                tokens=stats.tokens + iteration.num_generation_tokens,
                prefill_tokens=stats.prefill_tokens + read.total - read.cached_tokens,
                shared_tokens=stats.shared_tokens + read.cached_tokens,
                preemptions=stats.preemptions + iteration.num_preempted_reqs,
            )
        self._state = State(load, stats)

    @property
    def about(self) -> About:
        """What must be known to ask."""
        config = self._llm.model_config
        return About(config.max_model_len, config.get_vocab_size(), config.max_model_len)

    def ask(self, key: int, request: Request, is_stream: bool) -> None:
        """Queue a request under a number."""
        packed = [pickle.dumps(guide) for guide in request.guides]  # for vLLM's own process
        for guide in request.guides:
            if isinstance(guide, Steering):
                guide.equip(lambda grammar: self._grammars.matcher(grammar), self._tokenizer.decode)
        self._loop.call_soon_threadsafe(self._begin, key, request, packed, is_stream)

    def cancel(self, key: int) -> None:
        """Take a request out of the engine."""
        self._loop.call_soon_threadsafe(lambda: self._tasks[key].cancel() if key in self._tasks else None)

    def stop(self) -> None:
        """End; what is under way stays unanswered."""
        self._llm.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)

    # In the loop -------------------------------------------------------------------------------------------

    def _begin(self, key: int, request: Request, packed: list[bytes], is_stream: bool) -> None:
        self._tasks[key] = self._loop.create_task(self._answer(key, request, packed, is_stream))

    async def _answer(self, key: int, request: Request, packed: list[bytes], is_stream: bool) -> None:
        """All replies to a request, side by side; a whole answer is told when it is whole."""
        held: list[Note] = []

        async def reply(place: int) -> None:
            async with contextlib.aclosing(self._reply(f"{key}-{place}", request, place, packed)) as notes:
                async for note in notes:
                    if is_stream:
                        self._tell([(key, note)], self._state)
                    else:
                        held.append(note)

        try:
            async with asyncio.TaskGroup() as group:
                for place in range(len(request.seeds)):
                    group.create_task(reply(place))
            whole: dict[int, Note] = {}
            for note in held:
                whole[note.place] = note if note.place not in whole else whole[note.place].merged(note)
            self._tell([(key, note) for note in whole.values()], self._state)
        except BaseExceptionGroup as failed:  # the boundary: the request's own misfortune, or vLLM's
            said = _first_line(failed.exceptions[0])
            self._tell([(key, Note(0, None, Fault(500, "engine_failed", f"vLLM failed: {said}")))], self._state)
            if self._llm.errored:
                say(f"{self._name}: vLLM has ended: {said}")
                os._exit(1)  # the server's end notices, tells everybody, and starts another
        finally:
            del self._tasks[key]

    async def _reply(self, name: str, request: Request, place: int, packed: list[bytes]) -> AsyncGenerator[Note, None]:
        """What is new of one reply, as vLLM tells it."""
        guide = request.guides[place] if request.guides else None
        assert guide is None or isinstance(guide, Steering)
        stops = request.sampling.stop
        sampling = self._sampling(request, place, packed[place] if packed else None)
        done = Completion(tokens=[], prompt_scores=None)
        prompt = {"prompt_token_ids": request.prompt}
        async with contextlib.aclosing(self._llm.generate(prompt, sampling, name)) as outputs:
            async for output in outputs:
                if request.score_prompt and output.prompt_logprobs:
                    done.prompt_scores = _scores(request, output.prompt_logprobs)
                done.n_cached = output.num_cached_tokens or done.n_cached
                new = output.outputs[0]
                tokens, logps, tops = _drawn(new, request.n_top)
                n_heard = len(tokens)
                for at, token in enumerate(tokens):
                    done.tokens.append(token)
                    if reason := self._ends(guide, stops, done, token):
                        done.finish, done.reason, n_heard = "stop", reason, at + 1
                        break
                if not done.reason and new.finish_reason is not None:
                    done.finish, done.reason = _FINISHES.get(new.finish_reason, "stop"), str(new.finish_reason)
                end = done.end() if done.reason else None
                event = Event(place, tokens[:n_heard], logps[:n_heard], end, tops[:n_heard])
                yield Note(place, event, guide.refusal if end and guide is not None else None)
                if done.reason:
                    return  # and vLLM is told, by the end of its generator

    def _ends(self, guide: Steering | None, stops: tuple[str, ...], done: Completion, token: int) -> str:
        """Why the reply ends with this token, if it does and vLLM does not see that."""
        if token == self._tokenizer.eos_id:
            return "end token"
        if guide is not None:
            if guide.matcher is not None:
                guide.bias()  # notes what the grammar cannot go on from
            if reason := guide.hear(token):
                return reason
        if stops and (found := find_stop(done.tokens, stops, self._tokenizer.decode)):
            return f"stop string {found[1]!r}"
        return ""

    def _sampling(self, request: Request, place: int, packed: bytes | None) -> Any:
        from vllm import SamplingParams  # type: ignore
        from vllm.sampling_params import RequestOutputKind  # type: ignore

        drawn = request.sampling
        return SamplingParams(
            temperature=drawn.temperature, top_p=drawn.top_p, top_k=drawn.top_k, min_p=drawn.min_p,
            repetition_penalty=drawn.repetition_penalty, max_tokens=drawn.max_new_tokens,
            seed=request.seeds[place] if drawn.temperature else None, stop_token_ids=[self._tokenizer.eos_id],
            detokenize=False, logprobs=request.n_top, prompt_logprobs=request.n_top if request.score_prompt else None,
            output_kind=RequestOutputKind.DELTA,
            extra_args=None if packed is None else {STEERING: packed},
        )  # fmt: skip


def _drawn(new: Any, n_top: int) -> tuple[list[int], list[float], list[list[Top]]]:
    """The tokens of an output, their log-probs, and the likeliest ones beside each where they are wanted."""
    tokens = list(new.token_ids)
    logps = [table[token].logprob for token, table in zip(tokens, new.logprobs, strict=True)]
    return tokens, logps, [_likeliest(table, n_top) for table in new.logprobs] if n_top else []


def _likeliest(table: Any, n_top: int) -> list[Top]:
    """The first n by rank; vLLM puts the drawn one among them wherever it stands."""
    ranked = sorted(table.items(), key=lambda item: item[1].rank)
    return [(token, one.logprob) for token, one in ranked[:n_top]]


def _scores(request: Request, told: Any) -> PromptScores:
    """Log-probs of the prompt's own tokens; of the first there are none."""
    scores = PromptScores.of(len(request.prompt))
    for place, (token, table) in enumerate(zip(request.prompt, told, strict=True)):
        if table is not None:
            scores.logps[place] = table[token].logprob
            scores.tops[place] = _likeliest(table, request.n_top)
    return scores


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"
