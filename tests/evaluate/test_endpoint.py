"""Against a real server on this machine that misbehaves on purpose."""

import json
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from server import Server, completion, serving

from zifio.config import ConfigError, EndpointSettings, Sampling, build
from zifio.evaluate.config import Prices
from zifio.evaluate.endpoint import Endpoint
from zifio.evaluate.replies import Ask, Failed, Frame, Said
from zifio.tasks.episode import Policy
from zifio.tasks.task import Problem

PROBLEMS = [Problem(f"p/{i}", f"question {i}", "7") for i in range(6)]
ASKS = [Ask(problem, 0, None, 100 + i) for i, problem in enumerate(PROBLEMS)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("zifio.wire._FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def endpoint(server: Server, sampling: Sampling | None = None, prices: Prices | None = None, **settings) -> Endpoint:
    default = {"timeout_s": 5.0, "tries": 4, "longest_wait_s": 0.3}
    return Endpoint(server.url, "m", build(EndpointSettings, default | settings, "test"), sampling, prices)


def answers(one: Endpoint, asks: list[Ask] | None = None) -> dict[str, Said | str]:
    """What became of every ask."""
    found: dict[str, Said | str] = {}
    with closing(one):
        for batch in one.answer(ASKS if asks is None else asks):
            for item in batch:
                ask, outcome = (item.ask, item.reason) if isinstance(item, Failed) else item
                assert ask.problem.id not in found
                found[ask.problem.id] = outcome
    return found


def test_what_is_sent_and_what_comes_back():
    usage = {"completion_tokens_details": {"reasoning_tokens": 3}, "prompt_tokens_details": {"cached_tokens": 4}}
    reply = completion("7", "because", usage=usage, finish="stop", logps=[-0.5, -0.25])
    prices = Prices(input=1.0, output=10.0, cached=0.5)
    sampling = Sampling(temperature=0.5, max_new_tokens=33, top_p=0.9, stop=("END",))
    with serving(lambda *_: reply) as server:
        one = endpoint(server, sampling, prices, logprobs=True, extra={"reasoning_effort": "high"})
        found = answers(one, ASKS[:1])
    assert server.paths == ["/v1/chat/completions"]
    assert server.requests == [
        {
            "model": "m", "messages": [{"role": "user", "content": "question 0"}], "temperature": 0.5,
            "max_tokens": 33, "top_p": 0.9, "stop": ["END"], "seed": 100, "logprobs": True, "reasoning_effort": "high",
        }
    ]  # fmt: skip
    said = found["p/0"]
    assert isinstance(said, Said)
    assert (said.text, said.thinking, said.finish, said.logp) == ("7", "because", "stop", -0.75)
    assert (said.n_tokens, said.n_prompt_tokens, said.n_thinking_tokens, said.seed) == (5, 7, 3, 100)
    assert said.cost == pytest.approx((3 * 1.0 + 4 * 0.5 + 5 * 10.0) / 1e6)
    assert said.seconds is not None and said.seconds > 0
    assert said.extra == {"served": "served-name", "tries": 1}


def test_it_is_a_policy_and_seeds_go_where_they_belong():
    with serving(lambda request, _: completion(f"{request['messages'][0]['content']}/{request['seed']}")) as server:
        conversations = [[{"role": "user", "content": name}] for name in ("a", "b", "c")]
        with closing(endpoint(server)) as one:
            assert isinstance(one, Policy)
            replies = one.complete(conversations, 2, Sampling(), [[1, 2], [3, 4], [5, 6]])
    assert [[r.text for r in group] for group in replies] == [["a/1", "a/2"], ["b/3", "b/4"], ["c/5", "c/6"]]


def test_vllms_name_for_thinking_and_silence():
    with serving(lambda *_: completion(None, "so long", key="reasoning", finish="length")) as server:
        said = answers(endpoint(server), ASKS[:1])["p/0"]
    assert isinstance(said, Said)
    assert (said.text, said.thinking, said.finish) == ("", "so long", "length")


@pytest.mark.parametrize(
    "trouble",
    [
        ("status", 429, {}, b"slow down"),
        ("status", 500, {}, b"<html>oops</html>"),
        ("status", 503, {"Retry-After": "0.05"}, b""),
        ("cut",),
        ("hang", 0.6),
        ("trickle",),
        b"no json",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'["a", "list"]',
        b"[" * 100_000,
        b"",
    ],
    ids=["429", "500", "503", "cut", "hang", "trickle", "text", "empty", "number", "list", "deep", "nothing"],
)
def test_what_may_pass_is_tried_again(trouble):
    """The first two tries of every request go wrong."""
    with serving(lambda request, count: trouble if count < 3 else completion("7")) as server:
        found = answers(endpoint(server, timeout_s=0.4))
    assert [said.text for said in found.values() if isinstance(said, Said)] == ["7"] * 6
    assert all(isinstance(said, Said) and said.extra and said.extra["tries"] == 3 for said in found.values())
    assert len(server.requests) == 18


def test_tries_come_to_an_end_and_the_others_go_on():
    def behave(request, count):
        return ("status", 500, {}, b"oops") if "question 2" in str(request) else completion("7")

    with serving(behave) as server:
        found = answers(endpoint(server))
    assert found["p/2"] == "HTTP 500: oops (tried 4 times)"
    assert sum(isinstance(said, Said) for said in found.values()) == 5
    assert len(server.requests) == 5 + 4


def test_a_server_that_is_not_there():
    with serving(lambda *_: completion("7")) as server:
        pass
    found = answers(endpoint(server, tries=2), ASKS[:2])
    assert all(isinstance(reason, str) and "ConnectError" in reason for reason in found.values())


def test_a_request_that_will_never_do_fails_alone():
    def behave(request, _):
        return ("status", 400, {}, b"context length exceeded") if "question 1" in str(request) else completion("7")

    with serving(behave) as server:
        found = answers(endpoint(server))
    assert found["p/1"] == "HTTP 400: context length exceeded"
    assert len(server.requests) == 6, "not tried again"


@pytest.mark.parametrize(
    ("status", "wanted"), [(401, "OPENAI_API_KEY"), (404, "ends in /v1"), (302, "address"), (402, "account")]
)
def test_what_will_not_pass_ends_the_run(status, wanted):
    with serving(lambda *_: ("status", status, {"Location": "http://elsewhere/"}, b"no")) as server:
        with pytest.raises(ConfigError, match=wanted):
            answers(endpoint(server, concurrency=1))
        time.sleep(0.05)
    assert len(server.requests) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed_up_to_the_longest_wait(form):
    when = "0.2" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    trouble = ("status", 429, {"Retry-After": when}, b"")
    with serving(lambda request, count: trouble if count == 1 else completion("7")) as server:
        answers(endpoint(server, concurrency=1), ASKS[:2])
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert 0.19 <= gaps[0] < 1.0, "the wait that was asked for, or the longest of 0.3 s"
    assert gaps[1] < 0.15


def test_as_many_at_once_as_allowed():
    def behave(*_):
        time.sleep(0.05)
        return completion("7")

    with serving(behave) as server:
        answers(
            endpoint(server, concurrency=3), [Ask(p, j, None, j) for p in PROBLEMS[:1] for j in range(1)] + ASKS[1:]
        )
    assert server.most_busy == 3


def test_the_key_is_sent_and_never_told(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")

    def behave(request, _):
        return ("status", 400, {}, b"bad key sk-very-secret") if "question 1" in str(request) else completion("7")

    with serving(behave) as server:
        one = endpoint(server, key_env="MY_KEY")
        found = answers(one)
        assert set(server.keys) == {"Bearer sk-very-secret"}
        assert "secret" not in str(found) + json.dumps(one.identity())
    refusal = ("status", 401, {}, b"bad key sk-very-secret")
    with serving(lambda *_: refusal) as server, pytest.raises(ConfigError, match=r"bad key \*\*\*.*MY_KEY"):
        answers(endpoint(server, key_env="MY_KEY"))
    monkeypatch.setenv("MY_KEY", "schlüssel")
    with pytest.raises(ConfigError, match="plain characters"):
        endpoint(server, key_env="MY_KEY")


@pytest.mark.parametrize(
    "url", ["http://user:pass@host/v1", "http://host/v1?key=pass", "ftp://host", "http://", "http://[/v1"]
)
def test_wrong_addresses_are_named_without_passwords(url):
    with pytest.raises(ConfigError) as error:
        Endpoint(url, "m")
    assert "pass@" not in str(error.value) and "key=pass" not in str(error.value)


def test_a_stopped_run_leaves_no_thread_waiting():
    with serving(lambda *_: ("status", 429, {"Retry-After": "30"}, b"")) as server:
        one = endpoint(server, longest_wait_s=30.0, concurrency=4)
        stream = one.answer(ASKS)
        waiter = threading.Thread(target=lambda: next(stream), daemon=True)
        waiter.start()
        time.sleep(0.2)
        one.close()
        waiter.join(5)
        assert not waiter.is_alive()


def test_a_budget_is_the_most_tokens_of_a_reply():
    with serving(lambda *_: completion("7")) as server:
        answers(
            endpoint(server, Sampling(max_new_tokens=500)), [Ask(PROBLEMS[0], 0, 64, 1), Ask(PROBLEMS[1], 0, None, 1)]
        )
    assert sorted(request["max_tokens"] for request in server.requests) == [64, 500]


def test_system_and_instruction_stand_around_the_problem():
    frame = Frame("Be brief.", "Answer in a box.")
    assert frame.messages(PROBLEMS[0]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "question 0\nAnswer in a box."},
    ]


@pytest.mark.parametrize("more", [{"draws": True}, {"pictures": ["data:image/png;base64,AA"]}])
def test_pictures_are_not_sent_and_nothing_counts_as_wrong(more):
    refused = pytest.raises(ConfigError, match="wanted a task of text, came one with pictures")
    with closing(Endpoint("http://127.0.0.1:9/v1", "m")) as endpoint, refused:
        endpoint.complete([[{"role": "user", "content": "a", **more}]], 1, Sampling(), [[1]])
