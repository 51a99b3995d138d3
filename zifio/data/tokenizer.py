"""Tokenizers of two kinds, characters and byte-level BPE, trained here and kept as Hugging Face folders.

Digits always stand alone, so that a number is spelled and never looked up (as in DeepSeek LLM, arXiv
2401.02954, section 2.1). The special tokens take the first ids in either kind.

Try it alone: `pytest tests/data/test_tokenizer.py`
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from zifio.config import Config, ConfigError
from zifio.data.calls import CALL_BEGIN, TOOL_TOKENS
from zifio.data.gguf import read_gguf_tokenizer
from zifio.data.template import PICTURE_TOKENS, SPECIAL_TOKENS, TAGS, TOOL_TEMPLATE, ChatTokenizer
from zifio.gguf import is_gguf

_BYTES = 256
_FEWEST = len(SPECIAL_TOKENS) + _BYTES


class TokenizerConfig(Config):
    """How text becomes tokens."""

    kind: Literal["characters", "bpe"] = "characters"
    """characters: one token for each character of a small alphabet; bpe: byte-level pairs, for any text."""
    alphabet: str = ""
    """For characters: the characters there are. Empty: those of the training texts."""
    vocab_size: int = Field(default=512, ge=_FEWEST)
    """For bpe: at most this many tokens, special tokens and the 256 bytes among them."""
    text: str = ""
    """A text or JSONL file to train on. Empty: what the recipe's task says."""
    pictures: bool = False
    """Whether there are tokens for pictures too, which a model that reads and draws needs."""


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str], with_tools: bool = False) -> Tokenizer:
    """The tokenizer of this config, trained on `texts` (special tokens in them do not count).

    Tokens for tool calls and for pictures come behind the other special ones, and only when asked for.
    """
    special = SPECIAL_TOKENS + (TOOL_TOKENS if with_tools else ()) + (PICTURE_TOKENS if config.pictures else ())
    return _characters(config, texts, special) if config.kind == "characters" else _bpe(config, texts, special)


def save_tokenizer(tokenizer: Tokenizer | ChatTokenizer, folder: str | Path) -> None:
    """Write tokenizer.json, its configs and chat_template.jinja: a folder that AutoTokenizer opens."""
    chat = tokenizer if isinstance(tokenizer, ChatTokenizer) else chat_tokenizer(tokenizer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marks = {"bos_token": chat.bos_token, "eos_token": chat.eos_token, "pad_token": chat.pad_token}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **marks,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,  # no limit, as published folders spell it
    }
    chat.tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", marks)):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat.template, encoding="utf-8")


def chat_tokenizer(tokenizer: Tokenizer) -> ChatTokenizer:
    """A tokenizer trained here with the template that fits its special tokens."""
    has_tools = tokenizer.token_to_id(CALL_BEGIN) is not None
    return ChatTokenizer(tokenizer, TOOL_TEMPLATE) if has_tools else ChatTokenizer(tokenizer)


def load_tokenizer(folder: str | Path) -> ChatTokenizer:
    """The tokenizer and chat template of a Hugging Face folder, ours or published, or of a GGUF file.

    Raises ConfigError."""
    if is_gguf(folder):
        return read_gguf_tokenizer(folder)
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder}: wanted a folder with tokenizer.json, came none. Name such a folder, or a GGUF file."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ConfigError(
            f"{path}: wanted a tokenizer, came a file that does not open: {error}. Save it anew."
        ) from None
    settings = _read_json(folder / "tokenizer_config.json")
    marks = {name: _token(settings.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
    if not marks["eos_token"]:
        raise ConfigError(f"{folder}/tokenizer_config.json: eos_token: wanted the end token, came none. Add it.")
    marks["bos_token"] = marks["bos_token"] or marks["eos_token"]
    marks["pad_token"] = marks["pad_token"] or marks["eos_token"]
    return ChatTokenizer(tokenizer, _template(folder, settings), **marks)


def _characters(config: TokenizerConfig, texts: Iterable[str], special: Sequence[str]) -> Tokenizer:
    """A vocabulary of the special tokens and, sorted, the alphabet. What is not in it is an error, never
    unknown."""
    alphabet = set(config.alphabet) if config.alphabet else set().union(*_plain(texts, special))
    if not alphabet:
        raise ConfigError("tokenizer.alphabet: wanted characters or texts that have some, came neither. Give either.")
    vocabulary = {token: id for id, token in enumerate((*special, *sorted(alphabet)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # not in it: the library raises
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?m)."), "isolated")  # Oniguruma's m: dot takes newlines
    tokenizer.decoder = decoders.Fuse()
    return _with_special_tokens(tokenizer, special)


def _plain(texts: Iterable[str], special: Sequence[str]) -> Iterator[str]:
    """The texts between special tokens."""
    mark = re.compile("|".join(map(re.escape, special)))
    return (piece for text in texts for piece in mark.split(text) if piece)


def _bpe(config: TokenizerConfig, texts: Iterable[str], special: Sequence[str]) -> Tokenizer:
    """Byte-level BPE: every text has tokens, and every byte is one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=_added_tokens(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_plain(texts, special), trainer)
    return _with_special_tokens(tokenizer, special)


def _added_tokens(special: Sequence[str]) -> list[AddedToken]:
    """Marks of turns are special; the tags are plain added tokens, kept by every decoder, as in
    DeepSeek-R1."""
    return [AddedToken(token, special=token not in TAGS, normalized=False) for token in special]


def _with_special_tokens(tokenizer: Tokenizer, special: Sequence[str]) -> Tokenizer:
    for token in _added_tokens(special):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def _template(folder: Path, settings: dict[str, Any]) -> str:
    """The chat template, in any of the three places where published folders keep it."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):  # named templates
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    if not isinstance(found, str):
        raise ConfigError(f"{folder}: wanted a chat template, came none. Put a chat_template.jinja into the folder.")
    return found


def _token(value: Any) -> str:
    """A special token as configs spell it: its text, or a table with the text in it."""
    return str(value["content"]) if isinstance(value, dict) else value or ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: wanted a file, came none. Copy the whole folder of the model.") from None
    except ValueError as error:
        raise ConfigError(f"{path}: wanted JSON, came: {error}. Save it anew.") from None
