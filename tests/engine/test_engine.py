"""The engine: transformers' greedy text, the trainer's log-probs, and replies that no neighbour can change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny import deepseek, llama, logits_of, made, save_base, tokens_like

from zifio.config import ConfigError, Sampling
from zifio.engine.cache import SlotCache
from zifio.engine.engine import Completion, Engine
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


def lively(config: DeepseekV3Config | LlamaConfig, seed: int = 1) -> Decoder:
    """A model that ends its replies now and then: the end token has about 1.4 more logits than others."""
    model = made(config, seed)
    tokens = tokens_like(4, 20)
    with torch.no_grad():
        mean_D = model(tokens, torch.arange(20).expand(4, -1)).hidden_BTD.mean(dim=(0, 1))
        model.lm_head.weight *= 0.5
        model.lm_head.weight[EOS] += 1.4 * mean_D / mean_D.square().sum()
    return model


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
    model = lively(CASES[name])
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
    model = lively(CASES[name])
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


@pytest.mark.parametrize("max_rows, largest", [(1, 1), (2, 2), (4, 3), (6, 6), (100, 15)])
def test_max_rows_bounds_the_rows_decoded_side_by_side(max_rows: int, largest: int, monkeypatch):
    seen: list[int] = []
    plain = Decoder.forward

    def forward(self, tokens_BT, positions_BT, cache=None, **options):
        seen.append(len(tokens_BT))
        return plain(self, tokens_BT, positions_BT, cache, **options)

    monkeypatch.setattr(Decoder, "forward", forward)
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
    model = lively(CASES["deepseek"])
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


def test_sampling_leaves_the_model_and_torchs_generator_alone():
    model = made(CASES["deepseek"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    Engine(model, EOS).generate([PROMPTS[1]], [[1, 2]], Sampling(max_new_tokens=5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    logits_of(model, tokens_like(1, 5)).sum().backward()
    assert model.lm_head.weight.grad is not None, "the model still trains after inference mode"


def test_a_prompt_is_computed_once_for_its_whole_group(monkeypatch):
    seen: list[tuple[int, ...]] = []
    plain = Decoder.forward

    def forward(self, tokens_BT, positions_BT, cache=None, **options):
        seen.append(tuple(tokens_BT.shape))
        return plain(self, tokens_BT, positions_BT, cache, **options)

    monkeypatch.setattr(Decoder, "forward", forward)
    Engine(made(CASES["llama"]), 39).generate(PROMPTS[:2], [[1, 2, 3]] * 2, Sampling(max_new_tokens=3))
    assert seen[0] == (2, 9) and set(seen[1:]) <= {(n, 1) for n in range(1, 7)} and seen[1] == (6, 1)


def test_cache_keeps_rows_apart_and_in_the_order_taken():
    config = deepseek()
    cache = SlotCache(config, n_rows=2, n_slots=4)
    width = config.kv_lora_rank + config.qk_rope_head_dim
    entry = torch.arange(2.0)[:, None, None].expand(2, 1, width) + 1
    cache.append(0, torch.tensor([[0], [2]]), (entry,))
    cache.take(torch.tensor([1, 0, 1]))
    cache.reserve(3)
    (held,) = cache.append(0, torch.tensor([[1], [1], [0]]), (torch.full((3, 1, width), 9.0),))
    assert held.shape == (3, 3, width)
    assert held[..., 0].tolist() == [[0, 9, 2], [1, 9, 0], [9, 0, 2]]


def test_the_cache_holds_latents_only():
    """C + R numbers per token and layer for MLA, 2 J K for GQA (DeepSeek-V2, table 1)."""
    mla, gqa = deepseek(), llama()
    for config, expected in ((mla, 12 + 4), (gqa, 2 * 2 * 6)):
        cache = SlotCache(config, n_rows=3, n_slots=5)
        numbers = sum(store.numel() for layer in cache._entries for store in layer)
        assert numbers == config.num_hidden_layers * 3 * 5 * expected


def test_saved_folders_sample_alike(tmp_path: Path):
    folder = save_base(tmp_path, deepseek())
    one, two = (Engine(load_model(folder), EOS).generate([[1, 3]], [[4]], Sampling(max_new_tokens=9)) for _ in range(2))
    assert one == two
