"""The one training loop: a stage says where step s's batches come from; everything else is here.

A step is a pure function of (model, step): data and random numbers are named by the step, so a run that is killed and
started again goes on bit for bit. Between steps a checkpoint holds the model, the optimizer, the running totals and
whatever little the stage has to remember.

Numbers that repeat exactly go to metrics.jsonl; seconds, speed and memory to timing.jsonl.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from zifio.checkpoint import Resume, load_checkpoint, save_checkpoint
from zifio.config import ConfigError
from zifio.log import Progress, RunFolder, peak_rss_bytes
from zifio.models.captioner import Captioner
from zifio.models.classifier import Classifier
from zifio.models.count import (
    captioner_flops,
    classifier_flops,
    code_flops,
    forward_flops,
    parameters,
    vision_flops,
    vq_flops,
)
from zifio.models.decoder import Decoder
from zifio.models.janus import Janus
from zifio.models.lora import adapters, folded
from zifio.models.vq import Vq
from zifio.models.weights import AnyModel
from zifio.train.batch import Batch
from zifio.train.config import ModelStage
from zifio.train.loss import LossResult, LossTerms, batch_loss
from zifio.train.optim import Optimizer


class Diverged(RuntimeError):
    """The loss or the gradient is no longer finite; the message says at which step and what to try."""


@dataclass
class StepData:
    """What one step trains on."""

    updates: list[list[Batch]]
    """One optimizer update for each list of micro-batches."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the stage itself reports of the step."""
    timing: dict[str, float] = field(default_factory=dict)
    """Seconds of the stage's own parts."""
    flops: float = 0.0
    """FLOPs spent beside training (sampling, reference log-probs, a teacher)."""
    teacher_flops: float = 0.0
    """Those of them that a teacher spent."""
    is_last: bool = False
    """Whether the stage ends with this step, however many it was to have."""


Source = Callable[[int], StepData]


@runtime_checkable
class Memory(Protocol):
    """What a stage remembers from one step to the next beside the model; it goes into every checkpoint."""

    def state(self) -> dict[str, Any]:
        """All of it, as JSON holds it without loss."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        ...


Look = Callable[[Any, int], tuple[dict[str, float], float]]
"""Evaluate on held-out problems: (the trained model, step) -> (metrics, FLOPs)."""


@dataclass
class Trainer:
    """One stage's training: its model, its settings and where it writes."""

    model: AnyModel
    stage: ModelStage
    terms: LossTerms
    folder: Path
    look: Look | None = None
    shown: tuple[str, ...] = ("loss",)
    """Metrics that stand beside the progress bar."""
    memory: Memory | None = None

    def run(self, batches: Source) -> dict[str, float]:
        """Train to the last step, going on from a checkpoint when there is one; returns the stage's totals.

        Raises Diverged when the loss is not finite; the last checkpoint stays.
        """
        self.log = RunFolder(self.folder)
        if isinstance(self.model, Decoder):
            self.model.recompute = self.stage.rows.recompute
        self.optimizer = Optimizer(self.model, self.stage.optim)
        start, totals = self._resume()
        with Progress(self.stage.name, self.stage.steps, done=start) as progress, stop_between_steps() as stopping:
            if start == 0:
                self._look(0, totals)
            for step in range(start, self.stage.steps):
                began = time.perf_counter()
                data = batches(step)
                metrics = self._updates(data, step)
                is_last = data.is_last or step + 1 == self.stage.steps
                if not data.updates or is_last:
                    self._check_weights(step)  # no loss will do it
                totals["flops"] += data.flops + metrics.pop("train_flops")
                if data.teacher_flops:
                    totals["teacher_flops"] = totals.get("teacher_flops", 0.0) + data.teacher_flops
                totals["tokens"] += metrics["n_tokens"]
                self.log.metrics(step + 1, {**data.metrics, **metrics, "flops": totals["flops"]})
                self._time(step + 1, time.perf_counter() - began, metrics["n_tokens"], data.timing, totals)
                self._look(step + 1, totals)
                shown = {**data.metrics, **metrics}
                progress.update(step + 1, {key: shown[key] for key in self.shown if key in shown})
                if stopping.is_set() or (not is_last and (step + 1) % self.stage.checkpoint_every == 0):
                    self._save(step + 1, totals)
                if stopping.is_set():
                    raise KeyboardInterrupt
                if is_last:
                    break
        return totals

    def _resume(self) -> tuple[int, dict[str, float]]:
        resume: Resume | None = load_checkpoint(self.folder / "checkpoints", self.model)
        if resume is None:
            self.log.truncate(-1)
            return 0, {"flops": 0.0, "tokens": 0, "seconds": 0.0, "look_flops": 0.0}
        self.optimizer.load_state(resume.optimizer)
        self.log.truncate(resume.step)
        if self.memory is not None:
            self.memory.load_state(resume.state["memory"])
        return resume.step, resume.state["totals"]

    def _save(self, step: int, totals: dict[str, float]) -> None:
        self._check_weights(step - 1)
        folder = self.folder / "checkpoints"
        memory = {} if self.memory is None else {"memory": self.memory.state()}
        save_checkpoint(folder, step, self.model, self.optimizer.state(), {"totals": totals, **memory})

    def _updates(self, data: StepData, step: int) -> dict[str, float]:
        """All optimizer updates of one step; returns the means of their metrics."""
        n_updates = len(data.updates)
        collected: dict[str, float] = {"n_tokens": 0, "train_flops": 0.0}
        for batches in data.updates:
            results = self._gradients(batches, step)
            norm = self.optimizer.clip()
            if not math.isfinite(norm):
                raise Diverged(self._advice(step, f"the gradient's norm is {norm}"))
            lr = self.optimizer.step(step, self.stage.steps)
            load_LE = _total_load(results)
            if isinstance(self.model, Decoder) and not adapters(self.model):  # else its base stays as it is
                self.model.update_balance(load_LE, self.stage.balance.bias_speed)
            collected["n_tokens"] += sum(batch.n_tokens for batch in batches)
            collected["train_flops"] += sum(map(self._flops, batches))
            for key, value in _means(results, load_LE).items():
                collected[key] = collected.get(key, 0.0) + value / n_updates
            collected["grad_norm"] = collected.get("grad_norm", 0.0) + norm / n_updates
            collected["learning_rate"] = lr
        return collected

    def _gradients(self, batches: list[Batch], step: int) -> list[LossResult]:
        n_sequences = sum(batch.n_sequences for batch in batches)
        results = []
        for batch in batches:
            with autocast(self.model, self.stage):
                share = batch.n_sequences / n_sequences
                result = batch_loss(self.model, batch.to(self.model.device), self.terms, share)
            if not torch.isfinite(result.loss):
                raise Diverged(self._advice(step, f"the loss is {result.loss.item()}"))
            result.loss.backward()
            result.loss = result.loss.detach()
            results.append(result)
        return results

    def _flops(self, batch: Batch) -> float:
        """Of a forward and a backward pass: three times the forward one, without the gradients of frozen weights."""
        if isinstance(self.model, Vq):
            return 3 * vq_flops(self.model.config) * batch.n_sequences
        if isinstance(self.model, Classifier):
            return 3 * classifier_flops(self.model.config) * batch.n_sequences
        if isinstance(self.model, Captioner):
            return 3 * captioner_flops(self.model.config) * batch.n_sequences
        if isinstance(self.model, Janus):
            return self._janus_flops(self.model, batch)
        flops = 3 * forward_flops(self.model.config, batch.lengths, self.terms.mtp_weight > 0, batch.firsts)
        n_adapter = sum(p.numel() for p in self.optimizer.named.values()) if adapters(self.model) else 0
        if n_adapter:
            flops += 2.0 * batch.n_tokens * (3 * n_adapter - parameters(self.model.config).multiplied)
        return flops

    def _janus_flops(self, model: Janus, batch: Batch) -> float:
        """The same of all parts of a Janus: the decoder hands gradients on also where it is frozen."""
        shape, trained = model.shape, {name.partition(".")[0] for name in self.optimizer.named}
        is_code_BT = (batch.tokens_BT >= model.first_code) & (batch.tokens_BT < model.first_patch) & batch.real_BT
        decoder = forward_flops(model.config, batch.lengths, firsts=batch.firsts)
        pictures = 0.0 if batch.pixels_MUYX is None else len(batch.pixels_MUYX) * vision_flops(shape.vision_config)
        codes = 3 * int(is_code_BT.sum()) * code_flops(shape.vq_config)
        return (3 if "layers" in trained else 2) * decoder + (3 if "vision_model" in trained else 1) * pictures + codes

    def _check_weights(self, step: int) -> None:
        """Raise Diverged rather than keep weights that are not finite."""
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise Diverged(self._advice(step, f"{name} is no longer finite"))

    def _advice(self, step: int, what: str) -> str:
        return (
            f"{self.stage.name}: {what} at step {step + 1}. Checkpoints and finished stages are kept. Try a lower "
            f"optim.lr (now {self.stage.optim.lr:g}), more optim.warmup_steps (now {self.stage.optim.warmup_steps}) "
            f"or a lower optim.clip (now {self.stage.optim.clip:g}): change the recipe and start this stage "
            f"alone over with its own verb, --stage {self.stage.name} --fresh."
        )

    def _look(self, step: int, totals: dict[str, float]) -> None:
        """Evaluate on held-out problems when the step asks for it; its FLOPs are kept apart from training's."""
        every = self.stage.held_out.every
        if self.look is None or not every or (step % every and step != self.stage.steps):
            return
        began = time.perf_counter()
        with folded(self.model) if isinstance(self.model, Decoder) else contextlib.nullcontext():
            metrics, flops = self.look(self.model, step)
        totals["look_flops"] += flops
        self.log.metrics(step, {f"held_out/{key}": value for key, value in metrics.items()})
        totals["seconds"] += time.perf_counter() - began

    def _time(
        self, step: int, seconds: float, n_tokens: float, parts: dict[str, float], totals: dict[str, float]
    ) -> None:
        totals["seconds"] += seconds
        self.log.timing(
            step,
            {
                "step_s": seconds,
                "tokens_per_s": n_tokens / seconds,
                "peak_rss_bytes": peak_rss_bytes(),
                **parts,
            },
        )


def autocast(model: AnyModel, stage: ModelStage) -> torch.autocast:
    """Matrix products in bfloat16 where the stage asks for them; the weights stay in fp32."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=stage.precision == "bf16")


@contextlib.contextmanager
def stop_between_steps() -> Generator[threading.Event, None, None]:
    """Turn the first Ctrl-C or SIGTERM into an event, so that the step can end and be saved; the second is final."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping  # only the main thread may handle signals
        return

    def on_interrupt(*_: object) -> None:
        restore()
        stopping.set()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, on_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        restore()


def _total_load(results: list[LossResult]) -> list[Tensor]:
    """Tokens per expert and layer, summed over the micro-batches of a step."""
    return [torch.stack(per_layer).sum(dim=0) for per_layer in zip(*(r.load_LE for r in results), strict=True)]


# Sums over the tokens of the policy term, and what their means are called (TRL's names, so that scripts transfer).
_PER_TOKEN = {
    "clipped": "clip_ratio",
    "entropy": "entropy",
    "kl": "kl",
    "logp_gap": "sampling/sampling_logp_difference/mean",
    "correction": "sampling/importance_sampling_ratio/mean",
    "off_policy": "off_policy_mask_ratio",
}


def _means(results: list[LossResult], load_LE: list[Tensor]) -> dict[str, float]:
    """Metrics of one update: weighted terms are sums, per-token quantities are divided by their tokens."""
    sums: dict[str, float] = {}
    for result in results:
        for key, value in result.sums.items():
            sums[key] = max(sums.get(key, 0.0), value) if key.endswith("_max") else sums.get(key, 0.0) + value
    out = {"loss": sum(result.loss.item() for result in results)}
    n_policy = sums.pop("n_policy_tokens", 0.0)
    for key, name in _PER_TOKEN.items():
        if key in sums and n_policy:
            out[name] = sums.pop(key) / n_policy
    if "logp_gap_max" in sums:
        out["sampling/sampling_logp_difference/max"] = sums.pop("logp_gap_max")
    out |= sums
    for layer, load_E in enumerate(load_LE):
        out[f"expert_load/{layer}/max_over_mean"] = (load_E.max() / load_E.mean()).item()
        for expert, share in enumerate((load_E / load_E.sum()).tolist()):
            out[f"expert_load/{layer}/{expert}"] = share
    return out


def check_context(model: Decoder, longest: int, what: str) -> None:
    """Raise ConfigError when a sequence would not fit the model's context."""
    context = model.config.max_position_embeddings
    if longest > context:
        raise ConfigError(
            f"max_position_embeddings={context} is shorter than the {longest} tokens of {what}. "
            f"Set it to {longest} or more, or use shorter problems."
        )
