"""GGUF files as models of every verb: converted to a folder, talked to, and the beginning of a recipe's stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf_files import tiny_gguf
from tiny import llama, logits_of, made, save_base, tokens_like

from zifio import cli
from zifio.checkpoint import damage, file_digest, model_digest
from zifio.data.sources import write_jsonl
from zifio.engine.policy import load_policy, open_model

transformers = pytest.importorskip("transformers")

CONFIG = llama(vocab_size=560)
RECIPE = """
name = "from-gguf"
task = {{ name = "chain_sum" }}
[[stage]]
kind = "sft"
name = "tuned"
from = "{model}"
data = "{data}"
steps = 2
sequences = 2
rows = {{ row_tokens = 96, micro_tokens = 96 }}
held_out = {{ every = 0 }}
[[stage]]
kind = "eval"
name = "final"
models = ["{model}", "tuned"]
problems = 2
n = 1
ks = [1]
sampling = {{ max_new_tokens = 8 }}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tiny_gguf(tmp_path / "model.gguf", CONFIG, made(CONFIG), kind="F16")


def test_transformers_opens_what_was_converted(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "models" / "tiny"
    assert cli.main(["convert", str(file), str(folder)]) == 0
    assert "parameters" in capsys.readouterr().err and damage(folder) == ""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, ours = open_model(file)
    tokens = tokens_like(2, 9, vocab=560)
    torch.testing.assert_close(logits_of(model, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)
    chat = [{"role": "user", "content": "1+1"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == ours.render(chat, generation_prompt=True)
    assert load_policy(folder).prompt(chat) == load_policy(file).prompt(chat)


def test_a_folder_is_converted_too_and_one_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = save_base(tmp_path / "base", llama())
    assert cli.main(["convert", str(base), str(tmp_path / "copy")]) == 0
    assert model_digest(base) == model_digest(tmp_path / "copy")
    before = sorted(path.stat().st_mtime_ns for path in base.iterdir())
    capsys.readouterr()
    for taken in (base, base / "config.json"):
        assert cli.main(["convert", str(tmp_path / "copy"), str(taken)]) == 2
        assert "wanted a new folder" in capsys.readouterr().err
    assert before == sorted(path.stat().st_mtime_ns for path in base.iterdir())
    assert cli.main(["convert", str(tmp_path / "nowhere.gguf"), str(tmp_path / "new")]) == 2
    assert "nowhere.gguf: " in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_chat_with_a_file(file: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--prompt", "1+1", "--max-new-tokens", "5", "--json"]
    assert cli.main(["chat", str(file), *words]) == 0
    assert 1 <= json.loads(capsys.readouterr().out)["tokens"] <= 5
    assert cli.main(["chat", str(file.with_name("nowhere.gguf")), *words]) == 2
    assert "nowhere.gguf: " in capsys.readouterr().err


def test_stages_begin_from_a_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl("data.jsonl", [{"prompt": f"{n}+1", "response": str(n + 1)} for n in range(4)])
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=file, data="data.jsonl"))
    assert cli.main(["run", str(recipe)]) == 0
    report = json.loads(Path("runs/from-gguf/report.json").read_text())
    assert len(report["models"]) == 2
    tuned = Path("runs/from-gguf/tuned/model")
    assert transformers.AutoTokenizer.from_pretrained(tuned).eos_token == "<|im_end|>"
    changed = load_policy(tuned).model
    assert not torch.equal(logits_of(changed, tokens_like(1, 5)), logits_of(load_policy(file).model, tokens_like(1, 5)))
    used = json.loads(Path("runs/from-gguf/tuned/stage.json").read_text())["digest"]
    assert model_digest(file) == file_digest(file)
    tiny_gguf(file, CONFIG, made(CONFIG, seed=9), kind="F16")
    assert cli.main(["run", str(recipe), "--fresh"]) == 0
    assert json.loads(Path("runs/from-gguf/tuned/stage.json").read_text())["digest"] != used
