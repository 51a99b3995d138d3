"""What an `eval` stage accepts, and what `zifio eval` on a model or an endpoint does; never importing torch.

Try it alone:

    from zifio.evaluate.config import EvalStage
    EvalStage(kind="eval", name="final", models=["base", "runs/other/r1/model"]).named_models
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from zifio.config import Config, EndpointSettings, Sampling
from zifio.engine.config import EngineConfig
from zifio.tasks.catalog import TaskConfig

CHUNK = 64
"""Problems between two movements of the progress bar; no result depends on it."""


class EvalStage(Config):
    """Measure models on held-out problems: the same problems and the same random numbers for each of them."""

    kind: Literal["eval"]
    """Names the kind."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Names the stage's folder."""
    models: Annotated[list[str], Field(min_length=1)]
    """Earlier stages that made a model, or folders of models; the first is what the others are compared with."""
    task: TaskConfig | None = None
    """By default the recipe's task."""
    problems: PositiveInt = 256
    """How many held-out problems."""
    n: PositiveInt = 16
    """Replies to each problem."""
    ks: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 4, 16]
    """Report pass@k, the chance that one of k replies is right, for each of these; none may exceed n."""
    prm: str | Annotated[list[str], Field(min_length=1)] | None = None
    """A `prm` stage or a folder, or several to compare: score the steps of every reply, and report best-of-k and
    weighted votes by the scores, each beside the majority's vote, and how well first errors are found."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to sample; auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: on a GPU, matrix products, keys and values in bfloat16."""
    sampling: Sampling = Sampling()
    """How replies are drawn."""
    engine: EngineConfig = EngineConfig()
    """What the engine may spend and how it works."""

    @model_validator(mode="after")
    def _possible(self) -> EvalStage:
        if max(self.ks) > self.n:
            raise ValueError(
                f"ks={self.ks} asks for pass@{max(self.ks)} of n={self.n} replies. "
                f"Set n to {max(self.ks)} or more, or leave {max(self.ks)} out of ks."
            )
        _check_names("models", self.models)
        _check_names("prm", self._prms)
        return self

    @property
    def _prms(self) -> list[str]:
        return [self.prm] if isinstance(self.prm, str) else self.prm or []

    @property
    def scorers(self) -> dict[str, str]:
        """The process reward models that it asks, by their key."""
        if isinstance(self.prm, str):
            return {"prm": self.prm}
        return {f"prm[{place}]": name for place, name in enumerate(self._prms)}

    @property
    def named_prms(self) -> dict[str, str]:
        """Each process reward model's name in reports, and the stage or folder that it stands for."""
        return {report_key(name): name for name in self._prms}

    @property
    def named_models(self) -> dict[str, str]:
        """Each model's name in reports, and the stage or path that it stands for."""
        return {report_key(model): model for model in self.models}


Scorer = Literal["logp", "short", "long", "oracle"]


class Prices(Config):
    """Per million tokens, in any currency."""

    input: float = Field(ge=0)
    """Of tokens of the prompt."""
    output: float = Field(ge=0)
    """Of tokens drawn, thinking included."""
    cached: float | None = Field(default=None, ge=0)
    """Of tokens of the prompt that the server had in its cache; by default as any other."""

    def cost(self, n_prompt: int, n_drawn: int, n_cached: int = 0) -> float:
        """What a reply costs."""
        cached = self.input if self.cached is None else self.cached
        return ((n_prompt - n_cached) * self.input + n_cached * cached + n_drawn * self.output) / 1e6


class ExamConfig(Config):
    """What `zifio eval MODEL` or `zifio eval URL` asks, and how.

    What names a reply (problem, place among the n, budget) may grow from one run to the next in the same folder.
    """

    task: TaskConfig
    """The task."""
    problems: PositiveInt | None = None
    """How many held-out problems; by default all of a finite set, else 256."""
    n: PositiveInt = 1
    """Replies to each problem."""
    ks: list[PositiveInt] = []
    """Report pass@k, majority@k and best-of-k for these; by default 1, 2, 4 and so on, and n."""
    seed: NonNegativeInt = 0
    """Every random number derives from this one."""
    sampling: Sampling = Sampling(max_new_tokens=1024)
    """How replies are drawn. Without a word on max_new_tokens a local model gets what its context allows, up to the
    default."""
    budgets: list[PositiveInt] = []
    """Thinking budgets in tokens for the test-time curve, beside replies without one. A local model's thinking is cut
    there, `force` put behind it and the answer drawn; an endpoint gets the budget as the most tokens of a reply."""
    answer_tokens: PositiveInt = 64
    """The longest answer after a budget has cut the thinking of a local model."""
    force: str | None = None
    """What stands behind a thinking that was cut. By default the end of thinking, with the opening answer tag where the
    task wants it."""
    scorers: list[Scorer] = ["logp", "short"]
    """What chooses in best-of-k: the mean log-prob of a token, the fewest or the most tokens, or the verdict itself
    (an oracle, no method)."""
    prm: str | None = None
    """The folder of a process reward model: best-of-k and weighted votes by its scores of the steps of replies without
    a budget, each beside the majority's vote, and how well it finds first errors."""
    system: str = ""
    """A system message in front of every problem."""
    instruction: str = ""
    """Stands behind every problem, on a line of its own."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where a local model samples; auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: on a GPU, matrix products, keys and values in bfloat16."""
    engine: EngineConfig = EngineConfig()
    """What the engine may spend and how it works."""
    most_errors: float = Field(default=0.1, ge=0, le=1)
    """The run stops when the verifier broke on more than this share of all replies, or the endpoint failed on it."""
    endpoint: EndpointSettings = EndpointSettings()
    """How to speak with an endpoint."""
    prices: Prices | None = None
    """What tokens cost."""

    @model_validator(mode="after")
    def _possible(self) -> ExamConfig:
        if self.ks and max(self.ks) > self.n:
            raise ValueError(
                f"ks={self.ks} asks for {max(self.ks)} of n={self.n} replies. Set n to {max(self.ks)} or more, or "
                f"leave {max(self.ks)} out of ks."
            )
        if len(set(self.budgets)) < len(self.budgets):
            raise ValueError(f"budgets: wanted each once, came {self.budgets}. Leave the repeated ones out.")
        return self

    @property
    def counts(self) -> list[int]:
        """The k of pass@k and its kin, rising."""
        powers = [2**i for i in range(self.n.bit_length()) if 2**i <= self.n]
        return sorted({*self.ks} or {*powers, self.n})


def _check_names(key: str, models: list[str]) -> None:
    """Raise ValueError for what reports could not call by different names."""
    names = [report_key(model) for model in models]
    bad = next((model for model, name in zip(models, names, strict=True) if name in ("", ".", "..")), None)
    if bad is not None:
        raise ValueError(f"{key}: wanted a stage or a folder with a name, came {bad!r}. Write its whole path.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{key}: wanted different names, came {twice!r} twice. Rename one of the folders.")


def report_key(model: str) -> str:
    """What reports call a model: its stage, or its folder's name (of `r1/model`, which every stage writes, `r1`)."""
    path = PurePath(model)
    return path.parent.name if path.name == "model" and path.parent.name else path.name
