"""Problems of fitting difficulty: a task with one of its whole-number options at another value.

Pretraining raises the option with the steps; RL lets it follow the pass rate, since with binary rewards a group's
expected squared advantage is p (1 - p), which vanishes where all is right or all is wrong.

Try it alone: `pytest tests/train/test_curriculum.py`
"""

from __future__ import annotations

from zifio.config import Config, ConfigError, build
from zifio.tasks.task import Task
from zifio.train.config import PassRateCurriculum


def full_value(task: Task, option: str, start: int, where: str) -> int:
    """The option's value in the task itself, which is the hardest.

    Raises ConfigError when the task has no such whole-number option, or starts above its full value.
    """
    full = getattr(task, option, None) if isinstance(task, Config) and option in type(task).model_fields else None
    if not isinstance(full, int) or start > full:
        raise ConfigError(
            f"{where}: curriculum: wanted a whole-number option of {task.name} that starts at most at its full "
            f"value, came {option!r} from {start} to {full!r}. Name another option or lower start."
        )
    return full


def task_with(task: Task, option: str, value: int, where: str) -> Task:
    """The task with the option at this value. Raises ConfigError where the task does not allow it."""
    assert isinstance(task, Config), "full_value has checked it"
    return build(type(task), task.model_dump() | {option: value}, where)


class Difficulty:
    """The value of a task's option that follows the pass rate."""

    def __init__(self, curriculum: PassRateCurriculum, task: Task, where: str) -> None:
        """Begin at the curriculum's start. Raises ConfigError when the task has no such option or value."""
        self.curriculum, self.full_task, self.where = curriculum, task, where
        self.full = full_value(task, curriculum.option, curriculum.start, where)
        self.value = curriculum.start
        self.task()

    def task(self) -> Task:
        """The task as hard as it is now."""
        return task_with(self.full_task, self.curriculum.option, self.value, self.where)

    def follow(self, pass_rate: float) -> None:
        """Move by one towards pass rates within [low, high], as far as the task goes in either direction."""
        if pass_rate > self.curriculum.high:
            self.value = min(self.value + 1, self.full)
        elif pass_rate < self.curriculum.low:
            self.value -= 1
            try:
                self.task()
            except ConfigError:  # the task's own way of saying that it has nothing easier
                self.value += 1
