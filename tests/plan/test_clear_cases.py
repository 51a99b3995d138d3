"""Will it learn? Eight cases made to be clear, four that can and four that cannot, and RL to see who was right.

The task is to say a digit of the prompt. A base learns from documents of which a share is right and the rest says
whatever digit, so it is right about that often; RL then shows in a few steps whether that can be amplified.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from tiny import characters, context, llama, metrics, run

from zifio.config import Sampling
from zifio.data.tokenizer import save_tokenizer
from zifio.forecast.ask import will_it_learn
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Verdict

SAMPLING = {"temperature": 1.0, "max_new_tokens": 4}
GROUP, PROMPTS, STEPS = 16, 8, 30


def a_digit(prompt: str) -> str:
    """Some digit that has nothing to do with the prompt but is always the same for it."""
    return str(hashlib.sha256(prompt.encode()).digest()[0] % 10)


class Last(ChainSum):
    """Say the last digit; documents that show no working say some digit."""

    min_terms: int = 2
    max_terms: int = 3

    def gold(self, prompt: str) -> str:
        """The right answer."""
        return prompt[-1]

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The right answer, or some digit."""
        return self.gold(problem.prompt) if shows_working else a_digit(problem.prompt + "?")

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right or wrong; any single digit has the shape."""
        right = response == self.gold(problem.prompt)
        parts = {"accuracy": float(right), "format": float(len(response) == 1 and response.isdigit())}
        return Verdict("right" if right else "wrong", float(right), parts)

    def problem(self, split: Any, index: int, seed: int) -> Problem:
        """Its gold is our own."""
        found = super().problem(split, index, seed)
        return Problem(found.id, found.prompt, self.gold(found.prompt))


class First(Last):
    """Say the first digit."""

    def gold(self, prompt: str) -> str:
        """The first character."""
        return prompt[0]


class Unrelated(Last):
    """Say a digit that nobody can know: right by luck alone."""

    def gold(self, prompt: str) -> str:
        """Drawn by the prompt's digest."""
        return a_digit(prompt)


class Doubled(Last):
    """Say the last digit twice, which the bases never do."""

    def gold(self, prompt: str) -> str:
        """Twice the last digit."""
        return 2 * prompt[-1]

    def document(self, problem: Problem, shows_working: bool) -> str:
        """Once, as `Last`; the gold only for whoever asks for a working."""
        return self.gold(problem.prompt) if shows_working else a_digit(problem.prompt + "?")


class Generous(Last):
    """A verifier that pays for anything."""

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right."""
        return Verdict("right", 1.0, {"accuracy": 1.0, "format": 1.0})


def trained(folder: Path, task: Last, share_right: float, steps: int = 200) -> Path:
    """A base that has read documents of which this share is right."""
    save_tokenizer(characters(), folder / "tokenizer")
    settings = {
        "model": llama().model_copy(update={"vocab_size": None}).model_dump(exclude_none=True),
        "steps": steps, "documents": 32, "p_cot": share_right, "loss_on": "reply", "checkpoint_every": 1000,
        "rows": {"row_tokens": 48, "micro_tokens": 2048}, "optim": {"lr": 5e-3, "warmup_steps": 10},
    }  # fmt: skip
    run("pretrain", settings, context(folder, task, tokenizer=folder / "tokenizer"))
    return folder / "model"


def reinforced(folder: Path, base: Path, task: Last) -> tuple[float, float]:
    """pass@1 of the first and of the last steps of RL; the model is in folder/model."""
    settings = {
        "from": "base", "gate": False, "steps": STEPS, "prompts": PROMPTS, "group": GROUP, "checkpoint_every": 1000,
        "optim": {"lr": 3e-3, "warmup_steps": 3, "weight_decay": 0.0}, "sampling": SAMPLING,
        "rows": {"row_tokens": 48, "micro_tokens": 4096},
    }  # fmt: skip
    run("rl", settings, context(folder, task, base=base))
    rates = [line["pass_at_1"] for line in metrics(folder) if "pass_at_1" in line]
    return sum(rates[:3]) / 3, sum(rates[-3:]) / 3


def asked(base: Path, task: Last) -> dict[str, Any]:
    """What `zifio plan` says of it."""
    found = will_it_learn(base, task, 300, GROUP, PROMPTS, Sampling(**SAMPLING), 0.9)
    return found["outlook"]


@pytest.mark.slow
def test_eight_clear_cases(tmp_path: Path):
    often, seldom, never = (
        trained(tmp_path / name, Last(), share, steps)
        for name, share, steps in (("often", 0.4, 200), ("seldom", 0.25, 200), ("never", 0.0, 200))
    )
    first = trained(tmp_path / "first", First(), 0.4)
    mastered = trained(tmp_path / "mastered", Last(), 1.0)
    can = {"often": (often, Last()), "seldom": (seldom, Last()), "first": (first, First())}
    taught = trained(tmp_path / "half", Last(max_terms=2), 0.4)  # and RL is on longer prompts too
    can["longer"] = (taught, Last(max_terms=4))
    cannot = {
        "luck": (never, Unrelated()), "never": (often, Doubled()), "mastered": (mastered, Last()),
        "generous": (never, Generous()),
    }  # fmt: skip
    said = {name: asked(*case) for name, case in (can | cannot).items()}
    assert {name: said[name]["answer"] for name in can} == dict.fromkeys(can, "yes"), said
    assert {name: said[name]["answer"] for name in cannot} == dict.fromkeys(cannot, "no"), said
    for name, word in {"luck": "guesses", "never": "not one", "mastered": "already", "generous": "verifier"}.items():
        assert word in said[name]["reason"], said[name]
    for name, (base, task) in can.items():
        before, after = reinforced(tmp_path / f"rl-{name}", base, task)
        assert after > before + 0.2, f"{name} can, and RL took it from {before:.2f} to {after:.2f}"
    for name, (base, task) in cannot.items():
        before, after = reinforced(tmp_path / f"rl-{name}", base, task)
        if name == "generous":  # all is right by its own word: ask gold
            gold = will_it_learn(
                tmp_path / "rl-generous" / "model", Last(), 300, GROUP, PROMPTS, Sampling(**SAMPLING), 0.9
            )
            after = gold["pass_at_1"]
            before = will_it_learn(base, Last(), 300, GROUP, PROMPTS, Sampling(**SAMPLING), 0.9)["pass_at_1"]
        assert abs(after - before) < 0.1, f"{name} cannot, and RL took it from {before:.2f} to {after:.2f}"


def test_equal_seeds_ask_equal_problems(tmp_path: Path):
    """The answer is a pure function of its arguments."""
    base = trained(tmp_path / "base", Last(), 0.4, steps=3)
    assert asked(base, Last()) == asked(base, Last())
