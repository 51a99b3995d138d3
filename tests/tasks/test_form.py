"""Reading the one answer of a reply: each form undoes itself, thinking is no answer, and several answers are none."""

import time

import pytest

from zifio.tasks.form import ASK, boxes, final_answer, split_thinking, unboxed, wrap

FORMS = ("tags", "boxed", "free")


@pytest.mark.parametrize(
    ("text", "thinking", "rest", "is_open"),
    [
        ("<think>6+1</think>7", "6+1", "7", False),
        ("6+1</think>7", "6+1", "7", False),  # the template opened it
        ("<think>a</think>b</think>7", "a</think>b", "7", False),
        ("<think>a</think>7<think>b", "a", "7<think>b", True),
        ("<think>7", "7", "", True),
        ("7", "", "7", False),
        ("well <think>7", "7", "well ", True),
        ("", "", "", False),
    ],
)
def test_thinking_apart(text, thinking, rest, is_open):
    assert split_thinking(text) == (thinking, rest, is_open)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("working", ["", "6+1=7", "two\nlines: the first", "a < b > c", "<think>hm</think>"])
@pytest.mark.parametrize("answer", ["15", "x < y", "(1, 2)", "\\frac{1}{2}", "3.5"])
def test_reading_undoes_writing(form, working, answer):
    assert final_answer(wrap(working, answer, form), form) == (answer, "")
    assert final_answer(f"<think>{wrap('', '14', form)}</think>\n{wrap(working, answer, form)}", form)[0] == answer
    assert ASK[form]


@pytest.mark.parametrize("form", FORMS)
def test_thinking_that_never_ends_gives_no_answer(form):
    for reply in (f"<think>{wrap('', '15', form)}", f"a</think><think>{wrap('', '15', form)}", "<think>15</think>", ""):
        answer, fault = final_answer(reply, form)
        assert not answer and fault


@pytest.mark.parametrize("form", FORMS)
def test_two_answers_are_none(form):
    one, other = wrap("", "15", form), wrap("", "14", form)
    for reply in (f"{one}\n{other}", f"{other}\n{one}", f"{one}\nor {other}"):
        assert final_answer(reply, form)[1]


@pytest.mark.parametrize(
    ("reply", "form", "answer"),
    [
        ("so\n<answer> 15 </answer>\n", "tags", "15"),
        ("15", "tags", ""),
        ("</answer>15<answer>", "tags", ""),
        ("<answer>15</answer> or so", "tags", ""),
        ("it is \\boxed{15}, so \\boxed{15}.", "boxed", "15"),
        ("\\boxed{a}{b}", "boxed", "a"),
        ("\\boxed{\\boxed{5}}", "boxed", "\\boxed{5}"),
        ("\\boxed{15", "boxed", ""),
        ("\\boxed{15} and \\boxed{", "boxed", "15"),
        ("The answer is **15**.", "free", "15"),
        ("so\n#### 15", "free", "15"),
        ("Answer: $15$", "free", "15"),
        ("15.", "free", "15"),
        ("first 14\nthen 15", "free", ""),
        ("The answer is 15\nor 14", "free", ""),
    ],
)
def test_what_a_reply_says(reply, form, answer):
    assert final_answer(reply, form)[0] == answer


def test_boxes_are_found_and_opened():
    text = "a \\boxed{x^{2}} b \\boxed{{}} c"
    assert boxes(text) == ["x^{2}", "{}"]
    assert unboxed(text) == "a x^{2} b {} c"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", ["<answer>", "\\boxed{", "\\boxed{1}", "{", "}", "answer is ", "\n", "*", "a"])
def test_a_megabyte_is_read_in_no_time(form, part):
    start = time.process_time()
    final_answer(part * (1_000_000 // len(part)), form)
    assert time.process_time() - start < 5  # quadratic work would take minutes
