"""The tokenizer of pictures against the papers' formulas, written out another way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tiny import janus, made_janus, pixels_like, tokens_like

from zifio.models.vq import Vq


def test_a_latent_becomes_the_code_that_is_nearest_on_the_sphere() -> None:
    """By distance between normalised vectors, as ViT-VQGAN writes it; lengths of latents and codes count for nothing.

    transformers' `encode` measures without normalising: on these weights it takes other codes.
    """
    vq = made_janus().vqmodel
    with torch.no_grad():
        vq.quantize.embedding.weight.mul_(torch.linspace(0.1, 3, 24)[:, None])
        vq.quant_conv.bias -= vq.quant_conv(vq.encoder(pixels_like(6))).mean(dim=(0, 2, 3))  # to all sides
        raw_BUYX = vq.quant_conv(vq.encoder(pixels_like(6)))
        z_NU = raw_BUYX.permute(0, 2, 3, 1).reshape(-1, 4)
        e_ZU = vq.quantize.embedding.weight
        distance_NZ = ((F.normalize(z_NU)[:, None] - F.normalize(e_ZU)[None]) ** 2).sum(-1)
        expected = distance_NZ.argmin(dim=1).view(6, 16)
        ids_BT = vq.encode(pixels_like(6))
        theirs = ((z_NU[:, None] - e_ZU[None]) ** 2).sum(-1).argmin(dim=1).view(6, 16)
    assert torch.equal(ids_BT, expected)
    assert (ids_BT != theirs).any() and len(ids_BT.unique()) > 3


def test_the_gradient_goes_straight_through_the_codebook() -> None:
    vq = Vq(janus().vq_config, seed=2)
    painted, coded = vq(pixels_like(2))
    torch.testing.assert_close(painted, vq.decode(coded.ids_BT), atol=1e-5, rtol=1e-5)
    painted.square().mean().backward()
    assert vq.encoder.conv_in.weight.grad is not None and vq.encoder.conv_in.weight.grad.abs().max() > 0
    assert vq.quantize.embedding.weight.grad is None, "reconstruction moves no code"
    (coded.code_BTU - coded.latent_BTU.detach()).square().mean().backward()
    used = vq.quantize.embedding.weight.grad.abs().sum(dim=1) > 0
    assert set(used.nonzero()[:, 0].tolist()) == set(coded.ids_BT.unique().tolist())


def test_lengths_of_codes_change_no_drawing() -> None:
    vq = Vq(janus().vq_config, seed=2)
    ids_BT = tokens_like(2, 16, vocab=24)
    with torch.no_grad():
        before = vq.decode(ids_BT)
        vq.quantize.embedding.weight.mul_(3.0)
        torch.testing.assert_close(vq.decode(ids_BT), before, atol=1e-5, rtol=1e-5)
    assert before.shape == (2, 3, 16, 16)
