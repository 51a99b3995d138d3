"""smolagents: an agent that must call a tool, and ends with an answer."""

from __future__ import annotations

from typing import Any

from checking import CAPITAL, KEY, SUM, TEXT, THINKS, URL, check, run
from smolagents import ChatMessage, OpenAIModel, ToolCallingAgent, tool
from smolagents.utils import AgentGenerationError

ASKED: list[str] = []


@tool
def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: the name of the city
    """
    ASKED.append(city)
    return f"sunny in {city}"


def model(name: str = TEXT, **more: Any) -> OpenAIModel:
    """A model of the server."""
    return OpenAIModel(name, f"{URL}/v1", api_key=KEY, client_kwargs={"timeout": 300}, temperature=0, **more)


def asked(text: str) -> list[ChatMessage]:
    """A question."""
    return [ChatMessage(role="user", content=[{"type": "text", "text": text}])]  # type: ignore[arg-type]


@check("whole")
def whole() -> None:
    """An answer and its usage."""
    reply = model(max_tokens=12).generate(asked(CAPITAL))
    assert "Paris" in str(reply.content) and reply.token_usage and reply.token_usage.output_tokens > 0, reply


@check("stream")
def stream() -> None:
    """The stream adds up."""
    deltas = list(model(max_tokens=12).generate_stream(asked(CAPITAL)))
    text = "".join(delta.content or "" for delta in deltas)
    assert text == model(max_tokens=12).generate(asked(CAPITAL)).content, text
    assert deltas[-1].token_usage is not None


@check("thinking")
def thinking() -> None:
    """The answer comes without its thinking, which stands in the raw reply."""
    reply = model(THINKS, max_tokens=60).generate(asked(SUM))
    assert reply.content and "<think>" not in str(reply.content), reply
    assert reply.raw.choices[0].message.reasoning_content, reply.raw  # type: ignore[union-attr]


@check("tools")
def tools() -> None:
    """Every step of the agent is a call that could be read, its result goes back, and the run ends with an answer."""
    for streams in (False, True):
        ASKED.clear()
        agent = ToolCallingAgent(
            [weather], model(max_tokens=120), max_steps=2, verbosity_level=0, stream_outputs=streams
        )
        answer = agent.run("Call the tool weather for Rome.")
        drawn: Any = [step for step in agent.memory.steps if getattr(step, "model_output_message", None)]
        assert drawn and all(step.tool_calls and not step.error for step in drawn), [step.error for step in drawn]
        assert answer and (ASKED or drawn[0].tool_calls[0].name == "final_answer"), (answer, ASKED)


@check("errors")
def errors() -> None:
    """A refusal ends the run with the server's words."""
    agent = ToolCallingAgent(
        [weather], model("no-such-model", max_tokens=12, retry=False), max_steps=1, verbosity_level=0
    )
    try:
        agent.run("hi")
    except AgentGenerationError as error:
        assert "no-such-model" in str(error), error
        return
    raise AssertionError("nothing was raised")


if __name__ == "__main__":
    run()
