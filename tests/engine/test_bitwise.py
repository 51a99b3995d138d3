"""Sampler and trainer agree to the last bit: every log-prob is the same float, however either side cuts its batches."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf_files import smollm2
from tiny import EVERY_FAMILY, deepseek, llama, made, qwen3_moe

import zifio.engine.bitwise as bitwise_module
from zifio.config import ConfigError, Sampling
from zifio.data.pack import Sequence
from zifio.engine.cache import bytes_per_page
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.engine.request import Completion, Request
from zifio.engine.sampler import draw
from zifio.kernels.library import library
from zifio.models.config import DeepseekV3Config, Lora
from zifio.models.decoder import Decoder
from zifio.models.lora import apply
from zifio.models.weights import load_model
from zifio.train.batch import make_batches
from zifio.train.logp import token_logp_entropy
from zifio.train.loss import LossTerms, batch_loss, policy_logp

KERNELS = pytest.mark.skipif(library() is None, reason="no C compiler, or ZIFIO_KERNELS=off")
ODD = 1.1
"""A temperature whose inverse depends on whether it is rounded before or after the division."""

WIDE = qwen3_moe(
    hidden_size=264, head_dim=20, num_experts=24, num_experts_per_tok=9, moe_intermediate_size=40,
    intermediate_size=530, max_position_embeddings=300,
)  # fmt: skip
"""Widths beyond one block of summation and not whole vectors, and more choices than a vector has lanes."""

MODELS = {
    "llama": llama(),
    "deepseek": deepseek(),
    "low-rank query": deepseek(q_lora_rank=10),
    "wide": WIDE,
    **{name: EVERY_FAMILY[name] for name in EVERY_FAMILY if name.startswith(("qwen", "v2"))},
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


def sequence(prompt: list[int], reply: Completion) -> Sequence:
    """A reply with the sampler's log-probs, as an RL stage makes a sequence of it."""
    given, n = [0.0] * len(prompt), len(reply.tokens)
    columns = {"policy_weight": given + [1.0] * n, "advantage": given + [1.0] * n, "old_logp": given + reply.logps}
    return Sequence(prompt + reply.tokens, given + [0.0] * n, columns, len(prompt))


def sampled(engine: Engine, prompts: list[list[int]], group: int, sampling: Sampling) -> list[Sequence]:
    """A group of replies to every prompt."""
    seeds = [[100 * p + g for g in range(group)] for p in range(len(prompts))]
    groups = zip(prompts, engine.generate(prompts, seeds, sampling), strict=True)
    return [sequence(prompt, reply) for prompt, replies in groups for reply in replies]


def differing(
    model: Decoder, sequences: list[Sequence], row_tokens: int, temperature: float, *, shared: bool = True
) -> tuple[int, int]:
    """(log-probs that are not the same float in trainer and sampler, all of them)."""
    sequences = sequences if shared else [replace(one, n_prefix=0) for one in sequences]
    n_differing = n_tokens = 0
    for batch in make_batches(sequences, row_tokens, 4 * row_tokens, 0):
        counted = batch.columns["policy_weight"] != 0
        trainer, sampler = policy_logp(model, batch, temperature)[counted], batch.columns["old_logp"][counted]
        n_differing += int((trainer.view(torch.int32) != sampler.view(torch.int32)).sum())
        n_tokens += trainer.numel()
    return n_differing, n_tokens


@KERNELS
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_no_log_prob_differs(name: str, way: str):
    """Prompts of many lengths; rows that hold one sequence or many, with prompts shared and not."""
    model = made(MODELS[name])
    for temperature in (1.0, 0.7, ODD):
        engine = Engine(model, 2, settings=WAYS[way])
        sequences = sampled(engine, prompts_of(model, 6, 40), 4, Sampling(max_new_tokens=24, temperature=temperature))
        for row_tokens, shared in ((64, True), (90, False), (200, True), (1000, True)):
            found, n_tokens = differing(model, sequences, row_tokens, temperature, shared=shared)
            assert n_tokens > 200 and found == 0


@KERNELS
@pytest.mark.parametrize("name", ["llama", "deepseek", "wide"])
def test_no_log_prob_differs_across_many_pages(name: str):
    """Prompts and replies over several pages, taken up again after they were sent back, and with drafts."""
    more = {"max_position_embeddings": 300}
    more |= {"num_nextn_predict_layers": 1} if name == "deepseek" else {}
    model = made(MODELS[name].model_copy(update=more))
    prompts, sampling = prompts_of(model, 6, 150), Sampling(max_new_tokens=120)
    plain = sampled(Engine(model, -1), prompts, 3, sampling)
    assert differing(model, plain, 600, 1.0) == (0, 18 * 120)
    assert differing(model, plain, 270, 1.0, shared=False)[0] == 0
    memory = 24 * bytes_per_page(model.config, False) / 1e9
    drafted = EngineConfig(memory_gb=memory, speculate=name == "deepseek", chunk_tokens=30)
    for settings in (EngineConfig(memory_gb=memory), drafted):
        tight = Engine(model, -1, settings=settings)
        assert sampled(tight, prompts, 3, sampling) == plain
        assert tight.stats.preemptions > 0 and (tight.stats.drafts_accepted > 0) == settings.speculate


@KERNELS
@pytest.mark.parametrize("name", ["llama", "qwen3", "deepseek", "wide"])
def test_a_reply_has_the_same_bits_alone_and_among_others(name: str):
    model = made(MODELS[name])
    prompts, sampling = prompts_of(model, 5, 40), Sampling(max_new_tokens=24, temperature=ODD)
    together = Engine(model, 2).generate(prompts, [[p, p + 50] for p in range(5)], sampling)
    for p, prompt in enumerate(prompts):
        ((alone,),) = Engine(model, 2).generate([prompt], [[p + 50]], sampling)
        assert alone == together[p][1]


@KERNELS
@pytest.mark.parametrize("name", ["llama", "deepseek"])
def test_requests_of_all_samplings_side_by_side(name: str):
    """The log-prob is the policy's own also where the draw was among the likeliest, and each has its temperature."""
    model = made(MODELS[name])
    kinds = [
        Sampling(), Sampling(temperature=ODD), Sampling(temperature=0.55), Sampling(temperature=0),
        Sampling(temperature=1.05, top_k=5), Sampling(temperature=0.85, top_p=0.8), Sampling(min_p=0.1),
        Sampling(repetition_penalty=1.3, temperature=ODD), Sampling(repetition_penalty=1.3, temperature=0),
        Sampling(repetition_penalty=0.7, top_k=9, top_p=0.9, min_p=0.05, temperature=1.5),
    ]  # fmt: skip
    engine, asked, n_total = Engine(model, 2), {}, 0
    for number, prompt in enumerate(prompts_of(model, 4 * len(kinds), 40)):
        sampling = kinds[number % len(kinds)].model_copy(update={"max_new_tokens": 24})
        (id,) = engine.submit(Request(prompt, sampling, (number,)))
        asked[id] = prompt, sampling.temperature or 1.0
        engine.step()
    done = {}
    while engine.has_work:
        done.update((event.id, event.completion) for event in engine.step() if event.completion)
    for id, completion in done.items():
        prompt, temperature = asked[id]
        found, n_tokens = differing(model, [sequence(prompt, completion)], 100, temperature)
        assert found == 0, (asked[id], completion)
        n_total += n_tokens
    assert n_total > 400


@KERNELS
def test_every_temperature_is_the_same_factor_on_both_sides():
    model = made(llama())
    hidden_BTD = torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits_BV = model.logits(hidden_BTD[:, 0])
        for hundredths in range(1, 301):
            temperature = hundredths / 100
            token_B, logp_B = draw(logits_BV, torch.tensor([0.4], dtype=torch.float64), torch.tensor([temperature]))
            tokens_BT = torch.tensor([[0, int(token_B)]])
            assert token_logp_entropy(model, hidden_BTD, tokens_BT, temperature)[0][0, 1] == logp_B, temperature


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Torch's number, which is also the kernels'."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@KERNELS
def test_the_number_of_threads_changes_no_bit():
    model = made(WIDE)
    prompts, sampling = prompts_of(model, 12, 100), Sampling(max_new_tokens=16)
    with threads(1):
        one = sampled(Engine(model, -1), prompts, 4, sampling)
    with threads(3):
        assert sampled(Engine(model, -1), prompts, 4, sampling) == one
        assert differing(model, one, 700, 1.0) == (0, 12 * 4 * 16)


@KERNELS
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["llama", "deepseek"])
@pytest.mark.parametrize("lora", [None, Lora(rank=2), Lora(rank=2, use_dora=True)], ids=["whole", "lora", "dora"])
def test_the_step_that_learns_sees_no_gap(name: str, recompute: bool, lora: Lora | None):
    """What a run reports as `logp_gap_max` is 0: with gradients, entropies and recomputation; adapters not folded."""
    model = made(MODELS[name])
    if lora is not None:
        apply(model, lora, seed=1)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(2))
    model.recompute = recompute
    sampling = Sampling(max_new_tokens=24, temperature=ODD)
    sequences = sampled(Engine(model, 2), prompts_of(model, 6, 40), 4, sampling)
    for batch in make_batches(sequences, 200, 800, 0):
        result = batch_loss(model, batch, LossTerms(temperature=ODD), 1.0)
        result.loss.backward()
        assert result.sums["n_policy_tokens"] > 50 and result.sums["logp_gap_max"] == 0


@KERNELS
def test_latents_are_another_arithmetic():
    """The paper's cache holds latents; what is absorbed elsewhere rounds otherwise, within 1e-5."""
    model = made(deepseek())
    engine = Engine(model, 2, settings=EngineConfig(latent_cache=True))
    sequences = sampled(engine, prompts_of(model, 6, 40), 4, Sampling(max_new_tokens=24))
    assert differing(model, sequences, 100, 1.0)[0] > 0
    for batch in make_batches(sequences, 100, 400, 0):
        counted = batch.columns["policy_weight"] != 0
        gap = policy_logp(model, batch, 1.0)[counted] - batch.columns["old_logp"][counted]
        assert gap.abs().max() < 1e-5


BITWISE = EngineConfig(bitwise=True)


@KERNELS
def test_bitwise_is_granted_where_it_can_be_kept():
    for config, more in ((deepseek(), {}), (llama(), {"latent_cache": True})):
        settings = EngineConfig(bitwise=True, **more)
        model = made(config)
        sequences = sampled(
            Engine(model, 2, settings=settings), prompts_of(model, 4, 40), 4, Sampling(max_new_tokens=24)
        )
        assert differing(model, sequences, 200, 1.0)[0] == 0


def test_bitwise_is_refused_where_it_cannot_be_kept(monkeypatch: pytest.MonkeyPatch):
    """Without it, the same is no error."""
    monkeypatch.setattr(bitwise_module, "library", lambda: None)
    with pytest.raises(
        ConfigError, match=r"kernels, which are off or could not be built.*ZIFIO_KERNELS.*bitwise = false"
    ):
        Engine(made(llama()), 2, settings=BITWISE)
    Engine(made(llama()), 2).generate([[3]], [[1]], Sampling(max_new_tokens=2))
    monkeypatch.setattr(bitwise_module, "library", lambda: object())
    latent = EngineConfig(bitwise=True, latent_cache=True)
    with pytest.raises(ConfigError, match=r"came latent_cache = true.*Set latent_cache = false"):
        Engine(made(deepseek()), 2, settings=latent)
    with pytest.raises(ConfigError, match="on the CPU, came one on meta"):
        Engine(made(llama()).to("meta"), 2, settings=BITWISE)
    with pytest.raises(ConfigError, match=r"torch.float32, came torch.bfloat16"):
        Engine(made(llama()).bfloat16(), 2, settings=BITWISE)
    with pytest.raises(ConfigError, match="came precision bf16"):
        Engine(made(llama()), 2, settings=BITWISE, precision="bf16")


def test_bitwise_is_refused_also_when_the_model_changes_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bitwise_module, "library", lambda: object())
    engine = Engine(made(llama()), 2, settings=BITWISE)
    ask = [[3]], [[1]], Sampling(max_new_tokens=2)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ConfigError, match="came autocast"):
        engine.generate(*ask)
    engine.generate(*ask)
    engine.model.double()
    with pytest.raises(ConfigError, match=r"came torch\.float64"):
        engine.submit(Request([3], Sampling(), (1,)))


@KERNELS
@pytest.mark.slow
def test_fifty_thousand_tokens_of_the_nano_model():
    raw = tomllib.loads(Path(__file__, "../../../recipes/quickstart.toml").resolve().read_text())
    shape = next(stage["model"] for stage in raw["stage"] if stage["name"] == "base")
    model = made(DeepseekV3Config(**shape, vocab_size=24))
    total = 0
    for temperature in (1.0, 0.7, ODD):
        sampling = Sampling(max_new_tokens=64, temperature=temperature)
        engine = Engine(model, 2, settings=EngineConfig(chunk_tokens=100))
        sequences = sampled(engine, prompts_of(model, 80, 60), 8, sampling)
        for row_tokens, shared in ((256, True), (130, False)):
            found, n_tokens = differing(model, sequences, row_tokens, temperature, shared=shared)
            assert found == 0
        total += n_tokens
    assert total > 50_000


@KERNELS
@pytest.mark.slow
def test_smollm2():
    """A real model: other widths, 30 layers, a vocabulary of 49,152."""
    model = load_model(smollm2())
    for temperature in (1.0, ODD):
        sequences = sampled(
            Engine(model, 2), prompts_of(model, 3, 100), 8, Sampling(max_new_tokens=32, temperature=temperature)
        )
        found, n_tokens = differing(model, sequences, 400, temperature)
        assert n_tokens > 400 and found == 0
