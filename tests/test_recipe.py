"""Recipes as a whole, through the command line: run, skip, resume after kill -9, refuse; what comes out is real."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

from zifio.config import ConfigError, Sampling
from zifio.engine.policy import load_policy
from zifio.recipe import Run, load_recipe, run_stage
from zifio.train.loop import Trainer

SMOKE = Path("recipes/smoke.toml")
MODELS = ("base", "r1-zero", "r1", "student")


def zifio(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "zifio.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A finished smoke run and the report that `--json` wrote."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    done = zifio("run", str(SMOKE), "--out", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_report_has_what_scripts_rely_on(smoke: tuple[Path, dict]) -> None:
    folder, report = smoke
    assert json.loads((folder / "report.json").read_text()) == report
    assert set(report["models"]) == set(MODELS)
    for entry in report["models"].values():
        low, high = entry["pass_at_1_interval"]
        assert 0 <= low <= entry["pass_at_1"] <= high <= 1
        assert entry["mean_response_tokens"] > 0 and Path(entry["path"], "config.json").exists()
        assert entry["pass_at_k"]
    assert report["seconds"] > 0 and report["flops"] > 0 and report["peak_rss_bytes"] > 10**8
    assert all(stage["seconds"] >= 0 for stage in report["stages"].values())
    assert (folder / "report.html").stat().st_size > 10_000 and (folder / "report.md").exists()
    assert list((folder / "figures").glob("*.png"))


def test_finished_stages_are_skipped_and_untouched(smoke: tuple[Path, dict]) -> None:
    folder, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*") if path.is_file()}
    again = zifio("run", str(SMOKE), "--out", str(folder))
    assert again.returncode == 0, again.stderr
    after = {path: path.stat().st_mtime_ns for path in before}
    changed = [str(p) for p in before if after[p] != before[p] and "figures" not in str(p)]
    assert changed == []


@pytest.mark.parametrize("name", ["r1", "student"])
def test_trained_model_opens_in_transformers_with_equal_logits_and_greedy_text(
    smoke: tuple[Path, dict], name: str
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = smoke[0] / name / "model"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    policy = load_policy(folder)
    question = [{"role": "user", "content": "(3+4+9)%10"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert prompt == policy.prompt(question)
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        hidden = policy.model(tokens, torch.arange(len(prompt))[None]).hidden_BTD
        torch.testing.assert_close(policy.model.logits(hidden), theirs(tokens).logits, atol=1e-5, rtol=0)
        out = theirs.generate(tokens, do_sample=False, max_new_tokens=24, eos_token_id=policy.tokenizer.eos_id)
    sampling = Sampling(temperature=0, max_new_tokens=24)
    reply = policy.complete([question], 1, sampling, [[0]])[0][0]
    assert reply.tokens == out[0, len(prompt) :].tolist()
    assert reply.text == tokenizer.decode(reply.tokens).removesuffix(tokenizer.eos_token)


def reproducible(folder: Path) -> dict[str, bytes]:
    """What two runs must have in common to the byte: weights, metrics, sampled data, records."""
    patterns = ("*/model/model.safetensors", "*/metrics.jsonl", "*/data.jsonl", "*/records-*.jsonl")
    return {str(p.relative_to(folder)): p.read_bytes() for pattern in patterns for p in sorted(folder.glob(pattern))}


def test_killed_at_any_moment_it_ends_the_same_to_the_byte(smoke: tuple[Path, dict], tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "zifio.cli", "run", str(SMOKE), "--out", str(folder)]
    landmarks = (
        "base/checkpoints/step-000008",
        "r1-zero/checkpoints/step-000002",
        "r1/metrics.jsonl",
        "final/stage.json",
    )
    for landmark in landmarks:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (folder / landmark).exists() and process.poll() is None:
            assert time.monotonic() < deadline, f"{landmark} never came"
            time.sleep(0.01)
        process.kill()
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole, resumed = reproducible(smoke[0]), reproducible(folder)
    assert whole.keys() == resumed.keys() and len(whole) > 15
    assert [name for name in whole if whole[name] != resumed[name]] == []


def test_other_settings_in_the_same_folder_are_refused_and_named(smoke: tuple[Path, dict]) -> None:
    done = zifio("run", str(SMOKE), "stage.base.optim.lr=0.5", "--out", str(smoke[0]))
    assert done.returncode == 2
    assert "optim.lr: 0.02 -> 0.5" in done.stderr and "--fresh" in done.stderr


def test_second_run_in_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zifio.cli", "run", str(SMOKE), "--out", str(tmp_path)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "recipe.json").exists():
            assert first.poll() is None
            time.sleep(0.01)
        second = subprocess.run(command, capture_output=True, text=True)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2 and str(first.pid) in second.stderr


def test_ctrl_c_saves_says_how_to_resume_and_resumes(smoke: tuple[Path, dict], tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "zifio.cli", "run", str(SMOKE), "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = folder / "base/metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "resume" in said
    assert list((folder / "base/checkpoints").glob("step-*"))
    done = zifio("pretrain", str(SMOKE), "--out", str(folder))
    assert done.returncode == 0, done.stderr
    name = "base/model/model.safetensors"
    assert (folder / name).read_bytes() == (smoke[0] / name).read_bytes()


def test_verb_runs_one_stage_from_another_folders_result(smoke: tuple[Path, dict], tmp_path: Path) -> None:
    base = smoke[0] / "base" / "model"
    words = ("rl", str(SMOKE), "--stage", "r1-zero", f"from={base}", "steps=1", "held_out.every=0")
    done = zifio(*words, "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["stage"] == "r1-zero" and Path(result["path"], "model", "model.safetensors").exists()


def test_nan_stops_with_the_step_keeps_the_checkpoint_and_exits_1(smoke: tuple[Path, dict], tmp_path: Path) -> None:
    shutil.copytree(smoke[0] / "tokenizer", tmp_path / "tokenizer")
    words = ("pretrain", str(SMOKE), "optim.lr=1e38", "optim.kind=adamw", "optim.warmup_steps=0", "checkpoint_every=1")
    done = zifio(*words, "--out", str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "step" in done.stderr and "optim.lr" in done.stderr
    assert list((tmp_path / "base/checkpoints").glob("step-*"))


BAD = {
    "unknown key": (["stage.base.stepz=3"], "did you mean 'steps'"),
    "wrong type": (["stage.base.steps=many"], "an integer"),
    "odd rotary width": (["stage.base.model.qk_rope_head_dim=7"], "odd"),
    "experts not divisible": (["stage.base.model.n_group=3"], "divisible"),
    "unknown stage": (["stage.r1.from=nowhere"], "nowhere"),
    "unknown task": (["task.name=chain_som"], "chain_sum"),
    "a tokenizer for a model": (["stage.r1-zero.from=tokenizer"], "makes a tokenizer"),
    "a model for data": (["stage.cold-start.data=base"], "makes a model"),
    "reply longer than the context": (["stage.r1.sampling.max_new_tokens=5000"], "context of 96"),
    "another policy than the sampled one": (["stage.r1.sampling.top_p=0.9"], "top_p"),
    "greedy RL": (["stage.r1.sampling.temperature=0"], "temperature"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained_at_once_with_exit_code_2(case: str, tmp_path: Path) -> None:
    overrides, wanted = BAD[case]
    done = zifio("run", str(SMOKE), *overrides, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert wanted.lower() in done.stderr.lower(), done.stderr
    assert not (tmp_path / "out").exists()


def test_missing_recipe_and_missing_result_are_named(smoke: tuple[Path, dict], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_recipe(tmp_path / "none.toml", [])
    folder = tmp_path / "run"
    shutil.copytree(smoke[0], folder)
    shutil.rmtree(folder / "r1" / "model")
    with pytest.raises(ConfigError, match="Run that stage first"):
        run_stage("sample", SMOKE, "traces", out=folder, fresh=True)


def test_model_and_tokenizer_that_do_not_belong_together_are_refused(smoke: tuple[Path, dict], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(smoke[0] / "base" / "model", model)
    config = json.loads((model / "config.json").read_text())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["x"] = config["vocab_size"] + 5
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = zifio("chat", str(model), "--prompt", "(1+2)%10")
    assert done.returncode == 2 and "belong together" in done.stderr


def test_an_edited_result_and_a_torn_mark_are_named(smoke: tuple[Path, dict], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(smoke[0], folder)
    weights = folder / "r1" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="torn or was edited"):
        run_stage("sample", SMOKE, "traces", out=folder, fresh=True)
    (folder / "base" / "stage.json").write_text("{bad")
    with pytest.raises(ConfigError, match=r"stage\.json.*--fresh"):
        run_stage("pretrain", SMOKE, out=folder)


def test_a_stage_verb_runs_what_is_missing_and_no_more(smoke: tuple[Path, dict], tmp_path: Path) -> None:
    """Its ancestors, but neither what is done nor what comes later; then the report."""
    empty = Run(load_recipe(SMOKE, []), tmp_path)
    stages = {one.name: one for one in empty.recipe.stage}
    assert [one.name for one in empty.missing(stages["r1-zero"])] == ["tokenizer", "base"]
    run_stage("pretrain", SMOKE, overrides=["steps=1", "held_out.every=0"], out=tmp_path)
    assert {path.parent.name for path in tmp_path.glob("*/done.json")} == {"tokenizer", "base"}
    assert "base" in (tmp_path / "report.md").read_text()
    shutil.copytree(smoke[0] / "cold-traces", tmp_path / "cold-traces")
    assert [one.name for one in empty.missing(stages["r1"])] == ["cold-start"]


def test_every_recipe_in_the_folder_is_valid() -> None:
    for path in sorted(Path("recipes").glob("*.toml")):
        if path.stem != "janus-fashion":  # its pictures may not be on this machine: with others in their place below
            load_recipe(path, [])


def test_chat_answers_with_the_thinking_apart(smoke: tuple[Path, dict]) -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    words = ("chat", str(smoke[0] / "r1" / "model"), "--prompt", "(3+4)%10", "--json")
    done = zifio(*words, env=environment)
    assert done.returncode == 0, done.stderr
    assert {"question", "thinking", "answer", "tokens", "finish"} <= json.loads(done.stdout).keys()


def test_the_recipe_of_students_takes_the_quickstarts_teacher_as_it_is() -> None:
    """Copied stage folders pass for its own only while the settings are the same."""
    quick, sums = (load_recipe(Path(f"recipes/{name}.toml"), []) for name in ("quickstart", "distill-sums"))
    assert (quick.task, quick.seed) == (sums.task, sums.seed)
    for name in ("tokenizer", "base", "r1-zero"):
        one, other = (Run(recipe, Path("nowhere")) for recipe in (quick, sums))
        assert one.digest(quick.named(name)) == other.digest(sums.named(name)), name


def test_recipes_of_pictures_resolve(tmp_path: Path):
    images = tmp_path / "train-images-idx3-ubyte.gz"
    images.touch()
    learners = ("judge", "eyes", "janus")
    keys = ("codes.data", *(f"{stage}.{key}" for stage in learners for key in ("data", "held_out_data")))
    fashion = [f"stage.{key}={images}" for key in keys]
    for name, overrides in (("nano", []), ("pro-1b", []), ("fashion", fashion)):
        recipe = load_recipe(Path(f"recipes/janus-{name}.toml"), overrides)
        assert [stage.kind for stage in recipe.stage].count("janus") == {"nano": 3, "pro-1b": 3, "fashion": 1}[name]
    with pytest.raises(ConfigError, match=r"adaptors\.codes: wanted a stage that makes codes of pictures"):
        load_recipe(Path("recipes/janus-nano.toml"), ["stage.adaptors.codes=words"])
    with pytest.raises(ConfigError, match=r"janus\.from: wanted a stage that makes a model, came 'codes'"):
        load_recipe(Path("recipes/janus-nano.toml"), ["stage.janus.from=codes"])


def test_a_stage_leaves_nothing_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its trainer and model are gone before the next stage begins, whenever Python looks for cycles by itself."""
    seen: list[weakref.ref[object]] = []
    run_steps = Trainer.run

    def noted(self: Trainer, batches: object) -> dict[str, float]:
        seen.extend([weakref.ref(self), weakref.ref(self.model)])
        return run_steps(self, batches)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "run", noted)
    recipe = load_recipe(SMOKE, ["stage.base.steps=2", "stage.base.held_out.every=0"])
    gc.disable()
    try:
        for stage in recipe.stage[:2]:
            Run(recipe, tmp_path).stage(stage)
        assert len(seen) == 2 and not any(one() for one in seen)
    finally:
        gc.enable()
