"""Scores of steps: those of the model's own forward pass, alone or together, to the last bit."""

from __future__ import annotations

import pytest
import torch
from tiny import characters, deepseek, llama, made

from zifio.config import ConfigError
from zifio.data.solution import encode_steps
from zifio.engine import scorer as scorer_module
from zifio.engine.scorer import Scorer
from zifio.models.decoder import with_scores

SOLVED = [
    ([{"role": "user", "content": prompt}], steps)
    for prompt, steps in [
        ("1+2+3", ["<think>1+2=3", "+3=6", "</think><answer>6</answer>"]),
        ("1+2+3", ["<think>1+2=4", "+3=7"]),
        ("9-1", ["<think></think><answer>8</answer>"]),
        ("4+4", []),
        ("1+2+3+4+5+6", ["<think>1+2=3", "+3=6", "+4=10", "+5=15", "+6=21", "</think><answer>21</answer>"]),
    ]
]  # fmt: skip
TOKENIZER = characters()


@pytest.fixture(params=[llama(), deepseek()], ids=["llama", "deepseek"])
def process(request: pytest.FixtureRequest) -> Scorer:
    """An untrained process reward model."""
    body = made(request.param.model_copy(update={"vocab_size": TOKENIZER.vocab_size}))
    return Scorer(with_scores(body, 2, seed=1), TOKENIZER)


def test_scores_are_the_probabilities_at_the_ends_of_steps(process: Scorer):
    scores, flops = process.scores(SOLVED)
    assert [len(one) for one in scores] == [3, 2, 1, 0, 6]
    for (messages, steps), mine in zip(SOLVED, scores, strict=True):
        tokens, _, ends = encode_steps(TOKENIZER, messages, steps)
        with torch.no_grad():
            hidden = process.model(torch.tensor([tokens]), torch.arange(len(tokens))[None]).hidden_BTD
            wanted = process.model.score(hidden).softmax(dim=-1)[0, ends, 1]
        assert mine == pytest.approx(wanted.tolist(), abs=1e-6)
    assert len({score for one in scores for score in one}) > 5
    assert flops > 0


def test_company_changes_nothing(process: Scorer, monkeypatch: pytest.MonkeyPatch):
    together = process.scores(SOLVED).values
    assert together == [process.scores([one]).values[0] for one in SOLVED]
    monkeypatch.setattr(scorer_module, "MICRO_TOKENS", 1)
    assert together == process.scores(SOLVED).values and process.scores([]).values == []


def test_a_step_is_scored_before_what_follows_it(process: Scorer):
    messages, steps = SOLVED[-1]
    (whole,), _ = process.scores([(messages, steps)])
    assert process.scores([(messages, steps[:3])]).values == [whole[:3]]


def test_a_reward_model_scores_the_whole_reply_at_its_end():
    body = made(llama(vocab_size=TOKENIZER.vocab_size))
    whole = Scorer(with_scores(body, 1, seed=1), TOKENIZER)
    messages, steps = SOLVED[0]
    (cut,), (joined,) = whole.scores([(messages, steps), (messages, ["".join(steps)])]).values
    assert cut == joined
    tokens, _ = TOKENIZER.encode_chat([*messages, {"role": "assistant", "content": "".join(steps)}])
    with torch.no_grad():
        hidden = whole.model(torch.tensor([tokens]), torch.arange(len(tokens))[None]).hidden_BTD
    assert cut == pytest.approx(whole.model.score(hidden)[0, -1, 0].item(), abs=1e-6)


def test_what_cannot_be_scored_says_so(process: Scorer):
    with pytest.raises(ConfigError, match="came a model with no labels"):
        Scorer(made(llama(vocab_size=TOKENIZER.vocab_size)), TOKENIZER)
    with pytest.raises(ConfigError, match="context of 96 tokens, came one of"):
        process.scores([(SOLVED[0][0], ["1" * 120])])
