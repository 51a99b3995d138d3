"""The stage `classifier`: it learns, goes on exactly, and refuses what are no labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from idx_files import LABELS, labelled_files
from tiny import context, in_one_and_in_two, metrics, run

from zifio.config import ConfigError
from zifio.models.weights import load_classifier
from zifio.pictures import write_png
from zifio.train.classifier import labelled_batches
from zifio.train.loss import LossTerms, batch_loss

SETTINGS: dict[str, Any] = {
    "model": {"image_size": 16, "channels": [4, 4], "hidden_size": 8}, "data": "train", "held_out_data": "test",
    "steps": 12, "pictures": 16, "checkpoint_every": 4, "optim": {"lr": 1e-2}, "held_out": {"every": 6, "problems": 32},
}  # fmt: skip


def paths(folder: Path) -> dict[str, Path]:
    """Where the files are."""
    made = labelled_files(folder)
    return {"train": made / "train-images-idx3-ubyte.gz", "test": made / "t10k-images-idx3-ubyte.gz"}


def test_it_learns_and_a_run_that_is_stopped_goes_on_exactly(tmp_path: Path) -> None:
    data, whole = paths(tmp_path), tmp_path / "whole"
    totals, _ = in_one_and_in_two("classifier", SETTINGS, tmp_path, 4, **data)
    looks = [line for line in metrics(whole) if "held_out/accuracy" in line]
    assert [line["step"] for line in looks] == [0, 6, 12] and looks[-1]["held_out/accuracy"] == 1
    assert 0.85 < looks[-1]["held_out/accuracy_low"] < 1 and totals["flops"] > 0 and totals["tokens"] == 12 * 16
    assert load_classifier(whole / "model").config.labels == LABELS


def test_the_loss_does_not_depend_on_how_a_step_is_cut(tmp_path: Path) -> None:
    run("classifier", SETTINGS | {"steps": 1}, context(tmp_path, **paths(tmp_path)))
    model = load_classifier(tmp_path / "model")
    pixels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    label_M = torch.tensor([0, 1, 2, 0, 1, 2])
    expected = torch.nn.functional.cross_entropy(model(pixels), label_M).item()
    for at_once in (6, 4, 2):
        results = [
            batch_loss(model, part, LossTerms(), part.n_sequences / 6)
            for part in labelled_batches(pixels, label_M, at_once)
        ]
        assert sum(result.loss.item() for result in results) == pytest.approx(expected, rel=1e-5)


def test_what_are_no_labels_is_refused(tmp_path: Path) -> None:
    made = paths(tmp_path)
    write_png(np.zeros((4, 4, 3), np.uint8), tmp_path / "one.png")
    for name, texts in (("same", ["a"] * 20), ("other", ["zebra"] * 2)):
        rows = "\n".join(f'{{"image": "one.png", "text": "{text}"}}' for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
        made[name] = tmp_path / f"{name}.jsonl"
    (tmp_path / "empty.jsonl").write_text("")
    made["empty"] = tmp_path / "empty.jsonl"
    for changes, said in (
        ({"data": "same", "held_out_data": None}, "wanted 2 to 1000 different labels, came 1"),
        ({"held_out_data": "other"}, "'zebra' is no label"),
        ({"data": "empty", "held_out_data": None}, "wanted pairs to learn from|came none|empty"),
    ):
        with pytest.raises(ConfigError, match=said):
            run("classifier", SETTINGS | changes, context(tmp_path / "run", **made))
