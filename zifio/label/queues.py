"""Which item comes next: a number for each, the highest first.

- random: a random sample at any time, the only queue from which `label.estimate` may conclude about all items.
- order: as imported.
- convincing: a wrong answer with a high process score first, as in PRM800K (arXiv:2305.20050, section 2.4); then
  answers nobody checked; then right ones, the least believed first: a right answer by a wrong way.
- disagreement: people against each other, the machine against people, the process score against the verifier.
- gain: where one more label tells most. A labeller is a noisy channel that is right with probability `ACCURACY`; the
  gain is the information (in bits) that the label carries about whether the item is sound.

Try it alone:

    python -c "from zifio.label.queues import *; print(priority('convincing', Facts('a', 1, .9, 'wrong', None, ())))"
"""

from collections import Counter
from collections.abc import Sequence
from math import exp, log, log2
from typing import NamedTuple

from zifio.seed import stream_seed

ACCURACY = 0.85
_SURE = 0.02  # no machine is believed beyond this
_SOUND, _FAULTY = {"no error", "right", "a"}, {"wrong", "b"}


class Facts(NamedTuple):
    """What is known about one item."""

    id: str
    seq: int
    score: float | None
    """The process score of the whole, in [0, 1]."""
    outcome: str
    """The verifier's verdict, or ""."""
    machine: str | None
    """The stance of the pre-label."""
    stances: Sequence[str]
    """What people have said so far."""


def priority(queue: str, facts: Facts) -> float:
    """The place in the queue, highest first. Equal ones come in random order."""
    chance = stream_seed(0, "label/queue", facts.id) / 2**63
    if queue == "order":
        return -float(facts.seq)
    if queue == "convincing":
        return _convincing(facts) + 1e-6 * chance
    if queue == "disagreement":
        return _disagreement(facts) + 1e-6 * chance
    if queue == "gain":
        return expected_gain(facts) + 1e-6 * chance
    assert queue == "random", queue
    return chance


def expected_gain(facts: Facts) -> float:
    """Bits that one more label carries about the item: h(q) - h(ACCURACY), q = P(the label says sound)."""
    sound = belief(facts)
    says_sound = sound * ACCURACY + (1 - sound) * (1 - ACCURACY)
    return _entropy([says_sound, 1 - says_sound]) - _entropy([ACCURACY, 1 - ACCURACY])


def belief(facts: Facts) -> float:
    """P(the item is sound) after the machine's and the people's word; of a pair, P(the first is better)."""
    prior = 0.5 if facts.score is None else min(max(facts.score, _SURE), 1 - _SURE)
    weight = log(ACCURACY / (1 - ACCURACY))
    voices = [*facts.stances, *([facts.machine] if facts.machine else [])]
    odds = log(prior / (1 - prior)) + weight * sum(_direction(voice) for voice in voices)
    return 1 / (1 + exp(-odds))


def _direction(stance: str) -> int:
    """+1 for sound, -1 for faulty, 0 for what tells neither."""
    if stance in _SOUND:
        return 1
    return -1 if stance in _FAULTY or stance.startswith("error ") else 0


def _convincing(facts: Facts) -> float:
    score = 0.5 if facts.score is None else facts.score
    if facts.outcome == "wrong":
        return 3 + score
    return 2 - score if facts.outcome == "right" else 2 + score / 2


def _disagreement(facts: Facts) -> float:
    voices = Counter([*facts.stances, *([facts.machine] if facts.machine else [])])
    between = _entropy([n / voices.total() for n in voices.values()])
    if facts.score is None or facts.outcome not in ("right", "wrong"):
        return between
    return between + abs(facts.score - (facts.outcome == "right"))


def _entropy(shares: Sequence[float]) -> float:
    return -sum(share * log2(share) for share in shares if share > 0)
