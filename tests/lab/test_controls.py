"""What ends an experiment before it says anything: a mutated verifier, swapped arms, books that do not balance."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_claim import tiny_claim

import zifio.evaluate.ledger as books
from zifio.lab.controls import Unsound, check_equal, check_ledger, check_verifier, multiplied_weights
from zifio.lab.design import Probe
from zifio.lab.shelf import find_claims
from zifio.lab.trial import Part, Trial
from zifio.models.config import read_config
from zifio.models.count import parameters
from zifio.tasks.sums import ChainMod
from zifio.tasks.task import Problem, Verdict

GOLD = {"name": "chain_mod", "min_terms": 4, "max_terms": 4}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A seed that went well."""
    folder = tmp_path_factory.mktemp("lab")
    trial = Trial(tiny_claim(folder), "smoke", 0, folder / "runs")
    trial.run()
    return trial


@pytest.fixture
def copied(done: Trial, tmp_path: Path) -> Part:
    """The same, to be spoilt."""
    shutil.copytree(done.folder, tmp_path / "seed")
    return Part(done.parts["main"].design, done.claim, 0, tmp_path / "seed" / "main")


def spoil(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_an_honest_seed_passes(done: Trial):
    assert done.finished() is not None
    assert done.finished()["probes"][0]["J"] == 1.0


@pytest.mark.parametrize("said", ["right", "wrong"])
def test_a_mutated_verifier_is_caught(said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """One that calls everything right, or wrong: the seed ends before it trains."""

    def mutated(self: ChainMod, problem: Problem, response: str) -> Verdict:
        return Verdict("right" if said == "right" else "wrong", float(said == "right"), {"accuracy": 1.0})

    trial = Trial(tiny_claim(tmp_path), "smoke", 0, tmp_path / "runs")
    monkeypatch.setattr(ChainMod, "score", mutated)
    with pytest.raises(Unsound, match="verifier"):
        trial.run()
    assert not (trial.folder / "main" / "base").exists()


def test_a_verifier_with_other_noise_than_it_is_said_to_have_is_caught():
    noisy = GOLD | {"name": "flawed_mod", "false_accept": 0.3, "false_reject": 0.3}
    found = check_verifier(Probe(noisy, 0.7, 0.3), 1)
    assert found["J"] == pytest.approx(0.4, abs=0.2)
    for wrong in (Probe(noisy, 0.4, 0.3), Probe(noisy, 0.7, 0.0), Probe(noisy)):
        with pytest.raises(Unsound, match="replies accepted"):
            check_verifier(wrong, 1)


def test_a_swapped_arm_is_caught_in_the_design(copied: Part):
    one, two = copied.design.arms
    copied.design = replace(copied.design, arms=[replace(one, stage="two"), replace(two, stage="one")])
    with pytest.raises(Unsound, match="swapped"):
        copied.run(copied.folder.parent / "shared")


def test_a_swapped_arm_is_caught_on_the_disk(copied: Part):
    """Folders of two arms changed places: the digest of the settings tells."""
    for before, after in (("one", "spare"), ("two", "one"), ("spare", "two")):
        (copied.folder / before).rename(copied.folder / after)
    with pytest.raises(ValueError, match="made with the present settings"):
        copied.run(copied.folder.parent / "shared")


def test_one_arm_under_two_names_is_caught(copied: Part):
    one, _ = copied.design.arms
    copied.design = replace(copied.design, arms=[one, replace(one, name="again")])
    with pytest.raises(Unsound, match="of its own"):
        copied.run(copied.folder.parent / "shared")


def test_a_ledger_that_forgets_a_stage_is_caught(copied: Part, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(books, "_STARTS", ())
    with pytest.raises(Unsound, match="do not balance"):
        check_ledger(copied.recipe, copied.folder, ["two"])


@pytest.mark.parametrize("factor", [0.0, 0.1, 100.0])
def test_a_counter_of_work_that_is_off_is_caught(copied: Part, factor: float):
    path = copied.folder / "base" / "done.json"
    spoil(path, flops=factor * json.loads(path.read_text())["flops"])
    with pytest.raises(Unsound, match="counter of work"):
        check_ledger(copied.recipe, copied.folder, ["base"])


def test_weights_are_counted_from_the_files(done: Trial):
    model = done.parts["main"].folder / "base" / "model"
    counted = parameters(read_config(model)).multiplied
    norms = (2 * 1 + 1) * 32
    assert multiplied_weights(model) == counted - norms


def test_unequal_compute_is_caught():
    check_equal({"a": 1.0, "b": 1.04}, 0.05)
    with pytest.raises(Unsound, match="equal compute"):
        check_equal({"a": 1.0, "b": 1.06}, 0.05)


def test_every_claim_predicts_before_it_runs():
    """Each has all its sections, and each experiment all its scales."""
    claims = find_claims()
    assert [claim.id for claim in claims] == [f"C{number}" for number in range(1, 11)]
    for claim in claims:
        for section in ("Published evidence", "Experiment", "Known before the prediction", "Prediction", "Falsifier"):
            assert f"## {section}" in claim.text, (claim.id, section)
        if claim.experiment is not None:
            assert {"smoke", "cpu", "gpu"} == set(claim.experiment.scales)
            wanted = {"C1": 10, "C10": 1}.get(claim.id, 5)  # C10 trains nothing
            assert claim.experiment.scales["cpu"]["seeds"] >= wanted
