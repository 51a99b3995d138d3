"""Tic-tac-toe in turns, against chance, against perfect play, or against itself; an exact solver judges every move.

`XO./.X./..O X` is a position with X to move; a move is the number of a square, 1 to 9, inside the answer tags. A move
that is no legal one loses. The reward is binary, as a laboratory wants it: won, or with `goal = "draw"` not lost. Which
moves were blunders, that is made the outcome under perfect play worse, the parts say by name: `blunder_2` is about the
second move.

Try it alone:

    python -c "from zifio.tasks.game import TicTacToe; print(TicTacToe().problem('train', 0, seed=1))"
"""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Any, Literal

from pydantic import Field, model_validator

from zifio.config import Config
from zifio.seed import stream
from zifio.tasks.environment import LEARNER, Message, Observation, Turn, conversation
from zifio.tasks.task import Problem, Split, Verdict, address, draw, grade, parse_response, render_response

_LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
_POSITION = re.compile(r"([XO.]{3})/([XO.]{3})/([XO.]{3}) ([XO])")
_SQUARES = "123456789"
_OTHER = {"X": "O", "O": "X"}
_OPPONENT = 1  # the voice of one who is played by the policy too
_QUOTED = 24  # characters of a stranger's text that a reason repeats
_SAYS = {1: "win", 0: "draw", -1: "loss"}


class TicTacToe(Config):
    """A config that is also the task."""

    name: Literal["tic_tac_toe"] = "tic_tac_toe"
    """Which task this is."""
    opponent: Literal["random", "perfect", "self"] = "random"
    """Who plays the other side: any legal move, a best one, or the policy itself (self-play; only one side is trained,
    and either side may be it)."""
    goal: Literal["win", "draw"] = "win"
    """What is right: only a win, or a draw too."""
    min_plies: int = Field(default=2, ge=0, le=6)
    """Fewest random moves before the policy's first. None is lost by then, and against perfect play and for a win only
    positions are asked that can be won."""
    max_plies: int = Field(default=4, ge=0, le=6)
    """Most random moves before the policy's first."""
    max_turns: int = Field(default=5, ge=1, le=5)
    """An episode is cut, and lost, after so many moves."""

    @model_validator(mode="after")
    def _in_order(self) -> TicTacToe:
        if self.min_plies > self.max_plies:
            raise ValueError(
                f"wanted min_plies at most max_plies, came {self.min_plies} and {self.max_plies}. "
                f"Set max_plies to {self.min_plies} or more."
            )
        if self.opponent == "perfect" and self.goal == "win" and self.max_plies < 2:
            raise ValueError("nobody can win so early a position against perfect play. Set max_plies to 2 or more.")
        return self

    @property
    def tools(self) -> list[dict[str, Any]]:
        """None."""
        return []

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The problem at this address: a pure function; train and held-out share no position. Gold is a best move."""
        prompt = draw(self.name, split, index, seed, self._prompt)
        return Problem(address(self.name, split, index, seed), prompt, _SQUARES[best_moves(*read_position(prompt))[0]])

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The assistant's text: a best move."""
        return render_response("", problem.gold)

    def demonstration(self, problem: Problem, shows_working: bool) -> list[Message]:
        """A whole game against the opponent (against chance for self-play): best moves, or any legal ones."""
        rng = stream(0, f"task/{self.name}/demonstration", problem.id)
        game = Game(self, problem, rng.getrandbits(32))
        messages = conversation(problem)
        while True:
            moves = best_moves(game.board, game.mark) if shows_working else legal_moves(game.board)
            turn = Turn(render_response("", _SQUARES[rng.choice(moves)]))
            messages.append(turn.message())
            seen = game.step(turn, with_chance=self.opponent == "self")
            if seen.done:
                return messages
            messages += seen.messages

    def start(self, problem: Problem, seed: int) -> Game:
        """A new game. Raises ValueError when the problem is broken."""
        return Game(self, problem, seed)

    def score(self, problem: Problem, response: str) -> Verdict:
        """The verdict on a first move by itself: right when it is a best one. ValueError when the problem is broken."""
        board, mark = read_position(problem.prompt)
        good = [_SQUARES[move] for move in best_moves(board, mark)]
        return grade(
            response,
            lambda answer: "" if answer in good else f"{answer[:_QUOTED]!r} is no best move, {' '.join(good)} are",
            lambda *_: "this task has no working",
        )

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the problem's own answer; anything but right is a bug of the task."""
        return self.score(problem, render_response("", problem.gold))

    def _prompt(self, rng: random.Random) -> str:
        """A random position that is worth playing from."""
        least = 1 if self.opponent == "perfect" and self.goal == "win" else 0
        while True:
            board, mark = "." * 9, "X"
            for _ in range(rng.randint(self.min_plies, self.max_plies)):
                if winner(board):
                    break
                board, mark = play(board, mark, rng.choice(legal_moves(board))), _OTHER[mark]
            if not winner(board) and legal_moves(board) and value(board, mark) >= least:
                return show_position(board, mark)


class Game:
    """One game: the learner moves, the opponent answers. The opponent is in here, or a voice of the policy's own."""

    instant = True

    def __init__(self, task: TicTacToe, problem: Problem, seed: int) -> None:
        """`seed` decides the opponent's choices. Raises ValueError when the problem is no position."""
        self.task = task
        self.board, self.mark = read_position(problem.prompt)
        self.rng = stream(seed, f"task/{task.name}/opponent")
        self.blunders: list[str] = []
        """Of each of the learner's moves, what it gave away; empty when nothing."""
        self.forfeit: int | None = None
        """The voice that made no legal move."""

    @property
    def is_over(self) -> bool:
        """Whether nobody may move any more."""
        return self.forfeit is not None or bool(winner(self.board)) or not legal_moves(self.board)

    def step(self, turn: Turn, with_chance: bool = False) -> Observation:
        """The position after the opponent's answer; with `with_chance` a random move stands in for self-play."""
        move = read_move(turn.text, self.board)
        if move is None or turn.calls:
            self.forfeit = turn.voice
            return Observation(done=True)
        mark = self.mark if turn.voice == LEARNER else _OTHER[self.mark]
        if turn.voice == LEARNER:
            before, self.board = value(self.board, mark), play(self.board, mark, move)
            after = -value(self.board, _OTHER[mark])
            self.blunders.append(f"made a {_SAYS[before]} a {_SAYS[after]}" if after < before else "")
        else:
            self.board = play(self.board, mark, move)
        if self.is_over:
            return Observation(done=True)
        if turn.voice == LEARNER and self.task.opponent == "self" and not with_chance:
            return Observation(self._told(_OTHER[mark]), voice=_OPPONENT)
        if turn.voice == LEARNER:
            self._answer(_OTHER[mark])
        return Observation(self._told(self.mark), done=self.is_over)

    def verdict(self, text: str) -> Verdict:
        """Won or not, and every move's part. A game that was cut is lost."""
        won = winner(self.board) == self.mark or self.forfeit == _OPPONENT
        drawn = not won and self.is_over and self.forfeit is None and not winner(self.board)
        right = won or (drawn and self.task.goal == "draw")
        legal = self.forfeit != LEARNER
        spoiled = [f"move {n} {what}" for n, what in enumerate(self.blunders, 1) if what]
        parts = {
            "accuracy": float(right),
            "format": float(legal),
            "process": float(right and not spoiled),
            "won": float(won),
            "drawn": float(drawn),
            **{f"blunder_{n}": float(bool(what)) for n, what in enumerate(self.blunders, 1)},
        }
        faults = [*([] if legal else [f"no legal move: {text[:_QUOTED]!r}"]), *spoiled]
        return Verdict("right" if right else "wrong", float(right), parts, "; ".join(faults))

    def _answer(self, mark: str) -> None:
        moves = legal_moves(self.board) if self.task.opponent != "perfect" else best_moves(self.board, mark)
        self.board = play(self.board, mark, self.rng.choice(moves))

    def _told(self, mark: str) -> tuple[Message, ...]:
        return ({"role": "user", "content": show_position(self.board, mark)},)


# The rules, and the solver -------------------------------------------------------------------------------------------


def read_position(text: str) -> tuple[str, str]:
    """(board of nine squares, who moves). Raises ValueError for what is no position to move in."""
    found = _POSITION.fullmatch(text)
    if found is None:
        raise ValueError(f"no position: {text[:_QUOTED]!r}")
    board, mark = "".join(found.groups()[:3]), found[4]
    if winner(board) or not legal_moves(board) or board.count("X") - board.count("O") != (mark == "O"):
        raise ValueError(f"no position to move in: {text[:_QUOTED]!r}")
    return board, mark


def show_position(board: str, mark: str) -> str:
    """The position as text."""
    return f"{board[:3]}/{board[3:6]}/{board[6:]} {mark}"


def read_move(text: str, board: str) -> int | None:
    """The free square that a turn names in the agreed shape."""
    parsed = parse_response(text)
    if parsed is None or len(parsed[1]) != 1 or parsed[1] not in _SQUARES:
        return None
    move = _SQUARES.index(parsed[1])
    return move if board[move] == "." else None


def legal_moves(board: str) -> list[int]:
    """The free squares."""
    return [square for square, mark in enumerate(board) if mark == "."]


def play(board: str, mark: str, move: int) -> str:
    """The board after a move."""
    return board[:move] + mark + board[move + 1 :]


def winner(board: str) -> str:
    """The mark that has three in a line, or ""."""
    return next((board[a] for a, b, c in _LINES if board[a] != "." and board[a] == board[b] == board[c]), "")


@cache
def value(board: str, mark: str) -> int:
    """What the one to move gets when both play perfectly: 1 won, 0 drawn, -1 lost (minimax over the whole game)."""
    if won := winner(board):
        return 1 if won == mark else -1
    moves = legal_moves(board)
    return max((-value(play(board, mark, move), _OTHER[mark]) for move in moves), default=0)


def best_moves(board: str, mark: str) -> list[int]:
    """All moves that keep the position's value."""
    now = value(board, mark)
    return [move for move in legal_moves(board) if -value(play(board, mark, move), _OTHER[mark]) == now]
