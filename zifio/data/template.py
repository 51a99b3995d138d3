"""Messages to tokens and a loss mask, through the model's own chat template; and tokens back to text.

The special tokens and the layout are those of DeepSeek-V3's tokenizer. Templates run in jinja2's sandbox, set
up as `transformers` does it, so that any published template renders to the same text here.

Try it alone: `pytest tests/data/test_template.py`
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from json import dumps, loads
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from zifio.config import ConfigError
from zifio.data.calls import CALL_BEGIN
from zifio.pictures import PICTURE

PAD, BOS, EOS = "<｜▁pad▁｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SPECIAL_TOKENS = (PAD, BOS, EOS, USER, ASSISTANT, *TAGS)
"""In the order of their ids, from 0."""
PICTURE_BEGIN, PICTURE_END = "<begin_of_image>", "<end_of_image>"
PICTURE_TOKENS = (PICTURE, PICTURE_BEGIN, PICTURE_END)
"""Of models that read and draw, named as Janus has them."""

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

TOOL_TEMPLATE = """\
{{- bos_token -}}
{%- set ns = namespace(outputs=false, answered=false) -%}
{%- for message in messages -%}
    {%- if ns.outputs and message['role'] != 'tool' -%}
        {{- '<｜tool▁outputs▁end｜>' -}}
        {%- set ns.outputs = false -%}
        {%- set ns.answered = true -%}
    {%- endif -%}
    {%- if message['role'] == 'system' and loop.first -%}
        {{- message['content'] -}}
    {%- elif message['role'] == 'user' -%}
        {{- '<｜User｜>' + message['content'] -}}
        {%- set ns.answered = false -%}
    {%- elif message['role'] == 'assistant' -%}
        {{- ('' if ns.answered else '<｜Assistant｜>') + message['content'] -}}
        {%- set ns.answered = false -%}
        {%- if message['tool_calls'] -%}
            {{- '<｜tool▁calls▁begin｜>' -}}
            {%- for call in message['tool_calls'] -%}
                {{- '<｜tool▁call▁begin｜>' + call['function']['name'] -}}
                {{- '<｜tool▁sep｜>' + call['function']['arguments'] + '<｜tool▁call▁end｜>' -}}
            {%- endfor -%}
            {{- '<｜tool▁calls▁end｜>' -}}
        {%- endif -%}
        {{- eos_token -}}
    {%- elif message['role'] == 'tool' -%}
        {{- '' if ns.outputs else '<｜tool▁outputs▁begin｜>' -}}
        {%- set ns.outputs = true -%}
        {{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' -}}
    {%- elif message['role'] == 'system' -%}
        {{- raise_exception('a system message must come first') -}}
    {%- else -%}
        {{- raise_exception('the roles are system, user, assistant and tool, not ' + message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if ns.outputs -%}
    {{- '<｜tool▁outputs▁end｜>' -}}
{%- endif -%}
{%- if add_generation_prompt and not (ns.outputs or ns.answered) -%}
    {{- '<｜Assistant｜>' -}}
{%- endif -%}
"""
"""Of tokenizers that have the tool tokens: calls as in DeepSeek-V3.1, outputs as in V3, after which the assistant goes
on without a mark. It describes no tools: our models learn them from text."""

_MARKER = "zifio turn"  # of a made-up conversation

Message = dict[str, Any]
"""A role and a content, both text; an assistant may have `tool_calls` in OpenAI's form, their arguments JSON text."""


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

    def render(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool = False,
        tools: Sequence[dict[str, Any]] = (),
        variables: Mapping[str, Any] = {},
    ) -> str:
        """The text of a conversation, ready for the reply when `generation_prompt`. Raises ConfigError.

        `tools` are offered as the template does it; ours does not, nor do those that know no tools. `variables` are
        what else a template may ask for, as `enable_thinking`.
        """
        _check(messages)
        if CALL_BEGIN not in self.template:  # DeepSeek's join arguments as text, others write them as JSON themselves
            messages = [_with_tables(message) for message in messages]
        marks = {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}
        try:
            own = {"messages": messages, "tools": list(tools) or None, "add_generation_prompt": generation_prompt}
            return compile_template(self.template).render(**{"documents": None, **variables, **marks, **own})
        except (TemplateError, TypeError, ValueError) as error:  # also what a filter makes of strange values
            raise ConfigError(f"chat template: cannot render the messages: {error}. Mend the messages.") from None

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool = False,
        tools: Sequence[dict[str, Any]] = (),
    ) -> tuple[list[int], list[bool]]:
        """Token ids, and for each whether the loss counts it: what the assistant says, with its end token.

        Each side of the boundary between a prompt and a reply is encoded by itself, as when sampling, and the
        mask is made with the tokens. Raises ConfigError where the template cannot be cut there, or hides a
        reply.
        """
        tokens: list[int] = []
        mask: list[bool] = []
        for text, counts in self.segments(messages, generation_prompt=generation_prompt, tools=tools):
            ids = self.encode(text)
            tokens += ids
            mask += [counts] * len(ids)
        return tokens, mask

    def segments(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool = False,
        tools: Sequence[dict[str, Any]] = (),
    ) -> list[tuple[str, bool]]:
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
            before = self.render(messages[:place], generation_prompt=True, tools=tools)
            whole = self.render(messages[: place + 1], tools=tools)
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
            whole = self.render(messages, generation_prompt=generation_prompt, tools=tools)
        if not whole.startswith(done):
            raise ConfigError("chat template: rewrites what was said before. Train with zifio's own template.")
        return [*pieces, (whole[len(done) :], False)] if len(whole) > len(done) else pieces

    def encode_between(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of what stands between a turn's end token and the next turn: these messages, from others.

        They follow from the template and the messages alone, so that the turns before them are never rendered again,
        let alone encoded. No message can forge a special token, and what a tool says is never refused: characters that
        the tokenizer cannot spell are left out of it. Raises ConfigError where the template knows no such role.
        """
        call = {"type": "function", "function": {"name": "f", "arguments": "{}"}, "id": "000000000"}
        turn: Message = {"role": "assistant", "content": _MARKER}
        if any(message["role"] == "tool" for message in messages):
            turn["tool_calls"] = [call]
        heard = [{**message, "content": self._harmless(message)} for message in messages]
        text = self.render([{"role": "user", "content": ""}, turn, *heard], generation_prompt=True)
        _, found, rest = text[text.find(_MARKER) :].partition(self.eos_token)
        if not found:
            raise ConfigError(
                "chat template: wanted one that ends a turn with the end token and goes on behind it, came one that "
                "does not. Use zifio's own template."
            )
        return self.encode(rest)

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

    def _harmless(self, message: Message) -> str:
        """A message's content with special tokens taken apart; a tool's without what cannot be spelled."""
        text = message["content"]
        if self._special is not None:
            text = self._special.sub(lambda found: f"{found[0][:1]} {found[0][1:]}", text)
        if self._characters is None or message["role"] != "tool":
            return text
        known = self._characters.ids
        return "".join(character for character in text if character in known)

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        """Finds special tokens in a text."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        special = sorted((token.content for token in added if token.special), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, special))) if special else None

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


def _with_tables(message: Message) -> Message:
    """The message with its calls' arguments as tables, where they are JSON of one."""
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_with_table(call) for call in message["tool_calls"]]}


def _with_table(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


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
