"""Exact checks: true forms of the gold pass, everything near it does not, and a broken gold is no wrong answer."""

from fractions import Fraction

import pytest

from zifio.tasks.exact import (
    CHECKS,
    choice_fault,
    expression_fault,
    integer_fault,
    json_fault,
    number_fault,
    read_number,
    text_fault,
)

RIGHT = [
    (text_fault, "a  b", "a b"),
    (text_fault, "1 2\n3 4 \n", "1 2\n3 4"),
    (text_fault, "e\u0301", "é"),
    (integer_fault, "1,234,567", "1234567"),
    (integer_fault, "-5", "-5"),
    (number_fault, "1,000.00", "1000"),
    (number_fault, "$1000", "1000"),
    (number_fault, "-$5", "-5"),
    (number_fault, "10/4", "2.5"),
    (number_fault, "2/3", "0.6666666667"),
    (number_fault, "+7", "7"),
    (number_fault, "1/16384", "6.103515625e-05"),
    (choice_fault, "(b)", "B"),
    (choice_fault, "B.", "B"),
    (json_fault, "[1,  2]", "[1, 2]"),
    (json_fault, '{"b": 1, "a": 2}', '{"a": 2, "b": 1}'),
]
WRONG = [
    (text_fault, "a B", "a b"),
    (text_fault, "1 23 4", "1 2\n3 4"),
    (text_fault, "a b" + " " * 5000, "a b"),
    (integer_fault, "12,34", "1234"),
    (integer_fault, "007", "7"),
    (integer_fault, "7.0", "7"),
    (integer_fault, "+7", "7"),
    (integer_fault, "７", "7"),
    (number_fault, "1000 apples", "1000"),
    (number_fault, "1.000", "1000"),
    (number_fault, "0.6667", "0.6666666667"),
    (number_fault, "0.66666666671", "0.6666666667"),
    (number_fault, "1/0", "1"),
    (number_fault, "--5", "5"),
    (number_fault, "1e3.5", "1000"),
    (number_fault, "1e999", "1000"),
    (number_fault, "9" * 100_000, "9"),
    (number_fault, "12 13", "12"),
    (choice_fault, "BC", "B"),
    (choice_fault, "B or C", "B"),
    (choice_fault, "Б", "B"),
    (json_fault, "[1, true]", "[1, 1]"),
    (json_fault, "[1, 2], [1]", "[1, 2]"),
    (json_fault, "[" * 100_000, "[1]"),
    (json_fault, "[[[[[[[" * 100 + "]]]]]]]" * 100, "[1]"),
]


@pytest.mark.parametrize(("check", "answer", "gold"), RIGHT, ids=lambda part: str(part)[:20])
def test_true_forms_are_right(check, answer, gold):
    assert check(answer, gold) == "" and check(gold, gold) == ""


@pytest.mark.parametrize(("check", "answer", "gold"), WRONG, ids=lambda part: str(part)[:20])
def test_what_is_near_is_wrong(check, answer, gold):
    assert 0 < len(check(answer, gold)) < 200


@pytest.mark.parametrize("check", CHECKS.values())
def test_an_empty_answer_is_wrong(check):
    gold = {json_fault: "[1]", choice_fault: "B"}.get(check, "5")
    assert all(check(answer, gold) for answer in ("", " ", "\n", "\0"))


@pytest.mark.parametrize(("check", "gold"), [(integer_fault, "a"), (number_fault, ""), (choice_fault, "12")])
def test_a_broken_gold_raises(check, gold):
    with pytest.raises(ValueError, match="gold"):
        check("5", gold)


def test_numbers_are_exact():
    assert read_number("0.1") == Fraction(1, 10) and read_number("-1,000.5") == Fraction(-2001, 2)
    assert read_number("1,0") is None and read_number(".5") is None


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("(1 + 2 + 3) * 4", True),
        ("4*3*2*1", True),
        ("-(1 - 4*3) * 2 + 2", False),
        ("4 * 6", False),
        ("24", False),
        ("(1 + 2 + 3) * 4 = 24", False),
        ("4 ** 3 - 2 * 1", False),
        ("4*3*2//1", False),
        ("(1+2+3)*4 # 24", False),
        ("12 * 34", False),
        ("__import__('os')", False),
        ("(" * 390 + "1", False),
        ("4*3*2/(1-1)", False),
        ("9" * 401, False),
        ("", False),
    ],
)
def test_an_expression_must_use_each_number_once(answer, right):
    assert (expression_fault(answer, [1, 2, 3, 4], 24) == "") is right
