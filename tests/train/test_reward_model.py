"""A reward model as RL's reward: its own scores on a scale that means something, learnt from, watched, and resumed."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from tiny import (
    RL,
    SHORT_SUMS,
    Chatter,
    characters,
    context,
    deepseek,
    in_one_and_in_two,
    llama,
    made,
    metrics,
    run,
    save_base,
)

from zifio.config import ConfigError, build
from zifio.data.sources import write_jsonl
from zifio.engine.scorer import Scorer
from zifio.models.decoder import with_scores
from zifio.recipe import load_recipe, references
from zifio.seed import stream
from zifio.tasks.episode import Episode, Reply
from zifio.tasks.task import Problem, Verdict
from zifio.train.config import RlStage
from zifio.train.draw import rewards
from zifio.train.preference import Preference, pair_sequences
from zifio.train.reward_model import ModelReward

TOKENIZER = characters()
PROBLEM = Problem("chain_sum/train/0/0", "1+2+3", "6", "1+2=3+3=6")
TEXTS = ["<think>1+2=3+3=6</think><answer>6</answer>", "<think></think><answer>6</answer>", "7", ""]
STAGE: dict[str, Any] = RL | {"kind": "rl", "name": "tiny", "reward_model": "rm"}


def stage(**changes: Any) -> RlStage:
    """The tiny stage with a reward model."""
    return build(RlStage, STAGE | changes, "test")


def scorer(n_labels: int = 1) -> Scorer:
    """An untrained reward model."""
    return Scorer(with_scores(made(llama(vocab_size=TOKENIZER.vocab_size)), n_labels, seed=1), TOKENIZER)


def episode(text: str, outcome: Any = "wrong") -> Episode:
    """A reply that a task has judged."""
    tokens = [*TOKENIZER.encode(text), TOKENIZER.eos_id]
    verdict = Verdict(outcome, float(outcome == "right"), {"format": 1.0})
    return Episode(PROBLEM, Reply(tokens, text, [-1.0] * len(tokens)), verdict)


def as_in_training(scorer: Scorer, text: str) -> float:
    """The score that the loss of a `reward` stage sees: at the last token of a chosen reply."""
    messages = [{"role": "user", "content": PROBLEM.prompt}]
    sequence, _ = pair_sequences(TOKENIZER, Preference(messages, text, "0"), ends_only=True)
    tokens = torch.tensor([sequence.tokens])
    with torch.no_grad():
        hidden_BTD = scorer.model(tokens, torch.arange(tokens.shape[1])[None]).hidden_BTD
        return scorer.model.score(hidden_BTD)[0, sequence.columns["pair"].index(1.0), 0].item()


def test_scores_are_those_of_the_reward_stage_in_deviations_of_the_starting_models():
    judge, group = scorer(), [episode(text) for text in TEXTS]
    wanted = [as_in_training(judge, text) for text in TEXTS]
    source = ModelReward(stage(), SHORT_SUMS, judge)
    assert source.settle([group, [episode("777", "error")]]) > 0
    (found,), flops = source.rewarded(SHORT_SUMS, [group])
    assert flops > 0 and len(set(wanted)) == len(TEXTS)
    assert [one.verdict.parts["score"] for one in found] == pytest.approx(wanted, abs=1e-6)
    mean, deviation = fmean(wanted), pstdev(wanted)
    scaled = [(score - mean) / deviation for score in wanted]
    assert [one.verdict.parts["model"] for one in found] == pytest.approx(scaled, abs=1e-4)
    assert source.summary() == pytest.approx({"reward_model_mean": mean, "reward_model_deviation": deviation}, abs=1e-6)
    for before, after in zip(group, found, strict=True):
        assert (after.verdict.outcome, after.verdict.reward) == (before.verdict.outcome, before.verdict.reward)
        assert after.reply is before.reply


def test_it_is_added_to_what_the_task_pays():
    settings = stage(accuracy_weight=2.0, format_weight=0.5, reward_weight=0.25)
    source = ModelReward(settings, SHORT_SUMS, scorer())
    group = [episode(TEXTS[0], "right"), episode(TEXTS[1]), episode(TEXTS[2], "error")]
    source.settle([group])
    (found,), _ = source.rewarded(SHORT_SUMS, [group])
    assert found[2] == group[2], "a check that broke stays an error"
    ((right, wrong, broken),), counted_PG = (rewards(settings, [found])[0].tolist(), rewards(settings, [found])[1])
    assert right == pytest.approx(2.5 + 0.25 * found[0].verdict.parts["model"])
    assert wrong == pytest.approx(0.5 + 0.25 * found[1].verdict.parts["model"])
    assert broken == 0.0 and counted_PG.tolist() == [[True, True, False]]


def test_it_may_read_what_stands_behind_the_thinking_alone():
    judge = scorer()
    source = ModelReward(stage(reward_on="answer"), SHORT_SUMS, judge)
    source.settle([[episode(text) for text in TEXTS]])
    (found,), _ = source.rewarded(SHORT_SUMS, [[episode(text) for text in TEXTS[:2]]])
    wanted = as_in_training(judge, "<answer>6</answer>")
    assert [one.verdict.parts["score"] for one in found] == pytest.approx([wanted] * 2, abs=1e-6)


def test_scores_that_do_not_differ_are_no_division_by_zero():
    source = ModelReward(stage(), SHORT_SUMS, scorer())
    source.settle([[episode("7"), episode("7")]])
    (found,), _ = source.rewarded(SHORT_SUMS, [[episode("7")]])
    assert found[0].verdict.parts["model"] == 0.0
    source.settle([[episode("7", "error")]])
    assert source.summary() == {"reward_model_mean": 0.0, "reward_model_deviation": 1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, and a reward model made from it that likes sevens: a `reward` stage's own."""
    folder = tmp_path_factory.mktemp("models")
    base, rows = save_base(folder / "base", deepseek()), []
    for index in range(48):
        rng = stream(1, "sevens", index)
        prompt = SHORT_SUMS.problem("train", index, 1).prompt
        words = ["".join(rng.choice("012345689+-=") for _ in range(rng.randrange(1, 6))) for _ in range(2)]
        place = rng.randrange(len(words[0]) + 1)
        rows.append({"prompt": prompt, "chosen": words[0][:place] + "7" + words[0][place:], "rejected": words[1]})
    write_jsonl(folder / "pairs.jsonl", rows)
    settings = {"from": "base", "data": "pairs", "steps": 16, "pairs": 16, "optim": {"lr": 1e-2},
                "rows": {"row_tokens": 40, "micro_tokens": 800}}  # fmt: skip
    run("reward", settings, context(folder / "rm", base=base, pairs=folder / "pairs.jsonl"))
    return {"base": base, "rm": folder / "rm" / "model"}


LEARN: dict[str, Any] = RL | {
    "steps": 12, "prompts": 6, "group": 8, "updates": 1, "checkpoint_every": 5, "gate": True,
    "optim": {"kind": "adamw", "lr": 3e-3, "warmup_steps": 4}, "rows": {"row_tokens": 40, "micro_tokens": 1000},
    "reward_model": "rm", "accuracy_weight": 0.0, "format_weight": 0.0,
    "guard": {"task": {"name": "chain_sum", "min_terms": 2, "max_terms": 4}, "every": 3, "problems": 8, "gap": 0.3},
}  # fmt: skip


def test_a_policy_learns_what_the_reward_model_prefers_and_the_guard_sees_it(models: dict[str, Path], tmp_path: Path):
    """No verdict counts, so the gate is open; the model's favour grows and gold does not, which is alarming."""
    totals = run("rl", LEARN, context(tmp_path / "run", **models))
    lines = metrics(tmp_path / "run")
    rewarded = [line for line in lines if "rewards/model/mean" in line]
    assert rewarded[0]["rewards/model/mean"] == pytest.approx(0.0, abs=1e-6), "the scale is the starting model's"
    assert rewarded[-1]["rewards/model/mean"] > 0.7
    for line in rewarded:
        score = totals["reward_model_mean"] + totals["reward_model_deviation"] * line["rewards/model/mean"]
        assert line["rewards/score/mean"] == pytest.approx(score, abs=1e-4)
        assert line["reward"] == pytest.approx(line["rewards/model/mean"], abs=1e-5)
    looks = [line for line in lines if "guard/proxy" in line]
    assert looks[-1]["guard/proxy"] > looks[0]["guard/proxy"] + 0.3 and looks[-1]["guard/gold"] < 0.2
    assert totals["n_alarms"] >= 1 and list((tmp_path / "run").glob("alarm-*.json"))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_two_halves_are_one_run(asynchronous: bool, models: dict[str, Path], tmp_path: Path):
    """The scale is in every checkpoint."""
    settings = LEARN | {"steps": 5, "checkpoint_every": 2, "asynchronous": asynchronous}
    whole, halves = in_one_and_in_two("rl", settings, tmp_path, 2, **models)
    assert {**whole, "seconds": 0} == {**halves, "seconds": 0}


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"reward_model": None, "reward_weight": 0.5}, "reward_weight is about a reward model, and there is none"),
        ({"reward_model": None, "reward_on": "answer"}, "reward_on is about a reward model"),
        ({"reward_model": None, "accuracy_weight": 0.0, "format_weight": 0.0}, "leave no reward"),
        ({"reward_weight": 0.0}, "reward_weight"),
        ({"reward_on": "thinking"}, "reward_on"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        stage(**settings)


def test_what_cannot_be_scored_says_so():
    with pytest.raises(ConfigError, match="wanted a task of single questions"):
        ModelReward(stage(), Chatter(), scorer())
    with pytest.raises(ConfigError, match=r"wanted a model that scores whole replies \(1 label\)"):
        ModelReward(stage(), SHORT_SUMS, scorer(n_labels=2))


def test_a_recipe_tells_a_reward_model_of_steps_from_one_of_replies(tmp_path: Path):
    smoke = (Path(__file__).parents[2] / "recipes" / "smoke.toml").read_text()
    stage = 'kind = "rl"\nname = "liked"\nfrom = "base"\nsteps = 1\nsampling = { max_new_tokens = 8 }\n'
    path = tmp_path / "recipe.toml"
    path.write_text(f'{smoke}\n[[stage]]\n{stage}reward_model = "preferred"\n')
    recipe = load_recipe(path, [])
    assert references(recipe.stage[-1]) == ["base", "preferred"]
    for name, made_by_it in (("prm", "scores of steps"), ("r1", "a model"), ("replies", "data")):
        path.write_text(f'{smoke}\n[[stage]]\n{stage}reward_model = "{name}"\n')
        with pytest.raises(ConfigError, match=f"liked.reward_model: wanted .*scores of replies, .*makes {made_by_it}"):
            load_recipe(path, [])
