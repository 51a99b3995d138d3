"""Proof that two expressions are equal, by sympy: exact forms only, from cheap to dear, within bounds on size.

sympy is handed objects that we build node by node, never text. Symbols stand for real numbers. Nothing here trusts a
numeric coincidence: what no exact form shows is not shown.

Try it alone: `pytest tests/tasks/test_maths_equality.py`
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from zifio.tasks.maths.numeric import TooLarge, exact
from zifio.tasks.maths.tree import Node

MOST_POWER = 10_000
MOST_OPERATIONS = 400  # beyond which only expanding is tried
MOST_TERMS = 5000  # after expanding
MOST_DEGREE = 64  # of the field that an algebraic number lies in
SECONDS = 3.0  # no further attempt is begun after this


def proved(one: Node, other: Node) -> bool:
    """Whether an exact form shows that the two are equal. False says nothing."""
    if one == other:
        return True
    try:
        difference = build(Node("add", (one, Node("neg", (other,)))))
        return _is_finite(difference) and _is_zero(difference)
    except (ValueError, TypeError, NotImplementedError, AttributeError, ArithmeticError, RecursionError):
        return False  # sympy's ways to say that it does not know


def _is_finite(expression: Any) -> bool:
    """Whether nothing in it is infinite or undefined: sympy counts on with those, and may come out anywhere."""
    import sympy

    return not expression.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo)


def _is_zero(difference: Any) -> bool:
    """Whether one of the attempts gives the number 0, exactly."""
    if _terms(difference) > MOST_TERMS:
        return False
    until = time.monotonic() + SECONDS
    for attempt in _attempts(difference):
        with contextlib.suppress(ValueError, TypeError, NotImplementedError, AttributeError, ArithmeticError):
            result = attempt()
            if result is True or result == 0:
                return True
        if time.monotonic() > until:
            return False
    return False


def _attempts(difference: Any) -> Iterator[Callable[[], Any]]:
    import sympy

    yield lambda: difference
    yield lambda: sympy.expand(difference)
    yield lambda: sympy.expand(sympy.numer(sympy.together(difference)))
    if sympy.count_ops(difference) > MOST_OPERATIONS:
        return
    if difference.has(sympy.Pow):
        yield lambda: sympy.expand(sympy.sqrtdenest(sympy.radsimp(difference)))
        yield lambda: sympy.powsimp(sympy.expand(sympy.powdenest(difference)))
    if difference.has(sympy.sin, sympy.cos, sympy.tan, sympy.cot, sympy.sec, sympy.csc):
        yield lambda: sympy.trigsimp(sympy.expand_trig(difference))
        yield lambda: sympy.expand(sympy.expand(difference.rewrite(sympy.exp)))
    if difference.has(sympy.log):
        yield lambda: sympy.expand(sympy.expand_log(difference))
        yield lambda: sympy.expand(sympy.expand_log(_whole_logs(difference)))
    if difference.has(sympy.factorial, sympy.binomial):
        yield lambda: sympy.expand(sympy.expand_func(difference))
        yield lambda: sympy.expand(sympy.gammasimp(difference.rewrite(sympy.gamma)))
    yield lambda: sympy.simplify(difference)
    if not difference.free_symbols:
        yield lambda: _algebraic_zero(difference)


def _terms(expression: Any) -> int:
    """About how many terms it has when it is expanded."""
    if expression.is_Add:
        return sum(_terms(arg) for arg in expression.args)
    if expression.is_Mul:
        return math.prod(_terms(arg) for arg in expression.args)
    if expression.is_Pow and expression.exp.is_Integer:
        n, power = _terms(expression.base), abs(int(expression.exp))
        return math.comb(n + power - 1, power) if n > 1 else 1
    return max([1, *(_terms(arg) for arg in expression.args)])


def _whole_logs(expression: Any) -> Any:
    """With log 12 as 2 log 2 + log 3."""
    import sympy

    def apart(argument: Any) -> Any:
        if isinstance(argument, sympy.Rational) and argument > 0 and max(argument.p, argument.q) < 10**12:
            factors: dict[int, int] = dict(sympy.factorrat(argument))  # type: ignore[arg-type]
            return sympy.Add(*(power * sympy.log(prime) for prime, power in factors.items()))
        return sympy.log(argument)

    return expression.replace(sympy.log, apart)


def _algebraic_zero(difference: Any) -> bool:
    """Whether the minimal polynomial of an algebraic number is x: that of zero, and of nothing else."""
    import sympy

    degrees = [power.exp.q for power in difference.atoms(sympy.Pow) if power.exp.is_Rational and power.base.is_number]
    if not difference.is_algebraic or math.prod(degrees) > MOST_DEGREE:
        return False
    x = sympy.Symbol("x")
    return sympy.minimal_polynomial(difference, x) == x


def build(node: Node) -> Any:
    """The expression as sympy's object. Raises ValueError for what has none, or would grow too large."""
    import sympy

    with contextlib.suppress(ValueError):
        if not node.symbols and node.op != "const":
            value = exact(node)
            return sympy.Rational(value.numerator, value.denominator)
    if node.op == "sym":
        return sympy.Symbol(node.value, real=True)
    if node.op == "const":
        constants = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}
        if node.value not in constants:
            raise ValueError(f"{node.value} is no number")
        return constants[node.value]
    if node.op not in ("add", "mul", "div", "neg", "pow", "call"):
        raise ValueError(f"a {node.op} is no expression")
    if node.op == "pow":
        return _power(node)
    args = [build(arg) for arg in node.args]
    if node.op == "add":
        return sympy.Add(*args)
    if node.op == "mul":
        return sympy.Mul(*args)
    if node.op == "neg":
        return -args[0]
    if node.op == "div":
        return _divided(*args)
    return _called(node.value, args)


def _divided(above: Any, below: Any) -> Any:
    if below == 0:
        raise ValueError("a division by zero")
    return above / below


def _power(node: Node) -> Any:
    import sympy

    base: Any = build(node.args[0])
    exponent: Any = build(node.args[1])
    if base.is_zero and not exponent.is_positive:
        raise ValueError("zero to a power that is not positive")
    if exponent.is_number:
        size = abs(exponent.evalf(15))
        if not size.is_comparable or size > MOST_POWER:
            raise TooLarge("a power too large")
        if base.is_number and base.is_Rational and size * base.p.bit_length() > 20_000:
            raise TooLarge("a power too large")
    return sympy.Pow(base, exponent)


def _called(name: str, args: list[Any]) -> Any:
    import sympy

    if name == "log":
        return sympy.log(args[0]) / sympy.log(args[1])
    if name == "root":
        return _root(*args)
    if name in ("factorial", "binom") and any(arg.is_number and not abs(arg.evalf(15)) < 5000 for arg in args):
        raise TooLarge("a factorial too large")
    functions = {
        "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
        "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "sinh": sympy.sinh, "cosh": sympy.cosh,
        "tanh": sympy.tanh, "exp": sympy.exp, "abs": sympy.Abs, "floor": sympy.floor, "ceil": sympy.ceiling,
        "factorial": sympy.factorial, "binom": sympy.binomial, "max": sympy.Max, "min": sympy.Min,
    }  # fmt: skip
    if name not in functions:
        raise ValueError(f"no exact form of {name}")
    return functions[name](*args)


def _root(value: Any, degree: Any) -> Any:
    """As numeric.py has it: an odd root of a negative number is real."""
    import sympy

    if degree == 2:
        return sympy.sqrt(value)
    if not (degree.is_Integer and 0 < degree < 1000):
        return sympy.Pow(value, 1 / degree)
    if degree % 2 == 0 or value.is_nonnegative:
        return sympy.Pow(value, sympy.Rational(1, int(degree)))
    if value.is_negative:
        return -sympy.Pow(-value, sympy.Rational(1, int(degree)))
    if value.is_real:
        return sympy.real_root(value, int(degree))
    raise ValueError("a root of unknown sign")


def constant_ratio(one: Node, other: Node) -> Any:
    """The number c with one = c * other, exactly, or None when there is none that we can find."""
    import sympy

    try:
        above, below = (sympy.expand(build(node)) for node in (one, other))
        if above == 0 or below == 0 or not (_is_finite(above) and _is_finite(below)):
            return None
        ratio = sympy.cancel(above / below)
        if ratio.free_symbols:
            ratio = sympy.simplify(ratio)
    except (ValueError, TypeError, NotImplementedError, AttributeError, ArithmeticError, RecursionError):
        return None
    return None if ratio.free_symbols or ratio == 0 else ratio
