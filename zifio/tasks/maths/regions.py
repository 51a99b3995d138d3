"""Sets of real numbers compared: intervals, their unions, and the inequalities that say the same.

Try it alone: `pytest tests/tasks/test_maths_equality.py`
"""

from zifio.tasks.maths.scalars import Equality, all_of, infinity, same_scalar
from zifio.tasks.maths.tree import Node, const


def region_of(node: Node) -> Node | None:
    """The interval that an inequality in one variable against constants says, or what `x in S` says; else None."""
    if node.op in ("set", "list") and node.args and all(arg.op == "relation" for arg in node.args):
        regions = [region_of(arg) for arg in node.args]
        if node.value == "or" and all(regions) and len(node.symbols) == 1:
            return Node("union", tuple(region for region in regions if region is not None))
        return None
    if node.op != "relation":
        return None
    if node.value == ("in",) and node.args[0].op == "sym":
        return node.args[1]
    signs, args = list(node.value), list(node.args)
    if not set(signs) <= {"<", "<="} and not set(signs) <= {">", ">="}:
        return None
    if signs[0][0] == ">":
        args, signs = args[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
    places = [place for place, arg in enumerate(args) if arg.op == "sym"]
    others = [arg for place, arg in enumerate(args) if place not in places]
    if len(places) != 1 or len(args) > 3 or any(arg.symbols for arg in others) or (len(args) == 3 and places != [1]):
        return None
    place = places[0]
    low, opening = (
        (args[place - 1], "[" if signs[place - 1] == "<=" else "(") if place else (Node("neg", (const("inf"),)), "(")
    )
    high, closing = (
        (args[place + 1], "]" if signs[place] == "<=" else ")") if place + 1 < len(args) else (const("inf"), ")")
    )
    return Node("interval", (low, high), opening + closing)


def is_region(node: Node) -> bool:
    """Whether it is a set of numbers that is not written as one: (2, ∞) reads as a pair."""
    return (node.op == "tuple" and len(node.args) == 2 and any(infinity(arg) for arg in node.args)) or node in (
        const("reals"),
    )


def pieces_of(node: Node) -> list[Node] | None:
    """Intervals whose union it is: open ones may be written as pairs. None for anything else."""
    region = region_of(node)
    if region is not None:
        return pieces_of(region)
    if node == const("reals"):
        return [Node("interval", (Node("neg", (const("inf"),)), const("inf")), "()")]
    if node.op == "union":
        parts = [pieces_of(arg) for arg in node.args]
        return None if any(part is None for part in parts) else [piece for part in parts if part for piece in part]
    if node.op == "interval":
        return [node]
    if node.op == "tuple" and len(node.args) == 2:
        return [Node("interval", node.args, "()")]
    if node.op == "set" and node.value != "or" and all(arg.is_scalar for arg in node.args):
        return [Node("interval", (arg, arg), "[]") for arg in node.args]
    if (
        node.op == "minus"
        and node.args[0] == const("reals")
        and node.args[1].op == "set"
        and len(node.args[1].args) == 1
    ):
        point = node.args[1].args[0]
        return [
            Node("interval", (Node("neg", (const("inf"),)), point), "()"),
            Node("interval", (point, const("inf")), "()"),
        ]
    return None


def same_interval(answer: Node, gold: Node) -> Equality:
    """End by end, open or closed as the gold is."""
    brackets = [_brackets(node) for node in (answer, gold)]
    if brackets[0] != brackets[1]:
        return Equality("different", "other ends: open where closed is wanted, or the reverse")
    return all_of(same_scalar(a, g) for a, g in zip(answer.args, gold.args, strict=True))


def _brackets(interval: Node) -> str:
    """Its brackets, open at infinity whatever was written."""
    low, high = (bool(infinity(arg)) for arg in interval.args)
    return ("(" if low else interval.value[0]) + (")" if high else interval.value[1])
