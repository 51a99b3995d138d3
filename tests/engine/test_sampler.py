"""Drawing: each request from its own numbers, in the right distribution, with the policy's own log-probs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from zifio.config import Sampling
from zifio.engine.sampler import choose, draw, kept, settings_of, uniforms
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


WIDE = torch.randn(6, 700, generator=torch.Generator().manual_seed(2)) * 3
SEEN = torch.rand(6, 700, generator=torch.Generator().manual_seed(3)) < 0.3
MIXED = [
    Sampling(top_k=5), Sampling(top_p=0.8, temperature=0.7), Sampling(min_p=0.05),
    Sampling(top_k=400, top_p=0.95, min_p=0.001, temperature=1.4), Sampling(), Sampling(top_p=0.9999, temperature=3.0),
]  # fmt: skip
FIELDS = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"]


def theirs(logits_1V: torch.Tensor, sampling: Sampling, seen_V: torch.Tensor) -> torch.Tensor:
    """What transformers makes of one row's logits, with its own processors in its own order."""
    transformers = pytest.importorskip("transformers")
    wants = {"do_sample": True, **{field: getattr(sampling, field) for field in FIELDS}}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=700))
    config = transformers.GenerationConfig(**{k: v for k, v in wants.items() if (k, v) != ("min_p", 0.0)})
    processors = model._get_logits_processor(config, input_ids_seq_length=1)
    return processors(seen_V.nonzero()[None, :, 0], logits_1V.clone())


@pytest.mark.parametrize("penalty", [1.0, 1.4, 0.8])
def test_kept_tokens_and_their_probabilities_are_transformers(penalty: float):
    """Each row has settings of its own; found by drawing with many numbers, and looked at directly."""
    samplings = [sampling.model_copy(update={"repetition_penalty": penalty}) for sampling in MIXED]
    n = 3000
    uniform_N = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for row, sampling in enumerate(samplings):
        wanted_V = theirs(WIDE[row : row + 1], sampling, SEEN[row])[0]
        token_N, logp_N = choose(
            WIDE[row].expand(n, -1), uniform_N, settings_of([sampling] * n), SEEN[row].expand(n, -1)
        )
        assert not torch.isinf(wanted_V[token_N]).any(), "a token was drawn that transformers drops"
        share_V = token_N.bincount(minlength=700) / n
        assert (share_V - wanted_V.softmax(-1)).abs().max() <= 1.01 / n, "the numbers divide as the probabilities"
        own_V = (WIDE[row] / sampling.temperature).log_softmax(-1)
        torch.testing.assert_close(logp_N, own_V[token_N], atol=1e-5, rtol=0)


def test_kept_sets_are_transformers_row_by_row():
    x_BV = WIDE / torch.tensor([sampling.temperature for sampling in MIXED])[:, None]
    value_BK, token_BK = kept(x_BV, settings_of(MIXED))
    for row, sampling in enumerate(MIXED):
        wanted_V = theirs(WIDE[row : row + 1], sampling, torch.zeros(700, dtype=torch.bool))[0]
        found = token_BK[row][~torch.isinf(value_BK[row])]
        assert set(found.tolist()) == set((~torch.isinf(wanted_V)).nonzero()[:, 0].tolist())


def test_tokens_as_likely_as_the_last_of_top_k_stay():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    value_BK, token_BK = kept(logits, settings_of([Sampling(top_k=2)]))
    assert set(token_BK[~torch.isinf(value_BK)].tolist()) == {0, 2, 3, 4}
    left = theirs(logits, Sampling(top_k=2), torch.zeros(6, dtype=torch.bool))
    assert left.isfinite().nonzero()[:, 1].tolist() == [0, 2, 3, 4]


def test_a_penalty_changes_greedy_replies_and_not_their_log_probs():
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    seen = torch.tensor([[True, False, False]])
    settings = settings_of([Sampling(temperature=0, repetition_penalty=1.2)])
    token, logp = choose(logits, torch.zeros(1, dtype=torch.float64), settings, seen)
    assert token.tolist() == [1]
    torch.testing.assert_close(logp, logits.log_softmax(-1)[0, 1:2])


@pytest.mark.parametrize("n_vocab", [1, 5, 127, 128, 129, 1000])
def test_blocks_do_not_show(n_vocab: int):
    """The token is the first whose cumulative probability exceeds the number, as without blocks."""
    logits = torch.randn(200, n_vocab, generator=torch.Generator().manual_seed(n_vocab)) * 2
    uniform = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    temperature = torch.where(torch.arange(200) % 3 == 0, 0.5, 1.0)
    token, logp = draw(logits, uniform, temperature)
    all_logp = (logits / temperature[:, None]).log_softmax(-1)
    cumulative = all_logp.double().exp().cumsum(-1)
    wanted = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(-1)
    assert torch.equal(token, wanted)
    torch.testing.assert_close(logp, all_logp.gather(1, wanted[:, None])[:, 0], atol=1e-5, rtol=0)


def test_a_row_draws_the_same_beside_any_others():
    """Plain, cut, penalised and greedy rows in one batch."""
    samplings = [*MIXED, Sampling(temperature=0), Sampling(repetition_penalty=1.5, top_k=9)]
    logits, seen = torch.cat([WIDE, WIDE[:2]]), torch.cat([SEEN, SEEN[:2]])
    uniform = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    together = choose(logits, uniform, settings_of(samplings), seen)
    for row, sampling in enumerate(samplings):
        one = slice(row, row + 1)
        alone = choose(logits[one], uniform[one], settings_of([sampling]), seen[one])
        assert together[0][row] == alone[0]
        torch.testing.assert_close(together[1][one], alone[1], atol=1e-6, rtol=0)
    assert torch.equal(draw(logits[4:5], uniform[4:5], torch.ones(1))[0], together[0][4:5])


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
