"""The launcher of one sandbox: it makes the namespaces, waits, and kills when time is up or nobody listens any more.

`zifio.tasks.sandbox` starts it in a Python of its own, small and with one thread, and speaks with it through one
socket: a length and a spec go in, a literal comes out, and the end of the conversation means stop. Its standard
streams are the program's. Standard library only.
"""

import contextlib
import marshal
import os
import re
import select
import signal
import socket
import sys
import tempfile
import time
from typing import Any

from zifio.tasks.jail import filesystem, init, kernel

_UNSAFE = "none"
_NOBODY = 65534


def main(channel: int) -> None:
    """Serve the one request that comes through the socket `channel`."""
    with socket.socket(fileno=channel) as talk:
        spec = marshal.loads(_receive(talk))
        try:
            end = _launch(spec, talk)
        except OSError as error:
            end = _told("broken", why=str(error))
        with contextlib.suppress(OSError):  # nobody listens any more
            talk.sendall(end)


def serve_inside(spec_pipe: int, report: int, alive: int) -> None:
    """Process 1 of a sandbox that bubblewrap made."""
    with os.fdopen(spec_pipe, "rb") as file:
        spec = marshal.loads(file.read())
    try:
        _keep_only(report, alive)
        init.give_up_rights(None)
        init.supervise(spec, "/tmp", report, alive)
    except BaseException as error:
        os.write(report, _told("broken", why=repr(error)))
    finally:
        os._exit(0)


def _receive(talk: socket.socket) -> bytes:
    """A message after its length."""
    with talk.makefile("rb") as stream:
        return stream.read(int.from_bytes(stream.read(8), "little"))


def _told(end: str, **more: str) -> bytes:
    """A report as process 1 writes it."""
    return repr({"end": end, **more}).encode()


def _launch(spec: dict[str, Any], talk: socket.socket) -> bytes:
    """Start process 1, wait for its report, and be sure that nothing is left."""
    report, report_in = os.pipe()
    alive_out, alive = os.pipe()
    start = {"bubblewrap": _by_bubblewrap, _UNSAFE: _unsafely}.get(spec["how"], _by_namespaces)
    first, outer = start(spec, report_in, alive_out)
    os.close(report_in)
    os.close(alive_out)
    said, late = _listen(report, talk, time.monotonic() + spec["seconds"])
    if spec["how"] == _UNSAFE:
        os.close(alive)  # it kills its descendants and goes
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)
    _, status = os.waitpid(outer, 0)
    if late:
        return _told(late)
    if not said.endswith(b"}"):
        return _told("broken", why=f"process 1 ended with {os.waitstatus_to_exitcode(status)} and no report")
    return said


def _listen(report: int, talk: socket.socket, deadline: float) -> tuple[bytes, str]:
    """What process 1 wrote until it closed the pipe; or why that was not waited for."""
    watched = select.poll()
    watched.register(report, select.POLLIN)
    watched.register(talk.fileno(), select.POLLIN)
    said = b""
    while True:
        left = deadline - time.monotonic()
        events = dict(watched.poll(max(left, 0) * 1000))
        if report in events:
            piece = os.read(report, 65536)
            said += piece
            if not piece or said.endswith(b"}"):
                return said, ""
        elif talk.fileno() in events:
            return said, "stopped"
        elif left <= 0:
            return said, "timeout"


def _by_namespaces(spec: dict[str, Any], report: int, alive: int) -> tuple[int, int]:
    """Process 1 in new namespaces: as root with a user id that nobody has, else in a user namespace of our own."""
    user: int | None = spec["user"]
    if spec["how"] == "user namespaces":
        user, outside = None, (os.geteuid(), os.getegid())
        kernel.unshare(kernel.NEWUSER)
        _write("setgroups", "deny")
        _write("uid_map", f"{_NOBODY} {outside[0]} 1")
        _write("gid_map", f"{_NOBODY} {outside[1]} 1")
    others = kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWCGROUP
    kernel.unshare(others)
    first = os.fork()
    if first == 0:
        try:
            _keep_only(report, alive)
            kernel.unshare(kernel.NEWNS)  # here, for the new root becomes that of all in the namespace
            filesystem.enter(spec["readable"], spec["scratch_bytes"], _NOBODY if user is None else user)
            socket.sethostname("sandbox")
            init.give_up_rights(user)
            init.supervise(spec, "/tmp", report, alive)
        except BaseException as error:  # nothing above may go on in this copy of the launcher
            os.write(report, _told("broken", why=repr(error)))
        finally:
            os._exit(0)
    return first, first


def _by_bubblewrap(spec: dict[str, Any], report: int, alive: int) -> tuple[int, int]:
    """The same by the tool bwrap, where it is installed."""
    spec_out, spec_in = os.pipe()
    told, told_in = os.pipe()
    here = os.path.dirname(os.path.realpath(__file__))
    start = "import sys;sys.path.insert(0,'/jail');from zifio.tasks.jail.launch import serve_inside as s;"
    start += f"s({spec_out},{report},{alive})"
    command = [
        spec["bubblewrap"],
        "--unshare-all",
        "--unshare-user",
        "--die-with-parent",
        "--new-session",
        "--as-pid-1",
    ]
    command += [
        "--uid",
        f"{_NOBODY}",
        "--gid",
        f"{_NOBODY}",
        "--hostname",
        "sandbox",
        "--clearenv",
        "--cap-drop",
        "ALL",
    ]
    command += ["--info-fd", str(told_in)]
    for path in spec["readable"]:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    command += ["--ro-bind", here, "/jail/zifio/tasks/jail", "--proc", "/proc"]
    for name in filesystem.DEVICES:
        command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in filesystem.LINKS.items():
        command += ["--symlink", target, f"/dev/{name}"]
    command += ["--size", str(spec["scratch_bytes"]), "--perms", "1777", "--tmpfs", "/tmp"]
    command += ["--remount-ro", "/proc", "--remount-ro", "/"]
    command += ["--", spec["python"], "-I", "-S", "-B", "-X", "utf8", "-c", start]
    outer = os.fork()
    if outer == 0:
        for descriptor in (spec_out, report, alive, told_in):
            os.set_inheritable(descriptor, True)
        os.execve(command[0], command, {})
    for descriptor in (spec_out, told_in):
        os.close(descriptor)
    with os.fdopen(told, "rb") as file:
        found = re.search(rb'"child-pid": (\d+)', file.read(4096))
    with contextlib.suppress(BrokenPipeError), os.fdopen(spec_in, "wb") as file:
        file.write(marshal.dumps(spec))
    return (int(found[1]) if found else outer), outer


def _unsafely(spec: dict[str, Any], report: int, alive: int) -> tuple[int, int]:
    """A child with limits and nothing else."""
    first = os.fork()
    if first == 0:
        try:
            _keep_only(report, alive)
            if sys.platform == "linux":
                kernel.adopt_orphans()
            with tempfile.TemporaryDirectory() as home:
                init.end_descendants(init.supervise(spec, home, report, alive))
        except BaseException as error:
            os.write(report, _told("broken", why=repr(error)))
        finally:
            os._exit(0)
    return first, first


def _write(name: str, text: str) -> None:
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)


def _keep_only(*descriptors: int) -> None:
    """Close what the launcher holds for itself, its end of `alive` above all."""
    low = 3
    for kept in sorted(descriptors):
        os.closerange(low, kept)
        low = kept + 1
    os.closerange(low, init.MOST_DESCRIPTORS)
