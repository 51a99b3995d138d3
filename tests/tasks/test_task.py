"""The shape of a response, the split, and the streams: laws that hold for every task."""

from random import Random

import pytest

from zifio.config import ConfigError
from zifio.tasks.calculator import Calculator
from zifio.tasks.catalog import TaskConfig
from zifio.tasks.game import TicTacToe
from zifio.tasks.splits import Splits
from zifio.tasks.sums import ChainMod, ChainSum
from zifio.tasks.task import draw, is_held_out, parse_response, render_response, shows_working

TASKS: list[TaskConfig] = [
    ChainSum(),
    ChainSum(min_terms=2, max_terms=3, working="steps"),
    ChainSum(digits=3, working="totals"),
    ChainMod(),
    ChainMod(modulus=7, working="totals"),
    Splits(),
    Calculator(),
    Calculator(min_digits=2, max_digits=4, operations=("*", "+", "-")),
    TicTacToe(),
]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_gold_is_right_on_a_thousand_problems(task):
    for index in range(500):
        for split in ("train", "held-out"):
            problem = task.problem(split, index, seed=7)
            verdict = task.check_gold(problem)
            assert (verdict.outcome, verdict.reward, verdict.parts["format"]) == ("right", 1.0, 1.0), problem
            assert verdict.parts["process"] == (1.0 if problem.working else 0.0)
            direct = task.score(problem, task.document(problem, shows_working=False))
            assert direct.parts == {"accuracy": 1.0, "format": 1.0, "process": 0.0}


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_splits_share_no_prompt_whatever_the_seed(task):
    train = {task.problem("train", index, seed=1).prompt for index in range(1500)}
    held_out = {task.problem("held-out", index, seed).prompt for index in range(100) for seed in (1, 2, 3)}
    assert not train & held_out
    assert len({task.problem("train", index, seed=2).prompt for index in range(200)}) > 100


def test_one_prompt_in_sixteen_is_held_out():
    n_held_out = sum(is_held_out(f"{number}+1") for number in range(16_000))
    assert abs(n_held_out - 1000) < 120


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_problem_is_a_pure_function_of_its_address(task):
    backwards = [task.problem("train", index, seed=5) for index in reversed(range(50))]
    again = type(task)(**task.model_dump())
    assert backwards[::-1] == [again.problem("train", index, seed=5) for index in range(50)]
    assert len({problem.id for problem in backwards}) == 50


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_seeds_splits_and_tasks_have_their_own_streams(task):
    def prompts(split, seed):
        return [task.problem(split, index, seed).prompt for index in range(30)]

    assert prompts("train", 1) != prompts("train", 2)
    assert prompts("train", 1) != prompts("held-out", 1)
    ids = {task.problem(split, 0, seed).id for split in ("train", "held-out") for seed in (1, 2)}
    assert len(ids) == 4


def test_a_task_with_one_problem_says_that_it_has_too_few():
    split = "train" if is_held_out("1+1") else "held-out"
    with pytest.raises(ConfigError, match="too few"):
        draw("one", split, 0, 1, lambda rng: "1+1")


def test_draw_uses_one_stream_per_index():
    seen: list[Random] = []

    def once(rng: Random) -> str:
        seen.append(rng)
        return str(rng.random())

    draw("some", "held-out", 0, 1, once)
    assert all(rng is seen[0] for rng in seen)


def test_shows_working_is_a_coin_of_the_given_weight():
    shown = [shows_working(index, 3, 0.3) for index in range(5000)]
    assert abs(sum(shown) / 5000 - 0.3) < 0.03
    assert shown == [shows_working(index, 3, 0.3) for index in range(5000)]
    assert shown != [shows_working(index, 4, 0.3) for index in range(5000)]
    assert not any(shows_working(index, 3, 0.0) for index in range(100))
    assert all(shows_working(index, 3, 1.0) for index in range(100))


@pytest.mark.parametrize("working", ["", "6+1=7", "two\nlines", "a < b > c"])
@pytest.mark.parametrize("answer", ["15", "", "x < y"])
def test_parse_undoes_render(working, answer):
    assert parse_response(render_response(working, answer)) == (working, answer)


MALFORMED = [
    "",
    "15",
    "<answer>15</answer>",
    "<think></think>15",
    "<think></think><answer>15",
    "<think></think> <answer>15</answer>",
    " <think></think><answer>15</answer>",
    "<think></think><answer>15</answer>\n",
    "<think></think><answer>15</answer>15",
    "so: <think></think><answer>15</answer>",
    "<answer>15</answer><think></think>",
    "</think><think><answer>15</answer>",
    "<think><answer>15</answer></think>",
    "<think></think></answer>15<answer>",
    "<think><think></think><answer>15</answer>",
    "<think></think><answer><answer>15</answer></answer>",
    "<think></think><answer><think>15</answer>",
    "<think></think><answer>14</answer><answer>15</answer>",
    "<think></think><answer>15</answer><think></think><answer>15</answer>",
    "<think></answer></think><answer>15",
    "<THINK></THINK><ANSWER>15</ANSWER>",
    "<think></think><answer>15</answer >",
    "<think></think><answer><｜User｜>15</answer>",
    "<think></think><answer>15<｜▁pad▁｜></answer>",
    "<think><｜end▁of▁sentence｜></think><answer>15</answer>",
    "<think>" * 5000 + "</think><answer>" * 5000,
]


@pytest.mark.parametrize("response", MALFORMED, ids=lambda text: text[:60])
def test_a_malformed_response_has_no_parts_right(response):
    assert parse_response(response) is None
    problem = ChainSum().problem("train", 0, seed=1)
    for form in (response, response.replace("15", problem.gold)):
        verdict = ChainSum().score(problem, form)
        assert verdict.outcome == "wrong" and verdict.reward == 0.0 and verdict.reason
        assert verdict.parts == {"accuracy": 0.0, "format": 0.0, "process": 0.0}
