"""Janus: one decoder that reads pictures and draws them (arXiv:2410.13848; Janus-Pro: arXiv:2501.17811).

The two ways are apart, and meet in the decoder alone. Pictures that are read pass a vision encoder and an adaptor.
Drawings are the codes of a tokenizer of pictures (`models/vq.py`), read by an embedding and an adaptor of their own and
predicted by a head of their own.

All three kinds of tokens are numbers on one axis, with the vocabulary V, codes Z and T patches of a picture:

    [0, V)            text
    [V, V + Z)        code z of a drawing is V + z
    V + Z + n T + t   patch t of picture n

so packing, caches, scheduling and batches need to know nothing of pictures. In training n counts the pictures of a
pass; the pictures that replies are about have numbers of their own (`look`), so that no two prompts with different
pictures have equal tokens.

Try it: `pytest tests/models/test_janus.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zifio.kernels import operators as kernels
from zifio.models.attention import Cache
from zifio.models.decoder import Decoder, Output
from zifio.models.janus_config import JanusConfig
from zifio.models.layers import Linear as PlainLinear
from zifio.models.layers import version_of
from zifio.models.vision import Adaptor, Linear, Vision
from zifio.models.vq import Vq


@dataclass(eq=False)
class Picture:
    """A picture that was looked at. The model knows it as long as somebody holds it."""

    features_TD: Tensor
    """What the decoder reads of its patches."""
    tokens: list[int]
    """What stands for them in a prompt."""


class ImageHead(nn.Module):
    """Logits over the codes, from the decoder's hidden states."""

    def __init__(self, d_model: int, d_hidden: int, n_codes: int) -> None:
        super().__init__()
        self.proj_out, self.vision_head = Linear(d_model, d_hidden), Linear(d_hidden, n_codes)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., Z] of [..., D]."""
        return self.vision_head(self.inside(hidden))

    def inside(self, hidden: Tensor) -> Tensor:
        """The hidden layer, [..., F]."""
        return F.gelu(self.proj_out(hidden))

    def last(self) -> tuple[Tensor | None, Tensor | None]:
        """The last layer's weight as it is packed, None where it is not or has adapters, and its bias."""
        head = self.vision_head
        return (head.current, head.bias) if type(head) is PlainLinear else (None, None)


class Janus(Decoder):
    """The decoder with both ways; wherever a decoder goes, this one does."""

    def __init__(self, shape: JanusConfig, seed: int | None = None) -> None:
        """Initialise from the named streams of `seed`, or leave the weights to be loaded when it is None."""
        super().__init__(shape.text_config)
        self.shape = shape
        vision, vq, d = shape.vision_config, shape.vq_config, shape.text_config.hidden_size
        self.vision_model = Vision(vision)
        self.aligner = Adaptor(vision.hidden_size, d, vision.depth)
        self.vqmodel = Vq(vq)
        self.generation_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
        self.generation_aligner = Adaptor(vq.embed_dim, d, vq.num_hidden_layers)
        self.generation_head = ImageHead(d, vq.projection_dim, vq.num_embeddings)
        self.first_code = shape.text_config.vocab_size or 0
        """Where codes begin on the axis of tokens: V."""
        self.first_patch = self.first_code + vq.num_embeddings
        """Where patches begin: V + Z."""
        self._pictures = WeakValueDictionary[int, Picture]()
        self._n_pictures = 0
        self._pass_XD: Tensor | None = None  # features of all patches of the pictures of a training pass
        self._drawn_ZD: Tensor | None = None  # what the decoder reads of every code, as long as the weights are those
        self._drawn_version, self._read_with = -1, list[Tensor]()
        if seed is not None:
            self._initialise(seed)
            self.vqmodel.initialise(seed)

    @property
    def n_tokens(self) -> int:
        """Tokens that may come: those of the pictures that are known lie behind the codes."""
        return self.first_patch + self._n_pictures * self.shape.vision_config.num_image_tokens

    def forward(
        self,
        tokens_BT: Int[Tensor, "B T"],
        positions_BT: Int[Tensor, "B T"],
        cache: Cache | None = None,
        *,
        pixels_MUYX: Tensor | None = None,
        **others: Any,
    ) -> Output:
        """As `Decoder.forward`; `pixels_MUYX` are the pictures of this pass, numbered from 0 by the tokens."""
        if pixels_MUYX is None:
            return super().forward(tokens_BT, positions_BT, cache, **others)
        self._pass_XD = self.features(pixels_MUYX).flatten(0, 1)
        try:
            return super().forward(tokens_BT, positions_BT, cache, **others)
        finally:
            self._pass_XD = None

    def features(self, pixels_MUYX: Float[Tensor, "M U Y X"]) -> Float[Tensor, "M T D"]:
        """What the decoder reads of pictures, whose pixels go from -1 to 1."""
        return self.aligner(self.vision_model(pixels_MUYX))

    @torch.no_grad()
    def look(self, pixels_MUYX: Float[Tensor, "M U Y X"]) -> list[Picture]:
        """Pictures for prompts. Their features stay as they are when weights change: look again then."""
        pictures = []
        for features_TD in self.features(pixels_MUYX.to(self.device)):
            first = self.n_tokens
            pictures.append(Picture(features_TD, list(range(first, first + len(features_TD)))))
            self._pictures[self._n_pictures] = pictures[-1]
            self._n_pictures += 1
        return pictures

    def pictures_of(self, tokens: list[int]) -> tuple[Picture, ...] | None:
        """The pictures that stand among these tokens; None where nobody holds one any more."""
        n_patches = self.shape.vision_config.num_image_tokens
        numbers = dict.fromkeys(
            (token - self.first_patch) // n_patches for token in tokens if token >= self.first_patch
        )
        pictures = [self._pictures.get(number) for number in numbers]
        known = tuple(picture for picture in pictures if picture is not None)
        return known if len(known) == len(pictures) else None

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """What the decoder reads of tokens of all three kinds."""
        if tokens_BT.is_cuda and torch.cuda.is_current_stream_capturing():  # which steps of text alone are
            return self.embed_tokens(tokens_BT)
        lowest, highest = (int(one) for one in tokens_BT.aminmax())
        if highest < self.first_code:
            return self.embed_tokens(tokens_BT)
        if lowest >= self.first_code and highest < self.first_patch:
            return self._drawn(tokens_BT - self.first_code)
        is_text_BT, is_patch_BT = tokens_BT < self.first_code, tokens_BT >= self.first_patch
        x_BTD = self.embed_tokens(tokens_BT.where(is_text_BT, 0))
        is_code_BT = ~(is_text_BT | is_patch_BT)
        if bool(is_code_BT.any()):
            drawn = self._drawn(tokens_BT[is_code_BT] - self.first_code)
            x_BTD = x_BTD.masked_scatter(is_code_BT[..., None], drawn.to(x_BTD.dtype))
        if highest >= self.first_patch:
            seen = self._patches(tokens_BT[is_patch_BT] - self.first_patch)
            x_BTD = x_BTD.masked_scatter(is_patch_BT[..., None], seen.to(x_BTD.dtype))
        return x_BTD

    def _drawn(self, code: Tensor) -> Tensor:
        """What the decoder reads of codes, [..., D] of [...]: with packed weights rows of a table of all codes, which
        is made when the first one is read, and anew when the weights have changed."""
        if self._packed is None or torch.is_grad_enabled() or not kernels.native(self._packed):
            return self._read(code)
        return F.embedding(code, self.tables()[1])

    def tables(self) -> tuple[Tensor, Tensor]:
        """As `Decoder.tables`."""
        version = version_of(self._read_with)
        if self._drawn_ZD is None or self._drawn_version != version:
            every_Z = torch.arange(self.generation_embeddings.num_embeddings, device=self.device)
            self._drawn_ZD, self._drawn_version = self._read(every_Z), version
        return self.embed_tokens.weight, self._drawn_ZD

    def _read(self, code: Tensor) -> Tensor:
        return self.generation_aligner(self.generation_embeddings(code))

    def pack(self, dtype: torch.dtype = torch.float32, *, instead: bool = False) -> None:
        """As `Decoder.pack`. In fp32 on a CPU codes are then read from a table, which costs Z times D numbers."""
        super().pack(dtype, instead=instead)
        read_with = [self.generation_embeddings.weight, *self.generation_aligner.parameters()]
        if list(map(id, read_with)) != list(map(id, self._read_with)):  # adapters came or went
            self._read_with, self._drawn_ZD = read_with, None

    def unpack(self) -> None:
        """As `Decoder.unpack`."""
        super().unpack()
        self._drawn_ZD = None

    def _patches(self, patch_N: Tensor) -> Tensor:
        """Features of patches, [N, D]."""
        if self._pass_XD is not None:
            return self._pass_XD[patch_N]
        number_N, place_N = patch_N // self.shape.vision_config.num_image_tokens, patch_N
        numbers, which_N = number_N.unique(return_inverse=True)
        known = [self._pictures.get(number) for number in numbers.tolist()]
        assert None not in known, "whoever asks about a picture holds it"
        features_MTD = torch.stack([picture.features_TD for picture in known if picture is not None])
        return features_MTD[which_N, place_N % features_MTD.shape[1]]

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities over the codes, from hidden states of any leading shape."""
        return self.generation_head(hidden)

    @torch.no_grad()
    def paint(self, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B U Y X"]:
        """Pixels, cut to -1 .. 1, of drawings as they stand on the axis of tokens."""
        return self.vqmodel.decode(tokens_BT - self.first_code).clamp(-1, 1)

    @torch.no_grad()
    def drawing(self, pixels_BUYX: Float[Tensor, "B U Y X"]) -> Int[Tensor, "B T"]:
        """The tokens that draw pictures, whose pixels go from -1 to 1 and which have a drawing's size."""
        return self.vqmodel.encode(pixels_BUYX) + self.first_code


def guided(conditioned: Tensor, unconditioned: Tensor, scale: Tensor | float) -> Tensor:
    """Logits under classifier-free guidance (arXiv:2207.12598, as Janus has it, section 3.3): u + scale (c - u)."""
    return unconditioned + scale * (conditioned - unconditioned)
