"""The engine: transformers' greedy text, the trainer's log-probs, and replies that no neighbour can change."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import deepseek, lively, llama, logits_of, made, save_base, tokens_like

from zifio.config import ConfigError, Sampling
from zifio.engine.cache import PAGE, PagedCache, bytes_per_page, entry_of
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.engine.request import Completion
from zifio.kernels import operators as kernels
from zifio.models.config import DeepseekV3Config, LlamaConfig, Yarn
from zifio.models.decoder import Decoder
from zifio.models.weights import load_model, save_model
from zifio.train.logp import token_logp

EOS = 2
CASES = {
    "deepseek": deepseek(),
    "deepseek-yarn-mtp": deepseek(q_lora_rank=10, rope_scaling=Yarn(factor=4), num_nextn_predict_layers=1),
    "llama": llama(),
}
PROMPTS = [tokens_like(n, seed=n).tolist() for n in (1, 9, 4, 17, 4)]


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_equal_transformers_generate(name: str, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    save_model(made(CASES[name]), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs.generation_config.eos_token_id = EOS
    theirs.generation_config.pad_token_id = 0
    engine = Engine(load_model(tmp_path), EOS)
    ours = engine.generate(PROMPTS, [[0]] * len(PROMPTS), Sampling(temperature=0, max_new_tokens=24))
    for prompt, (completion,) in zip(PROMPTS, ours, strict=True):
        out = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=24
        )
        assert out[0, len(prompt) :].tolist() == completion.tokens


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", CASES)
def test_log_probs_equal_the_trainers(name: str, temperature: float):
    """Also for rows that went on after others had left the batch."""
    model = lively(CASES[name], EOS)
    sampling = Sampling(temperature=temperature, max_new_tokens=30)
    done = Engine(model, EOS).generate(PROMPTS, [[10 * p + g for g in range(4)] for p in range(5)], sampling)
    lengths = {len(completion.tokens) for group in done for completion in group}
    assert len(lengths) > 4 and max(lengths) > 12, "the test wants early ends and late ones"
    for prompt, group in zip(PROMPTS, done, strict=True):
        for completion in group:
            whole = torch.tensor([prompt + completion.tokens])
            with torch.no_grad():
                logp = token_logp(logits_of(model, whole) / temperature, whole)[0, len(prompt) :]
            torch.testing.assert_close(torch.tensor(completion.logps), logp, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["deepseek", "llama"])
def test_a_reply_depends_on_its_prompt_and_seed_alone(name: str):
    """Not on its neighbours, their number or order, nor on how the rows are cut into waves."""
    model = lively(CASES[name], EOS)
    sampling = Sampling(max_new_tokens=20)
    seeds = [[100 * p + g for g in range(3)] for p in range(5)]
    together = Engine(model, EOS).generate(PROMPTS, seeds, sampling)
    backwards = Engine(model, EOS).generate(PROMPTS[::-1], [row[::-1] for row in seeds[::-1]], sampling)
    for p, prompt in enumerate(PROMPTS):
        for g in range(3):
            ((alone,),) = Engine(model, EOS).generate([prompt], [[seeds[p][g]]], sampling)
            assert together[p][g].tokens == alone.tokens == backwards[4 - p][2 - g].tokens
            torch.testing.assert_close(torch.tensor(together[p][g].logps), torch.tensor(alone.logps), atol=1e-5, rtol=0)
    for max_rows in (2, 7):
        cut = Engine(model, EOS, max_rows).generate(PROMPTS, seeds, sampling)
        assert [[c.tokens for c in group] for group in cut] == [[c.tokens for c in group] for group in together]


def forms(config: DeepseekV3Config | LlamaConfig) -> dict[str, EngineConfig]:
    """Ways of computing that may not show in what is said."""
    tight, tighter = (pages * bytes_per_page(config, False) / 1e9 for pages in (8.5, 6.5))
    ways: dict[str, dict[str, Any]] = {
        "three rows": {"max_rows": 3}, "chunks of 7": {"chunk_tokens": 7}, "tight": {"memory_gb": tight},
        "tight, no sharing": {"memory_gb": tighter, "prefix_sharing": False, "chunk_tokens": 20},
    }  # fmt: skip
    if isinstance(config, DeepseekV3Config):
        ways |= {"latents": {"latent_cache": True}, "wide": {}}
        ways |= {f"{name}, drafts": {**way, "speculate": True} for name, way in ways.items()}
    return {name: EngineConfig(**way) for name, way in ways.items()}


LONG = [tokens_like(n, seed=n).tolist() for n in (33, 9, 40)]
LONG.append(LONG[2][:36])
LONG_SEEDS, LONG_SAMPLING = [[100 * p + g for g in range(3)] for p in range(4)], Sampling(max_new_tokens=80)
ROOMY = {
    name: CASES[name].model_copy(update={"max_position_embeddings": 120}) for name in ("deepseek-yarn-mtp", "llama")
}
SHORT = Sampling(max_new_tokens=12)
FORMS = [(name, form) for name in ROOMY for form in forms(ROOMY[name])]


@pytest.fixture(scope="module")
def plain() -> dict[str, list[list[Completion]]]:
    """What every case says to LONG when nothing is in the way."""
    return {
        name: Engine(lively(config, EOS, push=-1.0), EOS).generate(LONG, LONG_SEEDS, LONG_SAMPLING)
        for name, config in ROOMY.items()
    }


@pytest.mark.parametrize("name, form", FORMS)
def test_how_it_is_computed_does_not_show(name: str, form: str, plain: dict[str, list[list[Completion]]]):
    settings = forms(ROOMY[name])[form]
    engine = Engine(lively(ROOMY[name], EOS, push=-1.0), EOS, settings=settings)
    found = engine.generate(LONG, LONG_SEEDS, LONG_SAMPLING)
    for ours, theirs in zip(found, plain[name], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one.tokens, one.finish) == (other.tokens, other.finish)
            torch.testing.assert_close(torch.tensor(one.logps), torch.tensor(other.logps), atol=1e-5, rtol=0)
    assert (engine.stats.preemptions > 0) == (settings.memory_gb is not None)
    assert (engine.stats.shared_tokens > 0) == settings.prefix_sharing
    assert (engine.stats.drafts_proposed > 0) == settings.speculate
    if settings.memory_gb is not None:
        assert engine.stats.peak_pages <= 8
        assert engine._cache is not None and sum(t.nbytes for t in (*engine._cache._keys, *engine._cache._values)) <= (
            settings.memory_gb * 1e9
        )
    assert engine._scheduler is not None and engine._scheduler.pages.n_held == 0


@pytest.mark.parametrize("max_rows, largest", [(1, 1), (2, 2), (4, 4), (6, 6), (100, 15)])
def test_max_rows_bounds_the_rows_decoded_side_by_side(max_rows: int, largest: int, monkeypatch):
    seen: list[int] = []
    plain = PagedCache.begin

    def begin(self, table_MP, first_M, count_M):
        seen.append(len(table_MP))
        return plain(self, table_MP, first_M, count_M)

    monkeypatch.setattr(PagedCache, "begin", begin)
    Engine(made(CASES["llama"]), 39, max_rows).generate(PROMPTS, [[1, 2, 3]] * 5, Sampling(max_new_tokens=3))
    assert max(seen) == largest


def test_equal_seeds_draw_equal_replies_and_others_differ():
    engine = Engine(made(CASES["deepseek"]), EOS)
    sampling = Sampling(max_new_tokens=12)
    group = engine.generate([PROMPTS[1]], [[5, 6, 5, 7]], sampling)[0]
    assert group[0].tokens == group[2].tokens
    assert len({tuple(completion.tokens) for completion in group}) == 3
    assert engine.generate([PROMPTS[1]], [[5, 6, 5, 7]], sampling)[0] == group, "the engine keeps no state"


def test_the_same_prompt_twice_is_two_requests():
    engine = Engine(made(CASES["deepseek"]), EOS)
    first, second = engine.generate([PROMPTS[1]] * 2, [[5], [6]], Sampling(max_new_tokens=12))
    assert first != second
    (same,), (again,) = engine.generate([PROMPTS[1]] * 2, [[5], [5]], Sampling(max_new_tokens=12))
    assert same.tokens == again.tokens == first[0].tokens


def test_a_larger_limit_only_lengthens_a_reply():
    engine = Engine(made(CASES["deepseek"]), EOS)
    (short,), (long,) = (engine.generate([PROMPTS[1]], [[9]], Sampling(max_new_tokens=n))[0] for n in (4, 15))
    assert long.tokens[:4] == short.tokens and len(short.tokens) == 4 and short.finish == "length"


def test_the_end_token_ends_a_reply_and_belongs_to_it():
    model = lively(CASES["deepseek"], EOS)
    done = Engine(model, EOS).generate([PROMPTS[1]], [list(range(40))], Sampling(max_new_tokens=16))[0]
    assert {completion.finish for completion in done} == {"stop", "length"}
    for completion in done:
        assert len(completion.tokens) == len(completion.logps)
        if completion.finish == "stop":
            assert completion.tokens.index(EOS) == len(completion.tokens) - 1
        else:
            assert EOS not in completion.tokens and len(completion.tokens) == 16


def test_an_end_in_the_last_place_counts_as_a_stop():
    model = made(CASES["llama"])
    with torch.no_grad():
        model.lm_head.weight[EOS] = 100 * model.lm_head.weight.abs().sum(dim=0) * model.norm.weight.sign()
    greedy = Sampling(temperature=0, max_new_tokens=1)
    hidden = model(torch.tensor([PROMPTS[1]]), torch.arange(9)[None]).hidden_BTD[0, -1]
    with torch.no_grad():
        model.lm_head.weight[EOS] = 100 * hidden
    ((completion,),) = Engine(model, EOS).generate([PROMPTS[1]], [[0]], greedy)
    assert completion == Completion([EOS], completion.logps, "stop") and completion.logps[0] > -1e-6


def test_nothing_asked_nothing_done():
    engine = Engine(made(CASES["llama"]), EOS)
    assert engine.generate([], [], Sampling(max_new_tokens=1000)) == []
    assert engine.generate([[1], [2]], [[], []], Sampling(max_new_tokens=4)) == [[], []]


def test_a_request_that_does_not_fit_is_refused_with_numbers():
    engine = Engine(made(CASES["llama"]), EOS)
    with pytest.raises(ConfigError, match=r"max_new_tokens=80 .* 17 tokens .* context is 96\. Lower .* to 79"):
        engine.generate(PROMPTS, [[1]] * 5, Sampling(max_new_tokens=80))
    assert engine.generate(PROMPTS, [[1]] * 5, Sampling(max_new_tokens=79, temperature=0))
    with pytest.raises(ConfigError, match=re.escape("to 0 or shorten")):
        engine.generate([[1] * 96], [[1]], Sampling(max_new_tokens=1))


def test_a_request_that_memory_can_never_hold_is_refused_with_numbers():
    model = made(CASES["llama"])
    page = bytes_per_page(model.config, False)
    engine = Engine(model, EOS, settings=EngineConfig(memory_gb=2.5 * page / 1e9))
    with pytest.raises(ConfigError) as error:
        engine.generate([[1] * 20], [[1]], Sampling(max_new_tokens=50))
    for part in ("20 tokens", "together 3 pages of 32 tokens", "the cache has 2", "to 44", "memory_gb"):
        assert part in str(error.value)
    assert engine.generate([[1] * 20], [[1]], Sampling(max_new_tokens=44))


@pytest.mark.parametrize(
    "prompt, wanted", [([], "at least one token"), ([1, 40], "below 40, came 40"), ([-1], "came -1")]
)
def test_prompts_that_are_none_are_refused(prompt: list[int], wanted: str):
    with pytest.raises(ConfigError, match=wanted):
        Engine(made(CASES["llama"]), EOS).generate([prompt], [[1]], Sampling())


def test_any_of_several_end_tokens_ends_a_reply():
    model = made(CASES["llama"])
    (group,) = Engine(model, (3, 7, 11)).generate([[1]], [list(range(40))], Sampling(max_new_tokens=30))
    ends = {completion.tokens[-1] for completion in group if completion.finish == "stop"}
    assert ends == {3, 7, 11}
    assert all(not {3, 7, 11} & set(completion.tokens[:-1]) for completion in group)


def test_new_weights_are_used_at_once():
    """The engine holds nothing of the old ones, whether it was told or not."""
    model, other = made(CASES["llama"]), made(CASES["llama"], seed=2)
    engine = Engine(model, EOS)
    engine.generate(LONG, LONG_SEEDS, SHORT)
    with torch.no_grad():
        for parameter, new in zip(model.parameters(), other.parameters(), strict=True):
            parameter.copy_(new)
    found = engine.generate(LONG, LONG_SEEDS, SHORT)
    assert found == Engine(other, EOS).generate(LONG, LONG_SEEDS, SHORT)


def test_a_batch_that_was_interrupted_leaves_the_engine_as_it_was(monkeypatch):
    engine = Engine(made(CASES["llama"]), EOS)
    wanted = engine.generate(LONG, LONG_SEEDS, SHORT)
    plain, calls = Decoder.forward, iter(range(100))

    def forward(self, *given, **options):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, *given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "forward", forward)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(LONG, LONG_SEEDS, SHORT)
    assert engine.generate(LONG, LONG_SEEDS, SHORT) == wanted


def test_the_cache_is_kept_between_calls_as_long_as_it_is_large_enough():
    memory = 9 * bytes_per_page(CASES["llama"], False) / 1e9
    for settings in (EngineConfig(), EngineConfig(memory_gb=memory)):
        engine = Engine(made(CASES["llama"]), EOS, settings=settings)
        engine.generate(LONG, LONG_SEEDS, SHORT)
        cache = engine._cache
        engine.generate(LONG[:2], LONG_SEEDS[:2], SHORT)
        engine.generate(LONG, LONG_SEEDS, SHORT)
        assert engine._cache is cache
        engine.generate(LONG, LONG_SEEDS, Sampling(max_new_tokens=56))
        assert engine._cache is not cache


def test_equal_calls_give_equal_floats():
    """Whatever was asked in between."""
    engine = Engine(made(CASES["deepseek"]), EOS)
    first = engine.generate(LONG, LONG_SEEDS, SHORT)
    engine.generate(PROMPTS, [[1] * 9] * 5, Sampling(max_new_tokens=60))
    assert engine.generate(LONG, LONG_SEEDS, SHORT) == first


def test_sampling_leaves_the_model_and_torchs_generator_alone():
    model = made(CASES["deepseek"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    Engine(model, EOS).generate([PROMPTS[1]], [[1, 2]], Sampling(max_new_tokens=5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    logits_of(model, tokens_like(1, 5)).sum().backward()
    assert model.lm_head.weight.grad is not None, "the model still trains after inference mode"


def test_a_prompt_is_computed_once_for_its_whole_group():
    engine = Engine(made(CASES["llama"]), 39)
    engine.generate(LONG[:2], [[1, 2, 3]] * 2, Sampling(max_new_tokens=3))
    assert (engine.stats.prefill_tokens, engine.stats.shared_tokens) == (42, 84)
    assert (engine.stats.steps, engine.stats.tokens) == (3, 18)
    apart = Engine(made(CASES["llama"]), 39, settings=EngineConfig(prefix_sharing=False))
    apart.generate(LONG[:2], [[1, 2, 3]] * 2, Sampling(max_new_tokens=3))
    assert (apart.stats.prefill_tokens, apart.stats.shared_tokens) == (126, 0)


def test_equal_beginnings_are_computed_once():
    """LONG[3] is LONG[2] cut behind its first page; the rest of it is its own."""
    engine = Engine(made(CASES["llama"]), 39)
    engine.generate([LONG[2], LONG[3]], [[1], [2]], Sampling(max_new_tokens=3))
    assert (engine.stats.prefill_tokens, engine.stats.shared_tokens) == (40 + 4, PAGE)


def test_no_logits_for_positions_that_nobody_needs(monkeypatch):
    seen: list[int] = []
    plain = Decoder.logits

    def logits(self, hidden):
        seen.append(len(hidden))
        return plain(self, hidden)

    monkeypatch.setattr(Decoder, "logits", logits)
    engine = Engine(made(CASES["llama"]), 39, settings=EngineConfig(chunk_tokens=30))
    engine.generate(LONG[:2], [[1, 2, 3]] * 2, Sampling(max_new_tokens=3))
    assert seen == [2, 6, 6], "nothing for the first chunk, then one for each prompt, then one for each row"


def test_the_latent_cache_holds_latents_only(monkeypatch: pytest.MonkeyPatch):
    """C + R keys and C values per token and layer for MLA, one head; the kernels pad values to whole panels."""
    monkeypatch.setattr(kernels, "page_sizes", lambda *_: None)
    assert entry_of(deepseek(), latent=True) == (1, 12 + 4, 12)
    assert entry_of(deepseek(), latent=False)[0] == deepseek().num_attention_heads
    assert entry_of(llama(), latent=True) == (2, 6, 6)
    assert bytes_per_page(llama(), latent=True) == 4 * PAGE * 2 * (2 * 2 * 6)


def test_saved_folders_sample_alike(tmp_path: Path):
    folder = save_base(tmp_path, deepseek())
    one, two = (Engine(load_model(folder), EOS).generate([[1, 3]], [[4]], Sampling(max_new_tokens=9)) for _ in range(2))
    assert one == two


def test_released_memory_comes_back_when_it_is_needed():
    engine = Engine(made(CASES["llama"]), 39)
    ask = PROMPTS[:2], [[1, 2], [3]], Sampling(max_new_tokens=5)
    before = engine.generate(*ask)
    engine.release()
    assert engine.model._packed is None and engine._cache is None
    assert engine.generate(*ask) == before


@pytest.mark.parametrize("config", [*CASES.values(), llama(tie_word_embeddings=True)])
def test_with_one_copy_the_weights_are_gone_for_the_batch_and_back_to_the_bit(config, monkeypatch):
    ask, model = (PROMPTS[:2], [[1, 2], [3]], Sampling(max_new_tokens=5)), made(config)
    wanted, weights = Engine(model, EOS).generate(*ask), {k: w.clone() for k, w in model.state_dict().items()}
    model.unpack()
    held: list[int] = []
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: held.append(held_bytes(model)) or step(self))
    all_bytes, engine = held_bytes(model), Engine(model, EOS, settings=EngineConfig(one_copy=True))
    assert engine.generate(*ask) == wanted == engine.generate(*ask)
    assert max(held) < all_bytes / 2 and held_bytes(model) == all_bytes
    assert all(torch.equal(weight, weights[key]) for key, weight in model.state_dict().items())
    with pytest.raises(ConfigError, match="does not fit"):
        engine.generate(PROMPTS, [[1]] * len(PROMPTS), Sampling(max_new_tokens=10_000))
    assert held_bytes(model) == all_bytes, "also after a refusal"


def held_bytes(model: Decoder) -> int:
    """Memory of all weights as they are, packed ones aside."""
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}.values())


def test_an_engine_that_nobody_has_is_gone_at_once_with_its_cache():
    """Without waiting for Python to look for cycles: another cache may come next."""
    engine = Engine(made(llama()), EOS)
    engine.generate(PROMPTS, [[0, 1]] * len(PROMPTS), Sampling(max_new_tokens=4))
    gone = [weakref.ref(engine), weakref.ref(engine._cache)]
    gc.disable()
    try:
        del engine
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()
