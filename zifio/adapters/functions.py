"""Tools of a task as Python functions, for frameworks that read a tool's schema out of a signature and a docstring.

Try it alone:

    python -c "from zifio.adapters.functions import *; help(as_function(calculator().schema, lambda *a: 'six'))"
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from zifio.tasks.environment import Call
from zifio.tasks.tools import calculator

__all__ = ["as_function", "calculator"]

_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}


def as_function(schema: dict[str, Any], answer: Callable[[Any, Call], str]) -> Callable[..., str]:
    """A method by the tool's name with its parameters, which hands the call to `answer(self, call)`.

    Arguments are checked by whoever answers, so that the policy is told what zifio would tell it.
    """
    function = schema["function"]
    properties = function["parameters"].get("properties", {})
    required = function["parameters"].get("required", [])
    about = {name: spec.get("description", "") for name, spec in properties.items()}

    def method(self: Any, **arguments: Any) -> str:
        return answer(self, Call(function["name"], json.dumps(arguments)))

    hints: dict[str, Any] = {
        name: Annotated[_TYPES.get(spec.get("type", ""), Any), Field(description=about[name])]
        for name, spec in properties.items()
    }
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name in sorted(properties, key=lambda name: name not in required):
        default = inspect.Parameter.empty if name in required else None
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=hints[name]))
    method.__name__ = method.__qualname__ = function["name"]
    lines = [function["description"], "", "Args:", *(f"    {name}: {about[name]}" for name in properties)]
    method.__doc__ = "\n".join(lines if properties else lines[:1])
    method.__signature__ = inspect.Signature(parameters, return_annotation=str)  # pyright: ignore
    method.__annotations__ = {**hints, "return": str}
    return method
