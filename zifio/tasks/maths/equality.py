"""Whether an answer says the same as the gold: typed, exact, and never by a numeric coincidence alone.

Three outcomes: equal (shown), different (shown, or of another kind), undecided (not shown either way). What the rules
are, kind by kind, is in docs/verifiers.md.

Try it alone: `python -c "from zifio.tasks.maths.equality import equal; print(equal('0.5', r'\\frac12'))"`
"""

import contextlib
import re
from collections.abc import Sequence
from functools import lru_cache

from zifio.tasks.maths.algebra import constant_ratio
from zifio.tasks.maths.grammar import branches, parse
from zifio.tasks.maths.numeric import refuted
from zifio.tasks.maths.regions import is_region, pieces_of, region_of, same_interval
from zifio.tasks.maths.scalars import (
    SAME,
    UNDECIDED,
    Equality,
    all_of,
    different,
    matched,
    meaningful,
    same_scalar,
    within,
)
from zifio.tasks.maths.scan import LONGEST, TEXTS, Unreadable
from zifio.tasks.maths.tree import Node, kind

_QUOTED = 60
_WORDS = re.compile(r"[^\W_]", re.UNICODE)
_TEXT_COMMAND = re.compile(
    "(?:" + "|".join(re.escape(name) for name in sorted(TEXTS, key=len, reverse=True)) + r")\s*\{([^{}]*)\}"
)
_LETTER_FIRST = re.compile(r"\(?([A-J])\)?\s*[).:\s-]\s*(.+)", re.DOTALL)


def equal(answer: str, gold: str, ordered: bool = True) -> Equality:
    """Whether `answer` says the same as `gold`. `ordered`: a list without brackets has an order, `1, 2` is not
    `2, 1`; one in braces, with "or" or with ± never has.

    Raises ValueError when the gold cannot be read.
    """
    golds = gold_readings(gold)
    try:
        answers = readings(answer)
    except Unreadable as error:
        return Equality("different", f"the answer {quoted(answer)} cannot be read: {error}")
    first: Equality | None = None
    for wanted in golds:
        for came in answers:
            result = _same(came, wanted, ordered)
            if result.holds:
                return result
            if first is None or (first.outcome == "different" and result.outcome == "undecided"):
                first = result
    assert first is not None, "there is at least one reading of each"
    return first


def gold_readings(gold: str) -> tuple[Node, ...]:
    """The ways to read a gold. Raises ValueError when there is none."""
    try:
        return readings(gold)
    except Unreadable as error:
        raise ValueError(f"the gold {quoted(gold)} cannot be read: {error}") from None


def quoted(text: str) -> str:
    """A stranger's text, cut, for a reason."""
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "...")


@lru_cache(maxsize=4096)
def readings(text: str) -> tuple[Node, ...]:
    """The ways to read a text, the likeliest first: 1,234 as a number and as two, 5 m as metres and as a product, and
    words as words. Raises Unreadable when there is none."""
    if len(text) > LONGEST:
        raise Unreadable(f"longer than {LONGEST} characters")
    modes = [(True, False)]
    modes += [(False, False)] if re.search(r"\d,\d{3}", text) else []
    modes += [(True, True)] if re.search(r"\d\s*(?:\\\w+\s*\{\s*)?[A-Za-z]", text) else []
    found: list[Node] = []
    fault: Unreadable | None = None
    for thousands, letters in modes:
        try:
            node = parse(text, thousands, letters)
        except Unreadable as error:
            fault = fault or error
        else:
            found += [node] if node not in found else []
    if _LETTER_FIRST.fullmatch(text.strip()):
        found.append(Node("text", (), text.strip().casefold()))
    words = _words(text)
    if words and (not found or _is_word(words)):
        found.append(Node("text", (), words))
    if not found:
        raise fault or Unreadable("nothing there")
    return tuple(found)


def _words(text: str) -> str:
    """The text as plain words in small letters, or "" when it is something else."""
    for _ in range(3):
        text = _TEXT_COMMAND.sub(r" \1 ", text)
    text = re.sub(r"\\(?:[,;:! ]|displaystyle(?![A-Za-z])|quad(?![A-Za-z]))|[$~]", " ", text).replace("^\\prime", "'")
    text = " ".join(text.split()).strip(" .,;:!\"'`*")
    if (
        re.search(r"[\\{}^_=<>|]", text)
        or not _WORDS.search(text)
        or any(text.count(a) != text.count(b) for a, b in ("()", "[]"))
    ):
        return ""
    return text.casefold() if re.search(r"[^\W\d_]", text) else ""


def _is_word(words: str) -> bool:
    return bool(re.fullmatch(r"[^\W\d_]{2,}(?:[\s'-]+[^\W\d_]+)*", words))


def _same(answer: Node, gold: Node, ordered: bool) -> Equality:
    """Compare two trees by the kind of the gold."""
    if answer == gold and (not gold.has("approx", "relation") or (gold.value == ("=",) and gold.symbols)):
        return meaningful(gold)
    if gold.op == "text":
        return SAME if answer.op == "text" and answer.value == gold.value else Equality("different", "other words")
    if gold.op == "choice":
        return _same_choice(answer, gold)
    if gold.op == "numeral":
        return _same_numeral(answer, gold)
    if gold.op == "relation":
        return _same_relation(answer, gold, ordered)
    if answer.op == "relation":
        return _valued(answer, gold, ordered)
    if gold.is_scalar:
        return same_scalar(answer, gold)
    if gold.op == "matrix":
        return _same_matrix(answer, gold)
    if gold.op == "ratio":
        if answer.op != "ratio" or len(answer.args) != len(gold.args):
            return different(answer, gold)
        return all_of(same_scalar(a, g) for a, g in zip(answer.args, gold.args, strict=True))
    if gold.op in ("union", "interval", "minus") or is_region(gold):
        return _same_region(answer, gold, ordered)
    return _same_collection(answer, gold, ordered)


# --- words, letters, bases


def _same_choice(answer: Node, gold: Node) -> Equality:
    letter = answer.value if answer.op in ("choice", "text") else ""
    if answer.op == "text":
        letter = _letter(answer.value.upper())
    if answer.op == "sym":
        letter = answer.value.upper()
    if letter == gold.value:
        return SAME
    return Equality(
        "different", f"the choice is {gold.value}" if letter else f"wanted the letter of a choice, came {kind(answer)}"
    )


def _letter(text: str) -> str:
    """The letter of `(B) both of them`, when no other letter stands there too."""
    found = _LETTER_FIRST.fullmatch(text)
    if found is None:
        return text if re.fullmatch("[A-J]", text) else ""
    others = set(re.findall(r"(?<![A-Z'])[B-H](?![A-Z'])", found[2])) - {found[1]}
    others |= set(re.findall(r"(?<![A-Z'])A(?![A-Z'])(?!\s+[A-Z]{2})", found[2])) - {found[1]}  # A is a word, too
    return "" if others or re.search(r"\bOR\b|\bNOT\b|/", found[2]) else found[1]


def _same_numeral(answer: Node, gold: Node) -> Equality:
    """The very digits, in that base; the base may be left out."""
    if answer.op == "numeral":
        return SAME if answer.value == gold.value else Equality("different", "other digits or another base")
    digits, _ = gold.value
    with contextlib.suppress(ValueError):
        if answer.op == "num" and answer.value.denominator == 1 and str(answer.value.numerator) == digits:
            return SAME
    return Equality("different", "other digits")


# --- equations and inequalities


def _assigned(node: Node) -> tuple[str, Node] | None:
    """(name, value) of `x = value`, `x = a = b` (the last; the others are for `_valued`), `x in S`; else None."""
    if node.op != "relation" or node.args[0].op != "sym" or len(node.value) < 1:
        return None
    name = node.args[0].value
    if set(node.value) <= {"=", "~"} or node.value == ("in",):
        return None if name in node.args[-1].symbols else (name, node.args[-1])
    return None


def _same_relation(answer: Node, gold: Node, ordered: bool) -> Equality:
    """Against x = value: the value alone will do. Against other equations: the same up to a factor."""
    region = region_of(gold)
    if region is not None:
        return _same_region(answer, region, ordered, _variable(gold))
    assigned = _assigned(gold)
    if assigned is None and answer.op != "relation":
        return different(answer, gold)
    if assigned is None:
        return _proportional(answer, gold)
    name, value = assigned
    if answer.op != "relation":
        return _same(answer, value, ordered) if value.op != "relation" else different(answer, gold)
    theirs = _assigned(answer)
    if theirs is None:
        flipped = _flipped(answer)
        if flipped is not None:
            answer, theirs = flipped, _assigned(flipped)
    if theirs is not None and theirs[0] == name:
        return _valued(answer, value, ordered)
    if gold.value == ("=",) and len(gold.symbols) > 1:
        return _proportional(answer, gold)
    return Equality("different", f"wanted {name}, came another equation")


def _flipped(node: Node) -> Node | None:
    """5 = x as x = 5."""
    if node.op == "relation" and node.value == ("=",) and node.args[1].op == "sym":
        return Node("relation", (node.args[1], node.args[0]), node.value)
    return None


def _valued(answer: Node, gold: Node, ordered: bool) -> Equality:
    """An answer `x = a = b` against a value: all it says must agree, and end in the gold."""
    region = region_of(answer)
    if region is not None:
        return _same_region(region, gold, ordered)
    if not set(answer.value) <= {"=", "~"} and answer.value != ("in",):
        return different(answer, gold)
    args = list(answer.args)
    if args[0].op == "sym" and not any(args[0].value in arg.symbols for arg in args[1:]):
        args = args[1:]
    elif answer.value == ("=",) and args[1].op == "sym" and not args[0].symbols:
        args = args[:1]
    elif answer.value == ("in",) or (args[0].symbols and len(args) == 2 and not gold.symbols):
        return different(answer, gold)
    signs = ["=", *answer.value][-len(args) :]
    exacts = [arg for arg, sign in zip(args, signs, strict=True) if sign != "~"] or args
    for arg, sign in zip(args[1:], signs[1:], strict=True):
        agrees = _rounds(exacts[0], arg) if sign == "~" else _same(arg, exacts[0], ordered).holds
        if not agrees:
            return Equality("different", "the answer's own equation could not be shown to hold")
    first: Equality | None = None
    for arg in reversed(args):
        result = _same(arg, gold, ordered)
        if result.holds:
            return result
        first = first or result
    assert first is not None, "an equation has sides"
    return first


def _rounds(value: Node, approximation: Node) -> bool:
    """Whether a decimal is the value rounded to the places it shows."""
    inner = approximation.args[0] if approximation.op == "quantity" else approximation
    if inner.op == "neg":
        inner = inner.args[0]
    if inner.op != "num":
        return False
    denominator, places = inner.value.denominator, 0
    while denominator > 1 and places < 30 and denominator % 10 in (0, 2, 4, 5, 6, 8):
        places += 1
        denominator = (inner.value * 10**places).denominator
    return within(value, Node("approx", (approximation,), places)).holds


def _proportional(answer: Node, gold: Node) -> Equality:
    """Whether two equations, or inequalities, have left minus right in a constant ratio."""
    if len(answer.value) != 1 or len(gold.value) != 1:
        return UNDECIDED
    (sign_a,), (sign_g,) = answer.value, gold.value
    swap = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
    if sign_a not in swap or sign_g not in (sign_a, swap[sign_a]):
        return Equality("different", "another relation")
    if answer.symbols != gold.symbols:
        return Equality("different", "other variables")
    if not all(arg.is_scalar and not arg.has("quantity") for arg in (*answer.args, *gold.args)):
        return different(answer, gold)
    one, other = (Node("add", (node.args[0], Node("neg", (node.args[1],)))) for node in (answer, gold))
    if _ratio_varies(one, other):
        return Equality("different", "another equation" if sign_g == "=" else "another inequality")
    ratio = constant_ratio(one, other)
    if ratio is None:
        return UNDECIDED
    if (
        sign_g in ("=", "!=")
        or (ratio.is_positive and sign_a == sign_g)
        or (ratio.is_negative and sign_a == swap[sign_g])
    ):
        return SAME
    return Equality("different", "the inequality points the other way")


def _ratio_varies(one: Node, other: Node) -> bool:
    """Whether one / other is shown not to be constant: it differs from its value at another place."""
    renamed = [_renamed(node) for node in (one, other)]
    return refuted(Node("mul", (one, renamed[1])), Node("mul", (renamed[0], other))) is True


def _renamed(node: Node) -> Node:
    """With other names for all symbols: the same expression at another point."""
    if node.op == "sym":
        return Node("sym", (), node.value + "'")
    return Node(node.op, tuple(_renamed(arg) for arg in node.args), node.value)


def _variable(node: Node) -> str:
    return next(iter(node.symbols), "")


def _same_region(answer: Node, gold: Node, ordered: bool, variable: str = "") -> Equality:
    """Compare unions of intervals, end by end, in any order."""
    if variable and answer.op == "relation" and answer.symbols - {variable}:
        return Equality("different", "other variables")
    ours, theirs = pieces_of(gold), pieces_of(answer)
    if ours is None:
        return _same_collection(answer, gold, ordered)
    if theirs is None:
        return different(answer, gold)
    return matched(theirs, ours, same_interval)


# --- tuples, lists, sets, matrices


def _same_collection(answer: Node, gold: Node, ordered: bool) -> Equality:
    """Tuples and lists in order; sets in any order, and a set in braces without what it has twice."""
    answer = _unwrapped(answer)
    gold = _unwrapped(gold)
    loose = gold.op == "set" or (gold.op == "list" and not ordered)
    if gold.op == "set" and gold.value != "or" and len(gold.args) == 1 and answer.is_scalar:
        return _same(answer, gold.args[0], ordered)
    if gold.op not in ("tuple", "list", "set"):
        return different(answer, gold)
    allowed = {"tuple": ("tuple", "list", "matrix"), "list": ("tuple", "list", "set"), "set": ("set", "list")}[gold.op]
    if gold.op == "list" and not ordered:
        allowed = ("list", "set", "tuple")
    if answer.op not in allowed or (answer.op == "matrix" and answer.value[1] != 1):
        return different(answer, gold)
    came, wanted = list(answer.args), list(gold.args)
    if loose:
        came, wanted = _distinct(came), _distinct(wanted)
        return matched(came, wanted, lambda a, g: _same(a, g, ordered))
    if len(came) != len(wanted):
        return Equality("different", f"wanted {len(wanted)} items, came {len(came)}")
    return all_of(_same(a, g, ordered) for a, g in zip(came, wanted, strict=True))


def _unwrapped(node: Node) -> Node:
    """Without `x =` before its items: `x = 1 or x = 2` is `1 or 2`; `x = 1, y = 2` stays, unless x and y are in
    order."""
    if node.op not in ("list", "set") or not node.args:
        return node
    first = _assigned(node.args[0])
    if first is None:
        return node
    pairs = [_assigned(arg) or (first[0], arg) for arg in node.args]
    names = [name for name, _ in pairs]
    if any(value.op == "relation" for _, value in pairs) or any(name in value.symbols for name, value in pairs):
        return node
    if len(set(names)) == 1:
        return Node("set", tuple(value for _, value in pairs), "or")
    if len(set(names)) == len(names) and all(_assigned(arg) for arg in node.args):
        ranked = sorted(pairs, key=lambda pair: pair[0])
        return Node("list", tuple(value for _, value in ranked)) if names == sorted(names) else node
    return node


def _distinct(items: Sequence[Node]) -> list[Node]:
    kept: list[Node] = []
    for item in items:
        for branch in branches(item) if item.is_scalar else [item]:
            if not any(_same(branch, other, True).holds for other in kept):
                kept.append(branch)
    return kept


def _same_matrix(answer: Node, gold: Node) -> Equality:
    """Entry by entry. A column may be written as a tuple."""
    if answer.op == "tuple" and gold.value[1] == 1:
        answer = Node("matrix", answer.args, (len(answer.args), 1))
    if answer.op != "matrix":
        return different(answer, gold)
    if answer.value != gold.value:
        return Equality("different", "a matrix of another shape")
    return all_of(same_scalar(a, g) for a, g in zip(answer.args, gold.args, strict=True))
