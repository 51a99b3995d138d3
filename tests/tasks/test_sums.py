"""Sums: equal to reasoning-gym's, verified against Python's own arithmetic, and not to be fooled."""

from collections import Counter

import pytest
import reasoning_gym

from zifio.config import ConfigError, build
from zifio.tasks.sums import ChainMod, ChainSum, true_steps
from zifio.tasks.task import Problem, render_response

PROBLEM = Problem("id", "6+1-1+9", "15", "6+1=7-1=6+9=15")
NEGATIVE = Problem("id", "2-5+3-0", "0", "2-5=-3+3=0-0=0")
TASK = ChainSum(min_terms=2)


@pytest.fixture(scope="module")
def theirs():
    return reasoning_gym.create_dataset(
        "chain_sum", min_terms=6, max_terms=12, min_digits=1, max_digits=1, seed=11, size=3000
    )


def test_reasoning_gym_agrees_with_our_gold_on_its_own_items(theirs):
    for entry in theirs:
        prompt = entry["metadata"]["expression"].replace(" ", "")
        working = "".join(true_steps(prompt, "chained"))
        problem = Problem("theirs", prompt, entry["answer"], working)
        assert TASK.check_gold(problem).parts["process"] == 1.0
        assert theirs.score_answer(working.rsplit("=", 1)[1], entry) == 1.0
        off = str(int(entry["answer"]) + 1)
        assert TASK.score(problem, render_response("", off)).reward == theirs.score_answer(off, entry) == 0.0


def test_reasoning_gym_agrees_with_our_gold_on_our_items(theirs):
    for index in range(1000):
        problem = ChainSum().problem("held-out", index, seed=3)
        assert theirs.score_answer(problem.gold, {"answer": str(eval(problem.prompt))}) == 1.0


def test_our_distribution_is_that_of_reasoning_gym(theirs):
    def counts(prompts):
        signs = Counter(c for prompt in prompts for c in prompt if c in "+-")
        digits = Counter(c for prompt in prompts for c in prompt if c.isdigit())
        lengths = Counter((len(prompt) + 1) // 2 for prompt in prompts)
        return [{key: n / counter.total() for key, n in counter.items()} for counter in (signs, digits, lengths)]

    ours = counts([ChainSum().problem("train", index, seed=1).prompt for index in range(3000)])
    for mine, yours in zip(ours, counts([e["metadata"]["expression"].replace(" ", "") for e in theirs]), strict=True):
        assert mine.keys() == yours.keys()
        assert all(abs(mine[key] - yours[key]) < 0.03 for key in mine)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_terms_have_the_digits_that_were_asked_for(digits):
    for index in range(200):
        prompt = ChainSum(digits=digits, min_terms=3, max_terms=5).problem("train", index, seed=1).prompt
        terms = prompt.replace("-", "+").split("+")
        assert 3 <= len(terms) <= 5
        assert all(len(term) == digits and (digits == 1 or term[0] != "0") for term in terms)


@pytest.mark.parametrize(
    ("style", "working", "negative"),
    [
        ("chained", "6+1=7-1=6+9=15", "2-5=-3+3=0-0=0"),
        ("steps", "6+1=7,7-1=6,6+9=15", "2-5=-3,-3+3=0,0-0=0"),
        ("totals", "7,6,15", "-3,0,0"),
        ("aligned", "6+1= 7-1= 6+9=15", "2-5=-3+3= 0-0= 0"),
    ],
)
def test_each_style_of_working_reads_as_described(style, working, negative):
    assert "".join(true_steps("6+1-1+9", style)) == working
    assert "".join(true_steps("2-5+3-0", style)) == negative


@pytest.mark.parametrize("prompt", ["6+1-1+9", "2-5+3-0", "0-0", "9-9-9-9+1", "12+345-67"])
def test_true_steps_are_true_for_python(prompt):
    total = None
    rest = prompt
    for step in "".join(true_steps(prompt, "steps")).split(","):
        left, right = step.split("=")
        assert eval(left) == int(right)
        before, term = (left, "") if total is None else (str(total), left.removeprefix(str(total)))
        assert left.startswith(before)
        assert rest.startswith(left if total is None else term)
        rest = rest.removeprefix(left if total is None else term)
        total = int(right)
    assert rest == "" and total == eval(prompt)


def test_chain_mod_is_the_remainder_and_every_total_is_reduced():
    for modulus in (2, 7, 10, 97):
        task = ChainMod(modulus=modulus, working="totals")
        for index in range(200):
            problem = task.problem("train", index, seed=2)
            assert int(problem.gold) == eval(problem.prompt)
            assert all(0 <= int(total) < modulus for total in problem.working.split(","))
    assert ChainMod().problem("train", 0, seed=2).prompt.endswith(")%10")


def test_the_working_of_chain_mod_is_reduced_step_by_step():
    assert "".join(true_steps("3+7+2", "chained", 10)) == "3+7=0+2=2"
    assert "".join(true_steps("3+7+2", "steps", 10)) == "3+7=0,0+2=2"


WRONG_ANSWERS = [
    *("", " ", "14", "15 ", " 15", "15\n", "\t15", "+15", "015", "15.0", "15.", "15,", "1,5", "1 5", "14 15"),
    *("15 15", "15,14", "14;15", "15=15", "6+9", "=15", "-15", "--15", "1_5", "0xf", "1e1", "１５", "٠١٥"),
    *("15\u200b", "\u221215", "fifteen", "15!", "x15", "None", "nan", "inf", "[15]", "{15}", "(15)", "15\0"),
    *("15</think>", "15<think>", "\\boxed{15}", "1" * 100_000, "9" * 5000, "-" * 100, "0" * 100 + "15"),
    "".join(str(number) for number in range(30)),
]


@pytest.mark.parametrize("answer", WRONG_ANSWERS, ids=lambda text: repr(text)[:30])
def test_only_the_very_integer_is_right(answer):
    verdict = TASK.score(PROBLEM, render_response("", answer))
    assert (verdict.outcome, verdict.reward, verdict.parts["accuracy"]) == ("wrong", 0.0, 0.0)
    assert 0 < len(verdict.reason) < 200
    assert "".join(verdict.reason.split()) and TASK.score(PROBLEM, render_response(answer, "14")).reward == 0.0


@pytest.mark.parametrize("answer", ["-0", "+0", "00", "", "0.0", "O", "-"])
def test_zero_has_one_spelling(answer):
    assert TASK.score(NEGATIVE, render_response("", "0")).outcome == "right"
    assert TASK.score(NEGATIVE, render_response("", answer)).outcome == "wrong"


WRONG_WORKINGS = {
    "wrong step": "6+1=8-1=7+9=16",
    "two errors that cancel": "6+1=8-1=6+9=15",
    "wrong last step": "6+1=7-1=6+9=16",
    "skipped operand": "6+1=7+9=16",
    "skipped last": "6+1=7-1=6",
    "skipped first": "1-1=0+9=9",
    "only the total": "15",
    "only the last step": "6+9=15",
    "order changed": "6+9=15+1=16-1=15",
    "operands swapped": "1+6=7-1=6+9=15",
    "operator changed": "6+1=7+1=8+9=17",
    "one step too many": "6+1=7-1=6+9=15+0=15",
    "said twice": "6+1=7-1=6+9=15" * 2,
    "ends in a comma": "6+1=7-1=6+9=15,",
    "space": "6+1=7 -1=6+9=15",
    "space before": " 6+1=7-1=6+9=15",
    "newline": "6+1=7-1=6+9=15\n",
    "leading zero": "6+1=07-1=6+9=15",
    "unicode digit": "6+1=７-1=6+9=15",
    "digit behind": "6+1=70-1=6+9=15",
    "other style": "7,6,15",
    "expression only": "6+1-1+9",
    "short cut": "6+1-1+9=15",
}


@pytest.mark.parametrize("working", WRONG_WORKINGS.values(), ids=WRONG_WORKINGS.keys())
def test_a_false_working_does_not_pass_with_a_right_answer(working):
    verdict = TASK.score(PROBLEM, render_response(working, "15"))
    assert verdict.parts == {"accuracy": 1.0, "format": 1.0, "process": 0.0}
    assert verdict.outcome == "right" and verdict.reason


def test_a_true_working_with_another_answer_is_no_process():
    verdict = TASK.score(PROBLEM, render_response(PROBLEM.working, "16"))
    assert verdict.parts == {"accuracy": 0.0, "format": 1.0, "process": 0.0}


@pytest.mark.parametrize("style", ["chained", "aligned", "steps", "totals"])
@pytest.mark.parametrize("kind", [ChainSum, ChainMod])
def test_no_one_character_change_of_a_true_working_passes(kind, style):
    task = kind(min_terms=3, max_terms=5, working=style)
    for index in range(3):
        problem = task.problem("train", index, seed=9)
        for at in range(len(problem.working)):
            for new in ("", *"0123456789+-=,"):
                for end in (at, at + 1):
                    changed = problem.working[:at] + new + problem.working[end:]
                    process = task.score(problem, render_response(changed, problem.gold)).parts["process"]
                    assert process == (1.0 if changed == problem.working else 0.0), (problem, changed)


def test_the_reason_names_the_first_false_step():
    assert "step 2" in TASK.score(PROBLEM, render_response("6+1=7-1=5+9=14", "14")).reason
    assert "goes on" in TASK.score(PROBLEM, render_response(PROBLEM.working + "+1=16", "15")).reason


@pytest.mark.parametrize(
    "broken",
    [
        Problem("id", "6+1-1+9", "16"),
        Problem("id", "6+1-1+9", "+15"),
        Problem("id", "", ""),
        Problem("id", "15", "15"),
        Problem("id", "6*2", "12"),
        Problem("id", "-6+2", "-4"),
        Problem("id", "6 + 1", "7"),
        Problem("id", "６+1", "7"),
    ],
    ids=lambda problem: problem.prompt,
)
def test_a_broken_problem_raises_and_is_never_scored(broken):
    with pytest.raises(ValueError):
        TASK.score(broken, render_response("", broken.gold))
    with pytest.raises(ValueError):
        ChainMod().score(broken, render_response("", broken.gold))


@pytest.mark.parametrize(
    "data",
    [
        {"min_terms": 1},
        {"min_terms": 8, "max_terms": 7},
        {"digits": 0},
        {"working": "short"},
        {"min_term": 3},
    ],
    ids=str,
)
def test_impossible_options_are_refused_with_the_key(data):
    with pytest.raises(ConfigError, match=next(iter(data))):
        build(ChainSum, data, "recipe.toml")
