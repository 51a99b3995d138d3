"""Drawing: each request from its own numbers, in the right distribution, with the policy's own log-probs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from zifio.config import Sampling
from zifio.engine.sampler import choose, settings_of, uniforms
from zifio.seed import stream_seed

LOGITS = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 1.5


def softmax(logits: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    """In numpy and double precision."""
    scaled = logits.double().numpy() / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def draws(n: int, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """n draws from LOGITS, each by a request of its own, as the engine makes them."""
    uniform_B = uniforms([stream_seed(3, "request", i) for i in range(n)], 1)[:, 0]
    return choose(LOGITS.expand(n, -1), uniform_B, settings_of([sampling] * n))


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 1.0), (1.8, 1.0), (1.0, 0.6)])
def test_draws_follow_the_softmax(temperature: float, top_p: float):
    """Chi-square of 4000 draws against the distribution, renormalised over the nucleus."""
    token, _ = draws(4000, Sampling(temperature=temperature, top_p=top_p))
    expected = softmax(LOGITS, temperature)
    order = np.argsort(-expected)
    nucleus = order[: np.searchsorted(np.cumsum(expected[order]), top_p) + 1] if top_p < 1 else order
    kept = np.zeros_like(expected)
    kept[nucleus] = expected[nucleus] / expected[nucleus].sum()
    seen = np.bincount(token.numpy(), minlength=12)
    assert (seen[kept == 0] == 0).all(), "a token outside the nucleus was drawn"
    assert stats.chisquare(seen[kept > 0], 4000 * kept[kept > 0]).pvalue > 1e-3


def test_a_wrong_distribution_would_be_noticed():
    token, _ = draws(4000, Sampling(temperature=1.1))
    assert stats.chisquare(np.bincount(token.numpy(), minlength=12), 4000 * softmax(LOGITS)).pvalue < 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_log_probs_are_those_of_the_whole_policy(temperature: float, top_p: float):
    """At the temperature, and before top-p takes anything away."""
    token, logp = draws(50, Sampling(temperature=temperature, top_p=top_p))
    np.testing.assert_allclose(logp, np.log(softmax(LOGITS, temperature))[token], atol=1e-6)


def test_greedy_takes_the_likeliest_and_reports_it_at_temperature_one():
    token, logp = draws(5, Sampling(temperature=0))
    assert (token == LOGITS.argmax()).all()
    np.testing.assert_allclose(logp, np.log(softmax(LOGITS).max()), atol=1e-6)


@pytest.mark.parametrize(
    "probabilities, top_p, possible",
    [
        ([0.5, 0.3, 0.2], 0.49, {0}),
        ([0.5, 0.3, 0.2], 0.51, {0, 1}),
        ([0.2, 0.3, 0.5], 0.79, {1, 2}),
        ([0.5, 0.3, 0.2], 0.999, {0, 1, 2}),
        ([0.5, 0.3, 0.2], 1e-9, {0}),
        ([0.25, 0.25, 0.25, 0.25], 0.4, None),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(probabilities: list[float], top_p: float, possible: set | None):
    uniform_B = torch.linspace(0, 1 - 1e-9, 200, dtype=torch.float64)
    logits = torch.tensor(probabilities).log().expand(200, -1)
    seen = set(choose(logits, uniform_B, settings_of([Sampling(top_p=top_p)] * 200))[0].tolist())
    assert len(seen) == 2 if possible is None else seen == possible


def test_edges_of_the_unit_interval():
    """0 draws the first token that has probability, the last number below 1 the last such token."""
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, -1)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert choose(logits, edges, settings_of([Sampling()] * 2))[0].tolist() == [1, 2]


def test_uniforms_depend_on_their_own_seed_alone():
    seeds = [stream_seed(1, "a"), 0, 2**63 - 1]
    numbers = uniforms(seeds, 5)
    assert numbers.dtype == torch.float64 and numbers.min() >= 0 and numbers.max() < 1
    assert torch.equal(uniforms(seeds[::-1], 5).flip(0), numbers)
    assert torch.equal(uniforms(seeds, 3), numbers[:, :3]), "asking for fewer draws the same ones"
    assert len(set(numbers.flatten().tolist())) == 15


def test_uniforms_are_uniform_over_neighbouring_seeds():
    numbers = uniforms(list(range(2000)), 1)[:, 0].numpy()
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
