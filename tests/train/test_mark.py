"""Marks of steps: completions tell a dead end from a way that leads on, judges are read, labellers must agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import characters, context, deepseek, made, run, save_base

import zifio.train.mark as mark_module
from zifio.config import ConfigError, Sampling, build
from zifio.data.sources import read_jsonl, write_jsonl
from zifio.engine.policy import LocalPolicy
from zifio.tasks.episode import Reply
from zifio.tasks.steps import Solution, split_steps
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Verdict
from zifio.train.feedback import Judge, MarkStage, MonteCarlo
from zifio.train.mark import complete, judge_steps, mark, read_solutions

TASK = ChainSum(min_terms=2, max_terms=4)
SAMPLING = {"max_new_tokens": 12}


def sampled(prompt: str, gold: str, response: str, outcome: str) -> dict[str, Any]:
    """A line of a `sample` stage's data."""
    row = {"problem": f"chain_sum/train/0/{prompt}", "place": 0, "prompt": prompt, "response": response, "gold": gold}
    return row | {"outcome": outcome, "parts": {}, "reason": "", "n_tokens": 9, "finish": "stop", "model": "abc"}


ROWS = [
    sampled("1+2+3", "6", "<think>1+2=3+3=6</think><answer>6</answer>", "right"),
    sampled("1+2+3", "6", "<think>1+2=4+3=7</think><answer>7</answer>", "wrong"),
    sampled("1+2+3", "6", "<think>1+2=3+3=7</think><answer>7</answer>", "wrong"),
    sampled("1+2+3", "6", "<think>1+2=3+3=7</think><answer>7</answer>", "wrong"),
    sampled("4-1", "3", "<think></think><answer>3</answer>", "right"),
]


class Oracle(LocalPolicy):
    """Completes as someone who works on from any total without a mistake."""

    def __init__(self) -> None:
        self.tokenizer, self.asked = characters(), []
        self.engine = self  # type: ignore[assignment]
        self.model = made(deepseek(vocab_size=self.tokenizer.vocab_size))

    def release(self) -> None:
        """Nothing is held."""

    def generate(self, prompts: list[list[int]], seeds: list[list[int]], sampling: Sampling) -> list[list[Reply]]:
        """The rest of every beginning, as often as it has seeds."""
        self.asked += prompts
        return [[Reply(self.tokenizer.encode(self._rest(prompt)), "") for _ in group] for prompt, group in
                zip(prompts, seeds, strict=True)]  # fmt: skip

    def _rest(self, prompt: list[int]) -> str:
        question, begun = self.tokenizer.decode(prompt).split("<｜User｜>")[1].split("<｜Assistant｜>")
        terms = question.replace("-", "+-").split("+")
        total, rest = int(begun.rsplit("=", 1)[1]), ""
        for term in terms[begun.count("=") + 1 :]:
            total += int(term)
            rest += f"{int(term):+d}={total}"
        return f"{rest}</think><answer>{total}</answer>"


def solutions() -> list[Solution]:
    """Those of ROWS."""
    return [mark_module._solution(row, "here") for row in ROWS]


def test_completions_tell_where_a_working_goes_wrong():
    oracle = Oracle()
    shares, spent = complete(oracle, TASK, solutions(), MonteCarlo(**{"from": "m", "n": 3}), Sampling(), 1)  # type: ignore[arg-type]
    assert shares == [[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 0, 0], [1]]
    assert len(oracle.asked) == 5, "beginnings that are the same are completed once"
    assert spent["tokens"] > 0 and spent["flops"] > 0


class Dice(ChainSum):
    """A task whose verdict goes by the length of the response, and whose check breaks on some."""

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right, wrong or broken by turns."""
        if len(response) % 3 == 0:
            raise ValueError("broke")
        return Verdict("right" if len(response) % 3 == 1 else "wrong", 1.0)


def test_completions_are_those_of_the_engine_and_broken_checks_do_not_count(tmp_path: Path):
    """Against the verdicts of completions that are drawn one by one."""
    from zifio.engine.policy import load_policy

    policy = load_policy(save_base(tmp_path / "base", deepseek()))
    settings, sampling = MonteCarlo(**{"from": "m", "n": 6}), Sampling(max_new_tokens=9)
    (shares,), _ = complete(policy, Dice(), solutions()[:1], settings, sampling, 1)
    again, _ = complete(policy, Dice(), solutions()[:3], settings, sampling, 1)
    assert again[0] == shares, "whatever else is completed beside it"
    drawn = []
    original = policy.engine.generate
    policy.engine.generate = lambda *a: drawn.append(original(*a)) or drawn[-1]  # type: ignore[method-assign]
    complete(policy, Dice(), solutions()[:1], settings, sampling, 1)
    for k, group in enumerate(drawn[0], 1):
        texts = ["".join(solutions()[0].steps[:k]) + policy.tokenizer.decode(one.tokens) for one in group]
        assert len({*texts}) > 1
        counted = [len(text) % 3 for text in texts if len(text) % 3]
        assert shares[k - 1] == (counted.count(1) / len(counted) if counted else 0.0)


class Says:
    """A judge that says what it is told to."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.heard = [*texts], []

    def complete(self, conversations: list, n: int, sampling: Sampling, seeds: list) -> list[list[Reply]]:
        """n of the texts to each conversation."""
        self.heard += conversations
        return [[Reply([], self.texts.pop(0)) for _ in range(n)] for _ in conversations]


@pytest.mark.parametrize(
    "texts, labels",
    [
        (["So \\boxed{0}."], [1, 1, 1]),
        (["\\boxed{-1}"], [1, 1, 1]),
        (["\\boxed{2}"], [1, -1, None]),
        (["\\boxed{1} no, \\boxed{3}"], [1, 1, -1]),
        (["\\boxed{4}"], None),
        (["\\boxed{two}"], None),
        (["I cannot tell."], None),
        (["\\boxed{2}", "\\boxed{1}", "\\boxed{2}"], [1, -1, None]),
        (["\\boxed{2}", "\\boxed{1}"], None),
        (["\\boxed{2}", "what?"], [1, -1, None]),
    ],
)
def test_what_a_judge_says(texts: list[str], labels: list[int | None] | None):
    judge = Says(*texts)
    settings = Judge(**{"from": "m", "votes": len(texts), "sampling": {"temperature": 1.0}})
    assert judge_steps(judge, solutions()[:1], settings, 1) == [labels]
    heard = judge.heard[0][0]["content"]
    assert "Problem: 1+2+3" in heard and "Step 2: +3=6\nStep 3: </think><answer>6</answer>" in heard


def test_the_task_knows_which_step_is_wrong():
    labels = [mark_module._checked(TASK, one) for one in solutions()]
    assert labels == [[1, 1, 1], [-1, -1, -1], [1, -1, -1], [1, -1, -1], [1]]
    off_course = mark_module._solution(
        sampled("1+2+3", "6", "<think>1+2=3+4=7</think><answer>7</answer>", "wrong"), "here"
    )
    assert mark_module._checked(TASK, off_course) == [1, -1, -1], "true, and the wrong term"


def stage_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says | None = None, **settings: Any) -> list[dict]:
    """The rows that a stage writes, with an oracle for completions."""
    write_jsonl(tmp_path / "data.jsonl", ROWS)
    monkeypatch.setattr(mark_module, "load_policy", lambda path: says if path == tmp_path / "judge" else Oracle())
    here = context(
        tmp_path / "run", TASK, data=tmp_path / "data.jsonl", base=tmp_path, judge=tmp_path / "judge",
        people=tmp_path / "people.jsonl",
    )  # fmt: skip
    totals = run("mark", {"data": "data", "sampling": SAMPLING, **settings}, here)
    rows = read_jsonl(tmp_path / "run" / "data.jsonl")
    assert totals["kept"] == len(rows)
    (tmp_path / "totals.json").write_text(json.dumps(totals))
    return rows


def test_a_stage_writes_labels_once_for_each_solution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = stage_run(tmp_path, monkeypatch, rollouts={"from": "base", "n": 2})
    assert [row["labels"] for row in rows] == [[1, 1, 1], [-1, None, None], [1, -1, None], [1]]
    assert rows[2]["shares"] == [1.0, 0.0, 0.0] and rows[2]["source"] == "rollouts"
    assert rows[1]["answer"] == "7" and rows[4 - 1]["steps"] == ["<think></think><answer>3</answer>"]
    totals = json.loads((tmp_path / "totals.json").read_text())
    assert totals["labels_f1"] == 1.0 and totals["drawn"] == 4
    again = stage_run(tmp_path, monkeypatch, rollouts={"from": "base", "n": 2})
    assert again == rows


def test_labellers_that_disagree_drop_a_solution_and_people_outrank_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    human = Solution("id", "1+2+3", "6", tuple(split_steps(ROWS[1]["response"])), (1, 1, -1), "7", "wrong", "ada")
    write_jsonl(tmp_path / "people.jsonl", [human.row()])
    judge = Says("\\boxed{0}", "\\boxed{3}", "\\boxed{3}", "no idea")
    rows = stage_run(
        tmp_path, monkeypatch, judge, rollouts={"from": "base", "n": 2}, judge={"from": "judge"}, people="people"
    )
    assert [(row["labels"], row["source"]) for row in rows] == [([1, 1, 1], "rollouts+judge"), ([1, 1, -1], "ada")]
    assert rows[0]["labellers"] == {"rollouts": [1, 1, 1], "judge": [1, 1, 1]}


def test_the_check_labels_as_an_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = stage_run(tmp_path, monkeypatch, checker=True)
    assert [row["labels"] for row in rows] == [[1, 1, 1], [-1, None, None], [1, -1, None], [1]]


@pytest.mark.parametrize("most, wrong", [(2, 1), (3, 1), (4, 2)])
def test_a_choice_is_balanced(most: int, wrong: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = stage_run(tmp_path, monkeypatch, checker=True, most=most)
    assert len(rows) == most and sum(row["outcome"] == "wrong" for row in rows) == wrong


def test_nothing_but_disagreement_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"none of 4 solutions of .* got labels"):
        stage_run(tmp_path, monkeypatch, Says(*["what?"] * 4), judge={"from": "judge"})


@pytest.mark.parametrize(
    "settings, said",
    [
        ({}, "wanted a labeller, came none"),
        ({"judge": {}}, "wanted either `from`"),
        ({"judge": {"url": "http://here"}}, "wanted `model`"),
        ({"judge": {"from": "m", "votes": 3}}, "votes of a judge"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        build(MarkStage, {"kind": "mark", "name": "a", "data": "d", **settings}, "here")


def test_a_task_without_a_check_of_steps_says_so(tmp_path: Path):
    write_jsonl(tmp_path / "data.jsonl", ROWS)
    from zifio.tasks.splits import Splits

    stage = build(MarkStage, {"kind": "mark", "name": "a", "data": "data", "checker": True}, "here")
    with pytest.raises(ConfigError, match=r"checker: wanted a task that checks steps"):
        mark(stage, context(tmp_path / "run", Splits(), data=tmp_path / "data.jsonl"))


def test_rows_that_cannot_be_read(tmp_path: Path):
    write_jsonl(tmp_path / "data.jsonl", [ROWS[0] | {"gold": 6}])
    with pytest.raises(ConfigError, match="row 1: gold: wanted a text, came 6"):
        read_solutions(tmp_path / "data.jsonl")
