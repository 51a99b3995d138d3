"""The stage `vq`: its loss by the formula, codes that are kept alive, exact resume, and what it refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import context, in_one_and_in_two, metrics, pixels_like, run
from torch.utils.flop_counter import FlopCounterMode

from zifio.config import ConfigError
from zifio.models.count import vq_flops
from zifio.models.janus_config import VqConfig
from zifio.models.vq import Vq
from zifio.models.weights import load_vq
from zifio.pictures import write_png
from zifio.train.loss import LossTerms, batch_loss
from zifio.train.vq import CodeUse, Pictures, picture_batches, psnr, sources

SHAPE = {
    "embed_dim": 4, "num_embeddings": 24, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1, 1],
    "num_res_blocks": 1, "num_patches": 8, "projection_dim": 16, "image_token_embed_dim": 16,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "model": SHAPE, "steps": 6, "pictures": 4, "checkpoint_every": 2, "restart_after": 2, "spliced": 0.5,
    "rows": {"micro_tokens": 128}, "optim": {"lr": 3e-3}, "held_out": {"every": 3, "problems": 4},
}  # fmt: skip


def vq_of(**changes: Any) -> Vq:
    """An untrained tokenizer."""
    return Vq(VqConfig(**(SHAPE | changes)), seed=3)


def test_the_loss_is_the_formula_however_the_batch_is_cut() -> None:
    model, pixels = vq_of(beta=0.4), pixels_like(4, side=32)
    heard: list[torch.Tensor] = []
    terms = LossTerms(l1_weight=0.5, hears_codes=heard.append)
    with torch.no_grad():
        z = torch.nn.functional.normalize(model.quant_conv(model.encoder(pixels)), dim=1)
        e = torch.nn.functional.normalize(model.quantize.embedding.weight, dim=1)
        ids = torch.einsum("bcyx,zc->byxz", z, e).argmax(dim=-1)
        between = (e[ids].permute(0, 3, 1, 2) - z).square().sum(dim=1).mean()
        off = model.decode(ids.flatten(1)) - pixels
        expected = off.square().mean() + 0.5 * off.abs().mean() + (1 + 0.4) * between
    own = sources(4, 8, 0.0, random.Random(0))
    for micro_tokens in (128, 256):
        parts = picture_batches(pixels, own, micro_tokens)
        results = [batch_loss(model, part, terms, part.n_sequences / 4) for part in parts]
        assert len(results) == 256 // micro_tokens and sum(part.n_tokens for part in parts) == 4 * 64
        assert sum(result.loss.item() for result in results) == pytest.approx(expected.item(), rel=1e-5)
        error = sum(result.sums["squared_error"] for result in results)
        assert error == pytest.approx(off.square().mean().item(), rel=1e-5)
    assert torch.equal(torch.cat(heard[:2]), ids.flatten(1))


def test_spliced_pictures_are_painted_from_codes_of_two_and_compared_with_pixels_of_the_same_two() -> None:
    model, pixels = vq_of(), pixels_like(4, side=32)
    source_MT = sources(4, 8, 1.0, random.Random(3))
    source_MYX = source_MT.unflatten(1, (8, 8))
    assert all(set(source_MT[m].tolist()) == {m // 2 * 2, m // 2 * 2 + 1} for m in range(4)), "both give a part"
    assert torch.equal(source_MYX[0] + source_MYX[1], torch.ones(8, 8)), "what one has the other has not"
    for changed in (source_MYX[first] != first for first in (0, 2)):
        rows, columns = (changed.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "one whole rectangle"
    with torch.no_grad():
        ids, wanted = model.encode(pixels), pixels.clone()
        given = ids.clone()
        for m, y, x in ((m, y, x) for m in range(4) for y in range(8) for x in range(8)):
            other = int(source_MYX[m, y, x])
            given[m, 8 * y + x] = ids[other, 8 * y + x]
            wanted[m, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = pixels[other, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        expected = (model.decode(given) - wanted).square().mean()
    for micro_tokens in (64, 128, 256):  # a pair is never cut
        parts = picture_batches(pixels, source_MT, micro_tokens)
        found = [batch_loss(model, part, LossTerms(), part.n_sequences / 4).sums["squared_error"] for part in parts]
        assert sum(found) == pytest.approx(expected.item(), rel=1e-5)


def test_no_picture_is_spliced_unless_it_is_asked_for_and_an_odd_one_keeps_its_codes() -> None:
    own = torch.arange(5)[:, None].expand(5, 64)
    assert torch.equal(sources(5, 8, 0.0, random.Random(1)), own)
    assert torch.equal(sources(5, 8, 1.0, random.Random(1))[4], own[4])
    changed = [(sources(2, 8, 0.3, random.Random(seed)) != own[:2]).any().item() for seed in range(300)]
    assert 0.2 < sum(changed) / 300 < 0.4


def test_gradients_of_the_two_halves_go_apart() -> None:
    """Without commitment the encoder learns from reconstruction alone; the codebook only from its own loss."""
    model = vq_of(beta=0.0)
    (batch,) = picture_batches(pixels_like(2, side=32), sources(2, 8, 0.0, random.Random(0)), 999)
    batch_loss(model, batch, LossTerms(), 1.0).loss.backward()
    grad = model.encoder.conv_in.weight.grad
    assert grad is not None and model.quantize.embedding.weight.grad is not None
    alone = vq_of(beta=0.0)
    painted, _ = alone(batch.pixels_MUYX)
    (painted - batch.pixels_MUYX).square().mean().backward()
    torch.testing.assert_close(grad, alone.encoder.conv_in.weight.grad)


def test_idle_codes_become_latents_and_used_ones_stay() -> None:
    model, pixels, use = vq_of(), pixels_like(2, side=32), CodeUse(24, restart_after=3)
    before = model.quantize.codes().detach().clone()
    use.hear(torch.arange(20)[None])
    for step in range(3):
        assert use.next_step(model, pixels, 5, step)["codes/restarted"] == 0
    use.hear(torch.arange(20)[None])
    assert use.next_step(model, pixels, 5, 3) == {"codes/restarted": 4.0, "codes/restarted_in_all": 4.0}
    after, latents = model.quantize.codes().detach(), model.latents(pixels).detach().flatten(0, 1)
    assert torch.equal(after[:20], before[:20]) and not torch.equal(after[20:], before[20:])
    for code in after[20:]:
        assert (latents - code).abs().sum(dim=1).min() < 1e-5
    again = CodeUse(24, 3)
    again.load_state(json.loads(json.dumps(use.state())))
    assert np.array_equal(again.idle_Z, use.idle_Z) and again.n_restarted == 4


def test_dead_codes_go_where_pictures_are_coded_worst() -> None:
    """Latents that have their own code are as good as never taken, however many there are."""
    model, use = vq_of(num_embeddings=40), CodeUse(40, restart_after=1)
    pixels = pixels_like(2, side=32)
    with torch.no_grad():
        latents = model.latents(pixels).flatten(0, 1)
        model.quantize.embedding.weight[:4] = latents[::32]
        model.quantize.embedding.weight[4:] = -latents.mean(dim=0)
        far = 1 - (latents @ model.quantize.codes().T).max(dim=1).values
    use.idle_Z[4:] = 9
    use.next_step(model, pixels, 5, 0)
    taken = [int((latents - code).abs().sum(dim=1).argmin()) for code in model.quantize.codes().detach()[4:]]
    assert far[taken].min() > 1e-5 and far[taken].mean() > 1.2 * far.mean()


def test_where_all_is_coded_exactly_dead_codes_still_become_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    model, use = vq_of(num_embeddings=130), CodeUse(130, restart_after=1)
    pixels = pixels_like(2, side=32)
    with torch.no_grad():
        latents = model.latents(pixels).flatten(0, 1)
        model.quantize.embedding.weight[:128] = latents
        exact = model.code(pixels)._replace(
            latent_BTU=latents.unflatten(0, (2, 64)), code_BTU=latents.unflatten(0, (2, 64))
        )
    monkeypatch.setattr(model, "code", lambda pixels: exact)  # rounding aside, which this is about
    use.idle_Z[128:] = 9
    assert use.next_step(model, pixels, 5, 0)["codes/restarted"] == 2
    for code in model.quantize.codes().detach()[128:]:
        assert (latents - code).abs().sum(dim=1).min() < 1e-5


def test_a_stage_that_is_stopped_goes_on_exactly_and_learns(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    _, totals = in_one_and_in_two("vq", SETTINGS, tmp_path, 2)
    lines = metrics(whole)
    looks = [line for line in lines if "held_out/psnr" in line]
    assert [line["step"] for line in looks] == [0, 3, 6] and looks[-1]["held_out/psnr"] > looks[0]["held_out/psnr"] + 1
    assert {"held_out/codes_used", "held_out/perplexity"} <= looks[0].keys()
    trained = [line for line in lines if "loss" in line]
    assert trained[-1]["loss"] < trained[0]["loss"] and trained[-1]["codes/restarted_in_all"] > 0
    assert totals["tokens"] == 6 * 4 * 64 and totals["flops"] == 6 * 4 * 3 * vq_flops(VqConfig(**SHAPE))
    assert load_vq(whole / "model").config == VqConfig(**SHAPE)


def test_transformers_opens_what_the_stage_writes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers.models.janus.modeling_janus")
    run("vq", SETTINGS | {"steps": 1}, context(tmp_path))
    ours = load_vq(tmp_path / "model")
    theirs = transformers.JanusVQVAE.from_pretrained(tmp_path / "model")
    ids = torch.randint(24, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs.decode(ids), ours.decode(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"channel_multiplier": [1, 2, 2], "num_res_blocks": 2}])
def test_flops_are_counted_as_torch_counts_them(changes: dict[str, Any]) -> None:
    model = vq_of(**changes)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels_like(2, side=32))
    assert vq_flops(model.config) * 2 == pytest.approx(counter.get_total_flops(), rel=1e-6)


def pairs(folder: Path, n: int) -> Path:
    """A file of so many pictures of one level each."""
    for i in range(n):
        write_png(np.full((40, 48, 3), i * 5, np.uint8), folder / f"{i}.png")
    lines = [json.dumps({"image": f"{i}.png", "text": str(i)}) for i in range(n)]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder / "pairs.jsonl"


def test_pictures_of_a_file_are_learnt_from_or_held_out(tmp_path: Path) -> None:
    data = pairs(tmp_path, 20)
    pictures = Pictures(data, 32, "codes")
    shown = {round((p.mean() + 1) * 127.5 / 5) for p in pictures.train(0, 36, 1, holds_out=True)}
    apart = {round((p.mean() + 1) * 127.5 / 5) for p in pictures.held_out(9, 1, all_of_them=False)}
    assert apart == {0, 16} and shown == {*range(20)} - apart
    assert len(pictures.held_out(9, 1, all_of_them=True)) == 9
    run("vq", SETTINGS | {"steps": 1, "data": "pairs", "held_out_data": "pairs"}, context(tmp_path / "run", pairs=data))


@pytest.mark.parametrize(("n", "changes", "said"), [(3, {}, "at least 16 pictures, came 3"), (0, {}, "glyph scenes")])
def test_what_does_not_fit_is_named(n: int, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    data = pairs(tmp_path, n) if n else None
    with pytest.raises(ConfigError, match=said):
        Pictures(data, 16, "codes")


def test_psnr_of_known_errors() -> None:
    assert psnr(4.0) == 0 and psnr(0.04) == pytest.approx(20) and psnr(0.0) > 100
