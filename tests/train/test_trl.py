"""Every loss equals TRL's: its own `_compute_loss` runs on the very tensors that our stage makes its batches from.

Rollouts go through the whole stage (rewards, advantages, weights, packing into several micro-batches), only log-probs
are given. Values and gradients with respect to the log-probs must agree.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import RL, Sevens, characters, deepseek, made
from torch import Tensor

import zifio.train.draw as draw_module
import zifio.train.rl as rl_module
import zifio.train.stage as stage_module
from zifio.config import build
from zifio.tasks.episode import Episode, Reply
from zifio.tasks.task import Problem, Verdict
from zifio.train.batch import Batch
from zifio.train.config import RlStage
from zifio.train.divergence import compare
from zifio.train.loss import token_loss
from zifio.train.rl import Rollouts, loss_terms

Found = tuple[float, Tensor]

# TRL's configs set an option that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")

P, G, T = 3, 4, 6
FIRST = 9  # the token that rollout 0 says all the time; rollout i says the i-th after it
BETA = 0.1
TOKENIZER = characters()


class Rolled:
    """Twelve rollouts with rewards, lengths and four sets of log-probs some way apart."""

    def __init__(self, finish_length: tuple[int, ...] = ()) -> None:
        rng = np.random.default_rng(3)
        self.length = rng.integers(1, T + 1, P * G)
        self.length[0], self.length[5] = T, 1
        self.reward = rng.choice([0.0, 0.25, 1.0], P * G)
        self.reward[:4], self.reward[8:] = [1, 0, 0, 1], 0.25  # the last group teaches nothing
        self.truncated = np.isin(np.arange(P * G), finish_length)
        old = -rng.uniform(0.2, 3, (P * G, T))
        self.mask = torch.tensor(np.arange(T) < self.length[:, None])
        self.old, self.now, self.ref, self.sampler = (
            torch.tensor(old + rng.normal(0, by, old.shape), dtype=torch.float32) for by in (0, 0.25, 0.6, 0.5)
        )

    def episodes(self, reported: Tensor) -> list[list[Episode]]:
        """The groups, with these log-probs reported by the sampler."""
        flat = []
        for i, n in enumerate(self.length.tolist()):
            verdict = Verdict("right" if self.reward[i] == 1 else "wrong", float(self.reward[i]), {"format": 0.0})
            finish = "length" if self.truncated[i] else "stop"
            flat.append(
                Episode(
                    Problem("id", "1+2", "3"), Reply([FIRST + i] * n, "", reported[i, :n].tolist(), finish), verdict
                )
            )
        return [flat[p * G : (p + 1) * G] for p in range(P)]


def placed(values: Tensor, batch: Batch) -> Tensor:
    """[rollouts, T] values where their tokens stand in a batch, 0 elsewhere."""
    counted_BT = batch.columns["policy_weight"] != 0
    n_prompt = len(TOKENIZER.encode("<｜begin▁of▁sentence｜><｜User｜>1+2<｜Assistant｜>"))
    rollout = (batch.tokens_BT - FIRST).where(counted_BT, 0)
    place = (batch.positions_BT - n_prompt).where(counted_BT, 0)
    return values[rollout, place].where(counted_BT, 0.0)


def ours(
    rolled: Rolled, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[RlStage, list[tuple[float, Tensor]]]:
    """Loss and gradient of each update of our stage; the sampler reports its own log-probs or the old ones."""
    name = {"prompts": P, "group": G, "updates": 1, "sampling": {"max_new_tokens": T}, "rows": {
        "row_tokens": 20, "micro_tokens": 20}, "gate": False}  # fmt: skip
    stage = build(RlStage, {**RL, "kind": "rl", "name": "tiny", **name, **settings}, "test")
    reported = rolled.old if stage.old_logps == "sampler" else rolled.sampler
    monkeypatch.setattr(draw_module, "play", lambda *args: rolled.episodes(reported))
    model = made(deepseek(vocab_size=TOKENIZER.vocab_size))
    rollouts = Rollouts(stage, 1, Sevens(), model, TOKENIZER)
    for module in (rl_module, stage_module):
        monkeypatch.setattr(
            module, "policy_logp", lambda m, batch, _: placed(rolled.old if m is model else rolled.ref, batch)
        )
    out = []
    all_batches = rollouts.step(0).updates
    assert len(all_batches) > 1 or len(all_batches[0]) > 1 or stage.mask_truncated, "several micro-batches or updates"
    for batches in all_batches:
        now = rolled.now.clone().requires_grad_()
        loss = torch.stack([token_loss(placed(now, b), None, b, loss_terms(stage)).loss for b in batches]).sum()
        (gradient,) = torch.autograd.grad(loss, now)
        out.append((loss.item(), gradient))
    return stage, out


def group_advantages(stage: RlStage, reward: np.ndarray) -> Tensor:
    """TRL's, with every group's mean and sample deviation."""
    grouped = reward.reshape(-1, G)
    centred = grouped - grouped.mean(axis=1, keepdims=True)
    if stage.advantage == "group":
        centred = centred / (grouped.std(axis=1, ddof=1, keepdims=True) + 1e-4)
    if stage.advantage == "leave_one_out":
        centred = grouped - (grouped.sum(axis=1, keepdims=True) - grouped) / (G - 1)
    return torch.tensor(centred.reshape(-1), dtype=torch.float32)


def config(stage: RlStage, folder: Path, n: int, kind: str, **more: Any) -> Any:
    """TRL's settings, every one that the loss reads said out loud."""
    trl = pytest.importorskip("trl")  # slow to import, so only where it is used
    return {"grpo": trl.GRPOConfig, "rloo": trl.RLOOConfig}[kind](
        output_dir=str(folder), use_cpu=True, bf16=False, report_to=[],
        per_device_train_batch_size=n, gradient_accumulation_steps=1, steps_per_generation=1, num_iterations=1,
        num_generations=G, max_completion_length=T, temperature=1.0, beta=BETA if stage.kl_weight else 0.0,
        epsilon=stage.clip_low, epsilon_high=stage.cap or stage.clip_high,
        mask_truncated_completions=stage.mask_truncated, **more,
    )  # fmt: skip


class OneProcess:
    """What the losses ask of accelerate."""

    num_processes = 1

    def reduce(self, value: Tensor, reduction: str = "sum") -> Tensor:
        """Nothing to add."""
        return value

    gather = gather_for_metrics = staticmethod(lambda value: value)


def stub(args: Any, now: Tensor, **more: Any) -> SimpleNamespace:
    """A trainer without a model: its log-probs are given."""
    return SimpleNamespace(
        args=args, model=SimpleNamespace(training=True), accelerator=OneProcess(), beta=args.beta,
        epsilon_low=args.epsilon, epsilon_high=args.epsilon_high, aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)}, current_gradient_accumulation_steps=1,
        max_completion_length=args.max_completion_length,
        _get_per_token_logps_and_entropies=lambda *a, **k: (now, torch.zeros_like(now), None), **more,
    )  # fmt: skip


def theirs(rolled: Rolled, stage: RlStage, folder: Path, part: slice = slice(None)) -> Found:
    """TRL's GRPO loss and gradient of these rollouts."""
    trl = pytest.importorskip("trl")
    loss_type = {"gspo": "grpo", None: "dapo"}.get(stage.loss, stage.loss)
    now = rolled.now.clone().requires_grad_()
    mask = (rolled.mask & ~torch.tensor(rolled.truncated & stage.mask_truncated)[:, None])[part]
    args = config(
        stage, folder, len(mask), "grpo", loss_type=loss_type, importance_sampling_level=stage.ratio,
        scale_rewards=stage.advantage, use_bias_correction_kl=stage.kl == "k3_corrected", delta=None,
        off_policy_mask_threshold=stage.off_policy_delta, top_entropy_quantile=1.0, entropy_coef=0.0, use_vllm=False,
    )  # fmt: skip
    trainer = stub(
        args, now[part], loss_type=args.loss_type, importance_sampling_level=args.importance_sampling_level,
        top_entropy_quantile=args.top_entropy_quantile, off_policy_mask_threshold=args.off_policy_mask_threshold,
        use_vllm=stage.correction is not None, vllm_importance_sampling_correction=True, _entropy_bonus_enabled=False,
        get_off_policy_mask=trl.GRPOTrainer.get_off_policy_mask,
    )  # fmt: skip
    ids = torch.ones_like(mask, dtype=torch.long)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask.long(),
        "advantages": group_advantages(stage, rolled.reward)[part], "ref_per_token_logps": rolled.ref[part],
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    on_own = stage.old_logps == "trainer" and stage.updates == 1
    if not on_own:
        inputs["old_per_token_logps"] = rolled.old[part]
    if stage.old_logps == "trainer":
        inputs["sampling_per_token_logps"] = rolled.sampler[part]
        gap = ((rolled.now if on_own else rolled.old) - rolled.sampler)[part] * mask
        inputs["importance_sampling_ratio"] = sampling_ratio(stage, gap)
    loss = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    (gradient,) = torch.autograd.grad(loss, now)
    return loss.item(), gradient


def sampling_ratio(stage: RlStage, gap: Tensor) -> Tensor | None:
    """TRL computes it while it generates (four modes), where no loss can be called: written out."""
    if stage.correction is None:
        return None
    low, high = stage.correction.low, stage.correction.high
    ratio = (gap.sum(dim=-1, keepdim=True) if stage.correction.level == "sequence" else gap).exp()
    if stage.correction.mode == "truncate":
        return ratio.clamp(min=low, max=high)
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)


def assert_same(one: Found, two: Found) -> None:
    """Loss and gradient to 1e-6, and not for want of a gradient."""
    assert one[0] == pytest.approx(two[0], abs=1e-6)
    torch.testing.assert_close(one[1], two[1], atol=1e-6, rtol=0)
    assert two[1].abs().max() > 1e-3


WIDE = {"clip_low": 0.2, "clip_high": 0.28}


@pytest.mark.parametrize("kl", [None, "k3", "k3_corrected"])
@pytest.mark.parametrize(
    "settings",
    [{"loss": "grpo"}, {"loss": "dr_grpo"}, {"loss": "dapo"}, {"loss": "gspo"}, {"loss": "gspo"} | WIDE,
     {"loss": "cispo"}, {"loss": "cispo", "cap": 1.1}, {},
     {"loss": "grpo", "ratio": "sequence", "advantage": "none"} | WIDE],
    ids=str,
)  # fmt: skip
def test_losses(settings: dict[str, Any], kl: str | None, monkeypatch, tmp_path: Path):
    """By name, and with options of their own; the penalty with and without DeepSeek-V3.2's correction."""
    rolled = Rolled()
    penalty = {"kl": kl, "kl_weight": BETA} if kl else {}
    stage, (found,) = ours(rolled, monkeypatch, **settings, **penalty)
    assert_same(found, theirs(rolled, stage, tmp_path))


def test_losses_differ_from_each_other(monkeypatch):
    """So that the test above could tell them apart."""
    found = [
        ours(Rolled(), monkeypatch, loss=name)[1][0][0] for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo")
    ]
    assert len({round(value, 5) for value in found}) == 6


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "cispo"])
def test_truncated_replies_left_out(loss: str, monkeypatch, tmp_path: Path):
    rolled = Rolled(finish_length=(0, 6, 9))
    stage, (found,) = ours(rolled, monkeypatch, loss=loss, mask_truncated=True)
    assert_same(found, theirs(rolled, stage, tmp_path))
    assert (found[1][0] == 0).all()


@pytest.mark.parametrize("old_logps, delta", [("sampler", 0.05), ("trainer", 0.1)])
def test_off_policy_sequences_left_out(old_logps: str, delta: float, monkeypatch, tmp_path: Path):
    """DeepSeek-V3.2's mask goes by the sampler's log-probs."""
    rolled = Rolled()
    settings = {"loss": "grpo", "off_policy_delta": delta, "old_logps": old_logps}
    stage, (found,) = ours(rolled, monkeypatch, **settings)
    assert_same(found, theirs(rolled, stage, tmp_path))
    masked = (found[1] == 0).all(dim=1)[:8]
    assert masked.any() and not masked.all()


@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("updates", [1, 3])
def test_corrected_for_the_sampler(mode: str, level: str, loss: str, updates: int, monkeypatch, tmp_path: Path):
    """Old log-probs are the trainer's: its own in a single update, those of before the step in three."""
    rolled = Rolled()
    settings = {"correction": {"mode": mode, "level": level, "low": 0.5, "high": 1.5}, "old_logps": "trainer"}
    penalty = {"kl": "k3_corrected", "kl_weight": BETA}
    stage, found = ours(rolled, monkeypatch, loss=loss, updates=updates, rows={"row_tokens": 20, "micro_tokens": 20},
                        **settings, **penalty)  # fmt: skip
    assert len(found) == updates
    for number, one in enumerate(found):
        part = slice(None) if updates == 1 else slice(number * G, (number + 1) * G)
        assert_same(one, theirs(rolled, stage, tmp_path, part))


@pytest.mark.parametrize("kl_weight", [0.0, BETA])
def test_rloo(kl_weight: float, monkeypatch, tmp_path: Path):
    """Baseline of the others, penalty in the reward, one ratio of the whole reply."""
    trl = pytest.importorskip("trl")
    rolled = Rolled()
    stage, (found,) = ours(rolled, monkeypatch, loss="rloo", kl_weight=kl_weight)
    args = config(stage, tmp_path, P * G, "rloo", normalize_advantages=False)
    now = rolled.now.clone().requires_grad_()
    kl = ((rolled.old - rolled.ref) * rolled.mask).sum(dim=1)
    advantages = group_advantages(stage, rolled.reward - args.beta * kl.numpy())
    ids = torch.ones_like(rolled.mask, dtype=torch.long)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": rolled.mask.long(),
        "advantages": advantages, "old_logps": (rolled.old * rolled.mask).sum(dim=1),
    }  # fmt: skip
    loss = trl.RLOOTrainer._compute_loss(stub(args, now), None, inputs)
    (gradient,) = torch.autograd.grad(loss, now)
    assert_same(found, (loss.item(), gradient))


@pytest.mark.filterwarnings("ignore:.*experimental")
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_divergences_equal_those_of_gkd(beta: float, monkeypatch: pytest.MonkeyPatch):
    """TRL's generalised Jensen-Shannon divergence, whose ends are forward and reverse KL; values and gradients."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    generator = torch.Generator().manual_seed(1)
    teacher, student = (2 * torch.randn(3, 5, 40, generator=generator) for _ in range(2))
    student.requires_grad_()
    wanted = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=0.7, reduction="none")
    wanted = wanted.sum(dim=-1)
    (gradient,) = torch.autograd.grad(wanted.sum(), student)
    logp, logq = ((logits.detach() / 0.7).log_softmax(-1).flatten(0, 1) for logits in (teacher, student))
    value, slope = compare(logp, logq, beta)
    torch.testing.assert_close(value.view(3, 5), wanted.detach(), atol=1e-6, rtol=1e-5)
    ours = (slope - logq.exp() * slope.sum(dim=1, keepdim=True)) / 0.7
    torch.testing.assert_close(ours.view(3, 5, 40), gradient, atol=1e-6, rtol=1e-5)
