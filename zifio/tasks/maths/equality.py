"""Whether an answer says the same as the gold: typed, exact, and never by a numeric coincidence alone.

Three outcomes: equal (shown), different (shown, or of another kind), undecided (not shown either way). What the rules
are, kind by kind, is in docs/verifiers.md.

Try it alone: `python -c "from zifio.tasks.maths.equality import equal; print(equal('0.5', r'\\frac12'))"`
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from zifio.tasks.maths.algebra import constant_ratio, proved
from zifio.tasks.maths.grammar import branches, parse
from zifio.tasks.maths.numeric import exact, refuted
from zifio.tasks.maths.scan import LONGEST, TEXTS, Unreadable
from zifio.tasks.maths.tree import Node, const, kind, number
from zifio.tasks.maths.units import PERCENT, Unit

Outcome = Literal["equal", "different", "undecided"]
_QUOTED = 60
_WORDS = re.compile(r"[^\W_]", re.UNICODE)
_TEXT_COMMAND = re.compile(
    "(?:" + "|".join(re.escape(name) for name in sorted(TEXTS, key=len, reverse=True)) + r")\s*\{([^{}]*)\}"
)
_LETTER_FIRST = re.compile(r"\(?([A-J])\)?\s*[).:\s-]\s*(.+)", re.DOTALL)


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
    text = re.sub(r"\\[,;:! ]|[$~]", " ", text).replace("^\\prime", "'")
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


def _different(answer: Node, gold: Node) -> Equality:
    return Equality("different", f"wanted {kind(gold)}, came {kind(answer)}")


def _all(results: Iterable[Equality]) -> Equality:
    """Equal when all are; the first that is different decides, then the first undecided."""
    undecided: Equality | None = None
    for result in results:
        if result.outcome == "different":
            return result
        if result.outcome == "undecided":
            undecided = undecided or result
    return undecided or SAME


def _same(answer: Node, gold: Node, ordered: bool) -> Equality:
    """Compare two trees by the kind of the gold."""
    if answer == gold and not gold.has("approx", "relation"):
        return _meaningful(gold)
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
        return _same_scalar(answer, gold)
    if gold.op == "matrix":
        return _same_matrix(answer, gold)
    if gold.op == "ratio":
        if answer.op != "ratio" or len(answer.args) != len(gold.args):
            return _different(answer, gold)
        return _all(_same_scalar(a, g) for a, g in zip(answer.args, gold.args, strict=True))
    if gold.op in ("union", "interval", "minus") or _is_region(gold):
        return _same_region(answer, gold, ordered)
    return _same_collection(answer, gold, ordered)


def _meaningful(node: Node) -> Equality:
    """Equal to itself, unless it has no value: 1/0 is not an answer."""
    for part in node.nodes():
        if part.op == "div" and not part.args[1].symbols:
            with contextlib.suppress(ValueError):
                if exact(part.args[1]) == 0:
                    return Equality("different", "a division by zero")
    return SAME


# --- scalars


def _same_scalar(answer: Node, gold: Node) -> Equality:
    if gold.op == "approx":
        return _within(answer, gold)
    if answer.op == "approx":
        answer = answer.args[0]
    if not answer.is_scalar:
        answer = _only(answer)
    if not answer.is_scalar:
        return _different(answer, gold)
    if "quantity" in (answer.op, gold.op):
        return _same_quantity(answer, gold)
    return _same_expression(answer, gold)


def _only(node: Node) -> Node:
    """The one thing in a set, list or relation to a name, else the node itself."""
    return node.args[0] if node.op in ("set", "list", "matrix") and len(node.args) == 1 else node


def _within(answer: Node, gold: Node) -> Equality:
    """Whether the answer rounds to a gold that is given as an approximation, to the places it shows."""
    wanted, places = gold.args[0], gold.value
    answer = answer.args[0] if answer.op == "approx" else answer
    bare = answer.args[0] if answer.op == "quantity" and wanted.op != "quantity" else answer
    if bare.op == "quantity" and bare.value != wanted.value:
        return Equality("different", "another unit")
    pair = [node.args[0] if node.op == "quantity" else node for node in (bare, wanted)]
    if not all(node.is_scalar for node in pair) or pair[0].symbols or pair[1].symbols:
        return _different(answer, wanted)
    from zifio.tasks.maths.numeric import value as numeric_value

    try:
        distance = abs(exact(pair[0]) - exact(pair[1]))
    except ValueError:
        with contextlib.suppress(ValueError, ArithmeticError, TypeError):
            apart = abs(numeric_value(pair[0], {}) - numeric_value(pair[1], {}))
            near = bool(apart <= 0.5 * 10.0**-places)
            return SAME if near else Equality("different", f"not the same to {places} decimals")
        return Equality("undecided", "could not be shown equal")
    near = distance <= Fraction(1, 2 * 10**places)
    return SAME if near else Equality("different", f"not the same to {places} decimals")


def _same_expression(answer: Node, gold: Node) -> Equality:
    infinite = [
        node
        for node in (answer, gold)
        if node.has("const") and any(n.value in ("inf", "reals", "empty") for n in node.nodes() if n.op == "const")
    ]
    if infinite:
        signs = [_infinity(node) for node in (answer, gold)]
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
    if proved(answer, gold):
        return SAME if apart is False else _meaningful(answer)
    return Equality("undecided", "could not be shown equal")


def _has_value(node: Node) -> bool:
    return refuted(node, node) is False


def _infinity(node: Node) -> str:
    """ "+" or "-" for the infinities, the name for the sets that are constants, "" for anything else."""
    if node.op == "neg" and node.args[0] == const("inf"):
        return "-inf"
    if node.op == "add" and len(node.args) == 2 and node.args[0] == number(0):
        return _infinity(node.args[1])
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
    region = _region(gold)
    if region is not None:
        return _same_region(answer, region, ordered, _variable(gold))
    assigned = _assigned(gold)
    if assigned is None and answer.op != "relation":
        return _different(answer, gold)
    if assigned is None:
        return _proportional(answer, gold)
    name, value = assigned
    if answer.op != "relation":
        return _same(answer, value, ordered) if value.op != "relation" else _different(answer, gold)
    theirs = _assigned(answer)
    if theirs is None:
        flipped = _flipped(answer)
        theirs = _assigned(flipped) if flipped is not None else None
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
    region = _region(answer)
    if region is not None:
        return _same_region(region, gold, ordered)
    if not set(answer.value) <= {"=", "~"} and answer.value != ("in",):
        return _different(answer, gold)
    args = list(answer.args)
    if args[0].op == "sym":
        args = args[1:]
    elif answer.value == ("=",) and args[1].op == "sym" and not args[0].symbols:
        args = args[:1]
    elif answer.value == ("in",) or (args[0].symbols and len(args) == 2 and not gold.symbols):
        return _different(answer, gold)
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
    return _within(value, Node("approx", (approximation,), places)).holds


def _proportional(answer: Node, gold: Node) -> Equality:
    """Whether two equations, or inequalities, have left minus right in a constant ratio."""
    if len(answer.value) != 1 or len(gold.value) != 1:
        return Equality("undecided", "could not be shown equal")
    (sign_a,), (sign_g,) = answer.value, gold.value
    swap = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
    if sign_a not in swap or sign_g not in (sign_a, swap[sign_a]):
        return Equality("different", "another relation")
    if answer.symbols != gold.symbols:
        return Equality("different", "other variables")
    if not all(arg.is_scalar and not arg.has("quantity") for arg in (*answer.args, *gold.args)):
        return _different(answer, gold)
    one, other = (Node("add", (node.args[0], Node("neg", (node.args[1],)))) for node in (answer, gold))
    if _ratio_varies(one, other):
        return Equality("different", "another equation" if sign_g == "=" else "another inequality")
    ratio = constant_ratio(one, other)
    if ratio is None:
        return Equality("undecided", "could not be shown equal")
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


# --- sets of numbers


def _variable(node: Node) -> str:
    return next(iter(node.symbols), "")


def _region(node: Node) -> Node | None:
    """The interval that an inequality in one variable against constants says, or what `x in S` says; else None."""
    if node.op in ("set", "list") and node.args and all(arg.op == "relation" for arg in node.args):
        regions = [_region(arg) for arg in node.args]
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


def _is_region(node: Node) -> bool:
    return (node.op == "tuple" and len(node.args) == 2 and any(_infinity(arg) for arg in node.args)) or node in (
        const("reals"),
    )


def _pieces(node: Node) -> list[Node] | None:
    """Intervals whose union it is: open ones may be written as pairs. None for anything else."""
    region = _region(node)
    if region is not None:
        return _pieces(region)
    if node == const("reals"):
        return [Node("interval", (Node("neg", (const("inf"),)), const("inf")), "()")]
    if node.op == "union":
        parts = [_pieces(arg) for arg in node.args]
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


def _same_region(answer: Node, gold: Node, ordered: bool, variable: str = "") -> Equality:
    """Compare unions of intervals, end by end, in any order."""
    if variable and answer.op == "relation" and answer.symbols - {variable}:
        return Equality("different", "other variables")
    ours, theirs = _pieces(gold), _pieces(answer)
    if ours is None:
        return _same_collection(answer, gold, ordered)
    if theirs is None:
        return _different(answer, gold)
    return _matched(theirs, ours, _same_interval)


def _same_interval(answer: Node, gold: Node) -> Equality:
    brackets = [_brackets(node) for node in (answer, gold)]
    if brackets[0] != brackets[1]:
        return Equality("different", "other ends: open where closed is wanted, or the reverse")
    return _all(_same_scalar(a, g) for a, g in zip(answer.args, gold.args, strict=True))


def _brackets(interval: Node) -> str:
    """Its brackets, open at infinity whatever was written."""
    low, high = (bool(_infinity(arg)) for arg in interval.args)
    return ("(" if low else interval.value[0]) + (")" if high else interval.value[1])


# --- tuples, lists, sets, matrices


def _same_collection(answer: Node, gold: Node, ordered: bool) -> Equality:
    """Tuples and lists in order; sets in any order, and a set in braces without what it has twice."""
    answer = _unwrapped(answer)
    gold = _unwrapped(gold)
    loose = gold.op == "set" or (gold.op == "list" and not ordered)
    if gold.op == "set" and gold.value != "or" and len(gold.args) == 1 and answer.is_scalar:
        return _same(answer, gold.args[0], ordered)
    allowed = {"tuple": ("tuple", "list", "matrix"), "list": ("tuple", "list", "set"), "set": ("set", "list")}[gold.op]
    if gold.op == "list" and not ordered:
        allowed = ("list", "set", "tuple")
    if answer.op not in allowed or (answer.op == "matrix" and answer.value[1] != 1):
        return _different(answer, gold)
    came, wanted = list(answer.args), list(gold.args)
    if loose:
        came, wanted = _distinct(came), _distinct(wanted)
        return _matched(came, wanted, lambda a, g: _same(a, g, ordered))
    if len(came) != len(wanted):
        return Equality("different", f"wanted {len(wanted)} items, came {len(came)}")
    return _all(_same(a, g, ordered) for a, g in zip(came, wanted, strict=True))


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


def _matched(came: list[Node], wanted: list[Node], same: Callable[[Node, Node], Equality]) -> Equality:
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
    return Equality("undecided", "could not be shown equal") if undecided else SAME


def _same_matrix(answer: Node, gold: Node) -> Equality:
    """Entry by entry. A column may be written as a tuple."""
    if answer.op == "tuple" and gold.value[1] == 1:
        answer = Node("matrix", answer.args, (len(answer.args), 1))
    if answer.op != "matrix":
        return _different(answer, gold)
    if answer.value != gold.value:
        return Equality("different", "a matrix of another shape")
    return _all(_same_scalar(a, g) for a, g in zip(answer.args, gold.args, strict=True))
