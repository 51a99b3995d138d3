"""Refusals in the form that OpenAI's clients read.

Try it alone: `python -c "from zifio.serve.refused import Refused; print(Refused(400, 'no').body())"`
"""

from __future__ import annotations

from typing import Any

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request that is not answered, and why."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_s = status, message, param, code, retry_s

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What goes with the status."""
        headers = {} if self.retry_s is None else {"Retry-After": str(max(1, round(self.retry_s)))}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
