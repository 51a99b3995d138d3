"""Models of several mixers in the engine: the trainer's bits, states in slots, prompts shared, rows sent back."""

from __future__ import annotations

import random

import pytest
import torch
from tiny import deepseek_v32, hybrid, llama, logits_of, made, qwen3_next, tokens_like
from torch import Tensor

import zifio.engine.cache as cache_module
import zifio.engine.engine as engine_module
import zifio.engine.layered as layered_module
from zifio.config import ConfigError, Sampling
from zifio.data.pack import Sequence
from zifio.engine.cache import CPU, bytes_per_page
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.engine.layered import bytes_per_slot, new_cache, ring_pages
from zifio.engine.request import Completion, Request
from zifio.engine.slots import Slots
from zifio.kernels import operators as kernels
from zifio.kernels.library import library
from zifio.models.config import AnyConfig
from zifio.models.decoder import Decoder
from zifio.train.batch import make_batches
from zifio.train.logp import token_logp
from zifio.train.loss import policy_logp

KERNELS = pytest.mark.skipif(library() is None, reason="no C compiler, or ZIFIO_KERNELS=off")
LONG = {"max_position_embeddings": 400}
EXACT: dict[str, AnyConfig] = {
    "qwen3-next": qwen3_next(**LONG),
    "linear": hybrid(layer_types=["linear_attention"] * 4, linear_allow_neg_eigval=True, **LONG),
    "no convolution": hybrid(layer_types=["linear_attention"] * 4, linear_conv_kernel_dim=0, **LONG),
    "window": hybrid(layer_types=["sliding_attention"] * 4, **LONG),
    "window over pages": hybrid(
        layer_types=["sliding_attention", "full_attention", "linear_attention", "sliding_attention"],
        sliding_window=80,
        **LONG,
    ),
}
ROUNDED: dict[str, AnyConfig] = {"all four": hybrid(**LONG), "v3.2": deepseek_v32(**LONG)}
CASES = EXACT | ROUNDED
WAYS = {
    "as it comes": EngineConfig(),
    "few rows, small chunks, nothing shared": EngineConfig(max_rows=3, chunk_tokens=33, prefix_sharing=False),
}
PROMPTS = [tokens_like(n, seed=n).tolist() for n in (1, 30, 75)]
SEEDS = [[10 * p + g for g in range(2)] for p in range(len(PROMPTS))]
SAMPLING = Sampling(max_new_tokens=20)


def gaps(model: Decoder, found: list[list[Completion]], prompts: list[list[int]]) -> tuple[float, int, int]:
    """Largest difference of log-probs to the trainer's, how many are other floats, and all of them: packed, a
    group's prompt there once."""
    sequences = []
    for prompt, group in zip(prompts, found, strict=True):
        for one in group:
            given, n = [0.0] * len(prompt), len(one.tokens)
            columns = {"policy_weight": given + [1.0] * n, "old_logp": given + one.logps}
            sequences.append(Sequence(prompt + one.tokens, given + [0.0] * n, columns, len(prompt)))
    most, n_other, n_all = 0.0, 0, 0
    for batch in make_batches(sequences, 150, 300, 0):
        counted = batch.columns["policy_weight"] != 0
        trainer, sampler = policy_logp(model, batch, 1.0)[counted], batch.columns["old_logp"][counted]
        most = max(most, float((trainer - sampler).abs().max()))
        n_other += int((trainer != sampler).sum())
        n_all += trainer.numel()
    return most, n_other, n_all


@KERNELS
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", EXACT)
def test_no_log_prob_differs_from_the_trainers(name: str, way: str):
    """`bitwise` is granted: memories and windows are computed by the kernels on both sides."""
    model = made(EXACT[name])
    engine = Engine(model, -1, settings=WAYS[way].model_copy(update={"bitwise": True}))
    most, n_other, n_all = gaps(model, engine.generate(PROMPTS, SEEDS, SAMPLING), PROMPTS)
    assert (most, n_other, n_all) == (0.0, 0, 6 * 20)


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("name", ROUNDED)
def test_an_indexer_agrees_to_rounding(name: str, latent: bool):
    model = made(ROUNDED[name])
    engine = Engine(model, -1, settings=EngineConfig(latent_cache=latent, chunk_tokens=33))
    assert gaps(model, engine.generate(PROMPTS, SEEDS, SAMPLING), PROMPTS)[0] < 1e-5
    with pytest.raises(ConfigError, match=r"bitwise: wanted attention that reads all keys.*came an indexer"):
        Engine(model, -1, settings=EngineConfig(bitwise=True))


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernels: what a GPU takes."""
    for module in (kernels, cache_module.kernels, layered_module):
        monkeypatch.setattr(module, "library", lambda: None)


@pytest.mark.parametrize("name", CASES)
def test_without_kernels_they_agree_to_rounding(name: str, torch_alone: None):
    model = made(CASES[name])
    engine = Engine(model, -1, settings=EngineConfig(chunk_tokens=100))
    assert gaps(model, engine.generate(PROMPTS, SEEDS, SAMPLING), PROMPTS)[0] < 2e-5


@pytest.mark.parametrize("name", ["qwen3-next", "window over pages"])
def test_rows_that_are_sent_back_say_the_same(name: str, monkeypatch: pytest.MonkeyPatch):
    """Pages run out, states are given up and computed again."""
    model, ask = made(CASES[name]), (PROMPTS[:2], SEEDS[:2], Sampling(max_new_tokens=40))
    plain = Engine(model, -1).generate(*ask)
    monkeypatch.setattr(engine_module, "n_pages", lambda *_: 4)
    for settings in (EngineConfig(), EngineConfig(prefix_sharing=False, max_rows=3)):
        engine = Engine(model, -1, settings=settings)
        found = engine.generate(*ask)
        assert [[one.tokens for one in group] for group in found] == [[one.tokens for one in group] for group in plain]
        assert engine.stats.preemptions > 0


@pytest.mark.parametrize("name", ["linear", "window"])
def test_slots_share_the_memory_with_pages(name: str):
    """At most half of it is for states: rows wait for a slot where it holds fewer, and say the same."""
    model = made(CASES[name])
    plain = Engine(model, -1).generate(PROMPTS, SEEDS, SAMPLING)
    engine = Engine(model, -1, settings=EngineConfig(memory_gb=(2 * 2 + 1) * bytes_per_slot(CASES[name]) / 1e9))
    assert engine.generate(PROMPTS, SEEDS, SAMPLING) == plain
    assert engine._n_slots == 2 and engine.stats.preemptions == 0


def test_memory_that_holds_no_state_is_refused():
    engine = Engine(made(CASES["linear"]), -1, settings=EngineConfig(memory_gb=1e-6))
    with pytest.raises(ConfigError, match=r"memory_gb: wanted at least .* for the state of one sequence, came 1e-06"):
        engine.generate(PROMPTS, SEEDS, SAMPLING)


def test_drafts_change_nothing_where_an_indexer_picks():
    """The MTP module has an indexer of its own, and pages behind the model's."""
    model = made(deepseek_v32(num_nextn_predict_layers=1, **LONG))
    plain = Engine(model, -1).generate(PROMPTS, SEEDS, SAMPLING)
    engine = Engine(model, -1, settings=EngineConfig(speculate=True))
    found = engine.generate(PROMPTS, SEEDS, SAMPLING)
    assert [[one.tokens for one in group] for group in found] == [[one.tokens for one in group] for group in plain]
    assert engine.stats.drafts_accepted > 0


def test_experts_are_recorded_beside_states():
    model = made(qwen3_next(**LONG))
    engine = Engine(model, -1, settings=EngineConfig(record_routing=True))
    ((one, other),) = engine.generate([PROMPTS[1]], [[1, 2]], SAMPLING)
    for reply in (one, other):
        tokens = torch.tensor([PROMPTS[1] + reply.tokens[:-1]])
        with torch.no_grad():
            output = model(tokens, torch.arange(tokens.shape[1])[None])
        wanted = torch.stack([routing.expert_NA for routing in output.routing], dim=1)
        assert reply.experts_NLA is not None
        assert torch.equal(reply.experts_NLA.long().sort(-1).values, wanted.sort(-1).values)


@pytest.mark.parametrize("name", ["qwen3-next", "v3.2"])
def test_requests_come_and_go_and_are_cancelled(name: str):
    """A reply is its prompt's and seed's alone; the slot of one that was cancelled is another's at once."""
    model, rng = made(CASES[name]), random.Random(1)
    engine = Engine(model, -1, settings=EngineConfig(max_rows=4, chunk_tokens=20))
    asked: dict[int, int] = {}
    done: dict[int, Completion] = {}
    for number in range(6):
        (id,) = engine.submit(Request(PROMPTS[number % 3], SAMPLING, (number,)))
        asked[id] = number
        for _ in range(rng.randint(0, 12)):
            done.update((event.id, event.completion) for event in engine.step() if event.completion)
        if number % 4 == 3:
            engine.cancel(id)
    while engine.has_work:
        done.update((event.id, event.completion) for event in engine.step() if event.completion)
    cancelled = [id for id, one in done.items() if one.finish == "cancelled"]
    assert len(done) == 6 and len(cancelled) == 1
    for id, one in done.items():
        number = asked[id]
        ((alone,),) = Engine(model, -1).generate([PROMPTS[number % 3]], [[number]], SAMPLING)
        assert one.tokens == alone.tokens[: len(one.tokens)] and (id in cancelled or one.tokens == alone.tokens)
    scheduler = engine._scheduler
    assert scheduler is not None and scheduler.pages.n_held == 0
    if scheduler.slots is not None:
        assert scheduler.slots.n_free == 4


def test_a_prompt_is_computed_once_for_its_group_and_anew_for_the_next():
    """With states; with an indexer alone, which keeps pages, a prefix is found again."""
    for config, again in ((qwen3_next(**LONG), 75), (deepseek_v32(**LONG), 11)):
        engine = Engine(made(config), -1)
        for prefilled in (75, again):
            before = engine.stats.prefill_tokens
            engine.submit(Request(PROMPTS[2], SAMPLING, (1, 2, 3)))
            while engine.has_work:
                engine.step()
            assert engine.stats.prefill_tokens - before == prefilled


def test_a_window_sees_its_last_tokens_alone():
    """What lies before them changes nothing in the end, with one layer; and the memory does not grow."""
    config = hybrid(num_hidden_layers=1, layer_types=["sliding_attention"], **LONG)
    model = made(config)
    one, other = tokens_like(1, 60, seed=1), tokens_like(1, 60, seed=2)
    other[:, -7:] = one[:, -7:]
    assert torch.equal(logits_of(model, one)[:, -1], logits_of(model, other)[:, -1])
    assert not torch.equal(logits_of(model, one)[:, -2], logits_of(model, other)[:, -2])
    assert bytes_per_page(config, False) == 0 and bytes_per_slot(config) == bytes_per_page(
        llama(num_hidden_layers=1, head_dim=10), False
    ) * ring_pages(7)


def test_memories_take_what_the_shape_says():
    config = hybrid(layer_types=["linear_attention"] * 4)
    numbers = 4 * config.linear.memory
    assert bytes_per_slot(config, torch.bfloat16, torch.device("cuda")) == 4 * numbers  # states are in fp32
    assert bytes_per_page(config, False) == 0


def test_slots_are_taken_copied_and_given_back():
    copies: list[tuple[int, int]] = []
    slots = Slots(3, lambda source, target: copies.append((source, target)))
    first = slots.take()
    second = slots.copied(first)
    assert copies == [(first, second)] and slots.n_free == 1
    slots.give_back(first)
    with pytest.raises(AssertionError, match="more often than taken"):
        slots.give_back(first)


@pytest.mark.parametrize("name", CASES)
def test_a_slot_is_nobody_elses(name: str):
    """Three sequences in cuts of many lengths, whose slots are in any order, in a cache that was used before."""
    model, n = made(CASES[name]), 90
    tokens_BT = tokens_like(3, n, seed=7)
    cache = new_cache(model.config, 12, 4, False, torch.float32, CPU)
    table = torch.tensor([[7, 2, 5], [1, 8, 0], [11, 3, 4]])
    with torch.no_grad():
        whole = model(tokens_BT, torch.arange(n).expand(3, -1)).hidden_BTD
        for slots in ([3, 0, 1], [0, 2, 3]):
            found: list[list[Tensor]] = [[], [], []]
            at = [0, 0, 0]
            for counts in ((40, 1, 0), (1, 30, 1), (1, 1, 1), (48, 58, 88)):
                now = [m for m in range(3) if counts[m]]
                first, count = torch.tensor([at[m] for m in now]), torch.tensor([counts[m] for m in now])
                slot = (torch.tensor([slots[m] for m in now]),) if cache.has_slots else ()
                cache.begin(table[now], first, count, *slot)
                tokens = torch.cat([tokens_BT[m, at[m] : at[m] + counts[m]] for m in now])[None]
                positions = torch.cat([torch.arange(at[m], at[m] + counts[m]) for m in now])[None]
                hidden = model(tokens, positions, cache).hidden_BTD[0].split(count.tolist())
                for m, part in zip(now, hidden, strict=True):
                    found[m].append(part)
                    at[m] += counts[m]
            together = torch.stack([torch.cat(parts) for parts in found])
            torch.testing.assert_close(together, whole, atol=1e-5, rtol=0)


def test_greedy_text_equals_transformers_generate(tmp_path):
    """Of Qwen3-Next, cached on both sides."""
    transformers = pytest.importorskip("transformers")
    from zifio.models.weights import save_model

    model = made(qwen3_next(**LONG))
    save_model(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs.generation_config.pad_token_id = 0
    for prompt in PROMPTS[1:3]:
        ((ours,),) = Engine(model, -1).generate([prompt], [[0]], Sampling(temperature=0, max_new_tokens=20))
        out = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=20
        )
        assert out[0, len(prompt) :].tolist() == ours.tokens


def test_prompts_are_scored_with_a_state_too():
    model = made(qwen3_next(**LONG))
    engine = Engine(model, -1, settings=EngineConfig(chunk_tokens=33))
    engine.submit(Request(PROMPTS[2], Sampling(max_new_tokens=2), (1,), score_prompt=True))
    scores = None
    while engine.has_work:
        scores = next((event.completion.prompt_scores for event in engine.step() if event.completion), scores)
    assert scores is not None
    whole = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        wanted = token_logp(logits_of(model, whole), whole)[0, 1:]
    torch.testing.assert_close(torch.tensor(scores.logps[1:]), wanted, atol=1e-5, rtol=0)
