"""Guides steer draws and change no log-prob; likeliest tokens and a prompt's own log-probs are the model's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import deepseek, lively, llama, logits_of, made, tokens_like

from zifio.config import Sampling
from zifio.engine.cache import bytes_per_page
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.engine.request import Completion, Request

EOS = 2
PROMPT = tokens_like(40, seed=1).tolist()


class Only:
    """Lets only some tokens come, another set each time; ends after a few."""

    def __init__(self, sets: list[list[int]], most: int = 99) -> None:
        self.sets, self.most, self.heard = sets, most, []

    def bias(self) -> np.ndarray | None:
        bias = np.full(40, -np.inf, np.float32)
        bias[self.sets[len(self.heard) % len(self.sets)]] = 0
        return bias

    def hear(self, token: int) -> str:
        self.heard.append(token)
        return "enough" if len(self.heard) == self.most else ""


class Nothing:
    """Listens."""

    def bias(self) -> np.ndarray | None:
        return None

    def hear(self, token: int) -> str:
        return ""


def run(engine: Engine, *requests: Request) -> list[Completion]:
    """What becomes of them, in order."""
    ids = [id for request in requests for id in engine.submit(request)]
    done = {}
    while engine.has_work:
        done.update((event.id, event.completion) for event in engine.step() if event.completion is not None)
    return [done[id] for id in ids]


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_guide_decides_what_may_come_and_the_log_probs_stay_the_policys(temperature: float):
    model, sampling = made(llama()), Sampling(temperature=temperature, max_new_tokens=12)
    guides = (Only([[5, 6], [7], [8, 9, 10]]), Only([[11, 30]], most=4))
    one, two, free = run(
        Engine(model, EOS), Request(PROMPT, sampling, (1, 2), guides), Request(PROMPT, sampling, (3,), (Nothing(),))
    )
    assert all(token in (5, 6, 7, 8, 9, 10) for token in one.tokens) and one.tokens[1::3] == [7] * 4
    assert one.tokens == guides[0].heard and len(one.tokens) == 12
    assert set(two.tokens) <= {11, 30} and (two.finish, two.reason, len(two.tokens)) == ("stop", "enough", 4)
    ((alone,),) = Engine(model, EOS).generate([PROMPT], [[3]], sampling)
    assert (free.tokens, free.finish) == (alone.tokens, alone.finish)
    for completion in (one, two, free):
        every = torch.tensor([PROMPT + completion.tokens])
        logp_TV = (logits_of(model, every)[0] / (temperature or 1)).log_softmax(-1)
        expected = logp_TV[len(PROMPT) - 1 : -1].gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logps), expected.float(), atol=2e-5, rtol=0)


def test_guided_rows_stand_beside_drafting_ones():
    model = lively(deepseek(num_nextn_predict_layers=1), EOS, push=-0.5)
    sampling = Sampling(temperature=0.0, max_new_tokens=20)
    engine = Engine(model, EOS, settings=EngineConfig(speculate=True))
    one, two = run(engine, Request(PROMPT, sampling, (1,), (Only([[5], [6]]),)), Request(PROMPT[:9], sampling, n_top=2))
    assert one.tokens == [5, 6] * 10 and engine.stats.drafts_proposed > 0
    ((alone,),) = Engine(model, EOS).generate([PROMPT[:9]], [[0]], sampling)
    assert two.tokens == alone.tokens


def test_likeliest_tokens_come_with_every_token():
    model, sampling = made(llama()), Sampling(temperature=0.0, max_new_tokens=6)
    engine = Engine(model, -1)
    (asked,) = engine.submit(Request(PROMPT, sampling, (1,), n_top=3))
    engine.submit(Request(PROMPT, sampling, (2,)))
    told = []
    while engine.has_work:
        told += engine.step()
    assert sum(event.id == asked for event in told) == 6
    for event in (event for event in told if event.id == asked):
        ((token,), (logp,), (tops,)) = event.tokens, event.logps, event.tops
        assert tops[0] == (token, logp) and len(tops) == 3
        assert sorted(tops, key=lambda top: -top[1]) == tops
    assert not any(event.tops for event in told if event.id != asked)


@pytest.mark.parametrize("config", [llama(), deepseek()])
def test_a_prompt_is_scored_whole_whatever_is_known_of_it(config: object):
    """Also in chunks, and beside a request that has left its prefix in the cache."""
    model = made(config)  # type: ignore[arg-type]
    engine = Engine(model, -1, settings=EngineConfig(chunk_tokens=17))
    sampling = Sampling(temperature=0.0, max_new_tokens=2)
    first, again = run(engine, Request(PROMPT, sampling)), run(engine, Request(PROMPT, sampling))
    assert (first[0].n_cached, again[0].n_cached) == (0, 32) and first[0].prompt_scores is None
    (scored,) = run(engine, Request(PROMPT, sampling, n_top=2, score_prompt=True))
    assert scored.n_cached == 0 and scored.tokens == first[0].tokens
    scores = scored.prompt_scores
    assert scores is not None and scores.logps[0] is None and scores.tops[0] == []
    logp_TV = logits_of(model, torch.tensor([PROMPT]))[0].log_softmax(-1)
    expected = logp_TV[:-1].gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(scores.logps[1:]), expected, atol=2e-5, rtol=0)
    assert [tops[0][0] for tops in scores.tops[1:]] == logp_TV[:-1].argmax(-1).tolist()


def test_a_guide_keeps_its_place_when_its_reply_is_sent_back():
    """Two long replies on pages for one and a half: the later is computed again, its guide hears each token once."""
    model = made(llama())
    settings = EngineConfig(memory_gb=4 * bytes_per_page(model.config, False) / 1e9)
    engine = Engine(model, -1, settings=settings)
    guides = [Only([[5], [6], [7]]), Only([[8], [9]])]
    requests = [Request(PROMPT[:20], Sampling(max_new_tokens=60), (n,), (guides[n],)) for n in range(2)]
    one, two = run(engine, *requests)
    assert engine.stats.preemptions > 0
    assert one.tokens == [5, 6, 7] * 20 and two.tokens == [8, 9] * 30
    assert guides[0].heard == one.tokens and guides[1].heard == two.tokens
