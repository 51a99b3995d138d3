"""Chunked log-probs equal the readable form, with all gradients, and never hold the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny import deepseek, llama, logits_of, made, tokens_like
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import zifio.train.loss as loss_module
from zifio.data.pack import Sequence
from zifio.models.decoder import Decoder
from zifio.train.batch import make_batches
from zifio.train.logp import token_logp, token_logp_entropy


def hidden_of(model: Decoder, tokens_BT: Tensor) -> Tensor:
    """Hidden states, cut off from the layers, so that their own gradient can be seen."""
    positions_BT = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
    return model(tokens_BT, positions_BT).hidden_BTD.detach().requires_grad_()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 5, 1000])
def test_equals_the_readable_form_with_all_gradients(chunk_tokens: int, temperature: float, tied: bool):
    model = made(llama(tie_word_embeddings=tied))
    tokens = tokens_like(3, 7)
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(5))
    found = []
    for chunked in (True, False):
        model.zero_grad()
        hidden = hidden_of(model, tokens)
        if chunked:
            logp, entropy = token_logp_entropy(model, hidden, tokens, temperature, None, None, True, chunk_tokens)
            assert entropy is not None and not entropy.requires_grad
        else:
            logits = model.logits(hidden) / temperature
            logp, table = token_logp(logits, tokens), logits.log_softmax(dim=-1)
            entropy = torch.nn.functional.pad(-(table.exp() * table).sum(dim=-1)[:, :-1], (1, 0)).detach()
        (weight * logp).sum().backward()
        found.append((logp.detach(), entropy, hidden.grad, model.lm_head.weight.grad))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [4, 1000])
def test_equals_the_readable_form_under_autocast(chunk_tokens: int):
    """bfloat16 products within autocast, the backward pass outside of it; gradients in the weights' own type."""
    model, tokens = made(llama()), tokens_like(3, 7)
    found = []
    for chunked in (True, False):
        model.zero_grad()
        hidden = hidden_of(model, tokens)
        with torch.autocast("cpu", torch.bfloat16):
            both = token_logp_entropy(model, hidden, tokens, chunk_tokens=chunk_tokens)
            logp = both[0] if chunked else token_logp(model.logits(hidden), tokens)
        logp.sum().backward()
        found.append((logp.detach(), hidden.grad, model.lm_head.weight.grad))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=0)
    for one, two in zip(found[0][1:], found[1][1:], strict=True):
        assert one is not None and two is not None and one.dtype == torch.float32
        torch.testing.assert_close(one, two, atol=0.02 * two.abs().max().item(), rtol=0)


def test_only_counted_tokens_are_computed():
    """Zero elsewhere, in value and gradient; also with nothing counted, and never column 0."""
    model = made(llama())
    tokens = tokens_like(2, 6)
    counted = torch.tensor([[True, False, True, False, True, False], [False] * 6])
    hidden = hidden_of(model, tokens)
    logp, entropy = token_logp_entropy(model, hidden, tokens, counted_BT=counted)
    assert entropy is None
    whole = token_logp(logits_of(model, tokens), tokens)
    torch.testing.assert_close(logp, whole.where(counted, 0.0))
    assert logp[0, 0] == 0
    logp.sum().backward()
    assert hidden.grad is not None
    assert (hidden.grad.abs().sum(dim=-1) > 0).tolist() == [[False, True, False, True, False, False], [False] * 6]
    nothing = token_logp_entropy(model, hidden, tokens, counted_BT=torch.zeros_like(counted), with_entropy=True)
    assert all(value is not None and (value == 0).all() for value in nothing)


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any tensor held which an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what came out."""
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return out


def test_memory_does_not_grow_with_vocabulary_times_length():
    """Forwards and backwards nothing is larger than a chunk of logits, the head, or the hidden states."""
    vocab, chunk = 3000, 8
    model = made(llama(vocab_size=vocab, max_position_embeddings=512))
    tokens = tokens_like(2, 200, vocab=vocab)
    hidden = hidden_of(model, tokens)
    with Largest() as plain:
        token_logp(model.logits(hidden), tokens).sum().backward()
    with Largest() as chunked:
        logp, _ = token_logp_entropy(model, hidden, tokens, with_entropy=True, chunk_tokens=chunk)
        logp.sum().backward()
    width = hidden.shape[-1]
    assert plain.numbers == tokens.numel() * vocab
    assert chunked.numbers == max(chunk * vocab, vocab * width, hidden.numel()) < plain.numbers / 10


def test_nothing_else_in_training_makes_logits(monkeypatch):
    """The whole loss of a batch, with MTP, policy and penalty: a chunk of logits, and the gradient of the head."""
    vocab, n = 4000, 40
    model = made(deepseek(vocab_size=vocab, num_nextn_predict_layers=1))
    names = ("policy_weight", "advantage", "old_logp", "kl_weight", "reference_logp")
    sequence = Sequence(tokens_like(n, vocab=vocab).tolist(), [0.1] * n, {name: [0.1] * n for name in names})
    (batch,) = make_batches([sequence, sequence], n, 1000, 0)
    monkeypatch.setattr(loss_module, "token_logp_entropy", partial(token_logp_entropy, chunk_tokens=4))
    with Largest() as largest:
        loss_module.batch_loss(model, batch, loss_module.LossTerms(mtp_weight=0.3), 1.0).loss.backward()
    assert largest.numbers == vocab * 24 < 2 * n * vocab / 3
