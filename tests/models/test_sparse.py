"""Windows, sparse attention and its indexer: transformers' own, formulas written again, kernels against torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import deepseek_v32, hybrid, logits_of, made, tokens_like
from torch import Tensor

from zifio.kernels import operators as kernels
from zifio.kernels.library import library
from zifio.models.attention import attend, laid, spans_of
from zifio.models.indexer import Ask, Indexer, attend_picked, best, index_scores, picks
from zifio.models.mixers import IndexerShape
from zifio.models.weights import save_model

KERNELS = pytest.mark.skipif(library() is None, reason="no C compiler, or ZIFIO_KERNELS=off")
PACKED = torch.cat([torch.arange(50), torch.arange(20, 45), torch.arange(20, 30), torch.arange(15)]).expand(2, -1)
"""A sequence, two samples that continue its first 20 tokens, and another sequence."""


def random_like(*shape: int, seed: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heads(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads, keys and values of two."""
    return random_like(n, 4, 10, seed=1), random_like(n, 2, 10, seed=2), random_like(n, 2, 6, seed=3)


# Windows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 7, 32, 33, 40, 1000])
def test_a_window_is_a_mask(window: int):
    """On packed rows, by kernels and by torch, with gradients."""
    spans_M4 = spans_of(PACKED)
    q, k, v = (x.requires_grad_() for x in heads(PACKED.numel()))
    out = []
    for start, count, prefix, n_prefix in spans_M4.tolist():
        before = torch.cat([torch.arange(prefix, prefix + n_prefix), torch.arange(start, start + count)])
        now, past = torch.arange(n_prefix, n_prefix + count)[:, None], torch.arange(n_prefix + count)
        sees = (past <= now) & (past > now - window)
        scores = torch.einsum("thk,shk->hts", q[start : start + count], k[before].repeat_interleave(2, 1)) * 0.3
        weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
        out.append(torch.einsum("hts,shx->thx", weights, v[before].repeat_interleave(2, 1)))
    wanted = torch.cat(out)
    wanted_gradients = torch.autograd.grad(wanted.sin().sum(), (q, k, v))
    for is_native in (True, False) if library() is not None else (False,):
        with pytest.MonkeyPatch.context() as patch:
            if not is_native:
                patch.setattr(kernels, "native", lambda x: False)
            found = attend(q, k, v, spans_M4, 0.3, window)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        for one, other in zip(torch.autograd.grad(found.sin().sum(), (q, k, v)), wanted_gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@KERNELS
def test_a_window_as_long_as_the_sequence_changes_no_bit():
    q, k, v = heads(PACKED.numel())
    assert torch.equal(attend(q, k, v, spans_of(PACKED), 0.3, 1000), attend(q, k, v, spans_of(PACKED), 0.3))


def test_sliding_layers_equal_transformers_qwen3(tmp_path: Path):
    """Without other mixers our own family is Qwen3 with `layer_types`."""
    transformers = pytest.importorskip("transformers")
    model = made(hybrid(layer_types=["sliding_attention", "full_attention"] * 2))
    save_model(model, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw |= {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = tokens_like(2, 50)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(model, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


# The indexer -----------------------------------------------------------------------------------------------


def asked(n: int, n_kept: int, n_heads: int = 16) -> Ask:
    """Of random queries and keys."""
    return Ask(random_like(n, n_heads, 8, seed=4), random_like(n, n_heads, seed=5), random_like(n, 8, seed=6), n_kept)


def test_scores_are_the_papers():
    """I_ts = sum_j w_tj ReLU(q_tj . k_s), in loops."""
    ask = asked(9, 4)
    found = index_scores(ask.q_NIY[None], ask.weight_NI[None], ask.k_NY[None])[0]
    for t in range(9):
        for s in range(9):
            wanted = sum(float(ask.weight_NI[t, j]) * max(0.0, float(ask.q_NIY[t, j] @ ask.k_NY[s])) for j in range(16))
            assert found[t, s] == pytest.approx(wanted, abs=1e-4)


def test_the_best_are_kept_and_of_equals_the_first():
    scores = torch.tensor([[[0.0, 3.0, 0.0, -1.0, 0.0, 3.0, 0.0]]])
    assert best(scores, 4)[0, 0].tolist() == [True, True, True, False, False, True, False]
    rng = random_like(3, 20, 30, seed=1).relu_()
    kept = best(rng, 11)
    assert bool((kept.sum(-1) == 11).all())
    lowest = torch.where(kept, rng, torch.inf).amin(-1)
    assert bool((torch.where(kept, -torch.inf, rng).amax(-1) <= lowest).all())
    visible = torch.ones(20, 30).tril(10).bool().expand(3, -1, -1)
    assert torch.equal(picks(rng, visible, 11).sum(-1), visible.sum(-1).clamp(max=11))
    assert torch.equal(picks(rng, visible, 30), visible)


def test_sparse_attention_is_attention_over_what_was_picked():
    """On packed rows, written again a query at a time; a limit beyond all tokens is full attention."""
    spans_M4, n = spans_of(PACKED), PACKED.numel()
    (q, k, v), ask = heads(n), asked(PACKED.numel(), 6)
    found = attend_picked(q, k, v, laid(spans_M4), 0.3, ask)
    for start, count, prefix, n_prefix in spans_M4.tolist():
        for t in range(0, count, 7):
            before = torch.cat([torch.arange(prefix, prefix + n_prefix), torch.arange(start, start + t + 1)])
            at = start + t
            scores = ((ask.q_NIY[at] @ ask.k_NY[before].T).relu() * ask.weight_NI[at][:, None]).sum(0)
            kept = before[scores.argsort(descending=True, stable=True)[:6]]
            weights = torch.einsum("hk,shk->hs", q[at], k[kept].repeat_interleave(2, 1)).mul(0.3).softmax(-1)
            wanted = torch.einsum("hs,shx->hx", weights, v[kept].repeat_interleave(2, 1))
            torch.testing.assert_close(found[at], wanted, atol=1e-5, rtol=0)
    everything = attend_picked(q, k, v, laid(spans_M4), 0.3, ask._replace(n_kept=1000))
    torch.testing.assert_close(everything, attend(q, k, v, spans_M4, 0.3), atol=1e-5, rtol=0)


def test_the_indexer_equals_transformers():
    """Which tokens it picks, of transformers' DeepSeek-V3.2 on the same weights."""
    transformers = pytest.importorskip("transformers")
    found = pytest.importorskip("transformers.models.deepseek_v32.modeling_deepseek_v32")
    model = made(deepseek_v32())
    ours = model.layers[1].self_attn.indexer
    assert isinstance(ours, Indexer)
    config = transformers.DeepseekV32Config(**model.config.model_dump(exclude_none=True))
    theirs = found.DeepseekV32Indexer(config, 1)
    theirs.load_state_dict(ours.state_dict())
    x_BTD, query_BTQ = random_like(2, 60, 24, seed=7), random_like(2, 60, 10, seed=8)
    positions = torch.arange(60).expand(2, -1)
    geometry = model._geometry(positions, None, None)
    cos, sin = (torch.cat([x, x], dim=-1) for x in (geometry.cos_BTr, geometry.sin_BTr))
    mask = torch.full((60, 60), -torch.inf).triu(1).expand(2, -1, -1)
    with torch.no_grad():
        ask = ours(x_BTD, query_BTQ, geometry.cos_BTr, geometry.sin_BTr)
        scores = index_scores(*(x.unflatten(0, (2, 60)) for x in (ask.q_NIY, ask.weight_NI, ask.k_NY)))
        mine = picks(scores, mask == 0, 12)
        its = theirs(x_BTD, query_BTQ, (cos, sin), mask, positions).long()
    its = torch.zeros(2, 60, 60, dtype=torch.bool).scatter(-1, its, True) & (mask == 0)
    assert torch.equal(mine, its) and mine[:, 20:].sum(-1).eq(12).all()


def test_the_indexer_learns_from_attention_and_nothing_else_from_it():
    """Its gradient is that of KL(attention over what was picked, over heads | its softmax), the mean over tokens."""
    n = PACKED.numel()
    spread = laid(spans_of(PACKED))
    (q, k, v), ask = (heads(n)), asked(n, 6)
    leaves = [x.requires_grad_() for x in (q, k, v, *ask[:3])]
    out = attend_picked(q, k, v, spread, 0.3, ask)
    found = torch.autograd.grad(out.sin().sum(), leaves)
    at, past = spread.index_MT, spread.index_MS
    scores = index_scores(ask.q_NIY[at], ask.weight_NI[at], ask.k_NY[past])
    kept = picks(scores, spread.visible_MTS, 6)
    logits = torch.einsum("mthk,mshk->mhts", q[spread.index_MT], k[spread.index_MS].repeat_interleave(2, 2)) * 0.3
    wanted = logits.masked_fill(~kept[:, None], -torch.inf).softmax(-1).mean(1).detach()
    guess = scores.masked_fill(~kept, -torch.inf).log_softmax(-1)
    divergence = torch.where(kept, wanted * (wanted.clamp(min=1e-30).log() - guess), 0.0).sum(-1)
    by_hand = torch.autograd.grad(divergence[spread.real_MT].mean(), leaves[3:])
    for one, other in zip(found[3:], by_hand, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    weights = logits.masked_fill(~kept[:, None], -torch.inf).softmax(-1)
    plain = torch.einsum("mhts,mshx->mthx", weights, v[spread.index_MS].repeat_interleave(2, 2))[spread.real_MT]
    for one, other in zip(found[:3], torch.autograd.grad(plain.sin().sum(), leaves[:3]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_an_indexer_gets_better_at_guessing_attention():
    """Moving alone, it comes to pick tokens that hold more of the weight of full attention."""
    n, n_kept = 60, 6
    x_BTD, spread = random_like(1, n, 12, seed=1), laid(spans_of(torch.arange(n)[None]))
    q_NHK, k_NJK = (x_BTD[0] @ random_like(12, 16, seed=seed) for seed in (2, 3))
    q_NHK, k_NJK, v_NJX = q_NHK.unflatten(1, (2, 8)), k_NJK.unflatten(1, (2, 8)), random_like(n, 2, 6, seed=4)
    torch.manual_seed(5)
    indexer = Indexer(IndexerShape(n_heads=4, d_head=8, d_rotary=4, d_query=12, n_kept=n_kept), 12)
    ones, zeros = torch.ones(1, n, 2), torch.zeros(1, n, 2)
    full_MTS = torch.einsum("thk,shk->hts", q_NHK, k_NJK).mul(0.1)
    full_MTS = full_MTS.masked_fill(~spread.visible_MTS, -torch.inf).softmax(-1).mean(0, keepdim=True)

    def share() -> float:
        """Of full attention's weight that is on what the indexer picks."""
        with torch.no_grad():
            ask = indexer(x_BTD, x_BTD, ones, zeros)
            scores = index_scores(ask.q_NIY[None], ask.weight_NI[None], ask.k_NY[None])
            return float((full_MTS * picks(scores, spread.visible_MTS, n_kept))[:, n_kept:].sum(-1).mean())

    before, optimizer = share(), torch.optim.Adam(indexer.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        attend_picked(q_NHK, k_NJK, v_NJX, spread, 0.1, indexer(x_BTD, x_BTD, ones, zeros)).sum().backward()
        optimizer.step()
    assert share() > before + 0.15, (before, share())
