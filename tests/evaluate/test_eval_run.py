"""Summaries by hand; one exam for all models; resume that measures nothing twice and changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from tiny import SHORT_SUMS, Sevens, characters, deepseek, llama, save_base

import zifio.evaluate.run as run
from zifio.config import Sampling, build
from zifio.data.sources import read_jsonl
from zifio.engine.policy import load_policy
from zifio.evaluate.config import EvalStage
from zifio.evaluate.run import eval_stage, evaluate, make_look, summarise
from zifio.log import RunFolder
from zifio.models.count import parameters
from zifio.models.weights import load_model
from zifio.stats import paired_difference
from zifio.tasks.episode import Episode, Reply
from zifio.tasks.task import Problem, Verdict, render_response

OUTCOMES = {
    "+": Verdict("right", 1.0, {"accuracy": 1.0, "format": 1.0, "process": 1.0}),
    "-": Verdict("wrong", 0.0, {"accuracy": 0.0, "format": 1.0, "process": 0.0}, "no"),
    "!": Verdict("error", 0.0, {}, "the check broke"),
}
TOKENS = {"+": 9, "-": 4, "!": 1000}


def episodes(*groups: str) -> list[list[Episode]]:
    """A group of episodes for each word: + right, - wrong, ! broken."""
    made = []
    for number, group in enumerate(groups):
        problem = Problem(f"p/{number}", "1+1", "2")
        replies = [Reply([1] * TOKENS[c], render_response("1+1=2" if c == "+" else "", "2")) for c in group]
        made.append([Episode(problem, reply, OUTCOMES[c]) for reply, c in zip(replies, group, strict=True)])
    return made


def test_summary_by_hand():
    found = summarise(episodes("++--", "----", "+---"), [1, 2, 4])
    assert found["pass_at_1"] == pytest.approx(3 / 12)
    assert found["pass_at_k"] == pytest.approx({"1": 3 / 12, "2": (5 / 6 + 0 + 1 / 2) / 3, "4": 2 / 3})
    low, high = found["pass_at_1_interval"]
    assert 0 <= low < found["pass_at_1"] < high <= 0.5
    assert found["mean_response_tokens"] == pytest.approx((3 * 9 + 9 * 4) / 12)
    assert (found["mean_response_tokens_right"], found["mean_response_tokens_wrong"]) == (9, 4)
    assert found["share_shows_working"] == found["process_pass_at_1"] == pytest.approx(3 / 12)
    assert (found["format_rate"], found["n_problems"], found["n_samples"], found["n_errors"]) == (1.0, 3, 12, 0)


def test_a_broken_check_counts_neither_way():
    found, clean = summarise(episodes("+-!!", "!!!!", "+-+!"), [1, 2, 3]), summarise(episodes("+-", "+-+"), [1, 2])
    for key in ("pass_at_1", "mean_response_tokens", "format_rate", "process_pass_at_1"):
        assert found[key] == clean[key]
    assert found["pass_at_k"]["2"] == clean["pass_at_k"]["2"]
    assert found["pass_at_k"]["3"] == 1.0, "of the one problem with three checked replies"
    assert (found["n_problems"], found["n_samples"], found["n_errors"]) == (3, 12, 7)


def test_what_cannot_be_computed_is_absent():
    assert summarise(episodes("!!", "!!"), [1, 2]) == {"n_problems": 2, "n_samples": 4, "n_errors": 4}
    found = summarise(episodes("--", "-!"), [1, 2])
    assert "mean_response_tokens_right" not in found
    assert found["pass_at_1_interval"][1] > 0.2, "no right reply to two problems proves little"


def test_thinking_counts_also_when_the_shape_is_wrong():
    verdict = OUTCOMES["-"]
    texts = ["<think>1+1", "<think> </think>2", "2", "<think>2</think>"]
    group = [[Episode(Problem("p", "1+1", "2"), Reply([1], text), verdict) for text in texts]]
    assert summarise(group, [1])["share_shows_working"] == 0.5


# The stage -----------------------------------------------------------------------------------------------------------


class Fragile(Sevens):
    """A task whose check breaks on replies that have a zero in them."""

    def score(self, problem: Problem, response: str) -> Verdict:
        assert "0" not in response, "cannot read zero"
        return super().score(problem, response)


def exam(**settings) -> EvalStage:
    default = {"models": ["one", "two"], "problems": 5, "n": 4, "ks": [1, 4], "sampling": {"max_new_tokens": 6}}
    return build(EvalStage, {"kind": "eval", "name": "final", **default, **settings}, "test")


@pytest.fixture
def models(tmp_path) -> Path:
    for name, config, seed in (("one", deepseek(), 1), ("two", llama(), 2), ("same", deepseek(), 1)):
        save_base(tmp_path / name, config, seed)
    return tmp_path


def measured(stage: EvalStage, models: Path, folder: str, task=None) -> dict[str, float]:
    return eval_stage(stage, models / folder, 3, task or Fragile(), lambda name: models / name)


def test_results_are_those_of_the_records(models):
    totals = measured(exam(), models, "final")
    results = json.loads((models / "final" / "results.json").read_text())
    rows = {key: read_jsonl(models / "final" / f"records-{key}.jsonl") for key in results}
    assert list(results) == ["one", "two"]
    for key, found in results.items():
        checked = [row for row in rows[key] if row["outcome"] != "error"]
        assert found["n_errors"] == 20 - len(checked)
        assert found["n_tokens"] == sum(row["n_tokens"] for row in rows[key])
        assert found["path"] == str(models / key)
        config = load_model(models / key).config
        assert found["parameters"] == {"total": parameters(config).total, "active": parameters(config).active}
        golds = {problem.id: problem.gold for problem in (Fragile().problem("held-out", i, 3) for i in range(5))}
        assert all(row["logp"] < 0 and row["gold"] == golds[row["problem"]] for row in rows[key])
        assert {row["finish"] for row in rows[key]} <= {"stop", "length"}
    assert any(found["n_errors"] for found in results.values()), "the check broke now and then"
    assert totals["tokens"] == sum(found["n_tokens"] for found in results.values())
    assert totals["flops"] == sum(found["flops"] for found in results.values())
    assert totals["seconds"] > 0
    gain, right = results["two"]["gain"], {}
    for key in results:
        by_problem: dict[str, list[float]] = {}
        for row in rows[key]:
            if row["outcome"] != "error":
                by_problem.setdefault(row["problem"], []).append(float(row["outcome"] == "right"))
        right[key] = {problem: sum(values) / len(values) for problem, values in by_problem.items()}
    both = [problem for problem in right["two"] if problem in right["one"]]
    expected = paired_difference([right["two"][p] for p in both], [right["one"][p] for p in both], 3, "gain")
    assert (gain["over"], gain["mean"], tuple(gain["interval"])) == ("one", *expected)
    assert "gain" not in results["one"]


def test_equal_weights_get_equal_marks(models):
    measured(exam(models=["one", "same"]), models, "final")
    one, same = (read_jsonl(models / "final" / f"records-{key}.jsonl") for key in ("one", "same"))
    assert one == same
    assert len({row["problem"] for row in one}) == 5
    assert len({row["response"] for row in one}) > 5, "samples of one problem differ"


def test_chunks_change_no_reply(models, monkeypatch):
    measured(exam(), models, "whole")
    monkeypatch.setattr(run, "CHUNK", 2)
    measured(exam(), models, "chunks")
    for key in ("one", "two"):
        whole, chunks = (read_jsonl(models / folder / f"records-{key}.jsonl") for folder in ("whole", "chunks"))
        assert [row["response"] for row in whole] == [row["response"] for row in chunks]


def test_a_recipe_task_gives_way_to_the_stages_own(models):
    own = {"name": "chain_sum", "min_terms": 2, "max_terms": 3}
    measured(exam(task=own), models, "final")
    rows = read_jsonl(models / "final" / "records-one.jsonl")
    assert all(row["problem"].startswith("chain_sum/held-out/3/") for row in rows)


def contents(folder: Path) -> dict[str, bytes]:
    """All files that a repeated run must reproduce."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "timing.jsonl"}


@pytest.mark.parametrize("moment", ["model", "records", "metrics", "results"])
def test_a_killed_run_goes_on_and_ends_the_same(models, monkeypatch, moment):
    """Killed at the second model: before it is read, after its records, after its metrics, after its results."""
    measured(exam(), models, "whole")
    loads = []

    def killed(original, when):
        def call(*args, **kwargs):
            result = original(*args, **kwargs)
            loads.append(1)
            if len(loads) == when:
                raise KeyboardInterrupt
            return result

        return call

    with monkeypatch.context() as patched:
        if moment == "model":
            patched.setattr(run, "load_policy", killed(run.load_policy, 2))
        elif moment == "records":
            patched.setattr(run, "write_jsonl", killed(run.write_jsonl, 2))
        elif moment == "metrics":
            patched.setattr(RunFolder, "metrics", killed(RunFolder.metrics, 2))
        else:
            patched.setattr(run, "write_whole", killed(run.write_whole, 2))
        with pytest.raises(KeyboardInterrupt):
            measured(exam(), models, "cut")
    again = []
    monkeypatch.setattr(run, "load_policy", lambda path, *more: again.append(path.name) or load_policy(path, *more))
    measured(exam(), models, "cut")
    assert again == ([] if moment == "results" else ["two"])
    assert contents(models / "cut") == contents(models / "whole")
    assert len(RunFolder(models / "cut").read_timing()) == 2


def test_only_what_changed_is_measured_again(models, monkeypatch):
    first = measured(exam(), models, "final")
    seen = []
    monkeypatch.setattr(run, "load_policy", lambda path, *more: seen.append(path.name) or load_policy(path, *more))
    assert measured(exam(), models, "final") == first
    assert seen == []
    save_base(models / "two", llama(), seed=9)
    measured(exam(), models, "final")
    assert seen == ["two"], "its weights changed"
    measured(exam(models=["one", "two", "same"]), models, "final")
    assert seen == ["two", "same"], "a model more is no new exam for the others"
    measured(exam(problems=4), models, "final")
    assert seen == ["two", "same", "one", "two"], "other problems are"


# The look along the way ----------------------------------------------------------------------------------------------


def test_looks_ask_the_same_and_leave_the_model_alone(models):
    model = load_model(models / "one")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    look = make_look(4, 4, Sampling(max_new_tokens=6), 3, Sevens(), characters())
    torch.manual_seed(0)
    (first, flops), (second, _) = look(model, 0), look(model, 40)
    assert first == second
    assert flops > 0
    assert {"pass_at_1", "pass_at_4", "mean_response_tokens", "process_pass_at_1"} <= set(first)
    assert first["pass_at_4_low"] <= first["pass_at_4"] <= first["pass_at_4_high"]
    assert all(isinstance(value, int | float) for value in first.values())
    RunFolder(models / "log").metrics(1, first)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_one_sample_per_problem_is_enough_for_a_look(models):
    look = make_look(4, 1, Sampling(max_new_tokens=6), 3, Sevens(), characters())
    metrics, _ = look(load_model(models / "one"), 0)
    assert "pass_at_1" in metrics
    assert not any(key.startswith("pass_at_4") for key in metrics)


def test_evaluate_is_play_under_its_own_names(models):
    policy = load_policy(models / "one")
    problems = [SHORT_SUMS.problem("held-out", index, 3) for index in range(3)]
    once, again, other = (
        evaluate(policy, SHORT_SUMS, problems, 2, Sampling(max_new_tokens=6), 3, name) for name in ("a", "a", "b")
    )
    assert once == again != other
