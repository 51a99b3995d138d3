"""Learning from preferences: a Bradley-Terry reward model, and DPO, which needs none.

Both minimise -log sigmoid(margin) over pairs of replies to one prompt. A reward model's margin is its score at the end
of the chosen reply less that of the rejected one (Bradley and Terry, 1952); DPO's is beta * sum over the reply's tokens
of log pi / pi_ref, likewise (arXiv:2305.18290). The two replies of a pair stand in one micro-batch, behind one prompt.

Run alone: `zifio dpo recipes/smoke.toml --out runs/try`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from zifio.config import ConfigError
from zifio.data.pack import Sequence
from zifio.data.sources import check_texts, read_jsonl
from zifio.data.template import ChatTokenizer, Message
from zifio.engine.policy import open_model
from zifio.models.count import forward_flops
from zifio.models.decoder import Decoder, with_scores
from zifio.seed import nth, stream_seed
from zifio.tasks.catalog import make_task
from zifio.train.batch import Batch, make_batches
from zifio.train.config import Rows
from zifio.train.feedback import DpoStage, RewardStage
from zifio.train.loop import StepData, Trainer, check_context
from zifio.train.loss import LossTerms
from zifio.train.sft import WALK
from zifio.train.stage import Context, finish, prepare, reference_logp, starting_model

_SHOWN = ("loss", "rewards/accuracies")


class Preference(NamedTuple):
    """Two replies to one conversation, the better one first."""

    messages: list[Message]
    chosen: str
    rejected: str


def reward(stage: RewardStage, context: Context) -> dict[str, float]:
    """Train the model of `from` to score replies and write it to `model/`; returns the stage's totals."""
    model, tokenizer = open_model(context.model_of(stage.from_))
    model = with_scores(model, 1, stream_seed(context.seed, "reward", stage.name))
    prepare(model, stage, context)
    pairs = _pairs(stage, context, model, tokenizer, ends_only=True)

    def batches(step: int) -> StepData:
        return StepData([paired_batches(_of_step(pairs, stage, context, step), stage.rows, tokenizer.pad_id)])

    terms = LossTerms(balance_weight=stage.balance.loss_weight)
    totals = Trainer(model, stage, terms, context.folder, shown=_SHOWN).run(batches)
    finish(context, model, tokenizer)
    return totals | {"n_pairs": len(pairs)}


def dpo(stage: DpoStage, context: Context) -> dict[str, float]:
    """Train the model of `from` on preferences and write it to `model/`; returns the stage's totals."""
    model, tokenizer = open_model(context.model_of(stage.from_))
    prepare(model, stage, context)
    pairs = _pairs(stage, context, model, tokenizer, ends_only=False)
    reference = starting_model(model, stage)

    def batches(step: int) -> StepData:
        packed = paired_batches(_of_step(pairs, stage, context, step), stage.rows, tokenizer.pad_id)
        flops = sum(forward_flops(model.config, batch.lengths, firsts=batch.firsts) for batch in packed)
        return StepData([[_with_reference(reference, stage, batch) for batch in packed]], flops=flops)

    terms = LossTerms(balance_weight=stage.balance.loss_weight, dpo_beta=stage.beta)
    look = context.look(stage, tokenizer, make_task(context.task))
    totals = Trainer(model, stage, terms, context.folder, look, _SHOWN).run(batches)
    finish(context, model, tokenizer)
    return totals | {"n_pairs": len(pairs)}


def _with_reference(reference: Decoder, stage: DpoStage, batch: Batch) -> Batch:
    batch = batch.to(reference.device)
    return replace(batch, columns={**batch.columns, "reference_logp": reference_logp(reference, stage, batch, 1.0)})


def read_preferences(path: Path) -> list[Preference]:
    """The pairs of a JSONL file: `prompt`, `chosen` and `rejected`, each a text or messages; without `prompt`, what
    both conversations begin with (TRL's explicit and implicit prompts). Of a `sample` stage's data: each problem's
    right replies and as many wrong ones.

    Raises ConfigError naming the row that cannot be read, or when there is no pair.
    """
    rows = read_jsonl(path)
    if rows and "response" in rows[0]:
        return _right_and_wrong(rows, path)
    if not rows:
        raise ConfigError(f"{path}: wanted preferences, came an empty file. Label some pairs.")
    return [_preference(row, f"{path}: row {number}") for number, row in enumerate(rows, 1)]


def _right_and_wrong(rows: list[dict[str, Any]], path: Path) -> list[Preference]:
    """A right and a wrong reply to the same problem, each in one pair at most. Raises ConfigError."""
    said: dict[str, dict[str, list[str]]] = {}
    for number, row in enumerate(rows, 1):
        check_texts(row, ("prompt", "response", "outcome"), f"{path}: row {number}", "Give a `sample` stage's data.")
        said.setdefault(row["prompt"], {}).setdefault(row["outcome"], []).append(row["response"])
    pairs = [
        Preference([{"role": "user", "content": prompt}], *two)
        for prompt, by_outcome in said.items()
        for two in zip(by_outcome.get("right", []), by_outcome.get("wrong", []), strict=False)
    ]
    if not pairs:
        raise ConfigError(
            f"{path}: wanted right and wrong replies to the same problem, came none among {len(rows)}. Sample with "
            'keep = "all", and more replies per problem (n).'
        )
    return pairs


def _preference(row: dict[str, Any], where: str) -> Preference:
    prompt, chosen, rejected = (row.get(key) for key in ("prompt", "chosen", "rejected"))
    if prompt is None and isinstance(chosen, list) and isinstance(rejected, list):
        n = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
        prompt, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    replies = [_reply(chosen), _reply(rejected)]
    if not _is_conversation(messages) or None in replies:
        raise ConfigError(
            f"{where}: wanted `prompt`, `chosen` and `rejected`, texts or messages of which the last is the reply, "
            f"came {str(row)[:120]!r}. Mend the row."
        )
    if replies[0] == replies[1]:
        raise ConfigError(f"{where}: wanted two different replies, came the same twice. Leave the row out.")
    return Preference(messages, str(replies[0]), str(replies[1]))


def _is_conversation(given: Any) -> TypeGuard[list[Message]]:
    """Whether these are messages, at least one, each with its role and what it says or calls."""
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        return False
    speaks = [isinstance(one.get("content"), str) or bool(one.get("tool_calls")) for one in given]
    return all(speaks) and all(isinstance(one.get("role"), str) for one in given)


def _reply(given: Any) -> str | None:
    """The text of a reply, which may come as the one message."""
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], dict):
        given = given[0].get("content") if given[0].get("role") == "assistant" else None
    return given if isinstance(given, str) else None


def _pairs(
    stage: RewardStage | DpoStage, context: Context, model: Decoder, tokenizer: ChatTokenizer, ends_only: bool
) -> list[tuple[Sequence, Sequence]]:
    """The stage's pairs as sequences. Raises ConfigError when one would not fit."""
    preferences = read_preferences(context.data_of(stage.data))
    pairs = [pair_sequences(tokenizer, one, ends_only) for one in preferences]
    check_context(model, max(len(one.tokens) for pair in pairs for one in pair), "a reply of the data")
    return pairs


def pair_sequences(tokenizer: ChatTokenizer, preference: Preference, ends_only: bool) -> tuple[Sequence, Sequence]:
    """(chosen, rejected) with +1 and -1 in the column `pair` on the tokens of the replies, ends of turns included, or
    on the last of them alone."""
    out = []
    for sign, reply in ((1.0, preference.chosen), (-1.0, preference.rejected)):
        tokens, mask = tokenizer.encode_chat([*preference.messages, {"role": "assistant", "content": reply}])
        last = max(t for t, counts in enumerate(mask) if counts)
        first = next((t for t in range(last, -1, -1) if not mask[t]), -1) + 1  # of the last turn
        tokens = tokens[: last + 1]
        pair = [sign if t == last or (t >= first and not ends_only) else 0.0 for t in range(last + 1)]
        out.append(Sequence(tokens, [0.0] * len(tokens), {"pair": pair}, first))
    return out[0], out[1]


def _of_step(
    pairs: list[tuple[Sequence, Sequence]], stage: RewardStage | DpoStage, context: Context, step: int
) -> list[tuple[Sequence, Sequence]]:
    first = step * stage.pairs
    return [nth(pairs, index, context.seed, WALK, stage.name) for index in range(first, first + stage.pairs)]


def paired_batches(pairs: list[tuple[Sequence, Sequence]], rows: Rows, pad_id: int) -> list[Batch]:
    """The pairs of one update as micro-batches of about `rows.micro_tokens`, none of which parts a pair; the loss is a
    mean over pairs."""
    batches = []
    for chunk in _chunks(pairs, rows.micro_tokens):
        numbered = [
            _numbered(sequence, number, 1 / len(pairs)) for number, pair in enumerate(chunk, 1) for sequence in pair
        ]
        packed = make_batches(numbered, rows.row_tokens, rows.row_tokens * len(numbered), pad_id)
        assert len(packed) == 1, "all rows of a chunk are one micro-batch"
        batches += packed
    return batches


def _numbered(sequence: Sequence, number: int, weight: float) -> Sequence:
    pair = [sign * number for sign in sequence.columns["pair"]]
    columns = {"pair": pair, "pair_weight": [weight if value else 0.0 for value in pair]}
    return replace(sequence, columns=columns)


def _chunks(pairs: list[tuple[Sequence, Sequence]], most: int) -> Iterator[list[tuple[Sequence, Sequence]]]:
    """The pairs in order, as many together as have `most` tokens, at least one."""
    chunk: list[tuple[Sequence, Sequence]] = []
    n_tokens = 0
    for pair in pairs:
        length = sum(len(sequence.tokens) for sequence in pair)
        if chunk and n_tokens + length > most:
            yield chunk
            chunk, n_tokens = [], 0
        chunk.append(pair)
        n_tokens += length
    if chunk:
        yield chunk
