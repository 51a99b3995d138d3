"""Sampler and trainer agree to the last bit: every log-prob is the same float, however either side cuts its batches."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

import pytest
from tiny import EVERY_FAMILY, deepseek, llama, made

from zifio.config import Sampling
from zifio.data.pack import Sequence
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.kernels.library import library
from zifio.models.config import DeepseekV3Config
from zifio.models.decoder import Decoder
from zifio.train.batch import make_batches
from zifio.train.loss import policy_logp

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler, or ZIFIO_KERNELS=off")

MODELS = {
    "llama": llama(),
    "deepseek": deepseek(n_routed_experts=8, num_experts_per_tok=3),
    "low-rank query": deepseek(q_lora_rank=10),
    **{name: EVERY_FAMILY[name] for name in EVERY_FAMILY if name.startswith("qwen3")},
}
WAYS = {
    "as it comes": EngineConfig(),
    "few rows": EngineConfig(max_rows=3),
    "small chunks": EngineConfig(chunk_tokens=5),
    "nothing shared": EngineConfig(prefix_sharing=False),
}


def prompts_of(model: Decoder, n: int, longest: int) -> list[list[int]]:
    """Prompts of many lengths."""
    rng, vocab = random.Random(1), model.config.vocab_size or 0
    return [rng.choices(range(3, vocab), k=rng.randint(1, longest)) for _ in range(n)]


def sampled(
    model: Decoder, prompts: list[list[int]], group: int, sampling: Sampling, settings: EngineConfig
) -> list[Sequence]:
    """Replies with the sampler's log-probs, as an RL stage makes sequences of them."""
    engine = Engine(model, 2, settings=settings)
    seeds = [[100 * p + g for g in range(group)] for p in range(len(prompts))]
    sequences = []
    for prompt, replies in zip(prompts, engine.generate(prompts, seeds, sampling), strict=True):
        for reply in replies:
            given, n = [0.0] * len(prompt), len(reply.tokens)
            columns = {"policy_weight": given + [1.0] * n, "old_logp": given + reply.logps}
            sequences.append(Sequence(prompt + reply.tokens, given + [0.0] * n, columns, len(prompt)))
    return sequences


def differing(model: Decoder, sequences: list[Sequence], row_tokens: int, temperature: float) -> tuple[int, int]:
    """(log-probs that are not the same float in trainer and sampler, all of them)."""
    n_differing = n_tokens = 0
    for batch in make_batches(sequences, row_tokens, 4 * row_tokens, 0):
        counted = batch.columns["policy_weight"] != 0
        trainer = policy_logp(model, batch, temperature)[counted]
        n_differing += int((trainer != batch.columns["old_logp"][counted]).sum())
        n_tokens += trainer.numel()
    return n_differing, n_tokens


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_no_log_prob_differs(name: str, way: str) -> None:
    model = made(MODELS[name])
    for temperature, row_tokens in ((1.0, 90), (0.7, 200)):
        sampling = Sampling(max_new_tokens=24, temperature=temperature)
        sequences = sampled(model, prompts_of(model, 6, 40), 4, sampling, WAYS[way])
        found, n_tokens = differing(model, sequences, row_tokens, temperature)
        assert n_tokens > 200 and found == 0


def test_preemption_and_drafts_change_no_bit() -> None:
    model = made(deepseek(num_nextn_predict_layers=1))
    sampling, prompts = Sampling(max_new_tokens=40), prompts_of(model, 8, 40)
    plain = sampled(model, prompts, 3, sampling, EngineConfig())
    assert differing(model, plain, 120, 1.0)[0] == 0
    drafted = sampled(model, prompts, 3, sampling, EngineConfig(speculate=True))
    tight = sampled(model, prompts, 3, sampling, EngineConfig(memory_gb=24 * 4e-5))
    assert drafted == plain and tight == plain


def test_latents_are_another_arithmetic() -> None:
    """The paper's cache holds latents; what is absorbed elsewhere rounds otherwise, within 1e-5."""
    model = made(deepseek())
    sequences = sampled(
        model, prompts_of(model, 6, 40), 4, Sampling(max_new_tokens=24), EngineConfig(latent_cache=True)
    )
    for batch in make_batches(sequences, 100, 400, 0):
        counted = batch.columns["policy_weight"] != 0
        gap = policy_logp(model, batch, 1.0)[counted] - batch.columns["old_logp"][counted]
        assert gap.abs().max() < 1e-5


@pytest.mark.slow
def test_fifty_thousand_tokens_of_the_nano_model() -> None:
    raw = tomllib.loads(Path(__file__, "../../../recipes/quickstart.toml").resolve().read_text())
    shape = next(stage["model"] for stage in raw["stage"] if stage["name"] == "base")
    model = made(DeepseekV3Config(**shape, vocab_size=24))
    total = 0
    for temperature in (1.0, 0.7, 1.3):
        sampling, settings = Sampling(max_new_tokens=64, temperature=temperature), EngineConfig(chunk_tokens=100)
        sequences = sampled(model, prompts_of(model, 80, 60), 8, sampling, settings)
        found, n_tokens = differing(model, sequences, 256, temperature)
        assert found == 0
        total += n_tokens
    assert total > 50_000
