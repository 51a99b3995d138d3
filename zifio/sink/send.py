"""Sinks: the metrics of a stage, sent on to TensorBoard, trackio or wandb while it runs.

What is sent is what the run folder holds, read back from it beside the training: a sink that is slow or breaks delays
and ends nothing. How far each sink is stands in `sinks.json`, so that a resumed stage sends nothing twice.

Try it alone: `zifio run recipes/smoke.toml 'sinks=["tensorboard"]'`
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import threading
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from zifio.config import ConfigError
from zifio.log import say
from zifio.record.stage import read_json, write_whole
from zifio.record.tail import Rows

_EVERY_S = 2.0


@runtime_checkable
class Sink(Protocol):
    """Wherever metrics are sent."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """All that a step has measured."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


def check_sinks(names: Sequence[str], where: str) -> None:
    """Raise ConfigError for a sink whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"{where}: sinks: wanted the package {name}, came none. Install it: pip install 'zifio[{name}]', or "
                "leave it out of `sinks`."
            )


def open_sink(name: str, run: str, stage: str, folder: Path) -> Sink:
    """The sink of that name for a stage."""
    if name == "tensorboard":
        from zifio.sink.tensorboard import TensorBoard

        return TensorBoard(folder / "tensorboard")
    from zifio.sink.tracked import Tracked

    return Tracked(name, run, stage, folder)


@contextlib.contextmanager
def sending(names: Sequence[str], run: str, stage: str, folder: Path) -> Generator[None, None, None]:
    """Send on what a stage writes, until the block ends, and then the rest."""
    if not names:
        yield
        return
    stop, sender = threading.Event(), Sender(names, run, stage, folder)
    thread = threading.Thread(target=sender.follow, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)


class Sender:
    """The sinks of one stage."""

    def __init__(self, names: Sequence[str], run: str, stage: str, folder: Path) -> None:
        self._files = [Rows(folder / name) for name in ("metrics.jsonl", "timing.jsonl")]
        self._mark = folder / "sinks.json"
        self._sent = {name: int(read_json(self._mark).get(name, -1)) for name in names}
        self._names, self._run, self._stage, self._folder = names, run, stage, folder
        self._sinks: dict[str, Sink] = {}

    def follow(self, stop: threading.Event) -> None:
        """Send what is new, again and again; when told to stop, the rest."""
        for name in self._names:
            with self._guarded(name):
                self._sinks[name] = open_sink(name, self._run, self._stage, self._folder)
        while not stop.wait(_EVERY_S):
            self._send(False)
        self._send(True)
        for name, sink in [*self._sinks.items()]:
            with self._guarded(name):
                sink.close()

    def _send(self, is_last: bool) -> None:
        """The steps that are complete: those before the newest, for a step's numbers come in several lines."""
        changed = [file.update() for file in self._files]
        if not any(changed) and not is_last:
            return
        done = min(self._sent.values())
        steps: dict[int, dict[str, float]] = {}
        for row in (row for file in self._files for row in file.rows if row["step"] > done):
            steps.setdefault(row["step"], {}).update({key: value for key, value in row.items() if key != "step"})
        newest = max(steps, default=0)
        for name, sink in [*self._sinks.items()]:
            with self._guarded(name):
                for step in sorted(steps):
                    if step > self._sent[name] and (is_last or step < newest):
                        sink.write(step, steps[step])
                        self._sent[name] = step
        write_whole(self._mark, json.dumps(self._sent) + "\n")

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Generator[None, None, None]:
        """A sink that breaks is told once and left out; its library is no code of ours."""
        try:
            yield
        except Exception as error:
            self._sinks.pop(name, None)
            say(f"{self._stage}: the sink {name} broke ({error!r}) and gets nothing more; the run folder has it all")
