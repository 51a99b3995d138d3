"""Process reward models: the loss of independent code, labels in every form, and errors that are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import ADAM, characters, context, deepseek, in_one_and_in_two, llama, made, metrics, run, save_base

from zifio.config import ConfigError
from zifio.data.sources import write_jsonl
from zifio.engine.scorer import load_scorer
from zifio.models.decoder import with_scores
from zifio.seed import stream
from zifio.tasks.steps import Solution, split_steps, to_prm800k, to_stepwise, until_first_error
from zifio.tasks.sums import ChainSum
from zifio.train.batch import make_batches
from zifio.train.loss import LossTerms, batch_loss
from zifio.train.prm import Labelled, found_errors, read_alternatives, read_labelled, step_sequence
from zifio.train.stage import mean_weighted

PRM: dict[str, Any] = {
    "from": "base", "data": "data", "steps": 4, "sequences": 6, "checkpoint_every": 2, "optim": ADAM,
    "rows": {"row_tokens": 96, "micro_tokens": 192},
}  # fmt: skip
TASK = ChainSum(min_terms=2, max_terms=4)
TOKENIZER = characters()


def spoiled(index: int, rate: float = 0.5) -> Solution:
    """A working that goes wrong somewhere, or nowhere, labelled by the task's own check."""
    problem, rng = TASK.problem("train", index // 2, 1), stream(3, "spoiled", index)
    steps = split_steps(TASK.document(problem, shows_working=True))
    if rng.random() < rate:
        place = rng.randrange(len(steps) - 1)
        digit = steps[place][-1]
        steps[place] = steps[place][:-1] + rng.choice([d for d in "0123456789" if d != digit])
    labels = tuple(-1 if label == 0 else label for label in TASK.check_steps(problem, steps))
    return Solution(problem.id, problem.prompt, problem.gold, tuple(steps), labels, problem.gold, "right", "check")


def written(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    """A data file of these rows."""
    write_jsonl(tmp_path / "data.jsonl", rows)
    return tmp_path / "data.jsonl"


def reference_loss(model: Any, labelled: list[Labelled]) -> torch.Tensor:
    """TRL's: label ids of -100 but at the last token of each step, one sequence a row, mean cross-entropy."""
    rows, ids = [], []
    for solution, targets in labelled:
        tokens = TOKENIZER.encode_chat([{"role": "user", "content": solution.prompt}], generation_prompt=True)[0]
        label_ids = [-100] * len(tokens)
        for step, target in zip(solution.steps, targets, strict=True):
            piece = TOKENIZER.encode(step)
            tokens += piece
            label_ids += [-100] * (len(piece) - 1) + [-100 if target is None else int(target)]
        rows.append(tokens)
        ids.append(label_ids)
    logits = []
    for tokens in rows:
        hidden = model(torch.tensor([tokens]), torch.arange(len(tokens))[None]).hidden_BTD
        logits.append(model.score(hidden)[0])
    return F.cross_entropy(torch.cat(logits), torch.tensor([i for row in ids for i in row]), ignore_index=-100)


@pytest.mark.parametrize("shape", [llama(), deepseek()], ids=["llama", "deepseek"])
@pytest.mark.parametrize("row_tokens, micro_tokens", [(60, 60), (96, 1000)])
def test_the_loss_is_the_mean_cross_entropy_at_the_ends_of_steps(shape: Any, row_tokens: int, micro_tokens: int):
    """Value and gradients, in whatever rows and micro-batches, with several solutions behind one prompt."""
    body = made(shape.model_copy(update={"vocab_size": TOKENIZER.vocab_size}))
    model = with_scores(body, 2, seed=1)
    labelled = [
        Labelled(one, [None if label is None else float(label == 1) for label in one.labels])
        for one in map(spoiled, range(9))
    ]
    assert {target for one in labelled for target in one.targets} == {0.0, 1.0, None}
    sequences = mean_weighted([step_sequence(TOKENIZER, one) for one in labelled], "step_weight")
    batches = make_batches(sequences, row_tokens, micro_tokens, TOKENIZER.pad_id)
    assert len(batches) > 1 or micro_tokens == 1000
    results = [batch_loss(model, batch, LossTerms(), 1.0) for batch in batches]
    ours = sum(result.loss for result in results)
    theirs = reference_loss(model, labelled)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for one, two in zip(
        torch.autograd.grad(ours, named.values(), allow_unused=True),
        torch.autograd.grad(theirs, named.values(), allow_unused=True),
        strict=True,
    ):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)
    assert 0 < sum(result.sums["step_accuracy"] for result in results) < 1


def test_a_soft_label_is_a_mixture_of_both():
    """Its loss is the share times that of a good label, and the rest that of a wrong one."""
    model, one = with_scores(made(llama(vocab_size=TOKENIZER.vocab_size)), 2, seed=1), spoiled(0)

    def loss(target: float) -> float:
        labelled = Labelled(one, [target] * len(one.steps))
        (batch,) = make_batches(
            mean_weighted([step_sequence(TOKENIZER, labelled)], "step_weight"), 96, 96, TOKENIZER.pad_id
        )
        return batch_loss(model, batch, LossTerms(), 1.0).loss.item()

    assert loss(0.3) == pytest.approx(0.3 * loss(1.0) + 0.7 * loss(0.0), abs=1e-6)


def test_every_form_of_data_is_learned_from_alike(tmp_path: Path):
    solutions = [one for one in map(spoiled, range(12)) if None not in one.labels[:-1]]
    ours = read_labelled(written(tmp_path, [one.row() for one in solutions]))
    assert [one.targets for one in read_labelled(written(tmp_path, [to_prm800k(one) for one in solutions]))] == [
        one.targets for one in ours
    ]
    stepwise = read_labelled(written(tmp_path, [to_stepwise(one) for one in solutions]))
    assert [one.targets for one in stepwise] == [one.targets[:-1] for one in ours]
    rows = [one.row() | {"shares": [0.25] * len(one.steps)} for one in solutions]
    soft = read_labelled(written(tmp_path, rows), soft=True)
    assert soft[0].targets == [0.25] * (len(solutions[0].steps) - 1) + [None]


def test_what_was_not_chosen_is_learned_from_once(tmp_path: Path):
    """Each at its own end; problems that are held back keep theirs, and without the flag nobody reads them."""
    rows = [to_prm800k(strict(index)) for index in range(20)]
    for row in rows:
        row["label"]["steps"][0]["completions"].append({"text": "=0", "rating": -1, "flagged": None})
    path = written(tmp_path, rows)
    assert [(one.solution.steps[0][:2], one.targets) for one in read_alternatives(path)] == [("=0", [0.0])] * 20
    base = save_base(tmp_path / "base", llama())
    without, with_ = (
        run("prm", PRM | more, context(tmp_path / f"run{n}", base=base, data=path))
        for n, more in enumerate(({"held_back": 0.2}, {"held_back": 0.2, "alternatives": True}))
    )
    assert with_["held_back"] == without["held_back"] and with_["solutions"] == 2 * without["solutions"]


def strict(index: int) -> Solution:
    """A true working that someone finds wrong from the first total above five on: easily learned."""
    problem = TASK.problem("train", index, 1)
    steps = tuple(split_steps(TASK.document(problem, shows_working=True)))
    labels = until_first_error([-1 if step[-1] in "6789" else 1 for step in steps[:-1]] + [1])
    return Solution(problem.id, problem.prompt, problem.gold, steps, labels, problem.gold, "right", "ada")


def test_a_stage_learns_to_find_errors(tmp_path: Path):
    """First errors of problems that it has not seen; its folder is read by the scorer."""
    base = save_base(tmp_path / "base", llama())
    data = written(tmp_path, [strict(index).row() for index in range(400)])
    settings = PRM | {"steps": 40, "sequences": 32, "optim": {"lr": 1e-2, "warmup_steps": 5}, "held_back": 0.2}
    rows = {"row_tokens": 96, "micro_tokens": 4096}
    totals = run("prm", settings | {"rows": rows}, context(tmp_path / "run", base=base, data=data))
    assert totals["held_back_accuracy"] > 0.9 and totals["localisation_f1"] > 0.8, totals
    assert totals["held_back"] + totals["solutions"] == 400 and 60 < totals["held_back"] < 100
    lines = metrics(tmp_path / "run")
    assert lines[-1]["step_accuracy"] > lines[0]["step_accuracy"]
    scorer = load_scorer(tmp_path / "run" / "model")
    assert scorer.by_step
    held = [Labelled(one, [None if x is None else float(x == 1) for x in one.labels]) for one in map(strict, range(9))]
    assert found_errors(scorer, held).keys() >= {"held_back_accuracy"}


def test_two_halves_are_one_run(tmp_path: Path):
    base = save_base(tmp_path / "base", deepseek())
    data = written(tmp_path, [spoiled(index).row() for index in range(40)])
    whole, halves = in_one_and_in_two("prm", PRM, tmp_path, base=base, data=data)
    assert {**whole, "seconds": 0} == {**halves, "seconds": 0}


@pytest.mark.parametrize(
    "rows, said",
    [
        ([], "no label"),
        ([spoiled(0).row() | {"labels": [None] * len(spoiled(0).steps)}], "came 1 rows and no label"),
        ([spoiled(0).row() | {"labels": [3] * len(spoiled(0).steps)}], "row 1: labels: wanted 1, 0, -1 or null"),
        ([spoiled(0).row() | {"shares": [0.5]}], "row 1: shares: wanted a number for each"),
    ],
)
def test_data_without_labels_say_so(rows: list[dict[str, Any]], said: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=said):
        read_labelled(written(tmp_path, rows), soft=True)
