"""What the stages accept that judge replies, or learn from judgements: of replies, of steps, of which of two is better.

Read by `recipe.py` from TOML and never importing torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from zifio.config import Config, EndpointSettings, Sampling, is_url
from zifio.data.clean import Curation
from zifio.engine.config import EngineConfig
from zifio.models.config import Lora
from zifio.tasks.catalog import TaskConfig
from zifio.train.config import Balance, ModelStage, Share, Stage


class MonteCarlo(Config):
    """Label a step by what comes of it: completions from there on, judged by the task (Math-Shepherd,
    arXiv:2312.08935)."""

    from_: str = Field(alias="from")
    """Model that completes."""
    n: PositiveInt = 8
    """Completions from every step."""
    share: Share = 0.0
    """A step is good when more than this share of them is right; 0 means any (Math-Shepherd's hard estimate). Where
    answers can be guessed, it should be above the share that guesses reach."""


class Judge(Config):
    """Label steps by a model that is asked for the first one that is wrong."""

    from_: str | None = Field(None, alias="from")
    """A model of the recipe, or a folder."""
    url: str | None = None
    """Instead of from: an OpenAI-compatible endpoint, whose key stands in OPENAI_API_KEY."""
    model: str = ""
    """What the endpoint calls it."""
    votes: PositiveInt = 1
    """Replies to each solution; the place that most of them name counts."""
    sampling: Sampling = Sampling(temperature=0.0, max_new_tokens=1024)
    """How it replies."""

    @model_validator(mode="after")
    def _one_source(self) -> Judge:
        if (self.from_ is None) == (self.url is None):
            raise ValueError("wanted either `from` (a model) or `url` (an endpoint), not both or neither")
        if self.url is not None and not self.model:
            raise ValueError("wanted `model`, the name of a model at this endpoint, came none")
        if self.votes > 1 and self.sampling.temperature == 0:
            raise ValueError("votes of a judge at sampling.temperature=0 are all the same; raise it, or set votes = 1")
        return self


class MarkStage(Stage):
    """Mark the steps of solutions right or wrong, by one labeller or by several that must agree; writes JSONL.

    Labellers that place the first error differently drop the solution. Where people have labelled it, theirs stand.
    """

    kind: Literal["mark"]
    """Names the kind."""
    data: str
    """A `sample` stage (with keep = "all", or nothing is wrong), or a JSONL file of solutions in steps: our own,
    PRM800K's, or TRL's stepwise supervision."""
    task: TaskConfig | None = None
    """By default the recipe's task."""
    rollouts: MonteCarlo | None = None
    """Label by completions."""
    judge: Judge | None = None
    """Label by a model's judgement."""
    checker: bool = False
    """Label by the task's own check of steps, where it has one: an oracle to compare others with."""
    people: str | None = None
    """JSONL with labels from people for some of the solutions."""
    most: PositiveInt | None = None
    """At most this many different solutions."""
    balance: bool = True
    """With most: half of them wrong, half right, as far as there are so many."""
    sampling: Sampling = Sampling()
    """How completions are drawn."""

    @model_validator(mode="after")
    def _has_labeller(self) -> MarkStage:
        if not (self.rollouts or self.judge or self.checker or self.people):
            raise ValueError("wanted a labeller, came none. Give rollouts, judge, checker or people")
        return self

    @property
    def models(self) -> dict[str, str]:
        """The models that it asks, by their keys."""
        asked = {"rollouts.from": self.rollouts and self.rollouts.from_, "judge.from": self.judge and self.judge.from_}
        return {key: name for key, name in asked.items() if name}


class _Scoring(ModelStage):
    """What the stages share that train a reward model."""

    from_: str = Field(alias="from")
    """Model whose body it takes; the head is new."""
    balance: Balance = Balance(loss_weight=0.0, bias_speed=0.0)
    """Expert balance; off, as in RL."""


class PrmStage(_Scoring):
    """Train a process reward model: how likely each step of a solution is good (arXiv:2305.20050, section 2.6)."""

    kind: Literal["prm"]
    """Names the kind."""
    data: str
    """A `mark` stage, or a JSONL file of labelled solutions: our own, PRM800K's, or TRL's stepwise supervision."""
    sequences: PositiveInt = 64
    """Solutions per step; the data is walked through in a new order every epoch."""
    alternatives: bool = False
    """Learn also what PRM800K's rows say of the completions that were not chosen, each behind the steps before it."""
    soft: bool = False
    """Learn the share of right completions where the data has it, not the label (Math-Shepherd's soft estimate)."""
    held_back: Share = 0.1
    """Share of the problems that is kept for the figures of done.json: accuracy and localisation of first errors."""
    most: PositiveInt | None = None
    """Learn from at most so many solutions, the first ones of the data, to see what more labels bring."""


class Preferences(ModelStage):
    """What the stages share that learn from pairs of replies."""

    data: str
    """A JSONL file of preferences: `prompt`, `chosen` and `rejected`, texts or messages as TRL has them; or a `sample`
    stage with keep = "all", whose right replies are preferred to wrong ones."""
    pairs: PositiveInt = 32
    """Pairs per step; the data is walked through in a new order every epoch."""


class RewardStage(Preferences, _Scoring):
    """Train a reward model on preferences (Bradley and Terry, 1952), for what no verifier can check (R1, 2.3.4)."""

    kind: Literal["reward"]
    """Names the kind."""


class DpoStage(Preferences):
    """Direct preference optimisation (arXiv:2305.18290): preferences without a reward model."""

    kind: Literal["dpo"]
    """Names the kind."""
    from_: str = Field(alias="from")
    """Model to start from, which is the reference too."""
    beta: PositiveFloat = 0.1
    """How strongly the reference holds."""
    lora: Lora | None = None
    """Train adapters and leave the rest as it is; nothing means all weights train."""
    balance: Balance = Balance(loss_weight=0.0, bias_speed=0.0)
    """Expert balance; off, as in RL."""


PART_REPLIES = 1024
"""Replies that are drawn, judged and written together."""


class SampleStage(Stage):
    """Rejection sampling: draw replies, keep what the verifier calls right, curate it, write JSONL."""

    kind: Literal["sample"]
    """Names the kind."""
    from_: str = Field(alias="from")
    """Model to sample from; also the address of a server of OpenAI's chat completions (.../v1)."""
    from_model: str = ""
    """What the server calls it."""
    endpoint: EndpointSettings = EndpointSettings()
    """How to speak with the server."""
    most_errors: Share = 0.1
    """Stop when the server fails on more than this share of some dozens of replies; fewer are left out and counted."""
    task: TaskConfig | None = None
    """By default the recipe's task."""
    problems: PositiveInt = 1024
    """Training problems to sample."""
    n: PositiveInt = 4
    """Replies per problem."""
    keep: Literal["right", "process", "all"] = "right"
    """right: the answer is right; process: every step of a shown working too; all: no filter."""
    most_per_problem: PositiveInt = 4
    """At most this many different kept replies per problem."""
    most: PositiveInt | None = None
    """At most this many kept replies in all ("a few long traces")."""
    curation: Curation = Curation()
    """What else is asked of a kept reply: length, script, no near-duplicates, an even difficulty."""
    dataset: bool = False
    """Also write dataset/, as a hub wants it: JSON lines, parquet, and a card that says how it was made."""
    license: str | None = None
    """Of the data set, for its card, as the hub spells it (apache-2.0)."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to sample; auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: on a GPU, matrix products, keys and values in bfloat16."""
    sampling: Sampling = Sampling()
    """How replies are drawn."""
    engine: EngineConfig = EngineConfig()
    """What the engine may spend and how it works."""

    @property
    def is_remote(self) -> bool:
        """Whether a server draws."""
        return is_url(self.from_)

    @model_validator(mode="after")
    def _one_source(self) -> SampleStage:
        idle = ("device", "engine", "precision") if self.is_remote else ("endpoint", "from_model", "most_errors")
        if self.is_remote and not self.from_model:
            raise ValueError(f"from_model: wanted what the server {self.from_} calls the model, came nothing")
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].default:
                kind = "a local model" if self.is_remote else "a server"
                raise ValueError(f"{name} is about {kind}, came from={self.from_!r}; leave it out")
        return self
