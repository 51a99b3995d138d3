"""What a run tells: words and progress on the terminal (stderr), numbers in its folder, a JSON line per step.

`metrics.jsonl` holds only what a repeated run reproduces bit for bit; seconds, speed and memory go to
`timing.jsonl`. Nothing here may end a run because nobody reads the terminal any more.

Try it alone:

    python -c "from zifio.log import RunFolder; RunFolder('runs/try').metrics(1, {'loss': 2.5})"
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import resource
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from zifio.config import ConfigError


class _Terminal(Console):
    """A console that goes silent when its reader is gone, where rich would end the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


_terminal = _Terminal(stderr=True, highlight=False, markup=False, emoji=False)


def say(text: RenderableType) -> None:
    """Write a line (or a rich table) to stderr; silently nothing when stderr is closed."""
    with _unread():
        _terminal.print(text, soft_wrap=isinstance(text, str))


@contextlib.contextmanager
def _unread() -> Generator[None, None, None]:
    """Let pass what a closed or vanished terminal raises: OSError, or ValueError from a closed file."""
    try:
        yield
    except (OSError, ValueError):
        _terminal.quiet = True
        with contextlib.suppress(OSError, ValueError):  # what is still in the buffer must not fail at exit, as code 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Finished(NamedTuple):
    """What a verb returns that did its work and has more to say than "done": its exit code, and what belongs on
    stdout."""

    code: int
    result: Any = None


class RunFolder:
    """The folder of one run or stage: a lock, metrics.jsonl and timing.jsonl. Made when first written to."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextlib.contextmanager
    def lock(self) -> Generator[None, None, None]:
        """Hold the folder for this process, until the block ends or the process dies, however it dies.

        Raises ConfigError when another process holds it (naming its pid), or when it cannot be written.
        The file stays behind, empty: removing it would let two runs hold two different locks.
        """
        file = self.path / "lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: wanted a folder to write a run in, came: {error.strerror}. Choose another with --out."
            ) from None
        try:
            self._claim(descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def _claim(self, descriptor: int) -> None:
        """Take the lock or raise ConfigError."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise ConfigError(
                    f"{self.path}: wanted a run folder of our own, came one in use by process {pid}. "
                    "Wait for it, stop it, or choose another folder with --out."
                ) from None
            raise ConfigError(
                f"{self.path}: wanted a file system with locks, came: {error.strerror}. "
                "Put the run on a local disk with --out."
            ) from None

    def holder(self) -> int | None:
        """The process that holds the folder, as far as this machine knows; None when nobody does."""
        try:
            pid = int((self.path / "lock").read_text())
        except (OSError, ValueError):
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # it lives, and is another user's
        return pid

    def metrics(self, step: int, values: Mapping[str, int | float]) -> None:
        """Append a step's numbers that repeat exactly between runs. Raises ValueError for NaN, infinity."""
        self._append("metrics.jsonl", step, values)

    def timing(self, step: int, values: Mapping[str, int | float]) -> None:
        """Append a step's seconds, speed and memory: what differs between two equal runs."""
        self._append("timing.jsonl", step, values)

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append to rollouts.jsonl what was said to a few problems; they repeat exactly too."""
        for row in rows:
            self._write("rollouts.jsonl", {"step": step, **row})

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, each with its "step"; a torn last line is left out."""
        return [record for _, _, record in self._lines("metrics.jsonl")]

    def read_timing(self) -> list[dict[str, Any]]:
        """The lines of timing.jsonl, as read_metrics gives them."""
        return [record for _, _, record in self._lines("timing.jsonl")]

    def read_rollouts(self) -> list[dict[str, Any]]:
        """The lines of rollouts.jsonl, as read_metrics gives them."""
        return [record for _, _, record in self._lines("rollouts.jsonl")]

    def truncate(self, after_step: int) -> None:
        """Drop the lines of steps beyond `after_step` and a torn last line: a resumed run writes them again.

        The kept lines stay byte for byte. A crash in between leaves the old file or the new, never a mixture.
        """
        for name in ("metrics.jsonl", "timing.jsonl", "rollouts.jsonl"):
            file = self.path / name
            if not file.exists():
                continue
            kept = b"".join(line for line, step, _ in self._lines(name) if step <= after_step)
            if kept == file.read_bytes():
                continue
            beside = file.with_name(name + ".new")
            with beside.open("wb") as stream:
                stream.write(kept)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(file)

    def _append(self, name: str, step: int, values: Mapping[str, int | float]) -> None:
        """One line, written and flushed at once; floats keep every bit through JSON."""
        assert "step" not in values, "step is an argument of its own"
        line = {key: value if isinstance(value, int) else float(value) for key, value in values.items()}
        bad = [key for key, value in line.items() if not math.isfinite(value)]
        if bad:
            raise ValueError(f"step {step}: not a finite number: {', '.join(bad)}")
        self._write(name, {"step": step, **line})

    def _write(self, name: str, line: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / name).open("a+b") as stream:
            drop_torn_end(stream.fileno())
            stream.write(json.dumps(line).encode() + b"\n")

    def _lines(self, name: str) -> list[tuple[bytes, int, dict[str, Any]]]:
        """Each line that has its newline, with what it says. Raises ConfigError for a broken one."""
        file = self.path / name
        if not file.exists():
            return []
        whole = file.read_bytes().rpartition(b"\n")[0]
        lines = whole.split(b"\n") if whole else []
        found: list[tuple[bytes, int, dict[str, Any]]] = []
        for number, line in enumerate(lines, start=1):
            try:
                record: dict[str, Any] = json.loads(line)
                step = int(record["step"])
            except (ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"{file}: line {number}: wanted a JSON object with a step, came {line[:60]!r}. "
                    "Remove that line, or start over in a new folder with --out."
                ) from None
            found.append((line + b"\n", step, record))
        return found


def drop_torn_end(descriptor: int) -> None:
    """Cut what a killed process left after the last newline, lest the next line be glued to it."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    os.ftruncate(descriptor, os.pread(descriptor, size, 0).rfind(b"\n") + 1)


class Progress:
    """A stage's progress on stderr with the time left: a bar on a terminal, else a line every five seconds.

    `done` steps were already taken by an earlier run; they count in the bar and not in the speed.
    """

    seconds_between_lines = 5.0

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done = title, total, done
        self.step = done
        self._start = self._last_line = time.monotonic()
        self._bar: RichProgress | None = None
        self._task = None

    def __enter__(self) -> "Progress":
        self._start = self._last_line = time.monotonic()
        with _unread():
            if _terminal.is_terminal:
                columns = (
                    BarColumn(bar_width=24),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[numbers]}"),
                )
                title = TextColumn("{task.description:<14}")
                self._bar = RichProgress(title, *columns, console=_terminal, auto_refresh=False)
                self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, numbers="")
                self._bar.start()
        return self

    def update(self, step: int, values: Mapping[str, int | float]) -> None:
        """Show that `step` steps are done, with the time left and a few numbers."""
        self.step = step
        now = time.monotonic()
        numbers = self._numbers(now, values)
        with _unread():
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=step, numbers=numbers, refresh=True)
            elif now - self._last_line >= self.seconds_between_lines or step == self.total:
                self._last_line = now
                say(f"{self.title} {step}/{self.total} {numbers}")

    def _numbers(self, now: float, values: Mapping[str, int | float]) -> str:
        """`eta 1:05  loss 2.31`."""
        taken = self.step - self.done
        seconds = now - self._start
        left = f"eta {_clock(seconds / taken * (self.total - self.step))}" if taken > 0 else "eta -"
        if self.step >= self.total:
            left = f"took {_clock(seconds)}"
        return "  ".join([left, *(f"{name} {value:.4g}" for name, value in values.items())])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _unread():
            if self._bar is not None:
                self._bar.stop()


def peak_rss_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cores() -> int:
    """How many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _clock(seconds: float) -> str:
    """0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
