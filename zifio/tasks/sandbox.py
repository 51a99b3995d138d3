"""Running a program that nobody trusts: one interface for reward, tools and agents.

`run` gives a program no network, a read-only system, a small scratch folder, no environment, no sight of other
processes, and limits on all it can use; when it returns, no process of the program is left. It needs Linux with
bubblewrap (`bwrap`) or with namespaces that we may make ourselves. Where neither is to be had it raises `NoSandbox`,
unless `unsafe` is true; `Ran.isolation` says which it was. docs/sandbox.md has what holds and what does not.

Try it alone:

    python -c "from zifio.tasks.sandbox import run; print(run('print(6 * 7)'))"
"""

import functools
import itertools
import marshal
import os
import platform
import selectors
import shutil
import socket
import subprocess
import sys
import time
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from zifio.config import ConfigError
from zifio.tasks.jail import kernel
from zifio.tasks.jail.filter import instructions

Status = Literal["ok", "failed", "timeout", "memory", "output", "processes"]
How = Literal["namespaces", "bubblewrap", "user namespaces", "none"]
"""Own namespaces as root, those of the tool bwrap, own ones as an ordinary user, no isolation."""

PROGRAM = "program.py"
"""The file that a program given as source becomes, in its working folder."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache", "/nix/store")
_LAUNCH = "import sys;sys.path.insert(0,{root!r});from zifio.tasks.jail.launch import main;main({channel})"
_START = f"""import builtins, sys
builtins.exit = builtins.quit = sys.exit
exec(compile(open({PROGRAM!r}).read(), {PROGRAM!r}, 'exec'))"""  # without `site`, which takes longer than most programs
_FIRST_USER, _USERS = 1_879_048_192, 1 << 24  # user ids that no system gives to anybody
_BACKSTOP_S = 60.0  # a busy machine may take long to start a launcher
_PIECE = 65536
_numbers = itertools.count(os.getpid())


class NoSandbox(ConfigError):
    """This machine offers no isolation; the message says what was tried and the way out."""


class SandboxError(RuntimeError):
    """The sandbox itself failed: nothing is known about the program."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    """Wall time from start to end."""
    cpu_s: float = 10.0
    """Processor time of each process, rounded up to whole seconds."""
    memory_bytes: int = 512 * 2**20
    """Of each process, and of all together with the files they wrote."""
    processes: int = 32
    """Processes and threads at one time."""
    file_bytes: int = 32 * 2**20
    """The longest file."""
    scratch_bytes: int = 64 * 2**20
    """All files together."""
    open_files: int = 128
    """Open files of each process."""
    output_bytes: int = 2**20
    """stdout and stderr together."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    status: Status
    """ok: exit code 0. failed: another code, or a signal. The others: stopped for that limit."""
    code: int | None
    """Its exit code; minus the number of the signal that ended it; None where it was stopped."""
    stdout: str
    stderr: str
    seconds: float
    """Wall time, starting the sandbox included."""
    isolation: str
    """A kind of `How`, with "+ seccomp" where there is a filter; "none" where it ran unsafely."""
    cpu_s: float | None = None
    """Processor time of the program, where it ended by itself."""
    memory_bytes: int | None = None
    """Its peak, or what all processes held when they were stopped for it."""


def run(
    program: str | Sequence[str],
    *,
    files: Mapping[str, str | bytes] = {},
    stdin: str | bytes = "",
    limits: Limits = Limits(),
    unsafe: bool = False,
    how: How | None = None,
) -> Ran:
    """Run Python source (a string) or a command (a sequence, its first word an absolute path) and say how it ended.

    `files` are put into its working folder, by relative name. `how` insists on one kind of isolation. Safe to call
    from several threads at once. Raises NoSandbox (see the module), ConfigError for an impossible name, SandboxError
    when the sandbox broke.
    """
    kind = how or _best(unsafe)
    command, content = _command(program, files)
    spec = _spec(kind, command, content, limits)
    began = time.monotonic()
    said, stdout, stderr, flooded = _Conversation(spec, limits, stdin).hold()
    seconds = time.monotonic() - began
    end: dict[str, Any] = literal_eval(said.decode()) if said else {"end": "broken", "why": "the launcher died"}
    if end["end"] == "broken" or (end["end"] == "stopped" and not flooded):
        raise SandboxError(f"sandbox ({kind}): {end.get('why', 'stopped')} {stderr[-500:].decode(errors='replace')}")
    status = "output" if flooded else _status(end, stderr, limits)
    out, err = (text[: limits.output_bytes].decode(errors="replace") for text in (stdout, stderr))
    code = end.get("code") if status in ("ok", "failed") else None
    return Ran(status, code, out, err, seconds, _named(kind), end.get("cpu_s"), end.get("memory_bytes"))


def isolation() -> str:
    """How programs are isolated here, in the words of `Ran.isolation`. Raises NoSandbox where they cannot be."""
    return _named(_best(unsafe=False))


@functools.cache
def why_not(how: How) -> str:
    """What keeps this kind of isolation from working on this machine; empty when it works. Tried out, once."""
    if how == "none":
        return ""
    if sys.platform != "linux":
        return f"{sys.platform} is not Linux"
    if how == "namespaces" and not kernel.may_administer():
        return "not root with all rights"
    if how == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    try:
        ran = run("print(6 * 7)", how=how, limits=Limits(seconds=60))
    except (SandboxError, OSError) as error:
        return str(error)
    return "" if ran.stdout == "42\n" else f"a program that prints 42 gave {ran}"


def python_output(source: str, limits: Limits = Limits(), unsafe: bool = False) -> str:
    """What a snippet of Python prints, errors included, and how it was stopped where it was: a tool for agents."""
    ran = run(source, limits=limits, unsafe=unsafe)
    told = {
        "timeout": f"[stopped after {limits.seconds:g} s]",
        "memory": f"[stopped: more than {limits.memory_bytes >> 20} MiB of memory]",
        "output": f"[stopped: more than {limits.output_bytes >> 10} KiB of output]",
        "processes": f"[stopped: more than {limits.processes} processes]",
    }.get(ran.status, f"[ended by signal {-ran.code}]" if ran.code is not None and ran.code < 0 else "")
    return "\n".join(part.rstrip("\n") for part in (ran.stdout, ran.stderr, told) if part)


def _best(unsafe: bool) -> How:
    """The first kind of isolation that works here. As root our own namespaces come first: in them the program is a
    user who owns nothing, where bubblewrap would leave it root's own id."""
    kinds: tuple[How, ...] = ("namespaces", "bubblewrap", "user namespaces")
    for kind in kinds:
        if not why_not(kind):
            return kind
    if unsafe:
        return "none"
    tried = "; ".join(f"{kind}: {why_not(kind)}" for kind in kinds)
    raise NoSandbox(
        f"sandbox: wanted a way to isolate programs, came none ({tried}). On Linux install bubblewrap, or allow user "
        "namespaces (sysctl user.max_user_namespaces; kernel.apparmor_restrict_unprivileged_userns=0; a container "
        "needs --security-opt seccomp=unconfined or CAP_SYS_ADMIN). To run programs without isolation, with all that "
        "they can do to this machine, set unsafe = true."
    )


def _named(kind: How) -> str:
    return f"{kind} + seccomp" if kind != "none" and instructions(platform.machine()) else kind


def _command(program: str | Sequence[str], files: Mapping[str, str | bytes]) -> tuple[list[str], dict[str, bytes]]:
    """The words to execute, and the files to lay out."""
    content = {name: text.encode() if isinstance(text, str) else bytes(text) for name, text in files.items()}
    for name in content:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
            raise ConfigError(f"sandbox: wanted relative names of files, came {name!r}. Leave out / and .. parts.")
    if not isinstance(program, str):
        return list(program), content
    if PROGRAM in content:
        raise ConfigError(f"sandbox: {PROGRAM} is the program's own name. Give that file another.")
    content[PROGRAM] = program.encode(errors="surrogatepass")
    return [_python(), "-S", "-B", "-X", "utf8", "-c", _START], content


@functools.cache
def _python() -> str:
    """The interpreter under the virtual environment, by its real path."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _spec(kind: How, command: list[str], content: dict[str, bytes], limits: Limits) -> dict[str, Any]:
    """What the launcher is asked, in types that marshal knows."""
    cpu = max(1, ceil(limits.cpu_s))
    rlimits = {
        "RLIMIT_AS": limits.memory_bytes, "RLIMIT_CPU": cpu, "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files, "RLIMIT_CORE": 0, "RLIMIT_MEMLOCK": 65536, "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_RTPRIO": 0, "RLIMIT_NICE": 0, "RLIMIT_SIGPENDING": 1024,
    }  # fmt: skip
    if kind != "none" and _counts_per_namespace():
        rlimits["RLIMIT_NPROC"] = limits.processes + 1
    own = {os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)}
    readable = [*_SYSTEM, *sorted(path for path in own if not path.startswith("/usr/") and path != "/usr")]
    return {
        "how": kind, "command": command, "files": content, "environment": {}, "rlimits": rlimits,
        "seconds": limits.seconds, "memory_bytes": limits.memory_bytes, "processes": limits.processes,
        "scratch_bytes": limits.scratch_bytes, "counts": kind != "none", "readable": readable, "python": _python(),
        "user": _FIRST_USER + next(_numbers) % _USERS, "bubblewrap": shutil.which("bwrap") or "",
    }  # fmt: skip


@functools.cache
def _counts_per_namespace() -> bool:
    """Whether the kernel counts a user's processes per user namespace; before, all of this user's would count."""
    major, minor = platform.release().split(".")[:2]
    return os.geteuid() == 0 or (int(major), int("".join(filter(str.isdigit, minor)))) >= (5, 14)


def _status(end: dict[str, Any], stderr: bytes, limits: Limits) -> Status:
    if end["end"] != "exit":
        return end["end"]
    if end["code"] == 0:
        return "ok"
    if end["code"] in (-9, -24) and end["cpu_s"] >= 0.9 * ceil(limits.cpu_s):
        return "timeout"
    last = stderr.rstrip().rpartition(b"\n")[2]
    return "memory" if last.startswith(b"MemoryError") else "failed"


class _Conversation:
    """One launcher, from its start to its end: what goes in, what comes out, and not too much of it."""

    def __init__(self, spec: dict[str, Any], limits: Limits, stdin: str | bytes) -> None:
        self.limits = limits
        self.ask = marshal.dumps(spec)
        self.stdin = memoryview(stdin.encode() if isinstance(stdin, str) else stdin)
        self.flooded, self.n_heard = False, 0
        self.heard: dict[int, list[bytes]] = {}

    def hold(self) -> tuple[bytes, bytes, bytes, bool]:
        """The launcher's report, stdout, stderr, and whether they were too long."""
        self.talk, theirs = socket.socketpair()
        with self.talk, theirs:
            root = str(Path(__file__).resolve().parents[2])
            code = _LAUNCH.format(root=root, channel=theirs.fileno())
            child = subprocess.Popen(
                [_python(), "-I", "-S", "-X", "utf8", "-c", code],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                pass_fds=[theirs.fileno()], env={}, cwd="/", start_new_session=True,
            )  # fmt: skip
            theirs.close()
            with child:
                try:
                    self.talk.sendall(len(self.ask).to_bytes(8, "little") + self.ask)
                    return self._exchange(child)
                except BaseException:
                    self.talk.close()  # it kills the program and goes
                    raise

    def _exchange(self, child: subprocess.Popen[bytes]) -> tuple[bytes, bytes, bytes, bool]:
        assert child.stdin and child.stdout and child.stderr
        streams = [child.stdout, child.stderr, self.talk]
        self.heard = {stream.fileno(): [] for stream in streams}
        deadline = time.monotonic() + self.limits.seconds + _BACKSTOP_S
        with selectors.DefaultSelector() as selector:
            for stream in streams:
                selector.register(stream, selectors.EVENT_READ)
            os.set_blocking(child.stdin.fileno(), False)
            selector.register(child.stdin, selectors.EVENT_WRITE)
            listening = len(streams)
            while listening:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    child.kill()  # of its own it would have ended long ago
                    raise SandboxError(f"sandbox: the launcher did not end within {_BACKSTOP_S:g} s of its time")
                for key, _ in ready:
                    if key.fileobj is child.stdin:
                        if not self._feed(child.stdin.fileno()):
                            selector.unregister(child.stdin)
                            child.stdin.close()
                    elif not self._hear(key.fd):
                        selector.unregister(key.fileobj)
                        listening -= 1
        said = b"".join(self.heard[self.talk.fileno()])
        out, err = (b"".join(self.heard[stream.fileno()]) for stream in (child.stdout, child.stderr))
        return said, out, err, self.flooded

    def _feed(self, descriptor: int) -> bool:
        """Hand over some of stdin; whether there is more to come."""
        try:
            self.stdin = self.stdin[os.write(descriptor, self.stdin[:_PIECE]) :] if self.stdin else self.stdin
        except BlockingIOError:
            return True
        except OSError:
            return False  # the program does not read any more
        return len(self.stdin) > 0

    def _hear(self, descriptor: int) -> bool:
        """Take what came from one stream; whether it goes on. Beyond the limit the program is stopped."""
        try:
            piece = os.read(descriptor, _PIECE)
        except OSError:
            return False
        if not piece:
            return False
        if descriptor == self.talk.fileno():
            self.heard[descriptor].append(piece)
        elif not self.flooded:
            self.heard[descriptor].append(piece)
            self.n_heard += len(piece)
            if self.n_heard > self.limits.output_bytes:
                self.flooded = True
                self.talk.shutdown(socket.SHUT_WR)
        return True
