"""The run folder under crashes and rivals; progress with nobody reading."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zifio.config import ConfigError
from zifio.log import Progress, RunFolder, say

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import sys, time
from zifio.log import RunFolder
with RunFolder(sys.argv[1]).lock():
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder's lock."""
    rival = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert rival.stdout is not None and rival.stdout.readline() == "held\n"
    return rival


def test_floats_keep_every_bit(tmp_path: Path):
    folder = RunFolder(tmp_path / "deep" / "run")
    values = {"a": 0.1 + 0.2, "b": math.pi * 1e-300, "c": -0.0, "n": 7}
    folder.metrics(3, values)
    folder.timing(3, {"seconds": 1.5})
    assert folder.read_metrics() == [{"step": 3, **values}]
    assert math.copysign(1, folder.read_metrics()[0]["c"]) == -1
    assert folder.read_timing() == [{"step": 3, "seconds": 1.5}]


def test_equal_values_equal_bytes(tmp_path: Path):
    for name in ("one", "two"):
        for step in range(3):
            RunFolder(tmp_path / name).metrics(step, {"loss": 1 / (step + 3), "reward": 1.0})
    assert (tmp_path / "one/metrics.jsonl").read_bytes() == (tmp_path / "two/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(tmp_path: Path, bad: float):
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="step 4: not a finite number: loss"):
        folder.metrics(4, {"reward": 1.0, "loss": bad})
    assert folder.read_metrics() == []


def test_reading_what_is_not_there(tmp_path: Path):
    folder = RunFolder(tmp_path / "nothing")
    folder.truncate(3)
    assert folder.read_metrics() == folder.read_timing() == []
    assert not folder.path.exists()


def test_truncate_keeps_bytes(tmp_path: Path):
    folder = RunFolder(tmp_path)
    for step in (1, 2, 2, 3, 4):
        folder.metrics(step, {"x": step / 3})
        folder.timing(step, {"s": step})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    folder.truncate(4)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    folder.truncate(2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    assert [record["step"] for record in folder.read_timing()] == [1, 2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "timing.jsonl"]
    folder.truncate(-1)
    assert folder.read_metrics() == []


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_torn_last_line(tmp_path: Path, cut: int):
    """Wherever a kill cuts the last line: it is not read, and the next line is not glued to it."""
    folder, file = RunFolder(tmp_path), tmp_path / "metrics.jsonl"
    folder.metrics(1, {"loss": 2.5})
    first = file.read_bytes()
    folder.metrics(2, {"loss": 1.5})
    whole = file.read_bytes()
    assert len(first) == 25
    file.write_bytes(whole[:-cut])
    assert [record["step"] for record in folder.read_metrics()] == [1]
    folder.metrics(2, {"loss": 1.5})
    assert file.read_bytes() == whole
    file.write_bytes(whole[:-cut])
    folder.truncate(5)
    assert file.read_bytes() == first


def test_an_edited_line_is_named(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    for bad in ("{oops", "[1]", '{"loss": 1}', '"x"'):
        file.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
        with pytest.raises(ConfigError, match=r"metrics\.jsonl: line 2: wanted a JSON object"):
            RunFolder(tmp_path).read_metrics()


def test_a_second_run_is_refused_and_told_who(tmp_path: Path):
    rival = hold(tmp_path)
    try:
        with (
            pytest.raises(ConfigError, match=f"{tmp_path}: .* in use by process {rival.pid}"),
            RunFolder(tmp_path).lock(),
        ):
            pass
    finally:
        rival.send_signal(signal.SIGKILL)
        rival.communicate()
    with RunFolder(tmp_path).lock():
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert (tmp_path / "lock").read_text() == ""


def test_the_lock_is_free_after_an_error(tmp_path: Path):
    folder = RunFolder(tmp_path)
    with pytest.raises(KeyError), folder.lock():
        raise KeyError
    with folder.lock(), pytest.raises(ConfigError, match="in use by process"), RunFolder(tmp_path).lock():
        pass


def test_a_folder_that_cannot_be(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file: wanted a folder.*--out"), RunFolder(tmp_path / "file").lock():
        pass


def test_say_shows_text_as_it_is(capsys: pytest.CaptureFixture[str]):
    text = "[bold]6+1=7[/bold] <think> :smile: " + "long " * 60
    say(text)
    captured = capsys.readouterr()
    assert captured.err == text + "\n"
    assert captured.out == ""


def test_progress_in_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress("pretrain", total=20, done=10) as progress:
        for step in range(11, 21):
            clock[0] += 2.0
            progress.update(step, {"loss": 2.34567})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pretrain 13/20 eta 0:14  loss 2.346"
    assert lines[-1] == "pretrain 20/20 took 0:20  loss 2.346"
    assert len(lines) == 4, "one every five seconds, and the last"


@pytest.mark.parametrize("how", ["closed", "none", "broken pipe", "pseudo-terminal", "pseudo-terminal gone"])
def test_nobody_reads(how: str):
    """A run goes on when its terminal is closed, was never there, or went away."""
    program = (
        "import os, sys\n"
        "from zifio.log import Progress, say\n"
        "say('begin')\n"
        "with Progress('stage', 3) as progress:\n"
        "    progress.seconds_between_lines = 0\n"
        "    for step in (1, 2, 3):\n"
        "        if sys.argv[1] == 'closed' and step == 2: sys.stderr.close()\n"
        "        if sys.argv[1] == 'none': sys.stderr = None\n"
        "        if step == 2: sys.stdin.readline()\n"
        "        progress.update(step, {'loss': 1.0})\n"
        "        say('between')\n"
        "say('end')\n"
        "os.write(1, b'done')\n"
    )
    read, write = os.openpty() if how.startswith("pseudo") else os.pipe()
    run = subprocess.Popen(
        [sys.executable, "-c", program, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=write,
        cwd=ROOT,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(write)
    if how in ("broken pipe", "pseudo-terminal gone"):
        os.close(read)
    out, _ = run.communicate(b"\n", timeout=30)
    assert out == b"done"
    if how == "pseudo-terminal":
        shown = os.read(read, 100_000).decode()
        assert "stage" in shown and "3/3" in shown and "took" in shown and "end" in shown


def test_lines_are_json(tmp_path: Path):
    RunFolder(tmp_path).metrics(1, {"name with space": 1, "größe": 2.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(io.StringIO(text).readline())["größe"] == 2.0
