"""Choosing by a process reward model: against choices written out by hand, beside the majority, with first errors."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from tiny import SHORT_SUMS, characters, deepseek, llama, made, save_base

from zifio.config import build
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import TokenizerConfig, save_tokenizer, train_tokenizer
from zifio.engine.policy import open_model
from zifio.engine.scorer import Scorer, Scores
from zifio.evaluate.config import EvalStage
from zifio.evaluate.report import write_report
from zifio.evaluate.rerank import AGGREGATES, rerank, score_rows
from zifio.evaluate.run import eval_stage
from zifio.evaluate.votes import majority_at_k, weighted_at_k
from zifio.models.decoder import with_scores
from zifio.models.weights import save_model
from zifio.tasks.steps import split_steps
from zifio.tasks.sums import ChainSum

TASK = ChainSum(min_terms=2, max_terms=4)


@pytest.mark.parametrize("seed", range(10))
def test_a_weighted_vote_is_the_mean_over_all_draws(seed: int):
    rng = random.Random(seed)
    n = rng.randint(1, 8)
    answers = [rng.choice(["7", "3", "5", None]) for _ in range(n)]
    weights = [rng.choice([0.25, 0.5, 1.0]) for _ in range(n)]
    right = [int(a == "7") for a in answers]
    for k in range(1, n + 1):
        values = []
        for draw in combinations(range(n), k):
            totals: Counter[str] = Counter()
            for i in draw:
                if (answer := answers[i]) is not None:
                    totals[answer] += weights[i]  # type: ignore[assignment]
            best = [a for a in totals if totals[a] == max(totals.values())]
            values.append(sum(a == "7" for a in best) / len(best) if best else 0.0)
        assert weighted_at_k(answers, weights, right, k) == pytest.approx(sum(values) / len(values), abs=1e-12)
        assert weighted_at_k(answers, [0.5] * n, right, k) == pytest.approx(majority_at_k(answers, right, k), abs=1e-12)


def test_too_many_draws_are_sampled_evenly():
    rng = random.Random(1)
    answers, weights = [rng.choice("735") for _ in range(16)], [rng.random() for _ in range(16)]
    right = [int(a == "7") for a in answers]
    whole = weighted_at_k(answers, weights, right, 8, most=20_000)
    assert 0.02 < whole < 0.98
    assert weighted_at_k(answers, weights, right, 8, most=2000) == pytest.approx(whole, abs=0.03)


class Given(Scorer):
    """Says of every step what the rows hold."""

    def __init__(self, scores: list[list[float]]) -> None:
        self.given = scores

    @property
    def by_step(self) -> bool:
        """As a process reward model."""
        return True

    def scores(self, solved: Any) -> Scores:
        """In order."""
        assert [len(steps) for _, steps in solved] == [len(one) for one in self.given]
        return Scores(self.given, 7.0)


def row(problem: str, response: str, outcome: str) -> dict[str, Any]:
    """A record."""
    return {"problem": problem, "prompt": "1+2+3", "gold": "6", "response": response, "outcome": outcome}


RIGHT = "<think>1+2=3+3=6</think><answer>6</answer>"
WRONG = "<think>1+2=4+3=7</think><answer>7</answer>"
LATE = "<think>1+2=3+3=7</think><answer>7</answer>"


def test_choices_and_first_errors():
    said = [("a", RIGHT, "right"), ("a", WRONG, "wrong"), ("a", LATE, "wrong"), ("b", RIGHT, "error"),
            ("b", RIGHT, "right"), ("b", WRONG, "wrong"), ("b", LATE, "wrong"), ("c", LATE, "wrong")]  # fmt: skip
    rows = [row(*one) for one in said]
    scores = [[0.9, 0.9, 0.6], [0.2, 0.1, 0.9], [0.9, 0.2, 0.9], [0.9, 0.9, 0.9],
              [0.9, 0.4, 0.8], [0.3, 0.8, 0.9], [0.9, 0.3, 0.8], [0.9, 0.9, 0.9]]  # fmt: skip
    found, flops = rerank(Given(scores), TASK, rows, [1, 3], seed=0)
    assert flops == 7.0
    by = {line["by"]: line for line in found["table"]}
    assert list(by) == list(AGGREGATES) and {line["k"] for line in found["table"]} == {3}
    assert all(line["n_problems"] == 2 and line["majority"] == 0.0 for line in by.values())
    assert by["min"]["best"] == 1.0, "both right replies have the best worst step"
    assert by["last"]["best"] == 0.0 and by["mean"]["best"] == 1.0 and by["product"]["best"] == 1.0
    assert by["min"]["weighted"] == 0.5  # 0.6 > 0.1 + 0.2, and 0.4 < 0.3 + 0.3
    assert by["min"]["best_gain"] == {"mean": 1.0, "interval": [1.0, 1.0]}
    assert rows[0]["step_scores"] == scores[0]
    located = found["localisation"]
    assert located["n_error"] == 5 and located["n_correct"] == 2
    assert located["error_accuracy"] == 4 / 5 and located["correct_accuracy"] == 1 / 2
    assert located["f1"] == pytest.approx(2 / (1 / 0.8 + 1 / 0.5))


def test_a_model_of_whole_replies_reads_them_in_one_piece():
    """Cut into steps the same text has other tokens than those it was trained on."""
    text = "I count the cats. There are two cats. There is no third."
    tokenizer = ChatTokenizer(
        train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), ["the cats. There are cats."] * 50)
    )
    assert tokenizer.encode(text) != [token for step in split_steps(text) for token in tokenizer.encode(step)]
    scorer = Scorer(with_scores(made(llama(vocab_size=tokenizer.vocab_size)), 1, seed=1), tokenizer)
    rows = [row("a", text, "right")]
    assert score_rows(scorer, rows) > 0
    (wanted,) = scorer.scores([([{"role": "user", "content": "1+2+3"}], [text])]).values
    assert rows[0]["step_scores"] == wanted


@pytest.mark.parametrize("n_labels", [1, 2])
def test_an_eval_stage_reranks_and_reports(n_labels: int, tmp_path: Path):
    base = save_base(tmp_path / "base", deepseek())
    _, tokenizer = open_model(base)
    (tmp_path / "prm").mkdir()
    save_model(with_scores(made(llama(vocab_size=characters().vocab_size)), n_labels, seed=1), tmp_path / "prm")
    save_tokenizer(tokenizer, tmp_path / "prm")
    stage = build(
        EvalStage,
        {"kind": "eval", "name": "final", "models": ["base"], "problems": 5, "n": 4, "ks": [1, 2, 4], "prm": "prm",
         "sampling": {"max_new_tokens": 10}},
        "test",
    )  # fmt: skip
    folder = tmp_path / "run" / "final"
    eval_stage(stage, folder, 1, SHORT_SUMS, lambda name: tmp_path / name)
    results = json.loads((folder / "results.json").read_text())
    table = results["base"]["rerank"]["prm"]["table"]
    assert [(line["k"], line["by"]) for line in table] == [
        (k, name) for k in (2, 4) for name in (AGGREGATES if n_labels == 2 else ["last"])
    ]
    rows = [json.loads(line) for line in (folder / "records-base.jsonl").read_text().splitlines()]
    assert len(rows) == 20 and all(len(one["step_scores"]["prm"]) >= 1 for one in rows)
    (folder / "stage.json").write_text(json.dumps({"settings": {}}))
    write_report(tmp_path / "run", "x", [("final", "eval")])
    page, plain = (tmp_path / "run" / "report.html").read_text(), (tmp_path / "run" / "report.md").read_text()
    assert "choosing among its replies" in page and "points (" in page
    assert plain.count("| last |") == 2 and "points (" in plain


def test_an_exam_reranks_what_it_has_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    """`zifio eval --answers`, with a model of the steps: as a stage does it, thinking and answer put together again."""
    from zifio import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "prm").mkdir()
    scorer = with_scores(made(llama(vocab_size=characters().vocab_size)), 2, seed=1)
    save_model(scorer, tmp_path / "prm")
    save_tokenizer(characters(), tmp_path / "prm")
    problems = [TASK.problem("held-out", index, 0) for index in range(6)]
    with (tmp_path / "answers.jsonl").open("w") as file:
        for problem in problems:
            for place, text in enumerate((TASK.document(problem, True), "<think>1+2=3</think><answer>3</answer>")):
                file.write(json.dumps({"problem": problem.id, "place": place, "response": text}) + "\n")
    words = ["eval", "--answers", "answers.jsonl", "--task", "chain_sum:min_terms=2,max_terms=4", "--problems", "6"]
    assert cli.main([*words, "prm=prm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["rerank"]["prm"]
    assert {line["k"] for line in found["table"]} == {2} and found["localisation"]["n_error"] >= 5
    (page,) = tmp_path.glob("runs/eval/*/results.md")
    assert "## Choosing by the steps' scores" in page.read_text() and "points (" in page.read_text()
