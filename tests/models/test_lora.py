"""Adapters against PEFT, the independent reference: files both ways, gradients, merging; and giving everything back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import deepseek, llama, logits_of, made, tokens_like
from torch import Tensor

from zifio.config import ConfigError, Sampling
from zifio.engine.engine import Engine
from zifio.models.config import DeepseekV3Config, LlamaConfig, Lora
from zifio.models.decoder import Decoder
from zifio.models.lora import (
    LoraLinear,
    adapters,
    apply,
    bare,
    base_digest,
    folded,
    load_adapter,
    merge,
    restore_adapter,
    save_adapter,
)
from zifio.models.weights import load_model, save_model

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

# PEFT asks transformers for a property that it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

SHAPES = {"llama": llama(), "deepseek": deepseek(num_nextn_predict_layers=1), "low-rank-query": deepseek(q_lora_rank=9)}
KINDS = {
    "lora": Lora(rank=4, alpha=6),
    "dora": Lora(rank=3, alpha=9, use_dora=True),
    "rslora": Lora(rank=4, alpha=3, use_rslora=True),
    "some": Lora(rank=2, alpha=5, targets=["o_proj", "layers.1.self_attn.q_b_proj", "kv_b_proj"]),
}
EVERY = pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
SHAPED = pytest.mark.parametrize("shape", SHAPES)


def stirred(model: Decoder, seed: int = 7) -> Decoder:
    """The model with adapters as training may leave them: no zero B, no length as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.lora_B.normal_(0.0, 0.2, generator=generator)
            if adapter.lora_magnitude_vector is not None:
                adapter.lora_magnitude_vector.mul_(torch.rand(len(adapter.lora_B), generator=generator) + 0.5)
    return model


def adapted(config: DeepseekV3Config | LlamaConfig, lora: Lora) -> Decoder:
    """A model with such adapters."""
    model = made(config)
    apply(model, lora, seed=3)
    return stirred(model)


def logits(model: Decoder) -> Tensor:
    """Of some tokens."""
    with torch.no_grad():
        return logits_of(model, tokens_like(2, 17))


def saved(model: Decoder, folder: Path) -> tuple[Path, Path]:
    """Folders of the base and of the adapter."""
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    with bare(model):
        save_model(model, base)
    save_adapter(model, adapter)
    return base, adapter


@pytest.mark.parametrize("kind", KINDS)
@SHAPED
def test_peft_opens_our_adapters(shape: str, kind: str, tmp_path: Path):
    lora = KINDS[kind]
    if kind == "some" and shape != "low-rank-query":
        targets = {"llama": ["o_proj", "layers.1.mlp.up_proj"], "deepseek": ["layers.0.self_attn.q_proj"]}[shape]
        lora = lora.model_copy(update={"targets": targets})
    model = adapted(SHAPES[shape], lora)
    base, adapter = saved(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    wrapped = {name for name, one in theirs.named_modules() if isinstance(one, peft.tuners.lora.Linear)}
    assert wrapped == {f"base_model.model.model.{name}" for name in adapters(model)}
    with torch.no_grad():
        expected = theirs(tokens_like(2, 17)).logits
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    with bare(model):
        assert (logits(model) - expected).abs().max() > 1e-2, "the adapter matters"


def theirs_on(base: Path, **settings: Any) -> Any:
    """PEFT's own adapters on a base, not zero."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(5)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2)
            elif "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    return adapted


THEIRS: dict[str, dict[str, Any]] = {
    "all-linear": {"r": 3, "lora_alpha": 4, "target_modules": "all-linear"},
    "lora": {"r": 3, "lora_alpha": 4, "target_modules": ["kv_a_proj_with_mqa", "kv_b_proj", "v_proj"]},
    "dora": {"r": 3, "lora_alpha": 4, "target_modules": ["o_proj", "q_b_proj", "k_proj"], "use_dora": True},
    "rslora": {"r": 4, "lora_alpha": 3, "target_modules": r".*layers\.1\.self_attn.*proj", "use_rslora": True},
}


@pytest.mark.parametrize(
    "shape, how", [(shape, how) for shape in SHAPES for how in THEIRS if shape == "llama" or how != "all-linear"]
)
def test_pefts_adapters_open_here(shape: str, how: str, tmp_path: Path):
    """And the gradients of one step are theirs, for A, B and the lengths; merging gives their logits too."""
    save_model(made(SHAPES[shape]), tmp_path)
    theirs = theirs_on(tmp_path, **(THEIRS[how] | ({} if how != "rslora" else {"lora_dropout": 0.1})))
    theirs.save_pretrained(tmp_path / "adapter")
    theirs.eval()
    model = load_model(tmp_path)
    load_adapter(model, tmp_path / "adapter")
    tokens = tokens_like(2, 17)
    ours, expected = logits_of(model, tokens), theirs(tokens).logits
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    for table in (ours, expected):
        torch.nn.functional.cross_entropy(table[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(own) == len(gradients) > 0
    for name, parameter in own.items():
        stem, _, part = name.rpartition(".")
        suffix = f"{part}.default.weight"
        torch.testing.assert_close(
            parameter.grad, gradients[f"base_model.model.model.{stem}.{suffix}"], atol=1e-6, rtol=1e-4
        )
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-7, name
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    merge(model)
    torch.testing.assert_close(logits(model), expected.detach(), atol=1e-5, rtol=0)


@EVERY
@SHAPED
def test_an_adapted_model_begins_as_its_base(shape: str, kind: str):
    """To the bit where B = 0 adds zeros; the same seed draws the same A, within PEFT's bound."""
    model = made(SHAPES[shape])
    before = logits(model)
    apply(model, KINDS[kind], seed=3)
    torch.testing.assert_close(logits(model), before, atol=0 if kind != "dora" else 1e-6, rtol=0)
    again, other = made(SHAPES[shape]), made(SHAPES[shape])
    apply(again, KINDS[kind], seed=3)
    apply(other, KINDS[kind], seed=4)
    for name, adapter in adapters(model).items():
        assert torch.equal(adapter.lora_A, adapters(again)[name].lora_A)
        assert not torch.equal(adapter.lora_A, adapters(other)[name].lora_A)
        bound = adapter.base.in_features**-0.5
        assert 0.8 * bound < adapter.lora_A.abs().max() <= bound
    trained = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if kind == "dora" else set())


def test_which_layers_are_adapted():
    """By default all linear ones of a dense model's blocks, the attention's beside experts; the others when named."""
    dense, experts = adapted(SHAPES["llama"], Lora()), adapted(SHAPES["deepseek"], Lora())
    feed_forward = {"mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"}
    attention = {f"self_attn.{letter}_proj" for letter in "qkvo"}
    assert set(adapters(dense)) == {f"layers.{layer}.{name}" for layer in (0, 1) for name in attention | feed_forward}
    attention = {f"self_attn.{name}" for name in ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_proj")}
    assert set(adapters(experts)) == {f"layers.{layer}.{name}" for layer in (0, 1) for name in attention}
    named = adapted(SHAPES["deepseek"], Lora(targets=["up_proj", "1.self_attn.o_proj"]))
    assert set(adapters(named)) == {
        "layers.0.mlp.up_proj", "layers.1.mlp.shared_experts.up_proj", "layers.1.self_attn.o_proj",
    }  # fmt: skip


def test_pefts_adapters_on_stacked_experts_are_refused_by_name(tmp_path: Path):
    save_model(made(SHAPES["deepseek"]), tmp_path)
    theirs_on(tmp_path, r=3, target_parameters=["mlp.experts.down_proj"]).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"target_parameters = .*down_proj.* is not supported"):
        load_adapter(load_model(tmp_path), tmp_path / "adapter")


@EVERY
@SHAPED
def test_merging_is_exact_and_leaves_a_plain_decoder(shape: str, kind: str):
    """Each weight is the formula in double precision, rounded; the model's logits follow."""
    model = adapted(SHAPES[shape], KINDS[kind])
    before, expected = logits(model), {}
    for name, a in adapters(model).items():
        total = a.base.weight.double() + a.scale * (a.lora_B.double() @ a.lora_A.double())
        if a.lora_magnitude_vector is not None:
            total = total * (a.lora_magnitude_vector.double() / total.norm(dim=1))[:, None]
        expected[f"{name}.weight"] = total.detach()
    merge(model)
    plain = made(SHAPES[shape])
    assert model.state_dict().keys() == plain.state_dict().keys() and not adapters(model)
    assert all(p.requires_grad for p in model.parameters())
    for name, tensor in model.state_dict().items():
        if name in expected:
            torch.testing.assert_close(tensor.double(), expected[name], atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(tensor, plain.state_dict()[name]), name
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)


@EVERY
@SHAPED
def test_folding_gives_everything_back_to_the_bit(shape: str, kind: str):
    """Also when what runs inside falls over; and a plain decoder comes as it is."""
    model = adapted(SHAPES[shape], KINDS[kind])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected, names = logits(model), list(before)
    with pytest.raises(RuntimeError, match="within"), folded(model):
        assert not adapters(model)
        with folded(model):
            torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
        raise RuntimeError("within")
    assert list(model.state_dict()) == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), expected)
    with bare(model):
        assert torch.equal(logits(model), logits(made(SHAPES[shape])))


@EVERY
@SHAPED
def test_the_sampler_draws_from_the_adapted_model(shape: str, kind: str):
    """Folded or not, tokens are equal and log-probs within 1e-5 of a full pass; absorbed MLA sees the adapter too."""
    model = adapted(SHAPES[shape], KINDS[kind])
    prompts, seeds, sampling = [[1, 5, 9], [2, 3]], [[0, 1, 2], [3, 4, 5]], Sampling(max_new_tokens=12)
    plain = Engine(model, eos_id=0).generate(prompts, seeds, sampling)
    with folded(model):
        fast = Engine(model, eos_id=0).generate(prompts, seeds, sampling)
    for prompt, ours, theirs in zip(prompts, plain, fast, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.tokens == other.tokens
            assert one.logps == pytest.approx(other.logps, abs=1e-5)
            with torch.no_grad():
                table = logits_of(model, torch.tensor([prompt + one.tokens])).log_softmax(-1)[0, len(prompt) - 1 :]
            full = [table[t, token].item() for t, token in enumerate(one.tokens)]
            assert other.logps == pytest.approx(full, abs=1e-5)


def test_absorbed_mla_has_gradients_to_the_adapter():
    """Its two forms agree on the adapter's gradient as well, because `weight` is the adapted matrix."""
    found = []
    for absorb in (False, True):
        model = adapted(SHAPES["deepseek"], KINDS["dora"])
        tokens = tokens_like(2, 9)
        positions = torch.arange(9).expand(2, -1)
        model(tokens, positions, absorb=absorb).hidden_BTD.square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if "kv_b_proj.lora" in name})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)


@EVERY
def test_round_trip_is_exact(kind: str, tmp_path: Path):
    model = adapted(SHAPES["deepseek"], KINDS[kind])
    save_adapter(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = made(SHAPES["deepseek"])
    load_adapter(loaded, tmp_path)
    resumed = made(SHAPES["deepseek"])
    apply(resumed, KINDS[kind], seed=9)
    restore_adapter(resumed, tmp_path)
    for other in (loaded, resumed):
        assert other.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())
    assert torch.equal(logits(loaded), logits(model))


def test_a_bias_stays_outside_of_the_adapter():
    """As in PEFT: DoRA's factor applies to the product, not to the bias; no model of ours has one yet."""
    base = torch.nn.Linear(6, 5)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    for kind in ("lora", "dora"):
        adapter = LoraLinear(base, KINDS[kind])
        with torch.no_grad():
            adapter.lora_B.fill_(0.3)
        expected = torch.nn.functional.linear(x, adapter.weight, base.bias)
        torch.testing.assert_close(adapter(x), expected, atol=1e-6, rtol=1e-5)


def test_the_base_has_a_name_that_adapters_do_not_change():
    model = made(SHAPES["deepseek"])
    plain = base_digest(model)
    apply(model, KINDS["dora"], seed=3)
    assert base_digest(stirred(model)) == plain and len(plain) == 12
    model.routers()[0].e_score_correction_bias[0] += 1
    assert base_digest(model) != plain


@pytest.mark.parametrize(
    "targets, parts",
    [
        (["q_prj"], ("lora.targets", "'q_prj'", "Did you mean 'q_proj'?", "gate_proj", "o_proj", "routed experts")),
        (["o_proj", "lm_head"], ("'lm_head', which matches none", "Available: down_proj, gate_proj")),
        (["proj"], ("'proj'",)),
        (["experts.gate_up_proj"], ("stacked",)),
        (["mtp.0.block.self_attn.o_proj"], ("matches none",)),
    ],
    ids=str,
)
def test_a_target_that_matches_nothing_names_what_there_is(targets: list[str], parts: tuple[str, ...]):
    model = made(SHAPES["deepseek"])
    with pytest.raises(ConfigError) as error:
        apply(model, Lora(targets=targets), seed=0)
    for part in parts:
        assert part in str(error.value)
    assert all(p.requires_grad for p in model.parameters()), "nothing has happened"


def harmed(folder: Path, **changes: Any) -> None:
    """Change the adapter's table."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"some_new_thing": True}, "some_new_thing = True is not supported.*Merge it in PEFT"),
        ({"r": 0}, "r = 0"),
        ({"r": 5}, r"lora_A.weight: wanted shape \[5, 24\], came \[3, 24\]"),
        ({"use_dora": False}, "lora_magnitude_vector is no part of this adapter"),
    ],
    ids=str,
)
def test_what_an_adapter_asks_for_and_we_do_not_have(changes: dict[str, Any], message: str, tmp_path: Path):
    save_adapter(adapted(SHAPES["deepseek"], KINDS["dora"]), tmp_path)
    harmed(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        load_adapter(made(SHAPES["deepseek"]), tmp_path)


def test_adapters_of_another_model_are_refused(tmp_path: Path):
    save_adapter(adapted(SHAPES["deepseek"], KINDS["lora"]), tmp_path)
    for config, message in (
        (llama(), "is no layer of this model"),
        (deepseek(num_hidden_layers=1), "8 of its tensors are for layers that this model does not have"),
        (deepseek(hidden_size=32), "wanted shape"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_adapter(made(config), tmp_path)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_and_torn_files_are_named(file: str, tmp_path: Path):
    save_adapter(adapted(SHAPES["llama"], KINDS["lora"]), tmp_path)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ConfigError, match=rf"{file}: torn"):
        load_adapter(made(SHAPES["llama"]), tmp_path)
    path.unlink()
    with pytest.raises(ConfigError, match=rf"{file}: no such file"):
        load_adapter(made(SHAPES["llama"]), tmp_path)


def test_missing_tensors_are_named(tmp_path: Path):
    save_adapter(adapted(SHAPES["llama"], KINDS["lora"]), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: t for name, t in tensors.items() if "layers.0.mlp.up_proj.lora_B" not in name}, path)
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.up_proj\.lora_B\.weight is missing \(1 tensors"):
        load_adapter(made(SHAPES["llama"]), tmp_path)
    save_file({}, path)
    with pytest.raises(ConfigError, match="wanted LoRA tensors, came none"):
        load_adapter(made(SHAPES["llama"]), tmp_path)
