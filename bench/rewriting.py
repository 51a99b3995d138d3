r"""True rewritings and near misses of answers, made without the checker that they are to test.

Rewritings are true by construction: an identity around the gold (`\frac{2(E)}{2}`, `(E)+7-7`), another spelling of the
same LaTeX, an order that does not matter. Near misses are false by construction, and those of expressions are kept only
when another parser (latex2sympy2-extended, through math-verify) finds other values at several points.

Try it alone: `python -c "from bench.rewriting import rewritings; print(rewritings(r'\frac{3}{4}'))"`
"""

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
_BRACKETS = {"(": ")", "[": "]", "\\{": "\\}"}
_POINTS = (Fraction(17, 7), Fraction(-23, 11), Fraction(131, 37))


class Form(NamedTuple):
    """An answer and how it was made."""

    how: str
    text: str


WRAPPERS: tuple[Callable[[str], str], ...] = (
    lambda text: f"We compute and find $\\boxed{{{text}}}$.",
    lambda text: f"<think>Let me see.</think><answer>{text}</answer>",
    lambda text: f"Adding it all up.\n#### {text}",
    lambda text: f"Therefore, the final answer is ${text}$.",
    lambda text: f"**Final answer:** \\[\\boxed{{{text}}}\\]",
)


def kind_of(gold: str) -> str:
    """ "number" for what is a number in decimal notation, else "expression"."""
    return "number" if _plain_number(gold) is not None else "expression"


def _plain_number(gold: str) -> Fraction | None:
    bare = re.sub(r"\\!|(?<=\d),\s*(?=(?:\\!\s*)?\d{3})|^\\\$|\s", "", gold)
    return Fraction(bare) if _NUMBER.fullmatch(bare) else None


def rewritings(gold: str) -> list[Form]:
    """At least ten other ways to write the gold, all of them true."""
    value = _plain_number(gold)
    forms = _true_numbers(value) if value is not None else _true_expressions(gold)
    if "\\$" in gold:  # it has a unit, so another is no rewriting
        forms = [form for form in forms if form.how != "unit"] + [Form("as given", gold)]
    return list(dict.fromkeys(forms))


def near_misses(gold: str) -> list[Form]:
    """At least ten answers that look like the gold and are not, where that many can be proven false."""
    value = _plain_number(gold)
    forms = _false_numbers(value) if value is not None else _false_expressions(gold)
    return list(dict.fromkeys(forms))


# --- numbers


def _decimal(value: Fraction) -> str:
    """Exactly, in decimal notation; these numbers have one."""
    sign, value, digits = "-" if value < 0 else "", abs(value), 0
    while (value * 10**digits).denominator > 1:
        digits += 1
    whole = str((value * 10**digits).numerator).rjust(digits + 1, "0")
    return sign + (whole[:-digits] + "." + whole[-digits:] if digits else whole)


def _written(value: Fraction) -> str:
    """In decimal notation where it has one, else as a fraction."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return _decimal(value) if rest == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _true_numbers(value: Fraction) -> list[Form]:
    text, bottom = _decimal(value), value.denominator
    grouped = re.sub(r"(?<=\d)(?=(?:\d{3})+(?!\d))", ",", text.partition(".")[0])
    grouped += "." + text.partition(".")[2] if "." in text else ""
    forms = [
        Form("as it is", text),
        Form("thousands", grouped),
        Form("thousands in LaTeX", grouped.replace(",", "{,}")),
        Form("decimals", text + "0" if "." in text else text + ".00"),
        Form("fraction", f"\\frac{{{value.numerator * 6}}}{{{bottom * 6}}}"),
        Form("plain fraction", f"{value.numerator * 3}/{bottom * 3}"),
        Form("sum", f"{_decimal(value - 7)}+7"),
        Form("equation", f"x = {text}"),
        Form("unit", f"{text} \\text{{ apples}}"),
        Form("plain unit", f"{text} dollars"),
        Form("money", f"\\${text}" if value >= 0 else f"-\\${-value}" if bottom == 1 else text),
        Form("product", f"2 \\cdot \\frac{{{value.numerator}}}{{{2 * bottom}}}"),
        Form("power of ten", f"{_decimal(value / 1000)} \\times 10^3"),
        Form("brackets", f"({text})"),
    ]
    return [*forms, Form("root", f"\\sqrt{{{_decimal(value * value)}}}")] if value > 0 else forms


def _false_numbers(value: Fraction) -> list[Form]:
    text = _decimal(value)
    others = {
        "one more": value + 1, "one less": value - 1, "sign": -value, "tenfold": value * 10, "a tenth": value / 10,
        "a hundredfold": value * 100, "half more": value + Fraction(1, 2),
        "a thousandth more": value + Fraction(1, 1000),
        "twice": value * 2, "square": value * value, "ten more": value + 10,
        "two more": value + 2,
        "a third more": value + Fraction(1, 3), "a billionth less": value - Fraction(1, 10**9),
    }  # fmt: skip
    forms = [Form(how, _written(other)) for how, other in others.items() if other != value]
    if value not in (0, 1, -1):
        forms.append(Form("inverse", f"\\frac{{{value.denominator}}}{{{value.numerator}}}"))
    forms += [
        Form("two answers", f"{text} \\text{{ or }} {_decimal(value + 1)}"),
        Form("list", f"{text}, {_decimal(value + 1)}"),
        Form("interval", f"[{text}, {_decimal(value + 1)}]"),
    ]
    return [*forms, Form("with a variable", f"{text}x")] if value else forms


# --- everything else


def _true_expressions(gold: str) -> list[Form]:
    forms = [Form(how, text) for how, text in _spellings(gold)]
    forms += [Form(how, text) for how, text in _by_shape(gold)]
    return [form for form in forms if form.text]


def _spellings(gold: str) -> Iterator[tuple[str, str]]:
    """The same mathematics in other LaTeX."""
    yield "as it is", gold
    yield "dfrac", gold.replace("\\frac", "\\dfrac").replace("\\ddfrac", "\\dfrac")
    yield "spaces", re.sub(r"(?<![\\^_{])([-+=,])(?![^{]*\})", r" \1 ", gold) if "text" not in gold else f" {gold} "
    yield (
        "left and right",
        re.sub(r"(?<!left)(?<!right)\(", r"\\left(", gold)
        .replace(")", "\\right)")
        .replace("\\left\\left(", "\\left(")
        .replace("\\right\\right)", "\\right)")
        if _balanced(gold)
        else gold,
    )
    yield "a full stop", gold + "."
    yield "display", "\\displaystyle " + gold
    yield "thin spaces", gold.replace(" ", "\\,")
    yield (
        "pi and infinity in Unicode",
        re.sub(r"\\pi(?![a-z])", "π", gold).replace("\\infty", "∞").replace("\\cup", "∪"),
    )
    yield "text as textbf", gold.replace("\\text{", "\\textbf{").replace("\\mbox{", "\\text{")


def _balanced(gold: str) -> bool:
    """Whether its round brackets pair with each other, so that \\left ( gets its \\right )."""
    return "text" not in gold and gold.count("(") == gold.count(")") and "[" not in gold and "]" not in gold


def _by_shape(gold: str) -> Iterator[tuple[str, str]]:
    """What the shape of the gold allows."""
    parts = taken_apart(gold)
    if word := re.fullmatch(r"\\text\{\(?([A-Za-z]+)\)?\}", gold):
        name = word[1]
        yield from [("plain", name), ("text", f"\\text{{{name}}}"), ("bold", f"\\textbf{{{name}}}")]
        yield from [("mathrm", f"\\mathrm{{{name}}}"), ("quotes", f'"{name}"'), ("mbox", f"\\mbox{{ {name} }}")]
        yield from (
            [("brackets", f"({name})")] if len(name) == 1 else [("capitals", name.upper()), ("small", name.lower())]
        )
    elif numeral := re.fullmatch(r"(\d+)_\{?(\d+)\}?", gold):
        digits, base = numeral.groups()
        yield from [("no base", digits), ("braces", f"{digits}_{{{base}}}"), ("bare", f"{digits}_{base}")]
        yield from [("in words", f"{digits} \\text{{ (base {base})}}"), ("brackets", f"({digits})_{{{base}}}")]
        yield from [("a zero", f"0{digits}_{{{base}}}"), ("plain words", f"{digits} base {base}")]
    elif unit := re.fullmatch(r"(.+?)\s*(\^\\circ|\\(?:text|mbox)\{[^}]*\}(?:\^2)?|\\%)", gold):
        number, mark = unit.groups()
        yield "no unit", number
        yield from ((how, f"({text}){mark}") for how, text in _identities(number))
    elif "\\in" in gold and "\\infty" not in gold:
        yield from [("bare", gold.split("\\in")[1]), ("other spaces", gold.replace("\\in", "\\in  "))]
        low, high = re.findall(r"-?\d+", gold)
        yield from [("inequality", f"{low} \\le x \\le {high}"), ("turned", f"{high} \\ge x \\ge {low}")]
        yield from [("fractions", f"[\\frac{{{2 * int(low)}}}{{2}}, \\frac{{{3 * int(high)}}}{{3}}]")]
    elif parts is not None:
        yield from _containers(*parts)
    elif re.fullmatch(r"x=-?\d+", gold):  # an equation that is not solved is no answer to this
        yield from ((how, f"x = {text}") for how, text in _identities(gold[2:]))
    elif "=" in gold:
        left, right = gold.split("=")
        yield from [("swapped", f"{right} = {left}"), ("all on one side", f"{left} - ({right}) = 0")]
        yield from [("twice", f"2({left}) = 2({right})"), ("shifted", f"{left} + 3 = {right} + 3")]
        yield from [("negative", f"-({left}) = -({right})"), ("thrice", f"3({right}) = 3({left})")]
        yield from [("right side", right)] if re.fullmatch(r"\s*[a-z]\s*", left) else []
    elif "\\pm" in gold:
        plus, minus = gold.replace("\\pm", "+"), gold.replace("\\pm", "-")
        yield from [("both", f"{plus}, {minus}"), ("the other first", f"{minus}, {plus}")]
        yield from [("or", f"{plus} \\text{{ or }} {minus}"), ("set", f"\\{{{minus}, {plus}\\}}")]
    else:
        yield from _identities(gold)
        yield from _other_forms(gold)


def _identities(text: str) -> Iterator[tuple[str, str]]:
    """The expression with something around it that changes nothing."""
    yield "doubled and halved", f"\\frac{{2({text})}}{{2}}"
    yield "plus and minus", f"({text}) + 7 - 7"
    yield "twice minus once", f"2({text}) - ({text})"
    yield "minus minus", f"-(-({text}))"
    yield "brackets", f"({text})"
    yield "over one", f"\\frac{{{text}}}{{1}}"
    yield "a zero in front", f"0 + {text}" if not text.startswith("-") else f"0 {text}"
    yield "times one", f"1 \\cdot ({text})"


def _other_forms(gold: str) -> Iterator[tuple[str, str]]:
    """As sympy would write it, expanded, factored and in plain text."""
    read = independent(gold)
    if read is None or any(str(symbol) not in gold for symbol in read.free_symbols):
        return
    import sympy

    for how, change in (("expanded", sympy.expand), ("factored", sympy.factor), ("together", sympy.together)):
        yield how, sympy.latex(change(read))
    yield "plain", str(read).replace("I", "i") if "E" not in str(read) else gold


def taken_apart(gold: str) -> tuple[str, list[str], str] | None:
    """(opening, items, closing) of a tuple, interval, set, union, matrix or list; None for anything else."""
    if matrix := re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", gold):
        return "\\begin{pmatrix}", re.split(r"(\\\\|&)", matrix[1]), "\\end{pmatrix}"
    if "\\cup" in gold:
        return "", re.split(r"(\\cup)", gold), ""
    bare = gold.replace("\\left", "").replace("\\right", "").strip()
    for opening, closing in (("(", ")"), ("(", "]"), ("[", ")"), ("[", "]"), ("\\{", "\\}")):
        if bare.startswith(opening) and bare.endswith(closing):
            items = bare[len(opening) : -len(closing)].split(",")
            return (opening, items, closing) if len(items) > 1 else None
    items = gold.split(",")
    return ("", items, "") if len(items) > 1 and "\\!" not in gold else None


def _containers(opening: str, items: list[str], closing: str) -> Iterator[tuple[str, str]]:
    joint = ", " if opening != "\\begin{pmatrix}" else " "

    def whole(changed: list[str], a: str = opening, b: str = closing) -> str:
        return f"{a}{joint.join(changed)}{b}" if joint == ", " and "\\cup" not in changed else a + " ".join(changed) + b

    if "\\cup" in items:
        yield "parts swapped", f"{items[2]} \\cup {items[0]}"
        yield "inner spaces", gold_spaces(" ".join(items))
        yield "decimal ends", re.sub(r"(?<![\d.\\])(\d+)(?![\d.])", r"\1.0", " ".join(items))
        yield (
            "doubled ends",
            re.sub(r"(?<![\d.\\])(\d+)(?![\d.])", lambda found: f"\\frac{{{2 * int(found[1])}}}{{2}}", " ".join(items)),
        )
        return
    places = [place for place, item in enumerate(items) if item.strip() not in ("\\\\", "&") and "infty" not in item]
    plain = [place for place in places if "\\pm" not in items[place]]
    yield "spaces", whole([f"  {item.strip()} " for item in items])
    for how, change in (
        ("doubled", "\\frac{{2({})}}{{2}}"),
        ("shifted", "({})+3-3"),
        ("brackets", "({})"),
        ("negated", "-(-({}))"),
    ):
        changed = [change.format(item.strip()) if place in plain else item for place, item in enumerate(items)]
        yield how, whole(changed)
    yield (
        "over one",
        whole([f"\\frac{{{item.strip()}}}{{1}}" if place in plain else item for place, item in enumerate(items)]),
    )
    if opening == "\\begin{pmatrix}":
        yield "square brackets", whole(items, "\\begin{bmatrix}", "\\end{bmatrix}")
    elif opening == "\\{":
        yield "another order", whole(items[::-1])
    elif opening and opening in "([":
        yield "large brackets", whole(items, f"\\left{opening}", f"\\right{closing}")
        yield "larger brackets", whole(items, f"\\bigl{opening}", f"\\bigr{closing}")
    else:
        yield "a set in that order", whole(items, "\\{", "\\}")


def gold_spaces(text: str) -> str:
    """With spaces behind commas and inside brackets."""
    return re.sub(r"([(,])", r"\1 ", text)


def _false_expressions(gold: str) -> list[Form]:
    return [form for form in _mutations(gold) if form.text and _is_false(form, gold)]


def _mutations(gold: str) -> Iterator[Form]:
    """Small changes; whether each is false is for `_is_false` to prove."""
    parts = taken_apart(gold)
    if word := re.fullmatch(r"\\text\{\(?([A-Za-z]+)\)?\}", gold):
        others = [chr((ord(word[1]) - 65 + step) % 10 + 65) for step in range(1, 10)] if len(word[1]) == 1 else []
        others += [
            "west",
            "north",
            "parabola",
            "odd",
            "circle",
            "Anna",
            "both",
            "none",
            f"not {word[1]}",
            f"{word[1]} or B2",
            word[1][::-1] + "z",
            "",
        ]
        yield from (Form("other words", other) for other in others if other and other.lower() != word[1].lower())
        return
    if numeral := re.fullmatch(r"(\d+)_\{?(\d+)\}?", gold):
        yield from _other_numerals(numeral[1], int(numeral[2]))
        return
    if unit := re.fullmatch(r"(.+?)\s*(\^\\circ|\\(?:text|mbox)\{[^}]*\}(?:\^2)?|\\%)", gold):
        yield from (Form("number of a unit", f"{form.text}{unit[2]}") for form in _wrong_amounts(unit[1]))
        return
    for place, digit in ((found.start(), found[0]) for found in re.finditer(r"\d", gold)):
        for step in (1, 3, 5):
            yield Form("digit", gold[:place] + str((int(digit) + step) % 10) + gold[place + 1 :])
    for found in re.finditer(r"(?<![\^_{])[-+](?=[^{}]*)", gold):
        yield Form("sign", gold[: found.start()] + ("+" if found[0] == "-" else "-") + gold[found.end() :])
    yield Form("root dropped", re.sub(r"\\sqrt\{(\w+)\}", r"\1", gold, count=1))
    yield Form("upside down", re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\\frac{\2}{\1}", gold, count=1))
    yield Form("pi cut short", re.sub(r"\\pi(?![a-z])", "3.14", gold))
    if parts is not None:
        yield from _broken_containers(*parts)
    elif "=" in gold:
        left, right = gold.split("=")
        yield from (Form("side", f"{left} = {right} {more}") for more in ("+ 1", "- 1", "+ 2", "- x", "+ y"))
        yield from (Form("factor", f"{factor}({left}) = {right}") for factor in (2, 3, -1))
    elif "\\pm" in gold:
        plus, minus = gold.replace("\\pm", "+"), gold.replace("\\pm", "-")
        both = (plus, minus, f"{plus}, {minus}, 0", f"{plus}, {minus} + 1", f"({gold}) + 1")
        yield from (Form("branch", one) for one in both)
        more = (("+ 1", "+ 1"), ("- 1", ""), ("", "- 2"), ("+ 2", "- 2"), ("+ 5", ""))
        yield from (Form("branch", f"{plus} {a}, {minus} {b}") for a, b in more)
    elif not re.search(r"_|\\in(?!f)|\\pm|\\text|\\mbox|circ", gold):
        for more in ("+ 1", "- 1", "+ \\frac{1}{1000}", "+ 10^{-9}"):
            yield Form("added", f"{gold} {more}")
        for factor in ("-", "2", "3", "\\frac{1}{2}", "\\frac{1000001}{1000000}"):
            yield Form("factor", f"{factor}({gold})")
        yield Form("inverse", f"\\frac{{1}}{{{gold}}}")
        yield Form("square", f"({gold})^2")
        read = independent(gold)
        if read is not None and read.is_number and not read.is_rational:
            yield from (Form("rounded", str(read.evalf(digits))) for digits in (3, 5, 8) if read.is_real)


def _broken_containers(opening: str, items: list[str], closing: str) -> Iterator[Form]:
    def whole(changed: list[str], a: str = opening, b: str = closing) -> str:
        joined = (
            " ".join(changed) if {"\\cup", "\\\\", "&"} & {item.strip() for item in changed} else ", ".join(changed)
        )
        return a + joined + b

    places = [place for place, item in enumerate(items) if item.strip() not in ("\\cup", "\\\\", "&")]
    for place in places:
        item = items[place].strip()
        if "infty" not in item and "\\cup" not in items and "\\pm" not in item:
            for more in ("+ 1", "- 1", "+ \\frac{1}{100}", "+ 10", "- \\frac{1}{1000}", "+ 2", "- 3", "+ \\pi"):
                changed = f"{item} {more}"
                yield Form("item", whole([*items[:place], changed, *items[place + 1 :]]))
    if opening == "\\begin{pmatrix}":
        yield Form("item missing", whole(items[:-2]))
        return
    yield Form("item missing", whole(items[: -2 if "\\cup" in items else -1]))
    if "\\cup" in items:
        yield from (Form("item missing", one.strip()) for one in (items[0], items[2]))
        yield Form("item more", f"{''.join(items)} \\cup (77, 78)")
        yield from (
            Form("item", re.sub(r"(?<![\d.])(\d+)(?![\d.])", rf"\1 + {more}", "".join(items))) for more in (1, 2, 3)
        )
    else:
        yield Form("item more", whole([*items, "77"]))
        if opening != "\\{":
            yield (
                Form("swapped", whole([items[1], items[0], *items[2:]]))
                if items[0].strip() != items[1].strip()
                else Form("", "")
            )
    swap = {"(": "[", "[": "("}
    if len(items) == 2 and opening in swap and ("infty" not in items[0]):
        yield Form("closed for open", whole(items, swap[opening]))
    back = {")": "]", "]": ")"}
    if len(items) == 2 and closing in back and ("infty" not in items[1]):
        yield Form("open for closed", whole(items, b=back[closing]))


def _other_numerals(digits: str, base: int) -> Iterator[Form]:
    """Other digits that mean another number, and the same digits in another base."""
    for place, digit in enumerate(digits):
        for step in range(1, min(base, 6)):
            yield Form("numeral", f"{digits[:place]}{(int(digit) + step) % base}{digits[place + 1 :]}_{{{base}}}")
    yield from (Form("numeral", f"{digits}_{{{other}}}") for other in (base + 1, base + 2, 16))
    yield from (Form("numeral", f"{other}_{{{base}}}") for other in (digits + "1", "1" + digits, digits[:-1] or "0"))


def _wrong_amounts(number: str) -> Iterator[Form]:
    """Other numbers, to be given the gold's unit."""
    value = _plain_number(number)
    if value is not None:
        listing = ("two answers", "list", "interval", "with a variable")
        yield from (form for form in _false_numbers(value) if form.how not in listing)
        return
    for more in (
        "+ 1",
        "- 1",
        "+ 2",
        "+ 10",
        "- 10",
        "+ \\frac{1}{2}",
        "+ \\frac{1}{1000}",
        "- 2",
        "+ 3",
        "- \\frac{1}{7}",
    ):
        yield Form("added", f"({number} {more})")


def _is_false(form: Form, gold: str) -> bool:
    """Whether it is proven to say something else: by its structure, or by other values at the points."""
    if form.how in (
        "number of a unit",
        "numeral",
        "branch",
        "other words",
        "item missing",
        "item more",
        "closed for open",
        "open for closed",
        "item",
    ):
        return True
    if re.search(r"\\text|\\mbox|circ|_\{?\d|\\cup|\\in(?!f)|\\infty", gold):
        return form.how == "digit" and not re.search(r"\^2|_", gold) and _numbers(form.text) != _numbers(gold)
    if "=" in gold:
        return _other_equation(form.text, gold)
    if taken_apart(gold) is not None or "\\pm" in gold:
        if form.how == "swapped":
            return len(set(map(str, _flat(gold)))) > 1
        return form.how == "digit" and "^" not in gold and _flat(form.text) != _flat(gold)
    ours, theirs = independent(gold), independent(form.text)
    return ours is not None and theirs is not None and _values_differ(ours, theirs)


def _numbers(text: str) -> list[Fraction]:
    return [Fraction(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def _flat(text: str) -> list[Any]:
    """Every item of a container, read by the other parser, as numbers."""
    parts = taken_apart(text)
    items = parts[1] if parts else [text.replace("\\pm", "+")]
    return [independent(item.replace("\\pm", "+")) for item in items if item.strip() not in ("\\\\", "&")]


def _other_equation(text: str, gold: str) -> bool:
    """Whether left minus right is in no constant ratio: two points on one line, tried on the other."""
    sides = [[independent(side) for side in one.split("=")] for one in (text, gold)]
    if any(len(pair) != 2 or None in pair for pair in sides):
        return False
    ours, theirs = (pair[0] - pair[1] for pair in sides)
    names = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    ratios = []
    for shift in range(3):
        point = {name: _POINTS[(place + shift) % 3] + place + shift for place, name in enumerate(names)}
        values = [float(side.subs(point)) for side in (ours, theirs)]
        if abs(values[1]) < 1e-9:
            return False
        ratios.append(values[0] / values[1])
    return max(ratios) - min(ratios) > 1e-6


def _values_differ(ours: Any, theirs: Any) -> bool:
    names = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    for shift in range(3):
        point = {name: _POINTS[(place + shift) % 3] + place for place, name in enumerate(names)}
        try:
            values = [complex(side.subs(point).evalf(40)) for side in (ours, theirs)]
            gap = abs(complex((ours - theirs).subs(point).evalf(40)))
        except (TypeError, ValueError, AttributeError):
            return False
        if gap > 1e-11 * max(1e-3, *map(abs, values)):
            return True
    return False


@lru_cache(maxsize=20_000)
def independent(text: str) -> Any:
    """What latex2sympy2-extended reads, or None. It shares no code with our grammar."""
    from latex2sympy2_extended import latex2sympy

    text = text.replace("\\!", "").replace("\\dfrac", "\\frac")
    text = re.sub(r"\\frac\s*(\d)\s*(?=\d|\{)", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\{[^{}]*\})(\d)", r"\1{\2}", re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", text))
    try:
        read = latex2sympy(text)
    except Exception:  # a foreign parser of foreign text: whatever it raises, it did not read it
        return None
    return (
        read
        if hasattr(read, "free_symbols") and getattr(read, "is_Matrix", False) is False and hasattr(read, "evalf")
        else None
    )


__all__ = ["WRAPPERS", "Form", "independent", "kind_of", "near_misses", "rewritings"]
