"""Divergences equal the plain formulas and other libraries', with gradients; what top-k leaves out is bounded."""

from __future__ import annotations

import pytest
import torch
from test_logp import Largest
from tiny import deepseek, llama, logits_of, made, tokens_like
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from zifio.models.attention import predecessors
from zifio.models.decoder import Decoder
from zifio.train.divergence import Targets, Whole, compare, divergence, likeliest, merge
from zifio.train.logp import predictors

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def plain(logits_p: Tensor, logits_q: Tensor, beta: float) -> Tensor:
    """The divergence by the textbook, through torch.distributions."""
    p, q = Categorical(logits=logits_p), Categorical(logits=logits_q)
    if beta in (0, 1):
        return kl_divergence(q, p) if beta else kl_divergence(p, q)
    m = Categorical(probs=beta * p.probs + (1 - beta) * q.probs)
    return beta * kl_divergence(p, m) + (1 - beta) * kl_divergence(q, m)


def random_logits(seed: int, n: int = 50, vocab: int = 12, spread: float = 3.0) -> Tensor:
    """In double precision, some tokens far likelier than others."""
    return spread * torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("beta", BETAS)
def test_equals_the_textbook_with_its_slope(beta: float):
    """The slope is q dD/dq, from which the gradient by the logits follows: s - q sum(s)."""
    p, q = random_logits(1), random_logits(2).requires_grad_()
    wanted = plain(p, q, beta)
    (gradient,) = torch.autograd.grad(wanted.sum(), q)
    value, slope = compare(p.log_softmax(1), q.detach().log_softmax(1), beta)
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-9, atol=1e-12)
    found = slope - q.detach().softmax(1) * slope.sum(dim=1, keepdim=True)
    torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_the_slope_is_that_of_finite_differences(beta: float):
    p, q = random_logits(3, n=1), random_logits(4, n=1)
    _, slope = compare(p.log_softmax(1), q.log_softmax(1), beta)
    gradient = slope - q.softmax(1) * slope.sum(dim=1, keepdim=True)
    for token in range(q.shape[1]):
        step = torch.zeros_like(q)
        step[0, token] = 1e-5
        up, down = (compare(p.log_softmax(1), (q + sign * step).log_softmax(1), beta)[0] for sign in (1, -1))
        assert gradient[0, token].item() == pytest.approx((up - down).item() / 2e-5, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("beta", BETAS)
def test_impossible_tokens_are_no_reason_for_nan(beta: float):
    """0 log 0 is 0: for tokens that both, or only the student, hold impossible; forward KL wants the student's."""
    p, q = random_logits(5), random_logits(6)
    p[:, 0] = q[:, 0] = -torch.inf
    if beta > 0:
        q[:, 1] = -torch.inf
    value, slope = compare(p.log_softmax(1), q.log_softmax(1), beta)
    assert torch.isfinite(value).all() and torch.isfinite(slope).all() and (value >= 0).all()
    same, _ = compare(p.log_softmax(1), p.log_softmax(1), beta)
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-12, rtol=0)


def reference(teacher: Decoder, student: Decoder, tokens: Tensor, beta: float, temperature: float, k: int) -> Tensor:
    """The divergences of a whole batch on all logits at once, with gradients for the student."""
    rows = min(teacher.lm_head.weight.shape[0], student.lm_head.weight.shape[0])
    with torch.no_grad():
        logp = (logits_of(teacher, tokens)[..., :rows] / temperature).log_softmax(-1)
    logq = (logits_of(student, tokens)[..., :rows] / temperature).log_softmax(-1)
    if k:
        ids = logp.topk(k, dim=-1).indices
        others = torch.ones_like(logp).scatter(-1, ids, 0.0)
        p, q = (
            torch.cat([x.exp().gather(-1, ids), (x.exp() * others).sum(-1, keepdim=True)], dim=-1) for x in (logp, logq)
        )
        logp, logq = p.log(), q.log()
    value = plain(logp, logq, beta)
    return torch.nn.functional.pad(value[:, :-1], (1, 0))


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 1000])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chunks_equal_whole_logits_with_all_gradients(temperature: float, beta: float, chunk_tokens: int, k: int):
    """A teacher of another family and size, and with more rows behind the last token than the student."""
    teacher, student = made(deepseek(vocab_size=48), 7), made(llama(), 8)
    tokens, weight = tokens_like(3, 7), torch.rand(3, 7, generator=torch.Generator().manual_seed(5))
    positions = torch.arange(7).expand(3, -1)
    counted, found = torch.ones_like(tokens, dtype=torch.bool), []
    for chunked in (True, False):
        student.zero_grad()
        if chunked:
            before = predecessors(positions)
            with torch.no_grad():
                hidden = teacher(tokens, positions).hidden_BTD.flatten(0, 1)
            targets: Targets = Whole(hidden[predictors(counted, before)[1]], teacher.lm_head.weight.detach())
            if k:
                whole = Whole(targets.hidden_ND, targets.head_VD[:40])
                targets = likeliest(whole, k, temperature, chunk_tokens)
            hidden_q = student(tokens, positions).hidden_BTD
            value = divergence(student, hidden_q, targets, counted, before, beta, temperature, chunk_tokens)
        else:
            value = reference(teacher, student, tokens, beta, temperature, k)
        (weight * value).sum().backward()
        found.append([value.detach(), *(p.grad for p in student.parameters())])
    assert (found[0][0][:, 1:] > 0).all() and (found[0][0][:, 0] == 0).all()
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=2e-6, rtol=2e-4)


@pytest.mark.parametrize("beta", BETAS)
def test_top_k_is_a_lower_bound_that_rises_to_the_whole(beta: float):
    """More tokens never tell less, and all of them tell all; what is missing is as the module's docstring says."""
    logp, logq = random_logits(11).log_softmax(1), random_logits(12).log_softmax(1)
    order = logp.argsort(dim=1, descending=True)
    whole, _ = compare(logp, logq, beta)
    before = torch.zeros_like(whole)
    for k in range(13):
        ids = order[:, :k]
        kept_p, kept_q = merge(logp, ids), merge(logq, ids)
        value, _ = compare(kept_p, kept_q, beta)
        assert (value >= before - 1e-12).all() and (value <= whole + 1e-12).all(), k
        before = value
        left_p, left_q = kept_p[:, -1].exp(), kept_q[:, -1].exp()
        if beta in (0, 1):
            others = (x.scatter(1, ids, -torch.inf).log_softmax(1) for x in (logp, logq))
            missing = compare(*others, beta)[0].nan_to_num() * (left_q if beta else left_p)
            torch.testing.assert_close(whole - value, missing, atol=1e-9, rtol=1e-6)
        else:
            left_m = beta * left_p + (1 - beta) * left_q
            part = (beta * left_p / left_m.clamp(min=1e-300)).clamp(1e-12, 1 - 1e-12)
            entropy = -part * part.log() - (1 - part) * (1 - part).log()
            assert (whole - value <= left_m * entropy + 1e-9).all(), k
    torch.testing.assert_close(before, whole)


def test_memory_does_not_grow_with_vocabulary_times_length():
    """Forwards and backwards nothing is larger than a chunk of logits, a head, or hidden states; top-k likewise."""
    vocab, chunk = 3000, 8
    teacher, student = (made(llama(vocab_size=vocab, max_position_embeddings=512), seed) for seed in (1, 2))
    tokens, positions = tokens_like(2, 200, vocab=vocab), torch.arange(200).expand(2, -1)
    counted, before = torch.ones_like(tokens, dtype=torch.bool), predecessors(positions)
    with torch.no_grad():
        hidden_p = teacher(tokens, positions).hidden_BTD.flatten(0, 1)[predictors(counted, before)[1]]
    hidden_q = student(tokens, positions).hidden_BTD.detach().requires_grad_()
    whole = Whole(hidden_p, teacher.lm_head.weight.detach())
    for k in (0, 4):
        with Largest() as largest:
            targets = likeliest(whole, k, 1.0, chunk) if k else whole
            divergence(student, hidden_q, targets, counted, before, 0.5, 1.0, chunk).sum().backward()
        assert largest.numbers == max(vocab * hidden_q.shape[-1], chunk * vocab) < tokens.numel() * vocab / 10


def test_under_autocast_the_products_alone_are_in_bfloat16():
    teacher, student = made(llama(), 1), made(llama(), 2)
    tokens, positions = tokens_like(3, 7), torch.arange(7).expand(3, -1)
    counted, before = torch.ones_like(tokens, dtype=torch.bool), predecessors(positions)
    with torch.no_grad():
        hidden_p = teacher(tokens, positions).hidden_BTD.flatten(0, 1)[predictors(counted, before)[1]]
    whole, found = Whole(hidden_p, teacher.lm_head.weight.detach()), []
    for is_on in (True, False):
        student.zero_grad()
        hidden_q = student(tokens, positions).hidden_BTD.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            value = divergence(student, hidden_q, whole, counted, before, 0.5)
        value.sum().backward()
        assert value.dtype == torch.float32 and hidden_q.grad is not None and hidden_q.grad.dtype == torch.float32
        found.append((value.detach(), student.lm_head.weight.grad))
    for one, two in zip(*found, strict=True):
        assert one is not None and two is not None
        torch.testing.assert_close(one, two, atol=0.03 * two.abs().max().item(), rtol=0)
