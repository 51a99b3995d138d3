"""What clients in use were seen to rely on (docs/conformance.md), beyond what the interface's description says."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from served import Here, serving

HOT = {"temperature": 5, "seed": 1}
ASK = [{"role": "user", "content": "How deep does the whale dive?"}]


@pytest.fixture(scope="module")
def here() -> Generator[Here, None, None]:
    with serving({"temperature": 0, "max_tokens": 12}) as server:
        yield server


def test_a_request_without_a_temperature_gets_the_servers(here: Here):
    for path, asked in (("/chat/completions", {"messages": ASK}), ("/completions", {"prompt": "the whale"})):
        plain, greedy, hot = (here.post(path, **asked, **more).json() for more in ({}, {"temperature": 0}, HOT))
        assert plain["choices"] == greedy["choices"] != hot["choices"]


@pytest.mark.parametrize("asked", [{"messages": [{"role": "user", "content": "deep " * 400}]}, {"max_tokens": 5000}])
def test_a_conversation_that_is_too_long_is_told_in_openais_words(here: Here, asked: dict[str, object]):
    """By these words litellm and the agents on it know that they must shorten it."""
    error = here.post("/chat/completions", **{"messages": ASK, **asked}).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "this model's maximum context length is 512 tokens" in error["message"].lower()
