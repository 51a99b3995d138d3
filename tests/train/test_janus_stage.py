"""The stage `janus`: what each phase moves, what a step learns from, exact resume, looks, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from idx_files import labelled_files
from tiny import (
    characters,
    context,
    in_one_and_in_two,
    llama,
    metrics,
    picture_characters,
    run,
    save_with_pictures,
    scene_janus,
)

from zifio.config import ConfigError, build
from zifio.data.tokenizer import save_tokenizer
from zifio.engine.marks import Marks
from zifio.evaluate.run import make_look
from zifio.models.classifier import Classifier
from zifio.models.classifier_config import ClassifierConfig
from zifio.models.count import vq_flops
from zifio.models.decoder import Decoder
from zifio.models.janus import Janus
from zifio.models.weights import load_janus, save_model
from zifio.pictures import pixels_of, write_png
from zifio.tasks.glyphs import paint
from zifio.tasks.scenes import GlyphWords
from zifio.train.janus import Source
from zifio.train.picture_config import JanusStage
from zifio.train.stage import Context

SHAPE = llama(max_position_embeddings=256).model_copy(update={"vocab_size": None}).model_dump(exclude_none=True)
VISION = {
    "hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 4,
    "num_image_tokens": 64,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "from": "base", "steps": 6, "trains": "all", "checkpoint_every": 2, "text_task": {"name": "glyph_words"},
    "examples": {"understanding": 2, "text": 2, "drawing": 2}, "rows": {"row_tokens": 256, "micro_tokens": 512},
    "optim": {"lr": 3e-3},
}  # fmt: skip


def base(folder: Path) -> Path:
    """A model that reads and draws, with its tokenizer."""
    return save_with_pictures(folder / "base", scene_janus())


def source(folder: Path, settings: dict[str, Any] | None = None, **paths: Path) -> tuple[Source, Janus]:
    """Where sequences come from."""
    stage = build(JanusStage, {"kind": "janus", "name": "tiny", **SETTINGS, **(settings or {})}, "test")
    model = scene_janus()
    return Source(stage, context(folder, GlyphWords(), **paths), model, picture_characters()), model


def pairs(folder: Path, n: int = 20, **more: str) -> Path:
    """A file of so many pictures of one level each."""
    for i in range(n):
        write_png(np.full((40, 48, 3), i * 9, np.uint8), folder / f"{i}.png")
    rows = [{"image": f"{i}.png", "text": f"grey {i}", **more} for i in range(n)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


@pytest.mark.parametrize(
    ("trains", "moved"),
    [
        ("adaptors", {"aligner", "generation_embeddings", "generation_aligner", "generation_head"}),
        ("decoder", {"aligner", "generation_embeddings", "generation_aligner", "generation_head", "layers", "norm",
                     "embed_tokens", "lm_head"}),
        ("all", {"aligner", "generation_embeddings", "generation_aligner", "generation_head", "layers", "norm",
                 "embed_tokens", "lm_head", "vision_model"}),
    ],
)  # fmt: skip
def test_a_phase_moves_its_part_alone(trains: str, moved: set[str], tmp_path: Path) -> None:
    start = base(tmp_path)
    examples = {"understanding": 2, "text": 0 if trains == "adaptors" else 2, "drawing": 2}
    run("janus", SETTINGS | {"trains": trains, "steps": 2, "examples": examples}, context(tmp_path / "run", base=start))
    before, after = load_janus(start).state_dict(), load_janus(tmp_path / "run" / "model").state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == moved


def test_a_run_that_is_stopped_goes_on_exactly_and_learns(tmp_path: Path) -> None:
    in_one_and_in_two("janus", SETTINGS, tmp_path, 2, base=base(tmp_path))
    lines = [line for line in metrics(tmp_path / "whole") if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1
    assert lines[0]["tokens/drawing"] == 128 and lines[0]["tokens/text"] > 0 < lines[0]["tokens/understanding"]


def test_a_janus_is_put_together_from_its_parts(tmp_path: Path) -> None:
    """From a decoder's folder, or from a shape: the parts' weights are in it, and what is new is random."""
    made, text = (
        scene_janus(seed=4),
        Decoder(llama(vocab_size=picture_characters().vocab_size, max_position_embeddings=256), seed=7),
    )
    (tmp_path / "codes").mkdir()
    save_model(made.vqmodel, tmp_path / "codes")
    paths = {"codes": tmp_path / "codes", "text": save_with_pictures(tmp_path / "text", text)}
    parts = {"codes": "codes", "vision": VISION, "steps": 1}
    run("janus", SETTINGS | parts | {"from": "text"}, context(tmp_path / "one", **paths))
    model = load_janus(tmp_path / "one" / "model")
    assert torch.equal(model.vqmodel.quantize.embedding.weight, made.vqmodel.quantize.embedding.weight)
    assert (model.layers[0].mlp.up_proj.weight - text.layers[0].mlp.up_proj.weight).abs().max() < 0.01
    assert (
        model.shape.vision_config.hidden_size == 20
        and model.shape.image_token_id == Marks.of(picture_characters()).picture
    )
    fresh = {"model": SHAPE, "tokenizer": "text"}
    settings = {key: value for key, value in SETTINGS.items() if key != "from"} | parts | fresh
    run("janus", settings, context(tmp_path / "two", **paths))
    assert load_janus(tmp_path / "two" / "model").config.vocab_size == picture_characters().vocab_size


def test_weights_of_kinds_and_masks(tmp_path: Path) -> None:
    given = {"weights": {"understanding": 4.0, "drawing": 0.5}, "dropout": 0.0}
    made, model = source(tmp_path, given)
    sequences, counts, flops = made.step(3)
    assert sum(sum(one.weight) for one in sequences) == pytest.approx(1) and len(sequences) == 6
    assert flops == 2 * vq_flops(model.shape.vq_config, paints=False)
    seen, text, drawn = sequences[0], sequences[2], sequences[4]
    per_token = [max(one.weight) for one in (seen, text, drawn)]
    assert per_token[0] == pytest.approx(4 * per_token[1]) and per_token[2] == pytest.approx(0.5 * per_token[1])
    tokenizer = picture_characters()
    said = tokenizer.decode([token for token, weight in zip(seen.tokens, seen.weight, strict=True) if weight])
    assert said.count(" of ") + said.count("above") + said.count("below") == 1
    assert [w > 0 for w in drawn.weight] == [token >= model.first_code for token in drawn.tokens]
    assert seen.pixels_MUYX is not None and seen.pixels_MUYX.shape == (1, 3, 32, 32)
    assert counts["tokens/drawing"] == 128
    again, *_ = made.step(3)
    assert [one.tokens for one in again] == [one.tokens for one in sequences]


@pytest.mark.parametrize("dropout", [0.0, 1.0, 0.3])
def test_a_share_of_drawings_is_learnt_without_its_text(dropout: float, tmp_path: Path) -> None:
    made, model = source(tmp_path, {"dropout": dropout, "examples": {"understanding": 0, "drawing": 40}})
    sequences, *_ = made.step(0)
    pad = picture_characters().pad_id
    n_blank = sum(one.tokens[1] == pad for one in sequences)
    assert {0.0: n_blank == 0, 1.0: n_blank == 40, 0.3: 3 <= n_blank <= 22}[dropout]
    for one in sequences:
        prompt = [token for token in one.tokens if token < model.first_code]
        assert len(prompt) > 5 and (one.tokens[1] != pad or set(prompt[1:-1]) == {pad})


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_scenes_is_told_from_its_left_or_upper_glyph(share: float, tmp_path: Path) -> None:
    examples = {"understanding": 0, "drawing": 60}
    made, model = source(tmp_path, {"told_once": share, "dropout": 0.0, "examples": examples})
    sequences, *_ = made.step(0)
    texts = [picture_characters().decode([one for one in each.tokens if one < model.first_code]) for each in sequences]
    n_first = sum("left of" in text or "above" in text for text in texts)
    assert {0.0: 18 <= n_first <= 42, 0.5: 33 <= n_first <= 56, 1.0: n_first == 60}[share]


def test_unseen_glyphs_are_drawn_without_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[str] = []
    monkeypatch.setattr("zifio.train.janus.paint", lambda shown, rng: painted.append(shown.split) or paint(shown, rng))
    examples = {"understanding": 0, "drawing": 40}
    made, _ = source(tmp_path, {"untold": ["train", "unseen"], "dropout": 0.5, "examples": examples})
    sequences, *_ = made.step(0)
    untold = [one.tokens[1] == picture_characters().pad_id for one in sequences]
    assert {split for split, blank in zip(painted, untold, strict=True) if not blank} == {"train"}
    assert 4 <= painted.count("unseen") <= 20


def test_codes_of_a_file_are_made_once(tmp_path: Path) -> None:
    data = pairs(tmp_path)
    examples = {"understanding": 0, "drawing": 6}
    made, model = source(tmp_path, {"data": "pairs", "examples": examples, "dropout": 0.0}, pairs=data)
    assert made.kept is not None and [pair.text for pair in made.kept] == ["grey 0", "grey 16"]
    flops = [made.step(step)[2] / vq_flops(model.shape.vq_config, paints=False) for step in range(5)]
    assert flops == [6, 6, 6, 0, 0]
    sequences, *_ = made.step(1)
    tokenizer = picture_characters()
    for one in sequences:
        number = int(tokenizer.decode(t for t in one.tokens if t < model.first_code).split("grey ")[1].split("<")[0])
        picture = torch.from_numpy(pixels_of(np.full((32, 32, 3), number * 9, np.uint8)))[None]
        assert one.tokens[-64:] == model.drawing(picture)[0].tolist()
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert [one.tokens for one in made.step(1)[0]] == [one.tokens for one in sequences]


def looked(folder: Path, **paths: Path) -> Context:
    """A context whose looks are those of `evaluate`."""

    def look(stage: Any, tokenizer: Any, task: Any) -> Any:
        return make_look(stage.held_out.problems, stage.held_out.n, stage.sampling, 5, task, tokenizer)

    given = context(folder, base=folder / "base", pairs=folder / "pairs.jsonl", **paths)
    return Context(given.folder, 5, GlyphWords(), given.model_of, given.data_of, look)  # type: ignore[arg-type]


def test_looks_read_and_draw_what_is_held_out(tmp_path: Path) -> None:
    base(tmp_path)
    settings = SETTINGS | {"steps": 1, "held_out": {"every": 1, "problems": 2, "n": 2}, "scales": [1.0, 3.0]}
    run("janus", settings, looked(tmp_path))
    line = next(line for line in metrics(tmp_path) if any(key.startswith("held_out") for key in line))
    assert {key for key in line if key.endswith("/pass_at_1")} == {
        f"held_out/{what}/{split}{scale}/pass_at_1"
        for split in ("held_out", "unseen")
        for what, scale in (("captions", ""), ("drawings", "/guidance_1"), ("drawings", "/guidance_3"))
    }
    assert all(line[key] == 0 for key in line if key.endswith("/pass_at_1"))


def test_looks_at_pairs(tmp_path: Path) -> None:
    base(tmp_path), pairs(tmp_path)
    settings = SETTINGS | {"steps": 1, "held_out": {"every": 1, "problems": 9, "n": 2}, "data": "pairs"}
    run("janus", settings, looked(tmp_path))
    line = next(line for line in metrics(tmp_path) if any(key.startswith("held_out") for key in line))
    assert line["held_out/captions/held_out/pass_at_1"] == 0


def test_looks_at_drawings_that_a_judge_tells_apart(tmp_path: Path) -> None:
    """Every scale has its share and its spread, and the real pictures' beside them."""
    base(tmp_path)
    files = labelled_files(tmp_path, side=32, name="digits")
    named = {key: files / f"{stem}-images-idx3-ubyte.gz" for key, stem in (("learnt", "train"), ("kept", "t10k"))}
    shape = ClassifierConfig(image_size=16, channels=[4], hidden_size=4, labels=["0", "1", "2"])
    (tmp_path / "judge").mkdir()
    save_model(Classifier(shape, seed=1), tmp_path / "judge")
    settings = SETTINGS | {"steps": 1, "held_out": {"every": 1, "problems": 4, "n": 1}, "scales": [1.0, 3.0]}
    settings |= {"data": "learnt", "held_out_data": "kept", "judge": "judge"}
    run("janus", settings, looked(tmp_path, judge=tmp_path / "judge", **named))
    line = next(line for line in metrics(tmp_path) if any(key.startswith("held_out") for key in line))
    found = {scale: f"held_out/drawings/held_out/guidance_{scale}" for scale in (1, 3)}
    for place in found.values():
        assert (
            line[f"{place}/format_rate"] == 1 and 0 <= line[f"{place}/pass_at_1"] <= 1 and line[f"{place}/spread"] > 0
        )
    real = [(line[f"{place}/real_spread"], line[f"{place}/real_pass_at_1"]) for place in found.values()]
    assert real[0] == real[1] and real[0][0] > 0
    assert line["held_out/captions/held_out/pass_at_1"] == 0


def test_what_does_not_belong_together_is_named(tmp_path: Path) -> None:
    made = base(tmp_path)
    text = save_with_pictures(tmp_path / "text", Decoder(llama(vocab_size=60), seed=7))
    plain = save_with_pictures(tmp_path / "plain", scene_janus())
    save_tokenizer(characters(), plain)
    paths = {"base": made, "text": text, "plain": plain, "pairs": pairs(tmp_path, 1)}
    marked = tmp_path / "marked"
    marked.mkdir()
    paths["marked"] = pairs(marked, 3, question="<image_placeholder> again")
    for changes, said in (
        ({"from": "text"}, "wanted a model that reads and draws, came 'text', a decoder"),
        ({"codes": "base", "vision": VISION}, "wanted none, for 'base' reads and draws already"),
        ({"from": "plain"}, "tokenizer.pictures = true"),
        ({"data": "pairs"}, "wanted pairs for understanding"),
        ({"data": "marked"}, "holds the mark"),
        ({"weights": {"understanding": 0.0, "text": 0.0, "drawing": 0.0}}, "wanted some above 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            run("janus", SETTINGS | changes, context(tmp_path / "run", GlyphWords(), **paths))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"from": None}, "either `from`"),
        ({"model": SHAPE}, "either `from`"),
        ({"from": None, "model": SHAPE}, "wanted `tokenizer` beside `model`"),
        ({"from": None, "model": SHAPE, "tokenizer": "t"}, "wanted `codes` and `vision` beside `model`"),
        ({"codes": "codes"}, "wanted `codes` and `vision` together"),
        ({"held_out_data": "more"}, "wanted `data` beside it"),
        ({"judge": "judge"}, "of scenes a parser says"),
        ({"data": "pairs", "told_once": 0.5}, "they are about scenes"),
        ({"data": "pairs", "untold": ["unseen"]}, "they are about scenes"),
        ({"examples": {"understanding": 0, "drawing": 0}}, "wanted examples of some kind"),
        ({"trains": "vq"}, "trains"),
        ({"trains": "adaptors"}, "text moves none of the adaptors"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    settings = {key: value for key, value in (SETTINGS | changes).items() if value is not None}
    with pytest.raises(ConfigError, match=said):
        build(JanusStage, {"kind": "janus", "name": "tiny", **settings}, "test")


def test_a_model_of_other_pictures_wants_a_file(tmp_path: Path) -> None:
    from tiny import janus, made_janus

    model = made_janus(janus(llama(vocab_size=60, max_position_embeddings=256)))
    start = save_with_pictures(tmp_path / "base", model)
    with pytest.raises(ConfigError, match="glyph scenes have 32 pixels a side and this model wants 16"):
        run("janus", SETTINGS, context(tmp_path / "run", base=start))
