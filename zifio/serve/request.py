"""What clients send, as OpenAI and DeepSeek spell it. Fields that we do not know are let pass, as theirs are.

Try it alone: `python -c "from zifio.serve.request import ChatRequest as C; print(C(model='r1', messages=[{}]))"`
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Token = Annotated[int, Field(ge=0)]
_WITH_SCHEMAS = ("tools", "response_format", "text")  # fields; which of them a request has depends on its kind
Count = Annotated[int, Field(ge=1)]
PICTURES = ("image_url", "input_image", "image")
"""What parts with pictures are called: in chats, in responses, in messages."""


def is_picture(part: Any) -> bool:
    """Whether a part of a message is a picture, in anybody's spelling."""
    return isinstance(part, dict) and part.get("type") in PICTURES


def has_picture(message: Any) -> bool:
    """Whether a message holds a picture."""
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, list) and any(map(is_picture, content))


class Drawing(BaseModel):
    """What all requests have: a model, and how it draws."""

    model_config = ConfigDict(allow_inf_nan=False, protected_namespaces=())

    model: str
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = None

    def drawing(self) -> dict[str, Any]:
        """These fields alone."""
        return self.model_dump(include=set(Drawing.model_fields))

    def is_light(self) -> bool:
        """Whether it is understood in no time, if it is short: without schemas and pictures."""
        messages = getattr(self, "messages", None) or getattr(self, "input", None)
        pictures = isinstance(messages, list) and any(has_picture(one) for one in messages)
        return not pictures and not any(getattr(self, name, None) for name in _WITH_SCHEMAS)


class Body(Drawing):
    """What OpenAI's completions have, of chats and of texts."""

    max_tokens: Annotated[int, Field(ge=0)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: Count | None = None
    stream_options: dict[str, Any] | None = None

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def wants_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return bool((self.stream_options or {}).get("include_usage"))


class Thinking(BaseModel):
    """DeepSeek's switch, and Anthropic's budget."""

    type: Literal["enabled", "disabled", "adaptive"] = "enabled"
    budget_tokens: Annotated[int, Field(ge=0)] | None = None


class ChatRequest(Body):
    """POST /v1/chat/completions"""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    thinking: Thinking | None = None
    reasoning_effort: str | None = None
    thinking_budget: Annotated[int, Field(ge=0)] | None = None
    thinking_token_budget: Annotated[int, Field(ge=0)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(Body):
    """POST /v1/completions"""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: str | None = None
    best_of: int | None = None
