"""The verifier's word on an item, when somebody asks: in a process of its own that may hang or die without harm.

Try it alone: `pytest tests/label/test_referee.py`
"""

from typing import Any

from zifio.config import ConfigError
from zifio.label.item import Item
from zifio.tasks.runtime import Pool
from zifio.tasks.score import READER, read_checker
from zifio.tasks.task import Problem, render_response


class Referee:
    """Judges answers. Its processes start with the first question, and end with the block."""

    def __init__(self) -> None:
        self._pool = Pool(workers=1, reader=READER)

    def __enter__(self) -> "Referee":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def verdict(self, item: Item) -> dict[str, Any]:
        """`outcome` (right, wrong, error, or unknown where nobody knows the right answer), `reason` and `gold`."""
        if not item.gold or item.kind == "pair":
            return {"outcome": item.outcome or "unknown", "reason": "", "gold": item.gold}
        try:
            checker = read_checker(item.task, f"item {item.id}")
            problem = Problem(item.problem or item.id, item.prompt, item.gold)
            verdict = self._pool.check(checker, [(problem, _response(item))])[0].verdict
        except (ConfigError, RuntimeError) as error:
            return {"outcome": "error", "reason": str(error), "gold": item.gold}
        return {"outcome": verdict.outcome, "reason": verdict.reason, "gold": item.gold}


def _response(item: Item) -> str:
    """The text that the verifier reads: the answer where it stands alone, else all of it in the agreed shape."""
    if item.kind == "answer":
        return item.response
    if item.task.get("name") == "maths":
        return item.answer or item.steps[-1]
    return render_response("\n".join(item.steps), item.answer)
