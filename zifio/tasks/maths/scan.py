"""From the text of an answer to tokens: one spelling for what LaTeX, Unicode and plain text write differently.

Try it alone: `python -c "from zifio.tasks.maths.scan import scan; print(scan(r'\\dfrac12'))"`
"""

import re
from typing import Literal, NamedTuple

LONGEST = 2000  # characters of an answer
_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "‐": "-", "‑": "-", "—": "-", "﹣": "-", "＋": "+", "×": r"\cdot ", "·": r"\cdot ",
        "⋅": r"\cdot ", "∙": r"\cdot ", "∗": "*", "÷": r"\div ", "⁄": "/", "∕": "/", "π": r"\pi ", "∞": r"\infty ",
        "√": r"\sqrt ", "±": r"\pm ", "∓": r"\mp ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ",
        "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}",
        "°": r"^\circ ", "º": r"^\circ ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "φ": r"\phi ",
        "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
        "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
        "\u2061": "", "\u200b": "",
        "“": '"', "”": '"', "’": "'", "‘": "'", "，": ", ", "（": "(", "）": ")", "＝": "=", "％": "%", "￥": "¥",
        "⟨": r"\langle ", "⟩": r"\rangle ",
    }
)  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SPACES = re.compile(
    r"(\\\\)|\\[,;:! ]|\\(?:quad|qquad|displaystyle|textstyle|limits|nolimits|thinspace|hfill)(?![A-Za-z])|~"
)
_SIZES = re.compile(r"\\(?:left|right|middle|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|biggl|biggr)(?![A-Za-z])\.?")
_SAME = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom", r"\tbinom": r"\binom",
    r"\leq": r"\le", r"\leqslant": r"\le", r"\geq": r"\ge", r"\geqslant": r"\ge", r"\neq": r"\ne", r"\times": r"\cdot",
    r"\ast": "*", r"\lt": "<", r"\gt": ">", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lvert": "|", r"\rvert": "|",
    r"\vert": "|", r"\varnothing": r"\emptyset", r"\degree": r"^\circ", r"\lbrack": "[", r"\rbrack": "]",
    r"\colon": ":", r"\backslash": r"\setminus", r"\simeq": r"\approx", r"\euro": "€",
    r"\pounds": "£",
}  # fmt: skip
_TEXT_WORDS = "text textbf textit textrm mbox hbox mathrm mathbf mathit textnormal operatorname mathsf texttt"
TEXTS = frozenset("\\" + word for word in _TEXT_WORDS.split())
_TOKEN = re.compile(r"\s+|\d+\.(?=\\overline)|\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\\.|[A-Za-z]+|\*\*|<=|>=|!=|.", re.DOTALL)
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d]|,\d)")
_FLOAT = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)(?:E([+-]?\d{1,4})|e(\+?\d{1,4}|-\d{2,4}))(?![\w.])")
_FLOAT_POINT = re.compile(r"(?<![\w.])(\d+\.\d+)e(-\d)(?![\w.])")

Kind = Literal["number", "word", "command", "text", "sign"]


class Token(NamedTuple):
    """A piece of an answer, and whether a space stood before it."""

    kind: Kind
    text: str
    spaced: bool = False


class Unreadable(ValueError):
    """The text is no answer that this grammar knows."""


def tidy(text: str) -> str:
    """The text with one spelling for each thing. Raises Unreadable when it is too long or its dollars are odd."""
    if len(text) > LONGEST:
        raise Unreadable(f"longer than {LONGEST} characters")
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda found: "^{" + found[0].translate(_RAISED) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda found: "_{" + found[0].translate(_LOWERED) + "}", text)
    text = re.sub(r"√\s*(\d+)", r"\\sqrt{\1}", text).translate(_UNICODE)
    text = re.sub(r"(?<=\d)(?:,\\!\s*|\{,\}\s*|\\,)(?=\d{3}(?!\d))", "", text)
    text = _SIZES.sub(" ", _SPACES.sub(lambda found: found[1] or " ", text))
    text = _without_delimiters(text.strip())
    text = _FLOAT.sub(lambda found: f"({found[1]}*10^{{{found[2] or found[3]}}})", text)
    return re.sub(r"(?<=[^\s.])\s*[.,;]$", "", _FLOAT_POINT.sub(r"(\1*10^{\2})", text).strip())


def _without_delimiters(text: str) -> str:
    r"""Without the dollars and brackets that only say "here is mathematics"; `$18` alone is an amount of money."""
    text = re.sub(r"(\\\\)|\\[()\[\]]", lambda found: found[1] or " ", text)
    bare = [found.start() for found in re.finditer(r"(?<!\\)\$", text)]
    if len(bare) % 2 == 0:
        return re.sub(r"(?<!\\)\$", " ", text)
    if len(bare) == 1 and re.match(r"\$\s*-?[\d.]", text[bare[0] :]):
        return text.replace("$", r"\$")
    raise Unreadable("an odd dollar sign")


def joined(text: str) -> str:
    """The text with `12,345` read as one number; (12,345) is a pair."""

    def one(found: re.Match[str]) -> str:
        before, after = text[: found.start()].rstrip(), text[found.end() :].lstrip()
        paired = before.endswith(("(", "[", "\\{")) and after.startswith((")", "]", "\\}"))
        return found[0] if paired else found[0].replace(",", "")

    return _GROUPED.sub(one, text)


def scan(text: str) -> list[Token]:
    """The tokens of a tidy text. Raises Unreadable where a brace is not closed."""
    tokens: list[Token] = []
    at, spaced = 0, False
    while at < len(text):
        found = _TOKEN.match(text, at)
        assert found is not None, "every character is some token"
        piece, at = found[0], found.end()
        if piece.isspace():
            spaced = True
            continue
        piece = _SAME.get(piece, piece)
        kind: Kind = "sign"
        if piece in TEXTS:
            piece, at = group(text, at)
            kind = "text"
        elif piece == "^\\circ":
            tokens.append(Token("sign", "^", spaced))
            piece, kind, spaced = "\\circ", "command", False
        elif piece[0] == "\\" and piece[-1].isalpha():
            kind = "command"
        elif piece[0] in "0123456789" or (piece[0] == "." and len(piece) > 1):
            kind = "number"
        elif piece.isalpha() and piece.isascii():
            kind = "word"
        tokens.append(Token(kind, piece, spaced))
        spaced = False
    return tokens


def group(text: str, at: int) -> tuple[str, int]:
    """What stands in the braces that open at or after `at`, and the place behind them. Raises Unreadable."""
    while at < len(text) and text[at].isspace():
        at += 1
    if at >= len(text) or text[at] != "{":
        raise Unreadable("a command without its braces")
    depth = 0
    for place in range(at, len(text)):
        if text[place] in "{}" and (place == 0 or text[place - 1] != "\\"):
            depth += 1 if text[place] == "{" else -1
            if depth == 0:
                return text[at + 1 : place], place + 1
    raise Unreadable("a brace that is not closed")
