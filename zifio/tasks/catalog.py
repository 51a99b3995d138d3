"""The tasks there are, and the typed config of each. A config says what its task is; here it *is* the task.

In a recipe: `task = { name = "chain_sum", max_terms = 12 }`. `TaskConfig` is the type of a field.

Try it alone:

    python -c "from zifio.tasks.catalog import read_task; print(read_task({'name': 'chain_mod'}, 'here'))"
"""

from typing import Annotated, Any

from pydantic import Field

from zifio.config import Config, build
from zifio.tasks.agent import Agent
from zifio.tasks.calculator import Calculator
from zifio.tasks.game import TicTacToe
from zifio.tasks.gym import Gym
from zifio.tasks.splits import Splits
from zifio.tasks.sums import ChainMod, ChainSum
from zifio.tasks.task import Task

TaskConfig = Annotated[ChainSum | ChainMod | Splits | Gym | Calculator | TicTacToe | Agent, Field(discriminator="name")]


def make_task(config: TaskConfig) -> Task:
    """The task that a config describes."""
    return config


class _Holder(Config):
    task: TaskConfig


def read_task(data: dict[str, Any], where: str) -> Task:
    """The task of a plain table with a `name` and its options. Raises ConfigError; `where` opens its
    message."""
    return make_task(build(_Holder, {"task": data}, where).task)
