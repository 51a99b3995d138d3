"""Tokenizers out of GGUF files: byte-level BPE from a vocabulary, merges and the name of a pre-tokenizer.

A GGUF file names how text is cut before the merges, and does not say it; the patterns here are those of the published
tokenizers. llama.cpp applies them one after the other to what the one before left in a piece, and so does a
`Sequence`.

Try it alone: `pytest tests/data/test_gguf_tokenizer.py`
"""

from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from zifio.config import ConfigError
from zifio.data.template import ChatTokenizer
from zifio.gguf import GgufHeader, read_gguf_header

# What a token is, by number, in `tokenizer.ggml.token_type`.
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_MERGES = "tokenizer.ggml.merges"

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Cased letters as DeepSeek LLM lists them, by code point: of a later Unicode there are more.
_CASED = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}"
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}"
    r"\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}"
    r"\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}"
    r"\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}"
    r"\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}"
    r"\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}"
    r"\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}"
    r"\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}"
    r"\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}"
    r"\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}"
    r"\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)


class _Cut(NamedTuple):
    """How a text is cut into the pieces that the merges work on."""

    patterns: tuple[str, ...] = ()
    """One after the other: what matches is a piece, and what lies between."""
    then_gpt2: bool = False
    """Whether GPT-2's own pattern comes last."""
    composed: bool = False
    """Whether letters and their accents are composed first (NFC)."""
    whole: bool = False
    """Whether a piece that is in the vocabulary is taken whole, whatever the merges say."""


_QWEN2 = _Cut((_WORDS % r"\p{N}",), composed=True)
_CUTS = {
    "gpt-2": _Cut(then_gpt2=True),
    "smollm": _Cut((r"\p{N}",), then_gpt2=True),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _Cut((_WORDS % r"\p{N}{1,3}",), whole=True),
    "deepseek-llm": _Cut(
        (
            r"[\r\n]",
            rf"\s?[{_CASED}]+",
            r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
            r"\s+$",
            r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+",
            r"\p{N}",
        )
    ),
    "deepseek-v3": _Cut(
        (
            r"\p{N}{1,3}",
            r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
}


def read_gguf_tokenizer(path: str | Path) -> ChatTokenizer:
    """The tokenizer and chat template of a GGUF file.

    Raises ConfigError for a torn file, a kind of tokenizer that is not supported, and a field that is missing.
    """
    header = read_gguf_header(path)
    template = header.fields.get("tokenizer.chat_template")
    if not isinstance(template, str):
        raise ConfigError(
            f"{path}: tokenizer.chat_template: wanted a chat template, came none. Take the file of a model that was "
            "trained to chat (often called instruct)."
        )
    tokens, eos = header.need("tokenizer.ggml.tokens"), header.need("tokenizer.ggml.eos_token_id")
    ids = {
        "bos_token": header.fields.get("tokenizer.ggml.bos_token_id", eos),
        "eos_token": eos,
        "pad_token": header.fields.get("tokenizer.ggml.padding_token_id", eos),
    }
    if wrong := [name for name, id in ids.items() if not 0 <= id < len(tokens)]:
        raise ConfigError(
            f"{path}: {wrong[0]}: wanted an id below {len(tokens)}, came {ids[wrong[0]]}. Convert it anew."
        )
    return ChatTokenizer(_tokenizer(header), template, **{name: tokens[id] for name, id in ids.items()})


def _tokenizer(header: GgufHeader) -> Tokenizer:
    kind, pre = header.need("tokenizer.ggml.model"), header.need("tokenizer.ggml.pre")
    for key, value, known in (("model", kind, ["gpt2"]), ("pre", pre, list(_CUTS))):
        if value not in known:
            raise ConfigError(
                f"{header.path}: tokenizer.ggml.{key}: wanted one of {', '.join(known)}; came {value!r}. "
                "Take the model's Hugging Face folder."
            )
    tokens, types = header.need("tokenizer.ggml.tokens"), header.need("tokenizer.ggml.token_type")
    if len(tokens) != len(types):
        raise ConfigError(
            f"{header.path}: tokenizer.ggml.token_type: wanted {len(tokens)}, came {len(types)}. Convert it anew."
        )
    cut = _CUTS[pre]
    tokenizer = Tokenizer(_merging(header, tokens, types, cut.whole))
    if cut.composed:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns]
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.then_gpt2)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    added = [(id, kind) for id, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(tokens[id], special=kind == _CONTROL, normalized=False) for id, kind in added])
    return tokenizer


def _merging(header: GgufHeader, tokens: list[str], types: list[int], whole: bool) -> models.BPE:
    """The vocabulary, less the tokens that only pad the embedding, and the merges."""
    vocabulary = {token: id for id, token in enumerate(tokens) if types[id] != _UNUSED}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in header.need(_MERGES))]
    try:
        return models.BPE(vocabulary, merges, ignore_merges=whole)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ConfigError(
            f"{header.path}: {_MERGES}: wanted pairs of tokens, came: {error}. Convert it anew."
        ) from None
