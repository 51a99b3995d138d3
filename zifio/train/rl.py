"""Reinforcement learning with verifiable rewards: GRPO (DeepSeekMath, section 4.1; R1, section 2.2) and its kin.

One step: draw `group` replies to each of `prompts` problems, let the task judge them (`draw.py`), reward right answers
and the agreed shape, subtract each group's mean (`advantage.py`), and push the log-probs of the replies' tokens along
the result (`loss.py`). Where this departs from the papers: rollouts are on policy up to the `updates` of one step, or
one step behind when drawn beside the training; no reference model unless `kl_weight` is set; replies whose check broke
are left out and never count as wrong.

Run alone: `zifio rl recipes/quickstart.toml --stage r1-zero steps=20 --out runs/try`
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zifio.config import ConfigError
from zifio.data.pack import Sequence
from zifio.data.template import ChatTokenizer
from zifio.engine.config import EngineConfig
from zifio.engine.pictures import picture_prompt
from zifio.engine.policy import LocalPolicy, open_model, sampling_flops
from zifio.engine.scorer import Scorer, load_scorer
from zifio.models.count import forward_flops
from zifio.models.decoder import Decoder
from zifio.models.device import Precision, sampling_precision
from zifio.models.janus import Janus
from zifio.models.lora import folded
from zifio.tasks.catalog import make_task
from zifio.tasks.environment import tools_of
from zifio.tasks.episode import Episode, conversation
from zifio.tasks.task import Problem, Task
from zifio.train.advantage import group_advantage, process_advantage
from zifio.train.batch import Batch, make_batches
from zifio.train.config import RlStage
from zifio.train.draw import Drawing, Drawn, Rewarder, rewards
from zifio.train.gate import check_gate
from zifio.train.guard import Watch
from zifio.train.loop import StepData, Trainer, autocast
from zifio.train.loss import LossTerms, policy_logp
from zifio.train.process import StepRewards
from zifio.train.reward_model import ModelReward, Scale
from zifio.train.stage import Context, finish, prepare, reference_logp, starting_model


def rl(stage: RlStage, context: Context) -> dict[str, float]:
    """Train the model of `from` on the task's reward and write it to `model/`; returns the stage's totals.

    Raises ConfigError when the gate finds nothing to learn from, when the verifier breaks too often, or when routing
    is to be replayed and the model has no experts.
    """
    model, tokenizer = open_model(context.model_of(stage.from_))
    prepare(model, stage, context)
    task = make_task(stage.task or context.task)
    scorers = {key: load_scorer(context.model_of(name), stage.device) for key, name in stage.scorers.items()}
    rollouts = Rollouts(stage, context.seed, task, model, tokenizer, scorers, context.folder)
    shown = ("reward", "rewards/accuracy/mean", "completions/mean_length", "entropy")
    look = context.look(stage, tokenizer, task)
    trainer = Trainer(model, stage, loss_terms(stage), context.folder, look, shown, rollouts)
    if stage.gate and stage.accuracy_weight and not (context.folder / "checkpoints").exists():
        with folded(model):
            check_gate(stage, rollouts.policy, rollouts.drawing.task(), context.seed, context.folder)
    totals = trainer.run(rollouts.step)
    if rollouts.watch is not None:
        if rollouts.watch.is_due(stage.steps) and not rollouts.has_ended:
            metrics, flops, _ = rollouts.watch.look(stage.steps, rollouts.policy)
            totals["look_flops"] += flops
            trainer.log.metrics(stage.steps, metrics)
        totals |= rollouts.watch.summary()
    if rollouts.model_reward is not None:
        totals |= rollouts.model_reward.summary()
    finish(context, model, tokenizer)
    return totals


def loss_terms(stage: RlStage) -> LossTerms:
    """What the stage's settings mean for the loss."""
    return LossTerms(
        stage.clip_low,
        stage.clip_high,
        stage.sampling.temperature,
        balance_weight=stage.balance.loss_weight,
        ratio=stage.ratio,
        cap=stage.cap,
        kl=stage.kl,
        correction=stage.correction,
        off_policy_delta=stage.off_policy_delta,
    )


def step_advantages(stage: RlStage, group: list[Episode]) -> list[list[float]]:
    """For every reply of a group the advantage of each token (DeepSeekMath, section 4.1.3), from the rewards of its
    steps and, at its last token, the rest: outcome, shape and length. Replies whose check broke take no part."""
    counted = [place for place, episode in enumerate(group) if episode.verdict.outcome != "error"]
    out = [[0.0] * len(episode.reply.tokens) for episode in group]
    (rest_G,) = rewards(stage, [group])[0].tolist()
    values, ends, lengths = [], [], []
    for place in counted:
        steps, last = group[place].steps, len(group[place].reply.tokens) - 1
        rest = rest_G[place] - stage.accuracy_weight * sum(reward for _, reward in steps)
        values.append([stage.accuracy_weight * reward for _, reward in steps] + [rest])
        ends.append([end for end, _ in steps] + [last])
        lengths.append(last + 1)
    scale = "none" if stage.advantage == "none" else "group"
    for place, tokens in zip(counted, process_advantage(values, ends, lengths, scale), strict=True):
        out[place] = tokens
    return out


class Rollouts:
    """Where an RL step's batches come from; implements `loop.Memory`."""

    def __init__(
        self,
        stage: RlStage,
        seed: int,
        task: Task,
        model: Decoder,
        tokenizer: ChatTokenizer,
        scorers: Mapping[str, Scorer] = MappingProxyType({}),
        folder: Path = Path(),
        given: Items[Problem] = (),
    ) -> None:
        """`scorers` are the stage's reward models by their keys; the guard writes to `folder`. Of the task's own
        problems, or of those `given`.

        Raises ConfigError when the task cannot follow the curriculum, when its steps or replies cannot be rewarded, or
        a dense model is to replay its routing.
        """
        self.stage, self.tokenizer = stage, tokenizer
        rewarders: list[Rewarder] = []
        if stage.process:
            rewarders.append(StepRewards(stage.process, task, tokenizer, scorers.get("process.by"), stage.name))
        self.model_reward = ModelReward(stage, task, scorers["reward_model"]) if stage.reward_model else None
        if self.model_reward is not None:
            rewarders.append(self.model_reward)
        self.drawing = Drawing(stage, seed, task, given, rewarders)
        self.watch = Watch(stage, stage.guard, seed, task, rewarders, folder) if stage.guard else None
        self.has_ended = False
        """Whether the guard has ended the stage."""
        is_replay = stage.routing == "replay"
        if is_replay and not model.routers():
            raise ConfigError(
                f'{stage.name}: routing="replay": wanted a model with experts, came one without. Set routing = "own".'
            )
        wanted: dict[str, Any] = {"record_routing": True} if is_replay else {}
        if stage.asynchronous:  # no graph may be recorded while another thread trains on the same GPU
            wanted["cuda_graphs"] = False
        settings = stage.engine.model_copy(update=wanted)
        self.precision: Precision = sampling_precision(stage.precision, model.device)
        self.tools = tools_of(task)
        self.policy = self._policy(model, settings)
        self.reference = starting_model(model, stage) if stage.kl_weight else None
        self.background = ThreadPoolExecutor(1) if stage.asynchronous else None
        self.next: Future[Drawn] | None = None
        """The rollouts of the step to come, when they are drawn beside the training."""

    def _policy(self, model: Decoder, settings: EngineConfig) -> LocalPolicy:
        """Whoever draws with these weights; an episode in turns must fit a row."""
        stage = self.stage
        every = None if "max_rows" in stage.engine.model_fields_set else stage.prompts * stage.group
        policy = LocalPolicy(model, self.tokenizer, every, settings, self.precision)
        policy.longest = stage.rows.row_tokens
        return policy

    def step(self, step: int) -> StepData:
        """Draw and weigh: a pure function of the model, the step and what `state` tells.

        With `asynchronous` the rollouts come from the weights before the last step's updates; those of the next step
        are begun here, before this one's updates.
        """
        seen, spent = {}, self._settle()
        if self.watch is not None and self.watch.is_due(step):
            seen, looking, self.has_ended = self.watch.look(step, self.policy)
            spent += looking
            if self.has_ended:
                return StepData([], seen, flops=spent, is_last=True)
        drawn = self._drawn(step)
        updates, metrics, flops = self.weighed(drawn.episodes_P_G)
        seconds = {"sample_s": drawn.seconds}
        return StepData(updates, seen | drawn.metrics | metrics, seconds, spent + drawn.flops + flops)

    def _settle(self) -> float:
        """Find the reward model's scale, once, by what the starting model says to the first step's problems; the
        FLOPs of that."""
        if self.model_reward is None or self.model_reward.scale is not None:
            return 0.0
        groups = self.drawing.first_round(self.policy)
        return self.model_reward.settle(groups) + sampling_flops(self.policy, self.drawing.task(), groups)

    def state(self) -> dict[str, Any]:
        """The difficulty, the reward model's scale, and the rollouts of the next step where they are drawn already
        (waits for them)."""
        drawn = self.next.result().to_json() if self.next else None
        difficulty = self.drawing.difficulty
        looks = self.watch.looks if self.watch else []
        scale = self.model_reward.scale if self.model_reward else None
        value = difficulty.value if difficulty else None
        return {"next": drawn, "difficulty": value, "looks": looks, "scale": scale}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        if state["next"] is not None:
            self.next = Future()
            self.next.set_result(Drawn.from_json(state["next"]))
        if self.drawing.difficulty:
            self.drawing.difficulty.value = state["difficulty"]
        if self.watch:
            self.watch.looks = state["looks"]
        if self.model_reward and state["scale"] is not None:
            self.model_reward.scale = Scale(*state["scale"])

    def _drawn(self, step: int) -> Drawn:
        if self.background is None:
            return self.drawing.draw(step, self.policy)
        drawn = self.next.result() if self.next else self.drawing.draw(step, self.policy)
        self.next = None
        if step + 1 < self.stage.steps:
            engine = self.policy.engine
            before = self._policy(copy.deepcopy(engine.model), engine.settings)
            self.next = self.background.submit(self.drawing.draw, step + 1, before)
        return drawn

    def weighed(self, episodes_P_G: list[list[Episode]]) -> tuple[list[list[Batch]], dict[str, float], float]:
        """(updates, metrics, FLOPs) that follow from rollouts: rewards, advantages, weights, log-probs to compare."""
        stage = self.stage
        reward_PG, counted_PG = rewards(stage, episodes_P_G)
        metrics, flops = {}, 0.0
        if self.reference is not None and stage.kl_in == "reward" and episodes_P_G:
            kl_PG, flops = self._reward_kl(episodes_P_G)
            metrics["kl"] = kl_PG.sum().item() / sum(e.reply.n_sampled for group in episodes_P_G for e in group)
            reward_PG = reward_PG - stage.kl_weight * kl_PG
        advantage_PG = group_advantage(reward_PG, counted_PG, stage.advantage)
        by_step = stage.process is not None and stage.process.credit == "step"
        by_token_P_G = [step_advantages(stage, group) for group in episodes_P_G] if by_step else None
        per_update = stage.prompts // stage.updates
        updates = []
        for start in range(0, len(episodes_P_G), per_update):
            part = slice(start, start + per_update)
            by_token = by_token_P_G[part] if by_token_P_G is not None else None
            sequences = self._sequences(episodes_P_G[part], advantage_PG[part], counted_PG[part], by_token)
            if sequences:
                batches = [self._with_logps(batch) for batch in self._batches(sequences)]
                updates.append([batch for batch, _ in batches])
                flops += sum(more for _, more in batches)
        return updates, metrics, flops

    def _sequences(
        self,
        episodes_P_G: list[list[Episode]],
        advantage_PG: Tensor,
        counted_PG: Tensor,
        by_token_P_G: list[list[list[float]]] | None = None,
    ) -> list[Sequence]:
        """Rollouts as sequences whose sampled tokens carry weight, advantage and the sampler's log-probs.

        With `by_token_P_G` every token has an advantage of its own. A rollout with advantage 0 has no gradient, so it
        is left out (its tokens still count in the mean), unless the reference penalty wants it.
        """
        stage = self.stage
        in_loss = stage.kl_weight if stage.kl_in == "loss" else 0.0
        taking_part_P_G = [
            [not (stage.mask_truncated and e.reply.finish == "length") for e in group] for group in episodes_P_G
        ]
        rollouts = [(p, g, e) for p, group in enumerate(episodes_P_G) for g, e in enumerate(group)]
        n_tokens = sum(e.reply.n_sampled for p, g, e in rollouts if taking_part_P_G[p][g])
        sequences = []
        for p, g, episode in rollouts:
            advantage, length = float(advantage_PG[p, g]), episode.reply.n_sampled
            by_token = by_token_P_G[p][g] if by_token_P_G is not None else None
            is_idle = advantage == 0 if by_token is None else not any(by_token)
            if not counted_PG[p, g] or not taking_part_P_G[p][g] or (is_idle and not in_loss):
                continue
            weight = {
                "token": 1 / n_tokens,
                "sequence": 1 / (len(rollouts) * length),
                "constant": 1 / (len(rollouts) * stage.sampling.max_new_tokens),
            }[stage.aggregate]
            values = {"policy_weight": weight, "advantage": advantage}
            if in_loss:
                values["kl_weight"] = weight * in_loss
            sequence = self._sequence(episode, values)
            if by_token is not None:
                sequence.columns["advantage"][-len(by_token) :] = by_token
            sequences.append(sequence)
        return sequences

    def _sequence(self, episode: Episode, values: dict[str, float]) -> Sequence:
        """A rollout with these values on its sampled tokens, the sampler's log-probs, and its experts if recorded.

        What the policy was told, before its first turn and between turns, has 0 in every column.
        """
        asked = picture_prompt(self.policy.model, self.tokenizer, conversation(episode.problem), self.tools)
        reply, prompt = episode.reply, asked.tokens
        name = "old_logp" if self.stage.old_logps == "sampler" else "sampler_logp"
        given = [0.0] * len(prompt)
        columns = {key: given + [value if own else 0.0 for own in reply.own] for key, value in values.items()}
        columns[name] = given + reply.logps
        tokens, experts = prompt + reply.tokens, reply.experts_NLA
        if experts is not None:  # behind its last token nothing was sampled, so nobody knows where that would have gone
            missing = len(tokens) - len(experts)
            experts = np.pad(experts, ((0, missing), (0, 0), (0, 0)), constant_values=-1)
        weight = [0.0] * len(tokens)
        if asked.pixels:  # prompts with pictures are not shared
            assert isinstance(self.policy.model, Janus), "`picture_prompt` has refused others"
            shape = self.policy.model.shape.vision_config
            patches = (self.policy.model.first_patch, shape.num_image_tokens)
            return Sequence(tokens, weight, columns, 0, experts, np.stack(asked.pixels), patches)
        return Sequence(tokens, weight, columns, len(prompt), experts)

    def _batches(self, sequences: list[Sequence]) -> list[Batch]:
        rows = self.stage.rows
        batches = make_batches(sequences, rows.row_tokens, rows.micro_tokens, self.tokenizer.pad_id)
        return [batch.to(self.policy.model.device) for batch in batches]

    def _with_logps(self, batch: Batch) -> tuple[Batch, float]:
        """The batch with log-probs that take a forward pass of their own, and the FLOPs of that.

        The starting model's, when the loss has a penalty for leaving it; the trainer's own, when the ratio starts from
        them and a later update can no longer tell them from its own (in a single update they are the same).
        """
        stage, temperature, columns, flops = self.stage, self.stage.sampling.temperature, {}, 0.0
        if self.reference is not None and stage.kl_in == "loss":
            columns["reference_logp"] = self._reference_logp(batch)
        if stage.old_logps == "trainer" and stage.updates > 1:
            with autocast(self.policy.model, stage):
                columns["old_logp"] = policy_logp(self.policy.model, batch, temperature)
        flops = len(columns) * forward_flops(self.policy.model.config, batch.lengths, firsts=batch.firsts)
        return replace(batch, columns={**batch.columns, **columns}), flops

    def _reference_logp(self, batch: Batch) -> Tensor:
        assert self.reference is not None
        return reference_logp(self.reference, self.stage, batch, self.stage.sampling.temperature)

    def _reward_kl(self, episodes_P_G: list[list[Episode]]) -> tuple[Tensor, float]:
        """([P, G], FLOPs): each rollout's log-prob under the sampler minus that under the starting model (k1)."""
        assert self.reference is not None
        episodes = [episode for group in episodes_P_G for episode in group]
        sequences = [self._sequence(e, {"policy_weight": 1.0}) for e in episodes]
        kl, flops = torch.zeros(len(episodes)), 0.0
        for batch in self._batches(sequences):
            sampler_BT = batch.columns["old_logp" if self.stage.old_logps == "sampler" else "sampler_logp"]
            gap_BT = sampler_BT - self._reference_logp(batch)
            pieces = gap_BT[batch.real_BT].split(list(batch.lengths))
            kl[list(batch.order)] = torch.stack([piece.sum() for piece in pieces]).cpu()
            flops += forward_flops(self.reference.config, batch.lengths, firsts=batch.firsts)
        return kl.view(len(episodes_P_G), -1), flops
