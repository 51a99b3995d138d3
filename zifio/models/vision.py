"""What pictures are seen with: a vision transformer of SigLIP's shape (arXiv:2303.15343), and an adaptor behind it.

A picture is cut into patches, each of which sees all others; all of them, normed, are handed on (Janus, section 3.2).
Module names are those of the Hugging Face checkpoints.

Try it alone: `pytest tests/models/test_janus.py -k vision`
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from zifio.models.janus_config import VisionConfig
from zifio.models.layers import Linear as _Linear

Linear = partial(_Linear, bias=True)


class Adaptor(nn.Module):
    """Linear layers with GELU between them, from the width of a picture's or a drawing's tokens to the decoder's."""

    def __init__(self, d_in: int, d_out: int, depth: int) -> None:
        super().__init__()
        self.fc1 = Linear(d_in, d_out)
        self.hidden_layers = nn.ModuleList(Linear(d_out, d_out) for _ in range(depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_out] of [..., d_in]."""
        x = self.fc1(x)
        for layer in self.hidden_layers:
            x = layer(F.gelu(x))
        return x


class _Embeddings(nn.Module):
    """Patches as vectors, with a learned one for each place."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d, side = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(3, d, side, stride=side)
        self.position_embedding = nn.Embedding(config.num_image_tokens, d)

    def forward(self, pixels_BUYX: Tensor) -> Tensor:
        return self.patch_embedding(pixels_BUYX).flatten(2).transpose(1, 2) + self.position_embedding.weight


class _Attention(nn.Module):
    """Every patch sees every other."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d, self.n_heads = config.hidden_size, config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj = Linear(d, d), Linear(d, d), Linear(d, d)
        self.projection_layer = Linear(d, d)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = (
            proj(x_BTD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.projection_layer(F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d_hidden = int(config.hidden_size * config.mlp_ratio)
        self.fc1, self.fc2 = Linear(config.hidden_size, d_hidden), Linear(d_hidden, config.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BTD)))


class _Layer(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = _Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = _FeedForward(config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.layer_norm1(x_BTD))
        return x_BTD + self.mlp(self.layer_norm2(x_BTD))


class _Encoder(nn.Module):
    """The layers, under the name that the checkpoints have for them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x_BTD: Tensor) -> Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return x_BTD


class Vision(nn.Module):
    """The encoder."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels_BUYX: Tensor) -> Tensor:
        """A vector for each patch, row by row, [B, T, D]; pixels go from -1 to 1."""
        return self.post_layernorm(self.encoder(self.embeddings(pixels_BUYX)))
