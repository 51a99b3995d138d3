"""Checks of an answer against the gold that never guess: text, integer, number, choice, JSON, an expression.

Each says what is wrong with an answer, "" when nothing is, and raises ValueError when the gold itself is broken. An
answer of unreasonable length is refused before anything looks at it.

Try it alone:

    python -c "from zifio.tasks.exact import *; print(number_fault('1,000.0', '1000'))"
"""

import ast
import json
import operator
import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,10}|[1-9][0-9]{0,31})", re.ASCII)
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)[$€£]? ?(?P<minus>-?)(?P<whole>[0-9]{1,3}(?:,[0-9]{3}){1,10}|[0-9]{1,32})"
    r"(?:\.(?P<decimals>[0-9]{1,32})|/(?P<below>[1-9][0-9]{0,31}))?(?:e(?P<power>[+-]?[0-9]{1,2}))?",
    re.ASCII,
)
_CHOICE = re.compile(r"\(?([A-Za-z])\)?[.:]?", re.ASCII)
_SUM = re.compile(r"[0-9+*/() -]{1,400}", re.ASCII)
_ROUNDED = 8  # a gold with so many decimals was cut: it stands for the fraction that rounds to it
_QUOTED = 40  # characters of a stranger's text that a reason repeats
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def text_fault(answer: str, gold: str) -> str:
    """The very text: what differs only in runs of spaces, blank lines around it or composed accents is the same."""
    if len(answer) > longest_form(gold):
        return f"an answer of {len(answer)} characters"
    return "" if _plain(answer) == _plain(gold) else _not(answer, gold)


def integer_fault(answer: str, gold: str) -> str:
    """An integer as one writes it, also with commas between thousands: 1000 or 1,000."""
    if not _INTEGER.fullmatch(gold):
        raise ValueError(f"the gold is no integer: {gold[:_QUOTED]!r}")
    if not _INTEGER.fullmatch(answer):
        return f"no integer: {answer[:_QUOTED]!r}"
    return "" if answer.replace(",", "") == gold.replace(",", "") else _not(answer, gold)


def number_fault(answer: str, gold: str) -> str:
    """The same number, however written: 1000, 1,000, 1000.00, $1000, 2000/2. Units are not read."""
    wanted, given = read_number(gold), read_number(answer)
    if wanted is None:
        raise ValueError(f"the gold is no number: {gold[:_QUOTED]!r}")
    if given is None:
        return f"no number: {answer[:_QUOTED]!r}"
    n_decimals = len(gold.partition(".")[2])
    slack = Fraction(1, 2 * 10**n_decimals) if n_decimals >= _ROUNDED and "/" in answer else 0
    return "" if abs(given - wanted) <= slack else _not(answer, gold)


def read_number(text: str) -> Fraction | None:
    """The number that this text is, exactly, or None."""
    found = _NUMBER.fullmatch(text.strip())
    if found is None or (found["sign"] and found["minus"]):
        return None
    whole, decimals = found["whole"].replace(",", ""), found["decimals"] or ""
    value = Fraction(int(whole + decimals), 10 ** len(decimals)) / int(found["below"] or 1)
    value *= Fraction(10) ** int(found["power"] or 0)
    return -value if "-" in (found["sign"], found["minus"]) else value


def choice_fault(answer: str, gold: str) -> str:
    """The letter of a choice: B, b, (B), B. or B:"""
    if not _CHOICE.fullmatch(gold):
        raise ValueError(f"the gold is no letter: {gold[:_QUOTED]!r}")
    found = _CHOICE.fullmatch(answer.strip())
    if found is None:
        return f"no letter: {answer[:_QUOTED]!r}"
    return "" if found[1].upper() == gold.strip("().:").upper() else _not(answer, gold)


def json_fault(answer: str, gold: str) -> str:
    """The same JSON value; spaces and the order of an object's keys do not count, types do."""
    wanted = _canonical(gold)
    if len(answer) > longest_form(gold):
        return f"an answer of {len(answer)} characters"
    try:
        given = _canonical(answer)
    except (ValueError, RecursionError):
        return f"no JSON: {answer[:_QUOTED]!r}"
    return "" if given == wanted else _not(answer, gold)


def expression_fault(answer: str, numbers: Sequence[int], target: int) -> str:
    """An expression of + - * / and brackets that uses each of `numbers` exactly once and makes `target`."""
    if not _SUM.fullmatch(answer):
        return f"not an expression of numbers, + - * / and brackets: {answer[:_QUOTED]!r}"
    used: list[int] = []
    try:
        value = _value(ast.parse(answer.strip(), mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError) as error:
        return f"not an expression that has a value: {type(error).__name__}"
    if sorted(used) != sorted(numbers):
        return f"it uses {sorted(used)}, not {sorted(numbers)}"[:200]
    return "" if value == target else "it makes another number"


CHECKS: dict[str, Callable[[str, str], str]] = {
    "exact": text_fault,
    "integer": integer_fault,
    "number": number_fault,
    "choice": choice_fault,
    "json": json_fault,
}


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """The exact value; the numbers in it are noted in `used`. Raises ValueError for anything but arithmetic."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, used)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left, used), _value(node.right, used))
    raise ValueError(type(node).__name__)


def _canonical(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)


def _plain(text: str) -> str:
    lines = text.strip().splitlines()
    return unicodedata.normalize("NFC", "\n".join(re.sub(r"[ \t]+", " ", line).strip() for line in lines))


def longest_form(gold: str) -> int:
    """Longer answers than this are no form of the gold."""
    return 10 * len(gold) + 1000


def _not(answer: str, gold: str) -> str:
    return f"the answer is {gold[:_QUOTED]!r}, not {answer[:_QUOTED]!r}"
