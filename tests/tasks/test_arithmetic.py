"""The calculator: exact, as Python's own integers and fractions are, and out of reach of attacks."""

from __future__ import annotations

import contextlib
import random
import re
import time
from fractions import Fraction

import pytest

from zifio.tasks.arithmetic import LONGEST, ArithmeticFault, calculate, show


def expression(rng: random.Random, depth: int) -> str:
    """A random expression that Python computes exactly when every number is a Fraction."""
    if depth == 0:
        return str(rng.randrange(100))
    left, right = (expression(rng, rng.randrange(depth)) for _ in range(2))
    sign = rng.choice(["+", "-", "*", "/", "//", "%", "**"])
    if sign == "**":
        return f"({left})**{rng.choice(['0', '1', '2', '3', '-1', '-2'])}"
    return rng.choice(["{}{}{}", "({}{}{})", "-{}{}{}", "({}) {} ({})"]).format(left, sign, right)


def python(text: str) -> Fraction:
    """What Python says, every number a fraction."""
    return eval(re.sub(r"[0-9]+", lambda found: f"Fraction({found[0]})", text), {"Fraction": Fraction})


def test_it_agrees_with_pythons_fractions():
    rng, compared = random.Random(1), 0
    for _ in range(400):
        text = expression(rng, 4)
        try:
            expected = python(text.replace("**Fraction", "**"))
        except ZeroDivisionError:
            with pytest.raises(ArithmeticFault, match="division by zero"):
                calculate(text)
            continue
        if isinstance(expected, Fraction) and len(text) <= LONGEST:
            try:
                assert calculate(text) == show(expected), text
                compared += 1
            except ArithmeticFault as fault:
                assert "too large" in str(fault) or "not whole" in str(fault), text
    assert compared > 200


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("347*582", "201954"),
        (" 1 + 2 ", "3"),
        ("1/4", "0.25"),
        ("1/3", "1/3"),
        ("-1/8", "-0.125"),
        ("0.1+0.2", "0.3"),
        (".5*2", "1"),
        ("1.50", "1.5"),
        ("2^10", "1024"),
        ("6×7", "42"),
        ("6÷4", "1.5"),
        ("5−7", "-2"),
        ("-2**2", "-4"),
        ("2**-1", "0.5"),
        ("2**3**2", "512"),
        ("7%-3", "-2"),
        ("10//-3", "-4"),
        ("0**0", "1"),
        ("--1", "1"),
        ("(-1)**999999999999", "-1"),
        ("0**999999999999", "0"),
        ("1**-5", "1"),
        ("999999999*999999999", "999999998000000001"),
        ("1/1024", "0.0009765625"),
        ("0*-1", "0"),
    ],
)
def test_known_values(text: str, value: str):
    assert calculate(text) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("9**9**9", "too large"),
        ("9**9**9**9**9", "too large"),
        ("2**1024*2", "too large"),
        ("(10**300)**300", "too large"),
        ("*".join(["9" * 60] * 4) + "*" + "9" * 10 + "**9", "longer|too large"),
        ("2**-99999", "too large"),
        ("(" * 200 + "1", "nested"),
        ("(" * 33 + "1" + ")" * 33, "nested"),
        ("-" * 200 + "1", "nested"),
        ("2**" * 80 + "1", "nested"),
        ("1" * 257, "longer"),
        ("1/0", "zero"),
        ("1//0", "zero"),
        ("1%(2-2)", "zero"),
        ("0**-1", "zero"),
        ("2**0.5", "whole"),
        ("", "empty"),
        ("   ", "empty"),
        ("1+", "early"),
        ("(1", "closed"),
        ("1)", "unexpected"),
        ("1 2", "unexpected"),
        ("1,000", "unexpected"),
        ("1e9", "unexpected"),
        ("0x10", "unexpected"),
        ("__import__('os')", "unexpected"),
        ("٣+1", "unexpected"),
        ("²", "unexpected"),
        ("1_000", "unexpected"),
        ("*3", "unexpected"),
        ("()", "unexpected"),
        ("1\x00", "unexpected"),
        ("1..2", "unexpected"),
    ],
)
def test_attacks_and_slips_are_refused_in_words(text: str, why: str):
    began = time.perf_counter()
    with pytest.raises(ArithmeticFault, match=why):
        calculate(text)
    assert time.perf_counter() - began < 0.5


def test_anything_at_all_has_a_value_or_a_fault():
    """Random characters, quickly."""
    rng = random.Random(2)
    for _ in range(1000):
        text = "".join(rng.choices("0123456789+-*/%^(). ", k=rng.randrange(40)))
        with contextlib.suppress(ArithmeticFault):
            calculate(text)
