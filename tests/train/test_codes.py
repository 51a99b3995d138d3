"""Text, pictures and drawings in one packed batch: log-probs of codes, numbers of pictures, sampler equals trainer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import janus, llama, made_janus, pixels_like, tokens_like

from zifio.config import Sampling
from zifio.data.pack import Sequence
from zifio.engine.engine import Engine
from zifio.engine.guide import Drawing
from zifio.models.janus import Janus
from zifio.train.batch import make_batches
from zifio.train.logp import token_logp_entropy
from zifio.train.loss import LossTerms, batch_loss, policy_logp

TEXT, CODES = [1, 5, 9, 7, 2], [1, 8, 3]


def drawn(model: Janus) -> list[int]:
    """A drawing on the axis of tokens."""
    return [model.first_code + code for code in tokens_like(16, vocab=24).tolist()]


def mixed(model: Janus, pixels: np.ndarray) -> list[Sequence]:
    """Two captions of pictures, a text and a drawing; what is said and drawn has weight."""
    first, patches = model.first_patch, (model.first_patch, 16)
    out = [Sequence(TEXT, [0.0, 0.0, 1.0, 1.0, 1.0])]
    tokens = [*CODES, *drawn(model)]
    out.append(Sequence(tokens, [0.0] * 3 + [1.0] * 16))
    for nth, words in enumerate(([6, 7], [8])):
        tokens = [1, *range(first, first + 16), 4, *words]
        weight = [0.0] * 18 + [1.0] * len(words)
        out.append(Sequence(tokens, weight, pixels_MUYX=pixels[nth : nth + 1], patches=patches))
    return out


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_codes_have_the_log_probs_of_their_own_head(temperature: float) -> None:
    """Against the logits themselves, with gradients and entropies, in chunks of 5 tokens."""
    model, tokens = made_janus(), [*TEXT, *CODES]
    tokens += drawn(model)
    tokens_BT = torch.tensor([tokens])
    hidden = model(tokens_BT, torch.arange(len(tokens))[None]).hidden_BTD
    logp, entropy = token_logp_entropy(model, hidden, tokens_BT, temperature, with_entropy=True, chunk_tokens=5)
    heads = [
        (model.logits(hidden) / temperature).log_softmax(-1),
        (model.code_logits(hidden) / temperature).log_softmax(-1),
    ]
    expected, spread = [0.0], [0.0]
    for at in range(1, len(tokens)):
        is_code = tokens[at] >= model.first_code
        row = heads[is_code][0, at - 1]
        expected.append(row[tokens[at] - model.first_code * is_code])
        spread.append(-(row.exp() * row).sum().item())
    torch.testing.assert_close(logp[0], torch.stack([torch.as_tensor(one) for one in expected]), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy[0], torch.tensor(spread), atol=1e-4, rtol=0)
    weights = [model.generation_head.vision_head.weight, model.lm_head.weight, model.layers[0].mlp.up_proj.weight]
    ours = torch.autograd.grad(logp.sum(), weights, retain_graph=True)
    for one, other in zip(ours, torch.autograd.grad(sum(expected[1:]), weights), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def test_a_packed_batch_of_all_kinds_has_the_loss_of_each_alone() -> None:
    model, pixels = made_janus(), pixels_like(2).numpy()
    sequences = mixed(model, pixels)
    alone = sum(
        batch_loss(model, batch, LossTerms(), 1.0).loss.item()
        for sequence in sequences
        for batch in make_batches([sequence], 64, 64, 0)
    )
    for row_tokens, micro_tokens in ((80, 80), (40, 40), (40, 160)):
        batches = make_batches(sequences, row_tokens, micro_tokens, 0)
        assert sum(0 if b.pixels_MUYX is None else len(b.pixels_MUYX) for b in batches) == 2
        together = sum(batch_loss(model, batch, LossTerms(), 1.0).loss.item() for batch in batches)
        assert together == pytest.approx(alone, rel=1e-5)
    swapped = mixed(model, pixels[::-1].copy())
    (batch,) = make_batches(swapped, 80, 80, 0)
    assert abs(batch_loss(model, batch, LossTerms(), 1.0).loss.item() - alone) > 1e-3, "pictures matter"


def test_what_the_engine_draws_has_the_trainers_log_probs() -> None:
    """Without guidance: drawn codes and written text of one model, by both."""
    model = made_janus(janus(llama(max_position_embeddings=256)))
    engine = Engine(model, 99)
    (picture,) = model.look(pixels_like(1))
    asked: list[tuple[list[int], list[Drawing] | None, int]] = [
        ([1, 8, 3], [Drawing()], 16), ([1, *picture.tokens, 4], None, 9),
    ]  # fmt: skip
    for prompt, drawings, n in asked:
        ((reply,),) = engine.generate([prompt], [[5]], Sampling(max_new_tokens=n, temperature=0.8), drawings)
        tokens, columns = prompt + reply.tokens, {"policy_weight": [0.0] * len(prompt) + [1.0] * n}
        more: dict[str, Any] = {}
        if drawings is None:
            tokens = [t - picture.tokens[0] + model.first_patch if t >= model.first_patch else t for t in tokens]
            more = {"pixels_MUYX": pixels_like(1).numpy(), "patches": (model.first_patch, 16)}
        (batch,) = make_batches([Sequence(tokens, [0.0] * len(tokens), columns, **more)], 64, 64, 0)
        logp = policy_logp(model, batch, 0.8)[0, len(prompt) :]
        assert reply.logps == pytest.approx(logp.tolist(), abs=2e-5)
