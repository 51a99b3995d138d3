"""The gated delta rule: token by token, in pieces and in C with one result; packed sequences; transformers' layer."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tiny import hybrid, made, qwen3_next
from torch import Tensor

from zifio.kernels import delta
from zifio.kernels import operators as kernels
from zifio.kernels.delta import memory_width
from zifio.kernels.library import library
from zifio.models.attention import Geometry, spans_of
from zifio.models.decoder import Decoder
from zifio.models.linear_attention import (
    GatedDeltaNet,
    Held,
    Rule,
    chunked,
    cut,
    held_order,
    order_of,
    recurrent,
    step,
    unit,
)

KERNELS = pytest.mark.skipif(library() is None, reason="no C compiler, or ZIFIO_KERNELS=off")


def rule_of(n: int, seed: int, strongest: float = 1.0, d_key: int = 6, d_value: int = 5) -> Rule:
    """Random inputs for three heads, with every strength of decay and correction."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (unit(torch.randn(n, 3, d_key, generator=generator)) for _ in "qk")
    v = torch.randn(n, 3, d_value, generator=generator)
    decay = torch.rand(n, 3, generator=generator).clamp(1e-3).pow(2)
    beta = strongest * torch.rand(n, 3, generator=generator)
    return Rule(q * d_key**-0.5, k, v, decay.log(), beta)


def part(rule: Rule, which: slice | Tensor) -> Rule:
    """Some of its tokens."""
    return Rule(*(x[which] for x in rule))


def gradients(rule: Rule, out: Tensor) -> tuple[Tensor, ...]:
    """Of a mixture of the outputs."""
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    return torch.autograd.grad((out * weights).sum(), list(rule))


def packed(rng: random.Random) -> Tensor:
    """Positions of two rows of sequences and samples of one prompt, [2, T]."""
    rows: list[list[int]] = []
    for _ in range(2):
        row: list[int] = []
        while len(row) < 70:
            length = rng.randint(1, 40)
            row += range(length)
            prompt = rng.randint(1, length)
            for _ in range(rng.choice((0, 0, 1, 3))):
                row += range(prompt, prompt + rng.randint(1, 20))
        rows.append(row[:70])
    return torch.tensor(rows)


@pytest.mark.parametrize("strongest", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(12))
def test_pieces_equal_the_rule(seed: int, strongest: float):
    """Outputs and gradients, whatever the lengths, packing and size of pieces."""
    rng = random.Random(seed)
    positions_BT = packed(rng)
    spans = spans_of(positions_BT).numpy()
    rule = rule_of(positions_BT.numel(), seed, strongest)
    rule = Rule(*(x.requires_grad_() for x in rule))
    expected = []
    for start, count, prefix, n_prefix in spans.tolist():
        before = torch.cat([torch.arange(prefix, prefix + n_prefix), torch.arange(start, start + count)])
        expected.append(recurrent(part(rule, before))[0][n_prefix:])
    wanted = torch.cat(expected)
    found, _ = chunked(rule, cut(spans, chunk=rng.choice((1, 2, 5, 16, 64))))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    for one, other in zip(gradients(rule, found), gradients(rule, wanted), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@KERNELS
@pytest.mark.parametrize("seed", range(6))
def test_the_rule_in_c_equals_pieces(seed: int):
    """Outputs and gradients, of widths that are whole vectors and that are not."""
    rng = random.Random(seed)
    spans_M4 = spans_of(packed(rng))
    rule = rule_of(int(spans_M4[:, 1].sum()), seed, 2.0, rng.choice((3, 6, 16)), rng.choice((1, 5, 16, 37, 64, 80)))
    rule = Rule(*(x.requires_grad_() for x in rule))
    found, (wanted, _) = delta.rule(*rule, spans_M4), chunked(rule, cut(spans_M4.numpy()))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    for one, other in zip(gradients(rule, found), gradients(rule, wanted), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * max(1.0, float(other.abs().max())), rtol=0)


@pytest.mark.parametrize("by_c", [pytest.param(True, marks=KERNELS), False])
def test_gradients_of_strong_decays_are_right_to_fp32(by_c: bool):
    """A memory that is gone within a token or two: against fp64, where sums of logarithms would lose all digits."""
    layer, geometry = layer_of(1, True, 16, 4), geometry_of(packed(random.Random(3)), 1)
    order = geometry.order
    assert order is not None
    inputs = [x.detach() for x in layer._inputs(torch.randn(2, 70, 24, generator=torch.Generator().manual_seed(4)))]
    inputs[3] = torch.full_like(inputs[3], 12.0)

    def found(dtype: torch.dtype, spans_M4: Tensor | None) -> tuple[Tensor, ...]:
        """Gradients of all inputs."""
        given = tuple(x.to(dtype).requires_grad_() for x in inputs)
        return torch.autograd.grad(layer.mix(given, order, spans_M4=spans_M4)[0].square().sum(), given)

    exact = found(torch.float64, None)
    for one, other in zip(found(torch.float32, geometry.spans_M4 if by_c else None), exact, strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-6 * float(other.abs().max()), rtol=0)


def test_a_sequence_may_be_taken_up_anywhere():
    """In pieces behind what the rule left, then token by token."""
    rule, spans = rule_of(60, 1, 2.0), np.array([[0, 27, 0, 0]])
    whole, end = recurrent(rule)
    first, ends = chunked(part(rule, slice(27)), cut(spans, chunk=8))
    memory = torch.stack([torch.ones_like(end), ends[-1]])
    second, ends = chunked(part(rule, slice(27, 54)), cut(spans, np.array([1]), chunk=8), memory)
    outs, memory = [first, second], ends[-1:]
    for t in range(54, 60):
        out, memory = step(part(rule, slice(t, t + 1)), memory)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(memory[0], end, atol=1e-5, rtol=0)


@pytest.mark.parametrize("strength, signs", [(1.0, [1, 0, 0, 0]), (2.0, [1, -1, 1, -1])])
def test_a_strength_of_two_turns_a_memory_round(strength: float, signs: list[int]):
    """The transition I - b k k^T has the eigenvalue 1 - b: at 2 a parity is kept, at 1 it is forgotten."""
    k = torch.tensor([1.0, 0.0]).expand(4, 1, 2)
    v = torch.zeros(4, 1, 1)
    v[0] = 1.0
    beta = torch.full((4, 1), strength)
    beta[0] = 1.0
    out, _ = recurrent(Rule(k, k, v, torch.zeros(4, 1), beta))
    assert out[:, 0, 0].tolist() == signs
    assert chunked(Rule(k, k, v, torch.zeros(4, 1), beta), cut(np.array([[0, 4, 0, 0]])))[0][:, 0, 0].tolist() == signs


def layer_of(d_conv: int, strongest: bool, d_value: int, n_key_heads: int = 2) -> GatedDeltaNet:
    """A layer with random weights."""
    config = hybrid(
        linear_num_key_heads=n_key_heads, linear_num_value_heads=4, linear_value_head_dim=d_value,
        linear_conv_kernel_dim=d_conv, linear_allow_neg_eigval=strongest,
    )  # fmt: skip
    layer = made(config).layers[0].linear_attn
    assert isinstance(layer, GatedDeltaNet)
    return layer


def geometry_of(positions_BT: Tensor, d_conv: int) -> Geometry:
    """Of a pass without a cache, for layers that rotate nothing."""
    nothing, spans_M4 = torch.zeros(0), spans_of(positions_BT)
    return Geometry(positions_BT, nothing, nothing, spans_M4, False, order_of(spans_M4, d_conv))


SHAPES = [(4, False, 5, 2), (1, True, 16, 4), (0, True, 70, 1), (3, False, 33, 2)]


@KERNELS
@pytest.mark.parametrize("shape", SHAPES)
def test_c_equals_torch(shape: tuple[int, bool, int, int]):
    """On packed rows with shared prompts; the gradients are torch's own."""
    layer, geometry = layer_of(*shape), geometry_of(packed(random.Random(3)), shape[0])
    order = geometry.order
    assert order is not None
    x_BTD = torch.randn(2, 70, 24, generator=torch.Generator().manual_seed(4))
    inputs = layer._inputs(x_BTD)
    with torch.no_grad():
        wanted = layer.mix(inputs, order)[0]
    found = layer._native(inputs, geometry, None)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    by_c = torch.autograd.grad(found.square().sum(), list(layer.parameters())[:-1], retain_graph=True)
    by_torch = torch.autograd.grad(layer.mix(inputs, order)[0].square().sum(), list(layer.parameters())[:-1])
    for one, other in zip(by_c, by_torch, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("by_c", [pytest.param(True, marks=KERNELS), False])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_kept_goes_on_as_if_it_had_not_ended(shape: tuple[int, bool, int, int], by_c: bool):
    """Cut anywhere, while another sequence begins; in slots in which something was before."""
    layer, n, slots = layer_of(*shape), 20, [2, 0]
    x_BTD = torch.randn(2, n, 24, generator=torch.Generator().manual_seed(5))
    geometry = geometry_of(torch.arange(n).expand(2, -1), shape[0])
    assert geometry.order is not None
    tail = torch.ones(3, max(shape[0] - 1, 0), layer.shape.d_mixed)
    memory = torch.ones(3, 4, 6, memory_width(shape[2]) if by_c else shape[2])
    outs: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        whole = layer.mix(layer._inputs(x_BTD), geometry.order)[0]
        for counts in ((3, 0), (1, 1), (1, 1), (9, 2), (6, 16)):
            which = [m for m in (0, 1) if counts[m]]
            at = [sum(len(out) for out in outs[m]) for m in which]
            x = torch.cat([x_BTD[m, a : a + counts[m]] for m, a in zip(which, at, strict=True)])[None]
            count = np.array([counts[m] for m in which])
            runs = np.stack([count.cumsum() - count, count, [slots[m] for m in which], at], axis=1)
            order = held_order(runs, shape[0], torch.device("cpu"))
            held, inputs = Held(torch.from_numpy(runs), memory, tail, order), layer._inputs(x)
            found = layer._native(inputs, geometry, held) if by_c else layer._go_on(inputs, held)
            for m, out in zip(which, found.split(count.tolist()), strict=True):
                outs[m].append(out)
    torch.testing.assert_close(torch.cat([torch.cat(out) for out in outs]), whole, atol=1e-5, rtol=1e-5)
    assert bool((memory[1] == 1).all()) and bool((tail[1] == 1).all()), "a slot of somebody else"


@pytest.mark.parametrize("kernels_on", [pytest.param(True, marks=KERNELS), False])
def test_the_layer_equals_transformers(kernels_on: bool, monkeypatch: pytest.MonkeyPatch):
    """Output and gradients of Qwen3NextGatedDeltaNet on the same weights. Decays are mild: where they are strong, its
    gradients of A_log and dt_bias are differences of much larger numbers, and wrong in the second digit."""
    transformers = pytest.importorskip("transformers")
    found = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    config = qwen3_next()
    ours = made(config).layers[0].linear_attn
    theirs = found.Qwen3NextGatedDeltaNet(transformers.Qwen3NextConfig(**config.model_dump(exclude_none=True)), 0)
    with torch.no_grad():
        ours.A_log.copy_(torch.tensor([-3.0, -2.0, -1.0, 0.0]))
    theirs.load_state_dict(ours.state_dict())
    x_BTD = torch.randn(2, 90, 24, generator=torch.Generator().manual_seed(6))
    geometry = geometry_of(torch.arange(90).expand(2, -1), 4)
    if not kernels_on:
        monkeypatch.setattr(kernels, "native", lambda x: False)
    one, other = ours(x_BTD, geometry, None), theirs(x_BTD)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    one.square().sum().backward()
    other.square().sum().backward()
    its_own = dict(theirs.named_parameters())
    for name, mine in ours.named_parameters():
        its = its_own[name]
        assert mine.grad is not None and its.grad is not None
        torch.testing.assert_close(mine.grad, its.grad, atol=1e-5 * float(its.grad.abs().max()), rtol=1e-4, msg=name)


def test_initial_decays_are_those_of_mamba():
    """Between e^-16 and e^-0.01 a token before the projection speaks, named by the seed."""
    one, other = (Decoder(hybrid(), seed).layers[0].linear_attn.A_log for seed in (1, 2))
    assert not torch.equal(one, other) and torch.equal(one, Decoder(hybrid(), 1).layers[0].linear_attn.A_log)
    assert one.exp().min() >= 0.01 and one.exp().max() <= 16


def test_a_new_memory_lasts():
    """A layer fresh from its initialisation keeps most of what it reads for some ten tokens, in half of its heads."""
    kept = []
    for seed in range(20):
        layer = Decoder(hybrid(), seed).layers[0].linear_attn
        kept += (-layer.A_log.exp() * torch.nn.functional.softplus(layer.dt_bias) * 10).exp().tolist()
    assert 0.3 < sorted(kept)[len(kept) // 2] < 0.9
