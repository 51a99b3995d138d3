"""Mixture of experts: balance, the router's choice, and three forms of the experts that must agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import deepseek, deepseek_v2, logits_of, made, qwen3_moe, tokens_like
from torch import Tensor

from zifio.data.pack import Sequence
from zifio.kernels import operators as kernels
from zifio.models.decoder import Decoder, balance, sequence_ids
from zifio.models.moe import Experts, Router, Routing, expert_load, sequence_balance_loss, update_bias
from zifio.models.weights import load_model, save_model
from zifio.train.batch import make_batches
from zifio.train.config import Optim
from zifio.train.loss import LossTerms, batch_loss
from zifio.train.optim import Optimizer


def routing_of(scores_NE: Tensor, n_active: int) -> Routing:
    """A routing by score alone."""
    gate_NA, expert_NA = scores_NE.topk(n_active, dim=-1)
    return Routing(scores_NE, expert_NA, gate_NA)


def round_robin(n_tokens: int, n_experts: int, n_active: int) -> Tensor:
    """Scores by which every expert is chosen equally often and has the same mean share."""
    scores_NE = torch.full((n_tokens, n_experts), 0.25)
    for token in range(n_tokens):
        for place in range(n_active):
            scores_NE[token, (token * n_active + place) % n_experts] = 0.75
    return scores_NE


def test_uniform_routing_has_balance_loss_one():
    """So the term in the loss, alpha times it, is alpha (DeepSeek-V3, equations 17-20)."""
    routing = routing_of(round_robin(16, 8, 2), 2)
    assert expert_load(routing).tolist() == [4.0] * 8
    assert sequence_balance_loss(routing, torch.zeros(16, dtype=torch.long), 1).item() == 1.0


def test_collapsed_routing_costs_more_than_uniform_and_less_than_its_ceiling():
    scores_NE = torch.full((16, 8), 0.01)
    scores_NE[:, :2] = 0.99
    loss = sequence_balance_loss(routing_of(scores_NE, 2), torch.zeros(16, dtype=torch.long), 1)
    assert 3.8 < loss.item() < 4.0, "all tokens to 2 of 8 experts: f is 4 there, P nearly 1/2 each"


def test_balance_loss_equals_the_printed_formula():
    """Equations 17-20 written as loops over sequences, tokens and experts, with padding between."""
    rng = np.random.default_rng(0)
    scores, sequence = rng.uniform(0.05, 0.95, (20, 6)), np.array([0] * 7 + [-1] * 3 + [1] * 10)
    total = 0.0
    for number in (0, 1):
        mine = scores[sequence == number]
        chosen = np.argsort(-mine, axis=1)[:, :2]
        share = mine / mine.sum(axis=1, keepdims=True)
        for expert in range(6):
            f = 6 / (2 * len(mine)) * (chosen == expert).any(axis=1).sum()
            total += f * share[:, expert].mean() / 2
    ours = sequence_balance_loss(routing_of(torch.tensor(scores), 2), torch.tensor(sequence), 2)
    assert ours.item() == pytest.approx(total, rel=1e-12)


def test_balance_loss_uses_scores_without_the_bias_and_f_has_no_gradient():
    scores_NE = round_robin(16, 8, 2).requires_grad_()
    biased = routing_of(scores_NE + torch.linspace(-5, 5, 8), 2)
    routing = Routing(scores_NE, biased.expert_NA, biased.gate_NA)
    loss = sequence_balance_loss(routing, torch.zeros(16, dtype=torch.long), 1)
    assert loss.item() == 1.0, "the biased choice, all to the same experts, must not matter"
    loss.backward()
    assert scores_NE.grad is not None and scores_NE.grad.abs().max() < 1e-7, "f is 1 everywhere, so P alone moves it"


def test_padding_between_sequences_changes_neither_balance_loss_nor_load():
    """Rows of one sequence each, padded or not, have the mean of the sequences' own losses."""
    model = made(deepseek(num_nextn_predict_layers=1))
    pieces = [tokens_like(n, seed=n).tolist() for n in (5, 9, 12)]
    alone = []
    with torch.no_grad():
        for piece in pieces:
            (batch,) = make_batches([Sequence(piece, [1.0] * len(piece))], 64, 64, 0)
            output = model(batch.tokens_BT, batch.positions_BT, with_mtp=True)
            alone.append(balance(output, batch.positions_BT, batch.real_BT))
        for row_tokens in (12, 14, 26):
            (batch,) = make_batches([Sequence(p, [1.0] * len(p)) for p in pieces], row_tokens, 10_000, 0)
            output = model(batch.tokens_BT, batch.positions_BT, with_mtp=True)
            loss, load_LE = balance(output, batch.positions_BT, batch.real_BT)
            torch.testing.assert_close(loss, torch.stack([one for one, _ in alone]).mean(), atol=1e-6, rtol=0)
            for layer, load_E in enumerate(load_LE):
                assert torch.equal(load_E, sum(loads[layer] for _, loads in alone)), (row_tokens, layer)


def test_sequence_ids_begin_anew_at_every_position_zero():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]])
    assert sequence_ids(positions).tolist() == [[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]]


def test_bias_drives_a_skewed_router_to_balance():
    torch.manual_seed(0)
    router = Router(deepseek(n_group=1, topk_group=1))
    x_ND = torch.randn(512, 24)
    with torch.no_grad():
        router.weight.normal_(0, 0.1)
        x_ND += 3 * router.weight[:2].sum(dim=0) / router.weight[:2].sum(dim=0).square().sum() ** 0.5
        before = expert_load(router(x_ND))
        for _ in range(400):
            update_bias(router.e_score_correction_bias, expert_load(router(x_ND)), 2e-3)
        after = expert_load(router(x_ND))
    assert before.max() / before.mean() > 1.8, "the test wants a skewed router to begin with"
    assert after.max() / after.mean() < 1.1 and after.min() / after.mean() > 0.9


def test_bias_moves_by_speed_towards_the_idle_and_stays_at_the_mean():
    bias_E = torch.tensor([0.0, 1.0, -1.0])
    update_bias(bias_E, torch.tensor([6.0, 2.0, 4.0]), 0.5)
    assert bias_E.tolist() == [-0.5, 1.5, -1.0]


def test_bias_follows_the_load_of_the_whole_step_not_the_signs_of_its_parts():
    """Two micro-batches say expert 0 is slightly idle, one says it is very busy: it is busy."""
    model = made(deepseek())
    router = model.routers()[0]
    before = router.e_score_correction_bias.clone()
    parts = [torch.tensor([1.0, 3, 2, 2, 2, 2, 2, 2]), torch.tensor([1.0, 3, 2, 2, 2, 2, 2, 2])]
    parts.append(torch.tensor([16.0, 0, 0, 0, 0, 0, 0, 0]))
    total = torch.stack(parts).sum(dim=0)
    by_signs = sum((part.mean() - part).sign() for part in parts)
    model.update_balance([total], 0.25)
    moved = router.e_score_correction_bias - before
    assert moved[0] == -0.25 and by_signs[0] > 0
    assert moved[1] == 0.0 and by_signs[1] == -1, "6 of 48 over 8 experts is the mean exactly"


def test_a_training_step_sums_loads_over_micro_batches(tmp_path):
    """The loads that the loop hands to the bias are those of one batch that was never cut."""
    model = made(deepseek())
    sequences = [Sequence(tokens_like(n, seed=n).tolist(), [1.0] * n) for n in (6, 7, 8, 9)]
    whole = [batch_loss(model, b, LossTerms(), 1.0).load_LE for b in make_batches(sequences, 10, 1000, 0)]
    parts = [batch_loss(model, b, LossTerms(), 0.25).load_LE for b in make_batches(sequences, 10, 10, 0)]
    assert len(whole) == 1 and len(parts) == 4
    assert torch.equal(sum(load[0] for load in parts), whole[0][0])
    assert whole[0][0].sum() == 3 * (6 + 7 + 8 + 9), "padding is not counted"


def test_bias_is_no_parameter_gets_no_gradient_and_no_optimizer_state():
    model = made(deepseek(num_nextn_predict_layers=1))
    assert not any("e_score_correction_bias" in name for name, _ in model.named_parameters())
    biases = [router.e_score_correction_bias.clone() for router in model.routers()]
    for kind in ("adamw", "muon"):
        optimizer = Optimizer(model, Optim(kind=kind, lr=0.1, weight_decay=0.5))
        (batch,) = make_batches([Sequence(tokens_like(9).tolist(), [1.0] * 9)], 9, 9, 0)
        batch_loss(model, batch, LossTerms(mtp_weight=0.3, balance_weight=0.1), 1.0).loss.backward()
        optimizer.step(0, 1)
        assert not any("bias" in name for name in optimizer.state())
    for router, bias in zip(model.routers(), biases, strict=True):
        assert router.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(router.e_score_correction_bias, bias)


def test_bias_is_saved_and_loaded(tmp_path):
    model = made(deepseek(num_nextn_predict_layers=1))
    save_model(model, tmp_path)
    for ours, again in zip(model.routers(), load_model(tmp_path).routers(), strict=True):
        assert ours.e_score_correction_bias.abs().min() > 0
        assert torch.equal(ours.e_score_correction_bias, again.e_score_correction_bias)


@pytest.mark.parametrize("n_tokens", [1, 5, 64])
def test_all_forms_of_experts_are_equal_with_gradients(n_tokens: int):
    """Also with few tokens, when some experts see none."""
    config = deepseek()
    router, experts = Router(config), Experts(config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in (*router.parameters(), *experts.parameters()):
            parameter.normal_(0, 0.3, generator=generator)
    results = {}
    for form in ("native", "grouped", "every"):
        experts.form = form
        x_ND = torch.randn(n_tokens, 24, generator=torch.Generator().manual_seed(5)).requires_grad_()
        for parameter in (*router.parameters(), *experts.parameters()):
            parameter.grad = None
        out = experts(x_ND, router(x_ND))
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results[form] = [out, x_ND.grad, router.weight.grad, experts.gate_up_proj.grad, experts.down_proj.grad]
    for native, grouped, every in zip(*(results[form] for form in ("native", "grouped", "every")), strict=True):
        assert native is not None and native.abs().max() > 0
        torch.testing.assert_close(grouped, native, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(every, grouped, atol=2e-6, rtol=1e-5)


def test_experts_equal_a_loop_over_tokens():
    config = deepseek()
    experts, router = Experts(config), Router(config)
    with torch.no_grad():
        for parameter in (*router.parameters(), *experts.parameters()):
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(6))
        x_ND = torch.randn(10, 24, generator=torch.Generator().manual_seed(7))
        routing = router(x_ND)
        out = experts(x_ND, routing)
        for token in range(10):
            expected = torch.zeros(24)
            for expert, gate in zip(routing.expert_NA[token], routing.gate_NA[token], strict=True):
                weight = experts.gate_up_proj[expert]
                hidden = torch.nn.functional.silu(weight[:16] @ x_ND[token]) * (weight[16:] @ x_ND[token])
                expected += gate * (experts.down_proj[expert] @ hidden)
            torch.testing.assert_close(out[token], expected, atol=1e-5, rtol=1e-5)


def grouped_choice(choice: np.ndarray, config) -> set[int]:
    """The experts of one token, after the paper: groups by the sum of their two best, then the best in them."""
    groups = np.split(np.arange(len(choice)), config.n_group)
    worth = [np.sort(choice[group])[-2:].sum() for group in groups]
    reachable = [e for g in np.argsort(worth)[-config.topk_group :] for e in groups[g]]
    return set(sorted(reachable, key=lambda e: -choice[e])[: config.num_experts_per_tok])


@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_group_limited_choice_equals_the_plain_rule_also_with_negative_scores(shift: float):
    """With scores plus bias all below zero, masking with 0 instead of -inf would choose outside the groups."""
    config = deepseek(n_routed_experts=12, n_group=4, topk_group=2, num_experts_per_tok=4)
    router = Router(config)
    with torch.no_grad():
        router.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(8))
        router.e_score_correction_bias.normal_(shift, 0.5, generator=torch.Generator().manual_seed(9))
        routing = router(torch.randn(100, 24, generator=torch.Generator().manual_seed(10)))
    choice = (routing.scores_NE + router.e_score_correction_bias).numpy()
    assert shift == 0 or (choice < 0).all()
    for token in range(100):
        assert set(routing.expert_NA[token].tolist()) == grouped_choice(choice[token], config)
        scores = routing.scores_NE[token, routing.expert_NA[token]]
        torch.testing.assert_close(routing.gate_NA[token], 2.5 * scores / scores.sum(), atol=1e-6, rtol=0)


def test_gate_values_are_plain_scores_without_renormalising():
    router = Router(deepseek(norm_topk_prob=False, routed_scaling_factor=1.0))
    with torch.no_grad():
        router.weight.normal_(0, 0.5)
        routing = router(torch.randn(7, 24))
    assert torch.equal(routing.gate_NA, routing.scores_NE.gather(1, routing.expert_NA))


def test_softmax_groups_rank_by_their_best_expert_alone():
    """DeepSeek-V2: one outstanding expert brings its group in, where V3's sum of two would not."""
    grouped = {"topk_method": "group_limited_greedy", "n_routed_experts": 4, "n_group": 2, "topk_group": 1}
    router = Router(deepseek_v2(**grouped, num_experts_per_tok=2, routed_scaling_factor=16.0))
    logits = torch.tensor([3.0, -3.0, 2.5, 2.4])
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, 0] = logits
        routing = router(torch.eye(24)[:1])
    assert sorted(routing.expert_NA[0].tolist()) == [0, 1]
    torch.testing.assert_close(routing.gate_NA[0].sum(), 16 * logits.softmax(0)[:2].sum())
    sums = torch.tensor([logits.sigmoid()[:2].sum(), logits.sigmoid()[2:].sum()])
    assert sums.argmax() == 1  # V3 would go to the other group


@pytest.mark.parametrize("config", [deepseek_v2(), qwen3_moe()], ids=["deepseek_v2", "qwen3_moe"])
def test_routers_without_a_bias_are_left_alone_by_the_loss_free_balance(config):
    model = made(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    positions = torch.arange(12).expand(2, -1)
    output = model(tokens_like(2, 12), positions)
    loss, loads = balance(output, positions, torch.ones(2, 12, dtype=torch.bool))
    model.update_balance(loads, 0.1)
    assert not any("e_score_correction_bias" in name for name in before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len(loads) == len(model.routers()) == 1 and loads[0].sum() == 24 * 3
    assert loss > 0.5


def test_router_gets_a_gradient_through_the_gate_values():
    """It equals finite differences of the model's loss."""
    model = made(deepseek()).double()
    tokens = tokens_like(2, 12)
    (router,) = model.routers()

    def loss() -> Tensor:
        return logits_of(model, tokens).log_softmax(dim=-1)[:, 3, 5].sum()

    loss().backward()
    assert router.weight.grad is not None
    expert, column = divmod(int(router.weight.grad.abs().argmax()), 24)
    analytic, nudge = router.weight.grad[expert, column].item(), 1e-4
    with torch.no_grad():
        router.weight[expert, column] += nudge
        above = loss().item()
        router.weight[expert, column] -= 2 * nudge
        below = loss().item()
    assert abs(analytic) > 1e-4
    assert (above - below) / (2 * nudge) == pytest.approx(analytic, rel=1e-3)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_a_replayed_choice_is_weighed_by_the_scores_of_today(norm_topk_prob: bool):
    """g_i = s_i / sum over I of s_j, times the scale (arXiv:2510.11370); rows of -1 are the router's own."""
    config = deepseek(norm_topk_prob=norm_topk_prob, routed_scaling_factor=2.5)
    router = Router(config)
    with torch.no_grad():
        router.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(8))
    x_ND = torch.randn(4, 24, generator=torch.Generator().manual_seed(9))
    given_NA = torch.tensor([[7, 0, 3], [-1, -1, -1], [2, 1, 6], [4, 5, 0]], dtype=torch.int16)
    own, routing = router(x_ND), router(x_ND, given_NA)
    assert torch.equal(routing.scores_NE, own.scores_NE)
    for token in (0, 2, 3):
        experts = given_NA[token].tolist()
        assert routing.expert_NA[token].tolist() == experts != own.expert_NA[token].tolist()
        scores = (x_ND[token] @ router.weight.T).sigmoid()[experts]
        expected = 2.5 * (scores / scores.sum() if norm_topk_prob else scores)
        torch.testing.assert_close(routing.gate_NA[token], expected)
    assert torch.equal(routing.expert_NA[1], own.expert_NA[1]) and torch.equal(routing.gate_NA[1], own.gate_NA[1])
    assert expert_load(routing)[given_NA[0].long()].min() > 0
    (routing.gate_NA[0] * torch.tensor([1.0, -1.0, 2.0])).sum().backward()
    moved = router.weight.grad.abs().sum(dim=1) > 0
    assert moved.nonzero()[:, 0].tolist() == [0, 3, 7], "the gradient of a token reaches its replayed experts' rows"


def replayed(model: Decoder, tokens: Tensor, experts_BTLA: Tensor | None) -> list[Tensor]:
    """Hidden states, MTP's states and all gradients, with these experts."""
    model.zero_grad()
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    output = model(tokens, positions, with_mtp=True, experts_BTLA=experts_BTLA)
    logits = model.logits(output.hidden_BTD)
    loss = logits.log_softmax(dim=-1)[:, 3:, 5].sum()
    if output.mtp_hidden_BTD is not None:
        loss = loss + model.logits(output.mtp_hidden_BTD).log_softmax(dim=-1)[:, 3:, 6].sum()
    loss.backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    "config",
    [deepseek(num_hidden_layers=3, num_nextn_predict_layers=1), deepseek_v2(), qwen3_moe()],
    ids=["v3", "v2", "qwen3"],
)
def test_replaying_the_routers_own_choice_changes_no_bit(config, native: bool, recompute: bool, monkeypatch):
    """Of logits and gradients, also where layers with experts and dense ones take turns; another choice does."""
    if not native:
        monkeypatch.setattr(kernels, "native", lambda x: False)
    model, tokens = made(config), tokens_like(2, 12)
    model.recompute = recompute
    with torch.no_grad():
        routing = model(tokens, torch.arange(12).expand(2, -1)).routing
    experts_BTLA = torch.stack([one.expert_NA for one in routing], dim=1).to(torch.int16).unflatten(0, (2, 12))
    own = replayed(model, tokens, None)
    unknown_half = experts_BTLA.clone()
    unknown_half[:, ::2] = -1
    for experts in (experts_BTLA, unknown_half):
        again = replayed(model, tokens, experts)
        assert len(own) == len(again) and all(map(torch.equal, own, again))
    other = replayed(model, tokens, (experts_BTLA + 1) % 8)
    assert not torch.equal(own[0], other[0])
    assert all(router.weight.grad.abs().max() > 0 for router in model.routers() if router.weight.grad is not None)


def test_experts_of_another_number_of_layers_are_refused():
    model, tokens = made(deepseek()), tokens_like(1, 4)
    with pytest.raises(AssertionError, match="number of layers"):
        model(tokens, torch.arange(4)[None], experts_BTLA=torch.zeros(1, 4, 2, 3, dtype=torch.int16))


def test_initialisation_depends_on_its_seed_alone():
    config = deepseek(num_nextn_predict_layers=1)
    torch.manual_seed(1)
    one = Decoder(config, seed=7).state_dict()
    torch.manual_seed(2)
    two, other = Decoder(config, seed=7).state_dict(), Decoder(config, seed=8).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    deviation = torch.cat([t.flatten() for n, t in one.items() if t.ndim > 1]).std().item()
    assert deviation == pytest.approx(config.initializer_range, rel=0.02)
