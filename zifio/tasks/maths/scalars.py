"""Scalars compared: numbers exactly, expressions by refutation at points and by proof, quantities through their units.

Try it alone: `pytest tests/tasks/test_maths_equality.py`
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from zifio.tasks.maths.algebra import proved
from zifio.tasks.maths.numeric import exact, refuted, value
from zifio.tasks.maths.tree import Node, const, kind, number
from zifio.tasks.maths.units import PERCENT, Unit

Outcome = Literal["equal", "different", "undecided"]


@dataclass(frozen=True, slots=True)
class Equality:
    """Whether two answers are equal, and why not."""

    outcome: Outcome
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether they were shown to be equal."""
        return self.outcome == "equal"


SAME = Equality("equal")
UNDECIDED = Equality("undecided", "could not be shown equal")


def different(answer: Node, gold: Node) -> Equality:
    """Another kind of thing was wanted."""
    return Equality("different", f"wanted {kind(gold)}, came {kind(answer)}")


def all_of(results: Iterable[Equality]) -> Equality:
    """Equal when all are; the first that is different decides, then the first undecided."""
    undecided: Equality | None = None
    for result in results:
        if result.outcome == "different":
            return result
        if result.outcome == "undecided":
            undecided = undecided or result
    return undecided or SAME


def meaningful(node: Node) -> Equality:
    """Equal to itself, unless it has no value: 1/0 is not an answer."""
    for part in node.nodes():
        if part.op == "div" and not part.args[1].symbols:
            with contextlib.suppress(ValueError):
                if exact(part.args[1]) == 0:
                    return Equality("different", "a division by zero")
    return SAME


def same_scalar(answer: Node, gold: Node) -> Equality:
    """Compare two expressions, with their units and, for a gold that is an approximation, to its places."""
    if gold.op == "approx":
        return within(answer, gold)
    if answer.op == "approx":
        answer = answer.args[0]
    if not answer.is_scalar:
        answer = _only(answer)
    if not answer.is_scalar:
        return different(answer, gold)
    if "quantity" in (answer.op, gold.op):
        return _same_quantity(answer, gold)
    return _same_expression(answer, gold)


def _only(node: Node) -> Node:
    """The one thing in a set, list or relation to a name, else the node itself."""
    return node.args[0] if node.op in ("set", "list", "matrix") and len(node.args) == 1 else node


def within(answer: Node, gold: Node) -> Equality:
    """Whether the answer rounds to a gold that is given as an approximation, to the places it shows."""
    wanted, places = gold.args[0], gold.value
    answer = answer.args[0] if answer.op == "approx" else answer
    bare = answer.args[0] if answer.op == "quantity" and wanted.op != "quantity" else answer
    if bare.op == "quantity" and bare.value != wanted.value:
        return Equality("different", "another unit")
    pair = [node.args[0] if node.op == "quantity" else node for node in (bare, wanted)]
    if not all(node.is_scalar for node in pair) or pair[0].symbols or pair[1].symbols:
        return different(answer, wanted)
    try:
        distance = abs(exact(pair[0]) - exact(pair[1]))
    except ValueError:
        with contextlib.suppress(ValueError, ArithmeticError, TypeError):
            apart = abs(value(pair[0], {}) - value(pair[1], {}))
            near = bool(apart <= 0.5 * 10.0**-places)
            return SAME if near else Equality("different", f"not the same to {places} decimals")
        return UNDECIDED
    near = distance <= Fraction(1, 2 * 10**places)
    return SAME if near else Equality("different", f"not the same to {places} decimals")


def _same_expression(answer: Node, gold: Node) -> Equality:
    infinite = [
        node
        for node in (answer, gold)
        if node.has("const") and any(n.value in ("inf", "reals", "empty") for n in node.nodes() if n.op == "const")
    ]
    if infinite:
        signs = [infinity(node) for node in (answer, gold)]
        return SAME if signs[0] == signs[1] and signs[0] else Equality("different", "another value at infinity")
    try:
        values = [exact(node) for node in (answer, gold)]
    except ValueError:
        values = []
    if values:
        return SAME if values[0] == values[1] else Equality("different", "another number")
    apart = refuted(answer, gold)
    if apart:
        return Equality("different", "another value" if not gold.symbols else "another value at some point")
    if apart is None and not (answer.symbols or gold.symbols) and _has_value(gold):
        return Equality("different", "the answer has no value")
    return SAME if apart is False and proved(answer, gold) else UNDECIDED


def _has_value(node: Node) -> bool:
    return refuted(node, node) is False


def infinity(node: Node) -> str:
    """ "+" or "-" for the infinities, the name for the sets that are constants, "" for anything else."""
    if node.op == "neg" and node.args[0] == const("inf"):
        return "-inf"
    if node.op == "add" and len(node.args) == 2 and node.args[0] == number(0):
        return infinity(node.args[1])
    return node.value if node.op == "const" and node.value in ("inf", "reals", "empty") else ""


def _same_quantity(answer: Node, gold: Node) -> Equality:
    """Units may be left out, on either side; where both have one, they must measure the same thing."""
    a, g = (node.args[0] if node.op == "quantity" else node for node in (answer, gold))
    unit_a, unit_g = (node.value if node.op == "quantity" else None for node in (answer, gold))
    if unit_a is not None and unit_g is not None:
        angle = _as_radians(answer, gold)
        if angle is not None:
            return _same_expression(*angle)
        if unit_a.powers != unit_g.powers:
            return Equality("different", "another unit")
        return _same_expression(_scaled(a, unit_a), _scaled(g, unit_g))
    bare = _same_expression(a, g)
    unit = unit_a or unit_g
    if unit == PERCENT:
        if bare.holds and not (unit_a is not None and _is_small(g)):
            return bare
        hundredth = number(Fraction(1, 100))
        scaled = [
            Node("mul", (node, hundredth)) if one is not None else node for node, one in ((a, unit_a), (g, unit_g))
        ]
        return _same_expression(*scaled)
    angle = None if bare.holds else _as_radians(answer, gold)
    return _same_expression(*angle) if angle is not None else bare


def _is_small(node: Node) -> bool:
    """Whether a number lies in (-1, 1), where 0.25 and 0.25 % are easily taken for each other."""
    with contextlib.suppress(ValueError):
        return 0 < abs(exact(node)) < 1
    return False


def _as_radians(answer: Node, gold: Node) -> tuple[Node, Node] | None:
    """Both as plain numbers, where one is in degrees and the other in radians or a bare multiple of pi."""
    pair = []
    for node in (answer, gold):
        unit: Unit | None = node.value if node.op == "quantity" else None
        inner = node.args[0] if node.op == "quantity" else node
        if unit is not None and unit.only == "degree":
            pair.append(Node("div", (Node("mul", (inner, const("pi"))), number(180))))
        elif (unit is None and inner.has("const")) or (unit is not None and unit.only == "radian"):
            pair.append(inner)
        else:
            return None
    return (pair[0], pair[1])


def _scaled(node: Node, unit: Unit) -> Node:
    return node if unit.factor == 1 else Node("mul", (node, number(unit.factor)))


def matched(came: list[Node], wanted: list[Node], same: Callable[[Node, Node], Equality]) -> Equality:
    """Whether the two match one to one, in any order."""
    if len(came) != len(wanted):
        return Equality("different", f"wanted {len(wanted)} items, came {len(came)}")
    rest, undecided = list(came), False
    for item in wanted:
        results = [same(other, item) for other in rest]
        found = next((place for place, result in enumerate(results) if result.holds), None)
        if found is not None:
            rest.pop(found)
        elif any(result.outcome == "undecided" for result in results):
            undecided = True
        else:
            return Equality("different", "an item is missing")
    return UNDECIDED if undecided else SAME
