"""The tasks there are, and the typed config of each. A config says what its task is; here it *is* the task.

In a recipe: `task = { name = "chain_sum", max_terms = 12 }`. `TaskConfig` is the type of a field. On the command line:
`chain_sum:max_terms=12` (`named_task`).

Try it alone:

    python -c "from zifio.tasks.catalog import read_task; print(read_task({'name': 'chain_mod'}, 'here'))"
"""

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from zifio.config import Config, ConfigError, build, override, read_toml, suggestion
from zifio.tasks.agent import Agent
from zifio.tasks.calculator import Calculator
from zifio.tasks.coding import HumanEval, Mbpp
from zifio.tasks.custom import Custom
from zifio.tasks.drills import Drills
from zifio.tasks.facts import Facts
from zifio.tasks.flawed import FlawedMod
from zifio.tasks.game import TicTacToe
from zifio.tasks.gym import Gym
from zifio.tasks.labelled import LabelDrawings, PictureLabels
from zifio.tasks.lax import LaxMod
from zifio.tasks.scenes import GlyphCaptions, GlyphDrawings, GlyphWords
from zifio.tasks.sets import Gsm8k, Math500, MultipleChoice, WordProblems
from zifio.tasks.splits import Splits
from zifio.tasks.sums import ChainMod, ChainSum
from zifio.tasks.task import Task

TaskConfig = Annotated[
    ChainSum
    | ChainMod
    | LaxMod
    | FlawedMod
    | Facts
    | Drills
    | Splits
    | Gym
    | Gsm8k
    | Math500
    | WordProblems
    | MultipleChoice
    | Custom
    | HumanEval
    | Mbpp
    | Calculator
    | TicTacToe
    | GlyphCaptions
    | GlyphDrawings
    | GlyphWords
    | PictureLabels
    | LabelDrawings
    | Agent,
    Field(discriminator="name"),
]


def make_task(config: TaskConfig) -> Task:
    """The task that a config describes."""
    return config


def verifier_digest(task: Task) -> str:
    """Twelve hex digits naming what judges: the code of all tasks, a user's own verifier, and the task's settings.

    Where its data lie is no part of it, what they say is in the problems.
    """
    own = [hashlib.sha256(path.read_bytes()).hexdigest() for path in getattr(task, "sources", ())]
    settings = task.model_dump_json(exclude={"path"}) if isinstance(task, Config) else task.name
    return hashlib.sha256(json.dumps([settings, code_digest(), own]).encode()).hexdigest()[:12]


@cache
def code_digest() -> str:
    """Twelve hex digits naming the code of all tasks and verifiers, as it is installed."""
    folder, whole = Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        whole.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return whole.hexdigest()[:12]


class _Holder(Config):
    task: TaskConfig


def read_task(data: dict[str, Any], where: str) -> Task:
    """The task of a plain table with a `name` and its options. Raises ConfigError; `where` opens its
    message."""
    return make_task(build(_Holder, {"task": data}, where).task)


_FILE = re.compile(r"(?P<path>.+\.(?P<kind>jsonl(?:\.gz)?|parquet|toml))(?::(?P<rest>.*))?", re.DOTALL)
_NAMED = re.compile(r"(?P<name>\w+)(?::(?P<options>\s*[a-z][\w.]*\s*=.*))?", re.DOTALL)
_NEXT_KEY = re.compile(r",(?=\s*[a-z][\w.]*\s*=)")


def named_task(text: str) -> Task:
    """The task that one word of the command line means. Raises ConfigError.

        NAME                     one of the catalog's, as it is by default
        NAME:key=value,key=value with options: `gsm8k:path=data/gsm8k,response=boxed`
        FILE.jsonl, FILE.parquet a user's own, options behind a colon: `mine.jsonl:verifier=integer`
        RECIPE.toml              the task of a recipe
        RECIPE.toml:STAGE        the task of one of its stages

    Values are TOML, or bare words. A comma within a value needs no care: options part where a key follows.
    """
    return read_task(named_table(text), text)


def named_table(text: str) -> dict[str, Any]:
    """The plain table, as it could stand in a recipe, that `named_task` reads. Raises ConfigError."""
    named, found = _NAMED.fullmatch(text), _FILE.fullmatch(text)
    if named:
        return _with_options({"name": named["name"]}, named["options"] or "", text)
    if found is None:
        name, _, options = text.partition(":")
        return _with_options({"name": name}, options, text)
    if found["kind"] != "toml":
        return _with_options({"name": "custom", "path": found["path"]}, found["rest"] or "", text)
    recipe = read_toml(found["path"])
    stages = {stage.get("name"): stage for stage in recipe.get("stage", []) if isinstance(stage, dict)}
    if found["rest"] and found["rest"] not in stages:
        known = [str(name) for name in stages]
        raise ConfigError(
            f"{text}: wanted a stage of the recipe, one of {', '.join(known)}; came {found['rest']!r}. "
            f"{suggestion(found['rest'], known) or 'Name one of these.'}"
        )
    table = stages.get(found["rest"], {}).get("task") or recipe.get("task")
    if not isinstance(table, dict):
        raise ConfigError(f"{text}: wanted a recipe with a task, came none. Add a line `task = {{ name = ... }}`.")
    return table


def _with_options(table: dict[str, Any], options: str, text: str) -> dict[str, Any]:
    """The table with `key=value,key=value` put in."""
    wrong = [part for part in _NEXT_KEY.split(options) if options and "=" not in part]
    if wrong:
        raise ConfigError(f"{text}: wanted key=value behind the colon, came {wrong[0]!r}. Write, say, `seed=1`.")
    return override(table, [part.strip() for part in _NEXT_KEY.split(options)] if options else [])
