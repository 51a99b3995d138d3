"""Conversations with pictures through the policy: the right tokens, the right pictures, and errors for people."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import characters, llama, picture_characters, scene_janus

from zifio.config import ConfigError, Sampling
from zifio.engine.guide import Drawing
from zifio.engine.marks import Marks, with_patches
from zifio.engine.pictures import painted, picture_prompt
from zifio.engine.policy import LocalPolicy
from zifio.models.decoder import Decoder
from zifio.models.janus import Janus
from zifio.pictures import PICTURE, from_url, padded, pixels_of, to_url
from zifio.tasks.episode import play
from zifio.tasks.scenes import GlyphCaptions, GlyphDrawings

GREY = np.full((20, 40, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    """One for all: nothing here changes it."""
    return LocalPolicy(scene_janus(), picture_characters())


def model_of(policy: LocalPolicy) -> Janus:
    """Its model."""
    assert isinstance(policy.model, Janus)
    return policy.model


def ask(text: str, **more: Any) -> list[dict[str, Any]]:
    """A message."""
    return [{"role": "user", "content": text, **more}]


def test_marks_become_patches_and_drawings_begin(policy: LocalPolicy) -> None:
    model, tokenizer = model_of(policy), policy.tokenizer
    marks, first = Marks.of(tokenizer), model.first_patch
    text = f"{PICTURE}a {PICTURE}b"
    prompt = picture_prompt(model, tokenizer, ask(text, pictures=[to_url(GREY), to_url(GREY * 2)]))
    plain = tokenizer.encode_chat(ask(text), generation_prompt=True)[0]
    assert prompt.tokens == with_patches(plain, marks, first, 64)
    assert [t - first for t in prompt.tokens if t >= first] == list(range(128))
    assert [prompt.tokens.count(mark) for mark in (marks.picture, marks.begin, marks.end)] == [0, 2, 2]
    assert np.array_equal(prompt.pixels[1], pixels_of(padded(GREY * 2, 32)))
    drawn = picture_prompt(model, tokenizer, ask("red circle", draws=True))
    assert drawn.tokens[-1] == marks.begin and not drawn.pixels
    blank = marks.blank(drawn.tokens)
    assert blank[0] == marks.bos and blank[-1] == marks.begin and set(blank[1:-1]) == {marks.pad}


def test_replies_about_pictures_are_those_of_a_whole_pass(policy: LocalPolicy) -> None:
    """Greedy: the likeliest next token of the trainer's own pass over the picture, and other ones for another."""
    model, said = model_of(policy), []
    for level in (20, 230):
        picture = np.full((32, 32, 3), level, np.uint8)
        messages = ask(f"{PICTURE}a", pictures=[to_url(picture)])
        ((reply,),) = policy.complete([messages], 1, Sampling(temperature=0, max_new_tokens=3), [[1]])
        prompt = picture_prompt(model, policy.tokenizer, messages)
        pixels = torch.from_numpy(np.stack(prompt.pixels))
        with torch.no_grad():
            output = model(torch.tensor([prompt.tokens]), torch.arange(len(prompt.tokens))[None], pixels_MUYX=pixels)
            logits = model.logits(output.hidden_BTD[0, -1])
        assert reply.tokens[0] == int(logits.argmax())
        said.append(logits)
    assert (said[0] - said[1]).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_drawings_are_the_engines_painted(policy: LocalPolicy, scale: float) -> None:
    model, prompt = model_of(policy), ask("red circle", draws=True)
    how = Sampling(guidance=scale, max_new_tokens=3)
    ((one, two),) = policy.complete([prompt], 2, how, [[5, 6]])
    tokens = policy.prompt(prompt)
    blank = tuple(Marks.of(policy.tokenizer).blank(tokens))
    exact = how.model_copy(update={"max_new_tokens": 64})
    ((first, second),) = policy.engine.generate([tokens], [[5, 6]], exact, [Drawing(scale, blank)])
    assert (one.tokens, two.tokens) == (first.tokens, second.tokens) and one.finish == "stop"
    assert np.array_equal(from_url(one.text), painted(model, [first.tokens])[0])


def test_texts_drawings_and_pictures_are_answered_together(policy: LocalPolicy) -> None:
    asked = [ask("a"), ask("red", draws=True), ask(f"{PICTURE}b", pictures=[to_url(GREY)])]
    together = policy.complete(asked, 1, Sampling(max_new_tokens=4), [[1], [2], [3]])
    alone = [policy.complete([one], 1, Sampling(max_new_tokens=4), [[seed]])[0] for seed, one in enumerate(asked, 1)]
    assert [group[0].tokens for group in together] == [group[0].tokens for group in alone]
    assert len(together[1][0].tokens) == 64 and together[1][0].text.startswith("data:image/png")


def test_scenes_are_played(policy: LocalPolicy) -> None:
    for task in (GlyphCaptions(), GlyphDrawings(unseen=True)):
        groups = play(policy, task, [task.problem("held-out", i, 1) for i in range(2)], 2, Sampling(), 1, "test")
        assert {episode.verdict.outcome for group in groups for episode in group} == {"wrong"}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (ask("a", pictures=[to_url(GREY)]), "wanted one for each of 0 <image_placeholder> in the text, came 1"),
        (ask(PICTURE, pictures=["nonsense"]), "wanted a picture as data:image/png"),
        (ask(PICTURE * 2, pictures=[to_url(GREY)]), "for each of 2"),
    ],
)
def test_pictures_that_do_not_fit_are_named(policy: LocalPolicy, message: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        policy.complete([message], 1, Sampling(), [[1]])


def test_others_are_asked_for_no_pictures() -> None:
    text = LocalPolicy(Decoder(llama(), seed=1), characters())
    with pytest.raises(ConfigError, match="wanted a model that reads and draws"):
        text.complete([ask("1", draws=True)], 1, Sampling(), [[1]])
    with pytest.raises(ConfigError, match=r"tokenizer\.pictures = true"):
        LocalPolicy(scene_janus(), characters()).complete([ask("1", draws=True)], 1, Sampling(), [[1]])
