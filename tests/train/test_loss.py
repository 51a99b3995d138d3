"""The loss: each term against its formula written out anew, and laws of packing and micro-batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import deepseek, llama, logits_of, made, tokens_like
from torch import Tensor

from zifio.data.pack import Sequence
from zifio.models.config import DeepseekV3Config
from zifio.models.decoder import Decoder
from zifio.models.moe import Experts
from zifio.train.batch import Batch, make_batches
from zifio.train.config import Correction
from zifio.train.logp import token_logp
from zifio.train.loss import LossTerms, batch_loss, correction_weight

LENGTHS = (5, 9, 12, 3, 8)
PROMPT = 2


def logp_of(model: Decoder, tokens: list[int], temperature: float = 1.0) -> np.ndarray:
    """Log-prob of every token but the first of one sequence standing alone, in numpy."""
    with torch.no_grad():
        logits = logits_of(model, torch.tensor([tokens]))[0].double().numpy() / temperature
    logits -= logits.max(axis=1, keepdims=True)
    table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return np.array([table[t, token] for t, token in enumerate(tokens[1:])])


def rollouts(model: Decoder, temperature: float = 1.0) -> list[Sequence]:
    """Sequences whose tokens behind the prompt carry every column, with old log-probs some way off."""
    rng = np.random.default_rng(0)
    out = []
    for number, length in enumerate(LENGTHS):
        tokens = tokens_like(length, seed=number).tolist()
        logp = np.concatenate([[0.0], logp_of(model, tokens, temperature)])
        counted = np.arange(length) >= PROMPT
        columns = {
            "policy_weight": counted * rng.uniform(0.01, 0.05, length),
            "advantage": counted * rng.choice([-1.3, 0.7], length),
            "old_logp": counted * (logp + rng.normal(0, 0.4, length)),
            "kl_weight": counted * rng.uniform(0.01, 0.03, length),
            "reference_logp": counted * (logp + rng.normal(0, 0.5, length)),
        }
        weight = (np.arange(length) > 0) * rng.uniform(0.01, 0.02, length)
        out.append(Sequence(tokens, weight.tolist(), {name: values.tolist() for name, values in columns.items()}))
    return out


def gradients(model: Decoder, batches: list[Batch], terms: LossTerms) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a step that is cut into these micro-batches, added up as the loop does."""
    model.zero_grad()
    n_sequences = sum(batch.n_sequences for batch in batches)
    total = 0.0
    for batch in batches:
        result = batch_loss(model, batch, terms, batch.n_sequences / n_sequences)
        result.loss.backward()
        total += result.loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(one: tuple[float, dict[str, Tensor]], two: tuple[float, dict[str, Tensor]]) -> None:
    """Losses and gradients equal to 1e-6."""
    assert one[0] == pytest.approx(two[0], abs=1e-5, rel=1e-6)
    assert one[1].keys() == two[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, two[1][name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_index_t_is_about_token_t():
    logits = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(2))
    ours = token_logp(logits, tokens)
    assert (ours[:, 0] == 0).all()
    expected = -torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(ours[:, 1:].flatten(), expected)


def test_cross_entropy_equals_the_formula_token_by_token():
    model = made(llama())
    sequences = [Sequence(s.tokens, s.weight) for s in rollouts(model)]
    expected = -sum((np.array(s.weight[1:]) * logp_of(model, s.tokens)).sum() for s in sequences)
    for batch in (make_batches(sequences, 12, 1000, 0), make_batches(sequences, 37, 1000, 0)):
        result = batch_loss(model, batch[0], LossTerms(), 1.0)
        assert result.loss.item() == pytest.approx(expected, rel=1e-5)
        assert result.sums == {"cross_entropy": pytest.approx(expected, rel=1e-5)}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_policy_term_equals_trls_formula(temperature: float):
    """GRPO as TRL writes it, in numpy, with tokens clipped on both sides; and what is reported of it."""
    model = made(deepseek())
    terms = LossTerms(clip_low=0.2, clip_high=0.3, temperature=temperature)
    names = ("policy_weight", "advantage", "old_logp")
    sequences = [
        Sequence(s.tokens, [0.0] * len(s.tokens), {n: s.columns[n] for n in names})
        for s in rollouts(model, temperature)
    ]
    loss, clipped, gaps, entropies = 0.0, [], [], []
    for s in sequences:
        weight, advantage, old = (np.array(s.columns[n])[PROMPT:] for n in names)
        coef_1 = np.exp(logp_of(model, s.tokens, temperature)[PROMPT - 1 :] - old)
        coef_2 = np.clip(coef_1, 1 - 0.2, 1 + 0.3)
        loss += (weight * -np.minimum(coef_1 * advantage, coef_2 * advantage)).sum()
        clipped += (((coef_1 < 0.8) & (advantage < 0)) | ((coef_1 > 1.3) & (advantage > 0))).tolist()
        gaps += np.abs(np.log(coef_1)).tolist()
        with torch.no_grad():
            table = (logits_of(model, torch.tensor([s.tokens]))[0] / temperature).softmax(dim=-1).double().numpy()
        entropies += (-(table * np.log(table)).sum(axis=1))[PROMPT - 1 : -1].tolist()
    assert any(clipped) and not all(clipped)
    for row_tokens in (12, 40):
        (batch,) = make_batches(sequences, row_tokens, 1000, 0)
        result = batch_loss(model, batch, terms, 1.0)
        assert result.loss.item() == pytest.approx(loss, rel=1e-5)
        assert result.sums["policy"] == pytest.approx(loss, rel=1e-5)
        assert result.sums["n_policy_tokens"] == len(gaps) == sum(LENGTHS) - PROMPT * len(LENGTHS)
        assert result.sums["clipped"] == sum(clipped)
        assert result.sums["logp_gap"] == pytest.approx(sum(gaps), rel=1e-4)
        assert result.sums["logp_gap_max"] == pytest.approx(max(gaps), rel=1e-4)
        assert result.sums["entropy"] == pytest.approx(sum(entropies), rel=1e-4)


def one_token(model: Decoder, old_shift: float, advantage: float) -> dict[str, Tensor]:
    """Gradient of the policy term of a single token whose ratio is exp(-old_shift)."""
    tokens = tokens_like(6).tolist()
    old = [0.0] * 5 + [float(logp_of(model, tokens)[-1]) + old_shift]
    columns = {"policy_weight": [0.0] * 5 + [1.0], "advantage": [0.0] * 5 + [advantage], "old_logp": old}
    batches = make_batches([Sequence(tokens, [0.0] * 6, columns)], 6, 6, 0)
    return gradients(model, batches, LossTerms(clip_low=0.2, clip_high=0.3))[1]


@pytest.mark.parametrize(
    "ratio, advantage, flows",
    [(1.0, 1.0, True), (1.2, 1.0, True), (1.4, 1.0, False), (1.4, -1.0, True), (0.7, 1.0, True), (0.7, -1.0, False),
     (0.85, -1.0, True), (1.0, 0.0, False)],
)  # fmt: skip
def test_clipping_stops_the_gradient_on_the_side_that_went_too_far(ratio: float, advantage: float, flows: bool):
    """Where it flows it is -A r times the gradient of the log-prob."""
    model = made(llama())
    found = one_token(model, -np.log(ratio), advantage)
    if not flows:
        assert all((gradient == 0).all() for gradient in found.values())
        return
    tokens = tokens_like(1, 6)
    model.zero_grad()
    logits_of(model, tokens).log_softmax(dim=-1)[0, 4, tokens[0, 5]].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected = -advantage * ratio * parameter.grad
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-4)


def test_on_policy_the_value_is_minus_the_mean_advantage_and_the_gradient_is_reinforce():
    """With ratios of 1 clipping is idle: the gradient of sum w A log p."""
    model = made(deepseek())
    sequences = []
    for s in rollouts(model):
        old = np.concatenate([np.zeros(PROMPT), logp_of(model, s.tokens)[PROMPT - 1 :]]).tolist()
        columns = {n: s.columns[n] for n in ("policy_weight", "advantage")} | {"old_logp": old}
        sequences.append(Sequence(s.tokens, [0.0] * len(s.tokens), columns))
    loss, found = gradients(model, make_batches(sequences, 40, 1000, 0), LossTerms())
    model.zero_grad()
    expected = 0.0
    for s in sequences:
        weight = torch.tensor(s.columns["policy_weight"]) * torch.tensor(s.columns["advantage"])
        expected -= weight.sum().item()
        tokens = torch.tensor([s.tokens])
        logp = logits_of(model, tokens).log_softmax(dim=-1)[0, :-1].gather(1, tokens[0, 1:, None])[:, 0]
        (-(weight[1:] * logp).sum()).backward()
    assert loss == pytest.approx(expected, abs=1e-5)
    for name, gradient in found.items():
        wanted = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-3)


def test_zero_advantage_gives_exactly_zero_gradient():
    """Whatever the ratios are; through weights of every kind."""
    model = made(deepseek())
    sequences = []
    for s in rollouts(model):
        columns = {n: s.columns[n] for n in ("policy_weight", "old_logp")} | {"advantage": [0.0] * len(s.tokens)}
        sequences.append(Sequence(s.tokens, [0.0] * len(s.tokens), columns))
    loss, found = gradients(model, make_batches(sequences, 40, 1000, 0), LossTerms())
    assert loss == 0 and found
    assert all((gradient == 0).all() for gradient in found.values())


def every_next_token(model: Decoder, reference: Decoder, begin: list[int]) -> tuple[Batch, Tensor, Tensor]:
    """All possible next tokens, each weighted by its probability: an exact expectation; log pi and log ref."""
    rows = torch.tensor([begin])
    logp = logits_of(model, rows)[0, -1].log_softmax(dim=-1)
    ref = logits_of(reference, rows)[0, -1].log_softmax(dim=-1).detach()
    before = [0.0] * len(begin)
    sequences = [
        Sequence([*begin, token], [0.0] * (len(begin) + 1), {
            "kl_weight": [*before, logp[token].exp().item()], "reference_logp": [*before, ref[token].item()],
        })
        for token in range(len(logp))
    ]  # fmt: skip
    (batch,) = make_batches(sequences, len(begin) + 1, 10_000, 0)
    return batch, logp, ref


@pytest.mark.parametrize(
    "kl, value, gradient",
    [("k1", "reverse", "none"), ("k2", "other", "reverse"), ("k3", "reverse", "forward"),
     ("k3_corrected", "reverse", "reverse")],
)  # fmt: skip
def test_values_and_gradients_of_the_estimators(kl: Any, value: str, gradient: str):
    """By exact expectation over all next tokens: reverse is KL(pi || ref), forward KL(ref || pi)."""
    model, reference = made(llama()), made(llama(), seed=7)
    batch, logp, ref = every_next_token(model, reference, [3, 1, 4])
    reverse = (logp.exp() * (logp - ref)).sum()
    divergence = {"reverse": reverse, "forward": (ref.exp() * (ref - logp)).sum(), "none": 0 * logp.sum()}[gradient]
    model.zero_grad()
    divergence.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    loss, found = gradients(model, [batch], LossTerms(kl=kl))
    assert reverse > 0.1
    expected = reverse.item() if value == "reverse" else (logp.exp() * (logp - ref).square()).sum().item() / 2
    assert loss == pytest.approx(expected, rel=1e-4)
    for name, one in found.items():
        torch.testing.assert_close(one, wanted[name], atol=1e-5, rtol=1e-3)


def test_the_penalty_vanishes_with_its_gradient_at_the_reference():
    model = made(llama())
    batch, _, _ = every_next_token(model, made(llama()), [3, 1, 4])
    loss, found = gradients(model, [batch], LossTerms())
    assert abs(loss) < 1e-6 and all(gradient.abs().max() < 1e-6 for gradient in found.values())


def all_terms(mtp_weight: float = 0.3, **changes: Any) -> LossTerms:
    """Every term at once."""
    return LossTerms(clip_high=0.3, temperature=0.7, mtp_weight=mtp_weight, balance_weight=0.05, **changes)


LEVELS: dict[str, dict[str, Any]] = {
    "gspo": {"ratio": "sequence", "kl": "k3_corrected"},
    "rloo": {"ratio": "product", "kl": "k2"},
    "cispo": {"cap": 1.2, "kl": "k1", "correction": Correction(level="sequence", high=1.1), "off_policy_delta": 0.05},
    "icepop": {"correction": Correction(mode="mask", low=0.8, high=1.2), "off_policy_delta": 0.1},
}


MODELS: dict[str, Any] = {
    "deepseek-mtp": deepseek(num_nextn_predict_layers=1, q_lora_rank=10),
    "grouped-experts": deepseek(num_nextn_predict_layers=1),
    "llama": llama(),
}


def model_named(name: str) -> Decoder:
    """The model, its experts in the grouped form where its name says so."""
    model = made(MODELS[name])
    for module in model.modules():
        if name == "grouped-experts" and isinstance(module, Experts):
            module.form = "grouped"
    return model


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_padded(name: str):
    """All terms, loss and gradients: one row holding everything, rows of some, one sequence a row with padding."""
    model = model_named(name)
    sequences = rollouts(model, 0.7)
    padded = gradients(model, make_batches(sequences, 12, 1000, 0), all_terms())
    for row_tokens in (17, 25, 37):
        packed = make_batches(sequences, row_tokens, 1000, 0)
        assert len(packed) == 1 and packed[0].tokens_BT.shape[0] < len(sequences)
        assert_equal(gradients(model, packed, all_terms()), padded)


@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_add_up_to_one_batch(name: str):
    model = model_named(name)
    sequences = rollouts(model, 0.7)
    whole = gradients(model, make_batches(sequences, 17, 1000, 0), all_terms())
    for micro_tokens, n_batches in ((34, 2), (17, 3)):
        parts = make_batches(sequences, 17, micro_tokens, 0)
        assert len(parts) == n_batches
        assert_equal(gradients(model, parts, all_terms()), whole)


@pytest.mark.parametrize("level", LEVELS)
def test_packing_and_micro_batches_leave_sequences_whole(level: str):
    """Ratios, corrections and masks of whole sequences do not depend on what stands beside them."""
    model = model_named("llama")
    sequences = [with_sampler(s) for s in rollouts(model)]
    terms = all_terms(0.0, **LEVELS[level])
    padded = gradients(model, make_batches(sequences, 12, 1000, 0), terms)
    for row_tokens, micro_tokens in ((17, 1000), (37, 1000), (17, 17)):
        assert_equal(gradients(model, make_batches(sequences, row_tokens, micro_tokens, 0), terms), padded)
    assert_differs(padded, gradients(model, make_batches(sequences, 12, 1000, 0), all_terms(0.0)))


def with_sampler(sequence: Sequence) -> Sequence:
    """With log-probs of a sampler that is a little off."""
    old = np.array(sequence.columns["old_logp"])
    shifted = old + np.random.default_rng(len(old)).normal(0, 0.3, len(old))
    return replace(sequence, columns=sequence.columns | {"sampler_logp": shifted.tolist()})


def assert_differs(one: tuple[float, dict[str, Tensor]], two: tuple[float, dict[str, Tensor]]) -> None:
    """Some gradient differs clearly."""
    assert any((gradient - two[1][name]).abs().max() > 1e-4 for name, gradient in one[1].items())


def test_gspo_on_policy_is_grpo():
    """One ratio per sequence has the gradient of the mean over its tokens: the same up to where weights stand."""
    model = made(llama())
    sequences = []
    for s in rollouts(model):
        old = np.concatenate([np.zeros(PROMPT), logp_of(model, s.tokens)[PROMPT - 1 :]]).tolist()
        n, counted = len(s.tokens) - PROMPT, np.arange(len(s.tokens)) >= PROMPT
        columns = {"policy_weight": counted / (n * len(LENGTHS)), "advantage": counted * (0.3 + n / 10)}
        columns = {name: values.tolist() for name, values in columns.items()} | {"old_logp": old}
        sequences.append(Sequence(s.tokens, [0.0] * len(s.tokens), columns))
    batches = make_batches(sequences, 40, 1000, 0)
    grpo = gradients(model, batches, LossTerms())
    assert_equal(gradients(model, batches, LossTerms(ratio="sequence")), grpo)
    assert_differs(gradients(model, batches, LossTerms(ratio="product")), grpo)


def test_the_sampler_is_corrected_for_without_a_gradient():
    """Weights min(pi_trainer / pi_sampler, C), or the ratio within a range and else nothing; by hand."""
    gap_BT = torch.tensor([[0.0, 1.0, -1.0, 0.2, 0.0, 0.1, 0.3]], requires_grad=True)
    positions_BT = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    e = np.exp

    def weights(**settings: Any) -> list[float]:
        return correction_weight(gap_BT.detach(), positions_BT, Correction(**settings))[0].tolist()

    assert weights(high=2.0) == pytest.approx([1, 2, e(-1), e(0.2), 1, e(0.1), e(0.3)])
    assert weights(low=0.5, high=2.0) == pytest.approx([1, 2, 0.5, e(0.2), 1, e(0.1), e(0.3)])
    assert weights(mode="mask", low=0.5, high=2.0) == pytest.approx([1, 0, 0, e(0.2), 1, e(0.1), e(0.3)])
    assert weights(level="sequence", high=1.3) == pytest.approx([e(0.2)] * 4 + [1.3] * 3)
    assert weights(level="sequence", mode="mask", high=1.3) == pytest.approx([e(0.2)] * 4 + [0.0] * 3)


def test_a_sampler_that_is_exact_needs_no_correction():
    """Weights of 1, reported as such; and the distance that is reported is that of trainer and sampler."""
    model = made(llama())
    sequences = rollouts(model)
    plain = gradients(model, make_batches(sequences, 40, 1000, 0), LossTerms())
    exact = [replace(s, columns=s.columns | {"sampler_logp": s.columns["old_logp"]}) for s in sequences]
    terms = LossTerms(correction=Correction())
    assert_equal(gradients(model, make_batches(exact, 40, 1000, 0), terms), plain)
    sums = batch_loss(model, make_batches(exact, 40, 1000, 0)[0], terms, 1.0).sums
    assert sums["correction"] == sums["n_policy_tokens"] and sums["logp_gap"] == 0


def test_padding_tokens_do_not_matter():
    model = model_named("deepseek-mtp")
    sequences = rollouts(model, 0.7)
    one, two = (gradients(model, make_batches(sequences, 12, 1000, pad), all_terms()) for pad in (0, 31))
    assert one[0] == two[0]
    assert_equal(one, two)


def mtp_by_hand(model: Decoder, sequences: list[Sequence]) -> float:
    """Sum of w(t) times minus log p of token t, from position t-2, each sequence alone (DeepSeek-V3, equation 24)."""
    total = 0.0
    for s in sequences:
        tokens = torch.tensor([s.tokens])
        with torch.no_grad():
            output = model(tokens, torch.arange(len(s.tokens))[None], with_mtp=True)
            assert output.mtp_hidden_BTD is not None
            logp = model.logits(output.mtp_hidden_BTD)[0].log_softmax(dim=-1)
        for t in range(2, len(s.tokens)):
            total -= s.weight[t] * logp[t - 2, s.tokens[t]].item()
    return total


@pytest.mark.parametrize("row_tokens", [12, 25, 37])
def test_mtp_predicts_the_token_after_the_next_within_its_sequence(row_tokens: int):
    model = made(deepseek(num_nextn_predict_layers=1))
    sequences = [Sequence(s.tokens, s.weight) for s in rollouts(model)]
    (batch,) = make_batches(sequences, row_tokens, 1000, 0)
    with_mtp, without = (batch_loss(model, batch, LossTerms(mtp_weight=w), 1.0) for w in (0.3, 0.0))
    assert with_mtp.sums["mtp_cross_entropy"] == pytest.approx(mtp_by_hand(model, sequences), rel=1e-5)
    extra = with_mtp.loss.item() - without.loss.item()
    assert extra == pytest.approx(0.3 * mtp_by_hand(model, sequences), rel=1e-4)
    assert "mtp_cross_entropy" not in without.sums


def test_another_sequence_in_the_row_cannot_change_ones_loss():
    """Every token of the neighbours is corrupted in turn; the middle sequence's loss stays, to the last bit."""
    model = made(deepseek(num_nextn_predict_layers=1))
    pieces = [tokens_like(n, seed=n).tolist() for n in (4, 6, 5)]
    weights = [[0.0] * 4, [0.0, *[0.1] * 5], [0.0] * 5]

    def loss(pieces: list[list[int]]) -> tuple[float, float]:
        tokens = [token for piece in pieces for token in piece]
        weight = [one for row in weights for one in row]
        positions = [t for piece in pieces for t in range(len(piece))]
        batch = Batch(
            torch.tensor([tokens]), torch.tensor([positions]), torch.ones(1, 15, dtype=torch.bool),
            {"cross_entropy_weight": torch.tensor([weight])}, 3, (4, 6, 5),
        )  # fmt: skip
        with torch.no_grad():
            sums = batch_loss(model, batch, LossTerms(mtp_weight=0.3), 1.0).sums
        return sums["cross_entropy"], sums["mtp_cross_entropy"]

    plain = loss(pieces)
    for piece, place in ((0, 0), (0, 3), (2, 0), (2, 1), (2, 4)):
        other = [list(one) for one in pieces]
        other[piece][place] = (other[piece][place] + 1) % 40
        assert loss(other) == pytest.approx(plain, abs=1e-6), (piece, place)
    changed = [list(one) for one in pieces]
    changed[1][5] = (changed[1][5] + 1) % 40
    assert abs(loss(changed)[1] - plain[1]) > 1e-3, "its own last token does count"


def test_balance_term_is_alpha_times_the_share_of_the_step():
    """On top of the other terms, reported before alpha; loads come back for the bias."""
    config = deepseek()
    assert isinstance(config, DeepseekV3Config)
    model = made(config)
    (batch,) = make_batches([Sequence(tokens_like(9).tolist(), [0.0] * 9)], 9, 9, 0)
    result = batch_loss(model, batch, LossTerms(balance_weight=0.5), 0.25)
    assert result.loss.item() == pytest.approx(0.5 * result.sums["balance_loss"], rel=1e-6)
    whole = batch_loss(model, batch, LossTerms(balance_weight=0.5), 1.0)
    assert whole.sums["balance_loss"] == pytest.approx(4 * result.sums["balance_loss"], rel=1e-6)
    assert 0.5 < whole.sums["balance_loss"] < 3
    assert [load.sum().item() for load in whole.load_LE] == [27.0]
