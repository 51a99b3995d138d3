"""A recipe rehearsed and a run scored: the real rehearsal on a recipe of a few seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab.tiny_claim import tiny_claim
from zifio.config import ConfigError
from zifio.forecast.against import score, score_table
from zifio.forecast.claim import LabPlan, claim_text, forecast_claim
from zifio.forecast.recipe import forecast_recipe
from zifio.forecast.verb import plan
from zifio.lab.trial import Trial
from zifio.recipe import run_recipe

pytestmark = pytest.mark.slow
RECIPE = """
name = "small"
seed = 0
task = { name = "chain_mod", min_terms = 2, max_terms = 4 }
[[stage]]
kind = "tokenizer"
name = "tokenizer"
[[stage]]
kind = "pretrain"
name = "base"
steps = 40
documents = 32
p_cot = 0.5
rows = { row_tokens = 64, micro_tokens = 1024 }
[stage.model]
model_type = "llama"
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 64
[[stage]]
kind = "rl"
name = "zero"
from = "base"
steps = 4
prompts = 4
group = 4
gate = false
rows = { row_tokens = 64, micro_tokens = 1024 }
sampling = { max_new_tokens = 16 }
[[stage]]
kind = "sample"
name = "traces"
from = "zero"
problems = 32
n = 1
keep = "all"
sampling = { max_new_tokens = 16 }
[[stage]]
kind = "distill"
name = "student"
teacher = "zero"
data = "traces"
from = "base"
steps = 4
sequences = 8
rows = { row_tokens = 64, micro_tokens = 1024 }
[[stage]]
kind = "eval"
name = "final"
models = ["base", "zero"]
problems = 16
n = 2
ks = [1]
sampling = { max_new_tokens = 16 }
"""


@pytest.fixture(scope="module")
def forecast(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("forecast") / "small.toml"
    path.write_text(RECIPE)
    return path, forecast_recipe(path, (), seconds=6.0)


def test_every_stage_is_forecast(forecast: tuple[Path, dict[str, Any]]):
    _, found = forecast
    names = ["tokenizer", "base", "zero", "traces", "student", "final"]
    assert [stage["name"] for stage in found["stages"]] == names and not found["left_out"]
    for stage in found["stages"]:
        assert stage["seconds"] > 0 and stage["low_s"] <= stage["seconds"] <= stage["high_s"], stage["name"]
    peaks = [stage["peak_bytes"] for stage in found["stages"]]
    assert peaks == sorted(peaks) and peaks[0] > 50e6
    by_name = {stage["name"]: stage for stage in found["stages"]}
    assert by_name["zero"]["parts"]["drawing"] > 0 and by_name["zero"]["parts"]["training"] > 0
    assert by_name["base"]["parts"]["drawing"] == 0, "it never looks"
    assert json.loads(json.dumps(found)) == found


def test_models_and_memory_by_part(forecast: tuple[Path, dict[str, Any]]):
    _, found = forecast
    base, zero = (next(stage for stage in found["stages"] if stage["name"] == name) for name in ("base", "zero"))
    n = base["model"]["total_params"]
    assert n == zero["model"]["total_params"] > 2 * 3 * 32 * 64
    parts = zero["memory_by_part"]
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (4 * n, 4 * n, 8 * n)
    assert parts["kv"] > 0 and base["memory_by_part"]["kv"] == 0
    assert sum(parts.values()) < zero["peak_bytes"], "which holds Python and the libraries too"
    assert base["training_flops"] > zero["training_flops"] > 0


def test_twice_the_steps_take_twice_the_training(forecast: tuple[Path, dict[str, Any]]):
    from zifio.forecast.recipe import compose
    from zifio.recipe import load_recipe

    path, found = forecast
    once, twice = (load_recipe(path, [f"stage.base.steps={n}"]) for n in (40, 80))
    parts = [compose(r, r.stage[1], found["measured"]) for r in (once, twice)]
    assert parts[0] is not None and parts[1] is not None
    assert parts[1].parts["training"] == pytest.approx(2 * parts[0].parts["training"])


def test_a_run_is_scored(forecast: tuple[Path, dict[str, Any]], tmp_path: Path, capfd):
    path, found = forecast
    run_recipe(path, out=tmp_path / "run")
    written = tmp_path / "forecast.json"
    written.write_text(json.dumps(found))
    scored = plan(str(path), against=tmp_path / "run", forecast=written, figure=tmp_path / "plan.png", as_json=True)[
        "against"
    ]
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert [row["name"] for row in scored["stages"]] == [stage["name"] for stage in found["stages"]]
    assert scored["happened_s"] == pytest.approx(sum(row["happened_s"] for row in scored["stages"]))
    assert scored["seconds_error"] == pytest.approx(scored["forecast_s"] / scored["happened_s"] - 1)
    done = json.loads((tmp_path / "run" / "base" / "done.json").read_text())
    assert done["cores"] >= 1 and done["cpu_s"] > 0 and done["wall_s"] <= done["seconds"] + 1e-9
    assert f"{scored['seconds_error']:+.0%}" in capfd.readouterr().err
    # The same seconds twice as fast are scored as half.
    faster = {**found, "stages": [{**stage, "seconds": stage["seconds"] / 2} for stage in found["stages"]]}
    assert score(faster, tmp_path / "run")["seconds_error"] == pytest.approx((1 + scored["seconds_error"]) / 2 - 1)


def test_a_rehearsal_that_fails_says_why(tmp_path: Path):
    path = tmp_path / "small.toml"
    path.write_text(RECIPE.replace("row_tokens = 64", "row_tokens = 8"))
    with pytest.raises(ConfigError, match=r"small: wanted a rehearsal, came: .*row_tokens"):
        forecast_recipe(path, (), seconds=2.0)


def test_recipes_of_pictures_are_refused():
    with pytest.raises(ConfigError, match="stage codes: wanted stages of text"):
        forecast_recipe(Path("recipes/janus-nano.toml"), [])


def test_a_claim_is_forecast_and_a_seed_of_it_scored(tmp_path: Path):
    """Stages are called as their folders in a seed's; all seeds take as many rounds as jobs make of them."""
    claim = tiny_claim(tmp_path)
    found = forecast_claim(claim, LabPlan(seeds=5, jobs=2), seconds=2.0)
    names = [f"main/{name}" for name in ("tokenizer", "base", "one", "two")]
    assert [stage["name"] for stage in found["stages"]] == names and not found["left_out"] and found["threads"] == 1
    assert found["whole_s"] == pytest.approx(3 * sum(stage["seconds"] for stage in found["stages"]))
    assert found["whole_bytes"] == 2 * found["peak_bytes"] and "5 seeds, 2 side by side" in claim_text(found)
    assert json.loads(json.dumps(found)) == found
    trial = Trial(claim, "cpu", 0, tmp_path / "runs")
    trial.run()
    scored = score(found, trial.folder)
    assert [row["name"] for row in scored["stages"]] == names and scored["happened_s"] > 0
    table = score_table(scored)
    assert [*table.columns[0].cells] == ["tokenizer", "base", "one", "two"], "without the only part's name"
