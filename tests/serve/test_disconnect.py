"""Who leaves is forgotten by the engine, and the others get what they asked for."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor

from served import ASK, Here, policy, serving


def test_who_hangs_up_frees_the_engine_within_a_second():
    with serving(made=policy(context=8192)) as here:
        never = here.never_ends
        for path, asked in (("/v1/chat/completions", {"messages": ASK}), ("/v1/completions", {"prompt": "deep"})):
            body = {"model": "tiny", "max_tokens": 8000, "logit_bias": never, "stream": True, "n": 2, **asked}
            with here.http.stream("POST", path, json=body) as answer:
                lines = answer.iter_lines()  # held: a dropped iterator would hang up
                assert next(lines).startswith("data: ")
                assert here.engine.has_work
            assert here.is_idle(1.0), path
        assert here.engine.stats.tokens < 16000
        assert here.post("/v1/completions", prompt="deep", max_tokens=2).status_code == 200
        figures = here.http.get("/metrics").text
        assert 'zifio:request_success_total{finished_reason="abort",model_name="tiny"} 2.0' in figures


def test_fifty_streams_with_drops_leave_no_request_behind():
    with serving({"engine": {"max_rows": 16}}) as here:

        def ask(number: int) -> str | None:
            chance = random.Random(number)
            body = {"model": "tiny", "messages": ASK, "seed": number % 5, "max_tokens": 24, "stream": True}
            patience = chance.randrange(6) if number % 2 else None
            with here.http.stream("POST", "/v1/chat/completions", json=body) as answer:
                assert answer.status_code == 200
                lines = []
                for line in answer.iter_lines():
                    lines += [line] if line else []
                    if patience is not None and len(lines) > patience:
                        return None
                assert lines[-1] == "data: [DONE]"
                deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-1]]
                return "".join(delta.get("content") or "" for delta in deltas)

        with ThreadPoolExecutor(50) as pool:
            said = list(pool.map(ask, range(50)))
        assert here.is_idle(2.0)
        whole = [_whole(here, seed) for seed in range(5)]
        assert len(set(whole)) > 1 and sum(text is not None for text in said) >= 25
        assert all(text in (None, whole[number % 5]) for number, text in enumerate(said))


def _whole(here: Here, seed: int) -> str:
    reply = here.post("/v1/chat/completions", messages=ASK, seed=seed, max_tokens=24).json()
    return reply["choices"][0]["message"]["content"]
