"""Typed, frozen configs: TOML in, checked values out, and errors that a person can act on.

A config is a pydantic model whose fields are described by the string under them. `build` is the one door
from plain data (a TOML file, command-line overrides) to a config. Its errors have four parts: the key with
the file it stands in, what was wanted, what came, and the way out.

Try it alone:

    python -c "from zifio.config import *; print(build(Sampling, {'temperature': 0}, 'try'))"
"""

import copy
import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_json

Model = TypeVar("Model", bound="Config")


class ConfigError(ValueError):
    """A mistake the user can mend; the message names the key, what was wanted, what came and the way out."""


class Config(BaseModel):
    """The base of every config: frozen; refuses unknown keys, and numbers that are not finite."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    def digest(self) -> str:
        """Twelve hex digits that are equal for equal configs, in every process and on every machine."""
        text = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"), default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Sampling(Config):
    """How a model draws its replies."""

    temperature: float = Field(default=1.0, ge=0)
    """Logits are divided by this before drawing; 0 takes the likeliest token (greedy)."""
    max_new_tokens: int = Field(default=128, ge=1)
    """A reply is cut after this many tokens."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw only among the likeliest tokens that together hold this much probability."""
    top_k: int = Field(default=0, ge=0)
    """Draw only among this many likeliest tokens (and those as likely as the last of them); 0 means all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Draw only tokens at least this share as likely as the likeliest (arXiv:2407.01082)."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Logits of tokens that the prompt or the reply holds already are divided by this, or multiplied where negative
    (CTRL, arXiv:1909.05858); 1 means no penalty."""
    guidance: float = Field(default=1.0, ge=0)
    """Of drawings: scale of classifier-free guidance (arXiv:2207.12598), that sets a prompt against one that asks for
    nothing; 1 is none."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """A reply ends with the first of these texts, which its text then leaves out."""

    def off_policy(self) -> dict[str, float]:
        """The fields that make draws follow another distribution than softmax(logits / temperature), and what they
        would have to be."""
        harmless = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "guidance": 1.0}
        return {name: value for name, value in harmless.items() if getattr(self, name) != value}


class EndpointSettings(Config):
    """How to speak with a server that understands OpenAI's chat completions."""

    concurrency: int = Field(default=8, ge=1)
    """Requests under way at once."""
    timeout_s: float = Field(default=600.0, gt=0)
    """A request that is not answered whole after this long is given up and tried again."""
    connect_s: float = Field(default=10.0, gt=0)
    """A connection that is not there after this long is tried again."""
    tries: int = Field(default=6, ge=1)
    """Tries of one request on 408, 425, 429, 5xx, a broken answer or a broken connection, before it counts as
    failed."""
    longest_wait_s: float = Field(default=60.0, gt=0)
    """The longest wait between two tries, whatever Retry-After says."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the API key; where it is empty no key is sent. The key is never written."""
    length_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the largest number of tokens to draw."""
    send_seed: bool = True
    """Whether each request carries its own seed."""
    logprobs: bool = False
    """Whether to ask for log-probs, which the scorer `logp` needs."""
    extra: dict[str, Any] = {}
    """More for the body of every request, as `extra = { reasoning_effort = "high" }`."""


def is_url(word: str) -> bool:
    """Whether this means an endpoint."""
    return word.startswith(("http://", "https://"))


def build(cls: type[Model], data: dict[str, Any], where: str) -> Model:
    """A validated `cls` from plain data; `where` (a file name, say) opens every message.

    Values are not coerced: "3" is no integer and true is no number, but 3 is a float. Raises ConfigError
    with one line for each mistake.
    """
    try:
        return cls.model_validate_json(to_json(data, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
    raise ConfigError("\n".join(dict.fromkeys(_explain(cls, data, where, detail) for detail in details)))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError if missing, unreadable or not TOML (with the line)."""
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        near = sorted(other.name for other in path.parent.glob("*.toml"))
        hint = suggestion(path.name, near) or _listed("TOML files in that folder", near) or "Check the path."
        raise ConfigError(f"{path}: wanted a TOML file, came nothing: no such file. {hint}") from None
    except IsADirectoryError:
        near = sorted(str(other) for other in path.glob("*.toml"))
        hint = _listed("TOML files in it", near) or "Name a .toml file."
        raise ConfigError(f"{path}: wanted a TOML file, came a folder. {hint}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: wanted UTF-8 text, came byte {error.object[error.start]:#04x} at offset {error.start}. "
            "Save the file as UTF-8."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: wanted a readable TOML file, came: {error.strerror}. Check the path.") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_explain_toml(path, text, str(error))) from None


def override(data: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of `data` with `a.b=VALUE` assignments applied left to right.

    VALUE is TOML; what is not TOML and looks like a bare word is a string (`name=try`). Missing tables on the
    way are made, so that `build` judges the key. In a list of tables a path segment picks the element whose
    `name` it is (`stage.r1-zero.steps=20`), or its position. Raises ConfigError.
    """
    result = copy.deepcopy(data)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            raise ConfigError(
                f"command line: wanted key=value, came {assignment!r}. Write, say, `seed=1` or `task.name=a`."
            )
        _assign(result, parts, _value(text.strip(), key.strip()), key.strip())
    return result


def suggestion(word: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'?` for the known word nearest to `word`, or nothing when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else ""


def _assign(table: dict[str, Any], parts: list[str], value: Any, key: str) -> None:
    """Walk `parts` down from `table` and put `value` at the end."""
    here: Any = table
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here, dict):
            if last:
                here[part] = value
            else:
                here = here.setdefault(part, {})
        elif isinstance(here, list):
            index = _position(here, part, key)
            if last:
                here[index] = value
            else:
                here = here[index]
        else:
            before = ".".join(parts[:depth])
            raise ConfigError(
                f"command line: {key}: wanted a table at {before}, came {_shown(here)}. "
                f"Set {before} itself, or a key beside it."
            )


def _position(elements: list[Any], part: str, key: str) -> int:
    """The index in a list of tables that `part` means: an element's name, or a position."""
    names = [element.get("name") if isinstance(element, dict) else None for element in elements]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(elements):
        return int(part)
    known = [str(name) for name in names if name is not None]
    wanted = f"one of {', '.join(known)}" if known else f"a position below {len(elements)}"
    hint = suggestion(part, known) or "Name one of these."
    raise ConfigError(f"command line: {key}: wanted {wanted}, came {part!r}. {hint}")


def _value(text: str, key: str) -> Any:
    """The TOML value that `text` spells, or `text` itself when it is a bare word."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise ConfigError(
                f"command line: {key}: wanted a TOML value, came {text!r} ({error}). "
                'Quote the whole argument for the shell, for example \'key=["a", "b"]\'.'
            ) from None
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _plain(value: Any) -> Any:
    """What json.dumps cannot write by itself, in an order that does not change between processes."""
    return sorted(value, key=repr) if isinstance(value, (set, frozenset)) else str(value)


# Messages --------------------------------------------------------------------------------------------------

_WANTED = {
    "missing": "a value",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "finite_number": "a finite number",
}


def _explain(cls: type[Config], data: Any, where: str, detail: ErrorDetails) -> str:
    """One line of four parts for one pydantic error."""
    kind, location = detail["type"], detail["loc"]
    key = _dotted(data, location, kind == "missing")
    head = f"{where}: {key}" if key else where
    if kind in ("value_error", "assertion_error"):
        return f"{head}: {re.sub('^(Value|Assertion) error, ', '', detail['msg'])}"
    if kind.startswith("union_tag"):
        return _explain_tag(head, detail)
    owners = _models_at(cls, location[:-1])
    name = str(location[-1]) if location else ""
    came = "nothing" if kind == "missing" else _shown(detail["input"])
    if kind == "extra_forbidden":
        known = list(dict.fromkeys(key for owner in owners for key in _keys(owner)))
        hint = f"{suggestion(name, known) or 'Remove it.'} {_listed('Known keys', known)}".rstrip()
        return f"{head}: wanted a known key, came {name!r} (= {came}). {hint}"
    field = next((keys[name] for keys in map(_keys, owners) if name in keys), None)
    about = f" ({field.description.strip().rstrip('.')})" if field is not None and field.description else ""
    wanted = _WANTED.get(kind) or _phrase(detail["msg"])
    return f"{head}{about}: wanted {wanted}, came {came}. {_way_out(name, wanted, detail, field)}"


def _explain_tag(head: str, detail: ErrorDetails) -> str:
    """The message for a table of which it is unclear what kind it is."""
    context = detail.get("ctx", {})
    key = str(context.get("discriminator", "kind")).strip("'")
    if "tag" not in context:
        return f"{head}: wanted a key {key!r} that says what it is, came none. Add a line `{key} = ...`."
    tag, tags = str(context["tag"]), str(context["expected_tags"])
    hint = suggestion(tag, re.findall(r"'([^']*)'", tags)) or "Give one of these."
    return f"{head}.{key}: wanted one of {tags}, came {tag!r}. {hint}"


def _phrase(message: str) -> str:
    """Pydantic's `Input should be greater than 0` as what was wanted: `a number greater than 0`."""
    phrase = re.sub("^(Input|Value) should (be|have) ", "", message)
    phrase = re.sub(r"^(\w+) should have ", lambda found: f"a {found.group(1).lower()} with ", phrase)
    return f"a number {phrase}" if phrase.startswith(("greater", "less")) else phrase


def _way_out(name: str, wanted: str, detail: ErrorDetails, field: FieldInfo | None) -> str:
    """What to do about a value that is missing or of the wrong kind."""
    kind, came = detail["type"], detail["input"]
    if kind == "missing":
        return f"Add a line `{name} = ...`."
    if kind == "string_type" and isinstance(came, (int, float)):
        return f'Put it in quotes: {name} = "{_shown(came)}".'
    if kind == "literal_error" and isinstance(came, str):
        near = suggestion(came, re.findall(r"'([^']*)'", wanted))
        if near:
            return near
    if field is None or field.is_required() or isinstance(field.default, BaseModel) or field.default_factory:
        return f"Give {wanted}."
    return f"Give {wanted}, or leave the key out for {_shown(field.default)}."


def _dotted(data: Any, location: tuple[int | str, ...], missing: bool) -> str:
    """The path as the user writes it: list elements by name, without the tags that pydantic adds."""
    parts: list[str] = []
    for depth, step in enumerate(location):
        if isinstance(data, dict) and step in data:
            data = data[step]
            parts.append(str(step))
        elif isinstance(data, (list, tuple)) and isinstance(step, int) and step < len(data):
            data = data[step]
            named = isinstance(data, dict) and isinstance(data.get("name"), str)
            parts.append(data["name"] if named else str(step))
        elif missing and depth == len(location) - 1:
            parts.append(str(step))
    return ".".join(parts)


def _models_at(cls: type[Config], location: tuple[int | str, ...]) -> list[type[Config]]:
    """The config classes whose keys may stand at `location`."""
    kinds: list[Any] = [cls]
    for step in location:
        models = _configs(kinds)
        inside = [keys[str(step)].annotation for keys in map(_keys, models) if step in keys]
        if inside:
            kinds = _members(inside)
        elif isinstance(step, int):
            kinds = _members([arg for kind in kinds for arg in get_args(kind)])
        else:
            tagged = [model for model in models if step == model.__name__ or _has_tag(model, step)]
            kinds = tagged or _members([arg for kind in kinds for arg in get_args(kind)])
    return _configs(kinds)


def _members(kinds: Iterable[Any]) -> list[Any]:
    """Annotations with unions and Annotated taken apart."""
    flat: list[Any] = []
    for kind in kinds:
        origin = get_origin(kind)
        if origin in (Union, UnionType):
            flat += _members(get_args(kind))
        elif origin is Annotated:
            flat += _members(get_args(kind)[:1])
        else:
            flat.append(kind)
    return flat


def _keys(model: type[Config]) -> dict[str, FieldInfo]:
    """The fields of a config under the names that stand in a TOML file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _configs(kinds: Iterable[Any]) -> list[type[Config]]:
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)]


def _has_tag(model: type[Config], tag: str) -> bool:
    """Whether one of the model's Literal fields may hold `tag`."""
    annotations = [field.annotation for field in model.model_fields.values()]
    return any(tag in get_args(kind) for kind in annotations if get_origin(kind) is Literal)


def _explain_toml(path: Path, text: str, message: str) -> str:
    """The line of a TOML file that is wrong, and why."""
    found = re.search(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)", message)
    if found is None:
        return f"{path}: wanted TOML, came: {message}. Mend the file."
    lines = text.splitlines() or [""]
    number = int(found.group(1)) if found.group(1) else len(lines)
    came = lines[min(number, len(lines)) - 1].strip()
    reason = message[: found.start()]
    return (
        f"{path}: line {number}: wanted TOML, came {_shown(came)} ({reason[:1].lower() + reason[1:]}). "
        'Mend this line: strings need quotes, as in name = "try".'
    )


def _listed(title: str, words: Sequence[str]) -> str:
    """`Title: a, b, c.` with a long list cut short; nothing for no words."""
    if not words:
        return ""
    shown = ", ".join(words[:20]) + (", ..." if len(words) > 20 else "")
    return f"{title}: {shown}."


def _shown(value: Any) -> str:
    """A value as one would write it in TOML, cut to a readable length."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
