"""Playing: shapes and order, one seed per sample, and the one boundary around a verifier that breaks."""

import pytest

from zifio.config import Sampling
from zifio.tasks.episode import Reply, play
from zifio.tasks.runtime import judge
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Verdict, render_response

TASK = ChainSum()
PROBLEMS = [TASK.problem("train", index, seed=1) for index in range(4)]


class Echo:
    """A policy that answers with its seed, or right for the first reply of every group."""

    def __init__(self):
        self.seen = []

    def complete(self, conversations, n, sampling, seeds):
        self.seen.append((conversations, n, sampling, seeds))
        gold = {problem.prompt: problem.gold for problem in PROBLEMS}
        return [
            [
                Reply(
                    [1, 2],
                    render_response("", str(seed) if j else gold[messages[-1]["content"]]),
                    [-0.5, -0.25],
                )
                for j, seed in enumerate(row)
            ]
            for messages, row in zip(conversations, seeds, strict=True)
        ]


def test_episodes_come_in_the_order_of_problems_and_samples():
    policy = Echo()
    episodes = play(policy, TASK, PROBLEMS, 3, Sampling(), 1, "rl", 7)
    assert [[episode.problem for episode in group] for group in episodes] == [[p] * 3 for p in PROBLEMS]
    assert [[episode.verdict.outcome for episode in group] for group in episodes] == [["right", "wrong", "wrong"]] * 4
    conversations, n, sampling, seeds = policy.seen[0]
    assert conversations == [[{"role": "user", "content": p.prompt}] for p in PROBLEMS]
    assert (n, sampling) == (3, Sampling())
    assert len({seed for row in seeds for seed in row}) == 12


def test_the_seed_of_a_sample_depends_on_its_names_alone():
    policy = Echo()
    play(policy, TASK, PROBLEMS, 3, Sampling(), 1, "rl", 7)
    play(policy, TASK, PROBLEMS[2:], 2, Sampling(), 1, "rl", 7)
    play(policy, TASK, PROBLEMS, 3, Sampling(), 1, "rl", 8)
    play(policy, TASK, PROBLEMS, 3, Sampling(), 2, "rl", 7)
    whole, part, later, other = (seen[3] for seen in policy.seen)
    assert [row[:2] for row in whole[2:]] == part
    assert not set(map(tuple, whole)) & set(map(tuple, later + other))


def test_a_policy_that_returns_too_few_replies_is_caught():
    class Short:
        def complete(self, conversations, n, sampling, seeds):
            return [[] for _ in conversations]

    with pytest.raises(AssertionError, match="wanted 2 replies"):
        play(Short(), TASK, PROBLEMS, 2, Sampling(), 1)


class Broken:
    name = "broken"

    def problem(self, split, index, seed):
        return Problem("broken/0", "1+1", "2")

    def document(self, problem, shows_working):
        return render_response("", "2")

    def check_gold(self, problem):
        return self.score(problem, "")

    def score(self, problem, response):
        if response == "odd":
            return 1.0
        raise RuntimeError("no such file")


@pytest.mark.parametrize("response", ["", "odd"])
def test_a_broken_check_is_an_error_that_names_the_task_and_never_a_zero_score(response):
    verdict = judge(Broken(), Broken().problem("train", 0, 0), response)
    assert verdict.outcome == "error" and verdict.parts == {} and "broken" in verdict.reason
    assert "no such file" in verdict.reason or "1.0" in verdict.reason


def test_a_broken_problem_is_an_error_and_the_others_go_on():
    problems = [PROBLEMS[0], Problem("bad", PROBLEMS[1].prompt, "1000"), PROBLEMS[2]]
    outcomes = [group[0].verdict.outcome for group in play(Echo(), TASK, problems, 1, Sampling(), 1)]
    assert outcomes == ["right", "error", "right"]


def test_judge_lets_through_what_stops_a_run():
    class Stopped(Broken):
        def score(self, problem, response):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(Stopped(), PROBLEMS[0], "")


def test_a_verdict_passes_unchanged():
    response = render_response("", PROBLEMS[0].gold)
    assert judge(TASK, PROBLEMS[0], response) == TASK.score(PROBLEMS[0], response)
    assert isinstance(judge(TASK, PROBLEMS[0], "x"), Verdict)
