"""Steps: nothing is lost in cutting and in going to others' formats and back; labels agree, or are dropped."""

from __future__ import annotations

import json
import random

import pytest

from zifio.config import ConfigError
from zifio.tasks.steps import (
    Solution,
    Stepwise,
    alternatives_prm800k,
    called_wrong,
    consensus,
    first_error,
    from_prm800k,
    from_row,
    from_stepwise,
    localisation,
    majority,
    split_steps,
    to_prm800k,
    to_stepwise,
    until_first_error,
)
from zifio.tasks.sums import ChainMod, ChainSum
from zifio.tasks.task import Problem, render_response

PHASE_2 = {
    "labeler": "e90a38f3", "timestamp": "2022-07-30T14:02:33", "generation": 9,
    "is_quality_control_question": False, "is_initial_screening_question": False,
    "question": {
        "problem": "How many?", "ground_truth_solution": "Count.", "ground_truth_answer": "7",
        "pre_generated_steps": ["I count.", "That is 8.", "# Answer\n\n8"], "pre_generated_answer": "8",
        "pre_generated_verifier_score": 0.4,
    },
    "label": {
        "steps": [
            {"completions": [{"text": "I count.", "rating": 0, "flagged": None}], "human_completion": None,
             "chosen_completion": 0},
            {"completions": [{"text": "That is 8.", "rating": -1, "flagged": False},
                             {"text": "That is 7.", "rating": 1, "flagged": False}],
             "human_completion": None, "chosen_completion": None},
        ],
        "total_time": 38480, "finish_reason": "found_error",
    },
}  # fmt: skip


def solution(text: str, *labels: int | None) -> Solution:
    """A labelled solution."""
    return Solution("task/train/0/1", "1+2", "3", tuple(split_steps(text)), labels, "3", "right", "ada")


@pytest.mark.parametrize(
    "text, steps",
    [
        ("<think>6+1=7-1=6</think><answer>6</answer>", ["<think>6+1=7", "-1=6", "</think><answer>6</answer>"]),
        ("<think>2-5=-3+5= 2</think><answer>2</answer>", ["<think>2-5=-3", "+5= 2", "</think><answer>2</answer>"]),
        ("<think>7,6,15</think><answer>15</answer>", ["<think>7", ",6", ",15", "</think><answer>15</answer>"]),
        ("<think></think><answer>6</answer>", ["<think></think><answer>6</answer>"]),
        ("<think>6+1=7-", ["<think>6+1=7", "-"]),
        ("First.\n\n  \nThen x = 2. So y = 3.\nEnd", ["First.\n\n  \n", "Then x = 2. So y = 3.\n", "End"]),
        ("We add. It is 7! So?", ["We add. ", "It is 7! ", "So?"]),
        ("a\nb</think>It is 3.\nSo \\boxed{3}", ["a\n", "b", "</think>It is 3.\n", "So \\boxed{3}"]),
        ("one", ["one"]),
        ("", []),
    ],
)
def test_steps(text: str, steps: list[str]):
    assert split_steps(text) == steps


def test_steps_joined_are_the_text_whatever_it_is():
    rng = random.Random(1)
    alphabet = ["<think>", "</think>", "<answer>", "\n", " ", "=", "-", "3", "12", ",", ".", "! ", "a", "é", "\r\n"]
    for _ in range(3000):
        text = "".join(rng.choices(alphabet, k=rng.randrange(12)))
        steps = split_steps(text)
        assert "".join(steps) == text
        assert len(steps) < 2 or all(step.strip() for step in steps), (text, steps)


@pytest.mark.parametrize("working", ["chained", "aligned", "steps", "totals"])
@pytest.mark.parametrize("task", [ChainSum(digits=2), ChainMod(), ChainMod(modulus=97)], ids=str)
def test_the_steps_of_a_true_working_are_all_good(task: ChainSum | ChainMod, working: str):
    task = task.model_copy(update={"working": working})
    assert isinstance(task, Stepwise)
    for index in range(50):
        problem = task.problem("train", index, 1)
        steps = split_steps(task.document(problem, shows_working=True))
        n_terms = len(problem.prompt.removesuffix(f")%{getattr(task, 'modulus', 0)}").replace("-", "+").split("+"))
        assert task.check_steps(problem, steps) == [1] * (n_terms - 1) + [None]


SUM = Problem("id", "6+1-1+9", "15", "6+1=7-1=6+9=15")


@pytest.mark.parametrize(
    "response, labels",
    [
        ("<think>6+1=7-1=6+9=14</think><answer>14</answer>", [1, 1, -1, None]),
        ("<think>6+1=7-1=6+8=14</think><answer>14</answer>", [1, 1, 0, None]),  # true, and another operand
        ("<think>6+1=7+0=7-1=6+9=15</think><answer>15</answer>", [1, 0, 0, 0, None]),  # padded: from there off course
        ("<think>6+1=7-1=6+9=15+0=15</think><answer>15</answer>", [1, 1, 1, 0, None]),
        ("<think>6+1=8-1=7+9=16</think><answer>16</answer>", [-1, 0, 0, None]),  # true from a false total
        ("<think>-1=6</think><answer>6</answer>", [-1, None]),  # from no total at all
        ("<think>6+1=7,what</think><answer>6</answer>", [1, -1, None]),
        ("<think>6+1=" + "9" * 5000, [-1]),
        ("<think></think><answer>15</answer>", [None]),
        ("", []),
    ],
)
def test_what_is_said_of_steps(response: str, labels: list[int | None]):
    assert ChainSum().check_steps(SUM, split_steps(response)) == labels


def test_a_working_is_faultless_when_all_its_steps_are_good():
    """The verdict's process part and the steps' labels are one judgement."""
    rng, task = random.Random(3), ChainMod(min_terms=2, max_terms=4)
    seen = set()
    for index in range(300):
        problem = task.problem("train", index % 20, 1)
        working = list(problem.working)
        for _ in range(rng.randrange(2)):
            working[rng.randrange(len(working))] = rng.choice("0123456789+=")
        response = render_response("".join(working), problem.gold)
        labels = task.check_steps(problem, split_steps(response))[:-1]
        n_true = problem.working.count("=")
        faultless = task.score(problem, response).parts["process"] == 1.0
        assert faultless == (labels == [1] * n_true), response
        seen.add(faultless)
    assert seen == {True, False}


def test_first_errors():
    assert first_error([1, 0, None]) is None and first_error([1, -1, -1]) == 1
    assert until_first_error([1, -1, 1, -1]) == (1, -1, None, None)
    assert until_first_error([1, 0, None]) == (1, 0, None)


def test_the_majority_needs_more_than_any_other():
    assert majority([0, 2, 0]) == 0 and majority(["a", "b", "a", "c"]) == "a"
    assert majority(["a", "b"]) is None and majority([]) is None


def test_labellers_agree_on_the_first_error_or_the_solution_is_dropped():
    assert consensus([[1, -1, 1], [1, -1, -1]]) == (1, -1, None)
    assert consensus([[1, -1, 1], [1, 1, 1]]) is None
    assert consensus([[1, 0, None], [1, 1, 1], [1, 1, None]]) == (1, None, 1)
    assert consensus([[1, 0]]) == (1, 0)


def test_localisation_is_the_harmonic_mean_of_both_accuracies():
    found = localisation([0, 2, None, None, 1, None], [0, 1, 2, None, None, None])
    assert found is not None
    assert (found.error_accuracy, found.correct_accuracy) == (1 / 3, 2 / 3)
    assert found.f1 == pytest.approx(2 / (3 + 1.5)) and (found.n_error, found.n_correct) == (3, 3)
    assert localisation([None, None], [0, None]).f1 == 0.0  # type: ignore[union-attr]
    assert localisation([0, 1], [0, 1]) is None


@pytest.mark.parametrize("scores, place", [([0.9, 0.5, 0.49, 0.1], 2), ([0.5], None), ([], None)])
def test_below_one_half_a_step_is_called_wrong(scores: list[float], place: int | None):
    assert called_wrong(scores) == place


def test_prm800k_is_read():
    """Of the second phase: alternatives stand apart, what nobody labelled stays."""
    found = from_prm800k(json.loads(json.dumps(PHASE_2)))
    assert found.steps == ("I count.\n", "That is 8.\n", "# Answer\n\n8")
    assert found.labels == (0, -1, None)
    assert (found.prompt, found.gold, found.answer, found.outcome) == ("How many?", "7", "8", "")
    (other,) = alternatives_prm800k(json.loads(json.dumps(PHASE_2)))
    assert (other.steps, other.labels, other.answer) == (("I count.\n", "That is 7.\n"), (0, 1), "")


def test_prm800k_of_the_first_phase_is_read():
    """There people choose among completions, or write their own, and nothing was made before."""
    step = {"completions": [{"text": "a", "rating": -1}, {"text": "b", "rating": 1}], "human_completion": None}
    own = {"completions": [{"text": "c", "rating": -1}], "chosen_completion": None,
           "human_completion": {"text": "d", "source": "human", "flagged": False}}  # fmt: skip
    question = {"problem": "p", "ground_truth_answer": "d", "pre_generated_steps": None}
    row = {
        "question": question,
        "label": {"steps": [step | {"chosen_completion": 1}, own], "finish_reason": "solution"},
    }
    found = from_prm800k(row)
    assert (found.text, found.labels) == ("b\nd", (1, 1))
    others = [(one.text, one.labels) for one in alternatives_prm800k(row)]
    assert others == [("a\n", (-1,)), ("b\nc", (1, -1))]


TEXTS = ["<think>1+1=2+1=3</think><answer>3</answer>", "So.\nThen.\nEnd.", "So.\n\nThen.\n\nEnd.", "So. Then. End."]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("labels", [(1, 1, 1), (1, -1, None), (1, 0, -1), (None, None, None), (-1, None, None)])
def test_there_and_back(text: str, labels: tuple[int | None, ...]):
    """Through JSON. Ours and PRM800K lose nothing; stepwise supervision has no 0 and ends with the labels."""
    one = solution(text, *labels)
    assert from_row(json.loads(json.dumps(one.row())), "here") == one
    assert from_row(json.loads(json.dumps(to_prm800k(one))), "here") == one
    back = from_row(json.loads(json.dumps(to_stepwise(one))), "here")
    n = labels.index(None) if None in labels else 3
    assert back.labels == tuple(1 if label == 0 else label for label in labels[:n])
    assert n < 3 or back.steps == one.steps
    assert (back.problem_id, back.outcome, back.gold) == (one.problem_id, one.outcome, one.gold)


def test_trl_reads_our_rows():
    """The keys and types of its own example."""
    row = to_stepwise(solution("So.\nThen.\nEnd.", 1, 0, -1))
    assert row["completions"] == ["So.", "Then.", "End."] and row["labels"] == [True, True, False]
    assert from_stepwise({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}).steps == ("a\n", "b")


@pytest.mark.parametrize(
    "row, said",
    [
        ({}, "steps: wanted a list of texts"),
        ({"steps": ["a"], "labels": [2]}, "labels: wanted 1, 0, -1 or null"),
        ({"steps": ["a"], "labels": [1]}, "problem_id: wanted a text"),
        ({"prompt": "p", "completions": ["a", "b"], "labels": [True]}, "labels: wanted true or false"),
        ({"prompt": "p", "completions": "a", "labels": [True]}, "completions: wanted a list"),
        ({"label": {"steps": []}}, "wanted `question`"),
        ({"label": {"steps": [{"completions": []}]}, "question": {"problem": "p"}}, "step 1: wanted a completion"),
        ({"label": {"steps": [3]}, "question": {"problem": "p"}}, "step 1: wanted a completion"),
        (
            {
                "label": {"steps": [{"completions": [{"text": "a", "rating": 1}], "chosen_completion": "0"}]},
                "question": {"problem": "p"},
            },
            "step 1: wanted a completion",
        ),
    ],
)
def test_rows_that_cannot_be_read_say_so(row: dict, said: str):
    with pytest.raises(ConfigError, match="line 3: .*" + said.replace("?", r"\?")) as caught:
        from_row(row, "line 3")
    assert len(str(caught.value)) < 400
