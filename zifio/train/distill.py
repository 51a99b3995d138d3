"""Distillation into a smaller student: fine-tuning on the teacher's own traces (R1, section 2.4).

Hard labels only: the student never sees the teacher's logits, so the two may differ in everything but the text.

Run alone: `zifio distill recipes/quickstart.toml --stage student steps=50 --out runs/try`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zifio.checkpoint import model_digest
from zifio.config import ConfigError
from zifio.data.tokenizer import load_tokenizer
from zifio.engine.policy import open_model
from zifio.seed import stream_seed
from zifio.train.config import DistillStage
from zifio.train.sft import fine_tune, read_conversations
from zifio.train.stage import Context, new_model


def distill(stage: DistillStage, context: Context) -> dict[str, float]:
    """Train the student on the teacher's traces and write it to `model/`; returns the stage's totals."""
    teacher = context.model_of(stage.teacher)
    assert stage.data is not None, "the config's validator wants traces"
    path = context.data_of(stage.data)
    rows = read_conversations(path)
    _check_provenance(rows, teacher, path)
    if stage.from_ is not None:
        model, tokenizer = open_model(context.model_of(stage.from_))
    else:
        assert stage.model is not None, "the config's validator wants one of the two"
        tokenizer = load_tokenizer(teacher)
        model = new_model(stage.model, tokenizer, stream_seed(context.seed, "distill", stage.name))
    return fine_tune(model, tokenizer, rows, stage, context)


def _check_provenance(rows: list[dict[str, Any]], teacher: Path, path: Path) -> None:
    """Every row says which weights wrote it; they must be the teacher's, or the result would be misattributed."""
    wanted = model_digest(teacher)
    for number, row in enumerate(rows, 1):
        if row.get("model") != wanted:
            raise ConfigError(
                f"{path}: row {number}: model: wanted traces of the teacher {teacher} (weights {wanted}), came "
                f"{row.get('model')!r}. Sample from this teacher, or use an `sft` stage for data of other origin."
            )
