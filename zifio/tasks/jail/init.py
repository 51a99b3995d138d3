"""Process 1 of a sandbox: it gives up every right, starts the program, watches its limits, and says how it ended.

When it ends, the kernel ends whatever the program left behind. The program, of the same user, can neither signal it
(process 1 takes no signal from its own namespace), nor read its memory or open files. Standard library only.
"""

import contextlib
import os
import resource
import select
import signal
import sys
from typing import Any

from zifio.tasks.jail.filter import install
from zifio.tasks.jail.kernel import die_with_parent, drop_bounds, drop_privileges, hide_memory

MOST_DESCRIPTORS = 65536

_LOOK_EVERY_S = 0.02
_INODE_BYTES = 1024  # what an empty file costs the kernel

Spec = dict[str, Any]
"""What a launcher is asked: see `zifio.tasks.sandbox._spec`."""


def give_up_rights(user: int | None) -> bool:
    """Become an ordinary user without capabilities, under the filter. Says whether there is a filter."""
    drop_bounds()
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    drop_privileges()
    die_with_parent(signal.SIGKILL)
    hide_memory()
    return install()


def supervise(spec: Spec, home: str, report: int, alive: int) -> int:
    """Start the program in the folder `home`, wait for it and write how it ended to `report`, as a literal. Gives the
    program's process id, which is also that of its group.

    `alive` is a pipe whose other end the launcher holds: when it closes, nobody waits any more.
    """
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    _lay_out(home, spec["files"])
    child = os.fork()
    if child == 0:
        _become(spec, home)
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    watched = select.poll()
    watched.register(wake_read, select.POLLIN)
    watched.register(alive, select.POLLIN)
    while True:
        events = dict(watched.poll(_LOOK_EVERY_S * 1000))
        if alive in events:
            return child
        if wake_read in events:
            os.read(wake_read, 4096)
        end = _reap(child) or (_over(spec, home) if spec["counts"] else None)
        if end:
            os.write(report, repr(end).encode())
            return child


def _lay_out(home: str, files: dict[str, bytes]) -> None:
    """Write the program's files."""
    os.umask(0o022)
    for name, content in files.items():
        path = os.path.join(home, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)


def _become(spec: Spec, home: str) -> None:
    """In the child: take the limits and turn into the program."""
    try:
        os.chdir(home)
        os.setsid()
        for name in (signal.SIGPIPE, signal.SIGCHLD, signal.SIGXFSZ):
            signal.signal(name, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for name, most in spec["rlimits"].items():
            with contextlib.suppress(ValueError, OSError):  # unknown here, or already lower
                resource.setrlimit(getattr(resource, name), (most, most))
        os.closerange(3, MOST_DESCRIPTORS)
        command = spec["command"]
        os.execve(command[0], command, spec["environment"])
    except OSError as error:
        os.write(2, f"{spec['command'][0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _reap(child: int) -> dict[str, Any] | None:
    """Collect the dead; how the program ended, if it has."""
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        if pid == child:
            peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            code = os.waitstatus_to_exitcode(status)
            return {"end": "exit", "code": code, "cpu_s": usage.ru_utime + usage.ru_stime, "memory_bytes": peak}


def _over(spec: Spec, home: str) -> dict[str, Any] | None:
    """What the processes hold together, where it is more than they may: memory with files in the tmpfs, or their
    number."""
    number, held = 0, 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or name == "1":
            continue
        number += 1
        with contextlib.suppress(OSError), open(f"/proc/{name}/status", "rb") as file:
            for line in file:
                if line.startswith((b"RssAnon:", b"RssShmem:")):
                    held += int(line.split()[1]) * 1024
    space = os.statvfs(home)
    held += (space.f_blocks - space.f_bfree) * space.f_frsize + (space.f_files - space.f_ffree) * _INODE_BYTES
    if held > spec["memory_bytes"]:
        return {"end": "memory", "memory_bytes": held}
    if number > spec["processes"]:
        return {"end": "processes"}
    return None


def end_descendants(group: int) -> None:
    """Kill the program's group and whatever this process is the parent of, until there is nothing: for programs that
    run unsafely. Where there is no /proc, those who left the group stay."""
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)
    while os.path.isdir("/proc"):
        me = os.getpid()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        children = [pid for pid, parent in _parents() if parent == me]  # orphans come to us one by one
        if not children:
            return
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _parents() -> list[tuple[int, int]]:
    """(process, its parent), as /proc tells."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat") as file:
            found.append((int(name), int(file.read().rpartition(")")[2].split()[1])))
    return found
