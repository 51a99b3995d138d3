"""`zifio board RUNS`: a page that shows runs while they go on, beside one another, and what is wrong with them.

zifio board runs/quickstart                                   # http://127.0.0.1:8018
zifio board runs/seed0 runs/seed1 --reference runs/ref-*      # the band of reference runs behind the curves
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zifio.board.app import make_app
from zifio.board.watch import Watch
from zifio.config import ConfigError
from zifio.log import say
from zifio.loopback import is_loopback, listen, serve_until_stopped

PORT = 8018


def board(
    runs: Sequence[Path],
    reference: Sequence[Path] = (),
    price_per_hour: float | None = None,
    host: str = "127.0.0.1",
    port: int = PORT,
    as_json: bool = False,
) -> None:
    """Open the page until Ctrl-C; a run may begin later. Raises ConfigError where a folder or port cannot be had."""
    for folder in (*runs, *reference):
        if folder.is_file():
            raise ConfigError(f"{folder}: wanted a run folder, came a file. Give the folder that --out named.")
    watch = Watch(runs, reference)
    listening, address = listen(host, port)
    say(f"board: {address}")
    alone = is_loopback(host)
    if not alone:
        say("Anybody who reaches this port can read these runs, and the connection is not encrypted.")
    serve_until_stopped(make_app(watch, alone, price_per_hour), listening)
