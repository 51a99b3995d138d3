"""Each kernel equals its form in torch, in float64, with all gradients; a row's bits depend on no neighbour."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zifio.kernels import operators as kernels
from zifio.kernels.library import library
from zifio.models.attention import attend, spans_of
from zifio.models.indexer import best, index_scores
from zifio.models.janus import guided
from zifio.models.rope import inverse_frequencies, turns

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler, or ZIFIO_KERNELS=off")


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def check(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 2e-6) -> None:
    """Value and every gradient, relative to the largest entry, against float64."""
    single = [x.clone().requires_grad_() for x in inputs]
    double = [x.double().requires_grad_() for x in inputs]
    mine, reference = ours(*single), theirs(*double)
    direction = random(*mine.shape, seed=99)
    mine.backward(direction)
    reference.backward(direction.double())
    pairs = [(mine, reference), *((a.grad, b.grad) for a, b in zip(single, double, strict=True))]
    for one, two in pairs:
        assert one is not None and two is not None
        scale = two.abs().max().item() + 1e-30
        assert (one.double() - two).abs().max().item() / scale < tolerance


@pytest.mark.parametrize("m", [1, 2, 11, 13, 29, 130])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (31, 7), (33, 300), (96, 257), (200, 64), (64, 1030)])
def test_linear(m: int, n: int, k: int) -> None:
    check(kernels.linear, F.linear, random(m, k), random(n, k, seed=1))


@pytest.mark.parametrize(("n", "k"), [(33, 300), (200, 64), (64, 1030)])
def test_linear_gives_a_row_the_same_bits_in_every_batch_packed_or_not(n: int, k: int) -> None:
    x, weight = random(150, k), random(n, k, seed=1)
    whole, packed = kernels.linear(x, weight), kernels.pack(weight)
    for first, last in ((0, 1), (0, 150), (7, 20), (100, 149), (3, 5)):
        for keep in (None, packed):
            assert torch.equal(kernels.linear(x[first:last], weight, packed=keep), whole[first:last])


@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 300), (200, 64), (64, 1030)])
def test_what_is_packed_can_be_unpacked(n: int, k: int) -> None:
    weights, back = random(3, n, k), torch.empty(3, n, k)
    kernels.unpack(kernels.pack(weights), back)
    assert torch.equal(back, weights)


@pytest.mark.parametrize("d", [3, 15, 16, 48, 577])
def test_rms_norm(d: int) -> None:
    check(
        lambda x, w: kernels.rms_norm(x, w, 1e-5),
        lambda x, w: F.rms_norm(x, (d,), w, 1e-5),
        random(3, 7, d), random(d, seed=1),
    )  # fmt: skip


@pytest.mark.parametrize("d", [1, 15, 100])
def test_swiglu_sigmoid_softmax(d: int) -> None:
    gate, up = 4 * random(9, d), random(9, d, seed=1)
    check(kernels.swiglu, lambda g, u: F.silu(g) * u, gate, up)
    check(kernels.sigmoid, torch.sigmoid, gate)
    check(kernels.softmax, lambda x: x.softmax(dim=-1), gate)


def test_extreme_logits_neither_overflow_nor_vanish() -> None:
    x = torch.tensor([[-1e4, 0.0, 1e4], [-88.0, 88.0, 0.0], [float("-inf"), 0.0, 1.0]])
    torch.testing.assert_close(kernels.softmax(x), x.softmax(dim=-1))
    torch.testing.assert_close(kernels.sigmoid(x), x.sigmoid(), atol=1e-30, rtol=1e-5)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotate_reads_slices_of_wider_heads(interleaved: bool) -> None:
    angles = [table.view(2, 5, 3) for table in turns(10, inverse_frequencies(6, 100.0, None), 1.5)]

    def plain(x: Tensor) -> Tensor:
        cos, sin = (a[:, :, None].to(x) for a in angles)
        first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def part(rotated: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: rotated(x.split([4, 6], dim=-1)[1])

    check(part(lambda x: kernels.rotate(x, *angles, interleaved=interleaved)), part(plain), random(2, 5, 3, 10))


LENGTHS = [1, 5, 33, 64, 100, 2]


SHAPES = [(4, 4, 8, 8), (6, 2, 64, 64), (3, 1, 20, 12), (9, 3, 16, 24)]


@pytest.mark.parametrize(("heads", "key_heads", "d_key", "d_value"), SHAPES)
def test_attention(heads: int, key_heads: int, d_key: int, d_value: int) -> None:
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    n, spans = positions.numel(), spans_of(positions)
    q, k, v = random(n, heads, d_key), random(n, key_heads, d_key, seed=1), random(n, key_heads, d_value, seed=2)
    scale = d_key**-0.5
    check(lambda *x: kernels.attention(*x, spans, scale), lambda *x: attend(*x, spans, scale), q, k, v)
    whole = kernels.attention(q, k, v, spans, scale)
    start = sum(LENGTHS[:3])
    alone = slice(start, start + LENGTHS[3])
    one = torch.tensor([[0, LENGTHS[3], 0, 0]])
    assert torch.equal(kernels.attention(q[alone], k[alone], v[alone], one, scale), whole[alone])


def moe_reference(expert_NA: Tensor) -> Callable[..., Tensor]:
    """Every token through its experts, one by one."""

    def forward(x: Tensor, gate: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        rows = []
        for t in range(len(x)):
            parts = []
            for a, e in enumerate(expert_NA[t].tolist()):
                g, u = F.linear(x[t], gate_up[e]).chunk(2)
                parts.append(gate[t, a] * F.linear(F.silu(g) * u, down[e]))
            rows.append(sum(parts, torch.zeros_like(x[t])))
        return torch.stack(rows)

    return forward


def test_experts() -> None:
    n, d, f, n_experts, active = 40, 24, 20, 6, 2
    expert = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(i))[:active] for i in range(n)])
    x, gate = random(n, d), random(n, active).abs()
    gate_up, down = random(n_experts, 2 * f, d), random(n_experts, d, f)
    check(
        lambda x, g, gu, dn: kernels.experts(x, expert, g, gu, dn, None), moe_reference(expert), x, gate, gate_up, down
    )
    whole = kernels.experts(x, expert, gate, gate_up, down, None)
    packed = kernels.pack(gate_up), kernels.pack(down)
    for part in (slice(0, 1), slice(3, 30), slice(0, n)):
        for keep in (None, packed):
            assert torch.equal(kernels.experts(x[part], expert[part], gate[part], gate_up, down, keep), whole[part])


@pytest.mark.parametrize("kept", [True, False])
def test_token_logp(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_KEPT_BYTES", 1e9 if kept else 0)
    hidden, weight, target = random(30, 12), random(70, 12), torch.randint(70, (30,))

    def plain(h: Tensor, w: Tensor) -> Tensor:
        return (F.linear(h, w) * 1.25).log_softmax(dim=-1).gather(1, target[:, None])[:, 0]

    check(lambda h, w: kernels.token_logp(h, w, target, 1.25, 8)[0], plain, hidden, weight)
    _, entropy = kernels.token_logp(hidden, weight, target, 1.25, 8, with_entropy=True)
    logp = (F.linear(hidden, weight) * 1.25).log_softmax(dim=-1)
    torch.testing.assert_close(entropy, -(logp.exp() * logp).sum(dim=-1))


@pytest.mark.parametrize("vocab", [5, 64, 3000])
def test_draw_follows_the_cumulative_distribution(vocab: int) -> None:
    logits, n = 2 * random(1, vocab), 4001
    uniform = torch.linspace(0, 1, n, dtype=torch.float64) * (1 - 1e-12)
    scale = torch.full((n,), 0.7)
    token, logp = kernels.draw(logits.expand(n, -1).contiguous(), scale, uniform)
    wanted = (logits * 0.7).log_softmax(dim=-1)[0]
    torch.testing.assert_close(logp, wanted[token], atol=2e-6, rtol=1e-5)
    cumulative = wanted.double().exp().cumsum(0)
    expected = (cumulative[None] <= uniform[:, None] * cumulative[-1]).sum(dim=1).clamp(max=vocab - 1)
    assert (token != expected).sum() <= 2  # rounding, where the number falls on a border
    greedy, at_one = kernels.draw(logits, torch.zeros(1), uniform[:1])
    assert greedy.item() == logits.argmax().item()
    torch.testing.assert_close(at_one, logits.log_softmax(dim=-1)[0, greedy])


@pytest.mark.parametrize("n_codes", [24, 300])
def test_codes_are_drawn_as_by_the_operators_one_after_the_other(n_codes: int) -> None:
    """Seven rows: two pairs, one of them the wrong way round, two without guidance, and one that nobody asks about."""
    hidden_MF, weight_ZF, bias_Z = random(7, 36), random(n_codes, 36), random(n_codes)
    own_n, blank_n = torch.tensor([0, 5, 2, 6]), torch.tensor([1, 4, -1, -1])
    guidance_n, uniform_n = torch.tensor([5.0, 0.3, 9.0, 1.0]), torch.tensor([0.1, 0.6, 0.95, 0.3], dtype=torch.float64)
    scale_n = kernels.scale_of(torch.tensor([1.0, 1.1, 0.7, 0.0]))
    asked = (kernels.pack(weight_ZF), bias_Z, (own_n, blank_n), guidance_n, scale_n, uniform_n, 100)
    token_M, logp_M = kernels.draw_codes(hidden_MF, *asked)
    logits_MZ = kernels.linear(hidden_MF, weight_ZF, bias_Z)
    own_nZ, weighed_nZ = logits_MZ[own_n], logits_MZ[own_n]
    weighed_nZ[:2] = guided(own_nZ[:2], logits_MZ[blank_n[:2]], guidance_n[:2, None])
    code_n, _ = kernels.draw(weighed_nZ, scale_n, uniform_n)
    assert torch.equal(token_M[own_n], code_n + 100) and torch.equal(token_M[blank_n[:2]], code_n[:2] + 100)
    assert torch.equal(logp_M[own_n], kernels.logp(own_nZ, scale_n, code_n))
    assert token_M[3] == 0 and not logp_M[[1, 3, 4]].any()


def test_scales_are_divided_in_single_precision() -> None:
    temperature = torch.tensor([1.0, 0.0, 1.1, 0.7, 3.0], dtype=torch.float64)
    expected = torch.where(temperature == 0, 0.0, 1 / temperature.float())
    assert torch.equal(kernels.scale_of(temperature), expected)
    assert torch.equal(kernels.scale_of(torch.tensor(1.1)), expected[2])


def test_no_rows_are_no_error() -> None:
    x, weight = torch.zeros(0, 12, requires_grad=True), torch.randn(5, 12, requires_grad=True)
    out = kernels.linear(x, weight)
    out.sum().backward()
    assert out.shape == (0, 5) and x.grad is not None and not weight.grad.any()


@pytest.mark.parametrize(("n_heads", "width", "n_kept"), [(1, 8, 1), (8, 32, 96), (30, 128, 64)])
def test_picked_cells_are_the_highest_scores_and_of_equal_ones_the_first(n_heads: int, width: int, n_kept: int):
    """Some sequences shorter than what is kept, and many scores that are exactly 0, of either sign."""
    lengths, n_pages = torch.tensor([1, n_kept, n_kept + 1, 200, 321], dtype=torch.int32), 11
    table_MP = torch.randperm(5 * n_pages, generator=torch.Generator().manual_seed(0)).view(5, n_pages).int()
    pages, q_MIY, weight_MI = random(5 * n_pages, width, 32), random(5, n_heads, width), random(5, n_heads, seed=1)
    if n_heads == 1:
        q_MIY[3:, :, 1:], weight_MI = q_MIY[3:, :, 1:] * 0, -weight_MI.abs()  # half of them fall to -0
    cells_MS = kernels.pick(q_MIY, weight_MI, pages, table_MP, lengths, n_kept)
    for m, n in enumerate(lengths.tolist()):
        k_SY = pages[table_MP[m].long()].transpose(1, 2).flatten(0, 1)[:n]
        all_S = (table_MP[m, :, None] * 32 + torch.arange(32)).flatten()[:n]
        if n <= n_kept:
            assert cells_MS[m, :n].tolist() == all_S.tolist() and not cells_MS[m, n:].any()
            continue
        scores_S = index_scores(q_MIY[m, None, None], weight_MI[m, None, None], k_SY[None])[0, 0]
        assert cells_MS[m].tolist() == all_S[best(scores_S, n_kept)].tolist()
