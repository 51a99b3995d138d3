"""`zifio serve MODEL...`: models behind OpenAI's, DeepSeek's and Anthropic's interfaces, until Ctrl-C or SIGTERM.

zifio serve runs/quickstart/r1/model
zifio serve runs/quickstart/base/model runs/quickstart/r1/model aliases.deepseek-chat=r1
zifio serve Qwen/Qwen3-0.6B --engine vllm             # where vLLM is installed
zifio serve --config serve.toml --host 0.0.0.0        # keys from ZIFIO_API_KEY
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zifio.config import ConfigError, build, override, read_toml
from zifio.log import say
from zifio.loopback import is_loopback, listen
from zifio.serve.settings import EngineKind, ServeConfig, read_keys

if TYPE_CHECKING:
    from zifio.models.device import Device


def serve(
    words: Sequence[str] = (),
    config: Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    device: Device = "cpu",
    engine: EngineKind = "zifio",
    as_json: bool = False,
) -> None:
    """Serve until told to end; then requests under way are answered first. Raises ConfigError."""
    overrides = [word for word in words if "=" in word]
    data = override({} if config is None else read_toml(config), overrides)
    settings = build(ServeConfig, data, "command line" if config is None else str(config))
    folders = {**_named([word for word in words if "=" not in word]), **settings.models}
    keys, alone = read_keys(settings), is_loopback(host)
    _check(settings, folders, bool(keys), host)
    from zifio.serve.app import make_app
    from zifio.serve.connection import Server
    from zifio.serve.model import load
    from zifio.serve.process import settle

    if threading.current_thread() is threading.main_thread():  # before there is a server to end in order
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listening, address = listen(host, settings.port if port is None else port)
    with listening:
        models = {}
        for name, folder in folders.items():
            models[name] = load(name, folder, settings, device, engine)
            say(f"{name}: {folder}, up to {models[name].longest} tokens")
        say(f"serving: {address}/v1")
        if not alone:
            say("The connection is not encrypted. Put a server with TLS before it where the network is not yours.")
        app = make_app(models, settings, keys, alone)
        settle()
        Server(app, settings.drain_s, app.state.end).run(sockets=[listening])


def _named(folders: Sequence[str]) -> dict[str, str]:
    """A name for each folder: its own, or that of the stage around a folder called model."""
    named: dict[str, str] = {}
    for folder in folders:
        path = Path(folder)
        name = path.parent.name if path.name == "model" and path.parent.name else path.name
        name = name.removeprefix("package:")
        if name in named:
            raise ConfigError(f"{folder}: wanted a name of its own, came a second {name!r}. Name them: models.a=FOLDER")
        named[name] = folder
    return named


def _check(settings: ServeConfig, folders: dict[str, Any], has_keys: bool, host: str) -> None:
    """Mistakes that need no model to be seen."""
    if not folders:
        raise ConfigError("zifio serve: wanted a model, came none. Name its folder: zifio serve runs/NAME/STAGE/model")
    for name in settings.aliases:
        alias = settings.alias(name)
        if alias is not None and alias.model not in folders:
            raise ConfigError(
                f"aliases.{name}: wanted one of {', '.join(folders)}, came {alias.model!r}. Name one that is served."
            )
    if not is_loopback(host) and not has_keys:
        raise ConfigError(
            f"--host {host}: wanted keys before others can reach the server, came none. Set {settings.key_env}, or "
            "keys_file."
        )
