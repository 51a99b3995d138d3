"""Exact arithmetic on text that a stranger wrote: `347*582`, `1/3+0.25`, `(2**10-1)%7`.

Our own parser, never Python's: numbers are fractions, every result is exact, and length, depth and size are bounded,
so that no expression can hang or exhaust the one who computes it.

Try it alone: `python -c "from zifio.tasks.arithmetic import calculate; print(calculate('347*582'))"`
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

LONGEST = 256
"""Characters of an expression."""
DEEPEST = 32
"""Brackets, signs and powers inside one another."""
MOST_BITS = 1024
"""Of any numerator or denominator on the way, about 300 digits."""

_TOKEN = re.compile(r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|(?P<sign>\*\*|//|[-+*/%^()×÷−]))", re.ASCII)
_SAME = {"^": "**", "×": "*", "÷": "/", "−": "-"}


class ArithmeticFault(ValueError):
    """Why an expression has no value here, in words for whoever wrote it."""


def calculate(expression: str) -> str:
    """The exact value as text: an integer, a decimal that ends, or a fraction in lowest terms.

    Known are + - * / // % ** (also ^ × ÷), brackets and decimals, with Python's precedence; // rounds down and % has
    the sign of the divisor. Raises ArithmeticFault.
    """
    if len(expression) > LONGEST:
        raise ArithmeticFault(f"the expression is longer than {LONGEST} characters")
    return show(_Parser(_tokens(expression)).whole())


def show(value: Fraction) -> str:
    """A fraction as people write it."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest > 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _tokens(expression: str) -> list[str]:
    tokens, at, text = [], 0, expression.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ArithmeticFault(f"unexpected {text[at:].lstrip()[0]!r}")
        token = found["number"] or found["sign"]
        tokens.append(_SAME.get(token, token))
        at = found.end()
    if not tokens:
        raise ArithmeticFault("the expression is empty")
    return tokens


class _Parser:
    """Recursive descent: sum > product > sign > power > atom."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    def whole(self) -> Fraction:
        """The value of all tokens."""
        value = self._sum()
        if self.at < len(self.tokens):
            raise ArithmeticFault(f"unexpected {self.tokens[self.at]!r}")
        return value

    def _next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _take(self) -> str:
        token = self._next()
        if not token:
            raise ArithmeticFault("the expression ends too early")
        self.at += 1
        return token

    def _sum(self) -> Fraction:
        value = self._product()
        while self._next() in ("+", "-"):
            value = _apply(self._take(), value, self._product())
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while self._next() in ("*", "/", "//", "%"):
            value = _apply(self._take(), value, self._signed())
        return value

    def _signed(self) -> Fraction:
        if self._next() not in ("+", "-"):
            return self._power()
        sign = self._take()
        value = self._deeper(self._signed)
        return -value if sign == "-" else value

    def _power(self) -> Fraction:
        base = self._atom()
        if self._next() != "**":
            return base
        self._take()
        return _power(base, self._deeper(self._signed))  # from the right, and 2**-1 is allowed

    def _atom(self) -> Fraction:
        token = self._take()
        if token == "(":
            value = self._deeper(self._sum)
            if self._next() != ")":
                raise ArithmeticFault("a bracket is not closed")
            self.at += 1
            return value
        if token[0] not in ".0123456789":
            raise ArithmeticFault(f"unexpected {token!r}")
        return _bounded(Fraction(token))

    def _deeper(self, parse: Callable[[], Fraction]) -> Fraction:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ArithmeticFault(f"nested deeper than {DEEPEST}")
        value = parse()
        self.depth -= 1
        return value


def _apply(sign: str, left: Fraction, right: Fraction) -> Fraction:
    if sign in ("/", "//", "%") and right == 0:
        raise ArithmeticFault("division by zero")
    if sign == "+":
        return _bounded(left + right)
    if sign == "-":
        return _bounded(left - right)
    if sign == "*":
        return _bounded(left * right)
    if sign == "/":
        return _bounded(left / right)
    floor = left // right
    return _bounded(Fraction(floor) if sign == "//" else left - right * floor)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    """base ** exponent, refused before it is computed when it would be too large."""
    if exponent.denominator != 1:
        raise ArithmeticFault("the exponent is not whole")
    if base == 0 and exponent < 0:
        raise ArithmeticFault("division by zero")
    bits = max(abs(base.numerator), base.denominator).bit_length() - 1  # 2**bits <= the larger one
    if bits * abs(exponent.numerator) > MOST_BITS:
        raise ArithmeticFault("the number is too large")
    if abs(base) in (0, 1):  # whose powers are small, however large the exponent
        return base ** (exponent.numerator % 2 or 2) if exponent else Fraction(1)
    return _bounded(base**exponent.numerator)


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator).bit_length() > MOST_BITS:
        raise ArithmeticFault("the number is too large")
    return value
