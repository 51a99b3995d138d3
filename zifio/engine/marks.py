"""The tokens about pictures, and where patches stand in a prompt; without torch.

Try it alone: `pytest tests/engine/test_picture_prompts.py`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zifio.config import ConfigError
from zifio.data.template import PICTURE_BEGIN, PICTURE_END, ChatTokenizer
from zifio.models.janus_config import unconditioned
from zifio.pictures import PICTURE


@dataclass(frozen=True)
class Marks:
    """The tokens about pictures."""

    picture: int
    begin: int
    end: int
    bos: int
    pad: int

    @classmethod
    def of(cls, tokenizer: ChatTokenizer) -> Marks:
        """Those of a tokenizer. Raises ConfigError where it has none."""
        picture, begin, end = map(tokenizer.tokenizer.token_to_id, (PICTURE, PICTURE_BEGIN, PICTURE_END))
        if picture is None or begin is None or end is None:
            raise ConfigError(
                f"tokenizer: wanted one with {PICTURE}, {PICTURE_BEGIN} and {PICTURE_END}, came one without. Set "
                "tokenizer.pictures = true where it is trained."
            )
        return cls(picture, begin, end, tokenizer.bos_id, tokenizer.pad_id)

    def blank(self, prompt: Sequence[int]) -> list[int]:
        """The prompt of a drawing that asks for nothing."""
        return unconditioned(list(prompt), (self.bos, self.begin), self.pad)


def with_patches(tokens: Sequence[int], marks: Marks, first: int, n_patches: int) -> list[int]:
    """The tokens with patches, numbered on from `first`, in the place of each picture's mark."""
    out: list[int] = []
    for token in tokens:
        if token == marks.picture:
            out += [marks.begin, *range(first, first + n_patches), marks.end]
            first += n_patches
        else:
            out.append(token)
    return out
