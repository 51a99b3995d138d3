"""Drawings in the engine: every step equals a pass over whole sequences, guided or not, whatever stands beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import janus, llama, made_janus, pixels_like, tokens_like

from zifio.config import ConfigError, Sampling
from zifio.engine.cache import bytes_per_page
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.engine.guide import Drawing
from zifio.engine.request import Completion, Event, Request
from zifio.engine.sampler import choose, policy_logp, settings_of, uniforms
from zifio.kernels.library import library
from zifio.models.janus import Janus, guided
from zifio.models.janus_config import unconditioned

BOS, EOS, PAD, BOI = 1, 2, 0, 3
CODES = Sampling(max_new_tokens=16)


@pytest.fixture(scope="module")
def model() -> Janus:
    """One for all: nothing here changes it."""
    return made_janus(janus(llama(max_position_embeddings=256)))


def prompt_of(length: int, seed: int = 1) -> list[int]:
    """A prompt for a drawing."""
    return [BOS, *(4 + token for token in tokens_like(length - 2, seed=seed, vocab=30).tolist()), BOI]


def drawing_of(prompt: list[int], scale: float) -> Drawing:
    """How it is drawn."""
    return Drawing(scale, tuple(unconditioned(prompt, (BOS, BOI), PAD)))


@torch.no_grad()
def by_hand(model: Janus, prompt: list[int], scale: float, seed: int, sampling: Sampling = CODES) -> Completion:
    """A drawing from whole sequences, one step at a time, with the numbers that the engine draws with."""
    sides, done = [prompt, unconditioned(prompt, (BOS, BOI), PAD)], Completion()
    for uniform in uniforms([seed], 16)[0]:
        rows = [
            model.code_logits(model(torch.tensor([s]), torch.arange(len(s))[None]).hidden_BTD[0, -1]) for s in sides
        ]
        weighed = rows[0] if scale == 1 else guided(rows[0], rows[1], scale)
        token, _ = choose(weighed[None], uniform[None], settings_of([sampling]))
        done.logps += policy_logp(rows[0][None], token, torch.tensor([sampling.temperature])).tolist()
        done.tokens.append(int(token) + model.first_code)
        sides = [[*side, done.tokens[-1]] for side in sides]
    return done


def same(ours: Completion, expected: Completion) -> None:
    """Equal tokens, and log-probs to rounding."""
    assert ours.tokens == expected.tokens and ours.finish == "length"
    assert ours.logps == pytest.approx(expected.logps, abs=2e-5)


def run(engine: Engine, *requests: Request) -> tuple[list[Completion], list[Event]]:
    """What becomes of them, in order, and all that was told."""
    ids = [id for request in requests for id in engine.submit(request)]
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    done = {event.id: event.completion for event in events if event.completion is not None}
    return [done[id] for id in ids], events


@pytest.mark.parametrize(
    ("scale", "changes"),
    [(1.0, {}), (5.0, {}), (0.0, {}), (5.0, {"temperature": 0.0}), (2.5, {"top_k": 5, "temperature": 0.8})],
)
def test_a_drawing_is_that_of_whole_sequences(model: Janus, scale: float, changes: dict[str, Any]) -> None:
    prompt, sampling = prompt_of(7), CODES.model_copy(update=changes)
    (two,) = Engine(model, EOS).generate([prompt], [[3, 4]], sampling, [drawing_of(prompt, scale)])
    for completion, seed in zip(two, (3, 4), strict=True):
        same(completion, by_hand(model, prompt, scale, seed, sampling))


@pytest.mark.parametrize("as_queue", [False, True])
def test_changed_weights_draw_otherwise(as_queue: bool) -> None:
    """As between two steps of RL: whatever is kept of weights is made anew, wherever they are."""
    model, prompt = made_janus(janus(llama(max_position_embeddings=256))), prompt_of(7)
    engine, said = Engine(model, EOS), set()
    for part in (
        "",
        "embed_tokens",
        "layers.0",
        "norm",
        "generation_embeddings",
        "generation_aligner",
        "generation_head",
    ):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if part and name.startswith(part):
                    weight.mul_(1.3)
        if as_queue:
            (drawn,), _ = run(engine, Request(prompt, CODES, (3,), drawing=drawing_of(prompt, 5.0)))
        else:
            ((drawn,),) = engine.generate([prompt], [[3]], CODES, [drawing_of(prompt, 5.0)])
        same(drawn, by_hand(model, prompt, 5.0, 3))
        said.add(tuple(drawn.logps))
    assert len(said) == 7


@pytest.mark.skipif(library() is None, reason="no C compiler, or ZIFIO_KERNELS=off")
def test_a_drawing_has_the_same_bits_whatever_is_drawn_beside_it(model: Janus) -> None:
    """Alone, among drawings of all kinds, and beside text; sizes in which every kernel takes its other ways."""
    prompts = [prompt_of(5 + 3 * place, place) for place in range(6)]
    scales = [5.0, 1.0, 0.0, 2.5, 5.0, 1.0]
    settings = [CODES.model_copy(update={"temperature": heat}) for heat in (1.0, 0.7, 1.1, 0.0, 1.0, 1.0)]
    columns = zip(prompts, settings, scales, strict=True)
    asked = [Request(p, one, (1, 2, 3), drawing=drawing_of(p, scale)) for p, one, scale in columns]
    alone = [one for request in asked for one in run(Engine(model, EOS), request)[0]]
    text, cut = Request([BOS, 8, 9], Sampling(max_new_tokens=30), (5,)), CODES.model_copy(update={"top_k": 5})
    special = Request(prompts[0], cut, (4,), drawing=drawing_of(prompts[0], 3.0))
    for more in ([], [text], [special]):
        together = run(Engine(model, EOS, settings=EngineConfig(chunk_tokens=9)), *asked, *more)[0]
        for one, other in zip(alone, together[: len(alone)], strict=True):
            assert one.tokens == other.tokens and one.logps == other.logps


def test_drawings_and_text_share_batches(model: Janus) -> None:
    """Six requests at once, prompts in chunks of 5 tokens: each says and draws what it does alone."""
    (picture,) = model.look(pixels_like(1))
    text = Sampling(max_new_tokens=9)
    prompts = [prompt_of(5), prompt_of(40, 2), prompt_of(33, 3)]
    requests = [
        Request(prompts[0], CODES, (1, 2), drawing=drawing_of(prompts[0], 5.0)),
        Request([BOS, *picture.tokens, 7], text, (3,), n_top=2),
        Request(prompts[1], CODES, (4,), drawing=drawing_of(prompts[1], 1.0)),
        Request([BOS, 8, 9], text.model_copy(update={"repetition_penalty": 1.3}), (5, 6)),
        Request(prompts[2], CODES, (7,), drawing=drawing_of(prompts[2], 3.0)),
    ]
    settings = EngineConfig(chunk_tokens=5)
    together, events = run(Engine(model, {EOS, 99}, settings=settings), *requests)
    alone = [one for request in requests for one in run(Engine(model, {EOS, 99}), request)[0]]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logps == pytest.approx(other.logps, abs=2e-5)
    told = [(event.tokens, event.tops) for event in events if event.tops]
    assert told and all(len(tokens) == len(tops) and len(tops[0]) == 2 for tokens, tops in told)
    same(together[0], by_hand(model, prompts[0], 5.0, 1))
    same(together[-1], by_hand(model, prompts[2], 3.0, 7))


@pytest.mark.parametrize("n_pages", [4, 7])
def test_pairs_are_sent_back_together_and_draw_the_same(model: Janus, n_pages: int) -> None:
    """Two writers want four pages and three pairs twelve: one at a time, or sent back. All end, and no page is lost."""
    page = bytes_per_page(model.config, False)
    settings = EngineConfig(memory_gb=n_pages * page / 1e9, chunk_tokens=20)
    prompts = [prompt_of(22 + i, i) for i in range(2)]
    engine, requests = (
        Engine(model, 99, settings=settings),
        [Request(prompt_of(20), Sampling(max_new_tokens=40), (1, 2))],
    )
    for prompt, seeds in zip(prompts, ((3, 4), (5,)), strict=True):
        requests.append(Request(prompt, CODES, seeds, drawing=drawing_of(prompt, 4.0)))
    ours, _ = run(engine, *requests)
    for one, prompt, seed in zip(ours[2:], (prompts[0], *prompts), (3, 4, 5), strict=True):
        same(one, by_hand(model, prompt, 4.0, seed))
    scheduler = engine._scheduler
    assert scheduler is not None and scheduler.pages.n_held == 0 and not scheduler.has_work
    assert engine.stats.tokens == sum(len(one.tokens) for one in ours)
    if n_pages == 7:
        assert engine.stats.preemptions, "the test wants pages to run out"


def test_a_drawing_can_be_cancelled_with_its_twin(model: Janus) -> None:
    prompt, engine = prompt_of(9), Engine(model, EOS)
    for n_steps in (0, 5):
        ids = engine.submit(Request(prompt, CODES, (1, 2), drawing=drawing_of(prompt, 5.0)))
        for _ in range(n_steps):
            engine.step()
        engine.cancel(ids[0])
        events: list[Event] = []
        while engine.has_work:
            events += engine.step()
        ends = {event.id: event.completion for event in events if event.completion is not None}
        assert ends[ids[0]].finish == "cancelled"
        same(ends[ids[1]], by_hand(model, prompt, 5.0, 2))
        assert engine._scheduler is not None and engine._scheduler.pages.n_held == 0


def test_one_pair_at_a_time_where_there_are_two_rows(model: Janus) -> None:
    prompt = prompt_of(9)
    (three,) = Engine(model, EOS, max_rows=2).generate([prompt], [[1, 2, 3]], CODES, [drawing_of(prompt, 5.0)])
    for completion, seed in zip(three, (1, 2, 3), strict=True):
        same(completion, by_hand(model, prompt, 5.0, seed))


def test_replies_about_other_pictures_are_other_replies(model: Janus) -> None:
    """Prompts that differ by nothing but the picture share no pages; equal ones do."""
    one, two = model.look(pixels_like(2))
    engine, sampling = Engine(model, 99), Sampling(max_new_tokens=12)
    prompts = [[BOS, *picture.tokens, *range(4, 30)] for picture in (one, two)]
    first, second = (run(engine, Request(prompt, sampling, (1,)))[0][0] for prompt in prompts)
    again = run(engine, Request(prompts[0], sampling, (1,)))[0][0]
    assert first.n_cached == second.n_cached == 0 and again.n_cached == 32
    assert first.tokens == again.tokens and first.logps != second.logps
    alone = run(Engine(model, 99), Request(prompts[1], sampling, (1,)))[0][0]
    assert second.tokens == alone.tokens


def test_a_picture_lives_as_long_as_a_reply_about_it(model: Janus) -> None:
    engine, prompt = Engine(model, 99), [BOS, *model.look(pixels_like(1, seed=8))[0].tokens]
    (refused,), _ = run(engine, Request(prompt, Sampling(max_new_tokens=4)))
    assert refused.finish == "refused" and "let go" in refused.reason
    pictures = model.look(pixels_like(1, seed=8))
    engine.submit(Request([BOS, *pictures[0].tokens, 5], Sampling(max_new_tokens=4)))
    pictures.clear()
    while engine.has_work:
        events = engine.step()
    assert events[-1].completion is not None and events[-1].completion.finish == "length"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(prompt_of(5), Sampling(max_new_tokens=15), drawing=Drawing()), "wanted 16, the codes of a drawing"),
        (Request(prompt_of(5), CODES, drawing=Drawing(5.0, (BOS, BOI))), "a blank prompt of the prompt's 5 tokens"),
        (Request(prompt_of(5), CODES.model_copy(update={"stop": ("x",)}), drawing=Drawing()), "of text"),
        (Request(prompt_of(5), CODES, drawing=Drawing(), n_top=1), "of text"),
        (Request([BOS, 4_000], CODES, drawing=Drawing()), "came 4000"),
        (Request([BOS, 5], CODES, drawing=Drawing(5.0, (BOS, 4_000))), "came 4000"),
    ],
)
def test_what_can_never_be_drawn_is_refused(model: Janus, request_: Request, said: str) -> None:
    (refused,), _ = run(Engine(model, EOS, text_of=str), request_)
    assert refused.finish == "refused" and said in refused.reason


def test_two_rows_and_room_for_two_are_wanted(model: Janus) -> None:
    prompt = prompt_of(30)
    with pytest.raises(ConfigError, match="two rows"):
        Engine(model, EOS, max_rows=1).generate([prompt], [[1]], CODES, [drawing_of(prompt, 5.0)])
    page = bytes_per_page(model.config, False)
    tight = Engine(model, EOS, settings=EngineConfig(memory_gb=3.5 * page / 1e9))
    with pytest.raises(ConfigError, match="pages"):
        tight.generate([prompt], [[1]], CODES, [drawing_of(prompt, 5.0)])
    assert tight.generate([prompt], [[1]], CODES, [drawing_of(prompt, 1.0)])[0][0].finish == "length"
