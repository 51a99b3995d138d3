"""Units of measurement: what words stand for, and how one unit is so many of another, exactly.

A word that is not in the table is a unit of its own (`18 eggs`), unless it changes what a number means.

Try it alone: `python -c "from zifio.tasks.maths.units import *; print(unit_of('square', 'feet'))"`
"""

from dataclasses import dataclass
from fractions import Fraction

INCH = Fraction(254, 10000)
POUND = Fraction(45359237, 100000000)
_TABLE: dict[str, tuple[str, Fraction]] = {
    "mm millimeter millimetre": ("m", Fraction(1, 1000)),
    "cm centimeter centimetre": ("m", Fraction(1, 100)),
    "m meter metre": ("m", Fraction(1)),
    "km kilometer kilometre": ("m", Fraction(1000)),
    "in inch": ("m", INCH),
    "ft foot": ("m", 12 * INCH),
    "yd yard": ("m", 36 * INCH),
    "mi mile": ("m", 63360 * INCH),
    "mg milligram": ("kg", Fraction(1, 10**6)),
    "g gram": ("kg", Fraction(1, 1000)),
    "kg kilogram kilo": ("kg", Fraction(1)),
    "lb pound": ("kg", POUND),
    "oz ounce": ("kg", POUND / 16),
    "s sec second": ("s", Fraction(1)),
    "min minute": ("s", Fraction(60)),
    "h hr hour": ("s", Fraction(3600)),
    "day": ("s", Fraction(86400)),
    "week wk": ("s", Fraction(604800)),
    "month": ("year", Fraction(1, 12)),
    "year yr": ("year", Fraction(1)),
    "ml mL milliliter millilitre": ("liter", Fraction(1, 1000)),
    "l L liter litre": ("liter", Fraction(1)),
    "cup": ("gallon", Fraction(1, 16)),
    "pint pt": ("gallon", Fraction(1, 8)),
    "quart qt": ("gallon", Fraction(1, 4)),
    "gallon gal": ("gallon", Fraction(1)),
    "dollar $ usd USD buck": ("dollar", Fraction(1)),
    "cent ¢ penny": ("dollar", Fraction(1, 100)),
    "euro € eur EUR": ("euro", Fraction(1)),
    "£ gbp GBP": ("sterling", Fraction(1)),
    "deg degree": ("degree", Fraction(1)),
    "rad radian": ("radian", Fraction(1)),
    "percent % percentage": ("%", Fraction(1)),
    "dozen": ("", Fraction(12)),
    "hundred": ("", Fraction(100)),
    "thousand": ("", Fraction(1000)),
    "million": ("", Fraction(10**6)),
    "billion": ("", Fraction(10**9)),
    "trillion": ("", Fraction(10**12)),
}
KNOWN = {name: entry for names, entry in _TABLE.items() for name in names.split()}
_PLURALS = {"feet": "foot", "inches": "inch", "pennies": "penny", "centuries": "century", "people": "person"}
# words that make another number of the one before them, or another claim
_MEANING_WORDS = """or and not no nor but less more than over under below above at least most minus plus times divided
    negative
    positive to from through between about around approximately roughly nearly almost almost half halves third thirds
    quarter quarters fourth fourths fifth fifths sixth sixths eighth eighths tenth tenths hundredth hundredths
    thousandth thousandths millionth factorial base mod modulo if where when either neither maybe perhaps possibly
    probably wait so is are was equals equal point zero one two three four five six seven eight nine ten eleven twelve
    twenty thirty forty fifty sixty seventy eighty ninety double twice triple each otherwise except without unless
    versus vs instead actually wrong incorrect correct then else sqrt root infinity
    inverse reciprocal opposite repeating recurring bar remainder mil mill bn mn tn grand gross score scores pair pairs
    couple couples squares cubes power powers"""
_MEANING = frozenset(_MEANING_WORDS.split())
MOST_WORDS = 5


@dataclass(frozen=True, slots=True)
class Unit:
    """`factor` of the product of base units with these exponents, sorted by name."""

    factor: Fraction
    powers: tuple[tuple[str, int], ...]
    count: Fraction = Fraction(1)
    """What words such as `thousand` make of the number before them, apart from any unit."""

    def times(self, other: "Unit", power: int = 1) -> "Unit":
        """Their product, the other one to a power."""
        powers = dict(self.powers)
        for name, exponent in other.powers:
            powers[name] = powers.get(name, 0) + exponent * power
        kept = tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))
        return Unit(self.factor * other.factor**power, kept, self.count * other.count)

    @property
    def only(self) -> str:
        """The name of its one base unit, to the first power; else ""."""
        return self.powers[0][0] if len(self.powers) == 1 and self.powers[0][1] == 1 else ""


ONE = Unit(Fraction(1), ())
PERCENT, DEGREE = Unit(Fraction(1), (("%", 1),)), Unit(Fraction(1), (("degree", 1),))


def is_known(word: str) -> bool:
    """Whether the table has it, in the singular or plural, in any case."""
    return _singular(word) in KNOWN


def word_unit(word: str) -> Unit | None:
    """The unit that one word names, or None for a word that is none."""
    name = _singular(word)
    if {name.lower(), word.lower()} & _MEANING or not (name.isalpha() or name in KNOWN):
        return None
    base, factor = KNOWN.get(name, (name.lower(), Fraction(1)))
    return Unit(factor, ((base, 1),)) if base else Unit(Fraction(1), (), factor)


def unit_of(*words: str) -> Unit | None:
    """The unit that words name, or None: `square feet`, `feet squared`, `miles per hour`, `mph`, `large eggs`."""
    if not 0 < len(words) <= MOST_WORDS or words[0].lower() in ("squared", "cubed"):
        return None
    unit, sign, power, unknown, n_known = ONE, 1, 1, [], 0
    for place, word in enumerate(words):
        low = word.lower()
        following = words[place + 1].lower() if place + 1 < len(words) else ""
        if low in ("per", "a", "an", "of", "the"):
            sign = -1 if low == "per" else sign
        elif low in ("square", "sq", "cubic", "cu"):
            power = 2 if low.startswith("s") else 3
        elif low in ("squared", "cubed"):
            continue
        elif low in ("mph", "kph"):
            unit, n_known = unit.times(KNOWN_SPEEDS[low]), n_known + 1
        else:
            one = word_unit(word)
            if one is None:
                return None
            power = {"squared": 2, "cubed": 3}.get(following, power)
            if is_known(word):
                unit, n_known = unit.times(one, sign * power), n_known + 1
            else:
                unknown.append(one.powers[0][0])
            power = 1
    if unknown:
        return unit.times(Unit(Fraction(1), ((" ".join(unknown), 1),)))
    return unit if n_known and power == 1 else None  # 5 squared is 25 of nothing


def _singular(word: str) -> str:
    if word in KNOWN:
        return word
    low = word.lower()
    if low in _PLURALS:
        return _PLURALS[low]
    for ending in ("es", "s"):
        if low.endswith(ending) and low[: -len(ending)] in KNOWN:
            return low[: -len(ending)]
    if low in KNOWN:
        return low
    return low[:-1] if len(low) > 3 and low.endswith("s") and not low.endswith("ss") else low


KNOWN_SPEEDS = {
    "mph": Unit(63360 * INCH / 3600, (("m", 1), ("s", -1))),
    "kph": Unit(Fraction(1000, 3600), (("m", 1), ("s", -1))),
}
