"""Labels and drawings of them: splits, what is right, and a judge that is a classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import LABELS, labelled_files

from zifio.config import ConfigError
from zifio.models.classifier import Classifier
from zifio.models.classifier_config import ClassifierConfig
from zifio.models.weights import save_model
from zifio.pictures import PICTURE, from_url, to_url
from zifio.stats import mean_distance
from zifio.tasks.catalog import read_task, verifier_digest
from zifio.tasks.environment import conversation
from zifio.tasks.labelled import DEBIAN, LabelDrawings, PictureLabels
from zifio.tasks.runtime import judge
from zifio.tasks.task import Problem


def judging(folder: Path) -> Path:
    """A classifier by hand that goes by brightness: t-shirts are dark, pullovers bright."""
    model = Classifier(ClassifierConfig(image_size=4, channels=[1], hidden_size=2, labels=LABELS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.convolutions[0].weight[0, :, 1, 1] = 1 / 3
        model.convolutions[0].bias.fill_(1.0)  # 0 for black, 2 for white
        model.hidden.weight[0] = 0.25
        model.head.weight[:, 0] = torch.tensor([2.0, -2.0, 0.0])
        model.head.bias.copy_(torch.tensor([-2.9, 1.0, 0.0]))  # dark below 0.5, bright above 1.45
    folder.mkdir(parents=True)
    save_model(model, folder)
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> tuple[PictureLabels, LabelDrawings]:
    """Both, of made-up files."""
    path, who = str(labelled_files(tmp_path)), str(judging(tmp_path / "judge"))
    return PictureLabels(path=path), LabelDrawings(path=path, judge=who)


def test_problems_are_the_files_pictures(tasks: tuple[PictureLabels, LabelDrawings]) -> None:
    labels, drawings = tasks
    assert (labels.size("train"), labels.size("held-out")) == (64, 32)
    assert [labels.problem("held-out", i, 9).gold for i in range(4)] == ["t-shirt", "trousers", "pullover", "t-shirt"]
    epoch = [labels.problem("train", i, 1).pictures for i in range(64)]
    assert len(set(epoch)) == 64 and epoch != [labels.problem("train", i, 2).pictures for i in range(64)]
    for split in ("train", "held-out"):
        for index in range(6):
            shown, asked = labels.problem(split, index, 1), drawings.problem(split, index, 1)
            assert shown == labels.problem(split, index, 1) and shown.gold == asked.gold == asked.prompt
            assert labels.check_gold(shown).outcome == drawings.check_gold(asked).outcome == "right"
            assert drawings.document(asked, False) == shown.pictures[0]
    (message,) = conversation(shown)
    assert message["content"].startswith(PICTURE) and from_url(message["pictures"][0]).shape == (16, 16, 3)
    (message,) = conversation(asked)
    assert message["draws"] and message["content"] in LABELS
    with pytest.raises(ConfigError, match="wanted 33 held-out problems, came 32"):
        labels.problem("held-out", 32, 1)


def test_verdicts(tasks: tuple[PictureLabels, LabelDrawings]) -> None:
    labels, drawings = tasks
    shown, asked = labels.problem("held-out", 0, 1), drawings.problem("held-out", 0, 1)
    for reply, outcome, shape in ((" t-shirt\n", "right", 1), ("pullover", "wrong", 1), ("a dog", "wrong", 0)):
        verdict = judge(labels, shown, reply)
        assert (verdict.outcome, verdict.parts["format"]) == (outcome, shape)
    dark, bright = (to_url(np.full((16, 16, 3), level, np.uint8)) for level in (10, 250))
    for reply, outcome, shape in (
        (dark, "right", 1),
        (bright, "wrong", 1),
        ("", "wrong", 0),
        (bright[:40], "wrong", 0),
    ):
        verdict = judge(drawings, asked, reply)
        assert (verdict.outcome, verdict.parts["format"]) == (outcome, shape)
    assert judge(drawings, asked, bright).reason == "shows pullover"
    assert judge(drawings, Problem("x", "zebra", "zebra", draws=True), dark).outcome == "error"
    lost = drawings.model_copy(update={"judge": "nowhere"})
    assert judge(lost, asked, dark).outcome == "error", "a judge that is not there is no wrong drawing"


def test_spread_is_the_mean_distance_within_labels(tasks: tuple[PictureLabels, LabelDrawings]) -> None:
    _, drawings = tasks
    levels = {"t-shirt": (0, 40, 80), "pullover": (200, 240), "trousers": (120,)}
    drawn = [(word, to_url(np.full((4, 4, 3), level, np.uint8))) for word, ls in levels.items() for level in ls]
    unit = 2 / 255  # of the hidden layer, a level
    assert drawings.spread(drawn) == pytest.approx(unit * ((40 + 80 + 40) / 3 + 40) / 2, rel=1e-4)
    assert drawings.spread(drawn[-1:]) is None
    points = np.random.default_rng(1).normal(size=(6, 3))
    every = [np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[i + 1 :]]
    assert mean_distance(points) == pytest.approx(float(np.mean(every)))


def test_a_judge_is_part_of_the_verifier_and_files_are_named(
    tmp_path: Path, tasks: tuple[PictureLabels, LabelDrawings]
) -> None:
    _, drawings = tasks
    before = verifier_digest(drawings)
    weights = Path(drawings.judge, "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert verifier_digest(drawings) != before
    with pytest.raises(ConfigError, match="dataset-fashion-mnist"):
        PictureLabels(path=str(tmp_path / "nothing")).size("train")
    with pytest.raises(ConfigError, match="judge"):
        read_task({"name": "label_drawings"}, "here")
    assert PictureLabels().path == DEBIAN
