"""Keeps made-up requests interesting and short.

Most name a model that is there, half of the conversations can be answered, and none asks for a long reply.
"""

from __future__ import annotations

import os
import random
from typing import Any

import schemathesis

MODELS = [os.environ["CONFORMANCE_THINKS"], os.environ["CONFORMANCE_TEXT"]]
SOUND = [{"role": "user", "content": "(1+2+3)%10"}]
MOST = {"max_tokens": 4, "max_completion_tokens": 4, "max_output_tokens": 4, "n": 2}
_drawn = random.Random(0)


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """The body as it is sent."""
    if isinstance(body, dict) and _drawn.random() < 0.9:
        body = {**body, "model": _drawn.choice(MODELS)}
    if isinstance(body, dict) and "messages" in body and _drawn.random() < 0.5:
        body = {**body, "messages": SOUND}
    if isinstance(body, dict):
        short = {key: most for key, most in MOST.items() if isinstance(body.get(key), int) and body[key] > most}
        body = {**body, **short}
    return body
