"""The measurement of verifiers: its forms are many and true to their word, and its table tells what happened."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("math_verify", reason="pip install math-verify")

from bench import verifiers
from bench.rewriting import independent, kind_of, near_misses, rewritings

GOLDS = [
    "7", "-12", "3.5", "0", "14,000", r"\frac{7}{9}", r"-\frac{2}{3}", r"5\sqrt{3}", r"2+\sqrt{7}", r"\frac{\pi}{3}",
    "3x^2-2x+5",
    "(4,-1)", r"\left(\frac{1}{2}, 3\right)", "[1,6)", r"(-\infty,4)", r"(1,3) \cup (5,\infty)", r"\{1,4,9\}",
    "2,5,8", "y = 3x - 2",
    r"\begin{pmatrix} 2 \\ -3 \end{pmatrix}", "35^\\circ", r"12 \text{ cm}", "31_5", r"\text{(D)}", r"\text{north}",
    r"4 \pm \sqrt{3}",
    "2 - 7i", r"\$45", "x=9", r"x \in [-1,4]",
]  # fmt: skip


@pytest.mark.parametrize("gold", GOLDS)
def test_ten_of_each_and_none_of_both(gold: str):
    true, false = rewritings(gold), near_misses(gold)
    assert len(true) >= 10 and len(false) >= 10
    assert not {form.text for form in true} & {form.text for form in false}


def test_numbers_are_what_they_are_said_to_be():
    """Read by Python, which knows nothing of either side."""
    for gold in ("7", "-12", "3.5"):
        plain = [
            form.text
            for form in rewritings(gold)
            if "/" in form.text or form.text.lstrip("-").replace(".", "").isdigit()
        ]
        assert len(plain) >= 3 and all(Fraction(text) == Fraction(gold) for text in plain if "\\" not in text)
        other = [form.text for form in near_misses(gold) if form.text.lstrip("-").replace(".", "").isdigit()]
        assert len(other) >= 8 and all(Fraction(text) != Fraction(gold) for text in other)


def test_the_other_parser_reads_what_it_is_needed_for():
    read = independent(r"\frac{1}{2}+\sqrt{3}")
    assert read is not None and abs(complex(read.evalf()) - (0.5 + 3**0.5)) < 1e-12
    assert independent(r"\frac{") is None and kind_of("14,000") == "number" and kind_of(r"\frac12") == "expression"


def test_the_rates_of_our_verifier_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, page = tmp_path / "golds.jsonl", tmp_path / "verifiers.md"
    file.write_text("".join(json.dumps({"answer": gold}) + "\n" for gold in GOLDS))
    page.write_text(f"before\n{verifiers.BEGIN}\nyesterday\n{verifiers.END}\nafter\n")
    assert verifiers.main([str(file), "--peer-every", "40", "--write", str(page)]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| zifio")]
    assert len(rows) == 2
    for row in rows:
        rejects, accepts, broken = row[6].strip(), row[8].split()[0], row[10].strip()
        assert (rejects, accepts, broken) == ("0", "0", "0"), row
    text = page.read_text()
    assert (
        text.startswith("before\n")
        and text.endswith("after\n")
        and "yesterday" not in text
        and "| math-verify |" in text
    )


def test_wilsons_upper_end():
    assert verifiers.upper(0, 0) == 1.0
    assert verifiers.upper(0, 100) == pytest.approx(0.0370, abs=1e-4)
    assert verifiers.upper(5, 100) == pytest.approx(0.1118, abs=1e-4)
