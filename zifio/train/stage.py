"""What every training stage needs of the recipe around it, and the few steps that all of them share."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from zifio.checkpoint import with_manifest
from zifio.config import ConfigError, EndpointSettings
from zifio.data.pack import Sequence
from zifio.data.sources import read_jsonl, write_jsonl
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import save_tokenizer
from zifio.engine.policy import check_fit
from zifio.log import RunFolder, peak_rss_bytes, say
from zifio.models.config import AnyConfig
from zifio.models.decoder import Decoder
from zifio.models.device import find_device
from zifio.models.janus import Janus
from zifio.models.lora import adapters, apply, bare, merge, save_adapter
from zifio.models.weights import save_model
from zifio.seed import stream_seed
from zifio.tasks.catalog import TaskConfig
from zifio.tasks.environment import Message
from zifio.tasks.episode import Policy
from zifio.tasks.task import Task
from zifio.train.batch import Batch
from zifio.train.config import Conversations, ModelStage, RlStage
from zifio.train.feedback import DpoStage
from zifio.train.loop import Look, autocast
from zifio.train.loss import policy_logp


def _nobody(url: str, model: str, settings: EndpointSettings, forgiving: bool) -> AbstractContextManager[Policy]:
    raise ConfigError(f"{url}: wanted an endpoint, and this run can reach none. Name a model of the recipe instead.")


@dataclass(frozen=True)
class Context:
    """Where a stage stands: its folder, the recipe's seed and task, and how to find other stages' results."""

    folder: Path
    seed: int
    task: TaskConfig
    model_of: Callable[[str], Path]
    """Folder of the model that a stage made, or of a checkpoint given by path."""
    data_of: Callable[[str], Path]
    """JSONL file that a stage made, or one given by path."""
    look: Callable[[ModelStage, ChatTokenizer, Task], Look]
    """Makes the evaluation that the loop calls now and then (training may not import `evaluate`)."""
    endpoint: Callable[[str, str, EndpointSettings, bool], AbstractContextManager[Policy]] = _nobody
    """A model behind a URL, by its name there, to be closed after use (training may not import `evaluate`). Where it is
    forgiving, a reply that does not come is one with a fault, else an error."""


def new_model(config: AnyConfig, tokenizer: ChatTokenizer, seed: int) -> Decoder:
    """A model from random weights whose vocabulary is the tokenizer's.

    Raises ConfigError when the shape names another, smaller vocabulary, or a head that predicts no tokens.
    """
    if config.num_labels is not None:
        raise ConfigError(
            f"model.num_labels: wanted none for a model that is to write, came {config.num_labels}. Leave it out; a "
            "`prm` or `reward` stage gives a model its scores."
        )
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    size = {"vocab_size": config.vocab_size or tokenizer.vocab_size}
    model = Decoder(config.model_copy(update=ids | size), seed)
    check_fit(model, tokenizer, "model.vocab_size")
    return model


def prepare(model: Decoder, stage: ModelStage, context: Context) -> None:
    """Put adapters round the model's layers where the stage asks for them, and the model where it is to train.

    Raises ConfigError when an adapter's target matches no layer, or when there is no such device.
    """
    if isinstance(stage, Conversations | RlStage | DpoStage) and stage.lora is not None:
        apply(model, stage.lora, stream_seed(context.seed, "lora", stage.name))
        total = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        say(f"{stage.name}: adapters on {len(adapters(model))} layers; {trained:,} of {total:,} weights train")
    if isinstance(model, Janus):  # codes mean what they meant when drawings were learnt
        model.vqmodel.requires_grad_(False)
    model.to(find_device(stage.device, stage.name))


def starting_model(model: Decoder, stage: RlStage | DpoStage) -> Decoder:
    """The model as it is before the first step, for later ones to be compared with; adapters leave it where it is."""
    return model if stage.lora is not None else copy.deepcopy(model).requires_grad_(False)


def reference_logp(reference: Decoder, stage: RlStage | DpoStage, batch: Batch, temperature: float) -> Tensor:
    """Log-probs of the starting model, which under adapters is the model without them; it routes by itself."""
    with bare(reference), autocast(reference, stage):
        return policy_logp(reference, replace(batch, experts_BTLA=None), temperature)


def finish(context: Context, model: Decoder, tokenizer: ChatTokenizer) -> None:
    """Write the stage's result as `model/`, a folder that transformers opens.

    Adapters are written beside it, as `adapter/` in PEFT's format, and merged.
    """
    if adapters(model):
        with_manifest(context.folder / "adapter", lambda beside: save_adapter(model, beside))
        merge(model)

    def write(beside: Path) -> None:
        save_model(model, beside)
        save_tokenizer(tokenizer, beside)

    with_manifest(context.folder / "model", write)


class Parts:
    """The rows of a stage that works in parts: each is written whole, behind its figures, so that a killed run goes on
    behind the last part."""

    def __init__(self, folder: Path) -> None:
        """Of the stage in this folder; figures of a part that is not there are taken back."""
        self.log, self.folder = RunFolder(folder), folder / "parts"
        self.n_done = len(list(self.folder.glob("part-*.jsonl")))
        self.log.truncate(self.n_done)

    def path(self, number: int) -> Path:
        """Where the rows of a part are, from 0."""
        return self.folder / f"part-{number:05d}.jsonl"

    def rows(
        self, number: int, make: Callable[[], tuple[list[dict[str, Any]], dict[str, float]]]
    ) -> list[dict[str, Any]]:
        """The rows of a part, which `make` gives where it is not there yet, with figures for metrics.jsonl: `n_tokens`
        among them, and `part_flops` where somebody knows."""
        path = self.path(number)
        if not path.exists():
            began = time.perf_counter()
            rows, figures = make()
            self.log.metrics(number + 1, figures)
            seconds = time.perf_counter() - began
            speed = {"step_s": seconds, "tokens_per_s": figures["n_tokens"] / seconds}
            self.log.timing(number + 1, {**speed, "peak_rss_bytes": peak_rss_bytes()})
            write_jsonl(path, rows)  # last of all, so that a part which is there has its numbers too
        return read_jsonl(path)

    def totals(self) -> dict[str, float]:
        """What all parts took."""
        lines, seconds = self.log.read_metrics(), [line["step_s"] for line in self.log.read_timing()]
        flops, tokens = (sum(line.get(key, 0) for line in lines) for key in ("part_flops", "n_tokens"))
        return {"flops": flops, "tokens": tokens, "seconds": sum(seconds)}


def conversation_sequence(tokenizer: ChatTokenizer, prompt: str, response: str) -> Sequence:
    """One question and its reply as `messages_sequence`."""
    return messages_sequence(
        tokenizer, [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    )


def messages_sequence(tokenizer: ChatTokenizer, messages: list[Message]) -> Sequence:
    """A conversation, with weight 1 on every token that the assistant says, ends of turns included."""
    tokens, mask = tokenizer.encode_chat(messages)
    return Sequence(tokens, [float(counted) for counted in mask])


def mean_weighted(sequences: list[Sequence], column: str | None = None) -> list[Sequence]:
    """The same sequences with weights that sum to one over the whole step: the loss is a mean over what counts.

    The weights are those of the cross-entropy, or of a column.
    """
    weights = [one.weight if column is None else one.columns[column] for one in sequences]
    total = sum(map(sum, weights))
    shares = [[weight / total for weight in one] for one in weights]
    if column is None:
        return [replace(one, weight=share) for one, share in zip(sequences, shares, strict=True)]
    return [replace(one, columns={**one.columns, column: s}) for one, s in zip(sequences, shares, strict=True)]
