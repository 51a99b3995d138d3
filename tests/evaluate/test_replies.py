"""Thinking apart from answers, and the answer that votes."""

import pytest

from zifio.evaluate.replies import Said, answer_of, scored_text, wants_shape
from zifio.tasks.splits import Splits
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Split, Verdict


class Contains:
    """A task that takes any text which has the gold answer in it, and asks for no shape."""

    name = "contains"

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """Always the same."""
        return Problem("p", "say 7", "7")

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The answer alone."""
        return problem.gold

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right when the gold answer is in it."""
        right = problem.gold in response
        return Verdict("right" if right else "wrong", float(right))

    def check_gold(self, problem: Problem) -> Verdict:
        """Right."""
        return self.score(problem, problem.gold)


def test_only_tasks_of_that_shape_see_the_thinking():
    problem = ChainSum().problem("held-out", 0, 1)
    assert wants_shape(ChainSum(), problem) and wants_shape(Splits(), Splits().problem("held-out", 0, 1))
    assert not wants_shape(Contains(), problem)
    local, apart = Said("<think>a</think><answer>7</answer>"), Said("<answer>7</answer>", thinking="a")
    assert scored_text(local, True) == scored_text(apart, True) == local.text
    assert scored_text(local, False) == scored_text(apart, False) == "<answer>7</answer>"
    assert scored_text(Said("<think>the answer is 7"), False) == "", "thinking without an end answers nothing"
    assert scored_text(Said("7", thinking=""), True) == "7"


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("<answer> 7 </answer>", "7"),
        ("first 3, so <answer>7</answer> and 9", "7"),
        ("\\boxed{3} then \\boxed{\\frac{1}{2}}.", "1/2"),
        ("It is \\boxed{1", "1"),
        ("So we get 12, and then 1,234.50 in all.", "2469/2"),
        ("It is .50", "1/2"),
        ("<answer>0.5</answer>", "1/2"),
        ("<answer>1/0</answer>", "1/0"),
        ("\\boxed{-\\dfrac{6}{4}}", "-3/2"),
        ("\\boxed{x + 1/2}", "x+1/2"),
        ("\\boxed{2:30}", "2:30"),
        ("<answer>007</answer>", "7"),
        ("The total is $1,234.", "1234"),
        ("it is −5", "-5"),
        ("There are 3.\nThe **answer** is: B.", "b"),
        ("Yes.\nThat much is clear", "thatmuchisclear"),
        ("", None),
        ("  \n ", None),
        ("<answer></answer>", None),
        ("x" * 200_000 + "\\boxed{" * 1000, "\\boxed{"),
    ],
)
def test_the_answer_that_votes(content, answer):
    found = answer_of(content)
    assert found == answer or (len(content) > 1000 and found is not None and found.endswith("\\boxed{"))
