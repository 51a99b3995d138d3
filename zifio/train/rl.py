"""Reinforcement learning with verifiable rewards: GRPO (DeepSeekMath, section 4.1; R1, section 2.2).

One step: draw `group` replies to each of `prompts` problems, let the task judge them, reward right answers and the
agreed shape, subtract each group's mean, and push the log-probs of the replies' tokens along the result. Where this
departs from the papers: rollouts are on policy up to the `updates` of one step; no reference model unless `kl_weight`
is set; replies whose check broke are left out and never count as wrong.

Run alone: `zifio rl recipes/quickstart.toml --stage r1-zero steps=20 --out runs/try`
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import torch
from torch import Tensor

from zifio.config import ConfigError
from zifio.data.pack import Sequence
from zifio.data.template import ChatTokenizer
from zifio.engine.policy import LocalPolicy, open_model
from zifio.models.count import forward_flops
from zifio.models.decoder import Decoder
from zifio.models.lora import bare, folded
from zifio.seed import stream_seed
from zifio.tasks.catalog import make_task
from zifio.tasks.episode import Episode, conversation, play
from zifio.tasks.task import Task
from zifio.train.advantage import group_advantage
from zifio.train.batch import Batch, make_batches
from zifio.train.config import RlStage
from zifio.train.gate import check_gate
from zifio.train.loop import StepData, Trainer, autocast
from zifio.train.loss import LossTerms, token_logp
from zifio.train.stage import Context, finish, prepare


def rl(stage: RlStage, context: Context) -> dict[str, float]:
    """Train the model of `from` on the task's reward and write it to `model/`; returns the stage's totals.

    Raises ConfigError when the gate finds nothing to learn from, or when the verifier breaks too often.
    """
    model, tokenizer = open_model(context.model_of(stage.from_))
    prepare(model, stage, context)
    task = make_task(stage.task or context.task)
    terms = LossTerms(
        stage.clip_low, stage.clip_high, stage.sampling.temperature, balance_weight=stage.balance.loss_weight
    )
    shown = ("reward", "rewards/accuracy/mean", "completions/mean_length", "entropy")
    look = context.look(stage, tokenizer, task)
    trainer = Trainer(model, stage, terms, context.folder, look, shown)
    rollouts = Rollouts(stage, context.seed, task, model, tokenizer)
    if stage.gate and not (context.folder / "checkpoints").exists():
        with folded(model):
            check_gate(stage, rollouts.policy, task, context.seed, context.folder)
    totals = trainer.run(rollouts.step)
    finish(context, model, tokenizer)
    return totals


class Rollouts:
    """Where an RL step's batches come from."""

    def __init__(self, stage: RlStage, seed: int, task: Task, model: Decoder, tokenizer: ChatTokenizer) -> None:
        self.stage, self.task, self.tokenizer = stage, task, tokenizer
        self.seed = stream_seed(seed, "rl", stage.name)
        self.policy = LocalPolicy(model, tokenizer, max_rows=stage.prompts * stage.group)
        self.reference: Decoder | None = None
        if stage.kl_weight:  # under adapters the starting model is still there
            self.reference = copy.deepcopy(model).requires_grad_(False) if stage.lora is None else model

    def step(self, step: int) -> StepData:
        """Sample, judge and weigh: a pure function of the model and the step."""
        stage, began = self.stage, time.perf_counter()
        first = step * stage.prompts
        problems = [self.task.problem("train", first + i, self.seed) for i in range(stage.prompts)]
        with folded(self.policy.model):
            episodes_P_G = play(self.policy, self.task, problems, stage.group, stage.sampling, self.seed, "step", step)
        sample_s = time.perf_counter() - began
        reward_PG, counted_PG = self._rewards(episodes_P_G)
        advantage_PG = group_advantage(reward_PG, counted_PG, stage.advantage)
        metrics = rollout_metrics(episodes_P_G, reward_PG, counted_PG)
        prompts = [self.policy.prompt(conversation(problem)) for problem in problems]
        flops = sum(
            forward_flops(self.policy.model.config, [len(prompt) + len(e.reply.tokens) for e in group])
            for prompt, group in zip(prompts, episodes_P_G, strict=True)
        )
        per_update = stage.prompts // stage.updates
        updates = []
        for start in range(0, stage.prompts, per_update):
            part = slice(start, start + per_update)
            sequences = self._sequences(prompts[part], episodes_P_G[part], advantage_PG[part], counted_PG[part])
            if sequences:
                rows = stage.rows
                batches = make_batches(sequences, rows.row_tokens, rows.micro_tokens, self.tokenizer.pad_id)
                updates.append([self._with_reference(batch) for batch in batches])
        if self.reference is not None:
            flops += sum(forward_flops(self.reference.config, b.lengths) for batches in updates for b in batches)
        return StepData(updates, metrics, {"sample_s": sample_s}, flops)

    def _rewards(self, episodes_P_G: list[list[Episode]]) -> tuple[Tensor, Tensor]:
        """Reward of every rollout, and whether its check worked at all."""
        stage = self.stage
        reward_PG = torch.zeros(len(episodes_P_G), stage.group)
        counted_PG = torch.ones(len(episodes_P_G), stage.group, dtype=torch.bool)
        broken = []
        for p, group in enumerate(episodes_P_G):
            for g, episode in enumerate(group):
                verdict = episode.verdict
                if verdict.outcome == "error":
                    counted_PG[p, g] = False
                    broken.append(verdict.reason)
                    continue
                worth = stage.accuracy_weight * verdict.reward
                reward_PG[p, g] = worth + stage.format_weight * verdict.parts.get("format", 0.0)
        if len(broken) > stage.most_errors * counted_PG.numel():
            raise ConfigError(
                f"{stage.name}: the verifier of {self.task.name} broke on {len(broken)} of {counted_PG.numel()} "
                f"rollouts, more than most_errors = {stage.most_errors:g} allows; for example: {broken[0]}. "
                "Mend the verifier; the last checkpoint is kept."
            )
        return reward_PG, counted_PG

    def _sequences(
        self,
        prompts: list[list[int]],
        episodes_P_G: list[list[Episode]],
        advantage_PG: Tensor,
        counted_PG: Tensor,
    ) -> list[Sequence]:
        """Rollouts as sequences whose reply tokens carry weight, advantage and the sampler's log-probs.

        A rollout with advantage 0 has no gradient, so it is left out (its tokens still count in the mean), unless
        the reference penalty wants it.
        """
        stage = self.stage
        lengths_P_G = [[len(episode.reply.tokens) for episode in group] for group in episodes_P_G]
        n_tokens = sum(map(sum, lengths_P_G))
        n_rollouts = sum(map(len, lengths_P_G))
        sequences = []
        for p, (prompt, group) in enumerate(zip(prompts, episodes_P_G, strict=True)):
            for g, episode in enumerate(group):
                advantage, length = float(advantage_PG[p, g]), len(episode.reply.tokens)
                if not counted_PG[p, g] or (advantage == 0 and not stage.kl_weight):
                    continue
                weight = {
                    "token": 1 / n_tokens,
                    "sequence": 1 / (n_rollouts * length),
                    "constant": 1 / (n_rollouts * stage.sampling.max_new_tokens),
                }[stage.aggregate]
                given = [0.0] * len(prompt)
                columns = {
                    "policy_weight": given + [weight] * length,
                    "advantage": given + [advantage] * length,
                    "old_logp": given + episode.reply.logps,
                }
                if stage.kl_weight:
                    columns["kl_weight"] = given + [weight * stage.kl_weight] * length
                tokens = prompt + episode.reply.tokens
                sequences.append(Sequence(tokens, [0.0] * len(tokens), columns))
        return sequences

    @torch.no_grad()
    def _with_reference(self, batch: Batch) -> Batch:
        """The batch with the starting model's log-probs, when there is a penalty for leaving it."""
        if self.reference is None:
            return batch
        batch = batch.to(self.reference.device)
        with bare(self.reference), autocast(self.reference, self.stage):
            hidden = self.reference(batch.tokens_BT, batch.positions_BT).hidden_BTD
            logp_BT = token_logp(self.reference.logits(hidden) / self.stage.sampling.temperature, batch.tokens_BT)
        return replace(batch, columns={**batch.columns, "reference_logp": logp_BT})


def rollout_metrics(episodes_P_G: list[list[Episode]], reward_PG: Tensor, counted_PG: Tensor) -> dict[str, float]:
    """What to report of a step's rollouts, under TRL's names where it has them; means over checks that worked."""
    episodes = [e for group in episodes_P_G for e in group if e.verdict.outcome != "error"]
    out: dict[str, float] = {"n_verifier_errors": int((~counted_PG).sum())}
    if not episodes:
        return out
    n = len(episodes)
    lengths = {"right": [], "wrong": []}
    for episode in episodes:
        lengths[episode.verdict.outcome].append(len(episode.reply.tokens))
    for outcome, values in lengths.items():
        if values:
            out[f"completions/mean_length_{outcome}"] = sum(values) / len(values)
    for part in sorted({name for e in episodes for name in e.verdict.parts}):
        out[f"rewards/{part}/mean"] = sum(e.verdict.parts.get(part, 0.0) for e in episodes) / n
    rewards = reward_PG[counted_PG]
    lowest_P = reward_PG.masked_fill(~counted_PG, float("inf")).amin(dim=1)
    highest_P = reward_PG.masked_fill(~counted_PG, float("-inf")).amax(dim=1)
    right_PG = torch.tensor([[e.verdict.outcome == "right" for e in group] for group in episodes_P_G])
    if n > 1:
        out["reward_std"] = rewards.std().item()
    return out | {
        "reward": rewards.mean().item(),
        "frac_reward_zero_std": (highest_P <= lowest_P).float().mean().item(),
        "pass_at_1": right_PG[counted_PG].float().mean().item(),
        "pass_at_group": right_PG.any(dim=1).float().mean().item(),
        "completions/mean_length": sum(map(sum, lengths.values())) / n,
        "completions/clipped_ratio": sum(e.reply.finish == "length" for e in episodes) / n,
    }
