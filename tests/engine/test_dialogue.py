"""Episodes in turns on the engine: token for token, as if each were alone, and nobody waits for a slow tool."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Parrot, brief, deepseek, llama, tool_characters

from zifio.config import ConfigError, Sampling
from zifio.data.calls import read_calls
from zifio.data.tokenizer import TokenizerConfig, chat_tokenizer, train_tokenizer
from zifio.engine.cache import PAGE, bytes_per_page
from zifio.engine.config import EngineConfig
from zifio.engine.dialogue import Errands
from zifio.engine.policy import LocalPolicy
from zifio.models.decoder import Decoder
from zifio.tasks.environment import Observation, Turn
from zifio.tasks.episode import Reply, Start

TOKENIZER = tool_characters()
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
SAMPLING = Sampling(max_new_tokens=40, temperature=0.9)
ASK = [[{"role": "user", "content": "1+2"}], [{"role": "user", "content": "7-5+3"}]]


def starts(n: int = 3, **kind: Any) -> list[list[Start]]:
    """n episodes of each question."""
    return [[Start(ask, Parrot(**kind), 10 * p + g) for g in range(n)] for p, ask in enumerate(ASK)]


def converse(model: Decoder, begun: list[list[Start]], max_turns: int = 9, **settings: Any) -> list[list[Reply]]:
    """Play them."""
    policy = LocalPolicy(model, TOKENIZER, settings=EngineConfig(**settings))
    return policy.converse(begun, SAMPLING, max_turns, TOOLS)


def rescored(model: Decoder, prompt: list[int], reply: Reply) -> np.ndarray:
    """The trainer's log-probs of the reply's tokens, from one pass over the whole episode."""
    from zifio.data.pack import Sequence
    from zifio.train.batch import make_batches
    from zifio.train.loss import policy_logp

    tokens = prompt + reply.tokens
    weight = [0.0] * len(prompt) + [float(own) for own in reply.sampled]
    sequence = Sequence(tokens, [0.0] * len(tokens), {"policy_weight": weight}, len(prompt))
    (batch,) = make_batches([sequence], 256, 256, TOKENIZER.pad_id)
    return policy_logp(model, batch, SAMPLING.temperature)[0, len(prompt) :].numpy()


@pytest.mark.parametrize("config", [deepseek(), llama()], ids=["experts", "dense"])
def test_the_trainer_finds_the_very_log_probs_of_the_whole_episode(config: Any):
    """Bit for bit where sampler and trainer compute with the same kernels; told tokens have none."""
    model = brief(config)
    policy = LocalPolicy(model, TOKENIZER)
    replies_P_G = policy.converse(starts(), SAMPLING, 9, TOOLS)
    assert sum(reply.n_turns for group in replies_P_G for reply in group) > 10, "most episodes have several turns"
    for ask, group in zip(ASK, replies_P_G, strict=True):
        for reply in group:
            found = rescored(model, policy.prompt(ask, TOOLS), reply)
            np.testing.assert_array_equal(found, np.array(reply.logps, np.float32))
            assert len(reply.tokens) == len(reply.logps) == len(reply.sampled)
            assert all(logp == 0.0 for logp, own in zip(reply.logps, reply.sampled, strict=True) if not own)


def test_the_history_is_the_sampled_tokens_with_the_answers_between_them():
    model, begun = brief(llama()), starts(role="user")
    for group, replies in zip(begun, converse(model, begun), strict=True):
        for start, reply in zip(group, replies, strict=True):
            runs: list[list[int]] = [[]]
            for token, own, before in zip(reply.tokens, reply.sampled, [True, *reply.sampled], strict=False):
                if own != before:
                    runs.append([])
                runs[-1].append(token)
            said, told = runs[::2], runs[1::2]
            assert len(said) == reply.n_turns
            seen = start.environment.seen  # type: ignore[attr-defined]
            read = [read_calls(TOKENIZER.decode(turn))[0] for turn in said]
            assert read[: len(seen)] == [turn.text for turn in seen]
            for number, (turn, tokens) in enumerate(zip(seen, told, strict=False), 1):
                expected = f"<｜User｜>{len(turn.text)}={number}<｜Assistant｜>"
                assert TOKENIZER.tokenizer.decode(tokens, skip_special_tokens=False) == expected


@pytest.mark.parametrize("settings", [{}, {"prefix_sharing": False}, {"max_rows": 2}, {"chunk_tokens": 3}], ids=str)
def test_together_is_as_alone(settings: dict[str, Any]):
    """Every episode has the tokens that it has when it is played by itself, whatever the engine does."""
    model = brief(deepseek())
    together = converse(model, starts(4), **settings)
    for p, group in enumerate(together):
        for g, reply in enumerate(group):
            alone = converse(model, [[Start(ASK[p], Parrot(), 10 * p + g)]])
            assert alone == [[reply]]


def test_slow_environments_change_nothing_and_hold_up_nobody():
    model = brief(deepseek())
    instant = converse(model, starts(4))
    began = time.perf_counter()
    slow = converse(model, starts(4, instant=False, seconds=0.1))
    assert slow == instant
    n_steps = sum(min(reply.n_turns, 3) for group in slow for reply in group)
    assert time.perf_counter() - began < 0.1 * n_steps, "they wait side by side"


def test_routing_is_recorded_for_every_token_of_an_episode():
    """And is that of one pass over the whole."""
    model = brief(deepseek())
    policy = LocalPolicy(model, TOKENIZER, settings=EngineConfig(record_routing=True))
    for ask, group in zip(ASK, policy.converse(starts(), SAMPLING, 9, TOOLS), strict=True):
        for reply in group:
            tokens = torch.tensor([policy.prompt(ask) + reply.tokens])
            output = model(tokens, torch.arange(tokens.shape[1])[None])
            expected = torch.stack([routing.expert_NA for routing in output.routing], dim=1)[:-1]
            assert reply.experts_NLA is not None
            assert np.array_equal(np.sort(reply.experts_NLA), np.sort(expected.numpy()))


def test_turns_and_tokens_are_bounded():
    model = brief(llama())
    for group in converse(model, starts(4, turns=99), max_turns=2):
        for reply in group:
            assert reply.n_turns <= 2 and reply.finish == "length"
            assert reply.n_sampled <= SAMPLING.max_new_tokens
            assert reply.sampled[-1], "what comes after the last turn is of no use to anybody"
    policy = LocalPolicy(model, TOKENIZER)
    policy.longest = 30
    for ask, group in zip(ASK, policy.converse(starts(4, turns=99), SAMPLING, 99, TOOLS), strict=True):
        assert all(len(policy.prompt(ask)) + len(reply.tokens) <= 30 for reply in group)
    policy.longest = 5
    with pytest.raises(ConfigError, match="row_tokens"):
        policy.converse(starts(1), SAMPLING, 9, TOOLS)


def test_short_memory_cuts_episodes_and_refuses_none():
    """One page for all together: episodes wait for one another, and end where it ends."""
    model = brief(llama())
    page_gb = bytes_per_page(model.config, False, torch.float32, torch.device("cpu")) / 1e9
    for group in converse(model, starts(4, turns=99), max_turns=99, memory_gb=1.01 * page_gb):
        assert all(reply.tokens and not reply.fault for reply in group)
        assert all(8 < len(reply.tokens) < PAGE for reply in group)


def test_an_environment_that_breaks_ends_its_own_episode_only():
    class Broken(Parrot):
        def step(self, turn: Turn) -> Observation:
            raise OSError("no such index")

    class Odd(Parrot):
        def step(self, turn: Turn) -> Any:
            return "7"

    model = brief(llama())
    whole = converse(model, starts(3))
    begun = starts(3)
    begun[0][1] = Start(ASK[0], Broken(), 1)
    begun[1][2] = Start(ASK[1], Odd(instant=False), 12)
    replies = converse(model, begun)
    faults = [[reply.fault for reply in group] for group in replies]
    assert "no such index" in faults[0][1] and "observation" in faults[1][2]
    assert [faults[p][g] for p, g in ((0, 0), (0, 2), (1, 0), (1, 1))] == [""] * 4
    assert replies[0][0] == whole[0][0] and replies[1][1] == whole[1][1]


def test_one_that_never_answers_is_given_up():
    never = threading.Event()

    def hang() -> Observation:
        never.wait(20)
        return Observation(done=True)

    errands: Errands[str] = Errands(workers=1, patience_s=0.05)
    errands.send("hangs", hang)
    errands.send("answers", lambda: Observation(done=True))
    back: list[Any] = []
    while errands.pending:
        back += errands.finished(wait=True)
    never.set()
    assert isinstance(back[0][1], TimeoutError) and back[1] == ("answers", Observation(done=True))


def test_a_tokenizer_without_words_for_tools_is_refused():
    plain = chat_tokenizer(train_tokenizer(TokenizerConfig(alphabet="0123456789+-="), []))
    policy = LocalPolicy(brief(llama()), plain)
    with pytest.raises(ConfigError, match="tool"):
        policy.converse(starts(1), SAMPLING, 9, TOOLS)
    assert policy.converse(starts(1, role="user"), SAMPLING, 9, [])[0][0].tokens, "a game needs none"


def test_replies_in_turns_survive_json():
    """As the checkpoint of an asynchronous run keeps them."""
    from dataclasses import asdict

    for group in converse(brief(deepseek()), starts(2)):
        for reply in group:
            assert Reply(**json.loads(json.dumps(asdict(reply)))) == reply


class Duet(Parrot):
    """Two voices in turn, both the policy's; the learner begins and is heard `turns` times."""

    def __init__(self, turns: int = 2) -> None:
        super().__init__(turns)
        self.heard: dict[int, list[str]] = {0: [], 1: []}

    def step(self, turn: Turn) -> Observation:
        """Pass on how much was said."""
        self.heard[turn.voice].append(turn.text)
        done = len(self.heard[0]) >= self.turns
        return Observation(({"role": "user", "content": f"{len(turn.text)}"},), done, voice=1 - turn.voice)


@pytest.mark.parametrize("config", [deepseek(), llama()], ids=["experts", "dense"])
def test_a_second_voice_has_a_history_and_seeds_of_its_own(config: Any):
    """The reply is the learner's alone, and still the trainer's to the bit."""
    model = brief(config)
    policy = LocalPolicy(model, TOKENIZER)
    begun = [[Start(ASK[0], Duet(), seed) for seed in range(8)]]
    (group,) = policy.converse(begun, SAMPLING, 9, [])
    whole = 0
    for start, reply in zip(begun[0], group, strict=True):
        heard = start.environment.heard  # type: ignore[attr-defined]
        whole += bool(heard[1]) and reply.n_turns == 2
        if reply.n_turns == 2:
            said = TOKENIZER.tokenizer.decode(reply.tokens, skip_special_tokens=False)
            assert f"<｜User｜>{len(heard[1][0])}<｜Assistant｜>" in said
            assert [message["role"] for message in reply.messages] == ["assistant", "user", "assistant"]
        found = rescored(model, policy.prompt(ASK[0]), reply)
        np.testing.assert_array_equal(found, np.array(reply.logps, np.float32))
        (alone,) = policy.converse([[Start(ASK[0], Duet(), start.seed)]], SAMPLING, 9, [])
        assert alone == [reply]
    assert whole > 3


def test_a_stop_string_ends_a_turn_and_the_end_token_is_told():
    model = brief(llama())
    policy = LocalPolicy(model, TOKENIZER)
    sampling = SAMPLING.model_copy(update={"stop": tuple("0123456789")})
    cut = 0
    for group in policy.converse(starts(6, role="user"), sampling, 9, []):
        for reply in group:
            ends = [i for i in range(len(reply.tokens) - 1) if reply.sampled[i] and not reply.sampled[i + 1]]
            for i in ends:
                is_end = reply.tokens[i] == TOKENIZER.eos_id
                assert is_end or reply.tokens[i + 1] == TOKENIZER.eos_id
                cut += not is_end
    assert cut > 0
