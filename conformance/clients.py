"""Who is tried: each client, the environment it runs in, and its script in checks/.

Try it alone: `python -m conformance.run --list`
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Client:
    """A client of the server, or one use of it."""

    name: str
    environment: str
    """What it runs in: a name of `environments.PYTHON` or `environments.NODE`."""
    script: str
    package: str
    """Whose version the page tells."""
    about_s: int
    """How long it takes on two cores, roughly, for the time that is left; ten times that is too long."""
    variables: dict[str, str] = field(default_factory=dict)
    at_least: int | None = None
    """How many of its checks must pass; None: all of them."""
    is_required: bool = True
    why_not: str = ""
    """What is known of its red cells."""


_FORMATS = "llm_comply_cli.py", "llm-comply"
CLIENTS = (
    Client("openai (Python)", "openai", "openai_python.py", "openai", 20),
    Client("openai (JavaScript)", "js", "openai_js.mjs", "openai", 10),
    Client("AI SDK deepseek", "js", "ai_sdk.mjs", "@ai-sdk/deepseek", 20, {"CONFORMANCE_PROVIDER": "deepseek"}),
    Client(
        "AI SDK openai-compatible", "js", "ai_sdk.mjs", "@ai-sdk/openai-compatible", 20,
        {"CONFORMANCE_PROVIDER": "openai-compatible"},
    ),
    Client("litellm", "litellm", "litellm_python.py", "litellm", 30),
    Client("llm", "llm", "llm_cli.py", "llm", 40),
    Client("smolagents", "smolagents", "smolagents_python.py", "smolagents", 50),
    Client("Inspect AI", "inspect", "inspect_python.py", "inspect-ai", 40),
    Client("lm-eval", "lm-eval", "lm_eval_python.py", "lm-eval", 180),
    Client("schemathesis", "schemathesis", "schemathesis_cli.py", "schemathesis", 120),
    Client("aider", "aider", "aider_cli.py", "aider-chat", 60, is_required=False),
    Client(
        "llm-comply chat", "llm-comply", *_FORMATS, 40, {"CONFORMANCE_FORMAT": "openai-chat"}, at_least=8,
        why_not="It leaves out its test of thinking where a model is not called o3 or deepseek-r1.",
    ),
    Client(
        "llm-comply responses", "llm-comply", *_FORMATS, 60, {"CONFORMANCE_FORMAT": "open-responses"}, at_least=12,
        why_not="It leaves out the same test; compact-response passes on any server.",
    ),
    Client(
        "llm-comply anthropic", "llm-comply", *_FORMATS, 40,
        {"CONFORMANCE_FORMAT": "anthropic", "CONFORMANCE_TEXT": "claude-sonnet-4"}, at_least=9,
    ),
)  # fmt: skip
COLUMNS = ("models", "whole", "stream", "thinking", "tools", "schema", "log-probs", "completions", "errors")
"""The checks that most clients have. Others are told beside them."""
