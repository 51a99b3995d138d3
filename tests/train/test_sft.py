"""Fine-tuning and distillation: every row once per epoch, replies only, and traces of the right teacher."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ADAM, KINDS, SHORT_SUMS, characters, context, deepseek, llama, logits_of, metrics, run, save_base

import zifio.train.sft as sft_module
from zifio.checkpoint import model_digest
from zifio.config import ConfigError, Sampling, build
from zifio.data.pack import Sequence
from zifio.data.sources import write_jsonl
from zifio.engine.policy import load_policy
from zifio.models.weights import load_model
from zifio.tasks.episode import conversation
from zifio.train.stage import conversation_sequence, mean_weighted

SFT: dict[str, Any] = {
    "from": "base", "data": "data", "steps": 4, "sequences": 5, "checkpoint_every": 2, "optim": ADAM,
    "rows": {"row_tokens": 64, "micro_tokens": 128},
}  # fmt: skip
STUDENT = llama().model_copy(update={"vocab_size": None}).model_dump(exclude_none=True)
DISTILL = SFT | {"teacher": "base", "model": STUDENT}
del DISTILL["from"]


def rows_of(n: int, **more: Any) -> list[dict[str, Any]]:
    """n worked sums."""
    problems = [SHORT_SUMS.problem("train", index, seed=1) for index in range(n)]
    return [{"prompt": p.prompt, "response": SHORT_SUMS.document(p, shows_working=True), **more} for p in problems]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An untrained model with an MTP module, which fine-tuning leaves alone."""
    return save_base(tmp_path / "base", deepseek(num_nextn_predict_layers=1))


def written(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    """A data file with these rows."""
    write_jsonl(tmp_path / "data.jsonl", rows)
    return tmp_path / "data.jsonl"


def here(kind: str, tmp_path: Path, base: Path, data: Path, name: str = "run", **changes: Any) -> dict[str, float]:
    """One tiny stage."""
    settings = {"sft": SFT, "distill": DISTILL}[kind]
    return run(kind, settings | changes, context(tmp_path / name, base=base, data=data))


@pytest.mark.parametrize("n_rows, per_step", [(12, 5), (12, 12), (3, 5), (7, 1)])
def test_every_epoch_walks_through_all_rows_once_in_a_new_order(n_rows, per_step, base, tmp_path, monkeypatch):
    seen: list[tuple[int, ...]] = []

    def watching(sequences: list[Sequence], *layout: int) -> list[Any]:
        seen.extend(tuple(sequence.tokens) for sequence in sequences)
        assert len(sequences) == per_step
        return []

    monkeypatch.setattr(sft_module, "make_batches", watching)
    monkeypatch.setattr("zifio.train.loop.Trainer.run", lambda self, batches: [batches(s) for s in range(20)] and {})
    here("sft", tmp_path, base, written(tmp_path, rows_of(n_rows)), sequences=per_step, steps=20)
    everything = Counter(tuple(conversation_sequence(characters(), **row).tokens) for row in rows_of(n_rows))
    epochs = [seen[at : at + n_rows] for at in range(0, len(seen) - n_rows + 1, n_rows)]
    assert len(epochs) >= 2 and all(Counter(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1, "in a new order"


def test_the_order_depends_on_seed_and_stage_and_not_on_where_one_asks():
    def order(*names: Any, epoch: int = 0) -> list[int]:
        return [
            sft_module.nth([Sequence([i], [1.0]) for i in range(9)], 9 * epoch + i, *names).tokens[0] for i in range(9)
        ]

    first = order(1, "a")
    assert order(1, "a", epoch=5) != first
    assert order(1, "a") == first and sorted(first) == list(range(9))
    assert len({tuple(order(seed, name)) for seed in (1, 2) for name in "ab"}) == 4


def test_short_first_opens_ever_longer_conversations_and_then_walks_through_all():
    """The shortest tenth, then more and more until the share of the steps is over; each step by its number alone."""
    config, _ = KINDS["sft"]
    stage = build(config, {"kind": "sft", "name": "a", **SFT, "steps": 40, "sequences": 30, "short_first": 0.5}, "test")
    by_length = [Sequence([i], [1.0]) for i in range(100)]
    longest = [max(one.tokens[0] for one in sft_module.choose(by_length, stage, 1, step, 30)) for step in range(20)]
    for step, found in enumerate(longest):
        n_open = 100 * (0.1 + 0.9 * step / 20)
        assert 0.7 * n_open - 1 <= found < n_open
    later = [one.tokens[0] for step in range(20, 40) for one in sft_module.choose(by_length, stage, 1, step, 30)]
    assert all(sorted(later[at : at + 100]) == list(range(100)) for at in range(0, 600, 100))
    assert sft_module.choose(by_length, stage, 1, 7, 30) == sft_module.choose(by_length, stage, 1, 7, 30)
    assert sft_module.choose(by_length, stage, 2, 7, 30) != sft_module.choose(by_length, stage, 1, 7, 30)


def test_only_the_reply_and_its_end_count():
    tokenizer = characters()
    sequence = conversation_sequence(tokenizer, "1+2", "<think>1+2=3</think><answer>3</answer>")
    shown = [tokenizer.tokenizer.id_to_token(t) for t, w in zip(sequence.tokens, sequence.weight, strict=True) if w]
    assert "".join(shown) == "<think>1+2=3</think><answer>3</answer><｜end▁of▁sentence｜>"
    assert sum(sequence.weight) == len(shown) == 11
    given = [tokenizer.tokenizer.id_to_token(t) for t, w in zip(sequence.tokens, sequence.weight, strict=True) if not w]
    assert "".join(given) == "<｜begin▁of▁sentence｜><｜User｜>1+2<｜Assistant｜>"


def test_the_loss_is_the_mean_over_all_counted_tokens_of_the_step():
    """Not a mean of means: a long reply counts by its length."""
    sequences = [Sequence([1, 2, 3], [0.0, 1.0, 1.0]), Sequence([1] * 9, [0.0] * 3 + [1.0] * 6)]
    weighted = mean_weighted(sequences)
    assert [one.weight for one in weighted] == [[0.0, 0.125, 0.125], [0.0] * 3 + [0.125] * 6]
    assert sequences[0].weight == [0.0, 1.0, 1.0], "the originals stay"


def test_the_first_loss_is_the_starting_models_own(base: Path, tmp_path: Path):
    """Cross-entropy in numpy over the rows of the first step."""
    rows = rows_of(5)
    here("sft", tmp_path, base, written(tmp_path, rows), balance={"loss_weight": 0.0})
    model, total, n = load_model(base), 0.0, 0
    for row in rows:
        sequence = conversation_sequence(characters(), **row)
        with torch.no_grad():
            logits = logits_of(model, torch.tensor([sequence.tokens]))[0].double().numpy()
        for t in range(1, len(sequence.tokens)):
            if sequence.weight[t]:
                shifted = logits[t - 1] - logits[t - 1].max()
                total -= shifted[sequence.tokens[t]] - np.log(np.exp(shifted).sum())
                n += 1
    first = metrics(tmp_path / "run")[0]
    assert first["loss"] == pytest.approx(total / n, rel=1e-5) == first["cross_entropy"]
    assert first["epoch"] == 1.0 and metrics(tmp_path / "run")[-1]["epoch"] == 4.0


@pytest.mark.parametrize("kind", ["sft", "distill"])
def test_a_small_model_learns_its_rows_by_heart(kind: str, base: Path, tmp_path: Path):
    rows = rows_of(4, model=model_digest(base))
    settings = {"steps": 150, "sequences": 4, "checkpoint_every": 1000, "optim": ADAM | {"lr": 0.01}}
    here(kind, tmp_path, base, written(tmp_path, rows), **settings)
    policy = load_policy(tmp_path / "run" / "model")
    asked = [conversation(SHORT_SUMS.problem("train", index, seed=1)) for index in range(4)]
    replies = policy.complete(asked, 1, Sampling(temperature=0, max_new_tokens=40), [[0]] * 4)
    assert [group[0].text for group in replies] == [row["response"] for row in rows]
    assert policy.model.config.model_type == {"sft": "deepseek_v3", "distill": "llama"}[kind]


def test_the_mtp_module_is_kept_as_it_was(base: Path, tmp_path: Path):
    here("sft", tmp_path, base, written(tmp_path, rows_of(6)), optim={"kind": "muon", "lr": 0.01})
    before, after = load_model(base).state_dict(), load_model(tmp_path / "run" / "model").state_dict()
    for name in before:
        if name.startswith("mtp."):
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_resume_is_exact(base: Path, tmp_path: Path):
    """Position is state: the rows behind a checkpoint are those that would have come."""
    data = written(tmp_path, rows_of(7))
    here("sft", tmp_path, base, data, name="whole", steps=6)
    here("sft", tmp_path, base, data, steps=5)
    assert (tmp_path / "run" / "checkpoints" / "step-000004").is_dir()
    here("sft", tmp_path, base, data, steps=6)
    for file in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.parametrize(
    "content, parts",
    [
        ('{"prompt": "1+2"}\n', ("row 1: response", "a string", "None")),
        ('{"prompt": "1+2", "response": "3"}\n{"prompt": 3, "response": "3"}\n', ("row 2: prompt", "came 3")),
        ("", ("empty file", "Sample more")),
        ('{"prompt": "1+', ("line 1", "JSON")),
        ('{"prompt": "1*2", "response": "2"}\n', ("'*'",)),
        (None, ("wanted a file, came none",)),
    ],
    ids=["no-response", "wrong-type", "empty", "torn", "strange-character", "missing"],
)
def test_faults_of_the_data_are_named(content: str | None, parts: tuple[str, ...], base: Path, tmp_path: Path):
    data = tmp_path / "data.jsonl"
    if content is not None:
        data.write_text(content)
    with pytest.raises(ConfigError) as error:
        here("sft", tmp_path, base, data)
    for part in parts:
        assert part in str(error.value)


def test_a_conversation_longer_than_the_context_is_refused(base: Path, tmp_path: Path):
    data = written(tmp_path, [*rows_of(2), {"prompt": "1", "response": "1" * 100}])
    with pytest.raises(ConfigError, match=r"max_position_embeddings=96 is shorter than the 105 tokens of"):
        here("sft", tmp_path, base, data)


def test_distillation_wants_traces_of_its_teacher(base: Path, tmp_path: Path):
    """Row by row; the message names both and says what else to use."""
    rows = rows_of(4, model=model_digest(base))
    rows[2] = rows[2] | {"model": "0123456789ab"}
    with pytest.raises(ConfigError) as error:
        here("distill", tmp_path, base, written(tmp_path, rows))
    for part in ("row 3: model", f"weights {model_digest(base)}", "'0123456789ab'", "`sft` stage"):
        assert part in str(error.value)
    with pytest.raises(ConfigError, match=r"row 1: model: .* came None"):
        here("distill", tmp_path, base, written(tmp_path, rows_of(4)))


def test_a_student_starts_from_a_shape_or_from_a_base(base: Path, tmp_path: Path):
    data = written(tmp_path, rows_of(4, model=model_digest(base)))
    here("distill", tmp_path, base, data, name="new")
    student = load_model(tmp_path / "new" / "model")
    assert student.config.model_type == "llama" and student.config.vocab_size == characters().vocab_size
    files = ("tokenizer.json", "chat_template.jinja")
    assert all((tmp_path / "new" / "model" / f).read_bytes() == (base / f).read_bytes() for f in files)
    other = save_base(tmp_path / "other", llama(hidden_size=16), seed=2)
    changes = {key: value for key, value in DISTILL.items() if key != "model"} | {"from": "other"}
    run("distill", changes, context(tmp_path / "on", base=base, other=other, data=data))
    assert load_model(tmp_path / "on" / "model").config.hidden_size == 16
    for wrong in ({"from": "other"}, {"model": None}):
        with pytest.raises(ConfigError, match="not both or neither"):
            here("distill", tmp_path, base, data, **wrong)


def test_equal_settings_give_equal_students(base: Path, tmp_path: Path):
    data = written(tmp_path, rows_of(4, model=model_digest(base)))
    torch.manual_seed(0)
    here("distill", tmp_path, base, data, name="one")
    torch.manual_seed(1)
    here("distill", tmp_path, base, data, name="two")
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert json.loads((tmp_path / "one" / "model" / "config.json").read_text())["model_type"] == "llama"
