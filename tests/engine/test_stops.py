"""Stop strings: found wherever tokens end, the moment they are complete, and cut from the text."""

from __future__ import annotations

import random

import pytest
from tiny import deepseek, llama, save_base
from tokenizers import Tokenizer, decoders, models

from zifio.config import Sampling
from zifio.engine.engine import Engine
from zifio.engine.policy import LocalPolicy, load_policy
from zifio.engine.request import Request
from zifio.engine.stops import find_stop

WORDS = ["a", "b", "</", "answer", ">", "ab", "<", "/answer>", "\u00e9", "!"]


def text_of(tokens: list[int]) -> str:
    return "".join(WORDS[token] for token in tokens)


@pytest.mark.parametrize("seed", range(30))
def test_a_reply_ends_where_its_text_first_holds_one(seed: int):
    """Against the slow way: look at the whole text after every token."""
    draw = random.Random(seed)
    tokens = [draw.randrange(len(WORDS)) for _ in range(60)]
    stop = tuple(draw.sample(["</answer>", "ba", "\u00e9!", "bbb", ">>", "a<"], 2))
    wanted = None
    for n in range(1, 61):
        text = text_of(tokens[:n])
        if any(word in text for word in stop):
            wanted = n, min(text.find(word) for word in stop if word in text)
            break
    for n in range(1, 61):
        found = find_stop(tokens[:n], stop, text_of)
        if wanted is not None and n == wanted[0]:
            assert found is not None and found[0] == text_of(tokens)[: wanted[1]]
            assert text_of(tokens).startswith(found[1], wanted[1])
            break
        assert found is None


def test_characters_of_several_tokens_count_too():
    """A stop string of four-byte characters spans as many tokens as it has bytes."""
    letters = {token: id for id, token in enumerate(["a", *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(letters, [], byte_fallback=True, unk_token="a"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    stop = "\U0001f600\U0001f601"
    tokens = [letters[f"<0x{byte:02X}>"] for byte in ("\u00e9 x" + stop).encode()]
    assert len(tokens) == 12
    found = [n for n in range(1, 13) if find_stop(tokens[:n], (stop,), tokenizer.decode)]
    assert found == [12] and find_stop(tokens, (stop,), tokenizer.decode) == ("\u00e9 x", stop)


@pytest.fixture(scope="module", params=[deepseek(num_nextn_predict_layers=1), llama()], ids=["deepseek", "llama"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalPolicy:
    """An untrained model with the tokenizer of sums."""
    return load_policy(save_base(tmp_path_factory.mktemp("base"), request.param))


def test_replies_are_cut_where_the_text_says(policy: LocalPolicy):
    """The tokens are those of the reply without stop strings, up to the one that completed the first."""
    ask, seeds = [[{"role": "user", "content": "1+2"}]], [list(range(60))]
    whole = policy.complete(ask, 60, Sampling(max_new_tokens=40), seeds)[0]
    cut = policy.complete(ask, 60, Sampling(max_new_tokens=40, stop=("1-", "=", "</think>")), seeds)[0]
    n_cut = 0
    for one, other in zip(cut, whole, strict=True):
        assert one.tokens == other.tokens[: len(one.tokens)] and len(one.logps) == len(one.tokens)
        assert not any(word in one.text for word in ("1-", "=", "</think>"))
        assert other.text.startswith(one.text)
        if one.text == other.text:
            assert (one.tokens, one.finish) == (other.tokens, other.finish)
        else:
            n_cut += 1
            assert one.finish == "stop"
            rest = other.text[len(one.text) :]
            assert rest.startswith(("1-", "=", "</think>"))
            shown = policy.tokenizer.decode(one.tokens)
            assert shown in (one.text + "1-", one.text + "=", one.text + "</think>")
    assert n_cut > 10


def test_without_a_tokenizer_a_stop_string_is_refused(policy: LocalPolicy):
    engine = Engine(policy.model, 2)
    (id,) = engine.submit(Request([1], Sampling(stop=("x",))))
    (event,) = engine.step()
    assert event.id == id and event.completion is not None and event.completion.finish == "refused"
    assert "text_of" in event.completion.reason
