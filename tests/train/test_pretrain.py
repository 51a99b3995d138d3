"""Pretraining text: a function of its address, its share of workings, its curriculum, which tokens count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import PRETRAIN, characters, context, deepseek, run, save_base

import zifio.train.pretrain as pretrain_module
from zifio.config import ConfigError
from zifio.data.pack import Sequence
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import is_held_out

TASK = ChainSum(min_terms=2, max_terms=8)


def documents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, steps: int = 6, **changes: Any) -> list[list[Sequence]]:
    """The sequences of every step, before they are packed."""
    seen: list[list[Sequence]] = []

    def watching(sequences: list[Sequence], *layout: int) -> list[Any]:
        seen.append(sequences)
        return []

    base = save_base(tmp_path / "tokenizer", deepseek())
    settings = PRETRAIN | {"documents": 40, "steps": steps, "rows": {"row_tokens": 96}} | changes
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_module, "make_batches", watching)
        patch.setattr("zifio.train.loop.Trainer.run", lambda self, batches: [batches(s) for s in range(steps)] and {})
        run("pretrain", settings, context(tmp_path / "run", TASK, tokenizer=base))
    return seen


def texts(step: list[Sequence]) -> list[str]:
    """What they say."""
    return [characters().tokenizer.decode(one.tokens, skip_special_tokens=False) for one in step]


def test_documents_are_a_function_of_their_place(monkeypatch, tmp_path: Path):
    """However many a step takes; never the same batch twice; none of them held out."""
    one = documents(monkeypatch, tmp_path)
    two = documents(monkeypatch, tmp_path, steps=3, documents=80)
    flat = [text for step in one for text in texts(step)]
    assert flat == [text for step in two for text in texts(step)]
    assert len(set(flat)) > 0.9 * len(flat)
    prompts = [text.split("<｜User｜>")[1].split("<｜Assistant｜>")[0] for text in flat]
    assert not any(is_held_out(prompt) for prompt in prompts)
    assert sum(is_held_out(TASK.problem("held-out", i, 1).prompt) for i in range(50)) == 50


@pytest.mark.parametrize("p_cot", [0.0, 0.3, 1.0])
def test_the_share_that_shows_its_working(p_cot: float, monkeypatch, tmp_path: Path):
    flat = [text for step in documents(monkeypatch, tmp_path, p_cot=p_cot) for text in texts(step)]
    shown = sum("<think></think>" not in text for text in flat) / len(flat)
    assert shown == p_cot if p_cot in (0.0, 1.0) else abs(shown - p_cot) < 0.1


@pytest.mark.parametrize("loss_on", ["all", "reply"])
def test_which_tokens_count(loss_on: str, monkeypatch, tmp_path: Path):
    """Equally, in all one; never the first, before which nothing stands."""
    for step in documents(monkeypatch, tmp_path, loss_on=loss_on):
        total = sum(sum(one.weight) for one in step)
        assert total == pytest.approx(1.0)
        counted = 0
        for one in step:
            start = 1 if loss_on == "all" else one.tokens.index(4) + 1  # 4 is the assistant's mark
            assert not any(one.weight[:start]) and all(one.weight[start:])
            counted += len(one.tokens) - start
        assert {round(w * counted, 6) for one in step for w in one.weight} == {0.0, 1.0}


def n_terms(text: str) -> int:
    """Terms of the question."""
    question = text.split("<｜User｜>")[1].split("<｜Assistant｜>")[0]
    return question.count("+") + question.count("-") + 1


def test_a_curriculum_grows_to_the_full_task(monkeypatch, tmp_path: Path):
    curriculum = {"option": "max_terms", "start": 3, "until": 0.5}
    steps = documents(monkeypatch, tmp_path, steps=10, documents=60, curriculum=curriculum)
    most = [max(n_terms(text) for text in texts(step)) for step in steps]
    assert most == [3, 4, 5, 6, 7, 8, 8, 8, 8, 8]
    plain = documents(monkeypatch, tmp_path, steps=10, documents=60)
    assert texts(plain[-1]) == texts(steps[-1]), "then it is the very text without one"


@pytest.mark.parametrize(
    "curriculum, parts",
    [
        ({"option": "max_term", "start": 3}, ("curriculum", "'max_term'", "chain_sum")),
        ({"option": "working", "start": 3}, ("curriculum", "'working'", "'chained'")),
        ({"option": "max_terms", "start": 9}, ("curriculum", "from 9 to 8", "lower start")),
        ({"option": "max_terms", "start": 1}, ("max_terms",)),
    ],
    ids=str,
)
def test_an_impossible_curriculum_is_refused(curriculum: dict[str, Any], parts, monkeypatch, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        documents(monkeypatch, tmp_path, curriculum=curriculum)
    for part in parts:
        assert part in str(error.value)
