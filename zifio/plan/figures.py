"""What one model is, in numbers: parameters by every way of counting, FLOPs per token, bytes of cache.

"Active" parameters mean three things in papers, so all three are here: all that a token meets; those without the input
embedding, which is looked up and not multiplied; those without either embedding.

Try it: `python -c "from zifio.plan.figures import figures; from zifio.models.presets import preset;
print(figures(preset('deepseek-v3')))"`
"""

from __future__ import annotations

from dataclasses import dataclass

from zifio.models.config import AnyConfig
from zifio.models.count import (
    cached_numbers,
    embedding_weights,
    forward_flops,
    parameters,
    router_biases,
    state_numbers,
)
from zifio.plan.hardware import BYTES, Precision


@dataclass(frozen=True)
class Figures:
    """Counts of one model. Parameters include the routers' biases, as published totals do, and no MTP module."""

    total_params: int
    active_params: int
    active_params_no_input_embedding: int
    non_embedding_params: int
    active_non_embedding_params: int
    mtp_params: int
    """The multi-token prediction module, which none of the others counts."""
    forward_flops_per_token: float
    """Mean over a causal sequence of `seq_len` tokens, logits included, MTP not."""
    train_flops_per_token: float
    """Three times that: a backward pass costs two forward ones."""
    decode_flops_per_token: float
    """Of a token drawn behind `seq_len` others."""
    kv_bytes_per_token: int
    """What a token leaves in the cache."""
    state_bytes: int
    """What a sequence holds whatever its length: 0 where all layers attend to all of it."""
    seq_len: int


def figures(config: AnyConfig, seq_len: int = 4096, cache: Precision = "bf16") -> Figures:
    """The figures of a shape, for sequences of `seq_len` tokens and a cache of this precision."""
    count, bias, embedding = parameters(config), router_biases(config), embedding_weights(config)
    forward = forward_flops(config, [seq_len]) / seq_len
    return Figures(
        total_params=count.total + bias,
        active_params=count.active + bias,
        active_params_no_input_embedding=count.multiplied + bias,
        non_embedding_params=count.total + bias - embedding,
        active_non_embedding_params=count.active + bias - embedding,
        mtp_params=parameters(config, with_mtp=True).total - count.total,
        forward_flops_per_token=forward,
        train_flops_per_token=3 * forward,
        decode_flops_per_token=forward_flops(config, [1], firsts=[seq_len]),
        kv_bytes_per_token=cached_numbers(config) * BYTES[cache],
        state_bytes=state_numbers(config) * BYTES[cache],
        seq_len=seq_len,
    )
