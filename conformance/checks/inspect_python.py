"""Inspect AI: an evaluation with epochs, its thinking, log-probs, schemas and tools."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from checking import CAPITAL, FOLDER, KEY, SUM, TEXT, THINKS, URL, WEATHER, check, is_weather, run, sums

os.environ |= {"ZIFIO_API_KEY": KEY, "ZIFIO_BASE_URL": f"{URL}/v1", "INSPECT_LOG_DIR": str(FOLDER)}

from inspect_ai import Epochs, Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, ResponseSchema, get_model
from inspect_ai.scorer import pattern
from inspect_ai.tool import ToolInfo, ToolParams
from inspect_ai.util import JSONSchema


def model(name: str = TEXT, **settings: Any) -> Any:
    """A model of the server, greedy."""
    config = GenerateConfig(temperature=0, max_retries=0, timeout=300, **settings)
    return get_model(f"openai-api/zifio/{name}", config=config, memoize=False)


def generate(prompt: str, name: str = TEXT, tools: Any = (), choice: Any = "auto", **settings: Any) -> Any:
    """One reply."""
    return asyncio.run(model(name, **settings).generate(prompt, tools=list(tools), tool_choice=choice))


@check("whole")
def whole() -> str:
    """An evaluation of sums, twice each, is scored as the model deserves."""
    samples = [Sample(input=question, target=answer) for question, answer in sums(20)]
    task = Task(dataset=samples, scorer=pattern(r"<answer>(\d)"), epochs=Epochs(2, ["mean", "pass_at_1"]))
    (log,) = eval(task, model=model(THINKS, max_tokens=64), display="none", max_connections=8)
    assert log.status == "success" and log.results is not None, log.error
    assert log.samples is not None and len(log.samples) == 40 and not any(sample.error for sample in log.samples)
    share = log.results.scores[0].metrics["accuracy"].value
    assert share >= 0.5, f"{share:.0%} right"
    return f"{share:.0%} of 20 sums right"


@check("thinking")
def thinking() -> None:
    """The thinking is a part of the message of its own, and counted."""
    reply = generate(SUM, THINKS, max_tokens=64)
    parts = {part.type: part for part in reply.message.content}
    assert parts["reasoning"].reasoning and "<think>" not in parts["text"].text, parts
    assert reply.usage.reasoning_tokens and reply.usage.total_tokens, reply.usage


@check("log-probs")
def logprobs() -> None:
    """Each token's log-prob."""
    reply = generate(CAPITAL, logprobs=True, top_logprobs=2, max_tokens=12)
    told = reply.choices[0].logprobs.content
    assert "".join(token.token for token in told) == reply.completion and "Paris" in reply.completion


@check("tools")
def tools() -> None:
    """A forced call that fits."""
    parameters = ToolParams(
        properties={"city": JSONSchema(type="string", enum=["Paris", "Rome"]), "days": JSONSchema(type="integer")},
        required=["city", "days"],
    )
    weather = ToolInfo(name="weather", description="The weather", parameters=parameters)
    reply = generate("Rome, 3 days", tools=[weather], choice="any", max_tokens=60, parallel_tool_calls=False)
    (call,) = reply.message.tool_calls
    assert call.parse_error is None and call.function == "weather" and is_weather({**call.arguments, "days": 1}), call


@check("schema")
def schema() -> None:
    """JSON that fits."""
    form = ResponseSchema(name="weather", json_schema=JSONSchema.model_validate(WEATHER), strict=True)
    assert is_weather(json.loads(generate("Rome, 3 days", response_schema=form, max_tokens=40).completion))


@check("errors")
def errors() -> None:
    """What the server refuses ends the evaluation; a conversation that is too long is a stop of its own kind."""
    (log,) = eval(Task(dataset=[Sample(input="1", target="1")]), model=model("no-such-model"), display="none")
    assert log.status == "error" and "no-such-model" in str(log.error), log.status
    reply = generate("deep " * 9000)
    assert reply.choices[0].stop_reason == "model_length", reply


if __name__ == "__main__":
    run()
