"""What a stage does around its training: adapters from first to last, bf16 products, devices, recomputed blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny import (
    ADAM,
    KINDS,
    MUON,
    PRETRAIN,
    RL,
    SHORT_SUMS,
    Sevens,
    characters,
    context,
    deepseek,
    llama,
    made,
    metrics,
    run,
    save_base,
)  # fmt: skip

import zifio.train.rl as rl_module
from zifio.config import ConfigError, build
from zifio.data.pack import Sequence
from zifio.data.sources import write_jsonl
from zifio.engine.engine import Engine
from zifio.engine.policy import LocalPolicy
from zifio.models.attention import predecessors
from zifio.models.config import Lora
from zifio.models.count import parameters
from zifio.models.decoder import Decoder
from zifio.models.lora import adapters, apply, load_adapter, merge
from zifio.models.weights import load_model, save_model
from zifio.train.batch import make_batches
from zifio.train.config import Optim, RlStage
from zifio.train.loop import Look, StepData
from zifio.train.loss import LossTerms, batch_loss
from zifio.train.optim import Optimizer
from zifio.train.rl import Rollouts
from zifio.train.stage import prepare

SFT: dict[str, Any] = {
    "from": "base", "data": "data", "steps": 6, "sequences": 5, "checkpoint_every": 2, "optim": ADAM,
    "rows": {"row_tokens": 64, "micro_tokens": 128}, "balance": {"bias_speed": 0.01}, "held_out": {"every": 3},
}  # fmt: skip
DISTILL = SFT | {"teacher": "base"}
STAGES: dict[str, dict[str, Any]] = {"sft": SFT, "rl": RL | {"steps": 6, "checkpoint_every": 2}, "distill": DISTILL}
LORA: dict[str, Any] = {"rank": 3, "alpha": 6.0}
DORA = LORA | {"use_dora": True, "targets": ["o_proj", "q_proj", "up_proj"]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An untrained model with an MTP module."""
    return save_base(tmp_path / "base", deepseek(num_nextn_predict_layers=1))


def here(kind: str, tmp_path: Path, name: str = "run", base: Path | None = None, **changes: Any) -> Path:
    """One tiny stage from `base`; its folder comes back."""
    from zifio.checkpoint import model_digest

    base = base or tmp_path / "base"
    rows = []
    for index in range(12):
        problem = SHORT_SUMS.problem("train", index, seed=1)
        response = SHORT_SUMS.document(problem, shows_working=True)
        rows.append({"prompt": problem.prompt, "response": response, "model": model_digest(base)})
    write_jsonl(tmp_path / "data.jsonl", rows)
    task = Sevens() if kind == "rl" else SHORT_SUMS
    run(kind, STAGES[kind] | changes, context(tmp_path / name, task, base=base, data=tmp_path / "data.jsonl"))
    return tmp_path / name


@pytest.mark.parametrize("lora", [LORA, DORA], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ["sft", "rl", "distill"])
def test_a_stage_with_adapters_writes_them_beside_the_merged_model(kind: str, lora: dict[str, Any], base, tmp_path):
    """Base and adapter give the model to the bit; nothing else has changed, the routers' balance neither."""
    folder = here(kind, tmp_path, lora=lora)
    again = load_model(base)
    load_adapter(again, folder / "adapter")
    merge(again)
    before, after = load_model(base).state_dict(), load_model(folder / "model").state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in again.state_dict().items())
    model = load_model(base)
    apply(model, build(Lora, lora, "test"), 0)
    expected = {f"{name}.weight" for name in adapters(model)}
    assert {name for name in before if not torch.equal(before[name], after[name])} == expected
    assert (folder / "adapter" / "manifest.json").exists()


def test_adapters_begin_by_the_recipes_seed_and_the_stages_name(base: Path, tmp_path: Path):
    """A stage's own, so that no two begin alike; the same again."""
    first = []
    for seed, name in ((1, "a"), (1, "a"), (1, "b"), (2, "a")):
        model = load_model(base)
        stage = build(RlStage, {"kind": "rl", "name": name, **RL, "lora": LORA}, "test")
        prepare(model, stage, context(tmp_path, seed=seed))
        first.append(next(iter(adapters(model).values())).lora_A.sum().item())
    assert first[0] == first[1] and len(set(first)) == 3


@pytest.mark.parametrize("settings", [{"lora": LORA}, {"lora": DORA, "optim": MUON}], ids=["lora", "dora-muon"])
@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_killed_and_resumed_is_bit_for_bit_the_same(kind: str, settings: dict[str, Any], base, tmp_path, monkeypatch):
    """From a checkpoint of adapters alone; looks and rollouts in between leave the base as it was."""
    whole = here(kind, tmp_path, "whole", **settings)
    plain, calls = Optimizer.step, [0]

    def falling(self: Optimizer, now: int, n_steps: int) -> float:
        calls[0] += 1
        if now == 5:
            raise InterruptedError
        return plain(self, now, n_steps)

    with monkeypatch.context() as patch:
        patch.setattr(Optimizer, "step", falling)
        with pytest.raises(InterruptedError):
            here(kind, tmp_path, **settings)
    names = {path.name for path in (tmp_path / "run" / "checkpoints" / "step-000004").iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
    }  # fmt: skip
    here(kind, tmp_path, **settings)
    for file in ("metrics.jsonl", "model/model.safetensors", "adapter/adapter_model.safetensors", "model/config.json"):
        assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes(), file


def test_adapters_go_on_only_on_the_weights_they_were_made_on(base: Path, tmp_path: Path, monkeypatch):
    here("sft", tmp_path, lora=LORA)
    model = load_model(base)
    with torch.no_grad():
        model.norm.weight[0] += 1
    save_model(model, base)
    with pytest.raises(ConfigError, match=r"step-000004: wanted adapters of the weights .* has changed.*--fresh"):
        here("sft", tmp_path, lora=LORA, steps=8)


@pytest.mark.parametrize("lora", [LORA, DORA], ids=["lora", "dora"])
def test_sampler_and_trainer_agree_on_an_adapted_policy(lora: dict[str, Any], base: Path, tmp_path: Path):
    """Rollouts come from folded weights, the loss from adapters beside them."""
    folder = here("rl", tmp_path, lora=lora, updates=1, steps=8, optim=ADAM | {"lr": 0.03})
    lines = metrics(folder)
    assert len(lines) == 8 and all(line["clip_ratio"] == 0.0 for line in lines)
    assert max(line["sampling/sampling_logp_difference/max"] for line in lines) < 1e-5
    assert max(line["grad_norm"] for line in lines) > 1e-3


def test_whoever_samples_finds_a_plain_decoder(base: Path, tmp_path: Path, monkeypatch):
    """The gate, every step's rollouts and every look run at full speed, on weights that are the adapted ones."""
    seen: list[float] = []
    plain = Engine.generate

    def generate(self: Engine, *args: Any) -> Any:
        assert not adapters(self.model)
        seen.append(self.model.state_dict()["layers.0.self_attn.o_proj.weight"].sum().item())
        return plain(self, *args)

    def look(*_: Any) -> Look:
        def plain_only(model: Decoder, step: int) -> tuple[dict[str, float], float]:
            assert not adapters(model)
            return {"sum": model.state_dict()["layers.0.self_attn.o_proj.weight"].sum().item()}, 0.0

        return plain_only

    def gate(stage: RlStage, policy: LocalPolicy, *_: Any) -> None:
        assert not adapters(policy.model)

    monkeypatch.setattr(Engine, "generate", generate)
    monkeypatch.setattr(tiny, "counting_look", look)
    monkeypatch.setattr(rl_module, "check_gate", gate)
    lines = metrics(here("rl", tmp_path, lora=LORA, gate=True, held_out={"every": 1}))
    looks = [line["held_out/sum"] for line in lines if "held_out/sum" in line]
    assert len(looks) == 7 and len(set(looks)) > 3 and len(set(seen)) > 3
    assert set(seen) <= set(looks), "what a step draws from is what the look before it saw"


def test_the_reference_is_the_base_under_the_adapters(base: Path, tmp_path: Path, monkeypatch):
    """No copy of it is made; the penalty starts at nothing and follows the plain formula."""
    seen: list[Decoder] = []
    plain = Rollouts.step

    def step(self: Rollouts, number: int) -> StepData:
        assert self.reference is self.policy.model
        seen.append(self.reference)
        data = plain(self, number)
        for batch in (one for batches in data.updates for one in batches):
            with torch.no_grad():
                hidden = original(batch.tokens_BT, batch.positions_BT).hidden_BTD
                logp_NV = (original.logits(hidden) / 0.7).log_softmax(-1).flatten(0, 1)
            expected = logp_NV[predecessors(batch.positions_BT)].gather(1, batch.tokens_BT.view(-1, 1))[:, 0]
            counted = (batch.columns["policy_weight"] != 0).flatten()
            found = batch.columns["reference_logp"].flatten()
            torch.testing.assert_close(found[counted], expected[counted], atol=1e-5, rtol=0)
        return data

    original = load_model(base)
    monkeypatch.setattr(Rollouts, "step", step)
    optim = ADAM | {"lr": 0.02}
    lines = metrics(here("rl", tmp_path, lora=LORA, kl_weight=0.1, updates=1, optim=optim))
    assert len(seen) == 6 and lines[0]["kl"] < 1e-9 and lines[-1]["kl"] > 1e-4


def test_adapters_learn(tmp_path: Path):
    save_base(tmp_path / "base", llama())
    for name, changes in (("whole", {}), ("lora", {"lora": {"rank": 8}})):
        here("sft", tmp_path, name, steps=40, sequences=12, optim=ADAM | {"lr": 0.01}, held_out={}, **changes)
    loss = {name: [line["loss"] for line in metrics(tmp_path / name)] for name in ("whole", "lora")}
    assert loss["lora"][0] == pytest.approx(loss["whole"][0], rel=1e-6)
    assert loss["lora"][-1] < 0.6 * loss["lora"][0]


def test_frozen_weights_cost_no_gradient_flops(base: Path, tmp_path: Path):
    model = load_model(base)
    apply(model, build(Lora, LORA, "test"), 0)
    n_adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops = {}
    for name, changes in (("whole", {}), ("lora", {"lora": LORA})):
        lines = [line for line in metrics(here("sft", tmp_path, name, **changes)) if "loss" in line]
        flops[name], n_tokens = lines[-1]["flops"], sum(line["n_tokens"] for line in lines)
    saved = 2.0 * n_tokens * (parameters(model.config).multiplied - 3 * n_adapter)
    assert flops["whole"] - flops["lora"] == pytest.approx(saved, rel=1e-9) and saved > 0


@pytest.mark.parametrize(
    "kind, changes, parts",
    [
        ("sft", {"lora": {"rnk": 3}}, ("lora.rnk", "Did you mean 'rank'?")),
        ("sft", {"lora": {"rank": 0}}, ("lora.rank", "greater than 0")),
        ("rl", {"lora": {"targets": []}}, ("lora.targets", "at least 1")),
        ("rl", {"lora": {"targets": ["q"]}}, ("lora.targets", "'q'", "Available: ", "o_proj")),
        ("distill", {"from": None, "model": llama().model_dump(exclude_none=True), "lora": {}}, ("lora", "random")),
        ("sft", {"device": "gpu"}, ("device", "'auto', 'cpu' or 'cuda'")),
        ("sft", {"precision": "fp16"}, ("precision", "'fp32' or 'bf16'")),
    ],
    ids=str,
)
def test_impossible_settings(kind: str, changes: dict[str, Any], parts: tuple[str, ...], base: Path, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        here(kind, tmp_path, **changes)
    for part in parts:
        assert part in str(error.value)


def test_pretraining_has_no_base_to_adapt():
    config, _ = KINDS["pretrain"]
    with pytest.raises(ConfigError, match="wanted a known key, came 'lora'"):
        build(config, {"kind": "pretrain", "name": "a", **PRETRAIN, "lora": {}}, "test")


def test_a_gpu_that_is_not_there(base: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r'tiny: device: wanted a GPU .* came none\. Set device = "cpu"'):
        here("sft", tmp_path, device="cuda")
    here("sft", tmp_path, device="auto")


@pytest.mark.parametrize("kind", ["pretrain", "rl"])
def test_recomputed_blocks_change_nothing(kind: str, base: Path, tmp_path: Path):
    """Metrics and weights to the byte."""
    settings, task = {"pretrain": (PRETRAIN, SHORT_SUMS), "rl": (RL, Sevens())}[kind]
    for name, recompute in (("plain", False), ("again", True)):
        rows = settings["rows"] | {"recompute": recompute}
        run(kind, settings | {"steps": 5, "rows": rows}, context(tmp_path / name, task, base=base, tokenizer=base))
    for file in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["pretrain", "sft", "lora", "rl"])
def test_bf16_products_with_fp32_weights(kind: str, recompute: bool, base: Path, tmp_path: Path):
    """Losses near those of fp32 and not the same; weights and the optimizer's state in fp32, and no rounder than that.

    In RL the first update's log-probs differ from the sampler's, which draws in fp32, and the reference's do not.
    """
    changes: dict[str, Any] = {"steps": 4, "checkpoint_every": 3, "balance": {}}
    for name in ("fp32", "bf16"):
        changes |= {"precision": name, "rows": {"row_tokens": 64, "micro_tokens": 128, "recompute": recompute}}
        if kind == "pretrain":
            run(kind, PRETRAIN | changes, context(tmp_path / name, base=base, tokenizer=base))
        elif kind == "rl":
            here(kind, tmp_path, name, updates=1, kl_weight=0.1, **changes)
        else:
            here("sft", tmp_path, name, **changes, **({"lora": DORA} if kind == "lora" else {}))
    loss = {}
    for name in ("fp32", "bf16"):
        lines = [line for line in metrics(tmp_path / name) if "loss" in line]
        loss[name] = [line["cross_entropy" if kind != "rl" else "entropy"] for line in lines]
    assert loss["bf16"] == pytest.approx(loss["fp32"], rel=0.02) and loss["bf16"] != loss["fp32"]
    if kind == "rl":
        first = metrics(tmp_path / "bf16")[0]
        assert 1e-5 < first["sampling/sampling_logp_difference/mean"] < 0.05 and first["kl"] < 1e-9
    for file in ("model/model.safetensors", "checkpoints/step-000003/optimizer.safetensors"):
        tensors = load_file(tmp_path / "bf16" / file)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors.values())


def test_norms_and_routers_stay_in_fp32():
    """Their results are the same to the bit with and without bf16 products; a linear layer's are not."""
    model = made(deepseek())
    x_BTD = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(1))
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), torch.no_grad():
            routing, linear = model.routers()[0](x_BTD.flatten(0, 1)), model.lm_head(x_BTD)
            found.append([model.norm(x_BTD), routing.scores_NE, routing.gate_NA, linear])
    assert all(torch.equal(a, b) for a, b in zip(found[0][:3], found[1][:3], strict=True))
    assert found[1][3].dtype == torch.bfloat16 and model.norm(x_BTD.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [None, Lora(rank=2, use_dora=True)], ids=["whole", "dora"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_tensor_of_a_step_is_made_where_the_model_is(kind: str, lora: Lora | None, precision: str):
    """With another default device, one that was made without asking could not meet the model's."""
    model = made(deepseek(num_nextn_predict_layers=1))
    if lora is not None:
        apply(model, lora, seed=1)
    sequences = [Sequence([1, 2, 3, 4, 5] * n, [0.0] + [0.1] * (5 * n - 1), columns(5 * n)) for n in (1, 2, 3)]
    batches = make_batches(sequences, 16, 16, 0)
    with torch.device("meta"):
        optimizer = Optimizer(model, build(Optim, {"kind": kind}, "test"))
        for batch in batches:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
                terms = LossTerms(mtp_weight=0.3, balance_weight=1e-4)
                result = batch_loss(model, batch.to(model.device), terms, 0.5)
            result.loss.backward()
        optimizer.clip()
        optimizer.step(0, 1)
        if lora is None:
            model.update_balance(result.load_LE, 0.01)
            optimizer.load_state(optimizer.state())
    assert {tensor.device.type for tensor in [*model.state_dict().values(), *optimizer.state().values()]} == {"cpu"}


def columns(n: int) -> dict[str, list[float]]:
    """A policy term and a reference for n tokens."""
    names = ("policy_weight", "advantage", "old_logp", "kl_weight", "reference_logp")
    return {name: [0.0] + [0.1 if "logp" not in name else -1.0] * (n - 1) for name in names}


def test_a_batch_moves_whole():
    experts = np.zeros((3, 1, 2), np.int16)
    sequence = Sequence([1, 2, 3], [0.0, 1.0, 1.0], columns(3), experts_TLA=experts)
    moved = make_batches([sequence], 4, 4, characters().pad_id)[0].to(torch.device("meta"))
    tensors = [moved.tokens_BT, moved.positions_BT, moved.real_BT, moved.experts_BTLA, *moved.columns.values()]
    assert len(tensors) == 10 and {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.n_sequences, moved.lengths) == (1, (3,))


def test_lora_is_none_by_default():
    stage = build(RlStage, {"kind": "rl", "name": "a", **RL}, "test")
    assert stage.lora is None and stage.device == "cpu" and stage.precision == "fp32" and not stage.rows.recompute
