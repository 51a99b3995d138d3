"""How the layers of a decoder mix tokens, as data: what a config says of each layer, and layers read.

    full_attention      every token before
    sliding_attention   the last `window` tokens (Mistral, arXiv:2310.06825)
    indexed_attention   the tokens that an indexer picks (DeepSeek sparse attention, arXiv:2512.02556)
    linear_attention    a memory of fixed size, by the gated delta rule (arXiv:2412.06464)

The names are those of `layer_types` in Hugging Face's config.json. This module never imports torch.

Try it: `python -c "from zifio.models.mixers import repeated; print(repeated(8))"`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mixer = Literal["full_attention", "linear_attention", "sliding_attention", "indexed_attention"]
"""How a layer mixes tokens."""


@dataclass(frozen=True)
class LinearShape:
    """What a layer of linear attention reads of its family."""

    n_key_heads: int
    """Heads J of queries and keys."""
    n_heads: int
    """Heads H of values, each with a memory; J divides H."""
    d_key: int
    """Width K of a query and a key."""
    d_value: int
    """Width X of a value."""
    d_conv: int
    """Tokens that the short convolution sees; 0 for none."""
    strongest: float = 1.0
    """Upper bound of the strength of a correction; 2 allows negative eigenvalues (arXiv:2411.12537)."""

    @property
    def d_mixed(self) -> int:
        """Numbers of queries, keys and values of a token, which pass the convolution."""
        return 2 * self.n_key_heads * self.d_key + self.n_heads * self.d_value

    @property
    def memory(self) -> int:
        """Numbers that a sequence leaves in a layer, however long: memories, and the convolution's last tokens."""
        return self.n_heads * self.d_key * self.d_value + max(self.d_conv - 1, 0) * self.d_mixed


@dataclass(frozen=True)
class IndexerShape:
    """What the indexer of sparse attention reads of its family."""

    n_heads: int
    """Heads of its queries; they share one key."""
    d_head: int
    """Width of its queries and keys."""
    d_rotary: int
    """Leading part of the width that is rotated."""
    d_query: int
    """Width of what its queries are made from: MLA's query latent, or the model's."""
    n_kept: int
    """Tokens that a query attends to, at most."""


def repeated(
    n_layers: int, first: Mixer = "linear_attention", last: Mixer = "full_attention", every: int = 4
) -> list[Mixer]:
    """Layers of one kind, and every so many one of another: 3 to 1 as it stands, as Qwen3-Next has it."""
    return [first if (layer + 1) % every else last for layer in range(n_layers)]
