"""Tasks in turns: the message-by-message loop, what an episode comes to, and the calculator as a task."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from zifio.config import ConfigError, Sampling
from zifio.tasks.calculator import Calculator
from zifio.tasks.catalog import read_task
from zifio.tasks.environment import Call, Interactive, Said, Turn, conversation, converse, demonstration, tools_of
from zifio.tasks.episode import Reply, Start, play, record
from zifio.tasks.game import TicTacToe, best_moves, legal_moves, read_position
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, render_response

TASK = Calculator()
PROBLEMS = [TASK.problem("train", index, seed=1) for index in range(4)]


def ask_for(expression: str) -> Turn:
    """A turn that calls the calculator."""
    return Turn("", (Call("calculator", json.dumps({"expression": expression})),))


class Scripted:
    """Says the next of its turns, whoever asks."""

    def __init__(self, *turns: Turn, cut_at: int = -1) -> None:
        self.turns, self.cut_at, self.asked = list(turns), cut_at, []

    def __call__(self, messages: list[dict[str, Any]], seed: int, most: int) -> Said:
        self.asked.append(([*messages], seed, most))
        return Said(self.turns[len(self.asked) - 1], 10, len(self.asked) - 1 == self.cut_at)


def test_which_tasks_are_played_in_turns():
    assert isinstance(TASK, Interactive) and isinstance(TicTacToe(), Interactive)
    assert not isinstance(ChainSum(), Interactive)
    assert [tool["function"]["name"] for tool in tools_of(TASK)] == ["calculator"]
    assert tools_of(ChainSum()) == tools_of(TicTacToe()) == []
    problem = ChainSum().problem("train", 0, 1)
    assert demonstration(ChainSum(), problem, True)[1]["content"] == ChainSum().document(problem, True)


def test_an_episode_message_by_message():
    problem, answer = PROBLEMS[0], Turn(render_response("", PROBLEMS[0].gold))
    ask = Scripted(ask_for(problem.prompt), answer)
    out = converse(TASK.start(problem, 1), conversation(problem), ask, 4, 100, seed=7)
    assert (out.text, out.n_turns, out.n_calls, out.n_failures, out.n_tokens, out.is_cut) == (
        answer.text,
        2,
        1,
        0,
        20,
        False,
    )
    assert [message["role"] for message in out.messages] == ["assistant", "tool", "assistant"]
    assert out.messages[1]["content"] == problem.gold
    (first, seed, most), (second, later, left) = ask.asked
    assert first == conversation(problem) and second == first + out.messages[:2]
    assert (seed, most, left) == (7, 100, 90) and later != 7


def test_episodes_message_by_message_are_bounded():
    problem = PROBLEMS[0]
    again = [ask_for("1+1")] * 20
    out = converse(TASK.start(problem, 1), conversation(problem), Scripted(*again), 4, 1000, seed=7)
    assert (out.n_turns, out.is_cut, out.n_failures) == (4, True, 1), "of four calls three are answered"
    out = converse(TASK.start(problem, 1), conversation(problem), Scripted(*again), 9, 20, seed=7)
    assert (out.n_tokens, out.is_cut) == (20, True)
    out = converse(TASK.start(problem, 1), conversation(problem), Scripted(*again, cut_at=1), 9, 1000, seed=7)
    assert (out.n_turns, out.is_cut, out.n_calls) == (2, True, 1), "a turn that was cut is not acted upon"


def test_self_play_message_by_message():
    """Two voices, each with its own history and seeds; the transcript is the learner's."""
    problem = Problem("p", ".../.../... X", "1")

    def ask(messages: list[dict[str, Any]], seed: int, most: int) -> Said:
        board, mark = read_position(messages[-1]["content"])
        assert all(read_position(m["content"])[1] == mark for m in messages if m["role"] == "user")
        move = best_moves(board, mark)[0] if mark == "X" else legal_moves(board)[0]
        seeds.append(seed)
        return Said(Turn(render_response("", str(move + 1))), 5)

    seeds: list[int] = []
    task = TicTacToe(opponent="self")
    game = task.start(problem, 1)
    out = converse(game, conversation(problem), ask, task.max_turns, 100, seed=3)
    assert game.is_over and game.verdict(out.text).outcome == "right"
    assert out.n_tokens == 5 * out.n_turns and len(set(seeds)) == len(seeds)


class Talker:
    """A policy that plays scripted turns by `converse`."""

    def __init__(self, turns: Any) -> None:
        self.turns = turns

    def complete(self, *_: Any) -> list[list[Reply]]:
        """Nobody asks."""
        raise AssertionError("a task in turns is not asked once")

    def converse(self, starts_P_G: Any, sampling: Sampling, max_turns: int, tools: Any) -> list[list[Reply]]:
        """As an endpoint would do it."""
        return [[self._one(start, sampling, max_turns) for start in group] for group in starts_P_G]

    def _one(self, start: Start, sampling: Sampling, max_turns: int) -> Reply:
        script = Scripted(*self.turns(start.messages[0]["content"]))
        out = converse(start.environment, start.messages, script, max_turns, sampling.max_new_tokens, start.seed)
        counts = {"n_turns": out.n_turns, "n_calls": out.n_calls}
        return Reply([1] * out.n_tokens, out.text, [], messages=out.messages, fault=out.fault, **counts)


def solve(prompt: str) -> list[Turn]:
    """Ask, then answer."""
    left, right = map(int, prompt.split("*"))
    return [ask_for(prompt), Turn(render_response("", str(left * right)))]


def guess(prompt: str) -> list[Turn]:
    """Answer straight away."""
    return solve(prompt)[1:]


@pytest.mark.parametrize(("turns", "process"), [(solve, 1.0), (guess, 0.0)])
def test_a_right_answer_is_worked_out_only_when_the_tool_gave_it(turns: Any, process: float):
    for group in play(Talker(turns), TASK, PROBLEMS, 2, Sampling(), 1, "x"):
        for episode in group:
            assert episode.verdict.outcome == "right" and episode.verdict.parts["process"] == process
            row = record(episode, 0)
            assert row["messages"][0]["content"] == episode.problem.prompt and row["n_turns"] == 1 + process


def test_seeds_of_episodes_depend_on_their_names_alone():
    class Seeds(Talker):
        def _one(self, start: Start, sampling: Sampling, max_turns: int) -> Reply:
            seen.append(start.seed)
            return super()._one(start, sampling, max_turns)

    seen: list[int] = []
    play(Seeds(solve), TASK, PROBLEMS, 3, Sampling(), 1, "x")
    play(Seeds(solve), TASK, PROBLEMS[2:], 2, Sampling(), 1, "x")
    assert [seen[6:8], seen[9:11]] == [seen[12:14], seen[14:16]] and len(set(seen[:12])) == 12


def test_a_broken_environment_is_an_error_that_names_the_task():
    """At its start, at a step, or when it is to say what came of it; the others go on."""

    class Broken(Calculator):
        how: str = "start"

        def start(self, problem: Problem, seed: int) -> Any:
            desk = super().start(problem, seed)
            if problem != PROBLEMS[1]:
                return desk
            if self.how == "start":
                raise OSError("no such desk")
            setattr(desk, self.how, lambda *_: 1 / 0)
            return desk

    for how, words in (("start", "no such desk"), ("step", "ZeroDivision"), ("verdict", "ZeroDivision")):
        verdicts = [group[0].verdict for group in play(Talker(solve), Broken(how=how), PROBLEMS, 1, Sampling(), 1)]
        assert [verdict.outcome for verdict in verdicts] == ["right", "error", "right", "right"]
        assert words in verdicts[1].reason and "calculator" in verdicts[1].reason


def test_a_policy_that_answers_once_is_refused():
    class Single:
        def complete(self, *_: Any) -> list[list[Reply]]:
            return []

    with pytest.raises(ConfigError, match="in turns"):
        play(Single(), TASK, PROBLEMS, 1, Sampling(), 1)


def test_demonstrations_of_the_calculator():
    """Bare answers are true; with working the tool is called, and says what is then answered."""
    for problem in PROBLEMS:
        bare, worked = (TASK.demonstration(problem, shows_working) for shows_working in (False, True))
        assert bare == [*conversation(problem), {"role": "assistant", "content": render_response("", problem.gold)}]
        assert [message["role"] for message in worked] == ["user", "assistant", "tool", "assistant"]
        assert worked[2]["content"] == problem.gold and worked[3] == bare[1]
        assert json.loads(worked[1]["tool_calls"][0]["function"]["arguments"]) == {"expression": problem.prompt}


def test_sums_may_stand_beside_products_that_are_bare():
    """Every operation as often as the others; of the products the wanted share shows no call, of the sums all do."""
    task = Calculator(operations=("+", "-", "*"), bare=0.75)
    problems = [task.problem("train", index, seed=1) for index in range(600)]
    calls = {sign: [] for sign in "+-*"}
    for problem in problems:
        assert task.check_gold(problem).outcome == "right"
        (sign,) = (sign for sign in "+-*" if sign in problem.prompt)
        calls[sign].append(len(task.demonstration(problem, shows_working=True)) == 4)
        assert len(task.demonstration(problem, shows_working=False)) == 2
    assert all(abs(len(shown) - 200) < 50 for shown in calls.values())
    assert all(calls["+"]) and all(calls["-"]) and abs(sum(calls["*"]) / len(calls["*"]) - 0.25) < 0.1
    assert any(problem.gold.startswith("-") for problem in problems)


def test_options_of_the_calculator_are_checked():
    with pytest.raises(ValueError, match="min_digits"):
        Calculator(min_digits=4, max_digits=3)
    with pytest.raises(ValueError, match="sum_digits"):
        Calculator(min_digits=3, max_digits=3, sum_digits=2)
    assert len(Calculator(min_digits=1, max_digits=1).problem("train", 0, 1).prompt) == 3
    with pytest.raises(ValueError, match="gold"):
        TASK.score(Problem("p", "2*3", "7"), "")
    with pytest.raises(ValueError, match="no product"):
        TASK.score(Problem("p", "2/3", "5"), "")


def test_any_task_of_single_questions_may_have_tools():
    """Problems, score and documents are the inner task's; the tools are the agent's."""
    agent = read_task({"name": "agent", "of": {"name": "chain_sum", "max_terms": 7}, "use": ["calculator"]}, "here")
    inner = ChainSum(max_terms=7)
    assert isinstance(agent, Interactive) and [tool["function"]["name"] for tool in agent.tools] == ["calculator"]
    problem = agent.problem("train", 0, 1)
    assert problem == inner.problem("train", 0, 1)
    assert agent.document(problem, True) == agent.demonstration(problem, True)[1]["content"]
    turns = [ask_for(problem.prompt), Turn(inner.document(problem, True))]
    ((episode,),) = play(Talker(lambda prompt: turns), agent, [problem], 1, Sampling(), 1)
    assert episode.verdict == inner.score(problem, turns[1].text) and episode.reply.n_calls == 1
    assert agent.check_gold(problem).outcome == "right" and pickle.loads(pickle.dumps(agent)) == agent


def test_an_agent_searches_its_corpus(tmp_path: Path):
    (tmp_path / "facts.txt").write_text("The answer is written here.")
    table = {"name": "agent", "of": {"name": "chain_sum"}, "use": ["search"], "corpus": [str(tmp_path / "facts.txt")]}
    agent = read_task(table, "here")
    assert isinstance(agent, Interactive)
    desk = agent.start(agent.problem("train", 0, 1), 1)
    seen = desk.step(Turn("", (Call("search", '{"query": "answers"}'),)))
    assert seen.messages[0]["content"] == "[facts.txt] The answer is written here."


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"of": {"name": "nope"}}, "nope"),
        ({"of": {"name": "calculator"}}, "played in turns"),
        ({"of": {"name": "chain_sum"}, "use": ["search"]}, "corpus"),
        ({"of": {"name": "chain_sum", "max_term": 3}}, "max_terms"),
        ({"of": {"name": "chain_sum"}, "use": []}, "use"),
    ],
)
def test_impossible_agents_are_refused(table: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        read_task({"name": "agent", **table}, "here")
