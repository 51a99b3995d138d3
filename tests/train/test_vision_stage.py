"""The stage `vision`: exact resume, its loss however a batch is cut, what it learns from, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import context, in_one_and_in_two, metrics, picture_characters, run, save_with_pictures, scene_janus

from zifio.config import ConfigError, build
from zifio.log import RunFolder
from zifio.models.captioner import Captioner
from zifio.models.janus_config import CaptionerConfig
from zifio.models.weights import load_captioner, load_janus, save_model
from zifio.pictures import to_url, write_png
from zifio.stats import wilson_interval
from zifio.tasks.glyphs import read_caption, scene
from zifio.train.loss import LossTerms, batch_loss
from zifio.train.picture_config import VisionStage
from zifio.train.vision import Walk, looking_at, scene_described

VISION = {
    "hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 4,
    "num_image_tokens": 64,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "tokenizer": "base", "model": VISION, "words": 40, "steps": 12, "pictures": 4, "checkpoint_every": 4,
    "rows": {"micro_tokens": 128}, "optim": {"lr": 1e-2}, "held_out": {"every": 6, "problems": 4},
}  # fmt: skip


def walk(folder: Path, settings: dict[str, Any] | None = None, **paths: Path) -> Walk:
    """Where pictures come from."""
    stage = build(VisionStage, {"kind": "vision", "name": "tiny", **SETTINGS, **(settings or {})}, "test")
    return Walk(stage, context(folder, **paths), picture_characters())


def base(folder: Path) -> Path:
    """A folder with the tokenizer."""
    return save_with_pictures(folder / "base", scene_janus())


def test_a_stage_that_is_stopped_goes_on_exactly_and_learns(tmp_path: Path) -> None:
    in_one_and_in_two("vision", SETTINGS, tmp_path, 4, base=base(tmp_path))
    lines = metrics(tmp_path / "whole")
    trained = [line["loss"] for line in lines if "loss" in line]
    assert trained[-1] < trained[0] - 0.5
    looks = [line for line in lines if "held_out/words_right" in line]
    assert [line["step"] for line in looks] == [0, 6, 12]
    assert looks[-1]["held_out/words_right"] > looks[0]["held_out/words_right"]
    told = [(tmp_path / run / "rollouts.jsonl").read_bytes() for run in ("whole", "halves")]
    assert told[0] == told[1] and told[0].count(b"\n") == 9


def test_a_look_tells_what_is_named_in_the_first_pictures_and_in_right_and_wrong_ones(tmp_path: Path) -> None:
    """An answer is given for each picture by hand: the figures count, the lines are those of the rule."""
    made = walk(tmp_path, {"words": 48})
    examples = [made.held_out(i) for i in range(12)]
    tokenizer, wrong, cut = picture_characters(), {0, 1, 2, 3, 5}, "red"
    rows_BT = torch.full((len(examples), 48), tokenizer.pad_id)
    for i, example in enumerate(examples):
        ids = [*tokenizer.encode(cut if i in wrong else example.text), tokenizer.eos_id]
        rows_BT[i, : len(ids)] = torch.tensor(ids)
    config = CaptionerConfig(vision_config=made.stage.model, vocab_size=tokenizer.vocab_size, num_words=48)

    class Says(Captioner):
        place = 0

        def forward(self, pixels_MUYX: torch.Tensor) -> torch.Tensor:
            first, self.place = self.place, self.place + len(pixels_MUYX)
            return torch.nn.functional.one_hot(rows_BT[first : self.place], config.vocab_size).float()

    log = RunFolder(tmp_path / "log")
    figures, flops = looking_at(made, examples, log)(Says(config, seed=1), 7)
    assert figures["captions_right"] == 7 / 12 and flops > 0
    assert (figures["captions_right_low"], figures["captions_right_high"]) == wilson_interval(7, 12)
    told = log.read_rollouts()
    assert [row["problem"] for row in told] == [f"tiny/held-out/{i}" for i in (0, 1, 2, 4, 6, 7)]
    for row in told:
        i = int(row["problem"].rpartition("/")[2])
        assert row["step"] == 7 and row["gold"] == examples[i].text and row["pictures"] == [to_url(examples[i].picture)]
        said = (cut, "wrong") if i in wrong else (examples[i].text, "right")
        assert (row["response"], row["outcome"]) == said


def test_the_loss_is_the_formula_however_the_batch_is_cut(tmp_path: Path) -> None:
    made = walk(tmp_path)
    config = CaptionerConfig(vision_config=made.stage.model, vocab_size=picture_characters().vocab_size, num_words=40)
    model, examples = Captioner(config, seed=2), [made.train(i) for i in range(4)]
    whole = made.batch(examples)
    with torch.no_grad():
        logp = model(whole.pixels_MUYX).log_softmax(dim=-1)
        per = []
        for row, n in enumerate(whole.lengths):
            words = whole.tokens_BT[row, :n]
            assert picture_characters().decode(words[:-1].tolist()) == examples[row].text
            per.append(-logp[row, range(n), words].mean())
        for size in (1, 2, 4):
            parts = [made.batch(examples[i : i + size]) for i in range(0, 4, size)]
            loss = sum(batch_loss(model, part, LossTerms(), part.n_sequences / 4).loss.item() for part in parts)
            assert loss == pytest.approx(float(torch.stack(per).mean()), rel=1e-5)


def test_scenes_are_told_from_the_left_or_from_above(tmp_path: Path) -> None:
    made = walk(tmp_path)
    for i in range(20):
        told = read_caption(made.train(i).text)
        assert told is not None and told.relation in ("left of", "above") and told.split == "train"
        assert told in (scene("train", i, made.seed), scene("train", i, made.seed).turned())
        held = read_caption(made.held_out(i).text)
        assert held is not None and held.split == "held-out"
    assert np.array_equal(scene_described("train", 3, 1).picture, scene_described("train", 3, 1).picture)


def test_a_janus_sees_with_what_was_learnt(tmp_path: Path) -> None:
    start = base(tmp_path)
    run("vision", SETTINGS | {"steps": 1}, context(tmp_path / "eyes", base=start))
    eyes = load_captioner(tmp_path / "eyes" / "model").vision_model
    (tmp_path / "codes").mkdir()
    save_model(scene_janus(seed=4).vqmodel, tmp_path / "codes")
    paths = {"base": start, "codes": tmp_path / "codes", "eyes": tmp_path / "eyes" / "model"}
    text = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 24, "max_position_embeddings": 256}  # fmt: skip
    settings = {
        "model": text, "tokenizer": "base", "codes": "codes", "vision": "eyes", "trains": "adaptors", "steps": 1,
        "examples": {"understanding": 2, "drawing": 2}, "rows": {"row_tokens": 256, "micro_tokens": 512},
    }  # fmt: skip
    run("janus", settings, context(tmp_path / "janus", **paths))
    model = load_janus(tmp_path / "janus" / "model").vision_model
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in eyes.state_dict().items())


def pairs(folder: Path, n: int, **more: str) -> Path:
    """A file of so many pictures of one level each."""
    for i in range(n):
        write_png(np.full((40, 48, 3), i * 9, np.uint8), folder / f"{i}.png")
    rows = [{"image": f"{i}.png", "text": f"grey {i}", **more} for i in range(n)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


def test_pairs_of_a_file_are_learnt_from_or_looked_at(tmp_path: Path) -> None:
    made = walk(tmp_path, {"data": "pairs"}, pairs=pairs(tmp_path, 20))
    assert {made.train(i).text for i in range(36)} == {f"grey {i}" for i in range(20) if i not in (0, 16)}
    assert [made.held_out(i).text for i in range(2)] == ["grey 0", "grey 16"]


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({"words": 5}, {}, "words: wanted at least"),
        ({"data": "pairs"}, {"question": "which grey?"}, "wanted captions"),
        ({"model": VISION | {"image_size": 16, "num_image_tokens": 16}}, {}, "32 pixels a side, came 16"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], more: dict[str, str], said: str, tmp_path: Path) -> None:
    paths = {"base": base(tmp_path), "pairs": pairs(tmp_path, 3, **more)}
    with pytest.raises(ConfigError, match=said):
        run("vision", SETTINGS | changes, context(tmp_path / "run", **paths))
