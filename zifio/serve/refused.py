"""Refusals in the form that OpenAI's clients read, or Anthropic's.

Try it alone: `python -c "from zifio.serve.refused import Refused; print(Refused(400, 'no').body())"`
"""

from __future__ import annotations

from typing import Any, Literal

Form = Literal["openai", "anthropic"]
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC = {
    **_TYPES, 403: "permission_error", 413: "request_too_large", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


def form_of(path: str) -> Form:
    """How errors are told at a path."""
    is_anthropic = path.startswith("/anthropic") or path.endswith(("/messages", "/messages/count_tokens"))
    return "anthropic" if is_anthropic else "openai"


class Refused(Exception):
    """A request that is not answered, and why."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_s = status, message, param, code, retry_s

    def body(self, form: Form = "openai") -> dict[str, Any]:
        """The error object."""
        if form == "anthropic":
            kind = _ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What goes with the status."""
        headers = {} if self.retry_s is None else {"Retry-After": str(max(1, round(self.retry_s)))}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
