"""Requests that come and go: events, cancelling, refusal, and a run in which everything goes wrong at once."""

from __future__ import annotations

import random

import pytest
import torch
from tiny import deepseek, lively, llama, made, tokens_like

from zifio.config import Sampling
from zifio.engine.cache import PAGE, bytes_per_page
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.engine.request import Completion, Request

EOS = 2
PROMPT = tokens_like(40, seed=1).tolist()


def run(engine: Engine) -> dict[int, Completion]:
    """Step until all is done; what events tell from here on must be the ends of the completions."""
    told: dict[int, list[int]] = {}
    done: dict[int, Completion] = {}
    while engine.has_work:
        for event in engine.step():
            told[event.id] = told.get(event.id, []) + event.tokens
            if event.completion is not None:
                assert event.id not in done
                done[event.id] = event.completion
                tokens = event.completion.tokens
                assert told[event.id] == tokens[len(tokens) - len(told[event.id]) :]
    return done


def held(engine: Engine) -> int:
    """Pages in use."""
    assert engine._scheduler is not None
    return engine._scheduler.pages.n_held


def test_a_queue_says_what_generate_says():
    model, sampling = made(deepseek()), Sampling(max_new_tokens=20)
    batch = Engine(model, -1).generate([PROMPT, PROMPT[:5]], [[1, 2], [3]], sampling)
    engine = Engine(model, -1)
    first = engine.submit(Request(PROMPT, sampling, (1, 2)))
    events = engine.step()
    second = engine.submit(Request(PROMPT[:5], sampling, (3,)))
    assert [event.completion for event in events] == [None, None]
    done = run(engine)
    assert [done[id].tokens for id in first + second] == [c.tokens for group in batch for c in group]
    assert not engine.has_work and held(engine) == 0
    assert engine.step() == []


def test_requests_of_many_kinds_stand_side_by_side():
    """Each draws as it would alone."""
    model = made(llama())
    kinds = [
        Sampling(max_new_tokens=12), Sampling(temperature=0, max_new_tokens=7), Sampling(top_k=3, max_new_tokens=12),
        Sampling(top_p=0.5, temperature=1.3, max_new_tokens=9), Sampling(min_p=0.2, max_new_tokens=12),
        Sampling(repetition_penalty=2.0, temperature=0, max_new_tokens=12),
        Sampling(repetition_penalty=1.5, top_k=5, top_p=0.9, max_new_tokens=12),
    ]  # fmt: skip
    engine = Engine(model, EOS)
    ids = [engine.submit(Request(PROMPT, sampling, (5,)))[0] for sampling in kinds]
    done = run(engine)
    for id, sampling in zip(ids, kinds, strict=True):
        ((alone,),) = Engine(model, EOS).generate([PROMPT], [[5]], sampling)
        assert done[id].tokens == alone.tokens
        torch.testing.assert_close(torch.tensor(done[id].logps), torch.tensor(alone.logps), atol=1e-5, rtol=0)
    assert len({tuple(completion.tokens) for completion in done.values()}) > 4


@pytest.mark.parametrize("when", [0, 1, 2, 5])
def test_cancelling_frees_pages_at_once_and_leaves_the_rest_alone(when: int):
    """While it waits, while its prompt is computed (in two chunks), and while it is decoded."""
    model, sampling = made(llama()), Sampling(max_new_tokens=20)
    engine = Engine(model, -1, settings=EngineConfig(chunk_tokens=30))
    ids = engine.submit(Request(PROMPT, sampling, (1, 2)))
    (other,) = engine.submit(Request(PROMPT[:3], sampling, (3,)))
    for _ in range(when):
        engine.step()
    before = held(engine)
    engine.cancel(ids[0])
    engine.cancel(ids[0])
    if when > 1:
        assert held(engine) < before
    engine.cancel(ids[1])
    assert held(engine) <= 1, "what is left belongs to the other request"
    done = run(engine)
    assert {id: completion.finish for id, completion in done.items()} == {
        ids[0]: "cancelled", ids[1]: "cancelled", other: "length",
    }  # fmt: skip
    assert len(done[ids[0]].tokens) == max(0, when - 1)
    ((alone,),) = Engine(model, -1).generate([PROMPT[:3]], [[3]], sampling)
    assert done[other].tokens == alone.tokens and held(engine) == 0
    engine.cancel(other)
    engine.cancel(12345)
    assert not engine.has_work


@pytest.mark.parametrize(
    "prompt, n_new, words",
    [
        (PROMPT, 60, ["max_new_tokens=60", "40 tokens", "context is 96", "to 56"]),
        (PROMPT, 50, ["together 3 pages of 32 tokens", "the cache has 2", "to 24"]),
        ([], 5, ["at least one token"]),
        ([99], 5, ["below 40", "99"]),
    ],
)
def test_a_request_that_can_never_fit_is_refused_with_the_numbers(prompt: list[int], n_new: int, words: list[str]):
    model = made(llama())
    memory = 2 * bytes_per_page(model.config, False) / 1e9
    engine = Engine(model, EOS, settings=EngineConfig(memory_gb=memory))
    ids = engine.submit(Request(prompt, Sampling(max_new_tokens=n_new), (1, 2)))
    (fine,) = engine.submit(Request(PROMPT, Sampling(max_new_tokens=24), (1,)))
    done = run(engine)
    for id in ids:
        assert done[id].finish == "refused" and done[id].tokens == []
        assert all(word in done[id].reason for word in words), done[id].reason
    assert done[fine].finish in ("stop", "length")


def test_prefixes_are_kept_after_a_request_and_dropped_when_weights_change():
    model = made(llama())
    engine = Engine(model, EOS)
    sampling = Sampling(max_new_tokens=4)
    computed = []
    for change in (None, None, "optimizer", "told", None):
        if change == "optimizer":
            with torch.no_grad():
                model.lm_head.weight.mul_(1.5)
        if change == "told":
            engine.weights_changed()
        before = engine.stats.prefill_tokens
        (id,) = engine.submit(Request(PROMPT, sampling, (1,)))
        done = run(engine)[id]
        computed.append(engine.stats.prefill_tokens - before)
        ((fresh,),) = Engine(model, EOS).generate([PROMPT], [[1]], sampling)
        assert done.tokens == fresh.tokens
        torch.testing.assert_close(torch.tensor(done.logps), torch.tensor(fresh.logps), atol=1e-5, rtol=0)
    assert computed == [40, 40 - PAGE, 40, 40, 40 - PAGE]


def test_weights_that_change_under_a_reply_leave_no_stale_prefix():
    model = made(llama())
    engine = Engine(model, -1)
    engine.submit(Request(PROMPT, Sampling(max_new_tokens=6), (1,)))
    engine.step()
    engine.step()
    with torch.no_grad():
        model.layers[0].self_attn.k_proj.weight.mul_(-1)
    run(engine)
    (id,) = engine.submit(Request(PROMPT, Sampling(max_new_tokens=6), (1,)))
    done = run(engine)[id]
    ((fresh,),) = Engine(model, -1).generate([PROMPT], [[1]], Sampling(max_new_tokens=6))
    assert done.tokens == fresh.tokens
    torch.testing.assert_close(torch.tensor(done.logps), torch.tensor(fresh.logps), atol=1e-5, rtol=0)


def test_what_a_reply_left_is_a_prefix_for_what_follows_it():
    """The next turn of a conversation begins with the last one and its reply."""
    engine = Engine(made(llama()), -1)
    (id,) = engine.submit(Request(PROMPT, Sampling(max_new_tokens=30), (1,)))
    reply = run(engine)[id].tokens
    before = engine.stats.prefill_tokens
    engine.submit(Request(PROMPT + reply + [5, 6], Sampling(max_new_tokens=2), (1,)))
    run(engine)
    assert engine.stats.prefill_tokens - before == 72 - 2 * PAGE


SIZES = "abcdefghijklmnopqrstuvwxyz0123456789+-=."


@pytest.mark.parametrize("kind", ["llama", "deepseek with drafts"])
def test_fault_run(kind: str):
    """500 requests: cancelled at random, over-long, with stop strings, of all samplings, on few pages.

    No leak: all pages are free in the end. No hang: the steps are bounded by the tokens. Nobody is forgotten.
    """
    draw = random.Random(7)
    context = {"max_position_embeddings": 160}
    config = (
        llama(**context) if kind == "llama" else deepseek(num_nextn_predict_layers=int("drafts" in kind), **context)
    )
    settings = EngineConfig(
        memory_gb=14 * bytes_per_page(config, False) / 1e9, max_rows=32, chunk_tokens=40, speculate="drafts" in kind
    )
    model = lively(config, EOS, push=-0.5)
    engine = Engine(model, EOS, settings=settings, text_of=lambda ids: "".join(SIZES[id] for id in ids))
    stems = [tokens_like(n, seed=n).tolist() for n in (40, 33, 20)]
    asked: dict[int, Request] = {}
    done: dict[int, Completion] = {}
    cancelled: set[int] = set()
    n_requests = n_steps = 0
    while n_requests < 500 or engine.has_work:
        for _ in range(draw.choice([0, 3, 9]) if n_requests < 500 else 0):
            request = some_request(draw, stems)
            asked.update((id, request) for id in engine.submit(request))
            n_requests += 1
        for id in draw.sample(sorted(asked), min(len(asked), draw.choice([0, 0, 1, 2]))):
            engine.cancel(id)
            cancelled.add(id)
        for event in engine.step():
            if event.completion is not None:
                assert event.id not in done
                done[event.id] = event.completion
        n_steps += 1
        assert n_steps < 20000, "no hang"
    assert done.keys() == asked.keys()
    assert held(engine) == 0 and engine.stats.peak_pages <= 20
    for id, completion in done.items():
        check(asked[id], completion, id in cancelled)
    finishes = [completion.finish for completion in done.values()]
    assert all(finishes.count(finish) > 20 for finish in ("stop", "length", "cancelled", "refused"))
    assert engine.stats.preemptions > 5 and engine.stats.shared_tokens > 100
    assert (engine.stats.drafts_proposed > 0) == ("drafts" in kind)
    survivors = [id for id, completion in done.items() if completion.finish in ("stop", "length")]
    for id in draw.sample(survivors, 5):
        ((alone,),) = Engine(model, EOS, text_of=engine.text_of).generate(
            [asked[id].prompt], [[seed_of(asked, id)]], asked[id].sampling
        )
        assert (alone.tokens, alone.finish, alone.text) == (done[id].tokens, done[id].finish, done[id].text)


def some_request(draw: random.Random, stems: list[list[int]]) -> Request:
    """Mostly sound; now and then too long, empty, or of strange tokens."""
    prompt = stems[draw.randrange(3)][: draw.randrange(1, 41)] + [draw.randrange(40) for _ in range(draw.randrange(9))]
    fault = draw.random()
    if fault < 0.1:
        prompt = prompt * 9
    elif fault < 0.13:
        prompt = []
    elif fault < 0.16:
        prompt = [*prompt, 40]
    sampling = Sampling(
        temperature=draw.choice([0.0, 0.7, 1.0, 1.5]), max_new_tokens=draw.choice([1, 6, 80]),
        top_p=draw.choice([1.0, 1.0, 0.8]), top_k=draw.choice([0, 0, 5]), min_p=draw.choice([0.0, 0.0, 0.1]),
        repetition_penalty=draw.choice([1.0, 1.0, 1.2]), stop=draw.choice([(), (), ("a",), ("zz", "b1")]),
    )  # fmt: skip
    return Request(prompt, sampling, tuple(draw.randrange(1000) for _ in range(draw.choice([1, 1, 1, 1, 1, 1, 4]))))


def seed_of(asked: dict[int, Request], id: int) -> int:
    """The seed that belongs to an id: a request's ids are consecutive."""
    place = 0
    while asked.get(id - place - 1) is asked[id]:
        place += 1
    return asked[id].seeds[place]


def check(request: Request, completion: Completion, was_cancelled: bool) -> None:
    """What every answer must be like."""
    text = "".join(SIZES[id] for id in completion.tokens)
    assert len(completion.tokens) == len(completion.logps) <= request.sampling.max_new_tokens
    assert completion.reason
    if completion.finish == "refused":
        assert not request.prompt or len(request.prompt) + request.sampling.max_new_tokens > 130 or 40 in request.prompt
        assert not completion.tokens
    elif completion.finish == "cancelled":
        assert was_cancelled
    elif completion.finish == "length":
        assert len(completion.tokens) == request.sampling.max_new_tokens
        assert not any(word in text for word in request.sampling.stop) and EOS not in completion.tokens
    elif completion.text is None:
        assert completion.tokens[-1] == EOS
    else:
        assert any(text == completion.text + word for word in request.sampling.stop)
