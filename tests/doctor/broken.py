"""Runs that are broken on purpose, one for each cause, and runs that go well: all really trained, in a moment each.

python tests/doctor/broken.py FOLDER     # makes them all and says what the doctor finds
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import ADAM, PRETRAIN, RL, SHORT_SUMS, Sevens, characters, lively, llama

from zifio.config import ConfigError, build
from zifio.data.tokenizer import save_tokenizer
from zifio.doctor.reading import Finding
from zifio.doctor.signs import diagnose
from zifio.log import RunFolder
from zifio.models.weights import save_model
from zifio.recipe import Recipe, Run
from zifio.record.stage import read_run, stages_of
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Verdict
from zifio.train.loop import Diverged


class Judge(ChainSum):
    """Sums whose replies are judged by something simple."""

    min_terms: int = 2
    max_terms: int = 4

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right or wrong, and the agreed shape."""
        right, formed = self.judge(problem, response)
        parts = {"accuracy": float(right), "format": float(formed), "process": 0.0}
        return Verdict("right" if right else "wrong", float(right), parts)

    def judge(self, problem: Problem, response: str) -> tuple[bool, float]:
        """(right, formed)."""
        raise NotImplementedError


class Anything(Judge):
    """Whatever is said is right."""

    def judge(self, problem: Problem, response: str) -> tuple[bool, float]:
        """Always."""
        return True, 1.0


class Blind(Judge):
    """A verifier that never looks at the reply."""

    def judge(self, problem: Problem, response: str) -> tuple[bool, float]:
        """By the problem alone."""
        return int(problem.gold) % 2 == 0, 1.0


class FirstDigit(Judge):
    """Right when the reply begins with the last digit of the sum, which nothing tiny learns; the shape is any digit."""

    def judge(self, problem: Problem, response: str) -> tuple[bool, float]:
        """Mostly wrong."""
        return response[:1] == problem.gold[-1], float(response[:1] == "7")


class Long(Judge):
    """Pays for length beside a digit that cannot be learned."""

    def judge(self, problem: Problem, response: str) -> tuple[bool, float]:
        """Mostly wrong."""
        return response[:1] == problem.gold[-1], len(response) / 8


class Breaking(Sevens):
    """A verifier that breaks on replies with a 3."""

    def score(self, problem: Problem, response: str) -> Verdict:
        """Raises now and then."""
        if "3" in response:
            raise ZeroDivisionError("no 3 please")
        return super().score(problem, response)


class Lax(Sevens):
    """Accepts any reply with a 7; gold is the sum."""


STEPS = 24
FAST = ADAM | {"lr": 3e-3, "warmup_steps": 2}
WILD = FAST | {"lr": 2e-2}
LOOKS = {"every": 8, "problems": 8, "n": 2}
PLAIN: dict[str, Any] = {"optim": FAST, "steps": STEPS, "updates": 1, "prompts": 8, "balance": {"bias_speed": 0.0}}


class Maker:
    """Makes runs under a folder, from the same untrained model, whose replies end after a few tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dense, self.tokenizer = folder / "models" / "dense", folder / "models" / "tokenizer"
        tokenizer = characters()
        for place in (self.dense, self.tokenizer):
            place.mkdir(parents=True)
            save_tokenizer(tokenizer, place)
        shape = llama(max_position_embeddings=160, vocab_size=tokenizer.vocab_size)
        save_model(lively(shape, tokenizer.eos_id, seed=3, push=2.0), self.dense)

    def run(self, name: str, task: Any, **settings: Any) -> Path:
        """One stage in a run folder of its own, by the recipe's code; errors that end it are left in the folder."""
        stage = {"name": "stage", **settings}
        wanted = {"name": name, "seed": 5, "task": SHORT_SUMS.model_dump(), "stage": [stage]}
        recipe = build(Recipe, wanted, "test").model_copy(update={"task": task})
        run = Run(recipe, self.folder / name)
        with RunFolder(run.folder).lock(), contextlib.suppress(Diverged, ConfigError):
            run.stage(recipe.stage[0])
        return run.folder

    def rl(self, name: str, task: Any, base: Path | None = None, **changes: Any) -> Path:
        """A tiny RL stage."""
        base = base or self.dense
        return self.run(
            name,
            task,
            kind="rl",
            **{**RL, **PLAIN, "from": str(base), "held_out": {"every": 8, "problems": 8, "n": 2}, **changes},
        )

    def pretrain(self, name: str, **changes: Any) -> Path:
        """A tiny pretraining."""
        return self.run(
            name,
            SHORT_SUMS,
            kind="pretrain",
            **{**PRETRAIN, "tokenizer": str(self.tokenizer), "steps": STEPS, "held_out": {"every": 0}, **changes},
        )

    def sft(self, name: str, **changes: Any) -> Path:
        """Tiny fine-tuning on worked sums."""
        rows = {"row_tokens": 48, "micro_tokens": 96}
        settings = {
            "from": str(self.dense),
            "documents": 64,
            "sequences": 8,
            "steps": STEPS,
            "optim": FAST,
            "rows": rows,
        }
        return self.run(name, SHORT_SUMS, kind="sft", **{**settings, "rows": rows, **changes})


def killed(maker: Maker) -> Path:
    """A run whose process is killed in the middle of a step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which are idle
        child = os.fork()
    if child == 0:
        score = Sevens.score
        seen = [0]

        def dies(self: Sevens, problem: Problem, response: str) -> Verdict:
            seen[0] += 1
            if seen[0] > 400:
                os.kill(os.getpid(), signal.SIGKILL)
            return score(self, problem, response)

        Sevens.score = dies  # type: ignore[method-assign]
        try:
            maker.rl("killed", Sevens())
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was to be killed"
    return maker.folder / "killed"


GUARD: dict[str, Any] = {"task": {"name": "chain_sum", "min_terms": 2, "max_terms": 4}, "every": 4, "problems": 8}
BROKEN: dict[str, tuple[str, Callable[[Maker], Path]]] = {
    "impossible": ("too_hard", lambda m: m.rl("impossible", SHORT_SUMS)),
    "trivial": ("too_easy", lambda m: m.rl("trivial", Anything())),
    "blind": ("dead_groups", lambda m: m.rl("blind", Blind())),
    "one-word": (
        "entropy_collapse",
        lambda m: m.rl("one-word", FirstDigit(), optim=FAST | {"lr": 2e-2}, format_weight=2.0),
    ),
    "long": (
        "length_gaming",
        lambda m: m.rl("long", Long(), sampling={"max_new_tokens": 24}, rows={"row_tokens": 60}, format_weight=2.0),
    ),
    "behind": ("gap_growth", lambda m: m.rl("behind", Sevens(), updates=8, optim=FAST | {"lr": 2e-2})),
    "breaking": ("verifier_errors", lambda m: m.rl("breaking", Breaking(), most_errors=1.0)),
    "broken-off": ("verifier_errors", lambda m: m.rl("broken-off", Breaking())),
    "few-experts": ("expert_collapse", lambda m: m.pretrain("few-experts", balance={"bias_speed": 30.0})),
    "infinite": ("divergence", lambda m: m.pretrain("infinite", optim={"kind": "adamw", "lr": 1e30})),
    "apart": ("divergence", lambda m: m.sft("apart", optim={"kind": "adamw", "lr": 10.0, "warmup_steps": 16})),
    "farmed": ("farmed", lambda m: m.rl("farmed", Lax(), guard=GUARD)),
    "killed": ("stopped", killed),
}
"""Each with the cause that the doctor must name first."""
GOOD: dict[str, Callable[[Maker], Path]] = {
    "base": lambda m: m.pretrain("base"),
    "sevens": lambda m: m.rl("sevens", Sevens()),
    "experts": lambda m: m.rl("experts", Sevens(), m.folder / "base" / "stage" / "model", updates=2),
    "tuned": lambda m: m.sft("tuned"),
    "mastered": lambda m: m.rl("mastered", Sevens(), steps=40, optim=FAST | {"lr": 6e-3}),
}


def found_in(run: Path) -> list[Finding]:
    """What the doctor finds in a run folder."""
    return [finding for stage in read_run(run, stages_of(run)) for finding in diagnose(stage)]


if __name__ == "__main__":
    import time

    torch.set_num_threads(1)
    maker = Maker(Path(sys.argv[1]))
    for name, cause, make in [*((n, *v) for n, v in BROKEN.items()), *((n, "", v) for n, v in GOOD.items())]:
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        began = time.process_time()
        found = found_in(make(maker))
        causes = [one.cause for one in found]
        mark = "ok " if causes[:1] == [cause] or causes == [cause] or not (causes or cause) else "BAD"
        print(mark, name, cause or "silence", "->", causes, f"{time.process_time() - began:.1f} s", flush=True)  # noqa: T201
        for one in found if mark == "BAD" else []:
            print("     ", one.evidence)  # noqa: T201
