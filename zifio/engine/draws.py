"""What the rows of a batch draw: text from the output head, codes of drawings from theirs, each with its own settings.

Under classifier-free guidance a drawing's logits are put together from its row's and from that of its twin, which has
read the blank prompt; the twin takes the same token. The log-prob that is told stays that of the prompt alone, as with
all that steers draws.

Try it alone: `pytest tests/engine/test_drawings.py`
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zifio.engine.guide import Bias, Top
from zifio.engine.rows import Rows
from zifio.engine.sampler import Settings, choose, draw, likeliest, policy_logp
from zifio.engine.scheduler import Chunk
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


def draw_mixed(model: Decoder, rows: Rows, hidden_ND: Tensor) -> tuple[Tensor, Tensor, Tops]:
    """A token and its log-prob for every row, from the hidden state of its last token, where some rows are drawings.

    Meaningless for a row that is apart from its twin, which is to draw again.
    """
    n, device = len(rows), hidden_ND.device
    token_N, logp_N = torch.zeros(n, dtype=torch.int64, device=device), torch.zeros(n, device=device)
    is_text = np.array([sample.drawing is None for sample in rows.samples])
    likely: Tops = {}
    if is_text.any():
        text, counts = np.flatnonzero(is_text), is_text.astype(np.int64)
        text_N = moved(text, device)
        logits_NV = model.logits(hidden_ND[text_N])
        token_N[text_N], logp_N[text_N] = draw_text(rows, logits_NV, counts)
        likely = {int(text[place]): top for place, top in tops(rows, logits_NV, counts).items()}
    draws = [not text and not s.is_blank and not s.is_apart for text, s in zip(is_text, rows.samples, strict=True)]
    if any(draws):
        assert isinstance(model, Janus), "others are asked for no drawings"
        first_N, twin_N, token_n, logp_n = _draw_codes(model, rows, hidden_ND, np.array(draws))
        token_N[first_N], logp_N[first_N] = token_n, logp_n
        token_N[twin_N] = token_N[first_N[_is_guided(rows, first_N)]]
    return token_N, logp_N, likely


def _draw_codes(
    model: Janus, rows: Rows, hidden_ND: Tensor, draws: np.ndarray
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows that draw and the twins of those that are guided; what the former draw, and the log-probs."""
    first, device = np.flatnonzero(draws), hidden_ND.device
    samples = [rows.samples[row] for row in first.tolist()]
    pairs = [(sample.twin.row, sample.drawing.scale) for sample in samples if sample.twin and sample.drawing]
    first_N = moved(first, device)
    twin_N = torch.tensor([row for row, _ in pairs], dtype=torch.int64, device=device)
    own_NZ, blank_NZ = model.code_logits(hidden_ND[torch.cat([first_N, twin_N])]).split([len(first), len(pairs)])
    settings = _settings(rows, first, device)
    uniform_N = moved(rows.uniforms(draws.astype(np.int64)), device)
    weighed_NZ, is_guided_N = own_NZ, _is_guided(rows, first_N)
    if pairs:
        scale_N1 = torch.tensor([[scale] for _, scale in pairs], device=device)
        weighed_NZ = own_NZ.clone()
        weighed_NZ[is_guided_N] = guided(own_NZ[is_guided_N], blank_NZ, scale_N1).to(own_NZ.dtype)
    if rows.is_special[first].any():
        code_N, logp_N = choose(weighed_NZ, uniform_N, settings)
    else:
        code_N, logp_N = draw(weighed_NZ, uniform_N, settings.temperature_B)
    if pairs:
        heat_N = settings.temperature_B[is_guided_N]
        logp_N[is_guided_N] = policy_logp(own_NZ[is_guided_N], code_N[is_guided_N], heat_N)
    return first_N, twin_N, code_N + model.first_code, logp_N


def _is_guided(rows: Rows, row_N: Tensor) -> Tensor:
    """Which of these rows have a twin."""
    return torch.tensor([rows.samples[row].twin is not None for row in row_N.tolist()], device=row_N.device)


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
