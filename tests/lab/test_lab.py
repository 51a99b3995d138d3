"""The laboratory's verb: seeds that go on where they were killed, shared bases, verdicts that follow from seeds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_claim import RUN, tiny_claim

from zifio.config import ConfigError
from zifio.lab import trial as trial_module
from zifio.lab import verb
from zifio.lab.effects import over_seeds, paired, paired_ratio, share, t_quantile
from zifio.lab.report import page, table_rows
from zifio.lab.running import run_claim
from zifio.lab.shelf import find_claim, find_claims
from zifio.lab.trial import Trial, at_budget, command

WORDS = "zifio lab run C1 --scale smoke"


def test_a_claim_runs_goes_on_and_keeps_what_is_done(tmp_path: Path):
    """Killed after its base, a seed makes the rest alone; done, nothing runs again."""
    claim, out = tiny_claim(tmp_path), tmp_path / "runs"
    first = run_claim(claim, "cpu", out, None, 2, False, WORDS)
    assert first["verdict"]["word"] == "supported" and len(first["seeds"]) == 2
    assert (claim.folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    trial = Trial(claim, "cpu", 1, out)
    kept = (trial.folder / "main" / "base" / "done.json").stat().st_mtime_ns
    (trial.folder / "figures.json").unlink()
    shutil.rmtree(trial.folder / "main" / "two")
    again = run_claim(claim, "cpu", out, None, 1, False, WORDS)
    assert (trial.folder / "main" / "base" / "done.json").stat().st_mtime_ns == kept
    assert [row["figures"] for row in again["seeds"]] == [row["figures"] for row in first["seeds"]], "bit for bit"
    times = [(out / "cpu" / "c1_longer" / f"seed-{seed}" / "log.txt").stat().st_mtime_ns for seed in (0, 1)]
    run_claim(claim, "cpu", out, None, 1, False, WORDS)
    assert times == [(out / "cpu" / "c1_longer" / f"seed-{s}" / "log.txt").stat().st_mtime_ns for s in (0, 1)]


def test_the_page_is_made_of_results_and_refuses_what_does_not_follow(tmp_path: Path):
    claim = tiny_claim(tmp_path)
    run_claim(claim, "cpu", tmp_path / "runs", None, 1, False, WORDS)
    claims = find_claims(tmp_path / "lab")
    text = page(claims)
    assert "| **supported** | 2 |" in text and WORDS in text and "FLOPs more" in text
    path = claim.folder / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"verdict": result["verdict"] | {"word": "refuted"}}))
    with pytest.raises(ConfigError, match="the verdict that its seeds give, supported"):
        page(claims)
    path.write_text(json.dumps(result))
    (claim.folder / "claim.md").write_text(claim.text.replace("Yes.", "No."))
    with pytest.raises(ConfigError, match="the prediction that the result was made under"):
        table_rows(claims)


def test_a_base_is_trained_once_for_all_claims(tmp_path: Path):
    """Another claim with the same seed and base takes it from the shelf."""
    claim, out = tiny_claim(tmp_path), tmp_path / "runs"
    Trial(claim, "smoke", 0, out).run()
    other = tmp_path / "lab" / "c2_other"
    shutil.copytree(claim.folder, other)
    (other / "run.py").write_text(
        RUN.replace('Experiment("C1"', 'Experiment("C2"')
        .replace('s.rl("two", "base", 2', 's.rl("two", "base", 3')
        .replace('{"steps": 2}', '{"steps": 3}')
    )
    second = Trial(find_claim("C2", tmp_path / "lab"), "smoke", 0, out)
    second.run()
    weights = [one.folder / "main" / "base" / "done.json" for one in (Trial(claim, "smoke", 0, out), second)]
    assert weights[0].read_text() == weights[1].read_text(), "seconds and all: it was copied"


def test_a_prediction_comes_before_the_run(tmp_path: Path):
    claim = tiny_claim(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    with pytest.raises(ConfigError, match="committed before the run"):
        run_claim(claim, "cpu", tmp_path / "runs", None, 1, False, WORDS)
    subprocess.run([*git, "add", "lab"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    assert not claim.is_changed() and len(claim.committed()[1]) == len("2026-11-28")


def test_a_seed_that_fails_says_why(tmp_path: Path):
    claim = tiny_claim(tmp_path)
    (claim.folder / "run.py").write_text(RUN.replace('"steps": 2}', '"steps": 7}'))
    claim = find_claim("C1", tmp_path / "lab")
    with pytest.raises(ConfigError, match=r"(?s)arm two: wanted steps = 7.*what is done stays"):
        run_claim(claim, "smoke", tmp_path / "runs", 1, 1, False, WORDS)


def test_a_seed_whose_parent_was_killed_stops_between_two_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    claim = tiny_claim(tmp_path)
    monkeypatch.setattr(trial_module._watched, "parent", None)
    words = command(claim, "smoke", 0, tmp_path / "runs")[3:]
    assert trial_module.main([*words[:-1], str(os.getpid())]) == 130, "this process is not its own parent"
    assert not (tmp_path / "runs" / "smoke" / "c1_longer" / "seed-0" / "main" / "base").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (("lost",), "Did you mean 'list'"),
        (("run",), "came nothing"),
        (("run", ["C77"]), "wanted a claim, one of C1"),
        (("run", ["C1"], "smoke", 0), "--seeds: wanted at least 1"),
        (("run", ["C1"], "smoke", 1, 0), "--jobs: wanted at least 1"),
    ],
)
def test_errors_say_what_to_do(words: tuple, message: str):
    with pytest.raises(ConfigError, match=message):
        verb.lab(*words)


def test_a_prediction_alone_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tiny_claim(tmp_path).folder / "run.py").unlink()
    monkeypatch.setattr(verb, "find_claim", lambda word: find_claim(word, tmp_path / "lab"))
    with pytest.raises(ConfigError, match="a prediction alone"):
        verb.lab("run", ["C1"])


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_every_recipe_of_every_claim_is_one(scale, tmp_path: Path):
    """Two seeds of each build, and what `--dry-run` tells has arms."""
    found = verb.lab("run", ["all"], scale, seeds=2, out=tmp_path, dry_run=True, as_json=True)
    assert found is not None and {claim["claim"] for claim in found["claims"]} == {f"C{n}" for n in range(1, 11)}
    assert all(claim["stages"] == [] or claim["arms"] for claim in found["claims"])


def test_intervals_over_few_seeds_are_no_narrower_than_students():
    assert [t_quantile(f) for f in (1, 4, 9)] == pytest.approx([12.706, 2.776, 2.262], abs=1e-3)
    effect = paired([0.9, 0.8, 0.95], [0.5, 0.45, 0.6], "x")
    assert effect.mean == pytest.approx(0.3667, abs=1e-4) and effect.high - effect.mean >= 0.07
    assert over_seeds([0.5]).low == float("-inf"), "one seed says nothing"
    times = paired_ratio([4.0, 8.0, 2.0], [1.0, 2.0, 0.5], "y")
    assert times.mean == pytest.approx(4.0) and times.low == pytest.approx(4.0)
    assert share([True, True, False, False])[0] == 0.5


def test_a_budget_takes_the_last_look_within_it():
    curve = [(0.0, 0.1), (10.0, 0.5), (20.0, 0.9)]
    assert [at_budget(curve, budget) for budget in (0, 10, 19.9, 99)] == [0.1, 0.5, 0.5, 0.9]
