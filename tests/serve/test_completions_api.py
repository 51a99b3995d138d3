"""Text completions: the engine's own tokens and log-probs, the prompt's too, whole and in a stream."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from served import Here, serving

from zifio.config import Sampling
from zifio.engine.engine import Engine
from zifio.engine.request import Completion, Request

TEXT = "the whale dives deep"


@pytest.fixture(scope="module")
def here() -> Generator[Here, None, None]:
    with serving() as server:
        yield server


def engines_own(here: Here, prompt: list[int], n_new: int) -> Completion:
    """What the bare engine makes of a prompt, greedily, with the prompt's log-probs."""
    policy = here.policy
    engine = Engine(policy.model, policy.engine.eos_ids)
    engine.reserve(1, 128)
    engine.submit(Request(prompt, Sampling(temperature=0, max_new_tokens=n_new), (0,), n_top=2, score_prompt=True))
    while engine.has_work:
        for event in engine.step():
            if event.completion is not None:
                return event.completion
    raise AssertionError("no completion")


def test_log_probs_and_echo_are_the_engines_own(here: Here):
    tokenizer = here.served.tokenizer
    prompt = tokenizer.encode(TEXT)
    own = engines_own(here, prompt, 8)
    new = [token for token in own.tokens if token != tokenizer.eos_id]
    assert own.prompt_scores is not None and len(prompt) > 3 and len(new) > 1
    for asked in (TEXT, prompt):
        reply = here.openai.completions.create(
            model="tiny", prompt=asked, temperature=0, max_tokens=8, echo=True, logprobs=2
        )
        choice = reply.choices[0]
        assert choice.text == TEXT + tokenizer.decode(new)
        told = choice.logprobs
        assert told is not None and told.token_logprobs is not None and told.top_logprobs is not None
        assert told.token_logprobs == [*own.prompt_scores.logps, *own.logps[: len(new)]]
        assert told.token_logprobs[0] is None and len(told.tokens or []) == len(prompt) + len(new)
        assert told.top_logprobs[0] is None and len(told.top_logprobs[1]) == 2
        assert reply.usage is not None and reply.usage.prompt_tokens == len(prompt)
        assert reply.usage.completion_tokens == len(own.tokens)
    plain = here.openai.completions.create(model="tiny", prompt=TEXT, temperature=0, max_tokens=8).choices[0]
    assert (plain.text, plain.logprobs) == (tokenizer.decode(new), None)


def test_a_prompt_alone_is_scored(here: Here):
    """What evaluations ask for: no new token, the log-probs of the given ones."""
    prompt = here.served.tokenizer.encode(TEXT)
    reply = here.post("/v1/completions", prompt=[prompt, prompt[:4]], echo=True, logprobs=1, max_tokens=0).json()
    own = engines_own(here, prompt, 1).prompt_scores
    assert own is not None
    one, two = reply["choices"]
    assert one["text"] == TEXT and one["logprobs"]["token_logprobs"] == own.logps
    assert two["logprobs"]["token_logprobs"] == pytest.approx(own.logps[:4], abs=1e-5)
    assert reply["usage"]["completion_tokens"] == 0 and [one["index"], two["index"]] == [0, 1]


def test_a_stream_adds_up_to_the_whole(here: Here):
    asked: dict[str, Any] = {"prompt": [TEXT, "how"], "n": 2, "seed": 5, "temperature": 1.5, "max_tokens": 20}
    whole = here.openai.completions.create(model="tiny", **asked)
    texts, finishes = [""] * 4, [""] * 4
    for chunk in here.openai.completions.create(model="tiny", **asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert texts == [choice.text for choice in whole.choices] and len(set(texts)) > 2
    assert finishes == [choice.finish_reason for choice in whole.choices]


@pytest.mark.parametrize(
    "body, word",
    [
        ({"prompt": "x", "suffix": "y"}, "filling in"), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"),
        ({"prompt": [100000]}, "tokens below"), ({"prompt": "x", "max_tokens": 600}, "512"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
    ],
)  # fmt: skip
def test_what_cannot_be_completed_is_refused_in_words(here: Here, body: dict[str, Any], word: str):
    answer = here.post("/v1/completions", **body)
    assert answer.status_code == 400 and word in answer.json()["error"]["message"], answer.text
