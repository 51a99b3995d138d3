"""The one decoder: latent or grouped-query attention, dense or with experts, with or without MTP, by configuration.

Pre-norm blocks, x += attention(norm(x)); x += ffn(norm(x)), a final norm and an output head (DeepSeek-V3, section 2).
Rows may hold several sequences one behind the other: a sequence begins wherever its position is 0, and never sees
another. Module names are those of the Hugging Face checkpoints.

Try it:

    from zifio.models.config import DeepseekV3Config
    model = Decoder(DeepseekV3Config(vocab_size=32), seed=0)
    logits_BTV = model.logits(model(tokens_BT, positions_BT).hidden_BTD)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zifio.kernels import operators as kernels
from zifio.models.attention import Cache, Geometry, GroupedQueryAttention, LatentAttention, branches_of, spans_of
from zifio.models.config import AnyConfig
from zifio.models.families import LatentConfig
from zifio.models.fused import FusedLayers, is_plain
from zifio.models.layers import FeedForward, Linear, RMSNorm, initialise, version_of
from zifio.models.linear_attention import GatedDeltaNet, order_of
from zifio.models.moe import Experts, MoE, Router, Routing, expert_load, sequence_balance_loss, update_bias
from zifio.models.rope import amplitude, inverse_frequencies, turns
from zifio.seed import stream_seed


@dataclass(frozen=True)
class Output:
    """What a forward pass leaves behind."""

    hidden_BTD: Tensor
    """After the final norm; `Decoder.logits` turns it into logits."""
    mtp_hidden_BTD: Tensor | None
    """MTP module's output at t, from h_t and token t+1, about token t+2; one position shorter than the input."""
    routing: tuple[Routing, ...]
    """One per MoE layer, the MTP module's last."""


class Block(nn.Module):
    """One pre-norm decoder layer; the config says which have experts instead of a dense feed-forward block."""

    def __init__(self, config: AnyConfig, layer: int) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(d, eps, config.has_centred_norms)
        self.post_attention_layernorm = RMSNorm(d, eps, config.has_centred_norms)
        if config.mixer(layer) == "linear_attention":
            self.linear_attn: nn.Module = GatedDeltaNet(config, layer)
        elif isinstance(config, LatentConfig):
            self.self_attn: nn.Module = LatentAttention(config, layer)
        else:
            self.self_attn = GroupedQueryAttention(config, layer)
        self._mixer = "linear_attn" if config.mixer(layer) == "linear_attention" else "self_attn"
        if config.is_sparse(layer):
            self.mlp: nn.Module = MoE(config)
        else:
            self.mlp = FeedForward(d, config.intermediate_size)

    def forward(
        self, x_BTD: Tensor, geometry: Geometry, cache: Cache | None, chosen_NA: Tensor | None = None
    ) -> tuple[Tensor, Routing | None]:
        """Residual stream after this layer, and where tokens went when it has experts (`moe.Router` on `chosen_NA`)."""
        x_BTD = x_BTD + getattr(self, self._mixer)(self.input_layernorm(x_BTD), geometry, cache)
        normed = self.post_attention_layernorm(x_BTD)
        if isinstance(self.mlp, MoE):
            out_BTD, routing = self.mlp(normed, chosen_NA)
            return x_BTD + out_BTD, routing
        return x_BTD + self.mlp(normed), None


class MtpModule(nn.Module):
    """Multi-token prediction at depth 1 (DeepSeek-V3, equations 21-25), with the checkpoints' order of inputs.

    h'_t = eh_proj [enorm(Emb(token t+1)); hnorm(h_t)], then one block and a norm; the head is the main model's.
    Equation 21 prints the halves the other way round; the released weights, and so we, put the embedding first.
    """

    def __init__(self, config: AnyConfig) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(d, eps), RMSNorm(d, eps)
        self.eh_proj = Linear(2 * d, d)
        self.block = Block(config, config.num_hidden_layers)
        self.norm = RMSNorm(d, eps)

    def forward(
        self, embedded_BTD: Tensor, hidden_BTD: Tensor, geometry: Geometry, cache: Cache | None = None
    ) -> tuple[Tensor, Routing | None]:
        """Normed hidden state for the shared head, from the next token's embedding and this position's state."""
        joined = torch.cat([self.enorm(embedded_BTD), self.hnorm(hidden_BTD)], dim=-1)
        x_BTD, routing = self.block(self.eh_proj(joined), geometry, cache)
        return self.norm(x_BTD), routing


class Decoder(nn.Module):
    """A causal language model; see the module's docstring."""

    def __init__(self, config: AnyConfig, seed: int | None = None) -> None:
        """Initialise from the named stream of `seed`, or leave the weights to be loaded when it is None."""
        super().__init__()
        assert config.vocab_size is not None, "the tokenizer sets vocab_size before a model is made"
        self.config = config
        self.recompute = False
        """Whether a training pass keeps only what enters each block; `rows.recompute` sets it."""
        d = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, d)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(d, config.rms_norm_eps, config.has_centred_norms)
        if config.num_labels is not None:  # as transformers' heads: a single score has no bias
            self.score = Linear(d, config.num_labels, bias=config.num_labels > 1)
        else:
            self.lm_head = Linear(d, config.vocab_size)
            if config.tie_word_embeddings:
                self.lm_head.weight = self.embed_tokens.weight
        self.mtp = nn.ModuleList(MtpModule(config) for _ in range(config.n_mtp))
        self.frequencies_r: Tensor
        self.register_buffer(
            "frequencies_r",
            inverse_frequencies(config.d_rotary, config.rope_theta, config.rope_scaling),
            persistent=False,
        )
        self._packed: Tensor | None = None
        self._freed = list[Linear | Experts]()  # whose weights exist only packed
        self._packed_dtype = torch.float32
        self._fused: FusedLayers | None = None
        self._fused_version, self._weights = -1, list[Tensor]()
        self._table = (self.frequencies_r[:0], self.frequencies_r[:0])
        if seed is not None:
            self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Every matrix from a normal with the configured deviation; norms are one."""
        generator = torch.Generator().manual_seed(stream_seed(seed, "models/init"))
        initialise(self, self.config.initializer_range, generator)
        for module in self.modules():
            if isinstance(module, GatedDeltaNet):
                module.initialise(generator)

    def forward(
        self,
        tokens_BT: Int[Tensor, "B T"],
        positions_BT: Int[Tensor, "B T"],
        cache: Cache | None = None,
        *,
        absorb: bool | None = None,
        with_mtp: bool = False,
        experts_BTLA: Int[Tensor, "B T L A"] | None = None,
    ) -> Output:
        """Hidden states of every position; `positions_BT` says where each token stands in its own sequence.

        Without a cache a row may hold several sequences, and several replies to one prompt (`branches_of`). With one,
        the cache was told which sequence each token of the flattened B*T continues. `absorb` chooses MLA's form: by
        default what the cache stores, expanded without one. `experts_BTLA` sends tokens to these experts of the L
        layers that have some (not the MTP module's), and where it is -1 the router chooses.
        """
        if cache is not None and experts_BTLA is None and not with_mtp:
            hidden_ND = self._decode(tokens_BT, positions_BT, cache)
            if hidden_ND is not None:
                return Output(hidden_ND.view(*tokens_BT.shape, -1), None, ())
        geometry = self._geometry(positions_BT, cache, absorb)
        experts_NLA = None if experts_BTLA is None else experts_BTLA.flatten(0, 1)
        x_BTD = self.embed(tokens_BT)
        routing: list[Routing] = []
        if cache is not None and self._is_fused(cache, x_BTD):
            assert self._fused is not None
            x_BTD = self._fused.run(x_BTD, geometry, cache)
        else:
            for layer in self.layers:
                has_experts = isinstance(layer.mlp, MoE)
                chosen_NA = experts_NLA[:, len(routing)] if has_experts and experts_NLA is not None else None
                x_BTD, went = self._run(layer, x_BTD, geometry, cache, chosen_NA)
                routing += [went] if went is not None else []
        assert experts_NLA is None or experts_NLA.shape[1] == len(routing), "experts of another number of layers"
        hidden_BTD = self.norm(x_BTD)
        mtp_hidden = None
        if with_mtp and self.mtp:
            shorter = self._geometry(positions_BT[:, :-1], None, absorb)
            embedded_BTD = self.embed(tokens_BT[:, 1:])
            mtp_hidden, went = self._run(self.mtp[0], embedded_BTD, hidden_BTD[:, :-1], shorter)
            routing += [went] if went is not None else []
        return Output(hidden_BTD, mtp_hidden, tuple(routing))

    def _decode(self, tokens_BT: Tensor, positions_BT: Tensor, cache: Cache) -> Tensor | None:
        """Normed states [N, D] of one new token of each of N sequences, in one call of C, with `forward`'s bits.

        None, and nothing done, where only the ordinary way will do: more tokens, layers that are not plain, a gradient,
        weights that have changed, pictures.
        """
        table_NP = None if self._fused is None or torch.is_grad_enabled() else cache.alone()
        if table_NP is None or self.norm.centred or not kernels.native(self.embed_tokens.weight):
            return None
        assert self._fused is not None
        if self._fused_version != self._version():
            return None
        return self._fused.decode((tokens_BT, positions_BT, table_NP), self.tables(), self._table, self.norm, cache)

    def tables(self) -> tuple[Tensor, Tensor | None]:
        """What the first layer reads of tokens of text, [V, D], and of codes of drawings, which a Janus has."""
        return self.embed_tokens.weight, None

    def draft(
        self, next_BT: Int[Tensor, "B T"], hidden_BTD: Tensor, positions_BT: Int[Tensor, "B T"], cache: Cache
    ) -> Tensor:
        """The MTP module's states about token p + 2, from `forward`'s hidden states at positions p and tokens p + 1.

        The module attends to its own layer of the cache, which was told the same positions.
        """
        return self.mtp[0](self.embed(next_BT), hidden_BTD, self._geometry(positions_BT, cache, None), cache)[0]

    def _run(self, block: nn.Module, *inputs: Any) -> tuple[Tensor, Routing | None]:
        """block(*inputs); with `recompute`, what the gradient needs of it is computed again when it is needed.

        "Training Deep Nets with Sublinear Memory Cost" (arXiv:1604.06174). Nothing here is random, so the second
        pass repeats the first to the bit, and what a block returns comes from the first alone.
        """
        if not (self.recompute and torch.is_grad_enabled()):
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """What the first layer reads of tokens, [B, T, D]."""
        return self.embed_tokens(tokens_BT)

    @property
    def n_tokens(self) -> int:
        """Tokens that may come: all below this number."""
        return self.config.vocab_size or 0

    def pictures_of(self, tokens: list[int]) -> tuple[object, ...] | None:
        """What must be held as long as these tokens may be asked about: pictures, in a model that reads some. None
        where one of them was let go."""
        return ()

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities over the vocabulary, from hidden states of any leading shape."""
        return self.lm_head(hidden)

    def _geometry(self, positions_BT: Tensor, cache: Cache | None, absorb: bool | None) -> Geometry:
        # To ask for the largest position would wait for all that a GPU has to do; its table has the whole context.
        wanted = self.config.max_position_embeddings if positions_BT.is_cuda else int(positions_BT.max()) + 1
        cos_Sr, sin_Sr = self._turns(wanted)
        cos_BTr, sin_BTr = cos_Sr[positions_BT], sin_Sr[positions_BT]
        absorb = (cache is not None and cache.latent) if absorb is None else absorb
        if cache is not None:
            return Geometry(positions_BT, cos_BTr, sin_BTr, None, absorb)
        spans_M4, linear = spans_of(positions_BT), self.config.linear
        order = None if linear is None else order_of(spans_M4, linear.d_conv)
        return Geometry(positions_BT, cos_BTr, sin_BTr, spans_M4, absorb, order)

    def _turns(self, n_positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least so many positions, kept and doubled when they run short."""
        if len(self._table[0]) < n_positions or self._table[0].device != self.frequencies_r.device:
            size = max(256, 1 << (n_positions - 1).bit_length())
            self._table = turns(size, self.frequencies_r, amplitude(self.config.rope_scaling))
        return self._table

    @torch.no_grad()
    def pack(self, dtype: torch.dtype = torch.float32, *, instead: bool = False) -> None:
        """Repack all weights for sampling where they have changed; costs their size in memory until `unpack`.

        In fp32 they are laid out for the kernels, on a CPU that has them; `instead` then frees the weights themselves
        as it goes, and until `unpack` writes them anew nothing may look at them. In another type they are copies that
        stand where they stood before, for sampling under autocast.
        """
        layers = [module for module in self.modules() if isinstance(module, Linear | Experts)]
        if dtype is not self._packed_dtype:
            self.unpack()
            self._packed_dtype = dtype
        if dtype is not torch.float32:
            for layer in layers:
                layer.pack_as(dtype)
            return
        if not all(kernels.native(weight) for layer in layers for weight in layer.weights()):
            return
        sizes = [sum(map(kernels.packed_size, layer.weights())) for layer in layers]
        if self._packed is None:
            self._packed = kernels.memory(sum(sizes))
        for layer, room in zip(layers, self._packed.split(sizes), strict=True):
            layer.pack(room)
            if instead:
                self._freed += [layer] if self._free(layer) else []
        if not all(map(is_plain, self.layers)):
            self._fused = None
        elif self._fused is None:
            self._fused = FusedLayers(list(self.layers))
        self._weights = list(self.layers.parameters())
        self._fused_version = self._version()

    def _is_fused(self, cache: Cache, x_BTD: Tensor) -> bool:
        """Whether all layers can be computed in one call: packed, unchanged since, and no gradient is wanted."""
        if self._fused is None or torch.is_grad_enabled() or cache.places() is None or not kernels.native(x_BTD):
            return False
        return self._fused_version == self._version()

    def _version(self) -> int:
        """Grows with every change of a weight."""
        return version_of(self._weights)

    def unpack(self) -> None:
        """Give the memory of packed weights back; what they stood in for is written anew."""
        while self._freed:
            layer = self._freed.pop()
            for weight in layer.weights():
                weight.untyped_storage().resize_(weight.nbytes)
            layer.unpack()
        self._packed = self._fused = None
        for module in self.modules():
            if isinstance(module, Linear | Experts):
                module.packed = None

    def _free(self, layer: Linear | Experts) -> bool:
        """Free the weights of a packed layer, if all of their memory is theirs and nobody reads them unpacked."""
        storages = [weight.untyped_storage() for weight in layer.weights()]
        whole = all(one.nbytes() == weight.nbytes for one, weight in zip(storages, layer.weights(), strict=True))
        if not whole or layer.weights()[0] is self.embed_tokens.weight:
            return False
        for storage in storages:
            storage.resize_(0)
        return True

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where tokens must be."""
        return self.norm.weight.device

    def routers(self) -> list[Router]:
        """The routers in the order of `Output.routing`."""
        blocks = [*self.layers, *(module.block for module in self.mtp)]
        return [block.mlp.gate for block in blocks if isinstance(block.mlp, MoE)]

    def update_balance(self, load_LE: list[Tensor], speed: float) -> None:
        """Loss-free balance: move every router's bias by `speed`, given loads summed over the whole optimizer step.

        The MTP module's router comes last and has no load when the step left the module out. Routers without a bias
        (V2, Qwen3) are left alone: there the balance loss alone does the work.
        """
        for router, load_E in zip(self.routers(), load_LE, strict=False):
            if router.e_score_correction_bias is not None:
                update_bias(router.e_score_correction_bias, load_E, speed)


def with_scores(model: Decoder, n_labels: int, seed: int) -> Decoder:
    """A copy of the model that scores tokens by a new head, drawn from `seed`, instead of predicting them."""
    shape: dict[str, Any] = {"num_labels": n_labels, "tie_word_embeddings": False}
    if model.config.n_mtp:
        shape["num_nextn_predict_layers"] = 0
    scoring = Decoder(model.config.model_copy(update=shape), seed)
    state = model.state_dict()
    scoring.load_state_dict({name: state.get(name, own) for name, own in scoring.state_dict().items()})
    return scoring


def sequence_ids(positions_BT: Tensor) -> Tensor:
    """Number of each token's sequence within its row; samples of one prompt, and it, count apart (`branches_of`)."""
    return branches_of(positions_BT)[0].cumsum(dim=1) - 1


def balance(output: Output, positions_BT: Tensor, real_BT: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Sequence-wise balance loss averaged over MoE layers (before alpha), and every layer's expert load.

    `real_BT` is False on padding. The MTP layer sees one position fewer than the main layers.
    """
    losses, loads = [], []
    for routing in output.routing:
        is_main = len(routing.scores_NE) == positions_BT.numel()
        positions, real = positions_BT, real_BT
        if not is_main:  # a token takes part when its successor belongs to the same sequence
            positions, real = positions_BT[:, :-1], real_BT[:, 1:] & (positions_BT[:, 1:] > 0)
        in_row = sequence_ids(positions)
        first_of_row = F.pad((in_row[:, -1] + 1).cumsum(0), (1, 0))[:-1]
        sequence = torch.where(real, in_row + first_of_row[:, None], -1)
        n_sequences = int(first_of_row[-1] + in_row[-1, -1] + 1)
        losses.append(sequence_balance_loss(routing, sequence.flatten(), n_sequences))
        loads.append(expert_load(routing, real.flatten()))
    return torch.stack(losses).mean(), loads
