"""Pictures with a label each, in the files of MNIST and Fashion-MNIST: to name what is shown, to draw what is named.

    picture_labels   a picture, "What is this?"    ankle boot
    label_drawings   ankle boot                    a picture, as a data URL

A label is judged by the file's own. A drawing is right when a classifier that learnt apart from the model (`judge`)
sees in it what was asked for; a classifier errs, so the share of real pictures that it tells right is the mark to
compare with. Problems are the test file's pictures in its own order, or the training file's in a new order every epoch.
Drawings of one label share their prompt: they are told apart by their place.

Try it alone:

    python -c "from zifio.tasks.labelled import *; print(PictureLabels(path='DIR').problem('held-out', 0, seed=1).gold)"
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from zifio.config import Config, ConfigError
from zifio.idx import read_idx
from zifio.pictures import PICTURE, from_url, to_url
from zifio.seed import nth
from zifio.stats import mean, mean_distance
from zifio.tasks.classifier import read_classifier
from zifio.tasks.task import Problem, Split, Verdict, address

QUESTION = f"{PICTURE}What is this?"
DEBIAN = "/usr/share/datasets/fashion-mnist"
_STEMS: dict[Split, str] = {"train": "train-images-idx3-ubyte", "held-out": "t10k-images-idx3-ubyte"}


class _Labelled(Config):
    """What both share."""

    path: str = DEBIAN
    """A folder with MNIST's four files, packed or not; by default where Debian's dataset-fashion-mnist has them."""

    def size(self, split: Split) -> int:
        """How many pictures a split has. Raises ConfigError when the files cannot be read."""
        return len(_read(self.path, split)[1])

    def at(self, split: Split, index: int, seed: int) -> tuple[np.ndarray, str]:
        """(picture, label) of a problem. Raises ConfigError beyond the end of the held-out split."""
        levels_NYX, labels = _read(self.path, split)
        if split == "held-out" and index >= len(labels):
            raise ConfigError(
                f"{self.path}: wanted {index + 1} held-out problems, came {len(labels)} pictures. Ask fewer."
            )
        place = index if split == "held-out" else nth(range(len(labels)), index, seed, "labelled")
        return np.repeat(levels_NYX[place][..., None], 3, axis=2), labels[place]


@lru_cache(maxsize=4)
def _read(path: str, split: Split) -> tuple[np.ndarray, list[str]]:
    folder = Path(path).expanduser()
    files = [folder / f"{_STEMS[split]}{end}" for end in (".gz", "")]
    for file in files:
        if file.is_file():
            return read_idx(file)
    raise ConfigError(
        f"{folder}: wanted {files[0].name}, came no such file. Debian has Fashion-MNIST (apt-get install "
        "dataset-fashion-mnist); of other files give the folder as `path`."
    )


class PictureLabels(_Labelled):
    """A config that is also the task."""

    name: Literal["picture_labels"] = "picture_labels"
    """Which task this is."""

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """A picture, and its label."""
        picture, label = self.at(split, index, seed)
        return Problem(address(self.name, split, index, seed), QUESTION, label, pictures=(to_url(picture),))

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The label."""
        return problem.gold

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right for the very label; another label has at least the agreed shape."""
        told = response.strip()
        right, known = told == problem.gold, told in _read(self.path, "held-out")[1]
        parts = {"accuracy": float(right), "format": float(right or known)}
        return Verdict("right" if right else "wrong", float(right), parts, "" if right else f"wanted {problem.gold}")

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the label itself."""
        return self.score(problem, problem.gold)


class JudgedDrawings:
    """What tasks share whose drawings a classifier judges: a drawing is right when it sees the gold in it."""

    judge: str

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The data's own picture, as a data URL."""
        raise NotImplementedError

    def score(self, problem: Problem, response: str) -> Verdict:
        """Whether the judge sees the label in the picture; what is no picture is wrong. ValueError where it knows no
        such label."""
        classifier = read_classifier(self.judge)
        if problem.gold not in classifier.labels:
            raise ValueError(f"{self.judge} knows no {problem.gold!r}")
        try:
            picture = from_url(response)
        except ConfigError as fault:
            return Verdict("wrong", 0.0, {"accuracy": 0.0, "format": 0.0}, str(fault))
        (told,) = classifier.told([picture])
        right = told == problem.gold
        parts = {"accuracy": float(right), "format": 1.0}
        return Verdict("right" if right else "wrong", float(right), parts, "" if right else f"shows {told}")

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the data's own picture, which the judge may get wrong."""
        return self.score(problem, self.document(problem, shows_working=False))

    def spread(self, drawn: Sequence[tuple[str, str]]) -> float | None:
        """Mean distance between two pictures with one label, in the classifier's hidden layer; a mean over labels.

        `drawn` has (label, picture as a data URL). None where no label has two.
        """
        by_label: dict[str, list[np.ndarray]] = {}
        for label, url in drawn:
            by_label.setdefault(label, []).append(from_url(url))
        features, many = read_classifier(self.judge).features, [one for one in by_label.values() if len(one) > 1]
        return mean([mean_distance(features(pictures)) for pictures in many]) if many else None


class LabelDrawings(JudgedDrawings, _Labelled):
    """A config that is also the task."""

    name: Literal["label_drawings"] = "label_drawings"
    """Which task this is."""
    judge: str
    """Who says what a drawing shows: in a recipe a `classifier` stage, or its folder."""

    @property
    def sources(self) -> list[Path]:
        """The files that judge."""
        return [Path(self.judge).expanduser() / "model.safetensors"]

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """A label, which is also the gold: many drawings are right."""
        label = self.at(split, index, seed)[1]
        return Problem(address(self.name, split, index, seed), label, label, draws=True)

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The file's own picture behind that label."""
        split, seed, index = problem.id.rsplit("/", 3)[1:]
        return to_url(self.at("train" if split == "train" else "held-out", int(index), int(seed))[0])
