"""Parameters, FLOPs and cache of a shape, by formula and without torch (DeepSeek-V2, section 2.1; V3, section 2.1).

A matrix of n weights costs 2n FLOPs per token forward. Attention between a query and a key costs
2 (d_query + d_value) per head. Training costs three times the forward pass. Only experts that a token visits count:
this is the arithmetic of the architecture, whatever form computes it. A layer of linear attention costs 6 K X per head
and token, a window or an indexer bounds the keys that a query attends to.

Try it: `pytest tests/models/test_count.py`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat

from zifio.models.classifier_config import ClassifierConfig
from zifio.models.config import AnyConfig
from zifio.models.families import LatentConfig
from zifio.models.janus_config import CaptionerConfig, JanusConfig, VisionConfig, VqConfig
from zifio.models.mixers import Mixer


@dataclass(frozen=True)
class Parameters:
    """Counts of one shape. "Active" leaves out the experts that a token does not visit."""

    total: int
    active: int
    embedding: int
    """The input embedding, which is looked up and not multiplied."""

    @property
    def multiplied(self) -> int:
        """Active weights that take part in a matrix product per token: all but the input embedding."""
        return self.active - self.embedding


def parameters(config: AnyConfig, with_mtp: bool = False) -> Parameters:
    """Parameter counts, the MTP module only `with_mtp`; the routers' bias buffers are not parameters."""
    d, vocab = config.hidden_size, config.vocab_size or 0
    embedding = vocab * d
    is_tied = config.tie_word_embeddings and config.num_labels is None
    head = 0 if is_tied else embedding
    if config.num_labels is not None:
        head = config.num_labels * d + (config.num_labels if config.num_labels > 1 else 0)
    total = active = embedding + head + d
    for layer in range(config.num_hidden_layers):
        block = layer_parameters(config, layer)
        total, active = total + block.total, active + block.active
    if with_mtp and config.n_mtp:
        block = layer_parameters(config, config.num_hidden_layers)
        extra = 2 * d * d + 3 * d
        total, active = total + block.total + extra, active + block.active + extra
    multiplied = active - embedding + (embedding if is_tied else 0)
    return Parameters(total, active, active - multiplied)


def embedding_weights(config: AnyConfig) -> int:
    """Weights of the input embedding and the output head, which counts "without embeddings" leave out."""
    matrix = (config.vocab_size or 0) * config.hidden_size
    return matrix if config.tie_word_embeddings or config.num_labels is not None else 2 * matrix


def router_biases(config: AnyConfig) -> int:
    """Entries of the routers' selection biases: no parameters, but stored, so published totals hold them."""
    if config.moe is None or not config.moe.has_bias:
        return 0
    return config.moe.n_experts * sum(map(config.is_sparse, range(config.num_hidden_layers)))


def cached_numbers(config: AnyConfig) -> int:
    """Numbers that a token leaves in the cache: keys and values, or MLA's latent and rotary key (V2, section 2.1.4); an
    indexer's key. Layers that keep a fixed size leave none: see `state_numbers`."""
    kinds = [config.mixer(layer) for layer in range(config.num_hidden_layers)]
    per_layer = _entry(config)
    numbers = per_layer * (kinds.count("full_attention") + kinds.count("indexed_attention"))
    if config.indexer is not None:
        numbers += kinds.count("indexed_attention") * config.indexer.d_head
    return numbers


def state_numbers(config: AnyConfig) -> int:
    """Numbers that a sequence leaves in the cache however long it is: memories of linear attention with the last tokens
    of its convolution, and the keys and values of windows."""
    kinds = [config.mixer(layer) for layer in range(config.num_hidden_layers)]
    numbers = kinds.count("sliding_attention") * config.window * _entry(config)
    return numbers + (0 if config.linear is None else kinds.count("linear_attention") * config.linear.memory)


def _entry(config: AnyConfig) -> int:
    """Numbers that a token leaves in a layer of attention."""
    if isinstance(config, LatentConfig):
        return config.kv_lora_rank + config.qk_rope_head_dim
    return config.n_kv_heads * (config.d_key + config.d_value)


@dataclass(frozen=True)
class Block:
    """Parameters of one block."""

    total: int
    active: int
    routed: int = 0
    """Those of `total` that are in routed experts."""


def layer_parameters(config: AnyConfig, layer: int) -> Block:
    """Parameters of one block; the MTP module's is the one behind the last."""
    d, moe = config.hidden_size, config.moe
    shared = 2 * d + _mixer(config, layer)
    if moe is None or not config.is_sparse(layer):
        dense = shared + 3 * d * config.intermediate_size
        return Block(dense, dense)
    expert = 3 * d * moe.d_expert
    fixed = shared + 3 * d * moe.shared_width + d * moe.has_shared_gate + moe.n_experts * d
    routed = moe.n_experts * expert
    return Block(fixed + routed, fixed + moe.n_active * expert, routed)


def _mixer(config: AnyConfig, layer: int) -> int:
    """Parameters of what mixes tokens in a layer."""
    d, kind = config.hidden_size, config.mixer(layer)
    if kind == "linear_attention":
        assert config.linear is not None, "the config has no shape of linear attention"
        shape, values = config.linear, config.linear.n_heads * config.linear.d_value
        projections = d * (shape.d_mixed + values + 2 * shape.n_heads) + values * d
        return projections + shape.d_conv * shape.d_mixed + 2 * shape.n_heads + shape.d_value
    if kind != "indexed_attention":
        return _attention(config)
    assert config.indexer is not None, "the config has no shape of indexers"
    heads, width, rank = config.indexer.n_heads, config.indexer.d_head, config.indexer.d_query
    return _attention(config) + heads * width * rank + width * d + 2 * width + heads * d


def _attention(config: AnyConfig) -> int:
    d, heads = config.hidden_size, config.num_attention_heads
    if not isinstance(config, LatentConfig):
        query, key = heads * config.d_head, config.n_kv_heads * config.d_head
        query_and_gate = query * (1 + config.has_output_gate)
        biases = (query_and_gate + 2 * key) * config.has_qkv_bias + d * config.has_o_bias
        return d * (query_and_gate + query) + 2 * d * key + biases + 2 * config.d_head * config.has_qk_norm
    rank, query = config.kv_lora_rank, heads * config.qk_head_dim
    if config.q_lora_rank is None:
        queries = d * query
    else:
        queries = d * config.q_lora_rank + config.q_lora_rank + config.q_lora_rank * query
    latents = d * (rank + config.qk_rope_head_dim) + rank
    return (
        queries + latents + rank * heads * (config.qk_nope_head_dim + config.v_head_dim) + heads * config.v_head_dim * d
    )


def janus_parameters(config: JanusConfig) -> dict[str, int]:
    """Parameter counts of a model that reads and draws, by the part as it is called there; their sum is the total.

    `language` has the output head of text, `drawing` the embedding, adaptor and head of codes.
    """
    vision, vq, d = config.vision_config, config.vq_config, config.text_config.hidden_size
    width, d_hidden = vision.hidden_size, int(vision.hidden_size * vision.mlp_ratio)
    layer = 4 * _linear(width, width) + _linear(width, d_hidden) + _linear(d_hidden, width) + 4 * width
    patches = _linear(3 * vision.patch_size**2, width) + vision.num_image_tokens * width
    head = _linear(d, vq.projection_dim) + _linear(vq.projection_dim, vq.num_embeddings)
    return {
        "language": parameters(config.text_config).total,
        "vision": patches + vision.num_hidden_layers * layer + 2 * width,
        "reading": _adaptor(width, d, vision.depth),
        "vq": _vq(vq),
        "drawing": vq.num_embeddings * vq.embed_dim + _adaptor(vq.embed_dim, d, vq.num_hidden_layers) + head,
    }


def _linear(d_in: int, d_out: int) -> int:
    return d_in * d_out + d_out


def _adaptor(d_in: int, d_out: int, depth: int) -> int:
    return _linear(d_in, d_out) + (depth - 1) * _linear(d_out, d_out)


def _vq(vq: VqConfig) -> int:
    """Encoder, codebook and decoder of LlamaGen's shape (arXiv:2406.06525)."""
    widths = [vq.base_channels * times for times in vq.channel_multiplier]
    first, last, latent = vq.base_channels, widths[-1], vq.latent_channels
    middle = 2 * _residual(last, last) + _attended(last)
    total = _linear(9 * 3, first) + middle + 2 * last + _linear(9 * last, latent)  # the encoder but for its levels
    total += _linear(9 * latent, last) + middle + 2 * first * vq.channel_multiplier[0] + _linear(9 * widths[0], 3)
    for n_blocks, order in ((vq.num_res_blocks, widths), (vq.num_res_blocks + 1, widths[::-1])):
        before = first if order is widths else last
        for place, width in enumerate(order):
            total += _residual(before, width) + (n_blocks - 1) * _residual(width, width)
            total += n_blocks * _attended(width) * (place == (len(order) - 1 if order is widths else 0))
            total += _linear(9 * width, width) * (place < len(order) - 1)
            before = width
    return total + vq.num_embeddings * vq.embed_dim + _linear(latent, vq.embed_dim) + _linear(vq.embed_dim, latent)


def vision_flops(vision: VisionConfig) -> float:
    """FLOPs of a picture through the encoder that pictures are read with, and its adaptor."""
    d, n, d_out = vision.hidden_size, vision.num_image_tokens, vision.projection_dim
    weights = 4 * d * d + 2 * d * int(d * vision.mlp_ratio)
    layers = vision.num_hidden_layers * (2.0 * n * weights + 4.0 * n * n * d)
    return layers + 2.0 * n * (3 * vision.patch_size**2 * d + d * d_out + (vision.depth - 1) * d_out**2)


def captioner_flops(config: CaptionerConfig) -> float:
    """FLOPs of a picture through an encoder and the probes that read it; it has no adaptor."""
    vision, words = config.vision_config, config.num_words
    d, n = vision.hidden_size, vision.num_image_tokens
    adaptor = 2.0 * n * (d * vision.projection_dim + (vision.depth - 1) * vision.projection_dim**2)
    probes = 2.0 * d * d * (2 * words + 2 * n) + 4.0 * words * n * d + 2.0 * words * d * config.vocab_size
    return vision_flops(vision) - adaptor + probes


def code_flops(vq: VqConfig) -> float:
    """FLOPs of a code of a drawing in its adaptor and its head."""
    d, inner = vq.image_token_embed_dim, vq.projection_dim
    adaptor = vq.embed_dim * d + (vq.num_hidden_layers - 1) * d * d
    return 2.0 * (adaptor + d * inner + inner * vq.num_embeddings)


def classifier_flops(config: ClassifierConfig) -> float:
    """FLOPs of a picture through a classifier."""
    side, before, weights = config.image_size, 3, 0
    for width in config.channels:
        weights += 9 * before * width * side**2
        before, side = width, side // 2
    return 2.0 * (weights + config.hidden_size * (before * config.grid**2 + len(config.labels)))


def vq_flops(vq: VqConfig, paints: bool = True) -> float:
    """FLOPs of a picture through encoder, codebook and, where it is painted again, decoder."""
    first, latent = vq.base_channels, vq.latent_channels
    widths = [first * times for times in vq.channel_multiplier]
    last, side = widths[-1], vq.image_size
    lowest = vq.n_tokens
    middle = 2 * _convolved(last, last, lowest) + _looked(last, lowest)
    weights = 27 * first * side**2 + 9 * last * latent * lowest + latent * vq.embed_dim * lowest
    weights += (27 * widths[0] * side**2 + 9 * last * latent * lowest + latent * vq.embed_dim * lowest) * paints
    total = (1 + paints) * middle + 2.0 * weights + 2.0 * lowest * vq.num_embeddings * vq.embed_dim
    sides = ((vq.num_res_blocks, widths), (vq.num_res_blocks + 1, widths[::-1]))
    for n_blocks, order in sides[: 1 + paints]:
        is_encoder, before = n_blocks == vq.num_res_blocks, first if n_blocks == vq.num_res_blocks else last
        for place, width in enumerate(order):
            level = place if is_encoder else len(order) - 1 - place
            area = (side >> level) ** 2
            total += _convolved(before, width, area) + (n_blocks - 1) * _convolved(width, width, area)
            total += n_blocks * _looked(width, area) * (level == len(order) - 1)
            moved = area // 4 if is_encoder else area * 4  # pixels of the next level
            total += 18.0 * width * width * moved * (place < len(order) - 1)
            before = width
    return total


def _convolved(d_in: int, d_out: int, area: int) -> float:
    """FLOPs of a residual block."""
    return 2.0 * area * (9 * d_in * d_out + 9 * d_out * d_out + d_in * d_out * (d_in != d_out))


def _looked(channels: int, area: int) -> float:
    """FLOPs of attention among pixels."""
    return 8.0 * area * channels * channels + 4.0 * area * area * channels


def _residual(d_in: int, d_out: int) -> int:
    shortcut = _linear(d_in, d_out) if d_in != d_out else 0
    return 2 * d_in + _linear(9 * d_in, d_out) + 2 * d_out + _linear(9 * d_out, d_out) + shortcut


def _attended(channels: int) -> int:
    return 2 * channels + 4 * _linear(channels, channels)


def forward_flops(
    config: AnyConfig, lengths: Iterable[int], with_mtp: bool = False, firsts: Iterable[int] | None = None
) -> float:
    """FLOPs of one causal forward pass over sequences of these lengths, logits at every position included.

    `firsts` are the positions at which they begin, where a prefix is there already; by default 0.
    """
    weights = parameters(config, with_mtp).multiplied
    if with_mtp and config.n_mtp:
        weights += (config.vocab_size or 0) * config.hidden_size  # the shared head is used once more
    layers = config.num_hidden_layers + (config.n_mtp if with_mtp else 0)
    kinds: Counter[Mixer] = Counter(config.mixer(layer) for layer in range(layers))
    total = 0.0
    for length, first in zip(lengths, repeat(0) if firsts is None else firsts, strict=False):
        mixing = sum(n * _mixing_flops(config, kind, length, first) for kind, n in kinds.items())
        total += 2.0 * weights * length + mixing
    return total


def _mixing_flops(config: AnyConfig, kind: Mixer, length: int, first: int) -> float:
    """FLOPs of one layer between its projections, for so many tokens from a position on."""
    per_pair = 2 * config.num_attention_heads * (config.d_key + config.d_value)
    if kind == "linear_attention" and config.linear is not None:  # a memory is read twice and written once
        return 6.0 * config.linear.n_heads * config.linear.d_key * config.linear.d_value * length
    if kind == "sliding_attention":
        return per_pair * _pairs(length, first, config.window)
    if kind == "indexed_attention" and config.indexer is not None:
        scored = 2 * config.indexer.n_heads * (config.indexer.d_head + 1)
        return per_pair * _pairs(length, first, config.indexer.n_kept) + scored * _pairs(length, first)
    return per_pair * _pairs(length, first)


def _pairs(length: int, first: int, most: int | None = None) -> float:
    """Queries from a position on times the keys that each sees, at most so many."""
    if most is None or first + length <= most:
        return length * first + length * (length + 1) / 2
    short = max(0, most - first)
    return short * first + short * (short + 1) / 2 + float(length - short) * most
