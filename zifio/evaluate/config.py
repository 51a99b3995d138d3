"""What an `eval` stage accepts; read from TOML by `recipe.py` and never importing torch.

Try it alone:

    from zifio.evaluate.config import EvalStage
    EvalStage(kind="eval", name="final", models=["base", "runs/other/r1/model"]).named_models
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from zifio.config import Config, Sampling
from zifio.tasks.catalog import TaskConfig


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
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to sample; auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: on a GPU, matrix products, keys and values in bfloat16."""
    sampling: Sampling = Sampling()
    """How replies are drawn."""

    @model_validator(mode="after")
    def _possible(self) -> EvalStage:
        if max(self.ks) > self.n:
            raise ValueError(
                f"ks={self.ks} asks for pass@{max(self.ks)} of n={self.n} replies. "
                f"Set n to {max(self.ks)} or more, or leave {max(self.ks)} out of ks."
            )
        keys = [report_key(model) for model in self.models]
        bad = next((model for model, key in zip(self.models, keys, strict=True) if key in ("", ".", "..")), None)
        if bad is not None:
            raise ValueError(f"models: wanted a stage or a folder with a name, came {bad!r}. Write its whole path.")
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"models: wanted different names, came {twice!r} twice. Rename one of the folders.")
        return self

    @property
    def named_models(self) -> dict[str, str]:
        """Each model's name in reports, and the stage or path that it stands for."""
        return {report_key(model): model for model in self.models}


def report_key(model: str) -> str:
    """What reports call a model: its stage, or its folder's name (of `r1/model`, which every stage writes, `r1`)."""
    path = PurePath(model)
    return path.parent.name if path.name == "model" and path.parent.name else path.name
