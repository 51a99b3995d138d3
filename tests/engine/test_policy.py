"""The engine as a policy: messages in, replies with text and log-probs out; mismatched parts are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import characters, deepseek, llama, made, save_base

from zifio.config import ConfigError, Sampling
from zifio.data.tokenizer import TokenizerConfig, save_tokenizer, train_tokenizer
from zifio.engine.engine import Engine
from zifio.engine.policy import LocalPolicy, load_policy
from zifio.models.weights import save_model
from zifio.tasks.episode import Policy

ASK = [[{"role": "user", "content": "1+2"}], [{"role": "user", "content": "7-5+3"}]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An untrained model with the tokenizer of sums."""
    return save_base(tmp_path / "base", deepseek())


def test_replies_are_the_engines_completions_of_the_rendered_conversation(folder: Path):
    policy = load_policy(folder)
    assert isinstance(policy, Policy)
    tokenizer = characters()
    sampling = Sampling(max_new_tokens=9)
    replies = policy.complete(ASK, 2, sampling, [[1, 2], [3, 4]])
    prompts = [tokenizer.encode(f"<｜begin▁of▁sentence｜><｜User｜>{ask}<｜Assistant｜>") for ask in ("1+2", "7-5+3")]
    expected = Engine(policy.model, tokenizer.eos_id).generate(prompts, [[1, 2], [3, 4]], sampling)
    for group, wanted in zip(replies, expected, strict=True):
        for reply, completion in zip(group, wanted, strict=True):
            assert (reply.tokens, reply.logps, reply.finish) == (
                completion.tokens, completion.logps, completion.finish,
            )  # fmt: skip


def test_text_leaves_out_the_end_token_and_nothing_else(folder: Path):
    """Special tokens that the model says stay to be seen, so that no verifier is fooled."""
    policy = load_policy(folder)
    with torch.no_grad():
        policy.model.lm_head.weight[policy.tokenizer.eos_id] *= 3
    replies = policy.complete(ASK[:1], 60, Sampling(max_new_tokens=9), [list(range(60))])[0]
    assert {reply.finish for reply in replies} == {"stop", "length"}
    for reply in replies:
        kept = reply.tokens[:-1] if reply.finish == "stop" else reply.tokens
        assert reply.text == "".join(policy.tokenizer.tokenizer.id_to_token(token) for token in kept)
    assert any("<｜" in reply.text for reply in replies), "the test wants special tokens in the middle"


def test_one_seed_for_each_reply(folder: Path):
    with pytest.raises(AssertionError, match="one seed per reply"):
        load_policy(folder).complete(ASK, 2, Sampling(), [[1, 2], [3]])


def test_no_conversation_no_reply(folder: Path):
    assert load_policy(folder).complete([], 2, Sampling(), []) == []


def test_a_conversation_that_does_not_fit_is_refused(folder: Path):
    with pytest.raises(ConfigError, match="max_new_tokens=96 does not fit"):
        load_policy(folder).complete(ASK, 1, Sampling(max_new_tokens=96), [[1], [2]])


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder: Path):
    save_model(made(llama(vocab_size=21)), folder)
    n = characters().vocab_size
    with pytest.raises(ConfigError, match=rf"tokenizer has {n} tokens, the model only 21 embedding rows"):
        load_policy(folder)


def test_a_model_with_spare_rows_is_fine(folder: Path):
    """Vocabularies are often padded to a round number."""
    save_model(made(llama(vocab_size=64)), folder)
    assert load_policy(folder).complete(ASK, 1, Sampling(max_new_tokens=3), [[1], [2]])


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, file: str):
    (folder / file).unlink()
    with pytest.raises(ConfigError, match=file.replace(".", r"\.")):
        load_policy(folder)


def test_characters_that_the_tokenizer_lacks_are_named(folder: Path):
    with pytest.raises(ConfigError, match="'x'"):
        load_policy(folder).complete([[{"role": "user", "content": "1+x"}]], 1, Sampling(), [[1]])


def test_bpe_folders_work_alike(tmp_path: Path):
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=270), ["1+2=3", "4+5=9"])
    save_model(made(llama(vocab_size=270)), tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    policy = load_policy(tmp_path)
    assert isinstance(policy, LocalPolicy)
    ((reply,),) = policy.complete([[{"role": "user", "content": "é 1+2 ✓"}]], 1, Sampling(max_new_tokens=5), [[1]])
    assert len(reply.tokens) == len(reply.logps) == 5
