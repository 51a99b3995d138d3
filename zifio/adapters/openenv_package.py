"""The folder of an OpenEnv package for a task: manifest, server, Dockerfile, and a plan by which to validate it.

    python -m zifio.adapters.openenv_package calculator calculator_env
    openenv validate calculator_env --level static --skip-build
    cd calculator_env && python -m server.app --port 8000     # openenv validate --url http://127.0.0.1:8000

The plan's actions are the task's own demonstration of one problem, so that a validator sees a whole episode.

Try it alone: `pytest tests/adapters/test_openenv.py`
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from zifio.adapters.played import Series
from zifio.log import say
from zifio.tasks.environment import demonstration


def name_of(task: str) -> str:
    """A Python name for the environment of a task: `reasoning_gym:family=x` is reasoning_gym_family_x."""
    return re.sub(r"\W+", "_", task, flags=re.ASCII).strip("_").lower()


def write(task: str, folder: str | Path, zifio: str = "zifio") -> None:
    """Write the package of a task, named as on zifio's command line; `zifio` is what pip shall install in the image.
    Raises ConfigError."""
    series = Series(task)
    messages = demonstration(series.task, series.reset(seed=0).problem, True)
    turns = [message for message in messages if message["role"] == "assistant"]
    actions = [{"text": turn["content"], "tool_calls": turn.get("tool_calls", [])} for turn in turns]
    known = {"task": task, "name": name_of(task), "zifio": zifio, "actions": json.dumps(actions, indent=1)}
    templates = Environment(
        loader=PackageLoader("zifio.adapters", "openenv_files"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    for name in templates.list_templates():
        path = Path(folder) / name.removesuffix(".jinja")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(templates.get_template(name).render(known))


if __name__ == "__main__":
    write(*sys.argv[1:])
    say(f"{sys.argv[2]}: a package for `openenv validate`, `openenv build` and `openenv push`")
