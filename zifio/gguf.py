"""GGUF files: named fields and a list of tensors, the form in which llama.cpp's models are published.

Read here are the fields and where the tensors lie, not the tensors: `models/gguf.py` makes weights of them and
`data/gguf.py` a tokenizer. Little-endian files of versions 2 and 3 (ggml's docs/gguf.md). Every count is held against
what is left of the file, so a torn one is an error at once.

Try it alone: `python -c "from zifio.gguf import read_gguf_header; print(read_gguf_header('MODEL.gguf').tensors)"`
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zifio.config import ConfigError

# The types of a field by number; 8 is a string and 9 an array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_AXES = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies in the file."""

    shape: tuple[int, ...]
    """The outermost axis first, as torch has it (the file says it the other way round)."""
    kind: int
    """Number of its quantization in ggml's table."""
    offset: int
    """Bytes from the beginning of the file."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All that a GGUF file says before its weights."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def need(self, key: str) -> Any:
        """The value of a field. Raises ConfigError when the file lacks it."""
        if key not in self.fields:
            raise ConfigError(f"{self.path}: {key}: wanted this field, came none. Convert or download the file anew.")
        return self.fields[key]


def is_gguf(path: str | Path) -> bool:
    """Whether this names a GGUF file; any other model is a folder."""
    return Path(path).suffix == ".gguf" and not Path(path).is_dir()


def read_gguf_header(path: str | Path) -> GgufHeader:
    """Fields and tensor list of a GGUF file.

    Raises ConfigError when there is no such file, when it is torn, and for versions that are not read here.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Cursor(data).header(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Check the path.") from None
    except (
        struct.error,
        ValueError,
        ArithmeticError,
    ) as error:  # ValueError: no bytes at all, or text that is not UTF-8
        raise ConfigError(f"{path}: wanted a GGUF file, came a torn one ({error}). Download it again.") from None
    if header.fields.get("split.count", 1) > 1:
        raise ConfigError(
            f"{path}: split.count = {header.fields['split.count']}: wanted the model in one file, came a part of it. "
            "Join the parts: llama-gguf-split --merge FIRST.gguf WHOLE.gguf."
        )
    return header


class _Cursor:
    """Reads one value after the other; past the end it raises struct.error."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def header(self, path: Path) -> GgufHeader:
        if self.data[:4] != b"GGUF":
            raise ConfigError(f"{path}: wanted a GGUF file, came one that begins with {self.data[:4]!r}.")
        self.at = 4
        version = self.number("I")
        if version not in (2, 3):
            raise ConfigError(
                f"{path}: GGUF version: wanted 2 or 3 (little-endian), came {version}. Convert it anew with llama.cpp."
            )
        n_tensors, n_fields = self.number("Q"), self.number("Q")
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            key = self.string()
            fields[key] = self.value(self.number("I"))
        listed: dict[str, GgufTensor] = {}
        for _ in range(n_tensors):
            name, n_axes = self.string(), self.number("I")
            if n_axes > _MOST_AXES:
                raise ValueError(f"{n_axes} axes of {name!r}")
            shape = self.numbers("Q", n_axes)[::-1]
            listed[name] = GgufTensor(tuple(shape), self.number("I"), self.number("Q"))
        align = fields.get("general.alignment", 32)
        begin = -(-self.at // align) * align
        tensors = {name: GgufTensor(t.shape, t.kind, begin + t.offset) for name, t in listed.items()}
        return GgufHeader(path, fields, tensors)

    def numbers(self, form: str, n: int) -> list[Any]:
        values = struct.unpack_from(f"<{n}{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{n}{form}")
        return list(values)

    def number(self, form: str) -> Any:
        return self.numbers(form, 1)[0]

    def string(self) -> str:
        length = self.number("Q")
        if length > len(self.data) - self.at:
            raise ValueError(f"a text of {length} bytes")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            kind, n = self.number("I"), self.number("Q")
            if kind == _STRING:
                return [self.string() for _ in range(n)]
            return self.numbers(_form(kind), n)
        return self.number(_form(kind))


def _form(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"a field of type {kind}")
    return _NUMBERS[kind]
