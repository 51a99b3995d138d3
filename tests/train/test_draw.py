"""Drawing: dynamic sampling, the shape of rewards, difficulty in steps, and what survives a checkpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tiny import RL, Sevens, characters, deepseek, made

import zifio.train.draw as draw_module
from zifio.config import build
from zifio.engine.policy import LocalPolicy
from zifio.models.count import forward_flops
from zifio.tasks.episode import Episode, Reply
from zifio.tasks.task import Problem, Verdict
from zifio.train.config import RlStage
from zifio.train.draw import Drawing, Drawn, rewards

TOKENIZER = characters()


def stage(**changes: Any) -> RlStage:
    """The tiny stage."""
    return build(RlStage, {"kind": "rl", "name": "tiny", **RL, **changes}, "test")


def policy() -> LocalPolicy:
    """An untrained model."""
    return LocalPolicy(made(deepseek(vocab_size=TOKENIZER.vocab_size)), TOKENIZER)


def scripted(monkeypatch: pytest.MonkeyPatch, right: dict[int, str]) -> list[list[int]]:
    """Play by script: problem number -> one 0, 1 or x (broken) per rollout; returns the problems of every round."""
    asked: list[list[int]] = []

    def play(policy: Any, task: Any, problems: list[Problem], n: int, *rest: Any) -> list[list[Episode]]:
        numbers = [int(problem.id.split("/")[-1]) for problem in problems]
        asked.append(numbers)
        return [
            [episode(problem, one) for one in right.get(number, "0" * n)]
            for number, problem in zip(numbers, problems, strict=True)
        ]

    monkeypatch.setattr(draw_module, "play", play)
    return asked


def episode(problem: Problem, one: str, length: int = 3, finish: Any = "stop") -> Episode:
    """A rollout that is right, wrong or broken."""
    outcome: Any = {"0": "wrong", "1": "right", "x": "error"}[one]
    parts = {} if one == "x" else {"accuracy": float(one), "format": 0.0}
    verdict = Verdict(outcome, float(one == "1"), parts, "why")
    return Episode(problem, Reply([9] * length, "", [-0.1] * length, finish), verdict)


DYNAMIC = {"prompts": 2, "group": 2, "updates": 1, "max_rounds": 3, "most_errors": 1.0}


def kept(drawn: Drawn) -> list[int]:
    """Numbers of the problems that remained."""
    return [int(group[0].problem.id.split("/")[-1]) for group in drawn.episodes_P_G]


@pytest.mark.parametrize(
    "right, expected, rounds, dropped",
    [
        ({6: "01", 7: "10"}, [6, 7], 1, 0),
        ({6: "11", 7: "10", 9: "01"}, [7, 9], 2, 2),
        ({7: "10", 8: "01", 9: "01"}, [7, 8], 2, 2),
        ({7: "1x", 10: "01"}, [10], 3, 5),
        ({}, [], 3, 6),
    ],
)
def test_dynamic_sampling_goes_on_until_enough_groups_teach(
    right: dict[int, str], expected: list[int], rounds: int, dropped: int, monkeypatch
):
    """Step 1 of at most three rounds of two problems owns numbers 6 to 11; equal rewards are dropped and counted."""
    asked = scripted(monkeypatch, right)
    drawn = Drawing(stage(**DYNAMIC), 1, Sevens()).draw(1, policy())
    assert kept(drawn) == expected and asked == [[6, 7], [8, 9], [10, 11]][:rounds]
    assert drawn.metrics["rollouts/rounds"] == rounds and drawn.metrics["rollouts/dropped_groups"] == dropped


def test_metrics_and_cost_are_of_all_that_was_drawn(monkeypatch):
    """Or the pass rate of what was kept would look like that of the model."""
    scripted(monkeypatch, {1: "01", 2: "11", 3: "01"})
    drawn = Drawing(stage(**DYNAMIC), 1, Sevens()).draw(0, policy())
    assert kept(drawn) == [1, 3]
    assert drawn.metrics["pass_at_1"] == pytest.approx(4 / 8)
    assert drawn.metrics["frac_reward_zero_std"] == pytest.approx(2 / 4)
    model, drawing = policy(), Drawing(stage(**DYNAMIC), 1, Sevens())
    prompts = [
        model.prompt([{"role": "user", "content": Sevens().problem("train", i, drawing.seed).prompt}]) for i in range(4)
    ]
    assert drawn.flops == sum(forward_flops(model.model.config, [len(prompt) + 3] * 2) for prompt in prompts)


def test_without_dynamic_sampling_groups_are_taken_as_they_come(monkeypatch):
    asked = scripted(monkeypatch, {3: "01"})
    drawn = Drawing(stage(**DYNAMIC | {"max_rounds": None}), 1, Sevens()).draw(1, policy())
    assert kept(drawn) == [2, 3] and asked == [[2, 3]]
    assert not any(name.startswith("rollouts/") for name in drawn.metrics)


def test_a_draw_is_a_pure_function_of_policy_and_step():
    settings = stage(max_rounds=3)
    one, two = (Drawing(settings, 1, Sevens()) for _ in range(2))
    two.draw(0, policy())
    first, second = one.draw(2, policy()), two.draw(2, policy())
    assert first.episodes_P_G == second.episodes_P_G and first.metrics == second.metrics


def test_overlong_replies_cost_reward():
    """On top of what the answer is worth; the mean is reported."""
    config = stage(group=3, overlong_cache=4, sampling={"max_new_tokens": 6})
    problem = Problem("id", "1+2", "3")
    groups = [[episode(problem, "1", 2), episode(problem, "1", 4), episode(problem, "0", 6, "length")]]
    reward_PG, counted_PG = rewards(config, groups)
    torch.testing.assert_close(reward_PG, torch.tensor([[1.0, 0.5, -1.0]]))
    metrics = draw_module.rollout_metrics(config, groups, reward_PG, counted_PG)
    assert metrics["rewards/overlong/mean"] == pytest.approx(-0.5) and metrics["reward"] == pytest.approx(0.5 / 3)


@pytest.mark.parametrize("right, moves", [("11", [2, 3, 4, 4]), ("01", [2, 2, 2]), ("00", [2, 2])])
def test_the_difficulty_follows_from_step_to_step(right: str, moves: list[int], monkeypatch):
    """Reported as it was when the step was drawn; the hardest is the task's own value."""
    scripted(monkeypatch, dict.fromkeys(range(100), right))
    settings = stage(prompts=2, group=2, curriculum={"option": "max_terms", "start": 2})
    drawing = Drawing(settings, 1, Sevens())
    seen = [drawing.draw(step, policy()).metrics["curriculum/max_terms"] for step in range(len(moves))]
    assert seen == moves


def test_harder_problems_are_really_drawn():
    """Every problem of an easy step is short, and the same step is longer when it is harder."""
    drawing = Drawing(stage(prompts=8, curriculum={"option": "max_terms", "start": 2}), 1, Sevens())
    assert drawing.difficulty is not None
    lengths = []
    for value in (2, 4):
        drawing.difficulty.value = value
        groups = drawing.draw(0, policy()).episodes_P_G
        lengths.append([len(group[0].problem.prompt) for group in groups])
    assert max(lengths[0]) == 3 and max(lengths[1]) == 7


def test_rollouts_survive_json_to_the_last_bit():
    drawn = Drawing(stage(), 1, Sevens()).draw(0, policy())
    again = Drawn.from_json(json.loads(json.dumps(drawn.to_json())))
    assert again == drawn and isinstance(again.episodes_P_G[0][0].verdict, Verdict)
