r"""Is the answer of a response right? The verdict on mathematics in words, LaTeX or plain numbers.

Exact and typed: right only where the answer was shown to equal the gold. Two that could not be shown equal are wrong,
and the reason says so; math-verify's opinion, if asked for, changes no verdict. It may take seconds and much memory,
so tasks that use it are checked in the pool of `zifio.tasks.runtime` (`isolated`).

Try it alone: `python -c "from zifio.tasks.maths.verify import verify; print(verify(r'So \boxed{0.5}', r'\frac12'))"`
"""

from zifio.tasks.maths.equality import Equality, equal, gold_readings, quoted
from zifio.tasks.maths.extract import Found, find
from zifio.tasks.maths.second import opinion
from zifio.tasks.task import Verdict

NEEDS = ("zifio.tasks.maths.verify", "mpmath", "sympy", "sympy.simplify.fu", "sympy.polys.numberfields.minpoly")
"""Modules for a task's `needs`: imported once for all workers."""


def verify(response: str, gold: str, *, ordered: bool = True, second_opinion: bool = False) -> Verdict:
    """The verdict on a response whose right answer is `gold`: as text, LaTeX, or a whole solution that ends in
    `#### 18` or a box.

    Parts: accuracy; format, whether the answer was marked as such; with `second_opinion` also `second`, math-verify's,
    where it has one. `ordered`: whether `1, 2` without brackets has an order. Raises ValueError when the gold cannot
    be read.
    """
    wanted = gold_answer(gold)
    gold_readings(wanted)
    found = find(response)
    result = _judged(found, wanted, ordered)
    parts = {"accuracy": float(result.holds), "format": float(found.marked)}
    reason = result.reason
    second = opinion(found.stated[0], wanted) if second_opinion and found.stated else None
    if second is not None:
        parts["second"] = float(second)
        if second != result.holds:
            reason = f"{reason}; " if reason else ""
            reason += f"math-verify says {'equal' if second else 'not equal'}"
    return Verdict("right" if result.holds else "wrong", float(result.holds), parts, reason)


def gold_answer(gold: str) -> str:
    """The answer in a gold: the gold itself, or what its `####` or \\boxed marks. Raises ValueError when it is empty
    or marks several."""
    if "####" not in gold and "\\boxed" not in gold:
        answer = gold.strip()
    else:
        found = find(gold)
        if not found.marked or len(found.stated) != 1:
            raise ValueError(f"the gold {quoted(gold)} states {len(found.stated) or 'no'} answers")
        answer = found.stated[0]
    if not answer:
        raise ValueError("the gold is empty")
    return answer


def _judged(found: Found, gold: str, ordered: bool) -> Equality:
    """The answer against the gold; several that are not the same are wrong, whatever they are."""
    if found.fault:
        return Equality("different", found.fault)
    answer, *others = found.stated
    result = equal(answer, gold, ordered)
    for other in others:
        if not _agree(other, answer, gold, result.holds, ordered):
            return Equality("different", f"several answers: {quoted(other)} and {quoted(answer)}")
    if result.holds or result.outcome == "undecided":
        return result
    return Equality("different", f"{quoted(answer)} is not {quoted(gold)}: {result.reason}")


def _agree(other: str, answer: str, gold: str, answer_is_right: bool, ordered: bool) -> bool:
    """Whether another stated answer says the same."""
    if answer_is_right:
        return equal(other, gold, ordered).holds
    try:
        return equal(other, answer, ordered).holds
    except ValueError:
        return False
