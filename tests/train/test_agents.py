"""Episodes in turns under training: only what was sampled has weight, and nothing else about a step changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ADAM, RL, Chatter, Parrot, brief, context, deepseek, llama, metrics, run, save_brief, tool_characters

from zifio.config import build
from zifio.data.sources import read_jsonl
from zifio.data.tokenizer import load_tokenizer
from zifio.engine.bitwise import obstacle
from zifio.engine.config import EngineConfig
from zifio.recipe import load_recipe
from zifio.tasks.catalog import make_task
from zifio.tasks.environment import Call, Observation, Turn, demonstration
from zifio.tasks.episode import Episode
from zifio.tasks.task import Problem
from zifio.tasks.tools import calculator, use
from zifio.train.config import PretrainStage, RlStage, TokenizerStage
from zifio.train.draw import Drawn
from zifio.train.loop import Trainer
from zifio.train.loss import LossTerms, token_loss
from zifio.train.optim import Optimizer
from zifio.train.rl import Rollouts
from zifio.train.vocabulary import tokenizer as train_vocabulary

TURNS: dict[str, Any] = RL | {
    "sampling": {"max_new_tokens": 24, "temperature": 0.9},
    "rows": {"row_tokens": 96, "micro_tokens": 192},
    "updates": 1,
    "optim": ADAM | {"lr": 1e-3},
}
FILES = ("metrics.jsonl", "model/model.safetensors")


def stage(**changes: Any) -> RlStage:
    """The tiny stage in turns."""
    return build(RlStage, {"kind": "rl", "name": "tiny", **TURNS, **changes}, "test")


def rollouts(config: Any, **changes: Any) -> Rollouts:
    """Where its batches come from."""
    return Rollouts(stage(**changes), 1, Chatter(), brief(config), tool_characters())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends its turns."""
    return save_brief(tmp_path_factory.mktemp("base"), deepseek())


def test_only_sampled_tokens_have_weight():
    """And all of them, once; the columns of what was told are 0."""
    source = rollouts(deepseek())
    drawn = source.drawing.draw(0, source.policy)
    episodes = [episode for group in drawn.episodes_P_G for episode in group]
    assert any(episode.reply.n_turns > 2 for episode in episodes)
    told = [episode for episode in episodes if not all(episode.reply.sampled)]
    assert len(told) > len(episodes) / 2
    for episode in told:
        sequence = source._sequence(episode, {"policy_weight": 0.5, "advantage": 2.0})
        given = len(sequence.tokens) - len(episode.reply.tokens)
        assert sequence.columns["policy_weight"][given:] == [0.5 * own for own in episode.reply.sampled]
        assert sequence.columns["advantage"][given:] == [2.0 * own for own in episode.reply.sampled]
        assert sequence.columns["old_logp"][given:] == episode.reply.logps
        assert not any(sequence.columns["policy_weight"][:given])


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_means_are_over_what_was_sampled(aggregate: str):
    """Weights sum to one (or the mean length over the longest), lengths leave out what was told."""
    source = rollouts(llama(), aggregate=aggregate, kl_weight=0.1)
    drawn = source.drawing.draw(0, source.policy)
    replies = [episode.reply for group in drawn.episodes_P_G for episode in group]
    n_sampled = sum(sum(reply.sampled) for reply in replies)
    assert drawn.metrics["completions/mean_length"] == pytest.approx(n_sampled / len(replies))
    assert n_sampled < sum(len(reply.tokens) for reply in replies)
    updates, _, _ = source.weighed(drawn.episodes_P_G)
    total = sum(batch.columns["policy_weight"].sum().item() for batches in updates for batch in batches)
    expected = {"token": 1.0, "sequence": 1.0, "constant": n_sampled / (len(replies) * 24)}[aggregate]
    assert total == pytest.approx(expected, rel=1e-5)
    counted = sum(int((b.columns["policy_weight"] != 0).sum()) for batches in updates for b in batches)
    assert counted == n_sampled


TERMS = [
    LossTerms(), LossTerms(ratio="sequence"), LossTerms(ratio="product"), LossTerms(cap=2.0), LossTerms(kl="k2"),
    LossTerms(off_policy_delta=0.1),
]  # fmt: skip


@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_what_was_told_has_no_gradient_in_any_loss(terms: LossTerms):
    """However likely the policy finds the told tokens: the loss and its gradient are the same to the bit."""
    source = rollouts(deepseek(), kl_weight=0.1)
    generator = torch.Generator().manual_seed(1)
    for batches in source.step(0).updates:
        for batch in batches:
            own_BT = batch.columns["policy_weight"] != 0
            logp_BT = -torch.rand(own_BT.shape, generator=generator) * 3
            other_BT = torch.where(own_BT, logp_BT, logp_BT - 5)
            losses, gradients = [], []
            for values_BT in (logp_BT, other_BT):
                values_BT.requires_grad_()
                loss = token_loss(values_BT, None, batch, terms).loss
                loss.backward()
                losses.append(loss.item())
                gradients.append(values_BT.grad)
            assert losses[0] == losses[1] and torch.equal(gradients[0], gradients[1])
            assert (gradients[0][~own_BT] == 0).all() and (gradients[0][own_BT] != 0).any()


@pytest.mark.parametrize("config", [deepseek(num_nextn_predict_layers=1), llama()], ids=["experts", "dense"])
@pytest.mark.parametrize("routing", ["own", "replay"])
def test_every_step_says_that_sampler_and_trainer_agree(config: Any, routing: str, tmp_path: Path):
    """To the last bit where both have the kernels."""
    if routing == "replay" and config.model_type == "llama":
        pytest.skip("a dense model has no experts to replay")
    base = save_brief(tmp_path / "base", config)
    run("rl", TURNS | {"steps": 2, "routing": routing}, context(tmp_path / "run", Chatter(), base=base))
    most = 0.0 if not obstacle(brief(config), EngineConfig(), "fp32") else 1e-5
    for line in metrics(tmp_path / "run"):
        assert line["sampling/sampling_logp_difference/max"] <= most
        assert line["turns/mean"] > 1.5 and line["tools/call_frequency"] > 0
        assert 0 < line["tools/failure_frequency"] < 1


@pytest.mark.parametrize(
    "changes", [{}, {"asynchronous": True, "old_logps": "trainer"}, {"routing": "replay"}], ids=str
)
def test_a_run_in_turns_goes_on_to_the_byte(changes: dict[str, Any], base: Path, tmp_path: Path, monkeypatch):
    """Fallen over between two checkpoints and gone on; pending rollouts keep their masks and messages."""
    settings = TURNS | {"steps": 6, "checkpoint_every": 2} | changes
    run("rl", settings, context(tmp_path / "whole", Chatter(), base=base))
    plain = Optimizer.step

    def falling(self: Optimizer, now: int, n_steps: int) -> float:
        if now == 3:
            raise InterruptedError
        return plain(self, now, n_steps)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Optimizer, "step", falling)
        run("rl", settings, context(tmp_path / "run", Chatter(), base=base))
    run("rl", settings, context(tmp_path / "run", Chatter(), base=base))
    for file in FILES:
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_drawn_rollouts_survive_json():
    source = rollouts(deepseek())
    drawn = source.drawing.draw(0, source.policy)
    assert Drawn.from_json(json.loads(json.dumps(drawn.to_json()))) == drawn


def test_seeds_do_not_hang_on_what_is_played_beside():
    """The first two of four problems have the episodes that they have alone."""
    whole = rollouts(deepseek()).drawing
    source = rollouts(deepseek())
    groups = whole.draw(0, source.policy).episodes_P_G
    part = rollouts(deepseek(), prompts=2)
    assert part.drawing.draw(0, part.policy).episodes_P_G == groups[:2]


def test_an_environment_that_breaks_never_ends_the_step(base: Path, tmp_path: Path):
    """Its episodes are errors, counted and left out of the loss."""

    class Fragile(Chatter):
        def start(self, problem: Problem, seed: int) -> Any:
            return Breaking() if seed % 5 == 0 else super().start(problem, seed)

    class Breaking(Parrot):
        def step(self, turn: Turn) -> Observation:
            raise OSError("the index is gone")

    run("rl", TURNS | {"steps": 2, "most_errors": 0.9}, context(tmp_path / "run", Fragile(), base=base))
    lines = metrics(tmp_path / "run")
    assert sum(line["n_verifier_errors"] for line in lines) > 0 and all("loss" in line for line in lines)


def test_an_episode_is_cut_where_its_row_ends():
    source = rollouts(deepseek(), rows={"row_tokens": 24, "micro_tokens": 192})
    episodes = [e for group in source.drawing.draw(0, source.policy).episodes_P_G for e in group]
    lengths = [
        len(source.policy.prompt([{"role": "user", "content": e.problem.prompt}])) + len(e.reply.tokens)
        for e in episodes
    ]
    assert max(lengths) <= 24 and any(e.reply.finish == "length" for e in episodes)
    source.step(0)


def test_samples_in_turns_are_kept_whole_and_learned_from(base: Path, tmp_path: Path):
    """Their messages are in the data, and fine-tuning reads them with what was told masked."""
    sampling = {"max_new_tokens": 24, "temperature": 0.9}
    settings = {"from": "base", "problems": 6, "n": 4, "keep": "all", "sampling": sampling}
    run("sample", settings, context(tmp_path / "traces", Chatter(), base=base))
    rows = read_jsonl(tmp_path / "traces" / "data.jsonl")
    assert all(row["messages"][0] == {"role": "user", "content": row["prompt"]} for row in rows)
    assert any(message["role"] == "tool" for row in rows for message in row["messages"])
    clean = [row | {"messages": [*row["messages"][:1], Turn("7").message()]} for row in rows]
    rows = [clean[0], {"messages": Chatter().demonstration(Chatter().problem("train", 0, 1), True)}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learn = {"from": "base", "data": "data", "steps": 1, "sequences": 2, "optim": ADAM, "rows": TURNS["rows"]}
    paths = {"base": base, "data": tmp_path / "data.jsonl"}
    run("sft", learn, context(tmp_path / "sft", Chatter(), **paths))
    assert metrics(tmp_path / "sft")[-1]["loss"] > 0
    run("sft", learn | {"data": None, "documents": 4}, context(tmp_path / "documents", Chatter(), **paths))
    assert metrics(tmp_path / "documents")[-1]["loss"] > 0


def test_pretraining_shows_whole_conversations(base: Path, tmp_path: Path):
    from tiny import PRETRAIN

    model = PRETRAIN["model"] | {"max_position_embeddings": 128}
    settings = PRETRAIN | {"steps": 1, "model": model, "loss_on": "reply", "held_out": {"every": 0}}
    seen: list[Any] = []
    plain = Trainer._gradients

    def keep(self: Trainer, batches: Any, step: int) -> Any:
        seen.extend(batches)
        return plain(self, batches, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_gradients", keep)
        run("pretrain", settings, context(tmp_path / "run", Chatter(), tokenizer=base))
    tokenizer = tool_characters()
    output = tokenizer.tokenizer.token_to_id("<｜tool▁output▁begin｜>")
    call = tokenizer.tokenizer.token_to_id("<｜tool▁call▁begin｜>")
    for batch in seen:
        weight = batch.columns["cross_entropy_weight"]
        assert (weight[batch.tokens_BT == output] == 0).all() and (weight[batch.tokens_BT == call] > 0).all()


def test_one_turn_is_as_before():
    """A reply of one turn says nothing of turns, and its sampled tokens are all of its tokens."""
    source = Rollouts(stage(), 1, Chatter.__mro__[1](), brief(llama()), tool_characters())  # type: ignore[arg-type]
    drawn = source.drawing.draw(0, source.policy)
    reply = drawn.episodes_P_G[0][0].reply
    assert (reply.sampled, reply.messages, reply.n_turns, reply.n_sampled) == ([], [], 1, len(reply.tokens))
    assert not any(key.startswith(("tools/", "turns/")) for key in drawn.metrics)
    marked = replace(reply, sampled=[True] * len(reply.tokens))
    first, second = (
        source._sequence(
            Episode(drawn.episodes_P_G[0][0].problem, one, drawn.episodes_P_G[0][0].verdict), {"advantage": 1.0}
        )
        for one in (reply, marked)
    )
    assert first == second and np.sum(first.columns["advantage"]) == len(reply.tokens)


def test_the_recipes_tokenizer_spells_all_that_its_stages_say_and_hear(tmp_path: Path):
    """Documents of the base, whose task is wider than the recipe's, and a tool's errors; all fit their rows."""
    recipe = load_recipe(Path("recipes/agent-calculator.toml"), [])
    vocabulary, base = recipe.stage[0], recipe.stage[1]
    assert isinstance(vocabulary, TokenizerStage) and isinstance(base, PretrainStage) and base.task is not None
    train_vocabulary(vocabulary, replace(context(tmp_path, recipe.task), folder=tmp_path))
    tokenizer, task = load_tokenizer(tmp_path / "model"), make_task(base.task)
    for index in range(300):
        messages = demonstration(task, task.problem("train", index, 1), shows_working=True)
        assert len(tokenizer.encode_chat(messages)[0]) <= base.rows.row_tokens
    for call in (Call("calculator", "{"), Call("calc", "{}"), Call("calculator", '{"expression":"1/0"}')):
        content = use([calculator()], call).content
        heard = tokenizer.encode_between([{"role": "tool", "content": content}])
        assert content in tokenizer.tokenizer.decode(heard, skip_special_tokens=False)
