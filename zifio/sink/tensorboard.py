"""TensorBoard: event files in `tensorboard/` of the stage's folder. `tensorboard --logdir runs/NAME` shows them.

Try it alone: `pytest tests/sink/test_sinks.py`
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class TensorBoard:
    """A sink of event files, written by the package's own writer."""

    def __init__(self, folder: Path) -> None:
        self._writer = EventFileWriter(str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar a metric, on the disk when this returns."""
        scalars = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=scalars)))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
