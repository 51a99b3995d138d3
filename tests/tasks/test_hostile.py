"""Nothing gets out: hostile programs, each with a witness outside, and no process of theirs is left.

The witness is the machine itself: a secret in a file and in the environment, listeners, a process to kill, the system's
files. Attacks that can do no lasting harm are also run without a sandbox, to show that the witness would have noticed.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tasks.hostile import FILES, GREED, POWER, PRELUDE, TALK
from zifio.tasks.sandbox import Limits, NoSandbox, Ran, SandboxError, _python, isolation, run, why_not

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux, and the witness /proc")

KINDS = ("namespaces", "bubblewrap", "user namespaces")
PATIENT = Limits(seconds=8)
TIGHT = Limits(
    seconds=0.7, memory_bytes=200 << 20, processes=16, file_bytes=8 << 20, scratch_bytes=16 << 20, output_bytes=1 << 18
)
LEFT_ALONE = ("/usr/bin/env", "/usr/lib/os-release", "/etc/passwd", _python(), os.__file__)


def default_kind() -> str:
    """The kind that `run` takes here."""
    try:
        return isolation().removesuffix(" + seccomp")
    except NoSandbox:
        return KINDS[0]


@pytest.fixture(
    params=[kind if kind == default_kind() else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def how(request) -> str:
    """A kind of isolation that works here."""
    if why_not(request.param):
        pytest.skip(f"{request.param}: {why_not(request.param)}")
    return request.param


@dataclass
class World:
    """What there is outside, to be harmed."""

    facts: dict
    folder: Path
    listeners: list[socket.socket]
    victim: subprocess.Popen
    secret: str

    def attack(self, source: str, how: str, limits: Limits = PATIENT) -> Ran:
        program = PRELUDE.format(world=self.facts) + source
        command = [_python(), "-S", "-B", "-X", "utf8", "program.py", self.facts["marker"]]
        return run(command, files={"program.py": program}, limits=limits, how=how, unsafe=how == "none")

    def traces(self, ran: Ran | None) -> list[str]:
        """Whatever an attack left behind or brought out."""
        found = []
        if ran and self.secret in ran.stdout + ran.stderr:
            found.append("the secret came out")
        if ran and "root:" in ran.stdout:
            found.append("users came out")
        if sorted(path.name for path in self.folder.iterdir()) != ["inherited", "secret", "socket"]:
            found.append("the folder is changed")
        elif (self.folder / "secret").read_text() != self.secret:
            found.append("the file is changed")
        if self.victim.poll() is not None or state_of(self.victim.pid) == "T":
            found.append("the victim was signalled")
        if select.select(self.listeners, [], [], 0)[0]:
            found.append("somebody called")
        found += [f"process {pid} is left" for pid in processes_with(self.facts["marker"])]
        return found


def state_of(pid: int) -> str:
    """The letter of a process's state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def processes_with(marker: str) -> list[int]:
    """Processes of this machine that carry the marker among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and marker.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        tcp, udp, abstract, path, spare = (stack.enter_context(socket.socket(*kind)) for kind in (
            (socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX,),
            (socket.AF_UNIX,), (socket.AF_INET, socket.SOCK_STREAM)))  # fmt: skip
        tcp.bind(("127.0.0.1", 0))
        udp.bind(tcp.getsockname())
        spare.bind(("127.0.0.1", 0))
        marker = uuid.uuid4().hex
        abstract.bind("\0" + marker)
        folder = tmp_path / "outside"
        folder.mkdir()
        monkeypatch.chdir(folder)
        path.bind("socket")
        for listener in (tcp, abstract, path):
            listener.listen()
        secret = uuid.uuid4().hex
        monkeypatch.setenv("TEST_SECRET", secret)
        victim = stack.enter_context(
            subprocess.Popen(["sleep", "300"], env={"TEST_SECRET": secret, "PATH": os.defpath})
        )
        stack.callback(victim.kill)
        facts = {"folder": str(folder), "secret": str(folder / "secret"), "port": tcp.getsockname()[1],
                 "free": spare.getsockname()[1], "abstract": marker, "socket": str(folder / "socket"),
                 "parent": os.getpid(), "victim": victim.pid, "marker": marker}  # fmt: skip
        spare.close()
        made = World(facts, folder, [tcp, udp, abstract, path], victim, secret)
        (folder / "secret").write_text(made.secret)
        (folder / "inherited").write_text(made.secret)
        leak = os.open(folder / "inherited", os.O_RDWR)
        os.set_inheritable(leak, True)
        stack.callback(os.close, leak)
        yield made


@pytest.mark.parametrize("name", [*FILES, *TALK, *POWER])
def test_nothing_is_reached(world, how, name):
    """Every attempt fails, and nothing outside is touched."""
    before = [Path(path).stat() for path in LEFT_ALONE]
    hostname, clock = socket.gethostname(), time.time()
    ran = world.attack({**FILES, **TALK, **POWER}[name], how)
    assert "GOT" not in ran.stdout, ran.stdout
    assert ran.status in ("ok", "failed"), ran
    assert "Traceback" not in ran.stderr or name == "a server", ran.stderr
    assert not world.traces(ran)
    after = [Path(path).stat() for path in LEFT_ALONE]
    assert [(one.st_ino, one.st_size, one.st_mtime_ns, one.st_mode) for one in before] == [
        (one.st_ino, one.st_size, one.st_mtime_ns, one.st_mode) for one in after
    ]
    assert (socket.gethostname(), abs(time.time() - clock) < 60) == (hostname, True)


@pytest.mark.parametrize("name", GREED)
def test_greed_is_stopped(world, how, name):
    """A program that wants more than it may is stopped in time, and is gone altogether."""
    source, statuses = GREED[name]
    began = time.monotonic()
    try:
        ran = world.attack(source, how, TIGHT)
        status = ran.status
    except SandboxError:
        ran, status = None, "broken"
    assert status in statuses, ran
    assert time.monotonic() - began < TIGHT.seconds + 5
    assert ran is None or "GOT" not in ran.stdout
    assert ran is None or len(ran.stdout) + len(ran.stderr) <= 2 * TIGHT.output_bytes
    assert ran is None or (ran.memory_bytes or 0) < TIGHT.memory_bytes + (150 << 20)
    assert not world.traces(ran)


BITING = [
    "write outside", "read the home folder", "symbolic and hard links", "environment", "tcp", "udp", "abstract socket",
    "roots and folders of other processes",
]  # fmt: skip


@pytest.mark.parametrize("name", BITING)
def test_the_witness_would_notice(world, name):
    """The same attacks without a sandbox leave traces: the tests above can fail."""
    source = {**FILES, **TALK}[name].replace(
        "'/', '/usr', '/etc', '/usr/local/bin', '/var/tmp', '/root', '/home', '/dev'", ""
    )
    ran = world.attack(source, "none")
    assert ran.isolation == "none"
    assert world.traces(ran), ran


def test_a_stranger_that_is_left_would_be_noticed(world):
    """The scan for processes finds one."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", world.facts["marker"]]) as stray:
        while not processes_with(world.facts["marker"]):
            time.sleep(0.01)
        assert any("is left" in trace for trace in world.traces(None))
        stray.kill()


def test_without_a_sandbox_daemons_die_too(world):
    """Limits and the end of all descendants hold also where there is no isolation."""
    for name in ("daemon", "daemon by exec", "endless sleep", "signals ignored", "output flood"):
        source, statuses = GREED[name]
        ran = world.attack(source, "none", TIGHT)
        assert ran.status in statuses and not world.traces(ran), ran


def test_when_its_owner_dies_the_program_dies(world, how):
    """A killed parent leaves nothing running."""
    code = (
        "from zifio.tasks.sandbox import *; from zifio.tasks.sandbox import _python\n"
        f"run([_python(), '-c', 'import time; time.sleep(60)', {world.facts['marker']!r}], how={how!r})"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        wait_until(lambda: len(processes_with(world.facts["marker"])) > 1)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    wait_until(lambda: not processes_with(world.facts["marker"]))


def wait_until(holds) -> None:
    """Until it holds; at most 20 seconds."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
