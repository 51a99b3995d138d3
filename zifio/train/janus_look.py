"""Looks at a model that reads and draws: captions of held-out pictures, drawings of held-out scenes.

Of glyph scenes both are judged exactly, drawings under each of the stage's scales of guidance, and scenes whose colours
and shapes training never names together apart from the others. Of pairs from a file the text must be the very same;
where the stage names a judge (kind `classifier`), it says whether a drawing shows the text that was asked for.

Try it alone: `pytest tests/train/test_janus_stage.py -k look`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zifio.config import Sampling
from zifio.data.pairs import Pair
from zifio.data.template import ChatTokenizer
from zifio.models.janus import Janus
from zifio.pictures import PICTURE, to_url
from zifio.tasks.labelled import JudgedDrawings
from zifio.tasks.scenes import GlyphCaptions, GlyphDrawings
from zifio.tasks.task import Problem, Split, Task, Verdict
from zifio.train.loop import Look
from zifio.train.picture_config import JanusStage
from zifio.train.stage import Context

_FIGURES = ("pass_at_1", "pass_at_1_low", "pass_at_1_high", "format_rate", "spread", "real_spread", "real_pass_at_1")
_UNSEEN = ("held_out", False), ("unseen", True)


class PairTexts:
    """Held-out pairs as a task; right is the very text."""

    name = "pairs"

    def __init__(self, pairs: Sequence[Pair], question: str) -> None:
        self.pairs, self.question = [pair for pair in pairs if pair.kind != "generation"], question

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """A picture and what is asked about it; the same whatever the seed."""
        pair = self.pairs[index]
        prompt = PICTURE + (pair.question or self.question)
        return Problem(f"pairs/{split}/{index}", prompt, pair.text, pictures=(to_url(pair.picture()),))

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The text."""
        return problem.gold

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right for the very text."""
        right = response.strip() == problem.gold.strip()
        return Verdict("right" if right else "wrong", float(right), {"accuracy": float(right)})

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the text itself."""
        return self.score(problem, problem.gold)


class PairDrawings(JudgedDrawings):
    """Texts of held-out pairs to be drawn, as a task; right is what the judge says of a drawing."""

    name = "pair_drawings"

    def __init__(self, pairs: Sequence[Pair], judge: Path) -> None:
        self.pairs, self.judge = [pair for pair in pairs if pair.kind != "understanding"], str(judge)

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """A text; the same whatever the seed."""
        text = self.pairs[index].text
        return Problem(f"pair_drawings/{split}/{index}", text, text, draws=True)

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The pair's own picture."""
        return to_url(self.pairs[int(problem.id.rpartition("/")[2])].picture())


def looking_at(stage: JanusStage, context: Context, tokenizer: ChatTokenizer, kept: Sequence[Pair] | None) -> Look:
    """The look of a stage: at scenes, or at the pairs that are kept for it."""
    looks: dict[str, Look] = {}
    likeliest = stage.sampling.model_copy(update={"temperature": 0.0})
    if kept is not None:
        task = PairTexts(kept, stage.question)
        if task.pairs:
            held = {"problems": min(stage.held_out.problems, len(task.pairs)), "n": 1}
            looks["captions/held_out"] = _look(stage, context, tokenizer, task, likeliest, **held)
        if stage.judge is not None and (task := PairDrawings(kept, context.model_of(stage.judge))).pairs:
            held = {"problems": min(stage.held_out.problems, len(task.pairs))}
            looks |= _drawings(stage, context, tokenizer, task, "held_out", **held)
    else:
        for name, unseen in _UNSEEN:
            task = GlyphCaptions(unseen=unseen)
            looks[f"captions/{name}"] = _look(stage, context, tokenizer, task, likeliest, n=1)
            looks |= _drawings(stage, context, tokenizer, GlyphDrawings(unseen=unseen), name)

    def look(model: Janus, step: int) -> tuple[dict[str, float], float]:
        metrics: dict[str, float] = {}
        total = 0.0
        for name, one in looks.items():
            found, flops = one(model, step)
            metrics |= {f"{name}/{key}": found[key] for key in _FIGURES if key in found}
            total += flops
        return metrics, total

    return look


def _drawings(
    stage: JanusStage, context: Context, tokenizer: ChatTokenizer, task: Task, split: str, **held: int
) -> dict[str, Look]:
    """A look at drawings for each scale of guidance."""
    how = {scale: stage.sampling.model_copy(update={"guidance": scale}) for scale in stage.scales}
    return {
        f"drawings/{split}/guidance_{scale:g}": _look(stage, context, tokenizer, task, one, **held)
        for scale, one in how.items()
    }


def _look(
    stage: JanusStage, context: Context, tokenizer: ChatTokenizer, task: Task, how: Sampling, **held: int
) -> Look:
    """A look at one task, with replies drawn in this way."""
    settings = {"sampling": how, "held_out": stage.held_out.model_copy(update=held)}
    return context.look(stage.model_copy(update=settings), tokenizer, task)
