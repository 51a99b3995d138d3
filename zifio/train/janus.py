"""Training a model that reads and draws: Janus' three phases (arXiv:2410.13848, section 3.2; 2501.17811, section 2.2).

A step mixes conversations about pictures, drawings, and text, each kind walked through by itself, packed into one batch
under one loss: cross-entropy of what the assistant says and of the codes of drawings. A share of the drawings is learnt
without its text, so that guidance has something to set a prompt against. Codes of a picture are made once. Pictures
come from a file of pairs, or are glyph scenes, of which every step paints new ones.

Run alone: `zifio janus recipes/janus-nano.toml --stage adaptors steps=20 --out runs/try`
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from zifio.config import ConfigError, build
from zifio.data.pack import Sequence
from zifio.data.pairs import Pair, learnt_and_kept
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import load_tokenizer
from zifio.engine.marks import Marks, with_patches
from zifio.engine.policy import open_model
from zifio.models.count import vq_flops
from zifio.models.janus import Janus
from zifio.models.janus_config import JanusConfig
from zifio.models.weights import load_captioner, load_vq
from zifio.pictures import PICTURE, cropped, padded, pixels_of
from zifio.seed import nth, stream, stream_seed
from zifio.tasks.catalog import make_task
from zifio.tasks.environment import demonstration
from zifio.tasks.glyphs import SIDE, paint, scene
from zifio.tasks.task import shows_working
from zifio.train.batch import make_batches
from zifio.train.config import Balance
from zifio.train.janus_look import looking_at
from zifio.train.loop import StepData, Trainer, check_context
from zifio.train.loss import LossTerms
from zifio.train.picture_config import JanusStage
from zifio.train.sft import read_conversations
from zifio.train.stage import Context, conversation_sequence, finish, messages_sequence, new_model, prepare
from zifio.train.vision import scene_described

_ENCODED = 64  # pictures that the tokenizer encodes at once
_ADAPTORS = ("aligner.", "generation_embeddings.", "generation_aligner.", "generation_head.")


def janus(stage: JanusStage, context: Context) -> dict[str, float]:
    """Train one phase and write the model to `model/`; returns the stage's totals."""
    model, tokenizer = _starting_model(stage, context)
    Marks.of(tokenizer)
    if stage.trains == "adaptors":  # else the router's bias would move in a decoder that is to stay as it is
        stage = stage.model_copy(update={"balance": Balance(loss_weight=0.0, bias_speed=0.0)})
    train_only(model, stage.trains)
    prepare(model, stage, context)
    source = Source(stage, context, model, tokenizer)

    def batches(step: int) -> StepData:
        sequences, metrics, flops = source.step(step)
        check_context(model, max(len(one.tokens) for one in sequences), "an example")
        rows = stage.rows
        packed = make_batches(sequences, rows.row_tokens, rows.micro_tokens, tokenizer.pad_id)
        return StepData([packed], metrics, flops=flops)

    look = looking_at(stage, context, tokenizer, source.kept)
    terms = LossTerms(balance_weight=stage.balance.loss_weight)
    totals = Trainer(model, stage, terms, context.folder, look).run(batches)
    finish(context, model.requires_grad_(True), tokenizer)
    return totals


def _starting_model(stage: JanusStage, context: Context) -> tuple[Janus, ChatTokenizer]:
    """The stage's `from`, or a Janus put together from a decoder, a tokenizer of pictures and an encoder's shape."""
    seed = stream_seed(context.seed, "janus", stage.name)
    if stage.from_ is not None:
        text, tokenizer = open_model(context.model_of(stage.from_))
    else:
        assert stage.model is not None and stage.tokenizer is not None, "the config has seen to it"
        tokenizer = load_tokenizer(context.model_of(stage.tokenizer))
        text = new_model(stage.model, tokenizer, seed)
    if isinstance(text, Janus):
        if stage.codes is not None:
            raise ConfigError(
                f"{stage.name}: codes and vision: wanted none, for {stage.from_!r} reads and draws already. Leave them "
                "out, or start from a decoder."
            )
        return text, tokenizer
    if stage.codes is None or stage.vision is None:
        raise ConfigError(
            f"{stage.name}: from: wanted a model that reads and draws, came {stage.from_!r}, a decoder. Name its "
            "`codes` (a `vq` stage) and `vision` (a `vision` stage, or a shape) beside it."
        )
    vision, eyes = stage.vision, None
    if isinstance(vision, str):
        eyes = load_captioner(context.model_of(vision))
        vision = eyes.config.vision_config
    vq, width = load_vq(context.model_of(stage.codes)), text.config.hidden_size
    parts = {
        "text_config": text.config,
        "vision_config": vision.model_copy(update={"projection_dim": width}),
        "vq_config": vq.config.model_copy(update={"projection_dim": width, "image_token_embed_dim": width}),
    }
    given: dict[str, Any] = {name: part.model_dump() for name, part in parts.items()}
    shape = build(JanusConfig, given | {"image_token_id": Marks.of(tokenizer).picture}, stage.name)
    model = Janus(shape, seed)
    model.load_state_dict(text.state_dict(), strict=False)
    model.vqmodel.load_state_dict(vq.state_dict())
    if eyes is not None:
        model.vision_model.load_state_dict(eyes.vision_model.state_dict())
    return model, tokenizer


def train_only(model: Janus, part: str) -> None:
    """Let only these weights move; JanusStage.trains says what belongs to each part."""
    for name, parameter in model.named_parameters():
        is_eye, is_vq = name.startswith("vision_model."), name.startswith("vqmodel.")
        trained = {"adaptors": name.startswith(_ADAPTORS), "decoder": not is_eye and not is_vq, "all": not is_vq}
        parameter.requires_grad_(trained[part])


class _Example(NamedTuple):
    """A picture with a text, as far as it is laid out."""

    picture: np.ndarray
    text: str
    question: str


class Source:
    """Where a phase's sequences come from; a step's are a pure function of its number."""

    def __init__(self, stage: JanusStage, context: Context, model: Janus, tokenizer: ChatTokenizer) -> None:
        """Raises ConfigError where the data are none, or do not fit the model."""
        self.stage, self.model, self.tokenizer, self.marks = stage, model, tokenizer, Marks.of(tokenizer)
        self.seed = stream_seed(context.seed, "janus/data", stage.name)
        self.task = make_task(stage.text_task or context.task)
        self.texts = None if stage.text_data is None else read_conversations(context.data_of(stage.text_data))
        self.pairs: dict[str, list[Pair]] | None = None
        self.kept: list[Pair] | None = None
        """Pairs to look at; None where there are scenes."""
        self._codes: dict[int, np.ndarray] = {}
        if stage.data is not None:
            self._read(context.data_of(stage.data), stage.held_out_data and context.data_of(stage.held_out_data))
        sides = {model.shape.vision_config.image_size, model.shape.vq_config.image_size}
        if stage.data is None and sides != {SIDE}:
            raise ConfigError(
                f"{stage.name}: data: wanted pairs, for glyph scenes have {SIDE} pixels a side and this model wants "
                f"{' and '.join(map(str, sorted(sides)))}. Name a file."
            )

    def _read(self, path: Path, held_out: Path | str | None) -> None:
        learnt, self.kept = learnt_and_kept(path, Path(held_out) if held_out else None)
        self.pairs = {
            "understanding": [pair for pair in learnt if pair.kind != "generation"],
            "drawing": [pair for pair in learnt if pair.kind != "understanding"],
        }
        for kind, pairs in self.pairs.items():
            if getattr(self.stage.examples, kind) and not pairs:
                raise ConfigError(
                    f"{path}: wanted pairs for {kind} (and others to look at), came none of {len(learnt)}. Add some, "
                    f"or set examples.{kind} = 0."
                )

    def step(self, step: int) -> tuple[list[Sequence], dict[str, float], float]:
        """(sequences whose weights sum to one, tokens that count of each kind, FLOPs of encoding)."""
        counts, weights = self.stage.examples, self.stage.weights
        drawings, flops = self._drawings(step * counts.drawing, counts.drawing)
        by_kind = {
            "understanding": [
                self._understanding(step * counts.understanding + i) for i in range(counts.understanding)
            ],
            "text": [self._text(step * counts.text + i) for i in range(counts.text)],
            "drawing": drawings,
        }
        tokens = {kind: sum(sum(one.weight) for one in sequences) for kind, sequences in by_kind.items()}
        total = sum(getattr(weights, kind) * n for kind, n in tokens.items())
        if not total:
            raise ConfigError(f"{self.stage.name}: weights: wanted some above 0, came 0 for all that a step has.")
        out = []
        for kind, sequences in by_kind.items():
            share = getattr(weights, kind) / total
            out += [replace(one, weight=[share * weight for weight in one.weight]) for one in sequences]
        return out, {f"tokens/{kind}": n for kind, n in tokens.items() if n}, flops

    def _example(self, kind: str, index: int) -> _Example:
        """The index-th picture of a kind, with its text."""
        if self.pairs is not None:
            pair = nth(self.pairs[kind], index, self.seed, kind)
            return _Example(pair.picture(), pair.text, pair.question or self.stage.question)
        seed = stream_seed(self.seed, kind)
        if kind == "understanding":
            return _Example(*scene_described("train", index, seed), self.stage.question)
        split = stream(seed, "untold", index).choice(self.stage.untold) if self._is_untold(index) else "train"
        shown = scene(split, index, seed)
        if stream(seed, "told", index).random() < self.stage.told_once:
            shown = shown.told_once()
        return _Example(paint(shown, stream(seed, "paint", index)), shown.caption(), self.stage.question)

    def _understanding(self, index: int) -> Sequence:
        example, vision = self._example("understanding", index), self.model.shape.vision_config
        messages = [{"role": "user", "content": PICTURE + example.question}]
        tokens, mask = self.tokenizer.encode_chat([*messages, {"role": "assistant", "content": example.text}])
        if tokens.count(self.marks.picture) != 1:
            raise ConfigError(f"{self.stage.name}: a text holds the mark {PICTURE} itself. Take it out.")
        first, n = self.model.first_patch, vision.num_image_tokens
        at, whole = tokens.index(self.marks.picture), with_patches(tokens, self.marks, first, n)
        weight = [0.0] * (at + n + 2) + [float(counts) for counts in mask[at + 1 :]]
        pixels = pixels_of(padded(example.picture, vision.image_size))
        return Sequence(whole, weight, pixels_MUYX=pixels[None], patches=(first, n))

    def _text(self, index: int) -> Sequence:
        if self.texts is None:
            problem = self.task.problem("train", index, stream_seed(self.seed, "text"))
            working = shows_working(index, self.seed, self.stage.p_cot)
            return messages_sequence(self.tokenizer, demonstration(self.task, problem, working))
        row = nth(self.texts, index, self.seed, "text")
        if "messages" in row:
            return messages_sequence(self.tokenizer, row["messages"])
        return conversation_sequence(self.tokenizer, row["prompt"], row["response"])

    def _drawings(self, first: int, n: int) -> tuple[list[Sequence], float]:
        """Drawings `first` to `first` + n - 1 of the walk, and the FLOPs of making their codes where they are new."""
        every = range(first, first + n)
        if self.pairs is None:
            examples = {index: self._example("drawing", index) for index in every}
            keys, texts = list(every), [example.text for example in examples.values()]
            self._codes.clear()  # no scene comes twice
            codes, n_new = self._coded(keys, lambda index: examples[index].picture), n
        else:
            pairs = self.pairs["drawing"]
            keys = [nth(range(len(pairs)), index, self.seed, "drawing") for index in every]
            texts = [pairs[key].text for key in keys]
            n_new = max(0, min(first + n, len(pairs)) - first)  # by the walk, so that a resumed run counts the same
            codes = self._coded(keys, lambda key: pairs[key].picture())
        out = [self._drawing(index, text, drawn) for index, text, drawn in zip(every, texts, codes, strict=True)]
        return out, n_new * vq_flops(self.model.shape.vq_config, paints=False)

    def _drawing(self, index: int, text: str, drawn: np.ndarray) -> Sequence:
        """A text with the codes of its picture; of a share the text is left out."""
        prompt = self.tokenizer.encode_chat([{"role": "user", "content": text}], generation_prompt=True)[0]
        prompt.append(self.marks.begin)
        if self._is_untold(index):
            prompt = self.marks.blank(prompt)
        tokens = [*prompt, *(int(code) + self.model.first_code for code in drawn)]
        return Sequence(tokens, [0.0] * len(prompt) + [1.0] * len(drawn))

    def _is_untold(self, index: int) -> bool:
        """Whether the index-th drawing is learnt without its text."""
        return stream(self.seed, "dropout", index).random() < self.stage.dropout

    def _coded(self, keys: Items[int], picture_of: Callable[[int], np.ndarray]) -> list[np.ndarray]:
        """The codes of these pictures, of those made once already too."""
        side = self.model.shape.vq_config.image_size
        todo = [key for key in dict.fromkeys(keys) if key not in self._codes]
        for start in range(0, len(todo), _ENCODED):
            part = todo[start : start + _ENCODED]
            pixels = np.stack([pixels_of(cropped(picture_of(key), side)) for key in part])
            ids_BT = self.model.vqmodel.encode(torch.from_numpy(pixels).to(self.model.device)).cpu().numpy()
            self._codes |= dict(zip(part, ids_BT.astype(np.int32), strict=True))
        return [self._codes[key] for key in keys]
