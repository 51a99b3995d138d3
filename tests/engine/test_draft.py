"""Speculation is lossless, pays where the module guesses well, and is told the same as in training."""

from __future__ import annotations

import pytest
import torch
from tiny import deepseek, llama, made, tokens_like

import zifio.engine.draft
from zifio.config import ConfigError, Sampling
from zifio.engine.cache import PagedCache, bytes_per_page
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.models.decoder import Decoder
from zifio.train.logp import token_logp

CONFIG = deepseek(num_nextn_predict_layers=1, max_position_embeddings=130)
PERIOD = [5, 9, 17, 30, 8, 21, 33]
DRAFTS = EngineConfig(speculate=True)


@pytest.fixture(scope="module")
def trained() -> Decoder:
    """A model, MTP module too, that has learnt a round of seven tokens well, though not by heart."""
    model = Decoder(CONFIG, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    tokens = torch.tensor([(PERIOD * 9)[shift : shift + 56] for shift in range(7)])
    positions = torch.arange(56).expand(7, -1)
    for _ in range(60):
        output = model(tokens, positions, with_mtp=True)
        loss = -token_logp(model.logits(output.hidden_BTD), tokens)[:, 1:].mean()
        assert output.mtp_hidden_BTD is not None
        guess = model.logits(output.mtp_hidden_BTD[:, :-1]).log_softmax(-1)
        loss = loss - guess.gather(2, tokens[:, 2:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_good_guesses_save_steps_and_change_nothing(trained: Decoder):
    prompts, seeds = [PERIOD * 2, PERIOD[3:] + PERIOD], [[1, 2, 3], [4, 5, 6]]
    sampling = Sampling(max_new_tokens=60)
    plain, drafted = Engine(trained, -1), Engine(trained, -1, settings=DRAFTS)
    wanted = plain.generate(prompts, seeds, sampling)
    found = drafted.generate(prompts, seeds, sampling)
    for ours, theirs in zip(found, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.tokens == other.tokens and one.finish == other.finish
            torch.testing.assert_close(torch.tensor(one.logps), torch.tensor(other.logps), atol=1e-5, rtol=0)
    stats = drafted.stats
    assert 0.6 < stats.drafts_accepted / stats.drafts_proposed < 1, "the test wants guesses of both kinds"
    assert stats.steps < 0.75 * plain.stats.steps
    assert stats.tokens == plain.stats.tokens == 360


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, max_new_tokens=41),
        Sampling(top_p=0.9, temperature=1.5, max_new_tokens=40),
        Sampling(repetition_penalty=0.4, temperature=2.5, max_new_tokens=40),
        Sampling(repetition_penalty=1.3, top_k=4, max_new_tokens=40, stop=("j", "cb")),
    ],
)
def test_the_same_under_all_samplings(trained: Decoder, sampling: Sampling):
    """A draft that comes true counts as seen for the token after it; ends within a pair of tokens are ends."""
    letters = {token: letter for letter, token in zip("abcdefg", PERIOD, strict=True)}

    def text_of(tokens: list[int]) -> str:
        return "".join(letters.get(token, "j") for token in tokens)

    prompts, seeds = [PERIOD * 5, PERIOD[:1]], [list(range(8)), list(range(8, 28))]
    found, wanted = (
        Engine(trained, PERIOD[4], settings=settings, text_of=text_of).generate(prompts, seeds, sampling)
        for settings in (DRAFTS, None)
    )
    assert [[(c.tokens, c.finish, c.text) for c in group] for group in found] == [
        [(c.tokens, c.finish, c.text) for c in group] for group in wanted
    ]


def test_on_few_pages_too(trained: Decoder):
    """A row whose draft finds no page goes on without one."""
    memory = 6 * bytes_per_page(CONFIG, False) / 1e9
    settings = EngineConfig(speculate=True, memory_gb=memory, chunk_tokens=5)
    prompts, seeds, sampling = [PERIOD, PERIOD[3:] * 3], [[1, 2], [4, 5]], Sampling(max_new_tokens=90)
    tight, wide = Engine(trained, -1, settings=settings), Engine(trained, -1)
    found, wanted = (engine.generate(prompts, seeds, sampling) for engine in (tight, wide))
    assert [[c.tokens for c in group] for group in found] == [[c.tokens for c in group] for group in wanted]
    assert tight.stats.preemptions and tight.stats.drafts_accepted and tight.stats.peak_pages <= 6


@pytest.mark.parametrize("chunk_tokens", [1, 7, 100])
@pytest.mark.parametrize("n_prompt", [1, 31, 32, 33])
def test_the_module_sees_what_it_saw_in_training(n_prompt: int, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch):
    """Every draft is the likeliest token by the module's output on the whole sequence."""
    model = made(CONFIG)
    told: list[tuple[list[int], list[int]]] = []
    plain = zifio.engine.draft.guess

    def guess(model, cache, rows, new, computed, hidden_ND):
        plain(model, cache, rows, new, computed, hidden_ND)
        told.extend((s.all_tokens, rows.draft[s.row].item()) for s in rows.samples if rows.draft[s.row] >= 0)

    monkeypatch.setattr("zifio.engine.engine.guess", guess)
    settings = EngineConfig(speculate=True, chunk_tokens=chunk_tokens)
    prompt = tokens_like(n_prompt, seed=9).tolist()
    Engine(model, -1, settings=settings).generate([prompt], [[1, 2]], Sampling(max_new_tokens=12))
    assert len(told) > 15
    for tokens, draft in told:
        whole = torch.tensor([tokens])
        with torch.no_grad():
            state = model(whole, torch.arange(len(tokens))[None], with_mtp=True).mtp_hidden_BTD
        assert state is not None and model.logits(state[0, -1]).argmax() == draft


def test_draft_equals_the_training_form_in_chunks():
    """`Decoder.draft` on a cache against `forward(with_mtp=True)` without one."""
    model, cache = made(CONFIG), PagedCache(CONFIG, 4)
    tokens = tokens_like(1, 50, seed=4)
    positions = torch.arange(50)[None]
    with torch.no_grad():
        output = model(tokens, positions, with_mtp=True)
        parts = []
        for first, last in ((0, 20), (20, 21), (21, 49)):
            cache.begin(torch.tensor([[3, 1]]), torch.tensor([first]), torch.tensor([last - first]))
            now = slice(first, last)
            parts.append(
                model.draft(tokens[:, first + 1 : last + 1], output.hidden_BTD[:, now], positions[:, now], cache)
            )
    torch.testing.assert_close(torch.cat(parts, dim=1), output.mtp_hidden_BTD, atol=1e-5, rtol=0)


def test_a_model_without_the_module_is_told():
    for config in (deepseek(), llama()):
        with pytest.raises(ConfigError, match="num_nextn_predict_layers"):
            Engine(made(config), -1, settings=DRAFTS)
