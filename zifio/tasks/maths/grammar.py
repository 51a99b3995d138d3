r"""From tokens to a tree: a small grammar of the answers that people and models write, in LaTeX or plainly.

Nothing is evaluated and nothing is guessed: what does not fit raises Unreadable. Depth and size are bounded.

    answer    relations, sets and expressions, with `,` `;` `or` `and` between them
    relation  expression (= expression)*, also < > \le \ge \ne \approx \in
    item      sets joined by \cup, or an expression with its unit
    term      products, also unwritten ones: 2\pi r; a whole number before a proper fraction is a mixed number

Try it alone: `python -c "from zifio.tasks.maths.grammar import parse; print(parse(r'\frac12'))"`
"""

import re
from fractions import Fraction

from zifio.tasks.maths.expressions import FUNCTIONS, Expressions, with_unit
from zifio.tasks.maths.scan import Unreadable, joined, scan, tidy
from zifio.tasks.maths.tree import Node
from zifio.tasks.maths.units import ONE, PERCENT, Unit, unit_of, word_unit

MOST_NODES, MOST_NESTED, MOST_ITEMS = 600, 100, 60
_RELATIONS = {"=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!="}
_RELATIONS |= {r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\approx": "~", r"\in": "in"}
_MONEY = {r"\$": "$", "€": "€", "£": "£"}
_SEPARATORS = {",", ";"}
_CLOSING = {"(": ")", "[": "]", r"\{": r"\}", r"\langle": r"\rangle"}
_NUMERAL = re.compile(r"\(?\s*([0-9A-Za-z]+)\s*\)?\s*_\s*\{?\s*(?:\\text\{\s*)?(\d{1,2})\s*\}?\s*\}?")
_NUMERAL_WORDS = re.compile(
    r"([0-9A-Za-z]+)\s*(?:\\text\{)?\s*\(?\s*(?:in\s+)?base[\s-]*\{?(\d{1,2})\}?\s*\)?\s*\}?", re.IGNORECASE
)
_CHOICE = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{\s*)?(?:\(\s*([A-J])\s*\)|([A-J])\s*[.)]?|\[([A-J])\])\s*\}?\s*[.)]?"
)
_NAMED = re.compile(  # f(x) =, \text{Area} =, Total cost =
    r"\s*(?:(?P<function>[A-Za-z])(?:_\w|_\{\w+\})?\s*\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])*\s*\)"
    r"|\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|(?P<words>[A-Za-z]{3,}(?:\s+[A-Za-z]+){0,5}))\s*(?==(?!=))"
)


def parse(text: str, thousands: bool = True, letters_are_units: bool = False) -> Node:
    """The tree of an answer; raises Unreadable. `thousands`: 1,234 is one number. `letters_are_units`: 5 m is five
    metres, not five times m."""
    text = tidy(text)
    if not text:
        raise Unreadable("nothing there")
    special = _numeral(text) or _choice(text)
    if special is not None:
        return special
    approximate = re.match(r"\s*(?:\\approx|\\sim)\s*", text)
    if approximate:
        text = text[approximate.end() :]
    named = _NAMED.match(text)
    if named and not {*(named["words"] or "").lower().split()} & {*FUNCTIONS, "or", "and", "sqrt"}:
        text = r"\zname" + text[named.end() :]
    node = _Answers(scan(joined(text) if thousands else text), letters_are_units).whole()
    if sum(1 for _ in node.nodes()) > MOST_NODES or node.depth > MOST_NESTED:
        raise Unreadable("too long or too deep an expression")
    if approximate:
        return Node("approx", (node,), _places(text))
    return node


def _places(text: str) -> int:
    """How many decimals the number in the text is written with."""
    found = re.search(r"\d*\.(\d+)|\d", text)
    return len(found[1] or "") if found else 0


def _numeral(text: str) -> Node | None:
    found = _NUMERAL.fullmatch(text) or _NUMERAL_WORDS.fullmatch(text)
    if found is None or not (found[1][0].isdigit() or len(found[1]) > 1):
        return None
    digits, base = found[1].upper().lstrip("0") or "0", int(found[2])
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        raise Unreadable(f"{found[1]} has no meaning in base {base}")
    return Node("numeral", (), (digits, base))


def _choice(text: str) -> Node | None:
    found = _CHOICE.fullmatch(text)
    return Node("choice", (), next(filter(None, found.groups()))) if found else None


class _Answers(Expressions):
    """The whole answer: lists, relations, sets and quantities around expressions."""

    def whole(self) -> Node:
        """The whole answer."""
        node = self.listed()
        if self.at < len(self.tokens):
            raise Unreadable(f"cannot read on at {self.peek().text[:20]!r}")
        return node

    def listed(self) -> Node:
        """Items with separators between them; a single one is itself."""
        items, joiners = [self.relation()], []
        while True:
            joiner = self._joiner()
            if not joiner:
                break
            joiners.append(joiner)
            items.append(self.relation())
            if len(items) > MOST_ITEMS:
                raise Unreadable("too many items")
        return _gathered(items, joiners)

    def _joiner(self) -> str:
        found, start = "", self.at
        while True:
            token = self.peek()
            word = token.text.strip().lower()
            if token.kind == "sign" and token.text in _SEPARATORS:
                found = found or ","
            elif token.kind in ("word", "text") and word in ("and", "or", ", and", ", or", "and,", "or,"):
                found = "or" if "or" in word else "and"
            else:
                break
            self.at += 1
        if found and self.peek().text in ("", ")", "]", r"\}", "}"):
            self.at = start
            raise Unreadable("a list that breaks off")
        return found

    def relation(self) -> Node:
        """Expressions with relations between them; a single one is itself."""
        if self.peek().text == r"\zname":
            self.take()
            self.take("=")
            return self.relation()
        args, signs = [self.item()], []
        while (sign := self.peek()).kind != "text" and sign.text in _RELATIONS:
            signs.append(_RELATIONS[self.take().text])
            args.append(self.item())
        return Node("relation", tuple(args), tuple(signs)) if signs else args[0]

    def item(self) -> Node:
        """Sets joined by unions, a ratio, or an expression with its unit."""
        node = self.quantity()
        if self.peek().text == ":":
            parts = [node]
            while self.took(":"):
                parts.append(self.quantity())
            return Node("ratio", tuple(parts))
        while sign := self.took(r"\cup", r"\setminus"):
            other = self.quantity()
            if sign == r"\cup":
                node = Node("union", (*(node.args if node.op == "union" else (node,)), other))
            else:
                node = Node("minus", (node, other))
        return node

    def quantity(self) -> Node:
        """An expression with its unit, if one follows; money has it in front."""
        start = self.at
        negative = bool(self.took("-"))
        money = self.took(*_MONEY)
        if not money:
            self.at = start
        node = self.sum()
        if money:
            node = Node("neg", (node,)) if negative else node
            unit = word_unit(_MONEY[money])
            assert unit is not None, "the table has it"
            more = self._unit() or ONE
            if more.powers == unit.powers:  # $5 dollars
                more = Unit(Fraction(1), (), more.count)
            if any(power > 0 for _, power in more.powers):
                raise Unreadable("two units")
            return with_unit(node, unit.times(more))
        unit = self._unit()
        if unit is None:
            return node
        return with_unit(node, unit)

    def _unit(self) -> Unit | None:
        """The unit that follows, or None."""
        if self.took(r"\%", "%"):
            return PERCENT
        if self.peek().text == "¢":
            self.take()
            return word_unit("¢")
        start, words, unit, sign = self.at, [], None, 1
        while self.peek().kind in ("word", "text"):
            token = self.peek()
            if token.kind == "text" and self.is_joiner(token):
                break
            if token.kind == "word" and self.is_joiner(token):
                break
            self.at += 1
            words += (
                token.text.replace("-", " ")
                .replace(".", " ")
                .replace("/", " per ")
                .replace("(", " ")
                .replace(")", " ")
                .split()
            )
            if self.peek().text == "^":
                power = self._unit_power()
                one = unit_of(*words) if words else None
                if one is None:
                    raise Unreadable("a power without a unit")
                unit, words = (unit or ONE).times(one, sign * power), []
            if self.peek().text == "/" and self.peek(1).kind in ("word", "text"):
                self.at += 1
                words.append("per")
        if not words and unit is None:
            return None
        if words:
            one = unit_of(*words)
            if one is None:
                self.at = start
                raise Unreadable(f"{' '.join(words)[:30]!r} is no unit")
            unit = (unit or ONE).times(one)
        return unit

    def _unit_power(self) -> int:
        self.take("^")
        braces = self.took("{")
        negative = self.took("-")
        power = self.take()
        if power.kind != "number" or power.text not in ("1", "2", "3", "4"):
            raise Unreadable("a strange power of a unit")
        if braces:
            self.take("}")
        return -int(power.text) if negative else int(power.text)


def _gathered(items: list[Node], joiners: list[str]) -> Node:
    """Items as one node: with ± or `or` a set, otherwise a list. `x = 1 or 2` says x twice."""
    spread = [branch for item in items for branch in branches(item)]
    if len(items) == 1 and len(spread) == 1:
        return items[0]
    if len(spread) > len(items) or "or" in joiners:
        return Node("set", tuple(spread), "or")
    return Node("list", tuple(items))


def branches(node: Node) -> list[Node]:
    """The one or two expressions that a ± stands for. Raises Unreadable for two of them without a ∓."""
    if not node.has("pm", "mp"):
        return [node]
    if sum(1 for part in node.nodes() if part.op == "pm") > 1:
        raise Unreadable("two signs ±")
    return [_resolved(node, sign) for sign in (1, -1)]


def _resolved(node: Node, sign: int) -> Node:
    args = tuple(_resolved(arg, sign) for arg in node.args)
    if node.op in ("pm", "mp"):
        plus = (node.op == "pm") == (sign == 1)
        return Node("add", (args[0], args[1] if plus else Node("neg", (args[1],))))
    return Node(node.op, args, node.value)
