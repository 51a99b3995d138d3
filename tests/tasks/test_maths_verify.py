"""Whole responses: where the answer stands, several answers, golds, and mathematics as a verdict."""

import pytest

from zifio.tasks.maths.extract import find
from zifio.tasks.maths.verify import gold_answer, verify

FOUND = {
    r"So we get $\boxed{42}$.": "42",
    r"Hence \boxed{\frac{1}{\sqrt{2}}}.": r"\frac{1}{\sqrt{2}}",
    r"\boxed{\{1, 2\}}": r"\{1, 2\}",
    r"\boxed 7": "7",
    r"First \boxed{3}, as said: \boxed{3}": "3",
    "<think>maybe 5</think><answer>42</answer>": "42",
    "<think>\\boxed{1} or \\boxed{2}</think>It is \\boxed{42}": "42",
    "<answer>\n\\boxed{42}\n</answer>": "42",
    "<answer>$42$</answer>": "$42$",
    "We add.\n#### 42": "42",
    "#### 1,234\n": "1,234",
    "The answer is 42.": "42",
    "Thus, the final answer is: **42**.": "42",
    "**Answer:** 42": "42",
    "The answer is $\\frac{1}{2}$. That was easy.": "$\\frac{1}{2}$",
    "The answer is 3.5 because it is.\nDone.": "3.5 because it is",
    "Therefore the answer is\n\\[ x = 4 \\]": "x = 4",
    "5+5=<<5+5=10>>10 apples\nA: 10": "10",
    "2 + 2 = 4\n42": "42",
    "It follows that\n$x = 42$": "$x = 42$",
    "So she makes $18 every single day.": "18",
    "Total: 42": "42",
}


@pytest.mark.parametrize("response", FOUND)
def test_the_answer_is_found(response: str):
    found = find(response)
    assert found.fault == "" and found.stated[0].strip(" $") == FOUND[response].strip(" $")


FAULTS = {
    "": "an empty response",
    "   \n ": "an empty response",
    "<think>it is 42": "the thinking does not end",
    "<think>a</think><answer>42": "tags do not match",
    "42</answer>": "tags do not match",
    "<answer><answer>42</answer></answer>": "tags do not match",
    "<answer></answer>": "an empty answer",
    "There are 17 or 18 of them in all.": "2 numbers",
    "I do not know what to say here.": "no answer",
    "It is either 5 or nothing at all.": "and none of them marked",
    "".join(f"\\boxed{{{n}}}" for n in range(100)): "more than 20",
    "\\boxed{1}" * 1000: "more than 200",
    "the answer is 1. " * 1000: "more than 200",
}


@pytest.mark.parametrize("response", FAULTS)
def test_what_states_no_answer(response: str):
    assert FAULTS[response] in find(response).fault
    assert verify(response, "42").outcome == "wrong"


HEDGES = [
    r"\boxed{42} or \boxed{43}", r"\boxed{43} or \boxed{42}", "<answer>42</answer><answer>43</answer>",
    "<answer>42</answer> \\boxed{43}",
    r"\boxed{42, 43}", r"\boxed{42 \text{ or } 43}", "#### 42\n#### 43", "The answer is 42. The answer is 43.",
    "<answer>42 or 43</answer>",
    "The answer is 42 or 43.", r"\boxed{\{42,43\}}", r"\boxed{42\pm1}", "<answer>41, 42, 43</answer>",
    r"\boxed{42} \boxed{\text{not }42}",
    "Answer: 43\nAnswer: 42", r"\boxed{[41,43]}", "#### 43\n\\boxed{42}", r"\boxed{42 = 43}", "The answer is not 42.",
    "42 43", "41\n42 or 43",
]  # fmt: skip


@pytest.mark.parametrize("response", HEDGES)
def test_hedging_pays_nothing(response: str):
    verdict = verify(response, "42")
    assert verdict.outcome == "wrong" and verdict.reward == 0 and verdict.reason


def test_the_same_answer_in_two_forms_is_one():
    assert verify(r"\boxed{\frac12}, that is, \boxed{0.5}", "0.5").outcome == "right"
    assert verify("<answer>x = 5</answer> \\boxed{5}", "5").outcome == "right"
    assert verify("#### 1,000\nThe answer is 7 if you like. \\boxed{1000}", "1000").outcome == "right"


def test_parts_and_reasons():
    verdict = verify("The answer is 5.", "6")
    assert verdict.parts == {"accuracy": 0.0, "format": 1.0} and verdict.reason == "'5' is not '6': another number"
    assert verify("5", "5").parts == {"accuracy": 1.0, "format": 0.0}
    assert "cannot be read" in verify(r"\boxed{\int x}", "6").reason
    assert "could not be shown equal" in verify(r"\boxed{x^{10^9}-x^{10^9}}", "0").reason


def test_golds_as_solutions():
    assert verify("18", "She sells 16 - 7 = 9.\n9 * 2 = 18\n#### 18").outcome == "right"
    assert verify("18", r"Thus $\boxed{18}$.").outcome == "right"
    assert gold_answer("#### 1,234") == "1,234"
    for bad in ("", "  ", "#### 1\n#### 2", r"\boxed{1} \boxed{2}", r"\boxed{", r"\boxed{\oint}"):
        with pytest.raises(ValueError, match="gold"):
            verify("18", bad)


def test_the_second_opinion_is_told_and_decides_nothing():
    pytest.importorskip("math_verify", reason="pip install math-verify")
    verdict = verify(r"\boxed{1/2004!}", "1/2006!", second_opinion=True)
    assert verdict.outcome == "wrong" and verdict.parts["second"] == 1.0 and "math-verify says equal" in verdict.reason
    verdict = verify(r"\boxed{0.5}", r"\frac12", second_opinion=True)
    assert verdict.outcome == "right" and verdict.parts["second"] == 1.0 and verdict.reason == ""


def test_long_responses_take_linear_time():
    for text in (
        "the answer is " * 50_000,
        "\\boxed{" * 50_000,
        "<answer>" * 50_000,
        "**" * 100_000,
        "#### \n" * 50_000,
        "1 " * 200_000,
    ):
        assert verify(text + "7", "42").outcome == "wrong"
