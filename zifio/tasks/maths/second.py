"""The second opinion of math-verify (pip install math-verify), where it is installed. It decides nothing here: its
agreement makes no answer right, its disagreement is told.

Try it alone: `python -c "from zifio.tasks.maths.second import opinion; print(opinion('0.5', r'\\frac12'))"`
"""

import contextlib
import importlib
import logging
from functools import lru_cache
from types import ModuleType
from typing import Any


@lru_cache(maxsize=1)
def _library() -> ModuleType | None:
    try:
        library = importlib.import_module("math_verify")
    except ImportError:
        return None
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return library


def is_there() -> bool:
    """Whether math-verify is installed."""
    return _library() is not None


def opinion(answer: str, gold: str) -> bool | None:
    """Whether math-verify calls them equal; None when it is not installed or cannot tell. `9^{9^{9^9}}` hangs it.

    Without its own time limits, which need the main thread: whoever asks has one.
    """
    library: Any = _library()
    if library is None:
        return None
    with contextlib.suppress(Exception):
        parsed = [library.parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer)]
        if all(parsed):
            return bool(library.verify(parsed[0], parsed[1], timeout_seconds=None))
    return None
