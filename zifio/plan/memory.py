"""Memory by part and by device, by formula.

Training keeps for every parameter a working copy, and in mixed precision besides an fp32 master, fp32 gradients and
Adam's two moments (DeepSeek-V3, section 3.3.2). Activations are what the backward pass wants of the forward one:
between blocks and inside, each number once, scores never (attention and softmax are fused), a chunk of logits.

A device of a layout holds a pipeline stage's share; the fullest device is the one that must fit.

Try it: `pytest tests/plan/test_plan_memory.py`
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from zifio.config import ConfigError
from zifio.models.config import AnyConfig
from zifio.models.count import cached_numbers, layer_parameters, parameters
from zifio.models.families import LatentConfig
from zifio.plan.hardware import BYTES, Precision
from zifio.plan.settings import Layout, PlanConfig, Recompute

LOGIT_TOKENS = 512
"""Tokens whose logits exist at once."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, by part."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    """Master weights and moments."""
    activations: float = 0.0
    kv: float = 0.0
    rollouts: float = 0.0
    """What drawing holds beside training: weights in the precision of drawing."""

    @property
    def total(self) -> float:
        """All parts."""
        return sum(asdict(self).values())


def check_layout(config: AnyConfig, layout: Layout) -> None:
    """Raise ConfigError where the model cannot be spread so."""
    moe = config.moe
    ranks = layout.data * layout.tensor
    if layout.expert > 1 and moe is None:
        raise ConfigError(f"layout.expert: wanted 1 for a model without experts, came {layout.expert}. Leave it out.")
    if moe is not None and moe.n_experts % layout.expert:
        raise ConfigError(
            f"layout.expert: wanted a divisor of {moe.n_experts} experts, came {layout.expert}. Change it."
        )
    if ranks % layout.expert:
        raise ConfigError(
            f"layout.expert: wanted a divisor of data x tensor = {ranks}, came {layout.expert}. Change one of them."
        )
    if config.num_attention_heads % layout.tensor:
        raise ConfigError(
            f"layout.tensor: wanted a divisor of {config.num_attention_heads} heads, came {layout.tensor}. Change it."
        )
    if layout.pipeline > config.num_hidden_layers:
        raise ConfigError(
            f"layout.pipeline: wanted at most {config.num_hidden_layers} layers, came {layout.pipeline}. Lower it."
        )


def shares(config: AnyConfig, layout: Layout) -> list[tuple[float, float, int]]:
    """(parameters outside of experts, in routed experts, layers) of a device at each place of the pipeline.

    Layers go to places evenly, the first ones taking what is left over; the embedding stands at the first, the head at
    the last (a tied one at both, if these are two).
    """
    check_layout(config, layout)
    n, places = config.num_hidden_layers, layout.pipeline
    matrix = (config.vocab_size or 0) * config.hidden_size
    out, start = [], 0
    for place in range(places):
        size = n // places + (place < n % places)
        plain = experts = 0.0
        for layer in range(start, start + size):
            routed = layer_parameters(config, layer).routed
            plain += layer_parameters(config, layer).total - routed
            experts += routed
        is_first, is_last = place == 0, place == places - 1
        plain += is_first * matrix
        plain += is_last * (config.hidden_size + (0 if config.tie_word_embeddings and is_first else matrix))
        out.append((plain / layout.tensor, experts / _experts_over(layout), size))
        start += size
    return out


def training_memory(config: AnyConfig, plan: PlanConfig) -> Memory:
    """The fullest device in training."""
    return max((_at(config, plan, place) for place in range(plan.layout.pipeline)), key=lambda memory: memory.total)


def _at(config: AnyConfig, plan: PlanConfig, place: int) -> Memory:
    layout = plan.layout
    plain, experts, layers = shares(config, layout)[place]
    # Copies that share out: of what is outside of experts `data`, of an expert the ranks that hold it beside.
    copies, copies_of_experts = layout.data, layout.data * layout.tensor // _experts_over(layout)

    def held(bytes_each: float, from_stage: int) -> float:
        if layout.zero < from_stage:
            return bytes_each * (plain + experts)
        return bytes_each * (plain / copies + experts / copies_of_experts)

    is_mixed = plan.precision != "fp32"
    moments = 2.0 * plan.moment_bytes
    in_flight = min(layout.pipeline - place, layout.pipeline)  # of one forward, one backward
    numbers = plan.micro_tokens * in_flight * kept_numbers(config, layers, plan.recompute) / layout.tensor
    logits = 0.0
    if place == layout.pipeline - 1:
        chunk = min(LOGIT_TOKENS, plan.micro_tokens)
        logits = 4.0 * 2 * chunk * (config.vocab_size or 0) / layout.tensor  # logits and their gradient, in fp32
    return Memory(
        weights=held(2 if is_mixed else 4, 3),
        gradients=held(4, 2),
        optimizer=held(moments + (4 if is_mixed else 0), 1),
        activations=numbers * BYTES[plan.activation_precision or plan.precision] + logits,
    )


def _experts_over(layout: Layout) -> int:
    """Devices that share out a layer's routed experts."""
    return layout.expert if layout.expert > 1 else layout.tensor


def kept_numbers(config: AnyConfig, layers: int, recompute: Recompute = "none") -> float:
    """Numbers that the backward pass wants of a token, in so many layers of the mean kind.

    With `recompute` "block" a block keeps what enters it; one block at a time has all of its own.
    """
    n = config.num_hidden_layers
    whole = sum(kept_in_layer(config, layer, recompute == "cheap") for layer in range(n)) / n
    return layers * config.hidden_size + whole if recompute == "block" else layers * whole


def kept_in_layer(config: AnyConfig, layer: int, is_cheap: bool = False) -> float:
    """Numbers that the backward pass wants of a token in one block.

    Both norms' inputs and outputs (4 d), attention's queries, keys, values and output, MLA's latents before and after
    their norms, and of a feed-forward block gate, up and their product, for each expert that the token visits, whose
    input and output are copies of it (2 d each). Where what is cheap is computed again, norms' outputs, all that MLA
    projects up and the product of gate and up are not kept.
    """
    d, heads, moe, linear = config.hidden_size, config.num_attention_heads, config.moe, config.linear
    queries_keys_values = heads * (2 * config.d_key + config.d_value)  # expanded, as MLA trains
    latents = 0
    if isinstance(config, LatentConfig):
        latents = config.qk_rope_head_dim + (1 if is_cheap else 2) * (config.kv_lora_rank + (config.q_lora_rank or 0))
        queries_keys_values = 0 if is_cheap else queries_keys_values
    else:
        queries_keys_values -= (heads - config.n_kv_heads) * (config.d_key + config.d_value)
    streams, inner = (2, 2) if is_cheap else (4, 3)
    kept = streams * d + queries_keys_values + latents + heads * config.d_value
    if linear is not None and config.mixer(layer) == "linear_attention":  # projections, and what the rule makes
        kept = streams * d + linear.d_mixed + 2 * linear.n_heads * linear.d_value + 2 * linear.n_heads
    if moe is None or not config.is_sparse(layer):
        return kept + inner * config.intermediate_size
    visited = moe.n_active * (inner * moe.d_expert + 2 * d) + inner * moe.shared_width
    return kept + visited + moe.n_experts


def plain_memory(
    config: AnyConfig, trained: int, pass_tokens: int, moments: int, rows_tokens: float, recompute: Recompute = "none"
) -> Memory:
    """One process in fp32 as this package trains: `moments` numbers of the optimizer for each weight that trains, one
    pass of so many tokens, and a cache of so many, drawn with packed copies of the weights."""
    total = parameters(config, with_mtp=True).total
    logits = 2.0 * min(LOGIT_TOKENS, pass_tokens) * (config.vocab_size or 0)
    activations = pass_tokens * kept_numbers(config, config.num_hidden_layers, recompute) + logits
    return Memory(
        weights=4.0 * total,
        gradients=4.0 * trained,
        optimizer=4.0 * moments * trained,
        activations=4.0 * activations,
        kv=4.0 * cached_numbers(config) * rows_tokens,
        rollouts=4.0 * total if rows_tokens else 0.0,
    )


def serving_weights(config: AnyConfig, layout: Layout, precision: Precision) -> float:
    """Bytes of the weights on the fullest device when they only draw."""
    return max(BYTES[precision] * (plain + experts) for plain, experts, _ in shares(config, layout))


def weights_read(config: AnyConfig, layout: Layout, precision: Precision, rows: float) -> float:
    """Bytes of weights that a device reads to draw a token for each of so many rows: of experts those that some row
    visits, if rows choose evenly."""
    share = 1.0
    if config.moe is not None:
        share = 1 - (1 - config.moe.n_active / config.moe.n_experts) ** max(rows, 1.0)
    return max(BYTES[precision] * (plain + share * experts) for plain, experts, _ in shares(config, layout))


def cache_bytes(config: AnyConfig, layout: Layout, tokens: float, cache: Precision = "bf16") -> float:
    """Bytes on a device of the cache of so many tokens in all. Tensor-parallel devices share grouped heads; MLA's
    latent is one for all heads, so each of them holds it whole."""
    shared = 1 if isinstance(config, LatentConfig) else min(layout.tensor, config.n_kv_heads)
    return cached_numbers(config) * BYTES[cache] * tokens / (shared * layout.pipeline * layout.data)
