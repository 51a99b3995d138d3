"""The last digit of a sum, with a verifier or a text that is wrong on purpose and by a known amount.

The laboratory's means to ask what noise, loopholes and bad data do. Gold is `chain_mod`. A random error of the verifier
is a function of the problem and the reply's text, so that it judges the same reply alike, as any program does. Youden's
J of the verifier is 1 - false_accept - false_reject. Do not use it for anything else.

Try it alone:

    python -c "from zifio.tasks.flawed import FlawedMod as F; print(F(rotten=1, rot='rule').document(
        F().problem('train', 0, 1), True))"
"""

import random
from typing import Literal

from pydantic import Field

from zifio.seed import stream
from zifio.tasks.sums import ChainMod, true_steps
from zifio.tasks.task import Problem, Verdict, parse_response, render_response

_DIGITS = "0123456789"
_FORGOTTEN = "7"


class FlawedMod(ChainMod):
    """ChainMod whose verifier or documents are wrong by a known amount."""

    name: Literal["flawed_mod"] = "flawed_mod"  # type: ignore[assignment]
    """Which task this is."""
    false_accept: float = Field(default=0.0, ge=0, le=1)
    """Share of wrong replies (of the agreed shape) that are accepted all the same."""
    false_reject: float = Field(default=0.0, ge=0, le=1)
    """Share of right replies that are rejected."""
    loophole: Literal["none", "zero"] = "none"
    """zero: the answer 0 is always accepted."""
    graded: bool = False
    """The reward is 1 minus a ninth of the distance to the right digit, whatever is accepted."""
    unpaid: bool = False
    """The outcome earns nothing: what is left to learn from are steps and shape."""
    rotten: float = Field(default=0.0, ge=0, le=1)
    """Share of documents that are wrong."""
    rot: Literal["answer", "rule", "shuffled"] = "answer"
    """How. answer: working and answer end in another digit; rule: every 7 counts as 0; shuffled: the steps of the
    working stand in another order."""

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The assistant's text: as of ChainMod, but for those that are rotten."""
        rng = stream(0, "task/flawed_mod/rotten", problem.id)
        if rng.random() >= self.rotten:
            return super().document(problem, shows_working)
        working, answer = self._rotten(problem, rng)
        return render_response(working if shows_working else "", answer)

    def _rotten(self, problem: Problem, rng: random.Random) -> tuple[str, str]:
        """(working, answer) of a rotten document."""
        if self.rot == "rule":
            tail = f")%{self.modulus}"
            terms = problem.prompt[1 : -len(tail)].replace(_FORGOTTEN, "0")
            steps = true_steps(terms, self.working, self.modulus)
            return "".join(steps), steps[-1][-1]
        steps = self._steps(problem.prompt)
        if self.rot == "shuffled":
            return "".join(rng.sample(steps, len(steps))), problem.gold
        answer = rng.choice([digit for digit in _DIGITS if digit != problem.gold])
        return "".join(steps)[:-1] + answer, answer

    def score(self, problem: Problem, response: str) -> Verdict:
        """Whether the verifier accepts it; the parts "format" and "process" are honest."""
        honest = super().score(problem, response)
        parsed = parse_response(response)
        if parsed is None:
            return honest
        is_right = honest.outcome == "right"
        luck = stream(0, "task/flawed_mod/verdict", problem.id, response).random()
        accepted = luck >= self.false_reject if is_right else luck < self.false_accept
        accepted = accepted or (self.loophole == "zero" and parsed[1] == "0")
        reward = self._closeness(parsed[1], problem.gold) if self.graded else float(accepted)
        parts = {**honest.parts, "accuracy": float(accepted)}
        reason = "" if accepted else honest.reason or "rejected by mistake"
        return Verdict("right" if accepted else "wrong", 0.0 if self.unpaid else reward, parts, reason)

    def _closeness(self, answer: str, gold: str) -> float:
        """How near a digit is to the right one; what is no digit is not near."""
        if len(answer) != 1 or answer not in _DIGITS:
            return 0.0
        return 1 - abs(int(answer) - int(gold)) / 9
