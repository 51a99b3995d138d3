"""Preferences: losses of TRL's own code on the same tensors, pairs that stay together, and stages that learn."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import ADAM, SHORT_SUMS, characters, context, deepseek, llama, made, metrics, run, save_base
from torch import Tensor

from zifio.config import ConfigError
from zifio.data.sources import write_jsonl
from zifio.engine.scorer import load_scorer
from zifio.models.decoder import Decoder, with_scores
from zifio.models.weights import load_model
from zifio.train.config import Rows
from zifio.train.feedback import DpoStage
from zifio.train.logp import token_logp
from zifio.train.loss import LossTerms, batch_loss
from zifio.train.preference import Preference, _with_reference, pair_sequences, paired_batches, read_preferences

# TRL's configs set an option that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")

TOKENIZER = characters()
BETA = 0.3
ROWS = [Rows(row_tokens=90, micro_tokens=60), Rows(row_tokens=40, micro_tokens=4000)]


def preferences(n: int) -> list[Preference]:
    """Sums with their working are better than wrong bare answers; two of each prompt."""
    out = []
    for index in range(n):
        problem = SHORT_SUMS.problem("train", index // 2, seed=1)
        wrong = f"<think></think><answer>{index}</answer>"
        chosen = SHORT_SUMS.document(problem, shows_working=True)
        out.append(Preference([{"role": "user", "content": problem.prompt}], chosen, wrong))
    return out


def padded(pairs: list[Preference]) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, attention, which are the reply's), all chosen ones and then all rejected ones, as TRL collates."""
    rows = []
    for reply in ("chosen", "rejected"):
        for pair in pairs:
            rows.append(TOKENIZER.encode_chat([*pair.messages, {"role": "assistant", "content": getattr(pair, reply)}]))
    width = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([t + [TOKENIZER.pad_id] * (width - len(t)) for t, _ in rows])
    attention = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t, _ in rows])
    replies = torch.tensor([[int(counts) for counts in m] + [0] * (width - len(m)) for _, m in rows])
    return tokens, attention, replies


class OneProcess:
    """What the losses ask of accelerate."""

    num_processes = 1
    device = torch.device("cpu")
    gather = gather_for_metrics = staticmethod(lambda value: value)


def stub(**more: Any) -> SimpleNamespace:
    """A trainer without a model."""
    return SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=OneProcess(), aux_loss_enabled=False, _tp_size=1,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, **more,
    )  # fmt: skip


def hidden_of(model: Decoder, tokens_BT: Tensor) -> Tensor:
    """One sequence a row."""
    return model(tokens_BT, torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)).hidden_BTD


def logps_of(model: Decoder, tokens_BT: Tensor) -> Tensor:
    """[B, T - 1], of each token but the first."""
    return token_logp(model.logits(hidden_of(model, tokens_BT)), tokens_BT)[:, 1:]


def trl_dpo(model: Decoder, reference: Decoder, pairs: list[Preference]) -> tuple[Tensor, dict[str, Any]]:
    """TRL's DPO loss of these models, and what it logs."""
    trl = pytest.importorskip("trl")
    tokens, attention, replies = padded(pairs)
    with torch.no_grad():
        given = (logps_of(reference, tokens) * replies[:, 1:]).sum(dim=1)
    trainer = stub(
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=["sigmoid"],
        loss_weights=[1.0], beta=BETA, use_weighting=False, label_smoothing=0.0,
    )  # fmt: skip

    def forward(**_: Any) -> SimpleNamespace:
        logps = logps_of(model, tokens) * replies[:, 1:]  # as with its labels of -100
        nothing = torch.zeros_like(logps)
        return SimpleNamespace(log_probs=logps, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())

    chosen, rejected = given.chunk(2)
    inputs = {
        "input_ids": tokens, "attention_mask": attention, "completion_mask": replies,
        "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
    }  # fmt: skip
    return trl.DPOTrainer._compute_loss(trainer, forward, inputs, False), trainer._metrics["train"]


def trl_reward(model: Decoder, pairs: list[Preference]) -> tuple[Tensor, dict[str, Any]]:
    """TRL's reward loss of this model, read at the last token as transformers does, and what it logs."""
    trl = pytest.importorskip("trl")
    tokens, attention, _ = padded(pairs)
    trainer = stub(args=SimpleNamespace(center_rewards_coefficient=None))

    def forward(**_: Any) -> SimpleNamespace:
        last = attention.sum(dim=1) - 1
        return SimpleNamespace(logits=model.score(hidden_of(model, tokens))[torch.arange(len(tokens)), last])

    inputs = {"input_ids": tokens, "attention_mask": attention}
    return trl.RewardTrainer.compute_loss(trainer, forward, inputs), trainer._metrics["train"]


def assert_same_gradients(model: Decoder, ours: Tensor, theirs: Tensor) -> None:
    """Value and every gradient."""
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    parameters = [p for p in model.parameters() if p.requires_grad]
    one = torch.autograd.grad(ours, parameters, allow_unused=True)
    two = torch.autograd.grad(theirs, parameters, allow_unused=True)
    assert any(gradient is not None and gradient.abs().max() > 1e-3 for gradient in one)
    for mine, other in zip(one, two, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_dpo_is_trls(rows: Rows):
    """Value, gradients and what is logged, with pairs behind shared prompts and in several micro-batches."""
    shape = deepseek(vocab_size=TOKENIZER.vocab_size)
    model, reference, pairs = made(shape, 1), made(shape, 2), preferences(7)
    batches = paired_batches([pair_sequences(TOKENIZER, one, False) for one in pairs], rows, TOKENIZER.pad_id)
    assert (len(batches) > 1) == (rows.micro_tokens == 60)
    assert any(first for batch in batches for first in batch.firsts), "a prompt is there once"
    stage = DpoStage(kind="dpo", name="a", data="d", steps=1, beta=BETA, **{"from": "b"})
    batches = [_with_reference(reference, stage, batch) for batch in batches]
    results = [batch_loss(model, batch, LossTerms(dpo_beta=BETA), 0.0) for batch in batches]
    theirs, logged = trl_dpo(model, reference, pairs)
    assert_same_gradients(model, sum(result.loss for result in results), theirs)  # type: ignore[arg-type]
    for name in ("rewards/accuracies", "rewards/margins"):
        assert sum(result.sums[name] for result in results) == pytest.approx(logged[name][0], abs=1e-5)


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_the_reward_models_loss_is_trls(rows: Rows):
    model = with_scores(made(llama(vocab_size=TOKENIZER.vocab_size)), 1, seed=1)
    pairs = preferences(7)
    batches = paired_batches([pair_sequences(TOKENIZER, one, True) for one in pairs], rows, TOKENIZER.pad_id)
    results = [batch_loss(model, batch, LossTerms(), 0.0) for batch in batches]
    theirs, logged = trl_reward(model, pairs)
    assert_same_gradients(model, sum(result.loss for result in results), theirs)  # type: ignore[arg-type]
    accuracy = sum(result.sums["rewards/accuracies"] for result in results)
    assert accuracy == pytest.approx(logged["accuracy"][0], abs=1e-6)


def test_no_pair_is_parted_and_every_token_of_a_reply_counts():
    pairs = [pair_sequences(TOKENIZER, one, False) for one in preferences(9)]
    for chosen, rejected in pairs:
        assert all(value == 1 for value in chosen.columns["pair"][chosen.n_prefix :])
        assert all(value == -1 for value in rejected.columns["pair"][rejected.n_prefix :])
        assert chosen.tokens[-1] == rejected.tokens[-1] == TOKENIZER.eos_id
    for micro_tokens in (1, 100, 10_000):
        rows = Rows(row_tokens=64, micro_tokens=micro_tokens)
        batches = paired_batches(pairs, rows, TOKENIZER.pad_id)
        assert {1: 9, 10_000: 1}.get(micro_tokens, len(batches)) == len(batches)
        numbers = [{*batch.columns["pair"].unique().tolist()} - {0.0} for batch in batches]
        assert all({-n for n in found} == found for found in numbers)
        assert sum(len(found) for found in numbers) == 18


def data(tmp_path: Path, n: int = 40) -> Path:
    """A file of preferences in TRL's plain form."""
    rows = [
        {"prompt": one.messages[0]["content"], "chosen": one.chosen, "rejected": one.rejected} for one in preferences(n)
    ]
    write_jsonl(tmp_path / "data.jsonl", rows)
    return tmp_path / "data.jsonl"


SETTINGS: dict[str, Any] = {
    "from": "base", "data": "data", "steps": 8, "pairs": 8, "checkpoint_every": 3, "optim": ADAM,
    "rows": {"row_tokens": 80, "micro_tokens": 160},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["dpo", "reward"])
@pytest.mark.parametrize("shape", [llama(), deepseek()], ids=["llama", "deepseek"])
def test_a_stage_learns_what_is_preferred(kind: str, shape: Any, tmp_path: Path):
    base = save_base(tmp_path / "base", shape)
    totals = run(
        kind, SETTINGS | {"steps": 14, "optim": {"lr": 1e-2}}, context(tmp_path / "run", base=base, data=data(tmp_path))
    )
    lines = metrics(tmp_path / "run")
    lines = [line for line in lines if "rewards/accuracies" in line]
    assert lines[0]["loss"] == pytest.approx(0.693, abs=0.3 if kind == "reward" else 1e-3)
    assert lines[-1]["rewards/accuracies"] == 1.0 and lines[-1]["loss"] < 0.5
    assert totals["n_pairs"] == 40 and totals["flops"] > 0
    if kind == "dpo":
        assert load_model(tmp_path / "run" / "model").config.num_labels is None
        return
    scorer = load_scorer(tmp_path / "run" / "model")
    for one in preferences(6):
        (good,), (bad,) = scorer.scores([(one.messages, [one.chosen]), (one.messages, [one.rejected])]).values
        assert good > bad


def test_dpo_with_adapters_has_the_base_as_its_reference(tmp_path: Path):
    base = save_base(tmp_path / "base", llama())
    settings = SETTINGS | {"lora": {"rank": 4}, "optim": {"lr": 1e-2}}
    run("dpo", settings, context(tmp_path / "run", base=base, data=data(tmp_path)))
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-4) and lines[-1]["loss"] < lines[0]["loss"]
    assert (tmp_path / "run" / "adapter").is_dir()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+2", "chosen": "3", "rejected": "4"},
        {"prompt": [{"role": "user", "content": "1+2"}], "chosen": [{"role": "assistant", "content": "3"}],
         "rejected": [{"role": "assistant", "content": "4"}]},
        {"chosen": [{"role": "user", "content": "1+2"}, {"role": "assistant", "content": "3"}],
         "rejected": [{"role": "user", "content": "1+2"}, {"role": "assistant", "content": "4"}]},
    ],
)  # fmt: skip
def test_the_forms_of_a_preference(row: dict[str, Any], tmp_path: Path):
    write_jsonl(tmp_path / "data.jsonl", [row])
    assert read_preferences(tmp_path / "data.jsonl") == [
        Preference([{"role": "user", "content": "1+2"}], chosen="3", rejected="4")
    ]


def test_right_replies_are_preferred_to_wrong_ones(tmp_path: Path):
    """Of a `sample` stage's data; what has no counterpart is left out."""
    said = [("1", "a", "right"), ("1", "b", "wrong"), ("1", "c", "wrong"), ("2", "d", "right"), ("3", "e", "error"),
            ("3", "f", "wrong"), ("1", "g", "right")]  # fmt: skip
    rows = [{"prompt": prompt, "response": text, "outcome": outcome} for prompt, text, outcome in said]
    write_jsonl(tmp_path / "data.jsonl", rows)
    found = read_preferences(tmp_path / "data.jsonl")
    assert [(one.messages[0]["content"], one.chosen, one.rejected) for one in found] == [
        ("1", "a", "b"),
        ("1", "g", "c"),
    ]
    write_jsonl(tmp_path / "data.jsonl", rows[3:6])
    with pytest.raises(ConfigError, match="wanted right and wrong replies to the same problem"):
        read_preferences(tmp_path / "data.jsonl")


@pytest.mark.parametrize(
    "rows, said",
    [
        ([], "came an empty file"),
        ([{"prompt": "1", "chosen": "2"}], "row 1: wanted `prompt`, `chosen` and `rejected`"),
        ([{"prompt": "1", "chosen": "2", "rejected": "2"}], "came the same twice"),
        ([{"prompt": [1], "chosen": "2", "rejected": "3"}], "row 1: wanted `prompt`, `chosen` and `rejected`"),
        ([{"prompt": [{"role": "user"}], "chosen": "2", "rejected": "3"}], "row 1: wanted `prompt`"),
        (
            [{"prompt": "1", "response": "2", "outcome": "right"}, {"prompt": "1", "response": "3"}],
            "row 2: outcome: wanted a text, came nothing. Give a `sample` stage's data",
        ),
        ([{"prompt": "1", "response": 2, "outcome": "right"}], "row 1: response: wanted a text, came 2"),
        ([{"response": "2", "outcome": "right"}], "row 1: prompt: wanted a text, came nothing"),
        ([{"chosen": [{"role": "user", "content": "1"}], "rejected": [{"role": "user", "content": "2"}]}], "wanted"),
    ],
)
def test_preferences_that_cannot_be_read(rows: list[dict[str, Any]], said: str, tmp_path: Path):
    write_jsonl(tmp_path / "data.jsonl", rows)
    with pytest.raises(ConfigError, match=said):
        read_preferences(tmp_path / "data.jsonl")
