"""What the rows of a batch draw: text from the output head, codes of drawings from theirs, each with its own settings.

Under classifier-free guidance a drawing's logits are put together from its row's and from that of its twin, which has
read the blank prompt; the twin takes the same token. The log-prob that is told stays that of the prompt alone, as with
all that steers draws.

Try it alone: `pytest tests/engine/test_drawings.py`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zifio.engine.guide import Bias, Top
from zifio.engine.rows import Rows
from zifio.engine.sampler import Settings, choose, draw, likeliest, policy_logp
from zifio.engine.scheduler import Chunk
from zifio.kernels import operators as kernels
from zifio.models.decoder import Decoder
from zifio.models.janus import Janus, guided

_SCORED = 128  # tokens of a prompt whose logits exist at once

Tops = dict[int, list[Top]]
"""The likeliest tokens by place among the drawn ones, for rows that want them told."""


def moved(column: np.ndarray, device: torch.device) -> Tensor:
    """A column of the rows where the model is."""
    tensor = torch.from_numpy(column)
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)


def draw_text(rows: Rows, logits_NV: Tensor, counts: np.ndarray) -> tuple[Tensor, Tensor]:
    """A token and its log-prob for each of the logits; row r has counts[r] of them."""
    n, device = len(rows), logits_NV.device
    row_N = slice(n) if len(logits_NV) == n else np.repeat(np.arange(n), counts)
    uniform_N = moved(rows.uniforms(None if len(logits_NV) == n else counts), device)
    if not rows.is_special[:n].any():
        return draw(logits_NV, uniform_N, moved(rows.temperature[row_N], device))
    return choose(
        logits_NV, uniform_N, _settings(rows, row_N, device), _seen(rows, counts, device), _bias(rows, counts)
    )


class _Plan(NamedTuple):
    """Which rows write and which draw codes, where the model is; good as long as the rows are the same."""

    text: np.ndarray
    """Rows that write."""
    first: np.ndarray
    """Rows that draw codes, but for those that are apart from their twins."""
    is_special: bool
    """Whether one of the latter draws otherwise than from softmax(logits / temperature)."""
    settings: Settings
    asked_M: Tensor
    """Rows whose logits over the codes are wanted: `first`, and behind them the twins of those that are guided."""
    guided_n: Tensor | None
    """Places of the guided ones among `first`; None where all are."""
    place_M: Tensor
    """Whose code each of them takes, as a place among `first`."""
    pairs: tuple[Tensor, Tensor]
    """As `kernels.draw_codes` wants them: `first`, and the twins' rows."""
    guidance_n: Tensor
    """Scale of each one's guidance."""
    scale_n: Tensor | None
    """`kernels.scale_of` the temperatures, where the kernels draw."""


def _planned(rows: Rows, device: torch.device) -> _Plan:
    """The plan, worked out anew where rows came or went."""
    if isinstance(rows.plan, _Plan):
        return rows.plan
    text = [row for row, sample in enumerate(rows.samples) if sample.drawing is None]
    samples = [one for one in rows.samples if one.drawing is not None and not one.is_blank and not one.is_apart]
    first = np.array([sample.row for sample in samples], np.int64)
    guided = [place for place, sample in enumerate(samples) if sample.twin is not None]
    twins = [sample.twin.row for sample in samples if sample.twin is not None]
    guidance = [sample.drawing.scale if sample.drawing is not None else 1.0 for sample in samples]
    blank = [sample.twin.row if sample.twin is not None else -1 for sample in samples]
    settings = _settings(rows, first, device)

    def whole(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=device)

    rows.plan = plan = _Plan(
        np.array(text, np.int64), first, bool(rows.is_special[first].any()), settings,
        whole([*first.tolist(), *twins]), whole(guided) if len(guided) < len(samples) else None,
        whole([*range(len(samples)), *guided]), (whole(first.tolist()), whole(blank)),
        torch.tensor(guidance, dtype=torch.float32, device=device),
        kernels.scale_of(settings.temperature_B) if device.type == "cpu" else None,
    )  # fmt: skip
    return plan


def draw_mixed(model: Decoder, rows: Rows, hidden_ND: Tensor) -> tuple[Tensor, Tensor, Tops]:
    """A token and its log-prob for every row, from the hidden state of its last token, where some rows are drawings.

    Meaningless for a row that is apart from its twin, which is to draw again.
    """
    n, device = len(rows), hidden_ND.device
    plan = _planned(rows, device)
    if len(plan.first) and not len(plan.text) and not plan.is_special:
        assert isinstance(model, Janus), "others are asked for no drawings"
        if drawn := _draw_in_one_call(model, rows, plan, hidden_ND):
            return *drawn, {}
    token_N, logp_N = torch.zeros(n, dtype=torch.int64, device=device), torch.zeros(n, device=device)
    likely: Tops = {}
    if len(plan.text):
        counts = np.zeros(n, np.int64)
        counts[plan.text] = 1
        text_N = moved(plan.text, device)
        logits_NV = model.logits(hidden_ND[text_N])
        token_N[text_N], logp_N[text_N] = draw_text(rows, logits_NV, counts)
        likely = {int(plan.text[place]): top for place, top in tops(rows, logits_NV, counts).items()}
    if len(plan.first):
        assert isinstance(model, Janus), "others are asked for no drawings"
        token_n, logp_n = _draw_codes(model, plan, hidden_ND, moved(rows.uniforms_of(plan.first), device))
        token_N[plan.asked_M], logp_N[plan.asked_M] = token_n[plan.place_M], logp_n[plan.place_M]
    return token_N, logp_N, likely


def _draw_in_one_call(model: Janus, rows: Rows, plan: _Plan, hidden_ND: Tensor) -> tuple[Tensor, Tensor] | None:
    """`draw_mixed` where all rows are plain drawings; None where the kernels do not serve."""
    packed, bias_Z = model.generation_head.last()
    if packed is None or bias_Z is None or plan.scale_n is None or not kernels.native(hidden_ND):
        return None
    uniform_n = torch.from_numpy(rows.uniforms_of(plan.first))
    how = (plan.guidance_n, plan.scale_n, uniform_n, model.first_code)
    return kernels.draw_codes(model.generation_head.inside(hidden_ND), packed, bias_Z, plan.pairs, *how)


def _draw_codes(model: Janus, plan: _Plan, hidden_ND: Tensor, uniform_n: Tensor) -> tuple[Tensor, Tensor]:
    """What each row that draws a code of its own draws, and the log-probs."""
    n, guided_n, settings = len(plan.first), plan.guided_n, plan.settings
    logits_MZ = model.code_logits(hidden_ND[plan.asked_M])
    own_nZ, blank_nZ = logits_MZ[:n], logits_MZ[n:]
    weighed_nZ = own_nZ
    if guided_n is None:
        weighed_nZ = guided(own_nZ, blank_nZ, plan.guidance_n[:, None]).to(own_nZ.dtype)
    elif len(guided_n):
        weighed_nZ = own_nZ.clone()
        scale_n1 = plan.guidance_n[guided_n][:, None]
        weighed_nZ[guided_n] = guided(own_nZ[guided_n], blank_nZ, scale_n1).to(own_nZ.dtype)
    if plan.is_special:
        code_n, logp_n = choose(weighed_nZ, uniform_n, settings)
    else:
        code_n, logp_n = draw(weighed_nZ, uniform_n, settings.temperature_B)
    if guided_n is None:
        logp_n = policy_logp(own_nZ, code_n, settings.temperature_B)
    elif len(guided_n):
        logp_n[guided_n] = policy_logp(own_nZ[guided_n], code_n[guided_n], settings.temperature_B[guided_n])
    return code_n + model.first_code, logp_n


def _settings(rows: Rows, row_N: slice | np.ndarray, device: torch.device) -> Settings:
    columns = (rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.penalty)
    return Settings(*(moved(column[row_N], device) for column in columns))


def _seen(rows: Rows, counts: np.ndarray, device: torch.device) -> Tensor | None:
    """Which tokens a penalty concerns, for each of the logits; a draft counts for what comes after it."""
    if all(sample.seen is None for sample in rows.samples):
        return None
    seen_NV = np.zeros((int(counts.sum()), rows.vocab_size), np.bool_)
    for row, end in enumerate(np.cumsum(counts).tolist()):
        seen = rows.samples[row].seen
        if seen is not None:
            seen_NV[end - counts[row] : end] = seen
            if counts[row] == 2:
                seen_NV[end - 1, rows.draft[row]] = True
    return moved(seen_NV, device)


def _bias(rows: Rows, counts: np.ndarray) -> Bias | None:
    """What the guides have to say; their rows have one token each."""
    said = [(row, sample.guide.bias()) for row, sample in enumerate(rows.samples) if sample.guide is not None]
    said = [(row, bias) for row, bias in said if bias is not None]
    if not said:
        return None
    return Bias(np.cumsum(counts)[[row for row, _ in said]] - 1, np.stack([bias for _, bias in said]))


def tops(rows: Rows, logits_NV: Tensor, counts: np.ndarray) -> Tops:
    """The likeliest tokens by place in the logits."""
    found: Tops = {}
    if not any(sample.n_top for sample in rows.samples):
        return found
    for row, end in enumerate(np.cumsum(counts).tolist()):
        if n_top := rows.samples[row].n_top:
            first = end - int(counts[row])
            heat_N = torch.full((end - first,), float(rows.temperature[row]), device=logits_NV.device)
            found.update(enumerate(likeliest(logits_NV[first:end], heat_N, n_top), first))
    return found


def score_prompts(model: Decoder, chunks: list[Chunk], hidden_ND: Tensor) -> None:
    """Note the log-probs of the chunks' tokens for those who want them; `hidden_ND` are the chunks' states."""
    at = 0
    for job, first, count in chunks:
        scores = job.samples[0].prompt_scores
        last = 0 if scores is None else min(first + count, len(scores.logps) - 1)
        for begin in range(first, last, _SCORED):
            assert scores is not None
            end = min(begin + _SCORED, last)
            logits_NV = model.logits(hidden_ND[at + begin - first : at + end - first])
            target_N = torch.tensor(job.tokens[begin + 1 : end + 1], device=logits_NV.device)
            heat_N = torch.ones(end - begin, device=logits_NV.device)
            scores.logps[begin + 1 : end + 1] = policy_logp(logits_NV, target_N, heat_N).tolist()
            if n_top := job.samples[0].n_top:
                scores.tops[begin + 1 : end + 1] = likeliest(logits_NV, heat_N, n_top)
        at += count
