"""Pages where the kernels do not serve: torch's attention over them, other types, tensors that name their device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import deepseek, lively, llama, logits_of, made, save_base, tokens_like

from zifio.config import Sampling
from zifio.engine.cache import PAGE, PagedCache, bytes_per_page
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.kernels import operators as kernels
from zifio.models.config import AnyConfig
from zifio.models.device import find_device, sampling_precision
from zifio.models.weights import load_model
from zifio.train.logp import token_logp

EOS = 2
CASES: dict[str, AnyConfig] = {
    "llama": llama(max_position_embeddings=120),
    "deepseek": deepseek(num_nextn_predict_layers=1, max_position_embeddings=120),
}
PROMPTS = [tokens_like(n, seed=n).tolist() for n in (1, 40, 4, 17)]
SEEDS = [[10 * p + g for g in range(3)] for p in range(4)]
SAMPLING = Sampling(max_new_tokens=24)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernels: what a GPU takes."""
    monkeypatch.setattr(kernels, "library", lambda: None)


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_rows_and_chunks_beside_each_other_equal_the_full_forward(name: str, latent: bool, plain: None):
    """Three sequences of which each has many new tokens, one or two in turn, so that groups are cut everywhere."""
    model = made(CASES[name])
    cache = PagedCache(model.config, n_pages=10, latent=latent)
    tokens, table = tokens_like(3, 80), torch.tensor([[7, 2, 5], [1, 8, 0], [9, 3, 6]])
    at, parts = torch.zeros(3, dtype=torch.long), [[], [], []]
    with torch.no_grad():
        full = model(tokens, torch.arange(80).expand(3, -1)).hidden_BTD
        for counts in ([30, 5, 1], [1, 2, 40], [2, 1, 2], [9, 1, 1], [1, 33, 2]):
            count = torch.tensor(counts)
            cache.begin(table, at, count)
            places = [(row, int(at[row]) + i) for row in range(3) for i in range(counts[row])]
            rows, positions = torch.tensor(places).T
            hidden = model(tokens[rows, positions][None], positions[None], cache).hidden_BTD[0]
            for row, part in enumerate(hidden.split(counts)):
                parts[row].append(part)
            at = at + count
    for row in range(3):
        torch.testing.assert_close(torch.cat(parts[row]), full[row, : int(at[row])], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{}, {"latent_cache": True, "chunk_tokens": 9}, {"speculate": True}, {"record_routing": True}],
    ids=str,
)
@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_sampling_is_made_where_the_model_is(name: str, settings: dict, plain: None):
    """With another default device, one that was made without asking could not meet the model's.

    As an index it could, and would pick anything: then drafts are others.
    """
    if name == "llama" and ("speculate" in settings or "record_routing" in settings):
        pytest.skip("a dense model has neither drafts nor experts")
    model = lively(CASES[name], EOS, push=-1.0)
    samplings = [SAMPLING, Sampling(max_new_tokens=12, top_k=9, top_p=0.9, min_p=0.01, repetition_penalty=1.3)]
    usual = Engine(model, EOS, settings=EngineConfig(**settings))
    expected = [usual.generate(PROMPTS, SEEDS, sampling) for sampling in samplings]
    with torch.device("meta"):
        engine = Engine(model, EOS, settings=EngineConfig(**settings))
        found = [engine.generate(PROMPTS, SEEDS, sampling) for sampling in samplings]
    assert engine.stats == usual.stats
    for ours, theirs in zip(found, expected, strict=True):
        assert [[c.tokens for c in group] for group in ours] == [[c.tokens for c in group] for group in theirs]


@pytest.mark.parametrize("name", CASES)
def test_in_bf16_log_probs_are_those_of_training_in_bf16(name: str):
    """Ten times closer than those of an engine in fp32."""
    model = lively(CASES[name], EOS, push=-1.0)
    gaps = {}
    for precision in ("fp32", "bf16"):
        engine = Engine(model, EOS, precision=precision)
        done = engine.generate(PROMPTS, SEEDS, SAMPLING)
        assert engine._cache is not None
        assert engine._cache.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        gap = []
        for prompt, group in zip(PROMPTS, done, strict=True):
            for completion in group:
                whole = torch.tensor([prompt + completion.tokens])
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    logp = token_logp(logits_of(model, whole), whole)[0, len(prompt) :]
                gap.append((logp - torch.tensor(completion.logps)).abs())
        gaps[precision] = float(torch.cat(gap).mean())
        engine.release()
    assert gaps["bf16"] < 0.1 * gaps["fp32"] and gaps["fp32"] > 1e-4, gaps


@pytest.mark.parametrize("name", CASES)
def test_copies_in_bf16_are_what_autocast_makes_and_stay_where_they_are(name: str):
    model, tokens = made(CASES[name]), tokens_like(2, 9)
    layers = [module for module in model.modules() if getattr(module, "packed", 0) != 0]

    def pairs() -> list[torch.Tensor]:
        return [one for m in layers for one in (m.packed if isinstance(m.packed, tuple) else (m.packed,))]

    def logits() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return logits_of(model, tokens)

    before = logits()
    with torch.inference_mode():
        model.pack(torch.bfloat16)
    assert len(layers) > 8 and all(copy.dtype == torch.bfloat16 for copy in pairs())
    assert torch.equal(logits(), before)
    addresses = [copy.data_ptr() for copy in pairs()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    changed = logits()
    model.pack(torch.bfloat16)
    assert torch.equal(logits(), changed) and not torch.equal(changed, before)
    assert [copy.data_ptr() for copy in pairs()] == addresses
    for copy in pairs():
        copy.zero_()
    assert not torch.equal(logits(), changed), "the copies are what is read"
    with torch.enable_grad():
        exact = logits_of(model, tokens)
    assert exact.dtype == torch.float32 and exact.abs().max() > 0.1, "outside of autocast they are not"
    model.pack()
    assert not any(copy is not None and copy.dtype == torch.bfloat16 for copy in pairs())


def test_weights_in_bf16(tmp_path: Path):
    """Everything is in bf16 then, and the greedy text hardly moves."""
    folder = save_base(tmp_path, llama(max_position_embeddings=120))
    prompts = [[5, 6, 7], [8]]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        engine = Engine(load_model(folder, dtype), EOS)
        found.append([c[0] for c in engine.generate(prompts, [[1], [2]], Sampling(temperature=0, max_new_tokens=4))])
        assert engine._cache is not None and engine._cache.dtype is dtype
    for one, other in zip(*found, strict=True):
        assert one.logps[0] == pytest.approx(other.logps[0], abs=0.1) and one.logps[0] != other.logps[0]


def test_bytes_of_a_page_follow_the_type():
    config = llama()
    numbers = PAGE * 2 * 2 * (2 * 6)  # tokens, layers, keys and values, heads times width
    assert bytes_per_page(config, False, torch.bfloat16) == 2 * numbers
    assert bytes_per_page(config, False, torch.float32, torch.device("cuda")) == 4 * numbers


def test_devices_and_what_they_sample_in():
    assert sampling_precision("bf16", torch.device("cuda")) == "bf16"
    assert sampling_precision("bf16", torch.device("cpu")) == "fp32"
    assert find_device("cpu", "try").type == "cpu"
