"""Messages to tokens and a loss mask, through the model's own chat template; and tokens back to text.

The special tokens and the layout are those of DeepSeek-V3's tokenizer. Templates run in jinja2's sandbox, set
up as `transformers` does it, so that any published template renders to the same text here.

Try it alone: `pytest tests/data/test_template.py`
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from json import dumps
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from zifio.config import ConfigError

PAD, BOS, EOS = "<｜▁pad▁｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SPECIAL_TOKENS = (PAD, BOS, EOS, USER, ASSISTANT, *TAGS)
"""In the order of their ids, from 0."""

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] == 'system' and loop.first -%}
        {{- message['content'] -}}
    {%- elif message['role'] == 'user' -%}
        {{- '<｜User｜>' + message['content'] -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- '<｜Assistant｜>' + message['content'] + eos_token -}}
    {%- elif message['role'] == 'system' -%}
        {{- raise_exception('a system message must come first') -}}
    {%- else -%}
        {{- raise_exception('the roles are system, user and assistant, not ' + message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<｜Assistant｜>' -}}
{%- endif -%}
"""

Message = dict[str, Any]
"""A role and a content, both text."""


@dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer with its chat template: all that stands between messages and the ids a model sees."""

    tokenizer: Tokenizer
    template: str = CHAT_TEMPLATE
    bos_token: str = BOS
    eos_token: str = EOS
    pad_token: str = PAD

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @cached_property
    def bos_id(self) -> int:
        return self._id(self.bos_token)

    @cached_property
    def eos_id(self) -> int:
        return self._id(self.eos_token)

    @cached_property
    def pad_id(self) -> int:
        return self._id(self.pad_token)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The text of a conversation, ready for the reply when `generation_prompt`. Raises ConfigError."""
        _check(messages)
        marks = {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}
        try:
            return compile_template(self.template).render(
                messages=messages, tools=None, documents=None, add_generation_prompt=generation_prompt, **marks
            )
        except TemplateError as error:
            raise ConfigError(f"chat template: cannot render the messages: {error}. Mend the messages.") from None

    def encode_chat(
        self, messages: Sequence[Message], *, generation_prompt: bool = False
    ) -> tuple[list[int], list[bool]]:
        """Token ids, and for each whether the loss counts it: what the assistant says, with its end token.

        Each side of the boundary between a prompt and a reply is encoded by itself, as when sampling, and the
        mask is made with the tokens. Raises ConfigError where the template cannot be cut there, or hides a
        reply.
        """
        tokens: list[int] = []
        mask: list[bool] = []
        for text, counts in self.segments(messages, generation_prompt=generation_prompt):
            ids = self.encode(text)
            tokens += ids
            mask += [counts] * len(ids)
        return tokens, mask

    def segments(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> list[tuple[str, bool]]:
        """The rendered text cut before and after each reply, with True for the replies.

        A reply ends with the end token. What a template puts behind it (ChatML a newline) belongs to what follows:
        who samples stops at the end token and never draws it.
        """
        _check(messages)
        pieces: list[tuple[str, bool]] = []
        done = whole = ""
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:place], generation_prompt=True)
            whole = self.render(messages[: place + 1])
            reply = whole[len(before) :]
            if not (before.startswith(done) and whole.startswith(before) and message["content"] in reply):
                raise ConfigError(
                    "chat template: wanted a text that grows message by message and keeps every reply whole, "
                    f"came one that rewrites or hides message {place}. Use zifio's own template."
                )
            reply = reply[: reply.rfind(self.eos_token) + len(self.eos_token)] if self.eos_token in reply else reply
            pieces += [(before[len(done) :], False), (reply, True)]
            done = before + reply
        if generation_prompt or not messages or messages[-1]["role"] != "assistant":
            whole = self.render(messages, generation_prompt=generation_prompt)
        if not whole.startswith(done):
            raise ConfigError("chat template: rewrites what was said before. Train with zifio's own template.")
        return [*pieces, (whole[len(done) :], False)] if len(whole) > len(done) else pieces

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it recognised and none added. ConfigError for a strange
        character."""
        if self._characters is not None:
            return self._characters(text)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, less one end token behind it.

        Every other special token stays to be seen, so that no verifier is fooled by what was left out.
        """
        ids = list(tokens)
        if ids and ids[-1] == self.eos_id:
            ids.pop()
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    @cached_property
    def _characters(self) -> "_Characters | None":
        return _Characters.of(self.tokenizer)

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ConfigError(f"tokenizer: wanted an id for {token!r}, came none. Add the token to its vocabulary.")
        return found


def _check(messages: Sequence[Message]) -> None:
    """Raise ConfigError unless every message has a role and a content."""
    for message in messages:
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ConfigError(
                    f"message: {key}: wanted text, came {message.get(key)!r} in {str(message)[:80]}. "
                    'Write {"role": "user", "content": "6+1"}.'
                )


class _Characters:
    """The fast form of `Tokenizer.encode` for a vocabulary of single characters and added tokens."""

    def __init__(self, ids: dict[str, int], added: list[str]) -> None:
        self.ids = ids
        self.added = re.compile("(" + "|".join(map(re.escape, sorted(added, key=len, reverse=True))) + ")")

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "_Characters | None":
        """The fast form of this tokenizer, or None where it has none."""
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        ids = tokenizer.get_vocab(with_added_tokens=True)
        plain = type(tokenizer.model).__name__ == "WordLevel" and tokenizer.normalizer is None
        return cls(ids, added) if plain and added and all(len(t) == 1 for t in set(ids) - set(added)) else None

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        try:
            for place, piece in enumerate(self.added.split(text)):
                if place % 2:
                    ids.append(self.ids[piece])
                else:
                    ids.extend(map(self.ids.__getitem__, piece))
        except KeyError as error:
            known = "".join(sorted(token for token in self.ids if len(token) == 1))
            raise ConfigError(
                f"tokenizer: wanted characters out of {known!r}, came {error.args[0]!r} in {text[:80]!r}. "
                "Write it in these characters, or train a tokenizer on text that has this one."
            ) from None
        return ids


class _Generation(Extension):
    """Lets `{% generation %}` pass, with which published templates mark what the assistant says."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=16)
def compile_template(source: str) -> Template:
    """A chat template made ready to render, in a sandbox. Raises ConfigError when it is no template."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ConfigError(
            f"chat template: wanted a jinja2 template, came: {error}. Mend chat_template.jinja."
        ) from None
