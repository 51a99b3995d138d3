"""Batches: every token with its own values at its own place, however rows and micro-batches are cut."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import deepseek, llama, made, tokens_like

from zifio.config import ConfigError
from zifio.data.pack import Sequence
from zifio.kernels import operators as kernels
from zifio.train.batch import COLUMNS, make_batches
from zifio.train.loss import LossTerms, batch_loss, policy_logp


def sequences() -> list[Sequence]:
    """Five, whose columns say which sequence and token they belong to."""
    out = []
    for number, length in enumerate((3, 7, 2, 5, 4)):
        marks = [100.0 * number + t for t in range(length)]
        columns = {"advantage": marks, "old_logp": [-m for m in marks]} if number % 2 else {}
        out.append(Sequence(tokens_like(length, seed=number).tolist(), [m + 0.5 for m in marks], columns))
    return out


@pytest.mark.parametrize("row_tokens, micro_tokens", [(7, 7), (7, 14), (8, 1), (10, 20), (21, 1000), (1000, 1000)])
def test_every_token_stands_once_with_its_own_values(row_tokens: int, micro_tokens: int):
    given = sequences()
    found = []
    for batch in make_batches(given, row_tokens, micro_tokens, pad_id=39):
        assert batch.tokens_BT.shape == batch.positions_BT.shape == batch.real_BT.shape
        assert batch.tokens_BT.shape[1] <= row_tokens
        assert batch.real_BT.any(dim=0).all(), "rows are only as long as the longest needs"
        assert (batch.tokens_BT[~batch.real_BT] == 39).all()
        assert batch.n_tokens == batch.real_BT.sum() and batch.n_sequences == len(batch.lengths)
        for values in batch.columns.values():
            assert values.shape == batch.tokens_BT.shape and (values[~batch.real_BT] == 0).all()
        for row in range(len(batch.tokens_BT)):
            starts = [int(t) for t in (batch.positions_BT[row] == 0).nonzero()[:, 0] if batch.real_BT[row, t]]
            for start in starts:
                stop = start + 1
                while stop < len(batch.real_BT[row]) and batch.real_BT[row, stop] and batch.positions_BT[row, stop]:
                    stop += 1
                assert batch.positions_BT[row, start:stop].tolist() == list(range(stop - start))
                columns = {name: values[row, start:stop].tolist() for name, values in batch.columns.items()}
                found.append((batch.tokens_BT[row, start:stop].tolist(), columns))
    expected = []
    for one in given:
        zeros = [0.0] * len(one.tokens)
        expected.append((one.tokens, one.weight, *(one.columns.get(n, zeros) for n in ("advantage", "old_logp"))))
    seen = []
    for tokens, columns in found:
        zeros = [0.0] * len(tokens)
        seen.append((tokens, *(columns.get(n, zeros) for n in ("cross_entropy_weight", "advantage", "old_logp"))))
    assert sorted(seen) == sorted(expected)


def test_micro_batches_hold_about_the_tokens_asked_for():
    given = [Sequence([1] * 10, [1.0] * 10) for _ in range(12)]
    assert [len(b.tokens_BT) for b in make_batches(given, 10, 40, 0)] == [4, 4, 4]
    assert [len(b.tokens_BT) for b in make_batches(given, 10, 50, 0)] == [5, 5, 2]
    assert len(make_batches(given, 10, 1, 0)) == 12, "one row at least"


def test_columns_that_nobody_brings_are_absent_so_that_their_terms_cost_nothing():
    (batch,) = make_batches([Sequence([1, 2, 3], [0.0] * 3)], 8, 8, 0)
    assert batch.columns == {} and all(batch.column(name) is None for name in COLUMNS)
    (batch,) = make_batches([Sequence([1, 2, 3], [0.0, 0.0, 1.0])], 8, 8, 0)
    assert set(batch.columns) == {"cross_entropy_weight"}


def test_unknown_columns_are_caught():
    with pytest.raises(AssertionError, match="advantge"):
        make_batches([Sequence([1, 2], [0.0, 0.0], {"advantge": [1.0, 1.0]})], 8, 8, 0)


def test_a_sequence_longer_than_a_row_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"row_tokens=6 .* 7 tokens .* Set row_tokens to 7"):
        make_batches(sequences(), 6, 100, 0)


def test_nothing_gives_nothing():
    assert make_batches([], 8, 8, 0) == []


def test_batches_are_deterministic():
    one, two = make_batches(sequences(), 10, 20, 0), make_batches(sequences(), 10, 20, 0)
    assert all(torch.equal(a.tokens_BT, b.tokens_BT) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", ["llama", "deepseek"])
@pytest.mark.parametrize("native", [True, False])
def test_replies_behind_one_copy_of_their_prompt_learn_what_they_learn_alone(
    name: str, native: bool, monkeypatch: pytest.MonkeyPatch
):
    """Loss, metrics and all gradients; rows too short for a whole group repeat the prompt."""
    model = made({"llama": llama, "deepseek": deepseek}[name]())
    if not native:
        monkeypatch.setattr(kernels, "native", lambda x: False)
    rng = random.Random(4)

    def replies(prompt: list[int]) -> list[Sequence]:
        out = []
        for _ in range(3):
            n = rng.randint(1, 6)
            tokens, given = prompt + rng.choices(range(40), k=n), [0.0] * len(prompt)
            columns = {"policy_weight": given + [0.1] * n, "advantage": given + [rng.uniform(-1, 1)] * n}
            columns["old_logp"] = given + [rng.uniform(-4, -3) for _ in range(n)]
            out.append(Sequence(tokens, [0.0] * len(tokens), columns, len(prompt)))
        return out

    together = replies([1, 5, 9, 11]) + replies([2, 3])
    alone = [replace(sequence, n_prefix=0) for sequence in together]
    found = {}
    for label, sequences, row_tokens in (("alone", alone, 40), ("together", together, 40), ("cut", together, 12)):
        model.zero_grad()
        batches = make_batches(sequences, row_tokens, 1000, 0)
        results = [batch_loss(model, batch, LossTerms(ratio="sequence"), 1.0) for batch in batches]
        sum((result.loss for result in results), torch.zeros(())).backward()
        sums = {key: sum(result.sums[key] for result in results) for key in ("policy", "entropy", "n_policy_tokens")}
        found[label] = (sum(batch.n_tokens for batch in batches), sums, [p.grad.clone() for p in model.parameters()])
    assert found["together"][0] < found["cut"][0] < found["alone"][0]
    for label in ("together", "cut"):
        assert found[label][1] == pytest.approx(found["alone"][1], rel=1e-5)
        for one, other in zip(found[label][2], found["alone"][2], strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_experts_stay_with_their_tokens_behind_a_shared_prompt():
    """Log-probs, loads and all gradients are those of the same sequences alone; who has none is routed as ever."""
    model = made(deepseek(num_hidden_layers=3))
    rng, draw = random.Random(4), np.random.default_rng(5)
    given = []
    for prompt in ([1, 5, 9, 11], [2, 3]):
        of_prompt = [[rng.sample(range(8), 3) for _ in range(2)] for _ in prompt]
        for number in range(3):
            n = rng.randint(2, 6)
            of_reply = [[rng.sample(range(8), 3) for _ in range(2)] for _ in range(n - 1)]
            experts = np.array([*of_prompt, *of_reply, [[-1] * 3] * 2], np.int16)
            head = [0.0] * len(prompt)
            columns = {"policy_weight": head + [0.1] * n, "advantage": head + draw.uniform(-1, 1, n).tolist()}
            unknown = number == 1 and len(prompt) == 2
            tokens = prompt + rng.choices(range(40), k=n)
            prefix = 0 if unknown else len(prompt)
            given.append(Sequence(tokens, [0.0] * len(tokens), columns, prefix, None if unknown else experts))
    alone = [replace(sequence, n_prefix=0) for sequence in given]
    found = {}
    for label, sequences, row_tokens in (("alone", alone, 12), ("together", given, 40), ("cut", given, 12)):
        model.zero_grad()
        logps, loads = {}, []
        for batch in make_batches(sequences, row_tokens, 24, 0):
            assert batch.experts_BTLA is not None and batch.experts_BTLA.shape == (*batch.tokens_BT.shape, 2, 3)
            assert (batch.experts_BTLA[~batch.real_BT] == -1).all()
            old_BT = policy_logp(model, batch, 1.0)
            pieces = old_BT[batch.real_BT].split(list(batch.lengths))
            logps |= {i: piece[piece != 0] for i, piece in zip(batch.order, pieces, strict=True)}
            batch = replace(batch, columns=batch.columns | {"old_logp": old_BT})
            result = batch_loss(model, batch, LossTerms(), 1.0)
            assert result.sums["logp_gap_max"] < 1e-6, "old log-probs replay the same experts"
            result.loss.backward()
            loads.append(torch.stack(result.load_LE))
        found[label] = ([logps[i] for i in range(6)], [p.grad.clone() for p in model.parameters()], sum(loads))
    for label in ("together", "cut"):
        for one, other in zip(found[label][0] + found[label][1], found["alone"][0] + found["alone"][1], strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    (batch,) = make_batches(alone[:1], 12, 12, 0)
    assert torch.equal(batch.experts_BTLA[0], torch.from_numpy(alone[0].experts_TLA))
    with torch.no_grad():
        load_E = batch_loss(model, batch, LossTerms(), 1.0).load_LE[1]
    counted = torch.from_numpy(alone[0].experts_TLA[:-1, 1]).long().flatten().bincount(minlength=8)
    assert ((load_E - counted) >= 0).all() and (load_E - counted).sum() == 3, "all but the last token's are the given"


def test_no_experts_no_tensor():
    assert all(batch.experts_BTLA is None for batch in make_batches(sequences(), 10, 20, 0))


def test_experts_are_one_entry_a_token():
    with pytest.raises(AssertionError, match="experts_TLA: 2 values for 3 tokens"):
        Sequence([1, 2, 3], [0.0] * 3, experts_TLA=np.zeros((2, 1, 3), np.int16))
