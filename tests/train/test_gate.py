"""The gate before RL: open where there is something to amplify, and every way of being shut is explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from tiny import RL, Sevens, context, deepseek, run, save_base

from zifio.config import ConfigError, Sampling, build
from zifio.seed import stream, stream_seed
from zifio.tasks.episode import Message, Reply
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Verdict, render_response
from zifio.train.config import RlStage
from zifio.train.gate import check_gate

TASK = ChainSum(min_terms=2, max_terms=3)
WRONG = render_response("", "-77")


class Scripted:
    """A policy that works a share of its replies out, guesses right in another, and is wrong in the rest.

    `able` says which problems it can work out at all.
    """

    def __init__(self, worked: float, guessed: float, able: Callable[[str], bool] = lambda prompt: True) -> None:
        self.worked, self.guessed, self.able = worked, guessed, able

    def complete(
        self, conversations: list[list[Message]], n: int, sampling: Sampling, seeds: list[list[int]]
    ) -> list[list[Reply]]:
        """As its shares say, each reply by its own seed."""
        return [
            [Reply([1], self.text(messages[-1]["content"], stream(seed, "draw").random())) for seed in row]
            for messages, row in zip(conversations, seeds, strict=True)
        ]

    def text(self, prompt: str, number: float) -> str:
        """One reply."""
        problem = next(p for p in problems() if p.prompt == prompt)
        if number < self.worked:
            return TASK.document(problem, shows_working=True) if self.able(prompt) else WRONG
        if number < self.worked + self.guessed:
            return render_response("", problem.gold)
        return WRONG


@lru_cache
def problems() -> list[Problem]:
    """Those that the gate asks."""
    return [TASK.problem("train", index, stream_seed(5, "gate", "tiny")) for index in range(32)]


def stage(**changes: Any) -> RlStage:
    """An RL stage with its gate on."""
    return build(RlStage, {"kind": "rl", "name": "tiny", **RL, "gate": True, **changes}, "test")


def refusal(policy: Scripted, folder: Path, task: Any = TASK) -> str:
    """What it says when it is shut."""
    with pytest.raises(ConfigError) as error:
        check_gate(stage(), policy, task, 5, folder)
    return str(error.value)


def test_open_and_its_figures(tmp_path: Path, capfd):
    """Half the problems worked out in half of the tries, a tenth guessed: 0.25 + 0.1, and headroom 0.5 - 0.25."""
    able = {p.prompt for p in problems()[::2]}
    check_gate(stage(), Scripted(0.5, 0.1, able.__contains__), TASK, 5, tmp_path)
    found = json.loads((tmp_path / "gate.json").read_text())
    n_able = sum(p.prompt in able for p in problems()) / 32
    assert found["process_pass_at_32"] == pytest.approx(n_able)
    assert found["process_pass_at_1"] == pytest.approx(n_able / 2, abs=0.05)
    assert found["pass_at_1"] == pytest.approx(n_able / 2 + 0.1, abs=0.05)
    assert found["headroom"] == pytest.approx(found["process_pass_at_32"] - found["process_pass_at_1"])
    assert "gate open" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    "policy, parts",
    [
        (Scripted(0.0, 0.0), ("pass@1 is 0.000, below 0.02", "Pretrain longer", "p_cot", "easier")),
        (Scripted(0.9, 0.05), ("above 0.6", "harder", "lower p_cot")),
        (Scripted(0.0, 0.4), ("true working come 0.000", "headroom is below 0.2", "guesses", "Raise p_cot")),
    ],
    ids=["never-right", "nearly-always-right", "guesses"],
)
def test_shut_says_why_and_what_to_do(policy: Scripted, parts: tuple[str, ...], tmp_path: Path):
    message = refusal(policy, tmp_path / "deep" / "run")
    for part in ("tiny: the gate is shut", "gate = false", f"{tmp_path}/deep/run/gate.json", *parts):
        assert part in message
    assert (tmp_path / "deep" / "run" / "gate.json").exists(), "the figures are there to be looked at"


def test_working_out_a_few_problems_always_is_no_headroom(tmp_path: Path):
    """What is done always cannot be amplified, what is done never neither."""
    able = {p.prompt for p in problems()[:10]}
    assert "headroom is below 0.2" in refusal(Scripted(1.0, 0.0, able.__contains__), tmp_path)


class Brittle(ChainSum):
    """A verifier that breaks on every reply."""

    def score(self, problem: Problem, response: str) -> Verdict:
        raise OSError("cannot open the answer sheet")


def test_a_broken_verifier_is_not_a_weak_model(tmp_path: Path):
    """Else the advice would be to pretrain longer."""
    message = refusal(Scripted(0.3, 0.0), tmp_path, Brittle(min_terms=2, max_terms=3))
    assert "verifier of chain_sum broke on 1024 of 1024" in message and "answer sheet" in message
    assert "Pretrain" not in message


def test_a_few_broken_checks_are_left_out_of_the_figures(tmp_path: Path):
    class Partly(ChainSum):
        def score(self, problem: Problem, response: str) -> Verdict:
            if "-77" in response:
                raise OSError("no")
            return super().score(problem, response)

    settings = stage(most_errors=0.9)
    with pytest.raises(ConfigError, match=r"pass@1 is 1\.000, above"):
        check_gate(settings, Scripted(0.2, 0.2), Partly(min_terms=2, max_terms=3), 5, tmp_path)


def test_the_gate_is_a_pure_function_of_its_names(tmp_path: Path):
    for name in ("a", "b"):
        check_gate(stage(), Scripted(0.4, 0.0), TASK, 5, tmp_path / name)
    assert (tmp_path / "a" / "gate.json").read_bytes() == (tmp_path / "b" / "gate.json").read_bytes()


def test_rl_asks_the_gate_first_and_not_again_when_it_goes_on(tmp_path: Path, monkeypatch):
    """An untrained model finds it shut; without it, or behind a checkpoint, the run goes on."""
    base = save_base(tmp_path / "base", deepseek())
    folder = tmp_path / "run"
    settings = RL | {"gate": True, "steps": 4, "checkpoint_every": 2, "sampling": {"max_new_tokens": 4}}
    with pytest.raises(ConfigError, match="the gate is shut"):
        run("rl", settings, context(folder, TASK, base=base))
    assert not (folder / "checkpoints").exists() and not (folder / "model").exists()
    run("rl", settings | {"gate": False}, context(folder, Sevens(), base=base))
    assert (folder / "checkpoints").exists()
    run("rl", settings, context(folder, Sevens(), base=base))
