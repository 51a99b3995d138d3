"""Process rewards: every form against its formula, credit to the tokens that earn it, and what cannot be rewarded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import RL, SHORT_SUMS, Chatter, characters, deepseek, llama, made

import zifio.train.draw as draw_module
from zifio.config import ConfigError, build
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import TokenizerConfig, train_tokenizer
from zifio.engine.scorer import Scorer
from zifio.models.decoder import with_scores
from zifio.tasks.episode import Episode, Reply
from zifio.tasks.splits import Splits
from zifio.tasks.steps import split_steps
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Verdict
from zifio.train.advantage import process_advantage
from zifio.train.config import Process, RlStage
from zifio.train.draw import Drawn, rewards
from zifio.train.process import StepRewards, combined, step_ends
from zifio.train.rl import Rollouts, step_advantages

TOKENIZER = characters()
TASK = ChainSum(min_terms=2, max_terms=4)
PROBLEM = Problem("chain_sum/train/0/0", "1+2+3", "6", "1+2=3+3=6")
REPLIES = {
    "true": "<think>1+2=3+3=6</think><answer>6</answer>",
    "false": "<think>1+2=3+3=7</think><answer>7</answer>",
    "padded": "<think>1+2=3+0=3+3=6</think><answer>6</answer>",
    "bare": "<think></think><answer>6</answer>",
    "shapeless": "1+2=3",
    "empty": "",
}


def process(form: str, **more: Any) -> Process:
    """Settings."""
    return build(Process, {"form": form, **more}, "test")


def episode(response: str, outcome: str | None = None) -> Episode:
    """A reply that TASK has judged."""
    verdict = TASK.score(PROBLEM, response) if outcome is None else Verdict(outcome, 0.0)  # type: ignore[arg-type]
    tokens = [*TOKENIZER.encode(response), TOKENIZER.eos_id]
    return Episode(PROBLEM, Reply(tokens, response, [-1.0] * len(tokens)), verdict)


def step_rewards(settings: Process, scorer: Scorer | None = None) -> StepRewards:
    """On TASK."""
    return StepRewards(settings, TASK, TOKENIZER, scorer, "tiny")


@pytest.mark.parametrize(
    "form, outcome, steps, wanted",
    [
        ("min", 1.0, [1.0, 0.3, 1.0], 0.3), ("min", 0.0, [1.0, 1.0], 0.0), ("min", 1.0, [], 0.0),
        ("gated", 1.0, [0.5, 0.9], 1.0), ("gated", 1.0, [0.4, 0.9], 0.0), ("gated", 0.0, [0.9], 0.0),
        ("gated", 1.0, [], 0.0), ("mean", 1.0, [1.0, 0.0], 1.0 + 0.25), ("mean", 0.0, [], 0.0),
        ("sum", 1.0, [1.0, 0.0, 1.0], 2.0), ("sum", 0.0, [1.0] * 9, 4.5), ("sum", 1.0, [], 1.0),
    ],
)  # fmt: skip
def test_the_forms(form: str, outcome: float, steps: list[float], wanted: float):
    assert combined(process(form, weight=0.5), outcome, steps) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "form, neutral, worth",
    [
        ("min", 0.0, {"true": 1, "false": 0, "padded": 0, "bare": 0, "shapeless": 0, "empty": 0}),
        ("min", 1.0, {"true": 1, "false": 0, "padded": 1, "bare": 0, "shapeless": 0, "empty": 0}),
        ("gated", 0.0, {"true": 1, "false": 0, "padded": 0, "bare": 0, "shapeless": 0, "empty": 0}),
        ("sum", 0.0, {"true": 3, "false": 1, "padded": 2, "bare": 1, "shapeless": 1, "empty": 0}),
        ("sum", 1.0, {"true": 3, "false": 1, "padded": 4, "bare": 1, "shapeless": 1, "empty": 0}),
        ("mean", 0.0, {"true": 2, "false": 1 / 2, "padded": 1 + 1 / 3, "bare": 1, "shapeless": 1, "empty": 0}),
    ],
)
def test_the_tasks_own_check_rewards_steps(form: str, neutral: float, worth: dict[str, float]):
    """A sum pays for padding where true steps count; the least step never does."""
    given = [[episode(REPLIES[name]) for name in worth]]
    (found,), _ = step_rewards(process(form, neutral=neutral)).rewarded(TASK, given)
    assert {name: one.verdict.reward for name, one in zip(worth, found, strict=True)} == pytest.approx(worth)
    for before, after in zip(given[0], found, strict=True):
        assert (
            after.verdict.outcome == before.verdict.outcome and after.verdict.parts["outcome"] == before.verdict.reward
        )
        assert after.reply is before.reply and after.steps == []


def test_a_check_that_broke_stays_an_error():
    broken = episode(REPLIES["true"], "error")
    assert step_rewards(process("sum")).rewarded(TASK, [[broken]]) == ([[broken]], 0.0)


def test_a_model_rewards_every_step_the_answer_too():
    scorer = Scorer(with_scores(made(llama(vocab_size=TOKENIZER.vocab_size)), 2, seed=1), TOKENIZER)
    given = [[episode(text) for text in REPLIES.values()]]
    (found,), flops = step_rewards(process("min", by="prm"), scorer).rewarded(TASK, given)
    pieces = [split_steps(text) for text in REPLIES.values()]
    scores = scorer.scores([([{"role": "user", "content": PROBLEM.prompt}], one) for one in pieces]).values
    assert flops > 0
    for one, mine in zip(found, scores, strict=True):
        assert one.verdict.parts["steps"] == len(mine)
        assert one.verdict.reward == (min([one.verdict.parts["outcome"], *mine]) if mine else 0.0)
    assert len({one.verdict.reward for one in found}) > 2


def test_ends_of_steps_in_tokens():
    for text in REPLIES.values():
        tokens, pieces = TOKENIZER.encode(text), split_steps(text)
        ends = step_ends(TOKENIZER, [*tokens, TOKENIZER.eos_id], pieces)
        assert ["".join(map(TOKENIZER.decode, [tokens[: end + 1]])) for end in ends] == [
            "".join(pieces[: k + 1]) for k in range(len(pieces))
        ]


def test_ends_of_steps_where_tokens_hold_more_than_a_character():
    """One that two steps share ends both."""
    tokenizer = ChatTokenizer(train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), ["cat. cat.\n"] * 50))
    pieces = ["the cat. ", "A cat", ". über"]
    tokens = tokenizer.encode("".join(pieces))
    ends = step_ends(tokenizer, tokens, pieces)
    for k, end in enumerate(ends):
        wanted = "".join(pieces[: k + 1])
        assert tokenizer.decode(tokens[: end + 1]).startswith(wanted)
        assert not tokenizer.decode(tokens[:end]).startswith(wanted)


STAGE: dict[str, Any] = {
    **RL, "kind": "rl", "name": "tiny", "group": 3, "prompts": 1, "updates": 1,
    "sampling": {"max_new_tokens": 40}, "rows": {"row_tokens": 60, "micro_tokens": 60},
}  # fmt: skip


def test_credit_by_step_is_deepseekmaths():
    """The steps' rewards at their last tokens, outcome and shape at the end, through a whole stage."""
    settings = {"form": "sum", "credit": "step", "weight": 0.5}
    stage = build(RlStage, {**STAGE, "process": settings, "accuracy_weight": 2.0, "format_weight": 0.25}, "test")
    rewarder = step_rewards(build(Process, settings, "test"))
    (group,), _ = rewarder.rewarded(TASK, [[episode(REPLIES[name]) for name in ("true", "false", "bare")]])
    assert [one.steps for one in group] == [[(5, 0.5), (9, 0.5)], [(5, 0.5), (9, 0.0)], []]
    lengths = [len(one.reply.tokens) for one in group]
    wanted = process_advantage(
        [[1.0, 1.0, 2.25], [1.0, 0.0, 0.25], [2.25]],
        [[5, 9, lengths[0] - 1], [5, 9, lengths[1] - 1], [lengths[2] - 1]],
        lengths,
    )
    found = step_advantages(stage, group)
    assert [pytest.approx(one) for one in wanted] == found
    assert rewards(stage, [group])[0].tolist() == [[2 * 2.0 + 0.25, 2 * 0.5 + 0.25, 2.25]]


def test_a_stage_trains_on_the_advantages_of_tokens(monkeypatch: pytest.MonkeyPatch):
    stage = build(RlStage, {**STAGE, "process": {"form": "sum", "credit": "step"}}, "test")
    group = [episode(REPLIES[name]) for name in ("true", "false", "bare")]
    monkeypatch.setattr(draw_module, "play", lambda *args: [group])
    rollouts = Rollouts(stage, 1, TASK, made(deepseek(vocab_size=TOKENIZER.vocab_size)), TOKENIZER)
    data = rollouts.step(0)
    (rewarded,), _ = step_rewards(stage.process).rewarded(TASK, [group])  # type: ignore[arg-type]
    wanted = sorted(step_advantages(stage, rewarded))
    found = []
    for batch in data.updates[0]:
        advantage, weight = batch.columns["advantage"], batch.columns["policy_weight"]
        n_prompt = len(TOKENIZER.encode("<｜begin▁of▁sentence｜><｜User｜>1+2+3<｜Assistant｜>"))
        lengths = [n if first else n - n_prompt for n, first in zip(batch.lengths, batch.firsts, strict=True)]
        sampled = advantage[weight != 0].split(lengths)
        found += [one.tolist() for one in sampled]
    assert sorted(len(one) for one in found) == sorted(map(len, wanted))
    torch.testing.assert_close(
        torch.tensor(sorted(x for one in found for x in one)), torch.tensor(sorted(x for one in wanted for x in one))
    )
    assert data.metrics["rewards/step_mean/mean"] > 0 and data.metrics["rewards/steps/mean"] == pytest.approx(4 / 3)


def test_credit_survives_a_checkpoint():
    (group,), _ = step_rewards(process("sum", credit="step")).rewarded(TASK, [[episode(REPLIES["true"])]])
    import json

    drawn = Drawn([group], {}, 0.0, 0.0)
    assert Drawn.from_json(json.loads(json.dumps(drawn.to_json()))).episodes_P_G == [group]


@pytest.mark.parametrize("task, scorer, said", [
    (Chatter(), None, "wanted a task of single questions"),
    (Splits(), None, "wanted a task that checks steps"),
    (Splits(), 1, "came one that scores whole replies"),
])  # fmt: skip
def test_what_cannot_be_rewarded_says_so(task: Any, scorer: int | None, said: str):
    model = Scorer(with_scores(made(llama(vocab_size=TOKENIZER.vocab_size)), 1, seed=1), TOKENIZER) if scorer else None
    with pytest.raises(ConfigError, match=said):
        StepRewards(process("min"), task, TOKENIZER, model, "tiny")


@pytest.mark.parametrize("settings, said", [
    ({"process": {"form": "min", "credit": "step"}}, "is one reward for a whole reply"),
    ({"process": {"form": "sum", "credit": "step"}, "advantage": "leave_one_out"}, "wants advantage"),
    ({"process": {"form": "sum", "credit": "step"}, "kl": "k1", "kl_in": "reward", "kl_weight": 0.1}, "no place for"),
    ({"process": {"form": "most"}}, "form"),
])  # fmt: skip
def test_settings_that_cannot_work(settings: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        build(RlStage, {**STAGE, **settings}, "test")


def test_names_of_process_reward_models_are_references():
    stage = build(RlStage, {**STAGE, "process": {"form": "min", "by": "prm"}}, "test")
    assert stage.scorers == {"process.by": "prm"} and not build(RlStage, STAGE, "test").scorers
    assert SHORT_SUMS.check_steps(PROBLEM, []) == []
