"""Our Janus against `transformers`' own on random weights: reading, drawing step by step, files both ways, counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import deepseek, janus, llama, made_janus, pixels_like, qwen3, tokens_like
from torch import Tensor

from zifio.config import ConfigError
from zifio.kernels.library import library
from zifio.models.count import janus_parameters
from zifio.models.decoder import Decoder
from zifio.models.janus import Janus, guided
from zifio.models.janus_config import JANUS_PRO, JanusConfig, read_janus_config, unconditioned
from zifio.models.weights import load_model, save_model

BOS, EOS, PAD, BOI, PATCH = 1, 2, 0, 3, 39
PROMPT = [BOS, 5, 7, 9, BOI]
DRAW = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "generation_kwargs": {"boi_token_id": BOI}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Janus, Any]:
    """Our model, and transformers' of the folder that we wrote it to."""
    transformers = pytest.importorskip("transformers")
    folder, model = tmp_path_factory.mktemp("janus"), made_janus()
    save_model(model, folder)
    return model, transformers.JanusForConditionalGeneration.from_pretrained(folder).eval()


def hidden_of(model: Decoder, tokens: list[int]) -> Tensor:
    """Hidden states of one sequence, [T, D]."""
    return model(torch.tensor([tokens]), torch.arange(len(tokens))[None]).hidden_BTD[0]


@torch.no_grad()
def test_text_about_pictures_has_transformers_logits(pair: tuple[Janus, Any]) -> None:
    model, theirs = pair
    pixels = pixels_like(2)
    one, two = model.look(pixels)
    ours = model.logits(hidden_of(model, [BOS, 4, *one.tokens, 6, 8, *two.tokens, 9, 10]))
    ids = torch.tensor([[BOS, 4, *[PATCH] * 16, 6, 8, *[PATCH] * 16, 9, 10]])
    expected = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits[0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    swapped = model.logits(hidden_of(model, [BOS, 4, *two.tokens, 6, 8, *one.tokens, 9, 10]))
    assert (swapped - expected).abs().max() > 1e-2, "the test wants pictures that matter"


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_every_step_of_a_drawing_has_transformers_logits(pair: tuple[Janus, Any], scale: float) -> None:
    """Their side: their decoder with their cache, their head and adaptor, fed the same draws, as their `generate`."""
    model, theirs = pair
    drawn = tokens_like(16, vocab=24).tolist()
    blank = unconditioned(PROMPT, (BOS, BOI), PAD)
    assert blank == [BOS, PAD, PAD, PAD, BOI]
    full = [[*prompt, *(model.first_code + code for code in drawn)] for prompt in (PROMPT, blank)]
    ours_c, ours_u = (model.code_logits(hidden_of(model, one)[len(PROMPT) - 1 : -1]) for one in full)
    embedded, cache = theirs.get_input_embeddings()(torch.tensor([PROMPT, blank])), None
    for step, code in enumerate(drawn):
        out = theirs.model.language_model(inputs_embeds=embedded, use_cache=True, **cached(theirs, cache))
        cache = out.cache if hasattr(out, "cache") else out.past_key_values
        conditioned, blind = theirs.model.generation_head(out.last_hidden_state[:, -1])
        expected = blind + scale * (conditioned - blind)
        ours = guided(ours_c[step], ours_u[step], scale)
        torch.testing.assert_close(ours, expected, atol=1e-5 * scale, rtol=0)
        embedded = theirs.prepare_embeddings_for_image_generation(torch.tensor([[code], [code]]))


def cached(theirs: Any, cache: Any) -> dict[str, Any]:
    """The cache under the name that this version of transformers has for it."""
    import inspect

    takes = inspect.signature(type(theirs.model.language_model).forward).parameters
    return {"cache" if "cache" in takes else "past_key_values": cache}


@torch.no_grad()
def test_their_generate_draws_what_we_draw(pair: tuple[Janus, Any]) -> None:
    """Greedy under guidance 5, each step from the whole sequence. (Their guidance 1 raises: it doubles its draws.)"""
    transformers = pytest.importorskip("transformers")
    model, theirs = pair
    settings = transformers.GenerationConfig(**DRAW, do_sample=False, guidance_scale=5, max_length=64)
    ids = torch.tensor([PROMPT])
    arguments = {"attention_mask": torch.ones_like(ids), "generation_mode": "image", "generation_config": settings}
    expected = theirs.generate(input_ids=ids, **arguments)[0].tolist()
    asked, blank, drawn = list(PROMPT), unconditioned(PROMPT, (BOS, BOI), PAD), []
    for _ in range(16):
        logits = [model.code_logits(hidden_of(model, one)[-1]) for one in (asked, blank)]
        drawn.append(int(guided(*logits, 5.0).argmax()))
        asked, blank = [*asked, model.first_code + drawn[-1]], [*blank, model.first_code + drawn[-1]]
    assert drawn == expected


@torch.no_grad()
def test_drawings_are_painted_as_transformers_paints_them(pair: tuple[Janus, Any]) -> None:
    model, theirs = pair
    codes = tokens_like(3, 16, vocab=24)
    expected = theirs.decode_image_tokens(codes).permute(0, 3, 1, 2)
    torch.testing.assert_close(model.vqmodel.decode(codes), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.paint(codes + model.first_code), model.vqmodel.decode(codes).clamp(-1, 1))
    latent = theirs.model.vqmodel.quant_conv(theirs.model.vqmodel.encoder(pixels_like(3)))
    ours = model.vqmodel.quant_conv(model.vqmodel.encoder(pixels_like(3)))
    torch.testing.assert_close(ours, latent, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "text",
    [llama(head_dim=6), llama(head_dim=6, tie_word_embeddings=True), qwen3(), deepseek()],
    ids=lambda c: c.model_type,
)
def test_weights_come_back_as_they_went(text: Any, tmp_path: Path) -> None:
    model = made_janus(janus(text))
    save_model(model, tmp_path, shard_bytes=40_000)
    again = load_model(tmp_path)
    assert isinstance(again, Janus) and again.shape == model.shape
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    (picture,), (same,) = model.look(pixels_like(1)), again.look(pixels_like(1))
    prompt = [BOS, *picture.tokens, 4, model.first_code + 3]
    assert picture.tokens == same.tokens and torch.equal(hidden_of(model, prompt), hidden_of(again, prompt))


@torch.no_grad()
def test_transformers_folders_open_here(pair: tuple[Janus, Any], tmp_path: Path) -> None:
    model, theirs = pair
    theirs.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    ours = model.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in again.state_dict().items())


@torch.no_grad()
def test_a_head_of_its_own_is_kept_where_the_file_does_not_say(tmp_path: Path) -> None:
    model = made_janus()
    save_model(model, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["tie_word_embeddings"], raw["text_config"]["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_janus_config(tmp_path).text_config.tie_word_embeddings, "as transformers takes it"
    again = load_model(tmp_path)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, again.embed_tokens.weight)


def test_published_shapes_have_the_published_sizes() -> None:
    """The paper's 1B and 7B, and each part, by formula and by the modules themselves."""
    expected = {"1B": (1.653, 0.3037, 6.3, 71.9, 4.2 + 37.8), "7B": (6.910, 0.3037, 21.0, 71.9, 16.8 + 83.9)}
    for size, shape in JANUS_PRO.items():
        counts = janus_parameters(shape)
        language, vision, reading, vq, drawing = expected[size]
        assert round(counts["language"] / 1e9, 3) == language
        assert round(counts["vision"] / 1e9, 4) == vision and round(counts["vq"] / 1e6, 1) == vq
        assert round(counts["reading"] / 1e6, 1) == reading
        assert counts["drawing"] / 1e6 == pytest.approx(drawing, abs=0.25)
        with torch.device("meta"):
            model = Janus(shape)
        assert sum(p.numel() for p in model.parameters()) == sum(counts.values())
    assert [round(sum(janus_parameters(shape).values()) / 1e9, 3) for shape in JANUS_PRO.values()] == [2.077, 7.408]


@pytest.mark.parametrize("vq", [{}, {"channel_multiplier": [1, 2, 2], "num_res_blocks": 2}, {"num_hidden_layers": 3}])
def test_sizes_by_formula_for_any_shape(vq: dict[str, Any]) -> None:
    shape = janus(vq=vq, vision={"depth": 1})
    assert sum(p.numel() for p in Janus(shape).parameters()) == sum(janus_parameters(shape).values())


def test_the_presets_are_transformers_own_shape(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from zifio.models.janus_config import write_janus_config

    write_janus_config(JANUS_PRO["1B"], tmp_path, "bfloat16")
    config = transformers.JanusConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        theirs = transformers.JanusForConditionalGeneration(config)
        ours = Janus(read_janus_config(tmp_path))
    assert not config.tie_word_embeddings
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())


def test_gradients_reach_every_part_but_the_tokenizer_of_pictures() -> None:
    model = made_janus()
    tokens = [BOS, *range(model.first_patch, model.first_patch + 16), 4, *(model.first_code + c for c in range(6))]
    hidden = model(torch.tensor([tokens]), torch.arange(len(tokens))[None], pixels_MUYX=pixels_like(1)).hidden_BTD
    (model.logits(hidden).square().mean() + model.code_logits(hidden).square().mean()).backward()
    idle = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == {"vqmodel"}


@torch.no_grad()
def test_a_pass_with_pictures_equals_pictures_looked_at_before() -> None:
    model, pixels = made_janus(), pixels_like(2)
    pictures = model.look(pixels)
    prompt = [BOS, *pictures[1].tokens, 5, *pictures[0].tokens]
    numbered = [BOS, *range(model.first_patch + 16, model.first_patch + 32), 5]
    numbered += range(model.first_patch, model.first_patch + 16)
    positions = torch.arange(len(prompt))[None]
    within = model(torch.tensor([numbered]), positions, pixels_MUYX=pixels).hidden_BTD[0]
    torch.testing.assert_close(within, hidden_of(model, prompt), atol=1e-6, rtol=0)


def test_codes_are_read_from_a_table_with_the_same_bits_until_weights_change() -> None:
    model, tokens = made_janus(), torch.tensor([[1, 40, 63, 41, 5, 52, 40], [40, 41, 42, 43, 44, 45, 63]])

    def read() -> list[Tensor]:
        with torch.no_grad():
            return [model.embed(part) for part in (tokens, tokens[1:], tokens[:, :1])]

    plain = read()
    model.pack()
    assert all(map(torch.equal, read(), plain)) and (model._drawn_ZD is not None or library() is None)
    model.embed(tokens).sum().backward()
    assert model.generation_aligner.fc1.weight.grad is not None, "with a gradient the modules read"
    for name, weight in model.named_parameters():
        if name.startswith(("generation_embeddings", "generation_aligner")):
            with torch.no_grad():
                weight.mul_(1.5)
            changed = read()
            model.unpack()
            again = read()
            model.pack()
            assert all(map(torch.equal, changed, again)) and all(map(torch.equal, read(), again))
            assert not torch.equal(changed[1], plain[1]), name
            plain = changed


def test_no_two_pictures_share_tokens_and_dropped_ones_are_forgotten() -> None:
    model = made_janus()
    one, two = model.look(pixels_like(2))
    assert not {*one.tokens} & {*two.tokens} and max(two.tokens) + 1 == model.n_tokens
    known = len(model._pictures)
    del two
    assert len(model._pictures) == known - 1
    assert not {*one.tokens} & {*model.look(pixels_like(1))[0].tokens}


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("vision_config", "use_qk_norm", True, "use_qk_norm"),
        ("vision_config", "image_size", 20, "num_image_tokens=16 is not the number of patches"),
        ("vision_config", "projection_dim", 25, "vision_config.projection_dim=25 is not text_config.hidden_size=24"),
        ("vq_config", "double_latent", True, "double_latent"),
        ("vq_config", "base_channels", 48, "multiple of 32"),
        ("text_config", "model_type", "gpt2", "gpt2"),
        (None, "model_type", "multi_modality", "deepseek-community/Janus-Pro-1B"),
    ],
)
def test_files_that_mean_something_else_are_refused(
    part: str | None, key: str, value: Any, said: str, tmp_path: Path
) -> None:
    save_model(made_janus(), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (raw if part is None else raw[part])[key] = value
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=said):
        load_model(tmp_path)


def test_drawings_and_pictures_have_as_many_tokens() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        janus(vq={"num_patches": 5})
    assert JanusConfig.model_validate(janus().model_dump()) == janus()
