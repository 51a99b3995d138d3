"""Will reinforcement learn here? Read off a few hundred replies of the model that it is to start from.

RL amplifies what a model already does now and then. A group of replies teaches only when its rewards differ; if the
model is never right there is no reward, if it is always right there is nothing to gain, and if it is right by guessing
there is no way of working to amplify. With r right among n replies to a problem,

    pass@k    1 - C(n - r, k) / C(n, k)                            (arXiv:2107.03374, equation 1)
    signal    1 - [C(n - r, G) + C(r, G)] / C(n, G)                a group is neither all wrong nor all right

The number of steps is a guess with a wide interval: per step the log-odds of a right reply rise by SPEED times the
share of groups with a signal. SPEED is what RL runs of this project have shown, from a 135 M model to nano ones; it
depends on the learning rate above all.

Try it: `zifio plan MODEL --task chain_mod --samples 300`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, log
from typing import Literal, NamedTuple

from zifio.stats import Interval, mean, pass_at_k, share_interval, wilson_interval

LOWEST, HEADROOM = 0.02, 0.2
"""A pass@1 below the first gives hardly any signal; below the second right answers are mostly guesses."""
GATE_PROBLEMS, GATE_SAMPLES = 32, 32
"""What the gate looks at before RL: problems, and replies to each."""
HIGHEST_BASE = 0.6
"""Above this pass@1 RL from a base would show little; what the gate asks."""
SPEED = (0.05, 0.16, 0.5)
"""Rise of the log-odds per step and share of groups with a signal: slow, middle (geometric mean), fast."""
_FEW_SIGNALS = 1.0  # groups a step
_MOST_BROKEN = 0.1
_ENOUGH = 100  # replies, before none right is a "no"

Answer = Literal["yes", "unlikely", "no"]


@dataclass(frozen=True)
class Judged:
    """One reply as the task saw it."""

    outcome: Literal["right", "wrong", "error"]
    worked: float
    """1 where it is right and shows a true working; the reward, of a task that knows no workings."""
    cut: bool = False
    """Whether the limit of tokens ended it."""
    formed: bool = True
    """Whether it has the agreed shape."""
    reason: str = ""


@dataclass(frozen=True)
class Health:
    """What the verifier does with what it must know: of how many tries each."""

    gold_right: int
    gold_tries: int
    foreign_right: int
    """Golden replies to other problems that it called right: chance, or a verifier that is not looking."""
    foreign_tries: int


@dataclass(frozen=True)
class Seen:
    """The replies of a model, in figures."""

    problems: int
    replies: int
    broken: int
    """Checks that broke; these replies count in nothing else."""
    fault: str
    """What the first of them said."""
    pass_at_1: float
    pass_at_1_interval: Interval
    pass_at_k: float
    k: int
    worked_at_1: float
    worked_at_k: float
    """Share of problems that were worked out at least once."""
    signal: float
    """Share of groups with differing rewards."""
    cut: float
    """Share of replies that the limit of tokens ended."""
    formed: float
    """Share of the agreed shape."""
    chance: float | None = None
    """Share that is right for another problem than the one that was asked; None where nobody asked."""
    none_right_limit: float | None = None
    """Where nothing was right: what pass@1 may be at most (95 %)."""

    @property
    def headroom(self) -> float:
        """Problems that are worked out now and then and not always."""
        return self.worked_at_k - self.worked_at_1


def see(judged_P_G: Sequence[Sequence[Judged]], group: int, chance: float | None = None, seed: int = 0) -> Seen:
    """The figures of replies, those to one problem together; `group` is how many RL draws to each."""
    counted = [[one for one in replies if one.outcome != "error"] for replies in judged_P_G]
    full = [replies for replies in counted if replies]
    flat = [one for replies in full for one in replies]
    every = [one for replies in judged_P_G for one in replies]
    broken = [one for one in every if one.outcome == "error"]
    fault = broken[0].reason if broken else ""
    if not flat:
        return Seen(
            len(judged_P_G), len(every), len(broken), fault, 0.0, (0.0, 1.0), 0.0, group, 0.0, 0.0, 0.0, 0.0, 0.0
        )
    right = [sum(one.outcome == "right" for one in replies) for replies in full]
    shares = [r / len(replies) for r, replies in zip(right, full, strict=True)]
    k = min(group, *map(len, full))
    none = wilson_interval(0, len(flat))[1] if not any(right) else None
    return Seen(
        problems=len(judged_P_G),
        replies=len(every),
        broken=len(broken),
        fault=fault,
        pass_at_1=mean(shares),
        pass_at_1_interval=share_interval(shares, seed, "learn") if any(right) else (0.0, none or 0.0),
        pass_at_k=mean([pass_at_k(len(replies), r, k) for r, replies in zip(right, full, strict=True)]),
        k=k,
        worked_at_1=mean([mean([one.worked for one in replies]) for replies in full]),
        worked_at_k=sum(any(one.worked for one in replies) for replies in judged_P_G) / len(judged_P_G),
        signal=mean([_signal(len(replies), r, k) for r, replies in zip(right, full, strict=True)]),
        cut=mean([float(one.cut) for one in flat]),
        formed=mean([float(one.formed) for one in flat]),
        chance=chance,
        none_right_limit=none,
    )


def _signal(n: int, right: int, group: int) -> float:
    """Chance that a group out of these replies is neither all right nor all wrong."""
    return 1 - (comb(n - right, group) + comb(right, group)) / comb(n, group)


class Fault(NamedTuple):
    """Why RL from a model would not work, and what to change."""

    words: str
    advice: str
    is_too_easy: bool = False

    def __str__(self) -> str:
        return f"{self.words}. {self.advice[0].upper()}{self.advice[1:]}."


def fault_of_start(seen: Seen, highest: float) -> Fault | None:
    """Why RL from this model would not work; None when it should.

    Where more than `highest` is right there is nothing to show.
    """
    if seen.pass_at_1 < LOWEST:
        return Fault(
            f"pass@1 is {seen.pass_at_1:.3f}, below {LOWEST}: nearly every group is all wrong and gives no signal",
            "pretrain longer, raise p_cot, or use easier problems",
        )
    if seen.pass_at_1 > highest:
        return Fault(
            f"pass@1 is {seen.pass_at_1:.3f}, above {highest}: RL would show little",
            "use harder problems or a lower p_cot",
            is_too_easy=True,
        )
    if seen.headroom < HEADROOM:
        return Fault(
            f"replies with a true working come {seen.worked_at_1:.3f} of the time and at least once in {seen.k} tries "
            f"on {seen.worked_at_k:.3f} of the problems: the headroom is below {HEADROOM}, so right answers are mostly "
            "guesses",
            "raise p_cot or pretrain until workings are right more often",
        )
    return None


@dataclass(frozen=True)
class Outlook:
    """Whether RL will learn, why, and what to do about it."""

    answer: Answer
    reason: str
    fix: str
    """The cheapest that may help; empty for a yes."""
    steps: int | None
    """Expected until the target; None where the answer is not yes."""
    steps_interval: tuple[int, int] | None
    target: float


def outlook(seen: Seen, health: Health, prompts: int, target: float = 0.9) -> Outlook:
    """The answer, from the model's replies and the verifier's health; `prompts` are groups per step."""
    refusal = _verifier(seen, health) or _model(seen, prompts, target)
    if refusal is not None:
        answer, reason, fix = refusal
        return Outlook(answer, reason, fix, None, None, target)
    slow, middle, fast = (_steps(seen, speed, target) for speed in SPEED)
    reason = (
        f"pass@1 {seen.pass_at_1:.0%}, pass@{seen.k} {seen.pass_at_k:.0%}: what it does now and then can become what "
        f"it does; {prompts * seen.signal:.0f} of {prompts} groups a step have a signal"
    )
    return Outlook("yes", reason, "", middle, (fast, slow), target)


def _steps(seen: Seen, speed: float, target: float) -> int:
    low = max(seen.pass_at_1, 1e-3)
    rise = log(target / (1 - target)) - log(low / (1 - low))
    # Signals are fewest at both ends; half of the groups on the way is as much as a start can tell.
    return max(1, round(rise / (speed * (seen.signal + 0.5) / 2)))


def _verifier(seen: Seen, health: Health) -> tuple[Answer, str, str] | None:
    if seen.broken > _MOST_BROKEN * seen.replies:
        words = f"the verifier broke on {seen.broken} of {seen.replies} replies, for example: {seen.fault}"
        return "no", words, "mend the verifier; zifio screen TASK attacks it"
    if health.gold_right < 0.9 * health.gold_tries:
        words = (
            f"the verifier calls {health.gold_tries - health.gold_right} of {health.gold_tries} golden replies wrong"
        )
        return "no", words, "mend the verifier or its gold: a model that is right would not be paid"
    if health.foreign_right > 0.5 * health.foreign_tries:
        words = f"the verifier calls {health.foreign_right} of {health.foreign_tries} golden replies right for another"
        return "no", words, "mend the verifier: it pays for anything; zifio screen TASK shows how"
    return None


def _model(seen: Seen, prompts: int, target: float) -> tuple[Answer, str, str] | None:
    """Why the model would not learn; None where it should."""
    limit = seen.none_right_limit
    if limit is not None:
        words = f"not one of {seen.replies} replies is right, so pass@1 is below {limit:.1%} and groups are all wrong"
        if seen.cut > 0.5:
            return "no", f"{words}; {seen.cut:.0%} are cut off", "raise sampling.max_new_tokens, then ask again"
        if seen.formed < 0.1:
            return (
                "no",
                f"{words}; hardly any has the agreed shape",
                "a cold start: SFT on some dozens of worked answers",
            )
        if seen.replies < _ENOUGH:
            return "unlikely", words, "more samples: --samples 300"
        return "no", words, "an easier mix of problems first; or a cold start on worked answers"
    if seen.pass_at_1 >= target:
        return "no", f"pass@1 is {seen.pass_at_1:.0%} already: nearly all groups are all right", "harder problems"
    if prompts * seen.signal < _FEW_SIGNALS:
        words = f"{seen.signal:.1%} of the groups have a signal: replies to one problem are right or wrong together"
        return "unlikely", words, "a higher temperature or larger groups; else problems of middling difficulty"
    # Answers that fit other problems as well are guesses, whatever share of them is right.
    is_luck = seen.chance is not None and seen.pass_at_1_interval[0] <= seen.chance
    is_shown = seen.worked_at_1 >= LOWEST and seen.worked_at_1 != seen.pass_at_1  # of tasks that know workings
    if is_luck and not is_shown:
        words = (
            f"pass@1 is {seen.pass_at_1:.1%}, and {seen.chance or 0.0:.1%} of the replies are right for another "
            "problem: right answers are guesses, and luck cannot be amplified"
        )
        if seen.pass_at_1 > 1.25 * (seen.chance or 0.0):
            return "unlikely", f"{words}, if so few replies tell", "more samples: --samples 1000"
        return "no", words, "a cold start on worked answers, so that there is a way of working to amplify"
    if fault := fault_of_start(seen, target):
        return "unlikely", fault.words, fault.advice
    return None
