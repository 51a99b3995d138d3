"""What an expression is worth: exactly, where it is rational, and to many digits at chosen points otherwise.

The exact value decides everything about rational numbers, however close (1/2004! is not 1/2006!). The values at points
only ever refute: that two expressions agree there proves nothing.

Try it alone:

    python -c "from zifio.tasks.maths.grammar import parse; from zifio.tasks.maths.numeric import exact;
    print(exact(parse('2^10')))"
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import mpmath

from zifio.tasks.maths.tree import Node

MOST_BITS = 200_000  # of a numerator or denominator
MOST_FACTORIAL = 5_000
DIGITS = (60, 120)
_AGREE = 1e-40  # relative distance below which two values may be equal
_N_POINTS = 6


class TooLarge(ValueError):
    """A number with more digits than we are willing to write out."""


class Undefined(ValueError):
    """A division by zero and the like."""


class Irrational(ValueError):
    """No rational number, or not shown to be one."""


def exact(node: Node) -> Fraction:
    """The rational number that an expression is. Raises Irrational, Undefined or TooLarge (all ValueError)."""
    if node.op == "num":
        return node.value
    if node.op == "neg":
        return -exact(node.args[0])
    if node.op not in ("add", "mul", "div", "pow", "call"):
        raise Irrational
    values = [exact(arg) for arg in node.args]
    if node.op == "add":
        return _small(sum(values, Fraction(0)))
    if node.op == "mul":
        return _product(values)
    if node.op == "div":
        if values[1] == 0:
            raise Undefined("a division by zero")
        return _small(values[0] / values[1])
    if node.op == "pow":
        return _power(*values)
    return _called(node.value, values)


def _small(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise TooLarge("a number too large to write out")
    return value


def _product(values: list[Fraction]) -> Fraction:
    product = Fraction(1)
    for value in values:
        product = _small(product * value)
    return product


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if base == 0:
        if exponent <= 0:
            raise Undefined("zero to a power that is not positive")
        return base
    if exponent.denominator != 1:
        return _power(_root(base, exponent.denominator), Fraction(exponent.numerator))
    power = exponent.numerator
    if abs(power) * max(base.numerator.bit_length(), base.denominator.bit_length()) > MOST_BITS and abs(base) != 1:
        raise TooLarge("a power too large to write out")
    return base ** (power % 2 if abs(base) == 1 else power)


def _root(value: Fraction, degree: int) -> Fraction:
    """The rational root, or Irrational. The principal root of a negative number is no rational one."""
    if degree == 1:
        return value
    if value < 0 or degree > 1000 or degree < 1:
        raise Irrational
    roots = [_whole_root(part, degree) for part in (value.numerator, value.denominator)]
    if Fraction(*roots) ** degree != value:
        raise Irrational
    return Fraction(*roots)


def _whole_root(value: int, degree: int) -> int:
    """The largest whole number whose power is at most value, by Newton's method."""
    if degree == 2:
        return math.isqrt(value)
    if value < 2:
        return value
    guess = 1 << -(-value.bit_length() // degree)
    while True:
        better = ((degree - 1) * guess + value // guess ** (degree - 1)) // degree
        if better >= guess:
            return guess
        guess = better


def _called(name: str, values: list[Fraction]) -> Fraction:
    whole = all(value.denominator == 1 for value in values)
    numbers = [value.numerator for value in values]
    if name == "abs":
        return abs(values[0])
    if name in ("floor", "ceil"):
        return Fraction(math.floor(values[0]) if name == "floor" else math.ceil(values[0]))
    if name in ("max", "min"):
        return max(values) if name == "max" else min(values)
    if name == "root":
        return _odd_root(values[0], values[1])
    if name == "factorial" and whole and numbers[0] >= 0:
        if numbers[0] > MOST_FACTORIAL:
            raise TooLarge("a factorial too large to write out")
        return _small(Fraction(math.factorial(numbers[0])))
    if name == "binom" and whole and 0 <= numbers[1] <= numbers[0]:
        if numbers[0] > MOST_FACTORIAL:
            raise TooLarge("a binomial coefficient too large to write out")
        return _small(Fraction(math.comb(*numbers)))
    if name in ("gcd", "lcm") and whole:
        return _small(Fraction(math.gcd(*numbers) if name == "gcd" else math.lcm(*numbers)))
    raise Irrational


def _odd_root(value: Fraction, degree: Fraction) -> Fraction:
    r"""\sqrt[3]{-8} is -2: the real root, as the sign is used in schools."""
    if degree.denominator != 1 or degree < 1:
        raise Irrational
    negative = value < 0 and degree.numerator % 2 == 1
    root = _root(-value if negative else value, degree.numerator)
    return -root if negative else root


def refuted(one: Node, other: Node) -> bool | None:
    """True when the two differ at a point, False when they agree at all of them to many digits, None when neither
    has a value anywhere."""
    names = sorted(one.symbols | other.symbols)
    seen = False
    for point in _points(names):
        apart = [_apart(one, other, point, digits) for digits in DIGITS]
        if None in apart:
            continue
        seen = True
        if all(apart):
            return True
    return False if seen else None


def _apart(one: Node, other: Node, point: dict[str, Any], digits: int) -> bool | None:
    """Whether the two differ here, at this precision; None where one has no value."""
    with mpmath.workdps(digits):
        try:
            a, b = value(one, point), value(other, point)
        except (ValueError, ZeroDivisionError, OverflowError, ArithmeticError, TypeError):
            return None
        if not (mpmath.isfinite(a) and mpmath.isfinite(b)):
            return None
        return bool(abs(a - b) > _AGREE * max(abs(a), abs(b), mpmath.mpf(10) ** -digits))


def _points(names: Sequence[str]) -> list[dict[str, Any]]:
    """Fixed points, of both signs and sizes, without special values; more when a formula needs small ones."""
    if not names:
        return [{}]
    points = []
    for place in range(_N_POINTS):
        point = {}
        for index, name in enumerate(names):
            step = (place * 7 + index * 3) % 11 + 1
            size = Fraction(step * 100003 + 37 * index + 11, 300007) / (1 if place % 3 else 7)
            point[name] = -size if (place + index) % 2 and place > 1 else size
        points.append(point)
    return points


def value(node: Node, point: dict[str, Any]) -> Any:
    """The complex value of an expression where its symbols have these values. Raises ValueError and kin."""
    if node.op == "num":
        return mpmath.mpf(node.value.numerator) / node.value.denominator
    if node.op == "sym":
        return mpmath.mpf(point[node.value].numerator) / point[node.value].denominator
    if node.op == "const":
        constants = {"pi": mpmath.pi, "e": mpmath.e, "i": mpmath.mpc(0, 1)}
        if node.value not in constants:
            raise ValueError(f"{node.value} is no number")
        return +constants[node.value]
    if node.op not in ("add", "mul", "div", "neg", "pow", "call"):
        raise ValueError(f"a {node.op} is no number")
    args = [value(arg, point) for arg in node.args]
    if node.op == "add":
        return mpmath.fsum(args)
    if node.op == "mul":
        return mpmath.fprod(args)
    if node.op == "div":
        return args[0] / args[1]
    if node.op == "neg":
        return -args[0]
    if node.op == "pow":
        return _mp_power(*args)
    return _mp_call(node, args)


def _mp_power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > 10**7 or (base != 0 and abs(exponent * mpmath.log(abs(base))) > 10**7):
        raise ValueError("a power too large")
    return mpmath.power(base, exponent)


_MP: dict[str, Callable[..., Any]] = {
    "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan, "cot": mpmath.cot, "sec": mpmath.sec, "csc": mpmath.csc,
    "arcsin": mpmath.asin, "arccos": mpmath.acos, "arctan": mpmath.atan, "sinh": mpmath.sinh, "cosh": mpmath.cosh,
    "tanh": mpmath.tanh, "exp": mpmath.exp, "abs": abs, "max": max, "min": min,
}  # fmt: skip


def _mp_call(node: Node, args: list[Any]) -> Any:
    name = node.value
    if name == "log":
        return mpmath.log(args[0]) / mpmath.log(args[1])
    if name == "root":
        if mpmath.im(args[0]) == 0 and mpmath.re(args[0]) < 0 and mpmath.im(args[1]) == 0 and args[1] % 2 == 1:
            return -_mp_power(-args[0], 1 / args[1])
        return _mp_power(args[0], 1 / args[1])
    if any(abs(arg) > 10**6 for arg in args) and name not in ("abs", "max", "min"):
        raise ValueError("an argument too large")
    if name in ("floor", "ceil"):
        if not mpmath.isint(args[0]) and abs(args[0] - mpmath.nint(args[0])) < mpmath.mpf(10) ** -20:
            raise ValueError("too near a whole number to be cut")
        return mpmath.floor(args[0]) if name == "floor" else mpmath.ceil(args[0])
    if name == "factorial":
        return mpmath.factorial(args[0])
    if name == "binom":
        return mpmath.binomial(*args)
    if name in ("max", "min") and any(mpmath.im(arg) for arg in args):
        raise ValueError("complex numbers have no order")
    if name not in _MP:
        raise ValueError(f"no value of {name}")
    return _MP[name](*args)
