"""Tic-tac-toe: the solver is exact, games end as they must, blunders are named, and self-play is two voices."""

from __future__ import annotations

import itertools
import random

import pytest

from zifio.config import Config, ConfigError, build
from zifio.tasks.environment import LEARNER, Observation, Turn
from zifio.tasks.game import (
    Game,
    TicTacToe,
    best_moves,
    legal_moves,
    play,
    read_move,
    read_position,
    value,
    winner,
)
from zifio.tasks.task import Problem, render_response


def say(square: int, voice: int = LEARNER) -> Turn:
    """A move, squares from 1."""
    return Turn(render_response("", str(square)), (), voice)


def at(position: str, **options: str) -> Game:
    """A game from this position."""
    return Game(TicTacToe(**options), Problem("p", position, ""), seed=1)  # type: ignore[arg-type]


def every_position() -> list[tuple[str, str]]:
    """All positions with somebody to move."""
    found, todo = set(), [("." * 9, "X")]
    while todo:
        board, mark = todo.pop()
        if (board, mark) not in found and not winner(board) and legal_moves(board):
            found.add((board, mark))
            todo += [(play(board, mark, move), "O" if mark == "X" else "X") for move in legal_moves(board)]
    return sorted(found)


def test_the_solver_knows_the_game():
    """The empty board is a draw, there are 4520 positions to move in, and turning the board turns the value with it."""
    assert value("." * 9, "X") == 0
    positions = every_position()
    assert len(positions) == 4520
    turned = [6, 3, 0, 7, 4, 1, 8, 5, 2]
    for board, mark in positions:
        assert value(board, mark) == value("".join(board[square] for square in turned), mark)
    assert best_moves("XX.OO....", "X") == [2] and value("XX.OO....", "X") == 1
    assert best_moves("X...O...X", "O") == [1, 3, 5, 7], "the corners lose"


def test_perfect_play_never_loses_and_punishes_a_blunder():
    for index in range(60):
        task = TicTacToe(opponent="perfect", goal="draw", min_plies=0)
        problem = task.problem("train", index, seed=1)
        rng, game = random.Random(index), task.start(problem, index)
        seen, expected = Observation(), 1
        while not seen.done:
            move = rng.choice(legal_moves(game.board))
            board, mark = game.board, game.mark
            expected = min(expected, -value(play(board, mark, move), "O" if mark == "X" else "X"))
            seen = game.step(say(move + 1))
        verdict = game.verdict("")
        outcome = 1 if verdict.parts["won"] else 0 if verdict.parts["drawn"] else -1
        assert outcome == expected, "perfect play gives back nothing"
        assert verdict.outcome == ("right" if outcome >= 0 else "wrong")


def test_perfect_moves_win_what_can_be_won():
    task = TicTacToe(opponent="perfect")
    for index in range(60):
        game = task.start(task.problem("held-out", index, seed=2), index)
        seen = Observation()
        while not seen.done:
            seen = game.step(say(best_moves(game.board, game.mark)[-1] + 1))
        verdict = game.verdict("")
        assert (verdict.outcome, verdict.reward, verdict.parts["process"]) == ("right", 1.0, 1.0)
        assert not any(on for name, on in verdict.parts.items() if name.startswith("blunder"))


def test_a_blunder_is_named():
    game = at("X.O/.../... X", opponent="perfect")
    assert value(game.board, "X") == 1
    game.step(say(2))
    assert game.blunders == ["made a win a loss"]
    verdict = game.verdict("")
    assert verdict.parts["blunder_1"] == 1.0 and "move 1 made a win a loss" in verdict.reason


@pytest.mark.parametrize(
    "text",
    ["", "5", render_response("", "1"), render_response("", "0"), render_response("", "55"), render_response("", "٥")],
)
def test_an_illegal_move_loses(text: str):
    game = at("X../.O./... X")
    assert game.step(Turn(text)).done
    verdict = game.verdict(text)
    assert (verdict.outcome, verdict.parts["format"], verdict.parts["won"]) == ("wrong", 0.0, 0.0)
    assert "no legal move" in verdict.reason


def test_in_self_play_the_other_voice_sees_the_board_from_its_side_and_may_lose_too():
    game = at("XX./OO./... X", opponent="self")
    seen = game.step(say(9))
    assert (seen.voice, seen.done) == (1, False)
    assert seen.messages == ({"role": "user", "content": "XX./OO./..X O"},)
    seen = game.step(say(7, voice=1))
    assert seen.voice == LEARNER and seen.messages[0]["content"] == "XX./OO./O.X X"
    assert game.step(say(3)).done and game.verdict("").outcome == "right"
    other = at("XX./OO./... X", opponent="self")
    other.step(say(9))
    assert other.step(say(6, voice=1)).done and other.verdict("").outcome == "wrong", "O has three in a line"
    assert other.verdict("").parts["blunder_1"] == 1.0
    third = at("XX./OO./... X", opponent="self")
    third.step(say(9))
    assert third.step(Turn("nonsense", (), 1)).done and third.verdict("").outcome == "right", "its move was none"


def test_a_draw_is_right_only_where_that_is_the_goal():
    for goal, outcome in (("win", "wrong"), ("draw", "right")):
        game = at("XOX/XOO/.X. O", goal=goal)
        assert game.step(say(7)).done, "the last square is the opponent's"
        assert game.verdict("").parts["drawn"] == 1.0 and game.verdict("").outcome == outcome


def test_a_game_that_was_cut_is_lost():
    assert at("X../.O./... X").verdict("").outcome == "wrong"


@pytest.mark.parametrize("opponent", ["random", "perfect", "self"])
def test_demonstrations_are_games_that_the_rules_allow(opponent: str):
    task = build(TicTacToe, {"opponent": opponent}, "here")
    for index in range(30):
        problem = task.problem("train", index, seed=3)
        for perfect in (True, False):
            messages = task.demonstration(problem, shows_working=perfect)
            assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
            for asked, said in itertools.pairwise(messages):
                if asked["role"] == "user":
                    board, mark = read_position(asked["content"])
                    move = read_move(said["content"], board)
                    assert move in (best_moves(board, mark) if perfect else legal_moves(board))


def test_the_opponents_choices_hang_on_the_seed_alone():
    task = TicTacToe(min_plies=0, max_plies=0)
    problem = Problem("p", ".../.../... X", "1")
    told = [task.start(problem, seed).step(say(5)).messages[0]["content"] for seed in (1, 1, 2, 3, 4, 5, 6)]
    assert told[0] == told[1] and len(set(told)) > 2


@pytest.mark.parametrize("bad", ["", "XXX/OO./... O", "X../.../... X", "XOX/XOO/OXX X", "XO./.X./..O  X"])
def test_what_is_no_position_is_an_error_of_the_problem(bad: str):
    with pytest.raises(ValueError, match="no position"):
        TicTacToe().start(Problem("p", bad, ""), 1)


def test_impossible_options_are_refused():
    class Holder(Config):
        task: TicTacToe

    for options in ({"min_plies": 5, "max_plies": 4}, {"opponent": "perfect", "min_plies": 0, "max_plies": 1}):
        with pytest.raises(ConfigError, match="max_plies"):
            build(Holder, {"task": options}, "here")
