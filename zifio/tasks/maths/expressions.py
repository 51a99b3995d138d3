r"""Expressions: sums, products, powers, functions, brackets and matrices, by recursive descent over tokens.

A whole number before a proper fraction is a mixed number; factors need no sign between them: 2\pi r. Nothing is
evaluated and nothing is guessed: what does not fit raises Unreadable. Depth is bounded.

Try it alone: `pytest tests/tasks/test_maths_equality.py`
"""

from abc import ABC, abstractmethod
from fractions import Fraction

from zifio.tasks.maths.scan import Token, Unreadable
from zifio.tasks.maths.tree import Node, const, number
from zifio.tasks.maths.units import DEGREE, Unit, is_known

MOST_DEPTH = 60
_FUNCTION_WORDS = """sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp abs floor ceil max min
    gcd lcm"""
FUNCTIONS = frozenset(_FUNCTION_WORDS.split())
_ARC = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "ceiling": "ceil"}
_LETTERS_OF_PRODUCTS = frozenset("abcdkmnpqrstuvwxyz")
_GREEK_WORDS = """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma
    tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega"""
_GREEK = frozenset(_GREEK_WORDS.split())


class Expressions(ABC):
    """A reader of tokens that knows expressions; what answers are made of them, `listed` says."""

    def __init__(self, tokens: list[Token], letters_are_units: bool, depth: int = 0) -> None:
        self.tokens, self.at, self.depth = tokens, 0, depth
        self.letters_are_units = letters_are_units
        self.bars = 0

    def peek(self, ahead: int = 0) -> Token:
        """The token to come; behind the last an empty one."""
        place = self.at + ahead
        return self.tokens[place] if place < len(self.tokens) else Token("sign", "")

    def take(self, text: str = "") -> Token:
        """The next token, which must be `text` if that is given."""
        token = self.peek()
        if text and token.text != text:
            raise Unreadable(
                f"wanted {text!r}, came {token.text!r}" if token.text else f"wanted {text!r} before the end"
            )
        self.at += 1
        return token

    def took(self, *texts: str) -> str:
        """Take the next token if it is one of these."""
        token = self.peek()
        if token.text and token.kind != "text" and token.text in texts:
            self.at += 1
            return token.text
        return ""

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise Unreadable("nested too deep")

    @staticmethod
    def is_joiner(token: Token) -> bool:
        return token.text.strip().lower() in ("and", "or", ", and", ", or")

    @abstractmethod
    def listed(self) -> Node:
        """Items with separators between them; a single one is itself."""

    def sum(self) -> Node:
        """Terms with signs between them."""
        self._deeper()
        sign = self.took("+", "-", r"\pm", r"\mp")
        node = _signed(sign, self.product())
        while sign := self.took("+", "-", r"\pm", r"\mp"):
            other = self.product()
            double = sign in (r"\pm", r"\mp")
            node = Node(sign[1:], (node, other)) if double else _plus(node, _signed(sign, other))
        self.depth -= 1
        return node

    def product(self) -> Node:
        """Factors, with or without signs between them."""
        node = self.power()
        while True:
            sign = self.took("*", "/", r"\cdot", r"\div")
            if sign:
                minus = self.took("-")
                other = self.power()
                other = Node("neg", (other,)) if minus else other
                node = Node("div", (node, other)) if sign in ("/", r"\div") else _times(node, other)
            elif self._goes_on(node):
                may_be_mixed = self.peek(-1).kind == "number" and self.peek().text == r"\frac"
                other = self.power()
                mixed = _mixed(node, other) if may_be_mixed else None
                node = mixed if mixed is not None else _times(node, other)
            else:
                plain = self._plain_fraction(node)
                if plain is None:
                    return node
                node = plain

    def _goes_on(self, node: Node) -> bool:
        """Whether the next token begins another factor of an unwritten product."""
        token = self.peek()
        if token.kind == "word":
            return not self._begins_unit(node, token)
        if token.kind == "number":
            return self.peek(-1).text == "!"  # 2!3!
        if token.kind == "command":
            return token.text[1:] in FUNCTIONS | _GREEK | {
                "frac",
                "sqrt",
                "pi",
                "infty",
                "binom",
                "begin",
                "lfloor",
                "lceil",
            }
        return token.kind == "sign" and (token.text in ("(", "[") or (token.text == "|" and not self.bars))

    def _begins_unit(self, node: Node, token: Token) -> bool:
        if self.is_joiner(token):
            return True
        word = token.text
        if node.symbols or node.op in ("tuple", "set", "matrix", "interval"):
            return len(word) > 3 and not _function(word)
        if _function(word) or word in ("i", "e", "pi", "sqrt", "infinity", "inf", "oo"):
            return False
        if len(word) > 1 and is_known(word):
            return True
        if len(word) == 1 or not token.spaced:  # 5 m may be metres, 42x never is 42 of something
            return self.letters_are_units and token.spaced and is_known(word)
        return len(word) > 3 or (self.letters_are_units and not set(word) <= _LETTERS_OF_PRODUCTS)

    def _plain_fraction(self, node: Node) -> Node | None:
        """`1 4/5`, a mixed number in plain text, when it comes."""
        first, slash, second = self.peek(), self.peek(1), self.peek(2)
        if not (node.op == "num" and first.kind == second.kind == "number" and slash.text == "/" and first.spaced):
            return None
        above, below = Fraction(first.text), Fraction(second.text)
        if not (node.value.denominator == above.denominator == below.denominator == 1 and 0 < above < below):
            return None
        self.at += 3
        return number(node.value + above / below)

    def power(self) -> Node:
        """An atom with what is written behind it: powers, factorials, degrees."""
        self._deeper()
        node = self.atom()
        while True:
            if self.took("!"):
                node = Node("call", (node,), "factorial")
            elif self.peek().text == "^" and self.peek(1).text == r"\circ":
                self.at += 2
                node = with_unit(node, DEGREE)
            elif self.peek().text == "^" and self.peek(1).text == "{" and self.peek(2).text == r"\circ":
                self.at += 3
                self.take("}")
                node = with_unit(node, DEGREE)
            elif self.took("^", "**"):
                node = Node("pow", (node, self.exponent()))
            else:
                break
        self.depth -= 1
        return node

    def exponent(self) -> Node:
        """What stands behind a ^."""
        minus = self.took("-")
        if self.took("{"):
            node = self.sum()
            self.take("}")
        else:
            node = self.power() if self.peek().text != "(" else self.atom()
        return Node("neg", (node,)) if minus else node

    def argument(self) -> Node:
        r"""The argument of a LaTeX command: a group, or a single character: \frac12."""
        if self.took("{"):
            node = self.sum()
            self.take("}")
            return node
        token = self.peek()
        if token.kind == "number" and token.text[0] != ".":
            self.take()
            if len(token.text) > 1:
                self.tokens[self.at : self.at] = [Token("number", token.text[1:])]
            return number(int(token.text[0]))
        if token.kind == "word" and len(token.text) > 1 and not _function(token.text):
            self.tokens[self.at : self.at + 1] = [Token("word", token.text[0]), Token("word", token.text[1:])]
        return self.atom()

    def atom(self) -> Node:
        """The smallest piece."""
        self._deeper()
        node = self._atom()
        self.depth -= 1
        return node

    def _atom(self) -> Node:
        token = self.peek()
        if token.kind == "number":
            return self._number()
        if token.kind == "word":
            return self._word()
        if token.kind == "command":
            return self._command()
        if token.kind == "text":
            raise Unreadable(f"the words {token.text[:30]!r} in an expression")
        if token.text in ("(", "["):
            return self._bracketed(token.text)
        if token.text == r"\{":
            self.take()
            if self.took(r"\}"):
                return const("empty")
            node = self.listed()
            self.take(r"\}")
            return Node("set", node.args if node.op in ("list", "set") else (node,))
        if token.text == "{":
            self.take()
            node = self.listed()
            self.take("}")
            return Node("set", node.args) if node.op == "list" else node
        if token.text == "|":
            self.take()
            self.bars += 1
            node = self.sum()
            self.take("|")
            self.bars -= 1
            return Node("call", (node,), "abs")
        raise Unreadable(f"cannot read {token.text[:20]!r}" if token.text else "it breaks off")

    def _number(self) -> Node:
        token = self.take()
        if self.peek().text == r"\overline" and token.text.endswith("."):
            return self._repeating(token.text)
        if self.peek().kind == "number":
            following = self.peek()
            if not (following.spaced and self.peek(1).text == "/"):
                raise Unreadable("two numbers with nothing between them")
        if self.peek().text == "_":
            raise Unreadable("a base inside an expression")
        value = number(Fraction(token.text))
        if self.peek().text == r"\overline" and "." in token.text:
            return self._repeating(token.text)
        return value

    def _repeating(self, begun: str) -> Node:
        r"""0.1\overline{6}"""
        self.take(r"\overline")
        self.take("{")
        digits = self.take()
        self.take("}")
        if not digits.text.isdigit() or len(digits.text) > 50:
            raise Unreadable("a strange repeating decimal")
        places = len(begun.partition(".")[2])
        return number(
            Fraction(begun.rstrip(".")) + Fraction(int(digits.text), (10 ** len(digits.text) - 1) * 10**places)
        )

    def _word(self) -> Node:
        token = self.take()
        word = token.text
        if name := _function(word):
            return self._called(name)
        if word in ("sqrt", "pi", "infinity", "inf", "oo"):
            return self._root(plain=True) if word == "sqrt" else const("pi" if word == "pi" else "inf")
        if len(word) > 1:  # abc is a times b times c
            if len(word) > 3:
                raise Unreadable(f"the word {word[:20]!r} in an expression")
            self.tokens[self.at : self.at] = [Token("word", letter) for letter in word[1:]]
            word = word[0]
        if word in ("e", "i") and self.peek().text != "_":
            return const(word)
        return Node("sym", (), word + self._subscript())

    def _subscript(self) -> str:
        if not self.took("_"):
            return ""
        if self.took("{"):
            pieces = ""
            while not self.took("}"):
                token = self.take()
                if not token.text.isalnum() and token.text != ",":
                    raise Unreadable("a strange subscript")
                pieces += token.text
            return "_" + pieces
        token = self.take()
        if token.kind not in ("number", "word"):
            raise Unreadable("a strange subscript")
        return "_" + token.text

    def _command(self) -> Node:
        name = self.take().text[1:]
        if name == "frac":
            return Node("div", (self.argument(), self.argument()))
        if name == "sqrt":
            return self._root()
        if name == "binom":
            return Node("call", (self.argument(), self.argument()), "binom")
        if name in FUNCTIONS:
            return self._called(name)
        if name in _GREEK:
            return Node("sym", (), name + self._subscript())
        if name in ("pi", "infty"):
            return const("pi" if name == "pi" else "inf")
        if name == "emptyset":
            return const("empty")
        if name == "mathbb":
            self.take("{")
            self.take("R")
            self.take("}")
            return const("reals")
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self.take("\\r" + name[1:])
            return Node("call", (node,), "floor" if name == "lfloor" else "ceil")
        if name == "langle":
            return self._bracketed(r"\langle", taken=True)
        if name == "begin":
            return self._matrix()
        if name in ("boxed", "fbox"):
            return self.argument()
        raise Unreadable(f"the command \\{name[:20]}")

    def _root(self, plain: bool = False) -> Node:
        r"""\sqrt[3]{2}, \sqrt2; `plain`: sqrt 53 takes the whole number."""
        degree = number(2)
        if self.took("["):
            degree = self.sum()
            self.take("]")
        inner = self.atom() if plain else self.argument()
        return Node("call", (inner, degree), "root")

    def _called(self, name: str) -> Node:
        """A function with its argument: brackets, a group, or the product that follows."""
        base = exponent = None
        if name in ("log",) and self.took("_"):
            base = self.argument()
        if self.took("^"):
            exponent = self.exponent()
        if self.peek().text == "(":
            self.take("(")
            args = [self.sum()]
            while self.took(","):
                args.append(self.sum())
            self.take(")")
        else:
            self._deeper()
            args = [self._bare_argument()]
            self.depth -= 1
        if name == "log":
            args = [args[0], base or number(10)] if len(args) == 1 else args
        if name == "ln":
            name, args = "log", [args[0], const("e")]
        if name == "lg":
            name, args = "log", [args[0], number(10)]
        if len(args) != (2 if name == "log" else 1) and name not in ("max", "min", "gcd", "lcm"):
            raise Unreadable(f"{name} of {len(args)} arguments")
        node = Node("call", tuple(_in_radians(arg) for arg in args), name)
        if exponent is None:
            return node
        if exponent.op in ("neg",) or (exponent.op == "num" and exponent.value < 0):
            raise Unreadable(f"an inverse of {name} or one over it?")
        return Node("pow", (node, exponent))

    def _bare_argument(self) -> Node:
        """`2x` in sin 2x: factors up to the next sign, bracket or function."""
        node = self.power()
        while True:
            token = self.peek()
            word = token.kind == "word" and not _function(token.text) and not self._begins_unit(node, token)
            if word or (token.kind == "command" and token.text[1:] in _GREEK | {"pi", "frac", "sqrt"}):
                node = _times(node, self.power())
            elif token.text == "/" and self.peek(1).kind == "number" and node.op in ("const", "num", "sym", "mul"):
                self.take()
                node = Node("div", (node, self.power()))
            else:
                return node

    def _bracketed(self, opening: str, taken: bool = False) -> Node:
        """( ), [ ], and the half-open ( ] and [ ): an expression, a tuple, an interval, or rows."""
        if not taken:
            self.take()
        bars, self.bars = self.bars, 0
        node = self.listed()
        self.bars = bars
        closing = self.take()
        if closing.text not in (")", "]", r"\rangle") or (closing.text == r"\rangle") != (opening == r"\langle"):
            raise Unreadable(f"wanted a bracket to close, came {closing.text!r}")
        items = node.args if node.op in ("list", "set") and node.value != "or" else (node,)
        if node.op in ("list", "set") and node.value == "or":
            raise Unreadable("an or inside brackets")
        if opening == r"\langle" or (opening + closing.text == "()" and len(items) > 1):
            return Node("tuple", items)
        if len(items) == 1 and opening + closing.text in ("()", "[]"):
            return items[0] if opening == "(" or items[0].is_scalar else Node("list", items)
        if opening + closing.text == "[]" and all(item.op in ("list", "interval") for item in items):
            return _rows(items)
        if len(items) == 2:
            return Node("interval", items, opening + closing.text)
        if opening + closing.text == "[]":
            return Node("list", items)
        raise Unreadable("brackets that do not match")

    def _matrix(self) -> Node:
        r"""\begin{pmatrix} a & b \\ c & d \end{pmatrix}"""
        name = self._environment()
        if name not in ("pmatrix", "bmatrix", "matrix", "Bmatrix", "array", "smallmatrix"):
            raise Unreadable(f"a {name[:20]}")
        if name == "array" and self.took("{"):
            while not self.took("}"):
                self.take()
        rows: list[list[Node]] = [[]]
        while True:
            rows[-1].append(self.sum())
            if self.took("&"):
                continue
            if self.took("\\\\"):
                if self.peek().text == r"\end":
                    break
                rows.append([])
                continue
            break
        self.take(r"\end")
        if self._environment() != name:
            raise Unreadable("an environment that ends as another")
        if len({len(row) for row in rows}) != 1 or len(rows) * len(rows[0]) > 100:
            raise Unreadable("rows of unequal length, or too many")
        return Node("matrix", tuple(entry for row in rows for entry in row), (len(rows), len(rows[0])))

    def _environment(self) -> str:
        self.take("{")
        name = self.take()
        self.take("}")
        return name.text


def _function(word: str) -> str:
    name = _ARC.get(word, word)
    return name if name in FUNCTIONS else ""


def _in_radians(node: Node) -> Node:
    """An angle in degrees as a number: sin 30° is 1/2."""
    if node.op != "quantity" or node.value != DEGREE:
        return node
    return Node("div", (Node("mul", (node.args[0], const("pi"))), number(180)))


def _signed(sign: str, node: Node) -> Node:
    if sign in (r"\pm", r"\mp"):
        return Node(sign[1:], (number(0), node))
    if sign == "-" and node.op == "quantity":
        return Node("quantity", (Node("neg", node.args),), node.value)
    return Node("neg", (node,)) if sign == "-" else node


def _plus(one: Node, other: Node) -> Node:
    """A sum; of quantities only where both have the same unit."""
    if "quantity" in (one.op, other.op):
        if one.op != other.op or one.value != other.value:
            raise Unreadable("a sum of different units")
        return Node("quantity", (_plus(one.args[0], other.args[0]),), one.value)
    return Node("add", (*one.args, other) if one.op == "add" else (one, other))


def _times(one: Node, other: Node) -> Node:
    """A product; a number times a matrix goes into the entries, times a quantity into its number."""
    if other.op == "quantity" and one.is_scalar and one.op != "quantity":
        return Node("quantity", (_times(one, other.args[0]),), other.value)
    if one.op == "matrix" and other.is_scalar:
        one, other = other, one
    if other.op == "matrix" and one.is_scalar:
        return Node("matrix", tuple(_times(one, entry) for entry in other.args), other.value)
    if not (one.is_scalar and other.is_scalar) or "quantity" in (one.op, other.op):
        raise Unreadable("a product of what cannot be multiplied")
    return Node("mul", (*one.args, other) if one.op == "mul" else (one, other))


def _mixed(whole: Node, part: Node) -> Node | None:
    r"""1\frac{4}{5}: a whole number just before a proper fraction of whole numbers. Before any other it is refused."""
    plain = part.op == "div" and all(arg.op == "num" and arg.value.denominator == 1 for arg in part.args)
    if not (plain and whole.op == "num" and whole.value.denominator == 1):
        return None
    above, below = (arg.value for arg in part.args)
    if not 0 < above < below:
        raise Unreadable("a mixed number without a proper fraction")
    return number(whole.value + above / below)


def with_unit(node: Node, unit: Unit) -> Node:
    """A number with its unit. Raises Unreadable where there is no number, or a unit already."""
    if not node.is_scalar or node.op in ("quantity", "approx"):
        raise Unreadable("a unit behind what is no number")
    if unit.count != 1:
        node = Node("mul", (node, number(unit.count)))
    return Node("quantity", (node,), Unit(unit.factor, unit.powers)) if unit.powers else node


def _rows(items: tuple[Node, ...]) -> Node:
    """[[1,2],[3,4]] as a matrix."""
    if len({len(item.args) for item in items}) != 1 or any(
        item.op == "interval" and item.value != "[]" for item in items
    ):
        raise Unreadable("rows of unequal length")
    return Node("matrix", tuple(entry for item in items for entry in item.args), (len(items), len(items[0].args)))
