"""What an answer says, as a tree: numbers, expressions, and the containers that mathematics writes answers in.

Scalars: `num` (an exact Fraction), `const` (pi, e, i, inf, reals, empty), `sym`, `add`, `mul`, `div`, `neg`, `pow`,
`call`, `pm` and `mp`. Around them: `quantity` (a scalar with a Unit), `approx`, `tuple` (brackets), `list` (bare
commas), `set`, `interval`, `union`, `minus` (a set without another), `matrix`, `relation`, `ratio`, `numeral` (digits
and base), `choice`, `text`.

Try it alone: `python -c "from zifio.tasks.maths.tree import *; print(number(3))"`
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

SCALARS = frozenset({"num", "const", "sym", "add", "mul", "div", "neg", "pow", "call", "pm", "mp"})


@dataclass(frozen=True, slots=True)
class Node:
    """One node; `value` is what its arguments do not say: a number, a name, brackets, the signs of a relation."""

    op: str
    args: tuple["Node", ...] = ()
    value: Any = None

    def nodes(self) -> Iterator["Node"]:
        """This node and all below it."""
        waiting: list[Node] = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.args)

    @property
    def depth(self) -> int:
        """How deep it is nested."""
        deepest = 0
        waiting: list[tuple[Node, int]] = [(self, 1)]
        while waiting:
            node, depth = waiting.pop()
            deepest = max(deepest, depth)
            waiting.extend((arg, depth + 1) for arg in node.args)
        return deepest

    @property
    def symbols(self) -> frozenset[str]:
        """The names of its variables."""
        return frozenset(node.value for node in self.nodes() if node.op == "sym")

    @property
    def is_scalar(self) -> bool:
        """Whether it is an expression, unit aside."""
        return self.op in SCALARS or self.op in ("quantity", "approx")

    def has(self, *ops: str) -> bool:
        """Whether one of these stands in it somewhere."""
        return any(node.op in ops for node in self.nodes())


def number(value: int | Fraction) -> Node:
    """An exact number."""
    return Node("num", (), Fraction(value))


def const(name: str) -> Node:
    """pi, e, i, inf, reals, empty."""
    return Node("const", (), name)


def kind(node: Node) -> str:
    """What to call it in a reason."""
    names = {"tuple": "a tuple", "list": "a list", "set": "a set", "interval": "an interval", "union": "a union"}
    names |= {"minus": "a set", "matrix": "a matrix", "relation": "an equation or inequality", "ratio": "a ratio"}
    names |= {"numeral": "a numeral with a base", "choice": "a choice", "text": "words", "quantity": "a quantity"}
    if node.op == "num":
        return "a number"
    return names.get(node.op, "an expression")
