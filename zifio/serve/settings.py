"""What a server serves, to whom, and how much of it; read from a TOML file and the command line, without torch.

Try it alone: `python -c "from zifio.serve.settings import ServeConfig; print(ServeConfig())"`
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from zifio.config import Config, ConfigError
from zifio.engine.config import EngineConfig

EngineKind = Literal["zifio", "vllm"]
Thinks = Literal["default", "enabled", "disabled"]

DEEPSEEK: dict[str, Thinks] = {
    "deepseek-chat": "disabled", "deepseek-reasoner": "enabled", "deepseek-flash": "default",
}  # fmt: skip
"""What DeepSeek's names mean, where an alias does not say."""


class Alias(Config):
    """Another name for a model."""

    model: str
    """The name of the model."""
    thinking: Thinks = "default"
    """Whether it thinks under this name, where the request does not say."""


class VllmConfig(Config):
    """vLLM in our engine's place."""

    python: str = ""
    """The Python that vLLM is installed for; empty means the one that zifio runs in."""
    options: dict[str, Any] = {}
    """More arguments for vLLM's engine, under its names (`AsyncEngineArgs`): `vllm.options.max_model_len=4096`."""


class ServeConfig(Config):
    """How `zifio serve` serves."""

    models: dict[str, str] = {}
    """Name and folder of more models, beside those of the command line."""
    aliases: dict[str, str | Alias] = {}
    """Other names: `deepseek-chat = "r1"`, or a table with `model` and `thinking`."""
    key_env: str = "ZIFIO_API_KEY"
    """The environment variable with the key that clients must send; several are separated by commas."""
    keys_file: str = ""
    """A file with a name and a key on each line, for clients that are told apart."""
    key_requests: PositiveInt = 64
    """Most requests of one key at once; more are answered 429."""
    key_per_minute: NonNegativeInt = 0
    """Most requests of one key in a minute; 0 means any number."""
    waiting: PositiveInt = 512
    """Most requests of all keys at once; more are answered 503."""
    max_n: PositiveInt = 32
    """Most replies to one request."""
    max_body_bytes: PositiveInt = 8 << 20
    """Longest request."""
    max_pictures: PositiveInt = 16
    """Most pictures in one request."""
    max_pixels: PositiveInt = 16_000_000
    """Most pixels of a picture that is sent: unpacked each takes 3 bytes."""
    body_s: PositiveFloat = 30.0
    """A request whose body is not here after this long is refused."""
    request_s: PositiveFloat = 600.0
    """A request that is not answered whole after this long is ended."""
    keep_alive_s: PositiveFloat = 10.0
    """After so long without a word the server sends a comment, so that nobody on the way hangs up."""
    drain_s: NonNegativeFloat = 30.0
    """How long requests may go on when the server is told to end."""
    max_tokens: NonNegativeInt = 0
    """Longest reply where the request does not say; 0 means what the context has room for."""
    temperature: NonNegativeFloat = 1.0
    """How freely replies are drawn where the request does not say."""
    fit_max_tokens: bool = False
    """True: a `max_tokens` beyond the context means up to its end. False: it is refused, with the numbers."""
    reasoning_field: Literal["reasoning_content", "reasoning", "both"] = "reasoning_content"
    """What the thinking is called in answers: DeepSeek's name, vLLM's, or both. Requests may use either."""
    reasoning_events: Literal["reasoning_text", "reasoning"] = "reasoning_text"
    """What streams of /v1/responses call the thinking: OpenAI's name, or that of the Open Responses specification."""
    strict_deepseek: bool = False
    """Whether to refuse what DeepSeek refuses: tool calls whose thinking is not passed back."""
    effort: dict[str, float] = {"minimal": 0.1, "low": 0.25, "medium": 0.5}
    """The share of a reply's tokens that `reasoning_effort` leaves to the thinking; others leave all of them."""
    engine: EngineConfig = EngineConfig(max_rows=64)
    """What the engine of each model may spend."""
    vllm: VllmConfig = VllmConfig()
    """With `--engine vllm`: how vLLM is run."""
    log_requests: bool = False
    """Whether to write requests, prompts and all, to the log. Keys are never written."""
    port: int = Field(default=8000, ge=0, le=65535)

    def alias(self, name: str) -> Alias | None:
        """What a name other than a model's own means."""
        found = self.aliases.get(name)
        return Alias(model=found, thinking=DEEPSEEK.get(name, "default")) if isinstance(found, str) else found


def read_keys(config: ServeConfig) -> dict[str, str]:
    """Name by key; empty where no key is wanted. Raises ConfigError."""
    keys = {key.strip(): "default" for key in os.environ.get(config.key_env, "").split(",") if key.strip()}
    if not config.keys_file:
        return keys
    try:
        lines = Path(config.keys_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys_file: wanted a file with a name and a key a line, came: {error}.") from None
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words and not words[0].startswith("#"):
            if len(words) != 2:
                raise ConfigError(
                    f"{config.keys_file}:{number}: wanted a name and a key, came {len(words)} words. "
                    "Write them with a blank between."
                )
            keys[words[1]] = words[0]
    return keys
