"""RL: what a step's rollouts become, whose replies count, what is reported, and that reward rises."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ADAM, RL, Sevens, characters, context, deepseek, llama, logits_of, made, metrics, run, save_base

import zifio.train.draw as draw_module
import zifio.train.rl as rl_module
import zifio.train.stage as stage_module
from zifio.config import ConfigError, Sampling, build
from zifio.models.attention import branches_of
from zifio.models.decoder import Decoder
from zifio.models.weights import load_model
from zifio.tasks.episode import Episode, Reply
from zifio.tasks.task import Problem, Verdict
from zifio.train.config import LOSSES, RlStage
from zifio.train.draw import rollout_metrics
from zifio.train.loop import StepData
from zifio.train.loss import LossTerms, batch_loss, policy_logp
from zifio.train.rl import Rollouts

TOKENIZER = characters()


def stage(**changes: Any) -> RlStage:
    """The tiny stage."""
    return build(RlStage, {"kind": "rl", "name": "tiny", **RL, **changes}, "test")


def tiny_model(seed: int = 1) -> Decoder:
    """An untrained model over the tokens of sums."""
    return made(deepseek(vocab_size=TOKENIZER.vocab_size), seed)


def episode(reward: float, length: int, formed: float = 0.0, outcome: str = "", finish: str = "stop") -> Episode:
    """A rollout with this accuracy and format, or a broken check."""
    generator = np.random.default_rng(int(1000 * reward) + length)
    tokens = generator.integers(9, 22, length).tolist()
    logps = (-generator.uniform(0.1, 3, length)).tolist()
    outcome = outcome or ("right" if reward == 1 else "wrong")
    parts = {} if outcome == "error" else {"accuracy": reward, "format": formed, "process": 0.0}
    verdict = Verdict(outcome, reward, parts, "why")  # type: ignore[arg-type]
    return Episode(Problem("id", "1+2", "3"), Reply(tokens, "text", logps, finish), verdict)  # type: ignore[arg-type]


BROKEN = {"outcome": "error"}


def step_of(monkeypatch: pytest.MonkeyPatch, groups: list[list[Episode]], **changes: Any) -> StepData:
    """What Rollouts makes of these episodes."""
    monkeypatch.setattr(draw_module, "play", lambda *args: groups)
    config = stage(**{"prompts": len(groups), "group": len(groups[0]), "updates": 1, "most_errors": 1.0, **changes})
    return Rollouts(config, 1, Sevens(), tiny_model(), TOKENIZER).step(0)


def replies(data: StepData) -> list[dict[str, np.ndarray]]:
    """Tokens and columns of every sequence's reply in a step, in the order of their tokens."""
    found = []
    for batches in data.updates:
        for batch in batches:
            for row in range(len(batch.tokens_BT)):
                begins_T = branches_of(batch.positions_BT)[0][row]  # a reply may stand behind another one's prompt
                starts = [*begins_T.nonzero()[:, 0].tolist(), batch.tokens_BT.shape[1]]
                for start, stop in pairwise(starts):
                    weight = batch.columns["policy_weight"][row, start:stop]
                    if batch.real_BT[row, start]:
                        counted = weight != 0
                        columns = {n: v[row, start:stop][counted].numpy() for n, v in batch.columns.items()}
                        found.append({"tokens": batch.tokens_BT[row, start:stop][counted].numpy(), **columns})
    return sorted(found, key=lambda one: one["tokens"].tolist())


def mixed() -> list[list[Episode]]:
    """Three groups of three: one with a signal and a broken check, one without a signal, one with format only."""
    return [
        [episode(1.0, 4, 1.0), episode(0.0, 6), episode(0.5, 5, **BROKEN)],
        [episode(0.0, 3, 1.0), episode(0.0, 7, 1.0), episode(0.0, 2, 1.0)],
        [episode(0.0, 5, 1.0), episode(0.0, 8), episode(1.0, 2)],
    ]


def advantages(rewards: list[float], scale: str) -> np.ndarray:
    """GRPO's formula."""
    values = np.array(rewards)
    centred = values - values.mean()
    return centred / (values.std(ddof=1) + 1e-4) if scale == "group" else centred


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
@pytest.mark.parametrize("scale", ["group", "none"])
def test_rewards_become_weights_and_advantages_of_reply_tokens(aggregate: str, scale: str, monkeypatch):
    """Accuracy and format at their worth, groups apart, broken checks left out, no-signal groups in the mean only."""
    groups = mixed()
    worth = {"accuracy_weight": 2.0, "format_weight": 0.5}
    data = step_of(monkeypatch, groups, aggregate=aggregate, advantage=scale, **worth)
    n_tokens = sum(len(e.reply.tokens) for group in groups for e in group)
    expected = []
    for p, members, rewards in ((0, (0, 1), [2.5, 0.0]), (2, (0, 1, 2), [0.5, 0.0, 2.0])):
        for g, advantage in zip(members, advantages(rewards, scale), strict=True):
            reply = groups[p][g].reply
            share = {"token": 1 / n_tokens, "sequence": 1 / (9 * len(reply.tokens)), "constant": 1 / (9 * 6)}[aggregate]
            expected.append((reply.tokens, share, advantage, reply.logps))
    found = replies(data)
    assert len(found) == len(expected)
    for one, (tokens, share, advantage, logps) in zip(found, sorted(expected), strict=True):
        assert one["tokens"].tolist() == tokens
        np.testing.assert_allclose(one["policy_weight"], share, rtol=1e-6)
        np.testing.assert_allclose(one["advantage"], advantage, rtol=1e-5)
        np.testing.assert_allclose(one["old_logp"], logps, rtol=1e-6)


def test_prompts_carry_no_weight(monkeypatch):
    """The only tokens with a weight are those of the reply; before them stands the rendered question."""
    data = step_of(monkeypatch, mixed())
    (batches,) = data.updates
    for batch in batches:
        weight = batch.columns["policy_weight"]
        assert (weight[batch.positions_BT < 3] == 0).all(), "begin, user mark and more"
        assert (batch.columns["advantage"][weight == 0] == 0).all()
        assert "cross_entropy_weight" not in batch.columns


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_weights_sum_to_the_mean_they_stand_for(aggregate: str, monkeypatch):
    """When every group has a signal: one, one, and the mean length over the longest allowed."""
    groups = [[episode(1.0, 4), episode(0.0, 6)], [episode(0.0, 3), episode(1.0, 5)]]
    data = step_of(monkeypatch, groups, aggregate=aggregate)
    total = sum(batch.columns["policy_weight"].sum().item() for batches in data.updates for batch in batches)
    assert total == pytest.approx({"token": 1.0, "sequence": 1.0, "constant": 18 / (4 * 6)}[aggregate], rel=1e-6)


def test_each_update_takes_its_own_share_of_the_prompts_and_its_own_mean(monkeypatch):
    groups = [[episode(1.0, 4), episode(0.0, 6)], [episode(0.0, 3), episode(1.0, 5)]]
    data = step_of(monkeypatch, groups, updates=2)
    assert len(data.updates) == 2
    for batches, n_tokens in zip(data.updates, (10, 8), strict=True):
        assert sum(b.n_sequences for b in batches) == 2
        weights = torch.cat([b.columns["policy_weight"].flatten() for b in batches])
        np.testing.assert_allclose(weights[weights != 0], 1 / n_tokens, rtol=1e-6)


def test_no_signal_no_update(monkeypatch):
    """Groups of equal rewards, whatever they are, leave nothing to train on."""
    groups = [[episode(1.0, 4), episode(1.0, 6)], [episode(0.0, 3), episode(0.0, 5)]]
    data = step_of(monkeypatch, groups)
    assert data.updates == []
    assert data.metrics["frac_reward_zero_std"] == 1.0
    assert step_of(monkeypatch, groups, kl_weight=0.1).updates, "the reference penalty wants them all the same"


def test_a_run_without_signal_leaves_the_weights_alone(tmp_path: Path):
    """And says so: no loss, no gradient norm, the learning rate's step goes on."""

    class Never(Sevens):
        def score(self, problem: Problem, response: str) -> Verdict:
            return Verdict("wrong", 0.0, {"accuracy": 0.0, "format": 0.0, "process": 0.0})

    base = save_base(tmp_path / "base", deepseek(num_nextn_predict_layers=1))
    run("rl", RL | {"steps": 4}, context(tmp_path / "run", Never(), base=base))
    before, after = load_model(base).state_dict(), load_model(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for line in metrics(tmp_path / "run"):
        assert line["frac_reward_zero_std"] == 1.0 and line["reward"] == 0.0 and line["n_tokens"] == 0
        assert "loss" not in line and "grad_norm" not in line


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_loss_of_a_step_is_trls_grpo(temperature: float, monkeypatch):
    """Numpy over the episodes themselves: token-mean of -A, plus beta times k3 against the reference."""
    groups = mixed()
    data = step_of(monkeypatch, groups, kl_weight=0.5, sampling={"max_new_tokens": 6, "temperature": temperature})
    reference, model = tiny_model(), tiny_model(seed=4)
    expected, n_tokens = 0.0, sum(len(e.reply.tokens) for group in groups for e in group)
    for p, rewards in enumerate(([2.0, 0.0, None], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0])):
        question = groups[p][0].problem.prompt
        prompt = TOKENIZER.encode(f"<｜begin▁of▁sentence｜><｜User｜>{question}<｜Assistant｜>")
        counted = [r for r in rewards if r is not None]
        advantage = iter(advantages(counted, "group") if len(set(counted)) > 1 else np.zeros(len(counted)))
        for g, reward in enumerate(rewards):
            if reward is None:
                continue
            a, reply = next(advantage), groups[p][g].reply
            tokens = torch.tensor([prompt + reply.tokens])
            with torch.no_grad():
                table = [(logits_of(m, tokens) / temperature).log_softmax(-1)[0, :-1] for m in (model, reference)]
            now, ref = (t.gather(1, tokens[0, 1:, None])[len(prompt) - 1 :, 0] for t in table)
            ratio = np.exp(now.numpy() - np.array(reply.logps))
            per_token = -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
            gap = (ref - now).numpy()
            expected += (per_token + 0.5 * (np.exp(gap) - gap - 1)).sum() / n_tokens
    terms = LossTerms(temperature=temperature)
    loss = sum(batch_loss(model, b, terms, 1.0).loss.item() for batches in data.updates for b in batches)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_a_step_is_a_pure_function_of_model_and_step():
    config = stage()
    one, two = (Rollouts(config, 1, Sevens(), tiny_model(), TOKENIZER) for _ in range(2))
    two.step(0)
    first, second = one.step(3), two.step(3)
    assert first.metrics == second.metrics
    for a, b in zip(replies(first), replies(second), strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    other = Rollouts(config, 2, Sevens(), tiny_model(), TOKENIZER).step(3)
    assert other.metrics != first.metrics
    assert one.step(4).metrics != first.metrics


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_trainer_agree_and_every_step_says_so(temperature: float, tmp_path: Path):
    base = save_base(tmp_path / "base", deepseek())
    sampling = {"max_new_tokens": 6, "temperature": temperature}
    run("rl", RL | {"updates": 1, "steps": 3, "sampling": sampling}, context(tmp_path / "run", Sevens(), base=base))
    for line in metrics(tmp_path / "run"):
        assert 0 <= line["sampling/sampling_logp_difference/mean"] < 1e-5
        assert line["sampling/sampling_logp_difference/max"] < 1e-5
        assert line["clip_ratio"] == 0.0


def test_asynchronous_rollouts_come_from_the_weights_before_the_update(tmp_path: Path):
    """Steps 0 and 1 are drawn by the starting model; then each step by the model of one update before."""
    config = stage(asynchronous=True, updates=1, steps=4)
    model = tiny_model()
    rollouts = Rollouts(config, 1, Sevens(), model, TOKENIZER)
    plain = Rollouts(stage(updates=1), 1, Sevens(), tiny_model(), TOKENIZER)
    drawn, generator = [], torch.Generator().manual_seed(1)
    for step in range(4):
        drawn.append(rollouts.step(step).metrics)
        with torch.no_grad():  # an update, beside the drawing
            model.lm_head.weight.add_(torch.randn(model.lm_head.weight.shape, generator=generator))
        if step == 0:
            second = copy.deepcopy(model.state_dict())
    assert drawn[0] == plain.step(0).metrics and drawn[1] == plain.step(1).metrics
    plain.policy.model.load_state_dict(second)
    assert drawn[2] == plain.step(2).metrics
    plain.policy.model.load_state_dict(model.state_dict())
    assert drawn[2] != plain.step(2).metrics
    assert rollouts.next is None, "nothing is drawn beyond the last step"


def test_asynchronous_runs_report_how_far_behind_the_sampler_was(tmp_path: Path):
    """On policy in the first step only; the correction's mean weight is reported."""
    base = save_base(tmp_path / "base", deepseek())
    settings = {"updates": 1, "steps": 4, "asynchronous": True, "old_logps": "trainer", "correction": {"high": 1.5}}
    run("rl", RL | settings, context(tmp_path / "run", Sevens(), base=base))
    lines = metrics(tmp_path / "run")
    gaps = [line["sampling/sampling_logp_difference/mean"] for line in lines]
    assert gaps[0] < 1e-5 and min(gaps[1:]) > 1e-5
    assert lines[0]["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-5)
    assert all(line["clip_ratio"] == 0 for line in lines), "the ratio starts from the trainer's own log-probs"


@pytest.mark.parametrize("updates", [1, 2])
def test_old_log_probs_of_the_trainer_are_those_before_the_step(updates: int, monkeypatch):
    """A forward pass of its own only where a later update needs them; the sampler's stand beside them."""
    groups = [[episode(1.0, 4), episode(0.0, 6)], [episode(0.0, 3), episode(1.0, 5)]]
    data = step_of(monkeypatch, groups, old_logps="trainer", updates=updates)
    plain = step_of(monkeypatch, groups, updates=updates)
    assert (data.flops > plain.flops) == (updates == 2)
    assert len(data.updates) == updates
    for batches in data.updates:
        for batch in batches:
            assert ("old_logp" in batch.columns) == (updates == 2)
            counted = batch.columns["policy_weight"] != 0
            assert (batch.columns["sampler_logp"][counted] < 0).all()
            if updates == 2:
                expected = policy_logp(tiny_model(), batch, 0.7)
                torch.testing.assert_close(batch.columns["old_logp"], expected)


def test_the_penalty_in_the_reward_is_the_log_ratio_of_the_whole_reply(monkeypatch):
    """RLOO: beta times the sum of sampler minus reference, subtracted before the others' mean."""
    groups = [[episode(1.0, 4), episode(0.0, 6)], [episode(0.0, 3), episode(0.0, 5)]]
    sampling = {"max_new_tokens": 6, "temperature": 0.7}
    data = step_of(monkeypatch, groups, loss="rloo", kl_weight=0.1, sampling=sampling)
    found = {tuple(one["tokens"].tolist()): one for one in replies(data)}
    prompt, penalties = TOKENIZER.encode("<｜begin▁of▁sentence｜><｜User｜>1+2<｜Assistant｜>"), []
    for e in (e for group in groups for e in group):
        tokens = torch.tensor([prompt + e.reply.tokens])
        with torch.no_grad():
            table = (logits_of(tiny_model(), tokens) / 0.7).log_softmax(-1)[0, len(prompt) - 1 : -1]
        reference = table.gather(1, torch.tensor(e.reply.tokens)[:, None]).sum().item()
        penalties.append(sum(e.reply.logps) - reference)
    assert data.metrics["kl"] == pytest.approx(sum(penalties) / 18, rel=1e-4)
    worth = [1 - 0.1 * penalties[0], -0.1 * penalties[1], -0.1 * penalties[2], -0.1 * penalties[3]]
    for i, e in enumerate(e for group in groups for e in group):
        one = found[tuple(e.reply.tokens)]
        np.testing.assert_allclose(one["advantage"], worth[i] - worth[i ^ 1], rtol=1e-3, atol=1e-4)
        assert "kl_weight" not in one and "reference_logp" not in one


def test_replayed_routing_on_policy_is_the_routers_own_to_the_byte(tmp_path: Path):
    """Sampler and trainer route alike, so one update per step cannot tell; before a second the routers move."""
    base = save_base(tmp_path / "base", deepseek(num_hidden_layers=3))
    lines = {}
    for updates in (1, 2):
        for routing in ("own", "replay"):
            settings = {"updates": updates, "steps": 4, "routing": routing, "optim": ADAM | {"lr": 0.03}}
            if updates == 2:
                settings |= {"old_logps": "trainer", "kl_weight": 0.01, "rows": RL["rows"] | {"recompute": True}}
            folder = tmp_path / f"{routing}-{updates}"
            run("rl", RL | settings, context(folder, Sevens(), base=base))
            lines[routing, updates] = (folder / "metrics.jsonl").read_bytes()
    assert lines["own", 1] == lines["replay", 1]
    assert lines["own", 2] != lines["replay", 2]


def test_replay_brings_a_trainer_in_bf16_nearer_to_the_sampler(tmp_path: Path):
    """Near ties send tokens elsewhere in bf16; replayed, only rounding is left between the log-probs."""
    base = save_base(tmp_path / "base", deepseek(num_hidden_layers=3))
    gap = {}
    for routing in ("own", "replay"):
        settings = RL | {"updates": 1, "steps": 3, "prompts": 16, "precision": "bf16", "routing": routing}
        run("rl", settings, context(tmp_path / routing, Sevens(), base=base))
        gap[routing] = max(one["sampling/sampling_logp_difference/max"] for one in metrics(tmp_path / routing))
    assert gap["replay"] < gap["own"] / 3


def test_every_pass_but_the_references_replays_the_samplers_experts(monkeypatch):
    """Training and old log-probs; nothing is known of a reply's last token and of padding."""
    seen = []
    plain = rl_module.policy_logp
    for module in (rl_module, stage_module):
        monkeypatch.setattr(module, "policy_logp", lambda m, batch, t: seen.append((m, batch)) or plain(m, batch, t))
    rollouts = Rollouts(
        stage(routing="replay", old_logps="trainer", kl_weight=0.1), 1, Sevens(), tiny_model(), TOKENIZER
    )
    (batches, _) = rollouts.step(0).updates
    experts = {model is rollouts.reference: batch.experts_BTLA for model, batch in seen}
    assert experts[True] is None and experts[False] is not None
    for batch in batches:
        assert batch.experts_BTLA is not None
        begins_BT = branches_of(batch.positions_BT)[0]
        last_BT = torch.cat([begins_BT[:, 1:], torch.ones_like(begins_BT[:, :1])], dim=1)
        is_known_BT = (batch.experts_BTLA >= 0).all(dim=(2, 3))
        assert torch.equal(is_known_BT, batch.real_BT & ~last_BT)


def test_what_the_engine_may_spend_changes_nothing_that_is_learned(tmp_path: Path):
    base = save_base(tmp_path / "base", deepseek(num_hidden_layers=3))
    tight = {"max_rows": 3, "chunk_tokens": 4, "prefix_sharing": False, "bitwise": True, "one_copy": True}
    lines = {}
    for name, engine in (("loose", {}), ("tight", tight)):
        run("rl", RL | {"steps": 4, "engine": engine}, context(tmp_path / name, Sevens(), base=base))
        lines[name] = (tmp_path / name / "metrics.jsonl").read_bytes()
    assert lines["loose"] == lines["tight"]


def test_the_engine_refuses_what_it_cannot_keep(tmp_path: Path):
    settings = stage(engine={"bitwise": True, "latent_cache": True})
    with pytest.raises(ConfigError, match="latent_cache = false"):
        Rollouts(settings, 1, Sevens(), tiny_model(), TOKENIZER)


def test_replay_wants_experts():
    with pytest.raises(ConfigError, match=r'tiny: routing="replay": wanted a model with experts.*routing = "own"'):
        Rollouts(stage(routing="replay"), 1, Sevens(), made(llama(vocab_size=TOKENIZER.vocab_size)), TOKENIZER)


def test_truncated_replies_are_left_out_but_count_in_the_groups_mean(monkeypatch):
    groups = [[episode(1.0, 4), episode(0.0, 6, finish="length"), episode(0.0, 3)]]
    one, two = (replies(step_of(monkeypatch, groups, mask_truncated=masked)) for masked in (True, False))
    assert len(one) == 2 and len(two) == 3
    kept = {tuple(r["tokens"].tolist()): r for r in one}
    for r in two:
        if tuple(r["tokens"].tolist()) in kept:
            same = kept[tuple(r["tokens"].tolist())]
            np.testing.assert_allclose(same["advantage"], r["advantage"])
            np.testing.assert_allclose(same["policy_weight"], 1 / 7)
            np.testing.assert_allclose(r["policy_weight"], 1 / 13)


@pytest.mark.parametrize("name", LOSSES)
def test_a_named_loss_stands_for_options_that_explicit_ones_override(name: str):
    named = stage(loss=name)
    assert {option: getattr(named, option) for option in LOSSES[name]} == LOSSES[name]
    assert stage(loss=name, clip_high=0.5, aggregate="constant").clip_high == 0.5
    assert stage(loss=name, aggregate="constant").aggregate == "constant"
    again = build(RlStage, named.model_dump(by_alias=True, exclude_none=True), "test")
    assert again == named and again.digest() == named.digest()


def test_without_a_name_nothing_is_new():
    """The options as they have always been."""
    now = stage()
    assert (now.advantage, now.aggregate, now.ratio, now.clip_low, now.clip_high) == (
        "group",
        "token",
        "token",
        0.2,
        0.2,
    )
    assert (now.cap, now.kl, now.kl_in, now.old_logps, now.asynchronous) == (None, "k3", "loss", "sampler", False)


@pytest.mark.parametrize("name", LOSSES)
def test_every_named_loss_trains(name: str, tmp_path: Path):
    """With all that goes together: several updates, penalty, dynamic sampling, length, correction."""
    base = save_base(tmp_path / "base", deepseek())
    options = {
        "loss": name, "steps": 2, "kl_weight": 0.01, "max_rounds": 2, "overlong_cache": 2, "mask_truncated": True,
        "old_logps": "trainer", "correction": {"mode": "mask", "low": 0.5, "high": 5.0}, "off_policy_delta": 0.5,
    }  # fmt: skip
    run("rl", RL | options, context(tmp_path / "run", Sevens(), base=base))
    for line in metrics(tmp_path / "run"):
        assert np.isfinite(line["loss"]) and line["grad_norm"] > 0 and "kl" in line and line["rollouts/rounds"] <= 2


def test_reward_rises(tmp_path: Path):
    base = save_base(tmp_path / "base", llama())
    settings = RL | {"steps": 15, "updates": 1, "optim": ADAM}
    run("rl", settings, context(tmp_path / "run", Sevens(), base=base))
    accuracy = [line["rewards/accuracy/mean"] for line in metrics(tmp_path / "run")]
    assert np.mean(accuracy[:2]) < 0.5 and np.mean(accuracy[-2:]) > 0.8


def test_the_reference_is_the_starting_model_also_after_a_resume(tmp_path: Path, monkeypatch):
    base = save_base(tmp_path / "base", deepseek())
    settings = RL | {"kl_weight": 0.1, "steps": 4, "checkpoint_every": 1}
    context_ = context(tmp_path / "run", Sevens(), base=base)
    run("rl", settings, context_)
    seen: list[Decoder] = []
    plain = Rollouts.step

    def step(self: Rollouts, number: int) -> StepData:
        assert self.reference is not None
        seen.append(self.reference)
        return plain(self, number)

    monkeypatch.setattr(Rollouts, "step", step)
    run("rl", settings | {"steps": 6}, context_)
    assert len(seen) == 3, "resumed behind step 3"
    before = load_model(base).state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in seen[-1].state_dict().items())
    assert metrics(tmp_path / "run")[-1]["kl"] > 1e-4


class Brittle(Sevens):
    """A verifier that breaks on every reply that begins with a digit."""

    def score(self, problem: Problem, response: str) -> Verdict:
        if response[:1].isdigit():
            raise OSError("cannot open the answer sheet")
        return super().score(problem, response)


def test_broken_checks_are_counted_and_take_no_part(tmp_path: Path):
    base = save_base(tmp_path / "base", deepseek())
    run("rl", RL | {"steps": 3, "most_errors": 1.0}, context(tmp_path / "run", Brittle(), base=base))
    lines = metrics(tmp_path / "run")
    assert all(line["n_verifier_errors"] > 0 for line in lines)
    assert all(line.get("rewards/format/mean", 0.0) == 0.0 for line in lines), "the means are over working checks"
    rollouts = Rollouts(stage(most_errors=1.0), 1, Brittle(), tiny_model(), TOKENIZER)
    texts = [TOKENIZER.decode(r["tokens"].tolist()) for step in range(4) for r in replies(rollouts.step(step))]
    assert texts and not any(text[:1].isdigit() for text in texts)


def test_too_many_broken_checks_stop_the_run_with_an_example(tmp_path: Path):
    base = save_base(tmp_path / "base", deepseek())
    with pytest.raises(ConfigError) as error:
        run("rl", RL | {"steps": 3}, context(tmp_path / "run", Brittle(), base=base))
    for part in ("tiny: the verifier of chain_sum broke on", "of 24 rollouts", "most_errors = 0.1", "answer sheet"):
        assert part in str(error.value)
    assert not (tmp_path / "run" / "model").exists()


def test_a_step_whose_checks_all_broke_is_reported_and_passed_over(monkeypatch):
    groups = [[episode(0.0, 3, **BROKEN), episode(0.0, 4, **BROKEN)]]
    data = step_of(monkeypatch, groups, most_errors=1.0)
    assert data.updates == [] and data.metrics == {"n_verifier_errors": 2}


def values(groups: list[list[Episode]]) -> dict[str, float]:
    """rollout_metrics of these episodes at weights of 1 and 1."""
    reward = [[e.verdict.reward + e.verdict.parts.get("format", 0.0) for e in group] for group in groups]
    counted = [[e.verdict.outcome != "error" for e in group] for group in groups]
    reward_PG = torch.tensor(reward) * torch.tensor(counted)
    return rollout_metrics(stage(), groups, reward_PG, torch.tensor(counted))


def test_what_is_reported_of_rollouts():
    groups = [
        [episode(1.0, 4, 1.0), episode(0.0, 6, finish="length"), episode(0.0, 9, **BROKEN)],
        [episode(0.0, 3, 1.0), episode(0.0, 7, 1.0), episode(0.0, 2, 1.0)],
    ]
    assert values(groups) == {
        "n_verifier_errors": 1,
        "completions/mean_length_right": 4.0,
        "completions/mean_length_wrong": pytest.approx((6 + 3 + 7 + 2) / 4),
        "completions/mean_length": pytest.approx(22 / 5),
        "completions/clipped_ratio": pytest.approx(1 / 5),
        "rewards/accuracy/mean": pytest.approx(1 / 5),
        "rewards/format/mean": pytest.approx(4 / 5),
        "rewards/process/mean": 0.0,
        "reward": pytest.approx(1.0),
        "reward_std": pytest.approx(np.std([2, 0, 1, 1, 1], ddof=1)),
        "frac_reward_zero_std": 0.5,
        "pass_at_1": pytest.approx(1 / 5),
        "pass_at_group": 0.5,
    }


def test_a_broken_check_gives_a_group_no_signal():
    """Its placeholder of 0 is not a reward that differs from the others."""
    groups = [[episode(1.0, 4, 1.0), episode(1.0, 6, 1.0), episode(0.0, 9, **BROKEN)]]
    assert values(groups)["frac_reward_zero_std"] == 1.0


def test_a_metric_that_cannot_be_computed_is_absent():
    found = values([[episode(1.0, 4), episode(0.0, 9, **BROKEN)]])
    assert "reward_std" not in found and "completions/mean_length_wrong" not in found
    assert found["reward"] == 1.0 and found["frac_reward_zero_std"] == 1.0


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"prompts": 5}, ("prompts=5", "updates=2")),
        ({"sampling": {"temperature": 0}}, ("temperature=0", "no group has an advantage")),
        ({"group": 1}, ("group", "greater than or equal to 2")),
        ({"aggregate": "mean"}, ("aggregate", "'token', 'sequence' or 'constant'")),
        ({"clip_low": -0.2}, ("clip_low", "greater than 0")),
        ({"from": None}, ("from",)),
        ({"loss": "ppo"}, ("loss", "'grpo'", "'rloo'")),
        ({"kl_in": "reward"}, ('kl="k3"', 'set kl = "k1"')),
        ({"correction": {}}, ('set old_logps = "trainer"',)),
        ({"correction": {"low": 2.0}, "old_logps": "trainer"}, ("low below high, came low=2.0 and high=2.0",)),
        ({"overlong_cache": 6}, ("overlong_cache=6", "sampling.max_new_tokens=6")),
        ({"max_rounds": 0}, ("max_rounds", "greater than 0")),
        ({"routing": "replay", "asynchronous": True}, ('routing="replay"', "Set asynchronous = false")),
    ],
    ids=str,
)
def test_impossible_settings(changes: dict[str, Any], parts: tuple[str, ...]):
    with pytest.raises(ConfigError) as error:
        stage(**changes)
    for part in parts:
        assert part in str(error.value)


def test_replies_that_would_not_fit_are_refused_before_anything_is_drawn(tmp_path: Path):
    base = save_base(tmp_path / "base", deepseek())
    with pytest.raises(ConfigError, match="max_new_tokens=95 does not fit"):
        run("rl", RL | {"sampling": {"max_new_tokens": 95}}, context(tmp_path / "run", Sevens(), base=base))
    assert Sampling(max_new_tokens=95).max_new_tokens == 95
