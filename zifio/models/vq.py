"""What drawings are made of: a tokenizer of pictures, as LlamaGen's (arXiv:2406.06525, after VQGAN, arXiv:2012.09841).

A convolutional encoder shrinks a picture to a grid of latents; each becomes the code that it is nearest to, and a
decoder paints the grid of codes. Latents z and codes e are L2-normalised before they are compared and decoded, so the
nearest code is that of the largest cosine (ViT-VQGAN, arXiv:2110.04627, section 3.2):

    id = argmin_k || z / |z| - e_k / |e_k| ||
    codebook loss = || sg(z) - e ||^2,   commitment loss = || z - sg(e) ||^2, weighted by beta   (VQ-VAE, eq. 3)

transformers' own `encode` normalises neither and puts beta on the codebook loss; its `decode` normalises.

Try it alone: `pytest tests/models/test_vq.py`
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zifio.models.janus_config import VqConfig
from zifio.seed import stream_seed

_EPS = 1e-6


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, _EPS)


class _Residual(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), x by a 1x1 convolution where the channels change."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(d_in), nn.Conv2d(d_in, d_out, 3, padding=1)
        self.norm2, self.conv2 = _norm(d_out), nn.Conv2d(d_out, d_out, 3, padding=1)
        if d_in != d_out:
            self.nin_shortcut = nn.Conv2d(d_in, d_out, 1)

    def forward(self, x_BUYX: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x_BUYX)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        return (self.nin_shortcut(x_BUYX) if hasattr(self, "nin_shortcut") else x_BUYX) + inner


class _Attention(nn.Module):
    """Every place of the grid sees every other, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x_BUYX: Tensor) -> Tensor:
        normed = self.norm(x_BUYX)
        q_BTU, k_BTU, v_BTU = (conv(normed).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        out_BTU = F.scaled_dot_product_attention(q_BTU, k_BTU, v_BTU)
        return x_BUYX + self.proj_out(out_BTU.transpose(1, 2).unflatten(2, x_BUYX.shape[2:]))


class _Halved(nn.Module):
    """Half the side; the padding is below and to the right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BUYX: Tensor) -> Tensor:
        return self.conv(F.pad(x_BUYX, (0, 1, 0, 1)))


class _Doubled(nn.Module):
    """Twice the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BUYX: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BUYX, scale_factor=2.0))


class _Level(nn.Module):
    """The blocks of one resolution, with attention behind each at the lowest, and the way to the next one."""

    def __init__(self, d_in: int, d_out: int, n_blocks: int, attends: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Residual(d_in if nth == 0 else d_out, d_out) for nth in range(n_blocks))
        self.attn = nn.ModuleList(_Attention(d_out) for _ in range(n_blocks if attends else 0))

    def forward(self, x_BUYX: Tensor) -> Tensor:
        for nth, block in enumerate(self.block):
            x_BUYX = block(x_BUYX)
            if len(self.attn):
                x_BUYX = self.attn[nth](x_BUYX)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x_BUYX = getattr(self, name)(x_BUYX)
        return x_BUYX


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1 = _Residual(channels, channels), _Attention(channels)
        self.block_2 = _Residual(channels, channels)

    def forward(self, x_BUYX: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BUYX)))


class _Encoder(nn.Module):
    """Pixels to latents, [B, latent_channels, side, side]."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        widths = [config.base_channels * times for times in config.channel_multiplier]
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList()
        for nth, width in enumerate(widths):
            is_last = nth == len(widths) - 1
            before = widths[nth - 1] if nth else config.base_channels
            level = _Level(before, width, config.num_res_blocks, attends=is_last)
            if not is_last:
                level.downsample = _Halved(width)
            self.down.append(level)
        self.mid = _Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, pixels_BUYX: Tensor) -> Tensor:
        x_BUYX = self.conv_in(pixels_BUYX)
        for level in self.down:
            x_BUYX = level(x_BUYX)
        return self.conv_out(F.silu(self.norm_out(self.mid(x_BUYX))))


class _Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        widths = [config.base_channels * times for times in config.channel_multiplier]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1])
        self.up = nn.ModuleList()
        before = widths[-1]
        for nth, width in reversed(list(enumerate(widths))):
            level = _Level(before, width, config.num_res_blocks + 1, attends=nth == len(widths) - 1)
            if nth:
                level.upsample = _Doubled(width)
            self.up.append(level)
            before = width
        self.norm_out = _norm(before)
        self.conv_out = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, latent_BUYX: Tensor) -> Tensor:
        x_BUYX = self.mid(self.conv_in(latent_BUYX))
        for level in self.up:
            x_BUYX = level(x_BUYX)
        return self.conv_out(F.silu(self.norm_out(x_BUYX)))


class _Codebook(nn.Module):
    def __init__(self, n_codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_codes, width)

    def codes(self) -> Tensor:
        """All codes, L2-normalised, [Z, U]."""
        return F.normalize(self.embedding.weight, dim=-1)


class Coded(NamedTuple):
    """A batch of pictures through the codebook; latents and codes are of length 1."""

    ids_BT: Tensor
    latent_BTU: Tensor
    code_BTU: Tensor
    """The nearest code of each latent; its gradient goes to the codebook."""


class Vq(nn.Module):
    """The tokenizer of pictures; module names are those of the Hugging Face checkpoints."""

    def __init__(self, config: VqConfig, seed: int | None = None) -> None:
        """Initialise from the named stream of `seed`, or leave the weights to be loaded when it is None."""
        super().__init__()
        self.config = config
        self.encoder, self.decoder = _Encoder(config), _Decoder(config)
        self.quantize = _Codebook(config.num_embeddings, config.embed_dim)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        if seed is not None:
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Convolutions evenly from +- 1 / sqrt(inputs), as torch does, codes evenly over the sphere; biases are 0."""
        generator = torch.Generator().manual_seed(stream_seed(seed, "models/vq"))
        for name, parameter in sorted(self.named_parameters()):
            if name == "quantize.embedding.weight":
                parameter.copy_(F.normalize(torch.randn(parameter.shape, generator=generator), dim=-1))
            elif parameter.ndim > 1:
                bound = parameter[0].numel() ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
            elif name.endswith(".bias"):
                parameter.zero_()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.quantize.embedding.weight.device

    def latents(self, pixels_BUYX: Tensor) -> Tensor:
        """What the encoder makes of pixels from -1 to 1, L2-normalised, row by row, [B, T, U]."""
        return F.normalize(self.quant_conv(self.encoder(pixels_BUYX)).flatten(2).transpose(1, 2), dim=-1)

    def code(self, pixels_BUYX: Tensor) -> Coded:
        """Latents and their nearest codes."""
        latent_BTU, code_ZU = self.latents(pixels_BUYX), self.quantize.codes()
        ids_BT = (latent_BTU.detach() @ code_ZU.detach().T).argmax(dim=-1)
        return Coded(ids_BT, latent_BTU, code_ZU[ids_BT])

    @torch.no_grad()
    def encode(self, pixels_BUYX: Tensor) -> Tensor:
        """The codes' numbers, row by row, [B, T]; pixels go from -1 to 1."""
        return self.code(pixels_BUYX).ids_BT

    def decode(self, ids_BT: Tensor) -> Tensor:
        """Pixels, from about -1 to 1, [B, 3, side, side], of as many codes as a drawing has."""
        return self.paint(self.quantize.codes()[ids_BT])

    def paint(self, code_BTU: Tensor) -> Tensor:
        """Pixels of codes, or of latents in their place."""
        side = self.config.num_patches
        return self.decoder(self.post_quant_conv(code_BTU.transpose(1, 2).unflatten(2, (side, side))))

    def forward(self, pixels_BUYX: Tensor, source_BT: Tensor | None = None) -> tuple[Tensor, Coded]:
        """Pixels painted from the codes, whose gradient goes straight through to the latents; and the codes.

        `source_BT` says of which picture of the batch each code that is painted is; by default of its own.
        """
        coded = self.code(pixels_BUYX)
        through_BTU = coded.latent_BTU + (coded.code_BTU - coded.latent_BTU).detach()
        return self.paint(through_BTU if source_BT is None else joined(through_BTU, source_BT)), coded


def joined(value_BTU: Tensor, source_BT: Tensor) -> Tensor:
    """Of every place of the grid, what picture `source_BT` has there."""
    return value_BTU[source_BT, torch.arange(value_BTU.shape[1], device=value_BTU.device)]


def joined_pixels(pixels_BUYX: Tensor, source_BT: Tensor) -> Tensor:
    """Pictures put together in the same way from patches, which fill a square grid."""
    side = math.isqrt(source_BT.shape[1])
    patches_BUT = F.pixel_unshuffle(pixels_BUYX, pixels_BUYX.shape[-1] // side).flatten(2)
    patches_BTU = joined(patches_BUT.transpose(1, 2), source_BT)
    return F.pixel_shuffle(patches_BTU.transpose(1, 2).unflatten(2, (side, side)), pixels_BUYX.shape[-1] // side)
