"""An episode driven from outside is the one that zifio plays: prompts, answers, chance, cuts and verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from zifio.adapters.played import Broken, Played, Series
from zifio.adapters.translate import turn_of
from zifio.config import ConfigError, Sampling
from zifio.seed import stream_seed
from zifio.tasks.calculator import Calculator
from zifio.tasks.catalog import named_task
from zifio.tasks.environment import Message, Said, Turn, converse, demonstration
from zifio.tasks.episode import Reply, Start, play
from zifio.tasks.game import TicTacToe, best_moves, legal_moves, read_position
from zifio.tasks.runtime import judge
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Task, Verdict, render_response

CALL = {"type": "function", "function": {"name": "calculator", "arguments": '{"expression": "2*3"}'}}


def speaker(task: Task, problem: Problem, style: str) -> Any:
    """Messages -> the next turn: as the task shows it, badly, or only ever calling."""
    shown = demonstration(task, problem, True)

    def speak(messages: list[Message]) -> Turn:
        if style == "calls":
            return turn({"content": "hm", "tool_calls": [CALL]})
        if task.name == "tic_tac_toe":
            board, mark = read_position(messages[-1]["content"])
            moves = best_moves(board, mark) if style == "right" else legal_moves(board)
            return Turn(render_response("", str(moves[-1] + 1)))
        return turn(shown[len(messages)]) if style == "right" else Turn(render_response("", "7"))

    return speak


def turn(message: Message) -> Turn:
    return turn_of(message, has_tools=False)


class Speaker:
    """A policy of zifio's own kind that says what `speaker` says."""

    def __init__(self, task: Task, problem: Problem, style: str) -> None:
        self.speak = speaker(task, problem, style)
        self.heard: list[Message] = []

    def complete(self, conversations: list[list[Message]], n: int, sampling: Sampling, seeds: Any) -> list[list[Reply]]:
        return [[Reply([], self.speak(messages).text) for _ in range(n)] for messages in conversations]

    def converse(
        self, starts_P_G: list[list[Start]], sampling: Sampling, max_turns: int, tools: list[dict[str, Any]]
    ) -> list[list[Reply]]:
        (((messages, environment, seed),),) = starts_P_G
        try:
            out = converse(
                environment, messages, lambda told, *_: Said(self.speak(told), 1), max_turns, 10**6, seed
            )  # fmt: skip
        except Exception as error:  # as the engine's player does
            return [[Reply([], "", fault=repr(error))]]
        self.heard = [*messages, *out.messages]
        return [[Reply([], out.text)]]


@pytest.mark.parametrize("style", ["right", "wrong", "calls"])
@pytest.mark.parametrize(
    "name",
    ["chain_sum", "calculator", "tic_tac_toe", "tic_tac_toe:opponent=perfect,goal=draw", "agent:of.name=chain_sum"],
)
@pytest.mark.parametrize("index", range(3))
def test_it_is_the_episode_that_zifio_plays(name: str, style: str, index: int):
    task = named_task(name)
    problem = task.problem("train", index, 3)
    policy = Speaker(task, problem, style)
    ((episode,),) = play(policy, task, [problem], 1, Sampling(), 3)
    played = Series(task, "train").reset(3, index)
    assert played.problem == problem and played.messages == [{"role": "user", "content": problem.prompt}]
    while played.verdict is None:
        played.say(policy.speak(played.messages))
    assert played.verdict == episode.verdict
    if policy.heard:
        assert played.messages == policy.heard
    if style == "right" and "tic_tac_toe" not in name:
        assert played.reward() == 1.0


def test_an_episode_that_only_calls_is_cut_at_the_limit():
    task = Calculator(max_turns=2)
    played = Series(task).reset()
    heard = [played.say(turn({"content": "", "tool_calls": [CALL]})) for _ in range(2)]
    assert heard == [[{"role": "tool", "name": "calculator", "content": "6"}], []]
    assert played.is_cut and played.n_turns == 2 and played.reward() == 0.0
    with pytest.raises(RuntimeError, match="is over: reset"):
        played.say(Turn("more"))


def test_an_episode_may_be_ended_before_anything_was_said():
    for name in ("chain_sum", "calculator", "tic_tac_toe"):
        assert Series(name).reset().end().outcome == "wrong", name


def test_a_series_goes_on_and_begins_anew():
    series, task = Series("chain_sum", "held-out"), ChainSum()
    asked = [(None, None), (None, None), (7, None), (None, None), (None, 9), (None, None)]
    addresses = [series.reset(*one).problem.id for one in asked]
    assert addresses == [f"chain_sum/held-out/{place}" for place in ("0/0", "0/1", "7/0", "7/1", "7/9", "7/10")]
    assert series.reset(7, 1).problem == task.problem("held-out", 1, 7)


def test_an_account_hides_the_answer_until_the_end():
    played = Series("calculator").reset()
    assert played.account() == {"problem": "calculator/train/0/0", "n_turns": 0}
    played.say(Turn(render_response("", played.problem.gold)))
    assert played.account() == {
        "problem": "calculator/train/0/0",
        "n_turns": 1,
        "outcome": "right",
        "parts": {"accuracy": 1.0, "format": 1.0, "process": 0.0},
        "reason": "no working",
    }


class BrokenCheck(ChainSum):
    """A task whose check breaks."""

    def score(self, problem: Problem, response: str) -> Verdict:
        raise OSError("the check is broken")


class Trap:
    """An environment that breaks when it is used."""

    instant = True

    def step(self, turn: Turn) -> Any:
        raise OSError("the environment is broken")

    def verdict(self, text: str) -> Verdict | None:
        return None


class BrokenDesk(Calculator):
    """A task whose environment breaks."""

    def start(self, problem: Problem, seed: int) -> Any:
        return Trap()


@pytest.mark.parametrize("task", [BrokenCheck(), BrokenDesk()])
def test_what_breaks_has_no_reward(task: Task):
    played = Series(task).reset()
    played.say(Turn("5"))
    assert played.verdict is not None and played.verdict.outcome == "error"
    with pytest.raises(Broken, match="is broken"):
        played.reward()


def test_self_play_is_refused_in_words():
    task = TicTacToe(opponent="self", min_plies=0, max_plies=0)
    problem = task.problem("train", 0, 0)
    played = Played(task, problem, stream_seed(0, "x"))
    with pytest.raises(ConfigError, match="Set opponent"):
        played.say(Turn(render_response("", "5")))


def test_judging_is_the_runtimes():
    played = Series(BrokenCheck()).reset()
    played.say(Turn("5"))
    assert played.verdict == judge(BrokenCheck(), played.problem, "5")
