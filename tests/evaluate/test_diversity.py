"""Diversity is counted exactly: by hand, by enumeration, and on a task whose right answers are known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from zifio.config import Sampling
from zifio.evaluate.diversity import distinct_of, diversity, diversity_of_records, of_drawings
from zifio.tasks.episode import Episode, Reply
from zifio.tasks.form import split_thinking
from zifio.tasks.splits import Splits
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Split, Task, Verdict, render_response

PLAIN = Sampling()


def group(words: str, logp: float = -0.5) -> list[Episode]:
    """A reply for every word: `a b` are right, `-a` wrong, `!a` broken; each of two tokens."""
    episodes = []
    for word in words.split():
        outcome = {"-": "wrong", "!": "error"}.get(word[0], "right")
        reply = Reply([1, 2], render_response("", word), [logp, logp])
        episodes.append(Episode(Problem("id", "p", "g"), reply, Verdict(outcome, float(outcome == "right"))))
    return episodes


def test_distinct_of_k_is_the_mean_over_all_choices():
    words = list("aaabbcd")
    for k in range(1, 8):
        chosen = [len(set(some)) for some in combinations(words, k)]
        assert distinct_of(Counter(words), k) == pytest.approx(sum(chosen) / len(chosen))


def test_figures_by_hand():
    """Two of three right ones differ, and all of two; a problem that is never right counts in the coverage alone."""
    found = diversity([group("a a b -c"), group("a b -c !d"), group("-a -b")], ChainSum(), PLAIN, [1, 2, 4])
    assert found["distinct_right"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["distinct_right_at_k"] == {"2": pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)}
    assert found["distinct_right_at_k_problems"] == {"2": 2}
    assert found["coverage"] == pytest.approx(2 / 3) and found["coverage_possible"] == 1.0
    low, high = found["distinct_right_interval"]
    assert low <= found["distinct_right"] <= high


def test_coverage_counts_right_answers_where_the_task_says_how_many_there_are():
    """`splits` has a thousand; so many replies can find at most so many. The shape of a reply does not matter."""
    replies = [*group("013143 103143 013143"), *group("-000000")]
    found = diversity([replies], Splits(), PLAIN, [1])
    assert found["coverage"] == 2 / 1000 and found["coverage_possible"] == 4 / 1000


class Greys:
    """Drawings that are numbers, as far apart as those are; right are those below 5."""

    name = "greys"

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        return Problem(str(index), "grey", "grey", working="139"[index], draws=True)

    def check_gold(self, problem: Problem) -> Verdict:
        return self.score(problem, problem.working)

    def document(self, problem: Problem, shows_working: bool) -> str:
        return problem.working

    def score(self, problem: Problem, response: str) -> Verdict:
        return Verdict("right" if int(response) < 5 else "wrong", 0.0, {"format": 1.0})

    def spread(self, drawn: Sequence[tuple[str, str]]) -> float | None:
        numbers = [int(text) for _, text in drawn]
        return float(max(numbers) - min(numbers)) if len({prompt for prompt, _ in drawn}) == 1 else None


def test_drawings_are_set_beside_real_pictures():
    task = Greys()
    problems = [task.problem("held-out", index, 0) for index in range(3)]
    drawn = {"0": "2 4", "1": "3 6", "2": "x 7"}
    episodes = [
        [Episode(p, Reply([1], t), Verdict("wrong", 0.0, {"format": float(t != "x")})) for t in drawn[p.id].split()]
        for p in problems
    ]
    found = of_drawings(episodes, task)
    assert found == {"spread": 5.0, "real_spread": 8.0, "real_pass_at_1": pytest.approx(2 / 3)}
    other = [[replace(e, problem=replace(e.problem, prompt=e.problem.id)) for e in group] for group in episodes]
    assert of_drawings(other, task) == {"real_pass_at_1": pytest.approx(2 / 3)}
    assert of_drawings([group("a b")], ChainSum()) == {}


def test_a_thousand_right_answers_are_right_and_no_more():
    """What `n_right` says is so."""
    task = Splits()
    problem = task.problem("held-out", 0, seed=1)
    a, b, c = map(int, problem.prompt.split(","))
    answers = {
        f"{x}{(a - x) % 10}{y}{(b - y) % 10}{z}{(c - z) % 10}" for x in range(10) for y in range(10) for z in range(10)
    }
    assert len(answers) == task.n_right
    assert all(task.score(problem, render_response("", answer)).outcome == "right" for answer in answers)
    others = [f"{i:06d}" for i in range(0, 10**6, 997)]
    right = [o for o in others if task.score(problem, render_response("", o)).outcome == "right"]
    assert set(right) == answers & set(others)


def test_entropy_is_the_mean_surprise_of_whole_replies_and_of_tokens():
    replies = [*group("a", -1.0), *group("!b", -3.0)]
    found = diversity([replies], ChainSum(), PLAIN, [1])
    assert found["reply_entropy"] == pytest.approx((2 + 6) / 2) and found["token_entropy"] == pytest.approx(2.0)
    even = diversity([group("a b", math.log(1 / 1000) / 2)], ChainSum(), PLAIN, [1])
    assert even["reply_entropy"] == pytest.approx(math.log(1000))


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(top_k=5), Sampling(min_p=0.1)])
def test_what_is_no_entropy_is_absent(sampling: Sampling):
    found = diversity([group("a b")], ChainSum(), sampling, [1])
    assert "reply_entropy" not in found and "token_entropy" not in found and "distinct_right" in found


def records(groups: list[list[Episode]], **more: object) -> list[dict[str, Any]]:
    """As `zifio eval` writes them, thinking and answer apart; and a reply under a budget, which does not count."""
    rows = []
    for number, episodes in enumerate(groups):
        for place, episode in enumerate(episodes):
            said = split_thinking(episode.reply.text)
            row = {"problem": str(number), "place": place, "budget": None, "prompt": "p", "gold": "g"}
            row |= {"thinking": said.thinking, "response": said.rest, "outcome": episode.verdict.outcome}
            rows.append(row | {"reward": 0.0, "n_tokens": 2, "logp": sum(episode.reply.logps)} | more)
    return [*rows, rows[0] | {"budget": 8, "response": "<answer>else</answer>"}]


@pytest.mark.parametrize("task", [ChainSum(), Splits()])
def test_records_of_an_exam_have_the_very_figures_of_its_episodes(task: Task):
    groups = [group("013143 103143 013143 -c", -1.0), group("a b -c !d"), group("-a -b")]
    wanted = diversity(groups, task, PLAIN, [1, 2, 4], seed=3)
    assert diversity_of_records(records(groups), task, PLAIN, [1, 2, 4], seed=3) == wanted
    assert {"distinct_right", "coverage", "reply_entropy", "token_entropy"} <= set(wanted)


def test_log_probs_of_another_policy_or_of_the_answer_alone_are_no_entropy():
    groups = [group("a b")]
    for rows, sampling in [
        (records(groups), None),
        (records(groups, served="big", thinking="because"), PLAIN),
    ]:
        found = diversity_of_records(rows, ChainSum(), sampling, [1])
        assert found["distinct_right"] == 1.0 and not {"reply_entropy", "token_entropy"} & set(found)
    assert "reply_entropy" in diversity_of_records(records(groups, served="big"), ChainSum(), PLAIN, [1])


@pytest.mark.parametrize("task", [ChainSum(), Splits()])
def test_nothing_right_or_nothing_checked_is_absent_and_not_zero(task: Task):
    wrong = diversity([group("-a -b")], task, PLAIN, [1, 2])
    assert wrong["coverage"] == 0.0 and not {"distinct_right", "distinct_right_at_k"} & set(wrong)
    broken = diversity([group("!a !b")], task, PLAIN, [1, 2])
    assert not {"coverage", "distinct_right"} & set(broken)
