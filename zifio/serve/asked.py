"""From what a client sends to what the engine is asked: checked against the model, refused with the numbers.

Try it alone: `pytest tests/serve/test_chat_api.py`
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from zifio.config import Sampling
from zifio.engine.request import Request
from zifio.seed import stream_seed
from zifio.serve.model import Served
from zifio.serve.pictures import numbered, without_pictures
from zifio.serve.prompt import Prompt, chat_prompt
from zifio.serve.refused import Refused
from zifio.serve.reply import Voice
from zifio.serve.request import Body, ChatRequest, Drawing
from zifio.serve.settings import ServeConfig, Thinks
from zifio.serve.split import Phase
from zifio.serve.steer import Steering

_EVERY = 1 << 30  # as many tokens as no vocabulary has
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra")


@dataclass
class Asked:
    """A request for the engine, and who makes replies of what it draws."""

    request: Request
    voices: list[Voice]
    warning: str = ""

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)


def ask_chat(served: Served, body: ChatRequest, config: ServeConfig, thinking: Thinks = "default") -> list[Asked]:
    """A chat request; `thinking` is what the name of the model says. Raises Refused or ConfigError."""
    tokenizer = served.tokenizer
    tools, choice = _tools(body)
    tokens, prompt = chat_tokens(served, body, config, thinking)
    most = body.max_completion_tokens or body.max_tokens
    n_new = room(served, len(tokens), most, config)
    n = n_replies(body, config)
    grammar = _grammar(served, body, tools, choice)
    steering = _steering(served, body, prompt.phase, _budget(body, config, n_new), grammar, n)
    sampling = sampling_of(body, n_new)
    n_top = (body.top_logprobs or 0) if body.logprobs else 0
    request = Request(tokens, sampling, seeds(body, n), tuple(steering), n_top, pictures=prompt.pictures)
    parallel = body.parallel_tool_calls is not False
    has_tools = bool(tools) and choice != "none"
    voices = [
        Voice(place, tokenizer.decode, tokenizer.eos_id, prompt.phase, body.stops(), has_tools, parallel)
        for place in range(n)
    ]
    return [Asked(request, voices, prompt.warning)]


def chat_tokens(
    served: Served, body: ChatRequest, config: ServeConfig, thinking: Thinks = "default"
) -> tuple[list[int], Prompt]:
    """The prompt of a chat. Raises Refused or ConfigError."""
    tools, choice = _tools(body)
    variables = {**(body.chat_template_kwargs or {})}
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    offered = [] if choice == "none" else tools
    thinks = _thinks(body, thinking)
    messages, pictures = without_pictures(served, body.messages, config)
    prompt = chat_prompt(served.tokenizer, messages, offered, thinks, variables, config.strict_deepseek)
    tokens = served.tokenizer.encode(prompt.text)
    return numbered(served, tokens, len(pictures)), prompt._replace(pictures=tuple(pictures))


def room(served: Served, n_prompt: int, most: int | None, config: ServeConfig) -> int:
    """How many tokens a reply may have. Raises Refused, with the numbers, when they do not fit: nothing is cut."""
    left = served.longest - n_prompt
    # The beginning is OpenAI's: clients tell by it that a conversation has become too long.
    memory = "" if served.longest == served.context else ", as far as memory goes"
    most_of_all = f"this model's maximum context length is {served.longest} tokens{memory}"
    if not n_prompt:
        raise Refused(400, "prompt: wanted at least one token, came none.", "prompt")
    if left < 1:
        raise Refused(
            400,
            f"{most_of_all.capitalize()}, the reply included, and this prompt has {n_prompt}. Shorten it by {1 - left} "
            "tokens or more.",
            "messages",
            "context_length_exceeded",
        )
    if most is None:
        return min(left, config.max_tokens or left)
    if most > left and not config.fit_max_tokens:
        raise Refused(
            400,
            f"max_tokens={most} does not fit: {most_of_all} and this prompt has {n_prompt}. Lower max_tokens to {left} "
            "or shorten the prompt.",
            "max_tokens",
            "context_length_exceeded",
        )
    return max(1, min(most, left))


def n_replies(body: Body, config: ServeConfig) -> int:
    """How many replies are wanted."""
    n = body.n or 1
    if n > config.max_n:
        raise Refused(400, f"n={n}: wanted at most {config.max_n}.", "n")
    return n


def seeds(body: Body, n: int) -> tuple[int, ...]:
    """A seed for each reply: named by the request's where it has one."""
    if body.seed is None:
        return tuple(secrets.randbits(63) for _ in range(n))
    return tuple(stream_seed(body.seed, "choice", place) for place in range(n))


def sampling_of(body: Body, n_new: int, stop: tuple[str, ...] = ()) -> Sampling:
    """How replies are drawn."""
    given = {
        "temperature": body.temperature, "top_p": None if body.top_p is None else max(body.top_p, 1e-9),
        "top_k": None if body.top_k is None else min(max(body.top_k, 0), _EVERY), "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
    }  # fmt: skip
    return Sampling(
        max_new_tokens=n_new, stop=stop, **{name: value for name, value in given.items() if value is not None}
    )


def logit_bias(served: Served, body: Drawing) -> dict[int, float]:
    """The biases by token."""
    for word in body.logit_bias or {}:
        if not word.isascii() or not word.isdecimal() or len(word) > 9 or int(word) >= served.n_vocab:
            raise Refused(400, f"logit_bias: wanted tokens below {served.n_vocab}, came {word[:20]!r}.", "logit_bias")
    return {int(word): value for word, value in (body.logit_bias or {}).items()}


def _thinks(body: ChatRequest, thinking: Thinks) -> bool | None:
    """Whether the model is made to think; None leaves it to the template and the model."""
    if body.reasoning_effort is not None and body.reasoning_effort not in EFFORTS:
        raise Refused(400, f"reasoning_effort: wanted one of {', '.join(EFFORTS)}.", "reasoning_effort")
    if body.thinking is not None:
        if body.thinking.budget_tokens == 0:
            return False
        return {"enabled": True, "disabled": False, "adaptive": None}[body.thinking.type]
    if body.reasoning_effort == "none" or 0 in (body.thinking_budget, body.thinking_token_budget):
        return False
    return {"default": None, "enabled": True, "disabled": False}[thinking]


def _budget(body: ChatRequest, config: ServeConfig, n_new: int) -> int | None:
    """Most tokens of thinking."""
    said = (
        body.thinking_budget, body.thinking_token_budget, body.thinking.budget_tokens if body.thinking else None
    )  # fmt: skip
    budget = min((n for n in said if n is not None), default=None)
    share = config.effort.get(body.reasoning_effort or "")
    return max(1, int(share * n_new)) if budget is None and share is not None else budget


def _tools(body: ChatRequest) -> tuple[list[dict[str, Any]], str]:
    """The functions on offer, and which of them: auto, none, required, or a name behind a colon."""
    tools = [tool for tool in body.tools or [] if tool.get("type", "function") == "function"]
    for place, tool in enumerate(tools):
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refused(400, f"tools.{place}.function: wanted one with a name.", "tools")
        if not isinstance(function.get("parameters") or {}, dict):
            raise Refused(400, f"tools.{place}.function.parameters: wanted a JSON schema.", "tools")
    choice = body.tool_choice
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name") if isinstance(choice.get("function"), dict) else None
        if name not in [tool["function"]["name"] for tool in tools]:
            raise Refused(400, "tool_choice: wanted the name of one of the tools.", "tool_choice")
        return tools, f":{name}"
    if choice not in (None, "auto", "none", "required"):
        raise Refused(400, "tool_choice: wanted auto, none, required or a function.", "tool_choice")
    if choice == "required" and not tools:
        raise Refused(400, "tool_choice: required wants tools, came none.", "tool_choice")
    return tools, choice or "auto"


def _grammar(served: Served, body: ChatRequest, tools: list[dict[str, Any]], choice: str) -> str | None:
    """What the content must follow."""
    functions = [tool["function"] for tool in tools]
    parallel = body.parallel_tool_calls is not False
    if choice == "required" or choice.startswith(":"):
        named = [one for one in functions if choice == "required" or one["name"] == choice[1:]]
        return served.grammars.calls(named, is_forced=True, parallel=parallel and choice == "required")
    form = body.response_format or {}
    kind = form.get("type", "text")
    if kind == "json_object":
        return served.grammars.json({"type": "object"})
    if kind == "json_schema":
        inner = form.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if not isinstance(schema, dict):
            raise Refused(400, "response_format.json_schema.schema: wanted a JSON schema.", "response_format")
        return served.grammars.json(schema)
    if kind != "text":
        raise Refused(400, "response_format.type: wanted text, json_object or json_schema.", "response_format")
    if choice == "auto" and any(one.get("strict") for one in functions):
        return served.grammars.calls(functions, is_forced=False, parallel=parallel)
    return None


def _steering(
    served: Served, body: ChatRequest, phase: Phase, budget: int | None, grammar: str | None, n: int
) -> list[Steering]:
    """One for each reply, or none where nothing needs it."""
    static = logit_bias(served, body)
    penalties = body.presence_penalty or 0.0, body.frequency_penalty or 0.0
    if not (static or any(penalties) or budget is not None or grammar is not None or body.stop):
        return []
    return [
        Steering(
            served.n_vocab,
            served.tokenizer.eos_id,
            phase,
            served.think,
            served.closing,
            budget,
            grammar,
            static,
            *penalties,
            body.stops(),
        )
        for _ in range(n)
    ]
