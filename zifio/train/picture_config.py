"""What the stages accept that learn from pictures.

Read by `recipe.py` from TOML and never importing torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from zifio.config import Config
from zifio.models.classifier_config import ClassifierShape
from zifio.models.config import ModelConfig
from zifio.models.janus_config import VisionConfig, VqConfig
from zifio.tasks.catalog import TaskConfig
from zifio.train.config import ModelStage, Share

GlyphScenes = Annotated[list[Literal["train", "unseen"]], Field(min_length=1)]
"""Splits of glyph scenes to show, of which "unseen" has the glyphs that no model is told of."""


class VqStage(ModelStage):
    """A tokenizer of pictures from random weights: squared error of pixels, codebook and commitment losses."""

    kind: Literal["vq"]
    """Names the kind."""
    model: VqConfig
    """Shape of the tokenizer."""
    data: str | None = None
    """A .jsonl or .parquet file of pictures (`image`, `text`); nothing means glyph scenes, of 32 pixels a side."""
    scenes: GlyphScenes = ["train"]
    """Which glyph scenes, in turns. With "unseen" the tokenizer sees, without words, every colour in every shape; what
    reads and draws may still never be told of some."""
    held_out_data: str | None = None
    """Where the pictures of a look come from; by default every sixteenth of `data`, which then is not learnt from."""
    pictures: PositiveInt = 64
    """Pictures per step; those of `data` are walked through in a new order every epoch."""
    l1_weight: NonNegativeFloat = 0.0
    """Weight of the absolute error of pixels, beside the squared one."""
    restart_after: PositiveInt = 50
    """A code that no picture became for so many steps starts anew as the latent of one."""
    spliced: Share = 0.0
    """Share of the pictures that are painted with a rectangle of their codes exchanged for another's, so that a code
    tells of its own place."""


class ClassifierStage(ModelStage):
    """A classifier of pictures from random weights: cross-entropy of their labels. It judges what another model draws,
    so it shares nothing with one."""

    kind: Literal["classifier"]
    """Names the kind."""
    model: ClassifierShape = ClassifierShape()
    """Its shape."""
    data: str
    """Pairs: `image` and `text`, a label; or an IDX file (train-images-idx3-ubyte.gz, its labels beside it)."""
    held_out_data: str | None = None
    """Pairs to look at; by default every sixteenth of `data`, which then is not learnt from."""
    pictures: PositiveInt = 128
    """Pictures per step, walked through in a new order every epoch."""


class VisionStage(ModelStage):
    """An encoder of pictures from random weights, taught by naming all words of a caption at once from the picture
    (the parallel half of CapPa, arXiv:2306.07915). Janus starts from an encoder that has learnt elsewhere (SigLIP,
    arXiv:2410.13848, section 3.1); this is where a small one does."""

    kind: Literal["vision"]
    """Names the kind."""
    tokenizer: str
    """A tokenizer stage, or a folder with tokenizer.json: what captions are made of."""
    model: VisionConfig
    """Shape of the encoder."""
    words: PositiveInt = 8
    """Tokens of the longest caption, its end among them."""
    data: str | None = None
    """Pairs: a .jsonl or .parquet file with `image` and `text`; nothing means glyph scenes."""
    held_out_data: str | None = None
    """Pairs to look at; by default every sixteenth of `data`, which then is not learnt from."""
    pictures: PositiveInt = 64
    """Pictures per step; those of `data` are walked through in a new order every epoch."""


OfPictures = VqStage | ClassifierStage | VisionStage
"""Stages of models of pictures alone: their looks are at pictures, and nothing is sampled from them."""


class Examples(Config):
    """How many of each kind a step learns from: the ratios of a phase."""

    understanding: NonNegativeInt = 32
    """Pictures with what is said of them."""
    text: NonNegativeInt = 0
    """Conversations without pictures."""
    drawing: NonNegativeInt = 32
    """Texts with the codes of their pictures."""

    @model_validator(mode="after")
    def _some(self) -> Examples:
        if not (self.understanding or self.text or self.drawing):
            raise ValueError("wanted examples of some kind, came none of any. Raise one")
        return self


class Weights(Config):
    """How much a token of each kind counts beside those of the others; where all are equal, all tokens are."""

    understanding: NonNegativeFloat = 1.0
    """A token of a text about a picture."""
    text: NonNegativeFloat = 1.0
    """A token of a text."""
    drawing: NonNegativeFloat = 1.0
    """A code of a drawing."""


class JanusStage(ModelStage):
    """One phase of Janus' training (arXiv:2410.13848, section 3.2): cross-entropy on texts, on texts about pictures,
    and on the codes of drawings, mixed in every step."""

    kind: Literal["janus"]
    """Names the kind."""
    from_: str | None = Field(None, alias="from")
    """A model that reads and draws, or a decoder that is to; or leave it out and give `model`."""
    model: ModelConfig | None = None
    """Shape of a decoder that starts from random weights."""
    tokenizer: str | None = None
    """With `model`: a tokenizer stage, or a folder with tokenizer.json; it must have the tokens for pictures."""
    codes: str | None = None
    """The tokenizer of pictures, a `vq` stage or a folder; where `from` is a decoder, or `model` is given."""
    vision: VisionConfig | str | None = None
    """The encoder that pictures are read with: a `vision` stage or its folder, or a shape, from random weights;
    likewise."""
    trains: Literal["adaptors", "decoder", "all"] = "decoder"
    """adaptors: both ways' adaptors, the embedding and the head of codes (phase 1); decoder: all but the encoder of
    pictures and their tokenizer (phase 2); all: all but that tokenizer (phase 3)."""
    data: str | None = None
    """Pairs: a .jsonl or .parquet file with `image`, `text` and perhaps `kind` and `question`; nothing means glyph
    scenes."""
    held_out_data: str | None = None
    """Pairs to look at; by default every sixteenth of `data`, which then is not learnt from."""
    text_data: str | None = None
    """Conversations without pictures: a `sample` stage or a JSONL file; nothing means documents of `text_task`."""
    text_task: TaskConfig | None = None
    """By default the recipe's task."""
    p_cot: Share = 0.1
    """Share of the documents that show their working."""
    question: str = "What is this?"
    """What is asked about a picture whose pair has no question of its own."""
    examples: Examples = Examples()
    """The phase's ratios."""
    weights: Weights = Weights()
    """What the kinds count."""
    dropout: Share = 0.1
    """Share of drawings that are learnt without their text, for guidance."""
    untold: GlyphScenes = ["train"]
    """Which glyph scenes the drawings without their text are of, by chance. With "unseen" the decoder sees every colour
    in every shape, as the tokenizer of pictures may, and is still never told of some."""
    told_once: Share = 0.0
    """Share of the scenes to be drawn whose text begins with their left or upper glyph; the others' with either. Which
    glyph belongs where is an exclusive or of the relation and the place, of which no half helps alone; where most are
    told one way, the place alone does, and the other way is soon learnt after it."""
    judge: str | None = None
    """A `classifier` stage, or its folder, that knows the texts of `data` as labels: looks draw those texts too, and it
    says which drawings show what was asked for."""
    scales: Annotated[list[NonNegativeFloat], Field(min_length=1)] = [1.0, 3.0]
    """Scales of guidance that a look draws held-out scenes with."""

    @model_validator(mode="after")
    def _one_start(self) -> JanusStage:
        if (self.from_ is None) == (self.model is None):
            raise ValueError("wanted either `from` (a model to start from) or `model` (a shape), not both or neither")
        if (self.model is None) != (self.tokenizer is None):
            raise ValueError("wanted `tokenizer` beside `model`, and neither beside `from`, whose folder has one")
        if self.model is not None and (self.codes is None or self.vision is None):
            raise ValueError(
                "wanted `codes` and `vision` beside `model`, from which a model that reads and draws is made"
            )
        if (self.codes is None) != (self.vision is None):
            raise ValueError("wanted `codes` and `vision` together (a decoder becomes a Janus) or neither (it is one)")
        if self.trains == "adaptors" and self.examples.text:
            raise ValueError("examples.text: text moves none of the adaptors; set it to 0")
        if self.judge and not self.data:
            raise ValueError("judge: wanted `data` beside it; of scenes a parser says what drawings show")
        if self.held_out_data and not self.data:
            raise ValueError("held_out_data: wanted `data` beside it; scenes have held-out ones of their own")
        if self.data and (self.told_once or self.untold != ["train"]):
            raise ValueError("told_once, untold: wanted no `data` beside them; they are about scenes")
        return self
